"""Stacks of matrices of a few to some tens of columns: a fixed plan of steps for the whole stack.

Four Halley steps and two polynomials, planned for singular values in ``[LOWER, 1]``, replace an SVD
per matrix. The steps are the same for every matrix, so that nothing is estimated, and a result does
not depend on the other matrices of its stack. The Gram matrix of the last step shows which matrices
have converged. The others, ill-conditioned or singular, are decomposed by the SVD.
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
# matrices of n columns have a smaller one with probability 2 n LOWER, and then need an SVD.
LOWER = 1e-3
# The c of the steps, which raise small singular values tenfold, until the optimal c is smaller.
# Backward errors for condition numbers from 100 to 700, n = 8: up to 12 epsilons; 27 with c = 60,
# 88 with 100, 34 for the SVD. By experiment.
CAP, CAPPED = 30.0, 3
# Largest number of columns of a matrix, and smallest number of columns of a stack, for which this
# is faster than NumPy's SVD of the stack. By experiment.
SMALL, MANY = 32, 1600


@functools.cache
def _steps() -> tuple[Step, ...]:
    """Return the Halley steps and polynomials, without the last step.

    The steps for double precision are used in single precision too. The Frobenius norm of a defect
    is larger than the defect itself, for which steps are planned, and is then still small enough
    for the last step.
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
    """Return whether the method is faster than the SVD; for complex matrices it is not."""
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
    """Return ``X f(G)`` of a step; G may be overwritten."""
    if step.denominator == 0:
        z, alpha, beta = even_part(g, step.numerator, ops)
        z, alpha, beta = ops.add_scaled_identity(z, alpha, beta)
        return ops.gemm(x, z, x, alpha=alpha, beta=beta)
    alpha, beta, c = step.fractions
    inverse = _inverse(ops.add_diagonal(g * c, 1.0), ops.xp.empty_like(g), ops)
    return ops.gemm(x, inverse, x, alpha=alpha, beta=beta)


def _inverse(z: Array, out: Array, ops: Ops) -> Array:
    """Return the inverse of symmetric positive definite matrices, by Schur complements of halves.

    Its relative error is about the condition number, here 31, times epsilon. The products are calls
    for the whole stack, and up to four times as fast as LU.
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
