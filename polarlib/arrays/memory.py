"""The memory of the host, and errors of failed allocations."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import math
import os
import sys
from typing import Any

M_MMAP_THRESHOLD = -3  # of malloc.h
LEAST_RETURNED = 1 << 17  # bytes: the threshold of glibc before it adapts


def physical_memory() -> float:
    """Return the memory of this machine in bytes; infinity if the system does not provide it."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def peak_memory() -> int | None:
    """Return the largest resident memory of this process so far in bytes; None if unknown.

    Pages of mapped files that were in memory are included.
    """
    # Linux. There `ru_maxrss` begins with the memory of the process that started this one.
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status", "rb") as lines:
        for line in lines:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:  # Windows
        return None
    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else peak * 1024


def return_freed_arrays() -> None:
    """Let this process return freed arrays to the system at once, where its C library is glibc's.

    By default arrays of up to 32 MiB can stay resident after they are freed, in each thread.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):  # other systems, other libraries
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LEAST_RETURNED)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error of a library is a failed allocation."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return (
        not names.isdisjoint({"MemoryError", "OutOfMemoryError"})
        or "RESOURCE_EXHAUSTED" in str(error)  # JAX
        or "not enough memory" in str(error)  # torch on a CPU
    )
