"""polar_tall on Dask."""

from __future__ import annotations

import doctest
import importlib.util
import sys
import tracemalloc

import numpy as np
import pytest

from polarlib import testing
from polarlib.decomposition import polar
from polarlib.result import ConvergenceWarning, Status
from polarlib.uses import tall
from polarlib.uses.tall import polar_tall

DTYPES = ("float32", "float64", "complex64", "complex128")


@pytest.fixture
def da():
    """dask.array, computing in one thread."""
    da = pytest.importorskip("dask.array")
    with importlib.import_module("dask").config.set(scheduler="synchronous"):
        yield da


def factors(m: int, n: int, condition: float, dtype: str = "float64") -> tuple[np.ndarray, ...]:
    """A matrix and its polar factors, right to rounding whatever its condition."""
    kind = "complex128" if dtype.startswith("complex") else "float64"
    p = testing.orthonormal(m, n, seed=1, dtype=kind)
    q = testing.orthonormal(n, n, seed=2, dtype=kind)
    s = np.geomspace(1, 1 / condition, n)
    return ((p * s) @ q.conj().T).astype(dtype), p @ q.conj().T, (q * s) @ q.conj().T


def off(u: np.ndarray) -> float:
    """``||U^H U - I||_F / sqrt(n)`` in double precision."""
    u = u.astype(np.complex128)
    return float(np.linalg.norm(u.conj().T @ u - np.eye(u.shape[1])) / np.sqrt(u.shape[1]))


def left(a: np.ndarray, u: np.ndarray, h: np.ndarray) -> float:
    """``||A - U H||_F / ||A||_F`` in double precision."""
    a, u, h = (np.asarray(x, dtype=np.complex128) for x in (a, u, h))
    return float(np.linalg.norm(a - u @ h) / np.linalg.norm(a))


class Counted:
    """A dask array that counts how often each of its blocks is computed."""

    def __init__(self, da, a: np.ndarray, rows: tuple[int, ...]) -> None:
        self.counts = np.zeros(len(rows), dtype=int)
        starts = np.cumsum([0, *rows])

        def block(block_info=None) -> np.ndarray:
            i = block_info[None]["chunk-location"][0]
            self.counts[i] += 1
            return a[starts[i] : starts[i + 1]]

        self.x = da.map_blocks(
            block,
            chunks=(rows, (a.shape[1],)),
            dtype=a.dtype,
            meta=np.empty((0, 0), a.dtype),
        )


# -- the factors -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("condition", [1.0, 1e5, 1e12])
def test_factors_and_evidence(da, dtype, condition):
    a, exact_u, exact_h = factors(900, 12, condition, dtype)
    rows = (200, 1, 300, 0, 5, 394)  # some blocks have fewer rows than columns, one has none
    result = polar_tall(da.from_array(a, chunks=(rows, 12)))
    eps = float(np.finfo(dtype).eps)
    assert result.unitary.dtype == a.dtype
    assert result.unitary.chunks == (rows, (12,))
    assert type(result.hermitian) is np.ndarray
    assert result.hermitian.dtype == a.dtype
    u, h = result.unitary.compute(), result.hermitian
    assert result.status is Status.CONVERGED
    assert result.converged
    assert off(u) <= result.orthogonality * 1.5 + 2e-15
    assert result.orthogonality < 30 * eps
    assert left(a, u, h) <= result.backward_error * 1.5 + 2e-15
    assert result.backward_error < 30 * eps
    assert np.array_equal(h, h.conj().T)
    assert np.linalg.norm(h - exact_h) < 30 * eps
    assert np.linalg.eigvalsh(h.astype(np.complex128)).min() > -30 * eps
    if dtype in ("float64", "complex128"):
        assert result.rank == 12
        assert result.condition_bounds[0] <= condition * (1 + 1e-9)
        assert result.condition_bounds[1] >= condition * (1 - 1e-9)
        assert np.linalg.norm(u - exact_u) < 30 * eps * condition + 1e-13


def test_agrees_with_polar_in_memory(da):
    a = testing.with_singular_values(np.geomspace(1, 1e-3, 20), 500, 20, seed=3)
    u, h = polar_tall(da.from_array(a, chunks=(70, 20)))
    want_u, want_h = polar(a, method="svd")
    np.testing.assert_allclose(u.compute(), want_u, rtol=0, atol=1e-12)
    np.testing.assert_allclose(h, want_h, rtol=0, atol=1e-14)


