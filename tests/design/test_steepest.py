"""Slopes and bands: against linear programs, closed forms, and other compositions."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import differential_evolution, linprog

from polarlib.design import band, best, for_slope, greedy, steepest

DEGREES = st.lists(st.sampled_from([3, 5, 7]), min_size=1, max_size=4)


def _powers(x, count):
    return np.stack([x ** (2 * i + 1) for i in range(count)], axis=1)


def _largest_slope(degree, error, start):
    """Linear program: largest slope, at most 1 + error on (0, 1], at least 1 - error from start."""
    count = degree // 2 + 1
    everywhere, band_only = np.linspace(1e-3, 1, 4000), np.linspace(start, 1, 2000)
    found = linprog(
        -np.eye(count)[0],
        A_ub=np.vstack([_powers(everywhere, count), -_powers(band_only, count)]),
        b_ub=np.concatenate([np.full(4000, 1 + error), np.full(2000, error - 1)]),
        bounds=[(None, None)] * count,
    )
    return -found.fun


@pytest.mark.parametrize(("degree", "error"), [(3, 0.5), (5, 0.3), (7, 0.1), (9, 0.02)])
def test_one_step_is_the_steepest_that_stays_in_the_band_from_its_minimum(degree, error):
    """Freedom between the first crossing of the band and the first minimum gains nothing."""
    s = steepest(error, [degree])
    points = best(degree, s.lower).extrema
    for start in (s.lower, points[1], points[2]):
        # The grid lets the program exceed the bounds between its points.
        assert -1e-9 <= _largest_slope(degree, error, start) / s.slope - 1 < 1e-4
    # Beyond it, something else is steeper: the condition is needed.
    if degree > 3:
        assert _largest_slope(degree, error, 1.0) > 1.2 * s.slope


@pytest.mark.parametrize("factor", [pytest.param(1.0, marks=pytest.mark.slow), 2.5])
def test_no_two_cubics_are_steeper(factor):
    """Global search over all compositions that are in the band from some multiple of lower on."""
    s = steepest(0.2, [3, 3])
    start = factor * s.lower
    x = np.concatenate([np.geomspace(1e-3, start, 200), np.linspace(start, 1, 600)])

    def loss(v):
        y = v[0] * x - v[1] * x**3
        z = v[2] * y - v[3] * y**3
        below = np.min(z[x >= start])
        outside = max(0, np.max(z) - 1.2) + max(0, 0.8 - below) + max(0, -np.min([y, z]))
        return -v[0] * v[2] + 1e4 * outside

    found = differential_evolution(
        loss, [(0, 4), (0, 5)] * 2, seed=1, maxiter=500, popsize=8, tol=1e-8
    )
    # The grid lets the search exceed the bounds between its points.
    assert 0.99 < -found.fun / s.slope < 1 + 1e-4


@given(st.floats(1.5001, 2.598))
def test_slope_of_a_cubic_in_closed_form(slope):
    s = for_slope(slope, [3])
    l = s.lower
    alpha = math.sqrt(3 / (l * l + l + 1))
    product = l * (l + 1) * alpha**3
    assert math.isclose(s.slope, slope, rel_tol=1e-12)
    assert math.isclose(6 * alpha / (2 + product), slope, rel_tol=1e-11)
    assert math.isclose(s.error(), (2 - product) / (2 + product), rel_tol=1e-9, abs_tol=1e-15)


@given(st.floats(0.001, 0.95), DEGREES)
@settings(max_examples=25)
def test_slope_and_error_are_inverse(error, degrees):
    s = steepest(error, degrees)
    assert s.error() <= error
    back = for_slope(s.slope, degrees)
    assert math.isclose(back.lower, s.lower, rel_tol=1e-9)
    assert math.isclose(back.error(), error, rel_tol=1e-8)
    assert math.isclose(back.slope, s.slope, rel_tol=1e-12)
    assert s.image(0.0, s.lower)[0] >= 0
    assert s.image(0.0, s.lower)[1] <= 1 + error
    if error > 0.01:
        # A smaller slope has a smaller error, on a shorter interval.
        flatter = for_slope(0.99 * s.slope + 0.01 * _least_slope(degrees), degrees)
        assert flatter.error() < s.error()
        assert flatter.lower > s.lower


def _least_slope(degrees):
    """Product of the slopes of the Pade steps: 3/2, 15/8, 35/16, ..."""
    return math.prod(
        math.prod((2 * k + 1) / (2 * k) for k in range(1, degree // 2 + 1)) for degree in degrees
    )


@given(st.floats(0.05, 0.9), DEGREES, st.integers(0, 10**6))
@settings(max_examples=40)
def test_no_other_composition_of_the_slope_has_a_smaller_error(error, degrees, seed):
    rng = np.random.default_rng(seed)
    s = steepest(error, degrees)
    x = np.geomspace(s.lower, 1, 2000)
    for size in (1e-3, 1e-2, 1e-1):
        y, slope = x, 1.0
        steps = [np.array(c) * (1 + size * rng.standard_normal(len(c))) for c in s.steps]
        steps[-1] *= s.slope / math.prod(c[0] for c in steps)
        for c in steps:
            y, slope = _powers(y, len(c)) @ c, slope * c[0]
        assert math.isclose(slope, s.slope)
        assert np.max(np.abs(1 - y)) > s.error() * (1 - 1e-6)


@pytest.mark.parametrize("degrees", [[3], [5], [9], [5, 5], [3, 9, 5], [5] * 6])
def test_slopes_just_above_the_least(degrees):
    """There the error is below the rounding of doubles, and the slope is still what was asked."""
    least = _least_slope(degrees)
    for excess in (1e-11, 1e-9, 1e-7, 1e-4):
        s = for_slope(least * (1 + excess), degrees)
        assert math.isclose(s.slope, least * (1 + excess), rel_tol=2e-13)
        assert 0 < s.lower < 1
        assert s.error() < 3 * excess
    with pytest.raises(ValueError, match=r"slope must be a number above .* and at most"):
        for_slope(least, degrees)


def test_slopes_refuse():
    for slope in (1.0, 0, -3, 40, 1e300, 10**400):
        with pytest.raises(ValueError, match=r"slope must be a.*number"):
            for_slope(slope, [5, 5])
    for slope in (math.nan, math.inf, "3", None, True):
        with pytest.raises(ValueError, match="slope must be a finite number"):
            for_slope(slope, [5, 5])
    for degrees in ([], [4], 5, "5", None):
        for function, value in ((for_slope, 3.0), (steepest, 0.3)):
            with pytest.raises(ValueError, match="degree"):
                function(value, degrees)
    for error in (0, 1, -0.1, math.nan, "0.3", (0.7, 1.3)):
        with pytest.raises(ValueError, match="error must be a number between 0 and 1"):
            steepest(error, [5])


# Bands


@given(st.floats(0.01, 1.0), st.floats(1.0, 1.99), DEGREES)
@settings(max_examples=25)
def test_band_between_two_numbers_is_a_scaled_one_about_1(low, high, degrees):
    assume(low / high < 1 - 1e-6)
    steps = len(degrees)
    s = band(steps, (low, high), degree=degrees)
    lo, hi = s.image()
    assert low <= lo < hi <= high
    assert s.error() <= max(1 - low, high - 1)
    assert lo - low < 1e-9 * (high - low)
    assert high - hi < 1e-9 * (high - low)
    epsilon = (high - low) / (high + low)
    centred = band(steps, epsilon, degree=degrees)
    assert math.isclose(s.lower, centred.lower, rel_tol=1e-8)
    np.testing.assert_allclose(s(0.7), centred(0.7) * (low + high) / 2, rtol=1e-8)
    # Nothing maps a longer interval into it.
    centre = (low + high) / 2
    wide = greedy(s.lower * (1 - 1e-6), degrees)
    assert centre * wide.image()[0] < low or centre * wide.image()[1] > high


def test_band_of_other_degrees():
    assert band(3, 0.3, degree=5) == replace(band(3, 0.3, degree=[5, 5, 5]))
    assert band(2, (0.7, 1.3)).lower == pytest.approx(band(2, 0.3).lower, rel=1e-9)
    assert band(2, np.array([0.7, 1.3])).lower == band(2, [0.7, 1.3]).lower
    for degrees in itertools.permutations([3, 5, 9]):
        s = band(3, 0.1, degree=degrees)
        assert [2 * len(step) - 1 for step in s.steps] == list(degrees)
        assert s.error() <= 0.1 < greedy(s.lower * (1 - 1e-7), degrees).error()
        assert steepest(0.1, degrees).steps == s.steps


def test_narrow_and_wide_bands():
    for low, high in ((1 - 1e-15, 1 + 1e-15), (1.0, 1.0 + 2**-50), (1e-13, 1.999), (0.9, 1.0)):
        s = band(2, (low, high))
        lo, hi = s.image()
        assert low - 1e-15 <= lo <= hi <= high + 1e-15


def test_bands_refuse_with_two_ends_and_degrees():
    for ends in (
        (1.2, 0.7),
        (1.0, 1.0),
        (0.0, 1.0),
        (-0.5, 1.3),
        (0.7, 2.0),
        (0.5, 0.9),
        (1.1, 1.3),
        (0.7, math.nan),
        (0.7, None),
        (0.7,),
        (0.7, 1.2, 1.3),
        "ab",
        {0.7, 1.2},
    ):
        with pytest.raises(ValueError, match="band") as caught:
            band(5, ends)
        assert "\n" not in str(caught.value)
    for steps, degrees in ((5, [5, 5]), (1, [5, 5]), (2, (3, 5, 7))):
        with pytest.raises(ValueError, match=f"got {len(degrees)} degrees .* for steps={steps}"):
            band(steps, 0.3, degree=degrees)
    with pytest.raises(ValueError, match="begins below 1e-15"):
        band(1, (1e-300, 1.9))
    for degrees in ([], [4, 5], "55", {3: 5}):
        with pytest.raises(ValueError, match="degree"):
            band(2, 0.3, degree=degrees)
