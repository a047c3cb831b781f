"""Ops: how to multiply, for one array library.

Every algorithm is written against the few primitives of :class:`Ops`. The base class is purely
functional and needs nothing beyond the array API standard (array-api-strict, Dask, any other). The
subclasses are the fast paths of a library, and its peculiarities, and live here and nowhere else.

Matrices are the last two axes. Primitives that take ``out=`` may store the result there, and
callers use the return value; ``out`` never is one of the operands.
"""

from __future__ import annotations

import copy
import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import array_api_compat
import numpy as np
from array_api_compat import array_namespace

from polarlib.arrays.formats import FORMATS, Format, format_of
from polarlib.arrays.kernels import NumpyKernels
from polarlib.arrays.memory import physical_memory

__all__ = ["Diagonal", "Ops", "above_noise", "dtype_name", "ops_of", "unless_it_fails"]

Array = Any
F = TypeVar("F", bound=Callable[..., Any])

# Names of dtypes that differ from the names of their formats.
FORMAT_OF_DTYPE = {
    "complex64": "float32",
    "complex128": "float64",
    "float8_e4m3fn": "float8_e4m3",
}
# Terms that a BLAS is given to sum in one run. MKL and OpenBLAS sum the products of a few long
# columns one after the other, to an error that grows like the length (1e6 x 1 of equal float32
# entries: 1.3 %). Blocks of BLOCK rows keep it below 20 eps; a block has FEW times as many rows as
# columns, so that sums of blocks take 1 / FEW of the storage of an operand. From MANY columns on
# kernels sum in pieces of some hundreds, and LARGE_BLOCK rows will do.
LONG = 1 << 10
BLOCK = 1 << 8
FEW = 16
MANY = 1 << 9
LARGE_BLOCK = 1 << 12


def dtype_name(x: Array) -> str:
    """Name of an array's dtype, the same for every library: ``"float32"``, ``"complex128"``, ..."""
    return _name_of_dtype(x.dtype)


# NumPy takes microseconds to make a name up; typed, since equal hashes make strict dtypes compare.
@functools.lru_cache(maxsize=128, typed=True)
def _name_of_dtype(dtype: Any) -> str:
    return str(getattr(dtype, "name", dtype)).rpartition(".")[2]


class Diagonal(NamedTuple):
    """The equation ``H X + c X H + shift X = W`` in the eigenvectors of H.

    Attributes
    ----------
    sums : array, shape (..., n, n)
        ``s_i + c s_j + shift``, what components of W are divided by; s the eigenvalues.
    vectors : array, shape (..., n, n)
        Eigenvectors.
    shift : array, shape (..., 1, 1), or None
        None for zero.
    """

    sums: Any
    vectors: Any
    shift: Any = None


def finite_only(factorise: F) -> F:
    """Keep NaN and infinity from a factorisation: some of LAPACK's then never return.

    A matrix that is not finite is replaced by one that every factorisation takes, the identity if
    it is square, and its results are NaN.
    """

    @functools.wraps(factorise)
    def of_finite(self: Ops, *arrays: Array, **options: Any) -> Any:
        if self.host and all(self._is_finite(x) for x in arrays):
            return factorise(self, *arrays, **options)
        run = functools.partial(self._where_it_can, factorise)
        xp = self.xp
        finite = functools.reduce(
            operator.and_, (xp.all(xp.isfinite(x), axis=(-2, -1), keepdims=True) for x in arrays)
        )

        def of_matrices(x: Array) -> Array:
            m, n = x.shape[-2:]
            return xp.where(finite, x, self.eye(n, x) if m == n else xp.zeros_like(x))

        def or_nan(r: Array) -> Array:
            mask = finite if r.ndim == finite.ndim else finite[..., 0]
            return xp.where(mask, r, xp.full_like(r, math.nan))

        results = run(*map(of_matrices, arrays), **options)
        return tuple(map(or_nan, results)) if isinstance(results, tuple) else or_nan(results)

    return cast(F, of_finite)


