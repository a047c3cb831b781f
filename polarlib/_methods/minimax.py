"""Method "polar_express": best polynomials for a certified interval, by products alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from polarlib._methods.newton_schulz import settle
from polarlib._methods.reduction import rounded_down, start
from polarlib._schedules.images import odd_value
from polarlib.arrays.formats import format_of
from polarlib.arrays.library import format_name
from polarlib.arrays.ops import Ops
from polarlib.design import greedy
from polarlib.engine.drive import drive
from polarlib.engine.iterate import even_part
from polarlib.result import Run

Array = Any

DEGREE = 5
# Lower design limit of a step over its upper end (the "cushion" of the Polar Express paper).
# Without it the largest singular values are mapped to tiny ones, and backward stability is lost: at
# a condition number of 1e15 the error is 5e-11 instead of 5e-15. By experiment.
CUSHION = 0.1
# A step multiplies small singular values by 3.8, and a few more steps map 0.1 to 1.
GROWTH, LAST_STEPS = 3.8, 8


def minimax(
    x: Array,
    ops: Ops,
    *,
    tol: float,
    callback: Callable[[int, Array], None] | None = None,
    lower: float | None = None,
    cushion: float = CUSHION,
) -> tuple[Array, Run]:
    """Best polynomials of degree 5 for a certified interval, cushioned, then Newton-Schulz.

    The iteration is ``X <- X (a I + b X^H X + c (X^H X)^2)`` with coefficients of
    :func:`polarlib.design.greedy` for the interval [l, 1] of singular values. The cost is 3
    products per step: 5 steps for a condition number of 10, 8 for 1e3, 15 for 1e7 and 30 for 1e16.
    In addition l takes a Gram product, a Cholesky factorisation and a triangular solve (a QR
    factorisation for condition numbers above about eps^-1/2, and the reduction of tall matrices).
    It takes nothing if `lower`, a lower bound of sigma_min / sigma_max, is given.

    The cushion makes the iteration backward stable: the steps are optimal on
    ``[max(l, cushion u), u]``, so that no singular value shrinks below a tenth of the largest. The
    method fails for exactly singular matrices.

    References
    ----------
    N. Amsel, D. Persson, C. Musco, R. M. Gower, The Polar Express, arXiv 2505.16932, sections 3-4.
    Stability: Y. Nakatsukasa, N. J. Higham, SIAM J. Matrix Anal. Appl. 33 (2012), Theorem 2.3.
    """
    eps = format_of(format_name(x)).epsilon
    done = start(x, ops, callback, lower=lower, square=False)
    if done.lower < eps**2:
        done.note = "exactly singular: no interval of positive numbers holds the singular values"
        return done.result()

    def apply(step: tuple[float, ...]) -> tuple[Array, int]:
        z, alpha, beta = ops.add_scaled_identity(*even_part(done.formed_gram(), step, ops))
        return ops.gemm(done.x, z, done.x, alpha=alpha, beta=beta), 3

    drive(done, _steps(rounded_down(done.lower), cushion, eps), apply)
    return settle(done, ops, tol)


@functools.lru_cache(maxsize=256)
def _steps(l: float, cushion: float, eps: float) -> tuple[tuple[float, ...], ...]:
    """Return steps after which one Newton-Schulz step, with error 3/2 e^2, converges."""
    last = math.sqrt(3 * eps)
    if 1 - l <= last:
        return ()
    count = LAST_STEPS + math.ceil(math.log(1 / l) / math.log(GROWTH))
    # The steps are steep at the upper end, where rounding errors must not grow from step to step.
    steps = greedy(l, [DEGREE] * count, cushion=cushion, safety=math.sqrt(eps)).steps
    for k, step in enumerate(steps, 1):
        l = odd_value(step, l)
        if 1 - l <= last:
            return steps[:k]
    return steps
