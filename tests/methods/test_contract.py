"""One table, method -> properties, drives the tests of everything that polar() promises."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from conftest import DTYPES, LIBRARIES, Library, library, ml_dtype, with_dask

import polarlib
from polarlib import (
    ConvergenceWarning,
    ScheduleWarning,
    Status,
    _methods,
    orthogonalize,
    polar,
)
from polarlib._methods import METHODS
from polarlib._stages import stages
from polarlib.arrays.ops import ops_of
from polarlib.engine.evidence import PART
from polarlib.testing import (
    assert_polar,
    assert_unitary_factor,
    orthonormal,
    with_singular_values,
    zoo,
)

# -- the table -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Properties:
    """What a method promises."""

    # "exact", "orthonormal" (not the polar factor), "fixed" (a schedule) or "rational" (one too).
    kind: str = "exact"
    # Backward error and orthogonality in machine epsilons at small n, whatever the condition.
    epsilons: float = 50.0
    # Takes matrices with at most so many columns (rows, if these are fewer).
    columns: int | None = None

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether the method is for matrices of a shape."""
        return self.columns is None or min(shape[-2:]) <= self.columns


# LU inverses and Newton-Schulz steps only just meet the tolerance of polar().
EPSILONS = {"newton": 120.0, "newton_schulz": 120.0, "halley": 100.0}
TABLE: dict[str, Properties] = {
    name: Properties(
        kind="exact" if method.kind == "polar" else method.kind,
        epsilons=EPSILONS.get(name, Properties.epsilons),
        columns=method.columns,
    )
    for name, method in METHODS.items()
}
TABLE |= {name: Properties(kind="rational") for name in _methods.FIXED}
TABLE |= {name: Properties(kind="fixed") for name in polarlib.schedules(target="polar")}

EXACT = [name for name, p in TABLE.items() if p.kind == "exact" and p.columns is None]
FIXED = [name for name, p in TABLE.items() if p.kind == "fixed"]
SHAPES = [(5, 5), (7, 4), (4, 7), (1, 1), (1, 4), (4, 1), (2, 3, 5, 3), (2, 3, 3, 5)]
EMPTY = [(0, 3), (3, 0), (0, 0), (0, 5, 3), (2, 0, 3), (2, 3, 0)]
SIDES = ("right", "left")
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7} | {d: float(np.finfo(d).eps) for d in DTYPES}


