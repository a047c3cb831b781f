"""Matrix Market files."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from polarlib.files.whole import damage_named

# Largest dense form of a sparse matrix, in bytes: a decomposition needs several times as much.
DENSE_LIMIT = 2**31


# Pattern of an entry of a Matrix Market file, and dtype of the result, by field.
# Fortran writes ten as 1.0D+01.
_INDEX = rb"[0-9]{1,18}"  # all of these fit in an int64
_REAL = rb"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eEdD][+-]?[0-9]+)?|(?i:nan|inf|infinity))"
_FIELDS: dict[str, tuple[bytes, type[Any]]] = {
    "real": (_REAL, np.float64),
    "double": (_REAL, np.float64),
    "complex": (_REAL + rb"[ \t]+" + _REAL, np.complex128),
    "integer": (rb"[+-]?[0-9]{1,20}", np.int64),
    "unsigned-integer": (rb"[0-9]{1,20}", np.uint64),
    "pattern": (b"", np.float64),
}
# Entry (j, i) from entry (i, j), where one triangle is listed.
_MIRROR: dict[str, Any] = {
    "general": None,
    "symmetric": lambda v: v,
    "skew-symmetric": lambda v: -v,
    "hermitian": np.conj,
}
_FORTRAN = bytes.maketrans(b"dD", b"ee")
_LINES = 2**16  # read at once
LINE = 2**16  # bytes of a line that are read; the specification allows 1024

Line = tuple[int, bytes]  # with its number in the file


class _Market(NamedTuple):
    """Kind and sizes of a matrix, as its Matrix Market file declares them."""

    coordinate: bool
    field: str
    symmetry: str
    shape: tuple[int, int]
    entries: int

    def __str__(self) -> str:
        return f"{self.symmetry} {self.field} matrix, {self.shape[0]} x {self.shape[1]}"


def read_market(file: Path) -> np.ndarray:
    """Read a Matrix Market file as a dense matrix; entries listed twice are added, as by SciPy.

    SciPy's parser is not used: it reads 1.0D+01 as 1, and ends the process on files that have no
    rows or end within a number.
    """
    with damage_named(file, ".mtx"), open(file, "rb") as stream:
        words = _mtx_words(stream.readline(LINE))
        lines = _mtx_lines(stream)
        market = _mtx_sizes(lines, *words)
        size = math.prod(market.shape) * np.dtype(_FIELDS[market.field][1]).itemsize
        if size <= DENSE_LIMIT:
            return _mtx_dense(lines, market)
    raise ValueError(
        f"{file}: a {market} needs {size / 2**30:.1f} GiB as a dense matrix, more than "
        f"{DENSE_LIMIT / 2**30:.0f} GiB; extract the part that you need"
    )


def _mtx_words(line: bytes) -> tuple[str, str, str]:
    """Return format, field and symmetry from the first line."""
    words = line.decode("ascii", "replace").lower().split()
    start, kind, form, field, symmetry = words if len(words) == 5 else [""] * 5
    known = (start, kind) == ("%%matrixmarket", "matrix")
    known &= form in ("array", "coordinate") and field in _FIELDS and symmetry in _MIRROR
    bare = field == "pattern" and (form == "array" or symmetry in ("skew-symmetric", "hermitian"))
    if bare or not known:
        raise ValueError(
            f"line 1: the header must be %%MatrixMarket matrix, array or coordinate, one of "
            f"{', '.join(_FIELDS)} and one of {', '.join(_MIRROR)}, got {_quoted(line)}"
        )
    return form, field, symmetry


def _mtx_lines(stream: IO[bytes]) -> Iterator[Line]:
    """Yield the lines after the header, without blank lines and comments."""
    for number, line in enumerate(iter(functools.partial(stream.readline, LINE), b""), 2):
        stripped = line.strip(b" \t\r\n")
        if stripped and not stripped.startswith(b"%"):
            yield number, stripped


def _mtx_sizes(lines: Iterator[Line], form: str, field: str, symmetry: str) -> _Market:
    number, line = next(lines, (2, b""))
    sizes = line.split()
    wanted = 2 if form == "array" else 3
    if len(sizes) != wanted or not all(re.fullmatch(_INDEX, size) for size in sizes):
        raise ValueError(
            f"line {number}: expected {wanted} sizes of a file of type {form}, got {_quoted(line)}"
        )
    rows, columns, *rest = map(int, sizes)
    if symmetry != "general" and rows != columns:
        raise ValueError(f"line {number}: a {symmetry} matrix is square, got {rows} x {columns}")
    stored = {"general": rows * columns, "skew-symmetric": rows * (rows - 1) // 2}
    count = rest[0] if rest else stored.get(symmetry, rows * (rows + 1) // 2)
    return _Market(form == "coordinate", field, symmetry, (rows, columns), count)


def _mtx_dense(lines: Iterator[Line], market: _Market) -> np.ndarray:
    """Return the matrix from the lines of its entries."""
    value, dtype = _FIELDS[market.field]
    parts = [_INDEX] * (2 * market.coordinate) + [value] * (market.field != "pattern")
    pattern = re.compile(rb"[ \t]+".join(parts))
    width = 2 * market.coordinate + {"pattern": 0, "complex": 2}.get(market.field, 1)
    where = None if market.coordinate else _mtx_places(market)
    # Sums of integers are exact; entries that the dtype cannot hold raise ValueError.
    dense = np.zeros(market.shape, dtype if dtype in (np.float64, np.complex128) else object)
    mirror = _MIRROR[market.symmetry]
    done, number = 0, 2
    while chunk := list(itertools.islice(lines, _LINES)):
        _mtx_check_lines(chunk, pattern, market, done)
        tokens = b" ".join(line for _, line in chunk).translate(_FORTRAN).split()
        columns = [tokens[k::width] for k in range(width)]
        if where is None:
            i, j = (np.array(list(map(int, c)), np.int64) - 1 for c in columns[:2])
        else:
            i, j = where(np.arange(done, done + len(chunk)))
        v = _mtx_values(columns[2 * market.coordinate :], market.field, len(chunk))
        _mtx_check_entries(chunk, market, i, j, v)
        np.add.at(dense, (i, j), v)
        if mirror is not None:
            off = i != j
            np.add.at(dense, (j[off], i[off]), mirror(v[off]))
        done, number = done + len(chunk), chunk[-1][0]
    if done < market.entries:
        raise ValueError(f"line {number}: the file ends after {done} of {market.entries} entries")
    return dense.astype(dtype, copy=False)


def _mtx_places(market: _Market) -> Callable[[np.ndarray], Any]:
    """Return the function from numbers of entries to their rows and columns, in array files."""
    rows = market.shape[0]
    if market.symmetry == "general":
        return lambda k: (k % rows, k // rows)
    # The lower triangle by columns has the order of the upper triangle by rows.
    j, i = np.triu_indices(rows, int(market.symmetry == "skew-symmetric"))
    return lambda k: (i[k], j[k])


def _mtx_check_lines(
    chunk: list[Line], pattern: re.Pattern[bytes], market: _Market, done: int
) -> None:
    for number, line in chunk:
        if not pattern.fullmatch(line):
            what = f"{'two indices and ' * market.coordinate}a {market.field} entry"
            raise ValueError(f"line {number}: expected {what}, got {_quoted(line)}")
    if done + len(chunk) > market.entries:
        number, _ = chunk[market.entries - done]
        raise ValueError(f"line {number}: more than {market.entries} entries")


def _mtx_check_entries(
    chunk: list[Line], market: _Market, i: np.ndarray, j: np.ndarray, v: np.ndarray
) -> None:
    """Raise ValueError for entries outside the matrix or its triangle, or beyond its dtype."""
    wrong = (i < 0) | (i >= market.shape[0]) | (j < 0) | (j >= market.shape[1])
    if v.dtype == object:
        limits = np.iinfo(_FIELDS[market.field][1])
        wrong |= (v < limits.min) | (v > limits.max)
    if mirror := _MIRROR[market.symmetry]:
        wrong |= (i < j) | ((i == j) & (v != mirror(v)) & (v == v))
    if wrong.any():
        number, line = chunk[int(wrong.argmax())]
        raise ValueError(f"line {number}: {_quoted(line)} is not an entry of a {market}")


def _mtx_values(columns: list[list[bytes]], field: str, count: int) -> np.ndarray:
    if field == "pattern":
        return np.ones(count)
    if field.endswith("integer"):
        return np.array(list(map(int, columns[0])), object)
    real, *imaginary = (np.array(list(map(float, column))) for column in columns)
    if not imaginary:
        return real
    v = real.astype(np.complex128)
    v.imag = imaginary[0]  # real + 1j * imaginary would turn infinities into NaN
    return v


def _quoted(line: bytes) -> str:
    return repr(line[:60].decode("ascii", "replace"))
