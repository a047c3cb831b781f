"""Rounding in a number format: its bounds on singular values, and the best steps under it.

The model is that of :mod:`polarlib._schedules.rounding`: to first order rounding takes the singular
value x to within ``u r(x)`` of p(x).

The state after a step is therefore the image of [lower, 1] with rounding. Each step is chosen to
maximise the quotient of its ends, over two numbers:

- the upper margin, by which the upper end of the design interval is raised. Near that end the best
  polynomial is steep and its rounding is largest: a small margin reduces both;
- the cushion, by which the lower end of the design interval is raised. The best polynomial is as
  small at its minima as at the lower end. There rounding would move a large singular value, with
  its singular vectors, among the rounding errors.

The next step depends on the quotient of the ends only, and a larger quotient is never worse.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from polarlib._schedules.images import odd_image, turning_points
from polarlib._schedules.rounding import SHARE, landing, largest_input, rounding_bound
from polarlib.arrays.formats import Format, format_of, round_number
from polarlib.design.compose import pade
from polarlib.design.doubles import BeyondDoublesError
from polarlib.design.remez import Minimax, best, rough

# Margin above a step in units of the bound u r(x); below a step the margin is the whole bound.
UPWARD = SHARE
# Range of the upper margin in units of u, and of the cushion relative to the upper end: below 0.8 u
# the minima of a step are within its rounding.
MARGIN = (1 / 64, 8.0)
LOWEST_START = 1 / 8
HIGHEST_START = 0.9
# Alternations between the two numbers, and the precision of their logarithms. Chosen by experiment:
# quotients are within 6e-4, relative, of those of a nested search over both, in e5m2 within 2e-3.
ROUNDS = 2
FINE = (0.003, 0.03)
# Part of the bound that rounding reaches on matrices with random singular vectors. Measured for a
# last step, n = 128: 0.04 (float16) to 0.17 (8 bits) of it at degree 9.
REACHED = 0.2
# Where the error of the Pade step is below this part of its rounding, no step is better by more.
NARROW = 1 / 16
# Rounded coefficients take the maximum of a step by less than this above 2, where 2 is refused.
BELOW_TWO = 2 - 2.0**-20
# Rounding coefficients moves p by their unit roundoff times the noise gain, which at the upper end
# of a first step is up to 4 times r.
GAIN_PER_BOUND = 4


class Rounding(NamedTuple):
    """Rounding in a number format.

    Attributes
    ----------
    unit : float
        Unit roundoff of the format.
    guarded : float
        The same with a bound of what rounding of the coefficients adds.
    format : Format
        The format; in its carrier products accumulate, and coefficients are rounded to it.
    cushion : float
        Least cushion of steps before the last, as a part of the upper end.
    upper : float
        Largest singular value of a normalised input.
    upward : float
        Share of the bound that is kept free above a step.
    """

    unit: float
    guarded: float
    format: Format
    cushion: float
    upper: float
    upward: float

    @classmethod
    def of(cls, precision: Format, cushion: float = 0.0) -> Rounding:
        """Return the rounding of a format."""
        carrier = format_of(precision.carrier)
        unit = precision.unit_roundoff
        return cls(
            unit,
            unit + GAIN_PER_BOUND * carrier.unit_roundoff,
            precision,
            cushion,
            largest_input(precision),
            UPWARD,
        )


class _DesignState(NamedTuple):
    """Steps so far, and the images of [lower, 1] under them with and without rounding.

    `reached` is the image with the fraction REACHED of each rounding.
    """

    steps: tuple[tuple[float, ...], ...]
    lower: float
    upper: float
    exact: tuple[float, float]
    reached: tuple[float, float]

    @property
    def rho(self) -> float:
        """Quotient of the ends, on which alone the next step depends."""
        return self.lower / self.upper

    @property
    def rho_reached(self) -> float:
        """(1 - E) / (1 + E), E the worst error with the part of its rounding that is reached.

        Rounding above 1 takes at most half of an exact 1 - E: where that is small, little is
        reached whatever the rounding.
        """
        (low, high), (low_reached, high_reached) = self.exact, self.reached
        left = min(low_reached, max(2 - high_reached, min(low, 2 - high) / 2))
        return left / (2 - left)


def first_state(lower: float, f: Rounding) -> _DesignState:
    """Return the state before the first step."""
    return _DesignState((), lower, f.upper, (lower, 1.0), (lower, 1.0))


@functools.lru_cache(maxsize=4096)
def _best_under_rounding(degree: int, lower: float, upper: float, f: Rounding) -> Sequence[float]:
    """Return the step with the largest quotient of the ends of the rounded image of [l, u]."""
    unit = f.guarded
    from scipy.optimize import minimize_scalar

    flat = pade(degree // 2)
    low, high = odd_image([flat], lower, upper, extended=False)
    flat_rounding = unit * rounding_bound(flat, 1.0)[1]
    if max(1 - low, high - 1) <= NARROW * flat_rounding and (degree <= 5 or flat_rounding < 0.25):
        return flat

    def ends(start: float, margin: float) -> tuple[float, float, float, float]:
        """Return the value at the lower end, that less its rounding, and the rounded image."""
        b = designed(start, margin)
        low, high = landing(b.coefficients, lower, upper, b.extrema, unit, f.upward)
        p, r = rounding_bound(b.coefficients, lower)
        return p, p - unit * r, low, high

    def designed(start: float, margin: float) -> Minimax:
        lowest, highest = math.exp(start) * upper, upper * (1 + unit * math.exp(margin))
        return rough(degree, lowest, highest, unit / 64)

    # The margin is chosen for the value at the lower end, not at the minima, which the cushion
    # raises afterwards: an alternation on one function of both numbers would stop at its kinks.
    def for_margin(margin: float, start: float) -> float:
        first, _, _, high = ends(start, margin)
        return -first / high

    def for_start(start: float, margin: float) -> float:
        _, _, low, high = ends(start, margin)
        return -low / high

    def least(
        of: Callable[[float, float], float], bounds: tuple[float, float], other: float, fine: float
    ) -> float:
        found = minimize_scalar(
            of, bounds=bounds, args=(other,), method="bounded", options={"xatol": fine}
        )
        return float(found.x)

    margins = math.log(MARGIN[0]), math.log(MARGIN[1])
    lowest = max(lower / upper, LOWEST_START * unit, f.cushion)
    starts = math.log(lowest), math.log(HIGHEST_START)
    start = starts[0]
    for _ in range(ROUNDS):
        before, margin = start, least(for_margin, margins, start, FINE[1])
        start, (_, first, low, _) = starts[0], ends(starts[0], margin)
        if starts[0] < starts[1] and low < first:  # a minimum is lower: a cushion raises it
            found = least(for_start, starts, margin, FINE[0])
            if for_start(found, margin) < for_start(start, margin):  # the search only comes near it
                start = found
        if start == before:
            break
    lowest, highest = math.exp(start) * upper, upper * (1 + unit * math.exp(margin))
    return best(degree, lowest, highest).coefficients


def _after(state: _DesignState, step: Sequence[float], f: Rounding) -> _DesignState:
    """Return the state after a step that is centred at 1 and rounded to scalars.

    The next step depends on quotients only, so that the centre is free.
    """
    low, high = odd_image([step], *state.exact, extended=False)
    centre = max((low + high) / 2, high / BELOW_TWO)
    carrier, found = format_of(f.format.carrier), []
    for scale in (1.0, centre):  # near 1 the rounding of scaled coefficients can be worse
        scaled = tuple(round_number(c / scale, carrier) for c in step)
        low, high = exact = odd_image([scaled], *state.exact, extended=False)
        found.append((max(1 - low, high - 1), scaled, exact))
    _, step, exact = min(found)
    turns = turning_points(step)
    low, high = landing(step, state.lower, state.upper, turns, f.unit, f.upward)
    reached = landing(step, *state.reached, turns, REACHED * f.unit, 1.0)
    return _DesignState((*state.steps, step), low, high, exact, reached)


def rho_without_rounding(state: _DesignState, degree: int) -> float:
    """Bound the quotient that a step can reach: in exact arithmetic."""
    try:
        return float(rough(degree, state.lower, state.upper).rho) * (1 + 1e-9)
    except BeyondDoublesError:
        return 1.0


def next_step(state: _DesignState, degree: int, f: Rounding) -> _DesignState:
    """Return the state after one more step that is not the last."""
    return _after(state, _best_under_rounding(degree, state.lower, state.upper, f), f)


def last_step(state: _DesignState, degree: int, f: Rounding) -> tuple[float, _DesignState]:
    """Return the state after the last step, of least exact error, and that error.

    It keeps no upper margin, since no step follows that could diverge. It is designed on the image
    with rounding, so that all singular values end near 1. Rounding must not change their sign,
    which excludes few steps for a wide interval.
    """
    below, _ = state.exact
    candidates = []
    if below < state.upper * (1 - f.unit):
        candidates.append(_after(state, best(degree, below, state.upper).coefficients, f))
        if candidates[0].lower <= 0:
            candidates = [next_step(state, degree, f)]
    candidates.append(_after(state, pade(degree // 2), f))
    candidates = [s for s in candidates if s.lower > 0] or candidates
    error, k = min((max(abs(1 - v) for v in s.exact), k) for k, s in enumerate(candidates))
    return error, candidates[k]
