"""JAX arrays sharded over eight simulated devices: placements, values, collectives, gradients."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest

from polarlib.arrays.jax_sharded import layout_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="jax is not installed"
)

START = """
    import collections, re, warnings
    import jax, numpy as np, polarlib
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    tall, other = rng.standard_normal((2, 64, 8))
    NAMES = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"

    def mesh_of(kind):
        return jax.make_mesh((4, 2), ("r", "c"), axis_types=(getattr(AxisType, kind),) * 2)

    def put(a, mesh, *spec):
        return jax.device_put(a, NamedSharding(mesh, P(*spec)))

    def shaped(q, x, label):
        assert q.sharding.is_equivalent_to(x.sharding, x.ndim), (label, q.sharding, x.sharding)

    def close(q, want, label=None, tol=1e-11):
        np.testing.assert_allclose(q, want, rtol=0, atol=tol, err_msg=str(label))

    def collectives(f, x, n):
        # Collectives of arrays, and sums of n x n. Those of single numbers are not counted.
        text = jax.jit(f).lower(x).compile().as_text()
        found = re.findall(rf"= (.*?) ({NAMES})(?:-start)?\\(", text)
        counts = collections.Counter()
        for shapes, name in found:
            size = max(np.prod([int(d) for d in s.split(",") if d] or [1])
                       for s in re.findall(r"\\[([\\d,]*)\\]", shapes))
            if size > 1:
                square = name == "all-reduce" and size == n * n
                counts["sums" if square else name] += 1
        return dict(counts)

    def messages(f, x):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            f(x)
        return [str(w.message) for w in caught]
"""


# NPROC: threads of XLA's pool, by default one for each device. Programs of JAX alone hang with that
# on a loaded processor: seven threads wait in a sum for the eighth, while the next program starts.
SETTINGS = {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "NPROC": "32"}


def run(code: str, *arguments: str) -> None:
    """Run a program on eight simulated devices; fail if it does, or if it does not end."""
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(START + code), *arguments],
        env={**os.environ, **SETTINGS, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("done\n"), done.stdout


@pytest.mark.parametrize(
    ("shape", "spec", "blocks", "laid"),
    [
        ((64, 8), ("r", None), 1, (("r",), ())),
        ((64, 8), (None, "r"), 1, (("r",), ())),
        ((8, 64), ("c", "r"), 1, ((), ("r", "c"))),
        ((64, 8), (("c", "r"),), 1, (("c", "r"), ())),
        ((10, 8), ("c", "r"), 1, (("c",), ())),  # 4 does not divide 5
        ((2, 64, 8), ("c", None, "r"), 1, (("c",), ("r",), ())),
        ((16, 32), (None, "r"), 8, (("r",), ())),  # every device has two whole blocks
        ((16, 32), ("r", None), 2, ((), ("r",))),  # blocks of 8 x 32 are wide
        ((64, 8), (None, "r"), 2, (("r",), ())),
    ],
)
def test_layouts(shape, spec, blocks, laid):
    assert layout_of(shape, spec, {"r": 4, "c": 2}, blocks).laid == laid


LAYOUTS = """
    import sys
    from polarlib.arrays.jax_sharded import layout_of

    def factor(x):
        return polarlib.polar(x, method="newton_schulz").unitary

    def schedule(x):
        return polarlib.polar(x, method="polar_express").unitary

    def plain(x):
        return polarlib.orthogonalize(x, form="plain")

    def gram(x):
        return polarlib.orthogonalize(x, form="gram", restarts=(2,))

    def gradient(f, e):
        return lambda x: jax.vjp(f, x)[1](e)[0]

    whole = sys.argv[1] == "whole"
    every = [P("r"), P(None, "r"), P("r", "c"), P("c", "r"), P(("r", "c")), P(None, ("r", "c"))]
    kinds = "Auto", "Explicit"
    cases = [(kind, wide, spec) for kind in kinds for wide in (0, 1) for spec in every]
    if not whole:
        cases = [("Auto", 0, P("r")), ("Auto", 0, P(None, "r")), ("Explicit", 1, P("c", "r"))]
    for kind, wide, spec in cases:
        mesh = mesh_of(kind)
        matrix, e = (tall.T, other.T) if wide else (tall, other)
        x, y = (put(a, mesh, *spec) for a in (matrix, e))
        layout = layout_of(x.shape, spec, mesh.shape)

        # The number in the warning: entries of the new shard that are not in the old one.
        def entries(place):
            maps = NamedSharding(mesh, place).devices_indices_map(x.shape)
            ids = np.arange(x.size).reshape(x.shape)
            return {d: set(ids[at].ravel()) for d, at in maps.items()}

        old, new = entries(spec), entries(P(*layout.laid))
        received = {len(new[d] - old[d]) for d in new}
        assert received == {round(layout.received * x.size)}, (spec, received)
        told = messages(plain, x)
        assert len(told) == (1 if layout.received else 0), told
        text = f"gathers {layout.received * x.size * 8 / 1e6:.2g} MB per device"
        assert all(text in t and str(spec) in t for t in told), told

        for f, sums in ((plain, 5), (gram, 2)) if whole else ((gram, 2),):
            want = {"sums": sums}
            if layout.received and kind == "Explicit":
                want["all-to-all"] = 2
            elif layout.received:
                # Where only the shorter side is sharded, every device has all after the gather.
                want = {"all-gather": 1, **(want if layout.given[layout.longer] else {})}
            found = collectives(f, x, 8)
            assert found == want, (kind, spec, found)

        def slope(a):
            return polarlib.orthogonalize_vjp(a, e, form="plain")

        eager = [plain, gram, schedule, factor, gradient(plain, y), gradient(factor, y)]
        local = [plain, gram, schedule, factor, slope, lambda a: polarlib.polar_vjp(a, e)]
        for i, (f, g) in enumerate(zip(eager, local)):
            if not whole and i not in (0, 4) and (kind == "Auto" or i != 3):
                continue
            want = g(matrix)
            for h in (f, jax.jit(f)) if whole else (jax.jit(f) if i == 4 else f,):
                q = h(x)
                shaped(q, x, (kind, spec, i))
                close(q, want, (kind, spec, i), tol=1e-10)
    print("done")
