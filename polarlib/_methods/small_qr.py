"""Householder's QR factorisation of stacks of tall matrices of up to four columns, by entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polarlib._methods.small_algebra import Entries, conj_of, frobenius2, phase_of
from polarlib.arrays.formats import format_of
from polarlib.arrays.library import format_name
from polarlib.arrays.ops import Ops

Array = Any


def reduced(x: Entries, ops: Ops) -> tuple[Entries, Callable[[Entries], Entries]]:
    """Return R of ``X = Q R``, and the function that maps U to ``Q U``.

    A column whose norm is at most the square root of the smallest number is replaced by zero; Q is
    orthonormal nevertheless.

    Parameters
    ----------
    x : array, shape (m, n, batch)
        m > n; of norm about 1. Not modified.
    ops : Ops
        Arithmetic.

    References
    ----------
    R. Schreiber and C. Van Loan, SIAM J. Sci. Stat. Comput. 10 (1989) 53-57 (the product of
    reflections as ``I - V T V^H``).
    """
    xp = ops.xp
    n = x.shape[1]
    form = format_of(format_name(x))
    negligible = form.smallest_normal / form.epsilon
    zero = 0.0 * x[:1, :1, :]  # NaN where the matrix is NaN
    vectors: list[Entries] = []
    betas: list[Array] = []
    rows: list[Entries] = []
    rest = x
    for k in range(n):
        column = rest[:, :1, :]
        norm2 = frobenius2(column, ops)
        good = norm2 > negligible
        turn, size = phase_of(column[0, 0, :], ops)
        norm = xp.sqrt(norm2)
        # The sign for which v = x - alpha e_1 has no cancellation.
        alpha = xp.where(good, turn * -norm, zero[0, 0, :])[None, None, :]
        v = xp.concat([column[:1, :, :] - alpha, column[1:, :, :]], axis=0)
        # 2 / ||v||^2, and no reflection where the column is negligible.
        beta = xp.where(good, 1.0 / (norm2 + norm * size), xp.zeros_like(norm2))
        if k < n - 1:
            rest = rest[:, 1:, :]
            w = ops.entry_product(_adjoint(v, ops), rest)
            w *= beta
            rest = rest - v * w
        vectors.append(xp.concat([zero] * k + [v], axis=0))
        betas.append(beta)
        right = [rest[:1, :, :]] if k < n - 1 else []
        rows.append(xp.concat([zero] * k + [alpha, *right], axis=1))
        rest = rest[1:, :, :]
    v = xp.concat(vectors, axis=1)
    t = _triangular(v, betas, ops)

    def back(u: Entries) -> Entries:
        # Q = I - V T V^H, whose first columns are multiplied by U.
        w = ops.entry_product(_adjoint(v[:n, :, :], ops), u)
        y = ops.entry_product(v, ops.entry_product(t, w))
        return xp.concat([u - y[:n, :, :], -y[n:, :, :]], axis=0)

    return xp.concat(rows, axis=0), back


def _adjoint(v: Entries, ops: Ops) -> Entries:
    return conj_of(ops.xp.permute_dims(v, (1, 0, 2)), ops)


def _triangular(v: Entries, betas: list[Array], ops: Ops) -> Entries:
    """Return T of ``I - V T V^H``, the product of the reflections ``I - beta v v^H``."""
    xp = ops.xp
    gram = ops.entry_product(_adjoint(v, ops), v)
    t = xp.astype(betas[0], v.dtype)[None, None, :]
    for k, beta in enumerate(betas[1:], 1):
        above = ops.entry_product(t, gram[:k, k : k + 1, :]) * -beta
        below = xp.concat([0.0 * t[:1, :, :], xp.astype(beta, v.dtype)[None, None, :]], axis=1)
        t = xp.concat([xp.concat([t, above], axis=1), below], axis=0)
    return t
