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

    A column that is zero up to the square root of the smallest number, next to matrices of norm 1,
    is replaced by zero: Q is orthonormal all the same.

    Parameters
    ----------
    x : array, shape (m, n, batch)
        m > n; of norm about 1. Not changed.
    ops : Ops
        Arithmetic.
    """
    xp = ops.xp
    _, n, batch = x.shape
    form = format_of(format_name(x))
    negligible = form.smallest_normal / form.epsilon
    reflectors: list[tuple[Entries, Array]] = []
    rows: list[Array] = []
    rest = x
    for k in range(n):
        column = rest[:, :1, :]
        norm2 = frobenius2(column, ops)
        good = norm2 > negligible
        turn, size = phase_of(column[0, 0, :], ops)
        norm = xp.sqrt(norm2)
        # Of the two signs, that for which nothing cancels in v = x - alpha e_1.
        alpha = xp.where(good, -turn * norm, 0.0 * column[0, 0, :])
        head = column[:1, :, :] - alpha
        v = xp.concat([head, column[1:, :, :]], axis=0)
        # 2 / ||v||^2, and no reflection where the column is negligible.
        beta = xp.where(good, norm2 + norm * size, xp.ones_like(norm2))
        beta = xp.where(good, 1.0 / beta, xp.zeros_like(beta))
        reflectors.append((v, beta))
        rest = _reflected(rest[:, 1:, :], v, beta, ops)
        alpha = xp.reshape(alpha, (1, 1, batch))
        rows.append(xp.concat([0.0 * alpha] * k + [alpha, rest[:1, :, :]], axis=1))
        rest = rest[1:, :, :]

    def back(u: Entries) -> Entries:
        y = xp.concat([u, xp.zeros_like(x[n:, :, :])], axis=0)
        for k, (v, beta) in reversed(list(enumerate(reflectors))):
            lower = _reflected(y[k:, :, :], v, beta, ops)
            y = xp.concat([y[:k, :, :], lower], axis=0) if k else lower
        return y

    return xp.concat(rows, axis=0), back


def _reflected(y: Entries, v: Entries, beta: Array, ops: Ops) -> Entries:
    """``Y - beta v v^H Y``."""
    if 0 in y.shape[:2]:
        return y
    w = ops.entry_product(conj_of(ops.xp.permute_dims(v, (1, 0, 2)), ops), y)
    w *= beta
    return y - v * w
