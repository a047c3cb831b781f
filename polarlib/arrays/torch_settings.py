"""Precision of torch's products under its settings, tested once and cached."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

from polarlib.arrays.formats import format_of
from polarlib.arrays.library import import_library

# Columns of the test product: oneDNN uses reduced precision from 16^3 multiplications on.
PROBE = 128
SIXTEEN_BITS = frozenset({"bfloat16", "float16"})


@functools.lru_cache(maxsize=64)
def operand_format(setting: tuple[str, str], device: Any, dtype: Any) -> str:
    """Return the format to which torch rounds operands under a setting, determined by a test.

    Many processors ignore the setting. Products with the identity, of one matrix and of a stack,
    show the precision to which the other operand is rounded.
    """
    torch = import_library("torch")
    one = torch.eye(PROBE, dtype=dtype, device=device)
    formats = set()
    with torch.no_grad(), without_autocast(device):
        for shape in ((PROBE, PROBE), (2, PROBE, PROBE)):
            for name in ("float32", "tf32", "bfloat16"):
                entry = 1 + format_of(name).epsilon
                x = torch.full(shape, entry, dtype=dtype, device=device)
                if bool((torch.matmul(x, one.expand(shape)) == x).all()):
                    break
            formats.add(name)
    return min(formats, key=significand)


def multiplies_at_speed(format_name: str) -> bool:
    """Return whether products in a 16-bit format are as fast as in float32 on this processor.

    They are if the processor has instructions that oneDNN uses. Without them torch uses a loop,
    which takes a hundred times as long as a product in float32. With AVX-512 alone oneDNN converts
    bfloat16 blocks, which takes five times as long. The decision depends on instructions, not on a
    measurement, so that results are the same in every process of a machine.
    """
    torch = import_library("torch")
    try:
        return torch.backends.mkldnn.enabled and bool(_instructions()[format_name])
    except AttributeError:  # built without oneDNN
        return False


@functools.cache
def _instructions() -> dict[str, bool]:
    """Return the formats of 16 bits, and whether oneDNN has instructions for them."""
    torch = import_library("torch")
    known, cpu = torch.ops.mkldnn, torch.cpu
    wide = cpu._is_avx512_supported() and not cpu._is_avx512_bf16_supported()
    return {
        "bfloat16": bool(known._is_mkldnn_bf16_supported()) and not wide,
        "float16": bool(known._is_mkldnn_fp16_supported()),
    }


@functools.cache
def autocasts(kind: str) -> bool:
    """Return whether torch has autocast on a kind of device."""
    return bool(import_library("torch").amp.is_autocast_available(kind))


def without_autocast(device: Any) -> Any:
    if autocasts(device.type):
        return import_library("torch").autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def significand(name: str) -> int:
    return format_of(name).significand


@functools.cache
def has_double(device: Any) -> bool:
    if device.type == "xpu":
        properties = import_library("torch").xpu.get_device_properties(device)
        return bool(getattr(properties, "has_fp64", True))
    return bool(device.type != "mps")
