"""Muon with q Newton-Schulz steps: the factor chi_q of its rate, and where the rank is gone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
from numpy.polynomial import Polynomial

import polarlib
from polarlib import Schedule, norms, plot, testing

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Figure, Output, main, panels

KAPPAS = (1, 2, 3)
SIGMA = 0.1  # the smallest singular value of the tables
START = "0.99"  # delta_0 = 1 - SIGMA^2, in decimal digits
TABLE_STEPS, PICTURE_STEPS = 5, 6
STARTS = (0.5, 0.9, 0.99, 0.9999)  # values of delta_0 for the comparison with the bound
SMALLEST = (1e-1, 1e-2, 1e-3, 1e-6)  # singular values whose number of steps is counted
DIGITS = 3000  # decimal digits for the orders of convergence: delta falls to 1e-1233
# The coefficients of tau' as the paper prints them, ascending.
PRINTED = (11.8641, -65.781, 110.3556, -77.5824, 20.635)
# The problem of the ranks.
RANKS = (4, 16, 64, 256)
TARGET, LIMIT = 0.1, 1500
STEP_SIZES = (1.0, 2.0, 3.0, 3.9)  # of gradient descent, whose limit is 2 / (1/2) = 4
EXPONENTS = np.arange(-8, 2) / 2  # of the other methods: step sizes 2^-4 to 2^(1/2)
SEEDS = range(7)
GAUSSIAN_STEPS = (3, 5)
NORMALISATIONS = ("none", "frobenius")  # of a norm below 1: max(1, norm) divides by nothing

Direction = Callable[[Any, Any], Any]


# -- the polynomials ---------------------------------------------------------------------------


def series(kappa: int) -> list[Fraction]:
    """Coefficients c_s of p(lambda) = sum_s c_s (1 - lambda)^s (Definition 2)."""
    return [Fraction(comb(2 * s, s), 4**s) for s in range(kappa + 1)]


def product(a: Sequence[Fraction], b: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of the product of two polynomials, ascending."""
    out = [Fraction(0)] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            out[i + j] += x * y
    return out


def coefficients(kappa: int) -> tuple[float, ...]:
    """The same polynomial in ascending powers of lambda; doubles hold these fractions exactly."""
    total = [Fraction(0)] * (kappa + 1)
    for s, c in enumerate(series(kappa)):
        for i in range(s + 1):
            total[i] += c * comb(s, i) * (-1) ** i
    return tuple(map(float, total))


def taylor(kappa: int, steps: int, normalisation: Any = "frobenius") -> Schedule:
    """X <- p(X X^T) X, so many times."""
    return Schedule(
        steps=[coefficients(kappa)] * steps,
        lower=1e-6,
        normalisation=normalisation,
        name=f"Taylor, kappa {kappa}",
    )


def phi(kappa: int) -> list[Fraction]:
    """Coefficients of phi(delta) = 1 - (1 - delta) p(1 - delta)^2, ascending."""
    square = product(series(kappa), series(kappa))
    out = [-c for c in product([Fraction(1), Fraction(-1)], square)]
    return [out[0] + 1, *out[1:]]


# -- chi_q and its bound -----------------------------------------------------------------------


def chi(kappa: int, steps: int, sigma: float = SIGMA) -> float:
    """1 / sigma_min after so many steps, the worst over all singular values in [sigma, 1]."""
    return 1 / taylor(kappa, steps).image(sigma, 1.0)[0] if steps else 1 / sigma


def exponent(kappa: int, steps: int) -> int:
    """Of delta_0 in the bound of Theorem 2."""
    return (kappa + 1) ** steps


def bound(kappa: int, steps: int, sigma: float = SIGMA) -> float:
    """The bound of Theorem 2 on chi_q."""
    return float((1 - (1 - sigma**2) ** exponent(kappa, steps)) ** -0.5)


def after(kappa: int, steps: int, delta: Any) -> Any:
    """delta_q from delta_0, in the current precision of mpmath."""
    return 1 - taylor(kappa, steps)(mpmath.sqrt(1 - mpmath.mpf(delta))) ** 2


