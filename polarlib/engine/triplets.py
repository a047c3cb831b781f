"""Derivatives of singular triplets and of eigenpairs.

With ``A^H U = V S`` and ``A V = U S`` for k triplets, the part of dv_i orthogonal to V solves

    (s_i^2 - B^H B) dv_i = s_i (I - V V^H) E^H u_i + B^H (I - U U^H) E v_i,    B = A - U S V^H.

The values beyond k must only differ from the others. If k = n, B is zero and V is square: there is
no such part, and nothing is inverted.

For the eigenpairs of a Hermitian matrix, with ``P = V^H E V`` for the Hermitian part of E,

    dw_i = p_ii,    dV = V (F o P),    f_ij = 1 / (w_j - w_i), f_ii = 0,

and the gradient with respect to H is the Hermitian part of ``V (diag(g_w) + F o V^H G_v) V^H``.
M. B. Giles, Lecture Notes in Computational Science and Engineering 64 (2008) 35-44, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polarlib.arrays.entered import Entered, enter
from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import constant, real_part
from polarlib.arrays.library import format_name
from polarlib.arrays.ops import Ops, ops_of
from polarlib.engine.derivatives import tall
from polarlib.engine.rules import by_rules

Array = Any
Function = Callable[[Array], tuple[Array, ...]]


def differentiable_triplets(apply: Function, a: Array, exact: Function) -> tuple[Array, ...]:
    """Return ``apply(a)``, leading singular triplets ``u, s, vh`` or all of them, with their rules.

    `exact` computes them in single precision where those of `apply` are in half precision.
    """
    return by_rules(
        apply,
        a,
        lambda x, results, e: _rule(x, *results).along(e),
        lambda x, results, *gradients: _rule(x, *results).against(*gradients),
        exact=exact,
    )


def differentiable_eigenpairs(apply: Function, h: Array, exact: Function) -> tuple[Array, ...]:
    """Return ``apply(h)``, all eigenvalues and eigenvectors ``w, v``, with their rules.

    `exact` computes them in single precision where those of `apply` are in half precision.
    """
    return by_rules(
        apply,
        h,
        lambda x, results, e: _eigen_rule(x, *results).along(e),
        lambda x, results, *gradients: _eigen_rule(x, *results).against(*gradients),
        exact=exact,
    )


# -- triplets ----------------------------------------------------------------------------------


def _rule(x: Array, u: Array, s: Array, vh: Array) -> _Triplets:
    p = tall(x)
    v = p.ops.adjoint(vh)
    u, v = (v, u) if p.wide else (u, v)
    return _Triplets(p, u, p.ops.divide(s[..., None, :], p.scale), v, p.ops)


class _Triplets(NamedTuple):
    """Tall matrices over powers of two, their triplets ``u_i, s_i, v_i``, and the derivative."""

    at: Entered
    u: Array
    s: Array  # shape (..., 1, k)
    v: Array
    ops: Ops

    def along(self, e: Array) -> tuple[Array, Array, Array]:
        """Return the derivatives of u, s and vh in a direction of the original matrix."""
        ops, u, s, v = self.ops, self.u, self.s, self.v
        e = self.at.alike(e)
        f, eye = self._parts()
        ev, eu = ops.matmul(e, v), ops.matmul(ops.adjoint(e), u)
        p = ops.matmul(ops.adjoint(u), ev)
        q, r = ops.adjoint(p), ops.adjoint(s)
        phase = eye * (p - q) / (4 * s)  # phase of complex vectors, in equal parts
        ev = ev - ops.matmul(u, p)
        dv = ops.matmul(v, f * (s * q + r * p) - phase)
        if not self.is_whole:
            rest = self._rest()
            right = s * (eu - ops.matmul(v, ops.matmul(ops.adjoint(v), eu)))
            t = self._solved(rest, right + ops.matmul(ops.adjoint(rest), ev))
            ev, dv = ev + ops.matmul(rest, t), dv + t
        du = ops.matmul(u, f * (s * p + r * q) + phase) + ev / s
        ds = ops.xp.sum(real_part(eye * p, ops), axis=-1, keepdims=True)
        ds = ops.scale(ds, self.at.scale)[..., 0]
        return (dv, ds, ops.adjoint(du)) if self.at.wide else (du, ds, ops.adjoint(dv))

    def against(self, gu: Array | None, gs: Array | None, gvh: Array | None) -> Array:
        """Return the gradient with respect to the original matrix; None stands for zero."""
        ops, u, s, v = self.ops, self.u, self.s, self.v
        d = 0.0 * ops.matmul(u, ops.adjoint(v))
        if gs is not None:
            d = ops.matmul(u * gs[..., None, :], ops.adjoint(v))
        if gu is not None or gvh is not None:
            gv = None if gvh is None else ops.adjoint(gvh)
            gu, gv = (gv, gu) if self.at.wide else (gu, gv)
            gu, gv = (w * 0.0 if g is None else g for g, w in ((gu, u), (gv, v)))
            f, eye = self._parts()
            ku, kv = (ops.matmul(ops.adjoint(w), g) for w, g in ((u, gu), (v, gv)))
            ku, kv = ku - ops.adjoint(ku), kv - ops.adjoint(kv)
            core = f * (ku * s + ops.adjoint(s) * kv) + eye * (ku - kv) / (4 * s)
            left, right = gu / s, None
            if not self.is_whole:
                rest = self._rest()
                y = self._solved(rest, ops.matmul(ops.adjoint(rest), left) + gv)
                left, right = left + ops.matmul(rest, y), ops.matmul(u, ops.adjoint(y * s))
            left = left - ops.matmul(u, ops.matmul(ops.adjoint(u), left))
            moved = ops.matmul(ops.matmul(u, core) + left, ops.adjoint(v))
            moved = moved if right is None else moved + right
            d = d + ops.divide(moved, self.at.scale)
        return self.at.leave(d)

    @property
    def is_whole(self) -> bool:
        """Whether k = n: V is square, and B is zero."""
        return bool(self.v.shape[-1] == self.v.shape[-2])

    def _rest(self) -> Array:
        """Return B, the matrix without its k triplets."""
        return self.at.x - self.ops.matmul(self.u * self.s, self.ops.adjoint(self.v))

    def _parts(self) -> tuple[Array, Array]:
        """Return ``1 / (s_i^2 - s_j^2)``, 0 for i = j, and I."""
        ops, s = self.ops, self.s
        guard = constant(ops, self._guard, s, s if self.is_whole else ops.gram(self._rest()))
        square = s * s
        same = ops.eye(s.shape[-1], s)
        f = (1.0 - same) / (square - ops.adjoint(square) + same) + guard
        return f, ops.eye(s.shape[-1], self.u)

    def _guard(self, s: Array, gram: Array) -> Array:
        """Return zero; NaN, or an error, if one of the k values is equal to another to rounding."""
        ops = ops_of(gram).functional()
        xp = ops.xp
        if self.is_whole:
            beyond = xp.zeros_like(s[..., :1])
        else:
            beyond = ops.eigh(gram)[0][..., None, -1:]
            beyond = xp.sqrt(xp.where(beyond > 0, beyond, xp.zeros_like(beyond)))
        # Values descend: gaps between neighbours and the gap to the largest value beyond k suffice.
        # As the latter is not negative, the gap also separates the k values from zero.
        gaps = s - xp.concat([s[..., 1:], beyond], axis=-1)
        noise = max(self.at.x.shape[-2:]) * format_of(format_name(s)).epsilon
        return _zero_or_refused(
            xp.min(gaps, axis=-1, keepdims=True),
            noise * s[..., :1],
            f"singular vectors have no derivative where one of the {s.shape[-1]} values is, to "
            "rounding, zero or equal to another one",
            ops,
        )

    def _solved(self, rest: Array, right: Array) -> Array:
        """Solve ``(s_i^2 - B^H B) x = right_i`` for each column i, orthogonal to V."""
        ops, s = self.ops, self.s
        gram = ops.gram(rest)
        shifts = ops.adjoint(s * s)[..., None]
        inverses = ops.inverse(ops.eye(gram.shape[-1], gram) * shifts - gram[..., None, :, :])
        rows = ops.matmul(ops.adjoint(right)[..., None, :], inverses)[..., 0, :]
        t = ops.adjoint(rows)
        return t - ops.matmul(self.v, ops.matmul(ops.adjoint(self.v), t))


# -- eigenpairs --------------------------------------------------------------------------------


def _eigen_rule(x: Array, w: Array, v: Array) -> _Eigenpairs:
    at = enter(x, ops=ops_of(x).functional(), look="never")
    return _Eigenpairs(at, at.ops.divide(w[..., None, :], at.scale), v, at.ops)


class _Eigenpairs(NamedTuple):
    """Hermitian matrices over powers of two, their eigenpairs, and the derivative."""

    at: Entered
    w: Array  # shape (..., 1, n)
    v: Array
    ops: Ops

    def along(self, e: Array) -> tuple[Array, Array]:
        """Return the derivatives of w and v in a direction, whose Hermitian part is used."""
        ops, v = self.ops, self.v
        e = ops.hermitian_part(self.at.alike(e))
        p = ops.matmul(ops.matmul(ops.adjoint(v), e), v)
        dw = ops.xp.sum(real_part(ops.eye(v.shape[-1], v) * p, ops), axis=-1, keepdims=True)
        return ops.scale(dw, self.at.scale)[..., 0], ops.matmul(v, self._factors() * p)

    def against(self, gw: Array | None, gv: Array | None) -> Array:
        """Return the Hermitian gradient with respect to the matrix; None stands for zero."""
        ops, v = self.ops, self.v
        columns = v * 0.0 if gw is None else v * gw[..., None, :]
        if gv is not None:
            core = self._factors() * ops.matmul(ops.adjoint(v), gv)
            columns = columns + ops.divide(ops.matmul(v, core), self.at.scale)
        return self.at.leave(ops.hermitian_part(ops.matmul(columns, ops.adjoint(v))))

    def _factors(self) -> Array:
        """Return ``1 / (w_j - w_i)``, 0 for i = j."""
        ops, w = self.ops, self.w
        same = ops.eye(w.shape[-1], w)
        return (1.0 - same) / (w - ops.adjoint(w) + same) + constant(ops, self._guard, w)

    def _guard(self, w: Array) -> Array:
        """Return zero; NaN, or an error, where two eigenvalues are equal to rounding."""
        ops = ops_of(w).functional()
        xp, n = ops.xp, w.shape[-1]
        if n == 1:
            return xp.zeros_like(w)
        noise = n * format_of(format_name(w)).epsilon
        return _zero_or_refused(
            xp.min(w[..., 1:] - w[..., :-1], axis=-1, keepdims=True),
            noise * xp.max(xp.abs(w), axis=-1, keepdims=True),
            "eigenvectors have no derivative where two eigenvalues are, to rounding, equal",
            ops,
        )


# -- both --------------------------------------------------------------------------------------


def _zero_or_refused(least: Array, noise: Array, why: str, ops: Ops) -> Array:
    """Return zero if the least gap, shape (..., 1, 1), is above rounding; else NaN, or an error."""
    xp = ops.xp
    poor = ~(least > noise) & ~xp.isnan(least)
    if not ops.is_abstract(poor) and bool(xp.any(poor)):
        worst = tuple(int(i) for i in np.argwhere(ops.to_host(poor)[..., 0, 0])[0])
        where = f" in matrix {worst} of the stack" if worst else ""
        raise ValueError(f"{why}{where}; the values alone have a gradient")
    return xp.where(poor, xp.full_like(least, math.nan), xp.zeros_like(least))
