"""Square roots of positive semidefinite matrices."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from polarlib._stages.options import default_tolerance
from polarlib.arrays.entered import enter
from polarlib.arrays.entry import ArrayT, as_matrix, refuse_hidden
from polarlib.arrays.functions import empty_result
from polarlib.arrays.library import astype_like, format_name
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.settings import looks, under_default_settings
from polarlib.decomposition import hermitian_part, polar
from polarlib.engine.rules import differentiable_root
from polarlib.uses.nearest import check_square

Array = Any


@looks
@under_default_settings
def sqrtm_psd(a: ArrayT) -> ArrayT:
    """Return the principal square root of a Hermitian positive semidefinite matrix.

    Parameters
    ----------
    a : array_like, shape (..., n, n)
        Hermitian up to ``max(100, n)`` epsilons. Not modified. Integers are converted to float64.

    Returns
    -------
    array, shape (..., n, n)
        The positive semidefinite H with ``H @ H = A``, exactly Hermitian, with the array library,
        device and dtype of `a`. Half precision is computed in float32.

    Raises
    ------
    TypeError
        If `a` is not an array of numbers.
    ValueError
        For matrices that are not square, not Hermitian up to ``max(100, n)`` epsilons, or have an
        eigenvalue below ``-max(100, n)`` epsilons of the largest; for NaN or infinity. With torch
        or JAX, also when a derivative is computed at a matrix that has an eigenvalue below n
        epsilons of the largest.

    Notes
    -----
    H is the Hermitian factor of ``L^H = U H``, where ``A = L L^H`` by Cholesky: ``H^2 = L L^H``.
    The condition number of L is the root of that of A. ``||L L^H - A||_F`` exceeds ``max(100, n)``
    epsilons of ``||A||_F`` if A is singular to rounding. The root of such a matrix is computed from
    eigenvalues and eigenvectors, with negative eigenvalues set to zero; other matrices of the stack
    are not affected.

    In both cases ``H^2`` is A up to some epsilons of its norm. If A has small eigenvalues by
    cancellation, those of H below ``sqrt(eps)`` times the largest are rounding errors. Under
    ``jax.jit`` and ``jax.vmap`` the root is computed from eigenvalues, and is NaN where an error
    would be raised.

    References
    ----------
    N. J. Higham, SIAM J. Sci. Stat. Comput. 7 (1986) 1160-1174. N. J. Higham, Functions of Matrices
    (SIAM, 2008), Algorithm 6.21.

    Examples
    --------
    >>> import numpy as np
    >>> h = sqrtm_psd([[5.0, 4.0], [4.0, 5.0]])
    >>> bool(np.allclose(h, [[2.0, 1.0], [1.0, 2.0]]))
    True
    """
    a, ops = as_matrix(a)
    check_square(a, "sqrtm_psd")
    if 0 in a.shape:
        return cast(ArrayT, empty_result(a, ops))
    return cast(ArrayT, differentiable_root(_found_root, a, sqrtm_psd))


def _found_root(a: Array) -> Array:
    """Return the square root of Hermitian matrices, without derivatives."""
    ops = ops_of(a)
    refuse_hidden(a, ops, "sqrtm_psd", "use inverse_root, and multiply by a")
    hidden = ops.is_abstract(a)
    # Scaled by the square of a power of two, so that scaling back is exact.
    entered = enter(a, ops=ops, scaling=lambda m, ops: ops.binary_scale(ops.xp.sqrt(m)))
    root = entered.scale
    x = ops.divide(entered.x, root)
    entered = entered._replace(x=None)  # free its storage before the root is computed
    tolerance = default_tolerance(a.shape, format_name(a))
    z = hermitian_part(x, ops, tolerance, look=not hidden)
    if hidden:
        return entered.leave(_hidden_root(x, z, tolerance, ops), root)
    del x
    return entered.leave(_root(z, root, tolerance, ops), root)


def _hidden_root(x: Array, z: Array, tolerance: float, ops: Ops) -> Array:
    """Return square roots from eigenvalues; NaN where :func:`sqrtm_psd` would raise an error."""
    xp = ops.xp
    values, vectors = ops.eigh(z)
    low, high = values[..., :1, None], values[..., -1:, None]
    right = ops.frobenius(x - z) <= tolerance * ops.frobenius(x)
    right = right & (low >= -tolerance * xp.where(high > -low, high, -low))  # NaN is not
    return xp.where(right, _of_eigenvalues(values, vectors, ops), xp.full_like(x, math.nan))


def _of_eigenvalues(values: Array, vectors: Array, ops: Ops) -> Array:
    """Return the square root from eigenvectors and eigenvalues, negative values set to zero."""
    xp = ops.xp
    roots = astype_like(xp.sqrt(xp.where(values > 0, values, xp.zeros_like(values))), vectors, ops)
    return ops.hermitian_part(ops.matmul(vectors * roots[..., None, :], ops.adjoint(vectors)))


def _root(z: Array, root: Array | float, tolerance: float, ops: Ops) -> Array:
    """Return square roots of matrices over ``root**2``, by Cholesky where its residual is small.

    For a matrix that is not positive definite a library may return NaN or arbitrary numbers.
    """
    xp = ops.xp
    factor = ops.cholesky(z)
    residual = ops.frobenius(ops.gemm(factor, ops.adjoint(factor), z, beta=-1.0))
    limit = default_tolerance(z.shape, format_name(z)) * ops.frobenius(z)
    right = residual <= limit  # NaN is not
    if bool(xp.all(right)):
        return polar(ops.adjoint(factor)).hermitian
    h = _root_by_eigenvalues(z, root, tolerance, ops)
    if not bool(xp.any(right)):
        return h
    # Failed factors may contain NaN, on which LAPACK may not terminate: use the identity instead.
    eye = xp.broadcast_to(ops.eye(z.shape[-1], z), z.shape)
    known = polar(ops.adjoint(xp.where(right, factor, eye))).hermitian
    return xp.where(right, known, h)


def _root_by_eigenvalues(z: Array, root: Array | float, tolerance: float, ops: Ops) -> Array:
    """Return square roots of matrices over ``root**2``, not all of them positive definite."""
    values, vectors = ops.eigh(z)
    smallest, largest = (ops.to_host(values)[..., i] for i in (0, -1))
    bad = ~(smallest >= -tolerance * np.maximum(largest, -smallest))  # NaN is bad
    if bad.any():
        worst = tuple(int(i) for i in np.argwhere(bad)[0])
        size = root if isinstance(root, float) else ops.to_host(root)[..., 0, 0][worst]
        where = f" in matrix {worst} of the stack" if worst else ""
        raise ValueError(
            f"a is not positive semidefinite: its smallest eigenvalue is "
            f"{smallest[worst] * size * size:.3e}{where}"
        )
    return _of_eigenvalues(values, vectors, ops)
