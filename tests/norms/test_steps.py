"""Each optimizer as the one-line instance that the page gives, against its textbook update."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import DTYPES, HALF, Library

import polarlib
from polarlib import norms
from polarlib.norms.low_rank import power_step, range_lmo
from polarlib.norms.spectral_maps import polargrad
from polarlib.updates import debias, ema, lion, nesterov, polyak, presgdw_step, scg_step, uscg_step

STEPS = 6
RATE = 0.03


def gradients(shape=(5, 4), seed=0):
    return list(np.random.default_rng(seed).standard_normal((STEPS, *shape)))


def start(shape=(5, 4)):
    return np.random.default_rng(99).standard_normal(shape)


def svd_factor(g):
    u, _, vh = np.linalg.svd(g, full_matrices=False)
    return u @ vh


# -- instances that are linear in the gradient, or diagonal ----------------------------------


def test_sgd_with_weight_decay():
    x = want = start()
    for g in gradients():
        x = presgdw_step(x, g, rate=RATE, decay=0.1)
        want = want - RATE * (g + 0.1 * want)  # for plain SGD, decoupled and L2 decay are the same
    np.testing.assert_allclose(x, want, rtol=1e-14)


@pytest.mark.parametrize("accelerated", [False, True])
def test_sgd_with_momentum_is_torch_s(accelerated, torch):
    x, b = start(), np.zeros((5, 4))
    p = torch.nn.Parameter(torch.tensor(x))
    judge = torch.optim.SGD([p], lr=RATE, momentum=0.9, nesterov=accelerated)
    for g in gradients():
        b = polyak(b, g, 0.9)
        x = presgdw_step(x, nesterov(b, g, 0.9) if accelerated else b, rate=RATE)
        p.grad = torch.tensor(g)
        judge.step()
    np.testing.assert_allclose(x, p.detach().numpy(), rtol=1e-13)


def test_signsgd():
    x = want = start()
    for g in gradients():
        x = uscg_step(x, g, norms.lp(math.inf).lmo, rate=RATE)
        want = want - RATE * np.where(g > 0, 1, -1)
    np.testing.assert_allclose(x, want, rtol=1e-14)


def adam(x, grads, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.0):
    """The instance: average, second moment, quadratic model with a diagonal."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for k, g in enumerate(grads, 1):
        m, v = ema(m, g, beta1), ema(v, g * g, beta2)
        h = debias(v, k, beta2) ** 0.5 + eps
        x = presgdw_step(x, debias(m, k, beta1), h, rate=RATE, decay=decay)
    return x


