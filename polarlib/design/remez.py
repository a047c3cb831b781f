"""The best odd polynomial on an interval, by exchange: one step of an iteration.

For 0 < l < u and degree 2q + 1 there is one odd polynomial p that minimises ``max |1 - p|`` on
[l, u]; its error takes the value E with alternating signs at q + 2 points (Chebyshev). The
functions x, x**3, ..., x**(2q+1) are a Chebyshev system there, and on every levelled reference that
contains l and u the derivative p' has exactly q zeros in (l, u), so the exchange
{l, zeros of p', u} loses no extremum. It converges quadratically.

All of this holds for x, x**(1+p), ..., x**(1+qp) too, the steps of p-th roots; p is the stride, 2
by default.

Everything is computed on [l/u, 1] in the variable t, which maps y = x**p to [-1, 1]. Sums have
terms of one sign wherever possible: rho = (1 - E) / (1 + E) is a quotient of two such sums,
accurate to rounding however small l is.
"""

from __future__ import annotations

import contextlib
import decimal
import functools
import math
import numbers
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from polarlib._schedules.images import multiple_precision
from polarlib._schedules.validity import MOST_STRIDE
from polarlib.arrays.checks import count, double, items, number, shown
from polarlib.design.doubles import image_of_rounded, lifted
from polarlib.files.tables import html_table

# Default number of digits: those of a double, and one for its last rounding.
DIGITS = 17
# Digits that double precision may lose before multiple precision is used; then 12 remain.
LOSS = 2.5
# The same in searches, whose result is designed again.
ROUGH_LOSS = 6.0
EXCHANGES = 60
# Decimal exponents that coefficients and their products with powers of `upper` stay within.
EXPONENTS = 280
# Largest number of terms of a step, and of digits: such a step takes about ten seconds.
MOST_TERMS, MOST_DIGITS = 50, 300


class Minimax(NamedTuple):
    """Best odd polynomial of a degree on an interval, with its equioscillation.

    Attributes
    ----------
    coefficients : tuple
        Of ascending powers 1 + stride i; floats, or mpmath numbers if `digits` was given.
    error : number
        E, the largest ``|1 - p|`` on the interval.
    complement : number
        1 - E, the value at the lower end, without cancellation.
    rho : number
        ``(1 - E) / (1 + E)``, the quotient of the ends of the image, without cancellation.
    extrema : tuple
        The q + 2 points where ``|1 - p| = E``, ascending; the error p - 1 is negative at the first.
    """

    coefficients: tuple[Any, ...]
    error: Any
    complement: Any
    rho: Any
    extrema: tuple[Any, ...]

    def _repr_html_(self) -> str:
        return html_table("Best polynomial", self._asdict())


class _Arithmetic(NamedTuple):
    """Type of numbers of a computation: its constructor, n-th root, and unit roundoff."""

    number: Callable[[Any], Any]
    root: Callable[[Any, int], Any]
    unit: Any


_DOUBLE = _Arithmetic(float, lambda x, n: math.sqrt(x) if n == 2 else x ** (1 / n), 2.0**-53)


@functools.lru_cache(maxsize=32)
def _multiple(digits: int) -> _Arithmetic:
    context = multiple_precision(digits)
    return _Arithmetic(context.mpf, context.root, context.mpf(10) ** -digits)


def check_degree(degree: Any, stride: int = 2) -> int:
    """Return a degree 1 + stride q, q at least 1, as an int: for stride 2 an odd one from 3 on.

    Raises
    ------
    ValueError
        For anything else.
    """
    allowed = (
        "an odd integer of at least 3"
        if stride == 2
        else f"1 + {stride} k: {', '.join(str(1 + stride * k) for k in (1, 2, 3))}, ..."
    )
    found = count("the degree", degree, 1 + stride, what=allowed)
    if (found - 1) % stride:
        raise ValueError(f"the degree must be {allowed}, got {shown(found)}")
    return count("the degree", found, most=1 + stride * MOST_TERMS)


def check_degrees(degrees: Any, stride: int = 2) -> list[int]:
    """Return the degrees of a composition as a list of ints.

    Raises
    ------
    ValueError
        For an empty list, another type, or a degree that :func:`check_degree` refuses.
    """
    found = items("degrees", degrees, "a list of odd degrees, one a step")
    return [check_degree(d, stride) for d in found]


