"""The command line: a thin shell over the library, and the only module that prints.

Every command reads with :mod:`polarlib.files`, computes with the library, and prints a table, or
with ``--json`` one JSON document. Exit codes: 0 done, 1 failed to converge, 2 bad input. An error
is one line on stderr; ``POLARLIB_TRACEBACK=1`` shows where it comes from.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import platform
import re
import statistics
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text
from typer.core import TyperGroup

import polarlib
from polarlib import files
from polarlib.decompose import as_matrix
from polarlib.formats import FORMATS, format_of, nearest, odd_image
from polarlib.ops import dtype_name, libraries, ops_of
from polarlib.precision import rounded
from polarlib.published import conventions
from polarlib.result import Status, Trace, plain

__all__ = ["app", "main"]

# What `compare` takes without a file: an easy one, one with a dominant direction, a very hard one.
REPRESENTATIVE = (
    "transformer_mlp_in_late",
    "transformer_attention_qkv_early",
    "digits_hidden2_late",
)
EXACT_FORMATS = ("float64", "float32")
SCHEDULE_FORMATS = ("float32", "bfloat16")
# The schedule whose convergence is drawn step by step: orthogonalize's own default.
DRAWN = "polar_express"
PICTURES = (".png", ".pdf", ".svg")

# A call is timed at least so often, and again until so many seconds are spent or so often.
TIMED, TIMED_SECONDS, TIMED_MOST = 3, 0.05, 15
# Seconds after which a progress bar appears.
PATIENCE = 2.0
SOFTWARE = 70  # exit code of an internal error: EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # what shells give for Ctrl-C


class _Shell(TyperGroup):
    """The group of commands; every way to fail ends here, in one line and an exit code."""

    def main(self, *args: Any, **extra: Any) -> Any:
        extra["standalone_mode"] = False
        try:
            code = super().main(*args, **extra)
        except (typer.Abort, KeyboardInterrupt):
            code = _complain("interrupted", INTERRUPTED)
        except Exception as error:
            if os.environ.get("POLARLIB_TRACEBACK"):
                raise
            code = _complain(*_explained(error))
        sys.exit(code if isinstance(code, int) else 0)


def _explained(error: Exception) -> tuple[str, int]:
    """What to say of an exception, and the exit code."""
    usage = getattr(error, "format_message", None)  # of the command line's parser
    if usage is not None:
        context = getattr(error, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context is not None else ""
        return usage().rstrip(".") + hint, 2
    if isinstance(error, MemoryError):
        return "the memory of this machine does not suffice; take a smaller matrix", 2
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return where + error.strerror, 2
    if isinstance(error, ValueError | TypeError | OSError):
        return str(error), 2
    text = f"internal error, {type(error).__name__}: {error}; POLARLIB_TRACEBACK=1 shows where"
    return text, SOFTWARE


app = typer.Typer(
    cls=_Shell,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Source = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help=".npy, .npz, .safetensors or .mtx (FILE:name chooses an array), or a shipped matrix "
        "by its name, such as transformer_mlp_in_late.",
        show_default=False,
    ),
]


def main() -> None:
    """Run the command line with the arguments of the process; never returns."""
    for stream in (sys.stdout, sys.stderr):
        # A file name that the terminal's encoding lacks is no reason to fail.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="polarlib")


def _print_version(wanted: bool) -> None:
    if wanted:
        _say(f"polarlib {polarlib.__version__}")
        raise typer.Exit


@app.callback(
    invoke_without_command=True,
    epilog="Example: polarlib converge transformer_mlp_in_late --schedule jordan",
)
def _start(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Polar decompositions and orthogonalisation of matrices.

    Exit codes: 0 done, 1 failed to converge, 2 bad input.
    """
    if context.invoked_subcommand is None:
        _say(context.get_help())


# -- commands --------------------------------------------------------------------------------


