"""orthogonalize_all(mesh=): the assignment of matrices to devices, and eight devices of JAX."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from polarlib import orthogonalize_all
from polarlib._schedules.products import product_counts
from polarlib.orthogonalization import owners
from polarlib.orthogonalization.coefficients import How
from polarlib.orthogonalization.options import Options

# Seconds after which the program below has hung.
PATIENCE = 280


# -- assignment ------------------------------------------------------------------------------------


def loads(costs, who, count):
    return [sum(c for c, w in zip(costs, who, strict=True) if w == k) for k in range(count)]


def test_loads_are_within_grahams_bound():
    """4/3 - 1/(3 N) of the optimum, which is found among all assignments."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for count, tasks in (2, 1), (2, 5), (2, 7), (3, 4), (3, 7), (4, 6):
        for _ in range(12):
            costs = rng.integers(1, 12, tasks).tolist()
            found = max(loads(costs, owners.assigned(costs, count), count))
            every = itertools.product(range(count), repeat=tasks)
            best = min(max(loads(costs, who, count)) for who in every)
            assert found <= (4 / 3 - 1 / (3 * count)) * best + 1e-12, costs
            worst = max(worst, found / best)
    assert worst > 1.05  # the bound is of some use


def test_the_bound_is_attained():
    """Graham's example for two owners: 7/6."""
    costs = [3, 3, 2, 2, 2]
    assert max(loads(costs, owners.assigned(costs, 2), 2)) == 7


def test_ties_go_by_position():
    assert owners.assigned([2, 2, 2, 2, 2], 3) == [0, 1, 2, 0, 1]
    assert owners.assigned([1, 2, 1, 2], 2) == [0, 0, 1, 1]
    assert owners.assigned([], 3) == []
    assert owners.assigned([0, 0], 4) == [0, 0]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_pieces_are_a_partition(count):
    shapes = ((5, 4, 3), (6, 4), (0, 2, 2), (1, 3, 3), (12, 2, 3, 3))
    costs = (500, 40, 0, 27, 2400)
    cut = owners.pieces(shapes, costs, tuple(len(s) > 2 for s in shapes), count)
    for i, shape in enumerate(shapes):
        ranges = [(p.low, p.high) for p in cut if p.array == i]
        assert ranges[0][0] == 0
        assert ranges[-1][1] == shape[0]
        assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
        assert len(ranges) == (max(1, min(count, shape[0])) if len(shape) > 2 else 1)
        lengths = [high - low for low, high in ranges]
        assert max(lengths) - min(lengths) <= 1
    whole = owners.pieces(shapes, costs, (False,) * len(shapes), count)
    assert [p.array for p in whole] == list(range(len(shapes)))


def test_rounds_have_pieces_of_one_kind_per_owner(monkeypatch):
    monkeypatch.setattr(owners, "TOGETHER", 20)
    cut = tuple(owners.Piece(i, 0, 1, i % 2) for i in range(9))
    kinds, sizes = tuple("aabbaaaaa"), (8, 8, 8, 8, 8, 30, 8, 8, 8)
    found = owners.rounds(cut, kinds, sizes, 2)
    assert sorted(p for r in found for p in r) == sorted(cut)
    for r in found:
        for owner in 0, 1:
            own = [p for p in r if p.owner == owner]
            assert len({kinds[p.array] for p in own}) <= 1
            assert len(own) == 1 or sum(sizes[p.array] for p in own) <= 20
    assert owners.rounds((), (), (), 3) == ()


@pytest.mark.parametrize("form", ["plain", "gram"])
def test_operations_are_those_of_the_products(form):
    """2 m n^2 for a product with an m x n matrix, 2 n^3 among n x n matrices."""
    how = Options(schedule="jordan", form=form, restarts=(2,) if form == "gram" else "auto")
    large, small = product_counts([(1.0,) * 3] * 5, form=form, restarts=(2,))
    want = 2 * (large * 64 * 16**2 + small * 16**3)
    assert owners.operations((64, 16), "float32", how) == want
    assert owners.operations((16, 64), "float32", how) == want
    assert owners.operations((3, 2, 16, 64), "float32", how) == 6 * want
    heads = Options(schedule="jordan", form=form, restarts=how.restarts, heads=4)
    assert owners.operations((256, 16), "float32", heads) == 4 * want
    assert owners.operations((0, 3), "float32", how) == 0


def test_operations_of_coefficients_and_rational_steps():
    assert owners.operations((64, 16), "float32", How(), (5, 3)) == owners.operations(
        (64, 16), "float32", Options(schedule="jordan", form="plain")
    )
    assert owners.operations((64, 16), "float32", Options(schedule="halley")) > 0


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mesh", [3, "devices", (2, 2), [0, 1], object(), True])
def test_other_objects_are_no_mesh(mesh):
    with pytest.raises(TypeError, match=r"mesh must be a jax\.sharding\.Mesh or torch"):
        orthogonalize_all([np.eye(3)], mesh=mesh)


