"""orthogonalize(g, heads=h): every block of rows by itself, whatever the library and the option."""

from __future__ import annotations

import io

import numpy as np
import pytest
from conftest import library
from standin import cupy_standin

import polarlib
from polarlib import orthogonalize, orthogonalize_jvp, orthogonalize_vjp

OPTIONS = {
    "default": {},
    "gram": {"form": "gram", "restarts": (2,)},
    "jordan": {"schedule": "jordan", "steps": 3},
    "schatten4": {"schedule": "jordan", "normalisation": "schatten4"},
    "adaptive": {"schedule": "adaptive"},
    "halley": {"schedule": "halley"},
    "bfloat16": {"precision": "bfloat16"},
}


def gaussian(*shape, dtype="float64", seed=0):
    a = np.random.default_rng(seed).standard_normal((2, *shape))
    return a[0] + 1j * a[1] if dtype.startswith("complex") else a[0]


def in_blocks(a, heads):
    return a.reshape((*a.shape[:-2], heads, a.shape[-2] // heads, a.shape[-1]))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "complex64", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(12, 5), (6, 40), (2, 9, 3)], ids=str)
@pytest.mark.thinned(19)
def test_results_are_those_of_the_stack_of_blocks(lib, shape, dtype, options):
    """Bit for bit: a block knows nothing of the others, and takes the same path."""
    if not lib.has(dtype):
        pytest.skip(f"{lib.name} has no {dtype}")
    a = gaussian(*shape, dtype=dtype)
    for heads in (3, shape[-2]):
        q = orthogonalize(lib.asarray(a, dtype), heads=heads, **options)
        want = orthogonalize(lib.asarray(in_blocks(a, heads), dtype), **options)
        assert lib.dtype_name(q) == dtype
        assert tuple(q.shape) == shape
        q, want = lib.to_numpy(q), lib.to_numpy(want).reshape(shape)
        np.testing.assert_array_equal(q, want)


def test_blocks_of_dask():
    """Its sums follow its chunks, which are others."""
    lib, a = library("dask"), gaussian(6, 4)
    q = orthogonalize(lib.asarray(a), heads=2, schedule="jordan", steps=2)
    want = orthogonalize(a, heads=2, schedule="jordan", steps=2)
    np.testing.assert_allclose(lib.to_numpy(q), want, atol=1e-12)


def test_every_block_has_the_singular_values_of_the_schedule():
    """Against the definition: U s(sigma) V^H of each block, by NumPy's SVD in double."""
    a, s = gaussian(12, 7), polarlib.schedule("polar_express")
    q = in_blocks(orthogonalize(a, heads=4, schedule=s, normalisation="frobenius"), 4)
    for block, found in zip(in_blocks(a, 4), q, strict=True):
        u, sigma, vh = np.linalg.svd(block, full_matrices=False)
        sigma = s(sigma / np.linalg.norm(sigma) / s.input_safety)
        np.testing.assert_allclose(found, (u * sigma) @ vh, atol=1e-12)
    assert np.abs(q.reshape(12, 7) - orthogonalize(a, schedule=s)).max() > 0.1  # not the whole


def test_one_head_is_the_matrix(lib):
    a = gaussian(8, 3)
    x = lib.asarray(a)
    want = lib.to_numpy(orthogonalize(x))
    for heads in (None, 1, np.int64(1)):
        np.testing.assert_array_equal(lib.to_numpy(orthogonalize(x, heads=heads)), want)


def test_what_is_given_stays(lib):
    a = gaussian(6, 8)[:, ::2]
    x = lib.asarray(a)
    orthogonalize(x, heads=2)
    np.testing.assert_array_equal(lib.to_numpy(x), a)
    strided = np.asfortranarray(a)
    want = orthogonalize(a.copy(), heads=2)
    np.testing.assert_allclose(orthogonalize(strided, heads=2), want, atol=1e-12)


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("shape", [(12, 5), (6, 40), (2, 9, 3)], ids=str)
def test_out(shape, order):
    a = np.array(gaussian(*shape), order=order)
    want = orthogonalize(a, heads=3)
    out = np.full_like(a, np.nan)
    assert orthogonalize(a, heads=3, out=out) is out
    np.testing.assert_allclose(out, want, atol=1e-12)
    assert orthogonalize(a, heads=3, out=a) is a
    np.testing.assert_allclose(a, want, atol=1e-12)


def test_out_of_tensors(torch):
    a = torch.tensor(gaussian(6, 4))
    want, out = orthogonalize(a, heads=2), torch.empty(4, 6, dtype=a.dtype).mT
    assert orthogonalize(a, heads=2, out=out) is out
    assert torch.equal(out, want)
    assert orthogonalize(a, heads=2, out=a) is a
    assert torch.equal(a, want)


@pytest.mark.parametrize("shape", [(0, 3), (6, 0), (0, 6, 3), (3, 0, 2)], ids=str)
def test_no_entries(lib, shape):
    assert tuple(orthogonalize(lib.asarray(np.ones(shape)), heads=3).shape) == shape


def test_zero_blocks_stay_zero_and_scales_do_not_mix(lib):
    """A block is divided by its own norm: a tiny one is orthogonalised beside a huge one."""
    a = gaussian(9, 3)
    a[:3] *= 1e-150
    a[3:6] *= 1e150
    a[6:] = 0
    q = lib.to_numpy(orthogonalize(lib.asarray(a), heads=3))
    for block in (q[:3], q[3:6]):
        assert np.linalg.svd(block, compute_uv=False)[0] > 0.9
    assert not q[6:].any()


BAD = [(4, "4 for 6 rows"), (7, "7 for 6 rows"), (0, "got 0"), (-2, "got -2"), (2.0, "got 2.0")]


@pytest.mark.parametrize(("heads", "words"), [*BAD, (True, "got True"), ("2", "got '2'")])
def test_wrong_numbers_of_heads(heads, words):
    a = gaussian(6, 4)
    calls = (
        lambda **how: orthogonalize(a, **how),
        lambda **how: orthogonalize(a, schedule=np.ones((1, 2)), **how),
        lambda **how: orthogonalize(a, out=a.copy(), **how),
        lambda **how: polarlib.orthogonalize_all([a], **how),
        lambda **how: orthogonalize_jvp(a, a, **how),
        lambda **how: orthogonalize_vjp(a, a, schedule=np.ones((1, 2)), **how),
    )
    for call in calls:
        with pytest.raises(ValueError, match=f"heads must .*{words}"):
            call(heads=heads)


def test_not_finite():
    a = gaussian(6, 4)
    a[5, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        orthogonalize(a, heads=2)
    jax = pytest.importorskip("jax")
    q = np.asarray(jax.jit(lambda g: orthogonalize(g, heads=2))(jax.numpy.asarray(a)))
    assert np.isfinite(q[:3]).all()
    assert np.isnan(q[3:]).all()


def test_on_the_stand_in_for_cupy():
    a = gaussian(12, 5).astype("f4")
    with cupy_standin.installed() as cupy:
        x = cupy.asarray(a)
        with cupy_standin.no_sync():
            q, want = orthogonalize(x, heads=4), orthogonalize(cupy.asarray(in_blocks(a, 4)))
        np.testing.assert_array_equal(q.get(), want.get().reshape(12, 5))


# -- derivatives -----------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["auto", "jordan", np.array([[1.9, -1.2, 0.3]] * 2)], ids=str)
@pytest.mark.parametrize("shape", [(6, 4), (4, 9), (2, 6, 2)], ids=str)
def test_derivatives_as_functions(shape, schedule):
    a, e, y = (gaussian(*shape, seed=i) for i in range(3))
    how = {"heads": 2, "schedule": schedule}
    d = orthogonalize_jvp(a, e, **how)
    h = 1e-6
    ends = orthogonalize(a + h * e, **how), orthogonalize(a - h * e, **how)
    np.testing.assert_allclose(d, (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-6)
    against = orthogonalize_vjp(a, y, **how)
    assert np.sum(against * e) == pytest.approx(np.sum(d * y), rel=1e-9, abs=1e-12)
    lone = orthogonalize_jvp(in_blocks(a, 2), in_blocks(e, 2), schedule=schedule)
    np.testing.assert_array_equal(d, lone.reshape(shape))
    assert orthogonalize_jvp(a.astype("f4"), e.astype("f4"), **how).dtype == "f4"


def test_derivatives_in_torch(torch):
    """Also where a block has equal singular values, or lacks rank."""
    points = [gaussian(6, 3), np.vstack([np.eye(3), 2 * np.eye(3)])]
    points.append(np.vstack([np.eye(3)[:2], np.ones((1, 3)), np.ones((3, 3))]))
    for a in points:
        x = torch.tensor(a, requires_grad=True)
        f = lambda x: orthogonalize(x, heads=2, schedule="polar_express")  # noqa: E731
        assert torch.autograd.gradcheck(f, x)
    g = torch.tensor(np.stack(points[:1] * 2))
    loss = lambda x: (f(x) ** 3).sum()  # noqa: E731
    each = torch.vmap(torch.func.grad(loss))(g)
    want = torch.func.grad(loss)(g[0])
    torch.testing.assert_close(each[1], want)
    single = torch.func.grad(loss)(g[0].float())
    torch.testing.assert_close(single.double(), want, rtol=1e-3, atol=1e-3)


def test_torch_compiles_and_exports(torch):
    g = torch.tensor(gaussian(6, 4))

    def run(x):
        return orthogonalize(x, heads=2)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=True)
    for x in (g, torch.tensor(gaussian(8, 3))):
        assert torch.equal(compiled(x), run(x))
        grads = []
        for f in (run, compiled):
            leaf = x.clone().requires_grad_()
            (f(leaf) ** 3).sum().backward()
            grads.append(leaf.grad)
        assert torch.equal(*grads)
    with pytest.raises(ValueError, match="heads must divide"):
        compiled(torch.ones(5, 3))
    with pytest.raises(ValueError, match="heads must divide"):
        orthogonalize(torch.ones(5, 3, device="meta"), heads=2)

    class Module(torch.nn.Module):
        def forward(self, x):
            return run(x)

    program = torch.export.export(Module(), (g,), dynamic_shapes={"x": {0: torch.export.Dim.AUTO}})
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    assert torch.equal(loaded(g), run(g))


def test_jax_transforms():
    jnp = library("jax").xp
    import jax

    a = np.stack([gaussian(6, 4), gaussian(6, 4, seed=1)])
    how = {"heads": 3, "schedule": "jordan", "steps": 2}
    slope = jax.grad(lambda g: (orthogonalize(g, **how) ** 3).sum())
    each = jax.jit(jax.vmap(slope))(jnp.asarray(a))
    for x, found in zip(a, each, strict=True):
        want = orthogonalize_vjp(x, 3 * orthogonalize(x, **how) ** 2, **how)
        np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_jax_arrays_on_a_mesh(kind):
    jnp = library("jax").xp
    import jax

    types = (getattr(jax.sharding.AxisType, kind),)
    mesh = jax.make_mesh((1,), ("x",), axis_types=types)
    with jax.set_mesh(mesh):
        g = jnp.asarray(gaussian(6, 4))
        place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", None))
        x = jax.device_put(g, place)
        want = np.asarray(orthogonalize(np.asarray(g), heads=2))
        q = orthogonalize(x, heads=2)
        assert q.sharding.is_equivalent_to(place, 2)
        np.testing.assert_allclose(np.asarray(q), want, atol=1e-9)
        traced = jax.jit(lambda g: orthogonalize(g, heads=2))(x)
        np.testing.assert_allclose(np.asarray(traced), want, atol=1e-9)
