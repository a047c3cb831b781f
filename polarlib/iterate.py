"""One engine: applies a schedule to a matrix, in plain or in Gram form, with restarts.

What it computes: ``U diag(s(sigma)) V^H`` for ``X = U diag(sigma) V^H`` and a schedule s, by matrix
products alone. A step of degree 2d + 1 with coefficients c_0 .. c_d is

    X <- X P(G),    P(G) = c_0 I + c_1 G + ... + c_d G^d,    G = X^H X.

Plain form: G anew in every step; 2 products for degree 3, 3 for degree 5, then Paterson-Stockmeyer.
Gram form: with Q the product of the P's so far and R = Q G Q the current Gram matrix,

    Q <- Q P(R),    R <- P(R) R P(R),    and X Q at the end,

so the m x n matrix is touched twice, and everything else is n x n (Dao-AILab, gram-newton-schulz,
2025). The two agree in exact arithmetic. In floating point R loses its small eigenvalues, which can
turn negative and grow by the square of a step's slope: a restart forms X Q and its Gram matrix.

With R <- R P(R)^p instead, and steps of stride p, the same Q tends to R^(-1/p) of the R that it
begins with: inverse p-th roots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from polarlib._schedule import even_products, product_counts
from polarlib.formats import Format, format_of
from polarlib.ops import Ops, finite_peak

__all__ = [
    "FROM_GRAM",
    "checked_peak",
    "coupled",
    "iterate",
    "matrix_products",
    "normalise",
    "normalised_with_gram",
    "spectral_bound",
]

Array = Any

# Normalisations by a bound that the first step's own Gram matrix gives.
FROM_GRAM = ("moments", "schatten4")
# Powers of Frobenius norms as high as the degree of a step must stay within 2**100 and its inverse:
# coefficients that absorb the norm are then normal numbers of single precision.
MOST_BITS = 100
# Roundings of single precision that sums of squares and products are allowed, chosen generously.
SUM_ROUNDINGS = 64


def even_part(
    g: Array, step: Sequence[float], ops: Ops, out: Array | None = None
) -> tuple[Array, float, float]:
    """Return ``(Z, alpha, beta)`` with ``alpha Z + beta I = c_0 I + c_1 G + ... + c_d G^d``.

    Z is a new matrix (in `out` for degree 5), or G itself for degree 3. With Z = sum_j G^(js) B_j
    and B_j = c_(js+1) G + ... + c_(js+s) G^s, Horner's rule in G^s meets no identity matrix, so
    none is ever rounded together with a block.
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
    """Matrix products that :func:`iterate` will take, of either size.

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
    >>> quintic = [(1.875, -1.25, 0.375)] * 5
    >>> matrix_products(quintic), matrix_products(quintic, form="gram", restarts=(2,))
    (15, 18)
    """
    return sum(product_counts(steps, form=form, restarts=restarts))


def iterate(
    x: Array,
    steps: Sequence[Sequence[float]],
    ops: Ops,
    *,
    form: str = "plain",
    restarts: Sequence[int] = (),
    small: Ops | None = None,
    gram: Array | None = None,
    owned: bool = False,
    out: Array | None = None,
    callback: Callable[[int, Array], None] | None = None,
) -> Array:
    """Apply the steps to a stack of matrices.

    Parameters
    ----------
    x : array, shape (..., m, n)
        Normalised, already of the dtype that `ops` works in, m >= n for the least work.
    steps : sequence of sequences of float
        Coefficients in ascending odd powers, first step first.
    ops : Ops
        Arithmetic.
    form : {"plain", "gram"}, optional
        Form of the iteration.
    restarts : sequence of int, optional
        Numbers (from 1) of the steps after which the Gram form starts again from ``X Q``.
    small : Ops, optional
        Arithmetic of the n x n matrices of the Gram form, by default `ops`.
    gram : array, shape (..., n, n), optional
        ``X^H X`` of that arithmetic, if it is known; given up.
    owned : bool, optional
        Whether the storage of `x` may be written; otherwise `x` is never changed.
    out : array, shape (..., m, n), optional
        Storage for the result, which shares none with `x`; used if it has the dtype of the iterate.
    callback : callable, optional
        Called as ``callback(k, x)`` after step k with the iterate, which it must not change, and
        which the step after the next one overwrites. In the Gram form the iterate is formed for it
        by a product that is not counted.

    Returns
    -------
    array, shape (..., m, n)
    """
    if out is not None and (out.dtype != x.dtype or out.shape != x.shape):
        out = None
    if form == "gram":
        return _gram(x, steps, ops, ops if small is None else small, restarts, gram, out, callback)
    return _plain(x, steps, ops, owned, gram, out, callback)


