"""The commands polarlib info, bench and report."""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import platform
import warnings
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import threadpoolctl
import typer

import polarlib
from polarlib.arrays.entry import libraries
from polarlib.arrays.formats import FORMATS
from polarlib.arrays.ops import import_arrays, ops_of
from polarlib.arrays.rounded import Rounded, rounded
from polarlib.bench import usable_processors
from polarlib.cli import console
from polarlib.cli.console import grid, numbered_columns, say, tabulated
from polarlib.cli.progress import progress
from polarlib.design.cost_tables import Tables, read_costs
from polarlib.timing import SITUATIONS

# -- report ----------------------------------------------------------------------------------


@console.command(epilog="Example: polarlib report -o report.html analysis-output")
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder with the output of the studies.")
    ] = Path("analysis-output"),
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The HTML page.")
    ] = Path("report.html"),
    as_json: console.Json = False,
) -> None:
    """Write the results of the studies as one HTML page."""
    from polarlib.report import VERDICTS, write

    console.check_outputs({"-o": output}, ())
    with progress(quiet=as_json) as bar:
        bar.begin(f"report of {folder}")
        studies = write(output, folder)
    if as_json:
        console.say_json({"report": output, "studies": studies})
        return
    columns: list[console.Column] = [
        ("study", "<", lambda s: s["study"] + " (quick)" * s["quick"]),
        *((word, ">", operator.itemgetter(word)) for word in (*VERDICTS, "failed")),
    ]
    say(*tabulated(columns, studies), f"Written to {output}.")


# -- bench -----------------------------------------------------------------------------------

# Default sizes and seconds.
BENCH_SIZES, BENCH_SECONDS = "256,512", 10.0
COST_SIZES, COST_SECONDS = "64,128,256,512,1024", 60.0


@console.command(epilog="Example: polarlib bench --sizes 64 --seconds 1")
def bench(
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure the costs of kernels instead.")
    ] = False,
    library: Annotated[
        str, typer.Option(help="Array library: numpy, torch, jax or cupy.")
    ] = "numpy",
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help=f"Orders of the matrices. [{BENCH_SIZES}; with --calibrate {COST_SIZES}]",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Approximate time in all; large sizes take longer. "
            f"[{BENCH_SECONDS:g}; with --calibrate {COST_SECONDS:g}]"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Kind of device: cpu or gpu.")] = "cpu",
    situation: Annotated[
        str | None,
        typer.Option(help=f"What precedes each call: {', '.join(SITUATIONS)}. [alternation]"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Add the costs to this .toml.")
    ] = None,
    as_json: console.Json = False,
) -> None:
    """Time polar() and other libraries, or measure costs of kernels."""
    from polarlib import bench  # here, since the command has the name of the module

    if output is not None and not calibrate:
        raise ValueError("-o must be given with --calibrate only: it is for the costs of kernels")
    if situation is not None and calibrate:
        raise ValueError(
            "--situation must not be given with --calibrate, which times kernels alone"
        )
    console.check_outputs({"-o": output}, (".toml",))
    if output is not None and output.exists():
        read_costs(output)  # refuses other files before minutes are used
    default = COST_SIZES if calibrate else BENCH_SIZES
    listed = bench.sizes_of(default if sizes is None else sizes)
    share = (COST_SECONDS if calibrate else BENCH_SECONDS) if seconds is None else seconds
    situation = situation or "alternation"
    measure: Callable[..., Any] = (
        bench.calibrate if calibrate else functools.partial(bench.compare, situation=situation)
    )
    with progress(quiet=as_json, timed=True) as bar, console.collected_warnings() as notes:
        measured = measure(library, sizes=listed, seconds=share, device=device, callback=bar)
    if not calibrate:
        if as_json:
            console.say_json({"rows": measured, "notes": notes})
            return
        _print_speeds(measured, situation)
        console.say_notes(notes)
        return
    if output is not None:
        console.write_named({"-o": output}, functools.partial(bench.add_costs, output, measured))
    if as_json:
        console.say_json({"costs": measured, "costs_file": output, "notes": notes})
        return
    _print_costs(measured)
    console.say_notes(notes)
    if output is None:
        say("", "To use such costs, write them to a file with -o.")
    else:
        say("", f"Written to {output}. To use it: export POLARLIB_COSTS={output.resolve()}")