def tables(out: Output, quick: bool) -> None:
    """chi_q from sigma_min = 0.1, its bound, and the bound elsewhere."""
    rows = []
    for kappa in KAPPAS:
        exact = [chi(kappa, q) for q in range(PICTURE_STEPS + 1)]
        limits = [bound(kappa, q) for q in range(PICTURE_STEPS + 1)]
        rows += [(kappa, q, *pair) for q, pair in enumerate(zip(exact, limits, strict=True))]
        out.figure(f"chi_q, sigma_min {SIGMA}, kappa {kappa}", exact[: TABLE_STEPS + 1])
        if kappa == 2:
            name = f"bound of chi_q, sigma_min {SIGMA}, kappa 2"
            out.figure(name, limits[: TABLE_STEPS + 1])
    out.table("chi", ["kappa", "q", "chi_q", "bound of Theorem 2"], rows)
    with mpmath.workdps(50):
        ratios = [
            float(after(kappa, q, delta) / mpmath.mpf(delta) ** exponent(kappa, q))
            for kappa in KAPPAS
            for q in range(1, 4)
            for delta in STARTS
        ]
    out.figure("delta_q over its bound, largest", max(ratios))
    counts = []
    for kappa in KAPPAS:
        counts.append([fewest_steps(kappa, sigma) for sigma in SMALLEST])
        out.figure(f"smallest q with chi_q at most 1.01, kappa {kappa}", counts[-1])
    out.table(
        "smallest_q",
        ["sigma_min", *(f"kappa {kappa}" for kappa in KAPPAS)],
        [(sigma, *row) for sigma, *row in zip(SMALLEST, *counts, strict=True)],
    )


def fewest_steps(kappa: int, sigma: float, most: int = 60) -> float:
    """Smallest q with chi_q <= 1.01, or NaN."""
    found = (q for q in range(1, most + 1) if chi(kappa, q, sigma) <= 1.01)
    return next(found, np.nan)


def orders(out: Output, quick: bool) -> None:
    """Order of convergence, and the polynomials phi."""
    found = []
    with mpmath.workdps(DIGITS):
        for kappa in out.steps(KAPPAS, "orders of convergence"):
            delta = [after(kappa, q, 0.5) if q else mpmath.mpf(0.5) for q in range(3, 6)]
            first, second = (mpmath.log(b / a) for a, b in zip(delta, delta[1:], strict=False))
            found.append(float(second / first))
    out.figure("local order, kappa 1, 2, 3", found)
    leading = [float(phi(kappa)[kappa + 1]) for kappa in range(1, 6)]
    out.figure("leading coefficient, kappa 1 to 5", leading)
    for kappa in (1, 2):
        powers = f"delta^{kappa + 1} to delta^{2 * kappa + 1}"
        out.figure(f"phi, {powers}, kappa {kappa}", [float(c) for c in phi(kappa)[kappa + 1 :]])


# -- Jordan's quintic --------------------------------------------------------------------------


def quintic() -> tuple[float, ...]:
    """Coefficients of the deployed polynomial."""
    return tuple(polarlib.schedule("jordan", steps=1).steps[0])


def tau_slope() -> Polynomial:
    """tau'(lambda), tau = lambda p(lambda)^2: what the square of a singular value becomes."""
    p = Polynomial(quintic())
    return (Polynomial([0, 1]) * p * p).deriv()


def largest_tau() -> tuple[float, float]:
    """Where tau is largest on [0, 1], and how large."""
    slope = tau_slope()
    roots = slope.roots()
    real = [float(z.real) for z in roots if abs(z.imag) < 1e-9 and 0 < z.real < 1]
    tau = slope.integ()
    return max((float(tau(x)), x) for x in (*real, 1.0))[::-1]


def jordan(out: Output, quick: bool) -> None:
    """The quintic that falls outside of the theory."""
    slope = tau_slope()
    at, top = largest_tau()
    out.figure("quintic: lambda of the largest tau, tau there, tau'(1)", [at, top, slope(1.0)])
    out.figure("quintic: lambda of the largest tau", at)
    out.figure("quintic: tau'(1)", slope(1.0))
    out.figure("quintic: tau'(0)", slope(0.0))
    out.figure("quintic: coefficients of tau'", slope.coef[::-1])
    # tau' = a^2 + 4 ab x + 3 (2 ac + b^2) x^2 + 8 bc x^3 + 5 c^2 x^4: a and c from its ends, and b
    # from each of the three coefficients between.
    ends = PRINTED[0] ** 0.5, (PRINTED[4] / 5) ** 0.5
    several = [PRINTED[3] / (8 * ends[1]), PRINTED[1] / (4 * ends[0])]
    several.insert(1, -((PRINTED[2] / 3 - 2 * ends[0] * ends[1]) ** 0.5))
    out.figure("quintic: b from three printed coefficients of tau'", several)
    p1 = sum(quintic())
    out.figure("quintic: p(1)", p1)
    out.figure("quintic: delta at sigma = 1", 1 - p1**2)
    s = Schedule(steps=[quintic()] * 20, lower=0.01)
    x = s(np.geomspace(0.01, 1, 1000))
    farthest = 0.0
    for _ in range(9):
        x = s(x)
        farthest = max(farthest, float(np.abs(1 - x).max()))
    out.figure("quintic: largest |1 - sigma| from step 40 to 200", farthest)


