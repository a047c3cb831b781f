"""Array libraries on a device: making arrays, waiting, times, memory."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from polarlib.arrays.library import numpy_dtype

Array = Any
Call = Callable[[], Any]
REPEATS = 20  # calls behind each other in one measurement, at most
ROUNDS = 3  # measurements of each function, interleaved
SPIN_LIMIT = 1.0  # seconds
# Keeps the device busy for some nanoseconds: calls that wait for it are seen, and calls that do not
# are queued behind it.
SPIN = r"""
extern "C" __global__ void polarlib_spin(unsigned long long nanoseconds) {
  unsigned long long begun, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begun));
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  } while (now - begun < nanoseconds);
}
"""


@dataclass(frozen=True)
class Times:
    """Seconds of one call.

    Attributes
    ----------
    device : float or None
        Between events on the device, the queue full: what a training step pays. None where the
        library has no events.
    host : float
        Until the call returns, the queue empty.
    wall : float
        Until the result is there, the queue empty.
    kind : str
        Which of them is the best known: "device", "call", or "first call", which may compile.
    """

    device: float | None
    host: float
    wall: float
    kind: str = "call"

    @property
    def best_known(self) -> float:
        return self.wall if self.device is None else self.device


class Library:
    """One array library; subclasses know how to wait and to measure."""

    name = ""
    formats: tuple[str, ...] = (
        *("bfloat16", "float32", "float16", "float64"),
        *("complex64", "complex128"),
    )

    def __init__(self, module: Any, device: str) -> None:
        self.module = module
        self.on_gpu = device == "gpu"

    def make(self, a: np.ndarray, dtype: str) -> Array:
        """An array on the device, of the numbers of a NumPy array."""
        raise NotImplementedError

    def host(self, x: Array) -> np.ndarray:
        """NumPy's copy in double precision."""
        raise NotImplementedError

    def wait(self, result: Any) -> None:
        """Wait for all work of the device, or for a result."""

    def about(self) -> dict[str, Any]:
        """Versions, and the device."""
        return {self.name: self.module.__version__}

    def queued(self, call: Call, count: int, hold: float) -> float | None:
        """Seconds of one of `count` calls on the device, behind a kernel of `hold` seconds."""
        return None

    def peak(self, call: Call) -> int | None:
        """Most bytes that a call has in use beyond what was; None where it is not known."""
        return None

    def svd(self, x: Array) -> Any:
        """The thin SVD that users have."""
        return self.module.linalg.svd(x, full_matrices=False)

    def first(self, call: Call) -> float:
        """Seconds of a first call, which may compile."""
        begun = time.perf_counter()
        self.wait(call())
        return time.perf_counter() - begun

    def times(
        self, calls: dict[str, Call], first: dict[str, float], seconds: float
    ) -> dict[str, Times]:
        """Return medians over interleaved measurements, in about `seconds` for all functions.

        Of a function whose first call took longer than its part of the time, that is all there is.
        """
        part = seconds / max(1, len(calls))
        short = {name: call for name, call in calls.items() if first[name] < part or not part}
        alone = {name: self._alone(call, part / 2) for name, call in short.items()}
        total = sum(times[-1][1] for times in alone.values())
        count = max(1, min(REPEATS, int(seconds / 2 / (ROUNDS * total + 1e-9))))
        devices: dict[str, list[float]] = {name: [] for name in short}
        for turn in range(ROUNDS if seconds > 2 * ROUNDS * total else 1):
            names = list(short)
            for name in names[turn % len(names) :] + names[: turn % len(names)] if names else ():
                hold = min(SPIN_LIMIT, 1.5 * count * alone[name][-1][0])
                spent = self.queued(short[name], count, hold)
                if spent is not None:
                    devices[name].append(spent)
        found = {name: Times(None, t, t, "first call") for name, t in first.items()}
        for name, each in alone.items():
            host, wall = (statistics.median(times) for times in zip(*each, strict=True))
            device = statistics.median(devices[name]) if devices[name] else None
            found[name] = Times(device, host, wall, "call" if device is None else "device")
        return found

    def _alone(self, call: Call, seconds: float) -> list[tuple[float, float]]:
        """Times until a call returns, and until its result is there."""
        found: list[tuple[float, float]] = []
        end = time.perf_counter() + seconds
        while not found or (len(found) < ROUNDS and time.perf_counter() < end):
            begun = time.perf_counter()
            result = call()
            returned = time.perf_counter()
            self.wait(result)
            found.append((returned - begun, time.perf_counter() - begun))
        return found


