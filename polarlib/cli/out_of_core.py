"""The command polarlib polar with --memory: matrices in files, in blocks that fit in a bound."""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import threadpoolctl

import polarlib
from polarlib.arrays.dask_files import blocks_of_rows, computing_in, require_dask, store
from polarlib.arrays.memory import return_freed_arrays
from polarlib.arrays.progress import Progress
from polarlib.cli import console
from polarlib.cli.console import format_shape
from polarlib.cli.progress import Bar
from polarlib.files.blocks import FileMatrix, ZarrTarget, new_matrix, open_matrix
from polarlib.files.containers import ZARR
from polarlib.files.whole import unfinished, write_together
from polarlib.result import PolarResult, Status

UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
UNITS |= {f"{unit}i": 2.0 ** (10 * k) for k, unit in enumerate("kmgt", 1)}
# Largest block in bytes, and least where several threads compute: others save no time.
LARGEST_BLOCK, LEAST_OF_SEVERAL = 1 << 25, 1 << 20
# Memory of `polar_tall` in bytes beyond that of a small matrix, measured and rounded up
# (tests/cli/test_out_of_core.py checks that bounds hold): n x n matrices in all and per thread,
# slices of rows and of what size per thread, buffers per thread of the BLAS, Dask's tasks per
# block, the rest.
SQUARES, SQUARES_OF_THREAD, SLICES, SLICE = 24, 3, 5, 1 << 22
BUFFER, TASKS, REST = 2 << 20, 6_000, 4 << 20
COMPUTED = ("float32", "float64", "complex64", "complex128")


class Outcome(NamedTuple):
    """A decomposition whose factors are written."""

    result: PolarResult[Any]
    dtype: str
    side: str
    notes: list[str]
    blocks: str


