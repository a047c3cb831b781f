"""Rules of differentiation, as the libraries take them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from polarlib._schedules.schedule import Schedule
from polarlib.arrays.ops import ops_of
from polarlib.engine.derivatives import (
    inverse_root_derivative,
    polar_gradient,
    polar_tangents,
    root_derivative,
    schedule_derivative,
    unitary_derivative,
)
from polarlib.engine.equation import Equation
from polarlib.result import PolarResult

__all__ = [
    "differentiable_inverse_root",
    "differentiable_polar",
    "differentiable_root",
    "differentiable_schedule",
    "differentiable_unitary",
    "schedule_rule",
]

Array = Any


# -- what a library's own differentiation asks for ---------------------------------------------


def differentiable_schedule(
    apply: Callable[[Array], Array],
    x: Array,
    schedule: Schedule,
    *,
    normalisation: str,
    form: str,
    restarts: Sequence[int],
) -> Array:
    """``apply(x)``, for which the library that records it finds the rules of a schedule."""
    rule = functools.partial(
        schedule_rule,
        schedule=schedule,
        normalisation=normalisation,
        form=form,
        restarts=restarts,
    )

    def along(primals: Any, _: Any, e: Any, *, gradient: bool) -> tuple[Array]:
        return (rule(primals[0], e[0], gradient=gradient),)

    jvp, vjp = (functools.partial(along, gradient=g) for g in (False, True))
    (q,) = ops_of(x).differentiable(lambda x: (apply(x),), jvp, vjp, (x,), keep=False)
    return q


def schedule_rule(x: Array, e: Array, **how: Any) -> Array:
    """:func:`schedule_derivative` in at least single precision, in the dtype of X."""
    wide = ops_of(x).at_least_single(x)
    d = schedule_derivative(wide, ops_of(e).astype_like(e, wide), **how)
    return ops_of(d).astype_like(d, x)


def differentiable_unitary(
    apply: Callable[[Array], Array],
    a: Array,
    exact: Callable[[Array], Array],
    *,
    rotation: bool = False,
    regularization: float = 0.0,
) -> Array:
    """``apply(a)``, a unitary factor or rotation, for which the library that traces it finds rules.

    `exact` finds it in full precision where the one in half precision will not do.
    """
    kind = "rotation" if rotation else "polar"
    equation = Equation(kind, max(a.shape[-2:]), regularization)
    return _self_adjoint(apply, a, exact, functools.partial(unitary_derivative, equation=equation))


def differentiable_root(
    apply: Callable[[Array], Array], a: Array, exact: Callable[[Array], Array]
) -> Array:
    """``apply(a)``, a Hermitian square root, for which the library that records it finds rules."""
    return _self_adjoint(apply, a, exact, lambda _, h, e: root_derivative(h, e))


def differentiable_inverse_root(
    apply: Callable[[Array], Array], a: Array, exact: Callable[[Array], Array], p: int
) -> Array:
    """``apply(a)``, an inverse p-th root, for which the library that records it finds rules."""
    derivative = functools.partial(inverse_root_derivative, p=p)
    return _self_adjoint(apply, a, exact, derivative)


def _self_adjoint(
    apply: Callable[[Array], Array],
    a: Array,
    exact: Callable[[Array], Array],
    derivative: Callable[[Array, Array, Array], Array],
) -> Array:
    """``apply(a)``, whose derivative, at A and the result in a direction, is self-adjoint."""

    def rule(primals: Any, results: Any, e: Any) -> tuple[Array]:
        (a,), (e,) = primals, e
        x, f = _widened(a, results[0], exact)
        return (ops_of(a).astype_like(derivative(x, f, ops_of(e).astype_like(e, x)), a),)

    (f,) = ops_of(a).differentiable(lambda a: (apply(a),), rule, rule, (a,), keep=True)
    return f


def _widened(a: Array, f: Array, exact: Callable[[Array], Array]) -> tuple[Array, Array]:
    """A matrix and a function of it, in at least single precision."""
    x = ops_of(a).at_least_single(a)
    return x, f if x.dtype == a.dtype else exact(x)


def differentiable_polar(
    apply: Callable[[Array], PolarResult],
    a: Array,
    exact: Callable[[Array], Array],
    side: str,
    refuse: Callable[[], None],
) -> PolarResult:
    """``apply(a)``, for whose factors the library that records it finds the rules.

    `refuse` raises where the derivative of the polar factor is not that of the result.
    """
    found: list[PolarResult] = []

    def factors(a: Array) -> tuple[Array, ...]:
        r = apply(a)
        found.append(r)
        if r.status is not None:
            return r.unitary, r.hermitian
        # Figures that belong to the trace have to leave it as results, of which rules need floats.
        return (r.unitary, r.hermitian, *(_as_float(x, r) for x in _figures(r)))

    u, h, *rest = ops_of(a).differentiable(
        factors, *_polar_rules(exact, side, refuse), (a,), keep=True
    )
    r = dataclasses.replace(found[-1], unitary=u, hermitian=h)
    if not rest:
        return r
    xp = ops_of(a).xp
    rest = [xp.astype(x, y.dtype) for x, y in zip(rest, _figures(r), strict=True)]
    names = dict(zip(_FIGURES, rest, strict=False))
    return dataclasses.replace(r, **names, condition_bounds=(rest[-2], rest[-1]))


# Arrays, where a library hides the entries; `condition_bounds` is a pair of them.
_FIGURES = ("converged", "iterations", "matmuls", "orthogonality", "backward_error", "rank")


def _figures(r: PolarResult) -> list[Array]:
    return [*(getattr(r, name) for name in _FIGURES), *r.condition_bounds]


def _as_float(x: Array, r: PolarResult) -> Array:
    return ops_of(x).xp.astype(x, r.orthogonality.dtype)


def _polar_rules(
    exact: Callable[[Array], Array], side: str, refuse: Callable[[], None]
) -> tuple[Callable, Callable]:
    def jvp(primals: Any, results: Any, tangents: Any) -> tuple[Array, ...]:
        refuse()
        (a,), (e,) = primals, tangents
        x, u = _widened(a, results[0], exact)
        moved = polar_tangents(x, u, ops_of(e).astype_like(e, x), side=side)
        zeros = (ops_of(x).xp.zeros_like(x) for x in results[2:])
        return (*(ops_of(d).astype_like(d, a) for d in moved), *zeros)

    def vjp(primals: Any, results: Any, gradients: Any) -> tuple[Array]:
        (a,) = primals
        x, u = _widened(a, results[0], exact)
        wide = (None if g is None else ops_of(g).astype_like(g, x) for g in gradients)
        d = polar_gradient(x, u, *wide, side=side)
        return (ops_of(d).astype_like(d, a),)

    return jvp, vjp
