"""polar() beyond the contract of its methods: evidence, hints, storage, U alone."""

from __future__ import annotations

import ast
import copy
import dataclasses
import gc
import math
import pickle
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import DTYPES, library

import polarlib
from polarlib import ConvergenceWarning, Status, polar
from polarlib._methods import HINTED, METHODS, partial_isometry
from polarlib._methods.auto import WORTH_IT
from polarlib._stages import stages
from polarlib.arrays.ops import ops_of
from polarlib.decomposition import unitary_factor
from polarlib.engine.evidence import DECOMPOSED_UP_TO, EXACT_UP_TO, PROBES, evidence, figures
from polarlib.testing import assert_polar, assert_unitary_factor, orthonormal, with_singular_values

EPS = float(np.finfo("f8").eps)


def gaussian(shape, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    if dtype.startswith("complex"):
        a = a + 1j * rng.standard_normal(shape)
    return a.astype(dtype)


# -- evidence --------------------------------------------------------------------------------


def perturbed(u, size, rank, seed):
    """U with an error of Frobenius norm `size` and a given rank."""
    m, n = u.shape
    e = gaussian((m, rank), u.dtype.name, seed) @ gaussian((rank, n), u.dtype.name, seed + 1)
    return u + size * e / np.linalg.norm(e)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize(("rank", "factor"), [(200, 1.15), (1, 2.5)])
@pytest.mark.parametrize("large", [False, True])
def test_estimated_figures_agree_with_exact_ones(dtype, rank, factor, large):
    """Within a few percent for many directions, a small factor for one."""
    m, n = 260, EXACT_UP_TO + 72
    ops = ops_of(np.eye(2))
    x = gaussian((m, n), dtype)
    for seed in range(5):
        u = perturbed(orthonormal(m, n, dtype=dtype), 1e-3, rank, seed)
        w = x @ u.conj().T if large else u.conj().T @ x
        h = (w + w.conj().T) / 2
        product = h @ u if large else u @ h
        exact = (
            np.linalg.norm(u.conj().T @ u - np.eye(n)) / np.sqrt(n),
            np.linalg.norm(x - product) / np.linalg.norm(x),
        )
        for found, true in zip(figures(u, h, x, ops, large=large), exact, strict=True):
            assert true / factor < found < true * factor
        skew = np.linalg.norm(u.conj().T @ x - x.conj().T @ u) / 2 / np.linalg.norm(x)
        found = evidence(u, x, ops, form_h=False).skew
        assert skew / factor < found < skew * factor


def test_estimated_figures_of_isometries():
    n = EXACT_UP_TO + 1
    ops = ops_of(np.eye(2))
    u = orthonormal(n, n) * np.r_[np.ones(n - 5), np.zeros(5)]
    assert figures(u, np.eye(n), u, ops, isometry=True)[0] < 1e-14
    assert figures(u, np.eye(n), u, ops)[0] == pytest.approx(np.sqrt(5 / n), rel=0.5)


def test_one_flipped_singular_value_is_found_at_every_size(monkeypatch):
    """H = U^H A is exactly Hermitian and U orthonormal: only the test of definiteness fails."""

    def flips(x, ops, *, tol, callback=None):
        u, s, vh = np.linalg.svd(x, full_matrices=False)
        u = u * np.r_[np.ones(s.size - 1), -1.0]
        return u @ vh, polarlib.result.Run(1, 0, True)

    monkeypatch.setitem(METHODS, "newton", flips)
    for n in (5, EXACT_UP_TO + 20):
        result = polar(with_singular_values(np.geomspace(1, 1e-3, n)), method="newton")
        assert result.status is Status.FELL_BACK
        assert result.method == "newton, then svd"
        assert "missed the tolerance" in result.reason


def test_one_direction_short_of_orthonormal_is_found(monkeypatch):
    """An error of rank one, the hardest for random probes, where figures are estimated."""

    def short(x, ops, *, tol, callback=None):
        u, s, vh = np.linalg.svd(x, full_matrices=False)
        return (u * np.r_[np.ones(s.size - 1), 1 - 1e-9]) @ vh, polarlib.result.Run(1, 0, True)

    monkeypatch.setitem(METHODS, "newton", short)
    for seed in range(10):
        a = with_singular_values(np.geomspace(1, 1e-3, EXACT_UP_TO + 10), seed=seed)
        assert polar(a, method="newton").status is Status.FELL_BACK


def test_probes_miss_with_the_probability_that_is_claimed():
    from scipy.stats import chi2

    assert chi2.cdf(PROBES / 100, PROBES) < 1.1e-7


@pytest.mark.parametrize("method", ["auto", "svd", "qdwh", "newton", "newton_schulz", "zolotarev"])
@pytest.mark.parametrize("condition", [1.0, 10.0, 1e6])
@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_condition_bounds_hold(method, condition, dtype):
    if condition == 1e6 and dtype == "complex64":
        condition = 1e3
    for n in (12, 150):
        a = with_singular_values(np.geomspace(1, 1 / condition, n), n + 3, dtype=dtype)
        lower, upper = polar(a, method=method).condition_bounds
        slack = 1 + 1e3 * condition * float(np.finfo(dtype).eps)
        assert 1 <= lower <= condition * slack
        assert condition <= upper * slack


@pytest.mark.parametrize("method", HINTED)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_condition_bounds_do_not_rest_on_what_the_caller_says(kind, method):
    lib = library(kind)
    for n, condition in ((8, 1e2), (8, 1e6), (150, 1e4)):
        a = with_singular_values(np.geomspace(1, 1 / condition, n))
        for wrong in ({"cond": 1.5}, {"cond": 10.0}, {"sigma_min": 0.5}):
            result = polar(lib.asarray(a), method=method, **wrong)
            assert result.converged
            lower, upper = result.condition_bounds
            assert 1 <= lower <= condition * (1 + 1e-6)
            assert condition <= upper * (1 + 1e-6)


@pytest.mark.parametrize("method", ["auto", "svd", "hybrid", "structured", "qdwh", "halley"])
def test_condition_bounds_are_infinite_where_the_rank_is_deficient(method):
    for n, dtype in ((8, "float32"), (150, "float32"), (150, "float64")):
        a = with_singular_values(np.geomspace(1, np.finfo(dtype).eps / 10, n), dtype=dtype)
        result = polar(np.stack([a, np.eye(n, dtype=dtype)]), method=method)
        assert result.rank[0] < n == result.rank[1]
        assert result.condition_bounds[1][0] == np.inf
        assert np.all(result.condition_bounds[0] >= 1)


def test_qr_of_complex_low_rank(lib):
    """A quotient of tiny complex numbers is NaN in some libraries; a wrong factor is detected."""
    for dtype in ("complex64", "complex128")[: 1 if lib.name == "jax" else 2]:
        for a in (np.ones((8, 8)) * (1 + 1j), np.diag([1, 1e-30j, 0]), np.zeros((3, 3)) + 0j):
            result = polar(lib.asarray(a.astype(dtype)), method="qr")
            assert result.status is Status.NOT_POLAR
            u = lib.to_numpy(result.unitary)
            eps = float(np.finfo(dtype).eps)
            np.testing.assert_allclose(u.conj().T @ u, np.eye(len(a)), atol=20 * eps)
            r = u.conj().T @ a
            np.testing.assert_allclose(np.tril(r, -1), 0, atol=100 * eps)


def test_a_qr_factor_that_is_not_orthonormal_is_told(monkeypatch):
    right = METHODS["qr"]
    monkeypatch.setitem(
        METHODS, "qr", lambda x, ops, **how: (x * math.nan, right(x, ops, **how)[1])
    )
    with pytest.warns(ConvergenceWarning, match="method='qr'"):
        result = polar(np.eye(3), method="qr")
    assert result.status is Status.NOT_CONVERGED


def test_a_missed_tolerance_is_no_reason_to_try_what_was_tried():
    for method in ("svd", "auto", "newton"):
        with pytest.warns(ConvergenceWarning, match="larger rtol") as seen:
            polar(with_singular_values([3.0, 2.0, 1.0]), method=method, rtol=1e-30)
        assert "try" not in str(seen[0].message)
        assert seen[0].filename == __file__


def test_condition_bounds_of_deficient_matrices_and_stacks():
    singular = polar(np.ones((3, 3))).condition_bounds
    assert singular[1] == np.inf
    assert singular[0] >= 1
    assert polar(np.zeros((3, 3))).condition_bounds == (1.0, np.inf)
    lower, upper = polar(np.stack([np.eye(3), np.diag([1.0, 1e-3, 1.0])])).condition_bounds
    assert lower.shape == upper.shape == (2,)
    assert np.all(lower <= np.array([1, 1e3]) * 1.001)
    assert np.all(upper * 1.001 >= [1, 1e3])
    assert polar(np.zeros((4, 0, 3))).condition_bounds[0].shape == (4,)


def test_reason_and_condition_are_shown():
    result = polar(gaussian((6, 6)))
    assert "condition" in repr(result)
    assert "condition" in result._repr_html_()
    odd = dataclasses.replace(result, method="<script>", reason="a & <b>")._repr_html_()
    assert "&lt;script&gt;" in odd
    assert "a &amp; &lt;b&gt;" in odd
    assert set(result.to_dict()) >= {"condition_bounds", "reason", "method"}


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["auto", "svd"])
def test_rank_of_large_matrices(name, dtype, method):
    """Above DECOMPOSED_UP_TO columns: the inertia of H must be that of the singular values."""
    lib = library(name)
    n = DECOMPOSED_UP_TO + 33
    for rank in (1, 2, n // 2, n - 1):
        s = np.r_[np.geomspace(1, 1e-2, rank), np.zeros(n - rank)]
        a = with_singular_values(s, n + 5, dtype=dtype)
        assert polar(lib.asarray(a), method=method).rank == rank
        assert (
            polar(lib.asarray(np.stack([a, a * 1e-30])), method=method).rank.tolist() == [rank] * 2
        )


# -- hints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(HINTED))
@pytest.mark.parametrize("n", [6, 150])
@pytest.mark.parametrize("scale", [1.0, 1e200])
def test_hints_give_the_same_factor(method, n, scale):
    s = np.geomspace(1, 1e-3, n) * scale
    a = with_singular_values(s)
    for hint in (
        {"cond": 1.1e3},
        {"sigma_min": 0.9e-3 * scale},
        {"cond": 2e3, "sigma_min": 1e-300},
    ):
        result = polar(a, method=method, **hint)
        assert result.status is Status.CONVERGED
        assert_polar(a, *result, rtol=1e-13)
        assert_unitary_factor(a, unitary_factor(a, method=method, **hint), rtol=1e-13)


@pytest.mark.parametrize("method", sorted(HINTED))
def test_a_wrong_hint_is_found_out(method):
    """Singular values down to 1e-6 where the caller promised 0.5."""
    a = with_singular_values(np.geomspace(1, 1e-6, 150))
    result = polar(a, method=method, cond=2.0)
    assert result.converged
    assert_polar(a, *result, rtol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"cond": 0.5}, "cond must be a number of at least 1, got 0.5"),
        ({"cond": np.nan}, "cond must be .* got nan"),
        ({"cond": "10"}, "cond must be"),
        ({"sigma_min": 0}, "sigma_min must be a number above 0, got 0"),
        ({"sigma_min": -1.0}, "sigma_min must be"),
        ({"sigma_min": True}, "sigma_min must be"),
        ({"sigma_min": 1e9}, "at most the largest singular value"),
        ({"cond": 10, "method": "svd"}, "start from a bound .auto.*got method='svd'"),
        ({"cond": 10, "method": "jordan"}, "start from a bound"),
    ],
)
def test_bad_hints(arguments, match):
    with pytest.raises(ValueError, match=match):
        polar(np.eye(3), **arguments)


