"""A mock for CuPy that needs no GPU: NumPy arithmetic under CuPy's names and rules.

Code for CuPy mostly fails on a GPU for reasons that have nothing to do with arithmetic: a name
or an argument that CuPy lacks, an array that is still on the host, a ``float(norm)`` that waits
for the device in every iteration, bfloat16 that silently becomes float64. The mock keeps
exactly these rules, so tests on the host find such faults:

- names and signatures are those of CuPy 14.2, from the record beside this file;
- no implicit transfer: ``np.asarray(x)`` and operands of type ``np.ndarray`` raise TypeError;
- what waits for the device is counted by `syncs` and raises inside `no_sync`;
- result types follow CuPy's loops, where ``bfloat16 * 1.5`` is float32;
- linear algebra returns NaN where cuSOLVER fails, and does not raise;
- uninitialized memory holds NaN;
- arrays lie on one of two devices, and calls take those of the current one;
- cuBLAS's private binding works on addresses, and only on those of the device's arrays that are
  still in use.

Use it as::

    from standin import cupy_standin

    def test_no_transfer():
        with cupy_standin.installed() as cupy:
            x = cupy.asarray(numpy_array)
            with cupy_standin.no_sync():
                y = function_under_test(x)
            assert y.dtype == x.dtype

Type resolution, argument checks and synchronizations were compared with those of CuPy 14.2.0
itself. Where the mock deviates it is stricter, or raises NotImplementedError. It does not
keep the memory layout of factorizations, rounding on the device, the order of streams, or graphs.
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

import numpy as np

from . import cublas, cublaslt, cusolver, functions, linalg, memory, raw
from .dtypes import BFLOAT16, checked_dtype, find_loop, loops, narrow, quiet, widen
from .elementwise import Evaluator
from .state import (
    Call,
    HostSynchronization,
    arrays_in,
    calls,
    has_arrays,
    kernels,
    log,
    no_sync,
    raw_kernels,
    reset,
    state,
    synchronize,
    syncs,
)

__all__ = [
    "Call",
    "HostSynchronization",
    "calls",
    "install",
    "installed",
    "kernels",
    "no_sync",
    "raw_kernels",
    "reset",
    "syncs",
    "uninstall",
]

RECORD = json.loads(Path(__file__).with_name("cupy-14.2.0.json").read_text(encoding="ascii"))
HOST_FUNCTIONS = functions.FUNCTIONS | linalg.FUNCTIONS
SCALARS = np.generic | bool | int | float | complex

# Between the mock's arrays and NumPy's -------------------------------------------------------


def to_device(host):
    """Return a NumPy result as the mock's arrays, sharing memory."""
    if isinstance(host, np.ndarray | SCALARS):
        array = object.__new__(ndarray)
        array._host = np.asarray(host)
        memory.track(array)
        return array
    if isinstance(host, list | tuple):
        return (list if isinstance(host, list) else tuple)(map(to_device, host))
    return host


def to_host(value):
    """Return an argument for NumPy; NumPy's own arrays are not allowed on the device."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, list | tuple):
        return type(value)(map(to_host, value))
    if isinstance(value, dict):
        return {key: to_host(item) for key, item in value.items()}
    return value


# Elementwise functions ---------------------------------------------------------------------------


_LOOPS_ON_HOST = {
    "fix": np.trunc,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "where": np.where,
}


class ufunc:
    """An elementwise function with the loops of CuPy's."""

    def __init__(self, name, text):
        self.__name__ = name
        self._text = text
        self.types = text.split()[1:]
        self.nin, self.nout = map(len, loops(text)[0])
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
            if not isinstance(value, ndarray | SCALARS):
                raise TypeError(f"Unsupported type {type(value)}")
        input_types, output_types = find_loop(name, self._text, operands, dtype)
        results = self._compute(operands, input_types)
        returned = tuple(map(_store_output, outs, results, output_types))
        log(name, operands, returned)
        return returned if self.nout > 1 else returned[0]

    def _compute(self, operands, input_types):
        function = _LOOPS_ON_HOST.get(self.__name__) or getattr(np, self.__name__)
        with quiet():
            # Not `astype`, which would let a Python integer wrap around.
            hosts = [
                np.asarray(to_host(x), dtype=dtype) if np.isscalar(x) else to_host(x).astype(dtype)
                for x, dtype in zip(operands, input_types, strict=True)
            ]
            results = function(*map(widen, hosts))
        return results if self.nout > 1 else (results,)

    def _missing(self, *args, **kwargs):
        raise NotImplementedError(f"the mock has no methods of cupy.{self.__name__}")

    accumulate = at = outer = reduce = reduceat = _missing