# -- iterations by rank ------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """f = 1/2 sum_i n_i h_i (w_i - 1)^2 in a fixed singular basis; n_i equal singular values."""

    h: Any
    n: Any
    w: Any


def stated(rank: int, number: Any = float) -> Problem:
    """L = sum h = 1 and D = 1/2 for every rank, largest curvature 1/2, start 0."""
    half = number(1) / 2
    others = rank - 1
    return Problem(np.array([half, half / others]), np.array([1, others]), np.array([half * 0] * 2))


def random_start(rank: int, seed: int) -> Problem:
    """The same problem; distances from the minimiser uniform in [0.1, 1.9], scaled to D = 1/2."""
    h = np.array([0.5] + [0.5 / (rank - 1)] * (rank - 1))
    distance = np.random.default_rng(seed).uniform(0.1, 1.9, rank)
    return Problem(h, np.ones(rank), 1 - distance / np.sqrt(h @ distance**2))


def equal_curvatures(rank: int) -> Problem:
    """L = 1 and D = 1/2 too, but the largest curvature falls with the rank."""
    return Problem(np.full(1, 1 / rank), np.array([rank]), np.zeros(1))


def gradient(g: Any, n: Any) -> Any:
    """Gradient descent."""
    return g


def polar_factor(g: Any, n: Any) -> Any:
    """Muon with the exact polar factor; the order of the singular basis is fixed."""
    return np.sign(g)


def normalised(g: Any, n: Any) -> Any:
    """The gradient over its Frobenius norm; zero stays zero."""
    size = (n * g * g).sum(axis=-1, keepdims=True) ** 0.5
    return g / np.where(size > 0, size, 1)


def newton_schulz(steps: int, *, digits: bool = False) -> Direction:
    """Muon with so many Taylor steps of degree kappa = 2; digits: of mpmath's numbers."""
    s = np.vectorize(taylor(2, steps), otypes=[object]) if digits else taylor(2, steps)
    return lambda g, n: s(normalised(g, n))


def methods() -> dict[str, Direction]:
    """The methods by their names in the figures."""
    return {
        "gradient descent": gradient,
        "normalised gradient descent": normalised,
        "Muon": polar_factor,
        "Taylor kappa 2, q = 1": newton_schulz(1),
        "Taylor kappa 2, q = 3": newton_schulz(3),
        "Taylor kappa 2, q = 5": newton_schulz(5),
    }


def rates(name: str, problem: Problem) -> Any:
    """Step sizes that are tried, those of gradient descent by its largest curvature."""
    if name == "gradient descent":
        return np.array(STEP_SIZES) * (0.5 / problem.h.max())
    return 2.0**EXPONENTS


def iterations(direction: Direction, problem: Problem, sizes: Any) -> tuple[float, float]:
    """Steps until the mean nuclear norm is at most the target, and the best step size; or NaN."""
    w, total = np.array([problem.w] * len(sizes)), 0
    for t in range(1, LIMIT + 1):
        g = problem.h * (w - 1)
        total = total + (problem.n * np.abs(g)).sum(axis=-1)
        there = np.flatnonzero(total <= TARGET * t)
        if there.size:
            return t, float(sizes[there[0]])
        w = w - sizes[:, None] * direction(g, problem.n)
    return np.nan, np.nan


def at_best(name: str, problem: Problem) -> tuple[float, float]:
    """Iterations of a method at its best step size, and that."""
    return iterations(methods()[name], problem, rates(name, problem))


def slope_by_rank(counts: Sequence[float]) -> float:
    """Slope of a line through the logarithms."""
    if not np.isfinite(counts).all():
        return float("nan")
    slope = float(np.polyfit(np.log(RANKS), np.log(counts), 1)[0])
    return round(slope, 12) + 0.0  # equal counts: 0, whatever the rounding


