"""Compositions of best steps: greedy schedules, with the conventions of published sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from polarlib._schedules.schedule import Schedule
from polarlib._schedules.validity import MOST_STRIDE
from polarlib.arrays.checks import choice, count, flag, number
from polarlib.design.doubles import exact_value, image_of_rounded, lifted
from polarlib.design.remez import best, check_degrees, check_interval

# Error that no step of doubles is known to go below: half the distance from 1 to the next double
# below it.
SMALLEST = 2.0**-54
# Coefficients of Pade steps of degree 2 q + 1 are doubles up to this q: binary fractions.
MOST_EXACT = 20


def pade(q: int, stride: int = 2) -> tuple[float, ...]:
    """Step of degree 1 + stride q with p(1) = 1 and q vanishing derivatives there."""
    # x (1 - z)^(-1/p), z = 1 - x^p, truncated after z^q: C. Kenney, A. J. Laub, SIMAX 12 (1991).
    terms = [Fraction(1)]
    for k in range(1, q + 1):
        terms.append(terms[-1] * (Fraction(1, stride) + k - 1) / k)
    return tuple(
        float((-1) ** i * sum(math.comb(k, i) * terms[k] for k in range(i, q + 1)))
        for i in range(q + 1)
    )


def flat_step(q: int, lower: float, upper: float, stride: int = 2) -> tuple[float, ...] | None:
    """Return the Pade step if doubles cannot represent its error on an interval, otherwise None.

    For stride 2 its coefficients are doubles, the last ones zero where q is above 20.

    Examples
    --------
    >>> flat_step(2, 1 - 1e-6, 1.0), flat_step(2, 0.9, 1.0)
    ((1.875, -1.25, 0.375), None)
    """
    if upper >= 2:  # powers of larger ones can overflow
        return None
    # 1 - p(x) = x sum_(k > q) t_k z^k, z = 1 - x^p, with t_k at most 1.
    z = max(abs(1 - v**stride) for v in (lower, upper))
    kept = q if stride != 2 else min(q, MOST_EXACT)
    if z >= 0.5 or upper * z ** (kept + 1) >= SMALLEST / 2:
        return None
    return (*pade(kept, stride), *[0.0] * (q - kept))


def _squeeze(step: Sequence[float], safety: float, stride: int) -> tuple[float, ...]:
    """Return the coefficients of ``p(x / (1 + safety))``."""
    return tuple(c / (1 + safety) ** (stride * i + 1) for i, c in enumerate(step))


def greedy(
    lower: float,
    degrees: Sequence[int],
    *,
    upper: float = 1.0,
    safety: float = 0.0,
    cushion: float = 0.0,
    safety_mode: str = "in_loop",
    safety_on_last: bool = False,
    peak: float | None = None,
    stride: int = 2,
) -> Schedule:
    """Compose best steps: each on the image of those before it.

    Without safety and cushion it is the best composition of these degrees in this order. A cushion
    raises the lower end of the interval on which a step is designed.

    Parameters
    ----------
    lower : float
        Lower end of the interval, ``0 < lower < upper``.
    degrees : sequence of int
        Odd degree of each step.
    upper : float, optional
        Upper end.
    safety : float, optional
        Steps are squeezed to ``p(x / (1 + safety))``, so that singular values may exceed the
        interval by that factor.
    cushion : float, optional
        A step is designed on ``[max(l, cushion u), u]`` for the image [l, u], and then scaled so
        that its image is centred at 1.
    safety_mode : {"in_loop", "post_hoc"}, optional
        Whether a step is designed on the image of the squeezed steps before it, or all steps are
        squeezed after the design.
    safety_on_last : bool, optional
        Whether the last step is squeezed too.
    peak : float, optional
        Largest value of every step, between 1 and 2, in place of centring its image at 1. Steps are
        steeper if it is above 1 + E; the worst error is at least peak - 1.
    stride : int, optional
        Difference of the exponents 1, 1 + stride, 1 + 2 stride, ... of a step: 2 for odd
        polynomials. Degrees are 1 + stride k. See :func:`polarlib.design.inverse_root`.

    Returns
    -------
    Schedule
        Steps with their interval, and the arguments as source.

    Raises
    ------
    ValueError
        For an invalid interval, no degrees or an even one, safety or cushion outside [0, 1), an
        unknown mode, a safety with which the image leaves (0, 2), or a degree 'beyond double
        coefficients': rounding them adds more to a step's error than max(5 % of it, 2^-50).

    Notes
    -----
    N. Amsel, D. Persson, C. Musco, R. M. Gower, The Polar Express, arXiv 2505.16932: optimality of
    the greedy composition, and the cushion.

    Examples
    --------
    >>> s = greedy(1e-3, [5] * 5)
    >>> round(s.error(), 4), s.matmuls
    (0.1134, 15)
    """
    l, u = check_interval(lower, upper)
    stride = count("stride", stride, most=MOST_STRIDE)
    degrees = check_degrees(degrees, stride)
    safety = number("safety", safety, 0, 1, ends="[)")
    cushion = number("cushion", cushion, 0, 1, ends="[)")
    if peak is not None:
        peak = number("peak", peak, 1, 2, ends="[)")
    safety_mode = choice("safety_mode", safety_mode, ("in_loop", "post_hoc"))
    safety_on_last = flag("safety_on_last", safety_on_last)
    steps = []
    within: tuple[Any, Any] = (l, u)  # the image so far, with 40 digits
    squeezed = len(degrees) - (not safety_on_last)  # number of steps with the safety
    for k, degree in enumerate(degrees):
        flat = flat_step((degree - 1) // stride, l, u, stride)
        if flat is not None:
            step, top, end = flat, 1.0, 1.0
        else:
            start = max(l, cushion * u)
            b = best(degree, start, u, stride=stride)
            step, end, top = b.coefficients, b.complement, 1 + b.error
            if start > l:  # p grows up to its first maximum, so its least value is at l
                end = exact_value(step, l, stride)
                centre = (end + top) / 2
                step, end = tuple(c / centre for c in step), end / centre
                top /= centre
        if peak is not None:
            step, end, top = tuple(c * (peak / top) for c in step), end * peak / top, peak
        ends, before, factor = (end, top), (l, u), 1.0
        if k < squeezed:
            final, factor = _squeeze(step, safety, stride), 1 + safety
            if safety_mode == "in_loop":
                end = exact_value(final, l, stride)
        else:
            final = step
        l, u = end, 2 - end if peak is None else peak
        if safety == 0:
            # The next step has a steep slope at u, which amplifies the rounding of coefficients
            # there: it is designed on the image of the rounded step.
            final, within = lifted(final, *within, stride=stride)
        # p(x / f) maps [f l, f u] as p maps [l, u].
        outer = image_of_rounded(final, ends, before[0] * factor, before[1] * factor, stride)
        if safety == 0:
            within = within if outer is None else outer
            l, u = min(l, float(within[0])), max(u, math.nextafter(float(within[1]), math.inf))
        steps.append(final)
    description = f", cushion {cushion:g}" * (cushion > 0)
    if peak is not None:
        description += f", every step up to {peak:g}"
    if safety:
        last = "included" if safety_on_last else "exempt"
        description += f", safety {safety:g} ({safety_mode.replace('_', ' ')}, last step {last})"
    return Schedule(
        steps=tuple(steps),
        lower=lower,
        upper=upper,
        stride=stride,
        name=f"greedy of degrees {', '.join(map(str, degrees))}",
        source=f"greedy minimax composition on [{lower}, {upper}]{description}",
    )
