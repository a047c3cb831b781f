"""Wrong methods that the checks of this study must notice."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import numpy as np
from common import Wrong

import polarlib
from polarlib import design


def by_normal_equations(a: np.ndarray, method: str) -> SimpleNamespace:
    """The factor A (AᵀA)^(-1/2) from the eigenvalues of AᵀA, which loses half of the digits."""
    values, v = np.linalg.eigh(a.T @ a)
    u = (a @ (v / np.sqrt(np.maximum(values, 2.0**-52 * values[-1])))) @ v.T
    h = u.T @ a
    error = np.linalg.norm(a - u @ (h + h.T) / 2) / np.linalg.norm(a)
    return SimpleNamespace(backward_error=float(error), method=method)


def of_tiny_tolerance(a: np.ndarray, method: str) -> polarlib.PolarResult:
    """A tolerance below rounding, which no iteration meets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", polarlib.ConvergenceWarning)
        return polarlib.polar(a, method=method, rtol=1e-30)


def from_norm(norm: float):
    """Newton-Schulz from this norm, whichever is asked for."""
    steps = 2 + math.ceil(math.log(2e15 / min(1.0, 3 - norm**2)) / math.log(1.5)) + 8

    def newton_schulz(a: np.ndarray, top: float) -> np.ndarray:
        s = polarlib.Schedule(
            steps=((1.5, -0.5),) * steps, lower=norm / 1e15, upper=norm, normalisation="none"
        )
        return polarlib.orthogonalize(norm * a, schedule=s, form="plain")

    return newton_schulz


def small_cushion(cushion: float) -> polarlib.Schedule:
    return design.greedy(1e-15, [5] * 50, cushion=0.01, safety=1e-10)


WRONG = (
    Wrong(
        "Newton's step without scaling",
        part="methods",
        replace={"scaled_newton": lambda lower: lambda x: (x + 1 / x) / 2},
        figures=("d of QDWH, Zolotarev, scaled Newton, Newton-Schulz to 1",),
    ),
    Wrong(
        "the eigenvalues of AᵀA",
        part="methods",
        replace={"polar": by_normal_equations},
        figures=tuple(
            f"backward error, polar(method={method!r})"
            for method in ("qdwh", "zolotarev", "newton", "minimax")
        ),
    ),
    Wrong(
        "a tolerance below rounding",
        part="methods",
        replace={"polar": of_tiny_tolerance},
        figures=("fell back to the SVD",),
    ),
    Wrong(
        "an input of norm sqrt(3) (1 - 1e-6)",
        part="from_norms",
        replace={"newton_schulz": from_norm(math.sqrt(3) * (1 - 1e-6))},
        figures=("backward error, Newton-Schulz from norm 1",),
    ),
    Wrong(
        "an input of norm 1",
        part="from_norms",
        replace={"newton_schulz": from_norm(1.0)},
        figures=(
            "backward error, Newton-Schulz from norm sqrt(3) (1 - 1e-6)",
            "slope of the backward error over d, Newton-Schulz, log-log",
        ),
    ),
    Wrong(
        "a cushion of 0.01",
        part="polynomials",
        replace={"minimax": small_cushion},
        figures=(
            "backward error, minimax without cushion",
            "backward error, minimax with cushion 0.1",
            "backward error, minimax with cushion 0.1, at worst",
        ),
    ),
    Wrong(
        "a geometric spectrum as it is",
        part="polynomials",
        replace={"worst_place": lambda s: None},
        figures=("backward error, minimax without cushion, at worst",),
    ),
)
