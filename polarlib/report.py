"""One self-contained HTML page of the studies in ``analysis/``: published and computed values.

Every study writes a folder with ``result.json``, tables (CSV) and pictures (SVG and PNG).
:func:`collect` reads and checks them, :func:`render` makes the page, :func:`write` does both and
writes it::

    report.write("report.html", "analysis-output")

The page loads nothing: pictures, results and tables are inside it, the last two as downloads.
`value_text`, `tolerance_text`, `claim_rows` and `not_reproduced` word results for other pages too.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from polarlib._extras import require
from polarlib._version import __version__
from polarlib.files.whole import load_json, read_whole, write_whole

__all__ = ["collect", "render", "write"]

# A published number is met; an order or a bound is met; the value is outside; left out.
VERDICTS = ("reproduced", "consistent", "not reproduced", "not run")
MOST_FILES = 10_000  # in a folder of studies; one has about ten
LIMIT = 2**26  # bytes of a file of a study
PNG = b"\x89PNG\r\n\x1a\n"
# Rows of a table that the page shows; the file has all.
SHOWN = 40
TEMPLATE, STYLE, SCRIPT = "report.html.jinja", "page.css", "sort.js"

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
    """Write the studies under a folder as one HTML page, whole or not at all.

    Parameters
    ----------
    path : path-like
        The page.
    folder : path-like
        Folder of the studies' results.

    Returns
    -------
    list of dict
        For every study its name, the number of its values with each of the `VERDICTS`, and the
        number that failed: neither inside the tolerance nor equal to the recorded value.

    Raises
    ------
    OSError
        If a folder does not exist, or a file cannot be read or written.
    ValueError
        If there is no result, or one is malformed or lacks a file.
    ImportError
        If jinja2 is missing.

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
        As in the files, ordered by path, each with its file as ``json``, in base64; tables with
        columns, rows and file, plots with their picture, SVG or else PNG; and counts of the values
        by verdict, and of those that failed.

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


