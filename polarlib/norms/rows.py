"""Rows of length 1, before or after the polar factor, and rows of equal length of the factor."""

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
        What is divided.

    Returns
    -------
    array, shape (..., m, n)
        Rows, or columns, of norm 1. Those that are zero stay zero.

    Raises
    ------
    TypeError, ValueError
        For another word, and as every LMO.

    Notes
    -----
    There is no factor of the shape: the Frobenius norm of the result is the root of the number of
    rows, or columns, that are not zero. No epsilon is added, and each row is scaled by a power of
    two of its own first: rows of 1e-300 beside rows of 1e300 have norm 1 as well. Cost: two passes
    over the entries. The derivative at a zero row is zero.

    Before the polar factor this is MuonEq: ``orthogonalize(normalise(g, "rows"))`` is its variant
    R, "columns" C, where g is the momentum, Nesterov's included (D. Chang and others, arXiv
    2603.28254; there 1e-8 is added to the squares of norms). Its variant RC divides by both kinds
    of norms of the same matrix, not by one after the other. The factors that follow are those of
    any update (:func:`polarlib.norms.update_scale`). After the polar factor,
    ``normalise(orthogonalize(g), "columns")`` is Muon+ (arXiv 2602.21545), and "rows" is NorMuon
    (Z. Li and others, arXiv 2510.05491) without memory, beta_2 = 0, up to its factor
    ``||O||_F / sqrt(m)``: NorMuon divides rows by the roots of running means of their mean squares,
    and then restores the Frobenius norm of O.

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
    # Unscaled: each row has a scale of its own.
    return enter(a, "g", ops=ops, look="if free", mask=True, scaling=None)


def _unit(x: Array, axis: int, ops: Ops) -> Array:
    """Vectors along an axis over their norms, of any scale; 0 for 0."""
    xp = ops.xp

    def scale(x: Array) -> Array:
        parts = (xp.real(x), xp.imag(x)) if is_complex(x) else (x,)
        peaks = [ops.max(xp.abs(part), axis=axis, keepdims=True) for part in parts]
        return ops.binary_scale(xp.maximum(*peaks) if is_complex(x) else peaks[0]) + 0 * peaks[0]

    # The result does not depend on the scale, which is a constant to derivatives.
    y = ops.divide(x, constant(ops, scale, x))
    squares = _squares(y, axis, ops)
    zero = squares == 0
    one = xp.ones_like(squares)
    inverse = xp.where(zero, 0 * one, 1 / xp.sqrt(xp.where(zero, one, squares)))
    return y * astype_like(inverse, y, ops)


def _squares(y: Array, axis: int, ops: Ops) -> Array:
    """Squares of the norms of vectors along an axis, which keeps length 1."""
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
        Polar factors that are computed, 2 by default.
    polar : callable, str, path-like or Schedule, optional
        What computes them, possibly approximations, as of :func:`polarlib.norms.spectral`; by
        default the partial isometry of the exact SVD.

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
    Zero rows stay zero, and leave D unchanged. D is kept relative to D_1, largest entry 1, so that
    rows of any two scales may be side by side: the result is the same for every positive multiple
    of each row. For m <= n and full rank it is the polar factor of ``normalise(g, "rows")``,
    whatever the number of iterations. Equal norms need not exist: a row that is orthogonal to all
    others has norm 1 in every U_k, and its weight falls by ``sqrt(n / m)`` an iteration. Aurora
    (arXiv 2606.27715) is this function for m > n; for m < n it takes ``row_balanced`` of the
    transpose, and for m = n the polar factor of G itself. Cost: one SVD, or what `polar` costs, an
    iteration. The derivative is recorded through D and the iterations, each polar factor with its
    own rule: for a rank-deficient matrix that among matrices of its rank.

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
    # Rounding errors in a zero row would be taken for a short one.
    kept = some & (squares > 0)
    one = xp.ones_like(squares)
    share = math.sqrt(min(m, n) / m) / xp.sqrt(xp.where(kept, squares, one))
    moved = weights * xp.where(kept, share, one)
    # A common factor changes no polar factor, and is a constant to derivatives.
    largest = constant(
        ops, lambda d: ops.max(d, axis=-2, keepdims=True), xp.where(some, moved, 0 * one)
    )
    return moved / ops.divisor(largest)
