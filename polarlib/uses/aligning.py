"""Computations of :func:`polarlib.align`: scaled clouds of points, moments, best rotations."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polarlib._methods.small import decompose, is_worth, symmetric_values
from polarlib._methods.small import rotation as small_rotation
from polarlib._methods.small_algebra import LARGEST
from polarlib._stages.options import default_tolerance
from polarlib.arrays.arithmetic import ranges
from polarlib.arrays.checks import short, shown
from polarlib.arrays.entered import enter
from polarlib.arrays.entry import as_matrix, check_same_place, is_array, not_finite, plain_array
from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import constant, trace
from polarlib.arrays.library import at_least_single, dtype_name, format_name, is_complex
from polarlib.arrays.ops import Ops, ops_of
from polarlib.engine.clouds import (
    columns,
    differentiable_residual,
    differentiable_turn,
    guarded,
    inner,
    minus,
    squares,
)
from polarlib.engine.equation import Equation
from polarlib.result import ConvergenceWarning
from polarlib.uses.nearest import turn_by_svd

Array = Any
# Points that differ by at most this many epsilons of their distance from the origin have scale 1.
COINCIDENT = 8.0
# Clouds are flat to rounding if they are thinner than this many epsilons of their size. The factor
# covers the rounding of points at a distance of some sizes from the origin.
FLAT = 64.0
# The first point replaces the heaviest one if its weight is at least this part of the mean weight.
FAIR = 0.0625
# Entries of points per piece on the host: with the temporary arrays they fill a cache of a few MB.
# Chosen by experiment.
PIECE = 1 << 18


class _Clouds(NamedTuple):
    """Scaled points and normalised weights, all arrays with the same number of axes.

    Attributes
    ----------
    x, y : array, shape (..., n, d)
        Points and targets over their scales, in at least single precision.
    x_scale, y_scale : array, shape (..., 1, 1), or float
        Powers of two.
    p : array, shape (..., 1, n), or None
        Weights of sum 1; None for equal ones.
    total : array, shape (..., 1, 1), or float
        Sum of the weights.
    """

    x: Array
    y: Array
    x_scale: Array | float
    y_scale: Array | float
    p: Array | None
    total: Array | float


def weights_of(weights: Any, a: Array) -> Array:
    """Return weights of any library as columns, shape (..., n, 1), with values not yet checked."""
    w = plain_array(short("weights", weights), "weights")
    if is_array(w) and w.ndim:
        w, _ = as_matrix(w[..., None], "weights")
    elif not is_array(w) and np.ndim(w):
        w = as_matrix([w], "weights")[0][0][..., None]
    n = a.shape[-2]
    if not is_array(w) or w.ndim < 2 or w.shape[-2] != n:
        got = f"shape {tuple(w.shape[:-1])}" if is_array(w) and w.ndim else shown(weights)
        raise ValueError(f"weights must have the shape (..., {n}), one per point, got {got}")
    check_same_place(a, "points", w, "weights")
    if is_complex(w):
        raise TypeError(f"weights must be real, got {dtype_name(w)}")
    return at_least_single(w, ops_of(w))


def _scale_of_weights(w: Array) -> Array:
    """Return powers of two near the largest weights; NaN or ValueError for invalid weights."""
    ops = ops_of(w)
    xp = ops.xp
    peak = ops.max(w, axis=(-2, -1), keepdims=True)
    least = xp.min(w, axis=(-2, -1), keepdims=True)
    good = (least >= 0) & (peak > 0) & xp.isfinite(peak)  # NaN is not
    if 0 not in w.shape and not ops.is_abstract(w) and not bool(xp.all(good)):
        host = ops.to_host(w)[..., 0]
        message = not_finite(host)
        if message:
            raise ValueError(f"weights {message}; remove them first")
        below = np.argwhere(host < 0)
        if below.size:
            at = tuple(map(int, below[0]))
            raise ValueError(f"weights must be at least 0, got {host[at]:.7g} at index {at}")
        at = tuple(map(int, np.argwhere(~np.any(host, axis=-1))[0]))
        raise ValueError(f"weights must not all be zero{f', as those of cloud {at}' * bool(at)}")
    return xp.where(good, ops.binary_scale(peak) + 0.0 * peak, xp.full_like(peak, math.nan))


def entered_clouds(a: Array, b: Array, w: Array | None, ops: Ops) -> _Clouds:
    """Return scaled clouds with normalised weights; points of weight zero are replaced by 0."""
    ndim = max(x.ndim for x in (a, b, w) if x is not None)
    p, total = None, float(a.shape[-2])
    if w is not None:
        size = constant(ops, _scale_of_weights, w)
        name = "float64" if format_name(a) == "float64" else "float32"
        w = ops.cast(ops.divide(w, size), name)
        sums = ops.sums(w, -2)
        p = _ranked(ops.xp.matrix_transpose(w / sums), ndim)
        total = _ranked(ops.cast(size, name) * sums, ndim)
        if ops.is_abstract(w) or ops.is_traced(w) or not bool(ops.xp.all(w > 0)):
            a, b = (ops.xp.where(w > 0, x, x * 0) for x in (a, b))  # NaN and infinity become NaN
    x = enter(a, "points", ops=ops, comfortable=True)
    y = enter(b, "targets", ops=ops, comfortable=True)
    sizes = [s.scale if isinstance(s.scale, float) else _ranked(s.scale, ndim) for s in (x, y)]
    return _Clouds(_ranked(x.x, ndim), _ranked(y.x, ndim), sizes[0], sizes[1], p, total)


def _ranked(x: Array, ndim: int) -> Array:
    """Prepend axes of length 1: arrays under vmap broadcast only if they have the same rank."""
    return x if x.ndim == ndim else ops_of(x).xp.reshape(x, (1,) * (ndim - x.ndim) + tuple(x.shape))


def _in_pieces(f: Callable[..., tuple[Array, ...]], arrays: list[Any], ops: Ops) -> Any:
    """Return ``f(*arrays)`` of stacks on the host, computed in pieces that fit in the cache.

    Return None for few clouds and for devices. The first array has the points. The leading axes of
    the results are those of the stack.
    """
    xp = ops.xp
    stack = np.broadcast_shapes(*(tuple(x.shape[:-2]) for x in arrays if x is not None))
    count = math.prod(stack)
    pieces = -(-count * math.prod(arrays[0].shape[-2:]) // PIECE)
    if not ops.host or ops.is_abstract(arrays[0]) or min(count, pieces) < 2:
        return None

    def flat(x: Array) -> Array:
        if math.prod(x.shape[:-2]) not in (1, count):
            x = xp.broadcast_to(x, (*stack, *x.shape[-2:]))
        return xp.reshape(x, (-1, *x.shape[-2:]))

    def of_each(x: Array, i: slice) -> Array:  # arrays that all clouds share are returned whole
        return xp.broadcast_to(x, (min(i.stop, count) - i.start, *x.shape[1:]))

    whole = [None if x is None else flat(x) for x in arrays]
    parts = [
        [of_each(r, i) for r in f(*(x if x is None or x.shape[0] == 1 else x[i] for x in whole))]
        for i in ranges(count, -(-count // pieces))
    ]
    joined = (xp.concat(each, axis=0) for each in zip(*parts, strict=True))
    return tuple(xp.reshape(x, (*stack, *x.shape[1:])) for x in joined)


class _Means(NamedTuple):
    """Means of points and targets, shape (..., d, 1), each stored as one point plus a remainder.

    One point is subtracted first, the heaviest or one that is heavy enough. The subtraction is
    exact if all points are far from the origin and near one another. Points that coincide are then
    exactly 0.
    """

    x: Array
    x_rest: Array
    y: Array
    y_rest: Array


def _heaviest(p: Array | None, like: Array, ops: Ops) -> Array | None:
    """Return a matrix that selects the heaviest points; None if the first points can be used.

    A point of weight p is at most ``1 / sqrt(p)`` times as far from the mean as the points are on
    average (root mean square). The first points are used unless one of them is light.
    """
    if p is None:
        return None
    xp, n = ops.xp, p.shape[-1]
    if ops.host and not ops.is_abstract(p) and bool(xp.all(p[..., :1] > FAIR / n)):
        return None
    index = xp.arange(n, device=ops._device_of(p))
    return xp.astype(index == xp.argmax(p, axis=-1, keepdims=True), like.dtype)


def _mean(
    x: Array, p: Array | None, heaviest: Array | None, ops: Ops
) -> tuple[Array, Array, Array]:
    """Return both parts of the mean, and the points relative to it, as columns."""
    xp = ops.xp
    first = x[..., :1, :] if heaviest is None else ops.matmul(heaviest, x)
    first = xp.matrix_transpose(first)
    x = columns(x, first, ops)
    if p is None:
        rest = ops.sums(x, -1) / x.shape[-1]
    else:
        rest = ops.matmul(x, xp.astype(xp.matrix_transpose(p), x.dtype))
    return first, rest, minus(x, rest, ops)


def _about(x: Array, first: Array | None, rest: Array | None, ops: Ops) -> Array:
    """Recompute the points relative to the mean, as :func:`_mean` returns them."""
    x = columns(x, first, ops)
    return x if rest is None else minus(x, rest, ops)


def _moments(
    x: Array, y: Array, p: Array | None, *, translation: bool, scale: bool, ops: Ops
) -> tuple[Array, ...]:
    """Return the centred points and targets, the covariance, the points' spread, and the means."""
    xp = ops.xp
    means: tuple[Array, ...] = ()
    if translation:
        heaviest = _heaviest(p, x, ops)
        x, x_rest, x_about = _mean(x, p, heaviest, ops)
        y, y_rest, y_about = _mean(y, p, heaviest, ops)
        means, x, y = _Means(x, x_rest, y, y_rest), x_about, y_about
    else:
        x, y = columns(x, None, ops), columns(y, None, ops)
    count = x.shape[-1] if p is None else 1
    heavy = x if p is None else x * p
    c = ops.matmul(xp.conj(heavy) if is_complex(x) else heavy, xp.matrix_transpose(y)) / count
    spread = (inner(heavy, x, ops) / count,) if scale else ()
    return (x, y, c, *spread, *means)


