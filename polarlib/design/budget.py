"""The best sequence of degrees for a number of matrix products.

A greedy composition is optimal for given degrees; which degrees, and in which order, is a search.
All that a composition has reached is one number: rho, the ratio of the ends of its image. The best
next rho grows with rho, so of two sequences the cheaper one with the larger rho does better however
both go on, and only sequences that no other one beats in cost and rho need be kept. That is exact:
it finds what trying all sequences finds.

With a number format, a step also has rounding noise, ``u (h + gamma sum |c_i| h**(2 i + 1))`` for u
the unit roundoff, h the upper end of its interval or image. The next step is designed on an
interval that is larger by that much, so noise costs rho, and the search weighs it against the
degree. A step whose noise could turn singular vectors is not used at all. The noise depends on the
degree and on rho alone, and shrinks as rho grows, so the search stays exact.

References: composition of degrees by dynamic programming, for comparisons under homomorphic
encryption, E. Lee, J.-W. Lee, J.-S. No, Y.-S. Kim, ePrint 2020/834; greedy optimality, N. Amsel,
D. Persson, C. Musco, R. M. Gower, arXiv 2505.16932. Costs of matrix products, and noise in the
state, are this library's.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from polarlib._schedules.products import even_products
from polarlib._schedules.schedule import Schedule
from polarlib.arrays.checks import number
from polarlib.arrays.formats import format_of
from polarlib.design.compose import flat_step, greedy
from polarlib.design.doubles import BeyondDoublesError, exact_value, image_of_rounded
from polarlib.design.prices import prices_by_degree
from polarlib.design.remez import best, check_interval
from polarlib.design.restarts import restarts as _restarts

# gamma: rounding noise of a step in units of u sum |c_i| h^(2i+1), where products accumulate in a
# wider format, and where they do not. Overshoots of single steps, measured at n = 48 and 128, were
# .04 to .36 of that (the most where all singular values sit on one maximum of the step) and .3 to
# 2.1, growing with n. Chosen by experiment on compositions, some 200 for each value, five narrow
# formats, hostile spectra: with .05 some diverge, with .1 one reaches 1.70 instead of 1.12, with .2
# one exceeds its image by .026 and all others by at most .51 u times the sum of their last step. In
# float32 .2 diverges, 2 does not.
NOISE = 0.2
NOISE_ACCUMULATED = 4.0
# More of it where the engine forms powers and blocks (Paterson-Stockmeyer, degree 9 and above):
# .36 / .2, from the same measurements; without it 3, 9, 9 reaches 1.55 instead of 1.11 in tf32.
BLOCKS = 1.8
# A step is designed on [c gamma u, 1] or less, so that no singular value above that comes out near
# 0, where noise can turn its vectors. Chosen by experiment: in bfloat16 about the least that keeps
# the wide quintic, and hostile singular values then kept their vectors.
CUSHION = 16.0
# Largest noise of a step, in units of its smallest value on the interval it was designed for.
# Chosen by experiment: with 1, large singular values came out at half of what they should be.
SHARE = 0.5
# Relative gain in rho below which more products are not worth it: a few roundings of a double.
WORTH = 2e-15


class DegreeSequence(NamedTuple):
    """One sequence of degrees that no cheaper sequence reaches.

    Attributes
    ----------
    cost : float
        What it costs, in the units of the cost model (matrix products by default).
    error : float
        Worst error ``|1 - s|`` on the interval; with a number format, the rounding noise of the
        last step at the upper end included.
    degrees : tuple of int
        Degree of each step, the first applied first.
    """

    cost: float
    error: float
    degrees: tuple[int, ...]


class _Rounding(NamedTuple):
    """Unit roundoff and gamma of a number format; zero for exact arithmetic."""

    unit: float = 0.0
    gamma: float = 0.0

    def noise(self, top: float, step: Sequence[float]) -> float:
        """Noise of a result of size `top`, the sum of terms of the sizes of the coefficients."""
        block, _ = even_products(len(step) - 1)
        gain = sum(map(abs, step)) * (BLOCKS if block > 1 else 1.0)
        return self.unit * (top + self.gamma * gain)


class _Step(NamedTuple):
    """A step on [rho, 1], not centred: coefficients, ends of the image, noise, and its limit."""

    coefficients: tuple[float, ...]
    low: float
    high: float
    noise: float
    limit: float

    @property
    def rho(self) -> float:
        """Ratio of the ends that the next step is designed for."""
        return self.low / (self.high + self.noise)


@functools.lru_cache(maxsize=4096)
def _step(degree: int, rho: float, rounding: _Rounding) -> _Step:
    c = flat_step(degree // 2, rho, 1.0)
    if c is not None:
        return _Step(c, 1.0, 1.0, rounding.noise(1.0, c), SHARE)
    start = max(rho, CUSHION * rounding.gamma * rounding.unit)
    try:
        b = best(degree, start)
    except BeyondDoublesError:  # noise beyond any limit: it is not used
        return _Step((), rho, 1.0, math.inf, 0.0)
    c, smallest = b.coefficients, b.complement
    # p grows up to its first maximum, so below `start` its least value is at rho.
    low = smallest if start == rho else exact_value(c, rho)
    high = 2 - smallest
    return _Step(c, low, high, rounding.noise(high, c), SHARE * smallest)


def _rounding(precision: str | None) -> _Rounding:
    if precision is None:
        return _Rounding()
    f = format_of(precision)
    own = f.carrier == f.name  # products accumulate in the format itself
    return _Rounding(f.unit_roundoff, NOISE_ACCUMULATED if own else NOISE)


def _start(lower: float, upper: float, rounding: _Rounding) -> float:
    """First rho: the input is as noisy as the result of the step p(x) = x."""
    return lower / (upper * (1 + rounding.noise(1.0, (1.0,))))


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
) -> tuple[DegreeSequence, ...]:
    """Best sequences of degrees for all costs up to a budget, the cheapest first.

    Parameters
    ----------
    lower, upper : float
        The interval, ``0 < lower < upper``.
    matmuls : float
        The budget: matrix products, or units of `cost`. Costs are sums rounded once.
    degrees : iterable of int, optional
        Odd degrees to choose from.
    cost : mapping or callable, optional
        Cost of a step by its degree, positive; a mapping may have an entry 0 for what is paid once.
        By default products of the form for the shape; :func:`costs` makes other models.
    precision : str, optional
        Number format to allow for; in plain form exact arithmetic by default, in Gram form float32.
    form : {"plain", "gram"}, optional
        Form of the iteration. In Gram form the restarts that the format needs
        (:func:`polarlib.design.restarts`) are placed, and each is paid for.
    shape : (int, int), optional
        Rows and columns for which the default costs are; square by default.

    Returns
    -------
    tuple of DegreeSequence
        Costs rise and errors fall. An entry is in it if ``(1 - E) / (1 + E)``, E its error, exceeds
        that of the entry before by more than a few roundings of a double (of the format, if one is
        given): among equals the cheapest, then the shortest, then the one with smaller degrees
        first. In plain form a smaller budget gives the beginning of the same list.

    Raises
    ------
    ValueError
        For a bad interval, budget, degree or cost, an unknown format; for a budget below the
        cheapest step; where no affordable step is accurate enough in the format; and for an unknown
        form, or a shape together with a cost.

    Notes
    -----
    In plain form the search is exact. In Gram form it is exact but for the restarts, which depend
    on all steps together: sequences that no cheaper one beats, were each as cheap as it can be, are
    priced with their restarts, and the best of these are returned.

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
    l, u = check_interval(lower, upper)
    matmuls = number("matmuls", matmuls, 0, ends="(]")
    section, each = once, prices = prices_by_degree(degrees, cost, form, shape)
    if form == "gram" and precision is None:
        precision = "float32"
    rounding = _rounding(precision)
    if form == "gram" and once < 0:  # no sequence is cheaper than with a restart after every step
        once, prices = 0.0, {d: c + once for d, c in prices.items()}
    cheapest = once + min(prices.values())
    if matmuls < cheapest:
        raise ValueError(
            f"matmuls={matmuls:g} is below the cheapest step, which costs {cheapest:g}"
        )
    worth = 1 + max(WORTH, max(1.0, rounding.gamma) * rounding.unit)
    found: list[DegreeSequence] = []
    reached = kept = 0.0
    # Sequences in the order of their costs, of equal ones the best first.
    heap: list[tuple[float, float, int, tuple[int, ...]]] = [(once, -_start(l, u, rounding), 0, ())]
    while heap:
        spent, rho, count, sequence = heapq.heappop(heap)
        rho = -rho
        if sequence:
            if rho <= reached:
                continue
            reached = rho
            if rho > kept * worth:
                kept = rho
                found.append(DegreeSequence(spent, (1 - rho) / (1 + rho), sequence))
        for d in prices:
            longer = (*sequence, d)
            spent = math.fsum((once, *(prices[k] for k in longer)))
            if spent > matmuls:
                continue
            step = _step(d, rho, rounding)
            if step.noise <= step.limit:
                heapq.heappush(heap, (spent, -step.rho, count + 1, longer))
    if not found:
        first = {d: _step(d, _start(l, u, rounding), rounding) for d in prices}
        if precision is None:
            raise BeyondDoublesError(
                f"degrees {', '.join(map(str, prices))} on [{l:g}, {u:g}] are beyond double "
                "coefficients; allow lower degrees"
            )
        said = ", ".join(f"degree {d} {s.noise:.2g} > {s.limit:.2g}" for d, s in first.items())
        raise ValueError(
            f"{precision} leaves no step within matmuls={matmuls:g} on [{l:g}, {u:g}]: the "
            f"rounding noise of a first step exceeds half of its smallest value ({said}); allow "
            "lower degrees or more products, or take a format with more digits"
        )
    if form == "plain" or precision is None:
        return tuple(found)
    return _with_restarts(found, l, u, matmuls, section, each, precision)


