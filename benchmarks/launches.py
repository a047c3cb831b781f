"""Launches, waits and transfers that calls of polarlib request of a GPU, counted without one.

    python benchmarks/launches.py
    python benchmarks/launches.py --label before --root ../checkout-of-another-commit
    python benchmarks/launches.py --page

The first two count the calls of tests/device/cases.py with CuPy, torch and JAX and store the
numbers in docs/data/launches.json. Every run makes docs/evidence/launches.md and a table of
docs/gpu.md from that file; ``--page`` does only this. Each library may be in a separate
environment, whose Python is ``--cupy``, ``--torch`` or ``--jax`` (`nox -s device` makes them). The
numbers of a library that is not installed are kept. Counts do not depend on the load of the
machine. Those of torch and JAX belong to the version of the library.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import replace_part, table

from polarlib.files.whole import write_whole

ROOT = Path(__file__).resolve().parent.parent
DATA, PAGE = ROOT / "docs" / "data" / "launches.json", ROOT / "docs" / "evidence" / "launches.md"
SHORT = ROOT / "docs" / "gpu.md"
LABELS = ("before", "now")
Row = dict[str, Any]
Rows = dict[str, Row]

# The module that counts, by library.
MODULES = {"cupy": "on_cupy", "torch": "on_torch", "jax": "on_jax"}
TITLES = {
    "cupy": "CuPy, on simulated devices",
    "torch": "torch, emulated CUDA tensors",
    "jax": "JAX, programs for CUDA",
}
# Columns: heading, and the counts that are added.
COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "cupy": {
        "launches": ("kernels", "library calls", "copies", "memsets"),
        "of libraries": ("library calls",),
        "copies": ("copies",),
        "waits": ("waits",),
        "to device": ("to device",),
        "allocations": ("allocations",),
        "modules": ("modules",),
    },
    "torch": {
        "operators": ("kernels", "library calls", "copies"),
        "of libraries": ("library calls",),
        "copies": ("copies",),
        "polarlib's own": ("own operators",),
        "reads": ("waits",),
        "to device": ("to device",),
    },
    "jax": {
        "operators": ("kernels", "library calls"),
        "of libraries": ("library calls",),
        "callbacks": ("waits",),
    },
}
INTRODUCTION = """\
# Launches, waits and transfers

This page counts the kernels, waits and transfers that each call requests. It is made by
`python benchmarks/launches.py` from [launches.json](../data/launches.json) and checked by
`tests/device/test_counts.py`. No GPU was used: [GPU arrays](../gpu.md) lists what such counts show.

Two numbers are those of commit {before} and of now. Formats with equal counts share a line.
"""
NOTES = {
    "cupy": """\
Launches are kernels, calls of cuBLAS and cuSOLVER, copies on the device and memsets, in the second
call of a process. Modules are compiled or loaded in the first call. Allocations are requests to
CUDA beyond the memory that CuPy's pool holds, for calls that do not branch on values. **Values are
not computed**: a function that branches on values, such as `polar`, is counted on an arbitrary
path.""",
    "torch": """\
Operators are counted without views and empty tensors, in the second call of a process. An operator
that polarlib registers is one operator here, and a few kernels on a device. Reads are operations
for which the host waits: numbers, copies to the host, and factorisations that torch documents to
synchronise. Values, and therefore paths, are those of Gaussian matrices G (of 1 + G Gᵀ / n for
roots).""",
    "jax": """\
