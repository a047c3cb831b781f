"""polar() beside its peers: milliseconds, matrix products, accuracy, over sizes and conditions.

    python benchmarks/polar.py --sizes 512 --dtypes float64 --matrices 10,1e4 --peers auto
    python benchmarks/polar.py --peers auto --pause 0 --out without_pauses.json
    python benchmarks/polar.py --counts
    python benchmarks/polar.py --page docs/polar_benchmarks.md

A call measures some cases and adds them to a file of figures; the last one makes the tables and the
picture of a page from it. Every contender is timed interleaved with scipy.linalg.polar and a matrix
product, on the same matrix in the same process: ratios are medians of the ratios of single rounds.
Where others give an SVD only, the two products that make U and H of it are timed with it, as
SciPy's own are.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy.linalg
import typer
from common import load, replace_part, store, where
from rich.console import Console
from rich.table import Table

import polarlib
from polarlib import design
from polarlib._methods.qdwh import weights
from polarlib.arrays.ops import ops_of
from polarlib.bench import BURST, MOST, PAUSE
from polarlib.design.zolotarev import best_steps
from polarlib.files.whole import write_whole
from polarlib.testing import with_singular_values
from polarlib.timing import interleaved, ratios

HERE = Path(__file__).parent
FIGURES = HERE.parent / "docs" / "data" / "polar_benchmarks.json"

SHAPES = {name: shape for name, *shape in (
    ("256", 256, 256), ("512", 512, 512), ("1024", 1024, 1024), ("2048", 2048, 2048),
    ("4096x512", 4096, 512),
)}  # fmt: skip
# Condition numbers of geometric spectra; single precision ends before 1 / eps.
MATRICES = {
    "float64": ("10", "1e2", "1e4", "1e8", "1e15", "gaussian"),
    "float32": ("10", "1e2", "1e4", "1e6", "gaussian"),
}
REFERENCE, PRODUCT = "scipy.linalg.polar", "product"
AUTO = "polar"
METHODS = tuple(name for name in polarlib._methods.METHODS if name not in ("qr", "small"))
PEERS = ("numpy svd", "torch svd", "jax svd", "jax qdwh")
GROUPS = {"auto": (AUTO,), "methods": METHODS, "peers": PEERS}
ROUNDS = 5

# Condition numbers of the table of iterations.
CONDITIONS = (1.001, 1.1, 2.0, 10.0, 1e2, 1e3, 1e5, 1e7, 1e16)
COUNTED = 64  # order of the matrices that they are compared on
EPS = 2.0**-52
LEFT = 1e-2  # where the picture has Gaussian matrices, left of all condition numbers


# -- contenders ------------------------------------------------------------------------------


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
    a: np.ndarray,
    wanted: tuple[str, ...],
    seconds: float,
    rounds: int,
    pause: float | None = None,
) -> dict[str, dict[str, Any]]:
    """Figures of all contenders on one matrix.

    Returns
    -------
    dict
        By name: milliseconds, matrix products of that size, the same of SciPy in these rounds,
        ratio to SciPy, quartiles, rounds, accuracy; of polarlib's the method, why it was chosen,
        iterations and products, too.
    """
    n = a.shape[1]
    square = np.random.default_rng(1).standard_normal((n, n)).astype(a.dtype)
    ops = ops_of(a)
    last: dict[str, Any] = {}

    def kept(name: str, function: Callable[[], Any]) -> Callable[[], None]:
        def call() -> None:
            last[name] = function()

        return call

    functions = {name: kept(name, f) for name, f in contenders(a, wanted).items()}
    functions[PRODUCT] = lambda: ops.matmul(a, square)
    rest = PAUSE if pause is None else pause
    times = interleaved(functions, seconds, least=rounds, most=MOST, pause=rest, burst=BURST)
    product = statistics.median(times.pop(PRODUCT))
    reference = statistics.median(times[REFERENCE])
    rows = {}
    for name, each in times.items():
        faster = ratios(times, REFERENCE, name)
        middle = statistics.median(each)
        result = last[name]
        rows[name] = {
            "milliseconds": 1e3 * middle,
            "matrix_products": middle / product,
            "reference_milliseconds": 1e3 * reference,
            "reference_products": reference / product,
            "ratio": statistics.median(faster),
            "quartiles": statistics.quantiles(faster, n=4)[::2],
            "rounds": len(each),
            **accuracy(a, *(np.asarray(x) for x in result)),
        }
        if isinstance(result, polarlib.PolarResult):
            rows[name] |= {
                "method": result.method,
                "reason": result.reason,
                "iterations": result.iterations,
                "products_counted": result.matmuls,
            }
    return rows


def cases(figures: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Dtype, shape, matrix and rows of what was measured, in order."""
    for dtype, kinds in MATRICES.items():
        for shape in SHAPES:
            for kind in kinds:
                rows = figures["cases"].get(f"{dtype} {shape} {kind}")
                if rows:
                    yield dtype, shape, kind, rows


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


# -- the page --------------------------------------------------------------------------------


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _by(shape: str) -> str:
    return " x ".join(map(str, SHAPES[shape]))


