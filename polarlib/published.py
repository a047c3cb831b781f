"""Published coefficient sets: loads ``data/schedules.toml``. A new set is an entry there."""

from __future__ import annotations

import functools
import tomllib
from importlib import resources
from typing import Any

from polarlib._schedule import Schedule, is_count
from polarlib.formats import nearest

__all__ = ["conventions", "listed", "schedule", "schedules"]

# Steps of a repeating set when none are asked for: what Muon and its successors take.
DEFAULT_STEPS = 5


@functools.cache
def _sets() -> dict[str, dict[str, Any]]:
    text = resources.files("polarlib").joinpath("data/schedules.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def schedules() -> tuple[str, ...]:
    """Names of the published sets.

    Examples
    --------
    >>> "polar_express" in schedules()
    True
    """
    return tuple(_sets())


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
