"""optax's own tests of optax.contrib.muon, on polarlib.orthogonalize: an adapter of frame.py."""

from __future__ import annotations

from typing import Any

import frame

import polarlib

NAME = "optax muon"
REPOSITORY = "https://github.com/google-deepmind/optax"
COMMIT = None
PACKAGE = "optax"
REQUIRES = ("optax", "jax")
TESTS = ("optax.contrib._muon_test",)
LONG = True  # JAX compiles for every shape
NOTE = "Coefficients are arrays in the state; other preconditioners than Frobenius read them."
NOT_RUN: dict[str, str] = {}


def install() -> None:
    """Replace optax's function, which reshapes to a stack of matrices and back."""
    import jax.numpy as jnp
    import numpy as np
    from optax.contrib import _muon

    kinds = {"schatten": "schatten4"}

    def orthogonalize(
        x: Any,
        ns_coeffs: Any,
        ns_steps: int = 5,
        preconditioning: str = "frobenius",
        eps: float = 1e-8,
        dimension_numbers: Any = None,
    ) -> Any:
        if x.ndim != 2 and dimension_numbers is None:  # refused there
            return theirs(x, ns_coeffs, ns_steps, preconditioning, eps, dimension_numbers)
        c = jnp.atleast_2d(ns_coeffs)
        c = jnp.tile(c, (ns_steps, 1)) if len(c) == 1 else c
        c = c.astype(jnp.promote_types("float32", c.dtype))
        how = {"schedule": c}  # perhaps traced: from the optimizer's state
        if preconditioning != "frobenius":
            how["schedule"] = polarlib.Schedule(
                steps=np.asarray(c, float).tolist(),
                normalisation=kinds.get(preconditioning, preconditioning),
            )
        numbers = dimension_numbers or _muon.MuonDimensionNumbers(0, 1)
        there, back = _muon._compute_muon_reshape(x, numbers)
        return back(polarlib.orthogonalize(there(x), **how))

    theirs = frame.replace("optax.contrib._muon.orthogonalize_via_newton_schulz", orthogonalize)
