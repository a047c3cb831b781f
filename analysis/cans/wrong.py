"""Wrong methods that the checks of this study must notice."""

from __future__ import annotations

import math

from common import Wrong

import polarlib
from polarlib import design

KEEP = 0.02407327424182761  # the cushion of Polar Express


def uncentred(l: float, u: float) -> tuple[tuple[float, float], float]:
    """The best cubic scaled to a largest value of 1, as a rational step is."""
    alpha = math.sqrt(3 / (l * l + l * u + u * u))
    s = l * u * (l + u) * alpha**3
    return (1.5 * alpha, -0.5 * alpha**3), 1 - s / 2


class NewtonSchulz:
    """What `design.best` returns, of the Newton-Schulz polynomial of a degree on [l, 1]."""

    def __init__(self, degree: int, l: float, u: float = 1.0) -> None:
        (self.coefficients,) = polarlib.schedule(f"newton_schulz_{degree}", steps=1).steps
        self.rho = sum(c * l ** (2 * i + 1) for i, c in enumerate(self.coefficients))
        self.error = 1 - self.rho


def cushioned(lower: float, degrees: list[int]) -> polarlib.Schedule:
    return design.greedy(lower, degrees, cushion=KEEP)


def shifted(lower: float, degrees: list[int]) -> polarlib.Schedule:
    return design.greedy(1e-3, degrees)


def one_sided(steps: int, delta: float, *, degree: int = 5) -> polarlib.Schedule:
    """An image in [1 - delta, 1] up to scale, in place of [1 - delta, 1 + delta]."""
    return design.band(steps, delta / (2 - delta), degree=degree)


ERRORS = tuple(f"degree {degree}: error of one step" for degree in (3, 5))
LIMITS = tuple(f"degree {degree}: limit of rho / l" for degree in (3, 5))
CUBICS = tuple(f"nine steps of degree 3 on [0.00085, 1], {c}" for c in "ab")

WRONG = (
    Wrong(
        "the cubic scaled to a largest value of 1",
        part="one_step",
        replace={"cubic": uncentred},
        figures=("closed form of the cubic against the exchange",),
    ),
    Wrong(
        "Newton–Schulz",
        part="one_step",
        replace={"best": NewtonSchulz},
        figures=(*ERRORS, *LIMITS),
    ),
    Wrong(
        "the cushion of Polar Express",
        part="published",
        replace={"compose": cushioned},
        figures=(
            "five steps of degree 5 on [0.001, 1]",
            "errors on [0.001, 1], exact and with four decimals",
        ),
    ),
    Wrong(
        "the lower end 0.001",
        part="published",
        replace={"compose": shifted},
        figures=CUBICS,
    ),
    Wrong(
        "a lower end ten times too small",
        part="convergence",
        replace={"ASSUMED": 0.1},
        figures=("products of CANS of degree 3 over those of Newton–Schulz",),
    ),
    Wrong(
        "an image in [1 − δ, 1]",
        part="bands",
        replace={"widest": one_sided},
        figures=("bands: error over delta, farthest from 1 by",),
    ),
    Wrong(
        "the widest band on [a, 1]",
        part="bands",
        replace={"stationary": lambda delta: design.band(1, delta)},
        figures=("stationary step of the band [0.7, 1.3]",),
    ),
)
