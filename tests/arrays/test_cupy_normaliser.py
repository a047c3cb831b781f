"""Normalisation of CuPy arrays: the kernels' source runs on the host, against NumPy in double."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from standin import cupy_standin, raw

from polarlib.arrays import cupy_normaliser

DTYPES = [ml_dtypes.bfloat16, "f2", "f4", "c8"]
# Of one part and of several; of entries that are read one by one, and 16 bytes at once.
SHAPES = [(5, 3), (1, 1), (128, 96), (3, 7, 9), (2, 2, 16, 8), (3, 70, 64)]
UNIT = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-23, "complex64": 2.0**-22}


@pytest.fixture(params=["compiled", "numpy"])
def cupy(request, monkeypatch):
    """The mock, with the kernels' source and with their interface in NumPy."""
    if request.param == "compiled" and not raw.COMPILER:
        pytest.skip("there is no g++ to compile the kernels for the host")
    if request.param == "numpy":
        monkeypatch.setattr(raw, "COMPILER", None)
    with cupy_standin.installed() as module:
        cupy_normaliser._kernels.cache_clear()
        yield module


def sample(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    return (a + 1j * rng.standard_normal(shape) if dtype == "c8" else a).astype(dtype)


def wide(a):
    return a.astype("c16" if a.dtype.kind == "c" else "f8")


def by_columns(a):
    return a.swapaxes(-1, -2).copy().swapaxes(-1, -2)


def shifted(a):
    """The same matrices at an address that is no multiple of 16."""
    return np.concatenate([a.ravel()[:1], a.ravel()])[1:].reshape(a.shape)


LAYOUTS = {"rows": np.copy, "columns": by_columns, "shifted": shifted}


def norms(a):
    return np.linalg.norm(wide(a), axis=(-2, -1), keepdims=True)


def assert_quotient(got, a, s):
    """Once rounded, after a division in single precision."""
    assert got.dtype == a.dtype
    unit, want = UNIT[a.dtype.name], wide(a) / s
    least = float(ml_dtypes.finfo(a.dtype).smallest_subnormal)
    slack = (unit + 2.0**-22) * np.abs(want) + least
    assert (np.abs(wide(got) - want) <= slack).all()


@pytest.mark.thinned(3)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_by_norm(cupy, dtype, shape, layout):
    a = LAYOUTS[layout](sample(shape, dtype))
    x = cupy_standin.to_device(a)
    kernels = cupy_normaliser.normaliser(x)
    before = a.copy()
    for factor, power in itertools.product((1.0, 0.37, 2e3), (False, True)):
        cupy_standin.reset()
        with cupy_standin.no_sync():
            y = kernels.by_norm(x, factor, power)
        assert [c.name for c in cupy_standin.calls() if c.name.startswith("polarlib")] == [
            "polarlib_norm_sums",
            "polarlib_norm_divide",
        ]
        s = factor * norms(a)
        if power:
            s = 2.0 ** np.floor(np.log2(s))
            want = (wide(a) / s).astype(dtype)
            np.testing.assert_array_equal(y.get(), want)
        assert_quotient(y.get(), a, s)
        assert y.flags.c_contiguous == x.flags.c_contiguous
        assert y.flags.f_contiguous == x.flags.f_contiguous
    np.testing.assert_array_equal(a, before)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=lambda d: np.dtype(d).name)
def test_extremes_stay_with_their_matrix(cupy, dtype):
    largest, least = ml_dtypes.finfo(dtype).max, ml_dtypes.finfo(dtype).smallest_subnormal
    a = sample((7, 4, 2), dtype)
    a[1], a[2] = 0, largest
    a[3], a[4, 1, 1], a[5, 0, 0] = least, np.nan, np.inf
    for power in (False, True):
        y = cupy_normaliser.normaliser(cupy.asarray(a)).by_norm(cupy.asarray(a), 1.0, power)
        y = y.get().astype("f8")
        assert (y[1] == 0).all()
        assert np.isnan(y[4:6]).all()
        wanted = 8**-0.5 * np.array([1, 2]) if power else np.array([8**-0.5] * 2)
        for k in (2, 3):
            assert (y[k] >= wanted[0] * 0.99).all()
            assert (y[k] <= wanted[1] * 1.01).all()
        assert 1 / 1.01 <= np.linalg.norm(y[0]) < (2 if power else 1.01)


