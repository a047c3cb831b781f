"""Application of a schedule to a matrix, in plain or in Gram form, with restarts.

The result is ``U diag(s(sigma)) V^H`` for ``X = U diag(sigma) V^H`` and a schedule s, computed by
matrix products alone. A step of degree 2d + 1 with coefficients c_0 .. c_d is

    X <- X P(G),    P(G) = c_0 I + c_1 G + ... + c_d G^d,    G = X^H X.

In the plain form G is computed in every step: 2 products for degree 3, 3 for degree 5, and for
higher degrees those of Paterson-Stockmeyer. In the Gram form, with Q the product of all P so far
and R = Q G Q the current Gram matrix,

    Q <- Q P(R),    R <- P(R) R P(R),    and X Q at the end.

There are two products with the m x n matrix, and all others are n x n (Dao-AILab,
gram-newton-schulz, 2025). Both forms agree in exact arithmetic. In floating point R loses its small
eigenvalues, which can become negative and grow by the square of a step's slope. A restart therefore
forms X Q and its Gram matrix.

With R <- R P(R)^p instead, and steps of stride p, Q converges to R^(-1/p) of the first R: the
inverse p-th root.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from polarlib._schedules.products import even_products, product_counts
from polarlib.arrays.library import is_known, to_working_format
from polarlib.arrays.ops import Ops

Array = Any
# Coefficients: numbers, or arrays as in polarlib.arrays.arithmetic.
Coefficient = Array | float
Steps = Sequence[Sequence[Coefficient]]


class Choice(NamedTuple):
    """Rule for steps that depend on the matrix.

    Attributes
    ----------
    after : int
        Number of first steps, which are the same for all matrices.
    steps : callable
        ``steps(g)`` returns the steps after them, where G is the Gram matrix of the iterate. They
        have as many coefficients as the steps that they replace.
    """

    after: int
    steps: Callable[[Array], Steps]


class _Steps:
    """Steps in order; a choice is made when the Gram matrix is known."""

    def __init__(self, steps: Steps, choice: Choice | None) -> None:
        self.steps, self.choice = list(steps), choice

    def next(self, k: int, r: Array) -> Sequence[Coefficient]:
        """Return step k, from 0, for iterates with the Gram matrix R."""
        if self.choice is not None and k == self.choice.after:
            self.steps[k:] = self.choice.steps(r)
        return self.steps[k]


def even_part(
    g: Array, step: Sequence[Coefficient], ops: Ops, out: Array | None = None
) -> tuple[Array, Coefficient, Coefficient]:
    """Return ``(Z, alpha, beta)`` with ``alpha Z + beta I = c_0 I + c_1 G + ... + c_d G^d``.

    Z is a new matrix (in `out` for degree 5), or G itself for degree 3. With Z = sum_j G^(js) B_j
    and B_j = c_(js+1) G + ... + c_(js+s) G^s, Horner's rule in G^s contains no identity matrix, so
    that none is rounded together with a block.
    """
    beta, *c = step
    degree = len(c)
    if degree == 1:
        return g, c[0], beta
    block, _ = even_products(degree)
    if block == 1:
        if degree == 2:
            return ops.quadratic(g, step, out), 1.0, beta
        z = ops.gemm_hermitian(g, g, g, alpha=c[-1], beta=c[-2], out=out)
        for k in range(degree - 3, -1, -1):
            z = ops.gemm_hermitian(z, g, g, beta=c[k])
        return z, 1.0, beta
    powers = [g, ops.gram(g)]
    while len(powers) < block:
        powers.append(ops.matmul(powers[-1], g))
    starts = range(0, degree, block)
    blocks = [ops.combine(c[i : i + block], powers[: len(c[i : i + block])]) for i in starts]
    z = blocks.pop()
    while blocks:
        z = ops.gemm_hermitian(z, powers[-1], blocks.pop(), beta=1.0)
    return z, 1.0, beta


def matrix_products(
    steps: Sequence[Sequence[float]], *, form: str = "plain", restarts: Sequence[int] = ()
) -> int:
    """Return the number of matrix products of :func:`iterate`, of either size.

    Parameters
    ----------
    steps : sequence of sequences of float
        Coefficients of each step.
    form : {"plain", "gram"}, optional
        Form of the iteration.
    restarts : sequence of int, optional
        Restarts of the Gram form, as in :func:`iterate`.

    Returns
    -------
    int

    Examples
    --------
    >>> steps = [(1.875, -1.25, 0.375)] * 5
    >>> matrix_products(steps), matrix_products(steps, form="gram", restarts=(2,))
    (15, 18)
    """
    return sum(product_counts(steps, form=form, restarts=restarts))


def iterate(
    x: Array,
    steps: Steps,
    ops: Ops,
    *,
    form: str = "plain",
    restarts: Sequence[int] = (),
    small: Ops | None = None,
    gram: Array | None = None,
    may_overwrite: bool = False,
    out: Array | None = None,
    callback: Callable[[int, Array], None] | None = None,
    choice: Choice | None = None,
) -> Array:
    """Apply the steps to a stack of matrices.

    Parameters
    ----------
    x : array, shape (..., m, n)
        Normalised, in the working dtype of `ops`, m >= n for the least work.
    steps : sequence of sequences of float or array
        Coefficients in ascending odd powers, first step first.
    ops : Ops
        Arithmetic.
    form : {"plain", "gram"}, optional
        Form of the iteration.
    restarts : sequence of int, optional
        Numbers (from 1) of the steps after which the Gram form restarts from ``X Q``.
    small : Ops, optional
        Arithmetic of the n x n matrices of the Gram form, by default `ops`.
    gram : array, shape (..., n, n), optional
        ``X^H X`` of that arithmetic, if known; may be overwritten.
    may_overwrite : bool, optional
        Whether the storage of `x` may be overwritten; by default `x` is not modified.
    out : array, shape (..., m, n), optional
        Storage for the result, not shared with `x`; used if it has the dtype of the iterate.
    callback : callable, optional
        Called as ``callback(k, x)`` after step k with the iterate, which it must not modify, and
        which the step after the next one overwrites. In the Gram form the iterate is formed for it
        by a product that is not counted.
    choice : Choice, optional
        Rule for later steps, which then replace those of `steps`.

    Returns
    -------
    array, shape (..., m, n)
    """
    chosen = _Steps(steps, choice)
    if out is not None and (out.dtype != x.dtype or out.shape != x.shape):
        out = None
    if form == "gram":
        small = ops if small is None else small
        return _gram(x, chosen, ops, small, restarts, gram, out, callback)
    return _plain(x, chosen, ops, may_overwrite, gram, out, callback)


def _plain(
    x: Array,
    chosen: _Steps,
    ops: Ops,
    may_overwrite: bool,
    gram: Array | None,
    out: Array | None,
    callback: Callable[[int, Array], None] | None,
) -> Array:
    # Two buffers of the size of x alternate, one of them its own storage if that may be
    # overwritten. The two small matrices use the same storage in every step.
    square = (*x.shape[:-2], x.shape[-1], x.shape[-1])
    g, z = ops.buffer(square, x) if gram is None else gram, ops.buffer(square, x)
    turns = [x if may_overwrite and ops.reusable(x) else None, None]
    if out is not None:  # the last step writes to it
        turns[len(chosen.steps) % 2] = out
    for k in range(1, len(chosen.steps) + 1):
        step = chosen.steps[k - 1]
        out = turns[k % 2]
        if out is None:
            out = turns[k % 2] = ops.buffer(x.shape, x)
        if len(step) == 1:
            x = ops.combine(step, (x,))
        else:
            known, gram = gram, None
            r = ops.gram(x, g) if known is None else known
            step = chosen.next(k - 1, r)
            p, alpha, beta = ops.add_scaled_identity(*even_part(r, step, ops, z))
            x = ops.gemm(x, p, x, alpha=alpha, beta=beta, out=out)
        if callback is not None:
            callback(k, x)
    return x


def _gram(
    x: Array,
    chosen: _Steps,
    ops: Ops,
    small: Ops,
    restarts: Sequence[int],
    gram: Array | None,
    out: Array | None,
    callback: Callable[[int, Array], None] | None,
) -> Array:
    last = len(chosen.steps)
    ends = sorted({k for k in (*restarts, last) if 0 < k <= last})
    for start, end in zip([0, *ends], ends, strict=False):

        def inside(k: int, q: Array, start: int = start, x: Array = x) -> None:
            if callback is not None:
                callback(start + k, ops.matmul(x, to_working_format(q, ops)))

        def following(k: int, r: Array, start: int = start) -> Sequence[Coefficient]:
            return chosen.next(start + k, r)

        watch = None if callback is None else inside
        r, gram = small.gram(to_working_format(x, small)) if gram is None else gram, None
        here = chosen.steps[start:end]
        q, alpha, beta = coupled(r, here, small, callback=watch, chosen=following)
        del r  # free its storage before X Q is formed
        q = to_working_format(q, ops)
        whole = is_known(alpha, 1.0) and is_known(beta, 0.0)
        into = out if end == ends[-1] else None
        x = ops.matmul(x, q, into) if whole else ops.gemm(x, q, x, alpha, beta, into)
        if callback is not None:
            callback(end, x)
    return x


def coupled(
    r: Array,
    steps: Steps,
    ops: Ops,
    *,
    stride: int = 2,
    callback: Callable[[int, Array], None] | None = None,
    chosen: Callable[[int, Array], Sequence[Coefficient]] | None = None,
) -> tuple[Array, Coefficient, Coefficient]:
    """Return ``(Z, alpha, beta)`` with ``alpha Z + beta I`` = Q, the product of all ``P(R)``.

    Each step is ``Q <- Q P(R)``, ``R <- R P(R)**stride``; after the last one R is not needed.

    Parameters
    ----------
    r : array, shape (..., n, n)
        Hermitian positive semidefinite, with eigenvalues ``x**stride`` for x in the interval of the
        steps. May be overwritten.
    steps : sequence of sequences of float
        Coefficients in ascending powers 1 + stride i, first step first; at least one.
    ops : Ops
        Arithmetic.
    stride : int, optional
        Q converges to ``R**(-1/stride)``.
    callback : callable, optional
        Called as ``callback(k, q)`` after every step k but the last.
    chosen : callable, optional
        ``chosen(k, r)`` returns step k, from 0, instead of that of `steps`; R is that before it.

    Returns
    -------
    z : array, shape (..., n, n)
        For a single step of two coefficients in the storage of `r`.
    alpha, beta : float or array
        1 and 0, except for a single step, which in narrow formats is not rounded together with the
        identity.
    """
    q = None
    free: list[Array] = []

    def renewed(a: Array, b: Array, c: Array, alpha: Coefficient, beta: Coefficient) -> Array:
        """Return ``alpha a b + beta c``; the storage of c is then free."""
        out = free.pop() if free else ops.buffer(c.shape, c)
        product = ops.gemm_hermitian(a, b, c, alpha=alpha, beta=beta, out=out)
        if ops.reusable(c):
            free.append(c)
        return product

    for k, step in enumerate(steps, 1):
        last = k == len(steps)
        step = step if chosen is None else chosen(k - 1, r)
        out = free.pop() if free else ops.buffer(r.shape, r)
        z, alpha, beta = even_part(r, step, ops, out) if len(step) > 1 else (r, 0.0, step[0])
        if z is r and not last:
            z = ops.combine((alpha,), (r,))  # a copy, since R is still needed
            alpha = 1.0
        z, alpha, beta = ops.add_scaled_identity(z, alpha, beta)
        if q is not None:
            q = renewed(q, z, q, alpha, beta)
        if last:
            return (z, alpha, beta) if q is None else (q, 1.0, 0.0)
        for i in range(stride):  # alternately from both sides, so that R stays nearly Hermitian
            left, right = (z, r) if i % 2 else (r, z)
            r = renewed(left, right, r, alpha, beta)
        r = ops.make_hermitian(r)
        if q is None:  # in the storage of Z, which is free
            q = z if is_known(alpha, 1.0) else ops.combine((alpha,), (z,))
            q = q if is_known(beta, 0.0) else ops.add_diagonal(q, beta)
        elif ops.reusable(z):
            free.append(z)
        if callback is not None:
            callback(k, q)
    raise ValueError("coupled needs at least one step")