def check_interval(lower: Any, upper: Any = 1.0) -> tuple[float, float]:
    """Return the ends of an interval as floats.

    Raises
    ------
    ValueError
        Unless ``0 < lower < upper < inf``.
    """
    l, u = double(lower), double(upper)
    if l is None or u is None or not 0 < l < u < math.inf:
        raise ValueError(
            f"the interval needs 0 < lower < upper, got lower={shown(lower)}, upper={shown(upper)}"
        )
    return l, u


def check_range(degree: int, upper: float) -> None:
    """Raise ValueError where coefficients for an upper end leave the range of doubles."""
    if abs(degree * math.log10(upper)) > EXPONENTS:
        raise ValueError(
            f"coefficients of degree {degree} for upper={shown(upper)} leave the range of doubles; "
            "scale the input so that upper is about 1, or give digits"
        )


def _levelled(
    t: Sequence[Any], low: Any, stride: int, f: _Arithmetic
) -> tuple[list[Any], Any, Any, list[Any]]:
    """Return points x, E and rho of a reference t in [-1, 1], and w = p(x) / x there.

    |lambda_i| = 1 / (x_i prod |t_i - t_j|) annihilates x times polynomials of degree q in t, with
    alternating signs; so rho = S_odd / S_even, the sums of |lambda| by parity.
    """
    power = low**stride
    half = (1 - power) / 2
    x = [low, *(f.root(power + half * (1 + s), stride) for s in t[1:-1]), f.number(1)]
    sums = [f.number(0), f.number(0)]
    for i, s in enumerate(t):
        product = x[i]
        for j, r in enumerate(t):
            if i != j:
                product = product * abs(s - r)
        sums[i % 2] = sums[i % 2] + 1 / product
    even, odd = sums
    total = even + odd
    error = (even - odd) / total
    # 1 - E and 1 + E, each by its own sum.
    values = (2 * odd / total, 2 * even / total)
    return x, error, odd / even, [values[i % 2] / p for i, p in enumerate(x)]


