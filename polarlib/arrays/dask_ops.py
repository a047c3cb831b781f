"""Dask: arrays of blocks that are computed later."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np

from polarlib.arrays.library import import_library, is_complex
from polarlib.arrays.ops import Ops, ops_of

Array = Any


def dask_of(x: Any, name: str) -> Any:
    """Return the dask module for a Dask array of NumPy blocks; otherwise raise an error."""
    if not type(x).__module__.startswith("dask."):
        raise TypeError(
            f"{name} needs a dask array, got {type(x).__name__}; use polar for arrays in memory, "
            "or dask.array.from_array"
        )
    try:
        dask = import_library("dask")
        import_library("dask.array")
    except ImportError as error:  # x is an object of Dask, but dask.array is missing
        raise ImportError(f"{name} needs dask.array; install polarlib[dask]") from error
    if not isinstance(x, dask.array.Array) or type(x._meta) is not np.ndarray:
        kind = type(getattr(x, "_meta", x)).__name__
        raise TypeError(f"{name} needs a dask array with NumPy blocks, got blocks of {kind}")
    return dask


def _of_whole(name: str, signature: str) -> Any:
    """Return a primitive of the blocks' library for whole matrices; its vectors are real.

    The signature is that of a generalised ufunc, with k the smaller of the dimensions m and n.
    """

    @functools.wraps(getattr(Ops, name))
    def of_whole(self: DaskOps, *stacks: Array, **how: Any) -> Any:
        x = stacks[-1]
        results = re.findall(r"\(([^)]*)\)", signature.partition("->")[2])
        # Metadata: empty blocks of the right dtype.
        values, matrix = self.xp.real(x)._meta, x._meta
        meta = tuple(matrix if "," in axes else values for axes in results)
        sizes = {"k": min(x.shape[-2:]), "one": 1}

        def each(*blocks: Array) -> Any:
            return getattr(ops_of(blocks[0]), name)(*blocks, **how)

        return import_library("dask.array").apply_gufunc(
            each,
            signature,
            *stacks,
            meta=meta if len(meta) > 1 else meta[0],
            output_sizes={axis: n for axis, n in sizes.items() if axis in signature},
            allow_rechunk=True,
        )

    return of_whole


class DaskOps(Ops):
    """Dask: products by blocks; a factorisation gathers a matrix in one block.

    Dask's factorisations do not accept stacks, raise errors when blocks are computed, and its
    Cholesky factor is the upper one. Therefore those of the library of the blocks are used.
    """

    library = "dask"
    module = "dask.array"
    in_memory = False

    def max(
        self, x: Array, *, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
    ) -> Array:
        """Return the largest entries; also of an empty stack, which Dask refuses."""
        if axis is not None and 0 in x.shape:
            return self.xp.sum(x, axis=axis, keepdims=keepdims)
        return super().max(x, axis=axis, keepdims=keepdims)

    def max_abs(self, x: Array) -> Array:
        """Return the largest absolute entry (of real and imaginary parts, if complex)."""
        if is_complex(x):
            return super().max_abs(x)
        return self.max(self.xp.abs(x), axis=(-2, -1), keepdims=True)

    svd = _of_whole("svd", "(m,n)->(m,k),(k),(k,n)")
    singular_values = _of_whole("singular_values", "(m,n)->(k)")
    eigh = _of_whole("eigh", "(n,n)->(n),(n,n)")
    eigenvalues = _of_whole("eigenvalues", "(n,n)->(n)")
    qr = _of_whole("qr", "(m,n)->(m,k),(k,n)")
    determinant_sign = _of_whole("determinant_sign", "(n,n)->(one,one)")
    cholesky = _of_whole("cholesky", "(n,n)->(n,n)")
    solve_lower = _of_whole("solve_lower", "(n,n),(n,l)->(n,l)")
    inverse = _of_whole("inverse", "(n,n)->(n,n)")
