"""Fingerprints: from the coefficients back to what they were designed for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarlib import design, schedule


@settings(max_examples=30)
@given(
    st.sampled_from((3, 5, 7, 9)),
    st.floats(-4, -0.1),
    st.floats(0.3, 3.0),
    st.floats(0.5, 2.0),
)
def test_round_trip(degree, exponent, upper, gain):
    l = 10.0**exponent
    gain = 1.0 if degree == 3 else gain
    step = [
        gain * c / upper ** (2 * i + 1) for i, c in enumerate(design.best(degree, l).coefficients)
    ]
    found = design.fingerprint(step)
    assert math.isclose(found.lower, l * upper, rel_tol=1e-7)
    assert math.isclose(found.upper, upper, rel_tol=1e-9)
    assert math.isclose(found.gain, gain, rel_tol=1e-9)
    assert found.mismatch < 1e-9


def test_published_steps():
    # The raw list: cushion 0.0240..., no safety, recentred by a gain above or below 1.
    first = design.fingerprint(schedule("polar_express_raw").steps[0])
    assert math.isclose(first.lower, 0.02407327424182761, rel_tol=1e-10)
    assert math.isclose(first.upper, 1, rel_tol=1e-10)
    assert first.gain > 1  # the image of the small ones pulls the centre below 1
    # The same, squeezed.
    squeezed = design.fingerprint(schedule("polar_express").steps[0])
    assert math.isclose(squeezed.upper, 1.01, rel_tol=1e-10)
    # Four digits after the point tell 1e-3.
    assert math.isclose(design.fingerprint(schedule("cans").steps[0]).lower, 1e-3, rel_tol=0.01)
    # All steps of the relaxed cubic list are one polynomial on intervals of one ratio.
    ratios = [f.lower / f.upper for f in map(design.fingerprint, schedule("cubic5").steps)]
    assert max(ratios) / min(ratios) < 1 + 1e-6


def test_a_higher_degree_that_is_no_best_polynomial_shows():
    step = list(design.best(9, 0.1).coefficients)
    step[-1] *= 1.01
    assert design.fingerprint(step).mismatch > 1e-3


@pytest.mark.parametrize(
    "step", [(1.5,), (1.5, 0.5), (-1.5, 0.5), (1.5, -math.inf), "abc", None, (), ("a", "b")]
)
def test_no_step(step):
    with pytest.raises(ValueError, match=r"two coefficients or more|step.* must be a"):
        design.fingerprint(step)


@pytest.mark.parametrize("step", [schedule("aol_nv").steps[0], (1.5, -0.5), (1.875, -1.25, 0.375)])
def test_ratios_that_no_best_polynomial_has(step):
    with pytest.raises(ValueError, match="must be a best polynomial"):
        design.fingerprint(step)
