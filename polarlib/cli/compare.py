"""The command polarlib compare: schedules at equal cost on one matrix, ranked by their error."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy.linalg
import threadpoolctl
import typer

import polarlib
from polarlib import Schedule, files, published
from polarlib.arrays.checks import nearest
from polarlib.arrays.formats import format_of
from polarlib.cli import console
from polarlib.cli.console import DEFAULT, REPRESENTATIVE, format_number, format_shape, say
from polarlib.cli.everything import (
    METHOD_FORMATS,
    OWN,
    SCHEDULE_FORMATS,
    compare_all,
    own_schedules,
    scaled,
)
from polarlib.cli.progress import progress
from polarlib.engine.normalise import BOUNDS
from polarlib.timing import interleaved

# Without a file, and without --all: one dominant direction and many small singular values.
ONE = REPRESENTATIVE[1]
FORMAT = "bfloat16"  # in which gradients are orthogonalised
PRODUCTS = 15  # of five steps of degree 5, the most common schedule
MOST_PRODUCTS = 48  # as default_schedule takes them
# Number of rows, the exact method included, and schedules that are shown whatever their rank.
ROWS, KNOWN = 11, (*OWN, "polar_express", "jordan")
MOST_GIVEN = 11  # further ones, so that there are at most 16 rows
EXACT = "svd"
# Traces take an SVD per step: all rows are drawn up to this number of columns, and only the first
# ones beyond it.
ALL_DRAWN, FIRST_DRAWN = 512, 4
# Number of calls of each row that are timed at least, and seconds after which they suffice.
TIMED, TIMED_SECONDS = 3, 0.3


@console.command(epilog="Example: polarlib compare A.npy --schedule jordan --precision float16")
def compare(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help=f"{console.KINDS}. Default: {ONE}, one of the ten bundled matrices, which are "
            "gradients and momenta.",
            show_default=False,
        ),
    ] = None,
    matrix: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A bundled matrix; with --all several, or 'all'."),
    ] = None,
    schedule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE.json", help="A schedule to show whatever its rank; may be repeated."
        ),
    ] = None,
    matmuls: Annotated[
        int | None,
        typer.Option(
            min=3,
            max=MOST_PRODUCTS,
            help=f"Number of matrix products. [{PRODUCTS}, or those of a longer file]",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT",
            help=f"Number format of the schedules, by default {FORMAT}. With --all it may be "
            f"repeated, by default {' and '.join(SCHEDULE_FORMATS)}.",
        ),
    ] = None,
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Compare all methods and schedules, each at its own cost, on "
            f"{len(REPRESENTATIVE)} matrices. This takes minutes.",
        ),
    ] = False,
    plots: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the plots.")] = Path(
        "polarlib-plots"
    ),
    no_plots: Annotated[bool, typer.Option("--no-plots", help="Write no plots.")] = False,
    picture: Annotated[
        str,
        typer.Option(
            "--image-format", metavar="KIND", help="File format of the plots: png, pdf or svg."
        ),
    ] = "png",
    former: Annotated[str | None, typer.Option("--format", hidden=True)] = None,
    as_json: console.Json = False,
) -> None:
    """Compare and rank schedules at equal cost on one matrix."""
    # Duplicates are dropped and unknown names refused before anything is computed.
    formats = list(dict.fromkeys(format_of(name).name for name in precision or ()))
    suffix, notes = _suffix(picture, former)
    folder = None if no_plots else plots
    if folder is not None:
        console.check_folder(folder)
    given = {name: _given(name) for name in schedule or () if name not in OWN}
    matrices = _chosen(file, matrix, every)
    if every:
        if matmuls is not None:
            raise ValueError(
                "--matmuls must not be given with --all, which uses each schedule whole"
            )
        formats = formats or list(SCHEDULE_FORMATS)
        compare_all(matrices, given, formats, folder, suffix, notes, as_json)
        return
    if len(formats) > 1:
        raise ValueError(
            f"--precision must be given once without --all, got {', '.join(formats)}; add --all"
        )
    if len(given) > MOST_GIVEN:
        raise ValueError(f"--schedule must be given at most {MOST_GIVEN} times, got {len(given)}")
    ((name, a),) = matrices.items()
    begun = time.perf_counter()
    if matmuls is None:
        own = [_products(s) for label, s in given.items() if label not in polarlib.schedules()]
        matmuls = max([PRODUCTS, *own])
    form = formats[0] if formats else FORMAT
    ranked = _ranked(name, a, _candidates(given, matmuls, form), [*given], form, quiet=as_json)
    schedules = ranked.pop("schedules")
    written = []
    if folder is not None:
        written = _draw(name, a, schedules, form, folder, suffix, quiet=as_json)
    ranked |= {"matmuls": matmuls, "plots": written, "notes": notes}
    ranked |= {"seconds_in_all": time.perf_counter() - begun}
    if as_json:
        console.say_json(ranked)
    else:
        _print(ranked)


def _suffix(picture: str, former: str | None) -> tuple[str, list[str]]:
    """Return the suffix of plots, checked, and notes about the former name of the option."""
    notes = []
    if former is not None:
        picture = former
        notes.append("--format is now --image-format; the former name ends with polarlib 0.3")
    suffix = f".{picture}"
    if suffix not in console.PICTURES:
        known = [name.removeprefix(".") for name in console.PICTURES]
        raise ValueError(f"unknown --image-format {picture!r}; {nearest(picture, known)}")
    return suffix, notes


def _given(name: str) -> Schedule:
    """Return a schedule by name or from a file; refuse others than polynomials for U."""
    s = polarlib.schedule(name)
    if s.is_rational or s.stride != 2 or s.target != "polar":
        kind = "is rational" if s.is_rational else f"has target {s.target!r}, stride {s.stride}"
        raise ValueError(
            f"--schedule {name}: {kind}; compare takes polynomials for the polar factor, whose "
            "cost is matrix products"
        )
    return s


def _chosen(file: str | None, names: list[str] | None, every: bool) -> dict[str, np.ndarray]:
    """Return the matrices to compare on, by name: one, or several with --all."""
    if file is not None:
        if names:
            raise ValueError("give FILE or --matrix, not both")
        return {file: console.read_matrix(file, single=True)}
    known = files.sample_matrices()
    for name in names or ():
        if name not in ("all", *known):
            raise ValueError(f"unknown --matrix {name!r}; {nearest(name, ['all', *known])}")
    if "all" in (names or ()):
        names = list(known)
    names = list(dict.fromkeys(names or (REPRESENTATIVE if every else (ONE,))))
    if len(names) > 1 and not every:
        raise ValueError(
            f"--matrix must be given once without --all, got {len(names)} matrices; add --all"
        )
    return {name: known[name] for name in names}


# -- the ranking -----------------------------------------------------------------------------


def _products(s: Schedule) -> int:
    """Count the products of a schedule in the plain form, those of its normalisation included."""
    bound = BOUNDS[s.normalisation]
    return s.matmuls + (bound.products if bound.from_gram is None and not s.is_rational else 0)


def _candidates(given: Mapping[str, Schedule], matmuls: int, precision: str) -> dict[str, Schedule]:
    """Return the default schedules, the published sets and the files given, by name.

    Of a set as many steps are used as the products allow, of a file all steps.
    """
    candidates = own_schedules(precision, matmuls // 3)
    for name in polarlib.schedules(target="polar"):
        whole = published.listed(name)
        for k in range(len(whole) if whole.repeat is None else matmuls, 0, -1):
            # The first steps of a set may leave (0, 2): Schedule refuses them.
            with contextlib.suppress(ValueError):
                if _products(s := whole.truncate(k)) <= matmuls:
                    candidates[name] = s
                    break
    return candidates | {name: s for name, s in given.items() if name not in polarlib.schedules()}


def _ranked(
    name: str,
    a: np.ndarray,
    candidates: Mapping[str, Schedule],
    given: Sequence[str],
    precision: str,
    *,
    quiet: bool,
) -> dict[str, Any]:
    """Apply all candidates, sort them by their error, and time those that matter."""
    simulated = precision not in METHOD_FORMATS
    x = scaled(a, precision)
    exact = polarlib.polar(x.astype(np.result_type(x, np.float64)), method=EXACT).unitary
    kept = {*KNOWN, *given}
    rows: list[dict[str, Any]] = []
    jobs = progress(len(candidates) + 1, quiet=quiet, timed=True)
    with jobs as bar, console.collected_warnings():
        for label, s in candidates.items():
            bar.begin(label)
            with console.collected_warnings() as warned:
                q = polarlib.orthogonalize(x, schedule=s, precision=precision, form="plain")
            about = {"method": label, "kind": "schedule", "steps": len(s), "notes": warned}
            about |= {"matrix_products": _products(s), "safe": not warned}
            about |= {"format": precision, "simulated": simulated}
            rows.append(about | _figures(q, x, exact))
        # NaN compares unequal to everything: such rows come last.
        rows.sort(key=lambda row: (math.isnan(row["distance"]), row["distance"]))
        verdict = _verdict(rows, name, precision, given)
        spare = max(ROWS - 1 - sum(row["method"] in kept for row in rows), 0)
        kept.update([row["method"] for row in rows if row["method"] not in kept][:spare])
        rows = [row for row in rows if row["method"] in kept]
        bar.begin("times")
        schedules = {row["method"]: candidates[row["method"]] for row in rows}
        timed = "float32" if simulated else precision
        y = scaled(a, timed)
        u = polarlib.polar(y, method=EXACT).unitary
        about = {"method": EXACT, "kind": "method", "steps": None, "notes": []}
        about |= {"matrix_products": None, "safe": True, "format": timed, "simulated": False}
        rows.append(about | _figures(u, y, exact))
        for row, seconds in zip(rows, _seconds(y, schedules, timed), strict=True):
            row |= {"matrix": name, "shape": a.shape, "seconds": seconds}
    pools = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
    return {
        "matrix": name,
        "shape": a.shape,
        "format": precision,
        "simulated": simulated,
        "rows": rows,
        "verdict": verdict,
        "schedules": schedules,
        "timed_in": timed,
        "threads": max(pools, default=1),
    }


def _figures(q: np.ndarray, x: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Compute the errors that :func:`polarlib.measure` defines; NaN if the result is not finite."""
    values = ("smallest_singular_value", "largest_singular_value")
    names = ("distance", "orthogonality", "backward_error", *values)
    if not np.all(np.isfinite(q)):
        return dict.fromkeys(names, math.nan)
    q, x = q.astype(exact.dtype), x.astype(exact.dtype)
    s = scipy.linalg.svdvals(q)
    distance = np.linalg.norm(q - exact) / math.sqrt(len(s))
    orthogonality = np.sqrt(np.mean((s**2 - 1) ** 2))
    if q.shape[0] < q.shape[1]:
        q, x = q.conj().T, x.conj().T
    w = q.conj().T @ x
    residual = np.linalg.norm(x - q @ ((w + w.conj().T) / 2)) / (np.linalg.norm(x) or 1.0)
    errors = (distance, orthogonality, residual, s.min(), s.max())
    return dict(zip(names, map(float, errors), strict=True))


