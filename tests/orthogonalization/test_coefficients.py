"""orthogonalize(g, schedule=c) with an array c: coefficients that may be traced or recorded."""

from __future__ import annotations

import gc
import io
import weakref

import ml_dtypes
import numpy as np
import pytest
from conftest import library
from standin import cupy_standin

import polarlib
from polarlib import Schedule, orthogonalize, orthogonalize_jvp, orthogonalize_vjp

# Rows are steps. Of one to six coefficients each, none a number of 16 bits.
TRIPLES = np.array([[3.1, -4.7, 2.05], [2.3, -2.1, 0.71]])


def coefficients(k, steps=2, seed=0):
    c = 0.3 * np.random.default_rng(seed).standard_normal((steps, k))
    c[:, 0] += 1.3
    return c


def gaussian(*shape, dtype="float64", seed=0):
    a = np.random.default_rng(seed).standard_normal((2, *shape))
    return (a[0] + 1j * a[1] if dtype.startswith("complex") else a[0]).astype(dtype)


def by_definition(a, c):
    """U s(sigma) V^H of a stack of matrices over their Frobenius norms, in NumPy's arithmetic."""
    u, sigma, vh = np.linalg.svd(a, full_matrices=False)
    norm = np.sqrt(np.sum(sigma**2, axis=-1, keepdims=True))
    sigma = sigma / np.where(norm == 0, 1, norm)
    for row in c:
        sigma = sum(ci * sigma ** (2 * i + 1) for i, ci in enumerate(row))
    return (u * sigma[..., None, :]) @ vh


# -- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(1, 7))
@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128", "complex64"])
@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (1, 1), (2, 6, 3)], ids=str)
@pytest.mark.thinned(7)
def test_values(lib, shape, dtype, k):
    a, c = gaussian(*shape, dtype=dtype), coefficients(k)
    q = orthogonalize(lib.asarray(a), schedule=lib.asarray(c))
    assert lib.dtype_name(q) == dtype
    assert tuple(q.shape) == shape
    unit = 1e-4 if dtype in ("float32", "complex64") else 1e-12
    want = by_definition(a.astype("c16"), c)
    np.testing.assert_allclose(lib.to_numpy(q), want, rtol=unit, atol=unit * abs(want).max())


def test_values_of_dask():
    lib, a = library("dask"), gaussian(6, 4)
    q = orthogonalize(lib.asarray(a), schedule=lib.asarray(TRIPLES), heads=2)
    want = np.concatenate([by_definition(half, TRIPLES) for half in (a[:3], a[3:])])
    np.testing.assert_allclose(lib.to_numpy(q), want, atol=1e-12)


@pytest.mark.parametrize("where", ["numpy", "torch"])
def test_the_host_runs_a_schedule_bit_for_bit(where):
    """Numbers are read where that is free, and products take them as factors."""
    lib, s = library(where), polarlib.schedule("jordan")
    for shape in (6, 4), (3, 4, 9):
        x = lib.asarray(gaussian(*shape))
        want = orthogonalize(x, schedule=s, form="plain")
        q = orthogonalize(x, schedule=lib.asarray(np.array(s.steps)))
        np.testing.assert_array_equal(lib.to_numpy(q), lib.to_numpy(want))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_coefficients_are_not_rounded_to_16_bits(lib, dtype):
    """Of one step of one coefficient the result is the product in float32, rounded once."""
    if not lib.has(dtype):
        pytest.skip(f"{lib.name} has no {dtype}")
    c = np.array([[1.238]], dtype="f4")
    kind = np.dtype(dtype) if dtype == "float16" else np.dtype(ml_dtypes.bfloat16)
    assert np.float32(c.astype(kind)) != c
    x = lib.asarray(gaussian(9, 5), dtype)
    one = orthogonalize(x, schedule=lib.asarray(np.ones((1, 1), "f4")))
    q = orthogonalize(x, schedule=lib.asarray(c))
    assert lib.dtype_name(q) == dtype
    want = (lib.to_numpy(one) * c).astype(kind).astype("f4")
    np.testing.assert_array_equal(lib.to_numpy(q), want)
    rounded = (lib.to_numpy(one) * c.astype(kind).astype("f4")).astype(kind).astype("f4")
    assert (want != rounded).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_products_of_16_bits(lib, dtype):
    """As near as the format allows; wider, narrower and double coefficients are one number."""
    if not lib.has(dtype):
        pytest.skip(f"{lib.name} has no {dtype}")
    x = lib.asarray(gaussian(12, 6), dtype)
    exact = by_definition(lib.to_numpy(x).astype("f8"), TRIPLES)
    q = lib.to_numpy(orthogonalize(x, schedule=lib.asarray(TRIPLES.astype("f4"))))
    unit = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    assert np.abs(q - exact).max() < 8 * unit
    narrow = lib.asarray(TRIPLES, dtype)
    wide = lib.asarray(lib.to_numpy(narrow).astype("f4"))
    first, second = (lib.to_numpy(orthogonalize(x, schedule=c)) for c in (narrow, wide))
    np.testing.assert_array_equal(first, second)


