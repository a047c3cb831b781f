"""The options of polarlib design."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polarlib._schedules.export import Kind
from polarlib.cli.requests import MOST_STEPS

MOST_MATMULS = 300  # more take minutes
# Endings of files that a schedule is exported to, and the kind of their text; also JSON.
EXPORTS: dict[str, Kind] = {".py": "python", ".h": "c", ".cuh": "cuda", ".tex": "latex"}

Lower = Annotated[
    float | None,
    typer.Option(
        help="Lower end of the interval whose singular values the schedule is to bring to 1: "
        "the least error, with --matmuls, --steps or --degrees."
    ),
]
Upper = Annotated[float | None, typer.Option(help="Its upper end. [1]")]
Band = Annotated[
    str | None,
    typer.Option(
        metavar="E|LO,HI",
        help="Instead: the widest interval that is mapped into 1 - E to 1 + E, or LO to HI.",
    ),
]
Error = Annotated[
    float | None,
    typer.Option(
        help="Instead: the largest slope at 0 for this error; with --precision the widest "
        "interval, or with --lower the fewest products."
    ),
]
Slope = Annotated[float | None, typer.Option(help="Instead: the least error for this slope at 0.")]
Spectrum = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Instead: the least mean error on the singular values that FILE holds as a "
        "vector, or on those of its matrix.",
    ),
]
Tune = Annotated[
    str | None,
    typer.Option(
        metavar="OBJECTIVE",
        help="Instead: improve --start by its slope, its error, or its mean error on the "
        "singular values of a FILE.",
    ),
]
Start = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE.json", help="What --tune improves.", show_default=False),
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="FUNCTION",
        help="Instead: another function, clip (with --upper), power(P), smooth_sign(D) or "
        "inverse_root(P).",
    ),
]
Zolotarev = Annotated[
    int | None,
    typer.Option(metavar="R", help="Instead: rational steps of R poles, to rounding."),
]
Matmuls = Annotated[
    int | None,
    typer.Option(max=MOST_MATMULS, help="Matrix products that may be used: the best degrees."),
]
Steps = Annotated[int | None, typer.Option(max=MOST_STEPS, help="Number of steps, of degree 5.")]
Degrees = Annotated[
    str | None,
    typer.Option(help="Degree of each step, such as 3,5,5; with --matmuls those to choose from."),
]
Precision = Annotated[
    str | None,
    typer.Option(metavar="FORMAT", help="Safe against the rounding of this number format."),
]
Safety = Annotated[
    float | None,
    typer.Option(
        help="Each step tolerates inputs up to 1 + safety times its upper end; with --steps or "
        "--degrees."
    ),
]
Cushion = Annotated[
    float | None,
    typer.Option(
        help="Each step is designed on an interval whose lower end is at least this share of "
        "its upper end; with --steps or --degrees."
    ),
]
Form = Annotated[
    str | None,
    typer.Option(help="plain or gram: what --matmuls counts; gram with its restarts. [plain]"),
]
Shape = Annotated[
    str | None, typer.Option(metavar="M,N", help="Of the matrices that --matmuls counts for.")
]
Costs = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.toml", help="Costs of a device, by bench --calibrate, for --matmuls."
    ),
]
Library = Annotated[
    str | None,
    typer.Option(help="Which table of --costs, where it has several: torch, torch.gpu, ..."),
]
Batch = Annotated[int | None, typer.Option(help="Number of matrices in a stack, with --costs.")]
Bounds = Annotated[
    str | None,
    typer.Option(metavar="LO,HI", help="Of the values, with --spectrum and --tune."),
]
Normalisation = Annotated[str | None, typer.Option(help="frobenius or spectral, with --spectrum.")]
Name = Annotated[str | None, typer.Option(help="What to call the schedule.")]
Plot = Annotated[Path | None, typer.Option(help="Draw to this .png, .pdf or .svg.")]
Export = Annotated[
    Path | None,
    typer.Option(help=f"Write to this .json, {', '.join(EXPORTS)} or _triton.py file."),
]
