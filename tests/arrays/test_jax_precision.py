"""JAX multiplies float32 in less unless it is told not to: the programs that it is given.

By default products of float32 are taken in tf32 on GPUs and in one pass of bfloat16 on TPUs.
Programs lowered for both show the precision of every product, without a device.
"""

import re

import numpy as np
import pytest

import polarlib
from polarlib.decomposition import unitary_factor

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

PLATFORMS = ("cuda", "tpu")


def products(f, platform, *arrays):
    """Operand type and precision of every product in the program of a function."""
    text = jax.jit(f).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
    found = []
    for line in text.splitlines():
        if "dot_general" not in line:
            continue
        operand = re.findall(r"tensor<(?:\d+x)*([a-z]\w*(?:<\w+>)?)>", line)[0]
        precision = re.search(r"precision = \[(\w+), (\w+)\]", line)
        found.append((operand, precision.groups() if precision else ("DEFAULT",)))
    return found


def array(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype)


def total(f):
    return lambda x: jnp.sum(jnp.real(f(x)))


TALL = array((96, 32), "float32")
COMPLEX = array((24, 16), "complex64")
STACK = array((5, 12, 8), "float32")


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
}


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", CASES)
def test_no_product_of_float32_is_left_to_the_default(name, platform):
    f, shape = CASES[name]
    found = products(f, platform, shape)
    assert found
    for operand, precision in found:
        if operand in ("f32", "complex<f32>"):
            assert set(precision) == {"HIGHEST"}, (operand, precision)


def test_the_default_of_jax_is_no_request():
    with jax.default_matmul_precision("tensorfloat32"):
        found = products(orthogonalize(), "cuda", TALL)
        also = products(lambda x: x.T @ x, "cuda", TALL)
    assert {p for _, p in found} == {("HIGHEST", "HIGHEST")}
    assert {p for _, p in also} != {("HIGHEST", "HIGHEST")}


def test_sixteen_bits_are_multiplied_as_they_are():
    found = products(orthogonalize(), "cuda", array((96, 32), "bfloat16"))
    assert {operand for operand, _ in found} == {"bf16"}


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