def _seconds(x: np.ndarray, schedules: Mapping[str, Schedule], precision: str) -> list[float]:
    """Return the seconds of every schedule, then of the exact method: least of interleaved calls.

    With few calls the median depends on what else the machine runs.
    """
    calls: dict[str, Any] = {
        name: functools.partial(
            polarlib.orthogonalize, x, schedule=s, precision=precision, form="plain"
        )
        for name, s in schedules.items()
    }
    # No schedule has this name: the others are published sets and paths of files.
    calls[EXACT] = functools.partial(polarlib.polar, x, method=EXACT)
    times = interleaved(calls, TIMED_SECONDS, least=TIMED)
    return [min(times[name]) for name in calls]


def _verdict(
    rows: Sequence[Mapping[str, Any]], name: str, precision: str, given: Sequence[str]
) -> str:
    """Return one sentence: the nearest safe schedule, and the rank of the default and others."""
    safe = [row for row in rows if row["safe"]]
    error = {row["method"]: row["distance"] for row in rows}
    best, *others = [row["method"] for row in safe]  # the default is always safe
    text = (
        f"Of the {len(safe)} schedules that are safe in {precision}, "
        f"{'the default' if best == DEFAULT else best} is nearest to the polar factor of "
        f"{Path(name).name} (error {error[best]:.3g})"
    )
    if best == DEFAULT and others:
        text += f", before {others[0]} ({error[others[0]]:.3g})"
    for label in dict.fromkeys((DEFAULT, *given)):
        if label in others[best == DEFAULT :]:
            place = f"number {2 + others.index(label)}"
        elif label not in (best, *others):
            place = "not safe"
        else:
            continue
        text += f"; {'the default' if label == DEFAULT else label} is {place} ({error[label]:.3g})"
    return f"{text}."


