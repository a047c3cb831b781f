"""Time of the LMO of the spectral norm, relative to the orthogonalisation that it calls.

    python benchmarks/norms.py [--markdown docs/evidence/norms.md]

Ratios of `norms.spectral(polar="polar_express").lmo(g)` to `polarlib.orthogonalize(g)`: interleaved
calls on the same matrix, ratio of medians, and quartiles of the ratios of neighbouring calls.
"""

from __future__ import annotations

import importlib.util
import platform
import statistics
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import replace_part
from rich.console import Console
from rich.table import Table

import polarlib
from polarlib import norms
from polarlib.timing import interleaved, ratios

SHAPES = [(512, 512), (1024, 1024), (2048, 512)]
SECONDS = 6.0


def matrices() -> list[tuple[str, Any]]:
    """Return Gaussian matrices by library and dtype."""
    rng = np.random.default_rng(0)
    made: list[tuple[str, Any]] = []
    for shape in SHAPES:
        g = rng.standard_normal(shape).astype(np.float32)
        made.append((f"NumPy float32, {shape[0]} x {shape[1]}", g))
        if importlib.util.find_spec("torch"):
            import torch

            made.append((f"torch bfloat16, {shape[0]} x {shape[1]}", torch.tensor(g).bfloat16()))
    return made


def ratio(g: Any) -> tuple[int, float, float, list[float]]:
    """Return the calls, median milliseconds, the ratio of medians and quartiles of ratios."""
    lmo = norms.spectral(polar="polar_express").lmo
    functions = {"lmo": lambda: lmo(g), "base": lambda: polarlib.orthogonalize(g)}
    times = interleaved(functions, SECONDS)
    other, base = map(statistics.median, times.values())
    slower = ratios(times, "lmo", "base")
    return len(slower), 1e3 * base, other / base, statistics.quantiles(slower, n=4)[::2]


def main(
    markdown: Annotated[
        Path | None, typer.Option(help="Page whose part between the markers is replaced.")
    ] = None,
) -> None:
    """Measure the LMO against orthogonalize, and print or write the table."""
    rows = [(name, *ratio(g)) for name, g in matrices()]
    cells = [
        (name, str(calls), f"{ms:.2f}", f"{r:.3f}", f"{low:.3f}-{high:.3f}")
        for name, calls, ms, r, (low, high) in rows
    ]
    header = ("matrix", "calls", "orthogonalize, ms", "lmo / orthogonalize", "quartiles")
    table = Table(*header)
    for row in cells:
        table.add_row(*row)
    Console(width=110).print(table)
    if markdown is None:
        return
    lines = [
        f"Made by `python benchmarks/norms.py --markdown {markdown.as_posix()}`; "
        f"{platform.machine()}, NumPy {np.__version__}.",
        "",
        *("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *cells)),
    ]
    replace_part(markdown, "speed", "\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
