"""Enclosures of images and worst errors of compositions, in ball arithmetic.

A number of python-flint's type `arb` is a ball, midpoint and radius. Each operation returns a ball
that contains the exact results for all numbers in its operands (F. Johansson, Arb: efficient
arbitrary-precision midpoint-radius interval arithmetic, IEEE Trans. Comput. 66 (2017) 1281-1292).
Exponents have no bounds, so that nothing overflows. No step of the argument rests on sampling, on
an approximate root, or on rounding that happened to be small.

Images. The image of an interval is an interval. Its ends are followed step by step, as narrow
balls. They are values of the step at the ends of the interval before it, or at turning points. The
derivative of a step is a polynomial with rational coefficients in ``x**stride``. Its real roots are
isolated exactly and with their multiplicities (fmpz_poly.complex_roots), so that all are known.

Worst errors for other targets than 1. Branch and bound over pieces of ``[lower, upper]``. On each
piece the composition and its derivative are enclosed by Horner's rule and by Taylor's expansion
about the middle, and the target and its derivative by `Target.enclose`. On pieces where the error
is monotone it is largest at an end; the piece with the largest bound is halved first (R. E. Moore,
R. B. Kearfott, M. J. Cloud, Introduction to Interval Analysis, SIAM 2009, ch. 6 and 11).
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from flint import arb, arb_poly, ctx, fmpq, fmpq_poly

from polarlib._schedules.targets import TARGETS

# For targets other than 1: relative gap at which to stop, and pieces after which the bounds are
# returned as they are (about a second). Chosen by experiment.
GAP, PIECES = 2.0**-48, 4000
LARGEST = sys.float_info.max

_LOCK = threading.RLock()

Step = tuple[float, ...]


@contextlib.contextmanager
def working_precision(bits: int) -> Iterator[None]:
    """Set flint's precision, which is one number for all threads, and restore it.

    Another user of flint who changes it meanwhile makes balls wider or narrower, never wrong.
    """
    with _LOCK:
        before, ctx.prec = ctx.prec, bits
        try:
            yield
        finally:
            ctx.prec = before


def _largest_double_below(x: arb) -> float:
    """Return the largest double that is at most every number in x."""
    if not x.is_finite():
        return -math.inf
    m, e = map(int, x.lower().man_exp())
    excess = max(m.bit_length() - 53, -1074 - e, 0)  # the smallest subnormal is 2**-1074
    try:
        return math.ldexp(m >> excess, e + excess)
    except OverflowError:
        return LARGEST if m > 0 else -math.inf


def floats(x: arb) -> tuple[float, float]:
    """Return the narrowest doubles around a ball; infinite for one that is not finite.

    Examples
    --------
    >>> floats(arb(1) / 4)
    (0.25, 0.25)
    """
    return _largest_double_below(x), 0.0 - _largest_double_below(-x)


# -- images ----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _polynomial(step: Step) -> arb_poly:
    return arb_poly(list(step))


def _value(step: Step, x: arb, stride: int) -> arb:
    """Enclose ``sum c_i x**(1 + stride i)``."""
    return x * _polynomial(step)(x**stride)


@functools.lru_cache(maxsize=1024)
def _turning_points(step: Step, stride: int, bits: int) -> list[arb]:
    """Return all real zeros of a step's derivative, as balls of `bits` bits."""
    slope = [(1 + stride * i) * fmpq(*c.as_integer_ratio()) for i, c in enumerate(step)]
    with working_precision(bits):
        return real_roots(slope, stride)


def real_roots(coefficients: Sequence[fmpq], stride: int) -> list[arb]:
    """Return balls around all real x with ``sum c_i x**(stride i) = 0``.

    For even `stride` those of both signs. None for the zero polynomial.

    Examples
    --------
    >>> [floats(x) for x in real_roots([fmpq(-1), fmpq(4)], 2)]
    [(0.5, 0.5), (-0.5, -0.5)]
    """
    whole = fmpq_poly(list(coefficients)).numer()
    if whole.degree() < 1:
        return []
    # The imaginary part of a real root is exactly zero.
    roots = cast("list[tuple[Any, int]]", whole.complex_roots())
    real = [y.real for y, _ in roots if y.imag.is_zero()]
    if stride % 2:
        return [abs(y).root(stride) * (-1 if y < 0 else 1) for y in real]
    return [sign * abs(y).root(stride) for y in real if not y < 0 for sign in (1, -1)]


def _largest(values: Sequence[arb], perhaps: Sequence[arb]) -> arb:
    """Enclose the largest of numbers, some of which are perhaps not there."""
    most = functools.reduce(arb.max, values)
    for value in perhaps:
        most = most.union(most.max(value))
    return most


