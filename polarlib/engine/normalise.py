"""Normalisations: division by a bound of the spectral norm before a schedule."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from polarlib._schedules.steps import absorbed
from polarlib.arrays.entry import finite_max_abs
from polarlib.arrays.formats import Format, format_of
from polarlib.arrays.functions import as_scalar, sqrt, trace
from polarlib.arrays.library import at_least_single, format_name, to_working_format
from polarlib.arrays.ops import Ops

Array = Any
FromGram = Callable[[Array, "Array | float", Ops, Format], "Array | float"]

# Powers of the Frobenius norm up to the degree of a step must be between 2**-100 and 2**100:
# coefficients that contain the norm are then normal numbers of single precision.
MOST_BITS = 100
# Relative errors of sums of squares and of products, in single-precision roundoffs; generous.
SUM_ROUNDINGS = 64
# Squarings of the Gram matrix for the bound "spectral".
SQUARINGS = 3


def normalise(x: Array, ops: Ops, kind: str, safety: float = 1.0) -> tuple[Array, int]:
    """Divide a stack of matrices so that their singular values lie in (0, 1 / safety].

    The matrix is first divided by a power of two near the largest entry, so that no norm overflows
    or underflows. The result does not change if the input is multiplied by a power of two.

    Parameters
    ----------
    x : array, shape (..., m, n)
        In at least single precision, m >= n.
    ops : Ops
        Full-precision arithmetic.
    kind : str
        A name of `BOUNDS`, or "none" for no division, not even by `safety`.
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
        If the matrix is not finite and its library is on the host. On a device, where the check
        would synchronise, the result of such a matrix is NaN.
    """
    kernels = ops.normaliser(x)
    if kernels is not None and kind == "frobenius":
        return kernels.by_norm(x, safety, False), 0
    max_abs = checked_max_abs(x, ops)
    if kind == "none":
        return x, 0
    y = ops.divide(x, ops.binary_scale(max_abs))
    bound = BOUNDS[kind]
    y = ops.divide(y, ops.divisor(bound.whole(y, ops)) * safety, may_overwrite=True)
    return y, bound.products


def checked_max_abs(x: Array, ops: Ops) -> Array:
    """Return the largest absolute entry; ValueError if it is not finite and can be read freely."""
    remedy = "remove them before orthogonalising"
    max_abs = finite_max_abs(x, ops, "the matrix", look=ops.looks, locate=False, remedy=remedy)
    return at_least_single(max_abs, ops)


def normalised_with_gram(
    x: Array, ops: Ops, low: Ops, small: Ops, kind: str, safety: float, first: Sequence[float]
) -> tuple[Array, Array, tuple[float, ...]]:
    """Normalise by a bound from the Gram matrix of the first step, without further products.

    If the bound is a number, it is applied to the coefficients of the step. A matrix that needs no
    scaling is then neither copied nor rounded, except for 16-bit products on CPUs.

    Parameters
    ----------
    x : array, shape (..., m, n)
        m >= n, in any format. Not modified.
    ops, low, small : Ops
        Full-precision arithmetic, that of the iteration, and that of its Gram matrix.
    kind : str
        A name of `BOUNDS` with a bound from a Gram matrix.
    safety : float
        Further divisor.
    first : sequence of float
        Coefficients of the first step, at least two.

    Returns
    -------
    z : array, shape (..., m, n)
        In the working format of `low`; may be `x` or a view of it.
    g : array, shape (..., n, n)
        ``Z^H Z`` in the working format of `small`.
    first : tuple of float
        The first step for Z; it includes the normalisation if Z is not normalised.

    Raises
    ------
    ValueError
        As :func:`normalise`.
    """
    form, bound = format_of(small.working), from_gram(kind)
    most = most_absorbed(first, form) and most_absorbed(first, format_of(low.working))
    native = not low.simulated and format_name(x) == low.working
    if native and most and ops.host and math.prod(x.shape[:-2]) == 1:
        z = to_working_format(x, low)
        g = small.gram(to_working_format(z, small))
        square = as_scalar(trace(g, ops), ops)
        if 1 / most <= square <= most:
            s = ops.divisor(bound(g, square, ops, form)) * safety
            return _normalised(z, z, g, s, first, ops, low, small)
    if not native:
        x = at_least_single(x, ops)
    halfway = halfway_factor(x.shape[-1], most)
    kernels = ops.normaliser(x)
    if kernels is not None:
        y = kernels.by_norm(x, halfway, True)
    else:
        y = ops.divide(x, ops.binary_scale(checked_max_abs(x, ops)))
        if not most:
            power = ops.binary_scale(ops.frobenius(y) * halfway)
            y = ops.divide(y, power, may_overwrite=True)
    z = to_working_format(y, low)
    g = small.gram(to_working_format(z, small))
    if kernels is not None:
        y, g = kernels.by_gram(y, g, kind, *slacks(format_name(g), form), safety)
        return to_working_format(y, low), to_working_format(g, small), tuple(first)
    s = ops.divisor(_bound_from(g, bound, ops, form)) * safety
    if isinstance(s, float):
        return _normalised(y, z, g, s, first, ops, low, small)
    g = to_working_format(ops.divide(g, s * s, may_overwrite=True), small)
    return to_working_format(ops.divide(y, s, may_overwrite=True), low), g, tuple(first)


def from_gram(kind: str) -> FromGram:
    """Return the bound from a Gram matrix for a name of `BOUNDS` that has one."""
    return cast(FromGram, BOUNDS[kind].from_gram)


def halfway_factor(n: int, most: float) -> float:
    """Return the factor of the Frobenius norm by which Y is divided before the first Gram matrix.

    The factor is 1 if the step contains the norm. In formats of short range the divisor is the
    geometric mean of both bounds of ``||Y||_F / sqrt(n) <= ||Y||_2 <= ||Y||_F``. Entries of the
    Gram matrix are then about 1 / sqrt(n) on the diagonal and at most sqrt(n), those of its square
    at most n. float16 represents both for thousands of columns.
    """
    return 1.0 if most else float(2 * n**-0.25)


def most_absorbed(step: Sequence[float], form: Format) -> float:
    """Return the largest squared norm that a step can contain; 0 in formats of short range."""
    if form.largest <= 2.0**MOST_BITS:
        return 0.0
    return float(2.0 ** (2 * MOST_BITS / (2 * len(step) - 1)))


def compiles_factors(ops: Ops, low: Ops) -> bool:
    """Return whether products are compiled for each new factor, as by oneDNN.

    False for float16, whose range is too short for the division, and for simulated formats.
    """
    return low.fused and ops.host and not low.simulated and low.working != "float16"


def _normalised(
    y: Array, z: Array, g: Array, s: float, first: Sequence[float], ops: Ops, low: Ops, small: Ops
) -> tuple[Array, Array, tuple[float, ...]]:
    """Apply a norm to the first step, or divide by it if products would be compiled again.

    oneDNN, which multiplies torch's 16-bit matrices on CPUs, compiles a product for each new factor
    of the addend. This takes milliseconds, twice for each new gradient. In this case y is divided,
    of which z is the rounded value. Dividing z would add a second rounding error, which affects
    small singular values most.
    """
    if not compiles_factors(ops, low):
        return z, g, absorbed(first, s)
    z = to_working_format(ops.divide(y, s), low)
    return z, to_working_format(ops.divide(g, s * s, may_overwrite=True), small), tuple(first)


# -- bounds of ``||X||_2`` from a Gram matrix G as rounded to a format; 0 for zero -------------


def _bound_from(g: Array, bound: FromGram, ops: Ops, form: Format) -> Array | float:
    return bound(g, as_scalar(trace(g, ops), ops), ops, form)


def _schatten4(g: Array, _: Array | float, ops: Ops, form: Format) -> Array | float:
    """Return ``||G||_F^(1/2)``."""
    norm, slack, _ = _rounded_norm(g, ops, form)
    return sqrt(norm * (1 + slack), ops)


def _moments(g: Array, square: Array | float, ops: Ops, form: Format) -> Array | float:
    """Return the best bound that follows from the Frobenius norms of X and G.

    With mu and sigma**2 the mean and the variance of the n eigenvalues of G, the largest is at most
    ``mu + sqrt(n - 1) sigma`` (H. Wolkowicz and G. P. H. Styan, Linear Algebra Appl. 29 (1980)
    471-506, Theorem 2.1). The bound is exact for rank one and for equal singular values.
    """
    n = g.shape[-1]
    norm, slack, sums = _rounded_norm(g, ops, form)
    mean = square / n
    # For equal singular values the difference cancels down to the rounding of the sums.
    variance = norm * norm * ((1 + sums) / n) - mean * mean
    spread = (variance + abs(variance)) * (0.5 * (n - 1))
    return sqrt(mean + sqrt(spread, ops) + norm * slack, ops)


def _rounded_norm(g: Array, ops: Ops, form: Format) -> tuple[Array | float, float, float]:
    """Return the Frobenius norm of G, and relative errors of eigenvalues of G and of sums.

    Rounding G changes eigenvalues by at most the unit roundoff times the norm.
    """
    return as_scalar(ops.frobenius(g), ops), *slacks(format_name(g), form)


def slacks(carrier: str, form: Format) -> tuple[float, float]:
    """Return relative errors of eigenvalues of G and of sums, in at least single precision."""
    wide = format_of("float64" if carrier == "float64" else "float32")
    sums = SUM_ROUNDINGS * wide.unit_roundoff
    return form.unit_roundoff + sums, sums


def spectral_bound(g: Array, ops: Ops, *, squarings: int = SQUARINGS) -> tuple[Array, int]:
    """Return the certified bound ``||G^(2^k)||_F^(1/2^k)`` of the largest absolute eigenvalue.

    Parameters
    ----------
    g : array, shape (..., n, n)
        Hermitian, in at least single precision, scaled to entries of about 1. Not modified.
    ops : Ops
        Full-precision arithmetic.
    squarings : int, optional
        k; the bound exceeds the eigenvalue by at most a factor of ``r**(2**-(k + 1))``, r the rank.

    Returns
    -------
    bound : array, shape (..., 1, 1)
        0 for zero matrices.
    matmuls : int
        Number of matrix products.
    """
    copy = ops.combine((1.0,), (g,))  # the powers are computed in its storage
    bound, spent = _gram_moment(copy, ops, squarings)
    return bound * bound, spent - 1


def _gram_moment(g: Array, ops: Ops, squarings: int) -> tuple[Array, int]:
    """Return the bound ``||G^(2^k)||_F^(1/2^(k+1))`` of sigma_max, and the number of products."""
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
    # The rounding errors of products are at most n eps relative to the norms, before the root.
    eps = format_of(format_name(g)).epsilon
    return bound * (1 + g.shape[-1] * eps), 1 + squarings


# -- other bounds, and their gradients ---------------------------------------------------------


def _spectral(y: Array, ops: Ops) -> Array:
    """Return the certified bound ``||G^8||_F^(1/16) <= r^(1/32) ||X||_2``, r the rank."""
    return _gram_moment(ops.gram(y), ops, SQUARINGS)[0]


def _columns(y: Array, ops: Ops) -> Array:
    """Return the roots of the column sums of ``|G_ij|`` (B. Prach, C. H. Lampert, ECCV 2022)."""
    return ops.xp.sqrt(ops.xp.sum(ops.xp.abs(ops.gram(y)), axis=-2, keepdims=True))


def _growth_of_moments(y: Array, ops: Ops) -> Array:
    """Return a multiple of the gradient of ``mu + sqrt(n - 1) sigma`` for the eigenvalues of G."""
    g = ops.gram(y)
    n = g.shape[-1]
    mean = trace(g, ops) / n
    k = g - ops.eye(n, g) * mean
    k = k * (math.sqrt(n * (n - 1)) / ops.divisor(ops.frobenius(k)))
    return y + ops.matmul(y, k)


def _growth_of_power(y: Array, ops: Ops, *, squarings: int) -> Array:
    """Return ``Y G^(k - 1)``, a multiple of the gradient of ``(tr G^k)^(1 / 2k)``, k = 2 to 16."""
    power = product = ops.gram(y)
    for _ in range(squarings):
        power = ops.gram(power)
        product = ops.matmul(product, power)
    return ops.matmul(y, product)


def _of_whole(from_gram: FromGram) -> Callable[[Array, Ops], Array | float]:
    """Return a function of matrices that computes the bound from their Gram matrices."""

    def bound(y: Array, ops: Ops) -> Array | float:
        g = ops.gram(y)
        return _bound_from(g, from_gram, ops, format_of(format_name(g)))

    return bound


class Bound(NamedTuple):
    """A bound by which matrices are divided.

    Attributes
    ----------
    products : int
        Number of matrix products for the bound.
    whole : callable
        ``whole(y, ops)`` returns the bound of ``||Y||_2`` for matrices with entries of about 1.
    growth : callable or None
        ``growth(y, ops)`` returns a multiple of the gradient of the bound at a normalised matrix.
        None if columns are divided: the result is then the unitary factor of another matrix, X D
        with D diagonal.
    from_gram : callable or None
        ``from_gram(g, trace, ops, format)`` returns the bound from a Gram matrix rounded to a
        format, and its trace. None if the bound needs more than the Gram matrix of the first step.
    """

    products: int
    whole: Callable[[Array, Ops], Array | float]
    growth: Callable[[Array, Ops], Array] | None
    from_gram: FromGram | None = None


BOUNDS = {
    "frobenius": Bound(0, lambda y, ops: ops.frobenius(y), lambda y, _: y),
    "spectral": Bound(
        1 + SQUARINGS, _spectral, functools.partial(_growth_of_power, squarings=SQUARINGS)
    ),
    "moments": Bound(1, _of_whole(_moments), _growth_of_moments, _moments),
    "schatten4": Bound(
        1, _of_whole(_schatten4), functools.partial(_growth_of_power, squarings=0), _schatten4
    ),
    "aol": Bound(1, _columns, None),
    "none": Bound(0, lambda *_: 1.0, lambda y, _: y * 0.0),
}
