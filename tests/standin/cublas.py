"""The private binding of cuBLAS that CuPy has, emulated on raw addresses.

Arguments are converted as Cython converts them to the recorded C types: a float is refused and an
int that is too large overflows. Matrices are column-major with leading dimensions and strides,
scalars are read from the host's or the device's memory by the pointer mode, and every address must
lie in memory that is in use there. Where cuBLAS would read or write something else without a word,
the emulation raises.
"""

import ctypes
import math
import operator
import re
import types

import ml_dtypes
import numpy as np

from . import memory
from .state import Call, state

HANDLE = 0xB1A5

# CUDA's type numbers.
DTYPES = {
    0: np.dtype(np.float32),
    1: np.dtype(np.float64),
    2: np.dtype(np.float16),
    4: np.dtype(np.complex64),
    5: np.dtype(np.complex128),
    14: np.dtype(ml_dtypes.bfloat16),
}
# Compute types by name, and for which type numbers they may be used with what scalars.
SCALARS = {
    "CUBLAS_COMPUTE_32F": {0: "f", 2: "f", 4: "F", 14: "f"},
    "CUBLAS_COMPUTE_32F_FAST_TF32": {0: "f"},
    "CUBLAS_COMPUTE_64F": {1: "d", 5: "D"},
}
BITS = {"int": 32, "intptr_t": 64, "size_t": 64, "long long": 64}


class CUBLASError(RuntimeError):
    """What cuBLAS refuses."""


def refuse(status, reason):
    raise CUBLASError(f"CUBLAS_STATUS_{status}: {reason}")


def typed(name, text, function):
    """Return a function that converts its arguments to the C types of a recorded signature."""
    parameters = [p.strip().rpartition(" ")[::2] for p in re.findall(r"[^(),]+", text)]

    def binding(*args):
        if len(args) != len(parameters):
            raise TypeError(f"{name}() takes {len(parameters)} arguments, {len(args)} given")
        return function(*map(converted, args, parameters))

    def converted(value, parameter):
        kind, label = parameter
        number = operator.index(value)
        signed = kind != "size_t"
        bits = BITS[kind] - signed
        if not -signed * 2**bits <= number < 2**bits:
            raise OverflowError(f"{name}({label}={number}) does not fit {kind}")
        return number

    binding.__name__ = name
    return binding


def scalar(address, dtype, mode):
    """Read a scalar from where the pointer mode says that it is."""
    found = memory.arrays_at(address, dtype.itemsize)
    if (mode == 1) != bool(found):
        refuse("EXECUTION_FAILED", f"the scalar is on the {'device' if found else 'host'}")
    if found and not any(x.dtype == dtype and x.data.ptr == address for x in found):
        refuse("EXECUTION_FAILED", f"the scalar is no {dtype}")
    return np.frombuffer(ctypes.string_at(address, dtype.itemsize), dtype)[0]


def stack(address, dtype, rows, columns, leading, step, count):
    """View of column-major matrices in the device's memory."""
    if leading < max(1, rows):
        refuse("INVALID_VALUE", f"leading dimension {leading} of {rows} rows")
    extent = max(0, (count - 1) * step + (columns - 1) * leading + rows) * dtype.itemsize
    if not memory.arrays_at(address, extent):
        refuse("EXECUTION_FAILED", "an illegal memory access was encountered")
    block = (ctypes.c_char * extent).from_address(address)
    strides = tuple(s * dtype.itemsize for s in (step, 1, leading))
    flat = np.frombuffer(block, dtype)
    return np.lib.stride_tricks.as_strided(flat, (count, rows, columns), strides)


# Math mode in which single precision is multiplied in tf32.
TF32_MATH = 3


