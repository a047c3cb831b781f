"""Best steps and greedy compositions, against closed forms, mpmath and the published sets."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarlib import Schedule, design
from polarlib._schedules.images import odd_value
from polarlib.design.remez import ideal
from polarlib.published import listed

DEGREES = (3, 5, 7, 9, 11, 13, 17, 25)
LOWERS = (1e-30, 1e-8, 1e-3, 0.1, 0.5, 0.9, 0.99, 0.999999)


def _cubic(lower: float) -> mpmath.mpf:
    with mpmath.workdps(60):
        l = mpmath.mpf(lower)
        alpha = mpmath.sqrt(3 / (l**2 + l + 1))
        s = l * (l + 1) * alpha**3
        return 2 * s / (2 + s)  # 1 - E


@pytest.mark.parametrize("lower", LOWERS)
def test_cubic_agrees_with_its_closed_form(lower):
    b = design.best(3, lower)
    complement = _cubic(lower)
    assert abs(b.complement / complement - 1) < 1e-15
    assert abs(b.error / (1 - complement) - 1) < 1e-15


@pytest.mark.parametrize(
    ("lower", "error"),
    [(1e-1, 0.4534169054337396), (1e-3, 0.9915296963042080), (1e-6, 0.9999914857419176)],
)
def test_quintic_agrees_with_an_independent_solver(lower, error):
    assert abs(design.best(5, lower).error - error) < 1e-15


def test_slope_limit_as_the_interval_grows():
    assert math.isclose(design.best(3, 1e-30).rho / 1e-30, 1.5 * math.sqrt(3), rel_tol=1e-14)
    assert math.isclose(design.best(5, 1e-30).rho / 1e-30, 4.257151136924763, rel_tol=1e-14)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("lower", LOWERS)
def test_equioscillation_in_high_precision(degree, lower):
    """Chebyshev: p is best if and only if its error alternates q + 2 times. Nothing else is."""
    q = degree // 2
    b = design.best(degree, lower, digits=25)
    with mpmath.workdps(250):
        points = [mpmath.mpf(x) for x in b.extrema]
        # Kept to the digits that the coefficients carry, which cancel by their size.
        size = sum(abs(mpmath.mpf(c)) for c in b.coefficients)
        errors = [odd_value([mpmath.mpf(c) for c in b.coefficients], x) - 1 for x in points]
        assert len(points) == q + 2
        assert points[0] == mpmath.mpf(lower)
        assert points[-1] == 1
        assert all(x < y for x, y in itertools.pairwise(points))
        signs = [int(mpmath.sign(e)) for e in errors]
        assert signs == [(-1) ** (i + 1) for i in range(q + 2)]
        slack = mpmath.mpf(10) ** -20 * b.error + size * mpmath.mpf(10) ** -25
        assert all(abs(abs(e) - b.error) < slack for e in errors)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("lower", LOWERS)
def test_doubles_agree_with_thirty_digits(degree, lower):
    b, wide = ideal(degree, lower), design.best(degree, lower, digits=30)
    # Where 1 - E is below the rounding of the coefficients, the slope is raised by that.
    tolerance = 1e-12 if (lower >= 1e-8 and degree <= 17) or lower >= 1e-3 else 1e-7
    for c, exact in zip(b.coefficients, wide.coefficients, strict=True):
        assert abs(c / exact - 1) < tolerance
    for name in ("error", "complement", "rho"):
        assert abs(getattr(b, name) / getattr(wide, name) - 1) < 1e-14


def _cost_of_rounding(b, lower: float) -> float:
    """What rounding to doubles adds to the error: at turning points found with 60 digits."""
    with mpmath.workdps(60):
        c = [mpmath.mpf(float(v)) for v in b.coefficients]
        # Between its extrema the ideal polynomial is monotone, and the rounded one is near it: its
        # own extrema are found on a fine grid, crowded at the ends as they are.
        ends = [mpmath.mpf(lower), *map(mpmath.mpf, b.extrema[1:-1]), mpmath.mpf(1)]
        grid = [x + (y - x) * k / 24 for x, y in itertools.pairwise(ends) for k in range(24)]
        worst = max(abs(1 - odd_value(c, x)) for x in [*grid, mpmath.mpf(1)])
        return float(worst - mpmath.mpf(b.error))


def _allowed(b) -> float:
    return max(0.05 * float(b.error), 2.0**-50)


@pytest.mark.thinned(4)
@pytest.mark.parametrize("degree", [9, 25, 37, 41, 45, 51])
@pytest.mark.parametrize("lower", [1e-3, 0.1, 0.5, 0.99])
def test_doubles_hold_the_coefficients_or_it_is_said(degree, lower):
    """The rule, with the error of the rounded polynomial evaluated in 60 digits."""
    b = design.best(degree, lower, digits=30)
    cost, allowed = _cost_of_rounding(b, lower), _allowed(b)
    # Near the limit the grid and the certificate may differ.
    if cost < 0.8 * allowed:
        s = design.minimax(degree, lower)
        assert s.certify().upper <= float(b.error) + 1.001 * allowed
        assert s.image()[0] > 0
        assert design.best(degree, lower).error == pytest.approx(float(b.error), rel=1e-14)
    elif cost > 1.01 * allowed:
        refusing = [lambda: design.minimax(degree, lower), lambda: design.best(degree, lower)]
        if lower < 0.9:  # above, a Pade step is as good
            refusing.append(lambda: design.greedy(lower, [degree]))
        for f in refusing:
            with pytest.raises(ValueError, match="is beyond double coefficients: rounded"):
                f()


def test_every_design_refuses_what_doubles_do_not_hold():
    for f in (
        lambda: design.stationary(0.01, degree=45),
        lambda: design.budget(0.1, 30, degrees=(45,)),
        lambda: design.inverse_root(4, 0.5, [121]),
        lambda: design.clip(2.0, [37]),
        lambda: design.power(0.5, 0.01, [37]),
        lambda: design.smooth_sign(0.1, [37]),
    ):
        with pytest.raises(ValueError, match="beyond double coefficients"):
            f()
    # Where other degrees serve, the search goes on with them.
    cost = {3: 2, 5: 3, 45: 4}
    found = [design.budget(0.1, 5, degrees=d, cost=cost) for d in ((3, 5, 45), (3, 5))]
    assert found[0] == found[1]
    # And what needs no coefficients in doubles is as good as ever.
    assert design.best(51, 0.1, digits=20).error == pytest.approx(0.0019758994820032335, rel=1e-15)
    assert design.least_error(0.1, [51]) == pytest.approx(0.0019758994820032335, rel=1e-12)


@pytest.mark.parametrize("degrees", [[5, 61, 61], [9, 25], [41, 41]])
def test_compositions_of_high_degrees_are_as_good_as_doubles_can_be(degrees):
    """Narrow images take Pade steps, whose coefficients are doubles."""
    s = design.greedy({41: 0.1, 5: 0.9}.get(degrees[0], 0.3), degrees)
    assert [2 * len(step) - 1 for step in s.steps] == degrees
    assert s.error() < 2.0**-50


def test_error_of_a_high_degree_is_that_of_its_coefficients():
    """Turning points that are lost in double precision are not lost to the error."""
    c = tuple(float(v) for v in design.best(47, 0.1, digits=20).coefficients)
    s = Schedule(steps=[c], lower=0.1)
    with mpmath.workdps(60):
        wide = [mpmath.mpf(v) for v in c]
        grid = [mpmath.mpf(0.1) + mpmath.mpf(0.9) * k / 4000 for k in range(4001)]
        seen = max(abs(1 - odd_value(wide, x)) for x in grid)
    assert float(seen) <= s.error() <= float(seen) * 1.02


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("lower", [1e-30, 1e-20, 1e-16, 1e-12, 1e-8, 1e-3, 0.9, 0.999999])
def test_schedules_of_one_step_are_positive_with_the_right_image(degree, lower):
    b = design.best(degree, lower, digits=30)
    if _cost_of_rounding(b, lower) > _allowed(b):
        pytest.skip("doubles do not hold its coefficients")
    s = design.minimax(degree, lower)
    assert s.image()[0] > 0
    assert math.isclose(s(lower), float(b.complement), rel_tol=1e-6 if lower <= 1e-8 else 1e-9)
    size = sum(map(abs, s.steps[0]))
    assert abs(s.error() - float(b.error)) <= 1e-12 * float(b.error) + 2e-15 * size


@settings(max_examples=40)
@given(st.sampled_from((3, 5, 7, 9, 13)), st.floats(-20, -0.001), st.floats(-20, 20))
def test_scale_invariance(degree, exponent, scale):
    l, u = 10.0**exponent, 10.0**scale
    one, other = design.best(degree, l), design.best(degree, l * u, u)
    assert math.isclose(one.rho, other.rho, rel_tol=1e-12)
    if one.error > 1e-9:  # a narrower interval than its rounded ends say
        assert math.isclose(one.error, other.error, rel_tol=1e-6)
    if exponent < -0.1:
        for i, (c, d) in enumerate(zip(one.coefficients, other.coefficients, strict=True)):
            assert math.isclose(c, d * u ** (2 * i + 1), rel_tol=1e-11)


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from((3, 5, 7, 9)), min_size=1, max_size=4),
    st.floats(-12, -0.1),
    st.floats(0.01, 5),
)
def test_the_error_grows_with_the_interval(degrees, exponent, further):
    narrow = design.greedy(10.0**exponent, degrees)
    wide = design.greedy(10.0 ** (exponent - further), degrees)
    assert wide.error() >= narrow.error() - 1e-14 * narrow.slope
    # And a narrower interval is within the wider one's image.
    lo, hi = wide.image(narrow.lower)
    assert narrow.error() <= max(1 - lo, hi - 1) + 1e-14 * narrow.slope


@pytest.mark.parametrize(
    ("name", "lengths", "parameters"),
    [
        ("polar_express_raw", 6, {"cushion": 0.02407327424182761}),
        (
            "polar_express",
            6,
            {"cushion": 0.02407327424182761, "safety": 0.01, "safety_mode": "post_hoc"},
        ),
        ("polar_express_102", 5, {"cushion": 0.02, "safety": 0.02}),
    ],
)
def test_provenance_of_published_sets(name, lengths, parameters):
    published = listed(name).steps
    found = design.greedy(1e-3, [5] * len(published), **parameters).steps
    np.testing.assert_allclose(found[:lengths], published[:lengths], rtol=1e-14)
    np.testing.assert_allclose(found, published, rtol=1e-8)


def test_provenance_of_polar_express_105():
    found = design.greedy(
        1e-3,
        [5] * 5,
        cushion=0.02407327424182761,
        safety=0.05,
        safety_mode="post_hoc",
        safety_on_last=True,
    ).steps
    np.testing.assert_allclose(found, listed("polar_express_105").steps, rtol=1e-14)


def test_provenance_of_cubic5():
    """Published with seven digits after the point."""
    s = design.greedy(7e-3, [3] * 5, peak=1.3)
    np.testing.assert_allclose(s.steps, listed("cubic5").steps, atol=6e-7)
    assert math.isclose(s.image()[1], 1.3, rel_tol=1e-12)


def test_provenance_of_cans():
    found = design.greedy(1e-3, [5] * 5).steps
    np.testing.assert_allclose(found, listed("cans").steps, atol=6e-5)


def test_greedy_errors():
    assert math.isclose(design.greedy(1e-3, [5] * 5).error(), 0.1134, abs_tol=5e-5)
    assert math.isclose(design.greedy(1e-3, [3, 5, 5, 5, 5, 5]).error(), 0.0088, abs_tol=5e-5)
    safe = design.greedy(1e-3, [5] * 5, cushion=0.01, safety=2.0**-7)
    assert math.isclose(safe.error(), 0.1239, abs_tol=5e-5)


def test_greedy_goes_on_after_convergence():
    s = design.greedy(0.1, [5] * 12)
    assert s.error() < 1e-15
    np.testing.assert_allclose(s.steps[-1], (1.875, -1.25, 0.375), rtol=1e-14)


@settings(max_examples=40)
@given(
    st.floats(-4, -0.3),
    st.lists(st.sampled_from((3, 5, 7, 9)), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_no_perturbation_improves_greedy(exponent, degrees, seed):
    s = design.greedy(10.0**exponent, degrees)
    rng = np.random.default_rng(seed)
    x = np.geomspace(s.lower, 1, 3000)
    for size in (1e-1, 1e-3, 1e-5):
        y = x
        with np.errstate(over="ignore", invalid="ignore"):  # a large one may diverge
            for step in s.steps:
                other = np.array(step) * (1 + size * rng.standard_normal(len(step)))
                y = odd_value(tuple(other), y)
        # The sampled error of the other is a lower bound of its true one.
        assert not np.abs(1 - y).max() <= s.error() * (1 - 1e-3) - 1e-13


@pytest.mark.parametrize("degree", [2, 4, 1, 0, -3, 3.0, "5", True, None])
def test_bad_degrees(degree):
    with pytest.raises(ValueError, match="odd integer of at least 3"):
        design.minimax(degree, 0.1)
    with pytest.raises(ValueError, match="odd"):
        design.greedy(0.1, [degree])


@pytest.mark.parametrize(
    "interval", [(0, 1), (-1, 1), (1, 1), (2, 1), (math.nan, 1), (0.1, math.inf), ("a", 1)]
)
def test_bad_intervals(interval):
    with pytest.raises(ValueError, match="0 < lower < upper"):
        design.minimax(3, *interval)
    with pytest.raises(ValueError, match="0 < lower < upper"):
        design.greedy(interval[0], [3], upper=interval[1])


def test_coefficients_beyond_the_doubles():
    for upper in (1e60, 1e-60):
        with pytest.raises(ValueError, match="leave the range of doubles"):
            design.best(5, upper / 10, upper)
    b = design.best(5, 1e59, 1e60, digits=20)
    assert mpmath.almosteq(b.error, design.best(5, 0.1, digits=20).error, 1e-15)


def test_other_bad_requests():
    with pytest.raises(ValueError, match="degrees must be a list"):
        design.greedy(0.1, [])
    with pytest.raises(ValueError, match="degrees must be a list"):
        design.greedy(0.1, 5)
    with pytest.raises(ValueError, match="safety must be"):
        design.greedy(0.1, [5], safety=-0.1)
    with pytest.raises(ValueError, match="cushion must be"):
        design.greedy(0.1, [5], cushion=1.0)
    for peak in (0.9, 2.0, "1.3", math.nan):
        with pytest.raises(ValueError, match="peak must be"):
            design.greedy(0.1, [5], peak=peak)
    with pytest.raises(ValueError, match="safety_mode must be 'in_loop' or 'post_hoc'"):
        design.greedy(0.1, [5], safety_mode="loop")
    with pytest.raises(ValueError, match="digits must be"):
        design.minimax(5, 0.1, digits=0)
