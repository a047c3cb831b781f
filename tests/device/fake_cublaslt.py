"""cublasLt as polarlib's binding by ctypes finds it, on devices that are not there."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

from . import fake_cuda

SUCCESS, INVALID_VALUE = 0, 7


class CublasLt:
    """A library whose functions check the number and the types of arguments, and count products."""

    def __init__(self, functions: dict[str, tuple[Any, ...]]) -> None:
        self._functions = functions

    def __getattr__(self, name: str) -> Callable[..., int]:
        kinds = self._functions[name]

        def call(*given: Any) -> int:
            if len(given) != len(kinds):
                raise TypeError(f"{name} takes {len(kinds)} arguments, {len(given)} given")
            for kind, value in zip(kinds, given, strict=True):
                kind.from_param(value)
            if name.endswith("Create"):
                number = fake_cuda.devices().number()
                ctypes.c_void_p.from_address(given[0]).value = number
            elif name.endswith("GetHeuristic"):
                # One algorithm, without a workspace: what is there already, all zeros.
                ctypes.c_int.from_address(given[-1]).value = 1
            elif name == "cublasLtMatmul":
                if not all(given[i] for i in (0, 1, 2, 3, 5, 7, 8, 10)):
                    return INVALID_VALUE
                fake_cuda.devices().counts.libraries[f"cublasLt.{name}"] += 1
            return SUCCESS

        return call

    def cublasLtGetStatusName(self, status: int) -> bytes:
        """Return the name of a status."""
        return b"CUBLAS_STATUS_INVALID_VALUE" if status == INVALID_VALUE else b"unknown"


def install() -> bool:
    """Put the library where polarlib's binding looks for it; False if there is no such binding."""
    try:
        binding: Any = importlib.import_module("polarlib.arrays.cublaslt")
    except ImportError:
        return False
    library = CublasLt(binding.FUNCTIONS)
    binding.library = lambda: library
    return True
