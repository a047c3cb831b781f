"""polarlib design."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any

import typer

import polarlib
from polarlib import Schedule
from polarlib._schedules.export import Kind
from polarlib.cli import console
from polarlib.cli.console import command, grid, say, tabulated
from polarlib.cli.listing import coefficients, short_slope
from polarlib.cli.requests import MOST_STEPS, designed
from polarlib.files.whole import write_whole

MOST_MATMULS = 300  # more take minutes
# Endings of files that a schedule is exported to, and the kind of their text; also JSON.
EXPORTS: dict[str, Kind] = {".py": "python", ".h": "c", ".cuh": "cuda", ".tex": "latex"}
# Options that say what to design; the others say what to do with it.
OUTPUTS = ("name", "plot", "export", "as_json")


@command(epilog="Example: polarlib design --lower 1e-3 --matmuls 15 --precision bfloat16")
def design(
    context: typer.Context,
    lower: Annotated[
        float | None,
        typer.Option(
            help="Lower end of the interval whose singular values the schedule is to bring to 1: "
            "the least error, with --matmuls, --steps or --degrees."
        ),
    ] = None,
    upper: Annotated[float | None, typer.Option(help="Its upper end. [1]")] = None,
    band: Annotated[
        str | None,
        typer.Option(
            metavar="E|LO,HI",
            help="Instead: the widest interval that is mapped into 1 - E to 1 + E, or LO to HI.",
        ),
    ] = None,
    error: Annotated[
        float | None,
        typer.Option(
            help="Instead: the largest slope at 0 for this error; with --precision the widest "
            "interval, or with --lower the fewest products."
        ),
    ] = None,
    slope: Annotated[
        float | None, typer.Option(help="Instead: the least error for this slope at 0.")
    ] = None,
    spectrum: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Instead: the least mean error on the singular values that FILE holds as a "
            "vector, or on those of its matrix.",
        ),
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            metavar="OBJECTIVE",
            help="Instead: improve --start by its slope, its error, or its mean error on the "
            "singular values of a FILE.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE.json", help="What --tune improves.", show_default=False),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="FUNCTION",
            help="Instead: another function, clip (with --upper), power(P), smooth_sign(D) or "
            "inverse_root(P).",
        ),
    ] = None,
    zolotarev: Annotated[
        int | None,
        typer.Option(metavar="R", help="Instead: rational steps of R poles, to rounding."),
    ] = None,
    matmuls: Annotated[
        int | None,
        typer.Option(max=MOST_MATMULS, help="Matrix products that may be used: the best degrees."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(max=MOST_STEPS, help="Number of steps, of degree 5.")
    ] = None,
    degrees: Annotated[
        str | None,
        typer.Option(
            help="Degree of each step, such as 3,5,5; with --matmuls those to choose from."
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="Safe against the rounding of this number format."),
    ] = None,
    safety: Annotated[
        float | None,
        typer.Option(
            help="Each step tolerates inputs up to 1 + safety times its upper end; with --steps or "
            "--degrees."
        ),
    ] = None,
    cushion: Annotated[
        float | None,
        typer.Option(
            help="Each step is designed on an interval whose lower end is at least this share of "
            "its upper end; with --steps or --degrees."
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(help="plain or gram: what --matmuls counts; gram with its restarts. [plain]"),
    ] = None,
    shape: Annotated[
        str | None, typer.Option(metavar="M,N", help="Of the matrices that --matmuls counts for.")
    ] = None,
    costs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.toml", help="Costs of a device, by bench --calibrate, for --matmuls."
        ),
    ] = None,
    library: Annotated[
        str | None,
        typer.Option(help="Which table of --costs, where it has several: torch, torch.gpu, ..."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Number of matrices in a stack, with --costs.")
    ] = None,
    bounds: Annotated[
        str | None,
        typer.Option(metavar="LO,HI", help="Of the values, with --spectrum and --tune."),
    ] = None,
    normalisation: Annotated[
        str | None, typer.Option(help="frobenius or spectral, with --spectrum.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call the schedule.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png, .pdf or .svg.")] = None,
    export: Annotated[
        Path | None,
        typer.Option(help=f"Write to this .json, {', '.join(EXPORTS)} or _triton.py file."),
    ] = None,
    as_json: console.Json = False,
) -> None:
    """Design a schedule for an interval, a band or a spectrum.

    One of --lower, --band, --error, --slope, --spectrum, --tune, --target and --zolotarev says what
    is designed for, and the others are refused with it. --lower is also for --target power(P) and
    inverse_root(P), for --zolotarev, and for --error with --precision.
    """
    console.check_outputs({"--plot": plot}, console.PICTURES)
    console.check_outputs({"--export": export}, (".json", *EXPORTS))
    given = {
        option: value
        for option, value in context.params.items()
        if value is not None and option not in OUTPUTS
    }
    with console.progress_bar(None) as advance, console.collected_warnings() as notes:
        s = designed(given, lambda k, value: advance(f"least so far {value:.4g}"))
    if name is not None:
        s = dataclasses.replace(s, name=name)
    # Neither is there for rational steps.
    rows = [] if s.is_rational else polarlib.design.table(s)
    certificate = None if s.is_rational else s.certify()
    if plot is not None:
        from polarlib.plot import polynomial

        with console.any_letters():
            ax = polynomial(s)
        picture = functools.partial(console.save_picture, ax, plot)
        console.write_named({"--plot": plot}, picture)
    if export is not None:
        console.write_named({"--export": export}, functools.partial(_export, s, export))
    if as_json:
        proven = None if certificate is None else dataclasses.asdict(certificate)
        document = s.to_dict() | {"table": rows, "certificate": proven, "notes": notes}
        console.say_json(document | {"plot_file": plot, "export_file": export})
        return
    _print(s, rows, certificate)
    console.say_notes(notes)
    for path in filter(None, (plot, export)):
        say(f"Written to {path}.")


def _print(
    s: Schedule, rows: list[dict[str, Any]], certificate: polarlib.Certificate | None
) -> None:
    proven = ""
    if certificate is not None:
        # 17 digits determine a double; bounds that are rounded further may not hold.
        proven = f"between {certificate.lower:.17g} and {certificate.upper:.17g}"
    facts = {
        "name": s.name,
        "source": s.source,
        "approximates": "" if s.target == "polar" else s.target,
        "matrix products": str(s.matmuls),
        "normalisation": s.normalisation,
        "interval": f"[{s.lower:g}, {s.upper:g}]",
        "error on it": f"{s.error():.6g}",
        "certified": proven,
        "slope at 0": short_slope(s.slope),
        "diverges above": f"{s.divergence_limit:.7g}",
    }
    say(grid((fact, value) for fact, value in facts.items() if value), "")
    if rows:
        say(
            *tabulated(
                [
                    ("step", ">", lambda row: row["step"]),
                    ("degree", ">", lambda row: row["degree"]),
                    ("from", ">", lambda row: f"{row['lower']:.5g}"),
                    ("to", ">", lambda row: f"{row['upper']:.6g}"),
                    ("image\nfrom", ">", lambda row: f"{row['image_lower']:.5g}"),
                    ("to", ">", lambda row: f"{row['image_upper']:.6g}"),
                    ("error", ">", lambda row: _error(row["error"])),
                    ("noise\ngain", ">", lambda row: f"{row['noise_gain']:.3g}"),
                    ("slope", ">", lambda row: short_slope(row["slope"])),
                    ("prod-\nucts", ">", lambda row: row["products"]),
                ],
                rows,
            ),
            "",
        )
    say(*coefficients(s))


def _error(x: float | None) -> str:
    """An error, of which the steps of other functions have none but the last."""
    return "-" if x is None else f"{x:.4g}"


def _export(s: polarlib.Schedule, path: Path) -> None:
    """Write a schedule in the format of the ending of the file."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        s.to_json(path)
        return
    kind: Kind = "triton" if path.name.lower().endswith("_triton.py") else EXPORTS[suffix]
    text = s.to_code(kind).encode()
    write_whole(path, lambda file: file.write(text))
