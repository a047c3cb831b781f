"""What the unitary factor is for: nearest matrices, Procrustes problems, square roots."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from polarlib._checks import flag, number
from polarlib._derivatives import differentiable_root, differentiable_unitary
from polarlib._methods.small import LARGEST
from polarlib._methods.small import rotation as small_rotation
from polarlib._methods.svd import polished
from polarlib.decompose import (
    default_tolerance,
    hermitian_part,
    polar,
    unitary_factor,
)
from polarlib.ops import (
    Ops,
    as_matrix,
    check_same_place,
    dtype_name,
    finite_peak,
    looks,
    ops_of,
    refuse_hidden,
    under_default_settings,
)
from polarlib.result import ConvergenceWarning

__all__ = ["nearest_orthogonal", "nearest_rotation", "procrustes", "sqrtm_psd"]

Array = Any


@looks
def nearest_orthogonal(a: Array) -> Array:
    """Matrix with orthonormal columns (rows, if m < n) nearest to A: its unitary polar factor.

    Nearest in every unitarily invariant norm; in the Frobenius norm at the distance
    ``sqrt(sum((sigma_i - 1)**2))``. :func:`polarlib.polar` gives the Hermitian factor and evidence
    besides, :func:`polarlib.orthogonalize` an approximation by few matrix products.

    Parameters
    ----------
    a : array or array-like, shape (..., m, n)
        Real or complex. Never changed. Integers become float64.

    Returns
    -------
    array, shape (..., m, n)
        Array library, device and dtype of `a`. For a rank-deficient matrix the nearest one is not
        unique: one of them, with orthonormal columns all the same.

    Raises
    ------
    TypeError
        If `a` is not an array of numbers.
    ValueError
        For fewer than two dimensions, NaN or infinity.

    Notes
    -----
    Under ``jax.jit`` and ``jax.vmap`` by the SVD; NaN or infinity gives NaN there.
    K. Fan and A. J. Hoffman, Proc. AMS 6 (1955) 111-116; N. J. Higham, Functions of Matrices (SIAM,
    2008), section 8.1.

    Examples
    --------
    >>> nearest_orthogonal([[0.0, -3.0], [2.0, 0.0]]).tolist()
    [[0.0, -1.0], [1.0, 0.0]]
    """
    return unitary_factor(a, name="nearest_orthogonal")


@looks
@under_default_settings
def nearest_rotation(a: Array, *, regularization: float = 0.0) -> Array:
    """Rotation (orthogonal, determinant +1) nearest to a square real matrix in Frobenius norm.

    Parameters
    ----------
    a : array or array-like, shape (..., n, n)
        Real. Never changed. Integers become float64.
    regularization : float, optional
        r, for derivatives by torch or JAX alone. Their rule divides by the sums d of two of
        ``sigma_1, ..., sigma_(n-1), det(U V^T) sigma_n``; with r > 0 ``1 / d`` becomes
        ``d / (d^2 + (r sigma_1)^2)``, sigma_1 held constant: derivatives are bounded by
        ``1 / (r sigma_1)``, and exist where the rotation is not unique. The relative bias is
        ``(r sigma_1 / d)^2``.

    Returns
    -------
    array, shape (..., n, n)
        Array library, device and dtype of `a`. Where det A > 0 this is the unitary polar factor;
        where det A < 0 the direction of the smallest singular value is turned over:
        ``U diag(1, ..., 1, -1) V^T``, at the distance ``sqrt(sum((sigma_i - 1)**2) + 4 sigma_n)``.
        Unique if ``sigma_{n-1} > 0``, and ``sigma_{n-1} > sigma_n`` where det A < 0; otherwise one
        of the nearest.

    Raises
    ------
    TypeError
        If `a` is not an array of real numbers. The special unitary matrix nearest to a complex one
        has no closed form.
    ValueError
        For matrices that are not square, NaN or infinity, a regularization that is negative. With
        torch or JAX, when a derivative is computed without regularization where the rotation is
        not unique to rounding, ``d <= n eps sigma_1``; in code that JAX traces it is NaN.
    ConvergenceWarning
        If neither closed forms nor the SVD give a matrix that is shown to be the nearest rotation.

    Notes
    -----
    Every result is checked, to ``max(100, n)`` epsilons: R is orthogonal, det R = +1, ``R^T A`` is
    symmetric, and ``tr(R^T A)`` is the largest that there is. Under jax.jit and jax.vmap, where
    nothing can be raised, NaN stands for a matrix that is not finite or has no such R.
    G. Wahba, SIAM Rev. 7 (1965) 409; W. Kabsch, Acta Cryst. A 32 (1976) 922-923; S. Umeyama, IEEE
    Trans. PAMI 13 (1991) 376-380. Derivatives: docs/derivatives.md.

    Examples
    --------
    >>> nearest_rotation([[2.0, 0.0], [0.0, -1.0]]).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    a, ops = as_matrix(a)
    _refuse_complex(a, ops, "nearest_rotation")
    _check_square(a, "nearest_rotation")
    r = number("regularization", regularization, 0)
    if 0 in a.shape:
        return ops.empty_result(a)
    exact = functools.partial(nearest_rotation, regularization=r)
    return differentiable_unitary(_found_rotation, a, exact, rotation=True, regularization=r)


