"""Nearest orthogonal matrices and rotations, and functions shared by the Procrustes problems."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from polarlib._methods.small import rotation as small_rotation
from polarlib._methods.small_algebra import LARGEST
from polarlib._methods.svd import polished
from polarlib._stages.options import default_tolerance
from polarlib.arrays.checks import number
from polarlib.arrays.entered import enter
from polarlib.arrays.entry import ArrayT, as_matrix, finite_max_abs
from polarlib.arrays.functions import empty_result, trace
from polarlib.arrays.library import (
    astype_like,
    at_least_single,
    dtype_name,
    format_name,
    is_complex,
)
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.settings import looks, under_default_settings
from polarlib.decomposition import unitary_factor
from polarlib.engine.rules import differentiable_unitary
from polarlib.result import ConvergenceWarning

Array = Any


# Nested lists come back as NumPy arrays.
@overload
def nearest_orthogonal(a: Sequence[Any]) -> np.ndarray: ...
@overload
def nearest_orthogonal(a: ArrayT) -> ArrayT: ...
@looks
def nearest_orthogonal(a: Array) -> Array:
    """Return the matrix with orthonormal columns (rows, if m < n) that is nearest to A.

    The nearest matrix is the unitary polar factor, in every unitarily invariant norm. Its distance
    in the Frobenius norm is ``sqrt(sum((sigma_i - 1)**2))``. :func:`polarlib.polar` also returns
    the Hermitian factor and error estimates, :func:`polarlib.orthogonalize` an approximation by few
    matrix products.

    Parameters
    ----------
    a : array_like, shape (..., m, n)
        Real or complex. Not modified. Integers are converted to float64.

    Returns
    -------
    array, shape (..., m, n)
        Unitary polar factor, with the array library, device and dtype of `a`. For a rank-deficient
        matrix the nearest one is not unique, and one of them is returned.

    Raises
    ------
    TypeError
        If `a` is not an array of numbers.
    ValueError
        For fewer than two dimensions, NaN or infinity.

    Notes
    -----
    H is not formed. Under ``jax.jit`` and ``jax.vmap`` the SVD is used, and NaN or infinity gives
    NaN.

    References
    ----------
    K. Fan and A. J. Hoffman, Proc. AMS 6 (1955) 111-116. N. J. Higham, Functions of Matrices (SIAM,
    2008), section 8.1.

    Examples
    --------
    >>> nearest_orthogonal([[0.0, -3.0], [2.0, 0.0]]).tolist()
    [[0.0, -1.0], [1.0, 0.0]]
    """
    return unitary_factor(a, name="nearest_orthogonal")


@overload
def nearest_rotation(a: Sequence[Any], *, regularization: float = ...) -> np.ndarray: ...
@overload
def nearest_rotation(a: ArrayT, *, regularization: float = ...) -> ArrayT: ...
@looks
@under_default_settings
def nearest_rotation(a: Array, *, regularization: float = 0.0) -> Array:
    """Return the rotation (orthogonal, determinant +1) nearest to A in the Frobenius norm.

    Parameters
    ----------
    a : array_like, shape (..., n, n)
        Real. Not modified. Integers are converted to float64.
    regularization : float, optional
        r, used by derivatives of torch and JAX alone. Their rule divides by the sums d of two of
        ``sigma_1, ..., sigma_(n-1), det(U V^T) sigma_n``. With r > 0, ``1 / d`` is replaced by
        ``d / (d^2 + (r sigma_1)^2)``, sigma_1 held constant. Derivatives then also exist where the
        rotation is not unique, and are bounded by ``1 / (r sigma_1)``. The relative bias is
        ``(r sigma_1 / d)^2``.

    Returns
    -------
    array, shape (..., n, n)
        With the array library, device and dtype of `a`. If det A > 0 the rotation is the unitary
        polar factor. If det A < 0 it is ``U diag(1, ..., 1, -1) V^T``, at the distance
        ``sqrt(sum((sigma_i - 1)**2) + 4 sigma_n)``. The rotation is unique if ``sigma_(n-1) > 0``
        and, for det A < 0, ``sigma_(n-1) > sigma_n``. Otherwise one of the nearest is returned.

    Raises
    ------
    TypeError
        If `a` is not an array of real numbers. The special unitary matrix nearest to a complex one
        has no closed form.
    ValueError
        For matrices that are not square, NaN or infinity, or a negative regularization. With torch
        or JAX, also when a derivative is computed without regularization where the rotation is not
        unique to rounding, ``d <= n eps sigma_1``. In code that JAX traces the derivative is NaN.
    ConvergenceWarning
        If neither closed forms nor the SVD give a matrix that passes the check.

    Notes
    -----
    Every result is checked to ``max(100, n)`` epsilons: R is orthogonal, det R = +1, ``R^T A`` is
    symmetric, and ``tr(R^T A)`` has its largest possible value. Under ``jax.jit`` and ``jax.vmap``
    the result is NaN for a matrix that is not finite or whose R fails the check. For derivatives
    see docs/guide/derivatives.md.

    References
    ----------
    G. Wahba, SIAM Rev. 7 (1965) 409. W. Kabsch, Acta Cryst. A 32 (1976) 922-923. S. Umeyama, IEEE
    Trans. PAMI 13 (1991) 376-380.

    Examples
    --------
    >>> nearest_rotation([[2.0, 0.0], [0.0, -1.0]]).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    a, ops = as_matrix(a)
    refuse_complex(a, "nearest_rotation")
    check_square(a, "nearest_rotation")
    r = number("regularization", regularization, 0)
    if 0 in a.shape:
        return empty_result(a, ops)
    exact = functools.partial(nearest_rotation, regularization=r)
    return differentiable_unitary(found_rotation, a, exact, rotation=True, regularization=r)


