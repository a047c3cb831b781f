"""Start of an iteration: reduction of tall matrices, and bounds of singular values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import norm_1, norm_bound, read
from polarlib.arrays.functions import trace as diagonal_sum
from polarlib.arrays.library import format_name
from polarlib.arrays.ops import Ops
from polarlib.engine.drive import Progress

Array = Any

# Rounding errors of length-k sums are below this many sqrt(k) unit roundoffs with near certainty
# (N. J. Higham, T. Mary, SIAM J. Sci. Comput. 41 (2019) A2815-A2835); the factor by experiment.
LIKELY = 4.0
# A Gram matrix is used if rounding changes its eigenvalues by at most this part of the smallest.
TRUSTED = 0.25
# Ratio of rows to columns from which Cholesky-QR replaces Householder's QR. By experiment on CPUs
# it is twice as fast with SciPy, and as fast with torch.
TALL = 2
# Exponent of the smallest l: eps**3 costs a rational iteration one step more than eps.
FLOOR = 3


def noise(k: int, eps: float) -> float:
    """Return the rounding error of a Gram matrix and its Cholesky factor, over ``||X||_F**2``."""
    return LIKELY * math.sqrt(k) * eps / 2


def inverse_norm(factor: Array, ops: Ops) -> Array:
    """Return an upper bound of ``||L^-1||_2``, by one triangular solve; inf or NaN if singular."""
    inverse = ops.solve_lower(
        factor, ops.xp.broadcast_to(ops.eye(factor.shape[-1], factor), factor.shape)
    )
    sums = norm_bound(inverse, ops)
    return ops.xp.minimum(ops.frobenius(inverse), sums)


def largest(x: Array, g: Array, ops: Ops) -> tuple[Array, Array, Array]:
    """Bound the eigenvalues of G = X^H X by its 1-norm, trace and variance.

    Returns
    -------
    high : array, shape (..., 1, 1)
        Upper bound of the largest eigenvalue; 1 for a zero matrix.
    mean, spread : array, shape (..., 1, 1)
        All eigenvalues are between ``mean (1 - spread)`` and ``mean (1 + spread)``; mean is 1 for a
        zero matrix.

    References
    ----------
    H. Wolkowicz, G. P. H. Styan, Linear Algebra Appl. 29 (1980) 471-506, Theorem 2.1.
    """
    xp = ops.xp
    n = g.shape[-1]
    # If x is sharded, its norm needs a further sum over devices.
    sharded = not ops.host and ops.is_sharded(x)
    trace = diagonal_sum(g, ops) if sharded else ops.frobenius(x) ** 2
    mean = xp.where(trace == 0, xp.ones_like(trace), trace / n)
    spread = ops.frobenius(ops.add_diagonal(ops.divide(g, mean), -1.0)) * math.sqrt((n - 1) / n)
    spread = xp.where(trace == 0, xp.ones_like(trace), spread)
    high = xp.minimum(norm_1(g, ops), mean * (1 + spread))
    return xp.where(high == 0, xp.ones_like(high), high), mean, spread


def rounded_down(l: float) -> float:
    """Round l down to one of few numbers, so that few schedules are designed; 1 - l likewise."""
    # Five bits of the mantissa are kept: the relative change is at most 1/16.
    if l > 0.5:
        mantissa, exponent = math.frexp(1 - l)
        return 1 - math.ldexp(math.ceil(mantissa * 32) / 32, exponent)
    mantissa, exponent = math.frexp(l)
    return math.ldexp(math.floor(mantissa * 32) / 32, exponent)


def start(
    x: Array,
    ops: Ops,
    callback: Callable[[int, Array], None] | None = None,
    *,
    lower: float | None = None,
    square: bool = True,
) -> Progress:
    """Reduce tall matrices to square ones, scale them, and bound their singular values.

    Square matrices take one Gram product, which the first step uses, a Cholesky factorisation and a
    triangular solve. If the Gram matrix is too ill-conditioned, they also take a QR factorisation.
    The lower bound is computed from the inverse of a factor, or from trace and variance, which is
    sharp near orthonormal matrices.

    Parameters
    ----------
    x : array, shape (..., m, n)
        m >= n. Not modified.
    ops : Ops
        Arithmetic.
    callback : callable, optional
        Callback of the iteration.
    lower : float, optional
        Lower bound of sigma_min / sigma_max. If it is given, nothing is factorised for the bound.
    square : bool, optional
        Whether tall matrices are reduced to square ones even if `lower` is given.

    Returns
    -------
    Progress
        The iteration before its first step, with scaled matrices, or factors of them, whose
        singular values are in [lower, 1]. Its `lower`, the smallest of a stack, is certified up to
        rounding, unless it was passed by the caller. Its `bounds` are computed bounds of the
        original singular values, the extreme ones of a stack; they do not contain the caller's.
    """
    m, n = x.shape[-2:]
    eps = format_of(format_name(x)).epsilon
    back_transform: Callable[[Array], Array] = _same
    matmuls = 0
    tall = m > n and (square or lower is None)
    if tall:
        x, back_transform, matmuls = reduce_tall(x, ops)
    g = ops.gram(x)
    high, mean, spread = largest(x, g, ops)
    if lower is None:
        blur = 0.0 if tall else noise(2 * n, eps) * n  # rounding error of G, over the mean
        factor = ops.adjoint(x) if tall else ops.cholesky(g)
        doubt, bottom, top, l = _read_bounds(factor, blur, high, mean, spread, ops)
        if not (tall or doubt <= TRUSTED):  # NaN compares false
            factor = ops.adjoint(ops.qr(x)[1])
            _, bottom, top, l = _read_bounds(factor, 0.0, high, mean, spread, ops)
        certain = l > LIKELY * math.sqrt(n) * eps
    else:
        bottom, certain = 0.0, False
        top, l = _read_promise(x, lower, high, mean, spread, ops)
    x, g = ops.divide(x, ops.xp.sqrt(high)), ops.divide(g, high)
    l = min(1.0, max(l, eps**FLOOR))
    return Progress(ops, x, g, callback, matmuls + 1, back_transform, (bottom, top), l, certain)


def _read_bounds(
    factor: Array, blur: float, high: Array, mean: Array, spread: Array, ops: Ops
) -> tuple[float, float, float, float]:
    """Return bounds from the inverse of a triangular factor, or from trace and variance.

    Returns
    -------
    doubt : float
        Relative change of the smallest eigenvalue by rounding, `blur` times the mean.
    bottom, top : float
        Bounds of the singular values.
    l : float
        Lower bound over the root of `high`, the smallest of a stack; 0 if it is unknown.
    """
    xp, n = ops.xp, factor.shape[-1]
    low = inverse_norm(factor, ops) ** -2.0
    doubt = blur * mean / low
    low = low - blur * mean  # Weyl's bound of the change of eigenvalues by rounding of G
    eps = format_of(format_name(high)).epsilon
    near = mean * (1 - spread - noise(2 * n, eps) * n)
    low = xp.where(low > near, low, near)
    ratio = xp.sqrt(xp.where(low > 0, low, xp.zeros_like(low)) / high)
    known = xp.where(ratio > 0, ratio, xp.zeros_like(ratio))
    # The smallest l is used for the whole stack.
    doubts, lows, highs, ratios = read(ops, doubt, known * xp.sqrt(high), high, known)
    return float(doubts.max()), float(lows.min()), math.sqrt(highs.max()), float(ratios.min())


def _read_promise(
    x: Array, lower: float, high: Array, mean: Array, spread: Array, ops: Ops
) -> tuple[float, float]:
    """Return a bound of the largest singular value, and l from the caller's `lower`."""
    xp, n = ops.xp, x.shape[-1]
    # Lower bounds of the largest eigenvalue; sigma_min is at least `lower` times its root.
    columns = ops.max(ops.sums(xp.abs(x) ** 2, -2), axis=-1, keepdims=True)
    rayleigh = mean * (1 + spread * spread / max(n - 1, 1))  # tr G^2 / tr G
    rayleigh = xp.where(rayleigh > columns, rayleigh, columns)
    ratio = lower * xp.sqrt(rayleigh / high)
    known = xp.where(ratio > 0, ratio, xp.zeros_like(ratio))
    highs, ratios = read(ops, high, known)
    return math.sqrt(highs.max()), float(ratios.min())


