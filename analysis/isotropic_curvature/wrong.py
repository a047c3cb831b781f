"""Wrong methods that the checks of this study must notice."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from polarlib import norms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Wrong

Array = np.ndarray


def n_for_n_plus_2(q: Array) -> tuple[float, Array]:
    n, a = len(q), q.T @ q
    value = (np.trace(a) ** 2 + 2 * np.sum(a * a)) / n**2
    return value, 4 * (np.trace(a) * q + 2 * q @ a) / n**2


def one_term(q: Array) -> tuple[float, Array]:
    n, trace = len(q), np.sum(q * q)
    return trace**2 / (n * (n + 2)), 4 * trace * q / (n * (n + 2))


def of_entries(q: Array) -> tuple[float, Array]:
    """Mean of the sum of the fourth powers of the entries of Q zeta."""
    n, rows = len(q), np.sum(q * q, axis=1, keepdims=True)
    return 3 * np.sum(rows**2) / (n * (n + 2)), 12 * rows * q / (n * (n + 2))


def power_of_mean(s: Array, z: Array, p: float) -> tuple[float, Array, Array]:
    n, mean = len(s), s @ s / len(s)
    first = mean ** (p / 2 - 1) / n
    second = (p - 2) * mean ** (p / 2 - 2) / n**2
    return mean ** (p / 2) / p, first * s, first * np.eye(n) + second * np.outer(s, s)


def of_squared_length(s: Array, z: Array, p: float) -> tuple[float, Array, Array]:
    r2 = z @ s**2
    first = r2 ** (p - 1) @ z / len(z)
    second = (z.T * r2 ** (p - 2)) @ z / len(z)
    value = np.mean(r2**p) / (2 * p)
    return value, s * first, np.diag(first) + (2 * p - 2) * np.outer(s, s) * second


WRONG = (
    Wrong(
        "n in place of n + 2",
        part="fourth",
        replace={"fourth_moment": n_for_n_plus_2},
        figures=(
            "singular values of the best step, H = r^4",
            "D from each singular value, H = r^4",
        ),
    ),
    Wrong(
        "2 tr A^2 left out",
        part="fourth",
        replace={"fourth_moment": one_term},
        figures=("ratios s_1/s_i, H = r^4",),
    ),
    Wrong(
        "fourth powers of the entries of Qζ instead of its length",
        part="fourth",
        replace={"fourth_moment": of_entries},
        figures=(
            "gradient of the whole matrix at the best step, H = r^4",
            "distance to the minimiser over all matrices, H = r^4",
        ),
    ),
    Wrong(
        "normalised points of the cube in place of the sphere",
        part="powers",
        replace={"variates": lambda u: 2 * u - 1},
        figures=("fourth moments of the sampled directions, relative",),
    ),
    Wrong(
        "H of the root of the mean of r² instead of the mean of H",
        part="powers",
        replace={"expectation": power_of_mean},
        figures=(
            "ratios s_1/s_i, H = r^1.5",
            "ratios s_1/s_i, H = r^2.5",
            "ratios s_1/s_i, H = r^4, sampled",
            "ratios s_1/s_i, H = r^8",
            "ratios s_1/s_i, H = r^32",
            "largest (s_i/s_j) / (sigma_i/sigma_j), H = r^2.5, r^4, r^8, r^32",
            "smallest (s_i/s_j) / (sigma_i/sigma_j), H = r^1.5",
            "ratio s_1/s_5, H = r^2.2, r^2.5",
        ),
    ),
    Wrong(
        "H of the squared length",
        part="powers",
        replace={"expectation": of_squared_length},
        figures=("ratios s_1/s_i, H = r^2",),
    ),
    Wrong(
        "a wall in the Frobenius norm",
        part="wall",
        replace={"WALL": 5**-0.5 * norms.frobenius()},
        figures=(
            "wall below the threshold, 0.99",
            "wall above the threshold, 1.1",
            "wall above the threshold, 2.5",
            "smallest singular value at 0.99, 1.01, 1.5, 2.5 of the threshold, H = a r",
            "smallest singular value at 0.99, 1.01, 1.5, 2.5 of the threshold, H = a r^2/2",
        ),
    ),
    Wrong(
        "values on a linear grid",
        part="order",
        replace={"values": lambda: np.linspace(1e-3, 1, 2000)},
        figures=(
            "neighbours whose order is reversed, Jordan x 5, Taylor x 5",
            "neighbours whose ratio grows, Jordan x 5, Taylor x 5",
        ),
    ),
)
