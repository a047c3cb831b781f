"""Wrong methods that the checks of this study must notice."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Wrong


def none(b: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return np.zeros(shape)


WRONG = (
    Wrong(
        "the momentum itself as the step, as in SGD",
        part="batches",
        replace={"step": lambda m: m},
        figures=(
            "exponent of the floor in the batch size, beta 0, 0.9",
            "least batch size over that of beta 0, beta 0.5, 0.8, 0.9, 0.95",
        ),
    ),
    Wrong(
        "a gradient without noise",
        part="costs",
        replace={"noise": none},
        figures=("best batch size over the least one, beta 0.9",),
    ),
    Wrong(
        "one rate for all methods, 1/2",
        part="inexact",
        replace={"RATES": np.array([0.5])},
        figures=(
            "fall of the least log loss from q = 1 to exact, own length",
            "fall of the least log loss from q = 1 to exact, equal length",
        ),
    ),
)
