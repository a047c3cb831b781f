"""Power steps and maximisers of low rank, warm-started."""

from __future__ import annotations

from typing import Any

from polarlib.arrays.entry import as_matrix, check_same_place
from polarlib.arrays.functions import above_noise, as_complex
from polarlib.arrays.ops import Ops
from polarlib.arrays.settings import under_default_settings

__all__ = ["power_step", "range_lmo"]

Array = Any


# -- Dion's power step -----------------------------------------------------------------------


@under_default_settings
def power_step(m: Array, q: Array) -> tuple[Array, Array, Array]:
    """One warm-started power iteration: ``P = orth(M Q)``, ``R = M^H P``, Q anew.

    Parameters
    ----------
    m : array, shape (..., m, n)
        Matrix, say a momentum. In Dion error feedback then takes ``(1 - mu) P R^H`` off it.
    q : array, shape (..., n, k)
        Right factor of the step before, or Gaussian to begin with; k from 1 to min(m, n).

    Returns
    -------
    p : array, shape (..., m, k)
        Orthonormal columns, by Householder QR.
    r : array, shape (..., n, k)
        ``M^H P``, infinite where it overflows: ``P R^H`` is the projection of M to the range of P.
    q : array, shape (..., n, k)
        The columns of R, normalised. A zero column keeps that of the old Q, so that a zero matrix
        does not end the iteration. All results are complex if `m` or `q` is.

    Raises
    ------
    TypeError, ValueError
        If M or Q is no matrix of numbers, or they do not fit.

    Notes
    -----
    Cost: two products with k vectors and one QR. Half precision is computed in float32. Nothing is
    read off a device; NaN gives NaN. Ahn, Xu and others, Dion, arXiv 2504.05295, algorithm 1, which
    steps by ``P Q^H``: not the polar factor of ``P R^H``, since normalised columns are not
    orthonormal; its spectral norm exceeds 1. :func:`range_lmo` is what it stands for.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> m, q = rng.standard_normal((6, 5)), rng.standard_normal((5, 2))
    >>> p, r, q = power_step(m, q)
    >>> bool(np.allclose(r, m.T @ p)), bool(np.linalg.norm(p @ q.T, 2) > 1)
    (True, True)
    """
    m, ops = as_matrix(m, "m")
    m, q = _factor(q, "q", m, ops, m.shape[-1], min(m.shape[-2:]))
    x = ops.at_least_single(m)
    y = ops.astype_like(q, x)
    scale = ops.binary_scale(ops.max_abs(x))
    x = ops.divide(x, scale)
    p, _ = ops.qr(ops.matmul(x, y))
    r = ops.matmul(ops.adjoint(x), p)
    size = ops.xp.sqrt(ops.xp.sum(ops.xp.abs(r) ** 2, axis=-2, keepdims=True))
    y = ops.xp.where(size == 0, y, r / ops.xp.where(size == 0, ops.xp.ones_like(size), size))
    return ops.astype_like(p, m), ops.astype_like(ops.scale(r, scale), m), ops.astype_like(y, q)


@under_default_settings
def range_lmo(g: Array, p: Array) -> Array:
    """Maximiser of ``Re tr(G^H T)`` over ``||T||_2 <= 1`` within a range: ``P polar(P^H G)``.

    Parameters
    ----------
    g : array, shape (..., m, n)
        Matrix.
    p : array, shape (..., m, k)
        Orthonormal columns, for example of :func:`power_step`; k from 1 to m.

    Returns
    -------
    array, shape (..., m, n)
        A partial isometry: singular values of ``P^H G`` below ``max(m, n) * eps * sigma_1`` are
        left out, a zero matrix gives zero. Array library, device and dtype of `g`, complex if `p`
        is.

    Raises
    ------
    TypeError, ValueError
        If G or P is no matrix of numbers, or they do not fit.

    Notes
    -----
    Cost: two products with k vectors and an SVD of n x k. NaN or infinity gives NaN. Where the
    columns of P span the k leading left singular vectors this is ``U_k V_k^H``, the maximiser in
    the unit ball of the Ky Fan k-norm's dual.

    Examples
    --------
    >>> import numpy as np
    >>> range_lmo(np.diag([3.0, 2.0, 1.0]), np.eye(3)[:, :2]).round(12).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    g, ops = as_matrix(g, "g")
    g, p = _factor(p, "p", g, ops, g.shape[-2], g.shape[-2])
    x = ops.at_least_single(g)
    y = ops.astype_like(p, x)
    x = ops.divide(x, ops.binary_scale(ops.max_abs(x)))
    u, s, vh = ops.svd(ops.matmul(ops.adjoint(x), y))
    # NaN times zero, so that a matrix that is not finite gives NaN.
    kept = s * 0.0 + ops.xp.astype(above_noise(s, x.shape, ops), s.dtype)
    t = ops.matmul(ops.matmul(y, ops.adjoint(vh) * kept[..., None, :]), ops.adjoint(u))
    return ops.astype_like(t, g)


def _factor(
    a: Array, name: str, m: Array, ops: Ops, rows: int, columns: int
) -> tuple[Array, Array]:
    """Return a matrix and its factor, of the right library and shape, both complex if one is."""
    a, _ = as_matrix(a, name)
    check_same_place(m, "m" if name == "q" else "g", a, name)
    if a.shape[-2] != rows or not 0 < a.shape[-1] <= columns:
        raise ValueError(
            f"{name} must have {rows} rows and from 1 to {columns} columns, got shape "
            f"{tuple(a.shape)}"
        )
    if ops.is_complex(a) or ops.is_complex(m):
        return as_complex(m, ops), as_complex(a, ops)
    return m, a