def to_tf32(x):
    """Round float32 to tf32: 13 bits fewer, ties to even; complex numbers by parts."""
    if x.dtype == np.complex64:
        return to_tf32(np.ascontiguousarray(x).view(np.float32)).view(np.complex64)
    if x.dtype != np.float32:
        return x
    bits = x.view(np.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(np.float32)


class Cublas:
    """State of the one handle, and the functions that are bound."""

    def __init__(self, constants):
        self.mode = constants["CUBLAS_POINTER_MODE_HOST"]
        self.math_mode = constants["CUBLAS_DEFAULT_MATH"]
        self.computes = {constants[name]: table for name, table in SCALARS.items()}
        self.tf32 = constants["CUBLAS_COMPUTE_32F_FAST_TF32"]

    def checked(self, handle):
        if handle != HANDLE:
            refuse("NOT_INITIALIZED", f"handle {handle}")
        if state.captured:  # in CuPy's setStream
            raise NotImplementedError("calling cuBLAS API during stream capture is unsupported")

    def getPointerMode(self, handle):
        self.checked(handle)
        return self.mode

    def setPointerMode(self, handle, mode):
        self.checked(handle)
        if mode not in (0, 1):
            refuse("INVALID_VALUE", f"pointer mode {mode}")
        self.mode = mode

    def getMathMode(self, handle):
        self.checked(handle)
        return self.math_mode

    def setMathMode(self, handle, mode):
        self.checked(handle)
        self.math_mode = mode

    def gemmEx(self, handle, *args):
        *sizes, alpha, a, kind_a, lda, b, kind_b, ldb, beta, c, kind_c, ldc, compute, _ = args
        operands = ((a, kind_a, lda, 0), (b, kind_b, ldb, 0), (c, kind_c, ldc, 0))
        self.run("cublas.gemmEx", handle, sizes, (alpha, beta), operands, 1, compute)

    def gemmStridedBatchedEx(self, handle, *args):
        sizes, (alpha, *a), (*b, beta), c = args[:5], args[5:10], args[10:15], args[15:19]
        count, compute, _ = args[19:]
        name = "cublas.gemmStridedBatchedEx"
        self.run(name, handle, sizes, (alpha, beta), (a, b, c), count, compute)

    def run(self, name, handle, sizes, scalars, operands, count, compute):
        self.checked(handle)
        kinds = {kind for _, kind, _, _ in operands}
        scalar_type = self.computes.get(compute, {}).get(min(kinds))
        if len(kinds) > 1 or scalar_type is None:
            refuse("NOT_SUPPORTED", f"types {kinds} in compute type {compute}")
        dtype = DTYPES[kinds.pop()]
        single = dtype in (np.float32, np.complex64)
        tf32 = compute == self.tf32 or (single and self.math_mode == TF32_MATH)
        places = [(at, leading, step) for at, _, leading, step in operands]
        places = (*places, places[2])
        multiply(name, dtype, scalar_type, sizes, (*scalars, self.mode), places, count, tf32)


def multiply(name, dtype, scalar_type, sizes, scalars, places, count, tf32):
    """``D <- alpha op(A) op(B) + beta C``, each matrix an address, leading dimension and step."""
    ta, tb, m, n, k = sizes
    if not {ta, tb} <= {0, 1, 2} or min(m, n, k, count) < 0:
        refuse("INVALID_VALUE", f"operations {ta}, {tb}, sizes {m}, {n}, {k}, {count}")
    if not 0 < count <= 65535:
        refuse("EXECUTION_FAILED", f"{count} matrices in one call")
    scalar_type = np.dtype(scalar_type)
    alpha, beta = (scalar(at, scalar_type, scalars[2]) for at in scalars[:2])
    shapes = ((m, k) if ta == 0 else (k, m), (k, n) if tb == 0 else (n, k), (m, n), (m, n))
    a, b, c, d = (
        stack(at, dtype, *shape, leading, step, count)
        for shape, (at, leading, step) in zip(shapes, places, strict=True)
    )
    if count > 1 and d.strides[0] < (n - 1) * d.strides[2] + m * dtype.itemsize:
        refuse("EXECUTION_FAILED", "matrices of D overlap")
    with np.errstate(all="ignore"):
        a, b = (x.astype(scalar_type) for x in (a, b))
        if tf32:
            a, b = to_tf32(a), to_tf32(b)
        a, b = applied(ta, a), applied(tb, b)
        # As rows: the same product of the same matrices as NumPy's, and the same rounding.
        y = np.swapaxes(np.swapaxes(b, 1, 2) @ np.swapaxes(a, 1, 2), 1, 2) * alpha
        if beta != 0:
            y = y + c.astype(scalar_type) * beta
        d[...] = y.astype(dtype)
    batch = (count,) if count > 1 or "Strided" in name else ()
    described = [(dtype.name, (*batch, *shape)) for shape in ((n, k), (k, m), (n, m))]
    state.calls.append(Call(name, tuple(described[:2]), (described[2],)))


def applied(operation, x):
    x = x if operation == 0 else np.swapaxes(x, 1, 2)
    return x.conj() if operation == 2 else x


def module(recorded):
    """Return the binding as a module, from the recorded constants and signatures."""
    constants = {
        name: int(text.removeprefix("const "))
        for name, text in recorded.items()
        if text.startswith("const ")
    }
    emulated = Cublas(constants)
    result = types.ModuleType("cupy_backends.cuda.libs.cublas")
    result.CUBLASError = CUBLASError
    for name, text in recorded.items():
        value = constants.get(name)
        if value is None:
            value = typed(name, text, getattr(emulated, name))
        setattr(result, name, value)
    return result


def products(calls):
    """How many products were computed in these calls."""
    return sum(
        math.prod(call.outputs[0][1][:-2]) for call in calls if call.name.startswith("cublas")
    )
