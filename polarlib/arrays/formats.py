"""Number formats as plain numbers, and images of intervals under odd polynomials.

The bottom layer, without arrays. A :class:`Format` has the rounding errors and limits of a number
format. The functions compute images of intervals under odd polynomials.

An odd polynomial is the tuple of its coefficients in ascending odd powers:
``(a, b, c)`` is ``p(x) = a x + b x**3 + c x**5``. With another `stride` p the powers are
``1, 1 + p, 1 + 2 p, ...``: polynomials for inverse p-th roots.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from polarlib.arrays.checks import choice


@dataclass(frozen=True)
class Format:
    """A floating-point format.

    Attributes
    ----------
    name : str
        Name for ``precision=`` arguments.
    significand : int
        Bits of the significand, including the hidden one.
    smallest_normal, largest : float
        Smallest positive normal number and largest finite one.
    saturates_to : float
        Result of overflow: infinity, or NaN if the format has no infinity.
    carrier : str
        Format of accumulation in products, and of storage in simulations: float32 for all narrower
        formats.
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
        """Whether matrices of this format have a scale, a power of two, as 8-bit operands do."""
        return self.significand <= 4


_INF = float("inf")
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("float64", 53, 2.0**-1022, float(np.finfo("f8").max), _INF, "float64"),
        Format("float32", 24, 2.0**-126, float(np.finfo("f4").max), _INF, "float32"),
        # float32's exponent and float16's significand, which tensor cores read of a float32.
        Format("tf32", 11, 2.0**-126, (2 - 2.0**-10) * 2.0**127, _INF, "float32"),
        Format("bfloat16", 8, 2.0**-126, (2 - 2.0**-7) * 2.0**127, _INF, "float32"),
        Format("float16", 11, 2.0**-14, 65504.0, _INF, "float32"),
        # OCP 8-bit formats; e4m3 has no infinity, and overflow gives NaN.
        Format("float8_e4m3", 4, 2.0**-6, 448.0, float("nan"), "float32"),
        Format("float8_e5m2", 3, 2.0**-14, 57344.0, _INF, "float32"),
    )
}


def printable(text: object) -> str:
    r"""Return a text on one line: control characters, including line breaks, become escapes.

    Characters that change the direction of text, and surrogates, become escapes too.

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
    """Return the format with a name.

    Raises
    ------
    ValueError
        If the name is unknown; the message lists the known ones.

    Examples
    --------
    >>> format_of("bfloat16").unit_roundoff == 2.0**-8
    True
    """
    known = FORMATS.get(name) if isinstance(name, str) else None
    return known or FORMATS[choice("number format", name, FORMATS)]


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
