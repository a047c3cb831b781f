"""svd_polar and eigh_polar against LAPACK: accuracy and counts, and times.

    python benchmarks/spectral_division.py                    # accuracy and counts: a minute
    python benchmarks/spectral_division.py --time             # times: below 90 seconds
    python benchmarks/spectral_division.py --page docs/evidence/spectral_division.md

The first two measure and write their part of docs/data/spectral_division.json; the last makes the
tables of the page from it. Matrices are ``Q diag(w) Q^H`` with Q a product of Householder
reflections, computed in extended precision and rounded once: their eigenvalues are w up to rounding
of the entries, about one unit. Times are medians of interleaved calls, with SciPy's in the same
process.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy.linalg
import typer
from common import replace_part, restart_with, table, where

import polarlib
from polarlib.arrays.ops import ops_of
from polarlib.files.whole import write_whole
from polarlib.timing import interleaved, ratios
from polarlib.uses import division as divide
from polarlib.uses.divide import SMALLEST

DATA = Path(__file__).parents[1] / "docs" / "data" / "spectral_division.json"
ORDER = 384  # of matrices that accuracy is measured on: two levels of divisions
REFLECTIONS = 4
DTYPES = ("float64", "float32")
SIZES = (256, 512, 1024)
ROUNDS, SECONDS = 3, 1.0


def spectra(n: int) -> dict[str, np.ndarray]:
    """Eigenvalues of largest modulus 1, by name."""
    signs = (-1.0) ** np.arange(n)
    rng = np.random.default_rng(7)
    return {
        "uniform in [-1, 1]": np.linspace(-1, 1, n),
        "condition 1e4, both signs": np.geomspace(1, 1e-4, n) * signs,
        "condition 1e16, both signs": np.geomspace(1, 1e-16, n) * signs,
        "condition 1e4, positive": np.geomspace(1, 1e-4, n),
        "two values": np.repeat([0.5, 1.0], [n // 2, n - n // 2]),
        "-1, 0, 1": np.repeat([-1.0, 0.0, 1.0], [n // 3, n // 3, n - 2 * (n // 3)]),
        "within 1e-6 of 1": 1 - 1e-6 * rng.random(n),
        "one large, others below 1e-8": np.r_[1e-8 * rng.random(n - 1), 1.0],
    }


def matrix(w: np.ndarray, dtype: str) -> np.ndarray:
    """``Q diag(w) Q^T``, rounded once."""
    rng = np.random.default_rng(11)
    a = np.diag(w.astype(np.longdouble))
    for _ in range(REFLECTIONS):
        v = rng.standard_normal(len(w)).astype(np.longdouble)
        v /= np.sqrt(np.sum(v * v))
        a = a - 2 * np.outer(v, v @ a)
        a = a - 2 * np.outer(a @ v, v)
    return ((a + a.T) / 2).astype(dtype)


# -- accuracy and counts -----------------------------------------------------------------------


def accuracy(a: np.ndarray, w: np.ndarray, s: Any, left: Any, right: Any) -> dict[str, float]:
    """Errors in units of u: of values, of ``A - L diag(s) R^H``, and of the orthonormality of L."""
    unit = float(np.finfo(a.dtype).eps) / 2
    exact = np.sort(w)
    size = float(np.abs(exact).max())
    a, s, left, right = (np.asarray(x, dtype=np.longdouble) for x in (a, s, left, right))
    return {
        "values": float(np.abs(np.sort(s) - exact).max()) / size / unit,
        "residual": norm(a - (left * s) @ right.T) / norm(a) / unit,
        "orthogonality": norm(left.T @ left - np.eye(len(w))) / unit / len(w) ** 0.5,
    }


def norm(x: np.ndarray) -> float:
    return float(np.sqrt(np.sum(x * x)))


@contextmanager
def counted() -> Iterator[list[tuple[int, int, int]]]:
    """Order, steps and products of each polar factor that divisions take meanwhile."""
    factors: list[tuple[int, int, int]] = []
    found = divide.unitary_factor

    def counting(x: np.ndarray, **how: Any) -> np.ndarray:
        r = polarlib.polar(x, method=how["method"])
        factors.append((len(x), r.iterations, r.matmuls))
        return found(x, **how)

    divide.unitary_factor = counting
    try:
        yield factors
    finally:
        divide.unitary_factor = found


def counts(h: np.ndarray, smallest: int) -> dict[str, Any]:
    """What a division consists of; products and factorisations in those of the whole order.

    A split has two products with S, two that transform the block, and one that turns its basis; in
    the end two check the result and one refines it. Eigenvectors of finished blocks are turned too.
    """
    n = len(h)
    with counted() as factors:
        d = divide.division(h, ops_of(h), smallest)

    def weight(m: int) -> float:
        return (m / n) ** 3

    own = sum(4 * weight(s.order) for s in d.splits) + 3
    turned = sum((m / n) ** 2 for m in (*(s.order for s in d.splits[1:]), *d.finished))
    return {
        "splits": len(d.splits),
        "factors": len(factors),
        "orders": [s.order for s in d.splits],
        "left": max((s.left for s in d.splits), default=0.0),
        "refused": len(d.refused),
        "finished": list(d.finished),
        "polar_steps": sum(k * weight(m) for m, k, _ in factors),
        "polar_products": sum(p * weight(m) for m, _, p in factors),
        "other_products": own + turned,
        "qr": 2 * sum(weight(s.order) for s in d.splits),
    }


def measure() -> list[dict[str, Any]]:
    """Rows of accuracy and counts."""
    rows = []
    for dtype in DTYPES:
        for name, w in spectra(ORDER).items():
            h = matrix(w, dtype)
            v = polarlib.eigh_polar(h)
            reference = scipy.linalg.eigh(h)
            svd = polarlib.svd_polar(h)
            lapack = scipy.linalg.svd(h)
            modulus = np.abs(w)
            rows.append({
                "dtype": dtype,
                "spectrum": name,
                "eigh_polar": accuracy(h, w, v.w, v.v, v.v),
                "scipy eigh": accuracy(h, w, reference[0], reference[1], reference[1]),
                "svd_polar": accuracy(h, modulus, svd.s, svd.u, svd.vh.T),
                "scipy svd": accuracy(h, modulus, lapack[1], lapack[0], lapack[2].T),
                "counts": counts(h, SMALLEST),
            })  # fmt: skip
    return rows


# -- times -------------------------------------------------------------------------------------


def times() -> list[dict[str, Any]]:
    """Rows of milliseconds, and the ratio of SciPy's time to ours."""
    rows = []
    for n in SIZES:
        for dtype in DTYPES:
            a = np.random.default_rng(3).standard_normal((n, n)).astype(dtype)
            h = a + a.T
            functions: dict[str, Callable[[], Any]] = {
                "eigh_polar": functools.partial(polarlib.eigh_polar, h),
                "scipy eigh": functools.partial(scipy.linalg.eigh, h),
                "svd_polar": functools.partial(polarlib.svd_polar, a),
                "scipy svd": functools.partial(scipy.linalg.svd, a),
            }
            seconds = interleaved(functions, SECONDS, least=ROUNDS)
            row: dict[str, Any] = {"n": n, "dtype": dtype, "rounds": len(seconds["eigh_polar"])}
            for ours, theirs in (("eigh_polar", "scipy eigh"), ("svd_polar", "scipy svd")):
                row[ours] = 1e3 * statistics.median(seconds[ours])
                row[theirs] = 1e3 * statistics.median(seconds[theirs])
                row[f"{ours} ratio"] = statistics.median(ratios(seconds, theirs, ours))
            rows.append(row)
    return rows