@pytest.mark.parametrize("condition", [1e9, 1e13])
def test_gram_refuses_what_qr_can_do(da, condition):
    a, exact_u, _ = factors(600, 10, condition)
    x = da.from_array(a, chunks=(100, 10))
    with pytest.raises(ValueError, match=r"method='gram'.*'qr'"):
        polar_tall(x, method="gram")
    result = polar_tall(x, method="qr")
    u = result.unitary.compute()
    assert off(u) < 1e-14
    assert left(a, u, result.hermitian) < 1e-14
    assert np.linalg.norm(u - exact_u) < 1e-14 * condition


@pytest.mark.parametrize(
    ("method", "condition", "passes", "name", "products"),
    [
        ("auto", 10.0, 2, "gram", 3),
        ("gram", 10.0, 2, "gram", 3),
        ("qr", 10.0, 2, "qr", 2),
        ("auto", 1e10, 3, "qr", 3),
    ],
)
def test_passes(da, method, condition, passes, name, products):
    a = factors(400, 8, condition)[0]
    counted = Counted(da, a, (50,) * 8)
    result = polar_tall(counted.x, method=method)
    assert counted.counts.tolist() == [passes] * 8
    assert (result.iterations, result.method, result.matmuls) == (passes, name, products)
    u = result.unitary.compute()
    assert counted.counts.tolist() == [passes + 1] * 8
    assert off(u) < 1e-14


def test_memory_is_that_of_a_few_blocks(da):
    rows, n, blocks = 4000, 16, 120

    def block(block_info=None) -> np.ndarray:
        i = block_info[None]["chunk-location"][0]
        return np.random.default_rng(i).standard_normal((rows, n))

    x = da.map_blocks(block, chunks=((rows,) * blocks, (n,)), dtype="f8", meta=np.empty((0, 0)))
    size = rows * n * 8
    polar_tall(x[:rows]).unitary.compute()  # imports
    tracemalloc.start()
    try:
        for method in ("gram", "qr"):
            result = polar_tall(x, method=method)
            largest = da.reduction(
                result.unitary,
                chunk=lambda u, axis, keepdims: np.abs(u).max(axis=axis, keepdims=keepdims),
                aggregate=lambda u, axis, keepdims: u.max(axis=axis, keepdims=keepdims),
                dtype="f8",
            ).compute()
            assert 0 < largest < 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * size  # the whole has 120 of them


def test_threads_give_the_same(da):
    a = factors(1000, 9, 1e10)[0]
    x = da.from_array(a, chunks=(90, 9))
    one = polar_tall(x)
    with importlib.import_module("dask").config.set(scheduler="threads"):
        other = polar_tall(x)
        u = other.unitary.compute()
    np.testing.assert_allclose(u, one.unitary.compute(), atol=1e-14)
    assert off(u) < 1e-14


def test_input_stays_as_it_is(da):
    a = factors(300, 6, 1e3)[0]
    kept = a.copy()
    a.setflags(write=False)
    x = da.from_array(np.asfortranarray(a)[::-1], chunks=(64, 6))
    u = polar_tall(x).unitary.compute()
    assert np.array_equal(a, kept)
    assert off(u) < 1e-14


def test_integers(da):
    a = np.random.default_rng(0).integers(-9, 9, (200, 5))
    u, h = polar_tall(da.from_array(a, chunks=(64, 5)))
    assert u.dtype == np.float64
    assert left(a, u.compute(), h) < 1e-14


# -- extremes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        ("float64", 1e300),
        ("float64", 1e-300),
        ("float32", 1e37),
        ("float32", 1e-37),
        ("complex128", 1e300),
        ("complex128", 1e-300),
    ],
)
@pytest.mark.parametrize("method", ["gram", "qr"])
def test_scale(da, dtype, scale, method):
    a = factors(300, 6, 10.0, dtype)[0] * np.asarray(scale, dtype)
    u, h = polar_tall(da.from_array(a, chunks=(64, 6)), method=method)
    eps = float(np.finfo(dtype).eps)
    assert off(u.compute()) < 30 * eps
    wide = a.astype(np.complex128) / scale
    assert left(wide, u.compute(), h.astype(np.complex128) / scale) < 30 * eps


@pytest.mark.parametrize("method", ["gram", "qr"])
def test_blocks_of_very_different_size(da, method):
    a = factors(300, 6, 10.0)[0]
    a[:100] *= 1e250
    a[100:200] *= 1e-250
    u, h = polar_tall(da.from_array(a, chunks=(100, 6)), method=method)
    want, _ = polar(a[:100] / 1e250)
    np.testing.assert_allclose(u.compute()[:100], want, atol=1e-13)
    assert off(u.compute()) < 1e-14
    assert np.isfinite(h).all()


