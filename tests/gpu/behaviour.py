"""Parts about the device's way of working: first calls, waiting, streams, graphs, memory."""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import polarlib
from gpu.context import REAL, Context, gaussian, largest
from gpu.libraries import Library
from polarlib.arrays import cublas

KINDS = ("moments", "frobenius", "spectral")  # of normalisation
HOLD = 0.2  # seconds that a kernel keeps the device busy
# Two copies of the input and three squares of half its size, and what norms take.
WORKSPACE = 3.55


def machine(context: Context) -> dict[str, Any]:
    """What the figures are measured on."""
    found: dict[str, Any] = {"python": platform.python_version(), "numpy": np.__version__}
    found |= {"polarlib": polarlib.__version__, "processors": platform.machine()}
    for library in context.libraries.values():
        found |= library.about()
    if "cupy" in context.libraries:
        found["cuBLAS by CuPy's binding"] = cublas._binding() is not None
        found["tf32 by cuBLAS"] = cublas.has_tf32()
    for name, value in found.items():
        context.note(f"{name}: {value}")
    for name, why in context.absent.items():
        context.skip(name, why)
    return found


def first_calls(context: Context) -> dict[str, Any]:
    """What the first call of a process takes, compilation included, beside the second."""
    return context.per_library(_first_calls)


