"""One torch matrix whose products need no change of settings, checked once per call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from polarlib.arrays.library import import_library
from polarlib.arrays.normaliser import Normaliser
from polarlib.arrays.ops import Ops
from polarlib.arrays.torch_autograd import is_differentiated
from polarlib.arrays.torch_ops import PANELS_FROM, TorchOps

Array = Any


class Bare(NamedTuple):
    """Functions of a library for one matrix.

    Attributes
    ----------
    multiply : callable
        ``multiply(a, b, out=None)`` is ``a @ b``.
    add : callable
        ``add(c, a, b, beta=, alpha=, out=)`` is ``alpha a @ b + beta c``.
    ops : Ops
        The arithmetic with checks, for all other operations.
    format : str
        Name of the format.
    kernels : Normaliser or None
        Kernels of the normalisation, on a device.
    """

    multiply: Callable[..., Array]
    add: Callable[..., Array]
    ops: Ops
    format: str
    kernels: Normaliser | None


def bare(x: Any) -> Bare | None:
    """Return the functions for one real matrix of torch in contiguous storage.

    Return None for other objects; if torch records, batches, traces or differentiates; under
    autocast, and if torch is set to multiply in less than the format of `x`. Return None on a CPU
    for 16-bit formats without instructions, and for matrices that are large enough for products by
    panels; on a device without kernels for normalisations.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(x, torch.Tensor) or x.ndim != 2 or hasattr(x, "placements"):
        return None
    if x.is_nested or x.layout is not torch.strided or not x.is_contiguous():
        return None
    name = _FORMATS.get(str(x.dtype))
    if name is None or 0 in x.shape or is_differentiated(x, torch):
        return None
    device = x.device
    ops = TorchOps(import_library("array_api_compat.torch"), device, host=device.type == "cpu")
    kernels = None
    if ops.host:
        taken = _on_host(x, ops, name, torch)
    else:  # meta tensors are treated as tensors with entries, so that launches can be counted
        kernels = None if ops._is_recorded(x) else ops.normaliser(x)
        taken = kernels is not None
    # The longest sum is along the larger dimension.
    if not taken or not ops._is_plain(x if x.shape[0] < x.shape[1] else x.mT, x):
        return None
    return Bare(torch.mm, torch.addmm, ops, name, kernels)


def _on_host(x: Any, ops: TorchOps, name: str, torch: Any) -> bool:
    plain = type(x) in (torch.Tensor, torch.nn.Parameter) and not ops.is_abstract(x)
    m, n = x.shape
    return plain and m * n * min(m, n) < PANELS_FROM and ops._multiplies_at_speed(name)


_FORMATS = {f"torch.{name}": name for name in ("float64", "float32", "bfloat16", "float16")}
