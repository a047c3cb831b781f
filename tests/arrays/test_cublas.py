"""Products through cuBLAS's binding, against an emulation of it that works on raw addresses."""

import importlib
import itertools
import sys
import warnings

import ml_dtypes
import numpy as np
import pytest
from standin import cublas, cupy_standin

from polarlib.arrays import cublas as kernels
from polarlib.arrays import gemm_layout

DTYPES = ["f4", "f8", "c8", "c16", "f2", ml_dtypes.bfloat16]
# Stacks of the first and of the second operand.
STACKS = [((), ()), ((3,), (3,)), ((2, 3), (2, 3)), ((3,), ()), ((), (3,)), ((2, 1), (3,))]
CUBLAS = "cupy_backends.cuda.libs.cublas"


@pytest.fixture
def cupy():
    with cupy_standin.installed() as module:
        loaded()
        yield module


def loaded():
    """CuPy's private binding."""
    return importlib.import_module("cupy_backends.cuda.libs").cublas


@pytest.fixture(params=["cublas", "matmul"])
def either(request, cupy, monkeypatch):
    """CuPy with its private binding, and without."""
    if request.param == "matmul":
        monkeypatch.setitem(sys.modules, CUBLAS, None)
    return cupy


def entries(shape, dtype, seed=0):
    """Eighths of small integers: products and sums of a few are exact in single precision."""
    rng = np.random.default_rng(seed)
    a = rng.integers(-8, 9, shape) / 8
    if np.dtype(dtype).kind == "c":
        a = a + 1j * rng.integers(-8, 9, shape) / 8
    return a.astype(dtype)


def adjoint(a):
    return np.conj(np.swapaxes(a, -1, -2))


def wide(a):
    return a.astype("c16" if a.dtype.kind == "c" else "f8")


def expected(a, b, c, alpha, beta, dtype):
    return (alpha * (wide(a) @ wide(b)) + beta * wide(c)).astype(dtype)


def gemm_calls():
    return [call.name for call in cupy_standin.calls() if call.name.startswith("cublas")]


