"""One self-contained HTML page of the studies in ``analysis/``: what was published, what came out.

Every study writes a folder with ``result.json``, tables (CSV) and pictures (PNG). :func:`collect`
reads and checks them, :func:`render` makes the page, :func:`write` does both and writes it::

    report.write("report.html", "analysis-output")

The page names no other file and no address that a browser would load: pictures are inlined.
"""

from __future__ import annotations

import base64
import csv
import io
import os
from importlib import resources
from pathlib import Path
from typing import Any

from polarlib._extras import require
from polarlib.files.whole import load_json, read_whole, write_whole

__all__ = ["collect", "render", "write"]

# A published number is met; an order, a bound or a number of ours is; ours is outside; left out.
VERDICTS = ("reproduced", "consistent", "not reproduced", "not run")
MOST_FILES = 10_000  # in a folder of studies; one has about ten
LIMIT = 2**26  # bytes of a file of a study
PNG = b"\x89PNG\r\n\x1a\n"
# Rows of a table that the page shows; the file has all.
SHOWN = 40
TEMPLATE = "data/report.html.jinja"

_KEYS: dict[str, type] = {
    **dict.fromkeys(("study", "title", "source", "command"), str),
    "quick": bool,
    "versions": dict,
    **dict.fromkeys(("claims", "figures", "tables", "plots", "notes"), list),
}
_FIGURE_KEYS = (
    *("name", "value", "published", "where", "source_kind"),
    *("tolerance", "why", "wrong", "recorded", "verdict", "passed", "quick"),
)