@looks
@under_default_settings
def procrustes(a: Array, b: Array, *, rotation: bool = False, regularization: float = 0.0) -> Array:
    """Orthogonal (unitary) Q for which ``A Q`` is nearest to B in Frobenius norm.

    Equals the matrix of :func:`scipy.linalg.orthogonal_procrustes`, and takes stacks of matrices
    and any array library besides. Rows of A and B are points, or observations: to align clouds of
    points, subtract their means first. The factor s that makes ``s A Q`` nearest to B is
    ``sum(conj(A Q) * B).real / sum(abs(A)**2)``.

    Parameters
    ----------
    a, b : array or array-like, shape (..., m, n)
        Of one array library and device, never changed; leading axes broadcast. Integers become
        float64.
    rotation : bool, optional
        Only rotations, det Q = +1, of real matrices (Kabsch's algorithm).
    regularization : float, optional
        For derivatives by torch or JAX, with respect to both arguments: see
        :func:`nearest_rotation`. Without `rotation` the sums are those of any two singular values
        of ``A^H B``.

    Returns
    -------
    array, shape (..., n, n)
        Unitary polar factor of ``A^H B``, or the rotation nearest to it. Of the dtype to which the
        library promotes those of `a` and `b`, float32 where it has no rule for two of 16 bits.
        Unique if ``A^H B`` has full rank (for rotations see :func:`nearest_rotation`);
        otherwise one of the best.

    Raises
    ------
    TypeError
        If `a` or `b` is not an array of numbers, they are of two array libraries, or complex where
        a rotation is asked for.
    ValueError
        For shapes that do not match, two devices, NaN or infinity, a regularization that is
        negative; for derivatives where Q is not unique, as :func:`nearest_rotation`.
    ConvergenceWarning
        Of rotations, as :func:`nearest_rotation`.

    Notes
    -----
    P. H. Schonemann, Psychometrika 31 (1966) 1-10; N. J. Higham, Functions of Matrices (SIAM,
    2008), section 8.1; W. Kabsch, Acta Cryst. A 32 (1976) 922-923.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> quarter_turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> bool(np.allclose(procrustes(a, a @ quarter_turn), quarter_turn))
    True
    """
    a, b, ops = _pair(a, b)
    if flag("rotation", rotation):
        _refuse_complex(a, ops, "procrustes(rotation=True)")
    r = number("regularization", regularization, 0)
    # Each by its own power of two: Q is the same, and their product cannot overflow.
    x, y = _scaled(a, ops, "a"), _scaled(b, ops, "b")
    product = ops.matmul(ops.adjoint(x), y)
    if 0 in product.shape:
        return ops.like(product, a)
    find = _found_rotation if rotation else functools.partial(unitary_factor, name="procrustes")
    if 0 in x.shape:  # of no points, any will do; it stays in the graph of what is recorded
        return ops.like(ops.constant(find, product) + product * 0.0, a)
    # In at least single precision, so that nothing need be found again for the rule.
    q = differentiable_unitary(find, product, find, rotation=rotation, regularization=r)
    return ops.like(q, a)


