"""QDWH and Zolotarev's functions: errors in closed form, iterations, and accuracy on matrices."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import mpmath
import numpy as np
from common import Output, main, panels

import polarlib
from polarlib import design, plot
from polarlib.testing import with_singular_values

EPS = 2.0**-52
DIGITS = 60
CONDITIONS = (1.001, 1.1, 2, 10, 1e2, 1e3, 1e5, 1e7, 1e16)
POLES = range(1, 9)
LOWERS = (1e-16, 1e-8, 1e-3, 0.5)
MARKED = (plot.BLUE, plot.VERMILLION, plot.GREEN, plot.PURPLE)
LINES = ("-", "--", "-.", ":")
MOST = 8  # poles of the function that needs two steps
METHODS = ("qdwh", "zolotarev")  # of polarlib.polar


def degree(r: int) -> int:
    """Degree of the numerator of a function with r poles of each sign: type (2r + 1, 2r)."""
    return 2 * r + 1


@functools.cache
def error(degree: int, lower: float) -> float:
    """Least worst error of odd rational functions of type (degree, degree - 1) on [lower, 1].

    They map [l, 1] onto [m, 1], up to scale, and to a modulus m belongs the nome of l to the power
    `degree` (both nomes those of the complementary moduli): Akhiezer, section 50.
    """
    with mpmath.workdps(DIGITS):
        l = mpmath.mpf(lower)
        nome = mpmath.exp(-mpmath.pi * mpmath.ellipk(l * l) / mpmath.ellipk(1 - l * l)) ** degree
        complement = (mpmath.jtheta(2, 0, nome) / mpmath.jtheta(3, 0, nome)) ** 2
        m = mpmath.sqrt(1 - complement**2)
        return float((complement / (1 + m)) ** 2)  # (1 - m) / (1 + m)


def count(r: int, condition: float) -> int:
    """Iterations until [1 / kappa, 1] is mapped into [1 - 5 eps, 1], scaled as QDWH scales."""
    k = 0
    while True:
        k += 1
        e = error(degree(r) ** k, 1 / condition)
        if 2 * e / (1 + e) <= 5 * EPS:
            return k


def weights(l: Any) -> tuple[Any, Any, Any]:
    """Coefficients a, b, c of a step of QDWH, l (a + b l^2) / (1 + c l^2)."""
    d = mpmath.cbrt(4 * (1 - l**2) / l**4)
    root = mpmath.sqrt(1 + d)
    a = root + mpmath.sqrt(8 - 4 * d + 8 * (2 - l**2) / (l**2 * root)) / 2
    b = (a - 1) ** 2 / 4
    return a, b, a + b - 1


def halley(condition: float) -> int:
    """Iterations of QDWH by its own recurrence, in many digits."""
    with mpmath.workdps(DIGITS):
        l, k = 1 / mpmath.mpf(condition), 0
        while 1 - l > 5 * EPS:
            a, b, c = weights(l)
            l = l * (a + b * l**2) / (1 + c * l**2)
            k += 1
        return k


def functions(out: Output, quick: bool) -> None:
    """The best functions, and their errors against the closed form."""
    differences, rows = [], []
    for lower in out.steps(LOWERS, "best functions"):
        for r in POLES:
            s = design.zolotarev(r, lower)
            for k in range(1, len(s) + 1):
                found, exact = s.truncate(k).error(), error(degree(r) ** k, lower)
                differences.append(abs(found - exact))
                rows.append((lower, r, k, found, exact))
    out.table("errors", ["lower", "r", "steps", "error", "closed form"], rows)
    out.figure("errors of design.zolotarev against the closed form", max(differences))
    s = design.zolotarev(1, 1e-16)
    out.figure("errors at 1e-16, r = 1", [s.truncate(k).error() for k in range(1, 6)])
    twice = design.zolotarev(MOST, 1e-16).truncate(2)
    out.figure("error of type (17, 16) twice at 1e-16", twice.error())


def steps(out: Output, quick: bool) -> None:
    """Picture of one step, and of its error over r."""
    fig, axes = panels(2, height=5.4)
    x = np.geomspace(1e-16, 1, 4001)
    for r, colour, line in zip((1, 2, 4, 8), MARKED, LINES, strict=True):
        step = design.zolotarev(r, 1e-16).truncate(1)
        axes[0].semilogx(x, step(x), color=colour, linestyle=line, label=f"$r = {r}$")
    axes[0].axhline(1, color=plot.INK, linewidth=0.6)
    axes[0].set(
        xlabel="singular value $x$",
        ylabel="one step of type $(2r + 1, 2r)$",
        title=r"$\ell = 10^{-16}$",
        ylim=(-0.1, 2.9),
    )
    axes[0].legend(loc="upper center", ncols=4, columnspacing=1.0, handlelength=1.8)
    for i, lower in enumerate(LOWERS):
        marks = [design.zolotarev(r, lower).truncate(1).error() for r in POLES]
        closed = [error(degree(r), lower) for r in POLES]
        axes[1].semilogy(POLES, closed, color=MARKED[i], linestyle=LINES[i])
        axes[1].semilogy(
            POLES,
            marks,
            color=MARKED[i],
            linestyle="none",
            marker=plot.MARKERS[i],
            label=rf"$\ell = {lower:g}$"
            if lower > 1e-3
            else rf"$\ell = 10^{{{np.log10(lower):.0f}}}$",
        )
    axes[1].set(xlabel="$r$", ylabel=r"worst error on $[\ell, 1]$", ylim=(1e-18, 2))
    fig.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    out.plot(
        "functions",
        fig,
        "Top: the best odd rational functions of type (2r + 1, 2r) on [1e-16, 1]; r = 1 is a step "
        "of QDWH. Bottom: worst error of one step against r; lines: closed form by elliptic "
        "functions, markers: design.zolotarev, whose coefficients are doubles.",
    )


def iterations(out: Output, quick: bool) -> None:
    """Iterations against the condition number."""
    table = {r: [count(r, k) for k in CONDITIONS] for r in POLES}
    for r in (1, 2, 8):
        out.figure(f"iterations, r = {r}", table[r])
    out.figure("iterations of QDWH by its recurrence", [halley(k) for k in CONDITIONS])
    for condition in (1e2, 1e5, 1e7):
        at = CONDITIONS.index(condition)
        out.figure(f"iterations at {condition:.0e}, r = 1 to 8", [table[r][at] for r in POLES])
    out.table("iterations", ["r", *map(str, CONDITIONS)], [(r, *row) for r, row in table.items()])
    grid = np.geomspace(1.001, 1e16, 10 if quick else 120)
    counts = {r: [count(r, k) for k in grid] for r in out.steps((1, 2, 4, 8), "iterations")}
    out.figure("most iterations to 1e16, r = 1 and 8", [max(counts[1]), max(counts[8])])
    fig, (ax,) = panels(height=2.6)
    for i, (r, found) in enumerate(counts.items()):
        name = "QDWH" if r == 1 else "Zolotarev"
        # Steps that coincide stay visible: the later, the thinner.
        ax.step(
            grid,
            found,
            where="mid",
            color=MARKED[i],
            linestyle=LINES[i],
            linewidth=2.6 - 0.5 * i,
            label=f"{name}, $r = {r}$",
        )
    ax.set_xscale("log")
    ax.set(xlabel=r"condition number $\kappa$", ylabel="iterations", ylim=(0, 6.6))
    fig.legend(loc="outside lower center", ncols=2, handlelength=3.2)
    out.plot(
        "iterations",
        fig,
        "Iterations until [1/κ, 1] is mapped into [1 − 5ε, 1], ε = 2.2e-16: six of QDWH, two with "
        "eight poles.",
    )


def decompose(a: np.ndarray, method: str) -> tuple[float, float, float]:
    """Iterations, backward error and orthogonality; NaN if the SVD was used instead."""
    result = polarlib.polar(a, method=method)
    if result.method != method:
        return np.nan, np.nan, np.nan
    return float(result.iterations), float(result.backward_error), float(result.orthogonality)


def matrices(out: Output, quick: bool) -> None:
    """Both methods on matrices: iterations and backward errors."""
    n = 40 if quick else 256
    powers = (2, 8, 16) if quick else range(1, 17)
    methods = (*METHODS, "svd")
    rows = []
    for power in out.steps(powers, "matrices"):
        a = with_singular_values(np.geomspace(1, 10.0**-power, n), seed=power)
        rows += [(power, method, *decompose(a, method)) for method in methods]
    columns = ["log10 condition", "method", "iterations", "backward error", "orthogonality"]
    out.table("matrices", columns, rows)
    found = {m: np.array([row[2:] for row in rows if row[1] == m]) for m in methods}
    worst = [found[m].max(axis=0).tolist() for m in METHODS]
    out.figure("most iterations of polar(method='qdwh')", worst[0][0])
    out.figure("most iterations of polar(method='zolotarev')", worst[1][0])
    out.figure("worst backward errors, qdwh and zolotarev", [w[1] for w in worst])
    out.figure("worst orthogonality, qdwh and zolotarev", [w[2] for w in worst])
    fig, axes = panels(2, height=4.6, sharex=True, sharey=True)
    for ax, column, label in zip(
        axes,
        (1, 2),
        (r"$\|A - UH\|_F / \|A\|_F$", r"$\|U^H U - I\|_F / \sqrt{n}$"),
        strict=True,
    ):
        for i, method in enumerate(methods):
            ax.loglog(
                10.0 ** np.array(powers),
                found[method][:, column],
                color=MARKED[i],
                linestyle=LINES[i],
                marker=plot.MARKERS[i],
                label=method.upper() if method != "zolotarev" else "Zolotarev",
            )
        ax.axhline(EPS / 2, color=plot.INK, linewidth=0.8, label="unit roundoff")
        ax.set(ylabel=label, ylim=(8e-17, 2e-14))
    axes[-1].set_xlabel(r"condition number $\kappa$")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    out.plot(
        "matrices",
        fig,
        f"Backward error (top) and orthogonality (bottom) of {n} × {n} matrices with geometric "
        "spectra, float64: at rounding level whatever the condition number.",
    )


def study(out: Output, quick: bool) -> None:
    iterations(out, quick)
    functions(out, quick)
    steps(out, quick)
    matrices(out, quick)
    out.note(
        "On matrices the methods know bounds of the singular values and not their values: QDWH "
        "takes four iterations on well-conditioned ones, where the recurrence would need two. "
        "The number of poles is chosen by polarlib."
    )


if __name__ == "__main__":
    main(study, __file__)
