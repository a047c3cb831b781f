"""Products, sums and norms, for any array library.

The second part of :class:`polarlib.arrays.ops.Ops`. Matrices are the last two axes. Primitives with
``out=`` may store the result there, and callers use the return value. ``out`` must not be one of
the operands.

A coefficient of products and sums is a number, or a real array of the library, in at least single
precision, of shape (..., 1, 1). Such an array has one coefficient per matrix, and is not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import array_api_compat

from polarlib.arrays.formats import FORMATS, Format
from polarlib.arrays.library import (
    Library,
    astype_like,
    at_least_single,
    format_name,
    is_complex,
    is_known,
)

Array = Any

# Largest number of terms in one sum of a BLAS. For few long columns MKL and OpenBLAS add products
# one after the other, with an error that grows like the length (1.3 % for 1e6 x 1 equal float32
# entries). With blocks of BLOCK rows it is below 20 eps. A block has FEW times as many rows as
# columns, so that sums of blocks take 1 / FEW of the storage of an operand. From MANY columns on,
# kernels sum in pieces of some hundreds of terms, and LARGE_BLOCK rows suffice.
LONG = 1 << 10
BLOCK = 1 << 8
FEW = 16
MANY = 1 << 9
LARGE_BLOCK = 1 << 12
# Number of entries of products stored by entries up to which calls cost more than a temporary array
# of all terms. By experiment, with torch.
FEW_ENTRIES = 1 << 13


class Arithmetic(Library):
    """Products, combinations and norms of stacks of matrices; functional, any library."""

    def item(self, x: Array) -> float:
        """Return the largest entry as a Python float (a synchronisation on a device)."""
        return float(self.max(x))

    # -- products ----------------------------------------------------------------------------

    def buffer(self, shape: tuple[int, ...], like: Array) -> Array | None:
        """Return storage for an ``out=``; None if the library cannot use it."""
        return None

    def reusable(self, x: Array) -> bool:
        """Return whether `x` can be used as an ``out=``."""
        return False

    def writable(self, x: Array) -> bool:
        """Return whether entries of `x` can be assigned."""
        return hasattr(x, "__setitem__")

    def _store(self, x: Array, out: Array) -> None:
        """Write `x` to an array."""
        out[...] = x

    def multiplier(self, x: Array) -> str:
        """Return the format in which products of `x` are computed: its own, except by settings."""
        return format_name(x)

    def _multiplies_in(self, format_name: str) -> bool:
        """Return whether the library computes products in a format natively."""
        return format_name in self.native

    def _multiplies_at_speed(self, format_name: str) -> bool:
        """Return whether products in a native format are at least as fast as those in float32.

        If not, products are computed in float32 and rounded: see `rounded`.
        """
        return True

    def _dtype_that_rounds(self, format_name: str) -> Any:
        """Return the dtype by whose conversion float32 is rounded to a format; or None.

        XLA removes conversions to a dtype and back; therefore None by default.
        """
        return None

    def _rounded_by_sums(self, x: Array, precision: Format) -> Array | None:
        """Round to a format in few operations, if calls dominate the time; None otherwise."""
        return None

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Return ``a @ b``."""
        return self._in_blocks(a, b) if self._is_long(a, b) else self._matmul(a, b)

    def _matmul(self, a: Array, b: Array) -> Array:
        """Return ``a @ b`` by one call of the library."""
        return self.xp.matmul(a, b)

    def _is_long(self, a: Array, b: Array) -> bool:
        """Return whether one call would add too many terms of ``a @ b`` in one sum."""
        k, few = a.shape[-1], min(a.shape[-2], b.shape[-1])
        large = few >= MANY or array_api_compat.is_dask_namespace(self.xp)
        if k < LONG or k < 2 * (LARGE_BLOCK if large else FEW * few):
            return False
        return format_name(a) in ("float32", "float64")

    def _in_blocks(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Return ``a @ b`` by blocks of the inner dimension, whose products are summed in double.

        Blocks are views of the operands.
        """
        xp, few = self.xp, min(a.shape[-2], b.shape[-1])
        if array_api_compat.is_dask_namespace(xp):  # it sums over its chunks
            return xp.matmul(a.rechunk({-1: LARGE_BLOCK}), b.rechunk({-2: LARGE_BLOCK}))
        if few >= MANY:
            blocks = ranges(a.shape[-1], LARGE_BLOCK)
            return self._total((self.matmul(a[..., i], b[..., i, :]) for i in blocks), a, out)
        size = max(BLOCK, FEW * few)
        count = a.shape[-1] // size
        end = count * size
        left = xp.reshape(a[..., :end], (*a.shape[:-1], count, size))
        right = xp.reshape(b[..., :end, :], (*b.shape[:-2], count, size, b.shape[-1]))
        products = self._matmul(xp.moveaxis(left, -2, -3), right)
        parts = [xp.sum(products, axis=-3, dtype=self._double(a))]
        if end < a.shape[-1]:
            parts.append(self._matmul(a[..., end:], b[..., end:, :]))
        return self._total(parts, a, out)

    def _total(self, parts: Iterable[Array], like: Array, out: Array | None) -> Array:
        """Return the sum of matrices in double precision, rounded once."""
        wide = self._double(like)
        total = astype_like(sum(self.xp.astype(part, wide) for part in parts), like, self)
        if out is None:
            return total
        out[...] = total
        return out

    def _double(self, x: Array) -> Any:
        """Return the dtype of double precision for `x`; that of `x` if there is none."""
        if not self._has_double(x):
            return x.dtype
        return self._dtype("complex128" if is_complex(x) else "float64")

    def gram(self, x: Array, out: Array | None = None) -> Array:
        """Return ``x^H x``."""
        return self.matmul(self.adjoint(x), x, out)

    def gemm(
        self, a: Array, b: Array, c: Array, alpha: float = 1.0, beta: float = 0.0, out: Array = None
    ) -> Array:
        """Return ``alpha a @ b + beta c``; no operand is modified."""
        if not (is_known(alpha) and is_known(beta)):
            return self._by_combination(a, b, c, alpha, beta)
        product = self.matmul(a, b, out)
        if alpha != 1.0:
            product = product * alpha
        return product + c * beta if beta else product

    def _by_combination(
        self, a: Array, b: Array, c: Array, alpha: Array | float, beta: Array | float
    ) -> Array:
        """Return ``alpha a @ b + beta c`` for coefficients that products do not accept.

        In 16 bits the product is rounded before the addition.
        """
        product = self.matmul(a, b)
        if is_known(beta, 0.0):
            return self.combine((alpha,), (product,))
        return self.combine((alpha, beta), (product, c))

    def gemm_hermitian(
        self, a: Array, b: Array, c: Array, alpha: float = 1.0, beta: float = 0.0, out: Array = None
    ) -> Array:
        """Return ``alpha a @ b + beta c``, Hermitian up to rounding, perhaps by one triangle."""
        return self.gemm(a, b, c, alpha, beta, out)

    def make_hermitian(self, z: Array) -> Array:
        """Return the Hermitian part of Z, as required before Z is squared; Z may be overwritten."""
        return z

    def quadratic(self, g: Array, c: Sequence[float], out: Array | None = None) -> Array:
        """Return ``c_1 G + c_2 G^2`` of a Hermitian G, for a polynomial that begins with c_0."""
        return self.gemm_hermitian(g, g, g, c[2], c[1], out)

    def add_scaled_identity(
        self, z: Array, alpha: float, beta: float
    ) -> tuple[Array, float, float]:
        """Form ``alpha Z + beta I`` if that costs no accuracy; `z` may be overwritten.

        Returns
        -------
        z, alpha, beta
            An equivalent triple, ``(alpha Z + beta I, 1, 0)`` in full precision.
        """
        if self.fused:
            return z, alpha, beta
        return self.add_diagonal(z * alpha, beta), 1.0, 0.0

    def entry_product(self, a: Array, b: Array) -> Array:
        """Return the product of matrices stored by entries, (l, k, batch) and (k, n, batch)."""
        if a.shape[0] * b.shape[1] * a.shape[2] <= FEW_ENTRIES:
            return self.xp.sum(a[:, :, None, :] * b[None, :, :, :], axis=1)
        total = a[:, 0, None, :] * b[None, 0, :, :]
        for i in range(1, a.shape[1]):
            total += a[:, i, None, :] * b[None, i, :, :]
        return total

    # -- elementwise -------------------------------------------------------------------------

    def adjoint(self, x: Array) -> Array:
        """Return the conjugate transpose."""
        xp = self.xp
        return xp.conj(xp.matrix_transpose(x)) if is_complex(x) else xp.matrix_transpose(x)

    def combine(self, coefficients: Sequence[float], matrices: Sequence[Array]) -> Array:
        """Return ``sum c_i M_i``, a new array; 16-bit matrices are combined in float32."""
        first = matrices[0]
        if self.fused:
            matrices = [self.xp.astype(m, self.xp.float32) for m in matrices]
        total = matrices[0] * coefficients[0]
        for c, m in zip(coefficients[1:], matrices[1:], strict=True):
            total = total + m * c
        return astype_like(total, first, self)

    def eye(self, n: int, like: Array) -> Array:
        """Return the n x n identity with the dtype and device of `like`."""
        return self.xp.eye(n, dtype=like.dtype, device=self._device_of(like))

    def _diagonal(self, z: Array) -> Array:
        """Return the diagonals of square matrices, shape (..., n)."""
        return self.xp.linalg.diagonal(z)

    def add_diagonal(self, z: Array, a: float) -> Array:
        """Return ``z + a I``; `z` may be overwritten."""
        one = self.eye(z.shape[-1], z)
        # Libraries would round a Python number to 16 bits before the addition.
        return self.combine((1.0, a), (z, one)) if self.fused else z + one * a

    def divide(self, x: Array, s: Array | float, *, may_overwrite: bool = False) -> Array:
        """Return ``x / s`` in the dtype of `x`, a new array unless `x` may be overwritten."""
        return astype_like(x / s, x, self)

    def scale(self, x: Array, s: Array | float, *, may_overwrite: bool = False) -> Array:
        """Return ``x * s``, a new array unless `x` may be overwritten; overflow gives infinity."""
        return x * s

    def hermitian_part(self, z: Array, *, may_overwrite: bool = False) -> Array:
        """Return ``(z + z^H) / 2``, exactly Hermitian and without overflow.

        The result may use the storage of `z` if that may be overwritten.
        """
        half = z * 0.5
        return half + self.adjoint(half)

    def hermitian_split(self, w: Array) -> tuple[Array, Array]:
        """Return the Hermitian part and the norm of the skew part; `w` may be overwritten."""
        skew = self.frobenius((w - self.adjoint(w)) * 0.5)
        return self.hermitian_part(w), skew

    def max(
        self, x: Array, *, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
    ) -> Array:
        """Return the largest entries, NaN where one is NaN."""
        return self.xp.max(x, axis=axis, keepdims=keepdims)

    # -- norms: real, shape (..., 1, 1), so that matrices can be divided by them --------------

    def max_abs(self, x: Array) -> Array:
        """Return the largest absolute entry; for complex matrices of real and imaginary parts.

        The value is finite if and only if all entries are. All checks for NaN and infinity use it.
        """
        xp = self.xp
        if is_complex(x):
            return xp.maximum(self.max_abs(xp.real(x)), self.max_abs(xp.imag(x)))
        # Without a temporary array of the size of x; `max` propagates NaN, so `min` need not.
        high = self.max(x, axis=(-2, -1), keepdims=True)
        low = xp.min(x, axis=(-2, -1), keepdims=True)
        return xp.maximum(high, -low)

    def binary_scale(self, max_abs: Array) -> Array | float:
        """Return the power of two near the largest entry of each matrix; scaling by it is exact.

        The reciprocal is a normal number too: some libraries divide by multiplying with it, and
        flush subnormal numbers to zero.
        """
        xp = self.xp
        limit = -math.log2(FORMATS[format_name(max_abs)].smallest_normal)
        if self._is_scalar(max_abs):
            known = self.item(max_abs)
            exponent = math.frexp(known)[1] - 1 if known > 0 and math.isfinite(known) else 0
            return 2.0 ** min(max(exponent, -limit), limit)
        known = xp.where((max_abs > 0) & xp.isfinite(max_abs), max_abs, xp.ones_like(max_abs))
        exponent = xp.floor(xp.log2(known))
        # CuPy's clip would synchronise, and torch's fake tensors do not accept numbers here.
        exponent = xp.minimum(exponent, xp.full_like(exponent, limit))
        return 2.0 ** xp.maximum(exponent, xp.full_like(exponent, -limit))

    def divisor(self, s: Array | float) -> Array | float:
        """Return norms as divisors: 1 for a zero matrix (or column), NaN if it is not finite."""
        xp = self.xp
        if isinstance(s, float) or self._is_scalar(s):
            known = s if isinstance(s, float) else self.item(s)
            return (known or 1.0) if math.isfinite(known) else math.nan
        finite = xp.where(xp.isfinite(s), s, xp.full_like(s, math.nan))
        return xp.where(s == 0, xp.ones_like(s), finite)

    def _is_scalar(self, s: Array) -> bool:
        """Return whether Python's arithmetic can be used, which is faster for one number."""
        return self.host and math.prod(s.shape) == 1

    def frobenius(self, x: Array) -> Array:
        """Return the Frobenius norm, in at least single precision, for entries of about 1."""
        xp = self.xp
        x = at_least_single(x, self)
        if is_complex(x):
            re, im = xp.real(x), xp.imag(x)
            return xp.sqrt(xp.sum(re * re + im * im, axis=(-2, -1), keepdims=True))
        return xp.sqrt(xp.sum(x * x, axis=(-2, -1), keepdims=True))

    def sums(self, x: Array, axis: int) -> Array:
        """Return sums along an axis, which is kept, in double: some libraries add sequentially."""
        if format_name(x) != "float32":
            return self.xp.sum(x, axis=axis, keepdims=True)
        return astype_like(self.xp.sum(x, axis=axis, keepdims=True, dtype=self._double(x)), x, self)


def ranges(length: int, size: int) -> list[slice]:
    """Return consecutive slices of at most `size` that cover a length."""
    return [slice(i, i + size) for i in range(0, length, size)]
