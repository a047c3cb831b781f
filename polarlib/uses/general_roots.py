"""Principal square roots and signs of general square matrices."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from polarlib.arrays.entered import Entered, enter
from polarlib.arrays.entry import ArrayT, as_matrix, refuse_hidden
from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import empty_result
from polarlib.arrays.library import astype_like, at_least_single, format_name
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.schur import has_schur
from polarlib.arrays.settings import looks, under_default_settings
from polarlib.engine.rules import differentiable_signm, differentiable_sqrtm
from polarlib.engine.sylvester import by_products, computes_on_host, scaling
from polarlib.result import ConvergenceWarning
from polarlib.uses.nearest import check_square
from polarlib.uses.schur import Kind, by_schur

Array = Any

# Number of steps up to which no eigenvalue can be near the axis. The scaled Newton iteration takes
# up to about ten steps, and one more per factor of two by which an eigenvalue is nearer to the
# imaginary axis than to the others, unless it is the nearest to 0.
USUAL = 20
# Relative change of a Newton step below which the iterate is near the limit.
SETTLED = 1e-3
# Smallest distance of an eigenvalue from the axis, in units of the threshold of refusal, for a root
# or sign by products: rounding may have moved a nearer one off the axis. Chosen generously.
MARGIN = 64
# Residual, in units of n u kappa |A|, above which a root is refined; largest number of refinements;
# residual above which a root is refused.
CLOSE, REFINEMENTS, FAR = 5.0, 3, 10.0


@looks
@under_default_settings
def sqrtm(a: ArrayT) -> ArrayT:
    """Return the principal square root X of A: ``X @ X = A``, eigenvalues of X with Re > 0.

    Parameters
    ----------
    a : array_like, shape (..., n, n)
        Real or complex, not necessarily normal or diagonalisable. Not modified. Integers are
        converted to float64.

    Returns
    -------
    array, shape (..., n, n)
        Real for real matrices, with the array library, device and dtype of `a`.

    Raises
    ------
    TypeError
        If `a` is not an array of numbers, or if torch records without entries (torch.export, meta
        tensors).
    ValueError
        For matrices that are not square, NaN or infinity. Also for an eigenvalue that is zero or on
        the negative real axis to rounding: ``|Im| <= n u |A|_F`` and ``Re <= n u |A|_F``, u the
        unit roundoff of the dtype, at least single. The message states the eigenvalue. For
        Hermitian positive semidefinite matrices use :func:`sqrtm_psd`.
    ConvergenceWarning
        If the result does not pass the check, for a matrix very near to those that are refused.

    Notes
    -----
    In the memory of the host the computation is in double precision. First two to five inverses of
    the iteration below and a series are tried, which take a fraction of the time for
    well-conditioned matrices. The result is accepted if the residual is at most
    ``3 n u |X|_F^2`` and the norms of the inverses exclude eigenvalues near those that are refused.
    Otherwise the Schur decomposition is computed, real for real matrices, and the root of the
    triangular factor by blocks, ``R_11 R_12 + R_12 R_22 = T_12``. A Newton step follows if the
    residual exceeds ``3 n u |X|_F^2``. Every root is checked: ``|X^2 - A|_F <= 10 n u |X|_F^2``.
    The cost is about 20 to 30 n^3 operations, and 28 n^3 more if the first attempt fails.
    Triangular matrices keep their form exactly.

    On devices, and under ``jax.jit`` and ``jax.vmap``, the product form of Denman and Beavers'
    iteration with scaling by norms is used: 5 to 10 steps of an inverse and a product each, in
    double precision if the library has it. A Newton step follows if the residual exceeds half of
    the bound ``|X^2 - A|_F <= 10 n u |X|_F |X^-1|_F |A|_F``, which is checked. If a matrix on a
    device fails the check, or takes more than 20 steps, it is computed on the host instead.

    Under a trace the result is NaN where an error would be raised. It is also NaN if the iteration
    takes more than 20 steps and an eigenvalue is less than about 64 times as far from the axis as
    stated above, or farther if A is far from normal. A negative eigenvalue of a Jordan block cannot
    be distinguished from the pair of complex ones that rounding makes of it.

    torch and JAX differentiate by ``X dX + dX X = dA``, on the host in double precision.

    References
    ----------
    A. Bjorck and S. Hammarling, Linear Algebra Appl. 52/53 (1983) 127-140. N. J. Higham, Linear
    Algebra Appl. 88/89 (1987) 405-430. E. Deadman, N. J. Higham and R. Ralha, LNCS 7782 (2013)
    171-182. N. J. Higham, Functions of Matrices (SIAM, 2008), equation (6.29).

    Examples
    --------
    >>> sqrtm([[0.0, -2.0], [2.0, 0.0]]).round(12).tolist()
    [[1.0, -1.0], [1.0, 1.0]]
    """
    a, ops = as_matrix(a)
    check_square(a, "sqrtm")
    if 0 in a.shape:
        return cast(ArrayT, empty_result(a, ops))
    found = functools.partial(_found, kind="sqrtm")
    return cast(ArrayT, differentiable_sqrtm(found, a, sqrtm))


@looks
@under_default_settings
def signm(a: ArrayT) -> ArrayT:
    """Return the matrix sign S of A: ``S @ S = I``, ``S @ A = A @ S``, eigenvalues sign(Re).

    Parameters
    ----------
    a : array_like, shape (..., n, n)
        Real or complex, not necessarily normal or diagonalisable. Not modified. Integers are
        converted to float64.

    Returns
    -------
    array, shape (..., n, n)
        Real for real matrices, with the array library, device and dtype of `a`.

    Raises
    ------
    TypeError
        As :func:`sqrtm`.
    ValueError
        For matrices that are not square, NaN or infinity. Also for an eigenvalue on the imaginary
        axis to rounding: ``|Re| <= n u |A|_F``, u the unit roundoff of the dtype, at least single.
        The message states the eigenvalue.
    ConvergenceWarning
        If the result does not pass the check, for a matrix very near to those that are refused.

    Notes
    -----
    In the memory of the host the computation is in double precision. It is based on the Schur
    decomposition with eigenvalues of positive real part first: ``S = Q [[I, X], [0, -I]] Q^H`` with
    ``T_11 X - X T_22 = 2 T_12``. Every sign is checked: ``|S^2 - I|_F <= 10 n u |S|_F^2`` and
    ``|S A - A S|_F <= 10 n u |S|_F |A|_F``. The cost is about 30 n^3 operations.

    On devices, and under ``jax.jit`` and ``jax.vmap``, Newton's iteration
    ``S <- (c S + S^-1 / c) / 2`` with scaling by norms is used: 6 to 10 inverses. The result is
    checked by the same equations with ``|S|_F^2`` for ``|S|_F`` in the second. Errors, NaN,
    matrices that take more than 20 steps and those that are singular to rounding are treated as in
    :func:`sqrtm`.

    torch and JAX differentiate by ``N dS + dS N = dA - S dA S``, N = S A.

    References
    ----------
    J. D. Roberts, Int. J. Control 32 (1980) 677-687. N. J. Higham, Functions of Matrices (SIAM,
    2008), chapter 5.

    Examples
    --------
    >>> signm([[2.0, 6.0], [0.0, -1.0]]).round(12).tolist()
    [[1.0, 4.0], [0.0, -1.0]]
    """
    a, ops = as_matrix(a)
    check_square(a, "signm")
    if 0 in a.shape:
        return cast(ArrayT, empty_result(a, ops))
    found = functools.partial(_found, kind="signm")
    return cast(ArrayT, differentiable_signm(found, a, signm))


def _found(a: Array, *, kind: Kind) -> Array:
    """Compute the root or sign of square matrices, without derivatives."""
    ops = ops_of(a)
    refuse_hidden(a, ops, kind, "compute it before")
    hidden = ops.is_abstract(a)
    if kind == "sqrtm":  # scaled by the square of a power of two, so that scaling back is exact
        entered = enter(a, ops=ops, double=True, scaling=_root_of_scale)
        factor = entered.scale
        entered = entered._replace(x=ops.divide(entered.x, factor), scale=factor * factor)
    else:
        entered, factor = enter(a, ops=ops, double=True), 1.0
    unit = format_of(format_name(at_least_single(a, ops))).unit_roundoff
    if not computes_on_host(entered.x, ops):
        f, good, steps = _by_products(entered.x, kind, unit, ops)
        if hidden:
            f = ops.xp.where(good, f, ops.xp.full_like(f, math.nan))
        if hidden or (steps <= USUAL and bool(ops.xp.all(good))):
            return entered.leave(f, factor)
    return entered.leave(_on_host(entered, kind, unit), factor)


def _root_of_scale(peak: Array, ops: Ops) -> Array | float:
    return ops.binary_scale(ops.xp.sqrt(peak))


def _on_host(entered: Entered, kind: Kind, unit: float) -> Array:
    ops, scale = entered.ops, entered.scale
    scales = np.asarray(scale if isinstance(scale, float) else ops.to_host(scale)[..., 0, 0])
    f = by_schur(ops.to_host(entered.x), kind, unit, scales) if has_schur() else None
    if f is None or np.isnan(f).any():
        what = "principal square root" if kind == "sqrtm" else "sign"
        raise ConvergenceWarning(
            f"the {what} did not pass the check: an eigenvalue is too near to the axis on which it "
            "is undefined; add a multiple of the identity"
        )
    return astype_like(ops.from_host(f, entered.x), entered.x, ops)


# -- by products -----------------------------------------------------------------------------------


def _by_products(a: Array, kind: Kind, unit: float, ops: Ops) -> tuple[Array, Array, Any]:
    """Return root or sign of scaled matrices, whether it passes the check, and the steps."""
    n = a.shape[-1]
    # An eigenvalue for which the function is defined is at least n u away from the axis.
    most = max(USUAL, math.ceil(-math.log2(n * unit)))
    f, left, steps, reach = (_denman_beavers if kind == "sqrtm" else _newton)(a, most, ops)
    size, norm = ops.frobenius(f), ops.frobenius(a)
    # The scaling of the first step brings a single eigenvalue near 0 to the others at once.
    doubtful = reach * norm * norm * (MARGIN * n * unit) > 1
    if kind == "sqrtm":
        inverse, zero = ops.inverse(f), n * unit * norm
        share = zero * size * ops.frobenius(inverse)
        f, error = _refined(f, a, CLOSE * share, ops)
        # The root of an eigenvalue that is zero to rounding is not.
        radius = _radius(inverse, doubtful, ops)
        good = (error <= FAR * share) & (radius * radius * zero <= 1)
        doubtful = ops.xp.zeros_like(doubtful)
    else:
        bound = FAR * n * unit * size
        square = ops.frobenius(ops.add_diagonal(ops.matmul(f, f), -1.0))
        skew = ops.frobenius(ops.matmul(f, a) - ops.matmul(a, f))
        good = (square <= bound * size) & (skew <= bound * size * norm)
    good = good & (left <= _near(a))
    doubtful = doubtful | (steps > USUAL)
    return f, _apart(f if kind == "sqrtm" else ops.matmul(f, a), good, doubtful, unit, ops), steps


def _apart(n: Array, good: Array, doubtful: Array, unit: float, ops: Ops) -> Array:
    """Return `good` without the matrices whose eigenvalues rounding may have moved off the axis.

    N is the root, or S A. Only doubtful matrices are checked. In ``N Z + Z N = W``, with a
    matrix W that does not commute with N, Z is large if an eigenvalue of N, or a sum of two, is
    small.
    """
    k = n.shape[-1]
    w = ops.from_host(np.cos(np.arange(1.0, k * k + 1)).reshape(k, k), n)
    w = ops.xp.broadcast_to(astype_like(w, n, ops), n.shape)
    size = MARGIN * k * unit * ops.frobenius(n)

    def step(state: Any) -> Any:
        z = by_products(n, n, w, ops)
        apart = ops.frobenius(z) * size <= ops.frobenius(w)
        return state[0] & (apart | ~doubtful), state[1] + 1

    def going(state: Any) -> Array:
        return ops.xp.any(state[0] & doubtful) & (state[1] < 1)

    return ops.repeat_while(going, step, (good, 0))[0]


def _radius(y: Array, needed: Array, ops: Ops) -> Array:
    """Return ``|Y^16|_F^(1/16)``, which bounds the moduli of eigenvalues; 0 if not needed."""

    def step(state: Any) -> Any:
        y, bound, k = state
        size = ops.frobenius(y)
        y = y / size
        return ops.matmul(y, y), bound * size ** (0.5**k), k + 1

    def going(state: Any) -> Array:
        return ops.xp.any(needed) & (state[2] < 4)

    y, bound, k = ops.repeat_while(going, step, (y, _infinite(y, ops), 0))
    bound = bound * ops.frobenius(y) ** (0.5**k)
    return ops.xp.where(needed, bound, ops.xp.zeros_like(bound))


def _refined(x: Array, a: Array, bound: Array, ops: Ops) -> tuple[Array, Array]:
    """Apply Newton steps, ``X D + D X = X^2 - A``, to a root while ``|X^2 - A|`` exceeds a bound.

    The error of the iteration is u over the distance of the eigenvalues from the negative axis.
    """

    def step(state: Any) -> Any:
        x, error, k = state
        y = x - by_products(x, x, ops.matmul(x, x) - a, ops)
        after = ops.frobenius(ops.matmul(y, y) - a)
        better = (after < error) & (error > bound)
        return ops.xp.where(better, y, x), ops.xp.where(better, after, error), k + 1

    def going(state: Any) -> Array:
        return ops.xp.any(state[1] > bound) & (state[2] < REFINEMENTS)

    error = ops.frobenius(ops.matmul(x, x) - a)
    x, error, _ = ops.repeat_while(going, step, (x, error, 0))
    return x, error


def _near(a: Array) -> float:
    """Return the distance from the limit below which one step suffices (convergence of order 2)."""
    return math.sqrt(format_of(format_name(a)).epsilon)


def _denman_beavers(a: Array, most: int, ops: Ops) -> tuple[Array, Array, Any, Array]:
    """Iterate ``M <- (I + (M + M^-1) / 2) / 2``, ``X <- X (I + M^-1) / 2``, scaled, until M = I.

    Return ``|A^-1| / |A|`` too.
    """
    xp, eye, near = ops.xp, ops.eye(a.shape[-1], a), _near(a)

    def step(state: Any) -> Any:
        (x, m), _, k, reach = state
        left, inverse = ops.frobenius(m - eye), ops.inverse(m)
        mu = scaling((m,), (inverse,), left, ops)  # the square of that for X
        inverse = inverse / mu
        x = ops.matmul(x, eye + inverse) * (0.5 * xp.sqrt(mu))
        m = (eye + (m * mu + inverse) * 0.5) * 0.5
        return (x, m), left, k + 1, xp.maximum(reach, mu * mu)

    going, start = _going(near, most, ops), _infinite(a, ops)
    (x, _), left, k, reach = ops.repeat_while(going, step, ((a, a), start, 0, 0.0 * start))
    return x, left, k, reach


def _newton(a: Array, most: int, ops: Ops) -> tuple[Array, Array, Any, Array]:
    """Run the scaled Newton iteration for the sign; return ``|A^-1| / |A|`` too."""
    xp, near = ops.xp, _near(a)

    def step(state: Any) -> Any:
        s, left, k, reach = state
        inverse = ops.inverse(s)
        mu = scaling((s,), (inverse,), left, ops)
        new = (s * mu + inverse / mu) * 0.5
        # After a change e the next one is |S| e^2 / 2; rounding contributes eps |S|^3 per step.
        change, size = ops.frobenius(new - s), ops.frobenius(new)
        settled = change <= SETTLED * size
        least = xp.where(settled, near * a.shape[-1] * size**3, xp.zeros_like(size))
        return new, change / (1 + least), k + 1, xp.maximum(reach, mu * mu)

    going, start = _going(near, most, ops), _infinite(a, ops)
    s, left, k, reach = ops.repeat_while(going, step, (a, start, 0, 0.0 * start))
    return s, left, k, reach


def _infinite(a: Array, ops: Ops) -> Array:
    """Return an infinite distance; NaN for a matrix that is not finite."""
    return ops.frobenius(a) * 0.0 + 1.0


def _going(near: float, most: int, ops: Ops) -> Callable[[Any], Array]:
    return lambda state: ops.xp.any(state[1] > near) & (state[2] < most)
