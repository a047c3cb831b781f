"""The Lyapunov equation ``M S + S M^H = 2 I`` for general M, with a check that S exists."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import constant
from polarlib.arrays.library import astype_like, format_name
from polarlib.arrays.ops import ops_of
from polarlib.engine.sylvester import solve

Array = Any
Refusal = Callable[[np.ndarray, tuple[int, ...]], NoReturn]


def positive_lyapunov(m: Array, refuse: Refusal) -> Array:
    """Return S of ``M S + S M^H = 2 I``, which is Hermitian and positive definite, checked.

    Parameters
    ----------
    m : array, shape (..., n, n)
        In at least single precision, n > 0. Every eigenvalue must have a positive real part.
    refuse : callable
        ``refuse(m, index)`` raises the error for a matrix, on the host, that fails the check.

    Returns
    -------
    array, shape (..., n, n)
        S, with derivatives of every order. Under a trace NaN where the check fails.

    Notes
    -----
    The check does not depend on how S was computed. If S is positive definite and ``M S + S M^H``
    differs from 2 I by less than 1, including rounding, all eigenvalues of M have positive real
    parts by Lyapunov's theorem. S is then the solution for a nearby right-hand side.
    """
    ops = ops_of(m).functional(m)
    right = ops.add_diagonal(m * 0.0, 2.0)
    s = ops.hermitian_part(solve(m, ops.adjoint(m), right))
    flaw = constant(ops, functools.partial(_flaw, refuse=refuse), m, s)
    return s + astype_like(flaw, s, ops)


def _flaw(m: Array, s: Array, *, refuse: Refusal) -> Array:
    """Return 0 if S passes the check; otherwise raise an error, or return NaN under a trace."""
    ops = ops_of(m)
    xp, n = ops.xp, m.shape[-1]
    half = ops.matmul(m, s)
    residual = ops.frobenius(ops.add_diagonal(half + ops.adjoint(half), -2.0))
    noise = n * format_of(format_name(m)).epsilon * ops.frobenius(m) * ops.frobenius(s)
    definite = xp.isfinite(ops.factor_max_abs(s, residual * 0.0))
    good = definite & (residual <= max(100 / n, 1) * noise) & (residual + noise < 1)
    if not ops.is_abstract(good) and not bool(xp.all(good)):
        poor = np.argwhere(ops.to_host(~good)[..., 0, 0])[0]
        index = tuple(int(i) for i in poor)
        refuse(ops.to_host(m)[index], index)
    return xp.where(good, xp.zeros_like(residual), xp.full_like(residual, math.nan))
