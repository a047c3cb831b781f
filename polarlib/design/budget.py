"""The best sequence of degrees for a number of matrix products.

For given degrees the greedy composition is optimal; the degrees and their order are searched. The
state of a composition is one number: rho, the ratio of the ends of its image. The best next rho
increases with rho. So of two sequences the one with lower cost and larger rho stays ahead with
every continuation, and only sequences that no other one dominates in cost and rho are kept. The
result is that of trying all sequences.

With a number format, the ends are those of the image with rounding, and every step is the best for
them (:mod:`polarlib.design.rounding`). The last step keeps no upper margin, since no step follows,
so that every sequence ends with a step of its own. A step is designed only if no cheaper sequence
has the rho that the step would have in exact arithmetic.

References: composition of degrees by dynamic programming, for comparisons under homomorphic
encryption, E. Lee, J.-W. Lee, J.-S. No, Y.-S. Kim, ePrint 2020/834; greedy optimality, N. Amsel,
D. Persson, C. Musco, R. M. Gower, arXiv 2505.16932. Polarlib adds costs of matrix products, and
rounding in the state.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from polarlib._schedules.schedule import Schedule
from polarlib.arrays.checks import number
from polarlib.arrays.formats import format_of
from polarlib.arrays.progress import Callback, reporting
from polarlib.design.compose import flat_step, greedy
from polarlib.design.doubles import BeyondDoublesError
from polarlib.design.prices import GRAM_PRECISION, CostModel, Prices
from polarlib.design.remez import best, check_interval
from polarlib.design.restarts import restarts as _restarts
from polarlib.design.rounding import (
    Rounding,
    _DesignState,
    first_state,
    last_step,
    next_step,
    rho_without_rounding,
)
from polarlib.files.tables import html_table

# Relative gain in rho below which more products are not worth it: a few roundings of a double, and
# that part of a rounding of the format.
WORTH, WORTH_ROUNDINGS = 2e-15, 1 / 64


class DegreeSequence(NamedTuple):
    """Sequence of degrees with a smaller error than every cheaper sequence.

    Attributes
    ----------
    cost : float
        Its cost, in the units of the cost model (matrix products by default).
    error : float
        Worst error ``|1 - s|`` on the interval. With a number format it includes a fifth of the
        bound of every rounding, the largest fraction that was measured.
    degrees : tuple of int
        Degree of each step, the first applied first.
    """

    cost: float
    error: float
    degrees: tuple[int, ...]

    def _repr_html_(self) -> str:
        degrees = ", ".join(map(str, self.degrees))
        return html_table("DegreeSequence", self._asdict() | {"degrees": degrees})


class _Ratio(NamedTuple):
    """State of a composition in exact arithmetic."""

    rho: float


@functools.lru_cache(maxsize=4096)
def _ratio(degree: int, rho: float) -> float:
    """Return the best rho after a step on [rho, 1]; 0 if doubles do not hold its coefficients."""
    if flat_step(degree // 2, rho, 1.0) is not None:
        return 1.0
    try:
        smallest = float(best(degree, rho).complement)
    except BeyondDoublesError:
        return 0.0
    return smallest / (2 - smallest)


def _unbeaten(
    lower: float, most: float, once: float, prices: Mapping[int, float], f: Rounding | None
) -> Iterator[tuple[float, tuple[int, ...], Any]]:
    """Yield cost, degrees and state of all sequences with the best rho for their cost, by cost."""
    start = _Ratio(lower) if f is None else first_state(lower, f)
    worth = 1.0 if f is None else 1 + WORTH_ROUNDINGS * f.unit
    # Ordered by cost, then by rho. A bound of rho is used until a sequence comes first in the heap;
    # its last step is then designed, and the sequence put back.
    heap: list[tuple[float, float, int, tuple[int, ...], Any, bool]]
    heap = [(once, -start.rho, 0, (), start, True)]
    reached = 0.0
    while heap:
        paid, rho, count, sequence, state, designed = heapq.heappop(heap)
        if sequence and -rho <= reached * worth:
            continue
        if not designed:
            with contextlib.suppress(BeyondDoublesError):
                state = _Ratio(-rho) if f is None else next_step(state, sequence[-1], f)
                heapq.heappush(heap, (paid, -state.rho, count, sequence, state, True))
            continue
        reached = -rho if sequence else 0.0
        yield paid, sequence, state
        for d in prices:
            longer = (*sequence, d)
            paid = math.fsum((once, *(prices[k] for k in longer)))
            if paid <= most:
                rho = _ratio(d, state.rho) if f is None else rho_without_rounding(state, d)
                heapq.heappush(heap, (paid, -rho, count + 1, longer, state, False))


def _ended(
    sequence: tuple[int, ...],
    state: Any,
    once: float,
    matmuls: float,
    prices: Mapping[int, float],
    f: Rounding,
) -> Iterator[tuple[float, tuple[int, ...], Any]]:
    """Yield cost, degrees and state of a sequence with each last step that is affordable."""
    for d in prices:
        longer = (*sequence, d)
        cost = math.fsum((once, *map(prices.__getitem__, longer)))
        if cost <= matmuls:
            with contextlib.suppress(BeyondDoublesError):
                done = last_step(state, d, f)[1]
                if done.lower > 0:
                    yield cost, longer, done


def designed_for(
    lower: float,
    upper: float,
    matmuls: float,
    once: float,
    prices: Mapping[int, float],
    f: Rounding | None,
    callback: Callable[[int, float], Any],
) -> list[tuple[DegreeSequence, Any]]:
    """Return the frontier on [lower, upper], with the states on [lower / upper, 1]."""
    cheapest = min(prices.values())
    if matmuls < once + cheapest:
        raise ValueError(
            f"matmuls={matmuls:g} is below the cheapest step, which costs {once + cheapest:g}"
        )
    most = matmuls if f is None else matmuls - cheapest * (1 - 1e-9)  # sums are rounded
    ends: list[tuple[float, float, tuple[int, ...], Any]] = []
    best = 0.0  # the largest rho
    designed = _unbeaten(lower / upper, most, once, prices, f)
    for k, (paid, sequence, state) in enumerate(designed, 1):
        if f is None:
            if sequence:
                ends.append((paid, -state.rho, sequence, state))
                best = max(best, state.rho)
        else:
            for cost, longer, done in _ended(sequence, state, once, matmuls, prices, f):
                ends.append((cost, -done.rho_reached, longer, done))
                best = max(best, done.rho_reached)
        callback(k, (1 - best) / (1 + best))
    ends.sort(key=lambda end: (*end[:2], len(end[2]), end[2]))
    worth = 1 + max(WORTH, WORTH_ROUNDINGS * f.unit if f else 0.0)
    entries: list[tuple[DegreeSequence, Any]] = []
    kept = 0.0
    for cost, rho, chosen, state in ends:
        if -rho > kept * worth:
            kept = -rho
            entries.append((DegreeSequence(cost, (1 + rho) / (1 - rho), chosen), state))
    if not entries:
        reason = (
            f"degrees {', '.join(map(str, prices))} on [{lower:g}, {upper:g}] are beyond double "
            "coefficients"
        )
        if f is not None:
            reason = (
                f"{f.format.name} leaves no step within matmuls={matmuls:g} whose rounding keeps "
                f"singular values above 0: {reason} or this format"
            )
        raise BeyondDoublesError(f"{reason}; allow lower degrees")
    return entries


def schedule_of(state: _DesignState, f: Rounding, lower: float, upper: float = 1.0) -> Schedule:
    """Return the steps of a state as a schedule on [lower, upper]."""
    first, *others = state.steps
    scaled = tuple(c / upper ** (2 * i + 1) for i, c in enumerate(first))
    precision = f.format
    return Schedule(
        steps=(scaled, *others),
        lower=lower,
        upper=upper,
        name=f"for {precision.name}, degrees {', '.join(str(2 * len(c) - 1) for c in state.steps)}",
        source=(
            f"best on [{lower:g}, {upper:g}] with rounding to {precision.name}: input up to "
            f"{f.upper:.7g}, margin of {f.upward:g} of the bound above each step and all of it "
            f"below; coefficients in {precision.carrier}"
        ),
    )


def frontier(
    lower: float,
    matmuls: float,
    *,
    upper: float = 1.0,
    degrees: Iterable[int] = (3, 5, 9),
    cost: Callable[[int], float] | Mapping[int, float] | None = None,
    precision: str | None = None,
    form: str = "plain",
    shape: Sequence[int] | None = None,
    costs: str | os.PathLike[str] | None = None,
    library: str | None = None,
    batch: int | None = None,
    callback: Callback | None = None,
) -> tuple[DegreeSequence, ...]:
    """Return the best sequences of degrees for all costs up to a budget, the cheapest first.

    Parameters
    ----------
    lower, upper : float
        The interval, ``0 < lower < upper``.
    matmuls : float
        The budget: matrix products, or units of `cost`. With `shape` or `costs` the unit is one
        product of an m x n matrix with an n x n matrix, m >= n; with `costs` at that size, in that
        format, on that device. Costs are correctly rounded sums.
    degrees : iterable of int, optional
        Odd degrees to choose from.
    cost : mapping or callable, optional
        Cost of a step by its degree, positive; a mapping may have an entry 0 for the cost of the
        whole. By default the number of products of the form for the shape; :func:`costs` returns
        other models.
    precision : str, optional
        Number format whose rounding is included; by default exact arithmetic in plain form, and
        float32 in Gram form.
    form : {"plain", "gram"}, optional
        Form of the iteration. In Gram form the costs include the restarts that the format needs
        (:func:`polarlib.design.restarts`).
    shape : (int, int), optional
        Rows and columns of the matrices, for the default costs; square by default. With `costs` it
        is required.
    costs : path-like, optional
        A file of ``polarlib bench --calibrate -o FILE.toml``. Costs are then the measured times of
        the products, relative to one another, in the format of `precision` (float64 by default in
        plain form): "gram" for the Gram matrix, "hermitian_product" for products of n x n matrices,
        "elementwise" for the pass over each addend.
    library : str, optional
        Table of the file, if it has several: "torch", or "torch.gpu".
    batch : int, optional
        With `costs`: number of matrices of the stack whose product is the unit. A calibration times
        single matrices, so that costs are unchanged and seconds are multiplied by this number.
    callback : callable, optional
        Called as ``callback(k, value)`` after sequence k = 1, 2, ... of degrees is designed, with
        the smallest error so far. See :class:`polarlib.result.Progress`.

    Returns
    -------
    tuple of DegreeSequence
        Costs increase and errors decrease. With E the error, ``(1 - E) / (1 + E)`` of an entry
        exceeds that of the entry before by more than a few roundings of a double, or 1/64 of a
        rounding of the format. Among equal ones the cheapest is listed, then the shortest, then the
        one with smaller degrees first. In plain form a smaller budget gives the beginning of the
        same list.

    Raises
    ------
    ValueError
        For an invalid interval, budget, degree or cost, an unknown format or form; for a budget
        below the cheapest step; if no affordable step keeps singular values above 0 in the format;
        for a shape together with a cost; for `costs` without a shape or with a cost; for a file
        that is not a calibration, or has several tables of which `library` names none.
    OSError
        If the file of `costs` cannot be read.

    Notes
    -----
    In plain form the search is exact; in a format, as far as the best steps under its rounding are
    found, to some 1e-3 of the ratio of their ends. In Gram form it is exact but for the restarts,
    which depend on all steps together: sequences that no cheaper one beats, were each as cheap as
    it can be, are priced with their restarts, and the best of these are returned.

    Examples
    --------
    >>> for cost, error, degrees in frontier(0.1, 8):
    ...     print(int(cost), f"{error:.4f}", degrees)
    2 0.6072 (3,)
    3 0.4534 (5,)
    4 0.2609 (9,)
    5 0.1608 (3, 5)
    6 0.0481 (3, 9)
    7 0.0103 (5, 9)
    8 0.0006 (9, 9)
    """
    model = CostModel(degrees, cost, form, shape, costs, library, batch)
    front = _frontier(lower, matmuls, upper, precision, model, callback)
    return tuple(choice for choice, _ in front.ends)


class _Found(NamedTuple):
    """A frontier with a schedule for each sequence, None in exact arithmetic, and its prices."""

    ends: list[tuple[DegreeSequence, Any]]
    prices: Prices


def _frontier(
    lower: float,
    matmuls: float,
    upper: float,
    precision: str | None,
    model: CostModel,
    callback: Callback | None,
) -> _Found:
    l, u = check_interval(lower, upper)
    matmuls = number("matmuls", matmuls, 0, ends="(]")
    paid_for = model.prices(precision)
    segment, each = once, prices = paid_for.segment, paid_for.each
    form = model.form
    if form == "gram" and precision is None:
        precision = GRAM_PRECISION
    if form == "gram" and once < 0:  # no sequence is cheaper than with a restart after every step
        once, prices = 0.0, {d: c + once for d, c in prices.items()}
    f = None if precision is None else Rounding.of(format_of(precision))
    report = reporting(callback, "sequences of degrees")
    designs: list[tuple[DegreeSequence, Any]] = [
        (choice, f and schedule_of(state, f, l, u))
        for choice, state in designed_for(l, u, matmuls, once, prices, f, report)
    ]
    if form == "plain" or precision is None:
        return _Found(designs, paid_for)
    # Priced with the restarts of their Gram form; those that no other one beats are kept.
    priced = []
    for choice, s in designs:
        segments = [segment] * (1 + len(_restarts(s, precision)))
        paid = math.fsum(segments + [each[d] for d in choice.degrees])
        if paid <= matmuls:
            priced.append((choice._replace(cost=paid), s))
    designs = []
    for choice, s in sorted(priced, key=lambda pair: pair[0]):
        if not designs or choice.error < designs[-1][0].error:
            designs.append((choice, s))
    return _Found(designs, paid_for)


def best_degrees(
    lower: float,
    matmuls: float,
    *,
    upper: float = 1.0,
    degrees: Iterable[int] = (3, 5, 9),
    cost: Callable[[int], float] | Mapping[int, float] | None = None,
    precision: str | None = None,
    form: str = "plain",
    shape: Sequence[int] | None = None,
    costs: str | os.PathLike[str] | None = None,
    library: str | None = None,
    batch: int | None = None,
    callback: Callback | None = None,
) -> tuple[int, ...]:
    """Return the best sequence of degrees for a budget: the last entry of :func:`frontier`.

    Parameters
    ----------
    lower, upper, matmuls : float
        The interval, ``0 < lower < upper``, and the budget.
    degrees : iterable of int, optional
        Odd degrees to choose from.
    cost : mapping or callable, optional
        As for :func:`frontier`.
    precision, form, library : str, optional
        As for :func:`frontier`.
    shape : (int, int), optional
        As for :func:`frontier`.
    costs : path-like, optional
        As for :func:`frontier`.
    batch : int, optional
        As for :func:`frontier`.
    callback : callable, optional
        As for :func:`frontier`.

    Returns
    -------
    tuple of int
        Degree of each step, the first applied first.

    Raises
    ------
    ValueError
        As :func:`frontier`.

    Examples
    --------
    >>> best_degrees(1e-3, 17, degrees=(3, 5))
    (3, 5, 5, 5, 5, 5)
    >>> best_degrees(1e-3, 17, precision="float16")
    (5, 5, 5, 9, 9)
    """
    model = CostModel(degrees, cost, form, shape, costs, library, batch)
    front = _frontier(lower, matmuls, upper, precision, model, callback)
    return front.ends[-1][0].degrees


def budget(
    lower: float,
    matmuls: float,
    *,
    upper: float = 1.0,
    degrees: Iterable[int] = (3, 5, 9),
    cost: Callable[[int], float] | Mapping[int, float] | None = None,
    precision: str | None = None,
    form: str = "plain",
    shape: Sequence[int] | None = None,
    costs: str | os.PathLike[str] | None = None,
    library: str | None = None,
    batch: int | None = None,
    callback: Callback | None = None,
) -> Schedule:
    """Design the best schedule for a number of matrix products.

    Without a number format it is the greedy composition of :func:`best_degrees`: no composition of
    steps of these degrees that costs as much has a smaller error. With one, each step is designed
    on where rounding can have taken the singular values before it, as :func:`for_precision` does:
    ``budget(lower, n, degrees=d, precision=f)`` is ``for_precision(f, lower, matmuls=n,
    degrees=d)``.

    Parameters
    ----------
    lower, upper, matmuls : float
        The interval, ``0 < lower < upper``, and the budget.
    degrees : iterable of int, optional
        Odd degrees to choose from.
    cost : mapping or callable, optional
        As for :func:`frontier`.
    precision, form, library : str, optional
        As for :func:`frontier`.
    shape : (int, int), optional
        As for :func:`frontier`.
    costs : path-like, optional
        As for :func:`frontier`.
    batch : int, optional
        As for :func:`frontier`.
    callback : callable, optional
        As for :func:`frontier`.

    Returns
    -------
    Schedule
        With `costs` its source tells what it costs, and in how many seconds it is predicted to run
        where the calibration has the time of a product.

    Raises
    ------
    ValueError, OSError
        As :func:`frontier`.

    Notes
    -----
    Allowing for a format is a bound of rounding to first order, checked by experiment; it is no
    proof. It is that of the plain form; :func:`polarlib.design.restarts` has that of the Gram form.

    Examples
    --------
    >>> s = budget(1e-3, 17, degrees=(3, 5))
    >>> s.matmuls, round(s.error(), 4)
    (17, 0.0088)
    >>> s = budget(1e-3, 15, precision="bfloat16")
    >>> [2 * len(step) - 1 for step in s.steps], round(s.error(), 3)
    ([5, 5, 5, 5, 5], 0.124)

    In Gram form the restarts that the format needs are paid for:

    >>> s = budget(1e-3, 8, form="gram", shape=(4096, 1024), precision="float16")
    >>> [2 * len(step) - 1 for step in s.steps]
    [5, 9, 9, 9]
    """
    model = CostModel(degrees, cost, form, shape, costs, library, batch)
    front = _frontier(lower, matmuls, upper, precision, model, callback)
    choice, s = front.ends[-1]
    s = s or greedy(lower, choice.degrees, upper=upper)
    if costs is None:
        return s
    paid = f"{choice.cost:.4g} products of {front.prices.unit}"
    if front.prices.seconds is not None:
        paid += f": {choice.cost * front.prices.seconds:.3g} seconds"
    return replace(s, source=f"{s.source}; {paid}")
