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

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polarlib._schedules.images import multiple_precision
from polarlib._schedules.products import continued
from polarlib._schedules.schedule import REPEATS
from polarlib.arrays import checks
from polarlib.arrays.settings import ignore_float_errors
from polarlib.design.remez import BeyondDoublesError

__all__ = ["RationalSchedule", "zolotarev"]


# Digits beside those of l, with room for what sums and differences of the c_i lose.
DIGITS = 40
# Error that a double does not tell from 0.
ROUNDING = 2.0**-50
SMALLEST_NORMAL = 2.0**-1022
# Sample points for each extremum, crowded at the ends in log x as the extrema are: two suffice on
# the interval of design, by experiment.
SAMPLES = 50
# Poles of a step; with eight, two steps reach rounding from every lower end.
MOST_POLES = 100

Step = tuple[float, tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class RationalSchedule:
    """A composition of odd rational functions that drives singular values to 1.

    Parameters
    ----------
    steps : tuple of (float, tuple of float, tuple of float)
        Scale M, residues a_j and poles c_j of each step ``M (x + sum_j a_j x / (x**2 + c_j))``, the
        first applied first. All are positive, so that nothing cancels.
    lower, upper : float, optional
        The interval that it is meant for.
    name, source : str, optional
        What it is called and where it comes from.

    Examples
    --------
    >>> s = RationalSchedule(steps=((1 / 3, (8 / 3,), (1 / 3,)),), lower=0.5)  # Halley's step
    >>> s(1.0), s.image()[0] > 0.9
    (1.0, True)
    """

    steps: tuple[Step, ...]
    lower: float
    upper: float = 1.0
    name: str = "custom"
    source: str = ""

    def __post_init__(self) -> None:
        put = functools.partial(object.__setattr__, self)  # the dataclass is frozen
        for name in ("name", "source"):
            put(name, checks.text(f"the {name} of a schedule", getattr(self, name)))
        at = f"schedule {checks.shown(self.name)}: "
        what = "a list of at least one step (scale, residues, poles)"
        put("steps", tuple(_step(at, s) for s in checks.items(f"{at}steps", self.steps, what)))
        for name in ("lower", "upper"):
            put(name, checks.number(f"{at}{name}", getattr(self, name), 0, ends="(]"))
        if not self.lower <= self.upper:
            raise ValueError(
                f"{at}the interval needs 0 < lower <= upper, got [{self.lower}, {self.upper}]"
            )

    def __len__(self) -> int:
        return len(self.steps)

    @ignore_float_errors
    def __call__(self, x: Any) -> Any:
        """Apply the steps to a scalar or, entry by entry, to an array.

        Parameters
        ----------
        x : number or array
            Singular values.

        Returns
        -------
        number or array
        """
        x = checks.operand("x", x)
        with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN tell it
            for step in self.steps:
                x = _value(step, x)
        return x

    def image(self, lower: float | None = None, upper: float | None = None) -> tuple[float, float]:
        """Image of an interval, evaluated with 40 digits and rounded once.

        Parameters
        ----------
        lower, upper : float, optional
            The interval of positive numbers; the schedule's own by default.

        Returns
        -------
        lo, hi : float
            Smallest and largest value of the composition on it. The turning points are bracketed
            by samples, many to each.

        Raises
        ------
        ValueError
            Unless ``0 < lower <= upper < inf``.
        """
        lo, hi = self._image(lower, self.upper if upper is None else upper)
        return float(lo), float(hi)

    def _image(self, lower: float | None, upper: float) -> tuple[Any, Any]:
        """Image with 40 digits, not rounded."""
        lower = checks.number("lower", self.lower if lower is None else lower, 0, ends="(]")
        upper = checks.number("upper", upper, 0, ends="(]")
        if lower > upper:
            raise ValueError(f"image needs 0 < lower <= upper, got [{lower}, {upper}]")
        number = multiple_precision(DIGITS).mpf
        lo, hi = number(lower), number(upper)
        for step in self.steps:
            with np.errstate(all="ignore"):  # of intervals near the ends of the doubles
                turns = _turning_points(step, float(lo), float(hi))
            points = [lo, hi, *map(number, turns)]
            values = [_value(step, p) for p in points if lo <= p <= hi]
            lo, hi = min(values), max(values)
        return lo, hi

    def error(self, lower: float | None = None) -> float:
        """Worst error ``max |1 - s(x)|`` on ``[lower, self.upper]``.

        Parameters
        ----------
        lower : float, optional
            Lower end; the schedule's own by default.

        Returns
        -------
        float
        """
        lo, hi = self._image(lower, self.upper)
        return float(max(abs(1 - lo), abs(hi - 1)))

    @functools.cached_property
    def slope(self) -> float:
        """Slope of the composition at 0: how much the smallest singular values grow."""
        return math.prod(
            scale * (1 + sum(a / c for a, c in zip(residues, poles, strict=True)))
            for scale, residues, poles in self.steps
        )

    @property
    def factorisations(self) -> int:
        """QR or Cholesky factorisations of a matrix iteration: one for each pole of each step."""
        return sum(len(poles) for _, _, poles in self.steps)

    def truncate(self, k: int, *, repeat: str | None = None) -> RationalSchedule:
        """Return the schedule of the first `k` steps.

        Parameters
        ----------
        k : int
            From 1 to the number of steps.
        repeat : {"last", "forever"}, optional
            How the steps go on beyond their number, as for :meth:`polarlib.Schedule.truncate`.

        Returns
        -------
        RationalSchedule

        Raises
        ------
        ValueError
            For any other k, or an unknown rule.
        """
        repeat = checks.choice("repeat", repeat, REPEATS)
        steps = continued(self.steps, k, repeat, self.name)
        return self if steps == self.steps else replace(self, steps=steps)


def _step(at: str, step: Any) -> Step:
    """A step, checked."""
    what = "(scale, residues, poles)"
    scale, *parts = checks.items(f"{at}a step of steps", step, what, 3, 3)
    scale = checks.number(f"{at}the scale of a step", scale, 0, ends="(]")
    residues, poles = (
        tuple(
            checks.number(f"{at}a residue or pole of a step", v, 0, ends="(]")
            for v in checks.items(f"{at}residues and poles of a step", part, "lists of numbers", 0)
        )
        for part in parts
    )
    if len(residues) != len(poles):
        raise ValueError(
            f"{at}a step of steps must be {what}, as many of the ones as of the others, all "
            f"positive, got {checks.shown(step)}"
        )
    return scale, residues, poles


def zolotarev(r: int, lower: float) -> RationalSchedule:
    """Best rational steps of type (2r + 1, 2r), each on the image of those before, to rounding.

    Parameters
    ----------
    r : int
        Number of poles (in x**2) of each step, at least 1. r = 1 is the dynamically weighted Halley
        iteration, QDWH, up to scale.
    lower : float
        Lower end of the interval [lower, 1].

    Returns
    -------
    RationalSchedule
        Centred: every truncation maps [lower, 1] onto [1 - E, 1 + E]. It ends when E is rounding:
        with 8 poles after two steps for every ``lower`` from 1e-16 on.

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
    terms = [v for _, *parts in steps for part in parts for v in part]
    if not all(SMALLEST_NORMAL <= v < math.inf for v in terms):
        raise BeyondDoublesError(
            f"poles of type ({2 * r + 1}, {2 * r}) on [{lower:g}, 1] are beyond double "
            f"coefficients: they are of the size of lower**2; lower must be larger, got {lower!r}"
        )
    return RationalSchedule(
        steps=steps,
        lower=lower,
        name=f"zolotarev of type ({2 * r + 1}, {2 * r})",
        source=f"Zolotarev's best rational functions on [{lower}, 1]",
    )


def best_steps(r: int, lower: float, tolerance: float) -> tuple[tuple[Step, ...], list[float]]:
    """Centred steps until the error is below a tolerance, and the error after each.

    Examples
    --------
    >>> steps, errors = best_steps(8, 1e-16, 1e-15)
    >>> len(steps), errors[0] > 1e-2, errors[1] < 1e-15
    (2, True, True)
    """
    # 1 - l of the last interval is above the tolerance; the c_i of a narrow one nearly cancel.
    f = multiple_precision(DIGITS + 2 * math.ceil(-math.log10(lower)))
    l, upper = f.mpf(lower), f.mpf(1)  # the interval is upper * [l, 1]
    steps: list[Step] = []
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
            (
                float(scale / upper),
                tuple(float(a * upper**2) for a in residues),
                tuple(float(p * upper**2) for p in poles),
            )
        )
        # Far below rounding the difference is noise of either sign.
        errors.append(max(0.0, float((ends[1] - ends[0]) / (ends[1] + ends[0]))))
        l, upper = ends[0] / ends[1], scale * ends[1]
    return tuple(steps), errors


def _ratios(r: int, l: Any, f: Any) -> list[Any]:
    """``c_i = l^2 sn^2 / cn^2 (i K' / (2r + 1); l')``, i = 1..2r, ascending."""
    # sn(iv; l) = i sn/cn(v; l') and sn = l^(-1/2) theta_1 / theta_4, of nome q = exp(-pi K' / K).
    n = 2 * r + 1
    decay = f.pi * f.agm(1, f.sqrt((1 - l) * (1 + l))) / f.agm(1, l)
    found = []
    for i in range(1, r + 1):
        y = decay * i / (2 * n)
        above, below = f.mpf(0), f.mpf(1)
        for k in range(1000):  # a few: the terms fall like exp(-decay k^2)
            term = f.exp(-decay * (k + f.mpf(1) / 2) ** 2) * 2 * f.sinh((2 * k + 1) * y)
            above += (-1) ** k * term
            below -= (-1) ** k * f.exp(-decay * (k + 1) ** 2) * 2 * f.cosh((2 * k + 2) * y)
            if term < f.eps * above:
                break
        found.append(l * (above / below) ** 2)
    return found + [l * l / c for c in reversed(found)]


def _value(step: Step, x: Any) -> Any:
    scale, residues, poles = step
    y = x * x
    total = x
    for a, c in zip(residues, poles, strict=True):
        total = total + a * x / (y + c)
    return scale * total


def _slope(step: Step, x: np.ndarray) -> np.ndarray:
    """Derivative over the scale."""
    _, residues, poles = step
    y = x * x
    return 1 + sum(
        (a * (c - y) / (y + c) ** 2 for a, c in zip(residues, poles, strict=True)), 0 * x
    )


def _turning_points(step: Step, lower: float, upper: float) -> np.ndarray:
    """Zeros of the derivative, to double precision: the value sees the square of that."""
    count = SAMPLES * (2 * len(step[2]) + 2)
    x = lower * (upper / lower) ** ((1 - np.cos(np.linspace(0, np.pi, count))) / 2)
    signs = np.sign(_slope(step, x))
    k = np.flatnonzero(signs[:-1] * signs[1:] < 0)
    a, b, rising = x[k], x[k + 1], signs[k] > 0
    for _ in range(60):
        middle = np.sqrt(a * b)
        left = (_slope(step, middle) > 0) == rising
        a, b = np.where(left, middle, a), np.where(left, b, middle)
    return np.unique(np.concatenate([a, x[signs == 0]]))
