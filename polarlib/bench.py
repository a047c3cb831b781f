"""Timings of polar() and of other libraries, and costs of kernels, for ``polarlib bench``.

Kernels on a CPU are timed after a pause, in which idle threads of the previous kernel stop waiting
for work. NumPy and SciPy have separate thread pools, and a pool that still waits makes small
products of the other a hundred times slower. Public functions are timed in one of the situations of
:mod:`polarlib.timing`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, Literal

import numpy as np
import scipy.linalg

from polarlib._extras import require
from polarlib._renamed import warn_renamed
from polarlib.arrays.checks import choice
from polarlib.arrays.kernels import NumpyKernels
from polarlib.arrays.library import import_library
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.progress import Callback, reporting
from polarlib.arrays.settings import double_enabled
from polarlib.decomposition import polar
from polarlib.design import cost_tables
from polarlib.design.cost_tables import add_costs
from polarlib.engine.symmetric import rivals
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

# Namespace of each library, and the package whose version identifies it.
LIBRARIES = {
    "numpy": ("numpy", "numpy"),
    "torch": ("torch", "torch"),
    "jax": ("jax.numpy", "jax"),
    "cupy": ("cupy", "cupy"),
    # The array API alone: the table for libraries without one of their own.
    "array_api_strict": ("array_api_strict", "array-api-strict"),
}
DAY = 86_400  # seconds
LARGEST = 2**15  # order of a matrix; of 8 GiB in float64
LEAST = 3  # rounds: one disturbance does not change a median of three
MOST = 200
# Least seconds of the calls of a kernel after a pause. Methods call kernels one after the other, so
# that only the first one waits for its threads.
KERNEL_BURST = 0.01
LANCZOS_STEPS = 8  # as many as estimate a singular value for method="auto"


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
    """Return a result after it is computed: some libraries return before."""
    if hasattr(x, "block_until_ready"):
        return x.block_until_ready()
    if not ops.host:  # reading an entry waits for the device
        float(x[(-1,) * x.ndim])
    return x


@contextlib.contextmanager
def _arrays(library: str, device: str = "cpu") -> Iterator[Callable[[np.ndarray], Array]]:
    """Yield a function that converts NumPy's arrays to a library's, with float64 enabled."""
    choice("library", library, LIBRARIES)
    choice("device", device, cost_tables.DEVICES)
    extra = "test" if library == "array_api_strict" else library
    require(f"a measurement of {library}", extra, library)
    module = import_library(LIBRARIES[library][0])
    if device == "gpu" and library in ("numpy", "array_api_strict"):
        raise ValueError(f"{library} has no arrays on a GPU; use device cpu, or another library")
    place: dict[str, Any] = {}
    try:
        if library == "torch":
            place = {"device": "cuda" if device == "gpu" else "cpu"}
        elif library == "jax":
            place = {"device": import_library("jax").devices(device)[0]}
        module.asarray(np.zeros(1), **place)
    except Exception as error:  # each library has its own
        text = " ".join(str(error).split())
        raise ValueError(f"{library} cannot use a {device} here ({text}); use another") from None
    with double_enabled(library):
        yield lambda a: module.asarray(a, **place)


def sizes_of(text: str) -> list[int]:
    """Read a list of sizes.

    Parameters
    ----------
    text : str
        Numbers with commas between, such as "256,512".

    Returns
    -------
    list of int
        Ascending, without repetitions.

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
    """Return the kernels in :data:`polarlib.design.cost_tables.KERNELS`, by name.

    Parameters
    ----------
    n : int
        Order of the matrices, which are Gaussian, or Hermitian with eigenvalues from 1 to 5.
    format_name : str
        "float32" or "float64".
    make : callable
        Array of the library from NumPy's.

    Returns
    -------
    dict of str to callable
        Functions without arguments, each of which computes one kernel.

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
    calls = {
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
        calls |= _in_place(in_place, a, b, g)
        return {name: _with_threads_for(a, f, ops) for name, f in calls.items()}
    return {name: lambda f=f: _finished(f(), ops) for name, f in calls.items()}


def _with_threads_for(a: Array, f: Callable[[], Any], ops: Ops) -> Callable[[], Any]:
    """Return a kernel that runs with as many threads as methods use for such matrices."""

    def run() -> Any:
        with ops._threads_for(a):
            return f()

    return run


def _in_place(kernels: NumpyKernels, a: np.ndarray, b: np.ndarray, g: np.ndarray) -> dict[str, Any]:
    """Return NumPy's kernels as the methods call them: in place, column-major."""
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
    """Take Lanczos steps whose scalars are read, as by a stopping test."""
    xp = ops.xp
    v = v / ops.frobenius(v)
    before, beta = xp.zeros_like(v), 0.0
    for _ in range(LANCZOS_STEPS):
        w = ops.matmul(g, v) - before * beta
        w = w - v * xp.sum(w * v)
        beta = ops.item(ops.frobenius(w))
        before, v = v, w * (1 / beta)
    return v


def _reporting(
    callback: Callback | None, advance: Callable[[str], None] | None, sizes: int
) -> Callable[..., Any]:
    if advance is not None:
        former = advance
        warn_renamed("argument advance= of polarlib.bench", "callback=", 4)
        callback = lambda k, value: former(k.what)  # noqa: E731
    return reporting(callback, "sizes", sizes * len(cost_tables.FORMATS))


