"""Ops: how to multiply, for one array library.

Every algorithm is written against the few primitives of :class:`Ops`. The base class is purely
functional and needs nothing beyond the array API standard (array-api-strict, Dask, any other). The
subclasses are the fast paths of a library, and its peculiarities, and live here and nowhere else.

Matrices are the last two axes. Primitives that take ``out=`` may store the result there, and
callers use the return value; ``out`` never is one of the operands.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib
import itertools
import math
import operator
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import array_api_compat
import numpy as np
import scipy.linalg
from array_api_compat import array_namespace

from polarlib import _blas, _cublas, _cusolver
from polarlib._checks import short, shown
from polarlib._pytrees import Pytree
from polarlib.formats import FORMATS, Format, format_of
from polarlib.result import ignore_float_errors, warn

__all__ = [
    "Diagonal",
    "Ops",
    "above_noise",
    "as_matrix",
    "at_trace_time",
    "check_same_place",
    "dtype_name",
    "finite_peak",
    "is_array",
    "is_out_of_memory",
    "libraries",
    "looks",
    "looks_at_nothing",
    "not_finite",
    "ops_of",
    "physical_memory",
    "plain_array",
    "refuse_hidden",
    "traced_by_dynamo",
    "under_default_settings",
    "unless_it_fails",
]

Array = Any
F = TypeVar("F", bound=Callable[..., Any])

# Names of dtypes that differ from the names of their formats.
_FORMAT_OF_DTYPE = {
    "complex64": "float32",
    "complex128": "float64",
    "float8_e4m3fn": "float8_e4m3",
}
# Multiplications, or entries in a pass, from which SciPy's kernels beat NumPy's; below, calls cost
# more. Chosen by experiment.
BLAS_FROM = 1 << 14
# torch's Hermitian products: from so many multiplications in panels, and in how many. Four panels
# take 10/16 of the operations and leave products large. Chosen by experiment.
PANELS_FROM = 1 << 29
PANELS = 4
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
# Rows from which torch's LAPACK loses 50 eps and more of singular values.
VERY_LONG = 1 << 16
# Entries whose norm torch takes in one run: more lose up to 1 % (4000 x 4000, equal entries).
NORM_BLOCK = 1 << 10
# What torch's settings call float32 products that are left alone, and formats with less.
EXACT = frozenset({"none", "ieee"})
REDUCED = {"tf32": "tf32", "bf16": "bfloat16"}
# Columns of the product that shows how torch multiplies: oneDNN takes its reduced path from 16^3
# multiplications on.
PROBE = 128
# Ratio of coefficients up to which a diagonal is scaled for a product to scale it back: far from
# where either could overflow. Chosen generously.
FOLDED = 2.0**20
# ``c_1**2 <= CANCELS c_0 c_2``: what cancels in a completed square is twice c_0 at most.
CANCELS = 8.0
# Modules that make arrays, by the name users know them by.
_LIBRARIES = ("numpy", "torch", "jax", "cupy", "dask", "array_api_strict")


def dtype_name(x: Array) -> str:
    """Name of an array's dtype, the same for every library: ``"float32"``, ``"complex128"``, ..."""
    return _name_of_dtype(x.dtype)


# NumPy takes microseconds to make a name up; typed, since equal hashes make strict dtypes compare.
@functools.lru_cache(maxsize=128, typed=True)
def _name_of_dtype(dtype: Any) -> str:
    return str(getattr(dtype, "name", dtype)).rpartition(".")[2]


def is_array(x: Any) -> bool:
    """Whether an object is an array of a library that we can compute with."""
    return array_api_compat.is_array_api_obj(x)


def libraries() -> dict[str, str]:
    """Versions of the array libraries that are installed, by name (imports none that is not)."""
    found = {}
    for name in _LIBRARIES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        found[name] = str(getattr(module, "__version__", "unknown"))
    return found


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


def under_default_settings(f: F) -> F:
    """Run a function under JAX's own rules of promotion, and without its search for NaN.

    A caller may have made them stricter; a trial factorisation that fails leaves NaN on the way to
    a result that has none. NumPy's handling of floating-point errors is off meanwhile: intermediate
    results underflow and overflow, and what a caller must know of it is in the result, in a warning
    of polarlib's own or in an exception. Settings hold for the caller's thread, and are the
    caller's again afterwards: a result of JAX that is NaN is then found.
    """
    quiet = ignore_float_errors(f)

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        jax = sys.modules.get("jax")
        if traced_by_dynamo():  # which records no settings
            return f(*args, **kwargs)
        if jax is None or not hasattr(jax, "config"):  # it is being imported
            return quiet(*args, **kwargs)
        config = jax.config
        with contextlib.ExitStack() as settings:
            if config.jax_numpy_dtype_promotion != "standard":
                settings.enter_context(jax.numpy_dtype_promotion("standard"))
            if config.jax_numpy_rank_promotion != "allow":
                settings.enter_context(jax.numpy_rank_promotion("allow"))
            searches = config.jax_debug_nans, config.jax_debug_infs
            if not any(searches):
                return quiet(*args, **kwargs)
            for search in (jax.debug_nans, jax.debug_infs):
                settings.enter_context(search(False))
            result = quiet(*args, **kwargs)
        if searches[0] and not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(result)):
            # Any operation of JAX raises now where there is NaN in it.
            jax.tree.map(lambda x: x + x if isinstance(x, jax.Array) else x, result)
        return result

    return cast(F, run)


def traced_by_dynamo() -> bool:
    """Whether torch.compile is reading this very code; never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_dynamo_compiling()


def at_trace_time(f: F) -> F:
    """Let torch.compile run a function instead of reading it, once for equal arguments.

    What ``torch.compiler.assume_constant_result`` does, which would import torch.
    """
    f._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return f


def looks(f: F, *, reason: str = "") -> F:
    """Keep torch.compile out of a function that reads numbers: one graph break, not one a number.

    With ``fullgraph=True``, where no break is allowed, the reason is in torch's error.
    """
    reason = reason or (
        f"polarlib.{f.__qualname__} looks at its matrix, which torch.compile(fullgraph=True) "
        "hides: leave fullgraph out, call it outside, or use orthogonalize(), which does not look"
    )
    return _for_dynamo(f, lambda torch: torch.compiler.disable(f, reason=reason))


def looks_at_nothing(f: F) -> F:
    """Let torch.compile record what a function does to tensors, without reading its Python.

    Its arguments and results are tensors, numbers, text, and lists and tuples of them.
    """
    return _for_dynamo(f, lambda torch: torch.compiler.allow_in_graph(f))


def _for_dynamo(f: F, wrap: Callable[[Any], Any]) -> F:
    """`f`, in whose place torch.compile finds ``wrap(torch)``, which is made when it first asks."""
    made: list[Any] = []

    @at_trace_time
    def make() -> None:
        if not made:
            made.append(wrap(sys.modules["torch"]))

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        if traced_by_dynamo():
            make()
            return made[0](*args, **kwargs)
        return f(*args, **kwargs)

    return cast(F, run)


def _finite_only(factorise: F) -> F:
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
        What hides entries (:meth:`hidden`) and what to do then, the end of a sentence.
    fixed_work : bool
        Whether functions that look at entries have a form that does without where they are hidden.
    working : str
        The format that :func:`polarlib.precision.rounded` chose; "" where nothing was chosen.
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

    def enter(self, x: Array) -> Array:
        """Convert to the format that this arithmetic works in; not a copy if it is there."""
        return self.cast(x, self.working) if self.working else x

    # -- dtypes and conversion ---------------------------------------------------------------

    def is_complex(self, x: Array) -> bool:
        """Whether the entries are complex."""
        return dtype_name(x).startswith("complex")

    def format_name(self, x: Array) -> str:
        """Name of the format of an array's entries (of their parts, if complex); "" if none."""
        name = _FORMAT_OF_DTYPE.get(dtype_name(x), dtype_name(x))
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

    def like(self, x: Array, reference: Array) -> Array:
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
        if self.hidden(like) or self.spread(like) or not self.on_cpu(like):
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

    def read(self, x: Array) -> float:
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
            blocks = _ranges(a.shape[-1], LARGE_BLOCK)
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
        total = self.like(sum(self.xp.astype(part, wide) for part in parts), like)
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

    def made_hermitian(self, z: Array) -> Array:
        """Return Z, which is Hermitian up to rounding, as squares of it need it; Z is given up."""
        return z

    def quadratic(self, g: Array, c: Sequence[float], out: Array | None = None) -> Array:
        """Return ``c_1 G + c_2 G^2`` of a Hermitian G, for a polynomial that begins with c_0."""
        return self.gemm_hermitian(g, g, g, c[2], c[1], out)

    def fold(self, z: Array, alpha: float, beta: float) -> tuple[Array, float, float]:
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
        return self.like(total, first)

    def eye(self, n: int, like: Array) -> Array:
        """Return the n x n identity with the dtype and device of `like`."""
        return self.xp.eye(n, dtype=like.dtype, device=self.device_of(like))

    def _diagonal(self, z: Array) -> Array:
        """Diagonals of square matrices, shape (..., n)."""
        return self.xp.linalg.diagonal(z)

    def add_diagonal(self, z: Array, a: float) -> Array:
        """Return ``z + a I``; `z` is given up."""
        return z + self.eye(z.shape[-1], z) * a

    def divide(self, x: Array, s: Array | float, *, owned: bool = False) -> Array:
        """Return ``x / s`` in the dtype of `x`, a new array unless `x` is `owned`."""
        return self.like(x / s, x)

    def scale(self, x: Array, s: Array | float, *, owned: bool = False) -> Array:
        """Return ``x * s``, a new array unless `x` is `owned`; overflow gives infinity."""
        return x * s

    def hermitian_part(self, z: Array, *, owned: bool = False) -> Array:
        """Return ``(z + z^H) / 2``, Hermitian bit for bit and free of overflow.

        The result may take the storage of `z` if it is `owned`.
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
            known = self.read(peak)
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
            known = s if isinstance(s, float) else self.read(s)
            return (known or 1.0) if math.isfinite(known) else math.nan
        finite = xp.where(xp.isfinite(s), s, xp.full_like(s, math.nan))
        return xp.where(s == 0, xp.ones_like(s), finite)

    def _is_scalar(self, s: Array) -> bool:
        """Whether Python's arithmetic will do, which is quicker than a library's on one number."""
        return self.host and math.prod(s.shape) == 1

    def number(self, s: Array) -> Array | float:
        """Python's float for a single number on the host, else the array itself."""
        return self.read(s) if self._is_scalar(s) else s

    def root(self, s: Array | float) -> Array | float:
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
        return self.like(self.xp.sum(x, axis=axis, keepdims=True, dtype=self._double(x)), x)

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

    @_finite_only
    def svd(self, x: Array) -> tuple[Array, Array, Array]:
        """Thin SVD ``u, s, vh``, values descending; NaN for a matrix that is not finite."""

        def lost(x: Array) -> tuple[Array, ...]:
            (m, n), k = x.shape, min(x.shape)
            return tuple(self._nan(x, shape) for shape in ((m, k), (k,), (k, n)))

        u, s, vh = self._factorise(lambda x: self.xp.linalg.svd(x, full_matrices=False), lost, x)
        return u, s, vh

    @_finite_only
    def singular_values(self, x: Array) -> Array:
        """Singular values, descending; NaN for a matrix that is not finite."""
        return unless_it_fails(lambda: self.xp.linalg.svdvals(x), lambda: self.svd(x)[1])

    @_finite_only
    def eigh(self, z: Array) -> tuple[Array, Array]:
        """Eigenvalues of Hermitian matrices, ascending, and eigenvectors; NaN as for the SVD."""

        def lost(z: Array) -> tuple[Array, ...]:
            return self._nan(z, z.shape[-1:]), self._nan(z, z.shape)

        values, vectors = self._factorise(lambda z: self.xp.linalg.eigh(z), lost, z)
        return values, vectors

    @_finite_only
    def qr(self, x: Array) -> tuple[Array, Array]:
        """Reduced Householder QR."""
        q, r = self.xp.linalg.qr(x, mode="reduced")
        return q, r

    @_finite_only
    def determinant_sign(self, x: Array) -> Array:
        """Signs of the determinants of real matrices, shape (..., 1, 1); NaN as for the SVD."""
        return self.xp.linalg.slogdet(x)[0][..., None, None]

    @_finite_only
    def cholesky(self, z: Array) -> Array:
        """Lower Cholesky factor of a Hermitian matrix; NaN where it is not positive definite."""
        return self._factorise(lambda z: (self.xp.linalg.cholesky(z),), self._all_nan, z)[0]

    def is_definite(self, z: Array, shift: Array) -> bool:
        """Whether ``z - shift I`` has a Cholesky factor, in every matrix of a stack.

        `shift` has the shape (..., 1, 1) of norms.
        """
        if 0 in z.shape:
            return True
        shifted = z - self.eye(z.shape[-1], z) * self.like(shift, z)
        return math.isfinite(self.read(self.max_abs(self.cholesky(shifted))))

    def count_above(self, h: Array, cut: float) -> np.ndarray:
        """How many eigenvalues of Hermitian matrices exceed `cut` times the largest one."""
        values = self.to_host(self.eigenvalues(h))
        return np.sum(values > cut * values[..., -1:], axis=-1)

    @_finite_only
    def solve_lower(self, l: Array, b: Array, *, adjoint: bool = False) -> Array:
        """Return ``l^-1 b`` or ``l^-H b`` for lower triangular l; infinite or NaN if singular."""
        l = self.adjoint(l) if adjoint else l
        return self._factorise(lambda l, b: (self.xp.linalg.solve(l, b),), self._all_nan, l, b)[0]

    @_finite_only
    def inverse(self, x: Array) -> Array:
        """Inverse by LU with partial pivoting; infinite or NaN if singular."""
        return self._factorise(lambda x: (self.xp.linalg.inv(x),), self._all_nan, x)[0]

    @_finite_only
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

    # -- differentiation, where the library does it --------------------------------------------

    def functional(self) -> Ops:
        """Arithmetic that the library may differentiate: reads and overwrites nothing."""
        return self

    def records(self, x: Array) -> bool:
        """Whether the library traces or differentiates what is done with `x`."""
        return False

    def together(self, *arrays: Array) -> Ops:
        """Arithmetic for several arrays of the library: functional, if it records one of them."""
        return self.functional() if any(ops_of(x).records(x) for x in arrays) else self

    def spread(self, x: Array) -> bool:
        """Whether `x` lies in parts on several devices or processes, none of which has it all."""
        return False

    def placements(self, x: Array) -> tuple[Any, ...]:
        """Where the parts of `x` lie; arrays of equal placements can be stacked."""
        return ()

    def entrywise(self, f: Callable[[Array], Array], x: Array) -> Array:
        """Return ``f(x)`` for a function of single entries."""
        return f(x)

    def hidden(self, x: Array) -> bool:
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
        core = self.matmul(self.matmul(self.adjoint(v), w), v) / self.like(d.sums, v)
        return self.matmul(self.matmul(v, core), self.adjoint(v))

    def _adjoint_of(self, d: Diagonal) -> Diagonal:
        """The adjoint of an equation that is diagonalised."""
        return d._replace(sums=self.xp.conj(d.sums)) if self.is_complex(d.sums) else d


