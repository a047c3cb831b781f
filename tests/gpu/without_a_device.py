"""Parts of tests/gpu/run.py on devices that are not there; prints what they found, as JSON.

    python -m gpu.without_a_device cupy
    python -m gpu.without_a_device torch

CuPy is the real one: its calls are accepted, its kernels are generated, and values mean nothing.
torch's tensors say that they are on a CUDA device and compute on the CPU: values are true, and what
needs a driver (events, streams, graphs) is left out. The devices are those of tests/device.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from gpu import correct, speed
from gpu.context import Context, find_libraries, say
from gpu.run import PARTS, Part, run_parts


class Small(Context):
    """A GPU's way, in the sizes of a CPU."""

    def pick(self, full: Any, quick: Any, on_cpu: Any) -> Any:
        return on_cpu or quick


@contextlib.contextmanager
def cupy() -> Iterator[list[tuple[Part, float]]]:
    """CuPy's devices, and the parts: all of them but the costs, quotients of times."""
    importlib.import_module("device.fake_cuda").install(compiled=False)
    with contextlib.suppress(ImportError):  # where no product goes to cublasLt
        importlib.import_module("device.fake_cublaslt").install()
    yield [(part, share) for part, share in PARTS if part is not speed.calibration]


@contextlib.contextmanager
def torch() -> Iterator[list[tuple[Part, float]]]:
    """Torch's devices, and the parts whose work needs no driver."""
    module: Any = importlib.import_module("torch")
    module.cuda.is_available = lambda: True
    module.cuda.synchronize = lambda *args: None
    with importlib.import_module("device.emulated").emulated():
        yield [(part, 1.0) for part in (correct.agreement, correct.potrf, correct.accuracy)]


def main(name: str) -> None:
    """Run the parts of one library."""
    with {"cupy": cupy, "torch": torch}[name]() as parts:
        context = Small("gpu", True)
        find_libraries(context)
        context.libraries = {name: context.libraries[name]}
        # No part ends for lack of time: shares are of what is left.
        results = run_parts(context, parts, 1e5, lambda results: None)
    say(json.dumps(results, default=str))
    sys.stdout.flush()
    os._exit(0)  # handles of libraries that are not there cannot be destroyed


if __name__ == "__main__":
    main(sys.argv[1])
