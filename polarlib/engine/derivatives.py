"""Derivatives of the polar factors and of schedules, in a direction and against a gradient.

Both are generalised matrix functions ``U diag(f(sigma)) V^H``. Their derivative is self-adjoint in
the inner product ``Re tr(X^H Y)``, so that one function computes both. Sources and costs are in
docs/evidence/derivatives.md.

The polar factor, A = U H tall and of full rank. With C = U^H E and the solution Omega of
``H Omega + Omega H = C - C^H``,

    dU = U Omega + (E - U C) H^-1,    dH = Hermitian part of C - Omega H.

For gradients Y with respect to U and B (Hermitian part) with respect to H, with C = U^H Y,

    gradient = U (B + Omega) + (Y - U C) H^-1,    H Omega + Omega H = C - C^H + H B - B H.

The nearest rotation R of a square real matrix has the same rule with ``H = R^T A``, symmetric, one
of whose eigenvalues may be negative. The derivative of the square root of a positive definite
matrix solves ``H dH + dH H = dA``. For the inverse p-th root p - 1 such equations are solved.

The derivative of a schedule is computed by the engine on dual numbers, pairs of matrices, from the
input alone. The normalisation is not a matrix function for most norms and has its own rule.

All rules consist of U, of products and of solutions of this equation. The derivative of a solution
is another solution, so that all derivatives of higher order exist.
"""

from __future__ import annotations

import cmath
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

from polarlib._schedules.schedule import Schedule
from polarlib.arrays.dual import Dual, DualOps
from polarlib.arrays.entered import Entered, enter
from polarlib.arrays.functions import as_complex
from polarlib.arrays.library import is_complex
from polarlib.arrays.ops import Diagonal, Ops, ops_of
from polarlib.engine.adaptive import Adaptive, tail_and_growth
from polarlib.engine.coefficients import cut, summed_to, together
from polarlib.engine.equation import Equation
from polarlib.engine.iterate import Steps, iterate
from polarlib.engine.normalise import BOUNDS, normalise

Array = Any
Linear = Callable[[Array], Array]


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
    """Return the derivative of a schedule with its normalisation at X, applied to E.

    Parameters
    ----------
    x, e : array, shape (..., m, n)
        In at least single precision; of one shape and dtype.
    schedule : Schedule
        The steps.
    normalisation : str
        As in :func:`polarlib.engine.normalise.normalise`.
    form, restarts
        As in :func:`polarlib.engine.iterate.iterate`; not used for an adaptive schedule.
    gradient : bool
        Whether E is a gradient with respect to the result of the schedule. The return value is then
        the gradient with respect to X. Otherwise E is a direction of X.

    Returns
    -------
    array, shape (..., m, n)
        Zero where there is no derivative, since the norm of the matrix or of a column is zero.
    """
    ops = ops_of(x).functional()
    wide = x.shape[-2] < x.shape[-1]
    if wide:
        x, e = ops.adjoint(x), ops.adjoint(e)

    def along(y: Array, e: Array) -> Array:
        if isinstance(schedule, Adaptive):
            return _along_adaptive(y, e, schedule, ops, gradient=gradient)
        return _along(y, e, schedule.steps, ops, form=form, restarts=restarts)

    if normalisation == "none":
        d = along(x, e)
    else:
        y, before, after = _normalisation(x, ops, normalisation, schedule.input_safety)
        d = after(along(y, e)) if gradient else along(y, before(e))
    return ops.adjoint(d) if wide else d


def _along(y: Array, e: Array, steps: Steps, ops: Ops, **how: Any) -> Array:
    """Return the derivative of steps at Y applied to a direction or a gradient (self-adjoint)."""
    pair, dual = cast(Any, Dual(y, e)), cast(Ops, DualOps(ops))
    return cast(Dual, iterate(pair, steps, dual, **how)).tangent


