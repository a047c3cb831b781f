r"""Stacks of small matrices: polar factors with error estimates, and rotations, against the SVD.

    python benchmarks/small.py --json docs/data/small.json \\
        --markdown docs/evidence/polar_benchmarks.md

Interleaved calls on the same stack, each after a product of two 512 x 512 matrices, which fills the
caches. "svd" is numpy.linalg.svd of the stack with U and H formed from it; the other functions are
shown for comparison. Nanoseconds per matrix are medians; ratios are of medians, with the quartiles
of the ratios of neighbouring calls. Both compute in one thread.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy.linalg
import typer
from common import replace_part, store, where
from rich.console import Console
from rich.table import Table
from scipy.spatial.transform import Rotation

import polarlib
from polarlib.timing import interleaved, ratios

COUNT = 200_000
SECONDS = 6.0
COMMAND = (
    "python benchmarks/small.py --json docs/data/small.json"
    " --markdown docs/evidence/polar_benchmarks.md"
)
# Matrices that are timed one by one: calls of SciPy take microseconds of Python each.
FEW = 1_000


# Shapes, with the lengths of their stacks over that of the longest.
SHAPES = [
    ((3, 3), 1.0, "float64"),
    ((3, 3), 1.0, "float32"),
    ((3, 3), 1.0, "complex128"),
    ((2, 2), 1.0, "float64"),
    ((4, 4), 1.0, "float64"),
    ((10, 3), 0.005, "float64"),
    ((10, 3), 0.005, "float32"),
    ((10, 3), 0.005, "complex128"),
    ((10, 3), 0.25, "float64"),
    ((8, 8), 0.005, "float64"),
    ((8, 8), 0.005, "float32"),
    ((8, 8), 0.005, "complex128"),
    ((16, 16), 0.005, "float64"),
    ((32, 32), 0.001, "float64"),
    ((64, 64), 0.0005, "float64"),
]


def stacks(count: int) -> list[tuple[str, np.ndarray]]:
    """Return Gaussian stacks, and one that contains worst cases."""
    rng = np.random.default_rng(0)
    made = []
    for shape, part, dtype in SHAPES:
        length = max(1, int(part * count))
        a = rng.standard_normal((length, *shape))
        if dtype.startswith("complex"):
            a = a + 1j * rng.standard_normal(a.shape)
        name = f"{length:,} of {shape[0]} x {shape[1]}, {dtype}"
        made.append((name, a.astype(dtype)))
    mixed = rng.standard_normal((count, 3, 3))
    bad = rng.permutation(count)[: count // 100]
    parts = np.array_split(bad, 6)
    mixed[parts[0]] = 0
    mixed[parts[1], 2] = mixed[parts[1], 1]  # rank two
    mixed[parts[2]] = np.ones((3, 3))
    mixed[parts[3]] *= 1e150
    mixed[parts[4]] *= 1e-150
    mixed[parts[5]] = -np.eye(3)
    made.insert(1, (f"{count:,} of 3 x 3, float64, 1 % worst cases", mixed))
    return made


def by_svd(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return U and H from a batched SVD."""
    u, s, vh = np.linalg.svd(a, full_matrices=False)
    return u @ vh, (np.conj(np.swapaxes(vh, -1, -2)) * s[..., None, :]) @ vh


def one_by_one(f: Callable[[np.ndarray], Any], a: np.ndarray) -> Callable[[], None]:
    """Return a loop over the first few matrices."""

    def run() -> None:
        for x in a[:FEW]:
            f(x)

    return run


def contenders(a: np.ndarray) -> dict[str, tuple[Callable[[], Any], int]]:
    """Return functions with their numbers of matrices; the first two are compared."""
    made: dict[str, tuple[Callable[[], Any], int]] = {
        "svd": (lambda: by_svd(a), len(a)),
        "polar": (lambda: polarlib.polar(a), len(a)),
        "nearest_orthogonal": (lambda: polarlib.nearest_orthogonal(a), len(a)),
        "scipy.linalg.polar": (one_by_one(scipy.linalg.polar, a), min(FEW, len(a))),
    }
    square = a.shape[-2] == a.shape[-1]
    if square and a.dtype.kind != "c":
        made["nearest_rotation"] = (lambda: polarlib.nearest_rotation(a), len(a))
    if a.shape[-2:] == (3, 3) and a.dtype.kind != "c":
        axes = np.eye(3)
        made["Rotation.align_vectors"] = (
            one_by_one(lambda x: Rotation.align_vectors(np.abs(x) + axes, axes), a),
            min(FEW, len(a)),
        )
    if importlib.util.find_spec("torch"):
        import torch

        t = torch.from_numpy(a)
        made["torch svd"] = (lambda: torch.linalg.svd(t, full_matrices=False), len(a))
        made["polar of torch"] = (lambda: polarlib.polar(t), len(a))
    return made


def main(
    count: Annotated[int, typer.Option(help="Matrices in a stack.")] = COUNT,
    seconds: Annotated[float, typer.Option(help="Seconds per stack.")] = SECONDS,
    markdown: Annotated[
        Path | None, typer.Option(help="Page whose part between the markers is replaced.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the data.")] = None,
) -> None:
    """Time small matrices."""
    header = ("stack", "what", "ns per matrix", "svd / it", "quartiles", "backward error")
    rows: list[dict[str, Any]] = []
    for name, a in stacks(count):
        functions = contenders(a)
        times = interleaved(
            {what: f for what, (f, _) in functions.items()}, seconds, situation="after a product"
        )
        each = {what: [t / functions[what][1] for t in ts] for what, ts in times.items()}
        worst = float(polarlib.polar(a).backward_error.max())
        for what, ts in each.items():
            low, _, high = statistics.quantiles(ratios(each, "svd", what), n=4)
            rows.append(
                {
                    "stack": name,
                    "what": what,
                    "ns": 1e9 * statistics.median(ts),
                    "ratio": statistics.median(each["svd"]) / statistics.median(ts),
                    "quartiles": [low, high],
                    "rounds": len(ts),
                    "backward_error": worst if what == "polar" else None,
                }
            )
    cells = [
        (
            row["stack"],
            row["what"],
            f"{row['ns']:.0f}",
            f"{row['ratio']:.2f}",
            "{:.2f}-{:.2f}".format(*row["quartiles"]),
            "" if row["backward_error"] is None else f"{row['backward_error']:.1e}",
        )
        for row in rows
    ]
    table = Table(*header)
    for cell in cells:
        table.add_row(*cell)
    Console(width=120).print(table)
    if json_file is not None:
        store(json_file, {"machine": where(), "rows": rows})
    if markdown is not None:
        text = "\n".join(
            [
                f"Made by `{COMMAND}`; {where()}. Data in [data/small.json](../data/small.json).",
                "",
                *("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *cells)),
            ]
        )
        replace_part(markdown, "small", text)


if __name__ == "__main__":
    typer.run(main)
