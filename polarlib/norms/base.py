"""What every norm can do: value, dual norm, linear maximiser, duality map, projection.

A norm of matrices implements four small functions on matrices that are finite, in at least single
precision and scaled so that the largest entry is about 1. Validation, scale, half precision, empty
matrices and what is not finite are settled here, once. Inside, values keep their dimensions, shape
(..., 1, 1), so that they multiply the matrices they belong to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from polarlib.arrays.checks import instance, number
from polarlib.arrays.entry import as_matrix, check_same_place, finite_peak
from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import constant
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.settings import (
    looks,
    looks_at_nothing,
    traced_by_dynamo,
    under_default_settings,
)

__all__ = ["MatrixNorm", "Norm", "Scaled", "duality_gap", "factor", "order", "times"]

Array = Any


# Factors and their reciprocals are normal numbers of single precision.
SMALLEST, LARGEST = 2.0**-126, 2.0**126


def order(name: str, p: Any) -> float:
    """Return the order of a norm as a float, or raise ValueError that names it."""
    return number(name, p, 1, math.inf, what="a number from 1 to infinity")


def factor(x: Any, name: str = "the factor of a norm") -> float:
    """Return a positive parameter as a float, or raise ValueError that names it."""
    what = f"a positive number, from {SMALLEST:.3g} to {LARGEST:.3g}"
    return number(name, x, SMALLEST, LARGEST, what=what)


class Norm:
    """A norm with its dual norm, linear maximiser, duality map, projection and dual."""

    def __call__(self, x: Any) -> Any:
        """Norm of each matrix.

        Parameters
        ----------
        x : array, shape (..., m, n)
            Real or complex, of any supported library. Never changed.

        Returns
        -------
        array, shape (...)
            Real, of the precision of `x`; infinity where that cannot hold the value.

        Raises
        ------
        TypeError
            If `x` is not an array of numbers.
        ValueError
            For fewer than two dimensions, a shape that the norm does not fit; NaN or infinity in a
            NumPy array or a torch tensor on a CPU (of others the result is NaN).
        NotImplementedError
            Where the norm has no closed form; the message gives the reason.
        """
        raise NotImplementedError

    def dual_norm(self, g: Any) -> Any:
        """Largest ``Re tr(G^H T)`` over ``||T|| <= 1``; arguments and errors as of the norm."""
        raise NotImplementedError

    def lmo(self, g: Any) -> Any:
        """A T with ``||T|| <= 1`` that maximises ``Re tr(G^H T)``: a maximiser, not a minimiser.

        Parameters
        ----------
        g : array, shape (..., m, n)
            Say, a gradient. Descent steps along ``-lmo(g)``.

        Returns
        -------
        array, shape (..., m, n)
            Array library, device and dtype of `g`. A zero matrix gives zero. Singular values up to
            ``max(m, n) * eps * sigma_1`` count as zero. Where several T are best, the choice of the
            norm, always the same.

        Raises
        ------
        TypeError, ValueError
            As of the norm itself.
        """
        raise NotImplementedError

    def sharp(self, g: Any) -> Any:
        """The T that maximises ``Re tr(G^H T) - ||T||^2 / 2``: ``dual_norm(g) * lmo(g)``.

        This is the duality map of steepest descent. (Modula's documents call the bare polar factor
        "sharp", which is :meth:`lmo` here.) Arguments, result and errors as of :meth:`lmo`.
        """
        raise NotImplementedError

    def project(self, x: Any) -> Any:
        """Nearest point of the unit ball in the Frobenius norm; `x` itself if it is inside.

        Arguments, result and errors as of :meth:`lmo`, and NotImplementedError with the reason
        for norms whose projection is not known in closed form.
        """
        raise NotImplementedError

    def dual(self) -> Norm:
        """The dual norm as a norm: ``n.dual()(g)`` is ``n.dual_norm(g)``."""
        raise NotImplementedError

    def __rmul__(self, s: float) -> Norm:
        """``s * n``, s positive: the ball shrinks by s."""
        raise NotImplementedError

    def _gap(self, g: Any, t: Any) -> Any:
        raise NotImplementedError


class Prepared(NamedTuple):
    """A stack of matrices as the norms work on it, and how to go back."""

    given: Array
    x: Array  # at least single precision, finite, largest entry about 1
    ops: Ops
    scale: Array | float  # given = scale * x
    poison: Array | None  # 0, or NaN for matrices that were not finite; None on the host

    def result(self, x: Array) -> Array:
        """Matrices in the dtype of the input."""
        return self.ops.astype_like(x if self.poison is None else x + self.poison, self.given)

    def number(self, v: Array) -> Array:
        """Values of shape (..., 1, 1) as values of shape (...)."""
        v = v if self.poison is None else v + self.poison
        if not self.ops.is_complex(self.given):
            v = self.ops.astype_like(v, self.given)
        return v[..., 0, 0]


def prepared(a: Array, ops: Ops, name: str) -> Prepared:
    """Scale a stack of matrices, in at least single precision, and settle what is not finite.

    Raises
    ------
    ValueError
        For NaN or infinity in a NumPy array or a torch tensor on a CPU; of others such a matrix is
        worked on as zeros, and its results are NaN.
    """
    x = ops.at_least_single(a)
    if 0 in a.shape:
        return Prepared(a, x, ops, 1.0, None)
    peak = finite_peak(x, ops, name, look=ops.host)
    poison = None
    if not ops.host:
        finite, zero = ops.xp.isfinite(peak), ops.xp.zeros_like(peak)
        x = ops.xp.where(finite, x, ops.xp.zeros_like(x))
        poison = ops.xp.where(finite, zero, ops.xp.full_like(peak, math.nan))
    scale = ops.binary_scale(peak)
    return Prepared(a, ops.divide(x, scale), ops, scale, poison)


class MatrixNorm(Norm):
    """A norm of matrices."""

    # Whether _lmo is the maximiser to rounding, so that one inner product is the dual norm.
    exact = True

    def _value(self, x: Array, ops: Ops) -> Array:
        raise NotImplementedError

    def _dual_value(self, g: Array, ops: Ops) -> Array:
        return self.dual()._value(g, ops)

    def _lmo(self, g: Array, ops: Ops, precision: str) -> Array:
        """Maximiser; `precision` is the format of the caller's array."""
        raise NotImplementedError

    def _project(self, x: Array, radius: Array, ops: Ops) -> Array:
        """Project onto the ball of a radius, shape (..., 1, 1)."""
        raise NotImplementedError(
            f"{self!r} has no projection in closed form; its lmo serves Frank-Wolfe methods"
        )

    def dual(self) -> MatrixNorm:
        """The dual norm as a norm."""
        raise NotImplementedError

    def _check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError for a shape that the norm does not fit."""

    def _prepare(self, a: Any, name: str) -> Prepared:
        a, ops = as_matrix(a, name)
        self._check(a.shape)
        return prepared(a, ops, name)

    @looks
    @under_default_settings
    def __call__(self, x: Any) -> Array:
        p = self._prepare(x, "x")
        if 0 in p.x.shape:
            return p.number(_none(p))
        return p.number(p.ops.scale(self._value(p.x, p.ops), p.scale))

    @looks
    @under_default_settings
    def dual_norm(self, g: Any) -> Array:
        p = self._prepare(g, "g")
        if 0 in p.x.shape:
            return p.number(_none(p))
        return p.number(p.ops.scale(self._dual_value(p.x, p.ops), p.scale))

    @looks
    @under_default_settings
    def lmo(self, g: Any) -> Array:
        p = self._prepare(g, "g")
        if 0 in p.x.shape:
            return p.ops.empty_result(p.given)
        return p.result(self._lmo(p.x, p.ops, p.ops.format_name(p.given)))

    @looks
    @under_default_settings
    def sharp(self, g: Any) -> Array:
        p = self._prepare(g, "g")
        if 0 in p.x.shape:
            return p.ops.empty_result(p.given)
        t = self._lmo(p.x, p.ops, p.ops.format_name(p.given))
        d = inner(p.x, t, p.ops) if self.exact else self._dual_value(p.x, p.ops)
        return p.result(p.ops.scale(p.ops.astype_like(t, p.x) * d, p.scale))

    @looks
    @under_default_settings
    def project(self, x: Any) -> Array:
        p = self._prepare(x, "x")
        if 0 in p.x.shape:
            return p.ops.empty_result(p.given)
        radius = p.ops.xp.ones_like(p.ops.max_abs(p.x)) / p.scale
        return p.result(p.ops.scale(self._project(p.x, radius, p.ops), p.scale))

    def __rmul__(self, s: float) -> MatrixNorm:
        s = factor(s)
        return self if s == 1 else Scaled(s, self)

    @looks
    @under_default_settings
    def _gap(self, g: Any, t: Any) -> Array:
        p, q = self._prepare(g, "g"), self._prepare(t, "t")
        check_same_place(p.x, "g", q.x, "t")
        if p.x.shape != q.x.shape:
            raise ValueError(f"t must have the shape of g, {p.x.shape}, got {q.x.shape}")
        if 0 in p.x.shape:
            return p.number(_none(p))
        ops = p.ops
        d, size = self._dual_value(p.x, ops), self._value(q.x, ops)
        ratio = inner(p.x, q.x, ops) / ops.divisor(size) / ops.divisor(d)
        gap = ops.xp.where(d == 0, ops.xp.zeros_like(ratio), 1 - ratio)
        return p.number(gap if q.poison is None else gap + q.poison)


def _none(p: Prepared) -> Array:
    """Values of matrices without entries: 0, shape (..., 1, 1)."""
    return p.ops.xp.sum(p.ops.xp.abs(p.x), axis=(-2, -1), keepdims=True)


def inner(x: Array, y: Array, ops: Ops) -> Array:
    """``Re tr(X^H Y)``, shape (..., 1, 1)."""
    xp = ops.xp
    if ops.is_complex(x) and ops.is_complex(y):
        products = xp.real(x) * xp.real(y) + xp.imag(x) * xp.imag(y)
    else:  # an imaginary part that meets none does not count
        x, y = (xp.real(z) if ops.is_complex(z) else z for z in (x, y))
        products = x * y
    return xp.sum(products, axis=(-2, -1), keepdims=True)


@looks_at_nothing
def times(x: Array, s: float) -> Array:
    """A new array ``s x`` of the dtype of `x`, half precision rounded once."""
    ops = ops_of(x)
    return ops.astype_like(ops.at_least_single(x) * s, x)


def capped_simplex(z: Array, cap: Array, pivot: Array, k: int, ops: Ops, axis: int) -> Array:
    """Project nonnegative vectors onto ``{w : 0 <= w <= cap, sum w <= k cap}``.

    Parameters
    ----------
    z : array
        Vectors along `axis`.
    cap, pivot : array
        Largest entry allowed and k-th largest entry of `z`, of length 1 along `axis`.
    k : int
        The sum allowed, in caps. With k = 1 this is the simplex.
    ops : Ops
        Arithmetic.
    axis : int
        Of the vectors.

    Returns
    -------
    array
        ``clip(z - theta, 0, cap)``, theta = max(0, pivot - phi), phi in [0, cap] by bisection to
        the last bit: sums of differences from the pivot keep their digits where z is far larger
        than the cap, and a fixed number of steps never asks the device.
    """
    xp = ops.xp
    y = z - pivot

    def at(phi: Array) -> Array:
        return xp.minimum(xp.maximum(y + phi, xp.zeros_like(y)), cap + xp.zeros_like(y))

    high = xp.minimum(cap, pivot)
    low = xp.zeros_like(high)
    for _ in range(format_of(ops.format_name(z)).significand + 2):
        middle = (low + high) / 2
        fits = xp.sum(at(middle), axis=axis, keepdims=True) <= k * cap
        low, high = xp.where(fits, middle, low), xp.where(fits, high, middle)
    if not ops.is_traced(z):
        return at(low)
    # Bisection has no derivative. That of phi is that of its end, or follows from the sum.
    phi = constant(ops, lambda low: low * 1.0, low)
    total = xp.sum(at(phi), axis=axis, keepdims=True)
    inside = xp.astype((y + phi > 0) & (y + phi < cap), z.dtype)
    count = xp.sum(inside, axis=axis, keepdims=True)
    change = (k * cap - total) / xp.where(count > 0, count, xp.ones_like(count))
    end = xp.minimum(cap, pivot)
    bound = xp.sum(at(end), axis=axis, keepdims=True) > k * cap
    change = xp.where(bound, change, end)
    return at(phi + change - constant(ops, lambda change: change * 1.0, change))


@dataclass(frozen=True, repr=False)
class Scaled(MatrixNorm):
    """``factor * norm``; with a shape, for matrices of that shape or its transpose only."""

    factor: float
    norm: MatrixNorm
    shape: tuple[int, int] | None = None

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self.norm.exact

    def __repr__(self) -> str:
        return f"{self.factor!r} * {self.norm!r}"

    def _check(self, shape: tuple[int, ...]) -> None:
        if self.shape is not None and sorted(shape[-2:]) != sorted(self.shape):
            raise ValueError(
                f"{self!r} was made for matrices {self.shape[0]} x {self.shape[1]} or their "
                f"transposes, got shape {tuple(shape)}"
            )
        self.norm._check(shape)

    def _value(self, x: Array, ops: Ops) -> Array:
        return ops.scale(self.norm._value(x, ops), self.factor)

    def _dual_value(self, g: Array, ops: Ops) -> Array:
        return self.norm._dual_value(g, ops) / self.factor

    def _lmo(self, g: Array, ops: Ops, precision: str) -> Array:
        return self.norm._lmo(g, ops, precision) / self.factor

    @under_default_settings
    def lmo(self, g: Any) -> Array:
        # Straight to the norm, so that a schedule gets the caller's array and nothing else is done.
        if not traced_by_dynamo():
            g, _ = as_matrix(g, "g", sharded=True)
        self._check(g.shape)
        return times(self.norm.lmo(g), 1 / self.factor)

    def _project(self, x: Array, radius: Array, ops: Ops) -> Array:
        return self.norm._project(x, radius / self.factor, ops)

    def dual(self) -> MatrixNorm:
        return Scaled(1 / self.factor, self.norm.dual(), self.shape)

    def __rmul__(self, s: float) -> MatrixNorm:
        s = factor(s)
        return self if s == 1 else Scaled(s * self.factor, self.norm, self.shape)


def duality_gap(n: Norm, g: Any, t: Any) -> Any:
    """How far T is from a maximiser: ``1 - Re tr(G^H T) / (||T|| ||G||_dual)``.

    Parameters
    ----------
    n : Norm
        Any norm of :mod:`polarlib.norms`.
    g, t : array, shape (..., m, n)
        Matrix, and what an inexact method took for ``n.lmo(g)``, of any length. Lists of arrays for
        a modular norm.

    Returns
    -------
    array, shape (...)
        Certified: 0 for a multiple of a maximiser, at most 2, 1 for a zero T; 0 for G = 0.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As of the norm, and ValueError for shapes that differ.

    Notes
    -----
    Costs the value of the norm and of its dual, so for the spectral norm two sets of singular
    values: far more than an approximate polar factor. Compute it where it is to be reported.

    Examples
    --------
    >>> import numpy as np
    >>> from polarlib import norms
    >>> g = np.random.default_rng(0).standard_normal((6, 4))
    >>> n = norms.spectral(polar="polar_express")
    >>> bool(0 <= norms.duality_gap(n, g, n.lmo(g)) < 0.2)
    True
    """
    instance("n", n, Norm, "a norm of polarlib.norms")
    return n._gap(g, t)
