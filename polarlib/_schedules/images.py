"""Steps and their compositions: values, turning points, images of intervals."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from polarlib._schedules.steps import Rational, Step

# Decimal digits for images and errors: the steps are doubles (17 digits) and five to ten of them
# are composed, each losing at most the digits of its slope (about one): 40 leaves guard digits.
DIGITS = 40


def odd_value(step: Sequence[Any], x: Any, stride: int = 2) -> Any:
    """Evaluate a step, a polynomial by Horner's rule in ``x**2``; any type with ``+`` and ``*``.

    Examples
    --------
    >>> odd_value((1.5, -0.5), 1.0)
    1.0
    """
    if isinstance(step, Rational):
        return step(x)
    y = x * x if stride == 2 else x**stride
    value = step[-1]
    for c in reversed(step[:-1]):
        value = value * y + c
    return value * x


def odd_slope(step: Sequence[Any], x: Any, stride: int = 2) -> Any:
    """Evaluate the derivative of a step, in the arithmetic of `x`.

    With p(x) = x P(y), y = x**stride, it is P(y) + stride y P'(y).

    Examples
    --------
    >>> odd_slope((1.5, -0.5), 0.5)
    1.125
    """
    if isinstance(step, Rational):
        return step.derivative(x)
    y = x * x if stride == 2 else x**stride
    value, slope = 0 * y + step[-1], 0 * y
    for c in reversed(step[:-1]):
        slope = slope * y + value
        value = value * y + c
    return value + stride * y * slope


def turning_points(
    step: Step, stride: int = 2, within: tuple[float, float] = (0.0, math.inf)
) -> tuple[float, ...]:
    """Compute the real zeros of a step's derivative in double precision, ascending, maybe repeated.

    Those of a rational step are searched `within` an interval of positive numbers only.

    Examples
    --------
    >>> turning_points((1.5, -0.5))
    (-1.0, 1.0)
    """
    if isinstance(step, Rational):
        return tuple(map(float, step.turning_points(*within)))
    return _turning_points(step, stride)


@functools.lru_cache(maxsize=4096)
def _turning_points(step: tuple[float, ...], stride: int) -> tuple[float, ...]:
    derivative = [(stride * i + 1) * c for i, c in enumerate(step)]
    points = [np.empty(0)]
    while len(derivative) > 1:
        size = abs(derivative[-1]) / (max(map(abs, derivative)) or 1.0)
        if size > 1e-200:  # smaller coefficients only add turning points beyond 1e100
            y = np.roots(derivative[::-1])
            # A double root may be computed as a complex pair: its real part is a turning point to
            # within the square root of the rounding error. Additional points do no harm.
            points.append(y.real[np.abs(y.imag) <= 1e-6 * np.abs(y)])
        if size > 1e-8:
            break
        # A very large root loses the others to rounding: these are nearly the roots of the rest.
        derivative.pop()
    y = np.concatenate(points)
    if stride % 2 == 0:  # an odd polynomial turns at -t wherever it turns at t
        y = y[y > 0]
        t = np.sqrt(y) if stride == 2 else y ** (1 / stride)
        t = np.concatenate([-t, t])
    else:
        t = np.sign(y) * np.abs(y) ** (1 / stride)
    return tuple(float(v) for v in np.sort(t))


def _refined(t: Any, slope: Sequence[Any], stride: int) -> Any:
    """Take two Newton steps on p', from an error of 1e-16 to 1e-32, which p has squared."""
    for _ in range(2):
        y = t**stride
        value, curvature = slope[-1], 0 * t
        for c in reversed(slope[:-1]):
            curvature = curvature * y + value
            value = value * y + c
        if curvature == 0:
            break
        t -= value / (stride * t ** (stride - 1) * curvature)
    return t


# Users choose the digits. A context that left the cache is created again in a millisecond.
@functools.lru_cache(maxsize=32)
def multiple_precision(digits: int = DIGITS) -> Any:
    """Return the shared context of mpmath with a number of digits; it must not be changed.

    Threads share it: no function here changes its precision.

    Examples
    --------
    >>> multiple_precision(30).dps
    30
    """
    import mpmath  # here, as most of the library needs double precision only

    context = mpmath.MPContext()
    context.dps = digits
    # mpmath pickles the numbers of its global context only.
    context.mpf.__reduce_ex__ = lambda x, protocol: (_number, (digits, *map(int, x._mpf_)))
    return context


def _number(digits: int, *parts: int) -> Any:
    """Make a number of a context from its sign, mantissa, exponent and bits, for unpickling."""
    return multiple_precision(digits).mpf(parts)


def divided(
    lower: float, upper: float, divisor: float, *, extended: bool = True
) -> tuple[Any, Any]:
    """Return the ends of an interval over a divisor, as mpmath numbers of 40 digits or as floats.

    Examples
    --------
    >>> divided(0.5, 1.0, 2.0, extended=False)
    (0.25, 0.5)
    """
    number = multiple_precision().mpf if extended else float
    return number(lower) / divisor, number(upper) / divisor


