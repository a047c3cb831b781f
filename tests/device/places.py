"""CuPy arrays that are not where the host stands: on another device, or in a stream under capture.

    python -m tests.device.places [--peers] [--json]

On two devices that are not there, every public function is called with an array on device 1 while
device 0 is current; its result must lie on device 1, and the current device must stay. In a stream
that is being captured, into which CuPy lets no call of cuBLAS, there may be one sentence of ours.
With ``--peers`` the devices read each other's memory, so that CuPy raises for no mixture. What is
printed are the calls that fail.
"""

from __future__ import annotations

import sys

from . import fake_cuda

CUPY = fake_cuda.install(compiled=False, peers="--peers" in sys.argv)

import json  # noqa: E402
import os  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import test_fuzz  # noqa: E402

from . import fake_cublaslt, public  # noqa: E402

fake_cublaslt.install()
GIVEN = public.Matrices("square", "float32", "regular")


def sentence(error: Exception) -> bool:
    """Whether an exception is one sentence, raised in polarlib."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    ours = trace is not None and f"{os.sep}polarlib{os.sep}" in trace.tb_frame.f_code.co_filename
    kinds = (TypeError, ValueError, NotImplementedError, UserWarning)
    return ours and isinstance(error, kinds) and "\n" not in str(error)


def arrays(value: Any) -> list[Any]:
    """Arrays of a result."""
    if isinstance(value, CUPY.ndarray):
        return [value]
    if isinstance(value, list | tuple):
        return [x for each in value for x in arrays(each)]
    return arrays(tuple(value)) if hasattr(value, "unitary") else []


def convert(a: np.ndarray) -> Any:
    """An array of CuPy on the current device."""
    return CUPY.asarray((a.real if np.iscomplexobj(a) else a).astype("float32"))


def attempt(call: Callable[[], Any]) -> tuple[Any, str]:
    """The result of a call, and what is wrong with its exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call(), ""
        except Exception as error:
            return None, "" if sentence(error) else f"{type(error).__name__}: {error}"


def on_another_device(name: str) -> str:
    """What is wrong with a call on an array of another device than the current one, or ""."""

    def there(a: np.ndarray) -> Any:
        with CUPY.cuda.Device(1):
            return convert(a)

    with fake_cuda.recorded() as counts:
        result, why = attempt(lambda: GIVEN.call(name, there))
    current = CUPY.cuda.runtime.getDevice()
    CUPY.cuda.runtime.setDevice(0)
    if why or counts.faults:
        return why or str(counts.faults)
    if current != 0:
        return f"device {current} is left current"
    places = {x.device.id for x in arrays(result)}
    return "" if places <= {1} else f"results lie on {sorted(places)}"


def under_capture(name: str) -> str:
    """What is wrong with a call in a stream that is being captured, or ""."""
    with CUPY.cuda.Stream(non_blocking=True) as stream:
        # Nothing can be transferred under capture, and no handle made.
        arguments = GIVEN.arguments(name, convert)
        first = convert(GIVEN.matrix())
        first @ first
        stream.begin_capture()
        try:
            with fake_cuda.recorded() as counts:
                _, why = attempt(lambda: test_fuzz.interface()[name].run(arguments))
        finally:
            stream.end_capture()
    return why or (str(counts.faults) if counts.faults else "")


def main() -> None:
    """Print the calls that fail."""
    found: dict[str, dict[str, str]] = {"another device": {}, "capture": {}}
    for name in public.functions():
        for part, check in (("another device", on_another_device), ("capture", under_capture)):
            if part == "capture" and "--peers" in sys.argv:
                continue
            if why := check(name):
                found[part][name] = " ".join(why.split())[:200]
                if "--json" not in sys.argv:
                    print(f"{part}: {name}: {found[part][name]}", flush=True)  # noqa: T201
    if "--json" in sys.argv:
        print(json.dumps(found))  # noqa: T201
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
