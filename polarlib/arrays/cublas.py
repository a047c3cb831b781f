"""Products of CuPy arrays by cuBLAS's extended interface: scaled, added to, rounded once.

``cupy.matmul`` has no addend, copies operands that are transposed, and refuses stacks
of bfloat16. cuBLAS does ``C <- alpha op(A) op(B) + beta C`` in one call, for a stack as for one
matrix, with single precision inside for 16 bits. CuPy binds it in a private module: it is used
here and nowhere else, and where it or a name of it is missing, ``cupy.matmul`` takes over. An
addend in other storage goes to cublasLt (`polarlib.arrays.cublaslt`), or is copied.

cuBLAS knows column-major matrices. A row-major C is their C^T = op(B)^T op(A)^T, so operands are
handed over in the other order; strides show whether a matrix is stored transposed.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import operator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from polarlib.arrays import cublaslt
from polarlib.arrays.cupy_device import LibraryNotFound, required
from polarlib.arrays.library import import_library

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
# Names of the private module without which there is no product.
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
# Matrices of a stack in one call: below 65535, the places on the third axis of a CUDA grid, where
# some versions of cuBLAS failed, and round enough to keep every alignment.
STACK = 63 << 10
# Compute capability from which multipliers for tf32 exist; below, cuBLAS would go on in float32.
TF32_FROM = 80


def _binding() -> ModuleType | None:
    """CuPy's private binding, None where it is missing, incomplete, or another vendor's."""
    try:
        binding: ModuleType = required("cuBLAS", _load)
        _all_needed(binding)
    except LibraryNotFound:  # nor would cupy.matmul be there
        raise
    except (ImportError, AttributeError):
        return None
    runtime = import_library("cupy").cuda.runtime
    return None if getattr(runtime, "is_hip", False) else binding


def _load() -> Any:
    # From its package, which first loads the library where pip has put it.
    from cupy_backends.cuda.libs import cublas

    return cublas


def has_tf32(number: int | None = None) -> bool:
    """Whether products in tf32 are there: the compute type, and a device (the current one)."""
    if not hasattr(_binding(), TF32):
        return False
    device = import_library("cupy").cuda.Device(number)
    return int(device.compute_capability) >= TF32_FROM


def is_readable(x: Array) -> bool:
    """Whether matrices lie in memory as cuBLAS reads and writes them, by rows or by columns."""
    return _strides(x) is not None


def is_number(x: Array | complex, value: float) -> bool:
    """Whether a scalar is that number, as far as the host knows: one on the device is not."""
    return isinstance(x, int | float | complex | np.number) and bool(x == value)


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
    """Compute ``out <- alpha op(a) @ op(b) + beta addend`` without waiting for the device.

    Parameters
    ----------
    a, b : cupy.ndarray, shape (..., m, k) and (..., k, n)
        Of one dtype; otherwise, and for dtypes that cuBLAS lacks, ``cupy.matmul`` takes over. Views
        with any strides: what cuBLAS cannot read is copied. Stacks are broadcast, not copied.
    out : cupy.ndarray, shape (..., m, n), optional
        A new array if absent. It may overlap neither a nor b.
    alpha, beta : float, complex or cupy.ndarray
        Numbers, or arrays of one entry that stay on the device. With a `beta` of the host's 0 what
        is in the addend does not matter, not even NaN.
    addend : cupy.ndarray, shape (..., m, n), optional
        Not changed, but for the default, which is `out`. It may share storage with a and b, and
        with `out` only if it is `out`.
    adjoint_a, adjoint_b : bool, optional
        op is the conjugate transpose; `a` or `b` then has the transposed shape.
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
    m, k = _shape(a, adjoint_a)
    inner, n = _shape(b, adjoint_b)
    if k != inner:
        raise ValueError(f"a product of {m} x {k} by {inner} x {n} matrices does not exist")
    stack = a.shape[:-2]
    if stack != b.shape[:-2]:
        stack = np.broadcast_shapes(stack, b.shape[:-2])
    dtype = a.dtype if a.dtype == b.dtype else np.promote_types(a.dtype, b.dtype)
    for name, scalar in (("alpha", alpha), ("beta", beta)):
        if getattr(scalar, "size", 1) != 1:
            shape = getattr(scalar, "shape", ())
            raise ValueError(f"{name} must be one number, got an array of shape {shape}")
        given = getattr(scalar, "dtype", None)
        is_complex = isinstance(scalar, complex) if given is None else given.kind == "c"
        if is_complex and dtype.kind != "c":
            raise TypeError(f"{name} must be real for matrices of {dtype.name}, it is complex")
    if addend is out or is_number(beta, 0.0):
        addend = None
    if out is None:
        if addend is None and not is_number(beta, 0.0):
            raise ValueError(f"beta={beta} scales `out`, and there is none")
        out = cupy.empty((*stack, m, n), dtype=dtype)
    elif out.shape != (*stack, m, n):
        raise ValueError(f"out must have the shape {(*stack, m, n)}, got {out.shape}")
    elif out.dtype != dtype:
        raise TypeError(f"out must have the dtype {dtype}, got {out.dtype}")
    if out.size == 0:
        return out
    scalars, adjoints = (alpha, beta), (adjoint_a, adjoint_b)
    binding = _binding()
    known = binding is not None and a.dtype == b.dtype and _types(dtype) is not None
    # Without inner dimension there is nothing to multiply, and no leading dimension to hand over.
    if not known or k == 0 or max(m, n, k) > LARGEST_INT:
        return _by_matmul(a, b, _filled(out, addend), scalars, adjoints)
    operands = _broadcast(a, stack), _broadcast(b, stack), out, addend
    return _by_cublas(binding, *operands, scalars, adjoints, tf32)


