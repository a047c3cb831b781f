"""Two Halley steps on one Gram matrix: against mpmath, exact factors, and five quintics."""

from __future__ import annotations

import importlib
import math

import mpmath
import numpy as np
import pytest
import scipy.linalg
from conftest import Library, library, with_dask

import polarlib
from polarlib import Status, design, orthogonalize, polar
from polarlib._methods.halley import halley, rational
from polarlib.arrays.formats import format_of
from polarlib.arrays.library import at_least_single, format_name
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.rounded import round_to
from polarlib.testing import SPECTRA, spectrum, with_singular_values

module = importlib.import_module("polarlib._methods.halley")
FORMATS = ("bfloat16", "float16", "float32")
ERROR = 0.0189  # of the schedule; held against mpmath below
SINGLE = 1e-4  # what float32 adds: n unit roundoffs times a Q of up to 2000


def in_format(a: np.ndarray, precision: str) -> np.ndarray:
    """A float32 array of numbers of a format."""
    a = np.asarray(a, np.float32)
    return a if precision == "float32" else round_to(a, format_of(precision), ops_of(a))


def factor(a, precision="bfloat16", schedule=None):
    return rational(a, ops_of(a), schedule or halley(), precision=precision)[0]


def largest(q) -> float:
    return float(np.linalg.norm(np.asarray(q, np.float64), 2))


def of_singular_values(a: np.ndarray, schedule) -> np.ndarray:
    """U diag(s(sigma / bound)) V^H in double precision, with the bound as it is defined."""
    u, s, vh = np.linalg.svd(a.astype(np.result_type(a.dtype, np.float64)), full_matrices=False)
    return (u * schedule(s / np.sum(s**8) ** (1 / 8))) @ vh


