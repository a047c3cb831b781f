"""What schedules approximate, and the values of these functions."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from polarlib.arrays.checks import nearest, shown

__all__ = ["TARGETS", "parse_target", "target_value"]


# What a schedule may approximate, and whether a parameter in brackets belongs to it.
TARGETS = {
    "polar": ("1, the singular values of a unitary factor", False),
    "clip": ("min(x, 1)", False),
    "power": ("x**parameter", True),
    "smooth_sign": ("x / sqrt(x**2 + parameter**2)", True),
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
    kind, given = found.groups() if found else (None, None)
    try:
        parameter = float(given) if given is not None else 0.0
    except ValueError:
        parameter = math.nan
    takes = kind in TARGETS and TARGETS[kind][1]
    if kind not in TARGETS or takes != (given is not None) or not math.isfinite(parameter):
        known = [f"{k}(number)" if TARGETS[k][1] else k for k in TARGETS]
        raise ValueError(f"unknown target {shown(target)}; {nearest(target, known)}")
    if kind == "smooth_sign" and not parameter > 0:
        raise ValueError(f"smooth_sign needs a positive parameter, got {shown(target)}")
    return kind, parameter


def target_value(target: str, x: Any) -> Any:
    """Value of a target at positive numbers; NumPy arrays, floats or mpmath numbers.

    Examples
    --------
    >>> target_value("power(0.5)", 4.0), target_value("clip", np.array([0.5, 3.0])).tolist()
    (2.0, [0.5, 1.0])
    """
    kind, parameter = parse_target(target)
    if kind == "clip":
        return np.minimum(x, 1.0) if isinstance(x, np.ndarray) else min(x, 0 * x + 1)
    if kind == "power":
        try:
            return x**parameter
        except OverflowError:  # of floats
            return math.inf
    if kind == "smooth_sign":
        return x / (x * x + parameter * parameter) ** 0.5
    return 0 * x + 1