# -- storage ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("shape", [(4, 4), (6, 4), (3, 5), (2, 4, 3), (2, 0, 3)])
@pytest.mark.parametrize("side", ["right", "left"])
def test_out(name, shape, side):
    lib = library(name)
    k = shape[-1] if side == "right" else shape[-2]
    a = lib.asarray(gaussian(shape))
    expected = polar(a, side=side)
    u, h = lib.asarray(np.full(shape, 7.0)), lib.asarray(np.full((*shape[:-2], k, k), 7.0))
    result = polar(a, side=side, out=(u, h))
    assert result.unitary is u
    assert result.hermitian is h
    np.testing.assert_array_equal(lib.to_numpy(u), lib.to_numpy(expected.unitary))
    np.testing.assert_array_equal(lib.to_numpy(h), lib.to_numpy(expected.hermitian))
    result = polar(a, side=side, out=(None, h))
    assert result.hermitian is h
    assert result.unitary is not u


@pytest.mark.parametrize("order", ["C", "F", "strided"])
@pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7), (150, 140)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_overwrite(order, shape, dtype):
    a = gaussian(shape, dtype)
    b = np.zeros((shape[0], 2 * shape[1]), dtype)[:, ::2] if order == "strided" else a.copy(order)
    b[...] = a
    result = polar(b, overwrite_a=True)
    assert result.unitary is b
    assert_polar(a, b, result.hermitian)
    b[...] = a
    assert unitary_factor(b, overwrite_a=True) is b
    assert_unitary_factor(a, b)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"out": np.eye(3)}, TypeError, "pair"),
        ({"out": (np.eye(3),)}, TypeError, "pair"),
        ({"out": (np.eye(3, dtype="f4"), None)}, TypeError, r"out\[0\] .* float64 .*, got float32"),
        ({"out": (None, np.eye(2))}, TypeError, r"out\[1\] .* shape \(3, 3\), got .*\(2, 2\)"),
        ({"out": (np.eye(3), None), "overwrite_a": True}, ValueError, "both would store U"),
        ({"a": [[1.0, 0.0], [0.0, 1.0]], "overwrite_a": True}, ValueError, "got list"),
        ({"a": np.eye(3, dtype=int), "overwrite_a": True}, ValueError, "floating dtype"),
    ],
)
def test_bad_storage(arguments, error, match):
    with pytest.raises(error, match=match):
        polar(**({"a": np.eye(3)} | arguments))


