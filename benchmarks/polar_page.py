"""The page of benchmarks/polar.py: its tables, its figure, and the sentence of the README.

A data file has runs (benchmarks/common.py) and counts. A run has cases, named by dtype, shape
and matrix, such as "float64 256 1e4". A case has situations (polarlib/timing.py) with a row per
function: milliseconds, ratio to SciPy, its quartiles, rounds; and "results", the accuracy and the
method of each function.
"""

from __future__ import annotations

import functools
import math
import statistics
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import replace_part, run_name, runs, table

import polarlib
from polarlib.files.whole import write_whole
from polarlib.timing import SITUATIONS

DOCS = Path(__file__).resolve().parent.parent / "docs"
FIGURES, PICTURES = DOCS / "data" / "polar_benchmarks.json", DOCS / "figures"
SQUARE = (2, 4, 8, 16, 32, 64, 100, 127, 256, 512, 1024, 2048, 4096)
SHAPES = {str(n): (n, n) for n in SQUARE} | {"4096x512": (4096, 512)}
# Condition numbers of geometric spectra; single precision ends before 1 / eps.
MATRICES = {
    "float64": ("10", "1e2", "1e4", "1e8", "1e15", "gaussian"),
    "float32": ("10", "1e2", "1e4", "1e6", "gaussian"),
}
REFERENCE, AUTO = "scipy.linalg.polar", "polar"
METHODS = tuple(name for name in polarlib._methods.METHODS if name not in ("qr", "small"))
OTHERS = ("numpy svd", "torch svd", "jax svd", "jax qdwh")
# Condition numbers of the table of iterations.
CONDITIONS = (1.001, 1.1, 2.0, 10.0, 1e2, 1e3, 1e5, 1e7, 1e16)
# The situations in words, for the README.
PRECEDED = {
    "alone": "after a pause",
    "alternation": "in alternation with SciPy",
    "after a product": "after a NumPy product",
}


class Worst(NamedTuple):
    """The smallest of the ratios of a case, and its situation."""

    ratio: float
    situation: str