@looks
@under_default_settings
def sqrtm_psd(a: Array) -> Array:
    """Principal square root of a Hermitian positive semidefinite matrix.

    Parameters
    ----------
    a : array or array-like, shape (..., n, n)
        Hermitian up to ``max(100, n)`` epsilons. Never changed. Integers become float64.

    Returns
    -------
    array, shape (..., n, n)
        The positive semidefinite H with ``H @ H = A``, Hermitian bit for bit. Array library, device
        and dtype of `a`; half precision is computed in float32.

    Raises
    ------
    TypeError
        If `a` is not an array of numbers.
    ValueError
        For matrices that are not square, not Hermitian, or have an eigenvalue below
        ``-max(100, n)`` epsilons of the largest; for NaN or infinity. With torch or JAX, when a
        derivative is computed at a matrix that has an eigenvalue below n epsilons of the largest.

    Notes
    -----
    ``A = L L^H`` by Cholesky, and H of the polar decomposition ``L^H = U H``: ``H^2 = L L^H``.
    N. J. Higham, SIAM J. Sci. Stat. Comput. 7 (1986) 1160-1174; Functions of Matrices (SIAM, 2008),
    Algorithm 6.21. The condition number is that of L, the root of that of A. Where
    ``||L L^H - A||_F`` exceeds ``max(100, n)`` epsilons of ``||A||_F``, since A is singular to
    rounding, the root is made of eigenvalues and eigenvectors, those of the wrong sign taken as
    zero. The other matrices of a stack keep theirs. Either way ``H^2`` is A up to some epsilons of
    its norm: where A has small eigenvalues by cancellation, those of H below ``sqrt(eps)`` of the
    largest are noise. Under ``jax.jit`` and ``jax.vmap`` it is made of eigenvalues, and NaN where
    anything would be raised.

    Examples
    --------
    >>> import numpy as np
    >>> h = sqrtm_psd([[5.0, 4.0], [4.0, 5.0]])
    >>> bool(np.allclose(h, [[2.0, 1.0], [1.0, 2.0]]))
    True
    """
    a, ops = as_matrix(a)
    _check_square(a, "sqrtm_psd")
    if 0 in a.shape:
        return ops.empty_result(a)
    return differentiable_root(_found_root, a, sqrtm_psd)


# -- shared ----------------------------------------------------------------------------------


def _check_square(a: Array, name: str) -> None:
    if a.shape[-2] != a.shape[-1]:
        raise ValueError(f"{name} needs square matrices, got shape {tuple(a.shape)}")


def _refuse_complex(a: Array, ops: Ops, name: str) -> None:
    if ops.is_complex(a):
        raise TypeError(
            f"{name} needs real matrices, got {dtype_name(a)}: the nearest special unitary matrix "
            "has no closed form; use nearest_orthogonal or procrustes for the nearest unitary one"
        )


def _scaled(a: Array, ops: Ops, name: str) -> Array:
    """In at least single precision, over a power of two near the largest entry."""
    x = ops.at_least_single(a)
    if 0 in x.shape:
        return x
    return ops.divide(
        x,
        ops.constant(
            lambda x: ops.binary_scale(finite_peak(x, ops, name, look=not ops.hidden(x))), x
        ),
    )


