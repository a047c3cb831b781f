"""How torch rounds to formats in few operations."""

from __future__ import annotations

from typing import Any

from polarlib.arrays.formats import Format
from polarlib.arrays.library import import_library

Array = Any

EIGHT_BITS = {"float8_e4m3": "float8_e4m3fn", "float8_e5m2": "float8_e5m2"}
# Of float32, and of every format with its exponent.
EXPONENT_BITS, SMALLEST_NORMAL = 0x7F800000, 2.0**-126


def eight_bits(format_name: str, kind: str) -> str:
    """Name of torch's dtype of a format of 8 bits, where it converts to it; else ""."""
    return EIGHT_BITS.get(format_name, "") if kind in ("cpu", "cuda", "meta") else ""


def rounded_by_sums(x: Array, precision: Format) -> Array | None:
    """Round float32 or complex64 to tf32 by adding and subtracting a multiple of powers of two.

    The multiple is of each entry's power of two: the last place of the sum is that of the format,
    and the addition rounds to nearest, ties to even. These are three kernels; by bit patterns they
    are ten. Entries from 2**115 on become NaN, and subnormal ones stay as they are. None for other
    formats.
    """
    torch = import_library("torch")
    if precision.smallest_normal != SMALLEST_NORMAL or precision.significand >= 24:
        return None
    if x.dtype == torch.complex64:
        return torch.view_as_complex(
            rounded_by_sums(torch.view_as_real(x.resolve_conj()), precision)
        )
    power = (x.view(torch.int32) & EXPONENT_BITS).view(torch.float32)
    shift = 1.5 * 2.0 ** (24 - precision.significand)
    return torch.add(x, power, alpha=shift).sub_(power, alpha=shift)
