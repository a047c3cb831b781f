"""The frame of the studies: a study computes, and this compares with what was published.

A study is a folder with ``expected.json`` and ``run.py``, which ends like this::

    def study(out: Output, quick: bool) -> None:
        out.figure("worst error after five steps", value)
        out.table("errors", ["steps", "error"], rows)
        out.plot("convergence", fig, "What the picture shows.")
        out.note("What a reader should know.")

    if __name__ == "__main__":
        main(study, __file__)

``expected.json`` has a title, a source, and figures: name, published (a number or a list, absent
where a bound alone is claimed), where, tolerance, quick, why, and source_kind, one of `KINDS`.
Exit codes: 0 every figure inside its tolerance, 1 one outside or missing, 2 bad arguments.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import numbers
import platform
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NoReturn

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from polarlib import plot
from polarlib.files.plain import plain
from polarlib.files.whole import write_whole

__all__ = ["ONE_COLUMN", "TWO_COLUMNS", "Output", "Study", "expected", "main", "panels", "run"]

# Where a published figure was found. "own" is no published one: an earlier measurement of ours, or
# an exact mathematical value.
KINDS = ("paper", "code", "design note", "own")
ONE_COLUMN, TWO_COLUMNS = 3.3, 7.0  # inches: the widths of plot.style
DPI = 200
VERSIONS = ("polarlib", "numpy", "scipy", "matplotlib", "mpmath")


def panels(
    rows: int = 1, columns: int = 1, *, width: float = ONE_COLUMN, height: float = 2.6, **how: Any
) -> tuple[Figure, np.ndarray]:
    """Make a figure with a grid of Axes.

    Parameters
    ----------
    rows, columns : int, optional
        Of the grid.
    width, height : float, optional
        In inches.
    **how
        For :meth:`matplotlib.figure.Figure.subplots`, sharex and sharey for instance.

    Returns
    -------
    fig : matplotlib.figure.Figure
    axes : ndarray of Axes, shape (rows * columns,)
        Row by row.
    """
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.subplots(rows, columns, squeeze=False, **how).ravel()


class Output:
    """What a study hands in: figures, tables, plots and notes, written at its end."""

    def __init__(self, entries: Sequence[dict[str, Any]], *, quick: bool) -> None:
        self._entries = {entry["name"]: entry for entry in entries}
        self._quick = quick
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
        """Hand in a picture: PNG and PDF files of that name."""
        picture = {"name": name, "caption": caption}
        for kind in ("png", "pdf"):
            # Files of the same study are the same bytes: no date in them.
            dateless = {"CreationDate": None} if kind == "pdf" else None
            stream = io.BytesIO()
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

    def judged(self) -> list[dict[str, Any]]:
        """Every expected figure with its value; within is None for what --quick leaves out."""
        rows = []
        for name, entry in self._entries.items():
            value = self._values.get(name)
            due = entry["quick"] or not self._quick
            # In JSON NaN becomes None, so the judgement comes first.
            within = _within(value, entry) if due else None
            rows.append(entry | {"value": plain(value), "within": within})
        return rows

    def write(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write everything, result.json last: each file whole or not at all."""
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


def _put(path: Path, content: bytes) -> None:
    def write(stream: IO[bytes]) -> None:
        stream.write(content)

    write_whole(path, write)


Study = Callable[[Output, bool], None]


def _within(value: Any, entry: dict[str, Any]) -> bool:
    """Whether a value, or every entry of a list, is inside the tolerance; NaN never is."""
    if value is None:
        return False
    ours = np.asarray(value, dtype=float)
    tolerance = entry["tolerance"]
    inside = np.isfinite(ours)
    if "at_most" in tolerance:
        inside &= ours <= tolerance["at_most"]
    if "at_least" in tolerance:
        inside &= ours >= tolerance["at_least"]
    if not {"at_most", "at_least"} & set(tolerance):
        published = np.asarray(entry["published"], dtype=float)
        if ours.shape != published.shape:
            return False
        if "absolute" in tolerance:
            inside &= np.abs(ours - published) <= tolerance["absolute"]
        elif "relative" in tolerance:
            inside &= np.abs(ours - published) <= tolerance["relative"] * np.abs(published)
        else:
            factor = tolerance["factor"]
            inside &= (published <= factor * ours) & (ours <= factor * published)
    return bool(inside.all() and ours.size)


