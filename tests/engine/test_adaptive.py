"""schedule="adaptive": against singular values, over libraries, formats, forms and stacks."""

from __future__ import annotations

import importlib
import itertools
import tomllib
from importlib import resources

import numpy as np
import pytest
from conftest import HALF, library, off_the_host, with_dask

import polarlib
from polarlib import orthogonalize
from polarlib.derivatives import orthogonalize_jvp, orthogonalize_vjp
from polarlib.design.restarts import common_restarts
from polarlib.engine.adaptive import adaptive_schedule
from polarlib.testing import orthonormal

DATA = tomllib.loads(
    resources.files("polarlib").joinpath("data/adaptive.toml").read_text(encoding="utf-8")
)
ENTRY = DATA["float32"]["5"]
SHAPES = [(40, 12), (12, 40), (20, 20), (3, 18, 12), (2, 2, 10, 16)]
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def value(steps, s):
    """The composition on singular values, by plain powers."""
    for step in steps:
        s = sum(c * s ** (2 * i + 1) for i, c in enumerate(step))
    return s


def place(t: float, v: float) -> float:
    """Place of log l among the tails, by the rule as it is written."""
    rule = DATA["rule"]
    c0, c1, c2, c3 = rule["coefficients"]
    log = c0 + c1 * t + c2 * v + c3 * v / max(t, rule["floor"])
    low, high = np.log(rule["lower"]), np.log(rule["upper"])
    return (min(max(log, low), high) - low) / (high - low)


def placed(s: np.ndarray, entry: dict) -> tuple[np.ndarray, float]:
    """Singular values after the head, and the place among the tails."""
    mu, sd = np.mean(s**2), np.std(s**2)
    s = value(entry["head"], s / np.sqrt(mu + np.sqrt(s.size - 1) * sd))
    return s, place(np.mean(s**2), np.std(s**2)) * (len(entry["tails"]) - 1)


def tail(w: float, entry: dict) -> np.ndarray:
    """Coefficients at a place, a step in a row."""
    tails = np.array(entry["tails"])
    grid, shape = range(len(tails)), tails.shape[1:]
    flat = tails.reshape(len(tails), -1).T
    return np.reshape([np.interp(w, grid, row) for row in flat], shape)


def reference(a: np.ndarray, precision: str = "float32", steps: int = 5) -> np.ndarray:
    """The result from singular values: an independent account of it, in float64."""
    if a.ndim > 2:
        return np.stack([reference(x, precision, steps) for x in a])
    u, s, vh = np.linalg.svd(a, full_matrices=False)
    if not s[0]:
        return np.zeros_like(a)
    entry = DATA[precision][str(steps)]
    s, w = placed(s, entry)
    return (u * value(tail(w, entry), s)) @ vh


