"""torch: entries of arrays on their way between the processes of a mesh.

A *box* is the ranges of the axes of an array. A *transfer* is the entries in a box of a piece, from
one process to one or all. Each dtype is sent as bytes, so that one message has all of them.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from polarlib.arrays.library import import_library

Array = Any
Box = tuple[tuple[int, int], ...]
# Sender, receiver (-1 for all), number of the piece, box.
Transfer = tuple[int, int, int, Box]
# Bytes of which the parts of a message are multiples, so that every dtype is aligned.
ALIGNED = 16


@functools.lru_cache(maxsize=256)
def boxes_of(
    mesh: Any, places: tuple[Any, ...], shape: tuple[int, ...], ranks: tuple[int, ...]
) -> tuple[Box, ...]:
    """Return the box of a DTensor that each process has, by torch's rule of chunks."""
    table = mesh.mesh
    result = []
    for rank in ranks:
        box = [(0, n) for n in shape]
        for d, at in enumerate((table == rank).nonzero()[0].tolist()):
            if places[d].is_shard():
                axis = places[d].dim
                low, high = box[axis]
                each = -(-(high - low) // table.shape[d])
                low = min(low + each * at, high)
                box[axis] = low, min(low + each, high)
        result.append(tuple(box))
    return tuple(result)


def _overlap(a: Box, b: Box) -> Box:
    """Return the common part of two boxes.

    Examples
    --------
    >>> _overlap(((0, 4), (2, 5)), ((3, 8), (0, 3)))
    ((3, 4), (2, 3))
    """
    return tuple(
        (max(p, r), max(max(p, r), min(q, s))) for (p, q), (r, s) in zip(a, b, strict=True)
    )


def within(box: Box, whole: Box) -> tuple[slice, ...]:
    """Return the indices of a box in an array that has the entries of another one."""
    return tuple(
        slice(low - start, high - start) for (low, high), (start, _) in zip(box, whole, strict=True)
    )


def _bytes(box: Box, like: Array) -> int:
    size: int = math.prod(high - low for low, high in box) * like.element_size()
    return -(-size // ALIGNED) * ALIGNED


def empty(box: Box, like: Array) -> Array:
    shape = [high - low for low, high in box]
    torch: Any = import_library("torch")
    return torch.empty(shape, dtype=like.dtype, device=like.device)


class Plan(NamedTuple):
    """What is sent in a round. Transfers have the numbers of pieces."""

    pieces: tuple[Any, ...]
    # For each piece its box, and the boxes that processes have of its array; () if all have all.
    slabs: tuple[Box, ...]
    held: tuple[tuple[Box, ...], ...]
    # To owners, from owners to processes that need a part, and from owners to all processes.
    coming: tuple[Transfer, ...]
    going: tuple[Transfer, ...]
    everywhere: tuple[Transfer, ...]

    def likes(self, parts: Sequence[Array]) -> list[Array]:
        return [parts[p.array] for p in self.pieces]

    def has(self, n: int, process: int) -> bool:
        """Return whether a process has all of a piece."""
        return not self.held[n] or _overlap(self.held[n][process], self.slabs[n]) == self.slabs[n]

    def part_of(self, parts: Sequence[Array], process: int) -> Callable[[int, Box], Array]:
        """Return the function of a piece's number and a box that gives a view of `parts`."""

        def part(n: int, box: Box) -> Array:
            x, held = parts[self.pieces[n].array], self.held[n]
            return x[within(box, held[process] if held else ((0, 0),) * len(box))]

        return part


@functools.lru_cache(maxsize=64)
def plan_of(pieces: tuple[tuple[Any, tuple[int, ...], tuple[Box, ...]], ...]) -> Plan:
    """Return the transfers for pieces with the shapes and boxes of their arrays.

    Of several processes that have the same entries, one sends them.
    """
    coming: list[Transfer] = []
    going: list[Transfer] = []
    everywhere: list[Transfer] = []
    slabs: tuple[Box, ...] = tuple(
        ((p.low, p.high), *((0, n) for n in shape[1:])) for p, shape, _ in pieces
    )
    for n, ((p, _, held), slab) in enumerate(zip(pieces, slabs, strict=True)):
        if not held:
            everywhere.append((p.owner, -1, n, slab))
            continue
        having: dict[Box, list[int]] = {}
        for r, box in enumerate(held):
            common = _overlap(box, slab)
            if all(low < high for low, high in common):
                having.setdefault(common, []).append(r)
        for box, who in having.items():
            going += [(p.owner, r, n, box) for r in who]
            if p.owner not in having.get(slab, ()):
                sender = p.owner if p.owner in who else who[p.owner % len(who)]
                coming.append((sender, p.owner, n, box))
    return Plan(
        tuple(p for p, *_ in pieces),
        slabs,
        tuple(boxes for *_, boxes in pieces),
        tuple(coming),
        tuple(going),
        tuple(everywhere),
    )


class Messages:
    """Entries on their way, by one all-to-all; nothing is sent if no process has a transfer."""

    def __init__(
        self,
        where: Any,
        transfers: Sequence[Transfer],
        likes: Sequence[Array],
        take: Callable[[int, Box], Array],
    ) -> None:
        self.likes, self.work = likes, None
        by_sender = [[t for t in transfers if t[:2] == (s, where.me)] for s in range(where.count)]
        self.coming = [*itertools.chain(*by_sender)]
        if not transfers:
            return
        sent = [[t for t in transfers if t[:2] == (where.me, r)] for r in range(where.count)]
        counts = [[sum(map(self._size, ts)) for ts in side] for side in (by_sender, sent)]
        device = where.device
        self.data, self.sent = (
            where.torch.empty(sum(c), dtype=where.torch.uint8, device=device) for c in counts
        )
        for (_, _, i, box), room in self._rooms(self.sent, itertools.chain(*sent)):
            room.copy_(take(i, box))
        self.work = where.dist.all_to_all_single(
            self.data, self.sent, *counts, group=where.group, async_op=True
        )

    def received(self) -> Iterator[tuple[int, Box, Array]]:
        """Wait; then return number, box and entries of each transfer to this process."""
        if self.work is not None:
            self.work.wait()
            for (_, _, i, box), entries in self._rooms(self.data, self.coming):
                yield i, box, entries

    def _size(self, transfer: Transfer) -> int:
        return _bytes(transfer[3], self.likes[transfer[2]])

    def _rooms(self, data: Array, transfers: Any) -> Iterator[tuple[Transfer, Array]]:
        """Return the part of a message for each transfer, in the shape and dtype of the entries."""
        start = 0
        for t in transfers:
            like, shape = self.likes[t[2]], [high - low for low, high in t[3]]
            size = math.prod(shape) * like.element_size()
            yield t, data[start : start + size].view(like.dtype).view(shape)
            start += self._size(t)


class Rows(Messages):
    """Results that every process needs: by one all-gather, or by broadcasts of unequal parts.

    Rows of an all-gather have one length. It is made where that at most doubles what is sent.
    """

    def __init__(
        self,
        where: Any,
        transfers: Sequence[Transfer],
        likes: Sequence[Array],
        take: Callable[[int, Box], Array],
    ) -> None:
        self.likes, self.works = likes, []
        self.rows = [[t for t in transfers if t[0] == s] for s in range(where.count)]
        lengths = [sum(map(self._size, row)) for row in self.rows]
        if not any(lengths):
            return
        alike = where.count * max(lengths) <= 2 * sum(lengths)
        lengths = [max(lengths)] * where.count if alike else lengths
        kind = {"dtype": where.torch.uint8, "device": where.device}
        whole = where.torch.empty(sum(lengths), **kind)
        self.data = whole.split(lengths)
        self.sent = where.torch.empty(lengths[where.me], **kind) if alike else self.data[where.me]
        for (_, _, i, box), room in self._rooms(self.sent, self.rows[where.me]):
            room.copy_(take(i, box))
        how = {"group": where.group, "async_op": True}
        if alike:
            # The name before torch 2.13 is deprecated.
            new = getattr(where.dist, "all_gather_single", None)
            self.works = [(new or where.dist.all_gather_into_tensor)(whole, self.sent, **how)]
        else:
            self.works = [
                where.dist.broadcast(row, group_src=s, **how)
                for s, row in enumerate(self.data)
                if len(row)
            ]

    def received(self) -> Iterator[tuple[int, Box, Array]]:
        if self.works:
            for work in self.works:
                work.wait()
            for row, data in zip(self.rows, self.data, strict=True):
                for (_, _, i, box), entries in self._rooms(data, row):
                    yield i, box, entries
