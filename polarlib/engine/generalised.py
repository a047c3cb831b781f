"""Generalised matrix functions ``F = U diag(f(sigma)) V^H``, with one rule of differentiation.

At ``A = U Sigma V^H``, m >= n, in the direction E, with ``C = U^H E V``, S its Hermitian part and K
its skew-Hermitian part,

    dF = U [S o D + K o P] V^H + (E V - U C) diag(f_j / sigma_j) V^H + w F <F, E>,
    D_ij = (f_i - f_j) / (sigma_i - sigma_j),    P_ij = (f_i + f_j) / (sigma_i + sigma_j),

o the product by entries. The last term is for values f that depend on all singular values by a mean
or norm M of them. Every map in this module is the gradient of a function of A, so that the
derivative of M is a multiple of <F, E>. The derivative is therefore self-adjoint, and is the same
for directions and gradients. D has a limit where singular values are equal. P and
``f_j / sigma_j`` have a limit where they are zero, if f, continued as an odd function, has a slope
there. Each map has its limits, so that the derivative exists where those of U and V do not.

V. Noferini, SIAM J. Matrix Anal. Appl. 38 (2017) 434-457, Theorem 3.10; F. Arrigo, M. Benzi and
C. Fenu, SIAM J. Matrix Anal. Appl. 37 (2016) 836-860. The matrix D is that of Daleckii and Krein.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polarlib.arrays.functions import above_noise, constant
from polarlib.arrays.library import astype_like, is_complex
from polarlib.arrays.ops import Ops, ops_of

Array = Any
Shape = tuple[int, ...]


class Differences(NamedTuple):
    """Factors of the components of a direction.

    Attributes
    ----------
    values : array, shape (..., n)
        f.
    minus, plus : array, shape (..., n, n)
        D and P above.
    ratio : array, shape (..., n)
        ``f_j / sigma_j``.
    weight : array, shape (..., 1, 1), or None
        w above; None for 0.
    """

    values: Array
    minus: Array
    plus: Array
    ratio: Array
    weight: Array | None = None


class Map(NamedTuple):
    """A function of singular values, and the factors of its derivative.

    Both functions are called with singular values, shape (..., n), the shape of the matrix, the
    arithmetic, and constants, which are arrays.
    """

    values: Callable[..., Array]
    differences: Callable[..., Differences]


def generalised(x: Array, f: Map, *constants: Array) -> tuple[Array, Array]:
    """Return ``U diag(f(sigma)) V^H``, and sigma without a derivative.

    The matrices are in at least single precision. There are no derivatives with respect to the
    constants. The derivative costs another SVD and five products, which libraries differentiate.
    Second derivatives are recorded through that SVD, and are NaN where singular values are equal.
    """

    def apply(x: Array, *constants: Array) -> tuple[Array, Array]:
        ops = ops_of(x)
        wide = x.shape[-2] < x.shape[-1]
        u, s, vh = ops.svd(_transposed(x, ops) if wide else x)
        values = f.values(s, x.shape, ops, *constants)
        y = ops.matmul(_columns(u, values, ops), vh)
        return _transposed(y, ops) if wide else y, s

    def along(primals: Any, results: Any, tangents: Any) -> tuple[Array, Array]:
        d = derivative(primals[0], tangents[0], f, *primals[1:])
        return d, ops_of(results[1]).xp.zeros_like(results[1])

    def against(primals: Any, _: Any, gradients: Any) -> tuple[Any, ...]:
        x, *others = primals
        e = gradients[0]
        return (None if e is None else derivative(x, e, f, *others), *(None for _ in others))

    y, s = ops_of(x).differentiable(apply, along, against, (x, *constants), keep=True)
    return y, s


def derivative(x: Array, e: Array, f: Map, *constants: Array) -> Array:
    """Apply the derivative of :func:`generalised` at X to a direction, or to a gradient."""
    ops = ops_of(x).functional()
    wide = x.shape[-2] < x.shape[-1]
    if wide:
        x, e = _transposed(x, ops), _transposed(e, ops)
    u, s, vh = ops.svd(x)
    d = f.differences(s, x.shape, ops, *constants)
    ev = ops.matmul(e, ops.adjoint(vh))
    c = ops.matmul(ops.adjoint(u), ev)
    half = c * 0.5
    core = (half + ops.adjoint(half)) * astype_like(d.minus, c, ops)
    core = core + (half - ops.adjoint(half)) * astype_like(d.plus, c, ops)
    if d.weight is not None:
        along = _columns(ops.eye(c.shape[-1], c), d.values, ops)
        inner = ops.xp.sum(_real(along) * _real(c), axis=(-2, -1), keepdims=True)
        core = core + along * astype_like(d.weight * inner, c, ops)
    y = ops.matmul(u, core)
    if x.shape[-2] > x.shape[-1]:
        y = y + _columns(ops.gemm(u, c, ev, alpha=-1.0, beta=1.0), d.ratio, ops)
    y = ops.matmul(y, vh)
    return _transposed(y, ops) if wide else y


def _transposed(x: Array, ops: Ops) -> Array:
    """Transpose wide matrices, without conjugation, which torch's vmap does not fully support."""
    return ops.xp.matrix_transpose(x)


