"""polarlib compare."""

from __future__ import annotations

import functools
import math
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import threadpoolctl
import typer

import polarlib
from polarlib import files
from polarlib._methods.small_algebra import LARGEST
from polarlib.arrays.checks import nearest
from polarlib.arrays.formats import format_of, printable
from polarlib.cli import console
from polarlib.cli.console import REPRESENTATIVE, format_number, format_shape, say, tabulated
from polarlib.result import Status, Trace
from polarlib.timing import interleaved

# polarlib.methods() lists the published schedules too, which have rows of their own.
METHODS = tuple(name for name in polarlib.methods() if name not in polarlib.schedules())
# Methods factorise: they compute 16-bit matrices in float32.
METHOD_FORMATS = ("float64", "float32")
SCHEDULE_FORMATS = ("float32", "bfloat16")

# Number of calls that are timed at least, seconds after which they suffice, and number at most.
TIMED, TIMED_SECONDS, TIMED_MOST = 3, 0.05, 15


# -- compare ---------------------------------------------------------------------------------


@console.command(epilog="Example: polarlib compare A.npy --precision bfloat16 --plots pictures")
def compare(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help=f"{console.KINDS}. Without one: {len(REPRESENTATIVE)} of the ten matrices that "
            "come with polarlib, gradients and momenta.",
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
        str, typer.Option("--image-format", metavar="KIND", help="Of the plots: png, pdf or svg.")
    ] = "png",
    former: Annotated[str | None, typer.Option("--format", hidden=True)] = None,
    as_json: console.Json = False,
) -> None:
    """All methods and schedules on a matrix: a table and plots."""
    # Each once, and unknown ones refused, before anything is computed.
    formats = list(dict.fromkeys(format_of(name).name for name in precision or SCHEDULE_FORMATS))
    notes = []
    if former is not None:
        picture = former
        notes.append("--format is now --image-format; the former name ends with polarlib 0.3")
    suffix = f".{picture}"
    if suffix not in console.PICTURES:
        known = [name.removeprefix(".") for name in console.PICTURES]
        raise ValueError(f"unknown --image-format {picture!r}; {nearest(picture, known)}")
    if not no_plots:
        console.check_folder(plots)
    matrices = _chosen(file, matrix)

    jobs = [(method, form) for method in METHODS for form in METHOD_FORMATS]
    sets = (console.DEFAULT, *polarlib.schedules(target="polar"))
    jobs += [(name, form) for form in formats for name in sets]
    rows: list[dict[str, Any]] = []
    written: list[Path] = []
    begun = time.perf_counter()
    with console.progress_bar(len(matrices) * (len(jobs) + (not no_plots))) as advance:
        for name, a in matrices.items():
            traces = {}
            for job in jobs:
                advance(f"{job[0]}, {job[1]}")
                if job[0] == "small" and min(a.shape) > LARGEST:
                    continue  # closed forms end there: no row, rather than a note in every table
                row, trace = _compared(name, a, *job)
                rows.append(row)
                if trace is not None:
                    traces[job] = trace
            if not no_plots:
                advance("plots")
                written += _draw(name, traces, formats, plots, suffix)
    elapsed = time.perf_counter() - begun
    if as_json:
        console.say_json(
            {"rows": rows, "plots": written, "seconds_in_all": elapsed, "notes": notes}
        )
        return
    say(
        *tabulated(
            [
                ("matrix", "<", lambda row: f"{row['matrix']} ({format_shape(row['shape'])})"),
                ("method", "<", lambda row: row["method"] + "!" * bool(row["notes"])),
                ("format", "<", lambda row: row["format"] + "*" * row["simulated"]),
                ("matrix\nproducts", ">", lambda row: row["matrix_products"]),
                ("seconds", ">", lambda row: f"{row['seconds']:.5f}"),
                ("ortho-\ngonality", ">", lambda row: format_number(row["orthogonality"])),
                ("backward\nerror", ">", lambda row: format_number(row["backward_error"])),
                (
                    "smallest\ns. value",
                    ">",
                    lambda row: format_number(row["smallest_singular_value"]),
                ),
            ],
            rows,
        ),
        "",
        console.paragraph(
            "Of the last iterate: orthogonality ||X^H X - I||_F / sqrt(k), backward error "
            "||A - X H||_F / ||A||_F, smallest singular value. Seconds: median of at least "
            f"{TIMED} calls after one to warm up, for methods of polarlib.polar (with H and "
            "evidence), for schedules of polarlib.orthogonalize, whose default is auto."
        ),
    )
    if any(row["simulated"] for row in rows):
        what = "operands rounded, products in float32, one rounding; times of the simulation"
        console.say_notes([what], "*")
    console.say_notes([*notes, *(note for row in rows for note in row["notes"])])
    if written:
        say(f"{len(written)} plots are in {plots}.")
    say(f"{elapsed:.0f} seconds in all.")


def _chosen(file: str | None, names: list[str] | None) -> dict[str, np.ndarray]:
    """The matrices to compare on, by name."""
    if file is not None:
        if names:
            raise ValueError("give FILE or --matrix, not both")
        return {file: console.read_matrix(file, single=True)}
    known = files.sample_matrices()
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

    def compute() -> None:
        if fixed:
            polarlib.orthogonalize(x, schedule=method, precision=precision, form="plain")
        else:
            latest["result"] = polarlib.polar(x, method=method)

    latest: dict[str, polarlib.PolarResult] = {}

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
        with console.collected_warnings() as notes:
            times = interleaved({"": compute}, TIMED_SECONDS, least=TIMED, most=TIMED_MOST)[""]
            # BLAS on one thread where nothing is timed: a trace takes many small decompositions,
            # whose threads wait for one another, and longer where another process computes.
            with threadpoolctl.threadpool_limits(1):
                t = polarlib.measure(x, method, precision=precision)
    except ValueError as error:  # a method that is not for this matrix
        return row | {"notes": [f"{method}: {error}"]}, None
    if not fixed and latest["result"].status is Status.FELL_BACK:
        notes.append(
            f"{method} failed on {name} and the SVD took over: the seconds include that, the other "
            f"figures are {method}'s own"
        )
    return row | {
        "simulated": t.simulated,
        "matrix_products": int(t.matmuls[-1]),
        "seconds": statistics.median(times),
        "orthogonality": t.orthogonality[-1],
        "backward_error": t.backward_error[-1],
        "smallest_singular_value": t.singular_values[-1].min(),
        "notes": notes,
    }, t


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
    t = traces.get((console.DEFAULT, formats[-1]))
    if t is not None:
        axes[f"{console.DEFAULT}-convergence"] = plot.convergence(t)
        axes[f"{console.DEFAULT}-singular-values"] = plot.singular_values(t)
    folder.mkdir(exist_ok=True)
    name = printable(Path(name).name)[: console.LONGEST_NAME]
    stem = re.sub(r"[^\w.-]+", "_", name)
    written = []
    for what, ax in axes.items():
        ax.set_title("\n".join(filter(None, [name.replace("$", r"\$"), ax.get_title()])))
        path = folder / f"{stem}-{what}{suffix}"
        console.write_named({"--plots": path}, functools.partial(console.save_picture, ax, path))
        written.append(path)
    return written