def test_adam_is_the_loop_of_its_paper():
    x, want = start((3,)), start((3,)).tolist()
    m, v = [0.0] * 3, [0.0] * 3
    for t, g in enumerate(gradients((3,)), 1):
        for i in range(3):
            m[i] = 0.9 * m[i] + 0.1 * g[i]
            v[i] = 0.999 * v[i] + 0.001 * g[i] ** 2
            mhat, vhat = m[i] / (1 - 0.9**t), v[i] / (1 - 0.999**t)
            want[i] -= RATE * mhat / (vhat**0.5 + 1e-8)
    np.testing.assert_allclose(adam(x, gradients((3,))), want, rtol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_torch_s(decay, torch):
    p = torch.nn.Parameter(torch.tensor(start()))
    judge = torch.optim.AdamW([p], lr=RATE, weight_decay=decay)
    for g in gradients():
        p.grad = torch.tensor(g)
        judge.step()
    got = adam(start(), gradients(), decay=decay)
    np.testing.assert_allclose(got, p.detach().numpy(), rtol=1e-12)


def test_adam_without_averages_is_signsgd():
    x = adam(start(), gradients(), beta1=0.0, beta2=0.0, eps=0.0)
    want = start()
    for g in gradients():
        want = uscg_step(want, g, np.sign, rate=RATE)
    np.testing.assert_allclose(x, want, rtol=1e-13)


def test_lion():
    x = want = start()
    m = old = np.zeros_like(x)
    for g in gradients():
        d, m = lion(m, g, 0.9, 0.99)
        x = presgdw_step(x, d, norms.lp(math.inf).lmo, rate=RATE, decay=0.1)
        update = np.sign(0.9 * old + 0.1 * g)
        want = want - RATE * (update + 0.1 * want)
        old = 0.99 * old + 0.01 * g
    np.testing.assert_allclose(x, want, rtol=1e-13)


# -- spectral instances ----------------------------------------------------------------------


def test_muon_is_jordan_s():
    """Buffer, Nesterov, five quintic steps on the wide side, scale by the larger of 1 and m/n."""
    x = want = start()
    b = buffer = np.zeros_like(x)
    lmo = norms.spectral(polar="jordan").lmo
    for g in gradients():
        b = polyak(b, g, 0.95)
        scale = norms.update_scale(5, 4, "jordan")
        x = uscg_step(x, nesterov(b, g, 0.95), lmo, rate=RATE, radius=scale)
        buffer = 0.95 * buffer + g
        y = (g + 0.95 * buffer).T
        y = y / np.linalg.norm(y)
        for _ in range(5):
            a = y @ y.T
            y = 3.4445 * y + (-4.7750 * a + 2.0315 * a @ a) @ y
        want = want - RATE * (5 / 4) ** 0.5 * y.T
    np.testing.assert_allclose(x, want, atol=1e-12)


def test_muon_is_torch_s(torch):
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    x, m, decay = start(), np.zeros((5, 4)), 0.1
    p = torch.nn.Parameter(torch.tensor(x))
    judge = torch.optim.Muon([p], lr=RATE, weight_decay=decay, momentum=0.95, nesterov=True)

    # Torch orthogonalises in bfloat16, whatever the input: they differ by its rounding.
    lmo = norms.spectral(polar="jordan").lmo
    for g in gradients():
        m = ema(m, g, 0.95)
        scale = norms.update_scale(5, 4, "jordan")
        x = scg_step(x, ema(m, g, 0.95), lmo, step=RATE * decay, radius=scale / decay)
        p.grad = torch.tensor(g)
        judge.step()
    moved = np.linalg.norm(x - start())
    assert np.linalg.norm(x - p.detach().numpy()) < 0.03 * moved


def test_nesterov_of_an_average_is_the_same_direction():
    m = b = np.zeros((5, 4))
    for g in gradients():
        m, b = ema(m, g, 0.95), polyak(b, g, 0.95)
        np.testing.assert_allclose(ema(m, g, 0.95), 0.05 * nesterov(b, g, 0.95), rtol=1e-12)


def test_scion():
    """Constrained: the point stays in the ball, and is a convex combination of its vertices."""
    radius, scale = 3.0, (5 / 4) ** 0.5
    lmo = norms.rms_to_rms(5, 4).lmo
    x = want = svd_factor(start())
    m = d = np.zeros_like(x)
    for g in gradients():
        m = ema(m, g, 0.9)
        x = scg_step(x, m, lmo, step=0.2, radius=radius)
        d = 0.9 * d + 0.1 * g
        u, _, vh = np.linalg.svd(-d, full_matrices=False)  # their argmin
        want = 0.8 * want + 0.2 * radius * scale * (u @ vh)
        assert np.linalg.norm(x, 2) <= radius * scale * (1 + 1e-12)
    np.testing.assert_allclose(x, want, rtol=1e-12)


def test_decoupled_decay_is_a_conditional_gradient():
    x, d = start(), gradients()[0]
    one = presgdw_step(x, d, svd_factor, rate=RATE, decay=0.2)
    other = scg_step(x, d, svd_factor, step=RATE * 0.2, radius=1 / 0.2)
    np.testing.assert_allclose(one, other, rtol=1e-13)


def test_dion():
    """Algorithm 1 of the paper with QR, and with the exact maximiser in the range."""
    rng = np.random.default_rng(5)
    q = basis = rng.standard_normal((4, 2))
    x = want = start()
    b = buffer = np.zeros_like(x)
    for g in gradients():
        b = b + g
        p, r, q = power_step(b, q)
        x = uscg_step(x, b, lambda d, p=p, q=q: p @ q.T, rate=RATE, radius=(5 / 4) ** 0.5)
        b = presgdw_step(b, p @ r.T, rate=0.05)  # error feedback, 1 - mu
        buffer = buffer + g
        left, _ = np.linalg.qr(buffer @ basis)
        right = buffer.T @ left
        buffer = buffer - 0.05 * left @ right.T
        basis = right / np.linalg.norm(right, axis=0)
        want = want - RATE * (5 / 4) ** 0.5 * left @ basis.T
    np.testing.assert_allclose(x, want, rtol=1e-10)
    exact = uscg_step(0 * x, b, lambda d: range_lmo(d, p), rate=1.0)
    s = np.linalg.svd(exact, compute_uv=False)
    np.testing.assert_allclose(s, [1, 1, 0, 0], atol=1e-13)


def test_fanions():
    """Top-k directions, and mixtures with the Frobenius and the sign direction."""
    alpha, eta, k = 0.3, 0.05, 2
    x, g = start(), gradients()[0]
    u, _, vh = np.linalg.svd(g, full_matrices=False)
    top = u[:, :k] @ vh[:k]
    for lmo, want in (
        (norms.fanion(k).lmo, top),
        (norms.f_fanion(k, alpha).lmo, alpha * top + (1 - alpha) * g / np.sqrt((g * g).sum())),
        (
            norms.s_fanion(k, alpha, eta).lmo,
            alpha * top + (1 - alpha) * eta * np.where(g > 0, 1, -1),
        ),
        (norms.neon().lmo, u[:, :1] @ vh[:1]),
        (norms.f_muon(alpha).lmo, alpha * u @ vh + (1 - alpha) * g / np.linalg.norm(g)),
        (norms.s_muon(alpha, eta).lmo, alpha * u @ vh + (1 - alpha) * eta * np.sign(g)),
    ):
        np.testing.assert_allclose(uscg_step(x, g, lmo, rate=RATE), x - RATE * want, atol=1e-14)


def test_scale():
    """Each column of the gradient normalised."""
    x = want = start()
    for g in gradients():
        x = uscg_step(x, g, norms.induced(1, 2).lmo, rate=RATE)
        want = np.stack(
            [want[:, j] - RATE * g[:, j] / np.hypot.reduce(g[:, j]) for j in range(4)], 1
        )
    np.testing.assert_allclose(x, want, rtol=1e-13)


def test_polargrad():
    x, g = start(), gradients()[0]
    u, s, vh = np.linalg.svd(g, full_matrices=False)
    got = presgdw_step(x, g, polargrad, rate=RATE)
    np.testing.assert_allclose(got, x - RATE * s.sum() * u @ vh, rtol=1e-12)


def test_shampoo_without_accumulation_is_muon_without_momentum():
    x, g = start((4, 4)), gradients((4, 4))[0]

    def root(a):  # a^(-1/4)
        values, vectors = np.linalg.eigh(a)
        return vectors * values**-0.25 @ vectors.T

    def solve(d):
        return root(d @ d.T) @ d @ root(d.T @ d)

    want = uscg_step(x, g, svd_factor, rate=RATE)
    np.testing.assert_allclose(presgdw_step(x, g, solve, rate=RATE), want, atol=1e-10)


# -- what the functions promise --------------------------------------------------------------

CALLS = {
    "scg": lambda x, d: scg_step(x, d, lambda t: t, step=0.25, radius=2.0),
    "uscg": lambda x, d: uscg_step(x, d, lambda t: t, rate=0.5, radius=3.0),
    "presgdw": lambda x, d: presgdw_step(x, d, d * d, rate=0.5, decay=0.5),
    "presgdw_function": lambda x, d: presgdw_step(x, d, lambda t: t, rate=0.5, decay=0.5),
    "ema": lambda x, d: ema(x, d, 0.75),
    "debias": lambda x, d: debias(x, 2, 0.75),
    "polyak": lambda x, d: polyak(x, d, 0.75),
    "nesterov": lambda x, d: nesterov(x, d, 0.75),
    "lion": lambda x, d: lion(x, d, 0.75, 0.5)[1],
}
CLOSED = {
    "scg": lambda x, d: 0.75 * x - 0.5 * d,
    "uscg": lambda x, d: x - 1.5 * d,
    "presgdw": lambda x, d: 0.75 * x - 0.5 / d,
    "presgdw_function": lambda x, d: 0.75 * x - 0.5 * d,
    "ema": lambda x, d: 0.75 * x + 0.25 * d,
    "debias": lambda x, d: x / (1 - 0.75**2),
    "polyak": lambda x, d: 0.75 * x + d,
    "nesterov": lambda x, d: d + 0.75 * x,
    "lion": lambda x, d: 0.5 * x + 0.5 * d,
}
every_call = pytest.mark.parametrize("name", CALLS)


@every_call
def test_library_dtype_and_input_are_kept(name, lib: Library):
    for dtype in (*DTYPES, *HALF):
        if not lib.has(dtype):
            continue
        for shape in ((), (3,), (2, 3, 2)):
            # Numbers that every format holds; float16's results are exact but for 1 / d.
            a = np.arange(1, 1 + np.prod(shape, dtype=int)).reshape(shape) / 4 + 1
            x, d = lib.asarray(a, dtype), lib.asarray(a + 0.5, dtype)
            got = CALLS[name](x, d)
            assert lib.dtype_name(got) == dtype
            assert lib.device(got) == lib.device(x)
            assert tuple(got.shape) == shape
            np.testing.assert_array_equal(lib.to_numpy(x), a)
            np.testing.assert_array_equal(lib.to_numpy(d), a + 0.5)
            eps = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype, 4 * 2.0**-24)
            np.testing.assert_allclose(lib.to_numpy(got), CLOSED[name](a, a + 0.5), rtol=eps)


