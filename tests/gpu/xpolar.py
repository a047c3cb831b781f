"""cusolverDnXpolar through nvmath-python 1.0, with nvidia-cusolver 12.4 or later."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

REAL = {"torch.float32": 0, "torch.float64": 1}  # CUDA_R_32F, CUDA_R_64F
LOWER = 0  # CUBLAS_FILL_MODE_LOWER


def xpolar(torch: Any, x: Any) -> Callable[[], Any]:
    """Return a function that decomposes a tensor on CUDA and returns the unitary factor.

    ImportError without nvmath, and nvmath's own errors where cuSOLVER has no such function;
    ValueError for a stack, more columns than rows, and other formats.
    """
    if x.ndim != 2 or x.shape[0] < x.shape[1] or str(x.dtype) not in REAL:
        raise ValueError(
            f"cusolverDnXpolar takes one real matrix with no more columns than rows, got "
            f"{tuple(x.shape)} of {x.dtype}"
        )
    binding = importlib.import_module("nvmath.bindings.cusolverDn")
    (m, n), kind = x.shape, REAL[str(x.dtype)]
    handle, params = binding.create(), binding.create_params()
    binding.set_stream(handle, torch.cuda.current_stream().cuda_stream)
    # Storage by columns: of the transposed matrices.
    columns, h = x.mT.contiguous(), x.new_empty((n, n))
    a = columns.clone()
    given = (handle, params, LOWER, m, n, kind, a.data_ptr(), m, kind, h.data_ptr(), n, kind)
    on_device, on_host = binding.xpolar_buffer_size(*given)
    work = torch.empty(max(1, on_device), dtype=torch.uint8, device=x.device)
    host = ctypes.create_string_buffer(max(1, on_host))
    found = torch.zeros(3, dtype=torch.float64, device=x.device)  # residual, norm, 1 / condition
    info = torch.zeros(1, dtype=torch.int32, device=x.device)
    numbers = [found.data_ptr() + 8 * i for i in range(3)]

    def call() -> Any:
        a.copy_(columns)  # it is overwritten
        workspaces = (work.data_ptr(), on_device, ctypes.addressof(host), on_host)
        binding.xpolar(*given, *workspaces, *numbers, info.data_ptr())
        return a.mT

    call()
    if int(info):
        raise RuntimeError(f"cusolverDnXpolar has info {int(info)}")
    return call
