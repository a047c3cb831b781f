"""Power steps and LMOs (linear maximisation oracles) of low rank, warm-started."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from polarlib.arrays.checks import shown
from polarlib.arrays.entered import Entered, enter
from polarlib.arrays.entry import as_matrix, check_same_place, check_stacks, is_array
from polarlib.arrays.functions import above_noise, as_complex, empty_result
from polarlib.arrays.library import astype_like, at_least_single, dtype_name, is_complex
from polarlib.arrays.ops import ops_of
from polarlib.arrays.settings import looks, looks_at_nothing, under_default_settings

Array = Any
A = TypeVar("A")


@looks_at_nothing
@under_default_settings
def power_step(m: A, q: A) -> tuple[A, A, A]:
    """Return one warm-started power iteration: ``P = orth(M Q)``, ``R = M^H P``, and the next Q.

    Parameters
    ----------
    m : array, shape (..., m, n)
        For example a momentum. Dion's error feedback then subtracts ``(1 - mu) P R^H``.
    q : array, shape (..., n, k)
        Right factor of the previous step, Gaussian at the start; k from 1 to min(m, n).

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
        If M or Q is not a matrix of numbers, or their shapes do not fit.

    Notes
    -----
    Cost: two products with k vectors and one QR. Half precision is computed in float32. Nothing is
    read off a device; NaN gives NaN. Dion steps by ``P Q^H``. This is not the polar factor of
    ``P R^H``, since normalised columns are not orthonormal, and its spectral norm exceeds 1.
    :func:`range_lmo` is the LMO that it approximates.

    References
    ----------
    K. Ahn, B. Xu and others, Dion, arXiv 2504.05295, algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> m, q = rng.standard_normal((6, 5)), rng.standard_normal((5, 2))
    >>> p, r, q = power_step(m, q)
    >>> bool(np.allclose(r, m.T @ p)), bool(np.linalg.norm(p @ q.T, 2) > 1)
    (True, True)
    """
    e, right, y = _entered(m, "m", q, "q", -1)
    ops = e.ops
    orthonormal, _ = ops.qr(ops.matmul(e.x, y))
    r = ops.matmul(ops.adjoint(e.x), orthonormal)
    size = ops.xp.sqrt(ops.xp.sum(ops.xp.abs(r) ** 2, axis=-2, keepdims=True))
    y = ops.xp.where(size == 0, y, r / ops.divisor(size))
    return e.leave(orthonormal), e.leave(r, e.scale), astype_like(y, right, ops)


@looks
@under_default_settings
def range_lmo(g: A, p: A) -> A:
    """Return ``P polar(P^H G)``, which maximises ``Re tr(G^H T)`` over ``||T||_2 <= 1`` in a range.

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
        If G or P is not a matrix of numbers, or their shapes do not fit.

    Notes
    -----
    Cost: two products with k vectors and an SVD of n x k. NaN or infinity gives NaN. If the columns
    of P span the k leading left singular vectors, this is ``U_k V_k^H``, the LMO of the dual of the
    Ky Fan k-norm.

    Examples
    --------
    >>> import numpy as np
    >>> range_lmo(np.diag([3.0, 2.0, 1.0]), np.eye(3)[:, :2]).round(12).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    e, _, y = _entered(g, "g", p, "p", -2)
    ops, x = e.ops, e.x
    if e.is_empty:
        return cast(A, empty_result(e.given, ops))
    u, s, vh = ops.svd(ops.matmul(ops.adjoint(x), y))
    # NaN times zero, so that a matrix that is not finite gives NaN.
    kept = s * 0.0 + ops.xp.astype(above_noise(s, x.shape, ops), s.dtype)
    t = ops.matmul(ops.matmul(y, ops.adjoint(vh) * kept[..., None, :]), ops.adjoint(u))
    return cast(A, e.leave(t))


@looks_at_nothing
@under_default_settings
def feedback_step(m: Array, g: Array, q: Array, mu: float) -> tuple[Array, Array, Array]:
    """Return update, buffer and basis of :func:`polarlib.updates.dion`, for arrays of one shape."""
    if not is_array(q):
        raise TypeError(
            f"q must be an array of a supported library, got {shown(q)} ({type(q).__name__})"
        )
    if is_complex(q) and not is_complex(m):
        raise TypeError(f"q must be real like m, got {dtype_name(q)}; convert m to complex")
    if q.ndim > 2 and q.shape[:-2] != m.shape[:-2]:
        raise ValueError(
            f"q must have the leading axes of m, {tuple(m.shape[:-2])}, or none, got shape "
            f"{tuple(q.shape)}"
        )
    ops = ops_of(m)
    b = at_least_single(m, ops) + at_least_single(g, ops)
    p, r, basis = power_step(b, q)
    unit = astype_like(basis, b, ops)
    # The norms of the columns of R, without squares, which overflow.
    sizes = ops.sums((ops.xp.conj(unit) if is_complex(unit) else unit) * r, -2)
    kept = above_noise(ops.xp.abs(sizes)[..., 0, :], m.shape, ops)[..., None, :]
    update = ops.matmul(p, ops.adjoint(ops.xp.where(kept, unit, ops.xp.zeros_like(unit))))
    left = b - (1 - mu) * ops.matmul(p, ops.adjoint(r))
    return astype_like(update, m, ops), astype_like(left, m, ops), basis


def _entered(
    m: Any, name: str, factor: Any, factor_name: str, side: int
) -> tuple[Entered, Array, Array]:
    """Return the matrix, and its factor as given and in the dtype that is computed with.

    Both are complex if one is. The factor has as many rows as the matrix on its side -2 or -1.
    """
    (m, ops), (a, _) = as_matrix(m, name), as_matrix(factor, factor_name)
    check_same_place(m, name, a, factor_name)
    rows, columns = m.shape[side], m.shape[-2] if side == -2 else min(m.shape[-2:])
    if columns == 0:
        raise ValueError(
            f"{name} must have rows and columns, got shape {tuple(m.shape)}; leave it out"
        )
    if a.shape[-2] != rows or not 0 < a.shape[-1] <= columns:
        raise ValueError(
            f"{factor_name} must have {rows} rows and from 1 to {columns} columns, got shape "
            f"{tuple(a.shape)}"
        )
    check_stacks((name, m), (factor_name, a))
    if is_complex(a) or is_complex(m):
        m, a = as_complex(m, ops), as_complex(a, ops)
    # No check for NaN: Dion takes a step per matrix, and reading a number would make a device wait.
    e = enter(m, name, ops=ops, look="never")
    return e, a, astype_like(a, e.x, ops)
