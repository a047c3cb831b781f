"""Costs of steps by their degree, in matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from polarlib._schedules.products import even_products
from polarlib.arrays import checks
from polarlib.arrays.checks import items, number, pair, shown
from polarlib.design.remez import check_degree

FORMS = ("plain", "gram")


def costs(
    shape: Sequence[int] = (1, 1),
    *,
    form: str = "plain",
    symmetric: float = 1.0,
    degrees: Iterable[int] = range(3, 27, 2),
) -> dict[int, float]:
    """Cost of a step by its degree, for matrices of a shape.

    The unit is one product of an m x n matrix with an n x n one, m >= n (a wide matrix is worked on
    as its adjoint); a product of two n x n matrices costs n / m of it.

    Parameters
    ----------
    shape : (int, int), optional
        Rows and columns.
    form : {"plain", "gram"}, optional
        Form of the iteration. In Gram form the products with X are two in all, and the first and
        last step take fewer small ones than the others: the entry for degree 0. Every restart costs
        that entry once more: ``budget(..., form="gram")`` places the restarts and counts them.
    symmetric : float, optional
        Cost of a product with a symmetric result, relative to a full one: 1, or 0.5 where only one
        triangle is computed. Every product has one but those of X with a polynomial.
    degrees : iterable of int, optional
        Odd degrees.

    Returns
    -------
    dict
        Degree to cost, and 0 to what a composition costs once (0 in plain form, possibly negative
        in Gram form).

    Raises
    ------
    ValueError
        For a shape that is not two positive integers, an unknown form, `symmetric` outside (0, 1],
        a degree that is not odd and at least 3.

    Examples
    --------
    >>> costs((64, 64), degrees=(3, 5, 9))
    {0: 0.0, 3: 2.0, 5: 3.0, 9: 4.0}
    >>> costs((512, 128), form="gram", symmetric=0.5, degrees=(3, 5))
    {0: 1.125, 3: 0.375, 5: 0.5}
    """
    m, n = pair("shape", shape, 1)
    form = checks.choice("form", form, FORMS)
    symmetric = number("symmetric", symmetric, 0, 1, ends="(]")
    large, small = 1.0 + symmetric, symmetric * (min(m, n) / max(m, n))
    # The engine's products, as `product_counts` has them: Gram matrix and X P in each step; in Gram
    # form once, and three small ones for Q and R after each step but the last.
    once, each, between = (0.0, large, 0) if form == "plain" else (large - 3 * small, 0.0, 3)
    degrees = items("degrees", degrees, "a list of odd degrees", least=0)
    table = {d: each + (even_products(check_degree(d) // 2)[1] + between) * small for d in degrees}
    return {0: once, **table}


def prices_by_degree(
    degrees: Iterable[int],
    cost: Callable[[int], float] | Mapping[int, float] | None,
    form: str,
    shape: Sequence[int] | None,
) -> tuple[float, dict[int, float]]:
    """Return the cost paid once (in Gram form for every segment), and the costs by degree, checked.

    Examples
    --------
    >>> prices_by_degree((3, 5), None, "plain", None)
    (0.0, {3: 2.0, 5: 3.0})
    """
    form = checks.choice("form", form, FORMS)
    if cost is not None and shape is not None:
        raise ValueError(
            f"shape is for the default cost model, got shape={shown(shape)} and "
            f"cost={shown(cost)}; make the cost with costs(shape, form=form)"
        )
    given = items("degrees", degrees, "a list of odd degrees to choose from")
    allowed = sorted({check_degree(d) for d in given})
    if cost is None:
        cost = costs((1, 1) if shape is None else shape, form=form, degrees=allowed)
    model = cost
    once: Any = 0.0
    table: dict[int, Any]
    if isinstance(model, Mapping):
        missing = [d for d in allowed if d not in model]
        if missing:
            raise ValueError(
                f"cost has no entry for degree {missing[0]}, only {shown(list(model))}"
            )
        once, table = model.get(0, 0.0), {d: model[d] for d in allowed}
    elif callable(model):
        table = {d: model(d) for d in allowed}
    else:
        raise ValueError(
            f"cost must be a mapping of degrees to numbers, a function of the degree or None, "
            f"got {shown(cost)}"
        )
    prices = {d: number(f"the cost of degree {d}", c, 0, ends="(]") for d, c in table.items()}
    once = number("the cost of a composition", once)
    if once + min(prices.values()) <= 0:
        raise ValueError(
            f"the cost of a composition, once {once!r} and for each step {prices}, must be positive"
        )
    return once, prices
