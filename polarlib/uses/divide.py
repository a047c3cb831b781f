"""Singular and eigenvalue decompositions by polar factors, for devices that lack good ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from polarlib._methods.svd import polished
from polarlib._stages.options import default_tolerance
from polarlib.arrays.checks import count
from polarlib.arrays.entered import enter
from polarlib.arrays.entry import as_matrix, refuse_hidden
from polarlib.arrays.functions import empty_result, real_part
from polarlib.arrays.library import format_name
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.settings import looks, under_default_settings
from polarlib.decomposition import hermitian_part, unitary_factor
from polarlib.engine.triplets import differentiable_eigenpairs, differentiable_triplets
from polarlib.uses.division import METHOD, division
from polarlib.uses.nearest import check_square

Array = Any
A = TypeVar("A")

# Order up to which the library's eigh decomposes a block: one factorisation then costs as much as
# the launches of a division. JAX's eigh on TPUs, spectral divide and conquer too, stops at 256.
SMALLEST = 128


class SVDResult(NamedTuple, Generic[A]):
    """Singular value decomposition ``A = U diag(s) V^H``, thin.

    Attributes
    ----------
    u, s, vh : array, shape (..., m, k), (..., k), (..., k, n), k = min(m, n)
        As :func:`svd_polar` returns them.
    """

    u: A
    s: A
    vh: A


class EighResult(NamedTuple, Generic[A]):
    """Eigenvalue decomposition ``H = V diag(w) V^H`` of a Hermitian matrix.

    Attributes
    ----------
    w, v : array, shape (..., n), (..., n, n)
        As :func:`eigh_polar` returns them.
    """

    w: A
    v: A


@looks
@under_default_settings
def svd_polar(a: A, *, smallest: int = SMALLEST) -> SVDResult[A]:
    """Compute the thin SVD from a polar decomposition, for devices without a good SVD.

    ``A = U_p H`` is computed by QDWH, for every shape, and ``H = V diag(s) V^H`` by
    :func:`eigh_polar`. Then ``U = U_p V``. On CPUs LAPACK's SVD is faster.

    Parameters
    ----------
    a : array_like, shape (..., m, n)
        Not modified. Integers are converted to float64; half precision is computed in float32.
    smallest : int, optional
        Order of H, min(m, n), up to which the library's ``eigh`` computes its eigenvectors; 128 by
        default. See :func:`eigh_polar`.

    Returns
    -------
    u : array, shape (..., m, k)
        Orthonormal columns, k = min(m, n), at deficient rank too.
    s : array, shape (..., k)
        Real, not negative, descending. A value beyond the largest number of the dtype is infinity.
    vh : array, shape (..., k, n)
        Orthonormal rows. Array library, device and dtype (real for `s`) are those of `a`.

    Raises
    ------
    TypeError
        If `a` is not an array of numbers.
    ValueError
        For fewer than two dimensions, a `smallest` below 1, NaN or infinity. Also when derivatives
        of vectors are computed at values that are zero or equal to rounding.

    Notes
    -----
    The error of a value is a small multiple of ``n u sigma_1``, u the unit roundoff. Small values
    have no relative accuracy. docs/evidence/spectral_division.md compares cost and time with those
    of LAPACK.

    The checks are: orthogonality and skew part of the polar factor, positive semidefiniteness of H,
    and the checks of :func:`eigh_polar` for the eigenvectors. If one of them fails, the library's
    SVD or ``eigh`` is called, for example for the zero matrix.

    Under ``jax.jit`` and ``jax.vmap`` QDWH has the steps for the largest condition number of the
    format, and the library's ``eigh`` decomposes H. U is then Q of a QR factorisation of A V, which
    is orthonormal for every rank. A matrix that is not finite gives NaN.

    torch and JAX differentiate by the rule of :func:`polarlib.top_singular`. Vectors have a
    derivative if the values are distinct and not zero. In torch's backward mode the gradient with
    respect to the values alone needs neither condition.

    References
    ----------
    Y. Nakatsukasa and N. J. Higham, Stable and efficient spectral divide and conquer algorithms for
    the symmetric eigenvalue decomposition and the SVD, SIAM J. Sci. Comput. 35 (2013) A1325-A1349,
    section 4.

    Examples
    --------
    >>> import numpy as np
    >>> u, s, vh = svd_polar(np.array([[0.0, 2.0], [0.0, 0.0], [3.0, 0.0]]))
    >>> s.round(12).tolist(), np.abs((u * s) @ vh).round(12).tolist()
    ([3.0, 2.0], [[0.0, 2.0], [0.0, 0.0], [3.0, 0.0]])
    """
    smallest = count("smallest", smallest, 1)
    matrix, ops = as_matrix(a)
    if 0 in matrix.shape:
        k = min(matrix.shape[-2:])
        s = real_part(matrix[..., :k, :k], ops)
        s = ops.cast(ops.xp.sum(s, axis=-1), format_name(matrix))
        return SVDResult(matrix[..., :k], s, matrix[..., :k, :])

    def find(a: Array) -> tuple[Array, ...]:
        return _where_it_is_fast(lambda a: _triplets(a, smallest), a)

    if ops.is_traced(matrix):
        return SVDResult(*differentiable_triplets(find, matrix, find))
    return SVDResult(*find(matrix))


@looks
@under_default_settings
def eigh_polar(h: A, *, smallest: int = SMALLEST) -> EighResult[A]:
    """Compute eigenvalues and eigenvectors of Hermitian matrices by spectral divide and conquer.

    The function is meant for devices without a good ``eigh``: most of the work is matrix products,
    QR and Cholesky factorisations. On CPUs LAPACK is faster.

    Parameters
    ----------
    h : array_like, shape (..., n, n)
        Hermitian up to ``max(100, n)`` epsilons. Not modified. Integers are converted to float64;
        half precision is computed in float32.
    smallest : int, optional
        Order of blocks, 128 by default, up to which the library's ``eigh`` is used. A matrix with
        n <= smallest, or a stack of them, is not divided. In a stack of larger matrices each is
        divided separately.

    Returns
    -------
    w : array, shape (..., n)
        Real, ascending. A value beyond the largest number of the dtype is infinity.
    v : array, shape (..., n, n)
        Orthonormal columns. Array library, device and dtype (real for `w`) are those of `h`.

    Raises
    ------
    TypeError
        If `h` is not an array of numbers.
    ValueError
        For matrices that are not square or not Hermitian, a `smallest` below 1, NaN or infinity.
        Also when derivatives of vectors are computed at eigenvalues that are equal to rounding.

    Notes
    -----
    The error of an eigenvalue is a small multiple of ``n u |H|_2``, u the unit roundoff. Small
    eigenvalues have no relative accuracy. A division of a block costs a polar factor by QDWH (6 to
    11 products of its order and the factorisations between them), two QR factorisations and 6
    products. docs/evidence/spectral_division.md has counts.

    The first shift is the median of the diagonal. A shift may be an eigenvalue: the signs of its
    eigenvectors are then arbitrary. After a division, the norm of the off-diagonal block is
    measured. If it exceeds ``4 sqrt(n) u |H|_F``, the next shift is used, and after four shifts the
    library's ``eigh``. A block that is diagonal up to ``sqrt(n) u |H|_F``, such as a multiple of
    the identity, is not divided further. At the end residual and orthogonality are measured. If one
    exceeds the tolerance of :func:`polarlib.polar`, the library's ``eigh`` decomposes the matrix.

    Under ``jax.jit`` and ``jax.vmap`` the orders of blocks cannot depend on entries, and the
    library's ``eigh`` is called. The result is NaN where an error would be raised. Otherwise
    matrices of JAX in the memory of the host are divided by NumPy. On other devices JAX compiles
    each order of a block, which takes seconds.

    torch and JAX differentiate by a rule. Vectors have a derivative if all eigenvalues are
    distinct. In torch's backward mode the gradient with respect to the eigenvalues alone does not
    need distinct eigenvalues.

    References
    ----------
    Y. Nakatsukasa and N. J. Higham, Stable and efficient spectral divide and conquer algorithms for
    the symmetric eigenvalue decomposition and the SVD, SIAM J. Sci. Comput. 35 (2013) A1325-A1349,
    section 3.

    Examples
    --------
    >>> import numpy as np
    >>> h = np.add.outer(np.arange(6.0), np.arange(6.0))
    >>> w, v = eigh_polar(h, smallest=2)
    >>> bool(np.allclose(h @ v, v * w)), w[[0, -1]].round(3).tolist()
    (True, [-3.166, 33.166])
    """
    smallest = count("smallest", smallest, 1)
    matrix, ops = as_matrix(h, "h")
    check_square(matrix, "eigh_polar")
    if 0 in matrix.shape:
        w = ops.xp.sum(real_part(matrix, ops), axis=-1)
        return EighResult(ops.cast(w, format_name(matrix)), empty_result(matrix, ops))

    def find(h: Array) -> tuple[Array, ...]:
        return _eigenpairs(h, smallest)

    if ops.is_traced(matrix):
        return EighResult(*differentiable_eigenpairs(find, matrix, find))
    return EighResult(*find(matrix))


def _triplets(a: Array, smallest: int) -> tuple[Array, Array, Array]:
    """Compute singular value decompositions, without derivatives."""
    ops = ops_of(a)
    refuse_hidden(a, ops, "svd_polar", "call the library's own SVD")
    hidden = ops.is_abstract(a)
    e = enter(a, ops=ops, tall=True)
    # polar() would compute singular values to determine the rank.
    u = polished(unitary_factor(e.x, method=METHOD, name="svd_polar"), ops)
    h = ops.hermitian_part(ops.matmul(ops.adjoint(u), e.x))
    w, v = ops.eigh(h) if hidden else _of_stack(h, ops, smallest)
    u, s, v = _from_factors(e.x, u, w, v, ops, hidden=hidden)
    u, vh = (v, ops.adjoint(u)) if e.wide else (u, ops.adjoint(v))
    # e.leave would convert the values to the complex dtype of the matrix.
    s = ops.cast(ops.scale(s[..., None, :], e.scale)[..., 0, :], format_name(a))
    return e.leave(u, turn=False), s, e.leave(vh, turn=False)


def _from_factors(
    x: Array, u: Array, w: Array, v: Array, ops: Ops, *, hidden: bool
) -> tuple[Array, Array, Array]:
    """Return U, s and V of tall matrices from U_p and the eigenpairs of H.

    The other properties of the polar decomposition have been checked. If H is not positive
    semidefinite, the library's SVD is used.
    """
    xp = ops.xp
    low, high = w[..., :1], w[..., -1:]
    if not hidden and bool(xp.any(low < -default_tolerance(x.shape, format_name(x)) * high)):
        u, s, vh = ops.svd(x)
        return u, s, ops.adjoint(vh)
    s, v = xp.flip(xp.where(w <= 0, xp.zeros_like(w), w), axis=-1), xp.flip(v, axis=-1)
    return _orthonormal(ops.matmul(x, v), ops) if hidden else ops.matmul(u, v), s, v


def _orthonormal(us: Array, ops: Ops) -> Array:
    """Return Q of the QR factorisation of ``U S``, largest columns first, diagonal of R positive.

    Columns of U S are orthogonal up to the rounding of the largest column, and the entries of R
    above its diagonal are of that size.
    """
    q, r = ops.qr(us)
    d = ops._diagonal(r)[..., None, :]
    size = ops.xp.abs(d)
    one = ops.xp.ones_like(d)
    return q * ops.xp.where(size > 0, d / ops.xp.where(size > 0, size, 1.0), one)


def _eigenpairs(h: Array, smallest: int) -> tuple[Array, Array]:
    """Compute eigenvalue decompositions, without derivatives."""
    ops = ops_of(h)
    xp = ops.xp
    refuse_hidden(h, ops, "eigh_polar", "call the library's own eigh")
    e = enter(h, "h", ops=ops)
    hidden = e.is_abstract
    tolerance = default_tolerance(h.shape, format_name(h))
    z = hermitian_part(e.x, ops, tolerance, look=not hidden, name="h")
    if hidden:
        w, v = ops.eigh(z)
        right = ops.frobenius(e.x - z) <= tolerance * ops.frobenius(e.x)  # NaN is not
        w = xp.where(right[..., 0], w, xp.full_like(w, math.nan))
        v = xp.where(right, v, xp.full_like(v, math.nan))
    else:
        w, v = _of_stack(z, ops, smallest)
    w = ops.cast(ops.scale(w[..., None, :], e.scale)[..., 0, :], format_name(h))
    return w, e.leave(v)


def _of_stack(z: Array, ops: Ops, smallest: int) -> tuple[Array, Array]:
    """Return eigenpairs of Hermitian matrices that are not traced."""
    if z.shape[-1] <= smallest:
        return ops.eigh(z)

    def one(z: Array) -> tuple[Array, ...]:
        return _where_it_is_fast(lambda z: division(z, ops_of(z), smallest)[:2], z)

    if z.ndim == 2:
        return one(z)
    xp = ops.xp
    flat = xp.reshape(z, (-1, *z.shape[-2:]))
    w, v = (
        xp.stack(t) for t in zip(*(one(flat[i, :, :]) for i in range(flat.shape[0])), strict=True)
    )
    return xp.reshape(w, z.shape[:-1]), xp.reshape(v, z.shape)


def _where_it_is_fast(find: Callable[[Array], tuple[Array, ...]], x: Array) -> tuple[Array, ...]:
    """Return ``find(x)``, computed by NumPy where it can view the storage and is faster.

    JAX would compile each operation for the order of each block.
    """
    ops = ops_of(x)
    known = not (ops.is_traced(x) or ops.is_abstract(x))
    view = ops._host_view(x) if known else None
    return find(x) if view is None else tuple(ops.from_host(r, x) for r in find(view))
