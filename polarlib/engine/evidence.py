"""A-posteriori checks of a polar decomposition, independent of the method.

The error estimates are ``||U^H U - I||_F`` and ``||A - U H||_F``. The polar factor is the only
orthonormal U for which H is positive semidefinite, which the existence of a Cholesky factor proves
up to rounding.

The two norms cost two matrix products. Above `EXACT_UP_TO` columns they are estimated instead. For
Gaussian Z with k columns, ``||M Z||_F^2 / k`` has the mean ``||M||_F^2`` and a variance of at most
``2 ||M||_F^4 / k``, attained for M of rank one. It is below ``||M||_F^2 / 100`` with probability
1e-7 for k = 8. For rounding errors, which have many directions, its error is a few percent. The
skew part of ``U^H A`` is exact.

D. A. Girard (1989); M. F. Hutchinson (1990); P.-G. Martinsson, J. A. Tropp, Acta Numerica 29 (2020)
403-572, section 4.8.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import above_noise, kept, read
from polarlib.arrays.library import format_name, is_complex
from polarlib.arrays.ops import Ops
from polarlib.arrays.single import adjoint, defect, squared_norm
from polarlib.result import Run

Array = Any

# Number of columns up to which the products are exact, since they take little time. By experiment.
EXACT_UP_TO = 64
# Number of columns up to which rank and condition number come from an SVD, if the method has no
# singular values.
DECOMPOSED_UP_TO = 128
PROBES = 8
# Entries of a part of a stack on the host: temporary arrays of this size fit in the cache.
PART = 1 << 16


class Evidence(NamedTuple):
    """Hermitian factor of tall matrices, and error estimates.

    Attributes
    ----------
    hermitian : array, shape (..., n, n), or None
        Hermitian part of ``U^H A``; None where it is not formed.
    orthogonality, backward_error, skew : ndarray, shape (...,)
        ``||U^H U - I||_F / sqrt(n)``; ``||A - U H||_F / ||A||_F``, None without H; the norm of the
        skew-Hermitian part of ``U^H A`` over ``||A||_F``. Arrays of the library under a trace.
    definite : tuple of bool
        Results of :func:`is_definite` for the requested signs and thresholds.
    """

    hermitian: Any = None
    orthogonality: Any = None
    backward_error: Any = None
    skew: Any = None
    definite: tuple[bool, ...] = ()

    def within(self, tol: float) -> bool:
        """Return whether all error estimates of all matrices are within a tolerance; NaN is not."""
        return within(self[1:4], tol)


def within(figures: Iterable[np.ndarray | None], tol: float) -> bool:
    """Return whether all estimates of all matrices are within a tolerance; NaN is not."""
    return all(bool(np.all(figure <= tol)) for figure in figures if figure is not None)


def evidence(
    u: Array, x: Array, ops: Ops, *, form_h: bool = True, certify: Sequence[tuple[int, float]] = ()
) -> Evidence:
    """Form the Hermitian factor of tall matrices, if requested, and check the factors.

    All estimates are read from a device with one synchronisation. They include :func:`is_definite`
    for each sign and threshold of `certify`, by Cholesky factors. `certify` is not supported for a
    stack that is processed in parts.
    """
    if parts := in_parts(x, ops):
        flat = [t.reshape(-1, *t.shape[-2:]) for t in (u, x)]
        n, estimates = x.shape[-1], []
        h = ops.buffer((*x.shape[:-2], n, n), x) if form_h else None
        for part in parts:
            one = evidence(flat[0][part], flat[1][part], ops, form_h=form_h)
            if h is not None:
                h.reshape(-1, n, n)[part] = one.hermitian
            estimates.append(one[1:4])
        whole: list[Any] = [
            None if f[0] is None else np.concatenate(f).reshape(x.shape[:-2])
            for f in zip(*estimates, strict=True)
        ]
        return Evidence(h, *whole)
    if not form_h:
        orthogonality, skew = _factor_figures(u, x, ops)
        return Evidence(None, orthogonality, None, skew)
    h, skew = ops.hermitian_split(ops.matmul(ops.adjoint(u), x))
    measured = (*_measured(u, h, x, ops), ops.frobenius(x), skew)
    entries = [ops.factor_max_abs(h, _shift(h, sign, cut, ops)) for sign, cut in certify]
    unit, residue, size, skew, *entries = _numbers(ops, *measured, *entries)
    definite = tuple(bool(np.all(np.isfinite(entry))) for entry in entries)
    return Evidence(h, unit, _norm_ratio(residue, size), _norm_ratio(skew, size), definite)


def figures(
    u: Array,
    h: Array,
    x: Array,
    ops: Ops,
    *,
    large: bool = False,
    isometry: bool = False,
    also: Sequence[Array] = (),
) -> tuple[np.ndarray, ...]:
    """Return orthogonality and backward error of tall matrices.

    Parameters
    ----------
    u, h, x : array
        Factors and the matrices, shape (..., m, n).
    large : bool, optional
        Whether `h` is m x m: ``A = H U``.
    isometry : bool, optional
        Whether to measure ``U U^H U - U`` instead of ``U^H U - I``.
    also : sequence of array, optional
        Further numbers, shape (..., 1, 1), that are read with the estimates and returned after
        them.
    """
    measured = _measured(u, h, x, ops, large=large, isometry=isometry)
    unit, residue, size, *others = _numbers(ops, *measured, ops.frobenius(x), *also)
    return unit, _norm_ratio(residue, size), *others


def _measured(
    u: Array, h: Array, x: Array, ops: Ops, *, large: bool = False, isometry: bool = False
) -> tuple[Array, Array]:
    """Return orthogonality and ``||A - U H||_F`` as arrays of the library; see :func:`figures`."""
    n = u.shape[-1]
    if n <= EXACT_UP_TO:
        g = ops.gram(u)
        defect = ops.matmul(u, g) - u if isometry else ops.add_diagonal(g, -1.0)
        unit = ops.frobenius(defect)
        del g, defect  # free their storage before the residual is formed
        left, right = (h, u) if large else (u, h)
        residual = ops.gemm(left, right, x, alpha=-1.0, beta=1.0)
        k = 1
    else:
        k = PROBES
        z = _probe(n, k, x, ops)
        uz = ops.matmul(u, z)
        # As few passes over large matrices as possible: the passes take the time.
        if large:
            left, right = ops.matmul(h, uz), uz
        else:
            both = ops.matmul(u, ops.xp.concat([ops.matmul(h, z), z], axis=-1))
            left, right = both[..., :k], both[..., k:]
        defect = _back(u, right, ops) - z
        if isometry:
            defect = ops.matmul(u, defect)
        unit = ops.frobenius(defect)
        residual = ops.matmul(x, z) - left
    return unit * (1 / math.sqrt(k * n)), ops.frobenius(residual) * (1 / math.sqrt(k))


class Sketch(NamedTuple):
    """Products of a tall matrix by which its factors are checked after it is overwritten.

    Attributes
    ----------
    probes, products : array, shape (n, k) and (m, k)
        Gaussian vectors, and their products with the matrix.
    size : array
        Frobenius norm.
    """

    probes: Array
    products: Array
    size: np.ndarray


def sketch(x: Array, ops: Ops) -> Sketch:
    """Return the products of a tall matrix with `PROBES` Gaussian vectors."""
    z = _probe(x.shape[-1], PROBES, x, ops)
    return Sketch(z, ops.matmul(x, z), _numbers(ops, ops.frobenius(x))[0])


def sketched_figures(u: Array, h: Array, known: Sketch, ops: Ops) -> tuple[np.ndarray, np.ndarray]:
    """Return :func:`figures` without the matrix, both norms estimated."""
    z, n = known.probes, u.shape[-1]
    both = ops.matmul(u, ops.xp.concat([ops.matmul(h, z), z], axis=-1))
    defect = _back(u, both[..., PROBES:], ops) - z
    residual = known.products - both[..., :PROBES]
    unit, residue = _numbers(ops, ops.frobenius(defect), ops.frobenius(residual))
    residue = residue / math.sqrt(PROBES)
    return unit / math.sqrt(PROBES * n), _norm_ratio(residue, known.size)


def in_parts(x: Array, ops: Ops) -> list[slice]:
    """Return slices of a large stack on the host, which keep temporary arrays small."""
    if x.ndim == 2 or ops.kernels(x) is None or x.size <= 2 * PART:
        return []
    count = max(1, PART // (x.shape[-2] * x.shape[-1]))
    total = math.prod(x.shape[:-2])
    if total <= count:  # one large matrix is one part: the caller would recurse without end
        return []
    return [slice(i, i + count) for i in range(0, total, count)]


def _factor_figures(u: Array, x: Array, ops: Ops) -> tuple[np.ndarray, np.ndarray]:
    """Return orthogonality of U and the skew part of ``U^H A`` over ``||A||_F``, without H."""
    n = u.shape[-1]
    if n <= EXACT_UP_TO:
        defect = ops.add_diagonal(ops.gram(u), -1.0)
        w = ops.matmul(ops.adjoint(u), x)
        skew = (w - ops.adjoint(w)) * 0.5
        k = 1
    else:
        k = PROBES
        z = _probe(n, k, x, ops)
        uz, xz = ops.matmul(u, z), ops.matmul(x, z)
        back = _back(u, ops.xp.concat([uz, xz], axis=-1), ops)
        defect = back[..., :k] - z
        skew = (back[..., k:] - _back(x, uz, ops)) * 0.5
    unit, skew, size = _numbers(ops, *map(ops.frobenius, (defect, skew, x)))
    return unit / math.sqrt(k * n), _norm_ratio(skew / math.sqrt(k), size)


def _back(u: Array, few: Array, ops: Ops) -> Array:
    """Return ``U^H F`` for few columns, without the adjoint of U, which copies complex arrays."""
    return ops.adjoint(ops.matmul(ops.adjoint(few), u))


def _probe(n: int, k: int, x: Array, ops: Ops) -> Array:
    """Return Gaussian vectors, the same for every matrix of a stack."""
    z = kept(_gaussian, (n, k), x, ops)
    return ops.xp.broadcast_to(z, (*x.shape[:-2], n, k))


@functools.lru_cache(maxsize=16)
def _gaussian(n: int, k: int, kind: str = "d") -> np.ndarray:
    z = np.random.default_rng(0).standard_normal((n, k)).astype(kind)
    z.flags.writeable = False
    return z


# -- one small NumPy matrix: the same estimates with few calls ---------------------------------


def single_figures(
    u: np.ndarray, h: np.ndarray, x: np.ndarray, square: float, *, large: bool
) -> tuple[float, float]:
    """Return :func:`figures` of one tall NumPy matrix with the squared Frobenius norm `square`."""
    n, k = x.shape[1], 1
    if n <= EXACT_UP_TO:
        unit = defect(u)
        residual = h.dot(u) if large else u.dot(h)
        residual -= x
    else:
        k = PROBES
        z = _gaussian(n, k, x.dtype.char)
        if large:
            right = u.dot(z)
            left = h.dot(right)
        else:
            both = u.dot(np.concatenate((h.dot(z), z), axis=1))
            left, right = both[:, :k], both[:, k:]
        unit = adjoint(u).dot(right) - z
        residual = left - x.dot(z)
    return math.sqrt(squared_norm(unit) / (n * k)), math.sqrt(squared_norm(residual) / (square * k))


def single_factor_figures(u: np.ndarray, x: np.ndarray, square: float) -> tuple[float, float]:
    """Return orthogonality of U, and the skew part of ``U^H A`` over ``||A||_F``."""
    n, k = x.shape[1], 1
    if n <= EXACT_UP_TO:
        unit, w = defect(u), adjoint(u).dot(x)
        twice = w - adjoint(w)
    else:
        k = PROBES
        z = _gaussian(n, k, x.dtype.char)
        right = u.dot(z)
        both = adjoint(u).dot(np.concatenate((right, x.dot(z)), axis=1))
        unit, twice = both[:, :k] - z, both[:, k:] - adjoint(x).dot(right)
    skew = math.sqrt(squared_norm(twice) / (square * k)) / 2
    return math.sqrt(squared_norm(unit) / (n * k)), skew


def single_condition(
    values: list[float], cut: float, eps: float
) -> tuple[int, tuple[float, float]]:
    """Return rank and :func:`condition_bounds` of one matrix from its singular values.

    `cut` is the relative threshold of the rank.
    """
    n, top, last = len(values), values[0], values[-1]
    noise = n * eps * top
    rank = n if last > cut * top else sum(value > cut * top for value in values)
    upper = (top + noise) / (last - noise) if last > noise else math.inf
    lower = min(max(top / (last + noise), 1.0), upper)
    return rank, (lower, upper if rank == n else math.inf)


def is_definite(h: Array, sign: int, cut: float, ops: Ops) -> bool:
    """Return whether ``H - sign * cut * ||H||_F I`` has a Cholesky factor, for all of a stack.

    With sign 1 every eigenvalue then exceeds the threshold. With sign -1 no eigenvalue is below
    minus the threshold.
    """
    return ops.is_definite(h, _shift(h, sign, cut, ops))


def _shift(h: Array, sign: int, cut: float, ops: Ops) -> Array:
    shift = ops.frobenius(h) * (sign * cut)
    if sign < 0:  # a zero matrix is semidefinite
        shift = ops.xp.where(shift == 0, -ops.xp.ones_like(shift), shift)
    return shift


def rank_of(
    h: Array,
    shape: tuple[int, ...],
    run: Run,
    ops: Ops,
    *,
    full: bool,
    x: Array | None = None,
) -> np.ndarray:
    """Return the numerical rank: full if certified, otherwise from singular values.

    If the method has no singular values and `x` is not given, the eigenvalues of H are used, which
    are accurate to rounding.
    """
    if full:
        return np.full(shape[:-2], shape[-1])
    if run.singular_values is None and x is None:
        return ops.count_eigenvalues_above(h, rank_cut(shape, format_name(h)) / 2)
    s = ops.svd(x)[1] if run.singular_values is None else run.singular_values
    return cast(
        np.ndarray,
        ops.to_host(ops.xp.astype(above_noise(s, shape, ops), s.dtype)).sum(-1).astype(int),
    )


def traced_verdict(
    found: Evidence,
    x: Array,
    run: Run,
    tol: float,
    ops: Ops,
    *,
    semidefinite: bool,
    products: bool,
) -> tuple[Array, Array, tuple[Array, Array]]:
    """Return whether U is the polar factor, rank, and condition bounds, for traced matrices.

    The results are arrays, computed from singular values of the method or from eigenvalues of H.

    Parameters
    ----------
    semidefinite : bool
        Whether H is positive semidefinite by construction.
    products : bool
        Whether the method consists of products alone. `x`, which may be sharded, is then not
        factorised.
    """
    xp, h, n = ops.xp, found.hermitian, x.shape[-1]
    s = run.singular_values
    good = (found.orthogonality <= tol) & (found.backward_error <= tol) & (found.skew <= tol)
    if not semidefinite:
        values = ops.eigenvalues(h)
        good = good & (values[..., 0] >= -tol * ops.frobenius(h)[..., 0, 0])
        if s is None and (n > DECOMPOSED_UP_TO or products):
            s = xp.flip(values, axis=-1)
    s = ops.singular_values(x) if s is None else s
    rank = xp.sum(xp.astype(above_noise(s, x.shape, ops), s.dtype), axis=-1)
    noise = max(x.shape[-2:]) * format_of(format_name(s)).epsilon * s[..., 0]
    top, low, high = s[..., 0], s[..., -1] + noise, s[..., -1] - noise
    lower = xp.where(top > 0, top / (low + (low <= 0)), xp.ones_like(top))
    lower = xp.where(lower > 1, lower, xp.ones_like(lower))
    upper = (top + noise) / (high + (high <= 0) * (1 - high))
    upper = xp.where((rank == n) & (high > 0), upper, xp.full_like(upper, math.inf))
    return good, rank, (lower, upper)


def rank_cut(shape: tuple[int, ...], format_name: str) -> float:
    """Return twice the relative threshold of the rank, since H is only accurate to rounding."""
    return 2 * max(shape[-2:]) * format_of(format_name).epsilon


def condition_bounds(
    h: Array, shape: tuple[int, ...], run: Run, ops: Ops, *, full: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return bounds, up to rounding, of the condition numbers; infinite for deficient rank.

    Singular values of the method are used if there are any. For few columns and a method without
    bounds, the eigenvalues of H are used, which are accurate to rounding. Otherwise the lower bound
    is the ratio of the largest and the smallest column norm of H, which are those of A. The upper
    bound then follows from the method's certified bounds, or from the Cholesky factor that has
    certified the rank.
    """
    return bounds_of(*sizes_of(h, run, ops), shape, run, ops, full=full)


