"""Costs of kernels in matrix products: measured data, from which methods are chosen.

``data/costs.toml`` has a table for each library and kind of device. ``polarlib bench --calibrate``
writes such a file for another machine. The environment variable ``POLARLIB_COSTS`` names that file,
whose tables are used before the bundled ones. Without it, the cost of an SVD is corrected for the
machine if a choice depends on it: see :func:`svd_costs_less`. With ``POLARLIB_COSTS=shipped`` the
bundled tables are used unchanged.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import reprlib
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polarlib.arrays import blas, routines
from polarlib.arrays.checks import choice, count, nearest, shown, text
from polarlib.arrays.checks import path as checked_path
from polarlib.arrays.formats import FORMATS as NAMES
from polarlib.arrays.formats import format_of
from polarlib.arrays.ops import Ops, served
from polarlib.files.whole import read_whole, write_whole

__all__ = ["KERNELS", "kernel_costs", "read_costs", "symmetric_cost"]


HEAD = """\
# What kernels cost on n x n matrices, in products of two such matrices: [library.device], then a
# number for each of sizes. polarlib/design/cost_tables.py reads it and lists the kernels;
# `polarlib bench --calibrate` measures and writes it.
"""
VARIABLE = "POLARLIB_COSTS"
SHIPPED = "shipped"  # its value for the bundled tables without a correction
# Order of the SVD that is timed, number of timings, and largest factor of the correction.
TIMED, TIMES, FACTOR = 64, 4, 2.0
# Largest cost of the SVD, relative to the planned steps, at which it is chosen. By experiment.
SVD_PAYS = 0.85
LIMIT = 2**20  # bytes of a file of costs; the bundled one has 10 kB
GENERIC = "generic"  # the table for libraries without one of their own
DEVICES = ("cpu", "gpu")
FORMATS = ("float32", "float64")
ABOUT = ("measured", "source", "sizes")  # keys of a table that are not formats
# Optional key: costs of symmetric products by half, for the formats in which they were measured.
SYMMETRIC = "symmetric"

# Description of each kernel on n x n matrices; the costs are in units of the first.
KERNELS: dict[str, str] = {
    "matmul": "product of two matrices",
    "gram": "X^H X",
    "cholesky": "Cholesky factorisation",
    "solve": "triangular solve with n right-hand sides",
    "hermitian_product": "product of a Hermitian matrix with another one",
    "qr": "reduced Householder QR, Q formed",
    "qr_stack": "the same of a 2n x n matrix",
    "apply_q": "product of the Q of a Householder QR with a matrix",
    "inverse": "inverse by LU",
    "svd": "singular values and vectors",
    "eigh": "eigenvalues and eigenvectors of a Hermitian matrix",
    "elementwise": "one pass: a matrix read, another one written",
    "lanczos": "8 Lanczos steps, without reorthogonalisation",
}
MEASURED = tuple(kernel for kernel in KERNELS if kernel != "matmul")  # the keys of a format
# Optional key of a format: the time of a product in seconds. The bundled tables have none.
SECONDS = "seconds"
LISTED = (SECONDS, *MEASURED)

Tables = dict[str, dict[str, Any]]


def kernel_costs(
    library: str, format_name: str, n: int, *, device: str = "cpu"
) -> dict[str, float]:
    """Return the costs of kernels on n x n matrices, in products of two such matrices.

    Interpolated linearly in log n between the sizes of the table, constant beyond them. Complex
    matrices have the costs of the format of their parts; formats narrower than float32 those of
    float32, in which methods compute.

    Parameters
    ----------
    library : str
        ``"numpy"``, ``"torch"``, ``"jax"``, ``"cupy"``; any other name gives the table for
        libraries that are used through the array API alone.
    format_name : str
        Number format.
    n : int
        Order of the matrices, at least 1.
    device : {"cpu", "gpu"}, optional
        Kind of device; CuPy's is always a GPU.

    Returns
    -------
    dict
        From the names in ``KERNELS`` to positive numbers; ``matmul`` is 1.

    Raises
    ------
    ValueError
        For an unknown format or device, n below 1, or a malformed file of ``POLARLIB_COSTS``.
    OSError
        If that file cannot be read.

    Examples
    --------
    >>> costs = kernel_costs("numpy", "float64", 1000)
    >>> costs["matmul"], costs["cholesky"] < 1 < costs["qr"] < costs["svd"]
    (1.0, True)
    """
    device, n = choice("device", device, DEVICES), count("n", n, most=2**53)
    carrier = format_of(format_name).carrier
    return dict(_costs(text("library", library), carrier, n, device, _own()))


@functools.lru_cache(maxsize=1024)
def _costs(library: str, format_name: str, n: int, device: str, own: str | None) -> Any:
    if not served().get(library, Ops).has_cpu:
        device = "gpu"
    table = _table(library, device, own)
    costs = {k: _interpolated(n, table["sizes"], table[format_name][k]) for k in MEASURED}
    return {"matmul": 1.0} | costs


def symmetric_cost(library: str, format_name: str, n: int, *, device: str = "cpu") -> float:
    """Return the cost of a symmetric product of order n by half, in products of that format.

    Parameters
    ----------
    library, format_name, n, device
        As for :func:`kernel_costs`. A format has its own costs here.

    Returns
    -------
    float
        Interpolated as other costs; infinity if the table has none. Such products are used only
        where they were measured to take less time. The bundled tables have none.

    Raises
    ------
    ValueError, OSError
        As :func:`kernel_costs`.

    Examples
    --------
    >>> symmetric_cost("torch", "bfloat16", 1024, device="gpu")
    inf
    """
    device, n = choice("device", device, DEVICES), count("n", n, most=2**53)
    return _symmetric_cost(text("library", library), format_of(format_name).name, n, device, _own())


@functools.lru_cache(maxsize=1024)
def _symmetric_cost(library: str, format_name: str, n: int, device: str, own: str | None) -> float:
    table = _table(library, device, own)
    costs = table.get(SYMMETRIC, {}).get(format_name)
    return math.inf if costs is None else _interpolated(n, table["sizes"], costs)


def _interpolated(n: int, sizes: Sequence[float], costs: Sequence[float]) -> float:
    return float(np.interp(np.log(n), np.log(sizes), costs))


def _own() -> str | None:
    """Return the file of costs that the environment variable names."""
    own = os.environ.get(VARIABLE) or None
    return None if own == SHIPPED else own


def svd_costs_less(costs: Mapping[str, float], steps: float, format_name: str) -> bool:
    """Whether the SVD of a NumPy matrix costs less than steps of an iteration.

    The cost of an SVD in products depends more on the processor than any other cost: on processors
    with twice as fast products, SVDs take the same time. If the cost in the table is within a
    factor of two of `steps`, it is corrected by the time of an SVD of a 64 x 64 matrix, which is
    measured once per process and format, in 5 ms. It is not corrected if ``POLARLIB_COSTS`` is set.

    Parameters
    ----------
    costs : mapping
        As :func:`kernel_costs` returns them.
    steps : float
        Cost of the steps, in products.
    format_name : str
        Number format.

    Examples
    --------
    >>> svd_costs_less({"svd": 20.0}, 5.0, "float64")
    False
    """
    # A condition number that a Gram matrix cannot resolve counts as the worst: steps cost less.
    svd, steps = costs["svd"], SVD_PAYS * steps
    near = svd / FACTOR < steps < svd * FACTOR
    if near and not os.environ.get(VARIABLE):
        with _timing:  # one thread measures, and all threads use its result
            svd *= _svds_here(format_of(format_name).carrier)
    return svd < steps


_timing = threading.Lock()


@functools.cache
def _svds_here(format_name: str) -> float:
    """Return the cost of an SVD here relative to the bundled table, within `FACTOR`."""
    a = np.random.default_rng(0).standard_normal((TIMED, TIMED)).astype(format_name, order="F")
    if not blas.computes_in(a.dtype):
        return 1.0
    out = np.empty_like(a)

    def shortest(f: Callable[[], Any], times: int) -> float:
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            f()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    with routines.one_thread:
        # As for the table: the call takes a part of the time.
        product = shortest(lambda: blas.matmul(a, a, out), 8 * TIMES)
        svd = shortest(lambda: routines.svd(a), TIMES)
    known = _costs("numpy", format_name, TIMED, "cpu", None)["svd"]
    return float(min(max(svd / (product * known), 1 / FACTOR), FACTOR))


def _table(library: str, device: str, own: str | None) -> dict[str, Any]:
    """Return the user's table of a library, or the bundled one, or the bundled generic one."""
    for tables in (_read(own) if own else {}, _shipped()):
        if device in tables.get(library, {}):
            return dict(tables[library][device])
    return dict(_shipped()[GENERIC][device])