@app.command(epilog="Example: polarlib polar A.npy -o U.npy --hermitian H.npy")
def polar(
    file: Source,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the unitary factor to this .npy.")
    ] = None,
    hermitian: Annotated[
        Path | None, typer.Option(help="Write the Hermitian factor to this .npy.")
    ] = None,
    side: Annotated[str, typer.Option(help="right: A = U H; left: A = H U.")] = "right",
    method: Annotated[str, typer.Option(help="A method, or a published schedule.")] = "auto",
    completion: Annotated[
        bool, typer.Option(help="Complete the factor of a rank-deficient matrix.")
    ] = True,
    rtol: Annotated[
        float | None, typer.Option(help="Orthogonality that counts as converged.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Polar decomposition of a matrix, with its evidence."""
    outputs = {"-o": output, "--hermitian": hermitian}
    _check_outputs(outputs, (".npy",), file)
    a = _matrix(file)
    if dtype_name(a) not in ("float16", "float32", "float64", "complex64", "complex128"):
        # A format that .npy files lack: float32 holds it, so the factor need not be rounded to it.
        a = a.astype(np.float32)
    with _noted() as notes:
        result = polarlib.polar(a, side=side, method=method, completion=completion, rtol=rtol)
    failed = result.status in (Status.NOT_CONVERGED, Status.OVERFLOW)
    written: dict[str, Path] = {}
    if not failed:
        factors = {"-o": result.unitary, "--hermitian": result.hermitian}
        for option, path in outputs.items():
            if path is not None:
                files.write_npy(path, factors[option])
                written[option] = path
    shape, dtype = tuple(int(k) for k in a.shape), dtype_name(a)
    if as_json:
        document = {"file": file, "dtype": dtype, "side": side, "remedy": result.status.value}
        keys = {"-o": "unitary_file", "--hermitian": "hermitian_file"}
        document |= {key: plain(written.get(option)) for option, key in keys.items()}
        _say_json(document | result.to_dict())
    else:
        facts = {
            "matrix": f"{_by(shape)}, {dtype}",
            "factors": "A = U H" if side == "right" else "A = H U",
            "method": result.method,
            "status": f"{result.status.name.lower()}: {result.status.value}",
            "iterations": str(result.iterations),
            "matrix products": str(result.matmuls),
            "orthogonality": _range(result.orthogonality),
            "backward error": _range(result.backward_error),
            "rank": _range(result.rank),
        }
        names = {"-o": "unitary factor", "--hermitian": "Hermitian factor"}
        facts |= {names[option]: f"written to {path}" for option, path in written.items()}
        _say(*_facts(facts))
        if not failed:
            _say_notes(notes)
    if failed:
        worst = _number(float(np.max(result.orthogonality)))
        nothing = "; nothing was written" if any(outputs.values()) else ""
        text = f"{file}: orthogonality {worst}: {result.status.value}{nothing}"
        raise typer.Exit(_complain(text, 1))


@app.command(epilog="Example: polarlib compare A.npy --precision bfloat16 --plots pictures")
def compare(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]",
            help="A matrix; without one, real gradient matrices that come with polarlib.",
            show_default=False,
        ),
    ] = None,
    matrix: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A shipped matrix, or 'all'; may be repeated."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT",
            help="Number format of the schedules, float32 and bfloat16 by default; may be "
            "repeated.",
        ),
    ] = None,
    plots: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the convergence plots.")
    ] = Path("polarlib-plots"),
    no_plots: Annotated[bool, typer.Option("--no-plots", help="Write no plots.")] = False,
    picture: Annotated[str, typer.Option("--format", help="Of the plots: png, pdf or svg.")] = (
        "png"
    ),
    as_json: Json = False,
) -> None:
    """All methods and schedules on a matrix: a table and plots."""
    formats = [format_of(name).name for name in precision or SCHEDULE_FORMATS]
    formats = list(dict.fromkeys(formats))
    suffix = f".{picture.lower().removeprefix('.')}"
    if suffix not in PICTURES:
        known = [name.removeprefix(".") for name in PICTURES]
        raise ValueError(f"unknown --format {picture!r}; {nearest(picture, known)}")
    if not no_plots:
        _check_folder(plots)
    matrices = _chosen(file, matrix)

    exact = [name for name in polarlib.methods() if name not in polarlib.schedules()]
    jobs = [(method, form) for method in exact for form in EXACT_FORMATS]
    jobs += [(method, form) for form in formats for method in polarlib.schedules()]
    rows: list[dict[str, Any]] = []
    written: list[Path] = []
    begun = time.perf_counter()
    with _progress(len(matrices) * (len(jobs) + (not no_plots))) as advance:
        for name, a in matrices.items():
            traces = {}
            for job in jobs:
                advance(f"{name}: {job[0]}, {job[1]}")
                row, trace = _compared(name, a, *job)
                rows.append(row)
                if trace is not None:
                    traces[job] = trace
            if not no_plots:
                advance(f"{name}: plots")
                written += _draw(name, traces, exact, formats, plots, suffix)
    elapsed = time.perf_counter() - begun
    if as_json:
        _say_json({"rows": rows, "plots": written, "seconds_in_all": elapsed})
        return
    header = [
        "matrix",
        "method",
        "format",
        "matrix\nproducts",
        "seconds",
        "ortho-\ngonality",
        "backward\nerror",
        "smallest\ns. value",
    ]
    cells = [
        [
            f"{row['matrix']} ({_by(row['shape'])})",
            row["method"] + ("!" if row["notes"] else ""),
            row["format"] + ("*" if row["simulated"] else ""),
            _count(row["matrix_products"]),
            "-" if row["seconds"] is None else f"{row['seconds']:.5f}",
            _number(row["orthogonality"]),
            _number(row["backward_error"]),
            _number(row["smallest_singular_value"]),
        ]
        for row in rows
    ]
    _say(*_table(header, cells, "lllrrrrr"))
    _say(
        "",
        *_wrapped(
            "Orthogonality ||X^H X - I||_F / sqrt(k) and backward error ||A - X H||_F / ||A||_F of "
            "the last iterate. Seconds: median of at least "
            f"{TIMED} calls after one to warm up, of polarlib.polar (with H and evidence) for "
            "methods, of polarlib.orthogonalize for schedules."
        ),
    )
    if any(row["simulated"] for row in rows):
        text = "* simulated, as are its seconds: operands rounded, float32 products, one rounding"
        _say(*_wrapped(text))
    _say_notes([note for row in rows for note in row["notes"]])
    if written:
        _say(f"{len(written)} plots in {plots}{os.sep}")
    _say(f"{elapsed:.0f} s in all")


