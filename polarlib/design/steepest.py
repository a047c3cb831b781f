"""Compositions by their slope at 0: the largest one for an error, and the least error for one.

The singular values below the interval of a schedule are multiplied by its slope. Let p be the best
polynomial of degree 2q + 1 on [l, 1], E its error, and m the second of the points after l where
the error alternates: the first minimum of p, or 1 for degree 3. Then no odd polynomial r of this
degree with ``r <= 1 + E`` on (0, 1] and ``r >= 1 - E`` on [m, 1] is as steep at 0. For if
``r'(0) >= p'(0)``, then p - r is not positive near 0, not negative at the first maximum of p, not
positive at m, and so on alternately up to 1. That makes q + 1 positive zeros, counted with their
multiplicity (where both touch a bound inside the interval, the zero is double), of an odd
polynomial of degree 2q + 1, which is 0.

A larger E leaves more polynomials to choose from, and so does, for polynomials scaled to a largest
value of 1, a smaller quotient rho = (1 - E) / (1 + E). E falls as l grows. So the slope of a
composition of best steps on [l, 1], which is ``(1 + E_n) prod_k p_k'(0) / (1 + E_k)`` for steps p_k
on ``[rho_(k-1), 1]`` with rho_0 = l, falls strictly too: from about 1 / l to the product of the
slopes of the Pade steps, at l = 1. Both questions are about one number, l.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from polarlib._schedules.schedule import Schedule
from polarlib._schedules.steps import absorbed
from polarlib.arrays.checks import number, shown
from polarlib.design.band import WIDEST, band
from polarlib.design.compose import greedy, pade
from polarlib.design.remez import check_degrees, ideal

# Width of an interval below 1 on which the slope is that of the Pade step, to its last digits but
# four; the slope differs from it by half the width.
NARROWEST = 1e-12
# Relative difference from the slope asked for that the rounding of steps may leave.
ROUNDING = 1e-13


def steepest(error: float, degrees: Sequence[int]) -> Schedule:
    """Design the composition with the largest slope at 0 for an error.

    Parameters
    ----------
    error : float
        Largest error, between 0 and 1.
    degrees : sequence of int
        Odd degree of each step, at least 3; first step first.

    Returns
    -------
    Schedule
        On ``[lower, 1]`` with the smallest possible `lower`. There its error is at most `error`;
        below, its values are positive and at most ``1 + error``.

    Raises
    ------
    ValueError
        For an error outside (0, 1), no degrees or an even one, and if `lower` would be below 1e-15.

    See Also
    --------
    band : The same composition, by a number of steps; also for a band that is not centred at 1.
    for_slope : Its inverse.

    Notes
    -----
    Of all compositions of these degrees, it is the one with an error of `error` on the longest
    interval ``[lower, 1]``, and each step is the steepest polynomial of its degree that does not
    exceed the upper end of its image and stays in the image from its own first minimum on. The
    docstring of the module has the proof. A polynomial that enters the band further right can be
    steeper; the largest slope among polynomials with the value 1 at 1 does not define a design.

    Examples
    --------
    >>> s = steepest(0.3, [5] * 5)
    >>> f"{s.slope:.1f} {s.error():.6f} from {s.lower:.3g} on"
    '1480.0 0.300000 from 0.000502 on'

    The order of degrees matters:

    >>> [f"{steepest(0.3, d).slope:.2f}" for d in ([9, 5, 3], [3, 5, 9])]
    ['88.54', '90.27']
    """
    error = number("error", error, 0, 1, ends="()")
    degrees = check_degrees(degrees)
    s = band(len(degrees), error, degree=degrees)
    listed = ", ".join(map(str, degrees))
    return replace(
        s,
        name=f"steepest for an error of {error:g}",
        source=f"largest slope at 0 of steps of degrees {listed} for an error of {error:g}",
    )


def for_slope(slope: float, degrees: Sequence[int]) -> Schedule:
    """Design the composition with the least error for a slope at 0.

    Parameters
    ----------
    slope : float
        Slope of the composition at 0: factor by which the smallest singular values grow.
    degrees : sequence of int
        Odd degree of each step, at least 3; first step first.

    Returns
    -------
    Schedule
        Its error is that on ``[lower, 1]``, where `lower` is the smallest number for which no
        singular value of ``[lower, 1]`` ends further from 1; below, values are positive and at most
        ``1 + error``. Its slope is `slope` to 12 digits.

    Raises
    ------
    ValueError
        For a slope that is not above the product of the slopes of the Pade steps of these degrees
        (3/2 for degree 3, 15/8 for degree 5), where the error is 0; or above that of the
        composition for ``lower = 1e-15``; for no degrees, an even one, or degrees 'beyond double
        coefficients'.

    See Also
    --------
    steepest : Its inverse.

    Notes
    -----
    It is the composition of :func:`steepest` whose slope is `slope`: the larger the error that is
    allowed, the larger the slope.

    Examples
    --------
    >>> s = for_slope(1000, [5] * 5)
    >>> f"{s.slope:.6f} {s.error():.4f} from {s.lower:.3g} on"
    '1000.000000 0.0961 from 0.00109 on'
    >>> for_slope(1.5, [5])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: slope must be a number above 1.875 and at most ... for degrees [5], got 1.5; ...
    """
    from scipy.optimize import brentq  # here, as its import is slow

    degrees = check_degrees(degrees)
    ends = math.log(WIDEST), -math.log(NARROWEST)
    most, least = (_log_slope(z, degrees) for z in ends)
    value = number("slope", slope)
    if not least < (math.log(value) if value > 0 else -math.inf) <= most:
        raise ValueError(_impossible(slope, degrees, math.exp(least), math.exp(most)))
    z = brentq(lambda z: _log_slope(z, degrees) - math.log(value), *ends, xtol=1e-14, rtol=1e-15)
    s = greedy(1 / (1 + math.exp(-z)), degrees)
    steps = s.steps
    factor = value / s.slope
    if abs(factor - 1) > ROUNDING:
        # Where the first interval is so narrow that its step is the Pade step for 1, the best one,
        # for the middle of the interval, is that of x over the middle.
        steps = (absorbed(steps[0], 1 / factor), *steps[1:])
    listed = ", ".join(map(str, degrees))
    return replace(
        s,
        steps=steps,
        name=f"least error for a slope of {value:g}",
        source=f"least error of steps of degrees {listed} with slope {value:g} at 0",
    )


def _impossible(slope: Any, degrees: Sequence[int], least: float, most: float) -> str:
    return (
        f"slope must be a number above {least:.7g} and at most {most:.7g} for degrees "
        f"{shown(list(degrees))}, got {shown(slope)}; smaller slopes need fewer steps "
        "or lower degrees, larger ones more"
    )


def _log_slope(z: float, degrees: Sequence[int]) -> float:
    """Return log(slope) of the best composition on [rho, 1], ``z = log(rho / (1 - rho))``."""
    total = error = 0.0
    rho = 1 / (1 + math.exp(-z))
    for degree in degrees:
        total -= math.log1p(error)  # what follows is for images scaled to [rho, 1]
        if 1 - rho < NARROWEST:
            total, error = total + math.log(pade(degree // 2)[0]), 0.0
            continue
        b = ideal(degree, rho)
        total, error, rho = total + math.log(b.coefficients[0]), b.error, b.rho
    return total