def hostile(m: int, n: int):
    """What has broken others, beside the stress spectra."""
    rng = np.random.default_rng(0)
    for name in SPECTRA:
        yield name, with_singular_values(spectrum(name, n), m, n, seed=3)
    yield "constant", np.full((m, n), 1.1)
    yield "integers of rank one", np.outer(rng.integers(1, 4, m), rng.integers(1, 4, n))
    yield "Hadamard", scipy.linalg.hadamard(m)[:, :n]
    yield "sparse", (rng.random((m, n)) < 0.02) * rng.standard_normal((m, n))
    yield "graded columns", rng.standard_normal((m, n)) * np.geomspace(1, 1e-12, n)
    yield "graded rows", rng.standard_normal((m, n)) * np.geomspace(1, 1e-12, m)[:, None]
    yield "gaussian", rng.standard_normal((m, n))
    yield "half zero", rng.standard_normal((m, n)) * (np.arange(n) < n // 2)


# -- the schedule ----------------------------------------------------------------------------


def test_two_steps_are_the_best_function_of_type_9_8():
    """Zolotarev's product formula with mpmath's elliptic functions, nothing of ours."""
    with mpmath.workdps(60):
        l = mpmath.mpf("1e-3")
        m = 1 - l * l
        k = mpmath.ellipk(m)
        c = [(l * mpmath.ellipfun("sc", i * k / 9, m=m)) ** 2 for i in range(1, 9)]

        def value(x):
            zeros, poles = c[1::2], c[::2]
            return x * mpmath.fprod((x * x + z) / (x * x + p) for z, p in zip(zeros, poles))  # noqa: B905

        x = [mpmath.mpf(10) ** (-3 * mpmath.mpf(i) / 2000) for i in range(2001)]
        values = [value(t) for t in x]
        middle = (min(values) + max(values)) / 2
        error = (max(values) - min(values)) / (2 * middle)
        assert halley().error() == pytest.approx(float(error), rel=1e-4)
        assert float(error) == pytest.approx(ERROR, rel=1e-2)
        for t, v in zip(x[::50], values[::50], strict=True):
            assert halley()(float(t)) == pytest.approx(float(v / middle), rel=1e-13)
    assert len(halley()) == 2
    assert halley().factorisations == 2
    # Five quintics from the same lower end leave six times as much.
    assert design.for_precision("bfloat16", 1e-3, steps=5).error() > 6 * ERROR


def test_beyond_the_interval_it_grows_slowly():
    s = halley()
    assert s(1.4) < 1.2
    assert s(2.0) < 1.45
    assert s(1e3) < 1e3


# -- accuracy --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("shape", [(40, 40), (90, 30), (3, 2, 20, 10), (7, 1), (1, 1)])
def test_against_the_singular_value_decomposition(shape, dtype):
    rng = np.random.default_rng(1)
    a = rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if dtype[0] == "c" else 0)
    a = a.astype(dtype)
    wide = a.real.dtype.itemsize == 8
    precision = "float64" if wide else "float32"
    for schedule in (halley(), halley().truncate(1), design.zolotarev(3, 1e-3).truncate(2)):
        q, run = rational(a, ops_of(a), schedule, precision=precision)
        assert q.dtype == a.dtype
        assert run.iterations == len(schedule)
        # G, its square, the inverses and Gram matrices of all steps but the last, and X Q.
        assert run.matmuls == 3 + sum(len(step[1]) + 1 for step in schedule.steps[:-1])
        expected = [of_singular_values(x, schedule) for x in a.reshape(-1, *shape[-2:])]
        expected = np.reshape(expected, shape)
        # The bound exceeds its definition by n epsilons; small singular values err most.
        np.testing.assert_allclose(q, expected, atol=2e-11 if wide else 2e-3)


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("shape", [(64, 64), (256, 64), (512, 64)])
def test_stress(shape, precision):
    """No singular value leaves the image, whatever the matrix; directions are kept."""
    unit = format_of(precision).unit_roundoff
    for name, a in hostile(*shape):
        x = in_format(a, precision)
        q = factor(x, precision).astype(np.float64)
        assert np.all(np.isfinite(q)), name
        assert largest(q) < 1 + ERROR + 2 * unit + SINGLE, name
        a = x.astype(np.float64)
        assert np.sum(a * q) > 0, name
        s = np.linalg.svd(a, compute_uv=False)
        bound = np.sum(s**8) ** (1 / 8)
        u, s, vh = np.linalg.svd(a, full_matrices=False)
        images = np.einsum("mk,mk->k", u, q @ vh.T)
        assert np.all(images[s > 3e-3 * bound] > 1 - ERROR - 0.03), name
        assert np.all(images > -0.02), name
        h = (q.T @ a + a.T @ q) / 2
        backward = np.linalg.norm(a - q @ h) / np.linalg.norm(a)
        negative = max(0.0, -np.linalg.eigvalsh(h)[0]) / s[0]
        # |1 - q^2|, where q is within ERROR of 1 and then rounded, all entries alike at worst.
        assert backward < (1 + ERROR + unit + SINGLE) ** 2 - 1, name
        assert negative < 1e-4, name


@pytest.mark.parametrize("precision", FORMATS)
def test_rank_one_is_kept(precision):
    """A 16-bit Cholesky factorisation with a fixed jitter loses it: relative error 0.996."""
    unit = format_of(precision).unit_roundoff
    rng = np.random.default_rng(0)
    for n in (1, 2, 33, 200):
        for x in (np.ones((2 * n, n)), np.outer(rng.integers(1, 8, n), rng.integers(1, 8, n))):
            a = in_format(x, precision)
            u = a.astype(np.float64) / np.linalg.norm(a.astype(np.float64))
            q = factor(a, precision).astype(np.float64)
            assert np.linalg.norm(q - u) < ERROR + SINGLE + 3 * unit


def test_rank_two_and_zero_columns():
    a = in_format(with_singular_values(spectrum("rank two", 40), 60, seed=1), "float32")
    a[:, ::3] = 0
    u, _, vh = np.linalg.svd(a.astype(np.float64), full_matrices=False)
    q = factor(a, "float32")
    assert np.linalg.norm(q - u[:, :2] @ vh[:2]) < 2 * ERROR
    assert np.all(q[:, ::3] == 0)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("lower", [1e-2, 1e-4, 1e-6, 1e-9])
