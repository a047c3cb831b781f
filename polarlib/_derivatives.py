"""Derivatives of the polar factors and of schedules, in a direction and against a gradient.

Both are generalised matrix functions ``U diag(f(sigma)) V^H``: their derivative is self-adjoint in
the inner product ``Re tr(X^H Y)``, so that one function serves both directions. Sources and costs
are in docs/derivatives.md.

The polar factor, A = U H tall and of full rank. With C = U^H E and Omega from the equation
``H Omega + Omega H = C - C^H``,

    dU = U Omega + (E - U C) H^-1,    dH = Hermitian part of C - Omega H.

Against gradients Y of U and B of H (made Hermitian), with C = U^H Y,

    gradient = U (B + Omega) + (Y - U C) H^-1,    H Omega + Omega H = C - C^H + H B - B H.

The nearest rotation R of a square real matrix has the same rule with ``H = R^T A``, symmetric, of
which one eigenvalue may be negative. The square root of a positive definite matrix solves
``H dH + dH H = dA``; the inverse p-th root is made of p - 1 such equations.

A schedule: the engine runs on dual numbers, pairs of matrices. Nothing of the forward pass is
needed but its input. The normalisation, no such function for most norms, has a rule of its own.

Everything is made of U, of products and of the solution of that one equation, whose derivative is
its own solution again: so derivatives have derivatives.
"""

from __future__ import annotations

import cmath
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from polarlib._schedule import Schedule
from polarlib.formats import format_of
from polarlib.iterate import iterate, normalise
from polarlib.ops import Diagonal, Ops, ops_of
from polarlib.result import PolarResult

__all__ = [
    "differentiable_inverse_root",
    "differentiable_polar",
    "differentiable_root",
    "differentiable_schedule",
    "differentiable_unitary",
    "polar_gradient",
    "polar_tangents",
    "schedule_derivative",
    "schedule_rule",
]

Array = Any
Linear = Callable[[Array], Array]


# -- a schedule --------------------------------------------------------------------------------


