"""Peak memory of polar and its relatives, and the cost of `import polarlib`.

    python benchmarks/memory.py --label after
    python benchmarks/memory.py --label before --root ../checkout-of-another-commit
    python benchmarks/memory.py

The first two measure the package in a checkout and add the numbers to docs/data/memory.json. Every
run then makes docs/evidence/memory.md and a table of docs/guide/memory.md from that file. Peaks are
those of tracemalloc, to which NumPy reports every array and the workspaces of LAPACK: storage in
use at once beyond the input, in units of the input. They do not depend on the load of the machine.
Resident peaks are those of a separate process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg

ROOT = Path(__file__).resolve().parent.parent
DATA, PAGE = ROOT / "docs" / "data" / "memory.json", ROOT / "docs" / "evidence" / "memory.md"
GUIDE = ROOT / "docs" / "guide" / "memory.md"
METHODS = ("auto", "svd", "qdwh", "newton", "zolotarev")
SHAPES: tuple[tuple[tuple[int, ...], str], ...] = (
    ((2048, 256), "right"),
    ((256, 2048), "right"),
    ((256, 2048), "left"),
    ((512, 512), "right"),
    ((100, 64, 64), "right"),
)
CONDITIONS = (None, 1e2, 1e8, 1e15)
LARGE = (512, 4096)
IMPORTS = {
    "polarlib": "polarlib",
    "what it needs": "scipy.linalg, array_api_compat.numpy",
}


INTRODUCTION = """\
# Memory: measured peaks

Made by `python benchmarks/memory.py` from [memory.json](../data/memory.json); {machine}.
[Memory](../guide/memory.md) describes which storage is reused.

