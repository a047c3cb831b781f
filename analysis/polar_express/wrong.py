"""Wrong methods that the checks of this study must notice."""

from __future__ import annotations

from common import Wrong

import polarlib
from polarlib import design


def too_high(lower: float, steps: int) -> polarlib.Schedule:
    return design.greedy(min(100 * lower, 0.9), [5] * steps)


def cushioned(lower: float, steps: int) -> polarlib.Schedule:
    return design.greedy(lower, [5] * steps, cushion=0.02407327424182761)


WRONG = (
    Wrong(
        "the cushion 1/10 of the algorithm's text",
        part="coefficients",
        replace={"CUSHION": 0.1},
        figures=("coefficients a", "coefficients b", "coefficients c"),
    ),
    Wrong(
        "no safety factor",
        part="coefficients",
        replace={"SAFETY": 0.0},
        figures=("limit with safety factor, below 1 by",),
    ),
    Wrong(
        "a lower end 100 times too high",
        part="first_experiment",
        replace={"best": too_high},
        figures=(
            "Polar Express after 11 iterations",
            "iterations, Newton-Schulz over Polar Express",
            "worst of Polar Express over Jordan",
        ),
    ),
    Wrong(
        "a bound that is wrong by 1000",
        part="first_experiment",
        replace={"WRONG_BY": 1000},
        figures=("overtakes Jordan, bound wrong by 100",),
    ),
    Wrong(
        "division by the Frobenius norm",
        part="matrix",
        replace={"NORMALISATION": "frobenius"},
        figures=("matrix against scalars",),
    ),
    Wrong(
        "the exponent (d + 1)^T of the proof",
        part="rates",
        replace={"exponent": lambda degree, steps: (degree + 1.0) ** steps},
        figures=("least error over the theorem's bound",),
    ),
    Wrong(
        "degree 3 in both places",
        part="rates",
        replace={"DEGREES": (3, 3)},
        figures=("order of convergence, degrees 3 and 5",),
    ),
    Wrong(
        "the theorem with the lower end itself",
        part="too_high",
        replace={"covered": lambda smallest, lower: lower},
        figures=("error over the bound, lower bound 100 times too high",),
    ),
    Wrong(
        "the cushion of the printed list",
        part="optimality",
        replace={"best": cushioned},
        figures=("certified error minus least error", "best rival over greedy"),
    ),
)
