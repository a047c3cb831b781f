"""Lyapunov equations of matrices that are not Hermitian, by matrix products on every library."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import constant
from polarlib.arrays.library import astype_like, format_name
from polarlib.arrays.ops import Ops, ops_of

Array = Any
Refusal = Callable[[np.ndarray, tuple[int, ...]], NoReturn]

# A real part near rounding takes as many steps as its reciprocal has bits, and six more.
SPARE_STEPS = 8
# The residual that rounding leaves, in epsilons of the norms of its terms; measured: 0.2 to 2.5.
RESIDUAL = 4.0
# Refinement ends where it takes off less than half of the residual.
PROGRESS = 0.5


def positive_lyapunov(m: Array, refuse: Refusal) -> Array:
    """Return S of ``M S + S M^H = 2 I``, which is Hermitian and positive definite, checked.

    Parameters
    ----------
    m : array, shape (..., n, n)
        In at least single precision, n > 0. Every eigenvalue must have a positive real part.
    refuse : callable
        ``refuse(m, index)`` raises for a matrix, on the host, of which S is not shown to exist.

    Returns
    -------
    array, shape (..., n, n)
        With derivatives of every order. NaN where S is not shown to exist and nothing can be read.

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
    flaw = constant(ops, functools.partial(_flaw, refuse=refuse), m, s)
    return s + astype_like(flaw, s, ops)


def by_doubling(a: Array, _: Array, w: Array) -> Array:
    """Return X of ``A X + X A^H = W``; all eigenvalues of A must have positive real parts.

    With the Cayley transform ``C = (A + c I)^-1 (A - c I)``, c > 0, of spectral radius below 1,

        X = sum_k C^k X_0 C^(k H),    X_0 = 2 c (A + c I)^-1 W (A + c I)^-H,

    whose partial sums are doubled: R. A. Smith, SIAM J. Appl. Math. 16 (1968) 198-201. For W > 0
    the terms are positive semidefinite: nothing cancels, and no partial sum exceeds X. Powers of C
    amplify its rounding where the eigenvalues of A are near the imaginary axis: the residual is
    then solved for in the same way, until it is at rounding.

    Cost: one inverse, 4 products, and 3 in each step: about 3 for eigenvalues near c, and one more
    each time that their least real part is halved. Without a solution it ends, with another matrix.
    """
    ops = ops_of(a).functional()
    xp, eps = ops.xp, format_of(format_name(a)).epsilon
    # Where eigenvalues are near the mean of their absolute values, from above.
    c = ops.binary_scale(ops.frobenius(a) / math.sqrt(a.shape[-1]))
    eye = ops.eye(a.shape[-1], a)
    inverse = ops.inverse(a + eye * c)
    cayley = eye - inverse * (2.0 * c)

    def left(x: Array) -> tuple[Array, Array, Array]:
        """Residual, its norm, and that of terms that cancel in it."""
        r = w - ops.matmul(a, x) - ops.matmul(x, ops.adjoint(a))
        return r, ops.frobenius(r), ops.frobenius(a) * ops.frobenius(x)

    def going(state: tuple[Array, ...]) -> Array:
        _, _, norm, size, before = state
        return xp.any((norm > RESIDUAL * eps * size) & (norm < PROGRESS * before))

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        x, r, before, _, _ = state
        x = x + _doubled(cayley, product(r), eps, ops)
        return x, *left(x), before

    def product(r: Array) -> Array:
        return _sandwich(inverse, r, ops) * (2.0 * c)

    x = _doubled(cayley, product(w), eps, ops)
    start = left(x)
    return ops.repeat_while(going, step, (x, *start, xp.full_like(start[1], math.inf)))[0]


def _doubled(c: Array, x: Array, eps: float, ops: Ops) -> Array:
    """Return ``sum_k C^k X C^(k H)``."""
    most = SPARE_STEPS - math.log2(eps)

    def going(state: tuple[Array, ...]) -> Array:
        # What is left of the sum is at most the square of this norm times the sum so far.
        _, _, norm, count = state
        return ops.xp.any((norm * norm > eps / 2) & (count < most))

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        c, x, _, count = state
        x, c = x + _sandwich(c, x, ops), ops.matmul(c, c)
        return c, x, ops.frobenius(c), count + 1.0

    norm = ops.frobenius(c)
    # A stack in both, as a loop of JAX asks.
    return ops.repeat_while(going, step, (c + x * 0.0, x + c * 0.0, norm, norm * 0.0))[1]


def _sandwich(c: Array, x: Array, ops: Ops) -> Array:
    return ops.matmul(ops.matmul(c, x), ops.adjoint(c))


def _flaw(m: Array, s: Array, *, refuse: Refusal) -> Array:
    """0 where S is shown to solve ``M S + S M^H = 2 I``; else an error, NaN where hidden."""
    ops = ops_of(m)
    xp, n = ops.xp, m.shape[-1]
    half = ops.matmul(m, s)
    residual = ops.frobenius(ops.add_diagonal(half + ops.adjoint(half), -2.0))
    noise = n * format_of(format_name(m)).epsilon * ops.frobenius(m) * ops.frobenius(s)
    definite = xp.isfinite(ops.factor_peak(s, residual * 0.0))
    good = definite & (residual <= max(100 / n, 1) * noise) & (residual + noise < 1)
    if not ops.is_abstract(good) and not bool(xp.all(good)):
        poor = np.argwhere(ops.to_host(~good)[..., 0, 0])[0]
        index = tuple(int(i) for i in poor)
        refuse(ops.to_host(m)[index], index)
    return xp.where(good, xp.zeros_like(residual), xp.full_like(residual, math.nan))