# -- shared ----------------------------------------------------------------------------------


def check_square(a: Array, name: str) -> None:
    if a.shape[-2] != a.shape[-1]:
        raise ValueError(f"{name} needs square matrices, got shape {tuple(a.shape)}")


def refuse_complex(a: Array, name: str) -> None:
    if is_complex(a):
        raise TypeError(
            f"{name} needs real matrices, got {dtype_name(a)}: the nearest special unitary matrix "
            "has no closed form; use nearest_orthogonal or procrustes for the nearest unitary one"
        )


def found_rotation(a: Array) -> Array:
    """Return the nearest rotations of real matrices, without derivatives."""
    ops = ops_of(a)
    return astype_like(_rotation(at_least_single(a, ops), ops), a, ops)


def _rotation(x: Array, ops: Ops) -> Array:
    """Return the nearest rotation of each real matrix of any scale, in at least single precision.

    Raise ValueError for NaN or infinity, and ConvergenceWarning if the result of the SVD fails the
    check too. Under a trace the result is NaN instead.
    """
    xp = ops.xp
    r = ops.compiled(_shown_rotation)(x)
    if not ops.is_abstract(x) and not bool(xp.all(xp.isfinite(r))):
        finite_max_abs(x, ops, "a")
        raise ConvergenceWarning(
            "no rotation passed the check of optimality: the SVD did not converge; use float64"
        )
    return r


def _shown_rotation(x: Array) -> Array:
    """Return the nearest rotations of real matrices of any scale; NaN where the check fails."""
    ops = ops_of(x)
    xp = ops.xp
    shown = None
    # Closed forms avoid one LAPACK call per matrix, but need hundreds of launches on a device.
    if x.shape[-1] <= LARGEST and ops.host:
        r, shown = small_rotation(x, ops)
        if bool(xp.all(shown)):
            return r
    entered = enter(x, ops=ops, look="never", mask=True)
    other, checked, _, _ = turn_by_svd(entered.x, ops)
    other = xp.where(entered.finite & checked, other, xp.full_like(x, math.nan))
    return other if shown is None else xp.where(shown[..., None, None], r, other)


def turn_by_svd(
    x: Array, ops: Ops, *, proper: bool = True
) -> tuple[Array, Array, Array, Array | float]:
    """Return nearest rotations, or unitary factors, of scaled matrices, and which are optimal.

    R is optimal if ``R^H A`` is Hermitian and its trace has the largest possible value,
    ``sigma_1 + ... + sigma_(n-1) + det(U V^T) sigma_n`` (without the determinant if not `proper`).

    Returns
    -------
    r : array, shape (..., n, n)
    shown : array of bool, shape (..., 1, 1)
        Whether R is optimal.
    s : array, shape (..., n)
        Singular values.
    sign : array, shape (..., 1, 1), or 1.0
        The determinant, if `proper`.
    """
    xp = ops.xp
    u, s, vh = ops.svd(x)
    sign: Array | float = 1.0
    if proper:
        sign = ops.determinant_sign(ops.matmul(u, vh))
        u = xp.concat([u[..., :-1], u[..., -1:] * sign], axis=-1)
    r = polished(ops.matmul(u, vh), ops)
    tol = default_tolerance(x.shape, format_name(x))
    size = ops.frobenius(x)
    w = ops.matmul(ops.adjoint(r), x)
    best = xp.sum(s[..., :-1], axis=-1)[..., None, None] + sign * s[..., -1:, None]
    shown = (
        (ops.frobenius(ops.add_diagonal(ops.gram(r), -1.0)) <= tol * math.sqrt(x.shape[-1]))
        & (ops.frobenius(w - ops.adjoint(w)) <= 2 * tol * size)  # W - W^H is twice the skew part
        & (trace(w, ops) >= best - tol * size)
    )
    if proper:
        shown = shown & (ops.determinant_sign(r) > 0)
    return r, shown, s, sign