@app.command(epilog="Example: polarlib converge A.npy --schedule jordan --plot out.png")
def converge(
    file: Source,
    schedule: Annotated[
        str, typer.Option(help="A published schedule, or a method; see 'polarlib schedules'.")
    ] = DRAWN,
    steps: Annotated[int | None, typer.Option(help="Number of steps of a schedule.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Number format; by default that of the matrix.")
    ] = None,
    form: Annotated[str, typer.Option(help="plain or gram.")] = "plain",
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png, .pdf or .svg.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the figures to this .csv.")] = None,
    as_json: Json = False,
) -> None:
    """Step by step: what a schedule makes of a matrix."""
    _check_outputs({"--plot": plot}, PICTURES, file)
    _check_outputs({"--csv": csv}, (".csv",), file)
    a = _matrix(file, single=True)
    with _noted() as notes:
        t = polarlib.measure(a, schedule, steps=steps, precision=precision, form=form)
    if schedule in polarlib.schedules():
        s = polarlib.schedule(schedule, steps)
        if not s.survives(format_of(t.precision)):
            notes.append(
                f"{schedule} has no safety factor for {t.precision}: one rounding may push a "
                f"singular value beyond {s.divergence_limit:.6f}, where it diverges"
            )
    if plot is not None:
        _draw_trace(t, plot)
    if csv is not None:
        t.to_csv(csv)
    if as_json:
        _say_json({"file": file, "plot_file": plot, "csv_file": csv, "notes": notes} | t.to_dict())
        return
    simulated = " (simulated)" if t.simulated else ""
    _say(
        f"{file} ({_by(t.shape)}): {t.method}, {t.precision}{simulated}, {t.form} form",
        "",
        *_table(
            [
                "step",
                "matrix\nproducts",
                "smallest\ns. value",
                "largest\ns. value",
                "ortho-\ngonality",
                "backward\nerror",
                "smallest\nalignment",
            ],
            [
                [
                    str(k),
                    str(int(t.matmuls[k])),
                    f"{t.singular_values[k].min():.6g}",
                    f"{t.singular_values[k].max():.6g}",
                    _number(t.orthogonality[k]),
                    _number(t.backward_error[k]),
                    f"{t.alignment[k].min():.6f}",
                ]
                for k in range(t.steps + 1)
            ],
            "rrrrrrr",
        ),
    )
    _say_notes(notes)
    for path in (plot, csv):
        if path is not None:
            _say(f"written to {path}")


