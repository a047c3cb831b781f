"""Rules of differentiation in the form that array libraries accept.

All functions of a matrix become operations with rules by :func:`by_rules`, which widens half
precision for the rules and rounds their results.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from polarlib.arrays.library import astype_like, at_least_single, format_name
from polarlib.arrays.ops import ops_of
from polarlib.engine.derivatives import (
    coefficients_derivative,
    coefficients_gradient,
    inverse_root_derivative,
    polar_gradient,
    polar_tangents,
    root_derivative,
    schedule_derivative,
    unitary_derivative,
)
from polarlib.engine.equation import Equation
from polarlib.engine.sylvester import signm_derivative, sqrtm_derivative
from polarlib.result import PolarResult

Array = Any
Function = Callable[[Array], Array]


def by_rules(
    apply: Callable[[Array], tuple[Array, ...]],
    a: Array,
    along: Callable[..., tuple[Array, ...]],
    against: Callable[..., Array],
    *,
    exact: Callable[[Array], tuple[Array, ...]] | None = None,
) -> tuple[Array, ...]:
    """Return ``apply(a)`` as an operation that the library of `a` differentiates by the rules.

    Parameters
    ----------
    apply : callable
        Function of the matrix that returns a tuple of arrays.
    a : array, shape (..., m, n)
        The matrix.
    along : callable
        ``along(x, results, e)`` returns the derivatives of the first results in the direction E.
        Further results have the derivative zero.
    against : callable
        ``against(x, results, *gradients)`` returns the gradient with respect to X, from those with
        respect to the results; None stands for a gradient of zero.
    exact : callable, optional
        Function like `apply` whose results are passed to the rules if `a` is in half precision,
        since rounded results are not accurate enough. By default no results are stored or passed.

    Returns
    -------
    tuple of array
        Results of `apply`. The rules compute in at least single precision, and derivatives are
        converted to the dtypes of `a` and of the results.
    """

    def widened(primals: Any, results: Any, *others: Any) -> tuple[Any, ...]:
        ops = ops_of(primals[0])
        x = at_least_single(primals[0], ops)
        if exact is not None and x.dtype != primals[0].dtype:
            results = exact(x)
        name = format_name(x)
        return x, results, *(None if e is None else ops.cast(e, name) for e in others)

    def jvp(primals: Any, results: Any, tangents: Any) -> tuple[Array, ...]:
        moved = along(*widened(primals, results, *tangents))
        like = results or primals
        zeros = (ops_of(r).xp.zeros_like(r) for r in like[len(moved) :])
        return (*(astype_like(d, r, ops_of(d)) for d, r in zip(moved, like, strict=False)), *zeros)

    def vjp(primals: Any, results: Any, gradients: Any) -> tuple[Array]:
        d = against(*widened(primals, results, *gradients))
        return (astype_like(d, primals[0], ops_of(d)),)

    return ops_of(a).differentiable(apply, jvp, vjp, (a,), keep=exact is not None)


# -- functions with one result -----------------------------------------------------------------


def differentiable_schedule(apply: Function, x: Array, **how: Any) -> Array:
    """Return ``apply(x)``, a schedule, with its rules; options are those of the derivative."""
    (q,) = by_rules(
        lambda x: (apply(x),),
        x,
        lambda x, _, e: (schedule_derivative(x, e, gradient=False, **how),),
        lambda x, _, e: schedule_derivative(x, e, gradient=True, **how),
    )
    return q


def differentiable_coefficients(apply: Callable[..., Array], x: Array, c: Array) -> Array:
    """Return ``apply(x, c)``, steps whose coefficients are an array, with rules for both."""

    def jvp(primals: Any, _: Any, tangents: Any) -> tuple[Array]:
        d = coefficients_derivative(*_widened(*primals, *tangents))
        return (astype_like(d, primals[0], ops_of(d)),)

    def vjp(primals: Any, _: Any, gradients: Any) -> tuple[Array, ...]:
        return coefficients_rule(*primals, *gradients)

    arrays = x, c
    return ops_of(x).differentiable(lambda *a: (apply(*a),), jvp, vjp, arrays, keep=False)[0]


def coefficients_rule(x: Array, c: Array, e: Array) -> tuple[Array, Array]:
    """Return :func:`coefficients_gradient`, in at least single precision, like X and C."""
    of_x, of_c = coefficients_gradient(*_widened(x, c, e))
    return astype_like(of_x, x, ops_of(of_x)), astype_like(of_c, c, ops_of(of_c))


def _widened(x: Array, *others: Array) -> list[Array]:
    """Return arrays in the format of X, at least single; real arrays stay real."""
    x = at_least_single(x, ops_of(x))
    return [x, *(ops_of(a).cast(a, format_name(x)) for a in others)]


def schedule_rule(x: Array, e: Array, **how: Any) -> Array:
    """Return :func:`schedule_derivative`, computed in at least single precision, like X."""
    wide = at_least_single(x, ops_of(x))
    d = schedule_derivative(wide, astype_like(e, wide, ops_of(e)), **how)
    return astype_like(d, x, ops_of(d))


def _self_adjoint(
    apply: Function, a: Array, exact: Function, derivative: Callable[[Array, Array, Array], Array]
) -> Array:
    """Return ``apply(a)``, whose derivative, a function of A, the result and E, is self-adjoint."""
    (f,) = by_rules(
        lambda a: (apply(a),),
        a,
        lambda x, f, e: (derivative(x, f[0], e),),
        lambda x, f, e: derivative(x, f[0], e),
        exact=lambda x: (exact(x),),
    )
    return f


def differentiable_unitary(
    apply: Function,
    a: Array,
    exact: Function,
    *,
    rotation: bool = False,
    regularization: float = 0.0,
) -> Array:
    """Return ``apply(a)``, a unitary factor or nearest rotation, with its rules.

    `exact` computes the factor in single precision if that of `apply` is in half precision.
    """
    equation = Equation("rotation" if rotation else "polar", max(a.shape[-2:]), regularization)
    return _self_adjoint(apply, a, exact, functools.partial(unitary_derivative, equation=equation))


def differentiable_root(apply: Function, a: Array, exact: Function) -> Array:
    """Return ``apply(a)``, a Hermitian square root, with its rules."""
    return _self_adjoint(apply, a, exact, lambda _, h, e: root_derivative(h, e))


def differentiable_inverse_root(apply: Function, a: Array, exact: Function, p: int) -> Array:
    """Return ``apply(a)``, an inverse p-th root, with its rules."""
    return _self_adjoint(apply, a, exact, functools.partial(inverse_root_derivative, p=p))


def differentiable_sqrtm(apply: Function, a: Array, exact: Function) -> Array:
    """Return ``apply(a)``, a square root of a general matrix, with its rules."""
    (f,) = by_rules(
        lambda a: (apply(a),),
        a,
        lambda _, f, e: (sqrtm_derivative(f[0], e, gradient=False),),
        lambda _, f, e: sqrtm_derivative(f[0], e, gradient=True),
        exact=lambda x: (exact(x),),
    )
    return f


def differentiable_signm(apply: Function, a: Array, exact: Function) -> Array:
    """Return ``apply(a)``, the sign of a general matrix, with its rules."""
    (f,) = by_rules(
        lambda a: (apply(a),),
        a,
        lambda x, f, e: (signm_derivative(x, f[0], e, gradient=False),),
        lambda x, f, e: signm_derivative(x, f[0], e, gradient=True),
        exact=lambda x: (exact(x),),
    )
    return f


# -- both polar factors ------------------------------------------------------------------------

# Fields of a result that are arrays under a trace; `condition_bounds` is a pair of arrays.
_ESTIMATES = ("converged", "iterations", "matmuls", "orthogonality", "backward_error", "rank")


def _estimates(r: PolarResult[Array]) -> list[Array]:
    return [*(getattr(r, name) for name in _ESTIMATES), *r.condition_bounds]


def differentiable_polar(
    apply: Callable[[Array], PolarResult[Array]],
    a: Array,
    exact: Function,
    side: str,
    refuse: Callable[[], None],
) -> PolarResult[Array]:
    """Return ``apply(a)``, whose factors have the rules of the polar decomposition.

    `refuse` raises an error if the result has another derivative than the polar factor.
    """
    computed: list[PolarResult[Array]] = []

    def factors(a: Array) -> tuple[Array, ...]:
        r = apply(a)
        computed.append(r)
        if r.status is not None:
            return r.unitary, r.hermitian
        # Traced arrays must be returned as results, and libraries differentiate only floats.
        real = r.orthogonality.dtype
        return (r.unitary, r.hermitian, *(ops_of(x).xp.astype(x, real) for x in _estimates(r)))

    def along(x: Array, results: Any, e: Array) -> tuple[Array, Array]:
        refuse()
        return polar_tangents(x, results[0], e, side=side)

    def against(x: Array, results: Any, y: Array | None, b: Array | None, *_: Any) -> Array:
        return polar_gradient(x, results[0], y, b, side=side)

    u, h, *rest = by_rules(factors, a, along, against, exact=lambda x: (exact(x),))
    r = dataclasses.replace(computed[-1], unitary=u, hermitian=h)
    if not rest:
        return r
    xp = ops_of(a).xp
    rest = [xp.astype(x, y.dtype) for x, y in zip(rest, _estimates(r), strict=True)]
    names = dict(zip(_ESTIMATES, rest, strict=False))
    return dataclasses.replace(r, **names, condition_bounds=(rest[-2], rest[-1]))
