"""The mock for CuPy keeps CuPy's rules, and leaves nothing behind."""

import contextlib
import importlib
import importlib.util
import math
import sys
import types

import array_api_compat
import ml_dtypes
import numpy as np
import pytest
from standin import cupy_standin, memory, raw
from standin.cupy_standin import HostSynchronization, no_sync, syncs
from standin.dtypes import half_types_promote


def has_real_device():
    if importlib.util.find_spec("cupy") is None:
        return False
    return importlib.import_module("cupy").cuda.is_available()


pytestmark = pytest.mark.skipif(has_real_device(), reason="a real CuPy with a device is here")

# One letter an array, by the codes of the types; B is bfloat16.
TYPES = {"f": "f", "d": "d", "e": "e", "B": ml_dtypes.bfloat16, "F": "F", "i": "i", "m": "?"}


@pytest.fixture
def cupy():
    with cupy_standin.installed() as module:
        yield module


@pytest.fixture
def names(cupy):
    """Arrays on the device by the letter of their type, and what expressions need."""
    import cupyx.scipy.linalg

    host = np.array([[2.0, 1.0], [1.0, 3.0]])
    arrays = {letter: cupy.asarray(host.astype(dtype)) for letter, dtype in TYPES.items()}
    batches = {f"{letter}3": cupy.stack([array] * 3) for letter, array in arrays.items()}
    scalars = {"f0": cupy.asarray(np.float32(4)), "i0": cupy.asarray(1)}
    modules = {
        "cupy": cupy,
        "math": math,
        "np": np,
        "solve_triangular": cupyx.scipy.linalg.solve_triangular,
    }
    on_host = {"n": host.astype("f"), "n0": np.array(2.0)}
    cupy_standin.reset()
    return arrays | batches | scalars | modules | on_host


# Names and arguments


@pytest.mark.parametrize(
    "text",
    [
        "cupy.nonexistent",
        "cupy.vecdot",
        "cupy.bfloat16",
        "cupy.linalg.svdvals",
        "cupy.linalg.vector_norm",
        "f.to_device",
        "f.__array_namespace__",
        "f.__index__",
    ],
)
def test_names_that_cupy_lacks(text, names):
    with pytest.raises(AttributeError):
        eval(text, names)


@pytest.mark.parametrize(
    "text",
    [
        "cupy.linalg.cholesky(f, upper=True)",
        "cupy.linalg.svd(f, hermitian=True)",
        "cupy.sum(f, where=m)",
        "cupy.max(f, initial=0)",
        "cupy.asarray(f, device=None)",
        "cupy.add(f, f, where=m)",
        "cupy.matmul(f, f, f)",
        "f.astype('d', casting='safe')",
        "f.item(0)",
        "cupy.eye(i0)",
        "f.reshape(i0, -1)",
        "range(i0)",
        "round(f0)",
        "hash(f)",
        "hash(f.device)",
    ],
)
def test_arguments_that_cupy_refuses(text, names):
    with pytest.raises(TypeError):
        eval(text, names)


def test_record_describes_the_array(cupy):
    recorded = cupy_standin.RECORD["cupy.ndarray"]
    own = {name for name in vars(cupy.ndarray) if not name.startswith("_")}
    special = {name for name in vars(cupy.ndarray) if name.startswith("__")}
    assert own <= set(recorded)
    of_python = {"__weakref__", "__static_attributes__", "__firstlineno__"}  # two from 3.13 on
    assert special <= set(recorded) | set(dir(object)) | of_python


# Host and device


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("np.asarray(f)", TypeError),
        ("np.array(f0)", TypeError),
        ("f + n", TypeError),
        ("n + f", TypeError),
        ("f * n0", TypeError),
        ("n0 * f", TypeError),
        ("f @ n", TypeError),
        ("n @ f", TypeError),
        ("np.add(f, n)", TypeError),
        ("cupy.maximum(f, n0)", TypeError),
        ("cupy.where(m, f, n)", TypeError),
        ("cupy.stack([f, n])", TypeError),
        ("cupy.asarray([f0, 1.0])", TypeError),
        ("cupy.matmul(f, f, out=n)", TypeError),
        ("cupy.linalg.svd(n)", np.linalg.LinAlgError),
        ("solve_triangular(f, n)", np.linalg.LinAlgError),
        ("f.__setitem__(..., n)", ValueError),
    ],
)
def test_no_implicit_transfer(text, error, names):
    with pytest.raises(error):
        eval(text, names)


