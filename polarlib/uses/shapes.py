"""Generalised Procrustes analysis: several clouds of points aligned to their mean."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polarlib.arrays.checks import count, flag, function, number
from polarlib.arrays.entered import enter
from polarlib.arrays.entry import as_matrix, is_array, plain_array
from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import constant
from polarlib.arrays.library import at_least_single, format_name, is_complex
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.pytrees import Pytree
from polarlib.arrays.settings import looks, under_default_settings, warn
from polarlib.result import ConvergenceWarning
from polarlib.uses.align import Alignment, align

Array = Any
# Shapes that move by so many epsilons of their size are at rest. The largest rounding that was seen
# in 200 sweeps of 2 to 50 shapes of 2 to 500 points was 2.
REST = 8.0
# Digits that the default tolerance asks for: of eps**(2/3), a third is left for rounding.
DIGITS = 2.0 / 3.0
# Each sweep takes some twenty calls of the library: a minute, if shapes are small.
MOST_SWEEPS = 100_000


@dataclasses.dataclass(frozen=True, eq=False)
class GeneralizedProcrustes(Pytree):
    """What :func:`generalized_procrustes` returns. For JAX a pytree of all attributes.

    Attributes
    ----------
    mean : array, shape (..., n, d)
        The mean of the aligned shapes.
    alignments : Alignment
        Of every shape to the mean, as one stack of shape (..., k): ``alignments(shapes)`` are the
        aligned shapes, ``alignments.rmsd`` how far each is from the mean.
    objective : array, shape (..., iterations)
        ``sum w_j |x_ij - mean_j|^2`` over the aligned shapes i and points j, after each sweep: it
        never grows, but for rounding.
    converged : array of bool, shape (...)
        Whether the shapes came to rest, to `rtol`.
    iterations : int
        Sweeps over the shapes.
    """

    mean: Any
    alignments: Alignment
    objective: Any
    converged: Any
    iterations: int


@looks
@under_default_settings
def generalized_procrustes(
    shapes: Any,
    *,
    weights: Any = None,
    scale: bool = False,
    translation: bool = True,
    reflection: bool = False,
    rtol: float | None = None,
    max_iterations: int = 1000,
    callback: Callable[[int, Array], None] | None = None,
) -> GeneralizedProcrustes:
    """Align several shapes, so that they are nearest to their common mean, by least squares.

    Minimises ``sum w_j |s_i a_ij R_i + t_i - m_j|^2`` over the mean m and, for every shape i,
    a rotation R_i and, where they are asked for, a translation t_i and a scale s_i >= 0.

    Parameters
    ----------
    shapes : array_like, shape (..., k, n, d)
        k shapes of n corresponding points in rows. Not modified. Integers are converted to float64.
    weights : array_like, shape (..., n), optional
        Of the points, alike in every shape: >= 0, not all zero; equal by default.
    scale : bool, optional
        Whether the s_i are sought. What all have in common is fixed by the sum of the squared sizes
        ``sum w_j |s_i (a_ij - mean a_i)|^2``, which is kept: without that all would shrink to a
        point. (The mean a_i is 0 here without `translation`.)
    translation : bool, optional
        Whether the t_i are sought. The mean is then centred at the origin.
    reflection : bool, optional
        Whether the R_i may be any orthogonal matrices (unitary, of complex shapes).
    rtol : float, optional
        How near, relative to their size, the shapes must have come to where they tend, which is
        estimated from the last two sweeps; by default eps**(2/3). 0 asks for exactly
        `max_iterations` sweeps, without a look at the entries and without a warning; `converged`
        is then by the default.
    max_iterations : int, optional
        Largest number of sweeps.
    callback : callable, optional
        Called as ``callback(i, mean)`` after sweep i = 1, 2, ... with the mean shape, centred and
        scaled, which it must not change.

    Returns
    -------
    GeneralizedProcrustes
        Arrays of the library, device and dtype of `shapes`. All shapes may be turned together: the
        first one's R is the identity.

    Raises
    ------
    TypeError
        If `shapes` is not an array of numbers, or complex without ``reflection=True``; under JAX's
        transformations, which hide its entries, unless ``rtol=0`` without `callback`.
    ValueError
        For fewer than three axes, no shapes, no points, NaN or infinity, and for weights as
        :func:`align`.

    Warns
    -----
    ConvergenceWarning
        If some shapes are still moving after `max_iterations` sweeps.

    Notes
    -----
    The first shape is the first mean. A sweep aligns every shape to the mean, by k calls of
    :func:`align` in one stack, restores the common size, and takes the mean again: rotations and
    scales are the best for the mean before, which bounds the objective from above, so that it never
    grows. Convergence is linear, and fast where shapes are alike: two sweeps if they are congruent,
    tens if they differ by half of their size, hundreds for noise, which warns in the end. What is
    found is where no shape alone can be aligned better: the best there is for shapes that are
    alike, one of several local optima otherwise, which depends on the first shape.

    Derivatives by torch are those of the sweeps, each of which is kept; with JAX pass ``rtol=0``
    and few sweeps, since each is compiled. Half precision is computed in float32.

    J. C. Gower, Psychometrika 40 (1975) 33-51; J. M. F. ten Berge, Psychometrika 42 (1977) 267-276.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    >>> quarter_turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> found = generalized_procrustes([a, a @ quarter_turn + 5.0, a - 1.0])
    >>> bool(np.allclose(found.mean, a - a.mean(axis=0))), found.iterations
    (True, 2)
    >>> bool(found.converged), bool(found.objective[-1] < 1e-25)
    (True, True)
    """
    a, ops = as_matrix(shapes, "shapes")
    if a.ndim < 3 or 0 in a.shape[-3:]:
        raise ValueError(
            f"shapes must have the shape (..., k, n, d) with k, n, d >= 1, got {tuple(a.shape)}"
        )
    # All shapes are one problem: JAX's explicit axes are refused along the shapes, too.
    *lead, k, n, d = range(a.ndim)
    as_matrix(ops.xp.permute_dims(a, (*lead, n, d, k)), "shapes")
    scale, translation = flag("scale", scale), flag("translation", translation)
    reflection = flag("reflection", reflection)
    given = None if rtol is None else number("rtol", rtol, 0, 1)
    most = count("max_iterations", max_iterations, 1, MOST_SWEEPS)
    callback = callback and function("callback", callback)
    if is_complex(a) and not reflection:
        raise TypeError(
            "generalized_procrustes needs real shapes: the best special unitary matrix has no "
            "closed form; pass reflection=True for the best unitary ones"
        )
    hidden = ops.is_abstract(a) or (is_array(weights) and ops_of(weights).is_abstract(weights))
    if hidden and (given != 0 or callback):
        raise TypeError(
            f"generalized_procrustes reads entries of its shapes, which {ops.hiding}, or pass "
            "rtol=0 for max_iterations sweeps, without callback"
        )
    entered = _entered(a, weights, ops.functional(a), translation)
    found = _swept(entered, scale, reflection, given, most, callback)
    if found.moving is not None:
        warn(
            f"generalized_procrustes: shapes still move after {len(found.objectives)} sweeps, by "
            f"{found.moving:.1e} of their size in the last one; raise max_iterations or rtol",
            ConvergenceWarning,
        )
    return _result(found, entered, a)


class _Shapes(NamedTuple):
    """Shapes as they are computed with.

    Attributes
    ----------
    y : array, shape (..., k, n, d)
        In at least single precision, about their centres, over `size`.
    centres : array, shape (..., k, 1, d)
    root : array, shape (..., 1, n, 1), or float
        Roots of the weights, of sum 1.
    total, size : array, shape (...)
        Sum of the weights; a power of two for each stack of k shapes.
    ops : Ops
    """

    y: Array
    centres: Array
    root: Array | float
    total: Array
    size: Array
    ops: Ops

    def turned(self, a: Alignment) -> Array:
        """All points, turned and scaled."""
        return a.scale[..., None, None] * self.ops.matmul(self.y, a.rotation)


class _Found(NamedTuple):
    """The last sweep: its alignments, and how far from their mean the shapes are.

    Attributes
    ----------
    last : Alignment
    rmsd : array, shape (..., k)
    objectives : list of arrays, shape (...)
        After every sweep.
    converged : array, shape (...)
    moving : float or None
        The largest movement of shapes that have not converged; None if all have, or unknown.
    """

    last: Alignment
    rmsd: Array
    objectives: list[Array]
    converged: Array
    moving: float | None


def _entered(a: Array, weights: Any, ops: Ops, translation: bool) -> _Shapes:
    """Shapes, scaled together, and about their weighted means."""
    xp = ops.xp
    *lead, k, n, d = a.shape
    entered = enter(xp.reshape(a, (*lead, k * n, d)), "shapes", ops=ops, comfortable=True)
    x = xp.reshape(entered.x, (*lead, k, n, d))
    one = xp.ones_like(_squares(x, ops))
    size = entered.scale if isinstance(entered.scale, float) else entered.scale[..., 0, 0]
    p: Array | float = 1 / float(n)
    total: Array | float = float(n)
    if weights is not None:
        p = _weights(weights, x, ops)
        sums = xp.sum(p, axis=-2, keepdims=True)
        p, total = p / sums, sums[..., 0, 0, 0]
    centres = xp.zeros_like(x[..., :1, :])
    if translation:
        # Twice: of shapes far from the origin, the first mean is not exact.
        for _ in range(2):
            mean = xp.sum(p * x, axis=-2, keepdims=True)
            centres, x = centres + mean, x - mean
    root = math.sqrt(p) if isinstance(p, float) else xp.sqrt(p)
    return _Shapes(x, centres, root, one * total, one * size, ops)


def _weights(weights: Any, x: Array, ops: Ops) -> Array:
    """Weights of the points of all shapes as a column, of a library and a precision with `x`."""
    w = plain_array(weights, "weights")
    w = w if is_array(w) else np.asarray(w)
    w = w[..., None, :] if w.ndim else w
    align(x[..., :1, :, :], x[..., :1, :, :], weights=w, reflection=True)  # for its checks
    return ops.cast(at_least_single(w, ops), format_name(x))[..., None]


def _swept(
    shapes: _Shapes,
    scale: bool,
    reflection: bool,
    rtol: float | None,
    most: int,
    callback: Callable[[int, Array], None] | None,
) -> _Found:
    """Sweeps until the shapes are at rest; weights are in the points: ``y root``."""
    ops, xp = shapes.ops, shapes.ops.xp
    y = shapes.y * shapes.root
    eps = format_of(format_name(y)).epsilon
    pace = _Pace(ops, near=rtol or eps**DIGITS, rest=REST * eps, looks=rtol != 0)
    mean = y[..., 0, :, :]
    objectives = []
    sweep = ops.compiled(_sweep, scale=scale, reflection=reflection)
    for i in range(1, most + 1):
        found, aligned, mean, apart = sweep(xp.concat([y, mean[..., None, :, :]], axis=-3))
        objectives.append(xp.sum(apart, axis=-1))
        pace.judge(aligned)
        if callback:
            callback(i, xp.mean(shapes.turned(found), axis=-3))
        if pace.moving is None and rtol != 0:
            break
    return _Found(found, xp.sqrt(apart), objectives, pace.converged, pace.moving)


def _sweep(x: Array, *, scale: bool, reflection: bool) -> tuple[Alignment, Array, Array, Array]:
    """Shapes aligned to the last one of a stack, which is their mean; the mean that they have then.

    Also the squared distance of each from it.
    """
    ops = ops_of(x).functional(x)
    xp, y = ops.xp, x[..., :-1, :, :]
    found = align(y, x[..., -1:, :, :], scale=scale, translation=False, reflection=reflection)
    if scale:
        found = dataclasses.replace(found, scale=_kept(found.scale, y, ops))
    aligned = found.scale[..., None, None] * ops.matmul(y, found.rotation)
    mean = xp.mean(aligned, axis=-3)
    apart = xp.sum(xp.abs(aligned - mean[..., None, :, :]) ** 2, axis=(-2, -1))
    return found, aligned, mean, apart


def _squares(x: Array, ops: Ops) -> Array:
    """Sum of the squared entries of k matrices, shape (...)."""
    return ops.xp.sum(ops.xp.abs(x) ** 2, axis=(-3, -2, -1))


def _kept(s: Array, y: Array, ops: Ops) -> Array:
    """Scales, all times one factor that keeps the sum of the squared sizes."""
    xp = ops.xp
    sizes = xp.sum(xp.abs(y) ** 2, axis=(-2, -1))
    kept = xp.sum(sizes, axis=-1, keepdims=True)
    now = xp.sum(s**2 * sizes, axis=-1, keepdims=True)
    one = xp.ones_like(now)
    return s * xp.where(now > 0, xp.sqrt(kept / xp.where(now > 0, now, one)), one)


class _Pace:
    """How far shapes move from sweep to sweep, and whether they are near where they tend.

    Movements shrink by a factor q a sweep: ``q / (1 - q)`` of the last one is still to come.
    """

    def __init__(self, ops: Ops, *, near: float, rest: float, looks: bool) -> None:
        self.ops, self.near, self.rest, self.looks = ops, near, rest, looks
        self.known: tuple[Array, ...] = ()
        self.converged: Array = None
        self.moving: float | None = None

    def judge(self, x: Array) -> None:
        """Shapes after a sweep. No derivatives; of batched ones, all are looked at."""
        ops = self.ops
        both = constant(ops, self._judged, x, *self.known)
        self.known = x, both[..., 0]
        self.converged = both[..., 1] > 0

    def _judged(self, x: Array, *known: Array) -> Array:
        """Movement relative to the size, infinite at first, and 1.0 where that is near enough."""
        xp = self.ops.xp
        size = xp.sqrt(_squares(x, self.ops))
        one = xp.ones_like(size)
        moved = movement = math.inf * one
        if known:
            before, moved = known
            step = xp.sqrt(_squares(x - before, self.ops))
            movement = xp.where(step > 0, step / xp.where(size > 0, size, one), step)
        shrinks = movement < moved
        q = xp.where(shrinks, movement / xp.where(shrinks, moved, one), 0 * one)
        ahead = xp.where(shrinks, movement * q / (1 - q), math.inf * one)
        near = (
            xp.where(xp.isfinite(moved), xp.maximum(movement, ahead), math.inf * one) <= self.near
        )
        converged = (movement <= self.rest) | near
        if self.looks:
            left = xp.where(converged, 0 * one, movement)
            self.moving = None if bool(xp.all(converged)) else self.ops.item(left)
        return xp.stack([movement, xp.astype(converged, one.dtype)], axis=-1)


def _result(found: _Found, shapes: _Shapes, like: Array) -> GeneralizedProcrustes:
    """Everything turned so that the first rotation is the identity, in the units of the caller."""
    ops, xp, last = shapes.ops, shapes.ops.xp, found.last
    size, units = shapes.size, shapes.size**2 * shapes.total
    real = ops._dtype(format_name(like))
    rotation = ops.matmul(last.rotation, ops.adjoint(last.rotation[..., :1, :, :]))
    turned = dataclasses.replace(last, rotation=rotation)
    # Not by the weighted points, of which those of weight zero are lost.
    mean = xp.mean(shapes.turned(turned), axis=-3)
    t = -last.scale[..., None, None] * ops.matmul(shapes.centres, rotation)
    return GeneralizedProcrustes(
        xp.astype(mean * size[..., None, None], like.dtype),
        Alignment(
            xp.astype(rotation, like.dtype),
            xp.astype(last.scale, real),
            xp.astype(t[..., 0, :] * size[..., None, None], like.dtype),
            xp.astype(last.singular_values * units[..., None, None], real),
            xp.astype(found.rmsd * size[..., None], real),
            last.unique,
        ),
        xp.astype(xp.stack(found.objectives, axis=-1) * units[..., None], real),
        found.converged,
        len(found.objectives),
    )