def _pair(a: Array, b: Array) -> tuple[Array, Array, Ops]:
    """Two stacks of matrices of one shape, one library and one dtype."""
    (a, ops), (b, _) = as_matrix(a), as_matrix(b, "b")
    check_same_place(a, "a", b, "b")
    shapes = tuple(a.shape), tuple(b.shape)
    if shapes[0][-2:] != shapes[1][-2:]:
        raise ValueError(
            f"a and b must have the same rows and columns, got {shapes[0]}, {shapes[1]}"
        )
    try:
        np.broadcast_shapes(shapes[0][:-2], shapes[1][:-2])
    except ValueError:
        raise ValueError(
            f"the stacks of a and b do not broadcast: shapes {shapes[0]} and {shapes[1]}"
        ) from None
    if a.dtype != b.dtype:
        # Nothing is promoted to a format of 8 bits or from it.
        a, b = (ops.at_least_single(x) if "float8" in ops.format_name(x) else x for x in (a, b))
        common = ops.common_dtype(a, b)
        a, b = ops.xp.astype(a, common), ops.xp.astype(b, common)
    return a, b, ops.together(a, b)


def _found_rotation(a: Array) -> Array:
    """Nearest rotation of real matrices that nobody differentiates."""
    ops = ops_of(a)
    return ops.like(_rotation(ops.at_least_single(a), ops), a)


def _rotation(x: Array, ops: Ops) -> Array:
    """Nearest rotation of each real matrix, none that is not shown to be one.

    Parameters
    ----------
    x : array, shape (..., n, n)
        Real, in at least single precision, of any scale.
    ops : Ops
        Arithmetic of its library.

    Returns
    -------
    array, shape (..., n, n)
        Where numbers cannot be looked at, NaN in place of errors.

    Raises
    ------
    ValueError
        For NaN or infinity.
    ConvergenceWarning
        If the SVD does not give a nearest rotation either.
    """
    xp = ops.xp
    r = ops.compiled(_shown_rotation)(x)
    if not ops.hidden(x) and not bool(xp.all(xp.isfinite(r))):
        finite_peak(x, ops, "a")
        raise ConvergenceWarning(
            "the nearest rotation was not found: the SVD did not converge; use float64"
        )
    return r


def _shown_rotation(x: Array) -> Array:
    """Nearest rotations of real matrices of any scale; NaN where none is shown to be one."""
    ops = ops_of(x)
    xp = ops.xp
    shown = None
    if x.shape[-1] <= LARGEST:
        r, shown = small_rotation(x, ops)
        if not ops.hidden(x) and bool(xp.all(shown)):
            return r
    peak = ops.max_abs(x)
    finite = xp.isfinite(peak)
    y = xp.where(finite, ops.divide(x, ops.binary_scale(peak)), xp.zeros_like(x))
    other, found = _rotation_by_svd(y, ops)
    other = xp.where(finite & found, other, xp.full_like(x, math.nan))
    return other if shown is None else xp.where(shown[..., None, None], r, other)


def _rotation_by_svd(x: Array, ops: Ops) -> tuple[Array, Array]:
    """Nearest rotations of scaled matrices, and whether each is shown to be one, (..., 1, 1).

    R is the nearest if ``R^T A`` is symmetric and its trace is the largest that there is,
    ``sigma_1 + ... + sigma_(n-1) + det(U V^T) sigma_n``.
    """
    xp = ops.xp
    u, s, vh = ops.svd(x)
    sign = ops.determinant_sign(ops.matmul(u, vh))
    last = u[..., -1:] * sign
    r = polished(ops.matmul(xp.concat([u[..., :-1], last], axis=-1), vh), ops)
    tol = default_tolerance(x.shape, ops.format_name(x))
    size = ops.frobenius(x)
    w = ops.matmul(ops.adjoint(r), x)
    best = xp.sum(s[..., :-1], axis=-1)[..., None, None] + sign * s[..., -1:, None]
    shown = (
        (ops.frobenius(ops.add_diagonal(ops.gram(r), -1.0)) <= tol * math.sqrt(x.shape[-1]))
        & (ops.determinant_sign(r) > 0)
        & (ops.frobenius(w - ops.adjoint(w)) <= 2 * tol * size)
        & (ops.trace(w) >= best - tol * size)
    )
    return r, shown