def render(studies: list[dict[str, Any]], links: Iterable[tuple[str, str]] = ()) -> str:
    """Return the page of what :func:`collect` returns.

    Parameters
    ----------
    studies : list of dict
        From :func:`collect`.
    links : iterable of (address, label), optional
        Links to other pages, for the navigation.

    Returns
    -------
    str
        HTML.

    Raises
    ------
    ImportError
        If jinja2 is missing.

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
    environment.filters |= {"text": value_text, "cell": _cell, "tolerance": tolerance_text}
    folder = resources.files("polarlib").joinpath("data")
    template, style, script = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in (TEMPLATE, STYLE, SCRIPT)
    )
    entries = [
        study | {"anchor": anchor, "rows": claim_rows(study)}
        for study, anchor in zip(studies, _anchors(studies), strict=True)
    ]
    digest = hashlib.sha256(script.encode()).digest()
    return environment.from_string(template).render(
        studies=entries,
        differences=[(s, v) for s in entries for v in not_reproduced(s)],
        omitted=[(s, c) for s in entries for c in s["claims"] if not c["figures"]],
        links=tuple(links),
        verdicts=VERDICTS,
        shown=SHOWN,
        style=style,
        script=script,
        script_hash=base64.b64encode(digest).decode(),
        version=__version__,
    )


def _anchors(studies: list[dict[str, Any]]) -> list[str]:
    """Return an id for the section of each study, from its name where that is unique."""
    found: list[str] = []
    for k, study in enumerate(studies, 1):
        name = "study-" + re.sub(r"[^a-z0-9]+", "-", study["study"].lower()).strip("-")
        found.append(f"{name}-{k}" if name in found or name == "study-" else name)
    return found


def _read(file: Path) -> dict[str, Any]:
    """Return one checked result with its tables and pictures."""
    content = read_whole(file, LIMIT)
    study = load_json(content, file)
    if not isinstance(study, dict):
        raise _malformed(file, "is not an object with the results of a study")
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
        "json": _base64(content),
        "tables": [table | _table(file, table["csv"]) for table in tables],
        "plots": [plot | _picture(file, plot) for plot in plots],
    }


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


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
    """Return the content of a file in the folder of the result that names it."""
    if not isinstance(name, str) or Path(name).name != name:
        raise _malformed(file, f"names the {what} {name!r}, which is not a file name")
    path = file.with_name(name)
    try:
        return read_whole(path, LIMIT)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _malformed(file, f"its {what} {name} cannot be read ({reason})") from None


def _picture(file: Path, plot: dict[str, Any]) -> dict[str, str]:
    """Return the picture of a plot: its SVG file where the result names one."""
    name = plot.get("svg", plot["png"])
    content = _beside(file, name, "picture")
    if "svg" in plot:
        if not re.match(rb"\s*(<\?xml|<svg)", content) or b"<svg" not in content:
            raise _malformed(file, f"its picture {name} is not an SVG file")
    elif not content.startswith(PNG):
        raise _malformed(file, f"its picture {name} is not a PNG file")
    kind = "image/svg+xml" if "svg" in plot else "image/png"
    return {"kind": kind, "base64": _base64(content)}


def _table(file: Path, name: Any) -> dict[str, Any]:
    content = _beside(file, name, "table")
    try:
        rows = list(csv.reader(io.StringIO(content.decode("utf-8"), newline="")))
    except (ValueError, csv.Error) as error:
        raise _malformed(file, f"its table {name} is not a CSV file ({error})") from None
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise _malformed(file, f"its table {name} has no rows, or rows of several lengths")
    return {"columns": rows[0], "rows": rows[1:], "base64": _base64(content)}


def value_text(value: Any) -> str:
    """Return a number or a list of numbers as text with six digits; near 1, the distance from 1.

    Examples
    --------
    >>> value_text([1, 0.1 + 0.2, None]), value_text(1 - 2e-9)
    ('1, 0.3, none', '1 − 2e-09')
    """
    if isinstance(value, list):
        return ", ".join(map(value_text, value))
    if value is None:
        return "none"
    if not isinstance(value, float):
        return str(value)
    if 0 < abs(value - 1) < 1e-4:
        return f"1 {'−' if value < 1 else '+'} {abs(value - 1):.2g}"
    return f"{value:.6g}"


def _cell(text: str) -> str:
    """Return a cell of a table with six digits.

    Examples
    --------
    >>> _cell("0.30000000000000004"), _cell("7"), _cell("jordan")
    ('0.3', '7', 'jordan')
    """
    try:
        return text if text.lstrip("-").isdigit() else f"{float(text):.6g}"
    except ValueError:
        return text


def tolerance_text(tolerance: dict[str, Any]) -> str:
    """Return a tolerance as text.

    Examples
    --------
    >>> tolerance_text({"relative": 0.01}), tolerance_text({"at_least": 1, "at_most": 2})
    ('± relative 0.01', '≥ 1, ≤ 2')
    """
    signs = {"absolute": "±", "relative": "± relative", "at_least": "≥", "at_most": "≤"}
    return ", ".join(
        f"{signs.get(key, key)} {value:.4g}" if isinstance(value, float | int) else f"{key} {value}"
        for key, value in tolerance.items()
    )


def claim_rows(study: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the claims of a study with the values that bear on each, as texts.

    Parameters
    ----------
    study : dict
        As result.json has it, its values with their verdicts.

    Returns
    -------
    list of dict
        For each claim ``claimed``, ``condition`` and ``values``: of each its ``name``,
        ``computed``, ``verdict``, ``passed``, and ``published``, which is empty where no source
        published a number.

    Examples
    --------
    >>> value = {"name": "e", "value": 0.5, "published": None, "source_kind": "paper"}
    >>> value |= {"verdict": "consistent", "passed": True}
    >>> claim = {"claimed": "It converges.", "figures": ["e"], "condition": "If E < 1."}
    >>> claim_rows({"figures": [value], "claims": [claim]})[0]["values"][0]["computed"]
    '0.5'
    """
    by_name = {figure["name"]: figure for figure in study["figures"]}
    rows = []
    for claim in study["claims"]:
        values = [
            {
                "name": name,
                "computed": value_text(by_name[name]["value"]),
                "published": _published_text(by_name[name]),
                "verdict": by_name[name]["verdict"],
                "passed": by_name[name]["passed"],
            }
            for name in claim["figures"]
            if name in by_name
        ]
        rows.append(
            {"claimed": claim["claimed"], "condition": claim["condition"], "values": values}
        )
    return rows


def _published_text(figure: dict[str, Any]) -> str:
    if figure["published"] is None or figure["source_kind"] not in ("paper", "code"):
        return ""
    return value_text(figure["published"])


def not_reproduced(study: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the values of a study whose verdict is "not reproduced".

    Examples
    --------
    >>> not_reproduced({"figures": [{"name": "e", "verdict": "consistent"}]})
    []
    """
    return [figure for figure in study["figures"] if figure["verdict"] == VERDICTS[2]]
