"""Programs given to JAX, which multiplies float32 in less unless the program requires more.

By default products of float32 are taken in tf32 on GPUs and in one pass of bfloat16 on TPUs.
Programs lowered for both show the precision of every product, and what else they call, without a
device.
"""

import functools
import re

import numpy as np
import pytest

import polarlib
from polarlib.arrays.formats import format_of
from polarlib.arrays.ops import ops_of
from polarlib.arrays.rounded import round_to, rounded
from polarlib.decomposition import unitary_factor

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402
from device.on_jax import arrays_of, lowered  # noqa: E402

PLATFORMS = ("cuda", "tpu")
# Targets of custom calls that a platform has.
KNOWN = {
    "cuda": re.compile(r"(cusolver|cublas|cusparse|cu)_\w+"),
    "tpu": re.compile("Eigh|Qr|LuDecomposition|ProductOfElementaryHouseholderReflectors"),
}


def products(f, platform, *arrays):
    """Operand type and precision of every product in the program of a function."""
    return lowered(f, platform, *arrays).products


def array(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype)


def total(f):
    return lambda x: jnp.sum(jnp.real(f(x)))


TALL = array((96, 32), "float32")
COMPLEX = array((24, 16), "complex64")
STACK = array((5, 12, 8), "float32")
SQUARE = array((24, 24), "float32")


def orthogonalize(**kwargs):
    return lambda x: polarlib.orthogonalize(x, **kwargs)


CASES = {
    "plain": (orthogonalize(form="plain"), TALL),
    "gram": (orthogonalize(form="gram"), TALL),
    "stack": (orthogonalize(), STACK),
    "complex": (orthogonalize(), COMPLEX),
    "spectral": (orthogonalize(normalisation="spectral", schedule="jordan"), TALL),
    "rational": (orthogonalize(schedule="halley"), TALL),
    "simulated": (orthogonalize(precision="float8_e4m3"), TALL),
    "Gram matrices of bfloat16": (
        orthogonalize(precision="float32", gram_precision="bfloat16", form="gram"),
        TALL,
    ),
    "gradient": (jax.grad(total(orthogonalize(form="plain"))), TALL),
    "gradient, gram": (jax.grad(total(orthogonalize(form="gram"))), TALL),
    "forward": (lambda x: jax.jvp(orthogonalize(), (x,), (x,))[1], TALL),
    "batched": (jax.vmap(orthogonalize()), STACK),
    "maximiser of a norm": (lambda x: polarlib.norms.spectral().lmo(x), TALL),
    **{
        f"polar by {method}": (functools.partial(polarlib.polar, method=method), TALL)
        for method in ("auto", "svd", "qdwh", "newton_schulz")
    },
    "unitary factor, complex": (unitary_factor, COMPLEX),
    "rotations": (polarlib.nearest_rotation, array((6, 3, 3), "float32")),
    "root": (polarlib.sqrtm_psd, SQUARE),
    "inverse root": (lambda x: polarlib.inverse_root(x, 2), SQUARE),
    "gradient of orthogonalize": (lambda x: polarlib.orthogonalize_vjp(x, x), TALL),
    "gradient of polar": (lambda x: polarlib.polar_vjp(x, x), TALL),
}
# What multiplies nothing by itself.
CALLS = CASES | {"triplets": (lambda x: polarlib.top_singular(x, 2), TALL)}


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", CASES)
def test_no_product_of_float32_is_left_to_the_default(name, platform):
    f, shape = CASES[name]
    found = products(arrays_of(f), platform, shape)
    assert found
    for operand, precision in found:
        if operand in ("f32", "complex<f32>"):
            assert set(precision) == {"HIGHEST"}, (operand, precision)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", CALLS)
def test_programs_call_what_their_platform_has(name, platform):
    f, shape = CALLS[name]
    program = lowered(arrays_of(f), platform, shape)
    assert program.callbacks == 0
    assert not [call for call in program.custom_calls if not KNOWN[platform].fullmatch(call)]


