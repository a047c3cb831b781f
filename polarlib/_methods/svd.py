"""Method "svd": the unitary factor by the SVD, the reference and the fallback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polarlib._methods.gram import orthonormal_basis, traced_basis
from polarlib.arrays.functions import above_noise
from polarlib.arrays.library import astype_like
from polarlib.arrays.ops import Ops, ops_of
from polarlib.result import Run

Array = Any


def svd(
    x: Array, ops: Ops, *, tol: float, callback: Callable[[int, Array], None] | None = None
) -> tuple[Array, Run]:
    """U V^H from the singular value decomposition.

    The cost is one thin SVD (about 15 to 25 products of its size on a CPU) and three products.
    Backward stable; a rank-deficient matrix is completed to orthonormal columns. One Newton-Schulz
    step ``Q + Q (I - Q^H Q) / 2`` reduces the orthogonality error from the rounding of U and V, by
    a factor of three to six.

    References
    ----------
    N. J. Higham, Functions of Matrices (SIAM, 2008), Theorem 8.1.
    """
    u, s, vh = ops.svd(x)
    q = ops.matmul(u, vh)
    del u, vh  # free their storage before the refinement step
    q = polished(q, ops)
    if callback is not None:
        callback(1, q)
    return q, Run(1, 3, True, singular_values=s)


def polished(q: Array, ops: Ops) -> Array:
    """Apply one Newton-Schulz step, ``Q + Q (I - Q^H Q) / 2``, to an orthonormal matrix."""
    defect = ops.add_diagonal(ops.gram(q), -1.0)
    return ops.gemm(q, defect, q, alpha=-0.5, beta=1.0)


def partial_isometry(x: Array, ops: Ops, *, sharded: bool = False) -> Array:
    """Return U_r V_r^H for singular values above ``max(m, n) eps sigma_1``; 0 for a zero matrix.

    `sharded` is whether a matrix that is traced is sharded.
    """
    if sharded and ops.is_abstract(x):
        q, s, _ = traced_basis(x, ops)
        return ops.matmul(q, _truncated(s, x.shape, ops))
    if not ops.host and ops.is_sharded(x):
        b = orthonormal_basis(x, ops)
        w = ops.computed_once(lambda s: _truncated(s, x.shape, ops_of(s)), b.s)
        return ops.matmul(b.q, ops.matmul(b.right, w))
    return _truncated(x, x.shape, ops)


def _truncated(x: Array, shape: tuple[int, ...], ops: Ops) -> Array:
    u, s, vh = ops.svd(x)
    keep = ops.xp.astype(above_noise(s, shape, ops), s.dtype)
    return ops.matmul(u * astype_like(keep, u, ops)[..., None, :], vh)
