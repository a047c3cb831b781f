"""Leading singular triplets: products with a vector until an error is reached."""

from __future__ import annotations

import inspect
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import scipy.linalg
from common import Output, main, panels
from matplotlib.figure import Figure
from scipy.sparse.linalg import LinearOperator, svds

from polarlib import plot, testing
from polarlib.norms.topk import triplets

Array = np.ndarray
K, N, SEEDS = 5, 500, 5
OVERSAMPLING = 10
TARGETS = (1e-2, 1e-4, 1e-6)
# The table of the paper for 500 x 500 and k = 5: products and error.
PRINTED = {"power": (2005, 9.2e-3), "randomized": (1170, 9.8e-3), "lanczos": (131, 9.6e-5)}
# Its errors for k = 50, and its iterations for (size, k) = (500, 5), (500, 50), (5000, 5).
MANY, MANY_ERRORS = 50, {"randomized": 9.9e-3, "lanczos": 3.3e-7}
TRIPLETS = (5, 50, 5)
ITERATIONS = {"power": (200, 437, 906), "randomized": (38, 50, 187)}
TOLERANCES = np.geomspace(0.9, 1e-9, 40)
# Before SciPy 1.15 the argument had another name.
SEEDED = {"rng" if "rng" in inspect.signature(svds).parameters else "random_state": 0}
MOST = 12000  # products after which an iteration of ours gives up

# What a run gives, again and again with more work: left and right vectors as columns, products.
Found = tuple[Array, Array, int]


def cost(k: int, iterations: int) -> int:
    """Products of k times that many power iterations: two each, and one for the left vector."""
    return k * (2 * iterations + 1)


def block_cost(k: int, iterations: int) -> int:
    """Products of the randomized method: two for each vector of the block, and the first two."""
    return 2 * (k + OVERSAMPLING) * (iterations + 1)


def power(a: Array, k: int) -> Iterator[Found]:
    """Power iteration for one triplet after another, each taken off the matrix."""
    iterations = 10
    while cost(k, iterations) <= MOST:
        rest, left, right = a.copy(), [], []
        rng = np.random.default_rng(1)
        for _ in range(k):
            v: Array = rng.standard_normal((a.shape[1],))
            for _ in range(iterations):
                v = rest.T @ (rest @ v)
                v = v / np.linalg.norm(v)
            w = rest @ v
            left.append(w / np.linalg.norm(w))
            right.append(v)
            rest -= np.outer(w, v)
        yield np.array(left).T, np.array(right).T, cost(k, iterations)
        iterations = iterations * 5 // 4


def randomized(a: Array, k: int) -> Iterator[Found]:
    """Randomized subspace iteration on k + 10 vectors, orthonormalised in each half step.

    Halko, Martinsson and Tropp, SIAM Rev. 53 (2011), algorithms 4.4 and 5.1.
    """
    block = min(k + OVERSAMPLING, min(a.shape))
    q = np.random.default_rng(1).standard_normal((a.shape[1], block))
    products = 0
    while products <= MOST:
        left, _ = np.linalg.qr(a @ q)
        q, r = np.linalg.qr(a.T @ left)
        products += 2 * block
        p, _, gh = scipy.linalg.svd(r.T)
        yield left @ p[:, :k], q @ gh[:k].T, products


def library(method: str, a: Array, k: int) -> Iterator[Found]:
    """One of the library's iterations, to smaller and smaller errors."""
    for rtol in TOLERANCES:
        found = triplets(a, k, method=method, rtol=rtol)
        if found.method != method:  # the certificate failed, and the SVD was used
            continue
        yield found.u, found.vh.T, found.products


def scipys(solver: str, a: Array, k: int) -> Iterator[Found]:
    """SciPy's solvers, their products counted from outside."""
    count = 0

    def apply(matrix: Array, x: Array) -> Array:
        nonlocal count
        count += 1 if x.ndim == 1 else x.shape[1]
        return matrix @ x

    operator = LinearOperator(
        a.shape,
        matvec=partial(apply, a),
        rmatvec=partial(apply, a.T),
        matmat=partial(apply, a),
        rmatmat=partial(apply, a.T),
        dtype=a.dtype,
    )
    for tol in TOLERANCES[::4]:
        count = 0
        u, _, vh = svds(operator, k, tol=tol, solver=solver, maxiter=2000, **SEEDED)
        yield u, vh.T, count


