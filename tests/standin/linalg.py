"""Linear algebra on NumPy arrays under the rules of cuBLAS, cuSOLVER and CuPy.

Types follow CuPy's, computation is LAPACK's in the precision of the type (NumPy's own would
compute float32 in float64). Where a routine fails, CuPy returns what is in the array, and so does
the mock: what LAPACK leaves, and finite numbers where LAPACK would not begin. What cuSOLVER
leaves is not documented; nothing may rely on NaN.
"""

import numpy as np
import scipy.linalg

from .dtypes import narrow, widen
from .functions import matmul
from .state import state, synchronize


def _working_types(*arrays, half=False):
    """Return the types that cuSOLVER computes in and that CuPy returns.

    bfloat16 is no floating-point type to this rule of CuPy, hence silently float64.
    """
    if not half and any(array.dtype == np.float16 for array in arrays):
        raise TypeError("float16 is unsupported in linalg")
    result_type = np.result_type(
        *(array.dtype if array.dtype.kind in "fc" else np.float64 for array in arrays)
    )
    return np.promote_types(result_type, np.float32), result_type


def _require_matrices(*arrays, square=False):
    for array in arrays:
        if array.ndim < 2:
            raise np.linalg.LinAlgError(
                f"{array.ndim}-dimensional array given. Array must be at least two-dimensional"
            )
        if square and array.shape[-1] != array.shape[-2]:
            raise np.linalg.LinAlgError("Last 2 dimensions of the array must be square")


def _report(failed, routine):
    """Raise for a failed routine if so configured, for which CuPy must wait for the device."""
    if state.errors["linalg"] == "raise":
        synchronize(f"the check of {routine}")
        if failed:
            raise np.linalg.LinAlgError(f"Error reported by {routine} in cuSOLVER.")


def _batched(routine, function, *arrays, result_types):
    """Apply a function of matrices to each one of a batch.

    Parameters
    ----------
    routine : str
        Name for error reports.
    function : callable
        Takes one matrix of each array, returns a tuple of results and whether it failed.
    result_types : tuple
        Types of the results.
    """
    batch = arrays[0].shape[:-2]
    flat = [array.reshape(-1, *array.shape[len(batch) :]) for array in arrays]
    count = flat[0].shape[0]
    # A batch without matrices has results with shapes, too: those of a matrix of zeros.
    stacks = zip(*flat, strict=True) if count else [tuple(np.zeros(x.shape[1:]) for x in flat)]
    outcomes = [function(*matrices) for matrices in stacks]
    _report(any(failed for _, failed in outcomes), routine)
    stacked = zip(*(results for results, _ in outcomes), strict=True)
    return tuple(
        np.asarray(parts[:count]).reshape(batch + parts[0].shape).astype(dtype)
        for parts, dtype in zip(stacked, result_types, strict=True)
    )


def _without_nan(matrix):
    """Return a matrix that iterations end on, and whether they would have failed."""
    failed = not np.isfinite(matrix).all()
    return (np.where(np.isfinite(matrix), matrix, 0) if failed else matrix), failed


def _cholesky(a):
    _require_matrices(a, square=True)
    working_type, result_type = _working_types(a)

    def factor(matrix):
        if matrix.size == 0:
            return (matrix,), False
        (potrf,) = scipy.linalg.get_lapack_funcs(("potrf",), (matrix,))
        result, info = potrf(matrix, lower=True, clean=True)
        return (result,), bool(info)

    (result,) = _batched("potrf", factor, a.astype(working_type), result_types=(result_type,))
    return result


def _qr(a, mode="reduced"):
    if mode not in ("reduced", "complete", "r", "raw"):
        raise ValueError(f"Unrecognized mode '{mode}'")
    _require_matrices(a)
    working_type, result_type = _working_types(a)
    rows, columns = a.shape[-2:]
    rank = min(rows, columns)

    def factor(matrix):
        if rank == 0:
            size = rows if mode == "complete" else 0
            return (np.eye(rows, size), np.zeros((size, columns))), False
        if mode == "raw":
            (reflectors, tau), _ = scipy.linalg.qr(matrix, mode="raw", check_finite=False)
            return (reflectors.T, tau), False
        economic = "full" if mode == "complete" else "economic"
        return scipy.linalg.qr(matrix, mode=economic, check_finite=False), False

    q, r = _batched("geqrf", factor, a.astype(working_type), result_types=(result_type,) * 2)
    return r if mode == "r" else (q, r)


