"""Fits of a composition to a function: the smallest worst error over all coefficients together.

Linear programs about the current coefficients in a trust region, from a few starts, to a local
minimum; see :mod:`polarlib.design.targets`.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from polarlib._schedules.images import odd_value
from polarlib._schedules.targets import parse_target, target_value
from polarlib.arrays.settings import ignore_float_errors
from polarlib.design.compose import greedy
from polarlib.design.doubles import BeyondDoublesError

# Points at which the error is sampled, half of them evenly spaced in x and half in log x, each
# dense at the ends; its maxima are then refined. Chosen by experiment: with twice as many the
# errors change in the fourth digit.
SAMPLES = 1200
# Distance of the samples that are constraints in addition to the maxima, so that the error does not
# grow between these.
SPARSE = 16
# Iterations from each start, and those of a round from each of the best; largest number of rounds
# of these, few for one step fewer, and the relative gain of a round after which another follows.
# Chosen by experiment: five degree-5 steps take one to two seconds. With 8 iterations from each
# start and three finalists they take a quarter less, and errors are up to twice as large.
SCOUT, POLISH, FINALISTS, ROUNDS, FEW, ENOUGH = 25, 25, 2, 16, 3, 2e-3
# Number of iterations whose total relative gain below this value ends a search.
STALLED, STALL = 8, 1e-4
# First trust region, relative to the largest term of a step; ends below the last.
RADIUS, LAST_RADIUS = 0.1, 1e-9
# A search ends at this predicted relative gain, and at this error relative to the target, below
# which rounding dominates the linear programs.
GAIN, FLOOR = 1e-6, 1e-12
# Combinations of powers below this size, relative to the largest, are left alone, and where there
# are any the fit is refused: doubles would not hold what it needs of them. By experiment steps of
# degree 31 on a whole interval are then the best ones to 4e-4, and 35 is refused.
DEPENDENT = 1e-13

Steps = list[np.ndarray]
_Start = tuple[tuple[float, ...], ...]


def refuse_dependent(target: str, steps: Steps, lower: float, upper: float) -> None:
    """Refuse steps with powers that are linearly dependent to double precision."""
    x = _samples(target, lower, upper)
    values, aim = _values(steps, x), target_value(target, x)
    if np.abs(values[-1] - aim).max() <= FLOOR * np.abs(aim).max():
        return
    for k, (step, h) in enumerate(zip(steps, values[:-1], strict=True), 1):
        s = np.linalg.svd(_powers(step, h), compute_uv=False)
        if s[-1] <= DEPENDENT * s[0]:
            raise BeyondDoublesError(
                f"step {k}, of degree {2 * len(step) - 1}, is beyond double coefficients: its "
                f"powers are dependent on [{h.min():.3g}, {h.max():.3g}] to their rounding; use "
                "lower degrees and more steps"
            )


# -- starts ----------------------------------------------------------------------------------


def _starts(
    target: str, degrees: tuple[int, ...], lower: float, upper: float, x: np.ndarray
) -> list[Steps]:
    """Return the initial compositions: guesses, each step fitted to a part of the target."""
    kind, parameter = parse_target(target)
    n = len(degrees)
    if kind == "clip":
        # Clip at upper**((n-1)/n), ..., upper**(1/n), 1; and repeatedly at 1.
        limits = [upper ** (k / n) for k in reversed(range(n))]
        return [
            _chain(degrees, x, [functools.partial(np.minimum, limit) for limit in each])
            for each in (limits, [1.0] * n)
        ]
    if kind == "power" and parameter:
        # Equal shares of the exponent; nothing but the sign left to the last step; square roots.
        starts = []
        for share in (abs(parameter) ** (1 / n), abs(parameter) ** (1 / max(n - 1, 1)), 0.5):
            exponents = [share] * (n - 1) + [parameter / share ** (n - 1)]
            starts.append(_chain(degrees, x, [functools.partial(_power, e) for e in exponents]))
        return starts
    # Compositions for the polar factor, the last step fitted.
    ends = (lower,) if kind == "power" else (parameter / 3, parameter, 3 * parameter)
    starts, refused = [], None
    for l in ends:
        try:
            steps = [np.array(step) for step in greedy(min(l, 0.9), degrees).steps]
        except BeyondDoublesError as error:
            refused = error
        else:
            starts.append(_with_last_fitted(steps, x, target))
    if refused is not None and not starts:
        raise refused
    return starts


def _power(e: float, x: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(x, 1e-9) ** e)  # a fit may dip below 0


def _chain(
    degrees: tuple[int, ...], x: np.ndarray, parts: list[Callable[[np.ndarray], np.ndarray]]
) -> Steps:
    """Return steps that each fit a function of the values of the steps before."""
    steps: Steps = []
    for degree, part in zip(degrees, parts, strict=True):
        h = _values(steps, x)[-1]
        steps.append(_nearest(h, part(h), degree))
    return steps


def _with_last_fitted(steps: Steps, x: np.ndarray, target: str) -> Steps:
    h = _values(steps[:-1], x)[-1]
    return [*steps[:-1], _nearest(h, target_value(target, x), 2 * len(steps[-1]) - 1)]


def _nearest(h: np.ndarray, f: np.ndarray, degree: int) -> np.ndarray:
    """Return the odd polynomial in h that is nearest to f in least squares."""
    terms = h[:, None] ** (2 * np.arange(degree // 2 + 1) + 1)
    size = np.abs(terms).max(axis=0)
    return np.asarray(np.linalg.lstsq(terms / size, f, rcond=None)[0] / size)


# -- fitting ---------------------------------------------------------------------------------


def _samples(target: str, lower: float, upper: float) -> np.ndarray:
    kind, parameter = parse_target(target)
    # Below that size the target is a straight line, or it is the lower end.
    small = {"clip": 0.01, "smooth_sign": parameter / 30}.get(kind, lower)
    z = (1 - np.cos(np.linspace(0, np.pi, SAMPLES // 2))) / 2
    points = [*(lower + (upper - lower) * z), *(small * (upper / small) ** z), 1.0]
    return np.unique(np.clip(points, lower, upper))


def _values(steps: Steps, x: np.ndarray) -> list[np.ndarray]:
    """Return the values before every step, and after the last."""
    found = [x]
    for step in steps:
        found.append(odd_value(tuple(step), found[-1]))
    return found


def fit(
    target: str,
    degrees: tuple[int, ...],
    lower: float,
    upper: float,
    report: Callable[[int, float], Any],
) -> Steps:
    """Return a local minimum of the worst error over all coefficients, the best of a few starts."""
    k, least = 0, math.inf
    scouted: list[tuple[Steps, float]] = []

    def descended(start: _Start, iterations: int) -> tuple[Steps, float]:
        nonlocal k, least
        steps, error = _descended(target, start, lower, upper, iterations)
        k, least = k + 1, min(least, error)
        report(k, least)
        return steps, error

    def polished(finalists: int, rounds: int) -> Steps:
        best = math.inf, scouted[0][0]
        for steps, error in scouted[:finalists]:
            for _ in range(rounds):
                before = error
                steps, error = descended(_frozen(steps), POLISH)
                best = min(best, (error, steps), key=operator.itemgetter(0))
                # It ends if three such rounds would not come below the best, or gain too little.
                if 1 - error / before <= ENOUGH or error * (error / before) ** 3 > best[0]:
                    break
        return best[1]

    for n in range(1, len(degrees) + 1):
        fewer = _frozen(polished(1, FEW)) if scouted else None
        begin = _begin(target, lower, upper, degrees[:n], fewer)
        scouted = sorted((descended(start, SCOUT) for start in begin), key=operator.itemgetter(1))
    return polished(FINALISTS, ROUNDS)


def _frozen(steps: Steps) -> _Start:
    return tuple(tuple(map(float, step)) for step in steps)


@functools.lru_cache(maxsize=64)
def _begin(
    target: str, lower: float, upper: float, degrees: tuple[int, ...], fewer: _Start | None
) -> list[_Start]:
    """Return all starts, among them the fit with one step fewer, so that the error decreases."""
    x = _samples(target, lower, upper)
    begin = _starts(target, degrees, lower, upper, x)
    if fewer is not None:
        identity = np.eye(1, degrees[-1] // 2 + 1)[0]
        longer = [*map(np.array, fewer), identity]
        begin += [longer, _with_last_fitted(longer, x, target)]
        if len(set(degrees)) == 1:
            begin.append([identity, *longer[:-1]])
    return [_frozen(steps) for steps in begin]


@functools.lru_cache(maxsize=1024)
def _descended(
    target: str, start: _Start, lower: float, upper: float, iterations: int
) -> tuple[Steps, float]:
    steps = [np.array(step) for step in start]
    return _descend(target, steps, _samples(target, lower, upper), iterations)


def _extrema(target: str, steps: Steps, x: np.ndarray) -> np.ndarray:
    """Locate the largest errors: samples at local maxima, and the vertices of parabolas."""
    error = np.abs(_values(steps, x)[-1] - target_value(target, x))
    padded = np.concatenate([[-1.0], error, [-1.0]])
    k = np.flatnonzero((padded[1:-1] >= padded[:-2]) & (padded[1:-1] >= padded[2:]))
    inner = k[(k > 0) & (k < len(x) - 1)]
    a, b, c = x[inner - 1], x[inner], x[inner + 1]
    left = (b - a) * (error[inner] - error[inner + 1])
    right = (b - c) * (error[inner] - error[inner - 1])
    bottom = left - right
    safe = np.where(bottom == 0, 1.0, bottom)
    vertex = b - ((b - a) * left - (b - c) * right) / (2 * safe)
    points = np.concatenate([x[k], np.clip(vertex, a, c)])
    return np.unique(points[np.isfinite(points)])  # an error that overflows has no vertex


def _jacobian(steps: Steps, values: list[np.ndarray], turns: list[np.ndarray]) -> np.ndarray:
    """Return the derivatives of the composition by all coordinates, by the chain rule."""
    columns, outer = [], np.ones_like(values[0])
    for step, h, turn in zip(reversed(steps), values[-2::-1], reversed(turns), strict=True):
        exponents = 2 * np.arange(len(step)) + 1
        columns.append(outer[:, None] * (h[:, None] ** exponents @ turn))
        outer = outer * (h[:, None] ** (exponents - 1) @ (exponents * step))
    return np.concatenate(columns[::-1], axis=1)


def _descend(target: str, steps: Steps, x: np.ndarray, iterations: int) -> tuple[Steps, float]:
    """Solve linear programs in a trust region; return the steps and their worst error.

    M. R. Osborne and G. A. Watson, An algorithm for minimax approximation in the nonlinear case,
    Comput. J. 12 (1969) 63-68, with a box as the trust region.
    """
    from scipy.optimize import linprog  # here, as its import is slow

    @ignore_float_errors  # values that overflow are rejected
    def worst(steps: Steps) -> tuple[float, np.ndarray]:
        points = _extrema(target, steps, x)
        both = np.concatenate([points, x])  # so that NaN is seen
        off = _values(steps, both)[-1] - target_value(target, both)
        return float(np.max(np.abs(off))), points

    error, maxima = worst(steps)
    radius, seen = RADIUS, [maxima]
    floor = FLOOR * np.abs(target_value(target, x)).max()
    passed = [error]
    for k in range(iterations):
        if not floor < error < math.inf:
            break
        if k >= STALLED and error > (1 - STALL) * passed[k - STALLED]:
            break
        points = np.concatenate([*seen, x[::SPARSE]])
        values = _values(steps, points)
        turns = [_coordinates(step, h) for step, h in zip(steps, values[:-1], strict=True)]
        slopes = _jacobian(steps, values, turns) / error
        off = (values[-1] - target_value(target, points)) / error
        level = -np.ones((len(points), 1))
        n = slopes.shape[1]
        program = linprog(
            np.eye(1, n + 1, n)[0],
            A_ub=np.block([[slopes, level], [-slopes, level]]),
            b_ub=np.concatenate([-off, off]),
            bounds=[(-radius, radius)] * n + [(0, None)],
            method="highs",
            options={"presolve": False},  # nothing is redundant, and it takes as long as the rest
        )
        if program.x is None:
            radius /= 4
            passed.append(error)
            continue
        foreseen = 1 - program.x[-1]
        if foreseen <= GAIN:
            break
        parts = np.split(program.x[:-1], np.cumsum([len(step) for step in steps])[:-1])
        tried = [s + turn @ z for s, turn, z in zip(steps, turns, parts, strict=True)]
        new, maxima = worst(tried)
        gain = (1 - new / error) / foreseen
        if gain > 0.05:
            steps, error, seen = tried, new, [maxima]
        else:  # the next program includes the points where this one failed
            seen.append(maxima)
        passed.append(error)
        radius = min(2 * radius, 1.0) if gain > 0.7 else radius if gain > 0.05 else radius / 4
        if radius < LAST_RADIUS:
            break
    return steps, error


def _powers(step: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Return powers of a step at points, the largest of which is scaled to 1."""
    scaled = h[:, None] / np.abs(h).max()
    return np.asarray(scaled ** (2 * np.arange(len(step)) + 1) / math.sqrt(len(h)))


def _coordinates(step: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Return changes of coefficients that change the step by orthogonal functions of its size.

    Powers are nearly dependent, so that in coefficients the trust region would be badly scaled.
    """
    power = 2 * np.arange(len(step)) + 1
    largest = np.abs(h).max()
    _, s, vh = np.linalg.svd(_powers(step, h), full_matrices=False)
    inverse = np.where(s > DEPENDENT * s[0], 1 / np.maximum(s, DEPENDENT * s[0]), 0.0)
    size = np.abs(odd_value(tuple(step), h)).max()
    return np.asarray(vh.T * inverse * size / largest ** power[:, None])
