"""Schedules tuned for other objectives than the worst error: a spectrum, a slope, any function.

Greedy compositions have the smallest worst error on an interval. If few singular values are small,
or the mean error is the objective, other coefficients have a smaller error::

    s = design.for_spectrum(np.linalg.svd(g, compute_uv=False), 5)
    s = design.for_spectrum(design.marchenko_pastur(1024, 256), 3)
    s = design.tune(my_loss, design.greedy(1e-3, [5] * 5))

Algorithm. Each step is scaled so that its domain is (0, 1] and its values are at most 1, those of
the last step at most the bound. This removes the freedom to scale between steps, and every bound is
linear in the coefficients of one step, at every point. The bounds are imposed at a few points, to
which the extrema of the steps are added after each local optimisation (SciPy's SLSQP). Results
whose exact image leaves the bounds are rejected.

The optimisation is local, from several starts; a better schedule may exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from polarlib._schedules.images import odd_image
from polarlib._schedules.schedule import Schedule
from polarlib._schedules.steps import polynomials
from polarlib._schedules.validity import Normalisation
from polarlib.arrays.checks import count, instance, is_number, items, nearest, number, shown
from polarlib.arrays.progress import Callback, reporting
from polarlib.arrays.settings import held_back, ignore_float_errors, warn
from polarlib.design.compose import greedy
from polarlib.design.remez import check_degree, check_degrees
from polarlib.design.search import Search, Steps, greedy_steps, interval
from polarlib.design.spectra import SMALLEST, Spectrum, mean_deviation, mean_error, spectrum
from polarlib.result import ScheduleWarning

OBJECTIVES = ("slope", "error")
# Largest value of a tuned schedule by default, where that of its start is not larger. Chosen by
# experiment for spectra: 1.4 improves the mean error by less than another percent.
HIGHEST = 1.1
# Default of the smallest value on the start's interval, relative to the start's. Chosen by
# experiment for spectra: without it (0) intervals without singular values are mapped to almost
# zero, which reduces the mean error by at most another 8 percent.
LOWEST = 0.5
# Values above the bound by at most this fraction are scaled down; others are rejected.
LOWERED = 1e-3
# Largest number of local optimisations, and of steps that are tuned together: more take minutes.
MOST_STARTS, MOST_TUNED = 1000, 20
# Search for the best greedy schedule: number of lower ends, of which one in COARSE is tried first
# and then those about the two best, and precision of the logarithm of the best. Mean errors of the
# start are then within 1e-4 of the least (by experiment, 40 spectra).
SCANNED, COARSE, FINE = 64, 3, 1e-4
# Starts whose objectives differ relatively by at most this have the same result.
AGREE = 1e-6


def _top(steps: Sequence[Sequence[float]], upper: float) -> float:
    """Return the largest value on (0, upper], by exact images; NaN if a step is negative there."""
    for step in steps:
        lower, upper = odd_image([step], 0.0, upper)
        if lower < 0 or not upper < math.inf:
            return math.nan
    return upper


def _lowered(steps: Steps, upper: float, top: float) -> Steps:
    """Scale the last step down if rounding and the margin take it above the bound."""
    hi = odd_image(steps, 0.0, upper)[1]
    if not top < hi < top * (1 + LOWERED):
        return steps
    factor = top / hi * (1 - 2.0**-50)
    return (*steps[:-1], tuple(c * factor for c in steps[-1]))


def _check_bounds(bounds: Any, start: Schedule) -> tuple[float, float]:
    """Return the bounds, by default wider than the start's; refuse bounds that it violates."""
    lower, upper = interval(start)
    top = _top(start.steps, upper)
    if math.isnan(top):
        raise ValueError(
            f"start must have positive steps on (0, {upper:g}] and its images, got {start.name!r}; "
            "use another schedule"
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
            f"start {start.name!r} has values in [{own[0]:.6g}, {own[1]:.6g}], outside "
            f"bounds={shown(bounds)}; widen bounds or change start"
        )
    return lo, hi


def _called(objective: Callable[[Steps], Any], steps: Steps) -> float:
    value = objective(steps)
    if not is_number(value):
        raise ValueError(f"the objective must return a number, got {shown(value)}")
    return float(value)