def by_rank(out: Output, quick: bool) -> dict[str, list[float]]:
    """Iterations of every method over the rank, start 0."""
    counts, rows = {}, []
    for name in out.steps(list(methods()), "iterations by rank"):
        found = [at_best(name, stated(r)) for r in RANKS]
        rows += [(name, r, *pair) for r, pair in zip(RANKS, found, strict=True)]
        counts[name] = [t for t, _ in found]
        if name != "normalised gradient descent":
            out.figure(f"slope of iterations by rank, {name}", slope_by_rank(counts[name]))
    for name in ("gradient descent", "Muon"):
        out.figure(f"iterations by rank, {name}", counts[name])
    flat = [at_best("gradient descent", equal_curvatures(r))[0] for r in RANKS]
    name = "slope of iterations by rank, gradient descent, equal curvatures"
    out.figure(name, slope_by_rank(flat))
    with mpmath.workdps(50):
        sizes = np.array([mpmath.mpf(2) ** e for e in EXPONENTS])
        several = [
            iterations(newton_schulz(3, digits=True), stated(r, mpmath.mpf), sizes) for r in RANKS
        ]
    rows += [
        ("Taylor kappa 2, q = 3, 50 digits", r, *pair)
        for r, pair in zip(RANKS, several, strict=True)
    ]
    out.figure("iterations in 50 digits, Taylor kappa 2, q = 3", [t for t, _ in several])
    out.table("iterations", ["method", "rank", "iterations", "step size"], rows)
    return counts


def by_rank_random(out: Output, quick: bool) -> dict[str, list[float]]:
    """The same from random starts: medians."""
    counts, rows = {}, []
    for name in out.steps(list(methods()), "iterations by rank, random starts"):
        every = [[at_best(name, random_start(r, seed))[0] for seed in SEEDS] for r in RANKS]
        counts[name] = [float(np.median(c)) for c in every]
        rows += [(name, r, *c) for r, c in zip(RANKS, every, strict=True)]
        if name != "normalised gradient descent":
            slope = slope_by_rank(counts[name])
            out.figure(f"slope of iterations by rank, random start, {name}", slope)
    columns = ["method", "rank", *(f"iterations, seed {seed}" for seed in SEEDS)]
    out.table("iterations_random_start", columns, rows)
    few, exact = "Taylor kappa 2, q = 5", "Muon"
    out.figure(
        "iterations at rank 256, Taylor kappa 2, q = 5, over Muon's, start zero and random",
        [
            at_best(few, stated(RANKS[-1]))[0] / at_best(exact, stated(RANKS[-1]))[0],
            counts[few][-1] / counts[exact][-1],
        ],
    )
    return counts


# -- the worst case and the rest ---------------------------------------------------------------


def gaussian(out: Output, quick: bool) -> None:
    """chi_q of Gaussian matrices against what a descent step loses with them."""
    seeds = range(9)
    rows = []
    for size in out.steps((64, 256), "Gaussian matrices"):
        for seed in seeds:
            m = np.random.default_rng(seed).standard_normal((size, size))
            nuclear = float(norms.nuclear()(m))
            for steps in GAUSSIAN_STEPS:
                o = polarlib.orthogonalize(m, schedule=taylor(2, steps), form="plain")
                least = float(np.linalg.svd(o, compute_uv=False)[-1])
                rows.append((size, seed, steps, 1 / least, nuclear / float(np.sum(m * o))))
    out.table("gaussian", ["size", "seed", "q", "chi_q", "nuclear norm over <M, O>"], rows)
    for column, name in ((3, "chi_q"), (4, "nuclear norm over <M, O>")):
        for steps in GAUSSIAN_STEPS:
            values = [
                float(np.median([row[column] for row in rows if row[:3:2] == (size, steps)]))
                for size in (64, 256)
            ]
            out.figure(f"{name}, Gaussian 64 and 256, kappa 2, q = {steps}", values)


def scaling(out: Output, quick: bool) -> None:
    """chi_5 of a gradient of norm 0.001 whose singular values are equal, by its normalisation."""
    m = testing.orthonormal(16, 16) * (1e-3 / 4)
    found = []
    for normalisation in NORMALISATIONS:
        s = taylor(2, 5, normalisation)
        o = polarlib.orthogonalize(m, schedule=s, form="plain")
        found.append(1 / float(np.linalg.svd(o, compute_uv=False)[-1]))
    out.figure("chi_5 of a gradient of norm 0.001, over max(1, norm), over its norm", found)


