"""What CuPy launches, copies, allocates and waits for, on devices that are not there.

    python -m tests.device.on_cupy [--only PATTERN] [-v] [--json]

Kernels are not compiled. The counts of a call are those of the second one in its process, and
"modules" are those that the first one loads. Values mean nothing: a function that branches on them
is counted on the path that it took, whose method is its "outcome".
"""

from __future__ import annotations

from . import fake_cuda

CUPY = fake_cuda.install(compiled=False)

from . import counting, fake_cublaslt  # noqa: E402
from .cases import Case  # noqa: E402

fake_cublaslt.install()


def count(case: Case, verbose: bool = False) -> counting.Row:
    """Counts of one case."""
    from polarlib.arrays.library import numpy_dtype

    x = CUPY.asarray(case.matrices().astype(numpy_dtype(case.dtype)))
    with fake_cuda.recorded() as first:
        counting.outcome(lambda: case.function(x))
    with fake_cuda.recorded() as second:
        came = counting.outcome(lambda: case.function(x))
    if first.faults or second.faults:
        raise RuntimeError(f"{case.name}: {first.faults + second.faults}")
    if verbose:
        counting.shown(second.launches, second.libraries, second.copies, second.waits)
    return second.summary() | {"modules": first.modules, "outcome": came}


if __name__ == "__main__":
    counting.command("cupy-cuda13x", count)
