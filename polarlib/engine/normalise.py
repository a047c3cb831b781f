"""Normalisations: what a matrix is divided by before a schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from polarlib._schedules.steps import absorbed
from polarlib.arrays.entry import finite_peak
from polarlib.arrays.formats import Format, format_of
from polarlib.arrays.functions import as_scalar, sqrt, trace
from polarlib.arrays.ops import Ops

Array = Any

# Normalisations by a bound that the first step's own Gram matrix gives.
FROM_GRAM = ("moments", "schatten4")
# Powers of Frobenius norms as high as the degree of a step must stay within 2**100 and its inverse:
# coefficients that absorb the norm are then normal numbers of single precision.
MOST_BITS = 100
# Roundings of single precision that sums of squares and products are allowed, chosen generously.
SUM_ROUNDINGS = 64


def normalise(x: Array, ops: Ops, kind: str, safety: float = 1.0) -> tuple[Array, int]:
    """Divide a stack of matrices so that their singular values lie in (0, 1 / safety].

    A power of two near the largest entry is divided out first, so that no norm can overflow or
    underflow, and the result is the same for every power of two times the input.

    Parameters
    ----------
    x : array, shape (..., m, n)
        In at least single precision, m >= n.
    ops : Ops
        Full-precision arithmetic.
    kind : {"frobenius", "spectral", "moments", "schatten4", "aol", "none"}
        - frobenius: by ``||X||_F``.
        - schatten4: by ``||X^H X||_F^(1/2) >= ||X||_2``.
        - moments: by the best bound of ``||X||_2`` that the two norms above give together: with
          mu and sigma**2 the mean and the variance of the n eigenvalues of the Gram matrix, the
          largest is at most ``mu + sqrt(n - 1) sigma`` (H. Wolkowicz and G. P. H. Styan, Linear
          Algebra Appl. 29 (1980) 471-506, Theorem 2.1). Exact for one or for equal singular values.
        - spectral: by ``||G^8||_F^(1/16)``, G = X^H X, a certified bound that exceeds ``||X||_2``
          by a factor of ``r^(1/32)`` at most for rank r (1.24 for r = 1024).
        - aol: column j by the square root of ``sum_i |G_ij|`` (B. Prach and C. H. Lampert, ECCV
          2022). This CHANGES THE ANSWER: the iteration then approximates the unitary factor of
          X D, D diagonal.
        - none: by nothing, not even `safety`.
    safety : float, optional
        Further divisor.

    Returns
    -------
    y : array, shape (..., m, n)
        A new array (`x` itself for "none"). A zero matrix stays zero.
    matmuls : int
        Number of matrix products.

    Raises
    ------
    ValueError
        If the matrix is not finite and its library is on the host. On a device, where looking would
        stall it, the result of such a matrix is NaN.
    """
    peak = checked_peak(x, ops)
    if kind == "none":
        return x, 0
    y = ops.divide(x, ops.binary_scale(peak))
    if kind == "frobenius":
        norm, spent = ops.frobenius(y), 0
    else:
        g = ops.gram(y)
        if kind == "aol":
            sums = ops.xp.sum(ops.xp.abs(g), axis=-2, keepdims=True)
            norm, spent = ops.xp.sqrt(sums), 1
        elif kind in FROM_GRAM:
            norm, spent = _bound_from_gram(g, ops, kind, format_of(ops.format_name(g))), 1
        else:
            norm, spent = _gram_moment(g, ops, 3)
    return ops.divide(y, ops.divisor(norm) * safety, may_overwrite=True), spent


def checked_peak(x: Array, ops: Ops) -> Array:
    """Return the largest absolute entry; raise where it costs nothing that it is not finite."""
    remedy = "remove them before orthogonalising"
    peak = finite_peak(x, ops, "the matrix", look=ops.looks, locate=False, remedy=remedy)
    return ops.at_least_single(peak)


def normalised_with_gram(
    x: Array, ops: Ops, low: Ops, small: Ops, kind: str, safety: float, first: Sequence[float]
) -> tuple[Array, Array, tuple[float, ...]]:
    """Normalise by a bound from the Gram matrix that the first step needs, at no product.

    Where the bound is a number, the step's coefficients absorb it, and a matrix that needs no
    scaling is neither copied nor rounded.

    Parameters
    ----------
    x : array, shape (..., m, n)
        m >= n, of any format. Not changed.
    ops, low, small : Ops
        Full-precision arithmetic, that of the iteration, and that of its Gram matrix.
    kind : {"moments", "schatten4"}
        As in :func:`normalise`.
    safety : float
        Further divisor.
    first : sequence of float
        Coefficients of the first step, at least two.

    Returns
    -------
    z : array, shape (..., m, n)
        For `low`; may be `x` or a view of it.
    g : array, shape (..., n, n)
        ``Z^H Z``, for `small`.
    first : tuple of float
        The first step for z: that of the normalised matrix, if z itself is not normalised.

    Raises
    ------
    ValueError
        As :func:`normalise`.
    """
    form = format_of(small.working)
    widest = min(form.largest, format_of(low.working).largest) > 2.0**MOST_BITS
    native = not low.simulated and ops.format_name(x) == low.working
    if native and widest and ops.host and math.prod(x.shape[:-2]) == 1:
        z = low.to_working_format(x)
        g = small.gram(small.to_working_format(z))
        square = ops.item(trace(g, ops))
        bits = 2 * MOST_BITS / (2 * len(first) - 1)
        if 2.0**-bits <= square <= 2.0**bits:
            s = ops.divisor(_bound_from_gram(g, ops, kind, form)) * safety
            return z, g, absorbed(first, s)
    if not native:
        x = ops.at_least_single(x)
    y = ops.divide(x, ops.binary_scale(checked_peak(x, ops)))
    if not widest:
        # ||Y||_F / sqrt(n) <= ||Y||_2 <= ||Y||_F: the norm is put halfway between the two bounds.
        # Entries of the Gram matrix are then about 1 / sqrt(n) on the diagonal and sqrt(n) at most,
        # those of its square n at most: float16 keeps both up to thousands of columns.
        twice = ops.frobenius(y) * (2 * y.shape[-1] ** -0.25)
        y = ops.divide(y, ops.binary_scale(twice), may_overwrite=True)
    z = low.to_working_format(y)
    g = small.gram(small.to_working_format(z))
    s = ops.divisor(_bound_from_gram(g, ops, kind, form)) * safety
    if isinstance(s, float):
        return z, g, absorbed(first, s)
    g = small.to_working_format(ops.divide(g, s * s, may_overwrite=True))
    return low.to_working_format(ops.divide(y, s, may_overwrite=True)), g, tuple(first)


def _bound_from_gram(g: Array, ops: Ops, kind: str, form: Format) -> Array | float:
    """Upper bound of ``||X||_2`` from a Gram matrix as rounded to a format; 0 for zero.

    Its rounding moves eigenvalues by the unit roundoff times its Frobenius norm at most.
    """
    n = g.shape[-1]
    norm = ops.frobenius(g)
    sums = SUM_ROUNDINGS * format_of(ops.format_name(norm)).unit_roundoff
    norm = as_scalar(norm, ops)
    slack = form.unit_roundoff + sums
    if kind == "schatten4":
        return sqrt(norm * (1 + slack), ops)
    mean = as_scalar(trace(g, ops), ops) / n
    # Cancels where singular values are equal, to within the rounding of the sums.
    variance = norm * norm * ((1 + sums) / n) - mean * mean
    spread = (variance + abs(variance)) * (0.5 * (n - 1))
    return sqrt(mean + sqrt(spread, ops) + norm * slack, ops)


def spectral_bound(g: Array, ops: Ops, *, squarings: int = 3) -> tuple[Array, int]:
    """Certified bound ``||G^(2^k)||_F^(1/2^k)`` of the largest absolute eigenvalue.

    Parameters
    ----------
    g : array, shape (..., n, n)
        Hermitian, in at least single precision, scaled to entries of the size of 1. Not changed.
    ops : Ops
        Full-precision arithmetic.
    squarings : int, optional
        k: the bound exceeds the eigenvalue by a factor of ``r**(2**-(k + 1))`` at most, r the rank.

    Returns
    -------
    bound : array, shape (..., 1, 1)
        0 for zero matrices.
    matmuls : int
        Number of matrix products.
    """
    copy = ops.combine((1.0,), (g,))  # the moments are taken in its storage
    bound, spent = _gram_moment(copy, ops, squarings)
    return bound * bound, spent - 1


def _gram_moment(g: Array, ops: Ops, squarings: int) -> tuple[Array, int]:
    """Bound ``||G^(2^k)||_F^(1/2^(k+1))`` of the largest singular value; number of products."""
    exponent = 0.5
    bound = ops.frobenius(g)
    g = ops.divide(g, ops.divisor(bound), may_overwrite=True)
    bound = bound**exponent
    for _ in range(squarings):
        g = ops.gram(g)
        norm = ops.frobenius(g)
        g = ops.divide(g, ops.divisor(norm), may_overwrite=True)
        exponent /= 2
        bound = bound * norm**exponent
    # Rounding in the products is at most n eps relative to the norms, then the root is taken.
    eps = format_of(ops.format_name(g)).epsilon
    return bound * (1 + g.shape[-1] * eps), 1 + squarings
