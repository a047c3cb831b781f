"""Coordinate check and transfer of the learning rate: what changes with the width of a network."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import character_block
import numpy as np
from common import Output, main
from digits_network import digits, forward, gradients, losses, shapes
from width_curves import Curves, picture, seed_rows, tables

from polarlib import norms
from polarlib.norms import Norm, Parametrization
from polarlib.updates import debias, ema, presgdw_step, uscg_step

Array = np.ndarray
BASE = 64  # the width at which muP is SP; there are as many inputs
LAYERS = ("input", "hidden", "output")
BATCH = 256  # of the coordinate check
# Of the transfer.
STEPS, TRAINING_BATCH, MOMENTUM = 60, 128, 0.9
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
COMPARED = (-5, -4)  # log2 of rates at which widths are compared


# -- the methods -----------------------------------------------------------------------------


def sp() -> list[Parametrization]:
    """Standard parametrization: variance 1/fan-in, one rate."""
    return [Parametrization(0, b, 0) for b in (0, 0.5, 0.5)]


def mup() -> list[Parametrization]:
    """Maximal update parametrization for Adam."""
    return [norms.mup(layer, "adam") for layer in LAYERS]


def radii(n: int) -> list[float]:
    """Scion's: sqrt(fan-out / fan-in) of hidden layers, at least 1; 1/fan-in of the last one."""
    scales = [norms.update_scale(*shape, "jordan") for shape in shapes(n)[:2]]
    return [*scales, 1 / n]


def scion(n: int) -> list[Norm]:
    """Scion's norms: a step of length 1 has the radius as its size."""
    kinds = norms.spectral(), norms.spectral(), norms.lp(math.inf)
    return [(1 / radius) * kind for radius, kind in zip(radii(n), kinds, strict=True)]


def muon(n: int) -> list[Norm]:
    """The spectral norm of every layer, whatever its shape."""
    return [norms.spectral() for _ in shapes(n)]


def adam(exponents: Iterable[Parametrization], n: int) -> list[Norm]:
    """The norms of Adam's first step, the sign of the gradient times the layer's rate."""
    return [(n / BASE) ** p.c * norms.lp(math.inf) for p in exponents]


def gaussian(exponents: Iterable[Parametrization], n: int, rng: np.random.Generator) -> list[Array]:
    """Weights of variance 1/fan-in at the base width, where every fan-in is 64, then n^-2b."""
    return [
        rng.standard_normal(shape) * (n / BASE) ** -p.b / math.sqrt(BASE)
        for shape, p in zip(shapes(n), exponents, strict=True)
    ]


def on_the_sphere(n: int, rng: np.random.Generator) -> list[Array]:
    """Weights of Scion's length 1: semi-orthogonal, and random signs in the last layer."""
    drawn = [rng.standard_normal(shape) for shape in shapes(n)]
    return [norm.lmo(w) for norm, w in zip(scion(n), drawn, strict=True)]


def plain_start(n: int, rng: np.random.Generator) -> list[Array]:
    """Weights of plain Muon, those of SP."""
    return gaussian(sp(), n, rng)


class Method(NamedTuple):
    """Weights to start from, norms of the layers' steps, rate of the coordinate check, exponents.

    Functions are looked up when they are called, so that a wrong one can take their place.
    """

    start: Callable[[int, np.random.Generator], list[Array]]
    norms: Callable[[int], list[Norm]]
    rate: float
    exponents: Callable[[], list[Parametrization]] | None = None  # of Adam's rates


METHODS = {
    "Adam SP": Method(
        lambda n, rng: gaussian(sp(), n, rng), lambda n: adam(sp(), n), 1e-4, lambda: sp()
    ),
    "Adam muP": Method(
        lambda n, rng: gaussian(mup(), n, rng), lambda n: adam(mup(), n), 1e-3, lambda: mup()
    ),
    "Muon plain": Method(lambda n, rng: plain_start(n, rng), lambda n: muon(n), 1e-2),
    "Scion": Method(lambda n, rng: on_the_sphere(n, rng), lambda n: scion(n), 1e-2),
    # Of the transfer alone.
    "one radius": Method(lambda n, rng: on_the_sphere(n, rng), lambda n: muon(n), 1e-2),
}


