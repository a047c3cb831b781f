"""Spectral divide and conquer: a Hermitian matrix is divided into blocks by polar factors.

With the unitary polar factor S of ``H - sigma I``, a Hermitian matrix whose eigenvalues are signs,
``(I - S) / 2`` projects onto the eigenvectors below sigma and ``(I + S) / 2`` onto the others.
Orthonormal bases of both subspaces make H block diagonal, and each block is divided in turn.
Y. Nakatsukasa and N. J. Higham, SIAM J. Sci. Comput. 35 (2013) A1325-A1349, algorithm QDWH-eig
(section 3). Three parts differ from the paper. Both bases are computed at once, from projected
Gaussian columns. A second sign is computed if the shift is an eigenvalue. The last step is a
Newton-Schulz step.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from polarlib._stages.options import default_tolerance
from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import real_part, trace
from polarlib.arrays.library import astype_like, format_name
from polarlib.arrays.ops import Ops
from polarlib.arrays.settings import held_back
from polarlib.decomposition import unitary_factor

Array = Any

# The method for polar factors. "auto" would use the SVD for small matrices in NumPy.
METHOD = "qdwh"
# Largest norm of the off-diagonal block after a division, and of the off-diagonal part of a block
# that counts as diagonal, in units of ``sqrt(n) u |H|_F``. Measured after divisions: 0.2 to 0.9
# (docs/evidence/spectral_division.md).
LEFT, DIAGONAL = 4.0, 1.0
# Skew part, in units of n u, above which the Hermitian part of a polar factor is decomposed again.
# Factors of nonsingular matrices have 0.5 to 2, those of singular ones at least 1e13, in double
# precision.
SKEW = 100.0
# Largest number of polar factors per sign. Two suffice unless a Hermitian part is singular.
MOST_SIGNS = 3
# The same random numbers for every library. Not 0, the usual seed of test matrices.
SEED = 2013


class Split(NamedTuple):
    """A division of a block.

    Attributes
    ----------
    order, below : int
        Order of the block, and how many of its eigenvalues are below the shift.
    signs : int
        Number of polar factors that were computed for the division.
    left : float
        ``|V_2^H H V_1|_F``, in units of ``sqrt(n) u |H|_F`` of the whole matrix.
    """

    order: int
    below: int
    signs: int
    left: float


class Division(NamedTuple):
    """Eigenpairs of one matrix, and the divisions that led to them.

    Attributes
    ----------
    w, v : array, shape (n,), (n, n)
        As :func:`eigh_polar` returns them.
    splits : tuple of Split
        Divisions, in their order.
    finished : tuple of int
        Orders of the blocks that the library's ``eigh`` has decomposed.
    refused : tuple of int
        Orders of those of the finished blocks that no shift has divided.
    """

    w: Array
    v: Array
    splits: tuple[Split, ...]
    finished: tuple[int, ...]
    refused: tuple[int, ...]


def division(z: Array, ops: Ops, smallest: int) -> Division:
    """Divide one Hermitian matrix, with entries of about 1, into blocks that need no division.

    Parameters
    ----------
    z : array, shape (n, n)
        In at least single precision.
    ops : Ops
        Its arithmetic.
    smallest : int
        Order of blocks up to which the library's ``eigh`` is used.
    """
    unit = format_of(format_name(z)).unit_roundoff * math.sqrt(z.shape[-1]) * _norm(z, ops)
    todo: list[tuple[Array, Array | None]] = [(z, None)]
    pairs: list[tuple[Array, Array]] = []
    splits: list[Split] = []
    finished: list[int] = []
    refused: list[int] = []
    rng = np.random.default_rng(SEED)
    while todo:  # the blocks of the smallest eigenvalues first
        block, basis = todo.pop()
        n = block.shape[-1]
        known = _if_diagonal(block, DIAGONAL * unit, ops)
        if known is None and n > smallest:
            found = _divided(block, unit, rng, ops)
            if found is not None:
                split, parts = found
                splits.append(split)
                turned = [(b, q if basis is None else ops.matmul(basis, q)) for b, q in parts]
                todo += reversed(turned)
                continue
            refused.append(n)
        if known is None:
            finished.append(n)
            known = ops.eigh(block)
        pairs.append((known[0], known[1] if basis is None else ops.matmul(basis, known[1])))
    if not splits:
        ((w, v),) = pairs
        return Division(w, v, (), tuple(finished), tuple(refused))
    better = _refined(z, ops.xp.concat([v for _, v in pairs], axis=-1), ops)
    if better is None:
        finished, refused = [z.shape[-1]], [z.shape[-1]]
        better = ops.eigh(z)
    return Division(*better, tuple(splits), tuple(finished), tuple(refused))


def _norm(z: Array, ops: Ops) -> float:
    return ops.item(ops.frobenius(z))


def _if_diagonal(z: Array, limit: float, ops: Ops) -> tuple[Array, Array] | None:
    """Return the eigenpairs of a matrix with an off-diagonal norm of at most `limit`, else None."""
    n = z.shape[-1]
    eye = ops.eye(n, z)
    if not _norm(z - eye * z, ops) <= limit:
        return None
    d = ops.to_host(ops._diagonal(z)).real
    order = np.argsort(d, kind="stable")
    return ops.from_host(d[order], z), astype_like(ops.from_host(np.eye(n)[:, order], z), z, ops)


def _divided(
    z: Array, unit: float, rng: np.random.Generator, ops: Ops
) -> tuple[Split, list[tuple[Array, Array]]] | None:
    """Divide a block by the first shift that passes the check; return None if no shift does."""
    n, signs = z.shape[-1], 0
    for shift in _shifts(z, ops):
        s, taken = _sign(z - ops.eye(n, z) * shift, ops)
        signs += taken
        mean = ops.item(trace(s, ops)) / n
        below = round(n * (1 - mean) / 2) if math.isfinite(mean) else 0
        if not 0 < below < n:
            continue
        q = _bases(s, below, rng, ops)
        t = ops.matmul(ops.adjoint(q), ops.matmul(z, q))
        left = _norm(t[below:, :below], ops)
        if left <= LEFT * unit:  # NaN is not
            parts = [
                (ops.hermitian_part(t[:below, :below]), q[:, :below]),
                (ops.hermitian_part(t[below:, below:]), q[:, below:]),
            ]
            return Split(n, below, signs, left / unit), parts
    return None


def _shifts(z: Array, ops: Ops) -> list[float]:
    """Return the shifts: the median of the diagonal, the mean eigenvalue, and two near the mean.

    The mean lies between the extreme eigenvalues, unless they are equal. The last two shifts, half
    a standard deviation from the mean, avoid a multiple eigenvalue there.
    """
    d = ops.to_host(ops._diagonal(z)).real
    mean = float(np.mean(d))
    deviation = _norm(z - ops.eye(len(d), z) * mean, ops) / math.sqrt(len(d))
    shifts = (float(np.median(d)), mean, mean + deviation / 2, mean - deviation / 2)
    return list(dict.fromkeys(shifts))


def _sign(x: Array, ops: Ops) -> tuple[Array, int]:
    """Return the sign of a Hermitian matrix, computed by polar factors, and their number.

    If eigenvalues of x are zero to rounding, the polar factor maps their eigenvectors to arbitrary
    orthonormal vectors of the same space, and may not be Hermitian. It still commutes with x to
    rounding, since ``(a - b) / (|a| + |b|)`` is at most 1 for eigenvalues a and b. Its Hermitian
    part commutes with x too, and the sign of the Hermitian part is a sign of x.
    """
    limit = SKEW * x.shape[-1] * format_of(format_name(x)).unit_roundoff
    taken, skew = 0, math.inf
    while skew > limit and taken < MOST_SIGNS:
        with held_back():  # no warning for a factor that has not converged: the division is checked
            u = unitary_factor(x, method=METHOD)
        x, taken = ops.hermitian_part(u), taken + 1
        skew = _norm(u - x, ops)
    return x, taken


def _bases(s: Array, below: int, rng: np.random.Generator, ops: Ops) -> Array:
    """Return orthonormal bases of both eigenspaces of a sign matrix: first that of -1, then +1.

    Both projectors are applied at once, as ``(X + S X D) / 2``, D the signs of the columns. The
    projections of Gaussian columns have condition numbers of about n, which amplify rounding
    errors. The projections of the resulting bases are nearly orthonormal, and a second application
    removes the amplified errors (subspace iteration, section 3.1 of the paper).
    """
    n = s.shape[-1]
    signs = ops.from_host(np.where(np.arange(n) < below, -0.5, 0.5)[None, :], s)
    q = astype_like(ops.from_host(rng.standard_normal((n, n)), s), s, ops)
    for _ in range(2):
        q, _ = ops.qr(q * 0.5 + ops.matmul(s, q) * signs)
    return q


def _refined(z: Array, v: Array, ops: Ops) -> tuple[Array, Array] | None:
    """Return ascending eigenpairs from approximate vectors; None if they fail the check.

    A Newton-Schulz step restores the orthogonality that products of bases have lost. Rayleigh
    quotients have an error of second order in the residual. Residual and orthogonality must be
    within the tolerance of `polar`.
    """
    tolerance = default_tolerance(z.shape, format_name(z))
    defect = ops.add_diagonal(ops.gram(v), -1.0)
    v = ops.gemm(v, defect, v, alpha=-0.5, beta=1.0)
    zv = ops.matmul(z, v)
    w = ops.xp.sum(real_part(ops.xp.conj(v) * zv, ops), axis=-2)
    residual = _norm(zv - v * w, ops)
    size = math.sqrt(z.shape[-1])
    right = _norm(defect, ops) <= tolerance * size and residual <= tolerance * _norm(z, ops)
    return _ascending(w, v, ops) if right else None  # NaN is not


def _ascending(w: Array, v: Array, ops: Ops) -> tuple[Array, Array]:
    """Sort eigenpairs: rounding can leave values near a shift out of order."""
    known = ops.to_host(w)
    if (known[1:] >= known[:-1]).all():
        return w, v
    xp = ops.xp
    order = xp.asarray(np.argsort(known, kind="stable"), device=ops._device_of(w))
    return xp.take(w, order), xp.take(v, order, axis=-1)
