"""Cholesky factors of CuPy arrays by cuSOLVER, with its flags of success.

``cupy.linalg.cholesky`` drops cuSOLVER's ``devInfo``. For a matrix that is not positive definite it
returns the incomplete factor, which may be finite. This module calls the routines through CuPy's
private binding. The flags stay on the device, and a failed factor is NaN, without synchronisation.
If the binding or a name of it is missing, the factor is checked by its residual.
"""

from __future__ import annotations

import math
import operator
from types import ModuleType
from typing import Any

import numpy as np

from polarlib.arrays.cupy_device import LibraryNotFound, required
from polarlib.arrays.library import import_library

Array = Any

# cuSOLVER's letter of each dtype.
LETTERS = {"float32": "s", "float64": "d", "complex64": "c", "complex128": "z"}
ROUTINES = ("{}potrf", "{}potrf_bufferSize", "{}potrfBatched")
# Names of the private module that are required.
NEEDED = tuple(name.format(letter) for letter in LETTERS.values() for name in ROUTINES)
_all_needed = operator.attrgetter(*NEEDED)
# Constant of cuBLAS and cuSOLVER for the upper triangle of a column-major matrix.
UPPER = "CUBLAS_FILL_MODE_UPPER"
# Bound of the residual of a factor, max |A - L L^H| over (n + 1) eps max a_ii: 1/2 for the
# factorisation (Higham, Accuracy and Stability of Numerical Algorithms, Theorem 10.3), 1/2 for the
# product of the check, each up to 2 sqrt(2) times that in complex arithmetic.
RESIDUAL = 3.0


def _binding() -> tuple[ModuleType, int] | None:
    """Return CuPy's private binding and the code of a triangle; None without one of its names."""
    try:
        cublas, cusolver = required("cuSOLVER", _load)
        _all_needed(cusolver)
        upper = getattr(cublas, UPPER)
    except LibraryNotFound:  # cupy.linalg would fail too
        raise
    except (ImportError, AttributeError):
        return None
    runtime = import_library("cupy").cuda.runtime
    return None if getattr(runtime, "is_hip", False) else (cusolver, upper)


def _load() -> tuple[Any, Any]:
    # From their package, which first loads the libraries that pip has installed.
    from cupy_backends.cuda.libs import cublas, cusolver

    return cublas, cusolver


def cholesky(z: Array) -> Array:
    """Return lower Cholesky factors of a stack; NaN for matrices without one.

    Parameters
    ----------
    z : cupy.ndarray, shape (..., n, n)
        Hermitian, of 32 or 64 bits; not modified. One triangle is read.

    Returns
    -------
    cupy.ndarray, shape (..., n, n)
        The factors, computed without synchronisation.
    """
    cupy = import_library("cupy")
    if z.size == 0:
        return cupy.empty_like(z)
    binding = _binding()
    if binding is None or z.dtype.name not in LETTERS:
        factor = cupy.linalg.cholesky(z)
        good = _is_factor(cupy, factor, z)
    else:
        factor, info = _by_cusolver(cupy, *binding, z)
        good = (info == 0).reshape((*z.shape[:-2], 1, 1))
    return cupy.where(good, factor, math.nan)


def _by_cusolver(cupy: Any, binding: Any, upper: int, z: Array) -> tuple[Array, Array]:
    # The upper triangle of the column-major transpose is the lower one of the row-major matrix.
    x = z.astype(z.dtype, order="C", copy=True)
    n, count = z.shape[-1], math.prod(z.shape[:-2])
    info = cupy.empty(count, dtype=np.int32)
    handle = cupy.cuda.device.get_cusolver_handle()
    potrf, work_size, batched = (
        getattr(binding, name.format(LETTERS[z.dtype.name])) for name in ROUTINES
    )
    if z.ndim == 2:
        size = work_size(handle, upper, n, x.data.ptr, n)
        work = cupy.empty(size, dtype=z.dtype)
        potrf(handle, upper, n, x.data.ptr, n, work.data.ptr, size, info.data.ptr)
    else:
        step = n * n * x.itemsize
        first = x.data.ptr
        at = cupy.arange(first, first + count * step, step, dtype=np.uintp)
        batched(handle, upper, n, at.data.ptr, n, info.data.ptr, count)
    return cupy.tril(x), info


def _is_factor(cupy: Any, factor: Array, z: Array) -> Array:
    """Return whether ``L L^H`` is Z up to rounding and the diagonal of L positive, (..., 1, 1).

    This proves the success of a factorisation for every way to compute the factor.
    """
    lower = cupy.tril(factor)
    product = cupy.matmul(lower, cupy.conj(lower).swapaxes(-1, -2))
    error = cupy.max(cupy.abs(product - z), axis=(-2, -1), keepdims=True)
    largest = cupy.max(cupy.diagonal(z, 0, -2, -1).real, axis=-1)[..., None, None]
    least = cupy.min(cupy.diagonal(lower, 0, -2, -1).real, axis=-1)[..., None, None]
    slack = RESIDUAL * (z.shape[-1] + 1) * float(np.finfo(factor.dtype).eps)
    return (error <= slack * largest) & (least > 0)
