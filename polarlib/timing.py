"""The timer of bench, of the command line and of benchmarks/.

Functions are timed interleaved, so that all of them meet the same state of the machine: its other
work and its clock. The time of a call depends on what the program did before: NumPy and SciPy bring
a BLAS each, and after a product the idle threads of one wait actively for more work and occupy
processors. A situation names what precedes each timed call.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["BURST", "PAUSE", "SITUATIONS", "factors", "interleaved", "ratios"]

SITUATIONS = ("alone", "alternation", "after a product")
# Seconds. Idle threads of OpenBLAS wait actively for 2**28 ticks of the processor's counter, 0.13 s
# at 2.1 GHz: measured as processor time that a process uses while it sleeps after a product.
PAUSE = 0.15
# Seconds that the calls of a turn take together, at least: a thousand times the resolution of the
# coarsest clock (Windows, 1e-7), and less than any BLAS waits actively, so that every call of the
# turn meets the situation.
BURST = 1e-4
ORDER = 512  # of the matrices multiplied before a call


def factors() -> tuple[np.ndarray, np.ndarray]:
    """Return the two matrices, float64 of shape (512, 512), of the situation "after a product".

    Returns
    -------
    tuple of two ndarray, shape (512, 512)
        Gaussian, float64; the same in every call.

    Examples
    --------
    >>> [x.shape for x in factors()]
    [(512, 512), (512, 512)]
    """
    a, b = np.random.default_rng(0).standard_normal((2, ORDER, ORDER))
    return a, b


def _preparation(situation: str) -> Callable[[], Any]:
    """Return the function that a situation calls before each turn."""
    if situation == "alone":
        return functools.partial(time.sleep, PAUSE)
    if situation == "after a product":
        return functools.partial(np.matmul, *factors())
    if situation == "alternation":
        return lambda: None
    raise ValueError(f"situation must be one of {', '.join(SITUATIONS)}, got {situation!r}")


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    seconds: float,
    *,
    least: int = 5,
    most: float = math.inf,
    situation: str | Callable[[], Any] = "alternation",
    burst: float = 0.0,
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
    situation : {"alone", "alternation", "after a product"} or callable, optional
        Untimed work before each turn of a function: a pause of 0.15 seconds ("alone"); nothing
        but the turn of another function ("alternation"); a NumPy product of two float64 matrices
        of order 512; or a call of the function given, such as a product of another library.
    burst : float, optional
        Seconds that the calls of a turn take together, at least; by default a turn is one call.

    Returns
    -------
    dict
        Seconds per call in each round, by name: the mean over the turn.

    Raises
    ------
    ValueError
        For an unknown situation.

    Notes
    -----
    With two functions the order is constant. If it rotated, each function would follow itself in
    every second turn, and the other function never in these.

    Examples
    --------
    >>> {name: len(times) for name, times in interleaved({"sum": lambda: sum((1, 2))}, 0).items()}
    {'sum': 5}
    """
    prepare = situation if callable(situation) else _preparation(situation)

    def turn(function: Callable[[], Any]) -> float:
        prepare()
        calls = 0
        begun = now = time.perf_counter()
        while calls == 0 or now - begun < burst:
            function()
            calls += 1
            now = time.perf_counter()
        return (now - begun) / calls

    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    names, rounds = list(functions), 0
    end = time.perf_counter() + seconds
    while rounds < least or (rounds < most and time.perf_counter() < end):
        first = rounds % len(names) if len(names) > 2 else 0
        for name in names[first:] + names[:first]:
            times[name].append(turn(functions[name]))
        rounds += 1
    return times


def ratios(times: Mapping[str, list[float]], reference: str, name: str) -> list[float]:
    """Return the times of a reference divided by those of a function, round by round.

    Parameters
    ----------
    times : mapping of str to list of float
        Seconds per call in each round, by name, as :func:`interleaved` returns them.
    reference : str
        Name whose times are the numerators.
    name : str
        Name whose times are the denominators.

    Returns
    -------
    list of float
        One ratio per round; above 1 where the function is faster than the reference.

    Raises
    ------
    KeyError
        If a name is not in `times`.
    ValueError
        If the two lists differ in length.

    Examples
    --------
    >>> ratios({"a": [2.0, 3.0], "b": [1.0, 6.0]}, "a", "b")
    [2.0, 0.5]
    """
    return [r / t for r, t in zip(times[reference], times[name], strict=True)]
