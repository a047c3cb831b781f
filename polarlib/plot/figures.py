"""Sizes, colours, axes and lines of figures, and saving them."""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rcParams, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, StrMethodFormatter

from polarlib.arrays.checks import number, shown, text
from polarlib.arrays.checks import path as checked_path
from polarlib.files.whole import write_whole
from polarlib.result import Trace

MARKED = 30  # steps that get a marker each

LIMIT_VISIBLE_UP_TO = 1.4  # a divergence limit up to this multiple of the upper bound is shown
CLIP_ABOVE = 1e3  # larger values of s(x) are not drawn
EXTREMUM_TOLERANCE = 1e-3  # points within this share of the worst error are marked
MARKERS_MAX = 5000  # more points of worst error than this are not marked

CEILING = 1e3  # an error above it only shows that the iteration diverged
HIGHEST = 1e200  # end of an ordinate: the ticks that matplotlib tries beyond it overflow

# Size of new figures if rcParams have matplotlib's default; chosen by eye.
WIDTH, HEIGHT = 7.0, 5.0  # inches
DPI, HIGHEST_DPI = 150, 1200
EM = 0.52  # mean width of a character, in units of its size
TITLE_LINES, NARROWER = 3, 8  # lines of a title or label, and widths that are tried for it
DECADES = 100.0  # ratio of the ends of an ordinate, up to which 2 and 5 have labels as well
EMPTY = (1e-17, 1.0)  # ordinate of a picture without positive finite values

# Okabe and Ito, Color Universal Design (2008), without the yellow, which is faint on white; their
# black is the ink.
COLOURS = ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
# Seven colours, eight markers and five line styles repeat in combination after 280 lines.
MARKERS = "osD^vPX*"
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (7, 2, 1, 2, 1, 2)))
INK, GRID = "#222222", "#DDDDDD"
# In this order colours with the same line style differ in grey as well.
CYCLE = (BLUE, VERMILLION, SKY, INK, GREEN, PURPLE, ORANGE)
# In place of matplotlib's defaults; values that the user changed in rcParams are kept.
HOUSE: dict[str, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": "medium",
    "figure.figsize": (WIDTH, HEIGHT),
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.edgecolor": "#BBBBBB",
    "legend.fontsize": "small",
    "savefig.dpi": DPI,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}

LINE = "line:"  # prefix of the gid of a line of data, before the name of its owner

# Labels of the fields of a trace with one value per step.
QUANTITIES = {
    "orthogonality": r"orthogonality $\|X^HX{-}I\|_F/\sqrt{k}$",
    "backward_error": r"backward error $\|A{-}XH\|_F/\|A\|_F$",
    "distance": r"distance $\|X{-}U\|_F/\sqrt{k}$",
}

# Against rcParams that give saved figures another background.
AS_SHOWN: dict[str, Any] = {"facecolor": "auto", "edgecolor": "auto", "transparent": False}


