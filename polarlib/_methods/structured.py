"""Rational steps of high degree from one QR factorisation: for ill-conditioned matrices.

Best functions composed are best functions: a scaled Newton step, x + l / x on [l, 1] up to scale,
followed by one more, by a Halley step or by two more Newton steps is Zolotarev's function of degree
4, 6 or 8, and a sum of simple terms,

    slope x + inverse / x + sum_j a_j x / (x^2 + c_j).

Degree 8 takes singular values in [1e-15, 1] to [0.06, 1]. With X = Q R every term is made from the
one R: R itself, its inverse, and ``Q_1 Q_2^H`` for each c_j, from the QR factorisation of two
triangles, ``[R; sqrt(c_j) I]``. Step by step, each step needs a QR factorisation of its own.

None of this is backward stable by itself, and neither are QDWH's steps by QR: without pivoting, the
columns of smooth kernels (Gaussian, Cauchy, Vandermonde) leave R with small rows above large ones,
and errors of 1e-8 and more. The measure of that is ``|| |R^-1| |R| ||``, the part of the condition
number that scaling rows cannot cure. It costs nothing once the inverse is there; where it is large
the columns are ordered first, and then all is well.
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

    The QR factorisation reduces tall matrices too, and has its columns pivoted where stability asks
    for it. Backward stable; singular matrices are completed. In single precision the rational step
    is taken in double. NumPy only: on other array libraries this is QDWH, and only there `lower` is
    used.

    See :func:`lift` for the step and its sources.
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
    """The method on one matrix."""
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
