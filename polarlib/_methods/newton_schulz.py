"""The classical Newton-Schulz iteration, run until it has converged."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from polarlib.iterate import normalise
from polarlib.ops import Ops
from polarlib.result import Run

__all__ = ["newton_schulz"]

Array = Any

# Singular values grow by 1.5 a step: 96 steps from 1e-16.
MAX_ITERATIONS = 120


def newton_schulz(
    x: Array, ops: Ops, *, tol: float, callback: Callable[[int, Array], None] | None = None
) -> tuple[Array, Run]:
    """Newton-Schulz iteration X (3 I - X^H X) / 2 until orthonormal, by products alone.

    Cost: 2 products a step; small singular values grow by 1.5 a step, so that a matrix of condition
    number kappa takes about ``log(sqrt(n) kappa) / log(1.5)`` steps (22 at 1e3, 96 at 1e16), the
    last ones converging quadratically. Only conditionally stable: the backward error grows with the
    condition number. Singular values that are zero stay zero.

    Z. Kovarik (1970); A. Bjorck and C. Bowie (1971), SIAM J. Numer. Anal. 8, equation (2.3);
    stability: Y. Nakatsukasa and N. J. Higham, SIAM J. Matrix Anal. Appl. 33 (2012) 634-655.
    """
    x, matmuls = normalise(x, ops, "frobenius")
    root = math.sqrt(x.shape[-1])
    defects: list[float] = []
    while True:
        g = ops.gram(x)
        defect = ops.read(ops.frobenius(ops.add_diagonal(-g, 1.0))) / root
        matmuls += 1
        converged = defect <= tol
        if converged or not math.isfinite(defect) or len(defects) == MAX_ITERATIONS:
            return x, Run(len(defects), matmuls, converged, tuple(defects))
        z, alpha, beta = ops.fold(g, -0.5, 1.5)
        x = ops.gemm(x, z, x, alpha=alpha, beta=beta)
        matmuls += 1
        defects.append(defect)
        if callback is not None:
            callback(len(defects), x)
