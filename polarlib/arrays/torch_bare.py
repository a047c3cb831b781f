"""One torch matrix on a CPU whose products are right as torch takes them: asked once in a call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from polarlib.arrays.library import import_library
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
        The arithmetic that would ask each time, for all else.
    format : str
        Name of the format.
    """

    multiply: Callable[..., Array]
    add: Callable[..., Array]
    ops: Ops
    format: str


def bare(x: Any) -> Bare | None:
    """Return the functions for one real matrix of torch in contiguous storage on a CPU.

    None for anything else; where torch records, batches, traces or differentiates; under autocast
    and where torch is set to multiply in less than the format of `x`; in 16-bit formats that the
    processor lacks; and for matrices that are large enough for other products.
    """
    torch = sys.modules.get("torch")
    if torch is None or type(x) not in (torch.Tensor, torch.nn.Parameter) or x.ndim != 2:
        return None
    if x.is_nested or x.layout is not torch.strided or not x.is_contiguous():
        return None
    m, n = x.shape
    if not 0 < m * n * min(m, n) < PANELS_FROM or is_differentiated(x, torch):
        return None
    name = _FORMATS.get(str(x.dtype))
    device = x.device
    ops = TorchOps(import_library("array_api_compat.torch"), device, host=device.type == "cpu")
    if name is None or not ops.host or ops.is_abstract(x) or not ops._multiplies_at_speed(name):
        return None
    # The longest sum is along the larger side.
    if not ops._is_plain(x if m < n else x.mT, x):
        return None
    return Bare(torch.mm, torch.addmm, ops, name)


_FORMATS = {f"torch.{name}": name for name in ("float64", "float32", "bfloat16", "float16")}
