"""Optimizer steps on arrays: the two templates of SGD, Adam, Lion, Muon, Scion and related ones.

A training step is ``x <- argmin gamma <d, y> + h(y)`` over y, with a direction d computed from
gradients and a penalty h of changes. Either h is quadratic (:func:`presgdw_step`), or it confines y
to a ball (:func:`scg_step`, :func:`uscg_step`). The optimizers differ in the direction and in the
ball: docs/guide/optimizers.md has each in one line. The templates are those of the survey Training
Neural Networks at Any Scale, arXiv 2511.11163.

An `lmo` (linear maximisation oracle) MAXIMISES ``<d, t>`` over the unit ball, as in
:mod:`polarlib.norms`, and the step subtracts it; Scion's paper minimises and adds. Functions are
pure and return new arrays of the library, shape and dtype of the first argument, which may have
every shape that the lmo accepts; half precision is computed in float32 and rounded once. Nothing is
read off a device: NaN and overflow propagate.

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

import functools
import operator
from collections.abc import Callable
from typing import Any, TypeVar, cast

from polarlib.arrays.checks import count, function, number, shown
from polarlib.arrays.entry import check_same_mesh, check_same_place, is_array, plain_array
from polarlib.arrays.library import (
    astype_like,
    at_least_single,
    dtype_name,
    format_name,
    is_complex,
)
from polarlib.arrays.ops import ops_of
from polarlib.arrays.settings import looks_at_nothing, under_default_settings
from polarlib.norms.low_rank import feedback_step

__all__ = [
    "debias",
    "dion",
    "ema",
    "lion",
    "nesterov",
    "polyak",
    "presgdw_step",
    "scg_step",
    "uscg_step",
]

Array = Any
# Array library, shape and dtype of a result are those of the first argument.
A = TypeVar("A")

# Beyond this number of gradients the correction is the same to the last digit.
MOST_GRADIENTS = 10**18


# -- steps -----------------------------------------------------------------------------------


def scg_step(x: A, d: A, lmo: Callable[[A], A], *, step: float, radius: float = 1.0) -> A:
    """Return a stochastic conditional gradient step: ``(1 - lambda) x - lambda rho lmo(d)``.

    Parameters
    ----------
    x, d : array
        Point and direction, of one shape.
    lmo : callable
        LMO (linear maximisation oracle) of a norm, such as ``norms.spectral().lmo``.
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
    TypeError, ValueError
        If `d` or the result of `lmo` differs from `x` in library or shape, `lmo` is not callable,
        for a step outside [0, 1], a radius that is not positive.

    Notes
    -----
    Decoupled weight decay is this step: rate r and decay w are ``step = r w``, ``radius = 1 / w``.

    References
    ----------
    T. Pethick and others, Scion, arXiv 2502.07529, algorithm 2 (constrained).

    Examples
    --------
    >>> import numpy as np
    >>> x, d = np.array([1.0, 1.0]), np.array([3.0, -2.0])
    >>> scg_step(x, d, np.sign, step=0.1, radius=2.0).tolist()
    [0.7, 1.1]
    """
    _check(x, d, "d")
    step, radius = number("step", step, 0, 1), number("radius", radius, 0, ends="(]")
    return _sum(x, (1 - step, x), (-step * radius, _called(lmo, "lmo", x, d)))


def uscg_step(x: A, d: A, lmo: Callable[[A], A], *, rate: float, radius: float = 1.0) -> A:
    """Return an unconstrained conditional gradient step: ``x - gamma rho lmo(d)``.

    Parameters
    ----------
    x, d : array
        Point and direction, of one shape.
    lmo : callable
        As in :func:`scg_step`.
    rate : float
        gamma, not negative.
    radius : float, optional
        rho. The length of the step in the norm is ``gamma rho``. For a scale that depends on the
        shape, use ``norms.update_scale``.

    Returns
    -------
    array
        Like `x`.

    Raises
    ------
    TypeError, ValueError
        As :func:`scg_step`, and for a negative rate.

    References
    ----------
    T. Pethick and others, Scion, arXiv 2502.07529, algorithm 1 (unconstrained).

    Examples
    --------
    >>> import numpy as np
    >>> uscg_step(np.array([1.0, 1.0]), np.array([3.0, -2.0]), np.sign, rate=0.5).tolist()
    [0.5, 1.5]
    """
    _check(x, d, "d")
    rate, radius = number("rate", rate, 0), number("radius", radius, 0, ends="(]")
    return _sum(x, (1.0, x), (-rate * radius, _called(lmo, "lmo", x, d)))


@under_default_settings
def presgdw_step(
    x: A,
    d: A,
    h: A | Callable[[A], A] | None = None,
    *,
    rate: float,
    decay: float = 0.0,
) -> A:
    """Return a preconditioned step with decoupled decay: ``(1 - gamma lambda) x - gamma H^-1 d``.

    Parameters
    ----------
    x, d : array
        Point and direction, of one shape.
    h : array or callable, optional
        Diagonal of H, positive, in the shape of `x` (``sqrt(v) + eps`` is Adam), or a function that
        returns ``H^-1 d``; by default H is the identity. A zero on the diagonal gives infinity or
        NaN there.
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
    TypeError, ValueError
        If `d`, `h` or the result of `h` differs from `x` in library or shape; for a negative rate
        or decay.

    Notes
    -----
    The result minimises ``gamma <d, y> + gamma lambda <x, y>_H + ||y - x||_H^2 / 2`` over y. The
    decay is multiplied by H and then by its inverse, so that it is decoupled from H.

    References
    ----------
    I. Loshchilov and F. Hutter, Decoupled weight decay regularization, arXiv 1711.05101.

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
    rate, decay = number("rate", rate, 0), number("decay", decay, 0)
    if h is None:
        solved = d
    elif callable(h):
        solved = _called(h, "h", x, d)
    else:
        _check(x, h, "h")
        solved = _divided(d, h)
    return _sum(x, (1 - rate * decay, x), (-rate, solved))


