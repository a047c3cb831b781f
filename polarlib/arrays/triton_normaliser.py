"""The divisions of a normalisation as kernels of Triton, for torch's tensors on CUDA.

Two launches each. In the first, every program sums its share of a matrix, in double precision; in
the second, every program adds up the few sums of the first and divides its share by what follows
from them. No program waits for another, and the order of additions is always the same.

The module is imported where Triton is installed, and nowhere else.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

Array = Any

# Entries that a program takes at a time; and programs that share a matrix in the first launch: as
# many as a device runs at once, and few enough for each program of the second to add up.
BLOCK = 2048
MOST_SUMS = 256


@triton.jit
def sums_kernel(x, partial, size, order, MOST: tl.constexpr, BLOCK: tl.constexpr):
    """Sums of squares of shares of matrices of `size` entries; and of diagonals, of that order."""
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
def _divisor(s):
    """1 for 0, NaN for infinity."""
    s = tl.where(s == 0.0, 1.0, s)
    return tl.where(s - s == 0.0, s, float("nan"))


@triton.jit
def _divide(x, y, first, size, s, BLOCK: tl.constexpr):
    at = first + tl.arange(0, BLOCK)
    entry = tl.load(x + at, at < size, 0.0).to(tl.float32).to(tl.float64)
    found = (entry * (1.0 / s)).to(tl.float32)
    tl.store(y + at, found.to(y.dtype.element_ty), at < size)


@triton.jit
def norm_kernel(
    x, y, partial, size, factor, POWER: tl.constexpr, MOST: tl.constexpr, BLOCK: tl.constexpr
):
    """``y = x / s`` with ``s = factor ||x||_F``, or the largest power of two up to that."""
    which = tl.program_id(0).to(tl.int64)
    s = tl.sqrt(tl.sum(tl.load(partial + which * 2 * MOST + tl.arange(0, MOST)))) * factor
    if POWER:  # the bits of the exponent alone; of infinity and NaN they are infinity
        s = (s.to(tl.int64, bitcast=True) & 0x7FF0000000000000).to(tl.float64, bitcast=True)
    start = which * size
    _divide(x + start, y + start, tl.program_id(1) * BLOCK, size, _divisor(s), BLOCK)


@triton.jit
def gram_kernel(
    y,
    g,
    partial,
    size,
    order,
    slack,
    sums,
    safety,
    MOMENTS: tl.constexpr,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``y /= s`` and ``g /= s**2``, s from the trace and the Frobenius norm of g."""
    which, share = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = partial + which * 2 * MOST + tl.arange(0, MOST)
    squares = tl.sum(tl.load(at))
    norm = tl.sqrt(squares)
    if MOMENTS:
        mean = tl.sum(tl.load(at + MOST)) / order
        variance = squares * (1.0 + sums) / order - mean * mean
        # NaN stays NaN, unlike in a maximum.
        spread = tl.where(variance < 0.0, 0.0, variance) * (order - 1)
        bound = tl.sqrt(mean + tl.sqrt(spread) + norm * slack)
    else:
        bound = tl.sqrt(norm * (1.0 + slack))
    s = _divisor(bound) * safety
    blocks, square = tl.cdiv(size, BLOCK), order * order
    if share < blocks:
        _divide(y + which * size, y + which * size, share * BLOCK, size, s, BLOCK)
    else:
        first = (share - blocks) * BLOCK
        _divide(g + which * square, g + which * square, first, square, s * s, BLOCK)


def by_norm(x: Array, y: Array, factor: float, power: bool) -> None:
    """Write ``x / s`` to y; both are stacks (b, m, n) of one dense layout."""
    size = x.shape[1] * x.shape[2]
    partial = _sums(x, size, 0)
    grid = (x.shape[0], triton.cdiv(size, BLOCK))
    norm_kernel[grid](x, y, partial, size, factor, POWER=power, MOST=MOST_SUMS, BLOCK=BLOCK)


def by_gram(y: Array, g: Array, moments: bool, slack: float, sums: float, safety: float) -> None:
    """Divide stacks (b, m, n) and (b, n, n) of dense layout in place."""
    count, size, n = y.shape[0], y.shape[1] * y.shape[2], g.shape[-1]
    partial = _sums(g, n * n, n)
    grid = (count, triton.cdiv(size, BLOCK) + triton.cdiv(n * n, BLOCK))
    gram_kernel[grid](
        *(y, g, partial, size, n, slack, sums, safety),
        MOMENTS=moments,
        MOST=MOST_SUMS,
        BLOCK=BLOCK,
    )


def _sums(x: Array, size: int, order: int) -> Array:
    import torch

    partial = torch.empty((x.shape[0], 2, MOST_SUMS), dtype=torch.float64, device=x.device)
    sums_kernel[(x.shape[0], MOST_SUMS)](x, partial, size, order, MOST=MOST_SUMS, BLOCK=BLOCK)
    return partial
