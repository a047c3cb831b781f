"""Zolotarev's rational steps: the best of type (2r + 1, 2r) on an interval, down to rounding.

For 0 < l < 1 the odd rational function of type (2r + 1, 2r) that is nearest to 1 on [l, 1] is, up
to scale,

    x prod_j (x^2 + c_2j) / (x^2 + c_(2j-1)),    c_i = l^2 sn^2 / cn^2 (i K' / (2r + 1); l'),

j = 1..r, with Jacobi's functions of modulus l' = sqrt(1 - l^2) and K' = K(l') (E. I. Zolotarev,
1877; N. I. Akhiezer, Elements of the Theory of Elliptic Functions, section 50). Its error
equioscillates. Compositions of such functions are again best, of the product of the types: unlike
polynomials, nothing is lost (Y. Nakatsukasa and R. W. Freund, SIAM Rev. 58 (2016) 461-493).

The functions of modulus l' are evaluated with modulus l at imaginary arguments, where the theta
series converge fast for every l; c_i c_(2r+1-i) = l^2 gives the larger half.
"""

from __future__ import annotations

import math
from typing import Any

from polarlib._renamed import warn_renamed
from polarlib._schedules.images import multiple_precision
from polarlib._schedules.schedule import Schedule
from polarlib._schedules.steps import Rational, numbers
from polarlib.arrays import checks
from polarlib.design.doubles import BeyondDoublesError

# Digits in addition to those of l, including those that sums and differences of the c_i lose.
DIGITS = 40
# Largest error that is zero in double precision.
ROUNDING = 2.0**-50
SMALLEST_NORMAL = 2.0**-1022
# Poles of a step; with eight, two steps reach rounding from every lower end.
MOST_POLES = 100


def RationalSchedule(
    steps: Any, lower: float, upper: float = 1.0, name: str = "custom", source: str = ""
) -> Schedule:
    """Return a :class:`polarlib.Schedule` of rational steps; former name, until 0.3."""
    now = "polarlib.Schedule(steps=..., normalisation='spectral')"
    warn_renamed("design.RationalSchedule", now)
    return Schedule(
        steps=steps, lower=lower, upper=upper, normalisation="spectral", name=name, source=source
    )


def zolotarev(r: int, lower: float) -> Schedule:
    """Design the best rational steps of type (2r + 1, 2r), until the error is below rounding.

    Parameters
    ----------
    r : int
        Number of poles (in x**2) of each step, at least 1. r = 1 is the dynamically weighted Halley
        iteration, QDWH, up to scale.
    lower : float
        Lower end of the interval [lower, 1].

    Returns
    -------
    Schedule
        Of rational steps. Centred: every truncation maps [lower, 1] onto [1 - E, 1 + E]. It ends
        when E is rounding: with 8 poles after two steps for every ``lower`` from 1e-16 on.

    Raises
    ------
    ValueError
        For r below 1 or no integer, `lower` outside (0, 1), or so small that poles of the size of
        its square are beyond double coefficients.

    Examples
    --------
    >>> [len(zolotarev(r, 1e-16)) for r in (1, 2, 8)]
    [6, 4, 2]
    >>> round(zolotarev(1, 1e-16).truncate(3).error(), 3)
    0.122
    """
    r = checks.count("r", r, most=MOST_POLES)
    lower = checks.number("lower", lower, 0, 1, ends="()")
    steps, _ = best_steps(r, lower, ROUNDING)
    # All terms are positive, so their rounding cancels nothing; but poles can underflow.
    if not all(SMALLEST_NORMAL <= v < math.inf for step in steps for v in numbers(step)):
        raise BeyondDoublesError(
            f"poles of type ({2 * r + 1}, {2 * r}) on [{lower:g}, 1] are beyond double "
            f"coefficients: they are of the size of lower**2; lower must be larger, got {lower!r}"
        )
    return Schedule(
        steps=steps,
        lower=lower,
        normalisation="spectral",
        name=f"zolotarev of type ({2 * r + 1}, {2 * r})",
        source=f"Zolotarev's best rational functions on [{lower}, 1]",
    )


def best_steps(r: int, lower: float, tolerance: float) -> tuple[tuple[Rational, ...], list[float]]:
    """Return centred steps until the error is below a tolerance, and the error after each.

    Examples
    --------
    >>> steps, errors = best_steps(8, 1e-16, 1e-15)
    >>> len(steps), errors[0] > 1e-2, errors[1] < 1e-15
    (2, True, True)
    """
    # 1 - l of the last interval is above the tolerance; the c_i of a narrow one nearly cancel.
    f = multiple_precision(DIGITS + 2 * math.ceil(-math.log10(lower)))
    l, upper = f.mpf(lower), f.mpf(1)  # the interval is upper * [l, 1]
    steps: list[Rational] = []
    errors: list[float] = []
    while not errors or errors[-1] > tolerance:
        c = _ratios(r, l, f)
        zeros, poles = c[1::2], c[::2]
        ends = [
            x * f.fprod((x * x + z) / (x * x + p) for z, p in zip(zeros, poles, strict=True))
            for x in (l, f.mpf(1))
        ]
        residues = [
            f.fprod(z - p for z in zeros) / f.fprod(q - p for q in poles if q != p) for p in poles
        ]
        scale = 2 / (ends[0] + ends[1])
        steps.append(
            Rational(
                float(scale / upper),
                tuple(float(a * upper**2) for a in residues),
                tuple(float(p * upper**2) for p in poles),
            )
        )
        # Far below rounding the difference is a rounding error of either sign.
        errors.append(max(0.0, float((ends[1] - ends[0]) / (ends[1] + ends[0]))))
        l, upper = ends[0] / ends[1], scale * ends[1]
    return tuple(steps), errors


def _ratios(r: int, l: Any, f: Any) -> list[Any]:
    """Return ``c_i = l^2 sn^2 / cn^2 (i K' / (2r + 1); l')``, i = 1..2r, ascending."""
    # sn(iv; l) = i sn/cn(v; l') and sn = l^(-1/2) theta_1 / theta_4, of nome q = exp(-pi K' / K).
    n = 2 * r + 1
    decay = f.pi * f.agm(1, f.sqrt((1 - l) * (1 + l))) / f.agm(1, l)
    found = []
    for i in range(1, r + 1):
        y = decay * i / (2 * n)
        above, below = f.mpf(0), f.mpf(1)
        for k in range(1000):  # few are needed: the terms decrease like exp(-decay k^2)
            term = f.exp(-decay * (k + f.mpf(1) / 2) ** 2) * 2 * f.sinh((2 * k + 1) * y)
            above += (-1) ** k * term
            below -= (-1) ** k * f.exp(-decay * (k + 1) ** 2) * 2 * f.cosh((2 * k + 2) * y)
            if term < f.eps * above:
                break
        found.append(l * (above / below) ** 2)
    return found + [l * l / c for c in reversed(found)]
