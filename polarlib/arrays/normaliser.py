"""The two divisions of a normalisation, by one kernel call each on devices.

On a device an operator on a single number takes as long as a product of medium size, and a
normalisation consists of thirty operators. Libraries for devices have the two divisions as kernels,
in which the decisions that need numbers are made on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Array = Any


class Normaliser(NamedTuple):
    """Kernels for stacks of real matrices of 16 or 32 bits, without synchronisation.

    Sums are in double precision, in which no square of an entry overflows or underflows.

    Attributes
    ----------
    by_norm : callable
        ``by_norm(x, factor, power)`` is ``X / s`` for each matrix, a new array in the memory order
        of `x`, with ``s = factor ||X||_F``; with `power` the largest power of two up to that, which
        divides exactly. A zero matrix stays zero, one that is not finite gives NaN.
    by_gram : callable
        ``by_gram(y, g, bound, slack, sums, safety)`` is ``(Y / s, G / s**2)`` for each matrix and
        its Gram matrix, both of which may be overwritten, with s the bound times `safety`. With n
        the order of G, t its trace and f its Frobenius norm, the bound "moments" is
        ``sqrt(t / n + sqrt(max(f**2 (1 + sums) / n - (t / n)**2, 0) (n - 1)) + f slack)``, and
        "schatten4" is ``sqrt(f (1 + slack))``. A bound of 0 counts as 1, one that is not finite as
        NaN. (:mod:`polarlib.engine.normalise` says what they bound.)
    """

    by_norm: Callable[[Array, float, bool], Array]
    by_gram: Callable[[Array, Array, str, float, float, float], tuple[Array, Array]]
