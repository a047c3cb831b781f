"""Unit balls of norms."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from polarlib.arrays.checks import flag, pair
from polarlib.norms.base import MatrixNorm
from polarlib.plot import figures
from polarlib.plot.figures import LINES, MARKERS
from polarlib.plot.legends import add_legend, checked_colours

RAYS, ARROWS = 1440, 16  # directions in a picture of a unit ball; of both, diagonals are multiples
ARROW = 0.16  # length of an arrow, in units of the largest ball so far
MOST_ENTRIES = 10**8  # of all matrices along the rays
BALL_SIZE = 5.6, 6.2  # inches


def unit_ball(
    norm: MatrixNorm,
    ax: Axes | None = None,
    *,
    label: str | None = None,
    shape: tuple[int, int] | None = None,
    title: str | None = None,
    legend: bool = True,
    color: Any = None,
) -> Axes:
    """Plot the unit ball of a norm in two singular values, and the values of its lmo.

    Parameters
    ----------
    norm : Norm
        A norm of matrices, from :mod:`polarlib.norms`. Call again with the returned Axes for
        further norms in one plot: colours, line styles and markers differ.
    ax : matplotlib.axes.Axes, optional
        Axes to draw into; a new figure by default.
    label : str, optional
        Label in the legend; by default the expression of the norm.
    shape : tuple of int, optional
        Shape (m, n) of the matrices ``diag(s1, s2, 0, ...)``; by default the shape of the norm, or
        2 x 2. Ky Fan norms need min(m, n) of at least k.
    title : str, optional
        Title in place of the default; "" for none.
    legend : bool, optional
        Whether to draw a legend.
    color : color, optional
        Colour of the ball; by default the next of the cycle.

    Returns
    -------
    matplotlib.axes.Axes
        The boundary of the ball, signs of the singular values included. For 16 directions
        G = diag(g1, g2) an arrow along G begins at the diagonal of the lmo of G, the linear
        maximisation oracle: the point of the ball that is farthest in this direction.

    Raises
    ------
    TypeError
        If `norm` is not a norm of matrices or `ax` not an Axes.
    ValueError
        If the shape has fewer than two singular values, or is not a shape of the norm.

    Notes
    -----
    The boundary is ``d / norm(d)`` over 1440 directions d. For a norm without a closed form, such
    as ``s_fanion``, it is the convex hull of the lmos. All norms of this library are invariant
    under changes of sign of rows, so that the diagonal of an lmo is in the ball.

    Examples
    --------
    >>> from polarlib import norms
    >>> ax = unit_ball(norms.spectral())
    >>> ax = unit_ball(norms.nuclear(), ax)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['spectral()', 'nuclear()']
    """
    figures.require(norm, MatrixNorm, "unit_ball", "a norm of matrices, such as norms.spectral()")
    shape = pair("shape", getattr(norm, "shape", None) or (2, 2) if shape is None else shape, 2)
    if RAYS * shape[0] * shape[1] > MOST_ENTRIES:
        raise ValueError(f"shape must have at most {MOST_ENTRIES // RAYS} entries, got {shape}")
    if label is not None:
        label = figures.checked_text("label", label)
    boundary = _boundary(norm, shape)
    title, legend = figures.checked_title(title), flag("legend", legend)
    new = ax is None
    ax = figures.new_axes(ax, BALL_SIZE)
    if new:
        # The layout of pictures with equal axes.
        figures.whole_figure(ax).set_layout_engine("compressed")
    i = sum(line.get_gid() == "unit_ball" for line in ax.get_lines())
    (colour,) = checked_colours(ax, color, 1, i)
    size = figures.marker_size(6)
    ax.plot(
        *boundary.T,
        color=colour,
        linestyle=LINES[i % len(LINES)],
        linewidth=figures.line_width(1.8),
        marker=MARKERS[i % len(MARKERS)],
        markevery=[],
        markersize=size,
        label=textwrap.fill(figures.plain_text(repr(norm) if label is None else label), 70),
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
        markersize=size,
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
    # Space for the arrows, at least that of earlier calls.
    reach = max(1.04 * max(drawn, float(np.abs(points + tips).max())), *ax.get_xlim())
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    automatic = "unit balls, and arrows along G from lmo(G)"
    labels = "first singular value, signed", "second singular value, signed"
    figures.label_axes(ax, *labels, title, automatic)
    if legend:
        add_legend(ax)
    return ax


def _diagonal(s: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return matrices diag(s1, s2, 0, ...), one per row of s."""
    x = np.zeros((len(s), *shape))
    x[:, 0, 0], x[:, 1, 1] = s.T
    return x


def _lmos(norm: MatrixNorm, along: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the diagonals of the lmos of directions."""
    return np.asarray(norm.lmo(_diagonal(along, shape)))[:, (0, 1), (0, 1)]


def _boundary(norm: MatrixNorm, shape: tuple[int, int]) -> np.ndarray:
    """Return the boundary of the ball, counterclockwise and closed, shape (points, 2)."""
    angles = np.arange(RAYS) * 2 * np.pi / RAYS
    along = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    try:
        points = along / np.asarray(norm(_diagonal(along, shape)))[:, None]
    except NotImplementedError:
        from scipy.spatial import ConvexHull  # here, as its import is slow

        # Half a step off the axes and diagonals, where lmos choose among several points.
        angles = angles + np.pi / RAYS
        along = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        points = _lmos(norm, along, shape)
        points = points[ConvexHull(points).vertices]
    return np.concatenate([points, points[:1]])
