"""Schedules tuned for something else than the worst error: a spectrum, a slope, any function.

Greedy compositions have the smallest worst error on an interval. Where singular values are seldom
small, or only their mean error counts, other coefficients do better::

    s = design.for_spectrum(np.linalg.svd(g, compute_uv=False), 5)
    s = design.for_spectrum(design.marchenko_pastur(1024, 256), 3)
    s = design.tune(my_loss, design.greedy(1e-3, [5] * 5))

How it is done. Each step is scaled so that its domain is (0, 1] and its values are at most 1, the
last step's at most the bound: this takes away the freedom to scale between steps, and every bound
is linear in the coefficients of one step, at every point. So a few points stand for the interval,
and after each local optimisation (SciPy's SLSQP) the extrema of its steps join them. What leaves
the bounds when its exact image is followed is thrown away.

It is a local optimisation from several starts. Nothing here proves that no better one exists.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from polarlib._schedules.images import odd_image
from polarlib._schedules.schedule import Schedule
from polarlib._schedules.steps import polynomials
from polarlib._schedules.validity import Normalisation
from polarlib.arrays.checks import count, instance, is_number, items, nearest, number, shown
from polarlib.arrays.settings import held_back, ignore_float_errors, warn
from polarlib.design.compose import greedy
from polarlib.design.fit import Problem, mean_and_gradient, minimise, odd_powers
from polarlib.design.remez import check_degree
from polarlib.design.spectra import SMALLEST, Spectrum, mean_deviation, mean_error, spectrum
from polarlib.result import ScheduleWarning

OBJECTIVES = ("slope", "error")
# Measured singular values beyond this number are thinned, to order statistics, while optimising.
THINNED = 2048
# Largest value of a tuned schedule by default, where that of its start is not larger. Chosen by
# experiment for spectra: 1.4 improves the mean error by less than another percent.
HIGHEST = 1.1
# And the smallest on the start's interval, relative to its own. Chosen by experiment for spectra:
# without it (0) intervals without singular values are sent to almost zero, for at most another 8
# percent.
LOWEST = 0.5
# Least p(x) / x of a scaled step, so that rounding does not make it negative; or half the start's.
FLOOR = 1e-3
# |e| is smoothed to sqrt(e^2 + d^2), d this part of the mean error: gradients have no jumps.
SMOOTHING = 1e-3
# And the lower one by that part of itself, since the search meets constraints to 1e-10 only.
INWARD = 1e-7
# Values above the bound by at most this part are scaled down; others are thrown away.
LOWERED = 1e-3
# Lower ends of the further starts relative to the first, and the relative size of the random
# changes of coefficients in those beyond them. Chosen by experiment.
INTERVALS = (0.3, 0.1, 3.0)
PERTURBATION = 0.03
# Mean errors below this are rounding, and nothing is left to tune.
ROUNDING = 1e-13
# Local optimisations, and steps that are tuned together: more take minutes.
MOST_STARTS, MOST_TUNED = 1000, 20
# Lower ends that the search for the best greedy schedule tries first.
SCANNED = 64

Steps = tuple[tuple[float, ...], ...]


def _tops(steps: Sequence[Sequence[float]], upper: float) -> list[float]:
    """Largest values after every step on (0, upper]; the domain's end comes first."""
    tops = [upper]
    for step in steps:
        tops.append(odd_image([step], 0.0, tops[-1], extended=False)[1])
    return tops


def _scaled(steps: Sequence[Sequence[float]], tops: Sequence[float]) -> list[Any]:
    """Steps with domain and values in (0, 1], the last with the values that it has."""
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


def _top(steps: Sequence[Sequence[float]], upper: float) -> float:
    """Largest value on (0, upper], by exact images; NaN if a step is negative somewhere there."""
    for step in steps:
        lower, upper = odd_image([step], 0.0, upper)
        if lower < 0 or not upper < math.inf:
            return math.nan
    return upper


