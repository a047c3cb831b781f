"""Times, accuracy and iterations of polar() and other functions, relative to scipy.linalg.polar.

    python benchmarks/polar.py                                # below 15 minutes on two cores
    python benchmarks/polar.py --threads 1 --busy
    python benchmarks/polar.py --sizes 512 --dtypes float64 --matrices 10,1e4 --peers peers
    python benchmarks/polar.py --counts
    python benchmarks/polar.py --page docs/evidence/polar_benchmarks.md
    python benchmarks/polar.py --claim

A call measures some cases and adds them to a data file; the last two write the page and print the
sentence of the README from that file. Every function is timed interleaved with scipy.linalg.polar
on the same matrix in the same process, in three situations: alone, in alternation, after a NumPy
product. Ratios are medians of the ratios of single rounds. Where a library has only an SVD, the two
products that form U and H from it are included in the time, as they are in SciPy's.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import statistics
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy.linalg
import typer
from common import busy, load, restart_with, run_of, store
from polar_page import (
    AUTO,
    CONDITIONS,
    FIGURES,
    MATRICES,
    METHODS,
    OTHERS,
    REFERENCE,
    SHAPES,
    about,
    by,
    claim,
    counts_table,
    make_page,
)
from rich.console import Console

import polarlib
from polarlib import design
from polarlib._methods.qdwh import weights
from polarlib.design.zolotarev import best_steps
from polarlib.testing import with_singular_values
from polarlib.timing import BURST, SITUATIONS, interleaved, ratios

GROUPS = {"auto": (AUTO,), "methods": METHODS, "peers": OTHERS}
# A call above 50 milliseconds is timed in seven rounds at least; a short one alone as often, and in
# the other situations in as many rounds as fit into the seconds of a situation.
ROUNDS, MOST, SECONDS = 7, 200, 0.3
QUICK_SIZES, QUICK_ROUNDS, QUICK_SECONDS = ("2", "64", "256"), 3, 0.05
# Default runs leave out what takes most of the time: one size, and all but two matrices of another.
OPTIONAL, LONGEST = "4096", "2048"
COUNTED = 64  # order of the matrices that iterations are compared on
EPS = 2.0**-52


# -- functions -------------------------------------------------------------------------------


def contenders(a: np.ndarray, wanted: tuple[str, ...]) -> dict[str, Callable[[], Any]]:
    """Functions without arguments that give U and H of a matrix, those that are installed."""
    found: dict[str, Callable[[], Any]] = {REFERENCE: lambda: scipy.linalg.polar(a)}
    for name in wanted:
        if name == AUTO:
            found[name] = lambda: polarlib.polar(a)
        elif name in METHODS:
            found[name] = functools.partial(polarlib.polar, a, method=name)
        elif importlib.util.find_spec(name.split()[0]):
            found[name] = _peer(name, a)
    return found


def _peer(name: str, a: np.ndarray) -> Callable[[], Any]:
    """One function of another library."""

    def of_svd(u: Any, s: Any, vh: Any) -> tuple[Any, Any]:
        return u @ vh, (vh.mT * s) @ vh

    if name == "numpy svd":
        return lambda: of_svd(*np.linalg.svd(a, full_matrices=False))
    if name == "torch svd":
        import torch

        x = torch.from_numpy(a)
        return lambda: of_svd(*torch.linalg.svd(x, full_matrices=False))
    import jax

    jax.config.update("jax_enable_x64", True)
    y = jax.numpy.asarray(a)
    method = name.split()[1]
    return lambda: jax.block_until_ready(jax.scipy.linalg.polar(y, method=method))


def matrix(shape: tuple[int, int], kind: str, dtype: str) -> np.ndarray:
    """Gaussian, or with a geometric spectrum of a condition number."""
    if kind == "gaussian":
        return np.random.default_rng(0).standard_normal(shape).astype(dtype)
    s = np.geomspace(1, 1 / float(kind), min(shape))
    return with_singular_values(s, *shape, dtype=dtype)


# -- accuracy, the same for everybody --------------------------------------------------------


def slices(x: np.ndarray, axis: int, bits: int) -> list[np.ndarray]:
    """Split a matrix into three of few bits each, by rows (axis 1) or columns (axis 0).

    So few that products of slices are exact in double precision: K. Ozaki, T. Ogita, S. Oishi,
    S. M. Rump, Numer. Algorithms 59 (2012) 95-118.
    """
    parts = []
    for _ in range(3):
        peak = np.abs(x).max(axis=axis, keepdims=True)
        shift = np.ldexp(0.75, np.frexp(peak)[1] + 53 - bits)
        head = (x + shift) - shift
        parts.append(head)
        x = x - head
    return parts


def residual(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``C - A B`` with about 60 bits: neither BLAS nor the order of sums plays a part."""
    bits = (53 - math.ceil(math.log2(a.shape[1]))) // 2
    left, right = slices(a, 1, bits), slices(b, 0, bits)
    total = c.astype(np.longdouble)
    for i in range(3):
        for j in range(3 - i):
            total = total - left[i] @ right[j]
    return total


