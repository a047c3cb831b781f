"""Norms whose unit ball is a Minkowski sum of balls: the F- and S-variants of Muon and Fanion.

The dual norm and the LMO (linear maximisation oracle) of ``sum w_i ball_i`` are the weighted sums
of those of the terms. The norm itself is the least t with X in t times the sum, which has a closed
form in few cases only.
"""

from __future__ import annotations

import functools
import math
import operator
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from polarlib.arrays.checks import instance, items, number
from polarlib.arrays.entry import refuse_hidden
from polarlib.arrays.library import astype_like
from polarlib.arrays.ops import Ops, ops_of
from polarlib.norms.base import MatrixNorm, Scaled, capped_simplex, factor
from polarlib.norms.fans import fanion
from polarlib.norms.mixed import frobenius, lp
from polarlib.norms.unitary import Polar, Unitary, of_spectrum, svd

Array = Any

# Relative change at which a root search stops: 4 units in the last place.
TINY = 2.0**-50
# Ridders' method takes about 8 steps; rounding may prevent convergence of the last digits.
MOST_STEPS = 40


@dataclass(frozen=True, repr=False)
class MinkowskiSum(MatrixNorm):
    """Norm with the unit ball ``sum w_i ball_i``; at least two different terms."""

    terms: tuple[tuple[float, MatrixNorm], ...]

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return all(n.exact for _, n in self.terms)

    def __repr__(self) -> str:
        return f"minkowski_sum({list(self.terms)!r})"

    def _check(self, shape: tuple[int, ...]) -> None:
        for _, n in self.terms:
            n._check(shape)

    def _dual_value(self, g: Array, ops: Ops) -> Array:
        return functools.reduce(operator.add, (w * n._dual_value(g, ops) for w, n in self.terms))

    def _lmo(self, g: Array, ops: Ops, precision: str) -> Array:
        # A low-precision term has another format: the sum is formed in that of g.
        lmos = (w * astype_like(n._lmo(g, ops, precision), g, ops) for w, n in self.terms)
        return functools.reduce(operator.add, lmos)

    def _value(self, x: Array, ops: Ops) -> Array:
        return self._solve(x, ops)[0]

    def _solve(self, x: Array, ops: Ops) -> tuple[Array, Array]:
        """Return the norm t, and the part of X in ``t w`` times the Frobenius ball."""
        # Both balls are unitarily invariant: the split is one of the singular values alone.
        top = [(w, _rank_of_fanion(n)) for w, n in self.terms]
        top = [(w, k) for w, k in top if k]
        other = [w for w, n in self.terms if n == frobenius()]
        if len(self.terms) != 2 or len(top) != 1 or len(other) != 1:
            names = " + ".join(repr(n) for _, n in self.terms)
            raise NotImplementedError(
                f"the norm whose unit ball is the sum of those of {names} has no closed form, "
                "since a point must be split between the balls; use dual_norm, lmo or sharp"
            )
        (a, k), (b,) = top[0], other
        u, s, vh = svd(x, ops)
        full = k >= s.shape[-1]
        t, rest = _with_spectral(s, a, b, ops) if full else _with_fanion(s, k, a, b, ops)
        return t[..., None], of_spectrum(u, rest, vh, ops)

    def dual(self) -> MatrixNorm:
        return SumDual(self)


def _rank_of_fanion(n: MatrixNorm) -> int:
    """Return the k of Fanion-k, unbounded for the spectral norm, and 0 for other norms."""
    if not isinstance(n, Unitary) or n.p != 1 or n.k is None:
        return 0
    return n.k if n.of_dual else sys.maxsize if n.k == 1 else 0


@dataclass(frozen=True, repr=False)
class SumDual(MatrixNorm):
    """Dual of a Minkowski sum, ``sum w_i ||.||_i`` of the terms' dual norms."""

    norm: MinkowskiSum

    def __repr__(self) -> str:
        return f"{self.norm!r}.dual()"

    def _check(self, shape: tuple[int, ...]) -> None:
        self.norm._check(shape)

    def _value(self, x: Array, ops: Ops) -> Array:
        return self.norm._dual_value(x, ops)

    def _dual_value(self, g: Array, ops: Ops) -> Array:
        return self.norm._value(g, ops)

    def _lmo(self, g: Array, ops: Ops, precision: str) -> Array:
        # T is normal to every ball at its part of G. At the part in the Frobenius ball, which never
        # vanishes, the normal direction is unique.
        rest = self.norm._solve(g, ops)[1]
        return rest / ops.divisor(self.norm._dual_value(rest, ops))

    def dual(self) -> MatrixNorm:
        return self.norm


