"""Bounds of the image and of the worst error of a composition on an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from polarlib._schedules.certify import Certificate, certify, certify_in_format
from polarlib._schedules.images import odd_images
from polarlib._schedules.rounding import SHARE
from polarlib._schedules.steps import Rational, Step
from polarlib.arrays import checks
from polarlib.arrays.formats import format_of

# Rows up to which ``k 2**-23`` bounds the error of sums of k products in single precision.
MOST_ROWS = 2**22 - 2


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
    """Return the bounds of :func:`certify`, or for rational steps values in 40 digits.

    Parameters
    ----------
    steps, lower, upper, stride, target, divisor
        As :func:`certify` takes them.
    asked : str
        Name of the calling method, for messages.

    Returns
    -------
    Certificate
        For rational steps both bounds are the rounded value, which is not a proof: their turning
        points are bracketed by samples.

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


def enclosed_in_format(
    schedule: Any,
    lower: float,
    format: str | None,
    share: float | None,
    shape: tuple[int, int] | None,
) -> Certificate:
    """Return bounds with the rounding of a number format, as :meth:`Schedule.certify` takes it.

    Raises
    ------
    ValueError
        For arguments that exclude each other, and as :func:`certify_in_format`.

    Examples
    --------
    >>> from polarlib import schedule
    >>> enclosed_in_format(schedule("polar_express"), 1e-2, "bfloat16", 0.5, None).share
    0.5
    """
    if format is None:
        given = "share" if shape is None else "shape"
        value = checks.shown(share if shape is None else shape)
        raise ValueError(f"{given}={value} needs a format, such as format='bfloat16'")
    if share is not None and shape is not None:
        raise ValueError(
            f"give share, for the scalar model, or shape, for matrices, got {checks.shown(share)} "
            f"and {checks.shown(shape)}"
        )
    precision, at = format_of(format), f"schedule {checks.shown(schedule.name)}: "
    for name, needed in (("target", "polar"), ("stride", 2)):
        if getattr(schedule, name) != needed:
            raise ValueError(
                f"{at}certify(format=) needs {name} {needed!r}, got {getattr(schedule, name)!r}; "
                "leave format out for bounds in exact arithmetic"
            )
    part = SHARE if share is None else checks.number("share", share, 0, 1)
    if shape is not None:
        shape = checks.pair("shape", shape)
        if max(shape) > MOST_ROWS:
            raise ValueError(f"shape must have sides of at most {MOST_ROWS}, got {shape}")
    try:
        return certify_in_format(
            schedule.steps,
            lower,
            schedule.upper,
            divisor=schedule.input_divisor,
            precision=precision,
            share=part,
            shape=shape,
        )
    except ValueError as error:
        raise ValueError(f"{at}{error}") from None