def solved(
    clouds: _Clouds, equation: Equation, scale: bool, translation: bool, ops: Ops
) -> tuple[Array, ...]:
    """Return the fields of the alignment as matrices: t as a column, singular values as a row."""
    xp, given = ops.xp, [clouds.x, clouds.y, clouds.p]
    moments = functools.partial(_moments, translation=translation, scale=scale, ops=ops)
    found = _in_pieces(lambda *arrays: moments(*arrays)[2:], given, ops)
    in_pieces = found is not None
    if not in_pieces:
        given[0], given[1], *found = moments(*given)
    c = found[0]
    means = _Means(*found[-4:]) if translation else None
    kink = None
    if ops.is_traced(c) and not equation.regularization:
        points = (x for x in given if x is not None)
        kink = constant(ops, functools.partial(_kink, equation=equation), c, *points)
    find = functools.partial(_turn, reflection=equation.kind == "polar")
    r, best, values, gap = differentiable_turn(find, c, equation)
    units = _units(clouds, best, ops)
    s = xp.ones_like(best)
    if scale:
        best = best if kink is None else guarded(best, kink, ops)
        s, units = _scales(found[1], best, clouds, units, ops)
    q = r * units.x
    if means is None:
        t, size2 = xp.zeros_like(r[..., :1]), xp.zeros_like(best)
    else:
        turned = ops.matmul(xp.matrix_transpose(q), means.x + means.x_rest)
        target = (means.y + means.y_rest) * units.y
        t = (target - turned) * units.both
        size2 = inner(target, target, ops) + inner(turned, turned, ops)

    def residual(
        x: Array, y: Array, p: Array, q: Array, size2: Array, unit: Array, *means: Array
    ) -> tuple[Array]:
        if in_pieces:
            about = means or (None,) * 4
            x, y = _about(x, about[0], about[1], ops), _about(y, about[2], about[3], ops)
        y = y if unit is None else y * unit
        return (differentiable_residual(x, y, q, size2, p, ops),)

    unit = None if _is_one(units.y) else units.y * xp.ones_like(best)
    arrays = [*given, q, size2, unit]
    (rmsd,) = _in_pieces(residual, [*arrays, *(means or ())], ops) or residual(*arrays)
    rmsd = rmsd if kink is None else guarded(rmsd, kink, ops)
    values = values[..., None, :]
    unique = gap > equation.size * format_of(format_name(c)).epsilon * values[..., :1]
    if c.shape[-1] <= int(equation.kind == "rotation"):
        unique = gap == gap  # R is the only candidate; False for NaN
    values = values * (clouds.x_scale * clouds.y_scale) * clouds.total
    return r, s, t, values, rmsd * units.both, unique