@pytest.mark.parametrize("name", ["numpy", "torch", "array_api_strict"])
def test_storage_that_overlaps(name):
    lib = library(name)
    a, buffer = lib.asarray(gaussian((3, 3)), "float64"), lib.asarray(np.zeros((4, 6)), "float64")
    for u, h in ((buffer[:3, :3], buffer[1:, :3]), (buffer[:3, 2:5], buffer[:3, :3])):
        if name == "array_api_strict":  # its slices are copies, its addresses hidden
            u = h
        with pytest.raises(ValueError, match=r"out\[0\] and out\[1\] share memory"):
            polar(a, out=(u, h))
    with pytest.raises(ValueError, match=r"a and out\[1\] share memory"):
        polar(u, overwrite_a=True, out=(None, u))
    # Columns of one buffer interleave, and do not overlap.
    u, h = polar(a, out=(buffer[:3, :3], buffer[:3, 3:]))
    assert_polar(lib.to_numpy(a), lib.to_numpy(u), lib.to_numpy(h))


def test_read_only_storage():
    a = np.eye(3)
    a.flags.writeable = False
    with pytest.raises(ValueError, match="a must be writable"):
        polar(a, overwrite_a=True)


# -- the unitary factor alone ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 5), (160, 140), (140, 160), (3, 4, 2), (0, 3)])
def test_unitary_factor(lib, shape, dtype):
    a = lib.asarray(gaussian(shape, dtype))
    u = unitary_factor(a)
    assert type(u) is type(a)
    assert lib.dtype_name(u) == dtype
    assert tuple(u.shape) == shape
    np.testing.assert_allclose(
        lib.to_numpy(u), lib.to_numpy(polar(a).unitary), atol=2e3 * float(np.finfo(dtype).eps)
    )


