"""Coefficient sets: published sets, and the default schedules for each number format.

The sets are in ``data/schedules.toml``, to which a new set is added as an entry, and the default
schedules in ``data/own_schedules.toml``.
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

# Arguments that name a schedule: a name, a file, or the schedule itself.
Named: TypeAlias = str | os.PathLike[str] | Schedule

# Default number of steps of a set that repeats: that of Muon and its successors.
DEFAULT_STEPS = 5
# The schedule whose steps are computed from the matrix: polarlib.engine.adaptive.
ADAPTIVE = "adaptive"
# Goals of the default schedules, chosen by experiment (decisions/0011). A larger worst error widens
# the interval, a smaller one brings its values nearer to 1. A larger least cushion keeps singular
# vectors of large values from rotating, and reduces the slope. Steps beyond the sixth reduce the
# error and widen the interval.
OWN_ERROR = 0.019
OWN_CUSHION = 0.02
REACHING_STEPS = 6
ERROR_PER_STEP = 0.25
CUSHION_BEYOND = 0.1
# This number of steps maps [u / 256, 1] to 1 up to rounding in every format: float64 needs about
# 35. Further steps would repeat the last one.
MOST_OWN = 64
# A design for more products takes longer than ten seconds.
MOST_PRODUCTS = 48
# Margins of a step that is repeated before a schedule: for rounding above its values, in unit
# roundoffs, and for the quotient of its slope and p(l) / l at the lower end. Chosen generously.
ROUNDINGS, CURVED = 64, 1.01


def own_goals(products: int) -> tuple[float, float]:
    """Return the worst error and the least cushion of the default schedule, by its products."""
    beyond = products / 3 - REACHING_STEPS
    if beyond <= 0:
        return OWN_ERROR, OWN_CUSHION
    return OWN_ERROR * ERROR_PER_STEP**beyond, CUSHION_BEYOND


_reads_a_table = functools.partial(
    looks,
    reason="polarlib reads schedules from a file; call it before torch.compile, or pass the name "
    "to orthogonalize",
)


@functools.cache
def _data(name: str) -> dict[str, dict[str, Any]]:
    import tomllib  # here, to keep the import of polarlib short

    text = resources.files("polarlib").joinpath(f"data/{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def adaptive_data() -> dict[str, dict[str, Any]]:
    """Return the rule of ``schedule="adaptive"``, and its steps by format and number."""
    return _data("adaptive")


@_reads_a_table
def default_schedule(
    format: str, *, steps: int | None = None, matmuls: int | None = None
) -> Schedule:
    """Return the default schedule for a number format.

    Its steps have degree 5, or degrees 3 and 5 for a number of products. They are designed by
    :func:`polarlib.design.for_precision` for the widest interval on which the worst error is at
    most 0.019. Each step beyond the sixth divides that error by four, down to the rounding of the
    coefficients. The input is divided by a bound of its largest singular value, computed from the
    first Gram matrix (normalisation "moments").

    Schedules of up to 16 steps are stored. A longer one has further steps before and after these.
    Before them the first step, divided by its largest value, is repeated until the interval
    reaches 1/256 unit roundoff, below which singular values are rounding errors. After them follow
    Newton-Schulz steps, which converge to rounding. Schedules for a number of products are
    designed at first use, which takes seconds, and the last 256 are kept in memory.

    Parameters
    ----------
    format : str
        Name of the number format in which the matrices are rounded.
    steps : int, optional
        Number of degree-5 steps, from 1 to 64; 5 by default.
    matmuls : int, optional
        Number of matrix products, from 2 to 48, instead of `steps`: the best degrees for it.

    Returns
    -------
    Schedule
        Of normalisation "moments", for singular values in [lower, upper] of the divided input.

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
            f"to rounding in every format, got {shown(steps)}; leave steps out, or use polar"
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
        s = design.for_precision(
            name, steps=steps, matmuls=matmuls, degrees=(3, 5), error=error, cushion=cushion
        )
        entry = {"steps": s.steps, "lower": s.lower, "error": error, "cushion": cushion}
    return _named(name, **entry)


