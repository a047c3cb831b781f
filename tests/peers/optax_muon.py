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
NOTE = "Coefficients are arrays in the state, which a schedule of ours reads where it can."
NOT_RUN: dict[str, str] = {}


def install() -> None:
    """Replace optax's function, which reshapes to a stack of matrices and back."""
    import jax
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
        if x.ndim != 2 and dimension_numbers is None:
            return theirs(x, ns_coeffs, ns_steps, preconditioning, eps, dimension_numbers)
        numbers = dimension_numbers or _muon.MuonDimensionNumbers(0, 1)
        steps = np.atleast_2d(np.asarray(ns_coeffs, float))
        steps = np.tile(steps, (ns_steps, 1)) if len(steps) == 1 else steps
        schedule = polarlib.Schedule(
            steps=steps.tolist(), normalisation=kinds.get(preconditioning, preconditioning)
        )
        there, back = _muon._compute_muon_reshape(x, numbers)
        return back(polarlib.orthogonalize(there(x), schedule=schedule))

    theirs = frame.replace("optax.contrib._muon.orthogonalize_via_newton_schulz", orthogonalize)
    assert jax
