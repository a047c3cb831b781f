"""Turning points of compositions, and the peaks of their errors."""

from __future__ import annotations

import numpy as np

from polarlib._schedules.images import multiple_precision, odd_value, turning_points
from polarlib._schedules.schedule import Schedule
from polarlib._schedules.targets import target_value
from polarlib.plot import figures

BETWEEN = 16  # samples between two turning points, where the target is a curve
BISECTIONS = 60  # more than a double has bits
ROUNDED = 2.0**-50  # errors below this one may be those of coefficients in doubles
ROUNDING = 1e-12  # errors below this one need more digits than doubles have


def points_of(s: Schedule, lower: float | None = None) -> np.ndarray | None:
    """Return the turning points in [lower, upper] and both ends; None if they are too many.

    Examples
    --------
    >>> points_of(Schedule(steps=[(2.0, -1.0)], lower=0.5)).round(3).tolist()
    [0.5, 0.816, 1.0]
    """
    ends = s.divided(s.lower if lower is None else lower, s.upper, extended=False)
    x = np.array(ends)
    for k, step in enumerate(s.steps):
        y = x
        for before in s.steps[:k]:
            y = odd_value(before, y, s.stride)
        # Between neighbours the steps before are monotone. The composition turns where their value
        # is a turning point of this step.
        turns = [_meet(s, k, x, t) for t in turning_points(step, s.stride, (y.min(), y.max()))]
        x = np.unique(np.concatenate([x, *turns]))
        if len(x) > figures.MARKERS_MAX:
            return None
    return x * s.input_divisor


def farthest(s: Schedule, error: float) -> np.ndarray:
    """Return the points of the interval at which the error is the worst error.

    None if they are too many, or if they depend on the rounding of the coefficients.
    """
    x = points_of(s)
    if x is None or error < ROUNDED:
        return np.empty(0)
    between = s.target != "polar"
    if between:  # the largest differences from a curve need not be at turning points of s
        x = np.unique(np.linspace(x[:-1], x[1:], BETWEEN))
    e = errors_at(s, x)
    far = e >= (1 - figures.EXTREMUM_TOLERANCE) * error
    if between:
        around = np.concatenate([[-np.inf], e, [-np.inf]])
        far &= (e >= around[:-2]) & (e >= around[2:])
    worst: np.ndarray = x[far]
    return worst


def errors_at(s: Schedule, x: np.ndarray) -> np.ndarray:
    """Return ``|target(x) - s(x / input_safety)|``, in 40 digits where doubles would cancel.

    Examples
    --------
    >>> errors_at(Schedule(steps=[(1.5, -0.5)], lower=0.5), np.array([0.5, 1.0])).tolist()
    [0.3125, 0.0]
    """
    if s.target == "polar" and s.error() < ROUNDING:
        number = multiple_precision().mpf
        exact = [s.divided(v, v)[0] for v in x.tolist()]
        for step in s.steps:
            # The coefficients are converted exactly.
            exact = [odd_value(step, v, s.stride) for v in exact]
        return np.array([float(abs(number(1) - v)) for v in exact])
    found: np.ndarray = np.abs(s(x / s.input_divisor) - target_value(s.target, x))
    return found


def _meet(s: Schedule, k: int, x: np.ndarray, t: float) -> np.ndarray:
    """Find where the first k steps have the value t, by bisection between neighbours."""

    def value(x: np.ndarray) -> np.ndarray:
        for step in s.steps[:k]:
            x = odd_value(step, x, s.stride)
        return x - t

    ends = value(x)
    inside = ends[:-1] * ends[1:] < 0
    a: np.ndarray = x[:-1][inside]
    b, sign = x[1:][inside], np.sign(ends[:-1][inside])
    for _ in range(BISECTIONS):
        middle = (a + b) / 2
        same = np.sign(value(middle)) == sign
        a, b = np.where(same, middle, a), np.where(same, b, middle)
    return a