@pytest.mark.parametrize("stacks", STACKS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_every_type_operation_and_stack(cupy, dtype, stacks):
    """Exact entries: any right order of summation gives the same bits, rounded once."""
    m, k, n = 5, 4, 7
    batch = np.broadcast_shapes(*stacks)
    is_complex = np.dtype(dtype).kind == "c"
    scalars = [(1.0, 0.0), (-0.5, 1.5), (0.0, 1.0)] + [(1 - 0.5j, 0.5j)] * is_complex
    for adjoint_a, adjoint_b, (alpha, beta) in itertools.product((0, 1), (0, 1), scalars):
        a = entries((*stacks[0], k, m) if adjoint_a else (*stacks[0], m, k), dtype, 1)
        b = entries((*stacks[1], n, k) if adjoint_b else (*stacks[1], k, n), dtype, 2)
        c = entries((*batch, m, n), dtype, 3)
        op_a, op_b = adjoint(a) if adjoint_a else a, adjoint(b) if adjoint_b else b
        out = cupy.asarray(c)
        how = {"adjoint_a": bool(adjoint_a), "adjoint_b": bool(adjoint_b)}
        with cupy_standin.no_sync():
            got = kernels.gemm(cupy.asarray(a), cupy.asarray(b), out, alpha=alpha, beta=beta, **how)
        assert got is out
        np.testing.assert_array_equal(out.get(), expected(op_a, op_b, c, alpha, beta, dtype))
    assert set(gemm_calls()) == {"cublas.gemmStridedBatchedEx" if batch else "cublas.gemmEx"}
    assert not cupy_standin.calls("matmul")


VIEWS = {
    "transposed": lambda x: x.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    "part": lambda x: np.pad(x, [(0, 0)] * (x.ndim - 2) + [(2, 3), (1, 2)])[..., 2:-3, 1:-2],
    "part, transposed": lambda x: VIEWS["part"](x.swapaxes(-1, -2)).swapaxes(-1, -2),
    "every other row": lambda x: np.repeat(x, 2, axis=-2)[..., ::2, :],
    "every other column": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "backwards": lambda x: x[..., ::-1, :].copy()[..., ::-1, :],
    "stack backwards": lambda x: x[::-1].copy()[::-1],
    "axes swapped": lambda x: np.moveaxis(np.moveaxis(x, 0, -1).copy(), -1, 0),
    "Fortran": lambda x: np.asfortranarray(x),
}


def owner(host):
    """The array whose storage a view looks at."""
    while host.base is not None:
        host = host.base
    return host


def test_views_are_what_they_say():
    x = entries((4, 5, 6), "f4")
    for view in VIEWS.values():
        np.testing.assert_array_equal(view(x), x)
    assert len({view(x).strides for view in VIEWS.values()}) == len(VIEWS)


@pytest.mark.parametrize("stack", [(), (4,), (2, 2)], ids=str)
@pytest.mark.parametrize("dtype", ["f4", "c8", ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("view", VIEWS)
def test_views(cupy, view, dtype, stack):
    """As any of the operands, with and without adjoint; what lies around them is not touched."""
    if not stack and view in ("stack backwards", "axes swapped"):
        stack = (1,)
    make = VIEWS[view]
    a, b, c = (
        entries((*stack, *shape), dtype, i) for i, shape in enumerate([(6, 4), (4, 5), (6, 5)])
    )
    for which in ("a", "b", "c", "a adjoint", "b adjoint"):
        seen = {"a": a, "b": b, "c": c}
        name = which[0]
        turned = which.endswith("adjoint")
        host = make(adjoint(seen[name]) if turned else seen[name])
        whole = owner(host)
        before = whole.copy()
        views = {key: cupy.asarray(value) for key, value in seen.items()}
        views[name] = cupy_standin.to_device(host)  # asarray would copy and lose the strides
        how = {f"adjoint_{name}": True} if turned else {}
        out = kernels.gemm(views["a"], views["b"], views["c"], alpha=0.5, beta=-1.0, **how)
        assert out is views["c"]
        want = expected(a, b, c, 0.5, -1.0, dtype)
        np.testing.assert_array_equal(out.get(), want)
        if name == "c":  # nothing but the view has changed
            host[...] = c
        np.testing.assert_array_equal(whole, before)


def test_operands_that_cublas_can_read_are_not_copied(cupy):
    x = cupy.asarray(entries((3, 8, 4), "f4"))
    y = cupy.asarray(entries((3, 4, 8), "f4"))
    out = cupy.empty((3, 4, 4), dtype="f4")
    turned = cupy.empty((3, 4, 4), dtype="f4").swapaxes(-1, -2)
    cupy_standin.reset()
    for target in (out, turned):
        kernels.gemm(x, x, target, adjoint_a=True)
        kernels.gemm(x.swapaxes(-1, -2), y.swapaxes(-1, -2), target)
        kernels.gemm(x[:, 1:5, :3], y[:, 1:4, 2:6], cupy.empty((3, 4, 4), dtype="f4"))
    kernels.gemm(x[:1, :4], cupy.broadcast_to(y[:1], (3, 4, 8)), cupy.empty((3, 4, 8), "f4"))
    names = {call.name for call in cupy_standin.calls()}
    assert not names & {"copy", "ascontiguousarray", "setitem", "astype"}
    assert len(gemm_calls()) == 7


def test_complex_adjoint_of_a_row_major_matrix_is_not_copied(cupy):
    x = cupy.asarray(entries((6, 4), "c8"))
    kernels.gemm(x, x, adjoint_a=True)
    assert not cupy_standin.calls("conj")
    assert not cupy_standin.calls("conjugate")


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 5, 1), (1, 1, 5), (5, 1, 1), (4, 5, 1), (1, 5, 4)]
)
def test_vectors(cupy, shape):
    m, k, n = shape
    a, b = entries((2, m, k), "f4", 1), entries((2, k, n), "f4", 2)
    left = (a, VIEWS["transposed"](a), VIEWS["every other column"](a))
    right = (b, VIEWS["transposed"](b), VIEWS["every other row"](b))
    for x, y in itertools.product(left, right):
        got = kernels.gemm(cupy_standin.to_device(x), cupy_standin.to_device(y))
        np.testing.assert_array_equal(got.get(), a @ b)
    a, b = entries((2, k, m), "c8", 1), entries((2, n, k), "c8", 2)
    for x, y in itertools.product((a, VIEWS["transposed"](a)), (b, VIEWS["part"](b))):
        hosts = map(cupy_standin.to_device, (x, y))
        got = kernels.gemm(*hosts, adjoint_a=True, adjoint_b=True)
        np.testing.assert_array_equal(got.get(), adjoint(a) @ adjoint(b))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("which", ["alpha", "beta", "both"])
