"""Settings of matplotlib for figures that are printed or shown at their full size."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

from cycler import cycler
from matplotlib import rc_context

from polarlib.arrays.checks import choice
from polarlib.plot.figures import CYCLE, GRID, INK

# Width and height in inches; points of text, of ticks and legend, of lines, of markers.
SIZES = {
    "column": (3.3, 2.5, 7.0, 6.0, 1.0, 3.0),
    "page": (7.0, 3.6, 8.0, 7.0, 1.3, 3.5),
    "slide": (10.0, 5.6, 18.0, 15.0, 2.6, 8.0),
}
THIN = 0.5  # of axes and ticks, in line widths


def style(name: Literal["column", "page", "slide"]) -> AbstractContextManager[None]:
    """Set matplotlib for figures at the width of a column or a page, or for slides.

    Parameters
    ----------
    name : {"column", "page", "slide"}
        ``"column"``: 3.3 x 2.5 inches, 7 point text; ``"page"``: 7 x 3.6 inches, 8 point;
        ``"slide"``: 10 x 5.6 inches, 18 point.

    Returns
    -------
    context manager
        Within it matplotlib's rcParams have the size of figures, sizes of text, lines and markers,
        the colours of this package, a constrained layout, and fonts embedded as TrueType (Type 42),
        as publishers require. Afterwards they are restored. As every change of rcParams, it applies
        to all of matplotlib and to all threads.

    Raises
    ------
    ValueError
        For an unknown name.

    Notes
    -----
    matplotlib reads some settings, the kind of the embedded fonts among them, when a figure is
    saved: save within the ``with`` block. Change single settings inside it by
    ``matplotlib.rcParams``; other sizes by ``figsize=``.

    Examples
    --------
    >>> import polarlib
    >>> from polarlib import plot
    >>> with plot.style("column"):
    ...     ax = plot.error(polarlib.schedule("polar_express"))
    >>> [float(size) for size in ax.figure.get_size_inches()], ax.xaxis.label.get_fontsize()
    ([3.3, 2.5], 7.0)
    """
    values: Any = settings(choice("name", name, SIZES))
    return rc_context(values)


def settings(name: str) -> dict[str, Any]:
    """Return the rcParams of a style."""
    width, height, text, small, line, marker = SIZES[name]
    return {
        "axes.axisbelow": True,
        "axes.edgecolor": INK,
        "axes.facecolor": "white",
        "axes.grid": True,
        "axes.labelcolor": INK,
        "axes.labelpad": text / 3,
        "axes.labelsize": text,
        "axes.linewidth": THIN * line,
        "axes.prop_cycle": cycler(color=CYCLE),
        "axes.titlecolor": INK,
        "axes.titlepad": text / 2,
        "axes.titlesize": text,
        "figure.constrained_layout.use": True,
        "figure.facecolor": "white",
        "figure.figsize": (width, height),
        "figure.titlesize": text,
        "font.size": text,
        "grid.color": GRID,
        "grid.linewidth": THIN * line,
        "legend.edgecolor": "#BBBBBB",
        "legend.fontsize": small,
        "legend.framealpha": 0.9,
        "legend.title_fontsize": small,
        "lines.linewidth": line,
        "lines.markersize": marker,
        "patch.linewidth": THIN * line,
        "pdf.fonttype": 42,
        "ps.fonttype": 42,
        "savefig.bbox": None,
        "savefig.dpi": 300,
        "savefig.facecolor": "white",
        "savefig.transparent": False,
        "text.color": INK,
        "xtick.color": INK,
        "xtick.labelsize": small,
        "xtick.major.pad": text / 3,
        "xtick.major.size": text / 3,
        "xtick.major.width": THIN * line,
        "xtick.minor.size": text / 5,
        "xtick.minor.width": THIN * line,
        "ytick.color": INK,
        "ytick.labelsize": small,
        "ytick.major.pad": text / 3,
        "ytick.major.size": text / 3,
        "ytick.major.width": THIN * line,
        "ytick.minor.size": text / 5,
        "ytick.minor.width": THIN * line,
    }
