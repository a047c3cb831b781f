"""Coefficient sets: published ones, and the library's own for each number format.

Loads ``data/schedules.toml`` and ``data/own_schedules.toml``. A new set is an entry in the first.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from polarlib import design
from polarlib._schedule import Schedule, is_count
from polarlib.formats import format_of, nearest
from polarlib.ops import at_trace_time, looks

__all__ = ["conventions", "default_schedule", "is_published", "listed", "schedule", "schedules"]

# Steps of a repeating set when none are asked for: what Muon and its successors take.
DEFAULT_STEPS = 5
# What the library's own schedules are designed for, chosen by experiment (decisions/0011). Worst
# error: a larger one reaches further down, a smaller one is nearer to 1 above. Least cushion: a
# larger one keeps large singular vectors from rotating, and costs slope. Steps beyond the sixth buy
# accuracy besides reach.
OWN_ERROR = 0.019
OWN_CUSHION = 0.02
REACHING_STEPS = 6
ERROR_PER_STEP = 0.25
CUSHION_BEYOND = 0.1


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
    text = resources.files("polarlib").joinpath(f"data/{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _sets() -> dict[str, dict[str, Any]]:
    return _data("schedules")


@_reads_a_table
def default_schedule(
    format: str, *, steps: int | None = None, matmuls: int | None = None
) -> Schedule:
    """Look up, or design, the library's own schedule for a number format.

    Quintics (degrees 3 and 5 for a number of products) from :func:`polarlib.design.for_precision`,
    for the widest interval on which the worst error is at most 0.019 (a quarter of it for every
    step beyond the sixth); the input is divided by a
    bound of its largest singular value that the first Gram matrix gives ("moments").

    Parameters
    ----------
    format : str
        Name of the number format in which the matrices are rounded.
    steps : int, optional
        Number of quintics, 5 by default.
    matmuls : int, optional
        Instead of steps: the best degrees for so many matrix products, at least 2.

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        For an unknown format, both of `steps` and `matmuls`, or a number below the least.

    Examples
    --------
    >>> s = default_schedule("bfloat16")
    >>> s.matmuls, s.error() <= 0.019, round(s.slope)
    (15, True, 650)
    """
    name = format_of(format).name
    if steps is None and matmuls is None:
        steps = DEFAULT_STEPS
    if matmuls is None and steps is not None and is_count(steps):
        return _own(name, int(steps))
    products = matmuls if matmuls is not None and is_count(matmuls) else 3
    return _designed(name, products, steps, matmuls)


@functools.lru_cache(maxsize=256)
def _own(name: str, steps: int) -> Schedule:
    entry = _data("own_schedules")[name].get(str(steps))
    return _designed(name, 3 * steps, steps, None) if entry is None else _named(name, **entry)


def _designed(name: str, products: int, steps: int | None, matmuls: int | None) -> Schedule:
    error, cushion = own_goals(products)
    found = design.for_precision(name, steps=steps, matmuls=matmuls, error=error, cushion=cushion)
    return _named(name, found.steps, found.lower, error, cushion)


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


def schedules() -> tuple[str, ...]:
    """Names of the published sets.

    Examples
    --------
    >>> "polar_express" in schedules()
    True
    """
    return tuple(_sets())


@at_trace_time
def is_published(name: Any) -> bool:
    """Whether something is the name of a published set; torch.compile may ask.

    Examples
    --------
    >>> is_published("jordan"), is_published("auto")
    (True, False)
    """
    return isinstance(name, str) and name in _sets()


def _entry(name: str) -> dict[str, Any]:
    try:
        return _sets()[name]
    except KeyError:
        raise ValueError(f"unknown schedule {name!r}; {nearest(name, schedules())}") from None


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
    return _entry(name)["scaling"]


@functools.lru_cache(maxsize=256)
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
    entry = _entry(name)
    steps = entry.get("steps")
    if steps is None:
        base = listed(entry["derived_from"])
        s = entry["post_hoc_safety"]
        steps = [tuple(c / s ** (2 * i + 1) for i, c in enumerate(step)) for step in base.steps]
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
    )


@_reads_a_table
def schedule(name: str, steps: int | None = None) -> Schedule:
    """Look a published set up by name.

    Parameters
    ----------
    name : str
        One of :func:`schedules`.
    steps : int, optional
        Number of steps: the first `steps` of the list, then as its repeat rule says. By default
        the listed length, or 5 for sets that repeat.

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        For an unknown name, `steps` below 1, or more than a set has that does not repeat.

    Examples
    --------
    >>> s = schedule("jordan", steps=5)
    >>> s.matmuls, round(s.slope)
    (15, 485)
    """
    if not isinstance(name, str):
        raise ValueError(f"unknown schedule {name!r}; {nearest(name, schedules())}")
    if steps is not None and not is_count(steps):
        raise ValueError(f"steps must be an integer of at least 1, got {steps!r}")
    return _truncated(name, None if steps is None else int(steps))


@functools.lru_cache(maxsize=256)
def _truncated(name: str, steps: int | None) -> Schedule:
    whole = listed(name)
    if steps is None:
        steps = len(whole) if whole.repeat is None else DEFAULT_STEPS
    return whole.truncate(steps)
