"""One list of calls on real CuPy, on devices that are not there, or on the mock of the tests.

    python -m tests.device.against_standin real
    python -m tests.device.against_standin standin

prints the types and shapes of every result, or the class of the exception, and whether the host
waited, as JSON. Sorting and searching are left out, which devices that are not there cannot do.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {d: d for d in ("f4", "f8", "c8", "c16", "f2", "i4", "?")} | {"bf16": ml_dtypes.bfloat16}
UNARY = (
    *("negative", "absolute", "sqrt", "isfinite", "isnan", "floor", "ceil", "log2", "exp2", "exp"),
    *("log", "conj", "real", "imag", "sign", "square", "rint", "frexp", "signbit", "reciprocal"),
    *("angle", "round", "copy", "ones_like", "zeros_like", "empty_like", "nan_to_num", "tril"),
    *("triu", "trace", "diagonal", "transpose", "ravel", "ascontiguousarray"),
)
BINARY = (
    *("add", "subtract", "multiply", "true_divide", "maximum", "minimum", "power", "greater"),
    *("less", "equal", "not_equal", "ldexp", "logical_and", "copysign", "hypot"),
)
REDUCTIONS = ("sum", "max", "min", "prod", "mean", "any", "all", "count_nonzero")
SCALARS = (2, 2.5, 1j, np.float32(2), np.float64(2), True)
LINALG = ("cholesky", "qr", "inv", "eigvalsh", "eigh", "norm", "det", "slogdet")


def _in_place(x: Any, change: Callable[[], Any]) -> Any:
    change()
    return x


def others(cp: Any, x: Any, y: Any) -> dict[str, Callable[[], Any]]:
    """Calls of a matrix and a stack that are no function of one or two arrays alone."""
    solve = __import__("cupyx.scipy.linalg", fromlist=["x"]).solve_triangular
    return {
        "where": lambda: cp.where(x > 0, x, cp.ones_like(x)),
        "where, a number": lambda: cp.where(x > 0, x, 1.0),
        "where, numbers": lambda: cp.where(x > 0, 2, 1.0),
        "eye": lambda: cp.eye(3, dtype=x.dtype),
        "full": lambda: cp.full((2,), 1.5, dtype=x.dtype),
        "arange": lambda: cp.arange(5, dtype=x.dtype),
        "concatenate": lambda: cp.concatenate([x, x], axis=-1),
        "stack": lambda: cp.stack([x, x]),
        "broadcast_to": lambda: cp.broadcast_to(x, (3, 4, 4)),
        "swapaxes": lambda: y.swapaxes(-1, -2),
        "reshape": lambda: x.reshape(-1),
        "astype float32": lambda: x.astype("f4"),
        "astype bfloat16": lambda: x.astype(ml_dtypes.bfloat16),
        "float": lambda: float(x[0, 0].real),
        "bool": lambda: bool(x[0, 0]),
        "item": lambda: x[0, 0].item(),
        "tolist": lambda: x.tolist(),
        "get": lambda: x.get(),
        "numpy.asarray": lambda: np.asarray(x),
        "setitem": lambda: _in_place(x, lambda: x.__setitem__(0, 2.5)),
        "setitem, of the host": lambda: _in_place(x, lambda: x.__setitem__(0, np.ones(4))),
        "fill": lambda: _in_place(x, lambda: x.fill(1.5)),
        "add in place": lambda: x.__iadd__(1.5),
        "divide into": lambda: cp.divide(x, cp.ones((1, 1), "f4"), out=cp.empty_like(x)),
        "multiply into": lambda: cp.multiply(x, 1j, out=cp.empty_like(x)),
        "solve": lambda: cp.linalg.solve(x, x),
        "solve, stack": lambda: cp.linalg.solve(y, y),
        "svd": lambda: cp.linalg.svd(x, full_matrices=False),
        "svd, stack": lambda: cp.linalg.svd(y, full_matrices=False),
        "solve_triangular": lambda: solve(x, x, lower=True),
        "allclose": lambda: bool(cp.allclose(x, x)),
        "array_equal": lambda: bool(cp.array_equal(x, x)),
    }


def calls(cp: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every call with its name."""

    def array(d: str, *shape: int) -> Any:
        return cp.asarray(np.ones(shape or (4, 4)).astype(DTYPES[d]))

    for name, d in itertools.product(UNARY, DTYPES):
        yield f"{name}({d})", lambda name=name, d=d: getattr(cp, name)(array(d))
    for name, d, e in itertools.product(BINARY, DTYPES, DTYPES):
        yield (
            f"{name}({d}, {e})",
            lambda name=name, d=d, e=e: getattr(cp, name)(array(d), array(e)),
        )
    for name, d, s in itertools.product(BINARY[:6], DTYPES, SCALARS):
        label = f"{type(s).__name__} {s}"
        yield f"{name}({d}, {label})", lambda n=name, d=d, s=s: getattr(cp, n)(array(d), s)
        yield f"{name}({label}, {d})", lambda n=name, d=d, s=s: getattr(cp, n)(s, array(d))
    for name, d in itertools.product(REDUCTIONS, DTYPES):
        for how in ({}, {"axis": (-2, -1), "keepdims": True}, {"axis": -1}):
            yield (
                f"{name}({d}, {how})",
                lambda n=name, d=d, how=how: getattr(cp, n)(array(d, 2, 3, 3), **how),
            )
    for name, d in itertools.product(LINALG, DTYPES):
        for shape in ((4, 4), (2, 4, 4)):
            yield (
                f"linalg.{name}({d}, {shape})",
                lambda n=name, d=d, shape=shape: getattr(cp.linalg, n)(array(d, *shape)),
            )
    for d in DTYPES:
        x, y = array(d), array(d, 2, 4, 4)
        for name in others(cp, x, y):
            yield f"{name}({d})", lambda n=name, d=d: others(cp, array(d), array(d, 2, 4, 4))[n]()
        if d not in ("i4", "?"):  # by a kernel that is compiled into CuPy
            for name in ("matmul", "dot"):
                yield f"{name}({d})", lambda n=name, d=d: getattr(cp, n)(array(d), array(d))
            yield f"matmul({d}, stack)", lambda y=y: cp.matmul(y, y)


def described(value: Any) -> str:
    """Types and shapes of a result."""
    if isinstance(value, tuple):
        return ", ".join(map(described, value))
    return f"{getattr(value, 'dtype', type(value).__name__)}{tuple(getattr(value, 'shape', ()))}"


def run(cp: Any, waits: Callable[[], int]) -> dict[str, list[Any]]:
    """Every call: what it gives, and whether the host waits for it."""
    found: dict[str, list[Any]] = {}
    for name, call in calls(cp):
        before = waits()
        try:
            result = described(call())
        except Exception as error:
            result = f"raises {type(error).__name__}"
        found[name] = [result, waits() > before]
    return found


def main() -> None:
    """Print what one of the two gives."""
    warnings.simplefilter("ignore")
    if "real" in sys.argv:
        from . import fake_cuda

        cupy = fake_cuda.install(compiled=False)
        context: Any = fake_cuda.recorded()
        with context as counts:
            found = run(cupy, counts.waits.total)
    else:
        from standin import cupy_standin

        context = cupy_standin.installed() if "standin" in sys.argv else contextlib.nullcontext()
        with context as cupy:
            found = run(cupy, cupy_standin.syncs)
    print(json.dumps(found))  # noqa: T201
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
