"""The private binding of cuSOLVER that CuPy has, as far as it is used, emulated on raw addresses.

Cholesky factorisations in place, by LAPACK. Where one fails, what LAPACK leaves stays in the matrix
and the flag has its number: nothing becomes NaN that was none. The triangle that is not asked for,
and the workspace, are scribbled over.
"""

import ctypes
import types

import numpy as np
import scipy.linalg

from . import memory
from .cublas import stack, typed
from .state import Call, state

HANDLE = 0x501E
UPPER = 1
DTYPES = {"s": np.float32, "d": np.float64, "c": np.complex64, "z": np.complex128}
SCRIBBLE = -7.0


class CUSOLVERError(RuntimeError):
    """What cuSOLVER refuses."""


def refuse(status, reason):
    raise CUSOLVERError(f"CUSOLVER_STATUS_{status}: {reason}")


def integers(address, count, dtype):
    """View of integers in the device's memory."""
    size = count * np.dtype(dtype).itemsize
    if not memory.arrays_at(address, size):
        refuse("EXECUTION_FAILED", "an illegal memory access was encountered")
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype)


def checked(handle, uplo, n, lda):
    if handle != HANDLE:
        refuse("NOT_INITIALIZED", f"handle {handle}")
    if uplo not in (0, 1) or n < 0 or lda < max(1, n):
        refuse("INVALID_VALUE", f"triangle {uplo}, size {n}, leading dimension {lda}")


def factorise(address, dtype, uplo, n, lda):
    """Factorise one column-major matrix in place; return LAPACK's flag."""
    x = stack(address, np.dtype(dtype), n, n, lda, 0, 1)[0]
    (potrf,) = scipy.linalg.get_lapack_funcs(("potrf",), (x,))
    y, info = potrf(x, lower=uplo != UPPER, clean=False)
    keep = np.triu if uplo == UPPER else np.tril
    with np.errstate(invalid="ignore"):
        x[...] = np.where(keep(np.ones((n, n), bool)), y, SCRIBBLE)
    return info


def functions(letter):
    """The functions of a type, by name."""
    dtype = np.dtype(DTYPES[letter])

    def size(handle, uplo, n, a, lda):
        checked(handle, uplo, n, lda)
        return 32 * n

    def one(handle, uplo, n, a, lda, work, lwork, info):
        checked(handle, uplo, n, lda)
        if lwork < 32 * n:
            refuse("INVALID_VALUE", f"workspace of {lwork}, {32 * n} are needed")
        stack(work, dtype, lwork, 1, lwork, 0, 1)[...] = SCRIBBLE
        integers(info, 1, np.int32)[0] = factorise(a, dtype, uplo, n, lda)
        note(f"cusolver.{letter}potrf", dtype, (n, n))

    def batched(handle, uplo, n, at, lda, info, count):
        checked(handle, uplo, n, lda)
        flags = integers(info, count, np.int32)
        for i, address in enumerate(integers(at, count, np.uintp)):
            flags[i] = factorise(int(address), dtype, uplo, n, lda)
        note(f"cusolver.{letter}potrfBatched", dtype, (count, n, n))

    names = ("potrf_bufferSize", "potrf", "potrfBatched")
    return {letter + name: f for name, f in zip(names, (size, one, batched), strict=True)}


def note(name, dtype, shape):
    state.calls.append(Call(name, ((dtype.name, shape),), ((dtype.name, shape),)))


def module(recorded):
    """Return the binding as a module, from the recorded signatures."""
    result = types.ModuleType("cupy_backends.cuda.libs.cusolver")
    result.CUSOLVERError = CUSOLVERError
    emulated = {name: f for letter in DTYPES for name, f in functions(letter).items()}
    for name, text in recorded.items():
        setattr(result, name, typed(name, text, emulated[name]))
    return result
