"""Products of CuPy arrays by cuBLAS's extended interface, with scaling and addend, rounded once.

``cupy.matmul`` has no addend, copies transposed operands, and refuses stacks of bfloat16. cuBLAS
computes ``C <- alpha op(A) op(B) + beta C`` in one call, for stacks too, and 16-bit products in
single precision. CuPy binds it in a private module, which only this module uses. If the private
module or one of its names is missing, ``cupy.matmul`` is used. A product with an addend in other
storage is computed by cublasLt (`polarlib.arrays.cublaslt`), or the addend is copied.
"""

from __future__ import annotations

import ctypes
import functools
import operator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from polarlib.arrays import cublaslt
from polarlib.arrays.cupy_device import LibraryNotFound, required
from polarlib.arrays.gemm_layout import Layout, described, matrix_strides
from polarlib.arrays.library import dtype_name, import_library, is_known

Array = Any

# By dtype: the names of CUDA's type and of cuBLAS's compute type, and the dtype of alpha and beta.
TYPES = {
    "float32": ("CUDA_R_32F", "CUBLAS_COMPUTE_32F", "float32"),
    "float64": ("CUDA_R_64F", "CUBLAS_COMPUTE_64F", "float64"),
    "complex64": ("CUDA_C_32F", "CUBLAS_COMPUTE_32F", "complex64"),
    "complex128": ("CUDA_C_64F", "CUBLAS_COMPUTE_64F", "complex128"),
    "float16": ("CUDA_R_16F", "CUBLAS_COMPUTE_32F", "float32"),
    "bfloat16": ("CUDA_R_16BF", "CUBLAS_COMPUTE_32F", "float32"),
}
# C's type of alpha and beta, and how many of it are one.
PARTS = {
    "float32": (ctypes.c_float, 1),
    "float64": (ctypes.c_double, 1),
    "complex64": (ctypes.c_float, 2),
    "complex128": (ctypes.c_double, 2),
}
TF32 = "CUBLAS_COMPUTE_32F_FAST_TF32"
# Names of the private module that are required.
NEEDED = (
    "gemmEx",
    "gemmStridedBatchedEx",
    "getMathMode",
    "getPointerMode",
    "setMathMode",
    "setPointerMode",
    "CUBLAS_COMPUTE_32F",
    "CUBLAS_COMPUTE_64F",
    "CUBLAS_DEFAULT_MATH",
    "CUBLAS_GEMM_DEFAULT",
    "CUBLAS_OP_C",
    "CUBLAS_OP_N",
    "CUBLAS_OP_T",
    "CUBLAS_POINTER_MODE_DEVICE",
    "CUBLAS_POINTER_MODE_HOST",
)
_all_needed = operator.attrgetter(*NEEDED)
# Dimensions and leading dimensions are C's int.
LARGEST_INT = 2**31 - 1
# Largest number of matrices of a stack per call: below 65535, the limit of the third axis of a CUDA
# grid, at which some versions of cuBLAS failed, and a multiple that keeps every alignment.
STACK = 63 << 10
# Compute capability from which tf32 is supported; below, cuBLAS would compute in float32.
TF32_FROM = 80


def _binding() -> ModuleType | None:
    """CuPy's private binding, None where it is missing, incomplete, or another vendor's."""
    try:
        binding: ModuleType = required("cuBLAS", _load)
        _all_needed(binding)
    except LibraryNotFound:  # cupy.matmul would fail too
        raise
    except (ImportError, AttributeError):
        return None
    runtime = import_library("cupy").cuda.runtime
    return None if getattr(runtime, "is_hip", False) else binding


def _load() -> Any:
    # From its package, which first loads the library that pip has installed.
    from cupy_backends.cuda.libs import cublas

    return cublas


def has_tf32(number: int | None = None) -> bool:
    """Return whether products in tf32 are supported: the compute type, and the current device."""
    if not hasattr(_binding(), TF32):
        return False
    device = import_library("cupy").cuda.Device(number)
    return int(device.compute_capability) >= TF32_FROM


def is_readable(x: Array) -> bool:
    """Return whether cuBLAS can read and write the storage of matrices, by rows or by columns."""
    return _strides(x) is not None


