"""Lyapunov equations of matrices that are not Hermitian, by matrix products on every library."""

from __future__ import annotations

import math
from typing import Any

from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import constant
from polarlib.arrays.library import astype_like, format_name
from polarlib.arrays.ops import ops_of

Array = Any

# A real part near rounding takes as many steps as its reciprocal has bits, and six more.
SPARE_STEPS = 8


def positive_lyapunov(m: Array) -> tuple[Array, Array]:
    """Return S of ``M S + S M^H = 2 I``, Hermitian, and the size of its errors, checked.

    Parameters
    ----------
    m : array, shape (..., n, n)
        In at least single precision, n > 0. Every eigenvalue must have a positive real part.

    Returns
    -------
    s : array, shape (..., n, n)
        Positive definite. It has derivatives of every order. NaN where it is not shown to be the
        solution.
    shown : array, shape (..., 1, 1)
        0 where the solution is shown to exist, NaN elsewhere.

    Notes
    -----
    The check does not share the faults of the solution: if S is positive definite and
    ``M S + S M^H`` differs from 2 I by less than 1, rounding included, all eigenvalues of M have
    positive real parts, by Lyapunov's theorem, and S is the solution for a right-hand side that
    near to 2 I.
    """
    ops = ops_of(m).functional(m)
    right = ops.add_diagonal(m * 0.0, 2.0)
    s = ops.hermitian_part(ops.sylvester(m, ops.adjoint(m), right, by_doubling))
    shown = constant(ops, _shown, m, s)
    return s + astype_like(shown, s, ops), shown


def by_doubling(a: Array, _: Array, w: Array) -> Array:
    """Return X of ``A X + X A^H = W``; all eigenvalues of A must have positive real parts.

    With the Cayley transform ``C = (A + c I)^-1 (A - c I)``, c > 0, of spectral radius below 1,

        X = sum_k C^k X_0 C^(k H),    X_0 = 2 c (A + c I)^-1 W (A + c I)^-H,

    whose partial sums are doubled: R. A. Smith, SIAM J. Appl. Math. 16 (1968) 198-201. For W > 0
    the terms are positive semidefinite: nothing cancels, and no partial sum exceeds X. Cost: one
    inverse, 2 products, and 3 in each step: about 5 for eigenvalues near c, and one more each time
    that their least real part is halved. Otherwise it stops without a solution.
    """
    ops = ops_of(a).functional()
    xp = ops.xp
    # Where eigenvalues are near the mean of their absolute values, from above.
    c = ops.binary_scale(ops.frobenius(a) / math.sqrt(a.shape[-1]))
    eye = ops.eye(a.shape[-1], a)
    inverse = ops.inverse(a + eye * c)
    unit = format_of(format_name(a)).unit_roundoff
    most = -math.log2(unit) + SPARE_STEPS

    def product(p: Array, x: Array) -> Array:
        return ops.matmul(ops.matmul(p, x), ops.adjoint(p))

    def going(state: tuple[Array, ...]) -> Array:
        # The sum that is left is at most the square of this norm times that so far.
        _, _, norm, count = state
        return xp.any((norm * norm > unit) & (count < most))

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        p, x, _, count = state
        x = x + product(p, x)
        p = ops.matmul(p, p)
        return p, x, ops.frobenius(p), count + 1.0

    p = eye - inverse * (2.0 * c)
    x = product(inverse, w) * (2.0 * c)
    norm = ops.frobenius(p)
    # In the shape and kind of array that a step leaves, as loops of JAX ask.
    x = x + p * 0.0
    return ops.repeat_while(going, step, (p, x, norm, norm * 0.0))[1]


def _shown(m: Array, s: Array) -> Array:
    """0 where S is shown to solve ``M S + S M^H = 2 I`` for M with a solution, NaN elsewhere."""
    ops = ops_of(m)
    half = ops.matmul(m, s)
    residual = ops.frobenius(ops.add_diagonal(half + ops.adjoint(half), -2.0))
    n, eps = m.shape[-1], format_of(format_name(m)).epsilon
    size = ops.frobenius(m) * ops.frobenius(s) * eps
    definite = ops.xp.isfinite(ops.factor_peak(s, residual * 0.0))
    good = definite & (residual <= max(100, n) * size) & (residual + n * size < 1)
    return ops.xp.where(good, ops.xp.zeros_like(residual), ops.xp.full_like(residual, math.nan))
