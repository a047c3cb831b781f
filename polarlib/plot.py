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

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from polarlib._checks import choice, items, number, pair, shown, text
from polarlib._checks import path as checked_path
from polarlib._norms.base import MatrixNorm
from polarlib._schedule import Schedule
from polarlib.formats import FORMATS, odd_value, target_value, turning_points
from polarlib.result import Trace, ignore_float_errors, write_whole

__all__ = ["compare", "convergence", "polynomial", "save", "singular_values", "unit_ball"]

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

FIGURES = {
    "orthogonality": r"orthogonality $\|X^H X - I\|_F / \sqrt{k}$",
    "backward_error": r"backward error $\|A - X H\|_F / \|A\|_F$",
    "distance": r"distance $\|X - U\|_F / \sqrt{k}$",
}

# The sizes below were chosen by eye.
WIDTH, HEIGHT, LEGEND_ROW = 7.0, 4.4, 0.21  # inches
LEGEND_DROP = 40  # points from the axes down to the legend: tick labels and axis label
FEW = 8  # singular values that get a marker and a line in the legend each
MARKED = 30  # steps that get a marker each
CEILING = 1e3  # an error above it says no more than that the iteration diverged
HIGHEST = 1e200  # end of an ordinate: the ticks that matplotlib tries beyond it overflow
NEAR = 1.4  # a divergence limit up to this multiple of the upper bound is in the picture
FAR = 1e3  # values of s(x) beyond are not drawn
AS_FAR = 0.999  # of the worst error counts as it
MANY = 5000  # points of worst error that are too many for a picture
BETWEEN = 16  # samples between two turning points of a composition
BISECTIONS = 60
RAYS, ARROWS = 1440, 16  # directions in a picture of a unit ball; of both, diagonals are multiples
ARROW = 0.16  # length of an arrow, in units of the largest ball so far
MOST_ENTRIES = 10**8  # of all matrices along the rays
HIGHEST_DPI = 1200
BALL_SIZE = 5.6, 6.2  # inches
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
        return _root(self)._repr_png_()