# -- directions ------------------------------------------------------------------------------


def ema(m: A, g: A, beta: float) -> A:
    """Return the exponential moving average: ``beta m + (1 - beta) g``.

    Parameters
    ----------
    m, g : array
        Average so far (zeros at the start) and gradient, of one shape.
    beta : float
        From 0 to below 1.

    Returns
    -------
    array
        Like `m`.

    Raises
    ------
    TypeError, ValueError
        For arrays of different libraries or shapes, beta outside [0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> ema(np.zeros(2), np.array([1.0, -2.0]), 0.75).tolist()
    [0.25, -0.5]
    """
    _check(m, g, "g")
    beta = number("beta", beta, 0, 1, ends="[)")
    return _sum(m, (beta, m), (1 - beta, g))


def debias(m: A, k: int, beta: float) -> A:
    """Return Adam's correction of an average that began with zeros: ``m / (1 - beta^k)``.

    Parameters
    ----------
    m : array
        From :func:`ema`.
    k : int
        Number of gradients in the average, from 1.
    beta : float
        Of the average, from 0 to below 1.

    Returns
    -------
    array
        Like `m`; the mean of the gradients, with weights that sum to 1.

    Raises
    ------
    TypeError, ValueError
        If `m` is not an array, k not an integer from 1, beta outside [0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> debias(ema(np.zeros(2), np.array([1.0, -2.0]), 0.75), 1, 0.75).tolist()
    [1.0, -2.0]
    """
    _check(m, m, "m")  # the checks of the first array alone
    k, beta = min(count("k", k), MOST_GRADIENTS), number("beta", beta, 0, 1, ends="[)")
    return _sum(m, (1 / (1 - beta**k), m))


def polyak(b: A, g: A, mu: float) -> A:
    """Return the heavy-ball momentum: ``mu b + g``.

    Parameters
    ----------
    b, g : array
        Buffer (zeros at the start) and gradient, of one shape.
    mu : float
        From 0 to below 1.

    Returns
    -------
    array
        Like `b`: ``1 / (1 - mu)`` times the average of :func:`ema`.

    Raises
    ------
    TypeError, ValueError
        As :func:`ema`.

    Examples
    --------
    >>> import numpy as np
    >>> polyak(np.array([1.0, 1.0]), np.array([1.0, -2.0]), 0.5).tolist()
    [1.5, -1.5]
    """
    _check(b, g, "g")
    return _sum(b, (number("mu", mu, 0, 1, ends="[)"), b), (1.0, g))


def nesterov(b: A, g: A, mu: float) -> A:
    """Return Nesterov's direction from a buffer that contains the gradient: ``g + mu b``.

    Parameters
    ----------
    b, g : array
        Buffer of :func:`polyak` that includes this gradient, and the gradient, of one shape.
    mu : float
        From 0 to below 1.

    Returns
    -------
    array
        Like `b`.

    Raises
    ------
    TypeError, ValueError
        As :func:`ema`.

    Notes
    -----
    With an average m instead of the buffer, the direction is ``ema(m, g, mu)``: ``1 - mu`` times
    this one, for which every LMO has the same value.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.array([1.0, -2.0])
    >>> nesterov(polyak(np.zeros(2), g, 0.5), g, 0.5).tolist()
    [1.5, -3.0]
    """
    _check(b, g, "g")
    return _sum(b, (1.0, g), (number("mu", mu, 0, 1, ends="[)"), b))


def lion(m: A, g: A, beta1: float, beta2: float) -> tuple[A, A]:
    """Return Lion's direction and state, two averages with different weights of the gradient.

    Parameters
    ----------
    m, g : array
        State (zeros at the start) and gradient, of one shape.
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
        For arrays of different libraries or shapes, a beta outside [0, 1).

    References
    ----------
    X. Chen and others, Symbolic discovery of optimization algorithms, arXiv 2302.06675, program 1.

    Examples
    --------
    >>> import numpy as np
    >>> d, m = lion(np.zeros(2), np.array([1.0, -2.0]), 0.5, 0.75)
    >>> d.tolist(), m.tolist()
    ([0.5, -1.0], [0.25, -0.5])
    """
    _check(m, g, "g")
    beta1 = number("beta1", beta1, 0, 1, ends="[)")
    beta2 = number("beta2", beta2, 0, 1, ends="[)")
    return ema(m, g, beta1), ema(m, g, beta2)


