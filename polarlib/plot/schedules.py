"""Schedules as functions."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from polarlib._schedules.images import odd_value, turning_points
from polarlib._schedules.schedule import Schedule
from polarlib._schedules.targets import target_value
from polarlib.arrays.settings import ignore_float_errors
from polarlib.plot import figures
from polarlib.plot.figures import BLUE, ink_of, label_axes, require

BETWEEN = 16  # samples between two turning points of a composition
BISECTIONS = 60  # more than a double has bits


@ignore_float_errors
def polynomial(s: Schedule, ax: Axes | None = None) -> Axes:
    """Plot what a schedule makes of a singular value: its composition s(x).

    Parameters
    ----------
    s : Schedule
        From :func:`polarlib.schedule`, :mod:`polarlib.design` or your own.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        s(x / input_safety), x a singular value of the normalised input, and, faintly, the
        compositions of its first steps, from a tenth of its lower bound to a little above its
        upper bound or, where that is near, its divergence limit; a shaded band
        within its error of its target on its interval, and dots where it is as far from it as that:
        the points of equioscillation, if it is a best composition.

    Raises
    ------
    TypeError
        If `s` is not a Schedule or `ax` not an Axes.

    Examples
    --------
    >>> import polarlib
    >>> ax = polynomial(polarlib.schedule("jordan"))
    >>> ax.get_title(), ax.get_xscale()
    ('jordan: 5 steps, 15 matrix products', 'log')
    """
    require(s, Schedule, "polynomial", "a Schedule, such as polarlib.schedule('polar_express')")
    ax = figures.new_axes(ax, legend_rows=4)
    divisor, error = s.input_divisor, s.error()
    limit = s.divergence_limit * divisor  # as a singular value before the division
    near = limit <= figures.LIMIT_VISIBLE_UP_TO * s.upper
    right = 1.2 * limit if near and limit > s.upper else 1.05 * s.upper
    left = s.lower / 10
    # The last decade holds most of the turning points.
    x = np.linspace(right / 10 if left else 0, right, 2000)
    if left:
        x = np.concatenate([np.geomspace(left, right, 4000), x])
    x = np.union1d(x, [s.lower, s.upper])
    inside = (x >= s.lower) & (x <= s.upper)
    aim = target_value(s.target, x[inside])
    named = "1" if s.target == "polar" else s.target
    ax.fill_between(
        x[inside],
        aim - error,
        aim + error,
        color=figures.SKY,
        alpha=0.3,
        linewidth=0,
        label=f"within {error:.3g} of {named} on [{s.lower:.3g}, {s.upper:.3g}]",
    )
    # Step by step, not by s.truncate(k): a part may swing wider than a whole schedule may.
    top, last, y = float(aim.max()) + error, len(s), x / divisor
    value = "s(x)" if divisor == 1 else f"s(x / {divisor:g})"
    for k, step in enumerate(s.steps, 1):
        y = odd_value(step, y, s.stride)
        top = max(top, float(y[inside].max()))
        # A curve far outside the picture is clipped, because drawing it would overflow.
        shown = np.where(np.abs(y) < figures.CLIP_ABOVE, y, np.nan)
        if k == last:
            label = f"{value}, slope {s.slope / divisor:.4g} at 0"
            ax.plot(x, shown, color=BLUE, linewidth=1.8, label=label)
        else:
            label = f"after {k} to {last - 1} steps" if last > 2 else "after 1 step"
            ax.plot(
                x,
                shown,
                color=ink_of(ax),
                alpha=0.15 + 0.35 * k / last,
                linewidth=0.9,
                label=label if k == 1 else None,
            )
    worst = _farthest(s, error)
    if len(worst):
        at = f"{len(worst)} {'point' if len(worst) == 1 else 'points'}"
        label = f"worst error, at {at}"
        ax.plot(worst, s(worst / divisor), ".", color=BLUE, markersize=5, label=label)
    if limit < np.inf:
        beyond = f"divergence limit {figures.above_one(limit)}"
        if near:
            ax.axvline(limit, color=figures.VERMILLION, linewidth=1.5, linestyle="--", label=beyond)
        else:
            ax.plot([], [], " ", label=beyond)
    root = f"root x = λ^(1/{s.stride}) of an eigenvalue of the normalised input"
    label_axes(
        ax,
        "singular value x of the normalised input" if s.stride == 2 else root,
        value,
        f"{s.name}: {last} {'step' if last == 1 else 'steps'}, {s.matmuls} matrix products",
    )
    if left:
        ax.set_xscale("log")
    ax.set_xlim(left, right)
    ax.set_ylim(0, 1.05 * top)
    figures.add_legend(ax)
    return ax


def _farthest(s: Schedule, error: float) -> np.ndarray:
    """Points of the interval where the error is the worst one; none where they are too many."""
    x = np.array(s.divided(s.lower, s.upper, extended=False))
    for k, step in enumerate(s.steps):
        y = x
        for before in s.steps[:k]:
            y = odd_value(before, y, s.stride)
        # Between neighbours the steps before are monotone: where they meet a turning point of this
        # one, the composition turns.
        turns = [_meet(s, k, x, t) for t in turning_points(step, s.stride, (y.min(), y.max()))]
        x = np.unique(np.concatenate([x, *turns]))
        if len(x) > figures.MARKERS_MAX:
            return x[:0]
    between = s.target != "polar"
    if between:  # the worst differences from a curve need not be where s turns
        x = np.unique(np.linspace(x[:-1], x[1:], BETWEEN))
    e = np.abs(s(x) - target_value(s.target, x * s.input_divisor))
    far = e >= (1 - figures.EXTREMUM_TOLERANCE) * error
    if between:
        around = np.concatenate([[-np.inf], e, [-np.inf]])
        far &= (e >= around[:-2]) & (e >= around[2:])
    worst: np.ndarray = x[far] * s.input_divisor
    return worst


def _meet(s: Schedule, k: int, x: np.ndarray, t: float) -> np.ndarray:
    """Where the first k steps take the value t, by bisection between neighbours."""

    def value(x: np.ndarray) -> np.ndarray:
        for step in s.steps[:k]:
            x = odd_value(step, x, s.stride)
        return x - t

    ends = value(x)
    inside = ends[:-1] * ends[1:] < 0
    a: np.ndarray = x[:-1][inside]
    b, sign = x[1:][inside], np.sign(ends[:-1][inside])
    for _ in range(BISECTIONS):
        middle = (a + b) / 2
        same = np.sign(value(middle)) == sign
        a, b = np.where(same, middle, a), np.where(same, b, middle)
    return a