"""


@pytest.mark.parametrize("extent", ["part", pytest.param("whole", marks=pytest.mark.slow)])
def test_placements_values_collectives_and_gradients(extent):
    run(LAYOUTS, extent)


AUTOMATIC = """
    import sys
    kind, brief = sys.argv[1], sys.argv[1:] == ["Explicit"]
    mesh = mesh_of(kind)
    x, e = (put(a, mesh, "r") for a in (tall, other))

    def unitary(y):
        return polarlib.polar(y).unitary

    def gradient(f):
        return lambda y, e: jax.vjp(f, y)[1](e)[0]

    # Outside of jit the derivative is that of the method "gram", for both kinds of axes.
    for f in (unitary,) if brief else (unitary, polarlib.nearest_orthogonal):
        g = gradient(f)(x, e)
        shaped(g, x, f)
        close(g, polarlib.polar_vjp(tall, other))
    if kind == "Explicit":
        # No matrix is gathered: the Gram matrices are summed in one loop.
        assert collectives(unitary, x, 8) == {"sums": 1}
        r = jax.jit(polarlib.polar)(x)
        assert (r.method, int(r.iterations), bool(r.converged)) == ("gram", 2, True)
        shaped(r.unitary, x, "jit")
        close(r.unitary, polarlib.polar(tall).unitary)
    if not brief:
        close(jax.jvp(unitary, (x,), (e,))[1], polarlib.polar_jvp(tall, other)[0])
    if kind == "Auto":
        # Of others, those that factorise a sharded matrix gather it, and warn.
        (told,) = messages(polarlib.norms.spectral().lmo, x)
        assert f"gathers {x.nbytes * 3 / 4 / 1e6:.2g} MB per device" in told, told
        assert "svd" in told and "(64, 8)" in told and "P('r',)" in told, told
        assert not messages(polarlib.norms.spectral().lmo, put(tall, mesh))
        assert not messages(lambda y: polarlib.norms.normalise(y, "rows"), x)
    if kind == "Auto" or brief:
        print("done")
        sys.exit()

    g = jax.jit(gradient(unitary))(x, e)
    shaped(g, x, "jit")
    close(g, polarlib.polar_vjp(tall, other))
    graded = np.geomspace(1, 1e-12, 8) * tall
    half = jnp.asarray(tall, "bfloat16")
    zeros = np.concatenate([tall[:, :7], 0 * tall[:, :1]], axis=1)
    compiled = jax.jit(polarlib.polar, static_argnames="completion")
    for a, rank, steps, completion in (tall, 8, 2, True), (graded, 8, 3, True), (
        zeros, 7, 4, False
    ), (0 * tall, 0, 8, False):
        r = compiled(put(a, mesh, "r"), completion=completion)
        shaped(r.unitary, x, rank)
        assert (r.method, int(r.rank), bool(r.converged)) == ("gram", rank, True), (a, r)
        assert int(r.iterations) <= 8 if rank < 8 else int(r.iterations) == steps
        u, h = np.asarray(r.unitary), np.asarray(r.hermitian)
        close(u @ h, a)
        close(u.T @ u if completion else u @ (u.T @ u), np.eye(8) if completion else u)
    assert collectives(lambda y: compiled(y, completion=False).unitary, x, 8) == {"sums": 2}
    for y in x, put(half, mesh, "r"):
        found = collectives(lambda y: gradient(unitary)(y, y), y, 8)
        assert set(found) == {"sums"}, found
    stack = rng.standard_normal((8, 16, 6))
    want = polarlib.polar(stack).unitary
    for spec in ("r",), ("c", "r"):
        for f in unitary, jax.vmap(unitary), jax.jit(jax.vmap(unitary)):
            u = f(put(stack, mesh, *spec))
            shaped(u, put(stack, mesh, *spec), spec)
            close(u, want)
    print("done")
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("Explicit",),
        pytest.param(("Explicit", "whole"), marks=pytest.mark.slow),
        pytest.param(("Auto", "whole"), marks=pytest.mark.slow),
    ],
)
def test_the_automatic_choice_is_differentiated_and_compiled(arguments):
    run(AUTOMATIC, *arguments)


