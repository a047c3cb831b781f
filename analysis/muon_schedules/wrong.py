"""Wrong methods that the checks of this study must notice."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import polarlib
from polarlib import design, files

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Wrong


def polar_express_for_ours(name: str) -> polarlib.Schedule:
    return polarlib.schedule(name if name in polarlib.schedules() else "polar_express")


def last_step_left_out(name: str) -> polarlib.Schedule:
    s = polar_express_for_ours(name)
    return s.truncate(len(s) - 1)


def with_cushion(degrees: tuple[int, ...]) -> float:
    return design.greedy(1e-3, degrees, cushion=0.02).error()


@functools.cache
def trace(matrix: str, what: str, precision: str) -> polarlib.Trace:
    s = design.for_precision("bfloat16", 1e-3, steps=5) if what.startswith("best") else what
    return polarlib.measure(files.sample_matrices()[matrix], s, precision=precision)


def with_another(name: str, other: str) -> Callable[[str, str, str], polarlib.Trace]:
    return lambda matrix, what, precision: trace(matrix, other if what == name else what, precision)


OF_THREE = ": smallest, largest, divergence limit"
WRONG = (
    Wrong(
        "four steps",
        part="scalars",
        replace={"STEPS": 4},
        figures=("slope of five steps of jordan",),
    ),
    Wrong(
        "singular values from 0.001 on",
        part="scalars",
        replace={"SEEN_FROM": 1e-3},
        figures=(
            "jordan, five steps, values on [0.01, 1]",
            "jordan, five steps, values on [0.01, 1], as coded",
        ),
    ),
    Wrong(
        "Jordan's coefficients",
        part="scalars",
        replace={"stationary": lambda: polarlib.schedule("jordan").steps[0]},
        figures=("stationary step of the band [0.7, 1.3]",),
    ),
    Wrong(
        "the last step left out",
        part="scalars",
        replace={"found": last_step_left_out},
        figures=tuple(
            name + OF_THREE
            for name in polarlib.schedules()
            if name not in ("polar_express_1e4", "inverse_sqrt_nv", "lipschitz_cap")
        ),
    ),
    Wrong(
        "Polar Express",
        part="scalars",
        replace={"found": polar_express_for_ours},
        figures=("default schedule, worst error on its interval",),
    ),
    Wrong(
        "a greedy composition with a cushion",
        part="products",
        replace={"least": with_cushion},
        figures=("least error of 15 products, certified", "least error of 17 products, certified"),
    ),
    Wrong(
        "Jordan's polynomial",
        part="gradients",
        replace={"measured": with_another("best in bfloat16", "jordan")},
        figures=("largest singular value of the best design in bfloat16, gradients",),
    ),
    Wrong(
        "Polar Express in place of the default",
        part="gradients",
        replace={"measured": with_another("auto", "polar_express")},
        figures=("largest singular value of the default in bfloat16, gradients",),
    ),
    Wrong(
        "the default schedule for all matrices",
        part="gradients",
        replace={"measured": with_another("adaptive", "auto")},
        figures=("share of gradients on which adaptive is within 2 % of the nearest",),
    ),
)
