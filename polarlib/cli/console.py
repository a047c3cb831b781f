"""The console: the application, what is read and written, and how tables are laid out."""

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
import time
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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

import polarlib
from polarlib import files
from polarlib.arrays.checks import nearest
from polarlib.arrays.entry import as_matrix, not_finite
from polarlib.arrays.formats import docstring, printable
from polarlib.files.plain import plain
from polarlib.files.whole import replaceable

SOFTWARE = 70  # exit code of an internal error: EX_SOFTWARE of sysexits.h


# What `compare` takes without a file: an easy one, one with a dominant direction, a very hard one.
REPRESENTATIVE = (
    "transformer_mlp_in_late",
    "transformer_attention_qkv_early",
    "digits_hidden2_late",
)
# The schedule whose steps `converge` shows and `compare` draws: the default of orthogonalize.
DEFAULT = "auto"
PROGRESS_AFTER = 2.0  # seconds after which a progress bar appears
PROGRESS_EVERY = 0.1  # seconds between its changes
PICTURES = (".png", ".pdf", ".svg")
UNLIMITED = 10_000  # columns of a pipe or a file
LONGEST = 400  # characters of a message
LONGEST_NAME = 60  # of a matrix in titles and names of plots
PROSE = 100  # columns of paragraphs
# A table without lines but the one below its head.
RULED = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
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
            code = complain("interrupted", INTERRUPTED)
        except Exception as error:
            if os.environ.get("POLARLIB_TRACEBACK"):
                raise
            code = complain(*_explained(error))
        for stream in (sys.stdout, sys.stderr):
            _finish(stream)
        sys.exit(code if isinstance(code, int) else 0)


