"""Requirements of CuPy before a launch: libraries of CUDA, and a stream that is not captured.

Without these checks CuPy would fail within a call, with its own messages or those of CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from polarlib.arrays.library import import_library

Array = Any
T = TypeVar("T")


def required(library: str, load: Callable[[], T]) -> T:
    """Return ``load()``; if CuPy does not find a library of CUDA, raise an error with its name.

    Raises
    ------
    ImportError
        If the library is not installed. Other errors are passed on.
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
    """A library of CUDA is not installed (not only a private name of CuPy missing)."""


def check_compiler() -> None:
    """Raise `LibraryNotFound` if CuPy has no compiler of kernels, which all functions need."""
    nvrtc = getattr(import_library("cupy").cuda, "nvrtc", None)
    if nvrtc is not None:
        required("NVRTC", nvrtc.getVersion)


def refuse_capture(name: str) -> None:
    """Raise ValueError while the current stream is captured: CuPy then refuses to call cuBLAS."""
    stream = import_library("cupy").cuda.get_current_stream()
    # The default stream cannot be captured, and must not be asked while another one is.
    if stream.ptr and stream.is_capturing():
        raise ValueError(
            f"{name} must not be used while its stream is captured in a graph, since CuPy does not "
            "call cuBLAS then; call polarlib before or after the capture"
        )
