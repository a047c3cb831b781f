"""Wrong methods that the checks of this study must notice."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from common import Wrong

import polarlib
from polarlib import Schedule
from polarlib.arrays.formats import Format


def in_single_precision(
    fmt: Format, a: np.ndarray, b: np.ndarray, c: np.ndarray, beta: float
) -> np.ndarray:
    """``a b + beta c``, not rounded to the format."""
    y = a @ b
    return y + c * np.float32(beta) if beta else y


def with_restarts(*at: int):
    """The Gram form with these restarts, whatever the rule says."""

    def gram(a: np.ndarray, s: Schedule, precision: str, restarts: Sequence[int]) -> np.ndarray:
        with warnings.catch_warnings(), np.errstate(over="ignore", invalid="ignore"):
            warnings.simplefilter("ignore", polarlib.ScheduleWarning)
            return polarlib.orthogonalize(
                a.astype(np.float32), schedule=s, precision=precision, form="gram", restarts=at
            )

    return gram


WRONG = (
    Wrong(
        "products with a symmetric result at half their cost, or at full cost where half is due",
        part="products",
        replace={"FULL": 0.5, "HALF": 1.0},
        figures=(
            "saved at m/n = 4 with 0, 1, 2 restarts, percent",
            "saved at m/n = 4 with symmetric products, percent",
        ),
    ),
    Wrong(
        "Gram matrices without rounding errors",
        part="model",
        replace={"PERTURBATION": 0.0},
        figures=(
            "condition of Q in the model, no restart",
            "condition of Q in the model, restart after step 2",
        ),
    ),
    Wrong(
        "the unit roundoff of bfloat16 in place of that of float16",
        part="model",
        replace={"PERTURBATION": -(2.0**-8)},
        figures=("best single restart in the model",),
    ),
    Wrong(
        "products kept in single precision",
        part="spurious",
        replace={"rounded_gemm": in_single_precision},
        figures=(
            "the form written out against the library, relative difference",
            "most negative eigenvalue of a first Gram matrix, over the semicircle's edge",
        ),
    ),
    Wrong(
        "restarts after every step",
        part="stress",
        replace={"gram": with_restarts(1, 2, 3, 4)},
        figures=(
            "one restart after step 2, bfloat16, largest singular value",
            "one restart after step 3, bfloat16, largest singular value",
        ),
    ),
    Wrong(
        "no restart",
        part="stress",
        replace={"gram": with_restarts()},
        figures=(
            "automatic restarts, largest singular value above plain form",
            "one restart after step 2, float16, largest above plain form",
        ),
    ),
)