def odd_images(
    steps: Iterable[Sequence[Any]],
    lower: Any,
    upper: Any,
    *,
    extended: bool = True,
    stride: int = 2,
) -> Iterator[tuple[Any, Any]]:
    """Compute the images of ``[lower, upper]`` after each step, not rounded to doubles.

    The image of an interval is an interval, so it is followed step by step: its ends are values at
    the ends and at the turning points between them. Nothing but the brackets of the turning points
    of rational steps is sampled. What a step makes of the
    rounding of its upper end, the next one multiplies: an image is only as good as its digits.

    Parameters
    ----------
    steps, lower, upper, extended, stride
        As :func:`odd_image` takes them.

    Yields
    ------
    lo, hi : number
        mpmath numbers of 40 digits, or floats.
    """
    number = multiple_precision().mpf if extended else float
    lo, hi = number(lower), number(upper)
    for step in steps:
        if isinstance(step, Rational):
            turns = map(number, turning_points(step, stride, (float(lo), float(hi))))
            values = [step(x) for x in (lo, hi, *(t for t in turns if lo <= t <= hi))]
            lo, hi = min(values), max(values)
            yield lo, hi
            continue
        coefficients = [number(c) for c in step]
        points = critical_points(coefficients, lo, hi, stride, extended=extended)
        values = [odd_value(coefficients, t, stride) for t in points]
        lo, hi = min(values), max(values)
        yield lo, hi


def critical_points(
    step: Sequence[Any], lower: Any, upper: Any, stride: int = 2, *, extended: bool = True
) -> list[Any]:
    """Return the ends of an interval, then the turning points of a polynomial inside.

    Parameters
    ----------
    step : sequence of number
        Coefficients, of the type of `lower` and `upper`.
    lower, upper : number
        The interval: floats, or mpmath numbers of one context.
    stride : int, optional
        Difference of the exponents.
    extended : bool, optional
        Refine turning points of double precision to twice the digits; for mpmath numbers only.

    Returns
    -------
    list of number

    Examples
    --------
    >>> critical_points((1.5, -0.5), 0.5, 1.5, extended=False)
    [0.5, 1.5, 1.0]
    """
    turns = [lower, upper]
    slope = [(stride * i + 1) * c for i, c in enumerate(step)]
    for t in turning_points(tuple(map(float, step)), stride):
        t = 0 * lower + t
        if extended and t:
            t = _refined(t, slope, stride)
        if lower < t < upper:
            turns.append(t)
    return turns


def odd_image(
    steps: Iterable[Sequence[Any]],
    lower: float,
    upper: float,
    *,
    extended: bool = True,
    stride: int = 2,
) -> tuple[float, float]:
    """Compute the image of ``[lower, upper]`` under a composition of steps.

    Parameters
    ----------
    steps : iterable of steps
        Coefficients in ascending odd powers, or rational steps; first step first.
    lower, upper : float
        The interval, ``lower <= upper``, positive for rational steps.
    extended : bool, optional
        Evaluate with 40 decimal digits (default) or in double precision.
    stride : int, optional
        Difference of the exponents; for any other than 2 the interval must not be negative.

    Returns
    -------
    lo, hi : float
        The ends of the image, each rounded once to a double.

    Examples
    --------
    >>> odd_image([(1.5, -0.5)], 0.0, 1.2)
    (0.0, 1.0)
    """
    lo, hi = lower, upper
    for lo, hi in odd_images(steps, lower, upper, extended=extended, stride=stride):  # noqa: B007
        pass
    return float(lo), float(hi)


def image_or_overflow(
    steps: Iterable[Step], lower: float, upper: float, stride: int = 2
) -> tuple[float, float]:
    """Return the image in double precision, or the whole line if it overflows.

    Examples
    --------
    >>> image_or_overflow([(1e308, 1e308)], 1.0, 2.0)
    (-inf, inf)
    """
    try:
        lo, hi = odd_image(steps, lower, upper, extended=False, stride=stride)
    except OverflowError:
        return -math.inf, math.inf
    return (lo, hi) if math.isfinite(lo) and math.isfinite(hi) else (-math.inf, math.inf)


def divergence_limit(steps: Sequence[Step], start: float, limit: float, stride: int = 2) -> float:
    """Return the smallest x above `start` at which a composition exceeds a limit, by bisection.

    Parameters
    ----------
    steps : sequence of steps
        First step first.
    start : float
        Where the search begins.
    limit : float
        Bound of the absolute value.
    stride : int, optional
        Difference of the exponents.

    Returns
    -------
    float
        Infinity if there is none below 1e300.

    Examples
    --------
    >>> round(divergence_limit([(1.5, -0.5)], 1.0, 2.0), 9)
    2.195823345
    """

    def stays(x: float) -> bool:
        lo, hi = image_or_overflow(steps, start, x, stride)
        return lo >= -limit and hi <= limit

    if not stays(start):
        return start
    inside, outside = start, 2 * start
    while stays(outside):
        inside, outside = outside, 2 * outside
        if outside > 1e300:
            return math.inf
    while outside - inside > 4e-16 * outside:
        middle = (inside + outside) / 2
        if middle in (inside, outside):
            break
        inside, outside = (middle, outside) if stays(middle) else (inside, middle)
    return outside