# -- the output ------------------------------------------------------------------------------


def _print(ranked: Mapping[str, Any]) -> None:
    simulated = " (simulated)" if ranked["simulated"] else ""
    timed, threads = ranked["timed_in"], ranked["threads"]
    say(
        f"{ranked['matrix']} ({format_shape(ranked['shape'])}), {ranked['format']}{simulated}, at "
        f"most {ranked['matmuls']} matrix products",
        "",
        *console.tabulated(
            [
                ("schedule", "<", lambda row: row["method"]),
                ("steps", ">", lambda row: row["steps"] or "-"),
                ("prod-\nucts", ">", lambda row: row["matrix_products"] or "-"),
                ("error", ">", lambda row: f"{row['distance']:.3g}"),
                ("ortho-\ngonality", ">", lambda row: format_number(row["orthogonality"])),
                ("smallest\ns. value", ">", lambda row: f"{row['smallest_singular_value']:.3g}"),
                ("largest\ns. value", ">", lambda row: f"{row['largest_singular_value']:.3g}"),
                ("safe", "<", lambda row: "yes" if row["safe"] else "no"),
                ("ms", ">", lambda row: f"{1e3 * row['seconds']:.2f}"),
            ],
            ranked["rows"],
        ),
        "",
        console.paragraph(ranked["verdict"]),
        "",
        console.paragraph(
            "Error: distance ||X - U||_F / sqrt(k) to the polar factor U; orthogonality "
            "||X^H X - I||_F / sqrt(k). Safe: no matrix and no rounding can move a singular value "
            "to where the schedule diverges, or beyond its interval. Last row: polarlib.polar in "
            f"{timed}. Milliseconds: least of interleaved calls in {timed}, {threads} "
            f"thread{'s' * (threads != 1)}."
        ),
    )
    console.say_notes(ranked["notes"])
    if ranked["plots"]:
        say(f"Plots: {', '.join(map(str, ranked['plots']))}.")
    say(f"{ranked['seconds_in_all']:.1f} seconds in all. Every method and schedule: --all.")


