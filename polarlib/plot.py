"""Pictures: a trace or a schedule in, matplotlib Axes out.

Every function draws into the Axes that it is given, or into a new figure on a white ground, and
returns the Axes::

    t = polarlib.measure(a, "polar_express", precision="bfloat16")
    ax = plot.convergence(t)
    plot.save(ax, "convergence.pdf")

Nothing global is touched: no pyplot, no backend, no rcParams. A figure made here is therefore
unknown to ``pyplot.show()`` and is freed like any other object; in a notebook the returned Axes and
their ``.figure`` show themselves. For a window, or several pictures in one figure, bring the Axes::

    figure, axes = pyplot.subplots(1, 2, layout="constrained")
    plot.convergence(t, ax=axes[0])
    plot.singular_values(t, ax=axes[1])

The legend stands below the Axes where the figure has a layout engine that makes room for it, and
inside elsewhere. What a logarithmic axis cannot show (exact zeros, values that are not finite) is
said in the legend.
"""

from __future__ import annotations

import io
import os
import reprlib
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from polarlib._schedule import Schedule
from polarlib.formats import FORMATS, nearest, odd_value
from polarlib.result import Trace, write_whole

__all__ = ["compare", "convergence", "polynomial", "save", "singular_values"]

# Okabe and Ito, Color Universal Design (2008), without the yellow, which is faint on white.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = COLOURS = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
# Seven colours, eight markers and five line styles come together again after 280 lines.
MARKERS = "osD^vPX*"
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (7, 2, 1, 2, 1, 2)))
INK = "#222222"

FIGURES = {
    "orthogonality": r"orthogonality $\|X^H X - I\|_F / \sqrt{k}$",
    "backward_error": r"backward error $\|A - X H\|_F / \|A\|_F$",
    "distance": r"distance $\|X - U\|_F / \sqrt{k}$",
}

# The sizes below were chosen by eye.
WIDTH, HEIGHT, LEGEND_ROW = 7.0, 4.4, 0.21  # inches
LEGEND_DROP = 40  # points from the axes down to the legend: tick labels and axis label
FEW = 8  # singular values that get a marker and a line in the legend each
MARKED = 30  # steps that get a marker each
CEILING = 1e3  # an error above it says no more than that the iteration diverged


class _Figure(Figure):
    """A figure that notebooks show without a backend."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=100, facecolor="auto", edgecolor="auto")
        return file.getvalue()


class _Axes(Axes):
    """Axes that notebooks show as their whole figure."""

    def _repr_png_(self) -> bytes:
        return _root(self)._repr_png_()


def convergence(t: Trace, ax: Axes | None = None) -> Axes:
    """Plot orthogonality, backward error and distance of a trace against the products spent.

    Parameters
    ----------
    t : Trace
        From :func:`polarlib.measure`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        One line a figure. The abscissa is the step where products do not tell the steps apart,
        as in methods that factorise.

    Raises
    ------
    TypeError
        If `t` is not a Trace or `ax` not an Axes.

    Examples
    --------
    >>> import numpy as np, polarlib
    >>> ax = convergence(polarlib.measure(np.diag([1.0, 0.1]), "polar_express"))
    >>> ax.get_xlabel(), ax.get_yscale(), len(ax.get_lines())
    ('matrix products (one marker a step)', 'log', 3)
    """
    _require(t, Trace, "convergence", "a Trace, which polarlib.measure makes")
    ax = _axes(ax, legend_rows=4)
    by_products = bool(np.all(np.diff(t.matmuls) > 0))
    x = t.matmuls if by_products else np.arange(t.steps + 1)
    every = -(-len(x) // MARKED)
    for i, (name, label) in enumerate(FIGURES.items()):
        y = getattr(t, name)
        ax.plot(
            x,
            y,
            color=(BLUE, VERMILLION, GREEN)[i],
            linestyle=LINES[i],
            marker=MARKERS[i],
            # Coinciding lines stay visible: the later, the smaller.
            markersize=8 - 2 * i,
            linewidth=2.4 - 0.5 * i,
            markevery=every,
            label=label + _note(y),
        )
    marker = "one marker a step" if every == 1 else f"one marker every {every} steps"
    unit = f"matrix products ({marker})" if by_products else "step"
    _label(ax, unit, "error (dimensionless)", _title(t))
    _log_errors(ax)
    _integers(ax)
    _roundoff(ax, t.precision)
    _legend(ax)
    return ax


def singular_values(t: Trace, ax: Axes | None = None) -> Axes:
    """Plot the path of every singular value over the steps.

    Parameters
    ----------
    t : Trace
        From :func:`polarlib.measure`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default. More than eight paths add a colour bar beside it.

    Returns
    -------
    matplotlib.axes.Axes
        One line a singular value, coloured by the value that it starts from, over a band from the
        smallest to the largest. The step at which the iterate ceased to be finite is marked.

    Raises
    ------
    TypeError
        If `t` is not a Trace or `ax` not an Axes.
    ValueError
        If the trace has no singular values.

    Notes
    -----
    A trace is taken in double precision, where a singular value below 2e-16 of the largest cannot
    be told from zero: such paths are drawn, but the axis does not reach down to them.

    Examples
    --------
    >>> import numpy as np, polarlib
    >>> ax = singular_values(polarlib.measure(np.diag([1.0, 0.1]), "polar_express"))
    >>> ax.get_xlabel(), ax.get_yscale(), len(ax.get_lines())
    ('step', 'log', 2)
    """
    _require(t, Trace, "singular_values", "a Trace, which polarlib.measure makes")
    values = np.asarray(t.singular_values, dtype=float)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(
            f"singular_values: the trace of {t.method!r} has no singular values (an array of shape "
            f"{values.shape}); take it with polarlib.measure"
        )
    start, k = values[0], values.shape[1]
    ax = _axes(ax, legend_rows=3 + -(-k // 2) * (k <= FEW))
    finite = np.isfinite(values).all(axis=1)
    known = values[finite]
    floor = np.finfo(float).eps * (known[0].max() if known.size else 1.0) or 1.0
    coloured = np.where(np.isfinite(start), np.maximum(start, floor), floor)
    # The light end of viridis is faint on white.
    cmap = ListedColormap(colormaps["viridis"](np.linspace(0, 0.9, 256)))
    norm = LogNorm(coloured.min(), coloured.max())
    steps = np.arange(len(values))
    if known.size:
        ax.fill_between(
            steps[finite],
            known.min(axis=1),
            known.max(axis=1),
            color=SKY,
            alpha=0.2,
            linewidth=0,
            label="from the smallest to the largest",
        )
    # A path of one finite value has no line to be seen by.
    marked = k <= FEW or finite.sum() < 2
    lines = ax.plot(steps, values, linewidth=1.6 if k <= FEW else 0.7)
    for i, line in enumerate(lines):
        line.set(color=cmap(norm(coloured[i])), zorder=2.5)
        if marked:
            line.set(marker=MARKERS[i % len(MARKERS)], markersize=5)
        if k <= FEW:
            line.set_label(rf"$\sigma_{{{i + 1}}}$, at the start {start[i]:.3g}")
    _label(ax, "step", "singular value (input normalised to norm 1)", _title(t))
    ax.set_yscale("log")
    _integers(ax)
    ax.axhline(1.0, color=_ink(ax), linewidth=0.8, linestyle=":", label="1: orthonormal")
    return ax


def polynomial(s: Schedule, ax: Axes | None = None) -> Axes:
    raise NotImplementedError