class _Units(NamedTuple):
    """Factors of the points (with s) and of the targets, and the unit of the residual."""

    x: Array | float
    y: Array | float
    both: Array | float


def _is_one(s: Array | float) -> bool:
    return isinstance(s, float) and s == 1.0


def _units(clouds: _Clouds, like: Array, ops: Ops) -> _Units:
    """Return the units for s = 1: the larger of the two scales, so that neither side overflows."""
    x, y, xp = clouds.x_scale, clouds.y_scale, ops.xp
    if isinstance(x, float) and isinstance(y, float):
        both: Array | float = max(x, y)
    else:
        one = xp.ones_like(like)
        both = xp.maximum(one * x, one * y)
    return _Units(x / both, y / both, both)


def _scales(
    spread: Array, best: Array, clouds: _Clouds, units: _Units, ops: Ops
) -> tuple[Array, _Units]:
    """Return the best s, and its units: those of the targets. s is 1 if the points coincide."""
    xp = ops.xp
    noise = COINCIDENT * format_of(format_name(spread)).epsilon
    far2 = ops.max(squares(columns(clouds.x, None, ops), ops), axis=-1, keepdims=True)
    lost = spread <= noise * noise * far2
    one = xp.ones_like(best)
    free = xp.where(best > 0, best, 0.0 * xp.abs(best)) / xp.where(lost, one, spread)
    s = xp.where(lost, one, free * (clouds.y_scale / clouds.x_scale))
    chosen = ((units.x, free), (units.y, one), (units.both, one * clouds.y_scale))
    return s, _Units(*(xp.where(lost, one * fixed, other) for fixed, other in chosen))


