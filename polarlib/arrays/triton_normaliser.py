# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,unused-ignore"
"""The divisions of a normalisation as kernels of Triton, for torch's tensors on CUDA.

Each division is two launches. In the first, every program sums its part of a matrix in double
precision. In the second, every program adds the sums of the first, computes the divisor, and
divides its part. Programs do not wait for one another, and the order of additions is fixed.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, NamedTuple

from polarlib.arrays.library import import_library

Array = Any

# Entries per block of a program; largest number of programs per matrix in the first launch: as many
# as a device runs at once, and few enough for each program of the second to add.
BLOCK = 2048
MOST_SUMS = 256


@functools.cache
def is_installed() -> bool:
    """Return whether Triton is installed; it is imported at the first launch of a kernel."""
    return importlib.util.find_spec("triton") is not None


class Kernels(NamedTuple):
    """Kernels, which Triton compiles for the types of their arguments."""

    sums: Any
    norm: Any
    gram: Any


@functools.cache
def kernels() -> Kernels:
    """Return the kernels; Triton, which reads their source, is imported here."""
    triton: Any = import_library("triton")
    tl: Any = import_library("triton.language")

    # What the kernels share is written out: Triton's interpreter does not find functions in here.
    @triton.jit
    def polarlib_sums(x, partial, size, order, MOST: tl.constexpr, BLOCK: tl.constexpr):
        # Squares of shares of matrices of `size` entries; and diagonals, of matrices of an order.
        which, share = tl.program_id(0).to(tl.int64), tl.program_id(1)
        squares = tl.zeros((BLOCK,), tl.float64)
        trace = tl.zeros((BLOCK,), tl.float64)
        for first in range(share * BLOCK, size, MOST * BLOCK):
            at = first + tl.arange(0, BLOCK)
            entry = tl.load(x + which * size + at, at < size, 0.0).to(tl.float32).to(tl.float64)
            squares += entry * entry
            if order > 0:
                trace += tl.where(at % (order + 1) == 0, entry, 0.0)
        # Programs without a share write the zeros of theirs.
        tl.store(partial + which * 2 * MOST + share, tl.sum(squares))
        tl.store(partial + (which * 2 + 1) * MOST + share, tl.sum(trace))

    @triton.jit
    def polarlib_divide_by_norm(
        x, y, partial, size, factor,
        POWER: tl.constexpr, MOST: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        which = tl.program_id(0).to(tl.int64)
        s = tl.sqrt(tl.sum(tl.load(partial + which * 2 * MOST + tl.arange(0, MOST)))) * factor
        if POWER:  # the bits of the exponent alone; of infinity and NaN they are infinity
            s = (s.to(tl.int64, bitcast=True) & 0x7FF0000000000000).to(tl.float64, bitcast=True)
        s = tl.where(s == 0.0, 1.0, s)
        s = tl.where(s - s == 0.0, s, float("nan"))
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        entry = tl.load(x + which * size + at, at < size, 0.0).to(tl.float32).to(tl.float64)
        entry = (entry * (1.0 / s)).to(tl.float32)
        tl.store(y + which * size + at, entry.to(y.dtype.element_ty), at < size)

    @triton.jit
    def polarlib_divide_by_gram(
        y, g, partial, size, order, slack, sums, safety,
        MOMENTS: tl.constexpr, MOST: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        which, share = tl.program_id(0).to(tl.int64), tl.program_id(1)
        known = partial + which * 2 * MOST + tl.arange(0, MOST)
        squares = tl.sum(tl.load(known))
        norm = tl.sqrt(squares)
        if MOMENTS:
            mean = tl.sum(tl.load(known + MOST)) / order
            variance = squares * (1.0 + sums) / order - mean * mean
            # NaN stays NaN, unlike in a maximum.
            spread = tl.where(variance < 0.0, 0.0, variance) * (order - 1)
            bound = tl.sqrt(mean + tl.sqrt(spread) + norm * slack)
        else:
            bound = tl.sqrt(norm * (1.0 + slack))
        s = tl.where(bound == 0.0, 1.0, bound)
        s = tl.where(s - s == 0.0, s, float("nan")) * safety
        blocks, square = tl.cdiv(size, BLOCK), order * order
        if share < blocks:
            at = share * BLOCK + tl.arange(0, BLOCK)
            entry = tl.load(y + which * size + at, at < size, 0.0).to(tl.float32).to(tl.float64)
            entry = (entry * (1.0 / s)).to(tl.float32)
            tl.store(y + which * size + at, entry.to(y.dtype.element_ty), at < size)
        else:
            at = (share - blocks) * BLOCK + tl.arange(0, BLOCK)
            entry = tl.load(g + which * square + at, at < square, 0.0).to(tl.float32)
            entry = (entry.to(tl.float64) * (1.0 / (s * s))).to(tl.float32)
            tl.store(g + which * square + at, entry.to(g.dtype.element_ty), at < square)

    return Kernels(polarlib_sums, polarlib_divide_by_norm, polarlib_divide_by_gram)


def by_norm(x: Array, y: Array, factor: float, power: bool) -> None:
    """Write ``x / s`` to y; both are stacks (b, m, n) that fill their storage."""
    size = x.shape[1] * x.shape[2]
    partial = _sums(x, size, 0)
    grid = (x.shape[0], -(-size // BLOCK))
    fixed = {"POWER": power, "MOST": MOST_SUMS, "BLOCK": BLOCK}
    kernels().norm[grid](x, y, partial, size, factor, **fixed)


def by_gram(y: Array, g: Array, moments: bool, slack: float, sums: float, safety: float) -> None:
    """Divide stacks (b, m, n) and (b, n, n) that fill their storage in place."""
    size, n = y.shape[1] * y.shape[2], g.shape[-1]
    partial = _sums(g, n * n, n)
    grid = (y.shape[0], -(-size // BLOCK) - (-n * n // BLOCK))
    fixed = {"MOMENTS": moments, "MOST": MOST_SUMS, "BLOCK": BLOCK}
    kernels().gram[grid](y, g, partial, size, n, slack, sums, safety, **fixed)


def _sums(x: Array, size: int, order: int) -> Array:
    torch: Any = import_library("torch")
    partial = torch.empty((x.shape[0], 2, MOST_SUMS), dtype=torch.float64, device=x.device)
    grid = (x.shape[0], MOST_SUMS)
    kernels().sums[grid](x, partial, size, order, MOST=MOST_SUMS, BLOCK=BLOCK)
    return partial