def matrix(shape: tuple[int, ...], dtype: str = "float64", seed: int = 0) -> np.ndarray:
    """Gaussian, in the widest type of the dtype's kind, but representable in it."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    if dtype.startswith("complex"):
        return (a + 1j * rng.standard_normal(shape)).astype(dtype)
    return a.astype(ml_dtype(dtype)).astype("float64" if dtype == "float64" else "float32")


# Sets differ in data only: every one on NumPy, and one of each degree and normalisation elsewhere.
EVERYWHERE = ("polar_express", "cubic5", "turbo_muon", "inverse_sqrt_nv")


def libraries_for(method: str) -> list[str]:
    """Libraries on which a method is checked; JAX compiles for every shape, and takes one set."""
    if TABLE[method].kind != "fixed":
        return list(LIBRARIES)
    sets = {"numpy": FIXED, "jax": EVERYWHERE[:1]}
    return [name for name in LIBRARIES if method in sets.get(name, EVERYWHERE)]


PAIRS = [(name, method) for method in TABLE for name in libraries_for(method)]


# -- the check functions ---------------------------------------------------------------------


def fingerprint(lib: Library, x: Any) -> bytes:
    """Everything that an input shows: bytes of its values."""
    return lib.to_numpy(x).tobytes() + str(tuple(x.shape)).encode() + lib.dtype_name(x).encode()


def check_astype_like(lib: Library, x: Any, reference: Any, shape: tuple[int, ...]) -> None:
    """Type, dtype, device and shape."""
    assert type(x) is type(reference)
    assert lib.dtype_name(x) == lib.dtype_name(reference)
    assert lib.device(x) == lib.device(reference)
    assert tuple(x.shape) == shape


def scheduled_factor(a: np.ndarray, schedule: polarlib.Schedule) -> np.ndarray:
    """U diag(s(sigma)) V^H in double precision, from the definition."""
    a = a.astype(np.complex128 if a.dtype.kind == "c" else np.float64)
    if a.shape[-2] < a.shape[-1]:
        u = scheduled_factor(np.conj(np.swapaxes(a, -1, -2)), schedule)
        return np.conj(np.swapaxes(u, -1, -2))
    if schedule.normalisation == "aol":
        gram = np.conj(np.swapaxes(a, -1, -2)) @ a
        a = a / np.sqrt(np.abs(gram).sum(axis=-2, keepdims=True))
    else:  # the Frobenius norm, or the bound of the spectral norm by 32nd powers
        power = {"frobenius": 2, "spectral": 32}[schedule.normalisation]
        values = np.linalg.svd(a, compute_uv=False)[..., None, None, :]
        a = a / np.sum(values**power, axis=-1) ** (1 / power)
    u, s, vh = np.linalg.svd(a / schedule.input_safety, full_matrices=False)
    for step in schedule.steps:
        s = sum(c * s ** (2 * i + 1) for i, c in enumerate(step))
    return (u * s[..., None, :]) @ vh


def check_polar(lib: Library, method: str, a: Any, side: str = "right") -> polarlib.PolarResult:
    """Everything the contract says of ``polar(a, method=method, side=side)``, A of full rank."""
    properties = TABLE[method]
    before = fingerprint(lib, a)
    result = polar(a, method=method, side=side)
    assert fingerprint(lib, a) == before, "the input was modified"
    u, h = result
    assert u is result.unitary
    assert h is result.hermitian
    batch, (m, n) = tuple(a.shape[:-2]), a.shape[-2:]
    k = n if side == "right" else m
    check_astype_like(lib, u, a, (*batch, m, n))
    check_astype_like(lib, h, a, (*batch, k, k))
    host = lib.to_numpy(a)
    eps = EPS[lib.dtype_name(a)]
    half = eps > 1e-3
    p = lib.to_numpy(h)
    np.testing.assert_array_equal(p, np.conj(np.swapaxes(p, -1, -2)))
    if properties.kind != "fixed":  # a schedule may happen to converge, on 1 x 1 for example
        assert result.converged == (properties.kind == "exact")
    if properties.kind == "exact":
        assert result.status is Status.CONVERGED
        # A half precision result is a float32 one rounded once: half an epsilon an entry.
        rtol = 3 * eps if half else properties.epsilons * eps
        assert_polar(a, u, h, side=side, rtol=rtol)
        assert_unitary_factor(a, u, rtol=rtol)
        # The evidence is of what is returned.
        assert np.all(np.asarray(result.orthogonality) <= rtol)
        assert np.all(np.asarray(result.backward_error) <= rtol)
    elif properties.kind == "orthonormal":
        assert result.status is Status.NOT_POLAR
        tall = lib.to_numpy(u) if m >= n else np.conj(np.swapaxes(lib.to_numpy(u), -1, -2))
        gram = np.conj(np.swapaxes(tall, -1, -2)) @ tall
        np.testing.assert_allclose(
            gram,
            np.broadcast_to(np.eye(min(m, n)), gram.shape),
            atol=(3 * eps if half else 50 * eps),
        )
    elif properties.kind == "rational":
        assert result.status is Status.FIXED_SCHEDULE
        # Twice the error of the two steps, 0.019, and its square.
        assert np.all(np.asarray(result.orthogonality) <= 0.04 + 2 * eps)
        assert np.all(np.asarray(result.backward_error) <= 0.04 + 2 * eps)
    else:
        expected = scheduled_factor(host, polarlib.schedule(method))
        # Errors of the normalised input grow by the slope at 0, or at 1 where a set has no safety
        # factor (1 x n matrices are there): up to 7.5e4.
        schedule = polarlib.schedule(method)
        growth = 50 * schedule.slope if schedule.divergence_limit > 1.001 else 4e5
        atol = growth * float(np.finfo("f4").eps) + eps if half else growth * eps
        np.testing.assert_allclose(lib.to_numpy(u), expected, atol=atol)
    assert np.shape(result.orthogonality) == batch
    assert np.shape(result.rank) == batch
    assert np.all(np.asarray(result.rank) == min(m, n))
    json.dumps(result.to_dict(), allow_nan=False)
    assert "PolarResult" in repr(result)
    assert "<table>" in result._repr_html_()
    return result


def check_method(method: str, x: np.ndarray) -> None:
    """What polar() relies on in a method: same type, dtype and shape; x unchanged; orthonormal."""
    ops = ops_of(x)
    before = x.tobytes()
    tol = 100 * float(np.finfo(x.dtype).eps)
    u, run = METHODS[method](x, ops, tol=tol)
    assert x.tobytes() == before, "the method modified its input"
    assert type(u) is type(x)
    assert u.dtype == x.dtype
    assert u.shape == x.shape
    assert run.iterations >= 0
    assert run.matmuls >= 0
    if TABLE[method].kind == "exact":
        assert run.converged
        assert_unitary_factor(x, u, rtol=TABLE[method].epsilons * float(np.finfo(x.dtype).eps))


# -- the contract ----------------------------------------------------------------------------


def test_table_is_complete():
    assert set(TABLE) == set(polarlib.methods())
    assert all(text for text in polarlib.methods().values())


@pytest.mark.thinned(4)  # one dtype of each method on each library
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_polar(name, method, dtype):
    lib = library(name)
    jax_shapes = [(5, 5), (7, 4), (4, 7), (1, 1), (2, 3, 5, 3)]
    for i, shape in enumerate(jax_shapes if name == "jax" else SHAPES):
        if not TABLE[method].takes(shape):
            continue
        a = lib.asarray(matrix(shape, dtype, seed=i))
        for side in SIDES[:1] if name == "jax" and i > 2 else SIDES:
            check_polar(lib, method, a, side)


@pytest.mark.parametrize("method", ["svd", "qr", "qdwh", "hybrid", "halley"])
def test_polar_on_dask(method):
    """By the method that was asked for: no factorisation is lost."""
    lib = library("dask")
    for shape, dtype in (((6, 6), "float64"), ((2, 4, 7), "complex64")):
        if TABLE[method].takes(shape):
            result = check_polar(lib, method, lib.asarray(matrix(shape, dtype)))
            assert "svd" not in result.method.removeprefix(method)


@pytest.mark.thinned(6)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "method", ["svd", "qdwh", "newton", "newton_schulz", "qr", "polar_express"]
)
def test_polar_in_half_precision(lib, method, dtype):
    if not lib.has(dtype):
        pytest.skip(f"{lib.name} has no {dtype}")
    for i, shape in enumerate([(5, 5), (7, 4), (4, 7), (2, 5, 3)]):
        check_polar(lib, method, lib.asarray(matrix(shape, dtype, seed=i), dtype))


@pytest.mark.parametrize("shape", EMPTY)
@pytest.mark.parametrize("method", ["auto", *METHODS, "polar_express"])
def test_empty(lib, method, shape):
    if lib.name == "jax" and method not in ("auto", "polar_express"):
        pytest.skip("empty matrices never reach a method")
    for dtype in ("float32", "complex128"):
        a = lib.asarray(np.zeros(shape), dtype)
        for side in SIDES:
            result = polar(a, method=method, side=side)
            k = shape[-1] if side == "right" else shape[-2]
            check_astype_like(lib, result.unitary, a, shape)
            check_astype_like(lib, result.hermitian, a, (*shape[:-2], k, k))
            assert not np.any(lib.to_numpy(result.hermitian))
            assert result.converged
            json.dumps(result.to_dict(), allow_nan=False)
            repr(result)
        check_astype_like(lib, orthogonalize(a), a, shape)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_methods_themselves(method, dtype):
    for shape in [(5, 5), (7, 4), (1, 1), (4, 1), (2, 3, 5, 3)]:
        if not TABLE[method].takes(shape):
            continue
        x = matrix(shape, dtype)
        check_method(method, x / np.abs(x).max())
        x.setflags(write=False)
        check_method(method, x)


# -- a wrong method must not pass ------------------------------------------------------------


def _right(x, ops, tol, callback=None):
    u, _, vh = np.linalg.svd(x, full_matrices=False)
    return u @ vh, METHODS["svd"](x, ops, tol=tol)[1]


def _qr_factor(x, ops, *, tol, callback=None):
    return np.linalg.qr(x)[0], _right(x, ops, tol)[1]


def _negative(x, ops, *, tol, callback=None):
    u, run = _right(x, ops, tol)
    return -u, run


def _overwrites(x, ops, *, tol, callback=None):
    u, run = _right(x, ops, tol)
    x *= 2
    return u, run


def _double(x, ops, *, tol, callback=None):
    u, run = _right(x.astype("f8"), ops, tol)
    return u, run


def _adjoint_factor(x, ops, *, tol, callback=None):
    u, run = _right(x, ops, tol)
    return (np.conj(np.swapaxes(u, -1, -2)) if u.shape[-1] == u.shape[-2] else u), run


def _nearly(x, ops, *, tol, callback=None):
    u, run = _right(x, ops, tol)
    return u * (1 + 1e-5), run


WRONG = [_qr_factor, _negative, _overwrites, _adjoint_factor, _nearly]


@pytest.mark.parametrize("bad", WRONG)
def test_wrong_method_fails_the_contract(monkeypatch, bad):
    """The checks above find it out by themselves: polar is made to believe every method."""
    monkeypatch.setitem(METHODS, "newton", bad)
    monkeypatch.setattr(stages, "_status_from_errors", lambda *args: (Status.CONVERGED, True))
    assert polar(matrix((5, 5), "float32"), method="newton").status is Status.CONVERGED
    with pytest.raises(AssertionError):
        check_polar(Library("numpy"), "newton", matrix((5, 5), "float32"))
    with pytest.raises(AssertionError):
        check_method("newton", matrix((5, 5), "float32"))


@pytest.mark.parametrize("bad", [f for f in WRONG if f is not _overwrites])
def test_wrong_method_is_followed_by_the_svd(monkeypatch, bad):
    """And so does polar, by its evidence."""
    monkeypatch.setitem(METHODS, "newton", bad)
    a = matrix((5, 5), "float32")
    result = polar(a, method="newton")
    assert result.status is Status.FELL_BACK
    assert_polar(a, *result, rtol=50 * EPS["float32"])


def test_wrong_dtype_fails_the_contract(monkeypatch):
    monkeypatch.setitem(METHODS, "newton", _double)
    with pytest.raises(AssertionError):
        check_method("newton", matrix((5, 5), "float32"))


def test_right_method_passes_the_contract(monkeypatch):
    def right(x, ops, *, tol, callback=None):
        return _right(x, ops, tol)

    monkeypatch.setitem(METHODS, "newton", right)
    check_polar(Library("numpy"), "newton", matrix((5, 5), "float64"))
    check_method("newton", matrix((5, 5), "float64"))


def test_a_failing_method_is_followed_by_the_svd(monkeypatch):
    def nan(x, ops, *, tol, callback=None):
        return x * math.nan, METHODS["svd"](x, ops, tol=tol)[1]

    monkeypatch.setitem(METHODS, "newton", nan)
    a = matrix((6, 4))
    result = polar(a, method="newton")
    assert result.status is Status.FELL_BACK
    assert result.method == "newton, then svd"
    assert_polar(a, *result)


# -- inputs are never modified, whatever their memory looks like -----------------------------

LAYOUTS = {
    "read-only": lambda a: _readonly(a.copy()),
    "fortran": np.asfortranarray,
    "negative strides": lambda a: a[::-1, ::-1],
    "sliced": lambda a: np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3],
    "transposed": lambda a: a.T.copy().T,
    "broadcast": lambda a: np.broadcast_to(a, (3, *a.shape)),
    "broadcast row": lambda a: np.broadcast_to(a[:1], a.shape),
    "big endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "unaligned": lambda a: _unaligned(a),
}


def _readonly(a):
    a.setflags(write=False)
    return a


def _unaligned(a):
    raw = np.empty(a.nbytes + 1, np.uint8)[1:]
    b = raw.view(a.dtype).reshape(a.shape)
    b[...] = a
    return b


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_memory_layouts(layout, dtype):
    for shape in [(6, 4), (4, 6), (5, 5)]:
        a = LAYOUTS[layout](matrix(shape, dtype) / 10)  # divided: one normalisation is none
        plain = np.array(a, dtype=dtype)
        before = a.tobytes()
        for method in [*METHODS, "polar_express"]:
            if not TABLE[method].takes(shape):
                continue
            if layout == "broadcast row" and method in ("newton", "newton_schulz"):
                continue  # rank one: another test
            result = polar(a, method=method)
            assert a.tobytes() == before
            expected = polar(plain, method=method)
            assert result.unitary.dtype == a.dtype
            tol = 2e-5 if dtype == "complex64" else 1e-12
            if layout != "broadcast row":
                np.testing.assert_allclose(result.unitary, expected.unitary, atol=tol)
                np.testing.assert_allclose(result.hermitian, expected.hermitian, atol=tol)
        for form in ("plain", "gram"):
            for precision in (None, "bfloat16"):
                q = orthogonalize(a, form=form, precision=precision)
                assert a.tobytes() == before
                assert q.dtype == a.dtype
                expected = orthogonalize(plain, form=form, precision=precision)
                np.testing.assert_allclose(q, expected, atol=1e-2 if precision else tol)
        for normalisation in ("none", "spectral", "schatten4", "frobenius"):
            orthogonalize(a, normalisation=normalisation)
            assert a.tobytes() == before


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "uint64", "bool"])
def test_integers_become_float64(lib, dtype):
    a = np.array([[3, 0], [4, 5], [1, 1]]).astype(dtype)
    x = lib.asarray(a)
    before = fingerprint(lib, x)
    u, h = polar(x)
    assert fingerprint(lib, x) == before
    assert lib.dtype_name(u) == lib.dtype_name(h) == "float64"
    assert_polar(a.astype("f8"), u, h)
    if lib.name == "numpy":
        expected = scipy.linalg.polar(a.astype("f8"))
        np.testing.assert_allclose(u, expected[0], atol=1e-14)
        assert orthogonalize(a).dtype == np.float64


def test_array_likes():
    u, h = polar([[3, 0], [4, 5]])
    assert_polar([[3.0, 0.0], [4.0, 5.0]], u, h)
    assert u.dtype == np.float64
    u, h = polar(((1j, 2.0), (0, 1)))
    assert u.dtype == np.complex128
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        u, _ = polar(np.matrix([[3.0, 0.0], [4.0, 5.0]]))
    assert type(u) is np.ndarray


# -- SciPy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", [*DTYPES, "int64"])
@pytest.mark.parametrize("shape", [(5, 5), (7, 4), (4, 7), (1, 1), (1, 4), (4, 1)])
def test_scipy_parity(shape, dtype, side):
    a = (10 * matrix(shape, "float64" if dtype == "int64" else dtype)).astype(dtype)
    u, p = scipy.linalg.polar(a, side=side)
    for method in ("auto", *EXACT):
        v, h = polar(a, side=side, method=method)
        assert v.dtype == u.dtype
        assert h.dtype == p.dtype
        assert v.shape == u.shape
        assert h.shape == p.shape
        tol = 1e-4 if u.dtype.itemsize < 8 or u.dtype == "complex64" else 1e-11
        np.testing.assert_allclose(v, u, atol=tol)
        np.testing.assert_allclose(h, p, atol=10 * tol)


def test_side_by_position():
    a = matrix((4, 6))
    for side in SIDES:
        u, h = polar(a, side)
        np.testing.assert_array_equal(h, polar(a, side=side).hermitian)
        np.testing.assert_allclose(h, scipy.linalg.polar(a, side)[1], atol=1e-13)
        np.testing.assert_allclose(u, scipy.linalg.polar(a, side)[0], atol=1e-13)


@pytest.mark.parametrize("a", [np.zeros((1, 1)), np.zeros((3, 2)), np.zeros((2, 3))])
def test_scipy_parity_of_zero(a):
    for side in SIDES:
        u, p = scipy.linalg.polar(a, side=side)
        v, h = polar(a, side=side)
        np.testing.assert_array_equal(v, u)
        np.testing.assert_array_equal(h, p)
    assert polar([[0.0]]).unitary.tolist() == [[1.0]]


# -- the zoo ---------------------------------------------------------------------------------

ZOO = dict(zoo(8))


@pytest.mark.thinned(3)
@pytest.mark.parametrize("animal", ZOO)
@pytest.mark.parametrize("method", EXACT)
def test_zoo(method, animal):
    a = ZOO[animal]
    rtol = TABLE[method].epsilons * EPS["float64"]
    for side in SIDES:
        result = polar(a, method=method, side=side)
        assert result.converged, result
        assert_polar(a, *result, side=side, rtol=rtol)
        assert_unitary_factor(a, result.unitary, rtol=rtol)
    s = np.linalg.svd(a / np.abs(a).max(), compute_uv=False) if a.any() else np.zeros(1)
    sharp = s > 100 * max(a.shape) * EPS["float64"] * s[0]
    if np.all(sharp == (s > 0.01 * max(a.shape) * EPS["float64"] * s[0])):
        assert result.rank == (sharp.sum() if a.any() else 0)
    part = polar(a, method=method, completion=False)
    assert_polar(a, *part, rtol=rtol, completion=False)
    assert_unitary_factor(a, part.unitary, rtol=rtol, completion=False)
    if result.rank < min(a.shape):
        trace = np.linalg.norm(part.unitary) ** 2
        assert trace == pytest.approx(result.rank, abs=1e-10)


@pytest.mark.parametrize("method", EXACT)
def test_zoo_in_single_precision(method):
    for animal, a in zoo(8, dtype="float32"):
        result = polar(a, method=method)
        assert result.converged, animal
        rtol = TABLE[method].epsilons * EPS["float32"]
        assert_polar(a, *result, rtol=rtol)
        assert_unitary_factor(a, result.unitary, rtol=rtol)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exactly_singular_products_of_small_integers(method, dtype):
    # Some factorisations give exact zeros and others rounding errors: both must be detected.
    rng = np.random.default_rng(0)
    for n in (8, 50, 100):
        for rank in (1, 5, n - 1):
            for shape in ((n, n), (2 * n, n), (n, 2 * n)):
                left = rng.integers(-3, 4, (shape[0], rank))
                a = (left @ rng.integers(-3, 4, (rank, shape[1]))).astype(dtype)
                result = polar(a, method=method)
                assert result.converged
                assert result.rank == rank
                rtol = max(100, *shape) * EPS[dtype]
                assert_polar(a, *result, rtol=rtol)


@pytest.mark.parametrize("method", EXACT)
def test_rank_one_of_ones(method):
    for n in range(1, 21):
        a = np.outer(np.arange(1.0, n + 1), np.ones(n))
        result = polar(a, method=method)
        assert_polar(a, *result, rtol=120 * EPS["float64"])


# -- accuracy --------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e8, 1e15])
@pytest.mark.parametrize("method", ["svd", "qdwh"])
def test_accuracy_in_double_precision(method, condition):
    for shape in [(100, 100), (200, 100), (100, 200)]:
        for dtype in ("float64", "complex128"):
            s = np.geomspace(1, 1 / condition, 100)
            a = with_singular_values(s, *shape, dtype=dtype)
            result = polar(a, method=method)
            assert result.backward_error < 1e-14
            assert result.orthogonality < 1e-14
            assert_polar(a, *result, rtol=1e-14)


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e8, 1e15])
# LAPACK's SVD in single precision is off by 5e-7 with OpenBLAS 0.3.31, and by 4e-6 with 0.3.34.
@pytest.mark.parametrize(("method", "limit"), [("svd", 1e-5), ("qdwh", 5e-7)])
def test_accuracy_in_single_precision(method, limit, condition):
    a = with_singular_values(np.geomspace(1, 1 / condition, 100), dtype="float32")
    result = polar(a, method=method)
    assert result.status is Status.CONVERGED
    assert result.backward_error < limit
    assert result.orthogonality < limit
    q = result.unitary.astype("f8")
    assert np.linalg.norm(q.T @ q - np.eye(100)) / 10 < limit
    assert np.linalg.norm(a - q @ result.hermitian.astype("f8")) / np.linalg.norm(a) < limit


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e8, 1e15])
@pytest.mark.parametrize("method", EXACT)
def test_figures_are_what_they_say(method, condition):
    a = with_singular_values(np.geomspace(1, 1 / condition, 40), 60)
    result = polar(a, method=method)
    q, h = result
    gram = q.T @ q - np.eye(40)
    # Differences of rounding errors: the same size, not the same digits.
    assert np.linalg.norm(gram) / math.sqrt(40) == pytest.approx(
        result.orthogonality, rel=0.5, abs=1e-15
    )
    backward = np.linalg.norm(a - q @ h) / np.linalg.norm(a)
    assert backward == pytest.approx(result.backward_error, rel=0.5, abs=1e-15)
    assert backward < 2e-14


def test_unitary_factor_against_multiple_precision():
    mpmath = pytest.importorskip("mpmath")
    a = with_singular_values(np.geomspace(1, 1e-3, 8), seed=3)
    with mpmath.workdps(40):
        u, _, v = mpmath.svd_r(mpmath.matrix(a.tolist()))
        exact = np.array((u * v).tolist(), dtype=float)
    for method in EXACT:
        np.testing.assert_allclose(polar(a, method=method).unitary, exact, atol=2e-12)


# -- rank, completion, fallback, statuses ----------------------------------------------------


def test_completion(lib):
    u, v = orthonormal(6, 3, seed=1), orthonormal(5, 3, seed=2)
    s = np.array([3.0, 2.0, 1.0])
    a = (u * s) @ v.T
    x = lib.asarray(a)
    for method in ("svd", "qdwh", "newton", "newton_schulz"):
        if lib.name == "jax" and method != "qdwh":
            continue
        full, part = polar(x, method=method), polar(x, method=method, completion=False)
        assert full.rank == part.rank == 3
        assert full.converged
        assert part.converged
        assert_polar(a, *full, rtol=120 * EPS["float64"])
        np.testing.assert_allclose(lib.to_numpy(part.unitary), u @ v.T, atol=1e-14)
        np.testing.assert_allclose(lib.to_numpy(part.hermitian), (v * s) @ v.T, atol=1e-13)
        np.testing.assert_allclose(lib.to_numpy(full.hermitian), (v * s) @ v.T, atol=1e-13)


@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (3, 5), (2, 4, 3)])
@pytest.mark.parametrize("method", EXACT)
def test_zero(method, shape):
    a = np.zeros(shape)
    full, part = polar(a, method=method), polar(a, method=method, completion=False)
    assert_polar(a, *full)
    assert np.all(np.asarray(full.rank) == 0)
    assert full.converged
    assert not part.unitary.any()
    assert not part.hermitian.any()
    assert np.all(np.asarray(full.backward_error) == 0)


@pytest.mark.parametrize("method", EXACT)
def test_batches_of_different_ranks_and_scales(method):
    stack = np.stack(
        [
            matrix((6, 4)),
            np.zeros((6, 4)),
            1e200 * matrix((6, 4), seed=1),
            1e-200 * matrix((6, 4), seed=2),
            np.outer(np.arange(6.0), np.arange(4.0)),
            with_singular_values([1, 1e-3, 1e-8, 1e-12], 6, 4),
        ]
    ).reshape(2, 3, 6, 4)
    result = polar(stack, method=method)
    assert_polar(stack, *result, rtol=120 * EPS["float64"])
    assert result.rank.tolist() == [[4, 0, 4], [4, 1, 4]]
    part = polar(stack, method=method, completion=False)
    assert_polar(stack, *part, rtol=120 * EPS["float64"], completion=False)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("form_h", [True, False])
def test_stacks_of_matrices_larger_than_a_part(count, form_h):
    """A part of a stack is one matrix at least, which must not be split again."""
    stack = np.stack([matrix((2 * PART // 100 + 1, 100), seed=i) for i in range(count)])
    assert stack[0].size > 2 * PART
    if form_h:
        assert_polar(stack, *polar(stack), rtol=120 * EPS["float64"])
        return
    u = polarlib.nearest_orthogonal(stack)
    for one, a in zip(u, stack, strict=True):
        np.testing.assert_allclose(one, polarlib.nearest_orthogonal(a), rtol=0, atol=1e-13)


@with_dask
@pytest.mark.parametrize("method", ["newton", "newton_schulz"])
def test_fallback(lib, method):
    if lib.name == "jax" and method == "newton_schulz":
        pytest.skip("slow: 120 steps, each read")
    a = np.diag([1.0, 0.0, 2.0])
    result = polar(lib.asarray(a), method=method)
    assert result.status is Status.FELL_BACK
    assert result.converged
    assert result.method == f"{method}, then svd"
    assert_polar(a, *result)


def test_statuses():
    a = matrix((5, 4))
    assert polar(a).status is Status.CONVERGED
    assert polar(a, method="qr").status is Status.NOT_POLAR
    assert polar(a, method="jordan").status is Status.FIXED_SCHEDULE
    assert polar(np.eye(3) / 1, method="newton_schulz_3").status is Status.FIXED_SCHEDULE
    assert polar(a, method=polarlib.schedule("polar_express", 12)).status is Status.CONVERGED
    assert all(len(status.value) > 10 for status in Status)


def test_tolerance_missed_warns_once_and_throw_raises():
    a = matrix((30, 30))
    with pytest.warns(ConvergenceWarning, match="tolerance 1.00e-18") as record:
        result = polar(a, rtol=1e-18)
    assert len(record) == 1
    assert result.status is Status.NOT_CONVERGED
    assert not result.converged
    assert_polar(a, *result)
    json.dumps(result.to_dict(), allow_nan=False)
    with pytest.raises(ConvergenceWarning, match=result.status.value[:20]):
        polar(a, rtol=1e-18, throw=True)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float64", 1e308), ("float32", 3e38), ("float16", 6e4), ("bfloat16", 3e38)],
)
def test_overflowing_hermitian_factor(lib, dtype, value):
    if not lib.has(dtype):
        pytest.skip(f"{lib.name} has no {dtype}")
    a = lib.asarray(np.full((100, 1), value), dtype)
    with pytest.warns(ConvergenceWarning, match="scale the input down"):
        result = polar(a)
    assert result.status is Status.OVERFLOW
    assert not result.converged
    u = lib.to_numpy(result.unitary).astype("f8")
    np.testing.assert_allclose(u, 0.1, rtol=20 * min(EPS[dtype], 1e-3))
    assert np.all(np.isinf(lib.to_numpy(result.hermitian)))
    json.dumps(result.to_dict(), allow_nan=False)
    with pytest.raises(ConvergenceWarning):
        polar(a, throw=True)


@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128", "complex64"])
def test_largest_number_of_the_format(lib, dtype):
    largest = float(np.finfo(dtype).max)
    a = np.array([[largest, 0.0], [0.0, largest / 2]])
    result = polar(lib.asarray(a, dtype))
    assert result.converged
    np.testing.assert_allclose(np.abs(lib.to_numpy(result.unitary)), np.eye(2), atol=EPS[dtype])
    q = lib.to_numpy(orthogonalize(lib.asarray(a, dtype)))
    assert np.all(np.isfinite(q))


@pytest.mark.parametrize("method", [*METHODS, "polar_express"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_unchecked_nan(lib, method, value):
    if lib.name == "jax" and method != "svd":
        pytest.skip("slow: every method is compiled")
    stack = np.stack([matrix((4, 3)), matrix((4, 3), seed=1)])
    stack[0, 1, 1] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = polar(lib.asarray(stack), method=method, check_finite=False)
    u = lib.to_numpy(result.unitary)
    assert np.all(np.isnan(u[0]))
    assert result.status is not Status.OVERFLOW
    assert not result.converged
    json.dumps(result.to_dict(), allow_nan=False)
    repr(result)


# -- callbacks -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, "polar_express"])
@pytest.mark.parametrize("shape", [(5, 5), (7, 4), (4, 7)])
def test_callback(method, shape):
    if method in METHODS and not TABLE[method].takes(shape):
        pytest.skip("too many columns")
    a = matrix(shape)
    seen: list[tuple[int, np.ndarray]] = []
    result = polar(a, method=method, callback=lambda k, x: seen.append((k, np.array(x))))
    first = 0 if method in FIXED else 1
    assert [k for k, _ in seen] == list(range(first, result.iterations + 1))
    tall = (max(shape), min(shape))
    assert all(x.shape == tall for _, x in seen)
    last = seen[-1][1] if shape == tall else seen[-1][1].T
    np.testing.assert_allclose(last, result.unitary, atol=1e-14)


def test_callback_errors_pass_through():
    def stop(k, x):
        raise KeyboardInterrupt

    for method in [*METHODS, "polar_express"]:
        with pytest.raises(KeyboardInterrupt):
            polar(matrix((4, 3)), method=method, callback=stop)


# -- scale invariance ------------------------------------------------------------------------

INTEGERS = np.array([[2.0, 1.0, 0.0], [-1.0, 3.0, 1.0], [0.0, 1.0, 2.0], [1.0, 0.0, -1.0]])


@pytest.mark.parametrize("method", [*EXACT, "polar_express"])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_polar_is_scale_invariant(method, dtype):
    a = matrix((5, 4), dtype)
    u, h = polar(a, method=method)
    for c in 10.0 ** np.arange(-300, 301, 50):
        v, p = polar(c * a, method=method)
        np.testing.assert_allclose(v, u, atol=1e-13)
        np.testing.assert_allclose(p / c, h, atol=1e-13)


# Largest and smallest power of two that keeps the integers above in the format, exactly.
RANGES = {
    "float16": (-24, 14),
    "bfloat16": (-133, 126),
    "float32": (-149, 126),
    "float64": (-1074, 1022),
}


@pytest.mark.parametrize("dtype", RANGES)
def test_whole_range_of_the_format(lib, dtype):
    if not lib.has(dtype):
        pytest.skip(f"{lib.name} has no {dtype}")
    low, high = RANGES[dtype]
    if lib.name == "jax":  # XLA treats subnormal numbers as zero: normal ones only
        low = {"float16": -14, "float64": -1022}.get(dtype, -126)
    exact = scipy.linalg.polar(INTEGERS)[0]
    quick = lib.to_numpy(orthogonalize(lib.asarray(INTEGERS, dtype)))
    step = max(1, (high - low) // (4 if lib.name == "jax" else 24))
    for exponent in [*range(low, high, step), high]:
        x = lib.asarray(np.ldexp(INTEGERS, exponent), dtype)
        u, _ = polar(x)
        np.testing.assert_allclose(lib.to_numpy(u), exact, atol=10 * EPS[dtype])
        q = lib.to_numpy(orthogonalize(x))
        np.testing.assert_allclose(q, quick, atol=10 * EPS[dtype])


@pytest.mark.parametrize("normalisation", ["frobenius", "spectral", "schatten4", "aol"])
@pytest.mark.parametrize("form", ["plain", "gram"])
def test_orthogonalize_is_scale_invariant(normalisation, form):
    name = "turbo_muon" if normalisation == "aol" else "polar_express"
    for dtype in ("float64", "complex64"):
        a = matrix((7, 3), dtype)
        q = orthogonalize(a, schedule=name, normalisation=normalisation, form=form)
        top = 36 if dtype == "complex64" else 300
        for c in 10.0 ** np.linspace(-top, top, 7):
            with np.errstate(all="raise"):
                b = (a * c).astype(dtype)
            r = orthogonalize(b, schedule=name, normalisation=normalisation, form=form)
            np.testing.assert_allclose(r, q, atol=2e-3 if dtype == "complex64" else 1e-11)


# -- bad calls -------------------------------------------------------------------------------

A = matrix((6, 4))
NAN = np.where(np.arange(24).reshape(6, 4) == 9, np.nan, A)
INF = np.where(np.arange(24).reshape(6, 4) == 9, -np.inf, A)

BAD_POLAR = [
    (
        lambda: polar(NAN),
        ValueError,
        r"NaN or infinity in 1 of 24 entries, first at index \(2, 1\)",
    ),
    (lambda: polar(INF), ValueError, r"first at index \(2, 1\)"),
    (lambda: polar(NAN + 1j), ValueError, r"first at index \(2, 1\)"),
    (lambda: polar(np.stack([A, NAN])), ValueError, r"first at index \(1, 2, 1\)"),
    (lambda: polar(A[0]), ValueError, r"shape \(4,\)"),
    (lambda: polar(3.0), ValueError, r"shape \(\)"),
    (lambda: polar([1.0, 2.0]), ValueError, r"shape \(2,\)"),
    (lambda: polar(None), TypeError, "None"),
    (lambda: polar("matrix"), TypeError, "'matrix'"),
    (lambda: polar(b"matrix"), TypeError, "b'matrix'"),
    (lambda: polar([["a", "b"]]), TypeError, "str"),
    (lambda: polar({1: 2}), TypeError, "{1: 2}"),
    (lambda: polar(object()), TypeError, "object"),
    (lambda: polar([[1, 2], [3]]), ValueError, "not a rectangular array"),
    (lambda: polar([[None, 1.0]]), TypeError, "dtype object"),
    (lambda: polar(np.array([[1, "a"]], dtype=object)), TypeError, "dtype object"),
    (lambda: polar(np.zeros((2, 2), "M8[s]")), TypeError, "datetime64"),
    (lambda: polar(np.ma.array(A)), TypeError, "masked"),
    (lambda: polar(A, method="svdd"), ValueError, "'svdd'.*did you mean 'svd'"),
    (lambda: polar(A, method=""), ValueError, "unknown method ''"),
    (lambda: polar(A, method=None), (TypeError, ValueError), "method.*None"),
    (lambda: polar(A, method=3), (TypeError, ValueError), "method.*3"),
    (lambda: polar(A, method=["svd"]), (TypeError, ValueError), r"method.*\['svd'\]"),
    (lambda: polar(np.zeros((0, 3)), method="svdd"), ValueError, "'svdd'"),
    (lambda: polar(np.zeros((0, 3)), method=None), (TypeError, ValueError), "None"),
    (lambda: polar(A, side="up"), ValueError, "side must be 'right' or 'left', got 'up'"),
    (lambda: polar(A, side=None), ValueError, "got None"),
    (lambda: polar(A, rtol=0.0), ValueError, "rtol.*0.0"),
    (lambda: polar(A, rtol=-1.0), ValueError, "rtol.*-1.0"),
    (lambda: polar(A, rtol=2), ValueError, "rtol.*2"),
    (lambda: polar(A, rtol=math.nan), ValueError, "rtol.*nan"),
    (lambda: polar(A, rtol="tight"), (TypeError, ValueError), "rtol.*'tight'"),
    (lambda: polar(A, rtol=[1e-3]), (TypeError, ValueError), "rtol"),
    (lambda: polar(A, "left", "svd"), TypeError, "positional"),
    (lambda: polarlib.schedule("polar_expres"), ValueError, "did you mean 'polar_express'"),
    (lambda: polarlib.schedule(None), (TypeError, ValueError), "None"),
    (lambda: polarlib.schedule(["jordan"]), (TypeError, ValueError), r"\['jordan'\]"),
    (lambda: polarlib.schedule("jordan", 1.5), ValueError, "steps.*1.5"),
    (lambda: polarlib.schedule("jordan", [1]), (TypeError, ValueError), r"steps.*\[1\]"),
    (lambda: polarlib.schedule("jordan", 0), ValueError, "steps.*0"),
    (lambda: polarlib.schedule("you", 6), ValueError, "has 5 steps.*got 6.*repeat"),
    (lambda: polarlib.design.restarts("polar_express", "float16"), TypeError, "'polar_express'"),
    (
        lambda: polarlib.design.restarts(polarlib.schedule("you"), "bf16"),
        ValueError,
        "'bf16'.*did you mean 'bfloat16'",
    ),
]


@pytest.mark.parametrize(("call", "error", "match"), BAD_POLAR)
def test_bad_calls_of_polar(call, error, match):
    with pytest.raises(error, match=match):
        call()


READONLY = np.zeros((6, 4))
READONLY.setflags(write=False)

BAD_ORTHOGONALIZE = [
    ({"g": NAN}, ValueError, "NaN"),
    ({"g": INF}, ValueError, "infinity"),
    ({"g": NAN, "normalisation": "none"}, ValueError, "NaN"),
    ({"g": A[0]}, ValueError, r"g must be a matrix.*\(4,\)"),
    ({"g": None}, TypeError, "g must be an array.*None"),
    ({"g": "x"}, TypeError, "'x'"),
    ({"g": [[1], [2, 3]]}, ValueError, "g is not a rectangular"),
    ({"g": np.array([[None]])}, TypeError, "dtype object"),
    ({"schedule": "jordon"}, ValueError, "'jordon'.*did you mean 'jordan'"),
    ({"schedule": "svd"}, ValueError, "unknown schedule 'svd'"),
    ({"schedule": None}, TypeError, "None"),
    ({"schedule": [(1.5, -0.5)]}, TypeError, r"\[\(1.5, -0.5\)\]"),
    ({"steps": 0}, ValueError, "steps must be an integer of at least 1, got 0"),
    ({"steps": -1}, ValueError, "got -1"),
    ({"steps": 1.5}, ValueError, "got 1.5"),
    ({"steps": "5"}, ValueError, "got '5'"),
    ({"steps": True}, ValueError, "got True"),
    ({"steps": [5]}, ValueError, r"got \[5\]"),
    ({"schedule": "you", "steps": 6}, ValueError, "'you', which has 5 steps.*got 6.*repeat"),
    ({"schedule": polarlib.schedule("you"), "steps": 6}, ValueError, "has 5 steps.*got 6.*repeat"),
    ({"schedule": polarlib.schedule("you"), "steps": 2.0}, ValueError, "got 2.0"),
    ({"form": "dense"}, ValueError, "form must be 'auto', 'plain' or 'gram', got 'dense'"),
    ({"form": None}, ValueError, "got None"),
    ({"precision": "bf16"}, ValueError, "'bf16'.*did you mean 'bfloat16'"),
    ({"precision": 16}, ValueError, "unknown number format 16"),
    ({"precision": np.float32}, ValueError, "unknown number format"),
    ({"normalisation": "frobenious"}, ValueError, "'frobenious'.*did you mean 'frobenius'"),
    ({"normalisation": 1}, ValueError, "unknown normalisation 1"),
    ({"normalisation": "aol"}, ValueError, "normalisation must be 'moments' .*, got 'aol'"),
    (
        {"schedule": "turbo_muon", "normalisation": "frobenius"},
        ValueError,
        "normalisation must be 'aol' .*, got 'frobenius'",
    ),
    ({"restarts": "never"}, ValueError, "restarts.*'never'"),
    ({"restarts": 2}, (TypeError, ValueError), "restarts.*2"),
    ({"restarts": None}, (TypeError, ValueError), "restarts.*None"),
    ({"restarts": [0]}, ValueError, "restarts.*1 to 5, got 0"),
    ({"restarts": [-1]}, ValueError, "restarts.*got -1"),
    ({"restarts": [6]}, ValueError, "restarts.*got 6"),
    ({"restarts": [1.5]}, ValueError, "restarts.*got 1.5"),
    ({"restarts": ["a"]}, ValueError, "restarts.*got 'a'"),
    ({"restarts": [1, "a"]}, (TypeError, ValueError), "restarts.*got 'a'"),
    ({"restarts": [[1]]}, (TypeError, ValueError), r"restarts.*got \[1\]"),
    ({"restarts": [True]}, ValueError, "restarts.*got True"),
    ({"out": 3}, TypeError, "out must be an array like g.*got 3"),
    ({"out": np.zeros((4, 6))}, TypeError, r"float64 of shape \(6, 4\), got.*\(4, 6\)"),
    ({"out": np.zeros((6, 4), "f4")}, TypeError, "got float32"),
    ({"out": np.zeros((2, 6, 4))}, TypeError, r"\(2, 6, 4\)"),
    ({"out": READONLY}, (TypeError, ValueError), "out.*read-only"),
]


@pytest.mark.parametrize(("arguments", "error", "match"), BAD_ORTHOGONALIZE)
def test_bad_calls_of_orthogonalize(arguments, error, match):
    arguments = {"g": A} | arguments
    with pytest.raises(error, match=match):
        orthogonalize(arguments.pop("g"), **arguments)


def test_bad_out_of_another_library():
    jax = library("jax")
    x = jax.asarray(A)
    with pytest.raises(ValueError, match=r"out.*immutable"):
        orthogonalize(x, out=x)
    with pytest.raises(TypeError, match="out must be an array like g"):
        orthogonalize(x, out=np.zeros((6, 4)))


def test_nan_on_a_device_gives_nan():
    strict = library("array_api_strict")
    for value in (np.nan, np.inf):
        q = orthogonalize(strict.asarray(np.where(np.isnan(NAN), value, A)))
        assert np.all(np.isnan(strict.to_numpy(q)))


def test_unsafe_set_warns_and_names_itself():
    for name in ("polar_express_raw", "cans"):
        with pytest.warns(ScheduleWarning, match=f"'{name}' diverges above 1.0000.*bfloat16"):
            orthogonalize(A, schedule=name, precision="bfloat16")


# -- torch and JAX in their own ways ---------------------------------------------------------


def test_gradients_flow_through_orthogonalize(torch):
    x = torch.tensor(A, requires_grad=True)
    for form in ("plain", "gram"):
        assert torch.autograd.gradcheck(
            lambda t, form=form: orthogonalize(t, steps=3, form=form), (x,), atol=1e-4
        )


def test_torch_parameters(torch):
    p = torch.nn.Parameter(torch.tensor(A))
    before = p.detach().clone()
    with torch.no_grad():
        q = orthogonalize(p)
        out = torch.empty_like(p)
        assert orthogonalize(p, out=out) is out
    assert torch.equal(q, out)
    assert torch.equal(p.detach(), before)


def test_jit():
    jax_library = library("jax")
    import jax

    x = jax_library.asarray(A)
    np.testing.assert_allclose(jax.jit(orthogonalize)(x), orthogonalize(x), atol=1e-12)
