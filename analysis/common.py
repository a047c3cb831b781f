"""The frame of the studies: comparison of computed with published values, and output.

A study is a folder with ``expected.json``, ``wrong.py``, ``README.md`` and ``run.py``, which ends
like this::

    def errors(out: Output, quick: bool) -> None:
        for n in out.steps((10, 20), "errors"):
            ...
        out.figure("worst error after five steps", value)
        out.table("errors", ["steps", "error"], rows)
        out.plot("convergence", fig, "Caption of the plot.")
        out.note("A remark for readers.")

    def study(out: Output, quick: bool) -> None:
        errors(out, quick)

    if __name__ == "__main__":
        main(study, __file__)

``expected.json`` has the published values, with tolerances and verdicts (verdicts.py). Exit codes:
0 every value passed, 1 one failed or is missing, 2 bad arguments, 3 a package is missing.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent))
from verdicts import NOT_RUN, VERDICTS, expected, judged


def need(*distributions: str) -> None:
    """Exit with code 3, in one line, if a distribution is not installed."""
    missing = []
    for name in distributions:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        sys.stderr.write(
            f"this study needs {' and '.join(missing)}: pip install 'polarlib[studies]'\n"
        )
        sys.exit(3)


need("matplotlib", "rich")  # before they are imported, here and in the studies

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402

from polarlib import plot  # noqa: E402
from polarlib.files.whole import write_whole  # noqa: E402

__all__ = [
    *("ONE_COLUMN", "Figure", "Output", "Study", "Wrong", "expected", "main", "need", "panels"),
    "run",
]

T = TypeVar("T")

ONE_COLUMN = 3.3  # inches: the width of plot.style("column")
DPI = 200
VERSIONS = ("polarlib", "numpy", "scipy", "matplotlib", "mpmath")


@dataclass(frozen=True)
class Wrong:
    """A wrong method that the checks of a study must notice.

    Parameters
    ----------
    method : str
        As ``wrong.method`` of the figures in expected.json has it.
    part : str
        Name of a function of run.py, which is called as ``part(out, True)``.
    replace : mapping
        Attributes of run.py that are replaced before.
    figures : tuple of str
        Those that must come out as "not reproduced".
    """

    method: str
    part: str
    replace: Mapping[str, Any]
    figures: tuple[str, ...]


def panels(
    rows: int = 1, columns: int = 1, *, height: float = 2.6, **how: Any
) -> tuple[Figure, np.ndarray]:
    """Make a figure with a grid of Axes.

    Parameters
    ----------
    rows, columns : int, optional
        Of the grid.
    height : float, optional
        In inches.
    **how
        For :meth:`matplotlib.figure.Figure.subplots`, sharex and sharey for instance.

    Returns
    -------
    fig : matplotlib.figure.Figure
    axes : ndarray of Axes, shape (rows * columns,)
        Row by row.
    """
    fig = Figure(figsize=(ONE_COLUMN, height), layout="constrained")
    return fig, fig.subplots(rows, columns, squeeze=False, **how).ravel()


class Output:
    """Results of a study: values, tables, plots and notes, written at its end."""

    def __init__(
        self, entries: Sequence[dict[str, Any]], *, quick: bool, progress: Progress | None = None
    ) -> None:
        self._entries = {entry["name"]: entry for entry in entries}
        self._quick = quick
        self._progress = progress
        self._values: dict[str, Any] = {}
        self._tables: list[dict[str, Any]] = []
        self._plots: list[dict[str, Any]] = []
        self._notes: list[str] = []
        self._files: dict[str, bytes] = {}

    def figure(self, name: str, value: Any) -> None:
        """Hand in a reproduced number, or a list of numbers, of a name in expected.json."""
        if name not in self._entries:
            raise ValueError(
                f"figure {name!r} is not in expected.json; known: {', '.join(self._entries)}"
            )
        if name in self._values:
            raise ValueError(f"figure {name!r} was handed in before")
        self._values[name] = value

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Hand in a table: a CSV file of that name."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"table {name!r} has {len(columns)} columns, got the row {row!r}")
            writer.writerow([v.item() if isinstance(v, np.generic) else v for v in row])
        self._tables.append({"name": name, "csv": self._file(name, "csv", text.getvalue())})

    def plot(self, name: str, fig: Figure, caption: str) -> None:
        """Hand in a picture: PNG, PDF and SVG files of that name."""
        picture = {"name": name, "caption": caption}
        for kind, dated in (("png", None), ("pdf", "CreationDate"), ("svg", "Date")):
            # Files of the same study are the same bytes: no date and no random names in them.
            stream = io.BytesIO()
            with matplotlib.rc_context({"svg.hashsalt": name}):
                dateless = None if dated is None else {dated: None}
                fig.savefig(stream, format=kind, dpi=DPI, metadata=dateless)
            picture[kind] = self._file(name, kind, stream.getvalue())
        self._plots.append(picture)

    def note(self, text: str) -> None:
        """Hand in a paragraph for the report."""
        self._notes.append(" ".join(text.split()))

    def _file(self, name: str, suffix: str, content: str | bytes) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            raise ValueError(f"{name!r} is no file name of small letters, digits, - and _")
        file = f"{name}.{suffix}"
        if file in self._files:
            raise ValueError(f"{file} was handed in before")
        self._files[file] = content.encode() if isinstance(content, str) else content
        return file

    def steps(self, things: Iterable[T], what: str) -> Iterator[T]:
        """Iterate over things, with a progress bar if the study runs at a terminal."""
        if self._progress is None:
            yield from things
            return
        things = list(things)
        task = self._progress.add_task(what, total=len(things))
        try:
            for thing in things:
                yield thing
                self._progress.advance(task)
        finally:
            self._progress.remove_task(task)

    def judged(self) -> list[dict[str, Any]]:
        """Every expected figure with its value, verdict, and whether it passed.

        What --quick leaves out is "not run", and passed is None.
        """
        rows = judged(list(self._entries.values()), self._values)
        for row in rows:
            if self._quick and not row["quick"]:
                row |= {"verdict": NOT_RUN, "passed": None}
        return rows

    def write(self, folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
        """Write everything, result.json last: each file whole or not at all.

        Returns
        -------
        dict
            What is in result.json.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in self._files.items():
            _put(folder / file, content)
        result = facts | {
            "figures": self.judged(),
            "tables": self._tables,
            "plots": self._plots,
            "notes": self._notes,
        }
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        _put(folder / "result.json", text.encode())
        return result


