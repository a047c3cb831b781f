"""What comes in: arrays of every kind, from every device, under every setting of NumPy."""

from __future__ import annotations

import dataclasses
import functools
import warnings

import numpy as np
import pytest
import scipy.sparse
import verbs
from conftest import library

import polarlib
from polarlib import default_schedule, norms, orthogonalize, polar, testing, updates
from polarlib._stages import stages
from polarlib.arrays import functions, ops
from polarlib.arrays.entered import enter
from polarlib.arrays.formats import FORMATS
from polarlib.arrays.rounded import round_to
from polarlib.derivatives import polar_jvp
from polarlib.norms.low_rank import power_step

A = np.random.default_rng(0).standard_normal((6, 4))
SQUARE = A[:4]
DEFINITE = SQUARE @ SQUARE.T + np.eye(4)
SIZE = 12  # of matrices in calls of every function
SLOW = pytest.mark.slow  # to compile, or to import
CALLS = tuple(verbs.on_arrays(size=SIZE))

# Functions of one array, for what has no arithmetic of its own.
ONE = {
    "polar": lambda a: tuple(polar(a)),
    "polar left": lambda a: tuple(polar(a, "left", method="qdwh")),
    "orthogonalize": orthogonalize,
    "orthogonalize_all": lambda a: polarlib.orthogonalize_all([a, a]),
    "nearest_orthogonal": polarlib.nearest_orthogonal,
    "nearest_rotation": polarlib.nearest_rotation,
    "procrustes": lambda a: polarlib.procrustes(a, a),
    "sqrtm_psd": polarlib.sqrtm_psd,
    "inverse_root": lambda a: polarlib.inverse_root(a, 2),
    "top_singular": lambda a: polarlib.top_singular(a, 2),
    "measure": lambda a: polarlib.measure(a, "jordan").singular_values,
    "polar_jvp": lambda a: polar_jvp(a, a),
    "norm": norms.schatten(3),
    "lmo": norms.spectral().lmo,
    "scaled lmo": (2.0 * norms.spectral()).lmo,
    "duality_gap": lambda a: norms.duality_gap(norms.nuclear(), a, a),
    "modular": lambda a: norms.modular([norms.spectral()]).lmo([a]),
    "spectral_clip": lambda a: norms.spectral_clip(a, 1.0),
}


def arrays(value):
    """Arrays of a result, in order; figures on the host are none."""
    if isinstance(value, polarlib.PolarResult):
        return [value.unitary, value.hermitian]
    if dataclasses.is_dataclass(value):
        return arrays([x for x in vars(value).values() if not isinstance(x, bool | int | float)])
    if isinstance(value, list | tuple):
        return [x for v in value for x in arrays(v)]
    return [value]


# -- NumPy's settings ------------------------------------------------------------------------


def graded(x):
    return x * np.logspace(-200, 100, x.shape[-1])


def rank_one(x):
    return x[..., :1] * x[..., :1, :]


INPUTS = {
    "graded": graded,
    "graded in float32": lambda x: (x * np.logspace(-30, 25, x.shape[-1])).astype("float32"),
    "tiny": lambda x: x * 1e-300,
    "huge": lambda x: x * 1e300,
    "subnormal": lambda x: x * 1e-321,
    "rank one": rank_one,
    "zero": np.zeros_like,
    "float16": lambda x: (x * np.logspace(-4, 3, x.shape[-1])).astype("float16"),
}


