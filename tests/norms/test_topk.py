"""Leading singular triplets: against the exact SVD, closed forms, and what Lanczos cannot see."""

import importlib
import math

import mpmath
import numpy as np
import pytest
from conftest import DTYPES, HALF, library, ml_dtype, with_dask
from standin import cupy_standin

from polarlib import testing
from polarlib.arrays.numpy_ops import NumpyOps
from polarlib.arrays.ops import ops_of
from polarlib.norms import krylov, topk
from polarlib.norms.low_rank import power_step, range_lmo
from polarlib.norms.topk import METHODS, top_singular, triplets

ITERATIONS = METHODS[1:]
SINGLE = ("float32", "complex64")


def gaussian(*shape, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        a = a + 1j * rng.standard_normal(shape)
    return a.astype(dtype)


def decaying(m, n, dtype="float64", seed=0):
    """Values 1, 1/2, 1/4, ...: every method converges."""
    return testing.with_singular_values(0.5 ** np.arange(min(m, n)), m, n, seed=seed, dtype=dtype)


def one_dtype_of_jax(lib, dtype):
    if lib.name == "jax" and dtype != "complex64":
        pytest.skip("JAX compiles every operation anew for every dtype: one of them will do")


def check(a, u, s, vh, *, rtol=1e-6, name=""):
    """Shapes, orthonormality, values to rtol, and that the triplets are the leading ones."""
    a, u, s, vh = (np.asarray(t, dtype="c16") for t in (a, u, s, vh))
    k = s.shape[-1]
    assert u.shape == (*a.shape[:-1], k), name
    assert vh.shape == (*a.shape[:-2], k, a.shape[-1]), name
    exact = np.linalg.svd(a, compute_uv=False)
    floor = rtol if rtol > 1e-5 else 1e-12
    noise = floor * exact[..., :1]
    s = s.real
    assert np.all(np.abs(s - exact[..., :k]) <= rtol * exact[..., :k] + noise), name
    assert np.all(np.diff(s, axis=-1) <= 0), name
    eye = np.eye(k)
    for basis in (np.swapaxes(u.conj(), -1, -2) @ u, vh @ np.swapaxes(vh.conj(), -1, -2)):
        assert np.abs(basis - eye).max(initial=0) <= floor * 10, name
    rest = np.linalg.norm(a - (u * s[..., None, :]) @ vh, 2, axis=(-2, -1))
    bound = exact[..., k] if k < exact.shape[-1] else 0.0
    assert np.all(rest <= bound + rtol * exact[..., k - 1] + 10 * noise[..., 0]), name


# -- against the exact SVD -------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_zoo(method):
    for name, a in testing.zoo(24):
        scale = np.abs(a).max() or 1.0
        for k in (1, 3):
            if k > min(a.shape):
                continue
            u, s, vh = top_singular(a, k, method=method)
            check(a / scale, u, s / scale, vh, name=f"{name}, k={k}")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50), (2, 3, 40, 30), (3, 30, 70)])
def test_shapes(method, shape):
    a = gaussian(*shape)
    before = a.copy()
    check(a, *top_singular(a, 2, method=method))
    np.testing.assert_array_equal(a, before)


