"""The best degrees for a number of matrix products, by condition number; and how long they take.

    python benchmarks/budget_table.py [--markdown docs/budget.md]

The page is made by this script and by nothing else.
"""

from __future__ import annotations

import itertools
import os
import platform
import statistics
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from polarlib.design.budget import DegreeSequence, frontier
from polarlib.files.whole import write_whole
from polarlib.timing import interleaved

BUDGETS = range(6, 25)
EXPONENTS = (1, 2, 3, 5, 7, 10, 16)
DEGREES = (3, 5, 9)
SEARCHED = 20  # products of the search that is timed
POWERS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def short(degrees: tuple[int, ...]) -> str:
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


def main(
    markdown: Annotated[Path | None, typer.Option(help="Write a page with the tables.")] = None,
) -> None:
    """Print one table for exact arithmetic and one for bfloat16."""
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
    Console().print(parts[0])
    if markdown is not None:
        write_whole(markdown, lambda f: f.write("\n".join(parts).encode()))


PAGE = """# Best degrees for a budget of matrix products

Made by `python benchmarks/budget_table.py --markdown docs/budget.md`; nothing here is typed by
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

`precision="bfloat16"`: every step leaves room for the rounding of the one before; steps whose
rounding noise exceeds half of the smallest value that they give to the interval they were designed
for are not used, which leaves out degree 9 on wide intervals. The error includes the rounding noise
of the last step, and an improvement below one rounding is not worth a product.

"""

if __name__ == "__main__":
    typer.run(main)
