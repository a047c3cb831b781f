"""Schedules for a spectrum: the mean error of fixed, best greedy and tuned coefficients.

    python benchmarks/tune.py [--json FILE] [--quick]

The mean is that of ``|1 - s(x)|`` over the spectrum. Fixed is the greedy schedule on [1e-3, 1],
best is the greedy schedule on [l, 1] of the best l, tuned is ``design.for_spectrum``. All have the
same cost. The second table has the times of ``design.band`` and its intervals.
"""

from __future__ import annotations

import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from polarlib.design import (
    Spectrum,
    band,
    for_spectrum,
    greedy,
    log_uniform,
    marchenko_pastur,
    mean_error,
    power_law,
    spectrum,
)
from polarlib.files import sample_matrices
from polarlib.files.whole import write_whole
from polarlib.timing import interleaved

FIXED = 1e-3
# Steps of the grid on which the best lower end is sought, as a check on the library's own search.
GRID = 300


def spectra(quick: bool) -> list[Spectrum]:
    """The spectra: random matrices, two laws, and the matrices that come with the library."""
    found = [
        marchenko_pastur(1024, 1024)._replace(name="1024 x 1024 random, Frobenius"),
        marchenko_pastur(1024, 1024, normalisation="spectral")._replace(
            name="1024 x 1024 random, spectral"
        ),
        marchenko_pastur(1024, 256)._replace(name="1024 x 256 random, Frobenius"),
        log_uniform(1e-3),
        log_uniform(1e-6),
        power_law(0.5, 1e-4),
        power_law(2.0, 1e-3),
    ]
    for name, matrix in list(sample_matrices().items())[: 1 if quick else None]:
        values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
        found.append(spectrum(values)._replace(name=name))
    return found


def row(sp: Spectrum, steps: int) -> dict[str, Any]:
    """Return the values of one spectrum and one number of degree-5 steps."""
    lowers = np.geomspace(1e-8, 0.95, GRID)
    errors = [mean_error(greedy(float(l), [5] * steps), sp) for l in lowers]
    start = time.perf_counter()
    tuned = for_spectrum(sp, steps)
    seconds = time.perf_counter() - start
    return {
        "spectrum": sp.name,
        "steps": steps,
        "fixed": mean_error(greedy(FIXED, [5] * steps), sp),
        "best": min(errors),
        "best_lower": float(lowers[int(np.argmin(errors))]),
        "tuned": mean_error(tuned, sp),
        "largest": tuned.image(0.0, 1.0)[1],
        "seconds": seconds,
    }


def main(
    to_json: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
    quick: Annotated[bool, typer.Option(help="2 and 3 steps, one bundled matrix.")] = False,
) -> None:
    """Print both tables."""
    console = Console(width=130)
    table = Table(title="mean error on a spectrum, degree-5 steps")
    for name in ("spectrum", "steps", "fixed", "best greedy", "its l", "tuned", "tuned / best"):
        table.add_column(name, justify="left" if name == "spectrum" else "right")
    for name in ("largest value", "seconds"):
        table.add_column(name, justify="right")
    rows = [row(sp, k) for sp in spectra(quick) for k in ((2, 3) if quick else (2, 3, 4, 5))]
    for r in rows:
        ratio = r["tuned"] / r["best"] if r["best"] else math.nan
        table.add_row(
            r["spectrum"],
            str(r["steps"]),
            f"{r['fixed']:.4g}",
            f"{r['best']:.4g}",
            f"{r['best_lower']:.1e}",
            f"{r['tuned']:.4g}",
            f"{ratio:.4f}",
            f"{r['largest']:.3f}",
            f"{r['seconds']:.2f}",
        )
    console.print(table)
    table = Table(title="band: the widest interval")
    for name in ("steps", "epsilon", "lower", "slope", "ms"):
        table.add_column(name, justify="right")
    bands = []
    for steps, epsilon in ((3, 0.3), (5, 0.3), (5, 0.01), (5, 1e-12), (8, 0.1)):
        s = band(steps, epsilon)
        times = interleaved({"": partial(band, steps, epsilon)}, 0, least=20)[""]
        bands.append({"steps": steps, "epsilon": epsilon, "ms": 1e3 * min(times)})
        table.add_row(
            str(steps), f"{epsilon:g}", f"{s.lower:.3e}", f"{s.slope:.4g}", f"{bands[-1]['ms']:.1f}"
        )
    console.print(table)
    if to_json is not None:
        text = json.dumps({"spectra": rows, "bands": bands}, indent=1) + "\n"
        write_whole(to_json, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    typer.run(main)