def gemm(
    a: Array,
    b: Array,
    out: Array | None = None,
    *,
    alpha: Array | complex = 1.0,
    beta: Array | complex = 0.0,
    addend: Array | None = None,
    adjoint_a: bool = False,
    adjoint_b: bool = False,
    tf32: bool = False,
) -> Array:
    """Compute ``out <- alpha op(a) @ op(b) + beta addend`` without synchronisation.

    Parameters
    ----------
    a, b : cupy.ndarray, shape (..., m, k) and (..., k, n)
        Of one dtype; for two dtypes, and for dtypes that cuBLAS lacks, ``cupy.matmul`` is used.
        Views with any strides; operands that cuBLAS cannot read are copied. Stacks are broadcast
        without copies.
    out : cupy.ndarray, shape (..., m, n), optional
        A new array by default. It must not overlap a or b.
    alpha, beta : float, complex or cupy.ndarray
        Numbers, or arrays of one entry, which stay on the device. If `beta` is the number 0, the
        addend is not used, even if it contains NaN.
    addend : cupy.ndarray, shape (..., m, n), optional
        `out` by default; any other addend is not modified. It may share storage with a and b, and
        with `out` only if it is `out`.
    adjoint_a, adjoint_b : bool, optional
        Whether op is the conjugate transpose; `a` or `b` then has the transposed shape.
    tf32 : bool, optional
        Whether float32 operands are rounded to tf32 as they are read.

    Returns
    -------
    cupy.ndarray
        `out`.

    Raises
    ------
    ValueError
        If shapes do not fit, if `beta` has no `out` to scale, or if `alpha` or `beta` is an array
        of more than one entry.
    TypeError
        If `out` has another dtype, or a scalar of real matrices is complex.
    """
    cupy = import_library("cupy")
    shape, inner = _result(a.shape, b.shape, adjoint_a, adjoint_b)
    dtype = a.dtype if a.dtype == b.dtype else np.promote_types(a.dtype, b.dtype)
    if type(alpha) is not float or type(beta) is not float:
        _check_scalars(dtype, alpha=alpha, beta=beta)
    if addend is out or is_known(beta, 0.0):
        addend = None
    if out is None:
        if addend is None and not is_known(beta, 0.0):
            raise ValueError(f"out must be an array for beta={beta}, got None; pass out or addend")
        out = cupy.empty(shape, dtype=dtype)
    elif out.shape != shape:
        raise ValueError(f"out must have the shape {shape}, got {out.shape}")
    elif out.dtype != dtype:
        raise TypeError(f"out must have the dtype {dtype}, got {out.dtype}")
    if out.size == 0:
        return out
    scalars, adjoints = (alpha, beta), (adjoint_a, adjoint_b)
    binding = _binding()
    known = binding is not None and a.dtype == b.dtype and dtype_name(out) in TYPES
    # For an inner dimension of 0 there is no product, and no leading dimension to pass.
    if not known or inner == 0 or max(*shape[-2:], inner) > LARGEST_INT:
        return _by_matmul(a, b, _filled(out, addend), scalars, adjoints)
    return _by_cublas(cupy, binding, a, b, out, addend, scalars, adjoints, tf32)


@functools.lru_cache(maxsize=1024)
def _result(
    a: tuple[int, ...], b: tuple[int, ...], adjoint_a: bool, adjoint_b: bool
) -> tuple[tuple[int, ...], int]:
    """Return the shape of a product, and its inner dimension."""
    m, k = a[:-3:-1] if adjoint_a else a[-2:]
    inner, n = b[:-3:-1] if adjoint_b else b[-2:]
    if k != inner:
        raise ValueError(f"a product of {m} x {k} by {inner} x {n} matrices does not exist")
    return (*np.broadcast_shapes(a[:-2], b[:-2]), m, n), k


def _check_scalars(dtype: np.dtype, **scalars: Array | complex) -> None:
    for name, scalar in scalars.items():
        if getattr(scalar, "size", 1) != 1:
            shape = getattr(scalar, "shape", ())
            raise ValueError(f"{name} must be one number, got an array of shape {shape}")
        given = getattr(scalar, "dtype", None)
        is_complex = isinstance(scalar, complex) if given is None else given.kind == "c"
        if is_complex and dtype.kind != "c":
            raise TypeError(f"{name} must be real for matrices of {dtype.name}, got a complex one")


def _broadcast(x: Array, stack: tuple[int, ...]) -> Array:
    if x.shape[:-2] == stack:
        return x
    return import_library("cupy").broadcast_to(x, (*stack, *x.shape[-2:]))


class _Types(NamedTuple):
    """Codes of types and operations: constants of CUDA and of the binding."""

    kind: int
    compute: int
    of_scalars: int
    operations: tuple[int, int, int]


@functools.lru_cache(maxsize=64)
def _types(cupy: Any, binding: Any, dtype: str, tf32: bool) -> _Types:
    kind, compute, of_scalars = TYPES[dtype]
    compute = TF32 if tf32 and kind == "CUDA_R_32F" else compute
    runtime = cupy.cuda.runtime
    return _Types(
        getattr(runtime, kind),
        getattr(binding, compute),
        getattr(runtime, TYPES[of_scalars][0]),
        (binding.CUBLAS_OP_N, binding.CUBLAS_OP_T, binding.CUBLAS_OP_C),
    )


