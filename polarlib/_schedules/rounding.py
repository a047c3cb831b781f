"""The scalar model of rounding: the singular values after one step in a number format.

A step of degree 3 or 5 in a format with unit roundoff u rounds three matrices: ``G = X^H X``,
``Z = c_1 G + c_2 G^2`` and ``c_0 X + X Z``. If each rounding moves a matrix by a factor of 1 + u at
most, along singular vectors, the singular value x of X becomes p(x) to within, to first order,

    u r(x),    r(x) = |p(x)| + x |z(x)| + x^3 |z'(x^2)|,    z(y) = c_1 y + c_2 y^2.

Higher degrees round more matrices, the powers and blocks of the engine, and r has one term for
each. The constant matrix, any multiple of a Hadamard matrix and any 1 x 1 matrix have entries that
are rounded alike, and come near this bound; on other matrices the errors average out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from polarlib._schedules.products import even_products
from polarlib.arrays.formats import Format, format_of

# Margin above a step, in units of the bound u r(x), in designs, and on both sides in certificates
# by default. Chosen by experiment: of 5e6 scalar chains in bfloat16 and float16 one exceeded 0.65
# and none 0.7 (benchmarks/lowbits.py). Later steps tolerate a small excess above, since each is
# designed beyond its interval. Below they do not, so that designs keep the whole bound there.
SHARE = 0.75
# The normalised input can exceed 1 by one rounding to the format, and by that of the norm, which is
# taken in at least single precision: so many of its roundings, chosen generously.
NORM_ROUNDINGS = 64
# Points per step at which the bound is evaluated in addition to ends and turning points.
POINTS = np.linspace(0.0, 1.0, 257)


def largest_input(precision: Format) -> float:
    """Return the largest singular value of a matrix that was divided by a bound and rounded.

    Examples
    --------
    >>> largest_input(format_of("bfloat16")) == 1 + 2**-8 + 64 * 2**-24
    True
    """
    carrier = format_of(precision.carrier)
    return 1 + precision.unit_roundoff + NORM_ROUNDINGS * carrier.unit_roundoff


def rounding_bound(step: Sequence[float], x: Any) -> tuple[Any, Any]:
    """Return ``p(x)`` and the bound ``r(x)`` of its rounding, in units of u.

    Examples
    --------
    >>> rounding_bound((1.5, -0.5), 1.0)
    (1.0, 2.0)
    """
    p, errors = rounding_errors(step, x)
    return p, sum(map(abs, errors))


def rounding_errors(step: Sequence[Any], x: Any) -> tuple[Any, list[Any]]:
    """Return ``p(x)`` and its derivatives by the relative errors of every rounding.

    By sums and products alone: `x` may be an array or, with coefficients of its kind, a polynomial.

    Examples
    --------
    >>> rounding_errors((1.5, -0.5), 1.0)
    (1.0, [1.0, -0.5, -0.5])
    """
    if len(step) > 3:
        return _errors_by_products(step, x)
    y = x * x
    z, slope = 0 * x, 0 * x
    for i in range(len(step) - 1, 0, -1):
        z = z * y + step[i]
        slope = slope * y + i * step[i]
    z = z * y
    p = x * (step[0] + z)
    return p, [p, x * z, x * y * slope]


def _errors_by_products(step: Sequence[Any], x: Any) -> tuple[Any, list[Any]]:
    """Return the derivatives by every rounding of `engine.iterate.even_part`, for any degree.

    A list holds a number and its derivatives by the relative errors of all roundings so far.
    """
    made = 0

    def rounded(parts: list[Any]) -> list[Any]:
        nonlocal made
        made += 1
        return [*parts, *[0 * x] * (made - len(parts)), parts[0]]

    def total(*terms: tuple[Any, list[Any]]) -> list[Any]:
        length = max(len(parts) for _, parts in terms)
        return [sum(c * parts[k] for c, parts in terms if k < len(parts)) for k in range(length)]

    def product(a: list[Any], b: list[Any]) -> list[Any]:
        left = [a[0] * v for v in b]
        right = [0 * x, *(b[0] * v for v in a[1:])]
        return total((1, left), (1, right))

    g = rounded([x * x])
    c = step[1:]
    block, _ = even_products(len(c))
    powers = [g]
    while len(powers) < block:
        powers.append(rounded(product(powers[-1], g)))
    if block == 1:
        z = rounded(total((c[-1], product(g, g)), (c[-2], g)))
        for v in reversed(c[:-2]):
            z = rounded(total((1, product(z, g)), (v, g)))
    else:
        starts = range(0, len(c), block)
        blocks = [rounded(total(*zip(c[i : i + block], powers, strict=False))) for i in starts]
        z = blocks.pop()
        while blocks:
            z = rounded(total((1, product(z, powers[-1])), (1, blocks.pop())))
    p, *errors = rounded(total((step[0], [x]), (1, [x * v for v in z])))
    return p, errors


def landing(
    step: Sequence[float],
    lower: float,
    upper: float,
    turns: Iterable[float],
    unit: float,
    upward: float,
) -> tuple[float, float]:
    """Bound the image of [lower, upper] with rounding; `turns` are the turning points of the step.

    By samples, for designs; certificates enclose it.

    Examples
    --------
    >>> landing((1.5, -0.5), 1.0, 1.0, (), 0.125, 1.0)
    (0.75, 1.25)
    """
    x = np.concatenate([lower + (upper - lower) * POINTS, [t for t in turns if lower < t < upper]])
    p, r = rounding_bound(step, x)
    return float((p - unit * r).min()), float((p + upward * unit * r).max())


def noise_gain(step: Sequence[float], upper: float, stride: int = 2) -> float:
    """Return ``sum |c_i| upper**(1 + stride i)``; infinite where it overflows.

    Examples
    --------
    >>> noise_gain((1.875, -1.25, 0.375), 1.0)
    3.5
    """
    try:
        return sum(abs(v) * upper ** (1 + stride * i) for i, v in enumerate(step))
    except OverflowError:
        return float("inf")
