"""Norms and the optimizers they make: duality, cost, and what the choice does to descent."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
from matplotlib.figure import Figure

from polarlib import norms, plot, updates
from polarlib.norms import Norm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import TWO_COLUMNS, Output, main, panels

Array = np.ndarray
SEED = 0
MOMENTUM = 0.95
SHARE, SIGNS = 0.5, 0.1  # alpha of the F- and S-variants, eta of the S-variants
# Constant rates that each optimizer may choose from on each problem, in units of its problem's
# size; the rate then falls linearly to zero. Chosen so that every best one is inside the range.
RATES = np.geomspace(4e-4, 2.0, 18)


def table_of_norms(m: int, n: int) -> dict[str, tuple[Norm, str]]:
    """Every norm with a dual, for m x n matrices, and what its maximiser costs."""
    polar, entries, svd = "polar factor", "one pass over the entries", "SVD"
    return {
        "spectral": (norms.spectral(), polar),
        "rms_to_rms": (norms.rms_to_rms(m, n), polar),
        "nuclear": (norms.nuclear(), "1 triplet"),
        "frobenius": (norms.frobenius(), entries),
        "schatten(4)": (norms.schatten(4), svd),
        "ky_fan(3)": (norms.ky_fan(3), svd),
        "fanion(3)": (norms.fanion(3), "3 triplets"),
        "ky_fan(3, 2)": (norms.ky_fan(3, 2), svd),
        "ky_fan_dual(3, 2)": (norms.ky_fan_dual(3, 2), "3 triplets"),
        "f_muon": (norms.f_muon(SHARE), f"{polar}, one pass"),
        "f_neon": (norms.f_neon(SHARE), "1 triplet, one pass"),
        "f_fanion(3)": (norms.f_fanion(3, SHARE), "3 triplets, one pass"),
        "s_fanion(3)": (norms.s_fanion(3, SHARE, SIGNS), "3 triplets, one pass"),
        "lp(inf)": (norms.lp(math.inf), entries),
        "lp(1)": (norms.lp(1), entries),
        "induced(1, 2)": (norms.induced(1, 2), entries),
        "induced(2, inf)": (norms.induced(2, math.inf), entries),
        "induced(1, 1)": (norms.induced(1, 1), entries),
    }


# -- duality ---------------------------------------------------------------------------------


def duality(out: Output, m: int, n: int, count: int) -> None:
    """Fenchel's equality for every norm, and duals of Ky Fan norms against their definition."""
    rng = np.random.default_rng(SEED)
    g = rng.standard_normal((m, n))
    rows, gaps, outside, beaten = [], [], [], []
    for name, (norm, cost) in table_of_norms(m, n).items():
        t = norm.lmo(g)
        dual = float(norm.dual_norm(g))
        attained = float(np.sum(g * t))
        gaps.append(abs(attained / dual - 1))
        try:
            size = float(norm(t))
        except NotImplementedError:  # the primal norm of an S-variant has no closed form
            size = math.nan
        else:
            outside.append(abs(size - 1))
            # No point of the ball does better.
            others = rng.standard_normal((count, m, n))
            best = max(float(np.sum(g * x) / norm(x)) for x in others)
            beaten.append(best / dual)
        numbers = (size, dual, attained, abs(attained / dual - 1))
        rows.append([name, *(f"{v:.12g}" for v in numbers), cost])
    columns = ["norm", "norm of lmo(G)", "dual norm of G", "<G, lmo(G)>", "relative gap"]
    out.table("duality", [*columns, "cost of lmo"], rows)
    out.figure("Fenchel equality: worst relative gap", max(gaps))
    out.figure("maximisers: farthest of their norms from 1", max(outside))
    out.figure("best of random points over the dual norm", max(beaten))
    sigma = np.linalg.svd(g, compute_uv=False)
    by_k, apart = [], 0.0
    for k in (1, 2, 3, n // 2, n):
        pairs = (
            (norms.ky_fan(k)(g), sigma[:k].sum()),
            (norms.ky_fan(k).dual_norm(g), max(sigma[0], sigma.sum() / k)),
            (norms.fanion(k)(g), max(sigma[0], sigma.sum() / k)),
            (norms.fanion(k).dual_norm(g), sigma[:k].sum()),
        )
        apart = max(apart, *(abs(float(a) / b - 1) for a, b in pairs))
        rank = np.linalg.matrix_rank(norms.fanion(k).lmo(g))
        by_k.append([k, *(float(a) for a, _ in pairs), int(rank)])
    columns = ["k", "Ky Fan", "its dual", "Fanion", "its dual", "rank of the Fanion's lmo"]
    out.table("ky-fan", columns, by_k)
    out.figure("Ky Fan norms and duals against singular values", apart)
    out.figure("rank of the maximiser of fanion(k), k = 1, 2, 3", [row[-1] for row in by_k[:3]])


# -- descent ---------------------------------------------------------------------------------


TINY = 1e-12  # differences from the least loss below it are its own error


class Problem(NamedTuple):
    """A loss of a few matrices, where they start, about how far they have to go, the least loss."""

    start: tuple[Array, ...]
    loss: Callable[[tuple[Array, ...]], tuple[float, tuple[Array, ...]]]
    size: float
    least: float = 0.0


def least_squares(m: int, n: int, seed: int = SEED) -> Problem:
    """Half the squares of A X B - C, with badly conditioned A and B."""
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal((k, k)) * np.geomspace(1, 0.1, k) / math.sqrt(k) for k in (m, n))
    target = rng.standard_normal((m, n))
    c = a @ target @ b

    def loss(x: tuple[Array, ...]) -> tuple[float, tuple[Array, ...]]:
        r = a @ x[0] @ b - c
        return 0.5 * float(np.sum(r * r)), (a.T @ r @ b.T,)

    return Problem((np.zeros((m, n)),), loss, float(np.linalg.norm(target, 2)))