@pytest.mark.parametrize("name", testing.SPECTRA)
def test_spectra(name):
    values = testing.spectrum(name, 120)
    a = testing.with_singular_values(values, 150)
    exact = values[:5]
    for method in METHODS:
        found = triplets(a, 5, method=method)
        error = np.abs(found.s - exact)
        assert np.all(error <= 1e-6 * exact + 150 * 2.0**-52 * exact[0]), (method, found.method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rtol", [1e-1, 1e-3, 1e-9, 1e-13, 1e-16])
def test_relative_error_is_kept(method, rtol):
    """Values known by construction; the error asked for holds for each of them."""
    exact = 0.7 ** np.arange(80)
    a = testing.with_singular_values(exact, 100)
    s = triplets(a, 6, method=method, rtol=rtol).s
    assert np.all(np.abs(s - exact[:6]) <= rtol * exact[:6] + 100 * 2.0**-52)


def test_less_is_asked_for_less():
    a = gaussian(300, 300)
    products = [triplets(a, 4, method="lanczos", rtol=r).products for r in (1e-1, 1e-4, 1e-10)]
    assert products[0] < products[1] < products[2]


@pytest.mark.parametrize("method", METHODS)
def test_closed_form(method):
    """The bidiagonal matrix of ones has the singular values 2 cos(j pi / (2 n + 1))."""
    n = 90
    a = np.eye(n) + np.eye(n, k=1)
    exact = 2 * np.cos(np.arange(1, 4) * np.pi / (2 * n + 1))
    np.testing.assert_allclose(top_singular(a, 3, method=method)[1], exact, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_against_mpmath(method):
    n = 24
    with mpmath.workdps(40):
        h = mpmath.matrix(n, n)
        for i in range(n):
            for j in range(n):
                h[i, j] = mpmath.mpf(1) / (i + j + 1)
        exact = [float(v) for v in mpmath.svd_r(h, compute_uv=False)[:4]]
    s = top_singular(testing.hilbert(n), 4, method=method)[1]
    np.testing.assert_allclose(s, exact, rtol=1e-6)


@pytest.mark.parametrize("method", ITERATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_iterations_converge_by_themselves(method, dtype):
    a = decaying(90, 60, dtype)
    found = triplets(a, 4, method=method)
    assert found.method == method
    assert found.residual <= 1e-6
    assert 0 < found.products < 2 * 60
    check(a, found.u, found.s, found.vh, rtol=2e-5 if dtype in SINGLE else 1e-6)


@pytest.mark.parametrize(("block", "ratio"), [(1, 0.99), (6, 0.97)])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_restarts(block, ratio, dtype):
    """Slow decay, many restarts: the recurrence still holds, and the bases are orthonormal."""
    a = testing.with_singular_values(ratio ** np.arange(160), 200, dtype=dtype)
    ops = ops_of(a)
    (u, s, v), products = krylov._krylov(a, ops.adjoint(a), 4, ops, block, 1e-9)
    assert products > 2 * (48 if block > 1 else 38)  # more than one basis takes
    np.testing.assert_allclose(s, ratio ** np.arange(4), rtol=1e-12)
    np.testing.assert_allclose(a @ v, u * s, atol=1e-13)
    np.testing.assert_allclose(ops.adjoint(a) @ u, v * s, atol=1e-9)
    for basis in (u, v):
        np.testing.assert_allclose(ops.adjoint(basis) @ basis, np.eye(4), atol=1e-13)


@pytest.mark.parametrize("method", ITERATIONS)
def test_products_are_counted(method, monkeypatch):
    """Against the columns that A and its adjoint are really multiplied with."""
    a = decaying(90, 60)
    seen = 0
    matmul = NumpyOps.matmul

    def counting(self, x, y, out=None):
        nonlocal seen
        if set(x.shape) == {90, 60} and y.shape[1] < 60:  # 60 columns: the certificate's Gram
            seen += y.shape[1]
        return matmul(self, x, y, out)

    monkeypatch.setattr(NumpyOps, "matmul", counting)
    assert triplets(a, 4, method=method).products == seen


@pytest.mark.parametrize("method", ITERATIONS)
def test_budget(method):
    """Gaps of 1 / n^2: an iteration gives up after 2 n products, and the SVD is used."""
    n = 600
    a = np.eye(n) + np.eye(n, k=1)
    found = triplets(a, 2, method=method, rtol=1e-12)
    assert found.method == f"{method}, then svd"
    assert 2 * n <= found.products <= 2 * n + 100


def test_lanczos_takes_fewest_products():
    a = gaussian(300, 300)
    products = {m: triplets(a, 5, method=m, rtol=1e-2).products for m in ITERATIONS}
    assert min(products, key=products.get) == "lanczos"
    assert products["lanczos"] < 150


# -- multiple values, rank, zero, whole spectra ----------------------------------------------


def with_copies():
    """Diagonal, sigma_1 twice: a Krylov space of one vector holds one of its vectors.

    The gaps are wide, so that Lanczos is done before rounding lets it see the other.
    """
    return np.diag([3.0, 3.0, 2.5, *np.linspace(0.1, 0.001, 197)])


def test_lanczos_misses_a_copy_and_is_found_out():
    a = with_copies()
    ops = ops_of(a)
    (u, s, v), _ = krylov._krylov(a, a.T, 2, ops, 1, 1e-6)
    assert s[1] < 2.6  # so the test tests something: the residual alone is content with this
    residual = krylov._residual(a, a.T, u, s, v, ops)
    assert residual < 1e-6
    assert not krylov._is_certified(a, u, s, v, residual, 1e-6, ops)
    found = triplets(a, 2, method="lanczos")
    assert found.method == "lanczos, then svd"
    np.testing.assert_allclose(found.s, [3.0, 3.0])
    check(a, found.u, found.s, found.vh)


@pytest.mark.parametrize("small", [1e-5, 1e-8, 1e-11])
def test_arpack_sees_small_values(small):
    """It works with A^H A, whose eigenvalues are squares; rounding to sigma_1 eps is kept all the
    same, since products are with A and A^H and the values come from A. Where ARPACK itself fails,
    as that of SciPy 1.13 does, the certificate sees it.
    """
    exact = np.r_[1.0, small, small * np.linspace(1e-2, 1e-3, 98)]
    found = triplets(testing.with_singular_values(exact, 120), 2, method="arpack")
    assert found.method in ("arpack", "arpack, then svd")
    assert abs(found.s[1] - small) <= 1e-6 * small + 120 * 2.0**-52


def test_arpack_misses_a_copy_and_is_found_out(monkeypatch):
    """A start orthogonal to one of two copies, as rounding seldom leaves it."""
    a = with_copies()
    ops = ops_of(a)
    draw = np.random.default_rng(0).standard_normal(200)
    draw[0] = 0.0  # diagonal: nothing ever brings this direction in

    class Generator:
        def standard_normal(self, n):
            return draw

    monkeypatch.setattr(krylov.np.random, "default_rng", lambda seed=None: Generator())
    (u, s, v), _ = krylov._arpack(a, a.T, 2, ops, 1e-6)
    np.testing.assert_allclose(s, [3.0, 2.5])
    assert not krylov._is_certified(a, u, s, v, krylov._residual(a, a.T, u, s, v, ops), 1e-6, ops)
    found = triplets(a, 2, method="arpack")
    assert found.method == "arpack, then svd"
    np.testing.assert_allclose(found.s, [3.0, 3.0])


def test_block_krylov_sees_copies():
    found = triplets(with_copies(), 2, method="block_krylov")
    assert found.method == "block_krylov"
    np.testing.assert_allclose(found.s, [3.0, 3.0])


def test_ties_beyond_k_need_no_svd():
    for k in (1, 2):
        a = np.diag([5.0] * (k - 1) + [3.0] * 3 + list(np.linspace(1, 0.01, 57)))
        found = triplets(a, k, method="lanczos")
        assert found.method == "lanczos"
        check(a, found.u, found.s, found.vh)


def test_copies_at_random():
    """Spectra of few distinct values, in every multiplicity."""
    rng = np.random.default_rng(11)
    for trial in range(25):
        values = np.sort(rng.choice([0.0, 1e-9, 0.5, 1.0, 1.0 + 1e-7], size=40))[::-1]
        dtype = "complex128" if trial % 2 else "float64"
        a = testing.with_singular_values(values, 48, seed=trial, dtype=dtype)
        k = int(rng.integers(1, 8))
        for method in METHODS:
            check(a, *top_singular(a, k, method=method), name=f"{trial}, {method}, k={k}")


def test_certificate():
    """Accepts the leading triplets; refuses others, wrong values and bases that are not."""
    a = testing.with_singular_values(np.r_[4.0, 3.0, 2.0, np.ones(17)], 30)
    ops = ops_of(a)
    u, s, vh = np.linalg.svd(a, full_matrices=False)
    v = vh.T

    def certified(u, s, v, rtol=1e-6):
        return krylov._is_certified(a, u, s, v, krylov._residual(a, a.T, u, s, v, ops), rtol, ops)

    assert certified(u[:, :3], s[:3], v[:, :3])
    assert certified(u[:, :4], s[:4], v[:, :4])  # a tie at k
    for wrong in ([0, 2], [1, 2], [0, 1, 3], [3]):
        assert not certified(u[:, wrong], s[wrong], v[:, wrong])
    assert not certified(u[:, :3], s[:3] * [1, 1, 1 - 1e-5], v[:, :3])
    assert not certified(u[:, :3], s[:3] * [1 + 1e-5, 1, 1], v[:, :3])
    assert certified(u[:, :3], s[:3] * [1, 1, 1 - 1e-5], v[:, :3], rtol=1e-4)
    tilted = v[:, :3] + 1e-5 * v[:, 5:8]
    assert not certified(u[:, :3], s[:3], np.linalg.qr(tilted)[0] * np.sign(np.diag(tilted)))
    # The same triplet twice: no residual, and nothing but its bases to give it away.
    assert not certified(u[:, [0, 0]], s[[0, 0]], v[:, [0, 0]])
    twice = np.eye(2)
    residual = np.asarray(0.0)
    assert not krylov._is_certified(
        twice, twice[:, [0, 0]], np.ones(2), twice[:, [0, 0]], residual, 1e-6, ops
    )
    assert not krylov._is_certified(a, u[:, :3], s[:3], v[:, :3], np.asarray(np.nan), 1e-6, ops)


def test_certificate_is_sharp():
    """The norm of the rest is proved to a small part of rtol, on both sides."""
    for excess, proved in ((0.4e-6, True), (0.6e-6, False)):
        a = np.diag([2.0, 1.0, 1.0 + excess, *np.linspace(0.9, 0.1, 37)])
        u = np.eye(40)[:, :2]
        result = krylov._is_certified(
            a, u, np.array([2.0, 1.0]), u, np.asarray(0.0), 1e-6, ops_of(a)
        )
        assert result is proved


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(70, 50), (50, 70), (3, 1), (1, 1)])
def test_zero(method, shape):
    k = min(3, *shape)
    found = triplets(np.zeros(shape), k, method=method)
    assert found.s.tolist() == [0.0] * k
    assert found.residual == 0.0
    if k == 3 and method != "arpack":  # ARPACK refuses to start
        assert found.method == method
    check(np.zeros(shape), found.u, found.s, found.vh)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [1, 2])
