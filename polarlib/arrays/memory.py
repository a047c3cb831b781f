"""The memory of the host, and errors that say that it is full."""

from __future__ import annotations

import math
import os


def physical_memory() -> float:
    """Bytes of memory of this machine, infinity where the system does not tell."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a library raised an error since it could not allocate."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return (
        not names.isdisjoint({"MemoryError", "OutOfMemoryError"})
        or "RESOURCE_EXHAUSTED" in str(error)  # JAX
        or "not enough memory" in str(error)  # torch on a CPU
    )
