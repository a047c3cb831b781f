"""The Procrustes problems of examples/procrustes_variants.py, and what proves their solutions."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
from conftest import module_of

SCRIPT = Path(__file__).parents[1] / "examples" / "procrustes_variants.py"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the examples are not installed")
LINES = 80


@pytest.fixture
def variants():
    return module_of(SCRIPT)


def test_the_example_proves_what_it_prints():
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) < LINES
    command = [sys.executable, "-W", "error", str(SCRIPT)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert list(lines) == ["permutation", "two-sided", "one on both", "symmetric", "unknown order"]
    for name in ("permutation", "two-sided", "one on both"):
        found, least = re.findall(r"\d\.\d{12}", lines[name])
        assert abs(float(found) - float(least)) < 1e-11
    assert lines["symmetric"] == "gradient zero"
    assert lines["unknown order"].startswith("30 of 30 points")


def test_residuals_never_grow(variants):
    rng = np.random.default_rng(1)
    a = rng.normal(size=(20, 2))
    for _ in range(5):
        _, found, residuals = variants.matched(a, rng.normal(size=(20, 2)))
        assert np.all(np.diff(residuals) <= 1e-14)
        assert found.rmsd == residuals[-1]


def test_symmetric_factor_is_the_least(variants):
    """By least squares in the entries of X on and above the diagonal."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 6, 4))
    x = variants.symmetric(a, b)
    np.testing.assert_allclose(x, x.T, atol=1e-14)
    above = np.triu_indices(4)

    def residual(v):
        y = np.zeros((4, 4))
        y[above] = v
        return (a @ (y + np.triu(y, 1).T) - b).ravel()

    best = scipy.optimize.least_squares(residual, np.zeros(10), xtol=1e-15, gtol=1e-15, ftol=1e-15)
    np.testing.assert_allclose(x[above], best.x, atol=1e-9)


def test_theochem_finds_the_same(variants):
    theirs = pytest.importorskip("procrustes")
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 8, 8))
    p = theirs.permutation(a.T, b.T).t  # of columns
    np.testing.assert_array_equal(a[variants.permutation(a, b)], (a.T @ p).T)
    found = theirs.orthogonal_2sided(a, b, single=False)
    left, right = variants.two_sided(a, b)
    np.testing.assert_allclose(left.T @ a @ right, found.s @ a @ found.t, atol=1e-12)
    s, t = a + a.T, b + b.T
    q = theirs.orthogonal_2sided(s, t, single=True).t
    mine = variants.symmetric_two_sided(s, t)
    np.testing.assert_allclose(mine.T @ s @ mine, q.T @ s @ q, atol=1e-12)
    np.testing.assert_allclose(variants.symmetric(a, b), theirs.symmetric(a, b).t, atol=1e-9)
