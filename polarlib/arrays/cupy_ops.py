"""CuPy: products by cuBLAS, sums by one kernel."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from polarlib.arrays import cublas, cusolver
from polarlib.arrays.cupy_device import check_compiler, refuse_capture
from polarlib.arrays.cupy_normaliser import normaliser
from polarlib.arrays.formats import FORMATS
from polarlib.arrays.in_place import InPlaceOps
from polarlib.arrays.library import (
    FORMAT_OF_DTYPE,
    dtype_name,
    format_name,
    import_library,
    is_complex,
    is_known,
    numpy_dtype,
)
from polarlib.arrays.normaliser import Normaliser
from polarlib.arrays.ops import Ops

Array = Any
# Ratio of coefficients up to which a diagonal is scaled before a product that scales it back. Far
# from overflow; chosen generously.
FOLDED = 2.0**20


class CupyOps(InPlaceOps):
    """CuPy 14: products by cuBLAS with their addends, one kernel per combination.

    bfloat16 is converted before norms and factorisations, for which CuPy would use double.
    """

    library = "cupy"
    has_cpu = False

    @classmethod
    def _of(cls, x: Array, xp: Any) -> Ops:
        """Return the arithmetic for the device of an array."""
        return _on_device(cast(Any, cls), xp, x.data.device_id)

    def __init__(self, xp: Any, device: int = 0, *, fused: bool = False) -> None:
        super().__init__(xp, fused=fused)
        check_compiler()
        tf32 = {"tf32"} if cublas.has_tf32(device) else set()
        self.native = frozenset({"float64", "float32", "bfloat16", "float16"} | tf32)

    def _check_sharding(self, x: Array, name: str, *, taken: bool) -> None:
        """Raise while the stream is captured; every function with products calls this first."""
        refuse_capture(name)

    def _dtype(self, name: str) -> Any:
        """Return a dtype of NumPy or ml_dtypes, which CuPy uses."""
        return numpy_dtype(name)

    # The rounding of a device's conversions has not been tested.
    _dtype_that_rounds = Ops._dtype_that_rounds

    def to_host(self, x: Array) -> np.ndarray:
        """Copy to NumPy in float64 or complex128."""
        return np.asarray(x.get().astype(np.complex128 if is_complex(x) else np.float64))

    def reusable(self, x: Array) -> bool:
        """Return whether `x` can be used as an ``out=``; adjoints can."""
        return cublas.is_readable(x)

    def buffer(self, shape: tuple[int, ...], like: Array) -> Array:
        """Return storage for an ``out=`` with the memory order of `like`, as addends must have."""
        return cublas.empty(shape, like)

    def _product(self, a: Array, b: Array, out: Array | None = None, **how: Any) -> Array:
        # Of the narrow formats, whose arithmetic is fused, only tf32 is stored as float32.
        return cublas.gemm(a, b, out, tf32=self.fused, **how)

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Return ``a @ b``."""
        return self._product(a, b, out)

    def gram(self, x: Array, out: Array | None = None) -> Array:
        """Return ``x^H x``; nothing is transposed or conjugated in memory."""
        n = x.shape[-1]
        out = self.buffer((*x.shape[:-2], n, n), x) if out is None else out
        return self._product(x, x, out, adjoint_a=True)

    def gemm(
        self,
        a: Array,
        b: Array,
        c: Array,
        alpha: Array | float = 1.0,
        beta: Array | float = 0.0,
        out: Array = None,
    ) -> Array:
        """Return ``alpha a @ b + beta c``, rounded once; alpha and beta may be on the device.

        cuBLAS uses one alpha and one beta for the whole stack.
        """
        if max(getattr(s, "size", 1) for s in (alpha, beta)) > 1:
            return self._by_combination(a, b, c, alpha, beta)
        out = self.buffer(c.shape, c) if out is None else out
        return self._product(a, b, out, alpha=alpha, beta=beta, addend=c)

    def add_scaled_identity(
        self, z: Array, alpha: float, beta: float
    ) -> tuple[Array, float, float]:
        """Form ``Z + beta / alpha I`` and keep alpha, which a product applies at no cost."""
        known = is_known(alpha) and is_known(beta)
        if self.fused or not known or not abs(beta) <= FOLDED * abs(alpha):
            return super().add_scaled_identity(z, alpha, beta)
        return self.add_diagonal(z, beta / alpha), alpha, 0.0

    def _kernel(self, inputs: str, output: str, operation: str, name: str) -> Any:
        return _elementwise(self.xp, inputs, output, operation, name)

    def combine(self, coefficients: Sequence[float], matrices: Sequence[Array]) -> Array:
        """Return ``sum c_i M_i``, a new array, in one pass; rounded once if c are numbers."""
        if not all(map(is_known, coefficients)):
            return super().combine(coefficients, matrices)
        source = _combination(len(matrices), dtype_name(matrices[0]))
        pairs = zip(matrices, map(float, coefficients), strict=True)
        return self._kernel(*source)(*itertools.chain.from_iterable(pairs))

    def divide(self, x: Array, s: Array | float, *, may_overwrite: bool = False) -> Array:
        """Return ``x / s`` in the dtype of `x`, and in its storage if that may be overwritten."""
        return self.xp.divide(x, s, out=x if may_overwrite else self.xp.empty_like(x))

    def scale(self, x: Array, s: Array | float, *, may_overwrite: bool = False) -> Array:
        """Return ``x * s`` in the dtype of `x`, a new array."""
        return self.xp.multiply(x, s, out=self.xp.empty_like(x))

    def hermitian_part(self, z: Array, *, may_overwrite: bool = False) -> Array:
        """Return ``(z + z^H) / 2``, exactly Hermitian and free of overflow."""
        return self.combine((0.5, 0.5), (z, self.adjoint(z)))

    def max_abs(self, x: Array) -> Array:
        """Return the largest absolute entry; CUB would copy a column-major matrix."""
        return super().max_abs(x.swapaxes(-1, -2) if cublas.is_transposed(x) else x)

    def binary_scale(self, max_abs: Array) -> Array | float:
        """Return the power of two near the largest entry of each matrix, by one kernel."""
        limit = round(-math.log2(FORMATS[format_name(max_abs)].smallest_normal))
        return self._kernel(
            "T peak, int32 limit",
            "T y",
            "y = peak > 0 && isfinite(peak) ? ldexp(T(1), max(-limit, min(limit, ilogb(peak))))"
            " : T(1)",
            "polarlib_binary_scale",
        )(max_abs, limit)

    def divisor(self, s: Array | float) -> Array | float:
        """Return norms as divisors: 1 for a zero matrix (or column), NaN if it is not finite."""
        if isinstance(s, float):
            return super().divisor(s)
        operation = "y = s == 0 ? T(1) : s + (s - s)"  # s - s is NaN for infinity
        return self._kernel("T s", "T y", operation, "polarlib_divisor")(s)

    def frobenius(self, x: Array) -> Array:
        """Return the Frobenius norm; squares are formed in one pass, at least in float32."""
        wide = "float64" if format_name(x) == "float64" else "float32"
        squares = self._kernel("T x", f"{wide} y", _square(dtype_name(x)), "polarlib_square")(x)
        return self.xp.sqrt(self.xp.sum(squares, axis=(-2, -1), keepdims=True))

    def normaliser(self, x: Array) -> Normaliser | None:
        """Return a normaliser of two kernels each, for dense matrices of 16 or 32 bits."""
        return normaliser(x)

    def cholesky(self, z: Array) -> Array:
        """Return the lower Cholesky factor; NaN if not positive definite, by cuSOLVER's info."""
        return cusolver.cholesky(z)

    def inverse(self, x: Array) -> Array:
        """Return the inverse by LU; CuPy's function for stacks is undefined for singular ones."""
        eye = self.eye(x.shape[-1], x)
        return self.xp.linalg.solve(x, self.xp.broadcast_to(eye, x.shape))

    def solve_lower(self, l: Array, b: Array, *, adjoint: bool = False) -> Array:
        """Return ``l^-1 b`` or ``l^-H b``, for a whole stack."""
        if not b.size:
            return self.xp.empty_like(b)
        solve = import_library("cupyx.scipy.linalg").solve_triangular
        return solve(l, b, lower=True, trans="C" if adjoint else "N")