def matrices(shape, seed: int = 0, *, is_complex: bool = False) -> np.ndarray:
    """Matrices of several spectra, so that members of a stack take other tails."""
    *batch, m, n = shape
    k = min(m, n)
    kinds = [
        np.geomspace(1, 1e-2, k),
        np.r_[1, np.full(k - 1, 0.05)],
        np.linspace(1, 0.6, k),
        np.r_[np.full(k // 2, 1), np.geomspace(1, 1e-3, k - k // 2)],
    ]
    dtype = "complex128" if is_complex else "float64"
    found = []
    for i in range(int(np.prod(batch))):
        u, v = (orthonormal(r, k, seed=seed + 9 * i + j, dtype=dtype) for j, r in ((0, m), (1, n)))
        found.append((u * kinds[(i + seed) % len(kinds)]) @ v.conj().T * 10.0 ** (i - 1))
    return np.reshape(found, shape)


def distance(x, y) -> float:
    """Largest Frobenius norm of differences of members, over the root of their order."""
    d = np.linalg.norm(x - y, axis=(-2, -1)) / np.sqrt(min(x.shape[-2:]))
    return float(np.max(d))


def limit(dtype: str, n: int = 16) -> float:
    """What rounding may do: of 16 bits a part of the slope at 0.

    Else in the bound of the norm, which cancels to the root of its rounding.
    """
    if dtype in HALF:
        return 100 * UNIT[dtype]
    return 4 * np.sqrt(n * UNIT["float64" if dtype in ("float64", "complex128") else "float32"])


def test_the_places_of_the_test_matrices_differ():
    found = {float(np.round(np.linalg.norm(reference(matrices((20, 20), k))), 3)) for k in range(4)}
    assert len(found) == 4


# -- the function ------------------------------------------------------------------------------


@with_dask
@pytest.mark.parametrize("form", ["plain", "gram"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "complex128", "float32", "complex64"])
@pytest.mark.thinned(10)
def test_against_singular_values(lib, dtype, shape, form):
    for seed in range(1 if lib.name == "dask" else 4):
        a = matrices(shape, seed, is_complex=dtype.startswith("complex"))
        wanted = reference(a)
        q = orthogonalize(lib.asarray(a, dtype), schedule="adaptive", form=form)
        assert lib.dtype_name(q) == dtype
        assert distance(lib.to_numpy(q), wanted) < limit(dtype, min(shape[-2:]))


@pytest.mark.parametrize("form", ["plain", "gram"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.thinned(5)
def test_narrow_formats(lib, dtype, shape, form):
    """Rounding is as large as that of the fixed schedule, whose distance is known."""
    if not lib.has(dtype):
        pytest.skip(f"{lib.name} has no {dtype}")
    for seed in range(2):
        a = matrices(shape, seed)
        x = lib.asarray(a, dtype)
        exact = lib.to_numpy(x).astype(float)
        q = lib.to_numpy(orthogonalize(x, schedule="adaptive", form=form))
        assert distance(q, reference(exact, dtype)) < limit(dtype)
        simulated = orthogonalize(exact, schedule="adaptive", precision=dtype, form=form)
        assert distance(q, simulated) < limit(dtype)


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "tf32", "float32", None])
@pytest.mark.parametrize("form", ["plain", "gram"])
@pytest.mark.thinned(3)
def test_members_of_stacks_are_as_they_are_alone(lib, precision, form):
    a = matrices((4, 24, 16)).astype("float32")
    how = {"schedule": "adaptive", "precision": precision, "form": form}
    whole = lib.to_numpy(orthogonalize(lib.asarray(a), **how))
    most = limit("float16" if precision == "tf32" else precision or "float32")
    for x, q in zip(a, whole, strict=True):
        one = lib.to_numpy(orthogonalize(lib.asarray(x), **how))
        assert distance(q, one) < most


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_hard_matrices(lib, dtype):
    a = matrices((4, 16, 12)).astype(dtype)
    for i, scale in enumerate((1e30, 1e-30, 0.0, 1.0)):
        a[i] *= np.array(scale, dtype)
    a[3, :, 5:] = 0
    x = lib.asarray(a)
    q = lib.to_numpy(orthogonalize(x, schedule="adaptive"))
    assert not q[2].any()
    assert distance(q, reference(a.astype("float64"))) < limit(dtype, 12)
    for shape in ((0, 4), (4, 0), (0, 4, 4), (3, 0, 5)):
        assert orthogonalize(lib.asarray(np.zeros(shape)), schedule="adaptive").shape == shape
    one = lib.to_numpy(orthogonalize(lib.asarray(np.full((1, 1), -3.0)), schedule="adaptive"))
    assert abs(one + 1).max() < 0.05


def test_matrices_that_are_not_finite(lib):
    a = matrices((2, 8, 6))
    a[1, 0, 0] = np.nan
    if lib.name.startswith("numpy") or lib.name == "torch":
        with pytest.raises(ValueError, match="NaN or infinity"):
            orthogonalize(lib.asarray(a), schedule="adaptive")
    else:
        q = lib.to_numpy(orthogonalize(lib.asarray(a), schedule="adaptive"))
        assert np.isnan(q[1]).all()
        assert distance(q[0], reference(a[0])) < 1e-11


def test_out_takes_the_result():
    a = matrices((30, 12))
    wanted = orthogonalize(a, schedule="adaptive")
    for shape in ((30, 12), (12, 30)):
        x = a if shape == a.shape else a.T.copy()
        out = np.empty(shape)
        assert orthogonalize(x, schedule="adaptive", out=out) is out
        np.testing.assert_allclose(out if shape == a.shape else out.T, wanted, atol=1e-13)


def test_sixteen_bits_as_numbers_and_as_arrays():
    """On a host one matrix has coefficients that are numbers; in a stack they are arrays."""
    a = matrices((24, 16)).astype("float32")
    for precision in ("bfloat16", "float16"):
        one = orthogonalize(a, schedule="adaptive", precision=precision)
        two = orthogonalize(np.stack([a, a]), schedule="adaptive", precision=precision)
        assert distance(one, two[0]) < limit(precision)
        np.testing.assert_array_equal(two[0], two[1])


# -- choices -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"steps": 9}, "schedule 'adaptive' has 5.* steps, got steps=9; use 'auto'"),
        ({"steps": 0}, "steps must be"),
        ({"steps": 5.0}, "steps must be"),
        ({"precision": "float8_e4m3"}, "bfloat16.* for schedule 'adaptive', got 'float8_e"),
        ({"normalisation": "frobenius"}, "must be 'moments' .*, got 'frobenius'; leave norm"),
        ({"normalisation": "none"}, "must be 'moments' .*, got 'none'"),
        ({"form": "wide"}, "form must be"),
        ({"restarts": "never"}, "restarts must be"),
        ({"schedule": "adaptve"}, "unknown schedule 'adaptve'.*'adaptive'"),
    ],
)
def test_refusals(how, message):
    for f in (orthogonalize, lambda g, **h: orthogonalize_jvp(g, g, **h)):
        with pytest.raises((ValueError, TypeError), match=message):
            f(np.eye(3), **{"schedule": "adaptive", **how})


