"""The command line: a thin shell over the library, and the only module that prints.

Every command reads with :mod:`polarlib.files`, computes with the library, and prints a table, or
with ``--json`` one JSON document. Exit codes: 0 done, 1 failed to converge, 2 bad input, 130
interrupted. An error is one line on stderr, with control characters escaped; with
``POLARLIB_TRACEBACK=1`` in the environment it is a traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import logging
import math
import operator
import os
import platform
import re
import shutil
import statistics
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import threadpoolctl
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text
from typer.core import TyperGroup

import polarlib
from polarlib import files, published
from polarlib._methods.small import LARGEST
from polarlib.costs import read_costs
from polarlib.formats import FORMATS, docstring, format_of, nearest, printable
from polarlib.ops import as_matrix, dtype_name, libraries, not_finite, ops_of
from polarlib.precision import rounded
from polarlib.result import Status, Trace, plain, replaceable, write_whole

__all__ = ["app", "main"]

# What `compare` takes without a file: an easy one, one with a dominant direction, a very hard one.
REPRESENTATIVE = (
    "transformer_mlp_in_late",
    "transformer_attention_qkv_early",
    "digits_hidden2_late",
)
METHODS = tuple(name for name in polarlib.methods() if name not in polarlib.schedules())
METHOD_FORMATS = ("float64", "float32")
SCHEDULE_FORMATS = ("float32", "bfloat16")
# The schedule whose steps `converge` shows and `compare` draws: the default of orthogonalize.
DEFAULT = "auto"
PICTURES = (".png", ".pdf", ".svg")

# A call is timed so often at least, and again until so many seconds are spent or so often at most.
TIMED, TIMED_SECONDS, TIMED_MOST = 3, 0.05, 15
PATIENCE = 2.0  # seconds after which a progress bar appears
UNLIMITED = 10_000  # columns of a pipe or a file
# Limits of options: larger values take minutes, and no schedule needs them.
MOST_STEPS, MOST_MATMULS, MOST_DEGREE = 100, 300, 101
LONGEST = 400  # characters of a message
LONGEST_NAME = 60  # of a matrix in titles and names of plots
SOFTWARE = 70  # exit code of an internal error: EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # what shells give for Ctrl-C


class _Shell(TyperGroup):
    """The group of commands; every way to fail ends here, in one line and an exit code."""

    def main(self, *args: Any, **extra: Any) -> Any:
        extra["standalone_mode"] = False
        try:
            code = super().main(*args, **extra)
            if code == INTERRUPTED:  # typer's own answer
                raise KeyboardInterrupt
        except (typer.Abort, KeyboardInterrupt):
            code = _complain("interrupted", INTERRUPTED)
        except Exception as error:
            if os.environ.get("POLARLIB_TRACEBACK"):
                raise
            code = _complain(*_explained(error))
        for stream in (sys.stdout, sys.stderr):
            _finish(stream)
        sys.exit(code if isinstance(code, int) else 0)


def _explained(error: Exception) -> tuple[str, int]:
    """What to say of an exception, and the exit code."""
    usage = getattr(error, "format_message", None)  # of the command line's parser
    if usage is not None:
        context = getattr(error, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context is not None else ""
        return " ".join(usage().split()).rstrip(".") + hint, 2
    if isinstance(error, MemoryError):
        return "the memory of this machine does not suffice; take a smaller matrix", 2
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return where + error.strerror, 2
    if isinstance(error, ValueError | TypeError | OSError):
        return str(error), 2
    text = " ".join(str(error).split())
    return (
        f"internal error, {type(error).__name__}: {text}; POLARLIB_TRACEBACK=1 shows where",
        SOFTWARE,
    )


def _command(**extra: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command, with its docstring as help, also where Python strips docstrings."""

    def register(f: Callable[..., None]) -> Callable[..., None]:
        return app.command(help=docstring(f), **extra)(f)

    return register


app = typer.Typer(
    name="polarlib",
    cls=_Shell,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
KINDS = ".npy, .npz, .safetensors or .mtx; FILE:name chooses an array"
Source = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help=f"{KINDS}. Or a matrix that comes with polarlib, such as {REPRESENTATIVE[0]}.",
        show_default=False,
    ),
]


def main() -> None:
    """Run the command line with the arguments of the process; never returns."""
    for stream in (sys.stdout, sys.stderr):
        # A file name that the terminal's encoding lacks is no reason to fail.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # It says on stderr where it keeps its fonts if there is no home.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    app(prog_name="polarlib")


def _print_version(wanted: bool) -> None:
    if wanted:
        _say(f"polarlib {polarlib.__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version."),
]


@app.callback(
    invoke_without_command=True,
    help="Polar decompositions and orthogonalisation of matrices.\n\n"
    "Exit codes: 0 done, 1 failed to converge, 2 bad input, 130 interrupted.",
    epilog=f"Example: polarlib converge {REPRESENTATIVE[0]} --schedule jordan",
)
def _start(context: typer.Context, version: Version = False) -> None:
    if context.invoked_subcommand is None:
        _say(*context.get_help().split("\n"))


# -- polar -----------------------------------------------------------------------------------

Side = Annotated[str, typer.Option(help="right: A = U H; left: A = H U.")]
Method = Annotated[
    str, typer.Option(help=f"auto, {', '.join(METHODS)}, or a schedule (see 'schedules').")
]
Completion = Annotated[
    bool, typer.Option(help="Complete the factor of a rank-deficient matrix to orthonormal.")
]
Rtol = Annotated[
    float | None, typer.Option(help="Orthogonality and backward error that count as converged.")
]


