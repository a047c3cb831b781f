"""Schedules in narrow formats: what rounding does to every singular value, and what explodes."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import polarlib
from polarlib import Schedule, design, plot, testing
from polarlib.arrays.formats import FORMATS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import ONE_COLUMN, TWO_COLUMNS, Output, main, panels

# Formats, and the lower end that a design for them is worth having.
LOWER = {
    "float32": 1e-3,
    "tf32": 1e-3,
    "float16": 1e-3,
    "bfloat16": 1e-3,
    "float8_e4m3": 0.03,
    "float8_e5m2": 0.03,
}
STEPS = 8
UNSAFE = {"polar_express_raw": (plot.VERMILLION, "-"), "cans": (plot.BLUE, "--")}
SAFE = ("polar_express", "polar_express_102", "polar_express_105", "you", "jordan", "for_precision")
EXPLODED = 2.0  # a singular value that no schedule reaches in exact arithmetic
LARGEST_SHAPE = 20  # of the small rank-one matrices, where roundings average out least
HOSTILE = ("ones", "rank one", "rank two", "log-uniform 1e-3", "half log-uniform, half zero")


def found(name: str, precision: str = "bfloat16") -> Schedule:
    if name == "for_precision":
        return design.for_precision(precision, LOWER[precision], steps=5)
    return polarlib.schedule(name, steps=5)


# -- paths of singular values ----------------------------------------------------------------


def paths(out: Output, n: int) -> Figure:
    """Every singular value, step by step, in every format, under the format's own schedule."""
    fig, axes = panels(2, 3, width=TWO_COLUMNS, height=4.4, sharex=True, sharey=True)
    a = testing.with_singular_values(np.geomspace(1.0, 1e-3, n), seed=1)
    rows = []
    for ax, (precision, lower) in zip(axes, LOWER.items(), strict=True):
        s = design.for_precision(precision, lower, steps=STEPS)
        t = polarlib.measure(a, s, precision=precision)
        unit = FORMATS[precision].unit_roundoff
        exact = polarlib.measure(a, s, precision="float64").singular_values[0]
        steps = np.arange(len(s) + 1)
        for path, start in zip(t.singular_values.T, exact, strict=True):
            below = start < unit
            ax.semilogy(
                steps,
                path,
                color=plot.ORANGE if below else plot.BLUE,
                linestyle="--" if below else "-",
                linewidth=0.6,
            )
        ax.set_title(f"{precision}, u = {unit:.2g}")
        ax.axhline(1.0, color=plot.INK, linewidth=0.6, linestyle=":")
        end, last = t.singular_values[-1], t.alignment[-1]
        for value, sigma, cosine in zip(exact, end, last, strict=True):
            rows.append([precision, *(f"{v:.5g}" for v in (value, sigma, cosine))])
    for ax in axes[3:]:
        ax.set_xlabel("step")
        ax.set_xticks(range(0, STEPS + 1, 2))
    for ax in (axes[0], axes[3]):
        ax.set_ylabel("singular value")
    axes[0].set_ylim(2e-4, 2)
    axes[0].plot([], [], color=plot.BLUE, label="starts above u")
    axes[0].plot([], [], color=plot.ORANGE, linestyle="--", label="starts below u")
    fig.legend(loc="outside lower center", ncols=2)
    out.table("paths", ["format", "start", "end", "cosine with the exact vector"], rows)
    return fig


