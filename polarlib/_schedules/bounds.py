"""Bounds of the image and of the worst error of a composition on an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from polarlib._schedules.certify import Certificate, certify
from polarlib._schedules.images import odd_images
from polarlib._schedules.steps import Rational, Step
from polarlib.arrays import checks


def enclosed(
    steps: Sequence[Step],
    lower: float,
    upper: float,
    stride: int,
    target: str,
    divisor: float,
    *,
    asked: str,
) -> Certificate:
    """Return bounds as :func:`certify` proves them; of rational steps, values in 40 digits.

    Parameters
    ----------
    steps, lower, upper, stride, target, divisor
        As :func:`certify` takes them.
    asked : str
        What needs the bounds, for messages.

    Returns
    -------
    Certificate
        Of rational steps both bounds are the value rounded once: their turning points are
        bracketed by samples, many to each, which proves nothing.

    Raises
    ------
    ValueError
        For a bad interval.

    Examples
    --------
    >>> halley = Rational(1 / 3, (8 / 3,), (1 / 3,))
    >>> enclosed([halley], 0.5, 1.0, 2, "polar", 1.0, asked="image")
    Certificate(0.0714285714285715 <= error <= 0.0714285714285715)
    """
    rational = isinstance(steps[0], Rational)
    least, ends = (0.0, "(]") if rational else (-math.inf, "[]")
    lower = checks.number("lower", lower, least, ends=ends)
    upper = checks.number("upper", upper, least, ends=ends)
    if lower > upper:
        needed = "0 <" if rational else "finite"
        raise ValueError(f"{asked} needs {needed} lower <= upper, got [{lower}, {upper}]")
    if stride != 2 and lower < 0:
        raise ValueError(
            f"{asked} needs lower >= 0 for stride {stride}: roots of negative numbers are "
            f"not defined, got {lower}"
        )
    if not rational:
        return certify(steps, lower, upper, stride=stride, target=target, divisor=divisor)
    *_, (lo, hi) = odd_images(steps, lower, upper)
    error, rest = float(max(abs(1 - lo), abs(hi - 1))), float(min(lo, 2 - hi))
    low, high = float(lo), float(hi)
    return Certificate(error, error, (rest, rest), ((low, low), (high, high)))
