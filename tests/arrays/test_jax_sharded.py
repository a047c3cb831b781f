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


def run(code: str, *arguments: str) -> None:
    """Run a program on eight simulated devices; fail if it does, or if it does not end."""
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(START + code), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
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
    for kind in "Auto", "Explicit":
        mesh = mesh_of(kind)
        for matrix, e in (tall, other), (tall.T, other.T):
            wide = matrix is not tall
            for spec in every if whole else [P("c", "r")] if wide else [P("r"), P(None, "r")]:
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

                short, long = (spec + (None,) * (2 - len(spec)))[:: 1 if wide else -1][:2]
                sums = 1 if layout.laid[layout.longer] else 0
                for f, count in ((plain, 5), (gram, 2)):
                    want = {"sums": count}
                    if layout.received and kind == "Explicit":
                        want["all-to-all"] = 2
                    elif layout.received:
                        want = {"sums": count if long else 0, "all-gather": 1}
                    found = collectives(f, x, 8)
                    assert found == {k: n for k, n in want.items() if n}, (kind, spec, found)
                calls = [plain, factor, gradient(plain, y), gradient(factor, y)]
                wanted = [plain, factor, gradient(plain, e), gradient(factor, e)]
                if whole:
                    calls, wanted = [*calls, gram, schedule], [*wanted, gram, schedule]
                for i, (f, g) in enumerate(zip(calls, wanted)):
                    want = g(jnp.asarray(matrix))
                    # The default run compiles one of the calls per layout.
                    for h in (f, jax.jit(f)) if whole or i == 2 else (f,):
                        q = h(x)
                        shaped(q, x, (kind, spec, i))
                        close(q, want, (kind, spec, i), tol=1e-10)
    print("done")
"""


@pytest.mark.parametrize("extent", ["part", pytest.param("whole", marks=pytest.mark.slow)])
def test_placements_values_collectives_and_gradients(extent):
    run(LAYOUTS, extent)
