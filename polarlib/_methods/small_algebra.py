"""Closed forms and Jacobi rotations for stacks of matrices up to 4 x 4, entry by entry."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from polarlib.arrays.formats import format_of
from polarlib.arrays.library import format_name, is_complex
from polarlib.arrays.ops import Ops

Array = Any
# Entries of a stack of matrices: entries[i][j] has shape (batch,).
Entries = list[list[Array]]

LARGEST = 4
# Newton steps for the largest root of the quartic: the error left is below 1e-8, and is squared by
# the step for the polar factor. Rotations nearest to reflections start farther from the root. By
# experiment, over everything above SAFE_CLOSED_FORM: 5 and 7 are enough.
QUARTIC_STEPS, QUARTIC_STEPS_SIGNED = 5, 8
# Scaled Newton steps of n = 4, for everything above SAFE_NEWTON. By experiment.
NEWTON_STEPS = 6
# Below these, rounding costs more than five epsilons of backward error, and the Jacobi SVD is used
# instead: (i1 i2 - i3) / ||A||^3 for n = 3, and ||C|| / ||A||^3 for n = 4, where an uncertain
# phase of the determinant makes complex matrices worse. By experiment.
SAFE_CLOSED_FORM = 1 / 10
# Since i1^2 <= 3 ||A||^2 and i2^2 <= 3 ||C||^2, i1 i2 - i3 is at most 10/3 ||A|| ||C||: below this
# ||C|| / ||A||^2 it must fall below SAFE_CLOSED_FORM, but Newton's iteration for i1 may divide by
# rounding errors and end anywhere.
NEAR_RANK_ONE = 3 / 10 * SAFE_CLOSED_FORM
SAFE_NEWTON, SAFE_NEWTON_COMPLEX = 1 / 48, 1 / 12
# Sweeps of Jacobi rotations that make columns orthogonal to rounding, by n. By experiment.
SWEEPS = (0, 0, 2, 6, 7)


# -- algebra of entries ----------------------------------------------------------------------


def _dot(u: Sequence[Array], v: Sequence[Array]) -> Array:
    """Sum of the products of two lists of vectors."""
    total = u[0] * v[0]
    for a, b in zip(u[1:], v[1:], strict=True):
        total += a * b
    return total


def _columns(x: Entries) -> Entries:
    return [list(column) for column in zip(*x, strict=True)]


def map_entries(f: Callable[..., Array], *entries: Entries) -> Entries:
    """Apply a function entry by entry."""
    return [
        [f(*values) for values in zip(*rows, strict=True)] for rows in zip(*entries, strict=True)
    ]


def _conj(x: Entries, ops: Ops) -> Entries:
    return map_entries(ops.xp.conj, x) if is_complex(x[0][0]) else x


def _conj_of(x: Array, ops: Ops) -> Array:
    return ops.xp.conj(x) if is_complex(x) else x


def real_parts(x: Array, ops: Ops) -> list[Array]:
    """Real part of a vector, and the imaginary part if there is one."""
    return [ops.xp.real(x), ops.xp.imag(x)] if is_complex(x) else [x]


def _product(a: Entries, b: Entries) -> Entries:
    columns = _columns(b)
    return [[_dot(row, column) for column in columns] for row in a]


def _hermitian_product(
    a: Entries, b: Entries, ops: Ops, f: Callable[[bool, Array], Array] = lambda diagonal, v: v
) -> Entries:
    """``a^H b``, which must be Hermitian, after a function of (on the diagonal?, entry)."""
    n = len(a[0])
    left, right = _columns(_conj(a, ops)), _columns(b)
    upper = [[f(i == j, _dot(left[i], right[j])) for j in range(i, n)] for i in range(n)]
    lower = _conj(upper, ops)
    return [[upper[i][j - i] if i <= j else lower[j][i - j] for j in range(n)] for i in range(n)]


def _square(x: Array, ops: Ops) -> Array:
    """``|x|^2``, real."""
    first, *others = (p * p for p in real_parts(x, ops))
    return first + others[0] if others else first


def _sum_of_squares(vectors: Sequence[Array], ops: Ops) -> Array:
    total = _square(vectors[0], ops)
    for v in vectors[1:]:
        total += _square(v, ops)
    return total


def frobenius2(x: Entries, ops: Ops) -> Array:
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
    if not is_complex(d):
        return xp.where(d < 0, -xp.ones_like(d), xp.ones_like(d)), size
    divides = size > format_of(format_name(d)).smallest_normal
    return xp.where(divides, d * (1.0 / xp.where(divides, size, 1.0 + size)), 1.0 + 0.0 * d), size


# -- unitary factors -------------------------------------------------------------------------


class _Factor(NamedTuple):
    """Unitary factor of each matrix, whether it is accurate, and the invariants it was made of."""

    unitary: Entries
    safe: Array
    norm2: Array  # ||A||_F^2
    cofactors2: Array  # ||C||_F^2
    determinant: Array  # |det A|; signed for a rotation


def _newton_step(half: Entries, ops: Ops) -> Entries:
    """``(X + X^-H) / 2`` of ``X / 2``: near a unitary matrix the error of X is squared."""
    c = _cofactors(half, ops)
    d = _dot(half[0], c[0])
    quarter = 0.25 / _conj_of(d, ops)
    return map_entries(lambda a, b: a + b * quarter, half, _conj(c, ops))


def _closed_form(x: Entries, ops: Ops, *, proper: bool) -> _Factor:
    """3 x 3: the polar factor, or the nearest rotation if `proper`."""
    xp = ops.xp
    c = _cofactors(x, ops)
    d = _dot(x[0], c[0])
    a, b = frobenius2(x, ops), frobenius2(c, ops)
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
    # U / 2, with the signs of both factors of the product changed.
    half = -0.5 / denominator
    shift = square - i2
    inner = _hermitian_product(x, x, ops, lambda i, g: (g - shift if i else g) * half)
    weight = i1 * half * -phase
    u = map_entries(lambda p, q: p + q * weight, _product(x, inner), _conj(c, ops))
    safe = (b > NEAR_RANK_ONE**2 * a * a) & (denominator > SAFE_CLOSED_FORM * a * xp.sqrt(a))
    return _Factor(_newton_step(u, ops), safe, a, b, size)


def _one_step(x: Entries, ops: Ops, *, proper: bool) -> _Factor:
    """1 x 1 and 2 x 2: ``X + C ||X|| / ||C||`` is a multiple of the factor."""
    xp = ops.xp
    n = len(x)
    c = _cofactors(x, ops)
    d = _dot(x[0], c[0])
    a = frobenius2(x, ops)
    b = a if n == 2 else xp.ones_like(a)
    if not proper:
        turn, d = _phase(d, ops)
        c = map_entries(lambda v: v * turn, _conj(c, ops))
    u = map_entries(lambda p, q: p + q if n == 2 else p + q * xp.sqrt(a), x, c)
    total = frobenius2(u, ops)
    s = xp.sqrt(n / total)
    return _Factor(map_entries(lambda p: p * s, u), total > 0, a, b, d)


def _scaled_newton(x: Entries, ops: Ops, *, proper: bool) -> _Factor:
    """4 x 4: the polar factor; the nearest rotation, if `proper`, where the determinant allows."""
    xp = ops.xp
    first: list[Array] = []
    for step in range(NEWTON_STEPS):
        c = _cofactors(x, ops)
        d = _dot(x[0], c[0])
        c = _conj(c, ops)
        a, b = frobenius2(x, ops), frobenius2(c, ops)
        phase, size = _phase(d, ops)
        first = first or [a, b, d if proper else size]
        weight = 1.0 if step < NEWTON_STEPS - 1 else 0.5
        s, t = weight / xp.sqrt(a), weight * phase / xp.sqrt(b)
        x = map_entries(lambda p, q, s=s, t=t: p * s + q * t, x, c)
    a, b, d = first
    cut = SAFE_NEWTON_COMPLEX if is_complex(x[0][0]) else SAFE_NEWTON
    safe = b > cut**2 * a * a * a
    # The iteration keeps the sign of the determinant.
    return _Factor(_newton_step(x, ops), safe & (d > 0) if proper else safe, a, b, d)


def closed_factor(x: Entries, ops: Ops, *, proper: bool = False) -> _Factor:
    """Polar factor (nearest rotation if `proper`) without a loop that depends on the matrix."""
    solve = {3: _closed_form, LARGEST: _scaled_newton}.get(len(x), _one_step)
    return solve(x, ops, proper=proper)


def svd_factor(
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
    singular values. Columns that are only rounding errors are replaced by orthonormal ones, made of
    the axes that are farthest from the span of the others.
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
    return c, t * c, _conj_of(phase, ops)


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


def error_estimates(x: Entries, u: Entries, norm2: Array, tol: float, ops: Ops) -> list[Any]:
    """Return H, orthogonality, backward error, and whether H is semidefinite."""
    xp = ops.xp
    n = len(x)
    w = _product(_columns(_conj(u, ops)), x)
    h = [list(row) for row in w]
    for i in range(n):
        if is_complex(w[i][i]):
            h[i][i] = xp.astype(xp.real(w[i][i]), w[i][i].dtype)
        for j in range(i):
            h[i][j] = 0.5 * (w[i][j] + _conj_of(w[j][i], ops))
            h[j][i] = _conj_of(h[i][j], ops)
    size = xp.where(norm2 == 0, xp.ones_like(norm2), norm2)
    residual = frobenius2(map_entries(lambda a, b: a - b, x, _product(u, h)), ops)
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
    diagonal = [real_parts(gram[i][i], ops)[0] - 1.0 for i in range(n)]
    defect = _sum_of_squares(diagonal, ops)
    above = [gram[i][j] for i in range(n) for j in range(i + 1, n)]
    return defect + 2.0 * _sum_of_squares(above, ops) if above else defect


def is_nearest_rotation(r: Entries, x: Entries, tol: float, ops: Ops) -> Array:
    """Whether R is a rotation and none is nearer to A, each to the tolerance.

    R maximises ``tr(R^T A)`` among rotations if and only if ``S = R^T A`` is symmetric and no two
    eigenvalues of S have a negative sum: one, the smallest in absolute value, may be negative.
    """
    xp = ops.xp
    norm2 = frobenius2(x, ops)
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
        pivot = real_parts(m[k][k], ops)[0] + shift
        definite = definite & (pivot > 0)
        for i in range(k + 1, n):
            f = m[i][k] / pivot
            for j in range(k + 1, i + 1):
                m[i][j] = m[i][j] - f * _conj_of(m[j][k], ops)
    return definite
