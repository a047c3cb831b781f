"""JAX with its stricter rules of promotion: the same results."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import library

import polarlib
from polarlib import derivatives, norms


@pytest.fixture
def strict():
    """JAX's module and an array function, under the strictest rules."""
    lib = library("jax")
    import jax

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield jax, lib.asarray


CALLS = {
    "polar": lambda x: tuple(polarlib.polar(x)),
    "left": lambda x: tuple(polarlib.polar(x, "left", completion=False)),
    "hybrid": lambda x: tuple(polarlib.polar(x, method="hybrid")),
    "newton": lambda x: tuple(polarlib.polar(x, method="newton")),
    "halley": lambda x: tuple(polarlib.polar(x, method="halley")),
    "small": lambda x: tuple(polarlib.polar(x, method="small")),
    "polar_express": lambda x: tuple(polarlib.polar(x, method="polar_express")),
    "orthogonalize": polarlib.orthogonalize,
    "halley schedule": lambda x: polarlib.orthogonalize(x, schedule="halley"),
    "procrustes": lambda x: polarlib.procrustes(x, x * x),
    "inverse_root": lambda x: polarlib.inverse_root(x @ x.conj().T, 2),
    "top_singular": lambda x: polarlib.top_singular(x, 2)[1],
    "lmo": norms.schatten(3).lmo,
    "norm": norms.ky_fan_dual(2, 2),
    "clip": lambda x: norms.spectral_clip(x, 1.0),
    "derivative": lambda x: derivatives.polar_jvp(x, x * x),
}


@pytest.mark.parametrize("call", CALLS)
def test_strict_promotion(strict, call):
    _, asarray = strict
    rng = np.random.default_rng(0)
    a = (rng.standard_normal((4, 4)) + 1j * rng.standard_normal((4, 4))).astype("complex64")
    found, expected = CALLS[call](asarray(a)), CALLS[call](a)
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    for x, y in pairs:
        np.testing.assert_allclose(np.asarray(x), y, atol=1e-3, rtol=1e-3)


def test_strict_gradients(strict):
    jax, asarray = strict
    xp = jax.numpy
    rng = np.random.default_rng(0)
    a = asarray(rng.standard_normal((4, 4)) + 1j * rng.standard_normal((4, 4)))

    def f(x):
        return xp.sum(xp.abs(polarlib.polar(x).unitary) ** 4)

    strictly = jax.grad(f)(a)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(np.asarray(strictly), np.asarray(jax.grad(f)(a)), atol=1e-12)
    assert jax.config.jax_numpy_dtype_promotion == "strict"
