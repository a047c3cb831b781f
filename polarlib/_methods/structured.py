"""Rational steps of high degree from one QR factorisation: for ill-conditioned matrices.

Compositions of best functions are best functions. A scaled Newton step, x + l / x on [l, 1] up to
scale, followed by one more, by a Halley step, or by two more Newton steps is Zolotarev's function
of degree 4, 6 or 8. It is a sum of simple terms,

    slope x + inverse / x + sum_j a_j x / (x^2 + c_j).

Degree 8 maps singular values in [1e-15, 1] to [0.06, 1]. With X = Q R every term is computed from
the same R: R itself, its inverse, and ``Q_1 Q_2^H`` for each c_j, from the QR factorisation of two
triangles, ``[R; sqrt(c_j) I]``. Separate steps would need one QR factorisation each.

Without pivoting neither these steps nor the QR-based steps of QDWH are backward stable. For the
columns of smooth kernels (Gaussian, Cauchy, Vandermonde) R has small rows above large ones, and
errors reach 1e-8 and more. The measure is ``|| |R^-1| |R| ||``, the part of the condition number
that scaling of rows cannot remove, which costs nothing once the inverse is known. If it is large,
the QR factorisation is repeated with column pivoting, and the steps are backward stable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from polarlib._methods.hybrid import hybrid
from polarlib._methods.lifting import lift
from polarlib._methods.qdwh import qdwh
from polarlib.arrays.kernels import NumpyKernels
from polarlib.arrays.ops import Ops
from polarlib.engine.drive import one_by_one
from polarlib.result import Run

Array = Any


def structured(
    x: Array,
    ops: Ops,
    *,
    tol: float,
    callback: Callable[[int, Array], None] | None = None,
    lower: float | None = None,
) -> tuple[Array, Run]:
    """A rational step of degree 4 to 8 from one QR, then the hybrid: for condition 1e7 and beyond.

    The QR factorisation also reduces tall matrices, and is pivoted where stability requires it.
    Backward stable; singular matrices are completed. In single precision the rational step is
    computed in double precision. The method is for NumPy. On other array libraries it is QDWH, and
    only there `lower` is used.

    See :func:`lift` for the step and its references.
    """
    kernels = ops.kernels(x)
    if kernels is None:
        return qdwh(x, ops, tol=tol, callback=callback, lower=lower)
    return one_by_one(lambda a, show: _single(a, ops, kernels, tol, show), x, callback)


def _single(
    x: Array,
    ops: Ops,
    kernels: NumpyKernels,
    tol: float,
    callback: Callable[[int, Array], None] | None,
) -> tuple[Array, Run]:
    """Run the method on one matrix."""
    lifted = lift(x, kernels)

    def show(k: int, v: Array) -> None:
        if callback is not None:
            callback(k + 1, lifted.restore(v))

    show(0, lifted.x)
    each = None if callback is None else show
    v, run = hybrid(lifted.x, ops, tol=tol, callback=each, lower=lifted.lower)
    return lifted.restore(v), run._replace(
        iterations=run.iterations + 1,
        matmuls=run.matmuls + 1,
        certain=lifted.bounds if math.isfinite(lifted.bounds[1]) else None,
        note=f"{lifted.note}; {run.note}",
    )
