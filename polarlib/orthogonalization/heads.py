"""Matrices as stacks of equal blocks of rows, and back: one matrix per head of attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polarlib.arrays.ops import ops_of

Array = Any


def check_rows(shape: tuple[int, ...], heads: int | None) -> None:
    """Raise ValueError if heads do not divide the rows; symbolic sizes are not checked."""
    rows = shape[-2]
    if heads is not None and isinstance(rows, int) and rows % heads:
        raise ValueError(
            f"heads must divide the number of rows, got heads={heads} for {rows} rows; heads "
            "counts all blocks of rows, in a fused projection those of queries, keys and values"
        )


def block_shape(shape: tuple[int, ...], heads: int | None) -> tuple[int, ...]:
    """Shape (..., heads, m / heads, n) of the blocks of matrices (..., m, n).

    Examples
    --------
    >>> block_shape((5, 12, 8), 3), block_shape((12, 8), None)
    ((5, 3, 4, 8), (12, 8))
    """
    check_rows(shape, heads)
    *batch, m, n = shape
    return shape if heads is None else (*batch, heads, m // heads, n)


def split(x: Array, heads: int) -> Array:
    """Return the blocks of rows as a stack; a view, where the library has views."""
    return ops_of(x).xp.reshape(x, block_shape(tuple(x.shape), heads))


def merged(blocks: Array) -> Array:
    """Return the matrices of a stack of blocks: the inverse of :func:`split`."""
    *batch, heads, rows, n = blocks.shape
    return ops_of(blocks).xp.reshape(blocks, (*batch, heads * rows, n))


def per_head(f: Callable[..., Array], heads: int | None) -> Callable[..., Array]:
    """Return the function that applies `f` to the blocks of rows of its matrices."""
    if heads is None:
        return f
    return lambda *matrices: merged(f(*(split(x, heads) for x in matrices)))
