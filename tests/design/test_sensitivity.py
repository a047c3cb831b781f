"""Sensitivities: against one-sided differences of errors found another way."""

from __future__ import annotations

import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import verbs
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import polarlib
from polarlib import Schedule, design


def _error(steps, lower, upper):
    """Worst |1 - s| from all turning points of the composition, expanded."""
    p = [mpmath.mpf(0), mpmath.mpf(1)]  # x, by ascending powers

    def times(a, b):
        out = [mpmath.mpf(0)] * (len(a) + len(b) - 1)
        for i, v in enumerate(a):
            for j, w in enumerate(b):
                out[i + j] += v * w
        return out

    for step in steps:
        square, power, total = times(p, p), p, [mpmath.mpf(0)]
        for c in step:
            total += [mpmath.mpf(0)] * (len(power) - len(total))
            total = [v + c * w for v, w in zip(total, power, strict=True)]
            power = times(power, square)
        p = total
    slope = [k * c for k, c in enumerate(p)][1::2]  # a polynomial in x^2
    turns = verbs.polynomial_roots(slope)
    x = [mpmath.sqrt(y.real) for y in turns if abs(y.imag) < mpmath.mpf(10) ** -30 and y.real > 0]
    x = [lower, upper, *(t for t in x if lower < t < upper)]
    return max(abs(1 - sum(c * t**k for k, c in enumerate(p))) for t in x)


def _differences(steps, lower, upper, h):
    """Of both one-sided quotients, the larger in absolute value, nested like the steps.

    Between h and 2 h: rounding makes errors at a kink differ by less than what h changes.
    """
    found = []
    for k, step in enumerate(steps):
        row = []
        for i in range(len(step)):
            sides = []
            for sign in (1, -1):
                errors = []
                for size in (h, 2 * h):
                    moved = [list(c) for c in steps]
                    moved[k][i] += sign * size
                    errors.append(_error(moved, lower, upper))
                sides.append(sign * (errors[1] - errors[0]) / h)
            row.append(float(max(sides, key=abs)))
        found.append(row)
    return found


@pytest.mark.thinned(4)
@pytest.mark.parametrize("degrees", [[3], [5], [9], [3, 3], [5, 3], [3, 5], [5, 5], [3, 3, 3]])
def test_kinks_of_best_compositions(degrees):
    s = design.greedy(0.05, degrees)
    with mpmath.workdps(60):
        steps = [[mpmath.mpf(c) for c in step] for step in s.steps]
        wanted = _differences(steps, mpmath.mpf(0.05), mpmath.mpf(1), mpmath.mpf(10) ** -8)
    for row, exact in zip(design.sensitivity(s), wanted, strict=True):
        np.testing.assert_allclose(row, exact, rtol=1e-6)


@pytest.mark.slow
@given(
    st.lists(st.sampled_from([3, 5]), min_size=1, max_size=2),
    st.floats(1.0, 1.1),
    st.integers(0, 10**6),
)
@settings(max_examples=5)
def test_smooth_errors_of_other_compositions(degrees, safety, seed):
    """With input division, and coefficients of which one point has the worst error."""
    rng = np.random.default_rng(seed)
    steps = tuple(
        tuple(c * (1 + 0.02 * rng.standard_normal()) for c in step)
        for step in design.greedy(0.2, degrees).steps
    )
    try:
        s = Schedule(steps=steps, lower=0.2, input_safety=safety)
    except ValueError:  # it is not positive, or leaves (0, 2)
        assume(False)
    with mpmath.workdps(60):
        ends = mpmath.mpf(0.2) / safety, mpmath.mpf(1) / safety
        exact = [[mpmath.mpf(c) for c in step] for step in steps]
        wanted = _differences(exact, *ends, mpmath.mpf(10) ** -20)
    for row, other in zip(design.sensitivity(s), wanted, strict=True):
        np.testing.assert_allclose(row, other, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    "s",
    [
        design.greedy(1e-3, [5] * 5),
        design.band(4, (0.7, 1.2)),
        polarlib.schedule("polar_express"),
        polarlib.schedule("jordan"),
        design.inverse_root(3, 0.1, [4, 7]),
    ],
    ids=lambda s: s.name,
)
def test_long_compositions_by_certificates(s):
    """Differences of errors that are proven, of coefficients that are doubles."""
    for k, (step, row) in enumerate(zip(s.steps, design.sensitivity(s), strict=True)):
        for i, (c, found) in enumerate(zip(step, row, strict=True)):
            sides = []
            for sign in (1, -1):
                moved = [c + sign * m * 1e-8 / max(1.0, abs(found)) for m in (1, 2)]
                errors = []
                for v in moved:
                    steps = list(s.steps)
                    steps[k] = (*step[:i], v, *step[i + 1 :])
                    errors.append(replace(s, steps=tuple(steps)).error())
                sides.append((errors[1] - errors[0]) / (moved[1] - moved[0]))
            # Differences of doubles: 1e-16 over 1e-8.
            wanted = max(sides, key=abs)
            assert math.isclose(found, wanted, rel_tol=1e-5, abs_tol=1e-6), (k, i, sides)