def test_one_device_of_jax():
    jax = pytest.importorskip("jax")
    mesh = jax.make_mesh((1,), ("i",))
    assert orthogonalize_all([], mesh=mesh) == []
    for wrong in np.eye(3), [[1.0, 2.0]]:
        with pytest.raises(TypeError, match=r"mesh is a Mesh of jax, but gradients\[1\] is a ndar"):
            orthogonalize_all([jax.numpy.eye(3), wrong], mesh=mesh)
    with pytest.raises(ValueError, match="mesh must have devices"):
        orthogonalize_all([], mesh=jax.sharding.Mesh(np.empty((), dtype=object), ()))
    with pytest.raises(TypeError, match="mesh must be"):
        orthogonalize_all([], mesh=mesh.abstract_mesh)
    x = jax.numpy.eye(3)
    with pytest.raises(TypeError, match="takes a list of arrays"):
        orthogonalize_all(x, mesh=mesh)
    with pytest.raises(TypeError, match="no argument out"):
        orthogonalize_all([x], mesh=mesh, out=x)
    with pytest.raises(TypeError, match="no argument best"):
        orthogonalize_all([x], mesh=mesh, best=1)
    with pytest.raises(ValueError, match=r"gradients\[1\]: heads must divide"):
        orthogonalize_all([x, x[:2]], mesh=mesh, heads=3)
    with pytest.raises(ValueError, match=r"gradients\[0\]: schedule, an array .* \(0, 3\)"):
        orthogonalize_all([x], mesh=mesh, schedule=x[:0])


# -- eight devices of JAX --------------------------------------------------------------------------

HOW = {"schedule": "jordan", "steps": 2}


def on_eight_devices(extent):
    """Run in a process of its own: JAX reads its number of devices once."""
    import collections
    import re

    import jax
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    jax.config.update("jax_enable_x64", True)
    jnp, whole = jax.numpy, extent == "whole"
    rng = np.random.default_rng(0)
    shapes = [(16, 8), (8, 16), (16, 8), (8, 4, 4), (16, 8)]
    specs = [P("a", None), P(None, "a"), P("b", "a"), P(("a", "b"), None, None), P()]
    if whole:
        shapes += [(33, 8), (0, 3), (6, 8, 4), (8, 8)]
        specs += [P(None, "b"), P(), P(None, "a", "b"), P("a")]
    values = [rng.standard_normal(shape) for shape in shapes]
    wanted = orthogonalize_all([jnp.asarray(a) for a in values], **HOW)

    def check(found, like=None, atol=1e-12):
        assert len(found) == len(wanted)
        for q, want, x in zip(found, wanted, like or found, strict=True):
            np.testing.assert_allclose(q, want, atol=atol)
            assert q.sharding.is_equivalent_to(x.sharding, q.ndim), (q.sharding, x.sharding)

    def collectives(f, *xs):
        text = f.lower(*xs).compile().as_text()
        names = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
        return re.findall(rf" ({names})(?:-start)?\(", text)

    def loss(xs, mesh=None):
        return sum((q**3).sum() for q in orthogonalize_all(xs, mesh=mesh, **HOW))

    gradients = jax.jit(jax.grad(loss))([jnp.asarray(a) for a in values])
    for kind in AxisType.Auto, AxisType.Explicit:
        mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
        single = [jnp.asarray(a) for a in values]
        copies = [jax.device_put(a, NamedSharding(mesh, P())) for a in values]
        parts = [
            jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(values, specs, strict=True)
        ]
        run = jax.jit(lambda xs, mesh=mesh: orthogonalize_all(xs, mesh=mesh, **HOW))
        check(run(parts), parts)
        if not whole:
            found = collections.Counter(collectives(run, parts))
            if kind == AxisType.Explicit:
                # To the owners and back; along "b" for two arrays that are sharded along "a" alone;
                # the result for the replicated array. The stack is computed in place.
                assert found == {"all-to-all": 2, "all-gather": 2, "all-reduce": 1}
            else:  # of each axis that is sharded, the stack's included, and of the results
                gathers = sum(axes is not None for spec in specs for axes in spec)
                assert found == {"all-gather": gathers + 1}
        slope = jax.jit(jax.grad(lambda xs, mesh=mesh: loss(xs, mesh)))(copies)
        for g, want in zip(slope, gradients, strict=True):
            np.testing.assert_allclose(g, want, atol=1e-10)
        if kind == AxisType.Explicit and not whole:
            continue
        first = orthogonalize_all(parts, mesh=mesh, **HOW)
        check(first, parts)
        check(
            orthogonalize_all(
                [jax.device_put(x, jax.devices()[5]) for x in single], mesh=mesh, **HOW
            )
        )
        if not whole:
            continue
        check(orthogonalize_all(single, mesh=mesh, **HOW), single)
        check(orthogonalize_all(copies, mesh=mesh, **HOW), copies)
        check(run(copies), copies)
        found = collectives(run, copies)  # one per round, in which a device has one kind
        assert set(found) <= {"all-gather", "all-reduce"}
        assert len(found) < len(shapes)
        for q, again in zip(first, orthogonalize_all(parts, mesh=mesh, **HOW), strict=True):
            assert np.array_equal(q, again)
        with jax.set_mesh(mesh):
            check(run(parts), parts)
            slope = jax.grad(lambda xs, mesh=mesh: loss(xs, mesh))(parts)
            for g, want, x in zip(slope, gradients, parts, strict=True):
                np.testing.assert_allclose(g, want, atol=1e-10)
                assert g.sharding.is_equivalent_to(x.sharding, g.ndim)
        many(jax, mesh)
    if whole:
        other_calls(jax, values, check)
    sys.stdout.write("done\n")