@pytest.mark.parametrize("r", [1, 2, 8])
def test_any_rational_schedule_is_safe(r, lower):
    """The jitter bounds Q, whatever the poles: beyond 1e-3 less is reached, and nothing lost."""
    full = design.zolotarev(r, lower)
    for schedule in {full.truncate(min(k, len(full))) for k in (1, 2, 3)}:
        for name, a in hostile(32, 32):
            x = in_format(a, "bfloat16")
            q = factor(x, "bfloat16", schedule)
            assert np.all(np.isfinite(q)), name
            # u^2 times a Q of up to 2000.
            assert largest(q) < 1 + schedule.error() + 0.04, name
            assert np.sum(x * q) > 0, name


# -- range, storage, stacks ------------------------------------------------------------------


@pytest.mark.parametrize("precision", FORMATS)
def test_every_scale(precision):
    """Bit for bit the same factor for c A over the range of the format."""
    fmt = format_of(precision)
    a = in_format(np.random.default_rng(2).integers(-8, 9, (24, 16)), precision)
    expected = factor(a, precision)
    top = math.floor(math.log2(fmt.largest)) - 3
    bottom = math.ceil(math.log2(fmt.smallest_normal * fmt.epsilon))
    for exponent in (top, top // 2, -3, bottom // 2, bottom):
        x = (a.astype(np.float64) * 2.0**exponent).astype(np.float32)
        np.testing.assert_array_equal(factor(x, precision), expected)
    large = np.full((32, 16), fmt.largest, np.float32)
    np.testing.assert_allclose(factor(large, precision), 1 / math.sqrt(512), rtol=0.03)


def test_float16_arrays_at_the_ends_of_their_range():
    rng = np.random.default_rng(4)
    for scale in (65504 / 4, 1.0, 2.0**-14, 2.0**-20):
        a = (np.clip(rng.standard_normal((48, 32)), -4, 4) * scale).astype(np.float16)
        x = a.astype(np.float32)
        q = factor(x, "float16")
        s = np.linalg.svd(q, compute_uv=False)
        assert np.all(np.abs(s - 1) < ERROR + 2e-3)


def test_zero_is_zero():
    for precision in FORMATS:
        assert not factor(np.zeros((5, 3), np.float32), precision).any()
    stack = np.stack([np.zeros((4, 3)), np.eye(4, 3)])
    q = factor(stack, "float64")
    assert not q[0].any()
    np.testing.assert_allclose(np.abs(q[1]), np.eye(4, 3), atol=ERROR + 1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(value):
    a = np.ones((3, 2), np.float32)
    a[1, 1] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        factor(a)


def test_eight_bits_are_refused():
    with pytest.raises(ValueError, match=r"at least 16 bits .*, got 'float8_e5m2'"):
        factor(np.ones((3, 2), np.float32), "float8_e5m2")


def test_inputs_are_not_touched():
    a = np.random.default_rng(3).standard_normal((30, 40)).astype(np.float32).T[::2]
    a.setflags(write=False)
    before = a.tobytes()
    for precision in FORMATS:
        q = factor(a, precision)
        np.testing.assert_array_equal(q, factor(a.copy(), precision))
    assert a.tobytes() == before


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_stacks_are_their_matrices(precision):
    rng = np.random.default_rng(5)
    a = in_format(rng.standard_normal((2, 3, 12, 8)), precision)
    a[0, 1] = 0
    a[1, 2] *= 2.0**40
    q = factor(a, precision)
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(q[index], factor(a[index], precision), atol=1e-2)


# -- failures --------------------------------------------------------------------------------


def test_the_jitter_grows_until_factorisations_hold(monkeypatch):
    """Too small a jitter, small poles: the Gram matrix of rank one is not semidefinite."""
    monkeypatch.setattr(module, "JITTER", 0.01)
    schedule = design.zolotarev(1, 1e-10).truncate(2)
    rng = np.random.default_rng(0)
    bad = in_format(np.outer(rng.integers(1, 4, 128), rng.integers(1, 4, 128)), "bfloat16")
    good = in_format(rng.standard_normal((128, 128)), "bfloat16")
    q, run = rational(bad, ops_of(bad), schedule, precision="bfloat16")
    assert "jitter grown" in run.note
    assert np.linalg.norm(q - bad / np.linalg.norm(bad)) < schedule.error() + 0.02
    both, note = rational(np.stack([good, bad]), ops_of(bad), schedule, precision="bfloat16")
    assert "jitter grown" in note.note
    # Neighbours are none the worse.
    alone, run = rational(np.stack([good, good]), ops_of(bad), schedule, precision="bfloat16")
    assert run.note == ""
    np.testing.assert_array_equal(both[0], alone[0])


def test_the_default_needs_no_growth():
    for _, a in hostile(64, 64):
        x = in_format(a, "bfloat16")
        assert rational(x, ops_of(x), halley(), precision="bfloat16")[1].note == ""


def test_without_jitter_singular_values_leave_the_image(monkeypatch):
    """Why it is there: the eigenvalues of G err in both directions."""
    monkeypatch.setattr(module, "JITTER", 0.0)
    over = [
        largest(factor(in_format(a, "float32"), "float32")) - 1 - halley().error()
        for _, a in hostile(64, 64)
    ]
    assert max(over) > 2 * SINGLE  # twice what they may leave it by; 7 to 12 times were seen


def test_equilibration_changes_no_bit():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 40)).astype(np.float32) * np.geomspace(1, 1e-3, 40, dtype="f4")
    z = x.T @ x + 1e-4 * np.eye(40, dtype=np.float32)
    d = np.float32(2.0) ** -np.round(np.log2(np.sqrt(np.diag(z)))).astype(np.float32)
    ops = ops_of(z)
    factors = ops.cholesky(z), ops.cholesky(d[:, None] * z * d)
    np.testing.assert_array_equal(d[:, None] * factors[0], factors[1])


