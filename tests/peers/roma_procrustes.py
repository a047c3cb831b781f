"""RoMa's own tests, with its Procrustes and registration functions replaced by ours.

RoMa's matrices act on columns, ours on rows: their rotation is the transpose of ours, and their
``M`` is the transpose of our product of points.
"""

from __future__ import annotations

import functools
from typing import Any

import frame

import polarlib

NAME = "roma"
REPOSITORY = "https://github.com/naver/roma"
COMMIT = "8ce9ed98f6bd3a137be144a4588dbc0e350cff52"
PACKAGE = "roma"
REQUIRES = ("torch",)
TESTS = (
    "test/test_mappings.py",
    "test/test_procrustes_derivatives.py",
    "test/test_transforms.py",
    "test/test_utils.py",
)
OPTIONS = ("--import-mode=importlib",)
LONG = True
NOT_RUN: dict[str, str] = {}

Array = Any


def procrustes(
    M: Array,
    force_rotation: bool = False,
    regularization: float = 0.0,
    gradient_eps: float = 1e-5,
    return_singular_values: bool = False,
) -> Any:
    """Nearest orthogonal matrix or rotation: the unit vectors, aligned to the rows of M.

    `gradient_eps` bounds 1 / d in RoMa's rule, as our `regularization` does relative to sigma_1.
    RoMa's `regularization` adds the gradient of ``|M - R|^2 / 2`` to backward derivatives alone.
    """
    import torch

    eye = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    found = polarlib.align(
        eye, M, translation=False, reflection=not force_rotation, regularization=gradient_eps
    )
    r, s = found.rotation, found.singular_values
    if regularization:
        r = _pulled(M, r, regularization)
    if not return_singular_values:
        return r
    if force_rotation:
        sign = torch.where(torch.linalg.det(M.detach()) < 0, -1.0, 1.0).to(s.dtype)
        s = torch.cat([s[..., :-1], s[..., -1:] * sign[..., None]], dim=-1)
    return r, s


def special_procrustes(
    M: Array,
    regularization: float = 0.0,
    gradient_eps: float = 1e-5,
    return_singular_values: bool = False,
) -> Any:
    """Nearest rotation."""
    return procrustes(M, True, regularization, gradient_eps, return_singular_values)


def _pulled(M: Array, R: Array, weight: float) -> Array:
    import torch

    class Pull(torch.autograd.Function):
        """R, with ``weight * (M - R)`` added to the gradient of M."""

        generate_vmap_rule = True

        @staticmethod
        def forward(m: Array, r: Array) -> Array:
            return r.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, gradient: Array) -> Any:
            m, r = ctx.saved_tensors
            return weight * (m - r), gradient

        @staticmethod
        def jvp(ctx: Any, dm: Array, dr: Array) -> Array:
            return dr.clone()

    return Pull.apply(M, R)


def registration(
    x: Array,
    y: Array,
    weights: Array | None = None,
    compute_scaling: bool = False,
    *,
    translation: bool,
) -> Any:
    """RoMa's rigid_points_registration, or rigid_vectors_registration without a translation."""
    found = polarlib.align(
        x, y, weights=weights, scale=compute_scaling, translation=translation, regularization=1e-5
    )
    r = found.rotation.transpose(-1, -2)
    if not translation:
        return (r, found.scale) if compute_scaling else r
    return (r, found.translation, found.scale) if compute_scaling else (r, found.translation)


def install() -> None:
    """Replace the functions that end in RoMa's one decomposition."""
    frame.replace("roma.mappings.procrustes", procrustes)
    frame.replace("roma.mappings.special_procrustes", special_procrustes)
    points = functools.partial(registration, translation=True)
    frame.replace("roma.utils.rigid_points_registration", points)
    vectors = functools.partial(registration, translation=False)
    frame.replace("roma.utils.rigid_vectors_registration", vectors)