def _shape(x: Array, adjoint: bool) -> tuple[int, int]:
    rows, columns = x.shape[-2:]
    return (columns, rows) if adjoint else (rows, columns)


def _broadcast(x: Array, stack: tuple[int, ...]) -> Array:
    if x.shape[:-2] == stack:
        return x
    return import_library("cupy").broadcast_to(x, (*stack, *x.shape[-2:]))


@functools.lru_cache(maxsize=64)
def _types(dtype: np.dtype) -> tuple[str, str, str] | None:
    return TYPES.get(dtype.name)


def _filled(out: Array, addend: Array | None) -> Array:
    """Return `out`, with the addend in it if there is one."""
    if addend is not None:
        out[...] = addend
    return out


class _Call(NamedTuple):
    """A product as cuBLAS takes it: column-major, so that the second operand comes first.

    Of B, A and C in this order: arrays, leading dimensions, and steps between matrices of a stack.
    """

    operations: tuple[int, int]
    sizes: tuple[int, int, int]
    arrays: tuple[Array, Array, Array]
    leading: tuple[int, int, int]
    steps: tuple[int, int, int]
    matrices: int
    # CUDA's type of entries, cuBLAS's compute type, CUDA's type of alpha and beta.
    types: tuple[int, int, int]
    # Pointer mode and addresses of alpha and beta.
    scalars: tuple[int, int, int]


