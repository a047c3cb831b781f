"""NumPy: kernels in place, and factorisations by direct calls of BLAS and LAPACK."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from polarlib.arrays import blas, routines
from polarlib.arrays.arithmetic import LARGE_BLOCK, ranges
from polarlib.arrays.in_place import InPlaceOps
from polarlib.arrays.kernels import NumpyKernels
from polarlib.arrays.library import (
    at_least_single,
    format_name,
    is_complex,
    is_known,
    numpy_dtype,
)
from polarlib.arrays.ops import finite_only, unless_it_fails

Array = Any
# Number of multiplications, or of entries in a pass, from which routines of BLAS are faster than
# NumPy's functions. Chosen by experiment.
BLAS_FROM = 1 << 14
# Number of columns up to which numpy.linalg factorises a stack, in double precision, since one call
# of LAPACK from Python per matrix costs more. By experiment.
STACKED = {"float32": 32, "float64": 64}
# ``c_1**2 <= CANCELS c_0 c_2``: the cancellation in a completed square is at most twice c_0.
CANCELS = 8.0


class NumpyOps(InPlaceOps):
    """NumPy, with direct calls of LAPACK: numpy.linalg would factorise float32 in double."""

    library = "numpy"
    host = True

    def kernels(self, x: Array) -> NumpyKernels | None:
        """Return kernels for the matrices of `x`, if BLAS computes in their type."""
        return NumpyKernels() if blas.computes_in(x.dtype) else None

    def _threads_for(self, x: Array) -> AbstractContextManager[None]:
        """Return a context with one thread for matrices of up to about 500 columns."""
        return routines.threads_for(x)

    def writable(self, x: Array) -> bool:
        """Return whether entries of `x` can be assigned to."""
        return bool(x.flags.writeable)

    def _dtype(self, name: str) -> Any:
        """Return NumPy's dtype, or ml_dtypes' for the formats that NumPy lacks."""
        return numpy_dtype(name)

    def cast(self, x: Array, format_name: str) -> Array:
        """Convert to the dtype of a format, in the byte order that kernels work in."""
        x = super().cast(x, format_name)
        return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))

    def binary_scale(self, max_abs: Array) -> Array | float:
        """Return the power of two near the largest entry; without logarithms, ten times as fast."""
        if self._is_scalar(max_abs) or format_name(max_abs) not in ("float32", "float64"):
            return super().binary_scale(max_abs)
        limit = -np.finfo(max_abs.dtype).minexp
        _, exponent = np.frexp(np.where((max_abs > 0) & np.isfinite(max_abs), max_abs, 1))
        return np.ldexp(np.ones_like(max_abs), np.clip(exponent - 1, -limit, limit))

    def _diagonal(self, z: Array) -> Array:
        """Return a writable view of the diagonals; ndarray.diagonal gives a read-only one."""
        return np.einsum("...ii->...i", z)

    def gram(self, x: Array, out: Array | None = None) -> Array:
        """Return ``x^H x``, exactly Hermitian."""
        # BLAS sums long columns sequentially: see `LONG` in arithmetic.py.
        if x.shape[-2] >= 2 * LARGE_BLOCK:
            blocks = ranges(x.shape[-2], LARGE_BLOCK)
            return self._total((self.gram(x[..., i, :]) for i in blocks), x, out)
        work = x.shape[-2] * x.shape[-1] ** 2
        # NumPy computes one triangle of a real product with a transpose, and mirrors it in C.
        alike = not is_complex(x) and _is_contiguous(x) and (out is None or out.flags.c_contiguous)
        if alike or not _worth_blas(work, x, x if out is None else out):
            return super().gram(x, out)
        return blas.whole_gram(x, out)

    def gemm(
        self, a: Array, b: Array, c: Array, alpha: float = 1.0, beta: float = 0.0, out: Array = None
    ) -> Array:
        """Return ``alpha a @ b + beta c`` without temporaries, rounded once."""
        work = a.shape[-2] * a.shape[-1] * b.shape[-1]
        worth = _worth_blas(work, a, b, c, a if out is None else out)
        if not (worth and is_known(alpha) and is_known(beta)):
            return super().gemm(a, b, c, alpha, beta, out)
        if beta:
            out = np.empty(c.shape, c.dtype) if out is None else out
            out[...] = c
        return blas.matmul(a, b, out, alpha=alpha, beta=beta)

    def entry_product(self, a: Array, b: Array) -> Array:
        """Return the product of matrices stored by entries, in one pass per multiply-add."""
        if a.shape[-1] == 1:  # einsum would sum in another order
            return self.entry_product(np.repeat(a, 2, axis=-1), np.repeat(b, 2, axis=-1))[..., :1]
        return np.einsum("ikb,kjb->ijb", a, b)

    def make_hermitian(self, z: Array) -> Array:
        """Return the exactly Hermitian part, since squares are computed as Gram products."""
        if not _worth_blas(z.size, z) or not _is_contiguous(z):
            return self.hermitian_part(z)
        blas.mirror(blas.columns(z)[0])
        return z

    def quadratic(self, g: Array, c: Sequence[float], out: Array | None = None) -> Array:
        """Return ``c_1 G + c_2 G^2`` by half a product, if the cancellation is of the size of c_0.

        The result is ``c_2 (G + s I)^2 - c_2 s^2 I`` with ``s = c_1 / (2 c_2)``: passes over
        diagonals, and a square that is a Gram product. `g` is restored exactly.
        """
        # The coefficients of a step are all numbers, or all arrays.
        if not is_known(c[0]) or not c[2] or c[1] * c[1] > CANCELS * abs(c[0] * c[2]):
            return super().quadratic(g, c, out)
        s = c[1] / (2 * c[2])
        diagonal = self._diagonal(g)
        saved = diagonal + 0.0
        diagonal += s
        square = self.gram(g, out)
        diagonal[...] = saved
        square *= c[2]
        return self.add_diagonal(square, -c[2] * s * s)

    def combine(self, coefficients: Sequence[float], matrices: Sequence[Array]) -> Array:
        """Return ``sum c_i M_i``, a new array, summed in its storage."""
        if self.fused:
            return super().combine(coefficients, matrices)
        total = matrices[0] * coefficients[0]
        for c, m in zip(coefficients[1:], matrices[1:], strict=True):
            total += m if isinstance(c, float) and c == 1.0 else m * c
        return total

    def scale(self, x: Array, s: Array | float, *, may_overwrite: bool = False) -> Array:
        """Return ``x * s``, in the storage of `x` if that may be overwritten."""
        if not may_overwrite:
            return super().scale(x, s)
        x *= s
        return x

    def hermitian_part(self, z: Array, *, may_overwrite: bool = False) -> Array:
        """Return ``(z + z^H) / 2``, in the storage of `z` or of one copy."""
        if not _worth_blas(z.size, z):
            return super().hermitian_part(z)
        z = z if may_overwrite else z.copy(order="K")
        blas.split(z)
        return z

    def hermitian_split(self, w: Array) -> tuple[Array, Array]:
        """Return the Hermitian part of W, in its storage, and the norm of the skew part."""
        if not _worth_blas(w.size, w):
            return super().hermitian_split(w)
        rest = blas.split(w)
        return w, np.full((1, 1), rest, w.real.dtype)

    def max_abs(self, x: Array) -> Array:
        """Return the largest absolute entry (of real and imaginary parts), in one pass."""
        if not _worth_blas(x.size, x) or not _is_contiguous(x):
            return super().max_abs(x)
        return np.full((1, 1), blas.max_abs(x), x.real.dtype)

    def frobenius(self, x: Array) -> Array:
        """Return the Frobenius norm without a temporary."""
        x = at_least_single(x, self)
        if _worth_blas(x.size, x) and _is_contiguous(x):
            return np.full((1, 1), blas.norm(x), x.real.dtype)
        parts = (x.real, x.imag) if is_complex(x) else (x,)
        if x.shape[-2] * x.shape[-1] <= BLAS_FROM:
            square = sum(np.einsum("...ij,...ij->...", part, part) for part in parts)
        else:  # one sum over all entries would lose digits
            rows = sum(np.einsum("...ij,...ij->...i", part, part) for part in parts)
            square = np.sum(rows, axis=-1, dtype=np.float64)
        return np.asarray(np.sqrt(square), dtype=x.real.dtype)[..., None, None]

    def _stacked(
        self, factorise: Callable[..., tuple[Array, ...]], *stacks: Array
    ) -> tuple[Array, ...] | None:
        """Factorise stacks of small matrices by one call of numpy.linalg; None where it fails."""
        first = stacks[0]
        if first.ndim == 2 or min(first.shape[-2:]) > STACKED.get(format_name(first), 0):
            return None
        return unless_it_fails(lambda: tuple(factorise(*stacks)), lambda: None)

    @staticmethod
    def _each(f: Callable[..., tuple[Array, ...]], *stacks: Array) -> tuple[Array, ...]:
        """Apply a function of matrices to each of a stack."""
        batch = stacks[0].shape[:-2]
        if not batch:
            return f(*stacks)
        flat = [s.reshape((-1, *s.shape[-2:])) for s in stacks]
        if flat[0].shape[0] == 0:  # an empty stack: the shapes come from one matrix of zeros
            results = f(*(np.zeros(s.shape[-2:], s.dtype) for s in stacks))
            return tuple(np.empty((*batch, *r.shape), r.dtype) for r in results)
        whole: tuple[Array, ...] = ()
        for i, matrices in enumerate(zip(*flat, strict=True)):
            results = f(*matrices)
            whole = whole or tuple(np.empty((len(flat[0]), *r.shape), r.dtype) for r in results)
            for stack, r in zip(whole, results, strict=True):
                stack[i] = r
        return tuple(stack.reshape((*batch, *stack.shape[1:])) for stack in whole)

    @finite_only
    def svd(self, x: Array) -> tuple[Array, Array, Array]:
        """Return the thin SVD by divide and conquer, or by QR iteration if that fails."""
        if not blas.computes_in(x.dtype):
            return super().svd(x)

        def one(a: Array) -> tuple[Array, ...]:
            (m, n), k = a.shape, min(a.shape)
            shapes = (m, k), (k,), (k, n)
            return routines.svd(a) or tuple(self._nan(a, shape) for shape in shapes)

        done = self._stacked(lambda x: np.linalg.svd(x, full_matrices=False), x)
        u, s, vh = done or self._each(one, x)
        return u, s, vh

    @finite_only
    def qr(self, x: Array) -> tuple[Array, Array]:
        """Return the reduced Householder QR."""
        if not blas.computes_in(x.dtype):
            return super().qr(x)
        done = self._stacked(lambda x: np.linalg.qr(x, mode="reduced"), x)
        q, r = done or self._each(routines.qr, x)
        return q, r

    @finite_only
    def cholesky(self, z: Array) -> Array:
        """Return the lower Cholesky factor; NaN where it is not positive definite."""
        if not blas.computes_in(z.dtype):
            return super().cholesky(z)

        def one(a: Array) -> tuple[Array]:
            # In row-major storage the lower triangle is the upper one of the transpose.
            factor = np.tril(a)
            return (factor if routines.potrf(factor.T) else np.full_like(a, np.nan),)

        done = self._stacked(lambda z: (np.linalg.cholesky(z),), z)
        return (done or self._each(one, z))[0]

    def is_definite(self, z: Array, shift: Array) -> bool:
        """Return whether ``z - shift I`` has a Cholesky factor, in every matrix of a stack."""
        if not blas.computes_in(z.dtype):
            return super().is_definite(z, shift)

        def one(a: Array, s: Array) -> bool:
            # The transpose of a Hermitian matrix has its eigenvalues, and the other memory order.
            y = np.array(blas.columns(a)[0], order="F")
            blas.add_diagonal(y, -s.item())
            # Some implementations continue after NaN.
            return blas.cholesky(y) and bool(np.isfinite(blas.diagonal(y)).all())

        if z.ndim > 2 and z.shape[-1] <= STACKED.get(format_name(z), 0):
            y = z.copy()
            self._diagonal(y)[...] -= shift[..., 0]
            factor = self._stacked(lambda y: (np.linalg.cholesky(y),), y)
            # LAPACK continues after NaN, which stays on the diagonal.
            return factor is not None and bool(np.isfinite(self._diagonal(factor[0])).all())
        stacks = zip(z.reshape(-1, *z.shape[-2:]), shift.reshape(-1), strict=True)
        return all(one(a, s) for a, s in stacks)

    def count_eigenvalues_above(self, h: Array, cut: float) -> np.ndarray:
        """Return how many eigenvalues exceed `cut` times the largest, by the inertia of a shift."""
        if not blas.computes_in(h.dtype):
            return super().count_eigenvalues_above(h, cut)
        counts = [
            blas.count_eigenvalues_above(blas.columns(a)[0], cut)
            for a in h.reshape(-1, *h.shape[-2:])
        ]
        return np.array(counts, dtype=int).reshape(h.shape[:-2])

    @finite_only
    def solve_lower(self, l: Array, b: Array, *, adjoint: bool = False) -> Array:
        """Return ``l^-1 b`` or ``l^-H b``; NaN if singular."""
        if not blas.computes_in(b.dtype):
            return super().solve_lower(l, b, adjoint=adjoint)

        def one(l: Array, b: Array) -> tuple[Array]:
            if not np.diagonal(l).all():
                return (np.full_like(b, np.nan),)
            (a, turned), y = blas.columns(l), np.array(b, order="F")
            if turned and adjoint and a.dtype.kind == "c":  # no option for the conjugate alone
                a, turned = np.asfortranarray(l), False
            trans = ("N" if turned else "C") if adjoint else ("T" if turned else "N")
            return (routines.trsm(1.0, a, y, uplo="U" if turned else "L", trans=trans),)

        return self._each(one, l, b)[0]

    @finite_only
    def inverse(self, x: Array) -> Array:
        """Return the inverse by LU; NaN if singular."""
        if not blas.computes_in(x.dtype):
            return super().inverse(x)

        def one(a: Array) -> tuple[Array]:
            result = routines.inverse(a)
            return (np.full_like(a, np.nan) if result is None else result,)

        return self._each(one, x)[0]


def _worth_blas(size: int, *arrays: Array) -> bool:
    """Return whether routines of BLAS are faster: for their types, and large matrices."""
    return size >= BLAS_FROM and blas.has_kernels(*arrays)


def _is_contiguous(x: Array) -> bool:
    return bool(x.flags.c_contiguous or x.flags.f_contiguous)
