"""Pictures show what the trace or schedule says, leave nothing behind, and refuse bad calls."""

import subprocess
import sys
from dataclasses import replace

import matplotlib
import matplotlib.image
import matplotlib.style
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import polarlib
from polarlib import plot
from polarlib._schedules.images import odd_value
from polarlib.arrays.formats import FORMATS
from polarlib.result import Trace

QUANTITIES = ("orthogonality", "backward_error", "distance")


def make_trace(values, **changes):
    """A trace of given singular values; the figures follow from the first column."""
    values = np.asarray(values, dtype=float)
    error = np.abs(1 - values[:, 0])
    kept = Trace(
        method="made_up",
        precision="bfloat16",
        form="plain",
        shape=(9, values.shape[1]),
        simulated=True,
        matmuls=3 * np.arange(len(values)),
        singular_values=values,
        alignment=np.ones_like(values),
        orthogonality=2 * error,
        backward_error=3 * error,
        distance=error,
    )
    return replace(kept, **changes)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def labelled(ax, start):
    """The one line whose label begins so."""
    (line,) = [line for line in ax.get_lines() if line.get_label().startswith(start)]
    return line


def render(ax):
    """Draw everything: what only fails while drawing fails here."""
    ax.figure.canvas.figure.draw_without_rendering()
    return ax


@pytest.fixture(scope="module")
def many():
    rng = np.random.default_rng(0)
    return polarlib.measure(rng.standard_normal((30, 20)), "polar_express", steps=7)


@pytest.fixture(scope="module")
def few():
    return polarlib.measure(np.diag([1.0, 0.3, 0.01]), "jordan", precision="bfloat16")


@pytest.fixture
def blown_up():
    nan = np.nan
    return make_trace([[0.9, 0.1], [2, 0.5], [1e20, 3], [nan, nan], [nan, nan]])


# ---------------------------------------------------------------------------------- convergence


def test_convergence_draws_the_figures_of_the_trace(many):
    ax = render(plot.convergence(many))
    assert ax.get_xlabel() == "matrix products (one marker a step)"
    assert ax.get_ylabel() == "error (dimensionless)"
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    assert "polar_express" in ax.get_title()
    assert "30 × 20" in ax.get_title()
    for name in QUANTITIES:
        line = labelled(ax, name.replace("_", " "))
        np.testing.assert_array_equal(line.get_xdata(), many.matmuls)
        np.testing.assert_array_equal(line.get_ydata(), getattr(many, name))
        assert line.get_marker() != "None"


def test_convergence_of_a_method_that_factorises_is_over_steps():
    t = polarlib.measure(np.array([[3.0, 1.0], [0.5, 2.0]]), "newton")
    ax = render(plot.convergence(t))
    assert ax.get_xlabel() == "step"
    np.testing.assert_array_equal(labelled(ax, "distance").get_xdata(), np.arange(t.n_steps + 1))


def test_convergence_says_what_a_logarithm_cannot_show(blown_up):
    t = replace(blown_up, distance=np.array([0.5, 0.0, 0.25, np.nan, np.nan]))
    ax = render(plot.convergence(t))
    text = {line.split()[0]: line for line in legend(ax)}
    assert text["orthogonality"].endswith("(up to 2e+20, not finite from step 3 on)")
    assert text["distance"].endswith("(on the lower edge: exactly 0, not finite from step 3 on)")
    assert ax.get_ylim()[1] == plot.CEILING
    assert ax.get_xlim()[1] > t.matmuls[-1]


def test_convergence_shows_the_unit_roundoff_only_where_the_axis_reaches_it(few):
    near = make_trace([[0.5], [0.999]])
    assert "unit roundoff of bfloat16" in legend(plot.convergence(near))
    line = labelled(plot.convergence(near), "unit")
    assert set(line.get_ydata()) == {FORMATS["bfloat16"].unit_roundoff}
    far = replace(near, precision="float64")
    assert not any(text.startswith("unit") for text in legend(plot.convergence(far)))