@app.command(epilog="Example: polarlib schedules polar_express --steps 8")
def schedules(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="One set in full.", show_default=False),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps of the one set.")] = None,
    as_json: Json = False,
) -> None:
    """Published coefficient sets, or one of them in full."""
    if name is not None:
        _one_schedule(name, steps, as_json)
        return
    if steps is not None:
        raise ValueError("--steps is for one set: name it, as in 'polarlib schedules jordan'")
    sets = [_about(known) for known in polarlib.schedules()]
    if as_json:
        _say_json({"schedules": sets})
        return
    header = [
        "normalisation",
        "name",
        "steps",
        "lower",
        "upper",
        "repeat",
        "slope",
        "error",
        "diverg.\nabove",
        "prod-\nucts",
        "safe\nbf16",
        "safe\nfp16",
    ]
    cells = [
        [
            s["normalisation"],
            s["name"],
            str(s["steps"]),
            f"{s['lower']:g}",
            f"{s['upper']:g}",
            s["repeat"] or "-",
            _slope(s["slope"]),
            _number(s["error"]),
            _limit(s["divergence_limit"]),
            str(s["matrix_products"]),
            _yes(s["safe_in_bfloat16"]),
            _yes(s["safe_in_float16"]),
        ]
        for s in sets
    ]
    _say(*_table(header, cells, "llrrrlrrrrll"))
    text = (
        "Error: largest |1 - s(x)| for x from lower to upper. 'polarlib schedules NAME' tells more."
    )
    _say("", *_wrapped(text))


@app.command()
def info(as_json: Json = False) -> None:
    """Versions, array libraries, BLAS, number formats, processors."""
    document: dict[str, Any] = {
        "polarlib": polarlib.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(),
        "array_libraries": libraries(),
        "formats": _formats(),
        "blas": _blas(),
        "threads": _threads(),
        "processors": os.cpu_count(),
        "processors_usable": _usable_processors(),
    }
    if as_json:
        _say_json(document)
        return
    found, blas = document["array_libraries"], document["blas"]
    facts = {
        "polarlib": document["polarlib"],
        "python": f"{document['python']} on {document['platform']}",
        "packages": ", ".join(f"{k} {v or 'missing'}" for k, v in document["packages"].items()),
        "array libraries": ", ".join(f"{k} {v}" for k, v in found.items()),
        "BLAS of NumPy": " ".join(filter(None, [blas["name"], blas["version"]])),
        "threads": ", ".join(f"{pool['library']} {pool['threads']}" for pool in document["threads"])
        or "unknown: threadpoolctl is not installed",
        "processors": f"{document['processors']}, usable {document['processors_usable']}",
    }
    rows = [
        [library, *(kinds.get(name, "-") for name in FORMATS)]
        for library, kinds in document["formats"].items()
    ]
    header = ["library", *(name.replace("_", "_\n") for name in FORMATS)]
    _say(*_facts(facts), "", *_table(header, rows, "l" * len(header)))


# -- pieces of the commands ------------------------------------------------------------------


