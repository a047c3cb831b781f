"""The timer of bench, of the command line and of benchmarks/.

Functions are timed interleaved, in rotating order, so that all of them meet the same state of the
machine: its other work and its clock.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["interleaved", "ratios"]

# Calls that take less than SHORT seconds are repeated in a turn, CALLS times at least: the first
# one after a pause may wait long for its threads.
CALLS, SHORT = 3, 0.1


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    seconds: float,
    *,
    least: int = 5,
    most: float = math.inf,
    pause: float = 0.0,
    burst: float = 0.0,
    before: Callable[[], Any] | None = None,
) -> dict[str, list[float]]:
    """Time functions interleaved, in rotating order, after one warm-up each.

    Parameters
    ----------
    functions : mapping
        Functions without arguments, by name.
    seconds : float
        Time after which no further round begins, warm-up excluded.
    least, most : int, optional
        Smallest and largest number of rounds, whatever time they take.
    pause : float, optional
        Seconds to wait before each turn of a function.
    burst : float, optional
        Seconds that the calls of a turn take together; by default a turn is one call.
    before : callable, optional
        Called before each call, and not timed.

    Returns
    -------
    dict
        Seconds of a call in each round, by name: the median over the turn.

    Examples
    --------
    >>> {name: len(times) for name, times in interleaved({"sum": lambda: sum((1, 2))}, 0).items()}
    {'sum': 5}
    """

    def call(function: Callable[[], Any]) -> float:
        if before is not None:
            before()
        begun = time.perf_counter()
        function()
        return time.perf_counter() - begun

    def turn(function: Callable[[], Any]) -> float:
        time.sleep(pause)
        each = [call(function)]
        while burst and (sum(each) < burst or (len(each) < CALLS and min(each) < SHORT)):
            each.append(call(function))
        return statistics.median(each)

    for function in functions.values():
        call(function)
    times: dict[str, list[float]] = {name: [] for name in functions}
    names, rounds = list(functions), 0
    end = time.perf_counter() + seconds
    while rounds < least or (rounds < most and time.perf_counter() < end):
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(turn(functions[name]))
        rounds += 1
    return times


def ratios(times: Mapping[str, list[float]], reference: str, name: str) -> list[float]:
    """Return the times of a reference divided by those of a function, round by round.

    Examples
    --------
    >>> ratios({"a": [2.0, 3.0], "b": [1.0, 6.0]}, "a", "b")
    [2.0, 0.5]
    """
    return [r / t for r, t in zip(times[reference], times[name], strict=True)]