def test_many_steps_keep_markers_apart():
    t = make_trace(1 - 0.9 ** np.arange(1, 101)[:, None])
    ax = render(plot.convergence(t))
    assert ax.get_xlabel() == "matrix products (one marker every 4 steps)"
    assert len(ax.get_xticks()) <= 13


# ------------------------------------------------------------------------------ singular values


def test_singular_values_draws_every_path(many):
    ax = render(plot.singular_values(many))
    assert ax.get_xlabel() == "step"
    assert ax.get_ylabel() == "singular value\n(input normalised to norm 1)"
    assert ax.get_yscale() == "log"
    paths = ax.get_lines()[:20]
    np.testing.assert_array_equal(
        np.stack([line.get_ydata() for line in paths], axis=1), many.singular_values
    )
    assert to_hex(paths[0].get_color()) != to_hex(paths[-1].get_color())
    (band,) = ax.collections
    low, high = band.get_paths()[0].get_extents().intervaly
    assert (low, high) == (many.singular_values.min(), many.singular_values.max())


def test_colour_bar_only_for_many(many, few):
    assert len(plot.singular_values(many).figure.axes) == 2
    ax = render(plot.singular_values(few))
    assert len(ax.figure.axes) == 1
    assert sum("at the start" in text for text in legend(ax)) == 3
    assert {line.get_marker() for line in ax.get_lines()[:3]} == {"o", "s", "D"}


def test_blow_up_is_marked(blown_up):
    ax = render(plot.singular_values(blown_up))
    line = labelled(ax, "not finite in bfloat16 from step 3 on")
    assert set(line.get_xdata()) == {3}
    assert ax.get_xlim()[1] > 4
    assert ax.get_ylim()[1] > 1e20


def test_blow_up_at_the_first_step_of_many_is_visible():
    t = make_trace([np.linspace(0.1, 1, 12), np.full(12, np.nan)])
    ax = render(plot.singular_values(t))
    assert all(line.get_marker() != "None" for line in ax.get_lines()[:12])


def test_paths_of_rounding_noise_are_counted_and_left_below():
    start = np.array([0.9, 0.1, 1e-17, 0.0])
    ax = render(plot.singular_values(make_trace([start, 3 * start / 2])))
    assert "2 of 4 start at zero to double precision" in legend(ax)
    assert 1e-3 < ax.get_ylim()[0] < 0.1


@pytest.mark.thinned(3)
@pytest.mark.parametrize(
    "values",
    [
        [[0.5]],
        [[1.0], [1.0]],
        [[0.0, 0.0], [0.0, 0.0]],
        np.zeros((3, 12)),
        np.ones((3, 12)),
        np.full((2, 3), np.nan),
        [[1e-200, 1e-300], [1e300, 1e308]],
        [[1.0, 0.5], [np.inf, 0.5]],
    ],
    ids=["no step", "at once", "zero", "many zero", "many one", "nan", "range", "one inf"],
)
@pytest.mark.parametrize("draw", [plot.convergence, plot.singular_values, plot.compare])
def test_extreme_traces_can_be_drawn(values, draw):
    with np.errstate(over="ignore"):
        t = make_trace(values)
    ax = render(draw([t] if draw is plot.compare else t))
    low, high = ax.get_ylim()
    assert 0 < low < high < np.inf


# ----------------------------------------------------------------------------------- polynomial


