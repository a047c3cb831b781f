"""Schedules in narrow formats: what rounding does to every singular value, and what explodes."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import Output, main, panels

import polarlib
from polarlib import Schedule, design, plot, testing
from polarlib.arrays.formats import FORMATS

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
FORMATS_16 = ("bfloat16", "float16")
# Formats whose products are accumulated in single precision and rounded to the format once.
ROUNDED_ONCE = ("float16", "bfloat16", "float8_e4m3", "float8_e5m2")
HOSTILE = ("ones", "rank one", "rank two", "log-uniform 1e-3", "half log-uniform, half zero")


def found(name: str, precision: str = "bfloat16") -> Schedule:
    if name == "for_precision":
        return design.for_precision(precision, LOWER[precision], steps=5)
    return polarlib.schedule(name, steps=5)


# -- paths of singular values ----------------------------------------------------------------


def unit_of(precision: str) -> float:
    """Unit roundoff: half the distance from 1 to the next number of the format."""
    return FORMATS[precision].unit_roundoff


def paths(out: Output, quick: bool) -> None:
    """Every singular value, step by step, in every format, under the format's own schedule."""
    a = testing.with_singular_values(np.geomspace(1.0, 1e-3, 24 if quick else 64), seed=1)
    fig, axes = panels(rows=3, columns=2, height=4.8, sharex=True, sharey=True)
    rows, cosines = [], []
    for ax, (precision, lower) in out.steps(zip(axes, LOWER.items(), strict=True), "paths"):
        s = design.for_precision(precision, lower, steps=STEPS)
        t = polarlib.measure(a, s, precision=precision)
        unit = unit_of(precision)
        exact = polarlib.measure(a, s, precision="float64").singular_values[0]
        steps = np.arange(len(s) + 1)
        for path, start in list(zip(t.singular_values.T, exact, strict=True))[::3]:
            look = (plot.ORANGE, "--") if start < unit else (plot.BLUE, "-")
            ax.semilogy(steps, path, color=look[0], linestyle=look[1], linewidth=0.5)
        ax.set_title(f"{precision}, u = {unit:.2g}")
        ax.axhline(1.0, color=plot.INK, linewidth=0.6, linestyle=":")
        end, last = t.singular_values[-1], t.alignment[-1]
        cosines.append(last[exact > unit].min())
        for value, sigma, cosine in zip(exact, end, last, strict=True):
            rows.append([precision, *(f"{v:.5g}" for v in (value, sigma, cosine))])
    for ax in axes[4:]:
        ax.set_xlabel("step")
        ax.set_xticks(range(0, STEPS + 1, 2))
    for ax in axes[::2]:
        ax.set_ylabel("singular value")
    axes[0].set_ylim(2e-4, 4)
    axes[0].plot([], [], color=plot.BLUE, label="starts above u")
    axes[0].plot([], [], color=plot.ORANGE, linestyle="--", label="starts below u")
    fig.legend(loc="outside lower center", ncols=2)
    out.figure("least cosine of a singular vector whose value starts above u", min(cosines))
    out.table("paths", ["format", "start", "end", "cosine with the exact vector"], rows)
    out.plot(
        "paths",
        fig,
        "Paths of every third singular value from 1 to 0.001 (before division by the Frobenius "
        f"norm) under {STEPS} steps designed for each format, the formats simulated. Dashed: "
        "values that start below the unit roundoff u.",
    )