def _store_output(out, result, dtype):
    result = narrow(result, dtype, order="C")
    if out is None:
        return to_device(result)
    if not np.can_cast(dtype, out.dtype, "same_kind"):
        raise TypeError(
            f"Cannot cast output operand from {dtype!r} to {out.dtype!r} "
            "according to the rule 'same_kind'"
        )
    with quiet():
        np.copyto(out._host, result, casting="unsafe")
    return out


# The array ---------------------------------------------------------------------------------------


class Flags:
    """Memory layout of an array."""

    def __init__(self, host):
        self.c_contiguous = host.flags.c_contiguous
        self.f_contiguous = host.flags.f_contiguous
        self.owndata = host.flags.owndata

    def __getitem__(self, name):
        return getattr(self, name.lower())


class MemoryPointer:
    """Address of an array; that of the mock's is on the host."""

    def __init__(self, host):
        self.ptr = host.ctypes.data
        self.device_id = memory.device_of(host)


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
                synchronize("indexing with a mask")
        converted.append(part)
    if Ellipsis not in [part for part in converted if not isinstance(part, np.ndarray)]:
        converted.append(Ellipsis)  # makes NumPy return a 0-d view rather than a scalar
    return tuple(converted), copies


class ndarray:
    """The mock's array, on the device as far as its users can tell."""

    __slots__ = ("__weakref__", "_host")
    __array_priority__ = 100
    __hash__ = None

    def __new__(cls, shape, dtype=float, memptr=None, strides=None, order="C"):
        if memptr is not None or strides is not None:
            raise NotImplementedError("the mock has no memory pointers")
        self = object.__new__(cls)
        self._host = HOST_FUNCTIONS["empty"](shape, dtype, order)
        memory.track(self)
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
    T = property(lambda self: to_device(self._host.T))
    mT = property(lambda self: to_device(self._host.mT))
    device = property(lambda self: Device(memory.device_of(self._host)))
    data = property(lambda self: MemoryPointer(self._host))
    flags = property(lambda self: Flags(self._host))
    base = property(lambda self: None if self._host.base is None else to_device(self._host.base))

    @property
    def real(self):
        return to_device(self._host.real) if self.dtype.kind == "c" else self

    @real.setter
    def real(self, value):
        self.real[...] = value

    @property
    def imag(self):
        if self.dtype.kind == "c":
            return to_device(self._host.imag)
        return to_device(np.zeros_like(self._host))

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
            synchronize("get()")
        if out is not None:
            out[...] = self._host
            return out
        return self._host.copy(order)

    def _to_scalar(self, convert):
        synchronize(f"{convert.__name__}()")
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
        synchronize("bool()")
        return bool(self._host) if self.size else False

    def item(self):
        synchronize("item()")
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self._host.item()

    def tolist(self):
        synchronize("tolist()")
        return self._host.tolist()

    def tobytes(self, order="C"):
        synchronize("tobytes()")
        return self._host.tobytes(order)

    def __bytes__(self):
        return self.tobytes()

    def __repr__(self):
        synchronize("repr()")
        return repr(self._host)

    def __str__(self):
        synchronize("str()")
        return str(self._host)

    def __format__(self, format_spec):
        return format(str(self) if self.ndim else self.item(), format_spec)

    def __reduce__(self):
        raise NotImplementedError("the mock's arrays cannot be pickled")

    def __dlpack__(self, **kwargs):
        raise NotImplementedError("the mock's arrays are not in device memory")

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
        result = to_device(result.copy() if copies else result)
        if copies:
            log("getitem", self, result)
        return result

    def __setitem__(self, key, value):
        index, advanced = _index(key)
        if isinstance(value, ndarray):
            host = value._host
        elif advanced or np.ndim(value) == 0:
            host = np.asarray(value, dtype=self.dtype)
        else:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        with quiet():
            self._host[index] = host
        log("setitem", (self, value), None)

    def fill(self, value):
        if isinstance(value, ndarray):
            synchronize("fill() with an array")
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
        result = to_device(self._host.copy(order))
        log("copy", self, result)
        return result

    def flatten(self, order="C"):
        return to_device(self._host.flatten(order))

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        for name, value in (("casting", casting), ("subok", subok)):
            if value is not None:
                raise TypeError(f"{name} is not supported yet")
        dtype = checked_dtype(dtype)
        if dtype == self.dtype and not copy:
            return self
        with quiet():
            result = to_device(self._host.astype(dtype, order=order))
        log("astype", self, result)
        return result

    def view(self, dtype=None, type=None):
        return to_device(self._host.view() if dtype is None else self._host.view(dtype))

    def reshape(self, *shape, order="C", copy=None):
        if len(shape) == 1 and isinstance(shape[0], list | tuple):
            (shape,) = shape
        return to_device(np.reshape(self._host, shape, order=order))

    def transpose(self, *axes):
        return to_device(self._host.transpose(*axes))

    def conj(self):
        return _UFUNCS["conjugate"](self) if self.dtype.kind == "c" else self

    conjugate = conj

    def sort(self, axis=-1, kind=None):
        self._host[...] = HOST_FUNCTIONS["sort"](self._host, axis)

    def partition(self, kth, axis=-1):
        self._host.partition(kth, axis)

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
            return to_device(np.full(self.shape, name == "not_equal"))
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


