"""Schedules as sequences: parts, sums, derivatives, comparisons, representations."""

import dataclasses
import re

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_allclose

import polarlib
from polarlib import Schedule, design
from polarlib.testing import with_singular_values

SCHEDULES = {
    **{name: polarlib.schedule(name) for name in ("polar_express", "you", "cubic5", "deepseek_v4")},
    "own": polarlib.default_schedule("bfloat16", steps=6),
    "mixed degrees": design.budget(1e-4, 20),
    "rational": design.zolotarev(2, 1e-10),
    "root": design.inverse_root(3, 0.05, [4, 4, 7]),
    "clip": design.clip(4.0, [5, 5, 3]),
    "with safety": Schedule(
        steps=[(3.0, -3.2, 1.2), (2.0, -0.9)], lower=0.1, upper=1.02, input_safety=1.0625
    ),
}
FIGURES = ("image", "error", "slope", "divergence_limit", "matmuls", "factorisations")


@pytest.fixture(params=SCHEDULES)
def s(request):
    return SCHEDULES[request.param]


def figures(s):
    return [getattr(s, n)() if callable(getattr(s, n)) else getattr(s, n) for n in FIGURES]


# -- steps and parts -----------------------------------------------------------------------------


def test_a_schedule_is_the_sequence_of_its_steps(s):
    assert len(s) == len(s.steps)
    assert tuple(s) == s.steps
    assert [s[k] for k in range(-len(s), len(s))] == [*s.steps, *s.steps]
    assert s[np.int64(0)] == s.steps[0]
    assert s.steps[0] in s
    with pytest.raises(IndexError, match=f"has {len(s)} steps, got index {len(s)}"):
        s[len(s)]
    with pytest.raises(IndexError, match="got index"):
        s[-len(s) - 1]


def test_parts(s):
    for a in range(len(s)):
        for b in range(a + 1, len(s) + 1):
            part = s[a:b]
            assert part.steps == s.steps[a:b]
            assert part.target == s.target
            assert part.stride == s.stride
            if a == 0:
                assert part == s.truncate(b)
                continue
            assert (part.lower, part.upper) == s.truncate(a).image()
            assert (part.input_safety, part.normalisation) == (1, "none")
    assert s[:] == s
    assert s[-1:].steps == s.steps[-1:]


def test_the_image_of_a_part_is_that_of_all_steps_up_to_there(s):
    for a in range(1, len(s)):
        assert_allclose(s[a:].image(), s.image(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (slice(None, None, 2), "no stride, got slice"),
        (slice(None, None, -1), "no stride"),
        (slice(2, 2), "slice 2:2 has no steps"),
        (slice(99, None), "has no steps"),
        (slice("a"), "integers and no stride"),
        (slice(None, None, 0), "no stride"),
    ],
)
def test_slices_that_are_refused(index, said):
    with pytest.raises(ValueError, match=said):
        polarlib.schedule("polar_express")[index]


@pytest.mark.parametrize("index", ["a", 1.0, None, (1,)])
def test_indices_that_are_refused(index):
    with pytest.raises(TypeError, match="index must be an integer or a slice"):
        polarlib.schedule("polar_express")[index]


def test_a_part_goes_on_as_the_whole_does():
    whole = polarlib.published.listed("polar_express")
    assert whole.repeat == "last"
    assert whole[5:].repeat == "last"
    assert whole[5:].truncate(9).steps[-1] == whole.steps[-1]
    assert whole[2:5].repeat is None
    forever = Schedule(steps=[(1.5, -0.5), (1.4, -0.4)], lower=0.5, repeat="forever")
    assert forever[1:].repeat is None
    assert polarlib.schedule("jordan", 4)[1:].repeat == "forever"


# -- sums ----------------------------------------------------------------------------------------


def test_a_sum_of_parts_is_the_whole(s):
    for k in range(1, len(s)):
        again = s[:k] + s[k:]
        assert again.steps == s.steps
        assert again.name == s.name
        assert figures(again) == figures(s)