def _columns(u: Array, f: Array, ops: Ops) -> Array:
    """Return ``U diag(f)``."""
    return u * astype_like(f, u, ops)[..., None, :]


def _real(x: Array) -> Array:
    return ops_of(x).xp.real(x) if is_complex(x) else x


def quotient(a: Array, b: Array, limit: Array | float, ops: Ops) -> Array:
    """Return ``a / b``, and the limit where b is 0."""
    xp = ops.xp
    zero = b == 0
    # a / 0 is avoided: its derivative would be NaN even where the limit is selected.
    safe = xp.where(zero, xp.ones_like(b), b)
    return xp.where(zero, xp.zeros_like(b) + limit, a / safe)


def _pairs(v: Array) -> tuple[Array, Array]:
    """Return values as rows and as columns of a matrix of pairs."""
    return v[..., :, None], v[..., None, :]


def _at_zero(s: Array, f: Array, slope: Array | float, ops: Ops) -> tuple[Array, Array]:
    """Return P and ``f_j / sigma_j``, both equal to the slope of f at zeros."""
    (a, b), (fa, fb) = _pairs(s), _pairs(f)
    column = slope if isinstance(slope, float) else slope[..., None]
    return quotient(fa + fb, a + b, column, ops), quotient(f, s, slope, ops)


# -- the maps --------------------------------------------------------------------------------


def _kept(s: Array, shape: Shape, ops: Ops) -> Array:
    return ops.xp.astype(above_noise(s, shape, ops), s.dtype)


def _steps(s: Array, shape: Shape, ops: Ops) -> Differences:
    """Return the factors for f = 1 above rounding errors and f = 0 otherwise.

    f has a jump at zero. At a matrix of deficient rank the derivative is that among matrices of the
    same rank, whose zero singular values stay zero.
    """
    f = _kept(s, shape, ops)
    s = s * f
    (a, b), (fa, fb) = _pairs(s), _pairs(f)
    # The difference of two values above rounding errors is 0 for every distance.
    minus = quotient(fa - fb, ops.xp.where(fa == fb, ops.xp.ones_like(a - b), a - b), 0.0, ops)
    return Differences(f, minus, *_at_zero(s, f, 0.0, ops))


# The partial isometry of the singular values above rounding errors.
ISOMETRY = Map(_kept, _steps)


def _scaled_steps(s: Array, shape: Shape, ops: Ops) -> Differences:
    d = _steps(s, shape, ops)
    size = ops.xp.sum(s, axis=-1, keepdims=True)
    wide = size[..., None]
    # The derivative of the size is <U V^H, E>, and F is the size times the isometry U V^H.
    weight = quotient(ops.xp.ones_like(wide), wide * wide, 0.0, ops)
    return Differences(d.values * size, d.minus * wide, d.plus * wide, d.ratio * size, weight)


def _nuclear(s: Array, shape: Shape, ops: Ops) -> Array:
    return _kept(s, shape, ops) * ops.xp.sum(s, axis=-1, keepdims=True)


