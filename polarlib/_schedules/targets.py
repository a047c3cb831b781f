"""Functions that schedules approximate: one entry of `TARGETS` per function."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polarlib.arrays.checks import nearest, shown

if TYPE_CHECKING:
    from flint import arb


@dataclass(frozen=True)
class Target:
    """A function of positive numbers, with a parameter or without one.

    Attributes
    ----------
    meaning : str
        Formula, for messages and documentation.
    value : callable
        ``value(x, parameter)`` for floats, NumPy arrays and mpmath numbers.
    enclose : callable
        ``enclose(a, b, parameter)`` for python-flint's balls ``0 <= a <= b`` of one number each:
        balls that contain all values and all derivatives on [a, b]. At a corner the derivatives are
        those of both sides; where there is no bound the ball is not finite. Certificates rest on
        this property, and `tests/schedules/test_certify.py` checks it for every entry of `TARGETS`.
    has_parameter, is_positive : bool
        Whether a parameter in brackets belongs to the name, and whether it has to be positive.
    corners : tuple of float
        Points where the derivative jumps. Certificates are found faster with them.

    Examples
    --------
    >>> TARGETS["power"].value(4.0, 0.5)
    2.0
    """

    meaning: str
    value: Callable[[Any, float], Any]
    enclose: Callable[[arb, arb, float], tuple[arb, arb]]
    has_parameter: bool = False
    is_positive: bool = False
    corners: tuple[float, ...] = ()


def _hull(f: Callable[[arb], arb], a: arb, b: arb) -> arb:
    """Enclose the values on [a, b] of a function that is monotone there."""
    return f(a).union(f(b))


def _enclose_polar(a: arb, b: arb, _: float) -> tuple[arb, arb]:
    return 0 * a + 1, 0 * a


def _clip(x: Any, _: float) -> Any:
    return np.minimum(x, 1.0) if hasattr(x, "dtype") else min(x, 0 * x + 1)


def _enclose_clip(a: arb, b: arb, _: float) -> tuple[arb, arb]:
    zero, one = 0 * a, 0 * a + 1
    slope = one if b <= 1 else zero if a >= 1 else zero.union(one)
    return _hull(one.min, a, b), slope


def _power(x: Any, p: float) -> Any:
    try:
        return x**p
    except (OverflowError, ZeroDivisionError):  # of floats
        return math.inf


def _enclose_power(a: arb, b: arb, p: float) -> tuple[arb, arb]:
    exponent = 0 * a + p  # p - 1 would be rounded
    slope = _hull(lambda t: p * t ** (exponent - 1), a, b) if p else 0 * a
    return _hull(lambda t: t**exponent, a, b), slope


def _smooth_sign(x: Any, d: float) -> Any:
    width = 0 * x + d  # so that the square of a float is not rounded for mpmath
    return x / (x * x + width * width) ** 0.5


def _enclose_smooth_sign(a: arb, b: arb, d: float) -> tuple[arb, arb]:
    square = (0 * a + d) ** 2
    return (
        _hull(lambda t: t / (t * t + square).sqrt(), a, b),
        _hull(lambda t: square / ((t * t + square).sqrt() * (t * t + square)), a, b),
    )


TARGETS = {
    "polar": Target(
        "1, the singular values of a unitary factor", lambda x, _: 0 * x + 1, _enclose_polar
    ),
    "clip": Target("min(x, 1)", _clip, _enclose_clip, corners=(1.0,)),
    "power": Target("x**parameter", _power, _enclose_power, has_parameter=True),
    "smooth_sign": Target(
        "x / sqrt(x**2 + parameter**2)",
        _smooth_sign,
        _enclose_smooth_sign,
        has_parameter=True,
        is_positive=True,
    ),
}


def parse_target(target: str) -> tuple[str, float]:
    """Split the name of a target into its kind and its parameter (0 where it has none).

    Raises
    ------
    ValueError
        For anything else; the message lists what there is.

    Examples
    --------
    >>> parse_target("power(0.5)"), parse_target("polar")
    (('power', 0.5), ('polar', 0.0))
    """
    found = re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", target) if isinstance(target, str) else None
    kind, given = found.groups() if found else ("", None)
    try:
        parameter = float(given) if given is not None else 0.0
    except ValueError:
        parameter = math.nan
    entry = TARGETS.get(kind)
    if entry is None or entry.has_parameter != (given is not None) or not math.isfinite(parameter):
        known = [f"{k}(number)" if t.has_parameter else k for k, t in TARGETS.items()]
        raise ValueError(f"unknown target {shown(target)}; {nearest(target, known)}")
    if entry.is_positive and not parameter > 0:
        raise ValueError(f"{kind} needs a positive parameter, got {shown(target)}")
    return kind, parameter


def target_value(target: str, x: Any) -> Any:
    """Return the value of a target at positive numbers: NumPy arrays, floats or mpmath numbers.

    Examples
    --------
    >>> target_value("power(0.5)", 4.0), target_value("clip", np.array([0.5, 3.0])).tolist()
    (2.0, [0.5, 1.0])
    """
    kind, parameter = parse_target(target)
    return TARGETS[kind].value(x, parameter)