def test_scalars_on_the_device(cupy, dtype, which):
    a, b, c = (entries((2, 4, 4), dtype, i) for i in range(3))
    scalar = np.dtype("f8" if dtype == "f8" else "f4")
    alpha, beta = 0.375, -1.25
    given = {"alpha": alpha, "beta": beta}
    for name in given:
        if which in (name, "both"):
            given[name] = cupy.full((1, 1), given[name], dtype=scalar)
    out = cupy.asarray(c)
    low = loaded()
    with cupy_standin.no_sync():
        kernels.gemm(cupy.asarray(a), cupy.asarray(b), out, **given)
    np.testing.assert_array_equal(out.get(), expected(a, b, c, alpha, beta, dtype))
    assert low.getPointerMode(cublas.HANDLE) == low.CUBLAS_POINTER_MODE_HOST


def test_a_norm_scales_a_product_where_it_is(either):
    x = entries((6, 4), "f4")
    on_device = either.asarray(x)
    with cupy_standin.no_sync():
        norm = either.sqrt(either.sum(on_device * on_device))
        y = kernels.gemm(on_device, on_device, adjoint_a=True, alpha=1 / norm)
    np.testing.assert_allclose(y.get(), x.T @ x / np.linalg.norm(x), rtol=1e-6)


def test_the_pointer_mode_comes_back_after_a_failure(cupy, monkeypatch):
    low = loaded()

    def fail(*args):
        raise cublas.CUBLASError("CUBLAS_STATUS_EXECUTION_FAILED")

    monkeypatch.setattr(low, "gemmEx", fail)
    x = cupy.ones((2, 2), dtype="f4")
    with pytest.raises(cublas.CUBLASError):
        kernels.gemm(x, x, alpha=cupy.ones((), dtype="f4"))
    assert low.getPointerMode(cublas.HANDLE) == low.CUBLAS_POINTER_MODE_HOST


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("stack", [(), (3,)], ids=str)
def test_without_the_binding(cupy, monkeypatch, dtype, stack):
    monkeypatch.setitem(sys.modules, CUBLAS, None)
    a, b, c = (entries((*stack, 4, 4), dtype, i) for i in range(3))
    eps = 2.0 ** -{"float16": 10, "bfloat16": 7}.get(np.dtype(dtype).name, 22)
    for adjoint_a, adjoint_b in itertools.product((False, True), repeat=2):
        out = cupy.asarray(c)
        with cupy_standin.no_sync():
            kernels.gemm(
                cupy.asarray(a), cupy.asarray(b), out,
                alpha=0.5, beta=-1.0, adjoint_a=adjoint_a, adjoint_b=adjoint_b,
            )  # fmt: skip
        want = expected(
            adjoint(a) if adjoint_a else a, adjoint(b) if adjoint_b else b, c, 0.5, -1.0, dtype
        )
        assert np.abs(wide(out.get()) - wide(want)).max() <= 8 * eps
    assert not gemm_calls()
    assert cupy_standin.calls("matmul")
    assert not kernels.has_tf32()


@pytest.mark.parametrize("name", kernels.NEEDED)
def test_without_one_of_its_names(cupy, monkeypatch, name):
    monkeypatch.delattr(loaded(), name)
    x = cupy.ones((2, 2), dtype="f4")
    assert (kernels.gemm(x, x).get() == 2).all()
    assert cupy_standin.calls("matmul")


def test_of_another_vendor(cupy, monkeypatch):
    monkeypatch.setattr(cupy.cuda.runtime, "is_hip", True)
    x = cupy.ones((2, 2), dtype="f4")
    kernels.gemm(x, x)
    assert cupy_standin.calls("matmul")