def test_input_safety_is_folded_into_the_first_step():
    s = design.greedy(0.01, [5, 5, 5])
    t = dataclasses.replace(SCHEDULES["with safety"], input_safety=1.5)
    both = s + t
    c = t.steps[0]
    assert_allclose(both.steps[3], [c[0] / 1.5, c[1] / 1.5**3, c[2] / 1.5**5], rtol=1e-15)
    assert both.steps[4:] == t.steps[1:]
    assert_allclose(both(0.3), t(s(0.3) / 1.5), rtol=1e-14)
    assert (both.lower, both.upper, both.normalisation) == (s.lower, s.upper, s.normalisation)
    plain = dataclasses.replace(s[2:], input_safety=1.5)  # "none" divides by nothing
    s = s[:2]
    assert (s + plain).steps[2:] == plain.steps


def test_input_safety_of_another_stride():
    s = design.inverse_root(3, 0.5, [4])
    t = dataclasses.replace(s, input_safety=1.25, normalisation="frobenius")
    assert_allclose((s + t)(0.7), t(s(0.7) / 1.25), rtol=1e-14)


def test_the_matrix_of_a_sum():
    a = with_singular_values(np.geomspace(1, 1e-3, 8), m=12, seed=1)
    s, t = polarlib.schedule("polar_express"), polarlib.schedule("newton_schulz_3", 2)
    t = dataclasses.replace(t, normalisation="none")
    one = polarlib.orthogonalize(polarlib.orthogonalize(a, schedule=s), schedule=t)
    assert_allclose(polarlib.orthogonalize(a, schedule=s + t), one, atol=1e-13)


def test_parts_of_a_rational_schedule_take_matrices_as_they_are():
    s = design.zolotarev(2, 1e-3)
    a = with_singular_values(np.geomspace(1, 1e-2, 8), m=12, seed=1)
    whole = polarlib.orthogonalize(a, schedule=s)
    parts = polarlib.orthogonalize(polarlib.orthogonalize(a, schedule=s[:1]), schedule=s[1:])
    assert_allclose(parts, whole, atol=1e-9)
    half = Schedule(steps=s.steps[-1:], lower=0.1, normalisation="none")
    got = np.linalg.svd(polarlib.orthogonalize(a / 2, schedule=half), compute_uv=False)
    assert_allclose(np.sort(got), np.sort(half(np.linalg.svd(a / 2, compute_uv=False))), rtol=1e-9)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (SCHEDULES["rational"], "one is of polynomials, the other is rational"),
        (SCHEDULES["root"], "stride 2 and 3"),
        (SCHEDULES["clip"], "target 'polar' and 'clip"),
    ],
)
def test_sums_that_are_refused(other, said):
    with pytest.raises(ValueError, match=f"cannot be added: .*{said}"):
        polarlib.schedule("polar_express") + other


def test_sums_that_flip_signs_are_refused():
    steep = Schedule(steps=[(3.4445, -4.775, 2.0315)], lower=0.01)
    with pytest.raises(ValueError, match=r"singular vectors would change sign|leaves"):
        Schedule(steps=[(1.9,)], lower=0.1) + steep
    with pytest.raises(TypeError):
        steep + 1


# -- derivatives ---------------------------------------------------------------------------------


def test_derivative_against_multiple_precision(s):
    with mpmath.workdps(40):
        for x in (1e-3, 0.1, 0.5, 0.97):
            wanted = mpmath.diff(lambda t: s(t), mpmath.mpf(x))
            got = s.derivative(mpmath.mpf(x))
            assert abs(got - wanted) <= mpmath.mpf(10) ** -25 * (abs(wanted) + 1)
            assert float(s.derivative(x)) == pytest.approx(float(wanted), rel=1e-9, abs=1e-9)


def test_derivative_of_arrays(s):
    x = np.linspace(0.01, 1, 7)
    assert_allclose(s.derivative(x), [s.derivative(float(v)) for v in x], rtol=1e-12)
    assert s.derivative(np.float32(x)).dtype == np.float32
    assert s.derivative(0.0) == pytest.approx(s.slope, rel=1e-14)
    with pytest.raises(TypeError, match="x must be a number or an array"):
        s.derivative("0.5")


