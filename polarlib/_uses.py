"""What the unitary factor is for: nearest matrices, Procrustes problems, square roots."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polarlib._methods.small import LARGEST
from polarlib._methods.small import rotation as small_rotation
from polarlib._methods.svd import polished
from polarlib.decompose import default_tolerance, polar, unitary_factor
from polarlib.ops import Ops, as_matrix, dtype_name, not_finite, unless_it_fails

__all__ = ["nearest_orthogonal", "nearest_rotation", "procrustes", "sqrtm_psd"]

Array = Any


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
    K. Fan and A. J. Hoffman, Proc. AMS 6 (1955) 111-116; N. J. Higham, Functions of Matrices (SIAM,
    2008), section 8.1.

    Examples
    --------
    >>> nearest_orthogonal([[0.0, -3.0], [2.0, 0.0]]).tolist()
    [[0.0, -1.0], [1.0, 0.0]]
    """
    return unitary_factor(a)


def nearest_rotation(a: Array) -> Array:
    """Rotation (orthogonal, determinant +1) nearest to a square real matrix in Frobenius norm.

    Parameters
    ----------
    a : array or array-like, shape (..., n, n)
        Real. Never changed. Integers become float64.

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
        For matrices that are not square, NaN or infinity.

    Notes
    -----
    G. Wahba, SIAM Rev. 7 (1965) 409; W. Kabsch, Acta Cryst. A 32 (1976) 922-923; S. Umeyama, IEEE
    Trans. PAMI 13 (1991) 376-380.

    Examples
    --------
    >>> nearest_rotation([[2.0, 0.0], [0.0, -1.0]]).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    a, ops = as_matrix(a)
    _refuse_complex(a, ops, "nearest_rotation")
    _check_square(a, "nearest_rotation")
    if 0 in a.shape:
        return ops.xp.zeros_like(a)
    if a.shape[-1] <= LARGEST:  # scales each matrix by itself, and NaN gives NaN
        r = small_rotation(a, ops)
        if not bool(ops.xp.all(ops.xp.isfinite(r))):
            _finite_peak(ops.at_least_single(a), ops, "a")
        return r
    return ops.like(_rotation(_scaled(a, ops, "a"), ops), a)


def procrustes(a: Array, b: Array, *, rotation: bool = False) -> Array:
    """Orthogonal (unitary) Q for which ``A Q`` is nearest to B in Frobenius norm.

    Equals the matrix of :func:`scipy.linalg.orthogonal_procrustes`, and takes stacks of matrices
    and any array library besides. Rows of A and B are points, or observations: to align clouds of
    points, subtract their means first. The factor s that makes ``s A Q`` nearest to B is
    ``sum(conj(A Q) * B).real / sum(abs(A)**2)``.

    Parameters
    ----------
    a, b : array or array-like, shape (..., m, n)
        Of one array library, never changed; leading axes broadcast. Integers become float64.
    rotation : bool, optional
        Only rotations, det Q = +1, of real matrices (Kabsch's algorithm).

    Returns
    -------
    array, shape (..., n, n)
        Unitary polar factor of ``A^H B``, or the rotation nearest to it. Of the common dtype of `a`
        and `b`. Unique if ``A^H B`` has full rank (for rotations see :func:`nearest_rotation`);
        otherwise one of the best.

    Raises
    ------
    TypeError
        If `a` or `b` is not an array of numbers, they are of two array libraries, or complex where
        a rotation is asked for.
    ValueError
        For shapes that do not match, NaN or infinity.

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
    if rotation:
        _refuse_complex(a, ops, "procrustes(rotation=True)")
    # Each by its own power of two: Q is the same, and their product cannot overflow.
    x, y = _scaled(a, ops, "a"), _scaled(b, ops, "b")
    product = ops.matmul(ops.adjoint(x), y)
    if 0 in product.shape:
        return ops.like(product, a)
    return ops.like(_rotation(product, ops) if rotation else unitary_factor(product), a)


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
        ``-max(100, n)`` epsilons of the largest; for NaN or infinity.

    Notes
    -----
    ``A = L L^H`` by Cholesky, and H of the polar decomposition ``L^H = U H``: ``H^2 = L L^H``.
    N. J. Higham, SIAM J. Sci. Stat. Comput. 7 (1986) 1160-1174; Functions of Matrices (SIAM, 2008),
    Algorithm 6.21. The condition number is that of L, the root of that of A. Where Cholesky fails,
    a matrix is singular to rounding, and the root is made of eigenvalues and eigenvectors, those of
    the wrong sign taken as zero. Either way ``H^2`` is A up to some epsilons of its norm: where A
    has small eigenvalues by cancellation, those of H below ``sqrt(eps)`` of the largest are noise.

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
        return ops.xp.zeros_like(a)
    # By the square of a power of two, so that scaling back is exact.
    root = ops.binary_scale(ops.xp.sqrt(_finite_peak(ops.at_least_single(a), ops, "a")))
    x = ops.divide(ops.divide(ops.at_least_single(a), root), root)
    z = ops.hermitian_part(x)
    tolerance = default_tolerance(a.shape, ops.format_name(a))
    skew = ops.read(ops.frobenius(x - z) / ops.divisor(ops.frobenius(x)))
    if not skew <= tolerance:
        raise ValueError(
            f"a is not Hermitian: its skew part is {skew:.1e} of it, above {tolerance:.1e}; "
            "pass (a + a^H) / 2 if that is what you mean"
        )
    factor = ops.cholesky(z)
    if math.isfinite(ops.read(ops.max_abs(factor))):
        h = polar(ops.adjoint(factor)).hermitian
    else:
        h = _root_by_eigenvalues(z, root, tolerance, ops)
    return ops.like(ops.scale(h, root), a)


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


def _finite_peak(x: Array, ops: Ops, name: str) -> Array:
    """Largest absolute entry of each matrix."""
    peak = ops.max_abs(x)
    if not math.isfinite(ops.read(peak)):
        raise ValueError(f"{name} {not_finite(ops.to_host(x))}; remove them first")
    return peak


def _scaled(a: Array, ops: Ops, name: str) -> Array:
    """In at least single precision, over a power of two near the largest entry."""
    x = ops.at_least_single(a)
    return x if 0 in x.shape else ops.divide(x, ops.binary_scale(_finite_peak(x, ops, name)))


def _pair(a: Array, b: Array) -> tuple[Array, Array, Ops]:
    """Two stacks of matrices of one shape, one library and one dtype."""
    (a, ops), (b, other) = as_matrix(a), as_matrix(b, "b")
    if ops.xp is not other.xp:
        raise TypeError(
            "a and b must be arrays of one library, got "
            f"{type(a).__module__.partition('.')[0]} and {type(b).__module__.partition('.')[0]}"
        )
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
        common = ops.xp.result_type(a, b)
        a, b = ops.xp.astype(a, common), ops.xp.astype(b, common)
    return a, b, ops


def _rotation(x: Array, ops: Ops) -> Array:
    """Nearest rotation of scaled real matrices."""
    if x.shape[-1] <= LARGEST:
        return small_rotation(x, ops)
    u, _, vh = ops.svd(x)
    turned = ops.xp.linalg.det(ops.matmul(u, vh)) < 0
    last = ops.xp.where(turned[..., None, None], -u[..., -1:], u[..., -1:])
    return polished(ops.matmul(ops.xp.concat([u[..., :-1], last], axis=-1), vh), ops)


def _root_by_eigenvalues(z: Array, root: Array | float, tolerance: float, ops: Ops) -> Array:
    """Square root of matrices over ``root**2`` of which one, at least, is not positive definite."""
    xp = ops.xp

    def lost() -> tuple[Array, Array]:
        return xp.sum(z * math.nan, axis=-1), z * math.nan

    values, vectors = unless_it_fails(lambda: tuple(ops.in_full(xp.linalg.eigh, z)), lost)
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
    roots = ops.like(xp.sqrt(xp.where(values > 0, values, xp.zeros_like(values))), vectors)
    return ops.hermitian_part(ops.matmul(vectors * roots[..., None, :], ops.adjoint(vectors)))
