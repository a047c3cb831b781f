"""Threads for NumPy, whose functions of entries run on one processor and release Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# Vectors of a chunk pass through caches that threads share, and Python holds its lock between them.
MOST = 8


def available_threads() -> int:
    """Return how many threads may compute: one per processor of the process, at most `MOST`.

    ``OMP_NUM_THREADS``, which limits BLAS, limits these threads too. It is read in every call;
    limits that are set by threadpoolctl cannot be seen.

    Examples
    --------
    >>> available_threads() >= 1
    True
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    count = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    # OpenMP takes a list with one number per nested level.
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if limit.isdecimal() and int(limit) > 0:
        count = min(count, int(limit))
    return max(1, min(count, MOST))


def in_threads(f: Callable[[T], None], items: Sequence[T], threads: int) -> None:
    """Call a function on every item, in up to `threads` threads that end with the call.

    Where no thread can be started (at the exit of Python, for instance), in this thread.

    Parameters
    ----------
    f : callable
        Its calls must not depend on their order. The first exception is raised.
    items : sequence
    threads : int

    Examples
    --------
    >>> found = {}
    >>> in_threads(lambda k: found.update({k: k * k}), range(4), 2)
    >>> sorted(found.values())
    [0, 1, 4, 9]
    """
    if min(threads, len(items)) < 2:
        for item in items:
            f(item)
        return
    # One task per thread, the first of them for this one: a thread costs some tens of microseconds.
    parts = [items[k::threads] for k in range(min(threads, len(items)))]

    def run(part: Sequence[T]) -> None:
        for item in part:
            f(item)

    started: list[Future[None]] = []
    with ThreadPoolExecutor(len(parts) - 1) as pool:
        while len(parts) > 1:
            try:
                started.append(pool.submit(run, parts[-1]))
            except RuntimeError:
                break
            parts.pop()
        for part in parts:
            run(part)
        for task in started:
            task.result()
