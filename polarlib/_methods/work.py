"""Cost of the steps of a trace: counted products, and factorisations by tables of costs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from polarlib.result import Trace

CHOLESKY = {"cholesky": 1.0, "solve": 2.0}
# Two factorisations and, for stacks of 2n rows, twice two solves (see qdwh.resolvent).
CHOLESKY_TWICE = {"cholesky": 2.0, "solve": 4.0}
# Kernels of every step besides the matrix products that a trace counts.
OF_STEPS: dict[str, dict[str, float]] = {
    "svd": {"svd": 1.0},
    "qr": {"qr": 1.0},
    "newton": {"inverse": 1.0},
    "halley": CHOLESKY,
    "newton_schulz": {},
    "minimax": {},
}
# Methods with steps of several kinds, which differ in their numbers of products.
MIXED = ("qdwh", "hybrid")
# Methods that reduce tall matrices to square ones first, by a QR factorisation.
REDUCED = ("svd", "newton", "halley", "qdwh", "hybrid")


def work(t: Trace, costs: Mapping[str, float]) -> np.ndarray | None:
    """Return the cost of a trace after each step, in products of an m x n with an n x n matrix.

    Parameters
    ----------
    t : Trace
        Trace of a schedule or a method.
    costs : mapping
        Result of :func:`polarlib.design.cost_tables.kernel_costs` for n = min(shape).

    Returns
    -------
    ndarray, shape (steps + 1,) or None
        The first entry is 0. None for methods that choose among several and for rational schedules,
        whose factorisations do not follow from the trace.

    Examples
    --------
    >>> from polarlib import measure
    >>> work(measure(np.diag([1.0, 0.5]), "newton"), {"inverse": 1.5})[:3].tolist()
    [0.0, 1.5, 3.0]
    """
    products: np.ndarray = np.asarray(t.matmuls, dtype=float) - float(t.matmuls[0])
    if t.form:  # a polynomial schedule
        return products
    spent = np.diff(products)
    if t.method in OF_STEPS:
        each = np.full(len(spent), _priced(OF_STEPS[t.method], costs))
    elif t.method in MIXED:
        once, twice = _priced(CHOLESKY, costs), _priced(CHOLESKY_TWICE, costs)
        each = np.where(spent <= 1, once, np.where((t.method == "qdwh") & (spent == 3), twice, 0.0))
    else:
        return None
    long, short = max(t.shape), min(t.shape)
    each = each * short / long
    if long > short and t.method in REDUCED and len(each):
        each[0] += costs["qr"]
    return np.concatenate([[0.0], np.cumsum(spent + each)])


def _priced(kernels: Mapping[str, float], costs: Mapping[str, float]) -> float:
    return sum(costs[kernel] * times for kernel, times in kernels.items())