def _explained(error: Exception) -> tuple[str, int]:
    """The message of an exception, and the exit code."""
    usage = getattr(error, "format_message", None)  # of the command line's parser
    if usage is not None:
        context = getattr(error, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context is not None else ""
        return " ".join(usage().split()).rstrip(".") + hint, 2
    if isinstance(error, MemoryError):
        text = str(error) or "the memory of this machine does not suffice"
        return text if ";" in text else f"{text}; take a smaller matrix", 2
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return where + error.strerror, 2
    if isinstance(error, ValueError | TypeError | OSError | ImportError):
        return str(error), 2
    text = " ".join(str(error).split())
    return (
        f"internal error, {type(error).__name__}: {text}; POLARLIB_TRACEBACK=1 shows where",
        SOFTWARE,
    )


def command(**extra: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
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
KINDS = ".npy, .npz, .safetensors, .mtx, .h5, .hdf5 or .zarr; FILE:name chooses an array"
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
        # A file name that the terminal's encoding lacks must not end the command.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # matplotlib reports on stderr where it keeps its fonts if there is no home.
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
    "Exit codes: 0 done, 1 failed to converge, 2 bad input, 130 interrupted.",
    epilog=f"Example: polarlib converge {REPRESENTATIVE[0]} --schedule jordan",
)
def _start(context: typer.Context, version: Version = False) -> None:
    if context.invoked_subcommand is None:
        say(*context.get_help().split("\n"))


@contextlib.contextmanager
def any_letters() -> Iterator[None]:
    """Draw names with letters that the font lacks without warnings of matplotlib."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def save_picture(ax: Any, path: Path) -> None:
    from polarlib import plot

    with any_letters():
        plot.save(ax, path)


def save_pictures(name: str, axes: Mapping[str, Any], folder: Path, suffix: str) -> list[Path]:
    """Write pictures of a matrix, by what they show, into a folder; their titles begin with it."""
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
    """A matrix or stack from a file, or a bundled matrix; checked, so that messages name it."""
    file, _ = files.split(source)
    # Files are read by their suffix: without one it can only be the name of a bundled matrix.
    if not file.exists() and not file.suffix:
        known = files.sample_matrices()
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
    matrix: np.ndarray = as_matrix(a, source)[0]
    return matrix


def check_outputs(
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
        if path.suffix.lower() in PICTURES:
            importlib.import_module("polarlib.plot")  # or the error that names its extra


def check_folder(folder: Path) -> None:
    """Refuse a folder that pictures cannot be written to, before anything is computed."""
    importlib.import_module("polarlib.plot")
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise ValueError(f"--plots {folder}: is a file; name a folder")
        check_outputs({"--plots": folder}, ())
    elif not os.access(folder, os.W_OK):
        raise ValueError(f"--plots {folder}: the folder cannot be written")


def write_named(outputs: Mapping[str, Path | None], write: Callable[[], None]) -> None:
    """Write, and name the option and the file if that fails."""
    try:
        write()
    except OSError as error:
        named = [f"{option} {path}" for option, path in outputs.items() if path is not None]
        (which,) = [n for n in named if n.endswith(f" {error.filename}")][:1] or named[:1]
        raise OSError(f"{which}: cannot be written: {error.strerror or error}") from error


# -- printing --------------------------------------------------------------------------------


def _finish(stream: IO[str] | None) -> None:
    """Flush a stream; where that fails, what the process still flushes at its end goes nowhere."""
    if stream is None:  # closed before the process began
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # a stream without a number
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _console(*, stderr: bool = False, width: int = UNLIMITED) -> Console:
    # As wide as the widest table by default: a terminal wraps lines, and rich would cut cells.
    # Sizes are given, as rich fails on a COLUMNS such as "0" or "²".
    size: dict[str, Any] = {"width": width, "height": 25}
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, **size)


def _width() -> int:
    """Columns of the terminal, or of COLUMNS where the output goes elsewhere; at least 20."""
    if not os.environ.get("COLUMNS") and not _console().is_terminal:
        return UNLIMITED
    return min(max(shutil.get_terminal_size((UNLIMITED, 25)).columns, 20), UNLIMITED)


def say(*parts: RenderableType) -> None:
    """Print lines as they are, with control characters escaped, and what rich lays out."""
    console = _console()  # which finds out what standard output can show
    console.file = text = io.StringIO()
    for part in parts:
        line = isinstance(part, str | Text)
        console.print(Text(printable(part)) if isinstance(part, str) else part, soft_wrap=line)
    _write(re.sub(r" +$", "", text.getvalue(), flags=re.MULTILINE))  # rich fills columns up


def say_json(document: dict[str, Any]) -> None:
    _write(json.dumps(plain(document), indent=2, allow_nan=False) + "\n")


def say_notes(notes: Sequence[str], mark: str = "!") -> None:
    if notes:
        say(grid([(mark, note) for note in dict.fromkeys(notes)], 1, PROSE))


def _write(text: str) -> None:
    if sys.stdout is None:  # closed before the process began
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader left early, as head does: not a failure
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
        with contextlib.suppress(OSError):  # nobody reads it
            sys.stderr.write(f"polarlib: {line}\n")
            sys.stderr.flush()
    return code


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect the library's warnings as notes for a footnote, in place of raw warnings."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    messages = (str(w.message) for w in caught if issubclass(w.category, UserWarning))
    notes.extend(dict.fromkeys(messages))


@contextlib.contextmanager
def progress_bar(total: int | None) -> Iterator[Callable[[str], None]]:
    """A bar on stderr, if that is a terminal and it takes long; called before each job.

    With an unknown total it shows that there is progress, and counts.
    """
    console = _console(stderr=True, width=_width())
    bar = Progress(
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
        auto_refresh=False,  # no thread of its own, which would disturb what is timed
    )
    task = bar.add_task("", total=total, completed=-1)
    next_look = time.monotonic() + PROGRESS_AFTER

    with contextlib.ExitStack() as stack:

        def advance(what: str) -> None:
            nonlocal next_look
            bar.update(task, advance=1, description=what)
            if console.is_terminal and time.monotonic() > next_look:
                if not bar.live.is_started:
                    stack.enter_context(bar)
                bar.refresh()
                next_look = time.monotonic() + PROGRESS_EVERY

        yield advance


def paragraph(text: str) -> RenderableType:
    return Constrain(Text(printable(text)), min(_width(), PROSE))


def grid(rows: Iterable[tuple[str, str]], gap: int = 2, most: int = UNLIMITED) -> RenderableType:
    """Lay out names and values in two columns; long values are wrapped in theirs."""
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
    """Two digits, which is what an error figure deserves."""
    return re.sub(r"e([+-])0", r"e\1", f"{x:.1e}")


def format_range(value: Any) -> str:
    """A figure, or the smallest and the largest of a stack."""
    value = np.asarray(value)
    text: Callable[[Any], str] = format_number if value.dtype.kind == "f" else str
    if value.size == 0:
        return "none"
    ends = (text(value.min().item()), text(value.max().item()))
    return " to ".join(dict.fromkeys(ends))


def format_shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
