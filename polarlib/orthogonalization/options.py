"""Options of orthogonalize: their checks, and the values of "auto"."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import polarlib.published as published
from polarlib._methods.options import (
    check_normalisation,
    check_rational,
    choose_form,
    resolve_schedule,
    warn_of_hazards,
)
from polarlib._schedules.schedule import Schedule
from polarlib.arrays.checks import MOST_ROWS, count
from polarlib.arrays.formats import format_of
from polarlib.arrays.ops import Ops
from polarlib.orthogonalization.heads import block_shape
from polarlib.published import ADAPTIVE, Named

Array = Any

# Types that name a schedule; anything else must be an array of coefficients.
NAMED = (str, Schedule, os.PathLike)
# Schedules that depend on the number format.
BY_FORMAT = ("auto", ADAPTIVE)


def checked_heads(heads: Any) -> int | None:
    """Return a number of heads; None for one head, which is the matrix itself."""
    checked = count("heads", heads, most=MOST_ROWS)
    return None if checked == 1 else checked


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of :func:`polarlib.orthogonalize` as given by the caller."""

    schedule: Named = "auto"
    steps: int | None = None
    form: str = "auto"
    restarts: str | Sequence[int] = "auto"
    precision: str | None = None
    gram_precision: str | None = None
    normalisation: str | None = None
    heads: int | None = None

    def __post_init__(self) -> None:
        # Read here, since caches have the options as their keys and files may change.
        object.__setattr__(self, "schedule", published.opened(self.schedule))
        if self.heads is not None:
            object.__setattr__(self, "heads", checked_heads(self.heads))

    def resolved(self, x: Array, ops: Ops, *, warns: bool = True) -> dict[str, Any]:
        """Return the arguments of `apply`: checked options, with a value for each "auto"."""
        # For torch's float32, the format in which torch is set to multiply: an iteration that is
        # designed for another one may diverge (docs/decisions/0012).
        precision = ops.multiplier(x) if self.precision is None else format_of(self.precision).name
        shape = block_shape(tuple(x.shape), self.heads)
        return self.resolved_for(shape, precision, warns=warns)

    def resolved_for(
        self, shape: tuple[int, ...], precision: str, *, warns: bool = True
    ) -> dict[str, Any]:
        """Return the same for a shape and a format of the iteration."""
        gram_precision, form, restarts = self.gram_precision, self.form, self.restarts
        coarsest = precision
        if gram_precision is not None:
            gram_precision = format_of(gram_precision).name
            if form != "plain":  # the schedule must have a margin for both roundings
                both = precision, gram_precision
                coarsest = max(both, key=lambda name: format_of(name).epsilon)
        chosen = resolve_schedule(self.schedule, self.steps, coarsest)
        kind: str = chosen.normalisation
        if chosen.is_rational:
            check_rational(chosen, form, restarts, gram_precision, self.normalisation)
            restarts = ()
        else:
            kind = check_normalisation(chosen, self.normalisation)
            form, restarts = choose_form(chosen, shape, form, restarts, precision, gram_precision)
            if form == "plain" and coarsest != precision:
                chosen, coarsest = resolve_schedule(self.schedule, self.steps, precision), precision
            if warns:
                warn_of_hazards(chosen, coarsest, kind)
        return {
            "schedule": chosen,
            "precision": precision,
            "gram_precision": gram_precision,
            "kind": kind,
            "form": form,
            "restarts": restarts,
        }

    def packed(self) -> str:
        """Return the options as JSON, for saved programs of torch; "" for rational schedules.

        Options are checked here. JSON preserves every bit of a schedule. "auto" is resolved when
        the program runs.
        """
        # Names are resolved in single precision, on which only "auto" depends; "auto" is kept.
        precision = self.precision or "float32"
        chosen = resolve_schedule(self.schedule, self.steps, precision)
        if chosen.is_rational:
            return ""
        for name in (self.precision, self.gram_precision):
            if name is not None:
                format_of(name)
        check_normalisation(chosen, self.normalisation)
        # Only for its checks: the form is chosen when the program runs, for its shape.
        given = self.form, self.restarts, precision, self.gram_precision
        _, at = choose_form(chosen, (1, 1), *given)
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if not isinstance(self.restarts, str):
            kept["restarts"] = at
        if not (isinstance(self.schedule, str) and self.schedule in BY_FORMAT):
            kept |= {"schedule": dataclasses.asdict(chosen), "steps": None}
        return json.dumps(kept)


def rule_of(resolved: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the derivative of a schedule, which is in full precision."""
    rule = {name: resolved[name] for name in ("schedule", "form", "restarts")}
    return {**rule, "normalisation": resolved["kind"]}
