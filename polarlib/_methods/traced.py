"""Forms of methods whose work does not depend on the entries, for traced matrices.

Under ``jax.jit`` and ``jax.vmap`` no number can be read. The plan of a rational iteration then
follows from a bound of the condition number: that of the caller, or the largest one of the format.
The Newton-Schulz iteration is a loop of the library, which contains the stopping test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from polarlib._methods.gram import traced_basis
from polarlib._methods.halley import rational
from polarlib._methods.newton_schulz import GROWTH, MAX_ITERATIONS, SETTLED, STALLED
from polarlib._methods.polynomial import polynomial
from polarlib._methods.qdwh import plan, resolvent
from polarlib._methods.qr import qr
from polarlib._methods.reduction import FLOOR, largest
from polarlib._methods.svd import polished, svd
from polarlib._methods.zolotarev import partial_fractions
from polarlib._methods.zolotarev import plan as rational_plan
from polarlib._schedules.schedule import Schedule
from polarlib.arrays.formats import format_of
from polarlib.arrays.library import format_name
from polarlib.arrays.ops import Ops
from polarlib.result import Run

Array = Any
Method = Callable[..., tuple[Array, Run]]


class _Square(NamedTuple):
    """Square matrices with singular values in [lower, 1], and the back-transformation."""

    x: Array
    gram: Array
    lower: float
    back_transform: Callable[[Array], Array]
    matmuls: int


def _start(x: Array, ops: Ops, lower: float | None, floor: int = FLOOR) -> _Square:
    """Reduce tall matrices by Householder's QR, and scale them by a bound of their norm.

    Without `lower` the lower bound is epsilon to the power `floor`.
    """
    m, n = x.shape[-2:]
    back_transform: Callable[[Array], Array] = lambda u: u  # noqa: E731
    if m > n:
        q, x = ops.qr(x)
        back_transform = lambda u: ops.matmul(q, u)  # noqa: E731
    g = ops.gram(x)
    high, _, _ = largest(x, g, ops)
    # The bound is at most the 1-norm of G, which is at most sqrt(n) sigma_1^2.
    worst = format_of(format_name(x)).epsilon ** floor
    l = worst if lower is None else max(worst, lower * n**-0.25)
    return _Square(
        ops.divide(x, ops.xp.sqrt(high)), ops.divide(g, high), l, back_transform, 1 + (m > n)
    )


def qdwh(x: Array, ops: Ops, *, tol: float, lower: float | None) -> tuple[Array, Run]:
    """Run QDWH with the weights for a given lower bound."""
    n = x.shape[-1]
    eps = format_of(format_name(x)).epsilon
    x, gram, l, back_transform, matmuls = _start(x, ops, lower)
    iterations = 0
    for step, how, after in plan(l, n, eps):
        alpha, beta, c = step.fractions
        correction, spent = resolvent(x, c, alpha, ops, how=how, gram=gram)
        x, gram = x * beta + correction, None
        matmuls += spent
        iterations += 1
        if 1 - after <= 5 * eps:
            break
    return back_transform(x), Run(iterations, matmuls, True)


def zolotarev(x: Array, ops: Ops, *, tol: float, lower: float | None) -> tuple[Array, Run]:
    """Run Zolotarev's iterations for a given lower bound, and a Newton-Schulz step."""
    n = x.shape[-1]
    eps = format_of(format_name(x)).epsilon
    # Poles are near the squares of the lower end, which must be numbers of the format.
    x, gram, low, back_transform, matmuls = _start(x, ops, lower, 2)
    iterations = 1
    for step, hows in rational_plan(low, n, eps, None):
        terms, spent = partial_fractions(x, gram, step, hows, ops)
        x = (x + terms) * step.scale
        gram = ops.gram(x)
        matmuls += spent + 1
        iterations += 1
    return back_transform(polished(x, ops)), Run(iterations, matmuls + 1, True)


def newton_schulz(x: Array, ops: Ops, *, tol: float, lower: float | None) -> tuple[Array, Run]:
    """Run Newton-Schulz steps until orthonormal, with the stopping tests of the method."""
    xp = ops.xp
    m, n = x.shape[-2:]
    eps = format_of(format_name(x)).epsilon
    g = ops.gram(x)
    high, mean, _ = largest(x, g, ops)
    cut = max(m, n) * eps * xp.sqrt(mean / high)
    x, g = ops.divide(x, xp.sqrt(high)), ops.divide(g, high)

    def defect_of(g: Array) -> Array:
        return ops.frobenius(ops.add_diagonal(g * -1.0, 1.0)) / math.sqrt(n)

    def step(state: Any) -> Any:
        x, g, before, active, k = state
        e = ops.add_diagonal(g * -1.0, 1.0)
        # Matrices that have converged are kept while others of the stack are iterated.
        new = xp.where(active, ops.gemm(x, e, x, alpha=0.5, beta=1.0), x)
        g = ops.gram(new)
        defect = defect_of(g)
        settled = (defect <= SETTLED * eps) | ((defect <= tol) & (defect > 0.5 * before))
        active = active & ~settled & xp.isfinite(defect)
        if lower is None:  # the other singular values of a singular matrix are rounding errors
            # With every singular value at 0 or 1, ||X E||_F is the norm of those near 0.
            left = 2 * ops.frobenius(new - x) / GROWTH ** xp.astype(k, defect.dtype)
            stalled = (defect > STALLED * before) & (defect * math.sqrt(n) > STALLED)
            active = active & ~(stalled & (cut > left))
        return new, g, defect, active, k + 1

    def going(state: Any) -> Array:
        return xp.any(state[3]) & (state[4] < MAX_ITERATIONS)

    defect = defect_of(g)
    state = x, g, defect, defect > SETTLED * eps, xp.asarray(0)
    x, _, _, _, k = ops.repeat_while(going, step, state)
    return x, Run(k, 1 + 2 * k, True)


def gram(x: Array, ops: Ops, *, tol: float, lower: float | None) -> tuple[Array, Run]:
    """Run the method of sharded matrices, with the SVD of the n x n matrix."""
    q, s, k = traced_basis(x, ops)
    u, values, vh = ops.svd(s)
    factor = ops.matmul(q, ops.matmul(u, vh))
    return factor, Run(k, 2 * k, True, singular_values=values, method="gram")


def fixed_schedule(x: Array, ops: Ops, chosen: Schedule, callback: Any = None) -> tuple[Array, Run]:
    """Apply every step of a schedule, in the format of the matrices."""
    apply: Any = rational if chosen.is_rational else polynomial
    u, run = apply(x, ops, chosen, precision=format_name(x), callback=callback)
    return u, run


def _without_bound(method: Method) -> Method:
    """Return the form for traced matrices of a method whose work is always fixed."""

    def run(x: Array, ops: Ops, *, tol: float, lower: float | None) -> tuple[Array, Run]:
        return method(x, ops, tol=tol)

    return run


fixed_svd, fixed_qr = _without_bound(svd), _without_bound(qr)
