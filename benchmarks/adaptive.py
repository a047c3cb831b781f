"""Regenerate the steps of schedule="adaptive": polarlib/data/adaptive.toml.

    python benchmarks/adaptive.py [--out FILE]

Two steps are the same for every matrix, the head: those of ``design.for_precision`` for an interval
[l, 1] with l in the middle of the range. The others, the tail, are designed for each of a grid of
lower ends, for the state that rounding leaves after the head. Which tail a matrix takes, the rule
says; docs/guide/adaptive.md derives it, and benchmarks/nearest.py fits it and measures what it
gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from rich.progress import track

from polarlib import design
from polarlib._schedules.images import odd_image, turning_points
from polarlib._schedules.rounding import landing
from polarlib.arrays.formats import format_of
from polarlib.design.rounding import (
    Rounding,
    _DesignState,
    first_state,
    last_step,
    next_step,
)
from polarlib.files.whole import write_whole

Step = tuple[float, ...]

OUT = Path(__file__).parents[1] / "polarlib" / "data" / "adaptive.toml"
FORMATS = ("bfloat16", "float16", "float32")
HEAD_STEPS, HEAD_LOWER = 2, 3e-3
TAILS = 8
# At this lower end the state after the head is that of the lower end itself, which the head
# multiplies by its slope; the minima of the head are above it.
NEAR_ZERO = 1e-4


class Rule(NamedTuple):
    """log l = c0 + c1 T + c2 V + c3 V / max(T, floor), clipped to [log lower, log upper]."""

    coefficients: tuple[float, float, float, float]
    floor: float
    lower: float
    upper: float


# Fitted by `python benchmarks/nearest.py --fit`.
RULE = Rule((0.029, 5.854, -6.59, -2.651), 0.2, 1e-3, 3.2e-3)
# Lower ends of the first and the last tail, for each number of steps.
RANGES = {5: (RULE.lower, RULE.upper), 6: (7e-4, 2e-3)}
TEXT = """\
# The steps of schedule="adaptive", made by `python benchmarks/adaptive.py`. A step is [a, b, c]:
# p(x) = a x + b x^3 + c x^5. Every matrix takes the head; the steps after it are interpolated
# between the tails, where a position on their grid is found from the Gram matrix G before them:
# with T = tr G / n and V = sqrt(||G||_F^2 / n - T^2),
# log l = c0 + c1 T + c2 V + c3 V / max(T, floor), clipped to [log lower, log upper].
# The position is (log l - log lower) / (log upper - log lower), from the first tail to the last.
"""


def followed(state: _DesignState, step: Step, f: Rounding) -> _DesignState:
    """The state after a step that is given."""
    turns = turning_points(step)
    return _DesignState(
        (*state.steps, step),
        *landing(step, state.lower, state.upper, turns, f.unit, f.upward),
        odd_image([step], *state.exact, extended=False),
        state.reached,
    )


def head(precision: str) -> tuple[Step, ...]:
    """The first steps of the best schedule of five steps for the middle of the range."""
    return design.for_precision(precision, HEAD_LOWER, steps=5).steps[:HEAD_STEPS]


def tail(precision: str, lower: float, steps: int, first: Sequence[Step]) -> tuple[Step, ...]:
    """The best steps after `first` for [lower, 1], under the rounding of a format.

    `lower` stands for the smallest singular value after the head, over the slope of the head. A
    tail is also designed for more than the minima of the head leave: then values near these end
    less near to 1, others nearer.
    """
    f = Rounding.of(format_of(precision))
    state = first_state(NEAR_ZERO, f)
    for step in first:
        state = followed(state, step, f)
    further = lower / NEAR_ZERO
    low, high = state.exact
    state = state._replace(lower=state.lower * further, exact=(low * further, high))
    for _ in range(steps - len(first) - 1):
        state = next_step(state, 5, f)
    return last_step(state, 5, f)[1].steps[len(first) :]


def lower_ends(steps: int) -> np.ndarray:
    """Lower ends for which the tails are designed, equidistant in their logarithm."""
    return np.geomspace(*RANGES[steps], TAILS)


def tables(precision: str, steps: int) -> tuple[tuple[Step, ...], list[tuple[Step, ...]]]:
    """The head and the tails of a format and a number of steps."""
    first = head(precision)
    return first, [tail(precision, float(l), steps, first) for l in lower_ends(steps)]


def _written(steps: Sequence[Step]) -> str:
    return repr([list(step) for step in steps])


def text(rule: Rule = RULE) -> str:
    """The whole file."""
    parts = [TEXT]
    ends = "\n".join(f"{key} = {getattr(rule, key)!r}" for key in ("floor", "lower", "upper"))
    parts.append(f"[rule]\ncoefficients = {list(rule.coefficients)!r}\n{ends}\n")
    jobs = [(name, k) for name in FORMATS for k in RANGES]
    for name, k in track(jobs, description="designs"):
        first, tails = tables(name, k)
        rows = "\n".join(f"  {_written(steps)}," for steps in tails)
        parts.append(f"[{name}.{k}]\nhead = {_written(first)}\ntails = [\n{rows}\n]\n")
    return "\n".join(parts)


def main(out: Annotated[Path, typer.Option(help="Where to write.")] = OUT) -> None:
    """Design all tails and write the file."""
    made = text().encode()
    write_whole(out, lambda file: file.write(made))


if __name__ == "__main__":
    typer.run(main)
