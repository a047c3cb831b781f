"""The Stiefel manifold with the polar retraction: tangents, retraction and its inverse.

Points are m x n matrices with orthonormal columns, ``X^H X = I``, m >= n, real or complex, or
stacks of such matrices. Square points are the orthogonal (unitary) matrices, which include the
rotations. A tangent at X is a matrix V for which ``X^H V`` is skew-Hermitian.

Examples
--------
One step of gradient descent on the manifold, for the function ``f(x) = <c, x>``:

>>> import numpy as np
>>> x, c = np.eye(3)[:, :2], np.arange(6.0).reshape(3, 2)
>>> v = -0.1 * tangent(x, c)
>>> y = retract(x, v)
>>> bool(np.allclose(y.T @ y, np.eye(2))), bool(np.sum(c * y) < np.sum(c * x))
(True, True)
>>> bool(np.allclose(inverse_retract(x, y), v))
True
"""

from __future__ import annotations

from typing import Any, NoReturn, cast

import numpy as np

from polarlib._methods.options import resolve_schedule
from polarlib._schedules.schedule import Schedule
from polarlib._schedules.steps import polynomials
from polarlib.arrays.entered import enter, near_max_abs
from polarlib.arrays.entry import ArrayT, finite_max_abs, refuse_hidden
from polarlib.arrays.functions import constant, empty_result
from polarlib.arrays.library import astype_like, at_least_single
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.settings import looks, under_default_settings
from polarlib.decomposition import unitary_factor
from polarlib.engine.adaptive import Adaptive
from polarlib.engine.lyapunov import positive_lyapunov
from polarlib.orthogonalization import orthogonalize
from polarlib.published import Named, opened
from polarlib.uses.procrustes import pair_of

__all__ = ["inverse_retract", "retract", "tangent"]

Array = Any


@looks
@under_default_settings
def tangent(x: ArrayT, z: ArrayT) -> ArrayT:
    """Project Z onto the tangent space at X: ``Z - X (X^H Z + Z^H X) / 2``.

    The projection is the nearest to Z, in the Frobenius norm, of the matrices V with
    ``X^H V + V^H X = 0``. The projection of the gradient of a function of matrices is the gradient
    on the manifold, for the Euclidean metric.

    Parameters
    ----------
    x, z : array_like, shape (..., m, n)
        A point with m >= n, whose columns are orthonormal (not checked), and any matrix, of one
        array library and device; leading axes broadcast. Not modified. Integers are converted to
        float64.

    Returns
    -------
    array, shape (..., m, n)
        Tangent at X, with the array library, device and dtype of the arguments (the dtype to which
        the library promotes two). 16-bit formats are computed in float32.

    Raises
    ------
    TypeError
        If `x` or `z` is not an array of numbers, or they are of two array libraries.
    ValueError
        For m < n, shapes that do not match, two devices, NaN or infinity. In code that JAX traces
        NaN or infinity gives NaN instead.

    Notes
    -----
    The cost is two products. If ``X^H X = I + E``, the result V satisfies
    ``X^H V + V^H X = -(E T + T E) / 2`` with ``T = X^H Z + Z^H X``. A second projection reduces T,
    and with it this error.

    References
    ----------
    P.-A. Absil, R. Mahony, R. Sepulchre, Optimization Algorithms on Matrix Manifolds (Princeton,
    2008), equation (3.35).

    Examples
    --------
    >>> tangent([[1.0, 0.0], [0.0, 1.0]], [[5.0, 3.0], [1.0, 2.0]]).tolist()
    [[0.0, 1.0], [-1.0, 0.0]]
    """
    x, z, ops = _pair(x, z, "z")
    if 0 in z.shape:
        return cast(ArrayT, empty_result(x + z, ops))
    point, entered = _finite(x, "x", ops), enter(z, "z", ops=ops)
    along = ops.hermitian_part(ops.matmul(ops.adjoint(point), entered.x))
    return cast(ArrayT, entered.leave(entered.x - ops.matmul(point, along), entered.scale))