@_command(epilog="Example: polarlib polar A.npy -o U.npy --hermitian H.npy")
def polar(
    file: Source,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the unitary factor to this .npy.")
    ] = None,
    hermitian: Annotated[
        Path | None, typer.Option(help="Write the Hermitian factor to this .npy.")
    ] = None,
    side: Side = "right",
    method: Method = "auto",
    completion: Completion = True,
    rtol: Rtol = None,
    as_json: Json = False,
) -> None:
    """Polar decomposition of a matrix, with its errors and rank."""
    outputs = {"-o": output, "--hermitian": hermitian}
    _check_outputs(outputs, (".npy",), file)
    a = _matrix(file)
    if a.dtype.type.__module__ == "ml_dtypes":
        # .npy files lack the format, and float32 holds it: the factor is not rounded to it.
        a = a.astype(np.float32)
    with _noted() as notes:
        result = polarlib.polar(a, side=side, method=method, completion=completion, rtol=rtol)
    failed = result.status in (Status.NOT_CONVERGED, Status.OVERFLOW)
    if failed:
        output = hermitian = None
    written = {output: result.unitary, hermitian: result.hermitian}
    arrays = {path: factor for path, factor in written.items() if path is not None}
    _write(outputs, lambda: files.write_npys(arrays))
    if as_json:
        document = {"file": file, "dtype": dtype_name(a), "side": side} | result.to_dict()
        document |= {"remedy": result.status.value}
        _say_json(document | {"unitary_file": output, "hermitian_file": hermitian})
    else:
        lower, upper = (np.asarray(bound) for bound in result.condition_bounds)
        condition = f"{lower.min():.2e} to {upper.max():.2e}" if lower.size else "none"
        facts = {
            "matrix": f"{_by(a.shape)}, {dtype_name(a)}",
            "factors": "A = U H" if side == "right" else "A = H U",
            "method": result.method,
            "because": result.reason,
            "status": f"{result.status.name.lower()}: {result.status.value}",
            "iterations": str(result.iterations),
            "matrix products": str(result.matmuls),
            "orthogonality": _range(result.orthogonality),
            "backward error": _range(result.backward_error),
            "rank": _range(result.rank),
            "condition number": condition,
            "U written to": str(output or ""),
            "H written to": str(hermitian or ""),
        }
        _say(*_facts({name: value for name, value in facts.items() if value}))
    if failed:
        nothing = "; nothing was written" if any(outputs.values()) else ""
        text = f"{file}: {'; '.join(notes)}{nothing}"
        raise typer.Exit(_complain(text, 1))


# -- compare ---------------------------------------------------------------------------------


@_command(epilog="Example: polarlib compare A.npy --precision bfloat16 --plots pictures")
def compare(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help=f"{KINDS}. Without one: {len(REPRESENTATIVE)} of the ten matrices that come with "
            "polarlib, gradients and momenta.",
            show_default=False,
        ),
    ] = None,
    matrix: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="One of the ten, or 'all'; may be repeated."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT",
            help=f"Of the schedules: {' and '.join(SCHEDULE_FORMATS)}, or others; may be repeated.",
        ),
    ] = None,
    plots: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the plots.")] = Path(
        "polarlib-plots"
    ),
    no_plots: Annotated[bool, typer.Option("--no-plots", help="Write no plots.")] = False,
    picture: Annotated[
        str, typer.Option("--format", metavar="KIND", help="Of the plots: png, pdf or svg.")
    ] = "png",
    as_json: Json = False,
) -> None:
    """All methods and schedules on a matrix: a table and plots."""
    formats = list(dict.fromkeys(format_of(name).name for name in precision or SCHEDULE_FORMATS))
    suffix = f".{picture}"
    if suffix not in PICTURES:
        known = [name.removeprefix(".") for name in PICTURES]
        raise ValueError(f"unknown --format {picture!r}; {nearest(picture, known)}")
    if not no_plots:
        _check_folder(plots)
    matrices = _chosen(file, matrix)

    jobs = [(method, form) for method in METHODS for form in METHOD_FORMATS]
    jobs += [(name, form) for form in formats for name in (DEFAULT, *polarlib.schedules())]
    rows: list[dict[str, Any]] = []
    written: list[Path] = []
    begun = time.perf_counter()
    with _progress(len(matrices) * (len(jobs) + (not no_plots))) as advance:
        for name, a in matrices.items():
            traces = {}
            for job in jobs:
                advance(f"{job[0]}, {job[1]}")
                if job[0] == "small" and min(a.shape) > LARGEST:
                    continue
                row, trace = _compared(name, a, *job)
                rows.append(row)
                if trace is not None:
                    traces[job] = trace
            if not no_plots:
                advance("plots")
                written += _draw(name, traces, formats, plots, suffix)
    elapsed = time.perf_counter() - begun
    if as_json:
        _say_json({"rows": rows, "plots": written, "seconds_in_all": elapsed})
        return
    _say(
        *_table(
            [
                ("matrix", "<", lambda row: f"{row['matrix']} ({_by(row['shape'])})"),
                ("method", "<", lambda row: row["method"] + "!" * bool(row["notes"])),
                ("format", "<", lambda row: row["format"] + "*" * row["simulated"]),
                ("matrix\nproducts", ">", lambda row: row["matrix_products"]),
                ("seconds", ">", lambda row: f"{row['seconds']:.5f}"),
                ("ortho-\ngonality", ">", lambda row: _number(row["orthogonality"])),
                ("backward\nerror", ">", lambda row: _number(row["backward_error"])),
                ("smallest\ns. value", ">", lambda row: _number(row["smallest_singular_value"])),
            ],
            rows,
        ),
        "",
        *_wrapped(
            "Of the last iterate: orthogonality ||X^H X - I||_F / sqrt(k), backward error "
            "||A - X H||_F / ||A||_F, smallest singular value. Seconds: median of at least "
            f"{TIMED} calls after one to warm up, for methods of polarlib.polar (with H and "
            "evidence), for schedules of polarlib.orthogonalize, whose default is auto."
        ),
    )
    if any(row["simulated"] for row in rows):
        what = "operands rounded, products in float32, one rounding; times of the simulation"
        _say_notes([what], "*")
    _say_notes([note for row in rows for note in row["notes"]])
    if written:
        _say(f"{len(written)} plots are in {plots}.")
    _say(f"{elapsed:.0f} seconds in all.")


