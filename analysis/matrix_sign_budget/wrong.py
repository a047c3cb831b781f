"""Wrong methods that the checks of this study must notice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from common import Wrong

from polarlib import design

IN_BLOCKS = {degree: cost for degree, cost in design.costs().items() if degree}


def newton_schulz(degree: int) -> float:
    """The slope at 0 of the Taylor polynomial of a degree."""
    return math.prod((2 * k + 1) / (2 * k) for k in range(1, (degree - 1) // 2 + 1))


def equal_degrees(
    lower: float, most: float, *, degrees: Sequence[int], cost: Mapping[int, float]
) -> list[design.Choice]:
    """The frontier of steps of degree 5 alone."""
    return design.frontier(lower, most, degrees=[5], cost={5: cost[5]})


WRONG = (
    Wrong(
        "without the division by the largest value",
        part="published",
        replace={"largest": lambda s, k: 1.0},
        figures=tuple(
            f"degrees 7 and {last} on [{lower}, 1], step {step}"
            for lower, last in ((0.5, 9), (0.25, 15))
            for step in (1, 2)
        ),
    ),
    Wrong(
        "the step of degree 3 last",
        part="published",
        replace={"MIXED": (5, 5, 5, 5, 5, 3)},
        figures=("errors at 1e-3: five of degree 5; one of degree 3 before",),
    ),
    Wrong(
        "degree 5 alone",
        part="search",
        replace={"frontier": equal_degrees},
        figures=("best of all sequences over the one found, 1 - E, minus 1",),
    ),
    Wrong(
        "Newton–Schulz",
        part="rates",
        replace={"growth": newton_schulz},
        figures=("growth of tiny singular values, degrees 3 and 5",),
    ),
    Wrong(
        "products of an evaluation in blocks",
        part="rates",
        replace={"HORNER": IN_BLOCKS},
        figures=("fastest degree, one product a power",),
    ),
    Wrong(
        "products of an evaluation in blocks",
        part="degrees",
        replace={"HORNER": IN_BLOCKS},
        figures=("share of degree 5 among the best degrees, condition 1e3 and above",),
    ),
    Wrong(
        "one product a power",
        part="rates",
        replace={"BLOCKS": {degree: (degree + 1) // 2 for degree in range(3, 27, 2)}},
        figures=("fastest degree, in blocks",),
    ),
)
