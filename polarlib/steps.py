"""Optimizer steps on arrays: the two templates behind SGD, Adam, Lion, Muon, Scion and their kin.

A step of training is ``x <- argmin gamma <d, y> + h(y)`` over y, with a direction d made of
gradients and a model h of what changes cost. Either h is quadratic (:func:`presgdw_step`), or it
confines y to a ball (:func:`scg_step`, :func:`uscg_step`). The optimizers differ in the direction
and in the ball: docs/norms.md has them as one-liners. After the survey Training Neural Networks at
Any Scale, arXiv 2511.11163.

Conventions. An `lmo` MAXIMISES ``<d, t>`` over the unit ball, as in :mod:`polarlib.norms`, and the
step subtracts it; Scion's paper minimises and adds. Functions are pure: they take arrays and return
new ones, of the library, shape and dtype of the first argument; half precision is computed in
float32 and rounded once. Any shape will do where the lmo takes it. Nothing is read off a device:
NaN and overflow propagate.

Examples
--------
Muon with Nesterov momentum and Jordan's scale, one step:

>>> import numpy as np, polarlib
>>> rng = np.random.default_rng(0)
>>> x, g, b = rng.standard_normal((4, 3)), rng.standard_normal((4, 3)), np.zeros((4, 3))
>>> b = polyak(b, g, 0.95)
>>> x = uscg_step(x, nesterov(b, g, 0.95), polarlib.orthogonalize, rate=0.02, radius=(4 / 3) ** 0.5)
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from polarlib._schedule import is_number
from polarlib.ops import (
    dtype_name,
    is_array,
    looks_at_nothing,
    ops_of,
    under_default_promotion,
)

__all__ = [
    "debias",
    "ema",
    "lion",
    "nesterov",
    "polyak",
    "presgdw_step",
    "scg_step",
    "uscg_step",
]

Array = Any


# -- steps -----------------------------------------------------------------------------------


def scg_step(
    x: Array, d: Array, lmo: Callable[[Array], Array], *, step: float, radius: float = 1.0
) -> Array:
    """Stochastic conditional gradient: ``(1 - lambda) x - lambda rho lmo(d)``.

    Parameters
    ----------
    x, d : array
        Point and direction, of one shape.
    lmo : callable
        Maximiser of ``<d, t>`` over the unit ball of a norm, such as ``norms.spectral().lmo``.
    step : float
        lambda, from 0 to 1: step size and weight decay in one.
    radius : float, optional
        rho. A point within the ball of this radius stays there.

    Returns
    -------
    array
        Like `x`.

    Raises
    ------
    TypeError
        If `d` or what `lmo` returns is not an array that goes with `x`, or `lmo` not callable.
    ValueError
        For shapes that differ, a step outside [0, 1], a radius that is not positive.

    Notes
    -----
    Decoupled weight decay is this step: rate r and decay w are ``step = r w``, ``radius = 1 / w``.
    Pethick and others, Scion, arXiv 2502.07529, algorithm 2 (constrained).

    Examples
    --------
    >>> import numpy as np
    >>> x, d = np.array([1.0, 1.0]), np.array([3.0, -2.0])
    >>> scg_step(x, d, np.sign, step=0.1, radius=2.0).tolist()
    [0.7, 1.1]
    """
    _check(x, d, "d")
    step, radius = _fraction(step, "step"), _positive(radius, "radius")
    return _sum(x, (1 - step, x), (-step * radius, _called(lmo, "lmo", x, d)))


def uscg_step(
    x: Array, d: Array, lmo: Callable[[Array], Array], *, rate: float, radius: float = 1.0
) -> Array:
    """Unconstrained conditional gradient: ``x - gamma rho lmo(d)``.

    Parameters
    ----------
    x, d : array
        Point and direction, of one shape.
    lmo : callable
        Maximiser of ``<d, t>`` over the unit ball of a norm.
    rate : float
        gamma, not negative.
    radius : float, optional
        rho: the length of the step, in the norm, is ``gamma rho``. Scales such as
        ``norms.update_scale`` go here.

    Returns
    -------
    array
        Like `x`.

    Raises
    ------
    TypeError
        If `d` or what `lmo` returns is not an array that goes with `x`, or `lmo` not callable.
    ValueError
        For shapes that differ, a negative rate, a radius that is not positive.

    Notes
    -----
    Pethick and others, Scion, arXiv 2502.07529, algorithm 1 (unconstrained).

    Examples
    --------
    >>> import numpy as np
    >>> uscg_step(np.array([1.0, 1.0]), np.array([3.0, -2.0]), np.sign, rate=0.5).tolist()
    [0.5, 1.5]
    """
    _check(x, d, "d")
    rate, radius = _at_least_zero(rate, "rate"), _positive(radius, "radius")
    return _sum(x, (1.0, x), (-rate * radius, _called(lmo, "lmo", x, d)))


@under_default_promotion
def presgdw_step(
    x: Array,
    d: Array,
    h: Array | Callable[[Array], Array] | None = None,
    *,
    rate: float,
    decay: float = 0.0,
) -> Array:
    """Preconditioned SGD with decoupled decay: ``(1 - gamma lambda) x - gamma H^-1 d``.

    Parameters
    ----------
    x, d : array
        Point and direction, of one shape.
    h : array or callable, optional
        H: the diagonal of it, positive, in the shape of `x` (``sqrt(v) + eps`` is Adam); or a
        function that gives ``H^-1 d``; by default the identity. A zero on the diagonal gives
        infinity or NaN there.
    rate : float
        gamma, not negative.
    decay : float, optional
        lambda, not negative.

    Returns
    -------
    array
        Like `x`.

    Raises
    ------
    TypeError
        If `d`, `h` or what it returns is not an array that goes with `x`.
    ValueError
        For shapes that differ, a negative rate or decay.

    Notes
    -----
    The minimiser of ``gamma <d, y> + gamma lambda <x, y>_H + ||y - x||_H^2 / 2`` over y: H acts on
    the decay before it is taken off again, which is what decoupled means.

    Examples
    --------
    >>> import numpy as np
    >>> x, d, h = np.array([1.0, 1.0]), np.array([3.0, -2.0]), np.array([1.0, 4.0])
    >>> presgdw_step(x, d, h, rate=0.5, decay=0.2).tolist()
    [-0.6, 1.15]
    >>> presgdw_step(x, d, lambda d: d / h, rate=0.5, decay=0.2).tolist()
    [-0.6, 1.15]
    """
    _check(x, d, "d")
    rate, decay = _at_least_zero(rate, "rate"), _at_least_zero(decay, "decay")
    if h is None:
        solved = d
    elif callable(h):
        solved = _called(h, "h", x, d)
    else:
        _check(x, h, "h")
        solved = _divided(d, h)
    return _sum(x, (1 - rate * decay, x), (-rate, solved))


# -- directions ------------------------------------------------------------------------------


def ema(m: Array, g: Array, beta: float) -> Array:
    """Exponential moving average: ``beta m + (1 - beta) g``.

    Parameters
    ----------
    m, g : array
        Average so far (zeros to begin with) and gradient, of one shape.
    beta : float
        From 0 to below 1.

    Returns
    -------
    array
        Like `m`.

    Raises
    ------
    TypeError, ValueError
        For arrays that do not go together, shapes that differ, beta outside [0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> ema(np.zeros(2), np.array([1.0, -2.0]), 0.75).tolist()
    [0.25, -0.5]
    """
    _check(m, g, "g")
    beta = _momentum(beta, "beta")
    return _sum(m, (beta, m), (1 - beta, g))


def debias(m: Array, k: int, beta: float) -> Array:
    """Adam's correction of an average that began with zeros: ``m / (1 - beta^k)``.

    Parameters
    ----------
    m : array
        From :func:`ema`.
    k : int
        Gradients that went into it, from 1.
    beta : float
        Of the average, from 0 to below 1.

    Returns
    -------
    array
        Like `m`; the mean of the gradients, with weights that sum to 1.

    Raises
    ------
    TypeError, ValueError
        If `m` is no array, k no integer from 1, beta outside [0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> debias(ema(np.zeros(2), np.array([1.0, -2.0]), 0.75), 1, 0.75).tolist()
    [1.0, -2.0]
    """
    _check(m, m, "m")
    if not isinstance(k, numbers.Integral) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k must be an integer of at least 1, got {k!r}")
    return _sum(m, (1 / (1 - _momentum(beta, "beta") ** int(k)), m))


def polyak(b: Array, g: Array, mu: float) -> Array:
    """Heavy-ball momentum: ``mu b + g``.

    Parameters
    ----------
    b, g : array
        Buffer (zeros to begin with) and gradient, of one shape.
    mu : float
        From 0 to below 1.

    Returns
    -------
    array
        Like `b`: ``1 / (1 - mu)`` times the average of :func:`ema`.

    Raises
    ------
    TypeError, ValueError
        For arrays that do not go together, shapes that differ, mu outside [0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> polyak(np.array([1.0, 1.0]), np.array([1.0, -2.0]), 0.5).tolist()
    [1.5, -1.5]
    """
    _check(b, g, "g")
    return _sum(b, (_momentum(mu, "mu"), b), (1.0, g))


def nesterov(b: Array, g: Array, mu: float) -> Array:
    """Nesterov's direction from a buffer that has seen the gradient: ``g + mu b``.

    Parameters
    ----------
    b, g : array
        Buffer, from :func:`polyak` with this gradient, and gradient, of one shape.
    mu : float
        From 0 to below 1.

    Returns
    -------
    array
        Like `b`.

    Raises
    ------
    TypeError, ValueError
        For arrays that do not go together, shapes that differ, mu outside [0, 1).

    Notes
    -----
    With an average in place of the buffer the direction is ``ema(m, g, mu)`` once more: ``1 - mu``
    times this one, which no lmo tells apart.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.array([1.0, -2.0])
    >>> nesterov(polyak(np.zeros(2), g, 0.5), g, 0.5).tolist()
    [1.5, -3.0]
    """
    _check(b, g, "g")
    return _sum(b, (1.0, g), (_momentum(mu, "mu"), b))


def lion(m: Array, g: Array, beta1: float, beta2: float) -> tuple[Array, Array]:
    """Lion's feedback: the direction weighs the gradient otherwise than the state does.

    Parameters
    ----------
    m, g : array
        State (zeros to begin with) and gradient, of one shape.
    beta1, beta2 : float
        Of the direction and of the state, from 0 to below 1; Lion's are 0.9 and 0.99.

    Returns
    -------
    d : array
        ``beta1 m + (1 - beta1) g``, like `m`.
    m : array
        ``beta2 m + (1 - beta2) g``: the state of the next step.

    Raises
    ------
    TypeError, ValueError
        For arrays that do not go together, shapes that differ, a beta outside [0, 1).

    Notes
    -----
    Chen and others, Symbolic discovery of optimization algorithms, arXiv 2302.06675, program 1.

    Examples
    --------
    >>> import numpy as np
    >>> d, m = lion(np.zeros(2), np.array([1.0, -2.0]), 0.5, 0.75)
    >>> d.tolist(), m.tolist()
    ([0.5, -1.0], [0.25, -0.5])
    """
    _check(m, g, "g")
    beta1, beta2 = _momentum(beta1, "beta1"), _momentum(beta2, "beta2")
    return ema(m, g, beta1), ema(m, g, beta2)


# -- what they share -------------------------------------------------------------------------


@looks_at_nothing
def _sum(like: Array, *terms: tuple[float, Array]) -> Array:
    """Weighted sum in at least single precision, rounded once to the dtype of `like`."""
    ops = ops_of(like)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        weight, array = terms[0]
        total = ops.at_least_single(array) * weight
        for weight, array in terms[1:]:
            total = total + ops.at_least_single(array) * weight
        return ops.like(total, like)


def _called(f: Callable[[Array], Array], name: str, x: Array, d: Array) -> Array:
    """What a function makes of the direction; it must go with `x`."""
    if not callable(f):
        raise TypeError(f"{name} must be a function of arrays, such as norms.spectral().lmo; {f!r}")
    t = f(d)
    _check(x, t, f"the result of {name}")
    return t


@looks_at_nothing
def _divided(d: Array, h: Array) -> Array:
    ops = ops_of(d)
    with np.errstate(all="ignore"):
        return ops.at_least_single(d) / ops.at_least_single(h)


@looks_at_nothing
def _check(x: Array, other: Any, name: str) -> None:
    """Refuse what would broadcast, lose an imaginary part or mix libraries."""
    for value, called in ((x, "the first array"), (other, name)):
        if not is_array(value):
            raise TypeError(f"{called} must be an array of a supported library, got {value!r}")
        if not ops_of(value).format_name(value):
            raise TypeError(f"{called} must be of a floating dtype, got {dtype_name(value)}")
    ops, mine = ops_of(x), ops_of(other)
    if ops.xp is not mine.xp:
        raise TypeError(
            f"the arrays are of two libraries: {ops.xp.__name__} and, {name}, {mine.xp.__name__}"
        )
    if x.shape != other.shape:
        raise ValueError(
            f"{name} must have the shape of the first array, {tuple(x.shape)}, got "
            f"{tuple(other.shape)}"
        )
    if mine.is_complex(other) and not ops.is_complex(x):
        raise TypeError(f"{name} is complex, the first array is {dtype_name(x)}")


def _real(value: Any, name: str, allowed: str, holds: Callable[[float], bool]) -> float:
    if not is_number(value) or not math.isfinite(value) or not holds(float(value)):
        raise ValueError(f"{name} must be a number {allowed}, got {value!r}")
    return float(value)


def _fraction(value: Any, name: str) -> float:
    return _real(value, name, "from 0 to 1", lambda v: 0 <= v <= 1)


def _momentum(value: Any, name: str) -> float:
    return _real(value, name, "from 0 to below 1", lambda v: 0 <= v < 1)


def _at_least_zero(value: Any, name: str) -> float:
    return _real(value, name, "that is not negative", lambda v: v >= 0)


def _positive(value: Any, name: str) -> float:
    return _real(value, name, "above 0", lambda v: v > 0)