@functools.cache
def _shipped() -> Tables:
    text = resources.files("polarlib").joinpath("data/costs.toml").read_text(encoding="utf-8")
    return _checked(text, "data/costs.toml")


# The number of paths is up to the user.
@functools.lru_cache(maxsize=16)
def _read(path: str) -> Tables:
    try:
        return read_costs(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None)
        text = f"{path}: {reason}" if reason else error
        raise type(error)(f"{text} (the file that {VARIABLE} names)") from None


class MachineCosts(NamedTuple):
    """Costs in one table of a calibration, for a format and an order of matrices.

    Attributes
    ----------
    name : str
        Library, device and format, such as "torch.gpu, float32".
    kernels : dict
        Cost of each of :data:`KERNELS`, in products of two such matrices; "gram" is that of
        symmetric products by half if these cost less.
    seconds : float or None
        Time of such a product, if the calibration has it.
    """

    name: str
    kernels: dict[str, float]
    seconds: float | None


def machine_costs(
    path: str | os.PathLike[str], format_name: str, n: int, *, library: str | None = None
) -> MachineCosts:
    """Return the costs of kernels from a calibration of one machine.

    Parameters
    ----------
    path : path-like
        A file as :func:`read_costs` reads it.
    format_name : str
        Number format.
    n : int
        Order of the matrices.
    library : str, optional
        Name of the table, if the file has several: a library, or library and device, such as
        "torch.gpu".

    Returns
    -------
    MachineCosts
        Costs are interpolated linearly in log n, and the time of a product in log n and log time.
        Beyond the sizes of the table costs are constant, and the time grows as n**3.

    Raises
    ------
    ValueError
        If the file is not one of costs, has no such table, or has several and `library` is None.
    OSError
        If the file cannot be read.
    """
    tables = {
        f"{name}.{device}": table
        for name, devices in read_costs(path).items()
        for device, table in devices.items()
    }
    wanted = None if library is None else text("library", library)
    named = [key for key in tables if wanted is None or wanted in (key, key.rpartition(".")[0])]
    if len(named) != 1:
        what = "no such table" if not named else f"{len(named)} tables, of which costs has one"
        raise ValueError(
            f"{os.fspath(path)}: {what}: {', '.join(named or tables)}; choose one of "
            f"{', '.join(tables)} by library=" + (f", got {shown(library)}" if library else "")
        )
    table, chosen = tables[named[0]], format_of(format_name)
    sizes, listed = table["sizes"], table[chosen.carrier]
    kernels = {"matmul": 1.0} | {k: _interpolated(n, sizes, listed[k]) for k in MEASURED}
    by_half = table.get(SYMMETRIC, {}).get(chosen.name)
    if by_half is not None:
        kernels["gram"] = min(kernels["gram"], _interpolated(n, sizes, by_half))
    seconds = None
    if SECONDS in listed:
        inside = min(max(n, sizes[0]), sizes[-1])
        logarithm = _interpolated(inside, sizes, np.log(listed[SECONDS]))
        seconds = math.exp(logarithm) * (n / inside) ** 3
    return MachineCosts(f"{named[0]}, {chosen.name}", kernels, seconds)


