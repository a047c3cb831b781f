"""Generalised Procrustes analysis."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from conftest import LIBRARIES, library

from polarlib import (
    ConvergenceWarning,
    align,
    generalized_procrustes,
    nearest_orthogonal,
    nearest_rotation,
    procrustes,
)


def rotations(rng, k, d):
    """Rotations that are not near one another."""
    return nearest_rotation(rng.normal(size=(k, d, d)))


def alike(rng, k=5, n=12, d=3, noise=0.2, far=3.0, sizes=True):
    """Return one shape with random errors, moved, turned and scaled."""
    x = rng.normal(size=(n, d)) + noise * rng.normal(size=(k, n, d))
    s = rng.uniform(0.5, 2, size=(k, 1, 1)) if sizes else 1.0
    return s * (x @ rotations(rng, k, d)) + far * rng.normal(size=(k, 1, d))


def objective(shapes, found, weights=1.0):
    """Of the aligned shapes, from the definition."""
    apart = found.alignments(shapes) - found.mean[..., None, :, :]
    return np.sum(np.reshape(weights, (-1, 1)) * np.abs(apart) ** 2, axis=(-3, -2, -1))


@pytest.mark.parametrize("translation", [True, False])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("reflection", [True, False])
def test_two_shapes_have_a_closed_form(scale, reflection, translation):
    rng = np.random.default_rng(0)
    for d in (1, 2, 3, 5):
        a, b = rng.normal(size=(2, 8, d)) + 1.0
        found = generalized_procrustes(
            [a, b], scale=scale, translation=translation, reflection=reflection, max_iterations=9000
        )
        if translation:
            a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        s = scipy.linalg.svdvals(a.T @ b)
        if not reflection and np.linalg.det(a.T @ b) < 0:
            s[-1] *= -1
        one, two = np.linalg.norm(a), np.linalg.norm(b)
        if scale:  # equally large, the sum of the squares kept
            best = (one**2 + two**2) * (1 - max(np.sum(s), 0) / (one * two)) / 2
        else:
            best = (one**2 + two**2) / 2 - np.sum(s)
        if np.sum(s) > 0:
            assert found.converged
            np.testing.assert_allclose(found.objective[-1], best, rtol=1e-9)


@pytest.mark.parametrize("scale", [True, False])
def test_nothing_nearby_is_better(scale):
    """By an optimiser that knows angles, scales and nothing of Procrustes."""
    rng = np.random.default_rng(1)
    shapes = alike(rng, k=4, n=6, d=2, noise=0.3)
    found = generalized_procrustes(shapes, scale=scale)
    centred = shapes - shapes.mean(axis=1, keepdims=True)
    sizes = np.sum(centred**2, axis=(1, 2))

    def value(v):
        c, s = np.cos(v[:4]), np.sin(v[:4])
        turns = np.moveaxis(np.array([[c, s], [-s, c]]), -1, 0)
        factors = np.exp(v[4:]) if scale else np.ones(4)
        factors = factors * np.sqrt(sizes.sum() / np.sum(factors**2 * sizes))
        moved = (factors if scale else np.ones(4))[:, None, None] * (centred @ turns)
        return np.sum((moved - moved.mean(axis=0)) ** 2)

    starts = rng.uniform(-np.pi, np.pi, size=(6, 8))
    best = min(scipy.optimize.minimize(value, v, tol=1e-12).fun for v in starts)
    np.testing.assert_allclose(found.objective[-1], best, rtol=1e-7)


@pytest.mark.parametrize("options", [{}, {"scale": True}, {"reflection": True, "scale": True}])
@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0, 5.0])
def test_the_objective_never_grows(noise, options):
    rng = np.random.default_rng(2)
    w = rng.uniform(size=12)
    shapes = alike(rng, noise=noise)
    found = generalized_procrustes(shapes, weights=w, max_iterations=5000, **options)
    assert found.converged
    values = found.objective
    assert values.shape == (found.iterations,)
    size = np.sum(w[:, None] * (shapes - shapes.mean(axis=1, keepdims=True)) ** 2)
    assert np.all(np.diff(values) <= 1e-13 * size)
    np.testing.assert_allclose(objective(shapes, found, w), values[-1], atol=1e-13 * size)
    rmsd = found.alignments.rmsd
    np.testing.assert_allclose(np.sum(rmsd**2) * w.sum(), values[-1], atol=1e-13 * size)


@pytest.mark.parametrize("reflection", [True, False])
def test_what_is_found_is_stationary(reflection):
    """Each shape is best aligned to the mean; the scales are the leading vector of ten Berge's."""
    rng = np.random.default_rng(3)
    shapes = alike(rng, noise=0.7)
    w = rng.uniform(0.2, 1, size=12)
    options = {"weights": w, "scale": True, "reflection": reflection}
    found = generalized_procrustes(shapes, rtol=1e-13, max_iterations=5000, **options)
    # All shapes may be turned together, and the mean is the mean.
    np.testing.assert_allclose(found.alignments.rotation[0], np.eye(3), atol=1e-14)
    aligned = found.alignments(shapes)
    np.testing.assert_allclose(aligned.mean(axis=0), found.mean, atol=1e-13)
    np.testing.assert_allclose(np.average(found.mean, axis=0, weights=w), 0, atol=1e-13)
    again = align(shapes, found.mean[None], weights=w, reflection=reflection)
    np.testing.assert_allclose(again.rotation, found.alignments.rotation, atol=1e-10)
    np.testing.assert_allclose(
        again.singular_values, found.alignments.singular_values, rtol=1e-9, atol=1e-9
    )
    assert np.all(found.alignments.unique)
    root = np.sqrt(w)[:, None]
    centred = shapes - np.average(shapes, axis=1, weights=w)[:, None]
    turned = root * (centred @ found.alignments.rotation)
    gram = np.einsum("ipc,jpc->ij", turned, turned)
    sizes = np.diag(np.diag(gram))
    _, vectors = scipy.linalg.eigh(gram, sizes)
    s = found.alignments.scale
    leading = vectors[:, -1] * np.sign(vectors[0, -1])
    np.testing.assert_allclose(s / np.linalg.norm(s), leading / np.linalg.norm(leading), atol=1e-10)
    np.testing.assert_allclose(s @ sizes @ s, np.trace(gram), rtol=1e-13)


