"""Wrong methods that the checks of this study must notice."""

from __future__ import annotations

from common import Wrong

import polarlib
from polarlib import Schedule, design
from polarlib.arrays.formats import FORMATS


def with_safety(name: str, precision: str = "bfloat16") -> Schedule:
    """Polar Express with its safety factor of 1.01, whatever the name."""
    return polarlib.schedule("polar_express", steps=5)


def epsilon(precision: str) -> float:
    """The distance from 1 to the next number, twice the unit roundoff."""
    return 2 * FORMATS[precision].unit_roundoff


def half_safety(precision: str) -> Schedule:
    return design.greedy(1e-3, [5] * 5, cushion=0.01, safety=FORMATS[precision].unit_roundoff)


def no_cushion(precision: str) -> Schedule:
    return design.greedy(1e-3, [5] * 5, cushion=0.0, safety=2 * FORMATS[precision].unit_roundoff)


WRONG = (
    Wrong(
        "lists with a safety factor",
        part="explosions",
        replace={"found": with_safety},
        figures=(
            "share of rank-one inputs that fail, polar_express_raw, cans",
            "median power of ten of what fails, polar_express_raw, cans",
            "of 50 rank-one inputs, how many fail, polar_express_raw",
            "of 50 rank-one inputs, how many fail, cans",
        ),
    ),
    Wrong(
        "the machine epsilon 2u in place of u",
        part="floors",
        replace={"unit_of": epsilon},
        figures=(
            "noise floor in units of u, float16, bfloat16, float8_e4m3, float8_e5m2",
            "noise floor in units of u sqrt(n), float32, float64",
        ),
    ),
    Wrong(
        "the sets without Jordan's",
        part="survivors",
        replace={"SAFE": ("polar_express", "you", "for_precision")},
        figures=("largest singular value of the sets with room, hostile spectra",),
    ),
    Wrong(
        "a safety factor of 1 + u",
        part="recipe",
        replace={"designed": half_safety},
        figures=("recipe: error, bfloat16, float16", "recipe, bfloat16: divergence limit"),
    ),
    Wrong(
        "no cushion",
        part="recipe",
        replace={"designed": no_cushion},
        figures=("recipe: largest singular value, bfloat16, float16",),
    ),
)
