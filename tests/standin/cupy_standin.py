"""A stand-in for CuPy that needs no GPU: NumPy arithmetic under CuPy's names and rules.

Code for CuPy mostly fails on a GPU for reasons that have nothing to do with arithmetic: a name
or an argument that CuPy lacks, an array that is still on the host, a ``float(norm)`` that waits
for the device in every iteration, bfloat16 that silently becomes float64. The stand-in keeps
exactly these rules, so tests on the host find such faults:

- names and signatures are those of CuPy 14.2, from the record beside this file;
- no implicit transfer: ``np.asarray(x)`` and operands of type ``np.ndarray`` raise TypeError;
- what waits for the device is counted by `syncs` and raises inside `no_sync`;
- result types follow CuPy's loops, where ``bfloat16 * 1.5`` is float32;
- linear algebra returns NaN where cuSOLVER fails, and does not raise.

Use it as::

    from standin import cupy_standin

    def test_no_transfer():
        with cupy_standin.installed() as cupy:
            x = cupy.asarray(numpy_array)
            with cupy_standin.no_sync():
                y = function_under_test(x)
            assert y.dtype == x.dtype

The rules were compared with CuPy 14.2 itself, whose argument checks and type resolution run
without a GPU. Where the stand-in deviates it is stricter, or raises NotImplementedError. It does
not keep CuPy's memory layout of matrix factorizations, its rounding, streams or several devices.
"""

import ast
import contextlib
import functools
import importlib.machinery
import inspect
import json
import re
import sys
import types
import warnings
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import scipy.linalg

from .elementwise import Evaluator

__all__ = [
    "Call",
    "HostSynchronization",
    "calls",
    "install",
    "installed",
    "no_sync",
    "reset",
    "syncs",
    "uninstall",
]

RECORD = json.loads(Path(__file__).with_name("cupy-14.2.0.json").read_text(encoding="ascii"))
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALF_TYPES = (np.dtype(np.float16), BFLOAT16)


# Synchronizations and calls ------------------------------------------------------------------


class HostSynchronization(RuntimeError):
    """The host waited for the device inside `no_sync`."""


class Call(NamedTuple):
    """One call of a CuPy function: its name, and type and shape of what came in and out."""

    name: str
    inputs: tuple
    outputs: tuple


class _State:
    """What the stand-in counts; there is one instance."""

    def __init__(self):
        self.syncs = 0
        self.forbidden = False
        self.calls = []
        self.errors = dict.fromkeys(("divide", "over", "under", "invalid", "linalg"))
        self.random = np.random.default_rng(0)


_state = _State()


def syncs():
    """Return how often the host waited for the device since `reset`."""
    return _state.syncs


def calls(name=None):
    """Return the calls since `reset`, or those of one name such as ``"linalg.svd"``."""
    return [call for call in _state.calls if name is None or call.name == name]


def reset():
    """Forget all counts and calls, and seed the random numbers again."""
    _state.__init__()


@contextlib.contextmanager
def no_sync():
    """Raise `HostSynchronization` where the host would wait for the device."""
    before, _state.forbidden = _state.forbidden, True
    try:
        yield
    finally:
        _state.forbidden = before


def _synchronize(reason):
    _state.syncs += 1
    _log(f"synchronize: {reason}", (), None)
    if _state.forbidden:
        raise HostSynchronization(f"{reason} waits for the device")


def _arrays_in(value):
    if isinstance(value, ndarray):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _arrays_in(item)
    elif isinstance(value, dict):
        yield from _arrays_in(list(value.values()))


def _log(name, inputs, outputs):
    described = [
        tuple((array.dtype.name, array.shape) for array in _arrays_in(values))
        for values in (inputs, outputs)
    ]
    _state.calls.append(Call(name, *described))


# Between the stand-in's arrays and NumPy -----------------------------------------------------


def _device(host):
    """Return a NumPy result as the stand-in's arrays, sharing memory."""
    if isinstance(host, np.ndarray | np.generic | bool | int | float | complex):
        array = object.__new__(ndarray)
        array._host = np.asarray(host)
        return array
    if isinstance(host, list | tuple):
        return (list if isinstance(host, list) else tuple)(map(_device, host))
    return host


def _host(value):
    """Return an argument for NumPy; NumPy's own arrays are not allowed on the device."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, list | tuple):
        return type(value)(map(_host, value))
    if isinstance(value, dict):
        return {key: _host(item) for key, item in value.items()}
    return value


def _quiet():
    """Return a context without NumPy's warnings on overflow and the like: a GPU gives none."""
    return np.errstate(all="ignore")


def _checked_dtype(dtype):
    dtype = np.dtype(dtype)
    if dtype.kind not in "?biufcV" or (dtype.kind == "V" and dtype != BFLOAT16):
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def _widen(host):
    """Return a half precision array as float32, in which GPUs accumulate; others unchanged."""
    return host.astype(np.float32) if host.dtype in HALF_TYPES else host


def _narrow(host, dtype, order=None):
    with _quiet():
        return np.asarray(np.asarray(host).astype(dtype, copy=False), order=order)


def _into(out, host):
    """Store a result into ``out`` if given, by the casting rule of NumPy's functions."""
    if out is None:
        return host
    with _quiet():
        np.copyto(out, host, casting="same_kind")
    return out


# Type resolution of elementwise functions ----------------------------------------------------


def _dtype_of_code(code):
    return BFLOAT16 if code == "E" else np.dtype(code)


@functools.cache
def _loops(text):
    """Return the recorded loops, as pairs of tuples of input and output types."""
    return [
        tuple(tuple(map(_dtype_of_code, part)) for part in loop.split("->"))
        for loop in text.split()[1:]
    ]


def _rank(dtype):
    return {"b": 0, "i": 1, "u": 1, "f": 2, "V": 2, "c": 3}[dtype.kind]


