"""Arrays of other libraries in the memory of the host, which NumPy decomposes faster."""

from __future__ import annotations

import numpy as np
import pytest

import polarlib
from polarlib.arrays.ops import ops_of
from polarlib.testing import assert_polar

SHAPES = [(512, 512), (1100, 260), (260, 1100)]


def matrix(shape, dtype):
    rng = np.random.default_rng(shape)
    a = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        a = a + 1j * rng.standard_normal(shape)
    return a.astype(dtype)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("shape", SHAPES)
def test_torch(shape, dtype):
    torch = pytest.importorskip("torch")
    a = matrix(shape, dtype)
    weight = torch.nn.Parameter(torch.from_numpy(a.copy()), requires_grad=False)
    for x in (torch.from_numpy(a), torch.from_numpy(a.T.copy()).mT, weight):
        kept = x.clone()
        u, h = result = polarlib.polar(x)
        assert result.reason.endswith("by NumPy in the same memory")
        assert (u.dtype, h.dtype, u.device) == (x.dtype, x.dtype, x.device)
        assert torch.equal(x, kept)
        assert_polar(a, u.numpy(), h.numpy())
        expected = polarlib.polar(x.numpy())
        assert np.array_equal(u.numpy(), expected.unitary)
        assert result.rank == expected.rank
        assert (result.converged, result.status) == (expected.converged, expected.status)
        u += 1  # storage of its own, and writable
        assert torch.equal(polarlib.nearest_orthogonal(x) + 1, u)


def test_conjugated_views_of_torch():
    torch = pytest.importorskip("torch")
    a = matrix((512, 512), "complex128")
    u, h = polarlib.polar(torch.from_numpy(a).mH)
    assert_polar(a.conj().T, u.numpy(), h.numpy())


def test_what_torch_decomposes_itself():
    torch = pytest.importorskip("torch")
    a = torch.from_numpy(matrix((512, 512), "float64"))
    for x, options in (
        (a[:64, :64], {}),
        (a.to(torch.bfloat16), {}),
        (a.reshape(4, 256, 256), {}),
        (a, {"method": "hybrid"}),
        (a, {"callback": lambda k, x: None}),
    ):
        assert "NumPy" not in polarlib.polar(x, **options).reason


def test_gradients_of_torch():
    torch = pytest.importorskip("torch")
    a = torch.from_numpy(matrix((512, 512), "float64")).requires_grad_()
    u, _ = polarlib.polar(a)
    w = torch.from_numpy(np.random.default_rng(2).standard_normal((512, 512)))
    (u * w).sum().backward()
    direction = torch.from_numpy(np.random.default_rng(3).standard_normal((512, 512)))
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (polarlib.polar(a + s * direction)[0] for s in (step, -step))
        slope = ((ahead - behind) * w).sum() / (2 * step)
    assert float((a.grad * direction).sum()) == pytest.approx(float(slope), rel=1e-4)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("shape", [(40, 40), *SHAPES])
def test_jax(shape, dtype):
    jax = pytest.importorskip("jax")
    a = matrix(shape, dtype)
    x = jax.numpy.asarray(a)
    u, h = result = polarlib.polar(x)
    assert result.reason.endswith("by NumPy in the same memory")
    assert (u.dtype, h.dtype, u.devices()) == (x.dtype, x.dtype, x.devices())
    assert_polar(a, np.asarray(u), np.asarray(h))
    assert np.array_equal(np.asarray(x), a)
    assert polarlib.nearest_orthogonal(x).shape == x.shape
    assert "NumPy" not in polarlib.polar(x[None]).reason


def test_jax_under_transformations():
    jax = pytest.importorskip("jax")
    x = jax.numpy.asarray(matrix((40, 40), "float32"))
    ahead = polarlib.polar(x).unitary
    u = jax.jit(lambda x: polarlib.polar(x).unitary)(x)
    np.testing.assert_allclose(np.asarray(u), np.asarray(ahead), atol=1e-4)
    gradient = jax.grad(lambda x: polarlib.polar(x).hermitian.trace())(x)
    np.testing.assert_allclose(np.asarray(gradient), np.asarray(ahead), atol=1e-4)


def test_numpy_has_no_view():
    a = np.eye(512)
    assert ops_of(a)._host_view(a) is None
