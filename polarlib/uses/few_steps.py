"""Square roots of well-conditioned matrices on the host, by a few inverses and products.

LAPACK's Schur decomposition of a small matrix costs several times what inverses and products of it
cost, and NumPy has the latter for whole stacks. Two to four steps of the product form of Denman and
Beavers' iteration (N. J. Higham, Functions of Matrices (SIAM, 2008), equation (6.29)) bring M near
the identity; as ``X^2 = A M`` throughout, the root is ``X M^(-1/2)``, the last factor by its
series, which is products alone.

Nothing is taken without two checks, and what fails one is left to the Schur decomposition. First
the residual. Second that no eigenvalue is where it is refused, as follows. An eigenvalue w of M and
its root z, of angle t to the positive axis, become by a step with scaling, ``mu z = r e^(it)``,

    z' = (r e^(it) + e^(-it) / r) / 2,    |z'|^2 = sinh(log r)^2 + cos(t)^2,
    cos(t') = cos(t) cosh(log r) / |z'| <= cos(t) sqrt(1 + 1 / |w'|) <= cos(t) sqrt(1 + |M'^-1|).

At the end ``|M - I| <= NEAR``, so that cos(t) is nearly 1 and the last root at most 1.6. At the
beginning, then, ``cos(t) >= 0.63 / P``, P the product of the other roots, which the iteration
computes in passing. The eigenvalue of A has the angle 2 t and at least the modulus ``1 / |A^-1|``:
the larger one of |Im| and Re is at least ``0.89 |A| / (P |A| |A^-1|)``. A matrix is left where this
does not exceed what is refused by so much that rounding does not count.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import numpy as np

Array = Any

# Inverses: nearly all well-conditioned matrices take two or three.
STEPS = 5
# How many times as near a step brings what is far, at best: of a few that take their time.
PACE = 4.0
# Distance of M from the identity below which the series takes over.
NEAR = 0.3
# Distance above which the series is taken twice: it would need many blocks.
SHORT = 0.1
# Distance above which steps are scaled, as in other such iterations here.
SCALE_ABOVE = 1e-2
# What eigenvalues are shown to be away from the axis, over what is refused, and over |A|.
MARGIN, LEAST = 64.0, 2.0**-27
# Entries of matrices that are worked on together: temporary arrays stay in the cache.
ENTRIES = 8192
UNIT = 2.0**-53


def by_few_steps(a: np.ndarray, cut: float, close: float) -> tuple[np.ndarray, np.ndarray]:
    """Return square roots of a stack of matrices, and which are shown.

    Parameters
    ----------
    a : ndarray, shape (k, n, n)
        Finite, in double precision, with entries of about 1.
    cut : float
        Distance from the negative axis, over ``|A|``, of eigenvalues that are refused.
    close : float
        Bound of ``|X^2 - A| / (n u |X|^2)``.

    Returns
    -------
    x : ndarray, shape (k, n, n)
        Of no meaning where nothing is shown.
    shown : ndarray of bool, shape (k,)
    """
    out, shown = np.empty_like(a), np.zeros(len(a), bool)
    most = min(1 / LEAST, 1 / (MARGIN * cut))
    count = max(1, ENTRIES // a[0].size)
    with np.errstate(all="ignore"):
        for i in range(0, len(a), count):
            part = slice(i, i + count)
            # An error is of a singular matrix among these.
            with contextlib.suppress(np.linalg.LinAlgError):
                _iterate(a[part], most, close, out[part], shown[part])
    return out, shown


def _iterate(a: Array, most: float, close: float, out: Array, shown: Array) -> None:
    rest, x, m, size = np.arange(len(a)), a, a, _norms(a)
    bound = size  # to be |A| |A^-1| and all the roots
    far = np.ones(len(a), bool)
    for k in range(STEPS):
        inverse = np.linalg.inv(m)
        upper = _norms(inverse)
        bound = bound * (np.sqrt(1 + upper) if k else upper)
        root = np.where(far, np.sqrt(np.sqrt(upper / size)), 1.0)[:, None, None]
        # X (mu I + M^-1 / mu) / 2, and E = M - I for the new M.
        inverse *= 0.5 / root
        m = m * (0.25 * root**2)
        m += inverse * (0.5 / root)
        e = _add_to_diagonal(m, -0.5)
        x = x @ _add_to_diagonal(inverse, 0.5 * root[:, 0])
        left = _norms(e)
        known = bound <= most
        if k:  # what is far does not come near in the steps that there are
            known &= left <= max(NEAR, PACE ** (STEPS - 2 - k))
        ready = known & (left <= NEAR)
        going = known & ~ready
        # What is ready waits for the others, as long as these are more.
        if ready.any() and (2 * going.sum() <= len(rest) or k == STEPS - 1):
            chosen = slice(None) if ready.all() else ready
            y = x[chosen] @ _inverse_root(e[chosen], float(left[chosen].max()))
            which = rest[chosen]
            out[which] = y
            error = _norms(y @ y - a[which])
            shown[which] = error <= close * a.shape[-1] * UNIT * _norms(y) ** 2
            known = going
        if not known.all():
            rest, x, e, left, bound = (z[known] for z in (rest, x, e, left, bound))
        if not len(rest):
            return
        far, m = left > SCALE_ABOVE, _add_to_diagonal(e, 1.0)
        size = _norms(m)


def _inverse_root(e: Array, left: float) -> Array:
    """``(I + E)^(-1/2)`` to rounding, by its series in blocks of four powers; ``|E| <= left``."""
    if left > SHORT:  # by the first block Q, which leaves 0.63 |E|^4 of (I + E) Q^2 - I
        q = _blocks(e, 1)
        rest = _add_to_diagonal(q @ (q + e @ q), -1.0)
        return q @ _inverse_root(rest, 0.63 * left**4)
    blocks = max(1, math.ceil(math.log(UNIT) / (4 * math.log(max(left, UNIT)))))
    return _blocks(e, blocks)


def _blocks(e: Array, blocks: int) -> Array:
    """First blocks of the series."""
    table = _series(blocks)
    powers = np.empty((3, *e.shape), e.dtype)
    powers[0] = e
    np.matmul(e, e, out=powers[1])
    np.matmul(e, powers[1], out=powers[2])
    # One product for all blocks, without their first powers.
    parts = (table[:, 1:].astype(e.dtype) @ powers.reshape(3, -1)).reshape(blocks, *e.shape)
    total = _add_to_diagonal(parts[-1], table[-1, 0])
    if blocks > 1:
        fourth = powers[1] @ powers[1]
    for b in reversed(range(blocks - 1)):
        total = fourth @ total
        total += _add_to_diagonal(parts[b], table[b, 0])
    return total


@functools.lru_cache(maxsize=16)
def _series(blocks: int) -> Array:
    """Coefficients of ``(1 + x)^(-1/2)``, four in a row."""
    c = [1.0]
    for j in range(1, 4 * blocks):
        c.append(-c[-1] * (2 * j - 1) / (2 * j))
    table = np.array(c).reshape(blocks, 4)
    table.setflags(write=False)
    return table


def _add_to_diagonal(x: Array, number: Any) -> Array:
    """Return X, row-major, with a number added to its diagonals, in place."""
    n = x.shape[-1]
    x.reshape(len(x), n * n)[:, :: n + 1] += number
    return x


def _norms(x: Array) -> Array:
    """Frobenius norms of a stack."""
    flat = x.reshape(len(x), -1).view(np.float64)
    return np.sqrt(np.einsum("ki,ki->k", flat, flat))
