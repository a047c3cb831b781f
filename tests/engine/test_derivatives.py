"""Derivatives against finite differences, closed forms, many digits, and the libraries' own."""

from __future__ import annotations

import functools

import mpmath
import numpy as np
import pytest
from conftest import DTYPES, HALF, Library, library

import polarlib
from polarlib._schedules.products import product_counts
from polarlib._schedules.validity import NORMALISATIONS
from polarlib.arrays.dual import Dual, DualOps
from polarlib.arrays.ops import Ops
from polarlib.decomposition import unitary_factor
from polarlib.derivatives import orthogonalize_jvp, orthogonalize_vjp, polar_jvp, polar_vjp
from polarlib.engine.derivatives import polar_gradient
from polarlib.engine.iterate import iterate

SHAPES = [(5, 3), (3, 5), (4, 4), (2, 3, 2)]
# A polynomial that is moderate everywhere on [0, 1], so that finite differences are accurate.
MILD = polarlib.Schedule(
    steps=[(1.875, -1.25, 0.375), (1.5, -0.5), (2.1875, -2.1875, 1.3125, -0.3125)]
)
ONE_STEP = polarlib.Schedule(steps=[(1.875, -1.25, 0.375)])
MILD_AOL = polarlib.Schedule(steps=MILD.steps, normalisation="aol")