def floors(out: Output, sizes: tuple[int, ...]) -> Figure:
    """What is left after convergence, by the unit roundoff."""
    fig, (ax,) = panels(width=ONE_COLUMN, height=3.0)
    rows, ratios = [], []
    names = ("float64", *LOWER)
    for n in sizes:
        a = testing.with_singular_values(np.geomspace(1.0, 0.1, n), seed=2)
        for precision in names:
            unit = FORMATS[precision].unit_roundoff
            lower = LOWER.get(precision, 1e-3)
            t = polarlib.measure(
                a, design.for_precision(precision, lower, steps=9), precision=precision
            )
            error = np.abs(t.singular_values[-1] - 1).max()
            rows.append([precision, n, unit, t.orthogonality[-1], error, t.distance[-1]])
            if n == sizes[-1]:
                ratios.append(t.orthogonality[-1] / unit)
    numbers = np.array([row[2:] for row in rows if row[1] == sizes[-1]], dtype=float)
    order = np.argsort(numbers[:, 0])
    labels = ("orthogonality", "worst |1 − σ|", "distance to the polar factor")
    for i, (label, colour) in enumerate(
        zip(labels, (plot.BLUE, plot.VERMILLION, plot.GREEN), strict=True), 1
    ):
        x, y = numbers[order, 0], numbers[order, i]
        ax.loglog(x, y, "osD"[i - 1], color=colour, fillstyle="none", label=label)
    x = np.array([1e-17, 30.0])
    ax.loglog(x, x, color=plot.INK, linewidth=0.8, linestyle=":", label="u")
    for precision, (unit, *rest) in zip(names, numbers, strict=True):
        if precision == "tf32":  # the same u as float16
            continue
        name = "float16, tf32" if precision == "float16" else precision.replace("float8_", "")
        left = precision == "float8_e4m3"
        ax.annotate(
            name,
            (unit, max(rest) if left else min(rest)),
            textcoords="offset points",
            xytext=(-5, -2) if left else (5, -8),
            fontsize=6,
            ha="right" if left else "left",
        )
    ax.set_xlim(1e-17, 30)
    ax.set_ylim(1e-17, 30)
    ax.set_xlabel("unit roundoff u")
    ax.set_ylabel("error after nine steps")
    fig.legend(loc="outside lower center", ncols=2)
    columns = ["format", "n", "u", "orthogonality", "worst error", "distance"]
    out.table("floors", columns, rows)
    out.figure("noise floor in units of u, least and most", [min(ratios), max(ratios)])
    return fig


# -- explosions ------------------------------------------------------------------------------


def largest(a: np.ndarray, s: Schedule, precision: str) -> float:
    """Largest singular value of the result; infinity where an entry is."""
    a = a.astype(np.float32)
    # That a schedule has no room is what is studied.
    with warnings.catch_warnings(), np.errstate(over="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", polarlib.ScheduleWarning)
        q = polarlib.orthogonalize(a, schedule=s, precision=precision, form="plain").astype(float)
    return float(np.linalg.norm(q, 2)) if np.isfinite(q).all() else float("inf")


def explosions(out: Output, count: int) -> Figure:
    """Rank-one matrices in bfloat16."""
    rng = np.random.default_rng(0)
    small = []
    for _ in range(count):
        m, n = rng.integers(1, LARGEST_SHAPE, 2)
        small.append(np.outer(rng.standard_normal(m), rng.standard_normal(n)))
    fig, (ax,) = panels(width=ONE_COLUMN, height=2.6)
    rows = []
    others: list[float] = []
    for name in (*UNSAFE, *SAFE):
        s = found(name)
        values = np.sort([largest(a, s, "bfloat16") for a in small])
        finite = values[np.isfinite(values)]
        row = (values > EXPLODED).mean(), finite.max(), int(np.isinf(values).sum())
        rows.append([name, count, *row])
        if name in SAFE:
            others.extend(values)
            continue
        out.figure(f"rank one, bfloat16, largest singular value, {name}", finite.max())
        share = 1 - np.arange(len(finite)) / count
        colour, line = UNSAFE[name]
        ax.step(finite, share, where="post", color=colour, linestyle=line, label=name)
    values = np.sort(others)
    share = 1 - np.arange(len(values)) / len(values)
    label = f"the other {len(SAFE)}, all inputs"
    ax.step(values, share, where="post", color=plot.GREEN, linestyle="-.", label=label)
    ax.set_xscale("log")
    ax.set_xlim(0.1, 1e40)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("largest singular value of the result")
    ax.set_ylabel("share of inputs at or above")
    ax.legend(loc="upper right")
    columns = ["schedule", "inputs", "share above 2", "largest finite", "not finite"]
    out.table("rank-one", columns, rows)
    sigma = testing.spectrum("rank one", 64)
    fifty = [testing.with_singular_values(sigma, seed=seed) for seed in range(50)]
    for name in UNSAFE:
        fails = sum(largest(a, found(name), "bfloat16") > EXPLODED for a in fifty)
        out.figure(f"of 50 rank-one inputs, how many fail, {name}", fails)
    return fig