# The partial isometry times the sum of the singular values.
SHARP = Map(_nuclear, _scaled_steps)


def power_differences(
    s: Array, f: Array, e: float, mean: Array, weight: Array, shape: Shape, ops: Ops
) -> Differences:
    """Return the factors for ``f = (sigma / M)^e``, where dM is ``weight M / -e`` times ``<F, E>``.

    `mean` and `weight` have the shape (..., 1). For e < 1 the slope at zero is infinite. Values
    that are zero to rounding are then assumed to stay zero, as for the partial isometry.
    """
    xp = ops.xp
    if e < 1:
        kept = _kept(s, shape, ops)
        s, f = s * kept, f * kept
    slope = quotient(xp.ones_like(mean), mean, 0.0, ops) if e == 1 else 0.0
    (a, b), (fa, fb) = _pairs(s), _pairs(f)
    gap = a - b
    # For nearly equal values ``f_i - f_j`` cancels. ``f_j (exp(e t) - 1)``, t the difference of
    # logarithms, does not.
    near = (b > 0) & (xp.abs(gap) <= b * (0.5 / max(abs(e), 1.0)))
    t = xp.log1p(xp.where(near, gap, xp.zeros_like(gap)) / xp.where(near, b, xp.ones_like(gap)))
    rise = xp.where(near, fb * xp.expm1(t * e), fa - fb)
    plus, ratio = _at_zero(s, f, slope, ops)
    tie = ratio * e if e != 1 else ratio
    minus = quotient(rise, gap, tie[..., None, :], ops)
    return Differences(f, minus, plus, ratio, weight[..., None])


def _clipped(s: Array, _: Shape, ops: Ops, low: Array, high: Array, unit: Array) -> Array:
    return ops.xp.minimum(ops.xp.maximum(s * unit, low), high)


def clip(refusal: str = "") -> Map:
    """Return the map ``sigma -> clip(unit sigma, low, high)``.

    The constants are low, high and the unit, shape (..., 1). At the limits the slope is the unit,
    the one-sided derivative from inside. If a value that is zero to rounding is below `low`, the
    derivative raises ValueError with the text `refusal` and the index in a stack, or is NaN under a
    trace. Without a text `low` must be 0.
    """

    def differences(
        s: Array, shape: Shape, ops: Ops, low: Array, high: Array, unit: Array
    ) -> Differences:
        xp = ops.xp
        f, y = _clipped(s, shape, ops, low, high, unit), s * unit
        slope = xp.where((y >= low) & (y <= high), unit + xp.zeros_like(s), xp.zeros_like(s))
        (a, b), (fa, fb) = _pairs(s), _pairs(f)
        # Differences of values within the limits are exact, without cancellation.
        minus = quotient(fa - fb, a - b, slope[..., None, :], ops)
        plus, ratio = _at_zero(s, f, unit + xp.zeros_like(s[..., :1]), ops)
        if refusal:
            # A separate operation: under torch's vmap numbers can only be read inside of one.
            look = functools.partial(_lost, shape=shape, refusal=refusal)
            lost = constant(ops, look, s, low, unit)
            minus, ratio = minus + lost[..., None], ratio + lost
        return Differences(f, minus, plus, ratio)

    return Map(_clipped, differences)


def _lost(s: Array, low: Array, unit: Array, *, shape: Shape, refusal: str) -> Array:
    """Return 0; NaN, or ValueError if not traced, where a value below `low` is zero to rounding."""
    ops = ops_of(s).functional()
    xp = ops.xp
    poor = xp.any(~above_noise(s, shape, ops) & (s * unit < low), axis=-1, keepdims=True)
    if not ops.is_abstract(poor) and bool(xp.any(poor)):
        found = ops.to_host(xp.astype(poor, s.dtype))[..., 0]
        where = tuple(int(i) for i in np.argwhere(found)[0])
        raise ValueError(f"{refusal}{f' (matrix {where} of the stack)' if where else ''}")
    return xp.where(poor, xp.full_like(s, math.nan), xp.zeros_like(s))