def cases(run: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield dtype, shape, matrix and situations of the cases of a run, in order."""
    for dtype, kinds in MATRICES.items():
        for shape in SHAPES:
            for kind in kinds:
                found = run["cases"].get(f"{dtype} {shape} {kind}")
                if found:
                    yield dtype, shape, kind, found


def worst(found: dict[str, Any], name: str = AUTO) -> Worst | None:
    """Return the worst measured situation of a function in a case."""
    every = [Worst(found[s][name]["ratio"], s) for s in SITUATIONS if name in found.get(s, {})]
    return min(every, default=None)


def by(shape: str) -> str:
    """Write a shape."""
    return " x ".join(map(str, SHAPES[shape]))


def about(kind: str) -> str:
    """Write the kind of a matrix."""
    return "Gaussian" if kind == "gaussian" else f"κ = {kind}"


# -- tables ----------------------------------------------------------------------------------


def grid(run: dict[str, Any], cell: Any) -> str:
    """Return a table for each dtype, with a line per shape and a column per matrix."""
    parts = []
    for dtype, kinds in MATRICES.items():
        cells = {(s, k): cell(found) for d, s, k, found in cases(run) if d == dtype}
        lines = [
            [by(shape), *(cells.get((shape, kind)) or "-" for kind in kinds)]
            for shape in SHAPES
            if any(cells.get((shape, kind)) for kind in kinds)
        ]
        if lines:
            parts.append(table([dtype, *map(about, kinds)], lines))
    return "\n\n".join(parts) or "Not measured."


def worst_tables(figures: dict[str, Any]) -> str:
    """Return the worst situation of each case, for each run."""

    def cell(found: dict[str, Any]) -> str | None:
        it = worst(found)
        return it and f"{it.ratio:.2f} ({it.situation})"

    return "\n\n".join(f"### {run_name(run)}\n\n{grid(run, cell)}" for run in runs(figures))


def times_table(figures: dict[str, Any]) -> str:
    """Return milliseconds of the first run in each situation, and the method."""
    lines = []
    for dtype, shape, kind, found in cases(runs(figures)[0]) if figures["runs"] else ():
        rows = [found.get(s, {}).get(AUTO) for s in SITUATIONS]
        result = found["results"].get(AUTO, {})
        if any(rows):
            lines.append(
                [dtype, by(shape), about(kind)]
                + [
                    " / ".join(f"{row[key]:.3g}" if row else "-" for row in rows)
                    for key in ("reference_milliseconds", "milliseconds", "rounds")
                ]
                + [result.get("method", "-"), result.get("reason") or "-"]
            )
    header = ["", "shape", "matrix", "SciPy ms", "polar ms", "rounds", "method", "why"]
    return table(header, lines)


RATIOS = """## Every method and other libraries

SciPy's time divided by that of `polar` (automatic choice), of `polar(method=...)`, and of functions
of other libraries, each in its worst situation.

"""


def ratio_part(figures: dict[str, Any]) -> str:
    """Return the section on other functions; empty if a file has times of `polar` only."""
    found = [
        (run_name(run), *case[:3], {n: w for n in names if (w := worst(case[3], n))})
        for names in [(AUTO, *METHODS, *OTHERS)]
        for run in runs(figures)
        for case in cases(run)
    ]
    found = [row for row in found if row[4].keys() - {AUTO}]
    if not found:
        return ""
    names = [n for n in (AUTO, *METHODS, *OTHERS) if any(n in row[4] for row in found)]
    lines = [
        [run, dtype, by(shape), about(kind)]
        + [f"{ratios[n].ratio:.2f}" if n in ratios else "-" for n in names]
        for run, dtype, shape, kind, ratios in found
    ]
    return RATIOS + table(["", "", "shape", "matrix", *names], lines)


def accuracy_table(figures: dict[str, Any]) -> str:
    """Return the worst errors over the matrices of a shape."""
    largest: dict[tuple[str, str, str], list[float]] = {}
    for dtype, shape, _, found in (case for run in runs(figures) for case in cases(run)):
        for name, result in found["results"].items():
            errors = [result["backward_error"], result["orthogonality"]]
            before = largest.get((dtype, name, shape), [0.0, 0.0])
            # NaN is worse than any number, and compares false.
            both = zip(errors, before, strict=True)
            largest[dtype, name, shape] = [e if not e <= b else b for e, b in both]
    shapes = [s for s in SHAPES if any(s == shape for *_, shape in largest)]
    lines = [
        [dtype, name]
        + [
            "{:.1e} / {:.1e}".format(*largest[dtype, name, shape])
            if (dtype, name, shape) in largest
            else "-"
            for shape in shapes
        ]
        for dtype in MATRICES
        for name in (AUTO, *METHODS, REFERENCE, *OTHERS)
        if any((dtype, name, shape) in largest for shape in shapes)
    ]
    return table(["", "", *map(by, shapes)], lines)


def counts_table(figures: dict[str, Any]) -> str:
    """Return the iterations of recurrences and methods."""
    found = figures["counts"]
    if not found:
        return "Not measured."
    header = ["κ", *(f"{k:g}" if k < 1e3 else f"1e{round(math.log10(k))}" for k in CONDITIONS)]
    lines = [[name, *map(str, row)] for name, row in found["recurrences"].items()]
    for name, row in found["methods"].items():
        cells = [f"{i}; {m}" + "*" * ("svd" in who) for i, m, who in row]
        lines.append([f'`method="{name}"`: iterations; products', *cells])
    return table(header, lines)


# -- sentences -------------------------------------------------------------------------------


def summary(figures: dict[str, Any]) -> str:
    """Return the sentences on top, and median and extreme ratios by run, situation and dtype."""
    header = ["", "", "situation", "matrices", "least", "median", "most"]
    lines = []
    machines: dict[str, list[str]] = {}
    for run in runs(figures):
        machines.setdefault(run["machine"], []).append(run_name(run))
        for dtype in MATRICES:
            for situation in (*SITUATIONS, "worst"):
                found = [
                    (ratio, f"{by(shape)}, {about(kind)}")
                    for d, shape, kind, rows in cases(run)
                    if d == dtype and (ratio := _ratio(rows, situation)) is not None
                ]
                if found:
                    middle = statistics.median(r for r, _ in found)
                    ends = [f"{r:.2f} ({where})" for r, where in (min(found), max(found))]
                    cells = [str(len(found)), ends[0], f"{middle:.2f}", ends[1]]
                    lines.append([run_name(run), dtype, situation, *cells])
    where = "\n".join(f"- {'; '.join(names)}: {machine}" for machine, names in machines.items())
    # The link at the end is one from the README.
    claimed = claim(figures).rpartition(" ([table]")[0] if figures["runs"] else "Not measured"
    return "\n\n".join(
        [textwrap.fill(f"{claimed}.", 100), "Machines:", where, table(header, lines)]
    )


def _ratio(found: dict[str, Any], situation: str) -> float | None:
    """Return the ratio of `polar` in a situation, or in the worst one."""
    if situation == "worst":
        it = worst(found)
        return it and it.ratio
    row = found.get(situation, {}).get(AUTO)
    return row and row["ratio"]


def claim(figures: dict[str, Any]) -> str:
    """The sentences about speed in the README: the smallest ratio that was measured anywhere."""
    parts: list[str] = []
    for dtype in MATRICES:
        found = [
            (it, run_name(run), f"{by(shape)}, {about(kind)}")
            for run in runs(figures)
            for d, shape, kind, rows in cases(run)
            if d == dtype and (it := worst(rows))
        ]
        if not found:
            continue
        least, run, where = min(found)
        count = len({where for *_, where in found})
        middle = statistics.median(it.ratio for it, *_ in found)
        # Rounded down: "at least" is said.
        low = math.floor(least.ratio * 100) / 100
        times = f"times as fast as `{REFERENCE}`"
        parts.append(
            f"In {dtype}, on {count} matrices, `polar` is {middle:.2f} {times} in the median, and "
            f"at least {low:.2f} times ({where}, {PRECEDED[least.situation]}, {run})."
        )
    measured = {s for run in runs(figures) for *_, found in cases(run) for s in found}
    said = [text for situation, text in PRECEDED.items() if situation in measured]
    named = _listed(list(map(run_name, runs(figures))))
    return " ".join(
        [
            *parts,
            f"Each ratio is the worst of those measured {_listed(said)}. Settings: {named} "
            "([table](docs/evidence/polar_benchmarks.md), `python benchmarks/polar.py`).",
        ]
    )


def _listed(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


# -- the figure ------------------------------------------------------------------------------


def picture(figures: dict[str, Any]) -> Any:
    """Draw the ratio to SciPy against the order, of the first run, by dtype and situation."""
    from matplotlib.figure import Figure

    from polarlib.plot import INK

    run = runs(figures)[0] if figures["runs"] else {"cases": {}}
    drawn = Figure(figsize=(10, 6.6))
    panels = drawn.subplots(len(MATRICES), len(SITUATIONS), sharex=True, sharey=True)
    orders = [n for n in SQUARE if any(shape == str(n) for _, shape, *_ in cases(run))] or [2, 4]
    for row, dtype in zip(panels, MATRICES, strict=True):
        for ax, situation in zip(row, SITUATIONS, strict=True):
            _lines(ax, run, dtype, situation)
            ax.axhline(1.0, color=INK, linewidth=1.0, linestyle="--")
            ax.set_xscale("log", base=2)
            ax.set_yscale("log", base=2)
            ax.set_xticks(orders, map(str, orders), rotation=90)
            ax.minorticks_off()
            ax.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
            ax.set_title(f"{dtype}, {situation}")
            if not ax.containers:
                ax.text(0.5, 0.5, "not measured", ha="center", transform=ax.transAxes)
        row[0].set_ylabel("time of SciPy / time of polar")
    for ax in panels[-1]:
        ax.set_xlabel("n, order of the matrix")
    every = [
        pair for ax in panels.flat for pair in zip(*ax.get_legend_handles_labels(), strict=True)
    ]
    shown = {label: handle for handle, label in every}
    names = [about(kind) for kind in _styles() if about(kind) in shown]
    if names:
        handles = [shown[name] for name in names]
        options = {"ncols": len(names), "frameon": False, "title": run_name(run)}
        drawn.legend(handles, names, loc="outside lower center", **options)
    return drawn


def _styles() -> dict[str, dict[str, Any]]:
    """Return the style of each matrix: lightness follows the condition number, in grey as well."""
    from matplotlib import colormaps

    from polarlib.plot import INK, MARKERS

    numbers = sorted({k for kinds in MATRICES.values() for k in kinds} - {"gaussian"}, key=float)
    tones = np.linspace(0.85, 0.0, len(numbers))
    styles: dict[str, dict[str, Any]] = {
        kind: {"color": colormaps["cividis"](tone), "marker": marker}
        for kind, tone, marker in zip(numbers, tones, MARKERS, strict=False)
    }
    styles["gaussian"] = {"color": INK, "marker": "o", "mfc": "white", "linestyle": ":"}
    return styles


def _lines(ax: Any, run: dict[str, Any], dtype: str, situation: str) -> None:
    """Draw medians, with quartiles as bars, of the square matrices of a panel."""
    for kind, style in _styles().items():
        found = [
            (min(SHAPES[s]), rows[situation][AUTO]["ratio"], *rows[situation][AUTO]["quartiles"])
            for d, s, k, rows in cases(run)
            if (d, k) == (dtype, kind) and s.isdigit() and AUTO in rows.get(situation, {})
        ]
        if found:
            x, y, low, high = map(np.array, zip(*found, strict=True))
            bars = [np.maximum(y - low, 0), np.maximum(high - y, 0)]
            ax.errorbar(x, y, yerr=bars, label=about(kind), capsize=2, elinewidth=0.8, **style)


def make_page(page: Path, figures: dict[str, Any], folder: Path = PICTURES) -> None:
    """Fill in the tables of the page, and draw its figure into a folder."""
    import matplotlib

    from polarlib import plot

    for name, made in {
        "summary": summary,
        "worst": worst_tables,
        "times": times_table,
        "ratios": ratio_part,
        "accuracy": accuracy_table,
        "counts": counts_table,
    }.items():
        replace_part(page, name, made(figures))
    folder.mkdir(exist_ok=True)
    # The same values give bitwise identical files.
    with plot.style("page"), matplotlib.rc_context({"svg.hashsalt": "polarlib"}):
        drawn = picture(figures)
        for suffix, extra in (("png", {"dpi": 110}), ("svg", {"metadata": {"Date": None}})):
            write_whole(
                folder / f"polar_benchmarks.{suffix}",
                functools.partial(drawn.savefig, format=suffix, **extra),
            )
