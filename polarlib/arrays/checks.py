"""Checks of arguments: a wrong value raises an error with one line that contains the value.

The lowest layer. A check returns the value converted for computation, or raises: TypeError for
functions, flags, paths and objects of a class, ValueError for numbers, counts, names and lists.
Values are formatted by :func:`shown`, which does not fail for any value. Only values of a known
type are compared: comparisons with arrays have no truth value.
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

# Largest number of characters of a value in a message, and of digits of an integer (Python's limit
# of digits is 4300).
LONGEST, DIGITS = 120, 40
# Largest number of names in a message: there are two dozen published sets, and a message is one
# line.
MOST_NAMED = 16
# Largest number of steps of a schedule, of degrees and so on: a hundred times the useful number.
# Placing restarts for this many steps takes seconds, and the time grows with the square.
MOST_STEPS = 300
# Bytes of the longest path of Linux.
LONGEST_PATH = 4096
# Largest number of members of lists that become arrays: for more, NumPy takes seconds.
LONGEST_LIST = 10**7
# Largest number of rows or columns of a matrix: products of two such numbers are exact as doubles.
MOST_ROWS = 2**26
# Functions that accept sharded matrices.
TAKING_SHARDS = (
    "orthogonalize, orthogonalize_all, polar, nearest_orthogonal and, with polar='polar_express' "
    "or another schedule, norms.per_block, norms.block_periodic and the lmo of norms.spectral"
)


class _Repr(reprlib.Repr):
    """Short representations of reprlib; arrays are given by shape, huge integers by size."""

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
            text = builtins.repr(x)
        except Exception:
            return f"<{type(x).__name__}>"
        if text.startswith("<"):  # contains an address, a file or a name inside a function
            return f"<{type(x).__name__}>"
        return text if len(text) <= self.maxother else f"{text[: self.maxother - 3]}..."


def shown(value: Any) -> str:
    """Return a value as text for a message: one short line for every value.

    Examples
    --------
    >>> shown("x"), shown(10**400), shown(range(3)), shown([1] * 1000)
    ("'x'", 'about 10**400', 'range(0, 3)', '[1, 1, 1, 1, 1, 1, ...]')
    """
    try:
        line = _Repr().repr(value)
    except Exception:  # of an object's own attributes
        line = f"<{type(value).__name__}>"
    # Without memory addresses, which have no meaning and differ in every run.
    line = " ".join(re.sub(r"( object)? at 0x[0-9a-fA-F]+", "", line).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def _shape(x: Any) -> tuple[int, ...] | None:
    """Return the shape of an array of any library; None for other values."""
    try:
        return tuple(x.shape) if hasattr(x, "dtype") else None
    except Exception:  # of an object's own attributes
        return None


def nearest(name: object, known: Iterable[str]) -> str:
    """Return the end of an error message: the allowed names, with the most similar first.

    Of more than `MOST_NAMED` names the first ones are listed, with the number of the others.

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
    """Return a real number as a double, infinite beyond their range; None for other values.

    True and False are not numbers here; arrays without dimensions are.

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
    """Return whether an array without dimensions contains a real number."""
    kind = str(x.dtype).rpartition(".")[2]
    return kind.startswith(("float", "bfloat", "int", "uint"))


def is_number(x: Any) -> bool:
    """Return whether `x` is a real number in the range of doubles, or infinite (True is not)."""
    return double(x) is not None


def count(name: str, value: Any, least: int = 1, most: int | None = None, what: str = "") -> int:
    """Return an integer within limits; `what` replaces the description of the allowed values.

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
    """Return a real number of an interval as a float; "(" and ")" in `ends` exclude an end.

    An infinite end is excluded unless `what` describes it.

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
    """Return a number or array for entrywise computations; Python's integers become floats."""
    if isinstance(value, int | decimal.Decimal | numbers.Rational):
        return number(name, value)
    kind = "" if _shape(value) is None else str(value.dtype).rpartition(".")[2]
    known = kind.startswith(("float", "bfloat", "int", "uint", "complex"))
    if known if kind else isinstance(value, numbers.Number):
        return value
    raise TypeError(f"{name} must be a number or an array of numbers, got {shown(value)}")


def choice(name: str, value: Any, known: Iterable[Any], where: str = "") -> Any:
    """Return the value if it is one of the known names (or None, if None is among them).

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
    numbers = items(name, value, what, 2, 2)
    m, n = (count(f"a number of {name}", k, least, MOST_ROWS) for k in numbers)
    return m, n


def text(name: str, value: Any, most: int = 10_000) -> str:
    """Return a string, converted from subclasses of str."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {shown(value)}")
    if len(value) > most:
        raise ValueError(f"{name} must have at most {most} characters, got {shown(value)}")
    return str.__str__(value)


def flag(name: str, value: Any) -> bool:
    """Return a truth value; NumPy's are accepted too."""
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
    """Return a path as it is, and text as a str, converted from subclasses."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a str or path-like, got {shown(value)}")
    try:
        written = os.fsencode(value)
    except UnicodeEncodeError:
        written = b"\0"
    if b"\0" in written or len(written) > LONGEST_PATH:
        raise ValueError(f"{name} must be a name that files can have, got {shown(value)}")
    return str.__str__(value) if isinstance(value, str) else value


def short(name: str, value: Any, most: int = LONGEST_LIST) -> Any:
    """Return a value as it is; ValueError for a list with too many members for an array."""
    if isinstance(value, Sequence) and len(value) > most:
        raise ValueError(f"{name} must have at most {most} members, got {shown(value)}")
    return value


def items(name: str, value: Any, what: str, least: int = 1, most: int = MOST_STEPS) -> list[Any]:
    """Return the members of a list, tuple, array or other iterable, except text, mapping or set.

    Examples
    --------
    >>> items("degrees", (3, 5), "a list of odd degrees")
    [3, 5]
    >>> items("degrees", 3, "a list of odd degrees")
    Traceback (most recent call last):
    ValueError: degrees must be a list of odd degrees, got 3
    """
    members: list[Any] = []
    wrong = isinstance(value, str | bytes | bytearray | memoryview | Mapping | Set | type)
    # An array without dimensions has the method __iter__, but no members.
    if not wrong and hasattr(type(value), "__iter__") and _shape(value) != ():
        members = list(itertools.islice(value, most + 1))
    else:
        wrong = True
    if wrong or len(members) < least:
        raise ValueError(f"{name} must be {what}, got {shown(value)}")
    if len(members) > most:
        allowed = f"be {what}" if least == most else f"have at most {most} members"
        raise ValueError(f"{name} must {allowed}, got {shown(value)}")
    return members
