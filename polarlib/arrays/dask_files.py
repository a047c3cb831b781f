"""Matrices in files as Dask arrays of blocks, and the threads that compute them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from polarlib._extras import require
from polarlib.arrays.library import import_library


def require_dask(subject: str) -> None:
    """Raise ImportError, which names the extra, where Dask's arrays are not installed."""
    require(subject, "dask", "dask.array")


def blocks_of_rows(matrix: Any, rows: int, *, transposed: bool) -> Any:
    """Return a tall Dask array of blocks of rows: of a matrix that is sliced, or its transpose."""
    chunks = (-1, rows) if transposed else (rows, -1)
    meta = np.empty((0, 0), matrix.dtype)
    # The name is given, since Dask would read the matrix to make one from its entries.
    x = import_library("dask.array").from_array(
        matrix, chunks=chunks, name=f"file-{id(matrix):x}", asarray=False, meta=meta
    )
    return x.T if transposed else x


def store(x: Any, target: Any) -> None:
    """Compute a Dask array, and write its blocks by ``target[rows, columns] = block``."""
    import_library("dask.array").store(x, target, lock=False)


@contextlib.contextmanager
def computing_in(threads: int) -> Iterator[None]:
    """Let Dask compute in a number of threads, all of which have ended after the block."""
    config = import_library("dask").config
    if threads == 1:
        with config.set(scheduler="synchronous"):
            yield
        return
    with ThreadPoolExecutor(threads) as pool, config.set(scheduler="threads", pool=pool):
        yield
