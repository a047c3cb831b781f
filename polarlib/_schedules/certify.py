"""Certificates: proven bounds on the worst error of a composition, for its coefficients as stored.

A double is an exact binary fraction, so ``max |target(x) - s(x)|`` on an interval of doubles is one
real number. :func:`certify` encloses it between two doubles. No step of the argument rests on
sampling, on an approximate root, or on rounding that happened to be small.

Arithmetic. An interval is three integers ``(lo, hi, e)``: all numbers from ``lo 2**e`` to
``hi 2**e``. Sums and products of integers are exact; where they grow beyond a number of bits, the
lower end is rounded down and the upper end up. So each computed interval contains the exact result
for all numbers in the operands (R. E. Moore, R. B. Kearfott, M. J. Cloud, Introduction to Interval
Analysis, SIAM 2009, ch. 2). Exponents are integers without bound: nothing overflows on the way.

Target 1 ("polar"). The image of an interval is an interval, and it is followed step by step, each
of its two ends as a narrow interval. For ``x > 0`` and ``y = x**stride`` the derivative of a step
is a polynomial q in y. Its Bernstein coefficients on a piece enclose its values there (convex
hull), so a piece on which they have one sign holds no turning point, and the step is monotone. All
other pieces are halved by de Casteljau's rule, until the step varies on them by less than the
rounding: ``|p(x) - p(z)| <= max |q| |x - z|``. So an end of the image is the value at an end of the
interval, or on a piece that is left; multiple zeros of q need no care. The precision is doubled
until the result is as narrow as doubles can tell. (G. Farin, Curves and Surfaces for CAGD, 5th ed.,
2002, ch. 5, on Bernstein coefficients.)

Other targets. Branch and bound over pieces of ``[lower, upper]``: the composition and its
derivative are evaluated on each piece in interval arithmetic, in the mean value form (Moore,
Kearfott, Cloud, ch. 6); pieces on which the error is monotone count by their ends, and the piece
with the largest bound is halved first. Values of the target are mpmath's with 30 bits more than are
used; that they are correct to all but these 30 is an assumption for powers, and a fact for the
other targets, which take sums, products, quotients and square roots, correctly rounded.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polarlib._schedules.targets import parse_target

__all__ = ["Certificate", "certify"]


# Bits to begin with, and to give up at: 128 do for most, 256 for errors far below 1e-16. Chosen by
# experiment.
BITS, MOST_BITS = 128, 4096
# For targets other than 1: relative gap at which to stop, and pieces after which the bounds are as
# they are (a second or two). Chosen by experiment.
GAP, PIECES = 2.0**-24, 4000
# Bits that mpmath's functions may lose; it asks itself for ten more than it returns.
GUARD = 30
LARGEST = sys.float_info.max

# (lo, hi, e), the numbers from lo 2**e to hi 2**e.
Interval = tuple[int, int, int]
ZERO, ONE = (0, 0, 0), (1, 1, 0)


@dataclass(frozen=True, repr=False)
class Certificate:
    """Proven bounds on the worst error of a composition on an interval.

    Attributes
    ----------
    lower, upper : float
        ``lower <= max |target(x) - s(x)| <= upper``; infinity above where doubles end.
    complement : tuple of float
        Bounds, lower and upper, of 1 minus that error. For the target 1 without cancellation:
        where the error is near 1, this is what tells schedules apart.
    image : tuple of tuples of float
        Bounds of the smallest and bounds of the largest value of s on the interval.

    Examples
    --------
    >>> Certificate(0.25, 0.5, (0.5, 0.75), ((0.5, 0.75), (1.0, 1.0)))
    Certificate(0.25 <= error <= 0.5)
    """

    lower: float
    upper: float
    complement: tuple[float, float]
    image: tuple[tuple[float, float], tuple[float, float]]

    @property
    def width(self) -> float:
        """How much the error is left undetermined, ``upper - lower``; 0 if both are infinite."""
        return self.upper - self.lower if self.lower < math.inf else 0.0

    def __repr__(self) -> str:
        return f"Certificate({self.lower!r} <= error <= {self.upper!r})"


def certify(
    steps: Sequence[Sequence[float]],
    lower: float,
    upper: float,
    *,
    stride: int = 2,
    target: str = "polar",
    divisor: float = 1.0,
) -> Certificate:
    """Enclose the worst error of a composition: ``max |target(x) - s(x / divisor)|``.

    Parameters
    ----------
    steps : sequence of sequences of float
        Coefficients, first step first: ``(c0, c1, ...)`` is ``sum c_i x**(1 + stride i)``.
    lower, upper : float
        The interval, ``lower <= upper``, finite; from 0 up for targets other than "polar".
    stride : int, optional
        Distance of the powers; 2 is the odd polynomials.
    target : str, optional
        What s approximates, as `parse_target` reads it: "polar" is 1.
    divisor : float, optional
        What x in [lower, upper] is divided by before the first step.

    Returns
    -------
    Certificate
        For "polar", bounds as narrow as doubles can tell. For other targets a relative gap of
        6e-8, or a wider one where the work for that is too much. Where the error is infinite,
        a negative power at 0, both bounds are.

    Raises
    ------
    ValueError
        For no steps or ones that are not finite numbers, a bad interval, stride, target or divisor.

    Notes
    -----
    See the head of the module for what is proven and how.

    Examples
    --------
    The worst error of ``1.5 x - 0.5 x**3`` on [0.5, 1] is 1 - 0.6875, at the lower end:

    >>> certify([(1.5, -0.5)], 0.5, 1.0)
    Certificate(0.3125 <= error <= 0.3125)
    >>> c = certify([(0.5,)], 0.0, 2.0, target="clip")
    >>> c.lower <= 0.5 <= c.upper
    True
    """
    try:
        steps = [tuple(float(c) for c in step) for step in steps]
        l, u, divisor = float(lower), float(upper), float(divisor)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            "certify needs steps as lists of coefficients, a divisor and an interval of numbers, "
            f"got steps={steps!r}, lower={lower!r}, upper={upper!r}, divisor={divisor!r}"
        ) from None
    if not steps or not all(step and all(map(math.isfinite, step)) for step in steps):
        raise ValueError(
            f"certify needs at least one step, each of finite coefficients, got {steps!r}"
        )
    if isinstance(stride, bool) or not hasattr(stride, "__index__") or stride < 1:
        raise ValueError(f"stride must be an integer of at least 1, got {stride!r}")
    stride = operator.index(stride)
    kind, parameter = parse_target(target)
    if not -math.inf < l <= u < math.inf or (kind != "polar" and l < 0):
        at_least = "" if kind == "polar" else f" and, for the target {target!r}, 0 <= lower"
        raise ValueError(
            f"certify needs finite lower <= upper{at_least}, got [{lower!r}, {upper!r}]"
        )
    if not 0 < divisor < math.inf:
        raise ValueError(f"divisor must be a positive finite number, got {divisor!r}")
    chain = [[_exact(c) for c in step] for step in steps]
    bits = BITS
    while True:
        # The division is one more step, of degree 1.
        whole = chain if divisor == 1 else [[_reciprocal(divisor, bits)], *chain]
        lo, hi = _image(whole, l, u, stride, bits)
        error = _maximum([_add(ONE, _negative(lo), bits), _add(hi, (-1, -1, 0), bits)])
        complement = _minimum([lo, _add((2, 2, 0), _negative(hi), bits)])
        found = [_floats(v) for v in (lo, hi, error, complement)]
        wanted = found if kind == "polar" else found[:2]
        if bits >= MOST_BITS or all(_is_narrow(*v) for v in wanted):
            break
        bits *= 2
    image = found[0], found[1]
    if kind == "polar":
        (least, most), (low, high) = found[2:]
        return Certificate(max(0.0, least), most, (low, min(1.0, high)), image)
    least, most = _branch_and_bound(whole, l, u, stride, kind, parameter, bits)
    rest = [
        _floats(_add(ONE, _exact(-v), bits)) if v < math.inf else (-math.inf, -math.inf)
        for v in (most, least)
    ]
    return Certificate(least, most, (rest[0][0], rest[1][1]), image)


# Interval arithmetic


def _exact(x: float) -> Interval:
    """The interval of one double."""
    if x == 0:
        return ZERO
    m, e = math.frexp(x)
    n = int(m * 2**53)
    return n, n, e - 53


def _reciprocal(x: float, bits: int) -> Interval:
    """Enclose ``1 / x`` for a positive double."""
    n, _, e = _exact(x)
    shift = bits + n.bit_length()
    lo, rest = divmod(1 << shift, n)
    return lo, lo + (rest > 0), -e - shift


def _rounded(lo: int, hi: int, e: int, bits: int) -> Interval:
    excess = max(lo.bit_length(), hi.bit_length()) - bits
    if excess <= 0:
        return lo, hi, e
    return lo >> excess, -(-hi >> excess), e + excess


def _add(a: Interval, b: Interval, bits: int) -> Interval:
    """Sum; the ends are summed each by itself, so a = (m, 0, e), b = (0, n, f) joins two ends."""
    if a[2] < b[2]:
        a, b = b, a
    (al, ah, ae), (bl, bh, be) = a, b
    if al == ah == 0:
        return b
    shift = ae - be
    reach = max(bl.bit_length(), bh.bit_length())
    if shift <= reach + bits + 2:
        return _rounded((al << shift) + bl, (ah << shift) + bh, be, bits)
    # b is below one unit of a's last place, after a is given `bits` more of them.
    al, ah = (al << bits) - (bl < 0), (ah << bits) + (bh > 0)
    return _rounded(al, ah, ae - bits, bits)


def _mul(a: Interval, b: Interval, bits: int) -> Interval:
    (al, ah, ae), (bl, bh, be) = a, b
    if al >= 0 and bl >= 0:
        return _rounded(al * bl, ah * bh, ae + be, bits)
    products = (al * bl, al * bh, ah * bl, ah * bh)
    return _rounded(min(products), max(products), ae + be, bits)


def _negative(a: Interval) -> Interval:
    return -a[1], -a[0], a[2]


def _power(a: Interval, n: int, bits: int) -> Interval:
    lo, hi, e = a
    if n % 2 == 0 and lo < 0:
        lo, hi = max(0, -hi), max(-lo, hi)
    return _rounded(lo**n, hi**n, n * e, bits)


def _between(a: Interval, b: Interval, bits: int = MOST_BITS) -> Interval:
    """From the lower end of a to the upper end of b."""
    if a[2] == b[2]:
        return a[0], b[1], a[2]
    return _add((a[0], 0, a[2]), (0, b[1], b[2]), bits)


def _compare(a: Interval, b: Interval) -> int:
    """Sign of the difference of two intervals of one number each; rounding keeps it."""
    lo, hi, _ = _add(a, _negative(b), 64)
    return (lo > 0) - (hi < 0)


_order = functools.cmp_to_key(_compare)


def _maximum(a: Sequence[Interval], sure: Sequence[Interval] | None = None) -> Interval:
    """Enclose the largest of numbers, some of which (not `sure`) may not be there."""
    low = max(((v[0], v[0], v[2]) for v in (a if sure is None else sure)), key=_order)
    high = max(((v[1], v[1], v[2]) for v in a), key=_order)
    return _between(low, high)


def _minimum(a: Sequence[Interval], sure: Sequence[Interval] | None = None) -> Interval:
    sure = a if sure is None else sure
    return _negative(_maximum([_negative(v) for v in a], [_negative(v) for v in sure]))


def _size(a: Interval) -> tuple[float, float]:
    """Doubles around the absolute values in an interval."""
    lo, hi, e = a
    return max(0.0, _float_below(max(lo, -hi), e)), 0.0 - _float_below(-max(-lo, hi), e)


def _root(a: Interval, n: int, bits: int) -> Interval:
    """n-th root of one number that is not negative."""
    m, _, e = a
    if m == 0 or n == 1:
        return a
    shift = max(0, n * bits - m.bit_length())
    shift += (e - shift) % n
    m <<= shift
    # Newton's iteration on integers falls from above to the floor of the root.
    r = math.isqrt(m) if n == 2 else 1 << -(-m.bit_length() // n)
    while n > 2:
        s = ((n - 1) * r + m // r ** (n - 1)) // n
        if s >= r:
            break
        r = s
    return r, r + (r**n != m), (e - shift) // n


def _float_below(m: int, e: int) -> float:
    """Largest double that is at most m 2**e."""
    excess = max(m.bit_length() - 53, -1074 - e, 0)  # the smallest subnormal is 2**-1074
    try:
        return math.ldexp(m >> excess, e + excess)
    except OverflowError:
        return LARGEST if m > 0 else -math.inf


def _floats(a: Interval) -> tuple[float, float]:
    """Doubles around an interval."""
    lo, hi, e = a
    return _float_below(lo, e), 0.0 - _float_below(-hi, e)


def _is_narrow(lo: float, hi: float) -> bool:
    """Whether two doubles have at most one double between them."""
    return math.nextafter(math.nextafter(lo, math.inf), math.inf) >= hi


def _value(c: Sequence[Interval], x: Interval, stride: int, bits: int) -> Interval:
    """The polynomial ``sum c_i x**(1 + stride i)`` on an interval, by Horner's rule."""
    return _mul(_horner(c, _power(x, stride, bits), bits), x, bits)


