"""What a distributed spectral LMO sends: every variant moved between ranks that count."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import counting
import numpy as np
from common import Output, main, panels
from counting import Count, Setting, largest, random
from matplotlib.figure import Figure
from wire import Rank, all_gather, all_reduce, all_to_all, launch, reduce_scatter

import polarlib
from polarlib import plot

Array = np.ndarray
SET = "jordan"  # the schedule: q steps of degree 5
STEPS = 5
PERIOD = 5  # of the block-periodic variant
FRACTION = 0.25  # of the rows, in Dion2
RATE, MU = 0.1, 0.95
# 16384 x 4096 on 8 ranks, r = 1024, with every length divided by 64: what is sent over m n depends
# on the ratios of lengths alone.
SHAPE, RANKS = (256, 64), 8
# Llama 3 405B's MLP, 16384 x 53248 in 8 blocks, divided by 256; operations are homogeneous too.
MLP, BLOCKS = (64, 208), 8
# MuonBP's table for 8B parameters, TFLOP/s of a GPU, with a period of 5.
THROUGHPUT = {"Muon": 105.09, "MuonBP": 113.37, "BlockMuon": 114.75, "Adam": 117.30}


# -- what a rank does ------------------------------------------------------------------------


def polynomial(rank: Rank, g: Array, step: Sequence[float]) -> Array:
    """Return a I + b G + c G^2 of a symmetric matrix, one product for a step of degree 5."""
    a, b, c = step
    eye = np.eye(len(g))
    return rank.multiply(g, c * g + b * eye) + a * eye


def coefficients() -> Sequence[Sequence[float]]:
    return polarlib.schedule(SET, STEPS).steps


def newton_schulz(rank: Rank, a: Array) -> Array:
    """Return the factor of a matrix that this rank has whole; plain form, on the smaller side."""
    x = (a if len(a) >= a.shape[1] else a.T) / np.linalg.norm(a)
    for step in coefficients():
        x = rank.multiply(x, polynomial(rank, rank.multiply(x.T, x), step))
    return x if len(a) >= a.shape[1] else x.T


def gather(rank: Rank, part: Array) -> Array:
    """Gather the matrix everywhere; keep this rank's rows of the factor."""
    whole = np.concatenate(all_gather(rank, part))
    return np.array_split(newton_schulz(rank, whole), rank.ranks)[rank.index]


def exchange(rank: Rank, parts: Sequence[Array]) -> list[Array]:
    """Of N sharded matrices bring one to each rank, and the rows of its factor back."""
    whole = np.concatenate(all_to_all(rank, parts))
    return all_to_all(rank, np.array_split(newton_schulz(rank, whole), rank.ranks))


def gram_steps(rank: Rank, part: Array) -> Array:
    """Keep the rows where they are, and sum one n x n Gram matrix in every step."""
    x = part
    for i, step in enumerate(coefficients()):
        g = all_reduce(rank, rank.multiply(x.T, x))
        if i == 0:  # the trace is the squared Frobenius norm: no further message
            x, g = x / np.trace(g) ** 0.5, g / np.trace(g)
        x = rank.multiply(x, polynomial(rank, g, step))
    return x


def one_gram(rank: Rank, part: Array) -> Array:
    """Sum the first Gram matrix alone, and iterate on it (Gram form without restart)."""
    g = all_reduce(rank, rank.multiply(part.T, part))
    size = np.trace(g)
    g, z = g / size, np.eye(len(g)) / size**0.5
    for step in coefficients():
        p = polynomial(rank, g, step)
        z = rank.multiply(z, p)
        g = rank.multiply(p, rank.multiply(g, p))
    return rank.multiply(part, z)


def block(rank: Rank, part: Array) -> Array:
    """Return the factor of this rank's rows alone."""
    return newton_schulz(rank, part)


def periodic(rank: Rank, parts: Sequence[Array]) -> list[Array]:
    """Take one whole factor in every period, and blocks between (MuonBP)."""
    return [block(rank, part) if t % PERIOD else gather(rank, part) for t, part in enumerate(parts)]


def fraction(rank: Rank, parts: Sequence[Array]) -> list[Array]:
    """Exchange the largest rows of each part only (Dion2); the other rows of the update are 0."""
    chosen = [largest_rows(part) for part in parts]
    found = exchange(rank, [part[rows] for part, rows in zip(parts, chosen, strict=True)])
    updates = [np.zeros_like(part) for part in parts]
    for update, rows, values in zip(updates, chosen, found, strict=True):
        update[rows] = values
    return updates


