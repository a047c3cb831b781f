"""Derivatives of spectral maps against finite differences, at and near degenerate matrices.

With torch and JAX where they are installed; the rule itself in NumPy.
"""

from __future__ import annotations

import numpy as np
import pytest
from conftest import library

from polarlib import norms
from polarlib.arrays.ops import ops_of
from polarlib.engine import generalised as rule
from polarlib.norms import spectral_maps
from polarlib.norms.unitary import Unitary

N = 4
SPECTRA = {
    "apart": [2.0, 1.2, 0.7, 0.3],
    "ties": [2.0, 2.0, 0.7, 0.7],
    "all equal": [1.7] * N,
    "nearly ties": [2.0, 2 - 1e-9, 0.7, 0.7 - 1e-13],
    "about a limit": [1 + 1e-9, 1 - 1e-9, 0.5 + 1e-9, 0.5 - 1e-9],
}
SHAPES = {"square": (N, N), "tall": (6, N), "wide": (N, 6)}


def limits(low, high):
    at = tuple(np.array([float(x)]) for x in (low, high, 1))
    values, differences = rule.clip("no derivative here" if low else "")
    return rule.Map(lambda *x: values(*x, *at), lambda *x: differences(*x, *at))


def schatten(p):
    n = Unitary(None, p)
    return rule.Map(n._weights, n._differences)


# Public function, and its rule in NumPy.
MAPS = {
    "clip": (lambda x: norms.spectral_clip(x, 1.0), limits(0, 1)),
    "clip to a band": (lambda x: norms.spectral_clip(x, 1.0, low=0.5), limits(0.5, 1)),
    "project": (norms.spectral().project, limits(0, 1)),
    "lmo": (norms.spectral().lmo, rule.ISOMETRY),
    "polargrad": (norms.polargrad, rule.SHARP),
    **{f"schatten {p}": (norms.schatten(p).lmo, schatten(p)) for p in (1.25, 3)},
    **{
        f"power {e:g}": (lambda x, e=e: norms.spectral_power(x, e), spectral_maps._power(e))
        for e in (-1.0, -1 / 3, 0.0, 0.5, 1.0, 3.0, 40.0)
    },
}
# Those that are smooth at zero singular values; the others jump there or have no finite slope.
SMOOTH_AT_ZERO = ("clip", "project", "schatten 1.25", "power 1", "power 3", "power 40")
SINGULAR = {"one zero": [2.0, 0.7, 0.7, 0.0], "zeros": [2.0, 0.7, 0.0, 0.0]}
every_map = pytest.mark.parametrize("name", MAPS)


def gaussian(shape, complex_, seed):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    return a + 1j * rng.standard_normal(shape) if complex_ else a


def matrix(values, shape, complex_=False):
    m, n = shape
    u, v = (np.linalg.qr(gaussian((k, k), complex_, k))[0] for k in (m, n + 10))
    k = min(shape)
    return (u[:, :k] * values) @ np.linalg.qr(v[:n, :n])[0][:k]


def slope(f, x, e, h=5e-4):
    """Central difference, of sixth order."""
    d = [f(x + k * h * e) - f(x - k * h * e) for k in (1, 2, 3)]
    return (45 * d[0] - 9 * d[1] + d[2]) / (60 * h)


def inner(a, b):
    return np.vdot(a, b).real


def close(got, want, rtol):
    np.testing.assert_allclose(got, want, rtol=0, atol=rtol * np.abs(want).max())


# Those with limits of their own, which the scale of a matrix does not move.
MOVING = ("clip", "clip to a band", "project")


# -- the rule, in NumPy ------------------------------------------------------------------------


@every_map
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.thinned(2)
def test_rule_against_differences(name, spectrum, shape, complex_):
    f, r = MAPS[name]
    if name in MOVING and spectrum == "about a limit":
        pytest.skip("no finite step is short of the limit: see the exact test below")
    x = matrix(SPECTRA[spectrum], SHAPES[shape], complex_)
    e, y = (gaussian(x.shape, complex_, seed) for seed in (1, 2))
    close(rule.derivative(x, e, r), slope(f, x, e), 1e-7 if name == "power 40" else 1e-9)
    # Self-adjoint: it is the gradient's rule as well.
    forth, back = inner(y, rule.derivative(x, e, r)), inner(rule.derivative(x, y, r), e)
    assert forth == pytest.approx(back, abs=1e-11 * np.linalg.norm(rule.derivative(x, e, r)))


@pytest.mark.parametrize("name", SMOOTH_AT_ZERO)
@pytest.mark.parametrize("spectrum", SINGULAR)
@pytest.mark.parametrize("shape", SHAPES)
def test_rule_at_zero_singular_values(name, spectrum, shape):
    f, r = MAPS[name]
    x = matrix(SINGULAR[spectrum], SHAPES[shape])
    e = gaussian(x.shape, False, 1)
    exact = np.eye(*x.shape) * np.pad(SINGULAR[spectrum], (0, x.shape[1] - N))
    close(rule.derivative(exact, e, r), slope(f, exact, e), 1e-6 if name[0] in "s" else 1e-7)
    # The fourth power of singular values, for p = 1.25, has three derivatives at 0.
    close(rule.derivative(x, e, r), slope(f, x, e), 1e-6 if name[0] in "s" else 1e-7)


