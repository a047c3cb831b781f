"""Rules of differentiation for the alignment of clouds of points.

For ``C = U S V^H`` the best rotation R, ``Re tr(R^H C)`` and the singular values are one operation.
Since no rotation has a larger trace, the first derivative of the trace is ``<R, dC>``, without the
derivative of R. It is accurate even if R is nearly not unique. The same holds for the residual of
an alignment, with the optimal rotation and scale. If several rotations are optimal, these values
have kinks, unless the difference moves no point (`guarded`). Second derivatives contain the
derivative of R, since the rules are functions of R.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import constant, trace
from polarlib.arrays.library import format_name, is_complex
from polarlib.arrays.ops import Ops, ops_of
from polarlib.engine.derivatives import unitary_derivative
from polarlib.engine.equation import Equation
from polarlib.engine.rules import by_rules

Array = Any
# A residual of at most this many epsilons of the points is treated as zero, without a derivative.
RESIDUAL_NOISE = 8.0


def differentiable_turn(
    find: Callable[[Array], tuple[Array, ...]], c: Array, equation: Equation
) -> tuple[Array, ...]:
    """Return ``find(c)``: R, ``Re tr(R^H C)``, singular values, and a value without derivative.

    The derivative of a singular value is ``Re u_i^H dC v_i``. Where several values are equal, this
    is right for their sum, for every choice of the singular vectors.
    """

    def along(c: Array, results: Any, e: Array) -> tuple[Array, ...]:
        ops = ops_of(c).functional()
        u, _, vh = ops.svd(c)
        moved = ops._diagonal(ops.matmul(ops.matmul(ops.adjoint(u), e), ops.adjoint(vh)))
        return (
            unitary_derivative(c, results[0], e, equation),
            trace(ops.matmul(ops.adjoint(results[0]), e), ops),
            ops.xp.real(moved) if is_complex(moved) else moved,
        )

    def against(
        c: Array, results: Any, y: Array | None, f: Array | None, s: Array | None, *_: Any
    ) -> Array:
        ops = ops_of(c).functional()
        parts = []
        if y is not None:
            parts.append(unitary_derivative(c, results[0], y, equation))
        if f is not None:
            parts.append(results[0] * f)
        if s is not None:
            u, _, vh = ops.svd(c)
            parts.append(ops.matmul(u * s[..., None, :], vh))
        return sum(parts[1:], parts[0]) if parts else c * 0.0

    return by_rules(find, c, along, against, exact=find)


def differentiable_residual(
    x: Array, y: Array, q: Array, size2: Array, p: Array | None, ops: Ops
) -> Array:
    """Return the root of the weighted mean of ``|Q^T x_i - y_i|^2``, shape (..., 1, 1), Q optimal.

    Parameters
    ----------
    x, y : array, shape (..., d, n)
        Points relative to their means, as columns.
    q : array, shape (..., d, d)
        The optimal multiple of a rotation, for which the derivative of the mean in Q is zero.
    size2 : array, shape (..., 1, 1)
        Squares of the means, which with the points determine the size of rounding errors.
    p : array, shape (..., 1, n), or None
        Weights, of sum 1; None for equal ones.
    ops : Ops
        Their arithmetic.

    Returns
    -------
    array
        The residual. Its derivative is zero where it is zero to rounding.
    """

    def f(x: Array, y: Array, q: Array, _: Array, *p: Array) -> tuple[Array]:
        ops = ops_of(x)
        e = _residual(x, y, q, ops)
        return (ops.xp.sqrt(_mean(e, e, p, ops)),)

    def slope(arrays: Any, results: Any, e: Array, ops: Ops) -> Array:
        """Return ``1 / residual``; zero where the residual is a rounding error."""
        x, y, _, size2, *p = arrays
        noise = RESIDUAL_NOISE * format_of(format_name(x)).epsilon
        size2 = size2 + _mean(y, y, p, ops) + _mean(e + y, e + y, p, ops)
        lost = results[0] * results[0] <= noise * noise * size2
        safe = ops.xp.where(lost, ops.xp.ones_like(size2), results[0])
        return ops.xp.where(lost, ops.xp.zeros_like(size2), 1.0 / safe)

    def jvp(arrays: Any, results: Any, tangents: Any) -> tuple[Array]:
        ops = ops_of(arrays[0]).functional()
        x, y, q, _, *p = arrays
        dx, dy, _, _, *dp = tangents
        e = _residual(x, y, q, ops)
        total = _mean(e, _residual(dx, dy, q, ops), p, ops)
        if p:
            total = total + 0.5 * inner(dp[0], squares(e, ops), ops)
        return (total * slope(arrays, results, e, ops),)

    def vjp(arrays: Any, results: Any, gradients: Any) -> tuple[Array | None, ...]:
        ops = ops_of(arrays[0]).functional()
        x, y, q, _, *p = arrays
        e = _residual(x, y, q, ops)
        g = gradients[0] * slope(arrays, results, e, ops)
        against = e * (g * p[0] if p else g / x.shape[-1])
        weights = [0.5 * g * squares(e, ops) for _ in p]
        of_x = ops.matmul(ops.xp.matrix_transpose(ops.adjoint(q)), against)
        return (of_x, -against, None, None, *weights)

    # Under vmap arrays broadcast only if they have the same rank.
    stack = tuple(q.shape[:-2])
    weights = () if p is None else (_stacked(p, stack),)
    arrays = (_stacked(x, stack), _stacked(y, stack), q, size2, *weights)
    return ops.differentiable(f, jvp, vjp, arrays, keep=True)[0]


def guarded(value: Array, kink: Array, ops: Ops) -> Array:
    """Return a value, shape (..., 1, 1), whose derivative is refused where it has a kink.

    `kink`, of the same shape, is 1 at a kink and 0 elsewhere. At a kink the derivative raises
    ValueError, or is NaN under a trace.
    """

    def factor(kink: Array) -> Array:
        ops = ops_of(kink)
        poor = kink > 0
        if not ops.is_abstract(kink) and bool(ops.xp.any(poor)):
            at = tuple(map(int, np.argwhere(ops.to_host(kink)[..., 0, 0] > 0)[0]))
            where = f" in cloud {at} of the stack" if at else ""
            raise ValueError(
                "scale and rmsd have no derivative where the best rotation is not unique, unless "
                f"the choice moves no point{where}; pass regularization=1e-3"
            )
        return ops.xp.where(poor, ops.xp.full_like(kink, math.nan), ops.xp.ones_like(kink))

    def slope(arrays: Any, d: Array) -> Array:
        return d * constant(ops_of(arrays[1]).functional(), factor, arrays[1])

    return ops.differentiable(
        lambda value, _: (value * 1.0,),
        lambda arrays, _, tangents: (slope(arrays, tangents[0]),),
        lambda arrays, _, gradients: (slope(arrays, gradients[0]), None),
        (value, kink),
        keep=False,
    )[0]


def _stacked(x: Array, stack: tuple[int, ...]) -> Array:
    shape = (*stack, *x.shape[-2:])
    return x if tuple(x.shape) == shape else ops_of(x).xp.broadcast_to(x, shape)


def _residual(x: Array, y: Array, q: Array, ops: Ops) -> Array:
    return minus(ops.matmul(ops.xp.matrix_transpose(q), x), y, ops)


def minus(x: Array, y: Array, ops: Ops) -> Array:
    """Return ``x - y``, in the storage of `x` if it is writable and has the result's shape."""
    if not ops.reusable(x) or x.shape != np.broadcast_shapes(x.shape, y.shape):
        return x - y
    x -= y
    return x


