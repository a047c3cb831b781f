"""Stacks of small matrices: polar factors with evidence, and nearest rotations, against the SVD.

    python benchmarks/small.py [--markdown docs/polar_benchmarks.md | --out small.md]

Interleaved calls on the same stack. "svd" is numpy.linalg.svd of the stack with U and H formed from
it; the others are for context. Nanoseconds a matrix are medians; ratios are of medians, with the
quartiles of the ratios of neighbouring calls.
"""

from __future__ import annotations

import importlib.util
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy.linalg
import typer
from common import replace_part
from rich.console import Console
from rich.table import Table
from scipy.spatial.transform import Rotation

import polarlib
from polarlib.files.whole import write_whole
from polarlib.timing import interleaved, ratios

COUNT = 200_000
SECONDS = 6.0
# Matrices that are timed one by one: calls of SciPy take microseconds of Python each.
FEW = 1_000


def stacks(count: int) -> list[tuple[str, np.ndarray]]:
    """Gaussian stacks, and one with worst cases among them."""
    rng = np.random.default_rng(0)
    made = [
        (f"{n} x {n}, {dtype}", rng.standard_normal((count, n, n)).astype(dtype))
        for n, dtype in ((3, "float64"), (3, "float32"), (2, "float64"), (4, "float64"))
    ]
    mixed = rng.standard_normal((count, 3, 3))
    bad = rng.permutation(count)[: count // 100]
    parts = np.array_split(bad, 6)
    mixed[parts[0]] = 0
    mixed[parts[1], 2] = mixed[parts[1], 1]  # rank two
    mixed[parts[2]] = np.ones((3, 3))
    mixed[parts[3]] *= 1e150
    mixed[parts[4]] *= 1e-150
    mixed[parts[5]] = -np.eye(3)
    made.insert(1, ("3 x 3, float64, 1 % worst cases", mixed))
    return made


def by_svd(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """U and H from a batched SVD."""
    u, s, vh = np.linalg.svd(a)
    return u @ vh, (np.swapaxes(vh, -1, -2) * s[..., None, :]) @ vh


def one_by_one(f: Callable[[np.ndarray], Any], a: np.ndarray) -> Callable[[], None]:
    """A loop over the first few matrices."""

    def run() -> None:
        for x in a[:FEW]:
            f(x)

    return run


def contenders(a: np.ndarray) -> dict[str, tuple[Callable[[], Any], int]]:
    """Functions and how many matrices they take; the first two are compared."""
    made: dict[str, tuple[Callable[[], Any], int]] = {
        "svd": (lambda: by_svd(a), len(a)),
        "polar": (lambda: polarlib.polar(a), len(a)),
        "nearest_rotation": (lambda: polarlib.nearest_rotation(a), len(a)),
        "scipy.linalg.polar": (one_by_one(scipy.linalg.polar, a), FEW),
    }
    if a.shape[-1] == 3:
        axes = np.eye(3)
        made["Rotation.align_vectors"] = (
            one_by_one(lambda x: Rotation.align_vectors(np.abs(x) + axes, axes), a),
            FEW,
        )
    if importlib.util.find_spec("torch"):
        import torch

        t = torch.from_numpy(a)
        made["torch svd"] = (lambda: torch.linalg.svd(t), len(a))
    return made


def main(
    count: Annotated[int, typer.Option(help="Matrices in a stack.")] = COUNT,
    seconds: Annotated[float, typer.Option(help="Seconds a stack.")] = SECONDS,
    markdown: Annotated[
        Path | None, typer.Option(help="Page whose part between the markers is made anew.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the same text.")] = None,
) -> None:
    """Time small matrices."""
    header = ("stack", "what", "ns a matrix", "svd / it", "quartiles", "backward error")
    cells = []
    for name, a in stacks(count):
        functions = contenders(a)
        times = interleaved({what: f for what, (f, _) in functions.items()}, seconds)
        each = {what: [t / functions[what][1] for t in ts] for what, ts in times.items()}
        worst = float(polarlib.polar(a).backward_error.max())
        for what, ts in each.items():
            low, _, high = statistics.quantiles(ratios(each, "svd", what), n=4)
            ratio = statistics.median(each["svd"]) / statistics.median(ts)
            error = f"{worst:.1e}" if what == "polar" else ""
            ns = f"{1e9 * statistics.median(ts):.0f}"
            cells.append((name, what, ns, f"{ratio:.2f}", f"{low:.2f}-{high:.2f}", error))
    table = Table(*header)
    for row in cells:
        table.add_row(*row)
    Console(width=110).print(table)
    command = "python benchmarks/small.py --markdown docs/polar_benchmarks.md"
    text = "\n".join(
        [
            f"Made by `{command}`; {platform.machine()}, NumPy {np.__version__}, stacks of "
            f"{count:,} matrices.",
            "",
            *("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *cells)),
        ]
    )
    if markdown is not None:
        replace_part(markdown, "small", text)
    if out is not None:
        write_whole(out, lambda file: file.write(f"{text}\n".encode()))


if __name__ == "__main__":
    typer.run(main)