class InPlaceOps(Ops):
    """Libraries whose arrays can be written: NumPy, CuPy, torch without gradients."""

    def has_double(self, x: Array) -> bool:
        """Always."""
        return True

    def buffer(self, shape: tuple[int, ...], like: Array) -> Array | None:
        """Storage for an ``out=``."""
        return self.xp.empty(shape, dtype=like.dtype, device=self.device_of(like))

    def reusable(self, x: Array) -> bool:
        """Whether the storage of `x` serves as an ``out=``: only if it is contiguous."""
        return bool(x.flags.c_contiguous)

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Return ``a @ b``."""
        if self._is_long(a, b):
            return self._in_blocks(a, b, out)
        return self.xp.matmul(a, b) if out is None else self.xp.matmul(a, b, out=out)

    def _diagonal(self, z: Array) -> Array:
        """Writable view of the diagonals."""
        return z.diagonal(0, -2, -1)

    def add_diagonal(self, z: Array, a: float) -> Array:
        """Return ``z + a I`` in the storage of `z`."""
        diagonal = self._diagonal(z)
        diagonal += a
        return z

    def fold(self, z: Array, alpha: float, beta: float) -> tuple[Array, float, float]:
        """Absorb ``alpha Z + beta I`` into the storage of Z."""
        if self.fused:
            return z, alpha, beta
        if alpha != 1.0:
            z *= alpha
        return self.add_diagonal(z, beta), 1.0, 0.0

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
            product *= alpha
        if beta == 1.0:
            product += c
        elif beta:
            product += c * beta
        return product

    def divide(self, x: Array, s: Array | float, *, owned: bool = False) -> Array:
        """Return ``x / s`` in the dtype of `x`, and in its storage if it is owned."""
        if owned:
            x /= s
            return x
        return self.like(x / s, x)


class NumpyOps(InPlaceOps):
    """NumPy, with SciPy's LAPACK: numpy.linalg would factorise float32 in double precision."""

    library = "numpy"
    host = True

    def writable(self, x: Array) -> bool:
        """Whether entries of `x` can be assigned to."""
        return bool(x.flags.writeable)

    def dtype(self, name: str) -> Any:
        """NumPy's dtype, or ml_dtypes' for the formats that NumPy lacks."""
        return _numpy_dtype(name)

    def cast(self, x: Array, format_name: str) -> Array:
        """Convert to the dtype of a format, in the byte order that kernels work in."""
        x = super().cast(x, format_name)
        return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))

    def at_least_single(self, x: Array) -> Array:
        """Widen formats narrower than float32 to it, in the byte order that kernels work in."""
        name = self.format_name(x)
        return self.cast(x, name if name in ("float32", "float64") else "float32")

    def _diagonal(self, z: Array) -> Array:
        """Writable view of the diagonals; ndarray.diagonal gives a read-only one."""
        return np.einsum("...ii->...i", z)

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Return ``a @ b``."""
        work = a.shape[-2] * a.shape[-1] * b.shape[-1]
        if self._is_long(a, b) or not _worth_blas(work, a, b, a if out is None else out):
            return super().matmul(a, b, out)
        return _blas.matmul(a, b, out)

    def gram(self, x: Array, out: Array | None = None) -> Array:
        """Return ``x^H x``, Hermitian bit for bit."""
        if x.shape[-2] >= 2 * LARGE_BLOCK:
            blocks = _ranges(x.shape[-2], LARGE_BLOCK)
            return self._total((self.gram(x[..., i, :]) for i in blocks), x, out)
        if not _worth_blas(x.shape[-2] * x.shape[-1] ** 2, x, x if out is None else out):
            return super().gram(x, out)
        return _blas.whole_gram(x, out)

    def gemm(
        self,
        a: Array,
        b: Array,
        c: Array,
        alpha: float = 1.0,
        beta: float = 0.0,
        out: Array | None = None,
    ) -> Array:
        """Return ``alpha a @ b + beta c`` without temporaries, rounded once."""
        work = a.shape[-2] * a.shape[-1] * b.shape[-1]
        if not _worth_blas(work, a, b, c, a if out is None else out):
            return super().gemm(a, b, c, alpha, beta, out)
        if beta:
            out = np.empty(c.shape, c.dtype) if out is None else out
            out[...] = c
        return _blas.matmul(a, b, out, alpha=alpha, beta=beta)

    def made_hermitian(self, z: Array) -> Array:
        """Hermitian bit for bit, since squares are taken as Gram products."""
        if not _worth_blas(z.size, z) or not _is_contiguous(z):
            return self.hermitian_part(z)
        _blas.mirror(_blas.columns(z)[0])
        return z

    def quadratic(self, g: Array, c: Sequence[float], out: Array | None = None) -> Array:
        """Return ``c_1 G + c_2 G^2`` by half a product, where what cancels is of the size of c_0.

        It is ``c_2 (G + s I)^2 - c_2 s^2 I`` with ``s = c_1 / (2 c_2)``: passes over diagonals, and
        a square that is a Gram product. `g` is given back bit for bit.
        """
        if not c[2] or c[1] * c[1] > CANCELS * abs(c[0] * c[2]):
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

    def scale(self, x: Array, s: Array | float, *, owned: bool = False) -> Array:
        """Return ``x * s``, in the storage of `x` if it is owned."""
        if not owned:
            return super().scale(x, s)
        x *= s
        return x

    def hermitian_part(self, z: Array, *, owned: bool = False) -> Array:
        """Return ``(z + z^H) / 2``, in the storage of `z` if it is owned, else with one copy."""
        if not _worth_blas(z.size, z):
            return super().hermitian_part(z)
        z = z if owned else z.copy(order="K")
        _blas.split(z)
        return z

    def hermitian_split(self, w: Array) -> tuple[Array, Array]:
        """Hermitian part of W, in its storage, and the Frobenius norm of the rest."""
        if not _worth_blas(w.size, w):
            return super().hermitian_split(w)
        rest = _blas.split(w)
        return w, np.full((1, 1), rest, w.real.dtype)

    def max_abs(self, x: Array) -> Array:
        """Largest absolute entry (of real and imaginary parts, if complex), in one pass."""
        if not _worth_blas(x.size, x) or not _is_contiguous(x):
            return super().max_abs(x)
        return np.full((1, 1), _blas.max_abs(x), x.real.dtype)

    def frobenius(self, x: Array) -> Array:
        """Frobenius norm without a temporary."""
        x = self.at_least_single(x)
        if _worth_blas(x.size, x) and _is_contiguous(x):
            return np.full((1, 1), _blas.norm(x), x.real.dtype)
        parts = (x.real, x.imag) if self.is_complex(x) else (x,)
        if x.shape[-2] * x.shape[-1] <= BLAS_FROM:
            square = sum(np.einsum("...ij,...ij->...", part, part) for part in parts)
        else:  # one run over all entries would lose digits
            rows = sum(np.einsum("...ij,...ij->...i", part, part) for part in parts)
            square = np.sum(rows, axis=-1, dtype=np.float64)
        return np.asarray(np.sqrt(square), dtype=x.real.dtype)[..., None, None]

    @staticmethod
    def _each(f: Callable[..., tuple[Array, ...]], *stacks: Array) -> tuple[Array, ...]:
        """Apply a function of matrices to stacks of them (SciPy batches only some routines)."""
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

    @_finite_only
    def svd(self, x: Array) -> tuple[Array, Array, Array]:
        """Thin SVD by divide and conquer; by QR iteration where that does not converge."""

        def one(a: Array) -> tuple[Array, ...]:
            svd = functools.partial(scipy.linalg.svd, a, full_matrices=False, check_finite=False)

            def lost() -> tuple[Array, ...]:
                (m, n), k = a.shape, min(a.shape)
                return tuple(self._nan(a, shape) for shape in ((m, k), (k,), (k, n)))

            return unless_it_fails(
                svd, lambda: unless_it_fails(lambda: svd(lapack_driver="gesvd"), lost)
            )

        u, s, vh = self._each(one, x)
        return u, s, vh

    @_finite_only
    def qr(self, x: Array) -> tuple[Array, Array]:
        """Reduced Householder QR."""
        q, r = self._each(lambda a: scipy.linalg.qr(a, mode="economic", check_finite=False), x)
        return q, r

    @_finite_only
    def cholesky(self, z: Array) -> Array:
        """Lower Cholesky factor; NaN where it is not positive definite."""

        def one(a: Array) -> tuple[Array, ...]:
            factor = functools.partial(scipy.linalg.cholesky, a, lower=True, check_finite=False)
            return (unless_it_fails(factor, lambda: np.full_like(a, np.nan)),)

        return self._each(one, z)[0]

    def is_definite(self, z: Array, shift: Array) -> bool:
        """Whether ``z - shift I`` has a Cholesky factor, in every matrix of a stack."""

        def one(a: Array, s: Array) -> bool:
            # The transpose of a Hermitian matrix has its eigenvalues, and the other memory order.
            y = np.array(_blas.columns(a)[0], order="F")
            _blas.add_diagonal(y, -s.item())
            # Some implementations go on when they meet NaN.
            return _blas.cholesky(y) and bool(np.isfinite(_blas.diagonal(y)).all())

        stacks = zip(z.reshape(-1, *z.shape[-2:]), shift.reshape(-1), strict=True)
        return all(one(a, s) for a, s in stacks)

    def count_above(self, h: Array, cut: float) -> np.ndarray:
        """How many eigenvalues exceed `cut` times the largest: the inertia of a shifted matrix."""
        counts = [_blas.count_above(_blas.columns(a)[0], cut) for a in h.reshape(-1, *h.shape[-2:])]
        return np.array(counts, dtype=int).reshape(h.shape[:-2])

    @_finite_only
    def solve_lower(self, l: Array, b: Array, *, adjoint: bool = False) -> Array:
        """Return ``l^-1 b`` or ``l^-H b``; NaN if singular."""

        def one(l: Array, b: Array) -> tuple[Array, ...]:
            trans = "C" if adjoint else "N"
            solve = functools.partial(
                scipy.linalg.solve_triangular, l, b, lower=True, trans=trans, check_finite=False
            )
            return (unless_it_fails(solve, lambda: np.full_like(b, np.nan)),)

        return self._each(one, l, b)[0]

    @_finite_only
    def inverse(self, x: Array) -> Array:
        """Inverse by LU; NaN if singular."""
        getrf, getri, work_size = scipy.linalg.get_lapack_funcs(
            ("getrf", "getri", "getri_lwork"), (x,)
        )

        def one(a: Array) -> tuple[Array, ...]:
            lu, pivots, info = getrf(a)
            if info > 0:
                return (np.full_like(a, np.nan),)
            work, _ = work_size(a.shape[0])
            return (getri(lu, pivots, lwork=int(np.real(work)), overwrite_lu=True)[0],)

        return self._each(one, x)[0]


class TorchOps(InPlaceOps):
    """torch tensors: fused products with addend, and ``out=`` where no gradient is recorded."""

    native = frozenset({"float64", "float32", "bfloat16", "float16"})
    hiding = (
        "torch.export, torch.jit.trace, meta and fake tensors hide: call it on tensors with entries"
    )

    # Whether float32 is multiplied as torch is set to, not in full.
    as_set = False
    # Reading it takes as long as a small product: once for the arithmetic of one call.
    _setting: tuple[str, str] | None = None
    # Whether torch differentiates each product by itself, later and under settings of then.
    open_ended = False

    def __init__(self, xp: Any, device: Any, *, fused: bool = False, host: bool = True) -> None:
        super().__init__(xp, fused=fused)
        self.host = host
        self.device = device
        self.torch = torch = importlib.import_module("torch")
        self.autocasts = torch.amp.is_autocast_available(device.type)
        self._single = torch.float32, torch.complex64

    def functional(self) -> Ops:
        """Arithmetic for what torch itself may differentiate or batch."""
        # Derivatives of rules are rarely asked for: under autocast alone they pay for its absence.
        under_autocast = self.autocasts and self.torch.is_autocast_enabled(self.device.type)
        return TorchGradOps(self.xp, self.device, open_ended=under_autocast)

    def together(self, *arrays: Array) -> Ops:
        """Arithmetic for several arrays: functional, if torch records one of them."""
        devices = sorted({str(x.device) for x in arrays})
        if len(devices) > 1:
            raise ValueError(f"arrays lie on {' and '.join(devices)}; move them to one device")
        if any(ops_of(x).records(x) for x in arrays):
            # Torch differentiates these products later, under settings of then.
            return TorchGradOps(self.xp, self.device, open_ended=True)
        return self

    def working_in(self, format_name: str) -> Ops:
        """Return the same arithmetic for a native format; tf32 is native where torch is set so."""
        other: Any = super().working_in(format_name)
        other.as_set = format_name == "tf32"
        return cast(Ops, other)

    # -- settings of torch: autocast and the precision of float32 products. They are read, never
    # changed, since they belong to all of the process; every product goes through in_full.

    def multiplier(self, x: Array) -> str:
        """Format in which products of `x` are taken: of float32, what torch is set to and does.

        Complex products are taken in full under every setting.
        """
        return self._operands(x.dtype) if x.dtype == self.torch.float32 else self.format_name(x)

    def multiplies_in(self, format_name: str) -> bool:
        """Whether products in a format are torch's own; tf32 under a setting alone."""
        if format_name != "tf32":
            return format_name in self.native
        return self._operands(self.torch.float32) == "tf32"

    def _operands(self, dtype: Any) -> str:
        """Name of the format to which torch rounds operands of single precision."""
        torch = self.torch
        if self._setting is None:
            of_cpu, of_cuda = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
            self._setting = of_cpu.fp32_precision, of_cuda.fp32_precision
        if EXACT.issuperset(self._setting):
            return "float32"
        believed = min((REDUCED.get(s, "float32") for s in self._setting), key=_significand)
        captured = self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if captured or torch.compiler.is_compiling():
            return believed
        try:
            return _torch_operands(self._setting, self.device, dtype)
        except RuntimeError:  # tensors without entries
            return believed

    def in_full(
        self, f: Callable[..., Any], *x: Array, out: Array | None = None, double: bool = False
    ) -> Any:
        """Return ``f(*x)`` in the format of `x`: no autocast, no reduced products.

        Where torch is set to less than float32, which other threads may rely on, it is computed in
        double and rounded: the setting does not reach that. So is what torch records, as neither
        settings nor autocast reach its derivatives then.
        """
        torch = self.torch
        if self.autocasts and torch.is_autocast_enabled(self.device.type):
            with _torch_without_autocast(self.device):
                return self.in_full(f, *x, out=out, double=double)
        if not double and not self._needs_double(x[0]):
            return f(*x) if out is None else f(*x, out=out)
        wide = self._double(x[0])
        result = f(*(t.to(wide) for t in x))
        if out is not None:
            return out.copy_(result)
        if isinstance(result, tuple):
            return tuple(self._narrowed(t, x[0]) for t in result)
        return self._narrowed(result, x[0])

    def _narrowed(self, t: Array, like: Array) -> Array:
        """From double to the single precision of `like`, staying real or complex."""
        return t.to(like.dtype if self.is_complex(t) else self.torch.float32)

    def _needs_double(self, x: Array) -> bool:
        """Whether torch would multiply in less than the single precision of `x`, now or later."""
        if x.dtype not in self._single or self.as_set:
            return False
        return self.open_ended or self._operands(x.dtype) != "float32"

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Return ``a @ b``."""
        return self.in_full(super().matmul, a, b, out=out)

    def svd(self, x: Array) -> tuple[Array, Array, Array]:
        """Thin SVD ``u, s, vh``; of very long columns in double, since LAPACK sums them too."""
        u, s, vh = self.in_full(super().svd, x, double=self._is_very_long(x))
        return u, s, vh

    def singular_values(self, x: Array) -> Array:
        """Singular values, descending; of very long columns in double."""
        return self.in_full(super().singular_values, x, double=self._is_very_long(x))

    def eigh(self, z: Array) -> tuple[Array, Array]:
        """Eigenvalues of Hermitian matrices, ascending, and eigenvectors; NaN as for the SVD."""
        values, vectors = self.in_full(super().eigh, z)
        return values, vectors

    def determinant_sign(self, x: Array) -> Array:
        """Signs of the determinants of real matrices, shape (..., 1, 1); NaN as for the SVD."""
        return self.in_full(super().determinant_sign, x)

    def _is_very_long(self, x: Array) -> bool:
        few, many = sorted(x.shape[-2:])
        return self.host and many >= VERY_LONG and few < MANY and x.dtype in self._single

    def sums(self, x: Array, axis: int) -> Array:
        """Sums along an axis, which keeps length 1; torch adds in pairs."""
        return self.xp.sum(x, axis=axis, keepdims=True)

    def records(self, x: Array) -> bool:
        """Whether gradients or forward derivatives are recorded, or vmap batches."""
        return _torch_differentiates(x, self.torch)

    def hidden(self, x: Array) -> bool:
        """Whether what is done is recorded for tensors of other entries, or there are none."""
        torch = self.torch
        if x.device.type == "meta" or torch.jit.is_tracing():
            return True
        # torch.func wraps tensors: not their type, but the mode they live in tells of fake ones.
        if torch._C._len_torch_dispatch_stack() and _torch_records():
            return True
        if type(x) is torch.Tensor or type(x) is torch.nn.Parameter:
            return False
        fake = torch._subclasses
        return isinstance(x, (fake.FakeTensor, fake.functional_tensor.FunctionalTensor))

    def empty_result(self, x: Array) -> Array:
        """Result of the shape of `x`, which has no entries, in its graph."""
        return x.clone()

    def differentiable(
        self,
        f: Callable[..., tuple[Array, ...]],
        jvp: Callable[..., tuple[Array, ...]],
        vjp: Callable[..., tuple[Array, ...]],
        arrays: tuple[Array, ...],
        *,
        keep: bool,
    ) -> tuple[Array, ...]:
        """Return ``f(*arrays)``, as an operation of autograd, torch.func and vmap."""
        if self.torch.jit.is_tracing() or not any(self.records(x) for x in arrays):
            return f(*arrays)  # a trace has operations of torch alone
        return _torch_function().apply(f, jvp, vjp, keep, *arrays)

    def lyapunov(
        self,
        h: Array,
        w: Array,
        diagonalise: Callable[[Array], Diagonal],
        weight: complex = 1.0,
    ) -> Array:
        """Solve ``H X + c X H + shift X = W``; its derivative solves the same equation."""
        conjugate = weight.conjugate()

        def f(h: Array, w: Array) -> tuple[Array]:
            return (self._by_eigenvectors(w, diagonalise(h)),)

        def jvp(arrays: Any, results: Any, tangents: Any) -> tuple[Array]:
            (h, _), (x,), (dh, dw) = arrays, results, tangents
            moved = self.matmul(dh, x) + weight * self.matmul(x, dh)
            return (self.lyapunov(h, dw - moved, diagonalise, weight),)

        def vjp(arrays: Any, results: Any, gradients: Any) -> tuple[Array, Array]:
            w = self.lyapunov(
                arrays[0], gradients[0], lambda h: self._adjoint_of(diagonalise(h)), conjugate
            )
            adjoint = self.adjoint(results[0])
            return -(self.matmul(w, adjoint) + conjugate * self.matmul(adjoint, w)), w

        return self.differentiable(f, jvp, vjp, (h, w), keep=True)[0]

    def has_double(self, x: Array) -> bool:
        """Everywhere but on Apple's GPUs and some of Intel's."""
        return _torch_has_double(x.device)

    def _where_it_can(self, factorise: Callable[..., Any], *arrays: Array, **options: Any) -> Any:
        """Run a factorisation, on the host if the device lacks it: Apple's GPUs do some."""
        try:
            return factorise(self, *arrays, **options)
        except NotImplementedError:
            if self.device.type in ("cpu", "meta"):
                raise
        host = [x.cpu() for x in arrays]
        results = getattr(ops_of(host[0]), factorise.__name__)(*host, **options)
        if isinstance(results, tuple):
            return tuple(r.to(self.device) for r in results)
        return results.to(self.device)

    def dtype(self, name: str) -> Any:
        """Torch's dtype, which the array API namespace lists only in part."""
        return getattr(self.torch, name)

    def buffer(self, shape: tuple[int, ...], like: Array) -> Array | None:
        """Storage for an ``out=``, in the memory order of `like` if it has its shape."""
        if shape == tuple(like.shape) and like.ndim == 2 and like.stride(-1) > like.stride(-2):
            return self.torch.empty(shape[::-1], dtype=like.dtype, device=like.device).mT
        return self.torch.empty(shape, dtype=like.dtype, device=like.device)

    def reusable(self, x: Array) -> bool:
        """Whether the storage of `x` serves as an ``out=``: only if it is contiguous."""
        return x.is_contiguous() or (x.ndim == 2 and x.mT.is_contiguous())

    def to_host(self, x: Array) -> np.ndarray:
        """Copy to NumPy in float64 or complex128."""
        wide = self.torch.complex128 if self.is_complex(x) else self.torch.float64
        # Moved first, as the device may lack double precision.
        return x.detach().cpu().to(dtype=wide, copy=True).resolve_conj().numpy()

    def read(self, x: Array) -> float:
        """Largest entry as a Python float (a synchronisation on a device)."""
        return float(x.detach().max())

    def max_abs(self, x: Array) -> Array:
        """Largest absolute entry, of real and imaginary parts; one pass over a real matrix."""
        if self.is_complex(x) or x.ndim > 2 or self.device.type not in ("cpu", "cuda"):
            return super().max_abs(x)
        # Its reduction over both axes copies what is not contiguous.
        low, high = self.torch.aminmax(x if x.is_contiguous() else x.mT)
        return self.torch.maximum(high, -low).reshape(1, 1)

    def frobenius(self, x: Array) -> Array:
        """Frobenius norm without a temporary, accumulated in at least single precision."""
        norm = functools.partial(self.torch.linalg.vector_norm, keepdim=True)
        wide = self.format_name(x) in ("float32", "float64")
        kind = None if wide else self.torch.float32
        if x.shape[-2] * x.shape[-1] <= 4 * NORM_BLOCK:
            return norm(x, dim=(-2, -1), dtype=kind)
        # Along memory: reductions that convert are slow across it, or over all at once.
        flat = (x if x.is_contiguous() else x.mT).flatten(-2)
        end = flat.shape[-1] // NORM_BLOCK * NORM_BLOCK
        blocks = norm(flat[..., :end].unflatten(-1, (-1, NORM_BLOCK)), dim=-1, dtype=kind)
        rest = norm(flat[..., None, end:], dim=-1, dtype=kind)
        total = norm(blocks, dim=(-2, -1), dtype=self._double(blocks))
        return norm(self.torch.cat((total, rest), dim=-1), dim=-1).to(blocks.dtype)

    def divide(self, x: Array, s: Array | float, *, owned: bool = False) -> Array:
        """Return ``x / s`` in the dtype of `x`, and in its storage if it is owned."""
        return self.torch.div(x, s, out=x if owned else self.buffer(tuple(x.shape), x))

    def gemm(
        self,
        a: Array,
        b: Array,
        c: Array,
        alpha: float = 1.0,
        beta: float = 0.0,
        out: Array | None = None,
    ) -> Array:
        """Return ``alpha a @ b + beta c``, rounded once."""
        multiply = self.torch.addmm if a.ndim == 2 else self.torch.baddbmm
        product = functools.partial(
            self.in_full, functools.partial(multiply, beta=beta, alpha=alpha)
        )
        if a.ndim == 2 and out is not None and not out.is_contiguous():
            product(c.mT, b.mT, a.mT, out=out.mT)
            return out
        if a.ndim <= 3:
            return product(c, a, b, out=out)
        stack = [t.reshape((-1, *t.shape[-2:])) for t in (c, a, b)]
        flat = None if out is None else out.view((-1, *out.shape[-2:]))
        return product(*stack, out=flat).reshape(c.shape)

    def combine(self, coefficients: Sequence[float], matrices: Sequence[Array]) -> Array:
        """Return ``sum c_i M_i``; one matrix alone needs no copy in float32 to be rounded once."""
        if len(matrices) == 1:
            return matrices[0] * coefficients[0]
        return super().combine(coefficients, matrices)

    def gram(self, x: Array, out: Array | None = None) -> Array:
        """Return ``x^H x``, large ones by panels."""
        h = self.adjoint(x)
        if self._is_long(h, x) or not self._by_panels(h, x):
            return self.matmul(h, x, out)
        return self.gemm_hermitian(h, x, x, out=out)

    def gemm_hermitian(
        self,
        a: Array,
        b: Array,
        c: Array,
        alpha: float = 1.0,
        beta: float = 0.0,
        out: Array | None = None,
    ) -> Array:
        """Return ``alpha a @ b + beta c``, Hermitian: panels from the diagonal on, and mirrored."""
        if not self._by_panels(a, b):
            return self.gemm(a, b, c, alpha, beta, out)
        torch, n = self.torch, a.shape[0]
        out = torch.empty((n, n), dtype=a.dtype, device=a.device) if out is None else out
        width = -(-n // PANELS)
        for i in range(0, n, width):
            j = min(i + width, n)
            panel = out[i:j, i:]
            if beta:
                add = functools.partial(torch.addmm, beta=beta, alpha=alpha)
                self.in_full(add, c[i:j, i:], a[i:j], b[:, i:], out=panel)
            else:
                self.in_full(torch.mm, a[i:j], b[:, i:], out=panel)
                if alpha != 1.0:
                    panel *= alpha
            out[j:, i:j] = self.adjoint(out[i:j, j:])
        return out

    def _by_panels(self, a: Array, b: Array) -> bool:
        """Whether a Hermitian product of matrices on the host is worth several calls."""
        n, k = a.shape[-2:]
        return self.host and a.ndim == 2 and n >= 512 and n * n * k >= PANELS_FROM

    @_finite_only
    def qr(self, x: Array) -> tuple[Array, Array]:
        """Reduced Householder QR; SciPy's where MKL's is NaN, as of complex ones of low rank."""
        q, r = super().qr(x)
        if not self.host or self._is_finite(q):
            return q, r
        host = x.detach().resolve_conj().numpy()
        q, r = (self.torch.as_tensor(factor) for factor in ops_of(host).qr(host))
        return q, r

    @_finite_only
    def cholesky(self, z: Array) -> Array:
        """Lower Cholesky factor; NaN where it is not positive definite."""
        factor, info = self.torch.linalg.cholesky_ex(z)
        return self.torch.where((info == 0)[..., None, None], factor, math.nan)

    @_finite_only
    def solve_lower(self, l: Array, b: Array, *, adjoint: bool = False) -> Array:
        """Return ``l^-1 b`` or ``l^-H b``."""
        solve = functools.partial(self.torch.linalg.solve_triangular, upper=adjoint)
        return self.in_full(solve, self.adjoint(l) if adjoint else l, b)

    @_finite_only
    def inverse(self, x: Array) -> Array:
        """Inverse by LU; NaN if singular."""

        def invert(x: Array) -> Array:
            inverse, info = self.torch.linalg.inv_ex(x)
            return self.torch.where((info == 0)[..., None, None], inverse, math.nan)

        return self.in_full(invert, x)


@functools.lru_cache(maxsize=64)
def _torch_operands(setting: tuple[str, str], device: Any, dtype: Any) -> str:
    """Format to which torch rounds operands under a setting that permits it: tried, not believed.

    Many processors ignore the setting. Products with the identity, of one matrix and of a stack,
    show to how many digits the other operand is rounded.
    """
    torch = importlib.import_module("torch")
    one = torch.eye(PROBE, dtype=dtype, device=device)
    found = set()
    with torch.no_grad(), _torch_without_autocast(device):
        for shape in ((PROBE, PROBE), (2, PROBE, PROBE)):
            for name in ("float32", "tf32", "bfloat16"):
                entry = 1 + format_of(name).epsilon
                x = torch.full(shape, entry, dtype=dtype, device=device)
                if bool((torch.matmul(x, one.expand(shape)) == x).all()):
                    break
            found.add(name)
    return min(found, key=_significand)


def _torch_differentiates(x: Array, torch: Any) -> bool:
    """Whether torch records gradients or forward derivatives of `x`, or batches it."""
    if x.requires_grad and torch.is_grad_enabled():
        return True
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return True
    forward = torch.autograd.forward_ad
    # Asking each tensor takes microseconds; where torch does not tell the level, all are asked.
    if getattr(forward, "_current_level", 0) < 0:
        return False
    # Fake tensors cannot be asked: what is right for derivatives is right without.
    if torch._C._len_torch_dispatch_stack():
        return True
    return forward.unpack_dual(x).tangent is not None


def _torch_records() -> bool:
    """Whether operations are recorded or announced, by torch.export, make_fx or fake tensors."""
    dispatch = importlib.import_module("torch.utils._python_dispatch")
    names = {type(mode).__name__ for mode in dispatch._get_current_dispatch_mode_stack()}
    return not names.isdisjoint({"FakeTensorMode", "ProxyTorchDispatchMode"})


def _torch_without_autocast(device: Any) -> Any:
    torch = importlib.import_module("torch")
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _significand(name: str) -> int:
    return format_of(name).significand


@functools.cache
def _torch_has_double(device: Any) -> bool:
    if device.type == "xpu":
        properties = importlib.import_module("torch").xpu.get_device_properties(device)
        return bool(getattr(properties, "has_fp64", True))
    return bool(device.type != "mps")


@functools.cache
def _torch_function() -> Any:
    """Torch's way to give rules; the class is made once torch is there."""
    torch: Any = importlib.import_module("torch")

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(f: Any, jvp: Any, vjp: Any, keep: bool, *arrays: Array) -> tuple[Array, ...]:
            # A view would be one of a matrix that nobody records.
            return tuple(x.clone() if x._is_view() else x for x in f(*arrays))

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            _, ctx.along, ctx.against, keep, *arrays = inputs
            ctx.count = len(arrays)
            ctx.set_materialize_grads(False)
            saved = (*arrays, *(output if keep else ()))
            ctx.save_for_backward(*saved)
            ctx.save_for_forward(*saved)

        @staticmethod
        def backward(ctx: Any, *gradients: Array | None) -> tuple[Array | None, ...]:
            if all(g is None for g in gradients):
                return (None,) * (4 + ctx.count)
            arrays, results = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
            return (None, None, None, None, *ctx.against(arrays, results, gradients))

        @staticmethod
        def jvp(ctx: Any, *tangents: Array | None) -> tuple[Array, ...]:
            arrays, results = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
            known = (
                torch.zeros_like(x) if t is None else t
                for t, x in zip(tangents[4:], arrays, strict=True)
            )
            return ctx.along(arrays, results, tuple(known))

        @staticmethod
        def vmap(
            info: Any, in_dims: Any, f: Any, jvp: Any, vjp: Any, keep: bool, *arrays: Array
        ) -> Any:
            moved = (
                x.unsqueeze(0) if d is None else x.movedim(d, 0)
                for x, d in zip(arrays, in_dims[4:], strict=True)
            )
            results = Differentiable.apply(f, jvp, vjp, keep, *moved)
            return results, (0,) * len(results)

    return Differentiable


class TorchGradOps(TorchOps):
    """torch tensors that record gradients: nothing is written in place."""

    gram = Ops.gram
    gemm_hermitian = Ops.gemm_hermitian

    def __init__(self, xp: Any, device: Any, *, open_ended: bool = False) -> None:
        super().__init__(xp, device, host=False)
        self.open_ended = open_ended and _torch_has_double(device)

    def records(self, x: Array) -> bool:
        """Always, for all that is known."""
        return True

    # Derivatives of factorisations are made of products.

    def qr(self, x: Array) -> tuple[Array, Array]:
        """Reduced Householder QR."""
        q, r = self.in_full(super().qr, x)
        return q, r

    def cholesky(self, z: Array) -> Array:
        """Lower Cholesky factor; NaN where it is not positive definite."""
        return self.in_full(super().cholesky, z)

    def adjoint(self, x: Array) -> Array:
        """Conjugate transpose; vmap does not know what the array API's is made of."""
        return x.mH

    buffer = Ops.buffer
    reusable = Ops.reusable
    fold = Ops.fold
    add_diagonal = Ops.add_diagonal
    divide = Ops.divide


class TorchTracedOps(TorchGradOps):
    """torch tensors of unknown entries, under torch.export, torch.jit.trace and the like."""

    records = TorchOps.records


def _of_whole(name: str) -> Any:
    """Return a primitive of matrices that no process has in part, by that of the local tensors."""

    @functools.wraps(getattr(Ops, name))
    def of_whole(self: TorchShardedOps, *stacks: Array, **how: Any) -> Any:
        axes = [axis for x in stacks for axis in _layout(x)]
        if -1 in axes or -2 in axes:
            raise ValueError(
                f"{name.strip('_')} needs whole matrices, got placements {stacks[-1].placements}; "
                "gather them first, as with full_tensor()"
            )
        return self._on_local(lambda *x: getattr(ops_of(x[0]), name)(*x, **how), *stacks)

    return of_whole


class TorchShardedOps(TorchGradOps):
    """DTensors, sharded over the processes of a mesh; nothing is written in place.

    `with_shards` brings matrices into a layout in which Gram matrices are the only sums: along
    every dimension of the mesh the longer side is sharded, or an axis of the stack, or nothing.
    Products, largest entries and factorisations are those of local tensors: torch's rules for
    DTensors lack some operations, gather operands unasked, and fail on a process whose shard is
    empty.

    Every process makes the same collectives, since all decisions rest on shapes and placements, or
    on numbers that `read` and `to_host` take from one process.
    """

    records = TorchOps.records

    def check_sharding(self, x: Array, name: str, *, taken: bool) -> None:
        """Refuse, on every process alike, DTensors where whole matrices are needed."""
        if not taken:
            raise TypeError(
                f"{name} is a DTensor, which orthogonalize, orthogonalize_all, polar and the lmo "
                f"of spectral(polar=orthogonalize) take; pass the whole tensor, "
                f"{name}.full_tensor()"
            )
        if x.device_mesh.get_coordinate() is None:
            raise ValueError(
                f"{name} is a DTensor on {x.device_mesh}, of which this process is no member; call "
                "this on the processes of the mesh only"
            )
        try:
            x.device_mesh.get_all_groups()
        except Exception as error:  # torch has several kinds
            raise ValueError(
                f"{name} is a DTensor whose process group is gone ({error}); initialise "
                f"torch.distributed and make {name} anew, or pass {name}.to_local()"
            ) from None

    def functional(self) -> Ops:
        """Itself: nothing is overwritten, and products have a rule."""
        return self

    def together(self, *arrays: Array) -> Ops:
        """Itself, as `functional`."""
        return self

    @property
    def looks(self) -> bool:
        """Whether a fixed schedule looks for NaN: on CPUs, as at other tensors there."""
        return bool(self.device.type == "cpu")

    # -- layouts: for each dimension of the mesh the axis that is sharded along it, counted from the
    # last one, -1; 0 where none is

    def spread(self, x: Array) -> bool:
        """Whether no process has all of `x`."""
        return any(_layout(x))

    def placements(self, x: Array) -> tuple[Any, ...]:
        """Mesh and placements, those of pending sums as they are once summed."""
        whole = _dtensors().Replicate()
        return (x.device_mesh, *(whole if p.is_partial() else p for p in x.placements))

    def with_shards(self, f: Callable[[Array], Any], x: Array, name: str = "a") -> Any:
        """Return ``f(x)``, the longer side sharded; of a plain tensor if each process has all."""
        laid, back, whole = self._laid_out(x, name)
        result: Any = f(laid)
        if not isinstance(result, Pytree):  # factors of polar
            return back(result)
        factors: Any = result
        u, h = back(factors.unitary), whole(factors.hermitian)
        return dataclasses.replace(factors, unitary=u, hermitian=h)

    def _laid_out(
        self, x: Array, name: str
    ) -> tuple[Array, Callable[[Array], Array], Callable[[Array], Array]]:
        """Matrices in that layout, and ways back: of the shape of `x`, and of square results."""
        mesh, *back = self.placements(x)
        layout = _layout(x)
        if not any(layout):
            local = x.redistribute(placements=back).to_local()
            wrap = functools.partial(_dtensors().DTensor.from_local, device_mesh=mesh)
            return local, wrap, wrap
        few, many = (-2, -1) if x.shape[-2] < x.shape[-1] else (-1, -2)
        target = [many if axis == few else axis for axis in layout]
        why = f"{name} is not sharded along its longer side by Shard, as products need it"
        laid = self._moved(_summed(x), target, why)
        # Also where nothing moves: the derivatives of redistribute lay gradients out.
        return laid, lambda u: u.redistribute(placements=back), lambda h: h

    def _moved(self, x: Array, layout: Sequence[int], why: str = "") -> Array:
        """Return `x` in another layout; warn if parts of a matrix that is not square are sent."""
        mesh, target = x.device_mesh, _placements(layout, x.ndim)
        if list(x.placements) == target and not why:
            return x
        now, sent = _layout(x), 0.0
        for i, axis in enumerate(now):
            if axis and x.placements[i] != target[i]:
                others = math.prod(mesh.size(j) for j, d in enumerate(now) if d and j != i)
                parts = mesh.size(i)
                # From one axis to another torch gathers all on CPUs, and selects.
                exchange = layout[i] and mesh.device_type != "cpu"
                total = x.numel() * x.element_size() / others
                sent += total * (1 - 1 / parts) / (parts if exchange else 1)
        if sent and x.shape[-2] != x.shape[-1]:
            why = why or "the larger Hermitian factor needs all of the unitary one"
            warn(
                f"{why}: {sent / 1e6:.2g} MB are sent to each process, of shape {tuple(x.shape)} "
                f"with placements {x.placements}",
                UserWarning,
            )
        return x.redistribute(placements=target)

    def writable(self, x: Array) -> bool:
        """Whether entries can be assigned to, which those of pending sums cannot."""
        return not any(p.is_partial() for p in x.placements)

    def store(self, x: Array, out: Array) -> None:
        """Write `x` to a DTensor, in the placements of that."""
        out.copy_(x.redistribute(placements=out.placements))

    # -- local tensors

    def _wrapped(
        self,
        local: Array,
        like: Array,
        layout: Sequence[int],
        shape: Sequence[int],
        pending: Iterable[int] = (),
        how: str = "sum",
    ) -> Array:
        """Return the DTensor of a layout that has a local tensor, reduced where that is pending."""
        places, tensor = _placements(layout, len(shape)), _dtensors()
        for i in pending:
            places[i] = tensor.Partial(how)
        shape = self.torch.Size(shape)
        stride = self.torch.empty(shape, device="meta").stride()
        return _summed(
            tensor.DTensor.from_local(
                local, like.device_mesh, places, run_check=False, shape=shape, stride=stride
            )
        )

    def _on_local(self, f: Callable[..., Any], *stacks: Array) -> Any:
        """Apply a function of stacks that keeps their leading axes to local tensors."""
        layout = [min(axes) for axes in zip(*map(_layout, stacks), strict=True)]
        results = f(*(self._moved(x, layout).to_local() for x in stacks))
        first, batch = stacks[0], stacks[0].shape[:-2]

        def wrap(y: Array) -> Array:
            fewer = first.ndim - y.ndim  # vectors of values
            shape = (*batch, *y.shape[len(batch) :])
            return self._wrapped(y, first, [d and d + fewer for d in layout], shape)

        return tuple(map(wrap, results)) if isinstance(results, tuple) else wrap(results)

    def _reduced(self, local: Array, x: Array, how: str) -> Array:
        """Sum, or take the largest of, numbers of parts of matrices, shape (..., 1, 1)."""
        layout = _layout(x)
        pending = [i for i, axis in enumerate(layout) if axis in (-1, -2)]
        batch = [0 if i in pending else axis for i, axis in enumerate(layout)]
        return self._wrapped(local, x, batch, (*x.shape[:-2], 1, 1), pending, how)

    def entrywise(self, f: Callable[[Array], Array], x: Array) -> Array:
        """Return ``f(x)`` for a function of single entries."""
        return self._wrapped(f(x.to_local()), x, _layout(x), x.shape)

    _diagonal = _of_whole("_diagonal")
    svd = _of_whole("svd")
    singular_values = _of_whole("singular_values")
    eigh = _of_whole("eigh")
    qr = _of_whole("qr")
    determinant_sign = _of_whole("determinant_sign")
    cholesky = _of_whole("cholesky")
    solve_lower = _of_whole("solve_lower")
    inverse = _of_whole("inverse")
    eigenvalues = _of_whole("eigenvalues")

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Return ``a @ b``."""
        if not hasattr(a, "placements"):  # blocks of local tensors
            return super().matmul(a, b, out)
        a, b = self._aligned(a, b)
        if self.records(a) or self.records(b):
            return _torch_product().apply(self, a, b)
        return self._product(a, b)

    def gemm(
        self,
        a: Array,
        b: Array,
        c: Array,
        alpha: float = 1.0,
        beta: float = 0.0,
        out: Array | None = None,
    ) -> Array:
        """Return ``alpha a @ b + beta c``, rounded once where no sum is made."""
        a, b = self._aligned(a, b)
        layout, sums = _layout_of_product(a, b)
        if sums or layout != _layout(c) or any(self.records(x) for x in (a, b, c)):
            return Ops.gemm(self, a, b, c, alpha, beta)
        local = super().gemm(a.to_local(), b.to_local(), c.to_local(), alpha, beta)
        return self._wrapped(local, c, layout, c.shape)

    def _product(self, a: Array, b: Array) -> Array:
        """Return ``a @ b`` of aligned DTensors; sums over processes are in at least float32."""
        layout, sums = _layout_of_product(a, b)
        local = super().matmul(a.to_local(), b.to_local())
        batch = self.torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        local = self.at_least_single(local) if sums else local
        shape = (*batch, a.shape[-2], b.shape[-1])
        return self.like(self._wrapped(local, a, layout, shape, sums), a)

    def _aligned(self, a: Array, b: Array) -> tuple[Array, Array]:
        """Operands whose local tensors can be multiplied; what every process has is only cut."""
        a, b = _summed(a), _summed(b)
        left, right = list(_layout(a)), list(_layout(b))
        for i, (p, q) in enumerate(zip(left, right, strict=True)):
            batch = min(p, q)
            if batch < -2:
                left[i] = batch if a.ndim >= -batch and a.shape[batch] > 1 else 0
                right[i] = batch if b.ndim >= -batch and b.shape[batch] > 1 else 0
            elif p == -1:
                right[i] = -2
            elif q == -2 and p == 0:
                left[i] = -1
            elif p == -2:
                right[i] = 0
        return self._moved(a, left), self._moved(b, right)

    def max(
        self, x: Array, *, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
    ) -> Array:
        """Return the largest entries, NaN where one is NaN; the axis is gathered."""
        axes = (axis,) if isinstance(axis, int) else axis or range(-x.ndim, 0)
        gone = {d if d < 0 else d - x.ndim for d in axes}
        layout = [0 if d in gone else d for d in _layout(x)]
        x = x.redistribute(placements=_placements(layout, x.ndim))
        return super().max(x, axis=axis, keepdims=keepdims)

    def max_abs(self, x: Array) -> Array:
        """Largest absolute entry, infinity for NaN: which of them MPI and gloo keep is open."""
        local = x.detach().to_local()
        if 0 in local.shape[-2:]:
            kind = self.dtype(self.format_name(x))
            peak = self.torch.zeros((*local.shape[:-2], 1, 1), dtype=kind, device=local.device)
        else:
            peak = ops_of(local).max_abs(local)
        wide = self.at_least_single(peak.nan_to_num(math.inf, math.inf))
        return self._reduced(wide, x, "max").to(peak.dtype)

    def frobenius(self, x: Array) -> Array:
        """Frobenius norm, the same number on every process."""
        local = x.to_local()
        local = ops_of(local).frobenius(local)
        return self.xp.sqrt(self._reduced(local * local, x, "sum"))

    def sums(self, x: Array, axis: int) -> Array:
        """Sums along an axis, which keeps length 1."""
        return _summed(super().sums(x, axis))

    def read(self, x: Array) -> float:
        """Largest entry as a Python float, the same on every process."""
        return float(self._agreed(x).max())

    def to_host(self, x: Array) -> np.ndarray:
        """Copy to NumPy in float64 or complex128, the same whole on every process."""
        return super().to_host(self._agreed(x))

    def _agreed(self, x: Array) -> Array:
        """Return the whole tensor, as the first process of the mesh has it.

        Processes need not round alike, and one that decided otherwise would wait for ever.
        """
        if not hasattr(x, "placements"):
            return x
        whole = x.detach().full_tensor().clone(memory_format=self.torch.contiguous_format)
        dist = importlib.import_module("torch.distributed")
        for group in x.device_mesh.get_all_groups():
            dist.broadcast(whole, group=group, group_src=0)
        return whole

    def eye(self, n: int, like: Array) -> Array:
        """Return the n x n identity, whole on every process."""
        return self._whole(self.torch.eye(n, dtype=like.dtype, device=like.device), like)

    def from_host(self, a: np.ndarray, like: Array) -> Array:
        """Move a NumPy array to the mesh of `like`, whole on every process."""
        same = a.dtype.kind == "c" or not self.is_complex(like)
        dtype = like.dtype if same else self.dtype(self.format_name(like))
        return self._whole(self.torch.asarray(np.array(a), dtype=dtype, device=like.device), like)

    def _whole(self, x: Array, like: Array) -> Array:
        """A DTensor of the same tensor on every process; nothing is sent."""
        return self._wrapped(x, like, [0] * like.device_mesh.ndim, x.shape)


class AnyTorchOps(TorchOps):
    """Chooses among the arithmetics of torch; never one itself."""

    library = "torch"

    @classmethod
    def of(cls, x: Array, xp: Any) -> Ops:
        """Return the arithmetic for a tensor: sharded, differentiated, traced or none of them."""
        if hasattr(x, "placements"):
            return TorchShardedOps(xp, x.device)
        if _torch_differentiates(x, importlib.import_module("torch")):
            # Not on the host: a norm that is read as a number would lose its gradient, and vmap
            # has no numbers to read.
            return TorchGradOps(xp, x.device, open_ended=True)
        ops = TorchOps(xp, x.device, host=x.device.type == "cpu")
        return TorchTracedOps(xp, x.device) if ops.hidden(x) else ops


def _dtensors() -> Any:
    return importlib.import_module("torch.distributed.tensor")


def _layout(x: Array) -> tuple[int, ...]:
    """Axis that is sharded along each dimension of a mesh, counted from -1; 0 for none."""
    axes = (getattr(p, "dim", None) for p in x.placements)
    return tuple(0 if d is None else d - x.ndim if d >= 0 else d for d in axes)


def _placements(layout: Sequence[int], ndim: int) -> list[Any]:
    tensor = _dtensors()
    return [tensor.Shard(d + ndim) if d else tensor.Replicate() for d in layout]


def _layout_of_product(a: Array, b: Array) -> tuple[tuple[int, ...], set[int]]:
    """Layout of a product of aligned operands, and the dimensions of the mesh to sum over."""
    pairs = list(zip(_layout(a), _layout(b), strict=True))
    sums = {i for i, pair in enumerate(pairs) if pair == (-1, -2)}
    return tuple(0 if i in sums else min(pair) for i, pair in enumerate(pairs)), sums


def _summed(x: Array) -> Array:
    """Make the sums over processes that torch would make anew at each use."""
    for i, place in enumerate(x.placements):  # one at a time: torch warns of several
        if place.is_partial():
            places = list(x.placements)
            places[i] = _dtensors().Replicate()
            x = x.redistribute(placements=places)
    return x


@functools.cache
def _torch_product() -> Any:
    """Product of aligned DTensors whose derivatives are such products."""
    torch: Any = importlib.import_module("torch")

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, ops: TorchShardedOps, a: Array, b: Array) -> Array:
            ctx.ops = ops
            ctx.save_for_backward(a, b)
            return ops._product(a, b)

        @staticmethod
        def backward(ctx: Any, g: Array) -> tuple[Array | None, ...]:
            (a, b), ops = ctx.saved_tensors, ctx.ops
            _, of_a, of_b = ctx.needs_input_grad
            return (
                None,
                ops.matmul(g, ops.adjoint(b)) if of_a else None,
                ops.matmul(ops.adjoint(a), g) if of_b else None,
            )

    return Product


@functools.lru_cache(maxsize=256)
def _jitted(f: Callable[..., Array], fixed: tuple[tuple[str, Any], ...]) -> Callable[..., Array]:
    """One compiled function for equal arguments: JAX traces it once for each shape."""
    jax = importlib.import_module("jax")
    return jax.jit(functools.partial(f, **dict(fixed)))


@functools.cache
def _register(kind: Any) -> None:
    """Make a class of results a pytree of JAX."""
    names = [f.name for f in dataclasses.fields(kind) if f.name not in kind.static]
    with contextlib.suppress(ValueError):  # another thread was quicker
        jax = importlib.import_module("jax")
        jax.tree_util.register_dataclass(kind, names, kind.static)


def _explicit_sharding(x: Array) -> Any:
    """Sharding over a mesh with explicit axes, which are part of the type of `x`, or None."""
    jax = importlib.import_module("jax")
    sharding = jax.typeof(x).sharding if isinstance(x, jax.core.Tracer) else x.sharding
    types = getattr(getattr(sharding, "mesh", None), "axis_types", None) or ()
    return sharding if any("Explicit" in str(kind) for kind in types) else None


def _place_like(x: Array, sharding: Any, shape: tuple[int, ...]) -> Any:
    """Sharding of a result: as `x`, if it has its shape, else along the axes of a stack alone."""
    if shape == x.shape:
        return sharding
    jax = importlib.import_module("jax")
    spec = tuple(sharding.spec)[: max(0, min(x.ndim - 2, len(shape)))]
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*spec))


class JaxOps(Ops):
    """JAX: functional, traceable under jit."""

    library = "jax"
    native = frozenset({"float64", "float32", "bfloat16", "float16"})
    fixed_work = True
    host_device = None  # NumPy reads arrays of every device, in parts as well
    hiding = (
        "jax.jit and jax.vmap hide: call it outside of jit (under grad it may be) and on a whole "
        "stack instead of vmap"
    )

    @classmethod
    def of(cls, x: Array, xp: Any) -> Ops:
        """Return the arithmetic; the first call makes classes of results known to JAX."""
        for kind in Pytree.__subclasses__():
            _register(cast(Any, kind))
        return super().of(x, xp)

    def check_sharding(self, x: Array, name: str, *, taken: bool) -> None:
        """Refuse matrices that are sharded explicitly where whole ones are needed."""
        if taken:
            return
        sharding = _explicit_sharding(x)
        spec = () if sharding is None else (*sharding.spec, *[None] * x.ndim)[: x.ndim]
        if any(axes is not None for axes in spec[-2:]):
            raise TypeError(
                f"{name} is sharded along explicit axes, {sharding.spec}, which orthogonalize, "
                "orthogonalize_all, polar and the lmo of spectral(polar=orthogonalize) take; pass "
                f"the whole array, jax.sharding.reshard({name}, jax.sharding.PartitionSpec())"
            )

    def has_double(self, x: Array) -> bool:
        """Only with 64-bit types enabled."""
        return bool(importlib.import_module("jax").config.jax_enable_x64)

    def _matmul(self, a: Array, b: Array) -> Array:
        """Return ``a @ b`` in full: by default float32 is tf32 on GPUs and bfloat16 on TPUs."""
        return self.xp.matmul(a, b, precision="highest")

    def _is_long(self, a: Array, b: Array) -> bool:
        """Not of what is traced or lies in parts, which blocks could cut across."""
        known = not (self.records(a) or self.records(b) or self.spread(a) or self.spread(b))
        return known and super()._is_long(a, b)

    def compiled(self, f: Callable[..., Array], **fixed: Any) -> Callable[[Array], Array]:
        """Return ``f`` with all but its array fixed, as one compiled function."""
        return _jitted(f, tuple(sorted(fixed.items())))

    def writable(self, x: Array) -> bool:
        """JAX arrays are immutable."""
        return False

    def records(self, x: Array) -> bool:
        """Whether JAX traces: under grad, jvp, vmap or jit."""
        return isinstance(x, importlib.import_module("jax").core.Tracer)

    def spread(self, x: Array) -> bool:
        """Whether no device has all of `x`; under jit that is known of explicit axes alone."""
        if not self.records(x):
            return not x.sharding.is_fully_replicated
        sharding = _explicit_sharding(x)
        return sharding is not None and any(axes is not None for axes in sharding.spec)

    def to_host(self, x: Array) -> np.ndarray:
        """Copy to NumPy in float64 or complex128."""
        return super().to_host(self._visible(x))

    def read(self, x: Array) -> float:
        """Return the largest entry as a Python float (a synchronisation on a device)."""
        return float(self._visible(self.max(x)))

    def _visible(self, x: Array) -> Array:
        if self.hidden(x):
            raise TypeError(f"this computation looks at its matrix, which {self.hiding}")
        return x

    def device_of(self, x: Array) -> Any:
        """Where small matrices go that meet `x`: to every device that has a part of it."""
        if self.records(x) or len(x.sharding.device_set) == 1:
            return super().device_of(x)
        sharding = importlib.import_module("jax").sharding
        if not isinstance(x.sharding, sharding.NamedSharding):
            return None
        return sharding.NamedSharding(x.sharding.mesh, sharding.PartitionSpec())

    def with_shards(self, f: Callable[[Array], Any], x: Array, name: str = "a") -> Any:
        """Return ``f(x)``, computed with automatic axes: explicit ones want a place a product."""
        jax = importlib.import_module("jax")
        given = _explicit_sharding(x)
        if self.records(x):
            if given is None:
                return f(x)
            shapes = jax.eval_shape(f, jax.ShapeDtypeStruct(x.shape, x.dtype))
            places = jax.tree.map(lambda y: _place_like(x, given, y.shape), shapes)
            return jax.sharding.auto_axes(f, out_sharding=places)(x)
        if given is None:
            if x.sharding.is_fully_replicated:
                return f(x)
            place, result = x.sharding, f(x)
        else:
            sharding = jax.sharding
            types = (sharding.AxisType.Auto,) * len(given.mesh.axis_names)
            mesh = sharding.Mesh(given.mesh.devices, given.mesh.axis_names, axis_types=types)
            with sharding.use_abstract_mesh(mesh.abstract_mesh):
                result = f(jax.device_put(x, sharding.NamedSharding(mesh, given.spec)))
            place = given

        def put(y: Any) -> Any:
            if not isinstance(y, jax.Array) or (given is None and y.shape != x.shape):
                return y
            return jax.device_put(y, _place_like(x, place, y.shape))

        return jax.tree.map(put, result)

    def hidden(self, x: Array) -> bool:
        """Whether JAX knows no entries."""
        return self.records(x)

    def repeat_while(
        self, going: Callable[[Any], Array], step: Callable[[Any], Any], state: Any
    ) -> Any:
        """Apply a step to a tuple of arrays while a test of it holds, without a look at it."""
        return importlib.import_module("jax").lax.while_loop(going, step, state)

    def empty_result(self, x: Array) -> Array:
        """Itself: it is immutable."""
        return x

    def differentiable(
        self,
        f: Callable[..., tuple[Array, ...]],
        jvp: Callable[..., tuple[Array, ...]],
        vjp: Callable[..., tuple[Array, ...]],
        arrays: tuple[Array, ...],
        *,
        keep: bool,
    ) -> tuple[Array, ...]:
        """Return ``f(*arrays)`` with a rule for forward derivatives, which JAX transposes.

        Where results are not kept, what lies between is computed anew: ``jax.checkpoint``.
        """
        if not any(self.records(x) for x in arrays):
            return f(*arrays)
        jax = importlib.import_module("jax")

        f, jvp = under_default_settings(f), under_default_settings(jvp)

        @jax.custom_jvp
        def function(*arrays: Array) -> tuple[Array, ...]:
            return f(*map(self.xp.asarray, arrays))  # JAX may hand NumPy's arrays on

        @function.defjvp
        def rule(primals: Any, tangents: Any) -> Any:
            primals = tuple(map(self.xp.asarray, primals))
            results = function(*primals)
            if keep:
                return results, jvp(primals, results, tangents)
            return results, jax.checkpoint(lambda x, e: jvp(x, (), e))(primals, tangents)

        return function(*arrays)

    def lyapunov(
        self,
        h: Array,
        w: Array,
        diagonalise: Callable[[Array], Diagonal],
        weight: complex = 1.0,
    ) -> Array:
        """Solve the equation; JAX differentiates it, not the eigenvectors."""
        if not (self.records(h) or self.records(w)):
            return super().lyapunov(h, w, diagonalise, weight)
        lax = importlib.import_module("jax").lax
        d = diagonalise(lax.stop_gradient(h))  # spares the derivative of eigenvectors
        conj = self.xp.conj

        def multiplied(x: Array) -> Array:
            y = self.matmul(h, x) + weight * self.matmul(x, h)
            return y if d.shift is None else y + d.shift * x

        return lax.custom_linear_solve(
            multiplied,
            w,
            lambda _, b: self._by_eigenvectors(b, d),
            lambda _, b: conj(self._by_eigenvectors(conj(b), self._adjoint_of(d))),
        )

    def max(
        self, x: Array, *, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
    ) -> Array:
        """Return the largest entries, NaN where one is NaN: XLA loses it in 4096 and more."""
        xp = self.xp
        lost = xp.any(xp.isnan(x), axis=axis, keepdims=keepdims)
        return xp.where(lost, math.nan, xp.max(x, axis=axis, keepdims=keepdims))

    def gemm(
        self,
        a: Array,
        b: Array,
        c: Array,
        alpha: float = 1.0,
        beta: float = 0.0,
        out: Array | None = None,
    ) -> Array:
        """Return ``alpha a @ b + beta c``; 16-bit products stay in float32 until the addend is in.

        JAX would round Python scalars to the 16-bit format: they meet float32 arrays only.
        """
        if not self.fused:
            return super().gemm(a, b, c, alpha, beta)
        wide = self.xp.float32
        product = self.xp.matmul(a, b, precision="highest", preferred_element_type=wide)
        return (product * alpha + c.astype(wide) * beta).astype(a.dtype)

    @_finite_only
    def solve_lower(self, l: Array, b: Array, *, adjoint: bool = False) -> Array:
        """Return ``l^-1 b`` or ``l^-H b``."""
        solve = importlib.import_module("jax.scipy.linalg").solve_triangular
        return solve(l, b, lower=True, trans="C" if adjoint else "N")


class CupyOps(InPlaceOps):
    """CuPy 14: products by cuBLAS with their addends, one kernel for each combination.

    Norms and factorisations are kept out of its silent double precision for bfloat16.
    """

    library = "cupy"

    def __init__(self, xp: Any, *, fused: bool = False) -> None:
        super().__init__(xp, fused=fused)
        tf32 = {"tf32"} if _cublas.has_tf32() else set()
        self.native = frozenset({"float64", "float32", "bfloat16", "float16"} | tf32)

    def on_cpu(self, x: Array) -> bool:
        """Never."""
        return False

    def dtype(self, name: str) -> Any:
        """CuPy's dtypes are NumPy's and ml_dtypes'."""
        return _numpy_dtype(name)

    def to_host(self, x: Array) -> np.ndarray:
        """Copy to NumPy in float64 or complex128."""
        return x.get().astype(np.complex128 if self.is_complex(x) else np.float64)

    def reusable(self, x: Array) -> bool:
        """Whether the storage of `x` serves as an ``out=``: also that of an adjoint."""
        return _cublas.is_readable(x)

    def _product(self, a: Array, b: Array, out: Array | None = None, **how: Any) -> Array:
        # Of the narrow formats, in which arithmetic is fused, tf32 alone is carried in float32.
        return _cublas.gemm(a, b, out, tf32=self.fused, **how)

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Return ``a @ b``."""
        return self._product(a, b, out)

    def gram(self, x: Array, out: Array | None = None) -> Array:
        """Return ``x^H x``; nothing is transposed or conjugated in memory."""
        return self._product(x, x, out, adjoint_a=True)

    def gemm(
        self,
        a: Array,
        b: Array,
        c: Array,
        alpha: Array | float = 1.0,
        beta: Array | float = 0.0,
        out: Array | None = None,
    ) -> Array:
        """Return ``alpha a @ b + beta c``, rounded once; alpha and beta may be on the device."""
        if not _cublas.is_number(beta, 0.0):
            out = self.xp.empty(c.shape, dtype=c.dtype) if out is None else out
            out[...] = c
        return self._product(a, b, out, alpha=alpha, beta=beta)

    def fold(self, z: Array, alpha: float, beta: float) -> tuple[Array, float, float]:
        """Absorb beta alone, ``alpha (Z + beta / alpha I)``: a product scales at no cost."""
        if self.fused or not abs(beta) <= FOLDED * abs(alpha):
            return super().fold(z, alpha, beta)
        return self.add_diagonal(z, beta / alpha), alpha, 0.0

    def _kernel(self, inputs: str, output: str, operation: str, name: str) -> Any:
        return _elementwise(self.xp, inputs, output, operation, name)

    def combine(self, coefficients: Sequence[float], matrices: Sequence[Array]) -> Array:
        """Return ``sum c_i M_i``, a new array, in one pass; rounded once if c are numbers."""
        if not all(isinstance(c, float | int) for c in coefficients):
            return super().combine(coefficients, matrices)
        source = _combination(len(matrices), dtype_name(matrices[0]))
        pairs = zip(matrices, map(float, coefficients), strict=True)
        return self._kernel(*source)(*itertools.chain.from_iterable(pairs))

    def divide(self, x: Array, s: Array | float, *, owned: bool = False) -> Array:
        """Return ``x / s`` in the dtype of `x`, and in its storage if it is owned."""
        return self.xp.divide(x, s, out=x if owned else self.xp.empty_like(x))

    def scale(self, x: Array, s: Array | float, *, owned: bool = False) -> Array:
        """Return ``x * s`` in the dtype of `x`, a new array."""
        return self.xp.multiply(x, s, out=self.xp.empty_like(x))

    def hermitian_part(self, z: Array, *, owned: bool = False) -> Array:
        """Return ``(z + z^H) / 2``, Hermitian bit for bit and free of overflow."""
        return self.combine((0.5, 0.5), (z, self.adjoint(z)))

    def binary_scale(self, peak: Array) -> Array | float:
        """Power of two near the largest entry of each matrix, as everywhere, in one kernel."""
        limit = round(-math.log2(FORMATS[self.format_name(peak)].smallest_normal))
        return self._kernel(
            "T peak, int32 limit",
            "T y",
            "y = peak > 0 && isfinite(peak) ? ldexp(T(1), max(-limit, min(limit, ilogb(peak))))"
            " : T(1)",
            "polarlib_binary_scale",
        )(peak, limit)

    def divisor(self, s: Array | float) -> Array | float:
        """Norms to divide by: 1 for a zero matrix (or column), NaN for one that is not finite."""
        if isinstance(s, float):
            return super().divisor(s)
        operation = "y = s == 0 ? T(1) : s + (s - s)"  # s - s is NaN for infinity
        return self._kernel("T s", "T y", operation, "polarlib_divisor")(s)

    def frobenius(self, x: Array) -> Array:
        """Frobenius norm; squares are formed in one pass, in at least single precision."""
        wide = "float64" if self.format_name(x) == "float64" else "float32"
        squares = self._kernel("T x", f"{wide} y", _square(dtype_name(x)), "polarlib_square")(x)
        return self.xp.sqrt(self.xp.sum(squares, axis=(-2, -1), keepdims=True))

    def cholesky(self, z: Array) -> Array:
        """Lower Cholesky factor; NaN where it is not positive definite: cuSOLVER's info is read."""
        return _cusolver.cholesky(z)

    def inverse(self, x: Array) -> Array:
        """Inverse by LU; CuPy's own of a stack leaves anything where a matrix is singular."""
        eye = self.eye(x.shape[-1], x)
        return self.xp.linalg.solve(x, self.xp.broadcast_to(eye, x.shape))

    def solve_lower(self, l: Array, b: Array, *, adjoint: bool = False) -> Array:
        """Return ``l^-1 b`` or ``l^-H b``, one matrix at a time: cupyx does not batch."""
        solve = importlib.import_module("cupyx.scipy.linalg").solve_triangular
        trans = "C" if adjoint else "N"
        if l.ndim == 2:
            return solve(l, b, lower=True, trans=trans)
        out = self.xp.empty_like(b)
        for index in np.ndindex(*l.shape[:-2]):
            out[index] = solve(l[index], b[index], lower=True, trans=trans)
        return out


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

        return importlib.import_module("dask.array").apply_gufunc(
            each,
            signature,
            *stacks,
            meta=meta if len(meta) > 1 else meta[0],
            output_sizes=None if k is None else {"k": k},
            allow_rechunk=True,
        )


def _combination(count: int, dtype: str) -> tuple[str, str, str, str]:
    """Source of a kernel ``y = c0 * m0 + c1 * m1 + ...``, in single precision for 16 bits."""
    scalar = "float64" if _FORMAT_OF_DTYPE.get(dtype, dtype) == "float64" else "float32"
    inputs = ", ".join(f"T m{i}, {scalar} c{i}" for i in range(count))
    entry = "float(m{})" if dtype in ("bfloat16", "float16") else "m{}"
    terms = " + ".join(f"c{i} * {entry.format(i)}" for i in range(count))
    return inputs, "T y", f"y = {terms}", f"polarlib_combine_{count}"


def _square(dtype: str) -> str:
    """Operation of a kernel that squares absolute values, in single precision for 16 bits."""
    if dtype.startswith("complex"):
        return "y = x.real() * x.real() + x.imag() * x.imag()"
    return "y = float(x) * float(x)" if dtype in ("bfloat16", "float16") else "y = x * x"


@functools.lru_cache(maxsize=256)
def _elementwise(xp: Any, inputs: str, output: str, operation: str, name: str) -> Any:
    """CuPy's kernel of a source, made once."""
    return xp.ElementwiseKernel(inputs, output, operation, name)


def _worth_blas(size: int, *arrays: Array) -> bool:
    """Whether matrices are for SciPy's kernels: of one of their types, and large enough."""
    return size >= BLAS_FROM and _blas.has_kernels(*arrays)


def _ranges(length: int, size: int) -> list[slice]:
    """Slices of at most `size` that make up a length."""
    return [slice(i, i + size) for i in range(0, length, size)]


def _is_contiguous(x: Array) -> bool:
    return bool(x.flags.c_contiguous or x.flags.f_contiguous)


def physical_memory() -> float:
    """Bytes of memory of this machine, infinity where the system does not tell."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def is_out_of_memory(error: Exception) -> bool:
    """Whether a library raised an error since it could not allocate."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return (
        not names.isdisjoint({"MemoryError", "OutOfMemoryError"})
        or "RESOURCE_EXHAUSTED" in str(error)  # JAX
        or "not enough memory" in str(error)  # torch on a CPU
    )


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


