"""Leading singular triplets: products with a vector at equal error, and time against SciPy.

    python benchmarks/top_singular.py [--markdown docs/evidence/top_singular.md] [--quick]

First table: Gaussian 500 x 500, k = 5. Each iteration is run to smaller and smaller residuals,
without certificate, until the error of ``U_k V_k^T`` is what is asked for. Second table: medians of
interleaved runs of whole calls, certificate included.
"""

from __future__ import annotations

import inspect
import os
import platform
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy
import scipy.sparse.linalg
import typer
from common import replace_part
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from polarlib.arrays.ops import ops_of
from polarlib.norms import krylov, topk
from polarlib.timing import interleaved

SIZE, K = 500, 5
TARGETS = (1e-2, 1e-4, 1e-6)
# Products and error for 500 x 500 and k = 5: arXiv 2512.09678, section "Computing the Updates".
PUBLISHED = {
    "power, one after another": "2005 (9e-3)",
    "randomized": "1170 (1e-2)",
    "lanczos": "131 (1e-4)",
}
CASES = [
    *(("float64", n, 5) for n in (128, 256, 512, 1024, 2048)),
    *(("float32", n, 5) for n in (128, 256, 512, 1024)),
    *((dtype, n, n // r) for dtype in ("float64", "float32") for n in (256, 512) for r in (16, 8)),
]
# Before SciPy 1.15 the argument had another name.
_PARAMETERS = inspect.signature(scipy.sparse.linalg.svds).parameters
SEEDED = {"rng" if "rng" in _PARAMETERS else "random_state": 0}
COLUMNS = ("svd", "lanczos", "block_krylov", "arpack", "svds arpack", "svds propack")
RTOL = topk.RTOL
# Power iterations for each vector after which we give up.
MOST = 2000

Triplets = tuple[Any, Any, Any]


def gaussian(n: int, seed: int, dtype: str = "float64") -> np.ndarray:
    """Square Gaussian matrix."""
    return np.random.default_rng(seed).standard_normal((n, n)).astype(dtype)


# -- products at equal error -----------------------------------------------------------------


def power(a: np.ndarray, seed: int) -> Iterator[tuple[Triplets, int]]:
    """Power iterations for one triplet after another, each taken off the matrix, doubled."""
    iterations = 25
    while iterations < MOST:
        rest, found = a.copy(), []
        rng = np.random.default_rng(seed)
        for _ in range(K):
            v = rng.standard_normal(a.shape[1])
            for _ in range(iterations):
                v = rest.T @ (rest @ v)
                v /= np.linalg.norm(v)
            w = rest @ v
            s = np.linalg.norm(w)
            found.append((w / s, s, v))
            rest -= np.outer(w, v)
        u, s, v = (np.array(t).T for t in zip(*found, strict=True))
        yield (u, s, v), K * (2 * iterations + 1)
        iterations = iterations * 7 // 5


def iteration(name: str) -> Callable[[np.ndarray, int], Iterator[tuple[Triplets, int]]]:
    """Run one of the library's iterations to ever smaller residuals."""

    def run(a: np.ndarray, seed: int) -> Iterator[tuple[Triplets, int]]:
        ops, scaled = ops_of(a), a / 4.0
        for rtol in np.geomspace(1, 1e-9, 28):
            if name == "lanczos":
                found, products = krylov._krylov(scaled, scaled.T, K, ops, 1, rtol)
            elif name == "block_krylov":
                block = K + krylov.OVERSAMPLING
                found, products = krylov._krylov(scaled, scaled.T, K, ops, block, rtol)
            elif name == "arpack":
                found, products = krylov._arpack(scaled, scaled.T, K, ops, rtol)
            else:
                found, products = krylov._subspace(scaled, scaled.T, K, ops, rtol)
            if found is None:
                return
            u, s, v = found
            yield (u, s * 4.0, v), products

    return run


SOLVERS = {
    "power, one after another": power,
    **{name: iteration(name) for name in ("randomized", "block_krylov", "arpack", "lanczos")},
}


def products_needed(seeds: int) -> list[list[str]]:
    """Lines of the first table: medians over matrices of the products that an error takes."""
    krylov.BUDGET, usual = 100, krylov.BUDGET  # the iterations alone, however long
    needed: dict[str, list[list[float]]] = {name: [] for name in SOLVERS}
    values: dict[str, list[float]] = {name: [] for name in SOLVERS}
    for seed in range(seeds):
        a = gaussian(SIZE, seed)
        u, s, vh = np.linalg.svd(a)
        factor = u[:, :K] @ vh[:K]
        for name, run in SOLVERS.items():
            first = [float("inf")] * len(TARGETS)
            for (p, t, q), products in run(a, seed):
                error = np.linalg.norm(p @ q.T - factor) / K**0.5
                if error <= TARGETS[0] and first[0] == float("inf"):
                    values[name].append(np.abs(t / s[:K] - 1).max())
                first = [
                    min(f, products) if error <= target else f
                    for f, target in zip(first, TARGETS, strict=True)
                ]
                if max(first) < float("inf"):
                    break
            needed[name].append(first)
    krylov.BUDGET = usual
    lines = []
    for name, counts in needed.items():
        medians = [statistics.median(c) for c in zip(*counts, strict=True)]
        shown = [
            f"{m:.0f}" if m < float("inf") else f"above {2 * K * MOST // 1000 * 1000}"
            for m in medians
        ]
        at = f"{statistics.median(values[name]):.0e}" if values[name] else ""
        lines.append([name, *shown, at, PUBLISHED.get(name, "")])
    return lines


# -- time ------------------------------------------------------------------------------------


def svds(a: np.ndarray, k: int, solver: str, tol: float) -> Triplets:
    """SciPy's triplets, largest first."""
    most = 100 * k if solver == "propack" else None  # its default gives up on Gaussian matrices
    u, s, vh = scipy.sparse.linalg.svds(a, k, tol=tol, solver=solver, maxiter=most, **SEEDED)
    order = np.argsort(-s)
    return u[:, order], s[order], vh[order].T


def certified(a: np.ndarray, k: int, solver: str, tol: float) -> bool:
    """Whether our certificate accepts SciPy's triplets."""
    u, s, v = svds(a, k, solver, tol)
    ops = ops_of(a)
    return krylov._is_certified(a, u, s, v, krylov._residual(a, a.T, u, s, v, ops), RTOL, ops)


def calls(a: np.ndarray, k: int) -> dict[str, Callable[[], Any]]:
    """Functions to time on one matrix."""
    functions: dict[str, Callable[[], Any]] = {
        m: partial(topk.triplets, a, k, method=m) for m in COLUMNS[:4]
    }
    if a.dtype == np.float64:
        for solver in ("arpack", "propack"):
            # SciPy squares `tol`. The loosest one is taken whose result would be certified.
            for tol in (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6, 1e-8):
                if certified(a, k, solver, tol):
                    functions["svds " + solver] = partial(svds, a, k, solver, tol)
                    break
    return functions


def times(cases: list[tuple[str, int, int]], seconds: float) -> list[list[str]]:
    """Lines of the second table, milliseconds."""
    lines = []
    for dtype, n, k in cases:
        a = gaussian(n, 1, dtype)
        functions = calls(a, k)
        runs = interleaved(functions, seconds)
        median = {c: 1e3 * statistics.median(t) for c, t in runs.items()}
        shown = [f"{median[c]:.1f}" if c in median else "" for c in COLUMNS]
        ratio = f"{median['arpack'] / median['svd']:.2f}"
        auto = topk.triplets(a, k).method
        lines.append([dtype, str(n), str(k), *shown, ratio, auto])
    return lines


def main(
    markdown: Annotated[
        Path | None, typer.Option(help="Page whose part between the markers is regenerated.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Few matrices, small sizes, short runs.")] = False,
) -> None:
    """Count products, time calls on one BLAS thread, and print two tables."""
    threadpool_limits(limits=1)
    first_header = ["iteration", *(f"to {t:.0e}" for t in TARGETS)]
    first_header += ["error of values then", "published (error)"]
    first = products_needed(1 if quick else 5)
    second_header = ["dtype", "n", "k", *COLUMNS, "arpack / svd", "auto"]
    second = times(CASES[:3] if quick else CASES, 0.2 if quick else 1.0)
    where = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
    where += f"NumPy {np.__version__}, SciPy {scipy.__version__}"
    titles = (
        f"Products with a vector until the error of U_k V_k^T is small: Gaussian {SIZE} x {SIZE}, "
        f"k = {K}, medians of {1 if quick else 5} matrices.",
        f"Milliseconds of a call, Gaussian n x n, rtol {RTOL:.0e}; medians of interleaved runs. "
        f"One BLAS thread. Machine: {where}.",
    )
    for title, header, lines in zip(
        titles, (first_header, second_header), (first, second), strict=True
    ):
        table = Table(*header, title=title)
        for line in lines:
            table.add_row(*line)
        Console(width=180).print(table)
    if markdown is not None:
        made = "\n\n".join(
            title
            + "\n\n"
            + "\n".join("| " + " | ".join(r) + " |" for r in (h, ["---"] * len(h), *l))
            for title, h, l in zip(
                titles, (first_header, second_header), (first, second), strict=True
            )
        )
        replace_part(markdown, "top_singular", made)


if __name__ == "__main__":
    typer.run(main)
