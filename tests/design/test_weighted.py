"""Weighted best polynomials: linear programs, alternation, and multiples of a weight."""

from __future__ import annotations

import itertools
import math
import re

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from polarlib import design

WEIGHTS = {
    "relative": lambda x: 1 / x,
    "rising": lambda x: 1 + x,
    "falling": lambda x: np.exp(-2 * x),
    "wave": lambda x: 2 + np.sin(9 * x),
    "kink": lambda x: 1 + 2 * np.maximum(0, 1 - np.abs(x - 0.6) / 0.2),
    "large": lambda x: 1e200 * (1 + x**2),
}


def _alternations(step, weight, lower, upper, level):
    """Sign changes between places, on a fine grid, where the weighted error is the level."""
    x = np.linspace(lower, upper, 200_001)
    e = weight(x) * (1 - sum(c * x ** (2 * i + 1) for i, c in enumerate(step)))
    assert np.max(np.abs(e)) <= level * (1 + 1e-9)
    # The grid misses the tip of a kink by 1e-5.
    signs = [s for s, _ in itertools.groupby(np.sign(e[np.abs(e) >= level * (1 - 1e-4)]))]
    return len(signs)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(("degree", "lower", "upper"), [(3, 0.4, 1.0), (5, 0.3, 1.2), (9, 0.3, 1)])
def test_the_weighted_error_alternates(name, degree, lower, upper):
    """Chebyshev's criterion, which only the best polynomial meets: q + 2 alternations."""
    weight = WEIGHTS[name]
    s = design.minimax(degree, lower, upper, weight=weight)
    level = float(re.search(r"max w \|1 - p\| = (\S+)$", s.source).group(1))
    assert _alternations(s.steps[0], weight, lower, upper, level) == degree // 2 + 2


@pytest.mark.parametrize("name", ["relative", "wave", "kink"])
def test_agrees_with_a_linear_program(name):
    weight, degree, lower = WEIGHTS[name], 5, 0.3
    s = design.minimax(degree, lower, weight=weight)
    x = np.linspace(lower, 1, 3001)
    powers = np.stack([x, x**3, x**5], axis=1) * weight(x)[:, None]
    level = np.ones((len(x), 1))
    found = linprog(
        [0, 0, 0, 1],
        A_ub=np.block([[powers, -level], [-powers, -level]]),
        b_ub=np.concatenate([weight(x), -weight(x)]),
        bounds=[(None, None)] * 4,
    )
    worst = np.max(np.abs(weight(x) * (1 - s(x))))
    assert found.fun <= worst * (1 + 1e-9)
    assert worst <= found.fun * (1 + 1e-6)
    np.testing.assert_allclose(s(x), powers @ found.x[:3] / weight(x), atol=1e-3)


@pytest.mark.thinned(3)
@pytest.mark.parametrize(
    ("degree", "lower"),
    [
        (3, 0.1),
        (5, 1e-3),
        (5, 1e-12),
        (5, 1e-15),
        (9, 1e-3),
        (25, 0.1),
        (25, 0.5),
        (5, 1 - 1e-6),
        (3, 1 - 1e-12),
    ],
)
def test_a_constant_weight_changes_nothing(degree, lower):
    plain = design.minimax(degree, lower)
    for weight in (lambda x: 3e-7, lambda x: np.full(x.shape, 5, dtype=int)):
        s = design.minimax(degree, lower, weight=weight)
        np.testing.assert_allclose(s.steps[0], plain.steps[0], rtol=2e-14)
        assert math.isclose(s.error(), plain.error(), rel_tol=1e-9, abs_tol=1e-15)


@pytest.mark.slow
@given(
    st.sampled_from([3, 5, 7]),
    st.floats(0.3, 0.9),
    st.lists(st.floats(-0.4, 0.4), min_size=1, max_size=4),
    st.floats(-80, 80),
)
@settings(max_examples=6)
def test_random_weights_alternate_and_their_scale_is_nothing(degree, lower, waves, scale):
    def weight(x):
        return np.exp(sum(a * np.cos(3 * k * x) for k, a in enumerate(waves, 1)))

    s = design.minimax(degree, lower, weight=weight)
    level = float(s.source.rpartition("= ")[2])
    if level > 1e-9:  # below, the rounding of the grid's values is seen
        assert _alternations(s.steps[0], weight, lower, 1.0, level) == degree // 2 + 2
    scaled = design.minimax(degree, lower, weight=lambda x: math.exp(scale) * weight(x))
    np.testing.assert_allclose(scaled.steps[0], s.steps[0], rtol=1e-11)
    assert math.isclose(
        float(scaled.source.rpartition("= ")[2]), math.exp(scale) * level, rel_tol=1e-9
    )


