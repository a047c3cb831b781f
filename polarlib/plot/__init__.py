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
# ruff: noqa: E402 - the extra is asked for before what needs it is imported

from polarlib._extras import require

require("polarlib.plot", "plot", "matplotlib")

from polarlib.plot.balls import unit_ball
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
from polarlib.plot.traces import compare, convergence, singular_values

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
    "polynomial",
    "save",
    "singular_values",
    "unit_ball",
]
