"""The scripts beside this file: that they pass, and that they can fail."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import jax_grid
import numpy as np
import pytest
import scipy.linalg
import scipy_polar
from conftest import library

SCRIPT = Path(scipy_polar.__file__)

needs_scipy_tests = pytest.mark.skipif(
    importlib.util.find_spec(scipy_polar.MODULE) is None, reason="SciPy came without its tests"
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: SciPy's tests must not have been imported before."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=SCRIPT.parent
    )


@needs_scipy_tests
def test_scipy_passes():
    done = run(str(SCRIPT))
    assert done.returncode == 0, done.stdout + done.stderr
    # 32 in SciPy 1.17, 2 in 1.13, each over several matrices; that none was left out is ours.
    collected = int(done.stdout.partition("collected ")[2].split()[0])
    assert f"{collected} tests passed; polarlib.polar was called" in done.stdout
    assert collected >= (32 if scipy.__version__ >= "1.17" else 2)


@needs_scipy_tests
def test_scipy_fails_a_wrong_function():
    wrong = "lambda a, side='right': (u := right(a, side=side)) and (-u[0], u[1])"
    code = (
        f"import scipy_polar as s; right = s.polar; s.polar = {wrong}; raise SystemExit(s.main([]))"
    )
    assert run("-c", code).returncode == 1


def test_jax_agrees():
    library("jax")
    import jax.numpy as jnp
    from jax.scipy.linalg import polar as theirs

    # JAX compiles for every shape, dtype and option: two of them, the script takes them all.
    svd = jax_grid.Case((4, 4), "float32", "right", "svd", 10.0, 0, 1e3)
    qdwh = jax_grid.Case((4, 4), "float64", "right", "qdwh", 1e4, 0, 1.0)
    for case in (svd, qdwh, qdwh._replace(zeros=1)):
        assert jax_grid.check(case, jnp, theirs) == ""

    def wrong(x, side, method):
        u, h = theirs(x, side=side, method=method)
        return -u, h

    for case in (svd, qdwh):
        assert "apart" in jax_grid.check(case, jnp, wrong)


def test_the_grid_has_every_kind():
    for every in (False, True):
        grid = list(jax_grid.cases(every))
        for i, axis in enumerate(
            (jax_grid.SHAPES, jax_grid.DTYPES, jax_grid.SIDES, jax_grid.METHODS)
        ):
            assert {case[i] for case in grid} == set(axis)
        assert {case.supported for case in grid} == {True, False}


# -- the cases of Bullet's unit tests: small matrices of games and mechanics ------------------


@pytest.mark.parametrize("method", ["auto", "svd", "qdwh", "newton"])
def test_bullet(method):
    """Zero, singular and nearly singular 3 x 3 matrices, where Bullet's polar gives up."""
    from polarlib import polar
    from polarlib.testing import assert_polar

    singular = np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    nearly = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 0]])
    for a in [
        np.zeros((3, 3)),
        singular,
        np.ones((3, 3)),
        np.diag([1.0, 1.0, 0.0]),
        *(nearly + np.diag([0, 0, t]) for t in (1e-4, 1e-8, 1e-16, 1e-40, 1e-300, -1e-8, 5e-324)),
        *(singular + t * np.eye(3) for t in (1e-8, 1e-16, -1e-16)),
        np.diag([1e-30, 1e-30, 1e-30]),
        np.diag([1e30, 1.0, 1e-30]),
    ]:
        for dtype in ("float64", "float32"):
            b = a.astype(dtype)
            result = polar(b, method=method)
            assert result.converged
            assert_polar(b, *result, rtol=120 * np.finfo(dtype).eps)
            s = scipy.linalg.svdvals(b)
            if s[-1] > 1e-3 * s[0]:
                assert result.rank == 3