def _lowered(steps: Steps, upper: float, top: float) -> Steps:
    """The last step scaled down where rounding and the margin take it above the bound."""
    hi = odd_image(steps, 0.0, upper)[1]
    if not top < hi < top * (1 + LOWERED):
        return steps
    factor = top / hi * (1 - 2.0**-50)
    return (*steps[:-1], tuple(c * factor for c in steps[-1]))


def _interval(start: Schedule) -> tuple[float, float]:
    """Interval before the first step, after the division of the input."""
    return start.divided(start.lower, start.upper, extended=False)


def _check_bounds(bounds: Any, start: Schedule) -> tuple[float, float]:
    """The bounds, wider than the start's own by default; refused where it does not keep them."""
    lower, upper = _interval(start)
    top = _top(start.steps, upper)
    if math.isnan(top):
        raise ValueError(
            f"schedule {start.name!r} cannot be tuned: a step is negative on part of "
            f"(0, {upper:g}] or of its image"
        )
    own = odd_image(start.steps, lower, upper)[0], top
    if bounds is None:
        return LOWEST * own[0], max(HIGHEST, top)
    what = "two numbers, 0 <= lo < hi"
    lo, hi = (number("a number of bounds", v, 0) for v in items("bounds", bounds, what, 2, 2))
    if not lo < hi:
        raise ValueError(f"bounds must be {what}, got {shown(bounds)}")
    if own[0] < lo or own[1] > hi:
        raise ValueError(
            f"the start must keep the bounds: {start.name!r} has values in "
            f"[{own[0]:.6g}, {own[1]:.6g}], got bounds={shown(bounds)}"
        )
    return lo, hi


def _called(objective: Callable[[Steps], Any], steps: Steps) -> float:
    value = objective(steps)
    if not is_number(value):
        raise ValueError(f"the objective must return a number, got {shown(value)}")
    return float(value)


def _values(objective: Any, start: Schedule) -> tuple[str, Callable[[Steps], float]]:
    """Name of an objective and its value for steps, smaller is better."""
    if isinstance(objective, Spectrum):
        objective = spectrum(objective)
        x, weights = objective.values, objective.weights
        if not 0 < float(np.max(x)) <= start.upper * (1 + 1e-12):
            raise ValueError(
                f"the spectrum {objective.name!r} has values in "
                f"[{np.min(x):.4g}, {np.max(x):.4g}], beyond the start's interval, which ends at "
                f"{start.upper}"
            )
        x = x / start.input_divisor
        return f"mean error on {objective.name}", lambda steps: mean_deviation(steps, x, weights)
    if isinstance(objective, str):
        if objective not in OBJECTIVES:
            raise ValueError(
                f"unknown objective {shown(objective)}; {nearest(objective, OBJECTIVES)}, a "
                "Spectrum, or a function of the steps"
            )
        if objective == "slope":
            return "slope", lambda steps: -math.prod(step[0] for step in steps)

        def worst(steps: Steps) -> float:
            lo, hi = odd_image(steps, *_interval(start))
            return max(abs(1 - lo), abs(hi - 1))

        return "error", worst
    if not callable(objective):
        raise TypeError(
            "an objective is a function of the steps, a Spectrum, 'slope' or 'error', "
            f"got {shown(objective)}"
        )
    return getattr(objective, "__name__", "an objective"), lambda steps: _called(objective, steps)


