"""F-Muon and S-Muon against Muon by iterations on a quadratic of one matrix."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import Output, main, panels

import polarlib
from polarlib import norms, plot, updates

Array = np.ndarray
Start = tuple[int, int]  # n and the seed

TARGET = 1e-3  # of the loss at n = 500
PUBLISHED_N = 500
SIGN = 0.01  # size of the entries of a sign step
# A run stops at this multiple of the published count: a method that needs more has no value.
PATIENCE = 1.2


class Method(NamedTuple):
    """One row of the table of tuned rates."""

    rate: float
    momentum: float
    polar: float  # weight of the polar factor, of G over its Frobenius norm, and of its signs
    frobenius: float
    signs: float
    published: int  # iterations


METHODS = {
    "Muon": Method(0.007, 0.5, 1.0, 0.0, 0.0, 1060),
    "F-Muon": Method(0.015, 0.7, 0.5, 0.5, 0.0, 910),
    "S-Muon": Method(0.011, 0.9, 0.5, 0.0, 0.5, 890),
    "NSGD": Method(0.08, 0.95, 0.0, 1.0, 0.0, 1020),
    "SignSGD": Method(0.016, 0.95, 0.0, 0.0, 1.0, 2650),
}
SPECTRAL = ("Muon", "F-Muon", "S-Muon")
# Rates with which the exact factor gets below the target; momenta as published.
EXACT_RATES = {"Muon": 0.005, "F-Muon": 0.012, "S-Muon": 0.008}

# Where the runs start: the published size with the published seed, and smaller problems.
SMALL = (200, 42)
STARTS: tuple[Start, ...] = ((500, 42), SMALL, (200, 43))
FAILING = (500, 43)  # a start from which F-Muon does not get below the target


# -- the method ------------------------------------------------------------------------------


def factor(g: Array) -> Array:
    """The polar factor as the authors compute it: three quintic steps in bfloat16."""
    return polarlib.orthogonalize(g, schedule="jordan", steps=3, precision="bfloat16")


three_in_single = functools.partial(polarlib.orthogonalize, schedule="jordan", steps=3)
five_steps = functools.partial(three_in_single, steps=5, precision="bfloat16")
exact = polarlib.nearest_orthogonal
direction = updates.nesterov  # of the buffer, the gradient and the momentum


def plain(buffer: Array, g: Array, momentum: float) -> Array:
    """The direction without Nesterov's correction."""
    return buffer


def share(k: int, most: int) -> float:
    """What the rate is multiplied by in iteration k: constant."""
    return 1.0


def falling(k: int, most: int) -> float:
    """A rate that falls linearly to zero."""
    return 1 - k / most


@functools.cache
def problem(n: int, seed: int) -> tuple[Array, Array, Array]:
    """M, N and the start: Haar eigenvectors, eigenvalues uniform on (0, 1), torch's generator."""
    import torch

    random = torch.Generator().manual_seed(seed)

    def definite() -> Array:
        q, _ = torch.linalg.qr(torch.randn(n, n, generator=random))
        return ((q * torch.rand(n, generator=random)) @ q.T).numpy()

    m = definite()
    return m, definite(), (0.1 * torch.randn(n, n, generator=random)).numpy()


