"""The equation ``A X + X B = W`` for general matrices, for derivatives of roots and signs.

The derivative of the square root X of A solves ``X dX + dX X = dA``. For the sign S of A let
N = S A, whose eigenvalues have positive real parts (N^2 = A^2). The derivative of S solves
``N dS + dS N = dA - S dA S``. Both equations are derivatives of the definitions, X^2 = A, and
S^2 = I with S A = A S.

C. S. Kenney and A. J. Laub, IEEE Trans. Automat. Control 40 (1995) 1330-1348; N. J. Higham,
Functions of Matrices (SIAM, 2008), chapters 5 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
# Nearly all iterations end after at most ten steps. One more is needed per factor of two by which
# an eigenvalue is nearer to the imaginary axis than to the others.
MOST_STEPS = 80
# On the host inverses are tried first for stacks: smallest number of matrices, largest number of
# columns, largest number of steps, largest residual over n u (|A| + |B|) |X|. The attempt ends if
# after three steps half of the matrices are farther than HOPELESS from the identity.
STACK, SMALL, FEW_STEPS, CLOSE = 8, 32, 8, 0.5
HOPELESS = 2.0
NEAR = 2.0**-26
UNIT = 2.0**-53


def solve(a: Array, b: Array, w: Array) -> Array:
    """Solve ``A X + X B = W`` for A and B whose eigenvalues have positive real parts.

    The library can differentiate the solution any number of times. On the host the equation is
    solved by Schur decompositions (R. H. Bartels and G. W. Stewart, Comm. ACM 15 (1972) 820-826).
    Elsewhere and under traces Newton's iteration for the sign of ``[[A, W], [0, -B]]`` is used,
    which is ``[[I, 2 X], [0, -I]]`` (J. D. Roberts, Int. J. Control 32 (1980) 677-687). For stacks
    of small matrices the iteration is tried on the host too, since it takes a fraction of the time.

    Parameters
    ----------
    a, b, w : array, shape (..., n, n)
        In at least single precision; A and B scaled to entries of about 1. If B is the same array
        as A, half of the work is saved.
    """
    ops = ops_of(w).functional()
    if a is b:  # for derivatives, too, two of one array would be two
        return ops.sylvester(a, a, w, _of_one)
    return ops.sylvester(a, b, w, solution)


def _of_one(a: Array, _: Array, w: Array) -> Array:
    return solution(a, a, w)


def computes_on_host(x: Array, ops: Ops) -> bool:
    """Return whether entries can be read without a transfer, so that LAPACK can be used."""
    return has_schur() and not ops.is_abstract(x) and on_cpu(x)


def solution(a: Array, b: Array, w: Array) -> Array:
    """Return X as :func:`solve` does, without derivatives."""
    ops = ops_of(a)
    readable = not any(ops.is_abstract(x) or is_batch_of_gradients(x) for x in (a, b, w))
    if readable and computes_on_host(a, ops):
        left = ops.to_host(a)
        right = left if a is b else ops.to_host(b)
        return astype_like(ops.from_host(_on_host(left, right, ops.to_host(w)), w), w, ops)
    return by_products(a, b, w, ops)


def _on_host(a: np.ndarray, b: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return the solution in double precision; NaN for matrices that are not finite."""
    kind = np.result_type(a, b, w, np.float64)
    size, stack = w.shape[-1], np.broadcast_shapes(a.shape, b.shape, w.shape)

    def stacked(x: np.ndarray) -> np.ndarray:
        return np.broadcast_to(x.astype(kind), stack).reshape(-1, size, size)

    left, w = stacked(a), stacked(w)
    right = left if a is b else stacked(b)
    x = np.full(w.shape, math.nan, kind)
    todo = np.isfinite(left) & np.isfinite(right) & np.isfinite(w)
    rest = np.flatnonzero(todo.all(axis=(1, 2)))
    for solver in (_by_few_steps, _by_schur):
        if solver is _by_few_steps and (len(rest) < STACK or size > SMALL):
            continue
        p = left[rest]
        q = p if left is right else right[rest]
        x[rest], found = solver(p, q, w[rest])
        rest = rest[~found]
        if not len(rest):
            break
    return x.reshape(stack)


def _by_few_steps(a: Array, b: Array, w: Array) -> tuple[Array, Array]:
    """Return solutions by inverses and products, and which are as accurate as by Schur's form.

    The iteration is that of :func:`by_products`, with NumPy's functions for stacks.
    """
    with np.errstate(all="ignore"):
        try:
            x = _few_steps(a, b, w)
        except np.linalg.LinAlgError:  # a matrix of the stack is singular
            return w, np.zeros(len(w), bool)
        left = _norms(a @ x + x @ b - w)
        bound = CLOSE * a.shape[-1] * UNIT * (_norms(a) + _norms(b)) * _norms(x)
        return x, left <= bound


