"""Matrices that break things, and matrices with given singular values."""

from polarlib.zoo.collection import zoo
from polarlib.zoo.matrices import (
    binomial,
    cauchy,
    frank,
    graded,
    growth,
    hilbert,
    jordan_block,
    kahan,
    orthonormal,
    rotation,
    wilkinson,
    wilkinson_minus,
    with_singular_values,
)
from polarlib.zoo.spectra import SPECTRA, spectrum

__all__ = [
    "SPECTRA",
    "binomial",
    "cauchy",
    "frank",
    "graded",
    "growth",
    "hilbert",
    "jordan_block",
    "kahan",
    "orthonormal",
    "rotation",
    "spectrum",
    "wilkinson",
    "wilkinson_minus",
    "with_singular_values",
    "zoo",
]
