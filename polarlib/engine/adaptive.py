"""Schedules whose later steps depend on the matrix, by a Gram matrix that is computed in any case.

The first steps, the head, are the same for every matrix. Let G be the Gram matrix before the next
step, of order n. The mean and the standard deviation of its eigenvalues are

    T = tr G / n,    V = sqrt(||G||_F^2 / n - T^2).

The other steps, the tail, are designed for an interval [l, 1] of the singular values of the input,
where

    log l = c_0 + c_1 T + c_2 V + c_3 V / max(T, floor),    clipped to [log lower, log upper].

There are tails for K values of l, equidistant in log l, and their coefficients are interpolated.
With w the position of log l among the K values, from 0 to K - 1, tail k has the weight
max(0, 1 - |w - k|). The result is continuous in the matrix, and nothing is read: w, weights and
coefficients are arrays of the library, one per matrix of a stack. docs/guide/adaptive.md derives
the rule and has its results.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import polarlib.published as published
from polarlib._schedules.schedule import Schedule
from polarlib.arrays.checks import count, shown
from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import kept, trace
from polarlib.arrays.ops import Ops
from polarlib.engine.iterate import Choice, Steps
from polarlib.engine.normalise import compiles_factors

Array = Any
Table = tuple[tuple[tuple[float, ...], ...], ...]
# Formats without tails use those of a format with at least their unit roundoff.
TAILS_OF = {"float64": "float32", "tf32": "float16"}


class Rule(NamedTuple):
    """Coefficients of the rule for log l."""

    coefficients: tuple[float, ...]
    floor: float
    lower: float
    upper: float


# Fields after optional ones must have defaults too.
NO_RULE = Rule((0.0, 0.0, 0.0, 0.0), 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Adaptive(Schedule):
    """Schedule of the head and the steepest tail, with the tails that are interpolated per matrix.

    As a :class:`Schedule` it has the number of steps and their degrees. Its values are those of the
    steepest tail.
    """

    rule: Rule = NO_RULE
    tails: Table = ()

    @property
    def head(self) -> int:
        """Number of the steps that are the same for all matrices."""
        return len(self.steps) - len(self.tails[0])

    @functools.cached_property
    def each(self) -> tuple[Schedule, ...]:
        """Compositions of the head with each of the tails."""
        head = self.steps[: self.head]
        return tuple(Schedule(steps=head + tail, lower=self.lower) for tail in self.tails)


def adaptive_schedule(precision: str, steps: int | None = None) -> Adaptive:
    """Return the steps and tails of ``schedule="adaptive"`` for a number format.

    Raises
    ------
    ValueError
        For a format or a number of steps without tails.

    Examples
    --------
    >>> s = adaptive_schedule("bfloat16")
    >>> len(s), s.head, s.normalisation
    (5, 2, 'moments')
    """
    name = format_of(precision).name
    return _adaptive(name, None if steps is None else count("steps", steps))


@functools.lru_cache(maxsize=64)
def _adaptive(name: str, steps: int | None) -> Adaptive:
    data = published.adaptive_data()
    source = TAILS_OF.get(name, name)
    if source not in data:
        formats = sorted({*(data.keys() - {"rule"}), *TAILS_OF})
        raise ValueError(
            f"precision and gram_precision must be one of {', '.join(formats)} for schedule "
            f"'adaptive', got {name!r}; use 'auto'"
        )
    known = sorted(map(int, data[source]))
    chosen = published.DEFAULT_STEPS if steps is None else steps
    if chosen not in known:
        have = ", ".join(map(str, known))
        raise ValueError(
            f"schedule 'adaptive' has {have} steps, got steps={shown(chosen)}; use 'auto'"
        )
    entry = data[source][str(chosen)]
    tails = tuple(_steps(tail) for tail in entry["tails"])
    rule = Rule(**{**data["rule"], "coefficients": tuple(data["rule"]["coefficients"])})
    return Adaptive(
        steps=_steps(entry["head"]) + tails[0],
        lower=rule.lower,
        normalisation="moments",
        name=published.ADAPTIVE,
        source=f"tails for {source}, chosen by the moments of the Gram matrix of step 3",
        rule=rule,
        tails=tails,
    )


def _steps(given: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, step)) for step in given)


def choice_of(schedule: Schedule, ops: Ops, low: Ops) -> Choice | None:
    """Return the choice of later steps; None for a schedule that is the same for all matrices.

    Parameters
    ----------
    schedule : Schedule
        The steps.
    ops, low : Ops
        Full-precision arithmetic, and that of the iteration.
    """
    if not isinstance(schedule, Adaptive):
        return None
    as_numbers = ops.host and not compiles_factors(ops, low)

    def steps(g: Array) -> Steps:
        chosen = tail_at(_place(*_moments(g, ops), schedule, ops), schedule, ops)
        single = as_numbers and math.prod(g.shape[:-2]) == 1
        return [tuple(map(ops.item, step)) for step in chosen] if single else chosen

    return Choice(schedule.head, steps)


def _moments(g: Array, ops: Ops) -> tuple[Array, Array]:
    """Return mean and standard deviation of the eigenvalues of Gram matrices, shape (..., 1, 1)."""
    n = g.shape[-1]
    mean, norm = trace(g, ops) / n, ops.frobenius(g)
    variance = norm * norm / n - mean * mean
    # By rounding the difference can be negative where the eigenvalues are equal.
    return mean, ops.xp.sqrt((variance + abs(variance)) * 0.5)


def _scaled(schedule: Adaptive) -> tuple[float, ...]:
    """Return the coefficients of the rule for the position among the tails, instead of log l."""
    rule = schedule.rule
    scale = (len(schedule.tails) - 1) / math.log(rule.upper / rule.lower)
    c0, *others = rule.coefficients
    return tuple(c * scale for c in (c0 - math.log(rule.lower), *others))


def _place(mean: Array, deviation: Array, schedule: Adaptive, ops: Ops) -> Array:
    """Return the position among the tails, from 0 to K - 1; NaN where a moment is NaN."""
    xp, rule, last = ops.xp, schedule.rule, float(len(schedule.tails) - 1)
    c0, c1, c2, c3 = _scaled(schedule)
    low = xp.where(mean > rule.floor, mean, rule.floor)
    w = (c3 / low + c2) * deviation + (c1 * mean + c0)
    return xp.where(w > last, last, xp.where(w < 0, 0.0, w))


def tail_at(w: Array, schedule: Adaptive, ops: Ops, *, slope: bool = False) -> Steps:
    """Return coefficients of the tail at position w, or their derivatives, shape (..., 1, 1)."""
    xp, tails = ops.xp, schedule.tails
    distance = w - kept(_grid, (len(tails),), w, ops)
    if slope:  # at a tail, the right derivative
        falls, one = (distance >= 0) & (distance < 1), xp.ones_like(distance)
        rises = (distance >= -1) & (distance < 0)
        weights = xp.where(falls, -one, xp.where(rises, one, 0 * one))
    else:
        left = 1 - abs(distance)
        weights = (left + abs(left)) * 0.5
    # A sum, not a product of matrices, which libraries may compute in lower precision.
    c = xp.sum(weights * kept(_table, (tails,), w, ops), axis=-1, keepdims=True)
    ends = itertools.accumulate((len(step) for step in tails[0]), initial=0)
    spans = itertools.pairwise(ends)
    return [tuple(c[..., i : i + 1, :] for i in range(*span)) for span in spans]


def _grid(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.float64)[None, :]


@functools.lru_cache(maxsize=64)
def _table(tails: Table) -> np.ndarray:
    """Return the coefficients of all tails, one coefficient per row."""
    table = np.array([[c for step in tail for c in step] for tail in tails]).T
    table.flags.writeable = False
    return table


def tail_and_growth(x: Array, schedule: Adaptive, ops: Ops) -> tuple[Steps, Steps, Array]:
    """Return the tails for iterates X after the head, their derivatives in w, and w's gradient.

    With ``dG = X^H W + W^H X`` for a direction W, ``dT = tr dG / n`` and ``V dV = <G, dG> / n -
    T dT``. Where V is zero, it has no derivative and is treated as constant.
    """
    xp, n, rule = ops.xp, x.shape[-1], schedule.rule
    _, c1, c2, c3 = _scaled(schedule)
    g = ops.gram(x)
    mean, deviation = _moments(g, ops)
    w = _place(mean, deviation, schedule, ops)
    # Beyond the outer tails the coefficients are constant.
    free = (w > 0) & (w < len(schedule.tails) - 1)
    above, equal = mean > rule.floor, deviation == 0
    low = xp.where(above, mean, rule.floor)
    of_low = xp.where(above, c3 * deviation / (low * low), 0.0)
    of_mean = xp.where(free, c1 - of_low, 0.0)
    of_deviation = c3 / low + c2
    of_square = xp.where(free & ~equal, of_deviation / xp.where(equal, 1.0, deviation), 0.0)
    weights = of_square * (2 / n), (of_mean - of_square * mean) * (2 / n)
    gradient = ops.combine(weights, (ops.matmul(x, g), x))
    return tail_at(w, schedule, ops), tail_at(w, schedule, ops, slope=True), gradient
