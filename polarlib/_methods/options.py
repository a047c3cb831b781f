"""Options of a schedule, checked, and the choices of "auto"."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import polarlib.design as design
import polarlib.published as published
from polarlib._methods import RATIONAL
from polarlib._schedules.products import product_counts
from polarlib._schedules.schedule import Schedule
from polarlib._schedules.validity import NORMALISATIONS
from polarlib.arrays.checks import choice, count, items, shown
from polarlib.arrays.settings import warn
from polarlib.design.restarts import common_restarts
from polarlib.engine.adaptive import Adaptive, adaptive_schedule
from polarlib.engine.normalise import BOUNDS
from polarlib.published import Named
from polarlib.result import ScheduleWarning

# Largest relative cost of the Gram form for which "auto" uses it; small products run less
# efficiently.
GRAM_SAVES = 0.9


# -- validation ------------------------------------------------------------------------------


def resolve_schedule(schedule: Named, steps: int | None, precision: str) -> Schedule:
    """Return the schedule with a name, in a file, or the given one, with a number of steps.

    "auto" is the default schedule of the number format, "adaptive" has coefficients per matrix.

    Raises
    ------
    TypeError
        If `schedule` is not a name, a path or a Schedule.
    ValueError
        For an unknown name, a file without a schedule, a number of steps that the schedule does not
        have, or a schedule for inverse roots, which is not an odd function.
    """
    if isinstance(schedule, str) and schedule == "auto":
        return published.default_schedule(precision, steps=steps)
    if isinstance(schedule, str) and schedule == published.ADAPTIVE:
        return adaptive_schedule(precision, steps)
    if isinstance(schedule, str) and schedule in RATIONAL:
        schedule = RATIONAL[schedule]()
    if isinstance(schedule, str | os.PathLike):
        schedule, steps = published.schedule(schedule, steps), None
    if isinstance(schedule, Schedule):
        if schedule.stride != 2:
            raise ValueError(
                f"schedule must have stride 2, for singular values, got {schedule.name!r} with "
                f"stride {schedule.stride}; pass it to polarlib.inverse_root"
            )
        return schedule if steps is None else schedule.truncate(steps)
    raise TypeError(f"schedule must be a name, a path or a Schedule, got {shown(schedule)}")


def check_rational(
    schedule: Schedule,
    form: str,
    restarts: Any,
    gram_precision: str | None,
    normalisation: str | None,
) -> None:
    """Raise ValueError for options of polynomial schedules, if the schedule is rational."""
    given = {
        "form": (form, "auto"),
        "restarts": (restarts, "auto"),
        "gram_precision": (gram_precision, None),
        "normalisation": (normalisation, schedule.normalisation),
    }
    for name, (value, allowed) in given.items():
        if value is not None and not (isinstance(value, str) and value == allowed):
            raise ValueError(
                f"{name}={shown(value)} is for schedules of polynomials; schedule "
                f"{schedule.name!r} is rational: leave {name} out"
            )


def check_normalisation(schedule: Schedule, normalisation: str | None) -> str:
    """Return the normalisation; ValueError if the schedule is designed for another one."""
    if normalisation is None:
        return schedule.normalisation
    normalisation = choice("normalisation", normalisation, NORMALISATIONS)
    if isinstance(schedule, Adaptive) and normalisation != schedule.normalisation:
        raise ValueError(
            f"normalisation must be {schedule.normalisation!r} for schedule {schedule.name!r}, got "
            f"{normalisation!r}; leave normalisation out"
        )
    # Normalisations by a bound of the norm scale the spectrum within (0, 1]; normalisations of
    # columns change it otherwise.
    problems = {BOUNDS[kind].growth is None for kind in (normalisation, schedule.normalisation)}
    if normalisation != "none" and len(problems) == 2:
        raise ValueError(
            f"normalisation must be {schedule.normalisation!r} for schedule {schedule.name!r}, got "
            f"{normalisation!r}; leave normalisation out, or pass 'none' for a scaled input"
        )
    return normalisation


def warn_of_hazards(schedule: Schedule, precision: str, normalisation: str) -> None:
    """Warn if rounding or the input can exceed the range of the schedule."""
    if not schedule.is_safe_in(precision):
        warn(
            f"schedule {schedule.name!r} diverges above {schedule.divergence_limit:.6f}, and has "
            f"no safety factor for rounding to {precision}; use schedule='auto', or a wider "
            "precision",
            ScheduleWarning,
        )
    if normalisation != "none" and schedule.upper * schedule.input_safety < 1:
        warn(
            f"schedule {schedule.name!r} is valid for singular values up to {schedule.upper}, but "
            f"with normalisation={normalisation!r} they can be 1 (for rank one), and such values "
            "may change sign or exceed 2; use schedule='auto'",
            ScheduleWarning,
        )


def restarts_of(
    schedule: Schedule, precision: str, gram_precision: str | None = None
) -> tuple[int, ...]:
    """Return the restarts of the Gram form for "auto", valid for all steps that may be chosen."""
    if isinstance(schedule, Adaptive):
        return common_restarts(schedule.each, precision, gram_precision)
    return design.restarts(schedule, precision, gram_format=gram_precision)


def choose_form(
    schedule: Schedule,
    shape: tuple[int, ...],
    form: str,
    restarts: str | Sequence[int],
    precision: str,
    gram_precision: str | None = None,
) -> tuple[str, tuple[int, ...]]:
    """Return the form of the iteration and its restarts, checked and with "auto" decided."""
    form = choice("form", form, ("auto", "plain", "gram"))
    if isinstance(restarts, str):
        if restarts != "auto":
            raise ValueError(
                f"restarts must be 'auto' or a sequence of step numbers, got {shown(restarts)}"
            )
        at: tuple[int, ...] = ()
        if form != "plain":
            at = restarts_of(schedule, precision, gram_precision)
    else:
        last = len(schedule)
        what = f"'auto' or a sequence of step numbers from 1 to {last}"
        given = [
            count("a number of restarts", k, 1, last, f"an integer from 1 to {last}")
            for k in items("restarts", restarts, what, least=0)
        ]
        at = tuple(sorted({k for k in given if k < last}))
    if form == "auto":
        small, large = sorted(shape[-2:])
        aspect = large / max(small, 1)
        # In products of n x n matrices; a product with the m x n matrix counts m / n.
        cost = {}
        for name in ("plain", "gram"):
            with_large, among_small = product_counts(schedule.steps, form=name, restarts=at)
            cost[name] = aspect * with_large + among_small
        form = "gram" if cost["gram"] < GRAM_SAVES * cost["plain"] else "plain"
    return form, at