def _candidates(operand, strongest):
    """Return the types of which one must cast safely to that of a loop.

    Python scalars are weak: beside arrays of their kind or a higher one they stand for the
    smallest type of their own kind. Since float16 does not cast safely to bfloat16, a Python
    float beside bfloat16 selects the float32 loop.

    Parameters
    ----------
    operand : ndarray, NumPy scalar or Python scalar
    strongest : int or None
        Highest rank of the operands that are not Python scalars.
    """
    if hasattr(operand, "dtype"):
        return (operand.dtype,)
    if isinstance(operand, bool):
        return (np.dtype(bool),)
    if isinstance(operand, int):
        return tuple(map(np.dtype, "l" if strongest in (None, 0) else "bB"))
    if isinstance(operand, float):
        return (np.dtype("e" if strongest is not None and strongest >= 2 else "d"),)
    return (np.dtype("F" if strongest is not None and strongest >= 2 else "D"),)


def _find_loop(name, loops, operands, dtype=None):
    """Return input and output types of the first loop that takes the operands."""
    ranks = [_rank(operand.dtype) for operand in operands if hasattr(operand, "dtype")]
    strongest = max(ranks, default=None)
    candidates = [_candidates(operand, strongest) for operand in operands]
    for inputs, outputs in loops:
        if dtype is not None:
            if outputs[0] == np.dtype(dtype):
                return inputs, outputs
        elif all(
            any(np.can_cast(candidate, wanted) for candidate in options)
            for options, wanted in zip(candidates, inputs, strict=True)
        ):
            return inputs, outputs
    wrong = tuple(options[0] for options in candidates)
    raise TypeError(f"Wrong type ({wrong}) of arguments for cupy_{name}")


def _sign(x):
    # CuPy compares with zero, so the sign of NaN is 0.
    return np.where(np.isnan(x), 0, np.sign(x))


_UFUNC_ON_HOST = {
    "fix": np.trunc,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sign": _sign,
    "where": np.where,
}


class ufunc:
    """An elementwise function with the loops of CuPy's."""

    def __init__(self, name, text):
        self.__name__ = name
        self._loops = _loops(text)
        self.types = text.split()[1:]
        self.nin, self.nout = map(len, self._loops[0])
        self.nargs = self.nin + self.nout

    def __repr__(self):
        return f"<ufunc 'cupy_{self.__name__}'>"

    def __call__(self, *args, out=None, dtype=None, **kwargs):
        name = self.__name__
        if kwargs and set(kwargs) != {"casting"}:
            raise TypeError(f"Wrong arguments {sorted(kwargs)} for cupy_{name}")
        if len(args) not in (self.nin, self.nargs):
            raise TypeError(
                f"Wrong number of arguments for 'cupy_{name}'. It must be either {self.nin} or "
                f"{self.nargs} (with outputs), but given {len(args)}."
            )
        outs = args[self.nin :] or (out if isinstance(out, tuple) else (out,) * self.nout)
        operands = args[: self.nin]
        for value in (*operands, *(value for value in outs if value is not None)):
            if not isinstance(value, ndarray | np.generic | bool | int | float | complex):
                raise TypeError(f"Unsupported type {type(value)}")
        input_types, output_types = _find_loop(name, self._loops, operands, dtype)
        results = self._compute(operands, input_types)
        returned = tuple(map(_store_output, outs, results, output_types))
        _log(name, operands, returned)
        return returned if self.nout > 1 else returned[0]

    def _compute(self, operands, input_types):
        function = _UFUNC_ON_HOST.get(self.__name__) or getattr(np, self.__name__)
        with _quiet():
            # Not `astype`, which would let a Python integer wrap around.
            hosts = [
                np.asarray(_host(x), dtype=dtype) if np.isscalar(x) else _host(x).astype(dtype)
                for x, dtype in zip(operands, input_types, strict=True)
            ]
            results = function(*map(_widen, hosts))
        return results if self.nout > 1 else (results,)

    def _missing(self, *args, **kwargs):
        raise NotImplementedError(f"the stand-in has no methods of cupy.{self.__name__}")

    accumulate = at = outer = reduce = reduceat = _missing


def _store_output(out, result, dtype):
    result = _narrow(result, dtype, order="C")
    if out is None:
        return _device(result)
    if not np.can_cast(dtype, out.dtype, "same_kind"):
        raise TypeError(
            f"Cannot cast output operand from {dtype!r} to {out.dtype!r} "
            "according to the rule 'same_kind'"
        )
    with _quiet():
        np.copyto(out._host, result, casting="unsafe")
    return out


# The array -----------------------------------------------------------------------------------


class Flags(NamedTuple):
    """Memory layout of an array."""

    c_contiguous: bool
    f_contiguous: bool
    owndata: bool

    def __getitem__(self, name):
        return getattr(self, name.lower())


class MemoryPointer(NamedTuple):
    """Address of an array; on the stand-in an address on the host."""

    ptr: int
    device_id: int = 0


def _index(key):
    """Return an index for NumPy, and whether CuPy returns a new array for it."""
    parts = key if isinstance(key, tuple) else (key,)
    converted, copies = [], False
    for part in parts:
        if isinstance(part, slice):
            bounds = (part.start, part.stop, part.step)
            part = slice(*(int(x) if isinstance(x, ndarray) else x for x in bounds))
        elif isinstance(part, ndarray | np.ndarray | list | tuple | bool | np.bool_):
            copies = True
            part = np.asarray(part._host if isinstance(part, ndarray) else part)
            if part.size == 0 and part.dtype == np.float64:
                part = part.astype(np.int64)
            if part.dtype == bool:
                # The number of selected elements decides the shape of the result.
                _synchronize("indexing with a mask")
        converted.append(part)
    if Ellipsis not in [part for part in converted if not isinstance(part, np.ndarray)]:
        converted.append(Ellipsis)  # makes NumPy return a 0-d view rather than a scalar
    return tuple(converted), copies