# The iteration, how it is drawn, and whether --quick runs it.
SOLVERS: dict[str, tuple[Callable[[Array, int], Iterator[Found]], dict[str, str], bool]] = {
    "power": (lambda a, k: power(a, k), {"color": plot.VERMILLION, "marker": "o"}, True),
    "randomized": (randomized, {"color": plot.ORANGE, "marker": "s"}, True),
    "block_krylov": (
        lambda a, k: library("block_krylov", a, k),
        {"color": plot.GREEN, "marker": "^"},
        False,
    ),
    "arpack": (
        lambda a, k: library("arpack", a, k),
        {"color": plot.SKY, "marker": "v", "linestyle": "--"},
        False,
    ),
    "lanczos": (lambda a, k: library("lanczos", a, k), {"color": plot.BLUE, "marker": "D"}, True),
    "SciPy, ARPACK": (
        partial(scipys, "arpack"),
        {"color": plot.INK, "marker": "x", "linestyle": "--"},
        False,
    ),
    "SciPy, PROPACK": (
        partial(scipys, "propack"),
        {"color": plot.INK, "marker": "+", "linestyle": ":"},
        False,
    ),
}


def history(
    a: Array, exact: Array, run: Callable[[Array, int], Iterator[Found]], last: float, k: int = K
) -> list[tuple[int, float]]:
    """Products and errors of U_k V_k^T, down to the smallest target."""
    points: list[tuple[int, float]] = []
    for left, right, products in run(a, k):
        error = float(np.linalg.norm(left @ right.T - exact)) / k**0.5
        if not points or products > points[-1][0]:
            points.append((products, error))
        if error <= last:
            break
    return points


def exact_factor(a: Array, k: int = K) -> Array:
    """Return U_k V_k^T."""
    u, _, vh = np.linalg.svd(a, full_matrices=False)
    return u[:, :k] @ vh[:k]


def needed(points: list[tuple[int, float]], target: float) -> float:
    """Products until an error and all after it are below a target."""
    for i, (products, _) in enumerate(points):
        if all(e <= target for _, e in points[i:]):
            return products
    return float("inf")


def matrix(kind: str, seed: int) -> Array:
    if kind == "Gaussian":
        return np.random.default_rng(seed).standard_normal((N, N))
    return testing.with_singular_values(0.9 ** np.arange(N), seed=seed)


def products(out: Output, quick: bool) -> None:
    """Count the products that each iteration needs, in medians over matrices."""
    names = [name for name, (*_, short) in SOLVERS.items() if short or not quick]
    kinds = ("Gaussian",) if quick else ("Gaussian", "geometric decay")
    runs: dict[tuple[str, str], list[list[tuple[int, float]]]] = {}
    targets = TARGETS[:2] if quick else TARGETS
    seeds = 3 if quick else SEEDS
    for seed in out.steps(range(seeds), "matrices"):
        for kind in kinds:
            a = matrix(kind, seed)
            exact = exact_factor(a)
            for name in names:
                points = history(a, exact, SOLVERS[name][0], targets[-1])
                runs.setdefault((kind, name), []).append(points)
    counts = {
        (*case, target): [needed(points, target) for points in found]
        for case, found in runs.items()
        for target in targets
    }
    medians = {case: statistics.median(values) for case, values in counts.items()}
    rows = []
    for kind, name in runs:
        here = [medians[kind, name, t] for t in targets]
        rows.append([kind, name, *(f"{c:.0f}" if c < np.inf else "not reached" for c in here)])
        each = counts[kind, name, 1e-2]
        rows[-1] += [f"{c:.0f}" if c < np.inf else "not reached" for c in (min(each), max(each))]
    columns = ["matrix", "method", *(f"to {t:.0e}" for t in targets), "least to 1e-2"]
    out.table("products", [*columns, "most to 1e-2"], rows)
    out.figure("lanczos, products to 1e-4", medians["Gaussian", "lanczos", 1e-4])
    for name in ("randomized", "power"):
        out.figure(f"{name}, products to 1e-2", medians["Gaussian", name, 1e-2])
    saved = medians["Gaussian", "randomized", 1e-2] / medians["Gaussian", "lanczos", 1e-2]
    out.figure("Gaussian: products of randomized over those of lanczos, to 1e-2", saved)
    out.plot("products", drawn(runs, kinds, names), CAPTION)
    least, most = (f(counts["Gaussian", "power", 1e-2]) for f in (min, max))
    out.note(
        "The paper's counts are of one Gaussian matrix each. Power iteration depends on the gaps "
        f"of the one matrix most of all: from {least} to {most} products to 1e-2 on {seeds} "
        "Gaussian matrices."
    )