def _numpy_dtype(name: str) -> np.dtype:
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


def as_matrix(a: Any, name: str = "a", *, sharded: bool = False) -> tuple[Array, Ops]:
    """Return a stack of matrices of a floating dtype, and the arithmetic of its library.

    Parameters
    ----------
    a : array or array-like
        Arrays of a supported library are taken as they are. Subclasses of NumPy's arrays, and all
        that `numpy.asarray` takes, become plain NumPy arrays: matrices, memory maps, tables, nested
        lists and buffers of numbers; units are dropped. Integers and booleans become float64,
        float32 where there is no double.
    name : str, optional
        What the caller calls it, for messages.
    sharded : bool, optional
        Whether torch's DTensors and JAX arrays with explicit axes are taken.

    Raises
    ------
    TypeError
        If `a` is not numeric, or of a dtype that no format stands for; if it is sparse or masked.
    ValueError
        If it has fewer than two dimensions.
    """
    a = plain_array(a, name)
    if not is_array(a):
        given = a
        try:
            a = np.asarray(short(name, a))
        except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, foreign devices
            raise ValueError(f"{name} is not a rectangular array of numbers: {error}") from None
        if a.dtype.kind not in "biufc":
            raise TypeError(
                f"{name} must be an array of numbers, got dtype {a.dtype.name}: {shown(given)}"
            )
    if a.ndim < 2:
        raise ValueError(
            f"{name} must be a matrix or a stack of matrices, got shape {tuple(a.shape)}; "
            f"reshape a vector with {name}[:, None]"
        )
    ops = ops_of(a)
    ops.check_sharding(a, name, taken=sharded)
    kind = dtype_name(a)
    if kind == "bool" or kind.startswith(("int", "uint")):
        return ops.xp.astype(a, ops.dtype("float64" if ops.has_double(a) else "float32")), ops
    if not ops.format_name(a):
        raise TypeError(
            f"{name} has dtype {kind}, which polarlib does not compute with; convert it to "
            "float64, float32, complex128 or complex64"
        )
    return a, ops