def test_it_is_no_fixed_schedule():
    with pytest.raises(ValueError, match=r"depends on the matrix.*orthogonalize.*measure"):
        polarlib.schedule("adaptive")
    assert "adaptive" not in polarlib.schedules()
    with pytest.raises(ValueError, match="unknown method 'adaptive'"):
        polarlib.polar(np.eye(3), method="adaptive")


@pytest.mark.parametrize("form", ["plain", "gram"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_measure(form, precision):
    a = matrices((30, 12)).astype("float32")
    t = polarlib.measure(a, "adaptive", form=form, precision=precision)
    q = orthogonalize(a, schedule="adaptive", form=form, precision=precision)
    s = np.linalg.svd(q.astype(float), compute_uv=False)
    assert t.method == "adaptive"
    assert t.singular_values.shape == (6, 12)
    np.testing.assert_allclose(np.sort(t.singular_values[-1]), np.sort(s), atol=4 * UNIT[precision])
    assert form == "gram" or t.matmuls.tolist() == [0, 3, 6, 9, 12, 15]


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
def test_restarts_serve_every_tail(precision):
    """No section is longer than the one that begins there for a single tail."""
    s = adaptive_schedule(precision)
    assert [t.steps[2:] for t in s.each] == list(s.tails)
    at = common_restarts(s.each, precision)
    for start, end in itertools.pairwise((0, *at, 5)):
        for t in s.each:
            alone = (0, *common_restarts((t,), precision), 5)
            assert end == start + 1 or start not in alone or end <= alone[alone.index(start) + 1]


@pytest.mark.parametrize("steps", sorted(map(int, DATA["float32"])))
def test_numbers_of_steps(steps):
    for seed in range(4):
        a = matrices((18, 12), seed)
        for form in ("plain", "gram"):
            q = orthogonalize(a, schedule="adaptive", steps=steps, form=form)
            assert distance(q, reference(a, steps=steps)) < 1e-11


def test_restarts_that_are_given():
    a = matrices((60, 12))
    wanted = reference(a)
    for at in ((), (1,), (2,), (3,), (1, 2, 3, 4)):
        q = orthogonalize(a, schedule="adaptive", form="gram", restarts=at)
        assert distance(q, wanted) < 1e-9


# -- derivatives -------------------------------------------------------------------------------


def differences(f, a: np.ndarray, e: np.ndarray) -> np.ndarray:
    """Central differences of the fourth order."""
    h = 1e-4 * np.max(np.abs(a)) / np.max(np.abs(e))
    near, far = ((f(a + k * h * e) - f(a - k * h * e)) / (2 * k * h) for k in (1, 2))
    return (4 * near - far) / 3


def gaussian(shape, seed: int, *, is_complex: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if is_complex else x


def spectrum(k: int, *, edge: bool = False) -> np.ndarray:
    """Singular values whose place is well between two tails, where the function is smooth.

    At an edge it is beyond the outer ones.
    """
    last = len(ENTRY["tails"]) - 1
    for ratio in np.geomspace(0.9, 1e-3, 500):
        w = placed(s := np.geomspace(1, ratio, k), ENTRY)[1]
        if w in (0, last) if edge else 0.3 < w % 1 < 0.7:
            return s
    raise AssertionError("no such spectrum")


def rough(shape, seed: int, *, is_complex: bool = False, edge: bool = False) -> np.ndarray:
    """Random matrices of that spectrum, each of its own size."""
    u, _, vh = np.linalg.svd(gaussian(shape, seed, is_complex=is_complex), full_matrices=False)
    return (u * spectrum(min(shape[-2:]), edge=edge)) @ vh * (1 + seed)


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 6), (2, 7, 4)], ids=str)
def test_derivatives_by_finite_differences(shape, is_complex):
    a = rough(shape, 1, is_complex=is_complex)
    e, y = (gaussian(shape, seed, is_complex=is_complex) for seed in (2, 3))
    along = orthogonalize_jvp(a, e, schedule="adaptive")
    wanted = differences(lambda x: orthogonalize(x, schedule="adaptive"), a, e)
    np.testing.assert_allclose(along, wanted, atol=2e-6 * np.max(np.abs(wanted)))
    back = orthogonalize_vjp(a, y, schedule="adaptive")
    assert np.vdot(back, e).real == pytest.approx(np.vdot(y, along).real, rel=1e-10)


