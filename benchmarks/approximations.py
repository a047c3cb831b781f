"""Approximations of the spectral LMO that send less: their error on real gradients, and bytes.

    python benchmarks/approximations.py
    python benchmarks/approximations.py --page

The first measures, and writes docs/data/approximations.json and docs/evidence/approximations.md.
``--page`` makes the page from the data. The matrices are the bundled gradients and those of
benchmarks/gradients.npz. The gradients of the sequence, and the losses, are those of the network of
analysis/digits_network.py, which needs scikit-learn (the extra `studies`). No time is measured. One
minute on one processor.
"""

from __future__ import annotations

import importlib
import json
import math
import statistics
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from approximations_page import page
from rich.progress import track

import polarlib
from polarlib import norms
from polarlib.files import sample_matrices, sample_metadata
from polarlib.files.whole import write_whole
from polarlib.norms import block_periodic, per_block, power_step, range_lmo
from polarlib.updates import dion, uscg_step

HERE = Path(__file__).resolve().parent
STORED = HERE / "gradients.npz"
DATA = HERE.parent / "docs" / "data" / "approximations.json"
PAGE = HERE.parent / "docs" / "evidence" / "approximations.md"
Array = np.ndarray
Data = dict[str, Any]
SPECTRAL = norms.spectral()

DEVICES, SHAPE, FORMAT = 8, (4096, 4096), "bfloat16"
WARM = 10  # power steps from a Gaussian basis, on the same matrix
BLOCKS, GRID, PERIODS, FRACTIONS = (2, 4, 8), (2, 4), (2, 5, 10), (8, 4, 2)
MU, WIDTH, BATCH = 0.95, 128, 64
# Of the sequence of gradients: steps and rate of the training, and ranks.
LENGTH, SLOW, RANKS = 200, 0.005, (2, 4, 8, 16, 32, 64)
# Of the losses: a few steps, in which directions still differ.
STEPS, RATES, SEEDS = 100, (0.01, 0.02, 0.04, 0.08, 0.16), (0, 1, 2)


# -- approximations of one matrix --------------------------------------------------------------


class Variant(NamedTuple):
    """An approximation: its value at a matrix, None if blocks are unequal, and how it sends.

    `value` returns the results of the steps of a period.
    """

    name: str
    layout: str
    value: Callable[[Array], list[Array] | None]
    options: Callable[[tuple[int, int]], dict[str, int]] = lambda shape: {}


def split_along(g: Array, longer: int, shorter: int) -> tuple[int, int] | None:
    """Return numbers of blocks of rows and columns; None if blocks are unequal."""
    grid = (longer, shorter) if g.shape[0] >= g.shape[1] else (shorter, longer)
    return None if g.shape[0] % grid[0] or g.shape[1] % grid[1] else grid


def in_blocks(longer: int, shorter: int) -> Callable[[Array], list[Array] | None]:
    def value(g: Array) -> list[Array] | None:
        grid = split_along(g, longer, shorter)
        return None if grid is None else [per_block(g, *grid)]

    return value


def periodic(period: int) -> Callable[[Array], list[Array] | None]:
    def value(g: Array) -> list[Array] | None:
        grid = split_along(g, DEVICES, 1)
        if grid is None:
            return None
        rows, columns = grid
        return [block_periodic(g, k, period, rows=rows, columns=columns) for k in range(period)]

    return value