def test_mixed_and_other_types_go_to_matmul(cupy):
    f, d = cupy.ones((2, 2), dtype="f4"), cupy.ones((2, 2), dtype="f8")
    assert kernels.gemm(f, d).dtype == "f8"
    assert kernels.gemm(cupy.ones((2, 2), dtype="i8"), cupy.ones((2, 2), dtype="i8")).dtype == "i8"
    assert not gemm_calls()


def test_one_row_or_column_again_and_again(cupy):
    """Strides of 0 inside a matrix, and overlapping rows, are copied, however they look."""
    a, b = entries((1, 4), "f4", 1), entries((4, 3), "f4", 2)
    x, y = cupy.asarray(a), cupy.asarray(b)
    again = np.broadcast_to(a, (5, 4))
    np.testing.assert_array_equal(kernels.gemm(cupy.broadcast_to(x, (5, 4)), y).get(), again @ b)
    turned = cupy.broadcast_to(x, (5, 4)).swapaxes(-1, -2)
    np.testing.assert_array_equal(
        kernels.gemm(turned, cupy.broadcast_to(x, (5, 4))).get(), again.T @ again
    )
    windows = np.lib.stride_tricks.sliding_window_view(entries((6,), "f4", 3), 4)
    got = kernels.gemm(cupy_standin.to_device(windows), y)
    np.testing.assert_array_equal(got.get(), windows @ b)


def test_empty(either):
    f = either.asarray(entries((2, 2), "f4"))
    assert kernels.gemm(f[:0], f).shape == (0, 2)
    assert kernels.gemm(f[None][:0], f).shape == (0, 2, 2)
    out = kernels.gemm(f[:, :0], f[:0], f.copy(), beta=2.0)  # an empty sum
    np.testing.assert_array_equal(out.get(), 2 * f.get())
    np.testing.assert_array_equal(kernels.gemm(f[:, :0], f[:0]).get(), np.zeros((2, 2)))
    new = kernels.gemm(either.empty((2, 0), dtype="f4"), either.empty((0, 2), dtype="f4"))
    np.testing.assert_array_equal(new.get(), np.zeros((2, 2)))
    assert not gemm_calls()


def test_what_is_in_out_does_not_matter_without_beta(either):
    x = either.ones((2, 2), dtype="f4")
    nan = either.full((2, 2), np.nan, dtype="f4")
    assert (kernels.gemm(x, x, nan).get() == 2).all()


@pytest.mark.parametrize("dtype", ["f4", "f2", ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
def test_overflow_is_infinity(cupy, dtype):
    largest = ml_dtypes.finfo(dtype).max
    x = cupy.asarray(np.full((2, 2), largest, dtype))
    assert np.isposinf(kernels.gemm(x, x).get().astype("f4")).all()
    one = cupy.ones((2, 2), dtype=dtype)
    assert np.isposinf(kernels.gemm(one, one, alpha=1e300).get().astype("f4")).all()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"b": (3, 2)}, ValueError, "2 x 2 by 3 x 2"),
        ({"out": (3, 3)}, ValueError, r"shape \(2, 2\), got \(3, 3\)"),
        ({"out": "f8"}, TypeError, "float32, got float64"),
        ({"beta": 1.0}, ValueError, "out must be an array for beta=1.0"),
        ({"alpha": "many"}, ValueError, r"alpha must be one .* shape \(2, 2\)"),
        ({"alpha": 1j}, TypeError, "alpha must be real"),
        ({"beta": 1j}, TypeError, "beta must be real"),
    ],
)
def test_bad_input(cupy, change, error, text):
    a = b = cupy.ones((2, 2), dtype="f4")
    out = None
    if isinstance(change.get("b"), tuple):
        b = cupy.ones(change.pop("b"), dtype="f4")
    if "out" in change:
        wanted = change["out"]
        shape, dtype = (wanted, "f4") if isinstance(wanted, tuple) else ((2, 2), wanted)
        out = cupy.ones(shape, dtype=dtype)
        change = {}
    if change.get("alpha") == "many":
        change = {"alpha": a}
    with pytest.raises(error, match=text):
        kernels.gemm(a, b, out, **{k: v for k, v in change.items() if k != "b"})


# Sizes that C's int cannot hold


