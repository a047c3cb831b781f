"""Ranks that share no memory: one thread per rank, and queues that count what is sent.

A function of a rank sees its own data and its `Rank` alone, so that nothing reaches another rank
without being counted. The collectives are those of a ring: each rank sends to the next one.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

__all__ = ["Rank", "all_gather", "all_reduce", "all_to_all", "launch", "reduce_scatter"]

Array = np.ndarray
PATIENCE = 120  # seconds until a rank that waits for a message gives an error


class Rank:
    """One of N ranks: what it sends, and the operations of its matrix products.

    Attributes
    ----------
    index, ranks : int
        Its number, from 0, and N.
    sent, messages, operations : int
        Elements and messages that it has sent, and operations of its products: 2 m k n for an
        m x k matrix times a k x n one.
    """

    def __init__(self, index: int, links: Sequence[Sequence[queue.Queue[Array]]]) -> None:
        self.index, self.ranks = index, len(links)
        self.sent = self.messages = self.operations = 0
        self._links = links

    def send(self, target: int, array: Array) -> None:
        """Send a copy of an array."""
        self.sent += array.size
        self.messages += 1
        self._links[self.index][target].put(array.copy())

    def receive(self, source: int) -> Array:
        """Wait for the next array of a rank."""
        return self._links[source][self.index].get(timeout=PATIENCE)

    def multiply(self, a: Array, b: Array) -> Array:
        """Return a matrix product, its operations counted."""
        self.operations += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        product: Array = a @ b
        return product


def launch(task: Callable[..., Any], *data: Sequence[Any]) -> tuple[list[Any], list[Rank]]:
    """Run ``task(rank, *own data)`` on as many ranks as there are entries of data.

    Returns
    -------
    results : list
        Of the ranks.
    ranks : list of Rank
        With their counts.
    """
    count = len(data[0])
    links: list[list[queue.Queue[Array]]] = [
        [queue.Queue() for _ in range(count)] for _ in range(count)
    ]
    ranks = [Rank(i, links) for i in range(count)]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(task, ranks, *data)), ranks


def all_gather(rank: Rank, part: Array) -> list[Array]:
    """Return the parts of all ranks: each goes round the ring, (N - 1)/N of the whole sent."""
    parts = [part] * rank.ranks
    for k in range(rank.ranks - 1):
        i = rank.index - k
        rank.send((rank.index + 1) % rank.ranks, parts[i % rank.ranks])
        parts[(i - 1) % rank.ranks] = rank.receive((rank.index - 1) % rank.ranks)
    return parts


def reduce_scatter(rank: Rank, whole: Array) -> Array:
    """Return this rank's part (of equal ones, along the first axis) of the sum over all ranks."""
    parts = np.array_split(whole, rank.ranks)
    for k in range(1, rank.ranks):
        i = rank.index - k
        rank.send((rank.index + 1) % rank.ranks, parts[i % rank.ranks])
        j = (i - 1) % rank.ranks
        parts[j] = parts[j] + rank.receive((rank.index - 1) % rank.ranks)
    return parts[rank.index]


def all_reduce(rank: Rank, whole: Array) -> Array:
    """Return the sum over all ranks: the two above, 2 (N - 1)/N of an array sent."""
    flat = reduce_scatter(rank, whole.reshape(-1))
    return np.concatenate(all_gather(rank, flat)).reshape(whole.shape)


def all_to_all(rank: Rank, pieces: Sequence[Array]) -> list[Array]:
    """Send piece j to rank j; return the pieces of all ranks for this one."""
    for k in range(1, rank.ranks):
        target = (rank.index + k) % rank.ranks
        rank.send(target, pieces[target])
    return [pieces[i] if i == rank.index else rank.receive(i) for i in range(rank.ranks)]
