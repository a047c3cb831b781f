"""Schur decompositions of NumPy matrices, and equations with them, by LAPACK.

All computations are in double precision. Real matrices have real factors: T is then
quasi-triangular, with a 2 x 2 block of equal diagonal entries per pair of complex eigenvalues.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polarlib.arrays.library import Array
from polarlib.arrays.routines import best_length, call, call_each, integers, source


def has_schur() -> bool:
    """Return whether LAPACK is available."""
    return source() is not None


def schur(x: Array) -> tuple[Array, Array, Array, Array]:
    """Return Schur decompositions ``A = Q T Q^H`` of a stack.

    Parameters
    ----------
    x : ndarray, shape (k, n, n)
        Finite, in double precision, n >= 1. Not modified.

    Returns
    -------
    t, q : ndarray, shape (k, n, n)
        Factors; each matrix is column-major.
    w : ndarray, shape (k, n)
        Eigenvalues, in the order of the diagonal of T.
    found : ndarray of bool, shape (k,)
        Where the QR iteration converged.
    """
    (k, n, _), kind = x.shape, x.dtype.char
    t = np.array(x.swapaxes(1, 2), order="C").swapaxes(1, 2)
    q = np.empty_like(t)
    count, flags, info = integers(1), integers(n), integers(k)
    w = [np.empty((k, n), kind)] if kind == "D" else [np.empty((k, n)), np.empty((k, n))]
    last: tuple[Array, ...] = (np.empty(n), flags) if kind == "D" else (flags,)
    head: tuple[Any, ...] = ("V", "N", None, n)
    if not k:
        return t, q, np.empty((k, n), complex), info == 0
    values = tuple(v[0] for v in w)
    length = best_length("gees", kind, *head, t[0], count, *values, q[0], last=last)
    each = (t,), count, *((v,) for v in w), (q,), np.empty(length, kind), length, *last, (info,)
    call_each("gees", kind, *head, *each)
    return t, q, w[0] if kind == "D" else w[0] + 1j * w[1], info == 0


def reorder(t: Array, q: Array, first: Array) -> int | None:
    """Move eigenvalues to the front of a Schur decomposition, in place; pairs are moved together.

    Returns
    -------
    int or None
        Number of moved eigenvalues; None if two of them are too close to be exchanged.
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


def triangular_sylvesters(r: Array, c: Array) -> Array:
    """Solve ``R X + X R = C`` for stacks (k, n, n) of (quasi-)triangular matrices R.

    Where an equation is singular, the solution is that of one nearby.
    """
    k, n, _ = c.shape
    r, x = (np.array(z.swapaxes(1, 2), order="C").swapaxes(1, 2) for z in (r, c))
    scale, info = np.ones(k), integers(k)
    if c.size:
        call_each("trsyl", x.dtype.char, "N", "N", 1, n, n, (r,), (r,), (x,), (scale,), (info,))
    return x / scale[:, None, None]
