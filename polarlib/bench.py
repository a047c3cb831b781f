"""What ``polarlib bench`` does: time polar() and other libraries, and measure what kernels cost.

Kernels on a CPU are timed after a pause, in which idle threads of the kernel before stop waiting
for work: NumPy and SciPy bring a pool of threads each, and one that still waits makes small
products of the other a hundred times slower. Functions that users call are timed in one of the
situations of :mod:`polarlib.timing`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.linalg

from polarlib._extras import require
from polarlib.arrays.checks import choice
from polarlib.arrays.kernels import NumpyKernels
from polarlib.arrays.library import import_library
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.settings import double_enabled
from polarlib.decomposition import polar
from polarlib.design import cost_tables
from polarlib.engine.symmetric import rivals
from polarlib.files.whole import write_whole
from polarlib.orthogonalization import orthogonalize
from polarlib.timing import BURST, SITUATIONS, factors, interleaved, ratios

__all__ = [
    "LIBRARIES",
    "add_costs",
    "calibrate",
    "compare",
    "kernels",
    "sizes_of",
    "usable_processors",
]

Array = Any
Library = Literal["numpy", "torch", "jax", "cupy", "array_api_strict"]
Device = Literal["cpu", "gpu"]

# Where arrays are made, and the package whose version says which library it was.
LIBRARIES = {
    "numpy": ("numpy", "numpy"),
    "torch": ("torch", "torch"),
    "jax": ("jax.numpy", "jax"),
    "cupy": ("cupy", "cupy"),
    # The array API and nothing else: the table for libraries without one of their own.
    "array_api_strict": ("array_api_strict", "array-api-strict"),
}
DAY = 86_400  # seconds
LARGEST = 2**15  # order of a matrix; of 8 GiB in float64
LEAST = 3  # rounds: a median and quartiles that one disturbance cannot move
MOST = 200
# Seconds that the calls of a kernel take together after a pause: methods call kernels one after the
# other, so that only the first one waits for its threads.
KERNEL_BURST = 0.01
LANCZOS_STEPS = 8  # as many as estimate a singular value for method="auto"
HEAD = """\
# What kernels cost on n x n matrices, in products of two such matrices: [library.device], then a
# number for each of sizes. polarlib/design/cost_tables.py reads it and lists the kernels;
# `polarlib bench --calibrate` measures and writes it.
"""


# -- timing ----------------------------------------------------------------------------------


def _times(
    functions: dict[str, Callable[[], Any]],
    seconds: float,
    situation: str | Callable[[], Any] = "alone",
    burst: float = KERNEL_BURST,
) -> dict[str, list[float]]:
    return interleaved(functions, seconds, least=LEAST, most=MOST, situation=situation, burst=burst)


def _preceding(situation: str, make: Callable[[np.ndarray], Array]) -> str | Callable[[], Any]:
    """Return a situation whose product, if it has one, is of the library that is timed."""
    if situation != "after a product":
        return situation
    a, b = map(make, factors())
    ops = ops_of(a)
    return lambda: _finished(ops.matmul(a, b), ops)


def _finished(x: Array, ops: Ops) -> Array:
    """Wait for a result: some libraries return before it is there."""
    if hasattr(x, "block_until_ready"):
        return x.block_until_ready()
    if not ops.host:  # reading an entry waits, and costs next to nothing where nothing is pending
        float(x[(-1,) * x.ndim])
    return x


@contextlib.contextmanager
def _arrays(library: str, device: str = "cpu") -> Iterator[Callable[[np.ndarray], Array]]:
    """A function that makes arrays of a library from NumPy's, both formats enabled."""
    choice("library", library, LIBRARIES)
    choice("device", device, cost_tables.DEVICES)
    extra = "test" if library == "array_api_strict" else library
    require(f"a measurement of {library}", extra, library)
    module = import_library(LIBRARIES[library][0])
    if device == "gpu" and library in ("numpy", "array_api_strict"):
        raise ValueError(f"{library} has no arrays on a GPU; choose device cpu, or another library")
    place: dict[str, Any] = {}
    try:
        if library == "torch":
            place = {"device": "cuda" if device == "gpu" else "cpu"}
        elif library == "jax":
            place = {"device": import_library("jax").devices(device)[0]}
        module.asarray(np.zeros(1), **place)
    except Exception as error:  # each library has its own
        text = " ".join(str(error).split())
        raise ValueError(f"{library} cannot use a {device} here ({text}); choose another") from None
    with double_enabled(library):
        yield lambda a: module.asarray(a, **place)