def accuracy(a: np.ndarray, u: np.ndarray, h: np.ndarray) -> dict[str, float]:
    """``||A - U H||_F / ||A||_F`` and ``||U^H U - I||_F / sqrt(n)``."""
    a, u, h = (np.asarray(x, dtype=np.float64) for x in (a, u, h))

    def size(x: np.ndarray) -> float:
        return float(np.sqrt(np.sum(x * x)))

    n = u.shape[1]
    return {
        "backward_error": size(residual(a, u, h)) / size(a),
        "orthogonality": size(residual(np.eye(n), u.T.copy(), u)) / math.sqrt(n),
    }


# -- measuring -------------------------------------------------------------------------------


def measured(
    functions: dict[str, Callable[[], Any]], rounds: int, seconds: float
) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows of all functions, the reference among them, in each situation.

    Returns
    -------
    dict
        By situation and name: milliseconds, the same of the reference in these rounds, the ratio of
        the reference's time to the function's, its quartiles, rounds.
    """
    found = {}
    for situation in SITUATIONS:
        times = interleaved(
            functions, seconds, least=rounds, most=MOST, situation=situation, burst=BURST
        )
        found[situation] = {name: _row(times, name) for name in times}
    return found


def _row(times: dict[str, list[float]], name: str) -> dict[str, Any]:
    faster = ratios(times, REFERENCE, name)
    return {
        "milliseconds": 1e3 * statistics.median(times[name]),
        "reference_milliseconds": 1e3 * statistics.median(times[REFERENCE]),
        "ratio": statistics.median(faster),
        "quartiles": statistics.quantiles(faster, n=4, method="inclusive")[::2],
        "rounds": len(faster),
    }


def described(a: np.ndarray, result: Any) -> dict[str, Any]:
    """Accuracy of both factors; of a result of polarlib the method and its reason as well."""
    found: dict[str, Any] = accuracy(a, *(np.asarray(x) for x in result))
    if isinstance(result, polarlib.PolarResult):
        found |= {
            "method": result.method,
            "reason": result.reason,
            "iterations": result.iterations,
            "products_counted": result.matmuls,
        }
    return found


def jobs(
    sizes: str | None, dtypes: str | None, matrices: str | None, quick: bool
) -> list[tuple[str, str, str]]:
    """Dtype, shape and matrix of what is to be measured: of all, if nothing is named."""
    every = tuple(dict.fromkeys(kind for kinds in MATRICES.values() for kind in kinds))
    kinds = chosen(matrices, every, "--matrices")
    shapes = chosen(sizes, tuple(SHAPES), "--sizes")
    if sizes is None:
        shapes = QUICK_SIZES if quick else tuple(s for s in shapes if s != OPTIONAL)
    found = []
    for dtype in chosen(dtypes, tuple(MATRICES), "--dtypes"):
        for shape in shapes:
            wanted = [kind for kind in MATRICES[dtype] if kind in kinds]
            few = sizes is None and matrices is None and (quick or shape == LONGEST)
            found += [(dtype, shape, kind) for kind in (wanted[-2:] if few else wanted)]
    return found


# -- iterations ------------------------------------------------------------------------------


def halley(l: float) -> int:
    """Iterations of QDWH from a lower bound."""
    k = 0
    while abs(1 - l) > 5 * EPS:
        (a, b), c = weights(l)
        l, k = min(1.0, l * (a + b * l * l) / (1 + c * l * l)), k + 1
    return k


def scaled_newton(l: float) -> int:
    """Iterations of Newton's method with the scaling of Byers and Xu (2008), of the value 1."""
    x, zeta, k = 1.0, 1 / math.sqrt(l), 0
    while True:
        last, x, k = x, (zeta * x + 1 / (zeta * x)) / 2, k + 1
        if abs(x - last) <= math.sqrt(5 * EPS):
            return k
        first = math.sqrt(2 * math.sqrt(l) / (1 + l))
        zeta = first if k == 1 else math.sqrt(2 / (zeta + 1 / zeta))


def cubic(l: float) -> int:
    """Iterations of Newton and Schulz."""
    k = 0
    while abs(1 - l) > 5 * EPS:
        l, k = l * (3 - l * l) / 2, k + 1
    return k


def quintics(l: float) -> int:
    """Best steps of degree 5 with cushion 0.1."""
    k = 1
    while design.greedy(l, [5] * k, cushion=0.1).error() > 5 * EPS:
        k += 1
    return k


