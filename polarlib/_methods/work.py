"""What the steps of a trace cost: products as counted, factorisations by the tables of costs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from polarlib.result import Trace

CHOLESKY = {"cholesky": 1.0, "solve": 2.0}
# Two factorisations and, of stacks of 2n rows, twice two solves: qdwh.resolvent.
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
# Methods with steps of several kinds, which their numbers of products tell apart.
MIXED = ("qdwh", "hybrid")
# Methods that reduce tall matrices to square ones first, by a QR factorisation.
REDUCED = ("svd", "newton", "halley", "qdwh", "hybrid")


def work(t: Trace, costs: Mapping[str, float]) -> np.ndarray | None:
    """Cost of a trace after each step, in products of an m x n with an n x n matrix.

    Parameters
    ----------
    t : Trace
        Of a schedule or a method.
    costs : mapping
        As :func:`polarlib.design.cost_tables.kernel_costs` gives them, for n = min(shape).

    Returns
    -------
    ndarray, shape (steps + 1,) or None
        0 at first. None where the factorisations do not follow from the trace: of methods that
        choose among several, and of rational schedules.

    Examples
    --------
    >>> from polarlib import measure
    >>> work(measure(np.diag([1.0, 0.5]), "newton"), {"inverse": 1.5})[:3].tolist()
    [0.0, 1.5, 3.0]
    """
    products: np.ndarray = np.asarray(t.matmuls, dtype=float) - float(t.matmuls[0])
    if t.form:  # a schedule of polynomials
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