@ignore_float_errors
def tune(
    objective: Any,
    start: Schedule,
    *,
    bounds: tuple[float, float] | None = None,
    starts: int = 4,
    seed: int = 0,
) -> Schedule:
    """Optimise all coefficients of a schedule together, for any objective.

    Parameters
    ----------
    objective : callable, Spectrum or str
        What is to be small: a function that takes the steps, a tuple of tuples of coefficients, and
        returns a number; a :class:`Spectrum`, for its mean error (see :func:`mean_error`); "slope"
        for the largest slope at 0; "error" for the smallest worst error on the interval of `start`,
        of which the optimum is known: the greedy schedule.
    start : Schedule
        What to improve. Its interval, normalisation and degrees stay.
    bounds : (float, float), optional
        Bounds ``lo <= s(x / input_safety) <= hi``: the upper one holds on all of
        ``(0, start.upper]``, the lower one on ``[start.lower, start.upper]``. By default `hi` is
        1.1, or the start's largest value where it is larger, and `lo` half of its smallest.
        Whatever they are, every step is positive on all of ``(0, start.upper]``.
    starts : int, optional
        Local optimisations: from `start`, from greedy schedules of other intervals, and from random
        changes of `start`.
    seed : int, optional
        Seed of the latter. The same arguments give the same schedule.

    Returns
    -------
    Schedule
        The best found, `start` itself where that is not smaller by the objective.

    Warns
    -----
    ScheduleWarning
        If nothing better than `start` was found.

    Raises
    ------
    TypeError
        If `start` is not a schedule, or the objective none of the above.
    ValueError
        For a start that is not made of odd polynomials for the polar factor, is not positive on
        ``(0, start.upper]`` or does not keep the bounds; for bounds that are none; for an objective
        that is unknown or returns no finite number; for less than one start or a bad seed.

    Notes
    -----
    Local optimisation from several starts by sequential quadratic programming (D. Kraft, 1988, in
    SciPy); the bounds are checked by exact images at the end. The gradient of a function is taken
    by differences: it should be smooth and cheap, some 10000 calls are made. It may see steps that
    leave the bounds; what is not finite counts as larger than anything.

    A greedy schedule is the only one with so small an error: within its own bounds nothing can be
    tuned, and those by default are wider.

    Examples
    --------
    >>> start = greedy(1e-2, [5] * 3)
    >>> s = tune("slope", start, bounds=(0.6, 1.3))
    >>> round(start.slope, 1), round(s.slope, 1), s.image(0, 1)[1] <= 1.3
    (78.3, 85.1, True)
    """
    instance("start", start, Schedule, "a Schedule, such as polarlib.schedule returns")
    polynomials(start, "design.tune(start=)")
    if start.stride != 2 or start.target != "polar":
        raise ValueError(
            f"tune takes odd polynomials for the polar factor, got stride {start.stride} and "
            f"target {start.target!r}"
        )
    starts = count("starts", starts, most=MOST_STARTS)
    seed = count("seed", seed, 0)
    lo, hi = _check_bounds(bounds, start)
    lower, upper = _interval(start)
    name, value = _values(objective, start)
    least, best = value(start.steps), start
    if not math.isfinite(least):
        raise ValueError(
            f"the objective must be finite for the start, got {least} for {start.name!r}"
        )
    for steps in _candidates(objective, value, start, (lo, hi), operator.index(starts), int(seed)):
        steps = _lowered(steps, upper, hi)
        reached = value(steps)
        if not (reached < least and _top(steps, upper) <= hi):
            continue
        if odd_image(steps, lower, upper)[0] < lo:
            continue
        try:
            with held_back() as hazards:
                found = replace(
                    start,
                    steps=steps,
                    name=f"{start.name}, tuned",
                    source=f"tuned for its {name} from {start.name!r}; values up to {hi:.6g} on "
                    f"(0, {start.upper:g}]",
                    repeat=None,
                )
        except ValueError:
            continue
        if hazards:
            continue
        least, best = reached, found
    if best is start:
        warn(
            f"nothing better than {start.name!r} by its {name} was found with values from "
            f"{lo:.6g} to {hi:.6g}: the start is returned; try wider bounds, more starts or "
            "another start",
            ScheduleWarning,
        )
    return best


def _greedy_steps(lower: float, degrees: Sequence[int], upper: float) -> Steps | None:
    """Greedy steps on an interval, None where it is empty or too wide for their rounding."""
    try:
        return greedy(lower, degrees, upper=upper).steps if degrees else None
    except ValueError:
        return None


