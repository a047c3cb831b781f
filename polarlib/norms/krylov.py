"""Leading singular triplets of one matrix, certified."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polarlib.arrays.formats import format_of
from polarlib.arrays.library import astype_like, format_name, is_complex
from polarlib.arrays.ops import Ops

Array = Any
# Vectors beyond k in a block; Halko, Martinsson and Tropp (2011), section 4.2, take 5 to 10.
OVERSAMPLING = 10
# Largest number of products of an iteration, in units of min(m, n): the cost of bidiagonalising the
# whole matrix.
BUDGET = 2
# Columns by which a basis grows between two checks of its residual (an SVD of the projection).
CHECK_EVERY = 8
# An iteration stops at this fraction of the residual that the certificate requires, so that the
# certificate does not depend on rounding. Any factor below 1 suffices.
MARGIN = 0.5
# Residual due to rounding, in epsilons of the largest value: by experiment, below 3.
STAGNATION = 10


class Triplets(NamedTuple):
    """Singular triplets with method, cost and residual.

    Attributes
    ----------
    u, s, vh : array, shape (..., m, k), (..., k), (..., k, n)
        As :func:`top_singular` returns them.
    method : str
        The method that computed them, for example ``"lanczos"``, or ``"lanczos, then svd"`` if the
        SVD was needed for any matrix of the stack.
    products : int
        Products of A or its adjoint with one vector, in the whole stack. The SVD, and the Gram
        product and Cholesky factorisation of the certificate, are not counted.
    residual : float
        Largest ``(||A V - U S||_F^2 + ||A^H U - V S||_F^2)^(1/2) / s_1`` of the stack, before
        results are rounded to half precision; 0 for zero matrices, NaN under ``jax.jit``.
    """

    u: Any
    s: Any
    vh: Any
    method: str
    products: int
    residual: float


def leading(x: Array, k: int, ops: Ops, method: str, rtol: float) -> Triplets:
    """Iterate on one matrix; fall back to the SVD if the result is not certified."""
    xh = ops.adjoint(x)
    if method == "arpack":
        computed, products = _arpack(x, xh, k, ops, rtol)
    elif method == "randomized":
        computed, products = _subspace(x, xh, k, ops, rtol)
    else:
        block = 1 if method == "lanczos" else k + OVERSAMPLING
        computed, products = _krylov(x, xh, k, ops, block, rtol)
    if computed is not None:
        u, s, v = computed
        # Computed from A: the residual of a recurrence does not include its rounding errors.
        residual = _residual(x, xh, u, s, v, ops)
        products += 2 * k
        if _is_certified(x, u, s, v, residual, rtol, ops):
            return Triplets(u, s, ops.adjoint(v), method, products, _relative(residual, s, ops))
    return by_svd(x, k, ops)._replace(method=f"{method}, then svd", products=products)


def by_svd(x: Array, k: int, ops: Ops) -> Triplets:
    u, s, vh = ops.svd(x)
    u, s, vh = u[..., :k], s[..., :k], vh[..., :k, :]
    if ops.is_abstract(s):
        return Triplets(u, s, vh, "svd", 0, math.nan)
    residual = _residual(x, ops.adjoint(x), u, s, ops.adjoint(vh), ops)
    return Triplets(u, s, vh, "svd", 0, _relative(residual, s, ops))


def _residual(x: Array, xh: Array, u: Array, s: Array, v: Array, ops: Ops) -> np.ndarray:
    """``(||A V - U S||_F^2 + ||A^H U - V S||_F^2)^(1/2)``, on the host."""
    row = s[..., None, :]
    parts = [ops.matmul(x, v) - u * row, ops.matmul(xh, u) - v * row]
    return ops.to_host(ops.frobenius(ops.xp.concat(parts, axis=-2)))[..., 0, 0]


def _relative(residual: np.ndarray, s: Array, ops: Ops) -> float:
    """Return the largest residual of a stack, relative to the largest value of each matrix."""
    largest = ops.to_host(s)[..., 0]
    return float(np.max(residual / np.where(largest == 0, 1.0, largest)))


def _is_certified(
    x: Array, u: Array, s: Array, v: Array, residual: np.ndarray, rtol: float, ops: Ops
) -> bool:
    """Return whether orthonormality, residual and remainder certify the values to `rtol`."""
    values = ops.to_host(s)
    rounding = max(100, min(x.shape)) * format_of(format_name(x)).epsilon
    slack = max(rtol / 2 * values[-1], rounding * values[0])
    bound = float(values[-1] + slack)
    if bound == 0:  # only a zero matrix has s_1 = 0
        return ops.item(ops.frobenius(x)) == 0
    if not residual <= slack:
        return False
    for basis in (u, v):  # the bounds of values hold for orthonormal bases only
        defect = ops.add_diagonal(ops.gram(basis), -1.0)
        if not ops.item(ops.frobenius(defect)) <= rounding:
            return False
    # Divided by the bound: if ||R||_2 < 1, I - R^H R has a Cholesky factor; otherwise it is NaN.
    rest = (x - ops.matmul(u * s[None, :], ops.adjoint(v))) / bound
    factor = ops.cholesky(ops.add_diagonal(-ops.gram(rest), 1.0))
    return math.isfinite(ops.item(ops.frobenius(factor)))


# -- iterations ------------------------------------------------------------------------------


def _gaussian(like: Array, ops: Ops) -> Callable[[int, int], Array]:
    """Return a source of seeded Gaussian matrices, with the same numbers for every library."""
    rng = np.random.default_rng(0)

    def draw(m: int, n: int) -> Array:
        return astype_like(ops.from_host(rng.standard_normal((m, n)), like), like, ops)

    return draw


def _extend(
    w: Array, basis: Array, floor: float, draw: Callable[[int, int], Array], ops: Ops
) -> tuple[Array, np.ndarray, np.ndarray]:
    """Return an orthonormal Q, orthogonal to a basis, with ``w = basis h + Q r``; h, r on the host.

    Block Gram-Schmidt, twice. Columns that vanish (of an invariant subspace) are replaced by random
    ones, so that the iteration continues in the rest of the space.
    """
    adjoint = ops.adjoint(basis)
    h = ops.matmul(adjoint, w)
    w = w - ops.matmul(basis, h)
    q, r = _qr(w, ops)
    lost = np.abs(np.diagonal(ops.to_host(r))) <= floor
    if lost.any():
        # By a mask, not by assignment: arrays of JAX cannot be written.
        kept = ops.from_host(~lost * 1.0, w)
        q, _ = _qr(w * kept + draw(*w.shape) * (1 - kept), ops)
    q, _ = _qr(q - ops.matmul(basis, ops.matmul(adjoint, q)), ops)
    return q, ops.to_host(h), ops.to_host(ops.matmul(ops.adjoint(q), w))


def _qr(w: Array, ops: Ops) -> tuple[Array, Array]:
    """Return a QR; of a single column without LAPACK, which is slower than a product with A."""
    if w.shape[-1] > 1:
        return ops.qr(w)
    r = ops.frobenius(w)
    return ops.divide(w, ops.divisor(r)), r


def _place(basis: Array, q: Array, at: int, ops: Ops) -> Array:
    """Return the basis with columns in place of zeros; in its storage if that is writable."""
    if ops.writable(basis):
        basis[:, at : at + q.shape[-1]] = q
        return basis
    return basis + ops.matmul(q, ops.from_host(np.eye(q.shape[-1], basis.shape[-1], at), q))


def _goal(s: np.ndarray, k: int, rtol: float, eps: float) -> float:
    """Return the residual at which an iteration stops."""
    return float(max(MARGIN * rtol / 2 * s[k - 1], STAGNATION * eps * s[0]))


def _krylov(
    x: Array, xh: Array, k: int, ops: Ops, block: int, rtol: float
) -> tuple[tuple[Array, Array, Array] | None, int]:
    """Block Golub-Kahan-Lanczos with full reorthogonalisation and thick restart.

    With orthonormal U and V, and F the next block of V,

        A V = U B,    A^H U = V B^H + F R L^H,

    L the last columns of the identity. The SVD ``B = P S Z^H`` gives triplets ``U p_i, s_i, V z_i``
    with residual ``F R L^H p_i``. A restart keeps the leading ones: B becomes diagonal, and the
    inner products of the next step fill its spike. The bases have zero columns at the start, so
    that no shape changes (JAX compiles for each shape).
    """
    m, n = x.shape
    size = min(max(2 * k + 30, 8 * block), n - block)
    keep = k + (size - k - block) // 4
    draw = _gaussian(x, ops)
    if keep < k:  # too few columns for a restart: the SVD is faster
        return None, 0
    eps = format_of(format_name(x)).epsilon
    # Below this, the remainder of a column of A V after Gram-Schmidt is rounding.
    floor = 2 * eps * ops.item(ops.frobenius(x))
    u, v = (ops.xp.zeros((d, size), dtype=x.dtype, device=x.device) for d in (m, n))
    b = np.zeros((size, size), dtype=np.complex128 if is_complex(x) else np.float64)
    f, _, _ = _extend(draw(n, block), v, 0.0, draw, ops)
    used = checked = products = 0
    while products < BUDGET * n:
        v = _place(v, f, used, ops)
        new = slice(used, used + block)
        w, b[:, new], b[new, new] = _extend(ops.matmul(x, f), u, floor, draw, ops)
        u = _place(u, w, used, ops)
        used += block
        f, _, r = _extend(ops.matmul(xh, w), v, floor, draw, ops)
        products += 2 * block
        full = used + block > size
        if used < k or not (full or used - checked >= CHECK_EVERY):
            continue
        checked = used
        # A small matrix, in double precision on the host: the same for every library.
        p, s, zh = np.linalg.svd(b[:used, :used])
        left = np.linalg.norm(r @ p[new, :k])
        done = left <= _goal(s, k, rtol, eps)
        if done or full:
            count = k if done else keep
            turn_u, turn_v = np.zeros_like(b), np.zeros_like(b)
            turn_u[:used, :count], turn_v[:used, :count] = p[:, :count], zh[:count].conj().T
            u, v = (ops.matmul(t, ops.from_host(turn, x)) for t, turn in ((u, turn_u), (v, turn_v)))
            if done:
                return (u[:, :k], ops.from_host(s[:k], x), v[:, :k]), products
            b = np.zeros_like(b)
            np.fill_diagonal(b[:keep, :keep], s)
            used = checked = keep
    return None, products


def _arpack(
    x: Array, xh: Array, k: int, ops: Ops, rtol: float
) -> tuple[tuple[Array, Array, Array] | None, int]:
    """Run ARPACK on ``A^H A``: vectors on the host, products on the device of A."""
    linalg = importlib.import_module("scipy.sparse.linalg")
    n, products = x.shape[-1], 0
    size = min(n, max(2 * k + 1, 20))  # SciPy's own choice
    if k >= size - 1:  # SciPy requires k + 1 < ncv for complex matrices
        return None, 0

    def multiply(v: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 2
        column = astype_like(ops.from_host(v.reshape(n, 1), x), x, ops)
        return ops.to_host(ops.matmul(xh, ops.matmul(x, column)))[:, 0]

    eps = format_of(format_name(x)).epsilon
    square = linalg.LinearOperator((n, n), multiply, dtype=complex if is_complex(x) else float)
    try:
        _, v = linalg.eigsh(
            square,
            k,
            ncv=size,
            # A restart takes size - k products with A^H A.
            maxiter=math.ceil(BUDGET * n / (2 * (size - k))),
            # ARPACK's test is per vector, that of the certificate for all k together.
            tol=max(MARGIN * rtol / 2 / math.sqrt(k), eps),
            # ARPACK's default start is random, and so are its restarts at an invariant subspace, as
            # for matrices of low rank.
            v0=np.random.default_rng(0).standard_normal(n),
            **({"rng": np.random.default_rng(0)} if _restarts_are_seeded() else {}),
        )
    except linalg.ArpackError:  # no convergence, or a zero matrix
        return None, products
    v, _ = ops.qr(ops.from_host(v, x))  # complex eigenvectors are only normalised
    u, s, v, _, _ = _ritz(x, v, k, ops)
    return (u, s, v), products + k


@functools.cache
def _restarts_are_seeded() -> bool:
    """Return whether SciPy accepts random numbers for ARPACK's restarts, from 1.17 on."""
    eigsh = importlib.import_module("scipy.sparse.linalg").eigsh
    return "rng" in inspect.signature(eigsh).parameters