# -- coordinate check ------------------------------------------------------------------------


def changes(method: Method, n: int, seed: int, x: Array, y: Array) -> list[float]:
    """Root mean squares of the changes of features and scores on the batch, over the rate."""
    chosen = np.random.default_rng(seed).choice(len(x), BATCH, replace=False)
    ws = method.start(n, np.random.default_rng([seed, n]))
    x, y = x[chosen], y[chosen]
    stepped = [
        uscg_step(w, g, norm.lmo, rate=method.rate)
        for w, g, norm in zip(ws, gradients(ws, x, y), method.norms(n), strict=True)
    ]
    pairs = zip(forward(ws, x), forward(stepped, x), strict=True)
    return [float(np.sqrt(np.mean((b - a) ** 2))) / method.rate for a, b in pairs]


def slopes(widths: Sequence[int], sizes: Array) -> list[float]:
    """Of log2 of sizes[width, seed, feature], averaged over seeds, against log2 of the width."""
    logs = np.log2(sizes).mean(axis=1)
    return [float(v) for v in np.polyfit(np.log2(widths), logs, 1)[0]]


def check(out: Output, quick: bool, names: Sequence[str]) -> dict[str, Array]:
    """Hand in the slopes of some methods; return sizes[width, seed, layer]."""
    x, y = digits()
    widths, found = widths_of(quick), {}
    for name in names:
        sizes = [
            [changes(METHODS[name], n, seed, x, y) for seed in range(3)]
            for n in out.steps(widths, f"coordinate check, {name}")
        ]
        found[name] = np.array(sizes)
        out.figure(f"slopes, {name}", slopes(widths, found[name]))
    return found


def widths_of(quick: bool) -> tuple[int, ...]:
    return (64, 128, 256, 512) if quick else (64, 128, 256, 512, 1024)


def adam_slopes(out: Output, quick: bool) -> dict[str, Array]:
    """Adam under SP and under muP."""
    found = check(out, quick, ("Adam SP", "Adam muP"))
    under = {name: slopes(widths_of(quick), sizes) for name, sizes in found.items()}
    out.figure("slopes of layer 2 and scores, Adam SP", under["Adam SP"][1:])
    out.figure("slopes of hidden layers, Adam muP", under["Adam muP"][:2])
    return found


def spectral_slopes(out: Output, quick: bool) -> dict[str, Array]:
    """Muon with one rate, and Scion."""
    found = check(out, quick, ("Muon plain", "Scion"))
    first, _, scores = slopes(widths_of(quick), found["Muon plain"])
    out.figure("slope of layer 1, Muon plain", first)
    out.figure("slope of scores, Muon plain", scores)
    return found


def blocks(out: Output, quick: bool) -> None:
    """The same of a transformer of one block."""
    if quick:
        return
    widths = (32, 64, 128, 256, 512)
    rows: list[list[object]] = []
    for name in character_block.RATES:
        sizes = [
            [character_block.changes(name, n, seed) for seed in range(3)]
            for n in out.steps(widths, f"transformer, {name}")
        ]
        out.figure(f"slopes, transformer, {name}", slopes(widths, np.array(sizes)))
        rows += seed_rows(name, widths, np.array(sizes))
    out.table("transformer", ["method", "width", "seed", *character_block.FEATURES], rows)


# -- transfer of the rate --------------------------------------------------------------------