def _same(u: Array) -> Array:
    return u


def reduce_tall(x: Array, ops: Ops) -> tuple[Array, Callable[[Array], Array], int]:
    """Return S, square, with X = Q S and Q orthonormal; the map of U_S to Q U_S; products.

    Cholesky-QR is applied twice if the first factor proves that the Gram matrix resolves the
    condition number (below about eps^-1/2): ``R_1 = chol(X^H X)``, ``Q = X R_1^-1``,
    ``R_2 = chol(Q^H Q)``, ``S = R_2 R_1``. The back-transformation is ``Q (R_2^-1 U_S)``, so that
    the second solve has n rows, not m. Householder's QR is used for larger condition numbers, and
    for nearly square matrices. Shifted Cholesky-QR would be possible for condition numbers up to
    1e15, but its three or more passes take longer on CPUs.

    References
    ----------
    Y. Yamamoto, Y. Nakatsukasa, Y. Yanagisawa, T. Fukaya, Electron. Trans. Numer. Anal. 44 (2015)
    306-326 (errors of the second pass are at rounding level).
    """
    m, n = x.shape[-2:]
    if m >= TALL * n:
        first = ops.cholesky(ops.gram(x))
        size = inverse_norm(first, ops) * ops.frobenius(x)
        if ops.item(size * size) * noise(m + n, format_of(format_name(x)).epsilon) <= TRUSTED:
            q = ops.adjoint(ops.solve_lower(first, ops.adjoint(x)))
            second = ops.cholesky(ops.gram(q))
            s = ops.adjoint(ops.matmul(first, second))
            return s, lambda u: ops.matmul(q, ops.solve_lower(second, u, adjoint=True)), 4
    q, s = ops.qr(x)
    return s, lambda u: ops.matmul(q, u), 1
