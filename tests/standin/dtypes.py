"""Data types by CuPy's rules: half precision and the choice of an elementwise loop."""

import functools

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALF_TYPES = (np.dtype(np.float16), BFLOAT16)


def quiet():
    """Return a context without NumPy's warnings on overflow and the like: a GPU gives none."""
    return np.errstate(all="ignore")


def checked_dtype(dtype):
    """Return a data type that CuPy has, else raise ValueError."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "biufc" and dtype != BFLOAT16:
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def widen(host):
    """Return a half precision array as float32, in which GPUs accumulate; others unchanged."""
    return host.astype(np.float32) if host.dtype in HALF_TYPES else host


def narrow(host, dtype, order=None):
    """Return a result rounded to a type."""
    with quiet():
        return np.asarray(np.asarray(host).astype(dtype, copy=False), order=order)


def into(out, host):
    """Store a result into ``out`` if given, by the casting rule of NumPy's functions."""
    if out is None:
        return host
    with quiet():
        np.copyto(out, host, casting="same_kind")
    return out


def dtype_of_code(code):
    """Return the type of a one-letter code; NumPy does not know that of bfloat16."""
    return BFLOAT16 if code == "E" else np.dtype(code)


@functools.cache
def loops(text):
    """Return the loops of an elementwise function, as pairs of input and output types."""
    return [
        tuple(tuple(map(dtype_of_code, part)) for part in loop.split("->"))
        for loop in text.split()[1:]
    ]


def rank(dtype):
    """Return the place of a type among bool, integer, real and complex types."""
    return {"b": 0, "i": 1, "u": 1, "f": 2, "V": 2, "c": 3}[dtype.kind]


def kind(operand):
    """Return the data type of an operand, or the class of a Python scalar."""
    if hasattr(operand, "dtype"):
        return operand.dtype
    return next((c for c in (bool, int, float) if isinstance(operand, c)), complex)


def candidates(operand, strongest):
    """Return the types of an operand, one of which must cast safely to that of a loop.

    Python scalars are weak: beside arrays of their kind or a higher one they stand for the
    smallest type of their own kind, and for bfloat16 with ml_dtypes 0.7. With older ones a Python
    float beside bfloat16 selects the float32 loop, since float16 does not cast safely to bfloat16.

    Parameters
    ----------
    operand : numpy.dtype or type
        As `kind` gives it.
    strongest : int
        Highest rank of the operands that are not Python scalars, -1 without any.
    """
    if isinstance(operand, np.dtype):
        return (operand,)
    if operand is bool:
        codes = "?"
    elif operand is int:
        codes = "bB" if strongest >= 1 else "l"
    elif operand is float:
        codes = "e" if strongest >= 2 else "d"
    else:
        codes = "F" if strongest >= 2 else "D"
    own = (BFLOAT16,) if codes == "e" and half_types_promote() else ()
    return (*map(np.dtype, codes), *own)


@functools.cache
def half_types_promote():
    """Return whether NumPy has a common type of float16 and bfloat16."""
    try:
        return np.promote_types(*HALF_TYPES) == np.float32
    except TypeError:
        return False


def find_loop(name, text, operands, dtype=None):
    """Return input and output types of the first loop that takes the operands."""
    return _find_loop(name, text, tuple(map(kind, operands)), dtype)


@functools.cache
def _find_loop(name, text, kinds, dtype):
    ranks = [rank(k) for k in kinds if isinstance(k, np.dtype)]
    options = [candidates(k, max(ranks, default=-1)) for k in kinds]
    for inputs, outputs in loops(text):
        if dtype is not None:
            if outputs[0] == np.dtype(dtype):
                return inputs, outputs
        elif all(
            any(np.can_cast(candidate, wanted) for candidate in types)
            for types, wanted in zip(options, inputs, strict=True)
        ):
            return inputs, outputs
    wrong = tuple(types[0] for types in options)
    raise TypeError(f"Wrong type ({wrong}) of arguments for cupy_{name}")
