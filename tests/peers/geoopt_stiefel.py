"""The tests of geoopt's Stiefel manifolds, and of its optimizers on them, on our functions.

geoopt has no polar retraction: that of its Euclidean metric is by QR, that of its canonical one a
Cayley transform. Ours replaces the former, which its tests accept; its projection onto the
manifold is the polar factor, and that of its Euclidean metric onto the tangent space is ours.
"""

from __future__ import annotations

from typing import Any

import frame

import polarlib
from polarlib import manifold

NAME = "geoopt"
REPOSITORY = "https://github.com/geoopt/geoopt"
COMMIT = "07598cdbf8751770c4dcd78d509cd678a67ce85b"
PACKAGE = "geoopt"
REQUIRES = ("torch",)
TESTS = (
    "tests/test_manifold_basic.py",
    "tests/test_adam.py",
    "tests/test_origin.py",
    "tests/test_random.py",
    "tests/test_rlinesearch.py",
    "tests/test_rsgd.py",
)
OPTIONS = ("-k", "stiefel")
NOT_RUN: dict[str, str] = {}

Array = Any


def plain(x: Array) -> Array:
    """A tensor of torch's own class."""
    import torch

    return x.as_subclass(torch.Tensor)


def projx(self: Any, x: Array) -> Array:
    """The nearest point of the manifold."""
    return polarlib.nearest_orthogonal(plain(x))


def proju(self: Any, x: Array, u: Array) -> Array:
    """The projection onto the tangent space."""
    return manifold.tangent(plain(x), plain(u))


def retr(self: Any, x: Array, u: Array) -> Array:
    """The polar retraction."""
    return manifold.retract(plain(x), plain(u))


def install() -> None:
    """Replace the methods of the classes."""
    frame.replace("geoopt.manifolds.stiefel.Stiefel.projx", projx)
    frame.replace("geoopt.manifolds.stiefel.EuclideanStiefel.proju", proju)
    frame.replace("geoopt.manifolds.stiefel.EuclideanStiefel.retr", retr)
