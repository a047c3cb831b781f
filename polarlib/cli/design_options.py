"""The options of polarlib design."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polarlib._schedules.export import Kind
from polarlib.cli.requests import MOST_STEPS

MOST_MATMULS = 300  # more take minutes
# Suffixes of files that a schedule is exported to, besides .json, and the language of each.
EXPORTS: dict[str, Kind] = {".py": "python", ".h": "c", ".cuh": "cuda", ".tex": "latex"}

Lower = Annotated[
    float | None,
    typer.Option(
        help="Least error on an interval: its lower end. With --matmuls, --steps or --degrees."
    ),
]
Upper = Annotated[float | None, typer.Option(help="Upper end of the interval of --lower. [1]")]
Band = Annotated[
    str | None,
    typer.Option(
        metavar="E|LO,HI",
        help="Instead of --lower: the widest interval that is mapped into [1 - E, 1 + E] or "
        "[LO, HI].",
    ),
]
Error = Annotated[
    float | None,
    typer.Option(
        help="Instead of --lower: the largest slope at 0 for this error. With --precision: the "
        "widest interval, or with --lower too the fewest products."
    ),
]
Slope = Annotated[
    float | None, typer.Option(help="Instead of --lower: the least error for this slope at 0.")
]
Spectrum = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Instead of --lower: the least mean error on the singular values in FILE, a vector, "
        "or on those of its matrix.",
    ),
]
Tune = Annotated[
    str | None,
    typer.Option(
        metavar="OBJECTIVE",
        help="Instead of --lower: improve --start by its slope, its error, or its mean error on "
        "the singular values of a FILE: slope, error or FILE.",
    ),
]
Start = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE.json", help="The schedule that --tune improves.", show_default=False
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="FUNCTION",
        help="Instead of the polar factor: clip (with --upper), power(P), smooth_sign(D) or "
        "inverse_root(P).",
    ),
]
Zolotarev = Annotated[
    int | None,
    typer.Option(
        metavar="R",
        help="Instead of polynomials: rational steps with R poles, with an error below rounding. "
        "With --lower.",
    ),
]
Matmuls = Annotated[
    int | None,
    typer.Option(
        max=MOST_MATMULS, help="Largest number of matrix products: the best degrees for it."
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(max=MOST_STEPS, help="Number of degree-5 steps, instead of --matmuls."),
]
Degrees = Annotated[
    str | None,
    typer.Option(
        metavar="D,D,...",
        help="Degree of each step, such as 3,5,5; with --matmuls the degrees to choose from.",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(metavar="FORMAT", help="Safe against the rounding of this number format."),
]
Safety = Annotated[
    float | None,
    typer.Option(
        help="Each step tolerates inputs up to 1 + safety times its upper end. With --steps or "
        "--degrees. [0]"
    ),
]
Cushion = Annotated[
    float | None,
    typer.Option(
        help="Each step is designed on an interval whose lower end is at least this fraction of "
        "its upper end. With --steps or --degrees. [0]"
    ),
]
Form = Annotated[
    str | None,
    typer.Option(
        help="Form whose products --matmuls counts: plain, or gram with its restarts. [plain]"
    ),
]
Shape = Annotated[
    str | None,
    typer.Option(metavar="M,N", help="Shape of the matrices, for --matmuls."),
]
Costs = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.toml", help="Costs on a device, from 'bench --calibrate', for --matmuls."
    ),
]
Library = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Table of --costs, if it has several: torch, torch.gpu, ..."),
]
Batch = Annotated[int | None, typer.Option(help="Number of matrices in a stack, with --costs.")]
Bounds = Annotated[
    str | None,
    typer.Option(
        metavar="LO,HI", help="Bounds of the values of the schedule, with --spectrum and --tune."
    ),
]
Normalisation = Annotated[
    str | None,
    typer.Option(
        help="Norm that the singular values of --spectrum are divided by: frobenius or spectral."
    ),
]
Name = Annotated[str | None, typer.Option(help="Name of the schedule.")]
Plot = Annotated[Path | None, typer.Option(help="Draw to this .png, .pdf or .svg file.")]
Export = Annotated[
    Path | None,
    typer.Option(help=f"Write to this .json, {', '.join(EXPORTS)} or _triton.py file."),
]
