"""Names of lines: a legend that fits the figure, or labels at the ends of many lines."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import is_color_like
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from polarlib.arrays.checks import items, shown
from polarlib.plot import figures

# Up to this number of lines a legend is drawn; more lines are labelled at their ends.
LEGEND_MAX = 6
# Largest fractions for the legend: of the area of the Axes, and of their height with the legend.
LEGEND_AREA, LEGEND_HEIGHT = 0.33, 0.27
SHRUNK = (1.0, 0.9, 0.8, 0.7)  # sizes of text that are tried
SMALLEST = 4.0  # points
MOST_COLUMNS = 3
HANDLE, FRAME = 3.0, 1.6  # length of a handle and width of the frame, in sizes of text
GAP = 4.0  # points between the axis and labels at its side or below it
END_WIDTH = 0.34  # of the width of the figure, for labels at line ends
END_HEIGHT = 0.5  # of the height of the figure: least height of the Axes
LEADING, PADS = 1.25, 6.0  # of lines of text; points between a layout's Axes and the edges
END = "end of a line"


def entries(ax: Axes) -> tuple[list[Any], list[str]]:
    """Return artists and labels of a legend, each label once."""
    handles, labels = ax.get_legend_handles_labels()
    first = {label: handle for handle, label in reversed(list(zip(handles, labels, strict=True)))}
    kept = [label for i, label in enumerate(labels) if labels.index(label) == i]
    return [first[label] for label in kept], kept


def add_legend(ax: Axes, *, bar: bool = False) -> None:
    """Add a legend that fits: below the Axes if a layout reserves space, otherwise inside.

    The number of columns, the size of the text, and finally shortened labels are tried in this
    order. With `bar` a colour bar uses a part of the width.
    """
    handles, labels = entries(ax)
    if not handles:
        return
    outside = figures.whole_figure(ax).get_layout_engine() is not None
    space = _Space(ax, outside, bar)
    size = figures.points("legend.fontsize")
    tries = [(s, c) for s in SHRUNK for c in range(1, min(MOST_COLUMNS, len(labels)) + 1)]
    for shrunk, columns in tries:
        points = max(shrunk * size, SMALLEST)
        across, upward = _drawn(ax, handles, labels, figures.fold, points, columns, space.width)
        if space.holds(across, upward):
            break
    else:
        rows = max(1, int(LEGEND_HEIGHT * space.height / (1.3 * points)))
        across, _ = _drawn(ax, handles[:rows], labels[:rows], _shortened, points, 1, space.width)
    if outside:
        _place_below(ax, centred=across <= space.inner)


class _Space:
    """Space of a figure for a legend, in points."""

    def __init__(self, ax: Axes, outside: bool, bar: bool) -> None:
        self.outside = outside
        if not outside:
            scale = 72 / figures.whole_figure(ax).dpi
            box = ax.get_window_extent()
            self.width = self.inner = 0.95 * box.width * scale
            self.height, self.square = box.height * scale, False
            return
        width, height = figures.room(ax)
        self.width = (0.78 if bar else 0.96) * width - 2 * GAP
        self.height = height - _written(ax)
        self.square = ax.get_aspect() == 1
        self.inner = min(figures.inner_width(ax), self.height if self.square else width)

    def holds(self, across: float, upward: float) -> bool:
        """Whether a legend of this size fits, with Axes that are large enough above it."""
        left = self.height - upward if self.outside else self.height
        area = left * (min(self.inner, left) if self.square else self.inner)
        fits = across <= self.width and upward <= LEGEND_HEIGHT * self.height
        return bool(fits and across * upward <= LEGEND_AREA * area)


def _written(ax: Axes) -> float:
    """Return the height of title, tick labels and axis label with their distances, in points."""
    heights = (
        GAP
        + PADS
        + sum(
            figures.setting(name)
            for name in ("xtick.major.size", "xtick.major.pad", "axes.labelpad")
        )
    )
    heights += LEADING * figures.points("xtick.labelsize")
    for label, pad in ((ax.xaxis.label, 0.0), (ax.title, figures.setting("axes.titlepad"))):
        lines = 1 + label.get_text().count("\n") if label.get_text() else 0
        heights += LEADING * lines * figures.size_of(label) + pad * (lines > 0)
    return float(heights)


def _shortened(label: str, letters: int) -> str:
    return textwrap.shorten(label, max(8, letters), placeholder=" …")


def _drawn(
    ax: Axes,
    handles: list[Any],
    labels: list[str],
    fitted: Callable[[str, int], str],
    points: float,
    columns: int,
    width: float,
) -> tuple[float, float]:
    """Draw a legend whose labels are fitted to a width, and return its width and height."""
    letters = int((width / columns / points - HANDLE - FRAME) / figures.EM)
    for _ in range(2):
        _draw(ax, handles, [fitted(label, letters) for label in labels], points, columns)
        across, upward = _extent(ax)
        if across <= width:
            break
        # Letters may be wider than the mean, or than in other versions of matplotlib.
        letters = int(letters * width / across)
    return across, upward


def _draw(ax: Axes, handles: list[Any], labels: list[str], size: float, columns: int) -> None:
    ax.legend(
        handles,
        labels,
        loc="best",
        ncols=columns,
        fontsize=size,
        labelcolor=figures.ink_of(ax),
        facecolor=ax.get_facecolor(),
        edgecolor=figures.setting("legend.edgecolor"),
        handlelength=HANDLE,
        labelspacing=0.3,
        columnspacing=1.0,
        handletextpad=0.6,
        borderaxespad=0.5,
    )


def _extent(ax: Axes) -> tuple[float, float]:
    legend: Any = ax.get_legend()
    scale = 72 / figures.whole_figure(ax).dpi
    # The place "best" is searched at every drawing; the size does not depend on the place.
    legend.set_loc("upper right")
    box = legend.get_window_extent()
    legend.set_loc("best")
    return box.width * scale, box.height * scale


def _place_below(ax: Axes, centred: bool) -> None:
    """Put the legend below the axis, in its middle or, if it is wider, up to its right end."""
    legend: Any = ax.get_legend()
    figure = figures.whole_figure(ax)
    below: Any = ax.xaxis.get_tightbbox()
    drop = 0.0 if below is None else (ax.bbox.y0 - below.y0) * 72 / figure.dpi
    shift = ScaledTranslation(0, -(drop + GAP) / 72, figure.dpi_scale_trans)
    legend.set_loc("upper center" if centred else "upper right")
    legend.set_bbox_to_anchor((0.5 if centred else 1.0, 0.0), ax.transAxes + shift)
    legend.borderaxespad = 0


def name_lines(ax: Axes) -> None:
    """Name lines by a legend or, if there are many, at their ends.

    Lines that were in the Axes before are included.
    """
    named = [pair for pair in zip(*entries(ax), strict=True) if figures.is_data(pair[0])]
    if len(named) <= LEGEND_MAX:
        add_legend(ax)
        return
    legend: Any = ax.get_legend()
    if legend is not None:
        legend.remove()
    for old in [written for written in ax.texts if written.get_gid() == END]:
        old.remove()
    _label_ends(ax, [line for line, _ in named], [label for _, label in named])


def _label_ends(ax: Axes, lines: Sequence[Line2D], labels: Sequence[str]) -> None:
    """Write labels at the last visible points of lines, moved so that they do not overlap."""
    width, height = figures.room(ax)
    size = figures.points("legend.fontsize")
    letters = max(8, int(END_WIDTH * width / (figures.EM * size)))
    folded = [
        "\n".join(textwrap.wrap(s.strip(), letters, max_lines=2, placeholder=" …")) for s in labels
    ]
    counts = np.array([1 + s.count("\n") for s in folded])
    available = END_HEIGHT * height
    size = max(min(size, available / (LEADING * counts.sum())), SMALLEST)
    ends = [_end(ax, line) for line in lines]
    y = _apart([end[1] for end in ends], LEADING * size * counts / available)
    for line, label, (x0, y0), place in zip(lines, folded, ends, y, strict=True):
        ax.annotate(
            label,
            xy=(x0, y0),
            xycoords="axes fraction",
            xytext=(1 + 1.5 * GAP / width, place),
            textcoords="axes fraction",
            color=figures.ink_of(ax),
            fontsize=size,
            linespacing=1.0,
            verticalalignment="center",
            horizontalalignment="left",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": line.get_color(),
                "linestyle": line.get_linestyle(),
                "linewidth": figures.line_width(0.8),
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
            gid=END,
        )


def _end(ax: Axes, line: Line2D) -> tuple[float, float]:
    """Return the last finite point of a line within the Axes, as fractions of the Axes."""
    points = np.column_stack([np.asarray(v, dtype=float) for v in line.get_data()])
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return 1.0, 0.5
    x, y = points[-1]
    y = max(y, ax.get_ylim()[0])
    at = ax.transAxes.inverted().transform(ax.transData.transform((x, y)))
    return float(np.clip(at[0], 0, 1)), float(np.clip(at[1], 0, 1))


def _apart(wanted: Sequence[float], heights: np.ndarray) -> np.ndarray:
    """Return the places nearest to the wanted ones at which labels do not overlap.

    Labels that touch move together, as one block about the mean of its members' wanted places.

    Examples
    --------
    >>> _apart([0.5, 0.5], np.array([0.1, 0.1])).round(2).tolist()
    [0.45, 0.55]
    """
    order = np.argsort(wanted, kind="stable")
    # (place of the middle, height, members); blocks that overlap are merged.
    blocks: list[tuple[float, float, list[int]]] = []
    for i in order:
        block = (float(wanted[i]), float(heights[i]), [int(i)])
        while blocks and blocks[-1][0] + blocks[-1][1] / 2 > block[0] - block[1] / 2:
            middle, height, members = blocks.pop()
            many, few = len(members), len(block[2])
            middle = (many * middle + few * block[0]) / (many + few)
            block = (middle, height + block[1], members + block[2])
        low, high = block[1] / 2, 1 - block[1] / 2
        block = (min(max(block[0], low), max(high, low)), *block[1:])
        blocks.append(block)
    places = np.zeros(len(heights))
    for middle, height, members in blocks:
        edge = middle - height / 2
        for i in members:
            places[i] = edge + heights[i] / 2
            edge += heights[i]
    # At the lower end blocks may have been moved up into their neighbours.
    for before, after in pairwise(order):
        places[after] = max(places[after], places[before] + (heights[before] + heights[after]) / 2)
    return places


def checked_labels(labels: Any, number: int) -> list[str] | None:
    """Check labels of the caller, one per line."""
    if labels is None:
        return None
    what = f"{number} {'text' if number == 1 else 'texts'}, one for each line"
    found = items("labels", labels, what, number, number)
    return [figures.plain_text(figures.checked_text("labels", label)) for label in found]


def checked_colours(ax: Axes, color: Any, number: int, start: int) -> list[Any]:
    """Return colours of lines: the caller's, one for all or one per line, or those of the cycle."""
    if color is None:
        colours = figures.cycle(ax)
        return [colours[(start + i) % len(colours)] for i in range(number)]
    if _is_colour(color):
        return [color] * number
    if isinstance(color, str):
        raise ValueError(f"color must be a colour of matplotlib, got {shown(color)}")
    found = items("color", color, f"a colour, or {number} of them", number, number)
    for each in found:
        if not _is_colour(each):
            raise ValueError(f"color must be a colour of matplotlib, got {shown(each)}")
    return found


def _is_colour(value: Any) -> bool:
    try:
        return bool(is_color_like(value))
    except (TypeError, ValueError):
        return False
