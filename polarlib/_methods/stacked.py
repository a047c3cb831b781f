"""Stacks of matrices of a few to some tens of columns: the same few steps on all of them at once.

Four Halley steps and two polynomials, planned for singular values in ``[LOWER, 1]``, take the
place of an SVD per matrix. The steps are the same for every matrix, so that nothing is estimated,
and a result does not depend on the others of its stack. The Gram matrix of the last step shows
which matrices have converged: the others, ill-conditioned or singular, are decomposed by the SVD.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from polarlib._methods.hybrid import plan
from polarlib._methods.qdwh import halley_step
from polarlib._methods.svd import svd
from polarlib.arrays.formats import format_of
from polarlib.arrays.library import format_name, is_complex
from polarlib.arrays.ops import Ops
from polarlib.engine.drive import LAST, NEWTON_SCHULZ, Step
from polarlib.engine.iterate import even_part
from polarlib.result import Run

Array = Any

# Smallest singular value over ``||A^H A||_F^(1/2)`` for which the steps are planned. Gaussian
# matrices of n columns are below it with probability 2 n LOWER, and cost an SVD then.
LOWER = 1e-3
# Steps with this c, which lift small singular values tenfold, until the best c is smaller. Backward
# errors at condition numbers from 100 to 700, n = 8: up to 12 epsilons, 27 for c = 60, 88 for 100,
# 34 for the SVD. By experiment.
CAP, CAPPED = 30.0, 3
# Columns of a matrix up to which, and columns of a stack from which, this is faster than NumPy's
# SVD of the stack. By experiment.
SMALL, MANY = 32, 1600


@functools.cache
def _steps() -> tuple[Step, ...]:
    """Halley steps and polynomials, but for the last step.

    Those for double precision in single precision as well: Frobenius norms of defects, which are
    larger than the defects that a plan is made for, then still suffice for the last step.
    """
    slope = 2 * math.sqrt(1 + CAP) - 1
    step = halley_step(slope)
    first = 2 / (slope - 1)  # the step is 1 there and at 1, and less in between
    least = min(step(first + k * (1 - first) / 100) for k in range(100))
    low = LOWER
    for _ in range(CAPPED):
        low = min(step(low), least)
    return (step,) * CAPPED + plan(low, 2.0**-52)[0]


def serves(x: Array, ops: Ops) -> bool:
    """Whether this is faster than the SVD: small complex products are slow."""
    many = x.ndim > 2 and math.prod(x.shape[:-2]) * x.shape[-1] >= MANY
    return many and x.shape[-1] <= SMALL and not is_complex(x) and ops.kernels(x) is not None


def stacked(
    x: Array, ops: Ops, *, tol: float, callback: Callable[[int, Array], None] | None = None
) -> tuple[Array, Run]:
    """Halley steps with the inverse of a Gram matrix, then polynomials, on a whole stack.

    Backward stable, since ``I + c X^H X`` has a condition number of at most 31. Matrices that do
    not converge are decomposed by the SVD.

    Y. Nakatsukasa and N. J. Higham, SIAM J. Sci. Comput. 35 (2013) A1325-A1349, section 5.
    """
    xp = ops.xp
    eps = format_of(format_name(x)).epsilon
    g = ops.gram(x)
    size = ops.frobenius(g)
    g, y = ops.divide(g, ops.divisor(size)), ops.divide(x, ops.divisor(xp.sqrt(size)))
    steps = _steps()
    products = 1
    for k, step in enumerate(steps, 1):
        y = _apply(step, y, g, ops)
        g = ops.gram(y)
        products += step.products
        if callback is not None:
            callback(k, y)
    defect = ops.frobenius(ops.add_diagonal(ops.combine((1.0,), (g,)), -1.0))
    y = _apply(NEWTON_SCHULZ[5], y, g, ops)
    missed = ~(LAST[5] * defect**3 <= eps)[..., 0, 0]
    count = int(ops.to_host(xp.astype(missed, x.dtype)).sum())
    if count:
        flat = xp.reshape(missed, (-1,))
        (index,) = xp.nonzero(flat)
        rest = xp.take(xp.reshape(x, (-1, *x.shape[-2:])), index, axis=0)
        u, _ = svd(rest, ops, tol=tol)
        y = xp.reshape(y, (-1, *x.shape[-2:]))
        y[index] = u
        y = xp.reshape(y, x.shape)
    if callback is not None:
        callback(len(steps) + 1, y)
    total = math.prod(x.shape[:-2])
    note = f"Halley steps on the whole stack; {count} of {total} matrices by the SVD"
    return y, Run(len(steps) + 1, products + 3, True, note=note)


def _apply(step: Step, x: Array, g: Array, ops: Ops) -> Array:
    """``X f(G)`` of a step; G may be overwritten."""
    if step.denominator == 0:
        z, alpha, beta = even_part(g, step.numerator, ops)
        z, alpha, beta = ops.add_scaled_identity(z, alpha, beta)
        return ops.gemm(x, z, x, alpha=alpha, beta=beta)
    alpha, beta, c = step.fractions
    inverse = _inverse(ops.add_diagonal(g * c, 1.0), ops.xp.empty_like(g), ops)
    return ops.gemm(x, inverse, x, alpha=alpha, beta=beta)


def _inverse(z: Array, out: Array, ops: Ops) -> Array:
    """Inverse of symmetric positive definite matrices, by Schur complements of halves.

    Accurate to about the condition number, 31 here. Its products are calls for the whole
    stack: up to four times as fast as LU.
    """
    n = z.shape[-1]
    if n == 1:
        out[...] = 1.0 / z
        return out
    if n == 2:
        a, b, d = z[..., 0, 0], z[..., 0, 1], z[..., 1, 1]
        r = 1.0 / (a * d - b * b)
        out[..., 0, 0], out[..., 1, 1] = d * r, a * r
        out[..., 0, 1] = out[..., 1, 0] = b * -r
        return out
    k = n // 2
    top, bottom = slice(None, k), slice(k, None)
    b = z[..., top, bottom]
    first = _inverse(z[..., top, top], out[..., top, top], ops)
    w = ops.matmul(first, b)
    complement = z[..., bottom, bottom] - ops.matmul(ops.adjoint(b), w)
    v = ops.matmul(w, _inverse(complement, out[..., bottom, bottom], ops))
    out[..., top, top] += ops.matmul(v, ops.adjoint(w))
    out[..., top, bottom] = -v
    out[..., bottom, top] = -ops.adjoint(v)
    return out