SYNCHRONIZING = [
    "float(f0)",
    "int(f0)",
    "bool(f0)",
    "complex(f0)",
    "math.sqrt(f0)",
    "max(f0, f0)",
    "f0.item()",
    "f.get()",
    "f.tolist()",
    "cupy.asnumpy(f)",
    "repr(f)",
    "f'{f0:.3f}'",
    "f[m]",
    "f[f > 0]",
    "f.__setitem__(m, 0.0)",
    "f[:i0]",
    "f.fill(f0)",
    "cupy.arange(i0)",
    "cupy.nonzero(f)",
    "cupy.nanmax(f)",
    "cupy.linalg.cond(f)",
    "f.device.synchronize()",
    "cupy.cuda.get_current_stream().synchronize()",
]


@pytest.mark.parametrize("text", SYNCHRONIZING)
def test_synchronizations_are_counted(text, names):
    eval(text, names)
    assert syncs() >= 1


@pytest.mark.parametrize("text", SYNCHRONIZING)
def test_synchronizations_raise_inside_no_sync(text, names):
    with pytest.raises(HostSynchronization), no_sync():
        eval(text, names)


@pytest.mark.parametrize(
    "text",
    [
        "2 * f + f / 3.0",
        "f @ f.mT",
        "cupy.sqrt(cupy.sum(f * f))",
        "cupy.linalg.norm(f)",
        "cupy.linalg.svd(f)",
        "cupy.linalg.solve(f3, f3)",
        "cupy.where(f0 > 1, f, -f)",
        "cupy.asarray(n)",
        "cupy.all(cupy.isfinite(f))",
        "cupy.allclose(f, f)",
        "f[0, 1]",
        "f[cupy.asarray(np.array([1, 0]))]",
        "f.copy(), f.astype('d'), f.device, f.shape, list(f)",
    ],
)
def test_no_synchronization_without_need(text, names):
    with no_sync():
        eval(text, names)
    assert syncs() == 0


# Types, as CuPy 14.2 gives them


# What bfloat16 becomes beside a Python float.
BESIDE_A_FLOAT = "bfloat16" if half_types_promote() else "float32"


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("B * 1.5", BESIDE_A_FLOAT),
        ("B * 2", "bfloat16"),
        ("B + B", "bfloat16"),
        ("B / 2", "bfloat16"),
        ("B + e", "float32"),
        ("B * 1j", "complex64"),
        ("B ** 2", "bfloat16"),
        ("B ** 2.0", "float64"),
        ("B * i", "float64"),
        ("e * 1.5", "float16"),
        ("e * i", "float64"),
        ("f * 1.5", "float32"),
        ("f * np.float64(1.5)", "float64"),
        ("i * 1.5", "float64"),
        ("m * 2", "int64"),
        ("abs(F)", "float32"),
        ("cupy.maximum(B, 0.0)", BESIDE_A_FLOAT),
        ("cupy.where(m, B, B)", "float32"),
        ("cupy.where(m, e, 0.0)", "float16"),
        ("cupy.clip(B, 0, 1)", "float32"),
        ("cupy.tril(B)", "float32"),
        ("cupy.sum(B)", "bfloat16"),
        ("cupy.sum(B, dtype=np.float32)", "float32"),
        ("cupy.var(B)", "float64"),
        ("B @ B", "bfloat16"),
        ("B @ f", "float32"),
        ("B3 @ f3", "float32"),
        ("e3 @ e3", "float16"),
        ("cupy.linalg.norm(B)", "float64"),
        ("cupy.linalg.norm(e)", "float16"),
        ("cupy.linalg.svd(B)[1]", "float64"),
        ("cupy.linalg.svd(F)[1]", "float32"),
        ("cupy.linalg.cholesky(B)", "float64"),
        ("cupy.linalg.solve(f, d)", "float64"),
        ("solve_triangular(f, d)", "float32"),
        ("solve_triangular(e, e)", "float32"),
    ],
)
def test_result_types(text, dtype, names):
    assert eval(text, names).dtype.name == dtype