@pytest.mark.thinned(4)
@pytest.mark.parametrize("name", polarlib.schedules(target="polar"))
def test_polynomial_draws_the_composition_and_its_parts(name):
    s = polarlib.schedule(name)
    ax = render(plot.polynomial(s))
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert ax.get_xlabel() == "singular value x of the normalised input"
    assert ax.get_title() == f"{name}: {len(s)} steps, {s.matmuls} matrix products"
    assert ax.get_xlim()[0] == pytest.approx(s.lower / 10)
    whole = labelled(ax, "s(x" if s.input_safety == 1 else f"s(x / {s.input_safety:g})")
    x, y = whole.get_data()
    inside = (x >= s.lower) & (x <= s.upper)
    np.testing.assert_array_equal(y[inside], s(x[inside] / s.input_safety))
    rounding = 4 * np.finfo(float).eps
    assert np.abs(1 - y[inside]).max() <= s.error() * (1 + 1e-9) + rounding
    assert f"{s.slope / s.input_safety:.4g}" in whole.get_label()
    # An error of the size of a rounding is that of the doubles: no points are marked.
    dots = [line for line in ax.get_lines() if line.get_label().startswith("worst error")]
    assert len(dots) == (s.error() >= 2.0**-50)
    for line in dots:
        worst = np.abs(1 - line.get_ydata())
        np.testing.assert_allclose(worst, s.error(), rtol=2e-3, atol=rounding)
    parts = [line for line in ax.get_lines() if len(line.get_xdata()) > 2]
    parts = [line for line in parts if line not in (whole, *dots)]
    assert len(parts) == len(s) - 1
    y = x[inside] / s.input_safety
    for step, line in zip(s.steps, parts, strict=False):  # the first step alone may leave (0, 2)
        y = odd_value(step, y)
        np.testing.assert_array_equal(line.get_ydata()[inside], y)
    (band,) = ax.collections
    box = band.get_paths()[0].get_extents()
    np.testing.assert_allclose(box.intervalx, [s.lower, s.upper])
    np.testing.assert_allclose(box.intervaly, [1 - s.error(), 1 + s.error()])


@pytest.mark.parametrize(
    ("degrees", "points"), [([3], 3), ([7], 5), ([5, 5], 10), ([3, 5, 5], 19), ([5] * 5, 244)]
)
def test_points_of_equioscillation_are_all_marked(degrees, points):
    """A best polynomial alternates q + 2 times, and so does a step on each branch before it."""
    s = polarlib.design.greedy(1e-2, degrees)
    dots = labelled(plot.polynomial(s), "worst error")
    x, y = dots.get_data()
    assert len(x) == points
    assert dots.get_label() == f"worst error, at {points} points"
    assert (x[0], x[-1]) == (s.lower, s.upper)
    np.testing.assert_array_equal(np.sign(y - 1), [(-1) ** (i + 1) for i in range(points)])


def test_polynomial_of_other_targets_and_powers():
    s = polarlib.Schedule(steps=[(1.2, -0.2)], lower=0, upper=2, target="clip", name="clip")
    ax = render(plot.polynomial(s))
    assert ax.get_xscale() == "linear"  # it begins at 0
    assert any(f"within {s.error():.3g} of clip on [0, 2]" in text for text in legend(ax))
    x, y = labelled(ax, "worst error").get_data()
    np.testing.assert_allclose(np.abs(y - np.minimum(x, 1)), s.error(), rtol=2e-3)
    root = polarlib.design.inverse_root(4, 0.1, [5])
    ax = render(plot.polynomial(root))
    assert "λ^(1/4)" in ax.get_xlabel()
    assert len(labelled(ax, "worst error").get_xdata()) == 3


@pytest.mark.parametrize(("name", "near"), [("jordan", True), ("newton_schulz_5", False)])
def test_divergence_limit_is_a_line_only_where_near(name, near):
    s = polarlib.schedule(name)
    ax = plot.polynomial(s)
    line = labelled(ax, "divergence limit")
    assert set(line.get_xdata()) == ({s.divergence_limit} if near else set())
    assert (ax.get_xlim()[1] > s.divergence_limit) == near


def test_a_limit_next_to_one_keeps_its_digits():
    assert "divergence limit 1 + 6.9e-06" in legend(
        plot.polynomial(polarlib.schedule("polar_express_raw"))
    )


