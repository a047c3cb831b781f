"""Numbers of matrix products of steps and schedules."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from polarlib._schedules.steps import Rational
from polarlib.arrays import checks


@functools.lru_cache(maxsize=256)
def even_products(degree: int) -> tuple[int, int]:
    """Return the cheapest Paterson-Stockmeyer split for a polynomial in a square matrix G.

    Parameters
    ----------
    degree : int
        Degree in G (an odd polynomial of degree 2d + 1 has degree d in ``G = X^H X``).

    Returns
    -------
    block, products : int
        Powers ``G .. G**block`` are formed; `products` is the number of matrix products in all,
        ``(block - 1) + (ceil(degree / block) - 1)``.

    Notes
    -----
    Paterson and Stockmeyer, SIAM J. Comput. 2 (1973) 60-66. Ties go to the smaller block, which
    needs fewer buffers.

    Examples
    --------
    >>> [even_products(d)[1] for d in range(1, 8)]
    [0, 1, 2, 2, 3, 3, 4]
    """
    if degree < 1:
        return 1, 0
    cost, block = min((s - 1 + math.ceil(degree / s) - 1, s) for s in range(1, degree + 1))
    return block, cost


def product_counts(
    steps: Sequence[Sequence[Any]], *, form: str = "plain", restarts: Sequence[int] = ()
) -> tuple[int, int]:
    """Count the matrix products: with the m x n matrix, and among n x n matrices.

    Parameters
    ----------
    steps : sequence of steps
        All polynomials or all rational.
    form : {"plain", "gram"}, optional
        Form of the iteration of polynomials. Rational steps are taken on one Gram matrix.
    restarts : sequence of int, optional
        Numbers (from 1) of the steps after which the Gram form restarts.

    Returns
    -------
    large, small : int

    Examples
    --------
    >>> quintic = [(1.875, -1.25, 0.375)] * 5
    >>> product_counts(quintic), product_counts(quintic, form="gram", restarts=(2,))
    ((10, 5), (4, 14))
    """
    if steps and isinstance(steps[0], Rational):
        # For each step but the last a Gram product per pole, W G W, and Q W; the first W is Q.
        return 2, sum(len(poles) + 2 for _, _, poles in steps[:-1]) - int(len(steps) > 1)
    return _counts_of_polynomials(tuple(map(len, steps)), form, tuple(restarts))


def operations(large: float, small: float, m: float, n: float) -> float:
    """Count the floating-point operations of products, 2 m k n for an m x k and a k x n matrix.

    Parameters
    ----------
    large, small : float
        Numbers of products with the m x n matrix, and among matrices of its smaller dimension.
    m, n : float

    Examples
    --------
    >>> operations(10, 5, 16, 64)
    368640
    """
    n, m = sorted((m, n))
    return 2 * (large * m * n * n + small * n**3)


# Cached, since every call of orthogonalize needs it, for the same few schedules.
@functools.lru_cache(maxsize=256)
def _counts_of_polynomials(
    lengths: tuple[int, ...], form: str, restarts: tuple[int, ...]
) -> tuple[int, int]:
    """Count the products as :func:`product_counts`, from the numbers of coefficients."""
    inner = sum(even_products(length - 1)[1] for length in lengths)
    if form == "plain":  # the Gram matrix and X P in every step that is not a scaling
        return 2 * sum(length > 1 for length in lengths), inner
    # The Gram matrix and X Q in every segment; after each of its steps but the last, one product
    # for Q and two for R.
    segments = 1 + len({k for k in restarts if 0 < k < len(lengths)})
    return 2 * segments, inner + 3 * (len(lengths) - segments)


def matmuls(steps: Sequence[Sequence[Any]], stride: int) -> int:
    """Return the matrix products of the plain form, or of the coupled form for inverse roots.

    Examples
    --------
    >>> matmuls([(1.5, -0.5)] * 2, 2), matmuls([(1.5, -0.5)] * 2, 3)
    (4, 4)
    """
    if stride == 2:
        return sum(product_counts(steps))
    inner = sum(even_products(len(step) - 1)[1] for step in steps)
    return inner + (1 + stride) * (len(steps) - 1)


def continued(
    steps: tuple[Any, ...], k: Any, repeat: Any, name: str
) -> tuple[tuple[Any, ...], Any]:
    """Return the first k steps of a list that continues by a repeat rule, and their own rule.

    Raises
    ------
    ValueError
        If `k` is no positive integer, or more than a list has that ends.

    Examples
    --------
    >>> continued((1, 2, 3), 5, "last", "a"), continued((1, 2, 3), 5, "forever", "a")
    (((1, 2, 3, 3, 3), 'last'), ((1, 2, 3, 1, 2), None))
    """
    k, have = checks.count("steps", k, 1, checks.MOST_STEPS), len(steps)
    if k > have and repeat is None:
        raise ValueError(
            f"steps must be at most {have} for schedule {checks.shown(name)}, which has {have} "
            f"steps and does not repeat, got {k}; truncate({k}, repeat='last') continues with its "
            "last step, repeat='forever' from its beginning"
        )
    if repeat == "last":
        taken = (steps + steps[-1:] * (k - have))[:k]
    else:
        taken = (steps * math.ceil(k / have))[:k]
    if k > have:
        on = repeat == "last" or k % have == 0 or have == 1
    else:
        # A truncated list has another last step, so that the rule would continue it differently,
        # unless all steps are equal.
        on = k == have or len(set(steps)) == 1
    return taken, repeat if on else None
