"""Rational schedules for 16-bit matrices: one Gram matrix, Cholesky factors, one large product.

A step of a rational schedule is ``X <- X W`` with ``W = M (I + sum_j a_j (G + c_j I)^-1)``, a
function of ``G = X^H X``. The next Gram matrix, ``W G W``, is a function of G too, and so is Q, the
product of all matrices W. All matrices between G and ``X Q`` are therefore n x n. The accuracy
depends on three matrices.

- The Gram matrix. Products of 16-bit numbers are exact in float32, and so is the scaling by a power
  of two: the error of G is that of sums in float32. For a G of norm 1, rounding changes eigenvalues
  by up to three unit roundoffs. Singular values below about 5e-4 are lost, and negative eigenvalues
  would grow by the square of a step's slope, 1.6e5 for Halley's first step. Therefore four unit
  roundoffs are added to the diagonal, so that G' is at least the exact Gram matrix. As
  ``X^H X <= G'`` implies ``||X q(G')||^2 = ||q X^H X q|| <= ||q G' q||``, no singular value can
  exceed the image of the schedule, for any matrix. In exchange the smallest ones grow less.
- The next Gram matrix. Formed as ``W G W``, its error would be amplified by the slope squared. With
  Z the inverse of ``G + c I``, ``G Z = I - c Z``. Both factors of ``W (W G)`` are then functions of
  the same Z, ``T^H T`` with T the inverse of a Cholesky factor. They are consistent with each other
  for every error of Z.
- Q has a norm as large as the slope, 1700. Rounded to 16 bits it would cost u ||Q||, 3 for bfloat16
  and .4 for float16. It is split into two 16-bit matrices with an error of u^2 ||Q||, and each is
  multiplied by X. Forming X in 16 bits between the steps would not help: the first W has norm 400,
  and would have to be split too.

Equilibration by powers of two is left out: in float32, where nothing overflows, it changes no bit
of a Cholesky factor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from polarlib._methods.qdwh import resolvent
from polarlib._schedules.schedule import Schedule
from polarlib._schedules.steps import Step
from polarlib.arrays.formats import Format, format_of
from polarlib.arrays.library import at_least_single, format_name, is_complex
from polarlib.arrays.ops import Ops
from polarlib.arrays.rounded import round_to, rounded
from polarlib.design.zolotarev import zolotarev
from polarlib.engine.normalise import checked_max_abs, spectral_bound
from polarlib.result import Run

Array = Any

# The smallest singular value that Gram matrices in float32 resolve. For the stress spectra a
# smaller value gives no smaller orthogonality error, and other errors grow (benchmarks/halley.py).
LOWER = 1e-3
# Squarings of the Gram matrix for the bound of its norm, each a small product: with one the bound
# of sigma_1 is 1.7 times too large for square Gaussian matrices, 2.4 for flat spectra, n = 1024.
SQUARINGS = 1
# Jitter: unit roundoffs added to the diagonal of the Gram matrix, of norm 1. By experiment, for n
# from 16 to 1024, the errors of its eigenvalues are up to 3, those of shifted inverses smaller.
JITTER = 4.0
# Factor of the jitter after a Cholesky factorisation has failed, which happens for poles
# far below LOWER**2 on matrices of rank one. One repetition was always enough, by experiment.
GROWTH = 8.0
# In narrower formats even two parts do not represent Q.
NARROWEST = 8


@functools.cache
def halley() -> Schedule:
    """Two dynamically weighted Halley steps on one Gram matrix, best on [1e-3, 1]: error 0.019.

    The steps are scaled so that [1e-3, 1] is mapped to [1 - E, 1 + E].
    Their composition is Zolotarev's function of type (9, 8). Weights: Y. Nakatsukasa, Z. Bai, F.
    Gygi, SIAM J. Matrix Anal. Appl. 31 (2010).

    Examples
    --------
    >>> round(halley().error(), 4), round(halley().slope)
    (0.0189, 1704)
    """
    return zolotarev(1, LOWER).truncate(2)


def rational(
    x: Array,
    ops: Ops,
    schedule: Schedule,
    *,
    precision: str,
    callback: Callable[[int, Array], None] | None = None,
) -> tuple[Array, Run]:
    """Apply a rational schedule to tall matrices, with the m x n products in a given format.

    The cost with the m x n matrix is a Gram product in single precision and two products in 16 bits
    (one product for single precision). The cost with n x n matrices, in single precision, is: one
    product for the bound of the norm; per pole of every step but the last a Cholesky factorisation,
    a triangular solve and a Gram product, and one or two products to combine the poles; per pole of
    the last step a Cholesky factorisation and two triangular solves.

    Parameters
    ----------
    x : array, shape (..., m, n)
        m >= n. Not modified.
    ops : Ops
        Full-precision arithmetic of the library.
    schedule : Schedule
        Rational steps for singular values in (0, 1]. Depending on its normalisation, X is divided
        by a bound of its norm or used as it is.
    precision : str
        Number format of the matrix and of the products with it, of 16 bits or more. All n x n
        matrices are in float32, or in float64 if that is the format.
    callback : callable, optional
        Called as ``callback(k, x)`` after step k, and with k = 0 for the normalised matrix. The
        products that form the iterates for it are not counted.

    Returns
    -------
    u : array, shape (..., m, n)
        In the format, or its carrier. Zero for a zero matrix. On the host the added diagonal is
        increased until no factorisation fails. On a device, where reading would synchronise, a
        failure gives NaN.
    run : Run
        Its note has the number of increases; empty if there were none.

    Raises
    ------
    ValueError
        For a format of 8 bits; on the host, for NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> from polarlib.arrays.ops import ops_of
    >>> x = np.diag(np.float32([1e9, -1e7, 0]))
    >>> u, run = rational(x, ops_of(x), halley(), precision="bfloat16")
    >>> bool(np.allclose(np.diag(u), [1, -1, 0], atol=0.03)), run.matmuls
    (True, 6)
    """
    fmt = format_of(precision)
    if fmt.significand < NARROWEST:
        raise ValueError(
            f"precision must have at least 16 bits for rational schedules, got {precision!r}; use "
            "a polynomial schedule"
        )
    xp = ops.xp
    x = at_least_single(x, ops)
    max_abs = checked_max_abs(x, ops)
    low = rounded(ops, precision, is_complex=is_complex(x))
    given = schedule.normalisation == "none"
    z = low.cast(x if given else ops.divide(x, ops.binary_scale(max_abs)), precision)
    wide = ops.cast(z, "float64" if precision == "float64" else "float32")
    g = ops.gram(wide)
    if given:
        square, spent = ops.xp.ones_like(ops.max_abs(g)), 0
    else:
        square, spent = spectral_bound(g, ops, squarings=SQUARINGS)
    square = ops.divisor(square)
    g = ops.divide(g, square)

    unit = format_of(format_name(wide)).unit_roundoff
    # Where failures cannot be read, the added diagonal is larger from the start for small poles.
    blind = not ops.host and schedule.lower < LOWER
    jitter = xp.full_like(ops.max_abs(g), JITTER * unit * (GROWTH if blind else 1.0))
    retries = 0
    while True:
        factors = _factors(g + ops.eye(g.shape[-1], g) * jitter, schedule.steps, ops)
        if not ops.host:
            break
        failed = ~xp.isfinite(ops.max_abs(factors[-1]))
        if not xp.any(failed) or ops.item(jitter) > 1:
            break
        jitter = xp.where(failed, jitter * GROWTH, jitter)
        retries += 1

    parts = 1 if precision == fmt.carrier else 2

    def times(q: Array) -> Array:
        q = ops.divide(q, square**0.5)
        return ops.matmul(wide, q) if parts == 1 else _times(z, q, fmt, ops, low)

    u = times(factors[-1])
    if callback is not None:
        callback(0, ops.divide(wide, square**0.5))
        for k, q in enumerate(factors[:-1], 1):
            callback(k, times(q))
        callback(len(schedule), u)
    note = f"Cholesky factorisations failed, jitter grown {retries} times" if retries else ""
    return u, Run(len(schedule), schedule.matmuls + spent + parts - 1, False, note=note)


def _times(z: Array, q: Array, fmt: Format, ops: Ops, low: Ops) -> Array:
    """Return ``Z Q`` with Q as two matrices of the format; the product with the small one first."""
    # The views of bits by which simulations round have no gradient.
    high = round_to(q, fmt, ops) if low.simulated else low.cast(q, fmt.name)
    rest = low.matmul(z, low.cast(q - at_least_single(high, ops), fmt.name))
    return low.gemm(z, low.cast(high, fmt.name), rest, beta=1.0)


def _factors(g: Array, steps: Sequence[Step], ops: Ops) -> list[Array]:
    """Return the products Q of the matrices W after each step; NaN after a failed factorisation."""
    one = ops.xp.broadcast_to(ops.eye(g.shape[-1], g), g.shape)
    found: list[Array] = []
    for scale, residues, poles in steps:
        q = found[-1] if found else one
        if len(found) == len(steps) - 1:  # no Gram matrix will follow
            terms = [
                resolvent(q, 1 / c, a / c, ops, how="cholesky", gram=g)[0]
                for a, c in zip(residues, poles, strict=True)
            ]
            found.append((q + sum(terms)) * scale)
            continue
        w, wg = one, g
        for a, c in zip(residues, poles, strict=True):
            t = ops.solve_lower(ops.cholesky(ops.add_diagonal(g * 1.0, c)), one)
            inverse = ops.gram(t)
            w = w + inverse * a
            wg = wg + ops.add_diagonal(inverse * (-a * c), a)
        w, wg = w * scale, wg * scale
        g = ops.hermitian_part(ops.matmul(w, wg))
        found.append(ops.matmul(q, w) if found else w)
    return found
