"""Generalised Procrustes analysis: several clouds of points aligned to their mean."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from polarlib.arrays.checks import count, flag, number
from polarlib.arrays.entered import enter
from polarlib.arrays.entry import as_matrix, is_array
from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import constant
from polarlib.arrays.library import format_name, is_complex
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.progress import Callback, reporting
from polarlib.arrays.pytrees import Pytree
from polarlib.arrays.settings import looks, under_default_settings, warn
from polarlib.files.tables import html_table
from polarlib.result import ConvergenceWarning
from polarlib.uses.align import Alignment, align
from polarlib.uses.aligning import weights_of

Array = Any
# The type of array of the shapes.
A = TypeVar("A")
# Movement, in epsilons of the size, up to which shapes count as converged. The largest movement by
# rounding alone, in 200 sweeps of 2 to 50 shapes of 2 to 500 points, was 2.
REST = 8.0
# Exponent of the default tolerance, eps**(2/3): a third of the digits is left for rounding.
DIGITS = 2.0 / 3.0
# A sweep takes about twenty calls of the library: this many take a minute for small shapes.
MOST_SWEEPS = 100_000


@dataclasses.dataclass(frozen=True, eq=False)
class GeneralizedProcrustes(Pytree, Generic[A]):
    """Result of :func:`generalized_procrustes`. For JAX a pytree of all attributes.

    Attributes
    ----------
    mean : array, shape (..., n, d)
        The mean of the aligned shapes.
    alignments : Alignment
        Alignments of every shape to the mean, as one stack of shape (..., k).
        ``alignments(shapes)`` are the aligned shapes, ``alignments.rmsd`` their distances from the
        mean.
    objective : array, shape (..., iterations)
        ``sum w_j |x_ij - mean_j|^2`` over the aligned shapes i and points j, after each sweep.
        Except for rounding it does not increase.
    converged : array of bool, shape (...)
        Whether the estimated distance from the limit is at most `rtol`.
    iterations : int
        Number of sweeps over the shapes.
    """

    mean: A
    alignments: Alignment[A]
    objective: A
    converged: A
    iterations: int

    def _repr_html_(self) -> str:
        a = self.alignments
        rows = {
            "mean": self.mean,
            "rotations": getattr(a, "rotation", None),
            "scales": getattr(a, "scale", None),
            "translations": getattr(a, "translation", None),
            "rmsd of each shape": getattr(a, "rmsd", None),
            "objective after each sweep": self.objective,
            "converged": self.converged,
            "iterations": self.iterations,
        }
        return html_table("GeneralizedProcrustes", rows)


@looks
@under_default_settings
def generalized_procrustes(
    shapes: A,
    *,
    weights: Any = None,
    scale: bool = False,
    translation: bool = True,
    reflection: bool = False,
    rtol: float | None = None,
    max_iterations: int = 1000,
    callback: Callback | None = None,
) -> GeneralizedProcrustes[A]:
    """Align several shapes to their common mean, by least squares.

    The function minimises ``sum w_j |s_i a_ij R_i + t_i - m_j|^2`` over the mean m and, for every
    shape i, a rotation R_i and, optionally, a translation t_i and a scale s_i >= 0.

    Parameters
    ----------
    shapes : array_like, shape (..., k, n, d)
        k shapes of n corresponding points in rows. Not modified. Integers are converted to float64.
    weights : array_like, shape (..., n), optional
        The w_j >= 0 of the points, the same for every shape, not all zero; equal by default.
    scale : bool, optional
        Whether the s_i are computed; otherwise they are 1. The sum of the squared sizes
        ``sum w_j |s_i (a_ij - mean a_i)|^2`` is kept, since otherwise all s_i = 0 would be optimal.
        Without `translation` the mean a_i is replaced by 0.
    translation : bool, optional
        Whether the t_i are computed; otherwise they are 0. With translations the mean is centred at
        the origin.
    reflection : bool, optional
        Whether the R_i may be any orthogonal matrices (unitary matrices for complex shapes).
    rtol : float, optional
        Largest distance of the shapes from the limit, relative to their size, estimated from the
        last two sweeps; eps**(2/3) by default. With 0 exactly `max_iterations` sweeps are made, no
        entry is read and no warning issued; `converged` then refers to the default.
    max_iterations : int, optional
        Largest number of sweeps.
    callback : callable, optional
        Called as ``callback(i, mean)`` after sweep i = 1, 2, ... with the mean shape, centred and
        scaled, which it must not modify.

    Returns
    -------
    GeneralizedProcrustes
        Arrays of the library, device and dtype of `shapes`. A common rotation of all shapes is
        arbitrary; R of the first shape is the identity.

    Raises
    ------
    TypeError
        If `shapes` is not an array of numbers, or is complex without ``reflection=True``. Under
        JAX's transformations, unless ``rtol=0`` and there is no `callback`.
    ValueError
        For fewer than three axes, no shapes, no points, NaN or infinity; for weights as in
        :func:`align`.

    Warns
    -----
    ConvergenceWarning
        If some shapes have not converged after `max_iterations` sweeps.

    Notes
    -----
    The first shape is the first mean. A sweep aligns every shape to the mean, by :func:`align` of a
    stack of k, restores the sum of the squared sizes, and recomputes the mean. Rotations and scales
    are optimal for the previous mean, and the new mean is optimal for them. Therefore the objective
    does not increase.

    Convergence is linear. Congruent shapes take two sweeps, shapes that differ by half of their
    size take tens. Unrelated random shapes take hundreds, and a warning is issued. At the limit no
    single shape can be aligned better. For similar shapes the limit is the global optimum. For
    others it is one of several local optima, which depends on the first shape.

    Derivatives by torch are those of the sweeps, whose intermediate results are all kept. With JAX
    pass ``rtol=0`` and few sweeps, since each sweep is compiled. Half precision is computed in
    float32.

    References
    ----------
    J. C. Gower, Psychometrika 40 (1975) 33-51. J. M. F. ten Berge, Psychometrika 42 (1977) 267-276.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    >>> quarter_turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> result = generalized_procrustes([a, a @ quarter_turn + 5.0, a - 1.0])
    >>> bool(np.allclose(result.mean, a - a.mean(axis=0))), result.iterations
    (True, 2)
    >>> bool(result.converged), bool(result.objective[-1] < 1e-25)
    (True, True)
    """
    a, ops = as_matrix(shapes, "shapes")
    if a.ndim < 3 or 0 in a.shape[-3:]:
        raise ValueError(
            f"shapes must have the shape (..., k, n, d) with k, n, d >= 1, got {tuple(a.shape)}"
        )
    # All shapes are aligned together: JAX's explicit axes are refused along the shapes, too.
    *lead, k, n, d = range(a.ndim)
    as_matrix(ops.xp.permute_dims(a, (*lead, n, d, k)), "shapes")
    scale, translation = flag("scale", scale), flag("translation", translation)
    reflection = flag("reflection", reflection)
    given = None if rtol is None else number("rtol", rtol, 0, 1)
    most = count("max_iterations", max_iterations, 1, MOST_SWEEPS)
    report = None if callback is None else reporting(callback, "sweeps", most)
    if is_complex(a) and not reflection:
        raise TypeError(
            "generalized_procrustes needs real shapes: the best special unitary matrix has no "
            "closed form; pass reflection=True for the best unitary ones"
        )
    hidden = ops.is_abstract(a) or (is_array(weights) and ops_of(weights).is_abstract(weights))
    if hidden and (given != 0 or report):
        raise TypeError(
            f"generalized_procrustes reads entries of its shapes, which {ops.hiding}, or pass "
            "rtol=0 for max_iterations sweeps, without callback"
        )
    entered = _entered(a, weights, ops.functional(a), translation)
    swept = _sweep_until_converged(entered, scale, reflection, given, most, report)
    if swept.moving is not None:
        warn(
            f"generalized_procrustes: shapes still move after {len(swept.objectives)} sweeps, by "
            f"{swept.moving:.1e} of their size in the last one; raise max_iterations or rtol",
            ConvergenceWarning,
        )
    return _result(swept, entered, a)


class _Shapes(NamedTuple):
    """Centred and scaled shapes.

    Attributes
    ----------
    y : array, shape (..., k, n, d)
        Points relative to their centres, over `size`, in at least single precision.
    centres : array, shape (..., k, 1, d)
    root : array, shape (..., 1, n, 1), or float
        Square roots of the weights, which are normalised to sum 1.
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

    def turned(self, a: Alignment[Array]) -> Array:
        """Return all points, rotated and scaled."""
        return a.scale[..., None, None] * self.ops.matmul(self.y, a.rotation)