def test_one_step_in_closed_form():
    s = Schedule(steps=[(1.5, -0.5)], lower=0.5)
    assert design.sensitivity(s) == ((-0.5, -0.125),)
    assert design.sensitivity(s, lower=0.25) == ((-0.25, -(0.25**3)),)
    halved = Schedule(steps=[(3.0, -4.0)], lower=0.5, input_safety=2.0)
    assert design.sensitivity(halved) == ((-0.25, -(0.25**3)),)
    as_is = replace(s, input_safety=2.0, normalisation="none")
    assert design.sensitivity(as_is) == ((-0.5, -0.125),)
    # Best on [l, 1]: the error is at l, between, and at 1; the last has the largest derivative.
    np.testing.assert_allclose(design.sensitivity(design.minimax(3, 0.1)), [[-1.0, -1.0]])


def test_no_error_has_both_signs():
    s = Schedule(steps=[(1.5, -0.5)], lower=1.0)
    assert s.error() == 0
    assert design.sensitivity(s) == ((1.0, 1.0),)


def test_a_later_step_that_turns_leaves_earlier_ones_without_effect():
    s = Schedule(steps=[(1.0, 0.0), (1.5, -0.4)], lower=0.9, upper=1.2)
    # The worst error is at the turning point of the second step, sqrt(1.25).
    assert design.sensitivity(s)[0] == (0.0, 0.0)
    np.testing.assert_allclose(design.sensitivity(s)[1], [1.25**0.5, 1.25**1.5])


def test_many_steps_keep_their_digits():
    for s in (design.greedy(1e-30, [5] * 45), design.band(12, 0.3, degree=3)):
        short = design.sensitivity(s)
        assert [len(row) for row in short] == [len(step) for step in s.steps]
        assert np.all(np.isfinite(short))
    for s in (design.greedy(1e-6, [5] * 9), design.greedy(1e-3, [5] * 5)):
        # To multiply all values is to multiply all coefficients of the last step.
        last = design.sensitivity(s)[-1]
        at_top = sum(c * d for c, d in zip(s.steps[-1], last, strict=True))
        assert at_top > 0


def test_sensitivity_refuses():
    for wrong in (None, [(1.5, -0.5)], "jordan", 3):
        with pytest.raises(TypeError, match="s must be a Schedule"):
            design.sensitivity(wrong)
    with pytest.raises(
        ValueError, match=r"s must be a schedule of polynomials .* with rational steps"
    ):
        design.sensitivity(design.zolotarev(1, 0.1))
    with pytest.raises(ValueError, match=r"s must be a schedule .* with target 'power"):
        design.sensitivity(design.power(0.5, 0.1, [3]))
    for lower in (0, -1, 1.5, math.nan, "0.1"):
        with pytest.raises(ValueError, match="lower must be a number above 0 and at most 1"):
            design.sensitivity(design.minimax(3, 0.1), lower)