def _few_steps(a: Array, b: Array, w: Array) -> Array:
    eye = np.eye(a.shape[-1])
    one, turned = a is b, np.array_equal(b, _adjoints(a))
    left = np.full(len(a), math.inf)
    for k in range(FEW_STEPS):
        p = np.linalg.inv(a)
        q = p if one else _adjoints(p) if turned else np.linalg.inv(b)
        ratio = np.sqrt((_norms(p) + _norms(q)) / (_norms(a) + _norms(b)))
        mu = np.where(left > SCALE_ABOVE, ratio, 1.0)[:, None, None]
        half, other = 0.5 * mu, 0.5 / mu
        w = half * w + other * (p @ w @ q)
        a, before = half * a + other * p, left
        b = a if one else _adjoints(a) if turned else half * b + other * q
        left = np.maximum(_norms(a - eye), 0 if one or turned else _norms(b - eye))
        # Of the distance before a step, quadratic convergence leaves the square.
        if (before <= NEAR).all() or (k == 2 and np.median(left) > HOPELESS):
            break
    return 0.5 * w


def _norms(x: Array) -> Array:
    """Return the Frobenius norms of a stack."""
    return np.linalg.norm(x, axis=(1, 2))


def _adjoints(x: Array) -> Array:
    return x.conj().swapaxes(1, 2)


def _by_schur(a: Array, b: Array, w: Array) -> tuple[Array, Array]:
    """Return solutions by Schur decompositions, NaN where there are none, and True for all."""
    t, q, _, found = schur(a)
    s, p = t, q
    if a is not b:
        t, q, _, known = schur(b)
        found &= known
    x = np.full_like(w, math.nan)
    for i in np.flatnonzero(found):
        core = np.array(p[i].conj().T @ w[i] @ q[i], order="F")
        x[i] = p[i] @ triangular_sylvester(s[i], t[i], core) @ q[i].conj().T
    return x, np.ones(len(w), bool)


def by_products(a: Array, b: Array, w: Array, ops: Ops) -> Array:
    """Solve the equation by inverses and products; NaN where the iteration does not converge."""
    given, one = w, a is b
    if ops._has_double(a):
        a, w = ops.cast(a, "float64"), ops.cast(w, "float64")
        b = a if one else ops.cast(b, "float64")
    xp, eye = ops.xp, ops.eye(a.shape[-1], a)
    near = math.sqrt(format_of(format_name(a)).epsilon)

    def distance(pair: tuple[Array, ...]) -> Array:
        left, *right = (ops.frobenius(x - eye) for x in pair)
        return xp.maximum(left, right[0]) if right else left

    def step(state: Any) -> Any:
        pair, w, _, k = state
        before, inverses = distance(pair), tuple(ops.inverse(x) for x in pair)
        mu = scaling(pair, inverses, before, ops)
        w = w * mu + ops.matmul(ops.matmul(inverses[0], w), inverses[-1]) / mu
        pair = tuple((x * mu + y / mu) * 0.5 for x, y in zip(pair, inverses, strict=True))
        return pair, w * 0.5, before, k + 1

    def going(state: Any) -> Array:
        return xp.any(state[2] > near) & (state[3] < MOST_STEPS)

    # Of the distance before a step, quadratic convergence leaves the square.
    pair = (a,) if one else (a, b)
    state = pair, w, distance(pair) * 0 + 1, 0
    _, x, left, _ = ops.repeat_while(going, step, state)
    x = xp.where(left <= near, x * 0.5, xp.full_like(x, math.nan))
    return astype_like(x, given, ops)


def scaling(
    matrices: Sequence[Array], inverses: Sequence[Array], distance: Array, ops: Ops
) -> Array:
    """Return the factor that equalises the norms of both terms of a Newton step; 1 near the end."""
    upper, lower = (sum(map(ops.frobenius, x)) for x in (inverses, matrices))
    ratio = ops.xp.sqrt(upper / lower)
    return ops.xp.where(distance > SCALE_ABOVE, ratio, ops.xp.ones_like(ratio))


# -- rules -----------------------------------------------------------------------------------------


def sqrtm_derivative(x: Array, e: Array, *, gradient: bool) -> Array:
    """Return the derivative of the square root X of a matrix, for a direction or a gradient."""
    ops, x, e = _scaled(x, e)
    x = ops.adjoint(x) if gradient else x
    return solve(x, x, e)


def signm_derivative(a: Array, s: Array, e: Array, *, gradient: bool) -> Array:
    """Return the derivative of the sign S of A, for a direction or a gradient."""
    ops, a, e = _scaled(a, e)
    n = ops.matmul(s, a)
    if not gradient:
        return solve(n, n, e - ops.matmul(ops.matmul(s, e), s))
    n, s = ops.adjoint(n), ops.adjoint(s)
    y = solve(n, n, e)
    return y - ops.matmul(ops.matmul(s, y), s)


def _scaled(x: Array, e: Array) -> tuple[Ops, Array, Array]:
    """Return X scaled to entries of about 1, and E divided by the same scale."""
    at = enter(x, ops=ops_of(x).functional(), look="never")
    return at.ops, at.x, at.alike(e)