def test_polynomial_of_one_step_and_one_point():
    s = polarlib.Schedule(steps=[(1.5, -0.5)], lower=1.0)
    ax = render(plot.polynomial(s))
    assert ax.get_title() == "custom: 1 step, 2 matrix products"
    assert not any(text.startswith("after") for text in legend(ax))


def test_polynomial_whose_parts_swing_wider_than_a_schedule_may():
    s = polarlib.Schedule(steps=[(2.2,), (0.45,)], lower=0.1)
    with pytest.raises(ValueError, match="leaves"):
        s.truncate(1)
    assert render(plot.polynomial(s)).get_ylim()[1] > 2.2


# -------------------------------------------------------------------------------------- compare


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_compare_draws_one_quantity_of_each(few, quantity):
    others = [few, replace(few, form="gram", matmuls=few.matmuls + 1), replace(few, method="b")]
    ax = render(plot.compare(others, quantity=quantity))
    assert ax.get_xlabel() == "matrix products"
    assert ax.get_ylabel().startswith(quantity.replace("_", " ") + " (dimensionless)")
    assert ax.get_yscale() == "log"
    for line, t in zip(ax.get_lines(), others, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), t.matmuls)
        np.testing.assert_array_equal(line.get_ydata(), getattr(t, quantity))
    assert legend(ax) == ["jordan, plain", "jordan, gram", "b, plain"]
    assert ax.get_title() == "bfloat16 (simulated), matrix of 3 × 3"


def test_compare_is_told_apart_without_colour(few):
    ax = plot.compare(replace(few, method=str(i)) for i in range(40))
    # matplotlib calls a dash pattern given in numbers "--", so that one style looks like another.
    looks = {(line.get_marker(), line.get_linestyle()) for line in ax.get_lines()}
    assert len(looks) == 32


def test_compare_names_shapes_that_differ(few, many):
    assert [text.rpartition(", ")[2] for text in legend(plot.compare([few, many]))] == [
        "3 × 3",
        "30 × 20",
    ]
    assert plot.compare([few, few]).get_title().endswith("plain form, matrix of 3 × 3")


def test_compare_over_formats_has_the_formats_as_labels(few):
    others = [replace(few, precision=p, simulated=False) for p in ("float32", "float16")]
    ax = plot.compare(others)
    assert legend(ax) == ["float32", "float16"]
    assert ax.get_title() == "jordan, plain form, matrix of 3 × 3"
    mixed = plot.compare([few, replace(few, method="svd", form="")])
    assert legend(mixed) == ["jordan", "svd"]


def test_names_are_text(few):
    t = replace(few, method="_pay $5 or $6", simulated=False)
    assert legend(render(plot.compare([t]))) == [r" _pay \$5 or \$6"]
    long = replace(few, method="long name " * 20)
    for ax in (render(plot.compare([long])), render(plot.convergence(long))):
        for artist in (ax.title, ax.get_legend()):
            box = artist.get_window_extent()
            assert 0 <= box.x0 < box.x1 <= ax.figure.bbox.x1


# ------------------------------------------------------------------------- figures and grounds


def pictures(t):
    return [
        lambda ax=None: plot.convergence(t, ax),
        lambda ax=None: plot.singular_values(t, ax),
        lambda ax=None: plot.polynomial(polarlib.schedule("jordan"), ax),
        lambda ax=None: plot.compare([t, t], ax),
        lambda ax=None: plot.cost([t, t], ax),
        lambda ax=None: plot.error(polarlib.schedule("jordan"), ax),
        lambda ax=None: plot.matrix_products([polarlib.schedule("jordan")], ax),
    ]


def test_the_axes_given_are_the_axes_returned(many):
    for draw in pictures(many):
        ax = Figure().subplots()
        before = ax.get_facecolor()
        assert draw(ax) is render(ax)
        assert ax.get_facecolor() == before