def test_calls_of_the_host_and_of_other_platforms_are_seen():
    called = lowered(lambda x: jax.pure_callback(np.asarray, TALL, x), "cpu", TALL)
    assert called.callbacks == 1
    foreign = lowered(jnp.linalg.cholesky, "cpu", SQUARE).custom_calls
    assert foreign
    assert not [call for call in foreign if KNOWN["cuda"].fullmatch(call)]


def test_the_default_of_jax_is_no_request():
    with jax.default_matmul_precision("tensorfloat32"):
        found = products(orthogonalize(), "cuda", TALL)
        also = products(lambda x: x.T @ x, "cuda", TALL)
    assert {p for _, p in found} == {("HIGHEST", "HIGHEST")}
    assert {p for _, p in also} != {("HIGHEST", "HIGHEST")}


def test_sixteen_bits_are_multiplied_as_they_are():
    found = products(orthogonalize(), "cuda", array((96, 32), "bfloat16"))
    assert {operand for operand, _ in found} == {"bf16"}


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu", "cpu"])
@pytest.mark.parametrize("name", ["plain", "gram", "gradient", "batched"])
def test_tf32_is_multiplied_natively_where_it_can_be(platform, name):
    tf32 = orthogonalize(precision="tf32", form="gram" if name == "gram" else "plain")
    f = {"gradient": jax.value_and_grad(total(tf32)), "batched": jax.vmap(tf32)}.get(name, tf32)
    x = STACK if name == "batched" else TALL
    text = jax.jit(f).trace(x).lower(lowering_platforms=(platform,)).as_text()
    lines = [line for line in text.splitlines() if "dot_general" in line]
    native = [line for line in lines if "lhs_precision_type = tf32" in line]
    full = [line for line in lines if "precision = [HIGHEST, HIGHEST]" in line]
    assert len(native) + len(full) == len(lines)
    # Derivatives are in full precision, and so is a power iteration for the norm.
    assert len(native) >= 12 if platform in ("cuda", "rocm") else not native


def test_operands_of_tf32_are_rounded_first():
    """As on the CPU, so that truncation in tensor cores changes nothing."""
    x = np.random.default_rng(0).standard_normal((24, 16)).astype("float32")
    ops = rounded(ops_of(jnp.asarray(x)), "tf32")
    assert ops.simulated  # this is a CPU
    y = round_to(x, format_of("tf32"), ops_of(x)).astype(float)
    np.testing.assert_allclose(ops.gram(jnp.asarray(x)), y.T @ y, rtol=0, atol=1e-5)
    complex_ops = rounded(ops_of(jnp.asarray(x)), "tf32", is_complex=True)
    z = (x + 1j * x[::-1]).astype("complex64")
    wide = round_to(z, format_of("tf32"), ops_of(z)).astype(complex)
    np.testing.assert_allclose(
        complex_ops.gram(jnp.asarray(z)), wide.conj().T @ wide, rtol=0, atol=2e-5
    )


def test_products_of_polar_are_full_where_the_default_is_less(monkeypatch):
    """Devices with the default precision, emulated by rounding operands to tf32."""
    real = jax.lax.dot_general

    def reduced(a, b, *args, precision=None, **kwargs):
        full = "highest" in str(precision).lower()
        if a.dtype == jnp.float32 and not full:
            a, b = (jax.lax.reduce_precision(x, 8, 10) for x in (a, b))
        return real(a, b, *args, precision=precision, **kwargs)

    from jax._src.numpy import tensor_contractions

    monkeypatch.setattr(tensor_contractions.lax, "dot_general", reduced)
    monkeypatch.setattr(jax.lax, "dot_general", reduced)
    a = np.random.default_rng(0).standard_normal((37, 29)).astype("float32")
    jax.clear_caches()
    try:
        x = jnp.asarray(a)
        assert float(jnp.abs(x.T @ x - a.T.astype(float) @ a.astype(float)).max()) > 1e-3
        result = polarlib.polar(x, method="newton_schulz")
        u = np.asarray(unitary_factor(x), float)
    finally:
        jax.clear_caches()
    assert result.status is polarlib.Status.CONVERGED
    left, _, right = np.linalg.svd(a.astype(float), full_matrices=False)
    assert np.abs(np.asarray(result.unitary) - left @ right).max() < 1e-5
    assert np.abs(u - left @ right).max() < 1e-5