class Ops:
    """Arithmetic on stacks of matrices of one array namespace; functional, any library.

    Parameters
    ----------
    xp : namespace
        From ``array_api_compat.array_namespace``.
    fused : bool, optional
        Working in a format of 16 bits or fewer: products with an addend are rounded once, and
        identities are kept apart from small matrices (``a I + Z`` is not rounded as a matrix).

    Attributes
    ----------
    native : frozenset of str
        Formats whose products the library computes itself.
    host : bool
        Whether reading a scalar is free; elsewhere it would stall the device.
    hiding : str
        What hides entries (:meth:`is_abstract`) and what to do then, the end of a sentence.
    fixed_work : bool
        Whether functions that look at entries have a form that does without where they are hidden.
    working : str
        The format that :func:`polarlib.arrays.rounded.rounded` chose; "" where nothing was chosen.
    """

    # The library that a class serves, as array_api_compat names it; "" for any other.
    library = ""
    native = frozenset({"float64", "float32"})
    host = False
    simulated = False
    hiding = "its library hides"
    fixed_work = False
    working = ""

    def __init__(self, xp: Any, *, fused: bool = False) -> None:
        self.xp = xp
        self.fused = fused

    @classmethod
    def of(cls, x: Array, xp: Any) -> Ops:
        """Return the arithmetic for an array of the namespace `xp`, which the class serves."""
        return _shared(cast(Any, cls), xp)

    def check_sharding(self, x: Array, name: str, *, taken: bool) -> None:
        """Raise for an array that is sharded where it is not taken, or cannot be computed with."""

    def working_in(self, format_name: str) -> Ops:
        """Return the same arithmetic for a native format."""
        other = copy.copy(self)
        other.working = format_name
        other.fused = format_name not in ("float64", "float32")
        return other

    @property
    def looks(self) -> bool:
        """Whether a fixed schedule looks for NaN, since it costs little."""
        return self.host

    def to_working_format(self, x: Array) -> Array:
        """Convert to the format that this arithmetic works in; not a copy if it is there."""
        return self.cast(x, self.working) if self.working else x

    # -- dtypes and conversion ---------------------------------------------------------------

    def is_complex(self, x: Array) -> bool:
        """Whether the entries are complex."""
        return dtype_name(x).startswith("complex")

    def format_name(self, x: Array) -> str:
        """Name of the format of an array's entries (of their parts, if complex); "" if none."""
        name = FORMAT_OF_DTYPE.get(dtype_name(x), dtype_name(x))
        return name if name in FORMATS else ""

    def cast(self, x: Array, format_name: str) -> Array:
        """Convert to the dtype of a format, staying real or complex; not a copy if it is there."""
        name = _dtype_for(format_name, self.is_complex(x))
        if dtype_name(x) == name:
            return x
        if format_name == "float64" and not self.has_double(x):
            raise ValueError(
                f"{self.xp.__name__} has no {name} on {array_api_compat.device(x)}; ask for "
                "precision='float32', or enable JAX's 64-bit types (jax_enable_x64)"
            )
        return self.xp.astype(x, self.dtype(name))

    def at_least_single(self, x: Array) -> Array:
        """Widen formats narrower than float32 to it; everything else stays."""
        return x if self.format_name(x) in ("float32", "float64") else self.cast(x, "float32")

    def has_double(self, x: Array) -> bool:
        """Whether double precision is to be had where `x` lies."""
        return _has_double(self.xp, array_api_compat.device(x))

    def as_complex(self, x: Array) -> Array:
        """Convert to the complex dtype of the same precision, at least single."""
        if self.is_complex(x):
            return x
        return self.xp.astype(x, self.dtype(_dtype_for(self.format_name(x), True)))

    def common_dtype(self, x: Array, y: Array) -> Any:
        """Dtype to which the library promotes two; float32 where it has no rule, for 16 bits."""
        try:
            return self.xp.result_type(x, y)
        except TypeError:
            return self.xp.result_type(self.at_least_single(x), self.at_least_single(y))

    def dtype(self, name: str) -> Any:
        """The library's dtype of a name."""
        try:
            return getattr(self.xp, name)
        except AttributeError:
            raise ValueError(
                f"{self.xp.__name__} has no dtype {name}; use a library that has it, such as torch"
            ) from None

    def astype_like(self, x: Array, reference: Array) -> Array:
        """Convert to the dtype of another array; overflow gives infinity."""
        if x.dtype == reference.dtype:
            return x
        if self.is_complex(x) and not self.is_complex(reference):
            raise TypeError(
                f"{dtype_name(x)} would lose its imaginary part in {dtype_name(reference)}"
            )
        return self.xp.astype(x, reference.dtype)

    def to_host(self, x: Array) -> np.ndarray:
        """Copy to NumPy in float64 or complex128."""
        if self.host_device is not None and not self.on_cpu(x):
            x = array_api_compat.to_device(x, self.host_device)
        return np.array(x, dtype=np.complex128 if self.is_complex(x) else np.float64)

    @functools.cached_property
    def host_device(self) -> Any:
        """The library's device whose arrays NumPy reads; None where none is known or needed."""
        if not hasattr(self.xp, "__array_namespace_info__"):
            return None
        devices = self.xp.__array_namespace_info__().devices()
        return next((d for d in devices if "cpu" in str(d).lower()), None)

    def device_of(self, x: Array) -> Any:
        """Where small matrices go that meet `x`: to its device."""
        return array_api_compat.device(x)

    def on_cpu(self, x: Array) -> bool:
        """Whether an array lies in the memory of the host."""
        return "cpu" in str(array_api_compat.device(x)).lower()

    def fits(self, shape: tuple[int, ...], like: Array) -> bool:
        """Whether an array, in at least single precision, is no larger than the host's memory.

        If `like` lies elsewhere, or it is not known where, the library is left to find out.
        """
        if self.is_abstract(like) or self.is_sharded(like) or not self.on_cpu(like):
            return True
        return math.prod(shape) * self.bytes_of_entry(like) <= physical_memory()

    def bytes_of_entry(self, x: Array) -> int:
        """Bytes that an entry takes in at least single precision."""
        return (8 if self.format_name(x) == "float64" else 4) * (2 if self.is_complex(x) else 1)

    def from_host(self, a: np.ndarray, like: Array) -> Array:
        """Move a NumPy array to the library, device and format of `like`; real ones stay real."""
        same = a.dtype.kind == "c" or not self.is_complex(like)
        dtype = like.dtype if same else self.dtype(self.format_name(like))
        return self.xp.asarray(np.array(a), dtype=dtype, device=self.device_of(like))

    def item(self, x: Array) -> float:
        """Return the largest entry as a Python float (a synchronisation on a device)."""
        return float(self.max(x))

    def compiled(self, f: Callable[..., Array], **fixed: Any) -> Callable[[Array], Array]:
        """Return ``f`` with all but its array fixed, compiled once where the library compiles."""
        return functools.partial(f, **fixed)

    # -- products ----------------------------------------------------------------------------

    def buffer(self, shape: tuple[int, ...], like: Array) -> Array | None:
        """Storage for an ``out=``; None where the library has no use for one."""
        return None

    def reusable(self, x: Array) -> bool:
        """Whether the storage of `x` serves as an ``out=``."""
        return False

    def can_hold(self, out: Array, x: Array) -> bool:
        """Whether results can be formed in the storage of `out` while `x` is still needed."""
        return False

    def writable(self, x: Array) -> bool:
        """Whether entries of `x` can be assigned to."""
        return hasattr(x, "__setitem__")

    def store(self, x: Array, out: Array) -> None:
        """Write `x` to an array."""
        out[...] = x

    def multiplier(self, x: Array) -> str:
        """Name of the format in which products of `x` are taken: its own, but for settings."""
        return self.format_name(x)

    def multiplies_in(self, format_name: str) -> bool:
        """Whether products in a format are the library's own."""
        return format_name in self.native

    def in_full(self, f: Callable[..., Any], *x: Array) -> Any:
        """Return ``f(*x)``, a function of the library, in the format of `x` under every setting."""
        return f(*x)

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Return ``a @ b``."""
        return self._in_blocks(a, b) if self._is_long(a, b) else self._matmul(a, b)

    def _matmul(self, a: Array, b: Array) -> Array:
        """Return ``a @ b`` by one call of the library."""
        return self.xp.matmul(a, b)

    def _is_long(self, a: Array, b: Array) -> bool:
        """Whether one call would sum too many terms of ``a @ b`` in one run."""
        k, few = a.shape[-1], min(a.shape[-2], b.shape[-1])
        large = few >= MANY or array_api_compat.is_dask_namespace(self.xp)
        if k < LONG or k < 2 * (LARGE_BLOCK if large else FEW * few):
            return False
        return self.format_name(a) in ("float32", "float64")

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
        """Sum of matrices in double, rounded once."""
        wide = self._double(like)
        total = self.astype_like(sum(self.xp.astype(part, wide) for part in parts), like)
        if out is None:
            return total
        out[...] = total
        return out

    def _double(self, x: Array) -> Any:
        """The dtype of double precision that goes with `x`, where it is to be had."""
        if not self.has_double(x):
            return x.dtype
        return self.dtype("complex128" if self.is_complex(x) else "float64")

    def gram(self, x: Array, out: Array | None = None) -> Array:
        """Return ``x^H x``."""
        return self.matmul(self.adjoint(x), x, out)

    def gemm(
        self,
        a: Array,
        b: Array,
        c: Array,
        alpha: float = 1.0,
        beta: float = 0.0,
        out: Array | None = None,
    ) -> Array:
        """Return ``alpha a @ b + beta c``; no operand is changed."""
        product = self.matmul(a, b, out)
        if alpha != 1.0:
            product = product * alpha
        return product + c * beta if beta else product

    def gemm_hermitian(
        self,
        a: Array,
        b: Array,
        c: Array,
        alpha: float = 1.0,
        beta: float = 0.0,
        out: Array | None = None,
    ) -> Array:
        """Return ``alpha a @ b + beta c`` that is Hermitian up to rounding: half of it will do."""
        return self.gemm(a, b, c, alpha, beta, out)

    def make_hermitian(self, z: Array) -> Array:
        """Return Z, which is Hermitian up to rounding, as squares of it need it; Z is given up."""
        return z

    def quadratic(self, g: Array, c: Sequence[float], out: Array | None = None) -> Array:
        """Return ``c_1 G + c_2 G^2`` of a Hermitian G, for a polynomial that begins with c_0."""
        return self.gemm_hermitian(g, g, g, c[2], c[1], out)

    def add_scaled_identity(
        self, z: Array, alpha: float, beta: float
    ) -> tuple[Array, float, float]:
        """Absorb ``alpha Z + beta I`` into Z where that costs no accuracy; `z` is given up.

        Returns
        -------
        z, alpha, beta
            An equivalent triple, ``(alpha Z + beta I, 1, 0)`` in full precision.
        """
        if self.fused:
            return z, alpha, beta
        return self.add_diagonal(z * alpha, beta), 1.0, 0.0

    # -- elementwise -------------------------------------------------------------------------

    def adjoint(self, x: Array) -> Array:
        """Conjugate transpose."""
        xp = self.xp
        return xp.conj(xp.matrix_transpose(x)) if self.is_complex(x) else xp.matrix_transpose(x)

    def combine(self, coefficients: Sequence[float], matrices: Sequence[Array]) -> Array:
        """Return ``sum c_i M_i``, a new array; 16-bit matrices are combined in float32."""
        first = matrices[0]
        if self.fused:
            matrices = [self.xp.astype(m, self.xp.float32) for m in matrices]
        total = matrices[0] * coefficients[0]
        for c, m in zip(coefficients[1:], matrices[1:], strict=True):
            total = total + m * c
        return self.astype_like(total, first)

    def eye(self, n: int, like: Array) -> Array:
        """Return the n x n identity with the dtype and device of `like`."""
        return self.xp.eye(n, dtype=like.dtype, device=self.device_of(like))

    def _diagonal(self, z: Array) -> Array:
        """Diagonals of square matrices, shape (..., n)."""
        return self.xp.linalg.diagonal(z)

    def add_diagonal(self, z: Array, a: float) -> Array:
        """Return ``z + a I``; `z` is given up."""
        return z + self.eye(z.shape[-1], z) * a

    def divide(self, x: Array, s: Array | float, *, may_overwrite: bool = False) -> Array:
        """Return ``x / s`` in the dtype of `x`, a new array unless `x` may be overwritten."""
        return self.astype_like(x / s, x)

    def scale(self, x: Array, s: Array | float, *, may_overwrite: bool = False) -> Array:
        """Return ``x * s``, a new array unless `x` may be overwritten; overflow gives infinity."""
        return x * s

    def hermitian_part(self, z: Array, *, may_overwrite: bool = False) -> Array:
        """Return ``(z + z^H) / 2``, Hermitian bit for bit and free of overflow.

        The result may take the storage of `z` if that may be overwritten.
        """
        half = z * 0.5
        return half + self.adjoint(half)

    def hermitian_split(self, w: Array) -> tuple[Array, Array]:
        """Hermitian part of W, bit for bit, and the Frobenius norm of the rest; `w` is given up."""
        skew = self.frobenius((w - self.adjoint(w)) * 0.5)
        return self.hermitian_part(w), skew

    def max(
        self, x: Array, *, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
    ) -> Array:
        """Return the largest entries, NaN where one is NaN."""
        return self.xp.max(x, axis=axis, keepdims=keepdims)

    # -- norms: shape (..., 1, 1), real, so that they divide the matrices they belong to ------

    def max_abs(self, x: Array) -> Array:
        """Largest absolute entry (of real and imaginary parts, if complex: it cannot overflow).

        It is finite exactly where all entries are: every check for NaN and infinity reads it.
        """
        xp = self.xp
        if self.is_complex(x):
            return xp.maximum(self.max_abs(xp.real(x)), self.max_abs(xp.imag(x)))
        # Without a temporary of the size of x; `max` propagates NaN, so `min` need not.
        high = self.max(x, axis=(-2, -1), keepdims=True)
        low = xp.min(x, axis=(-2, -1), keepdims=True)
        return xp.maximum(high, -low)

    def binary_scale(self, peak: Array) -> Array | float:
        """Power of two near the largest entry of each matrix, so that scaling by it is exact.

        The reciprocal is a normal number too: some libraries divide by multiplying with it, and
        flush subnormal numbers to zero.
        """
        xp = self.xp
        limit = -math.log2(FORMATS[self.format_name(peak)].smallest_normal)
        if self._is_scalar(peak):
            known = self.item(peak)
            exponent = math.frexp(known)[1] - 1 if known > 0 and math.isfinite(known) else 0
            return 2.0 ** min(max(exponent, -limit), limit)
        known = xp.where((peak > 0) & xp.isfinite(peak), peak, xp.ones_like(peak))
        exponent = xp.floor(xp.log2(known))
        exponent = xp.where(exponent > limit, limit, exponent)  # CuPy's clip would synchronise
        return 2.0 ** xp.where(exponent < -limit, -limit, exponent)

    def divisor(self, s: Array | float) -> Array | float:
        """Norms to divide by: 1 for a zero matrix (or column), NaN for one that is not finite."""
        xp = self.xp
        if isinstance(s, float) or self._is_scalar(s):
            known = s if isinstance(s, float) else self.item(s)
            return (known or 1.0) if math.isfinite(known) else math.nan
        finite = xp.where(xp.isfinite(s), s, xp.full_like(s, math.nan))
        return xp.where(s == 0, xp.ones_like(s), finite)

    def _is_scalar(self, s: Array) -> bool:
        """Whether Python's arithmetic will do, which is quicker than a library's on one number."""
        return self.host and math.prod(s.shape) == 1

    def as_scalar(self, s: Array) -> Array | float:
        """Python's float for a single number on the host, else the array itself."""
        return self.item(s) if self._is_scalar(s) else s

    def sqrt(self, s: Array | float) -> Array | float:
        """Square root."""
        return math.sqrt(s) if isinstance(s, float) else self.xp.sqrt(s)

    def frobenius(self, x: Array) -> Array:
        """Frobenius norm, in at least single precision; `x` scaled to entries of about 1."""
        xp = self.xp
        x = self.at_least_single(x)
        if self.is_complex(x):
            re, im = xp.real(x), xp.imag(x)
            return xp.sqrt(xp.sum(re * re + im * im, axis=(-2, -1), keepdims=True))
        return xp.sqrt(xp.sum(x * x, axis=(-2, -1), keepdims=True))

    def trace(self, x: Array) -> Array:
        """Trace of Hermitian matrices, in at least single precision."""
        diagonal = self.at_least_single(self._diagonal(x))
        diagonal = self.xp.real(diagonal) if self.is_complex(x) else diagonal
        return self.xp.sum(diagonal, axis=-1)[..., None, None]

    def sums(self, x: Array, axis: int) -> Array:
        """Sums along an axis, which keeps length 1, in double: some libraries add in one run."""
        if self.format_name(x) != "float32":
            return self.xp.sum(x, axis=axis, keepdims=True)
        return self.astype_like(self.xp.sum(x, axis=axis, keepdims=True, dtype=self._double(x)), x)

    def norm_1(self, x: Array) -> Array:
        """Largest absolute column sum."""
        return self.max(self.sums(self.xp.abs(x), -2), axis=-1, keepdims=True)

    def norm_inf(self, x: Array) -> Array:
        """Largest absolute row sum."""
        return self.max(self.sums(self.xp.abs(x), -1), axis=-2, keepdims=True)

    # -- factorisations, in at least the precision of the input; a failure never raises: the
    # results of that matrix are NaN, those of the others in its stack are right

    def _is_finite(self, x: Array) -> bool:
        """Whether every entry is finite, of an array on the host."""
        total = self.xp.sum(x)  # not finite if an entry is not, or if it overflows
        return bool(self.xp.isfinite(total)) or bool(self.xp.all(self.xp.isfinite(x)))

    def _where_it_can(self, factorise: Callable[..., Any], *arrays: Array, **options: Any) -> Any:
        """Run a factorisation of this class where the library has it."""
        return factorise(self, *arrays, **options)

    @finite_only
    def svd(self, x: Array) -> tuple[Array, Array, Array]:
        """Thin SVD ``u, s, vh``, values descending; NaN for a matrix that is not finite."""

        def lost(x: Array) -> tuple[Array, ...]:
            (m, n), k = x.shape, min(x.shape)
            return tuple(self._nan(x, shape) for shape in ((m, k), (k,), (k, n)))

        u, s, vh = self._factorise(lambda x: self.xp.linalg.svd(x, full_matrices=False), lost, x)
        return u, s, vh

    @finite_only
    def singular_values(self, x: Array) -> Array:
        """Singular values, descending; NaN for a matrix that is not finite."""
        return unless_it_fails(lambda: self.xp.linalg.svdvals(x), lambda: self.svd(x)[1])

    @finite_only
    def eigh(self, z: Array) -> tuple[Array, Array]:
        """Eigenvalues of Hermitian matrices, ascending, and eigenvectors; NaN as for the SVD."""

        def lost(z: Array) -> tuple[Array, ...]:
            return self._nan(z, z.shape[-1:]), self._nan(z, z.shape)

        values, vectors = self._factorise(lambda z: self.xp.linalg.eigh(z), lost, z)
        return values, vectors

    @finite_only
    def qr(self, x: Array) -> tuple[Array, Array]:
        """Reduced Householder QR."""
        q, r = self.xp.linalg.qr(x, mode="reduced")
        return q, r

    @finite_only
    def determinant_sign(self, x: Array) -> Array:
        """Signs of the determinants of real matrices, shape (..., 1, 1); NaN as for the SVD."""
        return self.xp.linalg.slogdet(x)[0][..., None, None]

    @finite_only
    def cholesky(self, z: Array) -> Array:
        """Lower Cholesky factor of a Hermitian matrix; NaN where it is not positive definite."""
        return self._factorise(lambda z: (self.xp.linalg.cholesky(z),), self._all_nan, z)[0]

    def is_definite(self, z: Array, shift: Array) -> bool:
        """Whether ``z - shift I`` has a Cholesky factor, in every matrix of a stack.

        `shift` has the shape (..., 1, 1) of norms.
        """
        if 0 in z.shape:
            return True
        shifted = z - self.eye(z.shape[-1], z) * self.astype_like(shift, z)
        return math.isfinite(self.item(self.max_abs(self.cholesky(shifted))))

    def count_eigenvalues_above(self, h: Array, cut: float) -> np.ndarray:
        """How many eigenvalues of Hermitian matrices exceed `cut` times the largest one."""
        values = self.to_host(self.eigenvalues(h))
        return np.sum(values > cut * values[..., -1:], axis=-1)

    @finite_only
    def solve_lower(self, l: Array, b: Array, *, adjoint: bool = False) -> Array:
        """Return ``l^-1 b`` or ``l^-H b`` for lower triangular l; infinite or NaN if singular."""
        l = self.adjoint(l) if adjoint else l
        return self._factorise(lambda l, b: (self.xp.linalg.solve(l, b),), self._all_nan, l, b)[0]

    @finite_only
    def inverse(self, x: Array) -> Array:
        """Inverse by LU with partial pivoting; infinite or NaN if singular."""
        return self._factorise(lambda x: (self.xp.linalg.inv(x),), self._all_nan, x)[0]

    @finite_only
    def eigenvalues(self, h: Array) -> Array:
        """Eigenvalues of Hermitian matrices, ascending, without the vectors."""

        def lost(h: Array) -> tuple[Array]:
            return (self._nan(h, h.shape[-1:]),)

        return self._factorise(lambda h: (self.xp.linalg.eigvalsh(h),), lost, h)[0]

    def _nan(self, x: Array, shape: tuple[int, ...]) -> Array:
        """NaN for a lost result: matrices have the dtype of `x`, vectors of values are real."""
        dtype = x.dtype if len(shape) > 1 else self.dtype(self.format_name(x))
        return self.xp.full(shape, math.nan, dtype=dtype, device=self.device_of(x))

    def _all_nan(self, *matrices: Array) -> tuple[Array]:
        return (self._nan(matrices[-1], matrices[-1].shape),)

    def _factorise(
        self,
        factorise: Callable[..., Sequence[Array]],
        lost: Callable[..., tuple[Array, ...]],
        *stacks: Array,
    ) -> tuple[Array, ...]:
        """Apply a factorisation; where the library raises for a stack, to one matrix at a time."""

        def one_by_one() -> tuple[Array, ...]:
            if stacks[0].ndim == 2:
                return lost(*stacks)
            xp, batch = self.xp, stacks[0].shape[:-2]
            flat = [xp.reshape(s, (-1, *s.shape[-2:])) for s in stacks]
            each = (
                self._factorise(factorise, lost, *(s[i, :, :] for s in flat))
                for i in range(flat[0].shape[0])
            )
            results = zip(*each, strict=True)
            return tuple(xp.reshape(xp.stack(r), (*batch, *r[0].shape)) for r in results)

        return unless_it_fails(lambda: tuple(factorise(*stacks)), one_by_one)

    def kernels(self, x: Array) -> NumpyKernels | None:
        """Return kernels that work in place on matrices like `x`.

        None where the library has none: methods are then made of the other primitives.
        """
        return None

    # -- differentiation, where the library does it --------------------------------------------

    def functional(self) -> Ops:
        """Arithmetic that the library may differentiate: reads and overwrites nothing."""
        return self

    def is_traced(self, x: Array) -> bool:
        """Whether the library traces or differentiates what is done with `x`."""
        return False

    def together(self, *arrays: Array) -> Ops:
        """Arithmetic for several arrays of the library: functional, if it records one of them."""
        return self.functional() if any(ops_of(x).is_traced(x) for x in arrays) else self

    def is_sharded(self, x: Array) -> bool:
        """Whether `x` lies in parts on several devices or processes, none of which has it all."""
        return False

    def placements(self, x: Array) -> tuple[Any, ...]:
        """Where the parts of `x` lie; arrays of equal placements can be stacked."""
        return ()

    def entrywise(self, f: Callable[[Array], Array], x: Array) -> Array:
        """Return ``f(x)`` for a function of single entries."""
        return f(x)

    def is_abstract(self, x: Array) -> bool:
        """Whether the entries of `x` cannot be looked at, since only its shape is known yet."""
        return False

    def with_shards(self, f: Callable[[Array], Any], x: Array, name: str = "a") -> Any:
        """Return ``f(x)``, a pytree; a result of the shape of `x` is sharded as `x` is."""
        return f(x)

    def repeat_while(
        self, going: Callable[[Any], Array], step: Callable[[Any], Any], state: Any
    ) -> Any:
        """Apply a step to a tuple of arrays while a test of it holds."""
        while bool(going(state)):
            state = step(state)
        return state

    def empty_result(self, x: Array) -> Array:
        """Result of the shape of `x`, which has no entries; what records `x` records it too."""
        return self.xp.zeros_like(x)

    def differentiable(
        self,
        f: Callable[..., tuple[Array, ...]],
        jvp: Callable[..., tuple[Array, ...]],
        vjp: Callable[..., tuple[Array, ...]],
        arrays: tuple[Array, ...],
        *,
        keep: bool,
    ) -> tuple[Array, ...]:
        """Return ``f(*arrays)``, which the library differentiates by rules, not through its steps.

        Parameters
        ----------
        f : callable
            From stacks of matrices to a tuple of such stacks.
        jvp : callable
            ``jvp(arrays, results, tangents)`` gives the tangents of the results, and is linear.
        vjp : callable
            ``vjp(arrays, results, gradients)`` gives those of the arrays; None for a gradient of 0.
        arrays : tuple of array
            Arguments.
        keep : bool
            Whether the rules see the results; otherwise nothing but the arguments is kept for them,
            and `results` is empty.
        """
        return f(*arrays)

    def constant(self, f: Callable[..., Array], *arrays: Array) -> Array:
        """Return ``f(*arrays)``, which derivatives take for a constant."""

        def jvp(_: Any, results: Any, __: Any) -> tuple[Array]:
            return (self.xp.zeros_like(results[0]),)

        def vjp(*_: Any) -> Any:
            return (None,) * len(arrays)

        return self.differentiable(lambda *x: (f(*x),), jvp, vjp, arrays, keep=True)[0]

    def lyapunov(
        self,
        h: Array,
        w: Array,
        diagonalise: Callable[[Array], Diagonal],
        weight: complex = 1.0,
    ) -> Array:
        """Solve ``H X + c X H + shift X = W`` for Hermitian H, so that it can be differentiated.

        `diagonalise` solves it for one eigenvector of H on either side; c is the weight.
        """
        return self._by_eigenvectors(w, diagonalise(h))

    def _by_eigenvectors(self, w: Array, d: Diagonal) -> Array:
        v = d.vectors
        core = self.matmul(self.matmul(self.adjoint(v), w), v) / self.astype_like(d.sums, v)
        return self.matmul(self.matmul(v, core), self.adjoint(v))

    def _adjoint_of(self, d: Diagonal) -> Diagonal:
        """The adjoint of an equation that is diagonalised."""
        return d._replace(sums=self.xp.conj(d.sums)) if self.is_complex(d.sums) else d