class _Figure(Figure):
    """A figure that notebooks show without a backend."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=100, **AS_SHOWN)
        return file.getvalue()


class _Axes(Axes):
    """Axes that notebooks show as their whole figure."""

    def _repr_png_(self) -> bytes:
        png: bytes = whole_figure(self)._repr_png_()
        return png


def save(ax: Axes, path: str | os.PathLike[str], *, dpi: float | None = None) -> None:
    """Save the figure of an Axes in the format of the suffix, whole or not at all.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Axes of any figure.
    path : path-like
        The file to write, with a suffix that matplotlib supports: png, pdf, svg, ...
    dpi : float, optional
        Dots per inch of raster formats; by default ``savefig.dpi`` of rcParams if it was changed,
        otherwise 150.

    Raises
    ------
    TypeError
        If `ax` is not an Axes.
    ValueError
        If the suffix is unknown.
    OSError
        If the folder does not exist or cannot be written; an existing file is then unchanged.

    Examples
    --------
    >>> import polarlib
    >>> save(polarlib.plot.polynomial(polarlib.schedule("jordan")), "jordan.docx")
    Traceback (most recent call last):
    ...
    ValueError: save: unknown suffix '.docx' in 'jordan.docx'; known: ...
    """
    require(ax, Axes, "save", "a matplotlib Axes, which every function of polarlib.plot returns")
    path, dpi = checked_path("path", path), _dpi(dpi)
    root = whole_figure(ax)
    known = sorted(root.canvas.get_supported_filetypes())
    suffix = Path(path).suffix
    kind = suffix.lower().removeprefix(".")
    if kind not in known:
        allowed = ", ".join(f".{name}" for name in known)
        raise ValueError(
            f"save: unknown suffix {shown(suffix)} in {shown(os.fspath(path))}; known: {allowed}"
        )
    write_whole(path, lambda file: root.savefig(file, format=kind, dpi=dpi, **AS_SHOWN))


def whole_figure(artist: Any) -> Any:
    """Return the whole figure, also for a subfigure."""
    return artist.figure.canvas.figure


def type_and_value(value: object) -> str:
    return f"{type(value).__name__} {shown(value)}"


def require(value: object, kind: type, function: str, remedy: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{function} takes {remedy}; got {type_and_value(value)}")


def setting(name: str) -> Any:
    """Return a value of rcParams, or polarlib's where it is matplotlib's default."""
    now: Any = rcParams
    usual: Any = rcParamsDefault
    value = now[name]
    return HOUSE.get(name, value) if value == usual[name] else value


def _dpi(dpi: float | None) -> float:
    if dpi is not None:
        return number("dpi", dpi, 1, HIGHEST_DPI)
    value = setting("savefig.dpi")
    return float(DPI if isinstance(value, str) else value)  # "figure" is that of screens


def points(name: str) -> float:
    """Return a size of text in rcParams, in points."""
    return float(FontProperties(size=setting(name)).get_size_in_points())


def line_width(width: float) -> float:
    """Scale a width in points, given for lines of width 1.5, to the width in rcParams."""
    return float(width * rcParams["lines.linewidth"] / rcParamsDefault["lines.linewidth"])


def marker_size(size: float) -> float:
    """Scale a size in points, given for markers of size 6, to the size in rcParams."""
    return float(size * rcParams["lines.markersize"] / rcParamsDefault["lines.markersize"])


def cycle(ax: Axes) -> Sequence[Any]:
    """Return the colours of rcParams if changed, or else polarlib's, with the ink of the Axes."""
    given = rcParams["axes.prop_cycle"]
    colours = given.by_key().get("color", ())
    if given == rcParamsDefault["axes.prop_cycle"] or not colours or tuple(colours) == CYCLE:
        return [ink_of(ax) if colour == INK else colour for colour in CYCLE]
    return tuple(colours)


def new_axes(ax: Axes | None, size: tuple[float, float] | None = None) -> Axes:
    """Return the given Axes, or new ones by rcParams, by default dark on white."""
    if ax is not None:
        require(ax, Axes, "ax", "one matplotlib Axes, or None for a new figure")
        return ax
    own = tuple(setting("figure.figsize")) == HOUSE["figure.figsize"]
    new = _Figure(
        figsize=size if size and own else setting("figure.figsize"),
        layout="constrained",
        facecolor=setting("figure.facecolor"),
    )
    ax = new.add_subplot(axes_class=_Axes, facecolor=setting("axes.facecolor"))
    # Ticks are created when they are drawn, perhaps under other rcParams.
    for axis in ("x", "y"):
        ax.tick_params(axis, which="both", colors=setting(f"{axis}tick.color"))
        for which in ("major", "minor"):
            sizes = {key: setting(f"{axis}tick.{which}.{key}") for key in ("pad", "size", "width")}
            sizes["length"] = sizes.pop("size")
            ax.tick_params(axis, which=which, labelsize=points(f"{axis}tick.labelsize"), **sizes)
    ax.spines[:].set_color(setting("axes.edgecolor"))
    ax.grid(color=setting("grid.color"), linewidth=setting("grid.linewidth"))
    ax.set_axisbelow(True)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set(color=setting("axes.labelcolor"), fontsize=points("axes.labelsize"))
    own_colour = setting("axes.titlecolor") == "auto"
    ax.title.set_color(setting("text.color" if own_colour else "axes.titlecolor"))
    ax.title.set_fontsize(points("axes.titlesize"))
    return ax


def ink_of(ax: Axes) -> Any:
    """Return the colour of text in Axes, whose background may be dark."""
    return ax.xaxis.label.get_color()


def room(ax: Axes) -> tuple[float, float]:
    """Return width and height, in points, of the space of Axes and their labels in the figure."""
    figure: Any = ax.figure
    width, height = (72 * side / figure.dpi for side in figure.bbox.size)
    spec = ax.get_subplotspec()
    if spec is None:
        return width, height
    # Fractions of the grid, without the margins that a layout replaces.
    place, grid = spec.get_position(figure), figure.subplotpars
    across = place.width / (grid.right - grid.left)
    upward = place.height / (grid.top - grid.bottom)
    return width * min(across, 1.0), height * min(upward, 1.0)