def train(method: Method, n: int, rate: float, seeds: int, x: Array, y: Array) -> Array:
    """Logarithms of the final losses on all images, one per seed; the rate falls linearly to 0."""
    starts = [method.start(n, np.random.default_rng([seed, n])) for seed in range(seeds)]
    ws = [np.stack(layer) for layer in zip(*starts, strict=True)]
    ms, vs = ([np.zeros_like(w) for w in ws] for _ in range(2))
    batches = [np.random.default_rng([seed, 1]) for seed in range(seeds)]
    balls = method.norms(n)
    for step in range(STEPS):
        chosen = [rng.choice(len(x), TRAINING_BATCH, replace=False) for rng in batches]
        now = rate * (1 - step / STEPS)
        for layer, g in enumerate(gradients(ws, x[chosen], y[chosen])):
            w = ws[layer]
            if method.exponents is None:
                ms[layer] = ema(ms[layer], g, MOMENTUM)
                ws[layer] = uscg_step(w, ms[layer], balls[layer].lmo, rate=now)
                continue
            ms[layer], vs[layer] = ema(ms[layer], g, BETA1), ema(vs[layer], g * g, BETA2)
            d, v = debias(ms[layer], step + 1, BETA1), debias(vs[layer], step + 1, BETA2)
            scale = (n / BASE) ** -method.exponents()[layer].c
            ws[layer] = presgdw_step(w, d, np.sqrt(v) + EPSILON, rate=now * scale)
    final, _ = losses(forward(ws, x)[-1], y)
    return np.log(final)


def curves(
    out: Output, name: str, widths: Sequence[int], rates: Sequence[float], seeds: int
) -> Curves:
    """Log losses of a method over widths and rates."""
    x, y = digits()
    pairs = [(n, rate) for n in widths for rate in rates]
    logs = [
        train(METHODS[name], n, 2.0**rate, seeds, x, y)
        for n, rate in out.steps(pairs, f"transfer, {name}")
    ]
    return Curves(widths, rates, np.reshape(logs, (len(widths), len(rates), seeds)))


def adam_transfer(out: Output, quick: bool) -> dict[str, Curves]:
    """The best rate of Adam by width, and whether wider is better at one rate."""
    usual = (32, 64, 128) if quick else (32, 64, 128, 256)
    wider = usual if quick else (*usual, 512)
    seeds = 2 if quick else 12
    found = {
        "Adam SP": curves(out, "Adam SP", usual, range(-8, -3), seeds),
        "Adam muP": curves(out, "Adam muP", wider, range(-7, -3), seeds),
    }
    for name, of in found.items():
        out.figure(f"shift of the best rate per doubling, {name}", of.shift(usual))
    of = found["Adam muP"]
    if not quick:
        from_base = of.shift(wider[1:])
        out.figure("shift of the best rate per doubling from the base width, Adam muP", from_base)
    for rate in COMPARED:
        at = of.logs()[: len(usual), list(of.rates).index(rate)]
        name = f"largest change of log loss per doubling at rate 2^{rate}, Adam muP"
        out.figure(name, float(np.diff(at).max()))
    return found


def scion_transfer(out: Output, quick: bool) -> dict[str, Curves]:
    """The best rate of Scion by width, and with one radius for every layer."""
    widths = (32, 64, 128) if quick else (32, 64, 128, 256)
    found = {"Scion": curves(out, "Scion", widths, range(-5, 0), 2 if quick else 4)}
    if not quick:
        found["one radius"] = curves(out, "one radius", widths, range(-6, -1), 4)
    for name, of in found.items():
        out.figure(f"shift of the best rate per doubling, {name}", of.shift(widths))
    return found


def study(out: Output, quick: bool) -> None:
    sizes = adam_slopes(out, quick) | spectral_slopes(out, quick)
    blocks(out, quick)
    of = adam_transfer(out, quick) | scion_transfer(out, quick)
    tables(out, widths_of(quick), sizes, of)
    out.plot(
        "width",
        picture(widths_of(quick), sizes, of),
        "Above: root mean square of the change of layer 2 in one step, divided by the rate, over "
        "the width; thin lines have slopes 1/2 and 1. Below: logarithm of the loss after 60 steps "
        "over the first rate, for three widths; under SP the best rate falls as the network grows, "
        "under Scion it stays.",
    )


if __name__ == "__main__":
    main(study, __file__)