def sample(shape: tuple[int, ...], seed: int = 0, *, is_complex: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if is_complex else x


def inner(x, y) -> float:
    return float(np.vdot(x, y).real)


def differences(f, a: np.ndarray, e: np.ndarray) -> tuple[np.ndarray, ...]:
    """Central differences of the fourth order."""
    h = 1e-3 * np.max(np.abs(a)) / np.max(np.abs(e))
    near, far = (
        [(p - q) / (2 * k * h) for p, q in zip(f(a + k * h * e), f(a - k * h * e), strict=True)]
        for k in (1, 2)
    )
    return tuple((4 * p - q) / 3 for p, q in zip(near, far, strict=True))


# -- the polar factors -------------------------------------------------------------------------


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("shape", SHAPES)
def test_polar_by_finite_differences(shape, side, is_complex):
    a = sample(shape, 1, is_complex=is_complex)
    for seed in (2, 3):
        e = sample(shape, seed, is_complex=is_complex)
        got = polar_jvp(a, e, side=side)
        wanted = differences(lambda x: tuple(polarlib.polar(x, side=side)), a, e)
        for p, q in zip(got, wanted, strict=True):
            np.testing.assert_allclose(p, q, atol=1e-6 * np.max(np.abs(q)))
        np.testing.assert_array_equal(got[1], got[1].conj().swapaxes(-1, -2))


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("shape", SHAPES)
def test_polar_vjp_is_the_adjoint(shape, side, is_complex):
    a, e, y = (sample(shape, seed, is_complex=is_complex) for seed in (1, 2, 3))
    du, dh = polar_jvp(a, e, side=side)
    b = sample(dh.shape, 4, is_complex=is_complex)
    for u_bar, h_bar in ((y, None), (None, b), (y, b)):
        wanted = (inner(y, du) if u_bar is not None else 0) + (
            inner(b, dh) if h_bar is not None else 0
        )
        got = inner(polar_vjp(a, u_bar, h_bar, side=side), e)
        assert got == pytest.approx(wanted, rel=1e-12, abs=1e-12)
    np.testing.assert_allclose(polar_vjp(a, y, side=side), polar_jvp(a, y)[0], atol=1e-13)


def test_closed_forms():
    e = sample((3, 3), 5)
    du, dh = polar_jvp(2.5 * np.eye(3), e)
    np.testing.assert_allclose(du, (e - e.T) / 5, atol=1e-15)
    np.testing.assert_allclose(dh, (e + e.T) / 2, atol=1e-15)
    s = np.array([3.0, 0.5, 1e-9])
    du, dh = polar_jvp(np.diag(s), e)
    np.testing.assert_allclose(du, (e - e.T) / (s[:, None] + s), atol=1e-12 * np.max(np.abs(du)))
    np.testing.assert_allclose(dh, (s[:, None] * e + e.T * s) / (s[:, None] + s), atol=1e-14)
    # The nearest rotation of [[a, -b], [b, a]] + ... is the phase of (a11 + a22) + i (a21 - a12).
    a, e = sample((2, 2), 6) + 8 * np.eye(2), sample((2, 2), 7)
    z, dz = (x[0, 0] + x[1, 1] + 1j * (x[1, 0] - x[0, 1]) for x in (a, e))
    turn = (dz / z).imag
    assert np.linalg.det(a) > 0
    np.testing.assert_allclose(
        polar_jvp(a, e)[0], turn * np.array([[0, -1.0], [1, 0]]) @ unitary_factor(a), atol=1e-14
    )
    v, w = sample((4, 1), 8), sample((4, 1), 9)  # a column: v / |v| and |v|
    size = np.linalg.norm(v)
    du, dh = polar_jvp(v, w)
    np.testing.assert_allclose(du, w / size - v * (v.T @ w) / size**3, atol=1e-15)
    np.testing.assert_allclose(dh, v.T @ w / size, atol=1e-15)


def _mp_polar(a):
    """Polar factor with many digits: Newton's iteration of the square factor of Cholesky."""
    gram = a.H * a
    x = mpmath.cholesky(gram).H
    r = x.copy()
    for _ in range(60):
        x = (x + (x**-1).H) / 2
    return a * r**-1 * x


@pytest.mark.parametrize("shape", [(4, 4), (5, 3)])
def test_polar_against_many_digits(shape):
    """Errors are those of rounding A: a condition number of epsilons, of the derivative's norm."""
    n = shape[1]
    u, _ = np.linalg.qr(sample(shape, 1))
    v, _ = np.linalg.qr(sample((n, n), 2))
    a, e = (u * np.logspace(0, -5, n)) @ v.T, sample(shape, 3)
    with mpmath.workdps(60):
        h = mpmath.mpf(10) ** -20
        up, down = (_mp_polar(mpmath.matrix(a) + k * h * mpmath.matrix(e)) for k in (1, -1))
        wanted = np.array(((up - down) / (2 * h)).tolist(), float)
    got = polar_jvp(a, e)[0]
    assert np.linalg.norm(got - wanted) < 100 * 1e5 * 2.2e-16 * np.linalg.norm(wanted)
    single = polar_jvp(a.astype(np.float32), e)[0]
    assert np.linalg.norm(single - wanted) < 10 * 1e5 * 1.2e-7 * np.linalg.norm(wanted)


def test_rank_deficient_matrices_are_refused():
    message = "no derivative at a rank-deficient matrix.*sum 0.0e.*orthogonalize"
    for a in (
        np.ones((3, 3)),
        np.zeros((2, 2)),
        sample((5, 1)) @ np.ones((1, 3)),
        np.zeros((1, 1)),
    ):
        for call in (polar_jvp, polar_vjp):
            with pytest.raises(ValueError, match="no derivative at a rank-deficient matrix"):
                call(a, np.ones_like(a))
    # Rank n - 1: the sums of different singular values are positive, but U is not unique.
    for a in (np.diag([2.0, 1.0, 0.0]), np.diag([2.0, 1.0, 0.0]) + 0j, np.diag([1.0, 1e-17])):
        with pytest.raises(ValueError, match="rank-deficient"):
            polar_jvp(a, np.ones_like(a))
    stack = np.stack([np.eye(2), np.zeros((2, 2)), np.eye(2)])[None]
    with pytest.raises(ValueError, match=message) as info:
        polar_vjp(stack, np.ones_like(stack))
    assert "in matrix (0, 1) of the stack" in str(info.value)


@pytest.mark.parametrize("exponent", [-1000, -300, 300, 1000])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (3, 3)])
def test_scale(shape, exponent):
    a, e, y = (sample(shape, seed) for seed in (1, 2, 3))
    c = 2.0**exponent
    for side in ("right", "left"):
        du, dh = polar_jvp(a, e, side=side)
        got = polar_jvp(c * a, c * e, side=side)
        np.testing.assert_allclose(got[0], du, atol=1e-12)
        np.testing.assert_allclose(got[1] / c, dh, atol=1e-12)
        b = np.ones_like(dh)
        np.testing.assert_allclose(
            polar_vjp(c * a, None, b, side=side), polar_vjp(a, None, b, side=side), atol=1e-12
        )
    assert np.array_equal(orthogonalize_jvp(c * a, c * e), orthogonalize_jvp(a, e))
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(
            orthogonalize_vjp(c * a, y), orthogonalize_vjp(a, y) / c, rtol=1e-9, atol=0
        )