@pytest.mark.parametrize("rtol", [1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize("noise", [0.3, 1.5, 100.0])
def test_convergence_is_as_near_as_it_says(noise, rtol):
    """For random shapes movements shrink slowly: small movements do not imply convergence."""
    rng = np.random.default_rng(4)
    for _ in range(3):
        shapes = alike(rng, noise=noise, sizes=False)
        found = generalized_procrustes(shapes, rtol=rtol, max_iterations=9000)
        limit = generalized_procrustes(shapes, rtol=1e-12, max_iterations=9000)
        assert found.iterations <= limit.iterations
        aligned, end = found.alignments(shapes), limit.alignments(shapes)
        away = np.linalg.norm(aligned - end) / np.linalg.norm(end)
        assert away <= 4 * rtol  # the factor q is an estimate; the first rotation is fixed too


def test_too_few_sweeps_are_told():
    shapes = np.random.default_rng(5).normal(size=(6, 8, 3))
    with pytest.warns(ConvergenceWarning, match="after 3 sweeps.*max_iterations"):
        found = generalized_procrustes(shapes, max_iterations=3)
    assert not found.converged
    assert found.iterations == 3
    # Of a stack, each on its own.
    both = np.stack([shapes, np.broadcast_to(shapes[0], shapes.shape)])
    with pytest.warns(ConvergenceWarning):
        found = generalized_procrustes(both, max_iterations=3)
    assert found.converged.tolist() == [False, True]
    fixed = generalized_procrustes(both, rtol=0, max_iterations=7)  # asked for, and no warning
    assert fixed.iterations == 7
    assert fixed.converged.tolist() == [False, True]


def test_congruent_shapes_coincide():
    rng = np.random.default_rng(6)
    a = rng.normal(size=(9, 3))
    turns = rotations(rng, 4, 3)
    turns[0] = np.eye(3)
    shapes = a @ turns + rng.normal(size=(4, 1, 3))
    found = generalized_procrustes(shapes)
    assert found.iterations == 2
    np.testing.assert_allclose(found.mean, a - a.mean(axis=0), atol=1e-14)
    np.testing.assert_allclose(found.alignments.rotation, np.swapaxes(turns, 1, 2), atol=1e-14)
    np.testing.assert_allclose(found.alignments.rmsd, 0, atol=1e-14)
    mirrored = shapes * np.array([1, 1, -1])[None, None]
    mixed = np.concatenate([shapes[:2], mirrored[2:]])
    with_mirrors = generalized_procrustes(mixed, reflection=True)
    np.testing.assert_allclose(with_mirrors.alignments.rmsd, 0, atol=1e-14)
    assert np.linalg.det(with_mirrors.alignments.rotation[3]) < 0
    assert generalized_procrustes(mixed).objective[-1] > 1e-2


def test_motions_of_the_shapes_do_not_matter():
    rng = np.random.default_rng(7)
    shapes = alike(rng, far=0.0)
    found = generalized_procrustes(shapes, scale=True)
    moves = rotations(rng, 5, 3)
    moves[0] = np.eye(3)
    moved = shapes @ moves + rng.normal(size=(5, 1, 3))
    again = generalized_procrustes(moved, scale=True)
    np.testing.assert_allclose(again.mean, found.mean, atol=1e-10)
    np.testing.assert_allclose(again.objective[-1], found.objective[-1], rtol=1e-12)
    np.testing.assert_allclose(again.alignments(moved), found.alignments(shapes), atol=1e-10)


def test_weights_are_repeated_points():
    rng = np.random.default_rng(8)
    shapes = alike(rng, n=6)
    w = np.array([1, 3, 0, 2, 1, 2])
    found = generalized_procrustes(shapes, weights=w, scale=True)
    repeated = generalized_procrustes(np.repeat(shapes, w, axis=1), scale=True)
    np.testing.assert_allclose(found.objective[-1], repeated.objective[-1], rtol=1e-12)
    np.testing.assert_allclose(np.repeat(found.mean, w, axis=0), repeated.mean, atol=1e-10)
    # Weights of every kind: of a list, of another precision, of each stack.
    listed = generalized_procrustes(shapes, weights=w.tolist(), scale=True)
    np.testing.assert_array_equal(listed.mean, found.mean)
    each = generalized_procrustes(shapes, weights=np.stack([w, w[::-1]]), scale=True)
    np.testing.assert_allclose(each.mean[0], found.mean, atol=1e-12)
    other = generalized_procrustes(shapes, weights=w[::-1].astype("float32"), scale=True)
    np.testing.assert_allclose(each.mean[1], other.mean, atol=1e-10)


def test_complex_shapes():
    rng = np.random.default_rng(9)
    a = rng.normal(size=(8, 3)) + 1j * rng.normal(size=(8, 3))
    turns = nearest_orthogonal(rng.normal(size=(4, 3, 3)) + 1j * rng.normal(size=(4, 3, 3)))
    shapes = a @ turns + 0.1 * rng.normal(size=(4, 8, 3))
    found = generalized_procrustes(shapes, reflection=True, translation=False, rtol=1e-13)
    for x, r in zip(shapes, found.alignments.rotation, strict=True):
        np.testing.assert_allclose(procrustes(x, found.mean), r, atol=1e-10)
    assert found.objective.dtype == found.alignments.rmsd.dtype == np.float64
    with pytest.raises(TypeError, match="reflection=True"):
        generalized_procrustes(shapes)


# Of the rest that is computed once, JAX compiles each operation; below it compiles the whole.
EVERY = [pytest.param(name, marks=[pytest.mark.slow] * (name == "jax")) for name in LIBRARIES]


@pytest.mark.parametrize("lib", EVERY, indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_every_library(lib, dtype):
    if not lib.has(dtype):
        pytest.skip("no such dtype")
    rng = np.random.default_rng(10)
    shapes = np.stack([alike(rng, noise=0.05), alike(rng, noise=0.3)])
    w = rng.uniform(0.5, 1, size=12)
    x = lib.asarray(shapes, dtype)
    rounded = lib.to_numpy(x).astype(float)
    expected = generalized_procrustes(
        rounded, weights=lib.to_numpy(lib.asarray(w, dtype)), scale=True
    )
    found = generalized_procrustes(x, weights=lib.asarray(w, dtype), scale=True)
    eps = {"float64": 1e-9, "float32": 1e-3, "float16": 1e-2, "bfloat16": 1e-1}[dtype]
    for name in ("mean", "objective"):
        value = getattr(found, name)
        assert lib.dtype_name(value) == dtype
        assert lib.device(value) == lib.device(x)
    np.testing.assert_allclose(lib.to_numpy(found.mean), expected.mean, atol=5 * eps)
    for name in ("rotation", "scale", "translation", "singular_values", "rmsd"):
        value = lib.to_numpy(getattr(found.alignments, name))
        np.testing.assert_allclose(
            value, getattr(expected.alignments, name), rtol=20 * eps, atol=20 * eps
        )
    assert bool(lib.xp.all(found.converged))
    assert lib.to_numpy(x).astype(float).tobytes() == rounded.tobytes()
    # A single one of the stack is the same.
    alone = generalized_procrustes(x[0, ...], weights=lib.asarray(w, dtype), scale=True)
    np.testing.assert_allclose(lib.to_numpy(alone.mean), lib.to_numpy(found.mean)[0], atol=5 * eps)


@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e30, 1e200])
def test_any_scale(size):
    shapes = alike(np.random.default_rng(11))
    one = generalized_procrustes(shapes)
    found = generalized_procrustes(size * shapes)
    np.testing.assert_allclose(found.mean / size, one.mean, atol=1e-12)
    np.testing.assert_allclose(found.alignments.rmsd / size, one.alignments.rmsd, rtol=1e-10)
    mixed = generalized_procrustes(np.stack([shapes, size * shapes]))
    np.testing.assert_allclose(mixed.mean[1] / size, one.mean, atol=1e-12)


def test_shapes_far_from_the_origin():
    shapes = alike(np.random.default_rng(12), far=0.0, sizes=False)
    near = np.round(shapes * 2**20) / 2**20  # so that the sums are exact
    found, away = (generalized_procrustes(x) for x in (near, near + 2.0**25))
    np.testing.assert_allclose(away.objective[-1], found.objective[-1], rtol=1e-12)
    np.testing.assert_allclose(away.mean, found.mean, atol=1e-10)
    np.testing.assert_allclose(away.mean.mean(axis=0), 0, atol=1e-14)


def test_degenerate_shapes():
    rng = np.random.default_rng(13)
    a = rng.normal(size=(5, 3))
    for shapes in (
        np.zeros((3, 5, 3)),
        np.ones((3, 5, 3)),
        np.stack([np.zeros((5, 3)), a, a]),
        np.stack([a, np.zeros((5, 3)), a]),
        a[None],
        np.broadcast_to(a, (4, 5, 3)),
        np.broadcast_to(np.array([1.0, 2.0, 3.0]) * np.arange(5.0)[:, None], (4, 5, 3)),  # a line
        a[None, :1],
        np.stack([a, -a]),
        rng.normal(size=(3, 2, 5)),  # fewer points than dimensions
        rng.normal(size=(4, 6, 1)),
    ):
        for options in ({}, {"scale": True}, {"reflection": True}, {"translation": False}):
            found = generalized_procrustes(shapes, **options)
            assert found.converged
            r = found.alignments.rotation
            d = shapes.shape[-1]
            np.testing.assert_allclose(
                r @ np.swapaxes(r, -1, -2), np.broadcast_to(np.eye(d), r.shape), atol=1e-13
            )
            if not options.get("reflection"):
                np.testing.assert_allclose(np.linalg.det(r), 1, atol=1e-13)
            np.testing.assert_allclose(objective(shapes, found), found.objective[-1], atol=1e-13)
            assert np.all(np.isfinite(found.mean))
    line = np.broadcast_to(np.array([1.0, 2, 3]) * np.arange(5.0)[:, None], (4, 5, 3))
    assert not np.any(generalized_procrustes(line).alignments.unique)


def test_memory_and_shapes():
    rng = np.random.default_rng(14)
    shapes = alike(rng)
    found = generalized_procrustes(shapes)
    strided = np.asfortranarray(shapes)[::1, ::1]
    np.testing.assert_allclose(generalized_procrustes(strided).mean, found.mean, atol=1e-13)
    frozen = shapes.copy()
    frozen.setflags(write=False)
    np.testing.assert_array_equal(generalized_procrustes(frozen).mean, found.mean)
    whole = np.round(10 * shapes).astype(int)
    np.testing.assert_allclose(
        generalized_procrustes(whole.tolist()).mean,
        generalized_procrustes(whole.astype(float)).mean,
    )
    empty = generalized_procrustes(np.zeros((0, 4, 5, 3)))
    assert empty.mean.shape == (0, 5, 3)
    assert empty.alignments.rotation.shape == (0, 4, 3, 3)


def test_callback():
    shapes = alike(np.random.default_rng(15))
    seen = []
    found = generalized_procrustes(shapes, callback=lambda i, mean: seen.append((i, mean)))
    assert [i for i, _ in seen] == list(range(1, found.iterations + 1))
    # The last one, but for the turn of all.
    np.testing.assert_allclose(
        align(seen[-1][1], found.mean, translation=False).rmsd, 0, atol=1e-13
    )


X = np.random.default_rng(16).normal(size=(3, 4, 2))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: generalized_procrustes(X[0]), ValueError, r"\(\.\.\., k, n, d\).*\(4, 2\)"),
        (lambda: generalized_procrustes(X[:0]), ValueError, r"k, n, d >= 1.*\(0, 4, 2\)"),
        (lambda: generalized_procrustes(X[:, :0]), ValueError, "k, n, d >= 1"),
        (lambda: generalized_procrustes(X * np.nan), ValueError, "shapes"),
        (lambda: generalized_procrustes("x"), TypeError, "shapes"),
        (lambda: generalized_procrustes(X, weights=[1, 1]), ValueError, "weights"),
        (lambda: generalized_procrustes(X, weights=[1, 1, 1, -1]), ValueError, "at least 0"),
        (lambda: generalized_procrustes(X, weights=[0] * 4), ValueError, "all be zero"),
        (lambda: generalized_procrustes(X, weights=[1, 1, 1, np.inf]), ValueError, "weights"),
        (lambda: generalized_procrustes(X, weights=2.0), ValueError, "weights"),
        (lambda: generalized_procrustes(X, scale=1), TypeError, "scale"),
        (lambda: generalized_procrustes(X, rtol=-1), ValueError, "rtol"),
        (lambda: generalized_procrustes(X, max_iterations=0), ValueError, "max_iterations"),
        (lambda: generalized_procrustes(X, callback=1), TypeError, "callback"),
    ],
)
def test_bad_calls(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_on_dask():
    lib = library("dask")
    shapes = alike(np.random.default_rng(20), k=2, n=4, d=2)
    options = {"rtol": 0, "max_iterations": 2}
    found = generalized_procrustes(lib.asarray(shapes), **options)
    expected = generalized_procrustes(shapes, **options)
    np.testing.assert_allclose(lib.to_numpy(found.mean), expected.mean, atol=1e-12)
    np.testing.assert_allclose(lib.to_numpy(found.objective), expected.objective, rtol=1e-12)


def test_on_the_stand_in_for_cupy():
    pytest.importorskip("ml_dtypes")
    from standin import cupy_standin

    shapes = alike(np.random.default_rng(21))
    w = np.arange(12.0)
    expected = generalized_procrustes(shapes, weights=w, scale=True)
    with cupy_standin.installed() as cupy:
        found = generalized_procrustes(cupy.asarray(shapes), weights=cupy.asarray(w), scale=True)
        assert isinstance(found.alignments.unique, cupy.ndarray)
        np.testing.assert_allclose(cupy.asnumpy(found.mean), expected.mean, atol=1e-12)
        with pytest.raises(TypeError, match="one library"):
            generalized_procrustes(cupy.asarray(shapes), weights=w)


# -- libraries that record and trace ----------------------------------------------------------


def test_derivatives_by_torch(torch):
    """Of the objective by the envelope theorem, of the rest by differences."""
    rng = np.random.default_rng(17)
    shapes = alike(rng, k=3, n=5, noise=0.3)
    w = rng.uniform(0.5, 1, size=5)
    x = torch.tensor(shapes, requires_grad=True)
    options = {"weights": torch.tensor(w), "rtol": 1e-12}
    found = generalized_procrustes(x, **options)
    (g,) = torch.autograd.grad(found.objective[-1], x, retain_graph=True)
    turned = np.asarray(found.alignments.rotation.detach())
    apart = (found.alignments(x) - found.mean).detach().numpy()
    expected = 2 * w[:, None] * apart @ np.swapaxes(turned, -1, -2)
    np.testing.assert_allclose(g.numpy(), expected, atol=1e-9)

    def value(x):
        return generalized_procrustes(x, scale=True, **options).mean

    direction = rng.normal(size=shapes.shape)
    y = rng.normal(size=(5, 3))
    (g,) = torch.autograd.grad((value(x) * torch.tensor(y)).sum(), x)
    h = 1e-5
    ends = [value(torch.tensor(shapes + t * direction)).numpy() for t in (h, -h)]
    np.testing.assert_allclose(
        np.sum(g.numpy() * direction), np.sum((ends[0] - ends[1]) * y) / (2 * h), rtol=1e-6
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
def test_transformations_of_torch(torch):
    rng = np.random.default_rng(18)
    shapes = torch.tensor(np.stack([alike(rng, k=3, n=5), alike(rng, k=3, n=5)]))
    plain = generalized_procrustes(shapes)
    weight = torch.tensor(rng.normal(size=(5, 3)))

    def value(x):
        return (generalized_procrustes(x).mean * weight).sum()

    mapped = torch.func.vmap(lambda x: generalized_procrustes(x).mean)(shapes)
    np.testing.assert_allclose(mapped.numpy(), plain.mean.numpy(), atol=1e-12)
    fixed = torch.func.vmap(lambda x: generalized_procrustes(x, rtol=0, max_iterations=3).mean)
    assert fixed(shapes).shape == (2, 5, 3)
    each = torch.func.vmap(torch.func.grad(value))(shapes)
    x = shapes.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(value(x[0]) + value(x[1]), x)
    np.testing.assert_allclose(each.numpy(), g.numpy(), atol=1e-9)
    e = torch.tensor(rng.normal(size=(3, 5, 3)))
    _, forward = torch.func.jvp(value, (shapes[0],), (e,))
    np.testing.assert_allclose(float(forward), float((g[0] * e).sum()), rtol=1e-8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_allclose(generalized_procrustes(shapes).mean, plain.mean, atol=1e-12)


def test_transformations_of_jax():
    lib = library("jax")
    import jax

    rng = np.random.default_rng(19)
    both = np.stack([alike(rng, k=3, n=5, noise=1e-4), alike(rng, k=3, n=5, noise=1e-4)])
    both[1, 0, 0, 0] = np.nan
    shapes = lib.asarray(both)
    options = {"scale": True, "rtol": 0, "max_iterations": 2}
    plain = generalized_procrustes(both[0], **options)

    def value(x):
        found = generalized_procrustes(x, **options)
        return found.objective[-1], found

    g, found = jax.jit(jax.vmap(jax.grad(value, has_aux=True)))(shapes)
    np.testing.assert_allclose(found.mean[0], plain.mean, atol=1e-12)
    np.testing.assert_allclose(found.alignments.scale[0], plain.alignments.scale, atol=1e-12)
    assert found.objective.shape == (2, 2)
    assert bool(np.all(np.isnan(found.mean[1])))
    assert not bool(found.converged[1])
    # The envelope theorem. The sum of the sizes is kept: at the best scales, what holds that back
    # is a multiple of the shapes themselves.
    apart = plain.alignments(both[0]) - plain.mean
    turns = np.swapaxes(plain.alignments.rotation, -1, -2)
    along = plain.alignments.scale[:, None, None] * 2 * apart @ turns
    centred = both[0] - both[0].mean(axis=-2, keepdims=True)
    rest = np.asarray(g[0]) - along
    factor = np.sum(rest * centred, axis=(-2, -1)) / np.sum(centred**2, axis=(-2, -1))
    assert np.linalg.norm(along) > 1e-5
    np.testing.assert_allclose(rest, factor[:, None, None] * centred, atol=1e-9)
    for transform, options in ((jax.jit, {}), (jax.vmap, {"rtol": 0, "callback": print})):
        with pytest.raises(TypeError, match="rtol=0"):
            transform(lambda x, options=options: generalized_procrustes(x, **options).mean)(shapes)
    assert len(jax.tree.leaves(found)) == 10
