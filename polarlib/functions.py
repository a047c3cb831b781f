"""Functions of Hermitian matrices by schedules of matrix products: inverse p-th roots."""

from __future__ import annotations

import functools
import math
import numbers
from typing import Any

from polarlib._schedule import Schedule, is_count
from polarlib.decompose import default_tolerance
from polarlib.design import targets
from polarlib.formats import format_of, odd_images
from polarlib.iterate import coupled, spectral_bound
from polarlib.ops import Ops, as_matrix, not_finite, under_default_promotion

__all__ = ["inverse_root"]

Array = Any

# Degree of every step in R: one product more than degree 1, among 2 + p in all.
DEGREE = 2
# More than any condition number of a double asks for.
MOST_STEPS = 80


@under_default_promotion
def inverse_root(
    a: Array, p: int, *, schedule: Schedule | None = None, condition: float | None = None
) -> Array:
    """Inverse p-th root ``A**(-1/p)`` of a Hermitian positive definite matrix, by products alone.

    Parameters
    ----------
    a : array or array-like, shape (..., n, n)
        Never changed. Integers become float64; half precision is computed in float32.
    p : int
        At least 2.
    schedule : Schedule, optional
        Of :func:`polarlib.design.inverse_root` for this p. By default one that converges.
    condition : float, optional
        Upper bound of the condition number, for the default schedule. Where neither this nor a
        schedule is given, it is found by a Cholesky factorisation, one for all matrices of a stack.

    Returns
    -------
    array, shape (..., n, n)
        Hermitian up to rounding in the last place; array library, device and dtype of `a`.

    Raises
    ------
    TypeError
        If `a` is not an array of numbers.
    ValueError
        For p below 2 or no integer, a schedule for something else, a condition below 1, matrices
        that are not square; and, unless `a` is on a device and nothing needs to be read there,
        for NaN or infinity, a matrix that is not Hermitian up to ``max(100, n)`` epsilons, and (if
        it is found here) a condition of one over epsilon or more, or no definite matrix.

    Notes
    -----
    ``Q <- Q q(R)``, ``R <- R q(R)**p`` from Q = I and ``R = A / c``, c a bound of the largest
    eigenvalue within a factor of ``n**(1/16)``; then ``A**(-1/p) = c**(-1/p) Q``. Cost: 3 products
    for c, and p + 2 a step (about 7 steps for condition 1e4 in double precision, 16 for 1e15).
    Relative error: the schedule's, and that of a relative change of A by a few epsilons, which is
    up to ``condition / p`` times as large: no more than that of an eigendecomposition. Eigenvalues
    below the interval of the schedule give results below the root. Coupled iterations for roots:
    C.-H. Guo and N. J. Higham, SIAM J. Matrix Anal. Appl. 28 (2006) 788-804.

    Where a device is not asked for anything (`condition` or `schedule` given), a matrix that is not
    finite gives NaN, and one that is not Hermitian is replaced by its Hermitian part.

    Examples
    --------
    >>> import numpy as np
    >>> r = inverse_root(np.array([[5.0, 4.0], [4.0, 5.0]]), 2)
    >>> bool(np.allclose(r @ r @ [[5.0, 4.0], [4.0, 5.0]], np.eye(2)))
    True
    """
    if not is_count(p) or p < 2:
        raise ValueError(f"p must be an integer of at least 2, got {p!r}")
    if schedule is not None:
        _check_schedule(schedule, p)
    if condition is not None and (
        not isinstance(condition, numbers.Real) or not 1 <= float(condition) < math.inf
    ):
        raise ValueError(f"condition must be a number of at least 1, got {condition!r}")
    a, ops = as_matrix(a)
    n = a.shape[-1]
    if a.shape[-2] != n:
        raise ValueError(f"inverse_root needs square matrices, got shape {tuple(a.shape)}")
    if 0 in a.shape:
        return ops.xp.zeros_like(a)
    x = ops.at_least_single(a)
    measured = schedule is None and condition is None
    peak = ops.max_abs(x)
    if (ops.host or measured) and not math.isfinite(ops.read(peak)):
        raise ValueError(f"a {not_finite(ops.to_host(x))}; remove them first")
    scale = ops.binary_scale(peak)
    y = ops.divide(x, scale)
    h = ops.hermitian_part(y)
    tolerance = default_tolerance(a.shape, ops.format_name(a))
    if ops.host or measured:
        skew = ops.read(ops.frobenius(y - h) / ops.divisor(ops.frobenius(h)))
        if not skew <= tolerance:
            raise ValueError(
                f"a is not Hermitian: its skew part is {skew:.1e} of it, above {tolerance:.1e}; "
                "pass (a + a^H) / 2 if that is what you mean"
            )
    bound, _ = spectral_bound(h, ops)
    r = ops.divide(h, ops.divisor(bound), owned=True)
    if schedule is None:
        eps = format_of(ops.format_name(x)).epsilon
        if condition is None:
            smallest = _smallest(r, ops)
            if not smallest > eps:
                raise ValueError(
                    "a is not positive definite, or its condition number exceeds "
                    f"{1 / eps:.0e}; add a multiple of the identity"
                )
        else:
            smallest = 1 / (float(condition) * n ** (1 / 16))
        schedule = _converging(int(p), math.floor(math.log2(smallest) / p - 1e-3), eps)
    z, alpha, beta = coupled(r, schedule.steps, ops, stride=int(p))
    q = ops.add_diagonal(ops.combine((alpha,), (z,)), beta)
    # Each root by itself: their product could overflow where the result does not.
    q = ops.hermitian_part(q) * ops.divisor(bound) ** (-1 / p)
    return ops.like(ops.scale(q, scale ** (-1 / p)), a)


def _check_schedule(schedule: Schedule, p: int) -> None:
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be a Schedule, got {schedule!r}")
    if schedule.stride != p or schedule.target != "polar" or schedule.upper != 1:
        raise ValueError(
            f"schedule {schedule.name!r} has stride {schedule.stride}, target {schedule.target!r} "
            f"and upper end {schedule.upper:g}, not {p}, 'polar' and 1; make one with "
            f"design.inverse_root({p}, ...)"
        )


def _smallest(r: Array, ops: Ops) -> float:
    """Lower bound of the eigenvalues of a stack: ``||L^-1||_F^-2``; NaN if one is not definite."""
    eye = ops.xp.broadcast_to(ops.eye(r.shape[-1], r), r.shape)
    inverse = ops.solve_lower(ops.cholesky(r), eye)
    peak = ops.max_abs(inverse)  # so that the norm cannot overflow
    return -ops.read(-((ops.frobenius(inverse / peak) * peak) ** -2.0))


@functools.lru_cache(maxsize=256)
def _converging(p: int, exponent: int, eps: float) -> Schedule:
    """Steps for eigenvalues from ``2**(p exponent)`` to rounding."""
    lower = 2.0 ** min(exponent, -1)
    whole = targets.inverse_root(p, lower, [1 + DEGREE * p] * MOST_STEPS)
    for k, (lo, hi) in enumerate(odd_images(whole.steps, lower, 1.0, stride=p), 1):
        if max(1 - lo, hi - 1) <= 4 * eps:
            return whole.truncate(k)
    return whole
