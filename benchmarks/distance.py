"""Distance to the unitary factor: the default schedule and every published set, bundled matrices.

    python benchmarks/distance.py [--json docs/data/distance.json]

Distance ||Q - U||_F / sqrt(rank A) and backward error ||A - Q H||_F / ||A||_F of
``orthogonalize(a, precision=...)`` (plain form) for the ten matrices that the package brings. U is
the unitary factor in double precision, without completion, of the matrix before it is rounded to
the format, and H the Hermitian part of Q^T A. A published set is compared with the default schedule
of as many matrix products. Formats are simulated on NumPy, as in benchmarks/stress.py. Nothing is
timed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import stress_cases
import typer
from rich.console import Console

import polarlib
from polarlib.files import sample_matrices
from polarlib.files.whole import write_whole

FORMATS = ("bfloat16", "float16", "float32")


def exact(a: np.ndarray) -> tuple[np.ndarray, int]:
    """Unitary factor without completion, and the rank, in double precision."""
    u, s, vh = np.linalg.svd(a.astype(np.float64), full_matrices=False)
    rank = int(np.sum(s > max(a.shape) * np.finfo(np.float64).eps * s[0]))
    return u[:, :rank] @ vh[:rank], rank


def figures(a: np.ndarray, q: np.ndarray) -> dict[str, float]:
    """Distance and backward error of one factor."""
    u, rank = exact(a)
    a = a.astype(np.float64)
    if a.shape[0] < a.shape[1]:
        a, q, u = a.T, q.T, u.T
    h = (q.T @ a + a.T @ q) / 2
    return {
        "distance": round(float(np.linalg.norm(q - u) / np.sqrt(rank)), 6),
        "backward_error": round(float(np.linalg.norm(a - q @ h) / np.linalg.norm(a)), 6),
    }


def row(matrix: str, precision: str, name: str) -> dict[str, Any]:
    """Compare a published set and the default schedule of as many products on one matrix."""
    a = sample_matrices()[matrix]
    s = polarlib.schedule(name)
    options = {"precision": precision, "form": "plain"}
    q = stress_cases.factor(a, schedule=s, **options)
    default = stress_cases.factor(
        a, **stress_cases.default_options(precision, s.matmuls), **options
    )
    return {
        "matrix": matrix,
        "format": precision,
        "set": name,
        "products": s.matmuls,
        "published": figures(a, q),
        "default": figures(a, default),
    }


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """One line per format and set: on how many matrices the default schedule has the less error."""
    lines = []
    for key in dict.fromkeys((r["format"], r["set"]) for r in rows):
        group = [r for r in rows if (r["format"], r["set"]) == key]
        counts = [
            sum(r["default"][what] < r["published"][what] for r in group)
            for what in ("distance", "backward_error")
        ]
        lines.append(
            f"{key[0]:9} {key[1]:18} {group[0]['products']:3} products: default closer to U on "
            f"{counts[0]} of {len(group)}, less backward error on {counts[1]}"
        )
    return lines


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures.")] = None,
) -> None:
    """Compare on the bundled matrices."""
    rows = [
        row(matrix, precision, name)
        for precision in FORMATS
        for matrix in sample_matrices()
        for name in polarlib.schedules(target="polar")
    ]
    Console(highlight=False, soft_wrap=True).print("\n".join(summary(rows)))
    if json_file is not None:
        text = "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"
        write_whole(json_file, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    typer.run(main)