class ndarray:
    """The stand-in's array, on the device as far as its users can tell."""

    __slots__ = ("__weakref__", "_host")
    __array_priority__ = 100
    __hash__ = None

    def __new__(cls, shape, dtype=float, memptr=None, strides=None, order="C"):
        if memptr is not None or strides is not None:
            raise NotImplementedError("the stand-in has no memory pointers")
        self = object.__new__(cls)
        self._host = _empty(shape, dtype, order)
        return self

    __class_getitem__ = classmethod(types.GenericAlias)

    @property
    def shape(self):
        return self._host.shape

    @shape.setter
    def shape(self, shape):
        self._host = self._host.reshape(shape)

    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    strides = property(lambda self: self._host.strides)
    T = property(lambda self: _device(self._host.T))
    mT = property(lambda self: _device(self._host.mT))
    device = property(lambda self: Device(0))
    data = property(lambda self: MemoryPointer(self._host.ctypes.data))
    base = property(lambda self: None if self._host.base is None else _device(self._host.base))

    @property
    def flags(self):
        flags = self._host.flags
        return Flags(flags.c_contiguous, flags.f_contiguous, flags.owndata)

    @property
    def real(self):
        return _device(self._host.real) if self.dtype.kind == "c" else self

    @real.setter
    def real(self, value):
        self.real[...] = value

    @property
    def imag(self):
        if self.dtype.kind == "c":
            return _device(self._host.imag)
        return _device(np.zeros_like(self._host))

    @imag.setter
    def imag(self, value):
        if self.dtype.kind != "c":
            raise TypeError("cannot set imag of a real array")
        self.imag[...] = value

    # To the host.

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to "
            "construct a NumPy array explicitly."
        )

    def get(self, stream=None, order="C", out=None, blocking=True):
        if blocking:
            _synchronize("get()")
        if out is not None:
            out[...] = self._host
            return out
        return self._host.copy(order)

    def _to_scalar(self, convert):
        _synchronize(f"{convert.__name__}()")
        if self.ndim:
            raise TypeError("only 0-dimensional arrays can be converted to Python scalars")
        return convert(self._host)

    def __float__(self):
        return self._to_scalar(float)

    def __int__(self):
        return self._to_scalar(int)

    def __complex__(self):
        return self._to_scalar(complex)

    def __bool__(self):
        _synchronize("bool()")
        return bool(self._host) if self.size else False

    def item(self):
        _synchronize("item()")
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self._host.item()

    def tolist(self):
        _synchronize("tolist()")
        return self._host.tolist()

    def tobytes(self, order="C"):
        _synchronize("tobytes()")
        return self._host.tobytes(order)

    def __bytes__(self):
        return self.tobytes()

    def __repr__(self):
        _synchronize("repr()")
        return repr(self._host)

    def __str__(self):
        _synchronize("str()")
        return str(self._host)

    def __format__(self, format_spec):
        return format(str(self) if self.ndim else self.item(), format_spec)

    def __reduce__(self):
        raise NotImplementedError("the stand-in's arrays cannot be pickled")

    def __dlpack__(self, **kwargs):
        raise NotImplementedError("the stand-in's arrays are not in device memory")

    def __dlpack_device__(self):
        return (2, 0)

    # Elements.

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key):
        index, copies = _index(key)
        result = self._host[index]
        result = _device(result.copy() if copies else result)
        if copies:
            _log("getitem", self, result)
        return result

    def __setitem__(self, key, value):
        index, advanced = _index(key)
        if isinstance(value, ndarray):
            host = value._host
        elif advanced or np.ndim(value) == 0:
            host = np.asarray(value, dtype=None if isinstance(value, complex) else self.dtype)
        else:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        with _quiet():
            self._host[index] = host
        _log("setitem", (self, value), None)

    def fill(self, value):
        if isinstance(value, ndarray):
            _synchronize("fill() with an array")
            value = value._host
        self[...] = value

    def set(self, arr, stream=None):
        if not isinstance(arr, np.ndarray):
            raise TypeError(f"Only numpy.ndarray can be set to cupy.ndarray, not {type(arr)}")
        if arr.dtype != self.dtype or arr.shape != self.shape:
            raise ValueError("type and shape of the array must match")
        self._host[...] = arr

    # Copies and views.

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def copy(self, order="C"):
        return _device(self._host.copy(order))

    def flatten(self, order="C"):
        return _device(self._host.flatten(order))

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        for name, value in (("casting", casting), ("subok", subok)):
            if value is not None:
                raise TypeError(f"{name} is not supported yet")
        dtype = _checked_dtype(dtype)
        if dtype == self.dtype and not copy:
            return self
        with _quiet():
            result = _device(self._host.astype(dtype, order=order))
        _log("astype", self, result)
        return result

    def view(self, dtype=None, type=None):
        return _device(self._host.view() if dtype is None else self._host.view(dtype))

    def reshape(self, *shape, order="C", copy=None):
        if len(shape) == 1 and isinstance(shape[0], list | tuple):
            (shape,) = shape
        return _device(np.reshape(self._host, shape, order=order))

    def transpose(self, *axes):
        return _device(self._host.transpose(*axes))

    def conj(self):
        return conjugate(self) if self.dtype.kind == "c" else self

    conjugate = conj

    def sort(self, axis=-1, kind=None):
        self._host[...] = _HOST_FUNCTIONS["sort"](self._host, axis)

    # Dispatch of NumPy's functions.

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        name = ufunc.__name__
        function = getattr(_modules()["cupy"], name, None)
        if function is None or method != "__call__":
            return NotImplemented
        if name in _COMPARISONS.values():
            # NumPy hands over its scalars as arrays when it compares them.
            inputs = [_without_array(value) for value in inputs]
        return function(*inputs, **kwargs)

    def __array_function__(self, function, classes, args, kwargs):
        path = re.sub(r"^numpy\b", "cupy", function.__module__)
        target = getattr(_modules().get(path), function.__name__, None)
        if target is None or not all(issubclass(c, ndarray | np.ndarray) for c in classes):
            return NotImplemented
        return target(*args, **kwargs)

    # Operators that are not a plain elementwise function; `_add_operators` adds the others.

    def __matmul__(self, other):
        return _modules()["cupy"].matmul(self, other)

    def __rmatmul__(self, other):
        return _modules()["cupy"].matmul(other, self)

    def __divmod__(self, other):
        return self // other, self % other

    def __rdivmod__(self, other):
        return other // self, other % self

    def __pow__(self, other, modulo=None):
        # CuPy takes a short cut for these exponents, and there a float is a float64.
        if isinstance(other, float) and other in (2.0, 0.5, -1.0) and self.dtype == BFLOAT16:
            self = self.astype(np.float64)
        return _UFUNCS["power"](self, other)


