"""The page of benchmarks/orthogonalize.py: its tables.

A data file has runs (benchmarks/common.py), workspace and peers. A run has cases, named
"torch bfloat16 256 x 256"; a case has situations (polarlib/timing.py), and these have a row per
function: milliseconds, rounds, and the times of the textbook loop and of the products over its
time, with quartiles. In the file "ours" is `orthogonalize` and "peers" are the other packages.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from common import run_name, runs, table

from polarlib.timing import PAUSE, SITUATIONS

SHAPES = ((256, 256), (16, 256, 256), (768, 768), (512, 4096))
# Float16 is slow on processors without products in it.
LIBRARIES = (
    *(("torch", f) for f in ("float32", "bfloat16", "float16")),
    *(("jax", f) for f in ("float32", "bfloat16")),
    ("numpy", "float32"),
)
MUON = "torch.optim.Muon"
PRODUCTS = 15  # of every function, in five steps


def label(name: str) -> str:
    """Write the name of a row: "ours" is a key of the data."""
    return {"claim": "bound"}.get(name, name.replace("ours", "polarlib"))


def by(shape: Sequence[int]) -> str:
    """Write a shape."""
    return " x ".join(map(str, shape))


def geometric(values: Sequence[float]) -> float:
    """Return the geometric mean."""
    return math.exp(statistics.fmean(map(math.log, values)))


def cases(run: dict[str, Any], library: str, precision: str) -> dict[str, dict[str, Any]]:
    """Return the measured situations of each shape."""
    names = {by(shape): f"{library} {precision} {by(shape)}" for shape in SHAPES}
    return {shape: run["cases"][name] for shape, name in names.items() if name in run["cases"]}


def _measured(figures: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield run, library, format and cases."""
    for run in runs(figures):
        for library, precision in LIBRARIES:
            if found := cases(run, library, precision):
                yield run_name(run), library, precision, found


def mean_ratio(
    found: dict[str, dict[str, Any]], situations: Sequence[str], reference: str
) -> float | None:
    """Return the geometric mean of a reference's time over polarlib's, in the worst situation.

    Shapes in which a situation or the reference was not measured do not count.
    """
    worst = []
    for each in found.values():
        if all(reference in each.get(s, {}) for s in situations):
            # Both have a ratio to the textbook loop in the same rounds.
            worst.append(
                min(
                    each[s]["ours"]["textbook"] / each[s][reference]["textbook"] for s in situations
                )
            )
    return geometric(worst) if worst else None


def means_table(figures: dict[str, Any]) -> str:
    """Return the means over the shapes, for each situation and the worst one."""
    lines = []
    for run, library, precision, found in _measured(figures):
        for reference in ("textbook", MUON):
            sets = [(s,) for s in SITUATIONS] + [SITUATIONS]
            means = [mean_ratio(found, each, reference) for each in sets]
            if any(means):
                cells = [f"{mean:.2f}" if mean else "-" for mean in means]
                lines.append([run, library, precision, reference, *cells])
    return table(["", "", "", "reference", *SITUATIONS, "worst"], lines)


def speed_tables(figures: dict[str, Any]) -> str:
    """Return a table for each run, library, format and situation."""
    parts = []
    for run, library, precision, found in _measured(figures):
        for situation in SITUATIONS:
            rows = {shape: each[situation] for shape, each in found.items() if situation in each}
            if rows:
                parts.append(f"### {library}, {precision}, {situation}, {run}")
                parts += _tables(rows)
    return "\n\n".join(parts) or "Not measured."


