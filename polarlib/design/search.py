"""Local optimisations of a schedule's coefficients from one start after another.

Each step is scaled so that its domain is (0, 1] and its values are at most 1, see
:mod:`polarlib.design.tune`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polarlib._schedules.images import odd_image
from polarlib._schedules.schedule import Schedule
from polarlib.design.compose import greedy
from polarlib.design.fit import Problem, mean_and_gradient, minimise, odd_powers
from polarlib.design.spectra import Spectrum

# Measured singular values beyond this number are thinned, to order statistics, while optimising.
THINNED = 2048
# Least p(x) / x of a scaled step, so that rounding does not make it negative; or half the start's.
FLOOR = 1e-3
# |e| is smoothed to sqrt(e^2 + d^2), d this fraction of the mean error, so that gradients are
# continuous.
SMOOTHING = 1e-3
# Relative margin of the lower bound, since the search satisfies constraints to 1e-10 only.
INWARD = 1e-7
# Lower ends of the further starts relative to the first, and the relative size of the random
# changes of coefficients in those beyond them. Chosen by experiment.
INTERVALS = (0.3, 0.1, 3.0)
PERTURBATION = 0.03
# Mean errors below this are rounding, and are not tuned.
ROUNDING = 1e-13

Steps = tuple[tuple[float, ...], ...]


def _tops(steps: Sequence[Sequence[float]], upper: float) -> list[float]:
    """Return the largest values after every step on (0, upper], the domain's end first."""
    tops = [upper]
    for step in steps:
        tops.append(odd_image([step], 0.0, tops[-1], extended=False)[1])
    return tops


def _scaled(steps: Sequence[Sequence[float]], tops: Sequence[float]) -> list[Any]:
    """Scale steps to domains and values in (0, 1], the last step to its own values."""
    ends = [*tops[:-1], 1.0]
    return [
        np.array([c * u ** (2 * i + 1) / v for i, c in enumerate(step)])
        for step, u, v in zip(steps, ends[:-1], ends[1:], strict=True)
    ]


def _unscaled(scaled: Sequence[Any], tops: Sequence[float]) -> Steps:
    ends = [*tops[:-1], 1.0]
    return tuple(
        tuple(float(c / u ** (2 * i + 1) * v) for i, c in enumerate(step))
        for step, u, v in zip(scaled, ends[:-1], ends[1:], strict=True)
    )


def interval(start: Schedule) -> tuple[float, float]:
    """Return the interval before the first step, after the division of the input."""
    return start.divided(start.lower, start.upper, extended=False)


@functools.lru_cache(maxsize=1024)
def greedy_steps(lower: float, degrees: tuple[int, ...], upper: float) -> Steps | None:
    """Return greedy steps on an interval, None if it is empty or too wide for their rounding."""
    try:
        return greedy(lower, degrees, upper=upper).steps if degrees else None
    except ValueError:
        return None


class Search:
    """Local optimisations from one start after another.

    `least` is the smallest objective that was kept, as the optimisation has it; `last` that of the
    last start; `ended` where no further start would find another schedule.
    """

    def __init__(
        self,
        objective: Any,
        value: Callable[[Steps], float],
        start: Schedule,
        bounds: tuple[float, float],
        seed: int,
    ) -> None:
        self.objective, self.value = objective, value
        self.lower, self.upper = interval(start)
        self.degrees = tuple(2 * len(step) - 1 for step in start.steps if len(step) > 1)
        self.least = self.last = math.inf
        begun = value(start.steps)
        spectral = isinstance(objective, Spectrum)
        self.ended = objective == "error" or (spectral and begun < ROUNDING)
        self.scale = abs(begun) or 1.0
        self.smoothing = SMOOTHING * begun
        self.tops = _tops(start.steps, self.upper)
        self.first = _scaled(start.steps, self.tops)
        self.sizes = tuple(map(len, self.first))
        self.generator = np.random.default_rng(seed)
        if spectral:
            self.x, self.weights = _thinned(objective, start.input_divisor * self.upper)
        lo, hi = bounds
        ends = None
        self.lows: list[float] = []
        if lo > 0:
            ends = self.lower / self.upper, lo * (1 + INWARD)
            low, high = self.lower, self.upper
            for step, top in zip(start.steps[:-1], self.tops[1:-1], strict=True):
                low, high = odd_image([step], low, high)
                self.lows.append(math.log(low / top))
        points = np.linspace(0, 1, 257)[1:]  # p(x) / x is smooth: its minimum to three digits
        floors = tuple(
            min(FLOOR, 0.5 * float(np.min(odd_powers(points, len(c)) @ c / points)))
            for c in self.first
        )
        gradient = spectral or objective == "slope"
        self.problem = Problem(self.sizes, hi, ends, floors, self._measured, gradient)

    def _measured(self, steps: list[Any]) -> Any:
        """Return the objective that is minimised over scaled steps, with its gradient if known."""
        extra = np.zeros(len(self.lows))
        if isinstance(self.objective, Spectrum):
            found = mean_and_gradient(steps, self.x, self.weights, self.smoothing)
            if not math.isfinite(found[0]):
                return math.inf, np.zeros(sum(self.sizes) + len(extra))
            return found[0], np.append(found[1], extra)
        if self.objective == "slope":
            if min(c[0] for c in steps) <= 0:
                return math.inf, np.zeros(sum(self.sizes) + len(extra))
            gradient = [np.append(-1 / c[0], np.zeros(len(c) - 1)) for c in steps]
            return -sum(math.log(c[0]) for c in steps), np.concatenate([*gradient, extra])
        reached = self.value(_unscaled(steps, self.tops)) / self.scale
        return reached if math.isfinite(reached) else math.inf  # the search steps back

    def candidates(self, k: int) -> list[Steps]:
        """Yield steps of the local minima from start k, unchecked for bounds, the best first."""
        self.last = math.inf
        if self.objective == "error":
            other = greedy_steps(self.lower, self.degrees, self.upper)
            return [] if other is None else [other]
        if self.ended:
            return []
        scaled = self.first
        if 0 < k <= len(INTERVALS):
            other = greedy_steps(self.lower * INTERVALS[k - 1], self.degrees, self.upper)
            if other is None or len(other) < len(self.sizes):
                return []
            scaled = _scaled(other, _tops(other, self.upper))
        elif k:
            change = [PERTURBATION * self.generator.standard_normal(len(c)) for c in scaled]
            scaled = [c * (1 + d) for c, d in zip(scaled, change, strict=True)]
        rounds = minimise(self.problem, np.concatenate([*scaled, self.lows]), self.least)
        if rounds:
            self.last = self._size(rounds[0])
        return [_unscaled(steps, self.tops) for steps in rounds]

    def keep(self, steps: Steps) -> None:
        """Keep steps as the best so far."""
        self.least = min(self.least, self._size(_scaled(steps, self.tops)))

    def _size(self, steps: Sequence[Any]) -> float:
        found = self._measured(list(steps))
        return float(found[0] if self.problem.gradient else found)


def _thinned(spectrum: Spectrum, upper: float) -> tuple[Any, Any]:
    """Return nodes of a spectrum relative to `upper`, and weights, at most `THINNED` of them."""
    x, weights = spectrum.values / upper, spectrum.weights
    if len(x) <= THINNED:
        return x, weights
    middles = (np.arange(THINNED) + 0.5) / THINNED
    order = np.argsort(x)
    total = np.cumsum(weights[order])
    x = x[order][np.searchsorted(total, middles * total[-1]).clip(0, len(x) - 1)]
    return x, np.full(THINNED, 1 / THINNED)
