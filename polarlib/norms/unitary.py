"""Unitarily invariant norms: the (k, p)-norms of the singular values, and their duals.

The (k, p)-norm is ``(sum_{i <= k} sigma_i^p)^(1/p)``. With p = 1 it is Ky Fan's, with
k = min(m, n) Schatten's, with k = 1 the spectral norm. The LMO (linear maximisation oracle) of its
dual is, up to scale, ``U_k diag(sigma^(p-1)) V_k^H``: Fanion-k for p = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import polarlib.published as published
from polarlib._schedules.schedule import Schedule
from polarlib._stages.options import check_method
from polarlib.arrays.checks import MOST_ROWS, choice, count, shown
from polarlib.arrays.entry import as_matrix
from polarlib.arrays.functions import above_noise
from polarlib.arrays.library import astype_like
from polarlib.arrays.ops import Ops
from polarlib.decomposition import polar
from polarlib.engine.generalised import (
    ISOMETRY,
    Differences,
    Map,
    clip,
    generalised,
    power_differences,
    quotient,
)
from polarlib.norms.base import A, MatrixNorm, Scaled, capped_simplex, order
from polarlib.norms.mixed import conjugate, frobenius, lp_norm
from polarlib.norms.topk import METHODS, Method, top_singular
from polarlib.orthogonalization import orthogonalize
from polarlib.published import Named

Array = Any
# Method for the LMO of the spectral norm: a function, the name of a method or of a published
# schedule, or a schedule; None for the SVD.
Polar = Callable[[Any], Any] | Named | None


@dataclass(frozen=True, repr=False)
class Unitary(MatrixNorm):
    """The (k, p)-norm of the singular values, or its dual; k is None for min(m, n)."""

    k: int | None
    p: float
    of_dual: bool = False
    # Method of the LMO: for the polar factor (spectral) or the leading triplets (Fanion). Not
    # compared, since it does not change the norm: minkowski_sum merges equal norms.
    solver: Any = field(default=None, compare=False)

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self.k != 1 or self.of_dual or self.solver is None

    def __repr__(self) -> str:
        if self.k is None:
            return f"schatten({self.p:g})"
        if self.k == 1:
            return "nuclear()" if self.of_dual else "spectral()"
        if self.p == 1:
            return f"fanion({self.k})" if self.of_dual else f"ky_fan({self.k})"
        return f"ky_fan{'_dual' * self.of_dual}({self.k}, {self.p:g})"

    def _check(self, shape: tuple[int, ...]) -> None:
        if self.k is not None and 0 not in shape and self.k > min(shape[-2:]):
            raise ValueError(
                f"{self!r} has k = {self.k}, more than min(m, n) = {min(shape[-2:])} of a matrix "
                f"of shape {tuple(shape)}"
            )

    def dual(self) -> MatrixNorm:
        if self.k is None:
            return Unitary(None, conjugate(self.p))
        return Unitary(self.k, self.p, not self.of_dual)

    def _value(self, x: Array, ops: Ops) -> Array:
        return self._gauge(ops.singular_values(x), self.of_dual, ops)[..., None]

    def _gauge(self, s: Array, of_dual: bool, ops: Ops) -> Array:
        """Return the value at descending singular values, shape (..., 1)."""
        k = s.shape[-1] if self.k is None else self.k
        if not of_dual:
            return lp_norm(s[..., :k], self.p, -1, ops)
        if self.p == 1:
            return ops.xp.maximum(s[..., :1], ops.xp.sum(s, axis=-1, keepdims=True) / k)
        head, a = _split(s, k, ops)
        largest = ops.divisor(ops.xp.maximum(a, s[..., :1]))
        count = k - ops.xp.sum(head, axis=-1, keepdims=True)
        q = conjugate(self.p)
        powers = ops.xp.sum(head * (s / largest) ** q, axis=-1, keepdims=True)
        return largest * (powers + count * (a / largest) ** q) ** (1 / q)

    def _weights(self, s: Array, shape: tuple[int, ...], ops: Ops) -> Array:
        """Return the singular values of the LMO."""
        xp = ops.xp
        # Rounding errors are left out: a power q - 1 near 0 would map 1e-16 to about 1.
        kept = xp.astype(above_noise(s, shape, ops), s.dtype)
        k = s.shape[-1] if self.k is None else self.k
        position = _positions(s, ops)
        if self.k is None:
            # The dual is Schatten-q, and t = sigma^(q-1) / ||sigma||_q^(q-1).
            q = conjugate(self.p)
            return kept * (s / ops.divisor(lp_norm(s, q, -1, ops))) ** (q - 1)
        if self.of_dual:
            head = xp.astype(position < k, s.dtype) * kept
            if self.p == 1:
                return head
            size = lp_norm(s[..., :k], self.p, -1, ops)
            return head * (s / ops.divisor(size)) ** (self.p - 1)
        if self.p == 1:
            first = xp.astype(position < 1, s.dtype)
            low_rank = k * s[..., :1] >= xp.sum(s, axis=-1, keepdims=True)
            return kept * xp.where(low_rank, first, xp.full_like(s, 1 / k))
        head, a = _split(s, k, ops)
        size = ops.divisor(self._gauge(s, True, ops))
        return kept * ((head * s + (1 - head) * a) / size) ** (conjugate(self.p) - 1)

    def _differences(self, s: Array, shape: tuple[int, ...], ops: Ops) -> Differences:
        """Return divided differences of the weights of a Schatten norm."""
        e = conjugate(self.p) - 1
        size = lp_norm(s, e + 1, -1, ops)
        weight = quotient(ops.xp.full_like(size, -e), size, 0.0, ops)
        return power_differences(s, self._weights(s, shape, ops), e, size, weight, shape, ops)

    def lmo(self, g: A) -> A:
        if self.exact:
            return super().lmo(g)
        # Directly: the method validates its argument.
        return cast(A, self._polar_factor(g, None))

    def _lmo(self, g: Array, ops: Ops, precision: str) -> Array:
        if not self.exact:
            return self._polar_factor(g, precision)
        if self.k == 1 and not self.of_dual:
            return generalised(g, ISOMETRY)[0]
        if self.k is None:
            return generalised(g, Map(self._weights, self._differences))[0]
        if self.of_dual and self.k is not None and self._iterates(ops):
            u, s, vh = top_singular(g, self.k, method=self.solver or "auto")
        else:
            u, s, vh = svd(g, ops)
        weights = self._weights(s, g.shape, ops)
        if self.of_dual:  # beyond k the weights are zero, and the columns are dropped
            u, vh, weights = u[..., : self.k], vh[..., : self.k, :], weights[..., : self.k]
        return of_spectrum(u, weights, vh, ops)

    def _iterates(self, ops: Ops) -> bool:
        """Return whether to iterate for leading triplets; by default not on a device."""
        return self.solver not in (None, "svd") or (self.solver is None and ops.host)

    def _polar_factor(self, g: Any, precision: str | None) -> Array:
        chosen = self.solver
        if isinstance(chosen, Schedule) or published.target_of(chosen):
            return orthogonalize(g, schedule=chosen, precision=precision)
        if isinstance(chosen, str):
            # The partial isometry, as in the exact LMO of a rank-deficient matrix.
            return polar(g, method=chosen, completion=False).unitary
        if not hasattr(g, "shape"):  # nested lists
            g, _ = as_matrix(g, "g")
        t = chosen(g)
        # A result of polarlib.polar, or a pair as scipy.linalg.polar returns it.
        t = getattr(t, "unitary", t)
        t = t[0] if isinstance(t, tuple) else t
        if getattr(t, "shape", None) != g.shape:
            raise ValueError(
                f"polar={shown(chosen)} must give an array of shape {tuple(g.shape)}, got "
                f"{shown(getattr(t, 'shape', t))}"
            )
        return t

    def _project(self, x: Array, radius: Array, ops: Ops) -> Array:
        if self.k is None or (self.p != 1 and self.k != 1):
            return super()._project(x, radius, ops)
        if self.k > 1 and not self.of_dual:
            return super()._project(x, radius, ops)
        xp = ops.xp
        cap = radius[..., 0]
        if self.of_dual:  # sigma_1 <= radius and sum sigma <= k radius
            u, s, vh = svd(x, ops)
            w = capped_simplex(s, cap, s[..., self.k - 1 : self.k], self.k, ops, axis=-1)
            y = of_spectrum(u, w, vh, ops)
        else:
            y, s = generalised(x, clip(), xp.zeros_like(cap), cap, xp.ones_like(cap))
        inside = self._gauge(s, self.of_dual, ops) <= cap
        # A point of the ball is returned exactly, without the rounding of an SVD.
        return xp.where(inside[..., None], x, y)


def _split(s: Array, k: int, ops: Ops) -> tuple[Array, Array]:
    """Return head and level of the dual (k, p)-norm: the q-norm of ``(head sigma_i, a, a, ...)``.

    The head has r entries, the largest r < k with ``sigma_r > a = sum_{i > r} sigma_i / (k - r)``
    (0 if none is); a occurs k - r times. The condition also holds for every smaller r, so that r is
    a count. The head is returned as an array of ones, and zeros beyond.
    """
    xp = ops.xp
    position = _positions(s, ops)
    # Sums from the tail: differences of sums from the head would cancel.
    tails = xp.flip(xp.cumulative_sum(xp.flip(s, axis=-1), axis=-1), axis=-1)
    above = s[..., : k - 1] > tails[..., 1:k] / (k - 1 - position[..., : k - 1])
    r = xp.sum(xp.astype(above, s.dtype), axis=-1, keepdims=True)
    head = xp.astype(position < r, s.dtype)
    return head, xp.sum((1 - head) * s, axis=-1, keepdims=True) / (k - r)


def _positions(s: Array, ops: Ops) -> Array:
    """Return 0, 1, 2, ... along the last axis, on the device of `s`, also of a traced array."""
    return ops.xp.cumulative_sum(ops.xp.ones_like(s), axis=-1) - 1


def on_tall(f: Callable[[Array, Ops], Array], x: Array, ops: Ops) -> Array:
    """Apply a function that commutes with the adjoint to tall matrices."""
    if x.shape[-2] >= x.shape[-1]:
        return f(x, ops)
    return ops.adjoint(f(ops.adjoint(x), ops))


def svd(x: Array, ops: Ops) -> tuple[Array, Array, Array]:
    """Return the thin SVD of tall and wide matrices."""
    if x.shape[-2] >= x.shape[-1]:  # as ops.svd requires
        return ops.svd(x)
    u, s, vh = ops.svd(ops.adjoint(x))
    return ops.adjoint(vh), s, ops.adjoint(u)


def of_spectrum(u: Array, s: Array, vh: Array, ops: Ops) -> Array:
    """Return ``U diag(s) V^H``."""
    return ops.matmul(u * astype_like(s, u, ops)[..., None, :], vh)


# -- constructors ----------------------------------------------------------------------------


def top_method(method: str) -> str | None:
    """Return the name of a method of `top_singular`, None for "auto"."""
    method = choice("method", method, ("auto", *METHODS))
    return None if method == "auto" else method


def spectral(*, polar: Polar = None) -> MatrixNorm:
    """Return the spectral norm sigma_1; its LMO is the polar factor ``U_r V_r^H``: Muon.

    Parameters
    ----------
    polar : callable, str, path-like or Schedule, optional
        Method for the LMO: a function of the matrix (of a pair, as :func:`scipy.linalg.polar`
        returns it, the first is used), a name of :func:`polarlib.methods` or of
        :func:`polarlib.schedules`, or a schedule. By default the exact partial isometry, from the
        SVD.

    Returns
    -------
    Norm
        Dual: nuclear. The LMO is unique if and only if the rank is min(m, n); otherwise the one of
        least Frobenius norm is returned.

    Raises
    ------
    ValueError, TypeError
        For an unknown name, or another type.

    Notes
    -----
    The LMO by a schedule is inexact: its singular values are the images of those of the matrix, and
    may exceed 1; :func:`duality_gap` is the loss. It costs as much as `orthogonalize`.

    References
    ----------
    J. Bernstein and L. Newhouse, Old optimizer, new norm, arXiv 2409.20325. K. Jordan and others,
    Muon, 2024.

    Examples
    --------
    >>> import numpy as np
    >>> n, g = spectral(), np.diag([3.0, -2.0])
    >>> round(float(n(g)), 12), float(n.dual_norm(g)), n.lmo(g).tolist()
    (3.0, 5.0, [[1.0, 0.0], [0.0, -1.0]])
    """
    polar = published.opened(polar)
    if polar is None or (isinstance(polar, str) and polar in ("auto", "svd")):
        return Unitary(1, 1.0)
    if not callable(polar) or isinstance(polar, Schedule):
        if not isinstance(polar, (str, Schedule)):
            raise TypeError(
                f"polar must be a function, the name of a method or a Schedule, got {shown(polar)}"
            )
        check_method(polar)
    return Unitary(1, 1.0, solver=polar)


def nuclear(*, method: Method = "auto") -> MatrixNorm:
    """Return the nuclear norm, the sum of the singular values; its LMO is ``u_1 v_1^H``.

    Parameters
    ----------
    method : {"auto", "svd", "lanczos", "arpack", "randomized", "block_krylov"}, optional
        Method of :func:`polarlib.top_singular` for the leading triplet of the LMO. "auto" is the
        SVD for small matrices and on devices, else Lanczos.

    Returns
    -------
    Norm
        Dual: spectral. The LMO is unique if and only if sigma_1 > sigma_2; at ties it is the first
        triplet of the SVD.

    Raises
    ------
    ValueError
        For an unknown method.

    Examples
    --------
    >>> import numpy as np
    >>> n = nuclear()
    >>> n.lmo(np.diag([3.0, -2.0])).tolist(), n.project(np.diag([1.0, 0.5])).round(9).tolist()
    ([[1.0, 0.0], [0.0, 0.0]], [[0.75, 0.0], [0.0, 0.25]])
    """
    return Unitary(1, 1.0, True, solver=top_method(method))


def schatten(p: float) -> MatrixNorm:
    """Return the Schatten norm, the p-norm of the singular values.

    Parameters
    ----------
    p : float
        From 1 (nuclear) over 2 (Frobenius) to infinity (spectral).

    Returns
    -------
    Norm
        Dual: Schatten-q, ``1/p + 1/q = 1``. For 1 < p < infinity the LMO
        ``U diag(sigma^(q-1)) V^H / ||sigma||_q^(q-1)`` is unique.

    Raises
    ------
    ValueError
        For p below 1: the convex hull of that ball is the nuclear ball.

    Examples
    --------
    >>> import numpy as np
    >>> float(schatten(3)(np.diag([3.0, 4.0, 5.0]))), schatten(4).dual()
    (6.0, schatten(1.33333))
    """
    p = order("p", p)
    # These three have projections, and two of them an lmo that costs less than an SVD.
    if p == 1:
        return nuclear()
    if p == 2:
        return frobenius()
    return spectral() if p == math.inf else Unitary(None, p)


def rms_to_rms(
    fan_out: int,
    fan_in: int,
    *,
    polar: Polar = None,
) -> MatrixNorm:
    """Return the operator norm between root mean squares, ``sqrt(fan_in / fan_out) * sigma_1``.

    Parameters
    ----------
    fan_out, fan_in : int
        Outputs and inputs of a layer: the matrix is fan_out x fan_in, or its transpose.
    polar : callable, str, path-like or Schedule, optional
        As in :func:`spectral`.

    Returns
    -------
    Norm
        Its LMO is ``sqrt(fan_out / fan_in) U_r V_r^H``: "Linear" in Modula, "Spectral" in Scion.

    Raises
    ------
    ValueError
        If a fan is not a positive integer; of the norm, for matrices of another shape.

    Examples
    --------
    >>> import numpy as np
    >>> n = rms_to_rms(4, 1)
    >>> float(n(np.ones((4, 1)))), n.lmo(np.ones((4, 1))).ravel().tolist()
    (1.0, [1.0, 1.0, 1.0, 1.0])
    """
    shape = count("fan_out", fan_out, most=MOST_ROWS), count("fan_in", fan_in, most=MOST_ROWS)
    return Scaled(math.sqrt(shape[1] / shape[0]), spectral(polar=polar), shape)