def _tables(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return the table of one situation, and the overhead of the plain form over its products."""
    lines = []
    for name in dict.fromkeys(n for rows in found.values() for n in rows):
        cells = [
            f"{r['milliseconds']:.2f}: **{r['textbook']:.2f}** "
            f"({'-'.join(f'{q:.2f}' for q in r['textbook quartiles'])})"
            if (r := rows.get(name))
            else "-"
            for rows in found.values()
        ]
        ratios = [rows[name]["textbook"] for rows in found.values() if name in rows]
        mean = f"{geometric(ratios):.2f}" if len(ratios) == len(found) else "-"
        lines.append([label(name), *cells, mean])
    shares = [f"{s}: {1 / rows['ours, plain']['products']:.2f}" for s, rows in found.items()]
    return [
        table(["", *found, "geometric mean"], lines),
        f"Plain form / its products alone: {'; '.join(shares)}.",
    ]


def workspace_table(figures: dict[str, Any]) -> str:
    """Return peaks in units of the input."""
    rows = figures["workspace"]
    names = list(next(iter(rows.values()))) if rows else []
    lines = [[case, *(f"{row[n]:.2f}" for n in names)] for case, row in rows.items()]
    return table(["", *map(label, names)], lines)


TEXT = """# Speed of orthogonalize()

{summary}

Made by `python benchmarks/orthogonalize.py --markdown docs/evidence/benchmarks.md` from
[data/orthogonalize.json](../data/orthogonalize.json), which the same script measured. Machine:
{machine}.

Five steps, {products} matrix products, on one Gaussian matrix, or a stack of 16. Runs are
interleaved, in rotating order; times are medians, and quartiles are those of the ratios of single
rounds. The time of a call depends on the calls before it; there are three situations:

- *alone*: each call after a pause of {pause:g} s, in which threads of the call before fall asleep;
- *alternation*: one function after the other, without pauses;
- *after a product*: each call directly after an untimed product of two 512 x 512 float64 matrices
  (float32 in JAX) by the library that is timed.

## Geometric means

Time of the reference divided by the time of `orthogonalize`, geometric mean over the shapes;
"worst": over the smallest of the three ratios of each shape. torch.optim.Muon takes no stacks.

{means}

## Every function

Cells: milliseconds: **time of the textbook loop / time** (quartiles). Above 1, a function is faster
than the textbook loop.

- *polarlib*: `orthogonalize` with `form="auto"`, including the norm and the check for NaN; in plain
  form; in Gram form. In JAX compiled by the caller as a whole, and called without compilation.
- *textbook*: the loop of papers, X ← aX + (bG + cGG)X with G = XXᵀ, normalised by the Frobenius
  norm; in JAX compiled.
- *products*: all matrix products of the plain form into existing storage, without use of symmetry.
- other packages: as released; compilation by torch is not timed. A package that overwrites its
  argument gets a copy, which is timed with it ({sources}).

{tables}

## Workspace

Peak memory of a call, its result included, in units of the input; *bound* is two copies of the
input and three of the n × n matrix.

{workspace}
"""


def summary(figures: dict[str, Any]) -> str:
    """Return the sentence on top: means of the worst situations, relative to the textbook loop."""
    parts = []
    for _, library, precision, found in _measured(figures):
        mean = mean_ratio(found, SITUATIONS, "textbook")
        if mean is not None:
            parts.append(f"{mean:.2f} in {library}, {precision}")
    text = (
        "Time of the textbook loop over that of `orthogonalize`, geometric mean over shapes, each "
        f"in its worst situation: {'; '.join(parts) or 'not measured'}. Above 1, "
        "`orthogonalize` is faster."
    )
    return textwrap.fill(text, 100)


def page(figures: dict[str, Any]) -> str:
    """Return the page."""
    sources = "; ".join(f"{n}: {s}" for n, s in figures["peers"].items()) or "none was installed"
    machines = [f"{run_name(run)}: {run['machine']}" for run in runs(figures)]
    return TEXT.format(
        summary=summary(figures),
        machine="; ".join(machines),
        products=PRODUCTS,
        pause=PAUSE,
        sources=sources,
        means=means_table(figures),
        tables=speed_tables(figures),
        workspace=workspace_table(figures),
    )
