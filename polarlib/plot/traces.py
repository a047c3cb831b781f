"""Traces: errors and singular values, step by step."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.ticker import FixedLocator, MaxNLocator

from polarlib._renamed import renamed_argument
from polarlib.arrays.checks import choice, items
from polarlib.arrays.formats import FORMATS
from polarlib.plot import figures
from polarlib.plot.figures import MARKERS, hidden_note, ink_of, label_axes, require, shape_text
from polarlib.result import Trace

Quantity = Literal["orthogonality", "backward_error", "distance"]

LEGEND_MAX_LINES = 8  # up to so many singular values have a marker and a legend entry each


def convergence(t: Trace, ax: Axes | None = None) -> Axes:
    """Plot orthogonality, backward error and distance of a trace against the products used.

    Parameters
    ----------
    t : Trace
        From :func:`polarlib.measure`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        One line per error. The abscissa is the step where steps do not differ in products, as in
        methods that factorise.

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
    require(t, Trace, "convergence", "a Trace, which polarlib.measure makes")
    ax = figures.new_axes(ax, legend_rows=4)
    by_products = bool(np.all(np.diff(t.matmuls) > 0))
    x = t.matmuls if by_products else np.arange(t.n_steps + 1)
    every = -(-len(x) // figures.MARKED)
    for i, (name, label) in enumerate(figures.QUANTITIES.items()):
        y = getattr(t, name)
        lines = ax.plot(
            x,
            y,
            color=(figures.BLUE, figures.VERMILLION, figures.GREEN)[i],
            linestyle=figures.LINES[i],
            marker=MARKERS[i],
            # Coinciding lines stay visible: the later, the smaller.
            markersize=8 - 2 * i,
            linewidth=2.4 - 0.5 * i,
            markevery=every,
            label=label + hidden_note(y),
        )
        figures.draw_zeros(ax, lines[0])
    marker = "one marker a step" if every == 1 else f"one marker every {every} steps"
    unit = f"matrix products ({marker})" if by_products else "step"
    label_axes(ax, unit, "error (dimensionless)", figures.title_of(t))
    figures.log_ordinate(ax, ceiling=figures.CEILING)
    _abscissa(ax, x)
    # Ticks at steps alone: between them there are no values.
    ax.xaxis.set_major_locator(FixedLocator(x.tolist(), nbins=12))
    _roundoff(ax, t.precision)
    figures.add_legend(ax)
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
        One line per singular value, coloured by the value that it starts from, over a band from the
        smallest to the largest. The step at which the iterate ceased to be finite is marked.

    Raises
    ------
    TypeError
        If `t` is not a Trace or `ax` not an Axes.
    ValueError
        If the trace has no singular values.

    Notes
    -----
    A trace is taken in double precision, where a singular value below ``max(m, n) * 2.2e-16`` of
    the largest cannot be distinguished from zero. The legend counts the paths that start there, and
    the axis does not reach down to them.

    Examples
    --------
    >>> import numpy as np, polarlib
    >>> ax = singular_values(polarlib.measure(np.diag([1.0, 0.1]), "polar_express"))
    >>> ax.get_xlabel(), ax.get_yscale(), len(ax.get_lines())  # two paths, and a line at 1
    ('step', 'log', 3)
    """
    require(t, Trace, "singular_values", "a Trace, which polarlib.measure makes")
    values = np.asarray(t.singular_values, dtype=float)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(
            f"singular_values: the trace of {t.method!r} has no singular values (an array of shape "
            f"{values.shape}); take it with polarlib.measure"
        )
    start, k = values[0], values.shape[1]
    few = k <= LEGEND_MAX_LINES
    ax = figures.new_axes(ax, legend_rows=3 + few * -(-k // 2))
    finite = np.isfinite(values).all(axis=1)
    known, steps = values[finite], np.arange(len(values))
    # Zero to double precision, as PolarResult.rank has it.
    zero = max(t.shape) * np.finfo(float).eps * start[np.isfinite(start)].max(initial=0.0)
    kept = start[np.isfinite(start) & (start > zero)]
    low, high = (kept.min(), kept.max()) if kept.size else (1.0, 1.0)
    # The light end of viridis is faint on white.
    cmap = ListedColormap(colormaps["viridis"](np.linspace(0, 0.9, 256)))
    norm = LogNorm(low, high, clip=True)
    if known.size:
        ax.fill_between(
            steps[finite],
            known.min(axis=1),
            known.max(axis=1),
            color=figures.SKY,
            alpha=0.2,
            linewidth=0,
            label="from the smallest to the largest",
        )
    # A path of one finite value has no line to be seen by.
    marked = few or finite.sum() < 2
    for i, line in enumerate(ax.plot(steps, values, linewidth=1.6 if few else 0.7)):
        line.set(color=cmap(norm(np.nan_to_num(start[i]))), zorder=2.5)
        if marked:
            line.set(marker=MARKERS[i % len(MARKERS)], markersize=6)
        if few:
            line.set_label(rf"$\sigma_{{{i + 1}}}$, at the start {start[i]:.3g}")
            figures.draw_zeros(ax, line)
    ax.axhline(1.0, color=ink_of(ax), linewidth=0.8, linestyle=":", label="1: orthonormal")
    label_axes(ax, "step", "singular value\n(input normalised to norm 1)", figures.title_of(t))
    figures.log_ordinate(ax, floor=zero)
    if not finite.all():
        ax.axvline(
            int(np.argmin(finite)),
            color=figures.VERMILLION,
            linewidth=1.5,
            linestyle="--",
            label=f"not finite in {t.precision} from step {np.argmin(finite)} on",
        )
    lost = int((start <= zero).sum())
    if lost:
        ax.plot([], [], " ", label=f"{lost} of {k} start at zero to double precision")
    _abscissa(ax, steps)
    ax.xaxis.set_major_locator(FixedLocator(steps.tolist(), nbins=12))
    if not few and low < high:
        bar = ax.figure.colorbar(ScalarMappable(norm, cmap), ax=ax)
        bar.set_label(
            "singular value at the start",
            color=ink_of(ax),
            fontsize=ax.yaxis.label.get_fontsize(),
        )
        bar.ax.tick_params(colors=ink_of(ax), which="both")
    figures.add_legend(ax, columns=2 if few and k > 2 else 1)
    return ax


@renamed_argument("figure", "quantity")
def compare(
    traces: Iterable[Trace],
    ax: Axes | None = None,
    *,
    quantity: Quantity = "orthogonality",
) -> Axes:
    """Plot one quantity of several traces against the matrix products used.

    Parameters
    ----------
    traces : iterable of Trace
        From :func:`polarlib.measure`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.
    quantity : {"orthogonality", "backward_error", "distance"}, optional
        The ordinate.

    Returns
    -------
    matplotlib.axes.Axes
        One line per trace; colours, markers and line styles all differ.

    Raises
    ------
    TypeError
        If `traces` does not hold traces, or `ax` is not an Axes.
    ValueError
        If there is no trace, or no such quantity.

    Notes
    -----
    Factorisations are not products: the work of a method that factorises is not on the axis.

    Examples
    --------
    >>> import numpy as np, polarlib
    >>> a = np.diag([1.0, 0.1])
    >>> ax = compare([polarlib.measure(a, name) for name in ("jordan", "polar_express")])
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['jordan, float64, plain', 'polar_express, float64, plain']
    """
    if isinstance(traces, Trace | str) or not isinstance(traces, Iterable):
        raise TypeError(
            f"compare takes a list of Trace, got {figures.type_and_value(traces)}; for one trace "
            "use convergence"
        )
    traces = items("traces", traces, "a list of at least one Trace")
    for t in traces:
        require(t, Trace, "compare", "a list of Trace, which polarlib.measure makes")
    quantity = choice("quantity", quantity, figures.QUANTITIES)
    several = len({t.shape for t in traces}) > 1
    labels = []
    for t in traces:
        simulated = " (simulated)" if t.simulated else ""
        shape = f", {shape_text(t)}" if several else ""
        form = f", {t.form}" if t.form else ""
        text = f"{figures.plain_text(t.method)}, {t.precision}{simulated}{form}{shape}"
        labels.append(textwrap.fill(text + hidden_note(getattr(t, quantity)), 80))
    columns = 2 if len(labels) > 3 and max(map(len, labels)) <= 34 else 1
    rows = sum(label.count("\n") + 1 for label in labels)
    ax = figures.new_axes(ax, legend_rows=-(-rows // columns))
    colours = (ink_of(ax), *figures.COLOURS)
    for i, (t, label) in enumerate(zip(traces, labels, strict=True)):
        lines = ax.plot(
            t.matmuls,
            getattr(t, quantity),
            color=colours[i % len(colours)],
            linestyle=figures.LINES[i % len(figures.LINES)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=6,
            markevery=-(-len(t.matmuls) // figures.MARKED),
            linewidth=1.5,
            label=label,
        )
        figures.draw_zeros(ax, lines[0])
        _abscissa(ax, t.matmuls)
    ordinate = figures.QUANTITIES[quantity].replace(" $", " (dimensionless)\n$")
    label_axes(
        ax, "matrix products", ordinate, "" if several else f"matrix of {shape_text(traces[0])}"
    )
    figures.log_ordinate(ax, ceiling=figures.CEILING)
    # Whole products; the steps of several schedules end at different ones.
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    figures.add_legend(ax, columns)
    return ax


def _abscissa(ax: Axes, x: np.ndarray) -> None:
    """Show every step, also those whose figures are not finite."""
    ax.update_datalim([(x[0], 1.0), (x[-1], 1.0)], updatey=False)
    ax.autoscale_view(scaley=False)


def _roundoff(ax: Axes, precision: str) -> None:
    """Mark the unit roundoff if the axis reaches it."""
    low, high = ax.get_ylim()
    if precision in FORMATS and low <= FORMATS[precision].unit_roundoff <= high:
        ax.axhline(
            FORMATS[precision].unit_roundoff,
            color=ink_of(ax),
            linewidth=0.8,
            linestyle=":",
            label=f"unit roundoff of {precision}",
        )