def _matrix(source: str, *, single: bool = False) -> np.ndarray:
    """A matrix or stack from a file, or a shipped matrix; checked, so that messages name it."""
    file, _ = files.split(source)
    if not file.exists() and source in files.stories():
        return files.shipped()[source]
    try:
        a = files.read(source)
    except FileNotFoundError as error:
        if file.suffix:
            raise
        hint = nearest(source, files.stories())
        raise ValueError(f"{error}, and no shipped matrix has this name; {hint}") from None
    if a.ndim < 2 or (single and a.ndim > 2):
        what = "one matrix" if single else "a matrix"
        raise ValueError(
            f"{source}: {what} is needed, got an array of shape {a.shape}; reshape it, or choose "
            "a part, and save that"
        )
    if single and 0 in a.shape:
        raise ValueError(f"{source}: the matrix is empty, of shape {a.shape}")
    bad = ~np.isfinite(a)
    if bad.any():
        first = tuple(int(k) for k in np.argwhere(bad)[0])
        raise ValueError(
            f"{source}: contains NaN or infinity in {bad.sum()} of {bad.size} entries, first at "
            f"index {first}; remove them"
        )
    return as_matrix(a, source)[0]


def _chosen(file: str | None, names: list[str] | None) -> dict[str, np.ndarray]:
    """The matrices to compare on, by name."""
    if file is not None:
        if names:
            raise ValueError("give FILE or --matrix, not both")
        return {file: _matrix(file, single=True)}
    known = files.shipped()
    if names and "all" in names:
        return known
    for name in names or ():
        if name not in known:
            raise ValueError(f"unknown shipped matrix {name!r}; {nearest(name, ['all', *known])}")
    return {name: known[name] for name in names or REPRESENTATIVE}


def _compared(
    name: str, a: np.ndarray, method: str, precision: str
) -> tuple[dict[str, Any], Trace | None]:
    """One row: the figures from a trace, the seconds from calls of their own."""
    carrier = "float64" if precision == "float64" else "float32"
    # A power of two leaves the factor as it is, and keeps what double precision holds in range.
    _, exponent = np.frexp(max(np.abs(a.real).max(), np.abs(a.imag).max()))
    x = (a / 2.0 ** min(int(exponent), 1023)).astype(
        np.result_type(carrier, np.complex64) if np.iscomplexobj(a) else carrier
    )
    fixed = method in polarlib.schedules()

    def compute() -> Any:
        if fixed:
            return polarlib.orthogonalize(x, schedule=method, precision=precision, form="plain")
        return polarlib.polar(x, method=method)

    row: dict[str, Any] = {"matrix": name, "shape": a.shape, "method": method}
    row |= {"kind": "schedule" if fixed else "method", "format": precision, "simulated": False}
    row |= dict.fromkeys(
        ("matrix_products", "seconds", "orthogonality", "backward_error", "smallest_singular_value")
    )
    try:
        with _noted() as notes:
            seconds, result = _timed(compute)
            t = polarlib.measure(x, method, precision=precision)
    except ValueError as error:  # a method that does not take this matrix
        return row | {"notes": [f"{method}, {precision}: {error}"]}, None
    if not fixed and result.status is Status.FELL_BACK:
        notes.append(
            f"{method} fails on {name} in {precision}, and polar takes the SVD in its place: the "
            f"seconds include that, the other figures are {method}'s own"
        )
    return row | {
        "simulated": t.simulated,
        "matrix_products": int(t.matmuls[-1]),
        "seconds": seconds,
        "orthogonality": t.orthogonality[-1],
        "backward_error": t.backward_error[-1],
        "smallest_singular_value": t.singular_values[-1].min(),
        "notes": notes,
    }, t


def _timed(compute: Callable[[], Any]) -> tuple[float, Any]:
    """Median seconds of a call, and what it returns."""
    result = compute()
    times: list[float] = []
    while len(times) < TIMED or (sum(times) < TIMED_SECONDS and len(times) < TIMED_MOST):
        begun = time.perf_counter()
        compute()
        times.append(time.perf_counter() - begun)
    return statistics.median(times), result


