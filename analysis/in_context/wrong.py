"""Wrong methods that the checks of this study must notice."""

from __future__ import annotations

import math

import numpy as np
from common import Wrong


def without_own_products(lam: np.ndarray, n: int) -> np.ndarray:
    return lam + lam.sum() / n


def without_trace(lam: np.ndarray, n: int) -> np.ndarray:
    return (1 + 1 / n) * lam


def square_of_mean(lam: np.ndarray, n: int) -> np.ndarray:
    return lam


def constant(t: int) -> float:
    return 0.01


def inverse_of_largest(p) -> float:
    return 1 / float((p.lam**2 * p.t).max())


def curvatures_without_t(p) -> np.ndarray:
    return np.array([p.lam[-1] ** 2, p.lam[0] ** 2])


def proven_absolute(p, n: int) -> int:
    """Steps to an error of 1e-6 that is not relative to the norm of T^-1."""
    return math.ceil(math.log(n / float(p.lam.sum()) * 1.25 / 1e-6) / math.log(1.25))


def exact(name: str):
    return None


WRONG = (
    Wrong(
        "no 1/N in T",
        part="losses",
        replace={"second_moment": without_own_products},
        figures=("loss at 0, at the minimiser, at half of it",),
    ),
    Wrong(
        "no tr(Lambda)/N in T",
        part="losses",
        replace={"second_moment": without_trace},
        figures=("least loss by eigenvalues",),
    ),
    Wrong(
        "E[H^2] = Lambda^2",
        part="losses",
        replace={"second_moment": square_of_mean},
        figures=("simulated loss minus formula, standard errors",),
    ),
    Wrong(
        "a constant step of 0.01 N / tr(Lambda)",
        part="muon",
        replace={"decayed": constant},
        figures=("iterations, Muon, kappa 1 to 1e4", "iterations, Muon, N = 400, kappa 1 to 1e4"),
    ),
    Wrong(
        "a target that is not relative",
        part="muon",
        replace={"proven": proven_absolute},
        figures=("proven number of steps, kappa 1 to 1e4",),
    ),
    Wrong(
        "a constant step of 0.01 N / tr(Lambda)",
        part="scalars",
        replace={"decayed": constant},
        figures=("bound held",),
    ),
    Wrong(
        "sign of the entries in place of msign",
        part="scalars",
        replace={"msign": np.sign},
        figures=("largest entry of Gamma_t - gamma_t(Lambda), relative",),
    ),
    Wrong(
        "the rate 1/a",
        part="gradient_descent",
        replace={"descent_rate": inverse_of_largest},
        figures=("iterations, gradient descent, kappa 10",),
    ),
    Wrong(
        "curvatures lambda^2 in place of lambda^2 T",
        part="gradient_descent",
        replace={"curvatures": curvatures_without_t},
        figures=(
            "condition number of the quadratic, kappa 1, 10, 100",
            "predicted for gradient descent, kappa 10 and 100",
        ),
    ),
    Wrong(
        "the exact polar factor",
        part="schedules",
        replace={"inexact": exact},
        figures=("largest kappa solved, Jordan 5, Taylor 5, Taylor 12",),
    ),
)
