"""Spectral functions ``U diag(f(sigma)) V^H`` that are not the LMO of a norm.

An LMO (linear maximisation oracle, :mod:`polarlib.norms`) increases with the singular values; these
functions need not. They are the directions of Freon (powers, also negative ones), Kaon (random or
scrambled spectra) and PolarGrad (the polar factor times the nuclear norm), and the projection to a
ball of the spectral norm.

All of them accept stacks of matrices of any library, real or complex, and do not modify their
argument. Half precision is computed in float32. Zero gives zero, except in `spectral_clip` with a
lower limit. NaN or infinity in NumPy arrays and torch tensors on a CPU raises ValueError; in other
arrays, where the check might wait for a device, such a matrix gives NaN, and the others of its
stack are not affected. Results have the array library, device and dtype of the argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from polarlib.arrays.checks import MOST_STEPS, count, function, instance, number
from polarlib.arrays.entered import Entered
from polarlib.arrays.entry import not_finite
from polarlib.arrays.formats import Format, format_of
from polarlib.arrays.functions import above_noise
from polarlib.arrays.library import astype_like, at_least_single, format_name
from polarlib.arrays.ops import Ops
from polarlib.arrays.settings import looks
from polarlib.engine.generalised import (
    SHARP,
    Differences,
    Map,
    clip,
    generalised,
    power_differences,
    quotient,
)
from polarlib.norms.base import A, inner, of_matrices
from polarlib.norms.unitary import Polar, of_spectrum, on_tall, spectral, svd

__all__ = ["polargrad", "random_spectrum", "scrambled_spectrum", "spectral_clip", "spectral_power"]

Array = Any

# Below this |q|, the power mean is the geometric mean to all digits, and q log(sigma) is still a
# normal number in single precision.
GEOMETRIC = 1e-30
# Beyond this |e|, rounding of log(sigma) in single precision leaves sigma^e no digit.
STEEPEST = 1e6

# Kaon's map x <- KAON x (1 - x^2)^2 and its divisor (Shumaylov and others, arXiv 2605.11181). Its
# maximum KAON * 16 / 25 / sqrt(5) = 1.17349 is taken at 1 / sqrt(5).
KAON = 4.1
KAON_DIVISOR = 1.175
KAON_STEPS = 5
NO_DERIVATIVE = (
    "spectral_clip with low > 0 has no derivative at a rank-deficient matrix, since the directions "
    "of its zero singular values are not unique; take low=0, or add a multiple of the identity to "
    "square matrices"
)


# -- powers ----------------------------------------------------------------------------------


@looks
def spectral_power(g: A, exponent: float) -> A:
    """Return Freon's direction ``U (sigma / M)^e V^H``, M the power mean of the spectrum.

    Parameters
    ----------
    g : array, shape (..., m, n)
        Matrix.
    exponent : float
        e. 1 is SGD's direction, 0 Muon's polar factor, -1/3 Freon's default; in its paper
        ``e = 1 - 2 c``.

    Returns
    -------
    array, shape (..., m, n)
        ``mu U sigma^e V^H`` with ``mu = mean(sigma^q)^((1 - q) / q)``, ``q = 1 + e``: the same for
        every positive multiple of `g`.

    Raises
    ------
    TypeError, ValueError
        For an exponent that is not a number or beyond 1e6 in size, and as every LMO.

    Notes
    -----
    For e <= 0 only the singular values above ``max(m, n) * eps * sigma_1`` count, in the map and in
    the mean. The others give 0: they are rounding errors, whose negative powers would be largest.
    For e > 0 all min(m, n) values count, so that the map is continuous. For q = 0 the mean is the
    geometric one. For q >= 1 the LMO of the norm whose dual is Schatten-q is the same with a sum
    instead of the mean. For e < 0 this is not the LMO of any unitarily invariant norm. Cost: one
    SVD.

    References
    ----------
    Shumaylov and others, Freon and Kaon, arXiv 2605.11181.

    Examples
    --------
    >>> import numpy as np
    >>> spectral_power(np.diag([4.0, 1.0]), -1).round(12).tolist()
    [[0.5, 0.0], [0.0, 2.0]]
    """
    what = f"a number of size at most {STEEPEST:g}"
    e = number("exponent", exponent, -STEEPEST, STEEPEST, what=what)

    power = _power(e)
    return of_matrices(lambda entered: (generalised(entered.x, power)[0], 1.0), g, "g")


def _power(e: float) -> Map:
    """Return the map ``sigma -> (sigma / M)^e``."""

    def parts(s: Array, shape: tuple[int, ...], ops: Ops) -> tuple[Array, ...]:
        """Return the values, the logarithm of the mean, and which values count."""
        xp = ops.xp
        counts = above_noise(s, shape, ops) if e <= 0 else s > 0
        level = xp.log(xp.where(counts, s, xp.ones_like(s)))
        middle, rest = _log_mean(level, counts, s.shape[-1] if e > 0 else None, 1 + e, ops)
        kept = xp.astype(counts, s.dtype)
        return kept * xp.exp(ops.scale(level - middle, e) - e * rest), middle + rest, kept

    def differences(s: Array, shape: tuple[int, ...], ops: Ops) -> Differences:
        f, level, kept = parts(s, shape, ops)
        counted = kept if e <= 0 else ops.xp.ones_like(kept)
        size = ops.divisor(ops.xp.sum(counted, axis=-1, keepdims=True))
        mean = ops.xp.exp(level) * ops.max(kept, axis=-1, keepdims=True)
        # The mean moves by <F, E> over the number of values.
        weight = quotient(ops.xp.full_like(mean, -e), size * mean, 0.0, ops)
        return power_differences(s, f, e, mean, weight, shape, ops)

    return Map(lambda s, shape, ops: parts(s, shape, ops)[0], differences)


def _log_mean(
    level: Array, counts: Array, size: int | None, q: float, ops: Ops
) -> tuple[Array, Array]:
    """Return the logarithm of ``(sum sigma^q / size)^(1 / q)`` of counted values, in two parts.

    `level` is log sigma; by default the size is the number of those that count. The first part is
    the extreme value, so that no power overflows; expm1 and log1p keep digits as q goes to 0.
    """
    xp = ops.xp
    kept = xp.astype(counts, level.dtype)
    rank = xp.sum(kept, axis=-1, keepdims=True)
    some = ops.divisor(rank)
    if abs(q) < GEOMETRIC:
        return xp.sum(kept * level, axis=-1, keepdims=True) / some, xp.zeros_like(rank)
    sign = math.copysign(1.0, q)
    known = xp.where(counts, sign * level, xp.full_like(level, -math.inf))
    middle = ops.max(known, axis=-1, keepdims=True) * sign
    middle = xp.where(rank == 0, xp.zeros_like(middle), middle)
    excess = xp.sum(kept * xp.expm1(ops.scale(level - middle, q)), axis=-1, keepdims=True)
    if size is not None:  # values that do not count add 0 to the sum, and 1 to the size
        excess = excess - xp.where(rank == 0, rank, size - rank)
    return middle, xp.log1p(excess / (some if size is None else size)) / q


# -- spectra that are replaced ---------------------------------------------------------------


@looks
def random_spectrum(
    g: A,
    rng: np.random.Generator,
    sampler: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] | None = None,
) -> A:
    """Return Kaon's random direction: the singular vectors of G with random singular values.

    Parameters
    ----------
    g : array, shape (..., m, n)
        Matrix.
    rng : numpy.random.Generator
        Source of the numbers, on the host: the same for every library.
    sampler : callable, optional
        ``sampler(rng, shape)`` gives real numbers of shape ``(..., min(m, n))``, in the order of
        the singular values of `g`, which descend; uniform on (0, 1] by default.

    Returns
    -------
    array, shape (..., m, n)
        ``U diag(s) V^H``. A singular value of `g` of at most ``max(m, n) * eps * sigma_1`` has
        arbitrary vectors and stays 0.

    Raises
    ------
    TypeError, ValueError
        If `rng` is not a NumPy generator, or the sampler's numbers are not real, finite and of that
        shape, and as every LMO.

    Notes
    -----
    Cost: one SVD.

    References
    ----------
    Shumaylov and others, Freon and Kaon, arXiv 2605.11181.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> half = lambda rng, shape: np.full(shape, 0.5)
    >>> random_spectrum(np.diag([5.0, 2.0, 0.0]), rng, half).round(12).tolist()
    [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0]]
    """
    what = "a numpy.random.Generator, such as default_rng(0)"
    instance("rng", rng, np.random.Generator, what)
    if sampler is not None:
        function("sampler", sampler)

    def drawn(s: Array, shape: tuple[int, ...], ops: Ops) -> Array:
        size = tuple(s.shape)
        # In (0, 1], as rng.random is in [0, 1): 0 would lose a direction.
        values = np.asarray(1 - rng.random(size) if sampler is None else sampler(rng, size))
        if values.dtype.kind not in "iuf" or values.shape != size:
            raise ValueError(
                f"sampler must give real numbers of shape {size}, got {values.dtype.name} of shape "
                f"{values.shape}"
            )
        if message := not_finite(values):
            raise ValueError(f"sampler must give finite numbers; its result {message}")
        values = ops.from_host(values, s)
        return values * ops.xp.astype(above_noise(s, shape, ops), s.dtype)

    def direction(e: Entered) -> tuple[Array, float]:
        u, s, vh = svd(e.x, e.ops)
        return of_spectrum(u, drawn(s, e.x.shape, e.ops), vh, e.ops), 1.0

    return of_matrices(direction, g, "g")


@looks
def scrambled_spectrum(g: A, *, steps: int = KAON_STEPS) -> A:
    """Return Kaon's scrambled direction: a chaotic map of the singular values, by matrix products.

    Parameters
    ----------
    g : array, shape (..., m, n)
        Matrix.
    steps : int, optional
        Number of times that the map is applied, 5 by default.

    Returns
    -------
    array, shape (..., m, n)
        ``U diag(s) V^H``, s the iterates of ``x <- 4.1 x (1 - x^2)^2`` from ``sigma / ||G||_F``,
        divided by 1.175: at most 1.1735 / 1.175.

    Raises
    ------
    TypeError, ValueError
        For a number of steps below 1, and as every LMO.

    Notes
    -----
    The map is not monotone, and its iterates are chaotic: small values grow by 4.1 per step until
    they reach the maximum at ``1 / sqrt(5)``, and values near 1 are mapped to nearly 0. A rounding
    error also grows by 4.1 per step, 1159 times in five steps. The singular values stay
    nonnegative. Cost: three products per step.

    References
    ----------
    Shumaylov and others, Freon and Kaon, arXiv 2605.11181.

    Examples
    --------
    >>> import numpy as np
    >>> scrambled_spectrum(np.diag([4.0, 3.0]), steps=1).round(4).tolist()
    [[0.3618, 0.0], [0.0, 0.8575]]
    """
    steps = count("steps", steps, most=MOST_STEPS)

    def scrambled(x: Array, ops: Ops) -> Array:
        y = x / ops.divisor(ops.frobenius(x))
        for _ in range(steps):
            # (I - G)^2 as a Gram product: semidefinite, so that no singular value changes its sign.
            rest = ops.gram(ops.add_diagonal(-ops.gram(y), 1.0))
            y = ops.matmul(y, rest) * KAON
        return y / KAON_DIVISOR

    return of_matrices(lambda e: (on_tall(scrambled, e.x, e.ops), 1.0), g, "g")


# -- the polar factor, scaled ----------------------------------------------------------------


@looks
def polargrad(g: A, *, polar: Polar = None) -> A:
    """Return PolarGrad's direction, the nuclear norm times the polar factor: ``||G||_* U V^H``.

    Parameters
    ----------
    g : array, shape (..., m, n)
        Matrix.
    polar : callable, str, path-like or Schedule, optional
        Method for the polar factor, as in ``norms.spectral``; by default the partial isometry of
        the exact SVD.

    Returns
    -------
    array, shape (..., m, n)
        The spectral norm's steepest descent direction with its length (its `sharp`).

    Raises
    ------
    TypeError, ValueError
        For an unknown name or another type of `polar`, and as every LMO.

    Notes
    -----
    If `polar` is given, the nuclear norm is estimated by ``<G, T>``, as in published codes. For
    ``T = U diag(t) V^H`` this is ``sum sigma_i t_i``, with the relative error ``sum sigma_i (t_i -
    1) / sum sigma_i``, the mean error of T weighted by the singular values. Where t_i > 1 it may
    overestimate. The direction has the error of T in addition. Cost: one SVD, or that of `polar`
    and one inner product.

    References
    ----------
    T. Lau, Q. Long and W. Su, PolarGrad, arXiv 2505.21799.

    Examples
    --------
    >>> import numpy as np
    >>> polargrad(np.diag([3.0, -1.0])).round(12).tolist()
    [[4.0, 0.0], [0.0, -4.0]]
    >>> polargrad(np.diag([3.0, -1.0]), polar=lambda g: np.diag([1.0, -0.6])).round(12).tolist()
    [[3.6, 0.0], [0.0, -2.16]]
    """
    factor = spectral(polar=polar)  # checks `polar` before the matrix

    def direction(e: Entered) -> tuple[Array, Array | float]:
        x, ops = e.x, e.ops
        if polar is None:
            return generalised(x, SHARP)[0], e.scale
        t = astype_like(factor.lmo(g), x, ops)
        return ops.scale(t, astype_like(inner(x, t, ops), t, ops)), e.scale

    return of_matrices(direction, g, "g")


# -- clipping --------------------------------------------------------------------------------


@looks
def spectral_clip(g: A, high: float, *, low: float = 0.0) -> A:
    """Return ``U clip(sigma, low, high) V^H``, with singular values limited to [low, high].

    Parameters
    ----------
    g : array, shape (..., m, n)
        Matrix.
    high : float
        Upper limit, positive, possibly infinite.
    low : float, optional
        Lower limit, from 0 to `high`.

    Returns
    -------
    array, shape (..., m, n)
        The nearest matrix (in the Frobenius norm) whose singular values are all from `low` to
        `high`; `g` exactly if it is one. It is unique unless `g` is rank-deficient and `low`
        positive. Then the directions of the zero singular values are those of the SVD, which
        complete the others to an isometry, as for the polar factor.

    Raises
    ------
    TypeError, ValueError
        Unless ``0 <= low <= high`` and ``high > 0``, and as every LMO. With torch or JAX,
        ValueError when a derivative is computed at a matrix that is rank-deficient to rounding
        and `low` positive; in code that JAX traces it is NaN.

    Notes
    -----
    Cost: one SVD. In half precision the result is rounded once, and its norm can exceed the limit
    by that rounding. Limits beyond the largest number of the format count as that number. With
    ``low = 0`` small singular values are not changed; spectral weight clipping applies this map to
    weights. Emerging-Optimizers' function of this name composes the same map of matrix signs by
    Newton-Schulz iterations, whose error remains in singular values near a limit.

    The derivative exists at equal singular values and, with ``low = 0``, at zero ones. At a
    singular value that equals a limit it is the one-sided derivative of the inner side, as for
    ``torch.clamp``.

    References
    ----------
    F. L. Cesista, Spectral clipping, 2025.

    Examples
    --------
    >>> import numpy as np
    >>> spectral_clip(np.diag([3.0, 0.5]), 1.0).round(12).tolist()
    [[1.0, 0.0], [0.0, 0.5]]
    >>> spectral_clip(np.diag([3.0, 0.5, 0.0]), 2.0, low=1.0).round(12).diagonal().tolist()
    [2.0, 1.0, 1.0]
    """
    high = number("high", high, 0, math.inf, ends="(]", what="a positive number")
    low = number("low", low, 0, high, what=f"a number from 0 to high, which is {high:.7g}")

    def direction(e: Entered) -> tuple[Array, float]:
        return _clipped(e, low, high), 1.0

    return of_matrices(direction, g, "g")


def _clipped(e: Entered, low: float, high: float) -> Array:
    """Return matrices with clipped singular values, in the units of the given matrices."""
    x, ops, xp = e.x, e.ops, e.ops.xp
    numbers = format_of(format_name(x))
    bottom, top = min(low, numbers.largest), min(high, numbers.largest)
    max_abs = ops.max_abs(x)
    scale = xp.zeros_like(max_abs) + e.scale
    # Results are computed in units of the scale, or of the limit if the scale is beyond it: values
    # that overflow in this unit are clipped. Powers of two, so that nothing is rounded.
    unit = xp.minimum(scale, xp.full_like(scale, _near(top, numbers)))
    if bottom > 0:
        unit = xp.maximum(unit, xp.full_like(unit, _near(bottom, numbers)))
    growth = xp.minimum(scale / unit, xp.full_like(scale, numbers.largest))[..., 0]
    least, most = (ops.scale(1 / unit, limit)[..., 0] for limit in (bottom, top))
    clipped, s = generalised(x, clip(NO_DERIVATIVE if low > 0 else ""), least, most, growth)
    row = s * growth
    inside = xp.all((least <= row) & (row <= most), axis=-1, keepdims=True)[..., None]
    return xp.where(inside, at_least_single(e.given, ops), clipped * astype_like(unit, x, ops))


def _near(limit: float, numbers: Format) -> float:
    """Return the power of two near a limit that is a normal number, and its reciprocal too."""
    least = numbers.smallest_normal
    return min(max(2.0 ** (math.frexp(limit)[1] - 1), least), 1 / least)
