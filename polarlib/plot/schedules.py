"""Schedules as functions."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from polarlib._schedules.images import odd_value
from polarlib._schedules.schedule import Schedule
from polarlib._schedules.targets import target_value
from polarlib.arrays.checks import flag
from polarlib.arrays.settings import ignore_float_errors
from polarlib.plot import figures
from polarlib.plot.extrema import farthest
from polarlib.plot.figures import ink_of, label_axes, require
from polarlib.plot.legends import add_legend, checked_colours


@ignore_float_errors
def polynomial(
    s: Schedule,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    legend: bool = True,
    color: Any = None,
) -> Axes:
    """Plot the composition s(x) of a schedule over the singular values.

    Parameters
    ----------
    s : Schedule
        Schedule of polynomial or rational steps.
    ax : matplotlib.axes.Axes, optional
        Axes to draw into; a new figure by default. A further schedule in the same Axes has another
        colour and line style; the legend then has one entry per schedule.
    title : str, optional
        Title in place of that derived from the schedule; "" for none.
    legend : bool, optional
        Whether to draw a legend.
    color : color, optional
        Colour of the curve; by default the next of the cycle.

    Returns
    -------
    matplotlib.axes.Axes
        With s(x / input_safety) for x a singular value of the normalised input, and, faint, the
        compositions of its first steps. The abscissa is from a tenth of the lower bound to a little
        above the upper bound or the divergence limit, if that is near. A shaded band has the width
        of the error about the target on the interval. Dots mark the points of worst error: those of
        equioscillation, if s is a best composition.

    Raises
    ------
    TypeError
        If `s` is not a Schedule or `ax` not an Axes.
    ValueError
        If `title` is not text or `color` not a colour.

    See Also
    --------
    error : The difference from 1 on a logarithmic axis, for several schedules.

    Examples
    --------
    >>> import polarlib
    >>> ax = polynomial(polarlib.schedule("jordan"))
    >>> ax.get_title(), ax.get_xscale()
    ('jordan: 5 steps, 15 matrix products', 'log')
    """
    require(s, Schedule, "polynomial", "a Schedule, such as polarlib.schedule('polar_express')")
    title, legend = figures.checked_title(title), flag("legend", legend)
    ax = figures.new_axes(ax)
    view, before = figures.View(ax), figures.lines_of(ax)
    (colour,) = checked_colours(ax, color, 1, before)
    drawn = _Drawn(s)
    _band(ax, s, drawn, colour if before else figures.SKY)
    value = "s(x)" if s.input_divisor == 1 else f"s(x / {s.input_divisor:g})"
    top = _curves(ax, s, drawn, colour, value, figures.LINES[before % len(figures.LINES)])
    worst = farthest(s, drawn.error)
    if len(worst):
        at = f"{len(worst)} {'point' if len(worst) == 1 else 'points'}"
        size = figures.marker_size(5)
        y = s(worst / s.input_divisor)
        ax.plot(worst, y, ".", color=colour, markersize=size, label=f"worst error, at {at}")
    if drawn.limit < np.inf:
        beyond = f"divergence limit {figures.above_one(drawn.limit)}"
        if drawn.near:
            red, width = figures.VERMILLION, figures.line_width(1.5)
            ax.axvline(drawn.limit, color=red, linewidth=width, linestyle="--", label=beyond)
        else:
            ax.plot([], [], " ", label=beyond)
    root = f"root x = λ^(1/{s.stride}) of an eigenvalue of the normalised input"
    last = len(s)
    steps = f"{last} {'step' if last == 1 else 'steps'}"
    automatic = f"{s.name}: {steps}, {s.matmuls} matrix products" if not before else ""
    what = "singular value x of the normalised input" if s.stride == 2 else root
    label_axes(ax, what, value if not before else "s(x)", title, automatic)
    view.show("x", drawn.left, drawn.right, log=drawn.left > 0)
    view.show("y", 0, 1.05 * top)
    if before:
        _one_entry_each(ax)
    if legend:
        add_legend(ax)
    return ax


class _Drawn:
    """Interval and points of a picture of a schedule."""

    def __init__(self, s: Schedule) -> None:
        self.error = s.error()
        self.limit = s.divergence_limit * s.input_divisor  # before the division
        self.near = self.limit <= figures.LIMIT_VISIBLE_UP_TO * s.upper
        self.right = 1.2 * self.limit if self.near and self.limit > s.upper else 1.05 * s.upper
        self.left = s.lower / 10
        # The last decade has most of the turning points.
        x = np.linspace(self.right / 10 if self.left else 0, self.right, 2000)
        if self.left:
            x = np.concatenate([np.geomspace(self.left, self.right, 4000), x])
        self.x = np.union1d(x, [s.lower, s.upper])
        self.inside = (self.x >= s.lower) & (self.x <= s.upper)
        self.aim = target_value(s.target, self.x[self.inside])


def _band(ax: Axes, s: Schedule, drawn: _Drawn, colour: Any) -> None:
    """Shade the band of the worst error about the target."""
    named = "1" if s.target == "polar" else s.target
    ax.fill_between(
        drawn.x[drawn.inside],
        drawn.aim - drawn.error,
        drawn.aim + drawn.error,
        color=colour,
        alpha=0.3 if colour == figures.SKY else 0.15,
        linewidth=0,
        label=f"within {drawn.error:.3g} of {named} on [{s.lower:.3g}, {s.upper:.3g}]",
    )


def _curves(ax: Axes, s: Schedule, drawn: _Drawn, colour: Any, value: str, style: Any) -> float:
    """Draw the composition and those of the first steps; the largest value on the interval."""
    # Step by step, not by s.truncate(k): the first steps alone may leave (0, 2).
    top, last, y = float(drawn.aim.max()) + drawn.error, len(s), drawn.x / s.input_divisor
    for k, step in enumerate(s.steps, 1):
        y = odd_value(step, y, s.stride)
        top = max(top, float(y[drawn.inside].max()))
        # A curve far outside the plot is clipped, because drawing it would overflow.
        shown = np.where(np.abs(y) < figures.CLIP_ABOVE, y, np.nan)
        if k == last:
            label = f"{value}, slope {s.slope / s.input_divisor:.4g} at 0"
            width = figures.line_width(1.8)
            (line,) = ax.plot(
                drawn.x, shown, color=colour, linewidth=width, linestyle=style, label=label
            )
            line.set_gid(figures.LINE + figures.plain_text(s.name))
        else:
            label = f"after {k} to {last - 1} steps" if last > 2 else "after 1 step"
            ax.plot(
                drawn.x,
                shown,
                color=ink_of(ax),
                alpha=0.15 + 0.35 * k / last,
                linewidth=figures.line_width(0.9),
                label=label if k == 1 else None,
            )
    return top


def _one_entry_each(ax: Axes) -> None:
    """Leave one entry per schedule in the legend, with its name."""
    for artist in (*ax.get_lines(), *ax.collections):
        gid, label = str(artist.get_gid()), str(artist.get_label())
        if not gid.startswith(figures.LINE):
            artist.set_label("_nolegend_")
        elif not label.startswith((name := gid.removeprefix(figures.LINE)) + ": "):
            artist.set_label(f"{name}: {label}")
