"""Checks of arguments: every wrong value is refused in one sentence that names it.

The lowest layer. A check returns the value in the form to compute with, or raises: TypeError for
what is no function, flag, path or object of a class, ValueError for numbers, counts, names and
lists. Values are shown by :func:`shown`, which no value can make fail. Comparisons are made only
with values of a known type: those of an array have no truth value.
"""

from __future__ import annotations

import builtins
import decimal
import difflib
import itertools
import math
import numbers
import operator
import os
import re
import reprlib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, cast

# Characters of a value in a message; of an integer so many digits, of which Python writes 4300.
LONGEST, DIGITS = 120, 40
# Names that a message lists: there are two dozen published sets, and a message is one line.
MOST_NAMED = 16
# Steps of a schedule, degrees, ...: a hundred times what is of use. The restarts of as many take
# seconds to place, and the time grows with the square.
MOST_STEPS = 300
# Members of lists that become arrays: of more, NumPy takes seconds to look at each.
LONGEST_LIST = 10**7
# Rows or columns of a matrix: products of two are exact as doubles.
MOST_ROWS = 2**26


class _Repr(reprlib.Repr):
    """reprlib's, which cuts what is long or nested; arrays by shape, huge integers by size."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80
        self.maxlevel = 4

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, int) and not isinstance(x, bool):
            size = int(math.log10(abs(int(x)) or 1))
            return int.__repr__(x) if size < DIGITS else f"about {'-' * (int(x) < 0)}10**{size}"
        if isinstance(x, str):
            return self.repr_str(str.__str__(x), level)
        if isinstance(x, type | types.FunctionType | types.BuiltinFunctionType | types.MethodType):
            return x.__name__
        shape = _shape(x)
        if shape:
            return f"an array of shape {shape} and dtype {x.dtype}"
        return super().repr1(x, level)

    def repr_instance(self, x: Any, level: int) -> str:
        try:
            said = builtins.repr(x)
        except Exception:
            return f"<{type(x).__name__}>"
        if said.startswith("<"):  # an address, a file or a name inside a function
            return f"<{type(x).__name__}>"
        return said if len(said) <= self.maxother else f"{said[: self.maxother - 3]}..."


def shown(value: Any) -> str:
    """Write a value for a message: one short line, whatever it is.

    Examples
    --------
    >>> shown("x"), shown(10**400), shown(range(3)), shown([1] * 1000)
    ("'x'", 'about 10**400', 'range(0, 3)', '[1, 1, 1, 1, 1, 1, ...]')
    """
    try:
        said = _Repr().repr(value)
    except Exception:  # of an object's own attributes
        said = f"<{type(value).__name__}>"
    # No memory addresses, which say nothing and are different in every run.
    said = " ".join(re.sub(r"( object)? at 0x[0-9a-fA-F]+", "", said).split())
    return said if len(said) <= LONGEST else f"{said[: LONGEST - 3]}..."


def _shape(x: Any) -> tuple[int, ...] | None:
    """Shape of an array of any library, None for what is no array."""
    try:
        return tuple(x.shape) if hasattr(x, "dtype") else None
    except Exception:  # of an object's own attributes
        return None


def nearest(name: object, known: Iterable[str]) -> str:
    """Say which names are allowed, the most similar first: the tail of an error message.

    Of more than `MOST_NAMED` the first ones, and how many there are besides.

    Examples
    --------
    >>> nearest("bf16", ["float32", "bfloat16"])
    "did you mean 'bfloat16'? Known: 'float32', 'bfloat16'"
    """
    known = list(known)
    listed = ", ".join(map(repr, known[:MOST_NAMED]))
    if len(known) > MOST_NAMED:
        listed += f" and {len(known) - MOST_NAMED} more"
    wanted = name[:LONGEST] if isinstance(name, str) else ""
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}{'Known' if hint else 'known'}: {listed}"


def double(x: Any) -> float | None:
    """A real number as a double, infinite beyond their range; None for anything else.

    True and False are no numbers here; arrays without dimensions are.

    Examples
    --------
    >>> double(3), double(10**400), double("3")
    (3.0, inf, None)
    """
    if isinstance(x, bool) or not (
        isinstance(x, numbers.Real | decimal.Decimal) or (_shape(x) == () and _is_real(x))
    ):
        return None
    try:
        return float(x)
    except OverflowError:
        return math.inf if x > 0 else -math.inf
    except Exception:  # a signalling NaN, an array that is traced
        return None


def _is_real(x: Any) -> bool:
    """Whether an array without dimensions holds a real number."""
    kind = str(x.dtype).rpartition(".")[2]
    return kind.startswith(("float", "bfloat", "int", "uint"))


def is_number(x: Any) -> bool:
    """Whether `x` is a real number within the range of doubles, or infinite (True is not)."""
    return double(x) is not None


def count(name: str, value: Any, least: int = 1, most: int | None = None, what: str = "") -> int:
    """Return an integer within limits; `what` replaces the words for what is allowed.

    Examples
    --------
    >>> count("steps", 3)
    3
    >>> count("steps", "3")
    Traceback (most recent call last):
    ValueError: steps must be an integer of at least 1, got '3'
    """
    k = least - 1
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        try:
            k = operator.index(value)
        except TypeError:  # of NumPy's timedelta64
            k = least - 1
    if k < least or (most is not None and k > most):
        if k < least or what:
            raise ValueError(
                f"{name} must be {what or f'an integer of at least {least}'}, got {shown(value)}"
            )
        raise ValueError(f"{name} must be at most {most}, got {shown(value)}")
    return k


def number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    ends: str = "[]",
    what: str = "",
) -> float:
    """Return a real number of an interval as a float; "(" and ")" in `ends` leave an end out.

    An infinite end is never in the interval unless `what` describes it.

    Examples
    --------
    >>> number("rtol", 1, 0, 1)
    1.0
    >>> number("rtol", 1, 0, 1, ends="()")
    Traceback (most recent call last):
    ValueError: rtol must be a number between 0 and 1, got 1
    """
    x = double(value)
    above, below = ends[0] == "(", ends[1] == ")"
    if x is None or not low <= x <= high or (above and x == low) or (below and x == high):
        x = None
    if x is None or not (what or math.isfinite(x)):
        if not what:
            what = _interval(low, high, above, below)
        raise ValueError(f"{name} must be {what}, got {shown(value)}")
    return x


def _interval(low: float, high: float, above: bool, below: bool) -> str:
    lower = f"{'above' if above else 'of at least'} {low:.7g}"
    upper = f"{'below' if below else 'at most'} {high:.7g}"
    if math.isinf(low) and math.isinf(high):
        return "a finite number"
    if math.isinf(high):
        return f"a number {lower}"
    if math.isinf(low):
        return f"a number {upper}"
    if above == below:
        ends = ("between", "and") if above else ("from", "to")
        return f"a number {ends[0]} {low:.7g} {ends[1]} {high:.7g}"
    return f"a number {lower} and {upper}"


def operand(name: str, value: Any) -> Any:
    """Return a number or array to compute with entry by entry, integers of Python as a float."""
    if isinstance(value, int | decimal.Decimal | numbers.Rational):
        return number(name, value)
    kind = "" if _shape(value) is None else str(value.dtype).rpartition(".")[2]
    known = kind.startswith(("float", "bfloat", "int", "uint", "complex"))
    if known if kind else isinstance(value, numbers.Number):
        return value
    raise TypeError(f"{name} must be a number or an array of numbers, got {shown(value)}")


def choice(name: str, value: Any, known: Iterable[Any], where: str = "") -> Any:
    """Return one of the names that are known, or None where that is among them.

    `where` is the beginning of the message.

    Examples
    --------
    >>> choice("side", "up", ("right", "left"))
    Traceback (most recent call last):
    ValueError: side must be 'right' or 'left', got 'up'
    """
    known = list(known)
    if value is None and None in known:
        return value
    if isinstance(value, str) and str.__str__(value) in known:
        return str.__str__(value)
    if len(known) > 3:
        raise ValueError(f"{where}unknown {name} {shown(value)}; {nearest(value, known)}")
    *first, last = map(repr, known)
    allowed = f"{', '.join(first)} or {last}" if first else last
    raise ValueError(f"{where}{name} must be {allowed}, got {shown(value)}")


def pair(name: str, value: Any, least: int = 1) -> tuple[int, int]:
    """Return a shape: two integers of at least `least`."""
    what = f"two integers of at least {least}"
    found = items(name, value, what, 2, 2)
    m, n = (count(f"a number of {name}", k, least, MOST_ROWS) for k in found)
    return m, n


def text(name: str, value: Any, most: int = 10_000) -> str:
    """Return a string, of no subclass."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {shown(value)}")
    if len(value) > most:
        raise ValueError(f"{name} must have at most {most} characters, got {shown(value)}")
    return str.__str__(value)


