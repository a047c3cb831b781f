"""orthogonalize_all(): kernels of convolutions, and stacks of equal matrices in one batch."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import library
from standin import cupy_standin

from polarlib import orthogonalize, orthogonalize_all
from polarlib.orthogonalization import lists

HOW = {"schedule": "jordan", "steps": 3}
COEFFICIENTS = np.array([[3.1, -4.7, 2.05], [2.3, -2.1, 0.71]])
KERNELS = [(6, 4), (6, 2, 2), (8, 3, 2, 2), (5, 2, 1, 3, 1), (6, 2, 2, 1), (8, 12)]


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def as_matrix(a):
    return a.reshape(a.shape[0], -1)


@pytest.fixture
def batches(monkeypatch):
    """Shapes that orthogonalize is called with."""
    shapes = []

    def recorded(x, **how):
        shapes.append(tuple(x.shape))
        return orthogonalize(x, **how)

    monkeypatch.setattr(lists, "orthogonalize", recorded)
    return shapes


def test_kernels_are_matrices(lib, batches):
    """Out x (in h w), of every number of dimensions, grouped by the shape of the matrix."""
    arrays = [gaussian(*shape, seed=i) for i, shape in enumerate(KERNELS)]
    given = [lib.asarray(a) for a in arrays]
    results = orthogonalize_all(given, convolution=True, **HOW)
    assert sorted(batches) == [(2, 8, 12), (3, 6, 4), (5, 6)]
    for a, x, q in zip(arrays, given, results, strict=True):
        assert tuple(q.shape) == a.shape
        assert q.dtype == x.dtype
        np.testing.assert_array_equal(lib.to_numpy(x), a)
        want = orthogonalize(as_matrix(a), **HOW).reshape(a.shape)
        np.testing.assert_allclose(lib.to_numpy(q), want, atol=1e-12)
    alone = orthogonalize(lib.asarray(as_matrix(arrays[3])), **HOW)
    np.testing.assert_array_equal(as_matrix(lib.to_numpy(results[3])), lib.to_numpy(alone))


def test_by_default_they_are_stacks():
    a = gaussian(4, 3, 5, 2)
    [q] = orthogonalize_all([a], **HOW)
    np.testing.assert_array_equal(q, orthogonalize(a, **HOW))
    assert np.abs(q - orthogonalize_all([a], convolution=True, **HOW)[0]).max() > 0.1


@pytest.mark.parametrize("name", ["heads", "coefficients", "gram"])
def test_kernels_with_options(lib, name):
    how = {"heads": {"heads": 2}, "coefficients": {"schedule": lib.asarray(COEFFICIENTS)}}
    how = how.get(name, {"form": "gram"})
    a = gaussian(6, 2, 3, 1)
    [q] = orthogonalize_all([lib.asarray(a)], convolution=True, **how)
    want = orthogonalize(lib.asarray(as_matrix(a)), **how)
    np.testing.assert_array_equal(as_matrix(lib.to_numpy(q)), lib.to_numpy(want))


def test_stacks_of_equal_matrices_are_one_batch(lib, batches):
    shapes = [(3, 6, 4), (6, 4), (2, 6, 4), (2, 2, 6, 4), (0, 6, 4), (1, 4, 6), (4, 6)]
    arrays = [gaussian(*shape, seed=i) for i, shape in enumerate(shapes)]
    results = orthogonalize_all([lib.asarray(a) for a in arrays], **HOW)
    assert sorted(batches) == [(2, 4, 6), (10, 6, 4)]
    for a, q in zip(arrays, results, strict=True):
        assert tuple(q.shape) == a.shape
        np.testing.assert_allclose(lib.to_numpy(q), orthogonalize(a, **HOW), atol=1e-12)


def test_matrices_alone_are_stacked_as_before(batches):
    orthogonalize_all([gaussian(6, 4), gaussian(3, 5), gaussian(6, 4), gaussian(3, 200, 100)])
    assert sorted(batches) == [(2, 6, 4), (3, 5), (3, 200, 100)]


def test_dtypes_and_devices_do_not_mix(torch, batches):
    a = gaussian(2, 6, 4)
    given = [a, a.astype("f4"), torch.tensor(a), torch.tensor(a[0]), torch.tensor(a).bfloat16()]
    results = orthogonalize_all(given, **HOW)
    assert sorted(batches) == [(2, 6, 4), (2, 6, 4), (2, 6, 4), (3, 6, 4)]
    assert [q.dtype for q in results] == [x.dtype for x in given]


def test_gradients_reach_every_member(torch):
    a, k = (torch.tensor(gaussian(*shape)) for shape in [(2, 6, 4), (6, 2, 2)])
    c = torch.tensor(COEFFICIENTS, requires_grad=True)
    leaves = [a.clone().requires_grad_(), a[0].clone().requires_grad_()]
    sum((q**3).sum() for q in orthogonalize_all(leaves, schedule=c)).backward()
    alone = [a.clone().requires_grad_(), torch.tensor(COEFFICIENTS, requires_grad=True)]
    (orthogonalize(alone[0], schedule=alone[1]) ** 3).sum().backward()
    torch.testing.assert_close(leaves[0].grad, alone[0].grad)
    torch.testing.assert_close(leaves[1].grad, alone[0].grad[0])
    k.requires_grad_()
    (orthogonalize_all([k], convolution=True, schedule=c)[0] ** 3).sum().backward()
    assert k.grad.shape == k.shape
    assert c.grad.isfinite().all()


def test_torch_compiles(torch):
    given = [torch.tensor(gaussian(*shape)) for shape in KERNELS[:3]]
    c = torch.tensor(COEFFICIENTS)
    runs = (
        lambda gs, c: orthogonalize_all(gs, convolution=True, heads=2, **HOW),
        lambda gs, c: orthogonalize_all(gs, convolution=True, schedule=c),
    )
    for run in runs:
        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
        for found, want in zip(compiled(given, c), run(given, c), strict=True):
            torch.testing.assert_close(found, want, rtol=0, atol=1e-12)


def test_jax_compiles():
    jnp = library("jax").xp
    import jax

    given = [gaussian(*shape) for shape in (*KERNELS[:2], (2, 6, 4))]
    run = lambda gs, c: orthogonalize_all(gs, convolution=True, schedule=c)  # noqa: E731
    results = jax.jit(run)([jnp.asarray(a) for a in given], jnp.asarray(COEFFICIENTS))
    for a, q in zip(given, results, strict=True):
        want = orthogonalize(as_matrix(a), schedule=COEFFICIENTS).reshape(a.shape)
        np.testing.assert_allclose(q, want, atol=1e-12)
    stacks = jax.jit(lambda gs: orthogonalize_all(gs, **HOW))([jnp.asarray(a) for a in given])
    np.testing.assert_allclose(stacks[2], orthogonalize(given[2], **HOW), atol=1e-12)


def test_on_the_stand_in_for_cupy():
    arrays = [gaussian(*shape).astype("f4") for shape in [(6, 2, 3), (6, 6), (5, 4)]]
    with cupy_standin.installed() as cupy, cupy_standin.no_sync():
        given = [cupy.asarray(a) for a in arrays]
        results = orthogonalize_all(given, convolution=True, **HOW)
    for a, q in zip(arrays, results, strict=True):
        want = orthogonalize(as_matrix(a), **HOW).reshape(a.shape)
        np.testing.assert_allclose(q.get(), want, atol=1e-4)


def test_bad_lists():
    a = gaussian(6, 2, 2)
    for wrong in (1, "yes", None, np.ones(2)):
        with pytest.raises(TypeError, match="convolution must be True or False, got"):
            orthogonalize_all([a], convolution=wrong)
    with pytest.raises(ValueError, match=r"gradients\[1\] must be a matrix"):
        orthogonalize_all([a, np.ones(3)], convolution=True)
    with pytest.raises(ValueError, match=r"gradients\[0, 1\]: heads must divide .* 6 rows"):
        orthogonalize_all([a, a], convolution=True, heads=4)
    with pytest.raises(ValueError, match=r"gradients\[0\]: steps=2 is not possible"):
        orthogonalize_all([a], schedule=COEFFICIENTS, steps=2)
    a[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"gradients\[0, 1\]: .*NaN"):
        orthogonalize_all([a, gaussian(6, 4)], convolution=True)
