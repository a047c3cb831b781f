"""Symmetric products of torch's CUDA matrices by a Triton kernel: half of the tiles, mirrored.

cuBLAS computes both triangles of X^T X, and of the square of a symmetric matrix. Here tiles above
the diagonal are copies of those below it, so that results are exactly symmetric. Whether this is
faster depends on the device: :func:`polarlib.engine.symmetric.by_measurement` uses the table of
costs.
"""

from __future__ import annotations

import functools
import itertools
import math
from contextlib import nullcontext
from typing import Any

from polarlib.arrays.library import import_library, is_known
from polarlib.arrays.ops import Ops
from polarlib.arrays.torch_ops import TorchOps
from polarlib.arrays.triton_normaliser import is_installed

Array = Any
# Formats of the kernel's products, and their torch dtypes.
FORMATS = {"bfloat16": "bfloat16", "float16": "float16", "tf32": "float32", "float32": "float32"}
# Order from which tiles are large, and both sizes of tiles: rows, depth, warps, by bytes per entry.
# They fit in the shared memory from compute capability 8.0 on.
LARGE_FROM = 2048
TILES = {2: ((64, 64, 4), (128, 64, 8)), 4: ((64, 32, 4), (64, 32, 4))}


@functools.cache
def kernel() -> Any:
    """Return the kernel, which Triton compiles for types and sizes of its arguments."""
    triton: Any = import_library("triton")
    tl: Any = import_library("triton.language")

    @triton.jit  # type: ignore[untyped-decorator, unused-ignore]
    def polarlib_symmetric(  # type: ignore[no-untyped-def]
        a, b, c, y, n, k, count,
        a_stack, a_row, a_inner, b_stack, b_inner, b_column, c_stack, c_row, c_column,
        y_stack, y_row, y_column, alpha, beta,
        TILE: tl.constexpr, DEPTH: tl.constexpr,
        ADDEND: tl.constexpr, EXACT: tl.constexpr, WIDEN: tl.constexpr,
    ):  # fmt: skip
        # One program computes one tile (i, j) of the triangle, i >= j, of one matrix of a stack.
        matrix = (tl.program_id(0) // count).to(tl.int64)
        t = tl.program_id(0) % count
        i = ((tl.sqrt(8.0 * t + 1.0) - 1.0) * 0.5).to(tl.int32)
        i = tl.where((i + 1) * (i + 2) // 2 <= t, i + 1, i)  # the root was rounded
        i = tl.where(i * (i + 1) // 2 > t, i - 1, i)
        rows = (i * TILE + tl.arange(0, TILE)).to(tl.int64)[:, None]
        columns = ((t - i * (i + 1) // 2) * TILE + tl.arange(0, TILE)).to(tl.int64)[None, :]
        total = tl.zeros((TILE, TILE), dtype=tl.float32)
        for start in range(0, k, DEPTH):
            inner = (start + tl.arange(0, DEPTH)).to(tl.int64)
            across, down = inner[None, :], inner[:, None]
            at = a + matrix * a_stack + rows * a_row + across * a_inner
            left = tl.load(at, (rows < n) & (across < k), 0.0)
            at = b + matrix * b_stack + down * b_inner + columns * b_column
            right = tl.load(at, (down < k) & (columns < n), 0.0)
            if WIDEN:
                left, right = left.to(tl.float32), right.to(tl.float32)
            total = tl.dot(left, right, total, input_precision="ieee" if EXACT else "tf32")
        inside = (rows < n) & (columns < n)
        total *= alpha
        if ADDEND:
            at = c + matrix * c_stack + rows * c_row + columns * c_column
            total += beta * tl.load(at, inside, 0.0).to(tl.float32)
        result = total.to(y.dtype.element_ty)
        # Tiles on the diagonal meet their mirror image: the lower triangle counts.
        at = y + matrix * y_stack + rows * y_row + columns * y_column
        tl.store(at, result, inside & (rows >= columns))
        at = y + matrix * y_stack + rows * y_column + columns * y_row
        tl.store(at, result, inside & (rows > columns))

    return polarlib_symmetric


def constants(n: int, itemsize: int, *, addend: bool, exact: bool) -> tuple[dict[str, Any], int]:
    """Return the compile-time constants of the kernel for order n, and its number of warps."""
    tile, depth, warps = TILES[itemsize][n >= LARGE_FROM]
    return {"TILE": tile, "DEPTH": depth, "ADDEND": addend, "EXACT": exact}, warps


def symmetric_product(
    a: Array, b: Array, c: Array, alpha: float, beta: float, out: Array | None, *, exact: bool
) -> Array:
    """Return ``alpha a @ b + beta c`` of real matrices or stacks, symmetric, rounded once.

    Sums are in single precision. Operands in float32 are multiplied in full precision if `exact`,
    otherwise in tf32. The product and `c` (of any shape if beta is 0) must be symmetric up to
    rounding.
    """
    triton, torch, (n, k) = import_library("triton"), import_library("torch"), a.shape[-2:]
    out = a.new_empty((*a.shape[:-2], n, n)) if out is None else out
    if 0 in out.shape:
        return out
    matrices, result = out.numel() // n**2, out.view((-1, n, n))
    stacks = [x.reshape((matrices, *x.shape[-2:])) for x in (a, b, c if beta else out)]
    fixed, warps = constants(n, a.element_size(), addend=beta != 0.0, exact=exact)
    count = math.comb(triton.cdiv(n, fixed["TILE"]) + 1, 2)
    strides = itertools.chain.from_iterable(x.stride() for x in (*stacks, result))
    # Triton's interpreter, for tests, multiplies the bits of bfloat16 numbers.
    widen = not isinstance(kernel(), triton.runtime.JITFunction)
    with torch.cuda.device(a.device) if a.is_cuda else nullcontext():
        kernel()[(count * matrices,)](
            *(*stacks, result, n, k, count, *strides, float(alpha), float(beta)),
            **(fixed | {"WIDEN": widen, "num_warps": warps}),
        )
    return out


class TorchSymmetricOps(TorchOps):
    """torch's CUDA tensors, with Hermitian products by the kernel."""

    def gram(self, x: Array, out: Array | None = None) -> Array:
        """Return ``x^H x``."""
        if not self._is_served(self.adjoint(x), x, x):
            return super().gram(x, out)
        return symmetric_product(x.mT, x, x, 1.0, 0.0, out, exact=self.working != "tf32")

    def gemm_hermitian(
        self, a: Array, b: Array, c: Array, alpha: float = 1.0, beta: float = 0.0, out: Array = None
    ) -> Array:
        """Return ``alpha a @ b + beta c``, Hermitian."""
        known = is_known(alpha) and is_known(beta)
        if not known or not self._is_served(a, b, c):
            return super().gemm_hermitian(a, b, c, alpha, beta, out)
        return symmetric_product(a, b, c, alpha, beta, out, exact=self.working != "tf32")

    def _is_served(self, a: Array, b: Array, c: Array) -> bool:
        """Return whether the kernel supports a product: one format, and few terms."""
        of_format = {str(x.dtype) for x in (a, b, c)} == {f"torch.{FORMATS[self.working]}"}
        return of_format and not self._is_long(a, b)


def can_halve(ops: Any, format_name: str) -> bool:
    """Return whether the kernel supports a format for an arithmetic: plain tensors on CUDA."""
    on_cuda = type(ops) is TorchOps and ops.device.type == "cuda"
    return on_cuda and format_name in FORMATS and is_installed()


def halved(ops: Any) -> Ops:
    """Return an arithmetic with Hermitian products by the kernel, see :func:`can_halve`."""
    other = object.__new__(TorchSymmetricOps)
    vars(other).update(vars(ops))
    return other
