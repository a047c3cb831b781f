"""How many matrix products a step takes."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from polarlib.arrays import checks

__all__ = ["continued", "even_products", "product_counts"]


@functools.lru_cache(maxsize=256)
def even_products(degree: int) -> tuple[int, int]:
    """Cheapest Paterson-Stockmeyer split for a polynomial of a degree in a square matrix G.

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
    steps: Sequence[Sequence[float]], *, form: str = "plain", restarts: Sequence[int] = ()
) -> tuple[int, int]:
    """Matrix products of the engine: with the m x n matrix, and among n x n matrices.

    Parameters
    ----------
    steps : sequence of sequences of float
        Coefficients of each step.
    form : {"plain", "gram"}, optional
        Form of the iteration.
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
    inner = sum(even_products(len(step) - 1)[1] for step in steps)
    if form == "plain":  # the Gram matrix and X P in every step that is not a mere scaling
        return 2 * sum(len(step) > 1 for step in steps), inner
    # The Gram matrix and X Q in every section; after each of its steps but the last, one product
    # for Q and two for R.
    sections = 1 + len({k for k in restarts if 0 < k < len(steps)})
    return 2 * sections, inner + 3 * (len(steps) - sections)


def continued(steps: tuple[Any, ...], k: Any, repeat: str | None, name: str) -> tuple[Any, ...]:
    """First k steps of a list that goes on as a rule says: the one mechanism of repetition.

    Raises
    ------
    ValueError
        If `k` is no positive integer, or more than a list has that ends.

    Examples
    --------
    >>> continued((1, 2, 3), 5, "last", "a"), continued((1, 2, 3), 5, "forever", "a")
    ((1, 2, 3, 3, 3), (1, 2, 3, 1, 2))
    """
    k, have = checks.count("steps", k, 1, checks.MOST_STEPS), len(steps)
    if k > have and repeat is None:
        raise ValueError(
            f"steps must be at most {have} for schedule {checks.shown(name)}, which has {have} "
            f"steps and does not repeat, got {k}; truncate({k}, repeat='last') goes on with its "
            "last step, repeat='forever' from its beginning"
        )
    if repeat == "last":
        return (steps + steps[-1:] * (k - have))[:k]
    return (steps * math.ceil(k / have))[:k]