def _with_restarts(
    choices: Iterable[DegreeSequence],
    lower: float,
    upper: float,
    matmuls: float,
    section: float,
    prices: Mapping[int, float],
    precision: str,
) -> tuple[DegreeSequence, ...]:
    """Price sequences with the restarts of their Gram form, and keep those that no other beats."""
    priced = []
    for choice in choices:
        restarts = len(_restarts(_composed(lower, upper, choice.degrees, precision), precision))
        cost = math.fsum(([section] * (1 + restarts)) + [prices[d] for d in choice.degrees])
        if cost <= matmuls:
            priced.append(choice._replace(cost=cost))
    kept: list[DegreeSequence] = []
    for choice in sorted(priced):
        if not kept or choice.error < kept[-1].error:
            kept.append(choice)
    return tuple(kept)


def _composed(lower: float, upper: float, chosen: Sequence[int], precision: str) -> Schedule:
    """Steps of these degrees, each on the image of the one before enlarged by its rounding."""
    rounding = _rounding(precision)
    rho = _start(lower, upper, rounding)
    steps, top = [], lower / rho
    for d in chosen:
        s = _step(d, rho, rounding)
        centre = (s.low + s.high) / 2
        step = tuple(c / centre / top ** (2 * i + 1) for i, c in enumerate(s.coefficients))
        image_of_rounded(step, (s.low / centre, s.high / centre), rho * top, top)
        steps.append(step)
        rho, top = s.rho, (s.high + s.noise) / centre
    return Schedule(
        steps=tuple(steps),
        lower=lower,
        upper=upper,
        name=f"degrees {', '.join(map(str, chosen))} for {precision}",
        source=f"minimax steps on [{lower}, {upper}], each on the image of the one before "
        f"enlarged by its rounding noise in {precision}",
    )


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
) -> tuple[int, ...]:
    """Best sequence of degrees for a budget: the last entry of :func:`frontier`.

    Parameters
    ----------
    lower, upper, matmuls, degrees, cost, precision, form, shape
        As :func:`frontier` takes them.

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
    (3, 3, 5, 5, 9, 5)
    """
    found = frontier(
        lower,
        matmuls,
        upper=upper,
        degrees=degrees,
        cost=cost,
        precision=precision,
        form=form,
        shape=shape,
    )
    return found[-1].degrees


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
) -> Schedule:
    """Best schedule for a number of matrix products.

    Without a number format it is the greedy composition of :func:`best_degrees`: no composition of
    steps of these degrees that costs as much has a smaller error. With one, each step is designed
    on the image of the one before enlarged by its rounding noise, and on no interval wider than the
    format resolves.

    Parameters
    ----------
    lower, upper, matmuls, degrees, cost, precision, form, shape
        As :func:`frontier` takes them.

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        As :func:`frontier`.

    Notes
    -----
    Allowing for a format is a model of rounding, checked by experiment; it is no proof. It is that
    of the plain form, and of float32 coefficients; :func:`polarlib.design.restarts` has that of the
    Gram form.

    Examples
    --------
    >>> s = budget(1e-3, 17, degrees=(3, 5))
    >>> s.matmuls, round(s.error(), 4)
    (17, 0.0088)
    >>> s = budget(1e-3, 15, precision="bfloat16")
    >>> [2 * len(step) - 1 for step in s.steps], round(s.error(), 3)
    ([5, 5, 5, 5, 5], 0.139)

    In Gram form the restarts that the format needs are paid for:

    >>> s = budget(1e-3, 8, form="gram", shape=(4096, 1024), precision="float16")
    >>> [2 * len(step) - 1 for step in s.steps]
    [5, 5, 5, 9]
    """
    chosen = best_degrees(
        lower,
        matmuls,
        upper=upper,
        degrees=degrees,
        cost=cost,
        precision=precision,
        form=form,
        shape=shape,
    )
    if form == "gram" and precision is None:
        precision = "float32"
    if precision is None:
        return greedy(lower, chosen, upper=upper)
    return _composed(*check_interval(lower, upper), chosen, precision)
