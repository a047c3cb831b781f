"""The equation ``N X + X N = W`` for general N, which derivatives of roots and signs solve.

The square root X of A: ``X dX + dX X = dA``. The sign S of A, with N = S A, whose eigenvalues have
positive real parts (N^2 = A^2): ``N dS + dS N = dA - S dA S``. Both follow from differentiating
what defines them, X^2 = A, and S^2 = I with S A = A S; C. S. Kenney and A. J. Laub, IEEE Trans.
Automat. Control 40 (1995) 1330-1348; N. J. Higham, Functions of Matrices (SIAM, 2008), chapters 5
and 6.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polarlib.arrays.entered import enter
from polarlib.arrays.formats import format_of
from polarlib.arrays.library import astype_like, format_name, on_cpu
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.schur import has_schur, schur, triangular_sylvester
from polarlib.arrays.torch_autograd import is_batch_of_gradients

Array = Any

# Relative distance from the limit at which scaling ends and convergence is quadratic, as in
# Newton's iteration for the polar factor.
SCALE_ABOVE = 1e-2
# Of ten and fewer nearly all end; one more for each factor of two by which an eigenvalue is nearer
# to the imaginary axis than to the others.
MOST_STEPS = 80


def solve(n: Array, w: Array) -> Array:
    """Solve ``N X + X N = W`` for N whose eigenvalues have positive real parts.

    The library can differentiate the solution any number of times. On the host by a Schur
    decomposition, elsewhere and under traces by Newton's iteration for the sign of
    ``[[N, W], [0, -N]]``, which is ``[[I, 2 X], [0, -I]]``: J. D. Roberts, Int. J. Control 32
    (1980) 677-687.

    Parameters
    ----------
    n, w : array, shape (..., n, n)
        In at least single precision; n scaled to entries of about 1.
    """
    ops = ops_of(w).functional()
    return ops.sylvester(n, w, _solution)


def computes_on_host(x: Array, ops: Ops) -> bool:
    """Whether entries can be read without a transfer, and LAPACK is at hand."""
    return has_schur() and not ops.is_abstract(x) and on_cpu(x)


def _solution(n: Array, w: Array) -> Array:
    ops = ops_of(n)
    readable = not (ops.is_abstract(w) or is_batch_of_gradients(w) or is_batch_of_gradients(n))
    if readable and computes_on_host(n, ops):
        found = _by_schur(ops.to_host(n), ops.to_host(w))
        return astype_like(ops.from_host(found, w), w, ops)
    return by_products(n, w, ops)


def _by_schur(n: np.ndarray, w: np.ndarray) -> np.ndarray:
    kind = np.result_type(n, w)
    n, w = np.broadcast_arrays(n.astype(kind), w.astype(kind))
    shape, size = w.shape, w.shape[-1]
    n, w = n.reshape(-1, size, size), w.reshape(-1, size, size)
    x = np.full(w.shape, math.nan, kind)
    known = np.isfinite(n).all(axis=(1, 2)) & np.isfinite(w).all(axis=(1, 2))
    t, q, _, found = schur(np.where(known[:, None, None], n, 0))
    for i in np.flatnonzero(found & known):
        h = q[i].conj().T
        core = np.array(h @ w[i] @ q[i], order="F")
        x[i] = q[i] @ triangular_sylvester(t[i], t[i], core) @ h
    return x.reshape(shape)


def by_products(n: Array, w: Array, ops: Ops) -> Array:
    """Solve the equation without a Schur decomposition; NaN where the iteration does not end."""
    given = w
    if ops._has_double(n):
        n, w = ops.cast(n, "float64"), ops.cast(w, "float64")
    xp, eye = ops.xp, ops.eye(n.shape[-1], n)
    near = math.sqrt(format_of(format_name(n)).epsilon)

    def distance(n: Array) -> Array:
        return ops.frobenius(n - eye)

    def step(state: Any) -> Any:
        n, w, _, k = state
        before, inverse = distance(n), ops.inverse(n)
        mu = scaling(n, inverse, before, ops)
        w = w * mu + ops.matmul(ops.matmul(inverse, w), inverse) / mu
        return (n * mu + inverse / mu) * 0.5, w * 0.5, before, k + 1

    def going(state: Any) -> Array:
        return xp.any(state[2] > near) & (state[3] < MOST_STEPS)

    # Of the distance before a step, quadratic convergence leaves the square.
    state = n, w, distance(n) * 0 + 1, 0
    _, x, left, _ = ops.repeat_while(going, step, state)
    x = xp.where(left <= near, x * 0.5, xp.full_like(x, math.nan))
    return astype_like(x, given, ops)


def scaling(x: Array, inverse: Array, distance: Array, ops: Ops) -> Array:
    """Factor of X that makes the norms of both terms of Newton's step equal, 1 near the end."""
    ratio = ops.xp.sqrt(ops.frobenius(inverse) / ops.frobenius(x))
    return ops.xp.where(distance > SCALE_ABOVE, ratio, ops.xp.ones_like(ratio))


# -- rules -----------------------------------------------------------------------------------------


def sqrtm_derivative(x: Array, e: Array, *, gradient: bool) -> Array:
    """Derivative of the square root X of a matrix in a direction, or against a gradient."""
    ops, x, e = _scaled(x, e)
    return solve(ops.adjoint(x) if gradient else x, e)


def signm_derivative(a: Array, s: Array, e: Array, *, gradient: bool) -> Array:
    """Derivative of the sign S of A in a direction, or against a gradient."""
    ops, a, e = _scaled(a, e)
    n = ops.matmul(s, a)
    if not gradient:
        return solve(n, e - ops.matmul(ops.matmul(s, e), s))
    y, s = solve(ops.adjoint(n), e), ops.adjoint(s)
    return y - ops.matmul(ops.matmul(s, y), s)


def _scaled(x: Array, e: Array) -> tuple[Ops, Array, Array]:
    """X with entries of about 1, and E divided by the same."""
    at = enter(x, ops=ops_of(x).functional(), look="never")
    return at.ops, at.x, at.alike(e)