Operators of StableHLO before XLA fuses them, with all branches of every condition and one iteration
of every loop. "refused" is a function that cannot be traced: it runs operator by operator.""",
}
SUMMARY = """\
From [Launches, waits and transfers](evidence/launches.md), which has every number defined. Two
numbers are those of commit {before} and of now. For calls that branch on values (`polar`,
`nearest_rotation`), use the columns of torch: CuPy's counts are of an arbitrary path.
"""
# The column of waits, by library.
WAITS = {"cupy": "waits", "torch": "reads", "jax": "callbacks"}
# Calls of the table in docs/gpu.md.
HEADLINES = (
    "orthogonalize | 1024 x 1024 | bfloat16",
    "orthogonalize, jordan | 1024 x 1024 | bfloat16",
    "orthogonalize, adaptive | 1024 x 1024 | bfloat16",
    "torch.optim.Muon | 1024 x 1024 | bfloat16",
    "orthogonalize | 1024 x 1024 | float32",
    "orthogonalize | 128 x 128 | tf32",
    "polar | 384 x 384 | float32",
    "polar | 384 x 384 | float64",
    "polar | 5000 x 3 x 3 | float32",
    "polar | 8 x 40 x 40 | float32",
    "nearest_rotation | 1000 x 3 x 3 | float32",
)


# -- counting --------------------------------------------------------------------------------


def counted(library: str, python: str, root: Path) -> Row | None:
    """Return the counts of one library with the polarlib of a checkout; None if not installed."""
    has = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
    if subprocess.run([python, "-c", has, library], check=False).returncode:
        return None
    # The cases and the counting are those of this checkout.
    paths = os.pathsep.join([str(root), str(ROOT / "tests")])
    done = subprocess.run(
        [python, "-P", "-m", f"device.{MODULES[library]}", "--json"],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: Row = json.loads(done.stdout.splitlines()[-1])
    if not Path(found.pop("polarlib")).is_relative_to(root):
        raise SystemExit(f"polarlib is not imported from {root}")
    found["rows"] = {name: compact(row) for name, row in found["rows"].items()}
    return found


def compact(row: Row) -> Row:
    """Return a row without zeros, and without allocations if the call branches on values.

    The contents of CuPy's pool in such a call depend on when Python collects cycles.
    """
    left = {"allocations"} if row.get("outcome") else set()
    return {name: value for name, value in row.items() if value and name not in left}


def commit(root: Path) -> str:
    """Return the commit of a checkout."""
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()


def text(data: Row) -> str:
    """Return the data as JSON with one row per line."""
    parts = []
    for label, run in data.items():
        libraries = []
        for library in (name for name in MODULES if name in run):
            found = run[library]
            rows = ",\n".join(
                f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in found["rows"].items()
            )
            version = json.dumps(found["version"])
            libraries.append(
                f'  "{library}": {{\n   "version": {version},\n   "rows": {{\n{rows}\n   }}\n  }}'
            )
        head = [f'  "commit": {json.dumps(run["commit"])}'] if "commit" in run else []
        parts.append(f' "{label}": {{\n' + ",\n".join([*head, *libraries]) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


# -- pages -----------------------------------------------------------------------------------


def cell(before: Row | None, now: Row | None, names: tuple[str, ...]) -> str:
    """Return a number, or two if it has changed."""
    numbers = [
        "–" if row is None or "refused" in outcome(row) else str(sum(row.get(n, 0) for n in names))
        for row in (before, now)
    ]
    return numbers[1] if before is None or numbers[0] == numbers[1] else " → ".join(numbers)


def outcome(row: Row | None) -> str:
    """Return the outcome of a call: the method, "refused", or the error."""
    value = str((row or {}).get("outcome", ""))
    kind = value.partition(":")[0]
    if not kind.endswith(("Error", "Warning")):
        return value
    return "refused" if set(row or {}) == {"outcome"} else f"stops: {kind}"


def outcomes(before: Row | None, now: Row | None) -> str:
    """Return the outcomes before and now."""
    both = [outcome(row) for row in (before, now)]
    changed = before is not None and now is not None and both[0] != both[1]
    return " → ".join(each or "–" for each in both) if changed else both[1]


def rows_of(data: Row, label: str, library: str) -> Rows:
    """Return the rows of a run; none if it has not been made."""
    found: Rows = data.get(label, {}).get(library, {}).get("rows", {})
    return found


def lines(data: Row, library: str) -> Iterator[list[str]]:
    """Yield the lines of a library's table; formats with equal counts share a line."""
    before, now = (rows_of(data, label, library) for label in LABELS)
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, row in now.items():
        call, shape, number_format = name.split(" | ")
        old = before.get(name)
        cells = [cell(old, row, names) for names in COLUMNS[library].values()]
        key = (call, shape, *cells, outcomes(old, row))
        groups.setdefault(key, []).append(number_format)
    for (call, shape, *cells), formats in groups.items():
        yield [f"`{call}`" if "." in call else call, shape, ", ".join(formats), *cells]


def page(data: Row) -> str:
    """Return the page of all counts."""
    before = data.get("before", {}).get("commit", "an earlier commit")
    parts = [INTRODUCTION.format(before=before)]
    for library in MODULES:
        version = data["now"].get(library, {}).get("version")
        if version is None:
            continue
        head = ["call", "shape", "format", *COLUMNS[library], "outcome"]
        body = table(head, list(lines(data, library)))
        parts.append(f"## {TITLES[library]}\n\n{NOTES[library]}\nVersion {version}.\n\n{body}\n")
    return "\n".join(parts)


def short(data: Row) -> str:
    """Return the table of docs/gpu.md: launches and waits of every library."""
    shown = {lib: (next(iter(COLUMNS[lib])), WAITS[lib]) for lib in MODULES}
    head = [f"{lib}: {column}" for lib, columns in shown.items() for column in columns]
    body = []
    for name in HEADLINES:
        cells = name.split(" | ")
        for library, columns in shown.items():
            old, new = (rows_of(data, label, library).get(name) for label in LABELS)
            for column in columns:
                names = COLUMNS[library][column]
                cells.append("" if new is None else cell(old, new, names))
        body.append(cells)
    before = data.get("before", {}).get("commit", "an earlier commit")
    return f"{SUMMARY.format(before=before)}\n{table(['call', 'shape', 'format', *head], body)}"


def main() -> None:
    """Count, and write the data and the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--label", choices=LABELS, default="now", help="the run that is replaced")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout that is counted")
    for library in MODULES:
        parser.add_argument(
            f"--{library}", default=sys.executable, help=f"the Python with {library}"
        )
    parser.add_argument("--only", choices=MODULES, nargs="*", default=MODULES)
    parser.add_argument("--page", action="store_true", help="only make the pages from the data")
    options = parser.parse_args()
    data = json.loads(DATA.read_text("utf-8")) if DATA.exists() else {}
    if not options.page:
        run = data.setdefault(options.label, {})
        root = options.root.resolve()
        if options.label != "now":
            run["commit"] = commit(root)
        for library in options.only:
            found = counted(library, getattr(options, library), root)
            if found is None:
                sys.stderr.write(f"{library} is not installed: its counts stay\n")
            else:
                run[library] = found
        whole = text({label: data[label] for label in LABELS if label in data}).encode()
        write_whole(DATA, lambda file: file.write(whole))
    if "now" in data:
        whole = page(data).encode()
        write_whole(PAGE, lambda file: file.write(whole))
        replace_part(SHORT, "launches", short(data))


if __name__ == "__main__":
    main()