def ranges(length: int, size: int) -> list[slice]:
    """Slices of at most `size` that make up a length."""
    return [slice(i, i + size) for i in range(0, length, size)]


def above_noise(s: Array, shape: tuple[int, ...], ops: Ops) -> Array:
    """Which singular values exceed ``max(m, n) eps sigma_1``: they make the numerical rank."""
    cut = max(shape[-2:]) * format_of(ops.format_name(s)).epsilon
    return s > cut * ops.max(s, axis=-1, keepdims=True)


def unless_it_fails(factorise: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    """Run a factorisation; where it raises its library's LinAlgError, return the other value."""
    try:
        return factorise()
    except Exception as error:  # each library has a class of its own
        if "LinAlg" not in type(error).__name__:
            raise
        return otherwise()


def numpy_dtype(name: str) -> np.dtype:
    """NumPy's dtype of a name, or ml_dtypes' for the formats that NumPy lacks."""
    if hasattr(np, name):
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        raise ValueError(f"arrays of {name} need ml_dtypes; install polarlib[files]") from None
    return np.dtype(getattr(ml_dtypes, name))


@functools.lru_cache(maxsize=128)
def _has_double(xp: Any, device: Any) -> bool:
    """Whether a library has double precision on a device; one that does not list dtypes has it."""
    if not hasattr(xp, "__array_namespace_info__"):
        return True
    return "float64" in xp.__array_namespace_info__().dtypes(device=device, kind="real floating")


def _dtype_for(format_name: str, is_complex: bool) -> str:
    """Name of the dtype that stores a format; tf32 and fp8 products are carried in float32."""
    carrier = {"tf32": "float32", "float8_e4m3": "float8_e4m3fn"}.get(format_name, format_name)
    if is_complex:
        carrier = "complex128" if format_name == "float64" else "complex64"
    return carrier


def ops_of(x: Array) -> Ops:
    """Arithmetic for an array's library.

    Parameters
    ----------
    x : array
        Array of any supported library.

    Returns
    -------
    Ops

    Examples
    --------
    >>> import numpy as np
    >>> type(ops_of(np.eye(2))).__name__
    'NumpyOps'
    """
    xp = array_namespace(x)
    return _class_for(xp).of(x, xp)


# Shared by threads: an Ops is never changed after it is made.
@functools.cache
def _shared(kind: Any, xp: Any) -> Ops:
    return cast(Ops, kind(xp))


@functools.cache
def _class_for(xp: Any) -> type[Ops]:
    """The class that serves a namespace: the one that names its library, else `Ops`."""
    for kind in _subclasses(Ops):
        library = vars(kind).get("library")
        if library and getattr(array_api_compat, f"is_{library}_namespace")(xp):
            return kind
    return Ops


def _subclasses(kind: type[Ops]) -> Iterator[type[Ops]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def is_native(ops: Ops, precision: Format, *, is_complex: bool) -> bool:
    """Whether a library multiplies in a format itself; complex 16-bit formats exist nowhere."""
    wide = precision.name in ("float64", "float32")
    return ops.multiplies_in(precision.name) and (wide or not is_complex)