class _Swept(NamedTuple):
    """Results of the sweeps: the last alignments, residuals, and the history of the objective.

    Attributes
    ----------
    last : Alignment
    rmsd : array, shape (..., k)
    objectives : list of arrays, shape (...)
        After every sweep.
    converged : array, shape (...)
    moving : float or None
        Largest movement of shapes that have not converged; None if all have, or if unknown.
    """

    last: Alignment[Array]
    rmsd: Array
    objectives: list[Array]
    converged: Array
    moving: float | None


def _entered(a: Array, weights: Any, ops: Ops, translation: bool) -> _Shapes:
    """Return the shapes divided by a common scale, relative to their weighted means."""
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
        # Twice: for shapes far from the origin the first mean is not accurate enough.
        for _ in range(2):
            mean = xp.sum(p * x, axis=-2, keepdims=True)
            centres, x = centres + mean, x - mean
    root = math.sqrt(p) if isinstance(p, float) else xp.sqrt(p)
    return _Shapes(x, centres, root, one * total, one * size, ops)


def _weights(weights: Any, x: Array, ops: Ops) -> Array:
    """Return the weights as a column, in the library and precision of `x`."""
    w = weights_of(weights, x)[..., None, :, :]
    # Only the checks of the values are needed of this call.
    align(x[..., :1, :, :], x[..., :1, :, :], weights=w[..., 0], reflection=True)
    return ops.cast(w, format_name(x))


