"""Descent methods of the studies factorisation and in_context, as sequences of iterates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from polarlib.updates import debias, ema, presgdw_step, uscg_step

__all__ = [
    *("FIRST", "RATIO", "SCHEDULES"),
    *("adam", "decayed", "descent", "first", "held", "scalar", "spectral"),
]

Map = Callable[[np.ndarray], np.ndarray]

FIRST, RATIO = 0.25, 0.8  # eta_0 and rho
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam, as in its paper
# Polynomials in place of the exact factor: the name of a set, and its steps.
SCHEDULES = {
    "Jordan, 5 steps": ("jordan", 5),
    "Taylor, 5 steps": ("newton_schulz_5", 5),
    "Taylor, 12 steps": ("newton_schulz_5", 12),
}


def decayed(t: int, ratio: float = RATIO) -> float:
    """Return the step size eta_0 rho^t."""
    return FIRST * ratio**t


def spectral(
    x: np.ndarray, gradient: Map, lmo: Map, size: Callable[[int], float], steps: int
) -> Iterator[np.ndarray]:
    """Yield the iterates of x <- x - size(t) lmo(gradient(x)), the start first."""
    for t in range(steps):
        yield x
        x = uscg_step(x, gradient(x), lmo, rate=size(t))
    yield x


def descent(x: np.ndarray, direction: Map, rate: float, steps: int) -> Iterator[np.ndarray]:
    """Yield the iterates of x <- x - rate direction(x), the start first."""
    for _ in range(steps):
        yield x
        x = x - rate * direction(x)
    yield x


def adam(x: np.ndarray, gradient: Map, rate: float, steps: int) -> Iterator[np.ndarray]:
    """Yield the iterates of Adam at a constant rate, the start first."""
    mean, square = np.zeros_like(x), np.zeros_like(x)
    for t in range(1, steps + 1):
        yield x
        g = gradient(x)
        mean, square = ema(mean, g, BETAS[0]), ema(square, g * g, BETAS[1])
        scale = np.sqrt(debias(square, t, BETAS[1])) + EPSILON
        x = presgdw_step(x, debias(mean, t, BETAS[0]), scale, rate=rate)
    yield x


def scalar(s: np.ndarray, slope: Map, size: Callable[[int], float], steps: int) -> np.ndarray:
    """Return the sequences s <- s - size(t) sign(slope(s)), one row per step, the start first."""
    rows = [s]
    for t in range(steps):
        rows.append(rows[-1] - size(t) * np.sign(slope(rows[-1])))
    return np.array(rows)


def held(errors: np.ndarray, scale: float = 1.0) -> float:
    """Return the share of entries of the rows t of `errors` that are within the proven bound.

    The bound is scale eta_0 rho^t / (1 - rho): |e| <= R_t and a step of eta_t toward zero give
    | |e| - eta_t | <= max(R_t - eta_t, eta_t) <= R_{t+1} with R_t = eta_t / (1 - rho), rho >= 1/2.
    """
    bound = scale * FIRST * RATIO ** np.arange(len(errors)) / (1 - RATIO)
    return float((np.abs(errors) <= bound[:, None]).mean())


def first(iterates: Iterable[np.ndarray], done: Callable[[np.ndarray], bool]) -> int | None:
    """Return the number of the first iterate that is done, counted from 0; None if none is."""
    return next((t for t, x in enumerate(iterates) if done(x)), None)
