"""Functions of NumPy arrays under CuPy's rules, where NumPy's own follow others.

They take and return NumPy arrays; the mock wraps them. What is not here is NumPy's.
"""

import numpy as np

from .dtypes import BFLOAT16, HALF_TYPES, checked_dtype, into, narrow, widen


def _empty(shape, dtype=float, order="C"):
    """Return NaN rather than zeros by chance, so that reading too early is seen."""
    host = np.zeros(shape, checked_dtype(dtype), order)
    if host.dtype.kind in "fcV":
        host[...] = np.nan
    return host


def _empty_like(prototype, dtype=None, order="K", subok=None, shape=None):
    host = np.zeros_like(prototype, dtype=dtype, order=order, shape=shape)
    if host.dtype.kind in "fcV":
        host[...] = np.nan
    return host


def _reduction(function, bfloat16_result=None):
    """Return a reduction that accumulates half precision in float32, as CuPy does."""

    def reduce(a, axis=None, dtype=None, out=None, **kwargs):
        if a.dtype not in HALF_TYPES:
            return into(out, function(a, axis=axis, dtype=dtype, **kwargs))
        result_type = dtype
        if dtype is None:
            result_type = a.dtype
            if a.dtype == BFLOAT16 and bfloat16_result is not None:
                result_type = bfloat16_result
        accumulator = np.result_type(np.float32, result_type)
        result = function(widen(a), axis=axis, dtype=accumulator, **kwargs)
        return into(out, narrow(result, result_type))

    def ordered(a, axis=None, dtype=None, out=None, keepdims=False):
        return reduce(a, axis, dtype, out, keepdims=bool(keepdims))

    def with_ddof(a, axis=None, dtype=None, out=None, ddof=0, keepdims=False):
        return reduce(a, axis, dtype, out, ddof=ddof, keepdims=keepdims)

    def cumulative(a, axis=None, dtype=None, out=None):
        if a.dtype == BFLOAT16:
            raise NotImplementedError("CuPy has no cumulative sums of bfloat16")
        return reduce(a, axis, dtype, out)

    if function in (np.var, np.std):
        return with_ddof
    return cumulative if function in (np.cumsum, np.cumprod) else ordered


def _trace(a, offset=0, axis1=0, axis2=1, dtype=None, out=None):
    diagonal = np.diagonal(a, offset, axis1, axis2)
    return into(out, FUNCTIONS["sum"](diagonal, -1, dtype))


def _bfloat16_as(function, dtype):
    """Return a function whose CuPy namesake has no bfloat16 loop and computes in ``dtype``."""

    def widening(*args, **kwargs):
        args = [
            x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype == BFLOAT16 else x
            for x in args
        ]
        return function(*args, **kwargs)

    return widening


def _clip(a, a_min=None, a_max=None, out=None, *, min=None, max=None):
    lower, upper = (a_min if min is None else min), (a_max if max is None else max)
    if a.dtype == BFLOAT16:
        a = a.astype(np.float32)
    return np.clip(a, lower, upper, out=out)


def _diagonal(a, offset=0, axis1=0, axis2=1):
    view = np.diagonal(a, offset, axis1, axis2)
    if a.flags.writeable:
        view.flags.writeable = True
    return view


def _sort(a, axis=-1, kind=None):
    if a.dtype == BFLOAT16:
        raise NotImplementedError("Sorting arrays with dtype 'bfloat16' is not supported")
    return np.sort(a, axis)


def _argsort(a, axis=-1, kind=None):
    if a.dtype == BFLOAT16:
        raise NotImplementedError("Sorting arrays with dtype 'bfloat16' is not supported")
    return np.argsort(a, axis, kind="stable")


def _einsum(*operands, **kwargs):
    arrays = [x for x in operands if isinstance(x, np.ndarray)]
    subscripts = operands[0] if isinstance(operands[0], str) else ""
    inputs, _, output = subscripts.replace(" ", "").partition("->")
    contracted = len(arrays) > 1 and set(inputs) - set(output) - {","}
    dtype = np.result_type(*arrays)
    if dtype == BFLOAT16 and contracted:
        # CuPy contracts through a product that does not know the type's code.
        raise TypeError("data type 'E' not understood")
    widened = [widen(x) if isinstance(x, np.ndarray) else x for x in operands]
    return narrow(np.einsum(*widened, **kwargs), dtype)


def _product(function):
    """Return a matrix product that accumulates half precision in float32."""

    def product(a, b, *args, **kwargs):
        if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
            raise TypeError(f"operands must be cupy.ndarray, not {type(a)} and {type(b)}")
        dtype = np.promote_types(a.dtype, b.dtype)
        return narrow(function(widen(a), widen(b), *args, **kwargs), dtype)

    return product


def _dot(a, b, out=None):
    return into(out, _product(np.dot)(a, b))


def matmul(x1, x2, *, out=None, dtype=None, casting="same_kind", **gufunc_arguments):
    for name, default in (("axes", None), ("axis", None), ("keepdims", False)):
        if gufunc_arguments.get(name, default) != default:
            raise NotImplementedError(f"the mock's matmul has no {name}")
    for operand in (x1, x2):
        if not isinstance(operand, np.ndarray):
            raise TypeError(f"operands of matmul must be cupy.ndarray, not {type(operand)}")
    result_type = np.promote_types(x1.dtype, x2.dtype) if dtype is None else np.dtype(dtype)
    if result_type == BFLOAT16 and max(x1.ndim, x2.ndim) > 2 and x1.size and x2.size:
        raise TypeError("data type 'E' not understood")  # CuPy 14.2 has no batched bfloat16
    (out,) = out if isinstance(out, tuple) else (out,)
    if out is not None and not np.can_cast(result_type, out.dtype, casting):
        raise TypeError(
            f"Cannot cast out dtype from {result_type!r} to {out.dtype!r} "
            f"according to the rule {casting!r}"
        )
    working_type = np.float32 if result_type in HALF_TYPES else result_type
    result = np.matmul(x1.astype(working_type), x2.astype(working_type))
    result = narrow(result, result_type, order="C")
    if out is None:
        return result
    if out.shape != result.shape:
        raise ValueError("Output array has an invalid size")
    out[...] = result
    return out


FUNCTIONS = {
    "argsort": _argsort,
    "around": _bfloat16_as(np.round, np.float32),
    "clip": _clip,
    "cumprod": _reduction(np.cumprod),
    "cumsum": _reduction(np.cumsum),
    "diagonal": _diagonal,
    "dot": _dot,
    "einsum": _einsum,
    "empty": _empty,
    "empty_like": _empty_like,
    "gradient": _bfloat16_as(np.gradient, np.float64),
    "inner": _product(np.inner),
    "is_available": lambda: True,
    "matmul": matmul,
    "mean": _reduction(np.mean),
    "outer": lambda a, b, out=None: into(out, np.outer(a, b)),
    "prod": _reduction(np.prod),
    "round": _bfloat16_as(np.round, np.float32),
    "sort": _sort,
    "std": _reduction(np.std, np.float64),
    "sum": _reduction(np.sum),
    "tensordot": _product(np.tensordot),
    "trace": _trace,
    "tril": _bfloat16_as(np.tril, np.float32),
    "triu": _bfloat16_as(np.triu, np.float32),
    "var": _reduction(np.var, np.float64),
    "vdot": _product(np.vdot),
}