def _first_calls(context: Context, library: Library) -> None:
    n = context.pick(256, 256, 24)
    calls: dict[str, Callable[[Any], Any]] = {
        "orthogonalize": polarlib.orthogonalize,
        "polar": lambda x: polarlib.polar(x).unitary,
    }
    for dtype in context.pick(("bfloat16", "float32"), ("bfloat16", "float32"), ("float32",)):
        x = library.make(gaussian((n, n // 2), dtype), dtype)
        library.wait(x)
        for what, call in calls.items():
            head = f"{library.name} {dtype} {what}"
            if not context.has_time(head):
                return
            spent = []
            for _ in range(2):
                begun = time.perf_counter()
                library.wait(call(x))
                spent.append(1000 * (time.perf_counter() - begun))
            context.figure(f"{head}, first call", spent[0], "ms", second=spent[1])


# -- waiting -------------------------------------------------------------------------------------


def waits(context: Context) -> dict[str, Any]:
    """Whether ``orthogonalize`` waits for the device: 0, or 1."""
    return context.per_library(_waits, "torch", "cupy", "jax")


def _waits(context: Context, library: Library) -> None:
    sees = {"torch": _torch_waits, "cupy": _cupy_waits, "jax": _jax_waits}[library.name]
    x = library.make(np.ones((1, 1)), "float32")
    seen = sees(library, lambda: library.host(x))
    context.check(f"{library.name}: a call that waits is seen (0: yes)", not seen, 0)
    for shape in context.pick(((256, 128), (4, 128, 256)), ((4, 128, 256),), ()):
        for dtype in REAL:
            x = library.make(gaussian(shape, dtype), dtype)
            for form, kind in itertools.product(("plain", "gram"), KINDS):
                how = {"form": form, "normalisation": kind, "schedule": "polar_express"}
                what = f"{library.name} {dtype} {shape} {form} {kind}"
                if not context.has_time(what):
                    return
                with context.guarded(what):
                    waited = sees(library, lambda x=x, how=how: polarlib.orthogonalize(x, **how))
                    context.check(f"{what}: waits", waited, 0)


def _torch_waits(library: Any, call: Callable[[], Any]) -> bool:
    """By torch's own mode, which raises where a call waits."""
    cuda = library.module.cuda
    call()  # compiles, which may wait
    cuda.synchronize()
    cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        cuda.set_sync_debug_mode("default")
    return False


def _cupy_waits(library: Any, call: Callable[[], Any]) -> bool:
    """Whether a kernel that was launched before the call has ended when it returns."""
    cuda = library.module.cuda
    call()  # compiles, which may wait
    cuda.Device().synchronize()
    library.hold(HOLD)
    held = cuda.Event(disable_timing=True)
    held.record()
    kept = call()
    waited = bool(held.done)
    cuda.Device().synchronize()
    del kept
    return waited


def _jax_waits(library: Any, call: Callable[[], Any]) -> bool:
    """By JAX's guard, which raises where a call reads from the device."""
    library.wait(call())  # compiles
    try:
        with library.module.transfer_guard_device_to_host("disallow_explicit"):
            library.wait(call())
    except RuntimeError as error:  # jaxlib's class is one
        if "transfer" not in str(error):
            raise
        return True
    return False


# -- streams and graphs ----------------------------------------------------------------------------


def graphs(context: Context) -> dict[str, Any]:
    """CUDA graphs of ``orthogonalize``: captured on torch, refused on CuPy; other streams."""
    return context.per_library(_graphs, "torch", "cupy")


def _graphs(context: Context, library: Library) -> None:
    n = context.pick(1024, 512, 16)
    capture = {"torch": _torch_graph, "cupy": _cupy_capture}[library.name]
    for dtype in ("bfloat16", "float32"):
        head = f"{library.name} {dtype}"
        if not context.has_time(head):
            return
        x, y = (library.make(gaussian((n, n), dtype, seed), dtype) for seed in (0, 1))
        with context.guarded(f"{head} on another stream"):
            _other_stream(context, library, x, head)
        with context.guarded(f"{head} graph"):
            capture(context, library, x, y, head)


def _other_stream(context: Context, library: Any, x: Any, head: str) -> None:
    """Input that arrives late on a stream of its own."""
    want = library.host(polarlib.orthogonalize(x))
    late = library.module.zeros_like(x)
    library.wait(late)
    cuda = library.module.cuda
    # CuPy's streams wait for the null stream by default, which would hide a fault.
    stream = cuda.Stream() if library.name == "torch" else cuda.Stream(non_blocking=True)
    with cuda.stream(stream) if library.name == "torch" else stream:
        library.hold(0.05)
        late[...] = x
        got = polarlib.orthogonalize(late)
    stream.synchronize()
    context.check(f"{head} on another stream", largest(library.host(got) - want), 0.0)


def _torch_graph(context: Context, library: Any, x: Any, y: Any, head: str) -> None:
    """Capture for x, replay for the entries of y."""
    torch = library.module
    want = library.host(polarlib.orthogonalize(y))
    static = x.clone()
    polarlib.orthogonalize(static)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        q = polarlib.orthogonalize(static)
    static.copy_(y)
    graph.replay()
    torch.cuda.synchronize()
    context.check(f"{head} graph, replayed", largest(library.host(q) - want), 0.0)
    first = {"replay": library.first(graph.replay)}
    times = library.times({"replay": graph.replay}, first, 1.0)
    context.figure(f"{head} graph, replay", 1000 * times["replay"].best_known, "ms")


def _cupy_capture(context: Context, library: Any, x: Any, y: Any, head: str) -> None:
    """CuPy cannot call cuBLAS while a stream captures: refused, and usable afterwards."""
    want = library.host(polarlib.orthogonalize(y))
    stream, said = library.module.cuda.Stream(non_blocking=True), ""
    with stream:
        stream.begin_capture()
        try:
            polarlib.orthogonalize(x)
        except Exception as error:  # of CuPy, or polarlib's own refusal
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        try:
            stream.end_capture()
        except Exception as error:  # CUDA's: the capture was spoiled
            said += f"; the capture ends with {type(error).__name__}"
    context.note(f"{head} capture: {said or 'was not refused'}")
    context.check(f"{head} capture is refused (0: yes)", not said, 0)
    difference = largest(library.host(polarlib.orthogonalize(y)) - want)
    context.check(f"{head} after a refused capture", difference, 0.0)


# -- memory ----------------------------------------------------------------------------------------


def memory(context: Context) -> dict[str, Any]:
    """Most memory in use during a call beyond what was, in copies of the input."""
    return context.per_library(_memory)


def _memory(context: Context, library: Library) -> None:
    shape = context.pick((2048, 1024), (1024, 512), (64, 32))
    if library.peak(lambda: None) is None:
        context.skip(f"{library.name}: peak memory", "nothing tells it for a single call")
        return
    for dtype in ("float32", "bfloat16"):
        x = library.make(gaussian(shape, dtype), dtype)
        for form, schedule in itertools.product(("plain", "gram"), ("polar_express", "auto")):
            what = f"{library.name} {dtype} {form} {schedule}"
            if not context.has_time(what):
                return
            how = {"form": form, "schedule": schedule}
            used = library.peak(lambda x=x, how=how: polarlib.orthogonalize(x, **how))
            copies = (used or 0) / x.nbytes
            if (dtype, form, schedule) == ("float32", "plain", "polar_express"):
                context.check(what, copies, WORKSPACE, "copies")
            else:
                context.figure(what, copies, "copies")
        used = library.peak(lambda x=x: polarlib.polar(x))
        context.figure(f"{library.name} {dtype} polar", (used or 0) / x.nbytes, "copies")


# -- several devices -------------------------------------------------------------------------------


def two_devices(context: Context) -> dict[str, Any]:
    """Input on a device that is not the current one."""
    return context.per_library(_two_devices, "torch", "cupy", "jax")


def _two_devices(context: Context, library: Library) -> None:
    a, place = gaussian((96, 64), "float32"), {"torch": _on_torch, "cupy": _on_cupy, "jax": _on_jax}
    x, device_of = place[library.name](library, a)
    if x is None:
        context.skip(library.name, "there is one device")
        return
    here = library.make(a, "float32")
    calls: dict[str, Callable[[Any], Any]] = {
        "orthogonalize": polarlib.orthogonalize,
        "polar": lambda x: polarlib.polar(x).unitary,
    }
    for what, call in calls.items():
        got, want = call(x), library.host(call(here))
        moved = device_of(got) != device_of(x)
        context.check(f"{library.name} {what}: the result is elsewhere", moved, 0)
        context.check(f"{library.name} {what}", largest(library.host(got) - want), 1e-5)


def _on_torch(library: Any, a: np.ndarray) -> tuple[Any, Callable[[Any], Any]]:
    torch = library.module
    if torch.cuda.device_count() < 2:
        return None, str
    return torch.tensor(a, device="cuda:1"), lambda x: x.device


def _on_cupy(library: Any, a: np.ndarray) -> tuple[Any, Callable[[Any], Any]]:
    cupy = library.module
    if cupy.cuda.runtime.getDeviceCount() < 2:
        return None, str
    with cupy.cuda.Device(1):
        return cupy.asarray(a), lambda x: int(x.device)


def _on_jax(library: Any, a: np.ndarray) -> tuple[Any, Callable[[Any], Any]]:
    devices = library.module.devices()
    if len(devices) < 2:
        return None, str
    return library.module.device_put(a, devices[1]), lambda x: x.devices()