# Functions on the mock's arrays --------------------------------------------------------------


def _array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    """Create an array; the only functions that take arrays from the host come here."""
    if isinstance(obj, ndarray):
        target = obj.dtype if dtype is None else checked_dtype(dtype)
        right_order = {"C": obj.flags.c_contiguous, "F": obj.flags.f_contiguous}.get(order, True)
        if copy or target != obj.dtype or not right_order or obj.ndim < ndmin:
            if copy is False:
                raise ValueError("Unable to avoid copy while creating an array as requested.")
            with quiet():
                return to_device(np.array(obj._host, target, order=order, ndmin=ndmin))
        return obj
    leaves = list(arrays_in(obj))
    if leaves:
        if len(leaves) != len(list(_leaves(obj))):
            leaves[0].__array__()
        obj = _nested_hosts(obj)
    host = np.array(obj, order=order, ndmin=ndmin, dtype=dtype)
    checked_dtype(host.dtype)
    return to_device(host)


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
    before = dict(state.errors)
    state.errors.update({key: value for key, value in kwargs.items() if value is not None})
    return before


@contextlib.contextmanager
def _errstate(**kwargs):
    before = _seterr(**kwargs)
    try:
        yield
    finally:
        state.errors.update(before)


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
    "cupyx.geterr": lambda: dict(state.errors),
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
    "set",
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
    "iterable",
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
_ARRAY_ARGUMENTS = {"a", "arr", "array", "m", "x", "x1", "x2"}


# Calls, bound to the recorded signatures ---------------------------------------------------------


@functools.cache
def _signature(text):
    """Return a recorded signature such as ``(a, axis=None)``; its defaults are literals."""
    return inspect.signature(eval(f"lambda {text[1:-1]}: None", {}))


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
        if key in _HOST_ARGUMENTS and has_arrays(value):
            raise TypeError("'ndarray' object cannot be interpreted as an integer")
        if key in _FETCHED_ARGUMENTS and has_arrays(value):
            synchronize(f"{name}({key}=array)")
        if key == "dtype" and value is not None:
            checked_dtype(value)
        if short in _TAKES_ANYTHING or isinstance(value, ndarray):
            continue
        if in_linalg and key in ("a", "b"):
            raise np.linalg.LinAlgError("cupy.linalg only supports cupy.ndarray")
        if key in _ARRAY_ARGUMENTS:
            raise TypeError(f"{name}() takes a cupy.ndarray, not {type(value)}")


def _implementation(name):
    """Return NumPy's function of a name, or one of the above that replaces it."""
    if name in HOST_FUNCTIONS:
        return HOST_FUNCTIONS[name]
    module, _, short = name.rpartition(".")
    if module in ("", "fft"):
        with contextlib.suppress(AttributeError), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return getattr(np.fft if module else np, short)
    raise NotImplementedError(f"the mock has no host implementation of {name}")


