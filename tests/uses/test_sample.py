"""polar_tall of Dask arrays with a basis from a sample of the rows."""

from __future__ import annotations

import importlib
import tracemalloc

import numpy as np
import pytest
from scipy import special
from test_chunked import DTYPES, Counted, factors, left, off

from polarlib import testing
from polarlib.result import ConvergenceWarning
from polarlib.uses import row_blocks, tall
from polarlib.uses.tall import polar_tall

pytest.importorskip("dask")

BLOCKS = 64
SAMPLED = np.arange(8, 64, 16)  # of BLOCKS blocks with 16 n rows each


@pytest.fixture
def da():
    """dask.array, computing in one thread."""
    da = pytest.importorskip("dask.array")
    with importlib.import_module("dask").config.set(scheduler="synchronous"):
        yield da


def blocks(condition: float, dtype: str = "float64", n: int = 5) -> np.ndarray:
    """A matrix of BLOCKS blocks of 16 n rows, with Gaussian left factors."""
    rng = np.random.default_rng(1)
    kind = "complex128" if dtype.startswith("complex") else "float64"
    a = rng.standard_normal((16 * n * BLOCKS, n * (1 + (kind == "complex128")))).view(kind)
    q = testing.orthonormal(n, n, seed=2, dtype=kind)
    return ((a * np.geomspace(1, 1 / condition, n)) @ q.conj().T).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("condition", [1.0, 1e12])
def test_one_pass(da, dtype, condition):
    a = blocks(condition, dtype)
    counted = Counted(da, a, (80,) * BLOCKS)
    result = polar_tall(counted.x)
    wanted = np.ones(BLOCKS, dtype=int)
    wanted[SAMPLED] = 2
    assert np.array_equal(counted.counts, wanted)
    assert (result.method, result.iterations, result.matmuls) == ("sample", 1, 2)
    assert "sample" in result.reason
    u = result.unitary.compute()
    assert np.array_equal(counted.counts, wanted + 1)
    eps = float(np.finfo(dtype).eps)
    assert off(u) < 30 * eps
    assert left(a, u, result.hermitian) < 30 * eps
    assert result.converged
    if dtype in ("float64", "complex128"):
        s = np.linalg.svd(a, compute_uv=False)
        assert result.condition_bounds[0] <= s[0] / s[-1] * (1 + 1e-3)
        assert result.condition_bounds[1] >= s[0] / s[-1] * (1 - 1e-3)


def changed(a: np.ndarray, factor: float) -> np.ndarray:
    """The matrix, with the last column of the sampled blocks multiplied by a factor."""
    a = a.copy()
    a.reshape(BLOCKS, -1, a.shape[1])[SAMPLED, :, -1] *= factor
    return a


@pytest.mark.parametrize(
    ("factor", "name", "passes", "products"),
    [
        (0.95, "sample", 1, 2),
        (1e-3, "sample", 2, 4),
        (1e3, "sample", 2, 4),  # an entry of the whole is a quarter of that of the sample
        (1e-7, "sample, then qr", 3, 4),
        (0.0, "gram", 2, 3),
    ],
)
def test_a_sample_unlike_the_others(da, factor, name, passes, products):
    a = changed(blocks(10.0), factor)
    result = polar_tall(da.from_array(a, chunks=(80, 5)))
    assert (result.method, result.iterations, result.matmuls) == (name, passes, products)
    u, h = result.unitary.compute(), result.hermitian
    assert off(u) < 3e-15
    assert left(a, u, h) < 1e-14
    p, s, qh = np.linalg.svd(a, full_matrices=False)
    assert np.linalg.norm(h - (qh.T * s) @ qh) < 1e-14 * s[0]
    np.testing.assert_allclose(u, p @ qh, rtol=0, atol=1e-12)