# -- schedules ---------------------------------------------------------------------------------


def options(normalisation: str, form: str) -> dict:
    schedule = MILD_AOL if normalisation == "aol" else MILD
    return {"schedule": schedule, "normalisation": normalisation, "form": form, "restarts": (1,)}


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("form", ["plain", "gram"])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_schedule_by_finite_differences(normalisation, form, is_complex):
    same = options(normalisation, form)
    for shape in SHAPES:
        a, e, y = (sample(shape, seed, is_complex=is_complex) for seed in (1, 2, 3))
        a = a / (6 if normalisation == "none" else 1)
        got = orthogonalize_jvp(a, e, **same)
        (wanted,) = differences(lambda x: (polarlib.orthogonalize(x, **same),), a, e)
        np.testing.assert_allclose(got, wanted, atol=1e-7 * np.max(np.abs(wanted)))
        assert inner(orthogonalize_vjp(a, y, **same), e) == pytest.approx(
            inner(y, got), rel=1e-12, abs=1e-12
        )


def test_schedule_against_many_digits():
    a, e = sample((5, 3), 1), sample((5, 3), 2)
    schedule = polarlib.schedule("polar_express")
    with mpmath.workdps(60):
        h = mpmath.mpf(10) ** -20
        values = []
        for k in (1, -1):
            x = mpmath.matrix(a) + k * h * mpmath.matrix(e)
            x /= mpmath.norm(x) * schedule.input_safety
            for c in schedule.steps:
                g = x.T * x
                x = c[0] * x + c[1] * x * g + c[2] * x * g * g
            values.append(x)
        wanted = np.array(((values[0] - values[1]) / (2 * h)).tolist(), float)
    for form in ("plain", "gram"):
        got = orthogonalize_jvp(a, e, schedule=schedule, form=form)
        np.testing.assert_allclose(got, wanted, atol=1e-11 * np.max(np.abs(wanted)))


def test_no_derivative_is_zero_and_disturbs_nobody():
    a, y = sample((3, 4, 2), 1), sample((3, 4, 2), 2)
    a[1] = 0
    for normalisation in NORMALISATIONS:
        same = options(normalisation, "plain")
        for call in (orthogonalize_jvp, orthogonalize_vjp):
            d = call(a, y, **same)
            if normalisation == "none":  # nothing is divided by
                np.testing.assert_allclose(d[1], MILD.slope * y[1], rtol=1e-12)
            else:
                assert np.all(d[1] == 0)
            np.testing.assert_allclose(d[[0, 2]], call(a[[0, 2]], y[[0, 2]], **same), atol=1e-10)
    column = sample((4, 3), 3)
    column[:, 1] = 0
    for call in (orthogonalize_jvp, orthogonalize_vjp):
        d = call(column, np.ones((4, 3)), **options("aol", "plain"))
        assert np.all(np.isfinite(d))
        assert np.all(d[:, 1] == 0)
    equal = orthogonalize_jvp(np.eye(3), sample((3, 3)), **options("moments", "plain"))
    assert np.all(np.isfinite(equal))  # the bound has a kink where singular values are equal


def test_rank_deficient_matrices_have_a_derivative_of_a_schedule():
    a, e = sample((4, 1), 1) @ sample((1, 4), 2), sample((4, 4), 3)
    same = options("frobenius", "plain")
    (wanted,) = differences(lambda x: (polarlib.orthogonalize(x, **same),), a, e)
    np.testing.assert_allclose(orthogonalize_jvp(a, e, **same), wanted, atol=1e-7)


