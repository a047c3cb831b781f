"""The command polarlib design."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import typer

import polarlib
from polarlib import Schedule
from polarlib._schedules.export import Kind
from polarlib.cli import console
from polarlib.cli import design_options as options
from polarlib.cli.console import command, grid, say, tabulated
from polarlib.cli.design_options import EXPORTS
from polarlib.cli.listing import coefficients, short_slope
from polarlib.cli.progress import progress
from polarlib.cli.requests import designed
from polarlib.files.whole import write_whole

# Options for the output; all other options define the design.
OUTPUTS = ("name", "plot", "export", "as_json")


@command(epilog="Example: polarlib design --lower 1e-3 --matmuls 15 --precision bfloat16")
def design(
    context: typer.Context,
    lower: options.Lower = None,
    upper: options.Upper = None,
    band: options.Band = None,
    error: options.Error = None,
    slope: options.Slope = None,
    spectrum: options.Spectrum = None,
    tune: options.Tune = None,
    start: options.Start = None,
    target: options.Target = None,
    zolotarev: options.Zolotarev = None,
    matmuls: options.Matmuls = None,
    steps: options.Steps = None,
    degrees: options.Degrees = None,
    precision: options.Precision = None,
    safety: options.Safety = None,
    cushion: options.Cushion = None,
    form: options.Form = None,
    shape: options.Shape = None,
    costs: options.Costs = None,
    library: options.Library = None,
    batch: options.Batch = None,
    bounds: options.Bounds = None,
    normalisation: options.Normalisation = None,
    name: options.Name = None,
    plot: options.Plot = None,
    export: options.Export = None,
    as_json: console.Json = False,
) -> None:
    """Design a schedule for an interval, a band or a spectrum.

    Exactly one of --lower, --band, --error, --slope, --spectrum, --tune, --target and --zolotarev
    defines the design. --lower may also be given with --target power(P) or inverse_root(P), with
    --zolotarev, and with --error and --precision.
    """
    console.check_outputs({"--plot": plot}, console.PICTURES)
    console.check_outputs({"--export": export}, (".json", *EXPORTS))
    given = {
        option: value
        for option, value in context.params.items()
        if value is not None and option not in OUTPUTS
    }
    with progress(quiet=as_json) as bar:
        bar.begin("design")
        with console.collected_warnings() as notes:
            s = designed(given, bar)
        if name is not None:
            s = dataclasses.replace(s, name=name)
        bar.begin("table and certificate")  # which rational steps have not
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
        # 17 digits determine a double. Bounds with fewer digits might not hold.
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
                    ("error\ngain", ">", lambda row: f"{row['noise_gain']:.3g}"),
                    ("slope", ">", lambda row: short_slope(row["slope"])),
                    ("prod-\nucts", ">", lambda row: row["products"]),
                ],
                rows,
            ),
            "",
        )
    say(*coefficients(s))


def _error(x: float | None) -> str:
    """Format an error; for other targets only the last step has one."""
    return "-" if x is None else f"{x:.4g}"


def _export(s: polarlib.Schedule, path: Path) -> None:
    """Write a schedule in the format of the file's suffix."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        s.to_json(path)
        return
    kind: Kind = "triton" if path.name.lower().endswith("_triton.py") else EXPORTS[suffix]
    text = s.to_code(kind).encode()
    write_whole(path, lambda file: file.write(text))
