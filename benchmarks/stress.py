"""Accuracy in low precision: the default schedule and published sets at equal matrix products.

    python benchmarks/stress.py --json docs/data/stress.json          # measure everything
    python benchmarks/stress.py --json docs/data/stress.json --part range --part scale
    python benchmarks/stress.py --json docs/data/stress.json --peers FOLDER --part packages
    python benchmarks/stress.py --markdown docs/evidence/stress.md    # page and figure

A measurement replaces its parts of the file and keeps the others. Number formats are simulated on
NumPy; other packages run in torch or JAX. Nothing is timed. stress_cases.py and stress_range.py
measure, stress_page.py makes the page.
"""

from __future__ import annotations

import importlib.util
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import peers as other
import stress_cases as cases
import stress_range as ranges
import typer
from common import load, text_of
from rich.console import Console
from stress_page import draw, page

from polarlib.files.whole import write_whole

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "docs" / "data" / "stress.json"
FIGURES = ROOT / "docs" / "figures"


def plain(value: Any) -> Any:
    """Convert to JSON: numbers with four digits, None for infinity and NaN."""
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value.tolist()]
    if isinstance(value, cases.Safety):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def kept_means(figures: np.ndarray) -> np.ndarray:
    """Return the means over the cases that did not diverge."""
    kept = figures[figures[:, -1] < cases.DIVERGED - 1]
    return kept.mean(axis=0) if len(kept) else np.full(figures.shape[1], math.inf)


def row_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return what the file has of a comparison."""
    made = {key: row[key] for key in ("name", "format", "products")}
    made |= {"results": len(row["published"]), "diverges": cases.diverged(row["published"])}
    means = [row[side].mean(axis=0) for side in cases.SIDES]
    made |= {
        "counts": cases.counts(row),
        "outcome": cases.outcome(*means, row["format"]),
    }
    for side in cases.SIDES:
        made[side] = {"mean": kept_means(row[side]), "worst": row[side].max(axis=0)}
    return made


# -- parts -----------------------------------------------------------------------------------


def size(quick: bool) -> tuple[int, tuple[int, ...], int]:
    """Return the number of columns, aspect ratios and draws of the matrices."""
    return (32, (1, 4), 1) if quick else (128, (1, 4, 8), 3)


def compared(quick: bool, console: Console) -> dict[str, Any]:
    """Compare published sets on two groups of spectra and on the bundled gradients."""
    n, aspects, seeds = size(quick)
    rows = []
    for precision in cases.FORMATS:
        groups = {
            "stress": cases.stress_cases(cases.STRESS, precision, n, aspects, seeds),
            "adversarial": cases.stress_cases(cases.ADVERSARIAL, precision, n, aspects, seeds),
            "gradients": cases.gradient_cases(precision, 2 if quick else 1000),
        }
        for group, matrices in groups.items():
            for row in cases.compare(matrices, precision, console):
                rows.append({"group": group, **row_of(row)})
    found = {"shapes": ", ".join(f"{a * n} x {n}" for a in aspects), "seeds": seeds}
    return {**found, "compared": rows}


def safety(quick: bool, console: Console) -> dict[str, Any]:
    """Measure the largest singular values over hostile matrices."""
    sizes = (16,) if quick else (64, 128)
    shapes = f"n = {' and '.join(map(str, sizes))}, square, 4 : 1 and 8 : 1"
    return {"safety": cases.safety_rows(sizes, console), "safety shapes": shapes}


def remedies(quick: bool, _: Console) -> dict[str, Any]:
    """Measure sets for other functions, sets that are accurate near 1, and zero values."""
    n, aspects, _ = size(quick)
    return {
        "scalar": cases.scalar_rows(),
        "others": cases.other_rows(),
        "gentle": cases.gentle_rows(n, aspects),
        "zeros": cases.zero_rows(n, aspects),
    }


def in_range(quick: bool, console: Console) -> dict[str, Any]:
    """Measure the range of formats."""
    jobs = ranges.QUICK_RANGE_JOBS if quick else ranges.RANGE_JOBS
    return {"range": ranges.range_part(list(ranges.range_results(jobs, console)), jobs)}


def scale(quick: bool, _: Console) -> dict[str, Any]:
    """Measure invariance under scaling."""
    return {"scale": ranges.scale_rows(quick)}


def native(quick: bool, _: Console) -> dict[str, Any]:
    """Compare the simulated and the native bfloat16; needs torch."""
    shapes = [(32, 32)] if quick else [(256, 256), (1024, 256)]
    return {"native": {f"{m} x {k}": ranges.agreement((m, k)) for m, k in shapes}}


def packages(quick: bool, console: Console, folder: Path | None = None) -> dict[str, Any]:
    """Run the code of other packages, as installed and in a folder of checkouts."""
    found, missing = other.find(folder)
    for name, why in missing.items():
        console.print(f"{name} is not compared: {why}", markup=False)
    n = 32 if quick else 128
    rows = [
        (row_of(row) | {key: row[key] for key in ("source", "pitfalls")})
        if "published" in row
        else {"name": row["name"], "pitfalls": row["pitfalls"]}
        for row in ranges.peer_rows(found, n, size(quick)[1])
    ]
    versions = sorted({f"{p.name.partition(',')[0]} {p.source}" for p in found.values()})
    return {"packages": rows, "packages n": n, "packages versions": versions}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "compared": compared,
    "safety": safety,
    "remedies": remedies,
    "range": in_range,
    "scale": scale,
    "native": native,
    "packages": packages,
}


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Measure, write here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the page and its figure.")] = None,
    part: Annotated[list[str] | None, typer.Option(help="Part to measure; all by default.")] = None,
    peers: Annotated[Path | None, typer.Option(help="Folder of other packages.")] = None,
    quick: Annotated[bool, typer.Option(help="Measure small matrices, one draw.")] = False,
) -> None:
    """Measure into a file, or write the page from the file that is kept."""
    console = Console(width=200)
    if unknown := set(part or ()) - set(PARTS):
        raise typer.BadParameter(f"{', '.join(unknown)}; known: {', '.join(PARTS)}")
    if json_file is not None:
        data = load(json_file)
        for name in part or PARTS:
            if name == "native" and not importlib.util.find_spec("torch"):
                continue
            more = {"folder": peers} if name == "packages" else {}
            data |= plain(PARTS[name](quick, console, **more))
            data["machine"] = f"{platform.machine()}, NumPy {np.__version__}"
            text = text_of(data).encode()  # after each part, since the last ones may fail
            write_whole(json_file, lambda f, text=text: f.write(text))
    if markdown is not None:
        data = load(DATA if json_file is None else json_file)
        write_whole(markdown, lambda f: f.write(page(data).encode()))
        draw(data["compared"], FIGURES)


if __name__ == "__main__":
    typer.run(main)