@pytest.mark.parametrize("n", [6, 150])
def test_unitary_factor_of_deficient_matrices(n):
    a = with_singular_values(np.r_[np.ones(n - 2), 0, 0])
    for method in ("auto", "svd", "qdwh", "newton", "newton_schulz"):
        u = unitary_factor(a, method=method)
        np.testing.assert_allclose(u.T @ u, np.eye(n), atol=1e-13)
    isometry = unitary_factor(a, completion=False)
    np.testing.assert_allclose(isometry, partial_isometry(a, ops_of(a)), atol=1e-14)
    assert np.linalg.matrix_rank(isometry) == n - 2


def test_unitary_factor_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="not the polar factor"):
        unitary_factor(np.eye(3), method="qr")
    with pytest.raises(ValueError, match="unknown method"):
        unitary_factor(np.eye(3), method="qdwg")
    with pytest.raises(ValueError, match="NaN"):
        unitary_factor(np.full((3, 3), np.nan))
    both = np.stack([np.eye(3), np.full((3, 3), np.nan)])
    u = unitary_factor(both, check_finite=False)
    np.testing.assert_allclose(u[0], np.eye(3), atol=1e-15)
    assert np.isnan(u[1]).all()
    with pytest.warns(ConvergenceWarning, match=r"unitary_factor\(method='newton'\)"):
        unitary_factor(gaussian((9, 9)), method="newton", rtol=1e-19)
    with pytest.raises(ConvergenceWarning):
        unitary_factor(gaussian((9, 9)), method="newton", rtol=1e-19, throw=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unitary_factor(gaussian((9, 9)), method="polar_express")  # a fixed schedule may end short


# -- figures that are computed when they are read ---------------------------------------------


@pytest.fixture
def computed(monkeypatch):
    """Names of the functions that were called for figures."""
    called = []
    for name in ("rank_of", "condition_bounds"):
        f = getattr(stages, name)
        monkeypatch.setattr(
            stages, name, lambda *a, f=f, name=name, **k: (called.append(name), f(*a, **k))[1]
        )
    return called


READERS = {
    "rank": lambda r: r.rank,
    "condition_bounds": lambda r: r.condition_bounds,
    "repr": repr,
    "html": lambda r: r._repr_html_(),
    "dict": lambda r: r.to_dict(),
    "pickle": pickle.dumps,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "replace": lambda r: dataclasses.replace(r, reason="none"),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("method", ["auto", "svd", "polar_express", "newton_schulz"])
def test_figures_are_computed_when_they_are_read(computed, method, read):
    a = with_singular_values(np.geomspace(1, 0.1, WORTH_IT))
    result = polar(a, method=method)
    assert "condition_bounds" not in computed
    assert result.status is polar(a, method=method).status
    with np.errstate(all="raise"):  # as they are computed under default settings
        read(result)
    assert "condition_bounds" in computed or read is READERS["rank"]
    count = len(computed)
    assert result.rank == WORTH_IT
    low, high = result.condition_bounds
    assert low <= 10 <= high * (1 + 1e-12)
    assert type(low) is type(high) is float
    assert read is READERS["rank"] or len(computed) == count  # once


def test_figures_that_are_not_read_survive_copies_and_threads(computed):
    a = with_singular_values(np.r_[np.ones(140), np.zeros(10)])
    result = polar(a, method="polar_express")
    assert not computed
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: result.rank, range(64))) == {140}
    assert computed == ["rank_of"]
    for made in (pickle.loads(pickle.dumps(result)), copy.copy(result), result._replace()):
        assert (made.rank, made.condition_bounds) == (140, result.condition_bounds)
        assert math.isinf(made.condition_bounds[1])
    with pytest.raises(AttributeError, match="no attribute 'ranks'"):
        _ = result.ranks


@pytest.mark.parametrize("method", ["auto", "svd", "polar_express"])
@pytest.mark.parametrize("n", [6, 150])
def test_a_result_does_not_keep_its_matrix(method, n):
    a = with_singular_values(np.geomspace(1, 0.1, n)).copy()
    alive = weakref.ref(a)
    result = polar(a, method=method)
    del a
    gc.collect()
    assert alive() is None
    assert result.rank == n


def test_results_are_made_at_one_place():
    root = Path(polarlib.__file__).parent
    calls = [
        f"{path.relative_to(root)}"
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "PolarResult")
        or (isinstance(node, ast.Attribute) and node.attr == "_made")
    ]
    assert calls == ["_stages/results.py"]
