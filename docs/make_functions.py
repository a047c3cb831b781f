"""docs/evidence/functions.md: which function takes which arrays, and what goes through what.

    python docs/make_functions.py

calls every function of docs/make_transformations.py on every array library in every dtype, each
library in a process of its own, writes what came out to docs/data/functions.json, and the page from
it and from docs/data/transformations.json. ``--check`` compares instead of writing. A result counts
as right only if it has the library and the dtype of its argument (float64 for integers) and is that
of NumPy in double precision at the same matrix, within what the format resolves.
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
DATA = Path(__file__).parent / "data" / "functions.json"
TESTS = Path(__file__).parents[1] / "tests"
LIBRARIES = {
    "numpy": "NumPy",
    "cupy": "CuPy",
    "torch": "torch",
    "jax": "JAX",
    "dask": "Dask",
}
# How far a result may be from that in double precision. The schedule "auto" and its error depend on
# the format.
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
    """A column of the page that is read off the data of docs/evidence/transformations.md."""

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
    """A matrix with singular values well apart, of which every function has a result."""
    a = transformations.matrices(shape, 2)
    if dtype.startswith("complex"):
        return (a[0] + 0.4j * a[1]).astype(dtype)
    if dtype == "int64":
        return np.rint(8 * a[0]).astype(dtype)
    return a[0].astype(getattr(ml_dtypes, dtype, dtype))


@contextlib.contextmanager
def opened(library: str) -> Iterator[tuple[Callable[[Any], Any], Callable[[Any], Any]]]:
    """Conversions to the library and from it."""
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
    """'works', the sentence of a refusal, or 'fails' with what came out."""
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
    """Outcomes of one library, by function and dtype."""
    table: dict[str, dict[str, str]] = {}
    for name, (shape, function) in transformations.shapes_and_functions().items():
        table[name] = {
            dtype: called(function, matrix(shape, dtype), dtype, library) for dtype in DTYPES
        }
    return table


def in_a_process(library: str) -> dict[str, dict[str, str]]:
    """The same in a process of its own: settings and stand-ins are for the whole process."""
    command = [sys.executable, __file__, "--part", library]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode:
        raise RuntimeError(f"{library}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# -- the page --------------------------------------------------------------------------------------


class Sentences:
    """Refusals, numbered in the order of the page; libraries differ in words that are left out."""

    def __init__(self) -> None:
        self.known: list[str] = []

    def number(self, sentence: str) -> str:
        """Return the number of a sentence."""
        if sentence not in self.known:
            self.known.append(sentence)
        return str(self.known.index(sentence) + 1)


def page(data: dict[str, Any], others: dict[str, Any]) -> str:
    """The page of the two sets of data."""
    refusals = Sentences()
    lines = [
        "# Functions and array libraries",
        "",
        "Made by `python docs/make_functions.py`, checked by",
        "`tests/arrays/test_function_table.py`.",
        "",
        "✓: the result has the array library and dtype of the argument and is that of double",
        "precision, within what the format resolves; integers give float64. (✓): right, and every",
        "device has all of the result. A number: refused, with the sentence below. The columns of",
        "transformations are those of [transformations.md](transformations.md), which has more of",
        "them. CuPy stands for a simulated device (`tests/standin`).",
        "",
        "## Arrays",
        "",
        "| | " + " | ".join(GROUPS) + " | " + " | ".join(LIBRARIES.values()) + " |",
        "| --- |" + " :---: |" * (len(GROUPS) + len(LIBRARIES)),
    ]
    for name, rows in _by_function(data).items():
        cells = [_of_group(rows, group, refusals) for group in GROUPS.values()]
        cells += [_of_library(rows, library, refusals) for library in LIBRARIES]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    heads = [f"JAX {c.title}" if c.part in ("jax", "mesh") else f"torch {c.title}" for c in COLUMNS]
    heads[-1] = COLUMNS[-1].title
    lines += ["", "## Transformations", "", "| | " + " | ".join(heads) + " |"]
    lines.append("| --- |" + " :---: |" * len(COLUMNS))
    for name in _by_function(data):
        cells = [_of_column(others, name, column, refusals) for column in COLUMNS]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    lines += ["", "## Refusals", ""]
    lines += [f"{k}. {sentence}" for k, sentence in enumerate(refusals.known, 1)]
    return "\n".join(lines) + "\n"


def _by_function(data: dict[str, Any]) -> dict[str, dict[str, dict[str, str]]]:
    names = list(next(iter(data.values())))
    return {name: {library: data[library][name] for library in data} for name in names}


def _of_group(rows: dict[str, dict[str, str]], group: tuple[str, ...], refusals: Sentences) -> str:
    """Dtypes of a group: as on NumPy, since libraries that differ are in columns of their own."""
    found = {rows["numpy"][dtype] for dtype in group}
    return _cell(found, refusals)


def _of_library(rows: dict[str, dict[str, str]], library: str, refusals: Sentences) -> str:
    """A library: right wherever NumPy is."""
    common = [dtype for dtype, outcome in rows["numpy"].items() if outcome == "works"]
    return _cell({rows[library][dtype] for dtype in common}, refusals)


def _of_column(others: dict[str, Any], name: str, column: Column, refusals: Sentences) -> str:
    row = others[column.part][name]
    return _cell({row[label] for label in column.labels}, refusals)


def _cell(found: set[str], refusals: Sentences) -> str:
    bad = sorted(found - {transformations.WORKS, transformations.GATHERED})
    if bad:
        return ", ".join(refusals.number(each) for each in bad)
    return "(✓)" if transformations.GATHERED in found else "✓"


def main() -> None:
    """Write the data and the page, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=LIBRARIES, help="measure one and print it as JSON")
    parser.add_argument("--only", choices=LIBRARIES, nargs="*", default=list(LIBRARIES))
    parser.add_argument("--check", action="store_true", help="compare with the data; write nothing")
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measured(options.part)))  # noqa: T201
        return
    data = json.loads(DATA.read_text("utf-8")) if DATA.exists() else {}
    for library in options.only:
        found = in_a_process(library)
        if options.check and found != data[library]:
            raise SystemExit(f"{library} differs: python docs/make_functions.py")
        data[library] = found
    if not options.check:
        others = json.loads(transformations.DATA.read_text("utf-8"))
        DATA.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")
        PAGE.write_text(page(data, others), "utf-8")


if __name__ == "__main__":
    main()
