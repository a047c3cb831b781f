"""What the spectral norm's maximiser takes beyond the orthogonalisation that it is made of.

    python benchmarks/norms.py [--markdown docs/norms.md]

Ratios of `norms.spectral(polar="polar_express").lmo(g)` to `polarlib.orthogonalize(g)`: interleaved
calls on the same matrix, ratio of medians, and quartiles of the ratios of neighbouring calls.
"""

from __future__ import annotations

import importlib.util
import platform
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import polarlib
from polarlib import norms
from polarlib.result import write_whole

BEGIN, END = "<!-- begin speed -->", "<!-- end speed -->"
SHAPES = [(512, 512), (1024, 1024), (2048, 512)]
SECONDS = 6.0


def matrices() -> list[tuple[str, Any]]:
    """Gaussian matrices by library and dtype."""
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
    """Calls, median milliseconds of orthogonalize, ratio of medians, quartiles of ratios."""
    lmo = norms.spectral(polar="polar_express").lmo
    functions = [polarlib.orthogonalize, lmo]
    times: list[list[float]] = [[], []]
    for f in functions:
        f(g)
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times[0]) < 9:
        for f, t in zip(functions, times, strict=True):
            start = time.perf_counter()
            f(g)
            t.append(time.perf_counter() - start)
        functions.reverse()  # neither is always the one that finds the other's data in the cache
        times.reverse()
    if functions[0] is lmo:
        times.reverse()
    base, other = map(statistics.median, times)
    ratios = [b / a for a, b in zip(*times, strict=True)]
    return len(ratios), 1e3 * base, other / base, statistics.quantiles(ratios, n=4)[::2]


def main(
    markdown: Annotated[
        Path | None, typer.Option(help="Page whose part between the markers is made anew.")
    ] = None,
) -> None:
    """Time the maximiser against orthogonalize."""
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
        BEGIN,
        f"Made by `python benchmarks/norms.py --markdown {markdown.as_posix()}`; "
        f"{platform.machine()}, NumPy {np.__version__}.",
        "",
        *("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *cells)),
        END,
    ]
    before, _, rest = markdown.read_text(encoding="utf-8").partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{markdown} has no part between {BEGIN} and {END}")
    text = (before + "\n".join(lines) + after).encode()
    write_whole(markdown, lambda file: file.write(text))


if __name__ == "__main__":
    typer.run(main)