@pytest.mark.parametrize("form", ["plain", "gram"])
def test_products(form):
    """A step of degree 5 takes three products, and four more for its derivative."""

    class Counting(Ops):
        count = 0

        def matmul(self, a, b, out=None):
            Counting.count += 1
            return a @ b

    ops = DualOps(Counting(np))
    steps = [(1.875, -1.25, 0.375)] * 4
    iterate(Dual(sample((5, 3)) / 6, sample((5, 3), 1)), steps, ops, form=form)
    large, small = product_counts(steps, form=form)
    # Gram form: 3 of 5 with the large matrix, and 11 inside each step but the last, which has 2.
    assert Counting.count == (7 * len(steps) if form == "plain" else 5 + 2 + 11 * (len(steps) - 1))
    assert large + small == (3 * len(steps) if form == "plain" else 2 + 1 + 4 * (len(steps) - 1))


# -- every library -----------------------------------------------------------------------------

CALLS = {
    "polar_jvp": lambda a, e: polar_jvp(a, e)[0],
    "polar_jvp, H": lambda a, e: polar_jvp(a, e, side="left")[1],
    "polar_vjp": lambda a, e: polar_vjp(a, e),
    "orthogonalize_jvp": lambda a, e: orthogonalize_jvp(a, e, schedule=MILD),
    "orthogonalize_vjp": lambda a, e: orthogonalize_vjp(a, e, schedule=MILD, form="gram"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", DTYPES + HALF)
def test_libraries(lib: Library, dtype, name):
    if not lib.has(dtype):
        pytest.skip("no such dtype")
    if lib.name == "jax" and (dtype != "bfloat16" or name.startswith("polar")):
        pytest.skip("it compiles for long; what else there is of it has tests of its own")
    is_complex = dtype.startswith("complex")
    a, e = (lib.asarray(sample((2, 4, 3), s, is_complex=is_complex), dtype) for s in (1, 2))
    before = lib.to_numpy(a).copy(), lib.to_numpy(e).copy()
    d = CALLS[name](a, e)
    assert lib.dtype_name(d) == dtype
    assert type(d) is type(a)
    assert lib.device(d) == lib.device(a)
    np.testing.assert_array_equal(lib.to_numpy(a), before[0])
    np.testing.assert_array_equal(lib.to_numpy(e), before[1])
    wide = np.complex128 if is_complex else np.float64
    wanted = CALLS[name](*(b.astype(wide) for b in before))
    eps = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 2**-23, "complex64": 2**-23}
    tol = 40 * eps[dtype] if dtype in eps and dtype not in HALF else 2 * eps.get(dtype, 1e-14)
    np.testing.assert_allclose(lib.to_numpy(d), wanted, atol=tol * np.max(np.abs(wanted)))


def test_layouts_and_integers():
    a, e = sample((6, 4), 1), sample((6, 4), 2)
    for call in CALLS.values():
        whole = call(a[::2, ::-1], np.asfortranarray(e[::2, ::-1]))
        np.testing.assert_allclose(
            whole, call(a[::2, ::-1].copy(), e[::2, ::-1].copy()), atol=1e-13
        )
        small = [[3, 1], [0, 2]]
        np.testing.assert_allclose(
            call(small, [[1, 0], [2, 1]]),
            call(np.array(small, float), np.array([[1.0, 0], [2, 1]])),
        )
    assert polar_jvp(np.eye(2) * (1 + 0j), np.ones((2, 2)))[0].dtype == np.complex128


def test_empty():
    for shape in ((0, 3), (3, 0), (0, 2, 2)):
        a = np.zeros(shape)
        for side in ("right", "left"):
            du, dh = polar_jvp(a, a, side=side)
            assert du.shape == shape
            assert dh.shape == polarlib.polar(a, side=side).hermitian.shape
            assert polar_vjp(a, a, dh, side=side).shape == shape
        assert orthogonalize_jvp(a, a).shape == orthogonalize_vjp(a, a).shape == shape


def test_bad_input():
    a = np.eye(3)
    with pytest.raises(ValueError, match=r"da must have shape \(3, 3\), got \(3, 2\)"):
        polar_jvp(a, np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"h_bar must have shape \(5, 5\), got \(3, 3\)"):
        polar_vjp(np.ones((5, 3)), None, a, side="left")
    with pytest.raises(ValueError, match="side must be 'right' or 'left', got 'up'"):
        polar_jvp(a, a, side="up")
    with pytest.raises(ValueError, match="u_bar and h_bar must not both be None"):
        polar_vjp(a, None)
    with pytest.raises(ValueError, match="must be a matrix"):
        orthogonalize_jvp(np.ones(3), np.ones(3))
    with pytest.raises(TypeError, match="dg must be real, as the matrix is, got complex128"):
        orthogonalize_jvp(a, a * 1j)
    with pytest.raises(ValueError, match="normalisation must be 'moments'"):
        orthogonalize_vjp(a, a, normalisation="aol")
    with pytest.raises(ValueError, match=r"schedule must be polynomial, got .* rational steps"):
        orthogonalize_vjp(a, a, schedule=polarlib.design.zolotarev(2, 0.1))
    for call in (polar_jvp, polar_vjp, orthogonalize_jvp, orthogonalize_vjp):
        for bad in (np.nan, np.inf):
            with pytest.raises(ValueError, match="contains NaN or infinity in 1 of 9"):
                call(np.diag([1.0, 1.0, bad]), a)
        assert np.isnan(np.asarray(call(a, a * np.nan))).all()
    strict = library("array_api_strict")
    with pytest.raises(TypeError, match="must be arrays of one library"):
        polar_jvp(a, strict.asarray(a))


# -- torch -------------------------------------------------------------------------------------

FACTORS = {
    "orthogonalize": lambda a: polarlib.orthogonalize(a, schedule=MILD),
    "gram": lambda a: polarlib.orthogonalize(
        a, schedule=MILD, form="gram", normalisation="moments"
    ),
    "unitary_factor": unitary_factor,
    "polar": lambda a: tuple(polarlib.polar(a)),
    "left": lambda a: tuple(polarlib.polar(a, side="left")),
}
# torch's own, when its forward mode is first used.
script = pytest.mark.filterwarnings("ignore:`torch.jit.script`")


@script
@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("name", FACTORS)
def test_gradcheck(torch, name, is_complex):
    for shape in [(4, 2), (2, 3), (3, 3), (2, 2, 2)]:
        x = torch.tensor(sample(shape, 1, is_complex=is_complex), requires_grad=True)
        assert torch.autograd.gradcheck(
            FACTORS[name], (x,), check_forward_ad=True, check_batched_grad=True
        )


@script
@pytest.mark.parametrize("name", FACTORS)
def test_second_derivatives_in_torch(torch, name):
    for a in (sample((3, 2), 1), sample((2, 2), 1, is_complex=True)):
        x = torch.tensor(a, requires_grad=True)
        assert torch.autograd.gradgradcheck(FACTORS[name], (x,), check_fwd_over_rev=True)
    if name in ("unitary_factor", "polar"):  # eigenvectors are not unique, and do not matter
        x = torch.tensor(2 * np.eye(3)[:, :2], requires_grad=True)
        assert torch.autograd.gradgradcheck(FACTORS[name], (x,), check_fwd_over_rev=True)


@script
@pytest.mark.parametrize("name", ["orthogonalize", "unitary_factor"])
def test_torch_func(torch, name):
    f = FACTORS[name]
    x, e = torch.tensor(sample((4, 3, 2), 1)), torch.tensor(sample((4, 3, 2), 2))

    def loss(a):
        return (f(a) ** 3).sum()

    torch.testing.assert_close(torch.vmap(f)(x), f(x))
    torch.testing.assert_close(torch.vmap(lambda a: a * f(x[0]))(x), x * f(x[0]))
    torch.testing.assert_close(
        torch.vmap(f, in_dims=1, out_dims=1)(x.movedim(0, 1)).movedim(1, 0), f(x)
    )
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(x), wanted)
    along = torch.func.jvp(loss, (x,), (e,))[1]
    torch.testing.assert_close(along, (wanted * e).sum())
    hessian = torch.vmap(torch.func.hessian(loss))(x).reshape(4, 6, 6)
    torch.testing.assert_close(hessian, hessian.mT)
    torch.testing.assert_close(torch.func.jacrev(f)(x[0]), torch.func.jacfwd(f)(x[0]))