def test_rank_below_k(method, rank):
    a = gaussian(80, rank) @ gaussian(rank, 60, seed=1)
    found = triplets(a, 4, method=method)
    assert np.all(found.s[rank:] <= 80 * 2.0**-52 * found.s[0])
    assert found.method == method
    check(a, found.u, found.s, found.vh)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (60, 1), (30, 30)])
def test_all_of_them(method, shape):
    a = gaussian(*shape)
    for k in (min(shape), max(min(shape) - 1, 1)):
        check(a, *top_singular(a, k, method=method))


def test_identity_and_orthogonal():
    for a in (np.eye(50), testing.orthonormal(60, 50), -np.eye(50)[::-1]):
        for method in METHODS:
            check(a, *top_singular(a, 3, method=method))


# -- scales and formats ----------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("exponent", [-1000, -1060, 1000])
def test_powers_of_two_change_nothing(method, exponent):
    """Bit for bit, as long as nothing is subnormal; tiny input is scaled before it is squared."""
    a = decaying(50, 40)
    expected = top_singular(a, 2, method=method)
    u, s, vh = top_singular(np.ldexp(a, exponent), 2, method=method)
    if exponent == -1060:  # entries have lost bits
        np.testing.assert_allclose(s, np.ldexp(expected[1], exponent), rtol=1e-2)
        return
    np.testing.assert_array_equal(s, np.ldexp(expected[1], exponent))
    np.testing.assert_array_equal(u, expected[0])
    np.testing.assert_array_equal(vh, expected[2])