@pytest.mark.parametrize("name", ["lmo", "polargrad", "schatten 3", "power -1", "power 0.5"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rule_among_matrices_of_the_same_rank(name, shape):
    """``(I + t W) X (I + t Z)`` has the rank of X, and is compared to rounding only."""
    f, r = MAPS[name]
    x = matrix([2.0, 0.7, 0.7, 0.0], SHAPES[shape])
    m, n = x.shape
    w, z = gaussian((m, m), False, 3) / 4, gaussian((n, n), False, 4) / 4

    def moved(t, _=None):
        return f((np.eye(m) + t * w) @ x @ (np.eye(n) + t * z))

    # Of e = 0.5 the root of a rounding error is left, 1e-8, over the step.
    rtol = 1e-4 if name == "power 0.5" else 1e-8
    close(rule.derivative(x, w @ x + x @ z, r), slope(moved, 0.0, 1.0), rtol)


@pytest.mark.parametrize("name", ["lmo", "polargrad", "schatten 3", "power -1", "power 0.5"])
def test_rule_leaves_what_is_zero_to_rounding(name):
    _, r = MAPS[name]
    x = matrix([2.0, 0.7, 0.0, 0.0], (6, N))
    u, _, vh = np.linalg.svd(x)
    d = u.T @ rule.derivative(x, gaussian(x.shape, False, 5), r) @ vh.T
    np.testing.assert_allclose(d[2:, 2:], 0, atol=1e-13)
    assert np.abs(d).max() < 20


def test_clip_is_exact_about_its_limits():
    """Divided differences of a piecewise linear function, from exact differences."""
    s = np.array([1 + 3e-15, 1.0, 1 - 1e-15, 0.5 + 1e-15, 0.5, 0.5 - 5e-16, 0.25])
    d = limits(0.5, 1).differences(s, (7, 7), ops_of(s))
    exact = [[float(_share(a, b)) for b in s] for a in s]
    np.testing.assert_allclose(d.minus, exact, rtol=1e-15)
    np.testing.assert_allclose(d.plus, (d.values[:, None] + d.values) / (s[:, None] + s))


def _share(a, b):
    """The part of the way from a to b that is between the limits, one-sided from within."""
    from fractions import Fraction

    low, high = sorted((Fraction(a), Fraction(b)))
    if low == high:
        return Fraction(1, 2) <= low <= 1
    between = min(high, Fraction(1)) - max(low, Fraction(1, 2))
    return max(between, Fraction(0)) / (high - low)


def test_powers_of_near_values_keep_their_digits():
    """Against 40 digits: from ties over cancellation to values far apart."""
    import mpmath

    ops = ops_of(np.eye(1))
    for gap in (0.0, 1e-15, 1e-12, 1e-8, 1e-4, 0.3, 0.9):
        s = np.array([1.3, 1.3 * (1 - gap)])
        for e in (-1.0, -1 / 3, 0.5, 3.0, 100.0):
            one, zero = np.ones(1), np.zeros(1)
            d = rule.power_differences(s, s**e, e, one, zero, (2, 2), ops)
            with mpmath.workdps(40):
                a, b, q = map(mpmath.mpf, (*s.tolist(), e))
                want = q * a ** (q - 1) if a == b else (a**q - b**q) / (a - b)
                want = float(want)
            assert d.minus[0, 1] == pytest.approx(want, rel=1e-15 * (10 + 4 * abs(e)))
            assert d.minus[1, 0] == pytest.approx(want, rel=1e-15 * (10 + 4 * abs(e)))


def test_one_sided_at_a_limit():
    x, e = np.diag([2.0, 1.0]), np.diag([0.0, 1.0])
    f, r = MAPS["clip"]
    inner_side = (f(x) - f(x - 1e-6 * e)) / 1e-6
    close(rule.derivative(x, e, r), inner_side, 1e-9)


@every_map
def test_rule_in_single_precision(name):
    _, r = MAPS[name]
    for values in ([2.0, 2.0, 0.7, 0.3], [2.0, 2 - 1e-6, 0.7, 0.7 - 1e-4]):
        x = np.float32(matrix(values, (6, N)))
        e = np.float32(gaussian(x.shape, False, 1))
        got = rule.derivative(x, e, r)
        assert got.dtype == "float32"
        want = rule.derivative(np.float64(x), np.float64(e), r)
        close(got, want, 1e-4 if name == "power 40" else 2e-5)


@every_map
def test_rule_of_zero_matrices(name):
    _, r = MAPS[name]
    e = gaussian((5, N), False, 1)
    if name == "clip to a band":
        with pytest.raises(ValueError, match="no derivative here"):
            rule.derivative(0 * e, e, r)
        return
    want = e if name in ("clip", "project") else 0 * e
    np.testing.assert_allclose(rule.derivative(0 * e, e, r), want, rtol=0, atol=1e-14)


# -- through the libraries ---------------------------------------------------------------------


def torch_gradient(f, x, w, torch):
    a = torch.from_numpy(x).requires_grad_()
    f(a).backward(torch.from_numpy(w))
    return a.grad.numpy()


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
@every_map
@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_torch(name, shape, torch):
    f, _ = MAPS[name]
    for scale, complex_ in ((1.0, True), (2.0**80, False), (2.0**-80, False)):
        if name in MOVING and scale != 1:
            continue
        x = scale * matrix(SPECTRA["ties"], SHAPES[shape], complex_)
        e, w = (gaussian(x.shape, complex_, seed) for seed in (1, 2))
        want = slope(f, x, scale * e)
        gradient = torch_gradient(f, x, w, torch)
        assert scale * inner(gradient, e) == pytest.approx(inner(w, want), rel=1e-7)
        pair = torch.from_numpy(x), torch.from_numpy(scale * e)
        close(torch.func.jvp(f, pair[:1], pair[1:])[1].numpy(), want, 1e-8)


@every_map
def test_torch_stacks_and_second_derivatives(name, torch):
    f, _ = MAPS[name]
    x = np.stack([matrix(SPECTRA[k], (6, N)) for k in ("apart", "ties", "nearly ties")])
    w = gaussian(x.shape, False, 1)
    each = [torch_gradient(f, a, b, torch) for a, b in zip(x, w, strict=True)]
    close(torch_gradient(f, x, w, torch), np.stack(each), 1e-12)
    grad = torch.func.grad(lambda a, b: (f(a) * b).sum())
    both = torch.vmap(grad)(torch.from_numpy(x), torch.from_numpy(w))
    close(both.numpy(), np.stack(each), 1e-12)
    z, v = (gaussian((2, 3, 5), True, seed) for seed in (2, 3))
    grad = torch.func.grad(lambda a, b: (f(a) * b).real.sum())
    both = torch.vmap(grad)(torch.from_numpy(z), torch.from_numpy(v.conj()))
    close(both.numpy(), torch_gradient(f, z, v, torch), 1e-12)
    # At distinct singular values derivatives have derivatives.
    a = torch.from_numpy(x[0]).requires_grad_()
    assert torch.autograd.gradgradcheck(f, a, atol=1e-5)


def test_torch_half_precision(torch):
    x = matrix(SPECTRA["ties"], (6, N))
    w = gaussian(x.shape, False, 1)
    for dtype in (torch.float16, torch.bfloat16):
        a = torch.from_numpy(x).to(dtype).requires_grad_()
        norms.spectral_clip(a, 1.0).backward(torch.from_numpy(w).to(dtype))
        assert a.grad.dtype == dtype
        wide = a.detach().double().numpy()
        want = torch_gradient(MAPS["clip"][0], wide, w, torch)
        close(a.grad.double().numpy(), want, 4 * torch.finfo(dtype).eps)


def test_refusal_names_the_matrix_of_the_stack(torch):
    x = np.stack([matrix(SPECTRA["ties"], (5, N)), matrix(SINGULAR["one zero"], (5, N))])
    f, _ = MAPS["clip to a band"]
    a = torch.from_numpy(x).requires_grad_()
    y = f(a)
    assert np.isfinite(y.detach().numpy()).all()
    with pytest.raises(ValueError, match=r"rank-deficient.*take low=0.*\(matrix \(1,\) of the"):
        y.sum().backward()
    # Values inside the limits do not move, even if they are below the rounding of the largest.
    tiny = torch.diag(torch.tensor([1.0, 1e-18], dtype=torch.float64)).requires_grad_()
    norms.spectral_clip(tiny, 2.0, low=1e-20).sum().backward()
    assert bool((tiny.grad == 1).all())


@pytest.mark.parametrize("name", ["clip", "power -0.333333", "lmo", "schatten 3"])
@pytest.mark.thinned(2)
def test_jax(name):
    library("jax")
    import jax

    f, _ = MAPS[name]
    x = np.stack([matrix(SPECTRA[k], (6, N), complex_=True) for k in ("ties", "nearly ties")])
    e, w = (gaussian(x.shape, True, seed) for seed in (1, 2))
    want = np.stack([slope(f, *pair) for pair in zip(x, e, strict=True)])

    def value(a, b):
        return jax.numpy.sum((f(a) * b.conj()).real)

    got = jax.jit(jax.vmap(jax.grad(value)))(x, w)  # the conjugate, by JAX's convention
    assert inner(np.conj(got), e) == pytest.approx(inner(w, want), rel=1e-7)


def test_jax_gives_nan_where_there_is_no_derivative():
    library("jax")
    import jax

    f, _ = MAPS["clip to a band"]
    x = np.stack([matrix(SPECTRA["apart"], (5, N)), matrix(SINGULAR["one zero"], (5, N))])
    got = np.asarray(jax.jit(jax.vmap(jax.grad(lambda a: f(a).sum())))(x))
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[0]).all()
