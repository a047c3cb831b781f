"""Speed of orthogonalize(): against textbook loops, its matrix products alone, and other packages.

    python benchmarks/orthogonalize.py [--only TEXT] [--peers FOLDER] [--seconds S] [--json FILE]
    python benchmarks/orthogonalize.py --markdown docs/benchmarks.md

The first command measures the cases whose name contains the text ("torch bfloat16 1024 x 1024", all
without one) and adds them to a file of figures; the second makes the page of that file. Everything
is timed interleaved, with a pause before each, on the same data in one process.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import statistics
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import load, store, where
from peers import Peer, find
from rich.console import Console
from rich.table import Table
from stress import ours

import polarlib
from polarlib.bench import BURST, MOST, PAUSE
from polarlib.files.whole import write_whole
from polarlib.timing import interleaved, ratios

Array = Any

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "data" / "orthogonalize.json"
SHAPES = ((1024, 1024), (4096, 1024), (512, 4096), (256, 256), (16, 256, 256))
LARGE = SHAPES[:3]  # what means are taken over
LIBRARIES = (
    *(("torch", f) for f in ("bfloat16", "float32")),
    *(("numpy", f) for f in ("float32",)),
    *(("jax", f) for f in ("float32", "bfloat16")),
)
FORMS = {"auto": "ours", "plain": "ours, plain", "gram": "ours, gram"}
PRODUCTS = 15  # of every contender, in five steps
COEFFICIENTS = polarlib.schedule("polar_express").steps  # of the textbook loop; any would do
# Packages that are timed: of those that differ in coefficients alone, one.
TIMED = (
    *("torch.optim.Muon", "KellerJordan/Muon", "dion, polar_express", "gram-newton-schulz"),
    *(f"Emerging-Optimizers, polar_express, {f}" for f in ("bfloat16", "float32")),
    *(f"optax, dion, {f}" for f in ("bfloat16", "float32")),
)
# Its torch products are in float16, which processors multiply a hundred times slower.
SLOW = "gram-newton-schulz"


def by(shape: Sequence[int]) -> str:
    """A shape as the tables have it."""
    return " x ".join(map(str, shape))


# -- what is timed ---------------------------------------------------------------------------


def textbook(a: Array, norm: Callable[[Array], Array]) -> Array:
    """The loop that papers print: normalise, then X <- a X + (b G + c G G) X, G = X X^T."""
    x = a / (norm(a) + 1e-7)
    if a.shape[-2] > a.shape[-1]:
        x = x.mT
    for p, q, r in COEFFICIENTS:
        g = x @ x.mT
        x = p * x + (q * g + r * g @ g) @ x
    return x.mT if a.shape[-2] > a.shape[-1] else x


def norm_of(xp: Any) -> Callable[[Array], Array]:
    """Frobenius norms that divide the matrices of a stack."""
    if hasattr(xp, "Tensor"):
        return lambda a: a.norm(dim=(-2, -1), keepdim=True)
    return lambda a: xp.sqrt(xp.sum(a * a, axis=(-2, -1), keepdims=True))


def products_alone(a: Array, xp: Any) -> Callable[[], Any]:
    """The 15 products of five steps into storage that is there, nothing between them."""
    n = min(a.shape[-2:])
    x = a / norm_of(xp)(a)
    if a.shape[-2] < a.shape[-1]:
        x = x.mT
    x = xp.asarray(x, copy=True) if hasattr(xp, "ndarray") else x.contiguous()
    own = {"dtype": a.dtype}
    g, z, y = (xp.empty(s, **own) for s in ((*a.shape[:-2], n, n),) * 2 + (tuple(x.shape),))

    def run() -> None:
        for _ in COEFFICIENTS:
            xp.matmul(x.mT, x, out=g)
            xp.matmul(g.mT, g, out=z)
            xp.matmul(x, z, out=y)

    return run


def contenders(
    library: str, precision: str, shape: tuple[int, ...], peers: dict[str, Peer]
) -> dict[str, Callable[[], Any]]:
    """Functions without arguments, on one matrix or stack."""
    host = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    made = _jax_contenders if library == "jax" else _host_contenders
    found, array = made(library, precision, host)
    for name in TIMED:
        peer = peers.get(name)
        if peer is None or peer.library != library or len(shape) != 2:
            continue
        if name == SLOW:
            fits = precision == peer.takes and max(shape) <= 256
        else:
            fits = precision == peer.precision
        if fits:
            found[name] = _keeps(peer, array if peer.takes == precision else peer.given(host))
    return found


def _keeps(peer: Peer, given: Array) -> Callable[[], Any]:
    """A peer's call; on a copy if it overwrites what it is given."""
    if peer.library == "jax":
        return lambda: peer.function(given).block_until_ready()
    before = given.clone()
    peer.function(given)
    if bool((before == given).all()):
        return lambda: peer.function(given)
    given.copy_(before)
    return lambda: peer.function(given.clone())


