"""Rows of norm 1, before or after the polar factor, and a factor with rows of equal norm."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

from polarlib.arrays.checks import MOST_STEPS, choice, count
from polarlib.arrays.entered import Entered, enter
from polarlib.arrays.entry import as_matrix
from polarlib.arrays.functions import constant, empty_result
from polarlib.arrays.library import astype_like, is_complex
from polarlib.arrays.ops import Ops
from polarlib.arrays.settings import looks, under_default_settings
from polarlib.norms.base import A
from polarlib.norms.unitary import Polar, spectral

__all__ = ["normalise", "row_balanced"]

Array = Any
AXES = {"rows": -1, "columns": -2}


@looks
@under_default_settings
def normalise(g: A, which: Literal["rows", "columns"]) -> A:
    """Return the matrix with each row, or each column, divided by its Euclidean norm.

    Parameters
    ----------
    g : array, shape (..., m, n)
        Matrix.
    which : {"rows", "columns"}
        Whether rows or columns are divided.

    Returns
    -------
    array, shape (..., m, n)
        Rows, or columns, of norm 1; zero ones stay zero.

    Raises
    ------
    TypeError, ValueError
        For another value of `which`, and as every LMO.

    Notes
    -----
    No factor depends on the shape: the Frobenius norm of the result is the square root of the
    number of nonzero rows, or columns. No epsilon is added. Each row is first scaled by a separate
    power of two, so that rows of 1e-300 and of 1e300 in one matrix both get norm 1. Cost: two
    passes over the entries. The derivative at a zero row is zero.

    Before the polar factor this is MuonEq: ``orthogonalize(normalise(g, "rows"))`` is its variant
    R, "columns" its variant C, where g is the momentum, Nesterov's included. MuonEq's code adds
    1e-8 to the squares of norms. Its variant RC divides by both kinds of norms of the same matrix,
    not by one after the other. The scale of the update is separate
    (:func:`polarlib.norms.update_scale`).

    After the polar factor, ``normalise(orthogonalize(g), "columns")`` is Muon+. With "rows" it is
    NorMuon without memory, beta_2 = 0, up to the factor ``||O||_F / sqrt(m)``: NorMuon divides rows
    by the roots of running means of their mean squares, and then restores the Frobenius norm of O.

    References
    ----------
    MuonEq: D. Chang and others, arXiv 2603.28254. Muon+: arXiv 2602.21545. NorMuon: Z. Li and
    others, arXiv 2510.05491.

    Examples
    --------
    >>> import numpy as np
    >>> normalise(np.array([[3e200, 4e200], [0.0, 0.0]]), "rows").round(12).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    axis = AXES[choice("which", which, AXES)]
    e = _entered(g)
    return cast(A, empty_result(e.given, e.ops) if e.is_empty else e.leave(_unit(e.x, axis, e.ops)))


def _entered(g: Any) -> Entered:
    a, ops = as_matrix(g, "g")
    # Not scaled as a whole: each row has a separate scale.
    return enter(a, "g", ops=ops, look="if free", mask=True, scaling=None)


def _unit(x: Array, axis: int, ops: Ops) -> Array:
    """Return vectors along an axis divided by their norms, of any scale; 0 for 0."""
    xp = ops.xp

    def scale(x: Array) -> Array:
        parts = (xp.real(x), xp.imag(x)) if is_complex(x) else (x,)
        sizes = [ops.max(xp.abs(part), axis=axis, keepdims=True) for part in parts]
        return ops.binary_scale(xp.maximum(*sizes) if is_complex(x) else sizes[0]) + 0 * sizes[0]

    # The result does not depend on the scale, which is a constant to derivatives.
    y = ops.divide(x, constant(ops, scale, x))
    squares = _squares(y, axis, ops)
    zero = squares == 0
    one = xp.ones_like(squares)
    inverse = xp.where(zero, 0 * one, 1 / xp.sqrt(xp.where(zero, one, squares)))
    return y * astype_like(inverse, y, ops)


def _squares(y: Array, axis: int, ops: Ops) -> Array:
    """Return squared norms of vectors along an axis, which keeps length 1."""
    xp = ops.xp
    if is_complex(y):
        return _squares(xp.real(y), axis, ops) + _squares(xp.imag(y), axis, ops)
    return ops.sums(y * y, axis)