def _horner(c: Sequence[Interval], y: Interval, bits: int) -> Interval:
    value = c[-1]
    for v in reversed(c[:-1]):
        value = _add(_mul(value, y, bits), v, bits)
    return value


def _slopes(c: Sequence[Interval], stride: int) -> list[Interval]:
    """Coefficients of the derivative in powers of ``y = x**stride``, exactly."""
    return [((1 + stride * i) * lo, (1 + stride * i) * hi, e) for i, (lo, hi, e) in enumerate(c)]


# Images


def _image(
    steps: Sequence[Sequence[Interval]], lower: float, upper: float, stride: int, bits: int
) -> tuple[Interval, Interval]:
    """Enclosures of the least and the largest value of the composition."""
    lo, hi = _exact(lower), _exact(upper)
    for c in steps:
        values = [_value(c, lo, stride, bits), _value(c, hi, stride, bits)]
        sure = list(values)
        for sign in (1, -1):
            a, b = (lo, hi) if sign > 0 else (_negative(hi), _negative(lo))
            if b[1] <= 0:
                continue
            if a[0] < 0:  # both signs: p(0) = 0 is a value too, and where the halves meet
                values.append(ZERO)
                if a[1] <= 0 <= b[0]:
                    sure.append(ZERO)
            # p(-x) as a polynomial in x: the odd powers change sign.
            mirrored = [
                _negative(v) if sign < 0 and (1 + stride * i) % 2 else v for i, v in enumerate(c)
            ]
            for value, attained in _turns(mirrored, stride, _positive(a), _positive(b), bits):
                values.append(value)
                if attained:
                    sure.append(value)
        lo, hi = _minimum(values, sure), _maximum(values, sure)
    return lo, hi


