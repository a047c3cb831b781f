"""SciPy's own tests of its Procrustes functions, run on polarlib's."""

from __future__ import annotations

from typing import Any

import frame
import numpy as np
import scipy.linalg

import polarlib

NAME = "SciPy procrustes"
REPOSITORY = "https://github.com/scipy/scipy"
COMMIT = None
PACKAGE = "scipy"
SINCE = "1.17"
TESTS = (
    "scipy.linalg.tests.test_procrustes",
    "scipy.spatial.tests.test__procrustes",
    "scipy.spatial.transform.tests.test_rotation",
)
# The tests take their array library from a fixture; of those of rotations, the functions of ours.
OPTIONS = ("-p", "scipy.conftest", "-k", "procrustes or Procrustes or align_vectors")
NOT_RUN: dict[str, str] = {}

Array = Any


def orthogonal_procrustes(A: Array, B: Array, check_finite: bool = True) -> tuple[Array, Array]:
    """SciPy's: also the sum of the singular values, of two matrices of one shape."""
    a, b = np.asarray(A), np.asarray(B)
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"two matrices of one shape are needed, got {a.shape} and {b.shape}")
    r = polarlib.procrustes(a, b)
    return r, np.sum((a @ r).conj() * b).real


def procrustes(data1: Array, data2: Array) -> tuple[Array, Array, float]:
    """Both clouds centred and of norm 1, the second one aligned to the first."""
    clouds = []
    for data in (np.array(data1, dtype=float), np.array(data2, dtype=float)):
        if data.ndim != 2 or data.size == 0:
            raise ValueError("two matrices are needed")
        data -= data.mean(axis=0)
        norm = np.linalg.norm(data)
        if norm == 0:
            raise ValueError("all points are the same")
        clouds.append(data / norm)
    one, two = clouds
    found = polarlib.align(two, one, scale=True, translation=False, reflection=True)
    return one, found(two), float(found.rmsd) ** 2 * len(one)


def align_vectors(
    a: Array, b: Array, weights: Array | None = None, return_sensitivity: bool = False
) -> Any:
    """The rotation that takes the vectors b to a, and the root of its weighted residual."""
    from scipy.spatial.transform import Rotation

    a, b, weights = _vectors(a, b, weights, return_sensitivity)
    first = np.flatnonzero(np.isinf(weights)) if len(a) > 1 else np.array([0])
    if len(first):
        matrix = _around(a, b, weights, int(first[0]))
        weights = np.where(np.isinf(weights), 0, weights)
    else:
        found = polarlib.align(b, a, weights=weights, translation=False)
        matrix = np.asarray(found.rotation).T
    moved = b @ matrix.T
    rssd = np.sqrt(np.sum(weights * np.sum((a - moved) ** 2, axis=1)))
    rotation = Rotation.from_matrix(matrix)
    if not return_sensitivity:
        return rotation, rssd
    # F. L. Markley, J. Astronautical Sciences 36 (1988) 245-258: the covariance of the error vector
    # for observations that are equally good, by the determinant of its inverse.
    m = (weights[:, None] * a).T @ moved
    kappa = (np.trace(m) ** 2 - np.sum(m * m)) / 2
    zeta = _zeta(np.linalg.svd((weights[:, None] * a).T @ b))
    return rotation, rssd, weights.mean() / zeta * (kappa * np.eye(3) + m @ m.T)


def _zeta(svd: Any) -> float:
    u, s, vh = svd
    d = s * [1, 1, np.sign(np.linalg.det(u @ vh))]
    return (d[0] + d[1]) * (d[1] + d[2]) * (d[2] + d[0])


def _vectors(a: Array, b: Array, weights: Array | None, sensitivity: bool) -> tuple[Array, ...]:
    """The checks, with SciPy's messages."""
    a, b = np.asarray(a), np.asarray(b)
    for name, vectors in (("a", a), ("b", b)):
        if vectors.shape[-1:] != (3,):
            shape = vectors.shape
            raise ValueError(f"Expected input `{name}` to have shape (3,) or (N, 3), got {shape}")
    if max(a.ndim, b.ndim) > 2:
        raise ValueError("Expected inputs `a` and `b` to have shape (3,) or (N, 3)")
    if a.shape != b.shape:
        raise ValueError("Expected inputs `a` and `b` to have same shapes")
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    weights = np.ones(len(b)) if weights is None else np.asarray(weights, dtype=float)
    if weights.ndim != 1:
        raise ValueError("Expected `weights` to be 1 dimensional")
    if len(weights) != len(b):
        raise ValueError("Expected `weights` to have number of values equal to number of vectors")
    if np.any(weights < 0):
        raise ValueError("`weights` may not contain negative values")
    if np.sum(np.isinf(weights)) > 1:
        raise ValueError("Only one infinite weight is allowed")
    infinite = len(b) == 1 or bool(np.any(np.isinf(weights)))
    if infinite and not (np.linalg.norm(a, axis=1).all() and np.linalg.norm(b, axis=1).all()):
        raise ValueError("Cannot align zero length primary vectors")
    if infinite and sensitivity:
        raise ValueError("Cannot return sensitivity matrix with an infinite weight or one vector")
    return a, b, weights


def _around(a: Array, b: Array, weights: Array, first: int) -> Array:
    """The rotation that takes b[first] to a[first]: what is left is a rotation of a plane."""
    frames = []
    for vector in (a[first], b[first]):
        q = np.linalg.qr(vector[:, None], mode="complete").Q
        q[:, 0] = vector / np.linalg.norm(vector)
        q[:, 2] *= np.linalg.det(q)
        frames.append(q)
    of_a, of_b = frames
    others = np.arange(len(a)) != first
    flat_a, flat_b = (a[others] @ of_a)[:, 1:], (b[others] @ of_b)[:, 1:]
    product = (weights[others, None] * flat_a).T @ flat_b
    if np.linalg.norm(product) <= 1e-12 * np.linalg.norm(a) * np.linalg.norm(b):
        product = (of_a.T @ of_b)[1:, 1:]  # nothing asks for another turn: the nearest one to none
    turn = np.eye(3)
    turn[1:, 1:] = polarlib.nearest_rotation(product)
    return of_a @ turn @ of_b.T


def install() -> None:
    """Replace the three functions, also in SciPy's table of what they can do."""
    from scipy._lib._array_api import xp_capabilities_table as table
    from scipy.spatial.transform import Rotation

    old = frame.replace("scipy.linalg.orthogonal_procrustes", orthogonal_procrustes)
    table[scipy.linalg.orthogonal_procrustes] = table[old]
    frame.replace("scipy.spatial.procrustes", procrustes)
    old = Rotation.align_vectors
    frame.replace("scipy.spatial.transform.Rotation.align_vectors", align_vectors)
    table[Rotation.align_vectors] = table[old]
