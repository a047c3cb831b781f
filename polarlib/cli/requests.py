"""Requests of the command polarlib design: an entry of `REQUESTS` for each kind.

One option names the request, and further options are its parameters. They have the names of the
arguments of polarlib.design, whose functions check the values.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from polarlib import Schedule, files, published
from polarlib.arrays.checks import choice, nearest
from polarlib.arrays.entry import not_finite
from polarlib.arrays.progress import Callback
from polarlib.cli import console
from polarlib.design import (
    band,
    budget,
    clip,
    for_precision,
    for_slope,
    for_spectrum,
    greedy,
    inverse_root,
    power,
    smooth_sign,
    steepest,
    tune,
    zolotarev,
)

# Limits of options: larger values take minutes, and no schedule needs them.
MOST_STEPS, MOST_DEGREE = 100, 101
DEGREE = 5  # of steps where none is given
OBJECTIVES = ("slope", "error")
GREEDY = ("safety", "cushion")
PRICES = ("form", "shape", "costs", "library", "batch")

Options = dict[str, Any]


class _Request(NamedTuple):
    """Options that the naming option of a request may be given with, and the function to call."""

    takes: tuple[str, ...]
    design: Callable[[Options, Callback], Schedule]


def designed(given: Options, callback: Callback) -> Schedule:
    """Design for options, given by name; refuse options that contradict one another."""
    kinds = [kind for kind in REQUESTS if kind in given and kind != "lower"]
    if len(kinds) > 1:
        raise ValueError(
            f"one of {_listed(kinds)} must be given, got {len(kinds)}; leave the others out"
        )
    if not kinds and "lower" not in given:
        others = [kind for kind in REQUESTS if kind != "lower"]
        raise ValueError(f"--lower, for an interval, or one of {_listed(others)} must be given")
    (kind,) = kinds or ["lower"]
    request = REQUESTS[kind]
    for option in given:
        if option not in (kind, *request.takes):
            raise ValueError(
                f"--{option} must not be given with --{kind}, which takes {_listed(request.takes)}"
            )
    return request.design(given, callback)


def _listed(options: Any) -> str:
    return ", ".join(f"--{option}" for option in options)


# -- values of options -----------------------------------------------------------------------


def _numbers(given: Options, option: str, allowed: str, kind: Callable[[str], Any] = float) -> Any:
    """Parse numbers with commas between."""
    try:
        return [kind(part) for part in given[option].split(",")]
    except ValueError:
        raise ValueError(f"--{option} must be {allowed}, got {given[option]!r}") from None


def _pair(given: Options, option: str, allowed: str, kind: Callable[[str], Any] = float) -> Any:
    pair = _numbers(given, option, allowed, kind)
    if len(pair) != 2:
        raise ValueError(f"--{option} must be {allowed}, got {given[option]!r}")
    return tuple(pair)


def _degrees(given: Options) -> list[int]:
    """Return the degree of each step, from --degrees, --steps or both."""
    if "steps" not in given and "degrees" not in given:
        raise ValueError("--steps, for steps of degree 5, or --degrees must be given")
    steps: Any = given.get("steps")
    if steps is not None and steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    if "degrees" not in given:
        return [DEGREE] * steps
    allowed = "odd numbers with commas between, such as 3,5,5"
    degrees: list[int] = _numbers(given, "degrees", allowed, int)
    if len(degrees) > MOST_STEPS or max(degrees) > MOST_DEGREE:
        raise ValueError(
            f"--degrees must be at most {MOST_STEPS} numbers up to {MOST_DEGREE}, got "
            f"{given['degrees']!r}"
        )
    if steps is None or steps == len(degrees):
        return degrees
    if len(degrees) > 1:
        raise ValueError(
            f"--degrees must be one degree or {steps}, as many as --steps, got {given['degrees']!r}"
        )
    return degrees * int(steps)


def _of(given: Options, *options: str) -> Options:
    """Select options that were given, as arguments of a function."""
    return {option: given[option] for option in options if option in given}


def _singular_values(source: str) -> np.ndarray:
    """Return singular values from a file: of its vector, or of its matrix."""
    file, _ = files.split(source)
    if not file.exists() and not file.suffix:
        a = console.read_matrix(source, single=True)
    else:
        a = files.read(source)
    if a.ndim not in (1, 2) or a.size == 0:
        raise ValueError(
            f"{source}: singular values, as a vector, or one matrix is needed, got an array of "
            f"shape {a.shape}"
        )
    if message := not_finite(a):
        raise ValueError(f"{source}: {message}; remove them")
    if a.ndim == 1:
        return a
    wide = np.complex128 if np.iscomplexobj(a) else np.float64
    values: np.ndarray = scipy.linalg.svdvals(a.astype(wide))
    return values


# -- requests --------------------------------------------------------------------------------


def _interval(given: Options, callback: Callback) -> Schedule:
    counts = [option for option in ("matmuls", "steps", "degrees") if option in given]
    if not counts or counts == ["matmuls", "steps"]:
        raise ValueError(
            "one of --matmuls, --steps, --degrees must be given, got "
            f"{' and '.join(f'--{option}' for option in counts) or 'none of them'}"
        )
    if "matmuls" in given:
        return _for_products(given, callback)
    if prices := [option for option in PRICES if option in given]:
        raise ValueError(f"{_listed(prices)} must be given with --matmuls only, the budget")
    alone = "degrees" not in given and not any(option in given for option in (*GREEDY, "upper"))
    if "precision" in given and alone:
        return for_precision(
            given["precision"], given["lower"], steps=len(_degrees(given)), callback=callback
        )
    if "precision" in given:
        raise ValueError(
            "--precision determines degrees, safety and cushion on [lower, 1]; leave --degrees, "
            "--safety, --cushion and --upper out, or give --matmuls"
        )
    return greedy(given["lower"], _degrees(given), **_of(given, "upper", *GREEDY))


def _for_products(given: Options, callback: Callback) -> Schedule:
    """Design with the best degrees for a number of products, among --degrees if given."""
    if "steps" in given or any(option in given for option in GREEDY):
        raise ValueError(
            "--safety and --cushion must be given with --steps or --degrees, not with --matmuls"
        )
    arguments = _of(given, "upper", *PRICES) | {"callback": callback}
    if "degrees" in given:
        arguments["degrees"] = _degrees(given)
    if "precision" in given and not any(option in given for option in ("upper", *PRICES)):
        return for_precision(
            given["precision"], given["lower"], matmuls=given["matmuls"], **arguments
        )
    arguments |= _of(given, "precision")
    if "shape" in given:
        arguments["shape"] = _pair(given, "shape", "two sizes such as 1024,256", int)
    return budget(given["lower"], given["matmuls"], **arguments)


def _band(given: Options, callback: Callback) -> Schedule:
    allowed = "an error such as 0.05 or two limits such as 0.7,1.2"
    limits = _numbers(given, "band", allowed)
    if len(limits) > 2:
        raise ValueError(f"--band must be {allowed}, got {given['band']!r}")
    degrees = _degrees(given)
    return band(len(degrees), tuple(limits) if len(limits) == 2 else limits[0], degree=degrees)


def _spectrum(given: Options, callback: Callback) -> Schedule:
    degrees = _degrees(given)
    more = _bounds(given)
    if "normalisation" in given:
        known = ("frobenius", "spectral")
        more["normalisation"] = choice("--normalisation", given["normalisation"], known)
    values = _singular_values(given["spectrum"])
    return for_spectrum(values, len(degrees), degree=degrees, callback=callback, **more)


def _bounds(given: Options) -> Options:
    allowed = "two numbers such as 0.5,1.1"
    return {"bounds": _pair(given, "bounds", allowed)} if "bounds" in given else {}


def _tuned(given: Options, callback: Callback) -> Schedule:
    objective = given["tune"]
    if "start" not in given:
        raise ValueError("--tune needs a --start: the name of a set or a .json file")
    start = published.schedule(given["start"])
    if objective not in OBJECTIVES:
        file, _ = files.split(objective)
        if not file.exists() and not file.suffix and objective not in files.sample_matrices():
            raise ValueError(
                f"unknown --tune {objective!r}; {nearest(objective, OBJECTIVES)}, or a file of "
                "singular values or of a matrix"
            )
        from polarlib.design import spectrum

        objective = spectrum(_singular_values(objective))
    return tune(objective, start, callback=callback, **_bounds(given))


def _error(given: Options, callback: Callback) -> Schedule:
    if "precision" not in given:
        if others := [option for option in ("lower", "matmuls") if option in given]:
            raise ValueError(f"{_listed(others)} with --error must be given with --precision too")
        return steepest(given["error"], _degrees(given))
    arguments = _of(given, "lower", "steps", "matmuls", "error")
    if "degrees" in given:
        arguments["degrees"] = _degrees(_of(given, "degrees"))
    return for_precision(given["precision"], **arguments, callback=callback)


def _slope(given: Options, callback: Callback) -> Schedule:
    return for_slope(given["slope"], _degrees(given))


def _target(given: Options, callback: Callback) -> Schedule:
    match = re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", given["target"])
    name, argument = match.groups() if match else (given["target"], None)
    name = choice("--target", name, TARGETS)
    parameter, takes = TARGETS[name]
    if bool(parameter) != (argument is not None):
        allowed = f"its parameter, as in {name}({parameter})" if parameter else "no parameter"
        raise ValueError(f"--target {name} must have {allowed}, got {given['target']!r}")
    for option in ("lower", "upper", *GREEDY):
        if option in given and option not in takes:
            raise ValueError(f"--{option} must not be given with --target {name}")
    if takes and takes[0] not in given:
        raise ValueError(f"--target {name} needs --{takes[0]}")
    degrees = _degrees(given)
    if name == "clip":
        return clip(given["upper"], degrees, callback=callback)
    kind = int if name == "inverse_root" else float
    try:
        p = kind(str(argument))
    except ValueError:
        raise ValueError(
            f"--target {name} must have a number, as in {name}({parameter}), got "
            f"{given['target']!r}"
        ) from None
    if name == "power":
        return power(p, given["lower"], degrees, callback=callback)
    if name == "smooth_sign":
        return smooth_sign(p, degrees, callback=callback)
    return inverse_root(int(p), given["lower"], degrees, **_of(given, *GREEDY))


def _zolotarev(given: Options, callback: Callback) -> Schedule:
    if "lower" not in given:
        raise ValueError("--zolotarev needs --lower, the lower end of the interval")
    return zolotarev(given["zolotarev"], given["lower"])


# Targets other than the polar factor: an example of the parameter, and the options that each
# takes, of which the first is required.
TARGETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "clip": ("", ("upper",)),
    "power": ("0.5", ("lower",)),
    "smooth_sign": ("0.1", ()),
    "inverse_root": ("4", ("lower", *GREEDY)),
}
COUNTS = ("steps", "degrees")
REQUESTS = {
    "lower": _Request(("upper", "matmuls", *COUNTS, "precision", *GREEDY, *PRICES), _interval),
    "band": _Request(COUNTS, _band),
    "error": _Request(("lower", "matmuls", *COUNTS, "precision"), _error),
    "slope": _Request(COUNTS, _slope),
    "spectrum": _Request((*COUNTS, "bounds", "normalisation"), _spectrum),
    "tune": _Request(("start", "bounds"), _tuned),
    "target": _Request(("lower", "upper", *COUNTS, *GREEDY), _target),
    "zolotarev": _Request(("lower",), _zolotarev),
}
