"""A problem on which the rank of the gradient shows in the number of iterations.

f = 1/2 sum_i n_i h_i (w_i - 1)^2, a function of the singular values w_i in a fixed singular basis,
n_i of them equal. L = sum n_i h_i = 1 is the Lipschitz constant of the gradient from the operator
norm to the nuclear norm, D = f(w_0) = 1/2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from taylor_steps import taylor

RANKS = (4, 16, 64, 256)
TARGET, LIMIT = 0.1, 1500  # of the mean nuclear norm, of the iterations
STEP_SIZES = np.array([1.0, 2.0, 3.0, 3.9])  # of gradient descent, which converges below 4
EXPONENTS = np.arange(-8, 2) / 2  # of the other methods: step sizes 2^-4 to 2^(1/2)

Direction = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Problem:
    """Curvatures, how often each occurs, and the start."""

    h: Any
    n: Any
    w: Any


def stated(rank: int, number: Any = float) -> Problem:
    """One curvature 1/2, the others share 1/2; start 0."""
    half = number(1) / 2
    others = rank - 1
    return Problem(np.array([half, half / others]), np.array([1, others]), np.array([0 * half] * 2))


def random_start(rank: int, seed: int) -> Problem:
    """The same curvatures; distances from the minimiser uniform in [0.1, 1.9], scaled to D."""
    h = np.array([0.5] + [0.5 / (rank - 1)] * (rank - 1))
    distance = np.random.default_rng(seed).uniform(0.1, 1.9, rank)
    return Problem(h, np.ones(rank), 1 - distance / np.sqrt(h @ distance**2))


def equal_curvatures(rank: int) -> Problem:
    """L and D as above, but a largest curvature of 1 / rank."""
    return Problem(np.full(1, 1 / rank), np.array([rank]), np.zeros(1))


def gradient(g: Any, n: Any) -> Any:
    """Gradient descent."""
    return g


def polar_factor(g: Any, n: Any) -> Any:
    """Muon without momentum: the polar factor of a diagonal matrix."""
    return np.sign(g)


def normalised(g: Any, n: Any) -> Any:
    """The gradient over its Frobenius norm; zero stays zero."""
    size = (n * g * g).sum(axis=-1, keepdims=True) ** 0.5
    return g / np.where(size > 0, size, 1)


def newton_schulz(steps: int, *, digits: bool = False) -> Direction:
    """Muon with so many Taylor steps of degree kappa = 2; digits: of mpmath's numbers."""
    s = np.vectorize(taylor(2, steps), otypes=[object]) if digits else taylor(2, steps)
    return lambda g, n: s(normalised(g, n))


def step_sizes(name: str, problem: Problem) -> Any:
    """Those that are tried; of gradient descent, in units of its largest curvature."""
    if name == "gradient descent":
        return STEP_SIZES * (0.5 / problem.h.max())
    return 2.0**EXPONENTS


def iterations(direction: Direction, problem: Problem, sizes: Any) -> tuple[float, float]:
    """Steps until the mean nuclear norm is at most the target, and the best step size; or NaN."""
    w, total = np.array([problem.w] * len(sizes)), 0
    for t in range(1, LIMIT + 1):
        g = problem.h * (w - 1)
        total = total + (problem.n * np.abs(g)).sum(axis=-1)
        there = np.flatnonzero(total <= TARGET * t)
        if there.size:
            return t, float(sizes[there[0]])
        w = w - sizes[:, None] * direction(g, problem.n)
    return np.nan, np.nan


def slope(ranks: Sequence[int], counts: Sequence[float]) -> float:
    """Slope of a line through the logarithms; NaN where a count is missing."""
    if not np.isfinite(counts).all():
        return float("nan")
    fitted = float(np.polyfit(np.log(ranks), np.log(counts), 1)[0])
    return round(fitted, 12) + 0.0  # equal counts: 0, whatever the rounding
