"""Replace the functions that a module of Cython exports to other modules.

Such a module has its functions twice: under their names, for Python, and as C functions in the
table ``__pyx_capi__``, from which other compiled modules take them when they are imported. Both are
replaced, so that replacing must come before the import of whatever calls them.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

Function = Callable[..., Any]
# What gives the function for a name, its result's C type and the number of its arguments; None: the
# function stays.
Maker = Callable[[str, str, int], Function | None]

C_TYPES: dict[str, Any] = {
    "intptr_t": ctypes.c_ssize_t,
    "size_t": ctypes.c_size_t,
    "int": ctypes.c_int,
    "unsigned int": ctypes.c_uint,
    "uintmax_t": ctypes.c_uint64,
    "int64_t": ctypes.c_int64,
    "PY_LONG_LONG": ctypes.c_longlong,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "char": ctypes.c_char,
    "CUdevice": ctypes.c_int,
    "cudaMemcpyKind": ctypes.c_int,
    "PyObject *": ctypes.py_object,
}
INTEGERS = ("intptr_t", "size_t", "int", "unsigned int", "int64_t", "PY_LONG_LONG")
_name = ctypes.pythonapi.PyCapsule_GetName
_name.restype, _name.argtypes = ctypes.c_char_p, [ctypes.py_object]
_new = ctypes.pythonapi.PyCapsule_New
_new.restype = ctypes.py_object
_new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def replace(
    module: ModuleType, make: Maker, failed: Callable[[str, BaseException], None]
) -> tuple[list[Any], list[str]]:
    """Replace each function of a module by the one that `make` gives for it.

    Parameters
    ----------
    module : module
        Of Cython, imported.
    make : callable
        Takes a name, the C type of the result, and the number of arguments (-1: unknown).
    failed : callable
        Takes the name of a function and the exception that it raised where C called it: an
        exception cannot pass through C.

    Returns
    -------
    kept : list
        What must stay alive as long as the process.
    left : list of str
        Functions that C still finds as they were, since ctypes cannot make their types.
    """
    kept: list[Any] = []
    left: list[str] = []
    table = getattr(module, "__pyx_capi__", {})
    for name, capsule in list(table.items()):
        signature = _name(capsule).decode()
        match = re.fullmatch(r"(.*?)\s*\((.*)\)", signature)
        if not match:  # a variable
            continue
        result, arguments = match[1], [a for a in match[2].split(", ") if a != "void"]
        count = next(
            (i for i, a in enumerate(arguments) if "__pyx_skip_dispatch" in a), len(arguments)
        )
        function = make(name, result, count)
        if function is None:
            continue
        if name in vars(module):
            setattr(module, name, _checked(name, function, arguments[:count]))
        kinds = [_c_type(a) for a in arguments]
        if result not in C_TYPES or None in kinds:
            left.append(f"{module.__name__}.{name}: {signature}")
            continue
        called = functools.partial(_from_c, function, count, name, result, failed)
        pointer = ctypes.PYFUNCTYPE(C_TYPES[result], *kinds)(called)
        label = signature.encode()
        kept += [pointer, label]
        table[name] = _new(ctypes.cast(pointer, ctypes.c_void_p), label, None)
    for name, function in list(vars(module).items()):
        if _is_function(name, function) and name not in table:
            setattr(module, name, make(name, "", -1) or function)
    return kept, left


def _is_function(name: str, value: Any) -> bool:
    hidden = name.startswith("_") or name == "check_status"
    return callable(value) and not isinstance(value, type | ModuleType) and not hidden


def _c_type(argument: str) -> Any:
    if "__pyx_skip_dispatch" in argument:
        return ctypes.c_int
    if "*" in argument and argument != "PyObject *":
        return ctypes.c_void_p
    return C_TYPES.get(argument)


def _checked(name: str, function: Function, arguments: list[str]) -> Function:
    """The function under its name, which takes what the replaced one took, and refuses the rest."""

    def call(*given: Any) -> Any:
        # An optional argument is a structure of C and not counted.
        if len(given) not in (len(arguments), len(arguments) + 1):
            raise TypeError(f"{name}() takes {len(arguments)} arguments, {len(given)} given")
        for value, kind in zip(given, arguments, strict=False):
            if kind in INTEGERS:
                operator.index(value)
        return function(*given)

    return call


def _from_c(
    function: Function, count: int, name: str, result: str, failed: Any, *given: Any
) -> Any:
    try:
        return function(*given[:count])
    except BaseException as error:
        failed(name, error)
        return None if result == "PyObject *" else 0