@functools.lru_cache(maxsize=64)
def _on_device(kind: Any, xp: Any, device: int) -> CupyOps:
    return cast(CupyOps, kind(xp, device))


def _combination(count: int, dtype: str) -> tuple[str, str, str, str]:
    """Return the source of ``y = c0 * m0 + c1 * m1 + ...``, in single precision for 16 bits."""
    scalar = "float64" if FORMAT_OF_DTYPE.get(dtype, dtype) == "float64" else "float32"
    inputs = ", ".join(f"T m{i}, {scalar} c{i}" for i in range(count))
    entry = "float(m{})" if dtype in ("bfloat16", "float16") else "m{}"
    terms = " + ".join(f"c{i} * {entry.format(i)}" for i in range(count))
    return inputs, "T y", f"y = {terms}", f"polarlib_combine_{count}"


def _square(dtype: str) -> str:
    """Return the source of a kernel of squared absolute values, in at least single precision."""
    if dtype.startswith("complex"):
        return "y = x.real() * x.real() + x.imag() * x.imag()"
    return "y = float(x) * float(x)" if dtype in ("bfloat16", "float16") else "y = x * x"


@functools.lru_cache(maxsize=256)
def _elementwise(xp: Any, inputs: str, output: str, operation: str, name: str) -> Any:
    """Return CuPy's kernel for a source, cached."""
    return xp.ElementwiseKernel(inputs, output, operation, name)
