"""Method "auto": choice of the fastest method that is backward stable for a matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polarlib._methods.gram import gram
from polarlib._methods.hybrid import hybrid
from polarlib._methods.hybrid import iterate as hybrid_steps
from polarlib._methods.qdwh import iterate as qdwh_steps
from polarlib._methods.reduction import start
from polarlib._methods.small import is_worth, small
from polarlib._methods.stacked import serves, stacked
from polarlib._methods.svd import svd
from polarlib.arrays.formats import format_of
from polarlib.arrays.library import format_name, library_name, on_cpu
from polarlib.arrays.ops import Ops
from polarlib.design.cost_tables import kernel_costs
from polarlib.result import Run

Array = Any

# Columns from which the iterations are faster than the SVD on the host. For fewer columns the time
# is that of calls. Chosen by experiment (benchmarks/polar.py).
WORTH_IT = 320
# Cost of the hybrid on libraries other than NumPy, in matrix products, for a condition number of
# 1e4: three Halley steps, three polynomials, and the bound. The SVD is used where it costs less.
STEPS = {"gram": 6.0, "cholesky": 4.0, "solve": 7.0, "matmul": 3.0, "elementwise": 20.0}


# Columns up to which libraries decompose a stack on a device by one SVD kernel. One matrix of this
# size takes a few milliseconds. Not measured.
BATCHED = 32


def auto(
    x: Array,
    ops: Ops,
    *,
    tol: float,
    callback: Callable[[int, Array], None] | None = None,
    lower: float | None = None,
) -> tuple[Array, Run]:
    """Run the fastest method that is backward stable for the matrix; the note gives the reason.

    If the matrix is sharded: Gram matrices, the only sums over devices; `lower` is not needed.
    On the host: closed forms for stacks of small matrices; the SVD where the iterations are slower;
    otherwise the hybrid, which estimates the condition number and compares its cost with that of
    the SVD. On a device: the SVD for few columns, otherwise the hybrid, or QDWH if there is no
    lower bound of the smallest singular value.
    """
    if not ops.host and ops.is_sharded(x):
        u, run = gram(x, ops, tol=tol, callback=callback, small=_of_whole)
        note = f"sharded: {run.iterations} Gram matrices are summed over devices"
        return u, run._replace(method="gram", note=note)
    return _of_whole(x, ops, tol=tol, callback=callback, lower=lower)


def _of_whole(
    x: Array,
    ops: Ops,
    *,
    tol: float,
    callback: Callable[[int, Array], None] | None = None,
    lower: float | None = None,
) -> tuple[Array, Run]:
    """Choose a method for matrices that are whole on each device."""
    n = x.shape[-1]
    if not (ops.host or on_cpu(x)):
        return _on_device(x, ops, tol, callback, lower)
    if ops.host and is_worth(x.shape) and (x.shape[-2] == n or ops.kernels(x) is not None):
        u, run = small(x, ops, tol=tol, callback=callback)
        return u, run._replace(method="small", note=f"closed forms; {run.note}")
    if serves(x, ops):
        u, run = stacked(x, ops, tol=tol, callback=callback)
        return u, run._replace(method="hybrid")
    if n < WORTH_IT:
        u, run = svd(x, ops, tol=tol, callback=callback)
        return u, run._replace(method="svd", note=f"fewer than {WORTH_IT} columns")
    costs = kernel_costs(library_name(ops), format_name(x), n)
    if ops.kernels(x) is None:  # in place, the hybrid compares its cost with the SVD's itself
        steps = sum(costs[kernel] * count for kernel, count in STEPS.items())
        if costs["svd"] < steps:
            note = f"the SVD costs {costs['svd']:.0f} products, iterations about {steps:.0f}"
            u, run = svd(x, ops, tol=tol, callback=callback)
            return u, run._replace(method="svd", note=note)
    u, run = hybrid(
        x, ops, tol=tol, callback=callback, lower=lower, may_decompose=True, costs=costs
    )
    return u, run if run.method else run._replace(method="hybrid")


def _on_device(
    x: Array,
    ops: Ops,
    tol: float,
    callback: Callable[[int, Array], None] | None,
    lower: float | None,
) -> tuple[Array, Run]:
    """Choose a method for a device, where kernels are launched and factorisations synchronise."""
    n = x.shape[-1]
    if n <= BATCHED:
        u, run = svd(x, ops, tol=tol, callback=callback)
        return u, run._replace(method="svd", note=f"at most {BATCHED} columns on a device")
    begun = start(x, ops, callback, lower=lower)
    if begun.certain or (lower is not None and begun.lower >= format_of(format_name(x)).epsilon):
        costs = kernel_costs(library_name(ops), format_name(x), n, device="gpu")
        u, run = hybrid_steps(begun, ops, costs)
        return u, run._replace(method="hybrid")
    u, run = qdwh_steps(begun, ops, promised=lower is not None)
    return u, run._replace(method="qdwh", note="the smallest singular value may be rounding")