def _with_spectral(s: Array, a: float, b: float, ops: Ops) -> tuple[Array, Array]:
    """The t with ``sum (sigma_i - a t)_+^2 = b^2 t^2``, and ``(sigma - a t)_+``.

    With j terms, their sums S1 and S2 of values and squares, and the sum of squares V of their
    deviations from the mean, ``(j a^2 - b^2) t^2 - 2 a S1 t + S2 = 0``, of discriminant
    ``b^2 S2 - a^2 j V``. The left side minus the right one decreases with t, so that sigma_i is
    among the terms if and only if it is negative at ``t = sigma_i / a``.
    """
    xp = ops.xp
    size = ops.divisor(s[..., :1])
    z = s / size
    count = xp.cumulative_sum(xp.ones_like(z), axis=-1)
    # From the largest: the squares of small differences keep their digits.
    y = z[..., :1] - z
    excess = xp.cumulative_sum(y * y, axis=-1) - 2 * y * xp.cumulative_sum(y, axis=-1)
    excess = excess + count * y * y
    # The first always is, also where rounding gives another sign for tiny b.
    inside = (excess < (b / a * z) ** 2) | (count == 1)
    kept = xp.astype(inside, z.dtype)
    j = xp.sum(kept, axis=-1, keepdims=True)
    s1 = xp.sum(kept * z, axis=-1, keepdims=True)
    s2 = xp.sum(kept * z * z, axis=-1, keepdims=True)
    deviation = kept * (z - s1 / j)
    root = b * b * s2 - a * a * j * xp.sum(deviation * deviation, axis=-1, keepdims=True)
    denominator = a * s1 + xp.sqrt(xp.maximum(root, xp.zeros_like(root)))
    t = s2 / ops.divisor(denominator)
    return t * size, xp.maximum(z - a * t, xp.zeros_like(z)) * size


def _with_fanion(s: Array, k: int, a: float, b: float, ops: Ops) -> tuple[Array, Array]:
    """Return the t where the distance of sigma to ``a t ball(Fanion-k)`` is ``b t``, and the rest.

    By root search, on the host in double precision.
    """
    remedy = "take the dual norm or the lmo of the sum"
    refuse_hidden(s, ops, "the norm of F-Fanion", remedy, fixed_work=False)
    z = np.asarray(ops.to_host(s), dtype=float)
    size = np.where(z[..., :1] > 0, z[..., :1], 1.0)
    y = z / size
    rest_of = functools.partial(_rest, y, k=k, ops=ops_of(y))

    def excess(t: np.ndarray) -> np.ndarray:
        distance: np.ndarray = np.linalg.norm(rest_of(a * t), axis=-1, keepdims=True)
        return distance - b * t

    # Each ball alone contains y at some t, which bounds the root for both. Twice that, so that
    # rounding cannot remove the change of sign.
    largest = np.maximum(y[..., :1], y.sum(axis=-1, keepdims=True) / k) / a
    high = 2 * np.minimum(largest, np.linalg.norm(y, axis=-1, keepdims=True) / b)
    t = _decreasing_root(excess, high)
    scaled = t * size, rest_of(a * t) * size
    t, rest = (ops.from_host(x, s) for x in scaled)
    return t, rest


def _decreasing_root(f: Callable[[np.ndarray], np.ndarray], high: np.ndarray) -> np.ndarray:
    """Return the roots of decreasing functions from 0 to `high`, all at once.

    By Ridders' method: C. Ridders, IEEE Trans. Circuits Syst. 26 (1979) 979-980.
    """
    low, f_low, f_high = np.zeros_like(high), f(np.zeros_like(high)), f(high)
    root = high
    for _ in range(MOST_STEPS):
        before, middle = root, (low + high) / 2
        f_middle = f(middle)
        size = np.sqrt(f_middle**2 - f_low * f_high)
        root = middle + (middle - low) * f_middle / np.where(size > 0, size, 1.0)
        for t, at in ((middle, f_middle), (root, f(root))):
            # The root lies within the bracket, on either side of the middle.
            above, below = (at > 0) & (t >= low), (at <= 0) & (t <= high)
            low, f_low = np.where(above, t, low), np.where(above, at, f_low)
            high, f_high = np.where(below, t, high), np.where(below, at, f_high)
        if np.all(np.abs(root - before) <= TINY * root):
            break
    return root