def test_rank_of_the_whole(da):
    """The sample has full rank; the whole has a condition number beyond double precision."""
    a = np.random.default_rng(0).standard_normal((BLOCKS * 80, 5)) * [1.0, 1.0, 1.0, 1.0, 1e-13]
    a.reshape(BLOCKS, 80, 5)[np.setdiff1d(np.arange(BLOCKS), SAMPLED), :, 0] *= 1e4
    result = polar_tall(da.from_array(a, chunks=(80, 5)))
    assert (result.method, result.iterations, result.rank) == ("sample, then qr", 3, 4)
    p, _, qh = np.linalg.svd(a, full_matrices=False)
    np.testing.assert_allclose(result.unitary.compute(), p[:, :4] @ qh[:4], rtol=0, atol=1e-11)


def test_sparse_rows(da):
    """Rows that no other row resembles: a sample has none of them."""
    a = np.zeros((BLOCKS * 80, 5))
    a[np.arange(5), np.arange(5)] = [3.0, -2.0, 5.0, 1e-9, -1.0]
    u, h = polar_tall(da.from_array(a, chunks=(80, 5)))
    np.testing.assert_allclose(u, np.sign(a), atol=1e-14)
    np.testing.assert_allclose(h, np.diag(np.abs(a).max(axis=0)), atol=1e-14)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("block", [int(SAMPLED[1]), 30])
def test_not_finite(da, value, block):
    a = blocks(10.0)
    a[80 * block + 7, 2] = value
    rows = f"rows {80 * block} to {80 * block + 79}"
    with pytest.raises(ValueError, match=rf"NaN or infinity in 1 of 400 entries.*{rows}"):
        polar_tall(da.from_array(a, chunks=(80, 5)))


@pytest.mark.parametrize("scale", [1e300, 1e-300])
@pytest.mark.parametrize("other", [1.0, 1e-200, 1e200])
def test_scale_of_the_sample(da, scale, other):
    """Blocks that overflow or underflow in the units of the sample."""
    if abs(np.log10(scale) + np.log10(other)) > 300:
        pytest.skip("no number of double precision")
    a = blocks(10.0)
    x = a * (scale * other)
    x.reshape(BLOCKS, -1)[SAMPLED] /= other
    result = polar_tall(da.from_array(x, chunks=(80, 5)))
    a.reshape(BLOCKS, -1)[SAMPLED] /= other
    a /= np.abs(a).max()
    p, _, qh = np.linalg.svd(a, full_matrices=False)
    np.testing.assert_allclose(result.unitary.compute(), p @ qh, rtol=0, atol=1e-13)


def test_probes_find_a_direction_that_is_left_out(da, monkeypatch):
    n = tall.PROBES + 8
    a = blocks(10.0, n=n)
    right = tall._from_sample

    def short(x, dask):
        basis = right(x, dask)
        return basis._replace(vectors=basis.vectors[:, :-1], values=basis.values[:-1])

    monkeypatch.setattr(tall, "_from_sample", short)
    with pytest.warns(ConvergenceWarning, match="backward error"):
        result = polar_tall(da.from_array(a, chunks=(16 * n, n)))
    truth = left(a, result.unitary.compute(), result.hermitian)
    assert truth > 0.01
    assert truth / 4 < result.backward_error < 2 * truth


def test_probability_of_the_probes():
    """The bound in a comment, against chi-square variables, those of a matrix of rank one."""
    k, t = tall.PROBES, 1 / 16
    bound = (t * np.exp(1 - t)) ** (k / 2)
    assert special.gammainc(k / 2, k * t / 2) <= bound <= 5e-7


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_blocks_are_not_copied(monkeypatch, order, dtype):
    """Memory beyond the arguments and the results is that of some slices."""
    monkeypatch.setattr(row_blocks, "SLICE", 1 << 16)
    a = np.asarray(factors(1 << 13, 16, 10.0, dtype)[0], order=order)
    right = np.eye(16, dtype="complex128" if a.dtype.kind == "c" else "float64")
    for work, given, result in (
        (row_blocks.gram_of_block, (0,), 0),
        (row_blocks.triangle_of_block, (0,), 0),
        (row_blocks.second_of_block, (0, 0, right, right, right), 0),
        (row_blocks.unitary_of_block, (0, right, right), a.nbytes),
    ):
        tracemalloc.start()
        work(a, *given)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < result + a.nbytes / 2