def _plain(
    x: Array,
    steps: Sequence[Sequence[float]],
    ops: Ops,
    owned: bool,
    gram: Array | None,
    out: Array | None,
    callback: Callable[[int, Array], None] | None,
) -> Array:
    # Two buffers of the size of x take turns, its own storage one of them where it is ours; the two
    # small matrices come back to the same storage in every step.
    square = (*x.shape[:-2], x.shape[-1], x.shape[-1])
    g, z = ops.buffer(square, x) if gram is None else gram, ops.buffer(square, x)
    turns = [x if owned and ops.reusable(x) else None, None]
    if out is not None:  # its turn is the last one
        turns[len(steps) % 2] = out
    for k, step in enumerate(steps, 1):
        out = turns[k % 2]
        if out is None:
            out = turns[k % 2] = ops.buffer(x.shape, x)
        if len(step) == 1:
            x = ops.combine(step, (x,))
        else:
            known, gram = gram, None
            r = ops.gram(x, g) if known is None else known
            p, alpha, beta = ops.fold(*even_part(r, step, ops, z))
            x = ops.gemm(x, p, x, alpha=alpha, beta=beta, out=out)
        if callback is not None:
            callback(k, x)
    return x


def _gram(
    x: Array,
    steps: Sequence[Sequence[float]],
    ops: Ops,
    small: Ops,
    restarts: Sequence[int],
    gram: Array | None,
    out: Array | None,
    callback: Callable[[int, Array], None] | None,
) -> Array:
    ends = sorted({k for k in (*restarts, len(steps)) if 0 < k <= len(steps)})
    for start, end in zip([0, *ends], ends, strict=False):

        def inside(k: int, q: Array, start: int = start, x: Array = x) -> None:
            if callback is not None:
                callback(start + k, ops.matmul(x, ops.enter(q)))

        watch = None if callback is None else inside
        r, gram = small.gram(small.enter(x)) if gram is None else gram, None
        q, alpha, beta = coupled(r, steps[start:end], small, callback=watch)
        del r  # before X Q takes storage
        q = ops.enter(q)
        whole = (alpha, beta) == (1.0, 0.0)
        into = out if end == ends[-1] else None
        x = ops.matmul(x, q, into) if whole else ops.gemm(x, q, x, alpha, beta, into)
        if callback is not None:
            callback(end, x)
    return x


def coupled(
    r: Array,
    steps: Sequence[Sequence[float]],
    ops: Ops,
    *,
    stride: int = 2,
    callback: Callable[[int, Array], None] | None = None,
) -> tuple[Array, float, float]:
    """Return ``(Z, alpha, beta)`` with ``alpha Z + beta I`` = Q, the product of all ``P(R)``.

    ``Q <- Q P(R)``, ``R <- R P(R)**stride`` for each step; after the last one R is not needed.

    Parameters
    ----------
    r : array, shape (..., n, n)
        Hermitian positive semidefinite, with eigenvalues ``x**stride`` for x in the interval of the
        steps. Given up: its storage may be written.
    steps : sequence of sequences of float
        Coefficients in ascending powers 1 + stride i, first step first; at least one.
    ops : Ops
        Arithmetic.
    stride : int, optional
        Q tends to ``R**(-1/stride)``.
    callback : callable, optional
        Called as ``callback(k, q)`` after every step k but the last.

    Returns
    -------
    z : array, shape (..., n, n)
        For a single step of two coefficients the storage of `r`.
    alpha, beta : float
        1 and 0 but for a single step, which is never rounded together with the identity in narrow
        formats.
    """
    q = None
    free: list[Array] = []

    def renewed(a: Array, b: Array, c: Array, alpha: float, beta: float) -> Array:
        """``alpha a b + beta c``, and the storage of c is free."""
        out = free.pop() if free else ops.buffer(c.shape, c)
        product = ops.gemm_hermitian(a, b, c, alpha=alpha, beta=beta, out=out)
        if ops.reusable(c):
            free.append(c)
        return product

    for k, step in enumerate(steps, 1):
        last = k == len(steps)
        out = free.pop() if free else ops.buffer(r.shape, r)
        z, alpha, beta = even_part(r, step, ops, out) if len(step) > 1 else (r, 0.0, step[0])
        if z is r and not last:
            z = ops.combine((alpha,), (r,))  # fold would overwrite R, which is still needed
            alpha = 1.0
        z, alpha, beta = ops.fold(z, alpha, beta)
        if q is not None:
            q = renewed(q, z, q, alpha, beta)
        if last:
            return (z, alpha, beta) if q is None else (q, 1.0, 0.0)
        if q is None:
            q = ops.add_diagonal(ops.combine((alpha,), (z,)), beta)
        for i in range(stride):  # from both sides in turn, so that R stays nearly Hermitian
            left, right = (z, r) if i % 2 else (r, z)
            r = renewed(left, right, r, alpha, beta)
        r = ops.made_hermitian(r)
        if ops.reusable(z):
            free.append(z)
        if callback is not None:
            callback(k, q)
    raise ValueError("coupled needs at least one step")


