"""Hermitian products that compute one triangle, where they were measured to be faster."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from polarlib.arrays.library import library_name, to_working_format
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.rounded import rounded
from polarlib.arrays.triton_symmetric import FORMATS, can_halve, halved
from polarlib.design.cost_tables import SYMMETRIC, symmetric_cost

Array = Any
POLYNOMIAL = (0.0, 0.5, 0.25)  # what is timed: a product with addend


def by_measurement(ops: Ops, n: int) -> Ops:
    """Return an arithmetic for matrices of n columns, with half products if these are faster.

    The table of costs decides, see :func:`polarlib.design.cost_tables.symmetric_cost`. Without
    measured costs no half products are used.

    Parameters
    ----------
    ops : Ops
        Arithmetic in a number format, as :func:`polarlib.arrays.rounded.rounded` returns it.
    n : int
        Order of the products.

    Returns
    -------
    Ops

    Examples
    --------
    >>> import numpy as np
    >>> from polarlib.arrays.ops import ops_of
    >>> ops = ops_of(np.eye(2))
    >>> by_measurement(ops, 2) is ops
    True
    """
    return halved(ops) if pays(ops, ops.working, n) else ops


def pays(ops: Ops, format_name: str, n: int) -> bool:
    """Return whether half products of order n in a format were measured to be faster.

    Examples
    --------
    >>> import numpy as np
    >>> from polarlib.arrays.ops import ops_of
    >>> pays(ops_of(np.eye(2)), "float32", 2)
    False
    """
    if not can_halve(ops, format_name):
        return False
    return symmetric_cost(library_name(ops), format_name, n, device="gpu") < 1


def rivals(
    g: Array, finished: Callable[[Array, Ops], Array]
) -> dict[str, dict[str, Callable[[], Array]]]:
    """Return the functions timed for the table of costs: a polynomial of degree 2, whole and half.

    Parameters
    ----------
    g : array, shape (n, n)
        A symmetric matrix, float32 or float64.
    finished : callable
        ``finished(result, ops)`` waits for a result.

    Returns
    -------
    dict
        Functions by format and by the names of their costs, "matmul" and "symmetric". Empty if
        there are no half products.

    Examples
    --------
    >>> import numpy as np
    >>> rivals(np.eye(2), lambda x, ops: x)
    {}
    """

    def run(ops: Ops, x: Array) -> Array:
        return finished(ops.quadratic(x, POLYNOMIAL), ops)

    found: dict[str, dict[str, Callable[[], Array]]] = {}
    for name in FORMATS:
        ops = rounded(ops_of(g), name)
        if can_halve(ops, name):
            x = to_working_format(g, ops)
            pair = {"matmul": ops, SYMMETRIC: halved(ops)}
            found[name] = {k: functools.partial(run, each, x) for k, each in pair.items()}
    return found