def many(out: Output, quick: bool) -> None:
    """Count the products for fifty triplets, in medians over Gaussian matrices."""
    counts: dict[str, list[float]] = {name: [] for name in MANY_ERRORS}
    for seed in out.steps(range(1 if quick else SEEDS), "fifty triplets"):
        a = matrix("Gaussian", seed)
        exact = exact_factor(a, MANY)
        for name, error in MANY_ERRORS.items():
            points = history(a, exact, SOLVERS[name][0], error, MANY)
            counts[name].append(needed(points, error))
    for name, values in counts.items():
        error = f"{MANY_ERRORS[name]:.1e}".replace("e-0", "e-")
        out.figure(f"{name}, k = {MANY}, products to {error}", statistics.median(values))


def costs(out: Output, quick: bool) -> None:
    """Count products from the numbers of iterations that the paper prints."""
    for name, count in (("power", cost), ("randomized", block_cost)):
        iterations = ITERATIONS[name]
        printed = ", ".join(map(str, iterations))
        values = [count(k, i) for k, i in zip(TRIPLETS, iterations, strict=True)]
        out.figure(f"products of {printed} {name} iterations, k = 5, 50, 5", values)


CAPTION = (
    f"Error ‖UVᵀ − U_kV_kᵀ‖_F/√k of five leading triplets of a {N} × {N} matrix against products "
    "with a vector; stars: the table of the paper."
)


def by_k(out: Output, quick: bool) -> None:
    """Count the library's products for other numbers of triplets, at its default accuracy."""
    rows = []
    a = matrix("Gaussian", 0)
    for k in out.steps((1, 2, 5, 10) if quick else (1, 2, 3, 5, 10, 20, 30), "triplets"):
        each = [triplets(a, k, method=m) for m in ("lanczos", "arpack", "block_krylov")]
        rows.append([k, *(f"{t.products} ({t.method})" for t in each)])
    out.table("by-k", ["k", "lanczos", "arpack", "block_krylov"], rows)


def drawn(
    runs: dict[tuple[str, str], list[Any]], kinds: Sequence[str], names: Sequence[str]
) -> Figure:
    """Errors against products, and the values of the paper's table."""
    fig, axes = panels(len(kinds), height=1.0 + 2.1 * len(kinds), sharex=True, sharey=True)
    for ax, kind in zip(axes, kinds, strict=True):
        for name in names:
            x, y = zip(*runs[kind, name][0], strict=True)
            how = SOLVERS[name][1]
            every = {"markevery": max(1, len(x) // 8)} if "marker" in how else {}
            ax.loglog(x, y, label=name if ax is axes[0] else None, **how, **every)
            if kind == "Gaussian" and name in PRINTED:
                colour = how["color"]
                ax.plot(*PRINTED[name], "*", color=colour, markersize=8, markeredgecolor=plot.INK)
        ax.set_title(kind)
        ax.set_ylabel("error of U Vᵀ")
    axes[-1].set_xlabel("products with a vector")
    axes[0].set_ylim(1e-15, 5)
    fig.legend(loc="outside lower center", ncols=3)
    return fig


def study(out: Output, quick: bool) -> None:
    products(out, quick)
    many(out, quick)
    costs(out, quick)
    by_k(out, quick)


if __name__ == "__main__":
    main(study, __file__)
