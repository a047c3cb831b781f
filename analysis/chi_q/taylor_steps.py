"""Steps of the Taylor polynomials of lambda^(-1/2), and what they make of a singular value."""

from __future__ import annotations

from fractions import Fraction
from math import comb
from typing import Any

import numpy as np

from polarlib import Schedule


def series(kappa: int) -> list[Fraction]:
    """Coefficients c_s of p(lambda) = sum_s c_s (1 - lambda)^s (Definition 2)."""
    return [Fraction(comb(2 * s, s), 4**s) for s in range(kappa + 1)]


def coefficients(kappa: int) -> tuple[float, ...]:
    """The same polynomial in ascending powers of lambda; doubles hold these fractions exactly."""
    total = [Fraction(0)] * (kappa + 1)
    for s, c in enumerate(series(kappa)):
        for i in range(s + 1):
            total[i] += c * comb(s, i) * (-1) ** i
    return tuple(map(float, total))


def taylor(kappa: int, steps: int, normalisation: Any = "frobenius") -> Schedule:
    """X <- p(X X^T) X, so many times."""
    return Schedule(
        steps=[coefficients(kappa)] * steps,
        lower=1e-6,
        normalisation=normalisation,
        name=f"Taylor, kappa {kappa}",
    )


def phi(kappa: int) -> list[Fraction]:
    """Coefficients of phi(delta) = 1 - (1 - delta) p(1 - delta)^2, ascending."""
    p = np.array(series(kappa))
    out = -np.convolve([Fraction(1), Fraction(-1)], np.convolve(p, p))
    return [out[0] + 1, *out[1:]]


def chi(kappa: int, steps: int, sigma: float) -> float:
    """1 / sigma_min after so many steps, the worst over all singular values in [sigma, 1]."""
    return 1 / taylor(kappa, steps).image(sigma, 1.0)[0] if steps else 1 / sigma
