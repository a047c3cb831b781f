"""Schedules for other functions of the singular values: p-th roots, clipping, powers, smooth signs.

Inverse p-th roots are greedy compositions of best steps, as for the polar factor. For the other
targets no composition is known to be optimal: all coefficients are fitted together, by linear
programs about the current ones in a trust region, from a few starts, to a local minimum of the
worst error. Nothing is random. For a single step the problem is linear and the result is the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from polarlib._schedules.schedule import Schedule
from polarlib._schedules.validity import MOST_STRIDE, Normalisation
from polarlib.arrays.checks import count, number
from polarlib.arrays.progress import Callback, reporting
from polarlib.design.compose import greedy
from polarlib.design.minimax_fit import fit, refuse_dependent
from polarlib.design.remez import check_degrees, check_interval

# Largest upper end of clip: on a longer interval no sample is in [0, 1].
HIGHEST = 1e6
# Degrees that are fitted together: more take minutes.
MOST_FITTED = 12
# Least width of smooth_sign: a narrower one is below the resolution of every polynomial.
NARROWEST = 1e-12


def inverse_root(
    p: int,
    lower: float,
    degrees: Sequence[int],
    *,
    safety: float = 0.0,
    cushion: float = 0.0,
) -> Schedule:
    """Compose best steps for ``A**(-1/p)`` of a Hermitian positive definite A.

    A step is ``x q(x**p)`` with a polynomial q. With Q = I and R = A to begin with, the iteration
    ``Q <- Q q(R)``, ``R <- R q(R)**p`` gives the function ``s(x) / x`` at ``x = lambda**(1/p)`` of
    every eigenvalue lambda of A: Q approximates ``A**(-1/p)`` with the relative error of s as an
    approximation of 1. See :func:`polarlib.inverse_root`.

    Parameters
    ----------
    p : int
        At least 2.
    lower : float
        Lower end of the interval [lower, 1] of ``x = lambda**(1/p)`` for the eigenvalues lambda of
        the matrix, scaled to at most 1: the p-th root of one over the condition number.
    degrees : sequence of int
        Degree ``1 + p k`` in x of each step, k at least 1.
    safety, cushion : float, optional
        As of :func:`greedy`.

    Returns
    -------
    Schedule
        Its `stride` is p. For p = 2 it is ``greedy(lower, degrees)``.

    Raises
    ------
    ValueError
        For p below 2 or no integer, `lower` outside (0, 1), a degree that is not 1 + p k, or one
        beyond double coefficients, as :func:`greedy`.

    Notes
    -----
    The powers x, x**(1 + p), ... are a Chebyshev system on [lower, 1], and the exchange of
    :func:`best` holds for them as it does for odd powers.

    Examples
    --------
    >>> s = inverse_root(4, 0.1, [5, 5, 9])
    >>> s.stride, round(s.error(), 4)
    (4, 0.1935)
    """
    p = count("p", p, 2, MOST_STRIDE)
    s = greedy(lower, degrees, stride=p, safety=safety, cushion=cushion)
    description = ", ".join(str(int(d)) for d in degrees)
    return replace(s, name=f"inverse root {p} of degrees {description}")


def clip(upper: float, degrees: Sequence[int], *, callback: Callback | None = None) -> Schedule:
    """Fit ``min(x, 1)`` on [0, upper]: singular values above 1 become 1, the others stay.

    Parameters
    ----------
    upper : float
        Above 1: the largest singular value over the limit.
    degrees : sequence of int
        Odd degree of each step.
    callback : callable, optional
        Called as ``callback(k, value)`` after local optimisation k = 1, 2, ..., with the smallest
        worst error so far, of as many steps or fewer. See :class:`polarlib.result.Progress`.

    Returns
    -------
    Schedule
        Of target "clip" and normalisation "none": ``limit * orthogonalize(a / limit, schedule=s)``
        clips at any other limit than 1.

    Raises
    ------
    ValueError
        For `upper` not above 1, no degrees or an even one, or one beyond double coefficients.

    Notes
    -----
    The error is absolute. It decreases slowly because of the corner at 1: on [0, 2] one to four
    degree-5 steps have 0.057, 0.022, 0.013, 0.009.

    Examples
    --------
    >>> s = clip(2.0, [5])
    >>> s.target, round(s.error(), 3)
    ('clip', 0.057)
    """
    u = number("upper", upper, 1, HIGHEST, ends="(]")
    return _schedule("clip", degrees, 0.0, u, "none", f"clip to 1 below {u:g}", callback)


def power(
    p: float, lower: float, degrees: Sequence[int], *, callback: Callback | None = None
) -> Schedule:
    """Fit ``x**p`` on [lower, 1]: singular values become their p-th powers.

    Parameters
    ----------
    p : float
        Between -1 and 1, both excluded; 0 is the polar factor, and :func:`greedy`.
    lower : float
        Lower end of the interval.
    degrees : sequence of int
        Odd degree of each step.
    callback : callable, optional
        Called as ``callback(k, value)`` after local optimisation k = 1, 2, ..., with the smallest
        worst error so far, of as many steps or fewer. See :class:`polarlib.result.Progress`.

    Returns
    -------
    Schedule
        Of target "power(p)". Its normalisation is "spectral": for a matrix ``c X`` the result is
        ``c**-p`` times the power.

    Raises
    ------
    ValueError
        For p or `lower` out of range, no degrees or an even one, or one beyond double coefficients.

    Notes
    -----
    The error is absolute. For negative p the values are up to ``lower**p``. Below `lower` the
    schedule decreases to 0, as every odd polynomial.

    Examples
    --------
    >>> s = power(0.5, 0.01, [5, 5])
    >>> s.target, round(s.error(), 3)
    ('power(0.5)', 0.066)
    """
    e = number("p", p, -1, 1, ends="()")
    l, _ = check_interval(lower)
    target = f"power({e!r})"
    return _schedule(target, degrees, l, 1.0, "spectral", f"power {e:g} on [{l:g}, 1]", callback)


def smooth_sign(
    delta: float, degrees: Sequence[int], *, callback: Callback | None = None
) -> Schedule:
    """Fit ``x / sqrt(x**2 + delta**2)`` on [0, 1]: singular values far below delta stay small.

    Parameters
    ----------
    delta : float
        Between 0 and 1: the singular value, relative to the largest, that becomes 0.707.
    degrees : sequence of int
        Odd degree of each step.
    callback : callable, optional
        Called as ``callback(k, value)`` after local optimisation k = 1, 2, ..., with the smallest
        worst error so far, of as many steps or fewer. See :class:`polarlib.result.Progress`.

    Returns
    -------
    Schedule
        Of target "smooth_sign(delta)" and normalisation "spectral": for a matrix ``c X`` delta is
        relative to c.

    Raises
    ------
    ValueError
        For `delta` outside (0, 1), no degrees or an even one, or one beyond double coefficients.

    Examples
    --------
    >>> s = smooth_sign(0.1, [5, 5])
    >>> s.target, s.error() < 0.1
    ('smooth_sign(0.1)', True)
    """
    what = f"a number between 0 and 1, and at least {NARROWEST:g}"
    d = number("delta", delta, NARROWEST, 1, ends="[)", what=what)
    target = f"smooth_sign({d!r})"
    return _schedule(target, degrees, 0.0, 1.0, "spectral", f"smooth sign of width {d:g}", callback)


def _schedule(
    target: str,
    degrees: Sequence[int],
    lower: float,
    upper: float,
    normalisation: Normalisation,
    name: str,
    callback: Callback | None,
) -> Schedule:
    report = reporting(callback, "local optimisations")
    checked = tuple(check_degrees(degrees))
    if len(checked) > MOST_FITTED:
        raise ValueError(f"degrees must be at most {MOST_FITTED}, got {len(checked)}")
    steps = fit(target, checked, lower, upper, report)
    refuse_dependent(target, steps, lower, upper)
    return Schedule(
        steps=tuple(tuple(map(float, step)) for step in steps),
        lower=lower,
        upper=upper,
        normalisation=normalisation,
        target=target,
        name=f"{name}, degrees {', '.join(map(str, checked))}",
        source=f"fitted to {target} on [{lower}, {upper}]",
    )
