"""Pictures: a trace or a schedule in, matplotlib Axes out.

Every function draws into the Axes that it is given, or into a new figure, and returns the Axes::

    t = polarlib.measure(a, "polar_express", precision="bfloat16")
    ax = plot.convergence(t)
    plot.save(ax, "convergence.pdf")

Sizes of text and lines, colours and the size of new figures are those of matplotlib's rcParams
where these were changed, and else this package's, dark on white. :func:`style` sets them for the
width of a column, a page or a slide::

    with plot.style("column"):  # 3.3 inches wide, 7 point text
        plot.save(plot.error([s, t]), "error.pdf")

Nothing global is touched otherwise: no pyplot, no backend. A figure made here is therefore unknown
to ``pyplot.show()`` and is freed like any other object; in a notebook the returned Axes and their
``.figure`` show themselves. For a window, or several pictures in one figure, bring the Axes::

    figure, axes = pyplot.subplots(1, 2, layout="constrained")
    plot.convergence(t, ax=axes[0])
    plot.singular_values(t, ax=axes[1])

The legend stands below the Axes where the figure has a layout engine that makes room for it, and
inside elsewhere; more than six lines are named at their ends. A further call with the same Axes
goes on with colours and line styles, and keeps in sight what was there. What a logarithmic axis
cannot show (exact zeros, values that are not finite) is said in the legend.
"""
# ruff: noqa: E402 - the extra is asked for before what needs it is imported

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
