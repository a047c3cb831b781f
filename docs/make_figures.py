"""Write the figure of README.md, which is that of an example of the gallery.

    python docs/make_figures.py

runs examples/deep_learning/plot_06_five_steps.py, whose assertions check the numbers of the figure,
and writes docs/figures/five_steps.png and docs/figures/five_steps.svg. tests/test_gallery.py
compares the first with a new one.
"""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path

import matplotlib

from polarlib import plot
from polarlib.files.whole import write_whole

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "deep_learning" / "plot_06_five_steps.py"
FIGURE = ROOT / "docs" / "figures" / "five_steps.png"


def figure() -> None:
    """Run the example and write its figure."""
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
        drawing = runpy.run_path(str(EXAMPLE))["fig"]
    # The salt and the missing date make the file the same each time; text remains text.
    settings = {"svg.hashsalt": FIGURE.stem, "svg.fonttype": "none"}
    with plot.style("page"), matplotlib.rc_context(settings):
        write_whole(FIGURE, lambda file: drawing.savefig(file, format="png", dpi=150))
        svg = {"format": "svg", "metadata": {"Date": None}}
        write_whole(FIGURE.with_suffix(".svg"), lambda file: drawing.savefig(file, **svg))
    pyplot.close(drawing)


if __name__ == "__main__":
    figure()