def _lengthened(s: Schedule, name: str, steps: int) -> Schedule:
    """Return `s` with further steps: before it to widen the interval, after it to converge.

    Let q be the first step divided by its largest value. Then q maps [l / slope, 1] into [l, 1].
    """
    precision = format_of(name)
    unit, carrier = precision.unit_roundoff, format_of(precision.carrier)
    top = odd_image(s.steps[:1], s.lower, 1.0)[1] * (1 + ROUNDINGS * unit)
    gentle = tuple(round_number(c / top, carrier) for c in s.steps[0])
    slope = gentle[0] / CURVED
    spare = steps - len(s)
    reached = max(s.lower / (NOISE * unit), 1.0)
    # At least one step remains to converge.
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
    """Return the names of the published sets, in the order of their file.

    Parameters
    ----------
    target : str, optional
        Only the sets with this :attr:`Schedule.target`, such as "polar", for the unitary polar
        factor; all sets by default.

    Returns
    -------
    tuple of str
        Names that :func:`schedule` accepts.

    Raises
    ------
    ValueError
        For a target that is not one of :class:`Schedule`.

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
    """Return the target of a published set by its name, None for anything else.

    It may be called while torch.compile traces.

    Parameters
    ----------
    name : object
        One of :func:`schedules`, or any other value.

    Returns
    -------
    str or None
        The :attr:`Schedule.target` of the set, such as "polar".

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
            "schedule 'adaptive' depends on the matrix; use orthogonalize(g, schedule='adaptive') "
            "or measure(a, 'adaptive')"
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

    Returns
    -------
    str
        Safety factors, the steps to which they apply, and remarks on convergence.

    Raises
    ------
    ValueError
        For an unknown name.

    Examples
    --------
    >>> conventions("polar_express_102")
    'in the loop: safety 0.02, last step exempt'
    """
    return str(_data("schedules")[_known(name)]["scaling"])


def listed(name: str) -> Schedule:
    """Return a published set as listed, without its repeat rule applied.

    Parameters
    ----------
    name : str
        One of :func:`schedules`.

    Returns
    -------
    Schedule
        All steps of the list.

    Raises
    ------
    ValueError
        For an unknown name.

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
        # A set with a length of its own does not repeat.
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
    """Return the schedule in a file if `name` is the name of one, otherwise `name` unchanged.

    Text that ends in ".json" and path-like objects are names of files, which `Schedule.to_json`
    has written. A file is read again when it has changed.

    Parameters
    ----------
    name : object
        Name of a file, or any other value.

    Returns
    -------
    Schedule or object
        The schedule of the file, or `name` itself.

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
        # The inode too: it changes when a file is replaced, even within the clock's resolution.
        return _read(path, (state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino))
    except OSError as error:
        reason = f"{printable(path)}: {error.strerror}" if error.strerror else printable(error)
        raise ValueError(f"schedule: {reason}") from None


# Cached, since an optimizer passes the same file for each matrix in each step.
@functools.lru_cache(maxsize=64)
def _read(path: str, stamp: tuple[int, ...]) -> Schedule:
    return Schedule.from_json(path)


@_reads_a_table
def schedule(name: str | os.PathLike[str], steps: int | None = None) -> Schedule:
    """Return a published set by name, or read a schedule from its file.

    Parameters
    ----------
    name : str or path-like
        One of :func:`schedules`, or a file that :meth:`Schedule.to_json` has written: text that
        ends in ".json", or a path of any name.
    steps : int, optional
        Number of steps: the first `steps` of the list, continued by its repeat rule. By default
        the listed length, or 5 for published sets that repeat.

    Returns
    -------
    Schedule
        With `steps` steps.

    Raises
    ------
    ValueError
        For an unknown name, a file that is missing or has no schedule, `steps` below 1, or more
        steps than a set has that does not repeat.

    Examples
    --------
    >>> s = schedule("jordan", steps=5)
    >>> s.matmuls, round(s.slope)
    (15, 485)
    """
    read = opened(name)
    if isinstance(read, Schedule):
        return read if steps is None else read.truncate(steps)
    known = _known(read)
    return _truncated(known, None if steps is None else count("steps", steps, most=MOST_STEPS))


@functools.lru_cache(maxsize=256)
def _truncated(name: str, steps: int | None) -> Schedule:
    whole = listed(name)
    if steps is None:
        steps = len(whole) if whole.repeat is None else DEFAULT_STEPS
    return whole.truncate(steps)