def largest_rows(part: Array) -> Array:
    """Indices, in ascending order, of a fraction of the rows: those of the largest norms."""
    count = round(FRACTION * len(part))
    return np.sort(np.argsort(np.linalg.norm(part, axis=1), kind="stable")[len(part) - count :])


def dion(rank: Rank, momentum: Array, q: Array) -> tuple[Array, Array]:
    """Sum M Q and M^T P in place of the gradient; momenta stay where they are (Dion)."""
    y = all_reduce(rank, rank.multiply(momentum, q)) / rank.ranks
    p: Array = np.linalg.qr(y)[0]
    r = all_reduce(rank, rank.multiply(momentum.T, p)) / rank.ranks
    update = rank.multiply(p, (r / np.linalg.norm(r, axis=0)).T)
    return update, momentum - (1 - MU) * rank.multiply(p, r.T)


def owners(rank: Rank, target: Array, mine: Array, stage: int, update: Any) -> Array:
    """One whole step of N matrices, f = ||W - T_i||^2 / 2 on rank i, under ZeRO-2 or ZeRO-3.

    Every rank updates the part that is its own: a whole matrix, or as much of all of them.
    """
    weights = np.concatenate(all_gather(rank, mine))
    if stage == 3:  # gathered for the forward pass, freed, and gathered for the backward pass
        weights = np.concatenate(all_gather(rank, mine))
    gradient = reduce_scatter(rank, weights - target) / rank.ranks
    return mine - RATE * update(rank, gradient)


def of_owner(rank: Rank, gradient: Array) -> Array:
    """The factor of the one matrix that is this rank's own."""
    return newton_schulz(rank, gradient[0])[None]


def adam(rank: Rank, gradient: Array) -> Array:
    """Adam's first step, elementwise."""
    return np.sign(gradient)


# -- what the variants send ------------------------------------------------------------------


def undivided(a: Array) -> Array:
    return polarlib.orthogonalize(a, schedule=SET, steps=STEPS, normalisation="frobenius")


def at(shape: tuple[int, int], ranks: int) -> Setting:
    return Setting(shape, ranks, undivided, newton_schulz)


def stage(number: int, update: Any, setting: Setting) -> Count:
    """A whole step under ZeRO-2 or ZeRO-3, of the owners of matrices or of Adam."""

    def task(rank: Rank, target: Array, mine: Array) -> Array:
        return owners(rank, target, mine, number, update)

    if update is adam:
        return counting.whole_step(task, setting, RATE, flat=True)
    return counting.whole_step(task, setting, RATE)


def owner_sharded(setting: Setting) -> Count:
    """What owners of matrices send beyond AdamW, ZeRO-2 and ZeRO-3."""
    ours, theirs = ([stage(i, u, setting) for i in (2, 3)] for u in (of_owner, adam))
    sent, messages = (
        max(getattr(a, name) - getattr(b, name) for a, b in zip(ours, theirs, strict=True))
        for name in ("sent", "messages")
    )
    return Count(sent, messages, ours[0].operations, max(c.difference for c in (*ours, *theirs)))


