"""What polarlib design designs for: one entry of `REQUESTS` for each kind of request.

A request is named by one option; the others say more. The words are those of the functions of
polarlib.design, which check the values.
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
QUINTIC = 5  # degree of steps where none is given
OBJECTIVES = ("slope", "error")
GREEDY = ("safety", "cushion")
PRICES = ("form", "shape", "costs", "library", "batch")

Options = dict[str, Any]


class _Request(NamedTuple):
    """The options that go with the one that names the request, and the function that designs."""

    takes: tuple[str, ...]
    design: Callable[[Options, Callback], Schedule]


def designed(given: Options, callback: Callback) -> Schedule:
    """Design for the options that were given, by name; contradictions are refused."""
    kinds = [kind for kind in REQUESTS if kind in given and kind != "lower"]
    if len(kinds) > 1:
        raise ValueError(f"give one of {_listed(kinds)}: a schedule is designed for one of them")
    if not kinds and "lower" not in given:
        others = [kind for kind in REQUESTS if kind != "lower"]
        raise ValueError(f"give --lower, for an interval, or one of {_listed(others)}")
    (kind,) = kinds or ["lower"]
    request = REQUESTS[kind]
    for option in given:
        if option not in (kind, *request.takes):
            raise ValueError(
                f"--{option} does not go with --{kind}, which takes {_listed(request.takes)}"
            )
    return request.design(given, callback)


def _listed(options: Any) -> str:
    return ", ".join(f"--{option}" for option in options)


# -- values of options -----------------------------------------------------------------------


def _numbers(given: Options, option: str, what: str, kind: Callable[[str], Any] = float) -> Any:
    """Numbers with commas between."""
    try:
        return [kind(part) for part in given[option].split(",")]
    except ValueError:
        raise ValueError(f"--{option} must be {what}, got {given[option]!r}") from None


def _pair(given: Options, option: str, what: str, kind: Callable[[str], Any] = float) -> Any:
    found = _numbers(given, option, what, kind)
    if len(found) != 2:
        raise ValueError(f"--{option} must be {what}, got {given[option]!r}")
    return tuple(found)


def _degrees(given: Options) -> list[int]:
    """Degree of each step, from --degrees, --steps or both."""
    if "steps" not in given and "degrees" not in given:
        raise ValueError("give --steps, for steps of degree 5, or --degrees")
    steps: Any = given.get("steps")
    if steps is not None and steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    if "degrees" not in given:
        return [QUINTIC] * steps
    what = "odd numbers with commas between, such as 3,5,5"
    found: list[int] = _numbers(given, "degrees", what, int)
    if len(found) > MOST_STEPS or max(found) > MOST_DEGREE:
        raise ValueError(
            f"--degrees must be at most {MOST_STEPS} numbers up to {MOST_DEGREE}, got "
            f"{given['degrees']!r}"
        )
    if steps is None or steps == len(found):
        return found
    if len(found) > 1:
        raise ValueError(
            f"--degrees must be one degree or {steps}, as many as --steps, got {given['degrees']!r}"
        )
    return found * int(steps)


def _of(given: Options, *options: str) -> Options:
    """The options that were given, as arguments of the function."""
    return {option: given[option] for option in options if option in given}


def _singular_values(source: str) -> np.ndarray:
    """Singular values from a file, as a vector or of the matrix that it holds."""
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
    if trouble := not_finite(a):
        raise ValueError(f"{source}: {trouble}; remove them")
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
            "give one of --matmuls, --steps, --degrees, got "
            f"{' and '.join(f'--{option}' for option in counts) or 'none of them'}"
        )
    if "matmuls" in given:
        return _for_products(given, callback)
    if prices := [option for option in PRICES if option in given]:
        raise ValueError(f"{_listed(prices)} go with --matmuls, the budget")
    alone = "degrees" not in given and not any(option in given for option in (*GREEDY, "upper"))
    if "precision" in given and alone:
        return for_precision(
            given["precision"], given["lower"], steps=len(_degrees(given)), callback=callback
        )
    if "precision" in given:
        raise ValueError(
            "--precision derives degrees, safety and cushion for [lower, 1] by itself: leave "
            "--degrees, --safety, --cushion and --upper out, or give --matmuls"
        )
    return greedy(given["lower"], _degrees(given), **_of(given, "upper", *GREEDY))


def _for_products(given: Options, callback: Callback) -> Schedule:
    """The best degrees for a number of products; --degrees are those to choose from."""
    if "steps" in given or any(option in given for option in GREEDY):
        raise ValueError("--safety and --cushion go with --steps or --degrees, not with --matmuls")
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
    what = "an error such as 0.05 or two limits such as 0.7,1.2"
    limits = _numbers(given, "band", what)
    if len(limits) > 2:
        raise ValueError(f"--band must be {what}, got {given['band']!r}")
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
    what = "two numbers such as 0.5,1.1"
    return {"bounds": _pair(given, "bounds", what)} if "bounds" in given else {}


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
            raise ValueError(f"{_listed(others)} goes with --error only together with --precision")
        return steepest(given["error"], _degrees(given))
    arguments = _of(given, "lower", "steps", "matmuls", "error")
    if "degrees" in given:
        arguments["degrees"] = _degrees(_of(given, "degrees"))
    return for_precision(given["precision"], **arguments, callback=callback)


def _slope(given: Options, callback: Callback) -> Schedule:
    return for_slope(given["slope"], _degrees(given))


def _target(given: Options, callback: Callback) -> Schedule:
    found = re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", given["target"])
    name, argument = found.groups() if found else (given["target"], None)
    name = choice("--target", name, TARGETS)
    parameter, takes = TARGETS[name]
    if bool(parameter) != (argument is not None):
        said = f"its parameter, as in {name}({parameter})" if parameter else "no parameter"
        raise ValueError(f"--target {name} has {said}, got {given['target']!r}")
    for option in ("lower", "upper", *GREEDY):
        if option in given and option not in takes:
            raise ValueError(f"--{option} does not go with --target {name}")
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
            f"--target {name} takes a number, as in {name}({parameter}), got {given['target']!r}"
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


# Other functions than the polar factor: an example of the parameter, and the options that each
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
