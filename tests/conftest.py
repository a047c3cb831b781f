"""Options of the test suite, and array libraries as fixtures (skipped where not installed)."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from polarlib import testing
from polarlib.arrays.ops import served

# Scripts for type checkers, which make wrong calls where they are imported; modules that need
# optional libraries, which other tests import or run.
collect_ignore_glob = ["typing/*", "torch_processes.py", "uses/cluster.py"]
# "numpy-readonly" hands out arrays that cannot be written: a method that tries raises.
ALWAYS = ("numpy", "numpy-readonly", "array_api_strict")
# CuPy is replaced by a mock.
LIBRARIES = (*ALWAYS, *(name for name in served() if name not in ("numpy", "cupy", "dask")))
# Dask recomputes a graph wherever a number is read: for tests that are few and small.
with_dask = pytest.mark.parametrize("lib", [*LIBRARIES, "dask"], indirect=True)
HALF = ("float16", "bfloat16")
DTYPES = ("float32", "float64", "complex64", "complex128")


def module_of(script: Path) -> Any:
    """Import a script of the repository that is in no package."""
    spec = importlib.util.spec_from_file_location(f"script_{script.stem}", script)
    if spec is None or spec.loader is None:
        raise ImportError(f"{script} is no script of Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that show which assertions hold by luck only."""
    group = parser.getgroup("polarlib")
    group.addoption("--seed", type=int, default=0, help="change the tests' random matrices")
    # On small matrices a second thread only waits.
    group.addoption("--threads", type=int, default=1, help="number of BLAS threads per process")
    group.addoption(
        "--optional", action="store_true", help="only what torch, JAX or Dask can change"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment of worker processes, and seed NumPy's generators and hypothesis."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        # BLAS and OpenMP read it when they are loaded, in a worker process or later in this one.
        os.environ[name] = str(config.getoption("--threads"))
    # Choices of methods by the table alone: what is timed belongs to the machine.
    os.environ.setdefault("POLARLIB_COSTS", "shipped")
    seed = config.getoption("--seed")
    # No deadline: how long an example takes depends on what else the machine does.
    hypothesis.settings.register_profile("polarlib", deadline=None, derandomize=not seed)
    hypothesis.settings.load_profile("polarlib")
    if seed:
        hypothesis.core.global_force_seed = seed
        np.random.default_rng = functools.partial(_generator, np.random.default_rng, seed)


def _generator(default_rng: Any, extra: int, seed: Any = None) -> np.random.Generator:
    """Make the generator of another seed where a test asks, itself or through polarlib.testing.

    polarlib's own probes, its data and its doctests keep their seeds.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == testing.__file__:
        frame = frame.f_back
    tests = frame is not None and Path(__file__).parent in Path(frame.f_code.co_filename).parents
    if tests and isinstance(seed, int | np.integer | list):
        seed = [*(seed if isinstance(seed, list) else [seed]), extra]
    return default_rng(seed)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many wrong calls were made (tests/test_fuzz.py)."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    counts = [n for r in reports for name, n in r.user_properties if name == "wrong calls"]
    if counts:
        terminalreporter.write_line(f"{sum(counts)} wrong calls of the public interface")


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark as slow what `thinned` leaves out, and deselect what `--optional` does."""
    for item in items:
        mark = item.get_closest_marker("thinned")
        if mark is not None and _place(item) % mark.args[0]:
            item.add_marker("slow")
    if config.getoption("--optional"):
        dropped = [item for item in items if not _optional(item)]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if _optional(item)]


# Of tests that neither name a library nor get one, every so manyth runs again beside libraries.
AGAIN = 48


def _place(item: Any) -> int:
    """Sum of the numbers of a case's parameters, each list of cases counted once.

    Where it is 0 modulo k, each value of a parameter meets every kth value of another one, and
    every value if a third parameter has k values: a Latin square.
    """
    if not hasattr(item, "callspec"):
        return 0
    numbers = dict(item.callspec.indices)
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0]
        for name in names[1:]:
            del numbers[name.strip()]
    return sum(numbers.values())


def _optional(item: Any) -> bool:
    """Whether a test may depend on an optional library: by its parameters, its text, its file.

    Of tests in files that name a library, those that do not are thinned: all of them are in the run
    without libraries, and a part shows whether it matters that some are there.
    """
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    libraries = {value for value in values if isinstance(value, str) and value in LIBRARIES}
    if libraries and libraries <= set(ALWAYS):
        return False
    if not isinstance(item, pytest.Function) or not _names_a_library(item.path):
        return False
    named = libraries or _needs_a_library(item.path) or LIBRARY.search(item.nodeid)
    return bool(named or _text_names_a_library(item.function)) or _place(item) % AGAIN == 0


LIBRARY = re.compile(r"\b(torch|jax|dask|lib|library)\b")


@functools.cache
def _names_a_library(path: Path) -> bool:
    return bool(LIBRARY.search(path.read_text("utf-8")))


@functools.cache
def _needs_a_library(path: Path) -> bool:
    """Whether all of a file is skipped without a library."""
    return bool(re.search(r"(?m)^(\w+ = )?pytest\.importorskip", path.read_text("utf-8")))


@functools.cache
def _text_names_a_library(function: Any) -> bool:
    return bool(LIBRARY.search(inspect.getsource(function)))


def off_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have tensors of the CPU go the way of those on devices."""
    kind = importlib.import_module("polarlib.arrays.torch_ops").TorchOps
    init = kind.__init__

    def elsewhere(
        self: Any, xp: Any, device: Any, *, fused: bool = False, host: bool = True
    ) -> None:
        init(self, xp, device, fused=fused, host=False)

    monkeypatch.setattr(kind, "__init__", elsewhere)


@pytest.fixture(scope="session", autouse=True)
def _threads(request: pytest.FixtureRequest):
    """Limit BLAS libraries to `--threads`, those already loaded as well."""
    with threadpool_limits(limits=request.config.getoption("--threads")):
        yield


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled():
    """What JAX has compiled for the tests of a file takes gigabytes in the end.

    torch stops compiling a function that it has compiled too often.
    """
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


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
        """Device of an array; before NumPy 2.1 its scalars had none."""
        return getattr(x, "device", "cpu")


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


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a matrix, A.npy, to work in: for tests of the command line."""
    monkeypatch.chdir(tmp_path)
    np.save("A.npy", np.random.default_rng(0).standard_normal((6, 4)))
    return tmp_path