def _about(kind: str) -> str:
    return "Gaussian" if kind == "gaussian" else f"κ = {kind}"


def auto_table(figures: dict[str, Any]) -> str:
    """polar() against SciPy."""
    header = ["", "shape", "matrix", "SciPy ms", "polar ms", "SciPy products", "polar products"]
    header += ["SciPy / polar", "quartiles", "rounds", "method", "why"]
    lines = []
    for dtype, shape, kind, rows in cases(figures):
        if AUTO not in rows:
            continue
        own = rows[AUTO]
        lines.append([
            dtype, _by(shape), _about(kind),
            f"{own['reference_milliseconds']:.1f}", f"{own['milliseconds']:.1f}",
            f"{own['reference_products']:.1f}", f"{own['matrix_products']:.1f}",
            f"{own['ratio']:.2f}", "{:.2f}-{:.2f}".format(*own["quartiles"]),
            str(own["rounds"]), own["method"], own["reason"] or "-",
        ])  # fmt: skip
    return table(header, lines)


def ratio_table(figures: dict[str, Any]) -> str:
    """Everything measured, against SciPy."""
    measured = {name for *_, rows in cases(figures) for name in rows}
    names = [name for name in (AUTO, *METHODS, *PEERS) if name in measured]
    lines = [
        [dtype, _by(shape), _about(kind)]
        + [f"{rows[name]['ratio']:.2f}" if name in rows else "-" for name in names]
        for dtype, shape, kind, rows in cases(figures)
    ]
    return table(["", "shape", "matrix", *names], lines)


def accuracy_table(figures: dict[str, Any]) -> str:
    """Worst errors over the matrices of a shape."""
    names = [AUTO, *METHODS, REFERENCE, *PEERS]
    worst: dict[tuple[str, str, str], list[float]] = {}
    for dtype, shape, _, rows in cases(figures):
        for name in set(names) & set(rows):
            found = [rows[name]["backward_error"], rows[name]["orthogonality"]]
            before = worst.get((dtype, name, shape), [0.0, 0.0])
            # NaN is worse than any number, and compares false.
            both = zip(found, before, strict=True)
            worst[dtype, name, shape] = [f if not f <= b else b for f, b in both]
    lines = [
        [dtype, name]
        + [
            "{:.1e} / {:.1e}".format(*worst[dtype, name, shape])
            if (dtype, name, shape) in worst
            else "-"
            for shape in SHAPES
        ]
        for dtype in MATRICES
        for name in names
        if any((dtype, name, shape) in worst for shape in SHAPES)
    ]
    return table(["", "", *map(_by, SHAPES)], lines)


def counts_table(figures: dict[str, Any]) -> str:
    """Iterations of recurrences and methods."""
    found = figures["counts"]
    if not found:
        return "Not measured."
    header = ["κ", *(f"{k:g}" if k < 1e3 else f"1e{round(math.log10(k))}" for k in CONDITIONS)]
    lines = [[name, *map(str, row)] for name, row in found["recurrences"].items()]
    for name, row in found["methods"].items():
        cells = [f"{i}; {m}" + "*" * ("svd" in who) for i, m, who in row]
        lines.append([f'`method="{name}"`: iterations; products', *cells])
    return table(header, lines)


def summary(figures: dict[str, Any]) -> str:
    """The worst and the typical ratio of each number format, in a sentence each."""
    lines = []
    for dtype in MATRICES:
        found = [
            (rows[AUTO]["ratio"], _by(shape), _about(kind))
            for d, shape, kind, rows in cases(figures)
            if d == dtype and AUTO in rows
        ]
        if found:
            ratio, shape, kind = min(found)
            best, *at = max(found)
            middle = statistics.median(r for r, *_ in found)
            lines.append(
                f"- {dtype}, {len(found)} matrices: median {middle:.2f} times as fast as "
                f"scipy.linalg.polar; least {ratio:.2f} ({shape}, {kind}), most {best:.2f} "
                f"({', '.join(at)})."
            )
    return "\n".join([f"Machine: {figures['machine']}.", "", *lines])


