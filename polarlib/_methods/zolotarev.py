"""Zolo-PD: Zolotarev's rational functions by QR and Cholesky factorisations."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable
from typing import Any

from polarlib._methods.qdwh import CHOLESKY_BELOW, resolvent, scaled
from polarlib.design.zolotarev import Step, best_steps
from polarlib.formats import format_of
from polarlib.ops import Ops
from polarlib.result import Run

__all__ = ["zolotarev"]

Array = Any

# With 8 poles two iterations serve condition numbers to 1e16; more poles are less stable.
# Nakatsukasa and Freund (2016), section 4.3.
MOST_POLES = 8
# Orthogonality, in epsilons, that rounding leaves: two to five, by experiment.
REFINE_ABOVE = 10


def zolotarev(
    x: Array, ops: Ops, *, tol: float, callback: Callable[[int, Array], None] | None = None
) -> tuple[Array, Run]:
    """Two iterations of Zolotarev's best rational function, with up to 8 independent poles.

    Computes ``X <- M (X + sum_j a_j X (X^H X + c_j I)^-1)``, r terms, with r the least number for
    which two iterations suffice on the certified interval [l, 1]. Cost: one QR for the bound; in
    the first iteration about r QR of 2n x n stacks, in the second r Cholesky factorisations with
    two triangular solves each; one Gram product as a check, and Newton-Schulz steps where it fails.
    Two to four times QDWH's time, since the terms, which are independent, come one after another
    here. Backward stable. Singular values that are exactly zero stay zero.

    Y. Nakatsukasa, R. W. Freund, SIAM Rev. 58 (2016) 461-493, Algorithm 5.1.
    """
    n = x.shape[-1]
    eps = format_of(ops.format_name(x)).epsilon
    q, x, l = scaled(x, ops)
    steps, errors = _fewest_poles(l, eps)
    changes: list[float] = []
    matmuls = 0

    def follow(new: Array, old: Array) -> Array:
        changes.append(ops.read(ops.frobenius(new - old)) / math.sqrt(n))
        if callback is not None:
            callback(len(changes), new if q is None else ops.matmul(q, new))
        return new

    lower, upper = l, 1.0
    for (scale, residues, poles), error in zip(steps, errors, strict=True):
        total = x
        for a, c in zip(residues, poles, strict=True):
            condition = (c + upper * upper) / (c + lower * lower)
            by_qr = condition > CHOLESKY_BELOW
            total = total + resolvent(x, 1 / c, a / c, ops, by_qr=by_qr)
            matmuls += 1
        x = follow(total * scale, x)
        lower, upper = 1 - error, 1 + error
    # A bound l that is noise misses the smallest singular values: they end below 1, and products
    # lift them, as long as that helps (it does not, where they are zero).
    defect = math.inf
    while True:
        g = ops.gram(x)
        before, defect = defect, ops.read(ops.frobenius(ops.add_diagonal(-g, 1.0))) / math.sqrt(n)
        matmuls += 1
        if not REFINE_ABOVE * eps < defect < 0.5 * before:
            break
        z, alpha, beta = ops.fold(g, -0.5, 1.5)
        x = follow(ops.gemm(x, z, x, alpha=alpha, beta=beta), x)
        matmuls += 1
    if q is not None:
        x = ops.matmul(q, x)
        matmuls += 1
    return x, Run(len(changes), matmuls, defect <= tol, tuple(changes))


def _fewest_poles(l: float, eps: float) -> tuple[tuple[Step, ...], list[float]]:
    """Steps with the fewest poles that converge in two iterations, or with the most."""
    mantissa, exponent = math.frexp(min(l, 1 - 2.0**-10))
    return _designed(math.ldexp(math.floor(mantissa * 32) / 32, exponent), 4 * eps)


@functools.lru_cache(maxsize=256)
def _designed(l: float, tolerance: float) -> tuple[tuple[Step, ...], list[float]]:
    def two(r: int) -> bool:
        return len(best_steps(r, l, tolerance)[0]) <= 2

    r = 1 + bisect.bisect_left(range(1, MOST_POLES), True, key=two)
    return best_steps(r, l, tolerance)
