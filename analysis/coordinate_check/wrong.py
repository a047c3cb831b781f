"""Wrong methods that the checks of this study must notice."""

from __future__ import annotations

import math

import numpy as np
from common import Wrong

from polarlib import norms
from polarlib.norms import Norm, Parametrization


def one_radius(n: int) -> list[Norm]:
    return [norms.spectral() for _ in range(3)]


def by_shape(n: int) -> list[Norm]:
    """Scion's norms, for n >= 64."""
    return [norms.rms_to_rms(n, 64), norms.rms_to_rms(n, n), n * norms.lp(math.inf)]


def on_its_balls(n: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Scion's start."""
    shapes = (n, 64), (n, n), (10, n)
    drawn = [rng.standard_normal(shape) for shape in shapes]
    return [norm.lmo(w) for norm, w in zip(by_shape(n), drawn, strict=True)]


def signs(n: int) -> list[Norm]:
    """One rate for every entry; 16 brings the best one into the range of Scion's."""
    return [16 * norms.lp(math.inf) for _ in range(3)]


def variances_of_sp(n: int, rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.standard_normal((m, k)) / math.sqrt(k) for m, k in ((n, 64), (n, n), (10, n))]


def sp() -> list[Parametrization]:
    return [Parametrization(0, b, 0) for b in (0, 0.5, 0.5)]


def mup() -> list[Parametrization]:
    return [norms.mup(layer, "adam") for layer in ("input", "hidden", "output")]


WRONG = (
    Wrong(
        "one radius for every layer",
        part="spectral_slopes",
        replace={"scion": one_radius},
        figures=("slopes, Scion",),
    ),
    Wrong(
        "Scion's start and radii",
        part="spectral_slopes",
        replace={"muon": by_shape, "plain_start": on_its_balls},
        figures=(
            "slopes, Muon plain",
            "slope of layer 1, Muon plain",
            "slope of scores, Muon plain",
        ),
    ),
    Wrong(
        "SP",
        part="adam_slopes",
        replace={"mup": sp},
        figures=("slopes, Adam muP", "slopes of hidden layers, Adam muP"),
    ),
    Wrong(
        "muP",
        part="adam_slopes",
        replace={"sp": mup},
        figures=("slopes, Adam SP", "slopes of layer 2 and scores, Adam SP"),
    ),
    Wrong(
        "SP",
        part="adam_transfer",
        replace={"mup": sp},
        figures=(
            "shift of the best rate per doubling, Adam muP",
            "largest change of log loss per doubling at rate 2^-5, Adam muP",
            "largest change of log loss per doubling at rate 2^-4, Adam muP",
        ),
    ),
    Wrong(
        "signs with one rate, from SP's start",
        part="scion_transfer",
        replace={"scion": signs, "on_the_sphere": variances_of_sp},
        figures=("shift of the best rate per doubling, Scion",),
    ),
)
