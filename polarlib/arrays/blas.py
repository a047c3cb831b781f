"""Kernels on NumPy matrices by routines of BLAS and LAPACK, in place, in column-major order.

Matrices are two-dimensional and column-major (``x.flags.f_contiguous``), of one of the four types
of BLAS. A row-major matrix is processed as its transpose, without conjugation, which callers must
take into account. Hermitian matrices are stored in their upper triangle. No kernel reads the lower
triangle, and only :func:`mirror` writes it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from polarlib.arrays import routines
from polarlib.arrays.routines import LETTERS

Array = Any

# Columns per block of Cholesky factors and triangular solves, whose diagonal blocks are inverted;
# columns per block of transpositions; entries per block of reductions, which fit in the caches. All
# chosen by experiment.
SOLVED = 128
TILE = 96
CHUNK = 1 << 15
# Lanczos steps for the largest eigenvalue, whose error is about one percent.
RITZ_STEPS = 10
# Relative margins of the estimates of sigma_max and sigma_min by Lanczos steps, and their number.
SLACK, STEPS = 0.02, 8
# |1 - sigma^2| below which single precision suffices for a correction.
SINGLE_BELOW = 2.0**-27
# sigma_min / sigma_max, in square roots of epsilon, that a Gram matrix can resolve.
RESOLVED = 10.0
# Seed of the first Lanczos vector. It must not be the seed of a test matrix, since a matrix made of
# the same numbers may be orthogonal to the vector.
DIRECTION = 20120911


def computes_in(dtype: np.dtype) -> bool:
    """Return whether BLAS computes in a type (in native byte order)."""
    return dtype.char in LETTERS and dtype.isnative and routines.source() is not None


def has_kernels(*arrays: Array) -> bool:
    """Return whether arrays are matrices of one type in which BLAS computes."""
    dtype = arrays[0].dtype
    return computes_in(dtype) and all(a.ndim == 2 and a.dtype == dtype for a in arrays)


# -- storage ---------------------------------------------------------------------------------


def columns(x: Array) -> tuple[Array, bool]:
    """Return a column-major matrix, and whether it is the transpose; a copy only if necessary."""
    if x.flags.f_contiguous:
        return x, False
    if x.flags.c_contiguous:
        return x.T, True
    return np.asfortranarray(x), False


def diagonal(z: Array) -> Array:
    """Return a writable view of the diagonal."""
    return z.T.reshape(-1)[:: z.shape[0] + 1]


def add_diagonal(z: Array, a: float) -> None:
    """Add ``a I``."""
    d = diagonal(z)
    d += d.dtype.type(a)


def mirror(z: Array, out: Array | None = None) -> Array:
    """Complete a Hermitian matrix from its upper triangle, in place or in `out` of any type."""
    n = z.shape[0]
    out = z if out is None else out
    for j in range(0, n, TILE):
        e = min(n, j + TILE)
        if out is not z:
            out[:e, j:e] = z[:e, j:e]
        for i in range(0, j, TILE):
            out[j:e, i : i + TILE] = z[i : i + TILE, j:e].conj().T
        block = out[j:e, j:e]
        np.copyto(block, block.conj().T, where=_below(e - j))
    return out


@functools.lru_cache(maxsize=16)
def _below(n: int) -> Array:
    """Return a mask of the strictly lower triangle."""
    below = np.tri(n, k=-1, dtype=bool)
    below.flags.writeable = False
    return below


# -- products --------------------------------------------------------------------------------


def gram(x: Array, out: Array | None = None, *, alpha: float = 1.0, rows: bool = False) -> Array:
    """Return the upper triangle of ``alpha X^H X``, or with `rows` of ``alpha X X^H``."""
    k = x.shape[0 if rows else 1]
    if out is None:
        out = np.zeros((k, k), x.dtype, order="F")
    return routines.herk(alpha, x, 0.0, out, trans="N" if rows else "C")


def times(x: Array, z: Array, out: Array, *, beta: float = 0.0) -> Array:
    """Store ``X Z + beta X`` in `out`, Z Hermitian."""
    if beta:
        np.multiply(x, x.dtype.type(beta), out=out)
    return routines.hemm(x, z, float(beta != 0), out)


def quadratic(g: Array, work: Array, c0: float, c1: float, c2: float) -> None:
    """Replace a Hermitian G by ``c0 I + c1 G + c2 G^2``; `work` is overwritten."""
    # c2 (G + s I)^2 + (c0 - c2 s^2) I: half a product, and passes over diagonals only.
    s = c1 / (2 * c2)
    mirror(g, work)
    add_diagonal(work, s)
    gram(work, g, alpha=c2)
    add_diagonal(g, c0 - c2 * s * s)


def matmul(
    a: Array, b: Array, out: Array | None = None, *, alpha: float = 1.0, beta: float = 0.0
) -> Array:
    """Return ``alpha a @ b + beta out``, for any memory order; row-major without `out`."""
    if out is None:
        out = np.empty((a.shape[0], b.shape[1]), a.dtype)
    target, flip = columns(out)
    if flip:
        a, b = b.T, a.T
    (a, turn_a), (b, turn_b) = columns(a), columns(b)
    turns = {"left": "NT"[turn_a], "right": "NT"[turn_b]}
    result = routines.gemm(alpha, a, b, beta, target, **turns)
    if not (out.flags.f_contiguous or out.flags.c_contiguous):  # then `target` is a copy
        out[...] = result
    return out


def whole_gram(x: Array, out: Array | None = None) -> Array:
    """Return ``X^H X``, both triangles, for any memory order of X; row-major without `out`."""
    if out is None:
        out = np.empty((x.shape[1], x.shape[1]), x.dtype)
    target, turned = columns(out)
    y, flip = columns(x)
    # Row-major storage of a Hermitian matrix is column-major storage of its conjugate, which is the
    # result of BLAS for the transpose of X. If only one of X and `out` is row-major, a further pass
    # is needed.
    result = mirror(gram(y, target, rows=flip))
    if flip != turned and x.dtype.kind == "c":
        np.conjugate(result, out=result)
    if not (out.flags.f_contiguous or out.flags.c_contiguous):
        out[...] = result
    return out


# -- factorisations --------------------------------------------------------------------------


def cholesky(z: Array) -> bool:
    """Replace the upper triangle of Z by R with ``Z = R^H R``; False if it is not definite."""
    return _is_finite(z) and routines.potrf(z)


def _is_finite(z: Array) -> bool:
    # Some implementations continue after NaN: sums of rows of the triangle detect it.
    return bool(np.isfinite(routines.hemv(z, np.ones(len(z), z.dtype))).all())


def resolvent(x: Array, z: Array, out: Array, alpha: float, beta: float) -> bool:
    """Store ``alpha X Z^-1 + beta X`` in `out`; False if Z is not definite.

    Z is Hermitian and may be overwritten. The result is computed by a Cholesky factor and two
    triangular solves with inverted diagonal blocks. Solves then become products of small triangles
    with many columns, which are faster. This is as stable as solves for the condition numbers that
    occur here, those of blocks of the factor of ``I + c X^H X``, c up to 1000.
    """
    inverses = _cholesky_by_blocks(z)
    if inverses is None:
        return False
    _solve(x, z, inverses, out, alpha)
    n = z.shape[0]
    for j, inverse in reversed(inverses):
        end = j + inverse.shape[0]
        part = out[:, j:end]
        if end < n:
            routines.gemm(-1.0, out[:, end:], z[j:end, end:], 1.0, part, right="C")
        routines.trmm(1.0, inverse, part, side="R", trans="C")
    if beta:
        routines.axpy(beta, x.T.reshape(-1), out.T.reshape(-1))
    return True


def _cholesky_by_blocks(z: Array) -> list[tuple[int, Array]] | None:
    """Replace Z as :func:`cholesky` does; return the inverses of the diagonal blocks of R.

    The rows of R to the right of a block are computed with its inverse instead of a solve. For
    n = 2048 this is twice as fast as LAPACK's routine. Return None if Z is not definite.
    """
    n = z.shape[0]
    inverses = []
    if not _is_finite(z):
        return None
    for j in range(0, n, SOLVED):
        end = min(n, j + SOLVED)
        block, right = z[j:end, j:end], z[j:end, end:]
        if not routines.potrf(block):
            return None
        inverse = np.array(block, order="F")
        routines.trtri(inverse)
        inverses.append((j, inverse))
        routines.trmm(1.0, inverse, right, trans="C")
        routines.herk(-1.0, right, 1.0, z[end:, end:])
    return inverses


def solve(x: Array, r: Array, out: Array, *, rows: bool = False) -> None:
    """Store ``X R^-1`` in `out`, which may be X, or with `rows` ``R^-H X``.

    R is upper triangular and not singular.
    """
    if rows:
        np.copyto(out, x)
        routines.trsm(1.0, r, out, trans="C")
    else:
        _solve(x, r, _inverse_blocks(r), out, 1.0)


def _inverse_blocks(r: Array) -> list[tuple[int, Array]]:
    """Return the first indices and the inverses of the diagonal blocks of a triangular matrix."""
    starts = range(0, r.shape[0], SOLVED)
    blocks = [(j, np.array(r[j : j + SOLVED, j : j + SOLVED], order="F")) for j in starts]
    for _, block in blocks:
        routines.trtri(block)
    return blocks


def _solve(x: Array, r: Array, inverses: list[tuple[int, Array]], out: Array, alpha: float) -> None:
    for j, inverse in inverses:
        end = j + inverse.shape[0]
        part = out[:, j:end]
        np.multiply(x[:, j:end], x.dtype.type(alpha), out=part)
        if j:
            routines.gemm(-1.0, out[:, :j], r[:j, j:end], 1.0, part)
        routines.trmm(1.0, inverse, part, side="R")


# -- steps of an iteration: `polarlib.engine.drive.Kernels` -------------------------------------


def defect(g: Array) -> float:
    """Return ``||I - G||_F``."""
    add_diagonal(g, -1.0)
    size = upper_norm(g)
    add_diagonal(g, 1.0)
    return size


def shifted_resolvent(x: Array, g: Array, out: Array, c: float, alpha: float, beta: float) -> bool:
    """Apply :func:`resolvent` with ``Z = I + c G``, in the storage of G."""
    g *= c
    add_diagonal(g, 1.0)
    return resolvent(x, g, out, alpha, beta)


def stepped(step: Any, x: Array, g: Array, out: Array) -> Array:
    """Return X after a step, in `out`; NaN where the factorisation failed. G is overwritten."""
    if step.denominator:
        alpha, beta, c = step.fractions
        if not shifted_resolvent(x, g, out, c, alpha, beta):
            out.fill(math.nan)
        return out
    if len(step.numerator) == 2:
        g *= step.numerator[1]
        add_diagonal(g, step.numerator[0])
    else:
        quadratic(g, out, *step.numerator)
    return times(x, g, out)


def corrected(step: Any, x: Array, g: Array, worst: float, out: Array) -> Array:
    """Return X after a step of Newton-Schulz type, in `out`. G is overwritten."""
    # X (I - 2 E)^(-1/2) = X + X E + 3/2 X E^2 + ..., E = (I - G) / 2: only the small correction is
    # computed by products, so that single precision suffices if it is below 2^-27.
    g *= -0.5
    add_diagonal(g, 0.5)
    narrow = {"d": "f", "D": "F"}.get(x.dtype.char, x.dtype.char)
    cubic = len(step.numerator) == 2
    if cubic and worst <= SINGLE_BELOW and narrow != x.dtype.char:
        small = np.empty(x.shape, narrow, order="F")
        times(x.astype(narrow), g.astype(narrow), small)
        return np.add(x, small, out=out)
    if not cubic:  # E^2 in single precision where it is small enough
        kind = narrow if worst * worst <= SINGLE_BELOW else x.dtype.char
        square = mirror(g, np.empty(g.shape, kind, order="F"))
        g += gram(square, alpha=1.5)
    return times(x, g, out, beta=1.0)


# -- norms and extreme eigenvalues -----------------------------------------------------------


def norm(x: Array) -> float:
    """Return the Frobenius norm of a contiguous array whose squared entries do not overflow."""
    flat = x.ravel(order="K")
    return math.sqrt(_inner(flat, flat))


def _inner(v: Array, w: Array) -> float:
    """Return the real part of the inner product of two vectors."""
    v, w = v.view(v.real.dtype), w.view(w.real.dtype)
    total = 0.0
    for i in range(0, v.size, CHUNK):  # the error of one sum grows with its length
        total += float(np.dot(v[i : i + CHUNK], w[i : i + CHUNK]))
    return total


def upper_norm(z: Array) -> float:
    """Return the Frobenius norm of a Hermitian matrix whose stored lower triangle is zero."""
    return math.sqrt(max(0.0, 2 * norm(z) ** 2 - float(np.sum(np.square(diagonal(z).real)))))


def largest(z: Array, steps: int) -> float:
    """Estimate the largest eigenvalue of a positive semidefinite matrix by Lanczos' method."""
    return _lanczos(functools.partial(routines.hemv, z), z.shape[0], z.dtype, steps)


