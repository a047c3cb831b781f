"""Compositions of best steps for a given error: the widest interval on which they have it.

A best step of degree 2q + 1 maps the quotient rho of the ends of an interval to R(rho), that of its
image, for every scale; R increases. So the widest interval that n steps map into
[1 - e, 1 + e] follows from the last step backward: rho_n = (1 - e) / (1 + e), rho_{k-1} =
R^-1(rho_k). In the coordinate log(rho / (1 - rho)) R is almost a straight line at both ends, of
slope 1 where rho is small and of slope q + 1 where it is near 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from polarlib._schedules.schedule import Schedule
from polarlib.arrays.checks import MOST_STEPS, count, double, items, number, shown
from polarlib.design.compose import greedy
from polarlib.design.remez import best, check_degree, check_degrees, ideal

# Largest number of secant steps: 4 to 8 are usual, the last digit of rho near 1 may need more.
SECANTS = 40
# Attempts to compensate the rounding of coefficients, each by twice as much; two are usual.
ATTEMPTS = 8
# Half the distance from 1 to the next double below: no schedule of doubles has a smaller error.
SMALLEST = 2.0**-54
# Smallest lower end of an interval: the minimum of a step there is lost in its rounding.
WIDEST = 1e-15
EPSILON = "a number between 0 and 1, or a band (low, high)"
# A band must contain 1, about which the error and the validity of a schedule are defined.
BAND = "two numbers low < high with 0 < low <= 1 <= high < 2"


def _before(degree: int, target: float) -> tuple[float, float]:
    """Return z = log(rho / (1 - rho)) of the interval whose image has `target`, and the slope.

    The slope is that of the image's coordinate by z.
    """

    def after(z: float) -> float:
        b = ideal(degree, 1 / (1 + math.exp(-z)))
        return math.log(b.complement / (2 * b.error))

    q = degree // 2
    # Right of the solution, since R(rho) > rho, and the slope is between those of the two ends.
    z, value = target, after(target)
    slope = 1.0 + q / (1 + math.exp(-target))
    for _ in range(SECANTS):
        moved = z + (target - value) / slope
        # The last digit of rho as a double, as the coordinate sees it.
        if abs(moved - z) <= 4e-16 * max(1.0, abs(z), math.exp(z)):
            break
        ahead = after(moved)
        slope = min(max((ahead - value) / (moved - z), 1.0), q + 1.0)
        z, value = moved, ahead
    return z, slope


class _Aim(NamedTuple):
    """The band into which a composition maps its interval.

    Attributes
    ----------
    low, width : float
        Lower end and width of the band.
    centre : float
        Middle of the band; the last of the best steps, which are centred at 1, is multiplied by it.
    excess : callable
        How far the image of a schedule leaves the band, as rounded to doubles.
    """

    low: float
    width: float
    centre: float
    excess: Callable[[Schedule], float]


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str) and double(value) is None


def _about_one(epsilon: float) -> _Aim:
    aim = max(epsilon, SMALLEST)
    return _Aim(1 - aim, 2 * aim, 1.0, lambda s: s.error() - epsilon)


def _between(low: float, high: float) -> _Aim:
    def excess(s: Schedule) -> float:
        least, most = s.image()
        # The last term is the rounding of 1 - low.
        return max(low - least, most - high, s.error() - max(1 - low, high - 1))

    return _Aim(low, high - low, (low + high) / 2, excess)


def _checked_band(value: Any) -> tuple[_Aim, str]:
    """Return a band and its name."""
    if not _is_list(value):
        epsilon = number("epsilon", value, 0, 1, ends="()", what=EPSILON)
        return _about_one(epsilon), f"{epsilon:g}"
    ends = [double(v) for v in items("a band", value, BAND, 2, 2)]
    low, high = (math.nan if v is None else v for v in ends)
    if not (0 < low < high < 2 and low <= 1 <= high):
        raise ValueError(f"a band must be {BAND}, got {shown(value)}")
    return _between(low, high), f"[{low:g}, {high:g}]"


def _widest(degrees: Sequence[int], aim: _Aim, description: str, given: Any) -> Schedule:
    """Return the composition that maps the widest interval ``[lower, 1]`` into a band."""
    z, rate = math.log(aim.low) - math.log(aim.width), 1.0
    listed = ", ".join(map(str, degrees))
    for degree in reversed(degrees):
        if z >= math.log(WIDEST):
            z, slope = _before(degree, z)
            rate *= slope
        if z < math.log(WIDEST):
            raise ValueError(
                f"the widest interval for steps of degrees {listed} and a band of {shown(given)} "
                f"begins below {WIDEST:g}; use fewer steps, or a narrower band"
            )
    error = aim.width / (2 * aim.centre)
    widest: Schedule | None = None
    least = math.inf
    for attempt in range(ATTEMPTS):
        s = greedy(1 / (1 + math.exp(-z)), degrees)
        if aim.centre != 1:
            s = replace(s, steps=(*s.steps[:-1], tuple(aim.centre * c for c in s.steps[-1])))
        excess = aim.excess(s)
        if widest is None or excess < least:
            widest, least = s, excess
        if excess <= 0:
            break
        # dz = -de / (e (1 - e)) at the other end.
        z += 1.5 * 2**attempt * (excess / aim.centre) / (error * (1 - error)) / rate
    assert widest is not None
    return replace(
        widest,
        name=f"band of {description}",
        source=f"widest interval that steps of degrees {listed} map into the band {description}",
    )


def band(
    steps: int, epsilon: float | tuple[float, float], *, degree: int | Sequence[int] = 5
) -> Schedule:
    """Design the odd polynomials that map the widest interval into a band about 1.

    In contrast to :func:`greedy`, the error is given and the interval is computed.

    Parameters
    ----------
    steps : int
        Number of polynomials.
    epsilon : float or (float, float)
        Largest error, between 0 and 1, for the band ``[1 - epsilon, 1 + epsilon]``; or the band
        ``(low, high)`` itself, ``low < high`` and ``0 < low <= 1 <= high < 2``.
    degree : int or sequence of int, optional
        Degree of each polynomial, odd; or the degrees, one per step, first step first.

    Returns
    -------
    Schedule
        On ``[lower, 1]`` with the smallest possible `lower`. Its image is inside the band, so that
        its error is at most `epsilon`, or ``max(1 - low, high - 1)``. For `epsilon` below 1e-14 the
        rounding of the coefficients may exceed the band.

    Raises
    ------
    ValueError
        For a number of steps below 1, `epsilon` outside (0, 1), a band that is empty, is not within
        (0, 2) or does not contain 1, an even degree, a number of degrees that is not the number of
        steps, and if `lower` would be below 1e-15.

    See Also
    --------
    steepest : The same composition, from its error and its degrees.
    for_slope : The composition of this kind with a given slope at 0.

    Notes
    -----
    Greedy compositions are the best ones (N. Amsel, D. Persson, C. Musco, R. M. Gower,
    arXiv 2505.16932), and their error falls as the interval shrinks: so the widest one is greedy
    with an error of `epsilon`. It is found from the last step backward (see the module). Odd
    polynomials may be scaled, so the quotient low / high alone fixes the interval of a band
    ``(low, high)``, and all steps but for a factor ``(low + high) / 2`` of the last one.

    Examples
    --------
    >>> s = band(5, 0.3)
    >>> f"{s.lower:.4g} {s.error():.6f} {s.slope:.1f}"
    '0.000502 0.300000 1480.0'
    >>> s = band(5, (0.7, 1.2))
    >>> f"{s.lower:.4g} [{s.image()[0]:.6f}, {s.image()[1]:.6f}]"
    '0.0005647 [0.700000, 1.200000]'
    >>> f"{band(3, 0.3, degree=[9, 5, 3]).lower:.4g}"
    '0.008392'
    """
    steps = count("steps", steps, most=MOST_STEPS)
    aim, description = _checked_band(epsilon)
    degrees = check_degrees(degree) if _is_list(degree) else [check_degree(degree)] * steps
    if len(degrees) != steps:
        raise ValueError(
            f"degree must be one odd integer, or one per step: got {len(degrees)} degrees "
            f"{shown(degree)} for steps={steps}"
        )
    return _widest(degrees, aim, description, epsilon)


def stationary(epsilon: float, *, degree: int = 5) -> Schedule:
    """Return the steepest odd polynomial that may be repeated in ``[1 - epsilon, 1 + epsilon]``.

    Parameters
    ----------
    epsilon : float
        Half-width of the band, between 0 and 1.
    degree : int, optional
        Degree, odd.

    Returns
    -------
    Schedule
        One step with ``repeat="forever"``, on ``[lower, 1 + epsilon]`` with `lower` as small as it
        can be. One step maps this interval into the band, and the band into itself.

    Raises
    ------
    ValueError
        For `epsilon` outside (0, 1) or an even degree.

    Notes
    -----
    The problem is that of K. Jordan and others, Muon (2024): the largest slope such that p touches
    ``1 + epsilon`` and ``1 - epsilon`` alternately, the last time at ``x = 1 + epsilon``. It is the
    step of :func:`band` for an upper end of ``1 + epsilon``. Their coefficients (3.4445, -4.775,
    2.0315) were found by search and do not solve it: their slope is that of ``epsilon = 0.2075``,
    but they map about [0.68, 1.14] into itself, and larger values return to it. Here the upper end
    is a repelling fixed point; in low precision, divide the input by a safety factor.

    Examples
    --------
    >>> s = stationary(0.3)
    >>> [round(c, 5) for c in s.steps[0]], s.repeat
    ([3.63555, -4.79161, 1.91249], 'forever')
    """
    epsilon, degree = number("epsilon", epsilon, 0, 1, ends="()"), check_degree(degree)
    lower = band(1, epsilon, degree=degree).lower * (1 + epsilon)
    return Schedule(
        steps=(best(degree, lower, 1 + epsilon).coefficients,),
        lower=lower,
        upper=1 + epsilon,
        name=f"stationary {epsilon:g}",
        source=f"steepest step of degree {degree} that keeps [{1 - epsilon:g}, {1 + epsilon:g}]",
        repeat="forever",
    )
