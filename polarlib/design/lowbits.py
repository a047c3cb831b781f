"""Design for a number format: the best schedule whose rounding errors are part of the design.

A step of degree 2q + 1 in a format with unit roundoff u rounds three matrices: ``G = X^H X``,
``Z = c_1 G + ... + c_q G^q`` and ``c_0 X + X Z``. If each rounding moves a matrix by a factor of
1 + u at most, the singular value x of X becomes p(x) to within, to first order,

    u r(x),    r(x) = |p(x)| + x |z(x)| + x^3 |z'(x^2)|,    z(y) = c_1 y + ... + c_q y^q.

The constant matrix, any multiple of a Hadamard matrix and any 1 x 1 matrix have entries that are
rounded alike, and come near this bound; on other matrices the errors average out and are far below.

So the interval that matters is not the image of [lower, 1] but where rounding can take it. Each
step is chosen to make the quotient of its ends as large as it can be, and two numbers decide it:

- how far beyond the upper end the step is designed. Near that end the best polynomial is steep and
  its rounding is largest: a little room there lowers both, and costs less than it gains;
- how far above the lower end it is designed, the cushion. The best polynomial is as small at its
  minima as at the lower end, and there rounding would take a large singular value, with its
  singular vectors, into the noise.

The quotient of the ends is all that the next step sees, and more of it is never worse: so step by
step is the best, and the best degrees for a number of products come from dynamic programming.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from polarlib._schedules.images import odd_image, odd_images, odd_value, turning_points
from polarlib._schedules.products import product_counts
from polarlib._schedules.schedule import MOST_STRIDE, Schedule, coefficients
from polarlib._schedules.steps import polynomials
from polarlib._schedules.targets import parse_target
from polarlib.arrays.checks import count, instance, number, shown
from polarlib.arrays.formats import Format, format_of, round_number
from polarlib.design.compose import pade
from polarlib.design.remez import Minimax, best, check_interval

__all__ = ["for_precision", "noise_gain", "table"]


# Share of the bound u r(x) that is kept free above a step. Chosen by experiment: over 5e6 scalar
# chains in bfloat16 and float16, 0.65 let one escape and 0.7 none (benchmarks/lowbits.py). The
# steps after it forgive a little, since each is designed beyond its interval. Downward nothing
# forgives, and the whole bound is kept free.
UPWARD = 0.75
# The normalised input can exceed 1 by one rounding to the format, and by that of the norm, which is
# taken in at least single precision: so many of its roundings, chosen generously.
NORM_ROUNDINGS = 64
DEGREES = (3, 5)
# A quintic is the largest degree that pays in narrow formats: degree 9 has 30 times its noise gain.
QUINTIC = 5
# How far beyond the upper end the room is looked for, in units of u, and from and up to where the
# cushion is, as parts of the upper end: below 0.8 u the minima of a step are within its rounding.
ROOM = (1 / 64, 8.0)
LOWEST_START = 1 / 8
HIGHEST_START = 0.9
# Alternations between the two numbers, and the precision of their logarithms. Chosen by experiment:
# quotients are within 6e-4, relative, of those of a nested search over both, in e5m2 within 2e-3.
ROUNDS = 2
FINE = (0.003, 0.03)
# Points at which the bound is evaluated besides ends and turning points, once a step.
POINTS = np.linspace(0.0, 1.0, 257)
# Where the error of the Pade step is below this part of its rounding, no step is better by more.
NARROW = 1 / 16
MOST_STEPS = 64
# A widest interval is not widened beyond this part of the unit roundoff, and is found to this
# precision of its logarithm.
NOISE = 1 / 256
FINEST = 0.005
# Where there are steps to spare they are made gentler by a larger cushion, up to this part of the
# upper end: large singular values then stay away from the noise, in which they would rotate.
HIGHEST_CUSHION = 0.5
LEAST_CUSHION = 1e-3
# Rounded coefficients take the maximum of a step by less than this above 2, where 2 is refused.
BELOW_TWO = 2 - 2.0**-20
# Rounding coefficients moves p by their unit roundoff times the noise gain, which at the upper end
# of a first step is up to 4 times r.
GAIN_PER_BOUND = 4
# Error that double precision tells from none.
DOUBLES = 2.0**-51


def noise_gain(step: Sequence[float], upper: float, *, stride: int = 2) -> float:
    """Noise gain ``sum |c_i| upper**(1 + stride i)`` of one step.

    A step in a format with unit roundoff u makes an error of 0.01 to 0.4 times u times this, where
    `upper` is the largest singular value before it.

    Parameters
    ----------
    step : sequence of float
        Coefficients, ascending.
    upper : float
        Largest singular value before the step, at least 0.
    stride : int, optional
        Difference of the exponents, as in :class:`polarlib.Schedule`.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If `upper` is negative or not finite, or a coefficient is not finite.

    Examples
    --------
    >>> noise_gain((1.875, -1.25, 0.375), 1.0)
    3.5
    """
    u = number("upper", upper, 0)
    stride = count("stride", stride, most=MOST_STRIDE)
    try:
        return sum(abs(v) * u ** (1 + stride * i) for i, v in enumerate(coefficients("step", step)))
    except OverflowError:
        return math.inf


def table(schedule: Schedule) -> list[dict[str, Any]]:
    """List what each step does: interval, image, error, noise gain, slope and products.

    Parameters
    ----------
    schedule : Schedule
        Any schedule.

    Returns
    -------
    list of dict
        One a step, with the keys step (from 1), degree, lower, upper (the interval before it, in
        exact arithmetic; of the first step that of the input after its division), image_lower,
        image_upper, error (worst distance from 1 after it; of the last step of a schedule with
        another target that from the target, None before), noise_gain (at upper), slope (at 0) and
        products (matrix products of the plain form).

    Raises
    ------
    TypeError
        If it is not a Schedule.

    Examples
    --------
    >>> rows = table(for_precision("bfloat16", 1e-3, steps=5))
    >>> [round(row["error"], 2) for row in rows]
    [0.99, 0.97, 0.86, 0.56, 0.12]
    """
    instance("schedule", schedule, Schedule, "a Schedule, such as polarlib.schedule returns")
    polynomials(schedule, "design.table")
    polar = parse_target(schedule.target)[0] == "polar"
    rows: list[dict[str, Any]] = []
    before = schedule.divided(schedule.lower, schedule.upper)
    lo, hi = map(float, before)
    images = odd_images(schedule.steps, *before, stride=schedule.stride)
    for k, (step, image) in enumerate(zip(schedule.steps, images, strict=True), 1):
        below, above = map(float, image)
        error = float(max(abs(1 - image[0]), abs(image[1] - 1))) if polar else None
        if k == len(schedule.steps):
            error = schedule.error()
        rows.append(
            {
                "step": k,
                "degree": 1 + schedule.stride * (len(step) - 1),
                "lower": lo,
                "upper": hi,
                "image_lower": below,
                "image_upper": above,
                "error": error,
                "noise_gain": noise_gain(step, hi, stride=schedule.stride),
                "slope": step[0],
                "products": sum(product_counts([step])),
            }
        )
        lo, hi = below, above
    return rows


class _State(NamedTuple):
    """Steps so far, where rounding can take [lower, 1], and where they take it without."""

    steps: tuple[tuple[float, ...], ...]
    lower: float
    upper: float
    exact: tuple[float, float]


class _Arithmetic(NamedTuple):
    """Unit roundoff of the format, the same with that of coefficients, and rounding to theirs.

    And the least cushion, as a part of the upper end, that steps before the last are given.
    """

    unit: float
    guarded: float
    scalar: Callable[[float], float]
    cushion: float = 0.0


def _rounding(step: Sequence[float], x: Any) -> tuple[Any, Any]:
    """``p(x)`` and the bound ``r(x)`` of its rounding, in units of u."""
    y = x * x
    z, slope = 0.0 * x, 0.0 * x
    for i in range(len(step) - 1, 0, -1):
        z = z * y + step[i]
        slope = slope * y + i * step[i]
    z = z * y
    p = x * (step[0] + z)
    return p, abs(p) + x * abs(z) + x * y * abs(slope)


def _landing(
    step: Sequence[float], lower: float, upper: float, turns: Iterable[float], unit: float
) -> tuple[float, float]:
    """Where rounding can take [lower, upper]; `turns` are the turning points of the step."""
    x = np.concatenate([lower + (upper - lower) * POINTS, [t for t in turns if lower < t < upper]])
    p, r = _rounding(step, x)
    return float((p - unit * r).min()), float((p + UPWARD * unit * r).max())


def _best_under_rounding(
    degree: int, lower: float, upper: float, f: _Arithmetic
) -> Sequence[float]:
    """Step of a degree with the largest quotient of the ends of where rounding takes [l, u]."""
    unit = f.guarded
    from scipy.optimize import minimize_scalar

    flat = pade(degree // 2)
    low, high = odd_image([flat], lower, upper, extended=False)
    if max(1 - low, high - 1) <= NARROW * unit * _rounding(flat, 1.0)[1]:
        return flat

    def ends(start: float, room: float) -> tuple[float, float, float]:
        """Value at the lower end, and ends of where rounding takes the interval."""
        b = designed(start, room)
        low, high = _landing(b.coefficients, lower, upper, b.extrema, unit)
        return odd_value(b.coefficients, lower), low, high

    def designed(start: float, room: float) -> Minimax:
        return best(degree, math.exp(start) * upper, upper * (1 + unit * math.exp(room)))

    # The room is found for the value at the lower end, not at the minima, which the cushion raises
    # afterwards: of one function of both numbers, an alternation stops at its kinks.
    def for_room(room: float, start: float) -> float:
        first, _, high = ends(start, room)
        return -first / high

    def for_start(start: float, room: float) -> float:
        _, low, high = ends(start, room)
        return -low / high

    def least(
        f: Callable[[float, float], float], bounds: tuple[float, float], other: float, fine: float
    ) -> float:
        found = minimize_scalar(
            f, bounds=bounds, args=(other,), method="bounded", options={"xatol": fine}
        )
        return float(found.x)

    rooms = math.log(ROOM[0]), math.log(ROOM[1])
    lowest = max(lower / upper, LOWEST_START * unit, f.cushion)
    starts = math.log(lowest), math.log(HIGHEST_START)
    start = starts[0]
    for _ in range(ROUNDS):
        room = least(for_room, rooms, start, FINE[1])
        if starts[0] >= starts[1]:
            break
        start = least(for_start, starts, room, FINE[0])
        if for_start(starts[0], room) <= for_start(start, room):  # the search only comes near it
            start = starts[0]
    return designed(start, room).coefficients


def _after(state: _State, step: Sequence[float], f: _Arithmetic) -> _State:
    """State after a step that is centred at 1 in exact arithmetic and rounded to scalars.

    The next step sees quotients only, so the centre is free, and errors are read off the exact.
    """
    low, high = odd_image([step], *state.exact, extended=False)
    centre = max((low + high) / 2, high / BELOW_TWO)
    found = []
    for scale in (1.0, centre):  # near 1 the rounding of scaled coefficients can be worse
        scaled = tuple(f.scalar(c / scale) for c in step)
        low, high = exact = odd_image([scaled], *state.exact, extended=False)
        found.append((max(1 - low, high - 1), scaled, exact))
    _, step, exact = min(found)
    low, high = _landing(step, state.lower, state.upper, turning_points(step), f.unit)
    return _State((*state.steps, step), low, high, exact)


def _next(state: _State, degree: int, f: _Arithmetic) -> _State:
    """One more step that is not the last."""
    return _after(state, _best_under_rounding(degree, state.lower, state.upper, f), f)


def _last(state: _State, degree: int, f: _Arithmetic) -> tuple[float, _State]:
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
            candidates = [_next(state, degree, f)]
    candidates.append(_after(state, pade(degree // 2), f))
    error, k = min((max(abs(1 - v) for v in s.exact), k) for k, s in enumerate(candidates))
    return error, candidates[k]


def _steps_of(start: _State, count: int, f: _Arithmetic) -> _State:
    state = start
    for _ in range(count - 1):
        state = _next(state, QUINTIC, f)
    return _last(state, QUINTIC, f)[1]


def _until_rounding(start: _State, f: _Arithmetic) -> _State:
    """As many quintics as it takes for an error of one rounding."""
    state, floor = start, max(f.unit, DOUBLES)
    while True:
        error, done = _last(state, QUINTIC, f)
        if error <= floor:
            return done
        if len(done.steps) == MOST_STEPS:
            raise ValueError(
                f"an error of {floor:.2g} on [{start.lower:g}, 1] takes more than {MOST_STEPS} "
                "quintics; give steps or matmuls, or a larger lower end"
            )
        state = _next(state, QUINTIC, f)


def _products_of(start: _State, matmuls: int, f: _Arithmetic) -> _State:
    """Best degrees for a number of products: the state is a quotient, and more is never worse."""
    cost = {d: sum(product_counts([(1.0,) * (d // 2 + 1)])) for d in DEGREES}
    states: dict[int, _State] = {0: start}
    for m in range(1, matmuls - min(cost.values()) + 1):
        found = [_next(states[m - cost[d]], d, f) for d in DEGREES if m - cost[d] in states]
        if found:
            states[m] = max(found, key=lambda s: s.lower / s.upper)
    ends = [
        _last(states[m], d, f)
        for d in DEGREES
        for m in (matmuls - cost[d], matmuls - cost[d] - 1)
        if m in states
    ]
    return min(ends, key=lambda end: end[0])[1]


def _widest(
    designed: Callable[..., _State], error: Any, unit: float, cushion: float
) -> tuple[float, _State]:
    """Least lower end, to three digits, at which the design's error is at most `error`."""
    error = number("error", error, 0, 1, ends="()")

    def meets(found: _State, tolerance: float = error) -> bool:
        low, high = found.exact
        return max(1 - low, high - 1) <= tolerance

    def least(meets: Callable[[float], bool], bad: float, good: float) -> float:
        bad, good = math.log(bad), math.log(good)
        while abs(good - bad) > FINEST:
            middle = (bad + good) / 2
            bad, good = (bad, middle) if meets(math.exp(middle)) else (middle, good)
        digit = 10.0 ** (math.floor(good / math.log(10)) - 2)
        rounded = math.ceil(math.exp(good) / digit) * digit
        return float(f"{rounded:.3g}")

    floor = NOISE * unit
    if not meets(designed(floor)):
        l = least(lambda l: meets(designed(l)), floor, HIGHEST_START)
        return l, designed(l)
    # Steps to spare: the largest cushion that leaves an error of one rounding.
    goal = min(error, max(unit, DOUBLES))
    if not meets(designed(floor), goal):
        return floor, designed(floor)
    if not meets(designed(floor, HIGHEST_CUSHION), goal):
        bounds = HIGHEST_CUSHION, cushion
        return floor, designed(floor, least(lambda c: meets(designed(floor, c), goal), *bounds))
    return floor, designed(floor, HIGHEST_CUSHION)


