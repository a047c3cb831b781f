"""The spectral LMO (linear maximisation oracle) of blocks of a matrix, always or periodically."""

from __future__ import annotations

import functools
from typing import Any, TypeVar, cast

from polarlib.arrays.checks import MOST_ROWS, count, number
from polarlib.arrays.entered import enter
from polarlib.arrays.entry import as_matrix
from polarlib.arrays.ops import ops_of
from polarlib.arrays.settings import (
    looks,
    looks_at_nothing,
    traced_by_dynamo,
    under_default_settings,
)
from polarlib.arrays.torch_sharded import laid_as, placements, with_whole
from polarlib.norms.base import times
from polarlib.norms.unitary import Polar, spectral
from polarlib.orthogonalization.heads import merged, split

Array = Any
A = TypeVar("A")


def per_block(g: A, rows: int = 1, columns: int = 1, *, polar: Polar = None) -> A:
    """Return the polar factor of each of `rows` x `columns` equal blocks, in their places.

    Parameters
    ----------
    g : array, shape (..., m, n)
        For example a momentum whose blocks are on several devices.
    rows, columns : int, optional
        Numbers of blocks along m and along n, which they divide.
    polar : callable, str, path-like or Schedule, optional
        Method for the polar factors, as in :func:`spectral`, by default the exact partial isometry.
        A function is called once, with the stack (..., rows, columns, m / rows, n / columns).

    Returns
    -------
    array, shape (..., m, n)
        Array library, device and dtype of `g`. A zero block stays zero.

    Raises
    ------
    TypeError, ValueError
        For blocks of unequal sizes, numbers of blocks below 1, an unknown name or another type of
        `polar`, and as every LMO.

    Notes
    -----
    This is BlockMuon's direction. Blocks of rows are those of ``orthogonalize(heads=)``. Sharded
    JAX arrays are accepted, and with a schedule as `polar` torch's DTensors; placements are kept.
    Where each device has whole blocks, no entry is sent (:func:`polarlib.communication`). Otherwise
    parts of the matrix are gathered, with a warning that gives the bytes.

    The result T is the exact LMO of the norm ``||X||_B = max ||X_ij||_2`` over the blocks, with
    ``Re tr(G^H T) = sum ||G_ij||_*``. From ``||X||_B <= ||X||_2 <= sqrt(r c) ||X||_B`` for r x c
    blocks follow ``1 <= ||T||_2 <= sqrt(r c)`` (T not zero, and the upper bound is attained by
    equal blocks), ``Re tr(G^H T) >= ||G||_*``, and a :func:`duality_gap` of the spectral norm of at
    most ``1 - 1 / sqrt(r c)``. A function that is L-smooth in the spectral norm is L_B-smooth in
    ``||.||_B`` with ``L <= L_B <= r c L``.

    Entries of the result are larger than those of the polar factor of the whole matrix. A scale of
    the update that depends on the shape must be that of a block,
    ``norms.update_scale(m // rows, n // columns, rule)``.

    References
    ----------
    A. Khaled and others, MuonBP, arXiv 2510.16981 (L_op, L_B and the norm of blocks).

    Examples
    --------
    >>> import numpy as np
    >>> g = np.array([[3.0, 0.0], [4.0, -2.0]])
    >>> per_block(g, 2).round(12).tolist()
    [[1.0, 0.0], [0.894427191, -0.4472135955]]
    >>> per_block(g, 2, 2).tolist()
    [[1.0, 0.0], [1.0, -1.0]]
    """
    spectral(polar=polar)  # checks `polar` before the matrix
    return _of_blocks(g, polar, *_grid(g, rows, columns))