def _found_root(a: Array) -> Array:
    """Square root of Hermitian matrices that nobody differentiates."""
    ops = ops_of(a)
    refuse_hidden(a, ops, "sqrtm_psd", "use inverse_root, and multiply by a")
    hidden = ops.hidden(a)
    x = ops.at_least_single(a)
    # By the square of a power of two, so that scaling back is exact.
    root = ops.binary_scale(ops.xp.sqrt(finite_peak(x, ops, "a", look=not hidden)))
    x = ops.divide(ops.divide(x, root), root)
    tolerance = default_tolerance(a.shape, ops.format_name(a))
    z = hermitian_part(x, ops, tolerance, look=not hidden)
    if hidden:
        return ops.like(ops.scale(_hidden_root(x, z, tolerance, ops), root), a)
    del x
    return ops.like(ops.scale(_root(z, root, tolerance, ops), root), a)


def _hidden_root(x: Array, z: Array, tolerance: float, ops: Ops) -> Array:
    """Square roots by eigenvalues; NaN where :func:`sqrtm_psd` would raise."""
    xp = ops.xp
    values, vectors = ops.eigh(z)
    low, high = values[..., :1, None], values[..., -1:, None]
    right = ops.frobenius(x - z) <= tolerance * ops.frobenius(x)
    right = right & (low >= -tolerance * xp.where(high > -low, high, -low))  # NaN is not
    return xp.where(right, _of_eigenvalues(values, vectors, ops), xp.full_like(x, math.nan))


def _of_eigenvalues(values: Array, vectors: Array, ops: Ops) -> Array:
    """The square root from eigenvalues, negative ones taken as zero, and eigenvectors."""
    xp = ops.xp
    roots = ops.like(xp.sqrt(xp.where(values > 0, values, xp.zeros_like(values))), vectors)
    return ops.hermitian_part(ops.matmul(vectors * roots[..., None, :], ops.adjoint(vectors)))


def _root(z: Array, root: Array | float, tolerance: float, ops: Ops) -> Array:
    """Square roots of matrices over ``root**2``, by Cholesky where that is shown to be right.

    A library may leave NaN, or numbers of no meaning, of a matrix that is not positive definite.
    """
    xp = ops.xp
    factor = ops.cholesky(z)
    residual = ops.frobenius(ops.gemm(factor, ops.adjoint(factor), z, beta=-1.0))
    limit = default_tolerance(z.shape, ops.format_name(z)) * ops.frobenius(z)
    right = residual <= limit  # NaN is not
    if bool(xp.all(right)):
        return polar(ops.adjoint(factor)).hermitian
    h = _root_by_eigenvalues(z, root, tolerance, ops)
    if not bool(xp.any(right)):
        return h
    eye = xp.broadcast_to(ops.eye(z.shape[-1], z), z.shape)
    known = polar(ops.adjoint(xp.where(right, factor, eye))).hermitian
    return xp.where(right, known, h)


def _root_by_eigenvalues(z: Array, root: Array | float, tolerance: float, ops: Ops) -> Array:
    """Square root of matrices over ``root**2`` of which one, at least, is not positive definite."""
    values, vectors = ops.eigh(z)
    smallest, largest = (ops.to_host(values)[..., i] for i in (0, -1))
    bad = ~(smallest >= -tolerance * np.maximum(largest, -smallest))
    if bad.any():
        worst = tuple(int(i) for i in np.argwhere(bad)[0])
        size = root if isinstance(root, float) else ops.to_host(root)[..., 0, 0][worst]
        where = f" in matrix {worst} of the stack" if worst else ""
        raise ValueError(
            f"a is not positive semidefinite: its smallest eigenvalue is "
            f"{smallest[worst] * size * size:.3e}{where}"
        )
    return _of_eigenvalues(values, vectors, ops)
