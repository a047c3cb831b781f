"""QDWH: the QR-based dynamically weighted Halley iteration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from polarlib.formats import format_of
from polarlib.ops import Ops
from polarlib.result import Run

__all__ = ["qdwh", "resolvent", "scaled", "weights"]

Array = Any

# Above this c the Cholesky form loses backward stability (its error grows with c) and the QR form
# is used. Nakatsukasa and Higham (2013), section 5.
CHOLESKY_BELOW = 100.0
# Six suffice from l = 1e-16; the rest is for lower bounds that are loose by the noise in them.
MAX_ITERATIONS = 12


def weights(l: float) -> tuple[float, float, float]:
    """Halley weights a, b, c that are best for singular values in [l, 1].

    Y. Nakatsukasa, Z. Bai, F. Gygi, SIAM J. Matrix Anal. Appl. 31 (2010), equations (3.18)-(3.21).

    Examples
    --------
    >>> weights(1.0)
    (3.0, 1.0, 3.0)
    """
    d = (4 * (1 - l * l) / l**4) ** (1 / 3)
    root = math.sqrt(1 + d)
    a = root + 0.5 * math.sqrt(8 - 4 * d + 8 * (2 - l * l) / (l * l * root))
    b = (a - 1) ** 2 / 4
    return a, b, a + b - 1


def scaled(x: Array, ops: Ops) -> tuple[Array | None, Array, float]:
    """Reduce tall matrices to square ones and scale them to singular values in [l, 1].

    Returns
    -------
    q : array or None
        With orthonormal columns, what a tall `x` was reduced by.
    y : array, shape (..., n, n)
        ``x`` or its triangular factor, over an upper bound of its norm.
    l : float
        Certified lower bound up to rounding, the smallest of the stack; at least eps**3.
    """
    m, n = x.shape[-2:]
    xp = ops.xp
    eps = format_of(ops.format_name(x)).epsilon
    q, r = ops.qr(x)
    if m > n:
        x = r
    # Two bounds of the largest singular value, and ||R^-1||_F^-1, which is below the smallest.
    upper = xp.minimum(ops.frobenius(x), xp.sqrt(ops.norm_1(x) * ops.norm_inf(x)))
    upper = xp.where(upper == 0, xp.ones_like(upper), upper)
    inverse = ops.solve_lower(ops.adjoint(r), xp.broadcast_to(ops.eye(n, x), r.shape))
    ratio = 1 / (ops.frobenius(inverse) * upper)
    # One l serves a whole stack: the smallest. NaN (singular R) compares false. Far below the noise
    # there is nothing to lose: an l of 1e-47 costs one iteration more than 1e-16.
    ratio = xp.where(ratio > eps**3, ratio, xp.full_like(ratio, eps**3))
    return (q if m > n else None), ops.divide(x, upper), min(1.0, -ops.read(-ratio))


def resolvent(x: Array, c: float, weight: float, ops: Ops, *, by_qr: bool) -> Array:
    """Return ``weight X (I + c X^H X)^-1``, by QR of a stack or by Cholesky factorisation.

    The condition number of ``I + c X^H X`` should be below `CHOLESKY_BELOW` for the latter.
    """
    n = x.shape[-1]
    if by_qr:
        eye = ops.eye(n, x)
        stack = ops.xp.concat([math.sqrt(c) * x, ops.xp.broadcast_to(eye, x.shape)], axis=-2)
        both, _ = ops.qr(stack)
        q1, q2 = both[..., :n, :], both[..., n:, :]
        return ops.matmul(q1, ops.adjoint(q2)) * (weight / math.sqrt(c))
    z = ops.add_diagonal(ops.gram(x) * c, 1.0)
    factor = ops.cholesky(z)
    y = ops.solve_lower(factor, ops.adjoint(x))
    y = ops.solve_lower(factor, y, adjoint=True)
    return ops.adjoint(y) * weight


def qdwh(
    x: Array, ops: Ops, *, tol: float, callback: Callable[[int, Array], None] | None = None
) -> tuple[Array, Run]:
    """Dynamically weighted Halley iteration by QR and Cholesky factorisations.

    Computes ``X <- X (a I + b X^H X)(I + c X^H X)^-1`` with weights from a certified lower bound l
    of the singular values: at most 6 iterations for condition numbers to 1e16, cubic convergence.
    Cost: one QR for the bound (and for tall matrices the reduction to n x n); then QR of a 2n x n
    stack and one product while c > 100, a Gram product, a Cholesky factorisation and two triangular
    solves after that. Backward stable. Singular values that are exactly zero stay zero: the result
    is then a partial isometry.

    Y. Nakatsukasa, Z. Bai, F. Gygi (2010); Y. Nakatsukasa, N. J. Higham, SIAM J. Sci. Comput. 35
    (2013) A1325-A1349, equations (5.2)-(5.4).
    """
    n = x.shape[-1]
    eps = format_of(ops.format_name(x)).epsilon
    q, x, l = scaled(x, ops)
    changes: list[float] = []
    matmuls = 0
    while len(changes) < MAX_ITERATIONS:
        a, b, c = weights(l)
        last = x
        correction = resolvent(x, c, a - b / c, ops, by_qr=c > CHOLESKY_BELOW)
        matmuls += 1
        x = x * (b / c) + correction
        l = min(1.0, l * (a + b * l * l) / (1 + c * l * l))
        change = ops.read(ops.frobenius(x - last)) / math.sqrt(n)
        changes.append(change)
        if callback is not None:
            callback(len(changes), x if q is None else ops.matmul(q, x))
        # Cubic convergence: after a change of (5 eps)^(1/3) the next would be below 5 eps.
        converged = abs(1 - l) <= 5 * eps and change <= (5 * eps) ** (1 / 3)
        if converged or not math.isfinite(change):
            break
    else:
        converged = False
    if q is not None:
        x = ops.matmul(q, x)
        matmuls += 1
    return x, Run(len(changes), matmuls, converged, tuple(changes))
