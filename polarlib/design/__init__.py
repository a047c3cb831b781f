"""Design of schedules, and of how to run them.

Pure functions of intervals, schedules and number formats; for_matrix and sketched_spectrum alone
take an array.
"""

from typing import Any

from polarlib._renamed import warn_renamed
from polarlib.design.band import band, stationary
from polarlib.design.bounds import largest_complement, least_error
from polarlib.design.budget import DegreeSequence, best_degrees, budget, frontier
from polarlib.design.compose import greedy
from polarlib.design.lowbits import for_precision, noise_gain, table
from polarlib.design.minimax import minimax
from polarlib.design.prices import costs
from polarlib.design.provenance import Fingerprint, fingerprint
from polarlib.design.remez import Minimax, best
from polarlib.design.restarts import restarts
from polarlib.design.sensitivity import sensitivity
from polarlib.design.sketch import for_matrix, sketched_spectrum
from polarlib.design.spectra import (
    Spectrum,
    log_uniform,
    marchenko_pastur,
    mean_error,
    power_law,
    spectrum,
)
from polarlib.design.steepest import for_slope, steepest
from polarlib.design.targets import clip, inverse_root, power, smooth_sign
from polarlib.design.tune import for_spectrum, tune
from polarlib.design.zolotarev import RationalSchedule as RationalSchedule
from polarlib.design.zolotarev import zolotarev

__all__ = [
    "DegreeSequence",
    "Fingerprint",
    "Minimax",
    "Spectrum",
    "band",
    "best",
    "best_degrees",
    "budget",
    "clip",
    "costs",
    "fingerprint",
    "for_matrix",
    "for_precision",
    "for_slope",
    "for_spectrum",
    "frontier",
    "greedy",
    "inverse_root",
    "largest_complement",
    "least_error",
    "log_uniform",
    "marchenko_pastur",
    "mean_error",
    "minimax",
    "noise_gain",
    "power",
    "power_law",
    "restarts",
    "sensitivity",
    "sketched_spectrum",
    "smooth_sign",
    "spectrum",
    "stationary",
    "steepest",
    "table",
    "tune",
    "zolotarev",
]


def __getattr__(name: str) -> Any:
    """Find the former name of a class, until 0.3."""
    if name == "Choice":
        warn_renamed("polarlib.design.Choice", "polarlib.design.DegreeSequence")
        return DegreeSequence
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
