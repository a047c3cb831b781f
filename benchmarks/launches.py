"""What calls of polarlib ask of a GPU, counted without one: launches, waits, transfers.

    python benchmarks/launches.py
    python benchmarks/launches.py --label before --root ../checkout-of-another-commit

counts the calls of tests/device/cases.py with CuPy, torch and JAX, adds the numbers to
docs/data/launches.json, and makes docs/evidence/launches.md and a table of docs/gpu.md from that
file. Each
library may be in an environment of its own, whose Python is ``--cupy``, ``--torch`` or ``--jax``
(`nox -s device` makes them); one that is not there keeps its numbers. Counts do not depend on the
machine's load. Those of torch and JAX belong to the version of the library.
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
    "cupy": "CuPy, on devices that are not there",
    "torch": "torch, emulated CUDA tensors",
    "jax": "JAX, programs for CUDA",
}
# Columns: heading, and what is added up.
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

Made by `python benchmarks/launches.py` from `docs/data/launches.json`, checked by
`tests/device/test_counts.py`. No GPU was used: [gpu.md](../gpu.md) says what such counts prove. Two
numbers are before ({before}) and now. Formats with the same counts share a line.
"""
NOTES = {
    "cupy": """\
Launches are those of kernels, calls of cuBLAS and cuSOLVER, copies on the device and memsets, in
the second call of a process; "modules" are compiled or loaded in the first. Allocations are those
from CUDA, beyond what CuPy's memory pool holds, of calls whose path no number chooses. **Values
mean nothing here**: a function that branches on them, as `polar` does, is counted on the path that
it took, not on that of its matrix.""",
    "torch": """\
Operators without views and empty tensors, in the second call of a process; one that polarlib
registers is one operator here, and a few kernels on a device. Reads are what the host waits for:
numbers, copies to the host, and factorisations that torch documents to synchronise. The values, and
so the paths, are those of Gaussian matrices G (of 1 + G Gᵀ / n for roots).""",
    "jax": """\
Operators of StableHLO, before XLA fuses them, with the branches of every condition and one round of
every loop. A function that cannot be traced is refused, and runs operator by operator then.""",
}
SUMMARY = """\
From [launches.md](evidence/launches.md), which has every number and says what is counted; two
numbers are before ({before}) and now. CuPy's counts of calls that branch on values (`polar`,
`nearest_rotation`) are of a path that no matrix has: see the columns of torch.
"""
# What the host waits for, by library.
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
    """Counts of one library with a checkout's polarlib; None if the library is not installed."""
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
    """A row without zeros, and without allocations where numbers choose the path.

    What CuPy's pool holds in the middle of such a call depends on when Python collects cycles.
    """
    left = {"allocations"} if row.get("outcome") else set()
    return {name: value for name, value in row.items() if value and name not in left}


def commit(root: Path) -> str:
    """The commit of a checkout."""
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()


def text(data: Row) -> str:
    """The data as JSON with one row to a line."""
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
    """A number, or two where it has changed."""
    numbers = [
        "–" if row is None or "refused" in outcome(row) else str(sum(row.get(n, 0) for n in names))
        for row in (before, now)
    ]
    return numbers[1] if before is None or numbers[0] == numbers[1] else " → ".join(numbers)


def outcome(row: Row | None) -> str:
    """What a call came to, in short: the method, "refused", or how it stopped."""
    value = str((row or {}).get("outcome", ""))
    kind = value.partition(":")[0]
    if not kind.endswith(("Error", "Warning")):
        return value
    return "refused" if set(row or {}) == {"outcome"} else f"stops: {kind}"


def outcomes(before: Row | None, now: Row | None) -> str:
    """What a call came to, before and now."""
    both = [outcome(row) for row in (before, now)]
    changed = before is not None and now is not None and both[0] != both[1]
    return " → ".join(each or "–" for each in both) if changed else both[1]


def rows_of(data: Row, label: str, library: str) -> Rows:
    """Rows of a run; none if it has not been made."""
    found: Rows = data.get(label, {}).get(library, {}).get("rows", {})
    return found


def lines(data: Row, library: str) -> Iterator[list[str]]:
    """Lines of a library's table: formats of a call and a shape share one if they agree."""
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
    """The page of all counts."""
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
    """The table of docs/gpu.md: launches of every library, and what the host waits for."""
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