def _by_cublas(
    binding: Any,
    a: Array,
    b: Array,
    out: Array,
    addend: Array | None,
    scalars: tuple[Array | complex, Array | complex],
    adjoints: tuple[bool, bool],
    tf32: bool,
) -> Array:
    if is_transposed(out):
        first, second, result = (x.swapaxes(-1, -2) for x in (b, a, out))
        third = None if addend is None else addend.swapaxes(-1, -2)
        _by_cublas(binding, first, second, result, third, scalars, adjoints[::-1], tf32)
        return out
    cupy = import_library("cupy")
    c = out if is_readable(out) else _filled(out, addend).copy()  # a copy is contiguous
    addend = addend if c is out else None
    (m, k), n = _shape(a, adjoints[0]), out.shape[-1]
    op_a, left, lda, step_a = _operand(cupy, binding, a, adjoints[0])
    op_b, right, ldb, step_b = _operand(cupy, binding, b, adjoints[1])
    _, ldc, step_c = _strides(c) or (False, 0, 0)
    if max(lda, ldb, ldc) > LARGEST_INT:
        return _by_matmul(a, b, _filled(out, addend), scalars, adjoints)
    type_name, compute_name, scalar_type = _types(out.dtype) or ("", "", "")
    compute_name = TF32 if tf32 and type_name == "CUDA_R_32F" else compute_name
    runtime = cupy.cuda.runtime
    # cuBLAS reads the host's scalars at once; the device's are kept by the order of their stream.
    mode, held, at_alpha, at_beta = _scalars(cupy, binding, *scalars, scalar_type)
    call = _Call(
        (op_b, op_a),
        (n, m, k),
        (right, left, c),
        (ldb, lda, ldc),
        (step_b, step_a, step_c),
        math.prod(out.shape[:-2]),
        (
            getattr(runtime, type_name),
            getattr(binding, compute_name),
            getattr(runtime, TYPES[scalar_type][0]),
        ),
        (mode, at_alpha, at_beta),
    )
    # The handle is this thread's own, and is left as it was found.
    handle = cupy.cuda.device.get_cublas_handle()
    if addend is None or not _beside(cupy, handle, call, addend):
        _filled(out, addend)
        _in_place(binding, handle, call)
    del held
    if c is not out:
        out[...] = c
    return out


def _beside(cupy: Any, handle: int, call: _Call, addend: Array) -> bool:
    """Add what lies in other storage, by cublasLt; return whether that was possible."""
    c = call.arrays[2]
    found = _strides(addend) if addend.shape == c.shape and addend.dtype == c.dtype else None
    if found is None or found[0] or found[1] > LARGEST_INT or call.matrices > STACK:
        return False
    addresses = tuple(x.data.ptr for x in (*call.arrays[:2], addend, c))
    (*first_two, ld), (*steps_of_two, step) = call.leading, call.steps
    mode, at_alpha, at_beta = call.scalars
    product = cublaslt.Product(
        call.operations,
        call.sizes,
        call.types,
        (*first_two, found[1], ld),
        (*steps_of_two, found[2], step),
        call.matrices,
        mode,
        tuple(map(cublaslt.aligned, addresses)),
    )
    return cublaslt.multiply(cupy, handle, product, (at_alpha, at_beta), addresses)


def _in_place(binding: Any, handle: int, call: _Call) -> None:
    """Add to what is in C, by gemmEx."""
    kind, compute, _ = call.types
    mode, at_alpha, at_beta = call.scalars
    (ld_first, ld_second, ldc), (step_first, step_second, step_c) = call.leading, call.steps
    before = binding.getPointerMode(handle)
    # Other math modes multiply single precision in tf32, whatever the compute type.
    math_mode = binding.getMathMode(handle)
    binding.setMathMode(handle, binding.CUBLAS_DEFAULT_MATH)
    binding.setPointerMode(handle, mode)
    head = (handle, *call.operations, *call.sizes, at_alpha)
    last = (compute, binding.CUBLAS_GEMM_DEFAULT)
    try:
        for start in range(0, call.matrices, STACK):
            first, second, c = (
                x.data.ptr + start * step * x.itemsize
                for x, step in zip(call.arrays, call.steps, strict=True)
            )
            if call.matrices == 1:
                binding.gemmEx(
                    *(*head, first, kind, ld_first, second, kind, ld_second),
                    *(at_beta, c, kind, ldc, *last),
                )
            else:
                binding.gemmStridedBatchedEx(
                    *(*head, first, kind, ld_first, step_first),
                    *(second, kind, ld_second, step_second, at_beta, c, kind, ldc, step_c),
                    *(min(STACK, call.matrices - start), *last),
                )
    finally:
        binding.setPointerMode(handle, before)
        binding.setMathMode(handle, math_mode)