def _host_contenders(
    library: str, precision: str, host: np.ndarray
) -> tuple[dict[str, Callable[[], Any]], Array]:
    xp = importlib.import_module(library)
    a = host if library == "numpy" else xp.from_numpy(host).to(getattr(xp, precision))
    options = ours(precision, PRODUCTS)
    found: dict[str, Callable[[], Any]] = {
        name: functools.partial(polarlib.orthogonalize, a, form=form, **options)
        for form, name in FORMS.items()
    }
    found["textbook"] = lambda: textbook(a, norm_of(xp))
    found["products"] = products_alone(a, xp)
    return found, a


def _jax_contenders(
    library: str, precision: str, host: np.ndarray
) -> tuple[dict[str, Callable[[], Any]], Array]:
    jax = importlib.import_module("jax")
    xp = jax.numpy
    a = xp.asarray(host, dtype=precision)
    options = ours(precision, PRODUCTS)

    def products(x: Array) -> Array:
        x = x / norm_of(xp)(x)
        if x.shape[-2] < x.shape[-1]:
            x = x.mT
        for _ in COEFFICIENTS:
            g = x.mT @ x
            x = x @ (g @ g)
        return x

    functions = {
        name: functools.partial(polarlib.orthogonalize, form=form, **options)
        for form, name in FORMS.items()
    }
    found: dict[str, Callable[[], Any]] = {}
    for name, function in functions.items():
        compiled = jax.jit(function)
        found[name] = lambda compiled=compiled: compiled(a).block_until_ready()
    found["ours, not compiled by the caller"] = lambda: functions["ours"](a).block_until_ready()
    for name, loop in (("textbook", lambda x: textbook(x, norm_of(xp))), ("products", products)):
        compiled = jax.jit(loop)
        found[name] = lambda compiled=compiled: compiled(a).block_until_ready()
    return found, a


# -- memory ----------------------------------------------------------------------------------