def _call_host(name, args, kwargs):
    """Call a function of NumPy arrays with the mock's."""
    function = _implementation(name)
    short = name.rpartition(".")[2]
    if short in _SYNCHRONIZES:
        synchronize(f"{short}()")
    if short in _TAKES_ANYTHING:
        hosts = [x._host if isinstance(x, ndarray) else x for x in args]
        host_kwargs = kwargs
    else:
        hosts, host_kwargs = to_host(list(args)), to_host(kwargs)
    with quiet():
        result = function(*hosts, **host_kwargs)
    if short in _RETURNS_HOST:
        return result
    out = kwargs.get("out")
    out = out[0] if isinstance(out, tuple) and len(out) == 1 else out
    if not isinstance(out, ndarray):
        out = next((x for x in args if isinstance(x, ndarray) and x._host is result), None)
    returned = to_device(result) if out is None else out
    log(name, (args, kwargs), returned)
    return returned


def _function(name, text):
    """Return the function of a name as CuPy's."""

    def function(*args, **kwargs):
        arguments = _bind(function.__name__, text, args, kwargs)
        if name in _DEVICE_FUNCTIONS:
            result = _DEVICE_FUNCTIONS[name](*args, **kwargs)
            log(name, (args, kwargs), result)
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
_add_operators()
_add_methods()
ndarray.__module__ = ufunc.__module__ = "cupy"


# Kernels -----------------------------------------------------------------------------------------


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
            raise NotImplementedError("the mock's kernels have no preamble and no loop parts")
        self.in_params = self._parameters(in_params)
        self.out_params = self._parameters(out_params)
        self.nin, self.nout = len(self.in_params), len(self.out_params)
        self.nargs = self.nin + self.nout
        self.operation, self.name = operation, name
        self.source = (in_params, out_params, operation, name)
        self.no_return, self.return_tuple = no_return, return_tuple

    @staticmethod
    def _parameters(text):
        parameters = [tuple(part.split()) for part in text.split(",") if part.strip()]
        if any(len(parameter) != 2 for parameter in parameters):
            raise NotImplementedError("the mock's kernels have no raw parameters")
        return parameters

    def __call__(self, *args, **kwargs):
        if "size" in kwargs:
            raise ValueError("'size' can be used only if all of the ndarray are 'raw'.")
        if set(kwargs) - {"block_size", "stream"}:
            raise TypeError(f"Wrong arguments {sorted(kwargs)}")
        if len(args) not in (self.nin, self.nargs):
            raise TypeError(
                f"Wrong number of arguments for '{self.name}'. It must be either {self.nin} or "
                f"{self.nargs} (with outputs), but given {len(args)}."
            )
        for value in args:
            if not isinstance(value, ndarray | SCALARS):
                raise TypeError(f"Unsupported type {type(value)}")
        parameters = self.in_params + self.out_params
        shape = self._shape(args)
        letters = self._resolve(parameters, args)
        dtypes = {
            name: letters[declared] if len(declared) == 1 else np.dtype(declared)
            for declared, name in parameters
        }
        outs = args[self.nin :] or tuple(
            ndarray(shape, dtypes[name]) for _, name in self.out_params
        )
        state.kernels.add((*self.source, tuple(dtypes[name].name for _, name in parameters)))
        values = {name: out._host for (_, name), out in zip(self.out_params, outs, strict=True)}
        for (_, name), value in zip(self.in_params, args, strict=False):
            values[name] = np.asarray(to_host(value), dtype=dtypes[name])
        with quiet():
            Evaluator(self.operation, values, dtypes, letters).run()
            for out, (_, name) in zip(outs, self.out_params, strict=True):
                out._host[...] = values[name]
        log(self.name, args[: self.nin], outs)
        if self.no_return:
            return None
        return outs if self.nout > 1 or self.return_tuple else outs[0]

    def _shape(self, args):
        """Return the shape of the loop, which outputs must have."""
        arrays = [value for value in args if isinstance(value, ndarray)]
        if not arrays:
            raise ValueError("Loop size is undecided.")
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
        if any(out.shape != shape for out in args[self.nin :]):
            raise ValueError("operands could not be broadcast together")
        return shape

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


# Random numbers ----------------------------------------------------------------------------------

_RANDOM_ON_HOST = {
    "rand": "random",
    "randint": "integers",
    "randn": "standard_normal",
    "random_sample": "random",
    "ranf": "random",
    "sample": "random",
}


