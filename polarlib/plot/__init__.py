"""Plots of traces and schedules, as matplotlib Axes.

Every function draws into the Axes that it is given, or into a new figure, and returns the Axes::

    t = polarlib.measure(a, "polar_express", precision="bfloat16")
    ax = plot.convergence(t)
    plot.save(ax, "convergence.pdf")

Sizes of text and lines, colours and the size of new figures are those of matplotlib's rcParams if
they were changed, otherwise those of this package, dark on white. :func:`style` sets them for the
width of a column, a page or a slide::

    with plot.style("column"):  # 3.3 inches wide, 7 point text
        plot.save(plot.error([s, t]), "error.pdf")

No other global state is changed: neither pyplot nor the backend. ``pyplot.show()`` does not show
such a figure, which is freed as any other object. Notebooks display the returned Axes and their
``.figure``. For a window, or several plots in one figure, pass the Axes::

    figure, axes = pyplot.subplots(1, 2, layout="constrained")
    plot.convergence(t, ax=axes[0])
    plot.singular_values(t, ax=axes[1])

The legend is below the Axes if the figure has a layout engine that reserves space for it, otherwise
inside. More than six lines have labels at their ends. A further call with the same Axes continues
the cycle of colours and line styles, and keeps the earlier lines within the limits. Exact zeros and
values that are not finite, which a logarithmic axis cannot show, are noted in the legend.
"""
# ruff: noqa: E402 - the extra is checked before its packages are imported

from polarlib._extras import require

require("polarlib.plot", "plot", "matplotlib")

from polarlib.plot.balls import unit_ball
from polarlib.plot.comparisons import compare, cost
from polarlib.plot.errors import error, matrix_products
from polarlib.plot.figures import (
    BLUE,
    CEILING,
    COLOURS,
    GREEN,
    HEIGHT,
    INK,
    LINES,
    MARKERS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    WIDTH,
    save,
)
from polarlib.plot.schedules import polynomial
from polarlib.plot.style import style
from polarlib.plot.traces import convergence, singular_values

__all__ = [
    "BLUE",
    "CEILING",
    "COLOURS",
    "GREEN",
    "HEIGHT",
    "INK",
    "LINES",
    "MARKERS",
    "ORANGE",
    "PURPLE",
    "SKY",
    "VERMILLION",
    "WIDTH",
    "compare",
    "convergence",
    "cost",
    "error",
    "matrix_products",
    "polynomial",
    "save",
    "singular_values",
    "style",
    "unit_ball",
]
