"""Stacks of matrices of at most four columns: the same few operations on all of them at once.

A stack of n x n matrices is worked on as n^2 vectors, one an entry, so that every operation is one
of vectors and runs at the speed of memory that is near: a stack on the host is taken in parts that
stay in cache. Nearly all matrices go through `_fast`, closed forms and cofactors; the few that
would lose accuracy there, singular ones and zero among them, are found by value and go through
`_robust`, a Jacobi SVD of the same kind on the host (elsewhere the library's SVD, of the whole
stack, since which ones they are is not read off a device).

The closed form of n = 3. With C = phase(det A) conj(cofactors of A), which is U (det H) H^-1, and
the invariants i1, i2, i3 of H (trace, sum of principal minors, determinant), the theorem of Cayley
and Hamilton for H makes

    (i1 i2 - i3) U = i1 C + A ((i1^2 - i2) I - A^H A).

i3 = |det A|, i1^2 = ||A||^2 + 2 i2, and i1 is the largest root of a quartic whose roots are all
real: Newton's iteration from above. An error of i1 makes a polynomial of H out of the identity: U
is then right up to a Hermitian factor near I, and one more Newton step for the polar factor removes
it. Rounding is magnified by ||A||^3 / (i1 i2 - i3), about sigma_1 / (sigma_2 + sigma_3): matrices
of rank two lose nothing, those near rank one go the other way. Without the phase the same formula
is the nearest rotation, with sigma_3 taken negative where det A is. Rotations are checked: polar
factors come with their evidence, and a rotation is orthogonal, has the determinant +1, and
``R^T A`` is symmetric without two eigenvalues of negative sum.

The other n. Newton's step X <- X / ||X|| + C / ||C|| is the one scaled best in Frobenius norm, and
does not divide by the determinant: rank n - 1 does not stop it. For n = 2 the first step is exact.

N. J. Higham, Functions of Matrices (SIAM, 2008), section 8.6 (the scaled iteration); N. J. Higham
and V. Noferini, Numer. Algorithms 73 (2016) 349-369 (the quartic for n = 3); J. Demmel and
K. Veselic, SIAM J. Matrix Anal. Appl. 13 (1992) 1204-1245 (one-sided Jacobi).
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from polarlib.formats import format_of
from polarlib.ops import Ops, dtype_name
from polarlib.result import Run, ignore_float_errors

__all__ = ["Decomposition", "decompose", "rotation", "small"]

Array = Any
# Entries of a stack of matrices: entries[i][j] has shape (batch,).
Entries = list[list[Array]]

LARGEST = 4
# Matrices in a stack from which this beats one SVD each, by n: some 300 calls of the array library
# (1000 for n = 4) take their time whatever there is to do. By experiment.
WORTH = (0, 4, 6, 10, 250)
# Matrices a part, on the host: some forty vectors of it fill a second-level cache. By experiment.
CHUNK = 8192
# Newton steps for the largest root of the quartic: the error left is below 1e-8, and is squared by
# the step for the polar factor. Rotations nearest to reflections start farther from the root. By
# experiment, over everything above SAFE_CLOSED_FORM: 5 and 7 are enough.
QUARTIC_STEPS, QUARTIC_STEPS_SIGNED = 5, 8
# Scaled Newton steps of n = 4, for everything above SAFE_NEWTON. By experiment.
NEWTON_STEPS = 6
# Below these, rounding costs more than five epsilons of backward error, and the matrix goes the
# robust way: (i1 i2 - i3) / ||A||^3 for n = 3, and ||C|| / ||A||^3 for n = 4, where an uncertain
# phase of the determinant makes complex matrices worse. By experiment.
SAFE_CLOSED_FORM = 1 / 10
# Since i1^2 <= 3 ||A||^2 and i2^2 <= 3 ||C||^2, i1 i2 - i3 is at most 10/3 ||A|| ||C||: below this
# ||C|| / ||A||^2 it must fall below SAFE_CLOSED_FORM, but Newton's iteration for i1 may divide by
# rounding errors and end anywhere.
NEAR_RANK_ONE = 3 / 10 * SAFE_CLOSED_FORM
SAFE_NEWTON, SAFE_NEWTON_COMPLEX = 1 / 48, 1 / 12
# Sweeps of Jacobi rotations that make columns orthogonal to rounding, by n. By experiment.
SWEEPS = (0, 0, 2, 6, 7)
# Rounding of a determinant by cofactors, in epsilons of ||A||_F^n: at most seven roundings of half
# an epsilon, times the permanent of |A|, which is at most n! / n^(n/2) <= 1.5 times ||A||_F^n.
DETERMINANT_ERROR = 6.0
# Rounding of singular values by Jacobi rotations, in epsilons of ||A||_F. By experiment.
JACOBI_ERROR = 8.0


class Decomposition(NamedTuple):
    """Polar decompositions of a stack, each with its evidence.

    Attributes
    ----------
    unitary, hermitian : array, shape (..., n, n)
        ``A = U H``; H is Hermitian bit for bit.
    orthogonality, backward_error : ndarray
        ``||U^H U - I||_F / sqrt(n)`` and ``||A - U H||_F / ||A||_F`` (0 for a zero matrix), as
        measured; NaN for a matrix that is not finite.
    definite : ndarray of bool
        Whether H is positive semidefinite up to the tolerance times ``||A||_F``.
    rank : ndarray of int
        Number of singular values above ``n * eps * sigma_1``.
    lower, upper : ndarray
        Bounds of the smallest and of the largest singular value, up to rounding of the bounds.
    repaired : int
        How many matrices went the robust way.
    """

    unitary: Array
    hermitian: Array
    orthogonality: np.ndarray
    backward_error: np.ndarray
    definite: np.ndarray
    rank: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    repaired: int


# -- algebra of entries ----------------------------------------------------------------------


def _dot(u: Sequence[Array], v: Sequence[Array]) -> Array:
    """Sum of the products of two lists of vectors."""
    total = u[0] * v[0]
    for a, b in zip(u[1:], v[1:], strict=True):
        total += a * b
    return total


def _columns(x: Entries) -> Entries:
    return [list(column) for column in zip(*x, strict=True)]


def _map(f: Callable[..., Array], *entries: Entries) -> Entries:
    """Apply a function entry by entry."""
    return [
        [f(*values) for values in zip(*rows, strict=True)] for rows in zip(*entries, strict=True)
    ]


def _conj(x: Entries, ops: Ops) -> Entries:
    return _map(ops.xp.conj, x) if ops.is_complex(x[0][0]) else x


def _product(a: Entries, b: Entries) -> Entries:
    columns = _columns(b)
    return [[_dot(row, column) for column in columns] for row in a]


def _hermitian_product(
    a: Entries, b: Entries, ops: Ops, f: Callable[[bool, Array], Array] = lambda diagonal, v: v
) -> Entries:
    """``a^H b``, Hermitian as the caller knows, after a function of (on the diagonal?, entry)."""
    n = len(a[0])
    left, right = _columns(_conj(a, ops)), _columns(b)
    upper = [[f(i == j, _dot(left[i], right[j])) for j in range(i, n)] for i in range(n)]
    lower = _conj(upper, ops)
    return [[upper[i][j - i] if i <= j else lower[j][i - j] for j in range(n)] for i in range(n)]


def _square(x: Array, ops: Ops) -> Array:
    """``|x|^2``, real."""
    if not ops.is_complex(x):
        return x * x
    re, im = ops.xp.real(x), ops.xp.imag(x)
    return re * re + im * im


def _sum_of_squares(vectors: Sequence[Array], ops: Ops) -> Array:
    total = _square(vectors[0], ops)
    for v in vectors[1:]:
        total += _square(v, ops)
    return total


def _frobenius2(x: Entries, ops: Ops) -> Array:
    return _sum_of_squares([v for row in x for v in row], ops)


def _cofactors(x: Entries, ops: Ops) -> Entries:
    """Cofactors, so that the sum of ``x * cofactors`` over any row is the determinant."""
    if len(x) == 1:
        return [[ops.xp.ones_like(x[0][0])]]
    if len(x) == 2:
        (a, b), (c, d) = x
        return [[d, -c], [-b, a]]
    if len(x) == 3:
        return [_cross(x[1], x[2]), _cross(x[2], x[0]), _cross(x[0], x[1])]
    top, bottom = _minors(x[0], x[1]), _minors(x[2], x[3])
    return [
        _expand(x[1], bottom, 1.0),
        _expand(x[0], bottom, -1.0),
        _expand(x[3], top, 1.0),
        _expand(x[2], top, -1.0),
    ]


def _cross(u: Sequence[Array], v: Sequence[Array]) -> list[Array]:
    (a, b, c), (d, e, f) = u, v
    return [b * f - c * e, c * d - a * f, a * e - b * d]


def _minors(u: Sequence[Array], v: Sequence[Array]) -> list[Array]:
    """2 x 2 minors of two rows of four, columns 01 02 03 12 13 23."""
    return [u[i] * v[j] - u[j] * v[i] for i in range(4) for j in range(i + 1, 4)]


def _expand(r: Sequence[Array], m: Sequence[Array], sign: float) -> list[Array]:
    """3 x 3 minors of a row and the `_minors` of two others, with alternating signs."""
    m01, m02, m03, m12, m13, m23 = m
    c = [
        r[1] * m23 - r[2] * m13 + r[3] * m12,
        r[2] * m03 - r[0] * m23 - r[3] * m02,
        r[0] * m13 - r[1] * m03 + r[3] * m01,
        r[1] * m02 - r[0] * m12 - r[2] * m01,
    ]
    return c if sign > 0 else [-v for v in c]


def _phase(d: Array, ops: Ops) -> tuple[Array, Array]:
    """``d / |d|``, 1 where d is zero (or so small that the division would not be safe); ``|d|``."""
    xp = ops.xp
    size = xp.abs(d)
    if not ops.is_complex(d):
        return xp.where(d < 0, -xp.ones_like(d), xp.ones_like(d)), size
    divides = size > format_of(ops.format_name(d)).smallest_normal
    return xp.where(divides, d * (1.0 / xp.where(divides, size, 1.0 + size)), 1.0 + 0.0 * d), size


# -- unitary factors -------------------------------------------------------------------------


class _Factor(NamedTuple):
    """Unitary factor of each matrix, whether to believe it, and what it was made of."""

    unitary: Entries
    safe: Array
    norm2: Array  # ||A||_F^2
    cofactors2: Array  # ||C||_F^2
    determinant: Array  # |det A|; signed for a rotation


def _newton_step(half: Entries, ops: Ops) -> Entries:
    """``(X + X^-H) / 2`` of ``X / 2``: near a unitary matrix the error of X is squared."""
    c = _cofactors(half, ops)
    d = _dot(half[0], c[0])
    quarter = 0.25 / (ops.xp.conj(d) if ops.is_complex(d) else d)
    return _map(lambda a, b: a + b * quarter, half, _conj(c, ops))


def _closed_form(x: Entries, ops: Ops, *, proper: bool) -> _Factor:
    """3 x 3: the polar factor, or the nearest rotation if `proper`."""
    xp = ops.xp
    c = _cofactors(x, ops)
    d = _dot(x[0], c[0])
    a, b = _frobenius2(x, ops), _frobenius2(c, ops)
    phase, size = _phase(d, ops)
    if proper:
        phase, size = xp.ones_like(d), d
    # An upper bound: i2 <= sqrt(3) ||C||. Exact for rotations and for matrices of rank one.
    i1 = xp.sqrt(a + xp.sqrt(12.0 * b))
    twice = 2.0 * size
    for _ in range(QUARTIC_STEPS_SIGNED if proper else QUARTIC_STEPS):
        i2 = 0.5 * (i1 * i1 - a)
        i1 = i1 - 0.5 * ((i2 * i2 - b) - twice * i1) / (i1 * i2 - size)
    square = i1 * i1
    i2 = 0.5 * (square - a)
    denominator = i1 * i2 - size
    # U / 2, with the signs of both factors of the product turned round.
    half = -0.5 / denominator
    shift = square - i2
    inner = _hermitian_product(x, x, ops, lambda i, g: (g - shift if i else g) * half)
    weight = i1 * half * -phase
    u = _map(lambda p, q: p + q * weight, _product(x, inner), _conj(c, ops))
    safe = (b > NEAR_RANK_ONE**2 * a * a) & (denominator > SAFE_CLOSED_FORM * a * xp.sqrt(a))
    return _Factor(_newton_step(u, ops), safe, a, b, size)


def _one_step(x: Entries, ops: Ops, *, proper: bool) -> _Factor:
    """1 x 1 and 2 x 2: ``X + C ||X|| / ||C||`` is a multiple of the factor."""
    xp = ops.xp
    n = len(x)
    c = _cofactors(x, ops)
    d = _dot(x[0], c[0])
    a = _frobenius2(x, ops)
    b = a if n == 2 else xp.ones_like(a)
    if not proper:
        turn, d = _phase(d, ops)
        c = _map(lambda v: v * turn, _conj(c, ops))
    u = _map(lambda p, q: p + q if n == 2 else p + q * xp.sqrt(a), x, c)
    total = _frobenius2(u, ops)
    s = xp.sqrt(n / total)
    return _Factor(_map(lambda p: p * s, u), total > 0, a, b, d)


def _scaled_newton(x: Entries, ops: Ops, *, proper: bool) -> _Factor:
    """4 x 4: the polar factor; the nearest rotation, if `proper`, where the determinant allows."""
    xp = ops.xp
    first: list[Array] = []
    for step in range(NEWTON_STEPS):
        c = _cofactors(x, ops)
        d = _dot(x[0], c[0])
        c = _conj(c, ops)
        a, b = _frobenius2(x, ops), _frobenius2(c, ops)
        phase, size = _phase(d, ops)
        first = first or [a, b, d if proper else size]
        weight = 1.0 if step < NEWTON_STEPS - 1 else 0.5
        s, t = weight / xp.sqrt(a), weight * phase / xp.sqrt(b)
        x = _map(lambda p, q, s=s, t=t: p * s + q * t, x, c)
    a, b, d = first
    cut = SAFE_NEWTON_COMPLEX if ops.is_complex(x[0][0]) else SAFE_NEWTON
    safe = b > cut**2 * a * a * a
    # The iteration keeps the sign of the determinant.
    return _Factor(_newton_step(x, ops), safe & (d > 0) if proper else safe, a, b, d)


def _factor(x: Entries, ops: Ops, *, proper: bool = False) -> _Factor:
    solve = {3: _closed_form, LARGEST: _scaled_newton}.get(len(x), _one_step)
    return solve(x, ops, proper=proper)


def _robust_factor(
    x: Entries, ops: Ops, eps: float, *, proper: bool = False
) -> tuple[Entries, list[Array]]:
    """Polar factor (nearest rotation if `proper`) and singular values of any matrix, zero too."""
    q, sizes, v = (_jacobi if ops.host else _library_svd)(x, ops, eps)
    if proper:
        q = _turned(q, v, sizes, ops)
    half = [[0.5 * p for p in column] for column in q]
    return _newton_step(_product(_columns(half), _conj(v, ops)), ops), sizes


def _library_svd(x: Entries, ops: Ops, eps: float) -> tuple[Entries, list[Array], Entries]:
    """Columns of U, singular values, columns of V; all matrices of a stack, on a device."""
    xp = ops.xp
    n = len(x)
    known = xp.isfinite(x[0][0])  # a matrix is finite or NaN as a whole
    rows = [[xp.where(known, p, xp.zeros_like(p)) for p in row] for row in x]
    u, s, vh = ops.svd(xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2))
    poison = 0.0 * x[0][0]
    left = [[u[:, i, j] + poison for i in range(n)] for j in range(n)]
    right = [[vh[:, j, i] for i in range(n)] for j in range(n)]
    # NaN is no singular value: it compares false.
    nan = xp.where(known, xp.zeros_like(s[:, 0]), xp.full_like(s[:, 0], math.nan))
    return left, [s[:, j] + nan for j in range(n)], _conj(right, ops)


def _jacobi(x: Entries, ops: Ops, eps: float) -> tuple[Entries, list[Array], Entries]:
    """Columns of U, singular values, columns of V, by one-sided Jacobi rotations.

    Rotations of pairs of columns make ``W = A V`` with orthogonal columns, whose lengths are the
    singular values. Columns that are nothing but rounding are replaced by orthonormal ones, made of
    the axes that are farthest from what is there.
    """
    xp = ops.xp
    n = len(x)
    zero = 0.0 * x[0][0]  # NaN where the matrix is
    unit = zero + 1.0
    w = _columns(x)
    v = [[unit if i == j else zero for i in range(n)] for j in range(n)]
    for _ in range(SWEEPS[n]):
        for p, q in itertools.combinations(range(n), 2):
            c, s, turn = _rotation_of_columns(w[p], w[q], ops)
            for y in (w, v):
                both = list(zip(y[p], y[q], strict=True))
                y[p] = [a * c - b * (s * turn) for a, b in both]
                y[q] = [a * s + b * (c * turn) for a, b in both]
    sizes = [xp.sqrt(_sum_of_squares(column, ops)) for column in w]
    largest = functools.reduce(xp.maximum, sizes)
    kept = [size > n * eps * largest for size in sizes]
    left = [
        [xp.where(k, a / xp.where(k, size, xp.ones_like(size)), zero) for a in column]
        for column, size, k in zip(w, sizes, kept, strict=True)
    ]
    for j in range(n):
        axis = _farthest_axis(left, ops)
        left[j] = [xp.where(kept[j], a, b) for a, b in zip(left[j], axis, strict=True)]
    return left, sizes, v


def _rotation_of_columns(p: list[Array], q: list[Array], ops: Ops) -> tuple[Array, Array, Array]:
    """c, s and a phase t so that ``c p - s t q`` and ``s p + c t q`` are orthogonal."""
    xp = ops.xp
    inner = _dot(_conj([p], ops)[0], q)
    phase, size = _phase(inner, ops)
    difference = _sum_of_squares(q, ops) - _sum_of_squares(p, ops)
    size = 2.0 * size
    root = xp.abs(difference) + xp.sqrt(difference * difference + size * size)
    t = size / xp.where(root > 0, root, xp.ones_like(root))
    t = xp.where(difference < 0, -t, t)
    c = 1.0 / xp.sqrt(1.0 + t * t)
    return c, t * c, _conj([[phase]], ops)[0][0]


def _farthest_axis(q: Entries, ops: Ops) -> list[Array]:
    """Unit vector orthogonal to the nonzero ones of orthonormal columns, nearest to an axis.

    Of n - 1 columns or fewer some axis has a residual of at least 1 / sqrt(n): nothing cancels.
    """
    xp = ops.xp
    n = len(q)
    rows = _columns(q)
    residuals = [1.0 - _sum_of_squares(row, ops) for row in rows]
    best, row = residuals[0], rows[0]
    axis = [xp.ones_like(q[0][0])] + [xp.zeros_like(q[0][0])] * (n - 1)
    for k in range(1, n):
        better = residuals[k] > best
        best = xp.where(better, residuals[k], best)
        row = [xp.where(better, a, b) for a, b in zip(rows[k], row, strict=True)]
        axis = [
            xp.where(better, xp.ones_like(a) if i == k else xp.zeros_like(a), a)
            for i, a in enumerate(axis)
        ]
    row = _conj([row], ops)[0]
    y = [a - _dot(r, row) for a, r in zip(axis, rows, strict=True)]
    size = xp.sqrt(_sum_of_squares(y, ops))
    size = xp.where(size > 0, size, xp.ones_like(size))
    return [a / size for a in y]


def _turned(q: Entries, v: Entries, sizes: list[Array], ops: Ops) -> Entries:
    """Turn the last of the shortest columns round where ``det Q det V`` is negative."""
    xp = ops.xp
    det = _dot(q[0], _cofactors(q, ops)[0]) * _dot(v[0], _cofactors(v, ops)[0])
    sign = xp.where(det < 0, -xp.ones_like(det), xp.ones_like(det))
    smallest = functools.reduce(xp.minimum, sizes)
    turned = list(q)
    pending = sizes[0] >= 0  # true, but for NaN
    for j in reversed(range(len(q))):
        here = pending & (sizes[j] == smallest)
        pending = pending & ~here
        turned[j] = [xp.where(here, a * sign, a) for a in q[j]]
    return turned


# -- stacks ----------------------------------------------------------------------------------


def _evidence(x: Entries, u: Entries, norm2: Array, tol: float, ops: Ops) -> list[Any]:
    """H, orthogonality, backward error, and whether H is semidefinite."""
    xp = ops.xp
    n = len(x)
    w = _product(_columns(_conj(u, ops)), x)
    h = [list(row) for row in w]
    for i in range(n):
        if ops.is_complex(w[i][i]):
            h[i][i] = xp.astype(xp.real(w[i][i]), w[i][i].dtype)
        for j in range(i):
            other = xp.conj(w[j][i]) if ops.is_complex(w[j][i]) else w[j][i]
            h[i][j] = 0.5 * (w[i][j] + other)
            h[j][i] = xp.conj(h[i][j]) if ops.is_complex(h[i][j]) else h[i][j]
    size = xp.where(norm2 == 0, xp.ones_like(norm2), norm2)
    residual = _frobenius2(_map(lambda a, b: a - b, x, _product(u, h)), ops)
    return [
        h,
        xp.sqrt(_defect(u, ops) / n),
        xp.sqrt(residual / size),
        _is_definite(h, tol * xp.sqrt(size), ops),
    ]


def _defect(u: Entries, ops: Ops) -> Array:
    """``||U^H U - I||_F^2``."""
    n = len(u)
    gram = _hermitian_product(u, u, ops)
    diagonal = [
        (ops.xp.real(gram[i][i]) if ops.is_complex(gram[i][i]) else gram[i][i]) - 1.0
        for i in range(n)
    ]
    defect = _sum_of_squares(diagonal, ops)
    above = [gram[i][j] for i in range(n) for j in range(i + 1, n)]
    return defect + 2.0 * _sum_of_squares(above, ops) if above else defect


def _is_nearest_rotation(r: Entries, x: Entries, tol: float, ops: Ops) -> Array:
    """Whether R is a rotation and none is nearer to A, each to the tolerance.

    R maximises ``tr(R^T A)`` among rotations if and only if ``S = R^T A`` is symmetric and no two
    eigenvalues of S have a negative sum: one, the smallest in absolute value, may be negative.
    """
    xp = ops.xp
    norm2 = _frobenius2(x, ops)
    size = xp.where(norm2 == 0, xp.ones_like(norm2), norm2)
    s = _product(_columns(r), x)
    skew = [s[i][j] - s[j][i] for i, j in itertools.combinations(range(len(s)), 2)]
    symmetric = not skew or _sum_of_squares(skew, ops) <= 2 * tol**2 * size
    orthogonal = _defect(r, ops) <= len(r) * tol**2
    proper = _dot(r[0], _cofactors(r, ops)[0]) > 0
    best = _is_definite(_sums_of_pairs(s), tol * xp.sqrt(size), ops)
    return orthogonal & proper & symmetric & best


def _sums_of_pairs(s: Entries) -> Entries:
    """Symmetric matrix whose eigenvalues are the sums of two eigenvalues each of a symmetric one.

    The second additive compound: M. Fiedler, Czechoslovak Math. J. 24 (1974) 392-402.
    """
    pairs = list(itertools.combinations(range(len(s)), 2))
    zero = 0.0 * s[0][0]

    def entry(p: int, q: int, i: int, j: int) -> Array:
        if (p, q) == (i, j):
            return s[p][p] + s[q][q]
        if q == j:
            return s[p][i]
        if p == i:
            return s[q][j]
        if p == j:
            return -s[q][i]
        return -s[p][j] if q == i else zero

    return [[entry(*row, *column) for column in pairs] for row in pairs]


def _is_definite(h: Entries, shift: Array, ops: Ops) -> Array:
    """Whether ``H + shift I`` has positive pivots."""
    n = len(h)
    m = [list(row) for row in h]
    definite = shift > 0
    for k in range(n):
        pivot = m[k][k]
        pivot = (ops.xp.real(pivot) if ops.is_complex(pivot) else pivot) + shift
        definite = definite & (pivot > 0)
        for i in range(k + 1, n):
            f = m[i][k] / pivot
            for j in range(k + 1, i + 1):
                m[i][j] = m[i][j] - f * _conj([[m[j][k]]], ops)[0][0]
    return definite


def _fast(x: Entries, s: Any, tol: float, eps: float, ops: Ops) -> list[Any]:
    """Everything, and which matrices have full rank and moderate condition: believe only these."""
    xp = ops.xp
    n = len(x)
    u, safe, a, b, d = _factor(x, ops)
    upper = xp.sqrt(a)
    # |det A| = sigma_n times the other singular values, whose product is at most ||C||.
    noise = DETERMINANT_ERROR * eps * upper**n
    lower = (d - noise) / xp.sqrt(xp.where(b > 0, b, xp.ones_like(b)))
    # Twice the cut of the definition of rank.
    safe = safe & (lower > 2 * n * eps * upper)
    h, *figures = _evidence(x, u, a, tol, ops)
    rank = xp.full_like(a, float(n))
    return [u, _map(lambda v: v * s, h), *figures, rank, lower * s, upper * s, safe]


def _robust(x: Entries, s: Any, tol: float, eps: float, ops: Ops) -> list[Any]:
    """Everything, of any matrices."""
    xp = ops.xp
    n = len(x)
    u, sizes = _robust_factor(x, ops, eps)
    a = _frobenius2(x, ops)
    upper = xp.sqrt(a)
    smallest = functools.reduce(xp.minimum, sizes)
    largest = functools.reduce(xp.maximum, sizes)
    kept = [xp.astype(size > n * eps * largest, a.dtype) for size in sizes]
    lower = smallest - JACOBI_ERROR * eps * upper
    lower = xp.where(lower > 0, lower, xp.zeros_like(lower))
    h, *figures = _evidence(x, u, a, tol, ops)
    rank = functools.reduce(operator.add, kept)
    return [u, _map(lambda v: v * s, h), *figures, rank, lower * s, upper * s, a >= 0]


def _power_of_two(peak: Array, ops: Ops) -> Any:
    """What to divide each matrix by."""
    if not isinstance(peak, np.ndarray):
        return ops.binary_scale(peak)
    _, exponent = np.frexp(peak)  # ten times quicker than a logarithm and a power
    limit = -np.finfo(peak.dtype).minexp - 1
    return np.ldexp(np.ones_like(peak), np.clip(exponent, -limit, limit))


def _part(f: Callable[..., list[Any]], x: Array, ops: Ops) -> list[Any]:
    """Apply a function of entries and scales to a stack (batch, n, n)."""
    n = x.shape[-1]
    given = [[x[:, i, j] for j in range(n)] for i in range(n)]
    sizes = [ops.xp.abs(p) for row in given for v in row for p in _real_parts(v, ops)]
    peak = functools.reduce(ops.xp.maximum, sizes)
    # NaN for a matrix that is not finite, so that all of it becomes NaN.
    s = _power_of_two(peak, ops) + 0.0 * peak
    down = 1.0 / s
    return f(_map(lambda v: v * down, given), s)


def _real_parts(x: Array, ops: Ops) -> list[Array]:
    return [ops.xp.real(x), ops.xp.imag(x)] if ops.is_complex(x) else [x]


def _in_parts(f: Callable[..., list[Any]], x: Array, ops: Ops) -> list[Array]:
    """The same, stacked; in parts that stay in cache, on the host."""
    xp = ops.xp
    count = x.shape[0]
    if not ops.host:
        return [
            xp.reshape(xp.stack([v for row in r for v in row], axis=-1), x.shape)
            if isinstance(r, list)
            else r
            for r in _part(f, x, ops)
        ]
    results: list[Array] = []
    for k in range(0, max(count, 1), CHUNK):
        part = _part(f, x[k : k + CHUNK, ...], ops)
        if not results:
            # One array for all figures: large ones come in large pages, and pages take the time.
            first = next(r for r in part if not isinstance(r, list))
            block = iter(xp.empty((len(part), count), dtype=first.dtype))
            results = [
                xp.empty_like(x)
                if isinstance(r, list)
                else (next(block) if r.dtype == first.dtype else xp.empty((count,), dtype=r.dtype))
                for r in part
            ]
        for out, r in zip(results, part, strict=True):
            if not isinstance(r, list):
                out[k : k + CHUNK] = r
                continue
            for i, j in itertools.product(range(x.shape[-1]), repeat=2):
                out[k : k + CHUNK, i, j] = r[i][j]
    return results


@ignore_float_errors  # what overflows is not believed
def _everywhere(
    fast: Callable[..., list[Any]],
    robust: Callable[..., list[Any]] | None,
    x: Array,
    ops: Ops,
) -> tuple[list[Array], Array]:
    """Results of `fast`, of `robust`, if any, where the last of them is false; and where it was."""
    xp = ops.xp
    *results, safe = _in_parts(fast, x, ops)
    if robust is None:
        return results, ~safe
    if not ops.host:  # nothing is read off a device: both, everywhere
        *others, _ = _in_parts(robust, x, ops)
        for k, (r, other) in enumerate(zip(results, others, strict=True)):
            mask = xp.reshape(safe, (-1,) + (1,) * (r.ndim - 1))
            results[k] = xp.where(mask, r, other)
        return results, ~safe
    (index,) = xp.nonzero(~safe)
    if index.shape[0]:
        *others, _ = _in_parts(robust, xp.take(x, index, axis=0), ops)
        for r, other in zip(results, others, strict=True):
            r[index] = other
    return results, ~safe


def _check(x: Array, *, square: bool) -> None:
    m, n = x.shape[-2:]
    if not 1 <= n <= LARGEST or m < n or (square and m != n):
        kind = "square" if square else "tall"
        raise ValueError(
            f"method 'small' is for stacks of {kind} matrices of 1 to {LARGEST} columns, got shape "
            f"{tuple(x.shape)}; use 'svd' or 'qdwh'"
        )


def decompose(x: Array, ops: Ops, *, tol: float | None = None) -> Decomposition:
    """Polar decompositions of a stack of matrices up to 4 x 4, with all evidence, in one go.

    Parameters
    ----------
    x : array, shape (..., n, n)
        1 <= n <= 4, in single or double precision, of any scale: each matrix is scaled by a power
        of two of its own. Never changed.
    ops : Ops
        Arithmetic of its library.
    tol : float, optional
        For `definite`; 100 machine epsilons by default.

    Returns
    -------
    Decomposition
        A matrix with NaN or infinity gives NaN and rank 0, and does not disturb the others.

    Raises
    ------
    ValueError
        For other shapes.

    Examples
    --------
    >>> from polarlib.ops import ops_of
    >>> a = np.array([[[0.0, -2.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    >>> d = decompose(a, ops_of(a))
    >>> d.unitary[0].round(12) + 0.0
    array([[ 0., -1.],
           [ 1.,  0.]])
    >>> d.rank.tolist(), bool(d.backward_error.max() < 1e-15)
    ([2, 1], True)
    """
    _check(x, square=True)
    batch, n = x.shape[:-2], x.shape[-1]
    eps = format_of(ops.format_name(x)).epsilon
    tol = 100 * eps if tol is None else tol
    results, bad = _everywhere(
        lambda y, s: _fast(y, s, tol, eps, ops),
        lambda y, s: _robust(y, s, tol, eps, ops),
        ops.xp.reshape(x, (-1, n, n)),
        ops,
    )
    u, h = (ops.xp.reshape(r, x.shape) for r in results[:2])
    real = results[2].dtype

    def on_host(r: Array) -> np.ndarray:
        if isinstance(r, np.ndarray):  # nobody else has it: no copy
            return (
                r.reshape(batch) if r.dtype == bool else r.reshape(batch).astype("f8", copy=False)
            )
        return ops.to_host(ops.xp.reshape(ops.xp.astype(r, real, copy=False), batch))

    figures = [on_host(r) for r in (*results[2:], bad)]
    orthogonality, backward_error, definite, rank, lower, upper, repaired = figures
    return Decomposition(
        u,
        h,
        orthogonality,
        backward_error,
        definite > 0,
        rank.astype(int),
        lower,
        upper,
        int(repaired.sum()),
    )


def rotation(x: Array, ops: Ops) -> tuple[Array, Array]:
    """Nearest rotation, of determinant +1, of each real matrix of a stack up to 4 x 4.

    ``U diag(1, ..., 1, det(U V^T)) V^T`` of the SVD: what maximises ``trace(R^T A)`` among
    rotations. Where it is not unique (a reflection with two equal smallest singular values, rank
    below n - 1) it is one of those that are nearest, always the same for the same matrix; the
    identity for a zero matrix.

    Parameters
    ----------
    x : array, shape (..., n, n)
        Real, 1 <= n <= 4, in single or double precision, of any scale. Never changed.
    ops : Ops
        Arithmetic of its library.

    Returns
    -------
    r : array, shape (..., n, n)
        NaN for a matrix that is not finite.
    shown : array of bool, shape (...)
        Whether R is shown to be the nearest rotation, to ``max(100, n)`` epsilons. Elsewhere it may
        be anything. On the host matrices near rank one go through Jacobi rotations, on other
        devices they are left to the caller, and not shown.

    Raises
    ------
    TypeError
        For complex matrices: unitary ones of determinant 1 are another problem.
    ValueError
        For other shapes.

    Notes
    -----
    The error of R is a few epsilons times ``sigma_1 / (sigma_(n-1) + s sigma_n)``, s the sign of
    the determinant, as the problem has it. W. Kabsch, Acta Cryst. A 34 (1978) 827-828.

    Examples
    --------
    >>> from polarlib.ops import ops_of
    >>> a = np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.5]])  # a reflection
    >>> r, shown = rotation(a, ops_of(a))
    >>> r.round(12) + 0.0
    array([[ 0.,  1.,  0.],
           [ 1.,  0.,  0.],
           [ 0.,  0., -1.]])
    >>> bool(shown)
    True
    """
    _check(x, square=True)
    if ops.is_complex(x):
        raise TypeError(
            f"the nearest rotation is of real matrices, got {dtype_name(x)}; for complex ones "
            "polar() gives the nearest unitary matrix"
        )
    eps = format_of(ops.format_name(x)).epsilon
    n = x.shape[-1]

    def fast(y: Entries, s: Any) -> list[Any]:
        factor = _factor(y, ops, proper=True)
        shown = factor.safe & _is_nearest_rotation(factor.unitary, y, 100 * eps, ops)
        return [factor.unitary, shown, shown]

    def robust(y: Entries, s: Any) -> list[Any]:
        r, _ = _robust_factor(y, ops, eps, proper=True)
        return [r, _is_nearest_rotation(r, y, 100 * eps, ops), s > 0]

    (r, shown), _ = _everywhere(
        fast, robust if ops.host else None, ops.xp.reshape(x, (-1, n, n)), ops
    )
    return ops.xp.reshape(r, x.shape), ops.xp.reshape(shown, x.shape[:-2])


def small(
    x: Array, ops: Ops, *, tol: float, callback: Callable[[int, Array], None] | None = None
) -> tuple[Array, Run]:
    """Closed forms for stacks of matrices of up to 4 columns, without a loop over matrices.

    Cofactors and the largest root of a quartic for n = 3, one exact step for n = 2, Newton steps
    by cofactors for n = 4; a Jacobi SVD of the same kind for what is singular or nearly of rank
    one. Tall matrices are reduced by QR first. Backward error and orthogonality are a few epsilons
    for every matrix; zero and rank-deficient ones are completed to orthonormal columns.
    """
    _check(x, square=False)
    m, n = x.shape[-2:]
    q = None
    if m > n:
        # Not ops.qr: NumPy's own takes a whole stack, and double precision does no harm.
        q, x = ops.xp.linalg.qr(x, mode="reduced")
    done = decompose(x, ops, tol=tol)
    u = done.unitary if q is None else ops.matmul(q, done.unitary)
    if callback is not None:
        callback(1, u)
    bounds = (float(done.lower.min()), float(done.upper.max())) if done.lower.size else None
    note = f"{done.repaired} of {done.rank.size} near rank one or singular, by Jacobi rotations"
    return u, Run(1, 0 if q is None else 1, True, bounds=bounds, note=note)
