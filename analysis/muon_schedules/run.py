"""Muon's schedules: what each makes of a singular value, and what it could have made of it."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import Output, main, panels
from matplotlib.figure import Figure

import polarlib
from polarlib import Schedule, design, files, plot

LOWER = 1e-3  # the interval that most sets are designed for
STEPS = 5
SEEN_FROM = 0.01  # singular values for which the band of Jordan's polynomial is looked at
PRECISION = "bfloat16"
DEFAULT, ADAPTIVE = "auto", "adaptive"  # polarlib's own: schedules of orthogonalize
BEST = "best in bfloat16"  # design.for_precision on [LOWER, 1]
# What is drawn, and how: the sets that Muon began with, and those published since.
OLDER = {
    "newton_schulz_5": (plot.INK, ":", ""),
    "jordan": (plot.ORANGE, "-", "o"),
    "you": (plot.SKY, "--", "s"),
    "cubic5": (plot.PURPLE, "-.", "D"),
    "deepseek_v4": (plot.VERMILLION, "--", "^"),
    "polar_express": (plot.BLUE, "-", "v"),
    DEFAULT: (plot.GREEN, "-", "*"),
}
NEWER = {
    "simple_quintic": (plot.INK, ":", ""),
    "modula": (plot.ORANGE, "-", "o"),
    "cesista": (plot.SKY, "--", "s"),
    "root_2048x16384": (plot.PURPLE, "-.", "D"),
    "you_6": (plot.VERMILLION, "--", "^"),
    "gefen_4": (plot.BLUE, "-", "v"),
    DEFAULT: (plot.GREEN, "-", "*"),
}
OVER_PRODUCTS = {
    "newton_schulz_5": (plot.INK, ":", "x"),
    "simple_quintic": (plot.INK, "--", "+"),
    "jordan": (plot.ORANGE, "-", "o"),
    "cubic5": (plot.PURPLE, "-.", "D"),
    "polar_express": (plot.BLUE, "-", "v"),
    "polar_express_1e4": (plot.SKY, "--", "s"),
    BEST: (plot.VERMILLION, "-", "P"),
    DEFAULT: (plot.GREEN, "-", "*"),
}
# The three that are drawn, and all that --quick measures.
MATRICES = {
    "transformer_mlp_in_late": (plot.BLUE, "o"),
    "transformer_attention_out_late": (plot.ORANGE, "s"),
    "transformer_mlp_out_early": (plot.INK, "^"),
}
PRODUCTS = 15  # of five steps of degree 5
FRONTIER = 22  # products: beyond, the least error is below what doubles can tell


@functools.cache
def best(steps: int = STEPS) -> Schedule:
    """Best schedule on [LOWER, 1] for iterating in bfloat16."""
    return design.for_precision("bfloat16", LOWER, steps=steps)


def found(name: str) -> Schedule:
    """The schedule of a name of this study."""
    if name == BEST:
        return best()
    return polarlib.default_schedule(PRECISION) if name == "auto" else polarlib.schedule(name)


def of_length(name: str, k: int) -> Schedule | None:
    """The first k steps; none where a list is shorter and does not repeat."""
    if name == BEST:
        return best(k)
    if name == "auto":
        return polarlib.default_schedule(PRECISION, steps=k)
    try:
        return polarlib.schedule(name, steps=k)
    except ValueError:
        return None


def polar_sets() -> tuple[str, ...]:
    """Published sets for the polar factor: not those for inverse square roots and for clipping."""
    every = ((name, polarlib.schedule(name)) for name in polarlib.schedules())
    return tuple(n for n, s in every if s.target == "polar" and s.normalisation != "spectral")


def safe_sets() -> tuple[str, ...]:
    """Those of them that take a gradient over its Frobenius norm, also if it is rounded."""
    return tuple(
        name
        for name in polar_sets()
        if (s := polarlib.schedule(name)).is_safe_in(PRECISION)
        and (s.normalisation, s.upper) == ("frobenius", 1.0)
    )


# -- numbers of one variable -----------------------------------------------------------------


def stationary() -> tuple[float, ...]:
    """Coefficients of the steepest step that keeps [0.7, 1.3]."""
    return tuple(float(c) for c in design.stationary(0.3).steps[0])


def quality(name: str) -> str:
    return f"{name}: smallest, largest, divergence limit"


def scalars(out: Output, quick: bool) -> None:
    """What the compositions do to numbers."""
    jordan = polarlib.schedule("jordan", steps=STEPS)
    out.figure("slope of five steps of jordan", jordan.slope)
    out.figure("jordan, five steps, values on [0.01, 1]", jordan.image(SEEN_FROM, 1.0))
    out.figure("jordan, five steps, values on [0.01, 1], as coded", jordan.image(SEEN_FROM, 1.0))
    out.figure("stationary step of the band [0.7, 1.3]", stationary())
    out.figure("default schedule, worst error on its interval", found(DEFAULT).error())
    rows = []
    for name in (*polar_sets(), BEST, DEFAULT):
        s = found(name)
        bare = dataclasses.replace(s, input_safety=1.0)  # the notes leave the division out
        low, high = bare.image(LOWER, 1.0)[0], bare.image(0.0, 1.0)[1]
        limit = s.divergence_limit
        row = (low, high, limit, s.slope, s.slope ** (1 / s.matmuls))
        rows.append([name, s.normalisation, len(s), s.matmuls, *(f"{v:.6g}" for v in row)])
        rows[-1].append("yes" if s.is_safe_in(PRECISION) else "no")
        if name in QUALITY:
            out.figure(quality(name), (low, high, limit))
    columns = ["schedule", "normalisation", "steps", "products", "smallest on [1e-3, 1]"]
    columns += ["largest on (0, 1]", "divergence limit", "slope at 0", "slope per product"]
    out.table("scalars", [*columns, f"safe in {PRECISION}"], rows)
    fastest = polarlib.schedule("polar_express", 5).slope
    least = polarlib.schedule("cubic5").slope
    out.note(
        "Slope at 0 per matrix product: a singular value far below the interval grows by the "
        f"factor {fastest ** (1 / 15):.3f} a product under polar_express and "
        f"{least ** (1 / 10):.3f} under cubic5, whose first step alone is steeper for its cost."
    )


# Of polar_express_1e4, four decimals do not tell one step more from one fewer.
QUALITY = tuple(name for name in polar_sets() if name != "polar_express_1e4")


def curves(out: Output, quick: bool) -> None:
    """Draw compositions as functions: the whole range, and what is near 1."""
    x = np.geomspace(1e-4, 1.0, 6000)
    wide, axes = panels(2, height=4.8, sharex=True)
    near, close = panels(2, height=6.4)
    for sets, whole, part in zip((OLDER, NEWER), axes, close, strict=True):
        part.axhspan(0.7, 1.2, color=plot.ORANGE, alpha=0.12, linewidth=0)
        for i, (name, (colour, line, marker)) in enumerate(sets.items()):
            s = found(name)
            how = {"color": colour, "linestyle": line, "label": f"{name} ({s.matmuls})"}
            how |= {"marker": marker, "markevery": (100 * i, 1000)}
            whole.loglog(x, s(x), **how)
            part.semilogx(x, s(x), **how)
        whole.set_ylim(1e-3, 2)
        whole.set_ylabel("singular value, output")
        whole.legend(loc="lower right", title="set (matrix products)")
        part.set_xlim(LOWER, 0.1)
        part.set_ylim(0.4, 1.35)
        part.set_ylabel("singular value, output")
        part.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=2)
    for ax in (axes[1], *close):
        ax.set_xlabel("singular value of the normalised input")
    out.plot(
        "curves",
        wide,
        "What each schedule makes of a singular value: sets up to 2025 above, newer ones below, "
        "the default schedule in both.",
    )
    out.plot(
        "near",
        near,
        "The same, near 1. Shaded: the band that five steps of jordan are said to end in.",
    )


# -- worst errors ----------------------------------------------------------------------------


def least(degrees: tuple[int, ...]) -> float:
    """Certified least error of a composition of these degrees."""
    return design.least_error(LOWER, degrees)


def products(out: Output, quick: bool) -> None:
    """Worst error on [1e-3, 1] by matrix products, over a floor that nothing is below."""
    floor = {c.cost: c.degrees for c in design.frontier(LOWER, FRONTIER, degrees=(3, 5))}
    bounds = {cost: least(degrees) for cost, degrees in floor.items()}
    out.figure("least error of 15 products, certified", bounds[15])
    out.figure("least error of 17 products, certified", bounds[17])
    out.table(
        "floor",
        ["products", "degrees", "least error, certified"],
        [[c, " ".join(map(str, d)), bounds[c]] for c, d in floor.items()],
    )
    fig, (early, late) = panels(2, height=5.6)
    shown = [(cost, b) for cost, b in bounds.items() if b > 0]
    costs, lowest = (np.array(v) for v in zip(*shown, strict=True))
    # Steps: a product that ends no step of a schedule gains nothing.
    grey = {"color": "#DDDDDD", "linewidth": 0, "step": "post"}
    early.fill_between(costs, 1 - lowest, 2, label="impossible, degrees 3 and 5", **grey)
    late.fill_between(costs, lowest, 1e-16, **grey)
    rows = []
    for name, (colour, line, marker) in out.steps(OVER_PRODUCTS.items(), "errors"):
        points = []
        for k in range(1, 12):
            s = of_length(name, k)
            if s is not None and s.matmuls <= FRONTIER:
                points.append((s.matmuls, s.error(LOWER)))
                rows.append([name, k, *points[-1]])
        x, errors = (np.array(v) for v in zip(*points, strict=True))
        how = {"color": colour, "linestyle": line, "marker": marker, "drawstyle": "steps-post"}
        early.semilogy(x, 1 - errors, label=name, **how)
        late.semilogy(x, errors, **how)
    early.set_xlim(1.7, 12.5)
    early.set_ylim(1e-3, 1)
    early.set_ylabel("1 − worst error on [0.001, 1]")
    late.set_xlim(11.6, 21.5)
    late.set_ylim(1e-10, 1.5)
    late.set_ylabel("worst error on [0.001, 1]")
    for ax, ticks in ((early, range(2, 13, 2)), (late, range(12, 22, 3))):
        ax.set_xticks(ticks)
        ax.set_xlabel("matrix products")
    fig.legend(loc="outside lower center", ncols=2)
    out.table("errors", ["schedule", "steps", "products", "worst error on [1e-3, 1]"], rows)
    out.plot(
        "products",
        fig,
        "Worst error on [0.001, 1] against matrix products, one marker per step: above what it is "
        "below 1 by, below the error. Grey: better than the certified least error of any "
        "composition of degrees 3 and 5.",
    )


# -- gradients -------------------------------------------------------------------------------


def measured(matrix: str, name: str, precision: str) -> polarlib.Trace:
    """One schedule on one gradient."""
    what = best() if name == BEST else name
    return polarlib.measure(files.sample_matrices()[matrix], what, precision=precision)


def gradients(out: Output, quick: bool) -> None:
    """Distance to the polar factor of real gradients."""
    names = (*safe_sets(), BEST, DEFAULT, ADAPTIVE)
    matrices = tuple(MATRICES if quick else files.sample_metadata())
    formats = (PRECISION,) if quick else (PRECISION, "float32")
    cases = [(p, m, n) for p in formats for m in matrices for n in dict.fromkeys(names)]
    traces = {case: measured(case[1], case[2], case[0]) for case in out.steps(cases, "gradients")}
    rows = []
    for (precision, matrix, name), t in traces.items():
        start, end = t.singular_values[0], t.singular_values[-1]
        within = end[start >= LOWER]
        numbers = (t.distance[-1], within.min(), within.max(), t.orthogonality[-1])
        rows.append([matrix, precision, name, t.matmuls[-1], *(f"{v:.5g}" for v in numbers)])
    columns = ["matrix", "format", "schedule", "products", "distance", "smallest", "largest"]
    out.table("gradients", [*columns, "orthogonality"], rows)

    def largest(name: str) -> float:
        ends = [traces[PRECISION, m, name].singular_values[-1] for m in matrices]
        return float(max(end.max() for end in ends))

    def nearest(matrix: str) -> float:
        equal = [n for n in safe_sets() if polarlib.schedule(n).matmuls <= PRODUCTS]
        return float(min(traces[PRECISION, matrix, n].distance[-1] for n in equal))

    def share(name: str) -> float:
        near = [traces[PRECISION, m, name].distance[-1] <= 1.02 * nearest(m) for m in matrices]
        return sum(near) / len(near)

    out.figure("largest singular value of the best design in bfloat16, gradients", largest(BEST))
    out.figure("largest singular value of the default in bfloat16, gradients", largest(DEFAULT))
    out.figure("share of gradients on which adaptive is within 2 % of the nearest", share(ADAPTIVE))
    out.note(
        f"On {len(matrices)} gradients in {PRECISION}, the default schedule is within 2 % of the "
        f"nearest published set of at most {PRODUCTS} products, or nearer, on {share(DEFAULT):.0%}."
    )
    last = {n: {m: traces[PRECISION, m, n].distance[-1] for m in MATRICES} for n in names}
    cost = {n: int(traces[PRECISION, matrices[0], n].matmuls[-1]) for n in names}
    out.plot(
        "gradients",
        dots(last, cost),
        "Distance ‖Q − UVᴴ‖_F/√k to the polar factor of three bundled gradient matrices in "
        f"{PRECISION}, with the matrix products that each schedule takes. Own: polarlib's.",
    )


def dots(last: dict[str, dict[str, float]], cost: dict[str, int]) -> Figure:
    """One row per schedule, one marker per matrix, in groups of equal cost."""
    fig, (ax,) = panels(height=4.6)
    ours = (BEST, DEFAULT, ADAPTIVE)

    def group(name: str) -> tuple[int, float]:
        size = 0 if cost[name] < PRODUCTS else 1 if cost[name] == PRODUCTS else 3
        size = 2 if name in ours else size
        return size, math.prod(last[name].values())

    order = sorted(last, key=group)
    places, y, before = {}, 0.0, None
    for name in order:
        y += 1.0 if before in (None, group(name)[0]) else 1.7
        places[name], before = y, group(name)[0]
    for matrix, (colour, marker) in MATRICES.items():
        x = [last[name][matrix] for name in order]
        label = matrix.removeprefix("transformer_")
        ax.semilogx(
            x, list(places.values()), color=colour, marker=marker, linestyle="", label=label
        )
    own = {name: f"own: {name}" for name in ours}
    labels = [f"{own.get(name, name)} ({cost[name]})" for name in order]
    ax.set_yticks(list(places.values()), labels)
    ax.set_ylim(max(places.values()) + 0.8, 0.2)
    ax.set_xlabel("distance to the polar factor")
    fig.legend(loc="outside lower center", ncols=3)
    return fig


def study(out: Output, quick: bool) -> None:
    scalars(out, quick)
    curves(out, quick)
    products(out, quick)
    gradients(out, quick)


if __name__ == "__main__":
    main(study, __file__)
