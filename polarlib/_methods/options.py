"""What a caller may choose of a schedule, checked, and what "auto" stands for."""

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

# The Gram form must save this much before "auto" takes it: its small products run less efficiently.
GRAM_SAVES = 0.9


# -- validation ------------------------------------------------------------------------------


def resolve_schedule(schedule: Named, steps: int | None, precision: str) -> Schedule:
    """Return the schedule of a name or a file (or the one given) with a number of steps.

    "auto" is the library's own for the number format, "adaptive" that of each matrix.

    Raises
    ------
    TypeError, ValueError
        For something that is neither a name, a path nor a Schedule, an unknown name, a file that
        holds no schedule, a number of steps that it does not have, or a schedule for inverse roots,
        which has no odd matrix function.
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
                f"schedule {schedule.name!r} has stride {schedule.stride}: it is for inverse "
                f"{schedule.stride}-th roots of Hermitian matrices, polarlib.inverse_root; a "
                "schedule for singular values has stride 2"
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
    """Refuse what is chosen for polynomials only."""
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
    """Refuse a normalisation that the schedule was not made for."""
    if normalisation is None:
        return schedule.normalisation
    normalisation = choice("normalisation", normalisation, NORMALISATIONS)
    if isinstance(schedule, Adaptive) and normalisation != schedule.normalisation:
        raise ValueError(
            f"schedule {schedule.name!r} chooses by moments of matrices of normalisation="
            f"{schedule.normalisation!r}, got {normalisation!r}; leave normalisation out"
        )
    # Bounds of the largest singular value only say where in (0, 1] the others lie; scaled columns
    # have another spectrum altogether.
    problems = {BOUNDS[kind].growth is None for kind in (normalisation, schedule.normalisation)}
    if normalisation != "none" and len(problems) == 2:
        raise ValueError(
            f"schedule {schedule.name!r} was made for normalisation="
            f"{schedule.normalisation!r}, not {normalisation!r}; leave normalisation out, or "
            "pass 'none' for an input that is already scaled"
        )
    return normalisation


def warn_of_hazards(schedule: Schedule, precision: str, normalisation: str) -> None:
    """Warn where rounding or the input can leave the schedule's range."""
    if not schedule.is_safe_in(precision):
        warn(
            f"schedule {schedule.name!r} diverges above {schedule.divergence_limit:.6f}, and one "
            f"rounding to {precision} can go beyond: it has no safety factor for this format; use "
            "schedule='auto', or a wider precision",
            ScheduleWarning,
        )
    if normalisation != "none" and schedule.upper * schedule.input_safety < 1:
        warn(
            f"schedule {schedule.name!r} is valid for singular values up to {schedule.upper}, and "
            f"{normalisation} normalisation lets them reach 1 (a rank-one matrix does): such "
            "directions may change sign or exceed 2",
            ScheduleWarning,
        )


def restarts_of(
    schedule: Schedule, precision: str, gram_precision: str | None = None
) -> tuple[int, ...]:
    """Restarts of the Gram form: what "auto" is, for whichever steps a matrix may take."""
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
        # In products of n x n matrices, of which a product with the large one is worth m / n.
        cost = {}
        for name in ("plain", "gram"):
            with_large, among_small = product_counts(schedule.steps, form=name, restarts=at)
            cost[name] = aspect * with_large + among_small
        form = "gram" if cost["gram"] < GRAM_SAVES * cost["plain"] else "plain"
    return form, at
