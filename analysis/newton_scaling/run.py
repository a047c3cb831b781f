"""Newton's iteration: what the scaling is worth, and what the inverses cost in accuracy."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import scipy.linalg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import ONE_COLUMN, TWO_COLUMNS, Output, main, panels

import polarlib
from polarlib import plot
from polarlib.testing import binomial, frank, hilbert, with_singular_values

EPS = 2.0**-52
# The error after a change of this size is below 2.5 eps: convergence is quadratic.
ENOUGH = math.sqrt(5 * EPS)
SCALE_ABOVE = 1e-2  # Higham (1986): the change from which on scaling does not pay
CONDITIONS = (1.001, 1.1, 2, 10, 1e2, 1e3, 1e5, 1e7, 1e16)
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


def logs(out: Output) -> None:
    """A published log of hilb(6), and published numbers of iterations."""
    h = hilbert(6)
    _, changes, defects = newton(h, "higham")
    out.figure("hilb(6): relative changes", changes)
    out.figure("hilb(6): first six defects", defects[:6])
    out.figure("hilb(6): seventh defect", defects[6])
    result = polarlib.polar(h, method="newton")
    out.figure("iterations of polar(method='newton') on hilb(6)", result.iterations)
    rows = []
    for name, a in (("hilb(6)", h), ("binomial(16)", binomial(16)), ("frank(16)", frank(16))):
        for scaling in SCALINGS:
            _, found, _ = newton(a, scaling)
            rows.append((name, float(np.linalg.cond(a)), scaling, len(found), found[-1]))
    out.table("matrices", ["matrix", "condition", "scaling", "iterations", "last change"], rows)
    counts = {(name, scaling): k for name, _, scaling, k, _ in rows}
    out.figure(
        "iterations, Higham's scaling: hilb(6), binomial(16), frank(16)",
        [counts[name, "higham"] for name in ("hilb(6)", "binomial(16)", "frank(16)")],
    )


def iterations(out: Output, quick: bool) -> None:
    """Iterations against the condition number."""
    out.figure("iterations, Byers-Xu", [count(k, "byers-xu") for k in CONDITIONS])
    most = np.geomspace(1.0001, 1e16, 40 if quick else 400)
    out.figure("most iterations to 1e16, Byers-Xu", max(count(k, "byers-xu") for k in most))
    out.figure("iterations, unscaled, at 1e16", count(1e16, "none"))
    # On matrices, of singular values evenly spaced on a logarithmic scale.
    n = 16 if quick else 48
    tried = (10, 1e5, 1e15) if quick else tuple(10.0**k for k in range(16))
    rows = []
    for condition in tried:
        a = with_singular_values(np.geomspace(1, 1 / condition, n), seed=1)
        by = [len(newton(a, scaling)[1]) for scaling in SCALINGS]
        rows.append((condition, *by, polarlib.polar(a, method="newton").iterations))
    out.table("iterations", ["condition", *SCALINGS, "polar(method='newton')"], rows)
    out.figure("most iterations of polar(method='newton')", max(row[-1] for row in rows))

    fig, axes = panels(1, 2, width=TWO_COLUMNS, height=2.7)
    grid = np.geomspace(1.001, 1e16, 200)
    for i, (scaling, label) in enumerate(SCALINGS.items()):
        colour, line, marker = LOOK[scaling]
        if scaling != "higham":  # its factors need the whole spectrum
            axes[0].step(
                grid,
                [count(k, scaling) for k in grid],
                color=colour,
                linestyle=line,
                label=f"{label}, scalars",
            )
        axes[0].plot(
            [row[0] for row in rows],
            [row[1 + i] for row in rows],
            color=colour,
            linestyle="none",
            marker=marker,
            markersize=6 - 1.5 * i,
            label=f"{label}, matrices",
        )
        axes[0].set_xscale("log")
        axes[0].set(
            xlabel=r"condition number $\kappa$",
            ylabel="iterations to $5\\varepsilon$",
            ylim=(0, 62),
        )
    axes[0].legend(loc="upper left")
    _, changes, defects = newton(hilbert(6), "higham")
    k = np.arange(1, len(changes) + 1)
    axes[1].semilogy(
        k, changes, color=plot.BLUE, marker="o", label=r"$\|X_k - X_{k-1}\|_1 / \|X_{k-1}\|_1$"
    )
    axes[1].semilogy(
        k,
        defects,
        color=plot.VERMILLION,
        linestyle="--",
        marker="s",
        label=r"$\|X_k^{\mathsf{T}} X_k - I\|_1$",
    )
    _, unscaled, _ = newton(hilbert(6), "none")
    axes[1].semilogy(
        np.arange(1, len(unscaled) + 1),
        unscaled,
        color=plot.GREEN,
        linestyle=":",
        marker="^",
        label="relative change, unscaled",
    )
    axes[1].set(xlabel="iteration $k$", title="hilb(6)")
    axes[1].legend(loc="lower center", bbox_to_anchor=(0.56, 0.01))
    out.plot(
        "iterations",
        fig,
        "Left: iterations of Newton's method until the last change is below √(5ε), on scalars "
        "(lines) and on matrices with singular values evenly spaced on a logarithmic scale "
        "(markers). Scaling turns logarithmic growth, one iteration for each factor of two, into "
        "at most nine. Right: convergence on the Hilbert matrix of order 6.",
    )


def accuracy(out: Output, quick: bool) -> None:
    """Backward errors against n: the inverses cost digits."""
    sizes = (64,) if quick else (64, 128, 256, 512, 1024)
    rows = []
    for n in sizes:
        worst = dict.fromkeys(("newton", "qdwh", "svd"), 0.0)
        for condition in (1e2, 1e8, 1e15):
            a = with_singular_values(np.geomspace(1, 1 / condition, n), seed=n)
            for method in worst:
                error = polarlib.polar(a, method=method).backward_error
                worst[method] = max(worst[method], float(error))
        rows.append((n, *worst.values()))
    out.table("backward_errors", ["n", "newton", "qdwh", "svd"], rows)
    out.figure("worst backward error of polar(method='newton'), n = 64", rows[0][1])
    out.figure("worst backward error of polar(method='newton'), all n", max(r[1] for r in rows))
    if quick:
        return
    by_size = {row[0]: row[1] for row in rows}
    out.figure("worst backward error of polar(method='newton'), n = 256", by_size[256])
    fig, (ax,) = panels(width=ONE_COLUMN, height=2.7)
    columns = [[row[k] for row in rows] for k in (1, 2, 3)]
    for (label, colour, line, marker), y in zip(
        (
            ("Newton", plot.BLUE, "-", "o"),
            ("QDWH", plot.VERMILLION, "--", "s"),
            ("SVD", plot.GREEN, ":", "^"),
        ),
        columns,
        strict=True,
    ):
        ax.loglog(sizes, y, color=colour, linestyle=line, marker=marker, label=label)
    ax.axhline(EPS / 2, color=plot.INK, linewidth=0.8, label="unit roundoff")
    ax.set(xlabel="$n$", ylabel=r"worst $\|A - UH\|_F / \|A\|_F$")
    ax.set_xticks(sizes, [str(n) for n in sizes])
    ax.minorticks_off()
    fig.legend(loc="outside lower center", ncols=4, columnspacing=1.0, handlelength=1.8)
    out.plot(
        "backward_errors",
        fig,
        "Largest backward error over condition numbers 1e2, 1e8 and 1e15, geometric spectra, "
        "float64. What the inverses of Newton's method lose grows with n.",
    )


def study(out: Output, quick: bool) -> None:
    logs(out)
    iterations(out, quick)
    accuracy(out, quick)
    out.note(
        "The iterations with the two scalings and without are written out in run.py, in NumPy, so "
        "that all three can be compared; polar(method='newton') is the library's own."
    )


if __name__ == "__main__":
    main(study, __file__)