def test_other_formats_and_dtypes(lib):
    a = gaussian(8, 3, dtype="float32")
    x, c = lib.asarray(a), lib.asarray(TRIPLES)
    exact = by_definition(a.astype("f8"), TRIPLES)
    for precision, unit in (("float64", 1e-6), ("tf32", 3e-3), ("bfloat16", 0.03)):
        q = orthogonalize(x, schedule=c, precision=precision)
        assert q.dtype == x.dtype
        np.testing.assert_allclose(lib.to_numpy(q), exact, atol=unit)


def test_array_likes_and_scales(lib):
    c = lib.asarray(TRIPLES)
    a = gaussian(6, 4)
    want = lib.to_numpy(orthogonalize(lib.asarray(a), schedule=c))
    for factor in (1e300, 1e-300):
        q = orthogonalize(lib.asarray(a * factor), schedule=c)
        np.testing.assert_allclose(lib.to_numpy(q), want, atol=1e-12)
    for kind in ("int64", "bool"):
        whole = np.array([[1, 0], [0, 1], [1, 1]], dtype=kind)
        q = lib.to_numpy(orthogonalize(lib.asarray(whole), schedule=c))
        np.testing.assert_allclose(q, by_definition(whole.astype("f8"), TRIPLES), atol=1e-12)
    if lib.name == "numpy":
        assert orthogonalize([[1, 2], [3, 4]], schedule=c).dtype == "f8"
    zero = orthogonalize(lib.asarray(np.zeros((4, 2))), schedule=c)
    assert not lib.to_numpy(zero).any()
    for shape in (0, 3), (3, 0), (0, 3, 2):
        assert tuple(orthogonalize(lib.asarray(np.ones(shape)), schedule=c).shape) == shape


def test_what_is_given_stays(lib):
    a, c = gaussian(8, 6)[:, ::2], np.asfortranarray(TRIPLES)
    x, d = lib.asarray(a), lib.asarray(c)
    q = orthogonalize(x, schedule=d, heads=2)
    np.testing.assert_array_equal(lib.to_numpy(x), a)
    np.testing.assert_array_equal(lib.to_numpy(d), c)
    want = np.concatenate([by_definition(half, c) for half in (a[:4], a[4:])])
    np.testing.assert_allclose(lib.to_numpy(q), want, atol=1e-12)


def test_out():
    a = gaussian(8, 3)
    want, out = orthogonalize(a, schedule=TRIPLES), np.empty_like(a)
    assert orthogonalize(a, schedule=TRIPLES, out=out) is out
    np.testing.assert_array_equal(out, want)
    assert orthogonalize(a, schedule=TRIPLES, out=a) is a
    np.testing.assert_array_equal(a, want)
    with pytest.raises(TypeError, match="out must be an array like g"):
        orthogonalize(a, schedule=TRIPLES, out=a[:2])


