"""Errors, costs and products in pictures: what is drawn is what the schedule and the trace say."""

import itertools
from dataclasses import replace

import mpmath
import numpy as np
import pytest
from matplotlib.figure import Figure

import polarlib
from polarlib import design, plot
from polarlib.design.cost_tables import kernel_costs

A = np.random.default_rng(3).standard_normal((12, 8))


def names(ax):
    """Labels of the legend, or those at the ends of lines."""
    if ax.get_legend() is None:
        return [text.get_text() for text in ax.texts]
    return [text.get_text() for text in ax.get_legend().get_texts()]


def render(ax):
    ax.figure.canvas.figure.draw_without_rendering()
    return ax


# -- error -------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [[5], [3, 5], [5, 5, 5], [7, 3]])
def test_peaks_of_a_best_composition_are_all_drawn_and_equal(degrees):
    """A best composition alternates between -E and E on each branch: its peaks are all E."""
    s = design.greedy(1e-2, degrees)
    x, e = render(plot.error(s)).get_lines()[0].get_data()
    inner = (e[1:-1] >= e[:-2]) & (e[1:-1] >= e[2:])
    peaks = e[1:-1][inner]
    np.testing.assert_allclose(peaks, s.error(), rtol=1e-6)
    assert e.max() == pytest.approx(s.error(), rel=1e-9)
    ends = (x[0], x[-1])
    np.testing.assert_allclose(ends, (s.lower, s.upper), rtol=1e-12)
    # As many as marked by the picture of the composition, ends included.
    marked = [ln for ln in plot.polynomial(s).get_lines() if ln.get_label().startswith("worst")]
    assert len(peaks) + 2 == len(marked[0].get_xdata())


