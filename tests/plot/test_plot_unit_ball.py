"""The picture of a unit ball is the ball: its boundary has norm 1 and no point is farther out."""

import matplotlib.style
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from scipy.spatial import ConvexHull

from polarlib import norms, plot

NORMS = {
    "spectral": norms.spectral(),
    "nuclear": norms.nuclear(),
    "frobenius": norms.frobenius(),
    "schatten": norms.schatten(3),
    "signs": norms.lp(np.inf),
    "entries": norms.lp(1),
    "columns": norms.induced(1, 2),
    "f_muon": norms.f_muon(0.3),
    "scaled": 0.5 * norms.nuclear(),
    "k_support": norms.ky_fan_dual(2, 2),
}
SUMS = {"s_muon": norms.s_muon(0.4, 0.5), "s_fanion": norms.s_fanion(1, 0.5, 0.5)}


def ball(ax, i=0):
    """Boundary of the i-th norm."""
    return [line.get_xydata() for line in ax.get_lines() if line.get_gid() == "unit_ball"][i]


def lmos(ax, i=0):
    """Points and directions of the arrows of the i-th norm."""
    points = [line.get_xydata() for line in ax.get_lines() if line.get_gid() == "lmo"][i]
    arrows = [q for q in ax.collections if isinstance(q, Quiver)][i]
    np.testing.assert_array_equal(arrows.XY, points)
    return points, np.stack([arrows.U, arrows.V], axis=1)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def render(ax):
    ax.figure.canvas.figure.draw_without_rendering()
    return ax


@pytest.mark.parametrize("name", NORMS | SUMS)
def test_arrows_start_at_the_farthest_point_of_the_ball(name):
    n = (NORMS | SUMS)[name]
    ax = render(plot.unit_ball(n))
    points, along = lmos(ax)
    boundary = ball(ax)
    np.testing.assert_array_equal(boundary[0], boundary[-1])
    support = (along * points).sum(axis=1)
    assert ((boundary @ along.T).max(axis=0) <= support * (1 + 1e-12)).all()
    for direction, value in zip(along, support, strict=True):
        assert value == pytest.approx(float(n.dual_norm(np.diag(direction))), rel=1e-12)


@pytest.mark.parametrize("name", NORMS)
def test_the_boundary_has_norm_one_and_encloses_the_lmos(name):
    n = NORMS[name]
    ax = plot.unit_ball(n)
    boundary = ball(ax)
    assert [float(n(np.diag(p))) for p in boundary[::37]] == pytest.approx([1] * 39)
    # Kinks of polygons are among the rays; arcs are cut by at most (2 pi / 1440)^2 / 8.
    hull = ConvexHull(boundary)
    points, _ = lmos(ax)
    outside = points @ hull.equations[:, :2].T + hull.equations[:, 2]
    assert outside.max() < 1e-5


@pytest.mark.parametrize("name", ["spectral", "f_muon", "columns"])
def test_the_hull_of_lmos_is_the_ball(name, monkeypatch):
    n = NORMS[name]
    by_value = ball(plot.unit_ball(n))

    def unknown(self, x):
        raise NotImplementedError

    monkeypatch.setattr(type(n), "__call__", unknown)
    by_lmo = ball(plot.unit_ball(n))
    one, other = ConvexHull(by_value), ConvexHull(by_lmo)
    assert one.volume == pytest.approx(other.volume, rel=1e-5)
    assert (by_value @ other.equations[:, :2].T + other.equations[:, 2]).max() < 1e-4


def test_closed_forms():
    eighth = np.array([[0.75, 0.25], [0.25, 0.75]])  # u1 v1^H / 2 + sign / 4
    octagon = np.concatenate([eighth * sign for sign in ([1, 1], [1, -1], [-1, 1], [-1, -1])])
    found = ball(plot.unit_ball(SUMS["s_fanion"]))[:-1]
    assert sorted(map(tuple, found.round(12))) == sorted(map(tuple, octagon))
    square = ball(plot.unit_ball(NORMS["spectral"]))
    assert np.abs(square).max(axis=1) == pytest.approx(np.ones(len(square)))


def test_several_norms_in_one_picture_differ():
    ax = None
    for n in (*NORMS.values(), *SUMS.values()):
        ax = plot.unit_ball(n, ax)
    lines = [line for line in ax.get_lines() if line.get_gid() == "unit_ball"]
    styles = {(to_hex(ln.get_color()), ln.get_linestyle(), ln.get_marker()) for ln in lines}
    assert len(styles) == len(lines) == 12
    assert legend(render(ax))[:3] == ["spectral()", "nuclear()", "frobenius()"]
    low, high = ax.get_xlim()
    assert -low == high == ax.get_ylim()[1] > 2  # half the nuclear norm has a ball of radius 2
    assert ax.get_aspect() == 1


def test_everything_is_in_the_picture():
    for first, second in ((norms.spectral(), 100 * norms.spectral()), (1e3 * norms.lp(1),) * 2):
        ax = plot.unit_ball(second, plot.unit_ball(first))
        for i in range(2):
            points, along = lmos(ax, i)
            assert np.abs(points + along).max() < ax.get_xlim()[1]
        assert ax.get_xlim()[1] < 1.4 * np.abs(ball(ax)).max()


def test_nothing_is_cut_off():
    ax = plot.unit_ball(norms.spectral())
    for n in (norms.nuclear(), norms.frobenius(), norms.f_muon(0.5)):
        ax = plot.unit_ball(n, ax)
        figure = render(ax).figure
        width, height = figure.canvas.get_width_height()
        box = ax.get_tightbbox()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height


def test_labels_and_foreign_axes(tmp_path):
    with matplotlib.style.context("dark_background"):
        figure = Figure()
        ax = figure.add_subplot()
        same = plot.unit_ball(norms.f_muon(0.5), ax, label="$F$-Muon")
    assert same is ax
    assert legend(render(ax)) == [r"\$F\$-Muon"]
    assert "singular value" in ax.get_xlabel()
    plot.save(ax, tmp_path / "ball.svg")
    assert (tmp_path / "ball.svg").stat().st_size > 1000


def test_shapes():
    made_for = ball(plot.unit_ball(norms.rms_to_rms(2, 8)))
    np.testing.assert_allclose(np.abs(made_for).max(), 0.5, rtol=1e-12)  # sqrt(2 / 8)
    ky_fan = ball(plot.unit_ball(norms.ky_fan(3), shape=(3, 4)))
    np.testing.assert_allclose(np.abs(ky_fan).sum(axis=1), 1, rtol=1e-12)
    with pytest.raises(ValueError, match="k = 3"):
        plot.unit_ball(norms.ky_fan(3))
    for shape in ((1, 5), (2,), (2.0, 2), "22", 3, (2, 2, 2)):
        with pytest.raises(
            ValueError,
            match=r"shape must be .* of at least 2, got",
        ):
            plot.unit_ball(norms.spectral(), shape=shape)
    with pytest.raises(ValueError, match="2 x 8"):
        plot.unit_ball(norms.rms_to_rms(2, 8), shape=(3, 3))


def test_bad_calls():
    for wrong in ("spectral", None, norms.spectral, norms.modular([norms.spectral()])):
        with pytest.raises(TypeError, match="unit_ball takes a norm of matrices"):
            plot.unit_ball(wrong)
    with pytest.raises(TypeError, match="ax takes one matplotlib Axes"):
        plot.unit_ball(norms.spectral(), "ax")
