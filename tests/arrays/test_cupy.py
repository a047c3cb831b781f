"""The CuPy branch, against a mock with CuPy's names, signatures, dtype and host/device rules.

What a GPU alone can show (rounding on the device, speed) is not shown here.
"""

import warnings
from collections import Counter

import ml_dtypes
import numpy as np
import pytest
from conftest import ml_dtype
from standin import cublaslt as standin_cublaslt
from standin import cupy_standin, memory

import polarlib
from polarlib._methods import METHODS
from polarlib.arrays import cublas, cublaslt
from polarlib.arrays.library import format_name, is_complex
from polarlib.arrays.ops import ops_of
from polarlib.arrays.rounded import rounded
from polarlib.engine.iterate import iterate

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


def products():
    return [call for call in cupy_standin.calls() if call.name.startswith("cublas")]


def tolerance(dtype):
    eps = {2: 2.0**-8, 4: 2.0**-23}.get(np.dtype(dtype).itemsize, 2.0**-52)
    if np.dtype(dtype) == np.complex64:
        eps = 2.0**-23
    return 100 * eps if eps < 1e-3 else 0.1


@pytest.mark.thinned(4)
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
    assert error < 10 * tolerance(dtype)  # the first steps magnify rounding


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
@pytest.mark.parametrize("dtype", ["f4", "c16", ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["plain", "gram"])
@pytest.mark.thinned(3)
def test_steps_are_chosen_on_the_device(cupy, shape, dtype, form):
    """Their tables are sent in the first call; cuBLAS takes the coefficients of one matrix."""
    a, how = sample(shape, dtype), {"schedule": "adaptive", "form": form}
    x = cupy.asarray(a)
    polarlib.orthogonalize(x, **how)
    cupy_standin.reset()
    with cupy_standin.no_sync():
        q = polarlib.orthogonalize(x, **how)
    assert dtypes(products()) == {np.dtype(dtype).name}
    error = np.abs(q.get().astype("c16") - polarlib.orthogonalize(a, **how).astype("c16")).max()
    assert error < 10 * tolerance(dtype)


@pytest.mark.parametrize("dtype", ["f2", ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("stack", [(), (3,)], ids=str)
def test_16_bit_iterates_stay_16_bit(cupy, dtype, stack):
    """CuPy turns bf16 * 1.5 into float32 and its bf16 norms into float64, without a word."""
    x = cupy.asarray(sample((*stack, 16, 8), dtype))
    cupy_standin.reset()
    polarlib.orthogonalize(x, form="plain", schedule="polar_express")
    calls = products()
    assert len(calls) == 15  # a stack at once
    assert dtypes(calls) == {np.dtype(dtype).name}
    arrays = [a for call in cupy_standin.calls() for a in (*call.inputs, *call.outputs)]
    # The sums of the normalisation are in double.
    assert all(len(shape) == 1 for name, shape in arrays if name == "float64")


# Products and other kernels of one more step: by form, degree, and width of the entries. With 16
# bits cublasLt adds the iterate to the product; with 32 a diagonal takes it, if it can.
STEP = {
    ("plain", "quintic", 4): (3, ["add"]),
    ("plain", "quintic", 2): (3, []),
    ("plain", "cubic", 4): (2, ["add"]),
    ("plain", "cubic", 2): (2, []),
    ("gram", "quintic", 4): (4, ["add"]),
    ("gram", "quintic", 2): (4, []),
    ("gram", "cubic", 4): (3, ["add", "polarlib_combine_1"]),
    ("gram", "cubic", 2): (3, ["polarlib_combine_1"]),
}
# Where there is no cublasLt, each addend is copied to where the product joins it.
COPIES = {
    ("plain", "quintic", 4): 1,
    ("plain", "quintic", 2): 2,
    ("plain", "cubic", 2): 1,
    ("gram", "quintic", 4): 1,
    ("gram", "quintic", 2): 4,
    ("gram", "cubic", 2): 3,
}


@pytest.mark.parametrize("library", ["cublasLt", "cuBLAS alone"])
@pytest.mark.parametrize("dtype", ["f4", "f2", ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(12, 8), (3, 12, 8)], ids=str)
@pytest.mark.parametrize(("form", "kind"), sorted({key[:2] for key in STEP}))
def test_what_a_step_launches(cupy, monkeypatch, form, kind, dtype, shape, library):
    if library != "cublasLt":
        monkeypatch.setattr(cublaslt, "library", lambda: None)
    schedule = {"quintic": "polar_express", "cubic": "newton_schulz_3"}[kind]
    x = cupy.asarray(sample(shape, dtype))
    counts = []
    for steps in (3, 4):
        cupy_standin.reset()
        restarts = {"restarts": ()} if form == "gram" else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", polarlib.ScheduleWarning)
            polarlib.orthogonalize(x, schedule=schedule, steps=steps, form=form, **restarts)
        counts.append(Counter(call.name for call in cupy_standin.calls()))
    more = counts[1] - counts[0]
    assert not counts[0] - counts[1]
    expected, kernels = STEP[form, kind, x.itemsize]
    assert sum(more.pop(name) for name in list(more) if name.startswith("cublas")) == expected
    for launches_nothing in ("diagonal", "swapaxes", "empty", "empty_like"):
        more.pop(launches_nothing, None)
    copies = COPIES.get((form, kind, x.itemsize), 0) * (library != "cublasLt")
    assert sorted(more.elements()) == sorted([*kernels, *["setitem"] * copies])


@pytest.mark.parametrize("shape", [(16, 16), (16, 8), (8, 16), (3, 8, 16)], ids=str)
@pytest.mark.parametrize("dtype", ["f2", ml_dtypes.bfloat16], ids=str)
def test_all_launches_of_five_steps_of_16_bits(cupy, dtype, shape):
    """15 products, and two kernels for each of the two divisions of the normalisation."""
    x = cupy.asarray(sample(shape, dtype))
    for schedule, divisions in (("auto", 2), ("jordan", 1)):
        cupy_standin.reset()
        q = polarlib.orthogonalize(x, form="plain", schedule=schedule)
        names = [call.name for call in cupy_standin.calls()]
        launches = [name for name in names if name not in ("empty", "swapaxes")]
        assert sum(name.startswith("cublas") for name in launches) == 15
        assert len(launches) == 15 + 2 * divisions
        assert q.flags.c_contiguous


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (48, 48), (3, 32, 16), (2, 16, 32)], ids=str)
@pytest.mark.parametrize("dtype", ["f4", "f8", "c8"])
def test_workspace(cupy, shape, dtype):
    """Two copies of the input, one of them the result, and three small squares."""
    x = cupy.asarray(sample(shape, dtype))
    square = x.nbytes * min(shape[-2:]) // max(shape[-2:])
    memory.usage.reset()
    before = memory.usage.used
    q = polarlib.orthogonalize(x, schedule="polar_express", form="plain", normalisation="frobenius")
    spent = memory.usage.peak - before
    few = 64 * x.itemsize * max(shape)  # norms, and a diagonal
    conjugates = x.nbytes * (np.dtype(dtype).kind == "c" and shape[-2] < shape[-1])
    assert spent <= 2 * x.nbytes + 3 * square + few + conjugates
    assert q.nbytes == x.nbytes


@pytest.mark.parametrize("shape", [(64, 32), (48, 48), (3, 32, 16)], ids=str)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", ["f4", "f2", ml_dtypes.bfloat16], ids=str)
def test_workspace_of_the_engine(cupy, shape, turned, dtype):
    """One buffer beside an iterate that may be written, however it lies, and two squares."""
    x = cupy.asarray(sample(shape, dtype))
    x = x.swapaxes(-1, -2).copy().swapaxes(-1, -2) if turned else x
    square = x.nbytes * shape[-1] // shape[-2]
    ops = rounded(ops_of(x), format_name(x))
    steps = [(1.5, -0.5)] * 2 + [(1.875, -1.25, 0.375)] * 2
    memory.usage.reset()
    before = memory.usage.used
    iterate(x, steps, ops, may_overwrite=True)
    workspace = standin_cublaslt.WORKSPACE
    assert memory.usage.peak - before <= x.nbytes + 2 * square + workspace
    assert memory.usage.allocations == 3 + len(cupy_standin.calls("cublasLt.matmul"))


def exact(shape, seed):
    """Eighths of small integers: whatever the order of summation, products are exact."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype("f4") / 8


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("stack", [(), (3,), (2, 2)], ids=str)
def test_16_bits_are_rounded_once(cupy, dtype, stack):
    """Bit for bit the simulated format, whose products take the addend in single precision."""
    a, b, c = exact((*stack, 9, 16), 1), exact((*stack, 16, 7), 2), exact((*stack, 9, 7), 3)
    simulated = rounded(ops_of(a), dtype)
    x, y, z = (cupy.asarray(t.astype(ml_dtype(dtype))) for t in (a, b, c))
    native = rounded(ops_of(x), dtype)
    assert not native.simulated
    for alpha, beta in ((1.0, 0.0), (1.375, -0.625), (-2.25, 1.0)):
        want = simulated.gemm(a, b, c, alpha=alpha, beta=beta)
        out = native.buffer(z.shape, z)
        for target in (None, out):
            got = native.gemm(x, y, z, alpha=alpha, beta=beta, out=target)
            assert got is out or target is None
            np.testing.assert_array_equal(got.get().astype("f4"), want)
    np.testing.assert_array_equal(z.get().astype("f4"), c)
    np.testing.assert_array_equal(native.gram(x).get().astype("f4"), simulated.gram(a))
    d = exact((*stack, 16, 16), 4)
    e = exact((*stack, 16, 16), 5)
    got = native.combine((1.375, -0.625), [cupy.asarray(t.astype(ml_dtype(dtype))) for t in (d, e)])
    want = simulated.combine((1.375, -0.625), (d, e))
    np.testing.assert_array_equal(got.get().astype("f4"), want)


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
def test_gemm_leaves_its_operands_alone(cupy, dtype):
    a, b, c = sample((3, 5, 4), dtype), sample((3, 4, 6), dtype), sample((3, 5, 6), dtype)
    x, y, z = map(cupy.asarray, (a, b, c))
    ops = ops_of(x)
    got = ops.gemm(x, y, z, alpha=0.5, beta=-2.0)
    for given, before in ((x, a), (y, b), (z, c)):
        np.testing.assert_array_equal(given.get(), before)
    np.testing.assert_allclose(got.get(), 0.5 * (a @ b) - 2 * c, rtol=tolerance(dtype), atol=1e-5)
    beta = cupy.full((), -2.0, dtype=format_name(x))
    with cupy_standin.no_sync():
        again = ops.gemm(x, y, z, alpha=0.5, beta=beta)
    np.testing.assert_array_equal(again.get(), got.get())


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 2, 5, 4), (0, 5, 4), (5, 4), (5, 0)], ids=str)
def test_triangular_systems_of_a_stack_are_solved_at_once(cupy, dtype, shape):
    b, n = sample(shape, dtype), shape[-2]
    l = np.tril(sample((*shape[:-1], n), dtype)) + 4 * np.eye(n, dtype=dtype)
    ops = ops_of(cupy.asarray(b))
    for adjoint in (False, True):
        cupy_standin.reset()
        y = ops.solve_lower(cupy.asarray(l), cupy.asarray(b), adjoint=adjoint)
        assert y.shape == b.shape
        assert len(cupy_standin.calls("cupyx.scipy.linalg.solve_triangular")) == bool(b.size)
        op = np.conj(l.mT) if adjoint else l
        np.testing.assert_allclose(op @ y.get(), b, atol=tolerance(dtype))


@pytest.mark.parametrize("shape", [(8, 5), (3, 8, 5), (5, 1), (1, 5)], ids=str)
@pytest.mark.parametrize("dtype", ["f4", "c8", ml_dtypes.bfloat16], ids=str)
def test_matrices_by_columns_keep_their_order(cupy, dtype, shape):
    x = cupy.asarray(sample(shape, dtype)).swapaxes(-1, -2)
    ops = ops_of(x)
    square = (*shape[:-2], shape[-2], shape[-2])
    for like in (x, x.swapaxes(-1, -2)):
        for out in (ops.buffer(like.shape, like), ops.buffer(square, like)):
            assert cublas.is_transposed(out) == (cublas.is_transposed(like) and out.shape[-1] > 1)
    assert cublas.is_transposed(ops.gram(x)) == (min(shape[-2:]) > 1)
    cupy_standin.reset()
    peak = ops.max_abs(x)
    if not is_complex(x) and min(shape[-2:]) > 1:
        for call in cupy_standin.calls("max") + cupy_standin.calls("min"):
            assert call.inputs[0][1] == shape  # by rows, as CUB reads it
    parts = np.stack([x.get().real, x.get().imag]) if is_complex(x) else x.get()[None]
    want = np.abs(parts.astype("f8")).max(axis=0).max(axis=(-2, -1), keepdims=True)
    np.testing.assert_array_equal(peak.get().astype("f8"), want)


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "f2", ml_dtypes.bfloat16], ids=str)
def test_fold_is_the_same_polynomial(cupy, dtype):
    z = sample((6, 6), dtype)
    for alpha, beta in ((1.0, 2.0), (-0.5, 1.5), (1e-12, 1.5), (0.0, 1.5)):
        ops = ops_of(cupy.asarray(z))
        folded, a, b = ops.add_scaled_identity(cupy.asarray(z), alpha, beta)
        got = a * folded.get().astype("c16") + b * np.eye(6)
        want = alpha * z.astype("c16") + beta * np.eye(6)
        np.testing.assert_allclose(got, want, atol=tolerance(dtype))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_small_kernels_are_what_every_library_does(cupy, dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    values = [0.0, tiny, 1e-30, 0.75, 1.0, 1.5, 3e38, np.inf, np.nan]
    s = np.array(values, dtype).reshape(-1, 1, 1)
    on_device, on_host = ops_of(cupy.asarray(s)), ops_of(s)
    with cupy_standin.no_sync():
        scale = on_device.binary_scale(cupy.asarray(s))
        divisor = on_device.divisor(cupy.asarray(s))
    with np.errstate(divide="ignore"):
        np.testing.assert_array_equal(scale.get(), on_host.binary_scale(s))
    np.testing.assert_array_equal(divisor.get(), on_host.divisor(s))
    assert scale.dtype == divisor.dtype == s.dtype


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16", "f2", ml_dtypes.bfloat16], ids=str)
def test_elementwise_operations_keep_their_type(cupy, dtype):
    a = sample((3, 5, 5), dtype)
    x = cupy.asarray(a)
    ops = ops_of(x)
    wide = a.astype("c16")
    norm = ops.frobenius(x)
    assert norm.shape == (3, 1, 1)
    assert norm.dtype == ("f8" if np.dtype(dtype).itemsize == 8 * (1 + is_complex(x)) else "f4")
    np.testing.assert_allclose(norm.get()[:, 0, 0], np.linalg.norm(wide, axis=(1, 2)), rtol=1e-6)
    for got, want in (
        (ops.divide(x, norm), wide / norm.get()),
        (ops.scale(x, 1.5), 1.5 * wide),
        (ops.hermitian_part(x), (wide + np.conj(wide.mT)) / 2),
        (ops.combine((0.5, -1.5, 2.0), (x, x, x)), wide),
    ):
        assert got.dtype == a.dtype
        np.testing.assert_allclose(got.get().astype("c16"), want, atol=tolerance(dtype))
    np.testing.assert_array_equal(x.get(), a)
    h = ops.hermitian_part(x).get()
    np.testing.assert_array_equal(h, np.conj(h.mT))
    copied = x.copy()
    assert ops.divide(copied, norm, may_overwrite=True) is copied


@pytest.mark.parametrize("dtype", ["f4", "c8", "f2", ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["plain", "gram"])
def test_without_the_binding_of_cublas(monkeypatch, dtype, form):
    a = sample((3, 12, 5), dtype)
    monkeypatch.setattr(cublas, "_binding", lambda: None)
    with cupy_standin.installed() as cupy:
        with cupy_standin.no_sync():
            q = polarlib.orthogonalize(cupy.asarray(a), form=form)
        assert cupy_standin.calls("matmul")
        assert not products()
        expected = polarlib.orthogonalize(a, form=form)
        error = np.abs(q.get().astype("c16") - expected.astype("c16")).max()
        assert error < 4 * tolerance(dtype)  # on the host the bound is absorbed, not divided by
        assert "tf32" not in ops_of(cupy.asarray(a)).native


@pytest.mark.parametrize("capability", ["75", "80", "90", "120"])
def test_tf32_is_native_where_the_device_has_it(monkeypatch, capability):
    a = sample((16, 8), "f4")
    with cupy_standin.installed() as cupy:
        monkeypatch.setattr(cupy.cuda.Device, "compute_capability", capability)
        x = cupy.asarray(a)
        assert rounded(ops_of(x), "tf32").simulated == (capability == "75")
        assert rounded(ops_of(x), "tf32", is_complex=True).simulated
        kwargs = {"schedule": "polar_express", "form": "plain"}
        q = polarlib.orthogonalize(x, precision="tf32", **kwargs).get()
    simulated = polarlib.orthogonalize(a, precision="tf32", **kwargs)
    exact = polarlib.orthogonalize(a, **kwargs)
    assert np.abs(q - simulated).max() < 2e-3
    assert np.abs(q - exact).max() > 1e-6


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
    # On the host the first step's coefficients take the norm; on a device the rounded Gram matrix
    # is divided by it, and rounded again.
    more = 8 if normalisation == "schatten4" else 1
    bounds = {None: 1e-5, "tf32": 5e-3, "bfloat16": 0.1, "float8_e5m2": 0.1}
    assert error < more * bounds[precision]


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


@pytest.mark.thinned(6)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["f4", "f8", "c16", "f2", ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("method", [*METHODS, "polar_express"])
def test_polar(cupy, method, shape, dtype):
    if method == "small":
        if shape != SHAPES[0]:
            pytest.skip("small matrices are square")
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
