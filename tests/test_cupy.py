"""The CuPy branch, against a stand-in with CuPy's names, signatures, dtype and host/device rules.

What a GPU alone can show (rounding on the device, speed) is not shown here.
"""

import ml_dtypes
import numpy as np
import pytest
from standin import cupy_standin

import polarlib
from polarlib._methods import METHODS

SHAPES = [(8, 8), (12, 5), (5, 12), (3, 9, 4), (2, 2, 4, 9)]


@pytest.fixture
def cupy():
    with cupy_standin.installed() as module:
        yield module


def sample(shape, dtype):
    rng = np.random.default_rng(3)
    a = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        a = a + 1j * rng.standard_normal(shape)
    return a.astype(dtype)


def dtypes(calls):
    return {np.dtype(name).name for call in calls for name, _ in (*call.inputs, *call.outputs)}


def tolerance(dtype):
    eps = {2: 2.0**-8, 4: 2.0**-23}.get(np.dtype(dtype).itemsize, 2.0**-52)
    if np.dtype(dtype) == np.complex64:
        eps = 2.0**-23
    return 100 * eps if eps < 1e-3 else 0.1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16", "f2", ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["plain", "gram"])
def test_orthogonalize_never_leaves_the_device(cupy, shape, dtype, form):
    a = sample(shape, dtype)
    x = cupy.asarray(a)
    before = a.copy()
    with cupy_standin.no_sync():
        q = polarlib.orthogonalize(x, form=form)
    assert isinstance(q, cupy.ndarray)
    assert q.dtype == a.dtype
    assert q.shape == a.shape
    np.testing.assert_array_equal(x.get(), before)
    expected = polarlib.orthogonalize(a, form=form)
    error = np.abs(q.get().astype("c16") - expected.astype("c16")).max()
    assert error < tolerance(dtype)


@pytest.mark.parametrize("dtype", ["f2", ml_dtypes.bfloat16], ids=str)
def test_16_bit_iterates_stay_16_bit(cupy, dtype):
    """CuPy turns bf16 * 1.5 into float32 and its bf16 norms into float64, without a word."""
    x = cupy.asarray(sample((16, 8), dtype))
    cupy_standin.reset()
    polarlib.orthogonalize(x, form="plain")
    products = cupy_standin.calls("matmul")
    assert len(products) == 15
    assert dtypes(products) == {np.dtype(dtype).name}
    assert "float64" not in dtypes(cupy_standin.calls())


@pytest.mark.parametrize("normalisation", ["frobenius", "spectral", "schatten4"])
@pytest.mark.parametrize("precision", [None, "tf32", "bfloat16", "float8_e5m2"])
def test_normalisations_and_formats(cupy, normalisation, precision):
    a = sample((12, 6), "f4")
    schedule = "newton_schulz_3" if precision == "float8_e5m2" else "polar_express"
    kwargs = {"normalisation": normalisation, "precision": precision, "schedule": schedule}
    with cupy_standin.no_sync():
        q = polarlib.orthogonalize(cupy.asarray(a), **kwargs)
    assert q.dtype == np.float32
    error = np.abs(q.get() - polarlib.orthogonalize(a, **kwargs)).max()
    assert error < {None: 1e-5, "tf32": 5e-3, "bfloat16": 0.1, "float8_e5m2": 0.1}[precision]


def test_nan_gives_nan_where_looking_would_stall_the_device(cupy):
    a = sample((2, 4, 3), "f4")
    a[1, 0, 0] = np.nan
    with cupy_standin.no_sync():
        q = polarlib.orthogonalize(cupy.asarray(a))
    assert np.isfinite(q.get()[0]).all()
    assert np.isnan(q.get()[1]).all()


def test_out(cupy):
    x = cupy.asarray(sample((6, 3), "f4"))
    out = cupy.empty((6, 3), dtype="f4")
    assert polarlib.orthogonalize(x, out=out) is out
    np.testing.assert_array_equal(out.get(), polarlib.orthogonalize(x).get())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["f4", "f8", "c16", "f2", ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("method", [*METHODS, "polar_express"])
def test_polar(cupy, method, shape, dtype):
    if method == "small":
        shape = (4, 4)
    a = sample(shape, dtype)
    result = polarlib.polar(cupy.asarray(a), method=method, side="left")
    expected = polarlib.polar(a, method=method, side="left")
    for got, want in zip(result, expected, strict=True):
        assert isinstance(got, cupy.ndarray)
        assert got.dtype == a.dtype
        scale = np.abs(want.astype("c16")).max()
        assert np.abs(got.get().astype("c16") - want.astype("c16")).max() < tolerance(dtype) * scale
    assert result.status is expected.status


def test_polar_of_a_singular_matrix(cupy):
    """CuPy's factorisations do not raise when they fail; the evidence must find it."""
    a = np.zeros((4, 4))
    a[0, 0] = 1.0
    for method in ("newton", "qdwh"):
        result = polarlib.polar(cupy.asarray(a), method=method)
        assert result.method == f"{method}, then svd"
        u = result.unitary.get()
        np.testing.assert_allclose(u.T @ u, np.eye(4), atol=1e-14)


def test_measure_reads_every_iterate(cupy):
    t = polarlib.measure(cupy.asarray(sample((9, 5), "f4")), "jordan", precision="bfloat16")
    assert t.singular_values.shape == (6, 5)
    assert not t.simulated
