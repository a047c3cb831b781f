"""Local optimisation of all coefficients of a composition together, within bounds of its values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Cuts of (0, 1] to begin with, in each step.
CUTS = 12
# Optimisations from one start, each with the extrema of the one before among its cuts.
ROUNDS = 6
# Bounds are kept by that much while optimising, and the exact image needs no more.
MARGIN = 1e-9


# The optimisation. z holds the coefficients of the scaled steps one after another and, where a
# lower bound is to be kept, the logarithms of the lower ends of the images between steps.


class Problem(NamedTuple):
    """What is optimised: sizes of the steps, the bounds, and the objective of scaled steps."""

    sizes: tuple[int, ...]
    top: float  # the last step's largest value
    ends: tuple[float, float] | None  # lower end of the domain, and of the last image
    floors: tuple[float, ...]  # least p(x) / x of every step
    value: Callable[[list[Any]], Any]  # the objective, with its gradient where `gradient`
    gradient: bool


def odd_powers(x: Any, count: int) -> Any:
    """Odd powers of points, shape (points, count)."""
    rows = [x]
    for _ in range(count - 1):
        rows.append(rows[-1] * x * x)
    return np.stack(rows, axis=1)


def _split(z: Any, sizes: Sequence[int]) -> list[Any]:
    return np.split(z[: sum(sizes)], np.cumsum(sizes)[:-1])


def mean_and_gradient(steps: list[Any], x: Any, weights: Any, smoothing: float) -> Any:
    """Logarithm of the smoothed mean error and its gradient by all coefficients."""
    inputs, slopes = [], []
    for c in steps:
        inputs.append(x)
        y = x * x
        value, slope = c[-1], (2 * len(c) - 1) * c[-1]
        for i in range(len(c) - 2, -1, -1):
            value, slope = value * y + c[i], slope * y + (2 * i + 1) * c[i]
        x = value * x
        slopes.append(slope)
    e = x - 1
    size = np.sqrt(e * e + smoothing * smoothing)
    total = weights @ size
    # Backward: the derivative by the values after a step, then by its coefficients.
    adjoint = weights * e / size / total
    parts = []
    for c, y, slope in zip(reversed(steps), reversed(inputs), reversed(slopes), strict=True):
        parts.append(adjoint @ odd_powers(y, len(c)))
        adjoint = adjoint * slope
    return math.log(total), np.concatenate(parts[::-1])


def constraints(problem: Problem, z: Any, cuts: Sequence[Any]) -> tuple[Any, Any]:
    """Values that must not be negative, and their Jacobian."""
    sizes, count = problem.sizes, sum(problem.sizes)
    steps, n = _split(z, sizes), len(problem.sizes)
    values, rows = [], []
    lows = None
    if problem.ends is not None:
        lows = [problem.ends[0], *np.exp(z[count:]), problem.ends[1]]
    at = 0
    for k, (c, t) in enumerate(zip(steps, cuts, strict=True)):
        own = slice(at, at + len(c))
        at += len(c)
        powers = odd_powers(t, len(c))
        p = powers @ c
        top = 1.0 if k < n - 1 else problem.top
        for value, part in (
            (top * (1 - MARGIN) - p, -powers),
            (p / t - problem.floors[k], powers / t[:, None]),
        ):
            row = np.zeros((len(t), len(z)))
            row[:, own] = part
            values.append(value)
            rows.append(row)
        if lows is None:
            continue
        low, after = lows[k], lows[k + 1]
        # Points below the lower end need not stay above its image.
        x = np.maximum(np.append(t, low), low)
        powers = odd_powers(x, len(c)) / after
        p = powers @ c
        row = np.zeros((len(x), len(z)))
        row[:, own] = powers
        if k:  # x = exp(r): dp/dr = x p'(x)
            odd = np.arange(1, 2 * len(c), 2)
            row[:, count + k - 1] = np.where(x == low, powers @ (odd * c), 0.0)
        if k < n - 1:
            row[:, count + k] = -p
        values.append(p - 1 - MARGIN)
        rows.append(row)
    return np.concatenate(values), np.concatenate(rows)


def _turning(c: Any) -> Any:
    """Points in (0, 1) where p or p / x is extremal."""
    found = []
    for weights in (np.arange(1, 2 * len(c), 2), np.arange(0, 2 * len(c), 2)):
        d = np.trim_zeros(weights * c, "b")
        if weights[0] == 0:  # the derivative of p / x begins one power of y higher
            d = d[1:]
        if len(d) > 1:
            y = np.roots(d[::-1])
            y = y.real[(abs(y.imag) <= 1e-9 * abs(y)) & (y.real > 0) & (y.real < 1)]
            found.append(np.sqrt(y))
    return np.concatenate([np.empty(0), *found])


def minimise(problem: Problem, z: Any) -> list[Any]:
    """Scaled steps of a local minimum: of every round, the last first."""
    from scipy.optimize import minimize  # lazily: its import takes longer than the search

    angle = np.linspace(0, math.pi / 2, CUTS + 1)[1:]
    cuts = [np.sin(angle) for _ in problem.sizes]
    found: list[Any] = []
    for k in range(ROUNDS):
        result = minimize(
            lambda z: problem.value(_split(z, problem.sizes)),
            z,
            jac=problem.gradient or None,
            method="SLSQP",
            constraints={
                "type": "ineq",
                "fun": lambda z, cuts: constraints(problem, z, cuts)[0],
                "jac": lambda z, cuts: constraints(problem, z, cuts)[1],
                "args": (cuts,),
            },
            options={"maxiter": 300, "ftol": 1e-10},
        )
        if not np.all(np.isfinite(result.x)):
            break
        z = result.x
        steps = _split(z, problem.sizes)
        found.insert(0, steps)
        fresh = [_turning(c) for c in steps]
        kept = constraints(problem, z, fresh)[0]
        if kept.min(initial=0.0) > -MARGIN / 2 or (k and not result.success):
            break
        cuts = [np.concatenate([t, f]) for t, f in zip(cuts, fresh, strict=True)]
    return found
