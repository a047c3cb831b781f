"""Assignment of matrices to the devices that compute them, by number of operations."""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from polarlib._schedules import products
from polarlib.arrays.formats import format_of
from polarlib.orthogonalization.coefficients import How
from polarlib.orthogonalization.heads import block_shape
from polarlib.orthogonalization.options import Options

# Bytes of results up to which equal matrices of one owner are computed, and sent, together. The
# next ones are computed while these are sent. torch's DistributedDataParallel sends as many.
TOGETHER = 25 << 20


class Piece(NamedTuple):
    """Entries ``low:high`` of the first axis of an array, which one device computes."""

    array: int
    low: int
    high: int
    owner: int


def assigned(costs: Sequence[int], owners: int) -> list[int]:
    """Return the owner of each of several tasks: the longest first, to the least loaded owner.

    Parameters
    ----------
    costs : sequence of int
        Non-negative.
    owners : int
        Number of owners. Of equally loaded ones the first receives the task, and of tasks of equal
        cost the first is assigned first.

    Returns
    -------
    list of int
        The largest load is at most ``4/3 - 1/(3 owners)`` times the smallest possible one.

    References
    ----------
    R. L. Graham, Bounds on multiprocessing timing anomalies, SIAM J. Appl. Math. 17 (1969) 416-429,
    Theorem 2.

    Examples
    --------
    >>> assigned([3, 5, 2, 2], 2)
    [1, 0, 1, 0]
    """
    loads = [(0, owner) for owner in range(owners)]
    result = [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, result[i] = heapq.heappop(loads)
        heapq.heappush(loads, (load + costs[i], result[i]))
    return result


@functools.lru_cache(maxsize=16)
def pieces(
    shapes: tuple[tuple[int, ...], ...],
    costs: tuple[int, ...],
    divided: tuple[bool, ...],
    owners: int,
) -> tuple[Piece, ...]:
    """Return the pieces of arrays, with their owners.

    Parameters
    ----------
    shapes : tuple of tuple of int
    costs : tuple of int
        Numbers of operations.
    divided : tuple of bool
        Whether the array may be divided along its first axis, into at most as many pieces of nearly
        equal lengths as there are owners. Other arrays are one piece.
    owners : int

    Examples
    --------
    >>> [tuple(p) for p in pieces(((5, 2, 2), (3, 2)), (40, 12), (True, False), 2)]
    [(0, 0, 2, 1), (0, 2, 5, 0), (1, 0, 3, 1)]
    """
    cut, each = [], []
    for i, (shape, cost) in enumerate(zip(shapes, costs, strict=True)):
        length = shape[0]
        parts = max(1, min(owners, length)) if divided[i] else 1
        ends = [length * k // parts for k in range(parts + 1)]
        for low, high in itertools.pairwise(ends):
            cut.append((i, low, high))
            each.append(cost * (high - low) // max(length, 1))
    return tuple(Piece(*c, owner) for c, owner in zip(cut, assigned(each, owners), strict=True))


@functools.lru_cache(maxsize=16)
def rounds(
    cut: tuple[Piece, ...], kinds: tuple[Any, ...], sizes: tuple[int, ...], owners: int
) -> tuple[tuple[Piece, ...], ...]:
    """Return pieces in rounds: in each one an owner computes pieces of one kind, and sends them.

    Parameters
    ----------
    cut : tuple of Piece
    kinds, sizes : tuple
        For each piece what must be equal of those that are computed together, and its bytes.
    owners : int

    Examples
    --------
    >>> cut = Piece(0, 0, 3, 0), Piece(1, 0, 3, 1), Piece(2, 0, 3, 0), Piece(3, 0, 4, 0)
    >>> [[p.array for p in r] for r in rounds(cut, ("a", "a", "a", "b"), (8, 8, 8, 9), 2)]
    [[0, 2, 1], [3]]
    """
    batches: list[list[list[Piece]]] = [[] for _ in range(owners)]
    current: dict[tuple[int, Any], tuple[list[Piece], int]] = {}
    for piece, kind, size in zip(cut, kinds, sizes, strict=True):
        batch, total = current.get((piece.owner, kind), ([], 0))
        if not batch or total + size > TOGETHER:
            batch, total = [], 0
            batches[piece.owner].append(batch)
        batch.append(piece)
        current[piece.owner, kind] = batch, total + size
    count = max(map(len, batches), default=0)
    return tuple(tuple(p for own in batches if k < len(own) for p in own[k]) for k in range(count))


def operations(
    shape: tuple[int, ...], precision: str, how: Options | How, coefficients: Sequence[int] = ()
) -> int:
    """Return the number of floating-point operations of matrices (..., m, n).

    Parameters
    ----------
    shape : tuple of int
    precision : str
        Number format in which the library multiplies arrays of the dtype.
    how : Options or How
        Checked options.
    coefficients : sequence of int, optional
        Shape of the array of coefficients.

    Returns
    -------
    int
        ``2 (large m n^2 + small n^3)`` per matrix and block of rows, with n the smaller dimension,
        for `large` products with the matrix and `small` ones among n x n matrices.

    Examples
    --------
    >>> operations((2, 64, 16), "float32", Options(schedule="jordan", form="plain"))
    737280
    """
    *batch, m, n = block_shape(shape, how.heads)
    m, n = max(m, n), min(m, n)
    if isinstance(how, Options):
        precision = precision if how.precision is None else format_of(how.precision).name
        chosen = how.resolved_for((m, n), precision, warns=False)
        large, small = products.product_counts(
            chosen["schedule"].steps, form=chosen["form"], restarts=chosen["restarts"]
        )
    else:
        steps, k = coefficients
        large, small = products.product_counts(((0.0,) * k,) * steps)
    return int(math.prod(batch) * products.operations(large, small, m, n))