def convergence(t: Trace, ax: Axes | None = None) -> Axes:
    """Plot orthogonality, backward error and distance of a trace against the products spent.

    Parameters
    ----------
    t : Trace
        From :func:`polarlib.measure`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        One line a figure. The abscissa is the step where products do not tell the steps apart,
        as in methods that factorise.

    Raises
    ------
    TypeError
        If `t` is not a Trace or `ax` not an Axes.

    Examples
    --------
    >>> import numpy as np, polarlib
    >>> ax = convergence(polarlib.measure(np.diag([1.0, 0.1]), "polar_express"))
    >>> ax.get_xlabel(), ax.get_yscale(), len(ax.get_lines())
    ('matrix products (one marker a step)', 'log', 3)
    """
    _require(t, Trace, "convergence", "a Trace, which polarlib.measure makes")
    ax = _axes(ax, legend_rows=4)
    by_products = bool(np.all(np.diff(t.matmuls) > 0))
    x = t.matmuls if by_products else np.arange(t.steps + 1)
    every = -(-len(x) // MARKED)
    for i, (name, label) in enumerate(FIGURES.items()):
        y = getattr(t, name)
        lines = ax.plot(
            x,
            y,
            color=(BLUE, VERMILLION, GREEN)[i],
            linestyle=LINES[i],
            marker=MARKERS[i],
            # Coinciding lines stay visible: the later, the smaller.
            markersize=8 - 2 * i,
            linewidth=2.4 - 0.5 * i,
            markevery=every,
            label=label + _note(y),
        )
        _zeros(ax, lines[0])
    marker = "one marker a step" if every == 1 else f"one marker every {every} steps"
    unit = f"matrix products ({marker})" if by_products else "step"
    _label(ax, unit, "error (dimensionless)", _title(t))
    _log(ax, ceiling=CEILING)
    _abscissa(ax, x)
    ax.xaxis.set_major_locator(FixedLocator(x.tolist(), nbins=12))
    _roundoff(ax, t.precision)
    _legend(ax)
    return ax


def singular_values(t: Trace, ax: Axes | None = None) -> Axes:
    """Plot the path of every singular value over the steps.

    Parameters
    ----------
    t : Trace
        From :func:`polarlib.measure`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default. More than eight paths add a colour bar beside it.

    Returns
    -------
    matplotlib.axes.Axes
        One line a singular value, coloured by the value that it starts from, over a band from the
        smallest to the largest. The step at which the iterate ceased to be finite is marked.

    Raises
    ------
    TypeError
        If `t` is not a Trace or `ax` not an Axes.
    ValueError
        If the trace has no singular values.

    Notes
    -----
    A trace is taken in double precision, where a singular value below ``max(m, n) * 2.2e-16`` of
    the largest cannot be told from zero. The legend counts the paths that start there, and the axis
    does not reach down to them.

    Examples
    --------
    >>> import numpy as np, polarlib
    >>> ax = singular_values(polarlib.measure(np.diag([1.0, 0.1]), "polar_express"))
    >>> ax.get_xlabel(), ax.get_yscale(), len(ax.get_lines())  # two paths, and a line at 1
    ('step', 'log', 3)
    """
    _require(t, Trace, "singular_values", "a Trace, which polarlib.measure makes")
    values = np.asarray(t.singular_values, dtype=float)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(
            f"singular_values: the trace of {t.method!r} has no singular values (an array of shape "
            f"{values.shape}); take it with polarlib.measure"
        )
    start, k = values[0], values.shape[1]
    few = k <= FEW
    ax = _axes(ax, legend_rows=3 + few * -(-k // 2))
    finite = np.isfinite(values).all(axis=1)
    known, steps = values[finite], np.arange(len(values))
    # Zero to double precision, as PolarResult.rank has it.
    zero = max(t.shape) * np.finfo(float).eps * start[np.isfinite(start)].max(initial=0.0)
    kept = start[np.isfinite(start) & (start > zero)]
    low, high = (kept.min(), kept.max()) if kept.size else (1.0, 1.0)
    # The light end of viridis is faint on white.
    cmap = ListedColormap(colormaps["viridis"](np.linspace(0, 0.9, 256)))
    norm = LogNorm(low, high, clip=True)
    if known.size:
        ax.fill_between(
            steps[finite],
            known.min(axis=1),
            known.max(axis=1),
            color=SKY,
            alpha=0.2,
            linewidth=0,
            label="from the smallest to the largest",
        )
    # A path of one finite value has no line to be seen by.
    marked = few or finite.sum() < 2
    for i, line in enumerate(ax.plot(steps, values, linewidth=1.6 if few else 0.7)):
        line.set(color=cmap(norm(np.nan_to_num(start[i]))), zorder=2.5)
        if marked:
            line.set(marker=MARKERS[i % len(MARKERS)], markersize=6)
        if few:
            line.set_label(rf"$\sigma_{{{i + 1}}}$, at the start {start[i]:.3g}")
            _zeros(ax, line)
    ax.axhline(1.0, color=_ink(ax), linewidth=0.8, linestyle=":", label="1: orthonormal")
    _label(ax, "step", "singular value\n(input normalised to norm 1)", _title(t))
    _log(ax, floor=zero)
    if not finite.all():
        ax.axvline(
            int(np.argmin(finite)),
            color=VERMILLION,
            linewidth=1.5,
            linestyle="--",
            label=f"not finite in {t.precision} from step {np.argmin(finite)} on",
        )
    lost = int((start <= zero).sum())
    if lost:
        ax.plot([], [], " ", label=f"{lost} of {k} start at zero to double precision")
    _abscissa(ax, steps)
    ax.xaxis.set_major_locator(FixedLocator(steps.tolist(), nbins=12))
    if not few and low < high:
        bar = ax.figure.colorbar(ScalarMappable(norm, cmap), ax=ax)
        bar.set_label(
            "singular value at the start",
            color=_ink(ax),
            fontsize=ax.yaxis.label.get_fontsize(),
        )
        bar.ax.tick_params(colors=_ink(ax), which="both")
    _legend(ax, columns=2 if few and k > 2 else 1)
    return ax


@ignore_float_errors
def polynomial(s: Schedule, ax: Axes | None = None) -> Axes:
    """Plot what a schedule makes of a singular value: its composition s(x).

    Parameters
    ----------
    s : Schedule
        From :func:`polarlib.schedule`, :mod:`polarlib.design` or your own.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        s(x / input_safety), x a singular value of the normalised input, and, faintly, the
        compositions of its first steps, from a tenth of its lower bound to a little above its
        upper bound or, where that is near, its divergence limit; a shaded band
        within its error of its target on its interval, and dots where it is as far from it as that:
        the points of equioscillation, if it is a best composition.

    Raises
    ------
    TypeError
        If `s` is not a Schedule or `ax` not an Axes.

    Examples
    --------
    >>> import polarlib
    >>> ax = polynomial(polarlib.schedule("jordan"))
    >>> ax.get_title(), ax.get_xscale()
    ('jordan: 5 steps, 15 matrix products', 'log')
    """
    _require(s, Schedule, "polynomial", "a Schedule, such as polarlib.schedule('polar_express')")
    ax = _axes(ax, legend_rows=4)
    divisor, error = s.input_divisor, s.error()
    limit = s.divergence_limit * divisor  # as a singular value before the division
    near = limit <= NEAR * s.upper
    right = 1.2 * limit if near and limit > s.upper else 1.05 * s.upper
    left = s.lower / 10
    # The last decade holds most of the turning points.
    x = np.linspace(right / 10 if left else 0, right, 2000)
    if left:
        x = np.concatenate([np.geomspace(left, right, 4000), x])
    x = np.union1d(x, [s.lower, s.upper])
    inside = (x >= s.lower) & (x <= s.upper)
    aim = target_value(s.target, x[inside])
    named = "1" if s.target == "polar" else s.target
    ax.fill_between(
        x[inside],
        aim - error,
        aim + error,
        color=SKY,
        alpha=0.3,
        linewidth=0,
        label=f"within {error:.3g} of {named} on [{s.lower:.3g}, {s.upper:.3g}]",
    )
    # Step by step, not by s.truncate(k): a part may swing wider than a whole schedule may.
    top, last, y = float(aim.max()) + error, len(s), x / divisor
    value = "s(x)" if divisor == 1 else f"s(x / {divisor:g})"
    for k, step in enumerate(s.steps, 1):
        y = odd_value(step, y, s.stride)
        top = max(top, float(y[inside].max()))
        # Far out of the picture a curve is cut, since drawing overflows as well.
        shown = np.where(np.abs(y) < FAR, y, np.nan)
        if k == last:
            label = f"{value}, slope {s.slope / divisor:.4g} at 0"
            ax.plot(x, shown, color=BLUE, linewidth=1.8, label=label)
        else:
            label = f"after {k} to {last - 1} steps" if last > 2 else "after 1 step"
            ax.plot(
                x,
                shown,
                color=_ink(ax),
                alpha=0.15 + 0.35 * k / last,
                linewidth=0.9,
                label=label if k == 1 else None,
            )
    worst = _farthest(s, error)
    if len(worst):
        at = f"{len(worst)} {'point' if len(worst) == 1 else 'points'}"
        label = f"worst error, at {at}"
        ax.plot(worst, s(worst / divisor), ".", color=BLUE, markersize=5, label=label)
    if limit < np.inf:
        beyond = f"divergence limit {_above_one(limit)}"
        if near:
            ax.axvline(limit, color=VERMILLION, linewidth=1.5, linestyle="--", label=beyond)
        else:
            ax.plot([], [], " ", label=beyond)
    root = f"root x = λ^(1/{s.stride}) of an eigenvalue of the normalised input"
    _label(
        ax,
        "singular value x of the normalised input" if s.stride == 2 else root,
        value,
        f"{s.name}: {last} {'step' if last == 1 else 'steps'}, {s.matmuls} matrix products",
    )
    if left:
        ax.set_xscale("log")
    ax.set_xlim(left, right)
    ax.set_ylim(0, 1.05 * top)
    _legend(ax)
    return ax


def _farthest(s: Schedule, error: float) -> np.ndarray:
    """Points of the interval where the error is the worst one; none where they are too many."""
    x = np.array(s.divided(s.lower, s.upper, extended=False))
    for k, step in enumerate(s.steps):
        # Between neighbours the steps before are monotone: where they meet a turning point of this
        # one, the composition turns.
        turns = [_meet(s, k, x, t) for t in turning_points(step, s.stride)]
        x = np.unique(np.concatenate([x, *turns]))
        if len(x) > MANY:
            return x[:0]
    between = s.target != "polar"
    if between:  # the worst differences from a curve need not be where s turns
        x = np.unique(np.linspace(x[:-1], x[1:], BETWEEN))
    e = np.abs(s(x) - target_value(s.target, x * s.input_divisor))
    far = e >= AS_FAR * error
    if between:
        around = np.concatenate([[-np.inf], e, [-np.inf]])
        far &= (e >= around[:-2]) & (e >= around[2:])
    return x[far] * s.input_divisor


def _meet(s: Schedule, k: int, x: np.ndarray, t: float) -> np.ndarray:
    """Where the first k steps take the value t, by bisection between neighbours."""

    def value(x: np.ndarray) -> np.ndarray:
        for step in s.steps[:k]:
            x = odd_value(step, x, s.stride)
        return x - t

    ends = value(x)
    inside = ends[:-1] * ends[1:] < 0
    a, b, sign = x[:-1][inside], x[1:][inside], np.sign(ends[:-1][inside])
    for _ in range(BISECTIONS):
        middle = (a + b) / 2
        same = np.sign(value(middle)) == sign
        a, b = np.where(same, middle, a), np.where(same, b, middle)
    return a


def compare(
    traces: Iterable[Trace], ax: Axes | None = None, *, figure: str = "orthogonality"
) -> Axes:
    """Plot one figure of several traces against the matrix products spent.

    Parameters
    ----------
    traces : iterable of Trace
        From :func:`polarlib.measure`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.
    figure : {"orthogonality", "backward_error", "distance"}, optional
        Which figure.

    Returns
    -------
    matplotlib.axes.Axes
        One line a trace; colours, markers and line styles all differ.

    Raises
    ------
    TypeError
        If `traces` does not hold traces, or `ax` is not an Axes.
    ValueError
        If there is no trace, or no such figure.

    Notes
    -----
    Factorisations are not products: the work of a method that factorises is not on the axis.

    Examples
    --------
    >>> import numpy as np, polarlib
    >>> a = np.diag([1.0, 0.1])
    >>> ax = compare([polarlib.measure(a, name) for name in ("jordan", "polar_express")])
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['jordan, float64, plain', 'polar_express, float64, plain']
    """
    if isinstance(traces, Trace | str) or not isinstance(traces, Iterable):
        raise TypeError(
            f"compare takes a list of Trace, got {_named(traces)}; for one trace use convergence"
        )
    traces = items("traces", traces, "a list of at least one Trace")
    for t in traces:
        _require(t, Trace, "compare", "a list of Trace, which polarlib.measure makes")
    figure = choice("figure", figure, FIGURES)
    several = len({t.shape for t in traces}) > 1
    labels = []
    for t in traces:
        simulated = " (simulated)" if t.simulated else ""
        shape = f", {_shape(t)}" if several else ""
        text = f"{_text(t.method)}, {t.precision}{simulated}{', ' * bool(t.form)}{t.form}{shape}"
        labels.append(textwrap.fill(text + _note(getattr(t, figure)), 80))
    columns = 2 if len(labels) > 3 and max(map(len, labels)) <= 34 else 1
    rows = sum(label.count("\n") + 1 for label in labels)
    ax = _axes(ax, legend_rows=-(-rows // columns))
    colours = (_ink(ax), *COLOURS)
    for i, (t, label) in enumerate(zip(traces, labels, strict=True)):
        lines = ax.plot(
            t.matmuls,
            getattr(t, figure),
            color=colours[i % len(colours)],
            linestyle=LINES[i % len(LINES)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=6,
            markevery=-(-len(t.matmuls) // MARKED),
            linewidth=1.5,
            label=label,
        )
        _zeros(ax, lines[0])
        _abscissa(ax, t.matmuls)
    ordinate = FIGURES[figure].replace(" $", " (dimensionless)\n$")
    _label(ax, "matrix products", ordinate, "" if several else f"matrix of {_shape(traces[0])}")
    _log(ax, ceiling=CEILING)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(ax, columns)
    return ax


def unit_ball(
    norm: MatrixNorm,
    ax: Axes | None = None,
    *,
    label: str | None = None,
    shape: tuple[int, int] | None = None,
) -> Axes:
    """Plot the unit ball of a norm in two singular values, and where its lmo goes.

    Parameters
    ----------
    norm : Norm
        Of matrices, from :mod:`polarlib.norms`. Call again with the returned Axes for further
        norms in one picture: colours, line styles and markers differ.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.
    label : str, optional
        What the legend calls the norm; by default how it is written.
    shape : tuple of int, optional
        (m, n) of the matrices ``diag(s1, s2, 0, ...)``; by default the shape that the norm was made
        for, or 2 x 2. Ky Fan norms need min(m, n) of at least k.

    Returns
    -------
    matplotlib.axes.Axes
        The boundary of the ball, signs of the singular values included; and for 16 directions
        G = diag(g1, g2) an arrow along G from the diagonal of its lmo, the point of the ball that
        is farthest that way. No arrow of a direction could leave a point farther out.

    Raises
    ------
    TypeError
        If `norm` is no norm of matrices or `ax` not an Axes.
    ValueError
        If the shape has not two singular values, or the norm does not fit it.

    Notes
    -----
    The boundary is ``d / norm(d)`` over 1440 directions d. Where a norm has no closed form, as
    ``s_fanion`` has none, it is the convex hull of the lmos: every norm of this library is blind to
    the signs of rows, so that the diagonal of an lmo is in the ball as well.

    Examples
    --------
    >>> from polarlib import norms
    >>> ax = unit_ball(norms.spectral())
    >>> ax = unit_ball(norms.nuclear(), ax)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['spectral()', 'nuclear()']
    """
    _require(norm, MatrixNorm, "unit_ball", "a norm of matrices, such as norms.spectral()")
    shape = pair("shape", getattr(norm, "shape", None) or (2, 2) if shape is None else shape, 2)
    if RAYS * shape[0] * shape[1] > MOST_ENTRIES:
        raise ValueError(f"shape must have at most {MOST_ENTRIES // RAYS} entries, got {shape}")
    if label is not None:
        label = text("label", label)
    boundary = _boundary(norm, shape)
    new = ax is None
    ax = _axes(ax, legend_rows=2)
    if new:
        _root(ax).set_size_inches(*BALL_SIZE)
        _root(ax).set_layout_engine("compressed")  # the layout of pictures with equal axes
    i = sum(line.get_gid() == "unit_ball" for line in ax.get_lines())
    colour = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)[i % len(COLOURS)]
    ax.plot(
        *boundary.T,
        color=colour,
        linestyle=LINES[i % len(LINES)],
        linewidth=1.8,
        marker=MARKERS[i % len(MARKERS)],
        markevery=[],
        markersize=6,
        label=textwrap.fill(_text(repr(norm) if label is None else label), 70),
        gid="unit_ball",
    )
    # Between the axes and diagonals, where several points of a ball may be farthest.
    angles = (np.arange(ARROWS) + 0.5) * 2 * np.pi / ARROWS
    along = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    points = _lmos(norm, along, shape)
    ax.plot(
        *points.T,
        color=colour,
        linestyle="none",
        marker=MARKERS[i % len(MARKERS)],
        markersize=6,
        gid="lmo",
    )
    drawn = max(float(np.abs(line.get_xydata()).max()) for line in ax.get_lines())
    tips = ARROW * drawn * along
    ax.quiver(
        *points.T,
        *tips.T,
        color=colour,
        alpha=0.75,
        angles="xy",
        scale_units="xy",
        scale=1.0,
        width=0.004,
        headwidth=4.5,
        headlength=5.5,
        headaxislength=5.0,
    )
    # Room for the arrows, not less than there was: earlier calls drew some too.
    reach = max(1.04 * max(drawn, float(np.abs(points + tips).max())), *ax.get_xlim())
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    title = "unit balls, and arrows along G from lmo(G)"
    _label(ax, "first singular value, signed", "second singular value, signed", title)
    _legend(ax)
    return ax


def _diagonal(s: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Matrices diag(s1, s2, 0, ...), one for each row of s."""
    x = np.zeros((len(s), *shape))
    x[:, 0, 0], x[:, 1, 1] = s.T
    return x


def _lmos(norm: MatrixNorm, along: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Diagonals of the lmos of directions."""
    return np.asarray(norm.lmo(_diagonal(along, shape)))[:, (0, 1), (0, 1)]


def _boundary(norm: MatrixNorm, shape: tuple[int, int]) -> np.ndarray:
    """Boundary of the ball, counterclockwise and closed, shape (points, 2)."""
    angles = np.arange(RAYS) * 2 * np.pi / RAYS
    along = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    try:
        points = along / np.asarray(norm(_diagonal(along, shape)))[:, None]
    except NotImplementedError:
        from scipy.spatial import ConvexHull  # slow to import, and seldom needed

        # Half a step off the axes and diagonals, where lmos choose among several points.
        angles = angles + np.pi / RAYS
        along = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        points = _lmos(norm, along, shape)
        points = points[ConvexHull(points).vertices]
    return np.concatenate([points, points[:1]])


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
    >>> save(polynomial(polarlib.schedule("jordan")), "jordan.docx")
    Traceback (most recent call last):
    ...
    ValueError: save: unknown suffix '.docx' in 'jordan.docx'; known: ...
    """
    _require(ax, Axes, "save", "a matplotlib Axes, which every function of polarlib.plot returns")
    path, dpi = checked_path("path", path), number("dpi", dpi, 1, HIGHEST_DPI)
    root = _root(ax)
    known = sorted(root.canvas.get_supported_filetypes())
    suffix = Path(path).suffix
    kind = suffix.lower().removeprefix(".")
    if kind not in known:
        allowed = ", ".join(f".{name}" for name in known)
        raise ValueError(
            f"save: unknown suffix {shown(suffix)} in {shown(os.fspath(path))}; known: {allowed}"
        )
    write_whole(path, lambda file: root.savefig(file, format=kind, dpi=dpi, **AS_SHOWN))


def _root(ax: Axes) -> Any:
    """The whole figure, also of Axes in a subfigure."""
    return ax.figure.canvas.figure


def _named(value: object) -> str:
    return f"{type(value).__name__} {shown(value)}"


def _require(value: object, kind: type, function: str, remedy: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{function} takes {remedy}; got {_named(value)}")


def _axes(ax: Axes | None, legend_rows: int) -> Axes:
    """The given Axes as they are, or new ones, whatever rcParams say, dark on white."""
    if ax is not None:
        _require(ax, Axes, "ax", "one matplotlib Axes, or None for a new figure")
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


def _ink(ax: Axes) -> Any:
    """The colour of the writing: the caller's ground may be dark."""
    return ax.xaxis.label.get_color()


def _label(ax: Axes, x: str, y: str, title: str) -> None:
    size = ax.title.get_fontsize()
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if title:
        ax.set_title(textwrap.fill(_text(title), 66), color=_ink(ax), fontsize=size)


def _text(text: str) -> str:
    """A name as matplotlib shows it: no mathematics in dollars, and not hidden from legends."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _shape(t: Trace) -> str:
    return " × ".join(map(str, t.shape))


def _title(t: Trace) -> str:
    simulated = " (simulated)" if t.simulated else ""
    form = f", {t.form} form" if t.form else ""
    return f"{t.method}, {_shape(t)}, {t.precision}{simulated}{form}"


def _note(y: np.ndarray) -> str:
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


def _above_one(x: float) -> str:
    return f"1 + {x - 1:.2g}" if 1 < x < 1.01 else f"{x:.4g}"


def _log(ax: Axes, floor: float = 0.0, ceiling: float = HIGHEST) -> None:
    """Make the ordinate logarithmic; it shows every line between floor and ceiling."""
    y = np.concatenate([np.ravel(line.get_ydata()).astype(float) for line in ax.get_lines()])
    y = np.minimum(y[np.isfinite(y) & (y > floor)], ceiling)
    low, high = (float(y.min()), float(y.max())) if y.size else EMPTY
    # A margin, and a decade at least, so that there is a power of ten to read.
    margin = max(high**0.05 / low**0.05, (10 * low / high) ** 0.5)
    ax.set_ylim(low / margin, min(high * margin, ceiling))  # before the scale, which warns of none
    ax.set_yscale("log")


def _abscissa(ax: Axes, x: np.ndarray) -> None:
    """Show every step, also those whose figures are not finite."""
    ax.update_datalim([(x[0], 1.0), (x[-1], 1.0)], updatey=False)
    ax.autoscale_view(scaley=False)


def _zeros(ax: Axes, line: Line2D) -> None:
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


def _roundoff(ax: Axes, precision: str) -> None:
    """Mark the unit roundoff if the axis reaches it."""
    low, high = ax.get_ylim()
    if precision in FORMATS and low <= FORMATS[precision].unit_roundoff <= high:
        ax.axhline(
            FORMATS[precision].unit_roundoff,
            color=_ink(ax),
            linewidth=0.8,
            linestyle=":",
            label=f"unit roundoff of {precision}",
        )


def _legend(ax: Axes, columns: int = 1) -> None:
    place: dict[str, Any] = {"loc": "best", "ncols": 1}
    if _root(ax).get_layout_engine() is not None:
        drop = ScaledTranslation(0, -LEGEND_DROP / 72, _root(ax).dpi_scale_trans)
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "ncols": columns}
        place |= {"bbox_transform": ax.transAxes + drop, "borderaxespad": 0}
    ax.legend(
        fontsize=9,
        labelcolor=_ink(ax),
        facecolor=ax.get_facecolor(),
        edgecolor="#BBBBBB",
        handlelength=3.5,
        **place,
    )