@looks
@under_default_settings
def row_balanced(g: A, iterations: int = 2, *, polar: Polar = None) -> A:
    """Return the polar factor of D G, D diagonal and chosen so that rows have nearly equal norms.

    Parameters
    ----------
    g : array, shape (..., m, n)
        Matrix.
    iterations : int, optional
        Number of polar factors that are computed, 2 by default.
    polar : callable, str, path-like or Schedule, optional
        Method for the polar factors, as in :func:`polarlib.norms.spectral`; by default the partial
        isometry of the exact SVD.

    Returns
    -------
    array, shape (..., m, n)
        The last of ``U_k = polar(D_k G)``, without completion, ``D_1 = 1 / |g_i|`` and
        ``D_(k+1) = D_k sqrt(min(m, n) / (m |row i of U_k|^2))``. Orthonormal columns if G has rank
        n; then rows of norms near ``sqrt(n / m)``, at which the iteration has its fixed points.

    Raises
    ------
    TypeError, ValueError
        For a number of iterations below 1, an unknown name or another type of `polar`, and as every
        LMO.

    Notes
    -----
    Zero rows stay zero, and do not affect D. D is stored relative to D_1 with largest entry 1, so
    that rows may have any scales: the result is the same for every positive multiple of each row.
    For m <= n and full rank it is the polar factor of ``normalise(g, "rows")`` for every number of
    iterations. Rows of equal norm need not exist: a row that is orthogonal to all others has norm 1
    in every U_k, and its weight decreases by ``sqrt(n / m)`` per iteration.

    Aurora is this function for m > n. For m < n it is ``row_balanced`` of the transpose, and for
    m = n the polar factor of G itself. Cost per iteration: one SVD, or that of `polar`. The
    derivative is recorded through D and the iterations, and each polar factor has its rule; for a
    rank-deficient matrix this is the derivative among matrices of its rank.

    References
    ----------
    Aurora: arXiv 2606.27715, and its code by Tilde Research.

    Examples
    --------
    >>> import numpy as np
    >>> u = row_balanced(np.array([[3.0], [4.0], [0.0]]))
    >>> u.round(12).ravel().tolist()
    [0.707106781187, 0.707106781187, 0.0]
    """
    iterations = count("iterations", iterations, most=MOST_STEPS)
    factor = spectral(polar=polar)  # checks `polar` before the matrix
    e = _entered(g)
    if e.is_empty:
        return cast(A, empty_result(e.given, e.ops))
    x, ops = _unit(e.x, -1, e.ops), e.ops
    # A schedule computes in the format of the caller's matrix; the SVD in single precision at
    # least, since it is iterated.
    like = x if polar is None else e.given
    u = factor.lmo(astype_like(x, like, ops))
    squares = _squares(x, -1, ops)
    some, weights = squares > 0, ops.xp.ones_like(squares)
    for _ in range(iterations - 1):
        weights = _rebalanced(weights, astype_like(u, x, ops), some, ops)
        u = factor.lmo(astype_like(x * astype_like(weights, x, ops), like, ops))
    # A factor by the SVD has rounding errors in zero rows.
    return cast(A, e.leave(ops.xp.where(some, u, ops.xp.zeros_like(u))))


def _rebalanced(weights: Array, u: Array, some: Array, ops: Ops) -> Array:
    """Return the next D over D_1, shape (..., m, 1), largest entry 1; `some` are not zero rows."""
    xp = ops.xp
    m, n = u.shape[-2:]
    squares = _squares(u, -1, ops)
    # Rounding errors in a zero row must not count as a short row.
    kept = some & (squares > 0)
    one = xp.ones_like(squares)
    share = math.sqrt(min(m, n) / m) / xp.sqrt(xp.where(kept, squares, one))
    moved = weights * xp.where(kept, share, one)
    # A common factor changes no polar factor, and is a constant to derivatives.
    largest = constant(
        ops, lambda d: ops.max(d, axis=-2, keepdims=True), xp.where(some, moved, 0 * one)
    )
    return moved / ops.divisor(largest)
