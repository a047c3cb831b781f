"""The Gram form: what it saves, why it must start again, and when."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import Figure, Output, main, panels

import polarlib
from polarlib import Schedule, design, plot, testing
from polarlib.arrays.formats import FORMATS, Format
from polarlib.arrays.ops import ops_of
from polarlib.arrays.rounded import round_to
from polarlib.engine.iterate import matrix_products

# The model of gram-newton-schulz, restart_autotune.py: every eigenvalue of a Gram matrix is off by
# this, and singular values are these.
PERTURBATION = -4e-4
MODEL = np.logspace(0, -10, 10000)
MODELLED = ("polar_express_105", "you")
# Sets with room above 1; without, no form survives.
ROOMY = ("polar_express", "polar_express_102", "polar_express_105", "you", "jordan")
RULES = {"none": (), "after 1": (1,), "after 2": (2,), "after 3": (3,), "1 and 3": (1, 3)}
SHOWN = "log 1e-7"  # the spectrum in the picture of the eigenvalues of R
CEILING = 1e6  # of what is drawn: beyond, a result is noise
# What a product with a symmetric result costs, without and with a kernel for it.
FULL, HALF = 1.0, 0.5
FORMATS_16 = ("bfloat16", "float16")
SHAPES = ((512, 64), (256, 192), (768, 96))
# What --quick takes of the stress test: the matrices that decide its largest values.
HARD = (
    ((256, 192), "three clusters", 1),
    ((512, 64), "half log-uniform, half zero", 1),
    ((512, 64), "log 1e-7", 1),
    ((512, 64), "rank two", 0),
)
# Root mean square of a rounding over the unit roundoff, significands distributed as 1/x in [1, 2).
RMS_ROUNDING = math.sqrt(1 / (8 * math.log(2)))


# -- products --------------------------------------------------------------------------------


def work(steps: int, aspect: float, restarts: int | None, symmetric: float) -> float:
    """Operations of quintic steps, in products of n x n matrices; plain form for None.

    Products with X cost m/n of that; `symmetric` is what a product with a symmetric result costs.
    """
    quintics = [(1.0, 1.0, 1.0)] * steps
    if restarts is None:
        large, total = 2 * steps, matrix_products(quintics)
    else:
        at = range(1, restarts + 1)
        large, total = 2 * (restarts + 1), matrix_products(quintics, form="gram", restarts=at)
    # Half of the large ones are Gram matrices.
    return large / 2 * aspect * (1 + symmetric) + (total - large) * symmetric


def saved(aspect: float, restarts: int, symmetric: float) -> float:
    """Share of the operations of the plain form that the Gram form does without, five quintics."""
    return 1 - work(5, aspect, restarts, symmetric) / work(5, aspect, None, symmetric)


def products(out: Output, quick: bool) -> None:
    """Work saved against the aspect ratio."""
    by_restarts = [100 * saved(4, k, FULL) for k in range(3)]
    out.figure("saved at m/n = 4 with 0, 1, 2 restarts, percent", by_restarts)
    out.figure("saved at m/n = 4 with symmetric products, percent", 100 * saved(4, 0, HALF))
    # design.costs counts the same without restarts.
    costs = design.costs((4, 1), form="gram", degrees=(5,))
    plain = design.costs((4, 1), degrees=(5,))
    told = 1 - (costs[0] + 5 * costs[5]) / (5 * plain[5])
    out.figure("saved at m/n = 4 by the cost model of the designs, percent", 100 * told)
    fig, (ax,) = panels(height=2.5)
    aspects = np.geomspace(1, 16, 81)
    for k, look in enumerate(((plot.BLUE, "-"), (plot.ORANGE, "--"), (plot.GREEN, "-."))):
        for symmetric, label, width in (
            (FULL, f"{k} restart{'s' * (k != 1)}", 1.0),
            (HALF, "", 0.5),
        ):
            share = [100 * saved(r, k, symmetric) for r in aspects]
            ax.plot(aspects, share, look[1], color=look[0], linewidth=width, label=label or None)
    ax.axhline(0, color=plot.INK, linewidth=0.6)
    ax.set_xscale("log", base=2)
    ax.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    ax.set_ylim(-60, 80)
    ax.set_xlabel("aspect ratio m/n")
    ax.set_ylabel("operations saved (%)")
    ax.legend(loc="lower right")
    columns = [f"{k} restarts{half}" for half in ("", ", symmetric at half") for k in range(3)]
    rows = [
        [r, *(f"{100 * saved(r, k, s):.1f}" for s in (FULL, HALF) for k in range(3))]
        for r in (1, 1.5, 2, 3, 4, 8, 16)
    ]
    out.table("saved", ["m/n", *columns], rows)
    out.plot(
        "products",
        fig,
        "Operations that the Gram form saves against the plain form, five quintic steps, by aspect "
        "ratio. Thin lines: products with a symmetric result at half their cost.",
    )


# -- the model of the authors ----------------------------------------------------------------


def condition_of_q(s: Schedule, restarts: Sequence[int]) -> float:
    """Largest condition number of Q where all Gram matrices' eigenvalues are off by a little."""
    x, worst = MODEL.copy(), 1.0
    r, q = x**2 + PERTURBATION, np.ones_like(x)
    with np.errstate(over="ignore", invalid="ignore"):
        for k, (a, b, c) in enumerate(s.steps, 1):
            z = a + r * (b + r * c)
            q, r = q * z, r * z**2
            size = np.abs(q)
            worst = max(worst, float(size.max() / size.min()))
            if k in restarts:
                x = x * q
                r, q = x**2 + PERTURBATION, np.ones_like(x)
    return worst