def _positive(a: Interval) -> Interval:
    return max(a[0], 0), max(a[1], 0), a[2]


# Degrees are the user's, and weights of degree n have n^2 / 2 integers.
@functools.lru_cache(maxsize=64)
def _bernstein(n: int) -> list[list[int]]:
    """Integer weights from the powers of [0, 1] to Bernstein coefficients, times their lcm."""
    scale = math.lcm(*(math.comb(n, i) for i in range(n + 1)))
    return [
        [math.comb(j, i) * (scale // math.comb(n, i)) for i in range(j + 1)] for j in range(n + 1)
    ]


def _floor(m: int, e: int) -> int:
    """Floor of m 2**e."""
    return m << e if e > 0 else m >> -e


def _dot(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(map(operator.mul, a, b))  # the shorter one ends it


def _turns(
    c: Sequence[Interval], stride: int, a: Interval, b: Interval, bits: int
) -> list[tuple[Interval, bool]]:
    """Pieces of [a, b], 0 <= a <= b, between which a step is monotone.

    For each, the enclosure of the step's values on it, and whether it is inside [a, b] for sure.
    """
    # q in s = y / (m 2**e), which is in [0, 1]; a factor s**k changes no sign and is at most 1.
    _, m, e = _rounded(*_power(b, stride, bits), 32)
    terms, power = [], ONE
    for slope in _slopes(c, stride):
        terms.append(_mul(slope, power, bits))
        power = _mul(power, (m, m, e), bits)
    while terms and terms[0][:2] == (0, 0):
        terms.pop(0)
    while terms and terms[-1][:2] == (0, 0):
        terms.pop()
    if len(terms) < 2:
        return []
    unit = max(f + max(-lo, hi).bit_length() for lo, hi, f in terms) - bits
    lows = [_floor(lo, f - unit) for lo, _, f in terms]
    highs = [-_floor(-hi, f - unit) for _, hi, f in terms]
    weights = _bernstein(len(terms) - 1)
    scale = weights[0][0]
    # The exact coefficients lie from `first` up to `first + spread`, in units of 2**unit / scale.
    first = [_dot(row, lows) for row in weights]
    spread = max(_dot(row, highs) - v for row, v in zip(weights, first, strict=True))

    # The ends of [a, b] in s, in units of 2**-places.
    places = bits + scale.bit_length() + 64
    (l0, l1, f), (u0, u1, g) = _power(a, stride, bits), _power(b, stride, bits)
    outer = _floor(l0, f - e + places) // m, -(_floor(-u1, g - e + places) // m)
    inner = -(_floor(-l1, f - e + places) // m), _floor(u0, g - e + places) // m

    found, pieces = [], [(first, 0, 0)]
    while pieces:
        p, depth, index = pieces.pop()
        left, right = index << (places - depth), (index + 1) << (places - depth)
        wide = spread + depth  # each halving rounds down, by less than 1
        least, most = min(p), max(p) + wide
        if right < outer[0] or left > outer[1] or least >= 0 or most <= 0:
            continue
        size = max(-least, most)
        if size >> depth > wide:
            lower, upper = _halves(p)
            pieces += [(upper, depth + 1, 2 * index + 1), (lower, depth + 1, 2 * index)]
            continue
        # |p(x) - p(z)| <= max |q| |x - z|, z the middle in y.
        x0, z, x1 = (
            _root((k * m, k * m, e - depth - 1), stride, bits)
            for k in (2 * index, 2 * index + 1, 2 * index + 2)
        )
        _, across, f = _add(x1, _negative(x0), bits)
        change = -(-size * across // scale)
        value = _add(_value(c, z, stride, bits), (-change, change, f + unit), bits)
        found.append((value, inner[0] <= left and right <= inner[1]))
    return found


def _halves(p: list[int]) -> tuple[list[int], list[int]]:
    """Bernstein coefficients on both halves of a piece, rounded down (de Casteljau)."""
    n = len(p) - 1
    first, second = [p[0]], [p[-1]]
    for level in range(1, n + 1):
        p = [v + w for v, w in itertools.pairwise(p)]
        first.append(p[0] >> level)
        second.append(p[-1] >> level)
    return first, second[::-1]


# Targets other than 1


@functools.lru_cache(maxsize=32)
def _multiple(bits: int) -> Any:
    import mpmath  # lazily: only these targets need it

    context = mpmath.MPContext()
    context.prec = bits
    return context


def _padded(v: Any, bits: int) -> Interval:
    """A number of mpmath's that is not negative, with room for a relative error of 2**-bits."""
    m, e = map(int, v.man_exp)
    return (m << bits) - m, (m << bits) + m, e - bits


def _aim(kind: str, parameter: float, bits: int, x: float) -> tuple[Interval, Interval | None]:
    """Target and its derivative at x >= 0; None where that is infinite."""
    if kind == "clip":
        return _exact(min(x, 1.0)), (ONE if x < 1 else ZERO)
    # An error of the logarithm is multiplied by the exponent.
    f = _multiple(bits + GUARD + max(0, math.frexp(parameter)[1]))
    t, c = f.mpf(x), f.mpf(parameter)
    if kind == "smooth_sign":
        square = t * t + c * c
        size = f.sqrt(square)
        return _padded(t / size, bits), _padded(c * c / (square * size), bits)
    if x == 0:
        return (ONE if c == 0 else ZERO), (None if 0 < c < 1 else ONE if c == 1 else ZERO)
    slope = _padded(abs(c) * t ** (c - 1), bits)
    return _padded(t**c, bits), (slope if c >= 0 else _negative(slope))


def _branch_and_bound(
    steps: Sequence[Sequence[Interval]],
    lower: float,
    upper: float,
    stride: int,
    kind: str,
    parameter: float,
    bits: int,
) -> tuple[float, float]:
    """Bounds on the largest ``|target - s|`` on [lower, upper], 0 <= lower."""
    if kind == "power" and parameter < 0 and lower == 0:
        return math.inf, math.inf
    chain = [(c, _slopes(c, stride)) for c in steps]
    aim = functools.cache(functools.partial(_aim, kind, parameter, bits))

    @functools.cache
    def error(x: float) -> Interval:
        value = _exact(x)
        for c, _ in chain:
            value = _value(c, value, stride, bits)
        return _add(aim(x)[0], _negative(value), bits)

    def bound(a: float, b: float) -> tuple[float, bool]:
        """Bound of the error on a piece, and whether it is monotone there."""
        value, slope = _between(_exact(a), _exact(b), bits), ONE
        for c, d in chain:
            value, factor = _step(c, d, value, stride, bits)
            slope = _mul(slope, factor, bits)
        (at_a, slope_a), (at_b, slope_b) = aim(a), aim(b)
        plain = _add(
            _between(_minimum([at_a, at_b]), _maximum([at_a, at_b])), _negative(value), bits
        )
        most = _size(plain)[1]
        if slope_a is None or slope_b is None:
            return most, False
        if kind == "clip":  # the kink counts for the piece that it ends
            slope_a, slope_b = (ONE, ONE) if b <= 1 else (ZERO, ZERO) if a >= 1 else (ZERO, ONE)
        # The derivative of every target is monotone.
        steep = _between(_minimum([slope_a, slope_b]), _maximum([slope_a, slope_b]))
        steep = _add(steep, _negative(slope), bits)
        if steep[0] >= 0 or steep[1] <= 0:
            return max(_size(error(a))[1], _size(error(b))[1]), True
        z = _middle(a, b)
        offset = _add(_between(_exact(a), _exact(b), bits), _negative(_exact(z)), bits)
        mean = _add(error(z), _mul(steep, offset, bits), bits)
        return min(most, _size(mean)[1]), False

    cuts = [lower, *([1.0] if kind == "clip" and lower < 1 < upper else []), upper]
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
    """A double between two, by size where they are far apart."""
    if b > 4 * a > 0:
        return math.sqrt(a) * math.sqrt(b)
    return b / 16 if a == 0 else a + (b - a) / 2


def _step(
    c: Sequence[Interval], slopes: Sequence[Interval], x: Interval, stride: int, bits: int
) -> tuple[Interval, Interval]:
    """Values and derivatives of a step on an interval, each by the mean value form."""
    y = _power(x, stride, bits)
    bends = [(i * lo, i * hi, e) for i, (lo, hi, e) in enumerate(slopes)][1:] or [ZERO]
    z, offset = _centre(y, bits)
    mean = _add(_horner(slopes, z, bits), _mul(_horner(bends, y, bits), offset, bits), bits)
    slope = _common(mean, _horner(slopes, y, bits), bits)
    z, offset = _centre(x, bits)
    mean = _add(_value(c, z, stride, bits), _mul(slope, offset, bits), bits)
    return _common(mean, _mul(_horner(c, y, bits), x, bits), bits), slope


def _centre(a: Interval, bits: int) -> tuple[Interval, Interval]:
    """The middle of an interval, and the interval about 0."""
    lo, hi, e = a
    return (lo + hi, lo + hi, e - 1), (lo - hi, hi - lo, e - 1)


def _common(a: Interval, b: Interval, bits: int) -> Interval:
    """What two intervals have in common."""
    return _between(_maximum([a, b]), _minimum([a, b]), bits)
