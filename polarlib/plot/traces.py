"""Traces: errors and singular values, step by step."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.ticker import FixedLocator

from polarlib.arrays.checks import flag
from polarlib.arrays.formats import FORMATS
from polarlib.plot import figures
from polarlib.plot.figures import MARKERS, hidden_note, ink_of, label_axes, require
from polarlib.plot.legends import add_legend
from polarlib.result import Trace

ORTHONORMAL = "1: orthonormal"

LEGEND_MAX_LINES = 8  # up to this number, singular values have a marker and a legend entry each


def convergence(
    t: Trace, ax: Axes | None = None, *, title: str | None = None, legend: bool = True
) -> Axes:
    """Plot orthogonality, backward error and distance of a trace against the products used.

    Parameters
    ----------
    t : Trace
        From :func:`polarlib.measure`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw into; a new figure by default.
    title : str, optional
        Title in place of that derived from the trace; "" for none.
    legend : bool, optional
        Whether to draw a legend.

    Returns
    -------
    matplotlib.axes.Axes
        One line per error. The abscissa is the number of the step if all steps take the same
        products, as in methods that factorise.

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
    title, legend = figures.checked_title(title), flag("legend", legend)
    ax = figures.new_axes(ax)
    view = figures.View(ax)
    who = f"{figures.plain_text(t.method)}, {t.precision}"
    before, prefix = figures.lines_of(ax), figures.told_apart(ax, who)
    by_products = bool(np.all(np.diff(t.matmuls) > 0))
    x = t.matmuls if by_products else np.arange(t.n_steps + 1)
    every = -(-len(x) // figures.MARKED)
    colours = figures.cycle(ax)
    for i, (name, label) in enumerate(figures.QUANTITIES.items()):
        y, k = getattr(t, name), i + before
        lines = ax.plot(
            x,
            y,
            color=colours[k % len(colours)],
            linestyle=figures.LINES[k % len(figures.LINES)],
            marker=MARKERS[k % len(MARKERS)],
            # Coinciding lines remain visible: later ones are smaller.
            markersize=figures.marker_size(8 - 2 * i),
            linewidth=figures.line_width(2.4 - 0.5 * i),
            markevery=every,
            label=prefix + label + hidden_note(y),
            gid=figures.LINE + who,
        )
        figures.draw_zeros(ax, lines[0])
    marker = "one marker a step" if every == 1 else f"one marker every {every} steps"
    unit = f"matrix products ({marker})" if by_products else "step"
    label_axes(ax, unit, "error (dimensionless)", title, figures.title_of(t) if not prefix else "")
    figures.log_ordinate(ax, view, ceiling=figures.CEILING)
    show_steps(ax, view, x)
    # Ticks at steps only: between them there are no values.
    ax.xaxis.set_major_locator(FixedLocator(_ticks(ax, x), nbins=figures.most_ticks(ax)))
    _roundoff(ax, t.precision)
    if legend:
        add_legend(ax)
    return ax


def singular_values(
    t: Trace,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    legend: bool = True,
    colorbar: bool = True,
) -> Axes:
    """Plot the path of every singular value over the steps.

    Parameters
    ----------
    t : Trace
        From :func:`polarlib.measure`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw into; a new figure by default.
    title : str, optional
        Title in place of that derived from the trace; "" for none.
    legend : bool, optional
        Whether to draw a legend.
    colorbar : bool, optional
        Whether a colour bar is added for more than eight paths.

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
    the largest cannot be distinguished from zero. The legend has the number of paths that start
    there, and the ordinate begins above them.

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
            f"{values.shape}); use a trace of polarlib.measure"
        )
    title = figures.checked_title(title)
    legend, colorbar = flag("legend", legend), flag("colorbar", colorbar)
    start, k = values[0], values.shape[1]
    few = k <= LEGEND_MAX_LINES
    ax = figures.new_axes(ax)
    view = figures.View(ax)
    style = figures.LINES[figures.lines_of(ax) % len(figures.LINES)]
    finite = np.isfinite(values).all(axis=1)
    known, steps = values[finite], np.arange(len(values))
    # Zero in double precision, by the threshold of PolarResult.rank.
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
    # A path of one finite value has no visible line.
    marked = few or finite.sum() < 2
    for i, line in enumerate(ax.plot(steps, values)):
        width = figures.line_width(1.6 if few else 0.7)
        line.set(color=cmap(norm(np.nan_to_num(start[i]))), linewidth=width, zorder=2.5)
        line.set(linestyle=style, gid=figures.LINE if i == 0 else None)
        if marked:
            line.set(marker=MARKERS[i % len(MARKERS)], markersize=figures.marker_size(6))
        if few:
            line.set_label(rf"$\sigma_{{{i + 1}}}$, at the start {start[i]:.3g}")
            figures.draw_zeros(ax, line)
    ax.axhline(
        1.0, color=ink_of(ax), linewidth=figures.line_width(0.8), linestyle=":", label=ORTHONORMAL
    )
    ordinate = "singular value\n(input normalised to norm 1)"
    automatic = figures.title_of(t) if view.is_new else ""
    label_axes(ax, "step", ordinate, title, automatic)
    figures.log_ordinate(ax, view, floor=zero)
    if not finite.all():
        ax.axvline(
            int(np.argmin(finite)),
            color=figures.VERMILLION,
            linewidth=figures.line_width(1.5),
            linestyle="--",
            label=f"not finite in {t.precision} from step {np.argmin(finite)} on",
        )
    lost = int((start <= zero).sum())
    if lost:
        ax.plot([], [], " ", label=f"{lost} of {k} start at zero to double precision")
    show_steps(ax, view, steps)
    ax.xaxis.set_major_locator(FixedLocator(_ticks(ax, steps), nbins=figures.most_ticks(ax)))
    bar = colorbar and not few and low < high
    if bar:
        drawn = ax.figure.colorbar(ScalarMappable(norm, cmap), ax=ax)
        size = ax.yaxis.label.get_fontsize()
        drawn.set_label("singular value at the start", color=ink_of(ax), fontsize=size)
        ticks = ax.yaxis.get_tick_params()
        kept = {key: ticks[key] for key in ("labelsize", "length", "width", "pad") if key in ticks}
        drawn.ax.tick_params(colors=ink_of(ax), which="major", **kept)
        drawn.ax.tick_params(colors=ink_of(ax), which="minor", length=0)
        drawn.outline.set_linewidth(figures.setting("axes.linewidth"))
    if legend:
        add_legend(ax, bar=bar)
    return ax


def show_steps(ax: Axes, view: figures.View, x: np.ndarray) -> None:
    """Set the limits to include every step, also those with values that are not finite."""
    low, high = float(x[0]), float(x[-1])
    margin = 0.05 * (high - low) or 0.05
    view.show("x", low - margin, high + margin)


def _ticks(ax: Axes, x: np.ndarray) -> list[float]:
    """Return the steps of this trace and of those that were drawn before."""
    before = [line.get_xdata() for line in ax.get_lines() if figures.is_data(line)]
    return [float(v) for v in np.unique(np.concatenate([x, *before]))]


def _roundoff(ax: Axes, precision: str) -> None:
    """Mark the unit roundoff if the axis reaches it."""
    low, high = ax.get_ylim()
    if precision in FORMATS and low <= FORMATS[precision].unit_roundoff <= high:
        ax.axhline(
            FORMATS[precision].unit_roundoff,
            color=ink_of(ax),
            linewidth=figures.line_width(0.8),
            linestyle=":",
            label=f"unit roundoff of {precision}",
        )
