"""Best degrees for a number of matrix products, by condition number, and the time of the search.

    python benchmarks/budget_table.py --json docs/data/budget.json       # search and time
    python benchmarks/budget_table.py --measure now                      # errors in formats
    python benchmarks/budget_table.py --markdown docs/evidence/budget.md # the page from the data

The second call measures the worst errors of designs for number formats and adds them to
docs/data/budget_in_formats.json. Its entry "before" has those of a version with two models of
rounding, one for `budget` and one for `for_precision`.
"""

from __future__ import annotations

import itertools
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import scipy.linalg
import typer
from common import load, reflow, store, table, text_of
from lowbits import chain, result

from polarlib import design
from polarlib.arrays.formats import format_of
from polarlib.design.budget import DegreeSequence, frontier
from polarlib.files.whole import write_whole
from polarlib.testing import with_singular_values
from polarlib.timing import interleaved

BUDGETS = range(6, 25)
EXPONENTS = (1, 2, 3, 5, 7, 10, 16)
DEGREES = (3, 5, 9)
SEARCHED = 20  # products of the search that is timed
# Formats, lower ends and products of the designs that are measured, and the files.
FORMATS = ("float32", "tf32", "float16", "bfloat16", "float8_e4m3", "float8_e5m2")
LOWERS, PRODUCTS = (1e-1, 1e-2, 1e-3), (6, 9, 12, 15)
FOLDER = Path(__file__).resolve().parent.parent / "docs" / "data"
DATA, MEASURED = FOLDER / "budget.json", FOLDER / "budget_in_formats.json"
POWERS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def short(degrees: Sequence[int | str]) -> str:
    """Write a sequence of degrees with powers: 3·5⁵."""
    runs = [(d, len(list(same))) for d, same in itertools.groupby(degrees)]
    return "·".join(f"{d}{str(k).translate(POWERS) if k > 1 else ''}" for d, k in runs)


def figure(error: float) -> str:
    """Write an error with two digits, near 1 by its distance from it."""
    if error < 1e-15:
        return "< 1e-15"
    if error > 0.995:
        return f"1 − {1 - error:.0e}".replace("e-0", "e-")
    return f"{error:.3f}" if error >= 0.01 else f"{error:.1e}".replace("e-0", "e-")


def within(found: tuple[DegreeSequence, ...], matmuls: int) -> DegreeSequence | None:
    """Return the last entry of at most so many products."""
    return next((c for c in reversed(found) if c.cost <= matmuls), None)


def rows(degrees: tuple[int, ...], precision: str | None) -> list[dict[str, object]]:
    """Search the degrees for all budgets and condition numbers; None where nothing is gained."""
    pairs = [
        [frontier(10.0**-k, max(BUDGETS), degrees=d, precision=precision) for d in (degrees, [5])]
        for k in EXPONENTS
    ]
    found = []
    for matmuls in BUDGETS:
        cells: list[dict[str, str | None] | None] = []
        for mixed, only in pairs:
            best, five = within(mixed, matmuls), within(only, matmuls)
            if best is None or matmuls > mixed[-1].cost:
                cells.append(None)
            else:
                other = figure(five.error) if five else None
                entry = {"degrees": short(best.degrees), "error": figure(best.error)}
                cells.append({**entry, "degree 5": other})
        found.append({"products": matmuls, "cells": cells})
    return found


def seconds(precision: str | None) -> float:
    """Return the median time of a search, each on a new interval."""
    lowers = (1e-3 * (1 + k / 1000) for k in itertools.count())

    def search() -> None:
        frontier(next(lowers), SEARCHED, degrees=DEGREES, precision=precision)

    return statistics.median(interleaved({"": search}, 0, least=8)[""])


def measured(precision: str, lower: float, matmuls: int, by: str) -> dict[str, object]:
    """Measure a design on matrices of 128 rows, and with all entries rounded alike."""
    if by == "budget":
        s = design.budget(lower, matmuls, precision=precision)
    else:
        s = design.for_precision(precision, lower, matmuls=matmuls)
    worst = []
    for seed in (1, 2):
        a = with_singular_values(np.geomspace(1, lower, 128), seed=seed).astype(np.float32)
        q = result(a, s, precision, "none").astype(np.float64)
        worst.append(float(np.abs(1 - scipy.linalg.svdvals(q)).max()))
    form = format_of(precision)
    below_one = 1 - np.arange(0, 2, 0.04) * form.unit_roundoff
    x = np.concatenate([np.geomspace(1.01 * lower, 1, 500), below_one])
    alike = float(np.abs(1 - chain(s.steps, form.significand, 300, inputs=x)).max())
    found = {"error": s.error(), "alike": alike, "matrices": max(worst)}
    degrees = " ".join(str(2 * len(step) - 1) for step in s.steps)
    return {"degrees": degrees, **{k: float(f"{v:.4g}") for k, v in found.items()}}


