r"""Square roots and signs of general matrices against SciPy's, on the same matrices.

    python benchmarks/general_roots.py --page docs/evidence/roots.md \\
        --json docs/data/general_roots.json
    python benchmarks/general_roots.py --no-time --json ... --page ...    # accuracy alone

Accuracy: residuals ``|X^2 - A|_F / (n u |X|_F^2)`` and ``|S^2 - I|_F / (n u |S|_F^2)``, u = 2^-53,
the worst of a family; for up to ten columns also the error against sixty digits over u and the norm
of the result. Times: interleaved calls in one thread, ratios of medians with the quartiles of the
ratios of neighbouring calls; above 1 polarlib is quicker. SciPy's signm takes one matrix of a stack
after the other.
"""

from __future__ import annotations

import functools
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import mpmath
import numpy as np
import scipy.linalg
import typer
from common import load, replace_part, restart_with, store, table, where

import polarlib
from polarlib.timing import interleaved, ratios

SECONDS = 3.0
UNIT = 2.0**-53
COUNT, SMALL = 200, 8
OURS = {"sqrtm": polarlib.sqrtm, "signm": polarlib.signm}
SCIPYS = {"sqrtm": scipy.linalg.sqrtm, "signm": scipy.linalg.signm}
# Columns up to which a result in sixty digits takes no time.
EXACT = 10


# -- matrices --------------------------------------------------------------------------------


def gaussian(*shape: int, seed: int = 0, is_complex: bool = False) -> np.ndarray:
    """Independent normal entries."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    return a + 1j * rng.standard_normal(shape) if is_complex else a


def disc(*shape: int, centre: float, seed: int = 0, is_complex: bool = False) -> np.ndarray:
    """Not normal, with eigenvalues within about 1 of a centre."""
    n = shape[-1]
    spread = gaussian(*shape, seed=seed, is_complex=is_complex) / n**0.5
    return centre * np.eye(n) + spread / (2**0.5 if is_complex else 1)


def near_axis(n: int, distance: float) -> np.ndarray:
    """A pair of eigenvalues at a distance from the negative axis, in an orthonormal basis."""
    a = np.diag(np.linspace(1, 2, n))
    a[:2, :2] = [[-1, distance], [-distance, -1]]
    q = np.linalg.qr(gaussian(n, n))[0]
    return q @ a @ q.T


def families() -> dict[str, dict[str, list[np.ndarray]]]:
    """Matrices of which accuracy is compared, by function."""
    several = range(20)
    roots = {
        "2 x 2": [disc(2, 2, centre=3, seed=s) for s in range(200)],
        "10 x 10": [disc(10, 10, centre=1.5, seed=s) for s in several],
        "10 x 10, complex": [disc(10, 10, centre=1.5, seed=s, is_complex=True) for s in several],
        "100 x 100": [disc(100, 100, centre=1.5, seed=s) for s in range(3)],
        "300 x 300": [disc(300, 300, centre=1.5)],
        "200 of 8 x 8": list(disc(COUNT, SMALL, SMALL, centre=2)),
        "Jordan block of 0.1, 10 x 10": [0.1 * np.eye(10) + np.eye(10, k=1)],
        "10 x 10, 1e-6 off the negative axis": [near_axis(10, 1e-6)],
        "10 x 10, 1e-12 off the negative axis": [near_axis(10, 1e-12)],
    }
    signs = {
        "2 x 2": [gaussian(2, 2, seed=s) for s in range(200)],
        "10 x 10": [gaussian(10, 10, seed=s) for s in several],
        "10 x 10, complex": [gaussian(10, 10, seed=s, is_complex=True) for s in several],
        "100 x 100": [gaussian(100, 100, seed=s) for s in range(3)],
        "300 x 300": [gaussian(300, 300)],
        "200 of 8 x 8": list(gaussian(COUNT, SMALL, SMALL)),
        "Jordan blocks of 0.1 and -0.1, 10 x 10": [
            np.diag([0.1] * 5 + [-0.1] * 5) + np.eye(10, k=1)
        ],
    }
    return {"sqrtm": roots, "signm": signs}


# -- accuracy --------------------------------------------------------------------------------


def exact(name: str, a: np.ndarray) -> np.ndarray:
    """In sixty digits, by Newton's iterations without scaling."""
    with mpmath.workdps(60):
        y, z = mpmath.matrix(a.tolist()), mpmath.eye(len(a))
        change = mpmath.mpf(1)
        while change > 1e-30:
            other = z if name == "sqrtm" else y
            new = (y + mpmath.inverse(other)) / 2
            if name == "sqrtm":
                z = (z + mpmath.inverse(y)) / 2
            change, y = mpmath.mnorm(new - y, 1) / mpmath.mnorm(new, 1), new
        return np.array(y.tolist(), dtype=a.dtype)


