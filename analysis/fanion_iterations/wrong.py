"""Wrong methods that the checks of this study must notice."""

import runpy
from pathlib import Path

from common import Wrong

import polarlib

METHODS = runpy.run_path(str(Path(__file__).with_name("run.py")))["METHODS"]


def three_steps(g):
    return polarlib.orthogonalize(g, schedule="jordan", steps=3, precision="bfloat16")


WRONG = (
    Wrong(
        "exact polar factor",
        part="f_muon",
        replace={"factor": polarlib.nearest_orthogonal},
        figures=("iterations, F-Muon",),
    ),
    Wrong(
        "plain momentum in place of Nesterov's",
        part="sign_sgd",
        replace={"direction": lambda buffer, g, momentum: buffer},
        figures=("iterations, SignSGD",),
    ),
    Wrong(
        "a rate that falls linearly to zero",
        part="nsgd",
        replace={"share": lambda k, most: 1 - k / most},
        figures=("iterations, NSGD",),
    ),
    Wrong(
        "Muon's step in place of the variant's",
        part="ratios",
        replace={"METHODS": METHODS | dict.fromkeys(("F-Muon", "S-Muon"), METHODS["Muon"])},
        figures=(
            "iterations, F-Muon over Muon",
            "iterations, S-Muon over Muon",
            "iterations to twice the target, F-Muon and S-Muon over Muon",
        ),
    ),
    Wrong(
        "normalised SGD's step in place of the signs",
        part="against_signs",
        replace={"METHODS": METHODS | {"SignSGD": METHODS["NSGD"]}},
        figures=("iterations, SignSGD over Muon",),
    ),
    Wrong(
        "three quintic steps in place of the exact factor",
        part="exact_factor",
        replace={"exact": three_steps},
        figures=("least loss over the target, exact factor, Muon",),
    ),
)
