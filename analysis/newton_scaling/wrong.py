"""Wrong methods that the checks of this study must notice."""

from __future__ import annotations

import math

import numpy as np
from common import Wrong


def first_alone(largest: float, smallest: float, count: int) -> list[float]:
    """The first factor of Byers and Xu, and none after it."""
    return [1 / math.sqrt(largest * smallest)] + [1.0] * (count - 1)


def by_eigenvalues(a: np.ndarray, method: str) -> float:
    """Backward error of A (A^T A)^(-1/2), relative eigenvalues of at least 1e-12."""
    values, vectors = np.linalg.eigh(a.T @ a)
    values = np.maximum(values, 1e-12 * values[-1])
    u = a @ (vectors / np.sqrt(values)) @ vectors.T
    h = u.T @ a
    return float(np.linalg.norm(a - u @ (h + h.T) / 2) / np.linalg.norm(a))


WRONG = (
    Wrong(
        "the scaling of Byers and Xu",
        part="logs",
        replace={"PUBLISHED": "byers-xu"},
        figures=(
            "hilb(6): relative changes",
            "hilb(6): first six defects",
            "hilb(6): seventh defect",
            "iterations, Higham's scaling: hilb(6), binomial(16), frank(16)",
        ),
    ),
    Wrong(
        "the first factor of Byers and Xu alone",
        part="scalars",
        replace={"byers_xu": first_alone},
        figures=("iterations, Byers-Xu", "most iterations to 1e16, Byers-Xu"),
    ),
    Wrong(
        "Halley's iteration without weights",
        part="library",
        replace={"NEWTON": "halley"},
        figures=(
            "iterations of polar(method='newton') on hilb(6)",
            "most iterations of polar(method='newton')",
        ),
    ),
    Wrong(
        "the eigenvalues of AᵀA",
        part="accuracy",
        replace={"backward_error": by_eigenvalues},
        figures=("worst backward error of polar(method='newton'), n = 64",),
    ),
)