def picture(figures: dict[str, Any]) -> Any:
    """Ratio to SciPy against the condition number, one panel a number format."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    from polarlib.plot import COLOURS, INK, MARKERS

    drawn = Figure(figsize=(11, 4.6), layout="constrained", facecolor="white")
    panels = drawn.subplots(1, len(MATRICES), sharey=True)
    for ax, (dtype, kinds) in zip(panels, MATRICES.items(), strict=True):
        at = {kind: LEFT if kind == "gaussian" else float(kind) for kind in kinds}
        for i, shape in enumerate(SHAPES):
            style: dict[str, Any] = {"color": COLOURS[i], "marker": MARKERS[i], "capsize": 3}
            style["label"] = _by(shape)
            for line, chosen in (("-", lambda k: k != "gaussian"), ("", lambda k: k == "gaussian")):
                own = [
                    (at[kind], rows[AUTO]["ratio"], *rows[AUTO]["quartiles"])
                    for d, s, kind, rows in cases(figures)
                    if (d, s) == (dtype, shape) and chosen(kind) and AUTO in rows
                ]
                if own:
                    x, y, low, high = map(np.array, zip(*own, strict=True))
                    bars = [np.maximum(y - low, 0), np.maximum(high - y, 0)]
                    ax.errorbar(x, y, yerr=bars, linestyle=line, **style)
                    style["label"] = None
        ax.axhline(1.0, color=INK, linewidth=1.0, linestyle="--", label="scipy.linalg.polar")
        ax.set_xscale("log")
        ax.set_yscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator(list(at.values())))
        ax.xaxis.set_minor_locator(NullLocator())
        names = {value: _tick(kind) for kind, value in at.items()}
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _, names=names: names.get(v, "")))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.set_xlabel("condition number, geometric spectrum")
        ax.set_title(dtype)
        ax.grid(color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
    panels[0].set_ylabel("times as fast as scipy.linalg.polar")
    handles, labels = panels[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return drawn


def _tick(kind: str) -> str:
    if kind == "gaussian":
        return "Gaussian"
    return f"$10^{{{round(math.log10(float(kind)))}}}$"


def make_page(page: Path, figures: dict[str, Any]) -> None:
    """Fill the tables of the page in, and draw its picture beside it."""
    import matplotlib

    replace_part(page, "summary", summary(figures))
    replace_part(page, "auto", auto_table(figures))
    replace_part(page, "ratios", ratio_table(figures))
    replace_part(page, "accuracy", accuracy_table(figures))
    replace_part(page, "counts", counts_table(figures))
    folder = page.parent / "figures"
    folder.mkdir(exist_ok=True)
    # The same figures give the same files, bit for bit.
    with matplotlib.rc_context({"svg.hashsalt": "polarlib"}):
        drawn = picture(figures)
        for suffix, extra in (("png", {"dpi": 110}), ("svg", {"metadata": {"Date": None}})):
            write_whole(
                folder / f"polar_benchmarks.{suffix}",
                functools.partial(drawn.savefig, format=suffix, **extra),
            )


# -- the command -----------------------------------------------------------------------------


def chosen(text: str | None, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    """The names of an option, or all."""
    names = known if text is None else tuple(text.split(","))
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"unknown {name!r}; known: {', '.join(known)}", None, None)
    return names


def main(
    sizes: Annotated[str | None, typer.Option(help=f"Of {', '.join(SHAPES)}.")] = None,
    dtypes: Annotated[str | None, typer.Option(help="float64, float32 or both.")] = None,
    matrices: Annotated[
        str | None, typer.Option(help="Condition numbers such as 10,1e2, and gaussian.")
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(GROUPS)}, or single ones with commas between."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="For about how long in all.")] = 40.0,
    rounds: Annotated[int, typer.Option(help="Rounds to take even if that is longer.")] = ROUNDS,
    pause: Annotated[
        float | None, typer.Option(help="Seconds before each turn, 0.1 by default; needs --out.")
    ] = None,
    out: Annotated[Path, typer.Option(help="File of figures.")] = FIGURES,
    count: Annotated[bool, typer.Option("--counts", help="Count iterations instead.")] = False,
    page: Annotated[Path | None, typer.Option(help="Make this page anew instead.")] = None,
) -> None:
    """Measure some cases and add them to the figures; or make the page."""
    console = Console(width=120)
    figures = load(out, "cases", "counts")
    if page is not None:
        make_page(page, figures)
        return
    if count:
        figures["counts"] = counts()
        store(out, figures)
        console.print(counts_table(figures), markup=False)
        return
    if pause is not None and out == FIGURES:
        raise typer.BadParameter("the page is of runs with the default pause: name another --out")
    every = tuple(dict.fromkeys(kind for kinds in MATRICES.values() for kind in kinds))
    every_one = tuple(name for group in GROUPS.values() for name in group)
    wanted = tuple(
        one
        for name in chosen(peers, (*GROUPS, *every_one), "--peers")
        for one in GROUPS.get(name, (name,))
    )
    kinds = chosen(matrices, every, "--matrices")
    jobs = [
        (dtype, shape, kind)
        for dtype in chosen(dtypes, tuple(MATRICES), "--dtypes")
        for shape in chosen(sizes, tuple(SHAPES), "--sizes")
        for kind in MATRICES[dtype]
        if kind in kinds
    ]
    shown = Table("", "shape", "matrix", "", "ms", "products", "ratio", "quartiles", "rounds")
    for dtype, shape, kind in jobs:
        a = matrix(SHAPES[shape], kind, dtype)
        rows = measured(a, wanted, seconds / len(jobs), rounds, pause)
        there = figures["cases"].setdefault(f"{dtype} {shape} {kind}", {})
        there.update(rows)
        figures["machine"] = where()
        store(out, figures)
        for name, row in rows.items():
            spread = "{:.2f}-{:.2f}".format(*row["quartiles"])
            shown.add_row(
                dtype, _by(shape), kind, name, f"{row['milliseconds']:.1f}",
                f"{row['matrix_products']:.1f}", f"{row['ratio']:.2f}", spread, str(row["rounds"]),
            )  # fmt: skip
    console.print(shown)


if __name__ == "__main__":
    typer.run(main)
