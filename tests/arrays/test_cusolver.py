"""Cholesky factors through cuSOLVER's binding, against an emulation that works on raw addresses."""

import importlib
import sys
import warnings

import numpy as np
import pytest
from standin import cupy_standin, cusolver

import polarlib
from polarlib.arrays import cusolver as kernels
from polarlib.arrays.ops import ops_of
from polarlib.engine.evidence import is_definite

DTYPES = ["f4", "f8", "c8", "c16"]
BINDING = "cupy_backends.cuda.libs.cusolver"


@pytest.fixture
def cupy():
    with cupy_standin.installed() as module:
        yield module


@pytest.fixture(params=["binding", "residual"])
def either(request, cupy, monkeypatch):
    """CuPy with its private binding, and without."""
    if request.param == "residual":
        monkeypatch.setitem(sys.modules, BINDING, None)
    return cupy


def loaded():
    """CuPy's private binding."""
    return importlib.import_module("cupy_backends.cuda.libs").cusolver


def hermitian(values, dtype, seed=0):
    """Hermitian matrices of given eigenvalues, shape (..., n)."""
    values = np.asarray(values, float)
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((*values.shape, values.shape[-1]))
    if np.dtype(dtype).kind == "c":
        a = a + 1j * rng.standard_normal(a.shape)
    q = np.linalg.qr(a)[0]
    z = (q * values[..., None, :]) @ np.conj(np.swapaxes(q, -1, -2))
    return ((z + np.conj(np.swapaxes(z, -1, -2))) / 2).astype(dtype)


def factored(cupy, z):
    """The factor on the host, found without waiting for the device; operand unchanged."""
    x = cupy.asarray(z)
    with cupy_standin.no_sync():
        l = kernels.cholesky(x)
    np.testing.assert_array_equal(x.get(), z)
    assert (l.dtype, l.shape) == (z.dtype, z.shape)
    return l.get()


def right(l, z):
    wide = "c16" if z.dtype.kind == "c" else "f8"
    l, n = l.astype(wide), z.shape[-1]
    np.testing.assert_array_equal(l, np.tril(l))
    error = np.abs(l @ np.conj(np.swapaxes(l, -1, -2)) - z).max()
    return error <= 4 * n * np.finfo(z.dtype).eps * np.abs(z).max()


def calls():
    return [c.name for c in cupy_standin.calls() if c.name.startswith("cusolver")]


@pytest.mark.parametrize("n", [1, 2, 17])
@pytest.mark.parametrize("dtype", DTYPES)
def test_factors(either, dtype, n):
    for stack in ((), (3,), (2, 2)):
        z = hermitian(np.broadcast_to(np.linspace(1, 3, n), (*stack, n)), dtype)
        assert right(factored(either, z), z)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_call_for_a_stack(cupy, dtype):
    letter = {"f4": "s", "f8": "d", "c8": "c", "c16": "z"}[dtype]
    z = hermitian(np.ones((3, 4)), dtype)
    factored(cupy, z[0])
    factored(cupy, z)
    assert calls() == [f"cusolver.{letter}potrf", f"cusolver.{letter}potrfBatched"]


@pytest.mark.parametrize("view", ["transposed", "part"])
def test_views(either, view):
    z = hermitian(np.broadcast_to(np.linspace(1, 2, 5), (3, 5)), "c16")
    if view == "transposed":
        x = either.asarray(np.swapaxes(z, -1, -2).copy()).swapaxes(-1, -2)
    else:
        x = either.asarray(np.pad(z, [(0, 0), (1, 2), (3, 1)]))[:, 1:-2, 3:-1]
    assert right(kernels.cholesky(x).get(), z)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("worst", [-1.0, -1e-3, -np.inf, np.nan])
def test_failures_are_nan(either, dtype, worst):
    """Alone, and in a stack whose other factors are right."""
    values = np.ones((2, 9))
    values[1, 3] = -1e-3 if worst == -1e-3 else -1.0
    z = hermitian(values, dtype)
    if not np.isfinite(worst):
        z[1, 3, 3] = worst
    l = factored(either, z)
    assert right(l[0], z[0])
    assert np.isnan(l[1]).any()
    assert np.isnan(factored(either, z[1])).any()


def test_leftovers_are_finite_without_the_flag(cupy):
    """What this module is for."""
    z = cupy.asarray(hermitian([1.0, 1.0, -1.0], "f8"))
    assert np.isfinite(cupy.linalg.cholesky(z).get()).all()


@pytest.mark.parametrize("dtype", ["f4", "c16"])
def test_nearly_singular(either, dtype):
    """A tenth of what rounding makes: factor or NaN, and a factor is one."""
    n, eps = 40, float(np.finfo(dtype).eps)
    least = n * eps * np.array([100.0, 1.0, 0.01, -0.01, -1.0, -100.0])
    values = np.ones((len(least), n))
    values[:, 0] = least
    z = hermitian(values, dtype)
    l = factored(either, z)
    good = np.isfinite(l).all(axis=(-2, -1))
    assert good[0]
    assert not good[-1]
    assert right(l[good], z[good])


