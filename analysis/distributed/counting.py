"""Run a task on every rank, count what it sends, and compare its result with the undivided one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from wire import Rank, launch

from polarlib import updates

__all__ = ["Count", "Setting", "largest", "low_rank", "one", "random", "replicated", "several"]
__all__ += ["whole_step"]

Array = np.ndarray


class Setting(NamedTuple):
    """Shape of a matrix, number of ranks, and what the undivided factor is and costs."""

    shape: tuple[int, int]
    ranks: int
    undivided: Callable[[Array], Array]
    alone: Callable[[Rank, Array], Array]


class Count(NamedTuple):
    """For one rank, one matrix and one step."""

    sent: float  # elements
    messages: float
    operations: float  # over those of the undivided factor
    difference: float  # largest entry of the difference from the undivided result


def random(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Return Gaussian numbers."""
    return np.random.default_rng(seed).standard_normal(shape)


def largest(a: Any, b: Any) -> float:
    """Return the largest entry of a difference."""
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))))


def counted(ranks: Sequence[Rank], setting: Setting, matrices: int, error: float) -> Count:
    """Return what the busiest rank has sent and computed for each of some matrices."""
    (_, (alone,)) = launch(setting.alone, [random(setting.shape)])
    sent, messages, operations = (
        max(getattr(rank, name) for rank in ranks) / matrices
        for name in ("sent", "messages", "operations")
    )
    return Count(sent, messages, operations / alone.operations, error)


def one(task: Callable[[Rank, Array], Array], setting: Setting) -> Count:
    """Count for one matrix, its rows over the ranks."""
    a = random(setting.shape)
    found, ranks = launch(task, np.array_split(a, setting.ranks))
    return counted(ranks, setting, 1, largest(np.concatenate(found), setting.undivided(a)))


def replicated(task: Callable[[Rank, Array], Array], setting: Setting) -> Count:
    """Count where every rank has the whole matrix, as after a sum of gradients."""
    a = random(setting.shape)
    found, ranks = launch(task, [a] * setting.ranks)
    error = largest(found, [setting.undivided(a)] * setting.ranks)
    return counted(ranks, setting, 1, error)


def several(
    task: Callable[[Rank, Sequence[Array]], list[Array]],
    setting: Setting,
    steps: int | None = None,
    rows: Callable[[Array], Array] | None = None,
) -> Count:
    """Count for N matrices, or for one in several steps, of which the first is compared.

    With `rows`, of each part only the rows with the indices that it returns are compared.
    """
    many = random((steps or setting.ranks, *setting.shape))
    found, ranks = launch(task, np.array_split(many, setting.ranks, axis=1))
    expected = np.zeros_like(many)
    for update, a in zip(expected, many[:1] if steps else many, strict=False):
        parts = np.array_split(np.arange(len(a)), setting.ranks)
        kept = np.concatenate([i[rows(a[i])] if rows else i for i in parts])
        update[kept] = setting.undivided(a[kept])
    count = 1 if steps else len(many)
    error = largest(np.concatenate(found, axis=1)[:count], expected[:count])
    return counted(ranks, setting, len(many), error)


def low_rank(
    task: Callable[[Rank, Array, Array], tuple[Array, Array]], setting: Setting, k: int, mu: float
) -> Count:
    """Count for an update of rank k and the new momenta, of momenta that differ between ranks."""
    m, n = setting.shape
    momenta, q = random((setting.ranks, m, n)), random((n, k), 1)
    found, ranks = launch(task, momenta, [q] * setting.ranks)
    update, kept, _ = updates.dion(np.zeros((m, n)), momenta.mean(axis=0), q, mu=mu)
    error = largest(np.mean([new for _, new in found], axis=0), kept)
    error = max(error, *(largest(each, update) for each, _ in found))
    return counted(ranks, setting, 1, error)


def whole_step(
    task: Callable[[Rank, Array, Array], Array],
    setting: Setting,
    rate: float,
    *,
    flat: bool = False,
) -> Count:
    """Count for a step of N matrices on f = mean of ||W - T_i||^2 / 2.

    Rank i has T_i of all matrices, and of W the i-th matrix, or the i-th part of all entries.
    """
    shape = (setting.ranks, *setting.shape)
    weights, targets = random(shape), random((setting.ranks, *shape), 1)
    mine = np.array_split(weights.reshape(-1) if flat else weights, setting.ranks)
    theirs = targets.reshape(setting.ranks, -1) if flat else targets
    found, ranks = launch(task, theirs, mine)
    gradient = weights - targets.mean(axis=0)
    step = np.sign(gradient) if flat else np.array([setting.undivided(g) for g in gradient])
    error = largest(np.concatenate(found).reshape(shape), weights - rate * step)
    return counted(ranks, setting, len(weights), error)
