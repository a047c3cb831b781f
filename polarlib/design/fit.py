"""Local optimisation of all coefficients of a composition together, within bounds of its values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Initial number of points in (0, 1] of each step, at which the bounds are imposed.
CUTS = 12
# Optimisations from one start, each with the extrema of the previous result among its points.
ROUNDS = 6
# Distance from the bounds while optimising; the exact image needs no more.
MARGIN = 1e-9
# Change of the objective at which a round ends.
FTOL = 1e-10


# The optimisation. z holds the coefficients of the scaled steps one after another and, where a
# lower bound is to be kept, the logarithms of the lower ends of the images between steps.


class Problem(NamedTuple):
    """An optimisation: sizes of the steps, the bounds, and the objective of scaled steps."""

    sizes: tuple[int, ...]
    top: float  # the last step's largest value
    ends: tuple[float, float] | None  # lower end of the domain, and of the last image
    floors: tuple[float, ...]  # least p(x) / x of every step
    value: Callable[[list[Any]], Any]  # the objective, with its gradient where `gradient`
    gradient: bool


def odd_powers(x: Any, count: int) -> Any:
    """Return odd powers of points, shape (points, count)."""
    rows = [x]
    for _ in range(count - 1):
        rows.append(rows[-1] * x * x)
    return np.stack(rows, axis=1)


def _split(z: Any, sizes: Sequence[int]) -> list[Any]:
    return np.split(z[: sum(sizes)], np.cumsum(sizes)[:-1])


def mean_and_gradient(steps: list[Any], x: Any, weights: Any, smoothing: float) -> Any:
    """Return the logarithm of the smoothed mean error and its gradient by all coefficients."""
    inputs, squares, slopes = [], [], []
    for c in steps:
        inputs.append(x)
        y = x * x
        squares.append(y)
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
    parts: list[float] = []
    for c, x, y, slope in zip(
        reversed(steps), reversed(inputs), reversed(squares), reversed(slopes), strict=True
    ):
        moment, found = adjoint * x, []
        for i in range(len(c)):
            moment = moment * y if i else moment
            found.append(moment.sum())
        parts = found + parts
        adjoint = adjoint * slope
    return math.log(total), np.array(parts)


class Constraints:
    """Values that must not be negative, and their Jacobian, at fixed points of the steps.

    Values of steps at the points are linear in z, so that their rows are computed once. SciPy calls
    for values and Jacobian in succession; both are computed together.
    """

    def __init__(self, problem: Problem, cuts: Sequence[Any]) -> None:
        sizes, n = problem.sizes, len(problem.sizes)
        self.problem, self.count = problem, sum(sizes)
        self.width = self.count + (n - 1 if problem.ends is not None else 0)
        self.t = np.concatenate(cuts)
        self.step = np.repeat(np.arange(n), [len(t) for t in cuts])
        self.starts = np.cumsum([0, *sizes])
        self.powers = np.zeros((len(self.t), self.width))
        for k, t in enumerate(cuts):
            own = slice(self.starts[k], self.starts[k + 1])
            self.powers[self.step == k, own] = odd_powers(t, sizes[k])
        tops = np.where(self.step < n - 1, 1.0, problem.top) * (1 - MARGIN)
        self.linear = np.concatenate([-self.powers, self.powers / self.t[:, None]])
        self.offset = np.concatenate([tops, -np.array(problem.floors)[self.step]])
        self.at: Any = None
        self.made: tuple[Any, Any] = (None, None)

    def __call__(self, z: Any) -> tuple[Any, Any]:
        if self.at is None or not np.array_equal(z, self.at):
            self.at, self.made = np.array(z), self._computed(z)
        return self.made

    def _computed(self, z: Any) -> tuple[Any, Any]:
        values = self.linear @ z + self.offset
        if self.problem.ends is None:
            return values, self.linear
        below, rows_below = self._at_lower_ends(z)
        n = len(self.problem.sizes)
        lows, after = self._ends(z)
        p = (self.powers @ z) / after[self.step]
        rows = self.powers / after[self.step][:, None]
        inner = np.flatnonzero(self.step < n - 1)
        rows[inner, self.count + self.step[inner]] = -p[inner]
        # Points below the lower end need not stay above its image.
        under = self.t <= lows[self.step]
        p[under], rows[under] = below[self.step[under]], rows_below[self.step[under]]
        values = np.concatenate([values, np.append(p, below) - 1 - MARGIN])
        return values, np.concatenate([self.linear, rows, rows_below])

    def _ends(self, z: Any) -> tuple[Any, Any]:
        """Return the lower ends before and after every step."""
        first, last = self.problem.ends or (0.0, 0.0)
        lows = np.array([first, *np.exp(z[self.count :]), last])
        return lows[:-1], lows[1:]

    def _at_lower_ends(self, z: Any) -> tuple[Any, Any]:
        """Return a step's value at its lower end over the lower end after it, and its rows."""
        sizes = self.problem.sizes
        quotients, rows = np.empty(len(sizes)), np.zeros((len(sizes), self.width))
        for k, (low, after) in enumerate(zip(*self._ends(z), strict=True)):
            own = slice(self.starts[k], self.starts[k + 1])
            odd = np.arange(1, 2 * sizes[k], 2)
            powers = low**odd / after
            rows[k, own] = powers
            quotients[k] = powers @ z[own]
            if k:  # the end is exp(r): dp/dr = x p'(x)
                rows[k, self.count + k - 1] = powers @ (odd * z[own])
            if k < len(sizes) - 1:
                rows[k, self.count + k] = -quotients[k]
        return quotients, rows


def _turning(c: Any) -> Any:
    """Return the points in (0, 1) where p or p / x is extremal."""
    points = []
    for weights in (np.arange(1, 2 * len(c), 2), np.arange(0, 2 * len(c), 2)):
        d = np.trim_zeros(weights * c, "b")
        if weights[0] == 0:  # the derivative of p / x begins one power of y higher
            d = d[1:]
        if len(d) > 1:
            y = np.roots(d[::-1])
            y = y.real[(abs(y.imag) <= 1e-9 * abs(y)) & (y.real > 0) & (y.real < 1)]
            points.append(np.sqrt(y))
    return np.concatenate([np.empty(0), *points])


def minimise(problem: Problem, z: Any, least: float = math.inf) -> list[Any]:
    """Return the scaled steps of a local minimum, of all rounds, the last first.

    The search ends if a round does not come below `least`: more points only increase the minimum.
    """
    from scipy.optimize import minimize  # here, as its import takes longer than the search

    angle = np.linspace(0, math.pi / 2, CUTS + 1)[1:]
    cuts = [np.sin(angle) for _ in problem.sizes]
    minima: list[Any] = []
    for k in range(ROUNDS):
        bounds = Constraints(problem, cuts)
        result = minimize(
            lambda z: problem.value(_split(z, problem.sizes)),
            z,
            jac=problem.gradient or None,
            method="SLSQP",
            constraints={
                "type": "ineq",
                "fun": lambda z, bounds: bounds(z)[0],
                "jac": lambda z, bounds: bounds(z)[1],
                "args": (bounds,),
            },
            options={"maxiter": 300, "ftol": FTOL},
        )
        if not np.all(np.isfinite(result.x)):
            break
        z = result.x
        steps = _split(z, problem.sizes)
        minima.insert(0, steps)
        fresh = [_turning(c) for c in steps]
        kept = Constraints(problem, fresh)(z)[0].min(initial=0.0) > -MARGIN / 2
        if kept or result.fun >= least or (k and not result.success):
            break
        cuts = [np.concatenate([t, f]) for t, f in zip(cuts, fresh, strict=True)]
    return minima
