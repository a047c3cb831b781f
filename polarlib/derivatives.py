"""Derivatives of the polar factors and of a schedule, for libraries that do not differentiate.

In torch and JAX, :func:`polarlib.polar`, :func:`polarlib.orthogonalize`, rotations, roots and
leading triplets are operations of automatic differentiation. For NumPy and other array libraries
this module has the derivatives of :func:`polarlib.polar` and :func:`polarlib.orthogonalize` as
functions. Those with suffix jvp return the derivative in a direction. Those with suffix vjp return
the gradient of a real function of the result, from its gradient with respect to the result.
Gradients are those of the inner product ``Re sum(conj(x) y)``, also for complex matrices.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

from polarlib._stages.options import Side
from polarlib.arrays.checks import choice
from polarlib.arrays.entered import Entered, enter
from polarlib.arrays.entry import ArrayT, as_matrix, check_same_place
from polarlib.arrays.library import astype_like, dtype_name, is_complex
from polarlib.arrays.settings import looks, under_default_settings
from polarlib.decomposition import unitary_factor
from polarlib.engine.derivatives import polar_gradient, polar_tangents, schedule_derivative
from polarlib.orthogonalization.coefficients import rule_of_coefficients
from polarlib.orthogonalization.heads import per_head
from polarlib.orthogonalization.options import NAMED, Options, rule_of
from polarlib.published import Named

__all__ = ["orthogonalize_jvp", "orthogonalize_vjp", "polar_jvp", "polar_vjp"]

Array = Any


@looks
@under_default_settings
def polar_jvp(a: ArrayT, da: ArrayT, *, side: Side = "right") -> tuple[ArrayT, ArrayT]:
    """Return the derivatives of the factors of ``A = U H`` in a direction of A.

    Parameters
    ----------
    a : array_like, shape (..., m, n)
        Of full rank. Not modified. Integers are converted to float64.
    da : array_like, shape (..., m, n)
        Direction, of the same array library.
    side : {"right", "left"}, optional
        ``A = U H`` or ``A = H U``.

    Returns
    -------
    du : array, shape (..., m, n)
        Derivative of U, with the array library, device and dtype of `a`.
    dh : array, shape (..., n, n) or, for side "left", (..., m, m)
        Derivative of H, exactly Hermitian; otherwise as `du`.

    Raises
    ------
    TypeError
        If an argument is not an array of numbers, if they are of two libraries, or if `da` is
        complex and `a` is real.
    ValueError
        For shapes that do not match, an unknown side, NaN or infinity in `a`, and matrices that are
        rank-deficient to rounding, whose unitary factor is not unique or not continuous.

    See Also
    --------
    polar_vjp : The adjoint.

    Notes
    -----
    The cost is that of U, an eigendecomposition of H, one inverse of H if A is not square, and
    about ten products. docs/evidence/derivatives.md has the formulas.

    References
    ----------
    C. S. Kenney and A. J. Laub, SIAM J. Sci. Stat. Comput. 12 (1991) 488-504. N. J. Higham,
    Functions of Matrices (SIAM, 2008), section 8.2.

    Examples
    --------
    >>> import numpy as np
    >>> du, dh = polar_jvp(2 * np.eye(2), np.array([[1.0, 3.0], [-1.0, 0.0]]))
    >>> du.tolist(), dh.tolist()
    ([[0.0, 1.0], [-1.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]])
    """
    entered, shape = _matrix(a, side)
    x, ops = entered.x, entered.ops
    e = _along(da, "da", entered)
    if entered.is_empty:
        zero = ops.xp.broadcast_to(ops.eye(shape[-1], x), shape) * 0.0
        return entered.leave(e), entered.leave(zero)
    du, dh = polar_tangents(x, unitary_factor(x, name="polar_jvp"), e, side=side)
    return entered.leave(du), entered.leave(dh)


@looks
@under_default_settings
def polar_vjp(
    a: ArrayT, u_bar: Array | None, h_bar: Array | None = None, *, side: Side = "right"
) -> ArrayT:
    """Return the gradient with respect to A of a function of the factors of ``A = U H``.

    Parameters
    ----------
    a : array_like, shape (..., m, n)
        Of full rank. Not modified. Integers are converted to float64.
    u_bar, h_bar : array_like or None
        Gradients with respect to U and H, with their shapes; None for a factor on which the
        function does not depend. Only the Hermitian part of `h_bar` is used.
    side : {"right", "left"}, optional
        ``A = U H`` or ``A = H U``.

    Returns
    -------
    array, shape (..., m, n)
        With the array library, device and dtype of `a`.

    Raises
    ------
    TypeError
        As :func:`polar_jvp`.
    ValueError
        As :func:`polar_jvp`, and if both gradients are None.

    Notes
    -----
    Without `h_bar` the result is ``polar_jvp(a, u_bar)[0]``, since the derivative of U is
    self-adjoint.

    References
    ----------
    V. Noferini, SIAM J. Matrix Anal. Appl. 38 (2017) 434-457.

    Examples
    --------
    The nuclear norm is the trace of H, and its gradient U:

    >>> import numpy as np
    >>> polar_vjp(np.array([[0.0, 2.0], [-3.0, 0.0]]), None, np.eye(2)).tolist()
    [[0.0, 1.0], [-1.0, 0.0]]
    """
    if u_bar is None and h_bar is None:
        raise ValueError("u_bar and h_bar must not both be None; pass at least one of them")
    entered, shape = _matrix(a, side)
    y = None if u_bar is None else _along(u_bar, "u_bar", entered)
    b = None if h_bar is None else _along(h_bar, "h_bar", entered, shape)
    if entered.is_empty:
        return cast(ArrayT, entered.leave(entered.x))
    u = unitary_factor(entered.x, name="polar_vjp")
    return cast(ArrayT, entered.leave(polar_gradient(entered.x, u, y, b, side=side)))


@looks
@under_default_settings
def orthogonalize_jvp(
    g: ArrayT,
    dg: ArrayT,
    *,
    schedule: Named | Array = "auto",
    steps: int | None = None,
    form: str = "auto",
    restarts: str | Sequence[int] = "auto",
    precision: str | None = None,
    gram_precision: str | None = None,
    normalisation: str | None = None,
    heads: int | None = None,
) -> ArrayT:
    """Return the derivative of :func:`polarlib.orthogonalize` in a direction of its matrix.

    Parameters
    ----------
    g : array_like, shape (..., m, n)
        Not modified. Integers are converted to float64.
    dg : array_like, shape (..., m, n)
        Direction, of the same array library.
    schedule : str, path-like, Schedule or array, optional
        As in :func:`polarlib.orthogonalize`. An array of coefficients is a constant.
    steps : int, optional
        As in :func:`polarlib.orthogonalize`.
    form : {"auto", "plain", "gram"}, optional
        As in :func:`polarlib.orthogonalize`.
    restarts : "auto" or sequence of int, optional
        As in :func:`polarlib.orthogonalize`.
    precision, gram_precision : str, optional
        As in :func:`polarlib.orthogonalize`, but they affect only the schedule of "auto" and the
        restarts of the Gram form. Derivatives are computed in at least float32, and are those
        without rounding.
    normalisation : str, optional
        As in :func:`polarlib.orthogonalize`.
    heads : int, optional
        As in :func:`polarlib.orthogonalize`.

    Returns
    -------
    array, shape (..., m, n)
        With the array library, device and dtype of `g`. For a zero matrix, which has no derivative
        unless the normalisation is "none", the result is zero, so that stacks can contain it.

    Raises
    ------
    TypeError
        If an argument is not an array of numbers, if they are of two libraries, or if `dg` is
        complex and `g` is real.
    ValueError
        As :func:`polarlib.orthogonalize`, and for shapes that do not match.

    See Also
    --------
    orthogonalize_vjp : The adjoint.

    Notes
    -----
    The cost is seven products per step of degree 5 in the plain form, five of them with the m x n
    matrix. The step itself takes three. No intermediate results are stored between steps.
    docs/evidence/derivatives.md has the formulas.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.random.default_rng(0).standard_normal((6, 4))
    >>> along = orthogonalize_jvp(g, g)  # 0, since scaling does not change the result
    >>> bool(np.max(np.abs(along)) < 1e-12)
    True
    """
    others = steps, form, restarts, precision, gram_precision, normalisation, heads
    return cast(ArrayT, _schedule(g, dg, "dg", schedule, others, gradient=False))


@looks
@under_default_settings
def orthogonalize_vjp(
    g: ArrayT,
    q_bar: ArrayT,
    *,
    schedule: Named | Array = "auto",
    steps: int | None = None,
    form: str = "auto",
    restarts: str | Sequence[int] = "auto",
    precision: str | None = None,
    gram_precision: str | None = None,
    normalisation: str | None = None,
    heads: int | None = None,
) -> ArrayT:
    """Return the gradient with respect to G of a function of ``orthogonalize(G)``.

    Parameters
    ----------
    g : array_like, shape (..., m, n)
        Not modified. Integers are converted to float64.
    q_bar : array_like, shape (..., m, n)
        Gradient with respect to the result, of the same array library.
    schedule : str, path-like, Schedule or array, optional
        As in :func:`orthogonalize_jvp`.
    steps : int, optional
        As in :func:`orthogonalize_jvp`.
    form : {"auto", "plain", "gram"}, optional
        As in :func:`orthogonalize_jvp`.
    restarts : "auto" or sequence of int, optional
        As in :func:`orthogonalize_jvp`.
    precision, gram_precision, normalisation : str, optional
        As in :func:`orthogonalize_jvp`.
    heads : int, optional
        As in :func:`orthogonalize_jvp`.

    Returns
    -------
    array, shape (..., m, n)
        With the array library, device and dtype of `g`.

    Raises
    ------
    TypeError, ValueError
        As :func:`orthogonalize_jvp`.

    Notes
    -----
    The cost is that of :func:`orthogonalize_jvp`, plus seven products for
    ``normalisation="spectral"``.

    Examples
    --------
    >>> import numpy as np
    >>> g, y = np.random.default_rng(0).standard_normal((2, 6, 4))
    >>> gradient = orthogonalize_vjp(g, y)
    >>> bool(abs(np.sum(gradient * g)) < 1e-12)  # scaling does not change the result
    True
    """
    others = steps, form, restarts, precision, gram_precision, normalisation, heads
    return cast(ArrayT, _schedule(g, q_bar, "q_bar", schedule, others, gradient=True))


def _schedule(
    g: Array, e: Array, name: str, schedule: Any, others: tuple[Any, ...], *, gradient: bool
) -> Array:
    # Not scaled: a scale would be a constant, but the normalisation has a derivative.
    entered = enter(g, "g", look="if free", scaling=None)
    if isinstance(schedule, NAMED):
        rule, heads = _rule(entered, Options(schedule, *others))
    else:
        rule, heads = rule_of_coefficients(entered.x, schedule, *others)
    e = _along(e, name, entered)
    if entered.is_empty:
        return entered.leave(e)
    derivative = functools.partial(schedule_derivative, **rule, gradient=gradient)
    return entered.leave(per_head(derivative, heads)(entered.x, e))


def _rule(entered: Entered, options: Options) -> tuple[dict[str, Any], int | None]:
    # Derivatives are those without rounding, so that the warnings about formats do not apply.
    resolved = options.resolved(entered.given, entered.ops, warns=False)
    if resolved["schedule"].is_rational:
        raise ValueError(
            f"schedule must be polynomial, got {resolved['schedule'].name!r} with rational steps; "
            "use a polynomial one, or differentiate by torch or JAX"
        )
    return rule_of(resolved), options.heads


def _matrix(a: Array, side: str) -> tuple[Entered, tuple[int, ...]]:
    """Return the matrix, not scaled, and the shape of its Hermitian factor."""
    choice("side", side, ("right", "left"))
    # The rules of derivatives scale the matrix.
    entered = enter(a, look="if free", scaling=None)
    k = entered.x.shape[-1] if side == "right" else entered.x.shape[-2]
    return entered, (*entered.x.shape[:-2], k, k)


def _along(e: Array, name: str, entered: Entered, shape: tuple[int, ...] | None = None) -> Array:
    """Return a direction or a gradient in the dtype of X; ValueError for another shape."""
    x, ops = entered.x, entered.ops
    shape = tuple(x.shape) if shape is None else shape
    e, _ = as_matrix(e, name)
    check_same_place(x, "the matrix", e, name)
    if tuple(e.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(e.shape)}")
    if is_complex(e) and not is_complex(x):
        raise TypeError(
            f"{name} must be real, as the matrix is, got {dtype_name(e)}; pass its real part"
        )
    return astype_like(e, x, ops)