def _draw(
    name: str,
    traces: dict[tuple[str, str], Trace],
    exact: Sequence[str],
    formats: Sequence[str],
    folder: Path,
    suffix: str,
) -> list[Path]:
    """Write the plots of one matrix."""
    from polarlib import plot  # matplotlib is imported only where something is drawn

    groups = {"methods": [t for (m, p), t in traces.items() if m in exact and p == "float64"]}
    for form in formats:
        groups[f"schedules-{form}"] = [
            t for (m, p), t in traces.items() if m not in exact and p == form
        ]
    axes = {}
    for group, members in groups.items():
        if members:
            axes[group] = plot.compare(members)
    t = traces.get((DRAWN, formats[-1]))
    if t is not None:
        axes[f"{DRAWN}-convergence"] = plot.convergence(t)
        axes[f"{DRAWN}-singular-values"] = plot.singular_values(t)
    folder.mkdir(exist_ok=True)
    # A file is named after its own name, not its folder.
    stem = re.sub(r"[^\w.-]+", "_", Path(name).name)
    written = []
    for what, ax in axes.items():
        old = ax.get_title()
        ax.set_title(f"{Path(name).name}: {old}" if old else Path(name).name, wrap=True)
        written.append(folder / f"{stem}-{what}{suffix}")
        plot.save(ax, written[-1])
    return written


def _draw_trace(t: Trace, path: Path) -> None:
    """Write one picture: errors beside singular values."""
    from matplotlib.figure import Figure

    from polarlib import plot

    left, right = Figure(figsize=(13, 5.5), layout="constrained").subplots(1, 2)
    plot.convergence(t, ax=left)
    plot.singular_values(t, ax=right)
    plot.save(left, path)


def _about(name: str, steps: int | None = None) -> dict[str, Any]:
    """The figures of a published set."""
    s = polarlib.schedule(name, steps)
    return {
        "name": name,
        "steps": len(s),
        "lower": s.lower,
        "upper": s.upper,
        "normalisation": s.normalisation,
        "input_safety": s.input_safety,
        "repeat": polarlib.schedule(name).repeat if steps is None else s.repeat,
        "slope": s.slope,
        "error": s.error(),
        "divergence_limit": s.divergence_limit,
        "matrix_products": s.matmuls,
        "safe_in_bfloat16": s.survives(format_of("bfloat16")),
        "safe_in_float16": s.survives(format_of("float16")),
    }


def _one_schedule(name: str, steps: int | None, as_json: bool) -> None:
    s = polarlib.schedule(name, steps)
    about = _about(name, steps)
    images = [odd_image(s.steps[: k + 1], s.lower, s.upper) for k in range(len(s))]
    if as_json:
        about |= {"coefficients": s.steps, "images": images}
        about |= {"source": s.source, "scaling": conventions(name)}
        _say_json(about)
        return
    safe = [known for known in ("bfloat16", "float16") if about[f"safe_in_{known}"]]
    divisor = f", and by {s.input_safety:g}" if s.input_safety != 1 else ""
    facts = {
        "name": name,
        "source": s.source,
        "scaling": conventions(name),
        "steps": f"{len(s)}, {s.matmuls} matrix products",
        "repeat": {
            None: "none: the set ends with its last listed step",
            "last": "the last step, after all that are listed",
            "forever": "the whole list, from its beginning",
        }[about["repeat"]],
        "interval": f"[{s.lower:g}, {s.upper:g}]",
        "normalisation": f"input divided by its norm ({s.normalisation}){divisor}",
        "slope at 0": _slope(s.slope),
        "error": f"{s.error():.6g} at most on the interval",
        "diverges above": _limit(s.divergence_limit),
        "safe in": ", ".join(safe) or "neither bfloat16 nor float16",
    }
    most = max(len(step) for step in s.steps)
    powers = ["x", *(f"x^{2 * i + 1}" for i in range(1, most))]
    coefficients = [
        [str(k), *(repr(c) for c in step), *[""] * (most - len(step))]
        for k, step in enumerate(s.steps, 1)
    ]
    intervals = [[str(k), f"{lo:.8g}", f"{hi:.8g}"] for k, (lo, hi) in enumerate(images, 1)]
    _say(
        *_facts(facts),
        "",
        *_table(["step", *powers], coefficients, "r" * (most + 1)),
        "",
        *_table(["after\nstep", "image of the\ninterval from", "\nto"], intervals, "rrr"),
    )


