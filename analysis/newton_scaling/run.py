"""Newton's iteration: what the scaling is worth, and what the inverses cost in accuracy."""

from __future__ import annotations

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import scipy.linalg
from common import Output, main, panels

import polarlib
from polarlib import plot
from polarlib.testing import binomial, frank, hilbert, with_singular_values

EPS = 2.0**-52
# The error after a change of this size is below 2.5 eps: convergence is quadratic.
ENOUGH = math.sqrt(5 * EPS)
SCALE_ABOVE = 1e-2  # Higham (1986): the change from which on scaling does not pay
CONDITIONS = (1.001, 1.1, 2, 10, 1e2, 1e3, 1e5, 1e7, 1e16)
PUBLISHED = "higham"  # the scaling of the published log
NEWTON = "newton"  # the library's method
SCALINGS = {
    "higham": r"Higham, $1,\infty$-norms",
    "byers-xu": "Byers–Xu",
    "none": "unscaled",
}
LOOK = {
    "higham": (plot.BLUE, "-", "o"),
    "byers-xu": (plot.VERMILLION, "--", "s"),
    "none": (plot.GREEN, ":", "^"),
}


def factor(scaling: str, k: int, last: float, x: np.ndarray, inverse: np.ndarray) -> float:
    """Higham's factor, from four norms, or no scaling."""
    if scaling == "none" or (k > 0 and last <= SCALE_ABOVE):
        return 1.0
    norms = [np.linalg.norm(y, p) for y in (inverse, x) for p in (1, np.inf)]
    return float((norms[0] * norms[1] / (norms[2] * norms[3])) ** 0.25)


def byers_xu(largest: float, smallest: float, count: int) -> list[float]:
    """The first factors of Byers and Xu, which two bounds of the singular values determine."""
    root = math.sqrt(largest * smallest)
    found = [1 / root, math.sqrt(2 * root / (largest + smallest))]
    while len(found) < count:
        found.append(math.sqrt(2 / (found[-1] + 1 / found[-1])))
    return found


def newton(a: np.ndarray, scaling: str) -> tuple[np.ndarray, list[float], list[float]]:
    """Unitary factor of a square matrix, relative changes and defects, both in the 1-norm."""
    sigma = scipy.linalg.svdvals(a)
    given = byers_xu(float(sigma[0]), float(sigma[-1]), 100)
    x, changes = a, [math.inf]
    defects: list[float] = []
    while changes[-1] > ENOUGH and len(defects) < 100:
        inverse = scipy.linalg.inv(x)
        k = len(defects)
        zeta = given[k] if scaling == "byers-xu" else factor(scaling, k, changes[-1], x, inverse)
        new = (zeta * x + inverse.T / zeta) / 2
        changes.append(float(np.linalg.norm(new - x, 1) / np.linalg.norm(x, 1)))
        x = new
        defects.append(float(np.linalg.norm(x.T @ x - np.eye(len(x)), 1)))
    return x, changes[1:], defects


def count(condition: float, scaling: str) -> int:
    """Iterations on the scalars 1, 1/kappa and the one between, by the same stopping test."""
    x = np.array([1.0, condition**-0.5, 1 / condition])
    given = byers_xu(1.0, 1 / condition, 100)
    for k in range(100):
        zeta = given[k] if scaling == "byers-xu" else 1.0
        new = (zeta * x + 1 / (zeta * x)) / 2
        if np.abs(new - x).max() <= ENOUGH:
            return k + 1
        x = new
    return 100


def logs(out: Output, quick: bool) -> None:
    """A published log of hilb(6), and published numbers of iterations."""
    h = hilbert(6)
    _, changes, defects = newton(h, PUBLISHED)
    out.figure("hilb(6): relative changes", changes)
    out.figure("hilb(6): first six defects", defects[:6])
    out.figure("hilb(6): seventh defect", defects[6])
    rows = []
    for name, a in (("hilb(6)", h), ("binomial(16)", binomial(16)), ("frank(16)", frank(16))):
        for scaling in SCALINGS:
            _, found, _ = newton(a, scaling)
            rows.append((name, float(np.linalg.cond(a)), scaling, len(found), found[-1]))
    out.table("matrices", ["matrix", "condition", "scaling", "iterations", "last change"], rows)
    counts = {(name, scaling): k for name, _, scaling, k, _ in rows}
    out.figure(
        "iterations, Higham's scaling: hilb(6), binomial(16), frank(16)",
        [counts[name, PUBLISHED] for name in ("hilb(6)", "binomial(16)", "frank(16)")],
    )


def scalars(out: Output, quick: bool) -> None:
    """Iterations of the scalars at the ends of the interval and between, over the condition."""
    out.figure("iterations, Byers-Xu", [count(k, "byers-xu") for k in CONDITIONS])
    most = np.geomspace(1.0001, 1e16, 40 if quick else 400)
    out.figure("most iterations to 1e16, Byers-Xu", max(count(k, "byers-xu") for k in most))
    out.figure("iterations, unscaled, at 1e16", count(1e16, "none"))


