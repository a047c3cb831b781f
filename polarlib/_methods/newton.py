"""The scaled Newton iteration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from polarlib.formats import format_of
from polarlib.ops import Ops
from polarlib.result import Run

__all__ = ["newton"]

Array = Any

# Scaling ends, and quadratic convergence begins, below this relative change. Higham (1986).
SCALE_ABOVE = 1e-2
# Nine iterations suffice at condition number 1e16; slack for spectra that defeat the estimate.
MAX_ITERATIONS = 30


def newton(
    x: Array, ops: Ops, *, tol: float, callback: Callable[[int, Array], None] | None = None
) -> tuple[Array, Run]:
    """Newton iteration with Higham's 1,inf-norm scaling, by matrix inversion.

    Computes ``X <- (zeta X + X^-H / zeta) / 2``: an LU inverse in each iteration (about 1.4
    products), 5 to 9 iterations, quadratic convergence. Tall matrices are reduced by QR first.
    Fails on exactly singular matrices, and says so. The backward error grows slowly with n through
    the LU factorisation.

    N. J. Higham, SIAM J. Sci. Stat. Comput. 7 (1986) 1160-1174, Algorithm Newton; Functions of
    Matrices (SIAM, 2008), equation (8.20).
    """
    xp = ops.xp
    m, n = x.shape[-2:]
    eps = format_of(ops.format_name(x)).epsilon
    q = None
    if m > n:
        q, x = ops.qr(x)
    changes: list[float] = []
    converged = scaling = True
    while True:
        inverse = ops.inverse(x)
        zeta: Any = 1.0
        if scaling:
            # Roots first: the product of two norms could overflow.
            above = xp.sqrt(ops.norm_1(inverse)) * xp.sqrt(ops.norm_inf(inverse))
            zeta = xp.sqrt(above / (xp.sqrt(ops.norm_1(x)) * xp.sqrt(ops.norm_inf(x))))
        # Halved before the sum, so that entries near the largest number cannot overflow in it.
        new = x * (0.5 * zeta) + ops.adjoint(inverse) * (0.5 / zeta)
        change = ops.read(ops.norm_1(new - x) / ops.norm_1(x))
        x = new
        changes.append(change)
        if callback is not None:
            callback(len(changes), x if q is None else ops.matmul(q, x))
        if not math.isfinite(change) or len(changes) == MAX_ITERATIONS:
            converged = False
            break
        # Quadratic convergence: the error left is about change^2 / 2.
        if change <= math.sqrt(5 * eps):
            break
        scaling = scaling and change > SCALE_ABOVE
    if q is not None:
        x = ops.matmul(q, x)
    return x, Run(len(changes), 0 if q is None else 1, converged, tuple(changes))
