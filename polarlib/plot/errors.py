"""Errors of schedules: over the singular values, and over the products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from polarlib._schedules.bounds import enclosed
from polarlib._schedules.products import matmuls as products_of
from polarlib._schedules.schedule import Schedule
from polarlib.arrays.checks import count, flag, items, number
from polarlib.arrays.settings import ignore_float_errors
from polarlib.plot import figures, legends
from polarlib.plot.extrema import errors_at, points_of
from polarlib.plot.figures import label_axes, require

BETWEEN = 24  # samples between two turning points
SAMPLES = 2000  # further points of the abscissa
DEPTH = 10.0  # zeros of the error are drawn down to the smallest of its peaks over this
MOST_PRODUCTS = 300
LEAST_ERROR = 1e-38  # of a logarithmic ordinate: that of 40 digits


@ignore_float_errors
def error(
    schedules: Schedule | Iterable[Schedule],
    ax: Axes | None = None,
    *,
    lower: float | None = None,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    legend: bool = True,
    color: Any = None,
) -> Axes:
    """Plot the error |1 - s(x)| of schedules over the singular values, both logarithmic.

    Parameters
    ----------
    schedules : Schedule or iterable of Schedule
        Polynomial or rational; all of one target.
    ax : matplotlib.axes.Axes, optional
        Axes to draw into; a new figure by default.
    lower : float, optional
        Lower end of the abscissa; by default the smallest of the schedules' lower bounds l.
    title : str, optional
        Title; none by default.
    labels : sequence of str, optional
        One label per schedule; by default names and worst errors on [l, upper].
    legend : bool, optional
        Whether the lines are labelled: in a legend, or at their ends if they are more than six.
    color : color or sequence of colors, optional
        One colour for all lines, or one per line.

    Returns
    -------
    matplotlib.axes.Axes
        One line per schedule, to its upper bound: ``|target(x) - s(x / input_safety)|`` for x a
        singular value of the normalised input, as in :meth:`polarlib.Schedule.error`. The turning
        points of the composition are among the points, so that peaks are exact.

    Raises
    ------
    TypeError
        If `schedules` has elements of another type, or `ax` is not an Axes.
    ValueError
        If there is no schedule, if targets differ, or if `lower` is not in the intervals.

    Notes
    -----
    A best composition has peaks of equal height, its points of equioscillation. Between peaks of
    different sign the error is 0; lines end a little below the smallest peak. Schedules of errors
    below 1e-12 are evaluated in 40 digits.

    Examples
    --------
    >>> import polarlib
    >>> s = polarlib.schedule("polar_express")
    >>> ax = error([s, polarlib.schedule("jordan")])
    >>> peak = max(ax.get_lines()[0].get_ydata())
    >>> ax.get_xscale(), ax.get_yscale(), bool(abs(peak / s.error() - 1) < 1e-9)
    ('log', 'log', True)
    """
    plotted = _checked("error", schedules)
    kinds = {(s.target, s.stride) for s in plotted}
    if len(kinds) > 1:
        given = ", ".join(sorted(f"{target!r} with stride {p}" for target, p in kinds))
        raise ValueError(f"error takes schedules of one target and stride, got {given}")
    most = min(s.upper for s in plotted)
    if lower is not None:
        lower = number("lower", lower, 0, most, ends="()")
    starts = [s.lower for s in plotted if s.lower > 0]
    left = lower or min(starts, default=most / 1000)
    title, legend = figures.checked_title(title), flag("legend", legend)
    names = legends.checked_labels(labels, len(plotted)) or [
        f"{figures.plain_text(s.name)}, ≤\u00a0{s.error():.2g}" for s in plotted
    ]
    ax = figures.new_axes(ax)
    view, start = figures.View(ax), figures.lines_of(ax)
    colours = legends.checked_colours(ax, color, len(plotted), start)
    peaks: list[float] = []
    for i, (s, name) in enumerate(zip(plotted, names, strict=True)):
        x, extrema = _abscissa(s, left)
        e = errors_at(s, x)
        peaks += [float(v) for v in e[extrema] if np.isfinite(v)]
        ax.plot(
            x,
            np.where(e < figures.CLIP_ABOVE, e, np.nan),
            color=colours[i],
            linestyle=figures.LINES[(start + i) % len(figures.LINES)],
            linewidth=figures.line_width(1.2),
            label=name,
            gid=figures.LINE,
        )
    of = "1" if plotted[0].target == "polar" else plotted[0].target
    root = f"root x = λ^(1/{plotted[0].stride}) of an eigenvalue"
    what = "singular value x" if plotted[0].stride == 2 else root
    label_axes(ax, f"{what} of the normalised input", f"error |{of} − s(x)|", title)
    top = min(max(peaks, default=1.0), figures.CLIP_ABOVE)
    positive = [p for p in peaks if p > LEAST_ERROR]
    low = max(min(positive, default=LEAST_ERROR) / DEPTH, LEAST_ERROR)
    view.show("y", low, max(1.6 * top, 10 * low), log=True)
    view.show("x", left, max(s.upper for s in plotted) * 1.05, log=True)
    if legend:
        legends.name_lines(ax)
    return ax


def _abscissa(s: Schedule, left: float) -> tuple[np.ndarray, np.ndarray]:
    """Return points from `left` to the upper bound, and which are ends or turning points."""
    turns = points_of(s, left)
    x = np.geomspace(left, s.upper, SAMPLES)
    if turns is not None:
        between = np.linspace(turns[:-1], turns[1:], BETWEEN, endpoint=False)
        x = np.unique(np.concatenate([x, turns, between.ravel()]))
        return x, np.isin(x, turns)
    x = np.unique(np.concatenate([x, np.linspace(left, s.upper, figures.MARKERS_MAX)]))
    return x, np.ones(len(x), dtype=bool)


def matrix_products(
    schedules: Schedule | Iterable[Schedule],
    ax: Axes | None = None,
    *,
    lower: float | None = None,
    matmuls: int | None = None,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    legend: bool = True,
    color: Any = None,
) -> Axes:
    """Plot the worst error of schedules after each of their steps over the products used.

    Parameters
    ----------
    schedules : Schedule or iterable of Schedule
        Polynomial or rational.
    ax : matplotlib.axes.Axes, optional
        Axes to draw into; a new figure by default.
    lower : float, optional
        Lower end of the interval [lower, upper] of the errors; by default that of each schedule,
        which the labels then have if they differ.
    matmuls : int, optional
        Number of products, at most 300, up to which schedules are repeated: by default that of the
        longest one. Sets that do not repeat end with their list.
    title : str, optional
        As for :func:`error`.
    labels : sequence of str, optional
        As for :func:`error`.
    legend : bool, optional
        As for :func:`error`.
    color : color or sequence of colors, optional
        As for :func:`error`.

    Returns
    -------
    matplotlib.axes.Axes
        One line per schedule with a marker per step: ``max |target(x) - s_k(x / input_safety)|``
        for the first k steps s_k, at their matrix products.

    Raises
    ------
    TypeError
        If `schedules` has elements of another type, or `ax` is not an Axes.
    ValueError
        If there is no schedule, or `lower` is not in their intervals.

    Examples
    --------
    >>> import polarlib
    >>> s = polarlib.schedule("polar_express")
    >>> ax = matrix_products([s, polarlib.schedule("newton_schulz_5")], lower=1e-2)
    >>> x, y = ax.get_lines()[0].get_data()
    >>> x.tolist()[:5], bool(y[-1] == s.error(1e-2))
    ([3, 6, 9, 12, 15], True)
    """
    plotted = _checked("matrix_products", schedules)
    if lower is not None:
        lower = number("lower", lower, 0, min(s.upper for s in plotted), ends="(]")
    most = max(s.matmuls for s in plotted)
    if matmuls is not None:
        most = count("matmuls", matmuls, 1, MOST_PRODUCTS)
    title, legend = figures.checked_title(title), flag("legend", legend)
    several = lower is None and len({(s.lower, s.upper) for s in plotted}) > 1
    names = legends.checked_labels(labels, len(plotted)) or [
        figures.plain_text(s.name) + f", x ≥ {s.lower:.2g}" * several for s in plotted
    ]
    ax = figures.new_axes(ax)
    view, start = figures.View(ax), figures.lines_of(ax)
    colours = legends.checked_colours(ax, color, len(plotted), start)
    ends: list[int] = [0]
    for i, (s, name) in enumerate(zip(plotted, names, strict=True)):
        x, errors = _by_products(s, s.lower if lower is None else lower, most)
        ends += x
        every = -(-len(x) // figures.MARKED)
        figures.draw_steps(ax, x, np.array(errors), colours[i], start + i, name, every)
    interval = (
        f" on [{lower or plotted[0].lower:.3g}, {plotted[0].upper:.3g}]" if not several else ""
    )
    of = "1" if plotted[0].target == "polar" else "target"
    label_axes(ax, "matrix products", f"worst error |{of} − s(x)|{interval}", title)
    figures.log_ordinate(ax, view, ceiling=figures.CEILING)
    view.show("x", 0, 1.05 * max(*ends, 1))
    ax.xaxis.set_major_locator(MaxNLocator(figures.most_ticks(ax), integer=True))
    if legend:
        legends.name_lines(ax)
    return ax


def _by_products(s: Schedule, lower: float, most: int) -> tuple[list[int], list[float]]:
    """Return products and worst errors of the first steps, up to `most` if the set repeats."""
    used: list[int] = []
    errors: list[float] = []
    k = 0
    while k < len(s) or s.repeat is not None:
        k += 1
        steps = s.steps[:k] if k <= len(s) else s.truncate(k).steps
        products = products_of(steps, s.stride)
        if products > most and (k > len(s) or used):
            break
        # Not by s.truncate(k): the first steps alone may leave (0, 2).
        bounds = enclosed(
            steps, lower, s.upper, s.stride, s.target, s.input_divisor, asked="matrix_products"
        )
        used.append(products)
        errors.append(bounds.upper)
        if len(used) > 1 and used[-1] == used[-2]:  # steps of no products: it would never end
            break
    return used, errors


def _checked(function: str, schedules: Any) -> list[Schedule]:
    if isinstance(schedules, Schedule):
        return [schedules]
    remedy = "a Schedule or a list of them, such as polarlib.schedule('polar_express')"
    if isinstance(schedules, str) or not isinstance(schedules, Iterable):
        raise TypeError(f"{function} takes {remedy}; got {figures.type_and_value(schedules)}")
    found = items("schedules", schedules, "a list of at least one Schedule")
    for s in found:
        require(s, Schedule, function, remedy)
    return found