def _operand(cupy: Any, binding: Any, x: Array, adjoint: bool) -> tuple[int, Array, int, int]:
    """An operand as cuBLAS is to read it: the operation, the array, and its strides."""
    if adjoint and x.dtype.kind != "c":
        x, adjoint = x.swapaxes(-1, -2), False
    if adjoint and is_transposed(x):  # no operation conjugates and does not transpose
        x, adjoint = cupy.conj(x).swapaxes(-1, -2), False
    found = _strides(x)
    if found is None:
        x = cupy.ascontiguousarray(x)
        found = _strides(x) or (False, 0, 0)
    transposed, leading, step = found
    plain = binding.CUBLAS_OP_T if transposed else binding.CUBLAS_OP_N
    return binding.CUBLAS_OP_C if adjoint else plain, x, leading, step


def is_transposed(x: Array) -> bool:
    """Whether matrices lie in memory by columns."""
    found = _strides(x)
    return found is not None and found[0]


def _strides(x: Array) -> tuple[bool, int, int] | None:
    """How a stack lies in memory: transposed or not, leading dimension, step between matrices.

    Counted in entries; None if it does not lie as cuBLAS needs it.
    """
    return _layout(x.shape, x.strides, x.itemsize)


# A product takes microseconds to launch, so that looking again counts.
@functools.lru_cache(maxsize=1024)
def _layout(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int
) -> tuple[bool, int, int] | None:
    if any(s % itemsize for s in strides):
        return None
    *steps, down, right = (s // itemsize for s in strides)
    *counts, rows, columns = shape
    # Axes of one entry may have any stride.
    axes = [(n, s) for n, s in zip(counts, steps, strict=True) if n > 1]
    if any(outer != n * inner for (_, outer), (n, inner) in itertools.pairwise(axes)):
        return None  # more than one stride, unless all of them are 0
    step = axes[-1][1] if axes else 0
    if step < 0:
        return None
    if (right == 1 or columns == 1) and (down >= columns or rows == 1):
        return False, down if rows > 1 else columns, step
    if (down == 1 or rows == 1) and (right >= rows or columns == 1):
        return True, right if columns > 1 else rows, step
    return None


def _scalars(
    cupy: Any, binding: Any, alpha: Array | complex, beta: Array | complex, dtype: str
) -> tuple[int, Any, int, int]:
    """Pointer mode, what must stay alive, and the addresses of alpha and beta in one memory."""
    if not isinstance(alpha, cupy.ndarray) and not isinstance(beta, cupy.ndarray):
        both = _on_host(alpha, beta, dtype)
        at = ctypes.addressof(both)
        return binding.CUBLAS_POINTER_MODE_HOST, both, at, at + ctypes.sizeof(both) // 2
    # A fill takes its number along as an argument: nothing is transferred.
    held = tuple(
        s.astype(dtype, copy=False)
        if isinstance(s, cupy.ndarray)
        else cupy.full((), s, dtype=dtype)
        for s in (alpha, beta)
    )
    return binding.CUBLAS_POINTER_MODE_DEVICE, held, held[0].data.ptr, held[1].data.ptr


@functools.lru_cache(maxsize=256)
def _on_host(alpha: complex, beta: complex, dtype: str) -> Any:
    """Alpha and beta one after the other; what is too large becomes infinity, as on a device."""
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
    """The same by ``cupy.matmul``; 16 bits: the product rounded, then the sum once more.

    Single precision is multiplied in double, which ``CUPY_TF32`` does not reach.
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
    if out.dtype.name == "bfloat16" and out.ndim > 2:  # CuPy refuses stacks of it
        a, b = _broadcast(a, out.shape[:-2]), _broadcast(b, out.shape[:-2])
        product = cupy.empty(out.shape, dtype=out.dtype)
        for index in np.ndindex(*out.shape[:-2]):
            product[index] = cupy.matmul(a[index], b[index])
    else:
        product = cupy.matmul(a, b)
    if is_number(alpha, 1.0) and is_number(beta, 0.0):
        out[...] = product
        return out
    total = _wide(product) * alpha
    out[...] = total if is_number(beta, 0.0) else total + _wide(out) * beta
    return out


def _wide(x: Array) -> Array:
    return x.astype("float32") if x.itemsize == 2 else x