def model(out: Output, quick: bool) -> None:
    """What the authors' model says of restarts."""
    rows, none, one, best = [], [], [], []
    for name in MODELLED:
        s = polarlib.schedule(name, steps=5)
        by_rule = {
            at: condition_of_q(s, at)
            for count in (0, 1, 2)
            for at in combinations(range(1, 5), count)
        }
        none.append(by_rule[()])
        one.append(by_rule[(2,)])
        best.append(min((k for k in by_rule if len(k) == 1), key=by_rule.__getitem__)[0])
        for at, condition in by_rule.items():
            rows.append([name, " ".join(map(str, at)) or "none", f"{condition:.6g}"])
    out.figure("condition of Q in the model, no restart", none)
    out.figure("condition of Q in the model, restart after step 2", one)
    out.figure("best single restart in the model", best)
    out.table("model", ["schedule", "restarts after", "condition of Q"], rows)
    out.note(
        "The model takes every eigenvalue of a Gram matrix to be off by -4e-4, about the rounding "
        "of float16, which the authors' code multiplies in. The unit roundoff of bfloat16 is eight "
        "times that of float16, and there one restart is not enough."
    )


# -- eigenvalues of R ------------------------------------------------------------------------


def rounded_gemm(
    fmt: Format, a: np.ndarray, b: np.ndarray, c: np.ndarray, beta: float
) -> np.ndarray:
    """``a b + beta c`` as the hardware does it: accumulated in single precision, rounded once."""
    y = a @ b
    if beta:
        y = y + c * np.float32(beta)
    return round_to(y, fmt, ops_of(y))


