"""Coefficients rounded to doubles: the effect on a best step, and refusal if it is too large."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from polarlib._schedules.certify import certify
from polarlib._schedules.images import multiple_precision, odd_images, odd_value, turning_points

# Times that a step is raised at most (by experiment twice), and the values at the lower end below
# which it is worth it: above, the rounding of coefficients is no part of 1 - E.
LIFTS, LIFT_BELOW = 8, 0.1
# What the rounding of coefficients to doubles may add to the least error: this part of it, or eight
# units of the last place of 1.
ROUNDING_SHARE, ROUNDING_UNITS = 0.05, 2.0**-50
# Relative rounding of a coefficient, including the products and quotients that scale a step.
COEFFICIENT = 4 * 2.0**-53


class BeyondDoublesError(ValueError):
    """Coefficients that doubles cannot hold: rounded, their error is not the least any more."""


def exact_value(step: Sequence[float], x: float, stride: int = 2) -> float:
    """Evaluate a step with 40 digits: in doubles high degrees cancel.

    Examples
    --------
    >>> exact_value((1.5, -0.5), 1.0)
    1.0
    """
    number = multiple_precision().mpf
    return float(odd_value([number(c) for c in step], number(x), stride))


def image_of_rounded(
    step: Sequence[float], ends: tuple[Any, Any], lower: Any, upper: Any, stride: int = 2
) -> tuple[float, float] | None:
    """Refuse a step that the rounding of its coefficients takes too far from the ideal one.

    The one test of all designs: rounding adds at most max(5 % of the least error, 2^-50).

    Parameters
    ----------
    step : sequence of float
        Coefficients as rounded.
    ends : (number, number)
        Image of the interval under the step before rounding.
    lower, upper : number
        The interval.
    stride : int, optional
        Difference of the exponents.

    Returns
    -------
    (float, float) or None
        Enclosure of the image of the interval under the rounded step; None if a bound of the
        rounding is below the limit, so that the image is not computed.

    Raises
    ------
    BeyondDoublesError
        If rounding adds more, or the least value is not positive.
    """
    low, high = map(float, ends)
    error = max(1 - low, high - 1)
    allowed = max(ROUNDING_SHARE * error, ROUNDING_UNITS)
    u = float(upper)
    rounding = COEFFICIENT * sum(abs(c) * u ** (stride * i + 1) for i, c in enumerate(step))
    if rounding <= min(allowed, low / 2):
        return None
    # Rounding can exchange the ends of an interval without width.
    (lo, _), (_, hi) = certify([step], min(float(lower), u), u, stride=stride).image
    if 0 < lo >= low - allowed and hi <= high + allowed:
        return lo, hi
    degree = 1 + stride * (len(step) - 1)
    raise BeyondDoublesError(
        f"degree {degree} on [{float(lower):g}, {u:g}] is beyond double coefficients: rounded, its "
        f"worst error is {max(1 - lo, hi - 1):.3g}, that of the best step {error:.3g}; use a "
        "lower degree, several steps (design.greedy), or design.best with digits="
    )


def lifted(
    step: Sequence[float], lower: Any, upper: Any, stride: int = 2
) -> tuple[tuple[float, ...], tuple[Any, Any]]:
    """Raise p until no minimum lies below the value at the lower end, and give its image.

    The rounding of coefficients moves minima by more than 1 - E is large, where that is small; an
    addend of that size to one coefficient lifts them, and hardly moves the value at the lower end.

    Examples
    --------
    >>> from polarlib.design.remez import best
    >>> c = best(5, 1e-14).coefficients
    >>> [f"{float(s[1][0] / best(5, 1e-14).complement):.3f}" for s in [lifted(c, 1e-14, 1.0)]]
    ['1.000']
    """
    step = tuple(step)
    for _ in range(LIFTS):
        ends = next(odd_images([step], lower, upper, stride=stride))
        zero = ends[0] * 0
        exact = [zero + c for c in step]
        at = odd_value(exact, zero + lower, stride)
        if ends[0] >= at or not 0 < at < LIFT_BELOW:
            break
        points = [zero + t for t in turning_points(step, stride) if lower < t < upper]
        below = [(t, at - odd_value(exact, t, stride)) for t in (*points, zero + upper)]
        # Any coefficient will do; that which changes least.
        rises = [
            float(max(gap / t ** (stride * i + 1) for t, gap in below)) for i in range(len(step))
        ]
        i = min(range(len(step)), key=lambda i: rises[i] / abs(step[i]) if step[i] else math.inf)
        raised = max(step[i] + rises[i], math.nextafter(step[i], math.inf))
        step = (*step[:i], raised, *step[i + 1 :])
    return step, ends