def test_dimensions_and_strides_that_do_not_fit_an_int_go_to_matmul(cupy, monkeypatch):
    monkeypatch.setattr(kernels, "LARGEST_INT", 5)
    a, b = entries((4, 5), "f4", 1), entries((5, 3), "f4", 2)
    fits, _ = kernels.gemm(cupy.asarray(a), cupy.asarray(b)), gemm_calls()
    assert gemm_calls() == ["cublas.gemmEx"]
    large = cupy.asarray(entries((4, 7), "f4"))[:, :5]  # its leading dimension is too large
    large[...] = cupy.asarray(a)
    cupy_standin.reset()
    other = kernels.gemm(large, cupy.asarray(b))
    third = kernels.gemm(cupy.ones((4, 6), dtype="f4"), cupy.ones((6, 3), dtype="f4"))
    assert not gemm_calls()
    assert len(cupy_standin.calls("matmul")) == 2
    np.testing.assert_array_equal(fits.get(), a @ b)
    np.testing.assert_array_equal(other.get(), a @ b)
    assert (third.get() == 6).all()


def test_long_stacks_are_split(cupy, monkeypatch):
    a, b, c = (entries((7, 3, 3), "f4", i) for i in range(3))
    assert kernels.STACK < 65536
    monkeypatch.setattr(kernels, "STACK", 3)
    out = kernels.gemm(cupy.asarray(a), cupy.asarray(b[:1]), cupy.asarray(c), beta=1.0)
    np.testing.assert_array_equal(out.get(), a @ b[:1] + c)
    shapes = [call.outputs[0][1] for call in cupy_standin.calls("cublas.gemmStridedBatchedEx")]
    assert shapes == [(3, 3, 3), (3, 3, 3), (1, 3, 3)]


def test_addresses_beyond_32_bits():
    """Offsets are Python's integers: a stack of 2^40 entries is addressed as it must be."""
    shape, strides = (1 << 20, 1 << 10, 1 << 10), (1 << 22, 1 << 12, 4)
    assert gemm_layout.matrix_strides(shape, strides, 4) == (False, 1 << 10, 1 << 20)


# tf32


def test_tf32(cupy, monkeypatch):
    assert kernels.has_tf32()
    x = np.full((2, 2), 1 + 2.0**-11, "f4")
    exact = kernels.gemm(cupy.asarray(x), cupy.asarray(x))
    rounded = kernels.gemm(cupy.asarray(x), cupy.asarray(x), tf32=True)
    np.testing.assert_array_equal(exact.get(), x @ x)
    np.testing.assert_array_equal(rounded.get(), np.full((2, 2), 2.0, "f4"))
    d = cupy.asarray(x.astype("f8"))
    np.testing.assert_array_equal(kernels.gemm(d, d, tf32=True).get(), d.get() @ d.get())


@pytest.mark.parametrize("dtype", ["f4", "c8"])
def test_single_precision_is_full_in_every_math_mode(cupy, dtype):
    x = np.full((2, 3, 3), 1 + 2.0**-11, dtype)
    binding, handle = loaded(), cupy.cuda.device.get_cublas_handle()
    binding.setMathMode(handle, 3)
    try:
        exact = kernels.gemm(cupy.asarray(x), cupy.asarray(x), adjoint_a=True)
        assert binding.getMathMode(handle) == 3
    finally:
        binding.setMathMode(handle, binding.CUBLAS_DEFAULT_MATH)
    np.testing.assert_array_equal(exact.get(), x @ x)


@pytest.mark.parametrize("dtype", ["f4", "c8"])
def test_the_fall_back_is_out_of_reach_of_cupy_tf32(cupy, monkeypatch, dtype):
    """With CUPY_TF32=1 ``cupy.matmul`` rounds the operands of single precision."""
    matmul = cupy.matmul

    def reduced(a, b):
        assert a.dtype.name in ("float64", "complex128")
        return matmul(a, b)

    monkeypatch.setattr(kernels, "_binding", lambda: None)
    monkeypatch.setattr(cupy, "matmul", reduced)
    x = np.full((3, 3), 1 + 2.0**-11, dtype)
    product = kernels.gemm(cupy.asarray(x), cupy.asarray(x))
    assert product.dtype == x.dtype
    np.testing.assert_array_equal(product.get(), x @ x)


