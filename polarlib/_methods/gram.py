"""Method of sharded matrices: Gram matrices until orthonormal, then the factor of a small matrix.

Only Gram matrices need sums over devices: two up to a condition number of about ``eps**-1/2``,
three or four up to ``1 / eps``. Small matrices are whole on every device, and are decomposed there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polarlib.arrays.formats import format_of
from polarlib.arrays.library import astype_like, format_name
from polarlib.arrays.ops import Ops, ops_of
from polarlib.result import Run

Array = Any

# Eigenvalues are increased by this many sqrt(n) epsilons of the largest one: about the rounding
# error of a Gram matrix and its eigenvalues. By experiment, float32 and float64, n to 300.
LIKELY = 4.0
# ``||Q^H Q - I||_F`` from which the next basis is orthonormal to rounding.
NEAR = 0.5
# In float32 five suffice for a condition number of 1e7, and rounding errors of integers of rank one
# take seven. Columns of zeros never become orthonormal.
MOST = 8


class _Basis(NamedTuple):
    """``X = (Q right) S`` with orthonormal columns of ``Q right``, and S n x n.

    Attributes
    ----------
    q : array, shape (..., m, n)
        Sharded as X is.
    right, s : array, shape (..., n, n)
        Small matrices.
    defects : tuple of float
        ``||Q^H Q - I||_F / sqrt(n)`` of each Gram matrix.
    complete : bool
        Whether all columns have become orthonormal; those of zeros remain zero.
    bounds : tuple of float
        Bounds of the singular values of X: S is a product of orthonormal and diagonal matrices.
    """

    q: Any
    right: Any
    s: Any
    defects: tuple[float, ...]
    complete: bool
    bounds: tuple[float, float]


def orthonormal_basis(
    x: Array, ops: Ops, callback: Callable[[int, Array], None] | None = None
) -> _Basis:
    """Multiply X by ``V (D + shift)^-1/2`` for ``X^H X = V D V^H`` until it is nearly orthonormal.

    That product is backward stable for every condition number, as a triangular solve is, and each
    device multiplies the rows that it has.

    References
    ----------
    T. Fukaya, R. Kannan, Y. Nakatsukasa, Y. Yamamoto, Y. Yanagisawa, SIAM J. Sci. Comput. 42 (2020)
    A477-A503, section 3 (the shift, for Cholesky factors).
    """
    n = x.shape[-1]
    shift = LIKELY * math.sqrt(n) * format_of(format_name(x)).epsilon
    q, s, defects, low, high = x, None, [], 1.0, 1.0
    while True:
        # Eigenvectors and eigenvalues together, since each call is a broadcast.
        both = ops.computed_once(_spectrum, ops.gram(q))
        v, w = both[..., :-1, :], ops.to_host(both[..., -1:, :]).real
        defect = float(np.linalg.norm(w - 1, axis=-1).max())
        defects.append(defect / math.sqrt(n))
        complete = defect <= NEAR
        w = np.maximum(w, 0) + w[..., -1:] * (shift * (not complete))
        root = np.sqrt(np.where(w == 0, 1.0, w))
        low, high = low * float(root.min()), high * float(root.max())
        d = ops.from_host(root, v)
        right, left = ops.divide(v, d), ops.adjoint(v * d)
        s = left if s is None else ops.matmul(left, s)
        if complete or len(defects) == MOST or not math.isfinite(defect):
            # The singular values of S are known to its rounding errors.
            noise = shift * high
            bounds = (max(low - noise, 0.0), high + noise)
            return _Basis(q, right, s, tuple(defects), complete, bounds)
        q = ops.matmul(q, right)
        if callback is not None:
            callback(len(defects), q)


def traced_basis(x: Array, ops: Ops) -> tuple[Array, Array, Array]:
    """Return Q, S, and the number of Gram matrices of :func:`orthonormal_basis`, under a trace.

    ``X = Q S``. The loop of the library contains the stopping test.
    """
    xp, n = ops.xp, x.shape[-1]
    shift = LIKELY * math.sqrt(n) * format_of(format_name(x)).epsilon

    def step(state: Any) -> Any:
        q, s, _, k = state
        w, v = ops.eigh(ops.gram(q))
        left = xp.max(xp.sum((w - 1) ** 2, axis=-1)) > NEAR**2
        w = xp.maximum(w, xp.zeros_like(w)) + w[..., -1:] * (shift * xp.astype(left, w.dtype))
        root = xp.sqrt(w)[..., None, :]
        q = ops.matmul(q, ops.divide(v, ops.divisor(root)))
        return q, ops.matmul(ops.adjoint(v * root), s), left, k + 1

    def going(state: Any) -> Array:
        return state[2] & (state[3] < MOST)

    s = xp.broadcast_to(ops.eye(n, x), (*x.shape[:-2], n, n))
    q, s, _, k = ops.repeat_while(going, step, (x, s, xp.asarray(True), xp.asarray(0)))
    return q, s, k


def _spectrum(g: Array) -> Array:
    """Return eigenvectors above a row of the eigenvalues, shape (..., n + 1, n)."""
    ops = ops_of(g)
    w, v = ops.eigh(g)
    return ops.xp.concat([v, astype_like(w, v, ops)[..., None, :]], axis=-2)


def gram(
    x: Array,
    ops: Ops,
    *,
    tol: float,
    callback: Callable[[int, Array], None] | None = None,
    small: Callable[..., tuple[Array, Run]],
) -> tuple[Array, Run]:
    """Orthonormal basis by Gram matrices, then the unitary factor of an n x n matrix.

    The cost is 2 products with the whole matrix per Gram matrix. Backward stable, also for a
    rank-deficient matrix, whose basis is completed by rounding errors, unless it has zero columns.

    Parameters
    ----------
    small : callable
        Method for the n x n matrix, which is whole on every device.
    """
    b = orthonormal_basis(x, ops, callback)

    def factor(s: Array) -> Array:
        return s if 0 in s.shape else small(s, ops_of(s), tol=tol)[0]

    u = ops.matmul(b.q, ops.matmul(b.right, ops.computed_once(factor, b.s)))
    passes = len(b.defects)
    if callback is not None:
        callback(passes, u)
    certain = b.bounds if b.complete else None
    return u, Run(passes, 2 * passes, b.complete, b.defects, certain=certain)