class _Call(NamedTuple):
    """Arguments of a cuBLAS call: the handle, memory layouts and addresses of operands."""

    handle: int
    layout: Layout
    types: _Types
    places: list[int]
    mode: int
    scalars: list[int]


def _filled(out: Array, addend: Array | None) -> Array:
    """Return `out`, filled with the addend if there is one."""
    if addend is not None:
        out[...] = addend
    return out


def _by_cublas(
    cupy: Any,
    binding: Any,
    a: Array,
    b: Array,
    out: Array,
    addend: Array | None,
    scalars: tuple[Array | complex, Array | complex],
    adjoints: tuple[bool, bool],
    tf32: bool,
) -> Array:
    if addend is not None and (addend.shape != out.shape or addend.dtype != out.dtype):
        _filled(out, addend)
        addend = None
    views = [(x.shape, x.strides) for x in (a, b, out)]
    beside = None if addend is None else (addend.shape, addend.strides)
    is_complex = out.dtype.kind == "c"
    layout = described(*views, beside, out.itemsize, is_complex, adjoints)
    if not isinstance(layout, Layout):
        if layout[0] == 2:
            _filled(out, addend)
            addend = None
        a, b, c, adjoints = _copied(cupy, a, b, out, layout, adjoints)
        _by_cublas(cupy, binding, a, b, c, addend, scalars, adjoints, tf32)
        if c is not out:
            out[...] = c
        return out
    if max(layout.leading) > LARGEST_INT:
        return _by_matmul(a, b, _filled(out, addend), scalars, adjoints)
    name = dtype_name(out)
    types = _types(cupy, binding, name, tf32)
    # cuBLAS reads scalars of the host at once; those of the device live in the order of the stream.
    mode, held, *at_scalars = _scalars(cupy, binding, *scalars, TYPES[name][2])
    # The handle belongs to this thread, and its settings are restored.
    handle = cupy.cuda.device.get_cublas_handle()
    places = [x.data.ptr for x in ((b, a, out) if layout.turned else (a, b, out))]
    call = _Call(handle, layout, types, places, mode, at_scalars)
    if addend is None or not _beside(cupy, call, addend):
        _filled(out, addend)
        _in_place(binding, call, out.itemsize)
    del held
    return out


def _copied(
    cupy: Any, a: Array, b: Array, out: Array, which: tuple[int, bool], adjoints: tuple[bool, bool]
) -> tuple[Array, Array, Array, tuple[bool, bool]]:
    """Return the operands with one of them copied to another memory layout."""
    i, conjugate = which
    if i == 2:
        return a, b, out.copy(), adjoints  # a copy is contiguous
    operands, turned = [a, b], list(adjoints)
    if conjugate:
        operands[i], turned[i] = cupy.conj(operands[i]).swapaxes(-1, -2), False
    else:
        operands[i] = cupy.ascontiguousarray(_broadcast(operands[i], out.shape[:-2]))
    return operands[0], operands[1], out, (turned[0], turned[1])


def _beside(cupy: Any, call: _Call, addend: Array) -> bool:
    """Add an addend in other storage by cublasLt; return whether that was possible."""
    layout, types = call.layout, call.types
    if layout.addend is None or layout.addend[0] > LARGEST_INT or layout.matrices > STACK:
        return False
    (first, second, c), (ld_first, ld_second, ldc) = call.places, layout.leading
    addresses = first, second, addend.data.ptr, c
    product = cublaslt.Product(
        (types.operations[layout.operations[0]], types.operations[layout.operations[1]]),
        layout.sizes,
        types[:3],
        (ld_first, ld_second, layout.addend[0], ldc),
        (*layout.steps[:2], layout.addend[1], layout.steps[2]),
        layout.matrices,
        call.mode,
        tuple(map(cublaslt.aligned, addresses)),
    )
    alpha, beta = call.scalars
    return cublaslt.multiply(cupy, call.handle, product, (alpha, beta), addresses)