def library(out: Output, quick: bool) -> None:
    """Iterations of the library's method, on the matrix of the log and on ill-conditioned ones."""
    iterations = polarlib.polar(hilbert(6), method=NEWTON).iterations
    out.figure("iterations of polar(method='newton') on hilb(6)", iterations)
    # Singular values evenly spaced on a logarithmic scale.
    n = 48
    rows = []
    for condition in out.steps(
        (10, 1e5, 1e15) if quick else tuple(10.0**k for k in range(16)), "matrices"
    ):
        a = with_singular_values(np.geomspace(1, 1 / condition, n), seed=1)
        by = [len(newton(a, scaling)[1]) for scaling in SCALINGS]
        rows.append((condition, *by, polarlib.polar(a, method=NEWTON).iterations))
    out.table("iterations", ["condition", *SCALINGS, "polar(method='newton')"], rows)
    out.figure("most iterations of polar(method='newton')", max(row[-1] for row in rows))

    fig, (ax,) = panels(height=2.7)
    grid = np.geomspace(1.001, 1e16, 200)
    for i, (scaling, label) in enumerate(SCALINGS.items()):
        colour, line, marker = LOOK[scaling]
        if scaling != "higham":  # its factors need the whole spectrum
            values = [count(k, scaling) for k in grid]
            ax.step(grid, values, color=colour, linestyle=line, label=f"{label}, scalars")
        ax.plot(
            [row[0] for row in rows],
            [row[1 + i] for row in rows],
            color=colour,
            linestyle="none",
            marker=marker,
            markersize=6 - 1.5 * i,
            markerfacecolor="none" if scaling == "higham" else colour,
            label=f"{label}, matrices",
        )
    ax.set_xscale("log")
    ax.set(xlabel=r"condition number $\kappa$", ylabel="iterations", ylim=(0, 62))
    ax.legend(loc="upper left")
    out.plot(
        "iterations",
        fig,
        "Iterations of Newton's method until the last change is below √(5ε), on scalars "
        "(lines) and on matrices with singular values evenly spaced on a logarithmic scale "
        "(markers). Without scaling there is one iteration for each factor of two; with scaling "
        "there are at most nine.",
    )


def history(out: Output, quick: bool) -> None:
    """Picture of the convergence on the matrix of the log."""
    _, changes, defects = newton(hilbert(6), "higham")
    _, unscaled, _ = newton(hilbert(6), "none")
    fig, (ax,) = panels(height=2.9)
    for y, label, colour, line, marker in (
        (changes, r"$\|X_k - X_{k-1}\|_1 / \|X_{k-1}\|_1$", plot.BLUE, "-", "o"),
        (defects, r"$\|X_k^{\mathsf{T}} X_k - I\|_1$", plot.VERMILLION, "--", "s"),
        (unscaled, "relative change, unscaled", plot.GREEN, ":", "^"),
    ):
        how = {"color": colour, "linestyle": line, "marker": marker}
        ax.semilogy(np.arange(1, len(y) + 1), y, label=label, **how)
    ax.set(xlabel="iteration $k$", ylabel="change, defect")
    fig.legend(loc="outside lower center", ncols=2)
    out.plot("hilbert", fig, "Convergence on the Hilbert matrix of order 6.")


def backward_error(a: np.ndarray, method: str) -> float:
    """Backward error of a method of the library."""
    return float(polarlib.polar(a, method=method).backward_error)


def accuracy(out: Output, quick: bool) -> None:
    """Backward errors against n: the inverses cost digits."""
    sizes = (64,) if quick else (64, 128, 256, 512, 1024)
    rows = []
    for n in out.steps(sizes, "backward errors"):
        worst = dict.fromkeys((NEWTON, "qdwh", "svd"), 0.0)
        for condition in (1e2, 1e8, 1e15):
            a = with_singular_values(np.geomspace(1, 1 / condition, n), seed=n)
            for method in worst:
                worst[method] = max(worst[method], backward_error(a, method))
        rows.append((n, *worst.values()))
    out.table("backward_errors", ["n", "newton", "qdwh", "svd"], rows)
    out.figure("worst backward error of polar(method='newton'), n = 64", rows[0][1])
    if quick:
        return
    of = np.array(rows)
    out.figure("worst backward error of polar(method='newton'), n = 256", of[2, 1])
    slopes = np.log(of[-1, 1:3] / of[0, 1:3]) / np.log(of[-1, 0] / of[0, 0])
    out.figure("growth of backward errors with n, exponents of Newton and QDWH", slopes.tolist())
    fig, (ax,) = panels(height=2.7)
    for k, (label, colour, line, marker) in enumerate(
        (
            ("Newton", plot.BLUE, "-", "o"),
            ("QDWH", plot.VERMILLION, "--", "s"),
            ("SVD", plot.GREEN, ":", "^"),
        ),
        1,
    ):
        ax.loglog(sizes, of[:, k], color=colour, linestyle=line, marker=marker, label=label)
    ax.axhline(EPS / 2, color=plot.INK, linewidth=0.8, label="unit roundoff")
    ax.set(xlabel="$n$", ylabel=r"worst $\|A - UH\|_F / \|A\|_F$")
    ax.set_xticks(sizes, [str(n) for n in sizes])
    ax.minorticks_off()
    fig.legend(loc="outside lower center", ncols=2)
    out.plot(
        "backward_errors",
        fig,
        "Largest backward error over condition numbers 1e2, 1e8 and 1e15, geometric spectra, "
        "float64. What the inverses of Newton's method lose grows with n.",
    )


def study(out: Output, quick: bool) -> None:
    logs(out, quick)
    scalars(out, quick)
    library(out, quick)
    history(out, quick)
    accuracy(out, quick)
    out.note(
        "The iterations with the two scalings and without are written out in run.py, in NumPy, so "
        "that all three can be compared; polar(method='newton') is the library's own."
    )


if __name__ == "__main__":
    main(study, __file__)
