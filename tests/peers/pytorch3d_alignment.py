"""PyTorch3D's tests of corresponding_points_alignment, on polarlib.align.

PyTorch3D is built with a compiler of CUDA. Of its copy the modules in Python that these tests need
are imported alone, without the packages around them, which import what is compiled.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import frame

import polarlib

NAME = "pytorch3d"
REPOSITORY = "https://github.com/facebookresearch/pytorch3d"
COMMIT = "9381c4016376345bb795b97c45a6c2de66db354a"
PACKAGE = "pytorch3d"
REQUIRES = ("torch",)
TESTS = ("tests/test_points_alignment.py",)
OPTIONS = ("--import-mode=importlib",)
NOT_RUN = {"test_points_alignment.py::TestICP::*": "nearest neighbours by compiled code"}
NOTE = "the tests name the device cuda:0; the CPU stands for it"

Array = Any


def corresponding_points_alignment(
    X: Any,
    Y: Any,
    weights: Any = None,
    estimate_scale: bool = False,
    allow_reflection: bool = False,
    eps: float = 1e-9,
) -> Any:
    """Clouds of different sizes are padded, with weights 0 where there is no point."""
    import torch
    from pytorch3d.ops.points_alignment import SimilarityTransform
    from pytorch3d.ops.utils import convert_pointclouds_to_tensor
    from pytorch3d.structures.utils import list_to_padded

    (x, sizes), (y, others) = map(convert_pointclouds_to_tensor, (X, Y))
    if x.shape != y.shape or bool((sizes != others).any()):
        raise ValueError("the clouds must have as many points")
    if isinstance(weights, list):
        weights = list_to_padded([w[:, None] for w in weights])[..., 0]
    if bool((sizes < x.shape[1]).any()):
        there = torch.arange(x.shape[1])[None] < sizes[:, None]
        weights = there.to(x) if weights is None else weights * there
    if weights is not None:
        # PyTorch3D takes clouds without any weight, which ours refuses: all points alike then.
        weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, torch.ones_like(weights))
    found = polarlib.align(x, y, weights=weights, scale=estimate_scale, reflection=allow_reflection)
    return SimilarityTransform(found.rotation, found.translation, found.scale)


def on_cpu() -> Any:
    """A mode of torch in which whatever is asked of a device is done by the CPU."""
    import torch
    from torch.overrides import TorchFunctionMode

    def moved(value: Any) -> Any:
        return torch.device("cpu") if isinstance(value, torch.device) else value

    class OnCpu(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            named = {name: moved(value) for name, value in (kwargs or {}).items()}
            return func(*map(moved, args), **named)

    return OnCpu()


def install() -> None:
    """Packages without contents around the modules, and the function that is replaced."""
    for name in ("pytorch3d", *(f"pytorch3d.{n}" for n in ("ops", "structures", "transforms"))):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(*name.split(".")).resolve())]
        sys.modules[name] = package
    neighbours: Any = types.ModuleType("pytorch3d.ops.knn")
    neighbours.knn_points = sys.modules["pytorch3d.ops"].knn_points = None  # type: ignore[attr-defined]
    sys.modules[neighbours.__name__] = neighbours
    frame.replace(
        "pytorch3d.ops.points_alignment.corresponding_points_alignment",
        corresponding_points_alignment,
    )
    on_cpu().__enter__()