def _candidates(
    objective: Any,
    value: Callable[[Steps], float],
    start: Schedule,
    bounds: tuple[float, float],
    starts: int,
    seed: int,
) -> Any:
    """Steps of local minima, which may leave the bounds."""
    degrees = [2 * len(step) - 1 for step in start.steps if len(step) > 1]
    lower, upper = _interval(start)
    if objective == "error":
        other = _greedy_steps(lower, degrees, upper)
        if other is not None:
            yield other
        return
    tops = _tops(start.steps, upper)
    first = _scaled(start.steps, tops)
    sizes = tuple(map(len, first))
    points = np.linspace(0, 1, 257)[1:]  # p(x) / x is smooth: its minimum to three digits
    floors = tuple(
        min(FLOOR, 0.5 * float(np.min(odd_powers(points, len(c)) @ c / points))) for c in first
    )
    x = weights = None
    smoothing, begun = 0.0, value(start.steps)
    if isinstance(objective, Spectrum):
        x, weights = objective.values / start.input_divisor / upper, objective.weights
        if len(x) > THINNED:
            middles = (np.arange(THINNED) + 0.5) / THINNED
            order = np.argsort(x)
            total = np.cumsum(weights[order])
            x = x[order][np.searchsorted(total, middles * total[-1]).clip(0, len(x) - 1)]
            weights = np.full(THINNED, 1 / THINNED)
        smoothing = SMOOTHING * begun
        if begun < ROUNDING:
            return
    scale = abs(begun) or 1.0

    def measured(steps: list[Any]) -> Any:
        if x is not None:
            found = mean_and_gradient(steps, x, weights, smoothing)
            return found if math.isfinite(found[0]) else (math.inf, np.zeros(sum(sizes)))
        if objective == "slope":
            if min(c[0] for c in steps) <= 0:
                return math.inf, np.zeros(sum(sizes))
            gradient = [np.append(-1 / c[0], np.zeros(len(c) - 1)) for c in steps]
            return -sum(math.log(c[0]) for c in steps), np.concatenate(gradient)
        reached = value(_unscaled(steps, tops)) / scale
        return reached if math.isfinite(reached) else math.inf  # the search turns back

    lo, hi = bounds
    ends = None
    lows: list[float] = []
    if lo > 0:
        ends = lower / upper, lo * (1 + INWARD)
        low, high = lower, upper
        for step, top in zip(start.steps[:-1], tops[1:-1], strict=True):
            low, high = odd_image([step], low, high)
            lows.append(math.log(low / top))
    gradient = x is not None or objective == "slope"
    extra = len(lows)

    def with_gradient(steps: list[Any]) -> Any:
        found = measured(steps)
        return (found[0], np.append(found[1], np.zeros(extra))) if gradient else found

    problem = Problem(sizes, hi, ends, floors, with_gradient, gradient)
    generator = np.random.default_rng(seed)
    for k in range(starts):
        scaled = first
        if 0 < k <= len(INTERVALS):
            other = _greedy_steps(lower * INTERVALS[k - 1], degrees, upper)
            if other is None or len(other) < len(sizes):
                continue
            scaled = _scaled(other, _tops(other, upper))
        elif k:
            scaled = [c * (1 + PERTURBATION * generator.standard_normal(len(c))) for c in first]
        for steps in minimise(problem, np.concatenate([*scaled, lows])):
            yield _unscaled(steps, tops)


def _best_greedy(spectrum: Spectrum, degrees: Sequence[int]) -> Schedule:
    """The greedy schedule on [l, 1] with the smallest mean error on a spectrum."""
    from scipy.optimize import minimize_scalar  # lazily, as above

    def error(t: float) -> float:
        steps = _greedy_steps(math.exp(t), degrees, 1.0)
        found = (
            math.inf if steps is None else mean_deviation(steps, spectrum.values, spectrum.weights)
        )
        return found if math.isfinite(found) else math.inf

    t = np.linspace(math.log(SMALLEST), math.log(0.99), SCANNED)
    errors = [error(v) for v in t]
    k = int(np.argmin(errors))
    if k and errors[k - 1] == math.inf:  # the best lower end is among those that are refused
        greedy(math.exp(t[k - 1]), degrees)
    refined = minimize_scalar(
        error, bounds=(t[max(k - 1, 0)], t[min(k + 1, SCANNED - 1)]), method="bounded"
    )
    return greedy(math.exp(refined.x if refined.fun < errors[k] else t[k]), degrees)