def _along_adaptive(y: Array, e: Array, s: Adaptive, ops: Ops, *, gradient: bool) -> Array:
    """Return the derivative of an adaptive schedule, including that of its coefficients.

    The later coefficients depend on one number w of the iterate X after the head. The derivative in
    a direction W of X is ``D W + F <P, W>``, with D the derivative for constant steps, P the
    gradient of w, and F the derivative of the result in w. For a gradient E it is
    ``D E + P <F, E>``.
    """
    head = s.steps[: s.head]
    x = iterate(y, head, ops)
    steps, slopes, p = tail_and_growth(x, s, ops)
    f = _moved_by(x, steps, slopes, ops)
    if gradient:
        inner = _along(x, e, steps, ops)
        return _along(y, inner + p * _inner(f, e, ops), head, ops)
    e = _along(y, e, head, ops)
    return _along(x, e, steps, ops) + f * _inner(p, e, ops)


def _moved_by(x: Array, steps: Steps, slopes: Steps, ops: Ops) -> Array:
    """Return the derivative of steps at X in their coefficients, in the direction `slopes`."""
    d = iterate(x, slopes[:1], ops)
    for before, step, slope in zip(steps, steps[1:], slopes[1:], strict=False):
        x = iterate(x, [before], ops)
        d = _along(x, d, [step], ops) + iterate(x, [slope], ops)
    return d


# -- steps with an array of coefficients C: derivatives in both arguments ---------------------


def coefficients_derivative(x: Array, c: Array, e: Array, d: Array) -> Array:
    """Return the derivative of normalised steps in directions E of X and D of C.

    The normalisation is by the Frobenius norm. Each step ``Y = sum_i c_i X G^i`` is linear in its
    coefficients. Hence ``dY`` is the derivative for constant coefficients plus the step with
    coefficients D. Arguments are in one format, at least single; X and E of shape (..., m, n), C
    and D as in :func:`polarlib.engine.coefficients.cut`.
    """
    ops = ops_of(x).functional()
    wide = x.shape[-2] < x.shape[-1]
    y, before, _ = _normalisation(ops.adjoint(x) if wide else x, ops, "frobenius", 1.0)
    e = before(ops.adjoint(e) if wide else e)
    (y, c), (e, d) = together(y, c, ops), together(e, d, ops)
    for step, slope in zip(cut(c, y.ndim), cut(d, y.ndim), strict=True):
        pair, dual = cast(Any, Dual(y, e)), cast(Ops, DualOps(ops))
        moved = cast(Dual, iterate(pair, [step], dual))
        y, e = moved.value, moved.tangent + iterate(y, [slope], ops)
    return ops.adjoint(e) if wide else e


def coefficients_gradient(x: Array, c: Array, e: Array) -> tuple[Array, Array]:
    """Return the gradients with respect to X and C, from that with respect to the result.

    The steps are applied once and their iterates kept. From the last step backwards, ``<X G^i, E>``
    is the gradient with respect to c_i, and the derivative of the step maps E to the gradient with
    respect to its X.
    """
    ops = ops_of(x).functional()
    wide = x.shape[-2] < x.shape[-1]
    y, _, after = _normalisation(ops.adjoint(x) if wide else x, ops, "frobenius", 1.0)
    shape, shape_of_c = y.shape, c.shape
    y, c = together(y, c, ops)
    e = ops.adjoint(e) if wide else e
    steps, rows = cut(c, y.ndim), []
    iterates = [y]
    for step in steps[:-1]:
        iterates.append(iterate(iterates[-1], [step], ops))
    for x, step in zip(reversed(iterates), reversed(steps), strict=True):
        rows.append(_of_coefficients(x, e, len(step), ops))
        e = _along(x, e, [step], ops)
    e = after(summed_to(e, shape, ops))
    d = ops.xp.concat(rows[::-1], axis=-2)
    return ops.adjoint(e) if wide else e, summed_to(d, shape_of_c, ops)


def _of_coefficients(x: Array, e: Array, k: int, ops: Ops) -> Array:
    """Return the inner products of ``X G^i`` for i < k with E, shape (..., 1, k)."""
    inner = [_inner(x, e, ops)]
    if k > 1:
        g = power = ops.gram(x)
        w = ops.matmul(ops.adjoint(x), e)
        while len(inner) < k:
            inner.append(_inner(power, w, ops))
            power = ops.matmul(power, g) if len(inner) < k else power
    return ops.xp.concat(inner, axis=-1)


