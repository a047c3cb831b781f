"""The command polarlib compare --all: every method and schedule on several matrices."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

import polarlib
from polarlib import Schedule
from polarlib._methods.options import resolve_schedule
from polarlib._methods.small_algebra import LARGEST
from polarlib.cli import console
from polarlib.cli.console import format_number, format_shape, say, tabulated
from polarlib.cli.progress import progress
from polarlib.result import Status, Trace
from polarlib.timing import interleaved

# polarlib.methods() lists the published schedules too, which have rows of their own.
METHODS = tuple(name for name in polarlib.methods() if name not in polarlib.schedules())
# Methods factorise: they compute 16-bit matrices in float32.
METHOD_FORMATS = ("float64", "float32")
SCHEDULE_FORMATS = ("float32", "bfloat16")
OWN = (console.DEFAULT, "adaptive")

# Least number of timed calls, seconds after which they suffice, and largest number.
TIMED, TIMED_SECONDS, TIMED_MOST = 3, 0.05, 15


def compare_all(
    matrices: Mapping[str, np.ndarray],
    given: Mapping[str, Schedule],
    formats: Sequence[str],
    folder: Path | None,
    suffix: str,
    notes: list[str],
    as_json: bool,
) -> None:
    """Print the table of all methods and schedules, those given included, and write the plots."""
    fixed = list(dict.fromkeys((*polarlib.schedules(target="polar"), *given)))
    jobs = [(method, form) for method in METHODS for form in METHOD_FORMATS]
    jobs += [(name, form) for form in formats for name in (*own_schedules(form), *fixed)]
    rows: list[dict[str, Any]] = []
    written: list[Path] = []
    begun = time.perf_counter()
    count = len(matrices) * (len(jobs) + (folder is not None))
    with progress(count, quiet=as_json, timed=True) as bar:
        for name, a in matrices.items():
            traces = {}
            for job in jobs:
                bar.begin(f"{name}: {job[0]}, {job[1]}")
                if job[0] == "small" and min(a.shape) > LARGEST:
                    continue  # closed forms are for small matrices only: no row
                row, trace = _compared(name, a, *job, given.get(job[0]))
                rows.append(row)
                if trace is not None:
                    traces[job] = trace
            if folder is not None:
                bar.begin(f"{name}: plots")
                written += _draw(name, traces, formats, folder, suffix)
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
            f"{TIMED} calls after one to warm up, for methods of polarlib.polar (with H and error "
            "estimates), for schedules of polarlib.orthogonalize, whose default is auto."
        ),
    )
    if any(row["simulated"] for row in rows):
        note = (
            "simulated number format: operands rounded, products in float32, one rounding; times "
            "are those of the simulation"
        )
        console.say_notes([note], "*")
    console.say_notes([*notes, *(note for row in rows for note in row["notes"])])
    if written:
        say(f"{len(written)} plots are in {folder}.")
    say(f"{elapsed:.0f} seconds in all.")


def own_schedules(precision: str, steps: int | None = None) -> dict[str, Schedule]:
    """Return the default and the adaptive schedule, by name, where they exist for a format."""
    schedules = {}
    for name in OWN:
        with contextlib.suppress(ValueError):  # not all have every format and number of steps
            schedules[name] = resolve_schedule(name, steps, precision)
    return schedules


def scaled(a: np.ndarray, precision: str) -> np.ndarray:
    """Return a matrix with largest entry about 1, in the dtype that stores a number format."""
    carriers = ("complex128", "complex64") if np.iscomplexobj(a) else ("float64", "float32")
    x = a.astype(carriers[0])
    # Division by a power of two is exact, and brings float64 entries into the range of float32.
    _, exponent = np.frexp(max(np.abs(x.real).max(), np.abs(x.imag).max()))
    return (x / 2.0 ** min(int(exponent), 1023)).astype(carriers[precision != "float64"])


def _compared(
    name: str, a: np.ndarray, method: str, precision: str, given: Schedule | None
) -> tuple[dict[str, Any], Trace | None]:
    """Return one row of the table: errors from a trace, seconds from separate calls.

    `given` is the schedule of a file, and `method` is then the path of the file.
    """
    x = scaled(a, precision)
    fixed = method not in METHODS
    which: Any = method if given is None else given

    def compute() -> None:
        if fixed:
            polarlib.orthogonalize(x, schedule=which, precision=precision, form="plain")
        else:
            latest["result"] = polarlib.polar(x, method=method)

    latest: dict[str, polarlib.PolarResult[Any]] = {}

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
            # Nothing is timed here, and a trace takes many small decompositions, which are faster
            # on one thread.
            with threadpoolctl.threadpool_limits(1):
                t = polarlib.measure(x, which, precision=precision)
                t = dataclasses.replace(t, method=method)
    except ValueError as error:  # a method that refuses this matrix
        return row | {"notes": [f"{method}: {error}"]}, None
    if not fixed and latest["result"].status is Status.FELL_BACK:
        notes.append(
            f"{method} failed on {name} and polar fell back to the SVD: the seconds include the "
            f"SVD, the errors are those of {method}"
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
    with console.any_letters():
        axes = {what: plot.compare(group) for what, group in groups.items() if group}
        t = traces.get((console.DEFAULT, formats[-1]))
        if t is not None:
            axes[f"{console.DEFAULT}-convergence"] = plot.convergence(t)
            axes[f"{console.DEFAULT}-singular-values"] = plot.singular_values(t)
    return console.save_pictures(name, axes, folder, suffix)