def plain_array(a: Any, name: str) -> Any:
    """Return an instance of a subclass of NumPy's arrays as one of them, all else as it is.

    Raises
    ------
    TypeError
        If `a` is sparse, masked, quantised or nested.
    """
    for block in (a, getattr(a, "_meta", a)):  # what Dask's blocks are
        _refuse_sparse_or_masked(block, a, name)
    if array_api_compat.is_torch_array(a):
        _refuse_layout(a, name)
    if isinstance(a, np.ndarray) and type(a) is not np.ndarray:
        return a.view(np.ndarray)  # np.matrix: its operators mean other things
    return a


def _refuse_sparse_or_masked(block: Any, a: Any, name: str) -> None:
    """Raise for matrices of which not every entry is stored and meant, and name what makes them so.

    Sparse matrices would silently be made dense, whatever that takes; the numbers that a mask hides
    have no meaning.
    """
    dense = next((method for method in ("toarray", "todense") if hasattr(block, method)), "")
    masked = isinstance(block, np.ma.MaskedArray)
    if not dense and not masked:
        return
    kind = f"{'sparse' if dense else 'a masked array'} ({type(block).__name__})"
    if block is not a:
        remedy = f"lambda block: block.{dense}()" if dense else "numpy.ma.filled, fill_value=..."
        raise TypeError(f"{name} has blocks that are {kind}; pass {name}.map_blocks({remedy})")
    filled = f"{name}.filled(...), or {name}.data if no entry is masked"
    remedy = f"{name}.{dense}()" if dense else filled
    raise TypeError(f"{name} is {kind}; pass {remedy}")


