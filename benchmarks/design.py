"""Computing times of design functions, and certified gaps to the least error.

    python benchmarks/design.py --json docs/data/design.json        # measure
    python benchmarks/design.py --markdown docs/evidence/design.md  # tables from that file

Medians of repeated calls after one to warm up, each with empty caches of steps. The gap is the
certified upper bound of a schedule's worst error minus the certified least error of any composition
of the same degrees.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import mpmath
import typer
from common import load, replace_part, store, table

from polarlib import design
from polarlib.timing import interleaved

SECONDS = 1.0  # per line at least, with at least five calls


def forget() -> None:
    """Empty the caches of steps, but not the contexts of multiple precision."""
    for name, module in list(sys.modules.items()):
        if name.startswith("polarlib."):
            for cached in vars(module).values():
                if hasattr(cached, "cache_clear") and cached.__name__ != "_multiple":
                    cached.cache_clear()


def median(f: Callable[[], Any]) -> tuple[float, int]:
    """Return the median milliseconds of a call, and the number of calls."""
    times = interleaved({"": f}, SECONDS, situation=forget)[""]
    return 1e3 * statistics.median(times), len(times)


def cases() -> dict[str, Callable[[], Any]]:
    """Return the timed calls by description."""
    five = design.greedy(1e-3, [5] * 5)
    return {
        "best step of degree 5 on [1e-3, 1], doubles": lambda: design.best(5, 1e-3),
        "best polynomial of degree 9 on [1e-3, 1], doubles": lambda: design.best(9, 1e-3),
        "best polynomial of degree 17 on [1e-8, 1], 50 digits": lambda: design.best(
            17, 1e-8, digits=50
        ),
        "five steps of degree 5, greedy, on [1e-3, 1]": lambda: design.greedy(1e-3, [5] * 5),
        "its certificate": five.certify,
        "least error of any five steps of degree 5, certified": lambda: design.least_error(
            1e-3, [5] * 5
        ),
        "budget of 20 products on [1e-3, 1], degrees 3, 5, 9": lambda: design.budget(1e-3, 20),
        "the same for bfloat16": lambda: design.budget(1e-3, 20, precision="bfloat16"),
        "five steps for bfloat16": lambda: design.for_precision("bfloat16", 1e-3, steps=5),
        "widest interval into [0.7, 1.3] in five steps of degree 5": lambda: design.band(5, 0.3),
        "three steps for Marchenko-Pastur, 1024 x 256": lambda: design.for_spectrum(
            design.marchenko_pastur(1024, 256), 3
        ),
        "rational steps for [1e-16, 1], r = 8": lambda: design.zolotarev(8, 1e-16),
    }


DATA = Path(__file__).resolve().parent.parent / "docs" / "data" / "design.json"
GAPS = [(1e-3, [5] * 5), (1e-3, [3, 5, 5, 5, 5, 5]), (1e-8, [9] * 4), (1e-16, [5] * 15)]


def measure() -> dict[str, Any]:
    """Time the solver and certify its results."""
    times = [
        dict(zip(("design", "ms", "calls"), (n, *median(f)), strict=True))
        for n, f in cases().items()
    ]
    gaps = []
    for lower, degrees in GAPS:
        s = design.greedy(lower, degrees)
        most = s.certify().upper
        gap = float(f"{most - design.least_error(lower, degrees):.2g}")
        gaps.append(
            {"lower": lower, "degrees": degrees, "products": s.matmuls, "error": most, "gap": gap}
        )
    return {
        "mpmath": f"{mpmath.__version__} on {mpmath.libmp.BACKEND}",
        "times": times,
        "gaps": gaps,
    }


def tables(data: dict[str, Any]) -> str:
    """Return the tables of the page."""
    times = [[r["design"], f"{r['ms']:.3g}", str(r["calls"])] for r in data["times"]]
    gaps = [
        [
            f"{r['lower']:g}",
            ", ".join(map(str, r["degrees"])),
            str(r["products"]),
            f"{r['error']:.12g}",
            f"{r['gap']:.1e}",
        ]
        for r in data["gaps"]
    ]
    head = ["lower", "degrees", "products", "error at most", "above the least error by at most"]
    return "\n\n".join(
        [
            "Made by `python benchmarks/design.py --markdown docs/evidence/design.md` from "
            "[data/design.json](../data/design.json); multiple precision by mpmath "
            f"{data['mpmath']}.",
            table(["design", "ms, median", "calls"], times),
            table(head, gaps),
        ]
    )


def summary(data: dict[str, Any]) -> str:
    """Return the sentence on top of the page."""
    ms = {r["design"]: r["ms"] for r in data["times"]}
    gap = max(r["gap"] for r in data["gaps"])
    return (
        f"Compositions of `greedy` are within {gap:.2g} of the least worst error of their degrees\n"
        f"(certified, four cases). Five steps of degree 5 take {ms[FIVE]:.1f} ms to design, and "
        f"{ms[LOW]:.0f} ms for bfloat16."
    )


FIVE, LOW = "five steps of degree 5, greedy, on [1e-3, 1]", "five steps for bfloat16"


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Measure, write here.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Page whose parts between markers are rewritten.")
    ] = None,
) -> None:
    """Measure into a file, or write the tables of the page from the file that is kept."""
    data = load(DATA) if json_file is None else measure()
    if json_file is not None:
        store(json_file, data)
    if markdown is not None:
        replace_part(markdown, "design", tables(data))
        replace_part(markdown, "summary", summary(data))


if __name__ == "__main__":
    typer.run(main)