def interpolate(t: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """Return the monomial coefficients in t of an interpolating polynomial, by Newton's form."""
    d, n = list(values), len(t)
    for k in range(1, n):
        for i in range(n - 1, k - 1, -1):
            d[i] = (d[i] - d[i - 1]) / (t[i] - t[i - k])
    w = [d[-1]]
    for i in range(n - 2, -1, -1):  # w <- w (t - t_i) + d_i
        shifted = [-t[i] * c for c in w] + [0 * d[0]]
        for k, c in enumerate(w):
            shifted[k + 1] = shifted[k + 1] + c
        shifted[0] = shifted[0] + d[i]
        w = shifted
    return w


def _roots(d: Sequence[Any], start: Sequence[Any], f: _Arithmetic) -> list[Any] | None:
    """Return all roots of a polynomial with distinct real roots, ascending (Ehrlich and Aberth)."""
    z = list(start)
    slope = [k * c for k, c in enumerate(d)][1:]
    # The correction is cubically small: below the cube root of the unit, one more is the last.
    last = float(f.unit**0.34)
    for _ in range(100):
        moved = 0.0
        for i, s in enumerate(z):
            value, derivative = d[-1], slope[-1]
            for c in reversed(d[:-1]):
                value = value * s + c
            for c in reversed(slope[:-1]):
                derivative = derivative * s + c
            repulsion = sum(1 / (s - r) for j, r in enumerate(z) if j != i)
            divisor = derivative - value * repulsion
            if divisor == 0:
                return None
            step = value / divisor
            z[i] = s - step
            moved = max(moved, abs(float(step)))
        if moved < last:
            return sorted(z)
    return None


def _exchange(
    q: int, low: Any, start: Sequence[Any], f: _Arithmetic, tol: float, stride: int = 2
) -> Any:
    """Iterate from a reference; return (w, E, rho, t, x) with w in powers of t, or None if lost."""
    power = low**stride
    half = (1 - power) / 2
    kappa = (1 + power) / (1 - power)
    t, previous, found = [f.number(s) for s in start], math.inf, None
    for _ in range(EXCHANGES):
        x, error, rho, values = _levelled(t, low, stride, f)
        w = interpolate(t[1:], values[1:])
        # dp/dx = 0: w + p (kappa + t) w' = 0, from y = (kappa + t) (1 - l^p) / 2.
        d = [(1 + stride * k) * c for k, c in enumerate(w)]
        for k in range(q):
            d[k] = d[k] + stride * kappa * (k + 1) * w[k + 1]
        roots = _roots(d, t[1:-1], f)
        if roots is None or not -1 < roots[0] <= roots[-1] < 1:
            return None
        worst = error
        for s in roots:
            value = w[-1]
            for c in reversed(w[:-1]):
                value = value * s + c
            worst = max(worst, abs(1 - f.root(power + half * (1 + s), stride) * value))
        excess = float((worst - error) / error) if error > 0 else math.inf
        found = w, error, rho, t, x
        t = [t[0], *roots, t[-1]]
        if excess <= tol:
            # The zeros of p' are the better reference: the level is second order in its error.
            x, error, rho, values = _levelled(t, low, stride, f)
            return interpolate(t[1:], values[1:]), error, rho, t, x
        if excess >= previous and excess < 1e-6:  # rounding is reached
            return found
        previous = excess
    return None


def in_x(w: Sequence[Any], low: Any, stride: int) -> list[Any]:
    """Convert powers of t = (y - m) / h to powers of y = x**stride, by Horner's rule."""
    power = low**stride
    h, m = (1 - power) / 2, (1 + power) / 2
    c = [w[-1]]
    for a in reversed(w[:-1]):
        up = [0 * a, *(v / h for v in c)]
        for k, v in enumerate(c):
            up[k] = up[k] - m * v / h
        up[0] = up[0] + a
        c = up
    return c


def best(
    degree: int, lower: Any, upper: Any = 1.0, *, digits: int | None = None, stride: int = 2
) -> Minimax:
    """Compute the best odd polynomial on an interval, with its error and equioscillation points.

    Parameters
    ----------
    degree : int
        Odd, at least 3; in general 1 + stride q with q at least 1.
    lower, upper : number
        The interval, ``0 < lower < upper``.
    digits : int, optional
        Number of correct decimal digits. By default the results are doubles, computed in double
        precision if that is accurate to 12 digits, otherwise in multiple precision. If given, they
        are mpmath numbers.
    stride : int, optional
        The powers are 1, 1 + stride, 1 + 2 stride, ...: 2 for odd polynomials, p for p-th roots.

    Returns
    -------
    Minimax
        Coefficients, error and equioscillation points.

    Raises
    ------
    ValueError
        For an even degree (one that is not 1 + stride q), one below 3, an invalid interval. Without
        `digits` also for a degree 'beyond double coefficients': rounding them to doubles adds more
        than max(5 % of E, 2^-50) to the error.
    RuntimeError
        If the exchange does not converge; no such case is known.

    Notes
    -----
    Degree 3 in closed form: ``alpha = sqrt(3 / (l**2 + l u + u**2))``,
    ``s = l u (l + u) alpha**3``, ``E = (2 - s) / (2 + s)``.
    Exchange: E. Remez (1934); L. Veidinger, Numer. Math. 2 (1960) 99-105. Greedy compositions of
    these steps: N. Amsel, D. Persson, C. Musco, R. M. Gower, arXiv 2505.16932.

    Examples
    --------
    >>> b = best(5, 1e-3)
    >>> round(b.error, 12), len(b.extrema)
    (0.991529696304, 4)
    >>> str(best(5, "0.001", digits=30).error)[:22]
    '0.99152969630420800852'
    """
    if digits is None:
        b = ideal(degree, lower, upper, stride=stride)
        image_of_rounded(b.coefficients, (b.complement, 2 - b.complement), lower, upper, stride)
        return b
    stride = count("stride", stride, most=MOST_STRIDE)
    degree = check_degree(degree, stride)
    digits = count("digits", digits, most=MOST_DIGITS)
    ends = _exact("lower", lower), _exact("upper", upper)
    check_interval(*map(float, ends))
    return _in_digits((degree - 1) // stride, *ends, digits, stride)


def _exact(name: str, value: Any) -> Any:
    """Return a number with all its digits, which may be given as text."""
    if isinstance(value, str) and re.fullmatch(r"(\d+\.?|\d*\.\d+)(e[+-]?\d{1,3})?", value):
        return value
    x = number(name, value)
    if isinstance(value, decimal.Decimal):
        return str(value)
    return value if isinstance(value, numbers.Real) else x


def ideal(degree: int, lower: Any, upper: Any = 1.0, *, stride: int = 2) -> Minimax:
    """Compute the best polynomial as :func:`best` in doubles, even if they do not hold it.

    Error, complement, rho and extrema are correct for any degree.

    Examples
    --------
    >>> round(ideal(51, 0.1).error, 6)
    0.001976
    """
    stride = count("stride", stride, most=MOST_STRIDE)
    degree = check_degree(degree, stride)
    l, u = check_interval(lower, upper)
    check_range(degree, u)
    return _best_double((degree - 1) // stride, l, u, stride)


def rough(degree: int, lower: float, upper: float, fine: float = 0.0) -> Minimax:
    """Compute the best polynomial for searches: values to about nine digits of max(E, fine).

    If the error is below `fine`, the polynomial may be any with an error of that size.

    Examples
    --------
    >>> abs(rough(9, 1e-3, 1.0).error / best(9, 1e-3).error - 1) < 1e-9
    True
    """
    q, low = degree // 2, lower / upper
    if q >= 3 and low < 0.95:
        start = chebyshev(q)
        x, error, rho, values = _levelled(start, low, 2, _DOUBLE)
        found = None
        if error < fine:
            found = interpolate(start[1:], values[1:]), error, rho, start, x
        else:
            with contextlib.suppress(ArithmeticError, ValueError):
                found = _exchange(q, low, start, _DOUBLE, 1e-9)
        if found is not None and _lost(q, low, max(found[1], fine)) < ROUGH_LOSS:
            return _scaled(found, low, upper, float, 2)
    return best(degree, lower, upper)


def chebyshev(q: int) -> list[float]:
    return [-math.cos(math.pi * i / (q + 1)) for i in range(q + 2)]


def _lost(q: int, low: float, error: float) -> float:
    """Estimate the decimal digits that double precision loses, by experiment."""
    return 0.5 * q - (q + 1) * math.log10(1 - low) + max(0.0, -math.log10(error)) - 1


def _scaled(found: Any, low: Any, upper: Any, number: Callable[[Any], Any], stride: int) -> Minimax:
    """Undo the scaling to [l/u, 1]."""
    w, error, rho, _, x = found
    c = [number(v) / upper ** (stride * i + 1) for i, v in enumerate(in_x(w, low, stride))]
    complement = 2 * rho / (1 + rho)
    return Minimax(
        tuple(number(v) for v in c),
        number(error),
        number(complement),
        number(rho),
        tuple(number(v) * upper for v in x),
    )


def _positive(
    c: tuple[float, ...], complement: float, lower: float, upper: float, stride: int
) -> tuple[float, ...]:
    """Return coefficients of which rounding did not make p negative between its zeros."""
    rounding = 2.0**-52 * sum(abs(v) * upper ** (stride * i + 1) for i, v in enumerate(c))
    return c if complement > 4 * rounding else lifted(c, lower, upper, stride)[0]


def _best_double(q: int, lower: float, upper: float, stride: int) -> Minimax:
    low = lower / upper
    # The estimate of lost digits was made for stride 2.
    if stride == 2 and q <= 3 and low < 0.99:
        try:
            found = _exchange(q, low, chebyshev(q), _DOUBLE, 1e-9)
        except (ArithmeticError, ValueError):
            found = None
        if found is not None and _lost(q, low, found[1]) < LOSS:
            b = _scaled(found, low, upper, float, stride)
            c = _positive(b.coefficients, b.complement, lower, upper, stride)
            return b._replace(coefficients=c)
    b = _in_digits(q, lower, upper, DIGITS, stride)
    return Minimax(
        _positive(tuple(map(float, b.coefficients)), float(b.complement), lower, upper, stride),
        float(b.error),
        float(b.complement),
        float(b.rho),
        tuple(map(float, b.extrema)),
    )


def working_digits(q: int, low: float, digits: int, stride: int = 2) -> int:
    """Return the decimal digits to compute with for a number of correct ones, on [low, 1].

    For cancellation in w, in its powers of x**p, and in E; and guard digits.
    """
    narrow = -math.log10(max(1 - low, 1e-17))
    return math.ceil(digits + (2 * q + 4) * narrow - stride / 2 * math.log10(low) + 2 * q + 10)


def _in_digits(q: int, lower: Any, upper: Any, digits: int, stride: int) -> Minimax:
    f = _multiple(working_digits(q, float(lower) / float(upper), digits, stride))
    l, u = f.number(lower), f.number(upper)
    found = _exchange(q, l / u, chebyshev(q), f, 10.0 ** -(digits / 2 + 1), stride)
    if found is None:
        raise RuntimeError(
            f"the exchange of degree {1 + stride * q} on [{lower}, {upper}] did not converge; "
            "please report it"
        )
    return _scaled(found, l / u, u, f.number, stride)