def test_levels_below_the_rounding_of_doubles():
    """Against the exchange by its linear system in 60 digits, on points that alternate."""
    lower, weight = 0.9, WEIGHTS["rising"]
    s = design.minimax(9, lower, weight=weight, digits=30)
    level = float(s.source.rpartition("= ")[2])
    with mpmath.workdps(60):
        # de la Vallee-Poussin's bound on Chebyshev's points, and what no polynomial goes below.
        x = [
            mpmath.sqrt(
                (1 + mpmath.mpf(lower) ** 2 - (1 - lower**2) * mpmath.cos(mpmath.pi * k / 5)) / 2
            )
            for k in range(6)
        ]
        a = mpmath.matrix(
            [[p ** (2 * i + 1) for i in range(5)] + [(-1) ** k / (1 + p)] for k, p in enumerate(x)]
        )
        bound = abs(mpmath.lu_solve(a, mpmath.matrix([1] * 6))[5])
    assert bound <= level * (1 + 1e-9)
    assert level <= 1.5 * bound


def test_scaled_intervals():
    one = design.minimax(5, 0.3, weight=WEIGHTS["wave"])
    for u in (1e-30, 0.5, 1e20):
        s = design.minimax(5, 0.3 * u, u, weight=lambda x, u=u: WEIGHTS["wave"](x / u))
        np.testing.assert_allclose(s(0.7 * u), one(0.7), rtol=1e-12)
    with pytest.raises(ValueError, match="leave the range of doubles"):
        design.minimax(5, 1e-61, 1e-60, weight=np.ones_like)


def test_error_of_the_schedule_is_not_weighted():
    s = design.minimax(5, 0.3, weight=lambda x: 100 / x)
    assert 0.1 < s.error() < 0.3
    assert s.error() > design.minimax(5, 0.3).error()


@pytest.mark.parametrize("weight", [1.0, "1 / x", np.ones(3), [1, 2], True])
def test_what_is_no_function(weight):
    with pytest.raises(TypeError, match="weight must be a function of an array of points"):
        design.minimax(5, 0.1, weight=weight)


@pytest.mark.parametrize(
    "weight",
    [
        lambda x: -x,
        lambda x: x - 0.5,
        lambda x: 0 * x,
        lambda x: np.where(x < 0.9, 1.0, 0.0),
        lambda x: x * np.nan,
        lambda x: np.where(x > 0.9999, np.inf, 1.0),
    ],
)
def test_weights_that_are_not_positive(weight):
    with pytest.raises(
        ValueError, match=r"weight must be positive and finite on .*, got .* at x ="
    ):
        design.minimax(5, 0.1, weight=weight)


@pytest.mark.parametrize(
    "weight",
    [
        lambda x: x[:-1],
        lambda x: np.ones(3),
        lambda x: np.stack([x, x]),
        lambda x: x[:, None],
        lambda x: x + 1j,
        lambda x: "1",
        lambda x: None,
        lambda x: [x, 1],
    ],
)
def test_weights_of_another_shape(weight):
    with pytest.raises(ValueError, match="weight must return an array of real numbers of shape"):
        design.minimax(5, 0.1, weight=weight)


def test_weights_of_single_numbers():
    with pytest.raises(TypeError, match="weight must take an array of float64"):
        design.minimax(5, 0.1, weight=math.exp)
    with pytest.raises(TypeError, match="weight must take an array of float64"):
        design.minimax(5, 0.1, weight=lambda: 1.0)


def test_a_weight_cannot_change_the_points():
    def weight(x):
        x += 1.0
        return x

    s = design.minimax(5, 0.3, weight=weight)
    np.testing.assert_allclose(
        s.steps[0], design.minimax(5, 0.3, weight=WEIGHTS["rising"]).steps[0]
    )


@pytest.mark.slow
def test_uneven_weights_and_degrees_beyond_doubles_are_refused():
    with pytest.raises(ValueError, match=r"has values from -.*, outside \(0, 2\); use a less"):
        design.minimax(5, 0.01, weight=lambda x: 1 / x)
    with pytest.raises(ValueError, match="beyond double coefficients"):
        design.minimax(45, 0.3, weight=WEIGHTS["rising"])
    calls = itertools.count(1)
    with pytest.raises(ValueError, match="continuous, and the same in every call"):
        design.minimax(5, 0.3, weight=lambda x: 1 + next(calls) * x)