def _chosen(file: str | None, names: list[str] | None) -> dict[str, np.ndarray]:
    """The matrices to compare on, by name."""
    if file is not None:
        if names:
            raise ValueError("give FILE or --matrix, not both")
        return {file: _matrix(file, single=True)}
    known = files.shipped()
    for name in names or ():
        if name not in ("all", *known):
            raise ValueError(f"unknown --matrix {name!r}; {nearest(name, ['all', *known])}")
    return known if "all" in (names or ()) else {n: known[n] for n in names or REPRESENTATIVE}


def _compared(
    name: str, a: np.ndarray, method: str, precision: str
) -> tuple[dict[str, Any], Trace | None]:
    """One row of the table: the figures from a trace, the seconds from calls of their own."""
    carriers = ("complex128", "complex64") if np.iscomplexobj(a) else ("float64", "float32")
    x = a.astype(carriers[0])
    # A power of two leaves the factor as it is and keeps what float64 holds in float32's range.
    _, exponent = np.frexp(max(np.abs(x.real).max(), np.abs(x.imag).max()))
    x = (x / 2.0 ** min(int(exponent), 1023)).astype(carriers[precision != "float64"])
    fixed = method not in METHODS

    def compute() -> Any:
        if fixed:
            return polarlib.orthogonalize(x, schedule=method, precision=precision, form="plain")
        return polarlib.polar(x, method=method)

    row: dict[str, Any] = {
        "matrix": name,
        "shape": a.shape,
        "method": method,
        "kind": "schedule" if fixed else "method",
        "format": precision,
        "simulated": False,
        "matrix_products": None,
        "seconds": math.nan,
        "orthogonality": math.nan,
        "backward_error": math.nan,
        "smallest_singular_value": math.nan,
    }
    try:
        with _noted() as notes:
            seconds, result = _timed(compute)
            with _one_thread():
                t = polarlib.measure(x, method, precision=precision)
    except ValueError as error:  # a method that is not for this matrix
        return row | {"notes": [f"{method}: {error}"]}, None
    if not fixed and result.status is Status.FELL_BACK:
        notes.append(
            f"{method} failed on {name} and the SVD took over: the seconds include that, the other "
            f"figures are {method}'s own"
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


def _one_thread() -> contextlib.AbstractContextManager[Any]:
    """Keep BLAS to one thread where nothing is timed.

    A trace takes many small decompositions, whose threads wait for one another, and many times
    longer than they compute where another process wants the processors too.
    """
    return threadpoolctl.threadpool_limits(1)


def _draw(
    name: str,
    traces: dict[tuple[str, str], Trace],
    formats: Sequence[str],
    folder: Path,
    suffix: str,
) -> list[Path]:
    """Write the plots of one matrix."""
    from polarlib import plot  # matplotlib is imported only where something is drawn

    groups = {
        "methods": [t for (m, form), t in traces.items() if m in METHODS and form == "float64"]
    }
    for wanted in formats:
        groups[f"schedules-{wanted}"] = [
            t for (m, form), t in traces.items() if m not in METHODS and form == wanted
        ]
    axes = {what: plot.compare(group) for what, group in groups.items() if group}
    t = traces.get((DEFAULT, formats[-1]))
    if t is not None:
        axes[f"{DEFAULT}-convergence"] = plot.convergence(t)
        axes[f"{DEFAULT}-singular-values"] = plot.singular_values(t)
    folder.mkdir(exist_ok=True)
    name = printable(Path(name).name)[:LONGEST_NAME]
    stem = re.sub(r"[^\w.-]+", "_", name)
    written = []
    for what, ax in axes.items():
        ax.set_title("\n".join(filter(None, [name.replace("$", r"\$"), ax.get_title()])))
        path = folder / f"{stem}-{what}{suffix}"
        _write({"--plots": path}, functools.partial(_save, ax, path))
        written.append(path)
    return written


def _save(ax: Any, path: Path) -> None:
    from polarlib import plot

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name has letters that the font lacks
        plot.save(ax, path)


# -- converge --------------------------------------------------------------------------------


@_command(epilog="Example: polarlib converge A.npy --schedule jordan --plot out.png")
def converge(
    file: Source,
    schedule: Annotated[
        str,
        typer.Option(
            help="auto (orthogonalize's default for the format), a published set (see "
            f"'schedules'), or {', '.join(METHODS)}."
        ),
    ] = DEFAULT,
    steps: Annotated[
        int | None, typer.Option(max=MOST_STEPS, help="Number of steps of a schedule.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help=f"{', '.join(FORMATS)}; that of the matrix by default.")
    ] = None,
    form: Annotated[str, typer.Option(help="plain or gram.")] = "plain",
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png, .pdf or .svg.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the figures to this .csv.")] = None,
    as_json: Json = False,
) -> None:
    """Singular values and errors after each step of a schedule."""
    _check_outputs({"--plot": plot}, PICTURES, file)
    _check_outputs({"--csv": csv}, (".csv",), file)
    a = _matrix(file, single=True)
    with _noted() as notes:
        t = polarlib.measure(a, schedule, steps=steps, precision=precision, form=form)
    if plot is not None:
        _write({"--plot": plot}, functools.partial(_draw_trace, t, plot))
    if csv is not None:
        _write({"--csv": csv}, functools.partial(t.to_csv, csv))
    if as_json:
        _say_json({"file": file, "plot_file": plot, "csv_file": csv, "notes": notes} | t.to_dict())
        return
    simulated = " (simulated)" if t.simulated else ""
    form = f", {t.form} form" if t.form else ""
    _say(
        f"{file} ({_by(t.shape)}): {t.method}, {t.precision}{simulated}{form}",
        "",
        *_table(
            [
                ("step", ">", lambda k: k),
                ("matrix\nproducts", ">", lambda k: t.matmuls[k]),
                ("smallest\ns. value", ">", lambda k: f"{t.singular_values[k].min():.6g}"),
                ("largest\ns. value", ">", lambda k: f"{t.singular_values[k].max():.6g}"),
                ("ortho-\ngonality", ">", lambda k: _number(t.orthogonality[k])),
                ("backward\nerror", ">", lambda k: _number(t.backward_error[k])),
                ("smallest\nalignment", ">", lambda k: f"{t.alignment[k].min():.6f}"),
            ],
            range(t.steps + 1),
        ),
    )
    _say_notes(notes)
    for path in filter(None, (plot, csv)):
        _say(f"Written to {path}.")


def _draw_trace(t: Trace, path: Path) -> None:
    """Write one picture: errors beside singular values."""
    from matplotlib.figure import Figure

    from polarlib import plot

    left, right = Figure(figsize=(13, 5.5), layout="constrained").subplots(1, 2)
    plot.convergence(t, ax=left)
    plot.singular_values(t, ax=right)
    _save(left, path)


# -- schedules -------------------------------------------------------------------------------


@_command(epilog="Example: polarlib schedules polar_express --steps 8")
def schedules(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Show this one in full.", show_default=False),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(max=MOST_STEPS, help="Number of steps of the one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Published coefficient sets, or one of them in full."""
    if name is not None:
        _show_schedule(name, steps, as_json)
        return
    if steps is not None:
        raise ValueError("--steps is for one set: name it, as in 'polarlib schedules jordan'")
    sets = [_about(known, None) for known in polarlib.schedules()]
    if as_json:
        _say_json({"schedules": sets})
        return
    _say(
        *_table(
            [
                ("normalisation", "<", lambda s: s["normalisation"]),
                ("name", "<", lambda s: s["name"]),
                ("steps", ">", lambda s: s["steps"]),
                ("lower", ">", lambda s: f"{s['lower']:g}"),
                ("upper", ">", lambda s: f"{s['upper']:g}"),
                ("repeat", "<", lambda s: s["repeat"] or "-"),
                ("slope", ">", lambda s: _slope(s["slope"])),
                ("error", ">", lambda s: _number(s["error"])),
                ("diverg.\nabove", ">", lambda s: f"{s['divergence_limit']:.5f}"),
                ("prod-\nucts", ">", lambda s: s["matrix_products"]),
                ("safe\nbf16", "<", lambda s: "yes" if s["safe_in_bfloat16"] else "no"),
                ("safe\nfp16", "<", lambda s: "yes" if s["safe_in_float16"] else "no"),
            ],
            sets,
        ),
        "",
        *_wrapped(
            "Error: the largest |1 - s(x)| for x from lower to upper, each x divided by the set's "
            "input safety first. Repeat: whether the set goes "
            "on, with its last step or from its beginning. Safe: one rounding cannot push a "
            "singular value to where the set diverges. 'polarlib schedules NAME' tells more."
        ),
    )


def _about(name: str, steps: int | None) -> dict[str, Any]:
    """The figures of a published set, with its listed length and rule of repetition."""
    s, listed = polarlib.schedule(name, steps), published.listed(name)
    return {
        "name": name,
        "steps": len(s),
        "steps_listed": len(listed),
        "lower": s.lower,
        "upper": s.upper,
        "normalisation": s.normalisation,
        "input_safety": s.input_safety,
        "repeat": listed.repeat,
        "slope": s.slope,
        "error": s.error(),
        "divergence_limit": s.divergence_limit,
        "matrix_products": s.matmuls,
        "safe_in_bfloat16": s.survives(format_of("bfloat16")),
        "safe_in_float16": s.survives(format_of("float16")),
    }


def _show_schedule(name: str, steps: int | None, as_json: bool) -> None:
    s, about = polarlib.schedule(name, steps), _about(name, steps)
    scaling = published.conventions(name)
    images = [(row["image_lower"], row["image_upper"]) for row in polarlib.design.table(s)]
    if as_json:
        about |= {"coefficients": s.steps, "images": images, "source": s.source, "scaling": scaling}
        _say_json(about)
        return
    repeat = {
        None: "not beyond",
        "last": "then its last step again and again",
        "forever": "then again from its beginning",
    }[about["repeat"]]
    safe = [form for form in ("bfloat16", "float16") if about[f"safe_in_{form}"]]
    divisor = f", and by {s.input_divisor:g}" if s.input_divisor != 1 else ""
    facts = {
        "name": name,
        "source": s.source,
        "scaling": scaling,
        "steps": f"{len(s)} (the list has {about['steps_listed']}, {repeat})",
        "matrix products": str(s.matmuls),
        "normalisation": f"{s.normalisation}: the input is divided by that norm{divisor}",
        "interval": f"[{s.lower:g}, {s.upper:g}]",
        "error on it": f"{s.error():.6g} at most",
        "slope at 0": _slope(s.slope),
        "diverges above": f"{s.divergence_limit:.7g}",
        "safe in": ", ".join(safe) or "neither bfloat16 nor float16",
    }
    intervals = [[k, f"{lo:.8g}", f"{hi:.8g}"] for k, (lo, hi) in enumerate(images, 1)]
    _say(
        *_facts(facts),
        "",
        *_coefficients(s),
        "",
        *_table(_numbered(["after\nstep", "image of the\ninterval from", "to"]), intervals),
    )


def _coefficients(s: polarlib.Schedule) -> list[str | Text]:
    """A table of the coefficients, all digits."""
    powers = [f"x^{1 + s.stride * i}" for i in range(max(map(len, s.steps)))]
    rows = [
        [k, *(repr(c) for c in step), *[""] * (len(powers) - len(step))]
        for k, step in enumerate(s.steps, 1)
    ]
    return _table(_numbered(["step", *powers]), rows)


# -- design ----------------------------------------------------------------------------------

# Endings of files that a schedule is exported to, and the kind of their text; JSON besides.
EXPORTS = {".py": "python", ".h": "c", ".cuh": "cuda", ".tex": "latex"}


@_command(epilog="Example: polarlib design --lower 1e-3 --matmuls 15 --precision bfloat16")
def design(
    lower: Annotated[
        float, typer.Option(help="Smallest singular value that the schedule is to bring to 1.")
    ],
    upper: Annotated[float, typer.Option(help="Largest one.")] = 1.0,
    matmuls: Annotated[
        int | None,
        typer.Option(max=MOST_MATMULS, help="Matrix products that may be spent: the best degrees."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(max=MOST_STEPS, help="Number of degree-5 steps, instead of --matmuls."),
    ] = None,
    degrees: Annotated[
        str | None, typer.Option(help="Degree of each step, such as 3,5,5, instead of --matmuls.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="Safe against the rounding of this number format."),
    ] = None,
    safety: Annotated[
        float,
        typer.Option(
            help="Each step tolerates inputs up to 1 + safety times its upper end; with --steps or "
            "--degrees."
        ),
    ] = 0.0,
    cushion: Annotated[
        float,
        typer.Option(
            help="Each step is designed on an interval whose lower end is at least this share of "
            "its upper end; with --steps or --degrees."
        ),
    ] = 0.0,
    name: Annotated[str | None, typer.Option(help="What to call the schedule.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png, .pdf or .svg.")] = None,
    export: Annotated[
        Path | None,
        typer.Option(help=f"Write to this .json, {', '.join(EXPORTS)} or _triton.py file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Design a schedule for an interval, a budget, a number format."""
    _check_outputs({"--plot": plot}, PICTURES)
    _check_outputs({"--export": export}, (".json", *EXPORTS))
    s = _designed(lower, upper, matmuls, steps, degrees, precision, safety, cushion)
    if name is not None:
        s = dataclasses.replace(s, name=name)
    rows = polarlib.design.table(s)
    certificate = s.certify()
    if plot is not None:
        _write({"--plot": plot}, functools.partial(_draw_schedule, s, plot))
    if export is not None:
        _write({"--export": export}, functools.partial(_export, s, export))
    if as_json:
        document = s.to_dict() | {"table": rows, "certificate": dataclasses.asdict(certificate)}
        _say_json(document | {"plot_file": plot, "export_file": export})
        return
    facts = {
        "name": s.name,
        "source": s.source,
        "matrix products": str(s.matmuls),
        "normalisation": s.normalisation,
        "interval": f"[{s.lower:g}, {s.upper:g}]",
        "error on it": f"{s.error():.6g}",
        "certified": f"between {certificate.lower:.17g} and {certificate.upper:.17g}",
        "slope at 0": _slope(s.slope),
        "diverges above": f"{s.divergence_limit:.7g}",
    }
    _say(
        *_facts(facts),
        "",
        *_table(
            [
                ("step", ">", lambda row: row["step"]),
                ("degree", ">", lambda row: row["degree"]),
                ("from", ">", lambda row: f"{row['lower']:.5g}"),
                ("to", ">", lambda row: f"{row['upper']:.6g}"),
                ("image\nfrom", ">", lambda row: f"{row['image_lower']:.5g}"),
                ("to", ">", lambda row: f"{row['image_upper']:.6g}"),
                ("error", ">", lambda row: f"{row['error']:.4g}"),
                ("noise\ngain", ">", lambda row: f"{row['noise_gain']:.3g}"),
                ("slope", ">", lambda row: _slope(row["slope"])),
                ("prod-\nucts", ">", lambda row: row["products"]),
            ],
            rows,
        ),
        "",
        *_coefficients(s),
    )
    for path in filter(None, (plot, export)):
        _say(f"Written to {path}.")


def _designed(
    lower: float,
    upper: float,
    matmuls: int | None,
    steps: int | None,
    degrees: str | None,
    precision: str | None,
    safety: float,
    cushion: float,
) -> polarlib.Schedule:
    """Call the function of the library that designs for what was given."""
    given = {"--matmuls": matmuls, "--steps": steps, "--degrees": degrees}
    named = [option for option, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(
            f"give one of {', '.join(given)}, got {' and '.join(named) or 'none of them'}"
        )
    if steps is not None and steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    free = degrees is None and not (safety or cushion)
    if precision is not None and free and upper == 1:
        return polarlib.design.for_precision(precision, lower, steps=steps, matmuls=matmuls)
    if precision is not None:
        raise ValueError(
            "--precision derives degrees, safety and cushion for [lower, 1] by itself: leave "
            "--degrees, --safety, --cushion and --upper out"
        )
    if matmuls is not None:
        if safety or cushion:
            raise ValueError("--safety and --cushion go with --steps or --degrees")
        return polarlib.design.budget(lower, matmuls, upper=upper)
    try:
        listed = [5] * steps if steps else [int(d) for d in str(degrees).split(",")]
    except ValueError:
        raise ValueError(
            f"--degrees must be odd numbers with commas between, such as 3,5,5, got {degrees!r}"
        ) from None
    if len(listed) > MOST_STEPS or max(listed) > MOST_DEGREE:
        raise ValueError(
            f"--degrees must be at most {MOST_STEPS} numbers up to {MOST_DEGREE}, got {degrees!r}"
        )
    return polarlib.design.greedy(lower, listed, upper=upper, safety=safety, cushion=cushion)


def _draw_schedule(s: polarlib.Schedule, path: Path) -> None:
    from polarlib import plot

    _save(plot.polynomial(s), path)


def _export(s: polarlib.Schedule, path: Path) -> None:
    """Write a schedule as what the ending of the file says."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        s.to_json(path)
        return
    kind = "triton" if path.name.lower().endswith("_triton.py") else EXPORTS[suffix]
    text = s.to_code(kind).encode()

    def write(file: IO[bytes]) -> None:
        file.write(text)

    write_whole(path, write)


# -- report ----------------------------------------------------------------------------------


@_command(epilog="Example: polarlib report -o report.html analysis-output")
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where the studies of analysis/ wrote.")
    ] = Path("analysis-output"),
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The HTML page.")
    ] = Path("report.html"),
    as_json: Json = False,
) -> None:
    """Results of the studies as one self-contained HTML page."""
    from polarlib.report import write

    _check_outputs({"-o": output}, ())
    studies = write(output, folder)
    if as_json:
        _say_json({"report": output, "studies": studies})
        return
    columns: list[Column] = [
        ("study", "<", lambda s: s["study"] + " (quick)" * s["quick"]),
        ("within", ">", lambda s: s["within"]),
        ("outside", ">", lambda s: s["outside"]),
        ("not run", ">", lambda s: s["not run"]),
    ]
    _say(*_table(columns, studies), f"Written to {output}.")


# -- bench -----------------------------------------------------------------------------------

# Sizes and seconds that are taken if none are given.
BENCH_SIZES, BENCH_SECONDS = "256,512", 10.0
COST_SIZES, COST_SECONDS = "64,128,256,512,1024", 60.0


@_command(epilog="Example: polarlib bench --sizes 64 --seconds 1")
def bench(
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure what kernels cost instead.")
    ] = False,
    library: Annotated[str, typer.Option(help="numpy, torch, jax or cupy.")] = "numpy",
    sizes: Annotated[
        str | None, typer.Option(help=f"{BENCH_SIZES}; of a calibration {COST_SIZES}.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="For about how long in all; more if sizes are large.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or gpu.")] = "cpu",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Add the costs to this .toml.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Speed of polar() and of other libraries on this machine; or costs of its kernels."""
    from polarlib import bench

    if output is not None and not calibrate:
        raise ValueError("-o goes with --calibrate: it is for the costs of kernels")
    _check_outputs({"-o": output}, (".toml",))
    if output is not None and output.exists():
        read_costs(output)  # before minutes are spent: other files are not written over
    default = COST_SIZES if calibrate else BENCH_SIZES
    listed = bench.sizes_of(default if sizes is None else sizes)
    share = (COST_SECONDS if calibrate else BENCH_SECONDS) if seconds is None else seconds
    measure = bench.calibrate if calibrate else bench.compare
    with _progress(len(listed) * 2) as advance, _noted() as notes:
        found: Any = measure(library, sizes=listed, seconds=share, device=device, advance=advance)
    if not calibrate:
        if as_json:
            _say_json({"rows": found, "notes": notes})
            return
        _say(
            *_table(
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
                found,
            ),
            "",
            *_wrapped(
                "Gaussian matrices, by turns; medians over rounds, of times and of their ratios. "
                "SVDs with the two products that make U and H."
            ),
        )
        _say_notes(notes)
        return
    if output is not None:
        _write({"-o": output}, functools.partial(bench.add_costs, output, found))
    if as_json:
        _say_json({"costs": found, "costs_file": output, "notes": notes})
        return
    ((name, tables),) = found.items()
    ((kind, table),) = tables.items()
    rows = [
        [form, kernel, *values]
        for form in ("float32", "float64")
        for kernel, values in table[form].items()
    ]
    _say(
        f"{name}, {kind}: costs in products of two n x n matrices",
        "",
        *_table(_numbered(["format", "kernel", *(f"n = {n}" for n in table["sizes"])]), rows),
    )
    _say_notes(notes)
    if output is None:
        _say("", "To use such costs, write them to a file with -o.")
    else:
        _say("", f"Written to {output}. To use it: export POLARLIB_COSTS={output.resolve()}")


# -- info ------------------------------------------------------------------------------------


@_command()
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
        "thread_pools": _thread_pools(),
        "processors": os.cpu_count(),
        "processors_usable": _usable_processors(),
    }
    if as_json:
        _say_json(document)
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
    formats = document["formats"]
    rows = [[form, *(formats[name].get(form, "-") for name in formats)] for form in FORMATS]
    _say(*_facts(facts), "", *_table(_numbered(["format", *formats], "<"), rows))


def _packages() -> dict[str, str | None]:
    """Versions of the packages that polarlib uses, None where one is missing."""
    names = "numpy scipy array-api-compat matplotlib mpmath rich typer ml_dtypes safetensors"
    found: dict[str, str | None] = {}
    for name in names.split():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


# Where arrays are made, if not in the module that has the library's name.
_ARRAYS = {"jax": "jax.numpy", "dask": "dask.array"}


def _formats() -> dict[str, dict[str, str]]:
    """Native or simulated, for the formats that each array library can compute in here."""
    table: dict[str, dict[str, str]] = {}
    for library in libraries():
        table[library] = {}
        try:
            module = importlib.import_module(_ARRAYS.get(library, library))
            x = module.ones((1, 1), dtype=module.float32)
        except Exception:  # CuPy without a device, say: it makes no arrays
            continue
        for name in FORMATS:
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # JAX tells by a warning that it lacks float64
                ops = rounded(ops_of(x), name)
                ops.cast(x, name)
                table[library][name] = "simulated" if ops.simulated else "native"
    return table


def _blas() -> dict[str, str]:
    found: Any = np.show_config(mode="dicts")
    blas = found.get("Build Dependencies", {}).get("blas", {})
    return {key: str(blas.get(key, "")) for key in ("name", "version")}


def _thread_pools() -> list[dict[str, Any]]:
    """Threads of the BLAS and OpenMP libraries that are loaded."""
    return [
        {"library": p["internal_api"], "version": p["version"], "threads": p["num_threads"]}
        for p in threadpoolctl.threadpool_info()
    ]


def _usable_processors() -> int | None:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


# -- inputs and outputs ----------------------------------------------------------------------


def _matrix(source: str, *, single: bool = False) -> np.ndarray:
    """A matrix or stack from a file, or a shipped matrix; checked, so that messages name it."""
    file, _ = files.split(source)
    if not file.exists() and not file.suffix:
        known = files.shipped()
        if source not in known:
            raise ValueError(
                f"{source}: neither a file nor a matrix that comes with polarlib; "
                f"{nearest(source, known)}"
            )
        return known[source]
    a = files.read(source)
    if a.ndim < 2 or (single and a.ndim > 2):
        raise ValueError(
            f"{source}: {'one' if single else 'a'} matrix is needed, got an array of shape "
            f"{a.shape}; reshape it or choose a part, and save that"
        )
    if single and 0 in a.shape:
        raise ValueError(f"{source}: the matrix has no entries, its shape is {a.shape}")
    if trouble := not_finite(a):
        raise ValueError(f"{source}: {trouble}; remove them")
    return as_matrix(a, source)[0]


def _check_outputs(
    outputs: dict[str, Path | None], suffixes: Sequence[str], source: str | None = None
) -> None:
    """Refuse outputs that cannot be written or would overwrite, before anything is computed."""
    # Not Path.resolve, which raises RuntimeError for links that go in circles.
    taken = {} if source is None else {os.path.realpath(files.split(source)[0]): "the input"}
    for option, path in outputs.items():
        if path is None:
            continue
        if suffixes and path.suffix.lower() not in suffixes:
            raise ValueError(f"{option} {path}: name a file that ends in {' or '.join(suffixes)}")
        try:
            place, _ = replaceable(path)
        except OSError as error:
            text = f"{path}: cannot be written: {error.strerror}" if error.strerror else error
            raise ValueError(f"{option} {text}") from None
        if place in taken:
            raise ValueError(f"{option} {path}: would overwrite {taken[place]}; choose another")
        taken[place] = f"the file of {option}"


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise ValueError(f"--plots {folder}: is a file; name a folder")
        _check_outputs({"--plots": folder}, ())
    elif not os.access(folder, os.W_OK):
        raise ValueError(f"--plots {folder}: the folder cannot be written")


def _write(outputs: Mapping[str, Path | None], write: Callable[[], None]) -> None:
    """Write, and name the option and the file if that fails."""
    try:
        write()
    except OSError as error:
        named = [f"{option} {path}" for option, path in outputs.items() if path is not None]
        (which,) = [n for n in named if n.endswith(f" {error.filename}")][:1] or named[:1]
        raise OSError(f"{which}: cannot be written: {error.strerror or error}") from error


# -- printing --------------------------------------------------------------------------------


class _Console(Console):
    """A console whose reader may leave early, as head does: that is no failure."""

    def on_broken_pipe(self) -> None:
        _finish(self.file)
        raise SystemExit(0)


def _finish(stream: IO[str] | None) -> None:
    """Flush a stream; where that fails, what the process still flushes at its end goes nowhere."""
    if stream is None:  # closed before the process began
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # a stream without a number
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _console(*, stderr: bool = False) -> Console:
    # Sizes are given, as rich fails on a COLUMNS such as "0" or "²".
    return _Console(
        stderr=stderr, highlight=False, markup=False, emoji=False, width=_columns(), height=25
    )


def _columns() -> int:
    """Columns that COLUMNS asks for, or those of the terminal; at least 20."""
    return min(max(shutil.get_terminal_size((UNLIMITED, 25)).columns, 20), UNLIMITED)


def _say(*lines: str | Text) -> None:
    """Print lines as they are, neither wrapped nor cut, with control characters escaped."""
    texts = (line if isinstance(line, Text) else Text(printable(line)) for line in lines)
    try:
        _console().print(Text("\n").join(texts), soft_wrap=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def _say_json(document: dict[str, Any]) -> None:
    _say(*json.dumps(plain(document), indent=2, allow_nan=False).split("\n"))


def _say_notes(notes: Sequence[str], mark: str = "!") -> None:
    for note in dict.fromkeys(notes):
        _say(*_wrapped(f"{mark} {note}", indent=2))


def _complain(message: str, code: int) -> int:
    """Print one line on stderr; return the exit code."""
    line = printable(message)
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} [...] {line[-LONGEST // 2 :]}"
    with contextlib.suppress(OSError, SystemExit):  # nobody reads it
        _console(stderr=True).print(Text(f"polarlib: {line}"), soft_wrap=True)
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
    """A bar on stderr, if that is a terminal and it takes long; it is told of each job to come."""
    console = _console(stderr=True)
    bar = Progress(
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
        auto_refresh=False,  # no thread of its own, which would disturb what is timed
    )
    task = bar.add_task("", total=total, completed=-1)
    begun = time.monotonic()

    with contextlib.ExitStack() as stack:

        def advance(what: str) -> None:
            bar.update(task, advance=1, description=what)
            if console.is_terminal and time.monotonic() - begun > PATIENCE:
                if not bar.live.is_started:
                    stack.enter_context(bar)
                bar.refresh()

        yield advance


def _width() -> int:
    """Columns for tables: those of the terminal, or of COLUMNS where the output goes elsewhere."""
    return _columns() if os.environ.get("COLUMNS") or _console().is_terminal else UNLIMITED


def _wrapped(text: str, indent: int = 0) -> list[str]:
    return textwrap.wrap(printable(text), min(_width(), 100), subsequent_indent=" " * indent)


def _facts(facts: dict[str, str]) -> list[str]:
    """Names and values in two columns; long values are wrapped in theirs."""
    left = max(map(len, facts)) + 2
    wrapper = textwrap.TextWrapper(
        _width(),
        subsequent_indent=" " * left,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [
        line
        for name, value in facts.items()
        for line in wrapper.wrap(f"{name:<{left}}{printable(value)}")
    ]


Column = tuple[str, str, Callable[[Any], Any]]


def _numbered(headings: Sequence[str], align: str = ">") -> list[Column]:
    """Columns of rows that are lists."""
    return [(heading, align, operator.itemgetter(i)) for i, heading in enumerate(headings)]


def _table(columns: Sequence[Column], rows: Sequence[Any]) -> list[str | Text]:
    """Lay out a table whose cells are never cut.

    Where the terminal is too narrow for the whole, the first column turns into headings of the
    rows that share it.

    Parameters
    ----------
    columns : sequence of (heading, alignment, function of a row)
        Headings may have two lines; the alignment is "<" or ">".
    rows : sequence

    Returns
    -------
    list of str or Text
        Lines.
    """
    height = max(heading.count("\n") for heading, _, _ in columns) + 1
    # Headings stand on the rule, whatever their height.
    texts = [
        [*("\n" * (height - 1 - heading.count("\n")) + heading).split("\n")]
        + [printable(cell(row)) for row in rows]
        for heading, _, cell in columns
    ]
    widths = [max(map(len, column)) for column in texts]

    def fits(first: int, gap: int) -> bool:
        return sum(widths[first:]) + gap * (len(widths) - first - 1) <= _width()

    first = int(not fits(0, 2) and len(set(texts[0][height:])) < len(rows))
    gap = "  " if fits(first, 2) else " "

    def line(cells: Sequence[str]) -> str:
        padded = [f"{cell:{c[1]}{w}}" for cell, c, w in zip(cells, columns, widths, strict=True)]
        return gap.join(padded[first:]).rstrip()

    cells = list(zip(*texts, strict=True))
    head = [*cells[:height], tuple("-" * width for width in widths)]
    lines: list[str | Text] = [Text(line(row), style="bold") for row in head]
    before = None
    for row in cells[height:]:
        if first and row[0] != before:
            before = row[0]
            lines.append(Text(f"{columns[0][0]}: {before}", style="bold"))
        lines.append(line(row))
    return lines


def _number(x: Any) -> str:
    """Two digits, which is what an error figure deserves."""
    return re.sub(r"e([+-])0", r"e\1", f"{x:.1e}")


def _range(value: Any) -> str:
    """A figure, or the smallest and the largest of a stack."""
    value = np.asarray(value)
    text: Callable[[Any], str] = _number if value.dtype.kind == "f" else str
    if value.size == 0:
        return "none"
    ends = (text(value.min().item()), text(value.max().item()))
    return " to ".join(dict.fromkeys(ends))


def _slope(x: float) -> str:
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
