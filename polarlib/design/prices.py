"""Costs of steps by their degree, in matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from polarlib._schedules.products import even_products
from polarlib.arrays import checks
from polarlib.arrays.checks import count, items, number, pair, shown
from polarlib.design.cost_tables import machine_costs
from polarlib.design.remez import check_degree

FORMS = ("plain", "gram")
GRAM_PRECISION = "float32"  # default of budgets in Gram form


def costs(
    shape: Sequence[int] = (1, 1),
    *,
    form: str = "plain",
    symmetric: float = 1.0,
    degrees: Iterable[int] = range(3, 27, 2),
) -> dict[int, float]:
    """Return the cost of a step by its degree, for matrices of a shape.

    The unit is one product of an m x n matrix with an n x n matrix, m >= n (of a wide matrix the
    adjoint is used); a product of two n x n matrices costs n / m of it.

    Parameters
    ----------
    shape : (int, int), optional
        Rows and columns.
    form : {"plain", "gram"}, optional
        Form of the iteration. In Gram form there are two products with X in all, and the first and
        last step take fewer products of n x n matrices than the others: the entry for degree 0.
        Every restart adds that entry once more; ``budget(..., form="gram")`` counts the restarts.
    symmetric : float, optional
        Cost of a product with a symmetric result, relative to a full product: 1, or 0.5 if only one
        triangle is computed. All products but those of X with a polynomial have such a result.
    degrees : iterable of int, optional
        Odd degrees.

    Returns
    -------
    dict
        Cost of each degree, and under the key 0 the cost of the whole (0 in plain form, possibly
        negative in Gram form).

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
    return _prices(degrees, form, symmetric, 1.0, symmetric * (min(m, n) / max(m, n)))


def _prices(
    degrees: Iterable[int], form: str, gram: float, update: float, small: float
) -> dict[int, float]:
    """Return costs by degree from those of X^H X, of X P and of a product of n x n matrices."""
    # The engine's products, as `product_counts` has them: Gram matrix and X P in each step; in Gram
    # form once, and three small ones for Q and R after each step but the last.
    large = gram + update
    once, each, between = (0.0, large, 0) if form == "plain" else (large - 3 * small, 0.0, 3)
    degrees = items("degrees", degrees, "a list of odd degrees", least=0)
    table = {d: each + (even_products(check_degree(d) // 2)[1] + between) * small for d in degrees}
    return {0: once, **table}


class Prices(NamedTuple):
    """Prices by degree.

    Attributes
    ----------
    segment : float
        Cost of a composition in addition to its steps; in Gram form that of each segment.
    each : dict
        Cost of a step by its degree.
    seconds : float or None
        Seconds per unit of these costs, if a calibration has them.
    unit : str
        Description of the unit, for `seconds`.
    """

    segment: float
    each: dict[int, float]
    seconds: float | None = None
    unit: str = ""


class CostModel(NamedTuple):
    """Arguments of :func:`budget` about costs, unchecked."""

    degrees: Iterable[int]
    cost: Callable[[int], float] | Mapping[int, float] | None = None
    form: str = "plain"
    shape: Sequence[int] | None = None
    costs: Any = None
    library: str | None = None
    batch: int | None = None

    def prices(self, precision: str | None) -> Prices:
        """Return the prices by degree, checked."""
        if self.costs is None:
            for name in ("library", "batch"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} is for costs= of a calibration, got {name}="
                        f"{shown(getattr(self, name))} without costs"
                    )
            return Prices(*prices_by_degree(self.degrees, self.cost, self.form, self.shape))
        if self.cost is not None:
            raise ValueError("give cost, a model, or costs, a calibration, not both")
        return self._calibrated(precision)

    def _calibrated(self, precision: str | None) -> Prices:
        form = checks.choice("form", self.form, FORMS)
        if self.shape is None:
            raise ValueError(
                "costs of a calibration depend on the size: give shape=(m, n), got shape=None"
            )
        m, n = pair("shape", self.shape, 1)
        batch = 1 if self.batch is None else count("batch", self.batch)
        named = precision or ("float64" if form == "plain" else GRAM_PRECISION)
        m, n = max(m, n), min(m, n)
        measured = machine_costs(checks.path("costs", self.costs), named, n, library=self.library)
        kernels, aspect = measured.kernels, n / m
        # A product with an addend first copies the addend: one pass over an m x n matrix for X P,
        # over an n x n matrix for the others.
        passed = kernels["elementwise"] * aspect
        table = _prices(
            self.degrees,
            form,
            kernels["gram"],
            kernels["matmul"] + kernels["elementwise"],
            kernels["hermitian_product"] * aspect + passed,
        )
        segment, each = prices_by_degree(self.degrees, table, form, None)
        unit = f"{m} x {n} by {n} x {n}" + f", {batch} at once" * (batch > 1)
        seconds = None if measured.seconds is None else measured.seconds * batch / aspect
        return Prices(segment, each, seconds, f"{unit}, {measured.name}")


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
