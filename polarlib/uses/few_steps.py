"""Square roots of well-conditioned matrices on the host, by a few inverses and products.

LAPACK's Schur decomposition of a small matrix takes several times as long as inverses and products,
and NumPy computes the latter for whole stacks. Two to four steps of the product form of Denman and
Beavers' iteration (N. J. Higham, Functions of Matrices (SIAM, 2008), equation (6.29)) bring M near
the identity. Since ``X^2 = A M`` in every step, the root is ``X M^(-1/2)``. The last factor is
computed from its series, by products alone.

Every root must pass two checks; a matrix that fails one is left to the Schur decomposition. The
first check is the residual. The second is that no eigenvalue lies where the root is refused, as
follows. Let w be an eigenvalue of M and z its root, of angle t to the positive axis. In a step with
scaling, ``mu z = r e^(it)``, z becomes

    z' = (r e^(it) + e^(-it) / r) / 2,    |z'|^2 = sinh(log r)^2 + cos(t)^2,
    cos(t') = cos(t) cosh(log r) / |z'| <= cos(t) sqrt(1 + 1 / |w'|) <= cos(t) sqrt(1 + |M'^-1|).

At the end ``|M - I| <= NEAR``, so that cos(t) is nearly 1 and the last root at most 1.6. Hence
``cos(t) >= 0.63 / P`` in the first step, P the product of the other roots, which the iteration
accumulates. The eigenvalue of A has the angle 2 t and at least the modulus ``1 / |A^-1|``. The
larger one of |Im| and Re is therefore at least ``0.89 |A| / (P |A| |A^-1|)``. This bound must
exceed the threshold of refusal by a factor that makes rounding negligible.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import numpy as np

Array = Any

# Largest number of inverses: nearly all well-conditioned matrices need two or three.
STEPS = 5
# Largest factor by which one step reduces a distance of M from the identity above NEAR.
PACE = 4.0
# Distance of M from the identity below which the series is used.
NEAR = 0.3
# Distance above which the series is applied twice, since one application would need many blocks.
SHORT = 0.1
# Distance above which steps are scaled, as in :mod:`polarlib.uses.general_roots`.
SCALE_ABOVE = 1e-2
# Lower bounds of the eigenvalues' distance from the axis: over the threshold of refusal, over |A|.
MARGIN, LEAST = 64.0, 2.0**-27
# Entries of matrices per piece: the temporary arrays fit in the cache.
ENTRIES = 8192
UNIT = 2.0**-53


def by_few_steps(a: np.ndarray, cut: float, close: float) -> tuple[np.ndarray, np.ndarray]:
    """Return square roots of a stack of matrices, and which of them pass both checks.

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
        Undefined where `shown` is False.
    shown : ndarray of bool, shape (k,)
        Whether the root passes both checks.
    """
    out, shown = np.empty_like(a), np.zeros(len(a), bool)
    most = min(1 / LEAST, 1 / (MARGIN * cut))
    count = max(1, ENTRIES // a[0].size)
    with np.errstate(all="ignore"):
        for i in range(0, len(a), count):
            part = slice(i, i + count)
            # An error means that a matrix of this piece is singular.
            with contextlib.suppress(np.linalg.LinAlgError):
                _iterate(a[part], most, close, out[part], shown[part])
    return out, shown


def _iterate(a: Array, most: float, close: float, out: Array, shown: Array) -> None:
    rest, x, m, size = np.arange(len(a)), a, a, _norms(a)
    bound = size  # becomes |A| |A^-1| times the product of the roots
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
        if k:  # leave out matrices that cannot converge in the remaining steps
            known &= left <= max(NEAR, PACE ** (STEPS - 2 - k))
        ready = known & (left <= NEAR)
        going = known & ~ready
        # Matrices that have converged stay in the piece while the others are more numerous.
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
    """Return ``(I + E)^(-1/2)`` to rounding by its series, in blocks of 4 powers; |E| <= `left`."""
    if left > SHORT:  # by the first block Q, which leaves 0.63 |E|^4 of (I + E) Q^2 - I
        q = _blocks(e, 1)
        rest = _add_to_diagonal(q @ (q + e @ q), -1.0)
        return q @ _inverse_root(rest, 0.63 * left**4)
    blocks = max(1, math.ceil(math.log(UNIT) / (4 * math.log(max(left, UNIT)))))
    return _blocks(e, blocks)


def _blocks(e: Array, blocks: int) -> Array:
    """Return the sum of the first blocks of the series."""
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
    """Return the Taylor coefficients of ``(1 + x)^(-1/2)``, four per row."""
    c = [1.0]
    for j in range(1, 4 * blocks):
        c.append(-c[-1] * (2 * j - 1) / (2 * j))
    table = np.array(c).reshape(blocks, 4)
    table.setflags(write=False)
    return table


def _add_to_diagonal(x: Array, number: Any) -> Array:
    """Add a number to the diagonals of row-major matrices in place, and return them."""
    n = x.shape[-1]
    x.reshape(len(x), n * n)[:, :: n + 1] += number
    return x


def _norms(x: Array) -> Array:
    """Return the Frobenius norms of a stack."""
    flat = x.reshape(len(x), -1).view(np.float64)
    return np.sqrt(np.einsum("ki,ki->k", flat, flat))