def rank_of(shape: tuple[int, int], part: int) -> int:
    return max(1, min(shape) // part)


def low_rank(part: int, exact: bool) -> Callable[[Array], list[Array]]:
    """Return Dion's update, or the LMO in the same range, after warm starts."""

    def value(g: Array) -> list[Array]:
        k = rank_of(g.shape, part)
        q = np.random.default_rng(0).standard_normal((g.shape[1], k))
        for _ in range(WARM):
            _, _, q = power_step(g, q)
        return [range_lmo(g, power_step(g, q)[0]) if exact else dion(0 * g, g, q)[0]]

    return value


def variants() -> Iterator[Variant]:
    """Yield every approximation, in the order of the table."""
    yield Variant("exact, matrix gathered", "gather", lambda g: [SPECTRAL.lmo(g)])
    for n in BLOCKS:
        yield Variant(f"{n} blocks along the longer side", "block", in_blocks(n, 1))
    for n in BLOCKS:
        yield Variant(f"{n} blocks along the shorter side", "block", in_blocks(1, n))
    yield Variant(f"{GRID[0]} x {GRID[1]} blocks", "block", in_blocks(*GRID))
    for p in PERIODS:
        name = f"block-periodic, P = {p}, {DEVICES} blocks along the longer side"
        yield Variant(name, "block_periodic", periodic(p), lambda shape, p=p: {"period": p})
    for exact in (False, True):
        for part in FRACTIONS:
            name = f"{'range_lmo' if exact else 'Dion'}, rank n/{part}"
            yield Variant(
                name,
                "dion",
                low_rank(part, exact),
                lambda shape, part=part: {"rank": rank_of(shape, part)},
            )


def errors(g: Array, found: list[Array]) -> list[float]:
    """Return alignment, dual gap and spectral norm, means over the steps of a period."""
    exact = SPECTRAL.lmo(g)
    values = [
        (
            np.sum(exact * t) / np.linalg.norm(exact) / np.linalg.norm(t),
            norms.duality_gap(SPECTRAL, g, t),
            np.linalg.norm(t, 2),
        )
        for t in found
    ]
    return [float(x) for x in np.mean(values, axis=0)]


def sent(shape: tuple[int, int], variant: Variant) -> float:
    """Return the bytes that one of the devices sends per step."""
    return polarlib.communication(
        shape,
        layout=variant.layout,
        devices=DEVICES,
        precision=FORMAT,
        **variant.options(shape),
    ).bytes


def exact() -> dict[str, float]:
    """Return the bytes of the exact LMO, by layout."""
    layouts = "gather", "rows", "all_to_all"
    given = {"devices": DEVICES, "precision": FORMAT}
    return {each: polarlib.communication(SHAPE, layout=each, **given).bytes for each in layouts}


def matrices() -> dict[str, Array]:
    """Return all gradients and momenta, in double precision."""
    with np.load(STORED) as file:
        facts = tomllib.loads(STORED.with_suffix(".toml").read_text("utf-8"))["matrix"]
        stored = {f["name"]: file[f["name"]] * np.float64(f["scale"]) for f in facts}
    return {name: np.float64(g) for name, g in (sample_matrices() | stored).items()}


def measured(g: Array) -> dict[str, list[float]]:
    """Return the errors of every variant that the shape allows."""
    found = {v.name: v.value(g) for v in variants()}
    return {name: errors(g, ts) for name, ts in found.items() if ts is not None}


# -- a sequence of gradients -------------------------------------------------------------------


def network() -> Any:
    """Return the module of the network, whose folder has a module of the name of one here."""
    folder = str(HERE.parent / "analysis")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("digits_network")


def batches(steps: int, seed: int = 0) -> Iterator[tuple[Array, Array]]:
    rng = np.random.default_rng([1, seed])
    x, y = network().digits()
    for _ in range(steps):
        some = rng.integers(len(y), size=BATCH)
        yield x[some], y[some]


def weights(seed: int = 0) -> list[Array]:
    rng = np.random.default_rng([0, seed])
    return [rng.standard_normal(s) / math.sqrt(s[1]) for s in network().shapes(WIDTH)]


def sequence(steps: int = LENGTH) -> list[Array]:
    """Return the gradients of the middle layer while all layers are trained by exact Muon."""
    ws, found = weights(), []
    buffers = [np.zeros_like(w) for w in ws]
    for x, y in batches(steps):
        gs = network().gradients(ws, x, y)
        found.append(gs[1])
        buffers = [MU * (b + g) for b, g in zip(buffers, gs, strict=True)]
        ws = [
            uscg_step(w, b, SPECTRAL.lmo, rate=SLOW, radius=norms.update_scale(*w.shape, "jordan"))
            for w, b in zip(ws, buffers, strict=True)
        ]
    return found


def step(b: Array, g: Array, q: Array, feedback: bool) -> tuple[Array, Array, Array]:
    """Return a step of Dion, or that of heavy-ball momentum which forgets all of B alike."""
    update, m, q = dion(b, g, q, mu=MU)
    return update, m if feedback else MU * (b + g), q


def accumulated(gradients: list[Array], rank: int, feedback: bool) -> tuple[float, float]:
    """Return two errors of a run: of the sum of all P R^T, and of the sum of updates.

    The first is relative to the sum at full rank, where P R^T is heavy-ball momentum. The second is
    one minus the alignment of the sum of updates with that of exact LMOs.
    """
    m = b = applied = full = total = exact = np.zeros_like(gradients[0])
    q = np.random.default_rng(0).standard_normal((m.shape[1], rank))
    for g in gradients:
        left, right, _ = power_step(m + g, q)
        applied, full = applied + left @ right.T, full + b + g
        update, m, q = step(m, g, q, feedback)
        b = MU * (b + g)
        total, exact = total + update, exact + SPECTRAL.lmo(b)
    alignment = np.sum(total * exact) / np.linalg.norm(total) / np.linalg.norm(exact)
    return float(np.linalg.norm(full - applied) / np.linalg.norm(full)), float(1 - alignment)


# -- losses ------------------------------------------------------------------------------------

State = dict[str, Array]
Direction = Callable[[int, Array, Array, State], Array]


def momentum(state: State, g: Array) -> Array:
    state["b"] = MU * (state.get("b", 0 * g) + g)
    return state["b"]


def blocks(period: int) -> Direction:
    """Return the direction of a period, with updates of equal root mean squares; 0 is no period."""

    def direction(k: int, g: Array, q: Array, state: State) -> Array:
        m, n = g.shape
        rows, columns = (1, DEVICES) if m % DEVICES else (DEVICES, 1)
        sizes = (m // rows, n // columns), (m, n)
        small, large = (norms.update_scale(*size, "moonlight") for size in sizes)
        return block_periodic(
            momentum(state, g),
            k if period else 1,
            period or 2,
            rows=rows,
            columns=columns,
            factor=small / large,
        )

    return direction


def dions(*, feedback: bool = True, exact: bool = False) -> Direction:
    """Return Dion's direction, or the LMO in the same range."""

    def direction(k: int, g: Array, q: Array, state: State) -> Array:
        m, basis = state.get("m", 0 * g), state.get("q", q)
        update, state["m"], state["q"] = step(m, g, basis, feedback)
        return range_lmo(m + g, power_step(m + g, basis)[0]) if exact else update

    return direction


def directions() -> dict[str, Direction]:
    """Return the directions of training: functions of step, gradient, first basis and state."""
    return {
        "exact": lambda k, g, q, state: SPECTRAL.lmo(momentum(state, g)),
        "8 blocks": blocks(0),
        "block-periodic, P = 5, 8 blocks": blocks(5),
        "Dion, rank n/8": dions(),
        "Dion, rank n/8, without feedback": dions(feedback=False),
        "range_lmo, rank n/8": dions(exact=True),
    }


def trained(direction: Direction, rate: float, seed: int) -> float:
    """Return the loss on all digits after a training whose rate falls linearly to zero."""
    ws = weights(seed)
    rng = np.random.default_rng([2, seed])
    bases = [rng.standard_normal((w.shape[1], rank_of(w.shape, 8))) for w in ws]
    states: list[State] = [{} for _ in ws]
    for k, (x, y) in enumerate(batches(STEPS, seed)):
        gs = network().gradients(ws, x, y)
        now = rate * (1 - k / STEPS)
        ws = [
            w - now * norms.update_scale(*w.shape, "jordan") * direction(k, g, q, state)
            for w, g, q, state in zip(ws, gs, bases, states, strict=True)
        ]
    x, y = network().digits()
    return float(network().losses(network().forward(ws, x)[-1], y)[0])


# -- data and page -----------------------------------------------------------------------------


def digits_of(x: float) -> float:
    return float(f"{x:.4g}")


def settings() -> Data:
    """Return the settings that the page names."""
    return {
        "devices": DEVICES,
        "shape": SHAPE,
        "warm": WARM,
        "mu": MU,
        "width": WIDTH,
        "batch": BATCH,
        "length": LENGTH,
        "slow": SLOW,
        "steps": STEPS,
        "rates": RATES,
        "seeds": len(SEEDS),
    }


def measure() -> Data:
    """Return all values."""
    rows = {
        name: {v: [digits_of(x) for x in values] for v, values in measured(g).items()}
        for name, g in track(matrices().items(), "gradients")
    }
    gradients = sequence()
    feedback = {
        str(k): [[digits_of(x) for x in accumulated(gradients, k, f)] for f in (True, False)]
        for k in track(RANKS, "sequence")
    }
    runs = {
        name: [
            digits_of(statistics.median(trained(d, rate, seed) for seed in SEEDS)) for rate in RATES
        ]
        for name, d in track(directions().items(), "losses")
    }
    return {
        "settings": settings(),
        "gradients": rows,
        "effective rank": {
            name: digits_of(fact["effective_rank"]) for name, fact in sample_metadata().items()
        },
        "bytes": {v.name: sent(SHAPE, v) for v in variants()},
        "exact bytes": exact(),
        "feedback": feedback,
        "losses": runs,
    }


def text_of(data: Data) -> str:
    """Return the data as JSON, one line per row."""
    parts = []
    for key, rows in data.items():
        lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items()]
        parts.append(f" {json.dumps(key)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def load(path: Path = DATA) -> Data:
    """Return the data of the page."""
    data: Data = json.loads(path.read_text(encoding="utf-8"))
    return data


def main(
    only_page: Annotated[bool, typer.Option("--page", help="Measure nothing.")] = False,
) -> None:
    """Measure, and write the data and the page."""
    if not only_page:
        made = text_of(measure()).encode()
        write_whole(DATA, lambda file: file.write(made))
    text = page(load()).encode()
    write_whole(PAGE, lambda file: file.write(text))


if __name__ == "__main__":
    typer.run(main)