def _rest(y: np.ndarray, cap: np.ndarray, *, k: int, ops: Ops) -> np.ndarray:
    """Distance vectors of descending values to `cap` times the ball of Fanion-k."""
    inside = (y[..., :1] <= cap) & (y.sum(axis=-1, keepdims=True) <= k * cap)
    rest: np.ndarray = y - capped_simplex(y, cap, y[..., k - 1 : k], k, ops, -1)
    return np.where(inside, 0.0, rest)


# -- constructors ----------------------------------------------------------------------------


def minkowski_sum(terms: Iterable[tuple[float, MatrixNorm]]) -> MatrixNorm:
    """Return the norm with the unit ball ``sum w_i ball_i``: dual norm and LMO are weighted sums.

    Parameters
    ----------
    terms : iterable of (float, Norm)
        Weights, at least 0 and not all 0, and norms of matrices.

    Returns
    -------
    Norm
        ``dual_norm = sum w_i dual_norm_i``, ``lmo = sum w_i lmo_i``, its dual ``sum w_i`` times the
        norms' duals. Equal norms are merged: a sum that is a multiple of one norm is that. The norm
        itself, and the LMO of the dual, have a closed form for Fanion (or spectral) plus
        Frobenius, elsewhere NotImplementedError. With Fanion of k < min(m, n) they are solved for
        on the host: the singular values are read off a device, and no gradient passes.

    Raises
    ------
    ValueError, TypeError
        For a negative weight, weights that are all 0, a term that is not a norm of matrices.

    Notes
    -----
    The support function of a sum of sets is the sum of their support functions. The weighted sum of
    NORMS is another norm, whose LMO clips the spectrum.

    References
    ----------
    R. T. Rockafellar, Convex Analysis (1970), theorem 13.1.

    Examples
    --------
    >>> import numpy as np
    >>> from polarlib.norms import spectral
    >>> n = minkowski_sum([(0.5, spectral()), (0.5, frobenius())])
    >>> n.lmo(np.diag([3.0, 4.0])).tolist(), round(float(n(np.diag([0.8, 0.9]))), 12)
    ([[0.8, 0.0], [0.0, 0.9]], 1.0)
    """
    merged: dict[MatrixNorm, float] = {}
    what = "a list of pairs of a weight and a norm"
    for term in items("terms", terms, what):
        w, n = items("a term", term, "a pair of a weight and a norm", 2, 2)
        w = number("a weight", w, 0)
        w = w and factor(w, "a weight")  # 0 drops a term; the others need a reciprocal
        instance("the norm of a term", n, MatrixNorm, "a norm of matrices")
        for v, part in n.terms if isinstance(n, MinkowskiSum) else ((1.0, n),):
            # The ball of s * n is that of n over s. A shape would be lost with the factor.
            if isinstance(part, Scaled) and part.shape is None:
                v, part = v / part.factor, part.norm
            if w:
                merged[part] = merged.get(part, 0.0) + w * v
    if not merged:
        raise ValueError("minkowski_sum needs a term with a positive weight")
    if len(merged) == 1:
        (n, w), *_ = merged.items()
        # A ball w times as large is that of a norm 1 / w times as large.
        return (1 / w) * n
    return MinkowskiSum(tuple((w, n) for n, w in merged.items()))