def _subspace(
    x: Array, xh: Array, k: int, ops: Ops, rtol: float
) -> tuple[tuple[Array, Array, Array] | None, int]:
    """Run a randomized SVD with as many power iterations as the residual requires.

    The product that the residual needs is also the start of the next iteration.
    """
    n = x.shape[-1]
    draw = _gaussian(x, ops)
    eps = format_of(format_name(x)).epsilon
    size = min(k + OVERSAMPLING, n)
    v, _ = ops.qr(draw(n, size))
    products = 0
    while products < BUDGET * n:
        u, s, w, q, left = _ritz(x, v, k, ops)
        z = ops.matmul(xh, q)
        products += 2 * size
        rest = ops.matmul(z, left) - w * s[None, :]
        if ops.item(ops.frobenius(rest)) <= _goal(ops.to_host(s), k, rtol, eps):
            return (u, s, w), products
        v, _ = ops.qr(z)
    return None, products


def _ritz(x: Array, v: Array, k: int, ops: Ops) -> tuple[Array, Array, Array, Array, Array]:
    """Return the leading triplets in a range: ``A V = Q R``, ``R = P S G^H``, V orthonormal.

    The triplets are ``Q P``, S and ``V G``, so that ``A (V G) = (Q P) S``. Q and P are also
    returned.
    """
    q, r = ops.qr(ops.matmul(x, v))
    p, s, gh = np.linalg.svd(ops.to_host(r))
    left, right = (ops.from_host(t, x) for t in (p[:, :k], gh[:k].conj().T))
    return ops.matmul(q, left), ops.from_host(s[:k], x), ops.matmul(v, right), q, left