def _draw(generator, name, text, args, kwargs):
    """Draw by one of CuPy's functions from NumPy's generator."""
    arguments = dict(_bind(name, text, args, kwargs))
    arguments |= arguments.pop("kwargs", {})  # of `rand(*size, **kwargs)`
    dtype = arguments.pop("dtype", None)
    if dtype is not None and np.dtype(dtype).kind not in "iu" and np.dtype(dtype).char not in "fd":
        raise TypeError("cupy.random only supports float32 and float64")
    if name == "permutation":
        arguments = {"x": arguments["a"]}
    function = getattr(generator, _RANDOM_ON_HOST.get(name, name), None)
    if function is None or name == "shuffle" or arguments.get("out") is not None:
        raise NotImplementedError(f"the mock cannot draw by cupy.random.{name}")
    result = function(**to_host(arguments))
    result = to_device(result if dtype is None else np.asarray(result).astype(dtype))
    log(f"random.{name}", (args, kwargs), result)
    return result


def _random_function(name, text):
    def function(*args, **kwargs):
        return _draw(state.random, name, text, args, kwargs)

    function.__name__ = name
    return function


def _random_class(path):
    """Return `Generator` or `RandomState` with the recorded methods."""

    def __init__(self, seed=None, method=None):
        self._generator = np.random.default_rng(seed)

    def drawing(name, text):
        def method(self, *args, **kwargs):
            return _draw(self._generator, name, text, args, kwargs)

        return method

    methods = {
        name: drawing(name, text)
        for name, text in RECORD[path].items()
        if text.startswith("(") and not name.startswith("__")
    }
    return type(path.rpartition(".")[2], (), methods | {"__init__": __init__, "seed": __init__})


def _seed(seed=None):
    state.random = np.random.default_rng(seed)


# Devices -----------------------------------------------------------------------------------------


DEVICES = 2


class Device:
    """One of two devices. Like CuPy's, it cannot be hashed."""

    __hash__ = None
    compute_capability = "90"

    def __init__(self, device=None):
        self.id = state.device if device is None else int(getattr(device, "id", device))
        self.before = []

    def __eq__(self, other):
        return isinstance(other, Device) and other.id == self.id

    def __int__(self):
        return self.id

    def __enter__(self):
        if self.id not in range(DEVICES):
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.before.append(state.device)
        state.device = self.id
        return self

    def __exit__(self, *exception):
        state.device = self.before.pop()

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    def use(self):
        return self.__enter__()

    def synchronize(self):
        synchronize("Device.synchronize()")


class Stream:
    """A stream; all work is done at once, so it has nothing to order. It may be captured."""

    null = None  # an instance, set below
    done = True

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.ptr = 0 if null else id(self)

    def __enter__(self):
        state.streams.append(self)
        return self

    def __exit__(self, *exception):
        state.streams.remove(self)

    def use(self):
        return self

    def begin_capture(self, mode=None):
        if not self.ptr:
            raise RuntimeError("cudaErrorStreamCaptureUnsupported: the default stream")
        state.captured.add(self.ptr)

    def end_capture(self):
        state.captured.remove(self.ptr)

    def is_capturing(self):
        if not self.ptr and state.captured:
            raise RuntimeError("cudaErrorStreamCaptureImplicit: another stream is captured")
        return self.ptr in state.captured

    def record(self, event=None):
        return Event() if event is None else event

    def wait_event(self, event):
        return None

    def synchronize(self):
        synchronize("Stream.synchronize()")


def _current_stream(device_id=-1):
    return state.streams[-1] if state.streams else Stream.null


Stream.null = Stream(null=True)


class Event:
    """An event; it has always happened."""

    done = True

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        pass

    def record(self, stream=None):
        return None

    def synchronize(self):
        synchronize("Event.synchronize()")


# The module tree ---------------------------------------------------------------------------------


def _unavailable(path):
    """Return a class that CuPy has and the mock does not."""

    def __init__(self, *args, **kwargs):
        raise NotImplementedError(f"the mock has no {path}")

    return type(path.rpartition(".")[2], (), {"__init__": __init__})


def _member(path, name, text, submodules):
    """Return one recorded member of a module."""
    full = f"{path}.{name}"
    if full in submodules:
        return submodules[full]
    if text.startswith("const "):
        literal = text.removeprefix("const ")
        return float(literal) if literal in ("inf", "-inf", "nan") else ast.literal_eval(literal)
    if text.startswith("ufunc "):
        return _UFUNCS[name] if path == "cupy" else ufunc(name, text)
    if text == "type":
        value = getattr(np, name, None) or getattr(np.exceptions, name, None)
        on_host = (np.generic, np.dtype, np.finfo, np.iinfo, Exception)
        return value if value and issubclass(value, on_host) else _unavailable(full)
    if path == "cupy.random":
        return _random_function(name, text)
    return _function(full.removeprefix("cupy."), text)


