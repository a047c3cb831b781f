"""Allowed values of the fields of a schedule, and the validity conditions of its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

from polarlib._schedules.images import divided, image_or_overflow, odd_images
from polarlib._schedules.steps import Rational, Step, checked_step, numbers, slope_at_zero
from polarlib._schedules.targets import parse_target
from polarlib.arrays import checks
from polarlib.arrays.settings import warn
from polarlib.result import ScheduleWarning

Normalisation = Literal["frobenius", "spectral", "moments", "schatten4", "aol", "none"]
Repeat = Literal["forever", "last"]
# Division of the matrix X before the first step; `BOUNDS` of the engine computes the divisors.
NORMALISATIONS: dict[Normalisation, str] = {
    "frobenius": "X is divided by its Frobenius norm",
    "spectral": "X is divided by an upper bound of its spectral norm",
    "moments": "X is divided by an upper bound of its spectral norm, from tr G and tr G^2",
    "schatten4": "X is divided by its Schatten 4-norm",
    "aol": "column j of X is divided by sqrt(sum_i |X^H X|_ij)",
    "none": "X is not divided",
}
REPEATS = (None, *get_args(Repeat))
# Largest number of coefficients of all steps, and of the stride: images of more take minutes.
MOST_IN_ALL, MOST_STRIDE = 3000, 1000
# Values that rational steps require of other fields.
OF_RATIONAL: dict[str, tuple[Any, ...]] = {
    "normalisation": ("spectral", "none"),
    "input_safety": (1.0,),
    "stride": (2,),
    "target": ("polar",),
}


def checked_fields(given: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a schedule, checked and of their types.

    Raises
    ------
    ValueError
        As :class:`polarlib.Schedule`.
    """
    f = dict(given)
    for name in ("name", "source"):
        f[name] = checks.text(f"the {name} of a schedule", f[name])
    at = f"schedule {checks.shown(f['name'])}: "
    steps = checks.items(
        f"{at}steps", f["steps"], "a list of at least one step, each a list of coefficients"
    )
    f["steps"] = tuple(checked_step(f"{at}step {k} of steps", s) for k, s in enumerate(steps, 1))
    if sum(1 for step in f["steps"] for _ in numbers(step)) > MOST_IN_ALL:
        raise ValueError(f"{at}steps must have at most {MOST_IN_ALL} coefficients in all")
    for name, least in (("lower", -math.inf), ("upper", -math.inf), ("input_safety", 1)):
        f[name] = checks.number(f"{at}{name}", f[name], least)
    f["stride"] = checks.count(f"{at}stride", f["stride"], 1, MOST_STRIDE)
    f["normalisation"] = checks.choice("normalisation", f["normalisation"], NORMALISATIONS, at)
    f["repeat"] = checks.choice(f"{at}repeat", f["repeat"], REPEATS)
    kind, parameter = parse_target(f["target"])
    # A constant and negative powers have no odd approximation at 0.
    zero = kind not in ("polar", "power") or (kind == "power" and parameter > 0)
    lower, upper = f["lower"], f["upper"]
    if not (lower > 0 or (zero and lower == 0)) or not (upper > 0 and lower <= upper < math.inf):
        raise ValueError(
            f"{at}the interval needs 0 {'<=' if zero else '<'} lower <= upper, got "
            f"[{lower}, {upper}]"
        )
    rational = {isinstance(step, Rational) for step in f["steps"]}
    if len(rational) == 2:
        raise ValueError(f"{at}steps must be all polynomials or all rational, got both")
    if rational == {True}:  # positive terms need no validity conditions
        for name, allowed in OF_RATIONAL.items():
            if f[name] not in allowed:
                raise ValueError(
                    f"{at}{name} must be {' or '.join(map(repr, allowed))} for rational steps, "
                    f"got {f[name]!r}"
                )
    elif kind == "polar":
        divisor = 1.0 if f["normalisation"] == "none" else f["input_safety"]
        _refuse_invalid(at, f["steps"], lower, upper, divisor, f["stride"])
    return f


def _refuse_invalid(
    at: str, steps: Sequence[Step], lower: float, upper: float, divisor: float, stride: int
) -> None:
    """Raise if a step changes signs or the image leaves (0, 2); warn about a wrong order."""
    # Every step multiplies the rounding error of an image in double precision.
    message = ""
    for extended in (False, True):
        before = divided(lower, upper, divisor, extended=extended)
        images = odd_images(steps, *before, extended=extended, stride=stride)
        message = _invalid(steps, (lower, upper), before, images, stride)
        if not message:
            break
    if message:
        raise ValueError(f"{at}{message}")
    # Steeper steps come first in every designed schedule. With a factor of two in the error, no
    # published set is reported; errors of the size of rounding are ignored.
    ordered = sorted(steps, key=slope_at_zero, reverse=True)
    if ordered != list(steps):
        lo, hi = divided(lower, upper, divisor, extended=False)
        least, error = (
            max(abs(1 - v) for v in image_or_overflow(s, lo, hi, stride)) for s in (ordered, steps)
        )
        if least < 0.5 * error < math.inf and error > 2.0**-40:
            warn(
                f"{at}the same steps sorted by slope have less than half the error; give the steps "
                "in the order in which they are applied",
                ScheduleWarning,
            )


def _invalid(
    steps: Sequence[Step], interval: tuple[float, float], before: Any, images: Any, stride: int
) -> str:
    """Return which condition the images after each step violate, or ""."""
    lo, hi = before
    try:
        for k, (lo, hi) in enumerate(images, 1):
            if not 0 < lo <= hi < math.inf:
                was, now = (
                    "[{:.4g}, {:.4g}]".format(*map(float, ends)) for ends in (before, (lo, hi))
                )
                return (
                    f"step {k} maps {was} to {now}, which is not positive: singular vectors "
                    "would change sign; use a smaller interval or another step"
                )
            if k < len(steps):
                before = lo, hi
    except OverflowError:  # of floats
        return "it overflows"
    # Best steps for tiny lower bounds reach 2, up to the rounding of their coefficients.
    last, u = steps[-1], float(before[1])
    terms = [abs(c) * u ** (stride * i + 1) for i, c in enumerate(last)]
    if hi >= 2 + 2.0**-48 * sum(terms) * (len(last) > 1):
        lower, upper = interval
        return (
            f"the image [{float(lo):.4g}, {float(hi):.4g}] of [{lower:.4g}, "
            f"{upper:.4g}] leaves (0, 2); use a smaller interval or a safety factor"
        )
    return ""