def normalise(x: Array, ops: Ops, kind: str, safety: float = 1.0) -> tuple[Array, int]:
    """Divide a stack of matrices so that their singular values lie in (0, 1 / safety].

    A power of two near the largest entry is divided out first, so that no norm can overflow or
    underflow, and the result is the same for every power of two times the input.

    Parameters
    ----------
    x : array, shape (..., m, n)
        In at least single precision, m >= n.
    ops : Ops
        Full-precision arithmetic.
    kind : {"frobenius", "spectral", "moments", "schatten4", "aol", "none"}
        - frobenius: by ``||X||_F``.
        - schatten4: by ``||X^H X||_F^(1/2) >= ||X||_2``.
        - moments: by the best bound of ``||X||_2`` that the two norms above give together: with
          mu and sigma**2 the mean and the variance of the n eigenvalues of the Gram matrix, the
          largest is at most ``mu + sqrt(n - 1) sigma`` (H. Wolkowicz and G. P. H. Styan, Linear
          Algebra Appl. 29 (1980) 471-506, Theorem 2.1). Exact for one or for equal singular values.
        - spectral: by ``||G^8||_F^(1/16)``, G = X^H X, a certified bound that exceeds ``||X||_2``
          by a factor of ``r^(1/32)`` at most for rank r (1.24 for r = 1024).
        - aol: column j by the square root of ``sum_i |G_ij|`` (B. Prach and C. H. Lampert, ECCV
          2022). This CHANGES THE ANSWER: the iteration then approximates the unitary factor of
          X D, D diagonal.
        - none: by nothing, not even `safety`.
    safety : float, optional
        Further divisor.

    Returns
    -------
    y : array, shape (..., m, n)
        A new array (`x` itself for "none"). A zero matrix stays zero.
    matmuls : int
        Matrix products spent.

    Raises
    ------
    ValueError
        If the matrix is not finite and its library is on the host. On a device, where looking would
        stall it, the result of such a matrix is NaN.
    """
    peak = checked_peak(x, ops)
    if kind == "none":
        return x, 0
    y = ops.divide(x, ops.binary_scale(peak))
    if kind == "frobenius":
        norm, spent = ops.frobenius(y), 0
    else:
        g = ops.gram(y)
        if kind == "aol":
            sums = ops.xp.sum(ops.xp.abs(g), axis=-2, keepdims=True)
            norm, spent = ops.xp.sqrt(sums), 1
        elif kind in FROM_GRAM:
            norm, spent = _bound_from_gram(g, ops, kind, format_of(ops.format_name(g))), 1
        else:
            norm, spent = _gram_moment(g, ops, 3)
    return ops.divide(y, ops.divisor(norm) * safety, owned=True), spent


def checked_peak(x: Array, ops: Ops) -> Array:
    """Return the largest absolute entry; raise where it costs nothing that it is not finite."""
    remedy = "remove them before orthogonalising"
    peak = finite_peak(x, ops, "the matrix", look=ops.looks, locate=False, remedy=remedy)
    return ops.at_least_single(peak)


