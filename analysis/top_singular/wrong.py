"""Wrong methods that the checks of this study must notice."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from polarlib.norms.topk import triplets

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Wrong


def with_a_block(method: str, a: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, ...]]:
    for rtol in np.geomspace(0.9, 1e-9, 40):
        found = triplets(a, k, method="block_krylov", rtol=rtol)
        if found.method == "block_krylov":
            yield found.u, found.vh.T, found.products


def crude(a: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """In place of power iteration, which is slow, where it is not examined."""
    yield np.eye(len(a), k), np.eye(a.shape[1], k), k


WRONG = (
    Wrong(
        "a block of k + 10 vectors",
        part="products",
        replace={"library": with_a_block, "power": crude},
        figures=(
            "lanczos, products to 1e-4",
            "Gaussian: products of randomized over those of lanczos, to 1e-2",
        ),
    ),
    Wrong(
        "no oversampling",
        part="products",
        replace={"OVERSAMPLING": 0, "power": crude},
        figures=("randomized, products to 1e-2",),
    ),
    Wrong(
        "no oversampling",
        part="costs",
        replace={"OVERSAMPLING": 0},
        figures=("products of 38, 50, 187 randomized iterations, k = 5, 50, 5",),
    ),
    Wrong(
        "no oversampling",
        part="many",
        replace={"OVERSAMPLING": 0, "library": with_a_block},
        figures=("randomized, k = 50, products to 9.9e-3",),
    ),
    Wrong(
        "a block of k + 10 vectors",
        part="many",
        replace={"library": with_a_block},
        figures=("lanczos, k = 50, products to 3.3e-7",),
    ),
    Wrong(
        "an iteration counted as one product",
        part="costs",
        replace={"cost": lambda k, iterations: k * (iterations + 1)},
        figures=("products of 200, 437, 906 power iterations, k = 5, 50, 5",),
    ),
    Wrong(
        "an iteration counted as one product",
        part="products",
        replace={"cost": lambda k, iterations: k * (iterations + 1)},
        figures=("power, products to 1e-2",),
    ),
)