def _kink(c: Array, x: Array, y: Array, *p: Array, equation: Equation) -> Array:
    """Return 1 where the best rotations move the points or the targets differently, else 0.

    Give the last singular value the sign of the determinant. Best rotations of one cloud then
    differ on the singular vectors whose values have a sum of zero with another value. Points
    without a component along these vectors, to rounding, are moved alike by all of them.
    """
    ops = ops_of(c)
    xp, n = ops.xp, c.shape[-1]
    real = xp.zeros(c.shape[:-2], dtype=ops._real_dtype(c))[..., None, None]
    if 0 in c.shape or n <= int(equation.kind == "rotation"):
        return real
    u, s, vh = ops.svd(enter(c, ops=ops, look="never", mask=True).x)
    sums = s
    if equation.kind == "rotation":
        last = s[..., -1:] * ops.determinant_sign(ops.matmul(u, vh))[..., 0]
        sums = xp.concat([s[..., :-1], s[..., -2:-1]], axis=-1) + last
    eps = format_of(format_name(s)).epsilon
    moved = sums <= equation.size * eps * s[..., :1]
    kink = xp.zeros_like(moved)
    for z, vectors in ((x, xp.matrix_transpose(u)), (y, xp.conj(vh) if is_complex(vh) else vh)):
        along = ops.matmul(vectors, z)
        along = xp.real(along) ** 2 + xp.imag(along) ** 2 if is_complex(along) else along**2
        along = xp.sum(along * p[0] if p else along, axis=-1)
        kink = kink | (moved & (along > (FLAT * eps) ** 2 * xp.sum(along, axis=-1, keepdims=True)))
    return xp.astype(xp.any(kink, axis=-1)[..., None, None], real.dtype)


def _turn(c: Array, *, reflection: bool) -> tuple[Array, ...]:
    """Return R, ``Re tr(R^H C)``, singular values, and the sum that is not 0 if R is unique.

    If a rotation fails the check, raise ConvergenceWarning, or return NaN under a trace.
    """
    ops = ops_of(c)
    xp = ops.xp
    if 0 in c.shape:
        zero = trace(c, ops)
        return c * 1.0, zero, xp.zeros(c.shape[:-1], dtype=zero.dtype), zero * 1.0
    if ops.host and not ops.is_abstract(c):  # NumPy is the fastest for small matrices
        turn: Any = [ops.from_host(x, c) for x in _best_turn(ops.to_host(c), reflection=reflection)]
    else:
        turn = ops.compiled(_best_turn, reflection=reflection)(c)
    if not ops.is_abstract(c) and not bool(xp.all(xp.isfinite(turn[0]))):
        raise ConvergenceWarning(
            "no rotation passed the check of optimality: the SVD did not converge; use float64"
        )
    return tuple(turn)


def _best_turn(c: Array, *, reflection: bool) -> tuple[Array, ...]:
    ops = ops_of(c)
    xp = ops.xp
    known = c.shape[-1] <= LARGEST and ops.host and is_worth(tuple(c.shape))
    if known and not is_complex(c):
        r, shown = small_rotation(c, ops) if not reflection else _small_unitary(c, ops)
        if bool(xp.all(shown)):
            h = ops.hermitian_part(ops.matmul(ops.adjoint(r), c))
            s, sizes = symmetric_values(h, ops)
            # At most one eigenvalue is negative, the smallest in absolute value.
            gap = s[..., :1] if reflection else xp.sum(s[..., :2], axis=-1, keepdims=True)
            return r, trace(h, ops), sizes, gap[..., None]
    entered = enter(c, ops=ops, look="never", mask=True)
    r, shown, s, sign = turn_by_svd(entered.x, ops, proper=not reflection)
    r = xp.where(entered.finite & shown, r, xp.full_like(r, math.nan))
    last = s[..., -1:, None]
    gap = last if reflection else s[..., -2:-1, None] + sign * last if s.shape[-1] > 1 else last
    s = entered.or_nan(s[..., None, :])
    best = trace(ops.matmul(ops.adjoint(r), c), ops)
    return r, best, (s * entered.scale)[..., 0, :], entered.or_nan(gap) * entered.scale


def _small_unitary(c: Array, ops: Ops) -> tuple[Array, Array]:
    """Return orthogonal factors of small matrices, and whether each passes the check."""
    tol = default_tolerance(tuple(c.shape), format_name(c))
    d = decompose(c, ops, tol=tol)
    good = (d.orthogonality <= tol) & (d.backward_error <= tol) & d.definite
    return d.unitary, ops.xp.asarray(good)
