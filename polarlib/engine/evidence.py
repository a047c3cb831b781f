"""Evidence: how good a polar decomposition is, whatever the method says of itself.

``A = U H`` is measured by ``||U^H U - I||_F`` and ``||A - U H||_F``; that U is the polar factor and
no other factor of the kind, by H being positive semidefinite: the existence of a Cholesky factor
proves that up to rounding.

The two norms cost two matrix products. Above `EXACT_UP_TO` columns they are estimated instead: for
Gaussian Z with k columns, ``||M Z||_F^2 / k`` has the mean ``||M||_F^2`` and at most the variance
``2 ||M||_F^4 / k``, which it has for M of rank one; it falls below ``||M||_F^2 / 100`` with
probability 1e-7 at k = 8, and for rounding errors, which have many directions, it is right to a few
percent. The skew part of ``U^H A`` is exact. D. A. Girard (1989); M. F. Hutchinson (1990);
P.-G. Martinsson, J. A. Tropp, Acta Numerica 29 (2020) 403-572, section 4.8.
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

# Below, whole products cost next to nothing. Chosen by experiment.
EXACT_UP_TO = 64
# Below, rank and condition number of a method without singular values are those of an SVD.
DECOMPOSED_UP_TO = 128
PROBES = 8
# Entries of a part of a stack on the host: temporary arrays of that size stay in a cache.
PART = 1 << 16


class Evidence(NamedTuple):
    """Hermitian factor of tall matrices, and what is left of ``A - U H`` and ``U^H U - I``.

    Attributes
    ----------
    hermitian : array, shape (..., n, n), or None
        Hermitian part of ``U^H A``; None where it is not formed.
    orthogonality, backward_error, skew : ndarray, shape (...,)
        (Arrays of the library where it hides the entries.)
        ``||U^H U - I||_F / sqrt(n)``; ``||A - U H||_F / ||A||_F``, None without H; the
        skew-Hermitian part of ``U^H A`` over ``||A||_F``.
    definite : tuple of bool
        What :func:`is_definite` is for the signs and cuts that were asked for.
    """

    hermitian: Any = None
    orthogonality: Any = None
    backward_error: Any = None
    skew: Any = None
    definite: tuple[bool, ...] = ()

    def within(self, tol: float) -> bool:
        """Whether every figure of every matrix is; NaN is not."""
        return within(self[1:4], tol)


def within(figures: Iterable[np.ndarray | None], tol: float) -> bool:
    """Whether every figure of every matrix is within a tolerance; NaN is not."""
    return all(bool(np.all(figure <= tol)) for figure in figures if figure is not None)


def evidence(
    u: Array, x: Array, ops: Ops, *, form_h: bool = True, certify: Sequence[tuple[int, float]] = ()
) -> Evidence:
    """Form the Hermitian factor of tall matrices, if asked for, and judge the factors.

    All figures are read off a device at once. Among them is :func:`is_definite` for each sign and
    cut of `certify`: Cholesky factors, whatever the others are. Not for a stack in parts.
    """
    if parts := in_parts(x, ops):
        flat = [t.reshape(-1, *t.shape[-2:]) for t in (u, x)]
        n, found = x.shape[-1], []
        h = ops.buffer((*x.shape[:-2], n, n), x) if form_h else None
        for part in parts:
            one = evidence(flat[0][part], flat[1][part], ops, form_h=form_h)
            if h is not None:
                h.reshape(-1, n, n)[part] = one.hermitian
            found.append(one[1:4])
        whole: list[Any] = [
            None if f[0] is None else np.concatenate(f).reshape(x.shape[:-2])
            for f in zip(*found, strict=True)
        ]
        return Evidence(h, *whole)
    if not form_h:
        orthogonality, skew = _factor_figures(u, x, ops)
        return Evidence(None, orthogonality, None, skew)
    h, skew = ops.hermitian_split(ops.matmul(ops.adjoint(u), x))
    measured = (*_measured(u, h, x, ops), ops.frobenius(x), skew)
    peaks = [ops.factor_peak(h, _shift(h, sign, cut, ops)) for sign, cut in certify]
    unit, residue, size, skew, *peaks = _numbers(ops, *measured, *peaks)
    definite = tuple(bool(np.all(np.isfinite(peak))) for peak in peaks)
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
    """Orthogonality and backward error of tall matrices.

    Parameters
    ----------
    u, h, x : array
        Factors and the matrices, shape (..., m, n).
    large : bool, optional
        `h` is m x m: ``A = H U``.
    isometry : bool, optional
        Measure ``U U^H U - U`` in place of ``U^H U - I``.
    also : sequence of array, optional
        Other numbers of shape (..., 1, 1) to be read with these, and returned after them.
    """
    measured = _measured(u, h, x, ops, large=large, isometry=isometry)
    unit, residue, size, *others = _numbers(ops, *measured, ops.frobenius(x), *also)
    return unit, _norm_ratio(residue, size), *others


def _measured(
    u: Array, h: Array, x: Array, ops: Ops, *, large: bool = False, isometry: bool = False
) -> tuple[Array, Array]:
    """Orthogonality, and ``||A - U H||_F``, as arrays of the library; see :func:`figures`."""
    n = u.shape[-1]
    if n <= EXACT_UP_TO:
        g = ops.gram(u)
        defect = ops.matmul(u, g) - u if isometry else ops.add_diagonal(g, -1.0)
        unit = ops.frobenius(defect)
        del g, defect  # before the residual takes storage
        left, right = (h, u) if large else (u, h)
        residual = ops.gemm(left, right, x, alpha=-1.0, beta=1.0)
        k = 1
    else:
        k = PROBES
        z = _probe(n, k, x, ops)
        uz = ops.matmul(u, z)
        # As many passes over large matrices as there must be: they, not operations, take time.
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
    """What must be known of a tall matrix to measure its factors when its storage is used again.

    Attributes
    ----------
    probes, products : array, shape (n, k) and (m, k)
        Gaussian vectors, and what the matrix makes of them.
    size : array
        Frobenius norm.
    """

    probes: Array
    products: Array
    size: np.ndarray


def sketch(x: Array, ops: Ops) -> Sketch:
    """Products of a tall matrix with `PROBES` Gaussian vectors."""
    z = _probe(x.shape[-1], PROBES, x, ops)
    return Sketch(z, ops.matmul(x, z), _numbers(ops, ops.frobenius(x))[0])


def sketched_figures(u: Array, h: Array, known: Sketch, ops: Ops) -> tuple[np.ndarray, np.ndarray]:
    """:func:`figures` without the matrix, both norms estimated."""
    z, n = known.probes, u.shape[-1]
    both = ops.matmul(u, ops.xp.concat([ops.matmul(h, z), z], axis=-1))
    defect = _back(u, both[..., PROBES:], ops) - z
    residual = known.products - both[..., :PROBES]
    unit, residue = _numbers(ops, ops.frobenius(defect), ops.frobenius(residual))
    residue = residue / math.sqrt(PROBES)
    return unit / math.sqrt(PROBES * n), _norm_ratio(residue, known.size)


def in_parts(x: Array, ops: Ops) -> list[slice]:
    """Parts of a large stack whose library works in place, to keep temporary arrays small."""
    if x.ndim == 2 or ops.kernels(x) is None or x.size <= 2 * PART:
        return []
    count = max(1, PART // (x.shape[-2] * x.shape[-1]))
    total = math.prod(x.shape[:-2])
    if total <= count:  # one part, of one large matrix: its caller would split it for ever
        return []
    return [slice(i, i + count) for i in range(0, total, count)]


def _factor_figures(u: Array, x: Array, ops: Ops) -> tuple[np.ndarray, np.ndarray]:
    """Orthogonality of U, and the skew part of ``U^H A`` over ``||A||_F``, without forming H."""
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
    """``U^H F`` of a few columns, without the adjoint of U, which is a copy if it is complex."""
    return ops.adjoint(ops.matmul(ops.adjoint(few), u))


def _probe(n: int, k: int, x: Array, ops: Ops) -> Array:
    """Gaussian vectors, the same for every matrix of a stack."""
    z = kept(_gaussian, (n, k), x, ops)
    return ops.xp.broadcast_to(z, (*x.shape[:-2], n, k))


@functools.lru_cache(maxsize=16)
def _gaussian(n: int, k: int, kind: str = "d") -> np.ndarray:
    z = np.random.default_rng(0).standard_normal((n, k)).astype(kind)
    z.flags.writeable = False
    return z


# -- one small NumPy matrix: the same figures with few calls -----------------------------------


def single_figures(
    u: np.ndarray, h: np.ndarray, x: np.ndarray, square: float, *, large: bool
) -> tuple[float, float]:
    """:func:`figures` of one tall NumPy matrix, of the squared Frobenius norm `square`."""
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
    """Orthogonality of U, and the skew part of ``U^H A`` over ``||A||_F``."""
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
    """Rank of one matrix, and :func:`condition_bounds` of it, from its singular values.

    `cut` is the relative one of the rank.
    """
    n, top, last = len(values), values[0], values[-1]
    noise = n * eps * top
    rank = n if last > cut * top else sum(value > cut * top for value in values)
    upper = (top + noise) / (last - noise) if last > noise else math.inf
    lower = min(max(top / (last + noise), 1.0), upper)
    return rank, (lower, upper if rank == n else math.inf)


def is_definite(h: Array, sign: int, cut: float, ops: Ops) -> bool:
    """Whether ``H - sign * cut * ||H||_F I`` has a Cholesky factor, in every matrix of a stack.

    With sign 1: every eigenvalue exceeds the cut. With sign -1: none is below minus the cut.
    """
    return ops.is_definite(h, _shift(h, sign, cut, ops))


def _shift(h: Array, sign: int, cut: float, ops: Ops) -> Array:
    shift = ops.frobenius(h) * (sign * cut)
    if sign < 0:  # so that a zero matrix passes
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
    """Numerical rank of matrices: full if that was certified, else from singular values.

    Without those of the method and without the matrices `x`, they are the eigenvalues of H, which
    are right to rounding.
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
    """Whether each factor of tall matrices is the polar factor, rank, bounds of condition numbers.

    For matrices that a library hides: what :func:`rank_of` and its neighbours find, as arrays, from
    singular values of the method, or else from the eigenvalues of H.

    Parameters
    ----------
    semidefinite : bool
        Whether H is so by construction.
    products : bool
        Whether the method is one of products alone: `x`, which may be sharded, is not factorised.
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
    """Twice the relative cut of the numerical rank, since H is known to rounding only."""
    return 2 * max(shape[-2:]) * format_of(format_name).epsilon


def condition_bounds(
    h: Array, shape: tuple[int, ...], run: Run, ops: Ops, *, full: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds, up to rounding, of the condition number of each matrix; infinite if not full rank.

    From singular values, where the method has them; of few columns, where it has no bounds either,
    from the eigenvalues of H, which are right to rounding; else from below by the largest and
    smallest column of H, whose columns are as long as those of A, and from above by the method's
    certified bounds or by the Cholesky factor that has certified the rank.
    """
    return bounds_of(*sizes_of(h, run, ops), shape, run, ops, full=full)


def sizes_of(h: Array, run: Run, ops: Ops) -> tuple[Array, bool]:
    """What :func:`condition_bounds` needs of the matrices, n numbers each, none of them read.

    Also whether these are singular values; otherwise they are lengths of columns.
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
    """:func:`condition_bounds` from what :func:`sizes_of` has found."""
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
        elif full:  # every eigenvalue of H is above half the cut times its Frobenius norm
            upper[...] = 2 / rank_cut(shape, name)
    lower = np.where(top > 0, np.maximum(top / np.where(least > 0, least, 1.0), 1.0), 1.0)
    return np.minimum(lower, upper), upper


def _numbers(ops: Ops, *v: Array) -> list[np.ndarray]:
    """Numbers of shape (..., 1, 1), one for each matrix of a stack; on the host, unless hidden."""
    known = v if ops.is_abstract(v[0]) else read(ops, *v)
    return [figure[..., 0, 0] for figure in known]


def _norm_ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``; the part itself for a zero matrix."""
    return cast(np.ndarray, part / (whole + (whole == 0)))