def _svd(a, full_matrices=True, compute_uv=True):
    _require_matrices(a)
    working_type, result_type = _working_types(a)
    real_type = np.dtype(result_type.char.lower())
    rows, columns = a.shape[-2:]
    rank = min(rows, columns)
    left, right = (rows, columns) if full_matrices else (rank, rank)

    def factor(matrix):
        if rank == 0:
            return (np.eye(rows, left), np.zeros(0), np.eye(right, columns)), False
        matrix, failed = _without_nan(matrix)
        return scipy.linalg.svd(matrix, full_matrices, check_finite=False), failed

    result_types = (result_type, real_type, result_type)
    u, s, vh = _batched("gesvd", factor, a.astype(working_type), result_types=result_types)
    return (u, s, vh) if compute_uv else s


def _eigh(a, UPLO="L"):
    _require_matrices(a, square=True)
    if UPLO not in ("L", "U"):
        raise ValueError("UPLO argument must be 'L' or 'U'")
    working_type, result_type = _working_types(a, half=True)
    real_type = np.dtype(result_type.char.lower())

    def factor(matrix):
        if matrix.size == 0:
            return (np.zeros(0), matrix), False
        matrix, failed = _without_nan(matrix)
        return scipy.linalg.eigh(matrix, lower=UPLO == "L", check_finite=False), failed

    result_types = (real_type, result_type)
    return _batched("syevd", factor, a.astype(working_type), result_types=result_types)


def _solve(a, b):
    _require_matrices(a, square=True)
    if b.ndim == 0:
        raise ValueError("b must have at least one dimension")
    if b.ndim == 1:
        if a.shape[-1] != b.size:
            raise ValueError(
                "a must have (..., M, M) shape and b must have (M,) for one-dimensional b"
            )
        b = np.broadcast_to(b, a.shape[:-1])
    elif a.shape[:-1] != b.shape[:-1]:
        # No broadcasting of batches, unlike NumPy.
        raise ValueError(
            "a must have (..., M, M) shape and b must have (..., M, K) for multidimensional b"
        )
    working_type, result_type = _working_types(a, b)

    def solve(matrix, right):
        if right.size == 0:
            return (right,), False
        getrf, getrs = scipy.linalg.get_lapack_funcs(("getrf", "getrs"), (matrix, right))
        factors, pivots, info = getrf(matrix)
        # A zero pivot gives infinities and NaN here, as on the device.
        return (getrs(factors, pivots, right)[0],), bool(info)

    (result,) = _batched(
        "getrf", solve, a.astype(working_type), b.astype(working_type), result_types=(result_type,)
    )
    return result


def _inv(a):
    _require_matrices(a, square=True)
    working_type, _ = _working_types(a)
    inverse = _solve(a, np.broadcast_to(np.eye(a.shape[-1], dtype=working_type), a.shape))
    if a.ndim == 2:
        return inverse
    # cuBLAS's getriBatched writes nothing for a singular matrix: what is there stays.
    failed = ~np.isfinite(inverse).all(axis=(-2, -1), keepdims=True)
    return np.where(failed, a, inverse)


def _pinv(a, rcond=1e-15):
    u, s, vh = _svd(a.conj(), full_matrices=False)
    small = s <= np.asarray(rcond * s.max(axis=-1))[..., None]
    inverse = np.where(small, 0, 1 / s).astype(s.dtype)
    return np.matmul(vh.mT, inverse[..., None] * u.mT)


def _lstsq(a, b, rcond=None):
    synchronize("linalg.lstsq")
    working_type, result_type = _working_types(a, b)
    x, residuals, rank, s = np.linalg.lstsq(
        a.astype(working_type), b.astype(working_type), rcond=rcond
    )
    real_type = np.dtype(result_type.char.lower())
    return x.astype(result_type), residuals.astype(real_type), rank, s.astype(real_type)


def _norm(x, ord=None, axis=None, keepdims=False):
    if x.dtype.kind not in "fc":
        x = x.astype(np.float64)
    spectral = ord in (2, -2, "nuc") and (x.ndim if axis is None else np.size(axis)) == 2
    if x.dtype == np.float16:
        if spectral:
            _working_types(x)  # refuses float16
        squares = axis is None and (ord is None or (x.ndim, ord) in ((1, 2), (2, "fro")))
        if squares:
            # The squares are stored in half precision, and overflow there.
            result = np.sqrt(np.sum((x * x).astype(np.float32)))
            return narrow(result.reshape((1,) * x.ndim) if keepdims else result, x.dtype)
    result = np.linalg.norm(widen(x), ord, axis, keepdims)
    return narrow(result, np.dtype(x.dtype.char.lower()))


def _through_numpy(name, real=False):
    """Return NumPy's function in the types of CuPy's; with ``real`` results are real."""

    def function(a, *args, **kwargs):
        working_type, result_type = _working_types(a)
        if real:
            result_type = np.dtype(result_type.char.lower())
        results = getattr(np.linalg, name)(a.astype(working_type), *args, **kwargs)
        if isinstance(results, tuple):
            return tuple(np.asarray(x).astype(result_type) for x in results)
        return np.asarray(results).astype(result_type)

    return function