def test_vmap_over_polar_keeps_the_figures_of_the_stack(torch):
    x = torch.tensor(sample((4, 3, 2), 1))
    seen = []

    def hermitian(a):
        seen.append(polarlib.polar(a))
        return seen[-1].hermitian

    torch.testing.assert_close(torch.vmap(hermitian)(x), polarlib.polar(x).hermitian)
    assert seen[0].rank.tolist() == [2, 2, 2, 2]


def test_torch_saves_the_input_alone(torch):
    x = torch.tensor(sample((6, 4), 1), requires_grad=True)
    saved = []

    def keep(t):
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        polarlib.orthogonalize(x)
    assert len(saved) == 1
    assert saved[0].data_ptr() == x.data_ptr()


def test_torch_without_gradients(torch):
    x = torch.tensor(sample((4, 3), 1), requires_grad=True)
    with torch.no_grad():
        assert not polarlib.orthogonalize(x).requires_grad
        assert not polarlib.polar(x).unitary.requires_grad
        out = torch.empty_like(x)
    result = polarlib.polar(x, method="newton")
    assert result.unitary.requires_grad
    assert result.hermitian.requires_grad
    assert (result.method, result.rank, result.converged) == ("newton", 3, True)
    y = torch.tensor(sample((4, 3), 2))
    (wanted,) = torch.autograd.grad((polarlib.orthogonalize(x) * y).sum(), x)
    polarlib.orthogonalize(x, out=out)  # torch records writing, too
    (got,) = torch.autograd.grad((out * y).sum(), x)
    torch.testing.assert_close(got, wanted)
    (wanted,) = torch.autograd.grad((result.unitary * y).sum(), x)
    np.testing.assert_allclose(wanted.numpy(), polar_vjp(x.detach(), y).numpy(), atol=1e-13)


