"""torch tensors that may have no entries: numbers are not read, and new tensors are fake."""

from __future__ import annotations

from typing import Any

import numpy as np

from polarlib.arrays.in_place import InPlaceOps

Array = Any


class RecordedOps(InPlaceOps):
    """The part of an arithmetic that reads numbers and makes new tensors."""

    def to_host(self, x: Array) -> np.ndarray:
        """Copy to NumPy in float64 or complex128."""
        return super().to_host(self._visible(x))

    def item(self, x: Array) -> float:
        """Return the largest entry as a Python float (a synchronisation on a device)."""
        return super().item(self._visible(x))

    def eye(self, n: int, like: Array) -> Array:
        """Return the n x n identity with the dtype and device of `like`."""
        return _beside(super().eye(n, like), like)

    def from_host(self, a: np.ndarray, like: Array) -> Array:
        """Move a NumPy array to the device and format of `like`; real ones stay real."""
        return _beside(super().from_host(a, like), like)


def _beside(x: Array, like: Array) -> Array:
    """Return a new tensor as a fake one, if `like` is fake outside of its mode."""
    mode = getattr(like, "fake_mode", None)
    return x if mode is None or hasattr(x, "fake_mode") else mode.from_tensor(x)