def factorisation(m: int, n: int, k: int) -> Problem:
    """Half the squares of U V - M for M of rank k with a decaying spectrum."""
    rng = np.random.default_rng(SEED)
    u, _ = np.linalg.qr(rng.standard_normal((m, k)))
    v, _ = np.linalg.qr(rng.standard_normal((n, k)))
    target = (u * np.geomspace(1, 0.05, k)) @ v.T
    start = tuple(0.1 * rng.standard_normal(s) / math.sqrt(k) for s in ((m, k), (k, n)))

    def loss(x: tuple[Array, ...]) -> tuple[float, tuple[Array, ...]]:
        r = x[0] @ x[1] - target
        return 0.5 * float(np.sum(r * r)), (r @ x[1].T, x[0].T @ r)

    return Problem(start, loss, 1.0)


def logistic(samples: int, features: int, classes: int) -> Problem:
    """Mean cross entropy of a linear classifier on clouds that overlap, in correlated features."""
    rng = np.random.default_rng(SEED)
    mix = rng.standard_normal((features, features)) * np.geomspace(1, 0.1, features)
    labels = rng.integers(0, classes, samples)
    centres = 0.5 * rng.standard_normal((classes, features))
    x = (centres[labels] + rng.standard_normal((samples, features))) @ mix / math.sqrt(features)
    hot = np.eye(classes)[labels]
    shape = classes, features

    def loss(w: tuple[Array, ...]) -> tuple[float, tuple[Array, ...]]:
        scores = x @ w[0].T
        log = scores - scipy.special.logsumexp(scores, axis=1, keepdims=True)
        error = np.exp(log) - hot
        return float(-np.sum(hot * log) / samples), (error.T @ x / samples,)

    def flat(w: Array) -> tuple[float, Array]:
        value, (g,) = loss((w.reshape(shape),))
        return value, g.ravel()

    how = {"maxiter": 20000, "maxfun": 40000, "ftol": 1e-16, "gtol": 1e-10, "maxcor": 50}
    best = scipy.optimize.minimize(
        flat, np.zeros(classes * features), jac=True, method="L-BFGS-B", options=how
    )
    size = float(np.linalg.norm(best.x.reshape(shape), 2))
    return Problem((np.zeros(shape),), loss, size, float(best.fun))


