"""Norms of the entries: p-norms along columns or rows, and the q-norm of these.

The dual has the conjugate orders. The LMO (linear maximisation oracle) is that of the q-norm at the
dual norms of the vectors, times that of the p-norm at each vector. All induced norms with a closed
form are of this kind, except the spectral norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from polarlib.arrays.library import astype_like, is_complex
from polarlib.arrays.ops import Ops
from polarlib.norms.base import MatrixNorm, capped_simplex, order

Array = Any


@dataclass(frozen=True, repr=False)
class Mixed(MatrixNorm):
    """q-norm of the p-norms of columns (axis -2) or rows (-1), or the p-norm of all entries."""

    p: float
    q: float
    axis: int | None = None

    def __repr__(self) -> str:
        if self.axis is None:
            return "frobenius()" if self.p == 2 else f"lp({self.p:g})"
        is_max = self.q == math.inf
        # By Hoelder's inequality the norm from a to infinity takes the conjugate norm of rows.
        b = self.p if is_max else conjugate(self.p)
        orders = f"(1, {b:g})" if self.axis == -2 else f"({conjugate(b):g}, inf)"
        return f"induced{orders}" if is_max else f"induced{orders}.dual()"

    def dual(self) -> MatrixNorm:
        return Mixed(conjugate(self.p), conjugate(self.q), self.axis)

    def _value(self, x: Array, ops: Ops) -> Array:
        a = ops.xp.abs(x)
        if self.axis is None:
            return lp_norm(_flat(a, ops), self.p, -1, ops)[..., None]
        return lp_norm(lp_norm(a, self.p, self.axis, ops), self.q, self._across, ops)

    @property
    def _across(self) -> int:
        return -3 - (self.axis or 0)

    def _lmo(self, g: Array, ops: Ops, precision: str) -> Array:
        if self.axis is None:
            return ops.xp.reshape(lp_lmo(_flat(g, ops), self.p, -1, ops), g.shape)
        t = lp_lmo(g, self.p, self.axis, ops)
        if self.q == math.inf:
            return t
        sizes = lp_norm(ops.xp.abs(g), conjugate(self.p), self.axis, ops)
        return t * astype_like(lp_lmo(sizes, self.q, self._across, ops), t, ops)

    def _project(self, x: Array, radius: Array, ops: Ops) -> Array:
        # Closed forms are known for these orders only.
        if self.axis is None and self.p in (1, 2, math.inf):
            flat = _lp_project(_flat(x, ops), self.p, radius[..., 0], -1, ops)
            return ops.xp.reshape(flat, x.shape)
        if self.axis is not None and self.q == math.inf and self.p in (1, 2, math.inf):
            return _lp_project(x, self.p, radius, self.axis, ops)
        if self.axis is not None and (self.p, self.q) == (2, 1):
            sizes = lp_norm(ops.xp.abs(x), 2, self.axis, ops)
            shrunk = _lp_project(sizes, 1, radius, self._across, ops)
            factor = ops.xp.where(
                sizes == shrunk, ops.xp.ones_like(sizes), shrunk / ops.divisor(sizes)
            )
            return x * factor
        return super()._project(x, radius, ops)


def conjugate(p: float) -> float:
    """Return the q with ``1/p + 1/q = 1``."""
    if p == 1:
        return math.inf
    return 1.0 if p == math.inf else p / (p - 1)


def _flat(x: Array, ops: Ops) -> Array:
    return ops.xp.reshape(x, (*x.shape[:-2], x.shape[-2] * x.shape[-1]))


def _phase(x: Array, a: Array, ops: Ops) -> Array:
    """Return ``x / |x|``, 0 for 0."""
    if is_complex(x):
        return x / ops.xp.where(a == 0, ops.xp.ones_like(a), a)
    one = ops.xp.ones_like(x)  # array-api-compat's sign reads a device for NaN
    return ops.xp.where(x > 0, one, ops.xp.where(x < 0, -one, ops.xp.zeros_like(x)))


def lp_norm(a: Array, p: float, axis: int, ops: Ops) -> Array:
    """Return p-norms of nonnegative vectors along an axis, which keeps length 1.

    Each vector is divided by its largest entry first, so that no power of a small one underflows.
    """
    largest = ops.max(a, axis=axis, keepdims=True)  # not xp.max: XLA's on a CPU may drop NaN
    if p == math.inf:
        return largest
    if p == 1:
        return ops.sums(a, axis)
    return largest * ops.sums((a / ops.divisor(largest)) ** p, axis) ** (1 / p)


def lp_lmo(g: Array, p: float, axis: int, ops: Ops) -> Array:
    """Return the LMO of the p-norm of vectors along an axis; for p = 1 the first largest entry."""
    xp = ops.xp
    a = xp.abs(g)
    if p == math.inf:
        return _phase(g, a, ops)
    if p == 1:
        tied = a == ops.max(a, axis=axis, keepdims=True)
        first = xp.cumulative_sum(xp.astype(tied, a.dtype), axis=axis) == 1
        return xp.where(tied & first, _phase(g, a, ops), xp.zeros_like(g))
    largest = ops.divisor(ops.max(a, axis=axis, keepdims=True))
    if p == 2:
        # Divided by the largest entry first: the norm of a subnormal vector has few bits.
        y = g / largest
        return y / ops.divisor(lp_norm(a / largest, 2, axis, ops))
    q = conjugate(p)
    powers = ops.sums((a / largest) ** q, axis)
    return _phase(g, a, ops) * ((a / largest) ** (q - 1) / ops.divisor(powers ** (1 / p)))


def _lp_project(x: Array, p: float, radius: Array, axis: int, ops: Ops) -> Array:
    """Project vectors along an axis onto the ball of the 1-, 2- or infinity-norm."""
    xp = ops.xp
    a = xp.abs(x)
    if p == math.inf:
        return xp.where(a <= radius, x, _phase(x, a, ops) * radius)
    size = lp_norm(a, p, axis, ops)
    if p == 2:
        return xp.where(size <= radius, x, x / ops.divisor(size) * radius)
    cap = radius + xp.zeros_like(size)
    largest = ops.max(a, axis=axis, keepdims=True)
    return xp.where(
        size <= radius, x, _phase(x, a, ops) * capped_simplex(a, cap, largest, 1, ops, axis)
    )


# -- constructors ----------------------------------------------------------------------------


def lp(p: float) -> MatrixNorm:
    """Return the p-norm of the entries.

    Parameters
    ----------
    p : float
        From 1 to infinity; 2 is the Frobenius norm.

    Returns
    -------
    Norm
        Dual: the q-norm of the entries, ``1/p + 1/q = 1``. For p = infinity the LMO is ``sign(G)``
        (phases, if complex; 0 where G is 0): signSGD. For p = 1 it is one entry, the first of the
        largest in row-major order.

    Raises
    ------
    ValueError, TypeError
        If p is below 1 or not a number.

    Examples
    --------
    >>> import math, numpy as np
    >>> g = np.array([[3.0, -1.0], [0.0, -3.0]])
    >>> lp(math.inf).lmo(g).tolist(), lp(1).lmo(g).tolist()
    ([[1.0, -1.0], [0.0, -1.0]], [[1.0, 0.0], [0.0, 0.0]])
    """
    p = order("p", p)
    return Mixed(p, p)


def frobenius() -> MatrixNorm:
    """Return the Frobenius norm, which is its own dual.

    Returns
    -------
    Norm
        Its LMO is ``G / ||G||_F``, and sharp is G.

    Examples
    --------
    >>> import numpy as np
    >>> frobenius().lmo(np.array([[3.0, 4.0]])).tolist(), frobenius() == lp(2)
    ([[0.6, 0.8]], True)
    """
    return Mixed(2.0, 2.0)