def sizes_of(text: str) -> list[int]:
    """Read a list of sizes.

    Raises
    ------
    ValueError
        Unless it is numbers from 2 to 32768 with commas between.

    Examples
    --------
    >>> sizes_of("512,256")
    [256, 512]
    """
    try:
        sizes = sorted({int(n) for n in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 2 or sizes[-1] > LARGEST:
        raise ValueError(
            f"--sizes must be numbers from 2 to {LARGEST} with commas between, such as 256,512, "
            f"got {text!r}"
        )
    return sizes


def _check_seconds(seconds: float) -> None:
    if not 0 < seconds <= DAY:
        raise ValueError(f"--seconds must be a positive number up to {DAY}, got {seconds}")


# -- kernels ---------------------------------------------------------------------------------


def kernels(n: int, format_name: str, make: Callable[[np.ndarray], Array]) -> dict[str, Any]:
    """The kernels of :data:`polarlib.design.cost_tables.KERNELS`, as functions without arguments.

    Parameters
    ----------
    n : int
        Order of the matrices, which are Gaussian, or Hermitian with eigenvalues from 1 to 5.
    format_name : str
        "float32" or "float64".
    make : callable
        Array of the library from NumPy's.

    Examples
    --------
    >>> sorted(kernels(4, "float64", np.asarray)) == sorted(cost_tables.KERNELS)
    True
    """
    rng = np.random.default_rng(0)
    tall = rng.standard_normal((2 * n, n)).astype(format_name)
    a, b, v = (make(x) for x in (tall[:n].copy(), tall[n:].copy(), tall[:n, :1].copy()))
    stack = make(tall)
    ops = ops_of(a)
    g = ops.add_diagonal(ops.gram(a) * (1 / n), 1.0)
    l = ops.cholesky(g)
    q, _ = ops.qr(a)
    found = {
        "matmul": lambda: ops.matmul(a, b),
        "gram": lambda: ops.gram(a),
        "cholesky": lambda: ops.cholesky(g),
        "solve": lambda: ops.solve_lower(l, b),
        "hermitian_product": lambda: ops.matmul(b, g),
        "qr": lambda: ops.qr(a)[0],
        "qr_stack": lambda: ops.qr(stack)[0],
        "apply_q": lambda: ops.matmul(q, b),
        "inverse": lambda: ops.inverse(a),
        "svd": lambda: ops.svd(a)[0],
        "eigh": lambda: ops.xp.linalg.eigh(g)[1],
        "elementwise": lambda: a * 1.5,
        "lanczos": lambda: _lanczos(g, v, ops),
    }
    in_place = ops.kernels(a)
    if in_place is not None:
        found |= _in_place(in_place, a, b, g)
        return {name: _with_threads_for(a, f, ops) for name, f in found.items()}
    return {name: lambda f=f: _finished(f(), ops) for name, f in found.items()}


def _with_threads_for(a: Array, f: Callable[[], Any], ops: Ops) -> Callable[[], Any]:
    """A kernel with as many threads as methods use for such matrices."""

    def run() -> Any:
        with ops._threads_for(a):
            return f()

    return run


def _in_place(kernels: NumpyKernels, a: np.ndarray, b: np.ndarray, g: np.ndarray) -> dict[str, Any]:
    """NumPy's kernels as the methods for it call them: in place, column-major."""
    a, b, g = (np.asfortranarray(x) for x in (a, b, g))
    out, work = np.empty_like(b), np.asfortranarray(np.triu(g))

    def cholesky() -> np.ndarray:
        np.copyto(work, g)
        kernels.cholesky(work)
        return work

    def solve() -> np.ndarray:
        kernels.solve(b, r, out)
        return out

    # Factors are made once: a solve, and a product with Q, are timed without them.
    r = cholesky().copy(order="F")
    factor = kernels.factorise(a.copy(order="F"))
    rotated = b.copy(order="F")
    return {
        "matmul": lambda: kernels.matmul(a, b, out),
        "gram": lambda: kernels.gram(a),
        "cholesky": cholesky,
        "solve": solve,
        "hermitian_product": lambda: kernels.times(b, g, out),
        "apply_q": lambda: kernels.apply_q(factor, rotated),
        "eigh": lambda: np.linalg.eigh(g)[1],
        "elementwise": lambda: np.multiply(a, a.dtype.type(1.5), out=out),
        "lanczos": lambda: kernels.largest(g, LANCZOS_STEPS),
    }


def _lanczos(g: Array, v: Array, ops: Ops) -> Array:
    """Lanczos steps whose scalars are read, as a stopping test would."""
    xp = ops.xp
    v = v / ops.frobenius(v)
    before, beta = xp.zeros_like(v), 0.0
    for _ in range(LANCZOS_STEPS):
        w = ops.matmul(g, v) - before * beta
        w = w - v * xp.sum(w * v)
        beta = ops.item(ops.frobenius(w))
        before, v = v, w * (1 / beta)
    return v


def calibrate(
    library: Library,
    *,
    sizes: Sequence[int],
    seconds: float,
    device: Device = "cpu",
    advance: Callable[[str], None] = lambda what: None,
) -> cost_tables.Tables:
    """Measure the costs of a library's kernels on this machine.

    Parameters
    ----------
    library : str
        One of ``LIBRARIES``.
    sizes : sequence of int
        Orders of the matrices.
    seconds : float
        For about how long in all; each kernel is timed three times at least.
    device : {"cpu", "gpu"}, optional
        Kind of device.
    advance : callable, optional
        Told of each job to come.

    Returns
    -------
    dict
        As `read_costs` returns it: medians of the ratios, in single rounds, of a kernel's time to
        that of a product.

    Raises
    ------
    ValueError, ImportError
        For an unknown library or device, or no time; for a library that is not installed.

    Examples
    --------
    >>> calibrate("numpy", sizes=[8], seconds=0)
    Traceback (most recent call last):
    ValueError: --seconds must be a positive number up to 86400, got 0
    """
    _check_seconds(seconds)
    device = "gpu" if library == "cupy" else device  # CuPy has no other
    table: dict[str, Any] = {"measured": True, "source": "", "sizes": list(sizes)}
    table |= {name: {k: [] for k in cost_tables.LISTED} for name in cost_tables.FORMATS}
    share = seconds / (len(sizes) * len(cost_tables.FORMATS))
    situation = "alone" if device == "cpu" else "alternation"
    with _arrays(library, device) as make:
        table["source"] = _where(library, device)
        for format_name in cost_tables.FORMATS:
            for n in sizes:
                advance(f"{library}, {format_name}, {n} x {n}")
                times = _times(kernels(n, format_name, make), share, situation)
                for name, column in table[format_name].items():
                    column.append(_cost(times, name))
        table |= _symmetric(sizes, make, share)
    return {cost_tables.GENERIC if library == "array_api_strict" else library: {device: table}}


def _cost(times: dict[str, list[float]], name: str) -> float:  # SECONDS: those of a product
    found = times["matmul"] if name == cost_tables.SECONDS else ratios(times, name, "matmul")
    return float(f"{statistics.median(found):.3g}")


def _symmetric(sizes: Sequence[int], make: Callable[..., Array], seconds: float) -> dict[str, Any]:
    """Costs of symmetric products by half, by format; nothing where there are none."""
    costs: dict[str, list[float]] = {}
    for n in sizes:
        for name, pair in rivals(make(np.eye(n)), _finished).items():
            costs.setdefault(name, []).append(_cost(_times(pair, seconds), cost_tables.SYMMETRIC))
    return {cost_tables.SYMMETRIC: costs} if costs else {}


def _where(library: str, device: str) -> str:
    """The command and the machine, for the file's reader."""
    versions = [LIBRARIES[library][1]]
    with contextlib.suppress(metadata.PackageNotFoundError):  # cupy-cuda13x has another name
        versions = [f"{name} {metadata.version(name)}" for name in versions]
    option = "" if device == "cpu" or library == "cupy" else f" --device {device}"
    return (
        f"polarlib bench --calibrate --library {library}{option}; {platform.machine()}, "
        f"{usable_processors()} processors, {', '.join(versions)}"
    )


def usable_processors() -> int | None:
    """Return the number of processors that this process may use, where the system reports it.

    Examples
    --------
    >>> usable_processors() >= 1
    True
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count()


def add_costs(path: Path, tables: cost_tables.Tables) -> None:
    """Add measured costs to a file, which is written whole or not at all.

    Other sizes of a table of the same source are kept; a table of another source is replaced.

    Raises
    ------
    ValueError
        If the file is there and is no file of costs: it is then left as it is.
    OSError
        If it cannot be written.
    """
    merged = cost_tables.read_costs(path) if path.exists() else {}
    for library, devices in tables.items():
        for device, table in devices.items():
            there = merged.setdefault(library, {}).get(device)
            same = there is not None and there["source"] == table["source"]
            merged[library][device] = _joined(there, table) if same and there else table
    text = _toml(merged).encode()
    write_whole(path, lambda file: file.write(text))


def _joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """One table of the sizes of both; the new one's go before."""
    origin = {n: (t, i) for t in (old, new) for i, n in enumerate(t["sizes"])}
    sizes = sorted(origin)
    joined = {key: new[key] for key in cost_tables.ABOUT} | {"sizes": sizes}
    for name in cost_tables.sections(old, new):
        joined[name] = {
            kernel: [origin[n][0][name][kernel][origin[n][1]] for n in sizes]
            for kernel in filter(old[name].__contains__, new[name])
        }
    return joined


def _toml(tables: cost_tables.Tables) -> str:
    lines = [HEAD]
    for library, devices in tables.items():
        for device, table in devices.items():
            lines.append(f"[{library}.{device}]")
            lines += [f"{key} = {json.dumps(table[key])}" for key in cost_tables.ABOUT]
            for name in cost_tables.sections(table):
                lines.append(f"\n[{library}.{device}.{name}]")
                lines += [f"{k} = {json.dumps(v)}" for k, v in table[name].items()]
            lines.append("")
    return "\n".join(lines)


# -- other libraries -------------------------------------------------------------------------


def compare(
    library: Library = "numpy",
    *,
    sizes: Sequence[int],
    seconds: float,
    device: Device = "cpu",
    situation: str = "alternation",
    advance: Callable[[str], None] = lambda what: None,
) -> list[dict[str, Any]]:
    """Time polar(), orthogonalize() and other libraries' polar factors on this machine.

    Parameters
    ----------
    library, sizes, seconds, device, advance
        As for :func:`calibrate`.
    situation : {"alternation", "alone", "after a product"}, optional
        What precedes each timed call, see :func:`polarlib.timing.interleaved`: the call of another
        function; a pause; a product of two float64 matrices of order 512 by the library.

    Returns
    -------
    list of dict
        A row per function, format and size: `situation`, `milliseconds`, times of a matrix product
        (`matrix_products`), how many times as fast as SciPy (`ratio`, with `quartiles` over the
        rounds), `rounds`, and what polar() took (`method`). Gaussian matrices.

    Examples
    --------
    >>> rows = compare(sizes=[8], seconds=0.01)
    >>> [row["function"] for row in rows if row["format"] == "float32"]
    ['polar', 'orthogonalize', 'scipy.linalg.polar', 'numpy.linalg.svd']
    """
    _check_seconds(seconds)
    choice("situation", situation, SITUATIONS)
    rows = []
    share = seconds / (len(sizes) * len(cost_tables.FORMATS))
    with _arrays(library, device) as make:
        for format_name in cost_tables.FORMATS:
            for n in sizes:
                advance(f"{library}, {format_name}, {n} x {n}")
                found = _compared(library, make, format_name, n, share, situation)
                rows += [{"situation": situation} | row for row in found]
    return rows


def _of_svd(u: Array, s: Array, vh: Array) -> tuple[Array, Array]:
    """Factors of a real matrix, as users make them of its SVD."""
    return u @ vh, (vh.mT * s) @ vh


def _compared(
    library: str,
    make: Callable[[np.ndarray], Array],
    format_name: str,
    n: int,
    seconds: float,
    situation: str,
) -> list[dict[str, Any]]:
    a = np.random.default_rng(0).standard_normal((n, n)).astype(format_name)
    x = make(a)
    ops = ops_of(x)
    functions = {
        "polar": lambda: _finished(polar(x).hermitian, ops),
        "orthogonalize": lambda: _finished(orthogonalize(x), ops),
        "scipy.linalg.polar": lambda: scipy.linalg.polar(a),
        "numpy.linalg.svd": lambda: _of_svd(*np.linalg.svd(a)),
        f"{library} svd": lambda: _finished(_of_svd(*ops.svd(x))[1], ops),
        "product": lambda: _finished(ops.matmul(x, x), ops),
    }
    if library == "numpy":
        del functions["numpy svd"]  # is there as numpy.linalg.svd
    times = _times(functions, seconds, _preceding(situation, make), BURST)
    product = statistics.median(times.pop("product"))
    rows = []
    for name, each in times.items():
        faster = ratios(times, "scipy.linalg.polar", name)
        rows.append(
            {
                "library": library,
                "format": format_name,
                "size": n,
                "function": name,
                "milliseconds": 1e3 * statistics.median(each),
                "matrix_products": statistics.median(each) / product,
                "ratio": statistics.median(faster),
                "quartiles": statistics.quantiles(faster, n=4)[::2],
                "rounds": len(each),
                "method": polar(x).method if name == "polar" else "",
            }
        )
    return rows