def write(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Collect the studies under a folder into one HTML page, written whole or not at all.

    Parameters
    ----------
    path : path-like
        Where the page is to be.
    folder : path-like
        Where the studies wrote, ``analysis-output`` by default.

    Returns
    -------
    list of dict
        For every study its name, how many of its figures have each of the `VERDICTS`, and how
        many failed: are neither inside their tolerances nor the value that is recorded.

    Raises
    ------
    OSError
        If a folder does not exist, or a file cannot be read or written.
    ValueError
        If there is no result, or one is malformed or lacks a file.

    Examples
    --------
    >>> write("report.html", "no-such-folder")
    Traceback (most recent call last):
    ...
    FileNotFoundError: no-such-folder: no such folder; run a study first, ...
    """
    path = Path(path)
    studies = collect(folder)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder; make it first")
    page = render(studies).encode("utf-8", "backslashreplace")  # JSON may hold lone surrogates
    write_whole(path, lambda file: file.write(page))
    return [{"study": s["study"], "quick": s["quick"]} | s["counts"] for s in studies]


def collect(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read and check every ``result.json`` under a folder, with its tables and pictures.

    Parameters
    ----------
    folder : path-like
        Searched with its subfolders.

    Returns
    -------
    list of dict
        As in the files, ordered by path; tables with their columns and rows, plots with their
        PNG in base64, and counts of the figures by verdict, and of those that failed.

    Raises
    ------
    OSError
        If the folder does not exist or a file cannot be read.
    ValueError
        If there is no result, or one is malformed or lacks a file.

    Examples
    --------
    >>> collect("no-such-folder")
    Traceback (most recent call last):
    ...
    FileNotFoundError: no-such-folder: no such folder; run a study first, ...
    """
    folder = Path(folder)
    hint = "run a study first, as in python analysis/polar_express/run.py"
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder; {hint}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: is a file; name the folder that the studies wrote")
    found, seen = [], 0
    for root, folders, names in os.walk(folder):
        seen += len(folders) + len(names)
        if seen > MOST_FILES:
            raise ValueError(f"{folder}: holds more than {MOST_FILES} files; {hint}")
        found += [Path(root, name) for name in names if name == "result.json"]
    if not found:
        raise ValueError(f"{folder}: holds no result.json; {hint}")
    return [_read(file) for file in sorted(found)]


def render(studies: list[dict[str, Any]]) -> str:
    """Make the page of what :func:`collect` returns.

    Parameters
    ----------
    studies : list of dict
        From :func:`collect`.

    Returns
    -------
    str
        HTML.

    Examples
    --------
    >>> "nothing to show" in render([])
    True
    """
    require("polarlib.report", "cli", "jinja2")
    import jinja2

    # Text of results is not HTML, and a key that the template misses is an error, not empty.
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": _number, "cell": _cell, "tolerance": _tolerance}
    text = resources.files("polarlib").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(text).render(studies=studies, verdicts=VERDICTS, shown=SHOWN)


def _read(file: Path) -> dict[str, Any]:
    """One checked result with what belongs to it."""
    study = load_json(read_whole(file, LIMIT), file)
    if not isinstance(study, dict):
        raise _malformed(file, "is no object with the results of a study")
    for key, kind in _KEYS.items():
        if not isinstance(study.get(key), kind):
            raise _malformed(file, f"needs {key!r}, of type {kind.__name__}")
    figures, tables, plots = study["figures"], study["tables"], study["plots"]
    _need(file, "claims", study["claims"], ("claimed", "figures", "condition"))
    _need(file, "figures", figures, _FIGURE_KEYS)
    _need(file, "tables", tables, ("name", "csv"))
    _need(file, "plots", plots, ("name", "png", "caption"))
    for figure in figures:
        recorded = figure["recorded"]
        kinds = {
            "tolerance": isinstance(figure["tolerance"], dict),
            "wrong": _has(figure["wrong"], "method", "value"),
            "recorded": recorded is None or _has(recorded, "value", "tolerance", "because"),
            "verdict": figure["verdict"] in VERDICTS,
            "passed": figure["passed"] in (True, False, None),
        }
        wrong = [key for key, right in kinds.items() if not right]
        if wrong:
            raise _malformed(file, f"figure {figure['name']!r} has another kind of {wrong[0]}")
        for key in ("value", "published"):
            values = figure[key] if isinstance(figure[key], list) else [figure[key]]
            if any(isinstance(value, list | dict) for value in values):
                raise _malformed(file, f"figure {figure['name']!r}: {key} must be a number or list")
    verdicts = [figure["verdict"] for figure in figures]
    counts = {word: verdicts.count(word) for word in VERDICTS}
    counts["failed"] = sum(figure["passed"] is False for figure in figures)
    return study | {
        "counts": counts,
        "tables": [table | _table(file, table["csv"]) for table in tables],
        "plots": [plot | {"base64": _picture(file, plot["png"])} for plot in plots],
    }


def _has(entry: Any, *keys: str) -> bool:
    return isinstance(entry, dict) and set(entry) == set(keys)


def _malformed(file: Path, what: str) -> ValueError:
    return ValueError(f"{file}: {what}; run the study again")


def _need(file: Path, what: str, entries: list[Any], keys: tuple[str, ...]) -> None:
    for entry in entries:
        for key in keys:
            if not isinstance(entry, dict) or key not in entry:
                raise _malformed(file, f"an entry of {what!r} lacks {key!r}")


def _beside(file: Path, name: Any, what: str) -> bytes:
    """A file in the same folder as the result that names it, and nowhere else."""
    if not isinstance(name, str) or Path(name).name != name:
        raise _malformed(file, f"names the {what} {name!r}, which is no file name")
    path = file.with_name(name)
    try:
        return read_whole(path, LIMIT)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _malformed(file, f"its {what} {name} cannot be read ({reason})") from None


def _picture(file: Path, name: Any) -> str:
    content = _beside(file, name, "picture")
    if not content.startswith(PNG):
        raise _malformed(file, f"its picture {name} is no PNG file")
    return base64.b64encode(content).decode("ascii")


def _table(file: Path, name: Any) -> dict[str, Any]:
    content = _beside(file, name, "table")
    try:
        rows = list(csv.reader(io.StringIO(content.decode("utf-8"), newline="")))
    except (ValueError, csv.Error) as error:
        raise _malformed(file, f"its table {name} is no CSV file ({error})") from None
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise _malformed(file, f"its table {name} has no rows, or rows of several lengths")
    return {"columns": rows[0], "rows": rows[1:]}


def _number(value: Any) -> str:
    """A number or a list of numbers as people read it; a dash for what is missing.

    Examples
    --------
    >>> _number([1, 0.1 + 0.2, None])
    '1, 0.3, –'
    """
    if isinstance(value, list):
        return ", ".join(map(_number, value))
    if value is None:
        return "–"
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    """A cell of a table, without the digits that are for programs.

    Examples
    --------
    >>> _cell("0.30000000000000004"), _cell("7"), _cell("jordan")
    ('0.3', '7', 'jordan')
    """
    try:
        return text if text.lstrip("-").isdigit() else f"{float(text):.6g}"
    except ValueError:
        return text


def _tolerance(tolerance: dict[str, float]) -> str:
    """A tolerance in words.

    Examples
    --------
    >>> _tolerance({"relative": 0.01}), _tolerance({"at_least": 1, "at_most": 2})
    ('within 0.01 of itself', 'at least 1 and at most 2')
    """
    words = {"absolute": "within", "relative": "within", "factor": "within a factor of"}
    words |= {"at_least": "at least", "at_most": "at most"}
    after = {"relative": " of itself"}
    return " and ".join(
        f"{words.get(key, key)} {_number(v)}{after.get(key, '')}" for key, v in tolerance.items()
    )
