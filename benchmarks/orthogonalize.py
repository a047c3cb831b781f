"""Speed of orthogonalize(), textbook loops, matrix products alone, and other packages.

    python benchmarks/orthogonalize.py [--only TEXT] [--peers FOLDER] [--threads N] [--busy]
    python benchmarks/orthogonalize.py --markdown docs/evidence/benchmarks.md

The first command measures the cases whose name contains the text, such as "torch bfloat16 768 x
768"; all but those in float16 without it, in less than six minutes on two cores. It adds them to
a data file, and the second command writes the page from that file. Functions are timed interleaved
on the same data in one process, in three situations: alone, in alternation, after a product of the
same library.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import busy, load, restart_with, run_of, store
from orthogonalize_page import LIBRARIES, MUON, PRODUCTS, SHAPES, by, page
from peers import Peer, find
from stress_cases import default_options

import polarlib
from polarlib.files.whole import write_whole
from polarlib.timing import BURST, PAUSE, SITUATIONS, factors, interleaved, ratios

Array = Any

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "data" / "orthogonalize.json"
FORMS = {"auto": "ours", "plain": "ours, plain", "gram": "ours, gram"}
OPTIONAL = "float16"  # processors without products in it multiply a hundred times slower
# A call above 50 milliseconds is timed in seven rounds at least.
ROUNDS, MOST, SECONDS = 7, 200, 0.5
QUICK_ROUNDS, QUICK_SECONDS = 2, 0.01
COEFFICIENTS = polarlib.schedule("polar_express").steps  # of the textbook loop; any would do
# Packages that are timed: of those that differ in coefficients alone, one.
TIMED = (
    *(MUON, "KellerJordan/Muon", "dion, polar_express", "gram-newton-schulz"),
    *(f"Emerging-Optimizers, polar_express, {f}" for f in ("bfloat16", "float32")),
    *(f"optax, dion, {f}" for f in ("bfloat16", "float32")),
)
# Its torch products are in float16, which processors multiply a hundred times slower.
SLOW = "gram-newton-schulz"


# -- functions -------------------------------------------------------------------------------


def textbook(a: Array, norm: Callable[[Array], Array]) -> Array:
    """Apply the loop of papers: normalise, then X <- a X + (b G + c G G) X, G = X X^T."""
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
) -> tuple[dict[str, Callable[[], Any]], Callable[[], Any]]:
    """Functions without arguments, on one matrix or stack, and one that gives it another norm."""
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
    return found, renewal(array)


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
    options = default_options(precision, PRODUCTS)
    found: dict[str, Callable[[], Any]] = {
        name: functools.partial(polarlib.orthogonalize, a, form=form, **options)
        for form, name in FORMS.items()
    }
    found["textbook"] = lambda: textbook(a, norm_of(xp))
    found["products"] = products_alone(a, xp)
    return found, a


def renewal(a: Array) -> Callable[[], Any]:
    """A function that gives an array another norm, as the next gradient has; nothing for JAX.

    oneDNN compiles products with addends anew for a factor that it has not met, and a benchmark of
    one matrix never shows that.
    """
    if not (isinstance(a, np.ndarray) or hasattr(a, "copy_")):
        return lambda: None
    first, draws = (a.copy() if isinstance(a, np.ndarray) else a.clone()), random.Random(0)

    def renew() -> None:
        a[...] = first * draws.uniform(0.5, 2.0)

    return renew


def _jax_contenders(
    library: str, precision: str, host: np.ndarray
) -> tuple[dict[str, Callable[[], Any]], Array]:
    jax = importlib.import_module("jax")
    xp = jax.numpy
    a = xp.asarray(host, dtype=precision)
    options = default_options(precision, PRODUCTS)

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
    """Return peaks of polarlib and of the textbook loop in units of the input, and the bound."""
    host = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found, a = _host_contenders(library, precision, host)
    size = a.nbytes
    square = size * min(shape[-2:]) / max(shape[-2:])
    peaks = {
        name: peak_bytes(library, found[name]) / size for name in (*FORMS.values(), "textbook")
    }
    return peaks | {"claim": 2 + 3 * square / size}


# -- measuring -------------------------------------------------------------------------------


def product_of(library: str) -> Callable[[], Any]:
    """The product of the situation "after a product", by a library."""
    if library == "jax":
        numpy = importlib.import_module("jax.numpy")
        a, b = map(numpy.asarray, factors())
        return lambda: (a @ b).block_until_ready()
    a, b = factors()
    if library == "torch":
        a, b = map(importlib.import_module("torch").from_numpy, (a, b))
    return lambda: a @ b


def measured(
    functions: dict[str, Callable[[], Any]],
    product: Callable[[], Any],
    renew: Callable[[], Any],
    rounds: int,
    seconds: float,
) -> dict[str, dict[str, Any]]:
    """Rows of every function in each situation.

    Returns
    -------
    dict
        By situation and name: median milliseconds, rounds, and ratios of the times of the textbook
        loop and of the products to it, medians and quartiles.
    """
    before = {
        "alone": functools.partial(time.sleep, PAUSE),
        "alternation": lambda: None,
        "after a product": product,
    }
    found = {}
    for situation in SITUATIONS:

        def prepare(last: Callable[[], Any] = before[situation]) -> None:
            renew()
            last()

        times = interleaved(
            functions, seconds, least=rounds, most=MOST, situation=prepare, burst=BURST
        )
        found[situation] = {name: _row(times, name) for name in times}
    return found


def _row(times: dict[str, list[float]], name: str) -> dict[str, Any]:
    each = times[name]
    row: dict[str, Any] = {"milliseconds": 1e3 * statistics.median(each), "rounds": len(each)}
    for reference in ("textbook", "products"):
        faster = ratios(times, reference, name)
        row[reference] = statistics.median(faster)
        row[f"{reference} quartiles"] = statistics.quantiles(faster, n=4, method="inclusive")[::2]
    return row


def jobs(only: str) -> Iterator[tuple[str, str, str, tuple[int, ...]]]:
    """Yield name, library, format and shape of the selected cases that can be run."""
    for library, precision in LIBRARIES:
        if importlib.util.find_spec(library) is None:
            continue
        for shape in SHAPES:
            name = f"{library} {precision} {by(shape)}"
            if only in name and (precision != OPTIONAL or f" {OPTIONAL}" in f" {only}"):
                yield name, library, precision, shape


def main(
    only: Annotated[str, typer.Option(help="Only cases whose name contains this text.")] = "",
    peers: Annotated[Path | None, typer.Option(help="Folder of other packages.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each library.", min=1)] = None,
    occupied: Annotated[bool, typer.Option("--busy", help="Keep one processor busy.")] = False,
    quick: Annotated[
        bool, typer.Option(help="One minute; without --json the result is not kept.")
    ] = False,
    memory: Annotated[bool, typer.Option(help="Measure peak memory instead.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Data file. [docs/data/orthogonalize.json]")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write this page from the data instead.")
    ] = None,
) -> None:
    """Measure some cases and add them to the data, or write the page."""
    restart_with(threads)
    path = json_file or FIGURES
    figures = load(path, "runs", "workspace", "peers")
    if markdown is not None:
        text = page(figures)
        write_whole(markdown, lambda f: f.write(text.encode()))
        return
    if memory:
        for name, library, precision, shape in jobs(only):
            if library != "jax":
                figures["workspace"][name] = workspace(library, precision, shape)
                typer.echo(f"{name}: {figures['workspace'][name]}")
                store(path, figures)
        return
    found, _ = find(peers)
    effort = (QUICK_ROUNDS, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)
    with busy(occupied):
        run = run_of(figures, occupied)
        for name, library, precision, shape in jobs(only):
            functions, renew = contenders(library, precision, shape, found)
            rows = measured(functions, product_of(library), renew, *effort)
            run["cases"][name] = rows
            figures["peers"] |= {
                p.name.partition(",")[0]: p.source for p in found.values() if p.name in functions
            }
            if json_file is not None or not quick:
                store(path, figures)
            _print(name, rows)


def _print(case: str, found: dict[str, dict[str, Any]]) -> None:
    """One line per situation and function."""
    for situation, rows in found.items():
        for name, row in rows.items():
            low, high = row["textbook quartiles"]
            typer.echo(
                f"{case}, {situation}, {name}: {row['milliseconds']:.3g} ms, textbook / it "
                f"{row['textbook']:.2f} ({low:.2f}-{high:.2f}), products / it "
                f"{row['products']:.2f}, {row['rounds']} rounds"
            )


if __name__ == "__main__":
    typer.run(main)
