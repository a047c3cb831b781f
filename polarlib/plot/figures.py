"""How figures look: sizes, colours, axes, legends; and how they are saved."""

from __future__ import annotations

import io
import os
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from polarlib.arrays.checks import number, shown
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
# Six colours and the ink, eight markers and five line styles come together again after 280 lines.
MARKERS = "osD^vPX*"
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (7, 2, 1, 2, 1, 2)))
INK = "#222222"

# What a trace holds for each step, by the names of its fields.
QUANTITIES = {
    "orthogonality": r"orthogonality $\|X^H X - I\|_F / \sqrt{k}$",
    "backward_error": r"backward error $\|A - X H\|_F / \|A\|_F$",
    "distance": r"distance $\|X - U\|_F / \sqrt{k}$",
}

# The sizes below were chosen by eye.
WIDTH, HEIGHT, LEGEND_ROW = 7.0, 4.4, 0.21  # inches
LEGEND_DROP = 40  # points from the axes down to the legend: tick labels and axis label
HIGHEST_DPI = 1200
EMPTY = (1e-17, 1.0)  # ordinate of a picture without positive finite values
# Against rcParams that give saved figures another ground.
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


def save(ax: Axes, path: str | os.PathLike[str], *, dpi: float = 150) -> None:
    """Save the figure of an Axes in the format of the suffix, whole or not at all.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Of any figure.
    path : path-like
        Where to write, with a suffix that matplotlib supports: png, pdf, svg, ...
    dpi : float, optional
        Dots per inch of formats made of pixels.

    Raises
    ------
    TypeError
        If `ax` is not an Axes.
    ValueError
        If the suffix is unknown.
    OSError
        If the folder does not exist or cannot be written; a file of that name is then as it was.

    Examples
    --------
    >>> import polarlib
    >>> save(polarlib.plot.polynomial(polarlib.schedule("jordan")), "jordan.docx")
    Traceback (most recent call last):
    ...
    ValueError: save: unknown suffix '.docx' in 'jordan.docx'; known: ...
    """
    require(ax, Axes, "save", "a matplotlib Axes, which every function of polarlib.plot returns")
    path, dpi = checked_path("path", path), number("dpi", dpi, 1, HIGHEST_DPI)
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


def whole_figure(ax: Axes) -> Any:
    """The whole figure, also of Axes in a subfigure."""
    return ax.figure.canvas.figure


def type_and_value(value: object) -> str:
    return f"{type(value).__name__} {shown(value)}"


def require(value: object, kind: type, function: str, remedy: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{function} takes {remedy}; got {type_and_value(value)}")


def new_axes(ax: Axes | None, legend_rows: int) -> Axes:
    """The given Axes as they are, or new ones, dark on white under every rcParams."""
    if ax is not None:
        require(ax, Axes, "ax", "one matplotlib Axes, or None for a new figure")
        return ax
    size = (WIDTH, HEIGHT + LEGEND_ROW * legend_rows)
    new = _Figure(figsize=size, layout="constrained", facecolor="white")
    ax = new.add_subplot(axes_class=_Axes, facecolor="white")
    ax.tick_params(which="both", colors=INK, labelsize=10)
    ax.spines[:].set_color(INK)
    ax.grid(color="#DDDDDD", linewidth=0.6)
    ax.set_axisbelow(True)
    for written in (ax.xaxis.label, ax.yaxis.label, ax.title):
        written.set(color=INK, fontsize=11)
    return ax


def ink_of(ax: Axes) -> Any:
    """The colour of the writing: the caller's ground may be dark."""
    return ax.xaxis.label.get_color()


def label_axes(ax: Axes, x: str, y: str, title: str) -> None:
    size = ax.title.get_fontsize()
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if title:
        ax.set_title(textwrap.fill(plain_text(title), 66), color=ink_of(ax), fontsize=size)


def plain_text(text: str) -> str:
    """A name as matplotlib shows it: no mathematics in dollars, and not hidden from legends."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def shape_text(t: Trace) -> str:
    return " × ".join(map(str, t.shape))


def title_of(t: Trace) -> str:
    simulated = " (simulated)" if t.simulated else ""
    form = f", {t.form} form" if t.form else ""
    return f"{t.method}, {shape_text(t)}, {t.precision}{simulated}{form}"


def hidden_note(y: np.ndarray) -> str:
    """What a logarithmic axis up to the ceiling does not show of a line."""
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


def log_ordinate(ax: Axes, floor: float = 0.0, ceiling: float = HIGHEST) -> None:
    """Make the ordinate logarithmic; it shows every line between floor and ceiling."""
    y = np.concatenate([np.ravel(line.get_ydata()).astype(float) for line in ax.get_lines()])
    y = np.minimum(y[np.isfinite(y) & (y > floor)], ceiling)
    low, high = (float(y.min()), float(y.max())) if y.size else EMPTY
    # A margin, and a decade at least, so that there is a power of ten to read.
    margin = max(high**0.05 / low**0.05, (10 * low / high) ** 0.5)
    ax.set_ylim(low / margin, min(high * margin, ceiling))  # before the scale, which warns of none
    ax.set_yscale("log")


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


def add_legend(ax: Axes, columns: int = 1) -> None:
    place: dict[str, Any] = {"loc": "best", "ncols": 1}
    if whole_figure(ax).get_layout_engine() is not None:
        drop = ScaledTranslation(0, -LEGEND_DROP / 72, whole_figure(ax).dpi_scale_trans)
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "ncols": columns}
        place |= {"bbox_transform": ax.transAxes + drop, "borderaxespad": 0}
    ax.legend(
        fontsize=9,
        labelcolor=ink_of(ax),
        facecolor=ax.get_facecolor(),
        edgecolor="#BBBBBB",
        handlelength=3.5,
        **place,
    )