def columns(x: Array, first: Array | None, ops: Ops) -> Array:
    """Return the transpose, minus a column if given, as a contiguous array where possible.

    Sums over points and differences from one point are then operations on long rows, which are
    several times as fast as those on rows of three entries.
    """
    turned = ops.xp.matrix_transpose(x)
    out = ops.buffer(tuple(turned.shape), x)
    if out is None or (first is not None and first.shape[:-2] != x.shape[:-2]):
        return turned if first is None else turned - first
    if first is None:
        out[...] = turned
        return out
    return ops.xp.subtract(turned, first, out=out)


def _products(x: Array, y: Array, ops: Ops) -> Array:
    """Return ``Re conj(x) y``, entry by entry."""
    if not is_complex(x):
        return x * y
    xp = ops.xp
    return xp.real(x) * xp.real(y) + xp.imag(x) * xp.imag(y)


def inner(x: Array, y: Array, ops: Ops) -> Array:
    """Return the real inner product of matrices, shape (..., 1, 1)."""
    return ops.xp.sum(_products(x, y, ops), axis=(-2, -1), keepdims=True)


def squares(x: Array, ops: Ops) -> Array:
    """Return the squared norms of columns, shape (..., 1, n)."""
    return ops.xp.sum(_products(x, x, ops), axis=-2, keepdims=True)


def _mean(x: Array, y: Array, p: Any, ops: Ops) -> Array:
    """Return the mean over points, weighted or not, of the inner products of columns."""
    if not p:
        return inner(x, y, ops) / x.shape[-1]
    return ops.xp.sum(_products(x, y, ops) * p[0], axis=(-2, -1), keepdims=True)