# Name, the count, and the arguments of polarlib.communication. Without restarts one sum is that of
# one step, whatever the number of steps.
VARIANTS: dict[str, tuple[Callable[[Setting], Count], dict[str, Any]]] = {
    "replicated": (lambda s: counting.replicated(newton_schulz, s), {"layout": "replicated"}),
    "owner-sharded": (owner_sharded, {"layout": "owner"}),
    "block only": (lambda s: counting.one(block, s), {"layout": "block"}),
    "gather": (lambda s: counting.one(gather, s), {"layout": "gather"}),
    "block-periodic": (
        lambda s: counting.several(periodic, s, PERIOD),
        {"layout": "block_periodic", "period": 5},
    ),
    "all to all": (lambda s: counting.several(exchange, s), {"layout": "all_to_all"}),
    "Gram": (lambda s: counting.one(gram_steps, s), {"layout": "rows"}),
    "one Gram sum": (lambda s: counting.one(one_gram, s), {"layout": "rows", "steps": 1}),
    "Dion": (
        lambda s: counting.low_rank(dion, s, s.shape[1] // 4, MU),
        {"layout": "dion", "rank": SHAPE[1] // 4},
    ),
    "Dion2": (
        lambda s: counting.several(fraction, s, rows=largest_rows),
        {"layout": "dion2", "fraction": 0.25},
    ),
}
UNSENT = ("replicated", "owner-sharded", "block only")


def measured(name: str, shape: tuple[int, int] = SHAPE, ranks: int = RANKS) -> Count:
    return VARIANTS[name][0](at(shape, ranks))


def predicted(name: str, ranks: int = RANKS) -> float:
    """Return the elements by polarlib's model; each has eight bytes in float64."""
    how = VARIANTS[name][1]
    work = polarlib.communication(SHAPE, devices=ranks, form="plain", precision="float64", **how)
    return work.bytes / 8


# -- parts of the study ----------------------------------------------------------------------


def counts(out: Output, quick: bool) -> None:
    """Count what every variant sends, and compare results with the undivided ones."""
    rows, found, differences = [], {}, []
    for name in out.steps(VARIANTS, "variants"):
        found[name] = c = measured(name)
        few = measured(name, ranks=4).sent
        differences += [c.sent - predicted(name), few - predicted(name, ranks=4)]
        rows.append([name, predicted(name), few, c.sent, f"{c.sent / np.prod(SHAPE):.7g}"])
        rows[-1] += [f"{c.messages:.7g}", f"{c.operations:.4f}", f"{c.difference:.1e}"]
        if name not in UNSENT:
            out.figure(f"sent over m n, {name}", c.sent / np.prod(SHAPE))
    out.figure("largest difference from polarlib.communication", float(np.max(np.abs(differences))))
    sent = [found[name].sent / np.prod(SHAPE) for name in UNSENT]
    out.figure(f"sent over m n beyond AdamW, {', '.join(UNSENT)}", sent)
    names = ("gather", "all to all", "Gram")
    on_four = [measured(name, ranks=4).sent for name in names]
    out.figure("elements sent on 4 ranks, gather, all to all, Gram", on_four)
    exact = [c.difference for name, c in found.items() if name != "block only"]
    out.figure("largest difference from the undivided result", max(exact))
    whole = [stage(number, of_owner, at(SHAPE, RANKS)).sent / np.prod(SHAPE) for number in (2, 3)]
    out.figure("sent over P in a whole step, ZeRO-2 and ZeRO-3", whole)
    columns = ["variant", "predicted, 8 ranks", "4 ranks", "8 ranks", "8 ranks, over m n"]
    columns += ["messages", "operations over the undivided", "largest difference"]
    out.table("variants", columns, rows)


def crossings(out: Output, quick: bool) -> None:
    """Find where two variants send the same, from counts at two places."""
    # Gram over gather is a power of the ratio of the sides, Dion over the gradient linear in r.
    sides = [(RANKS * 8, 64), (RANKS * 32, 64)]
    x = [np.log(m / n) for m, n in sides]
    y = [np.log(measured("Gram", s).sent / measured("gather", s).sent) for s in sides]
    crossing = np.exp(x[0] - y[0] * (x[1] - x[0]) / (y[1] - y[0]))
    out.figure("max over min at which Gram sends as much as gather, q = 5", crossing)
    few, many = (counting.low_rank(dion, at(SHAPE, RANKS), k, MU).sent for k in (8, 16))
    (gradient,) = {r.sent for r in launch(all_reduce, random((RANKS, *SHAPE)))[1]}
    slope = (many - few) / 8
    r = (gradient - (few - 8 * slope)) / slope
    out.figure("rank at which Dion sends as much as the gradient, over min(m, n)", r / SHAPE[1])


def blocks(out: Output, quick: bool) -> None:
    """Take factors of blocks: their operations, and the spectral norm of what they form."""

    def operations(parts: Sequence[Array]) -> int:
        return sum(launch(newton_schulz, [part])[1][0].operations for part in parts)

    a = random(MLP)
    saved = [operations([a]) / operations(np.array_split(a, BLOCKS, axis=i)) for i in (1, 0)]
    out.figure("operations, whole over blocks, columns and rows", saved)
    rows = []
    equal = np.concatenate([random((16, 64))] * 4)
    for name, x in (
        ("four equal blocks of 16 x 64", equal),
        ("four random blocks of 16 x 64", random((64, 64))),
        ("four random blocks of 64 x 64", random((256, 64))),
        ("the same, first columns 100 times as large", random((256, 64)) * np.r_[100, [1] * 63]),
    ):
        factor = blockwise(x)
        whole = polarlib.polar(x, completion=False).unitary
        size = float(np.linalg.norm(factor, 2))
        cosine = float(np.sum(factor * whole) / np.linalg.norm(factor) / np.linalg.norm(whole))
        gap = largest(factor, whole)
        rows.append([name, f"{size:.6f}", f"{cosine:.6f}", f"{gap:.6f}"])
        if x is equal:
            out.figure("spectral norm of the factors of four equal blocks", size)
    columns = ["matrix", "spectral norm", "cosine of the angle", "largest difference"]
    out.table("blockwise", columns, rows)


def blockwise(x: Array) -> Array:
    """The exact factors of four blocks of rows, below one another."""
    return np.concatenate([polarlib.polar(b).unitary for b in np.array_split(x, 4)])


def throughput(out: Output, quick: bool) -> None:
    """Predict MuonBP's throughput from those of its two kinds of step."""

    def mixed(period: float) -> float:
        fast, slow = 1 / THROUGHPUT["BlockMuon"], 1 / THROUGHPUT["Muon"]
        return 1 / (fast + (slow - fast) / period)

    predicted = mixed(PERIOD)
    out.figure("throughput predicted for MuonBP", predicted)
    gain = 100 * (predicted / THROUGHPUT["Muon"] - 1)
    out.figure("gain predicted for MuonBP over Muon, percent", gain)
    rows = [[p, f"{(RANKS - 1) / RANKS / p:.6f}", f"{mixed(p):.3f}"] for p in (1, 2, 3, 5, 10, 100)]
    out.table("periods", ["period", "sent over m n, 8 ranks", "TFLOP/s of a GPU, predicted"], rows)
    table, adam = THROUGHPUT["MuonBP"] / THROUGHPUT["Muon"], THROUGHPUT["Adam"]
    out.note(
        f"MuonBP's own table has a gain of {100 * (table - 1):.2f} % over Muon, and Muon "
        f"{100 * (1 - THROUGHPUT['Muon'] / adam):.1f} % below Adam. The prediction takes the "
        "difference of the two kinds of step in seconds, a period's share of it, and nothing else."
    )


def sweep(out: Output, quick: bool) -> None:
    """Count the variants over the ratio of the sides, and draw them."""
    n = 32
    ratios = (1, 2, 4, 8, 16)
    rows, curves = [], {}
    names = [name for name in VARIANTS if name not in UNSENT]
    for name in out.steps(names, "ratios of the sides"):
        sent = []
        for ratio in ratios:
            shape = (ratio * n, n)
            sent.append(measured(name, shape).sent / np.prod(shape))
        curves[name] = sent
        rows.append([name, *(f"{s:.7g}" for s in sent)])
    out.table("ratios", ["sent over m n", *(f"m / n = {r}" for r in ratios)], rows)
    out.plot(
        "sent",
        drawn(ratios, curves),
        f"Elements that one of {RANKS} ranks sends for one m × n matrix and one step, counted, "
        "over m n. Full lines: sent in addition to what AdamW sends. Dashed, Dion: in place of the "
        "sum of the gradients (dotted). Replicated, owner-sharded and block-only forms send "
        f"nothing. q = {STEPS}, P = {PERIOD}, r = n/4, α = 1/4.",
    )


def drawn(ratios: Sequence[int], curves: dict[str, list[float]]) -> Figure:
    """The curves, named at their right ends."""
    fig, (ax,) = panels(height=3.0)
    looks = {
        "gather": (plot.VERMILLION, "o", "gather"),
        "block-periodic": (plot.ORANGE, "s", "block-periodic"),
        "all to all": (plot.GREEN, "^", "all-to-all"),
        "Gram": (plot.BLUE, "v", f"Gram, {STEPS} sums"),
        "one Gram sum": (plot.SKY, "D", "Gram, one sum"),
        "Dion": (plot.PURPLE, "X", "Dion"),
        "Dion2": (plot.INK, "P", "Dion2"),
    }
    for name, (colour, marker, _) in looks.items():
        line = "--" if name == "Dion" else "-"
        ax.loglog(ratios, curves[name], line, color=colour, marker=marker)
    gradient = 2 * (RANKS - 1) / RANKS
    ax.loglog(ratios, [gradient] * len(ratios), ":", color=plot.INK)
    ends = {label: curves[name][-1] for name, (_, _, label) in looks.items()}
    place = 0.0
    for label, y in sorted((ends | {"sum of gradients": gradient}).items(), key=lambda e: e[1]):
        place = max(y, place * 1.25)  # apart
        ax.text(1.15 * ratios[-1], place, label, va="center", fontsize="small")
    ax.set_xlim(0.9, 90)
    ax.set_xticks(ratios, [str(r) for r in ratios])
    ax.minorticks_off()
    ax.set_xlabel("max(m, n) / min(m, n)")
    ax.set_ylabel("elements sent / (m n)")
    return fig


def study(out: Output, quick: bool) -> None:
    counts(out, quick)
    crossings(out, quick)
    blocks(out, quick)
    throughput(out, quick)
    sweep(out, quick)


if __name__ == "__main__":
    main(study, __file__)
