"""Stacks of matrices of at most four columns, decomposed by operations on whole stacks.

A stack of n x n matrices is stored as n^2 vectors, one per entry, and every operation is one of
vectors. A stack on the host is processed in chunks that fit in the cache. Nearly all matrices are
decomposed by closed forms and cofactors (`_closed`). Matrices for which these are inaccurate,
singular ones and zero among them, are decomposed by an SVD of Jacobi rotations, also entry by entry
(`_svd`). These functions are for the host. On a device each operation would be a launch and indices
would have to be read, while the SVD of the whole stack is one kernel.

The closed form for n = 3. With C = phase(det A) conj(cofactors of A), which is U (det H) H^-1, and
the invariants i1, i2, i3 of H (trace, sum of principal minors, determinant), the theorem of Cayley
and Hamilton for H gives

    (i1 i2 - i3) U = i1 C + A ((i1^2 - i2) I - A^H A).

Here i3 = |det A|, i1^2 = ||A||^2 + 2 i2, and i1 is the largest root of a quartic whose roots are
all real, computed by Newton's iteration from above. An error of i1 multiplies U by a polynomial of
H near the identity. One more Newton step for the polar factor removes this Hermitian factor.
Rounding errors are amplified by ||A||^3 / (i1 i2 - i3), about sigma_1 / (sigma_2 + sigma_3):
matrices of rank two lose no digits, and those near rank one are left to the SVD. Without the phase
the formula gives the nearest rotation, with sigma_3 negative if det A is. Results are checked:
polar factors have error estimates, and a rotation must be orthogonal, have the determinant +1, and
``R^T A`` must be symmetric without two eigenvalues of negative sum.

Other n. Newton's step X <- X / ||X|| + C / ||C|| has the best scaling in the Frobenius norm. It
does not divide by the determinant, and works for rank n - 1. For n = 2 the first step is exact.

N. J. Higham, Functions of Matrices (SIAM, 2008), section 8.6 (the scaled iteration); N. J. Higham
and V. Noferini, Numer. Algorithms 73 (2016) 349-369 (the quartic for n = 3); J. Demmel and
K. Veselic, SIAM J. Matrix Anal. Appl. 13 (1992) 1204-1245 (one-sided Jacobi).
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polarlib._methods.small_algebra import (
    LARGEST,
    Entries,
    closed_factor,
    error_estimates,
    frobenius2,
    is_nearest_rotation,
    real_parts,
    svd_factor,
)
from polarlib._methods.small_qr import reduced
from polarlib._methods.small_values import eigenvalues, ordered
from polarlib._methods.svd import svd as library_svd
from polarlib.arrays.formats import format_of
from polarlib.arrays.library import dtype_name, format_name, is_complex
from polarlib.arrays.ops import Ops
from polarlib.arrays.settings import ignore_float_errors
from polarlib.result import Run

Array = Any
# Number of matrices from which closed forms are faster than SVDs, by n, and for tall ones. About
# 300 calls of the array library (1000 for n = 4) cost the same for every length. By experiment.
WORTH = (0, 60, 25, 60, 300)
TALL_WORTH = (0, 200, 150, 200, 400)
# Matrices per chunk: about forty vectors of this length fill a second-level cache. By experiment.
CHUNK = 8192
# Rows up to which tall matrices are reduced entry by entry; above, by LAPACK. By experiment.
FEW_ROWS = 32
# Squared norms between which matrices need no scaling: in single precision their cubes and the
# reciprocals are normal numbers.
COMFORTABLE2 = 2.0**-20, 2.0**20
# Rounding of a determinant by cofactors, in epsilons of ||A||_F^n: at most seven roundings of half
# an epsilon, times the permanent of |A|, which is at most n! / n^(n/2) <= 1.5 times ||A||_F^n.
DETERMINANT_ERROR = 6.0
# Rounding of singular values by Jacobi rotations, in epsilons of ||A||_F. By experiment.
JACOBI_ERROR = 8.0


class Decomposition(NamedTuple):
    """Polar decompositions of a stack, each with its error estimates.

    Attributes
    ----------
    unitary, hermitian : array, shape (..., m, n) and (..., n, n)
        ``A = U H``; H is exactly Hermitian.
    orthogonality, backward_error : ndarray
        ``||U^H U - I||_F / sqrt(n)`` and ``||A - U H||_F / ||A||_F`` (0 for a zero matrix), as
        measured; NaN for a matrix that is not finite.
    definite : ndarray of bool
        Whether H is positive semidefinite up to the tolerance times ``||A||_F``.
    rank : ndarray of int
        Number of singular values above ``m * eps * sigma_1``.
    lower, upper : ndarray
        Bounds of the smallest and of the largest singular value, up to rounding of the bounds.
    repaired : int
        Number of matrices decomposed by the Jacobi SVD.
    """

    unitary: Array
    hermitian: Array
    orthogonality: np.ndarray
    backward_error: np.ndarray
    definite: np.ndarray
    rank: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    repaired: int


class _Scaled(NamedTuple):
    """Entries of a stack over powers of two, `scale`, and their squared Frobenius norms.

    Attributes
    ----------
    entries : array, shape (m, n, batch)
        NaN for every entry of a matrix that is not finite.
    norm2 : array, shape (batch,)
    scale : array, shape (batch,), or None
        None for 1.
    """

    entries: Entries
    norm2: Array
    scale: Array | None

    def unscaled(self, y: Array) -> Array:
        """Return results multiplied by `scale`."""
        return y if self.scale is None else y * self.scale


def _closed(given: _Scaled, tol: float | None, eps: float, ops: Ops) -> list[Any]:
    """Return all results by closed forms, and where these are accurate (not near rank 1)."""
    xp = ops.xp
    x = given.entries
    m, n = x.shape[:2]
    r, back = reduced(x, ops) if m > n else (x, None)
    u, safe, a, b, d = closed_factor(r, given.norm2, ops)
    u = u if back is None else back(u)
    upper = xp.sqrt(a)
    # |det A| = sigma_n times the other singular values, whose product is at most ||C||.
    noise = DETERMINANT_ERROR * eps * functools.reduce(operator.mul, [upper] * n)
    lower = (d - noise) / xp.sqrt(xp.where(b > 0, b, xp.ones_like(b)))
    # Twice the threshold of the numerical rank.
    safe = safe & (lower > 2 * m * eps * upper)
    rank = xp.full_like(a, float(n))
    bounds = map(given.unscaled, (lower, upper))
    return [u, *_checked(given, u, tol, ops), rank, *bounds, safe]


def _svd(given: _Scaled, tol: float | None, eps: float, ops: Ops) -> list[Any]:
    """Return all results by the SVD, which is accurate for every matrix."""
    xp = ops.xp
    x, a = given.entries, given.norm2
    m, n = x.shape[:2]
    r, back = reduced(x, ops) if m > n else (x, None)
    u, sizes = svd_factor(r, ops, eps)
    u = u if back is None else back(u)
    upper = xp.sqrt(a)
    smallest = functools.reduce(xp.minimum, sizes)
    largest = functools.reduce(xp.maximum, sizes)
    kept = [xp.astype(size > m * eps * largest, a.dtype) for size in sizes]
    lower = smallest - JACOBI_ERROR * eps * upper
    lower = xp.where(lower > 0, lower, xp.zeros_like(lower))
    rank = functools.reduce(operator.add, kept)
    bounds = map(given.unscaled, (lower, upper))
    return [u, *_checked(given, u, tol, ops), rank, *bounds, a >= 0]


def _checked(given: _Scaled, u: Entries, tol: float | None, ops: Ops) -> list[Any]:
    """Return H and the error estimates; an empty list without a tolerance."""
    if tol is None:
        return []
    h, *estimates = error_estimates(given.entries, u, given.norm2, tol, ops)
    return [given.unscaled(h), *estimates]


def _of_entries(f: Callable[..., list[Any]], x: Array, ops: Ops) -> list[Any]:
    """Apply a function of scaled entries and their scales to a stack (batch, m, n)."""
    xp = ops.xp
    m, n = x.shape[1:]
    if ops.kernels(x) is not None:  # takes half the time of the general form
        e = xp.empty((m * n, x.shape[0]), dtype=x.dtype)
        e[...] = xp.permute_dims(xp.reshape(x, (-1, m * n)), (1, 0))
    else:
        e = xp.stack([x[:, i, j] for i in range(m) for j in range(n)], axis=0)
    norm2 = frobenius2(xp.reshape(e, (m, n, -1)), ops)
    if norm2.shape[0] and COMFORTABLE2[0] <= xp.min(norm2) and xp.max(norm2) <= COMFORTABLE2[1]:
        return f(_Scaled(xp.reshape(e, (m, n, -1)), norm2, None))
    sizes = [xp.max(xp.abs(p), axis=0) for p in real_parts(e, ops)]
    max_abs = functools.reduce(xp.maximum, sizes)
    # All entries of a matrix that is not finite are NaN, so that its results are NaN.
    s = ops.binary_scale(max_abs) + 0.0 * max_abs
    e *= 1.0 / s
    e = xp.reshape(e, (m, n, -1))
    return f(_Scaled(e, frobenius2(e, ops), s))


def _in_chunks(f: Callable[..., list[Any]], x: Array, ops: Ops) -> list[Array]:
    """Apply the function in chunks that fit in the cache; matrices of results are stacked."""
    xp = ops.xp
    count = x.shape[0]
    size = max(1, CHUNK * LARGEST**2 // max(x.shape[1] * x.shape[2], LARGEST**2))
    chunk = _of_entries(f, x[:size, ...], ops)
    # One array for all results: one large allocation is faster than several small ones.
    first = next(r for r in chunk if r.ndim == 1)
    block = iter(xp.empty((len(chunk), count), dtype=first.dtype))
    results = [
        xp.empty((count, *r.shape[:-1]), dtype=r.dtype)
        if r.ndim > 1
        else (next(block) if r.dtype == first.dtype else xp.empty((count,), dtype=r.dtype))
        for r in chunk
    ]

    def store(k: int, chunk: list[Any]) -> None:
        for out, r in zip(results, chunk, strict=True):
            out[k : k + size] = _matrices(r, ops)

    store(0, chunk)
    for k in range(size, count, size):  # two threads were not faster
        store(k, _of_entries(f, x[k : k + size, ...], ops))
    return results


def _matrices(r: Array, ops: Ops) -> Array:
    """Return the results with one row per matrix."""
    return r if r.ndim == 1 else ops.xp.permute_dims(r, (2, 0, 1))


@ignore_float_errors  # closed forms overflow where they do not hold, also if called directly
def _combined(
    closed: Callable[..., list[Any]], svd: Callable[..., list[Any]], x: Array, ops: Ops
) -> tuple[list[Array], Array]:
    """Return the results of `closed`, replaced by those of `svd` where its last one is False.

    Also return where they were replaced.
    """
    xp = ops.xp
    *results, safe = _in_chunks(closed, x, ops)
    (index,) = xp.nonzero(~safe)
    if index.shape[0]:
        *others, _ = _in_chunks(svd, xp.take(x, index, axis=0), ops)
        for r, other in zip(results, others, strict=True):
            r[index] = other
    return results, ~safe


def is_worth(shape: tuple[int, ...]) -> bool:
    """Return whether closed forms are faster than SVDs for a stack of this shape."""
    m, n = shape[-2:]
    if n > LARGEST or m < n:
        return False
    return math.prod(shape[:-2]) >= (WORTH if m == n else TALL_WORTH)[n]


def _check(x: Array, *, square: bool) -> None:
    m, n = x.shape[-2:]
    if not 1 <= n <= LARGEST or m < n or (square and m != n):
        kind = "square" if square else "tall"
        raise ValueError(
            f"method='small' needs {kind} matrices of 1 to {LARGEST} columns, got shape "
            f"{tuple(x.shape)}; use 'svd' or 'qdwh'"
        )


def decompose(x: Array, ops: Ops, *, tol: float | None = None) -> Decomposition:
    """Compute polar decompositions of a stack of matrices of up to 4 columns, with error estimates.

    Parameters
    ----------
    x : array, shape (..., m, n)
        1 <= n <= 4 and n <= m, in single or double precision, of any scale. Each matrix is scaled
        by its own power of two. Not modified.
    ops : Ops
        Arithmetic of its library, on the host.
    tol : float, optional
        Tolerance of `definite`; 100 machine epsilons by default.

    Returns
    -------
    Decomposition
        A matrix with NaN or infinity gives NaN and rank 0, without effect on the others.

    Raises
    ------
    ValueError
        If n > 4 or m < n.

    Examples
    --------
    >>> from polarlib.arrays.ops import ops_of
    >>> a = np.array([[[0.0, -2.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    >>> d = decompose(a, ops_of(a))
    >>> d.unitary[0].round(12) + 0.0
    array([[ 0., -1.],
           [ 1.,  0.]])
    >>> d.rank.tolist(), bool(d.backward_error.max() < 1e-15)
    ([2, 1], True)
    """
    batch = x.shape[:-2]
    tol = 100 * format_of(format_name(x)).epsilon if tol is None else tol
    results, bad = _factors(x, tol, ops)
    u, h = (ops.xp.reshape(r, (*batch, *r.shape[1:])) for r in results[:2])

    def on_host(r: Array) -> np.ndarray:
        # For NumPy the array is not copied, since it has no other owner.
        numbers: np.ndarray = np.asarray(r).reshape(batch)
        return numbers if numbers.dtype == bool else numbers.astype("f8", copy=False)

    orthogonality, backward_error, definite, rank, lower, upper, repaired = (
        on_host(r) for r in (*results[2:], bad)
    )
    estimates = orthogonality, backward_error, definite > 0, rank.astype(int), lower, upper
    return Decomposition(u, h, *estimates, int(repaired.sum()))


def _factors(x: Array, tol: float | None, ops: Ops) -> tuple[list[Array], Array]:
    """Return all results for a flat stack, and which of them are by the SVD; see `_checked`."""
    _check(x, square=False)
    m, n = x.shape[-2:]
    eps = format_of(format_name(x)).epsilon
    return _combined(
        lambda given: _closed(given, tol, eps, ops),
        lambda given: _svd(given, tol, eps, ops),
        ops.xp.reshape(x, (math.prod(x.shape[:-2]), m, n)),
        ops,
    )


def rotation(x: Array, ops: Ops) -> tuple[Array, Array]:
    """Compute the nearest rotation, of determinant +1, of each real matrix of a stack up to 4 x 4.

    The nearest rotation is ``U diag(1, ..., 1, det(U V^T)) V^T`` with the SVD of A, and maximises
    ``trace(R^T A)`` among rotations. If it is not unique (a reflection with two equal smallest
    singular values, rank below n - 1), one of the nearest rotations is returned, always the same
    for the same matrix. The result for a zero matrix is the identity.

    Parameters
    ----------
    x : array, shape (..., n, n)
        Real, 1 <= n <= 4, in single or double precision, of any scale. Not modified.
    ops : Ops
        Arithmetic of its library, on the host.

    Returns
    -------
    r : array, shape (..., n, n)
        NaN for a matrix that is not finite.
    shown : array of bool, shape (...)
        Whether R passes the check of optimality, to ``max(100, n)`` epsilons; otherwise R is
        arbitrary.

    Raises
    ------
    TypeError
        For complex matrices, whose nearest unitary matrix of determinant 1 has no closed form.
    ValueError
        If the matrices are not square, or n > 4.

    Notes
    -----
    The error of R is a few epsilons times ``sigma_1 / (sigma_(n-1) + s sigma_n)``, s the sign of
    the determinant, which is the condition number of the nearest rotation.

    References
    ----------
    W. Kabsch, Acta Cryst. A 34 (1978) 827-828.

    Examples
    --------
    >>> from polarlib.arrays.ops import ops_of
    >>> a = np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.5]])  # a reflection
    >>> r, shown = rotation(a, ops_of(a))
    >>> r.round(12) + 0.0
    array([[ 0.,  1.,  0.],
           [ 1.,  0.,  0.],
           [ 0.,  0., -1.]])
    >>> bool(shown)
    True
    """
    _check(x, square=True)
    if is_complex(x):
        raise TypeError(
            f"the nearest rotation needs real matrices, got {dtype_name(x)}; use polar() for the "
            "nearest unitary matrix"
        )
    eps = format_of(format_name(x)).epsilon
    n = x.shape[-1]

    def closed(given: _Scaled) -> list[Any]:
        y = given.entries
        factor = closed_factor(y, given.norm2, ops, proper=True)
        shown = factor.safe & is_nearest_rotation(factor.unitary, y, 100 * eps, ops)
        return [factor.unitary, shown, shown]

    def svd(given: _Scaled) -> list[Any]:
        y = given.entries
        r, _ = svd_factor(y, ops, eps, proper=True)
        return [r, is_nearest_rotation(r, y, 100 * eps, ops), given.norm2 >= 0]

    y = ops.xp.reshape(x, (-1, n, n))
    (r, shown), _ = _combined(closed, svd, y, ops)
    return ops.xp.reshape(r, x.shape), ops.xp.reshape(shown, x.shape[:-2])


@ignore_float_errors
def symmetric_values(h: Array, ops: Ops) -> tuple[Array, Array]:
    """Return the eigenvalues of real symmetric matrices up to 4 x 4, to rounding of the largest.

    Parameters
    ----------
    h : array, shape (..., n, n)
        In single or double precision, of any scale, on the host; not empty.
    ops : Ops
        Its arithmetic.

    Returns
    -------
    values : array, shape (..., n)
        Ascending; NaN for a matrix that is not finite.
    sizes : array, shape (..., n)
        Their absolute values, descending.
    """
    xp, n = ops.xp, h.shape[-1]

    def values(given: _Scaled) -> list[Any]:
        roots = [given.unscaled(v) for v in eigenvalues(given.entries, ops)]
        sizes = ordered([xp.abs(v) for v in roots], ops)
        return [*ordered(roots, ops), *reversed(sizes)]

    both = _in_chunks(values, xp.reshape(h, (-1, n, n)), ops)
    shape = h.shape[:-1]
    return tuple(xp.reshape(xp.stack(each, axis=-1), shape) for each in (both[:n], both[n:]))


def small(
    x: Array, ops: Ops, *, tol: float, callback: Callable[[int, Array], None] | None = None
) -> tuple[Array, Run]:
    """Apply closed forms to stacks of matrices of up to 4 columns, without a loop over matrices.

    For n = 2 the closed form is one exact step, for n = 3 cofactors and the largest root of a
    quartic, for n = 4 Newton steps by cofactors. Singular matrices and those nearly of rank one are
    decomposed by a Jacobi SVD. Tall matrices are reduced by QR first. Backward error and
    orthogonality are a few epsilons for every matrix. Zero and rank-deficient matrices are
    completed to orthonormal columns. On devices the SVD of the library is used, which has fewer
    kernels.
    """
    _check(x, square=False)
    if not ops.host:
        u, run = library_svd(x, ops, tol=tol, callback=callback)
        return u, run._replace(note="by the SVD of the library, on a device")
    m, n = x.shape[-2:]
    q = None
    if m > max(n, FEW_ROWS):
        q, x = ops.qr(x)
    (u, _, lower, upper), repaired = _factors(x, None, ops)  # errors are measured by the caller
    u = ops.xp.reshape(u, x.shape)
    u = u if q is None else ops.matmul(q, u)
    if callback is not None:
        callback(1, u)
    total, count = lower.shape[0], int(np.asarray(repaired).sum())
    bounds = (-ops.item(-lower), ops.item(upper)) if total else None
    note = f"{count} of {total} near rank one or singular, by Jacobi rotations"
    return u, Run(1, int(q is not None), True, certain=bounds, note=note)