@pytest.mark.parametrize("shape", [(0, 0), (0, 3, 3), (2, 0, 0)])
def test_empty(either, shape):
    assert factored(either, np.zeros(shape, "f4")).shape == shape
    assert not calls()


@pytest.mark.parametrize("name", kernels.NEEDED)
def test_without_one_of_its_names(cupy, monkeypatch, name):
    monkeypatch.delattr(loaded(), name)
    z = hermitian([1.0, 2.0], "f4")
    assert right(factored(cupy, z), z)
    assert not calls()


def test_of_another_vendor(cupy, monkeypatch):
    monkeypatch.setattr(cupy.cuda.runtime, "is_hip", True)
    z = hermitian([1.0, 2.0], "f4")
    assert right(factored(cupy, z), z)
    assert not calls()


def test_who_relies_on_it(either):
    """The check of a result, and functions of positive definite matrices."""
    z = hermitian(np.r_[np.linspace(1, 2, 19), -1.0], "f8")
    x = either.asarray(z)
    assert not is_definite(x, 1, 1e-10, ops_of(x))
    for f in (lambda: polarlib.inverse_root(x, 2), lambda: polarlib.sqrtm_psd(x)):
        with pytest.raises(ValueError, match="not positive"):
            f()
    low = hermitian(np.r_[np.linspace(1, 2, 80), np.zeros(80)], "f8")
    for method in ("auto", "qdwh", "hybrid", "newton"):
        result = polarlib.polar(either.asarray(low), method=method)
        assert result.converged
        assert result.rank == 80


# With CuPy installed, and without a GPU


def test_the_real_binding_takes_our_arguments(monkeypatch):
    """Cython converts arguments before it looks for a driver, and there is none."""
    handed = []
    with cupy_standin.installed() as cupy:
        for dtype in DTYPES:
            z = cupy.asarray(hermitian(np.ones((2, 3)), dtype))
            with monkeypatch.context() as patch:
                for name in kernels.NEEDED:
                    whole = getattr(loaded(), name)

                    def note(*args, name=name, whole=whole):
                        handed.append((name, args))
                        return whole(*args)

                    patch.setattr(loaded(), name, note)
                kernels.cholesky(z)
                kernels.cholesky(z[0])
        upper = kernels._binding()[1]
    assert {name for name, _ in handed} == set(kernels.NEEDED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy looks for CUDA, and says that there is none
        cupy = pytest.importorskip("cupy")
        found = kernels._binding()
    if found is None:
        pytest.skip("cuSOLVER is not installed")
    binding, code = found
    assert binding is loaded()
    assert code == upper
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        pass
    else:
        pytest.skip("there is a GPU, and these addresses are not on it")
    for name, args in handed:
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
            getattr(binding, name)(*args)
        with pytest.raises(TypeError):
            getattr(binding, name)(*args[:-1])


# The emulation itself


def test_the_emulation_refuses_what_cusolver_cannot_see(cupy):
    low = loaded()
    x, work = cupy.asarray(np.eye(2, dtype="f4")), cupy.empty(64, dtype="f4")
    info = cupy.empty(1, dtype="i4")
    good = [cusolver.HANDLE, 1, 2, x.data.ptr, 2, work.data.ptr, 64, info.data.ptr]
    low.spotrf(*good)
    assert info.get() == 0
    host = np.ones(64, "f4").ctypes.data
    for place, value in ((0, 1), (1, 2), (3, host), (4, 1), (5, host), (6, 63), (7, host)):
        bad = list(good)
        bad[place] = value
        with pytest.raises(RuntimeError, match=r"CU(BLAS|SOLVER)_STATUS"):
            low.spotrf(*bad)
    at = cupy.asarray(np.array([x.data.ptr, host], np.uintp))
    flags = cupy.empty(2, dtype="i4")
    with pytest.raises(RuntimeError, match="illegal memory"):
        low.spotrfBatched(cusolver.HANDLE, 1, 2, at.data.ptr, 2, flags.data.ptr, 2)


def test_the_other_triangle_is_anything(cupy):
    low = loaded()
    x = cupy.asarray(np.array([[4.0, 2.0], [2.0, 5.0]]))
    at, info = cupy.asarray(np.array([x.data.ptr], np.uintp)), cupy.empty(1, dtype="i4")
    low.dpotrfBatched(cusolver.HANDLE, 1, 2, at.data.ptr, 2, info.data.ptr, 1)
    np.testing.assert_array_equal(x.get(), [[2.0, cusolver.SCRIBBLE], [1.0, 2.0]])
    assert info.get() == 0
