"""Record the public names and signatures of an installed CuPy, for the mock.

CuPy imports without a driver, so this needs no GPU; the bindings need cuBLAS and cuSOLVER::

    pip install "cupy-cuda13x==14.2.0" nvidia-cublas nvidia-cusolver
    python record_signatures.py cupy-14.2.0.json

The file maps each module or class to its public names, one entry per line:

- ``(a, axis=None)``: a function or method; defaults that are not plain literals are ``...``;
- ``ufunc ee->e ff->f``: an elementwise function and its loops, in the order CuPy tries them;
- ``type``, ``module``, ``attribute``, ``special``: a class, a submodule, a property, a
  double-underscore method that plain objects do not have;
- ``(intptr_t handle, int mode)``: a function of a binding to C, with the types that it converts to;
- ``const inf``: a constant; ``object``: an object of another kind, such as ``cupy.r_``;
- ``?``: a callable whose signature CuPy does not tell.
"""

import ast
import importlib
import inspect
import json
import re
import sys
import types
from pathlib import Path

MODULES = (
    "cupy",
    "cupy.cublas",
    "cupy.cuda",
    "cupy.fft",
    "cupy.linalg",
    "cupy.random",
    "cupyx",
    "cupyx.scipy.linalg",
)
CLASSES = (
    "cupy.ElementwiseKernel",
    "cupy.ndarray",
    "cupy.cuda.Device",
    "cupy.cuda.Event",
    "cupy.cuda.MemoryHook",
    "cupy.cuda.Stream",
    "cupy.random.Generator",
    "cupy.random.RandomState",
)
# Bindings to C, as far as they are used: what the names must match.
BINDINGS = {
    "cupy.cuda.device": r"get_(cublas|cusolver)_handle",
    "cupy.cuda.runtime": r"CUDA_[CR]_\d+B?F|is_hip",
    "cupy_backends.cuda.libs.cublas": r"gemm(StridedBatched)?Ex|[gs]et(Pointer|Math)Mode|"
    r"CUBLAS_(COMPUTE|FILL_MODE|GEMM|OP|POINTER_MODE)_\w+|CUBLAS_DEFAULT_MATH",
    "cupy_backends.cuda.libs.cusolver": r"[sdcz]potrf(Batched|_bufferSize)?",
}
# Takes ``*args`` by inspection, but exactly two of them in fact: a third raises TypeError.
FIXED = {
    "cupy.matmul": "(x1, x2, /, *, axes=None, axis=None, keepdims=False, casting='same_kind', "
    "dtype=None, signature=None, order='K', out=None)"
}
FIXED["cupy.linalg.matmul"] = FIXED["cupy.matmul"]


def simplified(text):
    """Return a signature as text, without annotations and with literal defaults only.

    ``(a, axis: int = None, dtype=<class 'float'>) -> ndarray`` becomes
    ``(a, axis=None, dtype=...)``.
    """
    text = re.sub(r"<[^<>]*>", "...", text)
    arguments = ast.parse(f"def function{text}: ...").body[0].args
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    arguments.defaults = [literal(node) for node in arguments.defaults]
    arguments.kw_defaults = [node and literal(node) for node in arguments.kw_defaults]
    return f"({ast.unparse(arguments)})"


def literal(node):
    """Return a default if it is a plain literal, else the node of ``...``."""
    try:
        ast.literal_eval(node)
    except ValueError:
        return ast.Constant(...)
    return node


def callable_entry(function, path):
    """Return the entry of a function, method or class, without ``self``."""
    if path in FIXED:
        return FIXED[path]
    try:
        text = str(inspect.signature(function))
    except (TypeError, ValueError):
        # Cython writes the signature into the first line of the docstring, with C types
        # before the names: "take(self, indices, int axis=None) -> ndarray".
        first_line = (function.__doc__ or "").strip().partition("\n")[0]
        found = re.match(r"[\w.]+(\(.*\))", first_line)
        if found is None:
            return "?"
        text = re.sub(r"(?<=[(, *])(?:[\w.]+ )+(?=\w+ *[=,)])", "", found.group(1))
    try:
        return re.sub(r"^\((self|cls)(, /)?(, )?", "(", simplified(text))
    except SyntaxError:
        return "?"


def entry(value, path):
    """Return the entry of one name of a module."""
    if type(value).__name__ == "ufunc":
        return " ".join(["ufunc", *map(str, value.types)])
    if isinstance(value, types.ModuleType):
        return "module"
    if isinstance(value, type):
        return "type"
    if callable(value):
        return callable_entry(value, path)
    return f"const {value!r}" if isinstance(value, bool | float | None) else "object"


def binding_entry(value):
    """Return the entry of a name of a binding: its value, or its signature with C types."""
    if not callable(value):
        return f"const {value!r}"
    return re.search(r"\(.*?\)", value.__doc__.partition("\n")[0])[0]


def class_entries(cls, path):
    """Return the entries of a class: its constructor, methods, properties and operators."""
    entries = {"__init__": callable_entry(cls, path)}
    for name in dir(cls):
        static = inspect.getattr_static(cls, name)
        if name.startswith("__"):
            if not hasattr(object, name) or getattr(object, name) is not getattr(cls, name):
                entries.setdefault(name, "special")
        elif name.startswith("_"):
            continue
        elif callable(getattr(cls, name)) and not isinstance(static, property):
            entries[name] = callable_entry(getattr(cls, name), f"{path}.{name}")
        else:
            entries[name] = "attribute"
    return entries


def resolve(path):
    """Return the module or class that a dotted path names."""
    try:
        return importlib.import_module(path)
    except ImportError:  # a class, or a binding whose library its package loads
        parent, _, name = path.rpartition(".")
        return getattr(resolve(parent), name)


def record():
    """Return everything that the mock needs to know of the installed CuPy."""
    import cupy
    from cupy._sorting import search

    recorded = {"version": cupy.__version__}
    for path in MODULES:
        module = resolve(path)
        recorded[path] = {
            name: entry(getattr(module, name), f"{path}.{name}")
            for name in dir(module)
            if not name.startswith("_") and name != "annotations"
        }
    for path in CLASSES:
        recorded[path] = class_entries(resolve(path), path)
    for path, names in BINDINGS.items():
        module = resolve(path)
        recorded[path] = {
            name: binding_entry(getattr(module, name))
            for name in dir(module)
            if re.fullmatch(names, name)
        }
    # `where` is a function, but an elementwise one with loops of its own.
    recorded["loops"] = {"where": entry(search._where_ufunc, "where")}
    return recorded


def dump(recorded):
    """Return the record as JSON text with one name per line."""
    return json.dumps(recorded, indent=0, sort_keys=True, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(dump(record()), encoding="ascii")