def _sweep_until_converged(
    shapes: _Shapes,
    scale: bool,
    reflection: bool,
    rtol: float | None,
    most: int,
    report: Callable[[int, Array], Any] | None,
) -> _Swept:
    """Run sweeps, on points times the roots of their weights, until the shapes have converged."""
    ops, xp = shapes.ops, shapes.ops.xp
    y = shapes.y * shapes.root
    eps = format_of(format_name(y)).epsilon
    pace = _Pace(ops, near=rtol or eps**DIGITS, rest=REST * eps, reads=rtol != 0)
    mean = y[..., 0, :, :]
    objectives = []
    sweep = ops.compiled(_sweep, scale=scale, reflection=reflection)
    for i in range(1, most + 1):
        last, aligned, mean, apart = sweep(xp.concat([y, mean[..., None, :, :]], axis=-3))
        objectives.append(xp.sum(apart, axis=-1))
        pace.update(aligned)
        if report:
            report(i, xp.mean(shapes.turned(last), axis=-3))
        if pace.moving is None and rtol != 0:
            break
    return _Swept(last, xp.sqrt(apart), objectives, pace.converged, pace.moving)


def _sweep(
    x: Array, *, scale: bool, reflection: bool
) -> tuple[Alignment[Array], Array, Array, Array]:
    """Align shapes to the last one of a stack, their mean.

    Return the alignments, the aligned shapes, their new mean, and the squared distance of each
    shape from the new mean.
    """
    ops = ops_of(x).functional(x)
    xp, y = ops.xp, x[..., :-1, :, :]
    a = align(y, x[..., -1:, :, :], scale=scale, translation=False, reflection=reflection)
    if scale:
        a = dataclasses.replace(a, scale=_kept(a.scale, y, ops))
    aligned = a.scale[..., None, None] * ops.matmul(y, a.rotation)
    mean = xp.mean(aligned, axis=-3)
    apart = xp.sum(xp.abs(aligned - mean[..., None, :, :]) ** 2, axis=(-2, -1))
    return a, aligned, mean, apart


def _squares(x: Array, ops: Ops) -> Array:
    """Return the sum of the squared entries of k matrices, shape (...)."""
    return ops.xp.sum(ops.xp.abs(x) ** 2, axis=(-3, -2, -1))


def _kept(s: Array, y: Array, ops: Ops) -> Array:
    """Return the scales times a common factor that keeps the sum of the squared sizes."""
    xp = ops.xp
    sizes = xp.sum(xp.abs(y) ** 2, axis=(-2, -1))
    kept = xp.sum(sizes, axis=-1, keepdims=True)
    now = xp.sum(s**2 * sizes, axis=-1, keepdims=True)
    one = xp.ones_like(now)
    return s * xp.where(now > 0, xp.sqrt(kept / xp.where(now > 0, now, one)), one)


class _Pace:
    """Movement of the shapes per sweep, and the estimated distance from the limit.

    If movements shrink by a factor q per sweep, the distance is ``q / (1 - q)`` times the last
    movement.
    """

    def __init__(self, ops: Ops, *, near: float, rest: float, reads: bool) -> None:
        self.ops, self.near, self.rest, self.reads = ops, near, rest, reads
        self.known: tuple[Array, ...] = ()
        self.converged: Array = None
        self.moving: float | None = None

    def update(self, x: Array) -> None:
        """Update the estimates by the shapes after a sweep, without recording derivatives."""
        ops = self.ops
        both = constant(ops, self._movement, x, *self.known)
        self.known = x, both[..., 0]
        self.converged = both[..., 1] > 0

    def _movement(self, x: Array, *known: Array) -> Array:
        """Return the movement relative to the size, at first infinite, and 1.0 where converged."""
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
        if self.reads:
            left = xp.where(converged, 0 * one, movement)
            self.moving = None if bool(xp.all(converged)) else self.ops.item(left)
        return xp.stack([movement, xp.astype(converged, one.dtype)], axis=-1)


def _result(swept: _Swept, shapes: _Shapes, like: Array) -> GeneralizedProcrustes[Array]:
    """Return the result in the caller's units, rotated so that the first R is the identity."""
    ops, xp, last = shapes.ops, shapes.ops.xp, swept.last
    size, units = shapes.size, shapes.size**2 * shapes.total
    real = ops._real_dtype(like)
    rotation = ops.matmul(last.rotation, ops.adjoint(last.rotation[..., :1, :, :]))
    turned = dataclasses.replace(last, rotation=rotation)
    # From the points without weights: weighted points of weight zero are 0.
    mean = xp.mean(shapes.turned(turned), axis=-3)
    t = -last.scale[..., None, None] * ops.matmul(shapes.centres, rotation)
    return GeneralizedProcrustes(
        xp.astype(mean * size[..., None, None], like.dtype),
        Alignment(
            xp.astype(rotation, like.dtype),
            xp.astype(last.scale, real),
            xp.astype(t[..., 0, :] * size[..., None, None], like.dtype),
            xp.astype(last.singular_values * units[..., None, None], real),
            xp.astype(swept.rmsd * size[..., None], real),
            last.unique,
        ),
        xp.astype(xp.stack(swept.objectives, axis=-1) * units[..., None], real),
        swept.converged,
        len(swept.objectives),
    )