def _draw(
    name: str,
    a: np.ndarray,
    schedules: Mapping[str, Schedule],
    precision: str,
    folder: Path,
    suffix: str,
    *,
    quiet: bool,
) -> list[Path]:
    """Write two plots: errors of the rows, and singular values by the default schedule."""
    from polarlib import plot  # matplotlib is imported only where something is drawn

    labels = [*schedules]
    if min(a.shape) > ALL_DRAWN:
        labels = [label for k, label in enumerate(labels) if k < FIRST_DRAWN or label == DEFAULT]
    x = scaled(a, precision)
    traces = {}
    with (
        progress(len(labels), quiet=quiet) as bar,
        console.collected_warnings(),
        # Nothing is timed here, and a trace takes many small decompositions, which are faster on
        # one thread.
        threadpoolctl.threadpool_limits(1),
    ):
        for label in labels:
            bar.begin(f"trace of {label}")
            t = polarlib.measure(x, schedules[label], precision=precision)
            traces[label] = dataclasses.replace(t, method=label)
    with console.any_letters():
        axes = {
            "errors": plot.compare(traces.values(), quantity="distance"),
            f"{DEFAULT}-singular-values": plot.singular_values(traces[DEFAULT]),
        }
    return console.save_pictures(name, axes, folder, suffix)