# -- array libraries -------------------------------------------------------------------------


@with_dask
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "bfloat16", "float16"])
def test_libraries_agree(lib, dtype):
    if not lib.has(dtype):
        pytest.skip(f"{lib.name} has no {dtype}")
    rng = np.random.default_rng(6)
    a = rng.standard_normal((2, 20, 12))
    if dtype == "complex64":
        a = a + 1j * rng.standard_normal(a.shape)
    x = lib.asarray(a, dtype)
    ops = ops_of(x)
    wide = at_least_single(x, ops)
    precision = format_name(x)
    before = lib.to_numpy(x).tobytes()
    q, run = rational(wide, ops, halley(), precision=precision)
    assert lib.to_numpy(x).tobytes() == before
    host = lib.to_numpy(wide)
    expected, known = rational(host, ops_of(host), halley(), precision=precision)
    assert run == known
    unit = format_of(precision).unit_roundoff
    np.testing.assert_allclose(lib.to_numpy(q), expected, atol=max(1e-3, 2 * unit))


def test_devices_do_not_look(monkeypatch):
    """Where the library is none of the host's nothing is read, and nothing fails."""
    lib = library("array_api_strict")

    def looks(self, x):
        raise AssertionError("a number was read")

    monkeypatch.setattr(Ops, "item", looks)
    for schedule in (halley(), design.zolotarev(8, 1e-10).truncate(2)):
        for what, a in hostile(32, 32):
            x = lib.asarray(in_format(a, "bfloat16"))
            q = lib.to_numpy(rational(x, ops_of(x), schedule, precision="float32")[0])
            assert np.all(np.isfinite(q)), what
            assert largest(q) < 1 + schedule.error() + 3e-3, what