def _in_place(binding: Any, call: _Call, itemsize: int) -> None:
    """Add the product to C by gemmEx."""
    handle, layout, types, places, mode, (at_alpha, at_beta) = call
    kind, (ld_first, ld_second, ldc) = types.kind, layout.leading
    step_first, step_second, step_c = layout.steps
    before = binding.getPointerMode(handle)
    # Other math modes multiply single precision in tf32 for every compute type.
    math_mode = binding.getMathMode(handle)
    binding.setMathMode(handle, binding.CUBLAS_DEFAULT_MATH)
    binding.setPointerMode(handle, mode)
    operations = (types.operations[i] for i in layout.operations)
    head = (handle, *operations, *layout.sizes, at_alpha)
    last = (types.compute, binding.CUBLAS_GEMM_DEFAULT)
    try:
        if layout.matrices == 1:
            first, second, c = places
            binding.gemmEx(
                *(*head, first, kind, ld_first, second, kind, ld_second),
                *(at_beta, c, kind, ldc, *last),
            )
            return
        for start in range(0, layout.matrices, STACK):
            first, second, c = (
                at + start * step * itemsize for at, step in zip(places, layout.steps, strict=True)
            )
            binding.gemmStridedBatchedEx(
                *(*head, first, kind, ld_first, step_first),
                *(second, kind, ld_second, step_second, at_beta, c, kind, ldc, step_c),
                *(min(STACK, layout.matrices - start), *last),
            )
    finally:
        binding.setPointerMode(handle, before)
        binding.setMathMode(handle, math_mode)


def is_transposed(x: Array) -> bool:
    """Return whether matrices are stored by columns."""
    layout = _strides(x)
    return layout is not None and layout[0]


def empty(shape: tuple[int, ...], like: Array) -> Array:
    """Return new matrices with the dtype and memory order of `like`."""
    cupy = import_library("cupy")
    if not is_transposed(like):
        return cupy.empty(shape, dtype=like.dtype)
    *stack, m, n = shape
    return cupy.empty((*stack, n, m), dtype=like.dtype).swapaxes(-1, -2)


def _strides(x: Array) -> tuple[bool, int, int] | None:
    """Return the layout of a stack: whether transposed, leading dimension, step between matrices.

    The numbers are in entries. None if cuBLAS cannot read the storage.
    """
    return matrix_strides(x.shape, x.strides, x.itemsize)


def _scalars(
    cupy: Any, binding: Any, alpha: Array | complex, beta: Array | complex, dtype: str
) -> tuple[int, Any, int, int]:
    """Return pointer mode, objects to keep alive, and the addresses of alpha and beta."""
    if not isinstance(alpha, cupy.ndarray) and not isinstance(beta, cupy.ndarray):
        both = _on_host(alpha, beta, dtype)
        at = ctypes.addressof(both)
        return binding.CUBLAS_POINTER_MODE_HOST, both, at, at + ctypes.sizeof(both) // 2
    # A fill has its number as an argument of the kernel, without a transfer.
    held = tuple(
        s.astype(dtype, copy=False)
        if isinstance(s, cupy.ndarray)
        else cupy.full((), s, dtype=dtype)
        for s in (alpha, beta)
    )
    return binding.CUBLAS_POINTER_MODE_DEVICE, held, held[0].data.ptr, held[1].data.ptr


@functools.lru_cache(maxsize=256)
def _on_host(alpha: complex, beta: complex, dtype: str) -> Any:
    """Return alpha and beta in one array; too large numbers become infinity, as on a device."""
    part, count = PARTS[dtype]
    numbers = [x for s in (alpha, beta) for x in (s.real, s.imag)[:count]]
    return (part * len(numbers))(*numbers)


def _by_matmul(
    a: Array,
    b: Array,
    out: Array,
    scalars: tuple[Array | complex, Array | complex],
    adjoints: tuple[bool, bool],
) -> Array:
    """Compute the product by ``cupy.matmul``; in 16 bits the product and the sum are rounded.

    Single precision is multiplied in double, which ``CUPY_TF32`` does not affect.
    """
    cupy = import_library("cupy")
    alpha, beta = scalars
    wide = {"float32": "float64", "complex64": "complex128"}.get(out.dtype.name)
    if wide is not None:
        a, b = a.astype(wide), b.astype(wide)
    a, b = (
        cupy.conj(x).swapaxes(-1, -2) if adjoint else x
        for x, adjoint in zip((a, b), adjoints, strict=True)
    )
    if out.dtype.name == "bfloat16" and out.ndim > 2:  # CuPy refuses stacks of bfloat16
        a, b = _broadcast(a, out.shape[:-2]), _broadcast(b, out.shape[:-2])
        product = cupy.empty(out.shape, dtype=out.dtype)
        for index in np.ndindex(*out.shape[:-2]):
            product[index] = cupy.matmul(a[index], b[index])
    else:
        product = cupy.matmul(a, b)
    if is_known(alpha, 1.0) and is_known(beta, 0.0):
        out[...] = product
        return out
    total = _wide(product) * alpha
    out[...] = total if is_known(beta, 0.0) else total + _wide(out) * beta
    return out


def _wide(x: Array) -> Array:
    return x.astype("float32") if x.itemsize == 2 else x
