"""Products and sums in place, shared by libraries whose arrays can be written."""

from __future__ import annotations

from typing import Any

from polarlib.arrays.library import astype_like, is_known
from polarlib.arrays.ops import Ops

Array = Any


class InPlaceOps(Ops):
    """Libraries whose arrays can be written: NumPy, CuPy, torch without gradients."""

    def _has_double(self, x: Array) -> bool:
        """Return True."""
        return True

    def _dtype_that_rounds(self, format_name: str) -> Any:
        """Return the dtype of a 16-bit format; None for formats that need ml_dtypes without it."""
        if format_name not in ("bfloat16", "float16"):
            return None
        try:
            return self._dtype(format_name)
        except ImportError:
            return None

    def buffer(self, shape: tuple[int, ...], like: Array) -> Array | None:
        """Return storage for an ``out=``."""
        return self.xp.empty(shape, dtype=like.dtype, device=self._device_of(like))

    def reusable(self, x: Array) -> bool:
        """Return whether `x` can be used as an ``out=``, which must be contiguous."""
        return bool(x.flags.c_contiguous)

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Return ``a @ b``."""
        if self._is_long(a, b):
            return self._in_blocks(a, b, out)
        return self.xp.matmul(a, b) if out is None else self.xp.matmul(a, b, out=out)

    def _diagonal(self, z: Array) -> Array:
        """Return a writable view of the diagonals."""
        return z.diagonal(0, -2, -1)

    def add_diagonal(self, z: Array, a: Array) -> Array:
        """Return ``z + a I`` in the storage of `z`."""
        diagonal = self._diagonal(z)
        diagonal += a if is_known(a) else a[..., 0]
        return z

    def add_scaled_identity(
        self, z: Array, alpha: float, beta: float
    ) -> tuple[Array, float, float]:
        """Form ``alpha Z + beta I`` in the storage of Z."""
        if self.fused:
            return z, alpha, beta
        if not is_known(alpha, 1.0):
            z *= alpha
        return self.add_diagonal(z, beta), 1.0, 0.0

    def gemm(
        self, a: Array, b: Array, c: Array, alpha: float = 1.0, beta: float = 0.0, out: Array = None
    ) -> Array:
        """Return ``alpha a @ b + beta c``; no operand is modified."""
        if not (is_known(alpha) and is_known(beta)):
            return self._by_combination(a, b, c, alpha, beta)
        product = self.matmul(a, b, out)
        if alpha != 1.0:
            product *= alpha
        if beta == 1.0:
            product += c
        elif beta:
            product += c * beta
        return product

    def divide(self, x: Array, s: Array | float, *, may_overwrite: bool = False) -> Array:
        """Return ``x / s`` in the dtype of `x`, and in its storage if that may be overwritten."""
        if may_overwrite:
            x /= s
            return x
        return astype_like(x / s, x, self)