def lmo_of(method: Method, n: int, polar: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The step of a method for n x n matrices, for the rate at n = 500.

    Singular values of X are proportional to sqrt(n), its Frobenius norm to n, its entries to 1:
    steps in proportion take as many iterations for every n.
    """
    size = n / PUBLISHED_N
    terms = (
        (method.polar * math.sqrt(size), norms.spectral(polar=polar)),
        (method.frobenius * size, norms.frobenius()),
        (method.signs * SIGN, norms.lp(math.inf)),
    )
    return norms.minkowski_sum([term for term in terms if term[0]]).lmo


@functools.cache
def descent(
    method: Method,
    start: Start,
    polar: Callable[[Array], Array],
    momentum: Callable[[Array, Array, float], Array],
    schedule: Callable[[int, int], float],
    stop: bool,
) -> Array:
    """Losses over the target, from the start until patience ends or, if stop, one is below 1."""
    m, n, x = problem(*start)
    lmo = lmo_of(method, start[0], polar)
    target = TARGET * (start[0] / PUBLISHED_N) ** 2
    buffer, losses = np.zeros_like(x), []
    most = round(PATIENCE * method.published)
    for k in range(most + 1):
        g = m @ x @ n
        losses.append(0.5 * float(np.vdot(x, g)) / target)
        if stop and losses[-1] < 1:
            break
        buffer = updates.polyak(buffer, g, method.momentum)
        d = momentum(buffer, g, method.momentum)
        x = updates.uscg_step(x, d, lmo, rate=method.rate * schedule(k, most))
    return np.array(losses)


def losses(
    name: str,
    start: Start,
    *,
    rate: float | None = None,
    stop: bool = True,
    **parts: Callable,
) -> Array:
    """A method's losses over the target, with the published rate and this module's parts.

    Other parts are given as factor=, direction= or share=.
    """
    method = METHODS[name] if rate is None else METHODS[name]._replace(rate=rate)
    used = {"factor": factor, "direction": direction, "share": share} | parts
    return descent(method, start, used["factor"], used["direction"], used["share"], stop)


def iterations(of: Array, level: float = 1.0) -> float:
    """Iterations until the loss is below a multiple of the target, infinity if it never is."""
    below = np.flatnonzero(of < level)
    return float(below[0]) if below.size else math.inf


# -- parts -----------------------------------------------------------------------------------


def starts(quick: bool) -> tuple[Start, ...]:
    return (SMALL,) if quick else STARTS


def counts(out: Output, quick: bool, name: str) -> None:
    """Iterations of one method from every start."""
    found = [losses(name, start) for start in out.steps(starts(quick), name)]
    out.figure(f"iterations, {name}", [iterations(run) for run in found])


muon = functools.partial(counts, name="Muon")
f_muon = functools.partial(counts, name="F-Muon")
s_muon = functools.partial(counts, name="S-Muon")
nsgd = functools.partial(counts, name="NSGD")
sign_sgd = functools.partial(counts, name="SignSGD")


def median(name: str, quick: bool, level: float = 1.0) -> float:
    return float(np.median([iterations(losses(name, s), level) for s in starts(quick)]))


def ratios(out: Output, quick: bool) -> None:
    """Medians of the F- and S-variant over Muon's, to the target and to twice the target."""
    for name in SPECTRAL[1:]:
        out.figure(f"iterations, {name} over Muon", median(name, quick) / median("Muon", quick))
    twice = [median(name, quick, 2) for name in SPECTRAL]
    out.figure("iterations to twice the target, Muon, F-Muon, S-Muon", twice)
    over = [value / twice[0] for value in twice[1:]]
    out.figure("iterations to twice the target, F-Muon and S-Muon over Muon", over)


def against_signs(out: Output, quick: bool) -> None:
    """What full-rank steps save against steps of signs."""
    value = median("SignSGD", quick) / median("Muon", quick)
    out.figure("iterations, SignSGD over Muon", value)


def oscillation(out: Output, quick: bool) -> None:
    """What the loss does where it first gets below the target: a constant step goes to and fro."""
    last = [float(losses(name, SMALL)[-10:].max()) for name in SPECTRAL]
    out.figure(
        "largest loss over the target in the last ten iterations, Muon, F-Muon, S-Muon", last
    )
    if quick:
        return
    pairs, rows = [], []
    for name in out.steps(METHODS, "beyond the target"):
        below = losses(name, SMALL, stop=False) < 1
        pairs.append(int(np.sum(below[1:] & below[:-1])))
        firsts = (iterations(np.where(below[::every], 0.0, 2.0)) * every for every in (1, 10))
        rows.append([name, *firsts, pairs[-1]])
    columns = ["method", "iterations", "looked at every tenth", "successive ones both below"]
    out.table("oscillation", columns, rows)
    out.figure("successive iterations both below the target, Muon, F-Muon, S-Muon", pairs[:3])


def table(out: Output, quick: bool) -> None:
    """All runs from all starts, with the least loss."""
    rows = []
    for name in METHODS:
        for start in starts(quick):
            run = losses(name, start)
            counted = (iterations(run, level) for level in (1, 2))
            rows.append([name, *start, *counted, f"{run.min():.4f}"])
    columns = ["method", "n", "seed", "iterations", "to twice the target", "least loss / target"]
    out.table("iterations", columns, rows)


def exact_factor(out: Output, quick: bool) -> None:
    """What the exact polar factor makes of the published rates, and of its own."""
    chosen = SPECTRAL[:1] if quick else SPECTRAL
    found = {name: losses(name, SMALL, factor=exact) for name in out.steps(chosen, "exact factor")}
    out.figure("least loss over the target, exact factor, Muon", found["Muon"].min())
    if quick:
        return
    least = [found[name].min() for name in SPECTRAL[1:]]
    out.figure("least loss over the target, exact factor, F-Muon and S-Muon", least)
    twice = [iterations(found[name], 2) for name in SPECTRAL]
    over = [value / twice[0] for value in twice[1:]]
    out.figure("iterations to twice the target, exact factor, F-Muon and S-Muon over Muon", over)
    retuned = [
        iterations(losses(name, SMALL, factor=exact, rate=EXACT_RATES[name]))
        for name in out.steps(SPECTRAL, "exact factor, other rates")
    ]
    out.figure("iterations, exact factor at other rates, Muon, F-Muon, S-Muon", retuned)


CHANGES: dict[str, dict[str, Callable]] = {
    "as published": {},
    "exact polar factor": {"factor": exact},
    "five steps in bfloat16": {"factor": five_steps},
    "three steps in float32": {"factor": three_in_single},
    "plain momentum": {"direction": plain},
    "rate falling to zero": {"share": falling},
}


def variants(out: Output, quick: bool) -> None:
    """Every method with one part of it exchanged, n = 200."""
    rows = []
    for change, what in out.steps(CHANGES.items(), "variants"):
        for name in METHODS:
            if "factor" in what and name not in SPECTRAL:
                continue
            run = losses(name, SMALL, **what)
            counted = (iterations(run, level) for level in (1, 2))
            rows.append([change, name, *counted, f"{run.min():.4f}"])
    columns = ["change", "method", "iterations", "to twice the target", "least loss / target"]
    out.table("variants", columns, rows)
    five = losses("Muon", SMALL, factor=five_steps).min()
    out.figure("least loss over the target, five steps, Muon", five)
    single = [iterations(losses(name, SMALL, factor=three_in_single)) for name in SPECTRAL]
    apart = [abs(a - iterations(losses(b, SMALL))) for a, b in zip(single, SPECTRAL, strict=True)]
    out.figure("iterations, float32 against bfloat16, largest difference", max(apart))


def another_start(out: Output, quick: bool) -> None:
    """F-Muon from a start for which the published rate is too large."""
    for start in out.steps((FAILING,), f"F-Muon, n = {FAILING[0]}, seed {FAILING[1]}"):
        least = losses("F-Muon", start).min()
    out.figure("least loss over the target, F-Muon, n = 500, seed 43", least)
    out.note(
        f"F-Muon with the published rate from another start (n = {FAILING[0]}, seed {FAILING[1]}) "
        f"stays at {least:.2f} times the target: the constant step then oscillates above it."
    )


# -- picture ---------------------------------------------------------------------------------

LOOKS = {
    "Muon": (plot.BLUE, "-"),
    "F-Muon": (plot.VERMILLION, "--"),
    "S-Muon": (plot.GREEN, "-."),
    "NSGD": (plot.INK, ":"),
    "SignSGD": (plot.ORANGE, (0, (5, 1, 1, 1, 1, 1))),
}


def picture(out: Output, quick: bool) -> None:
    """Loss over iterations: five methods, and the exact factor below."""
    start = starts(quick)[0]
    fig, (above, below) = panels(2, height=4.6)
    for name, (colour, line) in LOOKS.items():
        above.semilogy(losses(name, start), color=colour, linestyle=line, label=name)
    above.set_xlim(0, 2700)
    above.set_title(f"three steps, n = {start[0]}")
    for name, dashes in (("Muon", "--"), ("F-Muon", ":"))[: 1 if quick else 2]:
        for how, line, label in ((factor, "-", "three steps"), (exact, dashes, "exact")):
            run = losses(name, SMALL, factor=how)
            below.semilogy(run, linestyle=line, color=LOOKS[name][0], label=f"{name}, {label}")
    below.set_xlim(500, round(PATIENCE * METHODS["Muon"].published))
    below.set_ylim(0.7, 100)
    below.set_title(f"the exact factor, n = {SMALL[0]}")
    for ax in (above, below):
        ax.axhline(1, color=plot.INK, linewidth=0.6)
        ax.set_ylabel("loss / target")
        ax.legend(loc="upper right")
    below.set_xlabel("iteration")
    out.plot(
        "losses",
        fig,
        "Loss over the target (thin line; 0.001 at n = 500). Above: five methods at the published "
        f"rates, n = {start[0]}, seed {start[1]}. Below: three quintic steps against the exact "
        f"polar factor, n = {SMALL[0]}: with the exact factor the loss is lower at first and then "
        "stays above the target, where a constant step oscillates.",
    )


def study(out: Output, quick: bool) -> None:
    for part in (
        muon,
        f_muon,
        s_muon,
        nsgd,
        sign_sgd,
        ratios,
        against_signs,
        oscillation,
        table,
        exact_factor,
    ):
        part(out, quick)
    if not quick:
        variants(out, quick)
        another_start(out, quick)
    picture(out, quick)


if __name__ == "__main__":
    main(study, __file__)
