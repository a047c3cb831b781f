"""Spectral descent on X X^T = M: steps that do not depend on the condition number, and when."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import Output, main, panels
from descent import FIRST, RATIO, SCHEDULES, adam, decayed, descent, first, held, scalar, spectral

import polarlib
from polarlib import norms, plot, testing

KAPPAS = (1.0, 1e1, 1e2, 1e3, 1e4, 1e6)
TARGET = 1e-6  # of ||X X^T - M||_F / ||M||_F
# Of every mode. For kappa = 1e4 rounding leaves relative errors of 1e-9 to 2e-6, by processor and
# seed; down to 1e-4 the counts are the same everywhere.
RELATIVE_TARGET = 1e-4
ALPHA = 1e-3  # size of the start
RANK = 8
RATES = (0.5, 0.9)  # of gradient descent; it diverges above 1
ADAM_RATES, ADAM_STEPS = (1e-3, 1e-2, 1e-1), 3000
SPECTRAL_STEPS = 150  # the step is 1e-15 then
SLOW_STEPS = 250  # with SLOW
SLOW = 0.9  # rho for starts that are not aligned
STARTS = 10
DESCENT_STEPS = 100_000
CONSTANT = 0.01

msign = norms.spectral().lmo  # the exact polar factor


@dataclass(frozen=True)
class Problem:
    """f(X) = ||X X^T - M||_F^2 / 4 with M = U diag(lam) U^T, from X = alpha Q."""

    lam: np.ndarray
    u: np.ndarray
    q: np.ndarray
    m: np.ndarray

    def gradient(self, x: np.ndarray) -> np.ndarray:
        return (x @ x.T - self.m) @ x

    def error(self, x: np.ndarray) -> float:
        return float(np.linalg.norm(x @ x.T - self.m) / np.linalg.norm(self.lam))

    def done(self, x: np.ndarray) -> bool:
        return self.error(x) <= TARGET

    def modes(self, x: np.ndarray) -> np.ndarray:
        """Return the eigenvalues of X Q^T in the basis of M, for a function of M times Q."""
        return np.einsum("ij,ij->j", self.u, x @ (self.q.T @ self.u))


def problem(n: int, kappa: float, k: int | None = None, seed: int = 0) -> Problem:
    """Return a problem with k eigenvalues, geometric from 1 to 1/kappa; k = n by default."""
    k = k or n
    lam = np.geomspace(1, 1 / kappa, k)
    u, q = (testing.orthonormal(n, k, seed=2 * seed + i) for i in range(2))
    return Problem(lam, u, q, (u * lam) @ u.T)


def inexact(name: str):
    """Return the LMO of the spectral norm by a schedule of `SCHEDULES`."""
    return norms.spectral(polar=polarlib.schedule(*SCHEDULES[name])).lmo


def constant(t: int) -> float:
    """Return the step size that does not fall."""
    return CONSTANT


def plain(p: Problem, x: np.ndarray) -> np.ndarray:
    """Return the direction of gradient descent."""
    return p.gradient(x)


def best(counts: Iterable[int | None]) -> int | None:
    return min((c for c in counts if c is not None), default=None)


def spectral_count(p: Problem, lmo=None, size=None, steps: int = SPECTRAL_STEPS) -> int | None:
    return first(spectral(ALPHA * p.q, p.gradient, lmo or msign, size or decayed, steps), p.done)


def slowly(t: int) -> float:
    """Return the step size with the larger rho."""
    return decayed(t, SLOW)


def descent_count(p: Problem, steps: int) -> int | None:
    """Return the smaller count of the rates."""
    found = None
    for rate in RATES:
        path = descent(ALPHA * p.q, partial(plain, p), rate, found or steps)
        found = best([found, first(path, p.done)])
    return found


def adam_count(p: Problem) -> int | None:
    """Return the smallest count of the rates."""
    found = None
    for rate in sorted(ADAM_RATES, reverse=True):
        path = adam(ALPHA * p.q, p.gradient, rate, found or ADAM_STEPS)
        found = best([found, first(path, p.done)])
    return found


def size_of(quick: bool) -> int:
    return 32 if quick else 64


def proven(lam: np.ndarray) -> int:
    """Return the steps after which the bound of |s - sqrt(lam)| gives ||X X^T - M||_F <= target.

    |s^2 - lam| <= R (2 sqrt(lam) + R) for |s - sqrt(lam)| <= R, in every mode.
    """
    for t in range(10 * SPECTRAL_STEPS):
        r = FIRST * RATIO**t / (1 - RATIO)
        if np.linalg.norm(r * (2 * np.sqrt(lam) + r)) <= TARGET * np.linalg.norm(lam):
            return t
    raise ArithmeticError("the bound does not fall to the target")


# -- the parts -------------------------------------------------------------------------------


def muon(out: Output, quick: bool) -> list[int | None]:
    """Count the steps of spectral descent, k = n, and those that are proven."""
    n = size_of(quick)
    counts = [spectral_count(problem(n, kappa)) for kappa in out.steps(KAPPAS, "Muon")]
    out.figure("iterations, Muon, kappa 1 to 1e4", counts[:5])
    low = [spectral_count(problem(n, kappa, RANK)) for kappa in KAPPAS[:4]]
    out.figure("iterations, Muon, k = 8, kappa 1 to 1e3", low)
    steps = [proven(np.geomspace(1, 1 / kappa, n)) for kappa in KAPPAS[:5]]
    out.figure("proven number of steps, kappa 1 to 1e4", steps)
    return counts


def relative_done(p: Problem, x: np.ndarray) -> bool:
    """Return whether every mode has a relative error of at most `RELATIVE_TARGET`."""
    root = np.sqrt(p.lam)
    return bool((np.abs(np.abs(p.modes(x)) - root) <= RELATIVE_TARGET * root).all())


def relative(out: Output, quick: bool) -> None:
    """Count the steps to a relative error in every mode, which grow with ln kappa."""
    counts = []
    for kappa in (1e2, 1e4):
        p = problem(32, kappa)
        path = spectral(ALPHA * p.q, p.gradient, msign, decayed, SPECTRAL_STEPS)
        counts.append(first(path, partial(relative_done, p)) or math.nan)
    out.figure("extra steps for a relative error in every mode", counts[1] - counts[0])


def starts(out: Output, quick: bool) -> None:
    """Take the share of random starts from which k = 8 < n is solved, for two decays."""
    kappas = (*KAPPAS[3:5], 1e5, 1e6)
    rows = []
    for size, steps in ((decayed, SPECTRAL_STEPS), (slowly, SLOW_STEPS)):
        for kappa in out.steps(kappas, "starts that are not aligned"):
            runs = [
                spectral_count(problem(64, kappa, RANK, seed=seed), size=size, steps=steps)
                for seed in range(STARTS)
            ]
            solved = [c for c in runs if c is not None]
            rho = size(1) / size(0)
            rows.append((rho, kappa, STARTS, len(solved), np.median(solved) if solved else "none"))
    out.table("starts", ["rho", "kappa", "starts", "solved", "median of their steps"], rows)
    shares = [solved / STARTS for _, _, _, solved, _ in rows]
    out.figure("share of starts solved, k = 8, rho 0.8, kappa 1e5 and 1e6", shares[2:4])
    out.figure("share of starts solved, k = 8, rho 0.9, kappa 1e3 to 1e6", shares[4:])


def scalars(out: Output, quick: bool) -> None:
    """Compare the matrix iteration with its scalar sequences and with the bound."""
    shares, apart = [], 0.0
    steps = proven(np.geomspace(1, 1e-4, 32))
    for kappa in out.steps(KAPPAS[:5], "scalar sequences"):
        p = problem(32, kappa)
        s = scalar(np.full(32, ALPHA), lambda s, lam=p.lam: s**3 - lam * s, decayed, steps)
        path = list(spectral(ALPHA * p.q, p.gradient, msign, decayed, steps))
        shares.append(held(np.array([np.abs(p.modes(x)) - np.sqrt(p.lam) for x in path])))
        if kappa == 1e4:
            apart = max(
                float(np.abs(x - (p.u * v) @ (p.u.T @ p.q)).max())
                for x, v in zip(path[:61], s, strict=False)
            )
    out.figure("bound held", float(np.mean(shares)))
    out.figure("largest entry of X_t - s_t(M) Q", apart)


def constant_step(out: Output, quick: bool) -> None:
    """Take the least error of 500 steps of one size."""
    p = problem(32, 100.0)
    path = spectral(ALPHA * p.q, p.gradient, msign, constant, 500)
    out.figure("least error of 500 steps of 0.01", min(p.error(x) for x in path))


def gradient_descent(out: Output, quick: bool) -> list[int | None]:
    """Count the steps of gradient descent, k = n and k = 8."""
    n = size_of(quick)
    kappas = KAPPAS[: 4 if quick else 5]
    counts = [
        descent_count(problem(n, kappa), DESCENT_STEPS)
        for kappa in out.steps(kappas, "gradient descent")
    ]
    out.figure("iterations, gradient descent, kappa 1, 10, 100", counts[:3])
    one, ten, hundred, thousand = (c or math.nan for c in counts[:4])
    out.figure("growth of gradient descent, kappa 1 to 100", hundred / one)
    out.figure("slope of gradient descent over kappa, 10 to 1000", math.log10(thousand / ten) / 2)
    low = [descent_count(problem(n, kappa, RANK), DESCENT_STEPS) for kappa in KAPPAS[:3]]
    out.figure("iterations, gradient descent, k = 8, kappa 1, 10, 100", low)
    return counts


def adaptive(out: Output, quick: bool) -> list[int | None]:
    """Count the steps of Adam at its best constant rate, median of three problems."""
    n = size_of(quick)
    kappas = KAPPAS[:3] if quick else KAPPAS[:5]
    counts = []
    for kappa in out.steps(kappas, "Adam"):
        runs = [adam_count(problem(n, kappa, seed=seed)) for seed in range(3)]
        median = float(np.median([math.inf if c is None else c for c in runs]))
        counts.append(int(median) if math.isfinite(median) else None)
    out.figure("iterations, Adam, kappa 1, 10, 100", counts[:3])
    if not quick:
        growth = (counts[3] or math.inf) / (counts[0] or math.nan)
        out.figure("iterations, Adam, kappa 1000 over kappa 1", growth)
    return counts


def reached(counts: Sequence[int | None], kappas: Sequence[float]) -> float:
    """Return the largest kappa up to which, from 10 on, every problem was solved."""
    solved = 1.0
    for count, kappa in zip(counts, kappas, strict=True):
        if count is None:
            break
        solved = kappa
    return solved


def schedules(out: Output, quick: bool) -> dict[str, list[int | None]]:
    """Count the steps with an inexact polar factor, k = n and k = 8."""
    n = size_of(quick)
    rows: dict[str, list[int | None]] = {}
    for name in out.steps(SCHEDULES, "inexact factors"):
        for k in (n,) if quick else (n, RANK):
            runs = [spectral_count(problem(n, kappa, k), inexact(name)) for kappa in KAPPAS]
            rows[name if k == n else f"{name}, k = {k}"] = runs
    way = FIRST / (1 - RATIO) * float(polarlib.schedule("jordan", 5)(1 / math.sqrt(n)))
    out.note(
        f"For kappa = 1 and n = {n} every singular value of the gradient over its norm is "
        f"1 / sqrt(n), and all steps by Jordan's polynomial sum to {way:.3f} at most; the distance "
        f"from the start is {1 - ALPHA}."
    )
    ends = [reached(rows[f"Taylor, {s} steps"][1:], KAPPAS[1:]) for s in (5, 12)]
    out.figure("largest kappa solved, Taylor, 5 and 12 steps", ends)
    return rows


def lift(out: Output, quick: bool) -> None:
    """Measure how far a schedule lifts the gradient's singular values in modes that stop.

    A mode is open while the steps that remain, each in full, would still take it to its end; of a
    mode that is not at its end after the last step, the largest value of slope times singular
    value over the Frobenius norm is taken over its open steps. Below 1 the mode gets less than
    about that share of a step.
    """
    rows, stopping, arriving = [], [], []
    for name in out.steps(("Taylor, 5 steps", "Taylor, 12 steps"), "gradients of modes that stop"):
        slope = polarlib.schedule(*SCHEDULES[name]).slope
        for kappa in KAPPAS[1:5]:
            p = problem(32, kappa)
            path = list(spectral(ALPHA * p.q, p.gradient, inexact(name), decayed, SPECTRAL_STEPS))
            g = [p.gradient(x) for x in path]
            lifted = slope * np.array([np.abs(p.modes(d)) / np.linalg.norm(d) for d in g])
            left = np.abs(np.abs([p.modes(x) for x in path]) - np.sqrt(p.lam))
            remaining = decayed(0) * RATIO ** np.arange(len(path)) / (1 - RATIO)
            best_of = np.where(left <= remaining[:, None], lifted, 0).max(axis=0)
            stopped = 2 * np.sqrt(p.lam) * left[-1] > TARGET * np.linalg.norm(p.lam)
            stopping += best_of[stopped].tolist()
            arriving += best_of[~stopped].tolist()
            rows.append((name, kappa, slope, int(stopped.sum()), p.error(path[-1])))
    columns = ["schedule", "kappa", "slope", "modes that stop", "error after the last step"]
    out.table("lift", columns, rows)
    out.figure("lifted singular value in modes that stop", max(stopping, default=math.nan))
    if stopping:
        out.note(
            "Slope times singular value of the gradient over its Frobenius norm, largest while a "
            f"mode could still arrive: median {np.median(stopping):.2g} in modes that stop, above "
            f"1 in {100 * np.mean(np.array(arriving) > 1):.0f} % of those that arrive."
        )


LOOK = {
    "gradient descent": (plot.VERMILLION, "--", "^"),
    "Adam": (plot.GREEN, "-.", "s"),
    "Muon": (plot.SKY, "-", "o"),
    "Taylor, 12 steps": (plot.BLUE, "--", "D"),
    "Taylor, 5 steps": (plot.INK, ":", "v"),
}


def picture(rows: dict[str, list[int | None]]):
    """Draw the counts of every method over kappa; a cross stands where one stops."""
    fig, (ax,) = panels(height=2.9)
    for name, (colour, line, marker) in LOOK.items():
        counts = [c for c in rows[name] if c is not None]
        kappas = list(KAPPAS[: len(counts)])
        inner = "white" if name in SCHEDULES else colour  # others are below
        how = {"color": colour, "linestyle": line, "marker": marker, "markerfacecolor": inner}
        label = f"Muon, {name}" if name in SCHEDULES else name
        ax.loglog(kappas, counts, label=label, linewidth=3 if name == "Muon" else 1.3, **how)
        if len(counts) < len(rows[name]):
            end = 3 * kappas[-1]
            ax.plot([kappas[-1], end], 2 * counts[-1:], color=colour, linestyle=line, linewidth=1.3)
            ax.plot(end, counts[-1], "x", color=colour, markersize=8, markeredgewidth=2, zorder=5)
    ax.plot([], [], "x", color=plot.INK, markeredgewidth=2, label="none beyond")
    ax.plot([3, 3e3], [300, 3e5], color=plot.INK, linewidth=0.8)
    ax.annotate("slope 1", (60, 6e3), ha="right", va="bottom")
    ax.set_ylim(10, 3e5)
    ax.set_xlabel("condition number κ of M")
    ax.set_ylabel("iterations to a relative error of $10^{-6}$")
    fig.legend(loc="outside lower center", ncols=2)
    return fig


def study(out: Output, quick: bool) -> None:
    rows = {"Muon": muon(out, quick)}
    scalars(out, quick)
    relative(out, quick)
    constant_step(out, quick)
    rows["gradient descent"] = gradient_descent(out, quick)
    rows["Adam"] = adaptive(out, quick)
    rows |= schedules(out, quick)
    starts(out, quick)
    lift(out, quick)
    n = size_of(quick)
    table = [
        (name, *(["none" if c is None else c for c in counts] + ["not run"] * 6)[:6])
        for name, counts in rows.items()
    ]
    out.table("iterations", ["method", *(f"kappa {kappa:g}" for kappa in KAPPAS)], table)
    out.plot(
        "iterations",
        picture(rows),
        "Iterations until the relative error of XXᵀ is 1e-6, over the condition number, "
        f"{n} × {n}: spectral descent with the exact polar factor, gradient descent, Adam at the "
        "best of three constant rates, and spectral descent with polynomials. A cross: none for "
        "the next larger condition number that was run.",
    )


if __name__ == "__main__":
    main(study, __file__)