def test_torch_refuses_what_has_no_derivative(torch):
    x = torch.tensor(np.stack([np.eye(2), np.ones((2, 2))]), requires_grad=True)
    u = unitary_factor(x)  # the factor itself is to be had
    with pytest.raises(ValueError, match=r"rank-deficient.* in matrix \(1,\) of the stack"):
        u.sum().backward()
    for method in ("polar_express", "qr"):
        with pytest.raises(ValueError, match=f"method='{method}' does not return the polar factor"):
            polarlib.polar(x, method=method)
    assert polarlib.polar(x.detach(), method="polar_express").method == "polar_express"


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_gradients_in_half_precision(torch, name):
    """Computed in single precision: what is lost is the rounding of the result."""
    graded = sample((64, 32), 1) * np.logspace(0, -2, 32)  # a rounded U would not do
    x, y = (torch.tensor(a).to(getattr(torch, name)) for a in (graded, sample((64, 32), 2)))
    for f in (polarlib.orthogonalize, unitary_factor):
        leaf = x.clone().requires_grad_()
        (got,) = torch.autograd.grad(f(leaf), leaf, y)
        wide = x.double().numpy(), y.double().numpy()
        wanted = (
            polar_vjp(*wide) if f is unitary_factor else orthogonalize_vjp(*wide, precision=name)
        )
        assert got.dtype == x.dtype
        error = np.linalg.norm(got.double().numpy() - wanted) / np.linalg.norm(wanted)
        assert error < {"bfloat16": 2.0**-8.5, "float16": 2.0**-11.5}[name]


def test_what_is_made_of_the_factors(torch):
    a, b = sample((5, 3), 1), sample((5, 3), 2)
    x = torch.tensor(a, requires_grad=True)
    for f in (
        polarlib.nearest_orthogonal,
        lambda t: polarlib.procrustes(t, torch.tensor(b)),
        lambda t: polarlib.sqrtm_psd(t.mT @ t + torch.eye(3, dtype=t.dtype)),
        lambda t: polarlib.orthogonalize_all([t, t * 2])[0],
    ):
        assert torch.autograd.gradcheck(f, (x,), rtol=1e-2)


# -- JAX ---------------------------------------------------------------------------------------


def by_svd(a):
    """The fewest operations: JAX compiles each of them."""
    return unitary_factor(a, method="svd")


