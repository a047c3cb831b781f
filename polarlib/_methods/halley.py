"""Rational schedules for 16-bit matrices: one Gram matrix, Cholesky factors, one large product.

A step of a rational schedule is ``X <- X W`` with ``W = M (I + sum_j a_j (G + c_j I)^-1)``, a
function of ``G = X^H X``. So is the next Gram matrix, ``W G W``, and so is Q, the product of all
W's: everything between G and ``X Q`` is n x n. Three things decide whether that is accurate.

- The Gram matrix. Products of 16-bit numbers are exact in float32, and so is the scaling by a power
  of two: G errs by float32's rounding of sums alone. Scaled to norm 1, its eigenvalues move by up
  to three unit roundoffs: singular values below about 5e-4 are lost, and negative ones would grow
  by the square of a step's slope, 1.6e5 for the first one of Halley's. Four unit roundoffs on the
  diagonal make G as large as the exact one at least, and as ``X^H X <= G'`` implies
  ``||X q(G')||^2 = ||q X^H X q|| <= ||q G' q||``, no singular value can then exceed the image
  of the schedule, whatever the matrix. The price is that the smallest ones grow less.
- The next Gram matrix. Formed as ``W G W`` it errs by the slope squared, as much as it is to be
  trusted with. With Z the inverse of ``G + c I``, ``G Z = I - c Z``: both factors of ``W (W G)``
  are then functions of one Z, ``T^H T`` with T the inverse of a Cholesky factor, and are consistent
  with each other however inaccurate Z is.
- Q is as large as the slope, 1700: rounded to 16 bits it would cost u ||Q||, 3 for bfloat16 and .4
  for float16. It is split into two 16-bit matrices, what is left over is u^2 ||Q||; each takes a
  product with X. Forming X in 16 bits between the steps is no remedy: the first W has norm 400, and
  would have to be split too.

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
from polarlib.engine.normalise import checked_peak, spectral_bound
from polarlib.result import Run

Array = Any

# The least singular value that Gram matrices in float32 resolve. Over the stress spectra smaller
# ones bring no smaller orthogonality error, and larger errors elsewhere: benchmarks/halley.py.
LOWER = 1e-3
# Squarings of the Gram matrix for the bound of its norm, each a small product: with one the bound
# of sigma_1 is 1.7 times too large for square Gaussian matrices, 2.4 for flat spectra, n = 1024.
SQUARINGS = 1
# Unit roundoffs that are added to the diagonal of the Gram matrix, of norm 1. By experiment its
# eigenvalues err by up to 3, for n from 16 to 1024, and the inverses of its shifts by less.
JITTER = 4.0
# What the jitter grows by where a Cholesky factorisation fails nevertheless: for poles far below
# LOWER**2, on matrices of rank one. One growth has always been enough, by experiment.
GROWTH = 8.0
# Narrower formats cannot hold Q, not even in two parts.
NARROWEST = 8


@functools.cache
def halley() -> Schedule:
    """Two dynamically weighted Halley steps on one Gram matrix, best on [1e-3, 1]: error 0.019.

    Y. Nakatsukasa, Z. Bai, F. Gygi, SIAM J. Matrix Anal. Appl. 31 (2010), for the weights; scaled
    so that [1e-3, 1] goes to [1 - E, 1 + E]. Together they are Zolotarev's function of type (9, 8).

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
    """Apply a rational schedule to tall matrices, with products of the large side in a format.

    Cost: a Gram product in single precision and two products in 16 bits (one, in single precision)
    with the m x n matrix. Of n x n, in single precision: a product for the bound of the norm; for
    each pole of every step but the last a Cholesky factorisation, a triangular solve and a Gram
    product, and a product or two to take them together; for each pole of the last step a Cholesky
    factorisation and two triangular solves.

    Parameters
    ----------
    x : array, shape (..., m, n)
        m >= n. Not changed.
    ops : Ops
        Full-precision arithmetic of the library.
    schedule : Schedule
        Of rational steps, for singular values in (0, 1]; by its normalisation X is divided by a
        bound of its norm, or taken as it is.
    precision : str
        Number format of the matrix and of the products with it, of 16 bits or more. All n x n
        matrices are in float32, or in float64 if that is the format.
    callback : callable, optional
        Called as ``callback(k, x)`` after step k, and with k = 0 for the matrix over the bound of
        its norm. The products that form the iterates between are not counted.

    Returns
    -------
    u : array, shape (..., m, n)
        In the format, or its carrier. Zero for a zero matrix. On the host the jitter grows until no
        factorisation fails; on a device, which looking would stall, a failure gives NaN.
    run : Run
        Its note says how often the jitter had to grow; empty if it had not.

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
            f"rational schedules need 16 bits or more, got precision={precision!r}: the product of "
            "their steps does not fit; use a schedule of polynomials"
        )
    xp = ops.xp
    x = at_least_single(x, ops)
    peak = checked_peak(x, ops)
    low = rounded(ops, precision, is_complex=is_complex(x))
    given = schedule.normalisation == "none"
    z = low.cast(x if given else ops.divide(x, ops.binary_scale(peak)), precision)
    wide = ops.cast(z, "float64" if precision == "float64" else "float32")
    g = ops.gram(wide)
    if given:
        square, spent = ops.xp.ones_like(ops.max_abs(g)), 0
    else:
        square, spent = spectral_bound(g, ops, squarings=SQUARINGS)
    square = ops.divisor(square)
    g = ops.divide(g, square)

    unit = format_of(format_name(wide)).unit_roundoff
    # Where nobody can look, the jitter has grown beforehand for poles that may need it.
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
    """``Z Q`` with Q as two matrices of the format; the small one first, so that it is not lost."""
    # Views of bits, as simulations round, keep no gradient.
    high = round_to(q, fmt, ops) if low.simulated else low.cast(q, fmt.name)
    rest = low.matmul(z, low.cast(q - at_least_single(high, ops), fmt.name))
    return low.gemm(z, low.cast(high, fmt.name), rest, beta=1.0)


def _factors(g: Array, steps: Sequence[Step], ops: Ops) -> list[Array]:
    """The products Q of the W's after each step; NaN from a failed factorisation on."""
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
