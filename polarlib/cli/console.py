"""The application: its errors and exit codes, its inputs and outputs, and the layout of tables."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import itertools
import json
import logging
import operator
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import typer
from rich.box import Box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

import polarlib
from polarlib import files
from polarlib.arrays.checks import nearest
from polarlib.arrays.entry import as_matrix, not_finite
from polarlib.arrays.formats import docstring, printable
from polarlib.files.containers import ZARR
from polarlib.files.plain import plain
from polarlib.files.whole import replaceable

SOFTWARE = 70  # exit code of an internal error: EX_SOFTWARE of sysexits.h


# Defaults of `compare`: an easy matrix, one with a dominant direction, a very hard one.
REPRESENTATIVE = (
    "transformer_mlp_in_late",
    "transformer_attention_qkv_early",
    "digits_hidden2_late",
)
# Default of `converge`, and the schedule that `compare` draws: the default of orthogonalize.
DEFAULT = "auto"
PICTURES = (".png", ".pdf", ".svg")
UNLIMITED = 10_000  # columns of a pipe or a file
LONGEST = 400  # characters of a message
LONGEST_NAME = 60  # of a matrix in titles and names of plots
PROSE = 100  # columns of paragraphs
# A table without lines but the one below its head.
RULED = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
INTERRUPTED = 130  # what shells give for Ctrl-C


class _Shell(TyperGroup):
    """Run a command; turn every failure into one line on stderr and an exit code."""

    def main(self, *args: Any, **extra: Any) -> Any:
        extra["standalone_mode"] = False
        try:
            code = super().main(*args, **extra)
            if code == INTERRUPTED:  # typer has caught the interrupt
                raise KeyboardInterrupt
        except (typer.Abort, KeyboardInterrupt):
            code = complain("interrupted", INTERRUPTED)
        except Exception as error:
            if os.environ.get("POLARLIB_TRACEBACK"):
                raise
            code = complain(*_explained(error))
        for stream in (sys.stdout, sys.stderr):
            _finish(stream)
        sys.exit(code if isinstance(code, int) else 0)


def _explained(error: Exception) -> tuple[str, int]:
    """Return the message of an exception, and the exit code."""
    usage = getattr(error, "format_message", None)  # of the command line's parser
    if usage is not None:
        context = getattr(error, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context is not None else ""
        return " ".join(usage().split()).rstrip(".") + hint, 2
    if isinstance(error, MemoryError):
        text = str(error) or "not enough memory on this machine"
        return text if ";" in text else f"{text}; use a smaller matrix", 2
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return where + error.strerror, 2
    if isinstance(error, ValueError | TypeError | OSError | ImportError):
        return str(error), 2
    text = " ".join(str(error).split())
    return (
        f"internal error, {type(error).__name__}: {text}; set POLARLIB_TRACEBACK=1 for a traceback",
        SOFTWARE,
    )


def command(**extra: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command with its docstring as help, also under ``python -OO``."""

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
KINDS = "A .npy, .npz, .safetensors, .mtx, .h5, .hdf5 or .zarr file; FILE:name selects an array"
Source = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help=f"{KINDS}. Or the name of a bundled matrix, such as {REPRESENTATIVE[0]}.",
        show_default=False,
    ),
]


def main() -> None:
    """Run the command line with the arguments of the process; never returns."""
    for stream in (sys.stdout, sys.stderr):
        # A file name with letters that the terminal's encoding lacks must not end the command.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # Without a home directory matplotlib prints the place of its font cache on stderr.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    app(prog_name="polarlib")


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"polarlib {polarlib.__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version."),
]


@app.callback(
    invoke_without_command=True,
    help="Polar decompositions and orthogonalisation of matrices.\n\n"
    "Exit codes: 0 done, 1 failed to converge, 2 bad input, 70 internal error, 130 interrupted.",
    epilog=f"Example: polarlib converge {REPRESENTATIVE[0]} --schedule jordan",
)
def _start(context: typer.Context, version: Version = False) -> None:
    if context.invoked_subcommand is None:
        say(*context.get_help().split("\n"))