OPTIMIZERS: dict[str, tuple[Callable[[int, int], Norm], str, str]] = {
    "Muon": (lambda m, n: norms.spectral(), plot.BLUE, "-"),
    "F-Muon": (lambda m, n: norms.f_muon(SHARE), plot.SKY, "--"),
    "S-Muon": (lambda m, n: norms.s_muon(SHARE, SIGNS), plot.GREEN, "--"),
    "Neon": (lambda m, n: norms.neon(), plot.VERMILLION, "-"),
    "Fanion-3": (lambda m, n: norms.fanion(3), plot.ORANGE, "-"),
    "F-Neon": (lambda m, n: norms.f_neon(SHARE), plot.PURPLE, "--"),
    "normalised SGD": (lambda m, n: norms.frobenius(), plot.INK, "-"),
    "Scion, Sign": (lambda m, n: norms.lp(math.inf), "#777777", ":"),
    "Scion, ColNorm": (lambda m, n: norms.induced(1, 2), "#777777", "-."),
}


def descend(
    problem: Problem,
    make: Callable[[int, int], Norm],
    rate: float,
    most: int,
    *,
    falling: bool = True,
) -> Array:
    """Losses of normalised steepest descent with Nesterov's momentum.

    The rate falls to zero, linearly, or stays.
    """
    x = problem.start
    lmos = [make(*a.shape).lmo for a in x]
    # Steps of one rate go about as far whatever the norm: each is divided by the Frobenius norm of
    # the first maximiser.
    buffers = [np.zeros_like(a) for a in x]
    losses = np.empty(most + 1)
    lengths: list[float] = []
    for k in range(most):
        losses[k], gradients = problem.loss(x)
        buffers = [updates.polyak(b, g, MOMENTUM) for b, g in zip(buffers, gradients, strict=True)]
        d = [updates.nesterov(b, g, MOMENTUM) for b, g in zip(buffers, gradients, strict=True)]
        if not lengths:
            lengths = [float(np.linalg.norm(f(v))) or 1.0 for f, v in zip(lmos, d, strict=True)]
        now = rate * problem.size * (1 - k / most * falling)
        x = tuple(
            updates.uscg_step(a, v, f, rate=now * math.sqrt(min(a.shape)) / length)
            for a, v, f, length in zip(x, d, lmos, lengths, strict=True)
        )
    losses[most], _ = problem.loss(x)
    return losses


def descents(out: Output, problems: dict[str, Problem], most: int, rates: Array) -> Figure:
    """Loss curves of every optimizer, each at its best rate."""
    fig, axes = panels(1, len(problems), width=TWO_COLUMNS, height=3.6)
    rows, reached = [], {}
    for ax, (name, problem) in zip(axes, problems.items(), strict=True):
        for optimizer, (make, colour, line) in OPTIMIZERS.items():
            curves = [descend(problem, make, rate, most) for rate in rates]
            finals = [c[-1] if np.isfinite(c[-1]) else math.inf for c in curves]
            best = int(np.argmin(finals))
            reached[name, optimizer] = finals[best]
            at_edge = best in (0, len(rates) - 1)
            final = f"{finals[best] - problem.least:.6g}"
            rows.append([name, optimizer, f"{rates[best]:.3g}", final, at_edge])
            ax.semilogy(
                np.maximum(curves[best] - problem.least, TINY),
                color=colour,
                linestyle=line,
                linewidth=1.1,
                label=optimizer if ax is axes[0] else None,
            )
        ax.set_title(name)
        ax.set_xlabel("step")
    axes[0].set_ylabel("loss − least loss")
    fig.legend(loc="outside lower center", ncols=5)
    out.table(
        "descent", ["problem", "optimizer", "rate", "final loss − least", "rate at the edge"], rows
    )
    square = next(iter(problems))
    out.figure(
        "least squares: final loss of Muon over Neon's",
        reached[square, "Muon"] / reached[square, "Neon"],
    )
    return fig