@pytest.mark.parametrize("method", METHODS)
def test_overflow_of_a_value_is_infinity(method):
    a = np.full((40, 40), 1.7e308)
    a[0] /= 2
    u, s, vh = top_singular(a, 1, method=method)
    assert s.tolist() == [math.inf]
    np.testing.assert_allclose(np.abs(u[:, 0]) @ np.abs(u[:, 0]), 1.0)
    np.testing.assert_allclose(np.abs(vh), 40**-0.5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_libraries(lib, method, dtype):
    one_dtype_of_jax(lib, dtype)
    a = decaying(40, 30, dtype)
    x = lib.asarray(a)
    u, s, vh = top_singular(x, 3, method=method)
    assert (lib.dtype_name(u), lib.dtype_name(vh)) == (dtype, dtype)
    assert lib.dtype_name(s) == {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)
    assert lib.device(u) == lib.device(s) == lib.device(vh) == lib.device(x)
    check(a, *map(lib.to_numpy, (u, s, vh)), rtol=2e-5 if dtype in SINGLE else 1e-6)
    np.testing.assert_array_equal(lib.to_numpy(x), a)


@with_dask
def test_libraries_agree(lib):
    """One start for all: the number of products is NumPy's."""
    a = decaying(40, 30)
    for method in ("arpack", "randomized"):
        expected = triplets(a, 3, method=method)
        found = triplets(lib.asarray(a), 3, method=method)
        assert (found.products, found.method) == (expected.products, method)


@pytest.mark.parametrize("dtype", HALF)
def test_half(lib, dtype):
    if not lib.has(dtype):
        pytest.skip(f"{lib.name} has no {dtype}")
    x = lib.asarray(decaying(40, 30), dtype)
    u, s, vh = top_singular(x, 3, method="randomized")
    assert {lib.dtype_name(t) for t in (u, s, vh)} == {dtype}
    exact = np.linalg.svd(lib.to_numpy(x).astype("f8"), compute_uv=False)[:3]
    unit = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    np.testing.assert_allclose(lib.to_numpy(s), exact, rtol=1.01 * unit)


def test_half_overflow():
    s = top_singular(np.full((64, 64), 60000, dtype="float16"), 1)[1]
    assert s.dtype == "float16"
    assert s.tolist() == [math.inf]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "complex128", "bfloat16"])