# -- the page ----------------------------------------------------------------------------------


def tables(figures: dict[str, Any]) -> dict[str, str]:
    """Parts of the page."""
    found = {}
    for ours, theirs, part in (
        ("eigh_polar", "scipy eigh", "eigenvalues"),
        ("svd_polar", "scipy svd", "singular values"),
    ):
        header = ["dtype", "spectrum"]
        for quantity in ("values", "residual", "orthogonality"):
            header += [f"{quantity}: {ours}", "LAPACK"]
        rows = []
        for row in figures["accuracy"]:
            cells = [row["dtype"], row["spectrum"]]
            for quantity in ("values", "residual", "orthogonality"):
                cells += [f"{row[name][quantity]:.1f}" for name in (ours, theirs)]
            rows.append(cells)
        found[part] = table(header, rows)
    header = ["dtype", "spectrum", "divisions", "orders divided", "polar factors", "steps of QDWH"]
    header += ["its products", "other products", "QR", "largest part left"]
    rows = []
    for row in figures["accuracy"]:
        c = row["counts"]
        orders = ", ".join(map(str, c["orders"][:4])) + (", ..." if len(c["orders"]) > 4 else "")
        weighted = [f"{c[k]:.1f}" for k in ("polar_steps", "polar_products", "other_products")]
        cells = [row["dtype"], row["spectrum"], str(c["splits"]), orders or "-", str(c["factors"])]
        rows.append([*cells, *weighted, f"{c['qr']:.1f}", f"{c['left']:.2f}"])
    found["counts"] = table(header, rows)
    if "times" not in figures:
        found["times"] = "Not timed yet: `python benchmarks/spectral_division.py --time`."
        return found
    names = ("eigh_polar", "scipy eigh", "svd_polar", "scipy svd")
    header = ["n", "dtype", *names, "scipy / eigh_polar", "scipy / svd_polar"]
    rows = [
        [
            str(row["n"]),
            row["dtype"],
            *(f"{row[name]:.1f}" for name in names),
            *(f"{row[f'{name} ratio']:.2f}" for name in ("eigh_polar", "svd_polar")),
        ]
        for row in figures["times"]
    ]
    machine = f"Milliseconds of a call, Gaussian matrices. Machine: {figures['machine']}.\n\n"
    found["times"] = machine + table(header, rows)
    return found


def main(
    timed: Annotated[bool, typer.Option("--time", help="Measure times alone.")] = False,
    threads: Annotated[int | None, typer.Option(help="Threads of each library.", min=1)] = None,
    page: Annotated[Path | None, typer.Option(help="Regenerate this page instead.")] = None,
    out: Annotated[Path, typer.Option(help="File of figures.")] = DATA,
) -> None:
    """Measure accuracy and counts, or times; or make the page of them."""
    restart_with(threads)
    figures = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    if page is not None:
        for name, body in tables(figures).items():
            replace_part(page, name, body)
        return
    if timed:
        figures |= {"times": times(), "machine": where()}
    else:
        figures["accuracy"] = measure()
    body = f"{json.dumps(figures, indent=1)}\n".encode()
    write_whole(out, lambda file: file.write(body))


if __name__ == "__main__":
    typer.run(main)
