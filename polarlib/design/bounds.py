"""Proven lower bounds on the least error of all compositions of given degrees.

One step. For points ``x_0 < ... < x_(q+1)`` in [l, u] there are weights of alternating signs that
annihilate x, x**3, ..., x**(2q+1): ``|w_i| = 1 / (x_i prod_j |x_i**2 - x_j**2|)``. Applied to
``1 - p`` they give the same number for every odd polynomial p of degree 2q + 1, so none has an
error below ``|sum w_i| / sum |w_i|`` (C. de la Vallee-Poussin, 1910). With S+ and S- the sums of
|w_i| over even and odd i this is ``(1 - rho) / (1 + rho)``, ``rho = S- / S+``. Any points give a
bound. The equioscillation points of the best polynomial give its error, and errors of the points
enter squared, so that approximate points suffice. The rest is exact: points are rational numbers,
and reciprocals and sums are rounded towards the weaker bound.

Composition. If the first step maps [l, u] onto [a, b] with 0 < a, then ``a / b <= rho``: scaled by
2 / (a + b) its error is ``(b - a) / (b + a)``. The least error of the later steps on [a, b] depends
on a / b only, since odd polynomials may be scaled. It is at least that on [rho, 1], since an
interval has no smaller error than an interval inside it. (If 0 is in [a, b], the error is at least
1, as s(0) = 0; if b < 0, change the signs of two steps.) So rho replaces l / u for the next step,
and the bound of the last step holds for all compositions. Best steps attain it: greedy compositions
are optimal (N. Amsel, D. Persson, C. Musco, R. M. Gower, arXiv 2505.16932). The same holds for
powers 1, 1 + p, 1 + 2p, ...
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

from polarlib._schedules.validity import MOST_STRIDE
from polarlib.arrays.checks import count
from polarlib.design.remez import check_degrees, check_interval, ideal

# Bits of rho: it is near 1 where the error is small, and 1 - rho is to be known down to the
# smallest double.
BITS = 1200
# Width of an interval below 1 on which Chebyshev's points are used for the extrema, from which they
# differ by its square.
NARROW = 1e-9
# Shorter intervals have the same interior points, to double precision.
SHORTEST = 1e-30


def least_error(
    lower: float, degrees: Sequence[int], *, upper: float = 1.0, stride: int = 2
) -> float:
    """Bound from below the worst error of every composition of these degrees in this order.

    Parameters
    ----------
    lower, upper : float
        The interval, ``0 < lower < upper``.
    degrees : sequence of int
        Odd degree of each step, at least 3; in general 1 + stride q with q at least 1.
    stride : int, optional
        Distance of the powers.

    Returns
    -------
    float
        Lower bound of ``max |1 - s(x)|`` on the interval for all such compositions. It is sharp to
        double rounding, and 0 if the least error is below the smallest double.

    Raises
    ------
    ValueError
        For an invalid interval, no degrees or an even one.

    See Also
    --------
    largest_complement : The same bound as 1 - E, for errors near 1.

    Notes
    -----
    The docstring of the module has the proof.

    Examples
    --------
    How far a schedule is from the best that there is, proven:

    >>> from polarlib.design import greedy
    >>> e = least_error(1e-3, [5] * 5)
    >>> round(e, 6), 0 <= greedy(1e-3, [5] * 5).certify().upper - e < 1e-11
    (0.113448, True)
    """
    rho = _ratio(lower, degrees, upper, stride)
    return _rounded((1 - rho) / (1 + rho), -math.inf)


def largest_complement(
    lower: float, degrees: Sequence[int], *, upper: float = 1.0, stride: int = 2
) -> float:
    """Bound from above the 1 - E of every composition of these degrees in this order.

    It is the bound of :func:`least_error` without cancellation. For long intervals E is near 1, and
    1 - E, the least singular value of the output, distinguishes schedules.

    Parameters
    ----------
    lower, upper : float
        The interval, ``0 < lower < upper``.
    degrees : sequence of int
        Odd degree of each step, at least 3; in general 1 + stride q with q at least 1.
    stride : int, optional
        Distance of the powers.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        For a bad interval, no degrees or an even one.

    Examples
    --------
    A cubic can multiply tiny singular values by 3 sqrt(3), centred at 1:

    >>> round(largest_complement(1e-30, [3]) / 1e-30, 12), round(3 * 3**0.5, 12)
    (5.196152422707, 5.196152422707)
    """
    rho = _ratio(lower, degrees, upper, stride)
    return _rounded(2 * rho / (1 + rho), math.inf)


def _ratio(lower: float, degrees: Sequence[int], upper: float, stride: int) -> Fraction:
    """Bound the least over the largest value of every such composition from above."""
    l, u = check_interval(lower, upper)
    stride = count("stride", stride, most=MOST_STRIDE)
    rho = Fraction(l) / Fraction(u)
    for degree in check_degrees(degrees, stride):
        rho = min(Fraction(1), _step(rho, degree, stride))
        if rho == 1:
            break
    return rho


def _step(low: Fraction, degree: int, stride: int) -> Fraction:
    """Bound rho of every step on [low, 1] from above."""
    q = (degree - 1) // stride
    # Chebyshev's points are the extrema but for the square of the width.
    inner = [
        low + (1 - low) * Fraction((1 - math.cos(math.pi * i / (q + 1))) / 2)
        for i in range(1, q + 1)
    ]
    if 1 - low >= NARROW:
        extrema = ideal(degree, max(float(low), SHORTEST), stride=stride).extrema
        found = [Fraction(v) for v in extrema[1:-1]]
        if all(a < b for a, b in itertools.pairwise([low, *found, Fraction(1)])):
            inner = found
    x = [low, *inner, Fraction(1)]
    y = [v**stride for v in x]
    sums = [Fraction(0), Fraction(0)]
    for i, v in enumerate(x):
        weight = 1 / (v * math.prod(abs(y[i] - w) for j, w in enumerate(y) if j != i))
        sums[i % 2] += _cut(weight, up=i % 2 == 1)
    return _cut(sums[1] / sums[0], up=True)


def _cut(v: Fraction, *, up: bool) -> Fraction:
    """Round a positive number to a binary fraction of BITS bits or one more."""
    e = BITS - v.numerator.bit_length() + v.denominator.bit_length()
    scaled = v * Fraction(2) ** e
    return Fraction(math.ceil(scaled) if up else math.floor(scaled)) / Fraction(2) ** e


def _rounded(v: Fraction, towards: float) -> float:
    """Return the nearest double in a direction."""
    x = float(v)
    wrong = Fraction(x) > v if towards < 0 else Fraction(x) < v
    return math.nextafter(x, towards) if wrong else x