def test_legend_is_outside_where_the_layout_makes_room(few):
    for draw in pictures(few):
        ax = render(draw())
        assert ax.get_legend().get_window_extent().y1 < ax.get_window_extent().y0
        ground = ax.figure.bbox
        box = ax.figure.get_tightbbox().transformed(ax.figure.dpi_scale_trans)
        assert box.x0 >= ground.x0
        assert box.y0 >= ground.y0
        assert box.x1 <= ground.x1
        assert box.y1 <= ground.y1
        # Some figure of the caller's, which leaves no room below.
        ax = render(draw(Figure().subplots()))
        assert ax.get_legend().get_window_extent().y0 > ax.get_window_extent().y0


def test_subfigures(many, tmp_path):
    left, right = Figure(layout="constrained", figsize=(12, 6)).subfigures(1, 2)
    plot.singular_values(many, ax=left.subplots())
    ax = plot.compare([many], ax=right.subplots())
    plot.save(ax, tmp_path / "both.png")
    assert (tmp_path / "both.png").stat().st_size > 10_000


def test_new_figures_are_dark_on_white(few):
    for draw in pictures(few):
        ax = draw()
        texts = [ax.xaxis.label, ax.yaxis.label, ax.title, *ax.get_legend().get_texts()]
        assert {to_hex(text.get_color()) for text in texts} == {plot.INK}
        assert {to_hex(c.get_facecolor()) for c in (ax, ax.figure)} == {"#ffffff"}
        assert to_hex(ax.get_legend().get_frame().get_facecolor()) == "#ffffff"


def test_new_figures_have_the_ground_of_the_style(few):
    with matplotlib.style.context("dark_background"):
        for draw in pictures(few):
            ax = draw()
            texts = [ax.xaxis.label, ax.yaxis.label, ax.title, *ax.get_legend().get_texts()]
            assert {to_hex(text.get_color()) for text in texts} == {"#ffffff"}
            assert {to_hex(c.get_facecolor()) for c in (ax, ax.figure)} == {"#000000"}


def test_rc_parameters_are_honoured(few):
    changed = {
        "font.size": 5,
        "figure.figsize": (4, 3),
        "lines.linewidth": 3,
        "lines.markersize": 12,
        "legend.fontsize": 4.5,
        "xtick.labelsize": 3,
        "axes.prop_cycle": matplotlib.cycler(color=["#112233", "#445566"]),
    }
    usual = plot.compare([few, few])
    with matplotlib.rc_context(changed):
        ax = plot.compare([few, few])
    assert ax.xaxis.label.get_fontsize() == ax.title.get_fontsize() == 5
    assert {text.get_fontsize() for text in ax.get_legend().get_texts()} == {4.5}
    render(ax)  # outside of the context, as in a notebook
    assert {label.get_fontsize() for label in ax.get_xticklabels()} == {3}
    np.testing.assert_array_equal(ax.figure.get_size_inches(), [4, 3])
    for line, before in zip(ax.get_lines(), usual.get_lines(), strict=True):
        assert line.get_linewidth() == 2 * before.get_linewidth()
        assert line.get_markersize() == 2 * before.get_markersize()
    assert [line.get_color() for line in ax.get_lines()] == ["#112233", "#445566"]


def test_rc_parameters_stay(many):
    before = dict(matplotlib.rcParams)
    for draw in pictures(many):
        draw()
    assert dict(matplotlib.rcParams) == before


def test_no_pyplot_and_no_backend(tmp_path):
    code = """
import sys
import numpy as np, polarlib
from polarlib import plot
t = polarlib.measure(np.eye(3) + 1, "jordan")
ax = plot.convergence(t)
plot.singular_values(t), plot.compare([t]), plot.polynomial(polarlib.schedule("jordan"))
plot.save(ax, sys.argv[1])
assert ax._repr_png_().startswith(b"\\x89PNG")
assert "matplotlib.pyplot" not in sys.modules
"""
    path = tmp_path / "a.png"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert path.exists()