def _normalisation(x: Array, ops: Ops, kind: str, safety: float) -> tuple[Array, Linear, Linear]:
    """Return the normalised matrix, the derivative of the normalisation, and its adjoint.

    With Y = X / c and a multiple D of the gradient of the norm, ``dc / c = <D, E> / <D, X>``, since
    norms are homogeneous.
    """
    xp = ops.xp
    scale = ops.binary_scale(ops.max_abs(x))
    x = ops.divide(x, scale)  # so that no norm overflows
    y, _ = normalise(x, ops, kind, safety)
    growth_of = BOUNDS[kind].growth

    def norms(x: Array) -> Array:
        return ops.frobenius(x) if growth_of else xp.sqrt(_inner(x, x, ops, axis=-2))

    size = norms(x)
    lost = size == 0
    c = ops.divisor(size) / ops.divisor(norms(y))

    def divided(e: Array) -> Array:
        return xp.where(lost, xp.zeros_like(e), e / c)

    if growth_of is None:
        growth, adjoint = _growth_of_columns(x, y, ops)
        return (
            y,
            lambda e: ops.divide(divided(e) - growth(e), scale),
            lambda e: ops.divide(divided(e) - adjoint(e), scale),
        )
    d = growth_of(y * safety, ops)
    whole = ops.divisor(_inner(d, y, ops))

    def along(e: Array) -> Array:
        e = ops.divide(e, scale)
        return divided(e - y * (_inner(d, e, ops) / whole))

    def against(e: Array) -> Array:
        return ops.divide(divided(e - d * (_inner(y, e, ops) / whole)), scale)

    return y, along, against


def _growth_of_columns(x: Array, y: Array, ops: Ops) -> tuple[Linear, Linear]:
    """Return, for "aol", Y times the relative derivative of its norms, and the adjoint map."""
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


def _inner(a: Array, b: Array, ops: Ops, axis: int | tuple[int, int] = (-2, -1)) -> Array:
    """Return the real inner product ``Re sum(conj(a) b)``."""
    xp = ops.xp
    if is_complex(a):
        return _inner(xp.real(a), xp.real(b), ops, axis) + _inner(xp.imag(a), xp.imag(b), ops, axis)
    return xp.sum(a * b, axis=axis, keepdims=True)


def tall(a: Array) -> Entered:
    """Return the matrix, or its adjoint if m < n, over the power of two near its largest entry."""
    return enter(a, ops=ops_of(a).functional(), look="never", tall=True)


def _factors(a: Array, u: Array) -> tuple[Entered, Array, Array]:
    """Return the tall matrix and its factors U and H, from those of the given one."""
    p = tall(a)
    u = p.ops.adjoint(u) if p.wide else u
    return p, u, p.ops.hermitian_part(p.ops.matmul(p.ops.adjoint(u), p.x))


def _turn(ops: Ops, u: Array, h: Array, e: Array, equation: Equation) -> tuple[Array, Array, Array]:
    """Return ``C = U^H E``, Omega and dU for a scaled direction E."""
    c = ops.matmul(ops.adjoint(u), e)
    omega = equation.solve(h, c - ops.adjoint(c))
    return c, omega, _with_outside(ops.matmul(u, omega), u, h, e, c, ops)


def _with_outside(d: Array, u: Array, h: Array, e: Array, c: Array, ops: Ops) -> Array:
    """Add ``(E - U C) H^-1``, the part orthogonal to the columns of U; 0 if U is square."""
    if u.shape[-2] == u.shape[-1]:
        return d
    return d + ops.matmul(ops.gemm(u, c, e, alpha=-1.0, beta=1.0), ops.inverse(h))


def unitary_derivative(a: Array, u: Array, e: Array, equation: Equation) -> Array:
    """Return the derivative of the unitary factor, or rotation, for a direction or a gradient.

    It is self-adjoint, so that both cases agree. Parameters are those of :func:`polar_tangents`.
    """
    p, u, h = _factors(a, u)
    return p.leave(_turn(p.ops, u, h, p.alike(e), equation)[2])