def many(jax, mesh):
    """Any number of matrices, of several dtypes; coefficients that are traced too."""
    a = np.random.default_rng(1).standard_normal((17, 6, 4))
    c = jax.numpy.asarray([[1.8, -1.2, 0.4], [1.7, -0.9, 0.2]])
    equal = jax.jit(lambda xs: orthogonalize_all(xs, mesh=mesh, **HOW))
    text = equal.lower([jax.numpy.asarray(x) for x in a[:16]]).compile().as_text()
    assert text.count(" dot(") == 3 * HOW["steps"]  # one branch for all devices
    text = equal.lower([jax.numpy.asarray(a[0])]).compile().as_text()
    assert "f64[24]{0} all-reduce(" in text  # not a row of zeros from each other device
    assert "all-gather(" not in text
    for count in 0, 1, 7, 17:
        xs = [jax.numpy.asarray(x, "f4" if i % 3 else "f8") for i, x in enumerate(a[:count])]
        wanted = orthogonalize_all(xs, schedule=c)
        run = lambda xs, c: orthogonalize_all(xs, schedule=c, mesh=mesh)  # noqa: E731
        for f in run, jax.jit(run):
            for q, want in zip(f(xs, c), wanted, strict=True):
                assert q.dtype == want.dtype
                np.testing.assert_allclose(q, want, atol=1e-5 if q.dtype == "f4" else 1e-12)

    def loss(c, mesh):
        return sum((q**3).sum() for q in orthogonalize_all(xs, schedule=c, mesh=mesh))

    slopes = [jax.jit(jax.grad(lambda c, m=m: loss(c, m)))(c) for m in (mesh, None)]
    np.testing.assert_allclose(*slopes, rtol=1e-4)


def other_calls(jax, values, check):
    """Kernels, vmap, two lists in one program, errors."""
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
    kernels = [np.random.default_rng(2).standard_normal((6, 2, 3, k)) for k in (1, 2, 2)]
    kernels = [jax.device_put(k, NamedSharding(mesh, P())) for k in kernels]
    wanted = orthogonalize_all(kernels, convolution=True, **HOW)
    for q, want in zip(
        orthogonalize_all(kernels, convolution=True, mesh=mesh, **HOW), wanted, strict=True
    ):
        np.testing.assert_allclose(q, want, atol=1e-12)
    x, y = (jax.numpy.asarray(values[i]) for i in (0, 2))
    pairs = jax.vmap(lambda t: orthogonalize_all([t, 2 * t], mesh=mesh, **HOW)[1])(
        jax.numpy.stack([x, y])
    )
    np.testing.assert_allclose(pairs[1], orthogonalize_all([2 * y], **HOW)[0], atol=1e-12)
    rows, columns = (
        jax.device_put(v, NamedSharding(mesh, s)) for v, s in ((x, P("i")), (y, P(None, "i")))
    )
    two = jax.jit(lambda x, y: [orthogonalize_all([t], mesh=mesh, **HOW)[0] for t in (x, y)])
    for q, t in zip(two(rows, columns), (rows, columns), strict=True):
        assert q.sharding.is_equivalent_to(t.sharding, 2)
    explicit = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Explicit,))
    other = jax.make_mesh((2, 4), ("i", "j"), axis_types=(AxisType.Explicit,) * 2)
    z = jax.device_put(x, NamedSharding(explicit, P("i")))
    with pytest.raises(
        ValueError, match=r"gradients\[0\] is sharded along explicit axes of a mesh"
    ):
        orthogonalize_all([z], mesh=other, **HOW)
    bad = orthogonalize_all([x, x * np.nan], mesh=mesh, **HOW)
    assert np.isfinite(bad[0]).all()
    assert np.isnan(bad[1]).all()


def run_on_eight_devices(extent):
    pytest.importorskip("jax")
    root = str(Path(__file__).parents[2])
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "NPROC": "32",  # as tests/arrays/test_jax_sharded.py
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, __file__, extent],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE if extent == "part" else 4 * PATIENCE,
    )
    assert done.stdout.endswith("done\n"), done.stderr


def test_eight_devices():
    run_on_eight_devices("part")


@pytest.mark.slow
def test_eight_devices_in_every_layout():
    run_on_eight_devices("whole")


if __name__ == "__main__":
    on_eight_devices(sys.argv[1])
