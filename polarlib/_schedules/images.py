"""Odd polynomials and their compositions: values, turning points, images of intervals."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

__all__ = ["multiple_precision", "odd_image", "odd_images", "odd_value", "turning_points"]


# Decimal digits for images and errors: the steps are doubles (17 digits) and five to ten of them
# are composed, each losing at most the digits of its slope (about one): 40 leaves guard digits.
DIGITS = 40


def odd_value(step: Sequence[Any], x: Any, stride: int = 2) -> Any:
    """Evaluate an odd polynomial by Horner's rule in ``x**2``; any type with ``+`` and ``*``.

    Examples
    --------
    >>> odd_value((1.5, -0.5), 1.0)
    1.0
    """
    y = x * x if stride == 2 else x**stride
    value = step[-1]
    for c in reversed(step[:-1]):
        value = value * y + c
    return value * x


@functools.lru_cache(maxsize=4096)
def turning_points(step: tuple[float, ...], stride: int = 2) -> tuple[float, ...]:
    """Real zeros of p' in double precision, ascending; some may be found twice.

    Examples
    --------
    >>> turning_points((1.5, -0.5))
    (-1.0, 1.0)
    """
    derivative = [(stride * i + 1) * c for i, c in enumerate(step)]
    found = [np.empty(0)]
    while len(derivative) > 1:
        size = abs(derivative[-1]) / (max(map(abs, derivative)) or 1.0)
        if size > 1e-200:  # one this small only adds turning points beyond 1e100
            y = np.roots(derivative[::-1])
            # A double root may come out as a complex pair: its real part is still a turning point
            # to within the square root of the rounding, and more points do no harm.
            found.append(y.real[np.abs(y.imag) <= 1e-6 * np.abs(y)])
        if size > 1e-8:
            break
        # A root far away hides the others in the rounding: they are those of the rest, nearly.
        derivative.pop()
    y = np.concatenate(found)
    if stride % 2 == 0:  # an odd polynomial turns at -t wherever it turns at t
        y = y[y > 0]
        t = np.sqrt(y) if stride == 2 else y ** (1 / stride)
        t = np.concatenate([-t, t])
    else:
        t = np.sign(y) * np.abs(y) ** (1 / stride)
    return tuple(float(v) for v in np.sort(t))


def _refined(t: Any, slope: Sequence[Any], stride: int) -> Any:
    """Two Newton steps on p': from 1e-16 to 1e-32, and the value of p sees the square of that."""
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


# Digits are the user's. A context that has been dropped is made again in a millisecond.
@functools.lru_cache(maxsize=32)
def multiple_precision(digits: int = DIGITS) -> Any:
    """Context of mpmath with a number of decimal digits; one for all who ask, so leave it so.

    Threads share it: no function here changes its precision.

    Examples
    --------
    >>> multiple_precision(30).dps
    30
    """
    import mpmath  # lazily: most of the library never leaves double precision

    context = mpmath.MPContext()
    context.dps = digits
    # mpmath pickles the numbers of its global context only.
    context.mpf.__reduce_ex__ = lambda x, protocol: (_number, (digits, *map(int, x._mpf_)))
    return context


def _number(digits: int, *parts: int) -> Any:
    """A number of a context from its sign, mantissa, exponent and bits: how it is unpickled."""
    return multiple_precision(digits).mpf(parts)


def odd_images(
    steps: Iterable[Sequence[float]],
    lower: Any,
    upper: Any,
    *,
    extended: bool = True,
    stride: int = 2,
) -> Iterator[tuple[Any, Any]]:
    """Images of ``[lower, upper]`` after each step of a composition, not rounded to doubles.

    The image of an interval is an interval, so it is followed step by step: its ends are values at
    the ends and at the turning points between them. Nothing is sampled. What a step makes of the
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
        turning = turning_points(tuple(map(float, step)), stride)
        coefficients = [number(c) for c in step]
        slope = [(stride * i + 1) * c for i, c in enumerate(coefficients)]
        inside = []
        for t in map(number, turning):
            if extended and t:
                t = _refined(t, slope, stride)
            if lo < t < hi:
                inside.append(t)
        values = [odd_value(coefficients, t, stride) for t in (lo, hi, *inside)]
        lo, hi = min(values), max(values)
        yield lo, hi


def odd_image(
    steps: Iterable[Sequence[float]],
    lower: float,
    upper: float,
    *,
    extended: bool = True,
    stride: int = 2,
) -> tuple[float, float]:
    """Image of ``[lower, upper]`` under a composition of odd polynomials.

    Parameters
    ----------
    steps : iterable of sequences of float
        Coefficients in ascending odd powers, first step first.
    lower, upper : float
        The interval, ``lower <= upper``.
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