def root_derivative(h: Array, e: Array) -> Array:
    """Return the derivative of the square root H of a Hermitian matrix, applied to E."""
    p = tall(h)
    e = p.ops.hermitian_part(p.alike(e))
    return p.ops.hermitian_part(Equation("root").solve(p.x, e))


def inverse_root_derivative(x: Array, f: Array, e: Array, p: int) -> Array:
    """Return the derivative of ``F = A^(-1/p)``, A positive definite, for a direction or gradient.

    With ``G = F^-1``: ``dF = -F dG F``, and ``sum_k G^k dG G^(p-1-k) = dA``. The polynomial
    ``sum_k x^k y^(p-1-k)`` is the product of ``x - w y`` over the roots of unity w other than 1, so
    that the solution is a sequence of solutions of ``G X - w X G = W``.
    """
    at = tall(x)
    ops, scale = at.ops, at.scale
    real = not is_complex(x)
    f = f * scale ** (1 / p)
    g = ops.hermitian_part(ops.inverse(f))
    dg = ops.hermitian_part(at.alike(e))
    if p > 2:
        g, dg = as_complex(g, ops), as_complex(dg, ops)
    for k in range(1, p):
        weight = 1.0 if 2 * k == p else -cmath.exp(2j * math.pi * k / p)
        dg = ops.lyapunov(g, dg, functools.partial(_weighted, weight=weight, real=real), weight)
    if real and p > 2:
        dg = ops.xp.real(dg)
    df = ops.matmul(ops.matmul(f, dg), f)
    return ops.hermitian_part(df) * -(scale ** (-1 / p))


def _weighted(h: Array, *, weight: complex, real: bool) -> Diagonal:
    """Return ``H X + c X H`` in the basis of the eigenvectors of H."""
    ops = ops_of(h).functional()
    s, v = ops.eigh(ops.xp.real(h) if is_complex(h) and real else h)
    if is_complex(h):
        s, v = as_complex(s, ops), as_complex(v, ops)
    return Diagonal(s[..., :, None] + weight * s[..., None, :], v)


def polar_tangents(a: Array, u: Array, e: Array, *, side: str = "right") -> tuple[Array, Array]:
    """Return the derivatives of both factors in a direction.

    Parameters
    ----------
    a, u, e : array, shape (..., m, n)
        Matrix, its unitary factor and the direction, in at least single precision.
    side : {"right", "left"}, optional
        Which Hermitian factor.

    Returns
    -------
    du, dh : array
        With the shapes of the factors.

    Raises
    ------
    ValueError
        For a rank-deficient matrix.
    """
    p, u, h = _factors(a, u)
    ops, x, e = p.ops, p.x, p.alike(e)
    c, omega, du = _turn(ops, u, h, e, Equation("polar", x.shape[-2]))
    if p.wide == (side == "left"):
        dh = c - ops.matmul(omega, h)
    else:  # the larger factor, X U^H
        dh = ops.matmul(e, ops.adjoint(u)) + ops.matmul(x, ops.adjoint(du))
    return p.leave(du), ops.hermitian_part(dh) * p.scale


def polar_gradient(
    a: Array, u: Array, y: Array | None, b: Array | None, *, side: str = "right"
) -> Array:
    """Return the gradient with respect to A, from gradients with respect to U and H.

    Parameters
    ----------
    a, u : array, shape (..., m, n)
        Matrix and its unitary factor, in at least single precision.
    y, b : array or None
        Gradients; at most one of them is None, which stands for zero.
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
    p, u, h = _factors(a, u)
    ops, x = p.ops, p.x
    y = x * 0.0 if y is None else p.alike(y)
    rest = None
    if b is not None:
        b = ops.hermitian_part(b)
        if p.wide != (side == "left"):  # the larger factor, X U^H
            y = y + ops.matmul(b, x)
            rest, b = ops.matmul(b, u), None
    c = ops.matmul(ops.adjoint(u), y)
    w = c - ops.adjoint(c)
    if b is not None:
        hb = ops.matmul(h, b)
        w = w + (hb - ops.adjoint(hb))
    omega = Equation("polar", x.shape[-2]).solve(h, w)
    d = _with_outside(ops.matmul(u, omega if b is None else b + omega), u, h, y, c, ops)
    return p.leave(d if rest is None else d + rest)
