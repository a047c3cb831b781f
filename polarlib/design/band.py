"""Compositions of best steps for a given error: the widest interval that they serve.

A best step of degree 2q + 1 sends the quotient rho of the ends of an interval to R(rho), that of
its image, whatever the scale; R increases. So the widest interval that n steps map into
[1 - e, 1 + e] follows from the last step backward: rho_n = (1 - e) / (1 + e), rho_{k-1} =
R^-1(rho_k). In the coordinate log(rho / (1 - rho)) R is almost a straight line at both ends, of
slope 1 where rho is small and of slope q + 1 where it is near 1.
"""

from __future__ import annotations

import math
from dataclasses import replace

from polarlib._schedules.schedule import Schedule
from polarlib.arrays.checks import MOST_STEPS, count, number
from polarlib.design.compose import greedy
from polarlib.design.remez import best, check_degree, ideal

# Fewer take 4 to 8 secant steps; the last digit of rho near 1 may need some more.
SECANTS = 40
# Attempts to make up for the rounding of coefficients, each twice as bold; two are the rule.
ATTEMPTS = 8
# Half the distance from 1 to the next double below: no schedule of doubles has a smaller error.
SMALLEST = 2.0**-54
# Smallest lower end of an interval: the minimum of a step there is lost in its rounding.
WIDEST = 1e-15


def _before(degree: int, target: float) -> tuple[float, float]:
    """Coordinate z = log(rho / (1 - rho)) of the interval whose image has `target`, and the slope.

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


def band(steps: int, epsilon: float, *, degree: int = 5) -> Schedule:
    """Widest interval that a number of odd polynomials map into ``[1 - epsilon, 1 + epsilon]``.

    The counterpart of :func:`greedy`: there the interval is given, here the error.

    Parameters
    ----------
    steps : int
        Number of polynomials.
    epsilon : float
        Largest error, between 0 and 1.
    degree : int, optional
        Their degree, odd.

    Returns
    -------
    Schedule
        On ``[lower, 1]`` with `lower` as small as it can be. Its error is at most `epsilon`, but
        for an `epsilon` so small that the rounding of the coefficients counts (below 1e-14).

    Raises
    ------
    ValueError
        For a number of steps below 1, `epsilon` outside (0, 1), an even degree, or so many steps
        that `lower` would be below 1e-15.

    Notes
    -----
    Greedy compositions are the best ones (N. Amsel, D. Persson, C. Musco, R. M. Gower,
    arXiv 2505.16932), and their error falls as the interval shrinks: so the widest one is greedy
    with an error of `epsilon`. Each step is also the steepest at 0 of all that map its interval
    into the band left to it: with two different such polynomials the difference would have more
    zeros than its degree allows. It is found from the last step backward (see the module).

    Examples
    --------
    >>> s = band(5, 0.3)
    >>> f"{s.lower:.4g} {s.error():.6f} {s.slope:.1f}"
    '0.000502 0.300000 1480.0'
    """
    steps = count("steps", steps, most=MOST_STEPS)
    epsilon, degree = number("epsilon", epsilon, 0, 1, ends="()"), check_degree(degree)
    aim = max(epsilon, SMALLEST)
    z, rate = math.log1p(-aim) - math.log(2 * aim), 1.0
    for _ in range(steps):
        z, slope = _before(degree, z)
        rate *= slope
        if z < math.log(WIDEST):
            raise ValueError(
                f"the widest interval for {steps} steps of degree {degree} and epsilon={epsilon:g} "
                f"begins below {WIDEST:g}; take fewer steps"
            )
    found: Schedule | None = None
    for attempt in range(ATTEMPTS):
        lower = 1 / (1 + math.exp(-z))
        s = replace(
            greedy(lower, [degree] * steps),
            name=f"band of {epsilon:g}",
            source=f"widest interval that {steps} steps of degree {degree} map to within "
            f"{epsilon:g} of 1",
        )
        excess = s.error() - epsilon
        if found is None or excess < found.error() - epsilon:
            found = s
        if excess <= 0:
            break
        # dz = -de / (e (1 - e)) at the other end.
        z += 1.5 * 2**attempt * excess / (aim * (1 - aim)) / rate
    assert found is not None
    return found


def stationary(epsilon: float, *, degree: int = 5) -> Schedule:
    """Steepest odd polynomial to repeat for ever without leaving ``[1 - epsilon, 1 + epsilon]``.

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
        can be: this interval is mapped into the band in one step, and the band into itself.

    Raises
    ------
    ValueError
        For `epsilon` outside (0, 1) or an even degree.

    Notes
    -----
    The problem of K. Jordan and others, Muon (2024): the largest slope such that p touches
    ``1 + epsilon`` and ``1 - epsilon`` by turns, the last time at ``x = 1 + epsilon``. It is the
    step of :func:`band` for an upper end of ``1 + epsilon``. Their own (3.4445, -4.775, 2.0315) was
    found by search and is no solution of it: its slope is that of ``epsilon = 0.2075``, but it
    keeps about [0.68, 1.14], and lets larger values come back. Here the upper end is a fixed point
    that repels: for low precision, divide the input by a safety factor.

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