def floors(out: Output, quick: bool) -> None:
    """What is left after convergence, by the unit roundoff."""
    sizes = (128,) if quick else (64, 128, 256)
    rows: list[list[Any]] = []
    in_units: dict[str, float] = {}
    for n in out.steps(sizes, "errors after nine steps"):
        a = testing.with_singular_values(np.geomspace(1.0, 0.1, n), seed=2)
        for precision in ("float64", *LOWER):
            unit = unit_of(precision)
            s = design.for_precision(precision, LOWER.get(precision, 1e-3), steps=9)
            t = polarlib.measure(a, s, precision=precision)
            error = np.abs(t.singular_values[-1] - 1).max()
            rows.append([precision, n, unit, t.orthogonality[-1], error, t.distance[-1]])
            in_units[precision] = t.orthogonality[-1] / unit
    out.figure(
        "noise floor in units of u, float16, bfloat16, float8_e4m3, float8_e5m2",
        [in_units[precision] for precision in ROUNDED_ONCE],
    )
    out.figure(
        "noise floor in units of u sqrt(n), float32, float64",
        [in_units[precision] / np.sqrt(sizes[-1]) for precision in ("float32", "float64")],
    )
    columns = ["format", "n", "u", "orthogonality", "worst error", "distance"]
    out.table("floors", columns, rows)
    draw_floors(out, [row for row in rows if row[1] == sizes[-1]])


def draw_floors(out: Output, rows: list[list[Any]]) -> None:
    fig, (ax,) = panels(height=2.6)
    places = np.arange(len(rows))
    looks = (
        ("orthogonality, ‖QᵀQ − I‖ / √n", plot.BLUE, "o"),
        ("worst |1 − σ|", plot.VERMILLION, "s"),
        ("distance to the polar factor, ‖Q − U‖ / √n", plot.GREEN, "D"),
    )
    for i, (label, colour, marker) in enumerate(looks, 3):
        over_u = [row[i] / row[2] for row in rows]
        ax.semilogy(places, over_u, marker, color=colour, fillstyle="none", label=label)
    ax.axhline(1.0, color=plot.INK, linewidth=0.8, linestyle=":", label="u")
    names = [row[0].replace("float8_", "") for row in rows]
    ax.set_xticks(places, names, rotation=30, ha="right")
    ax.set_ylim(0.3, 300)
    ax.set_ylabel("error after nine steps, in units of u")
    ax.legend(loc="upper right")
    out.plot(
        "floors",
        fig,
        "Errors that nine steps leave, by format and in units of its unit roundoff, on singular "
        f"values in [0.1, 1]; n = {rows[0][1]}.",
    )


# -- explosions ------------------------------------------------------------------------------


def largest(a: np.ndarray, s: Schedule, precision: str) -> float:
    """Largest singular value of the result; infinity where an entry is."""
    a = a.astype(np.float32)
    # That a schedule has no room is what is studied.
    with warnings.catch_warnings(), np.errstate(over="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", polarlib.ScheduleWarning)
        q = polarlib.orthogonalize(a, schedule=s, precision=precision, form="plain").astype(float)
    return float(np.linalg.norm(q, 2)) if np.isfinite(q).all() else float("inf")


def rank_one(count: int) -> list[np.ndarray]:
    """Small random matrices of rank one."""
    rng = np.random.default_rng(0)
    small = []
    for _ in range(count):
        m, n = rng.integers(1, LARGEST_SHAPE, 2)
        small.append(np.outer(rng.standard_normal(m), rng.standard_normal(n)))
    return small


