"""Alignment of clouds of points: the Procrustes problem with weights, scale and translation."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from polarlib._methods.small import decompose, is_worth, symmetric_values
from polarlib._methods.small import rotation as small_rotation
from polarlib._methods.small_algebra import LARGEST
from polarlib._stages.options import default_tolerance
from polarlib.arrays.checks import flag, number, shown
from polarlib.arrays.entered import enter
from polarlib.arrays.entry import (
    as_matrix,
    check_same_place,
    is_array,
    not_finite,
    plain_array,
)
from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import common_dtype, constant, trace
from polarlib.arrays.library import at_least_single, dtype_name, format_name, is_complex
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.pytrees import Pytree
from polarlib.arrays.settings import looks, under_default_settings
from polarlib.engine.clouds import (
    differentiable_residual,
    differentiable_turn,
    inner,
    minus,
    squares,
)
from polarlib.engine.equation import Equation
from polarlib.result import ConvergenceWarning
from polarlib.uses.nearest import turn_by_svd
from polarlib.uses.procrustes import pair_of

Array = Any
# Points that differ by so many epsilons of their distance from the origin have no scale.
COINCIDENT = 8.0


@dataclass(frozen=True, eq=False)
class Alignment(Pytree):
    """What :func:`align` returns: ``b_i`` is nearest to ``scale * a_i @ rotation + translation``.

    Called with points, it applies itself to them. For JAX it is a pytree, whose leaves are all
    attributes.

    Attributes
    ----------
    rotation : array, shape (..., d, d)
        R, which multiplies rows of points from the right.
    scale : array, shape (...)
        s >= 0.
    translation : array, shape (..., d)
        t.
    singular_values : array, shape (..., d)
        Those of the covariance C, descending: how well R is determined.
    rmsd : array, shape (...)
        ``sqrt(sum w_i |s a_i R + t - b_i|^2 / sum w_i)``, summed over the residuals.
    unique : array of bool, shape (...)
        Whether no other rotation is as good, to rounding.

    Examples
    --------
    >>> import numpy as np
    >>> from polarlib import align
    >>> a = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    >>> b = np.array([[1.0, 1.0], [1.0, 3.0], [0.0, 1.0]])
    >>> alignment = align(a, b)
    >>> bool(np.allclose(alignment(a), b))
    True
    >>> alignment([[1.0, 0.0]]).round(12).tolist()  # other points, the same motion
    [[1.0, 2.0]]
    """

    rotation: Any
    scale: Any
    translation: Any
    singular_values: Any
    rmsd: Any
    unique: Any

    @looks
    @under_default_settings
    def __call__(self, points: Any) -> Any:
        """Return ``scale * points @ rotation + translation``.

        Parameters
        ----------
        points : array or array-like, shape (..., n, d)
            Of the alignment's library and device; leading axes broadcast. Never changed.

        Returns
        -------
        array, shape (..., n, d)
            Of the dtype to which the library promotes those of `points` and of the alignment.

        Raises
        ------
        TypeError, ValueError
            For points of another library or device, of another dimension, or of a stack that does
            not broadcast.
        """
        x, ops = as_matrix(points, "points")
        r, t, s = self.rotation, self.translation[..., None, :], self.scale[..., None, None]
        check_same_place(x, "points", r, "the alignment")
        if x.shape[-1] != r.shape[-1]:
            raise ValueError(
                f"points must have {r.shape[-1]} columns, as those that were aligned, got shape "
                f"{tuple(x.shape)}"
            )
        _broadcast(("points", x), ("the alignment", r))
        dtype = common_dtype(x, r, ops)
        ops = ops.functional(x, r, t, s)
        x, r, t, s = (at_least_single(p, ops) for p in (x, r, t, s))
        if x.dtype != r.dtype:
            wide = common_dtype(x, r, ops)
            x, r = ops.xp.astype(x, wide), ops.xp.astype(r, wide)
        y = ops.matmul(x, r) * s + t
        return y if y.dtype == dtype else ops.xp.astype(y, dtype)


@looks
@under_default_settings
def align(
    points: Any,
    targets: Any,
    *,
    weights: Any = None,
    scale: bool = False,
    translation: bool = True,
    reflection: bool = False,
    regularization: float = 0.0,
) -> Alignment:
    """Rotation, translation and scale that take points nearest to others, by least squares.

    Minimises ``sum w_i |s a_i R + t - b_i|^2`` over rotations R, translations t and, if asked for,
    scales s >= 0 (Kabsch's and Umeyama's problem, and Wahba's).

    Parameters
    ----------
    points, targets : array or array-like, shape (..., n, d)
        The a_i and the b_i in rows, of one array library and device, never changed; leading axes
        broadcast. Integers become float64. n >= 1.
    weights : array or array-like, shape (..., n), optional
        The w_i >= 0, not all zero; equal by default. Leading axes broadcast. A point of weight zero
        is left out, wherever it is.
    scale, translation : bool, optional
        Whether s and t are sought; otherwise they are 1 and 0.
    reflection : bool, optional
        Whether R may be any orthogonal matrix (unitary, of complex points).
    regularization : float, optional
        For derivatives of R and t by torch or JAX: see :func:`nearest_rotation`.

    Returns
    -------
    Alignment
        Library, device and dtype of the points: that to which the library promotes those of
        `points` and `targets`. Where the best R is not unique (points on a line or on one point,
        n < d, mirror images with equal singular values) it is one of the best, `unique` is False,
        and the residual is optimal all the same.

    Raises
    ------
    TypeError
        If an argument is not an array of numbers, if they are of two array libraries, or complex
        without ``reflection=True``.
    ValueError
        For shapes that do not match, no points, two devices, NaN or infinity, weights that are
        negative or all zero, a regularization that is negative. With torch or JAX, when a
        derivative of R or t is computed without regularization where R is not unique; in code that
        JAX traces it is NaN.
    ConvergenceWarning
        If no rotation is shown to be the best.

    Notes
    -----
    With weighted means, ``C = sum w_i (a_i - mean a)^H (b_i - mean b) = U S V^H``,

        R = U diag(1, ..., 1, det(U V^T)) V^T  (U V^H for reflections),
        s = max(0, Re tr(R^H C) / sum w_i |a_i - mean a|^2),    t = mean b - s mean a R.

    s is 1 where the points coincide to rounding, ``sum w_i |a_i - mean a|^2 <= (8 eps max |a_i|)^2
    sum w_i``. R is unique if ``sigma_(d-1) + det(U V^T) sigma_d > max(n, d) eps sigma_1``; with
    reflections, if sigma_d is larger than that. Points are centred before any product. They take
    some ten passes over the points and one rotation a cloud; stacks are computed as a whole.

    Derivatives with respect to points, targets and weights exist for all but `unique`. Those of
    `scale` and `rmsd` need none of R's, and are taken with R held where R is not unique: right if
    the value is smooth there, as for two clouds on lines. That of `rmsd` is zero where the residual
    is zero to rounding. See docs/align.md.

    W. Kabsch, Acta Cryst. A 32 (1976) 922-923; S. Umeyama, IEEE Trans. PAMI 13 (1991) 376-380,
    equations 34 to 43; G. Wahba, SIAM Rev. 7 (1965) 409.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    >>> b = np.array([[1.0, 1.0], [1.0, 5.0], [-1.0, 1.0]])  # turned by 90 degrees, twice as large
    >>> found = align(a, b, scale=True)
    >>> found.rotation.round(12).tolist(), float(found.scale.round(12))
    ([[0.0, 1.0], [-1.0, 0.0]], 2.0)
    >>> bool(found.unique), bool(found.rmsd < 1e-15)
    (True, True)
    """
    a, b, ops = pair_of(points, targets, "points", "targets")
    scale, translation = flag("scale", scale), flag("translation", translation)
    reflection = flag("reflection", reflection)
    r = number("regularization", regularization, 0)
    if is_complex(a) and not reflection:
        raise TypeError(
            f"align needs real points, got {dtype_name(a)}: the best special unitary matrix has no "
            "closed form; pass reflection=True for the best unitary one"
        )
    if a.shape[-2] == 0:
        raise ValueError(f"points must be at least one, got shape {tuple(a.shape)}")
    w = None if weights is None else _weights(weights, a)
    if w is not None:
        _broadcast(("points", a), ("targets", b), ("weights", w))
    clouds = _entered(a, b, w, ops)
    equation = Equation("polar" if reflection else "rotation", max(a.shape[-2:]), r)
    return _aligned(clouds, a, equation, scale, translation)


class _Clouds(NamedTuple):
    """Points as they are computed with, all of one number of dimensions.

    Attributes
    ----------
    x, y : array, shape (..., n, d)
        Points and targets over their scales, in at least single precision.
    x_scale, y_scale : array, shape (..., 1, 1), or 1.0
    p : array, shape (..., n, 1), or None
        Weights of sum 1; None for equal ones.
    row : array, shape (..., 1, n)
        What sums points, weighted, over `parts`.
    parts : float
    total : array, shape (..., 1, 1), or float
        Sum of the weights.
    ops : Ops
    """

    x: Array
    y: Array
    x_scale: Array | float
    y_scale: Array | float
    p: Array | None
    row: Array
    parts: float
    total: Array | float
    ops: Ops


def _broadcast(*named: tuple[str, Array]) -> None:
    """Raise where stacks of matrices, each with its name, do not broadcast."""
    leading = [tuple(x.shape[:-2]) for _, x in named]
    try:
        np.broadcast_shapes(*leading)
    except ValueError:
        names = ", ".join(name for name, _ in named[:-1])
        raise ValueError(
            f"the stacks of {names} and {named[-1][0]} do not broadcast: leading axes "
            f"{', '.join(map(str, leading[:-1]))} and {leading[-1]}"
        ) from None


def _weights(weights: Any, a: Array) -> Array:
    """Weights of any library as columns, shape (..., n, 1), not yet looked at."""
    w = plain_array(weights, "weights")
    if is_array(w) and w.ndim:
        w, _ = as_matrix(w[..., None], "weights")
    elif not is_array(w) and np.ndim(w):
        w = as_matrix([w], "weights")[0][0][..., None]
    n = a.shape[-2]
    if not is_array(w) or w.ndim < 2 or w.shape[-2] != n:
        got = f"shape {tuple(w.shape[:-1])}" if is_array(w) and w.ndim else shown(weights)
        raise ValueError(f"weights must have the shape (..., {n}), one for each point, got {got}")
    check_same_place(a, "points", w, "weights")
    if is_complex(w):
        raise TypeError(f"weights must be real, got {dtype_name(w)}")
    return at_least_single(w, ops_of(w))


def _scale_of_weights(w: Array) -> Array:
    """Powers of two near the largest weights; NaN, or ValueError, where they are not allowed."""
    ops = ops_of(w)
    xp = ops.xp
    peak = ops.max(w, axis=(-2, -1), keepdims=True)
    least = xp.min(w, axis=(-2, -1), keepdims=True)
    good = (least >= 0) & (peak > 0) & xp.isfinite(peak)  # NaN is not
    if 0 not in w.shape and not ops.is_abstract(w) and not bool(xp.all(good)):
        host = ops.to_host(w)[..., 0]
        trouble = not_finite(host)
        if trouble:
            raise ValueError(f"weights {trouble}; remove them first")
        below = np.argwhere(host < 0)
        if below.size:
            at = tuple(map(int, below[0]))
            raise ValueError(f"weights must be at least 0, got {host[at]:.7g} at index {at}")
        at = tuple(map(int, np.argwhere(~np.any(host, axis=-1))[0]))
        raise ValueError(f"weights must not all be zero{f', as those of cloud {at}' * bool(at)}")
    return xp.where(good, ops.binary_scale(peak) + 0.0 * peak, xp.full_like(peak, math.nan))


def _entered(a: Array, b: Array, w: Array | None, ops: Ops) -> _Clouds:
    """Clouds, scaled, with the weights normalised; points of weight zero are moved to 0."""
    xp, n = ops.xp, a.shape[-2]
    ndim = max(x.ndim for x in (a, b, w) if x is not None)
    p, row, parts = None, None, float(n)
    total: Array | float = parts
    if w is not None:
        ops = ops.functional(w)
        size = constant(ops, _scale_of_weights, w)
        name = "float64" if format_name(a) == "float64" else "float32"
        w = ops.cast(ops.divide(w, size), name)
        sums = ops.sums(w, -2)
        p, parts = _ranked(w / sums, ndim), 1.0
        total = _ranked(ops.cast(size, name) * sums, ndim)
        row = xp.matrix_transpose(p)
        a, b = _relevant(a, w, ops), _relevant(b, w, ops)
    x, y = (
        enter(each, name, ops=ops, comfortable=True)
        for each, name in ((a, "points"), (b, "targets"))
    )
    if row is None:
        row = xp.ones((1, n), dtype=x.x.dtype, device=ops._device_of(x.x))
    elif is_complex(x.x):
        row = xp.astype(row, x.x.dtype)
    sizes = [s.scale if isinstance(s.scale, float) else _ranked(s.scale, ndim) for s in (x, y)]
    both = _ranked(x.x, ndim), _ranked(y.x, ndim)
    return _Clouds(*both, sizes[0], sizes[1], p, row, parts, total, ops)


def _relevant(x: Array, w: Array, ops: Ops) -> Array:
    """Points, of which those of weight zero are 0; NaN and infinity are NaN."""
    if not ops.is_abstract(w) and not ops.is_traced(w) and bool(ops.xp.all(w > 0)):
        return x
    return ops.xp.where(w > 0, x, x * 0)


def _ranked(x: Array, ndim: int) -> Array:
    """The same array with axes of length 1 in front: batched arrays broadcast by their rank."""
    return x if x.ndim == ndim else ops_of(x).xp.reshape(x, (1,) * (ndim - x.ndim) + tuple(x.shape))


def _centred(x: Array, clouds: _Clouds) -> tuple[Array, Array]:
    """Means, shape (..., 1, d), and points about them.

    One point is subtracted first, the heaviest: exactly, as it is near the others where all are far
    from the origin. Points that coincide are then exactly 0.
    """
    ops, p = clouds.ops, clouds.p
    if p is None:
        first = x[..., :1, :]
    else:
        heaviest = ops.xp.argmax(p, axis=-2, keepdims=True)
        index = ops.xp.arange(p.shape[-2], device=ops._device_of(p))[:, None]
        one = ops.xp.astype(index == heaviest, x.dtype)
        first = ops.matmul(ops.xp.matrix_transpose(one), x)
    x = x - first
    mean = ops.matmul(clouds.row, x) * (1.0 / clouds.parts)
    return first + mean, minus(x, mean, ops)


def _aligned(
    clouds: _Clouds, like: Array, equation: Equation, scale: bool, translation: bool
) -> Alignment:
    x, y, p, ops = clouds.x, clouds.y, clouds.p, clouds.ops
    xp, share = ops.xp, 1.0 / x.shape[-2]
    means = None
    if translation:
        (x_mean, x), (y_mean, y) = _centred(x, clouds), _centred(y, clouds)
        means = x_mean, y_mean
    weighted = x if p is None else x * p
    c = ops.matmul(ops.adjoint(weighted), y) * (share if p is None else 1.0)
    find = functools.partial(_turn, reflection=equation.kind == "polar")
    r, best, values, gap = differentiable_turn(find, c, equation)
    units = _units(clouds, best)
    s = xp.ones_like(best)
    if scale:
        spread = inner(weighted, x, ops) * (share if p is None else 1.0)
        s, units = _scales(spread, best, clouds, units)
    q, y = r * units.x, y if _is_one(units.y) else y * units.y
    if means is None:
        t, size2 = xp.zeros_like(r[..., :1, :]), xp.zeros_like(best)
    else:
        ends = means[1] * units.y, ops.matmul(means[0], q)
        t = (ends[0] - ends[1]) * units.both
        size2 = inner(ends[0], ends[0], ops) + inner(ends[1], ends[1], ops)
    rmsd = differentiable_residual(x, y, q, size2, p, ops) * units.both
    n = max(x.shape[-2:])
    unique = gap > n * format_of(format_name(c)).epsilon * values[..., None, :1]
    if x.shape[-1] <= (equation.kind == "rotation"):
        unique = gap >= 0
    values = values[..., None, :] * (clouds.x_scale * clouds.y_scale) * clouds.total
    real = ops._dtype(format_name(like))
    t = xp.astype(xp.broadcast_to(t, r[..., :1, :].shape), like.dtype)[..., 0, :]
    return Alignment(
        xp.astype(r, like.dtype),
        xp.astype(s, real)[..., 0, 0],
        t,
        xp.astype(values, real)[..., 0, :],
        xp.astype(rmsd, real)[..., 0, 0],
        unique[..., 0, 0],
    )


class _Units(NamedTuple):
    """Factors of the points (with s) and of the targets, and what the residual is in units of."""

    x: Array | float
    y: Array | float
    both: Array | float


def _is_one(s: Array | float) -> bool:
    return isinstance(s, float) and s == 1.0


def _units(clouds: _Clouds, like: Array) -> _Units:
    """The units for s = 1: the larger scale of both, so that neither overflows."""
    x, y, xp = clouds.x_scale, clouds.y_scale, clouds.ops.xp
    if isinstance(x, float) and isinstance(y, float):
        both: Array | float = max(x, y)
    else:
        one = xp.ones_like(like)
        both = xp.maximum(one * x, one * y)
    return _Units(x / both, y / both, both)


def _scales(spread: Array, best: Array, clouds: _Clouds, units: _Units) -> tuple[Array, _Units]:
    """The best s, and units for it: those of the targets, which s is 1 for if points coincide."""
    ops, xp = clouds.ops, clouds.ops.xp
    noise = COINCIDENT * format_of(format_name(spread)).epsilon
    far2 = ops.max(squares(clouds.x, ops), axis=-2, keepdims=True)
    lost = spread <= noise * noise * far2
    one = xp.ones_like(best)
    free = xp.where(best > 0, best, 0.0 * best) / xp.where(lost, one, spread)
    s = xp.where(lost, one, free * (clouds.y_scale / clouds.x_scale))
    chosen = ((units.x, free), (units.y, one), (units.both, one * clouds.y_scale))
    return s, _Units(*(xp.where(lost, one * fixed, other) for fixed, other in chosen))


def _turn(c: Array, *, reflection: bool) -> tuple[Array, ...]:
    """Best rotations, ``Re tr(R^H C)``, singular values, and what must not be 0 for R to be unique.

    ConvergenceWarning if none is shown to be the best; NaN where the library hides the entries.
    """
    ops = ops_of(c)
    xp = ops.xp
    if 0 in c.shape:
        zero = trace(c, ops)
        return c * 1.0, zero, xp.zeros(c.shape[:-1], dtype=zero.dtype), zero * 1.0
    found: Any = ops.compiled(_found, reflection=reflection)(c)
    if not ops.is_abstract(c) and not bool(xp.all(xp.isfinite(found[0]))):
        raise ConvergenceWarning(
            "the best rotation was not found: the SVD did not converge; use float64"
        )
    return tuple(found)


def _found(c: Array, *, reflection: bool) -> tuple[Array, ...]:
    ops = ops_of(c)
    xp = ops.xp
    known = c.shape[-1] <= LARGEST and ops.host and is_worth(tuple(c.shape))
    if known and not is_complex(c):
        r, shown = small_rotation(c, ops) if not reflection else _small_unitary(c, ops)
        if bool(xp.all(shown)):
            h = ops.hermitian_part(ops.matmul(ops.adjoint(r), c))
            s = symmetric_values(h, ops)
            # One eigenvalue may be negative, the smallest in absolute value.
            gap = s[..., :1] if reflection else xp.sum(s[..., :2], axis=-1, keepdims=True)
            return r, trace(h, ops), xp.sort(xp.abs(s), axis=-1, descending=True), gap[..., None]
    entered = enter(c, ops=ops, look="never", mask=True)
    r, shown, s, sign = turn_by_svd(entered.x, ops, proper=not reflection)
    r = xp.where(entered.finite & shown, r, xp.full_like(r, math.nan))
    last = s[..., -1:, None]
    gap = last if reflection else s[..., -2:-1, None] + sign * last if s.shape[-1] > 1 else last
    s = entered.or_nan(s[..., None, :])
    best = trace(ops.matmul(ops.adjoint(r), c), ops)
    return r, best, (s * entered.scale)[..., 0, :], entered.or_nan(gap) * entered.scale


def _small_unitary(c: Array, ops: Ops) -> tuple[Array, Array]:
    """Orthogonal factors of small matrices, and whether each is shown to be it."""
    tol = default_tolerance(tuple(c.shape), format_name(c))
    d = decompose(c, ops, tol=tol)
    good = (d.orthogonality <= tol) & (d.backward_error <= tol) & d.definite
    return d.unitary, ops.xp.asarray(good)
