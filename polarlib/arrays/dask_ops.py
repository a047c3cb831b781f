"""Dask: arrays of blocks that are computed later."""

from __future__ import annotations

import re
from typing import Any

from polarlib.arrays.library import import_library
from polarlib.arrays.ops import Ops, ops_of

Array = Any


class DaskOps(Ops):
    """Dask: blocks are multiplied where they lie; a factorisation gathers a matrix in one block.

    Dask's own factorisations take no stacks, raise when blocks are computed, and its Cholesky
    factor is the upper one: those of the library of the blocks are used.
    """

    library = "dask"

    def fits(self, shape: tuple[int, ...], like: Array) -> bool:
        """Blocks need not be in memory at once."""
        return True

    def max(
        self, x: Array, *, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
    ) -> Array:
        """Return the largest entries; Dask refuses those of an empty stack."""
        if axis is not None and 0 in x.shape:
            return self.xp.sum(x, axis=axis, keepdims=keepdims)
        return super().max(x, axis=axis, keepdims=keepdims)

    def max_abs(self, x: Array) -> Array:
        """Largest absolute entry (of real and imaginary parts, if complex)."""
        if self.is_complex(x):
            return super().max_abs(x)
        return self.max(self.xp.abs(x), axis=(-2, -1), keepdims=True)

    def svd(self, x: Array) -> tuple[Array, Array, Array]:
        """Thin SVD ``u, s, vh``."""
        u, s, vh = self._by_blocks("svd", "(m,n)->(m,k),(k),(k,n)", x, k=min(x.shape[-2:]))
        return u, s, vh

    def singular_values(self, x: Array) -> Array:
        """Singular values, descending."""
        return self._by_blocks("singular_values", "(m,n)->(k)", x, k=min(x.shape[-2:]))

    def eigh(self, z: Array) -> tuple[Array, Array]:
        """Eigenvalues of Hermitian matrices, ascending, and eigenvectors."""
        values, vectors = self._by_blocks("eigh", "(n,n)->(n),(n,n)", z)
        return values, vectors

    def eigenvalues(self, h: Array) -> Array:
        """Eigenvalues of Hermitian matrices, ascending."""
        return self._by_blocks("eigenvalues", "(n,n)->(n)", h)

    def qr(self, x: Array) -> tuple[Array, Array]:
        """Reduced Householder QR."""
        q, r = self._by_blocks("qr", "(m,n)->(m,k),(k,n)", x, k=min(x.shape[-2:]))
        return q, r

    def determinant_sign(self, x: Array) -> Array:
        """Signs of the determinants of real matrices, shape (..., 1, 1)."""
        return self._by_blocks("determinant_sign", "(n,n)->(k,k)", x, k=1)

    def cholesky(self, z: Array) -> Array:
        """Lower Cholesky factor of a Hermitian matrix; NaN where it is not positive definite."""
        return self._by_blocks("cholesky", "(n,n)->(n,n)", z)

    def solve_lower(self, l: Array, b: Array, *, adjoint: bool = False) -> Array:
        """Return ``l^-1 b`` or ``l^-H b``; infinite or NaN if singular."""
        return self._by_blocks("solve_lower", "(n,n),(n,k)->(n,k)", l, b, adjoint=adjoint)

    def inverse(self, x: Array) -> Array:
        """Inverse by LU with partial pivoting; infinite or NaN if singular."""
        return self._by_blocks("inverse", "(n,n)->(n,n)", x)

    def _by_blocks(
        self, primitive: str, signature: str, *stacks: Array, k: int | None = None, **how: Any
    ) -> Any:
        """Apply a primitive of the blocks' library to whole matrices; vectors it gives are real."""
        x = stacks[-1]
        given = re.findall(r"\(([^)]*)\)", signature.partition("->")[2])
        # Their metadata: empty blocks of the right dtype.
        values, matrix = self.xp.real(x)._meta, x._meta
        meta = tuple(matrix if "," in axes else values for axes in given)

        def each(*blocks: Array) -> Any:
            return getattr(ops_of(blocks[0]), primitive)(*blocks, **how)

        return import_library("dask.array").apply_gufunc(
            each,
            signature,
            *stacks,
            meta=meta if len(meta) > 1 else meta[0],
            output_sizes=None if k is None else {"k": k},
            allow_rechunk=True,
        )