def outcome(call):
    """Return the exact result of a call, or its exception; NumPy's warnings raise errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", polarlib.ConvergenceWarning)
        try:
            return verbs.bits(call())
        except Exception as error:
            return verbs.bits(error)


@pytest.mark.thinned(4)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("mode", ["raise", "warn"])
def test_errors_of_numpy_are_not_the_callers(kind, mode):
    """Every public function: the same results, and the same settings afterwards."""
    with np.errstate(all="ignore"):
        calls = verbs.on_arrays(INPUTS[kind], SIZE)
        if np.lib.NumpyVersion(scipy.__version__) < "1.17.0":
            # Older versions of ARPACK restart at random in the null space, each time elsewhere.
            del calls["top_singular.arpack"]
        wanted = {name: outcome(call) for name, call in calls.items()}
    with np.errstate(all=mode):
        before = np.geterr()
        for name, call in calls.items():
            assert outcome(call) == wanted[name], name
            assert np.geterr() == before, name


@pytest.mark.parametrize("kind", ["graded", "tiny", "huge", "subnormal"])
def test_errors_of_numpy_in_what_takes_numpy_alone(kind):
    with np.errstate(all="ignore"):
        a = INPUTS[kind](A)
    s = polarlib.schedule("jordan")
    wide = np.array([0.0, 5e-324, 1e-3, 1e300])
    with np.errstate(all="raise"):
        polarlib.measure(a, "jordan")
        polarlib.measure(a, "qdwh")
        testing.assert_unitary_factor(a, polar(a, method="svd").unitary, rtol=1e-6)
        for step in (updates.ema, updates.polyak, updates.nesterov):
            step(a, a, 0.9)
        updates.presgdw_step(a, a, np.abs(a), rate=0.1)
        norms.modular([norms.spectral(), norms.frobenius()]).sharp([a, a])
        s(wide)
        polarlib.design.zolotarev(4, 1e-10)(wide)
        polarlib.design.mean_error(s, np.logspace(-300, 0, 5))
        testing.graded(8, 1e-300)


def test_overflow_of_the_result_keeps_its_status():
    a = np.full((4, 4), np.finfo(float).max)
    with np.errstate(all="raise"), pytest.warns(polarlib.ConvergenceWarning, match="scale the in"):
        assert polar(a).status is polarlib.Status.OVERFLOW
    with np.errstate(all="raise"):
        assert norms.frobenius()(a) == np.inf


def test_a_warning_is_of_the_callers_line():
    """Not of the functions that hold NumPy's settings."""
    with pytest.warns(polarlib.ConvergenceWarning) as caught:
        polar(SQUARE, method="newton", rtol=1e-30)
    assert caught[0].filename == __file__


# -- devices ---------------------------------------------------------------------------------


@pytest.fixture
def strict():
    """array_api_strict without what graph libraries lack."""
    xp = library("array_api_strict").xp
    before = xp.get_array_api_strict_flags()
    xp.set_array_api_strict_flags(boolean_indexing=False, data_dependent_shapes=False)
    yield xp
    names = ("boolean_indexing", "data_dependent_shapes")
    xp.set_array_api_strict_flags(**{name: before[name] for name in names})


def place(xp, name):
    try:
        return xp.Device(name)
    except ValueError:
        pytest.skip(f"this array_api_strict has no device {name}")


DEVICES = ("device1", "no_float64", "no_x64")


@pytest.mark.thinned(6)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CALLS)
def test_arrays_stay_on_their_device(strict, device, dtype, name):
    if device != "device1" and dtype == "float64":
        dtype = "complex64"
        if name.startswith(("align", "generalized", "nearest_rotation")):
            pytest.skip("rotations are real")
    where = place(strict, device)

    def call(**on):
        made = functools.partial(strict.asarray, dtype=getattr(strict, dtype), **on)
        return verbs.on_arrays(made, SIZE)[name]()

    for got, wanted in zip(arrays(call(device=where)), arrays(call()), strict=True):
        assert got.device == where
        assert got.dtype == wanted.dtype
        got = np.asarray(got.to_device(wanted.device))
        # Sums are in single precision on some devices, in double on others.
        scale = float(np.max(np.abs(np.asarray(wanted)))) or 1.0
        np.testing.assert_allclose(got, np.asarray(wanted), atol=2e-3 * scale)


