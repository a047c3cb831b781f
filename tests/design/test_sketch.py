"""Sketched spectra and schedules for them, against singular value decompositions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from polarlib import orthogonalize
from polarlib._schedules.images import odd_image
from polarlib.design import (
    for_matrix,
    for_spectrum,
    greedy,
    mean_error,
    sketched_spectrum,
    spectrum,
)
from polarlib.design.sketch import _bidiagonal
from polarlib.files import sample_matrices

FIXED = greedy(1e-3, [5] * 5)


def _matrix(values, m=None, seed=0, dtype=float):
    """A matrix of these singular values."""
    rng = np.random.default_rng(seed)
    n = len(values)
    m = m or n
    draw = [rng.standard_normal((k, n)) for k in (m, n)]
    if dtype is complex:
        draw = [x + 1j * rng.standard_normal(x.shape) for x in draw]
    u, v = (np.linalg.qr(x)[0] for x in draw)
    return (u * values) @ v.conj().T


def _exact(a):
    values = np.linalg.svd(np.asarray(a, dtype=float), compute_uv=False)
    return spectrum(values.astype(np.asarray(a).dtype), normalisation="frobenius")


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("depth", [1, 2, 5, 8])
def test_bidiagonal_matrices_are_those_of_exact_moments(depth, dtype):
    """A Gauss rule integrates s^2 to the powers below 2 k: v^H (A^H A)^j v."""
    a = _matrix(np.linspace(1, 0.1, 12), m=15, dtype=dtype)
    rng = np.random.default_rng(1)
    v = rng.standard_normal((3, 12)).astype(a.dtype)
    v /= np.linalg.norm(v, axis=1)[:, None]
    _, values, right = np.linalg.svd(_bidiagonal(a, v, depth, 1e-14))
    gram = a.conj().T @ a
    for power in range(2 * depth):
        found = np.sum(right[:, :, 0] ** 2 * values ** (2 * power), axis=1)
        exact = [np.vdot(x, np.linalg.matrix_power(gram, power) @ x).real for x in v]
        np.testing.assert_allclose(found, exact, rtol=1e-11)


@pytest.mark.parametrize("rank", [1, 3])
def test_values_of_a_matrix_of_low_rank_are_exact(rank):
    """The recurrence ends there, and zeros do not count."""
    values = np.zeros(100)
    values[:rank] = np.linspace(1.0, 0.5, rank)
    found = sketched_spectrum(_matrix(values), depth=16)
    exact = values[:rank] / np.linalg.norm(values)
    np.testing.assert_allclose(np.unique(found.values.round(12)), exact[::-1].round(12))
    assert math.isclose(found.weights.sum(), 1.0)


def test_few_columns_are_exact():
    a = np.random.default_rng(0).standard_normal((7, 50))
    found = sketched_spectrum(a)
    np.testing.assert_allclose(found.values, _exact(a).values, rtol=1e-12)
    np.testing.assert_allclose(found.weights, 1 / 7)


def test_distribution_of_a_random_matrix():
    """Of numbers of the same seed, too."""
    a = np.random.default_rng(0).standard_normal((500, 300))
    found, exact = sketched_spectrum(a), _exact(a)
    total = np.cumsum(found.weights)
    for x in np.quantile(exact.values, [0.1, 0.3, 0.5, 0.7, 0.9]):
        mine = total[np.searchsorted(found.values, x) - 1]
        assert abs(mine - np.mean(exact.values <= x)) < 0.03
    assert found.normalisation == "frobenius"
    assert found.values.max() <= 1


def test_the_same_for_an_adjoint_a_multiple_and_the_same_seed():
    a = np.random.default_rng(0).standard_normal((150, 100))
    found = sketched_spectrum(a)
    for other in (a.T, a * 1e200, a * 1e-200):
        same = sketched_spectrum(other)
        np.testing.assert_allclose(same.values, found.values, rtol=1e-9)
        for power in (1, 2, 5):  # values that nearly agree are in any order
            exact = found.weights @ found.values**power
            np.testing.assert_allclose(same.weights @ same.values**power, exact, rtol=1e-9)
    again = sketched_spectrum(a)
    assert (again.values == found.values).all()
    assert (sketched_spectrum(a, seed=1).weights[:9] != found.weights[:9]).any()


# Singular values of made matrices, and how many times the mean error for the exact ones that for
# the sketched ones may be; below 1e-5 it is left alone.
MADE = {
    "geometric to 1e-5": (np.geomspace(1, 1e-5, 300), 1.1),
    "geometric to 1e-3": (np.geomspace(1, 1e-3, 300), 1.1),
    "power law": (np.arange(1, 301) ** -1.5, 1.05),
    "half zero": (np.r_[np.linspace(1, 0.05, 150), np.zeros(150)], 5.0),
    "half zero, log-uniform": (np.r_[np.geomspace(1, 1e-2, 150), np.zeros(150)], 8.0),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", MADE)
def test_nearly_as_good_as_for_the_exact_spectrum(name):
    values, factor = MADE[name]
    a = _matrix(values)
    best = mean_error(for_spectrum(_exact(a), 5), _exact(a))
    found = mean_error(for_matrix(a, 5), _exact(a))
    assert found <= factor * best
    assert found < 1.05 * mean_error(FIXED, _exact(a))


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", sorted(sample_matrices()))
def test_nearly_as_good_on_bundled_gradients(name):
    a = sample_matrices()[name]
    exact = _exact(a)
    best = mean_error(for_spectrum(exact, 5), exact)
    s = for_matrix(a, 5)
    assert mean_error(s, exact) <= max(1.15 * best, 1e-5)
    assert mean_error(s, exact) < mean_error(FIXED, exact)


@pytest.mark.parametrize("degree", [3, (3, 5, 5)])
def test_bounds_hold_for_what_the_sketch_has_not_seen(degree):
    """A singular value far from all others: no vector of two steps has told it."""
    values = np.r_[np.full(199, 1.0), 0.3]
    a = _matrix(values)
    s = for_matrix(a, 3, degree=degree, probes=1, depth=2)
    top = 1.0
    for step in s.steps:
        low, top = odd_image([step], 0.0, top)
        assert low >= 0
    assert top <= max(1.1, s.image(0.0, 1.0)[1])
    out = np.linalg.svd(orthogonalize(a, schedule=s), compute_uv=False)
    assert out.min() > 0.0
    assert out.max() <= top + 1e-9


def test_arrays_of_every_library(lib):
    a = np.random.default_rng(0).standard_normal((40, 20))
    s = for_matrix(lib.asarray(a), 2)
    np.testing.assert_allclose(np.concatenate(s.steps), np.concatenate(for_matrix(a, 2).steps))


def test_what_is_refused():
    a = np.ones((4, 3))
    for bad, error, message in (
        (np.zeros((3, 3)), ValueError, "a must not be zero"),
        (np.ones((2, 3, 3)), ValueError, r"one matrix with entries, got shape \(2, 3, 3\)"),
        (np.ones((0, 3)), ValueError, "one matrix with entries"),
        ([[1.0, math.nan]], ValueError, "contains NaN or infinity in 1 of 2 entries"),
        ([1.0, 2.0], ValueError, "must be a matrix"),
        ("abc", TypeError, "array of numbers"),
    ):
        for function in (sketched_spectrum, lambda x: for_matrix(x, 2)):
            with pytest.raises(error, match=message):
                function(bad)
    for name in ("probes", "depth"):
        for value in (0, 1.5, None, 2000):  # depth is at least 2
            with pytest.raises(ValueError, match=f"{name} must be"):
                sketched_spectrum(a, **{name: value})
    with pytest.raises(ValueError, match="seed must be"):
        sketched_spectrum(a, seed=-1)
    with pytest.raises(ValueError, match=r"got 2 degrees, .* for steps=3"):
        for_matrix(a, 3, degree=(3, 5))
