"""QDWH: the QR-based dynamically weighted Halley iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from polarlib._methods.reduction import FLOOR, noise, start
from polarlib.arrays.formats import format_of
from polarlib.arrays.library import format_name
from polarlib.arrays.ops import Ops
from polarlib.engine.drive import Progress, Step, drive
from polarlib.result import Run

Array = Any

# Condition number of I + c X^H X above which the Cholesky form is not backward stable: its error
# grows with c. Nakatsukasa and Higham (2013), section 5.
CHOLESKY_BELOW = 100.0
# Rounding errors of the Gram matrix of a stack, relative to its smallest eigenvalue, up to which a
# second Cholesky factor corrects them.
TWICE_BELOW = 1.0
# Six suffice from l = 1e-16; the rest is for lower bounds that rounding errors make loose.
MAX_ITERATIONS = 12
# Additional steps of the iteration without weights, in which small singular values grow by a factor
# of three: zero singular values may start far below the rounding level.
MORE_STEPS = 12


def halley_step(a: float) -> Step:
    """Return Halley's step of slope a, at most 1 on [0, 1]: it is 1 at ``2 / (a - 1)`` and at 1."""
    b = (a - 1) ** 2 / 4
    return Step((a, b), a + b - 1)


def weights(l: float) -> Step:
    """Return Halley's step, with weights a, b and c, that is best for singular values in [l, 1].

    Y. Nakatsukasa, Z. Bai, F. Gygi, SIAM J. Matrix Anal. Appl. 31 (2010), equations (3.18)-(3.21).

    Examples
    --------
    >>> weights(1.0)
    Step(numerator=(3.0, 1.0), denominator=3.0)
    """
    d = (4 * (1 - l * l) / l**4) ** (1 / 3)
    root = math.sqrt(1 + d)
    return halley_step(root + 0.5 * math.sqrt(8 - 4 * d + 8 * (2 - l * l) / (l * l * root)))


def plan(l: float, n: int, eps: float) -> Iterator[tuple[Step, str, float]]:
    """Yield each step, how to apply it, and the lower bound after it.

    Examples
    --------
    >>> import itertools
    >>> [(how, round(l, 3)) for _, how, l in itertools.islice(plan(1e-3, 100, 2.0**-52), 3)]
    [('cholesky twice', 0.248), ('cholesky', 0.963), ('cholesky', 1.0)]
    """
    while True:
        step = weights(l)
        l = min(1.0, step(l))
        yield step, form(1 + step.denominator, n, eps), l


def form(condition: float, n: int, eps: float) -> str:
    """Return the form in which the inverse of ``I + c X^H X``, n x n, is applied.

    Examples
    --------
    >>> [form(c, 100, 2.0**-52) for c in (50.0, 1e8, 1e16)]
    ['cholesky', 'cholesky twice', 'householder']
    """
    if condition <= CHOLESKY_BELOW:
        return "cholesky"
    return "cholesky twice" if condition * noise(2 * n, eps) <= TWICE_BELOW else "householder"


def resolvent(
    x: Array, c: Any, weight: Any, ops: Ops, *, how: str, gram: Array | None = None
) -> tuple[Array, int]:
    """Return ``weight X (I + c X^H X)^-1``, and the number of products.

    If ``Z = I + c X^H X`` is well-conditioned, a Cholesky factor is used. Otherwise
    ``X Z^-1 = Q_1 Q_2^H / sqrt(c)`` with the orthonormal factor Q of the stack ``[sqrt(c) X; I]``.
    Q is computed by Cholesky-QR, applied twice, for condition numbers up to about 1 / eps, and by
    Householder's QR beyond. Both are equally accurate.

    Parameters
    ----------
    x : array, shape (..., n, n)
        Singular values up to about 1.
    c, weight : float or array
        Positive. Arrays of shape (r, ..., 1, 1) give a stack of r results.
    ops : Ops
        Arithmetic.
    how : str
        Result of :func:`form`.
    gram : array, optional
        ``X^H X``, if known. Not modified.
    """
    kernels = ops.kernels(x) if x.ndim == 2 and isinstance(c, float) else None
    if kernels is not None:
        spent = 1 if how == "householder" else int(gram is None) + 2 * (how != "cholesky")
        return kernels.stable_resolvent(x, c, weight, how, gram), spent
    xp = ops.xp
    n = x.shape[-1]
    root = c**0.5
    if how == "householder":
        y = x * root
        q, _ = ops.qr(xp.concat([y, xp.broadcast_to(ops.eye(n, x), y.shape)], axis=-2))
        product = ops.matmul(q[..., :n, :], ops.adjoint(q[..., n:, :]))
        return product * (weight / root), 1
    g = ops.gram(x) if gram is None else gram
    spent = 1 if gram is None else 0
    factor = ops.cholesky(ops.add_diagonal(g * c, 1.0))
    y = ops.adjoint(x)
    if how == "cholesky":
        y = ops.solve_lower(factor, xp.broadcast_to(y, factor.shape))
        y = ops.solve_lower(factor, y, adjoint=True)
        return ops.adjoint(y) * weight, spent
    y = xp.concat([y * root, xp.broadcast_to(ops.eye(n, x), factor.shape)], axis=-1)
    y = ops.solve_lower(factor, y)
    factor = ops.cholesky(ops.matmul(y, ops.adjoint(y)))
    y = ops.solve_lower(factor, y)
    product = ops.matmul(ops.adjoint(y[..., :n]), y[..., n:])
    return product * (weight / root), spent + 2


