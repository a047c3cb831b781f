"""Derivatives of rotations, Procrustes problems, roots and leading triplets, in torch and JAX."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from conftest import library

import polarlib
from polarlib import inverse_root, nearest_rotation, procrustes, sqrtm_psd, top_singular
from polarlib.derivatives import polar_vjp

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
# torch's own, when its forward mode is first used.
script = pytest.mark.filterwarnings("ignore:`torch.jit.script`")


def gaussian(*shape: int, seed: int = 0, is_complex: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if is_complex else x


def turned(n: int, seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(gaussian(n, n, seed=seed))
    q[:, 0] *= np.linalg.det(q)
    return q


def signed(values, seed: int = 0) -> np.ndarray:
    """Matrix of these singular values; a negative last one makes it a reflection."""
    n = len(values)
    return (turned(n, seed) * np.asarray(values, float)) @ turned(n, 100 + seed).T


def definite(values, *, seed: int = 0, is_complex: bool = False) -> np.ndarray:
    n = len(values)
    q, _ = np.linalg.qr(gaussian(n, n, seed=seed, is_complex=is_complex))
    a = (q * np.asarray(values, float)) @ q.conj().T
    return (a + a.conj().T) / 2


def gradient(torch, f, a: np.ndarray, w: np.ndarray, dtype: str = "float64") -> np.ndarray:
    """Gradient of ``Re sum(conj(w) f(a))`` by torch, in double precision."""
    x = torch.tensor(a).to(getattr(torch, dtype)).requires_grad_()
    y = f(x)
    (y * torch.tensor(w).to(y.dtype).conj()).real.sum().backward()
    assert x.grad.dtype == x.dtype
    return x.grad.numpy().astype(complex if np.iscomplexobj(a) else float)


# -- rotations ---------------------------------------------------------------------------------


def exact_derivative(a: np.ndarray, e: np.ndarray) -> np.ndarray:
    """Of the nearest rotation, by differences of singular value decompositions of 60 digits."""

    def rotation(x):
        u, _, v = mpmath.svd_r(x)
        d = mpmath.eye(x.rows)
        d[x.rows - 1, x.rows - 1] = mpmath.sign(mpmath.det(u * v))
        return u * d * v

    with mpmath.workdps(60):
        h = mpmath.mpf(10) ** -20
        a, e = (mpmath.matrix(x.tolist()) for x in (a, e))
        d = (rotation(a + h * e) - rotation(a - h * e)) / (2 * h)
        return np.array(d.tolist(), float)


def spectra(n: int) -> dict[str, np.ndarray]:
    """Signed singular values, and by name what they are."""
    s = np.linspace(3, 1, n)
    found = {
        "general": s,
        "reflection": np.r_[s[:-1], -0.5],
        "equal": np.full(n, 2.0),
        "singular": np.r_[s[:-1], 0.0],
        "near equal": np.r_[np.full(n - 1, 1 + 1e-6), 1.0],
        "near a tie": np.r_[s[:-1], -s[-2] * (1 - 2e-2)],
    }
    if n > 2:
        found["equal but one"] = np.r_[np.full(n - 1, 2.0), 1.0]
        found["equal, reflected"] = np.r_[np.full(n - 1, 2.0), -1.0]
    return found


@script
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_rotation_against_many_digits(torch, n):
    w = gaussian(n, n, seed=1)
    matrices = {name: signed(s, n) for name, s in spectra(n).items()}
    matrices |= {"identity": np.eye(n), "rotation": turned(n, 3)}
    for name, a in matrices.items():
        a = a.astype("f4").astype("f8")
        wanted = exact_derivative(a, w)
        size = np.max(np.abs(wanted))
        for dtype, eps in EPS.items():
            s = np.linalg.svd(a, compute_uv=False)
            gap = s[-2] + s[-1] * np.sign(np.linalg.det(a))
            limit = 50 * eps * s[0] / gap * size
            got = gradient(torch, nearest_rotation, a, w, dtype)
            np.testing.assert_allclose(got, wanted, rtol=0, atol=limit, err_msg=name)
            x, e = (torch.tensor(t, dtype=getattr(torch, dtype)) for t in (a, w))
            along = torch.func.jvp(nearest_rotation, (x,), (e,))[1].double().numpy()
            np.testing.assert_allclose(along, wanted, rtol=0, atol=limit, err_msg=name)
        if np.linalg.det(a) > 1e-3:
            np.testing.assert_allclose(polar_vjp(a, w), wanted, atol=1e-12 * size)


@pytest.mark.parametrize(("dtype", "top"), [("float32", 110), ("float64", 1000)])
def test_gradient_at_any_scale(torch, dtype, top):
    """Powers of two change nothing but the exponent."""
    for n in (1, 2, 3, 5):
        a, w = signed(np.r_[np.linspace(2, 1, n)[:-1], -0.5 if n > 1 else 2.0]), gaussian(n, n)
        eye = np.eye(n)
        for f, scaled_too in ((nearest_rotation, False), (None, True)):
            wanted = gradient(torch, nearest_rotation, a, w, dtype)
            for exponent in (-top, -20, 20, top):
                c = 2.0**exponent
                if scaled_too:
                    other = torch.tensor(eye * c, dtype=getattr(torch, dtype))
                    f = lambda x, b=other: procrustes(b, x, rotation=True)  # noqa: E731
                got = gradient(torch, f, a * c, w, dtype) * c
                np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


@script
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_rotation_in_every_mode_of_torch(torch, n):
    for values in (np.linspace(2, 1, n), np.r_[np.linspace(2, 1, n - 1), -0.4], np.ones(n)):
        if n == 1 and values[-1] < 0:
            continue
        x = torch.tensor(signed(values, 3), requires_grad=True)
        assert torch.autograd.gradcheck(
            nearest_rotation, (x,), check_forward_ad=True, check_batched_grad=True
        )
        assert torch.autograd.gradgradcheck(nearest_rotation, (x,), check_fwd_over_rev=True)
        a, w = x.detach(), torch.tensor(gaussian(n, n))
        hessian = torch.func.hessian(lambda t, w=w: (nearest_rotation(t) * w).sum())(a)
        hessian = hessian.reshape(n * n, n * n)
        torch.testing.assert_close(hessian, hessian.mT, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(
            torch.func.jacrev(nearest_rotation)(a), torch.func.jacfwd(nearest_rotation)(a)
        )


def test_vmap_is_the_stack(torch):
    stack = torch.tensor(np.stack([signed([3, 2, 1]), signed([3, 2, -1]), np.eye(3)]))
    w = torch.tensor(gaussian(3, 3))
    torch.testing.assert_close(torch.vmap(nearest_rotation)(stack), nearest_rotation(stack))
    each = torch.vmap(torch.func.grad(lambda a: (nearest_rotation(a) * w).sum()))(stack)
    x = stack.clone().requires_grad_()
    (nearest_rotation(x) * w).sum().backward()
    torch.testing.assert_close(each, x.grad)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_rotation_in_half_precision(torch, name):
    """Computed in single precision: what is lost is the rounding of the result."""
    a, w = signed([3, 2, 1.5, 1, -0.5]), gaussian(5, 5)
    dtype = getattr(torch, name)
    x = torch.tensor(a).to(dtype).requires_grad_()
    w = torch.tensor(w).to(dtype)
    nearest_rotation(x).backward(w)
    wanted = exact_derivative(x.detach().double().numpy(), w.double().numpy())
    assert x.grad.dtype == dtype
    error = np.max(np.abs(x.grad.double().numpy() - wanted)) / np.max(np.abs(wanted))
    assert error < {"bfloat16": 2.0**-8, "float16": 2.0**-11}[name]


TIES = {  # without a unique nearest rotation
    "a reflection": np.diag([1.0, 1, -1]),
    "rank one": np.diag([1.0, 0, 0]),
    "zero": np.zeros((3, 3)),
    "minus one": -np.eye(3),
    "larger": np.diag([2.0, 1, 1, 1, -1]),
}


@pytest.mark.parametrize("name", TIES)
def test_ties_are_refused(torch, name):
    a = TIES[name]
    x = torch.tensor(a, requires_grad=True)
    r = nearest_rotation(x)  # the rotation itself is to be had
    with pytest.raises(ValueError, match=r"no derivative where it is not unique.*0\.0e\+00"):
        r.sum().backward()
    n = len(a)
    x = torch.tensor(np.stack([np.eye(n), a])[None], requires_grad=True)
    with pytest.raises(ValueError, match=r"in matrix \(0, 1\) of the stack.*regularization=1e-3"):
        nearest_rotation(x).sum().backward()
    points = torch.tensor(gaussian(n, 9)).mT
    q, _ = torch.linalg.qr(points)
    y = (q @ x[0, 1].detach()).requires_grad_()
    with pytest.raises(ValueError, match="not unique"):
        procrustes(q, y, rotation=True).sum().backward()


def test_ties_of_orthogonal_matrices(torch):
    """Unitary factors are unique where the rank is full, reflections or not."""
    eye = torch.eye(3, dtype=torch.float64)
    for name in ("a reflection", "minus one"):
        x = torch.tensor(TIES[name], requires_grad=True)
        procrustes(eye, x).sum().backward()
        np.testing.assert_allclose(x.grad, polar_vjp(TIES[name], np.ones((3, 3))), atol=1e-14)
    x = torch.tensor(TIES["rank one"], requires_grad=True)
    with pytest.raises(ValueError, match=r"rank-deficient.*takes a regularization"):
        procrustes(eye, x).sum().backward()


# -- regularisation ----------------------------------------------------------------------------


def regularised(a: np.ndarray, u: np.ndarray, w: np.ndarray, r: float) -> np.ndarray:
    """The formula, entry by entry in the eigenvectors of ``U^H A``."""
    h = u.conj().T @ a
    s, v = np.linalg.eigh((h + h.conj().T) / 2)
    c = u.conj().T @ w
    c = v.conj().T @ (c - c.conj().T) @ v
    d = s[:, None] + s
    return u @ v @ (c * d / (d * d + (r * np.max(np.abs(s))) ** 2)) @ v.conj().T


@pytest.mark.parametrize("r", [1e-3, 0.1])
def test_regularised_rule(torch, r):
    for values in ([3, 2, 1], [3, 2, -1], [2, 1, -1], [1, 0, 0, 0, 0], [3, 2, 1, 1, -1]):
        a, w = signed(values), gaussian(len(values), len(values))

        def f(x):
            return nearest_rotation(x, regularization=r)

        u = f(torch.tensor(a)).numpy()  # where it is not unique, that of the library
        np.testing.assert_array_equal(u, nearest_rotation(torch.tensor(a)).numpy())
        got, wanted = gradient(torch, f, a, w), regularised(a, u, w, r)
        np.testing.assert_allclose(got, wanted, atol=1e-12 / r**2)
        # |C - C^T| <= 2 |W|, and d / (d^2 + e^2) <= 1 / (2 e).
        assert np.linalg.norm(got) <= np.linalg.norm(w) / (r * values[0]) * (1 + 1e-12)
        if values == [3, 2, -1]:
            bias = np.linalg.norm(got - exact_derivative(a, w)) / np.linalg.norm(got)
            assert bias < 2 * (3 * r) ** 2  # (r s_1 / d)^2 for the smallest d, 1
    np.testing.assert_array_equal(gradient(torch, f, np.zeros((3, 3)), w[:3, :3]), 0)


@pytest.mark.parametrize("is_complex", [False, True])
def test_regularised_procrustes(torch, is_complex):
    a = gaussian(3, 3, seed=1, is_complex=is_complex)
    a[:, 2] = 0
    w = gaussian(3, 3, is_complex=is_complex)
    eye = torch.eye(3, dtype=torch.complex128 if is_complex else torch.float64)
    seen = []

    def f(x):
        seen.append(procrustes(eye, x, regularization=0.05))
        return seen[-1]

    got = gradient(torch, f, a, w, a.dtype.name)
    u = seen[0].detach().numpy()
    np.testing.assert_allclose(got, regularised(a, u, w, 0.05), atol=1e-11)


@script
def test_regularised_rules_have_derivatives(torch):
    """Forward over reverse is reverse over reverse."""
    for values in ([3, 2, -1], [2, 1, -1]):
        a, w = torch.tensor(signed(values)), torch.tensor(gaussian(3, 3))

        def g(x, w=w):
            return torch.func.grad(lambda t: (nearest_rotation(t, regularization=0.1) * w).sum())(x)

        torch.testing.assert_close(torch.func.jacrev(g)(a), torch.func.jacfwd(g)(a))


@pytest.mark.parametrize("value", [-1e-3, math.inf, math.nan, "1e-3", None, True])
def test_regularization_must_be_a_number(value):
    for call in (
        lambda: nearest_rotation(np.eye(3), regularization=value),
        lambda: procrustes(np.eye(3), np.eye(3), regularization=value),
    ):
        with pytest.raises(ValueError, match="regularization must be a number of at least 0, got"):
            call()


# -- Procrustes --------------------------------------------------------------------------------


@script
@pytest.mark.parametrize("rotation", [False, True])
def test_procrustes_in_both_arguments(torch, rotation):
    a, b = torch.tensor(gaussian(2, 6, 3)), torch.tensor(gaussian(6, 3, seed=1))

    def f(a, b):
        return procrustes(a, b, rotation=rotation)

    x, y = (t.clone().requires_grad_() for t in (a, b))
    assert torch.autograd.gradcheck(f, (x, y), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(
        f, (x[0].detach().requires_grad_(), y), check_fwd_over_rev=True
    )
    f(x, y)[1, 0, 1].backward()
    one, other = (t.clone().requires_grad_() for t in (a, b))
    f(one, b)[1, 0, 1].backward()
    f(a, other)[1, 0, 1].backward()
    torch.testing.assert_close(one.grad, x.grad)
    torch.testing.assert_close(other.grad, y.grad)
    q = f(a, b)
    assert not q.requires_grad
    torch.testing.assert_close(torch.vmap(f, in_dims=(0, None))(a, b), q)
    torch.testing.assert_close(torch.vmap(f, in_dims=(None, 0))(b, a), f(b, a))
    with pytest.raises(ValueError, match="a contains NaN"):
        torch.vmap(f, in_dims=(0, None))(a * math.nan, b)


def test_mixed_arguments_of_other_functions(torch):
    """What records and what does not go together everywhere, whichever is which."""
    a, b = torch.tensor(gaussian(5, 4)), torch.tensor(gaussian(5, 4, seed=1))
    q = torch.tensor(gaussian(4, 2, seed=2))
    p = torch.linalg.qr(torch.tensor(gaussian(5, 2, seed=3)))[0]
    calls = [
        (lambda a, q: polarlib.norms.power_step(a, q)[1], a, q),
        (polarlib.norms.range_lmo, a, p),
        (lambda a, b: polarlib.norms.duality_gap(polarlib.norms.nuclear(), a, b), a, b),
        (lambda a, b: polarlib.updates.nesterov(a, b, 0.5), a, b),
        (lambda a, b: polarlib.updates.scg_step(a, b, polarlib.orthogonalize, step=0.5), a, b),
        (polar_vjp, a, b),
        (polarlib.derivatives.orthogonalize_jvp, a, b),
        (lambda a, b: sum(polarlib.orthogonalize_all([a, b])), a, b),
    ]
    for f, one, other in calls:
        found = []
        for records in ((True, True), (True, False), (False, True)):
            x, y = (t.clone().requires_grad_(r) for t, r in zip((one, other), records, strict=True))
            value = f(x, y)
            (value * torch.arange(value.numel()).reshape(value.shape)).sum().backward()
            found.append((x.grad, y.grad))
        torch.testing.assert_close(found[1][0], found[0][0])
        torch.testing.assert_close(found[2][1], found[0][1])


# -- square roots ------------------------------------------------------------------------------


def root_derivative(a: np.ndarray, w: np.ndarray) -> np.ndarray:
    """In the eigenvectors of A, in double precision."""
    values, v = np.linalg.eigh(a)
    s = np.sqrt(values)
    inner = v.conj().T @ (w + w.conj().T) / 2 @ v
    return v @ (inner / (s[:, None] + s)) @ v.conj().T


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_gradient_of_roots(torch, dtype):
    is_complex = dtype.startswith("complex")
    eps = EPS["float32" if dtype in ("float32", "complex64") else "float64"]
    w = gaussian(3, 3, is_complex=is_complex)
    for values in ([3.0, 2, 1], [1.0, 1, 1], [1.0, 1e-3, 1e-3]):
        a = definite(values, is_complex=is_complex).astype(dtype)
        wanted = root_derivative(a.astype(complex if is_complex else float), w)
        limit = 30 * eps * values[0] / values[-1] * np.max(np.abs(wanted))
        for scale in (1.0, 2.0**-80, 2.0**80):
            got = gradient(torch, sqrtm_psd, a * scale, w, dtype) * math.sqrt(scale)
            np.testing.assert_allclose(got, wanted, rtol=0, atol=limit)


@script
@pytest.mark.parametrize("is_complex", [False, True])
def test_roots_in_every_mode_of_torch(torch, is_complex):
    x = torch.tensor(definite([3, 2, 1], is_complex=is_complex), requires_grad=True)
    for root in (sqrtm_psd, lambda a: inverse_root(a, 2), lambda a: inverse_root(a, 3)):

        def f(a, root=root):
            return root((a + a.mH) / 2)

        assert torch.autograd.gradcheck(f, (x,), check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(f, (x,), check_fwd_over_rev=True)
        stack = torch.stack([x.detach(), 2 * x.detach()])
        torch.testing.assert_close(torch.vmap(f)(stack), f(stack))


def test_singular_roots_are_refused(torch):
    x = torch.tensor(np.diag([1.0, 1, 0]), requires_grad=True)
    h = sqrtm_psd(x)
    assert h.detach().tolist() == np.diag([1.0, 1, 0]).tolist()
    with pytest.raises(ValueError, match="square root has no derivative at a singular matrix"):
        h.sum().backward()
    low = gaussian(6, 2)
    stack = torch.tensor(np.stack([np.eye(6), low @ low.T]), requires_grad=True)
    with pytest.raises(ValueError, match=r"in matrix \(1,\) of the stack.*multiple of the identit"):
        sqrtm_psd(stack).sum().backward()


@pytest.mark.parametrize("p", [2, 3, 4, 7])
def test_gradient_of_inverse_roots(torch, p):
    """Divided differences of ``x^(-1/p)`` without cancellation, in the eigenvectors of A."""
    w = gaussian(4, 4)
    for values in ([2.0, 2, 2, 2], [1.0, 1, 0.5, 0.01]):
        a = definite(values)
        s, v = np.linalg.eigh(a)
        g = s ** (1 / p)
        total = sum(g[:, None] ** k * g ** (p - 1 - k) for k in range(p))
        inner = v.T @ (w + w.T) / 2 @ v
        wanted = -v @ (inner / total / g[:, None] / g) @ v.T
        for options in ({}, {"condition": 200.0}):
            got = gradient(torch, lambda x, o=options: inverse_root(x, p, **o), a, w)
            np.testing.assert_allclose(got, wanted, atol=1e-11 * np.max(np.abs(wanted)))
        got = gradient(torch, lambda x: inverse_root(x, p), a, w, "float32")
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-4 * np.max(np.abs(wanted)))
        c = 2.0**-300
        got = gradient(torch, lambda x: inverse_root(x, p), a * c, w) * c ** (1 + 1 / p)
        np.testing.assert_allclose(got, wanted, atol=1e-10 * np.max(np.abs(wanted)))


def test_a_given_schedule_is_differentiated_itself(torch):
    short = polarlib.design.inverse_root(2, 0.05, [5] * 3)
    x = torch.tensor(definite([3, 2, 1]), requires_grad=True)

    def f(a):
        return inverse_root((a + a.mT) / 2, 2, schedule=short)

    assert torch.autograd.gradcheck(f, (x,))
    stack = torch.stack([x.detach(), 2 * x.detach()])
    torch.testing.assert_close(torch.vmap(f)(stack), f(stack))


# -- leading triplets --------------------------------------------------------------------------


def invariants(a, k):
    """What does not depend on the signs, or phases, of singular vectors."""
    u, s, vh = top_singular(a, k)
    return s, (u * s[..., None, :]) @ vh, u[..., :1] @ vh[..., :1, :]


@script
@pytest.mark.parametrize(("shape", "is_complex"), [((5, 3), False), ((3, 4), True)])
def test_triplets_in_every_mode_of_torch(torch, shape, is_complex):
    x = torch.tensor(gaussian(*shape, seed=1, is_complex=is_complex), requires_grad=True)
    for k in (1, 3):
        assert torch.autograd.gradcheck(
            lambda a, k=k: invariants(a, k), (x,), check_forward_ad=True, check_batched_grad=True
        )
    assert torch.autograd.gradgradcheck(lambda a: invariants(a, 2), (x,), check_fwd_over_rev=True)


def test_triplets_ask_for_their_own_gaps_alone(torch):
    w = gaussian(5, 5)

    def leading(x):
        u, _, vh = top_singular(x, 2)
        return u @ vh

    def all_by_svd(x):  # of values that are all distinct, torch's own derivative is right
        u, _, vh = torch.linalg.svd(x, full_matrices=False)
        return u[:, :2] @ vh[:2]

    apart, tied = signed([3, 2, 1, 1 - 1e-5, 1e-5]), signed([3, 2, 1, 1, 0])
    wanted = gradient(torch, all_by_svd, apart, w)
    np.testing.assert_allclose(gradient(torch, leading, apart, w), wanted, atol=1e-9)
    np.testing.assert_allclose(gradient(torch, leading, tied, w), wanted, atol=1e-4)
    for bad in (signed([3, 2, 2, 1, 0]), signed([2, 2, 1, 1, 0]), signed([2, 0, 0, 0, 0])):
        stack = torch.tensor(np.stack([apart, bad]), requires_grad=True)
        u, s, vh = top_singular(stack, 2)
        s.sum().backward()  # has a gradient all the same
        np.testing.assert_allclose(stack.grad.numpy(), (u @ vh).detach().numpy(), atol=1e-12)
        u, s, vh = top_singular(stack, 2)
        with pytest.raises(ValueError, match=r"equal to another one in matrix \(1,\) of the stack"):
            (u @ vh).sum().backward()
    for scale in (1.0, 2.0**-60):
        got = gradient(torch, leading, apart * scale, w, "float32") * scale
        np.testing.assert_allclose(got, wanted, atol=1e-4)


# -- JAX ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[3, 2, -1], [2, 2, 2, 1, -0.5]])
def test_rotation_on_jax(values):
    jnp = library("jax").xp
    import jax

    n = len(values)
    a, w = signed(values), gaussian(n, n)
    tie = np.diag(np.r_[np.ones(n - 1), -1.0])

    def loss(x, **options):
        return jnp.sum(nearest_rotation(x, **options) * w)

    compiled = jax.jit(jax.grad(loss))
    wanted = exact_derivative(a, w)
    np.testing.assert_allclose(compiled(jnp.asarray(a)), wanted, atol=1e-13)
    assert np.isnan(compiled(jnp.asarray(tie))).all()  # under a trace
    along = jax.jit(lambda x, e: jax.jvp(nearest_rotation, (x,), (e,))[1])
    np.testing.assert_allclose(along(jnp.asarray(a), jnp.asarray(w)), wanted, atol=1e-13)
    r = jax.jit(jax.grad(lambda x: loss(x, regularization=0.1)))(jnp.asarray(a))
    np.testing.assert_allclose(r, regularised(a, nearest_rotation(a), w, 0.1), atol=1e-12)
    if n > 3:  # each of the others takes long to compile
        with pytest.raises(ValueError, match="not unique"):
            jax.grad(loss)(jnp.asarray(tie))
        stack = jnp.stack([jnp.asarray(a), jnp.asarray(tie)])
        each = np.asarray(jax.jit(jax.vmap(jax.grad(loss)))(stack))
        np.testing.assert_allclose(each[0], wanted, atol=1e-13)
        assert np.isnan(each[1]).all()
        hessian = np.asarray(jax.jit(jax.hessian(loss))(jnp.asarray(a))).reshape(n * n, n * n)
        np.testing.assert_allclose(hessian, hessian.T, atol=1e-11)
        assert np.isnan(jax.jit(nearest_rotation)(jnp.asarray(a * math.nan))).all()


def test_the_rest_on_jax(torch):
    jnp = library("jax").xp
    import jax

    a, b, w = gaussian(6, 3), gaussian(6, 3, seed=1), gaussian(3, 3, seed=2)
    x, y = (torch.tensor(t, requires_grad=True) for t in (a, b))
    for rotation in (False, True):
        wanted = torch.autograd.grad(
            (procrustes(x, y, rotation=rotation) * torch.tensor(w)).sum(), (x, y)
        )
        f = jax.grad(lambda x, y, r=rotation: jnp.sum(procrustes(x, y, rotation=r) * w), (0, 1))
        f = jax.jit(f) if rotation else f
        for got, t in zip(f(jnp.asarray(a), jnp.asarray(b)), wanted, strict=True):
            np.testing.assert_allclose(got, t.numpy(), atol=1e-12)
    c = definite([3, 2, 1])
    got = jax.grad(lambda x: jnp.sum(sqrtm_psd(x) * w))(jnp.asarray(c))
    np.testing.assert_allclose(got, root_derivative(c, w), atol=1e-13)
    wanted = gradient(torch, lambda x: inverse_root(x, 2), c, w)
    f = jax.jit(jax.grad(lambda x: jnp.sum(inverse_root(x, 2, condition=10) * w)))
    np.testing.assert_allclose(f(jnp.asarray(c)), wanted, atol=1e-12)
    wanted = gradient(torch, lambda x: invariants(x, 2)[2], a, b)
    got = jax.grad(lambda x: jnp.sum(invariants(x, 2)[2] * b))(jnp.asarray(a))
    np.testing.assert_allclose(got, wanted, atol=1e-12)
