"""Spectral maps against the SVD in NumPy, closed forms and 50-digit arithmetic."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from conftest import DTYPES, HALF, Library

import polarlib
from polarlib.norms.spectral_maps import (
    GEOMETRIC,
    KAON,
    KAON_DIVISOR,
    polargrad,
    random_spectrum,
    scrambled_spectrum,
    spectral_clip,
    spectral_power,
)
from polarlib.testing import with_singular_values

SHAPES = [(5, 5), (7, 4), (4, 7), (1, 1), (1, 4), (4, 1), (2, 3, 5, 3), (2, 3, 3, 5)]
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7} | {d: float(np.finfo(d).eps) for d in DTYPES}
MAPS = {
    "power": lambda g: spectral_power(g, -1 / 3),
    "power_up": lambda g: spectral_power(g, 0.5),
    "random": lambda g: random_spectrum(g, np.random.default_rng(7)),
    "scrambled": scrambled_spectrum,
    "polargrad": polargrad,
    "clip": lambda g: spectral_clip(g, 0.7),
    "clip_both": lambda g: spectral_clip(g, 2.5, low=0.7),
}
HOMOGENEOUS = ("power", "power_up", "random", "scrambled")  # of degree 0
every_map = pytest.mark.parametrize("name", MAPS)


def gaussian(shape, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    if dtype.startswith("complex"):
        a = a + 1j * rng.standard_normal(shape)
    return a.astype(dtype)


def reference(g, f):
    """U diag(f(sigma)) V^H by numpy.linalg in double precision."""
    u, s, vh = np.linalg.svd(g.astype(complex if np.iscomplexobj(g) else float), False)
    return (u * np.apply_along_axis(f, -1, s)[..., None, :]) @ vh


def freon(e):
    q = 1 + e

    def f(s):
        if q == 0:
            return np.exp(np.log(s).mean()) / s
        return np.mean(s**q) ** ((1 - q) / q) * s ** (q - 1)

    return f


def kaon(s, steps=5):
    x = s / np.sqrt((s * s).sum())
    for _ in range(steps):
        x = 4.1 * x * (1 - x * x) ** 2
    return x / 1.175


def random_values(shape):
    return 1 - np.random.default_rng(7).random(shape)


def expected(name, g):
    if name == "random":
        s = random_values((*g.shape[:-2], min(g.shape[-2:])))
        u, _, vh = np.linalg.svd(g.astype(complex if np.iscomplexobj(g) else float), False)
        return (u * s[..., None, :]) @ vh
    f = {
        "power": freon(-1 / 3),
        "power_up": freon(0.5),
        "scrambled": kaon,
        "polargrad": lambda s: np.full_like(s, s.sum()),
        "clip": lambda s: np.minimum(s, 0.7),
        "clip_both": lambda s: np.clip(s, 0.7, 2.5),
    }[name]
    return reference(g, f)


# -- what every map promises -----------------------------------------------------------------


@every_map
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_map_of_the_singular_values(name, shape):
    for dtype in ("float64", "complex128"):
        g = gaussian(shape, dtype, seed=3)
        np.testing.assert_allclose(MAPS[name](g), expected(name, g), rtol=0, atol=2e-12)


@every_map
def test_keeps_library_and_dtype_and_input(name, lib: Library):
    # JAX compiles for every dtype.
    for dtype in ("float32", "complex64", "bfloat16") if lib.name == "jax" else (*DTYPES, *HALF):
        if not lib.has(dtype):
            continue
        a = gaussian((2, 4, 3), dtype if dtype in DTYPES else "float32", seed=1)
        g = lib.asarray(a, dtype)
        before = np.array(lib.to_numpy(g))
        t = MAPS[name](g)
        assert lib.dtype_name(t) == dtype
        assert lib.device(t) == lib.device(g)
        np.testing.assert_array_equal(lib.to_numpy(g), before)
        # An inverse of the smallest value, and the chaos of Kaon, multiply rounding errors.
        atol = EPS[dtype] * (20 + 2000 * (name == "scrambled" and dtype not in HALF))
        want = expected(name, before)
        np.testing.assert_allclose(lib.to_numpy(t), want, rtol=0, atol=atol * np.abs(want).max())


@every_map
def test_zero_empty_and_integers(name):
    f = MAPS[name]
    for dtype in DTYPES:
        t = f(np.zeros((3, 2), dtype))
        assert t.dtype == dtype
        if name == "clip_both":  # as polar completes a zero matrix
            np.testing.assert_allclose(t.T @ t, 0.49 * np.eye(2), rtol=1e-6)
        else:
            assert not t.any()
    for shape in [(0, 3), (3, 0), (0, 0), (0, 5, 3), (2, 0, 3)]:
        assert f(np.zeros(shape)).shape == shape
    half_zero = np.stack([np.zeros((3, 2)), gaussian((3, 2))])
    assert f(half_zero)[0].any() == (name == "clip_both")
    assert f(half_zero)[1].any()
    whole = np.array([[3, 1], [0, 2]])
    np.testing.assert_array_equal(f(whole), f(whole.astype(float)))


@every_map
def test_not_finite_is_refused_on_the_host_and_kept_apart_on_devices(name):
    bad = gaussian((2, 3, 3))
    bad[0, 1, 2] = np.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 of 18 entries.*\(0, 1, 2\)"):
        MAPS[name](bad)
    strict = pytest.importorskip("array_api_strict")
    good = bad.copy()
    good[0] = 1.0
    t = np.asarray(MAPS[name](strict.asarray(bad)))
    assert np.isnan(t[0]).all()
    np.testing.assert_allclose(t[1], MAPS[name](good)[1], rtol=1e-13, atol=1e-15)


@every_map
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_huge_and_tiny_matrices(name, dtype):
    a = gaussian((5, 3), dtype, seed=4)
    for exponent in (-100, 100) if dtype == "float32" else (-1000, 1000):
        factor = np.ldexp(np.array(1, dtype), exponent)
        if name in HOMOGENEOUS:
            np.testing.assert_array_equal(MAPS[name](a * factor), MAPS[name](a))
        elif name == "polargrad":
            np.testing.assert_array_equal(polargrad(a * factor), polargrad(a) * factor)
        else:
            high, low = (float(np.array(x, dtype)) for x in (2.5, 0.7 * (name == "clip_both")))
            want = spectral_clip(a, high, low=low) * factor
            got = spectral_clip(a * factor, high * float(factor), low=low * float(factor))
            np.testing.assert_allclose(got, want, rtol=1e-5 if dtype == "float32" else 1e-13)


@every_map
def test_is_equivariant(name):
    g = gaussian((5, 4), "complex128", seed=5)
    q, r = (np.linalg.qr(gaussian((n, n), "complex128", seed=n))[0] for n in (5, 4))
    f = MAPS[name]
    np.testing.assert_allclose(f(q @ g @ r), q @ f(g) @ r, atol=1e-11)
    np.testing.assert_allclose(f(g.conj().T), f(g).conj().T, atol=1e-11)


@every_map
def test_bad_matrices(name):
    with pytest.raises(ValueError, match=r"g must be a matrix .* got shape \(3,\)"):
        MAPS[name](np.ones(3))
    with pytest.raises(TypeError, match="g must be an array of numbers"):
        MAPS[name]("abc")


# -- Freon -----------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [3.0, 1.0, 0.5, 1e-3, 1e-9, -1e-9, 1e-31, 0.0, -0.5, -2.0, -40.0])
def test_power_against_many_digits(q):
    s = [7.0, 2.0, 0.5, 1e-3]
    with mpmath.workdps(60):
        e = mpmath.mpf(q - 1.0)
        exact = 1 + e
        mean = (
            mpmath.exp(mpmath.fsum(map(mpmath.log, s)) / 4)
            if abs(exact) < mpmath.mpf(GEOMETRIC)
            else (mpmath.fsum(mpmath.mpf(v) ** exact for v in s) / 4) ** (1 / exact)
        )
        want = [float((v / mean) ** e) for v in map(mpmath.mpf, s)]
    got = np.diag(spectral_power(np.diag(s), q - 1.0))
    np.testing.assert_allclose(got, want, rtol=3e-14 * max(1, abs(q)))


def test_power_special_exponents():
    g = gaussian((6, 4), seed=2)
    u, _, vh = np.linalg.svd(g, False)
    np.testing.assert_allclose(spectral_power(g, 1), g * 2 / np.linalg.norm(g), rtol=1e-12)
    np.testing.assert_allclose(spectral_power(g, 0), u @ vh, atol=1e-13)
    # Inverse: adj(pinv), scaled so that the geometric mean of the singular values is 1.
    t = spectral_power(g, -1)
    np.testing.assert_allclose(np.linalg.svd(t, compute_uv=False).prod(), 1, rtol=1e-12)
    np.testing.assert_allclose(t / t[0, 0], np.linalg.pinv(g).T / np.linalg.pinv(g)[0, 0])


def test_power_is_the_lmo_of_a_schatten_ball_up_to_its_mean():
    """For q = 3: sigma^2 / ||sigma||_3^2 is the maximiser over the Schatten-3/2 ball."""
    s = np.array([3.0, 2.0, 1.0])
    lmo = s**2 / (s**3).sum() ** (2 / 3)
    got = np.diag(spectral_power(np.diag(s), 2.0))
    np.testing.assert_allclose(got, lmo * 3 ** (2 / 3), rtol=1e-13)


@pytest.mark.parametrize("e", [-3.0, -1.0, -1 / 3, 0.0])
def test_negative_powers_leave_noise_out(e):
    g = with_singular_values([3.0, 1.0, 0.0, 0.0], 6, 4, seed=1)
    assert np.linalg.matrix_rank(g) == 2
    s = np.linalg.svd(spectral_power(g, e), compute_uv=False)
    want = np.linalg.svd(spectral_power(np.diag([3.0, 1.0]), e), compute_uv=False)
    np.testing.assert_allclose(s[:2], want, rtol=1e-12)
    assert s[2] < 1e-14


def test_positive_powers_are_continuous_at_rank_deficiency():
    near, at = (spectral_power(np.diag([3.0, 1.0, t]), 0.5) for t in (1e-20, 0.0))
    np.testing.assert_allclose(near, at, atol=1e-9)


def test_powers_of_wide_spectra_do_not_overflow():
    g = np.diag(np.float32([1.0, 1e-3, 1e-6]))
    for e in (-40.0, -1.0, 40.0, 1e6, -1e6):
        assert np.isfinite(spectral_power(g, e)).all()


@pytest.mark.parametrize("e", [np.nan, np.inf, -2e6, "1", None, True, 1j])
def test_bad_exponents(e):
    with pytest.raises(ValueError, match=r"exponent must be a number of size at most 1e.06, got"):
        spectral_power(np.eye(2), e)


# -- Kaon ------------------------------------------------------------------------------------


def test_random_values_are_in_the_half_open_interval_and_reproducible():
    g = gaussian((40, 30))
    first, second = (random_spectrum(g, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    s = np.linalg.svd(first, compute_uv=False)
    assert 0 < s.min() < 0.2
    assert 0.8 < s.max() <= 1 + 1e-14
    assert not np.allclose(first, random_spectrum(g, np.random.default_rng(2)))


def test_null_directions_stay_zero():
    g = with_singular_values([2.0, 1.0, 0.0], 5, 3)
    assert np.linalg.matrix_rank(random_spectrum(g, np.random.default_rng(0))) == 2


def test_sampler_gets_generator_and_shape():
    rng = np.random.default_rng(0)

    def sampler(given, shape):
        assert given is rng
        assert shape == (2, 3)
        return np.arange(6).reshape(shape)

    g = np.stack([np.diag([3.0, 2.0, 1.0])] * 2)
    got = random_spectrum(g, rng, sampler)
    np.testing.assert_allclose(np.diagonal(got, 0, 1, 2), [[0, 1, 2], [3, 4, 5]], atol=1e-14)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones(2), r"real numbers of shape \(3,\), got float64 of shape \(2,\)"),
        (np.ones(3) * 1j, r"real numbers of shape \(3,\), got complex128"),
        (np.array([1, np.nan, 1]), r"finite numbers; its result contains NaN .* index \(1,\)"),
    ],
)
def test_bad_samplers(values, message):
    with pytest.raises(ValueError, match=message):
        random_spectrum(np.eye(3), np.random.default_rng(0), lambda rng, shape: values)


def test_bad_generator():
    with pytest.raises(TypeError, match=r"numpy.random.Generator, .*, got 3"):
        random_spectrum(np.eye(3), 3)


def test_kaon_map_has_the_published_maximum():
    x = np.linspace(0, 1, 100_001)
    y = KAON * x * (1 - x * x) ** 2
    assert y.max() == pytest.approx(1.1735, abs=5e-5)
    assert y.max() == pytest.approx(KAON * 16 / 25 / np.sqrt(5), rel=1e-9)
    assert x[y.argmax()] == pytest.approx(1 / np.sqrt(5), abs=1e-5)
    # The interval is mapped to itself, so that any number of steps is bounded.
    assert KAON * y.max() * (1 - y.max() ** 2) ** 2 < y.max() < KAON_DIVISOR


def test_scrambled_spectrum_stays_nonnegative_and_bounded():
    g = with_singular_values(np.geomspace(1, 1e-6, 30), 40, 30)
    t = scrambled_spectrum(g)
    u, _, vh = np.linalg.svd(g, False)
    s = np.real(np.diag(u.T @ t @ vh.T))
    assert s.min() > 0
    assert s.max() < 1
    np.testing.assert_allclose(t, (u * s) @ vh, atol=1e-11)
    assert not (np.diff(s) <= 0).all()  # scrambled indeed


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_number_of_steps(steps):
    s = np.array([3.0, 2.0, 1.0])
    got = np.diag(scrambled_spectrum(np.diag(s), steps=steps))
    np.testing.assert_allclose(got, kaon(s, steps), atol=1e-15 * 4.2**steps)


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "5"])
def test_bad_steps(steps):
    with pytest.raises(ValueError, match="steps must be an integer of at least 1, got"):
        scrambled_spectrum(np.eye(2), steps=steps)


# -- PolarGrad -------------------------------------------------------------------------------


def test_polargrad_is_the_steepest_descent_step():
    """It maximises <G, T> - ||T||_2^2 / 2, at half the square of the nuclear norm."""
    g = gaussian((5, 4), seed=8)
    nuclear = np.linalg.norm(g, "nuc")

    def gain(t):
        return (g * t).sum() - np.linalg.norm(t, 2) ** 2 / 2

    t = polargrad(g)
    assert gain(t) == pytest.approx(nuclear**2 / 2, rel=1e-13)
    for seed in range(20):
        assert gain(t + 0.1 * gaussian((5, 4), seed=seed)) < gain(t)


def test_polargrad_counts_the_rank():
    t = polargrad(with_singular_values([2.0, 1.0, 0.0], 5, 3))
    np.testing.assert_allclose(np.linalg.svd(t, compute_uv=False), [3, 3, 0], atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_polargrad_with_an_inexact_factor_has_the_stated_bias(dtype):
    g = gaussian((8, 5), dtype, seed=9)
    u, s, vh = np.linalg.svd(g, False)
    t = np.array([1.1, 1.0, 0.9, 0.8, 0.7])
    got = polargrad(g, polar=lambda x: ((u * t) @ vh).astype(x.dtype))
    assert got.dtype == dtype
    bias = (s * (t - 1)).sum() / s.sum()
    want = (u * t) @ vh * s.sum() * (1 + bias)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 if dtype == "float32" else 1e-12)


def test_polargrad_takes_the_methods_of_the_library(lib: Library):
    if lib.name == "jax":
        pytest.skip("compiling three methods takes seconds, and they are tested elsewhere")
    a = gaussian((9, 6), seed=10)
    exact = polargrad(a)
    g = lib.asarray(a)
    by_polar = polargrad(g, polar=lambda x: polarlib.polar(x, method="newton_schulz").unitary)
    np.testing.assert_allclose(lib.to_numpy(by_polar), exact, atol=1e-10)
    np.testing.assert_allclose(lib.to_numpy(polargrad(g, polar="qdwh")), exact, atol=1e-10)
    rough = lib.to_numpy(polargrad(g, polar=polarlib.orthogonalize))
    assert np.linalg.norm(rough - exact) < 0.3 * np.linalg.norm(exact)


def test_bad_polar():
    with pytest.raises(ValueError, match=r"must give an array of shape \(3, 3\)"):
        polargrad(np.eye(3), polar=lambda g: np.ones((2, 2)))
    with pytest.raises(ValueError, match="unknown method 'qwdh'"):
        polargrad(np.eye(3), polar="qwdh")
    with pytest.raises(TypeError, match=r"polar must be .* got 3"):
        polargrad(np.eye(3), polar=3)


# -- clipping --------------------------------------------------------------------------------


def test_clip_is_the_projection():
    """Variational inequality: <G - P, T - P> <= 0 for every T in the ball."""
    g = 2 * gaussian((5, 4), seed=11)
    p = spectral_clip(g, 1.0)
    assert np.linalg.norm(p, 2) == pytest.approx(1, rel=1e-14)
    for seed in range(30):
        t = gaussian((5, 4), seed=seed)
        t = t / max(1, np.linalg.norm(t, 2))
        assert ((g - p) * (t - p)).sum() <= 1e-12


def test_clip_leaves_what_is_inside_as_it_is(lib: Library):
    a = gaussian((2, 5, 4), "float32", seed=12)
    norms = np.linalg.norm(a, 2, axis=(1, 2))
    assert norms[0] != norms[1]
    got = lib.to_numpy(spectral_clip(lib.asarray(a), float(norms.min()) * 1.01))
    inside = int(norms.argmin())
    np.testing.assert_array_equal(got[inside], a[inside])
    assert (got[1 - inside] != a[1 - inside]).all()
    np.testing.assert_array_equal(spectral_clip(a, np.inf), a)
    np.testing.assert_array_equal(spectral_clip(a, 1e300), a)


@pytest.mark.parametrize(("scale", "limit"), [(1e30, 1e-30), (1e38, 1.0), (1e-30, 1e-36)])
@pytest.mark.parametrize("shape", [(2, 2), (1, 2, 2), (2, 2, 2)])
def test_clip_far_apart_from_the_limit(scale, limit, shape):
    g = np.broadcast_to(np.float32([[0, scale], [limit / 2, 0]]), shape)
    want = np.broadcast_to(np.float32([[0, limit], [limit / 2, 0]]), shape)
    got = spectral_clip(g, limit)
    np.testing.assert_allclose(got[..., 0, 1], want[..., 0, 1], rtol=1e-6)
    np.testing.assert_allclose(got, want, rtol=0, atol=limit)  # small values are rounding errors
    assert not spectral_clip(g, 1e-300).any()


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_both_limits_far_apart_from_the_matrix(scale):
    g = with_singular_values([3.0, 1.0, 0.5], 4, 3, seed=2)
    for high, low in ((2.0, 0.8), (1e-200, 1e-210), (1e200, 1e150), (1e200, 1e-200)):
        u, s, vh = np.linalg.svd(g, full_matrices=False)
        want = (u * np.clip(scale * s, low, high)) @ vh
        got = spectral_clip(g * scale, high, low=low)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-14 * np.abs(want).max())
    assert np.isfinite(spectral_clip(np.float32(g), 1e300, low=1e-300)).all()


def test_lower_limit_is_completed_as_the_polar_factor_is():
    g = with_singular_values([3.0, 1.0, 0.0, 0.0], 6, 4, seed=1)
    p = spectral_clip(g, 2.0, low=0.5)
    np.testing.assert_allclose(np.linalg.svd(p)[1], [2, 1, 0.5, 0.5], rtol=1e-13)
    np.testing.assert_allclose(
        np.linalg.svd(p - spectral_clip(g, 2.0))[1], [0.5, 0.5, 0, 0], atol=1e-14
    )
    np.testing.assert_allclose(
        spectral_clip(g, 1.0, low=1.0), polarlib.polar(g, method="svd")[0], atol=1e-14
    )


def test_what_is_inside_keeps_entries_of_any_size():
    g = np.float32([[1e30, 0], [0, 1e-15]])
    np.testing.assert_array_equal(spectral_clip(g, 1e31), g)


@pytest.mark.parametrize("high", [0, -1.0, np.nan, None, "1", True])
def test_bad_limits(high):
    with pytest.raises(ValueError, match="high must be a positive number, got"):
        spectral_clip(np.eye(2), high)


@pytest.mark.parametrize("low", [-1.0, 2.0, np.nan, None, "1", True, np.inf])
def test_bad_lower_limits(low):
    with pytest.raises(
        ValueError, match=r"low must be a number from 0 to high, which is 1\.5, got"
    ):
        spectral_clip(np.eye(2), 1.5, low=low)