_COMPARISONS = {
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
}


def _without_array(value):
    return value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _compared(name):
    def method(self, other):
        if other is None:
            return _device(np.full(self.shape, name == "not_equal"))
        return _UFUNCS[name](self, _without_array(other))

    return method


def _add_operators():
    for operator, name in (
        ("add", "add"),
        ("sub", "subtract"),
        ("mul", "multiply"),
        ("truediv", "true_divide"),
        ("floordiv", "floor_divide"),
        ("mod", "remainder"),
        ("pow", "power"),
        ("and", "bitwise_and"),
        ("or", "bitwise_or"),
        ("xor", "bitwise_xor"),
        ("lshift", "left_shift"),
        ("rshift", "right_shift"),
    ):

        def forward(self, other, name=name):
            return _UFUNCS[name](self, other)

        def backward(self, other, name=name):
            return _UFUNCS[name](other, self)

        def in_place(self, other, name=name):
            return _UFUNCS[name](self, other, out=self)

        if operator != "pow":
            setattr(ndarray, f"__{operator}__", forward)
        setattr(ndarray, f"__r{operator}__", backward)
        setattr(ndarray, f"__i{operator}__", in_place)
    for operator, name in _COMPARISONS.items():
        setattr(ndarray, f"__{operator}__", _compared(name))
    for operator, name in (("neg", "negative"), ("abs", "absolute"), ("invert", "invert")):
        setattr(ndarray, f"__{operator}__", lambda self, name=name: _UFUNCS[name](self))
    ndarray.__pos__ = ndarray.copy


# Functions on NumPy arrays, where NumPy's own do not keep CuPy's rules ------------------------


def _empty(shape, dtype=float, order="C"):
    """Return NaN rather than zeros by chance, so that reading too early is seen."""
    host = np.zeros(shape, _checked_dtype(dtype), order)
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
            return _into(out, function(a, axis=axis, dtype=dtype, **kwargs))
        result_type = dtype
        if dtype is None:
            result_type = a.dtype
            if a.dtype == BFLOAT16 and bfloat16_result is not None:
                result_type = bfloat16_result
        accumulator = np.result_type(np.float32, result_type)
        result = function(_widen(a), axis=axis, dtype=accumulator, **kwargs)
        return _into(out, _narrow(result, result_type))

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
    return _into(out, _HOST_FUNCTIONS["sum"](diagonal, -1, dtype))


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
    widened = [_widen(x) if isinstance(x, np.ndarray) else x for x in operands]
    return _narrow(np.einsum(*widened, **kwargs), dtype)


def _product(function):
    """Return a matrix product that accumulates half precision in float32."""

    def product(a, b, *args):
        if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
            raise TypeError(f"operands must be cupy.ndarray, not {type(a)} and {type(b)}")
        dtype = np.promote_types(a.dtype, b.dtype)
        return _narrow(function(_widen(a), _widen(b), *args), dtype)

    return product


def _dot(a, b, out=None):
    return _into(out, _product(np.dot)(a, b))


def _matmul(x1, x2, *, out=None, dtype=None, casting="same_kind", **gufunc_arguments):
    for name, default in (("axes", None), ("axis", None), ("keepdims", False)):
        if gufunc_arguments.get(name, default) != default:
            raise NotImplementedError(f"the stand-in's matmul has no {name}")
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
    result = _narrow(result, result_type, order="C")
    if out is None:
        return result
    if out.shape != result.shape:
        raise ValueError("Output array has an invalid size")
    out[...] = result
    return out