def inner_width(ax: Axes) -> float:
    """Estimate the width of the Axes without their labels, in points."""
    width, _ = room(ax)
    lines = 1 + ax.get_ylabel().count("\n")
    beside = 3 * points("ytick.labelsize") + 1.2 * lines * size_of(ax.yaxis.label) + 10
    return max(width - beside, width / 2)


def most_ticks(ax: Axes) -> int:
    """Return the number of tick labels that fit along the abscissa."""
    return max(3, min(12, int(inner_width(ax) / (2.2 * points("xtick.labelsize")))))


def size_of(label: Text) -> float:
    """Return the size of a text in points."""
    return float(label.get_fontsize())


def label_axes(ax: Axes, x: str, y: str, title: str | None, automatic: str = "") -> None:
    """Write labels and title, in lines that are no longer than the Axes."""
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    width, height = 0.94 * inner_width(ax), 0.62 * room(ax)[1]
    colour = ax.title.get_color() if isinstance(ax, _Axes) else ink_of(ax)
    ax.set_title("", color=colour, fontsize=ax.title.get_fontsize())
    _fold(ax.xaxis.label, x, width)
    _fold(ax.yaxis.label, y, height)
    _fold(ax.title, plain_text(automatic) if title is None else title, width)


def _fold(label: Text, words: str, most: float) -> None:
    """Write text in lines of at most a width in points; shorten the last line if they are many."""
    letters = most / (EM * size_of(label))
    for _ in range(NARROWER):
        lines = fold(words, int(letters)).split("\n")
        if len(lines) > TITLE_LINES:
            lines = [*lines[: TITLE_LINES - 1], f"{lines[TITLE_LINES - 1][:-2]} …"]
        label.set_text("\n".join(lines))
        box = label.get_window_extent()
        length = box.height if label.get_rotation() == 90 else box.width
        if 72 * length <= most * whole_figure(label).dpi:
            return
        letters *= 0.9


def fold(words: str, letters: int) -> str:
    """Fold each line of a text, but not within mathematics in dollars."""
    how: Any = {"break_on_hyphens": False, "break_long_words": "$" not in words}
    return "\n".join(textwrap.fill(line, max(8, letters), **how) for line in words.split("\n"))


