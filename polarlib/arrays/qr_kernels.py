"""QR factorisations of NumPy matrices in place, with optional pivoting, and of two triangles.

Matrices are column-major, of one of the four types of BLAS; blocks of them are views.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from polarlib.arrays.routines import call, gemm, integers, trmm, trsm, with_work

Array = Any

# Columns of a block reflector, and of its panels that LAPACK factorises: first without pivoting
# (wide blocks are applied faster), then for all other factorisations. Chosen by experiment.
WIDE, PANEL = 128, 64
# Seed of the sketches. It must not be the seed of a user's matrix, since a sketch must be
# independent of the matrix.
SEED = 0x51C3


class Householder(NamedTuple):
    """The factorisation ``X P = Q R`` in the storage of X, and the order of columns.

    Attributes
    ----------
    x : array, shape (m, n)
        R on and above the diagonal, Householder vectors below.
    blocks : list of array
        Triangular factors T of the block reflectors ``I - V T V^H``.
    order : array of int, shape (n,), or None
        Column ``order[j]`` of X is column j of X P; None without pivoting.
    """

    x: Array
    blocks: list[Array]
    order: Array | None


# -- QR ------------------------------------------------------------------------------------------


def _panel(v: Array) -> Array:
    """Factorise a few columns in place; return the triangular factor of their block reflector."""
    m, b = v.shape
    t = np.zeros((b, b), v.dtype, order="F")
    inner = min(PANEL, b)
    parts = np.empty((inner, b), v.dtype, order="F")
    work = np.empty(inner * b, v.dtype)
    call("geqrt", v.dtype.char, m, b, inner, v, parts, work, integers(1))
    for i in range(0, b, inner):
        e = min(b, i + inner)
        t[i:e, i:e] = np.triu(parts[: e - i, i:e])
        if i:  # -T_1 V_1^H V_2 T_2
            corner = t[:i, i:e]
            corner[...] = v[i:e, :i].conj().T
            trmm(1.0, v[i:e, i:e], corner, side="R", uplo="L", unit=True)
            gemm(1.0, v[e:, :i], v[e:, i:e], 1.0, corner, left="C")
            trmm(-1.0, t[:i, :i], corner)
            trmm(1.0, t[i:e, i:e], corner, side="R")
    return t


def _reflect(v: Array, t: Array, c: Array, work: Array, *, adjoint: bool) -> None:
    """Compute ``C <- (I - V T V^H) C``, or with T^H; V is unit lower trapezoidal."""
    b = v.shape[1]
    w = _shaped(work, b, c.shape[1])
    w[...] = c[:b]
    trmm(1.0, v[:b], w, uplo="L", trans="C", unit=True)
    gemm(1.0, v[b:], c[b:], 1.0, w, left="C")
    trmm(1.0, t, w, trans="C" if adjoint else "N")
    gemm(-1.0, v[b:], w, 1.0, c[b:])
    trmm(1.0, v[:b], w, uplo="L", unit=True)
    c[:b] -= w


def _shaped(work: Array, rows: int, columns: int) -> Array:
    """Return a column-major matrix in the storage of a vector."""
    return work[: rows * columns].reshape((rows, columns), order="F")


def factorise(x: Array, *, pivot: bool = False) -> Householder:
    """Compute the QR factorisation of a tall matrix, in its own storage.

    Parameters
    ----------
    x : array, shape (m, n)
        Column-major, m >= n; overwritten.
    pivot : bool, optional
        Whether to order the columns, by blocks, by Gaussian elimination with pivoting on a random
        sketch of the remaining matrix. The rows of R are then graded, and R is well-conditioned
        after row scaling. Pivoting takes a third more time; the generator's seed is fixed.

    Returns
    -------
    Householder

    Notes
    -----
    Pivots from sketches: P.-G. Martinsson, G. Quintana-Orti, N. Heavner, R. van de Geijn, SIAM J.
    Sci. Comput. 39 (2017) C96-C115; by Gaussian elimination: Y. Dong, P.-G. Martinsson, Adv.
    Comput. Math. 49 (2023) 66.
    """
    m, n = x.shape
    width = max(1, min(PANEL if pivot else WIDE, n))
    work = np.empty(width * n, x.dtype)
    order: Array | None = None
    sketch: Array | None = None
    if pivot:
        order = np.arange(n)
        sketch = np.empty((width, n), x.dtype, order="F")
        random = np.random.default_rng(SEED).standard_normal((m, width)).astype(x.dtype).T
        gemm(1.0, random, x, 0.0, sketch)
    blocks = []
    for j in range(0, n, width):
        e = min(n, j + width)
        if sketch is not None and order is not None:
            moved, source = _exchanges(sketch[:, j:], work)
            for a in (x.T, sketch.T, order):
                a[j + moved] = a[j + source]
        v, rest = x[j:, j:e], x[j:, e:]
        t = _panel(v)
        blocks.append(t)
        _reflect(v, t, rest, work, adjoint=True)
        if sketch is not None and e < n:
            if not np.all(np.diagonal(v)):  # exactly singular: no columns remain to be ordered
                sketch = None
                continue
            w = _shaped(work, e - j, n - e)
            w[...] = rest[: e - j]
            trsm(1.0, v, w)
            gemm(-1.0, sketch[:, j:e], w, 1.0, sketch[:, e:])
    return Householder(x, blocks, order)


def _exchanges(sketch: Array, work: Array) -> tuple[Array, Array]:
    """Return the positions that change when the heaviest columns come first, and their columns."""
    b, n = sketch.shape
    a = _shaped(work, n, b)
    a[...] = sketch.T
    pivots = integers(min(n, b))
    call("getrf", a.dtype.char, n, b, a, pivots, integers(1))
    source = np.arange(n)
    for i, p in enumerate((pivots - 1).tolist()):
        source[[i, p]] = source[[p, i]]
    moved = np.flatnonzero(source != np.arange(n))
    return moved, source[moved]


def apply(q: Householder, c: Array) -> Array:
    """Replace C, of m rows, by Q C, in place.

    Parameters
    ----------
    q : Householder
    c : array, shape (m, k)
        Column-major.
    """
    n = q.x.shape[1]
    width = q.blocks[0].shape[0] if q.blocks else 1
    work = np.empty(width * c.shape[1], c.dtype)
    for j, t in reversed(list(zip(range(0, n, width), q.blocks, strict=True))):
        _reflect(q.x[j:, j : j + t.shape[0]], t, c[j:], work, adjoint=False)
    return c


def over_identity(x: Array, root: float) -> Array:
    """Return ``Q_1 Q_2^H`` with ``[root X; I] = [Q_1; Q_2] R``, by QR in the storage of the stack.

    Parameters
    ----------
    x : array, shape (n, n)
        Finite, in any memory order; not modified.
    root : float
        Positive.
    """
    n = x.shape[0]
    kind = x.dtype.char
    q = np.zeros((2 * n, n), kind, order="F")
    np.multiply(x, x.dtype.type(root), out=q[:n])
    np.einsum("ii->i", q[n:])[...] = 1
    factors = np.empty(n, kind)
    with_work("geqrf", kind, 2 * n, n, q, factors)
    with_work("ungqr", kind, 2 * n, n, n, q, factors)
    product = np.empty((n, n), kind, order="F")
    gemm(1.0, q[:n], q[n:], 0.0, product, right="C")
    return product


def two_triangles(r: Array, s: float, scale: float, work: Array) -> Array:
    """Replace R by ``scale Q_1 Q_2^H`` with ``[R; s I] = [Q_1; Q_2] S``, Q_1 and Q_2 triangular.

    The result is ``scale s R (R^H R + s^2 I)^-1``, in as many operations as one product of full
    matrices. A QR factorisation of the full stack would take five times as many.

    Parameters
    ----------
    r : array, shape (n, n)
        Upper triangular, zeros below; column-major; overwritten.
    s, scale : float
        Positive.
    work : array, shape (n, n)
        Column-major; overwritten.

    Returns
    -------
    array, shape (n, n)
        In the storage of `r`.
    """
    n = r.shape[0]
    v = work
    v[...] = 0
    v.T.reshape(-1)[:: n + 1] = s
    width = min(PANEL, n)
    buffer = np.empty(width * n, r.dtype)
    stack = np.empty(width * (n + width), r.dtype)
    starts = range(0, n, width)
    blocks = []
    # Householder vectors are [I; V] with V upper triangular: R and V become S and V.
    for j in starts:
        e = min(n, j + width)
        b = e - j
        panel = _shaped(stack, b + e, b)
        panel[:b], panel[b:] = r[j:e, j:e], v[:e, j:e]
        t = _panel(panel)
        blocks.append(t)
        v[:e, j:e] = panel[b:]
        if e < n:
            rest = r[j:e, e:]
            w = _shaped(buffer, b, n - e)
            w[...] = rest
            gemm(1.0, v[:e, j:e], v[:e, e:], 1.0, w, left="C")
            trmm(1.0, t, w, trans="C")
            rest -= w
            gemm(-1.0, v[:e, j:e], w, 1.0, v[:e, e:])
    # The first n columns of Q, from the last block to the first: S and V become Q_1 and Q_2.
    for j, t in reversed(list(zip(starts, blocks, strict=True))):
        e = min(n, j + width)
        if e < n:
            w = _shaped(buffer, e - j, n - e)
            gemm(1.0, v[:e, j:e], v[:e, e:], 0.0, w, left="C")
            trmm(1.0, t, w)
            np.negative(w, out=r[j:e, e:])
            gemm(-1.0, v[:e, j:e], w, 1.0, v[:e, e:])
        r[j:e, j:e] = -t
        trmm(-1.0, t, v[:e, j:e], side="R")
    r.T.reshape(-1)[:: n + 1] += 1
    trmm(scale, v, r, side="R", trans="C")
    return r
