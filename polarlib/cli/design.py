"""polarlib design and polarlib schedules."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

import polarlib
from polarlib import published
from polarlib._schedules.export import Kind
from polarlib._schedules.targets import TARGETS, parse_target
from polarlib._schedules.validity import NORMALISATIONS
from polarlib.cli import console
from polarlib.cli.console import command, format_number, grid, say, tabulated
from polarlib.files.whole import write_whole

# Limits of options: larger values take minutes, and no schedule needs them.
MOST_STEPS, MOST_MATMULS, MOST_DEGREE = 100, 300, 101


# -- design ----------------------------------------------------------------------------------

# Endings of files that a schedule is exported to, and the kind of their text; also JSON.
EXPORTS: dict[str, Kind] = {".py": "python", ".h": "c", ".cuh": "cuda", ".tex": "latex"}


@command(epilog="Example: polarlib design --lower 1e-3 --matmuls 15 --precision bfloat16")
def design(
    lower: Annotated[
        float, typer.Option(help="Smallest singular value that the schedule is to bring to 1.")
    ],
    upper: Annotated[float, typer.Option(help="Largest one.")] = 1.0,
    matmuls: Annotated[
        int | None,
        typer.Option(max=MOST_MATMULS, help="Matrix products that may be spent: the best degrees."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(max=MOST_STEPS, help="Number of degree-5 steps, instead of --matmuls."),
    ] = None,
    degrees: Annotated[
        str | None, typer.Option(help="Degree of each step, such as 3,5,5, instead of --matmuls.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="Safe against the rounding of this number format."),
    ] = None,
    safety: Annotated[
        float,
        typer.Option(
            help="Each step tolerates inputs up to 1 + safety times its upper end; with --steps or "
            "--degrees."
        ),
    ] = 0.0,
    cushion: Annotated[
        float,
        typer.Option(
            help="Each step is designed on an interval whose lower end is at least this share of "
            "its upper end; with --steps or --degrees."
        ),
    ] = 0.0,
    name: Annotated[str | None, typer.Option(help="What to call the schedule.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png, .pdf or .svg.")] = None,
    export: Annotated[
        Path | None,
        typer.Option(help=f"Write to this .json, {', '.join(EXPORTS)} or _triton.py file."),
    ] = None,
    as_json: console.Json = False,
) -> None:
    """Design a schedule for an interval, a budget, a number format."""
    console.check_outputs({"--plot": plot}, console.PICTURES)
    console.check_outputs({"--export": export}, (".json", *EXPORTS))
    s = _designed(lower, upper, matmuls, steps, degrees, precision, safety, cushion)
    if name is not None:
        s = dataclasses.replace(s, name=name)
    rows = polarlib.design.table(s)
    certificate = s.certify()
    if plot is not None:
        from polarlib.plot import polynomial

        picture = functools.partial(console.save_picture, polynomial(s), plot)
        console.write_named({"--plot": plot}, picture)
    if export is not None:
        console.write_named({"--export": export}, functools.partial(_export, s, export))
    if as_json:
        document = s.to_dict() | {"table": rows, "certificate": dataclasses.asdict(certificate)}
        console.say_json(document | {"plot_file": plot, "export_file": export})
        return
    facts = {
        "name": s.name,
        "source": s.source,
        "matrix products": str(s.matmuls),
        "normalisation": s.normalisation,
        "interval": f"[{s.lower:g}, {s.upper:g}]",
        "error on it": f"{s.error():.6g}",
        # 17 digits determine a double; bounds that are rounded further may not hold.
        "certified": f"between {certificate.lower:.17g} and {certificate.upper:.17g}",
        "slope at 0": _slope(s.slope),
        "diverges above": f"{s.divergence_limit:.7g}",
    }
    say(
        grid(facts.items()),
        "",
        *tabulated(
            [
                ("step", ">", lambda row: row["step"]),
                ("degree", ">", lambda row: row["degree"]),
                ("from", ">", lambda row: f"{row['lower']:.5g}"),
                ("to", ">", lambda row: f"{row['upper']:.6g}"),
                ("image\nfrom", ">", lambda row: f"{row['image_lower']:.5g}"),
                ("to", ">", lambda row: f"{row['image_upper']:.6g}"),
                ("error", ">", lambda row: f"{row['error']:.4g}"),
                ("noise\ngain", ">", lambda row: f"{row['noise_gain']:.3g}"),
                ("slope", ">", lambda row: _slope(row["slope"])),
                ("prod-\nucts", ">", lambda row: row["products"]),
            ],
            rows,
        ),
        "",
        *_coefficients(s),
    )
    for path in filter(None, (plot, export)):
        say(f"Written to {path}.")


def _designed(
    lower: float,
    upper: float,
    matmuls: int | None,
    steps: int | None,
    degrees: str | None,
    precision: str | None,
    safety: float,
    cushion: float,
) -> polarlib.Schedule:
    """Call the function of the library that designs for what was given."""
    given = {"--matmuls": matmuls, "--steps": steps, "--degrees": degrees}
    named = [option for option, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(
            f"give one of {', '.join(given)}, got {' and '.join(named) or 'none of them'}"
        )
    if steps is not None and steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    free = degrees is None and not (safety or cushion)
    if precision is not None and free and upper == 1:
        return polarlib.design.for_precision(precision, lower, steps=steps, matmuls=matmuls)
    if precision is not None:
        raise ValueError(
            "--precision derives degrees, safety and cushion for [lower, 1] by itself: leave "
            "--degrees, --safety, --cushion and --upper out"
        )
    if matmuls is not None:
        if safety or cushion:
            raise ValueError("--safety and --cushion go with --steps or --degrees")
        return polarlib.design.budget(lower, matmuls, upper=upper)
    try:
        listed = [5] * steps if steps else [int(d) for d in str(degrees).split(",")]
    except ValueError:
        raise ValueError(
            f"--degrees must be odd numbers with commas between, such as 3,5,5, got {degrees!r}"
        ) from None
    if len(listed) > MOST_STEPS or max(listed) > MOST_DEGREE:
        raise ValueError(
            f"--degrees must be at most {MOST_STEPS} numbers up to {MOST_DEGREE}, got {degrees!r}"
        )
    return polarlib.design.greedy(lower, listed, upper=upper, safety=safety, cushion=cushion)


def _export(s: polarlib.Schedule, path: Path) -> None:
    """Write a schedule in the format of the ending of the file."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        s.to_json(path)
        return
    kind: Kind = "triton" if path.name.lower().endswith("_triton.py") else EXPORTS[suffix]
    text = s.to_code(kind).encode()
    write_whole(path, lambda file: file.write(text))