@looks
@under_default_settings
def retract(x: ArrayT, v: ArrayT, *, schedule: Named | None = None) -> ArrayT:
    """Return the unitary polar factor of ``X + V``: the point reached from X along V.

    Parameters
    ----------
    x, v : array_like, shape (..., m, n)
        A point with m >= n, whose columns are orthonormal (not checked), and a tangent, as returned
        by :func:`tangent`, or any V for which ``X + V`` has full rank. Of one array library and
        device; leading axes broadcast. Not modified. Integers are converted to float64.
    schedule : str, path-like or Schedule, optional
        Polynomial schedule, as accepted by :func:`polarlib.orthogonalize`, by which the polar
        factor is approximated. The length of a named schedule is that of
        :func:`polarlib.schedule`. V must be tangent.

    Returns
    -------
    array, shape (..., m, n)
        The point that is nearest to ``X + V``. If ``X + V`` is rank-deficient, one of the nearest
        is returned, with the completion of :func:`polarlib.polar`. Array library, device and dtype
        are those of the arguments (the dtype to which the library promotes two). 16-bit formats are
        computed in float32, with `schedule` in the format itself.

    Raises
    ------
    TypeError
        If `x` or `v` is not an array of numbers, they are of two array libraries, or `schedule` is
        of none of its types.
    ValueError
        For m < n, shapes that do not match, two devices, NaN or infinity; for a schedule that is
        unknown, rational, adaptive or not for polar factors. In code that JAX traces NaN or
        infinity gives NaN instead. With torch or JAX, also when a derivative is computed without
        `schedule` and ``X + V`` is rank-deficient to rounding. For a tangent V it has full rank.

    Warns
    -----
    ScheduleWarning
        As in :func:`polarlib.orthogonalize`.

    Notes
    -----
    For a tangent V the singular values of ``X + V`` are ``sqrt(1 + sigma(V)^2)``. Hence ``X + V``
    has full rank, and the derivative exists. For square X the determinant keeps its sign, since
    ``X^H V`` has imaginary eigenvalues: the retraction of a rotation is a rotation. The retraction
    agrees with the geodesic of the Euclidean metric to second order in V.

    The steps of a schedule s of interval up to u are applied to ``u (X + V) / c`` with ``c^2 = 1 +
    |V|_F^2``, divided by `input_safety` unless the normalisation of s is "none". Singular values
    are then between u / c and u. For a tangent V, with R the exact retraction,

        |retract(x, v, schedule=s) - R|_2 <= s.error(u / c) = s.error(s.upper / sqrt(1 + |V|_F^2)),

    apart from the rounding of the format. The singular vectors are those of ``X + V``, so that the
    polar factor of the result is R. Only orthonormality is lost, and the next retraction corrects
    it. The Newton-Schulz steps ("newton_schulz_3", "newton_schulz_5") have 1 as a fixed point, and
    return X for V = 0. One step of degree 3 has an error of at most ``(3/8) |V|_F^4``. For other
    schedules s(1) may differ from 1. If V is not tangent, singular values can be as large as
    ``sqrt(2) u``. There the Newton-Schulz steps converge, other schedules may not.

    References
    ----------
    P.-A. Absil and J. Malick, SIAM J. Optim. 22 (2012) 135-158.

    Examples
    --------
    >>> import numpy as np, polarlib
    >>> x = np.eye(3)[:, :2]
    >>> v = tangent(x, np.array([[0.0, 0.1], [-0.1, 0.0], [0.2, 0.0]]))
    >>> s = polarlib.schedule("newton_schulz_3", 1)
    >>> error = np.linalg.norm(retract(x, v, schedule=s) - retract(x, v), 2)
    >>> bool(error < s.error(1 / np.sqrt(1 + np.sum(v**2))) < 3 / 8 * np.sum(v**2) ** 2)
    True
    """
    x, v, ops = _pair(x, v, "v")
    chosen = None if schedule is None else _checked(schedule, ops.multiplier(x))
    if 0 in v.shape:
        return cast(ArrayT, empty_result(x + v, ops))
    point, along = _finite(x, "x", ops), _finite(v, "v", ops)
    if chosen is None:
        u = unitary_factor(point + along, name="retract")
        return cast(ArrayT, astype_like(u, x, ops))
    c = _norm_of_sum(along, ops) * (chosen.input_divisor / chosen.upper)
    scaled = astype_like(ops.divide(point + along, c), x, ops)
    return cast(ArrayT, orthogonalize(scaled, schedule=chosen, normalisation="none"))