@pytest.mark.parametrize(
    "text",
    [
        "B3 @ B3",
        "B3 @ B",
        "cupy.einsum('ij,jk->ik', B, B)",
        "cupy.linalg.svd(e)",
        "cupy.linalg.qr(e)",
        "cupy.linalg.cholesky(e)",
        "cupy.linalg.inv(e)",
        "cupy.linalg.solve(e, e)",
        "solve_triangular(B, B)",
        "f.__iadd__(F)",
        "i.__itruediv__(2)",
        "m - m",
    ],
)
def test_types_that_cupy_refuses(text, names):
    with pytest.raises(TypeError):
        eval(text, names)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_accumulates_in_float32(dtype, cupy):
    x = cupy.ones((1, 1000), dtype=dtype)
    exact = np.asarray(1000, dtype=dtype)
    assert (x @ x.mT).get() == exact
    assert cupy.sum(x).get() == exact


# Linear algebra


@pytest.mark.parametrize("letter", ["f", "d", "F"])
def test_factorizations(letter, names):
    cupy, a, solve_triangular = names["cupy"], names[letter], names["solve_triangular"]
    u, s, vh = cupy.linalg.svd(a)
    q, r = cupy.linalg.qr(a)
    w, v = cupy.linalg.eigh(a)
    factor = cupy.linalg.cholesky(a)
    for product in (
        (u * s) @ vh,
        q @ r,
        (v * w) @ v.conj().mT,
        factor @ factor.conj().mT,
        cupy.linalg.inv(cupy.linalg.inv(a)),
        cupy.linalg.solve(a, a @ a),
        solve_triangular(factor, factor @ a, lower=True),
        solve_triangular(factor, factor.mT @ a, lower=True, trans=1),
    ):
        assert product.dtype == a.dtype
        np.testing.assert_allclose(product.get(), a.get(), rtol=1e-5)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("routine", ["cholesky", "svd", "eigh", "inv"])
def test_a_failure_leaves_finite_numbers(cupy, routine, stacked):
    """CuPy drops the flags of cuSOLVER: what is in the arrays is returned, and need not be NaN."""
    bad = {
        "cholesky": np.diag([1.0, -1.0]),
        "inv": np.diag([1.0, 0.0]),
    }.get(routine, np.diag([1.0, np.nan]))
    if routine == "inv" and not stacked:
        pytest.skip("one matrix is solved for, and zero divided by")
    x = cupy.asarray(np.stack([np.eye(2), bad]) if stacked else bad)
    results = getattr(cupy.linalg, routine)(x)
    for result in results if isinstance(results, tuple) else (results,):
        assert np.isfinite(result.get()).all()


@pytest.mark.parametrize("routine", ["svd", "qr", "eigh", "cholesky", "inv"])
@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_factorizations_never_raise(routine, value, cupy):
    getattr(cupy.linalg, routine)(cupy.full((3, 3), value, dtype="f"))
    cupy.linalg.solve(cupy.full((3, 3), value), cupy.ones(3))


def test_failures_raise_if_so_configured(cupy):
    import cupyx

    with cupyx.errstate(linalg="raise"), pytest.raises(np.linalg.LinAlgError):
        cupy.linalg.cholesky(-cupy.eye(2))
    assert syncs() == 1
    cupy.linalg.cholesky(-cupy.eye(2))


def test_solve_does_not_broadcast(names):
    with pytest.raises(ValueError, match="must have"):
        eval("cupy.linalg.solve(f3, f)", names)
    assert eval("cupy.linalg.solve(f3, f3)", names).shape == (3, 2, 2)


# Memory


@pytest.mark.parametrize(
    "text", ["x[..., ::2]", "x[0]", "x[0, 0]", "x.reshape(-1)", "x.mT", "x.T", "cupy.diagonal(x)"]
)
def test_views_share_memory(text, cupy):
    x = cupy.zeros((4, 4), dtype="f")
    view = eval(text, {"cupy": cupy, "x": x})
    view[...] = 1
    assert int(cupy.sum(x)) == view.size


