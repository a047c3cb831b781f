"""Every kernel that calls of CuPy arrays need, CuPy's own too, compiled by NVRTC.

    python -m tests.device.kernels [--capability 90] [--json]

Kernels are compiled for a compute capability whose device is not there, and not executed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from . import fake_cuda

PARSER = argparse.ArgumentParser(description=__doc__.splitlines()[0])
PARSER.add_argument("--capability", type=int, default=90)
PARSER.add_argument("--json", action="store_true", help="print JSON")
OPTIONS = PARSER.parse_args()
CUPY = fake_cuda.install(OPTIONS.capability)

from . import counting, fake_cublaslt  # noqa: E402
from .cases import Case  # noqa: E402

fake_cublaslt.install()
CASES = (
    Case("orthogonalize", (128, 128), "bfloat16"),
    Case("orthogonalize", (64, 256), "complex64"),
    Case("orthogonalize, halley", (256, 64), "float16"),
    Case("polar", (384, 384), "float32"),
    Case("polar", (5000, 3, 3), "float64"),
)


def main() -> None:
    """Compile, and print the number of modules for each call."""
    from polarlib.arrays.library import numpy_dtype

    found, faults = {}, []
    for case in CASES:
        x = CUPY.asarray(case.matrices().astype(numpy_dtype(case.dtype)))
        with fake_cuda.recorded() as counts:
            came = counting.outcome(lambda case=case, x=x: case.function(x))
        found[case.name] = counts.modules
        # A kernel that does not compile raises CompileException.
        faults += counts.faults + [came] * came.startswith(("CompileException", "NVRTC"))
        if not OPTIONS.json:
            print(case.name, counts.modules, came)  # noqa: T201
    wrong = CUPY.ElementwiseKernel("T x", "T y", "y = nothing(x)", "wrong")
    refused = counting.outcome(lambda: wrong(x)).startswith("CompileException")
    result = {"modules": found, "faults": faults, "a wrong kernel is refused": refused}
    print(json.dumps(result))  # noqa: T201
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