def read_costs(path: str | os.PathLike[str]) -> Tables:
    """Read and check a file of costs.

    Parameters
    ----------
    path : path-like
        TOML. ``[library.device]`` has ``sizes`` (ascending), ``measured``, ``source``, and for
        each of "float32" and "float64" a table of the kernels' costs, one number per size. Optional
        are ``seconds``, the times of a product, and ``[library.device.symmetric]`` with costs of
        :func:`symmetric_cost`, by format.

    Returns
    -------
    dict
        From library and device to such tables.

    Raises
    ------
    ValueError
        If the file is not such a file; the message has its name, the key, and the allowed values.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> read_costs("nowhere.toml")
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.toml'
    """
    content = read_whole(checked_path("path", path), LIMIT)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)}: is not text in UTF-8: {error.reason}") from None
    return _checked(text, os.fspath(path))


def _checked(text: str, file: str) -> Tables:
    """Parse a file of costs, or raise an error that names the fault."""
    import tomllib  # here, to keep the import of polarlib short

    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{file}: is not TOML: it is nested too deeply") from None
    except ValueError as error:  # raised by tomllib, or for an integer with thousands of digits
        raise ValueError(f"{file}: is not TOML: {error}") from None

    def require(condition: Any, key: str, allowed: str, value: Any) -> None:
        if not condition:
            raise ValueError(f"{file}: {key} must be {allowed}, got {reprlib.repr(value)}")

    def only(given: dict[str, Any], key: str, known: tuple[str, ...], optional: Any = ()) -> None:
        for name in given:
            if name not in known:
                raise ValueError(f"{file}: unknown key {key}{name}; {nearest(name, known)}")
        for name in known:
            if name not in given and name not in optional:
                raise ValueError(f"{file}: {key}{name} is missing")

    require(tables, "the file", "a table such as [numpy.cpu] at least", tables)
    for library, devices in tables.items():
        require(isinstance(devices, dict) and devices, library, "a table", devices)
        only(devices, f"{library}.", DEVICES, optional=DEVICES)
        for device, table in devices.items():
            key = f"{library}.{device}"
            require(isinstance(table, dict), key, "a table", table)
            only(table, f"{key}.", (*ABOUT, *FORMATS, SYMMETRIC), optional=(SYMMETRIC,))
            measured, source, sizes = (table[name] for name in ABOUT)
            require(isinstance(measured, bool), f"{key}.measured", "true or false", measured)
            require(isinstance(source, str), f"{key}.source", "text", source)
            rising = _numbers(sizes) and all(a < b for a, b in itertools.pairwise(sizes))
            require(rising, f"{key}.sizes", "a list of ascending positive numbers", sizes)
            for name in sections(table):
                costs, where = table[name], f"{key}.{name}"
                require(isinstance(costs, dict), where, "a table", costs)
                if name == SYMMETRIC:
                    only(costs, f"{where}.", tuple(NAMES), optional=NAMES)
                else:
                    only(costs, f"{where}.", LISTED, optional=(SECONDS,))
                for kernel, values in costs.items():
                    right = _numbers(values) and len(values) == len(sizes)
                    allowed = f"a list of {len(sizes)} positive numbers, one for each of sizes"
                    require(right, f"{where}.{kernel}", allowed, values)
    return tables