def test_in_place_operators_keep_array_and_type(cupy):
    x = same = cupy.ones((2, 2), dtype=ml_dtypes.bfloat16)
    x += 1
    x *= 1.5
    x -= cupy.ones((2, 2), dtype="f")
    assert x is same
    assert x.dtype.name == "bfloat16"
    assert (x.get() == 2).all()


def test_matmul_into_out(names):
    cupy, f = names["cupy"], names["f"]
    expected = f.get() @ f.get()
    out = cupy.empty((2, 2), dtype="f")
    assert cupy.matmul(f, f, out=out) is out
    np.testing.assert_array_equal(out.get(), expected)
    cupy.matmul(f, f, out=f)
    np.testing.assert_array_equal(f.get(), expected)
    with pytest.raises(ValueError, match="invalid size"):
        cupy.matmul(f, f, out=cupy.empty((2, 3), dtype="f"))


def test_view_as_another_type(cupy):
    x = cupy.ones(2, dtype=ml_dtypes.bfloat16)
    x.view(cupy.uint16)[...] = 0x4000
    assert (x.get() == 2).all()


def test_empty_is_not_zero_by_chance(cupy):
    x = cupy.ones((2, 2))
    for empty in (cupy.empty((2, 2)), cupy.empty_like(x), cupy.ndarray((2, 2))):
        assert np.isnan(empty.get()).all()


def test_memory_in_use_is_counted(cupy):
    usage = memory.usage
    usage.reset()
    before = usage.used
    x = cupy.ones((10, 10), dtype="f4")
    view = x[2:]
    assert (usage.used - before, usage.allocations) == (400, 1)
    y = x * 2
    del x
    assert usage.used - before == 800
    del view
    assert (usage.used - before, usage.peak - before) == (400, 800)
    y += 1
    assert usage.used - before == 400


def test_memory_hooks(cupy):
    class Hook(cupy.cuda.MemoryHook):
        sizes = ()

        def malloc_postprocess(self, **kwargs):
            self.sizes += (kwargs["mem_size"],)

        def free_postprocess(self, **kwargs):
            self.sizes += (-kwargs["mem_size"],)

    with Hook() as hook:
        x = cupy.ones(3)
        del x
    cupy.ones(3)
    assert hook.sizes == (24, -24)


# Kernels


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("y = a * x + b * z", [3.5, 6.125, 13.0]),
        ("T t = x - z; y = t > 0 ? t * a : -t", [1.0, 4.5, 0.0]),
        ("y = max(x, z) / (T)2 - min(x, z)", [0.0, 0.5, -2.0]),
        ("y = isnan(x) || x < z ? 1.0f : 0.f; y += sqrt(abs(z))", [1 + 2**0.5, 0.5**0.5, 2.0]),
    ],
)
def test_elementwise_kernel(operation, expected, cupy):
    kernel = cupy.ElementwiseKernel("T x, T z, float32 a, float32 b", "T y", operation, "combine")
    x, z = cupy.asarray([1.0, 2.0, 4.0], dtype="f"), cupy.asarray([2.0, 0.5, 4.0], dtype="f")
    y = kernel(x, z, 3.0, 0.25)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y.get(), expected, rtol=1e-6)
    assert kernel(x, z, 3.0, 0.25, x) is x
    np.testing.assert_array_equal(x.get(), y.get())
    assert len(cupy_standin.calls("combine")) == 2
    types = ("float32",) * 5
    assert cupy_standin.kernels() == [
        ("T x, T z, float32 a, float32 b", "T y", operation, "combine", types)
    ]


def test_elementwise_kernel_checks_types(names):
    kernel = names["cupy"].ElementwiseKernel("T x, T z", "T y", "y = x + z")
    assert kernel(names["B"], 1.5).dtype.name == "bfloat16"
    for arguments in ((names["f"], names["d"]), (names["f"], names["n"]), (names["f"],)):
        with pytest.raises(TypeError):
            kernel(*arguments)


def test_kernels_that_cannot_be_evaluated(names):
    kernel = names["cupy"].ElementwiseKernel("T x", "T y", "if (x > 0) y = x")
    with pytest.raises(NotImplementedError):
        kernel(names["f"])
    with pytest.raises(ValueError, match="no kernel f"):
        names["cupy"].RawKernel("", "f")


