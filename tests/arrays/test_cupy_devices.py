"""CuPy arrays on another device than the current one, and streams that are captured."""

import ml_dtypes
import numpy as np
import pytest
from standin import cupy_standin

import polarlib
from polarlib import norms, updates
from polarlib.arrays import cublas, cusolver
from polarlib.arrays.ops import ops_of
from polarlib.arrays.settings import on_its_device


@pytest.fixture
def cupy():
    with cupy_standin.installed() as module:
        yield module


def sample(*shape, dtype="f4", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def arrays_of(value):
    """All arrays in a result."""
    if isinstance(value, tuple | list):
        return [x for item in value for x in arrays_of(item)]
    return [value] if hasattr(value, "device") else []


def positive(a):
    return a.mT @ a + np.eye(a.shape[-1], dtype=a.dtype)


CALLS = {
    "orthogonalize": (lambda x: polarlib.orthogonalize(x), sample(8, 5)),
    "orthogonalize, bfloat16": (
        lambda x: polarlib.orthogonalize(x),
        sample(5, 8, dtype=ml_dtypes.bfloat16),
    ),
    "orthogonalize, float64": (lambda x: polarlib.orthogonalize(x), sample(8, 5, dtype="f8")),
    "orthogonalize, integers": (lambda x: polarlib.orthogonalize(x), np.arange(12).reshape(4, 3)),
    "orthogonalize, Gram form": (lambda x: polarlib.orthogonalize(x, form="gram"), sample(20, 5)),
    "orthogonalize, rational": (
        lambda x: polarlib.orthogonalize(x, schedule="halley"),
        sample(8, 5),
    ),
    "orthogonalize_all": (lambda x: polarlib.orthogonalize_all([x, x[:4], x]), sample(8, 5)),
    "polar": (lambda x: tuple(polarlib.polar(x)), sample(3, 8, 5)),
    "polar, small": (lambda x: tuple(polarlib.polar(x)), sample(50, 3, 3)),
    "polar, QDWH": (lambda x: tuple(polarlib.polar(x, method="qdwh")), sample(8, 8)),
    "polar_vjp": (lambda x: polarlib.polar_vjp(x, x), sample(8, 5)),
    "orthogonalize_vjp": (lambda x: polarlib.orthogonalize_vjp(x, x), sample(8, 5)),
    "nearest_orthogonal": (lambda x: polarlib.nearest_orthogonal(x), sample(8, 5)),
    "nearest_rotation": (lambda x: polarlib.nearest_rotation(x), sample(4, 3, 3)),
    "sqrtm": (lambda x: polarlib.sqrtm(x), positive(sample(6, 6))),
    "signm": (lambda x: polarlib.signm(x), sample(6, 6)),
    "sqrtm_psd": (lambda x: polarlib.sqrtm_psd(x), positive(sample(6, 6))),
    "inverse_root": (lambda x: polarlib.inverse_root(x, 2), positive(sample(6, 6))),
    "procrustes": (lambda x: polarlib.procrustes(x, x)[0], sample(8, 5)),
    "top_singular": (lambda x: tuple(polarlib.top_singular(x, 2)), sample(30, 20)),
    "norm": (lambda x: norms.spectral()(x), sample(8, 5)),
    "lmo": (lambda x: norms.nuclear().lmo(x), sample(8, 5)),
    "project": (lambda x: norms.spectral().project(x), sample(8, 5)),
    "spectral_clip": (lambda x: norms.spectral_clip(x, 1.0), sample(8, 5)),
    "scg_step": (
        lambda x: updates.scg_step(x, x, norms.spectral(polar="jordan").lmo, step=0.5),
        sample(8, 5),
    ),
    "lion": (lambda x: updates.lion(x, x, 0.9, 0.5), sample(8, 5)),
}


@pytest.mark.parametrize("name", CALLS)
def test_results_are_on_the_device_of_the_input(cupy, name):
    call, a = CALLS[name]
    here = arrays_of(call(cupy.asarray(a)))
    with cupy.cuda.Device(1):
        x = cupy.asarray(a)
    there = arrays_of(call(x))
    assert cupy.cuda.get_device_id() == 0
    assert here
    for y, z in zip(here, there, strict=True):
        assert (y.device.id, z.device.id) == (0, 1)
        np.testing.assert_array_equal(y.get(), z.get())


def test_out(cupy):
    with cupy.cuda.Device(1):
        x, out = cupy.asarray(sample(8, 5)), cupy.empty((8, 5), "f4")
    assert polarlib.orthogonalize(x, out=out) is out
    np.testing.assert_array_equal(out.get(), polarlib.orthogonalize(x).get())


def test_figures_that_are_read_later(cupy):
    a = sample(40, 40, dtype="f8")
    with cupy.cuda.Device(1):
        x = cupy.asarray(a)
    names = ("orthogonality", "backward_error", "rank", "condition_bounds", "status")
    there, here = polarlib.polar(x), polarlib.polar(cupy.asarray(a))
    for name in names:
        assert getattr(there, name) == getattr(here, name)
    assert cupy.cuda.get_device_id() == 0


def test_lists_on_two_devices(cupy):
    a = sample(4, 6, 3)
    xs = []
    for i in range(4):
        with cupy.cuda.Device(i % 2):
            xs.append(cupy.asarray(a[i]))
    results = polarlib.orthogonalize_all(xs)
    assert [q.device.id for q in results] == [0, 1, 0, 1]
    with pytest.raises(ValueError, match=r"on one device, got .*0.* and .*1"):
        polarlib.procrustes(xs[0], xs[1])


def test_tf32_is_asked_of_the_device_of_the_array(cupy, monkeypatch):
    old = property(lambda self: "75" if self.id else "90")
    monkeypatch.setattr(cupy.cuda.Device, "compute_capability", old)
    with cupy.cuda.Device(1):
        x = cupy.asarray(sample(4, 4))
    assert "tf32" not in ops_of(x).native
    assert "tf32" in ops_of(cupy.asarray(sample(4, 4))).native


def test_the_device_comes_back_after_a_failure(cupy):
    with cupy.cuda.Device(1):
        x = cupy.asarray(sample(4, 4))

    @on_its_device
    def fail(*args, **kwargs):
        assert cupy.cuda.get_device_id() == 1
        raise ZeroDivisionError

    for args, kwargs in (((x,), {}), ((1, [2, (x,)]), {}), ((), {"x": x})):
        with pytest.raises(ZeroDivisionError):
            fail(*args, **kwargs)
        assert cupy.cuda.get_device_id() == 0


def test_a_captured_stream_is_refused_before_anything_is_launched(cupy):
    x = cupy.asarray(sample(6, 4))
    stream, other = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        cupy_standin.reset()
        for call in (polarlib.orthogonalize, polarlib.polar, polarlib.nearest_orthogonal):
            with pytest.raises(ValueError, match=r"^(a|g) must not .* captured .* after"):
                call(x)
        assert not cupy_standin.calls()
        with pytest.raises(NotImplementedError):  # what CuPy would say
            ops_of(x).gram(x)
    with stream:
        stream.end_capture()
        assert polarlib.orthogonalize(x).shape == (6, 4)
    with other:
        assert polarlib.orthogonalize(x).shape == (6, 4)


class DynamicLibNotFoundError(RuntimeError):
    """As cuda-pathfinder raises it."""


def missing(*args):
    raise DynamicLibNotFoundError("No such file: libnvrtc.so.13")


def missing_in_import(*args):
    raise ImportError("No such file: libcublas.so.13") from DynamicLibNotFoundError()


def test_a_missing_compiler_is_named(cupy):
    x = cupy.asarray(sample(6, 4))
    cupy.cuda.nvrtc = type("nvrtc", (), {"getVersion": missing})
    try:
        with pytest.raises(ImportError, match=r"does not find NVRTC, .* install polarlib\[cupy\]"):
            polarlib.orthogonalize(x)
    finally:
        del cupy.cuda.nvrtc
    polarlib.orthogonalize(x)


def test_a_missing_cublas_is_named(cupy, monkeypatch):
    x = cupy.asarray(sample(6, 4))
    with monkeypatch.context() as patch:
        patch.setattr(cublas, "_load", missing_in_import)
        with pytest.raises(ImportError, match="does not find cuBLAS"):
            polarlib.orthogonalize(x)
    polarlib.orthogonalize(x)
    monkeypatch.setattr(cusolver, "_load", missing_in_import)
    polarlib.orthogonalize(x)
    with pytest.raises(ImportError, match="does not find cuSOLVER"):
        ops_of(x).cholesky(x[:4])