def test_cupy(method, dtype):
    if ml_dtype(dtype) is None:
        pytest.skip(f"{dtype} needs ml_dtypes")
    a = decaying(40, 30, "complex128" if dtype[0] == "c" else "float64").astype(ml_dtype(dtype))
    with cupy_standin.installed() as cupy:
        parts = top_singular(cupy.asarray(a), 3, method=method)
        assert all(isinstance(t, cupy.ndarray) for t in parts)
        u, s, vh = (t.get() for t in parts)
    assert (u.dtype, vh.dtype) == (a.dtype, a.dtype)
    exact = np.linalg.svd(a.astype("c16"), compute_uv=False)[:3]
    np.testing.assert_allclose(s.astype("f8"), exact, rtol=1e-2 if dtype == "bfloat16" else 1e-5)


def test_device_libraries_get_blocks(lib):
    x = lib.asarray(gaussian(topk.AUTO_SIZE, topk.AUTO_SIZE))
    host = lib.name in ("numpy", "numpy-readonly", "torch")
    assert topk._choose(x, 1, ops_of(x)) == ("arpack" if host else "block_krylov")


def test_auto():
    n = topk.AUTO_SIZE
    for shape, k, expected in [
        ((n, n), n // topk.AUTO_RATIO, "arpack"),
        ((n, n), n // topk.AUTO_RATIO + 1, "svd"),
        ((n - 1, 4 * n), 1, "svd"),
        ((n, 2 * n), 1, "arpack"),
    ]:
        a = gaussian(*shape)
        found = triplets(a, k)
        assert found.method == expected
        check(a, found.u, found.s, found.vh)


def test_gradient(torch):
    """d(s_1 + s_2) / dA = U_2 V_2^H, whatever the method asked for."""
    a = torch.tensor(decaying(30, 20), requires_grad=True)
    u, s, vh = top_singular(a, 2, method="lanczos")
    s.sum().backward()
    expected = (u @ vh).detach().numpy()
    np.testing.assert_allclose(a.grad.numpy(), expected, atol=1e-12)
    with torch.no_grad():
        assert not top_singular(a, 2)[1].requires_grad


# -- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "k", "options", "error", "words"),
    [
        (np.eye(3), 0, {}, ValueError, r"k must be an integer from 1 to min\(m, n\) = 3, got 0"),
        (np.eye(3), 4, {}, ValueError, "got 4"),
        (np.eye(3), -1, {}, ValueError, "got -1"),
        (np.eye(3), 1.0, {}, ValueError, "got 1.0"),
        (np.eye(3), True, {}, ValueError, "got True"),
        (np.zeros((0, 4)), 1, {}, ValueError, "= 0, got 1"),
        (np.eye(3), 1, {"method": "lanzcos"}, ValueError, "unknown method 'lanzcos'.*lanczos"),
        (np.eye(3), 1, {"method": None}, ValueError, "unknown method None"),
        (np.eye(3), 1, {"rtol": 0}, ValueError, "rtol must be a number between 0 and 1, got 0"),
        (np.eye(3), 1, {"rtol": 1.0}, ValueError, "got 1.0"),
        (np.eye(3), 1, {"rtol": math.nan}, ValueError, "got nan"),
        (np.eye(3), 1, {"rtol": "small"}, ValueError, "got 'small'"),
        (np.array([[1.0, math.nan]]), 1, {}, ValueError, "NaN or infinity"),
        (np.array([[1.0, -math.inf]]), 1, {}, ValueError, "NaN or infinity"),
        (np.array([[1.0, 1j * math.inf]]), 1, {}, ValueError, "NaN or infinity"),
        (np.ones(3), 1, {}, ValueError, r"shape \(3,\)"),
        (3.0, 1, {}, ValueError, r"shape \(\)"),
        ([["a"]], 1, {}, TypeError, "array of numbers"),
        (np.array([[None]]), 1, {}, TypeError, "object"),
    ],
)
def test_bad_input(a, k, options, error, words):
    with pytest.raises(error, match=words):
        top_singular(a, k, **options)


def test_good_input():
    for a in ([[3, 0], [0, 4]], np.array([[3, 0], [0, 4]], dtype="int8")):
        u, s, vh = top_singular(a, np.int64(1))
        assert s.tolist() == [4.0]
        assert u.dtype == s.dtype == vh.dtype == np.float64
    assert top_singular([[True, False]], 1)[1].tolist() == [1.0]


def test_empty_stack():
    found = triplets(np.zeros((2, 0, 5, 4), dtype="c8"), 2)
    assert [t.shape for t in found[:3]] == [(2, 0, 5, 2), (2, 0, 2), (2, 0, 2, 4)]
    assert [t.dtype.name for t in found[:3]] == ["complex64", "float32", "complex64"]
    assert found.products == 0


def test_stack_reports_the_worst():
    stack = np.stack([decaying(200, 200), with_copies()])
    found = triplets(stack, 2, method="lanczos")
    assert found.method == "lanczos, then svd"
    one, other = (triplets(a, 2, method="lanczos") for a in stack)
    assert found.products == one.products + other.products
    assert found.residual == max(one.residual, other.residual)


# -- Dion ------------------------------------------------------------------------------------


def hermitian(a):
    return np.swapaxes(a, -1, -2).conj()


@with_dask
@pytest.mark.parametrize("dtype", DTYPES)
def test_power_step(lib, dtype):
    one_dtype_of_jax(lib, dtype)
    tolerance = 1e-5 if dtype in SINGLE else 1e-12
    m, q = gaussian(2, 12, 9, dtype=dtype), gaussian(2, 9, 3, seed=1, dtype=dtype)
    parts = power_step(lib.asarray(m), lib.asarray(q))
    assert {lib.dtype_name(t) for t in parts} == {dtype}
    p, r, y = map(lib.to_numpy, parts)
    np.testing.assert_allclose(
        hermitian(p) @ p, np.broadcast_to(np.eye(3), (2, 3, 3)), atol=tolerance
    )
    range_of = np.linalg.qr(m @ q)[0]  # the same range, so the same projector
    np.testing.assert_allclose(p @ hermitian(p), range_of @ hermitian(range_of), atol=tolerance)
    np.testing.assert_allclose(r, hermitian(m) @ p, atol=10 * tolerance)
    np.testing.assert_allclose(np.linalg.norm(y, axis=-2), 1.0, atol=tolerance)
    np.testing.assert_allclose(
        y * np.linalg.norm(r, axis=-2, keepdims=True), r, atol=10 * tolerance
    )


@with_dask
@pytest.mark.parametrize("dtype", DTYPES)
def test_range_lmo(lib, dtype):
    one_dtype_of_jax(lib, dtype)
    tolerance = 1e-5 if dtype in SINGLE else 1e-12
    g, p = gaussian(2, 12, 9, dtype=dtype), np.linalg.qr(gaussian(2, 12, 3, seed=1, dtype=dtype))[0]
    t = range_lmo(lib.asarray(g), lib.asarray(p.astype(dtype)))
    assert lib.dtype_name(t) == dtype
    t = lib.to_numpy(t)
    s = np.linalg.svd(t, compute_uv=False)
    np.testing.assert_allclose(s[:, :3], 1.0, atol=tolerance)
    np.testing.assert_allclose(s[:, 3:], 0.0, atol=tolerance)
    np.testing.assert_allclose(p @ hermitian(p) @ t, t, atol=tolerance)
    # Fenchel: the value is the nuclear norm of what is within the range.
    value = np.sum((g.conj() * t).real, axis=(-2, -1))
    nuclear = np.linalg.svd(hermitian(p) @ g, compute_uv=False).sum(-1)
    np.testing.assert_allclose(value, nuclear, rtol=10 * tolerance)


def test_nothing_in_the_range_is_better():
    g, p = gaussian(8, 6), testing.orthonormal(8, 3)
    best = np.sum(g * range_lmo(g, p))
    for seed in range(200):
        y = gaussian(3, 6, seed=seed)
        assert np.sum(g * (p @ (y / np.linalg.norm(y, 2)))) < best


def test_published_step_against_the_corrected_one():
    """P Q^T has a spectral norm above 1; P polar(P^T G) is feasible and becomes U_k V_k^T."""
    g = testing.with_singular_values(0.8 ** np.arange(40), 60)
    u, s, vh = np.linalg.svd(g, full_matrices=False)
    q = gaussian(40, 4)
    p, _, q = power_step(g, q)
    assert np.linalg.norm(p @ q.T, 2) > 1.1
    np.testing.assert_allclose(np.linalg.norm(range_lmo(g, p), 2), 1.0)
    values = []
    for _ in range(150):
        values.append(np.sum(g * range_lmo(g, p)))
        p, _, q = power_step(g, q)
    assert np.all(np.diff(values) > -1e-12)  # warm starts never lose
    np.testing.assert_allclose(range_lmo(g, p), u[:, :4] @ vh[:4], atol=1e-10)
    np.testing.assert_allclose(values[-1], s[:4].sum())  # the Ky Fan 4-norm


def test_error_feedback_takes_off_the_projection():
    m, q = gaussian(10, 8), gaussian(8, 2, seed=1)
    p, r, _ = power_step(m, q)
    np.testing.assert_allclose(p.T @ (m - p @ r.T), 0, atol=1e-13)


def test_dion_on_zero_and_low_rank():
    q = np.linalg.qr(gaussian(7, 3))[0]
    p, r, y = power_step(np.zeros((9, 7)), q)
    assert not r.any()
    np.testing.assert_array_equal(y, q)
    np.testing.assert_allclose(p.T @ p, np.eye(3), atol=1e-14)
    assert not range_lmo(np.zeros((9, 7)), p).any()
    assert range_lmo(np.zeros((9, 0)), p).shape == (9, 0)
    g = np.outer(np.arange(1.0, 10), np.ones(7))
    p, _, _ = power_step(g, q)
    np.testing.assert_allclose(range_lmo(g, p), g / np.linalg.norm(g), atol=1e-14)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_dion_at_any_scale(scale):
    g, q = gaussian(9, 7), gaussian(7, 3, seed=1)
    expected = power_step(g, q)
    p, r, y = power_step(scale * g, q)
    np.testing.assert_allclose(p, expected[0], atol=1e-13)
    np.testing.assert_allclose(r / scale, expected[1], atol=1e-13)
    np.testing.assert_allclose(y, expected[2], atol=1e-13)
    np.testing.assert_allclose(range_lmo(scale * g, p), range_lmo(g, p), atol=1e-13)


def test_dion_passes_nan_on(lib):
    g = gaussian(5, 4)
    g[0, 0] = np.nan
    q = gaussian(4, 2)
    assert np.isnan(lib.to_numpy(power_step(lib.asarray(g), lib.asarray(q))[1])).all()
    p = lib.asarray(testing.orthonormal(5, 2))
    assert np.isnan(lib.to_numpy(range_lmo(lib.asarray(g), p))).all()


@pytest.mark.parametrize("dtype", HALF)
def test_dion_in_half(lib, dtype):
    if not lib.has(dtype):
        pytest.skip(f"{lib.name} has no {dtype}")
    g, q = lib.asarray(gaussian(9, 7), dtype), lib.asarray(gaussian(7, 3, seed=1), dtype)
    p, r, y = power_step(g, q)
    t = range_lmo(g, p)
    assert {lib.dtype_name(x) for x in (p, r, y, t)} == {dtype}
    np.testing.assert_allclose(np.linalg.norm(lib.to_numpy(t), 2), 1.0, atol=0.02)


def test_dion_stays_on_the_device():
    g, q = gaussian(9, 7), gaussian(7, 3, seed=1)
    expected = range_lmo(g, power_step(g, q)[0])
    with cupy_standin.installed() as cupy:
        x, y = cupy.asarray(g), cupy.asarray(q)
        with cupy_standin.no_sync():
            t = range_lmo(x, power_step(x, y)[0])
        np.testing.assert_allclose(t.get(), expected, atol=1e-13)


def test_dion_under_jit():
    library("jax")
    jit = importlib.import_module("jax").jit
    g, q = gaussian(9, 7), gaussian(7, 3, seed=1)
    p, r, y = jit(power_step)(g, q)
    for found, expected in zip((p, r, y), power_step(g, q), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(jit(range_lmo)(g, p), range_lmo(g, np.asarray(p)), atol=1e-12)


def test_dion_integers():
    """Integers become float64, as everywhere; they are not rounded back."""
    p, r, _ = power_step(np.diag([3, 2, 1]), np.eye(3, dtype=int)[:, :2])
    assert {p.dtype.name, r.dtype.name} == {"float64"}
    assert range_lmo(np.diag([3, 2, 1]), p).dtype == np.float64


@pytest.mark.parametrize(
    ("f", "a", "factor", "error", "words"),
    [
        (power_step, np.eye(4), np.ones((3, 2)), ValueError, r"q must have 4 rows .* \(3, 2\)"),
        (power_step, np.ones((3, 4)), np.ones((4, 4)), ValueError, "q .* from 1 to 3 columns"),
        (power_step, np.eye(4), np.ones((4, 0)), ValueError, r"got shape \(4, 0\)"),
        (power_step, np.ones(4), np.ones((4, 1)), ValueError, "m must be a matrix"),
        (power_step, [["a"]], np.ones((4, 1)), TypeError, "m must be an array of numbers"),
        (range_lmo, np.eye(4), np.ones((3, 2)), ValueError, r"p must have 4 rows .* \(3, 2\)"),
        (range_lmo, np.eye(4), np.ones((4, 5)), ValueError, "p .* from 1 to 4 columns"),
        (range_lmo, np.eye(4), np.ones(4), ValueError, "p must be a matrix"),
    ],
)
def test_dion_bad_input(f, a, factor, error, words):
    with pytest.raises(error, match=words):
        f(a, factor)


def test_dion_needs_one_library(torch):
    with pytest.raises(TypeError, match="m and q must be arrays of one library"):
        power_step(np.eye(3), torch.eye(3))


# -- complex factors of real matrices, and what is not finite ----------------------------------


def test_factors_may_be_complex_where_the_matrix_is_not(lib):
    rng = np.random.default_rng(0)
    for dtype, wide in (("float32", "complex64"), ("float64", "complex128")):
        a = rng.standard_normal((6, 5)).astype(dtype)
        z = (rng.standard_normal((6, 2)) + 1j * rng.standard_normal((6, 2))).astype(wide)
        p = np.linalg.qr(z)[0]
        atol = 50 * float(np.finfo(dtype).eps)
        for g, q in ((a, p), (a.astype(wide), p.real.astype(dtype)), (a, p.real.astype(dtype))):
            t = range_lmo(lib.asarray(g), lib.asarray(q))
            u, _, vh = np.linalg.svd(q.conj().T @ g, full_matrices=False)
            assert lib.dtype_name(t) == (q.conj().T @ g).dtype
            np.testing.assert_allclose(lib.to_numpy(t), q @ (u @ vh), atol=atol)
            basis, r, new = power_step(lib.asarray(g.T), lib.asarray(q))
            y, _ = np.linalg.qr(g.T @ q)
            basis, r, new = (lib.to_numpy(v) for v in (basis, r, new))
            np.testing.assert_allclose(basis @ basis.conj().T, y @ y.conj().T, atol=atol)
            np.testing.assert_allclose(r, g.conj() @ basis, atol=10 * atol)
            np.testing.assert_allclose(new, r / np.linalg.norm(r, axis=0), atol=atol)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_gives_nan(lib, bad):
    rng = np.random.default_rng(0)
    g, p = rng.standard_normal((3, 6, 5)), np.linalg.qr(rng.standard_normal((3, 6, 2)))[0]
    expected = range_lmo(g, p)
    for which in (g, p):
        which = which.copy()
        which[1, 2, 1] = bad
        arrays = (which, p) if which.shape == g.shape else (g, which)
        t = lib.to_numpy(range_lmo(*map(lib.asarray, arrays)))
        assert np.isnan(t[1]).all()
        np.testing.assert_allclose(t[::2], expected[::2], atol=1e-13)