RAW = r"""
typedef float T;
extern "C" __global__ void reverse(const T* x, double* y, long long n, double shift) {
    __shared__ T kept[64];
    if (threadIdx.x < n) kept[threadIdx.x] = x[blockIdx.x * n + threadIdx.x];
    __syncthreads();
    if (threadIdx.x < n) y[blockIdx.x * n + threadIdx.x] = kept[n - 1 - threadIdx.x] + shift;
}
extern "C" __global__ void apart(T* x) {
    if (threadIdx.x % 2) __syncthreads();
    x[0] = gridDim.x + blockDim.x;
}
"""


@pytest.mark.skipif(not raw.COMPILER, reason="there is no g++ to compile kernels for the host")
def test_raw_kernels(cupy):
    kernel = cupy.RawKernel(RAW, "reverse")
    x, y = cupy.asarray(np.arange(12, dtype="f").reshape(3, 4)), cupy.empty((3, 4))
    for _ in range(2):
        kernel((3,), (64,), (x, y, 4, 0.5))
        np.testing.assert_array_equal(y.get(), x.get()[:, ::-1] + 0.5)
    assert cupy_standin.raw_kernels() == [(RAW, "reverse")]
    assert len(cupy_standin.calls("reverse")) == 2
    for wrong in (
        *((x, x, 4, 0.5), (y, y, 4, 0.5), (x.get(), y, 4, 0.5), (x, y, 4.0, 0.5)),
        *((x, y, 4, 1), (x, y, 4), (x, y, np.int64(4), 0.5)),
    ):
        with pytest.raises(TypeError):
            kernel((3,), (64,), wrong)
    with pytest.raises(ValueError, match="blocks"):
        kernel((0,), (64,), (x, y, 4, 0.5))
    with pytest.raises(RuntimeError, match="barrier"):
        cupy.RawKernel(RAW, "apart")((1,), (4,), (x,))
    kernel((3,), (64,), (x, y, 4, 0.0))  # nothing is left of the failure
    np.testing.assert_array_equal(y.get(), x.get()[:, ::-1])


@pytest.mark.parametrize("text", ["ones(2)", "asarray(np.ones(2, 'f')).astype('d')", "eye(2)"])
def test_calls_take_arrays_of_the_current_device(cupy, text):
    with cupy.cuda.Device(1):
        x = eval(f"cupy.{text}", {"cupy": cupy, "np": np})
    view = x[..., :1]
    assert x.device.id == view.device.id == view.data.device_id == 1
    for call in (lambda: x + 1, lambda: cupy.max(view), x.astype, lambda: x.__setitem__(0, 1.0)):
        with pytest.raises(ValueError, match="array device = 1 while current = 0"):
            call(*("f",) * (call == x.astype))
    with cupy.cuda.Device(1):
        assert (x + 1).device.id == 1
        with cupy.cuda.Device(0):
            assert cupy.cuda.get_device_id() == 0
        assert cupy.cuda.Device().id == 1
    assert x.get().shape == x.shape


# Other libraries


@pytest.mark.parametrize(
    "text",
    [
        "xp.astype(f, xp.float64)",
        "xp.matrix_transpose(f3)",
        "xp.asarray(n)",
        "xp.eye(3, dtype=xp.float32, device=f.device)",
        "xp.linalg.svd(f, full_matrices=False).S",
        "xp.linalg.svdvals(f)",
        "xp.linalg.qr(f).Q",
        "xp.linalg.cholesky(f, upper=True)",
        "xp.linalg.matrix_norm(f3, ord=2)",
        "xp.linalg.vector_norm(f)",
        "xp.linalg.trace(f3)",
        "xp.vecdot(f, f)",
        "xp.concat([f, f])",
        "xp.max(xp.abs(f), axis=-1, keepdims=True)",
        "np.sum(f, axis=0)",
        "np.linalg.norm(f)",
        "np.multiply(f, f)",
    ],
)
def test_array_api_compat_and_numpy(text, names):
    f = names["f"]
    assert array_api_compat.is_cupy_array(f)
    xp = array_api_compat.array_namespace(f, 1.0)
    assert xp.__name__ == "array_api_compat.cupy"
    assert array_api_compat.is_cupy_namespace(xp)
    with no_sync():
        assert isinstance(eval(text, names | {"xp": xp}), names["cupy"].ndarray)