def calibrate(
    library: Library,
    *,
    sizes: Sequence[int],
    seconds: float,
    device: Device = "cpu",
    callback: Callback | None = None,
    advance: Callable[[str], None] | None = None,
) -> cost_tables.Tables:
    """Measure the costs of a library's kernels on this machine.

    Parameters
    ----------
    library : str
        One of ``LIBRARIES``.
    sizes : sequence of int
        Orders of the matrices.
    seconds : float
        Approximate time in all; each kernel is timed at least three times.
    device : {"cpu", "gpu"}, optional
        Kind of device.
    callback : callable, optional
        Called as ``callback(k, value)`` after each format and size, k = 1, 2, ..., with the median
        milliseconds of a product, or of polar(). See :class:`polarlib.result.Progress`.
    advance : callable, optional
        Former name of `callback`, called with ``k.what`` alone.

    Returns
    -------
    dict
        As `read_costs` returns it: the median over the rounds of a kernel's time divided by that
        of a product.

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
    report, k = _reporting(callback, advance, len(sizes)), itertools.count(1)
    with _arrays(library, device) as make:
        table["source"] = _where(library, device)
        for format_name in cost_tables.FORMATS:
            for n in sizes:
                times = _times(kernels(n, format_name, make), share, situation)
                for name, column in table[format_name].items():
                    column.append(_cost(times, name))
                product = 1e3 * statistics.median(times["matmul"])
                report(next(k), product, f"{library}, {format_name}, {n} x {n}")
        table |= _symmetric(sizes, make, share)
    return {cost_tables.GENERIC if library == "array_api_strict" else library: {device: table}}


def _cost(times: dict[str, list[float]], name: str) -> float:  # SECONDS: those of a product
    values = times["matmul"] if name == cost_tables.SECONDS else ratios(times, name, "matmul")
    return float(f"{statistics.median(values):.3g}")


def _symmetric(sizes: Sequence[int], make: Callable[..., Array], seconds: float) -> dict[str, Any]:
    """Return the costs of symmetric products by half, by format, if the library has them."""
    costs: dict[str, list[float]] = {}
    for n in sizes:
        for name, pair in rivals(make(np.eye(n)), _finished).items():
            costs.setdefault(name, []).append(_cost(_times(pair, seconds), cost_tables.SYMMETRIC))
    return {cost_tables.SYMMETRIC: costs} if costs else {}


def _where(library: str, device: str) -> str:
    """Return the command, the machine and the versions, for the reader of the file."""
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

    Returns
    -------
    int or None
        Number of processors of the affinity mask on Linux, elsewhere of the machine; None if the
        system does not report it.

    Examples
    --------
    >>> usable_processors() >= 1
    True
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count()


# -- other libraries -------------------------------------------------------------------------


def compare(
    library: Library = "numpy",
    *,
    sizes: Sequence[int],
    seconds: float,
    device: Device = "cpu",
    situation: str = "alternation",
    callback: Callback | None = None,
    advance: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Time polar(), orthogonalize() and other libraries' polar factors on this machine.

    Parameters
    ----------
    library : str, optional
        As for :func:`calibrate`.
    sizes : sequence of int
        Orders of the matrices.
    seconds : float
        Approximate time in all.
    device : {"cpu", "gpu"}, optional
        Kind of device.
    situation : {"alternation", "alone", "after a product"}, optional
        Untimed work before each call, see :func:`polarlib.timing.interleaved`: the call of another
        function; a pause; a product of two float64 matrices of order 512 by the library.
    callback, advance : callable, optional
        As for :func:`calibrate`.

    Returns
    -------
    list of dict
        A row per function, format and size, for Gaussian matrices: `situation`, `milliseconds`,
        the same in times of a matrix product (`matrix_products`), SciPy's time divided by that of
        the function (`ratio`, with `quartiles` over the rounds), `rounds`, and polar()'s `method`.

    Examples
    --------
    >>> rows = compare(sizes=[8], seconds=0.01)
    >>> [row["function"] for row in rows if row["format"] == "float32"]
    ['polar', 'orthogonalize', 'scipy.linalg.polar', 'numpy.linalg.svd']
    """
    _check_seconds(seconds)
    choice("situation", situation, SITUATIONS)
    rows: list[dict[str, Any]] = []
    share = seconds / (len(sizes) * len(cost_tables.FORMATS))
    report, k = _reporting(callback, advance, len(sizes)), itertools.count(1)
    with _arrays(library, device) as make:
        for format_name in cost_tables.FORMATS:
            for n in sizes:
                made = _compared(library, make, format_name, n, share, situation)
                rows += [{"situation": situation} | row for row in made]
                report(next(k), made[0]["milliseconds"], f"{library}, {format_name}, {n} x {n}")
    return rows


def _of_svd(u: Array, s: Array, vh: Array) -> tuple[Array, Array]:
    """Return the factors of a real matrix from its SVD, by two products."""
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
        del functions["numpy svd"]  # listed as numpy.linalg.svd
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