class Dual(NamedTuple):
    """A matrix and its derivative."""

    value: Array
    tangent: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of either."""
        return tuple(self.value.shape)


class DualOps:
    """What the engine asks of Ops, on values and their derivatives.

    Products of one Hermitian matrix with itself take one product for the derivative, since its
    other half is the adjoint; other products take two.
    """

    def __init__(self, base: Ops) -> None:
        self.base = base

    def enter(self, x: Dual) -> Dual:
        """Itself: there is one precision."""
        return x

    def buffer(self, shape: tuple[int, ...], like: Dual) -> None:
        """None: every result is new."""

    def reusable(self, x: Dual) -> bool:
        """Never."""
        return False

    def matmul(self, a: Dual, b: Dual, out: None = None) -> Dual:
        """Return ``a @ b``."""
        tangent = self.base.matmul(a.tangent, b.value)
        tangent = self.base.gemm(a.value, b.tangent, tangent, beta=1.0)
        return Dual(self.base.matmul(a.value, b.value), tangent)

    def gram(self, x: Dual, out: None = None) -> Dual:
        """Return ``x^H x``."""
        half = self.base.matmul(self.base.adjoint(x.value), x.tangent)
        return Dual(self.base.gram(x.value), half + self.base.adjoint(half))

    def gemm(
        self,
        a: Dual,
        b: Dual,
        c: Dual,
        alpha: float = 1.0,
        beta: float = 0.0,
        out: None = None,
    ) -> Dual:
        """Return ``alpha a @ b + beta c``; a and b are Hermitian if they are one."""
        value = self.base.gemm(a.value, b.value, c.value, alpha, beta)
        return Dual(value, self._tangent(a, b, c, alpha, beta))

    def made_hermitian(self, z: Dual) -> Dual:
        """Itself: values and derivatives are multiplied as they are."""
        return z

    def quadratic(self, g: Dual, c: Sequence[float], out: None = None) -> Dual:
        """Return ``c_1 G + c_2 G^2``."""
        return self.gemm_hermitian(g, g, g, c[2], c[1])

    def gemm_hermitian(
        self,
        a: Dual,
        b: Dual,
        c: Dual,
        alpha: float = 1.0,
        beta: float = 0.0,
        out: None = None,
    ) -> Dual:
        """Return ``alpha a @ b + beta c`` that is Hermitian."""
        value = self.base.gemm_hermitian(a.value, b.value, c.value, alpha, beta)
        return Dual(value, self._tangent(a, b, c, alpha, beta))

    def _tangent(self, a: Dual, b: Dual, c: Dual, alpha: float, beta: float) -> Array:
        base = self.base
        if a is b:
            half = base.matmul(a.value, a.tangent)
            halves = half, base.adjoint(half), c.tangent
            return base.combine((alpha, alpha, beta), halves)
        tangent = base.gemm(a.tangent, b.value, c.tangent, alpha, beta)
        return base.gemm(a.value, b.tangent, tangent, alpha, 1.0)

    def fold(self, z: Dual, alpha: float, beta: float) -> tuple[Dual, float, float]:
        """Return ``alpha Z + beta I``."""
        value, _, _ = self.base.fold(z.value, alpha, beta)
        tangent = z.tangent if alpha == 1.0 else self.base.combine((alpha,), (z.tangent,))
        return Dual(value, tangent), 1.0, 0.0

    def combine(self, coefficients: Sequence[float], matrices: Sequence[Dual]) -> Dual:
        """Return ``sum c_i M_i``."""
        values, tangents = zip(*matrices, strict=True)
        combine = functools.partial(self.base.combine, coefficients)
        return Dual(combine(values), combine(tangents))

    def add_diagonal(self, z: Dual, a: float) -> Dual:
        """Return ``z + a I``."""
        return Dual(self.base.add_diagonal(z.value, a), z.tangent)


def schedule_derivative(
    x: Array,
    e: Array,
    schedule: Schedule,
    *,
    normalisation: str,
    form: str,
    restarts: Sequence[int],
    gradient: bool,
) -> Array:
    """Derivative of a schedule with its normalisation at X, applied to E.

    Parameters
    ----------
    x, e : array, shape (..., m, n)
        In at least single precision; of one shape and dtype.
    schedule : Schedule
        The steps.
    normalisation : str
        As :func:`polarlib.iterate.normalise` takes it.
    form, restarts
        As :func:`polarlib.iterate.iterate` takes them.
    gradient : bool
        Whether E is a gradient with respect to the result, and the result one with respect to X;
        otherwise E is a direction of X.

    Returns
    -------
    array, shape (..., m, n)
        Zero where there is no derivative since a norm, or a column's, is zero.
    """
    ops = ops_of(x).functional()
    wide = x.shape[-2] < x.shape[-1]
    if wide:
        x, e = ops.adjoint(x), ops.adjoint(e)

    def along(y: Array, e: Array) -> Array:
        pair, dual = cast(Any, Dual(y, e)), cast(Ops, DualOps(ops))
        moved = iterate(pair, schedule.steps, dual, form=form, restarts=restarts)
        return cast(Dual, moved).tangent

    if normalisation == "none":
        d = along(x, e)
    else:
        y, before, after = _normalisation(x, ops, normalisation, schedule.input_safety)
        d = after(along(y, e)) if gradient else along(y, before(e))
    return ops.adjoint(d) if wide else d


def _normalisation(x: Array, ops: Ops, kind: str, safety: float) -> tuple[Array, Linear, Linear]:
    """Normalised matrix, derivative of the normalisation, and its adjoint.

    With Y = X / c and a direction D along which the norm grows, ``dc / c = <D, E> / <D, X>``, since
    norms are homogeneous: the size of D does not matter.
    """
    xp = ops.xp
    scale = ops.binary_scale(ops.max_abs(x))
    x = ops.divide(x, scale)  # so that no norm overflows
    y, _ = normalise(x, ops, kind, safety)
    size = _norms(x, ops, kind)
    lost = size == 0
    c = ops.divisor(size) / ops.divisor(_norms(y, ops, kind))

    def divided(e: Array) -> Array:
        return xp.where(lost, xp.zeros_like(e), e / c)

    if kind == "aol":
        growth, adjoint = _growth_of_columns(x, y, ops)
        return (
            y,
            lambda e: ops.divide(divided(e) - growth(e), scale),
            lambda e: ops.divide(divided(e) - adjoint(e), scale),
        )
    d = _growth(y * safety, ops, kind)
    whole = ops.divisor(_inner(d, y, ops))

    def along(e: Array) -> Array:
        e = ops.divide(e, scale)
        return divided(e - y * (_inner(d, e, ops) / whole))

    def against(e: Array) -> Array:
        return ops.divide(divided(e - d * (_inner(y, e, ops) / whole)), scale)

    return y, along, against


def _growth_of_columns(x: Array, y: Array, ops: Ops) -> tuple[Linear, Linear]:
    """Of "aol", Y times the relative growth of its norms in a direction of X, and the adjoint."""
    xp = ops.xp
    g = ops.gram(x)
    absolute = xp.abs(g)
    # 0 where an absolute value has no derivative.
    signs = g / xp.where(absolute == 0, xp.ones_like(absolute), absolute)
    sums = 2 * ops.divisor(xp.sum(absolute, axis=-2, keepdims=True))

    def along(e: Array) -> Array:
        half = ops.matmul(ops.adjoint(x), e)
        return y * (_inner(signs, half + ops.adjoint(half), ops, axis=-2) / sums)

    def against(e: Array) -> Array:
        half = signs * (_inner(y, e, ops, axis=-2) / sums)
        return ops.matmul(x, half + ops.adjoint(half))

    return along, against


def _growth(y: Array, ops: Ops, kind: str) -> Array:
    """A multiple of the gradient of a norm at a matrix that it normalises.

    Of Schatten norms, ``(tr G^k)^(1 / 2k)`` for G = Y^H Y, it is ``Y G^(k - 1)``.
    """
    if kind == "frobenius":
        return y
    g = ops.gram(y)
    if kind == "moments":  # mu + sqrt(n - 1) sigma of the eigenvalues of G
        n = g.shape[-1]
        mean = ops.trace(g) / n
        k = g - ops.eye(n, g) * mean
        k = k * (math.sqrt(n * (n - 1)) / ops.divisor(ops.frobenius(k)))
        return y + ops.matmul(y, k)
    power = product = g
    for _ in range({"schatten4": 0, "spectral": 3}[kind]):  # G, G^3, G^7, G^15
        power = ops.gram(power)
        product = ops.matmul(product, power)
    return ops.matmul(y, product)


def _norms(x: Array, ops: Ops, kind: str) -> Array:
    """Frobenius norms of matrices, or of their columns."""
    return ops.xp.sqrt(_inner(x, x, ops, axis=-2)) if kind == "aol" else ops.frobenius(x)


def _inner(a: Array, b: Array, ops: Ops, axis: int | tuple[int, int] = (-2, -1)) -> Array:
    """Real inner product ``Re sum(conj(a) b)``."""
    xp = ops.xp
    if ops.is_complex(a):
        return _inner(xp.real(a), xp.real(b), ops, axis) + _inner(xp.imag(a), xp.imag(b), ops, axis)
    return xp.sum(a * b, axis=axis, keepdims=True)


# -- the polar factors -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Equation:
    """``H X + X H = W`` for Hermitian H and one of the functions that have it for their rule.

    Parameters
    ----------
    kind : {"polar", "rotation", "root"}
        What H belongs to: the unitary polar factor; the nearest rotation, where H has one negative
        eigenvalue at most and W is skew-symmetric; the square root H.
    size : int, optional
        Larger dimension of the matrix that H belongs to, for what counts as zero.
    regularization : float, optional
        r, for skew-Hermitian W: with ``d = s_i + s_j``, ``1 / d`` becomes
        ``d / (d^2 + (r s_1)^2)``, s_1 the largest, a constant.

    Notes
    -----
    ``d / (d^2 + e^2)`` is the real part of ``1 / (d + i e)``. So the regularised solution is the
    skew-Hermitian part of Z in ``H Z + Z H + i e Z = W``, which has derivatives of the same kind.
    """

    kind: str
    size: int = 1
    regularization: float = 0.0

    def solve(self, h: Array, w: Array) -> Array:
        """Solve the equation, in a way that the library can differentiate any number of times.

        Parameters
        ----------
        h, w : array, shape (..., n, n)
            In at least single precision; h scaled to entries of about 1.

        Returns
        -------
        array, shape (..., n, n)

        Raises
        ------
        ValueError
            If it has no unique solution, to rounding. Where numbers cannot be read, NaN.
        """
        ops = ops_of(w).functional()
        if not self.regularization:
            return ops.lyapunov(h, w, self._diagonalise)
        real = not ops.is_complex(w)
        diagonalise = functools.partial(self._diagonalise, real=real)
        z = ops.lyapunov(ops.as_complex(h), ops.as_complex(w), diagonalise)
        x = (z - ops.adjoint(z)) * 0.5
        return ops.xp.real(x) if real else x

    def _diagonalise(self, h: Array, *, real: bool = False) -> Diagonal:
        """Diagonalise the equation, if it has a unique solution."""
        ops = ops_of(h).functional()
        s, v = ops.eigh(ops.xp.real(h) if real else h)
        sums = self._off_diagonal(s[..., :, None] + s[..., None, :], s, ops)
        if self.regularization:
            largest = _largest(s, ops)
            shift = ops.xp.where(largest > 0, largest * self.regularization, largest + 1.0)
            shift = ops.as_complex(shift) * 1j
            return Diagonal(ops.as_complex(sums) + shift, ops.as_complex(v), shift)
        # NaN is no degeneracy, and gives NaN.
        poor = ~self._is_unique(s, ops) & ~ops.xp.isnan(s[..., :1])[..., None]
        if not ops.hidden(poor) and bool(ops.xp.any(poor)):
            raise ValueError(self._refusal(ops.to_host(s), ops.to_host(poor)[..., 0, 0] != 0))
        return Diagonal(ops.xp.where(poor, ops.xp.full_like(sums, math.nan), sums), v)

    def _off_diagonal(self, sums: Array, s: Array, ops: Ops) -> Array:
        """The sums; for rotations, nothing is divided by those of a value with itself.

        W has no diagonal there, but for rounding, and such a sum may be zero.
        """
        if self.kind != "rotation":
            return sums
        largest = _largest(s, ops)
        safe = ops.xp.where(largest > 0, largest, largest + 1.0)
        diagonal = ops.eye(s.shape[-1], s) > 0
        return ops.xp.where(diagonal, safe, sums)

    def _is_unique(self, s: Array, ops: Ops) -> Array:
        """Whether the smallest sum that counts is above rounding, shape (..., 1, 1)."""
        noise = max(self.size, s.shape[-1]) * format_of(ops.format_name(s)).epsilon
        largest = _largest(s, ops)
        if self.kind == "polar":
            return s[..., :1, None] > noise * largest
        if self.kind == "root":  # of eigenvalues, the squares
            least = s[..., :1, None]
            return (least > 0) & (least * least > noise * largest * largest)
        if s.shape[-1] == 1:
            return largest >= 0
        return (s[..., :1] + s[..., 1:2])[..., None] > noise * largest

    def _refusal(self, s: np.ndarray, poor: np.ndarray) -> str:
        worst = tuple(int(i) for i in np.argwhere(poor)[0])
        where = f" in matrix {worst} of the stack" if worst else ""
        values = s[worst]
        if self.kind == "root":
            least = max(float(values[0]), 0.0) ** 2 / float(values[-1] or 1.0) ** 2
            return (
                f"the square root has no derivative at a singular matrix: an eigenvalue is "
                f"{least:.1e} times the largest one{where}, which is zero to rounding; add a "
                "multiple of the identity"
            )
        total = values[0] + values[1 if self.kind == "rotation" else 0]
        if self.kind == "rotation":
            return (
                f"the nearest rotation has no derivative where it is not unique: two singular "
                f"values, the last with the sign of the determinant, have the sum "
                f"{max(total, 0.0):.1e}{where}, which is zero to rounding; pass regularization=1e-3"
            )
        return (
            f"the polar factor has no derivative at a rank-deficient matrix: two singular values "
            f"have the sum {max(total, 0.0):.1e}{where}, which is zero to rounding; procrustes() "
            "takes a regularization, orthogonalize() has a derivative at such matrices, and a "
            "multiple of the identity may be added to square ones"
        )


def _largest(s: Array, ops: Ops) -> Array:
    """Largest of ascending eigenvalues in absolute value, shape (..., 1, 1)."""
    return ops.xp.maximum(s[..., -1:], -s[..., :1])[..., None]


class _Scaled(NamedTuple):
    """A tall matrix over a power of two, its factors and the arithmetic of its library."""

    x: Array
    u: Array
    h: Array
    scale: Array | float
    ops: Ops
    wide: bool


def _tall(a: Array, u: Array) -> _Scaled:
    ops = ops_of(a).functional()
    wide = a.shape[-2] < a.shape[-1]
    if wide:
        a, u = ops.adjoint(a), ops.adjoint(u)
    # A constant: the derivative of a power of two is zero, but what leads to it may overflow.
    scale = ops.constant(lambda a: ops.binary_scale(ops.max_abs(a)), a)
    x = ops.divide(a, scale)
    h = ops.hermitian_part(ops.matmul(ops.adjoint(u), x))
    return _Scaled(x, u, h, scale, ops, wide)


def _turn(p: _Scaled, e: Array, equation: Equation) -> tuple[Array, Array, Array]:
    """``C = U^H E``, Omega and dU for a scaled direction E."""
    ops, u = p.ops, p.u
    c = ops.matmul(ops.adjoint(u), e)
    omega = equation.solve(p.h, c - ops.adjoint(c))
    du = ops.matmul(u, omega)
    if u.shape[-2] > u.shape[-1]:
        du = du + _outside(p, e, c)
    return c, omega, du


def _outside(p: _Scaled, e: Array, c: Array) -> Array:
    """``(E - U C) H^-1``, the part that is orthogonal to the columns of U."""
    ops = p.ops
    return ops.matmul(ops.gemm(p.u, c, e, alpha=-1.0, beta=1.0), ops.inverse(p.h))


def unitary_derivative(a: Array, u: Array, e: Array, equation: Equation) -> Array:
    """Derivative of the unitary factor, or rotation, applied to a direction or to a gradient.

    It is self-adjoint, so that both are the same. Parameters are those of :func:`polar_tangents`.
    """
    p = _tall(a, u)
    e = p.ops.divide(p.ops.adjoint(e) if p.wide else e, p.scale)
    du = _turn(p, e, equation)[2]
    return p.ops.adjoint(du) if p.wide else du


def root_derivative(h: Array, e: Array) -> Array:
    """Derivative of the square root H of a Hermitian matrix, applied to a direction or gradient."""
    ops = ops_of(h).functional()
    scale = ops.constant(lambda h: ops.binary_scale(ops.max_abs(h)), h)
    e = ops.hermitian_part(ops.divide(e, scale))
    return ops.hermitian_part(Equation("root").solve(ops.divide(h, scale), e))


def inverse_root_derivative(x: Array, f: Array, e: Array, p: int) -> Array:
    """Derivative of ``F = A^(-1/p)`` for A positive definite, applied to a direction or gradient.

    With ``G = F^-1``: ``dF = -F dG F``, and ``sum_k G^k dG G^(p-1-k) = dA``. The polynomial
    ``sum_k x^k y^(p-1-k)`` is the product of ``x - w y`` over the roots of unity w but 1, so that
    one equation ``G X - w X G = W`` after another solves it.
    """
    ops = ops_of(x).functional()
    scale = ops.constant(lambda x: ops.binary_scale(ops.max_abs(x)), x)
    real = not ops.is_complex(x)
    f = f * scale ** (1 / p)
    g = ops.hermitian_part(ops.inverse(f))
    dg = ops.hermitian_part(ops.divide(e, scale))
    if p > 2:
        g, dg = ops.as_complex(g), ops.as_complex(dg)
    for k in range(1, p):
        weight = 1.0 if 2 * k == p else -cmath.exp(2j * math.pi * k / p)
        dg = ops.lyapunov(g, dg, functools.partial(_weighted, weight=weight, real=real), weight)
    if real and p > 2:
        dg = ops.xp.real(dg)
    df = ops.matmul(ops.matmul(f, dg), f)
    return ops.hermitian_part(df) * -(scale ** (-1 / p))


def _weighted(h: Array, *, weight: complex, real: bool) -> Diagonal:
    """``H X + c X H`` in the eigenvectors of H."""
    ops = ops_of(h).functional()
    is_complex = ops.is_complex(h)
    s, v = ops.eigh(ops.xp.real(h) if is_complex and real else h)
    if is_complex:
        s, v = ops.as_complex(s), ops.as_complex(v)
    return Diagonal(s[..., :, None] + weight * s[..., None, :], v)


def polar_tangents(a: Array, u: Array, e: Array, *, side: str = "right") -> tuple[Array, Array]:
    """Derivatives of both factors in a direction.

    Parameters
    ----------
    a, u, e : array, shape (..., m, n)
        Matrix, its unitary factor and the direction, in at least single precision.
    side : {"right", "left"}, optional
        Which Hermitian factor.

    Returns
    -------
    du, dh : array
        As the factors.

    Raises
    ------
    ValueError
        For a rank-deficient matrix.
    """
    p = _tall(a, u)
    ops, x, u = p.ops, p.x, p.u
    e = ops.divide(ops.adjoint(e) if p.wide else e, p.scale)
    c, omega, du = _turn(p, e, Equation("polar", x.shape[-2]))
    if p.wide == (side == "left"):
        dh = c - ops.matmul(omega, p.h)
    else:  # the larger factor, X U^H
        dh = ops.matmul(e, ops.adjoint(u)) + ops.matmul(x, ops.adjoint(du))
    dh = ops.hermitian_part(dh) * p.scale
    return ops.adjoint(du) if p.wide else du, dh


def polar_gradient(
    a: Array, u: Array, y: Array | None, b: Array | None, *, side: str = "right"
) -> Array:
    """Gradient with respect to A, from gradients with respect to U and H.

    Parameters
    ----------
    a, u : array, shape (..., m, n)
        Matrix and its unitary factor, in at least single precision.
    y, b : array or None
        Gradients; None for zero, one of them at most.
    side : {"right", "left"}, optional
        Which Hermitian factor.

    Returns
    -------
    array, shape (..., m, n)

    Raises
    ------
    ValueError
        For a rank-deficient matrix.
    """
    p = _tall(a, u)
    ops, x, u = p.ops, p.x, p.u
    y = p.x * 0.0 if y is None else ops.divide(ops.adjoint(y) if p.wide else y, p.scale)
    rest = None
    if b is not None:
        b = ops.hermitian_part(b)
        if p.wide != (side == "left"):  # the larger factor, X U^H
            y = y + ops.matmul(b, x)
            rest, b = ops.matmul(b, u), None
    c = ops.matmul(ops.adjoint(u), y)
    w = c - ops.adjoint(c)
    if b is not None:
        hb = ops.matmul(p.h, b)
        w = w + (hb - ops.adjoint(hb))
    omega = Equation("polar", x.shape[-2]).solve(p.h, w)
    d = ops.matmul(u, omega if b is None else b + omega)
    if x.shape[-2] > x.shape[-1]:
        d = d + _outside(p, y, c)
    d = d if rest is None else d + rest
    return ops.adjoint(d) if p.wide else d


# -- what a library's own differentiation asks for ---------------------------------------------


def differentiable_schedule(
    apply: Callable[[Array], Array],
    x: Array,
    schedule: Schedule,
    *,
    normalisation: str,
    form: str,
    restarts: Sequence[int],
) -> Array:
    """``apply(x)``, for which the library that records it finds the rules of a schedule."""
    rule = functools.partial(
        schedule_rule,
        schedule=schedule,
        normalisation=normalisation,
        form=form,
        restarts=restarts,
    )

    def along(primals: Any, _: Any, e: Any, *, gradient: bool) -> tuple[Array]:
        return (rule(primals[0], e[0], gradient=gradient),)

    jvp, vjp = (functools.partial(along, gradient=g) for g in (False, True))
    (q,) = ops_of(x).differentiable(lambda x: (apply(x),), jvp, vjp, (x,), keep=False)
    return q


def schedule_rule(x: Array, e: Array, **how: Any) -> Array:
    """:func:`schedule_derivative` in at least single precision, in the dtype of X."""
    wide = ops_of(x).at_least_single(x)
    d = schedule_derivative(wide, ops_of(e).like(e, wide), **how)
    return ops_of(d).like(d, x)


def differentiable_unitary(
    apply: Callable[[Array], Array],
    a: Array,
    exact: Callable[[Array], Array],
    *,
    rotation: bool = False,
    regularization: float = 0.0,
) -> Array:
    """``apply(a)``, a unitary factor or rotation, for which the library that traces it finds rules.

    `exact` finds it in full precision where the one in half precision will not do.
    """
    kind = "rotation" if rotation else "polar"
    equation = Equation(kind, max(a.shape[-2:]), regularization)
    return _self_adjoint(apply, a, exact, functools.partial(unitary_derivative, equation=equation))


def differentiable_root(
    apply: Callable[[Array], Array], a: Array, exact: Callable[[Array], Array]
) -> Array:
    """``apply(a)``, a Hermitian square root, for which the library that records it finds rules."""
    return _self_adjoint(apply, a, exact, lambda _, h, e: root_derivative(h, e))


def differentiable_inverse_root(
    apply: Callable[[Array], Array], a: Array, exact: Callable[[Array], Array], p: int
) -> Array:
    """``apply(a)``, an inverse p-th root, for which the library that records it finds rules."""
    derivative = functools.partial(inverse_root_derivative, p=p)
    return _self_adjoint(apply, a, exact, derivative)


def _self_adjoint(
    apply: Callable[[Array], Array],
    a: Array,
    exact: Callable[[Array], Array],
    derivative: Callable[[Array, Array, Array], Array],
) -> Array:
    """``apply(a)``, whose derivative, at A and the result in a direction, is self-adjoint."""

    def rule(primals: Any, results: Any, e: Any) -> tuple[Array]:
        (a,), (e,) = primals, e
        x, f = _widened(a, results[0], exact)
        return (ops_of(a).like(derivative(x, f, ops_of(e).like(e, x)), a),)

    (f,) = ops_of(a).differentiable(lambda a: (apply(a),), rule, rule, (a,), keep=True)
    return f


def _widened(a: Array, f: Array, exact: Callable[[Array], Array]) -> tuple[Array, Array]:
    """A matrix and a function of it, in at least single precision."""
    x = ops_of(a).at_least_single(a)
    return x, f if x.dtype == a.dtype else exact(x)


def differentiable_polar(
    apply: Callable[[Array], PolarResult],
    a: Array,
    exact: Callable[[Array], Array],
    side: str,
    refuse: Callable[[], None],
) -> PolarResult:
    """``apply(a)``, for whose factors the library that records it finds the rules.

    `refuse` raises where the derivative of the polar factor is not that of the result.
    """
    found: list[PolarResult] = []

    def factors(a: Array) -> tuple[Array, ...]:
        r = apply(a)
        found.append(r)
        if r.status is not None:
            return r.unitary, r.hermitian
        # Figures that belong to the trace have to leave it as results, of which rules need floats.
        return (r.unitary, r.hermitian, *(_as_float(x, r) for x in _figures(r)))

    u, h, *rest = ops_of(a).differentiable(
        factors, *_polar_rules(exact, side, refuse), (a,), keep=True
    )
    r = dataclasses.replace(found[-1], unitary=u, hermitian=h)
    if not rest:
        return r
    xp = ops_of(a).xp
    rest = [xp.astype(x, y.dtype) for x, y in zip(rest, _figures(r), strict=True)]
    names = dict(zip(_FIGURES, rest, strict=False))
    return dataclasses.replace(r, **names, condition_bounds=(rest[-2], rest[-1]))


# Arrays, where a library hides the entries; `condition_bounds` is a pair of them.
_FIGURES = ("converged", "iterations", "matmuls", "orthogonality", "backward_error", "rank")


def _figures(r: PolarResult) -> list[Array]:
    return [*(getattr(r, name) for name in _FIGURES), *r.condition_bounds]


def _as_float(x: Array, r: PolarResult) -> Array:
    return ops_of(x).xp.astype(x, r.orthogonality.dtype)


def _polar_rules(
    exact: Callable[[Array], Array], side: str, refuse: Callable[[], None]
) -> tuple[Callable, Callable]:
    def jvp(primals: Any, results: Any, tangents: Any) -> tuple[Array, ...]:
        refuse()
        (a,), (e,) = primals, tangents
        x, u = _widened(a, results[0], exact)
        moved = polar_tangents(x, u, ops_of(e).like(e, x), side=side)
        zeros = (ops_of(x).xp.zeros_like(x) for x in results[2:])
        return (*(ops_of(d).like(d, a) for d in moved), *zeros)

    def vjp(primals: Any, results: Any, gradients: Any) -> tuple[Array]:
        (a,) = primals
        x, u = _widened(a, results[0], exact)
        wide = (None if g is None else ops_of(g).like(g, x) for g in gradients)
        d = polar_gradient(x, u, *wide, side=side)
        return (ops_of(d).like(d, a),)

    return jvp, vjp
