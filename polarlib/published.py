"""Coefficient sets: published ones, and the library's own for each number format.

Loads ``data/schedules.toml`` and ``data/own_schedules.toml``. A new set is an entry in the first.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from typing import Any, TypeAlias

import polarlib.design as design
from polarlib._schedules.images import odd_image
from polarlib._schedules.schedule import Schedule
from polarlib._schedules.steps import absorbed
from polarlib._schedules.targets import parse_target
from polarlib.arrays.checks import MOST_STEPS, count, nearest, shown
from polarlib.arrays.checks import path as checked_path
from polarlib.arrays.formats import format_of, printable, round_number
from polarlib.arrays.settings import at_trace_time, looks
from polarlib.design.compose import pade
from polarlib.design.lowbits import NOISE

__all__ = [
    "conventions",
    "default_schedule",
    "listed",
    "opened",
    "schedule",
    "schedules",
    "target_of",
]

# What stands for a schedule wherever one is asked for: a name, a file, or the schedule itself.
Named: TypeAlias = str | os.PathLike[str] | Schedule

# Steps of a repeating set when none are asked for: what Muon and its successors take.
DEFAULT_STEPS = 5
# The schedule that has its steps from the matrix: polarlib.engine.adaptive.
ADAPTIVE = "adaptive"
# What the library's own schedules are designed for, chosen by experiment (decisions/0011). Worst
# error: a larger one reaches further down, a smaller one is nearer to 1 above. Least cushion: a
# larger one keeps large singular vectors from rotating, and costs slope. Steps beyond the sixth buy
# accuracy as well as reach.
OWN_ERROR = 0.019
OWN_CUSHION = 0.02
REACHING_STEPS = 6
ERROR_PER_STEP = 0.25
CUSHION_BEYOND = 0.1
# By this number of steps [u / 256, 1] is mapped to 1 up to rounding in every format: float64 takes
# about 35. More would repeat the last one.
MOST_OWN = 64
# Designs for more products take longer than ten seconds.
MOST_PRODUCTS = 48
# What a step repeated before a schedule leaves free: above it for rounding, in unit roundoffs, and
# for being a little below its slope at the lower end. Chosen generously.
ROUNDINGS, CURVED = 64, 1.01


def own_goals(products: int) -> tuple[float, float]:
    """Worst error and least cushion of the library's own schedule of so many products."""
    beyond = products / 3 - REACHING_STEPS
    if beyond <= 0:
        return OWN_ERROR, OWN_CUSHION
    return OWN_ERROR * ERROR_PER_STEP**beyond, CUSHION_BEYOND


_reads_a_table = functools.partial(
    looks,
    reason="polarlib looks schedules up in a table: do it before torch.compile, or pass the name "
    "to orthogonalize",
)