def expected(path: Path) -> dict[str, Any]:
    """Read and check an expected.json.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    dict
        Title, source, figures, each figure with every key.

    Raises
    ------
    ValueError
        If it does not say what it must; the message names the file and the figure.
    """
    told = json.loads(Path(path).read_text(encoding="utf-8"))

    def require(right: bool, what: str) -> None:
        if not right:
            raise ValueError(f"{path}: {what}")

    require(set(told) == {"title", "source", "figures"}, "needs title, source and figures")
    figures: list[dict[str, Any]] = []
    for given in told["figures"]:
        entry = {"source_kind": "paper", "quick": False, "published": None} | given
        name = entry.get("name")
        keys = {"name", "published", "where", "tolerance", "quick", "why", "source_kind"}
        require(set(entry) == keys, f"figure {name!r} needs exactly {', '.join(sorted(keys))}")
        kind = entry["source_kind"]
        require(kind in KINDS, f"figure {name!r}: source_kind {kind!r} is none of {KINDS}")
        tolerance, limits = entry["tolerance"], {"at_most", "at_least"}
        numeric = all(
            isinstance(v, numbers.Real) and math.isfinite(float(v)) for v in tolerance.values()
        )
        bounded = bool(tolerance) and set(tolerance) <= limits
        near = len(tolerance) == 1 and set(tolerance) <= {"absolute", "relative", "factor"}
        require(
            numeric and (bounded or near),
            f"figure {name!r}: tolerance is absolute, relative or factor, or at_most and at_least, "
            f"with numbers, got {tolerance}",
        )
        require(bounded or entry["published"] is not None, f"figure {name!r} has nothing published")
        require(name not in [f["name"] for f in figures], f"figure {name!r} comes twice")
        figures.append(entry)
    return {"title": told["title"], "source": told["source"], "figures": figures}


def run(study: Study, script: str | Path, folder: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Run a study, write its files, and return its figures with their judgements.

    Parameters
    ----------
    study : callable
        ``study(out, quick)``.
    script : path-like
        The run.py; expected.json lies beside it.
    folder : path-like
        Where to write; made if it does not exist.
    quick : bool
        Whether to compute only what takes seconds.

    Returns
    -------
    list of dict
        As in result.json.
    """
    script = Path(script).resolve()
    told = expected(script.with_name("expected.json"))
    name = script.parent.name
    out = Output(told["figures"], quick=quick)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
        with plot.style("page"):
            study(out, quick)
    facts = {
        "study": name,
        "title": told["title"],
        "source": told["source"],
        "command": f"python analysis/{name}/run.py" + " --quick" * quick,
        "quick": quick,
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in VERSIONS},
    }
    out.write(Path(folder), facts)
    return out.judged()


def main(study: Study, script: str | Path) -> NoReturn:
    """Run a study from the command line; never returns."""
    name = Path(script).resolve().parent.name
    parser = argparse.ArgumentParser(description=f"The study {name}; its README.md says what of.")
    parser.add_argument("--quick", action="store_true", help="compute only what takes seconds")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        default=Path("analysis-output") / name,
        help="where to write (default: %(default)s)",
    )
    options = parser.parse_args()
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out {options.out} is a file, not a folder")
    figures = run(study, script, options.out, quick=options.quick)
    for figure in figures:
        mark = {True: "within ", False: "OUTSIDE", None: "not run"}[figure["within"]]
        sys.stdout.write(
            f"{mark}  {figure['name']}: {figure['value']} "
            f"({figure['source_kind']}: {figure['published']}, {figure['tolerance']})\n"
        )
    sys.stdout.write(f"{len(figures)} figures; everything is in {options.out}\n")
    sys.exit(any(figure["within"] is False for figure in figures))