class Torch(Library):
    """torch on CUDA, or on the CPU."""

    name = "torch"

    def __init__(self, module: Any, device: str) -> None:
        super().__init__(module, device)
        if self.on_gpu and not module.cuda.is_available():
            raise ValueError(f"torch {module.__version__} has no GPU that it can use")
        self.place = module.device("cuda" if self.on_gpu else "cpu")

    def make(self, a: np.ndarray, dtype: str) -> Array:
        return self.module.tensor(a, device=self.place).to(getattr(self.module, dtype))

    def host(self, x: Array) -> np.ndarray:
        torch = self.module
        x = x.detach().resolve_conj()
        return x.to(torch.complex128 if x.is_complex() else torch.float64).cpu().numpy()

    def wait(self, result: Any) -> None:
        if self.on_gpu:
            self.module.cuda.synchronize()

    def about(self) -> dict[str, Any]:
        found = super().about()
        if self.on_gpu:
            properties = self.module.cuda.get_device_properties(self.place)
            found |= {"gpu": properties.name, "CUDA of torch": self.module.version.cuda}
            found["compute capability"] = f"{properties.major}.{properties.minor}"
        return found

    def hold(self, seconds: float) -> None:
        """Keep the device busy."""
        self.module.cuda._sleep(int(2e9 * seconds))  # cycles

    def queued(self, call: Call, count: int, hold: float) -> float | None:
        if not self.on_gpu:
            return None
        begun, ended = (self.module.cuda.Event(enable_timing=True) for _ in range(2))
        self.hold(hold)
        begun.record()
        for _ in range(count):
            call()
        ended.record()
        self.module.cuda.synchronize()
        return float(begun.elapsed_time(ended)) / 1000 / count

    def peak(self, call: Call) -> int | None:
        if not self.on_gpu:
            return None
        cuda = self.module.cuda
        kept = call()  # compiles
        del kept
        cuda.synchronize()
        before = cuda.memory_allocated()
        cuda.reset_peak_memory_stats()
        call()
        cuda.synchronize()
        return int(cuda.max_memory_allocated() - before)


class Jax(Library):
    """JAX on its default device."""

    name = "jax"

    def __init__(self, module: Any, device: str) -> None:
        super().__init__(module, device)
        found = module.default_backend()
        if found != device:
            raise ValueError(f"JAX's default backend is {found!r}, not {device!r}")
        self.numpy = importlib.import_module("jax.numpy")

    def make(self, a: np.ndarray, dtype: str) -> Array:
        return self.numpy.asarray(a).astype(dtype)

    def host(self, x: Array) -> np.ndarray:
        return np.asarray(x.astype("complex128" if "complex" in str(x.dtype) else "float64"))

    def wait(self, result: Any) -> None:
        self.module.block_until_ready(result)

    def about(self) -> dict[str, Any]:
        return super().about() | {"devices of jax": str(self.module.devices())}

    def queued(self, call: Call, count: int, hold: float) -> float | None:
        """JAX has no events: the wall time of calls behind each other."""
        begun = time.perf_counter()
        for _ in range(count):
            result = call()
        self.wait(result)
        return (time.perf_counter() - begun) / count

    def svd(self, x: Array) -> Any:
        return self.numpy.linalg.svd(x, full_matrices=False)


class Cupy(Library):
    """CuPy, or its mock."""

    name = "cupy"

    def __init__(self, module: Any, device: str) -> None:
        super().__init__(module, device)
        if not module.cuda.runtime.getDeviceCount():
            raise ValueError("there is no GPU that CuPy can use")
        self._spin: Any = None

    def make(self, a: np.ndarray, dtype: str) -> Array:
        return self.module.asarray(a.astype(numpy_dtype(dtype)))

    def host(self, x: Array) -> np.ndarray:
        a = x.get()
        return np.asarray(a.astype("c16" if a.dtype.kind == "c" else "f8"))

    def wait(self, result: Any) -> None:
        self.module.cuda.Device().synchronize()

    def about(self) -> dict[str, Any]:
        found = super().about()
        if self.on_gpu:
            runtime = self.module.cuda.runtime
            name = runtime.getDeviceProperties(0)["name"]
            found |= {"gpu": name.decode() if isinstance(name, bytes) else str(name)}
            found |= {"driver": runtime.driverGetVersion()}
            found |= {"CUDA of CuPy": runtime.runtimeGetVersion()}
            found["compute capability"] = str(self.module.cuda.Device().compute_capability)
        return found

    def hold(self, seconds: float) -> None:
        """Keep the device busy."""
        if self._spin is None:
            self._spin = self.module.RawKernel(SPIN, "polarlib_spin")
        self._spin((1,), (1,), (np.uint64(1e9 * seconds),))

    def queued(self, call: Call, count: int, hold: float) -> float | None:
        if not self.on_gpu:
            return None
        cuda = self.module.cuda
        begun, ended = cuda.Event(), cuda.Event()
        self.hold(hold)
        begun.record()
        for _ in range(count):
            call()
        ended.record()
        ended.synchronize()
        return float(cuda.get_elapsed_time(begun, ended)) / 1000 / count

    def peak(self, call: Call) -> int | None:
        class Usage(self.module.cuda.MemoryHook):  # type: ignore[name-defined, misc]
            name = "polarlib workspace"
            used = peak = 0

            def malloc_postprocess(self, **kwargs: Any) -> None:
                self.used += kwargs["mem_size"]
                self.peak = max(self.peak, self.used)

            def free_postprocess(self, **kwargs: Any) -> None:
                self.used -= kwargs["mem_size"]

        call()  # compiles, and lets cuBLAS take its own
        with Usage() as usage:
            call()
        return int(usage.peak)


KINDS: dict[str, type[Library]] = {"torch": Torch, "cupy": Cupy, "jax": Jax}
