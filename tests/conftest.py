"""Array libraries as fixtures: each skipped where it is not installed."""

from __future__ import annotations

import functools
import importlib
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

# "numpy-readonly" hands out arrays that cannot be written: a method that tries raises.
LIBRARIES = ("numpy", "numpy-readonly", "array_api_strict", "torch", "jax")
# Dask computes a graph anew wherever a number is read: for tests that are few and small.
with_dask = pytest.mark.parametrize("lib", [*LIBRARIES, "dask"], indirect=True)
HALF = ("float16", "bfloat16")
DTYPES = ("float32", "float64", "complex64", "complex128")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """One BLAS thread: on small matrices a second one only waits, longest on a busy machine."""
    with threadpool_limits(limits=1):
        yield


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled():
    """What JAX has compiled for the tests of a file takes gigabytes in the end."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@functools.cache
def _module(name: str) -> Any:
    """The library's namespace, or None where it is not installed."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return None
    if name == "jax":
        module.config.update("jax_enable_x64", True)
        return importlib.import_module("jax.numpy")
    if name == "dask":
        module.config.set(scheduler="synchronous")
        return importlib.import_module("dask.array")
    return module


@functools.cache
def ml_dtype(name: str) -> np.dtype | None:
    """NumPy's dtype of a name, ml_dtypes' where NumPy has none, None where neither has it."""
    if hasattr(np, name):
        return np.dtype(name)
    module = _module("ml_dtypes")
    return None if module is None else np.dtype(getattr(module, name))


@dataclass(frozen=True)
class Library:
    """An array library, as tests see it."""

    name: str

    @property
    def xp(self) -> Any:
        return _module(self.name.partition("-")[0])

    def has(self, dtype: str) -> bool:
        """Whether arrays of a dtype can be made."""
        if self.name in ("array_api_strict", "dask"):
            return dtype not in HALF
        if dtype == "bfloat16" and self.name != "torch":
            return ml_dtype(dtype) is not None
        return True

    def asarray(self, a: Any, dtype: str | None = None) -> Any:
        """An array of this library from a NumPy array, never sharing memory with it."""
        a = np.array(a)
        dtype = dtype or a.dtype.name
        if self.name == "torch":
            wide = a.astype(np.float64) if a.dtype.kind == "V" else a
            return self.xp.tensor(wide).to(getattr(self.xp, dtype))
        a = a.astype(ml_dtype(dtype))
        if self.name in ("numpy", "numpy-readonly"):
            a.setflags(write=self.name == "numpy")
            return a
        if self.name == "dask":  # several blocks in every direction
            chunks = [1 if i < a.ndim - 2 else max(1, -(-n // 2)) for i, n in enumerate(a.shape)]
            return self.xp.from_array(a, chunks=tuple(chunks))
        return self.xp.asarray(a)

    def to_numpy(self, x: Any) -> np.ndarray:
        """Back to NumPy in the same dtype (half formats in float32)."""
        if self.name == "torch":
            x = x.detach().resolve_conj()
            return (x.float() if str(x.dtype)[6:] in HALF else x).numpy()
        y = np.array(x)
        if self.name == "dask":  # as announced before anything was computed
            assert (y.dtype, y.shape) == (x.dtype, x.shape)
        return y.astype(np.float32) if y.dtype.name in HALF else y

    def dtype_name(self, x: Any) -> str:
        """Name of an array's dtype."""
        return str(getattr(x.dtype, "name", x.dtype)).rpartition(".")[2]

    def device(self, x: Any) -> Any:
        """Device of an array, None where the library has no such thing."""
        return getattr(x, "device", None)


def library(name: str) -> Library:
    """The library, or a skip."""
    lib = Library(name)
    if lib.xp is None:
        pytest.skip(f"{name} is not installed")
    return lib


@pytest.fixture(params=LIBRARIES)
def lib(request: pytest.FixtureRequest) -> Library:
    """Every installed array library in turn."""
    return library(request.param)


@pytest.fixture
def torch() -> Any:
    """The torch module."""
    return library("torch").xp