def eigenvalues(
    a: np.ndarray, s: Schedule, precision: str, restarts: Iterable[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Smallest eigenvalue of R before every step, relative to its largest; and the result.

    The Gram form written out once more, on rounded arrays, since the library shows no R.
    """
    fmt = FORMATS[precision]
    x = (a / (s.input_safety * np.linalg.norm(a))).astype(np.float32)
    x = round_to(x, fmt, ops_of(x))
    least, q, r = [], None, rounded_gemm(fmt, x.T, x, x, 0.0)
    for k, (c0, c1, c2) in enumerate(s.steps, 1):
        values = np.linalg.eigvalsh((r + r.T).astype(float) / 2)
        least.append(values[0] / values[-1])
        square = r @ r
        z = round_to(square * np.float32(c2) + r * np.float32(c1), fmt, ops_of(r))
        ends = k == len(s) or k in restarts
        if q is None and ends:  # a section of one step: no identity is rounded together with Z
            x = rounded_gemm(fmt, x, z, x, c0)
        elif q is None:
            q = z + np.float32(c0) * np.eye(len(z), dtype=np.float32)
            q = round_to(q, fmt, ops_of(q))
        else:
            q = rounded_gemm(fmt, q, z, q, c0)
            x = rounded_gemm(fmt, x, q, x, 0.0) if ends else x
        if ends:
            q, r = None, rounded_gemm(fmt, x.T, x, x, 0.0)
        else:
            r = rounded_gemm(fmt, r, z, r, c0)
            r = rounded_gemm(fmt, z, r, r, c0)
    return np.array(least), x


def edge(a: np.ndarray) -> float:
    """Largest eigenvalue of the rounding errors of a Gram matrix, in units of its own and of u.

    The errors of its entries are independent, so that the error is a symmetric random matrix: its
    eigenvalues fill a semicircle of radius 2 sqrt(n) times their root mean square.
    """
    r = a.T @ a
    rms = RMS_ROUNDING * np.linalg.norm(r) / len(r)
    return float(2 * math.sqrt(len(r)) * rms / np.linalg.norm(r, 2))


def spurious(out: Output, quick: bool) -> None:
    """Smallest eigenvalue of R by step, with and without restarts."""
    a = testing.with_singular_values(testing.spectrum(SHOWN, 64), 512, 64, seed=1)
    rows, gaps, first = [], [], []
    fig, axes = panels(rows=2, height=4.8, sharex=True)
    for ax, precision in zip(axes, FORMATS_16, strict=True):
        unit = FORMATS[precision].unit_roundoff
        least_of = []
        for name, colour, marker in (
            ("polar_express", plot.BLUE, "o"),
            ("you", plot.ORANGE, "s"),
            ("jordan", plot.GREEN, "D"),
        ):
            s = polarlib.schedule(name, steps=5)
            auto = design.restarts(s, precision)
            for at, line in (((), "--"), (auto, "-")):
                with np.errstate(over="ignore", invalid="ignore"):
                    least, x = eigenvalues(a, s, precision, at)
                if at:  # without restarts, what comes out is noise
                    ours = gram(a, s, precision, at)
                    gaps.append(float(np.linalg.norm(ours - x) / np.linalg.norm(ours)))
                negative = np.where(least < 0, -least, np.nan)
                shown = f"{name}, after {', '.join(map(str, at))}" if at else f"{name}, none"
                ax.semilogy(
                    np.arange(1, 6), negative, line, color=colour, marker=marker, label=shown
                )
                rows.append([precision, name, shown, *(f"{v:.4g}" for v in least)])
                least_of.append(-least[0] / unit / edge(a))
        first.append(round(float(max(least_of)), 2))  # the seed changes the first decimal
        ax.axhline(unit, color=plot.INK, linewidth=0.8, linestyle=":")
        ax.annotate("u", (5.2, unit), va="bottom")
        ax.set_title(precision)
        ax.set_ylim(1e-5, 3e6)
        ax.set_ylabel(r"$-\lambda_{\min}(R) / \lambda_{\max}(R)$")
        ax.legend(loc="upper left", title="restarts", ncols=2)
    axes[1].set_xlabel("before step")
    axes[1].set_xticks(range(1, 6))
    axes[1].set_xlim(0.8, 5.4)
    columns = ["format", "schedule", "restarts", *(f"before step {k}" for k in range(1, 6))]
    out.table("spurious", columns, rows)
    out.figure("the form written out against the library, relative difference", max(gaps))
    out.figure("most negative eigenvalue of a first Gram matrix, over the semicircle's edge", first)
    out.plot(
        "spurious",
        fig,
        f"Negative eigenvalues of the Gram matrix R before every step, spectrum {SHOWN!r}: without "
        "restarts (dashed) they grow by the square of a step's slope; restarts as "
        "polarlib.design.restarts chooses them (solid) set them back to u. No marker: none is "
        "negative.",
    )


def gram(a: np.ndarray, s: Schedule, precision: str, restarts: Sequence[int]) -> np.ndarray:
    """The library's Gram form, which may overflow."""
    with warnings.catch_warnings(), np.errstate(over="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", polarlib.ScheduleWarning)
        return polarlib.orthogonalize(
            a.astype(np.float32), schedule=s, precision=precision, form="gram", restarts=restarts
        )


# -- the stress test -------------------------------------------------------------------------


def top(q: np.ndarray) -> float:
    return float(np.linalg.norm(q.astype(float), 2)) if np.isfinite(q).all() else float("inf")


def cases(quick: bool) -> list[tuple[tuple[int, int], str, int]]:
    """Shape, spectrum and seed of the matrices of the stress test."""
    if quick:
        return list(HARD)
    return [(m_n, name, seed) for m_n in SHAPES for name in testing.SPECTRA for seed in range(2)]


def worst_values(out: Output, quick: bool) -> dict[tuple[str, str, str], float]:
    """Largest singular value of results by format, schedule and restart rule."""
    rules = (*RULES, "automatic", "plain form")
    worst = {(p, n, r): 0.0 for p in FORMATS_16 for n in ROOMY for r in rules}
    for (m, n), spectrum, seed in out.steps(cases(quick), "largest singular values"):
        a = testing.with_singular_values(testing.spectrum(spectrum, n), m, n, seed=seed)
        for precision, name, rule in worst:
            s = polarlib.schedule(name, steps=5)
            if rule == "plain form":
                q = polarlib.orthogonalize(
                    a.astype(np.float32), schedule=s, precision=precision, form="plain"
                )
            else:
                q = gram(a, s, precision, RULES.get(rule, design.restarts(s, precision)))
            worst[precision, name, rule] = max(worst[precision, name, rule], top(q))
    return worst


def stress(out: Output, quick: bool) -> None:
    """Largest singular value of results, over spectra and shapes, by restart rule."""
    worst = worst_values(out, quick)

    def largest(precision: str, rule: str, sets: Sequence[str] = ROOMY, over: str = "") -> float:
        """Over the sets; above that of another rule, if there is one."""
        values = (
            worst[precision, n, rule] - (worst[precision, n, over] if over else 0) for n in sets
        )
        return max(values)

    excess = max(largest(p, "automatic", over="plain form") for p in FORMATS_16)
    out.figure("automatic restarts, largest singular value above plain form", excess)
    for k in (2, 3):
        of_one = largest("bfloat16", f"after {k}")
        out.figure(f"one restart after step {k}, bfloat16, largest singular value", of_one)
    at_16 = largest("float16", "after 2", MODELLED, "plain form")
    out.figure("one restart after step 2, float16, largest above plain form", at_16)
    table = [[*key, f"{value:.5g}"] for key, value in worst.items()]
    out.table("stress", ["format", "schedule", "restarts", "largest singular value"], table)
    out.plot(
        "stress",
        draw_stress(worst),
        f"Largest singular value over {len(cases(quick))} matrices, by restart rule; values above "
        f"{CEILING:.0e}, and results that are not finite, are at the upper edge.",
    )


def draw_stress(worst: dict[tuple[str, str, str], float]) -> Figure:
    rules = list(dict.fromkeys(rule for _, _, rule in worst))
    fig, axes = panels(rows=2, height=5.0, sharex=True)
    places = np.arange(len(rules))
    looks = zip(
        (plot.BLUE, plot.SKY, plot.VERMILLION, plot.ORANGE, plot.GREEN), "osD^v", strict=True
    )
    for ax, precision in zip(axes, FORMATS_16, strict=True):
        ax.set_title(precision)
        ax.set_ylim(0.05, 2 * CEILING)
        ax.set_ylabel("largest singular value − 1")
    for i, (name, (colour, marker)) in enumerate(zip(ROOMY, looks, strict=True)):
        for ax, precision in zip(axes, FORMATS_16, strict=True):
            values = np.array([worst[precision, name, rule] for rule in rules]) - 1
            ax.semilogy(
                places + 0.13 * (i - (len(ROOMY) - 1) / 2),
                np.clip(np.nan_to_num(values, posinf=CEILING), None, CEILING),
                linestyle="none",
                color=colour,
                marker=marker,
                label=name if ax is axes[0] else None,
            )
    axes[1].set_xticks(places, rules, rotation=40, ha="right")
    axes[1].set_xlabel("restarts")
    fig.legend(loc="outside lower center", ncols=3)
    return fig


def study(out: Output, quick: bool) -> None:
    products(out, quick)
    model(out, quick)
    spurious(out, quick)
    stress(out, quick)


if __name__ == "__main__":
    main(study, __file__)