def _slogdet(a):
    _require_matrices(a, square=True)
    working_type, result_type = _working_types(a)
    sign, logabsdet = np.linalg.slogdet(a.astype(working_type))
    return (
        np.asarray(sign).astype(result_type),
        np.asarray(logabsdet).astype(result_type.char.lower()),
    )


def _cond(x, p=None):
    synchronize("linalg.cond")
    return _through_numpy("cond", real=True)(x, p)


def _matrix_rank(M, tol=None):
    s = _svd(M, compute_uv=False)
    if tol is None:
        tol = s.max(axis=-1, keepdims=True) * max(M.shape[-2:]) * np.finfo(s.dtype).eps
    return (s > tol).sum(axis=-1)


def _matrix_power(M, n):
    _require_matrices(M, square=True)
    if n < 0:
        M, n = _inv(M), -n
    result = np.broadcast_to(np.eye(M.shape[-1], dtype=M.dtype), M.shape)
    for _ in range(n):
        result = matmul(result, M)
    return result


def _solve_triangular(
    a, b, trans=0, lower=False, unit_diagonal=False, overwrite_b=False, check_finite=False
):
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError("expected one square matrix or a batch of square matrices")
    if a.ndim > 2 and a.shape[:-2] != b.shape[: a.ndim - 2]:
        raise ValueError("incompatible batch count")
    if b.ndim < a.ndim - 1 or a.shape[-2] != b.shape[a.ndim - 2]:
        raise ValueError("incompatible dimensions")
    # The type of `a` decides. NumPy does not know the code of bfloat16, so this raises for it.
    dtype = a.dtype if a.dtype.char in "fd" else np.promote_types(a.dtype.char, "f")
    if check_finite:
        synchronize("check_finite")
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ValueError("array must not contain infs or NaNs")
    operation = {"N": 0, "T": 1, "C": 2}.get(trans, trans)

    def solve(matrix, right):
        columns = right if right.ndim == 2 else right[:, None]
        (trsm,) = scipy.linalg.get_blas_funcs(("trsm",), (matrix, columns))
        # Divides by a zero on the diagonal, as cuBLAS does.
        result = trsm(1, matrix, columns, lower=lower, trans_a=operation, diag=bool(unit_diagonal))
        return (result.reshape(right.shape),), False

    (result,) = _batched("trsm", solve, a.astype(dtype), b.astype(dtype), result_types=(dtype,))
    if overwrite_b and a.ndim == 2 and b.dtype == dtype and b.flags.f_contiguous:
        b[...] = result
    return result


def _transposed(name, matrix):
    return {"N": matrix, "T": matrix.T, "H": matrix.T.conj()}[name]


def _gemm(transa, transb, a, b, out=None, alpha=1.0, beta=0.0):
    if a.dtype.char not in "fdFD" or a.dtype != b.dtype:
        raise TypeError("invalid dtype")
    product = alpha * (_transposed(transa, a) @ _transposed(transb, b))
    if out is None:
        return np.asarray(product, dtype=a.dtype, order="F")
    out[...] = product if beta == 0 else product + beta * out
    return out


def _syrk(trans, a, out=None, alpha=1.0, beta=0.0, lower=False):
    if a.dtype.char not in "fdFD":
        raise TypeError("invalid dtype")
    factor = _transposed(trans, a)
    product = alpha * (factor @ factor.T)
    if out is None:
        out, beta = np.zeros(product.shape, a.dtype, order="F"), 0
    triangle = np.tril_indices(len(out)) if lower else np.triu_indices(len(out))
    old = 0 if beta == 0 else beta * out[triangle]
    out[triangle] = product[triangle] + old
    return out


FUNCTIONS = {
    "linalg.cholesky": _cholesky,
    "linalg.cond": _cond,
    "linalg.cross": np.cross,
    "linalg.det": _through_numpy("det"),
    "linalg.eigh": _eigh,
    "linalg.eigvalsh": lambda a, UPLO="L": _eigh(a, UPLO)[0],
    "linalg.inv": _inv,
    "linalg.lstsq": _lstsq,
    "linalg.matmul": matmul,
    "linalg.matrix_power": _matrix_power,
    "linalg.matrix_rank": _matrix_rank,
    "linalg.matrix_transpose": np.matrix_transpose,
    "linalg.norm": _norm,
    "linalg.pinv": _pinv,
    "linalg.qr": _qr,
    "linalg.slogdet": _slogdet,
    "linalg.solve": _solve,
    "linalg.svd": _svd,
    "linalg.tensorinv": _through_numpy("tensorinv"),
    "linalg.tensorsolve": _through_numpy("tensorsolve"),
    "cublas.gemm": _gemm,
    "cublas.syrk": _syrk,
    "cupyx.scipy.linalg.solve_triangular": _solve_triangular,
}
