"""Schur decompositions of NumPy matrices, and equations with them, by LAPACK.

Everything is in double precision. Real matrices have real factors: T is quasi-triangular then, with
a block of 2 x 2, of equal diagonal entries, for each pair of complex eigenvalues.
"""

from __future__ import annotations

import numpy as np

from polarlib.arrays.library import Array
from polarlib.arrays.routines import call, integers, source, with_work


def has_schur() -> bool:
    """Whether there is a LAPACK to call."""
    return source() is not None


def schur(a: Array) -> tuple[Array, Array, Array] | None:
    """``A = Q T Q^H``: T, Q and the eigenvalues; None where the QR iteration does not converge.

    `a` is finite, double precision, and not changed.
    """
    n, kind = a.shape[0], a.dtype.char
    t, q = np.array(a, order="F"), np.empty((n, n), kind, order="F")
    count, flags = integers(1), integers(max(n, 1))
    if kind == "D":
        w = np.empty(n, kind)
        values: tuple[Array, ...] = (w,)
        last: tuple[Array, ...] = (np.empty(n), flags)
    else:
        values, last = (np.empty(n), np.empty(n)), (flags,)
    if with_work("gees", kind, "V", "N", None, n, t, count, *values, q, last=last) != 0:
        return None
    return t, q, values[0] if kind == "D" else values[0] + 1j * values[1]


def reorder(t: Array, q: Array, first: Array) -> int | None:
    """Move eigenvalues to the front of a Schur decomposition, in place; of pairs, both.

    Returns
    -------
    int or None
        How many there are; None where two of them are too close to change places.
    """
    n, kind = t.shape[0], t.dtype.char
    chosen, counts, info = integers(n), integers(1), integers(1)
    chosen[...] = first
    condition = np.empty(1), np.empty(1)
    vectors = (np.empty(n, kind),) if kind == "D" else (np.empty(n), np.empty(n))
    work = np.empty(max(n, 1), kind), max(n, 1)
    more = () if kind == "D" else (integers(1), 1)
    arguments = *vectors, counts, *condition, *work, *more, info
    call("trsen", kind, "N", "V", chosen, n, t, q, *arguments)
    return None if info[0] else int(counts[0])


def triangular_sylvester(a: Array, b: Array, c: Array, sign: int = 1) -> Array:
    """Solve ``A X + X B = C``, or with sign -1 ``A X - X B = C``, for (quasi-)triangular A and B.

    C is overwritten. Where the equation is singular, the solution is that of one nearby.
    """
    scale, info = np.ones(1), integers(1)
    m, n = c.shape
    if c.size:
        call("trsyl", c.dtype.char, "N", "N", sign, m, n, a, b, c, scale, info)
    return c if scale[0] == 1.0 else c / scale[0]