def test_coefficients_that_are_not_finite_propagate(lib):
    """No value of c is looked at: steps that a Schedule refuses run."""
    x = lib.asarray(gaussian(5, 3))
    for place in ((0, 0), (1, 2)):
        c = TRIPLES.copy()
        c[place] = np.nan
        assert np.isnan(lib.to_numpy(orthogonalize(x, schedule=lib.asarray(c)))).all()
    wild = np.array([[-1.0, 0.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match=r"step 1"):
        Schedule(wild.tolist())
    assert not lib.to_numpy(orthogonalize(x, schedule=lib.asarray(wild))).any()


def test_matrices_that_are_not_finite():
    a = gaussian(5, 3)
    a[0, 0] = np.inf
    with pytest.raises(ValueError, match="NaN or infinity"):
        orthogonalize(a, schedule=TRIPLES)
    jax = pytest.importorskip("jax")
    run = jax.jit(lambda g, c: orthogonalize(g, schedule=c))
    assert np.isnan(np.asarray(run(jax.numpy.asarray(a), jax.numpy.asarray(TRIPLES)))).all()


def test_the_stand_in_for_cupy_waits_nowhere():
    for dtype in ("f4", "c8", ml_dtypes.bfloat16):
        a = gaussian(8, 3, dtype="complex64" if dtype == "c8" else "float64").astype(dtype)
        with cupy_standin.installed() as cupy:
            x, c = cupy.asarray(a), cupy.asarray(TRIPLES.astype("f4"))
            with cupy_standin.no_sync():
                q = orthogonalize(x, schedule=c, heads=2)
            found = q.get()
        assert found.dtype == a.dtype
        halves = a.astype("c16" if dtype == "c8" else "f8").reshape(2, 4, 3)
        want = by_definition(halves, TRIPLES).reshape(8, 3)
        np.testing.assert_allclose(
            found.astype(want.dtype), want, atol=1e-4 if dtype != ml_dtypes.bfloat16 else 0.05
        )


# -- what is refused -------------------------------------------------------------------------

REFUSED = [
    ({"steps": 2}, ValueError, r"steps=2 .*schedule\[:steps\]"),
    ({"form": "gram"}, ValueError, "form='gram' .*plain form"),
    ({"form": "grams"}, ValueError, "form must be 'auto', 'plain' or 'gram', got 'grams'"),
    ({"restarts": (1,)}, ValueError, r"restarts=\(1,\) .*leave restarts out"),
    ({"gram_precision": "float32"}, ValueError, "gram_precision='float32' .*plain form"),
    ({"normalisation": "none"}, ValueError, "normalisation='none' .*Frobenius"),
    ({"normalisation": np.ones(2)}, ValueError, "normalisation=an array .*Frobenius"),
    ({"precision": "half"}, ValueError, "unknown number format 'half'"),
    ({"schedule": TRIPLES[0]}, ValueError, r"shape \(steps, k\).*got \(3,\)"),
    ({"schedule": TRIPLES[None]}, ValueError, r"shape \(steps, k\).*got \(1, 2, 3\)"),
    ({"schedule": TRIPLES[:, :0]}, ValueError, r"got \(2, 0\)"),
    ({"schedule": TRIPLES[:0]}, ValueError, r"got \(0, 3\)"),
    ({"schedule": np.ones((301, 1))}, ValueError, r"from 1 to 300 each; got \(301, 1\)"),
    ({"schedule": np.float64(2)}, ValueError, r"got \(\)"),
    ({"schedule": TRIPLES * 1j}, TypeError, "real floating-point numbers, got complex128"),
    ({"schedule": np.ones((2, 3), int)}, TypeError, "real floating-point numbers, got int64"),
    ({"schedule": np.ones((2, 3), bool)}, TypeError, "real floating-point numbers, got bool"),
    ({"schedule": np.ma.masked_array(TRIPLES)}, TypeError, "schedule is a masked array"),
    ({"schedule": TRIPLES.tolist()}, TypeError, r"a Schedule or an array .*\(steps, k\), got"),
    ({"schedule": None}, TypeError, "schedule must be a name, .*got None"),
]


@pytest.mark.parametrize(("how", "kind", "words"), REFUSED, ids=str)
def test_refused(how, kind, words):
    how, a = {"schedule": TRIPLES, **how}, gaussian(6, 4)
    for call in (
        lambda: orthogonalize(a, **how),
        lambda: orthogonalize_jvp(a, a, **how),
        lambda: orthogonalize_vjp(a, a, **how),
    ):
        with pytest.raises(kind, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_named_and_allowed():
    a = gaussian(6, 4)
    how = {"form": "plain", "normalisation": "frobenius", "heads": 1, "precision": "float64"}
    want = orthogonalize(a, schedule=TRIPLES)
    np.testing.assert_array_equal(orthogonalize(a, schedule=TRIPLES, **how), want)


@pytest.mark.parametrize("where", ["torch", "jax", "array_api_strict"])
def test_of_another_library(where):
    lib, a = library(where), gaussian(6, 4)
    with pytest.raises(TypeError, match=f"g and schedule must be arrays of one library.*{where}"):
        orthogonalize(lib.asarray(a), schedule=TRIPLES)
    with pytest.raises(TypeError, match="g and schedule must be arrays of one library"):
        orthogonalize(a, schedule=lib.asarray(TRIPLES))


# -- derivatives -----------------------------------------------------------------------------

# Matrices at which singular values are equal, zero, or nearly so.
POINTS = {
    "generic": gaussian(6, 4),
    "wide": gaussian(3, 5),
    "equal": np.eye(5, 3),
    "rank one": np.ones((4, 3)),
    "nearly equal": np.diag([1.0, 1.0 + 1e-9, 0.5]),
    "nearly zero": np.diag([1.0, 1e-9, 0.0]),
    "stack": gaussian(2, 5, 3),
    "complex": gaussian(4, 3, dtype="complex128"),
}


def by_differences(f, x):
    """Gradient of a real function of a real array, by central differences."""
    found, h = np.empty(x.shape), 1e-6
    for i in np.ndindex(x.shape):
        e = np.zeros(x.shape)
        e[i] = h
        found[i] = (f(x + e) - f(x - e)) / (2 * h)
    return found


@pytest.fixture(params=POINTS, ids=POINTS)
def point(request):
    """A matrix, weights of a real function of the result, and its gradients by differences."""
    a = POINTS[request.param]
    w = gaussian(*a.shape, dtype=a.dtype.name, seed=9)

    def f(x, c):
        return np.sum((np.conj(w) * by_definition(x, c)).real)

    of_c = by_differences(lambda c: f(a, c), TRIPLES)
    of_a = by_differences(lambda x: f(x, TRIPLES), a.real)
    if a.dtype.kind == "c":
        of_a = by_differences(lambda x: f(x + 1j * a.imag, TRIPLES), a.real)
        of_a = of_a + 1j * by_differences(lambda y: f(a.real + 1j * y, TRIPLES), a.imag)
    return a, w, of_a, of_c


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_gradients_of_every_degree(torch, k):
    a, c, w = gaussian(5, 3), coefficients(k, 3), gaussian(5, 3, seed=9)
    f = lambda x, c: np.sum(w * by_definition(x, c))  # noqa: E731
    x, d = (torch.tensor(v, requires_grad=True) for v in (a, c))
    (torch.tensor(w) * orthogonalize(x, schedule=d)).sum().backward()
    scale = np.abs(by_differences(lambda c: f(a, c), c)).max()
    want = by_differences(lambda c: f(a, c), c)
    np.testing.assert_allclose(d.grad.numpy(), want, rtol=1e-6, atol=1e-7 * scale)
    want = by_differences(lambda x: f(x, c), a)
    np.testing.assert_allclose(x.grad.numpy(), want, rtol=1e-6, atol=1e-7 * np.abs(want).max())


def test_gradients_in_torch(torch, point):
    a, w, of_a, of_c = point
    for heads in (None, 1):
        x, c = (torch.tensor(v, requires_grad=True) for v in (a, TRIPLES))
        q = orthogonalize(x, schedule=c, heads=heads)
        (torch.tensor(w).conj() * q).sum().real.backward()
        np.testing.assert_allclose(c.grad.numpy(), of_c, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(x.grad.resolve_conj().numpy(), of_a, rtol=1e-6, atol=1e-6)
    # In single precision, and with respect to one of the two alone.
    for recorded in ("x", "c"):
        x = torch.tensor(a).to(torch.complex64 if a.dtype.kind == "c" else torch.float32)
        c = torch.tensor(TRIPLES, dtype=torch.float32)
        leaf, want = (x, of_a) if recorded == "x" else (c, of_c)
        leaf.requires_grad_()
        (torch.tensor(w).conj().to(x.dtype) * orthogonalize(x, schedule=c)).sum().real.backward()
        found = leaf.grad.resolve_conj().numpy()
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=2e-5 * np.abs(want).max())


@pytest.mark.thinned(3)
def test_gradients_in_jax(point):
    jnp = library("jax").xp
    import jax

    a, w, of_a, of_c = point

    def f(x, c):
        return jnp.sum((jnp.conj(w) * orthogonalize(x, schedule=c)).real)

    slope = jax.jit(jax.grad(f, argnums=(0, 1)))
    given = jnp.asarray(a), jnp.asarray(TRIPLES)
    found = slope(*given)
    np.testing.assert_allclose(jnp.conj(found[0]), of_a, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found[1], of_c, rtol=1e-6, atol=1e-6)
    single = slope(given[0].astype("c8" if a.dtype.kind == "c" else "f4"), given[1])
    np.testing.assert_allclose(single[1], of_c, rtol=1e-4, atol=2e-5 * np.abs(of_c).max())


def test_derivatives_as_functions(point):
    a, w, of_a, _ = point
    np.testing.assert_allclose(
        orthogonalize_vjp(a, w, schedule=TRIPLES), of_a, rtol=1e-6, atol=1e-6
    )
    e = gaussian(*a.shape, dtype=a.dtype.name, seed=4)
    d = orthogonalize_jvp(a, e, schedule=TRIPLES)
    assert np.sum((np.conj(w) * d).real) == pytest.approx(
        np.sum((np.conj(of_a) * e).real), rel=1e-5, abs=1e-5
    )


def test_there_is_no_derivative_at_zero_but_of_others(torch):
    x = torch.zeros(2, 4, 3, dtype=torch.float64)
    x[1] = torch.tensor(gaussian(4, 3))
    x.requires_grad_()
    c = torch.tensor(TRIPLES, requires_grad=True)
    orthogonalize(x, schedule=c).sum().backward()
    alone = torch.tensor(TRIPLES, requires_grad=True)
    orthogonalize(x[1].detach(), schedule=alone).sum().backward()
    assert not x.grad[0].any()
    torch.testing.assert_close(c.grad, alone.grad)
    empty = torch.empty(0, 3)
    orthogonalize(empty, schedule=c).sum().backward()
    torch.testing.assert_close(c.grad, alone.grad)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_16_bit_matrices_are_those_without_rounding(torch, dtype):
    x = torch.tensor(gaussian(6, 4)).to(getattr(torch, dtype)).requires_grad_()
    c = torch.tensor(TRIPLES.astype("f4"), requires_grad=True)
    w = torch.tensor(gaussian(6, 4, seed=1)).to(x.dtype)
    (orthogonalize(x, schedule=c) * w).sum(dtype=torch.float32).backward()
    exact = [t.detach().double().requires_grad_() for t in (x, c)]
    (orthogonalize(exact[0], schedule=exact[1]) * w.double()).sum().backward()
    assert (x.grad.dtype, c.grad.dtype) == (x.dtype, torch.float32)
    torch.testing.assert_close(c.grad.double(), exact[1].grad, rtol=1e-4, atol=1e-5)
    unit = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    torch.testing.assert_close(x.grad.double(), exact[0].grad, rtol=2 * unit, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's own, of forward mode
def test_torch_func(torch):
    g = torch.tensor(np.stack([gaussian(5, 3), gaussian(5, 3, seed=1)]))
    c = torch.tensor(np.stack([TRIPLES, 1.1 * TRIPLES]))
    func = torch.func

    def f(g, c):
        return (orthogonalize(g, schedule=c) ** 3).sum()

    slopes = func.grad(f, argnums=(0, 1))

    def compare(batched, one_by_one):
        for found, each in zip(batched, zip(*one_by_one, strict=True), strict=True):
            torch.testing.assert_close(found, torch.stack(each))

    compare(func.vmap(slopes)(g, c), [slopes(x, y) for x, y in zip(g, c, strict=True)])
    # One of the two alone in the batch: the other's gradients are summed, or stand for each.
    one = [slopes(x, c[0]) for x in g]
    compare(func.vmap(slopes, (0, None))(g, c[0]), one)
    one = [slopes(g[0], y) for y in c]
    compare(func.vmap(slopes, (None, 0))(g[0], c), one)
    total = func.grad(lambda x: func.vmap(lambda y: f(x, y))(c).sum())(g)
    torch.testing.assert_close(total, sum(slopes(g, y)[0] for y in c))
    both = func.vmap(lambda y: func.vmap(lambda x: orthogonalize(x, schedule=y))(g))(c)
    torch.testing.assert_close(both, torch.stack([orthogonalize(g, schedule=y) for y in c]))
    _, along = func.jvp(f, (g, c[0]), (g + 1, 2 * c[1]))
    inner = [(p * t).sum() for p, t in zip(slopes(g, c[0]), (g + 1, 2 * c[1]), strict=True)]
    torch.testing.assert_close(along, sum(inner))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_second_derivatives(torch):
    a = gaussian(4, 3)
    x, c = (torch.tensor(v, requires_grad=True) for v in (a, TRIPLES))
    run = lambda x, c: orthogonalize(x, schedule=c)  # noqa: E731
    assert torch.autograd.gradgradcheck(run, (x, c))
    jax = pytest.importorskip("jax")
    library("jax")
    f = lambda c: (run(jax.numpy.asarray(a), c) ** 3).sum()  # noqa: E731
    want = torch.func.hessian(lambda c: (run(x.detach(), c) ** 3).sum())(c.detach())
    np.testing.assert_allclose(jax.jit(jax.hessian(f))(TRIPLES), want.numpy(), rtol=1e-8, atol=1e-8)


def test_settings_of_torch_change_nothing(torch):
    a, c = gaussian(40, 30, dtype="float32"), TRIPLES.astype("f4")

    def results():
        x, d = (torch.tensor(v, requires_grad=True) for v in (a, c))
        q = orthogonalize(x, schedule=d)
        (q**3).sum().backward()
        return q.detach(), d.grad, x.grad

    want = results()
    with torch.autocast("cpu"):
        for found, each in zip(results(), want, strict=True):
            torch.testing.assert_close(found, each, rtol=1e-4, atol=1e-5)


# -- compiled, exported, carried along -------------------------------------------------------


def test_torch_compiles_and_exports(torch):
    g, c = torch.tensor(gaussian(6, 4)), torch.tensor(TRIPLES)
    compiled = torch.compile(
        lambda g, c: orthogonalize(g, schedule=c, heads=2), backend="aot_eager", fullgraph=True
    )
    results = []
    for f in (compiled, lambda g, c: orthogonalize(g, schedule=c, heads=2)):
        x, d = g.clone().requires_grad_(), c.clone().requires_grad_()
        q = f(x, d)
        (q**3).sum().backward()
        results.append((q, x.grad, d.grad))
    for found, want in zip(*results, strict=True):
        assert torch.equal(found, want)
    loose = torch.compile(lambda g, **how: orthogonalize(g, **how), backend="aot_eager")
    for how, kind, words in REFUSED[:1] + REFUSED[9:10] + REFUSED[15:16]:
        how = {"schedule": TRIPLES, **how}
        how["schedule"] = torch.tensor(how["schedule"])
        with pytest.raises(kind, match=words):
            loose(g, **how)

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.c = torch.nn.Parameter(c.clone())

        def forward(self, g):
            return orthogonalize(g, schedule=self.c)

    program = torch.export.export(Module(), (g,), dynamic_shapes={"g": {0: torch.export.Dim.AUTO}})
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    taller = torch.tensor(gaussian(9, 4))
    loaded = torch.export.load(buffer).module()
    assert torch.equal(loaded(taller), orthogonalize(taller, schedule=c))
    assert orthogonalize(g.to("meta"), schedule=c.to("meta")).shape == g.shape


def test_state_of_an_optimizer_in_jax():
    """Coefficients that change from step to step, under jit and scan: compiled once."""
    jnp = library("jax").xp
    import jax

    traced = []

    @jax.jit
    def step(state, g):
        traced.append(g.shape)
        x, c = state
        return (x - 0.1 * orthogonalize(g + x, schedule=c), c * 0.99), jnp.sum(x)

    g, c = jnp.asarray(gaussian(3, 6, 4)), jnp.asarray(TRIPLES)
    state = jnp.zeros((6, 4)), c
    for each in g:
        state, _ = step(state, each)
    assert len(traced) == 1
    x, now = np.zeros((6, 4)), TRIPLES
    for each in np.asarray(g):
        x, now = x - 0.1 * by_definition(each + x, now), now * 0.99
    np.testing.assert_allclose(state[0], x, atol=1e-12)
    scanned, _ = jax.lax.scan(step, (jnp.zeros((6, 4)), c), g)
    np.testing.assert_allclose(scanned[0], x, atol=1e-12)
    batched = jax.jit(jax.vmap(lambda g, c: orthogonalize(g, schedule=c)))
    stack = jnp.stack([c, 1.1 * c, 0.9 * c])
    want = [by_definition(a, b) for a, b in zip(np.asarray(g), np.asarray(stack), strict=True)]
    np.testing.assert_allclose(batched(g, stack), want, atol=1e-12)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_jax_arrays_on_a_mesh(kind):
    jnp = library("jax").xp
    import jax

    types = (getattr(jax.sharding.AxisType, kind),)
    mesh = jax.make_mesh((1,), ("x",), axis_types=types)
    spec = jax.sharding.PartitionSpec
    a, f = gaussian(6, 4), lambda g, c: (orthogonalize(g, schedule=c) ** 3).sum()
    want = by_definition(a, TRIPLES)
    with jax.set_mesh(mesh):
        x = jax.device_put(a, jax.sharding.NamedSharding(mesh, spec("x", None)))
        whole = jax.device_put(TRIPLES, jax.sharding.NamedSharding(mesh, spec()))
        slopes = []
        for c in (jnp.asarray(TRIPLES), whole):
            np.testing.assert_allclose(orthogonalize(x, schedule=c), want, atol=1e-12)
            traced = jax.jit(lambda g, c: orthogonalize(g, schedule=c, heads=1))(x, c)
            np.testing.assert_allclose(traced, want, atol=1e-12)
            slopes.append(np.asarray(jax.jit(jax.grad(f, argnums=1))(x, c)))
        np.testing.assert_allclose(*slopes, atol=1e-12)


def test_nothing_keeps_the_coefficients(torch):
    c = torch.tensor(TRIPLES)
    gone = weakref.ref(c)
    orthogonalize(torch.tensor(gaussian(6, 4)), schedule=c)
    del c
    gc.collect()
    assert gone() is None
