"""One small NumPy matrix: factors by direct calls of NumPy and LAPACK.

Below about a hundred columns the layers for libraries, stacks and scales take longer than the
arithmetic. This module does the same arithmetic for one NumPy matrix. Products are ``x.dot(y)``,
whose call takes half the time of ``x @ y``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polarlib.arrays import routines

Array = np.ndarray

# Rows up to which a sequential sum of a column loses no digits; see `LONG` in arithmetic.py.
LONGEST = 1 << 10


class Kind(NamedTuple):
    """A type in which LAPACK computes.

    Attributes
    ----------
    gesdd : callable
        SVD by divide and conquer in that type: numpy.linalg computes float32 in double precision.
    epsilon : float
        Distance from 1 to the next number.
    low, high : float
        Squared Frobenius norms between which the squares of entries and of their rounding errors
        are normal numbers.
    """

    gesdd: Callable[..., Any]
    epsilon: float
    low: float
    high: float


@functools.cache
def _kinds() -> dict[np.dtype[Any], Kind]:
    """Return the types by their dtype: imports SciPy's wrappers of LAPACK, once."""
    from scipy.linalg import lapack  # lazily: it takes longer to import than all of polarlib

    return {
        np.dtype(name): Kind(gesdd, float(np.finfo(name).eps), 1 / high, high)
        for name, gesdd, high in (
            ("f", lapack.sgesdd, 2.0**64),
            ("d", lapack.dgesdd, 2.0**900),
            ("F", lapack.cgesdd, 2.0**64),
            ("D", lapack.zgesdd, 2.0**900),
        )
    }


def kind_of(a: object, columns: int) -> Kind | None:
    """Return the type of one NumPy matrix, not of a subclass, that LAPACK can decompose.

    Return None for other objects, and for matrices with at least `columns` columns or more than
    `LONGEST` rows (after transposing wide ones).
    """
    if type(a) is not np.ndarray or a.ndim != 2:
        return None
    m, n = a.shape
    small, large = (m, n) if m < n else (n, m)
    return _kinds().get(a.dtype) if 0 < small < columns and large <= LONGEST else None


def tall(a: Array) -> Array:
    """Return the matrix, or its adjoint if m < n, in storage that BLAS accepts."""
    if not (a.flags.forc and a.flags.aligned):
        a = np.array(a, order="C")
    return adjoint(a) if a.shape[0] < a.shape[1] else a


def adjoint(x: Array) -> Array:
    """Return the adjoint: a view if real."""
    return x.T.conj() if x.dtype.kind == "c" else x.T


def squared_norm(x: Array) -> float:
    """Return the squared Frobenius norm."""
    v = x.ravel("K")
    return float(v.dot(v)) if v.dtype.kind == "f" else float(np.vdot(v, v).real)


def factors(x: Array, kind: Kind) -> tuple[Array, Array] | None:
    """Return the unitary factor of a tall matrix by its SVD, and singular values; None if it fails.

    One Newton-Schulz step reduces the rounding errors, as in :func:`polarlib._methods.svd.svd`.
    """
    svd = _svd(x, kind)
    if svd is None:
        return None
    w, s, vh = svd
    q = w.dot(vh)
    u = q.dot(defect(q))
    u *= -0.5
    u += q
    return u, s


def _svd(x: Array, kind: Kind) -> tuple[Array, Array, Array] | None:
    """Return the thin SVD; None if LAPACK's does not converge.

    Large matrices use the library of NumPy's products and its threads. SciPy's wrapper takes less
    time to call, and starts no threads for smaller ones.
    """
    if routines.threads_for(x) is routines.one_thread and routines.source() is not None:
        return routines.svd(x)
    # Not of the transpose, as which LAPACK could read row-major storage without a copy: square
    # roots of graded matrices would lose a digit.
    u, s, vh, failed = kind.gesdd(x, full_matrices=False)
    return None if failed else (u, s, vh)


def defect(u: Array) -> Array:
    """Return ``U^H U - I``."""
    g: Array = adjoint(u).dot(u)
    diagonal = g.reshape(-1)[:: len(g) + 1]
    diagonal -= 1
    return g


def hermitian_part(w: Array) -> Array:
    """Return ``(W + W^H) / 2``, a new array."""
    h: Array = w + adjoint(w)
    h *= 0.5
    return h
