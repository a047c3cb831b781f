"""JAX's transformations, settings and meshes: the results of NumPy, or a sentence."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
from conftest import library

import polarlib
from polarlib import ConvergenceWarning, norms, polar

jax = pytest.importorskip("jax")
RNG = np.random.default_rng(0)
TALL = RNG.standard_normal((6, 4))
SQUARE = RNG.standard_normal((3, 3))
DEFINITE = SQUARE @ SQUARE.T + np.eye(3)
RANK_2 = RNG.standard_normal((5, 2)) @ RNG.standard_normal((2, 5))
EXACT = ("svd", "qdwh", "zolotarev", "newton_schulz")
slow = pytest.mark.slow


def ill_conditioned(m, n, condition):
    u, _ = np.linalg.qr(RNG.standard_normal((m, n)))
    v, _ = np.linalg.qr(RNG.standard_normal((n, n)))
    return (u * np.geomspace(1, 1 / condition, n)) @ v


def asarray(a):
    return library("jax").xp.asarray(a)


def some_slow(values, fast):
    return [value if value in fast else pytest.param(value, marks=slow) for value in values]


# -- polar ---------------------------------------------------------------------------------------


MATRICES = {
    "tall": TALL,
    "wide": TALL.T,
    "ill-conditioned": ill_conditioned(8, 5, 1e10),
    "complex": TALL[:, :3] + 1j * TALL[:, 1:],
}


@pytest.mark.parametrize("matrix", some_slow(MATRICES, ("tall",)))
@pytest.mark.parametrize("method", some_slow((*EXACT, "auto"), ("qdwh",)))
def test_polar_under_jit(method, matrix):
    f = jax.jit(lambda a: polar(a, method=method))
    for a in (MATRICES[matrix],):
        r, wanted = f(asarray(a)), polar(a)
        u, h = (np.asarray(x) for x in r)
        n = min(a.shape)
        assert bool(r.converged) is True
        assert (r.status, r.reason, r.trace) == (None, None, ())
        assert int(r.rank) == n
        defect = (
            u.conj().T @ u - np.eye(a.shape[1]) if n == a.shape[1] else u @ u.conj().T - np.eye(n)
        )
        assert np.linalg.norm(defect) <= 1e-13
        assert np.linalg.norm(a - u @ h) <= 1e-13 * np.linalg.norm(a)
        assert np.linalg.eigvalsh(h)[0] >= -1e-13 * np.linalg.norm(a)
        np.testing.assert_allclose(h, wanted.hermitian, atol=1e-12)
        # The figures are those of these factors.
        assert float(r.backward_error) <= 1e-13
        assert float(r.orthogonality) == pytest.approx(np.linalg.norm(defect) / n**0.5, abs=2e-15)
        s = np.linalg.svd(a, compute_uv=False)
        low, high = map(float, r.condition_bounds)
        assert low <= s[0] / s[-1] * (1 + 1e-9)
        assert high >= s[0] / s[-1] * (1 - 1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_under_jit(dtype):
    a = asarray(SQUARE).astype(dtype)
    r, wanted = jax.jit(polar)(a), polar(a)
    assert r.unitary.dtype == r.hermitian.dtype == a.dtype
    unit = float(jax.numpy.finfo(a.dtype).eps)
    for found, known in zip(r, wanted, strict=True):
        found, known = np.asarray(found, float), np.asarray(known, float)
        np.testing.assert_allclose(found, known, rtol=unit, atol=unit)


@pytest.mark.parametrize("method", some_slow(("polar_express", "halley_fixed"), ()))
def test_fixed_schedules_under_jit(method):
    r = jax.jit(lambda a: polar(a, method=method))(asarray(TALL))
    wanted = polar(TALL, method=method)
    np.testing.assert_allclose(r.unitary, wanted.unitary, atol=1e-12)
    np.testing.assert_allclose(r.hermitian, wanted.hermitian, atol=1e-12)
    assert not bool(r.converged)
    assert float(r.orthogonality) == pytest.approx(float(wanted.orthogonality), rel=1e-6)
    with pytest.raises(ValueError, match="does not return the polar factor"):
        jax.jit(jax.grad(lambda a: polar(a, method=method).unitary.sum()))(asarray(TALL))


def test_one_matrix_of_a_stack_that_fails():
    stack = np.stack([SQUARE, np.full((3, 3), np.nan), np.zeros((3, 3))])
    r = jax.jit(lambda a: polar(a, method="newton_schulz"))(asarray(stack))
    assert np.asarray(r.converged).tolist() == [True, False, False]
    assert np.asarray(r.rank).tolist() == [3, 0, 0]
    assert np.isnan(r.unitary[1]).all()
    assert np.isnan(r.orthogonality[1])
    np.testing.assert_allclose(r.unitary[0], polar(SQUARE).unitary, atol=1e-13)
    np.testing.assert_array_equal(r.unitary[2], 0)


@pytest.mark.parametrize("method", some_slow(EXACT, ()))
def test_rank_deficient_matrices_under_jit(method):
    isometry = polar(RANK_2, completion=False)
    f = jax.jit(lambda a: polar(a, method=method, completion=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        r = f(asarray(RANK_2))
    np.testing.assert_allclose(r.unitary, isometry.unitary, atol=1e-12)
    np.testing.assert_allclose(r.hermitian, isometry.hermitian, atol=1e-12)
    assert int(r.rank) == 2
    assert np.isinf(r.condition_bounds[1])
    if method == "svd":
        assert bool(r.converged)
        whole = jax.jit(lambda a: polar(a, method=method))(asarray(RANK_2))
        assert bool(whole.converged)
        u = np.asarray(whole.unitary)
        assert np.linalg.norm(u.T @ u - np.eye(5)) < 1e-13


@slow
def test_derivatives_inside_of_jit():
    a, e = asarray(TALL), asarray(RNG.standard_normal(TALL.shape))
    jnp = jax.numpy
    w = [jnp.cos(jnp.arange(v.size)).reshape(v.shape) for v in polar(TALL)]

    def loss(a, method="qdwh"):
        return sum(jnp.sum(x * y) for x, y in zip(polar(a, method=method), w, strict=True))

    wanted = jax.grad(lambda a: loss(a, "svd"))(a)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(a), wanted, atol=1e-11)
    each = jax.jit(jax.vmap(jax.grad(loss)))(jnp.stack([2 * a, a]))
    np.testing.assert_allclose(each[1], wanted, atol=1e-11)
    _, moved = jax.jit(lambda a, e: jax.jvp(loss, (a,), (e,)))(a, e)
    np.testing.assert_allclose(moved, jnp.sum(wanted * e), rtol=1e-9)
    # A cond= that is known makes fewer steps of the same factor.
    r = jax.jit(lambda a: polar(a, method="qdwh", cond=100.0))(a)
    assert int(r.iterations) < 7
    np.testing.assert_allclose(r.unitary, polar(TALL).unitary, atol=1e-13)


def test_what_cannot_be_traced_is_refused():
    a = asarray(TALL)
    for method in ("newton", "hybrid", "minimax", "small", "structured", "halley"):
        with pytest.raises(
            TypeError, match=f"'{method}' reads entries of its matrix.*outside of jit.*qdwh"
        ):
            jax.jit(lambda a, m=method: tuple(polar(a, method=m)))(a)
    with pytest.raises(TypeError, match=r"reads entries of its matrix.*call it outside"):
        jax.jit(norms.f_fanion(2, 0.5))(a)
    with pytest.raises(TypeError, match="throw=True needs the entries"):
        jax.jit(lambda a: polar(a, throw=True))(a)
    with pytest.raises(TypeError, match="callback needs the entries"):
        jax.jit(lambda a: polar(a, callback=print))(a)
    with pytest.raises(ValueError, match="cond must be a number"):
        jax.jit(lambda a: polar(a, method="qdwh", cond=0.5))(a)


# -- results as pytrees ----------------------------------------------------------------------


def test_results_are_pytrees():
    polarlib.arrays.ops.ops_of(asarray(SQUARE))  # the first array of JAX that polarlib sees
    r = polar(SQUARE)
    leaves, tree = jax.tree.flatten(r)
    again = jax.tree.unflatten(tree, leaves)
    assert (again.status, again.method, again.reason) == (r.status, r.method, r.reason)
    assert again.unitary is r.unitary
    assert jax.block_until_ready(r).rank == 3
    doubled = jax.tree.map(lambda x: 2 * x, r)
    np.testing.assert_array_equal(doubled.hermitian, 2 * r.hermitian)
    np.testing.assert_array_equal(jax.jit(lambda r: r.unitary)(r), r.unitary)
    shown = jax.eval_shape(polar, jax.ShapeDtypeStruct((5, 3), "float32"))
    assert shown.hermitian.shape == (3, 3)
    assert shown.rank.dtype.kind == "i"
    assert "shape" in repr(shown)
    assert shown.to_dict()["shape"] == [5, 3]
    inside = []
    f = jax.jit(jax.vmap(lambda a: inside.append(repr(x := polar(a)) + x._repr_html_()) or x))
    stack = f(asarray(np.stack([SQUARE, DEFINITE])))
    assert "PolarResult" in inside[0]
    assert stack.rank.tolist() == [3, 3]
    assert stack.to_dict()["converged"] == [True, True]
    assert "converged: True" in repr(stack)
    empty = jax.jit(polar)(asarray(np.zeros((2, 0, 3))))
    assert empty.status is None
    assert empty.converged.tolist() == [True, True]


def test_polarlib_imports_no_jax():
    code = (
        "import polarlib, sys, numpy; polarlib.polar(numpy.eye(3)); assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- everything, under every setting ---------------------------------------------------------

CALLS = {
    "nearest_orthogonal": (polarlib.nearest_orthogonal, TALL),
    "procrustes": (lambda x: polarlib.procrustes(x, x[::-1]), TALL),
    "sqrtm_psd": (polarlib.sqrtm_psd, DEFINITE),
    "sqrtm": (polarlib.sqrtm, DEFINITE),
    "signm": (polarlib.signm, DEFINITE),
    "top_singular": (lambda x: polarlib.top_singular(x, 2)[1], TALL),
    "polar": (lambda x: polar(x).hermitian, TALL),
    "orthogonalize": (polarlib.orthogonalize, TALL),
    "nearest_rotation": (polarlib.nearest_rotation, SQUARE),
    "kabsch": (lambda x: polarlib.procrustes(x, x[::-1], rotation=True), TALL),
    "inverse_root": (lambda x: polarlib.inverse_root(x, 2), DEFINITE),
    "inverse_root, condition": (lambda x: polarlib.inverse_root(x, 2, condition=99), DEFINITE),
    "left": (lambda x: polar(x, "left", completion=False).hermitian, TALL),
    "qdwh": (lambda x: polar(x, method="qdwh").unitary, TALL),
    "newton_schulz": (lambda x: polar(x, method="newton_schulz").unitary, TALL),
    "zolotarev": (lambda x: polar(x, method="zolotarev").unitary, TALL),
    "halley": (lambda x: polarlib.orthogonalize(x, schedule="halley"), TALL),
    "all": (lambda x: polarlib.orthogonalize_all([x, x])[1], TALL),
    "jvp": (lambda x: polarlib.polar_jvp(x, x * x)[0], TALL),
    "clip": (lambda x: norms.spectral_clip(x, 1.0), TALL),
    "normalise": (lambda x: norms.normalise(x, "rows"), TALL),
    "row_balanced": (norms.row_balanced, TALL),
    "power": (lambda x: norms.spectral_power(x, 0.5), TALL),
    "spectral": (norms.spectral().lmo, TALL),
    "nuclear": (norms.nuclear().lmo, TALL),
    "ky_fan": (norms.ky_fan(2).dual_norm, TALL),
    "ky_fan_dual": (norms.ky_fan_dual(2, 2).sharp, TALL),
    "schatten": (norms.schatten(3).lmo, TALL),
    "f_fanion": (norms.f_fanion(2, 0.5).lmo, TALL),
}
FEW = tuple(CALLS)[:3:2]
LOOKING = {  # on concrete matrices alone
    "newton": (lambda x: polar(x, method="newton").unitary, TALL),
    "hybrid": (lambda x: polar(x, method="hybrid").unitary, TALL),
    "minimax": (lambda x: polar(x, method="minimax").unitary, TALL),
    "small": (lambda x: polar(x, method="small").unitary, SQUARE),
    "root of I": (polarlib.sqrtm_psd, np.eye(4)),
    "inverse root of I": (lambda x: polarlib.inverse_root(x, 4), np.eye(4)),
    "singular": (polarlib.sqrtm_psd, np.ones((3, 3))),
    "lanczos": (
        lambda x: polarlib.top_singular(x, 1, method="lanczos")[1],
        np.diag(np.arange(60.0)),
    ),
}
SETTINGS = {
    "plain": {},
    "debug": {"debug_nans": True, "debug_infs": True},
    "promotion": {"numpy_rank_promotion": "raise", "numpy_dtype_promotion": "strict"},
    "without jit": {"disable_jit": True},
    "matmul": {"default_matmul_precision": "bfloat16"},
}
HOW = {"eager": lambda f: f, "jit": jax.jit, "vmap": jax.vmap}


@contextlib.contextmanager
def setting(options):
    with contextlib.ExitStack() as stack:
        for name, value in options.items():
            stack.enter_context(getattr(jax, name)(value))
        yield


@pytest.mark.parametrize("call", some_slow(CALLS, FEW))
@pytest.mark.parametrize("how", some_slow(HOW, ("eager", "jit")))
@pytest.mark.parametrize("options", some_slow(SETTINGS, ("debug",)))
def test_settings(options, how, call):
    f, a = CALLS[call]
    x = asarray(np.stack([a, a]) if how == "vmap" else a)
    with setting(SETTINGS[options]):
        got = np.asarray(HOW[how](f)(x))
    np.testing.assert_allclose(got[-1] if how == "vmap" else got, f(a), atol=1e-9)


@pytest.mark.parametrize("call", some_slow(LOOKING, ("singular",)))
def test_trial_factorisations_are_no_error(call):
    f, a = LOOKING[call]
    with setting(SETTINGS["debug"]):
        got = f(asarray(a))
    np.testing.assert_allclose(got, f(a), atol=1e-9)


def test_nan_that_comes_out_is_found():
    x = asarray(np.full((3, 3), np.nan))
    with jax.debug_nans(True):
        for f in (norms.spectral().lmo, polarlib.orthogonalize):
            with pytest.raises(FloatingPointError):
                f(x)
    assert np.isnan(norms.spectral().lmo(x)).all()


@pytest.mark.parametrize("call", some_slow({**CALLS, **LOOKING}, FEW[:1]))
@pytest.mark.parametrize("how", ["eager", "jit"])
def test_without_64_bits(how, call):
    if how == "jit" and call in LOOKING:
        pytest.skip("reads entries of its matrix")
    f, a = {**CALLS, **LOOKING}[call]
    library("jax")
    with jax.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("error")
        x = jax.numpy.asarray(np.float32(a))
        got = HOW[how](f)(x)
    assert got.dtype == np.float32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        np.testing.assert_allclose(got, f(a), atol=2e-4)


@slow
@pytest.mark.parametrize("name", ["scan", "map", "checkpoint", "cond", "donate", "shard_map"])
def test_inside_of_other_transformations(name):
    jnp, f = jax.numpy, polarlib.orthogonalize
    a = asarray(TALL)
    stack = jnp.stack([a, 2 * a])
    mesh = jax.make_mesh((1,), ("i",))
    everywhere = jax.sharding.PartitionSpec()
    calls = {
        "scan": lambda: jax.lax.scan(lambda c, x: (c, f(x)), 0, stack)[1][0],
        "map": lambda: jax.lax.map(f, stack)[1],
        "checkpoint": lambda: jax.checkpoint(f)(a),
        "cond": lambda: jax.lax.cond(a[0, 0] > 9, lambda x: x, f, a),
        "donate": lambda: jax.jit(f, donate_argnums=0)(a + 0),
        "shard_map": lambda: jax.jit(
            jax.shard_map(f, mesh=mesh, in_specs=everywhere, out_specs=everywhere)
        )(a),
    }
    np.testing.assert_allclose(calls[name](), f(TALL), atol=1e-12)


# -- meshes ----------------------------------------------------------------------------------

ON_MESHES = """
    import contextlib, os, sys
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax, numpy as np, polarlib
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

    jax.config.update("jax_enable_x64", True)
    whole = sys.argv[1] == "whole"
    a = np.random.default_rng(0).standard_normal((64, 8))
    cases = [(a, P("r", None)), (a.T, P(None, "r"))]
    if whole:
        cases += [(a, P(None, "c")), (a, P("r", "c")), (a, P()), (a, P(("r", "c")))]
    calls = {
        "orthogonalize": polarlib.orthogonalize,
        "newton_schulz": lambda x: polarlib.polar(x, method="newton_schulz").unitary,
        "polar_express": lambda x: polarlib.polar(x, method="polar_express").unitary,
        "all": lambda x: polarlib.orthogonalize_all([x, x])[1],
        "adaptive": lambda x: polarlib.orthogonalize(x, schedule="adaptive"),
    }
    names = list(calls) if whole else ["orthogonalize"]
    for kind in (AxisType.Explicit, AxisType.Auto) if whole else (AxisType.Explicit,):
        mesh = jax.make_mesh((4, 2), ("r", "c"), axis_types=(kind, kind))
        for matrix, spec in cases:
            x = jax.device_put(matrix, NamedSharding(mesh, spec))
            for name in names:
                f, wanted = calls[name], calls[name](matrix)
                for compiled in (False, True):
                    for inside in (False, True):
                        if inside and (not whole or spec != P("r", None)):
                            continue
                        with jax.set_mesh(mesh) if inside else contextlib.nullcontext():
                            q = (jax.jit(f) if compiled else f)(x)
                        np.testing.assert_allclose(q, wanted, atol=1e-11)
                        known = kind == AxisType.Explicit or not compiled
                        if known and name != "all":
                            assert q.sharding.is_equivalent_to(x.sharding, 2), (spec, q.sharding)
        x = jax.device_put(a, NamedSharding(mesh, P("r", None)))
        r = polarlib.polar(x)
        assert (r.method, r.status.name) == ("gram", "CONVERGED")
        assert r.unitary.sharding.is_equivalent_to(x.sharding, 2)
        np.testing.assert_allclose(r.unitary, polarlib.polar(a).unitary, atol=1e-11)
        if kind == AxisType.Explicit:
            try:
                jax.jit(polarlib.polar)(x)
            except ValueError as error:
                assert "several devices" in str(error), error
            else:
                raise AssertionError("not refused")
        if whole:
            with jax.set_mesh(mesh):
                g = jax.jit(jax.grad(lambda x: (polarlib.orthogonalize(x) ** 3).sum()))(x)
            assert g.sharding.is_equivalent_to(x.sharding, 2)
    print("done")
"""


@slow
@pytest.mark.parametrize("extent", ["part", "whole"])
def test_meshes(extent):
    code = textwrap.dedent(ON_MESHES)
    done = subprocess.run(
        [sys.executable, "-c", code, extent], capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("done\n"), done.stderr