def explosions(out: Output, quick: bool) -> None:
    """Rank-one matrices in bfloat16."""
    small = rank_one(1000 if quick else 3000)
    fig, (ax,) = panels(height=2.6)
    rows, shares, decades = [], [], []
    others: list[float] = []
    for name in out.steps((*UNSAFE, *SAFE), "matrices of rank one"):
        s = found(name)
        given = small[: 100 if quick and name in SAFE else None]
        values = np.sort([largest(a, s, "bfloat16") for a in given])
        finite = values[np.isfinite(values)]
        failing = finite[finite > EXPLODED]
        share = float((values > EXPLODED).mean())
        rows.append([name, len(given), share, finite.max(), int(np.isinf(values).sum())])
        if name in SAFE:
            others.extend(values)
            continue
        if not quick:
            out.figure(f"rank one, bfloat16, largest singular value, {name}", finite.max())
        shares.append(share)
        decades.append(float(np.median(np.log10(failing))) if failing.size else np.nan)
        colour, line = UNSAFE[name]
        above = 1 - np.arange(len(finite)) / len(given)
        ax.step(finite, above, where="post", color=colour, linestyle=line, label=name)
    out.figure("share of rank-one inputs that fail, polar_express_raw, cans", shares)
    out.figure("median power of ten of what fails, polar_express_raw, cans", decades)
    values = np.sort(others)
    above = 1 - np.arange(len(values)) / len(values)
    label = f"the other {len(SAFE)}, all inputs"
    ax.step(values, above, where="post", color=plot.GREEN, linestyle="-.", label=label)
    ax.set_xscale("log")
    ax.set_xlim(0.1, 1e40)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("largest singular value of the result")
    ax.set_ylabel("share of inputs at or above")
    ax.legend(loc="upper right")
    columns = ["schedule", "inputs", "share above 2", "largest finite", "not finite"]
    out.table("rank-one", columns, rows)
    out.plot(
        "explosions",
        fig,
        f"Rank-one matrices of up to {LARGEST_SHAPE - 1} rows and columns in bfloat16, five steps: "
        "share of inputs whose result is at least so large.",
    )
    of_fifty(out, 300 if quick else 1000)


def of_fifty(out: Output, count: int) -> None:
    """How many of 50 larger inputs fail, on average."""
    sigma = testing.spectrum("rank one", 64)
    inputs = [testing.with_singular_values(sigma, seed=seed) for seed in range(count)]
    for name in UNSAFE:
        s = found(name)
        fails = sum(largest(a, s, "bfloat16") > EXPLODED for a in out.steps(inputs, name))
        out.figure(f"of 50 rank-one inputs, how many fail, {name}", 50 * fails / count)


def survivors(out: Output, quick: bool) -> None:
    """Which schedules survive hostile spectra, in which formats."""
    shapes, seeds = (((64, 64),), 3) if quick else (((64, 64), (256, 64), (128, 128)), 3)
    rows, safe = [], 0.0
    names = (*UNSAFE, *SAFE)
    for precision, name in out.steps([(p, n) for p in FORMATS_16 for n in names], "spectra"):
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
    columns = ["format", "schedule", "error in exact arithmetic", "largest singular value"]
    out.table("survivors", [*columns, "verdict"], rows)
    out.figure("largest singular value of the sets with room, hostile spectra", safe)


def designed(precision: str) -> Schedule:
    """The recipe: a cushion of 0.01 and a safety factor of 1 + 2u."""
    return design.greedy(1e-3, [5] * 5, cushion=0.01, safety=2 * unit_of(precision))


def recipe(out: Output, quick: bool) -> None:
    """The recipe of a cushion and a safety factor, against figures noted before."""
    n = 32 if quick else 128
    errors, worst = [], []
    for precision in FORMATS_16:
        s = designed(precision)
        hostile = [
            testing.with_singular_values(testing.spectrum(k, n), seed=seed)
            for k in HOSTILE
            for seed in range(3)
        ]
        errors.append(s.error())
        worst.append(max(largest(a, s, precision) for a in hostile))
    out.figure("recipe: error, bfloat16, float16", errors)
    out.figure("recipe: largest singular value, bfloat16, float16", worst)
    out.figure("recipe, bfloat16: divergence limit", designed("bfloat16").divergence_limit)


# -- simulated against native ----------------------------------------------------------------


def against_torch(out: Output, sizes: tuple[int, ...]) -> None:
    """Share of entries that the simulation and torch's own bfloat16 agree in, step by step."""
    if importlib.util.find_spec("torch") is None:
        out.note("torch is not installed: the simulation was not compared with native bfloat16.")
        return
    import torch

    rows = []
    for n in out.steps(sizes, "against torch"):
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
    paths(out, quick)
    floors(out, quick)
    explosions(out, quick)
    survivors(out, quick)
    recipe(out, quick)
    if not quick:  # importing torch takes longer than the rest
        against_torch(out, (64, 256, 1024))


if __name__ == "__main__":
    main(study, __file__)
