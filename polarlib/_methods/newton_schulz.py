"""The classical Newton-Schulz iteration, run until it has converged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from polarlib._methods.reduction import largest
from polarlib.arrays.formats import format_of
from polarlib.arrays.library import format_name
from polarlib.arrays.ops import Ops
from polarlib.engine.drive import Progress, drive
from polarlib.result import Run

Array = Any

# Slope at zero: small singular values grow by it in each step.
GROWTH = 1.5
# 96 steps serve a condition number of 1e16.
MAX_ITERATIONS = 120
# The defect hardly falls while only singular values far below 1 are left.
STALLED = 0.99
# Orthogonality, in epsilons, that rounding leaves: two to five, by experiment.
SETTLED = 10
# Steps that are taken on a device without a look, while it is not known how many there will be.
AHEAD = 8


def newton_schulz(
    x: Array,
    ops: Ops,
    *,
    tol: float,
    callback: Callable[[int, Array], None] | None = None,
    lower: float | None = None,
) -> tuple[Array, Run]:
    """Newton-Schulz iteration X (3 I - X^H X) / 2 until orthonormal, by products alone.

    Cost: 2 products a step; small singular values grow by 1.5 a step, so that a matrix of condition
    number kappa takes about ``log(kappa) / log(1.5)`` steps (22 at 1e3, 96 at 1e16), the
    last ones converging quadratically. (Degree 5 takes 3 products to grow by 1.875: the same rate.)
    Only conditionally stable: the backward error grows with the condition number. Singular values
    that are zero stay zero: the iteration ends when the others are 1 and these can be traced back
    to below the cut of the numerical rank, unless `lower`, a lower bound of sigma_min / sigma_max,
    says that there are none.

    Z. Kovarik (1970); A. Bjorck and C. Bowie (1971), SIAM J. Numer. Anal. 8, equation (2.3);
    stability: Y. Nakatsukasa and N. J. Higham, SIAM J. Matrix Anal. Appl. 33 (2012) 460-479.
    """
    m, n = x.shape[-2:]
    eps = format_of(format_name(x)).epsilon
    g = ops.gram(x)
    high, mean, _ = largest(x, g, ops)
    # The cut of the rank, with sigma_1 >= ||X||_F / sqrt(n).
    cut = max(m, n) * eps * ops.xp.sqrt(mean / high)
    done = Progress(ops, ops.divide(x, ops.xp.sqrt(high)), callback=callback, products=1)
    done.gram = ops.divide(g, high)
    del g
    if not ops.host:
        drive(done, *_foreseen(done, ops, high, cut if lower is None else None, tol), recorded=True)
        return done.result()
    done.bounds = 0.0, math.sqrt(ops.item(high))

    def errors() -> Iterator[tuple[Array, Array, float, float]]:
        defect = math.inf
        while True:
            e = ops.add_diagonal(done.formed_gram() * -1.0, 1.0)
            size, before = ops.frobenius(e), defect
            defect = ops.item(size) / math.sqrt(n)
            done.converged = defect <= tol
            settled = defect <= SETTLED * eps or (done.converged and defect > 0.5 * before)
            # The defect is measured after the last step, too.
            if settled or not math.isfinite(defect) or done.iterations == MAX_ITERATIONS:
                return
            yield e, size, defect, before

    def apply(found: tuple[Array, Array, float, float]) -> tuple[Array, int] | None:
        e, size, defect, before = found
        new = ops.gemm(done.x, e, done.x, alpha=0.5, beta=1.0)
        done.products += 1
        if lower is None and defect > STALLED * before:
            # With every singular value at 0 or 1, ||X E||_F is the norm of those near 0.
            left = 2 * ops.frobenius(new - done.x) / GROWTH**done.iterations
            if ops.item(ops.xp.where(size > STALLED, cut / left, ops.xp.zeros_like(size))) > 1:
                done.note = "numerically singular: what is left of the spectrum is rounding"
                return None
        done.changes.append(defect)
        return new, 1

    drive(done, errors(), apply, recorded=True)
    return done.result()


def _foreseen(
    done: Progress, ops: Ops, high: Array, cut: Array | None, tol: float
) -> tuple[Iterator[Array], Callable[[Array], tuple[Array, int]]]:
    """Plan and steps on a device, which is looked at when a step can be the last one.

    The eigenvalues e of ``E = I - X^H X`` lie in [0, 1], and a step takes e to ``e^2 (3 + e) / 4``.
    The largest one is at least the sum of their squares over their sum, the trace of E, and at most
    the norm of E. So many steps there must be, and more there need not be; the two are the same
    once one singular value is left. `cut` is that of the rank, None where it is full by a promise.
    """
    n = done.x.shape[-1]
    settled = SETTLED * format_of(format_name(done.x)).epsilon
    moved: list[Array] = []  # half ||X E||_F, of the last step before a look
    ahead = 0

    def look(size: Array, before: Array | None) -> tuple[float, float, bool, int, int]:
        """Defect, that before, whether the rest is zero, and the least and most steps to come."""
        trace = n - ops.frobenius(done.x) ** 2
        found = [high, size, size * size / trace]
        if before is not None:
            found.append(before)
        if moved and cut is not None:
            # With every singular value at 0 or 1, it is the norm of those near 0.
            left = 2 * moved.pop() / GROWTH ** (done.iterations - 1)
            zero = ops.xp.zeros_like(size)
            found.append(ops.xp.where(size > STALLED, cut / left, zero))
        top, norm, ratio, *others = done.read(found)
        done.bounds = 0.0, math.sqrt(top)
        old = others[0] if others else math.inf
        singular = len(others) > 1 and others[1] > 1
        # Of small E the trace is rounding.
        least = ratio if norm > 0.5 and 0 < ratio < 1 else norm / math.sqrt(n)
        goal = settled * math.sqrt(n)
        steps = _steps_between(least, goal), _steps_between(norm, goal)
        return norm / math.sqrt(n), old / math.sqrt(n), singular, *steps

    def errors() -> Iterator[Array]:
        nonlocal ahead
        before = None
        while True:
            if done.converged and not ahead:
                return  # foreseen
            e = ops.add_diagonal(done.formed_gram() * -1.0, 1.0)
            size = ops.frobenius(e)
            if not ahead:
                defect, old, singular, least, most = look(size, before)
                done.converged = defect <= tol
                over = defect <= settled or (done.converged and defect > 0.5 * old)
                if over or not math.isfinite(defect) or done.iterations >= MAX_ITERATIONS:
                    return
                if singular and defect > STALLED * old:
                    done.note = "numerically singular: what is left of the spectrum is rounding"
                    return
                done.converged = most <= min(least + 1, MAX_ITERATIONS) and settled <= tol
                ahead = most if done.converged else max(1, min(least, AHEAD))
                ahead = min(ahead, MAX_ITERATIONS - done.iterations)
            done.changes.append(size / math.sqrt(n))
            ahead, before = ahead - 1, size
            yield e

    def apply(e: Array) -> tuple[Array, int]:
        new = ops.gemm(done.x, e, done.x, alpha=0.5, beta=1.0)
        done.products += 1
        if cut is not None and not ahead:
            moved.append(ops.frobenius(new - done.x))
        return new, 1

    return errors(), apply


def _steps_between(e: float, goal: float) -> int:
    """Steps that take ``1 - sigma^2`` from one value to another; too many from 1 on."""
    for k in range(MAX_ITERATIONS + 1 if e < 1 else 0):
        if e <= goal:
            return k
        e = e * e * (3 + e) / 4
    return MAX_ITERATIONS + 1


def settle(done: Progress, ops: Ops, tol: float) -> tuple[Array, Run]:
    """Take Newton-Schulz steps as long as they help, after a bound that may have been noise.

    Parameters
    ----------
    done : Progress
        The iteration before, which gets the further steps.
    ops : Ops
        Arithmetic.
    tol : float
        Converged is a defect ``||X^H X - I||_F / sqrt(n)``, the largest of a stack, up to that.

    Returns
    -------
    u, run : array, Run
        Result of the method.
    """
    floor = SETTLED * format_of(format_name(done.x)).epsilon

    def errors() -> Iterator[Array]:
        defect = math.inf
        while True:
            before, e = defect, ops.add_diagonal(done.formed_gram() * -1.0, 1.0)
            defect = ops.item(ops.frobenius(e)) / math.sqrt(e.shape[-1])
            # Zeros do not move. Below 0.1 the defect is squared in each step, or is rounding.
            if not floor < defect < (STALLED if before > 0.1 else 0.5) * before:
                done.converged = defect <= tol
                return
            yield e

    drive(done, errors(), lambda e: (ops.gemm(done.x, e, done.x, alpha=0.5, beta=1.0), 2))
    return done.result()
