"""Arguments of cuBLAS for matrices in memory, from shapes and strides alone.

Matrices of cuBLAS are column-major. A row-major C is computed as C^T = op(B)^T op(A)^T, with
operands in the other order. Strides show whether a matrix is stored transposed.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

# Shape and strides of an array.
View = tuple[tuple[int, ...], tuple[int, ...]]
PLAIN, TRANSPOSED, ADJOINT = 0, 1, 2


class Layout(NamedTuple):
    """Arguments of cuBLAS for a product of operands in memory.

    Tuples of three have one number per operand, and one for C.

    Attributes
    ----------
    turned : bool
        Whether C is row-major: its transpose is computed, whose first operand is B.
    operations : tuple of int
        `PLAIN`, `TRANSPOSED` or `ADJOINT`, for the first and the second operand.
    sizes : tuple of int
        Rows, columns and inner dimension, column-major.
    leading, steps : tuple of int
        Leading dimensions, and steps between the matrices of a stack.
    matrices : int
        Number of matrices in the stack.
    addend : tuple of int or None
        Leading dimension and step of an addend with the memory order of C; None for other ones.
    """

    turned: bool
    operations: tuple[int, int]
    sizes: tuple[int, int, int]
    leading: tuple[int, int, int]
    steps: tuple[int, int, int]
    matrices: int
    addend: tuple[int, int] | None


# Cached, since a product takes only microseconds to launch.
@functools.lru_cache(maxsize=1024)
def described(
    a: View,
    b: View,
    c: View,
    addend: View | None,
    itemsize: int,
    is_complex: bool,
    adjoints: tuple[bool, bool],
) -> Layout | tuple[int, bool]:
    """Return the layout; or the operand to copy first (2 is C), and whether conjugated."""
    lies = matrix_strides(*c, itemsize)
    if lies is None:
        return 2, False
    by_columns, ldc, step_c = lies
    operands = []
    for i, ((shape, strides), adjoint) in enumerate(zip((a, b), adjoints, strict=True)):
        shape, strides = _spread(shape, strides, c[0][:-2])
        if adjoint and not is_complex:
            shape, strides = ((*x[:-2], x[-1], x[-2]) for x in (shape, strides))
        how = matrix_strides(shape, strides, itemsize)
        if how is None:
            return i, False
        same = how[0] == by_columns
        if adjoint and is_complex and not same:
            return i, True  # there is no operation that conjugates without transposition
        operation = ADJOINT if adjoint and is_complex else PLAIN if same else TRANSPOSED
        operands.append((operation, *how[1:]))
    (m, n), k = c[0][-2:], a[0][-2 if adjoints[0] else -1]
    first, second = operands if by_columns else operands[::-1]
    beside = None if addend is None else matrix_strides(*addend, itemsize)
    return Layout(
        not by_columns,
        (first[0], second[0]),
        (m, n, k) if by_columns else (n, m, k),
        (first[1], second[1], ldc),
        (first[2], second[2], step_c),
        math.prod(c[0][:-2]),
        beside[1:] if beside is not None and beside[0] == by_columns else None,
    )


def _spread(
    shape: tuple[int, ...], strides: tuple[int, ...], stack: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return shape and strides of a broadcast stack."""
    missing = len(stack) + 2 - len(shape)
    old = (1,) * missing + shape
    steps = (0,) * missing + strides
    new = tuple(0 if n == 1 < m else s for n, m, s in zip(old, stack, steps, strict=False))
    return (*stack, *shape[-2:]), (*new, *strides[-2:])


@functools.lru_cache(maxsize=1024)
def matrix_strides(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int
) -> tuple[bool, int, int] | None:
    """Return whether matrices are column-major, their leading dimension, and the step between them.

    The numbers are in entries. None for a stack with strides that cuBLAS cannot read.
    """
    if any(s % itemsize for s in strides):
        return None
    *steps, down, right = (s // itemsize for s in strides)
    *counts, rows, columns = shape
    # Axes of one entry may have any stride.
    axes = [(n, s) for n, s in zip(counts, steps, strict=True) if n > 1]
    if any(outer != n * inner for (_, outer), (n, inner) in itertools.pairwise(axes)):
        return None  # more than one stride, not all of them 0
    step = axes[-1][1] if axes else 0
    if step < 0:
        return None
    if (right == 1 or columns == 1) and (down >= columns or rows == 1):
        return False, down if rows > 1 else columns, step
    if (down == 1 or rows == 1) and (right >= rows or columns == 1):
        return True, right if columns > 1 else rows, step
    return None