def block_periodic(
    g: A,
    k: int,
    period: int,
    *,
    rows: int = 1,
    columns: int = 1,
    factor: float = 1.0,
    polar: Polar = None,
) -> A:
    """Return the spectral LMO of the matrix in one of `period` steps, of its blocks in the others.

    Parameters
    ----------
    g : array, shape (..., m, n)
        For example a momentum whose blocks are on several devices.
    k : int
        Number of the step, from 0. The whole matrix is used where `period` divides it.
    period : int
        P, at least 1. With 1 every step uses the whole matrix.
    rows, columns, polar : optional
        As in :func:`per_block`. A function is called with `g` where the whole matrix is used.
    factor : float, optional
        Positive factor of the results of blocks: the step size for blocks over that for the whole
        matrix.

    Returns
    -------
    array, shape (..., m, n)
        ``spectral(polar=polar).lmo(g)``, or ``factor * per_block(g, rows, columns, polar=polar)``.

    Raises
    ------
    TypeError, ValueError
        As :func:`per_block`; for k below 0 or traced, a period below 1, a factor that is not
        positive.

    Notes
    -----
    This is MuonBP's direction. Entries are sent in one of P steps. With the smoothness constants
    L of the spectral norm and L_B of :func:`per_block`, step sizes in the ratio
    ``factor = L / L_B``, from ``1 / (rows columns)`` to 1, give a rate of convergence with the
    harmonic mean ``1 / (1 / (P L) + (P - 1) / (P L_B))`` in the place of L. One step size for both,
    ``factor = 1``, gives the arithmetic mean ``L / P + (P - 1) L_B / P``, which is never smaller.
    L_B is rarely known. Updates have equal root mean squares for ``factor = f(m // rows, n //
    columns) / f(m, n)`` with f the "moonlight" rule of :func:`update_scale`, at full rank.

    Under ``jax.jit`` k is a static argument: the two kinds of step are two programs.

    References
    ----------
    A. Khaled and others, MuonBP, arXiv 2510.16981 (the period, two step sizes, both means).

    Examples
    --------
    >>> import numpy as np
    >>> g = np.array([[3.0, 0.0], [4.0, -2.0]])
    >>> for k in range(3):
    ...     print(block_periodic(g, k, 2, rows=2, columns=2, factor=0.5).round(6).tolist())
    [[0.780869, 0.624695], [0.624695, -0.780869]]
    [[0.5, 0.0], [0.5, -0.5]]
    [[0.780869, 0.624695], [0.624695, -0.780869]]
    """
    k, period = count("k", k, least=0), count("period", period)
    factor = number("factor", factor, 0, ends="(]")
    lmo = spectral(polar=polar).lmo
    rows, columns = _grid(g, rows, columns)  # checked in steps of both kinds
    if k % period == 0:
        return lmo(g)
    t = _of_blocks(g, polar, rows, columns)
    return t if factor == 1 else cast(A, times(t, factor))


def _grid(g: Any, rows: int, columns: int) -> tuple[int, int]:
    """Return the numbers of blocks, or raise ValueError if blocks would be unequal."""
    grid = count("rows", rows, most=MOST_ROWS), count("columns", columns, most=MOST_ROWS)
    shape = _shape(g)
    for name, parts, size in zip(("rows", "columns"), grid, shape, strict=True):
        if isinstance(size, int) and size % parts:  # symbolic sizes are not checked
            raise ValueError(
                f"{name} must divide the number of {name} of g, got {name}={parts} for {size}; "
                "append zeros, or choose another number of blocks"
            )
    return grid


def _shape(g: Any) -> tuple[int, ...]:
    """Return rows and columns, or raise ValueError for entries that are not finite."""
    if traced_by_dynamo():
        return tuple(g.shape[-2:])
    x, ops = as_matrix(g, "g", sharded=True)
    if not placements(x):  # here, since an index in the stack of blocks is not one of the matrix
        enter(x, "g", ops=ops, look="if free", scaling=None)
    return tuple(x.shape[-2:])


def _of_blocks(g: A, polar: Polar, rows: int, columns: int) -> A:
    """Return the spectral LMO of each block."""
    if traced_by_dynamo() and not hasattr(g, "placements"):
        return cast(A, _merged(spectral(polar=polar).lmo(_blocks(g, rows, columns))))
    return _in_place(g, polar, rows, columns)


@functools.partial(
    looks,
    reason="norms.per_block of a DTensor reads placements, which torch.compile(fullgraph=True) "
    "cannot record; leave fullgraph=True out",
)
def _in_place(g: A, polar: Polar, rows: int, columns: int) -> A:
    """Return the spectral LMO of each block, where the blocks are."""

    def run(x: Array) -> Array:
        return _merged(spectral(polar=polar).lmo(_blocks(x, rows, columns)))

    x, ops = as_matrix(g, "g", sharded=True)
    if all(p.is_replicate() for p in placements(x)[1:]):  # no DTensor, or whole everywhere
        return cast(A, ops.with_shards(run, x, "g", (), (rows, columns)))
    parts_of = {-2: rows, -1: columns}
    why = f"{rows} x {columns} blocks are not whole on the processes"
    # Before the blocks are made: a matrix would be redistributed along its longer side.
    whole = with_whole(x, lambda axis, parts: parts_of.get(axis, parts) % parts != 0, why)
    return cast(A, laid_as(run(whole), x))


@looks_at_nothing
@under_default_settings
def _blocks(x: Array, rows: int, columns: int) -> Array:
    """Return the stack (..., rows, columns, m / rows, n / columns) of the blocks."""
    transposed = ops_of(x).xp.matrix_transpose
    return transposed(split(transposed(split(x, rows)), columns))


@looks_at_nothing
@under_default_settings
def _merged(blocks: Array) -> Array:
    """Return the matrices of a stack of blocks: the inverse of :func:`_blocks`."""
    transposed = ops_of(blocks).xp.matrix_transpose
    return merged(transposed(merged(transposed(blocks))))
