"""Real CuPy on devices that are not there: its code runs, kernels are compiled and not executed.

    from device import fake_cuda
    cupy = fake_cuda.install()          # before anything imports CuPy
    with fake_cuda.recorded() as counts:
        polarlib.orthogonalize(cupy.ones((64, 32)))

CuPy's modules call CUDA through tables of C functions, which are replaced here: memory is the
host's, streams and events are numbers, launches and waits are counted. NVRTC is the real one. Calls
of cuBLAS and cuSOLVER are counted by name, after a check of the number and the types of arguments.

It proves which calls CuPy accepts, result types, launches, waits, copies and allocations, and that
kernels compile. It proves no value, since memory holds the byte `FILL` wherever nothing was
copied, and therefore no branch on a value; no speed; and nothing of what the libraries do.
Sorting, searching and scans are compiled into CuPy and fail. Written for CuPy 14.2. A process ends
by ``os._exit``: handles of libraries cannot be destroyed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import itertools
import os
import re
import traceback
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from . import tables

FILL = 0x3F  # 0.747 in float32, 0.746 in bfloat16, 4.8e-4 in float64: positive and finite
ALIGNED = 512  # bytes, as CUDA's allocations are
COPIES = {0: "host to host", 1: "to device", 2: "to host", 3: "on device", 4: "on device"}
# Of an H100, as far as CuPy asks: cudaDeviceAttr and value.
ATTRIBUTES = {1: 1024, 8: 49152, 10: 32, 16: 132, 39: 2048, 97: 232448, 115: 1}
PROPERTIES = {
    "name": b"a device that is not there",
    "totalGlobalMem": 80 << 30,
    "multiProcessorCount": 132,
    "warpSize": 32,
    "maxThreadsPerBlock": 1024,
    "sharedMemPerBlock": 49152,
    "maxGridSize": (2**31 - 1, 65535, 65535),
}
# Functions of the runtime and the driver that have nothing to do here.
IDLE = frozenset(
    {
        *("eventDestroy", "eventRecord", "eventQuery", "streamDestroy"),
        *("streamQuery", "streamWaitEvent", "freeArray", "deviceEnablePeerAccess"),
        *("_deviceEnsurePeerAccess", "profilerStart", "profilerStop", "graphDestroy"),
        *("graphExecDestroy", "memPoolTrimTo", "moduleUnload", "funcSetAttribute"),
        *("ctxSetCurrent", "check_status", "_ensure_context"),
    }
)
# Functions that ask no device.
KEPT = ("get_build_version", "_getLocalRuntimeVersion", "getLocalRuntimeVersion")
# Functions of libraries that make, ask or set, and give the device nothing to do.
QUIET = re.compile(
    r"create|destroy|Create|Destroy|PointerMode|MathMode|Stream$|ufferSize|getVersion|Info$|Params"
    r"|Set(Tolerance|MaxSweeps|SortEig)|setWorkspace|_getVersion|getProperty|check_status"
)


@dataclass
class Counts:
    """What the host asked of the devices."""

    launches: Counter[str] = field(default_factory=Counter)
    libraries: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    memsets: int = 0
    allocations: int = 0
    modules: int = 0
    # What was not foreseen here, and exceptions that C cannot pass on: counts are then wrong.
    faults: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, int]:
        """Numbers alone."""
        return {
            "kernels": self.launches.total(),
            "library calls": self.libraries.total(),
            "waits": self.waits.total(),
            "to device": self.copies["to device"],
            "to host": self.copies["to host"],
            "copies": self.copies["on device"],
            "memsets": self.memsets,
            "allocations": self.allocations,
            "modules": self.modules,
        }


def place() -> str:
    """The innermost three lines of polarlib that are being executed."""
    frames = [f for f in traceback.extract_stack() if f"{os.sep}polarlib{os.sep}" in f.filename]
    return " < ".join(f"{os.path.basename(f.filename)}:{f.lineno}" for f in frames[:-4:-1])


class Devices:
    """The state of devices that are not there, and the functions of CUDA's runtime and driver.

    Methods with the name of a function of CuPy's bindings take its place.
    """

    def __init__(self, count: int, capability: int, peers: bool) -> None:
        self.count, self.capability, self.peers = count, capability, peers
        self.current, self.capturing = 0, False
        self.counts = Counts()
        self.blocks: dict[int, Any] = {}
        self.pinned: set[int] = set()
        self.functions: dict[int, str] = {}
        self.numbers = itertools.count(1 << 40, 64)

    def number(self, *_: Any) -> int:
        """Return a handle that is none yet."""
        return next(self.numbers)

    def failed(self, name: str, error: BaseException) -> None:
        """Note an exception that C cannot pass on."""
        self.counts.faults.append(f"{name}: {type(error).__name__}: {error}")

    def wait(self, name: str) -> None:
        """Note that the host waits, and where."""
        self.counts.waits[f"{name} [{place()}]"] += 1

    # -- devices

    def getDevice(self) -> int:
        return self.current

    def getDeviceCount(self) -> int:
        return self.count

    def setDevice(self, device: int) -> None:
        if not 0 <= device < self.count:
            raise ValueError(f"there is no device {device}")
        self.current = device

    def deviceGetAttribute(self, attribute: int, device: int) -> int:
        major, minor = divmod(self.capability, 10)
        return (ATTRIBUTES | {75: major, 76: minor}).get(attribute, 0)

    def getDeviceProperties(self, device: int) -> dict[str, Any]:
        major, minor = divmod(self.capability, 10)
        return PROPERTIES | {"major": major, "minor": minor}

    def deviceCanAccessPeer(self, device: int, peer: int) -> int:
        return int(self.peers)

    def driverGetVersion(self) -> int:
        return 13020

    runtimeGetVersion = driverGetVersion

    def _getCUDAMajorVersion(self) -> int:
        return 13

    def memGetInfo(self) -> tuple[int, int]:
        return 64 << 30, 80 << 30

    # -- memory

    def malloc(self, size: int, *_: Any) -> int:
        block = (ctypes.c_char * (size + ALIGNED))()
        ctypes.memset(block, FILL, size + ALIGNED)
        at = -(-ctypes.addressof(block) // ALIGNED) * ALIGNED
        self.blocks[at] = block
        self.counts.allocations += 1
        return at

    mallocAsync = mallocManaged = mallocFromPoolAsync = malloc

    def hostAlloc(self, size: int, *_: Any) -> int:
        at = self.malloc(size)
        self.counts.allocations -= 1  # of the host's memory
        self.pinned.add(at)
        return at

    def pointerGetMemoryType(self, at: int) -> int:
        if at not in self.blocks:
            return 0  # what CUDA does not know
        return 1 if at in self.pinned else 2

    def free(self, at: int, *_: Any) -> None:
        self.blocks.pop(at, None)
        self.pinned.discard(at)

    freeAsync = freeHost = free

    def memcpyAsync(self, to: int, of: int, size: int, kind: int, *_: Any) -> None:
        self.counts.copies[COPIES[kind]] += 1
        ctypes.memmove(to, of, size)

    def memcpy(self, to: int, of: int, size: int, kind: int) -> None:
        self.wait("memcpy")
        self.memcpyAsync(to, of, size, kind)

    def memcpyPeerAsync(
        self, to: int, device: int, of: int, other: int, size: int, *_: Any
    ) -> None:
        self.counts.copies["between devices"] += 1
        ctypes.memmove(to, of, size)

    def memsetAsync(self, at: int, value: int, size: int, *_: Any) -> None:
        self.counts.memsets += 1
        ctypes.memset(at, value, size)

    memset = memsetAsync

    # -- streams, events, graphs

    streamCreate = streamCreateWithFlags = streamCreateWithPriority = number
    eventCreate = eventCreateWithFlags = linkCreate = graphInstantiate = number

    def deviceSynchronize(self) -> None:
        self.wait("deviceSynchronize")

    def streamSynchronize(self, stream: int) -> None:
        self.wait("streamSynchronize")

    def eventSynchronize(self, event: int) -> None:
        self.wait("eventSynchronize")

    def eventElapsedTime(self, begun: int, ended: int) -> float:
        return 1.0

    def streamIsCapturing(self, stream: int) -> int:
        return int(self.capturing)

    def streamBeginCapture(self, stream: int, *_: Any) -> None:
        self.capturing = True

    def streamEndCapture(self, stream: int) -> int:
        self.capturing = False
        return self.number()

    # -- kernels

    def moduleLoadData(self, binary: Any) -> int:
        self.counts.modules += 1
        return self.number()

    moduleLoad = moduleLoadData

    def moduleGetFunction(self, module: int, name: str) -> int:
        handle = self.number()
        self.functions[handle] = str(name)
        return handle

    def launchKernel(self, function: int, *given: Any) -> None:
        grid, block = given[:3], given[3:6]
        threads = block[0] * block[1] * block[2]
        if min(*grid, *block) < 1 or threads > 1024 or max(grid[1:]) > 65535:
            raise ValueError(f"{self.functions[function]}: grid {grid}, block {block}")
        self.counts.launches[self.functions[function]] += 1

    launchCooperativeKernel = launchKernel

    def funcGetAttribute(self, attribute: int, function: int) -> int:
        return 0

    def occupancyMaxActiveBlocksPerMultiprocessor(self, *_: Any) -> int:
        return 8

    def occupancyMaxPotentialBlockSize(self, *_: Any) -> tuple[int, int]:
        return 132, 1024

    def ctxGetCurrent(self) -> int:
        return 1

    def ctxGetDevice(self) -> int:
        return self.current

    def streamGetCtx(self, stream: int) -> int:
        return 1

    # -- what takes the place of a function

    def maker(self, name: str, result: str, count: int) -> Callable[..., Any] | None:
        """Of the runtime and the driver: a method, nothing, or a fault."""
        if name in KEPT:
            return None
        if name in IDLE:
            return lambda *_: None if result == "PyObject *" else 0
        known = getattr(self, name, None)
        if known is None:

            def known(*_: Any) -> None:
                raise NotImplementedError(f"{name} is not replaced")

        return known

    def library(self, library: str) -> tables.Maker:
        """Of a library: what the host reads has a value, all else is counted."""
        modes: dict[tuple[str, int], int] = {}

        def make(name: str, result: str, count: int) -> Callable[..., Any]:
            def call(*given: Any) -> Any:
                if not QUIET.search(name):
                    if self.capturing:  # each of CuPy's bindings sets its stream, and raises there
                        raise NotImplementedError(f"calling {library} API during stream capture")
                    self.counts.libraries[f"{library}.{name}"] += 1
                    if name.endswith("getrsBatched"):  # it reports to the host
                        ctypes.c_int.from_address(given[9]).value = 0
                elif name in ("setPointerMode", "setMathMode"):
                    modes[name[3:], given[0]] = given[1]
                elif name in ("getPointerMode", "getMathMode"):
                    return modes.get((name[3:], given[0]), 0)
                elif re.match(r"(sp)?[cC]reate", name):
                    return self.number()
                elif name == "getVersion":
                    return 130400
                elif name.endswith("ufferSize"):
                    return (64, 64) if result in ("", *PAIRS) else 64
                return None if result == "PyObject *" else 0

            return call

        return make

    def functions_of(self, library: str, names: tuple[str, ...]) -> types.SimpleNamespace:
        """Functions by name, each counted as a call of a library: for bindings by ctypes."""
        make = self.library(library)
        return types.SimpleNamespace(**{name: make(name, "int", -1) for name in names})


PAIRS = ("__pyx_ctuple_size_t__and_size_t", "tuple")
_installed: list[Devices] = []
_kept: list[Any] = []
# What C still finds as it was.
left: list[str] = []


def devices() -> Devices:
    """The devices that `install` made."""
    return _installed[0]


def install(
    capability: int = 90, *, count: int = 2, peers: bool = False, compiled: bool = True
) -> Any:
    """Import CuPy on devices that are not there, and return it.

    Parameters
    ----------
    capability : int, optional
        Compute capability, times ten.
    count : int, optional
        Number of devices.
    peers : bool, optional
        Whether a device can read the memory of another one.
    compiled : bool, optional
        Whether NVRTC compiles kernels; otherwise a module of nothing is loaded for each.
    """
    state = Devices(count, capability, peers)
    _installed.append(state)
    # Modules are counted where they are compiled, and none is to come from an earlier process.
    os.environ["CUPY_CACHE_IN_MEMORY"] = "1"
    # The modules of CUDA are imported through CuPy's package, which must not be imported before.
    for name in ("runtime", "driver"):
        _replace(importlib.import_module(f"cupy_backends.cuda.api.{name}"), state.maker)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy looks for CUDA, and says that there is none
        cupy = importlib.import_module("cupy")
    if not compiled:
        compiler = importlib.import_module("cupy.cuda.compiler")
        compiler._compile_using_nvrtc_no_warning = lambda *_, **__: (b"nothing", None)
        compiler._preprocess = lambda *_, **__: b""
    for name in ("cublas", "cusolver", "cusparse", "curand"):
        try:
            module = getattr(importlib.import_module("cupy_backends.cuda.libs"), name)
        except (AttributeError, ImportError):  # the library is not installed
            continue
        _replace(module, state.library(name))
    _replace_compiled(cupy, state)
    pool = cupy.get_default_memory_pool()

    def malloc(size: int) -> Any:
        # Which block the pool gives out again depends on addresses; what is in it must not.
        memory = pool.malloc(size)
        ctypes.memset(memory.ptr, FILL, size)
        return memory

    cupy.cuda.set_allocator(malloc)
    return cupy


def _replace(module: Any, make: tables.Maker) -> None:
    kept, not_replaced = tables.replace(module, make, devices().failed)
    _kept.extend(kept)
    left.extend(not_replaced)


def _replace_compiled(cupy: Any, state: Devices) -> None:
    """Replace what has a runtime of CUDA, or loops over a library, compiled into it."""
    cub = importlib.import_module("cupy.cuda.cub")
    for name in ("device_reduce", "device_segmented_reduce"):
        setattr(cub, name, _reduction(cupy, state, name))
    try:
        solver = importlib.import_module("cupyx.cusolver")
    except ImportError:  # cuSOLVER is not installed
        return
    solver._gesvd_batched = _batched_svd(cupy, state, "gesvd", True)
    solver._gesvdj_batched = _batched_svd(cupy, state, "gesvdjBatched", False)

    def batched_qr(a: Any, mode: str) -> tuple[Any, Any]:
        count, m, n = a.shape
        for name in ("geqrf", "orgqr"):
            state.counts.libraries[f"cusolver.{name}, one by one"] += count
        dtype, _ = cupy.linalg._util.linalg_common_type(a)
        shapes = (count, m, min(m, n)), (count, min(m, n), n)
        return tuple(cupy.empty(shape, dtype) for shape in shapes)

    solver._geqrf_orgqr_batched = batched_qr


def _reduction(cupy: Any, state: Devices, name: str) -> Callable[..., Any]:
    def reduce(
        x: Any, op: int, axes: Any, rest: Any, out: Any = None, keepdims: bool = False, *_: Any
    ) -> Any:
        if not x.flags.c_contiguous:
            x = cupy.ascontiguousarray(x)
        state.counts.launches[f"cub.{name}"] += 1
        shape = tuple(
            1 if i in axes else n for i, n in enumerate(x.shape) if keepdims or i not in axes
        )
        result = cupy.ndarray(shape, x.dtype)
        if out is None:
            return result
        cupy._core.elementwise_copy(result, out)
        return out

    return reduce


def _batched_svd(cupy: Any, state: Devices, name: str, one_by_one: bool) -> Callable[..., Any]:
    def svd(a: Any, *options: Any) -> Any:
        (count, m, n), (full, vectors) = a.shape, options[-3:-1]
        k = min(m, n)
        label = f"cusolver.{name}, one by one" if one_by_one else f"cusolver.{name}"
        state.counts.libraries[label] += count if one_by_one else 1
        state.counts.launches["cupy_copy"] += 1  # of the matrices, which are overwritten
        values = cupy.empty((count, k), a.dtype.char.lower())
        if not vectors:
            return values
        shapes = (count, m, m if full else k), (count, n if full else k, n)
        left_vectors, right_vectors = (cupy.empty(shape, a.dtype) for shape in shapes)
        return left_vectors, values, right_vectors

    return svd


@contextlib.contextmanager
def recorded() -> Iterator[Counts]:
    """Counts of what the devices are asked within the block."""
    state = devices()
    before, state.counts = state.counts, Counts()
    try:
        yield state.counts
    finally:
        state.counts = before