def smallest(r: Array, steps: int) -> float:
    """Estimate the smallest eigenvalue of ``R^H R`` by Lanczos' method on its inverse."""
    trsv = routines.trsv
    inverse = _lanczos(lambda v: trsv(r, trsv(r, v, trans="C")), r.shape[0], r.dtype, steps)
    return 1 / inverse if inverse > 0 else math.nan


def extremes(g: Array, scratch: Array, lower: float | None = None) -> tuple[float, float]:
    """Estimate the smallest and the largest singular value of X from ``G = X^H X``.

    The smallest is 0 if it is below the resolution of G, or `lower` times the largest if `lower` is
    given. The upper triangle of `scratch` then contains the Cholesky factor of G, if it exists.
    """
    high = math.sqrt(max(0.0, largest(g, STEPS))) * (1 + SLACK)
    if lower is not None:
        return lower * high, high
    np.copyto(scratch, g)
    low = 0.0
    if high > 0 and cholesky(scratch):
        low = math.sqrt(max(0.0, smallest(scratch, STEPS))) * (1 - 2 * SLACK)
    resolved = RESOLVED * math.sqrt(np.finfo(g.dtype).eps) * high
    return (min(low, high) if low > resolved else 0.0), high


def count_eigenvalues_above(z: Array, cut: float) -> int:
    """Return the number of eigenvalues of a Hermitian matrix above `cut` times the largest one.

    The largest eigenvalue z_1 is estimated. The number is the inertia of ``Z - cut z_1 I``, from
    the factorisation ``L D L^H`` of Bunch and Kaufman, whose 2 x 2 blocks have one eigenvalue of
    each sign.
    """
    factor = z.copy(order="F")
    top = largest(factor, RITZ_STEPS)
    if not math.isfinite(top):
        return 0
    add_diagonal(factor, -cut * top)
    alone = routines.hetrf(factor) > 0
    return int(np.sum(diagonal(factor).real[alone] > 0)) + int(np.sum(~alone)) // 2


