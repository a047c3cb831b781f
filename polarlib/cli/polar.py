"""The commands polarlib polar and polarlib converge."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import polarlib
from polarlib import files
from polarlib.arrays.formats import FORMATS
from polarlib.arrays.library import dtype_name
from polarlib.arrays.memory import peak_memory
from polarlib.cli import console
from polarlib.cli.console import format_number, format_range, grid, say, tabulated
from polarlib.cli.everything import METHODS
from polarlib.cli.listing import MOST_STEPS
from polarlib.cli.out_of_core import decompose
from polarlib.cli.progress import progress
from polarlib.result import Status, Trace, between

FAILED = (Status.NOT_CONVERGED, Status.OVERFLOW)

# -- polar -----------------------------------------------------------------------------------

Side = Annotated[
    str | None,
    typer.Option(
        help="right: A = U H; left: A = H U. [right; with --memory that of the smaller H]",
        show_default=False,
    ),
]
Method = Annotated[
    str,
    typer.Option(
        help=f"One of auto, {', '.join(METHODS)}, or a published set (see 'polarlib schedules')."
    ),
]
Completion = Annotated[
    bool | None,
    typer.Option(
        "--completion/--no-completion",
        help="Complete the factor of a rank-deficient matrix to orthonormal. [completion; with "
        "--memory no completion]",
        show_default=False,
    ),
]
Rtol = Annotated[
    float | None,
    typer.Option(help="Tolerance of orthogonality and backward error. [max(100, n) eps]"),
]


Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Compute in blocks, with at most this memory beyond that of a run on a small matrix: "
        "1GB, 500MB, 2GiB, or bytes. FILE is an .npy, .h5, .hdf5 or .zarr.",
    ),
]
WRITTEN = (".npy", ".h5", ".hdf5", ".zarr")


@console.command(epilog="Example: polarlib polar A.npy -o U.npy --hermitian H.npy")
def polar(
    file: console.Source,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write the unitary factor to this .npy, .h5 or .zarr."),
    ] = None,
    hermitian: Annotated[
        Path | None, typer.Option(help="Write the Hermitian factor to this .npy, .h5 or .zarr.")
    ] = None,
    side: Side = None,
    method: Method = "auto",
    completion: Completion = None,
    rtol: Rtol = None,
    memory: Memory = None,
    as_json: console.Json = False,
) -> None:
    """Compute a polar decomposition, its errors and the rank."""
    outputs = {"-o": output, "--hermitian": hermitian}
    console.check_outputs(outputs, WRITTEN, file)
    blocks = ""
    if memory is not None:
        _check_for_blocks(method, completion, rtol)
        with progress(quiet=as_json) as bar:
            done = decompose(file, memory, side, outputs, bar)
        result, dtype, side, notes, blocks = done
        shape = result.unitary.shape
        failed = result.status in FAILED
    else:
        with progress(4, quiet=as_json) as bar:
            bar.begin(f"reading {file}")
            a = console.read_matrix(file)
            if a.dtype.type.__module__ == "ml_dtypes":
                # .npy files cannot hold the format. In float32 the factor is not rounded to it.
                a = a.astype(np.float32)
            shape, dtype = a.shape, dtype_name(a)
            bar.begin("polar decomposition")
            with console.collected_warnings() as notes:
                known: Any = side or "right"  # one of two words, which polar checks
                side = known
                whole = completion is not False
                result = polarlib.polar(a, side=known, method=method, completion=whole, rtol=rtol)
            failed = result.status in FAILED
            bar.begin("writing")
            written = {output: result.unitary, hermitian: result.hermitian}
            # Both files are written or neither, so that the factors of two runs never mix.
            arrays = {k: v for k, v in written.items() if k is not None and not failed}
            console.write_named(outputs, lambda: files.write_all(arrays))
            bar.begin("rank and condition number")
            result.condition_bounds  # noqa: B018 - computed when first read
    if failed:
        output = hermitian = None
    peak = peak_memory()
    if as_json:
        document = {"file": file, "dtype": dtype, "side": side} | result.to_dict()
        document |= {"remedy": result.status.value, "peak_memory": peak}
        console.say_json(document | {"unitary_file": output, "hermitian_file": hermitian})
    else:
        deficient = " (U is the partial isometry)" if blocks and result.rank < min(shape) else ""
        facts = {
            "matrix": f"{console.format_shape(shape)}, {dtype}",
            "factors": "A = U H" if side == "right" else "A = H U",
            "method": result.method,
            "because": result.reason,
            "status": f"{result.status.name.lower()}: {result.status.value}",
            "iterations": str(result.iterations),
            "matrix products": str(result.matmuls),
            "orthogonality": format_range(result.orthogonality),
            "backward error": format_range(result.backward_error),
            "rank": f"{format_range(result.rank)}{deficient}",
            "condition number": between(*result.condition_bounds),
            "blocks": blocks,
            "peak memory": f"{peak / 1e6:.0f} MB" if blocks and peak is not None else "",
            "U written to": str(output or ""),
            "H written to": str(hermitian or ""),
        }
        say(grid((name, value) for name, value in facts.items() if value))
    if failed:
        nothing = "; nothing was written" if any(outputs.values()) else ""
        text = f"{file}: {'; '.join(notes)}{nothing}"
        raise typer.Exit(console.complain(text, 1))


def _check_for_blocks(method: str, completion: bool | None, rtol: float | None) -> None:
    """Refuse options that a decomposition in blocks does not have."""
    if method != "auto":
        raise ValueError(
            f"--method {method} must not be given with --memory, whose method follows from the "
            "condition number; leave it out"
        )
    if completion:
        raise ValueError(
            "--completion must not be given with --memory, which writes the partial isometry of a "
            "rank-deficient matrix; leave it out"
        )
    if rtol is not None:
        raise ValueError(
            "--rtol must not be given with --memory, whose tolerance is max(100, n) eps; leave it "
            "out"
        )


# -- converge --------------------------------------------------------------------------------


@console.command(epilog="Example: polarlib converge A.npy --schedule jordan --plot out.png")
def converge(
    file: console.Source,
    schedule: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE.json",
            help="auto (orthogonalize's default for the format), a published set (see "
            f"'polarlib schedules'), a .json file, or a method: {', '.join(METHODS)}.",
        ),
    ] = console.DEFAULT,
    steps: Annotated[
        int | None, typer.Option(max=MOST_STEPS, help="Number of steps of a schedule.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help=f"Number format: {', '.join(FORMATS)}; by default that of the matrix.",
        ),
    ] = None,
    form: Annotated[str, typer.Option(help="Form of the iteration: plain or gram.")] = "plain",
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png, .pdf or .svg file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the trace to this .csv file.")] = None,
    as_json: console.Json = False,
) -> None:
    """Print singular values and errors after each step of a schedule."""
    console.check_outputs({"--plot": plot}, console.PICTURES, file)
    console.check_outputs({"--csv": csv}, (".csv",), file)
    with progress(quiet=as_json) as bar:
        bar.begin(f"reading {file}")
        a = console.read_matrix(file, single=True)
        bar.begin("singular vectors of the matrix")
        with console.collected_warnings() as notes:
            t = polarlib.measure(
                a, schedule, steps=steps, precision=precision, form=form, callback=bar
            )
        bar.begin("writing")
        if plot is not None:
            console.write_named({"--plot": plot}, functools.partial(_draw_trace, t, plot))
        if csv is not None:
            console.write_named({"--csv": csv}, functools.partial(t.to_csv, csv))
    if as_json:
        console.say_json(
            {"file": file, "plot_file": plot, "csv_file": csv, "notes": notes} | t.to_dict()
        )
        return
    simulated = " (simulated)" if t.simulated else ""
    form = f", {t.form} form" if t.form else ""
    say(
        f"{file} ({console.format_shape(t.shape)}): {t.method}, {t.precision}{simulated}{form}",
        "",
        *tabulated(
            [
                ("step", ">", lambda k: k),
                ("matrix\nproducts", ">", lambda k: t.matmuls[k]),
                ("smallest\ns. value", ">", lambda k: f"{t.singular_values[k].min():.6g}"),
                ("largest\ns. value", ">", lambda k: f"{t.singular_values[k].max():.6g}"),
                ("ortho-\ngonality", ">", lambda k: format_number(t.orthogonality[k])),
                ("backward\nerror", ">", lambda k: format_number(t.backward_error[k])),
                ("smallest\nalignment", ">", lambda k: f"{t.alignment[k].min():.6f}"),
            ],
            range(t.n_steps + 1),
        ),
    )
    console.say_notes(notes)
    for path in filter(None, (plot, csv)):
        say(f"Written to {path}.")


def _draw_trace(t: Trace, path: Path) -> None:
    """Write one figure: errors on the left, singular values on the right."""
    from matplotlib.figure import Figure

    from polarlib import plot

    left, right = Figure(figsize=(13, 5.5), layout="constrained").subplots(1, 2)
    with console.any_letters():
        plot.convergence(t, ax=left)
        plot.singular_values(t, ax=right)
    console.save_picture(left, path)