@given(st.lists(st.tuples(*[st.floats(-3, 3)] * 3), min_size=1, max_size=4), st.floats(-1.5, 1.5))
@settings(max_examples=100, deadline=None)
def test_derivative_is_the_product_of_slopes(steps, x):
    s = Schedule(steps=steps, lower=0.5, upper=0.5, target="power(2)")
    with mpmath.workdps(60):
        t, slope = mpmath.mpf(x), mpmath.mpf(1)
        for a, b, c in steps:
            slope *= a + b * (3 * t**2) + c * (5 * t**4)
            t = a * t + b * t**3 + c * t**5
        assert abs(s.derivative(mpmath.mpf(x)) - slope) <= mpmath.mpf(10) ** -40 * (1 + abs(slope))


# -- figures -------------------------------------------------------------------------------------


def test_comparison():
    s, t = polarlib.schedule("polar_express"), polarlib.schedule("you")
    rows = s.compare(t)
    found = {row["figure"]: row for row in rows}
    assert all(list(row) == ["figure", "polar_express", "you"] for row in rows)
    for one in (s, t):
        assert found["products"][one.name] == one.matmuls
        assert found["error"][one.name] == one.error()
        assert found["image"][one.name] == one.image()
        assert found["slope"][one.name] == one.slope
        assert found["divergence limit"][one.name] == one.divergence_limit
        assert found["safe in bfloat16"][one.name] == one.is_safe_in("bfloat16")
        gains = [row["noise_gain"] for row in design.table(one)]
        assert found["noise gain"][one.name] == pytest.approx(max(gains))
        assert found["1 - error"][one.name] == one.certify().complement[0]
    same = {row["figure"]: row for row in s.compare(t, lower=1e-2)}
    assert same["error"]["you"] == t.error(1e-2)
    assert same["interval"]["you"] == (1e-2, 1.0)


def test_comparison_on_one_interval():
    s = design.greedy(1e-2, [5, 5])
    t = dataclasses.replace(design.greedy(1e-3, [5, 5]), name=s.name)
    rows = {row["figure"]: row for row in s.compare(t, SCHEDULES["clip"])}
    assert rows["error from 0.01"][f"{s.name} (2)"] == t.error(1e-2)
    assert rows["error from 0.01"][s.name] == s.error()
    text = repr(s.compare(t))
    assert text.splitlines()[0].split("  ")[0] == "figure"
    assert len({len(line) for line in text.splitlines()}) == 1
    assert "<th scope='col'>figure</th>" in s.compare(t)._repr_html_()


def test_comparisons_of_every_kind(s):
    rows = s.compare(*SCHEDULES.values())
    assert len(rows[0]) == len(SCHEDULES) + 2
    assert "figure" in repr(rows)


def test_wrong_comparisons():
    s = polarlib.schedule("you")
    with pytest.raises(TypeError, match="others must be schedules, got 'jordan'"):
        s.compare("jordan")
    with pytest.raises(ValueError, match="at least one schedule"):
        s.compare()
    with pytest.raises(ValueError, match="lower"):
        s.compare(s, lower=3.0)


def test_representations(s):
    text = repr(s)
    assert "\n" not in text
    assert s.name in text
    assert f"{s.matmuls} products" in text
    assert f"error {s.error():.4g}" in text
    assert f"on [{s.lower:.4g}, {s.upper:.4g}]" in text
    assert re.search(rf"{len(s)} (rational )?steps? of degrees? \d", text)
    page = s._repr_html_()
    assert page.startswith("<table><caption>Schedule")
    assert page.count("<tr>") == page.count("</tr>") > 10


def test_names_are_escaped():
    s = Schedule(steps=[(1.5, -0.5)], lower=0.5, name="<b>\n&")
    assert "<b>" not in s._repr_html_()
    assert "\n" not in repr(s)


def test_representation_of_a_certificate():
    c = polarlib.schedule("polar_express").certify(format="bfloat16")
    assert "bfloat16, scalar model, share 0.75" in c._repr_html_()
    assert "exact" in polarlib.schedule("polar_express").certify()._repr_html_()
