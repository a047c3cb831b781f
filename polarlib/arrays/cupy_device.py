"""What CuPy needs before a launch: libraries of CUDA, and a stream that is not captured.

Without these checks CuPy fails in the middle of a call, in its own words or in those of CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from polarlib.arrays.library import import_library

Array = Any
T = TypeVar("T")


def required(library: str, load: Callable[[], T]) -> T:
    """Return ``load()``; raise an error that names the library of CUDA that CuPy does not find.

    Raises
    ------
    ImportError
        If the library is not installed. Other failures are the caller's.
    """
    try:
        return load()
    except Exception as error:
        # The class belongs to cuda-pathfinder, by which CuPy looks for libraries.
        kinds = [type(e).__name__ for e in (error, error.__cause__)]
        if "DynamicLibNotFoundError" not in kinds:
            raise
    raise LibraryNotFound(
        f"CuPy does not find {library}, which its arrays need here; install polarlib[cupy] (its "
        "cupy-cuda13x[ctk] brings the libraries of CUDA), or a CUDA toolkit"
    )


class LibraryNotFound(ImportError):
    """A library of CUDA is not installed: no private name of CuPy's, without which others do."""


def check_compiler() -> None:
    """Raise `LibraryNotFound` if CuPy has no compiler of kernels, without which nothing runs."""
    nvrtc = getattr(import_library("cupy").cuda, "nvrtc", None)
    if nvrtc is not None:
        required("NVRTC", nvrtc.getVersion)


def refuse_capture(name: str) -> None:
    """Raise ValueError while the current stream is captured: CuPy then refuses to call cuBLAS."""
    stream = import_library("cupy").cuda.get_current_stream()
    # The default stream cannot be captured, and must not be asked while another one is.
    if stream.ptr and stream.is_capturing():
        raise ValueError(
            f"{name} cannot be computed with while its stream is captured in a graph, since CuPy "
            "calls no cuBLAS then; call polarlib before or after the capture"
        )
