"""Muon's schedules: what each makes of a singular value, and what it could have made of it."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import polarlib
from polarlib import Schedule, design, files, plot

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import TWO_COLUMNS, Output, main, panels

LOWER = 1e-3  # the interval that most of the field designs for
# Sets of the sources and of what followed them in 2025.
STUDIED = (
    *("newton_schulz_3", "newton_schulz_5", "jordan", "you", "polar_express_raw", "polar_express"),
    *("polar_express_105", "polar_express_102", "cans", "turbo_muon", "aol_nv", "deepseek_v4"),
    "cubic5",
)
# What is drawn, in this order; turbo_muon and aol_nv take another normalisation and are in the
# tables alone.
DRAWN = {
    "newton_schulz_5": ("#222222", ":", "x"),
    "jordan": (plot.ORANGE, "-", "o"),
    "you": (plot.SKY, "-", "s"),
    "cubic5": (plot.PURPLE, "-", "D"),
    "deepseek_v4": (plot.VERMILLION, "-", "^"),
    "polar_express": (plot.BLUE, "-", "v"),
    "polar_express_102": (plot.BLUE, "--", "P"),
    "polar_express_105": (plot.BLUE, "-.", "X"),
    "for_precision": (plot.GREEN, "-", "*"),
}
MATRICES = (
    "transformer_mlp_in_late",
    "transformer_attention_out_late",
    "transformer_mlp_out_early",
)
FRONTIER = 22  # products: beyond, the least error is below what doubles can tell


@functools.cache
def ours(steps: int = 5) -> Schedule:
    """Best schedule for iterating in bfloat16."""
    return design.for_precision("bfloat16", LOWER, steps=steps)


def found(name: str) -> Schedule:
    return ours() if name == "for_precision" else polarlib.schedule(name)


def of_length(name: str, k: int) -> Schedule | None:
    """The first k steps; none where a list is shorter and says nothing of going on."""
    if name == "for_precision":
        return ours(k)
    try:
        return polarlib.schedule(name, steps=k)
    except ValueError:
        return None


# -- numbers of one variable -----------------------------------------------------------------


def scalars(out: Output) -> None:
    """What the compositions do to numbers."""
    jordan = polarlib.schedule("jordan", steps=5)
    out.figure("slope of five steps of jordan", jordan.slope)
    out.figure("jordan, five steps, values on [0.01, 1]", jordan.image(0.01, 1.0))
    out.figure("jordan, five steps, values on [0.01, 1], as coded", jordan.image(0.01, 1.0))
    out.figure("stationary step of the band [0.7, 1.3]", design.stationary(0.3).steps[0])
    rows = []
    for name in (*STUDIED, "for_precision"):
        s = found(name)
        bare = dataclasses.replace(s, input_safety=1.0)  # the notes leave the division out
        low, high = bare.image(LOWER, 1.0)[0], bare.image(0.0, 1.0)[1]
        limit = s.divergence_limit
        per_product = s.slope ** (1 / s.matmuls)
        row = (low, high, limit, s.slope, per_product)
        rows.append([name, s.normalisation, len(s), s.matmuls, *(f"{v:.6g}" for v in row)])
        entry = f"{name}: smallest, largest, divergence limit"
        if entry in QUALITY:
            out.figure(entry, (low, high, limit))
    columns = ["schedule", "normalisation", "steps", "products", "smallest on [1e-3, 1]"]
    columns += ["largest on (0, 1]", "divergence limit", "slope at 0", "slope per product"]
    out.table("scalars", columns, rows)


QUALITY = tuple(
    f"{name}: smallest, largest, divergence limit"
    for name in STUDIED
    if name not in ("newton_schulz_3", "newton_schulz_5", "turbo_muon")
)


def curves() -> Figure:
    """Compositions as functions: the whole range, and what is near 1."""
    fig, (wide, near) = panels(1, 2, width=TWO_COLUMNS, height=3.3)
    x = np.geomspace(1e-4, 1.0, 6000)
    near.axhspan(0.7, 1.2, color=plot.ORANGE, alpha=0.12, linewidth=0)
    near.text(0.0022, 0.71, "[0.7, 1.2]", fontsize=7)
    for name, (colour, line, _) in DRAWN.items():
        s = found(name)
        how = {"color": colour, "linestyle": line, "linewidth": 1.1}
        wide.loglog(x, s(x), label=f"{name} ({s.matmuls})", **how)
        near.semilogx(x, s(x), **how)
    for ax in (wide, near):
        ax.set_xlabel("singular value of the normalised input")
    wide.set_ylabel("singular value of the output")
    wide.set_ylim(1.5e-3, 2)
    near.set_xlim(LOWER, 0.1)
    near.set_ylim(0.4, 1.35)
    fig.legend(loc="outside lower center", ncols=3, title="schedule (matrix products)")
    return fig


# -- worst errors ----------------------------------------------------------------------------


def against_products(out: Output) -> Figure:
    """Worst error on [1e-3, 1] by matrix products, over a floor that nothing is below."""
    floor = design.frontier(LOWER, FRONTIER, degrees=(3, 5))
    bounds = [design.least_error(LOWER, c.degrees) for c in floor]
    by_cost = {c.cost: b for c, b in zip(floor, bounds, strict=True)}
    out.figure("least error of 15 products, certified", by_cost[15])
    out.figure("least error of 17 products, certified", by_cost[17])
    out.table(
        "floor",
        ["products", "degrees", "least error, certified"],
        [[c.cost, " ".join(map(str, c.degrees)), b] for c, b in zip(floor, bounds, strict=True)],
    )
    fig, (early, late) = panels(1, 2, width=TWO_COLUMNS, height=3.6)
    shown = [(c.cost, b) for c, b in zip(floor, bounds, strict=True) if b > 0]
    costs, least = (np.array(v) for v in zip(*shown, strict=True))
    # Steps: a product that ends no step of a schedule gains nothing.
    grey = {"color": "#DDDDDD", "linewidth": 0, "step": "post"}
    early.fill_between(costs, 1 - least, 2, label="impossible in degrees 3 and 5", **grey)
    late.fill_between(costs, least, 1e-16, **grey)
    rows = []
    for name, (colour, line, marker) in DRAWN.items():
        if name == "deepseek_v4":  # its first eight steps are jordan's
            continue
        points = []
        for k in range(1, 11):
            s = of_length(name, k)
            if s is not None and s.matmuls <= FRONTIER:
                points.append((s.matmuls, s.error(LOWER)))
                rows.append([name, k, *points[-1]])
        products, errors = (np.array(v) for v in zip(*points, strict=True))
        how = {"color": colour, "linestyle": line, "marker": marker, "linewidth": 1.0}
        how["drawstyle"] = "steps-post"
        early.semilogy(products, 1 - errors, label=name, **how)
        late.semilogy(products, errors, **how)
    early.set_xlim(1.7, 12.5)
    early.set_ylim(1e-3, 1)
    early.set_ylabel("1 − worst error on [0.001, 1]")
    late.set_xlim(11.6, 21.5)
    late.set_ylim(1e-10, 1.5)
    late.set_ylabel("worst error on [0.001, 1]")
    for ax, ticks in ((early, range(2, 13, 2)), (late, range(12, 22, 3))):
        ax.set_xlabel("matrix products")
        ax.set_xticks(ticks)
    fig.legend(loc="outside lower center", ncols=4)
    out.table("errors", ["schedule", "steps", "products", "worst error on [1e-3, 1]"], rows)
    return fig


# -- gradients -------------------------------------------------------------------------------


def traces(
    names: tuple[str, ...], matrices: tuple[str, ...]
) -> Iterator[tuple[str, str, str, polarlib.Trace]]:
    bundled = files.sample_matrices()
    for precision in ("float32", "bfloat16"):
        for matrix in matrices:
            for name in names:
                s = found(name)
                s = s.truncate(5) if len(s) > 5 else s
                t = polarlib.measure(bundled[matrix], s, precision=precision)
                yield precision, matrix, name, t


def gradients(out: Output, quick: bool) -> Figure:
    """Distance to the polar factor of real gradients, by matrix products, in two formats."""
    names = tuple(name for name in DRAWN if name != "deepseek_v4")  # as jordan, up to 15 products
    names = names[1::2] if quick else names
    fig, axes = panels(2, 3, width=TWO_COLUMNS, height=4.6, sharex=True, sharey=True)
    grid = {
        (p, m): axes[3 * i + j]
        for i, p in enumerate(("float32", "bfloat16"))
        for j, m in enumerate(MATRICES)
    }
    everything = tuple(files.sample_metadata())
    rows, largest = [], 0.0
    for precision, matrix, name, t in traces(names, MATRICES if quick else everything):
        start, end = t.singular_values[0], t.singular_values[-1]
        inside = start >= LOWER
        low, high = end[inside].min(), end[inside].max()
        numbers = (t.matmuls[-1], t.distance[-1], low, high, t.orthogonality[-1])
        rows.append([matrix, precision, name, *(f"{v:.5g}" for v in numbers)])
        if name == "for_precision" and precision == "bfloat16":
            largest = max(largest, high)
        ax = grid.get((precision, matrix))
        if ax is None:
            continue
        colour, line, marker = DRAWN[name]
        ax.semilogy(
            t.matmuls,
            t.distance,
            color=colour,
            linestyle=line,
            marker=marker,
            linewidth=1.0,
            label=name if ax is axes[0] else None,
        )
    for (precision, matrix), ax in grid.items():
        ax.set_title(f"{matrix}\n{precision}" if precision == "float32" else precision)
    for ax in axes[3:]:
        ax.set_xlabel("matrix products")
        ax.set_xticks(range(0, 16, 3))
    for ax in (axes[0], axes[3]):
        ax.set_ylabel("distance to the polar factor")
    fig.legend(loc="outside lower center", ncols=4)
    columns = ["matrix", "format", "schedule", "products", "distance", "smallest", "largest"]
    out.table("gradients", [*columns, "orthogonality"], rows)
    out.figure("largest singular value of for_precision in bfloat16, gradients", largest)
    return fig


def study(out: Output, quick: bool) -> None:
    scalars(out)
    out.plot(
        "curves",
        curves(),
        "What each schedule makes of a singular value. Right: values near 1, and the band that "
        "five steps of jordan are said to end in; above 0.1 the oscillations go on, closer.",
    )
    out.plot(
        "products",
        against_products(out),
        "Worst error on [0.001, 1] against matrix products, one marker a step: left what it is "
        "below 1 by, right the error. Grey: better than the certified least error of any "
        "composition of degrees 3 and 5.",
    )
    out.plot(
        "gradients",
        gradients(out, quick),
        "Distance ‖Q − UVᴴ‖_F/√k to the polar factor of three bundled gradient matrices against "
        "matrix products, in float32 and in bfloat16.",
    )
    fastest = math.log(polarlib.schedule("polar_express", 5).slope) / 15
    least = math.log(polarlib.schedule("cubic5").slope) / 10
    out.note(
        "Slope at 0 per matrix product: a singular value far below the interval grows by the "
        f"factor {math.exp(fastest):.3f} a product under polar_express and {math.exp(least):.3f} "
        "under cubic5, whose first step alone is steeper for its cost."
    )


if __name__ == "__main__":
    main(study, __file__)
