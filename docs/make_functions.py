"""docs/evidence/functions.md: which function accepts which arrays and transformations.

    python docs/make_functions.py
    python docs/make_functions.py --page

calls every function of docs/make_transformations.py on every array library in every dtype, each
library in its own process. The outcomes go to docs/data/functions.json; the page and the table of
docs/guide/arrays.md are made from that file and from docs/data/transformations.json. ``--page``
calls nothing and makes both from the data. ``--check`` compares and writes nothing. A result is
correct only if it has the library and the dtype of its argument (float64 for integers) and agrees
with NumPy's in double precision at the same matrix, to the tolerance of the format below.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import make_transformations as transformations

PAGE = Path(__file__).parent / "evidence" / "functions.md"
GUIDE = Path(__file__).parent / "guide" / "arrays.md"
DATA = Path(__file__).parent / "data" / "functions.json"
TESTS = Path(__file__).parents[1] / "tests"
LIBRARIES = {
    "numpy": "NumPy",
    "cupy": "CuPy",
    "torch": "torch",
    "jax": "JAX",
    "dask": "Dask",
}
# Largest difference from the result in double precision. The schedule "auto" and its error depend
# on the format.
DTYPES = {
    "float16": 0.06,
    "bfloat16": 0.12,
    "float32": 0.01,
    "float64": 1e-9,
    "complex64": 0.01,
    "complex128": 1e-9,
    "int64": 1e-9,
}
# Groups of dtypes, as the page has them.
GROUPS = {
    "16 bits": ("float16", "bfloat16"),
    "32": ("float32",),
    "64": ("float64",),
    "complex": ("complex64", "complex128"),
    "integers": ("int64",),
}


class Column(NamedTuple):
    """A column of the page, from the data of docs/evidence/transformations.md."""

    title: str
    part: str
    labels: tuple[str, ...]


COLUMNS = (
    Column("jit", "jax", ("jit", "lax.scan")),
    Column("vmap", "jax", ("vmap", "jit(vmap)")),
    Column("grad", "jax", ("grad", "jit(vmap(grad))")),
    Column("sharded", "mesh", ("automatic mesh, rows",)),
    Column("compile", "torch", ("compile",)),
    Column("vmap", "torch", ("vmap", "vmap(grad)")),
    Column("grad", "torch", ("backward", "func.grad")),
    Column("DTensor", "dtensor", ("rows",)),
)


# -- calls -----------------------------------------------------------------------------------------


def matrix(shape: tuple[int, int], dtype: str) -> np.ndarray:
    """Return a matrix with well-separated singular values, valid for every function."""
    a = transformations.matrices(shape, 2)
    if dtype.startswith("complex"):
        return (a[0] + 0.4j * a[1]).astype(dtype)
    if dtype == "int64":
        return np.rint(8 * a[0]).astype(dtype)
    return a[0].astype(getattr(ml_dtypes, dtype, dtype))


@contextlib.contextmanager
def opened(library: str) -> Iterator[tuple[Callable[[Any], Any], Callable[[Any], Any]]]:
    """Return the conversions from NumPy to the library and back."""
    if library == "numpy":
        yield np.asarray, np.asarray
    elif library == "cupy":
        sys.path.insert(0, str(TESTS))
        from standin import cupy_standin

        with cupy_standin.installed() as cupy:
            yield cupy.asarray, lambda x: x.get()
    elif library == "torch":
        import torch

        def to(a: np.ndarray) -> Any:
            if a.dtype == ml_dtypes.bfloat16:
                return torch.from_numpy(a.astype(np.float32)).to(torch.bfloat16)
            return torch.from_numpy(a.copy())

        yield to, lambda x: x.float().numpy() if x.dtype is torch.bfloat16 else x.numpy()
    elif library == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
        yield jax.numpy.asarray, np.asarray
    else:
        import dask.array

        yield lambda a: dask.array.from_array(a, chunks=a.shape), lambda x: np.asarray(x.compute())


def name_of(x: Any) -> str:
    return str(x.dtype).removeprefix("torch.")


def called(function: Callable[[Any], Any], a: np.ndarray, dtype: str, library: str) -> str:
    """Return 'works', the message of an error of polarlib, or 'fails' with the outcome."""
    wide = "complex128" if np.iscomplexobj(a) else "float64"
    with opened(library) as (to, back):

        def run() -> None:
            x = to(a)
            y = function(x)
            wanted = transformations.flat(function(a.astype(wide)))
            parts = y if isinstance(y, (tuple, list)) else [y]
            real = {"complex64": "float32", "complex128": "float64"}.get(dtype)
            for part in parts:
                assert type(part) is type(x), f"a result of {type(part).__name__}"
                kinds = ("float64",) if dtype == "int64" else (dtype, real)
                assert name_of(part) in kinds, f"a result in {name_of(part)}"
            got = np.concatenate([np.ravel(back(part)).astype(wide) for part in parts])
            np.testing.assert_allclose(got, wanted, rtol=DTYPES[dtype], atol=DTYPES[dtype])

        return transformations.outcome(run)


def measured(library: str) -> dict[str, dict[str, str]]:
    """Return the outcomes of one library, by function and dtype."""
    table: dict[str, dict[str, str]] = {}
    for name, (shape, function) in transformations.shapes_and_functions().items():
        table[name] = {
            dtype: called(function, matrix(shape, dtype), dtype, library) for dtype in DTYPES
        }
    return table


def in_a_process(library: str) -> dict[str, dict[str, str]]:
    """Return the same from a separate process, since settings and mocks belong to a process."""
    command = [sys.executable, __file__, "--part", library]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode:
        raise RuntimeError(f"{library}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# -- the page --------------------------------------------------------------------------------------


class Messages:
    """Error messages, numbered in the order of the page; equal messages have one number."""

    def __init__(self) -> None:
        self.known: list[str] = []

    def number(self, message: str) -> str:
        """Return the number of a message."""
        if message not in self.known:
            self.known.append(message)
        return str(self.known.index(message) + 1)


HEAD = """\
# Functions and array libraries

