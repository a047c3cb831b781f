"""Values as plain data for JSON."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np

from polarlib.arrays.entry import is_host_array


def plain(value: Any) -> Any:
    """Return values of JSON for arrays, enums and paths; None for NaN and infinity.

    Examples
    --------
    >>> plain(np.array([1.0, np.inf]))
    [1.0, None]
    """
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if is_host_array(value):
        return plain(value.tolist())
    if hasattr(value, "shape"):  # of another library
        known = known_numbers(value)
        return str(value) if known is None else plain(known)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def known_numbers(value: Any) -> np.ndarray | None:
    """Return the numbers of an array; None where it is traced, or has no numbers."""
    try:
        known = np.asarray(value)
    except TypeError:  # JAX's tracers
        return None
    return known if known.dtype.kind in "biuf" else None
