"""Derivative of a schedule's error by each of its coefficients.

The error ``E(c) = max_x |1 - s(x)|`` is a maximum of smooth functions of the coefficients c. So it
has one-sided derivatives: to the right the largest, to the left the least of
``sign(s(x) - 1) ds(x)/dc`` over the points x where the maximum is taken, which are called active
(J. M. Danskin, The Theory of Max-Min, 1967).

For a coefficient of step k, with x_k the point after k steps,

    ds/dc_i = x_(k-1)^(1 + 2i) p_(k+1)'(x_k) ... p_n'(x_(n-1)).

The number of active points can grow exponentially with n, but where a later step turns at x_k the
product is 0. So the only paths that matter stay at an end of the image of the interval from step k
on, and those are followed from the last step backward: of all paths to an end, the least and the
largest product.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from polarlib._schedules.images import DIGITS, critical_points, multiple_precision, odd_value
from polarlib._schedules.schedule import Schedule
from polarlib.arrays.checks import instance, number, shown

# Points are active within this part of the worst error.
ACTIVE = 1e-9
# Digits that may be lost, and that digits are a multiple of: contexts of mpmath are kept.
LOSS, ROUND = 15, 20


class _Level(NamedTuple):
    """Image of the interval before a step, points where the step can be extreme, values there."""

    ends: tuple[Any, Any]
    points: list[Any]
    values: list[Any]
    slopes: list[Any]


class _Path(NamedTuple):
    """Paths from an end of an image to the worst error: products of slopes, and what they may miss.

    Attributes
    ----------
    products : list of number
        Least and largest, with the sign of s - 1.
    slack : number
        How far from the end a value may be, to be within ACTIVE of the worst error.
    """

    products: list[Any]
    slack: Any


def sensitivity(s: Schedule, lower: float | None = None) -> tuple[tuple[float, ...], ...]:
    """Return the derivative of a schedule's error by each of its coefficients.

    Parameters
    ----------
    s : Schedule
        Of polynomials, with target "polar".
    lower : float, optional
        Lower end of the interval on which the error is taken; the schedule's own by default.

    Returns
    -------
    tuple of tuples of float
        Nested like ``s.steps``: d error / d coefficient, as of :meth:`Schedule.error`, input
        division included. Where several points have the worst error, the derivatives to the left
        and to the right can differ. Then the one of larger absolute value is returned: the right
        one (for a coefficient that grows) if it is positive, the left one if it is negative.

    Raises
    ------
    ValueError
        For a rational schedule, another target than "polar", or a lower end outside
        ``(0, s.upper]``.
    TypeError
        If `s` is not a Schedule.

    Notes
    -----
    Right derivative: the largest of ``sign(s - 1) ds/dc`` over the points whose error is within
    1e-9, relative, of the worst; left derivative: the least one. The points are the ends of the
    interval and turning points of the composition, evaluated in 40 digits or more. Best
    compositions are at a kink in every coefficient: rounded to u, relative, their error grows by
    at most ``u sum |c| |d error / d c|``, to first order.

    Examples
    --------
    The error of ``1.5 x - 0.5 x**3`` on [0.5, 1] is ``1 - s(0.5)``:

    >>> from polarlib import Schedule, design
    >>> sensitivity(Schedule(steps=[(1.5, -0.5)], lower=0.5))
    ((-0.5, -0.125),)

    Which step needs its digits most:

    >>> s = design.greedy(1e-3, [5] * 5)
    >>> [f"{sum(abs(c * d) for c, d in zip(*pair)):.1f}" for pair in zip(s.steps, sensitivity(s))]
    ['149716.1', '11389.0', '890.1', '78.7', '13.3']
    """
    s = instance("s", s, Schedule, "a Schedule, such as design.greedy(1e-3, [5] * 5)")
    if s.is_rational or s.target != "polar":
        kind = "rational steps" if s.is_rational else f"target {s.target!r}"
        raise ValueError(
            f"s must be a schedule of polynomials with target 'polar', got {shown(s.name)} with "
            f"{kind}"
        )
    lower = s.lower if lower is None else number("lower", lower, 0, s.upper, ends="(]")
    levels = _levels(s.steps, lower, s.upper, s.input_divisor, s.stride)
    least, most = min(levels[-1].values), max(levels[-1].values)
    error = max(1 - least, most - 1)
    paths, found = [], []
    for target in {least, most}:
        for sign in (-1, 1):
            if abs(sign * (target - 1) - error) <= ACTIVE * error:
                slack = sign * (target - 1) - error + ACTIVE * error
                paths.append((target, _Path([sign, sign], slack)))
    ended = False  # whether a path has come to a turning point
    for step, level in zip(reversed(s.steps), reversed(levels), strict=True):
        bounds = [_Bounds([0] if ended else []) for _ in step]
        before: dict[int, _Path] = {}
        for target, path in paths:
            for k, (x, value) in enumerate(zip(level.points, level.values, strict=True)):
                slack = path.slack - abs(value - target)
                if slack < 0:
                    continue
                for i, bound in enumerate(bounds):
                    bound.add(p * x ** (1 + s.stride * i) for p in path.products)
                if k < 2 and level.slopes[k] != 0:
                    before[k] = _joined(before.get(k), path.products, level.slopes[k], slack)
                else:
                    ended = True
        paths = [(level.ends[k], path) for k, path in before.items()]
        found.append(tuple(bound.larger() for bound in bounds))
    return tuple(reversed(found))


class _Bounds:
    """Least and largest of numbers."""

    def __init__(self, values: Iterable[Any]) -> None:
        self.values = list(values)

    def add(self, values: Iterable[Any]) -> None:
        every = [*self.values, *values]
        self.values = [min(every), max(every)]

    def larger(self) -> float:
        """Return the one of larger absolute value; of two of equal size the larger one."""
        return float(max(self.values, key=lambda v: (abs(v), v)))


def _joined(path: _Path | None, products: Sequence[Any], slope: Any, slack: Any) -> _Path:
    """Continue a path to an end before a step, and join it with other paths that end there."""
    every = [slope * p for p in products] + (path.products if path else [])
    room = slack / abs(slope)
    return _Path([min(every), max(every)], max(room, path.slack) if path else room)


def _levels(
    steps: Sequence[tuple[float, ...]], lower: float, upper: float, divisor: float, stride: int
) -> list[_Level]:
    """Follow the image of an interval, with 40 digits or as many more as the steps lose."""
    digits = DIGITS
    while True:
        context = multiple_precision(digits)
        lo, hi = context.mpf(lower) / divisor, context.mpf(upper) / divisor
        levels, lost = [], 0.0
        for step in steps:
            exact = [context.mpf(c) for c in step]
            slope = [(1 + stride * i) * c for i, c in enumerate(exact)]
            points = critical_points(exact, lo, hi, stride)
            values = [odd_value(exact, x, stride) for x in points]
            slopes = [odd_value(slope, x, stride) / x for x in (lo, hi)]
            levels.append(_Level((lo, hi), points, values, slopes))
            # What a step may make of a relative error at its upper end.
            gain = sum(abs(c) * hi ** (stride * i) for i, c in enumerate(slope))
            lost += max(0.0, float(context.log10(max(gain * hi / max(values), 1))))
            lo, hi = min(values), max(values)
        if digits >= DIGITS + lost - LOSS:
            return levels
        digits = ROUND * math.ceil((DIGITS + lost) / ROUND)
