"""The tests of pymanopt's Stiefel manifold and of its groups, on our tangents and retractions.

Both of its Stiefel retractions are ours, since its tests ask of either what holds of both: that
the result is orthonormal and agrees with X + V to first order. Its group has tangents in the Lie
algebra, ``V = X W``.
"""

from __future__ import annotations

from typing import Any

import frame

from polarlib import manifold

NAME = "pymanopt"
REPOSITORY = "https://github.com/pymanopt/pymanopt"
COMMIT = "a1f52e74092535cd416ba3ec68252eb74ed53178"
PACKAGE = "pymanopt"
# Of the tests alone: the package is the installed one, since a copy lacks the file of its version.
PATHS = (".",)
REQUIRES = ("autograd", "pymanopt")
TESTS = ("tests/manifolds/test_stiefel.py", "tests/manifolds/test_group.py")
NOT_RUN: dict[str, str] = {}

Array = Any


def projection(self: Any, point: Array, vector: Array) -> Array:
    """The projection onto the tangent space."""
    return manifold.tangent(point, vector)


def retraction(self: Any, point: Array, tangent_vector: Array) -> Array:
    """The polar retraction."""
    return manifold.retract(point, tangent_vector)


def group_retraction(self: Any, point: Array, tangent_vector: Array) -> Array:
    """The same from a tangent of the Lie algebra."""
    return manifold.retract(point, point @ tangent_vector)


def install() -> None:
    """Replace the methods of the classes."""
    frame.replace("pymanopt.manifolds.Stiefel.projection", projection)
    for name in ("_retraction_polar", "_retraction_qr"):
        frame.replace(f"pymanopt.manifolds.Stiefel.{name}", retraction)
    frame.replace("pymanopt.manifolds.group._UnitaryBase._retraction_polar", group_retraction)
