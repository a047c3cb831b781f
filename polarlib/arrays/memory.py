"""The memory of the host, and errors of failed allocations."""

from __future__ import annotations

import math
import os


def physical_memory() -> float:
    """Return the memory of this machine in bytes; infinity if the system does not provide it."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error of a library is a failed allocation."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return (
        not names.isdisjoint({"MemoryError", "OutOfMemoryError"})
        or "RESOURCE_EXHAUSTED" in str(error)  # JAX
        or "not enough memory" in str(error)  # torch on a CPU
    )