def flag(name: str, value: Any) -> bool:
    """Return a truth value, NumPy's among them."""
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {shown(value)}")


def function(name: str, value: Any, what: str = "a function") -> Callable[..., Any]:
    """Return something that can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be {what}, got {shown(value)}")
    return cast(Callable[..., Any], value)


def instance(name: str, value: Any, kind: Any, what: str) -> Any:
    """Return an object of a class, or of one of several."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {what}, got {shown(value)}")
    return value


def path(name: str, value: Any) -> Any:
    """Return a path as it is, text as a str of no subclass."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a str or path-like, got {shown(value)}")
    try:
        written = os.fsencode(value)
    except UnicodeEncodeError:
        written = b"\0"
    if b"\0" in written:
        raise ValueError(f"{name} must be a name that files can have, got {shown(value)}")
    return str.__str__(value) if isinstance(value, str) else value


def short(name: str, value: Any, most: int = LONGEST_LIST) -> Any:
    """Return a value as it is, unless it is a list of more members than an array is made of."""
    if isinstance(value, Sequence) and len(value) > most:
        raise ValueError(f"{name} must have at most {most} members, got {shown(value)}")
    return value


def items(name: str, value: Any, what: str, least: int = 1, most: int = MOST_STEPS) -> list[Any]:
    """Return the members of a list, tuple, array or other iterable: no text, mapping or set.

    Examples
    --------
    >>> items("degrees", (3, 5), "a list of odd degrees")
    [3, 5]
    >>> items("degrees", 3, "a list of odd degrees")
    Traceback (most recent call last):
    ValueError: degrees must be a list of odd degrees, got 3
    """
    found: list[Any] = []
    wrong = isinstance(value, str | bytes | bytearray | memoryview | Mapping | Set | type)
    # An array without dimensions has the method, and no members.
    if not wrong and hasattr(type(value), "__iter__") and _shape(value) != ():
        found = list(itertools.islice(value, most + 1))
    else:
        wrong = True
    if wrong or len(found) < least:
        raise ValueError(f"{name} must be {what}, got {shown(value)}")
    if len(found) > most:
        allowed = f"be {what}" if least == most else f"have at most {most} members"
        raise ValueError(f"{name} must {allowed}, got {shown(value)}")
    return found
