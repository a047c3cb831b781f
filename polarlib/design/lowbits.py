"""Design for a number format: the best schedule with rounding errors included.

The model of rounding is in :mod:`polarlib.design.rounding`: each step is the best for its state.
The best degrees for a number of products are those of :func:`polarlib.design.budget`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from polarlib._schedules import rounding
from polarlib._schedules.images import odd_images
from polarlib._schedules.products import product_counts
from polarlib._schedules.schedule import Schedule
from polarlib._schedules.steps import coefficients, polynomials
from polarlib._schedules.targets import parse_target
from polarlib._schedules.validity import MOST_STRIDE
from polarlib.arrays.checks import count, instance, number, shown
from polarlib.arrays.formats import format_of
from polarlib.arrays.progress import Callback, reporting
from polarlib.design.budget import designed_for, schedule_of
from polarlib.design.prices import prices_by_degree
from polarlib.design.remez import check_interval
from polarlib.design.rounding import (
    HIGHEST_START,
    Rounding,
    _DesignState,
    first_state,
    last_step,
    next_step,
)

DEGREES = (3, 5, 7, 9)
# Degree of the steps if their number is given.
QUINTIC = 5
MOST_STEPS = 64
# A widest interval is not widened beyond this part of the unit roundoff, and is found to this
# precision of its logarithm.
NOISE = 1 / 256
FINEST = 0.005
# Steps that are not needed for that are used to make all steps less steep, by a larger cushion up
# to this part of the upper end: large singular values then stay away from rounding errors.
HIGHEST_CUSHION = 0.5
LEAST_CUSHION = 1e-3
# Least error that is distinguished from zero in double precision.
DOUBLES = 2.0**-51


def noise_gain(step: Sequence[float], upper: float, *, stride: int = 2) -> float:
    """Return the error amplification ``sum |c_i| upper**(1 + stride i)`` of one step.

    The rounding error of a step is 0.01 to 0.4 times the result times the unit roundoff, if `upper`
    is the largest singular value before it.

    Parameters
    ----------
    step : sequence of float
        Coefficients, ascending.
    upper : float
        Largest singular value before the step, at least 0.
    stride : int, optional
        Difference of the exponents, as in :class:`polarlib.Schedule`.

    Returns
    -------
    float
        At least 0.

    Raises
    ------
    ValueError
        If `upper` is negative or not finite, or a coefficient is not finite.

    Examples
    --------
    >>> noise_gain((1.875, -1.25, 0.375), 1.0)
    3.5
    """
    u = number("upper", upper, 0)
    stride = count("stride", stride, most=MOST_STRIDE)
    return rounding.noise_gain(coefficients("step", step), u, stride)


def table(schedule: Schedule) -> list[dict[str, Any]]:
    """List the properties of each step: interval, image, error, amplification, slope, products.

    Parameters
    ----------
    schedule : Schedule
        Any schedule.

    Returns
    -------
    list of dict
        One per step, with the keys step (from 1), degree, lower, upper (the interval before it in
        exact arithmetic, for the first step after the division of the input), image_lower,
        image_upper, error (worst distance from 1 after it; for a target other than "polar" the
        worst difference from the target after the last step, and None before), noise_gain (error
        amplification at upper), slope (at 0) and products (matrix products of the plain form).

    Raises
    ------
    TypeError
        If `schedule` is not a Schedule.

    Examples
    --------
    >>> rows = table(for_precision("bfloat16", 1e-3, steps=5))
    >>> [round(row["error"], 2) for row in rows]
    [0.99, 0.97, 0.86, 0.56, 0.12]
    """
    instance("schedule", schedule, Schedule, "a Schedule, such as polarlib.schedule returns")
    polynomials(schedule, "design.table")
    polar = parse_target(schedule.target)[0] == "polar"
    rows: list[dict[str, Any]] = []
    before = schedule.divided(schedule.lower, schedule.upper)
    lo, hi = map(float, before)
    images = odd_images(schedule.steps, *before, stride=schedule.stride)
    for k, (step, image) in enumerate(zip(schedule.steps, images, strict=True), 1):
        below, above = map(float, image)
        error = float(max(abs(1 - image[0]), abs(image[1] - 1))) if polar else None
        if k == len(schedule.steps):
            error = schedule.error()
        rows.append(
            {
                "step": k,
                "degree": 1 + schedule.stride * (len(step) - 1),
                "lower": lo,
                "upper": hi,
                "image_lower": below,
                "image_upper": above,
                "error": error,
                "noise_gain": noise_gain(step, hi, stride=schedule.stride),
                "slope": step[0],
                "products": sum(product_counts([step])),
            }
        )
        lo, hi = below, above
    return rows


def _error(state: _DesignState) -> float:
    """Return the worst error in exact arithmetic."""
    low, high = state.exact
    return max(1 - low, high - 1)


def _steps_of(start: _DesignState, count: int, f: Rounding) -> _DesignState:
    state = start
    for _ in range(count - 1):
        state = next_step(state, QUINTIC, f)
    return last_step(state, QUINTIC, f)[1]


def _until_rounding(start: _DesignState, f: Rounding) -> _DesignState:
    """Add degree-5 steps until the error is at most one rounding."""
    state, floor = start, max(f.unit, DOUBLES)
    while True:
        error, done = last_step(state, QUINTIC, f)
        if error <= floor:
            return done
        if len(done.steps) == MOST_STEPS:
            raise ValueError(
                f"an error of {floor:.2g} on [{start.lower:g}, 1] takes more than {MOST_STEPS} "
                "degree-5 steps; give steps or matmuls, or a larger lower end"
            )
        state = next_step(state, QUINTIC, f)


def _widest(
    designed: Callable[..., _DesignState], error: Any, unit: float, cushion: float
) -> tuple[float, _DesignState]:
    """Return the least lower end, to three digits, at which the error is at most `error`."""
    error = number("error", error, 0, 1, ends="()")

    def meets(found: _DesignState, tolerance: float = error) -> bool:
        return _error(found) <= tolerance

    def least(meets: Callable[[float], bool], bad: float, good: float) -> float:
        bad, good = math.log(bad), math.log(good)
        while abs(good - bad) > FINEST:
            middle = (bad + good) / 2
            bad, good = (bad, middle) if meets(math.exp(middle)) else (middle, good)
        digit = 10.0 ** (math.floor(good / math.log(10)) - 2)
        rounded = math.ceil(math.exp(good) / digit) * digit
        return float(f"{rounded:.3g}")

    floor = NOISE * unit
    if not meets(designed(floor)):
        l = least(lambda l: meets(designed(l)), floor, HIGHEST_START)
        return l, designed(l)
    # More steps than needed: the largest cushion with an error of one rounding.
    goal = min(error, max(unit, DOUBLES))
    if not meets(designed(floor), goal):
        return floor, designed(floor)
    if not meets(designed(floor, HIGHEST_CUSHION), goal):
        bounds = HIGHEST_CUSHION, cushion
        return floor, designed(floor, least(lambda c: meets(designed(floor, c), goal), *bounds))
    return floor, designed(floor, HIGHEST_CUSHION)


def _fewest_products(
    lower: float, error: Any, prices: Mapping[int, float], f: Rounding, callback: Any
) -> _DesignState:
    """Return the cheapest design whose error is at most `error`."""
    error = number("error", error, 0, 1, ends="()")
    least, cost = math.inf, 0.0
    most = 4 * min(prices.values())
    while True:
        ends = designed_for(lower, 1.0, most, 0.0, prices, f, callback)
        for choice, state in ends:
            reached = _error(state)
            if reached <= error:
                return cast(_DesignState, state)
            if reached < least:
                least, cost = reached, choice.cost
        # The list ends where more products do not reduce the error in the format.
        if most >= 3 * MOST_STEPS or ends[-1][0].cost < most / 2:
            break
        most = min(2 * most, 3.0 * MOST_STEPS)
    raise ValueError(
        f"error={error:g} is out of reach of {f.format.name} on [{lower:g}, 1] with degrees "
        f"{', '.join(map(str, prices))}: {cost:g} products reach {least:.2g}, and up to {most:g} "
        "do not reduce it in this format; use a larger error or a wider format"
    )


def for_precision(
    format: str,
    lower: float | None = None,
    *,
    steps: int | None = None,
    matmuls: int | None = None,
    degrees: Iterable[int] = DEGREES,
    error: float | None = None,
    cushion: float = 0.0,
    target: str = "polar",
    callback: Callback | None = None,
) -> Schedule:
    """Design the best schedule for iterating in a number format.

    Safety, cushion and degrees follow from the format's unit roundoff. Every step is designed for
    the interval into which rounding can move the singular values before it, and such that rounding
    moves them out of its own image as little as possible.

    Parameters
    ----------
    format : str
        Name of the number format to which the matrices are rounded; products accumulate in single
        precision (in double for "float64").
    lower : float, optional
        Lower end of the interval, ``0 < lower < 1``. Singular values of the normalised input below
        the unit roundoff are rounding errors; in 8 bits use 1e-1 to 1e-2.
    steps : int, optional
        Number of degree-5 steps.
    matmuls : int, optional
        Largest number of matrix products, at least 2: the best sequence of degrees for it. With
        `lower` alone, degree-5 steps are used until the error is at most the unit roundoff.
    degrees : iterable of int, optional
        Odd degrees to choose from for a number of products, or for `lower` and `error`.
    error : float, optional
        Largest error, in (0, 1). With `lower`: the schedule of the fewest products, the first of
        ``matmuls`` = 2, 3, ... whose error is at most this. With `steps` or `matmuls` instead of
        `lower`: the widest interval on which the error is at most this. It is not widened beyond
        1/256 unit roundoff, below which singular values are rounding errors. Further steps reduce
        the error, down to one rounding, and then the steepness, by a larger cushion.
    cushion : float, optional
        Lower design limit of every step but the last, relative to its upper end, in [0, 0.5]. Large
        singular values then stay away from small ones, which are rounding errors.
    target : {"polar"}, optional
        Function to approximate on [lower, 1].
    callback : callable, optional
        Called as ``callback(k, value)`` after sequence k = 1, 2, ... of degrees, or of degree-5
        steps, is designed, with the smallest error so far on its interval. See
        :class:`polarlib.result.Progress`.

    Returns
    -------
    Schedule
        Coefficients are single precision numbers (doubles for "float64"), as the scalars of
        products. Its error is that of exact arithmetic.

    Raises
    ------
    ValueError
        For an unknown format or target, an invalid interval, cushion or error, both of `steps` and
        `matmuls`, neither of `lower` and `error`, both together with a number of steps or products,
        a number that is too small, or an error that no number of products reaches.

    Notes
    -----
    Within the first-order bound of rounding, no singular value leaves the interval for which the
    next step is designed. docs/guide/precision.md has measurements in bfloat16, float16 and both
    8-bit formats.

    Examples
    --------
    >>> s = for_precision("bfloat16", 1e-3, steps=5)
    >>> round(s.error(), 3), s.matmuls
    (0.124, 15)
    >>> len(for_precision("bfloat16", 1e-3)), len(for_precision("float8_e4m3", 1e-1))
    (6, 3)
    >>> [2 * len(step) - 1 for step in for_precision("bfloat16", 1e-3, matmuls=17).steps]
    [3, 5, 5, 5, 5, 5]
    >>> s = for_precision("float16", 1e-3, error=0.1)
    >>> s.matmuls, [2 * len(step) - 1 for step in s.steps], round(s.error(), 3)
    (15, [5, 9, 9, 9], 0.091)
    """
    precision = format_of(format)
    _, prices = prices_by_degree(degrees, None, "plain", None)
    if lower is None and error is None:
        raise ValueError("give lower, error or both, got neither")
    if not (lower is None or error is None or (steps is None and matmuls is None)):
        raise ValueError(
            "steps and matmuls must not be given with both lower and error, got "
            f"lower={shown(lower)}, error={shown(error)}, steps={shown(steps)}, "
            f"matmuls={shown(matmuls)}; leave them out"
        )
    if parse_target(target)[0] != "polar":
        raise ValueError(
            f"target must be 'polar' for for_precision, got {shown(target)}; use design.clip, "
            "design.power or design.smooth_sign for others"
        )
    if steps is not None and matmuls is not None:
        raise ValueError(
            f"give steps or matmuls, not both, got {shown(steps)} and {shown(matmuls)}"
        )
    if steps is not None:
        steps = count("steps", steps, most=MOST_STEPS)
    if matmuls is not None:
        matmuls = count("matmuls", matmuls, 2, 3 * MOST_STEPS)
    cushion = number("cushion", cushion, 0, HIGHEST_CUSHION)
    counted, report = itertools.count(1), reporting(callback, "sequences of degrees")

    def after(_: int, value: float) -> None:  # searches for an interval design many times
        report(next(counted), value)

    def designed(l: float, cushion: float = cushion) -> _DesignState:
        f = Rounding.of(precision, cushion)
        start = first_state(l, f)
        if matmuls is not None:
            return cast(_DesignState, designed_for(l, 1.0, matmuls, 0.0, prices, f, after)[-1][1])
        state = _until_rounding(start, f) if steps is None else _steps_of(start, steps, f)
        after(0, _error(state))
        return state

    if lower is not None:
        l, _ = check_interval(lower, 1.0)
        f = Rounding.of(precision, cushion)
        state = designed(l) if error is None else _fewest_products(l, error, prices, f, after)
    elif steps is None and matmuls is None:
        raise ValueError(f"steps, matmuls or lower must be given with error={shown(error)}")
    else:
        l, state = _widest(designed, error, precision.unit_roundoff, max(cushion, LEAST_CUSHION))
    return schedule_of(state, Rounding.of(precision), l)
