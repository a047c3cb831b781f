"""Wrong methods that the checks of this study must notice."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import Wrong
from wire import Rank, all_gather, all_reduce, all_to_all, reduce_scatter

Array = np.ndarray


def without_square(rank: Rank, g: Array, step: Sequence[float]) -> Array:
    return step[0] * np.eye(len(g)) + step[1] * g


def by_padded_sum(rank: Rank, part: Array) -> list[Array]:
    whole = np.zeros((rank.ranks, *part.shape))
    whole[rank.index] = part
    return list(all_reduce(rank, whole))


def one_way(rank: Rank, parts: Sequence[Array]) -> list[Array]:
    whole = np.concatenate(all_to_all(rank, parts))
    return np.array_split(whole, rank.ranks)


def by_gathering(rank: Rank, whole: Array) -> Array:
    total: Array = np.sum(all_gather(rank, whole), axis=0)
    return total


def scattered_only(rank: Rank, whole: Array) -> Array:
    part = reduce_scatter(rank, whole.reshape(-1))
    return np.tile(part, rank.ranks).reshape(whole.shape)


def not_summed(rank: Rank, whole: Array) -> Array:
    return rank.ranks * whole


def sum_in_every_step(rank: Rank, part: Array) -> Array:
    for _ in range(5):
        all_reduce(rank, part.T @ part)
    return part


def gathered_block(rank: Rank, part: Array) -> Array:
    all_gather(rank, part)
    return part


def whole_gradient(rank: Rank, momentum: Array, q: Array) -> tuple[Array, Array]:
    mean = all_reduce(rank, momentum) / rank.ranks
    return mean, mean


def left_factor_alone(rank: Rank, momentum: Array, q: Array) -> tuple[Array, Array]:
    all_reduce(rank, momentum @ q)
    return momentum, momentum


def gathered_by_owners(
    rank: Rank, target: Array, mine: Array, number: int, update: object
) -> Array:
    for _ in range(number):  # of the parameters, once more than ZeRO needs them
        weights = np.concatenate(all_gather(rank, mine))
    reduce_scatter(rank, weights - target)
    return mine


def undivided_factor(x: Array) -> Array:
    u, _, vh = np.linalg.svd(x, full_matrices=False)
    kept = np.linalg.matrix_rank(x)
    return u[:, :kept] @ vh[:kept]


SENT = "sent over m n, "
WRONG = (
    Wrong(
        "the product of two n x n matrices left out",
        part="blocks",
        replace={"polynomial": without_square},
        figures=("operations, whole over blocks, columns and rows",),
    ),
    Wrong(
        "a period of P - 1",
        part="throughput",
        replace={"PERIOD": 4},
        figures=("throughput predicted for MuonBP",),
    ),
    Wrong(
        "no period: every step is whole",
        part="throughput",
        replace={"PERIOD": 1},
        figures=("gain predicted for MuonBP over Muon, percent",),
    ),
    Wrong(
        "all-reduce of zero-padded parts",
        part="counts",
        replace={"all_gather": by_padded_sum},
        figures=(
            SENT + "gather",
            "elements sent on 4 ranks, gather, all to all, Gram",
            "largest difference from polarlib.communication",
        ),
    ),
    Wrong(
        "results not sent back",
        part="counts",
        replace={"exchange": one_way},
        figures=(SENT + "all to all",),
    ),
    Wrong(
        "Gram matrices of all ranks gathered",
        part="counts",
        replace={"all_reduce": by_gathering},
        figures=(SENT + "Gram",),
    ),
    Wrong(
        "a sum in every step",
        part="counts",
        replace={"one_gram": sum_in_every_step},
        figures=(SENT + "one Gram sum",),
    ),
    Wrong(
        "a whole step after P - 1",
        part="counts",
        replace={"PERIOD": 4},
        figures=(SENT + "block-periodic",),
    ),
    Wrong(
        "the whole gradient summed",
        part="counts",
        replace={"dion": whole_gradient},
        figures=(SENT + "Dion",),
    ),
    Wrong(
        "all rows exchanged",
        part="counts",
        replace={"FRACTION": 1.0},
        figures=(SENT + "Dion2",),
    ),
    Wrong(
        "blocks gathered",
        part="counts",
        replace={"block": gathered_block},
        figures=("sent over m n beyond AdamW, replicated, owner-sharded, block only",),
    ),
    Wrong(
        "parameters gathered once more",
        part="counts",
        replace={"owners": gathered_by_owners},
        figures=("sent over P in a whole step, ZeRO-2 and ZeRO-3",),
    ),
    Wrong(
        "Gram matrices of the parts, not summed",
        part="counts",
        replace={"all_reduce": not_summed},
        figures=("largest difference from the undivided result",),
    ),
    Wrong(
        "sums that are not given back to all ranks",
        part="crossings",
        replace={"all_reduce": scattered_only},
        figures=("max over min at which Gram sends as much as gather, q = 5",),
    ),
    Wrong(
        "the left factor alone summed",
        part="crossings",
        replace={"dion": left_factor_alone},
        figures=("rank at which Dion sends as much as the gradient, over min(m, n)",),
    ),
    Wrong(
        "the factor of the whole matrix",
        part="blocks",
        replace={"blockwise": undivided_factor},
        figures=("spectral norm of the factors of four equal blocks",),
    ),
)