def test_devices_of_array_api_compat(names):
    f = names["f"]
    device = array_api_compat.device(f)
    assert device == names["cupy"].cuda.Device(0)
    assert array_api_compat.to_device(f, device) is f
    assert type(array_api_compat.to_device(f, "cpu")) is np.ndarray
    assert syncs() == 1


@pytest.mark.parametrize("text", ["xp.clip(f, 0, 1)", "xp.sign(f)"])
def test_functions_that_wait_in_array_api_compat(text, names):
    # They assign through masks, which NumPy does not mind and CuPy waits for.
    xp = array_api_compat.array_namespace(names["f"])
    with pytest.raises(HostSynchronization), no_sync():
        eval(text, names | {"xp": xp})


# Counting and installation


def test_calls_are_noted(names):
    names["cupy"].linalg.svd(names["f3"], full_matrices=False)
    (call,) = cupy_standin.calls("linalg.svd")
    assert call.inputs == (("float32", (3, 2, 2)),)
    assert [shape for _, shape in call.outputs] == [(3, 2, 2), (3, 2), (3, 2, 2)]
    assert 2 * names["f"] is not None
    assert len(cupy_standin.calls("multiply")) == 1
    cupy_standin.reset()
    assert cupy_standin.calls() == []


def test_random_numbers_repeat(cupy):
    first = cupy.random.default_rng(3).standard_normal((2, 3), dtype="f")
    again = cupy.random.default_rng(3).standard_normal((2, 3), dtype="f")
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first.get(), again.get())
    with pytest.raises(TypeError, match="float32 and float64"):
        cupy.random.standard_normal(2, dtype="e")


def test_nothing_is_left_behind():
    before = {name: module for name, module in sys.modules.items() if "cupy" in name}
    with cupy_standin.installed() as cupy:
        x = cupy.ones(2)
        assert array_api_compat.array_namespace(x) is sys.modules["array_api_compat.cupy"]
        with pytest.raises(ImportError):  # CuPy's package finds the library, and it alone
            importlib.import_module("cupy_backends.cuda.libs.cublas")
        cublas = importlib.import_module("cupy_backends.cuda.libs").cublas
        assert cublas.getPointerMode(cupy.cuda.device.get_cublas_handle()) == 0
        with pytest.raises(ImportError):  # a real CuPy cannot lend its other private parts
            importlib.import_module("cupy_backends.cuda.libs.curand")
    assert {name: module for name, module in sys.modules.items() if "cupy" in name} == before
    assert not array_api_compat.is_cupy_array(x)
    assert hasattr(array_api_compat, "cupy") == ("array_api_compat.cupy" in before)
    with pytest.raises(TypeError):
        array_api_compat.array_namespace(x)
    assert array_api_compat.array_namespace(np.ones(2)).__name__ == "array_api_compat.numpy"


@pytest.fixture
def other_cupy(monkeypatch):
    """A module that is imported as CuPy already, with its wrapper."""
    other = types.ModuleType("cupy")
    other.ndarray = type("ndarray", (), {})
    other.wrapper = types.ModuleType("array_api_compat.cupy")
    monkeypatch.setitem(sys.modules, "cupy", other)
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", other.wrapper)
    monkeypatch.setattr(array_api_compat, "cupy", other.wrapper, raising=False)
    yield other
    monkeypatch.undo()
    with cupy_standin.installed():
        pass  # array-api-compat forgets the other module


def test_what_was_imported_before_comes_back(other_cupy):
    with cupy_standin.installed() as outer:
        with cupy_standin.installed() as inner:
            assert inner is outer
        assert sys.modules["cupy"] is outer
    with contextlib.suppress(ZeroDivisionError), cupy_standin.installed():
        raise ZeroDivisionError
    assert sys.modules["cupy"] is other_cupy
    x = other_cupy.ndarray()
    assert array_api_compat.is_cupy_array(x)
    assert array_api_compat.array_namespace(x) is other_cupy.wrapper