def test_tf32_needs_a_device_that_has_it(cupy, monkeypatch):
    monkeypatch.setattr(cupy.cuda.Device, "compute_capability", "75")
    assert not kernels.has_tf32()


# With CuPy installed, and without a GPU


def test_the_real_binding_takes_our_arguments(monkeypatch):
    """Cython converts arguments before it looks for a driver, and there is none."""
    handed = []
    with cupy_standin.installed() as cupy:
        for name in ("gemmEx", "gemmStridedBatchedEx"):
            monkeypatch.setattr(
                loaded(), name, lambda *args, name=name: handed.append((name, args))
            )
        x = cupy.ones((3, 2, 2), dtype="f4")
        kernels.gemm(x, x)
        kernels.gemm(x[0], x[0])
        constants = {name: getattr(loaded(), name) for name in kernels.NEEDED[6:]}
        constants[kernels.TF32] = getattr(loaded(), kernels.TF32)
        numbers = {t[0]: getattr(cupy.cuda.runtime, t[0]) for t in kernels.TYPES.values()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy looks for CUDA, and says that there is none
        cupy = pytest.importorskip("cupy")
        binding = kernels._binding()
    assert binding is loaded()
    assert {name: getattr(binding, name) for name in constants} == constants
    assert {name: getattr(cupy.cuda.runtime, name) for name in numbers} == numbers
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
    assert [name for name, _ in handed] == ["gemmStridedBatchedEx", "gemmEx"]


# The emulation itself: what cuBLAS would do without a word must fail here


def call_gemm(low, a, b, c, *, alpha, beta, kind=0, compute=None, ld=2):
    compute = low.CUBLAS_COMPUTE_32F if compute is None else compute
    low.gemmEx(cublas.HANDLE, 0, 0, 2, 2, 2, alpha, a, kind, ld, b, kind, ld, beta, c, kind, ld,
               compute, -1)  # fmt: skip


def test_the_emulation_refuses_what_cublas_cannot_see(cupy):
    low = loaded()
    x = cupy.ones((2, 2), dtype="f4")
    one = np.ones(1, "f4")
    good = {"alpha": one.ctypes.data, "beta": one.ctypes.data}
    p = x.data.ptr
    host = np.ones((2, 2), "f4")
    on_device = cupy.ones((), dtype="f4")
    double = cupy.ones((), dtype="f8")
    call_gemm(low, p, p, p, **good)
    for args, how in [
        ((host.ctypes.data, p, p), {}),  # a matrix on the host
        ((p, p, p + 4), {}),  # past the end
        ((p, p, p), {"alpha": on_device.data.ptr}),  # a scalar on the wrong side
        ((p, p, p), {"kind": 1}),  # float64 in single precision
        ((p, p, p), {"kind": 0, "compute": low.CUBLAS_COMPUTE_64F}),
        ((p, p, p), {"ld": 1}),
    ]:
        with pytest.raises(cublas.CUBLASError):
            call_gemm(low, *args, **(good | how))
    with pytest.raises(OverflowError, match="int"):
        call_gemm(low, p, p, p, **(good | {"ld": 2**31}))
    with pytest.raises(TypeError):
        call_gemm(low, p, p, p, **(good | {"ld": 2.0}))
    low.setPointerMode(cublas.HANDLE, 1)
    try:
        scalars = {"alpha": on_device.data.ptr, "beta": on_device.data.ptr}
        call_gemm(low, p, p, p, **scalars)
        for wrong in (one.ctypes.data, double.data.ptr):
            with pytest.raises(cublas.CUBLASError):
                call_gemm(low, p, p, p, **(scalars | {"alpha": wrong}))
    finally:
        low.setPointerMode(cublas.HANDLE, 0)
    with pytest.raises(cublas.CUBLASError, match="NOT_INITIALIZED"):
        low.getPointerMode(1)


def test_memory_that_was_given_back_is_refused(cupy):
    low = loaded()
    one = np.ones(1, "f4").ctypes
    x = cupy.ones((64, 64), dtype="f4")
    address = x.data.ptr
    del x
    with pytest.raises(cublas.CUBLASError, match="illegal memory"):
        call_gemm(low, address, address, address, alpha=one.data, beta=one.data)