def operations(kappa: int, steps: int, m: int, n: int) -> float:
    """Operations of a thin SVD over those of the steps, m <= n (Lemma 11)."""
    svd = 4 * n * m**2 + 8 * m**3
    return svd / (taylor(kappa, steps).matmuls * 2 * n * m**2)


def costs(out: Output, quick: bool) -> None:
    """Smallest and largest ratio over kappa, q in {1, 2}, {2, 3}, from m << n to m = n."""
    ratios = [
        operations(kappa, q, m, 10**6) for kappa in (1, 2) for q in (2, 3) for m in (1, 10**6)
    ]
    out.figure(
        "operations of the SVD over those of q steps, least and most", [min(ratios), max(ratios)]
    )


# -- the picture -------------------------------------------------------------------------------


def picture(counts: dict[str, list[float]], random_counts: dict[str, list[float]]) -> Figure:
    """chi_q - 1 over q; below it, iterations over the rank."""
    fig, (upper, lower) = panels(rows=2, height=5.0)
    looks = zip(KAPPAS, (plot.VERMILLION, plot.BLUE, plot.GREEN), "osD", strict=True)
    q = np.arange(PICTURE_STEPS + 1)
    for kappa, colour, marker in looks:
        with mpmath.workdps(60):
            delta = [after(kappa, k, START) if k else mpmath.mpf(START) for k in map(int, q)]
            exact = [float(1 / mpmath.sqrt(1 - d) - 1) for d in delta]
            limit = [mpmath.mpf(START) ** exponent(kappa, int(k)) for k in q]
            most = [float(1 / mpmath.sqrt(1 - d) - 1) for d in limit]
        upper.semilogy(q, exact, color=colour, marker=marker, label=rf"$\kappa$ = {kappa}")
        upper.semilogy(
            q, most, "--", color=colour, marker=marker, markerfacecolor="white", linewidth=0.9
        )
    hollow = {"color": plot.INK, "marker": "o", "markerfacecolor": "white", "linewidth": 0.9}
    upper.plot([], [], "--", label="bound (Theorem 2)", **hollow)
    upper.set(xlabel="steps q", ylabel=r"$\chi_q - 1$", ylim=(1e-9, 30), xticks=q)
    upper.set_title(r"$\sigma_{\min}$ = 0.1")
    upper.legend(loc="lower left")
    for name, colour, marker in (
        ("gradient descent", plot.INK, "D"),
        ("Taylor kappa 2, q = 1", plot.VERMILLION, "^"),
        ("Taylor kappa 2, q = 5", plot.BLUE, "s"),
        ("Muon", plot.GREEN, "o"),
    ):
        label = name.replace("kappa", r"$\kappa$ =").replace("Muon", "exact polar factor")
        lower.loglog(RANKS, counts[name], color=colour, marker=marker, label=label)
        lower.loglog(
            RANKS,
            random_counts[name],
            ":",
            color=colour,
            marker=marker,
            markerfacecolor="white",
            linewidth=0.9,
        )
    lower.plot([], [], ":", label="the same, random start", **hollow)
    lower.set_xscale("log", base=2)
    lower.set(xlabel="rank r", ylabel="iterations", ylim=(6, 9000))
    lower.set_xticks(RANKS, map(str, RANKS))
    lower.legend(loc="upper left", ncols=2)
    return fig


def study(out: Output, quick: bool) -> None:
    tables(out, quick)
    orders(out, quick)
    jordan(out, quick)
    counts = by_rank(out, quick)
    random_counts = by_rank_random(out, quick)
    gaussian(out, quick)
    scaling(out, quick)
    costs(out, quick)
    out.plot(
        "chi_and_rank",
        picture(counts, random_counts),
        "Above: chi_q - 1 after q Taylor steps of degree kappa from sigma_min = 0.1 (solid), and "
        "the bound of Theorem 2 (dashed). Below: iterations until the mean nuclear norm of the "
        "gradient is at most 0.1, over the rank, at the best constant step size. Solid: start 0, "
        "all distances from the minimiser equal; dotted: random distances, medians of "
        f"{len(SEEDS)} starts.",
    )
    out.note(
        "Losses over wall clock (Tables 2 and 3) and the slopes of CIFAR-10 (Table 8) are not run: "
        "they need the authors' GPU and data. The problem of the ranks has no noise: the terms "
        "with sigma of Theorems 1 and 3 are not tested."
    )


if __name__ == "__main__":
    main(study, __file__)