class _Layout(NamedTuple):
    """A tall matrix in a file: its shape, and bytes per entry, also in the file."""

    m: int
    n: int
    dtype: np.dtype
    stored: np.dtype
    transposed: bool
    chunks: tuple[int, int] | None

    def need(self, plan: _Plan) -> float:
        """Return the memory in bytes beyond that of a run on a small matrix."""
        n, size, wide = max(self.n, 1), self.dtype.itemsize, 16 if self.dtype.kind == "c" else 8
        entry = 2 * size + self.transposed * size  # of blocks of A and U, and a copy in C order
        if self.stored != self.dtype:
            entry += self.stored.itemsize
        rows_of_slice = min(plan.rows, max(4 * n, SLICE // (16 * n)))
        thread = plan.rows * n * entry + (SLICES * rows_of_slice + SQUARES_OF_THREAD * n) * n * wide
        chunk = 3 * math.prod(self.chunks or (0,)) * self.stored.itemsize
        tasks = TASKS * math.ceil(self.m / plan.rows)
        squares = SQUARES * n * n * wide
        blas = plan.threads * plan.blas_threads * BUFFER
        return plan.threads * thread + blas + squares + chunk + tasks + REST

    def plans(self) -> list[_Plan]:
        """Return the plans to choose from."""
        step = self.chunks[self.transposed] if self.chunks else 1
        rows, sizes = max(self.m, 1), []
        while rows >= max(min(self.m, self.n), 1):
            # Whole chunks, which are otherwise read several times.
            sizes.append(rows - rows % step if step < rows < self.m else rows)
            rows = math.ceil(rows / 1.25) if rows > 4 else rows - 1
        most = _threads()
        return [
            _Plan(rows, threads, blas)
            for rows in dict.fromkeys(sizes)
            for threads in range(1, most + 1)
            for blas in {1, most // threads}
            if threads == 1 or rows * self.n * self.dtype.itemsize >= LEAST_OF_SEVERAL
        ]


class _Plan(NamedTuple):
    """Rows of each block, number of threads that compute blocks, and of the BLAS in each."""

    rows: int
    threads: int
    blas_threads: int


class _Blocks:
    """A matrix of a file in the dtype of the computation; counts the blocks that are read."""

    ndim = 2

    def __init__(self, matrix: Any, dtype: np.dtype, count: int, bar: Bar) -> None:
        self._matrix, self.shape, self.dtype = matrix, matrix.shape, dtype
        self._count, self._bar, self._lock = count, bar, threading.Lock()

    def begin(self, what: str) -> None:
        """Begin a pass, whose blocks are counted."""
        self._what, self._read = f"blocks of {what}", 0
        self._bar(Progress(0, self._count, self._what), None)

    def __getitem__(self, index: Any) -> np.ndarray:
        try:
            block: np.ndarray = self._matrix[index].astype(self.dtype, copy=False)
        except OSError as error:  # not one of the output
            raise ValueError(
                f"{self._matrix.file}: cannot be read: {error.strerror or error}"
            ) from None
        with self._lock:
            self._read = min(self._read + 1, self._count)
            self._bar(Progress(self._read, self._count, self._what), None)
        return block


def decompose(
    file: str, memory: str, side: str | None, outputs: Mapping[str, Path | None], bar: Bar
) -> Outcome:
    """Decompose the matrix of a file and write its factors, in blocks; one or none is written.

    ``A^T = V K`` is decomposed in place of a wide A: then ``A = K^T V^T``, the side "left".
    """
    require_dask("--memory")
    if file in polarlib.files.sample_metadata() and not Path(file).exists():
        raise ValueError(f"{file}: a bundled matrix, not a file; leave --memory out")
    return_freed_arrays()
    matrix, transposed = open_matrix(file)
    shape = matrix.shape[::-1] if transposed else matrix.shape
    side = _side(side, shape)
    layout = _layout(file, matrix, transposed != (side == "left"))
    plan = _planned(memory, layout, shape)
    source = _Blocks(matrix, layout.dtype, math.ceil(layout.m / plan.rows), bar)
    x = blocks_of_rows(source, plan.rows, transposed=layout.transposed)
    paths = {option: path for option, path in outputs.items() if path is not None}
    with contextlib.ExitStack() as stack:
        ready, targets = _begin(stack, paths, shape, layout, side, plan)
        stack.enter_context(computing_in(plan.threads))
        stack.enter_context(threadpoolctl.threadpool_limits(plan.blas_threads, "blas"))
        source.begin("pass 1")
        with console.collected_warnings() as notes:
            try:
                result = polarlib.polar_tall(x, callback=lambda k, s: source.begin(f"pass {k + 1}"))
            except ValueError as error:
                raise ValueError(_in_file(str(error), file, side)) from None
        if side == "left":
            factors = {"unitary": result.unitary.T, "hermitian": result.hermitian.T}
            result = result._replace(**factors)
        source.begin("U")
        if result.status in (Status.NOT_CONVERGED, Status.OVERFLOW):
            ready = {}

        def write() -> None:
            if "-o" in targets:
                store(result.unitary, targets["-o"])
            if "--hermitian" in targets:
                targets["--hermitian"][:, :] = result.hermitian
            write_together({}, ready)

        if ready:
            console.write_named(outputs, write)
    blocks = f"{source._count} of {plan.rows} {'rows' if side == 'right' else 'columns'}"
    threads = f"{plan.threads} thread{'s' * (plan.threads > 1)}"
    return Outcome(result, layout.dtype.name, side, notes, f"{blocks}, in {threads}")


def _begin(
    stack: contextlib.ExitStack,
    paths: Mapping[str, Path],
    shape: tuple[int, int],
    layout: _Layout,
    side: str,
    plan: _Plan,
) -> tuple[dict[Path, str], dict[str, FileMatrix | ZarrTarget]]:
    """Make the outputs under temporary names, with all of their space; return names and matrices.

    A disk without that space, and another process that writes them, are found before A is read.
    """
    ready: dict[Path, str] = {}
    targets: dict[str, FileMatrix | ZarrTarget] = {}

    def begin() -> None:
        for option, path in paths.items():
            kind = path.suffix.lower()
            ready[path] = stack.enter_context(unfinished(path, folder=kind == ZARR))
            size, chunks = (layout.n,) * 2, (layout.n,) * 2
            if option == "-o":
                size = shape
                chunks = (plan.rows, shape[1]) if side == "right" else (shape[0], plan.rows)
            targets[option] = new_matrix(ready[path], kind, size, layout.dtype, chunks)

    console.write_named(paths, begin)
    return ready, targets


def _side(side: str | None, shape: tuple[int, int]) -> str:
    """Return the side whose Hermitian factor has the order min(m, n)."""
    if side not in (None, "right", "left"):
        raise ValueError(f"--side must be right or left, got {side!r}")
    m, n = shape
    small = "right" if m >= n else "left"
    if side is None or m == n:
        return side or small
    if side != small:
        large = max(shape)
        raise ValueError(
            f"--side {side} has a Hermitian factor of {large} x {large}, which --memory does not "
            f"compute; use --side {small}, whose factor is {min(shape)} x {min(shape)}"
        )
    return side


def _layout(file: str, matrix: Any, transposed: bool) -> _Layout:
    stored = matrix.dtype
    name = stored.newbyteorder("=").name
    if stored.kind in "biu":
        name = "float64"
    elif name == "float16":
        name = "float32"
    if name not in COMPUTED:
        raise ValueError(
            f"{file}: holds entries of type {name}, which --memory does not read; save it again as "
            "float64 or complex128"
        )
    m, n = matrix.shape[::-1] if transposed else matrix.shape
    return _Layout(m, n, np.dtype(name), stored, transposed, matrix.chunks)


def _threads() -> int:
    """Return the number of threads that the user allows, which is that of the BLAS."""
    pools = [p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
    return max(pools, default=os.cpu_count() or 1)


def _planned(memory: str, layout: _Layout, shape: tuple[int, int]) -> _Plan:
    """Choose blocks and threads for a bound; refuse a bound that cannot be read or is too small."""
    needs = {plan: layout.need(plan) for plan in layout.plans()}
    least = f"at least {math.ceil(min(needs.values()) / 1e6)} MB"
    what = f"{format_shape(shape)} in {layout.dtype}"
    match = re.fullmatch(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?) *([kmgt]?i?)b?", memory.lower())
    bound = float(match[1]) * UNITS.get(match[2], math.nan) if match else math.nan
    if not math.isfinite(bound):
        raise ValueError(
            f"--memory must be a size such as 1GB, 500MB, 2GiB or a number of bytes, got "
            f"{memory!r}; {what} needs {least}"
        )
    if bound <= 0:
        raise ValueError(f"--memory must be positive, got {memory!r}; {what} needs {least}")
    fitting = [plan for plan, need in needs.items() if need <= bound]
    if not fitting:
        raise ValueError(f"--memory {memory} is too small for {what}; {least}")
    row = layout.n * layout.dtype.itemsize

    def rank(plan: _Plan) -> tuple[Any, ...]:
        moderate = plan.rows * row <= LARGEST_BLOCK
        busy = plan.threads * plan.blas_threads
        return moderate, busy, plan.threads, plan.rows if moderate else -plan.rows

    return max(fitting, key=rank)


def _in_file(message: str, file: str, side: str) -> str:
    """Return a message of polar_tall about x with the name of the file, and indices of A."""
    if not message.startswith("x "):
        return message
    text = message.removeprefix("x ")
    if side == "left":
        text = re.sub(r"\((\d+), (\d+)\) of its rows", r"(\2, \1) of its columns", text)
    return f"{file}: {text}"