def sections(*tables: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the parts that list costs and that all tables have."""
    there = all(SYMMETRIC in table for table in tables)
    return (*FORMATS, SYMMETRIC) if there else FORMATS


def _numbers(values: Any) -> bool:
    """Whether a value is a list of positive finite numbers."""
    return (
        isinstance(values, list)
        and len(values) > 0
        and all(type(v) in (int, float) and 0 < v <= sys.float_info.max for v in values)
    )


def add_costs(path: Path, tables: Tables) -> None:
    """Add measured costs to a file; if that fails, the file is unchanged.

    Other sizes of a table of the same source are kept; a table of another source is replaced.

    Parameters
    ----------
    path : Path
        The file, which need not exist.
    tables : dict
        Tables by library and device, as :func:`polarlib.bench.calibrate` returns them.

    Raises
    ------
    ValueError
        If an existing file is not a file of costs.
    OSError
        If the file cannot be written.
    """
    merged = read_costs(path) if path.exists() else {}
    for library, devices in tables.items():
        for device, table in devices.items():
            there = merged.setdefault(library, {}).get(device)
            same = there is not None and there["source"] == table["source"]
            merged[library][device] = _joined(there, table) if same and there else table
    text = _toml(merged).encode()
    write_whole(path, lambda file: file.write(text))


def _joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return one table with the sizes of both; equal sizes are those of the new one."""
    origin = {n: (t, i) for t in (old, new) for i, n in enumerate(t["sizes"])}
    sizes = sorted(origin)
    joined = {key: new[key] for key in ABOUT} | {"sizes": sizes}
    for name in sections(old, new):
        joined[name] = {
            kernel: [origin[n][0][name][kernel][origin[n][1]] for n in sizes]
            for kernel in filter(old[name].__contains__, new[name])
        }
    return joined


def _toml(tables: Tables) -> str:
    lines = [HEAD]
    for library, devices in tables.items():
        for device, table in devices.items():
            lines.append(f"[{library}.{device}]")
            lines += [f"{key} = {json.dumps(table[key])}" for key in ABOUT]
            for name in sections(table):
                lines.append(f"\n[{library}.{device}.{name}]")
                lines += [f"{k} = {json.dumps(v)}" for k, v in table[name].items()]
            lines.append("")
    return "\n".join(lines)