def extremes(
    value: Callable[[arb], arb], turns: Sequence[arb], lower: arb, upper: arb
) -> tuple[arb, arb]:
    """Enclose the least and the largest value on an interval of a function that turns at `turns`.

    Examples
    --------
    >>> [floats(end) for end in extremes(lambda x: x * x, [arb(0)], arb(-1), arb(2))]
    [(0.0, 0.0), (4.0, 4.0)]
    """
    values, perhaps = [value(lower), value(upper)], list[arb]()
    for t in turns:
        if t < lower or t > upper:
            continue
        known = values if t >= lower and t <= upper else perhaps
        known.append(value(t))
    return -_largest([-v for v in values], [-v for v in perhaps]), _largest(values, perhaps)


def image(steps: Sequence[Step], lower: arb, upper: arb, stride: int) -> tuple[arb, arb]:
    """Enclose the least and the largest value of a composition on an interval.

    Examples
    --------
    >>> [floats(end) for end in image([(1.5, -0.5)], arb(0), arb(1.25), 2)]
    [(0.0, 0.0), (1.0, 1.0)]
    """
    lo, hi = lower, upper
    for step in steps:
        turns = _turning_points(step, stride, ctx.prec)
        value = functools.partial(_value, step, stride=stride)
        lo, hi = extremes(value, turns, lo, hi)
    return lo, hi


# -- targets other than 1 --------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _all_powers(step: Step, stride: int) -> arb_poly:
    """Return a step as a polynomial in x itself."""
    coefficients = [0.0] * (2 + stride * (len(step) - 1))
    coefficients[1::stride] = step
    return arb_poly(coefficients)


def _value_and_slope(step: Step, x: arb, stride: int) -> tuple[arb, arb]:
    """Enclose values and derivatives on a ball, by Horner's rule and by Taylor's expansion."""
    p = _all_powers(step, stride)
    about_middle, offset = p(arb_poly([x.mid(), 1])), arb(0, x.rad())
    value = p(x).intersection(about_middle(offset))
    return value, p.derivative()(x).intersection(about_middle.derivative()(offset))


def _size(x: arb) -> tuple[float, float]:
    """Return doubles around the absolute values in a ball."""
    if not x.is_finite():
        return 0.0, math.inf
    return _largest_double_below(x.abs_lower()), floats(x.abs_upper())[1]


def worst_error(
    steps: Sequence[Step],
    lower: float,
    upper: float,
    stride: int,
    kind: str,
    parameter: float,
    divisor: float,
) -> tuple[float, float]:
    """Return bounds of the largest ``|target(x) - s(x / divisor)|`` on [lower, upper], 0 <= lower.

    Examples
    --------
    >>> lo, hi = worst_error([(0.5,)], 0.0, 2.0, 2, "clip", 0.0, 1.0)
    >>> lo <= 0.5 <= hi < 0.5000001
    True
    """
    target = TARGETS[kind]
    if target.value(lower, parameter) == math.inf and lower == 0:
        return math.inf, math.inf

    @functools.cache
    def error(x: float) -> arb:
        value = arb(x) / divisor
        for step in steps:
            value = _value(step, value, stride)
        return target.enclose(arb(x), arb(x), parameter)[0] - value

    def bound(a: float, b: float) -> tuple[float, bool]:
        """Bound the error on a piece, and find whether it is monotone there."""
        x = arb(a).union(arb(b))
        value, slope = x / divisor, 1 / arb(divisor)
        for step in steps:
            value, factor = _value_and_slope(step, value, stride)
            slope *= factor
        aim, steep = target.enclose(arb(a), arb(b), parameter)
        steep -= slope
        if steep >= 0 or steep <= 0:
            return max(_size(error(a))[1], _size(error(b))[1]), True
        z = _middle(a, b)
        mean = error(z) + steep * (x - z)
        return min(_size(aim - value)[1], _size(mean)[1]), False

    cuts = [lower, *(x for x in target.corners if lower < x < upper), upper]
    best = max(_size(error(x))[0] for x in cuts)
    heap, settled = [(-math.inf, a, b) for a, b in itertools.pairwise(cuts)], 0.0
    for _ in range(PIECES):
        if not heap or -heap[0][0] <= max(best * (1 + GAP), settled) or best == LARGEST:
            break
        above, a, b = heapq.heappop(heap)
        z = _middle(a, b)
        if not a < z < b:
            settled = max(settled, min(-above, bound(a, b)[0]))
            continue
        best = max(best, _size(error(z))[0])
        for piece in ((a, z), (z, b)):
            most, is_monotone = bound(*piece)
            if is_monotone:
                settled = max(settled, most)
            else:
                heapq.heappush(heap, (-most, *piece))
    return best, max(best, settled, -heap[0][0] if heap else 0.0)


def _middle(a: float, b: float) -> float:
    """Return a double between two; by size where they are far apart."""
    if b > 4 * a > 0:
        return math.sqrt(a) * math.sqrt(b)
    return b / 16 if a == 0 else a + (b - a) / 2