OTHERS = """
    import sys

    def both(f, x, want, label=None, tol=1e-11, like=True):
        for g in f, jax.jit(f):
            q = g(x)
            close(q, want, label, tol)
            if like:
                shaped(q, x, label)

    kind = sys.argv[1]
    ortho, mesh = polarlib.orthogonalize, mesh_of(kind)
    stack = rng.standard_normal((8, 16, 6))
    for spec in ("r",), ("r", "c"), (("r", "c"),), ("r", None, "c"):
        both(ortho, put(stack, mesh, *spec), ortho(stack), spec)
    assert collectives(ortho, put(stack, mesh, ("r", "c")), 6) == {}
    for f, spec in (jax.vmap(ortho), (None, "r", "c")), (
        lambda s: jax.lax.scan(lambda c, x: (c, ortho(x)), 0, s)[1], (None, "r", "c")
    ):
        both(f, put(stack, mesh, *spec), ortho(stack), spec)
    complexes = tall + 1j * other
    both(ortho, put(complexes, mesh, "c", "r"), ortho(complexes))
    half = put(jnp.asarray(tall, "bfloat16"), mesh, "c", "r")
    both(lambda x: ortho(x).astype("float32"), half, ortho(np.float32(tall)), tol=0.03)
    for shape, spec in ((4, 2), ("r", "c")), ((10, 8), ("c", "r")), ((16, 16), ("r", "c")), (
        (2, 2), ("c",)
    ):
        a = rng.standard_normal(shape)
        both(ortho, put(a, mesh, *spec), ortho(a), (shape, spec), tol=1e-9)
    for heads, a, spec, alone in (4, tall, ("r",), True), (2, tall, (("r", "c"),), False), (
        8, tall, (None, "r"), False
    ), (2, tall.reshape(16, 32), ("r",), False), (
        8, rng.standard_normal((64, 16)), (("r", "c"),), True
    ):
        x, f = put(a, mesh, *spec), lambda x: ortho(x, heads=heads)
        both(f, x, f(a), (heads, spec))
        assert not alone or collectives(f, x, 8) == {}
    x = put(tall, mesh, "c", "r")
    both(lambda x: ortho(x, schedule="adaptive"), x, ortho(tall, schedule="adaptive"))
    both(lambda x: polarlib.orthogonalize_all([x, 2 * x])[1], x, ortho(2 * tall))
    lmo = polarlib.norms.spectral(polar=ortho).lmo
    both(lmo, x, lmo(tall))
    triples = np.asarray([[3.4445, -4.775, 2.0315]] * 3)
    both(lambda x: ortho(x, schedule=jnp.asarray(triples)), x, ortho(tall, schedule=triples))

    # Both factors; the larger Hermitian factor is sharded by rows.
    for side, place in ("right", ()), ("left", (("c", "r"),)):
        want = polarlib.polar(tall, side=side, method="newton_schulz")
        f = lambda x: polarlib.polar(x, side=side, method="newton_schulz")
        for g in f, jax.jit(f):
            r = g(x)
            shaped(r.unitary, x, side)
            close(r.unitary, want.unitary)
            close(r.hermitian, want.hermitian)
            if g is f or kind == "Explicit":
                place = NamedSharding(mesh, P(*place)) if isinstance(place, tuple) else place
                assert r.hermitian.sharding.is_equivalent_to(place, 2), r.hermitian.sharding
        assert (f(x).rank, f(x).status) == (want.rank, want.status)
    square = put(rng.standard_normal((16, 16)), mesh, "r", "c")
    assert polarlib.polar(square, method="newton_schulz").hermitian.sharding.is_fully_replicated

    # The automatic choice: Gram matrices, whatever the condition number and the rank.
    graded = np.geomspace(1, 1e-12, 8) * tall
    r = polarlib.polar(put(graded, mesh, "c", "r"))
    assert (r.method, r.iterations, r.status.name) == ("gram", 3, "CONVERGED")
    shaped(r.unitary, x, "auto")
    assert r.hermitian.sharding.is_fully_replicated
    u, h = np.asarray(r.unitary), np.asarray(r.hermitian)
    close(u.T @ u, np.eye(8))
    close(u @ h, graded)
    part = np.concatenate([tall[:, :7], 0 * tall[:, :1]], axis=1)
    r = polarlib.polar(put(part, mesh, "c", "r"), completion=False)
    assert (r.rank, r.status.name) == (7, "CONVERGED")
    close(r.unitary, polarlib.polar(part, completion=False).unitary)

    # What would gather, and what is on one device.
    for bad in dict(method="svd"), dict(method="newton_schulz", completion=False):
        for f in (lambda x: polarlib.polar(x, **bad).unitary), (
            lambda x: jax.vjp(lambda y: polarlib.polar(y, **bad).unitary, x)[0]
        ):
            try:
                f(x)
            except ValueError as error:
                assert "several devices" in str(error) and "newton_schulz" in str(error)
            else:
                raise AssertionError(bad)
    assert polarlib.polar(jax.device_put(tall)).converged
    manual = jax.shard_map(ortho, mesh=mesh, in_specs=P("c"), out_specs=P("c"))
    halves = [ortho(tall[:32]), ortho(tall[32:])]
    close(jax.jit(manual)(put(tall, mesh, "c")), np.concatenate(halves))
    both(ortho, put(tall, mesh), ortho(tall), "replicated")
    def factors(y):
        r = polarlib.polar(y, method="newton_schulz")
        return r.unitary, r.hermitian

    weight = rng.standard_normal((8, 8))
    for f in factors, jax.jit(factors):
        (u, h), pull = jax.vjp(f, x)
        g = pull((jax.device_put(other, u.sharding), jax.device_put(weight, h.sharding)))[0]
        shaped(g, x, "both factors")
        close(g, polarlib.polar_vjp(tall, other, weight))
    with jax.set_mesh(mesh):
        both(ortho, x, ortho(tall), "set_mesh")
        g = jax.grad(lambda x: (ortho(x) ** 3).sum())(x)
        shaped(g, x, "set_mesh")
        close(g, polarlib.orthogonalize_vjp(tall, 3 * ortho(tall) ** 2))
    print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_stacks_heads_lists_factors_and_refusals(kind):
    run(OTHERS, kind)


KINDS = """
    import sys
    whole = sys.argv[1] == "whole"

    def unitary(x):
        return polarlib.polar(x).unitary

    def gradient(f):
        return lambda x, e: jax.vjp(f, x)[1](e)[0]

    # Axes of both kinds: jit hides the sharding along the automatic ones.
    types = AxisType.Auto, AxisType.Explicit
    for kinds in (types, types[::-1]) if whole else (types,):
        mesh = jax.make_mesh((4, 2), ("r", "c"), axis_types=kinds)
        local = polarlib.orthogonalize, unitary
        for f in *local, lambda x: polarlib.orthogonalize_all([x, 2 * x], mesh=mesh)[0]:
            want = (f if f in local else polarlib.orthogonalize)(tall)
            pull = polarlib.polar_vjp if f is unitary else polarlib.orthogonalize_vjp
            every = P("r"), P(None, "c"), P("r", "c"), P("c", "r")
            for spec in every if whole else every[2:3]:
                x, e = put(tall, mesh, *spec), put(other, mesh, *spec)
                with jax.set_mesh(mesh):
                    for g in (f, jax.jit(f)) if whole else (jax.jit(f),):
                        shaped(g(x), x, (kinds, spec))
                        close(g(x), want)
                    slope = gradient(f)
                    for g in (slope, jax.jit(slope)) if whole else (jax.jit(slope),):
                        shaped(g(x, e), x, (kinds, spec, "gradient"))
                        close(g(x, e), pull(tall, other), tol=1e-10)

    # Where axes are made explicit within jit, the sharding is known.
    mesh = mesh_of("Auto")
    x = put(tall, mesh, "r")
    known = lambda f: jax.sharding.explicit_axes(f, axes=("r", "c"), in_sharding=P("r"))
    with jax.set_mesh(mesh):
        assert collectives(known(unitary), x, 8) == {"sums": 1}
        shaped(jax.jit(known(unitary))(x), x, "explicit_axes")
        f = known(lambda x: polarlib.orthogonalize_all([x, 2 * x], mesh=mesh)[0])
        found = collectives(f, x, 8)
        assert found == {"all-to-all": 2, "all-gather": 1}, found  # along "c" alone
        close(jax.jit(f)(x), polarlib.orthogonalize(tall))
    print("done")
"""


@pytest.mark.parametrize("extent", ["part", pytest.param("whole", marks=pytest.mark.slow)])
def test_axes_of_both_kinds_and_axes_made_explicit(extent):
    run(KINDS, extent)