This page lists, for every function of matrices, the dtypes, array libraries and transformations
that it accepts. It is made by `python docs/make_functions.py` and checked by
`tests/arrays/test_function_table.py`. [Arrays](../guide/arrays.md) has the summary.

- ✓: the result has the array library and dtype of the argument and agrees with the result in
  double precision, to the tolerance of the format. Integers give float64.
- (✓): the result is correct, and every device holds all of it.
- A number: the call raises the error with that number, at the end of the page.

The columns of transformations are a selection of [Transformations](transformations.md). The column
CuPy is from a simulated device (`tests/standin`).
"""


def page(data: dict[str, Any], others: dict[str, Any]) -> str:
    """Return the page of the two sets of data."""
    messages = Messages()
    lines = [
        HEAD,
        "## Arrays",
        "",
        "| | " + " | ".join(GROUPS) + " | " + " | ".join(LIBRARIES.values()) + " |",
        "| --- |" + " :---: |" * (len(GROUPS) + len(LIBRARIES)),
    ]
    for name, rows in _by_function(data).items():
        cells = [_of_group(rows, group, messages) for group in GROUPS.values()]
        cells += [_of_library(rows, library, messages) for library in LIBRARIES]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    heads = [f"JAX {c.title}" if c.part in ("jax", "mesh") else f"torch {c.title}" for c in COLUMNS]
    heads[-1] = COLUMNS[-1].title
    lines += ["", "## Transformations", "", "| | " + " | ".join(heads) + " |"]
    lines.append("| --- |" + " :---: |" * len(COLUMNS))
    for name in _by_function(data):
        cells = [_of_column(others, name, column, messages) for column in COLUMNS]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    lines += ["", "## Errors", ""]
    lines += [f"{k}. {message}" for k, message in enumerate(messages.known, 1)]
    return "\n".join(lines) + "\n"


# Columns of the table of docs/guide/arrays.md: heading, and the dtypes or the kinds of `COLUMNS`.
SUMMARY_DTYPES = {
    "float32, float64": ("float32", "float64"),
    "16-bit": GROUPS["16 bits"],
    "complex": GROUPS["complex"],
    "integers": GROUPS["integers"],
}
SUMMARY_COLUMNS = {
    "jit or compile": ("jit", "compile"),
    "vmap": ("vmap",),
    "gradients": ("grad",),
    "sharded by rows": ("sharded", "DTensor"),
}
SHARDED = {"mesh": "JAX arrays sharded by rows", "dtensor": "DTensors"}
PARTS_OF = {"jax": ("jax", "mesh"), "torch": ("torch", "dtensor")}


def summary(data: dict[str, Any], others: dict[str, Any]) -> str:
    """Return the table of docs/guide/arrays.md, and the functions that accept sharded arrays."""
    heads = ["library", *SUMMARY_DTYPES, *SUMMARY_COLUMNS]
    lines, notes = [heads, ["---"] * len(heads)], []
    names = list(data["numpy"])
    for library, title in LIBRARIES.items():
        cells = [
            str(sum(_works({data[library][name][d] for d in dtypes}) for name in names))
            for dtypes in SUMMARY_DTYPES.values()
        ]
        for titles in SUMMARY_COLUMNS.values():
            parts = PARTS_OF.get(library, ())
            columns = [c for c in COLUMNS if c.title in titles and c.part in parts]
            accepted = [n for n in names if all(_accepts(others, n, c) for c in columns)]
            cells.append(str(len(accepted)) if columns else "–")
            if columns and columns[0].part in SHARDED:
                notes.append(_note(SHARDED[columns[0].part], names, accepted))
        lines.append([title, *cells])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "\n\n".join([f"Number of functions, of {len(names)}:", table, *notes])


def _note(kind: str, names: list[str], accepted: list[str]) -> str:
    """Return a sentence on the functions that accept a kind of array, or on those that do not."""
    most = 2 * len(accepted) > len(names)
    listed = [name for name in names if name not in accepted] if most else accepted
    verb = "every function but" if most else "the functions"
    return f"{kind} are accepted by {verb} {', '.join(f'`{name}`' for name in listed)}."


def _works(outcomes: set[str]) -> bool:
    return outcomes <= {transformations.WORKS, transformations.GATHERED}


def _accepts(others: dict[str, Any], name: str, column: Column) -> bool:
    return _works({others[column.part][name][label] for label in column.labels})


def filled(text: str, table: str) -> str:
    """Return the page docs/guide/arrays.md with another table between its markers."""
    begin, end = "<!-- begin functions -->", "<!-- end functions -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    if not rest or not after:
        raise ValueError(f"{GUIDE.name} must have one {begin} and one {end}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def _by_function(data: dict[str, Any]) -> dict[str, dict[str, dict[str, str]]]:
    names = list(next(iter(data.values())))
    return {name: {library: data[library][name] for library in data} for name in names}


def _of_group(rows: dict[str, dict[str, str]], group: tuple[str, ...], messages: Messages) -> str:
    """Return the cell of a group of dtypes, on NumPy; other libraries have their own columns."""
    return _cell({rows["numpy"][dtype] for dtype in group}, messages)


def _of_library(rows: dict[str, dict[str, str]], library: str, messages: Messages) -> str:
    """Return the cell of a library, over the dtypes that work on NumPy."""
    common = [dtype for dtype, outcome in rows["numpy"].items() if outcome == "works"]
    return _cell({rows[library][dtype] for dtype in common}, messages)


def _of_column(others: dict[str, Any], name: str, column: Column, messages: Messages) -> str:
    row = others[column.part][name]
    return _cell({row[label] for label in column.labels}, messages)


def _cell(outcomes: set[str], messages: Messages) -> str:
    bad = sorted(outcomes - {transformations.WORKS, transformations.GATHERED})
    if bad:
        return ", ".join(messages.number(each) for each in bad)
    return "(✓)" if transformations.GATHERED in outcomes else "✓"


def main() -> None:
    """Write the data and the pages, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=LIBRARIES, help="measure one and print it as JSON")
    parser.add_argument("--only", choices=LIBRARIES, nargs="*", default=list(LIBRARIES))
    parser.add_argument("--check", action="store_true", help="compare with the data; write nothing")
    parser.add_argument("--page", action="store_true", help="call nothing; make the pages")
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measured(options.part)))  # noqa: T201
        return
    data = json.loads(DATA.read_text("utf-8")) if DATA.exists() else {}
    for library in () if options.page else options.only:
        outcomes = in_a_process(library)
        if options.check and outcomes != data[library]:
            raise SystemExit(f"{library} differs: python docs/make_functions.py")
        data[library] = outcomes
    if not options.check:
        others = json.loads(transformations.DATA.read_text("utf-8"))
        DATA.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")
        PAGE.write_text(page(data, others), "utf-8")
        guide = filled(GUIDE.read_text("utf-8"), summary(data, others))
        GUIDE.write_text(guide, "utf-8")


if __name__ == "__main__":
    main()