def degrees_table(found: list[dict]) -> str:
    """Return the table of a number format."""
    lines = []
    for row in found:
        cells = [
            f"{c['degrees']} {c['error']} ({c['degree 5'] or '–'})" if c else "″"
            for c in row["cells"]
        ]
        lines.append([str(row["products"]), *cells])
    return table(["products", *(f"1e{k}" for k in EXPONENTS)], lines)


def measured_table(data: dict) -> str:
    """Return the table of measured errors: a row per format and interval, a column per budget."""
    lines = []
    for precision, lower in itertools.product(FORMATS, LOWERS):
        found = [data["now"][f"{precision} {lower:g} {m} budget"] for m in PRODUCTS]
        cells = [
            f"{short(d['degrees'].split())} {d['matrices']:.3g} ({d['alike']:.3g})" for d in found
        ]
        lines.append([precision, f"{lower:g}", *cells])
    return table(["format", "lower", *(f"{m} products" for m in PRODUCTS)], lines)


def page(data: dict, measured: dict) -> str:
    """Return the page."""
    (row,) = (r for r in data["exact"] if r["products"] == 15)
    best = row["cells"][EXPONENTS.index(3)]
    text = PAGE.format(
        best=best["degrees"], error=best["error"], five=best["degree 5"], searched=SEARCHED,
        ms=data["ms"]["exact"], low=data["ms"]["bfloat16"], where=data["where"],
        exact_table=degrees_table(data["exact"]), low_table=degrees_table(data["bfloat16"]),
        measured=measured_table(measured),
    )  # fmt: skip
    return reflow(text)


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Search, write here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the page from the data.")] = None,
    measure: Annotated[str | None, typer.Option(help="Only measure, under this name.")] = None,
) -> None:
    """Search and measure into files, or write the page from the files that are kept."""
    if measure is not None:
        data = load(MEASURED)
        data[measure] = {
            f"{precision} {lower:g} {matmuls} {by}": measured(precision, lower, matmuls, by)
            for precision, lower, matmuls in itertools.product(FORMATS, LOWERS, PRODUCTS)
            for by in ("budget", "for_precision")
        }
        store(MEASURED, data)
    if json_file is not None:
        where = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        ms = {name or "exact": round(1e3 * seconds(name)) for name in (None, "bfloat16")}
        found = {name or "exact": rows(DEGREES, name) for name in (None, "bfloat16")}
        text = text_of({"where": f"{where}NumPy {np.__version__}", "ms": ms, **found}).encode()
        write_whole(json_file, lambda f: f.write(text))
    if markdown is not None:
        made = page(load(json_file or DATA), load(MEASURED)).encode()
        write_whole(markdown, lambda f: f.write(made))


PAGE = """# Best degrees for a budget of matrix products

With 15 products on [1e-3, 1], degrees {best} reach a worst error of {error}, and five steps of
degree 5 reach {five}.

Made by `python benchmarks/budget_table.py --markdown docs/evidence/budget.md` from
[data/budget.json](../data/budget.json) and
[data/budget_in_formats.json](../data/budget_in_formats.json). A row is a number of matrix products,
a column a condition number κ: singular values in [1/κ, 1]. Degrees 3, 5 and 9 take 2, 3 and 4
products. A cell has

- the degrees, the first applied first: 3·5⁵ is one step of degree 3 and then five of degree 5;
- the worst error |1 − σ| on the whole interval;
- in parentheses the error of degree 5 alone, with as many steps as the budget allows;
- ″ where more products have no effect.

`design.budget(1 / kappa, products)` returns the schedule, `design.frontier` a column, and
`design.costs` cost models for other shapes, symmetric products and the Gram form. With
`form="gram"` and `shape=(m, n)` the restarts that the format needs are placed and counted.

The search is exact: a composition has one number, the ratio of the ends of its image, and the best
next ratio grows with it. So only sequences that are not dominated by a cheaper one are followed. A
search with {searched} products for κ = 1e3 takes {ms} ms, {low} ms in bfloat16 (median of 8;
{where}).

## Exact arithmetic

{exact_table}

## bfloat16

`precision="bfloat16"`: every step is designed for the interval that rounding can reach before it
([number formats](../guide/precision.md)). The error includes a fifth of the bound of every
rounding, the largest part that was measured. No product is used for an improvement below 1/64 of
one rounding.

{low_table}

## Measured in number formats

Worst |1 − σ| on matrices of 128 rows with log-uniform singular values in [lower, 1], two seeds; in
parentheses that where entries are rounded alike (300 matrices). Formats are simulated.
`for_precision(..., matmuls=)` returns the same designs. An error near 1 or above means that so few
products do not suffice for the interval.

{measured}
"""

if __name__ == "__main__":
    typer.run(main)