def normalised_with_gram(
    x: Array, ops: Ops, low: Ops, small: Ops, kind: str, safety: float, first: Sequence[float]
) -> tuple[Array, Array, tuple[float, ...]]:
    """Normalise by a bound from the Gram matrix that the first step needs: no product is spent.

    Where the bound is a number, the step's coefficients absorb it, and a matrix that needs no
    scaling is neither copied nor rounded.

    Parameters
    ----------
    x : array, shape (..., m, n)
        m >= n, of any format. Not changed.
    ops, low, small : Ops
        Full-precision arithmetic, that of the iteration, and that of its Gram matrix.
    kind : {"moments", "schatten4"}
        As in :func:`normalise`.
    safety : float
        Further divisor.
    first : sequence of float
        Coefficients of the first step, at least two.

    Returns
    -------
    z : array, shape (..., m, n)
        For `low`; may be `x` or a view of it.
    g : array, shape (..., n, n)
        ``Z^H Z``, for `small`.
    first : tuple of float
        The first step for z: that of the normalised matrix, if z itself is not normalised.

    Raises
    ------
    ValueError
        As :func:`normalise`.
    """
    form = format_of(small.working)
    widest = min(form.largest, format_of(low.working).largest) > 2.0**MOST_BITS
    native = not low.simulated and ops.format_name(x) == low.working
    if native and widest and ops.host and math.prod(x.shape[:-2]) == 1:
        z = low.enter(x)
        g = small.gram(small.enter(z))
        square = ops.read(ops.trace(g))
        bits = 2 * MOST_BITS / (2 * len(first) - 1)
        if 2.0**-bits <= square <= 2.0**bits:
            s = ops.divisor(_bound_from_gram(g, ops, kind, form)) * safety
            return z, g, _absorbing(first, s)
    if not native:
        x = ops.at_least_single(x)
    y = ops.divide(x, ops.binary_scale(checked_peak(x, ops)))
    if not widest:
        # ||Y||_F / sqrt(n) <= ||Y||_2 <= ||Y||_F: the norm is put halfway between the two bounds.
        # Entries of the Gram matrix are then about 1 / sqrt(n) on the diagonal and sqrt(n) at most,
        # those of its square n at most: float16 keeps both up to thousands of columns.
        twice = ops.frobenius(y) * (2 * y.shape[-1] ** -0.25)
        y = ops.divide(y, ops.binary_scale(twice), owned=True)
    z = low.enter(y)
    g = small.gram(small.enter(z))
    s = ops.divisor(_bound_from_gram(g, ops, kind, form)) * safety
    if isinstance(s, float):
        return z, g, _absorbing(first, s)
    g = small.enter(ops.divide(g, s * s, owned=True))
    return low.enter(ops.divide(y, s, owned=True)), g, tuple(first)


def _absorbing(step: Sequence[float], s: float) -> tuple[float, ...]:
    """The step that makes of X what `step` makes of ``X / s``."""
    return tuple(c / s ** (2 * i + 1) for i, c in enumerate(step))


def _bound_from_gram(g: Array, ops: Ops, kind: str, form: Format) -> Array | float:
    """Upper bound of ``||X||_2`` from a Gram matrix as rounded to a format; 0 for zero.

    Its rounding moves eigenvalues by the unit roundoff times its Frobenius norm at most.
    """
    n = g.shape[-1]
    norm = ops.frobenius(g)
    sums = SUM_ROUNDINGS * format_of(ops.format_name(norm)).unit_roundoff
    norm = ops.number(norm)
    slack = form.unit_roundoff + sums
    if kind == "schatten4":
        return ops.root(norm * (1 + slack))
    mean = ops.number(ops.trace(g)) / n
    # Cancels where singular values are equal, to within the rounding of the sums.
    variance = norm * norm * ((1 + sums) / n) - mean * mean
    spread = (variance + abs(variance)) * (0.5 * (n - 1))
    return ops.root(mean + ops.root(spread) + norm * slack)


def spectral_bound(g: Array, ops: Ops, *, squarings: int = 3) -> tuple[Array, int]:
    """Certified bound ``||G^(2^k)||_F^(1/2^k)`` of the largest absolute eigenvalue.

    Parameters
    ----------
    g : array, shape (..., n, n)
        Hermitian, in at least single precision, scaled to entries of the size of 1. Not changed.
    ops : Ops
        Full-precision arithmetic.
    squarings : int, optional
        k: the bound exceeds the eigenvalue by a factor of ``r**(2**-(k + 1))`` at most, r the rank.

    Returns
    -------
    bound : array, shape (..., 1, 1)
        0 for zero matrices.
    matmuls : int
        Matrix products spent.
    """
    copy = ops.combine((1.0,), (g,))  # the moments are taken in its storage
    bound, spent = _gram_moment(copy, ops, squarings)
    return bound * bound, spent - 1


def _gram_moment(g: Array, ops: Ops, squarings: int) -> tuple[Array, int]:
    """Bound ``||G^(2^k)||_F^(1/2^(k+1))`` of the largest singular value, and the products spent."""
    exponent = 0.5
    bound = ops.frobenius(g)
    g = ops.divide(g, ops.divisor(bound), owned=True)
    bound = bound**exponent
    for _ in range(squarings):
        g = ops.gram(g)
        norm = ops.frobenius(g)
        g = ops.divide(g, ops.divisor(norm), owned=True)
        exponent /= 2
        bound = bound * norm**exponent
    # Rounding in the products is at most n eps relative to the norms, then the root is taken.
    eps = format_of(ops.format_name(g)).epsilon
    return bound * (1 + g.shape[-1] * eps), 1 + squarings