_HOST_FUNCTIONS = {
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
    "matmul": _matmul,
    "mean": _reduction(np.mean),
    "outer": lambda a, b, out=None: _into(out, np.outer(a, b)),
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


# Linear algebra ------------------------------------------------------------------------------


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
    if _state.errors["linalg"] == "raise":
        _synchronize(f"the check of {routine}")
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


def _cholesky(a):
    _require_matrices(a, square=True)
    working_type, result_type = _working_types(a)

    def factor(matrix):
        if matrix.size == 0:
            return (matrix,), False
        (potrf,) = scipy.linalg.get_lapack_funcs(("potrf",), (matrix,))
        result, info = potrf(matrix, lower=True, clean=True)
        return (np.tril(np.full_like(matrix, np.nan)) if info else result,), bool(info)

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
        nan = [np.full(s, np.nan) for s in ((rows, left), (rank,), (right, columns))]
        if rank == 0:
            return (np.eye(rows, left), np.zeros(0), np.eye(right, columns)), False
        if not np.isfinite(matrix).all():
            return nan, True
        try:
            return scipy.linalg.svd(matrix, full_matrices, check_finite=False), False
        except np.linalg.LinAlgError:
            return nan, True

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
        if not np.isfinite(matrix).all():
            return (np.full(len(matrix), np.nan), np.full_like(matrix, np.nan)), True
        return scipy.linalg.eigh(matrix, lower=UPLO == "L", check_finite=False), False

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
    return _solve(a, np.broadcast_to(np.eye(a.shape[-1], dtype=working_type), a.shape))


def _pinv(a, rcond=1e-15):
    u, s, vh = _svd(a.conj(), full_matrices=False)
    small = s <= np.asarray(rcond * s.max(axis=-1))[..., None]
    inverse = np.where(small, 0, 1 / s).astype(s.dtype)
    return np.matmul(vh.mT, inverse[..., None] * u.mT)


def _lstsq(a, b, rcond=None):
    _synchronize("linalg.lstsq")
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
            return _narrow(result.reshape((1,) * x.ndim) if keepdims else result, x.dtype)
    result = np.linalg.norm(_widen(x), ord, axis, keepdims)
    return _narrow(result, np.dtype(x.dtype.char.lower()))


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


def _eigenvalues(vectors):
    def function(a):
        _require_matrices(a, square=True)
        working_type, result_type = _working_types(a)
        result_type = np.promote_types(result_type, np.complex64)
        w, v = np.linalg.eig(a.astype(working_type))
        return (w.astype(result_type), v.astype(result_type)) if vectors else w.astype(result_type)

    return function


def _cond(x, p=None):
    _synchronize("linalg.cond")
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
        result = _matmul(result, M)
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
        _synchronize("check_finite")
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ValueError("array must not contain infs or NaNs")
    operation = {"N": 0, "T": 1, "C": 2}.get(trans, trans)

    def solve(matrix, right):
        columns = right if right.ndim == 2 else right[:, None]
        (trsm,) = scipy.linalg.get_blas_funcs(("trsm",), (matrix, columns))
        # Divides by a zero on the diagonal, as cuBLAS does.
        result = trsm(
            1, matrix, columns, lower=lower, trans_a=operation, diag=bool(unit_diagonal)
        )
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


_HOST_FUNCTIONS |= {
    "linalg.cholesky": _cholesky,
    "linalg.cond": _cond,
    "linalg.cross": np.cross,
    "linalg.det": _through_numpy("det"),
    "linalg.eig": _eigenvalues(vectors=True),
    "linalg.eigh": _eigh,
    "linalg.eigvals": _eigenvalues(vectors=False),
    "linalg.eigvalsh": lambda a, UPLO="L": _eigh(a, UPLO)[0],
    "linalg.inv": _inv,
    "linalg.lstsq": _lstsq,
    "linalg.matmul": _matmul,
    "linalg.matrix_power": _matrix_power,
    "linalg.matrix_rank": _matrix_rank,
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


# Functions on the stand-in's arrays ----------------------------------------------------------


def _array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    """Create an array; the only functions that take arrays from the host come here."""
    if isinstance(obj, ndarray):
        target = obj.dtype if dtype is None else _checked_dtype(dtype)
        right_order = {"C": obj.flags.c_contiguous, "F": obj.flags.f_contiguous}.get(order, True)
        if copy or target != obj.dtype or not right_order or obj.ndim < ndmin:
            if copy is False:
                raise ValueError("Unable to avoid copy while creating an array as requested.")
            with _quiet():
                return _device(np.array(obj._host, target, order=order, ndmin=ndmin))
        return obj
    leaves = list(_arrays_in(obj))
    if leaves:
        if len(leaves) != len(list(_leaves(obj))):
            leaves[0].__array__()
        obj = _nested_hosts(obj)
    host = np.array(obj, order=order, ndmin=ndmin, dtype=dtype)
    _checked_dtype(host.dtype)
    return _device(host)


def _leaves(value):
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _nested_hosts(value):
    if isinstance(value, list | tuple):
        return [_nested_hosts(item) for item in value]
    return value._host


def _asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return _array(a, dtype, copy, order or "K", blocking=blocking)


def _asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    return np.asarray(a, order=order)


def _contiguous(order):
    def function(a, dtype=None):
        if not isinstance(a, ndarray):
            raise TypeError(f"Argument 'a' has incorrect type {type(a)}")
        return _array(a, dtype, None, order, ndmin=1)

    return function


def _where(condition, x=None, y=None):
    if x is None and y is None:
        return _modules()["cupy"].nonzero(condition)
    if x is None or y is None:
        raise ValueError("Must provide both 'x' and 'y' or neither.")
    return _WHERE(condition.astype(bool, copy=False), x, y)


def _astype(x, dtype, *, copy=True):
    return x.astype(dtype, copy=copy)


def _get_array_module(*args):
    found = any(isinstance(argument, ndarray) for argument in args)
    return _modules()["cupy"] if found else np


def _seterr(**kwargs):
    before = dict(_state.errors)
    _state.errors.update({key: value for key, value in kwargs.items() if value is not None})
    return before


@contextlib.contextmanager
def _errstate(**kwargs):
    before = _seterr(**kwargs)
    try:
        yield
    finally:
        _state.errors.update(before)


_DEVICE_FUNCTIONS = {
    "array": _array,
    "asanyarray": _asarray,
    "asarray": _asarray,
    "ascontiguousarray": _contiguous("C"),
    "asfortranarray": _contiguous("F"),
    "asnumpy": _asnumpy,
    "astype": _astype,
    "get_array_module": _get_array_module,
    "where": _where,
    "cupyx.errstate": _errstate,
    "cupyx.geterr": lambda: dict(_state.errors),
    "cupyx.seterr": _seterr,
}

# Functions that take what is not on the device, and return what is not on the device.
_TAKES_ANYTHING = {
    "can_cast",
    "empty_like",
    "full_like",
    "iscomplexobj",
    "isdtype",
    "isrealobj",
    "isscalar",
    "issubdtype",
    "ndim",
    "ones_like",
    "promote_types",
    "result_type",
    "shape",
    "size",
    "zeros_like",
}
_RETURNS_HOST = {
    "binary_repr",
    "broadcast_shapes",
    "can_cast",
    "common_type",
    "is_available",
    "iscomplexobj",
    "isdtype",
    "isfortran",
    "isrealobj",
    "isscalar",
    "issubdtype",
    "may_share_memory",
    "min_scalar_type",
    "ndim",
    "promote_types",
    "result_type",
    "shape",
    "shares_memory",
    "size",
}
# These look at values on the host, to decide a shape or whether to warn.
_SYNCHRONIZES = {
    "argwhere",
    "array2string",
    "array_repr",
    "array_str",
    "asarray_chkfinite",
    "choose",
    "compress",
    "extract",
    "flatnonzero",
    "histogram",
    "nanmax",
    "nanmin",
    "nonzero",
    "unique",
    "unravel_index",
}
# Arguments that must be on the host, and arguments for which CuPy fetches an array.
_HOST_ARGUMENTS = {
    "M",
    "N",
    "UPLO",
    "axes",
    "axis",
    "axis1",
    "axis2",
    "ddof",
    "decimals",
    "k",
    "keepdims",
    "mode",
    "newshape",
    "num",
    "offset",
    "ord",
    "order",
    "reps",
    "shape",
}
_FETCHED_ARGUMENTS = {"repeats", "start", "step", "stop"}
# Arguments that must be an array on the device, by their names in CuPy's signatures.
_ARRAY_ARGUMENTS = {"M", "a", "arr", "array", "m", "x", "x1", "x2"}


# Binding calls against the recorded signatures ------------------------------------------------


@functools.cache
def _signature(text):
    """Return a recorded signature such as ``(a, axis=None)``."""
    arguments = ast.parse(f"lambda {text[1:-1]}: None", mode="eval").body.args
    kinds = inspect.Parameter
    positional = [
        *((argument, kinds.POSITIONAL_ONLY) for argument in arguments.posonlyargs),
        *((argument, kinds.POSITIONAL_OR_KEYWORD) for argument in arguments.args),
    ]
    missing = [None] * (len(positional) - len(arguments.defaults))
    listed = [
        (argument, kind, default)
        for (argument, kind), default in zip(
            positional, [*missing, *arguments.defaults], strict=True
        )
    ]
    if arguments.vararg:
        listed.append((arguments.vararg, kinds.VAR_POSITIONAL, None))
    listed += [
        (argument, kinds.KEYWORD_ONLY, default)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg:
        listed.append((arguments.kwarg, kinds.VAR_KEYWORD, None))
    return inspect.Signature(
        [
            kinds(
                argument.arg,
                kind,
                default=kinds.empty if default is None else ast.literal_eval(default),
            )
            for argument, kind, default in listed
        ]
    )


def _bind(name, text, args, kwargs):
    if text == "?":
        return {}
    try:
        return _signature(text).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise TypeError(f"{name}() {error}") from None


def _check_arguments(name, arguments):
    """Raise for arguments on the wrong side, as far as their names tell."""
    short = name.rpartition(".")[2]
    in_linalg = "linalg." in name
    for key, value in arguments.items():
        if key in _HOST_ARGUMENTS and any(_arrays_in(value)) and key not in _ARRAY_ARGUMENTS:
            raise TypeError("'ndarray' object cannot be interpreted as an integer")
        if key in _FETCHED_ARGUMENTS and any(_arrays_in(value)):
            _synchronize(f"{name}({key}=array)")
        if short in _TAKES_ANYTHING or isinstance(value, ndarray):
            continue
        if in_linalg and key in ("a", "b") and not name.endswith("cross"):
            raise np.linalg.LinAlgError("cupy.linalg only supports cupy.ndarray")
        if key in _ARRAY_ARGUMENTS and (key != "M" or in_linalg):
            raise TypeError(f"{name}() takes a cupy.ndarray, not {type(value)}")


def _implementation(name):
    """Return NumPy's function of a name, or one of the above that replaces it."""
    if name in _HOST_FUNCTIONS:
        return _HOST_FUNCTIONS[name]
    module, _, short = name.rpartition(".")
    with contextlib.suppress(AttributeError), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return getattr(getattr(np, module) if module else np, short)
    raise NotImplementedError(f"the stand-in has no host implementation of {name}")


def _call_host(name, args, kwargs):
    """Call a function of NumPy arrays with the stand-in's."""
    function = _implementation(name)
    short = name.rpartition(".")[2]
    if short in _SYNCHRONIZES:
        _synchronize(f"{short}()")
    if short in _TAKES_ANYTHING:
        hosts = [x._host if isinstance(x, ndarray) else x for x in args]
        host_kwargs = kwargs
    else:
        hosts, host_kwargs = _host(list(args)), _host(kwargs)
    with _quiet():
        result = function(*hosts, **host_kwargs)
    if short in _RETURNS_HOST:
        return result
    out = kwargs.get("out")
    out = out[0] if isinstance(out, tuple) and len(out) == 1 else out
    if not isinstance(out, ndarray):
        out = next((x for x in args if isinstance(x, ndarray) and x._host is result), None)
    returned = _device(result) if out is None else out
    _log(name, (args, kwargs), returned)
    return returned


def _function(name, text):
    """Return the function of a name as CuPy's."""

    def function(*args, **kwargs):
        arguments = _bind(function.__name__, text, args, kwargs)
        if name in _DEVICE_FUNCTIONS:
            result = _DEVICE_FUNCTIONS[name](*args, **kwargs)
            _log(name, (args, kwargs), result)
            return result
        _check_arguments(name, arguments)
        return _call_host(name, args, kwargs)

    function.__name__ = function.__qualname__ = name.rpartition(".")[2]
    function.__module__ = "cupy"
    if text != "?":
        function.__signature__ = _signature(text)
    return function


def _method(name, text):
    """Return an array method that CuPy also has as a function."""

    def method(self, *args, **kwargs):
        _check_arguments(name, _bind(name, text, args, kwargs))
        return _call_host(name, (self, *args), kwargs)

    method.__name__ = name
    return method


def _bound(own, text):
    """Return a method of this file that binds its arguments as CuPy's does."""

    @functools.wraps(own)
    def method(self, *args, **kwargs):
        _check_arguments(own.__name__, _bind(own.__name__, text, args, kwargs))
        return own(self, *args, **kwargs)

    return method


def _add_methods():
    """Complete the array by the recorded methods."""
    for name, text in RECORD["cupy.ndarray"].items():
        if not text.startswith("(") or name.startswith("__"):
            continue
        own = vars(ndarray).get(name)
        setattr(ndarray, name, _method(name, text) if own is None else _bound(own, text))


_UFUNCS = {name: ufunc(name, text) for name, text in RECORD["cupy"].items() if "->" in text}
_WHERE = ufunc("where", RECORD["loops"]["where"])
conjugate = _UFUNCS["conjugate"]
_add_operators()
_add_methods()
ndarray.__module__ = ufunc.__module__ = "cupy"


# Kernels -------------------------------------------------------------------------------------


class ElementwiseKernel:
    """An elementwise kernel whose operation is evaluated on the host."""

    def __init__(
        self,
        in_params,
        out_params,
        operation,
        name="kernel",
        reduce_dims=True,
        preamble="",
        no_return=False,
        return_tuple=False,
        **kwargs,
    ):
        if preamble or set(kwargs) - {"options"}:
            raise NotImplementedError("the stand-in's kernels have no preamble and no loop parts")
        self.in_params = self._parameters(in_params)
        self.out_params = self._parameters(out_params)
        self.nin, self.nout = len(self.in_params), len(self.out_params)
        self.nargs = self.nin + self.nout
        self.operation, self.name = operation, name
        self.no_return, self.return_tuple = no_return, return_tuple

    @staticmethod
    def _parameters(text):
        parameters = [tuple(part.split()) for part in text.split(",") if part.strip()]
        if any(len(parameter) != 2 for parameter in parameters):
            raise NotImplementedError("the stand-in's kernels have no raw parameters")
        return parameters

    def __call__(self, *args, **kwargs):
        if set(kwargs) - {"size", "block_size", "stream"}:
            raise TypeError(f"Wrong arguments {sorted(kwargs)}")
        if len(args) not in (self.nin, self.nargs):
            raise TypeError(
                f"Wrong number of arguments for '{self.name}'. It must be either {self.nin} or "
                f"{self.nargs} (with outputs), but given {len(args)}."
            )
        for value in args:
            if not isinstance(value, ndarray | np.generic | bool | int | float | complex):
                raise TypeError(f"Unsupported type {type(value)}")
        parameters = self.in_params + self.out_params
        letters = self._resolve(parameters, args)
        dtypes = {
            name: letters[declared] if len(declared) == 1 else np.dtype(declared)
            for declared, name in parameters
        }
        values = {
            name: np.asarray(_host(value), dtype=dtypes[name])
            for (_, name), value in zip(parameters, args, strict=False)
        }
        outs = self._outputs(args, values, dtypes)
        with _quiet():
            Evaluator(self.operation, values, dtypes, letters).run()
            for out, (_, name) in zip(outs, self.out_params, strict=True):
                out._host[...] = values[name]
        _log(self.name, args[: self.nin], outs)
        if self.no_return:
            return None
        return tuple(outs) if self.nout > 1 or self.return_tuple else outs[0]

    @staticmethod
    def _resolve(parameters, args):
        """Return what the type letters stand for; only arrays decide."""
        letters = {}
        for (declared, name), value in zip(parameters, args, strict=False):
            if not isinstance(value, ndarray):
                continue
            expected = (
                letters.setdefault(declared, value.dtype)
                if len(declared) == 1
                else np.dtype(declared)
            )
            if value.dtype != expected:
                raise TypeError(f"Type is mismatched. {name} {value.dtype} {expected} {declared}")
        return letters

    def _outputs(self, args, values, dtypes):
        arrays = [value for value in args if isinstance(value, ndarray)]
        if not arrays:
            raise ValueError("Loop size is undecided.")
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
        outs = args[self.nin :] or [ndarray(shape, dtypes[name]) for _, name in self.out_params]
        for out, (_, name) in zip(outs, self.out_params, strict=True):
            if out.shape != shape:
                raise ValueError("operands could not be broadcast together")
            values.setdefault(name, out._host)
        return outs


# Random numbers ------------------------------------------------------------------------------


class _Sampler:
    """Random numbers by CuPy's names, from one NumPy generator."""

    _names = types.MappingProxyType(
        {
            "rand": "random",
            "randn": "standard_normal",
            "ranf": "random",
            "sample": "random",
            "random_sample": "random",
            "randint": "integers",
            "random_integers": "integers",
        }
    )

    def __init__(self, seed=None, method=None):
        self._numpy = np.random.default_rng(seed)

    def draw(self, name, *args, dtype=None, **kwargs):
        if name in ("rand", "randn"):
            args = (args,)
        function = getattr(self._numpy, self._names.get(name, name))
        result = function(*_host(list(args)), **_host(kwargs))
        if dtype is not None:
            if np.dtype(dtype).kind == "f" and np.dtype(dtype) not in (np.float32, np.float64):
                raise TypeError("cupy.random only supports float32 and float64")
            result = np.asarray(result).astype(dtype)
        return None if name == "shuffle" else _device(result)

    @classmethod
    def function(cls, name, text, owner):
        """Return a method (with ``owner``) or a function that draws."""

        def draw(*args, **kwargs):
            self, args = (args[0], args[1:]) if owner else (_state, args)
            arguments = dict(_bind(name, text, args, kwargs))
            if name == "shuffle":
                raise NotImplementedError("the stand-in does not shuffle")
            # By name, since NumPy orders some arguments otherwise; sizes may be open-ended.
            positional = arguments.pop("size", ()) if name in ("rand", "randn") else ()
            arguments.update(arguments.pop("kwargs", {}))
            sampler = self if owner else cls._of(_state.random)
            if name in ("rand", "randn"):
                result = sampler.draw(name, *positional, **arguments)
            else:
                result = sampler.draw(name, **arguments)
            _log(f"random.{name}", (), result)
            return result

        draw.__name__ = name
        return draw

    @classmethod
    def _of(cls, generator):
        sampler = object.__new__(cls)
        sampler._numpy = generator
        return sampler


def _sampler_class(path):
    def seed(self, seed=None):
        self._numpy = np.random.default_rng(seed)

    members = {
        name: _Sampler.function(name, text, owner=True)
        for name, text in RECORD[path].items()
        if text.startswith("(") and not name.startswith("__")
    }
    return type(path.rpartition(".")[2], (_Sampler,), members | {"seed": seed})


def _seed(seed=None):
    _state.random = np.random.default_rng(seed)


# Devices -------------------------------------------------------------------------------------


class Device:
    """A device; there is only the first one. Like CuPy's, it cannot be hashed."""

    __hash__ = None

    def __init__(self, device=None):
        self.id = int(getattr(device, "id", device) or 0)

    def __eq__(self, other):
        return isinstance(other, Device) and other.id == self.id

    def __int__(self):
        return self.id

    def __enter__(self):
        if self.id != 0:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        return self

    def __exit__(self, *exception):
        return None

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    def use(self):
        return self.__enter__()

    def synchronize(self):
        _synchronize("Device.synchronize()")

    compute_capability = "90"


class Stream:
    """A stream; all work is done at once, so it has nothing to order."""

    null = None

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None

    def use(self):
        return self

    def record(self, event=None):
        return Event() if event is None else event

    def wait_event(self, event):
        return None

    def synchronize(self):
        _synchronize("Stream.synchronize()")

    done = True


Stream.null = Stream()


class Event:
    """An event; it has always happened."""

    done = True

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        pass

    def record(self, stream=None):
        return None

    def synchronize(self):
        _synchronize("Event.synchronize()")


# The module tree -----------------------------------------------------------------------------


def _unavailable(path):
    """Return a class that CuPy has and the stand-in does not."""

    def __init__(self, *args, **kwargs):
        raise NotImplementedError(f"the stand-in has no {path}")

    return type(path.rpartition(".")[2], (), {"__init__": __init__})


def _member(path, name, text, submodules):
    """Return one recorded member of a module; None if the stand-in leaves it out."""
    full = f"{path}.{name}"
    if full in submodules:
        return submodules[full]
    if text.startswith("const "):
        literal = text.removeprefix("const ")
        return {"None": None, "False": False}.get(literal) if literal[0] in "NF" else float(literal)
    if text.startswith("ufunc "):
        return _UFUNCS[name] if path == "cupy" else ufunc(name, text)
    if text == "type":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(np, name, None) or _unavailable(full)
    if path == "cupy.random":
        return _Sampler.function(name, text, owner=False)
    return _function(full.removeprefix("cupy."), text)


_REPLACED = {
    "cupy.ElementwiseKernel": ElementwiseKernel,
    "cupy.ndarray": ndarray,
    "cupy.ufunc": ufunc,
    "cupy.cuda.Device": Device,
    "cupy.cuda.Event": Event,
    "cupy.cuda.Stream": Stream,
    "cupy.cuda.get_current_stream": lambda device_id=-1: Stream.null,
    "cupy.cuda.get_device_id": lambda: 0,
    "cupy.cuda.is_available": lambda: True,
    "cupy.linalg.LinAlgError": np.linalg.LinAlgError,
    "cupy.random.seed": _seed,
}


@functools.cache
def _modules():
    """Return the stand-in's modules by name."""
    paths = [path for path in RECORD if re.match(r"cupyx?(\.[a-z]+)*$", path)]
    paths += ["cupy.cuda.device", "cupy.cuda.runtime", "cupyx.scipy"]
    modules = {}
    for path in paths:
        modules[path] = types.ModuleType(path, "Part of a stand-in for CuPy.")
        modules[path].__spec__ = importlib.machinery.ModuleSpec(path, None)
        modules[path].__path__ = []
    for path in paths:
        for name, text in RECORD.get(path, {}).items():
            if text not in ("object", "module") or f"{path}.{name}" in modules:
                setattr(modules[path], name, _member(path, name, text, modules))
    modules["cupy"].__version__ = RECORD["version"]
    modules["cupy"].cublas = modules["cupy.cublas"]
    modules["cupyx.scipy"].linalg = modules["cupyx.scipy.linalg"]
    modules["cupy.cuda.device"].Device = Device
    runtime = modules["cupy.cuda.runtime"]
    runtime.getDeviceCount = lambda: 1
    runtime.getDevice = lambda: 0
    runtime.deviceSynchronize = lambda: _synchronize("deviceSynchronize()")
    runtime.CUDARuntimeError = type("CUDARuntimeError", (RuntimeError,), {})
    samplers = {name: _sampler_class(f"cupy.random.{name}") for name in ("Generator", "RandomState")}
    for name, cls in samplers.items():
        setattr(modules["cupy.random"], name, cls)
    modules["cupy.random"].default_rng = samplers["Generator"]
    for path, value in _REPLACED.items():
        module, _, name = path.rpartition(".")
        setattr(modules[module], name, value)
    modules["cupy.linalg"].__all__ = sorted(RECORD["cupy.linalg"])
    return modules


# Installation --------------------------------------------------------------------------------

_REAL = re.compile(r"(cupy|cupyx|cupy_backends)(\.|$)")
_COMPAT = re.compile(r"(.*\.)?array_api_compat\.cupy(\.|$)")
_saved = []


def _forget_namespaces():
    """Clear what array-api-compat, vendored or not, remembers about array classes."""
    for name, module in list(sys.modules.items()):
        if name.endswith("array_api_compat.common._helpers"):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def _remove_cupy():
    """Take CuPy and its wrapper in array-api-compat out of `sys.modules`, and return them."""
    taken = {
        name: sys.modules.pop(name)
        for name in list(sys.modules)
        if _REAL.match(name) or _COMPAT.match(name)
    }
    for name in taken:
        # `from array_api_compat import cupy` looks at the attribute first.
        parent, _, child = name.rpartition(".")
        if _COMPAT.match(name) and parent in sys.modules:
            vars(sys.modules[parent]).pop(child, None)
    _forget_namespaces()
    return taken


def install():
    """Put the stand-in in the place of ``cupy`` and ``cupyx``, and return it.

    A real CuPy that is imported already is set aside until `uninstall`.
    """
    _saved.append(_remove_cupy())
    sys.modules.update(_modules())
    return _modules()["cupy"]


def uninstall():
    """Undo the last `install`: whatever was imported before is as it was."""
    before = _saved.pop()
    _remove_cupy()
    sys.modules.update(before)
    for name, module in before.items():
        parent, _, child = name.rpartition(".")
        if _COMPAT.match(name) and parent in sys.modules:
            setattr(sys.modules[parent], child, module)


@contextlib.contextmanager
def installed():
    """Install the stand-in with its counts at zero, for the time of a ``with`` statement."""
    reset()
    try:
        yield install()
    finally:
        uninstall()