def test_jax_follows_the_rules():
    jnp = library("jax").xp
    import jax

    a, e, y = (sample((3, 2), s, is_complex=True) for s in (1, 2, 3))
    b = sample((2, 2), 4, is_complex=True)
    x, d, v, w = map(jnp.asarray, (a, e, y.conj(), b.conj()))  # its gradients are conjugates

    def polar(a):
        return tuple(polarlib.polar(a, method="svd"))

    for got, wanted in zip(jax.jvp(polar, (x,), (d,))[1], polar_jvp(a, e), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-13)
    np.testing.assert_allclose(jax.vjp(polar, x)[1]((v, w))[0].conj(), polar_vjp(a, y, b), 1e-11)
    f = jax.jit(FACTORS["orthogonalize"])
    same = {"schedule": MILD}
    np.testing.assert_allclose(jax.jvp(f, (x,), (d,))[1], orthogonalize_jvp(a, e, **same), 1e-11)
    got = jax.vjp(f, x)[1](v)[0].conj()
    np.testing.assert_allclose(got, orthogonalize_vjp(a, y, **same), 1e-11)


def test_jax_transformations():
    jnp = library("jax").xp
    import jax

    x, y = jnp.asarray(sample((4, 3, 2), 1)), jnp.asarray(sample((4, 3, 2), 2))

    def f(a):
        return polarlib.orthogonalize(a, schedule=ONE_STEP)

    def loss(a):
        return jnp.sum(f(a) ** 3)

    wanted = orthogonalize_vjp(np.array(x), 3 * np.array(f(x)) ** 2, schedule=ONE_STEP)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(x), wanted, atol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(loss)))(x), wanted, atol=1e-12)
    # Nothing is kept but the input, and constants.
    back = jax.vjp(jax.jit(f), x)[1]
    assert sum(leaf.size for leaf in jax.tree_util.tree_leaves(back)) <= 2 * x.size
    second = jax.jit(lambda e: jax.jvp(jax.grad(loss), (x,), (e,))[1])(y)
    reverse = jax.jit(jax.grad(lambda a: jnp.sum(jax.grad(loss)(a) * y)))(x)
    (differential,) = differences(
        lambda a: (orthogonalize_vjp(a, 3 * np.array(f(a)) ** 2, schedule=ONE_STEP),),
        np.array(x),
        np.array(y),
    )
    for got in (second, reverse):
        np.testing.assert_allclose(got, differential, atol=1e-6 * np.max(np.abs(differential)))


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_jax_at_equal_singular_values(mode):
    """The equation is differentiated, not eigenvectors, which are not unique."""
    jnp = library("jax").xp
    import jax

    w, e = jnp.asarray(sample((3, 3), 1)), sample((3, 3), 2)
    gradient = jax.grad(lambda a: jnp.sum(w * by_svd(a)))
    x, d = 2 * jnp.eye(3), jnp.asarray(e)
    if mode == "forward":
        got = jnp.sum(jax.jvp(gradient, (x,), (d,))[1] * d)
    else:
        got = jnp.sum(jax.grad(lambda a: jnp.sum(gradient(a) * d))(x) * d)
    skew, even = (e - e.T) / 2, (e + e.T) / 2
    # U(I + t E) = I + t K + t^2 (K^2 - K S - S K) / 2 + ..., E = S + K.
    second = (skew @ skew - skew @ even - even @ skew) / 4
    np.testing.assert_allclose(got, np.sum(np.array(w) * second), atol=1e-12)


def test_jax_says_what_it_cannot():
    jnp = library("jax").xp
    import jax

    x = jnp.asarray(sample((2, 3, 3), 1))
    for f in (unitary_factor, lambda a, method: polarlib.polar(a, method=method).unitary):
        f = functools.partial(f, method="newton")
        for transform in (jax.jit, jax.vmap):
            with pytest.raises(TypeError, match="reads entries of its matrix"):
                transform(f)(x)
    singular = jnp.ones((3, 3))
    with pytest.raises(ValueError, match="rank-deficient"):
        jax.grad(lambda a: jnp.sum(by_svd(a)))(singular)
    gradient = jax.grad(lambda a: jnp.sum(by_svd(a)))
    with pytest.raises(ValueError, match="rank-deficient"):
        jax.jvp(gradient, (singular,), (singular,))
    # NaN under a trace.
    u = by_svd(singular)
    traced = jax.jit(lambda a: polar_gradient(a, u, jnp.ones((3, 3)), None))(singular)
    assert np.isnan(np.array(traced)).all()
