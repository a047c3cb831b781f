"""Steps whose coefficients are an array of the matrix's library, which may be traced or recorded.

The engine accepts coefficients that are arrays of shape (..., 1, 1) for a stack of matrices
(:mod:`polarlib.arrays.arithmetic`). This module splits an array C of shape (steps, k) into such
arrays. Row i is step i, in ascending odd powers. All matrices of a stack have the same coefficients
unless C is batched, for example by torch.vmap. Its leading axes are then the first axes of the
stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from polarlib._schedules.schedule import Schedule
from polarlib.arrays.ops import Ops, ops_of
from polarlib.engine.iterate import Steps

Array = Any


@dataclass(frozen=True)
class Coefficients:
    """The attributes of a :class:`Schedule` that the engine uses, for unchecked steps."""

    steps: Sequence[Sequence[Array | float]]
    normalisation: str = "frobenius"
    input_safety: float = 1.0
    is_rational: bool = False

    def __len__(self) -> int:
        return len(self.steps)


def as_schedule(steps: Steps) -> Schedule:
    """Return steps as an object that the engine runs and differentiates."""
    return cast(Schedule, Coefficients(steps))


def cut(c: Array, ndim: int) -> list[tuple[Array, ...]]:
    """Return an array of coefficients as steps for a stack of `ndim` axes.

    Examples
    --------
    >>> import numpy as np
    >>> [first, second] = cut(np.array([[1.5, -0.5], [2.0, -1.0]]), 3)
    >>> first[0].shape, second[0].item()
    ((1, 1, 1), 2.0)
    """
    count, k = c.shape[-2:]
    rows = ops_of(c).xp.reshape(c, (*c.shape[:-2], *[1] * (ndim - c.ndim), count, k))
    return [tuple(rows[..., i : i + 1, j : j + 1] for j in range(k)) for i in range(count)]


def numbers(c: Array) -> list[tuple[float, ...]]:
    """Return coefficients as Python's numbers, from an array in the memory of the host."""
    return [tuple(row) for row in ops_of(c).to_host(c).tolist()]


def together(x: Array, c: Array, ops: Ops) -> tuple[Array, Array]:
    """Return matrices and coefficients whose leading axes, those that C has, are the same."""
    lead = c.ndim - 2
    if x.shape[:lead] == c.shape[:lead]:
        return x, c
    # In each pair of axes one has length 1, or they are equal.
    axes = tuple(p if q == 1 else q for p, q in zip(x.shape, c.shape[:-2], strict=False))
    wide = ops.xp.broadcast_to
    return wide(x, (*axes, *x.shape[lead:])), wide(c, (*axes, *c.shape[-2:]))


def summed_to(d: Array, shape: Sequence[int], ops: Ops) -> Array:
    """Return the sums of a gradient over the axes along which its array was repeated."""
    lead = len(shape) - 2
    extra = tuple(range(lead, d.ndim - 2))
    d = ops.xp.sum(d, axis=extra) if extra else d
    repeated = tuple(i for i in range(lead) if shape[i] == 1 != d.shape[i])
    return ops.xp.sum(d, axis=repeated, keepdims=True) if repeated else d