def checked_text(name: str, value: Any) -> str:
    """Return text that can be drawn."""
    value = text(name, value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be text of Unicode characters, got {shown(value)}") from None
    return str(value)


def checked_title(title: str | None) -> str | None:
    return None if title is None else checked_text("title", title)


def plain_text(name: str) -> str:
    """Return a name for matplotlib: no mathematics in dollars, and not hidden from legends."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def shape_text(t: Trace) -> str:
    return " × ".join(map(str, t.shape))


def title_of(t: Trace) -> str:
    simulated = " (simulated)" if t.simulated else ""
    form = f", {t.form} form" if t.form else ""
    return f"{t.method}, {shape_text(t)}, {t.precision}{simulated}{form}"


def hidden_note(y: np.ndarray) -> str:
    """Describe the part of a line above the ceiling of a logarithmic axis."""
    y = np.asarray(y, dtype=float)
    finite = np.isfinite(y)
    notes = []
    if (y == 0).any():
        notes.append("on the lower edge: exactly 0")
    if (y[finite] > CEILING).any():
        notes.append(f"up to {y[finite].max():.0e}")
    if not finite.all():
        notes.append(f"not finite from step {np.argmin(finite)} on")
    return f" ({', '.join(notes)})" if notes else ""


def above_one(x: float) -> str:
    return f"1 + {x - 1:.2g}" if 1 < x < 1.01 else f"{x:.4g}"


def number_decades(ax: Axes) -> None:
    """Number a logarithmic abscissa 1, 2, 5, 10, ..., or by decades where these are many."""
    low, high = ax.get_xlim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if len(decades) > most_ticks(ax):
        return
    subs = (1, 2, 5) if len(decades) <= most_ticks(ax) // 2 else (1,)
    ticks = [float(f"{k}e{d}") for d in decades for k in subs]
    ax.xaxis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def is_data(artist: Any) -> bool:
    """Whether an artist is a line of data that was drawn here."""
    return (artist.get_gid() or "").startswith(LINE)


def lines_of(ax: Axes) -> int:
    """Count the lines of data in Axes, from which the cycle of colours continues."""
    return sum(map(is_data, ax.get_lines()))


def told_apart(ax: Axes, who: str) -> str:
    """Return the owner as a prefix of labels if other owners have lines, and label these too."""
    others = list(filter(is_data, ax.get_lines()))
    for line in others:
        name, label = str(line.get_gid()).removeprefix(LINE), str(line.get_label())
        if name and not label.startswith((name, "_")):
            line.set_label(f"{name}: {label}")
    return f"{who}: " if others else ""


class View:
    """Limits of Axes with content, and of Axes that share them, before a plot is added.

    :meth:`show` sets the limits for the plot such that they include the earlier ones.
    """

    def __init__(self, ax: Axes) -> None:
        self._ax, self._kept = ax, {}
        for axis, shared in (("x", ax.get_shared_x_axes()), ("y", ax.get_shared_y_axes())):
            if any(other.has_data() for other in shared.get_siblings(ax)):
                self._kept[axis] = sorted(getattr(ax, f"get_{axis}lim")())

    @property
    def is_new(self) -> bool:
        """Whether the Axes were empty."""
        return not self._kept

    def show(self, axis: str, low: float, high: float, *, log: bool = False) -> None:
        """Set the limits of an axis to include those before."""
        if axis in self._kept:
            before, after = self._kept[axis]
            low = min(low, before) if before > 0 or not log else low
            high = max(high, after)
        # The limits before the scale, which warns about limits that are not positive.
        getattr(self._ax, f"set_{axis}lim")(low, high)
        if log:
            getattr(self._ax, f"set_{axis}scale")("log")


def log_ordinate(ax: Axes, view: View, floor: float = 0.0, ceiling: float = HIGHEST) -> None:
    """Make the ordinate logarithmic; it shows every line between floor and ceiling."""
    lines = [line for line in ax.get_lines() if in_data(ax, line)]
    y = np.concatenate([np.empty(0), *(np.ravel(a.get_ydata()).astype(float) for a in lines)])
    y = np.minimum(y[np.isfinite(y) & (y > floor)], ceiling)
    low, high = (float(y.min()), float(y.max())) if y.size else EMPTY
    # A margin, and a decade at least, so that there is a power of ten to read.
    margin = max(high**0.05 / low**0.05, (10 * low / high) ** 0.5)
    view.show("y", low / margin, min(high * margin, ceiling), log=True)
    low, high = ax.get_ylim()
    few = high <= DECADES * low
    ax.yaxis.set_minor_formatter(FuncFormatter(_two_and_five) if few else NullFormatter())


def _two_and_five(value: float, _: int) -> str:
    """Label of a tick between powers of ten: of 2 and 5 times one, so that labels stay apart."""
    mantissa, exponent = f"{value:.0e}".split("e")
    return rf"${mantissa}\times10^{{{int(exponent)}}}$" if mantissa in "25" else ""


def in_data(ax: Axes, line: Line2D) -> bool:
    """Whether the ordinates of a line are data, not fractions of the axis."""
    return bool(line.get_transform().contains_branch_seperately(ax.transData)[1])


def draw_steps(
    ax: Axes, x: Any, y: np.ndarray, colour: Any, k: int, label: str, every: int
) -> None:
    """Draw line k of the cycle with evenly spaced markers; the label notes hidden values."""
    (line,) = ax.plot(
        x,
        y,
        color=colour,
        linestyle=LINES[k % len(LINES)],
        marker=MARKERS[k % len(MARKERS)],
        markersize=marker_size(6),
        markevery=every,
        linewidth=line_width(1.5),
        label=label + hidden_note(y),
        gid=LINE,
    )
    draw_zeros(ax, line)


def draw_zeros(ax: Axes, line: Line2D) -> None:
    """Put the exact zeros of a line on the lower edge, in its colour and with its marker."""
    y = np.asarray(line.get_ydata(), dtype=float)
    if (y == 0).any():
        ax.plot(
            np.asarray(line.get_xdata())[y == 0],
            y[y == 0],
            linestyle="none",
            color=line.get_color(),
            marker=line.get_marker(),
            markersize=line.get_markersize(),
            transform=ax.get_xaxis_transform(),
            clip_on=False,
            zorder=3,
        )