def test_notebooks_see_a_picture(few):
    ax = plot.convergence(few)
    assert ax._repr_png_().startswith(b"\x89PNG")
    assert ax.figure._repr_png_().startswith(b"\x89PNG")


# ----------------------------------------------------------------------------------------- save

MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF-", "svg": b"<?xml"}


@pytest.mark.parametrize("suffix", [*MAGIC, "PNG"])
def test_save_by_suffix(few, tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    plot.save(plot.convergence(few), path)
    assert path.read_bytes().startswith(MAGIC[suffix.lower()])
    assert list(tmp_path.iterdir()) == [path]


def test_save_keeps_the_ground_and_obeys_dpi(few, tmp_path):
    ax = plot.convergence(few)
    with matplotlib.rc_context({"savefig.facecolor": "black", "savefig.transparent": True}):
        plot.save(ax, tmp_path / "a.png", dpi=50)
    image = matplotlib.image.imread(tmp_path / "a.png")
    assert image.shape == (50 * plot.HEIGHT, 50 * plot.WIDTH, 4)
    np.testing.assert_array_equal(image[0, 0], 1)


def test_a_failing_save_leaves_what_was(few, tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    ax = plot.convergence(few)

    def fail(self, file, **options):
        file.write(b"half a pict")
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(RuntimeError, match="disk"):
        plot.save(ax, path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("name", ["picture.docx", "picture", "picture."])
def test_save_refuses_an_unknown_suffix(few, tmp_path, name):
    with pytest.raises(ValueError, match=r"unknown suffix.*\.pdf.*\.png.*\.svg"):
        plot.save(plot.convergence(few), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_save_into_a_folder_that_is_not_there(few, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        plot.save(plot.convergence(few), tmp_path / "nowhere" / "a.png")


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("draw", [plot.convergence, plot.singular_values])
@pytest.mark.parametrize("value", [None, 3, "jordan", [1.0], np.eye(2)])
def test_not_a_trace(draw, value):
    with pytest.raises(TypeError, match=rf"a Trace.*measure.*got {type(value).__name__}"):
        draw(value)


@pytest.mark.parametrize("value", [None, "jordan", (1.5, -0.5)])
def test_not_a_schedule(value):
    with pytest.raises(TypeError, match=rf"a Schedule.*got {type(value).__name__}"):
        plot.polynomial(value)


def test_not_traces(few):
    for value, name in [(few, "Trace"), (3, "int"), ("jordan", "str"), ([few, 3], "int 3")]:
        with pytest.raises(TypeError, match=f"list of Trace.*got {name}"):
            plot.compare(value)
    with pytest.raises(ValueError, match="at least one Trace"):
        plot.compare([])
    for quantity in ("ortogonality", None, ["distance"]):
        with pytest.raises(ValueError, match=r"quantity must be .*'orthogonality'"):
            plot.compare([few], quantity=quantity)


def test_the_former_name_of_quantity(few):
    """Until 0.3."""
    with pytest.warns(DeprecationWarning, match=r"compare\(figure=\) is now quantity="):
        ax = plot.compare([few], figure="distance")
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), few.distance)


def test_no_singular_values(few):
    for values in (np.zeros((6, 0)), np.zeros(6)):
        with pytest.raises(ValueError, match="'jordan' has no singular values"):
            plot.singular_values(replace(few, singular_values=values))


def test_not_axes(few):
    for value in (Figure(), np.array([None]), "left"):
        for draw in pictures(few):
            with pytest.raises(TypeError, match="one matplotlib Axes"):
                draw(value)
        with pytest.raises(TypeError, match="save takes a matplotlib Axes"):
            plot.save(value, "a.png")


def test_axes_are_axes(few):
    assert all(isinstance(draw(), Axes) for draw in pictures(few))