A peak is the storage in use at once during a call beyond the input, the results included, in units
of the input. It is measured by tracemalloc, to which NumPy reports arrays and the workspaces of
LAPACK, and does not depend on the load of the machine. "random" is a Gaussian matrix. A number is
a condition number, with singular values in geometric progression.
"""
# Rows of the table of docs/guide/memory.md.
SHORT = (
    "2048x256 right float64 random",
    "2048x256 right float64 100000000.0",
    "256x2048 right float64 random",
    "512x512 right float64 random",
    "512x512 right float64 100000000.0",
    "100x64x64 right float64 random",
)


def matrix(shape: tuple[int, ...], dtype: str, condition: float | None) -> np.ndarray:
    """Gaussian entries, or geometric singular values between Gaussian singular vectors."""
    rng = np.random.default_rng(7)
    a = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        a = a + 1j * rng.standard_normal(shape)
    if condition is not None:
        u, s, vh = np.linalg.svd(a, full_matrices=False)
        a = (u * np.geomspace(1, 1 / condition, s.shape[-1])) @ vh
    return np.ascontiguousarray(a, dtype=dtype)


def peak(f: Callable[[np.ndarray], Any], a: np.ndarray) -> float:
    """Peak of traced memory during ``f(a)`` beyond what was there, in units of `a`.

    The second of two calls: tables that a first one makes are kept.
    """
    f(a)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        f(a)
        return (tracemalloc.get_traced_memory()[1] - before) / a.nbytes
    finally:
        tracemalloc.stop()


def cases() -> Iterator[tuple[str, tuple[int, ...], str, str, float | None, tuple[str, ...]]]:
    """Name, shape, side, dtype, condition number and methods of every measurement of polar."""
    for shape, side in SHAPES:
        for dtype in ("float64", "float32", "complex128"):
            for condition in CONDITIONS if dtype == "float64" else CONDITIONS[::2]:
                # Every method in double precision, on a random matrix and an ill-conditioned one.
                all_of_them = dtype == "float64" and condition in (None, 1e8)
                methods = METHODS if all_of_them else METHODS[:1]
                name = f"{'x'.join(map(str, shape))} {side} {dtype} {condition or 'random'}"
                yield name, shape, side, dtype, condition, methods


def measured() -> dict[str, Any]:
    """Everything that is measured in one process, of the package that is importable."""
    import polarlib

    warnings.simplefilter("ignore")
    polar: dict[str, dict[str, float]] = {}
    for name, shape, side, dtype, condition, methods in cases():
        a = matrix(shape, dtype, condition)
        row = {"SciPy": peak(lambda x, side=side: scipy.linalg.polar(x, side=side), a)}
        for method in methods:
            row[method] = peak(
                lambda x, side=side, method=method: polarlib.polar(x, side, method=method), a
            )
        polar[name] = row
        sys.stderr.write(f"{name} {row}\n")
    large = matrix(LARGE, "float64", None)
    row = {"SciPy": peak(scipy.linalg.polar, large), "auto": peak(polarlib.polar, large)}
    polar["x".join(map(str, LARGE)) + " right float64 random"] = row
    others: dict[str, float] = {}
    out = np.empty((2048, 256))
    functions: dict[str, Callable[[np.ndarray], Any]] = {
        "polar": polarlib.polar,
        "polar(overwrite_a=True)": lambda x: polarlib.polar(x.copy(), overwrite_a=True),
        "nearest_orthogonal": polarlib.nearest_orthogonal,
        "orthogonalize, plain form": lambda x: polarlib.orthogonalize(x, form="plain"),
        "orthogonalize, plain form, out": lambda x: polarlib.orthogonalize(
            x, form="plain", out=out
        ),
        "orthogonalize, Gram form": lambda x: polarlib.orthogonalize(x, form="gram"),
        "orthogonalize, Gram form, out": lambda x: polarlib.orthogonalize(x, form="gram", out=out),
        "top_singular, 5 of them": lambda x: polarlib.top_singular(x, 5),
        "measure, 5 steps": lambda x: polarlib.measure(x, "auto", steps=5),
    }
    a = matrix((2048, 256), "float64", None)
    for name, f in functions.items():
        # The copy that is overwritten belongs to the caller.
        others[name] = peak(f, a) - ("overwrite_a" in name)
    a = matrix((512, 512), "float64", None)
    a = a @ a.T
    others["inverse_root(p=2), 512 x 512"] = peak(lambda x: polarlib.inverse_root(x, 2), a)
    others["sqrtm_psd, 512 x 512"] = peak(polarlib.sqrtm_psd, a)
    return {"polar": polar, "others": others}


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the package of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(root)}
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        environment.setdefault(name, "1")
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=root,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if "importtime" in arguments else None,
    )


RESIDENT = """
import resource, sys, numpy as np, scipy.linalg, polarlib
a = np.random.default_rng(7).standard_normal({shape})
small = np.eye(200)
f = {{"SciPy": scipy.linalg.polar, "polarlib": polarlib.polar}}[sys.argv[1]]
f(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
f(a)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * (1 if sys.platform == "darwin" else 1024) / a.nbytes)
"""


def resident(root: Path) -> dict[str, float]:
    """Growth of the resident peak of a process by one decomposition, in units of its input."""
    code = RESIDENT.format(shape=LARGE)
    return {name: float(run(root, "-c", code, name).stdout) for name in ("SciPy", "polarlib")}


def imports(root: Path, repeats: int = 5) -> dict[str, dict[str, float]]:
    """Modules that are loaded, and milliseconds by ``python -X importtime``, the least of a few."""
    found = {}
    for name, modules in IMPORTS.items():
        code = f"import sys; import {modules}; print(len(sys.modules))"
        run(root, "-c", code)  # compiles what it must
        times, count = [], 0
        for _ in range(repeats):
            done = run(root, "-X", "importtime", "-c", code)
            count = int(done.stdout)
            rows = [line.split("|") for line in done.stderr.splitlines() if line.count("|") == 2]
            # Modules at the outermost level, those of the interpreter's own start left out.
            outer = {
                row[2].strip(): row[1]
                for row in rows
                if row[2].startswith(" ") and not row[2].startswith("   ")
            }
            wanted = {m.strip().partition(".")[0] for m in modules.split(",")}
            times.append(
                sum(int(t) for m, t in outer.items() if m.partition(".")[0] in wanted) / 1000
            )
        found[name] = {"modules": count, "milliseconds": min(times)}
    return found


def page(figures: dict[str, Any]) -> str:
    """Return the page of all tables, as Markdown."""
    from common import table

    after = figures["after"]
    polar = [
        [name, method, f"{row['SciPy']:.2f}", f"{value:.2f}"]
        for name, row in after["polar"].items()
        for method, value in row.items()
        if method != "SciPy"
    ]
    above = [
        f"- {name}, `{method}`: {value:.2f}, SciPy {row['SciPy']:.2f}"
        for name, row in after["polar"].items()
        for method, value in row.items()
        if value > 1.02 * row["SciPy"]
    ]
    resident = after["resident"]
    parts = [
        INTRODUCTION.format(machine=figures["machine"]).rstrip(),
        "## `polar` with NumPy",
        table(["matrix", "method", "SciPy", "polarlib"], polar),
        "Peaks that exceed SciPy's by more than 2 %:",
        "\n".join(above or ["- none."]),
        f"Growth of the resident peak of a process, {LARGE[0]} x {LARGE[1]}, float64, side right: "
        f"SciPy {resident['SciPy']:.1f}, polarlib {resident['polarlib']:.1f} inputs.",
        "## Other functions",
        "2048 x 256, float64, unless the row has another shape.",
        table(["call", "peak"], [[n, f"{value:.2f}"] for n, value in after["others"].items()]),
    ]
    return "\n\n".join(parts) + "\n"


def short(figures: dict[str, Any]) -> str:
    """Return the table of docs/guide/memory.md."""
    from common import table

    rows = figures["after"]["polar"]
    kinds = {"random": "Gaussian", "100000000.0": "1e8"}
    lines = []
    for name in SHORT:
        shape, side, dtype, condition = name.split()
        cells = [f"{rows[name][key]:.2f}" for key in ("SciPy", "auto")]
        lines.append([shape.replace("x", " × "), side, dtype, kinds[condition], *cells])
    return table(["shape", "side", "dtype", "condition", "SciPy", "`polar`"], lines)


def main() -> None:
    """Measure a checkout, and make the pages."""
    from common import load, replace_part, store, where

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--label", choices=("before", "after"), help="measure, under this name")
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout to measure")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        sys.stdout.write(json.dumps(measured()))
        return
    figures = load(DATA)
    if options.label:
        root = options.root.resolve()
        figures["machine"] = where()
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=root,
            text=True,
            capture_output=True,
            check=False,
        ).stdout.strip()
        found = json.loads(run(root, str(Path(__file__).resolve()), "--worker").stdout)
        rounded = {
            part: {
                name: round(row, 3)
                if isinstance(row, float)
                else {k: round(v, 3) for k, v in row.items()}
                for name, row in table.items()
            }
            for part, table in found.items()
        }
        figures[options.label] = {
            "commit": commit,
            **rounded,
            "resident": resident(root),
            "imports": imports(root),
        }
        store(DATA, figures)
    if {"before", "after"} <= figures.keys():
        PAGE.write_text(page(figures), encoding="utf-8")
        replace_part(GUIDE, "peaks", short(figures))


if __name__ == "__main__":
    main()
