"""Rounding to formats in few operations of torch, and its products in 8 bits."""

from __future__ import annotations

import functools
from typing import Any

from polarlib.arrays.formats import FORMATS, Format
from polarlib.arrays.in_place import InPlaceOps
from polarlib.arrays.library import format_name, import_library

Array = Any

EIGHT_BITS = {"float8_e4m3": "float8_e4m3fn", "float8_e5m2": "float8_e5m2"}
# Masks of the exponent bits.
EXPONENT_BITS = {"float32": 0x7F800000, "float64": 0x7FF0000000000000}


class FormatOps(InPlaceOps):
    """The part of torch's arithmetic that is specific to number formats."""

    device: Any

    def _dtype_that_rounds(self, format_name: str) -> Any:
        """Return dtypes of 16 bits, and of 8 bits if torch converts to them."""
        if format_name in EIGHT_BITS and self.device.type in ("cpu", "cuda", "meta"):
            return self._dtype(EIGHT_BITS[format_name])
        return super()._dtype_that_rounds(format_name)

    def binary_scale(self, max_abs: Array) -> Array | float:
        """Return the power of two near the largest entry; on devices by the exponent bits.

        The result is that of `Ops.binary_scale`, in five operators instead of fourteen.
        """
        bits = EXPONENT_BITS.get(format_name(max_abs), 0)
        torch = import_library("torch")
        # torch.jit.trace does not support views of bits.
        if self.host or not bits or self.is_traced(max_abs) or torch.jit.is_tracing():
            return super().binary_scale(max_abs)
        integers = torch.int32 if max_abs.dtype == torch.float32 else torch.int64
        power = (max_abs.view(integers) & bits).view(max_abs.dtype)
        power = torch.nan_to_num(
            power, posinf=1.0
        )  # for infinity, and for NaN, which has the same exponent bits
        limit = FORMATS[format_name(max_abs)].smallest_normal
        return power.clamp(limit, 1 / limit).masked_fill(max_abs == 0, 1.0)

    def _rounded_by_sums(self, x: Array, precision: Format) -> Array | None:
        """Round to tf32 on devices; None on the host, where more calls take no time."""
        return None if self.host else rounded_by_sums(x, precision)

    def _multiplies_rounded(self, format_name: str) -> bool:
        """Return whether the device multiplies rounded operands in a format of 8 bits."""
        return multiplies_eight_bits(format_name, self.device)

    def _product_of_rounded(
        self, a: Array, b: Array, scales: tuple[Any, Any], format_name: str
    ) -> Array | None:
        """Return ``a @ b`` by 8-bit tensor cores, which torch does not batch or differentiate."""
        if self.is_traced(a) or self.is_traced(b):
            return None
        return scaled_product(a, b, scales, format_name)


def rounded_by_sums(x: Array, precision: Format) -> Array | None:
    """Round float32 or complex64 to tf32 by adding and subtracting a multiple of powers of two.

    The multiple is of each entry's power of two. The last place of the sum is then that of the
    format, and the addition rounds to nearest, ties to even. This takes three kernels, rounding by
    bit patterns ten. Entries from 2**115 on become infinite or NaN, and subnormal ones are kept.
    Return None for other formats.
    """
    torch = import_library("torch")
    if precision.name != "tf32":
        return None
    if x.dtype == torch.complex64:
        return torch.view_as_complex(
            rounded_by_sums(torch.view_as_real(x.resolve_conj()), precision)
        )
    power = (x.view(torch.int32) & EXPONENT_BITS["float32"]).view(torch.float32)
    shift = 1.5 * 2.0 ** (24 - precision.significand)
    return torch.add(x, power, alpha=shift).sub_(power, alpha=shift)


@functools.lru_cache(maxsize=64)
def multiplies_eight_bits(format_name: str, device: Any) -> bool:
    """Return whether torch multiplies an 8-bit format on a device.

    True for e4m3 on NVIDIA's devices from compute capability 8.9 on. cuBLAS has no products of two
    matrices of e5m2.
    """
    torch = import_library("torch")
    if format_name != "float8_e4m3" or device.type != "cuda" or not torch.cuda.is_available():
        return False
    known = hasattr(torch, "_scaled_mm") and torch.version.hip is None
    return known and torch.cuda.get_device_capability(device) >= (8, 9)


def scaled_product(a: Array, b: Array, scales: tuple[Any, Any], format_name: str) -> Array | None:
    """Return ``a @ b`` in float32, multiplied in 8 bits; None for shapes that cuBLAS refuses.

    ``a / scales[0]`` and ``b / scales[1]`` are numbers of the format.
    """
    torch = import_library("torch")
    if a.ndim != 2 or b.ndim != 2 or b.shape[0] % 16 or b.shape[1] % 16 or 0 in a.shape:
        return None
    dtype = getattr(torch, EIGHT_BITS[format_name])
    left, right = (torch.as_tensor(s, dtype=a.dtype, device=a.device).reshape(()) for s in scales)
    # One operand must be row-major and the other column-major, as an adjoint is without a copy.
    rows = (a / left).to(dtype).contiguous()
    columns = (b / right).to(dtype).mT.contiguous().mT
    return torch._scaled_mm(
        rows, columns, scale_a=left, scale_b=right, out_dtype=a.dtype, use_fast_accum=False
    )
