"""How long the coefficient solver takes, and how far its results are from the best there is.

    python benchmarks/design.py [--markdown docs/guide/design.md]

Medians of repeated calls after one to warm up, each with the library's caches of steps empty. The
gap is the certified upper bound of a schedule's worst error less the certified least error of any
composition of the same degrees.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import mpmath
import typer
from common import replace_part
from rich.console import Console
from rich.table import Table

from polarlib import design
from polarlib.timing import interleaved

SECONDS = 1.0  # spent on each line at least, five calls at least


def forget() -> None:
    """Empty the caches that a call may have filled, but for the contexts of multiple precision."""
    for name, module in list(sys.modules.items()):
        if name.startswith("polarlib."):
            for cached in vars(module).values():
                if hasattr(cached, "cache_clear") and cached.__name__ != "_multiple":
                    cached.cache_clear()


def median(f: Callable[[], Any]) -> tuple[float, int]:
    """Median milliseconds of a call, and the number of calls."""
    times = interleaved({"": f}, SECONDS, situation=forget)[""]
    return 1e3 * statistics.median(times), len(times)


def cases() -> dict[str, Callable[[], Any]]:
    """What is timed, in words."""
    five = design.greedy(1e-3, [5] * 5)
    return {
        "best quintic on [1e-3, 1], doubles": lambda: design.best(5, 1e-3),
        "best polynomial of degree 9 on [1e-3, 1], doubles": lambda: design.best(9, 1e-3),
        "best polynomial of degree 17 on [1e-8, 1], 50 digits": lambda: design.best(
            17, 1e-8, digits=50
        ),
        "five quintics, greedy, on [1e-3, 1]": lambda: design.greedy(1e-3, [5] * 5),
        "its certificate": five.certify,
        "least error of any five quintics, certified": lambda: design.least_error(1e-3, [5] * 5),
        "budget of 20 products on [1e-3, 1], degrees 3, 5, 9": lambda: design.budget(1e-3, 20),
        "the same for bfloat16": lambda: design.budget(1e-3, 20, precision="bfloat16"),
        "five steps for bfloat16": lambda: design.for_precision("bfloat16", 1e-3, steps=5),
        "widest interval into [0.7, 1.3] in five quintics": lambda: design.band(5, 0.3),
        "three quintics for Marchenko-Pastur, 1024 x 256": lambda: design.for_spectrum(
            design.marchenko_pastur(1024, 256), 3
        ),
        "rational steps for [1e-16, 1], r = 8": lambda: design.zolotarev(8, 1e-16),
    }


GAPS = [(1e-3, [5] * 5), (1e-3, [3, 5, 5, 5, 5, 5]), (1e-8, [9] * 4), (1e-16, [5] * 15)]


def main(
    markdown: Annotated[
        Path | None, typer.Option(help="Page whose part between the markers is made anew.")
    ] = None,
) -> None:
    """Time the solver, certify its results, print tables."""
    console = Console()
    times = [(name, *median(f)) for name, f in cases().items()]
    table = Table("design", "milliseconds", "calls")
    for name, ms, calls in times:
        table.add_row(name, f"{ms:.3g}", str(calls))
    console.print(table)
    gaps = []
    for lower, degrees in GAPS:
        s = design.greedy(lower, degrees)
        least, most = design.least_error(lower, degrees), s.certify().upper
        gaps.append((lower, ", ".join(map(str, degrees)), s.matmuls, most, most - least))
    table = Table("lower", "degrees", "products", "error at most", "above the least by at most")
    for lower, degrees, products, most, gap in gaps:
        table.add_row(f"{lower:g}", degrees, str(products), f"{most:.12g}", f"{gap:.1e}")
    console.print(table)
    if markdown is None:
        return
    lines = [
        f"Made by `python benchmarks/design.py --markdown {markdown.as_posix()}`; multiple "
        f"precision by mpmath {mpmath.__version__} on {mpmath.libmp.BACKEND}.",
        "",
        "| design | ms, median | calls |",
        "|---|---|---|",
        *(f"| {name} | {ms:.3g} | {calls} |" for name, ms, calls in times),
        "",
        "| lower | degrees | products | error at most | above the least possible by at most |",
        "|---|---|---|---|---|",
        *(f"| {l:g} | {d} | {p} | {e:.12g} | {g:.1e} |" for l, d, p, e, g in gaps),
    ]
    replace_part(markdown, "design", "\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