@looks
@under_default_settings
def inverse_retract(x: ArrayT, y: ArrayT) -> ArrayT:
    """Return the tangent V at X for which ``retract(X, V)`` is Y: ``V = Y S - X``.

    Parameters
    ----------
    x, y : array_like, shape (..., m, n)
        Two points with m >= n, whose columns are orthonormal (not checked), of one array library
        and device; leading axes broadcast. Not modified. Integers are converted to float64.

    Returns
    -------
    array, shape (..., m, n)
        Tangent at X, with the array library, device and dtype of the arguments (the dtype to which
        the library promotes two). 16-bit formats are computed in float32.

    Raises
    ------
    TypeError
        If `x` or `y` is not an array of numbers, if they are of two array libraries, or under
        torch.export and similar traces.
    ValueError
        For m < n, shapes that do not match, two devices, NaN or infinity. Also if V does not exist;
        the message states the smallest real part of an eigenvalue of ``X^H Y``. In code that JAX
        traces the result is NaN instead.

    Notes
    -----
    S is positive definite and solves ``M S + S M^H = 2 I`` with ``M = X^H Y``, which is equivalent
    to ``X^H V + V^H X = 0``. S exists, and is unique, if and only if all eigenvalues of M have
    positive real parts. For rotations the rotation from X to Y must then turn every plane by less
    than a right angle. S satisfies ``S^2 = I + V^H V``. Matrices for which n epsilons times the
    norms of M and S exceeds 1 are refused too, since rounding hides whether S exists.

    The equation is solved by Schur decompositions on the host, and by inverses and products
    elsewhere. On the host, stacks of at least eight matrices of up to 32 columns use inverses and
    products first. docs/evidence/manifold.md has the accuracy. It is checked that S is positive
    definite and its residual small, which proves that S exists. Derivatives with respect to both
    arguments are solutions of equations of the same kind, and have derivatives themselves.

    References
    ----------
    T. Kaneko, S. Fiori, T. Tanaka, IEEE Trans. Signal Process. 61 (2013) 883-894 (the equation for
    S).

    Examples
    --------
    >>> import numpy as np
    >>> turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    >>> bool(np.allclose(inverse_retract(np.eye(2), turn), [[0.0, -0.75], [0.75, 0.0]]))
    True
    >>> inverse_retract(np.eye(2), -turn)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: the eigenvalues of x^H y must have positive real parts, got -8.0e-01 as the least...
    """
    x, y, ops = _pair(x, y, "y")
    refuse_hidden(x, ops, "inverse_retract", "use tangent(x, y - x), which agrees to second order")
    if 0 in x.shape or 0 in y.shape:
        return cast(ArrayT, empty_result(x + y, ops))
    start, end = _finite(x, "x", ops), _finite(y, "y", ops)
    m = ops.matmul(ops.adjoint(start), end)
    s = positive_lyapunov(m, _refuse)
    return cast(ArrayT, astype_like(ops.matmul(end, s) - start, x, ops))


# -- shared ----------------------------------------------------------------------------------


def _pair(x: Array, other: Array, name: str) -> tuple[Array, Array, Ops]:
    x, other, ops = pair_of(x, other, "x", name)
    if x.shape[-2] < x.shape[-1]:
        raise ValueError(
            f"x must have at least as many rows as columns, got shape {tuple(x.shape)}; pass the "
            "adjoint"
        )
    return x, other, ops


def _finite(x: Array, name: str, ops: Ops) -> Array:
    """Return a matrix in at least single precision; ValueError if not finite, unless traced."""

    def check(x: Array) -> Array:
        own = ops_of(x)
        return finite_max_abs(x, own, name, look=not own.is_abstract(x))

    x = at_least_single(x, ops)
    if 0 not in x.shape:
        constant(ops, check, x)
    return x


def _norm_of_sum(v: Array, ops: Ops) -> Array:
    """Return ``sqrt(1 + |V|_F^2)``, an upper bound of the singular values of X + V, V tangent."""
    # Entries are at most 1 after the division, so that squares do not overflow.
    scaling = lambda m, ops: near_max_abs(ops.xp.maximum(m, ops.xp.ones_like(m)), ops)  # noqa: E731
    entered = enter(v, "v", ops=ops, scaling=scaling)
    norm, one = ops.frobenius(entered.x), 1.0 / entered.scale
    return ops.xp.sqrt(norm * norm + one * one) * entered.scale


def _checked(schedule: Named, precision: str) -> Schedule:
    """Return the schedule; ValueError unless it is a polynomial one for polar factors."""
    chosen = resolve_schedule(opened(schedule), None, precision)
    if isinstance(chosen, Adaptive):
        raise ValueError(
            "schedule must be fixed, got 'adaptive', which estimates a spectrum that is known for "
            "a retraction; use 'newton_schulz_5'"
        )
    polynomials(chosen, "retract")
    if chosen.target != "polar":
        raise ValueError(
            f"schedule must have the target 'polar', got {chosen.name!r} with target "
            f"{chosen.target!r}; use 'newton_schulz_5'"
        )
    return chosen


def _refuse(m: np.ndarray, index: tuple[int, ...]) -> NoReturn:
    """Raise ValueError with the eigenvalue of ``X^H Y`` for which no tangent leads from X to Y."""
    where = f" in matrix {index} of the stack" if index else ""
    if not np.isfinite(m).all():
        raise ValueError(f"x^H y overflows{where}; x and y must have orthonormal columns")
    least = float(np.linalg.eigvals(m).real.min())
    known = "" if least <= 0 else " beyond rounding"
    raise ValueError(
        f"the eigenvalues of x^H y must have positive real parts{known}, got {least:.1e} as the "
        f"least{where}; use points between x and y"
    )