def qdwh(
    x: Array,
    ops: Ops,
    *,
    tol: float,
    callback: Callable[[int, Array], None] | None = None,
    lower: float | None = None,
) -> tuple[Array, Run]:
    """Dynamically weighted Halley iteration by QR and Cholesky factorisations.

    The iteration is ``X <- X (a I + b X^H X)(I + c X^H X)^-1`` with weights from a certified lower
    bound l of the singular values. It takes at most 6 iterations for condition numbers up to 1e16,
    with cubic convergence. The bound costs a Gram product and a Cholesky factorisation (and a QR
    factorisation for condition numbers above about eps^-1/2, and the reduction of tall matrices to
    n x n). A step with c > 100 costs two Cholesky factorisations of a 2n x n stack, or its
    Householder QR for c above about 1 / eps. Other steps cost a Gram product, a Cholesky
    factorisation and two triangular solves. Backward stable. Singular values that are exactly zero
    stay zero: the result is then a partial isometry. `lower` is a lower bound of
    sigma_min / sigma_max, if known.

    References
    ----------
    Y. Nakatsukasa, Z. Bai, F. Gygi, SIAM J. Matrix Anal. Appl. 31 (2010). Y. Nakatsukasa, N. J.
    Higham, SIAM J. Sci. Comput. 35 (2013) A1325-A1349, equations (5.2)-(5.4).
    """
    return iterate(start(x, ops, callback, lower=lower), ops, promised=lower is not None)


def iterate(done: Progress, ops: Ops, *, promised: bool = False) -> tuple[Array, Run]:
    """Run the steps of QDWH from the result of :func:`polarlib._methods.reduction.start`.

    `promised` is True if the lower bound was passed by the caller.
    """
    n = done.x.shape[-1]
    eps = format_of(format_name(done.x)).epsilon
    if not (done.certain or promised or ops.host):
        # A bound at rounding level may be too large. One step more, from the floor, costs less than
        # a further check, and leaves only zero singular values below 1.
        done.lower, done.certain = eps**FLOOR, True

    def apply(planned: tuple[Step, str, float]) -> tuple[Array, int]:
        step, how, _ = planned
        alpha, beta, c = step.fractions
        if how == "householder":
            done.gram = None  # not used: release its storage
        correction, spent = resolvent(done.x, c, alpha, ops, how=how, gram=done.gram)
        return ops.combine((beta, 1.0), (done.x, correction)), spent

    def due(planned: tuple[Step, str, float]) -> bool:
        return abs(1 - planned[2]) <= 5 * eps

    def stop(planned: tuple[Step, str, float], change: float) -> bool:
        # Cubic convergence: after a change of (5 eps)^(1/3) the next one is below 5 eps.
        return due(planned) and change <= (5 * eps) ** (1 / 3)

    drive(done, plan(done.lower, n, eps), apply, stop=stop, most=MAX_ITERATIONS, due=due)
    return done.result()


def halley(
    x: Array,
    ops: Ops,
    *,
    tol: float,
    callback: Callable[[int, Array], None] | None = None,
) -> tuple[Array, Run]:
    """Halley's iteration, without weights: simple, and slow for ill-conditioned matrices.

    The iteration ``X <- X (3 I + X^H X)(I + 3 X^H X)^-1`` is run until X is orthonormal. Small
    singular values grow by a factor of three per step, and convergence is cubic at the end. It
    takes about 12 steps for condition number 1e4, 28 for 1e12, 37 for 1e16. A step costs a Gram
    product, a Cholesky factorisation and two triangular solves. Backward stable, since the
    factorised matrix has condition number 4 at most. Zero singular values are not completed. "qdwh"
    has weights for the condition number, and takes at most 6 steps.

    References
    ----------
    W. Gander, SIAM J. Sci. Stat. Comput. 11 (1990) 1102-1115. N. J. Higham, Functions of Matrices
    (SIAM, 2008), chapter 8.
    """
    eps = format_of(format_name(x)).epsilon
    # A lower bound is passed so that none is computed; it is not used.
    done = start(x, ops, callback, lower=1.0)
    alpha, beta, c = weights(1.0).fractions

    def defects() -> Iterator[float]:
        while True:
            yield ops.item(ops.frobenius(ops.add_diagonal(-done.formed_gram(), 1.0)))
            done.products += 1  # of the next Gram matrix

    def apply(defect: float) -> tuple[Array, int]:
        correction, _ = resolvent(done.x, c, alpha, ops, how="cholesky", gram=done.gram)
        return ops.combine((beta, 1.0), (done.x, correction)), 0

    def due(defect: float) -> bool:
        # A step maps 1 - sigma to its cube over 1 + 3 sigma^2, and 1 - sigma^2 is the defect.
        return not defect**3 > 16 * eps  # NaN ends the iteration too

    def stop(defect: float, change: float) -> bool:
        return defect**3 <= 16 * eps

    most = math.ceil(math.log(1 / eps, 3)) + MORE_STEPS
    drive(done, defects(), apply, stop=stop, most=most, due=due)
    return done.result()