def _values(objective: Any, start: Schedule) -> tuple[str, Callable[[Steps], float]]:
    """Return the name of an objective and its value for steps, which is minimised."""
    if isinstance(objective, Spectrum):
        objective = spectrum(objective)
        x, weights = objective.values, objective.weights
        if not 0 < float(np.max(x)) <= start.upper * (1 + 1e-12):
            raise ValueError(
                f"the spectrum {objective.name!r} has values in "
                f"[{np.min(x):.4g}, {np.max(x):.4g}], beyond the interval of start, which ends at "
                f"{start.upper}; use another start"
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
            lo, hi = odd_image(steps, *interval(start))
            return max(abs(1 - lo), abs(hi - 1))

        return "error", worst
    if not callable(objective):
        raise TypeError(
            "objective must be a function of the steps, a Spectrum, 'slope' or 'error', "
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
    callback: Callback | None = None,
) -> Schedule:
    """Optimise all coefficients of a schedule together, for any objective.

    Parameters
    ----------
    objective : callable, Spectrum or str
        Objective that is minimised: a function of the steps, a tuple of tuples of coefficients,
        that returns a number; a :class:`Spectrum`, for its mean error (see :func:`mean_error`);
        "slope" for the largest slope at 0; "error" for the smallest worst error on the interval of
        `start`, whose optimum is the greedy schedule.
    start : Schedule
        Schedule to improve. The result has its interval, normalisation and degrees.
    bounds : (float, float), optional
        Bounds ``lo <= s(x / input_safety) <= hi``: the upper one holds on all of
        ``(0, start.upper]``, the lower one on ``[start.lower, start.upper]``. By default `hi` is
        1.1, or the start's largest value if that is larger, and `lo` half of its smallest. With any
        bounds every step is positive on all of ``(0, start.upper]``.
    starts : int, optional
        Largest number of local optimisations: from `start`, from greedy schedules of other
        intervals, and from random changes of `start`. The search ends before if two of them agree.
    seed : int, optional
        Seed of the random changes. The same arguments give the same schedule.
    callback : callable, optional
        Called as ``callback(k, value)`` after local optimisation k = 1, 2, ..., with the smallest
        objective so far (of "slope" the negative slope). See :class:`polarlib.result.Progress`.

    Returns
    -------
    Schedule
        The best schedule of the search; `start` itself if none has a smaller objective.

    Raises
    ------
    TypeError
        If `start` is not a schedule, or the objective not one of the above.
    ValueError
        For a start that does not consist of odd polynomials for the polar factor, is not positive
        on ``(0, start.upper]`` or violates the bounds; for invalid bounds; for an objective that is
        unknown or does not return a finite number; for less than one start or an invalid seed.

    Warns
    -----
    ScheduleWarning
        If nothing better than `start` was found.

    Notes
    -----
    Local optimisation from several starts by sequential quadratic programming (D. Kraft, 1988, in
    SciPy); the bounds are checked by exact images at the end. The gradient of a function is
    computed by differences: the function should be smooth and fast, as it is called about 10000
    times. It may be called with steps that leave the bounds; a value that is not finite counts as
    infinite.

    A greedy schedule is the only one with its error. Within its own bounds it cannot be improved,
    and the default bounds are wider.

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
    report = reporting(callback, "local optimisations", starts)
    lo, hi = _check_bounds(bounds, start)
    _, upper = interval(start)
    name, value = _values(objective, start)
    least, best = value(start.steps), start
    if not math.isfinite(least):
        raise ValueError(
            f"the objective must be finite for the start, got {least} for {start.name!r}"
        )
    search = Search(objective, value, start, (lo, hi), seed)
    target = lo, hi, f"tuned for its {name} from {start.name!r}; values up to {hi:.6g} on "
    for k in range(starts):
        before = search.least
        for steps in search.candidates(k):
            steps = _lowered(steps, upper, hi)
            reached = value(steps)
            found = _accepted(steps, start, target) if reached < least else None
            if found is not None:
                least, best = reached, found
                search.keep(steps)
        report(k + 1, least)
        if search.ended or (k and abs(search.last - before) <= AGREE):
            break
    if best is start:
        warn(
            f"nothing better than {start.name!r} by its {name} was found with values from "
            f"{lo:.6g} to {hi:.6g}: the start is returned; try wider bounds, more starts or "
            "another start",
            ScheduleWarning,
        )
    return best


def _accepted(steps: Steps, start: Schedule, target: tuple[float, float, str]) -> Schedule | None:
    """Return the schedule of steps that keep the bounds by their exact images, else None."""
    lo, hi, source = target
    lower, upper = interval(start)
    if not _top(steps, upper) <= hi or odd_image(steps, lower, upper)[0] < lo:
        return None
    try:
        with held_back() as hazards:
            accepted = replace(
                start,
                steps=steps,
                name=f"{start.name}, tuned",
                source=f"{source}(0, {start.upper:g}]",
                repeat=None,
            )
    except ValueError:
        return None
    return None if hazards else accepted


def _degrees(steps: Any, degree: Any) -> tuple[int, ...]:
    """Return one degree per step, in order of application."""
    steps = count("steps", steps, most=MOST_TUNED)
    if not isinstance(degree, Iterable) or isinstance(degree, str):
        return tuple([check_degree(degree)] * int(steps))
    degrees = tuple(check_degrees(degree))
    if len(degrees) != steps:
        raise ValueError(
            f"degree must be one number, or as many as steps, got {len(degrees)} degrees, "
            f"{shown(degrees)}, for steps={steps}"
        )
    return degrees


def _best_greedy(spectrum: Spectrum, degrees: tuple[int, ...]) -> Schedule:
    """Return the greedy schedule on [l, 1] with the smallest mean error on a spectrum."""
    from scipy.optimize import minimize_scalar  # here, as its import is slow

    def error(t: float) -> float:
        steps = greedy_steps(math.exp(t), degrees, 1.0)
        found = (
            math.inf if steps is None else mean_deviation(steps, spectrum.values, spectrum.weights)
        )
        return found if math.isfinite(found) else math.inf

    grid = np.linspace(math.log(SMALLEST), math.log(0.99), SCANNED)
    errors = {int(k): error(grid[k]) for k in range(0, SCANNED, COARSE)}
    # All points between the neighbours of the best ones are tried.
    for best in sorted(errors, key=errors.__getitem__)[:2]:
        for k in range(max(best - COARSE, 0), min(best + COARSE, SCANNED - 1) + 1):
            if k not in errors:
                errors[k] = error(grid[k])
    k = min(errors, key=errors.__getitem__)
    if errors.get(k - 1) == math.inf:  # the best lower end is among those that are refused
        greedy(math.exp(grid[k - 1]), degrees)
    refined = minimize_scalar(
        error,
        bounds=(grid[max(k - 1, 0)], grid[min(k + 1, SCANNED - 1)]),
        method="bounded",
        options={"xatol": FINE},
    )
    return greedy(math.exp(refined.x if refined.fun < errors[k] else grid[k]), degrees)


@ignore_float_errors
def for_spectrum(
    density_or_singular_values: Any,
    steps: int,
    *,
    degree: int | Sequence[int] = 5,
    normalisation: str | None = None,
    bounds: tuple[float, float] | None = None,
    starts: int = 4,
    seed: int = 0,
    callback: Callback | None = None,
) -> Schedule:
    """Design the schedule with the smallest mean error on a spectrum, bounded on all of (0, 1].

    The error of a singular value x is ``|1 - s(x)|``. The search begins with the best greedy
    schedule of the same cost, that of the best lower end, and is never worse than it.

    Parameters
    ----------
    density_or_singular_values : array, callable or Spectrum
        Measured singular values or a density on (0, 1], as for :func:`spectrum`, or the result of
        :func:`marchenko_pastur`, :func:`log_uniform` or :func:`power_law`.
    steps : int
        Number of polynomials.
    degree : int or sequence of int, optional
        Their degree, odd; or one degree per step, in the order in which the steps are applied.
    normalisation : {None, "frobenius", "spectral"}, optional
        Norm by which the singular values are divided, see :func:`spectrum`. It becomes the
        normalisation of the schedule.
    bounds : (float, float), optional
        Bounds ``lo <= s(x) <= hi``, with `hi` on all of (0, 1] and `lo` on [l, 1] for the best
        greedy schedule on [l, 1], which must keep them. By default `hi` is 1.1, or that schedule's
        largest value if that is larger, and `lo` half of its smallest.
    starts, seed : int, optional
        See :func:`tune`.
    callback : callable, optional
        Called as by :func:`tune`, with mean errors; first as ``callback(0, value)`` with that of
        the best greedy schedule.

    Returns
    -------
    Schedule
        Its interval begins at the smallest singular value of the spectrum; on all of (0, 1] it is
        positive and at most `hi`. Its source has both mean errors, l and the bounds.

    Raises
    ------
    TypeError
        If the spectrum is not one of the above.
    ValueError
        For singular values or densities that are empty, zero, negative or not finite, a number of
        steps below 1, an even degree, another number of degrees than of steps, an unknown
        normalisation, or bounds that the best greedy schedule does not keep.

    Notes
    -----
    Most of the gain over a fixed interval is that of the best lower end; the rest, by :func:`tune`,
    is a local optimum. If all singular values are so small that the steepest steps are best, the
    result is greedy.

    Examples
    --------
    >>> from polarlib.design import marchenko_pastur
    >>> noise = marchenko_pastur(256, 256)
    >>> s = for_spectrum(noise, 3)
    >>> fixed, best = greedy(1e-3, [5] * 3), greedy(0.0242, [5] * 3)
    >>> [round(mean_error(t, noise), 2) for t in (fixed, best, s)]
    [0.54, 0.14, 0.13]
    >>> mixed = for_spectrum(noise, 3, degree=(3, 5, 7))
    >>> mixed.matmuls, round(mean_error(mixed, noise), 2)
    (9, 0.15)
    """
    goal = spectrum(density_or_singular_values, normalisation=normalisation)
    degrees = _degrees(steps, degree)
    starts, seed = count("starts", starts, most=MOST_STARTS), count("seed", seed, 0)
    report = reporting(callback, "local optimisations", starts)
    start = _best_greedy(goal, degrees)
    bounds = _check_bounds(bounds, start)
    begun = mean_error(start, goal)
    report(0, begun)
    with held_back():  # the best greedy one is a result too
        tuned = tune(goal, start, bounds=bounds, starts=starts, seed=seed, callback=callback)
    errors = begun, mean_error(tuned, goal)
    # In another order the worst error on this interval may be smaller; the objective is the mean.
    with held_back():
        return replace(
            tuned,
            lower=min(float(np.min(goal.values)), 1.0),
            normalisation=cast(Normalisation, goal.normalisation),
            name=f"for {goal.name}",
            source=f"mean error {errors[1]:.4g} on {goal.name}, {errors[0]:.4g} by the best "
            f"greedy schedule, of [{start.lower:.6g}, 1]; at least {bounds[0]:.6g} there, and at "
            f"most {bounds[1]:.6g} on (0, 1]",
        )