@pytest.mark.parametrize(("schedule", "growth"), [(halley(), 1), (design.zolotarev(1, 1e-5), 8)])
def test_the_jitter_of_devices_has_grown_beforehand(torch, monkeypatch, schedule, growth):
    """For poles far below 1e-6, where a factorisation may fail without notice."""
    rng = np.random.default_rng(0)
    x = torch.tensor(np.outer(rng.integers(1, 4, 64), rng.integers(1, 4, 64)).astype(np.float32))
    ops = ops_of(x)
    ops.host = False
    blind = rational(x, ops, schedule, precision="float64")[0].numpy()
    ops.host = True
    differ = []
    for factor_of in (1, 8):
        monkeypatch.setattr(module, "JITTER", 4.0 * factor_of)
        seen = rational(x, ops, schedule, precision="float64")[0].numpy()
        differ.append(np.abs(blind - seen).max())
    assert bool(differ[0] < differ[1]) is (growth == 1)


def test_under_jit():
    jax = pytest.importorskip("jax")
    lib = Library("jax")
    x = lib.asarray(np.random.default_rng(7).standard_normal((24, 16)), "float32")
    apply = jax.jit(lambda y: rational(y, ops_of(y), halley(), precision="bfloat16")[0])
    q = lib.to_numpy(apply(x))
    np.testing.assert_allclose(q, factor(np.asarray(x)), atol=1e-2)


# -- what users call -------------------------------------------------------------------------


def test_polar():
    a = np.random.default_rng(8).standard_normal((30, 20))
    result = polar(a, method="halley_fixed")
    assert result.method == "halley_fixed"
    assert result.status is Status.FIXED_SCHEDULE
    assert not result.converged
    assert result.iterations == 2
    assert result.orthogonality < 2.1 * ERROR
    np.testing.assert_allclose(result.unitary, of_singular_values(a, halley()), atol=1e-10)
    wide = polar(a.T, method=halley())
    np.testing.assert_allclose(wide.unitary, result.unitary.T, atol=1e-12)
    assert polarlib.methods()["halley_fixed"].startswith("Two")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_orthogonalize(lib, dtype):
    if not lib.has(dtype) or (lib.name == "jax" and dtype == "float16"):
        pytest.skip(f"{lib.name} has no {dtype}")
    a = np.random.default_rng(9).standard_normal((16, 40))
    x = lib.asarray(a, dtype)
    q = orthogonalize(x, schedule="halley")
    assert lib.dtype_name(q) == dtype
    s = np.linalg.svd(lib.to_numpy(q), compute_uv=False)
    assert np.all(np.abs(s - 1) < ERROR + 4e-3)
    one = orthogonalize(x, schedule=halley(), steps=1)
    assert np.ptp(np.linalg.svd(lib.to_numpy(one), compute_uv=False)) > 0.1
    assert not lib.to_numpy(orthogonalize(x * 0, schedule="halley")).any()


def test_choices_for_polynomials_are_refused():
    a = np.ones((4, 3))
    for name, value in {"form": "gram", "restarts": (1,), "normalisation": "aol"}.items():
        with pytest.raises(ValueError, match=f"{name}=.* rational: leave {name} out"):
            orthogonalize(a, schedule="halley", **{name: value})
    with pytest.raises(ValueError, match=r"at most 2 .* got 3; .*repeat='last'"):
        orthogonalize(a, schedule="halley", steps=3)
    with pytest.raises(ValueError, match="16 bits"):
        orthogonalize(a, schedule="halley", precision="float8_e4m3")
    assert orthogonalize(np.ones((0, 3)), schedule="halley").shape == (0, 3)


def test_measure():
    a = np.random.default_rng(10).standard_normal((30, 20))
    t = polarlib.measure(a, "halley_fixed", precision="float32")
    assert t.n_steps == 2
    assert t.matmuls.tolist() == [0, 5, 5]
    bound = np.sum(np.linalg.svd(a, compute_uv=False) ** 8) ** (1 / 8)
    s = np.linalg.svd(a, compute_uv=False) / bound
    for k in range(3):
        expected = halley().truncate(k)(s) if k else s
        np.testing.assert_allclose(t.singular_values[k], expected, atol=1e-4)