@functools.cache
def _data(name: str) -> dict[str, dict[str, Any]]:
    import tomllib  # where it is first needed

    text = resources.files("polarlib").joinpath(f"data/{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def adaptive_data() -> dict[str, dict[str, Any]]:
    """Return the rule of ``schedule="adaptive"``, and its steps by format and number."""
    return _data("adaptive")


@_reads_a_table
def default_schedule(
    format: str, *, steps: int | None = None, matmuls: int | None = None
) -> Schedule:
    """Look up, or design, the library's own schedule for a number format.

    Quintics (degrees 3 and 5 for a number of products) from :func:`polarlib.design.for_precision`,
    for the widest interval on which the worst error is at most 0.019 (about a quarter of it for
    every step beyond the sixth, down to what rounding of the coefficients leaves). The input is
    divided by a bound of its largest singular value from the first Gram matrix ("moments").

    Up to 16 steps are stored. More steps are made of those: the first one, divided by its largest
    value, is repeated before them, until the interval reaches 1/256 unit roundoff, below which
    singular values are noise; Newton-Schulz steps, which converge to rounding, follow after them.
    Schedules for a number of products are designed at first use, which takes seconds, and kept in
    memory: the 256 used last.

    Parameters
    ----------
    format : str
        Name of the number format in which the matrices are rounded.
    steps : int, optional
        Number of quintics, from 1 to 64; 5 by default.
    matmuls : int, optional
        Instead of steps: the best degrees for so many matrix products, from 2 to 48; designed at
        first use.

    Raises
    ------
    ValueError
        For an unknown format, both of `steps` and `matmuls`, or a number outside of these ranges.

    Examples
    --------
    >>> s = default_schedule("bfloat16")
    >>> s.matmuls, s.error() <= 0.019, round(s.slope)
    (15, True, 650)
    """
    name = format_of(format).name
    if steps is None and matmuls is None:
        steps = DEFAULT_STEPS
    if steps is not None and matmuls is not None:
        return design.for_precision(name, steps=steps, matmuls=matmuls, error=OWN_ERROR)  # refuses
    if matmuls is not None:
        matmuls = count("matmuls", matmuls, 2)
        if matmuls > MOST_PRODUCTS:
            raise ValueError(
                f"matmuls must be at most {MOST_PRODUCTS} for the default schedule, got "
                f"{shown(matmuls)}; give steps, up to {MOST_OWN}"
            )
        return _own(name, None, matmuls)
    steps = count("steps", steps)
    if steps > MOST_OWN:
        raise ValueError(
            f"steps must be at most {MOST_OWN} for the default schedule, which has then converged "
            f"to rounding in every format, got {shown(steps)}; leave steps out, or take polar"
        )
    return _own(name, steps, None)


# Cached, since a design takes seconds.
@functools.lru_cache(maxsize=256)
def _own(name: str, steps: int | None, matmuls: int | None) -> Schedule:
    stored = _data("own_schedules")[name]
    longest = max(map(int, stored))
    if steps is not None and steps > longest:
        return _lengthened(_own(name, longest, None), name, steps)
    entry = stored.get(str(steps))
    if entry is None:
        error, cushion = own_goals(3 * (steps or 0) + (matmuls or 0))
        found = design.for_precision(
            name, steps=steps, matmuls=matmuls, degrees=(3, 5), error=error, cushion=cushion
        )
        entry = {"steps": found.steps, "lower": found.lower, "error": error, "cushion": cushion}
    return _named(name, **entry)


def _lengthened(s: Schedule, name: str, steps: int) -> Schedule:
    """More steps: such as reach further down before, and such as converge after those of `s`.

    With q the first step over its largest value, q maps [l / slope, 1] into [l, 1].
    """
    precision = format_of(name)
    unit, carrier = precision.unit_roundoff, format_of(precision.carrier)
    top = odd_image(s.steps[:1], s.lower, 1.0)[1] * (1 + ROUNDINGS * unit)
    gentle = tuple(round_number(c / top, carrier) for c in s.steps[0])
    slope = gentle[0] / CURVED
    spare = steps - len(s)
    reached = max(s.lower / (NOISE * unit), 1.0)
    # One step at least is left to converge after them.
    before = min(math.ceil(math.log(reached) / math.log(slope)), spare - 1)
    return replace(
        s,
        steps=(gentle,) * before + s.steps + (pade(2),) * (spare - before),
        lower=s.lower / slope**before,
        source=f"{s.source}; {before} steps more before these, {spare - before} after",
    )


def _named(
    name: str, steps: Sequence[Sequence[float]], lower: float, error: float, cushion: float
) -> Schedule:
    return Schedule(
        steps=tuple(map(tuple, steps)),
        lower=lower,
        normalisation="moments",
        name=f"own, for {name}",
        source=f"design.for_precision({name!r}, error={error!r}, cushion={cushion!r})",
    )


def schedules(*, target: str | None = None) -> tuple[str, ...]:
    """Names of the published sets, in the order in which they are listed.

    Parameters
    ----------
    target : str, optional
        Only the sets with this :attr:`Schedule.target`, such as "polar", for the unitary polar
        factor; all of them by default.

    Raises
    ------
    ValueError
        For a target that :class:`Schedule` does not know.

    Examples
    --------
    >>> "polar_express" in schedules()
    True
    >>> schedules(target="clip")
    ('lipschitz_cap',)
    """
    if target is not None:
        parse_target(target)
    return tuple(name for name in _data("schedules") if target in (None, target_of(name)))


@at_trace_time
def target_of(name: Any) -> str | None:
    """Target of the published set of a name; None for anything else. torch.compile may ask.

    Examples
    --------
    >>> target_of("jordan"), target_of("lipschitz_cap"), target_of("auto")
    ('polar', 'clip', None)
    """
    entry = _data("schedules").get(name) if isinstance(name, str) else None
    return None if entry is None else str(entry.get("target", "polar"))


def _known(name: Any) -> str:
    if isinstance(name, str) and name == ADAPTIVE:
        raise ValueError(
            "schedule 'adaptive' depends on the matrix: give its name to orthogonalize(g, "
            "schedule='adaptive') or measure(a, 'adaptive')"
        )
    if target_of(name) is None:
        allowed = nearest(name, (*schedules(), ADAPTIVE))
        raise ValueError(
            f"unknown schedule {shown(name)}; {allowed}; polarlib.schedules() lists all"
        )
    return str.__str__(name)


def conventions(name: str) -> str:
    """Return the scaling convention of a published set, in words.

    Parameters
    ----------
    name : str
        One of :func:`schedules`.

    Examples
    --------
    >>> conventions("polar_express_102")
    'in the loop: safety 0.02, last step exempt'
    """
    return str(_data("schedules")[_known(name)]["scaling"])


def listed(name: str) -> Schedule:
    """Look a published set up as listed, its repeat rule not yet applied.

    Parameters
    ----------
    name : str
        One of :func:`schedules`.

    Examples
    --------
    >>> len(listed("polar_express")), listed("polar_express").repeat
    (8, 'last')
    """
    return _listed(_known(name))


@functools.lru_cache(maxsize=256)
def _listed(name: str) -> Schedule:
    entry = _data("schedules")[name]
    steps = entry.get("steps")
    if steps is None:
        base = listed(entry["derived_from"])
        s = entry["post_hoc_safety"]
        steps = [absorbed(step, s) for step in base.steps]
        if not entry["safety_on_last"]:
            steps[-1] = base.steps[-1]
        steps = steps[: entry.get("length")]
        # A set cut to a length of its own ends there.
        entry = {"repeat": None if "length" in entry else base.repeat, **entry}
    return Schedule(
        steps=tuple(map(tuple, steps)),
        lower=entry["lower"],
        upper=entry["upper"],
        normalisation=entry["normalisation"],
        input_safety=entry.get("input_safety", 1.0),
        name=name,
        source=entry["source"],
        repeat=entry.get("repeat"),
        stride=entry.get("stride", 2),
        target=target_of(name) or "polar",
    )


def opened(name: Any) -> Any:
    """Return the schedule in a file, where `name` names a file of schedules; else `name` as it is.

    Text that ends in ".json" and path-like objects name files, which `Schedule.to_json` has
    written. A file is read again when it has changed.

    Raises
    ------
    ValueError
        If the file is missing, cannot be read, or holds no schedule; the message names it.

    Examples
    --------
    >>> opened("jordan"), opened("absent.json")
    Traceback (most recent call last):
    ValueError: schedule: absent.json: No such file or directory
    """
    if not (isinstance(name, os.PathLike) or (isinstance(name, str) and name.endswith(".json"))):
        return name
    return _in_file(name)


@_reads_a_table
def _in_file(name: Any) -> Schedule:
    path = os.fsdecode(checked_path("schedule", name))
    try:
        state = os.stat(path)
        # The inode too: a file that is replaced has another one, however fast it is replaced.
        return _read(path, (state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino))
    except OSError as error:
        said = f"{printable(path)}: {error.strerror}" if error.strerror else printable(error)
        raise ValueError(f"schedule: {said}") from None


# Cached, since an optimizer names the same file for each of its matrices in each of its steps.
@functools.lru_cache(maxsize=64)
def _read(path: str, stamp: tuple[int, ...]) -> Schedule:
    return Schedule.from_json(path)


@_reads_a_table
def schedule(name: str | os.PathLike[str], steps: int | None = None) -> Schedule:
    """Look a published set up by name, or read a schedule from its file.

    Parameters
    ----------
    name : str or path-like
        One of :func:`schedules`, or a file that :meth:`Schedule.to_json` has written: text that
        ends in ".json", or a path of any name.
    steps : int, optional
        Number of steps: the first `steps` of the list, then by its repeat rule. By default
        the listed length, or 5 for published sets that repeat.

    Raises
    ------
    ValueError
        For an unknown name, a file that is missing or holds no schedule, `steps` below 1, or more
        than a set has that does not repeat.

    Examples
    --------
    >>> s = schedule("jordan", steps=5)
    >>> s.matmuls, round(s.slope)
    (15, 485)
    """
    found = opened(name)
    if isinstance(found, Schedule):
        return found if steps is None else found.truncate(steps)
    known = _known(found)
    return _truncated(known, None if steps is None else count("steps", steps, most=MOST_STEPS))


@functools.lru_cache(maxsize=256)
def _truncated(name: str, steps: int | None) -> Schedule:
    whole = listed(name)
    if steps is None:
        steps = len(whole) if whole.repeat is None else DEFAULT_STEPS
    return whole.truncate(steps)