def _put(path: Path, content: bytes) -> None:
    def write(stream: IO[bytes]) -> None:
        stream.write(content)

    write_whole(path, write)


Study = Callable[[Output, bool], None]


def run(
    study: Study,
    script: str | Path,
    folder: Path,
    *,
    quick: bool,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run a study, write its files, and return what is in result.json.

    Parameters
    ----------
    study : callable
        ``study(out, quick)``.
    script : path-like
        The run.py; expected.json is in the same folder.
    folder : path-like
        Where to write; made if it does not exist.
    quick : bool
        Whether to compute only what takes seconds.
    progress : rich.progress.Progress, optional
        Where `Output.steps` draws its bars.

    Returns
    -------
    dict
        As in result.json.
    """
    script = Path(script).resolve()
    told = expected(script.with_name("expected.json"))
    name = script.parent.name
    out = Output(told["figures"], quick=quick, progress=progress)
    start = time.perf_counter()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # independent of the user's matplotlibrc
        with plot.style("column"):
            study(out, quick)
    facts = {
        "study": name,
        "title": told["title"],
        "source": told["source"],
        "claims": told["claims"],
        "command": f"python analysis/{name}/run.py" + " --quick" * quick,
        "quick": quick,
        "seconds": round(time.perf_counter() - start, 1),
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in (*VERSIONS, *told["needs"])},
    }
    return out.write(Path(folder), facts)


def main(study: Study, script: str | Path) -> NoReturn:
    """Run a study from the command line, and exit."""
    folder = Path(script).resolve().parent
    parser = argparse.ArgumentParser(
        description=f"Run the study {folder.name}, which its README.md describes."
    )
    parser.add_argument("--quick", action="store_true", help="compute only parts that take seconds")
    parser.add_argument("--json", action="store_true", help="print result.json")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        default=Path("analysis-output") / folder.name,
        help="where to write (default: %(default)s)",
    )
    options = parser.parse_args()
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out {options.out} is a file, not a folder")
    need(*expected(folder / "expected.json")["needs"])
    try:  # before minutes of work
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out} cannot be made: {error.strerror}")
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        result = run(study, script, options.out, quick=options.quick, progress=progress)
    if options.json:
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
        sys.stdout.write(text + "\n")
    else:
        sys.stdout.writelines(line + "\n" for line in _lines(result, options.out))
    sys.exit(int(any(figure["passed"] is False for figure in result["figures"])))


def _lines(result: dict[str, Any], folder: Path) -> Iterator[str]:
    """Yield the printed lines: one per value, and the number of values per verdict."""
    figures = result["figures"]
    for figure in figures:
        recorded = figure["recorded"]
        instead = f"; recorded: {recorded['value']}, {recorded['tolerance']}" if recorded else ""
        yield (
            f"{'FAILED  ' * (figure['passed'] is False)}{figure['verdict']:14}  {figure['name']}: "
            f"{figure['value']} ({figure['source_kind']}: {figure['published']}, "
            f"{figure['tolerance']}{instead})"
        )
    verdicts = [figure["verdict"] for figure in figures]
    yield ", ".join(f"{verdicts.count(word)} {word}" for word in VERDICTS)
    yield f"{result['seconds']} s; everything is in {folder}"
