"""Several traces in one plot: one error over products, or over their cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from polarlib._methods.work import work
from polarlib._renamed import renamed_argument
from polarlib.arrays.checks import choice, flag, items, number, shown
from polarlib.arrays.formats import FORMATS
from polarlib.design.cost_tables import KERNELS, kernel_costs
from polarlib.plot import figures, legends
from polarlib.plot.figures import label_axes, require, shape_text
from polarlib.plot.traces import show_steps
from polarlib.result import Trace

Quantity = Literal["orthogonality", "backward_error", "distance"]


@renamed_argument("figure", "quantity")
def compare(
    traces: Iterable[Trace],
    ax: Axes | None = None,
    *,
    quantity: Quantity = "orthogonality",
    title: str | None = None,
    labels: Sequence[str] | None = None,
    legend: bool = True,
    color: Any = None,
) -> Axes:
    """Plot one quantity of several traces against the matrix products used.

    Parameters
    ----------
    traces : iterable of Trace
        From :func:`polarlib.measure`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw into; a new figure by default.
    quantity : {"orthogonality", "backward_error", "distance"}, optional
        Quantity on the ordinate.
    title : str, optional
        Title in place of that derived from the traces; "" for none.
    labels : sequence of str, optional
        One label per trace. By default the method, number format, form and shape as far as they
        differ; the title has what is common to all.
    legend : bool, optional
        Whether the lines are labelled: in a legend, or at their ends if they are more than six.
    color : color or sequence of colors, optional
        One colour for all lines, or one per line.

    Returns
    -------
    matplotlib.axes.Axes
        One line per trace, with different colours, markers and line styles, also from those of
        lines that an earlier call drew into the same Axes.

    Raises
    ------
    TypeError
        If `traces` is not a list of traces, or `ax` is not an Axes.
    ValueError
        If there is no trace, an unknown quantity, or another number of labels or colours than of
        traces.

    See Also
    --------
    cost : The same, with factorisations on the abscissa.

    Notes
    -----
    Factorisations are not counted as products on the abscissa.

    Examples
    --------
    >>> import numpy as np, polarlib
    >>> a = np.diag([1.0, 0.1])
    >>> ax = compare([polarlib.measure(a, name) for name in ("jordan", "polar_express")])
    >>> [text.get_text() for text in ax.get_legend().get_texts()], ax.get_title()
    (['jordan', 'polar_express'], 'float64, plain form, matrix of 2 × 2')
    """
    found = _checked("compare", traces)
    given = [np.asarray(t.matmuls) for t in found]
    ax, view = _draw(found, given, ax, quantity, title, labels, legend, color, "matrix products")
    ends = np.concatenate(given)
    show_steps(ax, view, np.array([ends.min(), ends.max()]))
    # Whole products; the steps of several schedules end at different ones.
    ax.xaxis.set_major_locator(MaxNLocator(figures.most_ticks(ax), integer=True))
    if legend:
        legends.name_lines(ax)  # at their ends, which the limits decide
    return ax


def cost(
    traces: Iterable[Trace],
    ax: Axes | None = None,
    *,
    quantity: Quantity = "distance",
    seconds: Sequence[float] | None = None,
    costs: Mapping[str, float] | None = None,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    legend: bool = True,
    color: Any = None,
) -> Axes:
    """Plot one quantity of several traces against their cost, factorisations included.

    Parameters
    ----------
    traces : iterable of Trace
        From :func:`polarlib.measure`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw into; a new figure by default.
    quantity : {"distance", "orthogonality", "backward_error"}, optional
        Quantity on the ordinate.
    seconds : sequence of float, optional
        Measured time of each whole run. The abscissa is then in seconds, which are distributed over
        the steps of a run in proportion to their cost or, if that is unknown, evenly.
    costs : mapping, optional
        Cost of kernels in matrix products, as from
        :func:`polarlib.design.cost_tables.kernel_costs`; by default those of NumPy for the format
        and size of each trace.
    title : str, optional
        As for :func:`compare`.
    labels : sequence of str, optional
        As for :func:`compare`.
    legend : bool, optional
        As for :func:`compare`.
    color : color or sequence of colors, optional
        As for :func:`compare`.

    Returns
    -------
    matplotlib.axes.Axes
        One line per trace, from its first step on, over a logarithmic abscissa.

    Raises
    ------
    TypeError
        If `traces` is not a list of traces, or `ax` is not an Axes.
    ValueError
        If there is no trace, or a list has another length; without `seconds` also for a trace whose
        factorisations are unknown: of "zolotarev", "structured", "small", and of rational
        schedules.

    See Also
    --------
    compare : The same over matrix products alone.

    Notes
    -----
    The unit is a product of the m x n matrix with an n x n matrix, n <= m, in the format of the
    trace. Products count as in ``Trace.matmuls``, for every format. The factorisations of each step
    are added, with the costs of the table: the SVD; an inverse (Newton's iteration); a Cholesky
    factorisation and two triangular solves, or two and four (Halley's steps, also if QDWH uses
    Householder's QR, for condition numbers above 1 / eps). For tall matrices a QR factorisation is
    added at the beginning. The result is an estimate; for measured times pass `seconds`.

    Examples
    --------
    >>> import numpy as np, polarlib
    >>> a = np.diag([1.0, 0.5, 0.1])
    >>> ax = cost([polarlib.measure(a, name) for name in ("svd", "newton", "polar_express")])
    >>> ax.get_xlabel(), [len(line.get_xdata()) for line in ax.get_lines()][0]
    ('cost in matrix products (factorisations by table)', 1)
    """
    checked = _checked("cost", traces)
    x = [_cost(t, costs, needed=seconds is None) for t in checked]
    unit = "cost in matrix products (factorisations by table)"
    if seconds is not None:
        unit = "seconds of the run (steps in proportion to their cost)"
        whole = items("seconds", seconds, f"{len(checked)} numbers", len(checked), len(checked))
        times = [number("seconds", value, 0, math.inf, ends="()") for value in whole]
        x = [time * c / c[-1] for time, c in zip(times, x, strict=True)]
    ax, view = _draw(checked, x, ax, quantity, title, labels, legend, color, unit, first=1)
    ends = np.concatenate([v[1:] for v in x])
    low, high = (float(ends.min()), float(ends.max())) if len(ends) else (1.0, 1.0)
    view.show("x", low / 1.25, high * 1.25, log=True)
    figures.number_decades(ax)
    if legend:
        legends.name_lines(ax)  # at their ends, which the limits decide
    return ax


def _cost(t: Trace, costs: Mapping[str, float] | None, *, needed: bool) -> np.ndarray:
    """Return the cost after each step, or the number of steps if it is unknown and not needed."""
    if costs is None:
        fmt = FORMATS.get(t.precision)
        costs = kernel_costs("numpy", fmt.carrier if fmt else "float64", min(t.shape))
    elif not isinstance(costs, Mapping):
        raise TypeError(f"costs must be a mapping of kernels to numbers, got {shown(costs)}")
    try:
        known = {k: number("costs", costs[k], 0, math.inf, ends="[)") for k in KERNELS}
    except KeyError as error:
        raise ValueError(
            f"costs must have {error.args[0]!r}; use design.cost_tables.kernel_costs"
        ) from None
    found = work(t, known)
    if found is not None and (len(found) < 2 or found[-1] > 0):
        return found
    if needed:
        raise ValueError(
            f"cost: the trace of {t.method!r} does not determine its factorisations; time the run "
            "and pass seconds=, or use compare"
        )
    return np.arange(t.n_steps + 1, dtype=float)


def _checked(function: str, traces: Any) -> list[Trace]:
    if isinstance(traces, Trace | str) or not isinstance(traces, Iterable):
        raise TypeError(
            f"{function} takes a list of Trace, got {figures.type_and_value(traces)}; for one "
            "trace use convergence"
        )
    found = items("traces", traces, "a list of at least one Trace")
    for t in found:
        require(t, Trace, function, "a list of Trace, which polarlib.measure makes")
    return found


def _draw(
    traces: Sequence[Trace],
    abscissas: Sequence[np.ndarray],
    ax: Axes | None,
    quantity: str,
    title: str | None,
    labels: Any,
    legend: bool,
    color: Any,
    unit: str,
    *,
    first: int = 0,
) -> tuple[Axes, figures.View]:
    """Draw a line for each trace, from step `first` on, and write the axes."""
    quantity = choice("quantity", quantity, figures.QUANTITIES)
    title = figures.checked_title(title)
    flag("legend", legend)
    own, common = _names(traces)
    named = legends.checked_labels(labels, len(traces))
    ax = figures.new_axes(ax)
    view, start = figures.View(ax), figures.lines_of(ax)
    colours = legends.checked_colours(ax, color, len(traces), start)
    for i, (t, x, colour) in enumerate(zip(traces, abscissas, colours, strict=True)):
        y = np.asarray(getattr(t, quantity))[first:]
        every = -(-len(t.matmuls) // figures.MARKED)
        label = named[i] if named else own[i]
        figures.draw_steps(ax, x[first:], y, colour, start + i, label, every)
    ordinate = figures.QUANTITIES[quantity].replace(" $", " (dimensionless)\n$")
    label_axes(ax, unit, ordinate, title, common if view.is_new else "")
    figures.log_ordinate(ax, view, ceiling=figures.CEILING)
    return ax, view


def _names(traces: Sequence[Trace]) -> tuple[list[str], str]:
    """Return what distinguishes each trace from the others, and what is common to all."""
    # The text of each property in a label and in a title.
    parts: tuple[tuple[Callable[[Trace], str], str], ...] = (
        (lambda t: figures.plain_text(t.method), "{}"),
        (lambda t: t.precision + " (simulated)" * t.simulated, "{}"),
        (lambda t: t.form, "{} form"),
        (shape_text, "matrix of {}"),
    )
    table = [[part(t) for part, _ in parts] for t in traces]
    # A trace without a property, such as the form of methods, is distinguished by its method.
    differ = [len(set(column) - {""}) > 1 for column in zip(*table, strict=True)]
    if not any(differ):
        differ[0] = True
    own = [", ".join(v for v, d in zip(row, differ, strict=True) if d and v) for row in table]
    description = zip(table[0], differ, parts, strict=True)
    return own, ", ".join(words.format(v) for v, d, (_, words) in description if not d and v)