@pytest.mark.parametrize("name", ["polar_express", "jordan", "cubic5"])
def test_values_of_the_error_include_the_input_division(name):
    s = polarlib.schedule(name)
    x, e = plot.error(s).get_lines()[0].get_data()
    for i in range(0, len(x), len(x) // 7):
        value = mpmath.mpf(float(x[i])) / s.input_divisor
        for a in s.steps:
            value = sum(c * value ** (2 * k + 1) for k, c in enumerate(a))
        assert e[i] == pytest.approx(float(abs(1 - value)), rel=1e-6, abs=1e-12)


def test_errors_below_doubles_are_exact():
    s = design.zolotarev(3, 1e-2).truncate(2)
    assert 0 < s.error() < 1e-16
    line = render(plot.error(s)).get_lines()[0]
    assert line.get_ydata().max() == pytest.approx(s.error(), rel=1e-3)


def test_error_of_other_targets_and_rational_schedules():
    clip = polarlib.Schedule(steps=[(1.2, -0.2)], lower=0, upper=2, target="clip", name="clip")
    ax = render(plot.error(clip))
    x, e = ax.get_lines()[0].get_data()
    np.testing.assert_allclose(e, np.abs(np.minimum(x, 1) - (1.2 * x - 0.2 * x**3)), atol=1e-15)
    assert "clip" in ax.get_ylabel()
    halley = design.zolotarev(1, 1e-2).truncate(1)
    e = plot.error(halley).get_lines()[0].get_ydata()
    assert e.max() == pytest.approx(halley.error(), rel=1e-6)
    with pytest.raises(ValueError, match=r"one target and stride, got 'clip' with .*'polar'"):
        plot.error([clip, halley])


def test_error_begins_at_the_least_lower_bound_or_where_it_is_told():
    s, t = design.greedy(1e-2, [5]), design.greedy(1e-3, [5, 5])
    ax = plot.error([s, t])
    assert [line.get_xdata()[0] for line in ax.get_lines()] == pytest.approx([1e-3, 1e-3])
    ax = plot.error([s, t], lower=0.1)
    assert ax.get_xlim()[0] == pytest.approx(0.1)
    for lower in (0, 1, -0.1, 2, np.nan, "0.1"):
        with pytest.raises((ValueError, TypeError), match="lower"):
            plot.error(s, lower=lower)


# -- products ----------------------------------------------------------------------------------


def test_products_are_those_of_the_first_steps():
    s = polarlib.schedule("polar_express")
    x, y = render(plot.matrix_products(s, lower=1e-2)).get_lines()[0].get_data()
    parts = [s.truncate(k) for k in range(1, 6)]
    np.testing.assert_array_equal(x[:5], [p.matmuls for p in parts])
    np.testing.assert_array_equal(y[:5], [p.error(1e-2) for p in parts])


def test_sets_that_end_end_and_others_go_on():
    you, cubic = polarlib.schedule("you"), polarlib.schedule("newton_schulz_3")
    assert you.repeat is None
    ax = plot.matrix_products([you, cubic], matmuls=24)
    first, second = ax.get_lines()
    assert first.get_xdata()[-1] == you.matmuls
    assert list(second.get_xdata()) == list(range(2, 25, 2))
    assert second.get_ydata()[-1] == cubic.truncate(12).error()
    assert plot.matrix_products([you, cubic]).get_lines()[1].get_xdata()[-1] == 14


def test_labels_have_intervals_that_differ():
    s, t = design.greedy(1e-2, [5]), design.greedy(1e-3, [5, 5])
    assert [name.partition(",")[2] for name in names(plot.matrix_products([s, t]))] != ["", ""]
    assert names(plot.matrix_products([s, t], lower=0.1, labels=["a", "b"])) == ["a", "b"]
    rational = design.zolotarev(2, 1e-2)
    x = plot.matrix_products(rational).get_lines()[0].get_xdata()
    assert list(x) == [rational.truncate(k).matmuls for k in range(1, len(rational) + 1)]


def test_steps_that_swing_wider_than_a_schedule_may():
    s = polarlib.Schedule(steps=[(2.2,), (0.45,)], lower=0.1)
    y = render(plot.matrix_products(s)).get_lines()[0].get_ydata()
    assert y[0] == pytest.approx(1.2)


# -- cost --------------------------------------------------------------------------------------


def test_cost_counts_products_and_factorisations():
    n = 8
    square = A[:n]
    costs = kernel_costs("numpy", "float64", n)
    traces = [polarlib.measure(square, m) for m in ("svd", "newton", "halley", "polar_express")]
    ax = render(plot.cost(traces))
    svd, newton, halley, express = (line.get_xdata() for line in ax.get_lines())
    assert svd == pytest.approx([costs["svd"] + 3])
    k = np.arange(1, traces[1].n_steps + 1)
    assert newton == pytest.approx(k * costs["inverse"] + traces[1].matmuls[1:])
    k = np.arange(1, traces[2].n_steps + 1)
    each = costs["cholesky"] + 2 * costs["solve"]
    assert halley == pytest.approx(k * each + traces[2].matmuls[1:])
    np.testing.assert_array_equal(express, [3, 6, 9, 12, 15])


def test_cost_of_a_tall_matrix_is_relative_to_its_products():
    t = polarlib.measure(A, "svd")
    costs = kernel_costs("numpy", "float64", 8)
    x = plot.cost([t]).get_lines()[0].get_xdata()
    assert x == pytest.approx([3 + costs["svd"] * 8 / 12 + costs["qr"]])
    own = dict.fromkeys(costs, 2.0)
    assert plot.cost([t], costs=own).get_lines()[0].get_xdata() == pytest.approx([5 + 4 / 3])


def test_cost_in_seconds_ends_there():
    traces = [polarlib.measure(A, m) for m in ("zolotarev", "svd", "polar_express")]
    with pytest.raises(ValueError, match=r"'zolotarev' does not determine.*seconds="):
        plot.cost(traces)
    ax = render(plot.cost(traces, seconds=[0.5, 0.25, 0.125]))
    assert [line.get_xdata()[-1] for line in ax.get_lines()] == [0.5, 0.25, 0.125]
    assert ax.get_xlabel().startswith("seconds")
    for seconds in ([1.0], [1.0, 1.0, -1.0], [1.0, 1.0, np.inf], 3):
        with pytest.raises((ValueError, TypeError), match="seconds"):
            plot.cost(traces, seconds=seconds)
    for costs in ({"svd": 1.0}, 3, [1]):
        with pytest.raises((ValueError, TypeError), match="costs"):
            plot.cost(traces[1:], costs=costs)


# -- keywords, shared axes, several calls ------------------------------------------------------

T = polarlib.measure(A, "jordan")
S = polarlib.schedule("jordan")
CALLS = {
    "convergence": lambda **how: plot.convergence(T, **how),
    "singular_values": lambda **how: plot.singular_values(T, **how),
    "polynomial": lambda **how: plot.polynomial(S, **how),
    "compare": lambda **how: plot.compare([T], **how),
    "cost": lambda **how: plot.cost([T], **how),
    "error": lambda **how: plot.error(S, **how),
    "matrix_products": lambda **how: plot.matrix_products(S, **how),
    "unit_ball": lambda **how: plot.unit_ball(polarlib.norms.spectral(), **how),
}


@pytest.mark.parametrize("name", CALLS)
def test_title_and_legend(name):
    ax = render(CALLS[name](title="a title of mine", legend=False))
    assert ax.get_title() == "a title of mine"
    assert ax.get_legend() is None
    assert CALLS[name](title="").get_title() == ""
    with pytest.raises(ValueError, match="title must be text, got 3"):
        CALLS[name](title=3)
    with pytest.raises((ValueError, TypeError), match="legend must be"):
        CALLS[name](legend="best")


@pytest.mark.parametrize("name", ["compare", "cost", "error", "matrix_products"])
def test_labels_and_colours_are_one_for_each_line(name):
    ax = CALLS[name](labels=["$mine"], color="red")
    assert names(ax) == [r"\$mine"]
    assert ax.get_lines()[0].get_color() == "red"
    assert CALLS[name](color=["C3"]).get_lines()[0].get_color() == "C3"
    for labels in (["a", "b"], [], "ab", [3]):
        with pytest.raises((ValueError, TypeError), match="labels"):
            CALLS[name](labels=labels)
    for color in ("reddish", ["red", "blue"], 3, ["reddish"]):
        with pytest.raises((ValueError, TypeError), match="color"):
            CALLS[name](color=color)


def test_colour_bar_only_if_wanted():
    t = polarlib.measure(np.random.default_rng(0).standard_normal((20, 12)), "jordan")
    assert len(plot.singular_values(t).figure.axes) == 2
    assert len(plot.singular_values(t, colorbar=False).figure.axes) == 1


def test_more_than_six_lines_are_named_at_their_ends():
    sets = [polarlib.schedule(name) for name in polarlib.schedules()[:9]]
    ax = render(plot.matrix_products(sets))
    assert ax.get_legend() is None
    assert sorted(t.get_text().replace("\n", " ") for t in ax.texts) == sorted(
        line.get_label() for line in ax.get_lines()
    )
    boxes = sorted((t.get_window_extent().y0, t.get_window_extent().y1) for t in ax.texts)
    assert all(a[1] <= b[0] + 1 for a, b in itertools.pairwise(boxes))
    # A second call names all of them again, once.
    ax = render(plot.matrix_products(sets[0], ax, labels=["again"]))
    assert len(ax.texts) == 10


@pytest.mark.parametrize("name", CALLS)
def test_two_calls_share_their_axes(name):
    """Limits include those of before; colours and line styles go on."""
    ax = Figure(layout="constrained").subplots()
    ax.plot([1e-9, 1e4], [1e-8, 1e5], color="black")
    before = ax.dataLim.frozen()
    CALLS[name](ax=ax)
    assert ax.get_xlim()[0] <= 1e-9 or ax.get_xscale() == "log"
    assert ax.get_xlim()[1] >= before.x1
    assert ax.get_ylim()[1] >= before.y1 or name == "unit_ball"
    if name in ("singular_values", "unit_ball"):
        return
    CALLS[name](ax=render(ax))
    lines = [line for line in ax.get_lines() if str(line.get_gid()).startswith("line:")]
    half = len(lines) // 2
    looks = [(line.get_color(), line.get_linestyle()) for line in lines]
    assert set(looks[:half]).isdisjoint(looks[half:])
    render(ax)


def test_a_second_trace_does_not_hide_the_first():
    long = polarlib.measure(A, "newton_schulz_3", steps=30)
    ax = plot.compare([long], quantity="distance")
    least, most = long.distance.min(), long.matmuls[-1]
    plot.compare([T], ax, quantity="distance")
    assert ax.get_ylim()[0] < least
    assert ax.get_xlim()[1] >= most
    left, right = Figure(layout="constrained").subplots(1, 2, sharex=True, sharey=True)
    plot.compare([long], left, quantity="distance")
    plot.compare([T], right, quantity="distance")
    assert left.get_ylim()[0] < least
    assert left.get_xlim()[1] >= most
    render(left)


def test_two_traces_of_convergence_are_named():
    ax = plot.convergence(T, plot.convergence(replace(T, method="other")))
    starts = {name.partition(":")[0] for name in names(ax) if ":" in name}
    assert starts == {"other, float64", "jordan, float64"}
    assert ax.get_title() == ""


def test_two_schedules_have_an_entry_each():
    ax = plot.polynomial(S, plot.polynomial(polarlib.schedule("polar_express")))
    assert [name.partition(":")[0] for name in names(ax)] == ["polar_express", "jordan"]
    assert ax.get_xlim()[1] >= 1.2 * S.divergence_limit


@pytest.mark.parametrize("draw", [plot.error, plot.matrix_products])
def test_not_schedules(draw):
    for value in (None, "jordan", 3, [S, "jordan"], [T]):
        with pytest.raises(TypeError, match="a Schedule or a list of them"):
            draw(value)
    with pytest.raises(ValueError, match="at least one Schedule"):
        draw([])
