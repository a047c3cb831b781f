"""How torch multiplies under its settings: tried once, and remembered."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

from polarlib.arrays.formats import format_of
from polarlib.arrays.library import import_library

# Columns of the product that shows how torch multiplies: oneDNN takes its reduced path from 16^3
# multiplications on.
PROBE = 128


@functools.lru_cache(maxsize=64)
def operand_format(setting: tuple[str, str], device: Any, dtype: Any) -> str:
    """Format to which torch rounds operands under a setting that permits it: tried, not believed.

    Many processors ignore the setting. Products with the identity, of one matrix and of a stack,
    show to how many digits the other operand is rounded.
    """
    torch = import_library("torch")
    one = torch.eye(PROBE, dtype=dtype, device=device)
    found = set()
    with torch.no_grad(), without_autocast(device):
        for shape in ((PROBE, PROBE), (2, PROBE, PROBE)):
            for name in ("float32", "tf32", "bfloat16"):
                entry = 1 + format_of(name).epsilon
                x = torch.full(shape, entry, dtype=dtype, device=device)
                if bool((torch.matmul(x, one.expand(shape)) == x).all()):
                    break
            found.add(name)
    return min(found, key=significand)


def without_autocast(device: Any) -> Any:
    torch = import_library("torch")
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def significand(name: str) -> int:
    return format_of(name).significand


@functools.cache
def has_double(device: Any) -> bool:
    if device.type == "xpu":
        properties = import_library("torch").xpu.get_device_properties(device)
        return bool(getattr(properties, "has_fp64", True))
    return bool(device.type != "mps")
