"""Singular values and eigenvalues by polar decompositions: spectral divide and conquer.

With the unitary polar factor S of ``H - sigma I``, a Hermitian matrix whose eigenvalues are signs,
``(I - S) / 2`` projects onto the eigenvectors of H below sigma, and ``(I + S) / 2`` onto the others.
Orthonormal bases of both subspaces make H block diagonal, and each block is divided in turn.
Y. Nakatsukasa and N. J. Higham, SIAM J. Sci. Comput. 35 (2013) A1325-A1349: algorithm QDWH-eig of
section 3 and QDWH-SVD of section 4.
"""

from __future__ import annotations

import math
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np

from polarlib._stages.options import default_tolerance
from polarlib.arrays.checks import count
from polarlib.arrays.entered import enter
from polarlib.arrays.entry import as_matrix, refuse_hidden
from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import empty_result, trace
from polarlib.arrays.library import astype_like, format_name, is_complex
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.settings import held_back, looks, under_default_settings
from polarlib.decomposition import hermitian_part, polar, unitary_factor
from polarlib.engine.triplets import differentiable_eigenpairs, differentiable_triplets
from polarlib.uses.nearest import check_square

Array = Any
A = TypeVar("A")

# Order up to which a block is given to the library's eigh: there one factorisation has the cost of
# the launches of a division. JAX's eigh on TPUs, which divides too, ends at 256.
SMALLEST = 128
# The method for polar factors: "auto" would take the SVD of small matrices.
METHOD = "qdwh"
# Off-diagonal part that a division may leave, and up to which a block is taken for diagonal, in
# units of ``sqrt(n) u |H|_F``. Divisions leave 0.2 to 0.9 (docs/spectral_division.md).
LEFT, DIAGONAL = 4.0, 1.0
# Skew part of a polar factor, in units of n u, from which it is made Hermitian and decomposed again.
SKEW = 100.0
SIGNS = 3


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
    """Thin singular value decomposition by the polar decomposition, for devices without a good SVD.

    ``A = U_p H`` by QDWH, for every shape, and the eigenvectors of H by :func:`eigh_polar`:
    ``H = V diag(s) V^H``, ``U = U_p V``. On CPUs LAPACK's SVD is faster.

    Parameters
    ----------
    a : array or array-like, shape (..., m, n)
        Never changed. Integers become float64; half precision is computed in float32.
    smallest : int, optional
        Order of H, min(m, n), up to which the library's own ``eigh`` finds its eigenvectors: see
        :func:`eigh_polar`.

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
        For fewer than two dimensions, a `smallest` below 1, NaN or infinity; where derivatives of
        vectors are computed at values that are zero or equal to rounding.

    Notes
    -----
    Values have an error of a small multiple of ``n u sigma_1``, u the unit roundoff: small ones
    have no relative accuracy. For the cost, and where this loses, see docs/spectral_division.md.
    The polar factor is checked as :func:`polarlib.polar` checks it, and the eigenvectors as
    :func:`eigh_polar` does.

    Under ``jax.jit`` and ``jax.vmap`` QDWH has the steps for the worst condition number, eigenvalues
    of H are those of the library, and U is the Q of a QR factorisation of A V, so that it is
    orthonormal whatever the rank. A matrix that is not finite gives NaN.

    torch and JAX differentiate by the rule of :func:`polarlib.top_singular`: vectors have a
    derivative where values are distinct and not zero, and torch's backward mode needs neither for
    the gradient with respect to the values alone.

    Nakatsukasa and Higham, SIAM J. Sci. Comput. 35 (2013) A1325-A1349, section 4.

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
        s = _real(matrix[..., :k, :k], ops)
        s = ops.cast(ops.xp.sum(s, axis=-1), format_name(matrix))
        return SVDResult(matrix[..., :k], s, matrix[..., :k, :])

    def find(a: Array) -> tuple[Array, ...]:
        return _triplets(a, smallest)

    if ops.is_traced(matrix):
        return SVDResult(*differentiable_triplets(find, matrix, find))
    return SVDResult(*find(matrix))


@looks
@under_default_settings
def eigh_polar(h: A, *, smallest: int = SMALLEST) -> EighResult[A]:
    """Eigenvalues and eigenvectors of Hermitian matrices by spectral divide and conquer.

    For devices without a good ``eigh``: products, QR and Cholesky factorisations do most of the
    work. On CPUs LAPACK is faster.

    Parameters
    ----------
    h : array or array-like, shape (..., n, n)
        Hermitian up to ``max(100, n)`` epsilons. Never changed. Integers become float64; half
        precision is computed in float32.
    smallest : int, optional
        Blocks of at most this order, 128 by default, are given to the library's own ``eigh``. So a
        matrix with n <= smallest, or a stack of them, is not divided at all; of a stack of larger
        ones each matrix is divided by itself.

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
        For matrices that are not square or not Hermitian, a `smallest` below 1, NaN or infinity;
        where derivatives of vectors are computed at eigenvalues that are equal to rounding.

    Notes
    -----
    Eigenvalues have an error of a small multiple of ``n u |H|_2``, u the unit roundoff: small ones
    have no relative accuracy. A division costs a polar factor by QDWH (about 8 products of its
    order), two QR factorisations and 5 products; both blocks together have half of that cost
    or more (docs/spectral_division.md).

    The shift is the median of the diagonal. If it is an eigenvalue, the signs of its eigenvectors
    are arbitrary, and any will do. The part of the transformed matrix outside of its two blocks is
    measured: above ``4 sqrt(n) u |H|_F`` another shift is taken, and after four shifts the library's
    ``eigh``. A block that is diagonal to this tolerance, such as a multiple of the identity, is
    finished. In the end ``|H V - V diag(w)|_F`` and ``|V^H V - I|_F`` are measured, and where one
    exceeds the tolerance of :func:`polarlib.polar` the library's ``eigh`` decomposes the matrix.

    Under ``jax.jit`` and ``jax.vmap``, where orders of blocks would depend on entries, the library's
    ``eigh`` is called; NaN where anything would be raised. Outside of them JAX compiles anew for
    each order of a block that it has not met.

    torch and JAX differentiate by a rule: vectors have a derivative where all eigenvalues are
    distinct, and torch's backward mode does not need that for the gradient with respect to the
    eigenvalues alone.

    Nakatsukasa and Higham, SIAM J. Sci. Comput. 35 (2013) A1325-A1349, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> h = np.add.outer(np.arange(6.0), np.arange(6.0))
    >>> w, v = eigh_polar(h, smallest=2)
    >>> bool(np.allclose(h @ v, v * w)), w.round(3).tolist()
    (True, [-3.166, -0.0, -0.0, 0.0, 0.0, 33.166])
    """
    smallest = count("smallest", smallest, 1)
    matrix, ops = as_matrix(h, "h")
    check_square(matrix, "eigh_polar")
    if 0 in matrix.shape:
        w = ops.xp.sum(_real(matrix, ops), axis=-1)
        return EighResult(ops.cast(w, format_name(matrix)), empty_result(matrix, ops))

    def find(h: Array) -> tuple[Array, ...]:
        return _eigenpairs(h, smallest)

    if ops.is_traced(matrix):
        return EighResult(*differentiable_eigenpairs(find, matrix, find))
    return EighResult(*find(matrix))


def _triplets(a: Array, smallest: int) -> tuple[Array, Array, Array]:
    """Singular value decompositions of matrices that nobody differentiates."""
    ops = ops_of(a)
    xp = ops.xp
    refuse_hidden(a, ops, "svd_polar", "call the library's own SVD")
    hidden = ops.is_abstract(a)
    e = enter(a, ops=ops, tall=True)
    p = polar(e.x, method=METHOD)
    w, v = (ops.eigh if hidden else lambda h: _of_stack(h, ops, smallest))(p.hermitian)
    s, v = xp.flip(xp.where(w <= 0, xp.zeros_like(w), w), axis=-1), xp.flip(v, axis=-1)
    u = _orthonormal(ops.matmul(e.x, v), ops) if hidden else ops.matmul(p.unitary, v)
    u, vh = (v, ops.adjoint(u)) if e.wide else (u, ops.adjoint(v))
    # Not e.leave, which would make the values complex with their matrix.
    s = ops.cast(ops.scale(s[..., None, :], e.scale)[..., 0, :], format_name(a))
    return e.leave(u, turn=False), s, e.leave(vh, turn=False)


def _orthonormal(us: Array, ops: Ops) -> Array:
    """U from ``U S``, largest columns first: QR, with phases that make the diagonal positive.

    Columns of U S are orthogonal up to rounding of the largest: what R has above its diagonal is
    of that size.
    """
    q, r = ops.qr(us)
    d = ops._diagonal(r)[..., None, :]
    size = ops.xp.abs(d)
    one = ops.xp.ones_like(d)
    return q * ops.xp.where(size > 0, d / ops.xp.where(size > 0, size, 1.0), one)


def _eigenpairs(h: Array, smallest: int) -> tuple[Array, Array]:
    """Eigenvalue decompositions of matrices that nobody differentiates."""
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
    """Eigenpairs of Hermitian matrices of visible entries."""
    if z.shape[-1] <= smallest:
        return cast(tuple[Array, Array], ops.eigh(z))
    if z.ndim == 2:
        return division(z, ops, smallest)[:2]
    xp = ops.xp
    flat = xp.reshape(z, (-1, *z.shape[-2:]))
    each = [division(flat[i, :, :], ops, smallest) for i in range(flat.shape[0])]
    w, v = (xp.stack([d[i] for d in each]) for i in (0, 1))
    return xp.reshape(w, z.shape[:-1]), xp.reshape(v, z.shape)


# -- one matrix --------------------------------------------------------------------------------


class Split(NamedTuple):
    """A division of a block.

    Attributes
    ----------
    order, below : int
        Order of the block, and how many of its eigenvalues are below the shift.
    signs : int
        Polar factors that were taken for it.
    left : float
        ``|V_2^H H V_1|_F``, in units of ``sqrt(n) u |H|_F`` of the whole matrix.
    """

    order: int
    below: int
    signs: int
    left: float


class Division(NamedTuple):
    """Eigenpairs of one matrix, and how they were found.

    Attributes
    ----------
    w, v : array, shape (n,), (n, n)
        As :func:`eigh_polar` returns them.
    splits : tuple of Split
        Divisions, in their order.
    finished : tuple of int
        Orders of the blocks that the library's ``eigh`` has decomposed.
    refused : tuple of int
        Orders of those among them that no shift has divided.
    """

    w: Array
    v: Array
    splits: tuple[Split, ...]
    finished: tuple[int, ...]
    refused: tuple[int, ...]


def division(z: Array, ops: Ops, smallest: int) -> Division:
    """Divide one Hermitian matrix, with entries of about 1, down to blocks that are finished.

    Parameters
    ----------
    z : array, shape (n, n)
        In at least single precision.
    ops : Ops
        Its arithmetic.
    smallest : int
        Order up to which blocks are given to the library.
    """
    unit = format_of(format_name(z)).unit_roundoff * math.sqrt(z.shape[-1]) * _norm(z, ops)
    todo: list[tuple[Array, Array | None]] = [(z, None)]
    pairs: list[tuple[Array, Array]] = []
    splits: list[Split] = []
    finished: list[int] = []
    refused: list[int] = []
    rng = np.random.default_rng(0)  # the same numbers for every library
    while todo:  # the blocks of the smallest eigenvalues first
        block, basis = todo.pop()
        n = block.shape[-1]
        known = _if_diagonal(block, DIAGONAL * unit, ops)
        if known is None and n > smallest:
            found = _divided(block, unit, rng, ops)
            if found is not None:
                split, parts = found
                splits.append(split)
                turned = [(b, q if basis is None else ops.matmul(basis, q)) for b, q in parts]
                todo += reversed(turned)
                continue
            refused.append(n)
        if known is None:
            finished.append(n)
            known = ops.eigh(block)
        pairs.append((known[0], known[1] if basis is None else ops.matmul(basis, known[1])))
    if not splits:
        ((w, v),) = pairs
        return Division(w, v, (), tuple(finished), tuple(refused))
    better = _refined(z, ops.xp.concat([v for _, v in pairs], axis=-1), ops)
    if better is None:
        finished, refused = [z.shape[-1]], [z.shape[-1]]
        better = ops.eigh(z)
    return Division(*better, tuple(splits), tuple(finished), tuple(refused))


def _norm(z: Array, ops: Ops) -> float:
    return ops.item(ops.frobenius(z))


def _if_diagonal(z: Array, limit: float, ops: Ops) -> tuple[Array, Array] | None:
    """Eigenpairs of a matrix that is diagonal up to a Frobenius norm; None of others."""
    n = z.shape[-1]
    eye = ops.eye(n, z)
    if not _norm(z - eye * z, ops) <= limit:
        return None
    d = ops.to_host(ops._diagonal(z)).real
    order = np.argsort(d, kind="stable")
    return ops.from_host(d[order], z), astype_like(ops.from_host(np.eye(n)[:, order], z), z, ops)


def _divided(
    z: Array, unit: float, rng: np.random.Generator, ops: Ops
) -> tuple[Split, list[tuple[Array, Array]]] | None:
    """Divide a block by the first shift that does it; None if none does."""
    n, signs = z.shape[-1], 0
    for shift in _shifts(z, ops):
        s, taken = _sign(z - ops.eye(n, z) * shift, ops)
        signs += taken
        mean = ops.item(trace(s, ops)) / n
        below = round(n * (1 - mean) / 2) if math.isfinite(mean) else 0
        if not 0 < below < n:
            continue
        q = _bases(s, below, rng, ops)
        t = ops.matmul(ops.adjoint(q), ops.matmul(z, q))
        left = _norm(t[below:, :below], ops)
        if left <= LEFT * unit:  # NaN is not
            parts = [
                (ops.hermitian_part(t[:below, :below]), q[:, :below]),
                (ops.hermitian_part(t[below:, below:]), q[:, below:]),
            ]
            return Split(n, below, signs, left / unit), parts
    return None


def _shifts(z: Array, ops: Ops) -> list[float]:
    """Shifts to divide by: the median of the diagonal, the mean eigenvalue, and two beside it.

    The mean is between the extreme eigenvalues, unless they are equal. Half of the standard
    deviation, from it, leads away from a multiple eigenvalue at the others.
    """
    d = ops.to_host(ops._diagonal(z)).real
    mean = float(np.mean(d))
    deviation = _norm(z - ops.eye(len(d), z) * mean, ops) / math.sqrt(len(d))
    shifts = (float(np.median(d)), mean, mean + deviation / 2, mean - deviation / 2)
    return list(dict.fromkeys(shifts))


def _sign(x: Array, ops: Ops) -> tuple[Array, int]:
    """Matrix sign of a Hermitian matrix by its polar factor, and how many were taken.

    Where eigenvalues of x are zero to rounding, the factor maps their eigenvectors to any
    orthonormal ones of the same space, and need not be Hermitian. It still commutes with x to
    rounding, since ``(a - b) / (|a| + |b|)`` is at most 1. So does its Hermitian part, whose sign is
    one of x too.
    """
    limit = SKEW * x.shape[-1] * format_of(format_name(x)).unit_roundoff
    for taken in range(1, SIGNS + 1):
        with held_back():  # of a factor that did not converge; what is left decides
            u = unitary_factor(x, method=METHOD)
        x = ops.hermitian_part(u)
        if _norm(u - x, ops) <= limit:
            break
    return x, taken


def _bases(s: Array, below: int, rng: np.random.Generator, ops: Ops) -> Array:
    """Orthonormal bases of the eigenspaces of a sign matrix: -1 in the first columns, then +1.

    Both projectors are applied at once, ``(X + S X D) / 2`` with D the signs of the columns.
    Projections of Gaussian columns have condition numbers of about n; those of the bases that
    they give are nearly orthonormal, and a second application takes off what rounding was
    magnified to (subspace iteration, section 3.1 of the paper).
    """
    n = s.shape[-1]
    signs = ops.from_host(np.where(np.arange(n) < below, -0.5, 0.5)[None, :], s)
    q = astype_like(ops.from_host(rng.standard_normal((n, n)), s), s, ops)
    for _ in range(2):
        q, _ = ops.qr(q * 0.5 + ops.matmul(s, q) * signs)
    return q


def _refined(z: Array, v: Array, ops: Ops) -> tuple[Array, Array] | None:
    """Eigenpairs from approximate vectors, ascending; None where they are not right.

    A Newton-Schulz step takes off what the products of bases have left of non-orthogonality, and
    Rayleigh quotients have an error of second order in the residual. Right are residuals and
    orthogonality within the tolerance of `polar`.
    """
    tolerance = default_tolerance(z.shape, format_name(z))
    defect = ops.add_diagonal(ops.gram(v), -1.0)
    v = ops.gemm(v, defect, v, alpha=-0.5, beta=1.0)
    zv = ops.matmul(z, v)
    w = ops.xp.sum(_real(ops.xp.conj(v) * zv, ops), axis=-2)
    residual = _norm(zv - v * w, ops)
    size = math.sqrt(z.shape[-1])
    right = _norm(defect, ops) <= tolerance * size and residual <= tolerance * _norm(z, ops)
    return _ascending(w, v, ops) if right else None  # NaN is not


def _ascending(w: Array, v: Array, ops: Ops) -> tuple[Array, Array]:
    """Sort eigenpairs: blocks ascend, and values at a shift may be out of order by rounding."""
    known = ops.to_host(w)
    if (known[1:] >= known[:-1]).all():
        return w, v
    xp = ops.xp
    order = xp.asarray(np.argsort(known, kind="stable"), device=ops._device_of(w))
    return xp.take(w, order), xp.take(v, order, axis=-1)


def _real(x: Array, ops: Ops) -> Array:
    return ops.xp.real(x) if is_complex(x) else x