@pytest.mark.parametrize("edge", [False, True])
def test_derivatives_include_the_choice(edge):
    """With the steps held, the derivative is another one, but beyond the outer tails."""
    a, e = rough((9, 8), 1, edge=edge), gaussian((9, 8), 2)
    along = orthogonalize_jvp(a, e, schedule="adaptive")
    w = placed(np.linalg.svd(a, compute_uv=False), ENTRY)[1]
    fixed = polarlib.Schedule(
        steps=[*ENTRY["head"], *tail(w, ENTRY)], lower=1e-3, normalisation="moments"
    )
    difference = np.linalg.norm(along - orthogonalize_jvp(a, e, schedule=fixed))
    assert (difference < 1e-9 * np.linalg.norm(along)) == edge


# -- transformations of torch and JAX ------------------------------------------------------------


def adaptive(x):
    return orthogonalize(x, schedule="adaptive")


def cubed(x):
    return (adaptive(x) ** 3).sum()


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
def test_torch_differentiates_batches_and_records(torch):
    x = torch.tensor(rough((6, 4), 1), requires_grad=True)
    assert torch.autograd.gradcheck(adaptive, (x,), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(adaptive, (x,))
    stack = torch.tensor(rough((3, 6, 4), 2))
    torch.testing.assert_close(torch.func.vmap(adaptive)(stack), adaptive(stack))
    each = torch.stack([torch.func.grad(cubed)(t) for t in stack])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(cubed))(stack), each)
    y = adaptive(torch.empty(6, 4, device="meta", dtype=torch.bfloat16))
    assert (y.shape, y.device.type, y.dtype) == ((6, 4), "meta", torch.bfloat16)


def test_torch_compile(torch):
    compiled = torch.compile(adaptive, fullgraph=True, backend="aot_eager")
    x, y = (torch.tensor(rough((3, 6, 4), 2), requires_grad=True) for _ in range(2))
    q, wanted = compiled(x), adaptive(y)
    torch.testing.assert_close(q, wanted)
    (q**3).sum().backward()
    (wanted**3).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    with pytest.raises(Exception, match="steps, got steps=9"):
        torch.compile(lambda x: orthogonalize(x, schedule="adaptive", steps=9), backend="eager")(x)


@pytest.mark.parametrize("dtype", ["float32", *HALF])
@pytest.mark.parametrize("shape", [(40, 12), (24, 24), (3, 16, 20)], ids=str)
def test_tensors_on_devices(torch, monkeypatch, shape, dtype):
    """Coefficients are arrays there, of one matrix too; nothing is read."""
    x = torch.tensor(matrices(shape)).to(getattr(torch, dtype))
    wanted = adaptive(x).double()
    off_the_host(monkeypatch)
    module = importlib.import_module("polarlib.arrays.torch_ops")
    monkeypatch.setattr(module, "multiplies_at_speed", lambda _: True)
    for name in ("item", "to_host"):
        monkeypatch.setattr(module.TorchOps, name, None)
    found = adaptive(x)
    assert found.dtype == x.dtype
    assert distance(found.double().numpy(), wanted.numpy()) < limit(dtype, min(shape[-2:]))


def test_jax_compiles_batches_and_differentiates():
    jnp = library("jax").xp
    jax = importlib.import_module("jax")
    x = jnp.asarray(rough((3, 6, 4), 1))
    wanted = adaptive(x)
    for f in (jax.jit(adaptive), jax.vmap(adaptive)):
        np.testing.assert_allclose(f(x), wanted, atol=1e-13)
    back = orthogonalize_vjp(np.asarray(x), 3 * np.asarray(wanted) ** 2, schedule="adaptive")
    np.testing.assert_allclose(jax.grad(cubed)(x), back, atol=1e-10 * np.max(np.abs(back)))


@pytest.mark.slow
def test_jax_differentiates_twice():
    jnp = library("jax").xp
    jax = importlib.import_module("jax")
    x, e = jnp.asarray(rough((6, 4), 1)), gaussian((6, 4), 2)
    gradient = jax.jit(jax.grad(cubed))
    second = jax.jvp(gradient, (x,), (jnp.asarray(e),))[1]
    numbers = differences(lambda t: np.asarray(gradient(jnp.asarray(t))), np.asarray(x), e)
    np.testing.assert_allclose(second, numbers, atol=1e-5 * np.max(np.abs(numbers)))
