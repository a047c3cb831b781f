"""Chebyshev-type polynomials for Newton-Schulz: the best step, compositions of it, and bands."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import polarlib
from polarlib import Schedule, design, plot, testing

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import TWO_COLUMNS, Output, main, panels

LOWERS = (1e-1, 1e-3, 1e-6)  # where errors of one step were noted
VANISHING = 1e-13  # a lower end at which rho / l is at its limit to as many digits
BANDS = (0.3, 0.1, 0.01)
DEGREES = {3: (plot.BLUE, "o"), 5: (plot.VERMILLION, "s")}
STEPS = 40
SLACK = 1e-9  # by which the ends are known
GOAL = 1e-12  # orthogonality at which the products are counted


def cubic(l: float, u: float) -> tuple[tuple[float, float], float]:
    """Coefficients and error of the best odd cubic on [l, u], in closed form."""
    alpha = math.sqrt(3 / (l * l + l * u + u * u))
    s = l * u * (l + u) * alpha**3
    scale = 4 / (2 + s)
    return (1.5 * scale * alpha, -0.5 * scale * alpha**3), (2 - s) / (2 + s)


# -- one step --------------------------------------------------------------------------------


def one_step(out: Output) -> Figure:
    """The closed form against the exchange, and errors against those of another solver."""
    gap = 0.0
    rows = []
    for l in (0.9, 0.5, 0.1, 1e-2, 1e-3, 1e-6, 1e-9):
        for u in (1.0, 1.7):
            coefficients, error = cubic(l * u, u)
            best = design.best(3, l * u, u)
            pairs = [*zip(coefficients, best.coefficients, strict=True), (error, best.error)]
            apart = max(abs(a - b) / abs(b) for a, b in pairs)
            gap = max(gap, apart)
            rows.append([l * u, u, *coefficients, error, apart])
    columns = ["lower", "upper", "a", "b", "error", "relative difference to the exchange"]
    out.table("cubic", columns, rows)
    out.figure("closed form of the cubic against the exchange", gap)
    for degree in DEGREES:
        errors = [float(design.best(degree, l).error) for l in LOWERS]
        out.figure(f"degree {degree}: error of one step", errors)
        limit = float(design.best(degree, VANISHING).rho) / VANISHING
        out.figure(f"degree {degree}: limit of rho / l", limit)
    fig, (left, right) = panels(1, 2, width=TWO_COLUMNS, height=2.8)
    x = np.linspace(0, 1, 600)
    for degree, (colour, _) in DEGREES.items():
        s = design.minimax(degree, 0.1)
        left.plot(x, s(x), color=colour, label=f"best of degree {degree}")
        ns = polarlib.schedule(f"newton_schulz_{degree}", steps=1)
        left.plot(x, ns(x), "--", color=colour, label=f"Newton–Schulz {degree}")
        ls = np.geomspace(1e-4, 0.95, 120)
        right.loglog(ls, [float(design.best(degree, l).rho) for l in ls], color=colour)
        low = [(min(ns(l), ns(1.0)), ns.image(l, 1.0)[1]) for l in ls]
        right.loglog(ls, [a / b for a, b in low], "--", color=colour)
    left.axvline(0.1, color=plot.INK, linewidth=0.6, linestyle=":")
    left.axhline(1.0, color=plot.INK, linewidth=0.6)
    left.set_xlabel("singular value x")
    left.set_ylabel("p(x), designed for [0.1, 1]")
    right.loglog(ls, ls, color=plot.INK, linewidth=0.8, linestyle=":", label="no step")
    right.set_xlabel("ratio of the ends before the step")
    right.set_ylabel("ratio of the ends after it")
    right.legend(loc="upper left")
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


# -- compositions ----------------------------------------------------------------------------


def published(out: Output) -> None:
    """The list that is shipped as CANS, derived anew."""
    s = design.greedy(1e-3, [5] * 5)
    out.figure("five quintics on [0.001, 1], coefficients", [c for step in s.steps for c in step])
    shipped = polarlib.schedule("cans")
    rows = [
        [k, *ours, *theirs]
        for k, (ours, theirs) in enumerate(zip(s.steps, shipped.steps, strict=True), 1)
    ]
    out.table("list", ["step", *(f"{c}, {w}" for w in ("ours", "shipped") for c in "abc")], rows)
    # What four decimals cost.
    out.figure("errors on [0.001, 1], exact and with four decimals", [s.error(), shipped.error()])


def schedules(lower: float, steps: int) -> dict[str, Schedule]:
    """Newton-Schulz and the best compositions, for singular values from `lower` to 1."""
    found = {
        "Newton–Schulz 3": polarlib.schedule("newton_schulz_3", steps=steps),
        "Newton–Schulz 5": polarlib.schedule("newton_schulz_5", steps=steps),
        "CANS, degree 3": design.greedy(lower, [3] * steps),
        "CANS, degree 5": design.greedy(lower, [5] * steps),
    }
    return {name: replace(s, normalisation="none") for name, s in found.items()}


LOOKS = {
    "Newton–Schulz 3": (plot.BLUE, "--", "o"),
    "Newton–Schulz 5": (plot.VERMILLION, "--", "s"),
    "CANS, degree 3": (plot.BLUE, "-", "o"),
    "CANS, degree 5": (plot.VERMILLION, "-", "s"),
}


def convergence(out: Output, n: int) -> Figure:
    """Orthogonality against products, on matrices whose extreme singular values are known."""
    rng = np.random.default_rng(0)
    matrices = {
        "Gaussian, m = 2n": rng.standard_normal((2 * n, n)),
        "condition 1e3": testing.with_singular_values(np.geomspace(1, 1e-3, n), seed=1),
        "condition 1e6": testing.with_singular_values(np.geomspace(1, 1e-6, n), seed=2),
    }
    fig, axes = panels(1, 3, width=TWO_COLUMNS, height=2.9, sharey=True)
    rows, ratios = [], []
    for ax, (name, a) in zip(axes, matrices.items(), strict=True):
        sigma = np.linalg.svd(a, compute_uv=False)
        a = a / (sigma[0] * (1 + SLACK))
        needed: dict[str, float] = {}
        for method, s in schedules(sigma[-1] / sigma[0] * (1 - 2 * SLACK), STEPS).items():
            t = polarlib.measure(a, s)
            reached = np.flatnonzero(t.orthogonality <= GOAL)
            needed[method] = float(t.matmuls[reached[0]]) if reached.size else math.inf
            colour, line, marker = LOOKS[method]
            last = (reached[0] if reached.size else t.n_steps) + 1
            ax.semilogy(
                t.matmuls[:last],
                t.orthogonality[:last],
                color=colour,
                linestyle=line,
                marker=marker,
                markersize=2.5,
                label=method if ax is axes[0] else None,
            )
            rows.append([name, f"{sigma[0] / sigma[-1]:.4g}", method, f"{needed[method]:g}"])
        ratios.append(needed["CANS, degree 3"] / needed["Newton–Schulz 3"])
        ax.set_title(name)
        ax.set_xlabel("matrix products")
        ax.set_ylim(1e-16, 30)
    axes[0].set_ylabel("orthogonality ‖XᵀX − I‖_F/√n")
    fig.legend(loc="outside lower center", ncols=4)
    columns = ["matrix", "condition", "method", f"products to orthogonality {GOAL:g}"]
    out.table("convergence", columns, rows)
    out.figure("products of CANS of degree 3 over those of Newton–Schulz", ratios)
    return fig


# -- bands -----------------------------------------------------------------------------------


def bands(out: Output, most: int) -> Figure:
    """Widest interval that is mapped into [1 - delta, 1 + delta]."""
    fig, (ends, slopes) = panels(1, 2, width=TWO_COLUMNS, height=2.9)
    rows, excess = [], 0.0
    for degree, (colour, marker) in DEGREES.items():
        for delta, line in zip(BANDS, ("-", "--", ":"), strict=True):
            found = [design.band(k, delta, degree=degree) for k in range(1, most + 1)]
            excess = max(excess, *(abs(s.error() / delta - 1) for s in found))
            products = [s.matmuls for s in found]
            how = {"color": colour, "linestyle": line, "marker": marker}
            label = f"degree {degree}, δ = {delta:g}"
            ends.semilogy(products, [s.lower for s in found], label=label, **how)
            slopes.semilogy(products, [s.slope for s in found], **how)
            for k, s in enumerate(found, 1):
                numbers = (s.lower, s.slope, s.error())
                rows.append([degree, delta, k, s.matmuls, *(f"{v:.6g}" for v in numbers)])
    jordan = polarlib.schedule("jordan", steps=5)
    slopes.plot(jordan.matmuls, jordan.slope, "*", color=plot.ORANGE, markersize=9)
    slopes.annotate(
        "jordan", (jordan.matmuls, jordan.slope), textcoords="offset points", xytext=(6, -8)
    )
    for ax in (ends, slopes):
        ax.set_xlabel("matrix products")
    ends.set_ylabel("lower end a of the interval [a, 1]")
    slopes.set_ylabel("slope at 0")
    fig.legend(loc="outside lower center", ncols=3)
    columns = ["degree", "delta", "steps", "products", "a", "slope at 0", "error"]
    out.table("bands", columns, rows)
    out.figure("bands: error over delta, farthest from 1 by", excess)
    out.figure("stationary step of the band [0.7, 1.3]", design.stationary(0.3).steps[0])
    return fig


def study(out: Output, quick: bool) -> None:
    out.plot(
        "step",
        one_step(out),
        "Left: best odd polynomials of degrees 3 and 5 on [0.1, 1], and Newton–Schulz. Right: "
        "ratio of the ends of an interval after one step; dashed, Newton–Schulz on [a, 1].",
    )
    published(out)
    out.plot(
        "convergence",
        convergence(out, 48 if quick else 256),
        "Orthogonality against matrix products, double precision, every matrix divided by its "
        "largest singular value, the smallest known to CANS. "
        f"Lines end where {GOAL:g} is reached.",
    )
    out.plot(
        "bands",
        bands(out, 4 if quick else 8),
        "Widest interval [a, 1] that compositions map into [1 − δ, 1 + δ], and their slope at 0; "
        "Jordan's five steps keep to no narrower band than δ = 0.32 from 0.0092 on.",
    )
    out.note(
        "With known extreme singular values a composition of best steps needs a part of the "
        "products that Newton–Schulz does, the smaller the worse the condition: both end in the "
        "same quadratic (cubic) convergence, and differ in how they get there."
    )


if __name__ == "__main__":
    main(study, __file__)