@pytest.mark.parametrize("device", DEVICES)
def test_other_entries_of_a_device(strict, device):
    where = place(strict, device)
    put = functools.partial(strict.asarray, device=where)
    a = put(A.astype("float32"))
    for x in (put([[1, 2], [3, 4]], dtype=strict.int32), put([[True, False], [True, True]])):
        u, h = polar(x)
        assert u.device == h.device == where
        assert u.dtype == (strict.float64 if device == "device1" else strict.float32)
    u, h = polar(a[:0, :])
    assert (u.shape, h.shape, h.device) == ((0, 4), (4, 4), where)
    assert polar_jvp(a[:0, :], a[:0, :])[1].device == where
    with pytest.raises(ValueError, match=r"a contains NaN .* first at index \(0, 0\)"):
        polar(a * np.nan)
    with pytest.warns(polarlib.ConvergenceWarning, match="orthogonality nan"):
        u, _ = polar(a * np.nan, check_finite=False)
    assert bool(strict.all(strict.isnan(u)))
    out = strict.empty_like(a)
    assert orthogonalize(a, out=out) is out
    trace = polarlib.measure(a, "jordan", precision="bfloat16", form="gram")
    assert np.isfinite(trace.singular_values).all()
    if device != "device1":
        with pytest.raises(ValueError, match=r"has no float64 on .*precision='float32'"):
            orthogonalize(a, precision="float64")


@pytest.mark.parametrize("fmt", ["bfloat16", "float16", "tf32", "float8_e4m3", "float8_e5m2"])
def test_simulated_formats_without_double_precision(strict, fmt):
    """By logarithms in single precision, which are wrong just below powers of two."""
    rng = np.random.default_rng(1)
    near = 2.0 ** rng.integers(-126, 120, 2000)
    near *= 1 + rng.choice([0, -(2**-24), 2**-23, 2**-9, -(2**-9), 2**-8], near.shape)
    x = np.concatenate([near, rng.standard_normal(2000), [0, np.inf, np.nan]]).astype("float32")
    y = strict.asarray(x, device=place(strict, "no_float64"))
    p, own = FORMATS[fmt], ops.ops_of(y)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(
            own.to_host(round_to(y, p, own)), round_to(x, p, ops.ops_of(x))
        )


# -- kinds of arrays -------------------------------------------------------------------------


class Table:
    """What pandas, xarray and others are to NumPy."""

    def __init__(self, a):
        self.a = a

    def __array__(self, dtype=None, copy=None):
        return np.array(self.a, dtype=dtype)


class Quantity(np.ndarray):
    """An array with a unit."""

    unit = "m"


def matrix(a):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return np.asmatrix(a)


def mapped(a, folder):
    x = np.memmap(folder / "a", dtype=a.dtype, mode="w+", shape=a.shape)
    x[...] = a
    return x


def strided(a):
    wide = np.zeros((2 * a.shape[0], 3 * a.shape[1]))
    wide[::2, ::-3] = a
    return wide[::2, ::-3]


def read_only(a):
    a = a.copy()
    a.setflags(write=False)
    return a


