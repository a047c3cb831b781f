"""Differences of results after one change of a call: the table of docs/evidence/determinism.md.

    python benchmarks/determinism.py [--page docs/evidence/determinism.md]
                                        [--libraries numpy,torch,jax,dask]

Each library runs in separate processes: two with one thread of BLAS and different hash seeds, one
with two threads. The columns "process" and "threads" compare processes; the others are from the
first process. Nothing is timed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import replace_part, where

import polarlib
from polarlib.norms import fanion

SHAPE = (200, 150)
STACK = 3
AT_ONCE = 8
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24}
# Entry of the table for a result that is equal in every bit.
SAME = "="

Rows = dict[str, Callable[[Any], tuple[Any, ...]]]
ROWS: Rows = {
    "polar": lambda x: tuple(polarlib.polar(x)),
    "polar, svd": lambda x: tuple(polarlib.polar(x, method="svd")),
    "polar, qdwh": lambda x: tuple(polarlib.polar(x, method="qdwh")),
    "orthogonalize, plain": lambda x: (polarlib.orthogonalize(x, form="plain"),),
    "orthogonalize, gram": lambda x: (polarlib.orthogonalize(x, form="gram"),),
    "orthogonalize, bfloat16": lambda x: (polarlib.orthogonalize(x, precision="bfloat16"),),
    "top_singular": lambda x: polarlib.top_singular(x, 3),
    "fanion(3).lmo": lambda x: (fanion(3).lmo(x),),
}
DASK_ROWS: Rows = {
    "polar_tall": lambda x: tuple(polarlib.polar_tall(x)),
    "orthogonalize, plain": lambda x: (polarlib.orthogonalize(x, form="plain"),),
}
CHANGES = ("again", "8 at once", "process", "threads", "memory order", "alignment", "in a stack")


def matrices() -> np.ndarray:
    """Return three matrices with distinct singular values."""
    rng = np.random.default_rng(5)
    u, _ = np.linalg.qr(rng.standard_normal((STACK, *SHAPE)))
    v, _ = np.linalg.qr(rng.standard_normal((STACK, SHAPE[1], SHAPE[1])))
    return (u * np.geomspace(1, 1e-3, SHAPE[1])) @ v


def converter(library: str) -> Callable[[np.ndarray], Any]:
    """Return the function that converts NumPy arrays to a library."""
    if library == "torch":
        import torch

        return torch.from_numpy
    if library == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
        return jax.numpy.asarray
    if library == "dask":
        import dask.array

        return lambda a: dask.array.from_array(a, chunks=(*a.shape[:-2], 100, a.shape[-1]))
    return lambda a: a


def distance(one: tuple[Any, ...], other: tuple[Any, ...]) -> float:
    """Return the largest relative difference in unit roundoffs; 0 if and only if all bits agree."""
    pairs = [tuple(map(np.asarray, pair)) for pair in zip(one, other, strict=True)]
    parts = [
        float(np.max(np.abs(a - b)) / np.max(np.abs(a)) / UNIT[a.dtype.name]) for a, b in pairs
    ]
    same = all(a.tobytes() == b.tobytes() for a, b in pairs)
    return 0.0 if same else max(*parts, 1e-9)


def work(library: str, dtype: str, whole: bool, out: Path) -> None:
    """Store the results of this process; if `whole`, also the differences within it."""
    stack = matrices().astype(dtype)
    convert = converter(library)
    x = convert(stack[0].copy())
    shifted = np.empty(stack[0].size + 1, dtype)[1:].reshape(SHAPE)
    shifted[...] = stack[0]
    found: dict[str, np.ndarray] = {}
    for name, f in (DASK_ROWS if library == "dask" else ROWS).items():
        base = f(x)
        for i, part in enumerate(base):
            found[f"result/{name}/{i}"] = np.asarray(part)
        distances = {"again": max(distance(base, f(x)) for _ in range(3))}
        if not whole:
            continue
        with ThreadPoolExecutor(AT_ONCE) as pool:
            results = list(pool.map(f, [x] * AT_ONCE))
        distances["8 at once"] = max(distance(base, r) for r in results)
        if library in ("numpy", "torch"):
            distances["memory order"] = distance(base, f(convert(np.asfortranarray(stack[0]))))
        if library != "dask":
            distances["alignment"] = distance(base, f(convert(shifted)))
            many = f(convert(stack))
            distances["in a stack"] = distance(base, tuple(r[0] for r in many))
        for change, value in distances.items():
            found[f"distance/{name}/{change}"] = np.array(value)
    np.savez(out, **found)


def run(library: str, dtype: str, threads: int, seed: int, out: Path) -> dict[str, np.ndarray]:
    """Run `work` in a separate process."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    flags = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
    env = os.environ | dict.fromkeys(names, str(threads)) | {"PYTHONHASHSEED": str(seed)}
    env |= {"XLA_FLAGS": flags}
    kind = f"{library}/{dtype}/{'whole' if seed == 1 else 'results'}"
    command = [sys.executable, __file__, "--worker", kind, "--out", str(out)]
    subprocess.run(command, env=env, check=True)
    with np.load(out) as archive:
        return dict(archive)


def table(library: str, dtype: str, folder: Path) -> list[str]:
    """Return the rows of one library and dtype."""
    first, second, threaded = (
        run(library, dtype, threads, seed, folder / "found.npz")
        for threads, seed in ((1, 1), (1, 2), (2, 3))
    )
    lines = []
    for name in DASK_ROWS if library == "dask" else ROWS:
        cells = []
        for change in CHANGES:
            if change in ("process", "threads"):
                other = second if change == "process" else threaded
                keys = [k for k in first if k.startswith(f"result/{name}/")]
                value = distance(tuple(first[k] for k in keys), tuple(other[k] for k in keys))
            else:
                value = first.get(f"distance/{name}/{change}")
            cells.append("" if value is None else SAME if value == 0 else f"{value:.2g}")
        lines.append(f"| {library} | {dtype} | {name} | {' | '.join(cells)} |")
    return lines


def main(
    page: Annotated[Path | None, typer.Option(help="Page to put the table in.")] = None,
    libraries: Annotated[str, typer.Option(help="Which ones.")] = "numpy,torch,jax,dask",
    worker: Annotated[str, typer.Option(hidden=True)] = "",
    out: Annotated[Path, typer.Option(hidden=True)] = Path("found.npz"),
) -> None:
    """Make the table."""
    if worker:
        library, dtype, kind = worker.split("/")
        work(library, dtype, kind == "whole", out)
        return
    lines = [
        f"| library | dtype | function | {' | '.join(CHANGES)} |",
        f"|{' --- |' * (3 + len(CHANGES))}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for library in libraries.split(","):
            for dtype in ("float64",) if library == "dask" else ("float64", "float32"):
                lines += table(library, dtype, Path(folder))
    body = "\n".join([*lines, "", f"*{where()}.*"])
    typer.echo(body)
    if page is not None:
        replace_part(page, "table", body)


if __name__ == "__main__":
    typer.run(main)