def refuse_hidden(
    a: Array,
    ops: Ops,
    name: str,
    remedy: str = "use orthogonalize(), which does not look",
    *,
    fixed_work: bool = True,
) -> None:
    """Raise where a function cannot look at entries, unless it has a form that needs no look."""
    if 0 not in a.shape and ops.hidden(a) and not (fixed_work and ops.fixed_work):
        raise TypeError(f"{name} looks at its matrix, which {ops.hiding}, or {remedy}")


def check_same_place(x: Array, name: str, other: Array, other_name: str) -> None:
    """Raise TypeError for arrays of two libraries, ValueError for arrays on two devices."""
    both, ops, others = f"{name} and {other_name}", ops_of(x), ops_of(other)
    if ops.xp is not others.xp:
        first, second = (
            o.xp.__name__.removeprefix("array_api_compat.").partition(".")[0] for o in (ops, others)
        )
        raise TypeError(
            f"{both} must be arrays of one library, got {first} and {second}; convert one of them"
        )
    if any(o.hidden(t) or o.spread(t) for o, t in ((ops, x), (others, other))):
        return
    first, second = (
        getattr(device, "device_set", device)  # of JAX, where several share an array
        for device in map(array_api_compat.device, (x, other))
    )
    if first != second:
        raise ValueError(
            f"{both} must be on one device, got {first} and {second}; move one of them"
        )