def against_muon(out: Output, m: int, n: int, most: int, seeds: int) -> None:
    """F-Muon and S-Muon against Muon on several least-squares problems."""
    rows = []
    ratios: dict[tuple[str, bool], list[float]] = {}
    for falling in (True, False):
        for seed in range(seeds):
            problem = least_squares(m, n, seed)
            finals = {}
            for name in ("Muon", "F-Muon", "S-Muon"):
                make, _, _ = OPTIMIZERS[name]
                curves = [descend(problem, make, r, most, falling=falling) for r in RATES[5:15]]
                finals[name] = min(c[-1] for c in curves)
                ratios.setdefault((name, falling), []).append(finals[name] / finals["Muon"])
            kind = "falling" if falling else "constant"
            rows.append([kind, seed, *(f"{v:.6g}" for v in finals.values())])
    out.table("against-muon", ["rate", "seed", "Muon", "F-Muon", "S-Muon"], rows)
    medians = {key: float(np.median(values)) for key, values in ratios.items()}
    for name in ("F-Muon", "S-Muon"):
        out.figure(f"least squares: final loss of {name} over Muon's", medians[name, True])
    out.note(
        "Least squares, median over problems of the final loss over Muon's: with a falling rate "
        f"F-Muon {medians['F-Muon', True]:.2f} and S-Muon {medians['S-Muon', True]:.2f}; with a "
        f"constant rate F-Muon {medians['F-Muon', False]:.2f} and S-Muon "
        f"{medians['S-Muon', False]:.2f}. The paper's statement that they outperform Muon on "
        "least squares is not reproduced where these are above 1; its problem is not ours."
    )


def balls(count: int) -> Figure:
    """Unit balls in two singular values, with the maximisers of directions."""
    chosen = {
        "Muon: spectral": norms.spectral(),
        "Neon: nuclear": norms.nuclear(),
        "normalised SGD: Frobenius": norms.frobenius(),
        "F-Muon, α = 0.5": norms.f_muon(SHARE),
        "F-Neon, α = 0.5": norms.f_neon(SHARE),
        "Schatten 4": norms.schatten(4),
    }
    fig, axes = panels(count // 3, 3, width=TWO_COLUMNS, height=2.5 * (count // 3))
    for ax, (name, norm) in zip(axes, chosen.items(), strict=False):
        plot.unit_ball(norm, ax=ax, label=name)
        legend = ax.get_legend()
        if legend is not None:
            legend.remove()
        ax.set_title(name)
    return fig


def study(out: Output, quick: bool) -> None:
    duality(out, *((12, 8) if quick else (96, 64)), 20 if quick else 200)
    if quick:
        problems = {"least squares": least_squares(16, 12)}
        how = (50, RATES[6:12:2])
    else:
        problems = {
            "least squares": least_squares(64, 48),
            "factorisation": factorisation(64, 48, 8),
            "logistic regression": logistic(1000, 20, 8),
        }
        how = (300, RATES)
    out.plot(
        "descent",
        descents(out, problems, *how),
        f"Loss of normalised steepest descent, Nesterov's momentum {MOMENTUM}, rate falling "
        f"linearly to zero over {how[0]} steps, each optimizer at the best of {len(how[1])} rates.",
    )
    if not quick:
        against_muon(out, 64, 48, 300, 5)
    out.plot(
        "balls",
        balls(3 if quick else 6),
        "Unit balls of norms in two signed singular values. Each arrow stands at the maximiser of "
        "a direction and points along it.",
    )
    out.note(
        "The problems are deterministic and small: what they show is how the choice of a norm acts "
        "on ill-conditioned curvature, and nothing about the training of networks."
    )


if __name__ == "__main__":
    main(study, __file__)
