"""Number formats as plain numbers, and images of intervals under odd polynomials.

The bottom layer: it knows nothing of arrays. A :class:`Format` says what rounding costs in a number
format; the functions below it say where an odd polynomial sends an interval.

An odd polynomial is the tuple of its coefficients in ascending odd powers:
``(a, b, c)`` is ``p(x) = a x + b x**3 + c x**5``. With another `stride` p the powers are
``1, 1 + p, 1 + 2 p, ...``: polynomials for inverse p-th roots.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from polarlib._checks import choice, nearest, shown

__all__ = [
    "FORMATS",
    "TARGETS",
    "Format",
    "docstring",
    "format_of",
    "multiple_precision",
    "nearest",
    "odd_image",
    "odd_images",
    "odd_value",
    "parse_target",
    "printable",
    "round_number",
    "target_value",
    "turning_points",
]

# Decimal digits for images and errors: the steps are doubles (17 digits) and five to ten of them
# are composed, each losing at most the digits of its slope (about one): 40 leaves guard digits.
DIGITS = 40


@dataclass(frozen=True)
class Format:
    """A floating-point format.

    Attributes
    ----------
    name : str
        Name, as every ``precision=`` argument takes it.
    significand : int
        Bits of the significand, the hidden one included.
    smallest_normal, largest : float
        Smallest positive normal number and largest finite one.
    saturates_to : float
        What a value above `largest` becomes: infinity, or NaN where the format has no infinity.
    carrier : str
        The format that products accumulate in, and that carries a simulation: float32 for all
        formats narrower than it.
    """

    name: str
    significand: int
    smallest_normal: float
    largest: float
    saturates_to: float
    carrier: str

    @property
    def unit_roundoff(self) -> float:
        """Largest relative error of one rounding to nearest, ``2**-significand``."""
        return 2.0**-self.significand

    @property
    def epsilon(self) -> float:
        """Distance from 1 to the next number, ``2**(1 - significand)``."""
        return 2.0 ** (1 - self.significand)

    @property
    def scaled(self) -> bool:
        """Whether matrices of this format carry a power of two, as operands of 8 bits do."""
        return self.significand <= 4


_INF = float("inf")
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("float64", 53, 2.0**-1022, float(np.finfo("f8").max), _INF, "float64"),
        Format("float32", 24, 2.0**-126, float(np.finfo("f4").max), _INF, "float32"),
        # float32's exponent, float16's significand: what tensor cores read of a float32.
        Format("tf32", 11, 2.0**-126, (2 - 2.0**-10) * 2.0**127, _INF, "float32"),
        Format("bfloat16", 8, 2.0**-126, (2 - 2.0**-7) * 2.0**127, _INF, "float32"),
        Format("float16", 11, 2.0**-14, 65504.0, _INF, "float32"),
        # OCP 8-bit formats; e4m3 has no infinity, and overflow gives NaN.
        Format("float8_e4m3", 4, 2.0**-6, 448.0, float("nan"), "float32"),
        Format("float8_e5m2", 3, 2.0**-14, 57344.0, _INF, "float32"),
    )
}


def printable(text: object) -> str:
    r"""Return a text on one line: control characters, line breaks included, become escapes.

    So do those that change the direction of text, and halves of characters.

    Examples
    --------
    >>> print(printable("a\x1b[31m\nb"))
    a\x1b[31m\nb
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )


def docstring(f: Callable[..., Any]) -> str:
    """Return the docstring of a function, from its source where ``python -OO`` has stripped it.

    Examples
    --------
    >>> docstring(docstring).splitlines()[0]
    'Return the docstring of a function, from its source where ``python -OO`` has stripped it.'
    """
    text = f.__doc__
    if text is None:
        with contextlib.suppress(OSError, TypeError, SyntaxError):  # no source
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(f))).body
            text = ast.get_docstring(cast(ast.FunctionDef, definition))
    return inspect.cleandoc(text or "")


def format_of(name: str) -> Format:
    """Look a format up by name.

    Raises
    ------
    ValueError
        If the name is unknown; the message lists the known ones.

    Examples
    --------
    >>> format_of("bfloat16").unit_roundoff == 2.0**-8
    True
    """
    found = FORMATS.get(name) if isinstance(name, str) else None
    return found or FORMATS[choice("number format", name, FORMATS)]


def round_number(x: float, precision: Format) -> float:
    """Round a double once to a format, to nearest, ties to even; subnormal numbers are kept.

    Parameters
    ----------
    x : float
        Any double.
    precision : Format
        The number format.

    Returns
    -------
    float
        A number of the format, with the sign of `x`. Overflow gives infinity, in e4m3 NaN.

    Examples
    --------
    >>> [round_number(x, format_of("bfloat16")) for x in (1 + 2**-8, 1 + 3 * 2**-8, -3.4e38)]
    [1.0, 1.015625, -inf]
    """
    if math.isnan(x):
        return x
    if abs(x) >= 2 * precision.largest:
        return math.copysign(precision.saturates_to, x)
    # The unit in the last place of x, below the normal numbers that of the smallest one. Scaling
    # by it is exact, and Python rounds a float to an integer exactly, ties to even.
    exponent = max(math.frexp(x)[1], math.frexp(precision.smallest_normal)[1])
    unit = exponent - precision.significand
    size = math.ldexp(round(math.ldexp(abs(x), -unit)), unit)
    return math.copysign(size if size <= precision.largest else precision.saturates_to, x)


# What a schedule may approximate, and whether a parameter in brackets belongs to it.
TARGETS = {
    "polar": ("1, the singular values of a unitary factor", False),
    "clip": ("min(x, 1)", False),
    "power": ("x**parameter", True),
    "smooth_sign": ("x / sqrt(x**2 + parameter**2)", True),
}


def parse_target(target: str) -> tuple[str, float]:
    """Split the name of a target into its kind and its parameter (0 where it has none).

    Raises
    ------
    ValueError
        For anything else; the message lists what there is.

    Examples
    --------
    >>> parse_target("power(0.5)"), parse_target("polar")
    (('power', 0.5), ('polar', 0.0))
    """
    found = re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", target) if isinstance(target, str) else None
    kind, given = found.groups() if found else (None, None)
    try:
        parameter = float(given) if given is not None else 0.0
    except ValueError:
        parameter = math.nan
    takes = kind in TARGETS and TARGETS[kind][1]
    if kind not in TARGETS or takes != (given is not None) or not math.isfinite(parameter):
        known = [f"{k}(number)" if TARGETS[k][1] else k for k in TARGETS]
        raise ValueError(f"unknown target {shown(target)}; {nearest(target, known)}")
    if kind == "smooth_sign" and not parameter > 0:
        raise ValueError(f"smooth_sign needs a positive parameter, got {shown(target)}")
    return kind, parameter


def target_value(target: str, x: Any) -> Any:
    """Value of a target at positive numbers; NumPy arrays, floats or mpmath numbers.

    Examples
    --------
    >>> target_value("power(0.5)", 4.0), target_value("clip", np.array([0.5, 3.0])).tolist()
    (2.0, [0.5, 1.0])
    """
    kind, parameter = parse_target(target)
    if kind == "clip":
        return np.minimum(x, 1.0) if isinstance(x, np.ndarray) else min(x, 0 * x + 1)
    if kind == "power":
        try:
            return x**parameter
        except OverflowError:  # of floats
            return math.inf
    if kind == "smooth_sign":
        return x / (x * x + parameter * parameter) ** 0.5
    return 0 * x + 1


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