@pytest.mark.parametrize("method", ["gram", "qr"])
def test_blocks_on_both_sides_of_scaling(da, method):
    a = factors(300, 6, 10.0)[0]
    x = np.concatenate([np.ldexp(a[:100], 304), np.ldexp(a[100:], 299)])
    a[:100] *= 32.0  # in units of 2**299
    u, h = polar_tall(da.from_array(x, chunks=(100, 6)), method=method)
    want_u, want_h = polar(a)
    np.testing.assert_allclose(u.compute(), want_u, atol=1e-13)
    np.testing.assert_allclose(np.ldexp(h, -299), want_h, atol=1e-12)


@pytest.mark.parametrize("method", ["auto", "qr"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rank_deficient_gives_the_partial_isometry(da, method, dtype):
    kind = "complex128" if dtype.startswith("complex") else "float64"
    # Small integers, so that the rank is exact in every dtype.
    p = np.rint(np.random.default_rng(0).standard_normal((200, 3)) * 8)
    a = (p @ np.rint(np.random.default_rng(1).standard_normal((3, 5)) * 8)).astype(dtype)
    if kind == "complex128":
        a = a * np.asarray(1j, dtype)
    result = polar_tall(da.from_array(a, chunks=(64, 5)), method=method)
    want = polar(a.astype(kind), completion=False)
    assert result.rank == want.rank == 3
    assert result.status is Status.CONVERGED
    assert result.condition_bounds[1] == np.inf
    assert result.condition_bounds[0] > 1e10
    eps = float(np.finfo(dtype).eps)
    u = result.unitary.compute()
    np.testing.assert_allclose(u, want.unitary, atol=30 * eps)
    np.testing.assert_allclose(result.hermitian, want.hermitian, atol=1e4 * eps)
    u = u.astype(np.complex128)
    assert np.linalg.norm(u @ (u.conj().T @ u) - u) <= (result.orthogonality * 1.5) * np.sqrt(5)


@pytest.mark.parametrize("method", ["auto", "gram", "qr"])
def test_zero(da, method):
    result = polar_tall(da.zeros((100, 4), chunks=(30, 4)), method=method)
    assert not result.unitary.compute().any()
    assert not result.hermitian.any()
    assert result.rank == 0
    assert result.status is Status.CONVERGED
    assert (result.orthogonality, result.backward_error) == (0.0, 0.0)
    assert result.condition_bounds == (1.0, np.inf)


@pytest.mark.parametrize("shape", [(0, 0), (5, 0)])
def test_empty(da, shape):
    result = polar_tall(da.zeros(shape, chunks=-1))
    assert result.unitary.compute().shape == shape
    assert result.hermitian.shape == (shape[1],) * 2
    assert result.iterations == 0
    assert result.converged


def test_one_column(da):
    a = np.random.default_rng(0).standard_normal((50, 1))
    u, h = polar_tall(da.from_array(a, chunks=(7, 1)))
    np.testing.assert_allclose(h, [[np.linalg.norm(a)]])
    np.testing.assert_allclose(u.compute(), a / np.linalg.norm(a))


@pytest.mark.parametrize("method", ["gram", "qr"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_not_finite(da, method, value, dtype):
    a = np.ones((100, 3), dtype)
    a[57, 2] = value
    x = da.from_array(a, chunks=(25, 3))
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 of 75 entries.*rows 50 to 74"):
        polar_tall(x, method=method)


def test_hermitian_factor_that_overflows(da):
    a = np.full((100, 2), 3e38, dtype=np.float32)
    a[::2, 1] *= -1
    with pytest.warns(ConvergenceWarning, match="scale the input down"):
        result = polar_tall(da.from_array(a, chunks=(30, 2)))
    assert result.status is Status.OVERFLOW
    assert off(result.unitary.compute()) < 1e-6


# -- evidence that finds something -----------------------------------------------------------


def spoiled(monkeypatch, factor: float | np.ndarray) -> None:
    right = tall._from_gram

    def wrong(x, dask):
        basis, lower, upper = right(x, dask)
        return basis._replace(values=basis.values * factor), lower, upper

    monkeypatch.setattr(tall, "_from_gram", wrong)


@pytest.mark.parametrize(
    ("factor", "name", "passes", "products"), [(3.0, "gram", 3, 5), (1e7, "gram, then qr", 4, 5)]
)
def test_a_gram_matrix_that_lost_too_much_is_found(da, monkeypatch, factor, name, passes, products):
    a = factors(200, 4, 10.0)[0]
    spoiled(monkeypatch, np.array([1.0, 1.0, 1.0, factor]))
    result = polar_tall(da.from_array(a, chunks=(50, 4)))
    assert (result.method, result.iterations, result.matmuls) == (name, passes, products)
    assert off(result.unitary.compute()) < 1e-14


def test_a_factor_that_is_not_orthonormal_is_told(da, monkeypatch):
    a = factors(200, 4, 10.0)[0]
    spoiled(monkeypatch, np.array([1.0, 1.0, 1.0, 1e6]))
    with pytest.warns(ConvergenceWarning, match=r"polar_tall.*method='qr'"):
        result = polar_tall(da.from_array(a, chunks=(50, 4)), method="gram")
    assert result.status is Status.NOT_CONVERGED
    assert not result.converged
    np.testing.assert_allclose(off(result.unitary.compute()), result.orthogonality, rtol=1e-6)


def test_a_direction_that_is_left_out_is_told(da, monkeypatch):
    a = factors(200, 4, 10.0)[0]
    right = tall._from_triangle

    def short(x, dask):
        basis = right(x, dask)
        return basis._replace(vectors=basis.vectors[:, :3], values=basis.values[:3])

    monkeypatch.setattr(tall, "_from_triangle", short)
    with pytest.warns(ConvergenceWarning):
        result = polar_tall(da.from_array(a, chunks=(50, 4)), method="qr")
    told = left(a, result.unitary.compute(), result.hermitian)
    assert told > 0.05
    np.testing.assert_allclose(result.backward_error, told, rtol=0.1)


def test_a_small_error_of_the_first_pass_is_corrected(da, monkeypatch):
    a, exact, _ = factors(200, 4, 10.0)
    spoiled(monkeypatch, 1.1)
    result = polar_tall(da.from_array(a, chunks=(50, 4)), method="gram")
    assert np.linalg.norm(result.unitary.compute() - exact) < 1e-13


# -- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            lambda da: da.ones((8, 4), chunks=(4, 2)),
            ValueError,
            r"one block of columns, got 2.*rechunk",
        ),
        (
            lambda da: da.ones((4, 8), chunks=(2, 8)),
            ValueError,
            r"rows as columns.*\(4, 8\).*conj\(\)\.T",
        ),
        (lambda da: da.ones(8, chunks=4), ValueError, r"matrix, got shape \(8,\)"),
        (lambda da: da.ones((2, 8, 4), chunks=4), ValueError, "matrix, got shape"),
        (lambda da: da.ones((8, 4), chunks=4, dtype="f2"), TypeError, "float32.*got float16"),
        (lambda da: da.from_array(np.full((4, 2), "a"), chunks=2), TypeError, "got str"),
        (
            lambda da: (y := da.ones((8, 2), chunks=(4, 2)))[y[:, 0] > 0],
            ValueError,
            "compute_chunk_sizes",
        ),
        (lambda da: np.ones((8, 4)), TypeError, r"dask array, got ndarray; use polar"),
        (lambda da: [[1.0]], TypeError, "dask array, got list"),
        (lambda da: da.ma.masked_array(da.ones((8, 2), chunks=4)), TypeError, "MaskedArray"),
    ],
)
def test_bad_arrays(da, make, error, match):
    with pytest.raises(error, match=match):
        polar_tall(make(da))


def test_bad_method(da):
    with pytest.raises(ValueError, match="method must be 'auto', 'gram' or 'qr', got 'grams'"):
        polar_tall(da.ones((4, 2)), method="grams")


def test_without_dask(monkeypatch):
    fake = type("Array", (), {"__module__": "dask.array.core"})()
    monkeypatch.setitem(sys.modules, "dask", None)
    with pytest.raises(ImportError, match=r"polarlib\[dask\]"):
        polar_tall(fake)


def test_example(da):
    """The example of the docstring, which doctest skips where there is no dask."""
    text = str(polar_tall.__doc__).replace("# doctest: +SKIP", "")
    example = doctest.DocTestParser().get_doctest(text, vars(tall).copy(), "polar_tall", None, 0)
    runner = doctest.DocTestRunner(verbose=False)
    assert runner.run(example).failed == 0
    assert runner.tries > 4
