"""Muon with q Newton-Schulz steps: the factor chi_q of its rate, and where the rank is gone."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import mpmath
import numpy as np
from chi_picture import picture
from common import Output, main
from numpy.polynomial import Polynomial
from rank_problem import (
    EXPONENTS,
    RANKS,
    Direction,
    Problem,
    equal_curvatures,
    gradient,
    iterations,
    newton_schulz,
    normalised,
    polar_factor,
    random_start,
    slope,
    stated,
    step_sizes,
)
from taylor_steps import chi, phi, taylor

import polarlib
from polarlib import Schedule, norms, testing

KAPPAS = (1, 2, 3)
SIGMA = 0.1  # the smallest singular value of the tables
TABLE_STEPS, PICTURE_STEPS = 5, 6
STARTS = (0.5, 0.9, 0.99, 0.9999)  # values of delta_0 for the comparison with the bound
SMALLEST = (1e-1, 1e-2, 1e-3, 1e-6)  # singular values whose number of steps is counted
DIGITS = 3000  # decimal digits for the orders of convergence: delta falls to 1e-1233
# The coefficients of tau' as the paper prints them, ascending.
PRINTED = (11.8641, -65.781, 110.3556, -77.5824, 20.635)
SEEDS = range(7)
LARGE = (256, 1024, 4096)
NUMBER = mpmath.mpf  # of the runs in 50 digits
GAUSSIAN_STEPS = (3, 5)
NORMALISATIONS = ("none", "frobenius")  # of a norm below 1: max(1, norm) divides by nothing


# -- chi_q and its bound -----------------------------------------------------------------------


def exponent(kappa: int, steps: int) -> int:
    """Of delta_0 in the bound of Theorem 2."""
    return (kappa + 1) ** steps


def bound(kappa: int, steps: int, sigma: float = SIGMA) -> float:
    """The bound of Theorem 2 on chi_q."""
    return float((1 - (1 - sigma**2) ** exponent(kappa, steps)) ** -0.5)


def after(kappa: int, steps: int, delta: Any) -> Any:
    """delta_q from delta_0, in the current precision of mpmath."""
    sigma = mpmath.sqrt(1 - mpmath.mpf(delta))
    return 1 - (taylor(kappa, steps)(sigma) if steps else sigma) ** 2


def tables(out: Output, quick: bool) -> None:
    """chi_q from sigma_min = 0.1, its bound, and the bound elsewhere."""
    rows = []
    for kappa in KAPPAS:
        exact = [chi(kappa, q, SIGMA) for q in range(PICTURE_STEPS + 1)]
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
    """Order of convergence in multiple precision."""
    found = []
    with mpmath.workdps(DIGITS):
        for kappa in out.steps(KAPPAS, "orders of convergence"):
            delta = [after(kappa, q, 0.5) for q in range(3, 6)]
            first, second = (mpmath.log(b / a) for a, b in pairwise(delta))
            found.append(float(second / first))
    out.figure("local order, kappa 1, 2, 3", found)


def closed_forms(out: Output, quick: bool) -> None:
    """The polynomials phi."""
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
    tilt = tau_slope()
    roots = tilt.roots()
    real = [float(z.real) for z in roots if abs(z.imag) < 1e-9 and 0 < z.real < 1]
    tau = tilt.integ()
    return max((float(tau(x)), x) for x in (*real, 1.0))[::-1]


def jordan(out: Output, quick: bool) -> None:
    """The quintic that falls outside of the theory."""
    tilt = tau_slope()
    at, top = largest_tau()
    out.figure("quintic: lambda of the largest tau, tau there, tau'(1)", [at, top, tilt(1.0)])
    out.figure("quintic: lambda of the largest tau", at)
    out.figure("quintic: tau'(1)", tilt(1.0))
    out.figure("quintic: tau'(0)", tilt(0.0))
    out.figure("quintic: coefficients of tau'", tilt.coef[::-1])
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


def methods() -> dict[str, Direction]:
    """The methods by their names in the figures."""
    return {
        "gradient descent": gradient,
        "normalised gradient descent": normalised,
        "Muon": polar_factor,
        **{f"Taylor kappa 2, q = {q}": newton_schulz(q) for q in (1, 3, 5)},
    }


def at_best(name: str, problem: Problem) -> tuple[float, float]:
    """Iterations of a method at its best step size, and that."""
    return iterations(methods()[name], problem, step_sizes(name, problem))


def by_rank(out: Output, quick: bool) -> dict[str, list[float]]:
    """Iterations of every method over the rank, start 0."""
    counts, rows = {}, []
    for name in out.steps(list(methods()), "iterations by rank"):
        found = [at_best(name, stated(r)) for r in RANKS]
        rows += [(name, r, *pair) for r, pair in zip(RANKS, found, strict=True)]
        counts[name] = [t for t, _ in found]
        out.figure(f"slope of iterations by rank, {name}", slope(RANKS, counts[name]))
    for name in ("gradient descent", "Muon"):
        out.figure(f"iterations by rank, {name}", counts[name])
    flat = [at_best("gradient descent", equal_curvatures(r))[0] for r in RANKS]
    name = "slope of iterations by rank, gradient descent, equal curvatures"
    out.figure(name, slope(RANKS, flat))
    out.table("iterations", ["method", "rank", "iterations", "step size"], rows)
    return counts


def in_digits(out: Output, quick: bool) -> None:
    """Three Taylor steps, start 0, without the rounding of doubles."""
    found = []
    with mpmath.workdps(50):
        sizes = np.array([NUMBER(2) ** e for e in EXPONENTS])
        direction = newton_schulz(3, digits=True)
        for rank in out.steps(RANKS, "iterations in 50 digits"):
            found.append(iterations(direction, stated(rank, NUMBER), sizes))
    counts = [t for t, _ in found]
    out.figure("iterations in 50 digits, Taylor kappa 2, q = 3", counts)
    rows = [(r, *pair) for r, pair in zip(RANKS, found, strict=True)]
    out.table("iterations_50_digits", ["rank", "iterations", "step size"], rows)


def by_rank_random(out: Output, quick: bool) -> dict[str, list[float]]:
    """The same from random starts: medians."""
    counts, rows = {}, []
    for name in out.steps(list(methods()), "iterations by rank, random starts"):
        every = [[at_best(name, random_start(r, seed))[0] for seed in SEEDS] for r in RANKS]
        counts[name] = [float(np.median(c)) for c in every]
        rows += [(name, r, *c) for r, c in zip(RANKS, every, strict=True)]
        if name != "normalised gradient descent":
            fitted = slope(RANKS, counts[name])
            out.figure(f"slope of iterations by rank, random start, {name}", fitted)
    columns = ["method", "rank", *(f"iterations, seed {seed}" for seed in SEEDS)]
    out.table("iterations_random_start", columns, rows)
    few = "Taylor kappa 2, q = 5"
    zero = at_best(few, stated(RANKS[-1]))[0] / at_best("Muon", stated(RANKS[-1]))[0]
    out.figure(
        "iterations at rank 256, Taylor kappa 2, q = 5, over Muon's, start zero and random",
        [zero, counts[few][-1] / counts["Muon"][-1]],
    )
    return counts


def large_ranks(out: Output, quick: bool) -> None:
    """A fixed number of steps at ranks whose root is larger than what the steps can lift."""
    slopes, rows = [], []
    for name in out.steps(
        ("Muon", "Taylor kappa 2, q = 3", "Taylor kappa 2, q = 5"), "large ranks"
    ):
        every = [[at_best(name, random_start(r, seed))[0] for seed in SEEDS[:3]] for r in LARGE]
        slopes.append(slope(LARGE, [float(np.median(c)) for c in every]))
        rows += [(name, r, *c) for r, c in zip(LARGE, every, strict=True)]
    out.figure("slope over ranks 256 to 4096, random start, Muon, Taylor q = 3, q = 5", slopes)
    columns = ["method", "rank", *(f"iterations, seed {seed}" for seed in SEEDS[:3])]
    out.table("iterations_large_ranks", columns, rows)


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


def curves() -> dict[int, list[tuple[float, float]]]:
    """chi_q - 1 from sigma_min = 0.1 over q, and its bound, by kappa."""
    with mpmath.workdps(60):
        start = 1 - mpmath.mpf(1) / 100
        return {
            kappa: [
                tuple(
                    float(1 / mpmath.sqrt(1 - delta) - 1)
                    for delta in (after(kappa, q, start), start ** exponent(kappa, q))
                )
                for q in range(PICTURE_STEPS + 1)
            ]
            for kappa in KAPPAS
        }


def study(out: Output, quick: bool) -> None:
    tables(out, quick)
    orders(out, quick)
    closed_forms(out, quick)
    jordan(out, quick)
    counts = by_rank(out, quick)
    in_digits(out, quick)
    random_counts = by_rank_random(out, quick)
    if not quick:
        large_ranks(out, quick)
    gaussian(out, quick)
    scaling(out, quick)
    costs(out, quick)
    out.plot(
        "chi_and_rank",
        picture(curves(), counts, random_counts),
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