@pytest.mark.parametrize("name", ["scg", "uscg", "ema", "polyak", "nesterov"])
def test_half_precision_is_rounded_once(name):
    """In float32 and then once: not term by term."""
    rng = np.random.default_rng(0)
    x, d = (rng.uniform(1, 2, 200).astype(np.float16) for _ in range(2))
    want = CLOSED[name](x.astype(np.float32), d.astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(CALLS[name](x, d), want)
    assert (CLOSED[name](x, d) != want).any()


@every_call
def test_overflow_and_nan_propagate_without_a_warning(name):
    x = np.array([3e38, np.nan, np.inf, 1.0], np.float32)
    d = np.array([-3e38, 1.0, np.inf, 0.0], np.float32)
    got = CALLS["presgdw_function" if name == "presgdw" else name](x, d)
    assert np.isnan(got[1])
    assert not np.isfinite(got[2])
    assert np.isfinite(got[3])


def test_a_zero_on_the_diagonal_gives_infinity_or_nan():
    x, d = np.ones(3), np.array([1.0, -1.0, 0.0])
    got = presgdw_step(x, d, np.zeros(3), rate=1.0)
    np.testing.assert_array_equal(got, [-np.inf, np.inf, np.nan])


def test_mixed_precision_takes_the_dtype_of_the_first():
    x, d = np.ones(3, np.float32), np.full(3, 1 / 3)
    assert presgdw_step(x, d, rate=1.0).dtype == np.float32
    assert ema(d, x, 0.5).dtype == np.float64


def test_steps_are_traceable(lib: Library):
    if lib.name != "jax":
        pytest.skip("only JAX traces")
    jax = pytest.importorskip("jax")
    step = jax.jit(lambda x, d: uscg_step(x, nesterov(d, d, 0.5), polarlib.orthogonalize, rate=0.1))
    a = start()
    got = np.asarray(step(lib.asarray(a), lib.asarray(a)))
    np.testing.assert_allclose(got, a - 0.1 * polarlib.orthogonalize(a), atol=1e-12)


def test_ends_of_the_ranges():
    x, d = start(), gradients()[0]
    np.testing.assert_array_equal(scg_step(x, d, np.sign, step=0), x)
    np.testing.assert_array_equal(scg_step(x, d, np.sign, step=1, radius=2), -2 * np.sign(d))
    np.testing.assert_array_equal(uscg_step(x, d, np.sign, rate=0), x)
    np.testing.assert_array_equal(presgdw_step(x, d, rate=0), x)
    np.testing.assert_array_equal(ema(x, d, 0), d)


BAD_NUMBERS = {
    r"step must be a number from 0 to 1, got": (
        lambda x, v: scg_step(x, x, np.sign, step=v),
        (-0.1, 1.1, np.nan, "1", None, True),
    ),
    r"radius must be a number above 0, got": (
        lambda x, v: uscg_step(x, x, np.sign, rate=1, radius=v),
        (0, -1.0, np.inf, 1j),
    ),
    r"rate must be a number of at least 0, got": (
        lambda x, v: presgdw_step(x, x, rate=v),
        (-1e-3, np.nan, np.inf),
    ),
    r"decay must be a number of at least 0, got": (
        lambda x, v: presgdw_step(x, x, rate=1, decay=v),
        (-1, None),
    ),
    r"beta must be a number of at least 0 and below 1, got": (
        lambda x, v: ema(x, x, v),
        (1, -0.1, np.nan),
    ),
    r"mu must be a number of at least 0 and below 1": (
        lambda x, v: nesterov(x, x, v),
        (1, "a"),
    ),
    r"beta2 must be a number of at least 0 and": (
        lambda x, v: lion(x, x, 0.9, v),
        (1.0,),
    ),
    r"k must be an integer of at least 1, got": (
        lambda x, v: debias(x, v, 0.9),
        (0, 1.0, True, -1),
    ),
}


@pytest.mark.parametrize("message", BAD_NUMBERS)
def test_bad_numbers(message):
    call, values = BAD_NUMBERS[message]
    for value in values:
        with pytest.raises(ValueError, match=message):
            call(np.ones(2), value)


@pytest.mark.parametrize("name", [n for n in CALLS if n != "debias"])
def test_bad_arrays(name):
    call = CALLS["presgdw_function" if name == "presgdw" else name]
    x = np.ones((2, 1))
    with pytest.raises(ValueError, match=r"must have the shape .*, \(2, 1\), got \(2,\)"):
        call(x, np.ones(2))
    with pytest.raises(TypeError, match=r"array of a supported library, got \[1\]"):
        call(x, [1])
    with pytest.raises(TypeError, match=r"the first array must be an array .* got 3"):
        call(3, x)
    with pytest.raises(TypeError, match="must be of a floating dtype, got int64"):
        call(x, np.ones((2, 1), np.int64))
    with pytest.raises(TypeError, match="must be real like the first array, got complex128"):
        call(x, x * 1j)


def test_two_libraries(torch):
    with pytest.raises(
        TypeError, match="the first array and d must be arrays of one library, got numpy and torch"
    ):
        presgdw_step(np.ones(2), torch.ones(2, dtype=torch.float64), rate=1)


def test_bad_lmo_and_preconditioner():
    x = np.ones((2, 2))
    with pytest.raises(TypeError, match="lmo must be a function of arrays"):
        uscg_step(x, x, "spectral", rate=1)
    with pytest.raises(ValueError, match="the result of lmo must have the shape"):
        scg_step(x, x, lambda d: d[0], step=0.1)
    with pytest.raises(TypeError, match="the result of h must be an array"):
        presgdw_step(x, x, lambda d: None, rate=1)
    with pytest.raises(ValueError, match="h must have the shape"):
        presgdw_step(x, x, np.ones(2), rate=1)
