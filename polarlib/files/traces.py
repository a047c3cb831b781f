"""Traces as CSV files: one row per step, read back exactly."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from polarlib.arrays import checks
from polarlib.arrays.entry import is_host_array
from polarlib.files.whole import read_whole, write_whole

LIMIT = 2**28  # bytes of a file that is read; a step has about 40 per singular value
# Columns: quantities of the step; quantities of each singular value, numbered from 1; and, equal in
# all rows, the metadata of the trace, so that files of several traces can be joined to one table.
QUANTITIES = ("matmuls", "orthogonality", "backward_error", "distance")
PATHS = {"sigma": "singular_values", "alignment": "alignment"}
ABOUT = ("method", "precision", "form", "shape", "simulated")


def write_trace(path: str | os.PathLike[str], fields: Mapping[str, Any]) -> None:
    """Write the fields of a trace, whole or not at all."""
    counted = range(1, fields["singular_values"].shape[1] + 1)
    head = ["step", *QUANTITIES, *(f"{name}_{i}" for name in PATHS for i in counted), *ABOUT]
    shape = "x".join(map(str, fields["shape"]))
    about = [shape if name == "shape" else str(fields[name]) for name in ABOUT]

    def write(file: IO[bytes]) -> None:
        # UTF-8 on every system, and line ends as the csv module writes them.
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(head)
        for step in range(len(fields["matmuls"])):
            values = [fields[name][step] for name in QUANTITIES]
            values += [v for name in PATHS.values() for v in fields[name][step]]
            # repr writes the fewest digits that are read back as the same double.
            rows.writerow([step, *(repr(v.item()) for v in values), *about])
        text.flush()
        text.detach()  # otherwise the wrapper would close the file before it is synced

    write_whole(path, write)


def read_trace(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the fields of a trace that :func:`write_trace` wrote, as lists.

    Raises
    ------
    ValueError
        If the file is not such a table; the message has its name and the row.
    OSError
        If the file cannot be read.
    """
    at = os.fsdecode(path)
    try:
        text = read_whole(path, LIMIT).decode("utf-8")
        head, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "reason", error)  # without the name of a codec
        raise ValueError(f"{at}: is not a CSV file in UTF-8: {why}") from None
    except ValueError as error:
        if str(error).startswith(at):
            raise
        raise ValueError(f"{at}: is empty") from None
    missing = [name for name in ("step", *QUANTITIES, *ABOUT) if name not in head]
    if missing or len(set(head)) < len(head):
        what = f"the columns {', '.join(missing)} are missing" if missing else "columns occur twice"
        raise ValueError(f"{at}: is not a file of Trace.to_csv: {what}")
    k = sum(name.startswith("sigma_") for name in head)
    paths = {name: [f"{name}_{i + 1}" for i in range(k)] for name in PATHS}
    if set(head) != {"step", *QUANTITIES, *ABOUT, *paths["sigma"], *paths["alignment"]}:
        raise ValueError(
            f"{at}: is not a file of Trace.to_csv: expected columns sigma_1 to sigma_{k} and "
            f"alignment_1 to alignment_{k}, and no others"
        )
    if not rows:
        raise ValueError(f"{at}: has no steps")
    fields: dict[str, Any] = {name: [] for name in (*QUANTITIES, *PATHS.values())}
    about = None
    for number, cells in enumerate(rows):
        row = f"{at}: row {number + 2}"
        if len(cells) != len(head):
            raise ValueError(f"{row}: expected {len(head)} cells, got {len(cells)}")
        by_name = dict(zip(head, cells, strict=True))
        of_row = {name: by_name.pop(name) for name in ABOUT}
        about = about or of_row
        if by_name["step"] != str(number) or of_row != about:
            raise ValueError(
                f"{row}: expected step {number} of the same trace, got step {by_name['step']!r}; "
                "a file holds one trace"
            )
        try:
            fields["matmuls"].append(int(by_name["matmuls"]))
            for name in QUANTITIES[1:]:
                fields[name].append(float(by_name[name]))
            for name, columns in paths.items():
                fields[PATHS[name]].append([float(by_name[c]) for c in columns])
        except ValueError as error:
            raise ValueError(f"{row}: {error}") from None
    return fields | _about(about or {}, at)


def _about(cells: Mapping[str, str], at: str) -> dict[str, Any]:
    try:
        shape = tuple(map(int, cells["shape"].split("x")))
        simulated = {"True": True, "False": False}[cells["simulated"]]
    except (ValueError, KeyError):
        raise ValueError(
            f"{at}: expected a shape such as 64x16 and True or False for simulated, got "
            f"{cells['shape']!r} and {cells['simulated']!r}"
        ) from None
    return {**cells, "shape": shape, "simulated": simulated}


# Number of axes of each field of a trace; fields with two axes have one column per singular value.
_AXES = {
    "matmuls": 1,
    "singular_values": 2,
    "alignment": 2,
    "orthogonality": 1,
    "backward_error": 1,
    "distance": 1,
}


def checked_trace(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a trace, checked against each other, as arrays."""
    checked = dict(fields)
    for name in ("method", "precision", "form"):
        checked[name] = checks.text(name, checked[name])
    checked["shape"] = checks.pair("shape", checked["shape"])
    checked["simulated"] = checks.flag("simulated", checked["simulated"])
    for name, axes in _AXES.items():
        checked[name] = _numbers(name, checked[name], axes, whole=name == "matmuls")
    steps, k = len(checked["matmuls"]), min(checked["shape"])
    for name, axes in _AXES.items():
        wanted = (steps, k)[:axes]
        if checked[name].shape != wanted or not steps:
            raise ValueError(
                f"{name} must have the shape {wanted} of matmuls and shape, with at least one "
                f"row, got {checked[name].shape}"
            )
    return checked


def _numbers(name: str, values: Any, axes: int, *, whole: bool) -> np.ndarray:
    """Return nested lists of numbers as an array; None is NaN."""
    if is_host_array(values):
        values = values.tolist()
    what = f"{'lists' if axes == 2 else 'a list'} of {'counts' if whole else 'numbers'}"
    rows = checks.items(name, values, what, 0, checks.LONGEST_LIST)
    if axes == 2:
        parts = [_numbers(name, row, 1, whole=whole) for row in rows]
        if len({len(part) for part in parts}) > 1:
            raise ValueError(f"{name} must be lists of equal length, got {checks.shown(values)}")
        return np.array(parts, dtype=float).reshape(len(parts), -1)
    if whole:
        return np.array([checks.count(name, v, 0, 2**62) for v in rows], dtype=int)
    finite = [np.nan if v is None else checks.double(v) for v in rows]
    if None in finite:
        raise ValueError(f"{name} must be {what}, got {checks.shown(values)}")
    return np.array(finite, dtype=float)
