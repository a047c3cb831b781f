"""Norms and the steps they make: duality, ranks, the norm of a sum of steps, and costs."""

from __future__ import annotations

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import Figure, Output, main, panels

import polarlib
from polarlib import norms, plot
from polarlib.norms import Norm

Array = np.ndarray
SEED = 0
SHARE, SIGNS = 0.5, 0.1  # alpha of the F- and S-variants, eta of the S-variants
# How the polar factor is computed: exactly, from the SVD. Else a name of polarlib.schedules().
POLAR: str | None = None
SMALL = (12, 8)  # shape of the matrix of ranks and of the printed formula
NEAR = 1e-3  # how far neighbours of a maximiser are from it, relative to it
ITERATED = 500  # size of the matrices of the Newton-Schulz iteration
ERROR = 1e-2  # at which an iteration stops, relative, in the Frobenius norm
MATRICES = 9
MOST_STEPS = 60


def gaussian(shape: tuple[int, int], seed: int = SEED) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def table_of_norms(m: int, n: int) -> dict[str, tuple[Norm, str]]:
    """Every norm with a dual, for m x n matrices, and what its LMO costs."""
    polar, entries, svd = "polar factor", "one pass over the entries", "SVD"
    return {
        "spectral": (norms.spectral(polar=POLAR), polar),
        "rms_to_rms": (norms.rms_to_rms(m, n, polar=POLAR), polar),
        "nuclear": (norms.nuclear(), "1 triplet"),
        "frobenius": (norms.frobenius(), entries),
        "schatten(4)": (norms.schatten(4), svd),
        "ky_fan(3)": (norms.ky_fan(3), svd),
        "fanion(3)": (norms.fanion(3), "3 triplets"),
        "ky_fan(3, 2)": (norms.ky_fan(3, 2), svd),
        "ky_fan_dual(3, 2)": (norms.ky_fan_dual(3, 2), "3 triplets"),
        "f_muon": (norms.f_muon(SHARE, polar=POLAR), f"{polar}, one pass"),
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


def best_neighbour(norm: Norm, g: Array, t: Array, count: int) -> float:
    """How much more than T, which is scaled to norm 1, a matrix near it has of G; at most 0."""
    rng = np.random.default_rng(SEED)
    scale = np.linalg.norm(t)
    # The gradient itself is the direction of ascent; the others are random.
    changes = [g, *(rng.standard_normal(g.shape) for _ in range(count))]
    attained = float(np.sum(g * t) / norm(t))
    best = -math.inf
    for change in changes:
        x = t + NEAR * scale / np.linalg.norm(change) * change
        best = max(best, float(np.sum(g * x) / norm(x)) / attained - 1)
    return best


def duality(out: Output, quick: bool) -> None:
    """Fenchel's equality for every norm, and that nothing near an LMO does better."""
    m, n = SMALL if quick else (96, 64)
    g = gaussian((m, n))
    rows, gaps, outside, gains = [], [], [], []
    for name, (norm, cost) in out.steps(table_of_norms(m, n).items(), "duality"):
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
            gains.append(best_neighbour(norm, g, t, 5 if quick else 50))
        numbers = (size, dual, attained, gaps[-1])
        rows.append([name, *(f"{v:.12g}" for v in numbers), cost])
    columns = ["norm", "norm of lmo(G)", "dual norm of G", "<G, lmo(G)>", "relative gap"]
    out.table("duality", [*columns, "cost of lmo"], rows)
    out.figure("Fenchel equality: worst relative gap", max(gaps))
    out.figure("maximisers: farthest of their norms from 1", max(outside))
    out.figure("largest gain of a neighbour over the maximiser", max(gains))


# -- Ky Fan norms ----------------------------------------------------------------------------


def ky_fan_dual(k: int, g: Array) -> float:
    return float(norms.ky_fan(k).dual_norm(g))


def ky_fan(out: Output, quick: bool) -> None:
    """Ky Fan norms and their duals against singular values."""
    m, n = SMALL if quick else (96, 64)
    g = gaussian((m, n))
    sigma = np.linalg.svd(g, compute_uv=False)
    rows, apart = [], 0.0
    for k in (1, 2, 3, n // 2, n):
        sums, largest = sigma[:k].sum(), max(sigma[0], sigma.sum() / k)
        pairs = (
            (float(norms.ky_fan(k)(g)), sums),
            (ky_fan_dual(k, g), largest),
            (float(norms.fanion(k)(g)), largest),
            (float(norms.fanion(k).dual_norm(g)), sums),
        )
        apart = max(apart, *(abs(ours / exact - 1) for ours, exact in pairs))
        rows.append([k, *(f"{ours:.12g}" for ours, _ in pairs)])
    out.table("ky-fan", ["k", "Ky Fan", "its dual", "Fanion", "its dual"], rows)
    out.figure("Ky Fan norms and duals against singular values", apart)


def fanion(k: int) -> Norm:
    return norms.fanion(k)


def ky_fan_norm(k: int) -> Norm:
    return norms.ky_fan(k)


def ranks(out: Output, quick: bool) -> None:
    """The rank gap: steps of Ky Fan norms have rank 1 or full rank, those of their duals rank k."""
    g = gaussian(SMALL)

    def rank(norm: Norm) -> int:
        return int(np.linalg.matrix_rank(norm.lmo(g)))

    out.figure(
        "rank of the maximiser of fanion(k), k = 1, 2, 3", [rank(fanion(k)) for k in (1, 2, 3)]
    )
    name = "rank of the maximiser of ky_fan(k), k = 2, 7"
    out.figure(name, [rank(ky_fan_norm(k)) for k in (2, 7)])


# -- the norm of a sum of steps --------------------------------------------------------------


def weight_of_signs(share: float, eta: float) -> float:
    """Weight of the sum of absolute entries in the dual norm of an S-variant."""
    return (1 - share) * eta


def printed_weight(share: float, eta: float) -> float:
    """The same as printed in the paper."""
    return (1 - share) / eta


def sums(out: Output, quick: bool) -> None:
    """What an S-variant's step attains, against its dual norm and the printed one."""
    g = gaussian(SMALL)
    attained = float(np.sum(g * norms.s_fanion(3, SHARE, SIGNS).lmo(g)))
    top = np.linalg.svd(g, compute_uv=False)[:3].sum()

    def dual(weight: float) -> float:
        return float(SHARE * top + weight * np.abs(g).sum())

    by_lemma = attained / dual(weight_of_signs(SHARE, SIGNS))
    out.figure("S-Fanion-3: attained over the dual norm, weight (1 - alpha) eta", by_lemma)
    printed = attained / dual(printed_weight(SHARE, SIGNS))
    out.figure("S-Fanion-3: attained over the dual norm, weight (1 - alpha)/eta", printed)


# -- cost ------------------------------------------------------------------------------------


def newton_schulz(k: int) -> polarlib.Schedule:
    return polarlib.schedule("newton_schulz_3", steps=k)


def iterations(sigma: Array) -> int:
    """Steps until singular values, over their Frobenius norm, are all close to 1."""
    x = sigma / np.linalg.norm(sigma)
    for k in range(1, MOST_STEPS + 1):
        error = np.linalg.norm(newton_schulz(k)(x) - 1) / math.sqrt(len(x))
        if error <= ERROR:
            return k
    raise ArithmeticError(f"not within {ERROR} after {MOST_STEPS} steps")


def cost(out: Output, quick: bool) -> None:
    """Steps of the Newton-Schulz iteration to the exact polar factor of a Gaussian matrix."""
    rows = []
    for seed in out.steps(range(MATRICES), "Newton-Schulz"):
        sigma = np.linalg.svd(gaussian((ITERATED, ITERATED), seed), compute_uv=False)
        k = iterations(sigma)
        rows.append([seed, f"{sigma[-1] / np.linalg.norm(sigma):.3g}", k, 2 * k * ITERATED])
    columns = ["seed", "smallest singular value / Frobenius norm", "iterations", "matvecs"]
    out.table("newton-schulz", columns, rows)
    median = float(np.median([row[2] for row in rows]))
    out.figure("Newton-Schulz iterations to the polar factor, 500 x 500", median)


# -- pictures --------------------------------------------------------------------------------


def balls() -> Figure:
    """Unit balls in two singular values, with the maximisers of directions."""
    chosen = {
        "Muon: spectral": norms.spectral(),
        "Neon: nuclear": norms.nuclear(),
        "NSGD: Frobenius": norms.frobenius(),
        "Schatten 4": norms.schatten(4),
        "F-Muon, α = 0.5": norms.f_muon(SHARE),
        "F-Neon, α = 0.5": norms.f_neon(SHARE),
    }
    fig, axes = panels(3, 2, height=4.6, sharex=True, sharey=True)
    for place, (ax, (name, norm)) in enumerate(zip(axes, chosen.items(), strict=True)):
        plot.unit_ball(norm, ax=ax, title=name, legend=False)
        if place < 4:  # not in the last row
            ax.set_xlabel("")
        if place % 2:
            ax.set_ylabel("")
    return fig


def study(out: Output, quick: bool) -> None:
    for part in (duality, ky_fan, ranks, sums, cost):
        part(out, quick)
    out.plot(
        "balls",
        balls(),
        "Unit balls of norms in two signed singular values. Each arrow stands at the maximiser of "
        "a direction and points along it.",
    )


if __name__ == "__main__":
    main(study, __file__)