@ignore_float_errors
def for_spectrum(
    density_or_singular_values: Any,
    steps: int,
    *,
    degree: int = 5,
    normalisation: str | None = None,
    bounds: tuple[float, float] | None = None,
    starts: int = 4,
    seed: int = 0,
) -> Schedule:
    """Schedule with the smallest mean error on a spectrum, in bounds on all of (0, 1].

    The error of a singular value x is ``|1 - s(x)|``. The search begins with the best greedy
    schedule of the same cost, that of the best lower end, and is never worse than it.

    Parameters
    ----------
    density_or_singular_values : array, callable or Spectrum
        Singular values that were measured, a density on (0, 1] (both as :func:`spectrum` takes
        them), or the result of :func:`marchenko_pastur`, :func:`log_uniform`, :func:`power_law`.
    steps : int
        Number of polynomials.
    degree : int, optional
        Their degree, odd.
    normalisation : {None, "frobenius", "spectral"}, optional
        What the singular values are divided by, see :func:`spectrum`. The schedule tells it as its
        own, so that the engine divides in the same way.
    bounds : (float, float), optional
        Bounds ``lo <= s(x) <= hi``, with `hi` on all of (0, 1] and `lo` on [l, 1] for the best
        greedy schedule on [l, 1], which must keep them. By default `hi` is 1.1, or that schedule's
        largest value where it is larger, and `lo` half of its smallest.
    starts, seed : int, optional
        See :func:`tune`.

    Returns
    -------
    Schedule
        Its interval begins at the smallest singular value of the spectrum; on all of (0, 1] it is
        positive and at most `hi`. Its source tells both mean errors, l and the bounds.

    Raises
    ------
    TypeError
        If the spectrum is none of the above.
    ValueError
        For singular values or densities that are empty, zero, negative or not finite, a number of
        steps below 1, an even degree, an unknown normalisation, or bounds that the best greedy
        schedule does not keep.

    Notes
    -----
    Most of the gain over a fixed interval is that of the best lower end; the rest, by :func:`tune`,
    is a local optimum. Where all singular values are so small that the steepest steps are best,
    there is no rest: they are greedy.

    Examples
    --------
    >>> from polarlib.design import marchenko_pastur
    >>> noise = marchenko_pastur(256, 256)
    >>> s = for_spectrum(noise, 3)
    >>> fixed, best = greedy(1e-3, [5] * 3), greedy(0.0242, [5] * 3)
    >>> [round(mean_error(t, noise), 2) for t in (fixed, best, s)]
    [0.54, 0.14, 0.13]
    """
    found = spectrum(density_or_singular_values, normalisation=normalisation)
    steps, degree = count("steps", steps, most=MOST_TUNED), check_degree(degree)
    starts, seed = count("starts", starts, most=MOST_STARTS), count("seed", seed, 0)
    start = _best_greedy(found, [degree] * steps)
    bounds = _check_bounds(bounds, start)
    with held_back():  # the best greedy one is a result too
        tuned = tune(found, start, bounds=bounds, starts=starts, seed=seed)
    errors = mean_error(start, found), mean_error(tuned, found)
    # In another order the worst error on this interval may be smaller; the mean is what counts.
    with held_back():
        return replace(
            tuned,
            lower=min(float(np.min(found.values)), 1.0),
            normalisation=cast(Normalisation, found.normalisation),
            name=f"for {found.name}",
            source=f"mean error {errors[1]:.4g} on {found.name}, {errors[0]:.4g} by the best "
            f"greedy schedule, of [{start.lower:.6g}, 1]; at least {bounds[0]:.6g} there, and at "
            f"most {bounds[1]:.6g} on (0, 1]",
        )
