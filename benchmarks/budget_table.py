"""The best degrees for a number of matrix products, by condition number; and how long they take.

    python benchmarks/budget_table.py [--markdown docs/evidence/budget.md]
    python benchmarks/budget_table.py --measure now

The page is made by this script and by nothing else. The second call measures the worst errors of
designs for number formats and adds them to docs/data/budget_in_formats.json; "before" are those of
two models of rounding, one for `budget` and one for `for_precision`: the same call with an older
package on PYTHONPATH.
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
from common import load, store
from lowbits import chain, result
from rich.console import Console
from rich.table import Table

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
# Formats, lower ends and products of the designs that are measured, and the file of the errors.
FORMATS = ("float32", "tf32", "float16", "bfloat16", "float8_e4m3", "float8_e5m2")
LOWERS, PRODUCTS = (1e-1, 1e-2, 1e-3), (6, 9, 12, 15)
DATA = Path(__file__).parent.parent / "docs/data/budget_in_formats.json"
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
    """Last entry that a budget affords: a smaller one gives the beginning of the list."""
    return next((c for c in reversed(found) if c.cost <= matmuls), None)


def rows(degrees: tuple[int, ...], precision: str | None) -> list[list[str]]:
    """Cells for all budgets and condition numbers: degrees, error, error of quintics only."""
    pairs = [
        [frontier(10.0**-k, max(BUDGETS), degrees=d, precision=precision) for d in (degrees, [5])]
        for k in EXPONENTS
    ]
    table = []
    for matmuls in BUDGETS:
        cells = [str(matmuls)]
        for found in pairs:
            mixed, quintics = (within(f, matmuls) for f in found)
            if mixed is None:
                cells.append("—")
            elif matmuls > found[0][-1].cost:  # nothing more to gain
                cells.append("″")
            else:
                other = figure(quintics.error) if quintics else "—"
                cells.append(f"{short(mixed.degrees)} {figure(mixed.error)} ({other})")
        table.append(cells)
    return table


def seconds(precision: str | None) -> float:
    """Median time of a search, each on an interval that was not seen before."""
    lowers = (1e-3 * (1 + k / 1000) for k in itertools.count())

    def search() -> None:
        frontier(next(lowers), SEARCHED, degrees=DEGREES, precision=precision)

    return statistics.median(interleaved({"": search}, 0, least=8)[""])


def measured(precision: str, lower: float, matmuls: int, by: str) -> dict[str, object]:
    """Degrees and error of a design; measured, rounded alike and on matrices of 128 rows."""
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


def comparison() -> str:
    """The measured errors as a table: both models before, and the one now."""
    data = load(DATA)
    lines = [["format", "lower", "products", "before: budget", "before: for_precision", "now"]]
    lines.append(["---"] * len(lines[0]))
    for precision, lower, matmuls in itertools.product(FORMATS, LOWERS, PRODUCTS):
        row = [precision, f"{lower:g}", str(matmuls)]
        for label, by in (("before", "budget"), ("before", "for_precision"), ("now", "budget")):
            d = data[label][f"{precision} {lower:g} {matmuls} {by}"]
            row.append(f"{short(d['degrees'].split())} {d['matrices']:.3g} ({d['alike']:.3g})")
        lines.append(row)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(
    markdown: Annotated[Path | None, typer.Option(help="Write a page with the tables.")] = None,
    measure: Annotated[str | None, typer.Option(help="Only measure, under this name.")] = None,
) -> None:
    """Print one table for exact arithmetic and one for bfloat16."""
    if measure is not None:
        data = load(DATA)
        data[measure] = {
            f"{precision} {lower:g} {matmuls} {by}": measured(precision, lower, matmuls, by)
            for precision, lower, matmuls in itertools.product(FORMATS, LOWERS, PRODUCTS)
            for by in ("budget", "for_precision")
        }
        store(DATA, data)
        return
    where = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
    where += f"NumPy {np.__version__}"
    header = ["products", *(f"1e{k}" for k in EXPONENTS)]
    parts = [
        PAGE.format(
            where=where, searched=SEARCHED, exact=1e3 * seconds(None), low=1e3 * seconds("bfloat16")
        )
    ]
    for precision, said in ((None, EXACT), ("bfloat16", LOW)):
        lines = rows(DEGREES, precision)
        table = Table(*header, title=precision or "exact arithmetic")
        for line in lines:
            table.add_row(*line)
        Console(width=240).print(table)
        body = [header, ["---"] * len(header), *lines]
        parts.append(said + "\n".join("| " + " | ".join(r) + " |" for r in body) + "\n")
    parts.append(MEASURED.format(table=comparison()))
    Console().print(parts[0])
    if markdown is not None:
        write_whole(markdown, lambda f: f.write("\n".join(parts).encode()))


PAGE = """# Best degrees for a budget of matrix products

Made by `python benchmarks/budget_table.py --markdown docs/evidence/budget.md`; nothing here is
typed by
hand. A row is a number of matrix products, a column a condition number κ: singular values in
[1/κ, 1]. Degrees 3, 5 and 9 cost 2, 3 and 4 products. A cell has

- the degrees, the first applied first: 3·5⁵ is one cubic and then five quintics;
- the worst error |1 − σ| that is left on the whole interval;
- in brackets the error of quintics alone, as many as the budget buys;
- ″ where more products gain nothing.

`design.budget(1 / kappa, products)` returns the schedule, `design.frontier` a column, and
`design.costs` makes cost models for other shapes, symmetric products and the Gram form; with
`form="gram"` and `shape=(m, n)` the restarts that the format needs are placed and counted.

The search is exact: a composition has one number, the ratio of the ends of its image, and the best
next ratio grows with it, so only sequences that no cheaper one beats are followed. A search with
{searched} products for κ = 1e3 takes {exact:.0f} ms, {low:.0f} ms in bfloat16 (median of 8;
{where}).
"""

EXACT = """## Exact arithmetic

"""

LOW = """## bfloat16

`precision="bfloat16"`: every step is designed on where rounding can have taken the singular values
before it ([low_precision.md](../guide/precision.md)). The error is that with a fifth of the bound
of
every rounding, the largest part that was measured, and an improvement below 1/64 of one rounding is
not worth a product.

"""

MEASURED = """## Measured in number formats

Worst |1 − σ| on matrices of 128 rows with log-uniform singular values in [lower, 1], two seeds; in
brackets that where entries are rounded alike (300 matrices). Formats are simulated as in
[low_precision.md](../guide/precision.md). Before there were two models of rounding, now there is
one,
the bound, and `for_precision(..., matmuls=)` gives the same. An error near 1 or above says that so
few products do not reach so far.

{table}
"""

if __name__ == "__main__":
    typer.run(main)