def residual(name: str, x: np.ndarray, a: np.ndarray) -> float:
    """What squaring leaves, over n u and the square of the norm."""
    target = a if name == "sqrtm" else np.eye(len(a))
    return float(np.linalg.norm(x @ x - target) / (len(a) * UNIT * np.linalg.norm(x) ** 2))


def accuracy() -> list[dict[str, Any]]:
    """The worst figures of each family."""
    rows = []
    for name, groups in families().items():
        for family, matrices in groups.items():
            row: dict[str, Any] = {"function": name, "matrices": family, "count": len(matrices)}
            known = [exact(name, a) for a in matrices[:20]] if len(matrices[0]) <= EXACT else []
            for who, f in (("polarlib", OURS[name]), ("scipy", SCIPYS[name])):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = [f(a) for a in matrices]
                row[who] = max(residual(name, x, a) for x, a in zip(found, matrices, strict=True))
                errors = [
                    float(np.linalg.norm(x - e) / (UNIT * np.linalg.norm(e)))
                    for x, e in zip(found, known, strict=False)
                ]
                row[f"{who} error"] = max(errors) if errors else None
            rows.append(row)
    return rows


# -- time ------------------------------------------------------------------------------------


def timed() -> dict[str, np.ndarray]:
    """Matrices that both functions take."""
    sizes = {f"{n} x {n}": disc(n, n, centre=1.5) for n in (10, 100, 300)}
    return sizes | {f"{COUNT} of {SMALL} x {SMALL}": disc(COUNT, SMALL, SMALL, centre=2)}


def times(seconds: float) -> list[dict[str, Any]]:
    """Medians and ratios of each function and size."""
    rows = []
    for size, a in timed().items():
        for name in OURS:
            shifted = a if name == "sqrtm" else a - 1.5 * np.eye(a.shape[-1])
            functions: dict[str, Callable[[], Any]] = {
                "polarlib": functools.partial(OURS[name], shifted),
                "scipy": functools.partial(SCIPYS[name], shifted),
            }
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                each = interleaved(functions, seconds)
            low, _, high = statistics.quantiles(ratios(each, "scipy", "polarlib"), n=4)
            medians = {who: statistics.median(ts) for who, ts in each.items()}
            rows.append(
                {
                    "function": name,
                    "matrices": size,
                    **medians,
                    "ratio": medians["scipy"] / medians["polarlib"],
                    "quartiles": [low, high],
                    "rounds": len(each["scipy"]),
                }
            )
    return rows


# -- the page --------------------------------------------------------------------------------


def accuracy_table(rows: list[dict[str, Any]]) -> str:
    """Return the table of accuracy for the page."""
    header = (
        "function",
        "matrices",
        "residual, polarlib",
        "SciPy",
        "error / u, polarlib",
        "SciPy",
    )

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.2g}"

    keys = ("polarlib", "scipy", "polarlib error", "scipy error")
    cells = [(r["function"], r["matrices"], *(shown(r[k]) for k in keys)) for r in rows]
    return table(header, cells)


def time_table(rows: list[dict[str, Any]], machine: str) -> str:
    """Return the table of times for the page."""
    header = ("function", "matrices", "polarlib, ms", "SciPy, ms", "SciPy / polarlib", "quartiles")
    cells = [
        (
            r["function"],
            r["matrices"],
            f"{1e3 * r['polarlib']:.3g}",
            f"{1e3 * r['scipy']:.3g}",
            f"{r['ratio']:.2f}",
            "{:.2f}-{:.2f}".format(*r["quartiles"]),
        )
        for r in rows
    ]
    return f"One thread; {machine}.\n\n{table(header, cells)}"


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures.")] = None,
    page: Annotated[Path | None, typer.Option(help="Page whose tables are regenerated.")] = None,
    time: Annotated[bool, typer.Option(help="Time them, on an idle machine.")] = True,
    seconds: Annotated[float, typer.Option(help="Seconds per size.")] = SECONDS,
) -> None:
    """Compare."""
    restart_with(1)
    figures = load(json_file) if json_file and json_file.exists() else {}
    figures["accuracy"] = accuracy()
    parts = {"accuracy": accuracy_table(figures["accuracy"])}
    if time:
        figures["times"] = {"machine": where(), "rows": times(seconds)}
        parts["times"] = time_table(figures["times"]["rows"], figures["times"]["machine"])
    for name, body in parts.items():
        if page is None:
            typer.echo(f"{name}\n\n{body}\n")
        else:
            replace_part(page, name, body)
    if json_file is not None:
        store(json_file, figures)


if __name__ == "__main__":
    typer.run(main)