def _refuse_layout(x: Array, name: str) -> None:
    """Raise for tensors that are no dense arrays of numbers, and say how to make one of them."""
    if x.is_quantized:
        raise TypeError(f"{name} is a quantised tensor ({x.dtype}); pass {name}.dequantize()")
    if x.is_nested:
        raise TypeError(
            f"{name} is a nested tensor; pass its matrices, {name}.unbind(), one by one (a list of "
            "them to orthogonalize_all)"
        )
    layout = str(x.layout).rpartition(".")[2]
    if layout != "strided":
        kind = "sparse" if layout.startswith("sparse") else "not a dense tensor"
        raise TypeError(f"{name} is {kind} (layout {layout}); pass {name}.to_dense()")


def finite_peak(
    x: Array,
    ops: Ops,
    name: str,
    *,
    look: bool = True,
    locate: bool = True,
    remedy: str = "remove them first",
) -> Array:
    """Return the largest absolute entry of each matrix, all of which must be finite.

    Parameters
    ----------
    x : array
        Stack of matrices that are not empty.
    ops : Ops
        Its arithmetic.
    name : str
        What the caller calls it, for the message.
    look : bool, optional
        Whether to read the entries at all, which stalls a device.
    locate : bool, optional
        Whether the message names an index: only where `x` has the shape that the caller gave.
    remedy : str, optional
        End of the message.

    Returns
    -------
    array, shape (..., 1, 1)
        As `Ops.max_abs` gives it: NaN or infinity for a matrix that is not finite, unless `look`.

    Raises
    ------
    ValueError
        If an entry is NaN or infinite, and `look`.
    """
    peak = ops.max_abs(x)
    if look and not math.isfinite(ops.read(peak)):
        locate = locate and not ops.spread(x)  # which would gather all of it
        trouble = not_finite(ops.to_host(x)) if locate else "contains NaN or infinity"
        raise ValueError(f"{name} {trouble}; {remedy}")
    return peak


def not_finite(a: np.ndarray) -> str:
    """Say how many entries of an array are not finite and where the first is; "" if none.

    Examples
    --------
    >>> not_finite(np.array([[1.0, np.nan]]))
    'contains NaN or infinity in 1 of 2 entries, first at index (0, 1)'
    """
    bad = ~np.isfinite(a)
    if not bad.any():
        return ""
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"contains NaN or infinity in {bad.sum()} of {a.size} entries, first at index {first}"


def is_native(ops: Ops, precision: Format, *, is_complex: bool) -> bool:
    """Whether a library multiplies in a format itself; complex 16-bit formats exist nowhere."""
    wide = precision.name in ("float64", "float32")
    return ops.multiplies_in(precision.name) and (wide or not is_complex)
