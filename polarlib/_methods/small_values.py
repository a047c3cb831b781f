"""Eigenvalues of stacks of symmetric matrices of up to four columns, by entries."""

from __future__ import annotations

import itertools
from typing import Any

from polarlib._methods.small_algebra import Entries
from polarlib.arrays.ops import Ops

Array = Any
# Sweeps of Jacobi rotations after which eigenvalues are accurate to rounding, by n. Errors are of
# the size of the squared off-diagonal entries. By experiment, for graded and clustered spectra.
SWEEPS = (0, 0, 1, 4, 5)


def eigenvalues(h: Entries, ops: Ops) -> list[Array]:
    """Return eigenvalues of symmetric matrices, scaled to entries of about 1, not sorted.

    Jacobi rotations compute them to a few epsilons of the largest. Closed forms of the roots of the
    characteristic polynomial would lose half of the digits where two are nearly equal.
    """
    n = h.shape[0]
    a = [[h[i, j, :] for j in range(n)] for i in range(n)]
    for _ in range(SWEEPS[n]):
        for p, q in itertools.combinations(range(n), 2):
            _rotate(a, p, q, ops)
    return [a[i][i] for i in range(n)]


def _rotate(a: list[list[Array]], p: int, q: int, ops: Ops) -> None:
    """Rotate so that entry p, q is zero, by the smaller angle, in the upper triangle alone."""
    xp = ops.xp
    twice = 2.0 * a[p][q]
    gap = a[q][q] - a[p][p]
    root = xp.sqrt(gap * gap + twice * twice)
    size = xp.abs(gap) + root
    t = twice / xp.where(size == 0, xp.ones_like(size), size)
    t = xp.where(gap < 0, -t, t)
    shift = 0.5 * t * twice
    a[p][p], a[q][q] = a[p][p] - shift, a[q][q] + shift
    a[p][q] = 0.0 * shift  # NaN is kept
    others = [r for r in range(len(a)) if r not in (p, q)]
    if not others:
        return
    c = 1.0 / xp.sqrt(1.0 + t * t)
    s = t * c
    for r in others:
        (i, j), (k, l) = sorted((r, p)), sorted((r, q))
        x, y = a[i][j], a[k][l]
        a[i][j], a[k][l] = c * x - s * y, s * x + c * y


def ordered(vectors: list[Array], ops: Ops) -> list[Array]:
    """Return vectors sorted entry by entry, ascending; libraries sort short rows slowly."""
    v = list(vectors)
    for end in range(len(v) - 1, 0, -1):
        for i in range(end):
            v[i : i + 2] = ops.xp.minimum(v[i], v[i + 1]), ops.xp.maximum(v[i], v[i + 1])
    return v