def dion(m: A, g: A, q: A, *, mu: float = 0.95) -> tuple[A, A, A]:
    """Return Dion's update of low rank, and its states: a buffer with error feedback, a basis.

    Parameters
    ----------
    m, g : array, shape (..., m, n)
        Buffer (zeros at the start) and gradient, of one shape.
    q : array, shape (..., n, k)
        Basis of the previous step, Gaussian at the start; the rank k is from 1 to min(m, n). One
        basis, without leading axes, serves all matrices of a stack.
    mu : float, optional
        From 0 to below 1.

    Returns
    -------
    update : array, shape (..., m, n)
        ``P Q^H``, with P and Q of :func:`polarlib.norms.power_step` at ``B = M + G``. The paper's
        step is ``x - rate sqrt(m / n) update``, ``norms.update_scale(m, n, "rms_to_rms")``.
    m, q : array
        ``B - (1 - mu) P R^H`` with ``R = B^H P``, and the normalised columns of R: the states of
        the next step, like `m` and `q`.

    Raises
    ------
    TypeError, ValueError
        As :func:`ema`, and if Q does not fit.

    Notes
    -----
    Error feedback: ``P R^H`` is the projection of B to the range of P, and the other part of B
    stays in the buffer with weight 1. After any number of steps ``(1 - mu) sum P R^H + M`` is the
    sum of all gradients. With k = min(m, n) the new buffer is ``mu B``, heavy-ball momentum.

    Columns of R with norms up to ``max(m, n) * eps`` times the largest are rounding errors, and are
    left out of the update, which is zero for B = 0. The spectral norm of the update is from 1 to
    sqrt(k), since the columns of Q are not orthogonal. With B = M + G,
    ``norms.range_lmo(B, norms.power_step(B, q)[0])`` is the LMO in the same range, of norm 1.

    Half precision is computed in float32. Devices that hold terms of G send ``B Q`` and ``B^H P``,
    (m + n) k entries, in the place of G.

    References
    ----------
    K. Ahn, B. Xu and others, Dion, arXiv 2504.05295, algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.array([[0.0, 3.0], [0.0, 4.0]])
    >>> update, m, q = dion(np.zeros((2, 2)), g, np.array([[1.0], [1.0]]), mu=0.5)
    >>> update.round(12).tolist(), m.round(12).tolist()
    ([[0.0, 0.6], [0.0, 0.8]], [[0.0, 1.5], [0.0, 2.0]])
    """
    _check(m, g, "g")
    return cast(tuple[A, A, A], feedback_step(m, g, q, number("mu", mu, 0, 1, ends="[)")))


# -- shared ----------------------------------------------------------------------------------


@looks_at_nothing
@under_default_settings
def _weighted(like: Array, *terms: tuple[float, Array]) -> Array:
    """Return the weighted sum in at least single precision, rounded once to the dtype of `like`."""
    ops = ops_of(like)
    products = [at_least_single(plain_array(x, "the array"), ops) * weight for weight, x in terms]
    return astype_like(functools.reduce(operator.add, products), like, ops)


def _sum(like: A, *terms: tuple[float, Any]) -> A:
    return cast(A, _weighted(like, *terms))


def _called(f: Callable[[A], A], name: str, x: A, d: A) -> Any:
    """Return the value of a function at the direction, after a check against `x`."""
    t = function(name, f, "a function of arrays, such as norms.spectral().lmo")(d)
    _check(x, t, f"the result of {name}")
    return t


@looks_at_nothing
@under_default_settings
def _divided(d: Array, h: Array) -> Array:
    ops = ops_of(d)
    return at_least_single(d, ops) / at_least_single(h, ops)


@looks_at_nothing
def _check(x: Array, other: Any, name: str) -> None:
    """Raise for arrays that would broadcast, lose an imaginary part or mix libraries."""
    for value, called in ((x, "the first array"), (other, name)):
        if not is_array(value):
            got = f"{shown(value)} ({type(value).__name__})"
            raise TypeError(f"{called} must be an array of a supported library, got {got}")
        plain_array(value, called)
        if not format_name(value):
            raise TypeError(f"{called} must be of a floating dtype, got {dtype_name(value)}")
    check_same_place(x, "the first array", other, name)
    check_same_mesh(x, "the first array", other, name)
    if x.shape != other.shape:
        raise ValueError(
            f"{name} must have the shape of the first array, {tuple(x.shape)}, got "
            f"{tuple(other.shape)}"
        )
    if is_complex(other) and not is_complex(x):
        raise TypeError(
            f"{name} must be real like the first array, got {dtype_name(other)}; convert the first "
            "array to complex"
        )
