"""Rounding in a number format: where it can take singular values, and the best steps under it.

A step of degree 3 or 5 in a format with unit roundoff u rounds three matrices: ``G = X^H X``,
``Z = c_1 G + c_2 G^2`` and ``c_0 X + X Z``. If each rounding moves a matrix by a factor of 1 + u at
most, the singular value x of X becomes p(x) to within, to first order,

    u r(x),    r(x) = |p(x)| + x |z(x)| + x^3 |z'(x^2)|,    z(y) = c_1 y + c_2 y^2.

Higher degrees round more matrices, the powers and blocks of the engine, and r has one term for
each. The constant matrix, any multiple of a Hadamard matrix and any 1 x 1 matrix have entries that
are rounded alike, and come near this bound; on other matrices the errors average out.

So the interval that matters is not the image of [lower, 1] but where rounding can take it. Each
step is chosen to make the quotient of its ends as large as it can be, and two numbers decide it:

- how far beyond the upper end the step is designed. Near that end the best polynomial is steep and
  its rounding is largest: a little room there lowers both, and costs less than it gains;
- how far above the lower end it is designed, the cushion. The best polynomial is as small at its
  minima as at the lower end, and there rounding would take a large singular value, with its
  singular vectors, into the noise.

The quotient of the ends is all that the next step depends on, and a larger quotient is never worse.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from polarlib._schedules.images import odd_image, turning_points
from polarlib._schedules.products import even_products
from polarlib.arrays.formats import Format, format_of, round_number
from polarlib.design.compose import pade
from polarlib.design.doubles import BeyondDoublesError
from polarlib.design.remez import Minimax, best, rough

# Share of the bound u r(x) that is kept free above a step. Chosen by experiment: over 5e6 scalar
# chains in bfloat16 and float16, 0.65 let one escape and 0.7 none (benchmarks/lowbits.py). The
# steps after it forgive a little, since each is designed beyond its interval. Downward nothing
# forgives, and the whole bound is kept free.
UPWARD = 0.75
# The normalised input can exceed 1 by one rounding to the format, and by that of the norm, which is
# taken in at least single precision: so many of its roundings, chosen generously.
NORM_ROUNDINGS = 64
# How far beyond the upper end the room is looked for, in units of u, and from and up to where the
# cushion is, as parts of the upper end: below 0.8 u the minima of a step are within its rounding.
ROOM = (1 / 64, 8.0)
LOWEST_START = 1 / 8
HIGHEST_START = 0.9
# Alternations between the two numbers, and the precision of their logarithms. Chosen by experiment:
# quotients are within 6e-4, relative, of those of a nested search over both, in e5m2 within 2e-3.
ROUNDS = 2
FINE = (0.003, 0.03)
# Part of the bound that rounding reaches on matrices with random singular vectors. Measured for a
# last step, n = 128: 0.04 (float16) to 0.17 (8 bits) of it at degree 9.
REACHED = 0.2
# Points at which the bound is evaluated besides ends and turning points, once a step.
POINTS = np.linspace(0.0, 1.0, 257)
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
            1 + unit + NORM_ROUNDINGS * carrier.unit_roundoff,
            UPWARD,
        )


class _DesignState(NamedTuple):
    """Steps so far, where rounding can take [lower, 1], and where they take it without.

    `reached` is where the part REACHED of each rounding takes it.
    """

    steps: tuple[tuple[float, ...], ...]
    lower: float
    upper: float
    exact: tuple[float, float]
    reached: tuple[float, float]

    @property
    def rho(self) -> float:
        """Quotient of the ends: all that the next step depends on."""
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


def rounding_bound(step: Sequence[float], x: Any) -> tuple[Any, Any]:
    """Return ``p(x)`` and the bound ``r(x)`` of its rounding, in units of u.

    Examples
    --------
    >>> rounding_bound((1.5, -0.5), 1.0)
    (1.0, 2.0)
    """
    if len(step) > 3:
        return _bound_by_products(step, x)
    y = x * x
    z, slope = 0.0 * x, 0.0 * x
    for i in range(len(step) - 1, 0, -1):
        z = z * y + step[i]
        slope = slope * y + i * step[i]
    z = z * y
    p = x * (step[0] + z)
    return p, abs(p) + x * abs(z) + x * y * abs(slope)


def _bound_by_products(step: Sequence[float], x: Any) -> tuple[Any, Any]:
    """The same for any degree: derivatives by every rounding of `engine.iterate.even_part`.

    A list holds a number and its derivatives by the relative errors of all roundings so far.
    """
    made = 0

    def rounded(parts: list[Any]) -> list[Any]:
        nonlocal made
        made += 1
        return [*parts, *[0.0 * x] * (made - len(parts)), parts[0]]

    def total(*terms: tuple[float, list[Any]]) -> list[Any]:
        length = max(len(parts) for _, parts in terms)
        return [sum(c * parts[k] for c, parts in terms if k < len(parts)) for k in range(length)]

    def product(a: list[Any], b: list[Any]) -> list[Any]:
        left = [a[0] * v for v in b]
        right = [0.0 * x, *(b[0] * v for v in a[1:])]
        return total((1.0, left), (1.0, right))

    g = rounded([x * x])
    c = step[1:]
    block, _ = even_products(len(c))
    powers = [g]
    while len(powers) < block:
        powers.append(rounded(product(powers[-1], g)))
    if block == 1:
        z = rounded(total((c[-1], product(g, g)), (c[-2], g)))
        for v in reversed(c[:-2]):
            z = rounded(total((1.0, product(z, g)), (v, g)))
    else:
        starts = range(0, len(c), block)
        blocks = [rounded(total(*zip(c[i : i + block], powers, strict=False))) for i in starts]
        z = blocks.pop()
        while blocks:
            z = rounded(total((1.0, product(z, powers[-1])), (1.0, blocks.pop())))
    p, *errors = rounded(total((step[0], [x]), (1.0, [x * v for v in z])))
    return p, sum(map(abs, errors))


def _landing(
    step: Sequence[float],
    lower: float,
    upper: float,
    turns: Iterable[float],
    unit: float,
    upward: float,
) -> tuple[float, float]:
    """Where rounding can take [lower, upper]; `turns` are the turning points of the step."""
    x = np.concatenate([lower + (upper - lower) * POINTS, [t for t in turns if lower < t < upper]])
    p, r = rounding_bound(step, x)
    return float((p - unit * r).min()), float((p + upward * unit * r).max())


@functools.lru_cache(maxsize=4096)
def _best_under_rounding(degree: int, lower: float, upper: float, f: Rounding) -> Sequence[float]:
    """Step of a degree with the largest quotient of the ends of where rounding takes [l, u]."""
    unit = f.guarded
    from scipy.optimize import minimize_scalar

    flat = pade(degree // 2)
    low, high = odd_image([flat], lower, upper, extended=False)
    flat_rounding = unit * rounding_bound(flat, 1.0)[1]
    if max(1 - low, high - 1) <= NARROW * flat_rounding and (degree <= 5 or flat_rounding < 0.25):
        return flat

    def ends(start: float, room: float) -> tuple[float, float, float, float]:
        """Value at the lower end, that less its rounding, and where rounding takes all."""
        b = designed(start, room)
        low, high = _landing(b.coefficients, lower, upper, b.extrema, unit, f.upward)
        p, r = rounding_bound(b.coefficients, lower)
        return p, p - unit * r, low, high

    def designed(start: float, room: float) -> Minimax:
        lowest, highest = math.exp(start) * upper, upper * (1 + unit * math.exp(room))
        return rough(degree, lowest, highest, unit / 64)

    # The room is found for the value at the lower end, not at the minima, which the cushion raises
    # afterwards: of one function of both numbers, an alternation stops at its kinks.
    def for_room(room: float, start: float) -> float:
        first, _, _, high = ends(start, room)
        return -first / high

    def for_start(start: float, room: float) -> float:
        _, _, low, high = ends(start, room)
        return -low / high

    def least(
        of: Callable[[float, float], float], bounds: tuple[float, float], other: float, fine: float
    ) -> float:
        found = minimize_scalar(
            of, bounds=bounds, args=(other,), method="bounded", options={"xatol": fine}
        )
        return float(found.x)

    rooms = math.log(ROOM[0]), math.log(ROOM[1])
    lowest = max(lower / upper, LOWEST_START * unit, f.cushion)
    starts = math.log(lowest), math.log(HIGHEST_START)
    start = starts[0]
    for _ in range(ROUNDS):
        before, room = start, least(for_room, rooms, start, FINE[1])
        start, (_, first, low, _) = starts[0], ends(starts[0], room)
        if starts[0] < starts[1] and low < first:  # a minimum is lower: a cushion raises it
            found = least(for_start, starts, room, FINE[0])
            if for_start(found, room) < for_start(start, room):  # the search only comes near it
                start = found
        if start == before:
            break
    lowest, highest = math.exp(start) * upper, upper * (1 + unit * math.exp(room))
    return best(degree, lowest, highest).coefficients


def _after(state: _DesignState, step: Sequence[float], f: Rounding) -> _DesignState:
    """State after a step that is centred at 1 in exact arithmetic and rounded to scalars.

    The next step sees quotients only, so the centre is free, and errors are read off the exact.
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
    low, high = _landing(step, state.lower, state.upper, turns, f.unit, f.upward)
    reached = _landing(step, *state.reached, turns, REACHED * f.unit, 1.0)
    return _DesignState((*state.steps, step), low, high, exact, reached)


def rho_without_rounding(state: _DesignState, degree: int) -> float:
    """Bound the quotient that a step can reach: in exact arithmetic."""
    try:
        return float(rough(degree, state.lower, state.upper).rho) * (1 + 1e-9)
    except BeyondDoublesError:
        return 1.0


def next_step(state: _DesignState, degree: int, f: Rounding) -> _DesignState:
    """One more step that is not the last."""
    return _after(state, _best_under_rounding(degree, state.lower, state.upper, f), f)


def last_step(state: _DesignState, degree: int, f: Rounding) -> tuple[float, _DesignState]:
    """One more step, the last: least error in exact arithmetic, and that error.

    Nothing comes after it that could diverge, so it keeps no room. It is designed up to where
    rounding can have taken singular values, so that those too end near 1. But rounding must not
    change their sign, which few steps for a wide interval would allow.
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
