"""Schedules with other targets and powers; images against mpmath; hazards with enough digits."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import polarlib
from polarlib import Schedule
from polarlib._schedules.images import odd_image, odd_value
from polarlib._schedules.targets import parse_target, target_value
from polarlib.arrays.formats import format_of


@pytest.mark.parametrize(
    ("target", "kind", "parameter", "at_quarter"),
    [
        ("polar", "polar", 0.0, 1.0),
        ("clip", "clip", 0.0, 0.25),
        ("power(0.5)", "power", 0.5, 0.5),
        ("power(-1e0)", "power", -1.0, 4.0),
        ("smooth_sign(0.25)", "smooth_sign", 0.25, 1 / math.sqrt(2)),
    ],
)
def test_targets(target, kind, parameter, at_quarter):
    assert parse_target(target) == (kind, parameter)
    assert target_value(target, 0.25) == pytest.approx(at_quarter, rel=1e-15)
    array = target_value(target, np.array([0.25, 4.0]))
    assert array.shape == (2,)
    assert array[0] == pytest.approx(at_quarter, rel=1e-15)
    assert float(target_value(target, mpmath.mpf("0.25"))) == pytest.approx(at_quarter, rel=1e-15)
    assert Schedule(steps=[(1.0,)], lower=0.5, target=target).target == target


@pytest.mark.parametrize(
    "target",
    ["", "clips", "power", "power()", "power(x)", "power(nan)", "power(1", "clip(2)", "polar(1)",
     "smooth_sign(0)", "smooth_sign(-1)", "smooth_sign(inf)", None, 3],
)  # fmt: skip
def test_bad_targets(target):
    with pytest.raises(ValueError, match=r"target|smooth_sign"):
        Schedule(steps=[(1.0,)], lower=0.5, target=target)


@pytest.mark.parametrize("stride", [0, -1, 2.0, True, "2", None])
def test_bad_strides(stride):
    with pytest.raises(ValueError, match="stride must be an integer"):
        Schedule(steps=[(1.0,)], lower=0.5, stride=stride)


def test_zero_is_a_lower_bound_only_where_the_target_is_odd():
    for target in ("clip", "power(0.5)", "smooth_sign(0.1)"):
        s = Schedule(steps=[(1.0,)], lower=0, upper=2, target=target)
        assert s.image() == (0.0, 2.0)
    for target in ("polar", "power(0)", "power(-0.5)"):
        with pytest.raises(ValueError, match="0 < lower <= upper"):
            Schedule(steps=[(1.0,)], lower=0, target=target)
    with pytest.raises(ValueError, match="0 <= lower <= upper"):
        Schedule(steps=[(1.0,)], lower=0, upper=0, target="clip")


@settings(max_examples=60)
@given(
    st.integers(1, 6),
    st.lists(st.lists(st.floats(-3, 3), min_size=1, max_size=4), min_size=1, max_size=2),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_images_hold_every_value(stride, steps, a, b):
    lo, hi = odd_image(steps, min(a, b), max(a, b), stride=stride)
    values = np.linspace(min(a, b), max(a, b), 1001)
    for step in steps:
        values = odd_value(step, values, stride)
    slack = 1e-12 * max(1.0, abs(lo), abs(hi))
    assert lo - slack <= values.min()
    assert values.max() <= hi + slack
    # And not much more: the ends are attained, to what sampling sees.
    slack += 0.05 * max(hi - lo, 0.0)
    assert values.min() <= lo + slack
    assert hi - slack <= values.max()


@pytest.mark.parametrize(
    ("steps", "stride", "image"),
    [
        ([[-1.0, 0.0, 1.0, 2.6e-106]], 1, (-2 / 3 * math.sqrt(1 / 3), 0)),  # a root far away
        ([[1.0, 2.2e-311, 1e-14]], 1, (0, 1)),
        ([[-1.0], [-1.0, -1.0]], 1, (0, 0.25)),  # the second step turns at a negative number
        ([[0.0, 0.0]], 2, (0, 0)),
        ([[0.0, 1.0]], 3, (0, 1)),
    ],
)
def test_images_of_hostile_steps(steps, stride, image):
    assert odd_image(steps, 0.0, 1.0, stride=stride) == pytest.approx(image, rel=1e-12)


def test_value_of_another_stride_by_hand():
    s = Schedule(steps=[(4 / 3, -1 / 3)], lower=0.5, stride=3)  # x (4 - x^3) / 3
    assert s(0.5) == pytest.approx(0.5 * (4 - 0.125) / 3, rel=1e-15)
    assert s.image(0.5, 1.0)[1] == pytest.approx(1.0, rel=1e-15)  # turns at 1
    assert s.slope == 4 / 3
    with pytest.raises(ValueError, match="lower >= 0"):
        s.image(-1, 1)


def test_divergence_limits_of_other_targets():
    s = Schedule(steps=[(1.0,)], lower=0, upper=4, target="clip")
    assert s.divergence_limit == 4.0  # |x| > 2 there already
    s = Schedule(steps=[(1.0,)], lower=0.1, target="power(1)")
    assert s.divergence_limit == pytest.approx(2, rel=1e-12)


def test_new_fields_are_written_and_read(tmp_path):
    s = Schedule(steps=[(1.25, -0.25)], lower=0.5, stride=4, target="power(0.125)", name="root")
    s.to_json(tmp_path / "s.json")
    assert Schedule.from_json(tmp_path / "s.json") == s
    text = (tmp_path / "s.json").read_text(encoding="utf-8")
    assert "p(x) = a x + b x^5 + c x^9" in text
    assert "target: power(0.125)" in s.to_code("python")
    assert "_degree[1] = {\n    5\n}" in s.to_code("c")
    assert "C1_5 = " in s.to_code("triton")
    assert "$x^{5}$" in s.to_code("latex")


def test_no_matrix_function_of_another_stride_and_no_factor_of_another_target():
    a = np.eye(3)
    root = Schedule(steps=[(1.25, -0.25)], lower=0.5, stride=4)
    for use in (polarlib.orthogonalize, polarlib.measure):
        with pytest.raises(ValueError, match="with stride 4; pass it to polarlib"):
            use(a, schedule=root) if use is polarlib.orthogonalize else use(a, root)
    clip = Schedule(steps=[(1.0,)], lower=0, upper=2, target="clip")
    with pytest.raises(ValueError, match="approximates 'clip', not the unitary factor"):
        polarlib.polar(a, method=clip)
    np.testing.assert_array_equal(
        polarlib.orthogonalize(a, schedule=clip, normalisation="none"), np.eye(3)
    )


def test_hazards_are_not_made_of_rounding():
    """Doubles lose the lower end of this chain; it is positive for all that."""
    s = polarlib.design.greedy(1e-25, [5] * 13)
    assert s.image()[0] > 0
    assert s.error() <= 1 + 1e-9
    # A chain that is wrong by more than rounding is refused.
    with pytest.raises(ValueError, match="step 2 maps"):
        Schedule(steps=[(3.0, -3.0, 0.9), (1.5, -1.5)], lower=0.1)


def test_safe_formats_and_the_former_name():
    s = polarlib.schedule("polar_express_raw", 9)
    assert not s.is_safe_in("bfloat16")
    assert polarlib.schedule("jordan").is_safe_in("float8_e5m2")
    with pytest.raises(ValueError, match="unknown number format"):
        s.is_safe_in("bf16")
    with pytest.warns(DeprecationWarning, match="Schedule.survives is now Schedule.is_safe_in"):
        assert not s.survives(format_of("bfloat16"))