def f_fanion(k: int | None, alpha: float, *, polar: Polar = None) -> MatrixNorm:
    """Return the norm of F-Fanion-k: its LMO is ``alpha U_k V_k^H + (1 - alpha) G / ||G||_F``.

    Parameters
    ----------
    k : int or None
        As in :func:`fanion`.
    alpha : float
        From 0 (Frobenius) to 1 (Fanion-k).
    polar : callable, str, path-like or Schedule, optional
        As in :func:`fanion`.

    Returns
    -------
    Norm
        A :func:`minkowski_sum`. Its dual norm is alpha times Ky Fan's plus 1 - alpha times
        Frobenius'.

    Raises
    ------
    ValueError, TypeError
        For alpha outside [0, 1] and as :func:`fanion`.

    Examples
    --------
    >>> import numpy as np
    >>> f_fanion(1, 0.5).lmo(np.diag([4.0, 3.0])).tolist()
    [[0.9, 0.0], [0.0, 0.3]]
    """
    alpha = number("alpha", alpha, 0, 1)
    return minkowski_sum([(alpha, fanion(k, polar=polar)), (1 - alpha, frobenius())])


def f_muon(alpha: float, *, polar: Polar = None) -> MatrixNorm:
    """Return the norm of F-Muon: its LMO is ``alpha U V^H + (1 - alpha) G / ||G||_F``.

    Parameters
    ----------
    alpha : float
        From 0 (Frobenius) to 1 (spectral).
    polar : callable, str, path-like or Schedule, optional
        As in :func:`spectral`.

    Returns
    -------
    Norm
        :func:`f_fanion` with k = None.

    Raises
    ------
    ValueError, TypeError
        As :func:`f_fanion`.

    Examples
    --------
    >>> f_muon(0.5) == f_fanion(None, 0.5)
    True
    """
    return f_fanion(None, alpha, polar=polar)


def f_neon(alpha: float) -> MatrixNorm:
    """Return the norm of F-Neon: its LMO is ``alpha u_1 v_1^H + (1 - alpha) G / ||G||_F``.

    Parameters
    ----------
    alpha : float
        From 0 (Frobenius) to 1 (nuclear).

    Returns
    -------
    Norm
        :func:`f_fanion` with k = 1.

    Raises
    ------
    ValueError, TypeError
        As :func:`f_fanion`.

    Examples
    --------
    >>> f_neon(0.5) == f_fanion(1, 0.5)
    True
    """
    return f_fanion(1, alpha)


def s_fanion(k: int | None, alpha: float, eta: float, *, polar: Polar = None) -> MatrixNorm:
    """Return the norm of S-Fanion-k: its LMO is ``alpha U_k V_k^H + (1 - alpha) eta sign(G)``.

    Parameters
    ----------
    k : int or None
        As in :func:`fanion`.
    alpha : float
        From 0 (signs) to 1 (Fanion-k).
    eta : float
        Positive: the size of the signs.
    polar : callable, str, path-like or Schedule, optional
        As in :func:`fanion`.

    Returns
    -------
    Norm
        A :func:`minkowski_sum`. Its dual norm is alpha times Ky Fan's plus ``(1 - alpha) eta``
        times the sum of absolute entries. The norm itself raises NotImplementedError.

    Raises
    ------
    ValueError, TypeError
        For alpha outside [0, 1], eta that is not positive and as :func:`fanion`.

    Examples
    --------
    >>> import numpy as np
    >>> s_fanion(1, 0.5, 0.1).lmo(np.diag([4.0, 3.0])).tolist()
    [[0.55, 0.0], [0.0, 0.05]]
    """
    alpha = number("alpha", alpha, 0, 1)
    eta = factor(eta, "eta")
    return minkowski_sum([(alpha, fanion(k, polar=polar)), ((1 - alpha) * eta, lp(math.inf))])


def s_muon(alpha: float, eta: float, *, polar: Polar = None) -> MatrixNorm:
    """Return the norm of S-Muon: its LMO is ``alpha U V^H + (1 - alpha) eta sign(G)``.

    Parameters
    ----------
    alpha : float
        From 0 (signs) to 1 (spectral).
    eta : float
        Positive: the size of the signs.
    polar : callable, str, path-like or Schedule, optional
        As in :func:`spectral`.

    Returns
    -------
    Norm
        :func:`s_fanion` with k = None.

    Raises
    ------
    ValueError, TypeError
        As :func:`s_fanion`.

    Examples
    --------
    >>> s_muon(0.5, 0.1) == s_fanion(None, 0.5, 0.1)
    True
    """
    return s_fanion(None, alpha, eta, polar=polar)