def _packages() -> dict[str, str | None]:
    """Versions of the packages that polarlib can use, None where one is missing."""
    names = "numpy scipy array-api-compat matplotlib mpmath rich typer ml_dtypes safetensors"
    found: dict[str, str | None] = {}
    for name in names.split():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _formats() -> dict[str, dict[str, str]]:
    """Native or simulated, for every format of every array library; left out where it has none."""
    table: dict[str, dict[str, str]] = {}
    for library in libraries():
        table[library] = {}
        try:
            module = importlib.import_module(_ARRAYS.get(library, library))
            x = module.ones((1, 1), dtype=module.float32)
        except Exception:  # CuPy without a device, say: it has arrays nowhere
            continue
        for name in FORMATS:
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # JAX tells by a warning that it lacks float64
                ops = rounded(ops_of(x), name)
                ops.cast(x, name)
                table[library][name] = "simulated" if ops.simulated else "native"
    return table


# Where arrays are made, if not in the module that has the library's name.
_ARRAYS = {"jax": "jax.numpy", "dask": "dask.array"}


def _blas() -> dict[str, str]:
    found = np.show_config(mode="dicts")
    blas = found.get("Build Dependencies", {}).get("blas", {}) if found else {}
    return {key: str(blas.get(key, "")) for key in ("name", "version", "openblas configuration")}


def _threads() -> list[dict[str, Any]]:
    """Thread pools of the BLAS and OpenMP libraries that are loaded, if threadpoolctl is there."""
    try:
        threadpoolctl = importlib.import_module("threadpoolctl")
    except ImportError:
        return []
    return [
        {"library": pool.get("internal_api"), "version": pool.get("version")}
        | {"threads": pool.get("num_threads")}
        for pool in threadpoolctl.threadpool_info()
    ]


def _usable_processors() -> int | None:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


# -- outputs ---------------------------------------------------------------------------------


def _check_outputs(
    outputs: dict[str, Path | None], suffixes: Sequence[str], source: str | None = None
) -> None:
    """Refuse outputs that could not be written or would overwrite, before anything is computed."""
    taken: dict[Path, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        if path.suffix.lower() not in suffixes:
            raise ValueError(f"{option} {path}: name a file that ends in {' or '.join(suffixes)}")
        if path.is_dir():
            raise ValueError(f"{option} {path}: is a folder; name a file in it")
        _check_parent(option, path)
        place = path.resolve()
        if source is not None and place == files.split(source)[0].resolve():
            raise ValueError(f"{option} {path}: would overwrite the input; choose another name")
        if place in taken:
            raise ValueError(f"{option} {path}: is the file of {taken[place]} too; choose another")
        taken[place] = option


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        if not os.access(folder, os.W_OK):
            raise ValueError(f"--plots {folder}: the folder cannot be written")
        return
    if folder.exists():
        raise ValueError(f"--plots {folder}: is a file; name a folder")
    _check_parent("--plots", folder)


def _check_parent(option: str, path: Path) -> None:
    parent = path.parent
    if not parent.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {parent}; create it first")
    if not os.access(parent, os.W_OK):
        raise ValueError(f"{option} {path}: the folder {parent} cannot be written")


# -- printing --------------------------------------------------------------------------------


class _Console(Console):
    """A console whose reader may leave early, as head does: that is no failure."""

    def on_broken_pipe(self) -> None:
        # Whatever is still flushed at the end of the process goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0)


def _console(*, stderr: bool = False) -> Console:
    return _Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def _say(*lines: str | Text) -> None:
    """Print lines as they are, neither wrapped nor cut."""
    text = Text("\n").join(Text(line) if isinstance(line, str) else line for line in lines)
    _console().print(text, soft_wrap=True)


def _say_json(document: dict[str, Any]) -> None:
    _say(json.dumps(plain(document), indent=2, allow_nan=False))


def _say_notes(notes: Sequence[str]) -> None:
    for note in dict.fromkeys(notes):
        _say(*_wrapped(f"! {note}"))


def _complain(message: str, code: int) -> int:
    """Print one line on stderr; return the exit code."""
    text = Text("polarlib: " + " ".join(message.split()))
    with contextlib.suppress(BrokenPipeError):
        _console(stderr=True).print(text, soft_wrap=True)
    return code


@contextlib.contextmanager
def _noted() -> Iterator[list[str]]:
    """Collect the library's warnings as notes for a footnote, in place of raw warnings."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    told = (str(w.message) for w in caught if issubclass(w.category, UserWarning))
    notes.extend(dict.fromkeys(told))


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr once it has taken long, if that is a terminal; advanced before each job."""
    console = _console(stderr=True)
    # No thread of its own, which would disturb what is timed.
    bar = Progress(
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        auto_refresh=False,
    )
    task = bar.add_task("", total=total, completed=-1)
    begun = time.monotonic()

    def advance(what: str) -> None:
        bar.update(task, advance=1, description=what)
        if console.is_terminal and time.monotonic() - begun > PATIENCE:
            bar.start()
            bar.refresh()

    try:
        yield advance
    finally:
        bar.stop()


def _width() -> int | None:
    """Columns of the terminal, or those that COLUMNS asks for; None for a pipe or a file."""
    console = _console()
    return console.width if console.is_terminal or os.environ.get("COLUMNS") else None


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _width() or 100, subsequent_indent="  " if text[1] == " " else "")