def _arithmetic(precision: Format) -> tuple[_Arithmetic, float]:
    """The format's arithmetic, and the largest singular value of a normalised input in it."""
    carrier = format_of(precision.carrier)
    upper = 1 + precision.unit_roundoff + NORM_ROUNDINGS * carrier.unit_roundoff
    guarded = precision.unit_roundoff + GAIN_PER_BOUND * carrier.unit_roundoff
    f = _Arithmetic(precision.unit_roundoff, guarded, lambda c: round_number(c, carrier))
    return f, upper


def for_precision(
    format: str,
    lower: float | None = None,
    *,
    steps: int | None = None,
    matmuls: int | None = None,
    error: float | None = None,
    cushion: float = 0.0,
    target: str = "polar",
) -> Schedule:
    """Design the best schedule for iterating in a number format.

    Safety, cushion and degrees follow from the format's unit roundoff: every step is designed on
    where rounding can have taken the singular values before it, and such that rounding takes them
    as little out of its own image as possible.

    Parameters
    ----------
    format : str
        Name of the number format in which the matrices are rounded; products accumulate in single
        precision (in double for "float64").
    lower : float, optional
        Lower end of the interval, ``0 < lower < 1``. Singular values of the normalised input below
        the unit roundoff are noise already: 1e-1 to 1e-2 is what makes sense in 8 bits.
    steps : int, optional
        So many quintics.
    matmuls : int, optional
        At least 2: the best sequence of degrees 3 and 5 of at most so many matrix products. With
        neither, as many quintics as it takes for an error of at most the unit roundoff.
    error : float, optional
        Instead of `lower`, with `steps` or `matmuls`: the widest interval on which the error is at
        most this, in (0, 1). It is not widened beyond 1/256 unit roundoff, below which singular
        values are noise: what steps are left make the error smaller, down to one rounding, and
        then the steps gentler, by a larger cushion.
    cushion : float, optional
        Every step but the last is designed at least from this part of its upper end on, in
        [0, 0.5], where it would otherwise begin lower: large singular values then keep away from
        the noise, in which they rotate.
    target : {"polar"}, optional
        What to approximate on [lower, 1].

    Returns
    -------
    Schedule
        Coefficients are single precision numbers (doubles for "float64"), as scalars of a product
        are. Its error is that of exact arithmetic.

    Raises
    ------
    ValueError
        For an unknown format, a bad interval, cushion or error, both of `steps` and `matmuls`, both
        or neither of `lower` and `error`, a number below the least, or another target.

    Notes
    -----
    The bound of the rounding is of first order, and the schedule's promise is that of the bound: no
    singular value leaves the interval on which the next step is bounded. What was measured, in
    bfloat16, float16 and both 8-bit formats, is in docs/low_precision.md.

    Examples
    --------
    >>> s = for_precision("bfloat16", 1e-3, steps=5)
    >>> round(s.error(), 3), s.matmuls
    (0.124, 15)
    >>> len(for_precision("bfloat16", 1e-3)), len(for_precision("float8_e4m3", 1e-1))
    (6, 3)
    >>> [2 * len(step) - 1 for step in for_precision("bfloat16", 1e-3, matmuls=17).steps]
    [3, 5, 5, 5, 5, 5]
    """
    precision = format_of(format)
    if (lower is None) == (error is None):
        raise ValueError(f"give lower or error, got lower={shown(lower)} and error={shown(error)}")
    if parse_target(target)[0] != "polar":
        raise ValueError(
            f"for_precision designs for target 'polar' only, got {shown(target)}; design.clip, "
            "design.power and design.smooth_sign design for the others"
        )
    if steps is not None and matmuls is not None:
        raise ValueError(
            f"give steps or matmuls, not both, got {shown(steps)} and {shown(matmuls)}"
        )
    if steps is not None:
        steps = count("steps", steps, most=MOST_STEPS)
    if matmuls is not None:
        matmuls = count("matmuls", matmuls, 2, 3 * MOST_STEPS)
    cushion = number("cushion", cushion, 0, HIGHEST_CUSHION)
    f, upper = _arithmetic(precision)

    def designed(l: float, cushion: float = cushion) -> _State:
        start, g = _State((), l, upper, (l, 1.0)), f._replace(cushion=cushion)
        if steps is not None:
            return _steps_of(start, steps, g)
        if matmuls is not None:
            return _products_of(start, matmuls, g)
        return _until_rounding(start, g)

    if lower is not None:
        l, _ = check_interval(lower, 1.0)
        found = designed(l)
    elif steps is None and matmuls is None:
        raise ValueError(f"error={shown(error)} needs steps or matmuls; without, give lower")
    else:
        l, found = _widest(designed, error, precision.unit_roundoff, max(cushion, LEAST_CUSHION))
    degrees = ", ".join(str(2 * len(step) - 1) for step in found.steps)
    return Schedule(
        steps=found.steps,
        lower=l,
        name=f"for {format}, degrees {degrees}",
        source=(
            f"best on [{l:g}, 1] with rounding to {format}: input up to {upper:.7g}, room for "
            f"{UPWARD:g} of the bound above each step and all of it below; coefficients in "
            f"{precision.carrier}"
        ),
    )
