"""Calls of other libraries against the replacements that docs/guide/coming_from.md lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import polarlib

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "coming_from.md"
RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((2, 50, 3))


def listed(*calls: str) -> None:
    """The page lists the calls that a test makes."""
    if PAGE.is_file():
        text = PAGE.read_text(encoding="utf-8")
        assert [call for call in calls if call not in text] == []


def test_roma():
    roma, torch = pytest.importorskip("roma"), pytest.importorskip("torch")
    listed("`roma.procrustes(M)`", "`roma.rigid_points_registration(x, y, compute_scaling=True)`")
    stack = torch.from_numpy(RNG.standard_normal((5, 3, 3)))
    assert (roma.procrustes(stack) - polarlib.nearest_orthogonal(stack)).abs().max() < 1e-12
    assert (roma.special_procrustes(stack) - polarlib.nearest_rotation(stack)).abs().max() < 1e-12
    x, y = torch.from_numpy(RNG.standard_normal((2, 5, 10, 3)))
    turn, move, scale = roma.rigid_points_registration(x, y, compute_scaling=True)
    pose = polarlib.align(x, y, scale=True)
    assert (pose.rotation.mT - turn).abs().max() < 1e-12
    assert (pose.translation - move).abs().max() < 1e-12
    assert (pose.scale - scale).abs().max() < 1e-12


def test_theochem():
    procrustes = pytest.importorskip("procrustes")
    listed("`procrustes.orthogonal(a, b).t`", "`.rotational(a, b).t`")
    assert np.allclose(procrustes.orthogonal(A, B).t, polarlib.procrustes(A, B))
    assert np.allclose(procrustes.rotational(A, B).t, polarlib.procrustes(A, B, rotation=True))


def test_trimesh():
    trimesh = pytest.importorskip("trimesh")
    listed("`trimesh.registration.procrustes(a, b, reflection=False, scale=False)`")
    matrix, *_ = trimesh.registration.procrustes(A, B, reflection=False, scale=False)
    pose = polarlib.align(A, B)
    assert np.allclose(matrix[:3, :3], pose.rotation.T)
    assert np.allclose(matrix[:3, 3], pose.translation)


def test_pymanopt():
    pymanopt = pytest.importorskip("pymanopt")
    listed('`Stiefel(m, n, retraction="polar")`')
    x, z = polarlib.testing.orthonormal(20, 4), RNG.standard_normal((20, 4))
    stiefel = pymanopt.manifolds.Stiefel(20, 4, retraction="polar")
    tangent = stiefel.projection(x, z)
    assert np.allclose(polarlib.manifold.tangent(x, z), tangent)
    assert np.allclose(polarlib.manifold.retract(x, tangent), stiefel.retraction(x, tangent))


def test_optax():
    muon, jax = pytest.importorskip("optax.contrib._muon"), pytest.importorskip("jax")
    listed("`orthogonalize_via_newton_schulz(g, coefficients, 5)`")
    x = jax.numpy.asarray(A, dtype="float32")
    coefficients = jax.numpy.array([3.4445, -4.775, 2.0315])
    theirs = muon.orthogonalize_via_newton_schulz(x, coefficients, 5)
    assert abs(polarlib.orthogonalize(x, schedule="jordan", steps=5) - theirs).max() < 1e-5