RECURRENCES: dict[str, Callable[[float], int]] = {
    "QDWH": halley,
    "Zolotarev, 2 poles": lambda l: len(best_steps(2, l, 5 * EPS)[0]),
    "Zolotarev, 8 poles": lambda l: len(best_steps(8, l, 5 * EPS)[0]),
    "Newton, Byers and Xu": scaled_newton,
    "Newton and Schulz": cubic,
    "minimax quintics, cushion 0.1": quintics,
}


def counts() -> dict[str, Any]:
    """Iterations by the scalar recurrences, and iterations and products of the methods."""
    by_recurrence = {name: [f(1 / k) for k in CONDITIONS] for name, f in RECURRENCES.items()}
    by_method = {}
    for name in METHODS:
        if name == "svd":
            continue
        results = [
            polarlib.polar(matrix((COUNTED, COUNTED), repr(k), "float64"), method=name)
            for k in CONDITIONS
        ]
        by_method[name] = [[r.iterations, r.matmuls, r.method] for r in results]
    return {"recurrences": by_recurrence, "methods": by_method}


# -- the command -----------------------------------------------------------------------------


def chosen(text: str | None, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    """The names of an option, or all."""
    names = known if text is None else tuple(text.split(","))
    for name in names:
        if name not in known:
            raise typer.BadParameter(
                f"{option} has the unknown name {name!r}; known: {', '.join(known)}"
            )
    return names


def contenders_of(peers: str) -> tuple[str, ...]:
    """Single names of an option that may name groups."""
    every = tuple(name for group in GROUPS.values() for name in group)
    names = chosen(peers, (*GROUPS, *every), "--peers")
    return tuple(one for name in names for one in GROUPS.get(name, (name,)))


def main(
    sizes: Annotated[
        str | None, typer.Option(help=f"Of {', '.join(SHAPES)}; all but {OPTIONAL} by default.")
    ] = None,
    dtypes: Annotated[str | None, typer.Option(help="float64, float32 or both.")] = None,
    matrices: Annotated[
        str | None, typer.Option(help="Condition numbers such as 10,1e2, and gaussian.")
    ] = None,
    peers: Annotated[
        str, typer.Option(help=f"{', '.join(GROUPS)}, or single ones with commas between.")
    ] = "auto",
    rounds: Annotated[
        int | None, typer.Option(help=f"Least number of rounds. [{ROUNDS}]", min=2)
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each library.", min=1)] = None,
    occupied: Annotated[bool, typer.Option("--busy", help="Keep one processor busy.")] = False,
    quick: Annotated[bool, typer.Option(help="A minute; nothing is kept without --out.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="File of figures. [docs/data/polar_benchmarks.json]")
    ] = None,
    count: Annotated[bool, typer.Option("--counts", help="Count iterations instead.")] = False,
    page: Annotated[Path | None, typer.Option(help="Regenerate this page instead.")] = None,
    claimed: Annotated[
        bool, typer.Option("--claim", help="Print the README's sentence instead.")
    ] = False,
) -> None:
    """Measure some cases and add them to the figures; or make the page, or its sentence."""
    restart_with(threads)
    console = Console(width=120)
    path = out or FIGURES
    figures = load(path, "runs", "counts")
    if page is not None:
        make_page(page, figures)
    elif claimed:
        typer.echo(textwrap.fill(claim(figures), 100, initial_indent="  ", subsequent_indent="  "))
    elif count:
        figures["counts"] = counts()
        store(path, figures)
        console.print(counts_table(figures), markup=False)
    else:
        wanted, cases = contenders_of(peers), jobs(sizes, dtypes, matrices, quick)
        least = rounds or (QUICK_ROUNDS if quick else ROUNDS)
        with busy(occupied):
            run = run_of(figures, occupied)
            for case in cases:
                _measure(run, case, wanted, least, QUICK_SECONDS if quick else SECONDS)
                if out is not None or not quick:
                    store(path, figures)


def _measure(
    run: dict[str, Any],
    case: tuple[str, str, str],
    wanted: tuple[str, ...],
    rounds: int,
    seconds: float,
) -> None:
    """Measure one case, add it to the run, and print it."""
    dtype, shape, kind = case
    a = matrix(SHAPES[shape], kind, dtype)
    functions = contenders(a, wanted)
    results = {name: described(a, function()) for name, function in functions.items()}
    there = run["cases"].setdefault(" ".join(case), {"results": {}})
    there["results"].update(results)
    for situation, rows in measured(functions, rounds, seconds).items():
        there.setdefault(situation, {}).update(rows)
        for name, row in rows.items():
            typer.echo(
                f"{dtype} {by(shape)} {about(kind)}, {situation}, {name}: "
                f"{row['milliseconds']:.3g} ms, {row['ratio']:.2f} "
                f"({row['quartiles'][0]:.2f}-{row['quartiles'][1]:.2f}), {row['rounds']} rounds"
            )


if __name__ == "__main__":
    typer.run(main)
