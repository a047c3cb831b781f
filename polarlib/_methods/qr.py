"""Method "qr": the orthonormal QR factor, which is not the polar factor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from polarlib.arrays.formats import format_of
from polarlib.arrays.library import astype_like, format_name
from polarlib.arrays.ops import Ops
from polarlib.result import Run

Array = Any


def qr(
    x: Array, ops: Ops, *, tol: float, callback: Callable[[int, Array], None] | None = None
) -> tuple[Array, Run]:
    """Orthonormal QR factor, diagonal of R positive: NOT the polar factor.

    The cost is one Householder QR. Q has the range of the input, but depends on the order of the
    columns. Unlike the polar factor, Q is not the nearest orthonormal matrix. The status of the
    result is NOT_POLAR, and its backward error is in general large.

    References
    ----------
    G. H. Golub and C. F. Van Loan, Matrix Computations (4th ed., 2013), section 5.2.
    """
    xp = ops.xp
    q, r = ops.qr(x)
    # The diagonal as column sums of a diagonal matrix, without an indexed gather.
    diagonal = xp.sum(r * ops.eye(r.shape[-1], r), axis=-2, keepdims=True)
    size = xp.abs(diagonal)
    # Some libraries divide complex numbers by their squared modulus, which underflows for small
    # numbers: such numbers get the phase 1, as zero does.
    small = size <= math.sqrt(format_of(format_name(size)).smallest_normal)
    phase = xp.where(small, xp.ones_like(diagonal), diagonal)
    q = q * (phase / astype_like(xp.where(small, xp.ones_like(size), size), diagonal, ops))
    if callback is not None:
        callback(1, q)
    return q, Run(1, 0, False)
