"""The protocol of every norm: value, dual norm, LMO, duality map, projection.

LMO stands for linear maximisation oracle: a T of the unit ball that maximises ``Re tr(G^H T)``.

To add a norm of matrices, derive a class from :class:`MatrixNorm` in a separate file and implement
`_value`, `_lmo` and `dual`, and `_project` where it is known. Their arguments are finite matrices
in at least single precision, scaled to a largest entry of about 1. Values keep their dimensions,
shape (..., 1, 1), so that they multiply their matrices. :func:`of_matrices` and :func:`of_values`
handle arguments, scale, half precision, empty matrices and NaN. Export the constructor in
norms/__init__.py, and add a row to ATOMS of tests/norms/test_norms.py and one to
docs/make_norms.py: a test fails where one is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from polarlib.arrays.checks import instance, number
from polarlib.arrays.entered import Entered, enter
from polarlib.arrays.entry import as_matrix, check_same_place
from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import constant, empty_result
from polarlib.arrays.library import astype_like, at_least_single, format_name, is_complex
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.settings import (
    looks,
    looks_at_nothing,
    traced_by_dynamo,
    under_default_settings,
)

Array = Any
# Array library, device and dtype of a result are those of the argument.
A = TypeVar("A")
Check = Callable[[tuple[int, ...]], None]

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
    """A norm of arrays, real or complex, of every supported library; arguments are not modified.

    Results have the array library, device and precision of the argument.
    """

    def __call__(self, x: A) -> A:
        """Return the norm of each matrix.

        Parameters
        ----------
        x : array, shape (..., m, n)
            The matrices.

        Returns
        -------
        array, shape (...)
            Real; infinity where its format cannot represent the value.

        Raises
        ------
        TypeError
            If `x` is not an array of numbers.
        ValueError
            For fewer than two dimensions, a shape that does not fit the norm; NaN or infinity in a
            NumPy array or a torch tensor on a CPU (in other arrays the result is NaN).
        NotImplementedError
            Where the norm has no closed form; the message gives the reason.
        """
        raise NotImplementedError

    def dual_norm(self, g: A) -> A:
        """Return the dual norm: the largest ``Re tr(G^H T)`` over ``||T|| <= 1``.

        Parameters
        ----------
        g : array, shape (..., m, n)
            The matrices.

        Returns
        -------
        array, shape (...)
            Real, as the value of the norm.

        Raises
        ------
        TypeError, ValueError, NotImplementedError
            As the norm itself.
        """
        raise NotImplementedError

    def lmo(self, g: A) -> A:
        """Return a T with ``||T|| <= 1`` that maximises ``Re tr(G^H T)``.

        Parameters
        ----------
        g : array, shape (..., m, n)
            For example a gradient. Descent steps along ``-lmo(g)``.

        Returns
        -------
        array, shape (..., m, n)
            Zero for a zero matrix. Singular values up to ``max(m, n) * eps * sigma_1`` count as
            zero. Where T is not unique, the norm documents which T it returns, always the same.

        Raises
        ------
        TypeError, ValueError
            As the norm itself.
        """
        raise NotImplementedError

    def sharp(self, g: A) -> A:
        """Return the T that maximises ``Re tr(G^H T) - ||T||^2 / 2``: ``dual_norm(g) * lmo(g)``.

        This is the duality map of steepest descent. (Modula's documentation calls the polar factor
        alone "sharp", which is :meth:`lmo` here.)

        Parameters
        ----------
        g : array, shape (..., m, n)
            For example a gradient.

        Returns
        -------
        array, shape (..., m, n)
            Zero for a zero matrix.

        Raises
        ------
        TypeError, ValueError, NotImplementedError
            As the norm itself.
        """
        raise NotImplementedError

    def project(self, x: A) -> A:
        """Return the point of the unit ball nearest to `x` in the Frobenius norm; `x` if inside.

        Parameters
        ----------
        x : array, shape (..., m, n)
            The matrices.

        Returns
        -------
        array, shape (..., m, n)
            The nearest point.

        Raises
        ------
        TypeError, ValueError
            As the norm itself.
        NotImplementedError
            If the projection has no closed form.
        """
        raise NotImplementedError

    def dual(self) -> Norm:
        """Return the dual norm as a norm: ``n.dual()(g)`` is ``n.dual_norm(g)``."""
        raise NotImplementedError

    def __rmul__(self, s: float) -> Norm:
        """Return ``s * n`` for a positive s: the unit ball shrinks by s."""
        raise NotImplementedError

    def _gap(self, g: Any, t: Any) -> Any:
        raise NotImplementedError


# -- from the caller's matrices to functions of prepared ones, and back ------------------------


def _entered(a: Any, name: str, check: Check | None = None) -> Entered:
    a, ops = as_matrix(a, name)
    if check is not None:
        check(a.shape)
    # An optimizer calls an LMO in every step, and reading an entry would make a device wait.
    # A matrix with NaN is masked, so that it does not affect the others of its stack.
    return enter(a, name, ops=ops, look="if free", mask=True)


@under_default_settings
def of_matrices(
    f: Callable[[Entered], tuple[Array, Array | float]], a: A, name: str, check: Check | None = None
) -> A:
    """Return the matrices of ``f(entered)``, times the factor that it returns, like `a`.

    Where there is no check for NaN, since that would make a device wait, such a matrix gives NaN.
    """
    e = _entered(a, name, check)
    return cast(A, empty_result(e.given, e.ops) if e.is_empty else e.leave(*f(e)))


@under_default_settings
def of_values(f: Callable[[Array, Ops], Array], a: A, name: str, check: Check) -> A:
    """Return values of shape (..., 1, 1) of a function that is homogeneous, with shape (...)."""
    e = _entered(a, name, check)
    return cast(A, _leave(e, _nothing(e) if e.is_empty else e.ops.scale(f(e.x, e.ops), e.scale)))


def _leave(e: Entered, v: Array) -> Array:
    """Return values of shape (..., 1, 1) as real values of shape (...)."""
    v = e.or_nan(v)
    # Values of complex matrices are real: the dtype of the matrix would make them complex.
    return (v if is_complex(e.given) else astype_like(v, e.given, e.ops))[..., 0, 0]


class MatrixNorm(Norm):
    """A norm of matrices."""

    # Whether _lmo is the LMO to rounding, so that one inner product is the dual norm.
    exact = True

    def _value(self, x: Array, ops: Ops) -> Array:
        raise NotImplementedError

    def _dual_value(self, g: Array, ops: Ops) -> Array:
        return self.dual()._value(g, ops)

    def _lmo(self, g: Array, ops: Ops, precision: str) -> Array:
        """Return the LMO; `precision` is the format of the caller's array."""
        raise NotImplementedError

    def _project(self, x: Array, radius: Array, ops: Ops) -> Array:
        """Project onto the ball of a radius, shape (..., 1, 1)."""
        raise NotImplementedError(
            f"{self!r} has no projection in closed form; use its lmo in a Frank-Wolfe method"
        )

    def dual(self) -> MatrixNorm:
        """Return the dual norm as a norm."""
        raise NotImplementedError

    def _check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError for a shape that does not fit the norm."""

    @looks
    def __call__(self, x: A) -> A:
        return of_values(self._value, x, "x", self._check)

    @looks
    def dual_norm(self, g: A) -> A:
        return of_values(self._dual_value, g, "g", self._check)

    def _lmo_of(self, e: Entered) -> Array:
        return self._lmo(e.x, e.ops, format_name(e.given))

    @looks
    def lmo(self, g: A) -> A:
        return of_matrices(lambda e: (self._lmo_of(e), 1.0), g, "g", self._check)

    @looks
    def sharp(self, g: A) -> A:
        def direction(e: Entered) -> tuple[Array, Array | float]:
            t = self._lmo_of(e)
            # An exact LMO attains the dual norm, and an inner product costs no second SVD. The LMO
            # by a schedule does not attain it, and may be outside of the ball.
            d = inner(e.x, t, e.ops) if self.exact else self._dual_value(e.x, e.ops)
            return astype_like(t, e.x, e.ops) * d, e.scale

        return of_matrices(direction, g, "g", self._check)

    @looks
    def project(self, x: A) -> A:
        def nearest(e: Entered) -> tuple[Array, Array | float]:
            # The unit ball in the units of the scaled matrix.
            radius = e.ops.xp.ones_like(e.ops.max_abs(e.x)) / e.scale
            return self._project(e.x, radius, e.ops), e.scale

        return of_matrices(nearest, x, "x", self._check)

    def __rmul__(self, s: float) -> MatrixNorm:
        s = factor(s)
        return self if s == 1 else Scaled(s, self)

    @looks
    @under_default_settings
    def _gap(self, g: Any, t: Any) -> Array:
        p, q = _entered(g, "g", self._check), _entered(t, "t", self._check)
        check_same_place(p.x, "g", q.x, "t")
        if p.x.shape != q.x.shape:
            raise ValueError(f"t must have the shape of g, {p.x.shape}, got {q.x.shape}")
        if p.is_empty:
            return _leave(p, _nothing(p))
        ops = p.ops
        d, size = self._dual_value(p.x, ops), self._value(q.x, ops)
        ratio = inner(p.x, q.x, ops) / ops.divisor(size) / ops.divisor(d)
        gap = ops.xp.where(d == 0, ops.xp.zeros_like(ratio), 1 - ratio)
        return _leave(p, q.or_nan(gap))


def _nothing(e: Entered) -> Array:
    """Return the values of empty matrices: 0, shape (..., 1, 1), in the graph of a traced one."""
    return e.ops.xp.sum(e.ops.xp.abs(e.x), axis=(-2, -1), keepdims=True)


def inner(x: Array, y: Array, ops: Ops) -> Array:
    """Return ``Re tr(X^H Y)``, shape (..., 1, 1)."""
    xp = ops.xp
    if is_complex(x) and is_complex(y):
        products = xp.real(x) * xp.real(y) + xp.imag(x) * xp.imag(y)
    else:  # an imaginary part times a real number has no real part
        x, y = (xp.real(z) if is_complex(z) else z for z in (x, y))
        products = x * y
    return xp.sum(products, axis=(-2, -1), keepdims=True)


@looks_at_nothing
def times(x: Array, s: Array | float) -> Array:
    """Return ``s x`` in the dtype of `x`, a new array; half precision is rounded once."""
    ops = ops_of(x)
    return astype_like(ops.scale(at_least_single(x, ops), s), x, ops)


def capped_simplex(z: Array, cap: Array, pivot: Array, k: int, ops: Ops, axis: int) -> Array:
    """Project nonnegative vectors onto ``{w : 0 <= w <= cap, sum w <= k cap}``.

    With k = 1 this is a simplex. `cap` and `pivot`, the k-th largest entry of `z`, have length 1
    along `axis`. The projection is ``clip(z - theta, 0, cap)``, theta = max(0, pivot - phi), phi in
    [0, cap] by bisection to the last bit: sums of differences from the pivot are accurate where z
    is far larger than the cap, and a fixed number of steps reads nothing from a device.
    """
    xp = ops.xp
    y = z - pivot

    def at(phi: Array) -> Array:
        return xp.minimum(xp.maximum(y + phi, xp.zeros_like(y)), cap + xp.zeros_like(y))

    high = xp.minimum(cap, pivot)
    low = xp.zeros_like(high)
    for _ in range(format_of(format_name(z)).significand + 2):
        middle = (low + high) / 2
        # Up only where the sum fits, so that the result is in the ball despite rounding.
        fits = xp.sum(at(middle), axis=axis, keepdims=True) <= k * cap
        low, high = xp.where(fits, middle, low), xp.where(fits, high, middle)
    if not ops.is_traced(z):
        return at(low)
    # Bisection has no derivative. The derivative of phi is that of the end of its interval, or
    # follows from the sum.
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
                f"{self!r} is for matrices {self.shape[0]} x {self.shape[1]} or their "
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
    def lmo(self, g: A) -> A:
        # Directly, not by of_matrices: a schedule then costs nothing beyond orthogonalize, and has
        # the format of the caller's array.
        if not traced_by_dynamo():
            g = as_matrix(g, "g", sharded=True)[0]
        self._check(cast(Array, g).shape)
        return cast(A, times(self.norm.lmo(g), 1 / self.factor))

    def _project(self, x: Array, radius: Array, ops: Ops) -> Array:
        return self.norm._project(x, radius / self.factor, ops)

    def dual(self) -> MatrixNorm:
        return Scaled(1 / self.factor, self.norm.dual(), self.shape)

    def __rmul__(self, s: float) -> MatrixNorm:
        s = factor(s)
        return self if s == 1 else Scaled(s * self.factor, self.norm, self.shape)


def duality_gap(n: Norm, g: Any, t: Any) -> Any:
    """Return the relative loss of an approximate LMO: ``1 - Re tr(G^H T) / (||T|| ||G||_dual)``.

    Parameters
    ----------
    n : Norm
        Any norm of :mod:`polarlib.norms`.
    g, t : array, shape (..., m, n)
        Matrix, and an approximation of ``n.lmo(g)``, of any length. Lists of arrays for a modular
        norm.

    Returns
    -------
    array, shape (...)
        A certified value: 0 for a positive multiple of an LMO, 1 for a zero T, at most 2; 0 for
        G = 0.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As for the norm, and ValueError for different shapes.

    Notes
    -----
    The cost is that of the norm and of its dual norm. For the spectral norm these are two sets of
    singular values, far more than an approximate polar factor.

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