def _print_speeds(rows: list[dict[str, Any]], situation: str) -> None:
    say(
        *tabulated(
            [
                ("format", "<", lambda row: row["format"]),
                ("size", ">", lambda row: row["size"]),
                ("function", "<", lambda row: row["function"]),
                ("method", "<", lambda row: row["method"]),
                ("ms", ">", lambda row: f"{row['milliseconds']:.2f}"),
                ("matrix\nproducts", ">", lambda row: f"{row['matrix_products']:.1f}"),
                ("SciPy's\ntime / its", ">", lambda row: f"{row['ratio']:.2f}"),
                ("quartiles", ">", lambda row: "{:.2f}-{:.2f}".format(*row["quartiles"])),
                ("rounds", ">", lambda row: row["rounds"]),
            ],
            rows,
        ),
        "",
        console.paragraph(
            f"Gaussian matrices, interleaved runs, {situation}; medians over rounds, of times "
            "and of their ratios. SVDs include the two products for U and H."
        ),
    )


def _print_costs(measured: Tables) -> None:
    ((name, tables),) = measured.items()
    ((kind, table),) = tables.items()
    rows = [
        [form, kernel, *values]
        for form in ("float32", "float64")
        for kernel, values in table[form].items()
    ]
    say(
        f"{name}, {kind}: costs in products of two n x n matrices",
        "",
        *tabulated(
            numbered_columns(["format", "kernel", *(f"n = {n}" for n in table["sizes"])]), rows
        ),
    )


# -- info ------------------------------------------------------------------------------------


@console.command()
def info(
    formats: Annotated[
        bool,
        typer.Option("--formats", help="Import every array library and list its number formats."),
    ] = False,
    as_json: console.Json = False,
) -> None:
    """Print versions, libraries, number formats and processors.

    A format is native to a library, native but multiplied in float32, or simulated. Products in
    float32 are used where the processor has none in the format; each result is rounded once.
    Versions are read from package metadata. NumPy is the only array library that is imported.
    """
    installed = libraries()
    document: dict[str, Any] = {
        "polarlib": polarlib.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(),
        "array_libraries": installed,
        "formats": _formats(installed if formats else ["numpy"]),
        "blas": _blas(),
        "thread_pools": _thread_pools(),
        "processors": os.cpu_count(),
        "processors_usable": usable_processors(),
    }
    if as_json:
        console.say_json(document)
        return

    def pairs(versions: dict[str, str | None]) -> str:
        return ", ".join(f"{name} {version or '(missing)'}" for name, version in versions.items())

    pools = [f"{pool['library']} {pool['threads']}" for pool in document["thread_pools"]]
    facts = {
        "polarlib": document["polarlib"],
        "python": f"{document['python']}, {document['platform']}",
        "packages": pairs(document["packages"]),
        "array libraries": pairs(document["array_libraries"]),
        "BLAS of NumPy": " ".join(filter(None, document["blas"].values())),
        "threads": ", ".join(pools) or "unknown",
        "processors": f"{document['processors']}, of which {document['processors_usable']} usable",
    }
    known = document["formats"]
    rows = [[form, *(known[name].get(form, "-") for name in known)] for form in FORMATS]
    say(grid(facts.items()), "", *tabulated(numbered_columns(["format", *known], "<"), rows))
    if not formats:
        say(
            "", "Formats of the other array libraries: polarlib info --formats, which imports them."
        )


def _packages() -> dict[str, str | None]:
    """Return the versions of the packages that polarlib uses, None where one is missing."""
    core = "numpy scipy array-api-compat mpmath python-flint"
    extras = "typer rich threadpoolctl matplotlib jinja2 ml_dtypes safetensors h5py zarr"
    versions: dict[str, str | None] = {}
    for name in f"{core} {extras}".split():
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _formats(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Import array libraries and return how each multiplies in every format that it has here.

    "native", "native, in float32" where the processor has no such products, or "simulated".
    """
    table: dict[str, dict[str, str]] = {}
    for library in names:
        table[library] = {}
        try:
            module = import_arrays(library)
            x = module.ones((1, 1), dtype=module.float32)
        except Exception:  # such as CuPy without a device, which cannot create arrays
            continue
        for name in FORMATS:
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # JAX warns where float64 is not enabled
                ops = rounded(ops_of(x), name)
                ops.cast(x, name)
                # For tf32 and native 8-bit formats only the operands are rounded.
                wide = isinstance(ops, Rounded) and name in ("bfloat16", "float16")
                native = "native, in float32" if wide else "native"
                table[library][name] = "simulated" if ops.simulated else native
    return table


def _blas() -> dict[str, str]:
    configuration: Any = np.show_config(mode="dicts")
    blas = configuration.get("Build Dependencies", {}).get("blas", {})
    return {key: str(blas.get(key, "")) for key in ("name", "version")}


def _thread_pools() -> list[dict[str, Any]]:
    """Return the threads of the BLAS and OpenMP libraries that are loaded."""
    return [
        {"library": p["internal_api"], "version": p["version"], "threads": p["num_threads"]}
        for p in threadpoolctl.threadpool_info()
    ]