def peak_bytes(library: str, function: Callable[[], Any]) -> int:
    """Most memory that a call holds at one time beyond what was there, its result included."""
    function()
    if library == "numpy":
        tracemalloc.start()
        function()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak
    torch = importlib.import_module("torch")
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def workspace(library: str, precision: str, shape: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Peak of ours and of the textbook loop, in bytes of the input; and what we claim."""
    host = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found, a = _host_contenders(library, precision, host)
    size = a.nbytes
    square = size * min(shape[-2:]) / max(shape[-2:])
    peaks = {
        name: peak_bytes(library, found[name]) / size for name in (*FORMS.values(), "textbook")
    }
    return peaks | {"claim": 2 + 3 * square / size}


# -- measuring -------------------------------------------------------------------------------


def measured(functions: dict[str, Callable[[], Any]], seconds: float) -> dict[str, Any]:
    """Medians and quartiles of times, of ratios to the textbook loop, and to the products."""
    times = interleaved(functions, seconds, most=MOST, pause=PAUSE, burst=BURST)
    rows = {}
    for name, each in times.items():
        row: dict[str, Any] = {"milliseconds": 1e3 * statistics.median(each), "rounds": len(each)}
        for reference in ("textbook", "products"):
            faster = ratios(times, reference, name)
            row[reference] = statistics.median(faster)
            row[f"{reference} quartiles"] = statistics.quantiles(faster, n=4)[::2]
        rows[name] = row
    return rows


def jobs(only: str) -> Iterator[tuple[str, str, str, tuple[int, ...]]]:
    """Name, library, format and shape of the cases that are wanted and can be run."""
    for library, precision in LIBRARIES:
        if importlib.util.find_spec(library) is None:
            continue
        for shape in SHAPES:
            name = f"{library} {precision} {by(shape)}"
            if only in name:
                yield name, library, precision, shape


# -- the page --------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def geometric(values: Sequence[float]) -> float:
    """Geometric mean."""
    return math.exp(statistics.fmean(map(math.log, values)))


def speed_tables(figures: dict[str, Any]) -> str:
    """A table for each library and format."""
    parts = []
    for library, precision in LIBRARIES:
        cases = {
            shape: figures["cases"][name]
            for shape in SHAPES
            if (name := f"{library} {precision} {by(shape)}") in figures["cases"]
        }
        if not cases:
            continue
        names = list(dict.fromkeys(n for rows in cases.values() for n in rows))
        lines = []
        for name in names:
            cells = [
                f"{r['milliseconds']:.2f}: **{r['textbook']:.2f}** "
                f"({'-'.join(f'{q:.2f}' for q in r['textbook quartiles'])})"
                if (r := rows.get(name))
                else "—"
                for rows in cases.values()
            ]
            large = [cases[s][name]["textbook"] for s in LARGE if name in cases.get(s, {})]
            mean = f"{geometric(large):.2f}" if len(large) == len(LARGE) else "—"
            lines.append([name, *cells, mean])
        header = ["", *(by(s) for s in cases), "geometric mean"]
        parts += [f"### {library}, {precision}", table(header, lines)]
        shares = [
            f"{by(s)}: {1 / rows['ours, plain']['products']:.2f}" for s, rows in cases.items()
        ]
        parts.append(f"Plain form / its products alone: {'; '.join(shares)}.")
    return "\n\n".join(parts)


def workspace_table(figures: dict[str, Any]) -> str:
    """Peaks in units of the input."""
    rows = figures["workspace"]
    names = list(next(iter(rows.values()))) if rows else []
    lines = [[case, *(f"{row[n]:.2f}" for n in names)] for case, row in rows.items()]
    return table(["", *names], lines)


TEXT = """# Speed of orthogonalize()

Made by `python benchmarks/orthogonalize.py --markdown docs/benchmarks.md` from
[data/orthogonalize.json](data/orthogonalize.json), which calls of the same script without
`--markdown` measured; nothing in the tables is typed by hand. Machine: {machine}.

Five steps, {products} matrix products, on one Gaussian matrix, or a stack of 16. By turns, in an
order that rotates, with a pause of 0.1 seconds before each turn; medians, and quartiles of the
ratios of single rounds. Cells: milliseconds: **time of the textbook loop / time** (quartiles);
above 1 is faster than the textbook loop. The geometric mean is over {large}.

- *ours*: `orthogonalize` as it chooses its form, the norm and the check for NaN included; in plain
  form; in Gram form. In JAX compiled by the caller as a whole, and called as it is.
- *textbook*: the loop that papers print, X ← aX + (bG + cGG)X with G = XXᵀ, normalised by the
  Frobenius norm; in JAX compiled.
- *products*: the matrix products of the plain form into storage that is there, in full: neither
  symmetry nor the Gram form saves any.
- other packages as they come; those that are compiled by torch are compiled, which is not timed.
  On a copy, timed with it, where a package overwrites what it is given ({sources}).

{tables}

## Workspace

Most memory that a call holds at one time, its result included, in units of the input; *claim* is
two copies of the input and three of the small square matrix.

{workspace}
"""


def page(figures: dict[str, Any]) -> str:
    """Fill the tables in."""
    sources = "; ".join(f"{n}: {s}" for n, s in figures["peers"].items()) or "none was here"
    return TEXT.format(
        machine=figures["machine"],
        products=PRODUCTS,
        large=", ".join(by(s) for s in LARGE),
        sources=sources,
        tables=speed_tables(figures),
        workspace=workspace_table(figures),
    )


def main(
    only: Annotated[str, typer.Option(help="Cases whose name contains this.")] = "",
    seconds: Annotated[float, typer.Option(help="For each case, about.")] = 10.0,
    peers: Annotated[Path | None, typer.Option(help="Folder of other packages.")] = None,
    memory: Annotated[bool, typer.Option(help="Measure the workspace instead.")] = False,
    json_file: Annotated[Path, typer.Option("--json", help="File of figures.")] = FIGURES,
    markdown: Annotated[Path | None, typer.Option(help="Make this page instead.")] = None,
) -> None:
    """Measure some cases and add them to the figures; or make the page."""
    console = Console(width=140)
    figures = load(json_file, "cases", "workspace", "peers")
    if markdown is not None:
        text = page(figures)
        write_whole(markdown, lambda f: f.write(text.encode()))
        return
    found, _ = find(peers)
    shown = Table("case", "", "ms", "textbook / it", "quartiles", "products / it", "rounds")
    for name, library, precision, shape in jobs(only):
        if memory:
            if library != "jax":
                figures["workspace"][name] = workspace(library, precision, shape)
                console.print(name, figures["workspace"][name], markup=False)
            store(json_file, figures)
            continue
        rows = measured(contenders(library, precision, shape, found), seconds)
        figures["cases"][name] = rows
        figures["machine"] = where()
        figures["peers"] |= {
            p.name.partition(",")[0]: p.source for p in found.values() if p.name in rows
        }
        store(json_file, figures)
        for label, row in rows.items():
            shown.add_row(
                name, label, f"{row['milliseconds']:.2f}", f"{row['textbook']:.3f}",
                "{:.2f}-{:.2f}".format(*row["textbook quartiles"]), f"{row['products']:.3f}",
                str(row["rounds"]),
            )  # fmt: skip
    if not memory:
        console.print(shown)


if __name__ == "__main__":
    typer.run(main)