def test_powers_of_two_change_nothing(cupy):
    a = sample((128, 96), "f4")
    found = [
        cupy_normaliser.normaliser(x).by_norm(x, 0.7, False).get()
        for x in (cupy.asarray(a * np.float32(2.0) ** k) for k in (-90, 0, 41, 100))
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def bounds(g, bound, slack, sums, safety):
    """Divisors as the interface states them, in double."""
    g, n = wide(g), g.shape[-1]
    t, f = np.trace(g, axis1=-2, axis2=-1).real[..., None, None], norms(g)
    variance = np.maximum(f * f * (1 + sums) / n - (t / n) ** 2, 0)
    moments = np.sqrt(t / n + np.sqrt(variance * (n - 1)) + f * slack)
    s = moments if bound == "moments" else np.sqrt(f * (1 + slack))
    return safety * np.where(s == 0, 1.0, s)


@pytest.mark.thinned(5)
@pytest.mark.parametrize("bound", ["moments", "schatten4"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("first", "second"),
    [(d, d) for d in DTYPES] + [("f4", "f2"), ("f4", ml_dtypes.bfloat16)],
    ids=lambda d: np.dtype(d).name,
)
def test_by_gram(cupy, first, second, shape, layout, bound):
    y = LAYOUTS[layout](sample(shape, first))
    g = (np.conj(wide(y).mT) @ wide(y)).astype(second)
    numbers = (bound, 2.0**-8, 2.0**-18, 1.01)
    s = bounds(g, *numbers)
    one, two = map(cupy_standin.to_device, (y.copy(order="K"), g.copy()))
    if layout == "shifted":
        one = cupy_standin.to_device(shifted(y))
    cupy_standin.reset()
    with cupy_standin.no_sync():
        z, h = cupy_normaliser.normaliser(one).by_gram(one, two, *numbers)
    assert [c.name for c in cupy_standin.calls() if c.name.startswith("polarlib")] == [
        "polarlib_gram_sums",
        "polarlib_gram_divide",
    ]
    assert z is one
    assert h is two
    assert_quotient(z.get(), y, s)
    assert_quotient(h.get(), g, s * s)


@pytest.mark.parametrize("bound", ["moments", "schatten4"])
@pytest.mark.parametrize("slack", [0.0, 0.01])
def test_gram_matrices_that_have_no_bound(cupy, bound, slack):
    y = np.ones((5, 3, 2), "f4")
    g = (y.mT @ y).copy()
    y[1], g[1] = 0, 0
    g[2, 0, 1], g[3, 1, 0], g[4, 0, 0] = np.nan, np.inf, np.inf
    arrays = map(cupy.asarray, (y, g))
    z, h = cupy_normaliser.by_gram(*arrays, bound, slack, 0.0, 0.5)
    for got, given, power in ((z, y, 1), (h, g, 2)):
        s = bounds(g[:2], bound, slack, 0.0, 0.5) ** power
        np.testing.assert_allclose(got.get()[:2], given[:2] / s, rtol=1e-6)
        assert np.isnan(got.get()[2:]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_nothing_around_is_written(cupy, dtype):
    y, g = sample((4, 24, 8), dtype), np.abs(sample((4, 8, 8), dtype))
    one, two = map(cupy.asarray, (y, g))
    kernels = cupy_normaliser.normaliser(one[1:3])
    kernels.by_gram(one[1:3], two[1:3], "moments", 0.0, 0.0, 1.0)
    for got, before in ((one, y), (two, g)):
        np.testing.assert_array_equal(got.get()[[0, 3]], before[[0, 3]])
        assert (got.get()[1:3] != before[1:3]).any(axis=(1, 2)).all()


def test_matrices_that_are_not_dense_are_copied_by_gram(cupy):
    y, g = sample((12, 8), "f4"), np.eye(4, dtype="f4")
    one, two = cupy.asarray(y)[:, ::2], cupy.asarray(np.kron(g, np.eye(2, dtype="f4")))[::2, ::2]
    z, h = cupy_normaliser.by_gram(one, two, "schatten4", 0.0, 0.0, 1.0)
    np.testing.assert_allclose(z.get(), y[:, ::2] / 2**0.5, rtol=1e-6)
    np.testing.assert_allclose(h.get(), g / 2, rtol=1e-6)
    np.testing.assert_array_equal(one.get(), y[:, ::2])


def test_what_is_left_to_operators(cupy, monkeypatch):
    x = cupy.asarray(sample((4, 6, 8), "f4"))
    assert cupy_normaliser.normaliser(x) is not None
    assert cupy_normaliser.normaliser(x.swapaxes(-1, -2)) is not None
    for other in (
        *(x.astype(d) for d in ("f8", "c16", "i4")),
        *(x[:, :, ::2], x[:, :5, :7], x[..., ::-1], x[:0], x.transpose(2, 1, 0)),
        cupy.broadcast_to(x[0], (3, 6, 8)),
    ):
        assert cupy_normaliser.normaliser(other) is None
    monkeypatch.setattr(cupy.cuda.runtime, "is_hip", True)
    assert cupy_normaliser.normaliser(x) is None


def test_kernels_are_made_once(cupy):
    made = []
    whole = cupy.RawKernel
    cupy.RawKernel = lambda *args: made.append(args) or whole(*args)
    try:
        for dtype in (*DTYPES, *DTYPES):
            x = cupy.asarray(sample((4, 3), dtype))
            cupy_normaliser.normaliser(x).by_norm(x, 1.0, True)
            cupy_normaliser.normaliser(x).by_norm(x, 1.0, False)
    finally:
        cupy.RawKernel = whole
    assert len(made) == 4 * len(DTYPES)
    assert len({code for code, _ in made}) == 3  # modules: complex numbers are two real ones