def _lanczos(apply: Callable[[Array], Array], n: int, dtype: Any, steps: int) -> float:
    """Return the largest Ritz value plus its residual; NaN where the products are not finite."""
    v = _direction(n, dtype.char)
    previous = np.zeros_like(v)
    main: list[float] = []
    off: list[float] = []
    for _ in range(min(steps, n)):  # few steps, in which vectors stay orthogonal
        w = apply(v)
        main.append(_inner(v, w))
        w -= v.dtype.type(main[-1]) * v
        if off:
            w -= v.dtype.type(off[-1]) * previous
        off.append(math.sqrt(_inner(w, w)))
        # An invariant subspace: the remainder is rounding errors.
        if not off[-1] > n * np.finfo(dtype).eps * abs(main[-1]):
            break
        previous, v = v, w * v.dtype.type(1 / off[-1])
    if not (np.all(np.isfinite(main)) and np.all(np.isfinite(off))):
        return math.nan
    tridiagonal = np.diag(main) + np.diag(off[:-1], -1)  # only the lower triangle is read
    values, vectors = np.linalg.eigh(tridiagonal)
    return float(values[-1] + off[-1] * abs(vectors[-1, -1]))


@functools.lru_cache(maxsize=16)
def _direction(n: int, kind: str) -> Array:
    """Return a random vector of norm 1, always the same."""
    v = np.random.default_rng(DIRECTION).standard_normal(n)
    v = (v / math.sqrt(float(v @ v))).astype(kind)
    v.flags.writeable = False
    return v


