"""Wrong methods that the checks of this study must notice."""

from __future__ import annotations

import numpy as np
from common import Wrong

from polarlib import norms


def constant(t: int, ratio: float = 0.0) -> float:
    return 0.01


def decaying(t: int) -> float:
    return 0.25 * 0.97**t


def preconditioned(p, x: np.ndarray) -> np.ndarray:
    """Gradient times the inverse of X^T X."""
    return np.linalg.solve(x.T @ x, p.gradient(x).T).T


def exact(name: str):
    return norms.spectral().lmo


def proven_for_roots(lam: np.ndarray) -> int:
    """Steps after which |s - sqrt(lam)| is at most 1e-6."""
    return int(np.ceil(np.log(0.25 / 0.2 * 1e6) / np.log(1 / 0.8)))


def absolute_done(p, x: np.ndarray) -> bool:
    return p.done(x)


WRONG = (
    Wrong(
        "a constant step of 0.01",
        part="muon",
        replace={"decayed": constant},
        figures=("iterations, Muon, kappa 1 to 1e4",),
    ),
    Wrong(
        "the bound of |s - sqrt(lambda)| alone",
        part="muon",
        replace={"proven": proven_for_roots},
        figures=("proven number of steps, kappa 1 to 1e4",),
    ),
    Wrong(
        "sign of the entries in place of msign",
        part="muon",
        replace={"msign": np.sign},
        figures=("iterations, Muon, k = 8, kappa 1 to 1e3",),
    ),
    Wrong(
        "sign of the entries in place of msign",
        part="scalars",
        replace={"msign": np.sign},
        figures=("largest entry of X_t - s_t(M) Q",),
    ),
    Wrong(
        "a constant step of 0.01",
        part="scalars",
        replace={"decayed": constant},
        figures=("bound held",),
    ),
    Wrong(
        "the error against the norm of M",
        part="relative",
        replace={"relative_done": absolute_done},
        figures=("extra steps for a relative error in every mode",),
    ),
    Wrong(
        "a step that decays",
        part="constant_step",
        replace={"constant": decaying},
        figures=("least error of 500 steps of 0.01",),
    ),
    Wrong(
        "preconditioned descent",
        part="gradient_descent",
        replace={"plain": preconditioned},
        figures=(
            "iterations, gradient descent, kappa 1, 10, 100",
            "growth of gradient descent, kappa 1 to 100",
            "slope of gradient descent over kappa, 10 to 1000",
            "iterations, gradient descent, k = 8, kappa 1, 10, 100",
        ),
    ),
    Wrong(
        "the exact polar factor",
        part="schedules",
        replace={"inexact": exact},
        figures=("largest kappa solved, Taylor, 5 and 12 steps",),
    ),
    Wrong(
        "the exact polar factor",
        part="lift",
        replace={"inexact": exact},
        figures=("lifted singular value in modes that stop",),
    ),
)