def _facts(facts: dict[str, str]) -> list[str]:
    """Names and values in two columns; long values are wrapped in theirs."""
    left = max(map(len, facts)) + 2
    style: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    style |= {"width": _width() or 10_000, "subsequent_indent": " " * left}
    return [
        line
        for name, value in facts.items()
        for line in textwrap.wrap(value, initial_indent=f"{name:<{left}}", **style)
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> list[str | Text]:
    """Lay out a table whose cells are never cut.

    Where the terminal is too narrow for the whole, the first column turns into headings above the
    rows that share it.
    """
    heads = [h.split("\n") for h in header]
    tall = max(map(len, heads))
    heads = [[""] * (tall - len(h)) + h for h in heads]
    columns = [[*h, *(row[i] for row in rows)] for i, h in enumerate(heads)]
    widths = [max(map(len, column)) for column in columns]
    limit = _width() or math.inf
    first, gap = 0, "  "
    if sum(widths) + 2 * (len(widths) - 1) > limit and len({row[0] for row in rows}) < len(rows):
        first = 1
        gap = "  " if sum(widths[1:]) + 2 * (len(widths) - 2) <= limit else " "

    def line(cells: Sequence[str]) -> str:
        padded = (
            c.ljust(w) if a == "l" else c.rjust(w)
            for c, w, a in zip(cells, widths, align, strict=False)
        )
        return gap.join(list(padded)[first:]).rstrip()

    lines: list[str | Text] = [
        Text(line(cells), style="bold") for cells in zip(*heads, strict=True)
    ]
    lines.append(Text(line(["-" * w for w in widths]), style="bold"))
    before = None
    for row in rows:
        if first and row[0] != before:
            before = row[0]
            lines.append(Text(f"{header[0]}: {before}", style="bold"))
        lines.append(line(row))
    return lines


def _number(x: float | None) -> str:
    """Two digits are what an error figure deserves."""
    return "-" if x is None else re.sub(r"e([+-])0", r"e\1", f"{x:.1e}")


def _range(value: Any) -> str:
    """A figure, or the smallest and the largest of a stack."""
    value = np.asarray(value)
    text: Callable[[Any], str] = _number if value.dtype.kind == "f" else str
    if value.size == 0:
        return "none"
    ends = dict.fromkeys([text(value.min().item()), text(value.max().item())])
    return " to ".join(ends)


def _count(k: int | None) -> str:
    return "-" if k is None else str(k)


def _slope(x: float) -> str:
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"


def _limit(x: float) -> str:
    return f"{x:.5f}" if math.isfinite(x) else "never"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
