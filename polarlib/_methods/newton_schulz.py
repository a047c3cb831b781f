"""Method "newton_schulz": the iteration of degree 3, run until it has converged."""

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

# Slope at zero: the factor by which small singular values grow per step.
GROWTH = 1.5
# 96 steps suffice for a condition number of 1e16.
MAX_ITERATIONS = 120
# The defect decreases slowly while all singular values below 1 are far below 1.
STALLED = 0.99
# Orthogonality error by rounding, in epsilons: two to five, by experiment.
SETTLED = 10
# Steps on a device between two synchronisations, while the number of steps is unknown.
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

    The cost is 2 products per step. Small singular values grow by a factor of 1.5 per step, so that
    a condition number kappa takes about ``log(kappa) / log(1.5)`` steps (22 for 1e3, 96 for 1e16).
    The last steps converge quadratically. (A step of degree 5 takes 3 products for a factor of
    1.875, which is the same rate.) The iteration is only conditionally stable: the backward error
    grows with the condition number.

    Zero singular values stay zero. The iteration ends when the others are 1 and these must have
    been below the threshold of the numerical rank. This test is omitted if `lower`, a lower bound
    of sigma_min / sigma_max, is given.

    References
    ----------
    Z. Kovarik (1970). A. Bjorck and C. Bowie, SIAM J. Numer. Anal. 8 (1971), equation (2.3).
    Stability: Y. Nakatsukasa and N. J. Higham, SIAM J. Matrix Anal. Appl. 33 (2012) 460-479.
    """
    m, n = x.shape[-2:]
    eps = format_of(format_name(x)).epsilon
    g = ops.gram(x)
    high, mean, _ = largest(x, g, ops)
    # The threshold of the numerical rank, with sigma_1 >= ||X||_F / sqrt(n).
    cut = max(m, n) * eps * ops.xp.sqrt(mean / high)
    done = Progress(ops, ops.divide(x, ops.xp.sqrt(high)), callback=callback, products=1)
    done.gram = ops.divide(g, high)
    del g
    if not ops.host:
        drive(
            done, *_on_device(done, ops, high, cut if lower is None else None, tol), recorded=True
        )
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
            # The defect is also measured after the last step.
            if settled or not math.isfinite(defect) or done.iterations == MAX_ITERATIONS:
                return
            yield e, size, defect, before

    def apply(error: tuple[Array, Array, float, float]) -> tuple[Array, int] | None:
        e, size, defect, before = error
        new = ops.gemm(done.x, e, done.x, alpha=0.5, beta=1.0)
        done.products += 1
        if lower is None and defect > STALLED * before:
            # With every singular value at 0 or 1, ||X E||_F is the norm of those near 0.
            left = 2 * ops.frobenius(new - done.x) / GROWTH**done.iterations
            if ops.item(ops.xp.where(size > STALLED, cut / left, ops.xp.zeros_like(size))) > 1:
                done.note = "numerically singular: the other singular values are rounding errors"
                return None
        done.changes.append(defect)
        return new, 1

    drive(done, errors(), apply, recorded=True)
    return done.result()


def _on_device(
    done: Progress, ops: Ops, high: Array, cut: Array | None, tol: float
) -> tuple[Iterator[Array], Callable[[Array], tuple[Array, int]]]:
    """Return plan and steps for a device, with a synchronisation when a step can be the last one.

    The eigenvalues e of ``E = I - X^H X`` lie in [0, 1], and a step maps e to ``e^2 (3 + e) / 4``.
    The largest eigenvalue is at least the sum of the squares over the sum, the trace of E, and at
    most the norm of E. These bounds give the least and the largest number of steps, which agree
    once one singular value is left. `cut` is the threshold of the rank, None for full rank.
    """
    n = done.x.shape[-1]
    settled = SETTLED * format_of(format_name(done.x)).epsilon
    moved: list[Array] = []  # half ||X E||_F, of the last step before a synchronisation
    ahead = 0

    def read(size: Array, before: Array | None) -> tuple[float, float, bool, int, int]:
        """Return the last two defects, whether the rest is zero, and bounds of the step number."""
        trace = n - ops.frobenius(done.x) ** 2
        numbers = [high, size, size * size / trace]
        if before is not None:
            numbers.append(before)
        if moved and cut is not None:
            # With every singular value at 0 or 1, ||X E||_F is the norm of those near 0.
            left = 2 * moved.pop() / GROWTH ** (done.iterations - 1)
            zero = ops.xp.zeros_like(size)
            numbers.append(ops.xp.where(size > STALLED, cut / left, zero))
        top, norm, ratio, *others = done.read(numbers)
        done.bounds = 0.0, math.sqrt(top)
        old = others[0] if others else math.inf
        singular = len(others) > 1 and others[1] > 1
        # For small E the trace is dominated by rounding errors.
        least = ratio if norm > 0.5 and 0 < ratio < 1 else norm / math.sqrt(n)
        goal = settled * math.sqrt(n)
        steps = _steps_between(least, goal), _steps_between(norm, goal)
        return norm / math.sqrt(n), old / math.sqrt(n), singular, *steps

    def errors() -> Iterator[Array]:
        nonlocal ahead
        before = None
        while True:
            if done.converged and not ahead:
                return  # as planned at the last synchronisation
            e = ops.add_diagonal(done.formed_gram() * -1.0, 1.0)
            size = ops.frobenius(e)
            if not ahead:
                defect, old, singular, least, most = read(size, before)
                done.converged = defect <= tol
                over = defect <= settled or (done.converged and defect > 0.5 * old)
                if over or not math.isfinite(defect) or done.iterations >= MAX_ITERATIONS:
                    return
                if singular and defect > STALLED * old:
                    done.note = (
                        "numerically singular: the other singular values are rounding errors"
                    )
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
    """Return the number of steps that reduce ``1 - sigma^2`` from e < 1 to a goal."""
    for k in range(MAX_ITERATIONS + 1 if e < 1 else 0):
        if e <= goal:
            return k
        e = e * e * (3 + e) / 4
    return MAX_ITERATIONS + 1


def settle(done: Progress, ops: Ops, tol: float) -> tuple[Array, Run]:
    """Apply Newton-Schulz steps while they reduce the defect, after an unreliable lower bound.

    Parameters
    ----------
    done : Progress
        The iteration so far, to which the steps are added.
    ops : Ops
        Arithmetic.
    tol : float
        Largest defect ``||X^H X - I||_F / sqrt(n)`` of a stack that counts as converged.

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
            # Zeros stay zero. Below 0.1 the defect is squared in each step, or is rounding.
            if not floor < defect < (STALLED if before > 0.1 else 0.5) * before:
                done.converged = defect <= tol
                return
            yield e

    drive(done, errors(), lambda e: (ops.gemm(done.x, e, done.x, alpha=0.5, beta=1.0), 2))
    return done.result()
