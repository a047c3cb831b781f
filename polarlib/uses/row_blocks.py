"""Work on one block of rows, and sums over blocks, for :func:`polarlib.polar_tall`.

A block is processed in slices of rows, in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from polarlib.arrays.entry import not_finite
from polarlib.arrays.settings import ignore_float_errors

# Size of a slice of rows in bytes: a slice and its products fit in the cache of a core, and no copy
# of a whole block is made. Chosen by experiment.
SLICE = 1 << 22
# Exponents between which squares neither overflow nor underflow, with a margin for sums.
COMFORTABLE = 300


class _Part(NamedTuple):
    """A matrix summed over blocks of rows that were divided by ``2**exponent``."""

    exponent: int
    matrix: np.ndarray


def _wide(a: np.ndarray) -> type[np.complex128] | type[np.float64]:
    return np.complex128 if a.dtype.kind == "c" else np.float64


def _step(a: np.ndarray) -> int:
    """Return the number of rows of a slice."""
    n = a.shape[1]
    # At least 4 n rows per slice, since a slice is factorised together with the n rows of R.
    return int(min(max(SLICE // max(16 * n, 1), 4 * n, 1), len(a)))


def _slices(a: np.ndarray, exponent: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield slices of rows of ``a / 2**exponent`` in double precision, each until the next one.

    Copies share one buffer: with the settings of Dask's workers, each new array costs page faults,
    which take as long as a product.
    """
    step = _step(a)
    plain = a.dtype == _wide(a) and not exponent and a.strides[1] == a.itemsize
    buffer = np.empty((0 if plain else step, a.shape[1]), dtype=_wide(a))
    for start in range(0, len(a), max(step, 1)):
        place = slice(start, min(start + step, len(a)))
        rows = a[place]
        if not plain:
            np.copyto(buffer[: len(rows)], rows)
            rows = buffer[: len(rows)]
            if exponent:
                np.ldexp(rows.view(np.float64), -exponent, out=rows.view(np.float64))
        yield place, rows


def _exponent(a: np.ndarray, first: int) -> int:
    """Return the exponent of the power of two that scales a block; ValueError if not finite."""
    if a.size == 0:
        return 0
    parts = (a.real, a.imag) if a.dtype.kind == "c" else (a,)
    largest = float(np.max([(p.max(), -p.min()) for p in parts]))  # Python's max may drop NaN
    if not math.isfinite(largest):
        raise ValueError(
            f"x {not_finite(a)} of its rows {first} to {first + len(a) - 1}; remove them"
        )
    exponent = math.frexp(largest)[1]
    return exponent if abs(exponent) > COMFORTABLE else 0


class _GramSum:
    """Sum of the Gram matrices of slices, with buffers that are reused."""

    def __init__(self, rows: int, n: int, dtype: Any) -> None:
        self.total = np.zeros((n, n), dtype=dtype)
        self._gram = np.empty_like(self.total)
        self._conjugate = np.empty((rows if self.total.dtype.kind == "c" else 0, n), dtype=dtype)

    def add(self, rows: np.ndarray) -> None:
        left = rows  # of itself, so that NumPy calls SYRK
        if len(self._conjugate):
            left = np.conjugate(rows, out=self._conjugate[: len(rows)])
        self.total += np.matmul(left.T, rows, out=self._gram)


def gram_of_block(a: np.ndarray, first: int) -> _Part:
    exponent = _exponent(a, first)
    gram = _GramSum(_step(a), a.shape[1], _wide(a))
    for _, rows in _slices(a, exponent):
        gram.add(rows)
    return _Part(exponent, gram.total)


def sum_of_grams(parts: Sequence[_Part]) -> _Part:
    # The largest exponent is used: smaller parts that underflow are below the rounding of the sum.
    top = max(p.exponent for p in parts)
    total = np.zeros_like(parts[0].matrix)
    for p in parts:
        total += shifted(p.matrix, 2 * (p.exponent - top))
    return _Part(top, total)


def triangle_of_block(a: np.ndarray, first: int, every: int = 1) -> _Part:
    """Return R of a QR factorisation of a block, or of one row in `every`."""
    exponent = _exponent(a, first)
    r = np.zeros((0, a.shape[1]), dtype=_wide(a))
    # R of the rows read so far replaces them, so that no block is factorised as a whole.
    for _, rows in _slices(a[::every], exponent):
        r = _triangle(np.concatenate([r, rows]))
    return _Part(exponent, r)


def triangle_of_triangles(parts: Sequence[_Part]) -> _Part:
    top = max(p.exponent for p in parts)
    stacked = np.concatenate([shifted(p.matrix, p.exponent - top) for p in parts])
    return _Part(top, _triangle(stacked))


def _triangle(a: np.ndarray) -> np.ndarray:
    r: Any = np.linalg.qr(a, mode="r")
    return np.asarray(r)


def shifted(a: np.ndarray, exponent: int) -> np.ndarray:
    """Return ``2**exponent a``; negligible entries become zero."""
    if not exponent:
        return a
    a = np.array(a, order="C")  # a copy, contiguous, so that complex numbers are pairs
    np.ldexp(a.view(np.float64), exponent, out=a.view(np.float64))
    return a


@ignore_float_errors  # in the threads of Dask
def second_of_block(
    a: np.ndarray,
    first: int,
    exponent: int,
    right: np.ndarray,
    probes: np.ndarray,
    images: np.ndarray,
) -> tuple[np.ndarray, float]:
    """Return ``B^H B`` for B = A `right`, and the sum of squares of ``A probes - B images``."""
    gram = _GramSum(_step(a), right.shape[1], right.dtype)
    b, left, other = (
        np.empty((_step(a), factor.shape[1]), dtype=right.dtype)
        for factor in (right, probes, images)
    )
    squares = 0.0
    for _, rows in _slices(a, exponent):
        k = len(rows)
        part = np.matmul(rows, right, out=b[:k])
        gram.add(part)
        np.matmul(rows, probes, out=left[:k])
        left[:k] -= np.matmul(part, images, out=other[:k])
        squares += float(np.vdot(left[:k], left[:k]).real)
    if not np.isfinite(gram.total).all():
        _exponent(a, first)  # which names the rows with NaN or infinity
    return gram.total, squares


def sum_of_seconds(parts: Sequence[tuple[np.ndarray, float]]) -> tuple[np.ndarray, float]:
    return np.sum([p[0] for p in parts], axis=0), math.fsum(p[1] for p in parts)


@ignore_float_errors  # computed later, under the caller's settings of that time
def unitary_of_block(
    a: np.ndarray, exponent: int, right: np.ndarray, small: np.ndarray
) -> np.ndarray:
    """Return ``(A right) small`` in the dtype of A, with the B of the second pass exactly."""
    u = np.empty_like(a, order="C", dtype=a.dtype)
    b = np.empty((_step(a), right.shape[1]), dtype=right.dtype)
    wide = u if u.dtype == right.dtype else np.empty((_step(a), a.shape[1]), dtype=right.dtype)
    for place, rows in _slices(a, exponent):
        part = np.matmul(rows, right, out=b[: len(rows)])
        if wide is u:
            np.matmul(part, small, out=u[place])
        else:
            u[place] = np.matmul(part, small, out=wide[: len(rows)])
    return u
