"""Wrong methods that the checks of this study must notice."""

import numpy as np
from common import Wrong

import polarlib
from polarlib import norms

WRONG = (
    Wrong(
        "five quintic steps in place of the exact polar factor",
        part="duality",
        replace={"POLAR": "jordan"},
        figures=(
            "Fenchel equality: worst relative gap",
            "maximisers: farthest of their norms from 1",
            "largest gain of a neighbour over the maximiser",
        ),
    ),
    Wrong(
        "the dual without the largest singular value",
        part="ky_fan",
        replace={"ky_fan_dual": lambda k, g: float(np.linalg.norm(g, "nuc")) / k},
        figures=("Ky Fan norms and duals against singular values",),
    ),
    Wrong(
        "Ky Fan's norm and its dual interchanged",
        part="ranks",
        replace={"fanion": norms.ky_fan, "ky_fan_norm": norms.fanion},
        figures=(
            "rank of the maximiser of fanion(k), k = 1, 2, 3",
            "rank of the maximiser of ky_fan(k), k = 2, 7",
        ),
    ),
    Wrong(
        "the weight as printed, (1 - alpha)/eta",
        part="sums",
        replace={"weight_of_signs": lambda share, eta: (1 - share) / eta},
        figures=("S-Fanion-3: attained over the dual norm, weight (1 - alpha) eta",),
    ),
    Wrong(
        "steps of degree 5",
        part="cost",
        replace={"newton_schulz": lambda k: polarlib.schedule("newton_schulz_5", steps=k)},
        figures=("Newton-Schulz iterations to the polar factor, 500 x 500",),
    ),
)