_REPLACED = {
    "cupy.ElementwiseKernel": ElementwiseKernel,
    "cupy.RawKernel": raw.RawKernel,
    "cupy.ndarray": ndarray,
    "cupy.ufunc": ufunc,
    "cupy.cuda.Device": Device,
    "cupy.cuda.Event": Event,
    "cupy.cuda.MemoryHook": memory.MemoryHook,
    "cupy.cuda.Stream": Stream,
    "cupy.cuda.device.Device": Device,
    "cupy.cuda.device.get_cublas_handle": lambda: cublas.HANDLE,
    "cupy.cuda.device.get_cusolver_handle": lambda: cusolver.HANDLE,
    "cupy.cuda.get_current_stream": _current_stream,
    "cupy.cuda.get_device_id": lambda: state.device,
    "cupy.cuda.is_available": lambda: True,
    "cupy.linalg.LinAlgError": np.linalg.LinAlgError,
    "cupy.random.seed": _seed,
}


LIBS = "cupy_backends.cuda.libs"
BINDING_PACKAGES = ["cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.libs"]


@functools.cache
def _modules():
    """Return the mock's modules by name."""
    paths = [path for path in RECORD if re.match(r"cupyx?(\.[a-z]+)*$", path)]
    paths += ["cupyx.scipy", *BINDING_PACKAGES]
    modules = {}
    for path in paths:
        modules[path] = types.ModuleType(path, "Part of a mock for CuPy.")
        modules[path].__spec__ = importlib.machinery.ModuleSpec(path, None)
        modules[path].__path__ = []
    for path in paths:
        for name, text in RECORD.get(path, {}).items():
            if text not in ("object", "module") or f"{path}.{name}" in modules:
                setattr(modules[path], name, _member(path, name, text, modules))
    modules["cupy"].__version__ = RECORD["version"]
    modules["cupy"].cublas = modules["cupy.cublas"]
    modules["cupyx.scipy"].linalg = modules["cupyx.scipy.linalg"]
    modules["cupy.cuda"].device = modules["cupy.cuda.device"]
    modules["cupy.cuda"].runtime = modules["cupy.cuda.runtime"]
    runtime = modules["cupy.cuda.runtime"]
    runtime.getDeviceCount = lambda: DEVICES
    runtime.getDevice = lambda: state.device
    runtime.deviceSynchronize = lambda: synchronize("deviceSynchronize()")
    runtime.CUDARuntimeError = type("CUDARuntimeError", (RuntimeError,), {})
    for name in ("Generator", "RandomState"):
        setattr(modules["cupy.random"], name, _random_class(f"cupy.random.{name}"))
    modules["cupy.random"].default_rng = modules["cupy.random"].Generator
    for path, value in _REPLACED.items():
        module, _, name = path.rpartition(".")
        setattr(modules[module], name, value)
    modules["cupy.linalg"].__all__ = sorted(RECORD["cupy.linalg"])
    bindings = {
        "cublas": cublas.module(RECORD[f"{LIBS}.cublas"]),
        "cusolver": cusolver.module(RECORD[f"{LIBS}.cusolver"]),
    }

    def lazy(name):
        """Load a binding: only from here is it found, as where pip has put CUDA's libraries."""
        if name not in bindings:
            raise AttributeError(name)
        if sys.modules.setdefault(f"{LIBS}.{name}", bindings[name]) is None:
            raise ImportError(f"{LIBS}.{name} is not there")
        return bindings[name]

    modules[LIBS].__getattr__ = lazy
    return modules


# Installation ------------------------------------------------------------------------------------

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
    """Put the mock in the place of CuPy's three packages, and return it.

    A real CuPy that is imported already is set aside until `uninstall`.
    """
    _saved.append((_remove_cupy(), cublaslt.install()))
    sys.modules.update(_modules())
    return _modules()["cupy"]


def uninstall():
    """Undo the last `install`: whatever was imported before is as it was."""
    before, library = _saved.pop()
    _remove_cupy()
    cublaslt.uninstall(library)
    sys.modules.update(before)
    for name, module in before.items():
        parent, _, child = name.rpartition(".")
        if _COMPAT.match(name) and parent in sys.modules:
            setattr(sys.modules[parent], child, module)


@contextlib.contextmanager
def installed():
    """Install the mock with its counts at zero, for the time of a ``with`` statement."""
    reset()
    memory.usage.reset()
    try:
        yield install()
    finally:
        uninstall()