def sizes_of(h: Array, run: Run, ops: Ops) -> tuple[Array, bool]:
    """Return the n numbers per matrix that :func:`condition_bounds` uses, not yet read.

    Also return whether they are singular values; otherwise they are norms of columns.
    """
    s = run.singular_values
    few = h.shape[-1] <= EXACT_UP_TO
    if s is None and few and run.bounds is None and not ops.is_sharded(h):
        s = ops.xp.abs(ops.xp.flip(ops.eigenvalues(h), axis=-1))
    if s is not None:
        return s, True
    size = ops.xp.abs(h) if is_complex(h) else h
    return ops.xp.sqrt(ops.xp.sum(size * size, axis=-2)), False


def bounds_of(
    sizes: Array, singular: bool, shape: tuple[int, ...], run: Run, ops: Ops, *, full: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return :func:`condition_bounds` from the numbers of :func:`sizes_of`."""
    n, name = shape[-1], format_name(sizes)
    eps = format_of(name).epsilon
    known = ops.to_host(sizes)
    if singular:
        noise = n * eps * known[..., 0]
        top, least, most = known[..., 0], known[..., -1] + noise, known[..., -1] - noise
        upper = np.where(most > 0, (top + noise) / np.maximum(most, 0), np.inf)
    else:
        top = known.max(axis=-1)
        least = known.min(axis=-1) + n * eps * top
        upper = np.full(shape[:-2], np.inf)
        if run.bounds is not None and run.bounds[0] > 0:
            upper[...] = run.bounds[1] / run.bounds[0]
        elif full:  # every eigenvalue of H is above half the threshold times its Frobenius norm
            upper[...] = 2 / rank_cut(shape, name)
    lower = np.where(top > 0, np.maximum(top / np.where(least > 0, least, 1.0), 1.0), 1.0)
    return np.minimum(lower, upper), upper


def _numbers(ops: Ops, *v: Array) -> list[np.ndarray]:
    """Return numbers of shape (..., 1, 1), one per matrix, on the host unless they are traced."""
    known = v if ops.is_abstract(v[0]) else read(ops, *v)
    return [figure[..., 0, 0] for figure in known]


def _norm_ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return ``part / whole``; the part itself for a zero matrix."""
    return cast(np.ndarray, part / (whole + (whole == 0)))