KINDS = {
    "matrix": lambda a, _: matrix(a),
    "unit": lambda a, _: a.view(Quantity),
    "memmap": mapped,
    "table": lambda a, _: Table(a),
    "lists": lambda a, _: a.tolist(),
    "rows": lambda a, _: list(a),
    "memoryview": lambda a, _: memoryview(np.ascontiguousarray(a)),
    "byte order": lambda a, _: a.astype(">f8"),
    "read-only": lambda a, _: read_only(a),
    "Fortran": lambda a, _: np.asfortranarray(a),
    "backwards": lambda a, _: a[::-1, ::-1].copy()[::-1, ::-1],
    "strided": lambda a, _: strided(a),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_arrays(kind, tmp_path):
    """The answer of a plain array, as a plain array, and the argument as it was."""
    for name, f in ONE.items():
        a = DEFINITE if name in ("sqrtm_psd", "inverse_root", "nearest_rotation") else A
        x = KINDS[kind](a, tmp_path)
        for got, wanted in zip(arrays(f(x)), arrays(f(a)), strict=True):
            assert type(got) in (np.ndarray, np.float64), name
            np.testing.assert_allclose(got, wanted, atol=1e-11, err_msg=name)
        np.testing.assert_array_equal(np.asarray(x), a)


def test_matrices_that_share_memory_with_themselves():
    rows = np.broadcast_to(A[:1], (5, 4))  # strides 0
    windows = np.lib.stride_tricks.sliding_window_view(np.arange(1.0, 9.0) ** 2, 4)  # overlapping
    for x in (rows, windows, np.broadcast_to(A, (3, 6, 4))):
        for f in (lambda a: tuple(polar(a)), orthogonalize, norms.nuclear().lmo):
            for got, wanted in zip(arrays(f(x)), arrays(f(x.copy())), strict=True):
                np.testing.assert_allclose(got, wanted, atol=1e-12)


def test_steps_of_subclasses_give_plain_arrays():
    x = A.view(Quantity)
    for got in (*updates.lion(x, x, 0.9, 0.99), updates.presgdw_step(x, x, np.abs(x), rate=0.1)):
        assert type(got) is np.ndarray
    np.testing.assert_allclose(
        updates.presgdw_step(x, x, np.abs(x), rate=0.1), A - 0.1 * np.sign(A)
    )
    with pytest.raises(TypeError, match=r"g is a masked array .*g\.filled"):
        updates.polyak(A, np.ma.array(A), 0.9)
    with pytest.raises(
        TypeError, match=r"must be an array of a supported library, got .* \(matrix\)$"
    ):
        updates.polyak(matrix(A), A, 0.9)


class Foreign:
    """An array that NumPy cannot read."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("on another device")


RECORD = np.zeros((2, 2), dtype=[("x", float)])
REFUSED = {
    "csr_array": (
        scipy.sparse.csr_array(A),
        TypeError,
        r"a is sparse \(csr_array\).*a\.toarray\(\)",
    ),
    "coo_matrix": (scipy.sparse.coo_matrix(A), TypeError, r"sparse \(coo_matrix\).*a\.toarray\(\)"),
    "masked": (np.ma.array(A, mask=A > 0), TypeError, r"a is a masked array .*a\.filled"),
    "no mask": (np.ma.array(A), TypeError, r"a\.data if no entry is masked"),
    "longdouble": (A.astype(np.longdouble), TypeError, "does not compute with; convert it"),
    "clongdouble": (A.astype(np.clongdouble), TypeError, "does not compute with; convert it"),
    "objects": (A.astype(object), TypeError, "dtype object"),
    "dates": (np.zeros((2, 2), "M8[s]"), TypeError, "dtype datetime64"),
    "texts": (np.array([["a", "b"]]), TypeError, "dtype str"),
    "records": (RECORD, TypeError, "dtype void"),
    "ragged": ([[1.0, 2.0], [3.0]], ValueError, "not a rectangular array"),
    "foreign": (Foreign(), ValueError, "not a rectangular array of numbers: on another device"),
    "number": (1.5, ValueError, r"must be a matrix .*shape \(\)"),
    "vector": (memoryview(np.ones(3)), ValueError, r"reshape a vector with a\[:, None\]"),
    "bytes": (b"ab", TypeError, "must be an array of numbers, got dtype bytes"),
    "None": (None, TypeError, "must be an array of numbers, got dtype object: None"),
    "many": (["x" * 1000] * 1000, TypeError, "^.{1,300}$"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_kinds(kind):
    given, error, message = REFUSED[kind]
    if kind.endswith("longdouble") and np.finfo(np.longdouble).nmant == 52:
        pytest.skip("long double is double here")
    for f in (polar, polarlib.nearest_orthogonal, polarlib.sqrtm_psd):
        with pytest.raises(error, match=message):
            f(given)
    with pytest.raises(
        error, match=message.replace("a is", "g is").replace(r"a\.", r"g\.").replace(r"a\[", r"g\[")
    ):
        orthogonalize(given)


def test_blocks_of_dask_that_are_no_arrays():
    da = library("dask").xp
    masked = da.ma.masked_array(da.from_array(A, chunks=3), mask=A > 0)
    with pytest.raises(
        TypeError, match=r"a has blocks that are a masked array .*map_blocks\(numpy"
    ):
        polar(masked)
    np.testing.assert_allclose(
        np.asarray(polar(masked.map_blocks(np.ma.filled, fill_value=0.0)).unitary),
        polar(np.where(A > 0, 0.0, A)).unitary,
        atol=1e-12,
    )
    sparse = da.from_array(A, chunks=6).map_blocks(scipy.sparse.csr_array)
    with pytest.raises(TypeError, match=r"a has blocks that are sparse .*block\.toarray\(\)"):
        polar(sparse)


# -- shapes whose result does not fit --------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["numpy", "array_api_strict", *(pytest.param(x, marks=SLOW) for x in ("torch", "jax"))]
)
def test_a_hermitian_factor_larger_than_memory(name, monkeypatch):
    monkeypatch.setattr(functions, "physical_memory", lambda: 1e6)
    lib = library(name)
    for shape, side, other in (((2, 400), "right", "left"), ((400, 2), "left", "right")):
        a = lib.asarray(np.ones(shape))
        with pytest.raises(MemoryError, match=f"side='{other}'.*2 x 2.*nearest_orthogonal"):
            polar(a, side)
        assert polar(a, other, rtol=1e-6).hermitian.shape == (2, 2)
    with pytest.raises(MemoryError, match=r"\(350, 20, 20\)"):  # it counts stacks as well
        polar(lib.asarray(np.ones((350, 2, 20))))


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("not enough memory"), ValueError("RESOURCE_EXHAUSTED: of memory")],
)
def test_an_allocation_that_fails(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(stages, "evidence", fail)
    with pytest.raises(MemoryError, match=r"factor of shape \(6, 6\).*side='right'"):
        polar(A, "left", method="qdwh")
    with pytest.raises(type(error)):  # the smaller factor: no side would help
        polar(A, method="qdwh")


# -- several arrays --------------------------------------------------------------------------

PAIRS = {
    "procrustes": lambda a, b: polarlib.procrustes(a, b),
    "inverse_root": lambda a, b: polarlib.inverse_root(a, 2, start=b),
    "polar_jvp": lambda a, b: polar_jvp(a, b),
    "power_step": lambda a, b: power_step(a, b),
    "duality_gap": lambda a, b: norms.duality_gap(norms.spectral(), a, b),
    "ema": lambda a, b: updates.ema(a, b, 0.9),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("other", ["array_api_strict", "torch", "jax"])
def test_arrays_of_two_libraries(name, other):
    b = library(other).asarray(DEFINITE)
    message = f"must be arrays of one library, got (numpy and {other}|{other} and numpy); convert"
    for pair in ((DEFINITE, b), (b, DEFINITE)):
        with pytest.raises(TypeError, match=message):
            PAIRS[name](*pair)


@pytest.mark.parametrize("name", PAIRS)
def test_arrays_on_two_devices(strict, name):
    a, b = (strict.asarray(DEFINITE, device=place(strict, d)) for d in ("CPU_DEVICE", "device1"))
    with pytest.raises(ValueError, match=r"on one device, got .*CPU.* and .*device1.*; move"):
        PAIRS[name](a, b)


@pytest.mark.thinned(5)
@pytest.mark.parametrize("name", ["numpy", "array_api_strict", "torch", "jax", "dask"])
@pytest.mark.parametrize(
    ("first", "second", "common"),
    [
        ("float32", "float64", "float64"),
        ("float32", "complex64", "complex64"),
        ("float64", "complex64", "complex128"),
        ("float16", "float32", "float32"),
        ("float16", "bfloat16", "float32"),
    ],
)
def test_arrays_of_two_dtypes(name, first, second, common):
    """Promoted as the library promotes."""
    lib = library(name)
    if not (lib.has(first) and lib.has(second)):
        pytest.skip("the library lacks a dtype")
    for pair in ((first, second), (second, first)):
        q = polarlib.procrustes(*(lib.asarray(A, dtype) for dtype in pair))
        assert lib.dtype_name(q) == common
        np.testing.assert_allclose(lib.to_numpy(q), np.eye(4), atol=2e-2)


# -- numbers of steps ------------------------------------------------------------------------


@pytest.mark.thinned(3)
@pytest.mark.parametrize("fmt", FORMATS)
def test_default_schedules_of_many_steps(fmt):
    """Longer than what is stored: made at once, and of no less reach and accuracy."""
    unit = FORMATS[fmt].unit_roundoff
    stored = default_schedule(fmt, steps=16)
    reach = stored.lower
    for k in (17, 24, 36, 64):
        s = default_schedule(fmt, steps=k)
        assert len(s) == k
        assert k > 24 or s.error() <= 1e-20  # of more it takes long
        assert s.lower <= reach
        reach = s.lower
        x = np.geomspace(s.lower, 1 + unit, 2000)
        np.testing.assert_allclose(s(x), 1, atol=4 * 2.0**-53)
    assert reach <= unit / 256 * 1.001


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_many_steps_converge_in_their_format(dtype):
    a = testing.with_singular_values(np.geomspace(1, 1e-6, 12), 20, 12, dtype=dtype)
    eps = np.finfo(dtype).eps
    for form in ("plain", "gram"):
        q = orthogonalize(a, steps=64, form=form).astype("float64")
        assert np.linalg.norm(q.T @ q - np.eye(12), 2) <= 40 * eps


@pytest.mark.parametrize("steps", [65, 1000, 10**9])
def test_too_many_steps(steps):
    message = f"steps must be at most 64 .* got {steps}; leave steps out"
    with pytest.raises(ValueError, match=message):
        orthogonalize(A, steps=steps)
    with pytest.raises(ValueError, match=message):
        default_schedule("float16", steps=steps)
    with pytest.raises(ValueError, match=f"matmuls must be at most 48 .* got {steps}; give steps"):
        default_schedule("float16", matmuls=steps)


# -- enter and leave ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (2, 3, 5), (2, 4, 4)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "complex128", ">f8"])
@pytest.mark.parametrize("size", [1.0, 1e-3, 6e4])
def test_leave_undoes_enter(shape, dtype, size):
    rng = np.random.default_rng(1)
    a = (rng.uniform(0.5, 1, shape) * size).astype(dtype)
    for options in ({}, {"tall": True}, {"comfortable": True}, {"tall": True, "double": True}):
        entered = enter(a, **options)
        x = entered.x
        assert x.shape[-2] >= x.shape[-1] or not entered.wide
        assert x.dtype.itemsize >= 4
        assert x.dtype.isnative
        assert 0.5 <= np.max(np.abs(x)) < 3 or options.get("comfortable")
        back = entered.leave(x, entered.scale)
        assert back.dtype == a.dtype
        assert np.array_equal(back, a)


def test_matrices_that_are_not_finite_are_masked():
    a = np.stack([A, A, 0 * A])
    a[1, 2, 3] = np.nan
    entered = enter(a, look="never", mask=True, tall=True)
    assert np.all(entered.x[1] == 0)
    back = entered.leave(entered.x, entered.scale)
    assert np.isnan(back[1]).all()
    assert np.array_equal(back[::2], a[::2])
    with pytest.raises(ValueError, match=r"^a contains NaN .* \(1, 2, 3\); remove them first$"):
        enter(a, mask=True)


@pytest.mark.parametrize("options", [{}, {"comfortable": True}, {"mask": True, "tall": True}])
@pytest.mark.parametrize("factor", [1.0, 1e-20])
def test_enter_reads_one_number(monkeypatch, options, factor):
    strict = pytest.importorskip("array_api_strict")
    read = []
    item = ops.Ops.item
    monkeypatch.setattr(ops.Ops, "item", lambda self, x: read.append(x.shape) or item(self, x))
    stack = strict.asarray(np.stack([A, 3 * A]) * factor)
    enter(stack, **options)
    assert len(read) == 1
    enter(stack, look="if free", **options)  # which it is not, unless the scale must be known
    assert len(read) == 1 + ("comfortable" in options)