@contextlib.contextmanager
def any_letters() -> Iterator[None]:
    """Suppress matplotlib's warnings about letters that the font lacks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def save_picture(ax: Any, path: Path) -> None:
    """Write one plot to a file."""
    from polarlib import plot

    with any_letters():
        plot.save(ax, path)


def save_pictures(name: str, axes: Mapping[str, Any], folder: Path, suffix: str) -> list[Path]:
    """Write plots of a matrix into a folder; their titles begin with its name.

    `axes` has the plots by the part of the file's name that describes them.
    """
    folder.mkdir(exist_ok=True)
    name = printable(Path(name).name)[:LONGEST_NAME]
    stem = re.sub(r"[^\w.-]+", "_", name)
    written = []
    for what, ax in axes.items():
        ax.set_title("\n".join(filter(None, [name.replace("$", r"\$"), ax.get_title()])))
        path = folder / f"{stem}-{what}{suffix}"
        write_named({"--plots": path}, functools.partial(save_picture, ax, path))
        written.append(path)
    return written


# -- inputs and outputs ----------------------------------------------------------------------


def read_matrix(source: str, *, single: bool = False) -> np.ndarray:
    """Return a matrix or stack from a file, or a bundled matrix; messages name the source."""
    file, _ = files.split(source)
    # The suffix decides how a file is read: a name without one can only be a bundled matrix.
    if not file.exists() and not file.suffix:
        known = files.sample_matrices()
        if source not in known:
            raise ValueError(
                f"{source}: neither a file nor a bundled matrix; {nearest(source, known)}"
            )
        return known[source]
    a = files.read(source)
    if a.ndim < 2 or (single and a.ndim > 2):
        remedy = "reshape it" if a.ndim < 2 else "save one matrix of it"
        raise ValueError(
            f"{source}: {'one' if single else 'a'} matrix is needed, got an array of shape "
            f"{a.shape}; {remedy}"
        )
    if single and 0 in a.shape:
        raise ValueError(f"{source}: the matrix has no entries, its shape is {a.shape}")
    if message := not_finite(a):
        raise ValueError(f"{source}: {message}; remove them")
    matrix: np.ndarray = as_matrix(a, source)[0]
    return matrix


def check_outputs(
    outputs: dict[str, Path | None], suffixes: Sequence[str], source: str | None = None
) -> None:
    """Refuse outputs that cannot be written or would overwrite the input or another output."""
    # Path.resolve would raise RuntimeError for cyclic links.
    taken = {} if source is None else {os.path.realpath(files.split(source)[0]): "the input"}
    for option, path in outputs.items():
        if path is None:
            continue
        if suffixes and path.suffix.lower() not in suffixes:
            raise ValueError(f"{option} {path}: name a file that ends in {' or '.join(suffixes)}")
        if path.suffix.lower() == ZARR and os.path.lexists(path):
            raise ValueError(f"{option} {path}: exists already; remove it, or choose another name")
        try:
            place, _ = replaceable(path)
        except OSError as error:
            text = f"{path}: cannot be written: {error.strerror}" if error.strerror else error
            raise ValueError(f"{option} {text}") from None
        if place in taken:
            raise ValueError(f"{option} {path}: would overwrite {taken[place]}; use another name")
        taken[place] = f"the file of {option}"
        if path.suffix.lower() in PICTURES:
            importlib.import_module("polarlib.plot")  # ImportError names the missing extra


def check_folder(folder: Path) -> None:
    """Refuse a folder to which plots cannot be written."""
    importlib.import_module("polarlib.plot")
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise ValueError(f"--plots {folder}: is a file; name a folder")
        check_outputs({"--plots": folder}, ())
    elif not os.access(folder, os.W_OK):
        raise ValueError(f"--plots {folder}: the folder cannot be written")


def write_named(outputs: Mapping[str, Path | None], write: Callable[[], None]) -> None:
    """Call `write`; if it fails, name the option and the file."""
    try:
        write()
    except OSError as error:
        for option, path in outputs.items():
            if error.errno is None and str(error).startswith(f"{path}: "):
                raise OSError(f"{option} {error}") from error
        named = [f"{option} {path}" for option, path in outputs.items() if path is not None]
        (which,) = [n for n in named if n.endswith(f" {error.filename}")][:1] or named[:1]
        raise OSError(f"{which}: cannot be written: {error.strerror or error}") from error


# -- printing --------------------------------------------------------------------------------


def _finish(stream: IO[str] | None) -> None:
    """Flush a stream; if that fails, send what Python flushes at exit to the null device."""
    if stream is None:  # closed before the process began
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # a stream without a number
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _console() -> Console:
    # As wide as the widest table: a terminal wraps lines, and rich would cut cells. Sizes are
    # given, as rich fails on a COLUMNS such as "0" or "²".
    size: dict[str, Any] = {"width": UNLIMITED, "height": 25}
    return Console(highlight=False, markup=False, emoji=False, **size)


def _width() -> int:
    """Return the columns of the terminal, or those of the variable COLUMNS; at least 20."""
    if not os.environ.get("COLUMNS") and not _console().is_terminal:
        return UNLIMITED
    return min(max(shutil.get_terminal_size((UNLIMITED, 25)).columns, 20), UNLIMITED)


def say(*parts: RenderableType) -> None:
    """Print lines with control characters escaped, and renderables of rich, on standard output."""
    console = _console()
    console.file = text = io.StringIO()
    for part in parts:
        line = isinstance(part, str | Text)
        console.print(Text(printable(part)) if isinstance(part, str) else part, soft_wrap=line)
    _write(re.sub(r" +$", "", text.getvalue(), flags=re.MULTILINE))  # rich fills columns up


def say_json(document: dict[str, Any]) -> None:
    """Print one JSON document on standard output."""
    _write(json.dumps(plain(document), indent=2, allow_nan=False) + "\n")


def say_notes(notes: Sequence[str], mark: str = "!") -> None:
    """Print notes as a list, each after a mark."""
    if notes:
        say(grid([(mark, note) for note in dict.fromkeys(notes)], 1, PROSE))


def _write(text: str) -> None:
    if sys.stdout is None:  # closed before the process began
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe, as head does: not a failure
        _finish(sys.stdout)
        raise SystemExit(0) from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def complain(message: str, code: int) -> int:
    """Print one line on stderr; return the exit code."""
    line = printable(message)
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} [...] {line[-LONGEST // 2 :]}"
    if sys.stderr is not None:
        with contextlib.suppress(OSError):  # a closed pipe
            sys.stderr.write(f"polarlib: {line}\n")
            sys.stderr.flush()
    return code


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect the library's warnings as notes to print below the output."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    messages = (str(w.message) for w in caught if issubclass(w.category, UserWarning))
    notes.extend(dict.fromkeys(messages))


def paragraph(text: str) -> RenderableType:
    """Return text that is wrapped to the width of the terminal."""
    return Constrain(Text(printable(text)), min(_width(), PROSE))


def grid(rows: Iterable[tuple[str, str]], gap: int = 2, most: int = UNLIMITED) -> RenderableType:
    """Lay out names and values in two columns; long values are wrapped in their column."""
    lines = Table.grid(padding=(0, gap, 0, 0))
    lines.add_column(no_wrap=True, overflow="fold")
    lines.add_column(overflow="fold")
    for name, value in rows:
        lines.add_row(name, Text(printable(value)))
    return Constrain(lines, min(_width(), most))


Column = tuple[str, str, Callable[[Any], Any]]


def numbered_columns(headings: Sequence[str], align: str = ">") -> list[Column]:
    """Return the columns of rows that are lists."""
    return [(heading, align, operator.itemgetter(i)) for i, heading in enumerate(headings)]


def tabulated(columns: Sequence[Column], rows: Sequence[Any]) -> list[RenderableType]:
    """Lay out a table whose cells are never cut, as arguments of :func:`say`.

    A column is its heading, of one line or two, its alignment "<" or ">", and a function of a row.
    Where the terminal is too narrow for the whole, the first column turns into headings of the
    rows that share it.
    """
    cells = [[printable(cell(row)) for _, _, cell in columns] for row in rows]
    widths = [
        max(map(cell_len, "\n".join((heading, *column)).split("\n")))
        for (heading, _, _), *column in zip(columns, *cells, strict=True)
    ]

    def fits(first: int, gap: int) -> bool:
        return sum(widths[first:]) + gap * (len(widths) - first - 1) <= _width()

    first = int(not fits(0, 2) and len({row[0] for row in cells}) < len(cells))
    padding = (0, int(fits(first, 2)), 0, 0)

    def part(rows: Iterable[list[str]], header: bool = True) -> Table:
        lines = Table(box=RULED, padding=padding, show_edge=False, show_header=header)
        for (heading, align, _), width in [*zip(columns, widths, strict=True)][first:]:
            look: dict[str, Any] = {"justify": "left" if align == "<" else "right"}
            look |= {"vertical": "bottom", "min_width": width, "no_wrap": True}
            lines.add_column(heading, **look)
        for row in rows:
            lines.add_row(*map(Text, row[first:]))
        return lines

    if not first:
        return [part(cells)]
    parts: list[RenderableType] = []
    for name, group in itertools.groupby(cells, operator.itemgetter(0)):
        parts += [Text(f"{columns[0][0]}: {name}", style="bold"), part(group, not parts)]
    return parts


def format_number(x: Any) -> str:
    """Format an error with two digits."""
    return re.sub(r"e([+-])0", r"e\1", f"{x:.1e}")


def format_range(value: Any) -> str:
    """Format one value, or the smallest and the largest of a stack."""
    value = np.asarray(value)
    text: Callable[[Any], str] = format_number if value.dtype.kind == "f" else str
    if value.size == 0:
        return "none"
    ends = (text(value.min().item()), text(value.max().item()))
    return " to ".join(dict.fromkeys(ends))


def format_shape(shape: Sequence[int]) -> str:
    """Format a shape as "m x n"."""
    return " x ".join(map(str, shape))