# -- passes over memory ----------------------------------------------------------------------


def max_abs(x: Array) -> float:
    """Return the largest absolute entry (of real and imaginary parts), NaN if an entry is NaN."""
    flat = columns(x)[0].T.reshape(-1)
    flat = flat.view(flat.real.dtype)
    result = 0.0
    for i in range(0, flat.size, CHUNK):
        part = flat[i : i + CHUNK]
        result = float(np.maximum(result, np.maximum(part.max(), -part.min())))
    return result


def split(w: Array) -> float:
    """Replace W by its exactly Hermitian part; return the Frobenius norm of the skew part."""
    n = w.shape[0]
    half = w.real.dtype.type(0.5)
    rest = 0.0
    for j in range(0, n, TILE):
        columns_j = slice(j, j + TILE)
        for i in range(0, j + 1, TILE):
            rows_i = slice(i, i + TILE)
            above = w[rows_i, columns_j] * half
            below = w[columns_j, rows_i].conj().T * half
            part = above + below
            above -= below
            w[rows_i, columns_j] = part
            w[columns_j, rows_i] = part.conj().T
            flat = above.ravel(order="K").view(half.dtype)  # at most CHUNK entries
            rest += (1 + (i < j)) * float(np.dot(flat, flat))
    return math.sqrt(rest)
