"""Chebyshev-type polynomials for Newton-Schulz: the best step, compositions of it, and bands."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import Output, main, panels

import polarlib
from polarlib import Schedule, design, plot, testing

LOWERS = (1e-1, 1e-3, 1e-6)  # lower ends at which the error of one step is compared
VANISHING = 1e-13  # a lower end at which rho / l has the digits of its limit
BANDS = (0.3, 0.1, 0.01)
DEGREES = {3: (plot.BLUE, "o"), 5: (plot.VERMILLION, "s")}
STEPS = 40
SLACK = 1e-9  # relative uncertainty of the extreme singular values
GOAL = 1e-12  # orthogonality at which the products are counted

# The methods, as functions of their own so that a test can replace them by others.
best = design.best
compose = design.greedy
widest = design.band
stationary = design.stationary
ASSUMED = 1.0  # the lower end that CANS assumes, over the smallest singular value


def cubic(l: float, u: float) -> tuple[tuple[float, float], float]:
    """Coefficients and error of the best odd cubic on [l, u], in closed form."""
    alpha = math.sqrt(3 / (l * l + l * u + u * u))
    s = l * u * (l + u) * alpha**3
    scale = 4 / (2 + s)
    return (1.5 * scale * alpha, -0.5 * scale * alpha**3), (2 - s) / (2 + s)


# -- one step --------------------------------------------------------------------------------


def one_step(out: Output, quick: bool) -> None:
    """The closed form against the exchange, and errors against those of another solver."""
    gap = 0.0
    rows = []
    for l in (0.9, 0.5, 0.1, 1e-2, 1e-3, 1e-6, 1e-9):
        for u in (1.0, 1.7):
            coefficients, error = cubic(l * u, u)
            found = best(3, l * u, u)
            pairs = [*zip(coefficients, found.coefficients, strict=True), (error, found.error)]
            apart = max(abs(a - b) / abs(b) for a, b in pairs)
            gap = max(gap, apart)
            rows.append([l * u, u, *coefficients, error, apart])
    columns = ["lower", "upper", "a", "b", "error", "relative difference to the exchange"]
    out.table("cubic", columns, rows)
    out.figure("closed form of the cubic against the exchange", gap)
    for degree in DEGREES:
        errors = [float(best(degree, l).error) for l in LOWERS]
        out.figure(f"degree {degree}: error of one step", errors)
        limit = float(best(degree, VANISHING).rho) / VANISHING
        out.figure(f"degree {degree}: limit of rho / l", limit)


def picture(out: Output, quick: bool) -> None:
    """The best polynomials and Newton-Schulz, and what one step does to an interval."""
    fig, (upper, lower) = panels(2, height=4.4)
    x = np.linspace(0, 1, 600)
    for degree, (colour, _) in DEGREES.items():
        s = design.minimax(degree, 0.1)
        line = {3: "-", 5: "-."}[degree]
        upper.plot(x, s(x), line, color=colour, label=f"best of degree {degree}")
        ns = polarlib.schedule(f"newton_schulz_{degree}", steps=1)
        dashed = {3: "--", 5: ":"}[degree]
        upper.plot(x, ns(x), dashed, color=colour, label=f"Newton–Schulz {degree}")
        ls = np.geomspace(1e-4, 0.95, 120)
        lower.loglog(ls, [float(best(degree, l).rho) for l in ls], line, color=colour)
        low = [(min(ns(l), ns(1.0)), ns.image(l, 1.0)[1]) for l in ls]
        lower.loglog(ls, [a / b for a, b in low], dashed, color=colour)
    upper.axvline(0.1, color=plot.INK, linewidth=0.6, linestyle=(0, (1, 3)))
    upper.axhline(1.0, color=plot.INK, linewidth=0.6)
    upper.set_xlabel("singular value x")
    upper.set_ylabel("p(x), designed for [0.1, 1]")
    lower.loglog(ls, ls, color=plot.INK, linewidth=0.6, label="no step")
    lower.set_xlabel("ratio of the ends before the step")
    lower.set_ylabel("ratio of the ends after it")
    lower.legend(loc="upper left")
    fig.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    out.plot(
        "step",
        fig,
        "Top: best odd polynomials of degrees 3 and 5 on [0.1, 1], and Newton–Schulz. Bottom: "
        "ratio of the ends of an interval after one step, with the same lines.",
    )


# -- compositions ----------------------------------------------------------------------------


def published(out: Output, quick: bool) -> None:
    """Two lists of coefficients that are said to be CANS, recomputed."""
    s = compose(1e-3, [5] * 5)
    out.figure("five steps of degree 5 on [0.001, 1]", [c for step in s.steps for c in step])
    listed = polarlib.schedule("cans")
    rows = [
        [k, *ours, *theirs]
        for k, (ours, theirs) in enumerate(zip(s.steps, listed.steps, strict=True), 1)
    ]
    out.table("list", ["step", *(f"{c}, {w}" for w in ("ours", "printed") for c in "abc")], rows)
    # What four decimals cost.
    out.figure("errors on [0.001, 1], exact and with four decimals", [s.error(), listed.error()])
    cubics = compose(8.5e-4, [3] * 9)
    out.figure("nine steps of degree 3 on [0.00085, 1], a", [a for a, _ in cubics.steps])
    # The list has this coefficient divided by 1.01, without a reason given there.
    out.figure("nine steps of degree 3 on [0.00085, 1], b", [b / 1.01 for _, b in cubics.steps])


def schedules(lower: float, steps: int) -> dict[str, Schedule]:
    """Newton-Schulz and the best compositions, for singular values from `lower` to 1."""
    found = {
        "Newton–Schulz 3": polarlib.schedule("newton_schulz_3", steps=steps),
        "Newton–Schulz 5": polarlib.schedule("newton_schulz_5", steps=steps),
        "CANS, degree 3": compose(lower * ASSUMED, [3] * steps),
        "CANS, degree 5": compose(lower * ASSUMED, [5] * steps),
    }
    return {name: replace(s, normalisation="none") for name, s in found.items()}


LOOKS = {
    "Newton–Schulz 3": (plot.BLUE, "--", "o"),
    "Newton–Schulz 5": (plot.VERMILLION, ":", "s"),
    "CANS, degree 3": (plot.BLUE, "-", "o"),
    "CANS, degree 5": (plot.VERMILLION, "-.", "s"),
}


def convergence(out: Output, quick: bool) -> None:
    """Orthogonality against products, on matrices whose extreme singular values are known."""
    n = 48 if quick else 256
    rng = np.random.default_rng(0)
    matrices = {
        "Gaussian, m = 2n": rng.standard_normal((2 * n, n)),
        r"condition $10^3$": testing.with_singular_values(np.geomspace(1, 1e-3, n), seed=1),
        r"condition $10^6$": testing.with_singular_values(np.geomspace(1, 1e-6, n), seed=2),
    }
    fig, axes = panels(3, height=6.0, sharey=True)
    rows, ratios = [], []
    tried = out.steps(list(zip(axes, matrices.items(), strict=True)), "convergence")
    for ax, (name, a) in tried:
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
            rows.append(
                [
                    name.replace("$", ""),
                    f"{sigma[0] / sigma[-1]:.4g}",
                    method,
                    f"{needed[method]:g}",
                ]
            )
        ratios.append(needed["CANS, degree 3"] / needed["Newton–Schulz 3"])
        ax.set_title(name)
        ax.set_ylim(1e-16, 30)
    axes[-1].set_xlabel("matrix products")
    axes[1].set_ylabel(r"orthogonality $\|X^{\mathsf{T}} X - I\|_F / \sqrt{n}$")
    fig.legend(loc="outside lower center", ncols=2)
    columns = ["matrix", "condition", "method", f"products to orthogonality {GOAL:g}"]
    out.table("convergence", columns, rows)
    out.figure("products of CANS of degree 3 over those of Newton–Schulz", ratios)
    out.plot(
        "convergence",
        fig,
        f"Orthogonality against matrix products, double precision, n = {n}, every matrix divided "
        "by its largest singular value, the smallest known to CANS. "
        f"Lines end where {GOAL:g} is reached.",
    )


# -- bands -----------------------------------------------------------------------------------


def bands(out: Output, quick: bool) -> None:
    """Widest interval that is mapped into [1 - delta, 1 + delta]."""
    most = 4 if quick else 8
    fig, (ends, slopes) = panels(2, height=5.0, sharex=True)
    rows, excess = [], 0.0
    for degree, (colour, marker) in DEGREES.items():
        for delta, line in zip(BANDS, ("-", "--", ":"), strict=True):
            found = [widest(k, delta, degree=degree) for k in range(1, most + 1)]
            excess = max(excess, *(abs(s.error() / delta - 1) for s in found))
            products = [s.matmuls for s in found]
            how = {"color": colour, "linestyle": line, "marker": marker, "markersize": 2.5}
            label = f"degree {degree}, δ = {delta:g}"
            ends.semilogy(products, [s.lower for s in found], label=label, **how)
            slopes.semilogy(products, [s.slope for s in found], **how)
            for k, s in enumerate(found, 1):
                numbers = (s.lower, s.slope, s.error())
                rows.append([degree, delta, k, s.matmuls, *(f"{v:.6g}" for v in numbers)])
    jordan = polarlib.schedule("jordan", steps=5)
    slopes.plot(jordan.matmuls, jordan.slope, "*", color=plot.INK, markersize=7)
    slopes.annotate(
        "Jordan", (jordan.matmuls, jordan.slope), textcoords="offset points", xytext=(5, -8)
    )
    slopes.set_xlabel("matrix products")
    ends.set_ylabel("lower end a of the interval [a, 1]")
    slopes.set_ylabel("slope at 0")
    fig.legend(loc="outside lower center", ncols=2)
    columns = ["degree", "delta", "steps", "products", "a", "slope at 0", "error"]
    out.table("bands", columns, rows)
    out.figure("bands: error over delta, farthest from 1 by", excess)
    out.figure("stationary step of the band [0.7, 1.3]", stationary(0.3).steps[0])
    out.plot(
        "bands",
        fig,
        "Widest interval [a, 1] that compositions map into [1 − δ, 1 + δ], and their slope at 0. "
        "Jordan's five steps have no narrower band than δ = 0.32, from 0.0092 on.",
    )


def study(out: Output, quick: bool) -> None:
    one_step(out, quick)
    published(out, quick)
    convergence(out, quick)
    picture(out, quick)
    bands(out, quick)
    out.note(
        "With known extreme singular values a composition of best steps needs a part of the "
        "products that Newton–Schulz needs, the smaller the larger the condition number. Both "
        "have the same order of convergence once all singular values are near 1."
    )


if __name__ == "__main__":
    main(study, __file__)