def survivors(out: Output, shapes: tuple[tuple[int, int], ...], seeds: int) -> None:
    """Which schedules survive hostile spectra, in which formats."""
    rows, safe = [], 0.0
    for precision in ("bfloat16", "float16"):
        for name in (*UNSAFE, *SAFE):
            s = found(name, precision)
            worst = 0.0
            for m, n in shapes:
                for spectrum in HOSTILE:
                    sigma = testing.spectrum(spectrum, n)
                    for seed in range(seeds):
                        a = testing.with_singular_values(sigma, m, n, seed=seed)
                        worst = max(worst, largest(a, s, precision))
            verdict = "diverges" if worst > EXPLODED else "survives"
            rows.append([precision, name, s.error(1e-3), f"{worst:.5g}", verdict])
            if name not in UNSAFE:
                safe = max(safe, worst)
    columns = ["format", "schedule", "error in exact arithmetic", "largest singular value", ""]
    out.table("survivors", [*columns[:-1], "verdict"], rows)
    out.figure("largest singular value of the sets with room, hostile spectra", safe)


def recipe(out: Output, n: int) -> None:
    """The recipe of a cushion and a safety factor, against figures noted before."""
    for precision in ("bfloat16", "float16"):
        unit = FORMATS[precision].unit_roundoff
        s = design.greedy(1e-3, [5] * 5, cushion=0.01, safety=2 * unit)
        worst = max(
            largest(testing.with_singular_values(testing.spectrum(k, n), seed=seed), s, precision)
            for k in HOSTILE
            for seed in range(3)
        )
        out.figure(f"recipe, {precision}: error, largest singular value", [s.error(), worst])
        if precision == "bfloat16":
            out.figure("recipe, bfloat16: divergence limit", s.divergence_limit)


# -- simulated against native ----------------------------------------------------------------


def against_torch(out: Output, sizes: tuple[int, ...]) -> None:
    """Share of entries that the simulation and torch's own bfloat16 agree in, step by step."""
    if importlib.util.find_spec("torch") is None:
        out.note("torch is not installed: the simulation was not compared with native bfloat16.")
        return
    import torch

    rows = []
    for n in sizes:
        a = testing.with_singular_values(np.geomspace(1.0, 1e-2, n), seed=3).astype(np.float32)
        native = torch.from_numpy(a).bfloat16()
        start = native.float().numpy()  # rounded to the format: both begin with the same entries
        for steps in range(1, 6):
            s = polarlib.schedule("polar_express", steps)
            theirs = polarlib.orthogonalize(native, schedule=s, form="plain").float().numpy()
            ours = polarlib.orthogonalize(start, schedule=s, form="plain", precision="bfloat16")
            gap = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
            rows.append([n, steps, float((ours == theirs).mean()), float(gap)])
    columns = ["n", "steps", "share of equal entries", "relative difference"]
    out.table("native", columns, rows)
    first = min(row[2] for row in rows if row[1] == 1)
    worst = max(row[3] for row in rows)
    out.note(
        f"Against torch {torch.__version__.split('+')[0]} on a CPU: after one step at least "
        f"{first:.5f} of the entries are equal, and after five the results differ by at most "
        f"{worst:.1e} of their norm (one rounding is {FORMATS['bfloat16'].unit_roundoff:.1e})."
    )


def study(out: Output, quick: bool) -> None:
    out.plot(
        "paths",
        paths(out, 24 if quick else 64),
        "Paths of singular values from 1 to 0.001 (before division by the Frobenius norm) under "
        f"{STEPS} steps designed for each format, the formats simulated. Dashed: values that start "
        "below the unit roundoff u.",
    )
    out.plot(
        "floors",
        floors(out, (48,) if quick else (64, 128, 256)),
        "Errors that nine steps leave, by format, on singular values in [0.1, 1].",
    )
    out.plot(
        "explosions",
        explosions(out, 100 if quick else 3000),
        f"Rank-one matrices of up to {LARGEST_SHAPE - 1} rows and columns in bfloat16, five steps: "
        "share of inputs whose result is at least so large.",
    )
    survivors(out, ((32, 32),) if quick else ((64, 64), (256, 64), (128, 128)), 1 if quick else 3)
    recipe(out, 32 if quick else 128)
    if not quick:  # importing torch takes longer than the rest
        against_torch(out, (64, 256, 1024))


if __name__ == "__main__":
    main(study, __file__)
