"""Closed forms and Jacobi rotations for stacks of matrices of up to four columns, by entries."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from polarlib.arrays.formats import format_of
from polarlib.arrays.library import format_name, is_complex
from polarlib.arrays.ops import Ops

Array = Any
# Entries of a stack of matrices, an array of shape (m, n, batch): x[i, j] is a vector.
Entries = Any
# Vectors, such as the columns of a stack.
Vectors = Sequence[Array]

LARGEST = 4
# Newton steps for the largest root of the quartic. The remaining error is below 1e-8, and is
# squared by the step for the polar factor. Rotations nearest to reflections start farther from the
# root. By experiment, for all matrices above SAFE_CLOSED_FORM, 5 and 7 suffice.
QUARTIC_STEPS, QUARTIC_STEPS_SIGNED = 5, 8
# Scaled Newton steps for n = 4, for all matrices above SAFE_NEWTON. By experiment.
NEWTON_STEPS = 6
# Values of (i1 i2 - i3) / ||A||^3 for n = 3, and of ||C|| / ||A||^3 for n = 4, below which the
# closed form loses more than 5 eps of backward error; the Jacobi SVD is used. Complex matrices with
# n = 4 lose more, since the phase of the determinant is uncertain. By experiment.
SAFE_CLOSED_FORM = 1 / 10
# Since i1^2 <= 3 ||A||^2 and i2^2 <= 3 ||C||^2, i1 i2 - i3 is at most 10/3 ||A|| ||C||. If
# ||C|| / ||A||^2 is below this value, the exact i1 i2 - i3 is below SAFE_CLOSED_FORM, but Newton's
# iteration for i1 may divide by rounding errors and give an arbitrary result.
NEAR_RANK_ONE = 3 / 10 * SAFE_CLOSED_FORM
SAFE_NEWTON, SAFE_NEWTON_COMPLEX = 1 / 48, 1 / 12
# Sweeps of Jacobi rotations that make columns orthogonal to rounding, by n. By experiment.
SWEEPS = (0, 0, 2, 6, 7)


# -- algebra of entries ----------------------------------------------------------------------


def _dot(u: Vectors, v: Vectors) -> Array:
    """Return the sum of the products of two lists of vectors."""
    total = u[0] * v[0]
    for a, b in zip(u[1:], v[1:], strict=True):
        total += a * b
    return total


def _rows(x: Entries) -> list[list[Array]]:
    m, n, _ = x.shape
    return [[x[i, j, :] for j in range(n)] for i in range(m)]


def _columns(x: Entries) -> list[list[Array]]:
    return [list(column) for column in zip(*_rows(x), strict=True)]


def _determinant(x: Entries, cofactors: Entries) -> Array:
    return _dot(*([y[0, j, :] for j in range(y.shape[1])] for y in (x, cofactors)))


def _from_columns(columns: Sequence[Vectors], ops: Ops) -> Entries:
    xp = ops.xp
    return xp.stack([xp.stack(list(column), axis=0) for column in columns], axis=1)


def _adjoint(x: Entries, ops: Ops) -> Entries:
    return conj_of(ops.xp.permute_dims(x, (1, 0, 2)), ops)


def conj_of(x: Array, ops: Ops) -> Array:
    return ops.xp.conj(x) if is_complex(x) else x


def real_parts(x: Array, ops: Ops) -> list[Array]:
    """Return the real part of an array, and the imaginary part if it is complex."""
    return [ops.xp.real(x), ops.xp.imag(x)] if is_complex(x) else [x]


def _plus_diagonal(x: Entries, d: Array | float, ops: Ops) -> Entries:
    """Return ``x + d I``, in the storage of `x` if the library can write to it."""
    n = x.shape[0]
    if ops.reusable(x):
        for i in range(n):
            x[i, i, :] += d
        return x
    return x + ops.eye(n, x)[:, :, None] * d


def _sum_of_squares(vectors: Vectors, ops: Ops) -> Array:
    """Return ``sum |x|^2``, real."""
    return functools.reduce(operator.add, (_dot(p, p) for p in _parts(vectors, ops)))


def _parts(vectors: Vectors, ops: Ops) -> list[list[Array]]:
    return [list(part) for part in zip(*(real_parts(v, ops) for v in vectors), strict=True)]


def frobenius2(x: Entries, ops: Ops) -> Array:
    """Return ``||x||_F^2``."""
    m, n, batch = x.shape
    parts = (ops.xp.reshape(part, (1, m * n, batch)) for part in real_parts(x, ops))
    squares = (ops.entry_product(p, ops.xp.permute_dims(p, (1, 0, 2)))[0, 0, :] for p in parts)
    return functools.reduce(operator.add, squares)


def _cofactors(x: Entries, ops: Ops) -> Entries:
    """Return cofactors: the sum of ``x * cofactors`` over any row is the determinant."""
    xp, n = ops.xp, x.shape[0]
    if n == 1:
        return xp.ones_like(x)
    r = _rows(x)
    if n == 2:
        (a, b), (c, d) = r
        rows = [[d, -c], [-b, a]]
    elif n == 3 and ops.reusable(x):
        c = xp.empty_like(x)
        for i in range(3):
            _cross_into(c[i, ...], r[(i + 1) % 3], r[(i + 2) % 3], ops)
        return c
    elif n == 3:
        rows = [_cross(r[1], r[2]), _cross(r[2], r[0]), _cross(r[0], r[1])]
    else:
        top, bottom = _minors(r[0], r[1]), _minors(r[2], r[3])
        rows = [
            _expand(r[1], bottom, 1.0),
            _expand(r[0], bottom, -1.0),
            _expand(r[3], top, 1.0),
            _expand(r[2], top, -1.0),
        ]
    return xp.reshape(xp.stack([v for row in rows for v in row], axis=0), x.shape)


def _cross(u: Vectors, v: Vectors) -> list[Array]:
    (a, b, c), (d, e, f) = u, v
    return [b * f - c * e, c * d - a * f, a * e - b * d]


def _cross_into(out: Array, u: Vectors, v: Vectors, ops: Ops) -> None:
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        ops.xp.multiply(u[j], v[k], out=out[i])
        out[i] -= u[k] * v[j]


def _minors(u: Vectors, v: Vectors) -> list[Array]:
    """Return the 2 x 2 minors of two rows of four, columns 01 02 03 12 13 23."""
    return [u[i] * v[j] - u[j] * v[i] for i in range(4) for j in range(i + 1, 4)]


def _expand(r: Vectors, m: Vectors, sign: float) -> list[Array]:
    """Return 3 x 3 minors from a row and the `_minors` of two others, with alternating signs."""
    m01, m02, m03, m12, m13, m23 = m
    c = [
        r[1] * m23 - r[2] * m13 + r[3] * m12,
        r[2] * m03 - r[0] * m23 - r[3] * m02,
        r[0] * m13 - r[1] * m03 + r[3] * m01,
        r[1] * m02 - r[0] * m12 - r[2] * m01,
    ]
    return c if sign > 0 else [-v for v in c]


def phase_of(d: Array, ops: Ops) -> tuple[Array, Array]:
    """Return ``d / |d|`` and ``|d|``; the phase is 1 where d is zero or too small to divide by."""
    xp = ops.xp
    size = xp.abs(d)
    if not is_complex(d):
        return xp.where(d < 0, -xp.ones_like(d), xp.ones_like(d)), size
    divides = size > format_of(format_name(d)).smallest_normal
    return xp.where(divides, d * (1.0 / xp.where(divides, size, 1.0 + size)), 1.0 + 0.0 * d), size


# -- unitary factors -------------------------------------------------------------------------


class _Factor(NamedTuple):
    """Unitary factor of each matrix, whether it is accurate, and the invariants used for it."""

    unitary: Entries
    safe: Array
    norm2: Array  # ||A||_F^2
    cofactors2: Array  # ||C||_F^2
    determinant: Array  # |det A|; signed for a rotation


def _newton_step(half: Entries, ops: Ops) -> Entries:
    """Return ``(X + X^-H) / 2`` from ``X / 2``; near a unitary matrix the error of X is squared."""
    c = _cofactors(half, ops)
    d = _determinant(half, c)
    c = conj_of(c, ops)
    c *= 0.25 / conj_of(d, ops)
    c += half
    return c


def _closed_form(x: Entries, a: Array, ops: Ops, *, proper: bool) -> _Factor:
    """Return the polar factor of 3 x 3 matrices, or the nearest rotation if `proper`."""
    xp = ops.xp
    c = _cofactors(x, ops)
    d = _determinant(x, c)
    b = frobenius2(c, ops)
    phase, size = phase_of(d, ops)
    if proper:
        phase, size = xp.ones_like(d), d
    # An upper bound: i2 <= sqrt(3) ||C||. Exact for rotations and for matrices of rank one.
    i1 = xp.sqrt(a + xp.sqrt(12.0 * b))
    for _ in range(QUARTIC_STEPS_SIGNED if proper else QUARTIC_STEPS):
        # i1 - ((i2^2 - b) - 2 |d| i1) / (2 (i1 i2 - |d|)) with twice i2 = i1^2 - a.
        i2 = i1 * i1
        i2 -= a
        i2 *= 0.5
        slope = i1 * i2
        slope -= size
        i2 *= i2
        i2 -= b
        i2 *= 0.5
        i2 -= size * i1
        i2 /= slope
        i1 = i1 - i2
    square = i1 * i1
    i2 = 0.5 * (square - a)
    denominator = i1 * i2 - size
    # U / 2; the signs of both factors of the product are changed.
    half = -0.5 / denominator
    inner = ops.entry_product(_adjoint(x, ops), x)
    inner = _plus_diagonal(inner, i2 - square, ops)
    inner *= half
    c = conj_of(c, ops)
    c *= i1 * half * -phase
    c += ops.entry_product(x, inner)
    safe = (b > NEAR_RANK_ONE**2 * a * a) & (denominator > SAFE_CLOSED_FORM * a * xp.sqrt(a))
    return _Factor(_newton_step(c, ops), safe, a, b, size)


def _one_step(x: Entries, a: Array, ops: Ops, *, proper: bool) -> _Factor:
    """Return the factor of 1 x 1 and 2 x 2 matrices, a multiple of ``X + C ||X|| / ||C||``."""
    xp = ops.xp
    n = x.shape[0]
    c = _cofactors(x, ops)
    d = _determinant(x, c)
    b = a if n == 2 else xp.ones_like(a)
    if not proper:
        turn, d = phase_of(d, ops)
        c = conj_of(c, ops) * turn
    u = x + (c if n == 2 else c * xp.sqrt(a))
    total = frobenius2(u, ops)
    u *= xp.sqrt(n / total)
    return _Factor(u, total > 0, a, b, d)


def _scaled_newton(x: Entries, a: Array, ops: Ops, *, proper: bool) -> _Factor:
    """Return the polar factor of 4 x 4 matrices, a rotation if `proper` and det X is positive."""
    xp = ops.xp
    first: list[Array] = []
    for step in range(NEWTON_STEPS):
        c = _cofactors(x, ops)
        d = _determinant(x, c)
        c = conj_of(c, ops)
        a, b = frobenius2(x, ops) if first else a, frobenius2(c, ops)
        phase, size = phase_of(d, ops)
        first = first or [a, b, d if proper else size]
        weight = 1.0 if step < NEWTON_STEPS - 1 else 0.5
        c *= weight * phase / xp.sqrt(b)
        c += x * (weight / xp.sqrt(a))
        x = c
    a, b, d = first
    cut = SAFE_NEWTON_COMPLEX if is_complex(x) else SAFE_NEWTON
    safe = b > cut**2 * a * a * a
    # The iteration keeps the sign of the determinant.
    return _Factor(_newton_step(x, ops), safe & (d > 0) if proper else safe, a, b, d)


def closed_factor(x: Entries, norm2: Array, ops: Ops, *, proper: bool = False) -> _Factor:
    """Return the polar factor (nearest rotation if `proper`) by a fixed sequence of operations.

    `norm2` is ``||X||_F^2``.
    """
    solve = {3: _closed_form, LARGEST: _scaled_newton}.get(x.shape[0], _one_step)
    return solve(x, norm2, ops, proper=proper)


def svd_factor(
    x: Entries, ops: Ops, eps: float, *, proper: bool = False
) -> tuple[Entries, list[Array]]:
    """Return the polar factor (nearest rotation if `proper`) and singular values of any matrix."""
    q, sizes, v = _jacobi(x, ops, eps)
    if proper:
        q = _turned(q, v, sizes, ops)
    half = _from_columns([[0.5 * p for p in column] for column in q], ops)
    right = _adjoint(_from_columns(v, ops), ops)
    return _newton_step(ops.entry_product(half, right), ops), sizes


# Columns of U, singular values, columns of V.
_Svd = tuple[list[list[Array]], list[Array], list[list[Array]]]


def _jacobi(x: Entries, ops: Ops, eps: float) -> _Svd:
    """Compute the SVD by one-sided Jacobi rotations.

    Rotations of pairs of columns give ``W = A V`` with orthogonal columns, whose norms are the
    singular values. Columns at rounding level are replaced by orthonormal ones, computed from the
    axes farthest from the span of the others.
    """
    xp = ops.xp
    n = x.shape[0]
    zero = 0.0 * x[0, 0, :]  # NaN where the matrix is NaN
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
    """Return c, s and a phase t for which ``c p - s t q`` and ``s p + c t q`` are orthogonal."""
    xp = ops.xp
    inner = _dot([conj_of(v, ops) for v in p], q)
    phase, size = phase_of(inner, ops)
    difference = _sum_of_squares(q, ops) - _sum_of_squares(p, ops)
    size = 2.0 * size
    root = xp.abs(difference) + xp.sqrt(difference * difference + size * size)
    t = size / xp.where(root > 0, root, xp.ones_like(root))
    t = xp.where(difference < 0, -t, t)
    c = 1.0 / xp.sqrt(1.0 + t * t)
    return c, t * c, conj_of(phase, ops)


def _farthest_axis(q: list[list[Array]], ops: Ops) -> list[Array]:
    """Return a unit vector orthogonal to the nonzero columns: the largest residual of an axis.

    For n - 1 columns or fewer some axis has a residual of at least 1 / sqrt(n), without
    cancellation.
    """
    xp = ops.xp
    n = len(q)
    rows = [list(row) for row in zip(*q, strict=True)]
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
    row = [conj_of(v, ops) for v in row]
    y = [a - _dot(r, row) for a, r in zip(axis, rows, strict=True)]
    size = xp.sqrt(_sum_of_squares(y, ops))
    size = xp.where(size > 0, size, xp.ones_like(size))
    return [a / size for a in y]


def _turned(
    q: list[list[Array]], v: list[list[Array]], sizes: list[Array], ops: Ops
) -> list[list[Array]]:
    """Change the sign of the last of the shortest columns where ``det Q det V`` is negative."""
    xp = ops.xp
    det = functools.reduce(
        operator.mul,
        (_determinant(y, _cofactors(y, ops)) for y in (_from_columns(t, ops) for t in (q, v))),
    )
    sign = xp.where(det < 0, -xp.ones_like(det), xp.ones_like(det))
    smallest = functools.reduce(xp.minimum, sizes)
    turned = list(q)
    pending = sizes[0] >= 0  # True, except for NaN
    for j in reversed(range(len(q))):
        here = pending & (sizes[j] == smallest)
        pending = pending & ~here
        turned[j] = [xp.where(here, a * sign, a) for a in q[j]]
    return turned


# -- stacks ----------------------------------------------------------------------------------


def error_estimates(x: Entries, u: Entries, norm2: Array, tol: float, ops: Ops) -> list[Any]:
    """Return H, orthogonality, backward error, and whether H is semidefinite."""
    xp = ops.xp
    w = ops.entry_product(_adjoint(u, ops), x)
    h = w + _adjoint(w, ops)
    h *= 0.5
    size = xp.where(norm2 == 0, xp.ones_like(norm2), norm2)
    residual = ops.entry_product(u, h)
    residual -= x
    return [
        h,
        xp.sqrt(_defect(u, ops) / u.shape[1]),
        xp.sqrt(frobenius2(residual, ops) / size),
        _is_definite(_rows(h), tol * xp.sqrt(size), ops),
    ]


def _defect(u: Entries, ops: Ops) -> Array:
    """Return ``||U^H U - I||_F^2``."""
    gram = ops.entry_product(_adjoint(u, ops), u)
    return frobenius2(_plus_diagonal(gram, -1.0, ops), ops)


def is_nearest_rotation(r: Entries, x: Entries, tol: float, ops: Ops) -> Array:
    """Return whether R is, to the tolerance, a rotation and nearest to A.

    R maximises ``tr(R^T A)`` among rotations if and only if ``S = R^T A`` is symmetric and no two
    eigenvalues of S have a negative sum. The smallest one in absolute value may be negative.
    """
    xp = ops.xp
    norm2 = frobenius2(x, ops)
    size = xp.where(norm2 == 0, xp.ones_like(norm2), norm2)
    s = _rows(ops.entry_product(_adjoint(r, ops), x))
    skew = [s[i][j] - s[j][i] for i, j in itertools.combinations(range(len(s)), 2)]
    symmetric = not skew or _sum_of_squares(skew, ops) <= 2 * tol**2 * size
    orthogonal = _defect(r, ops) <= r.shape[0] * tol**2
    proper = _determinant(r, _cofactors(r, ops)) > 0
    best = _is_definite(_sums_of_pairs(s), tol * xp.sqrt(size), ops)
    return orthogonal & proper & symmetric & best


def _sums_of_pairs(s: list[list[Array]]) -> list[list[Array]]:
    """Return the second additive compound, whose eigenvalues are sums of two eigenvalues of s.

    M. Fiedler, Czechoslovak Math. J. 24 (1974) 392-402.
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


def _is_definite(h: list[list[Array]], shift: Array, ops: Ops) -> Array:
    """Return whether ``H + shift I`` has positive pivots."""
    n = len(h)
    m = [list(row) for row in h]
    definite = shift > 0
    for k in range(n):
        pivot = real_parts(m[k][k], ops)[0] + shift
        definite = definite & (pivot > 0)
        for i in range(k + 1, n):
            f = m[i][k] / pivot
            for j in range(k + 1, i + 1):
                m[i][j] = m[i][j] - f * conj_of(m[j][k], ops)
    return definite
