"""The calls whose work on a device is counted: functions, shapes and formats, for every library."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import polarlib
from polarlib.decomposition import unitary_factor

Function = Callable[[Any], Any]
FORMATS = ("bfloat16", "float16", "float32", "tf32", "float64", "complex64")
METHODS = ("qdwh", "hybrid", "svd", "newton_schulz")

_orthogonalize = polarlib.orthogonalize
CALLS: dict[str, Function] = {
    "orthogonalize": _orthogonalize,
    "orthogonalize, jordan": functools.partial(_orthogonalize, schedule="jordan"),
    "orthogonalize, adaptive": functools.partial(_orthogonalize, schedule="adaptive"),
    "orthogonalize, halley": functools.partial(_orthogonalize, schedule="halley"),
    "polar": polarlib.polar,
    **{f"polar, {m}": functools.partial(polarlib.polar, method=m) for m in METHODS},
    "unitary_factor": unitary_factor,
    "nearest_rotation": polarlib.nearest_rotation,
    "sqrtm_psd": polarlib.sqrtm_psd,
    "inverse_root, 2": lambda x: polarlib.inverse_root(x, 2),
    "top_singular, 4": lambda x: polarlib.top_singular(x, 4),
    "orthogonalize_vjp": lambda x: polarlib.orthogonalize_vjp(x, x),
    "polar_vjp": lambda x: polarlib.polar_vjp(x, x),
}
DEFINITE = ("sqrtm_psd", "inverse_root, 2")
SCHEDULES = ("orthogonalize", "orthogonalize, jordan", "orthogonalize, halley")
# Smaller than what devices are for: on CuPy the same is counted at 16 times the side.
SHAPES = ((128, 128), (256, 64), (64, 256), (4, 32, 32))
LARGE = (1024, 1024)
# From 320 columns on polar iterates; below, it takes the SVD.
SQUARE = (384, 384)


@dataclass(frozen=True)
class Case:
    """One call on matrices of one shape and format."""

    call: str
    shape: tuple[int, ...]
    format: str

    @property
    def name(self) -> str:
        """Return the name under which its counts are kept."""
        return f"{self.call} | {' x '.join(map(str, self.shape))} | {self.format}"

    @property
    def function(self) -> Function:
        """Return the function of one array."""
        call = CALLS[self.call]
        return functools.partial(call, precision="tf32") if self.format == "tf32" else call

    @property
    def dtype(self) -> str:
        """Return the dtype of the array."""
        return "float32" if self.format == "tf32" else self.format

    def matrices(self) -> np.ndarray:
        """Gaussian matrices, positive definite ones where the function asks for them.

        In float64 or complex128, which every library converts to its own dtype.
        """
        rng = np.random.Generator(np.random.PCG64(list(self.shape)))
        a = rng.standard_normal(self.shape)
        if self.format.startswith("complex"):
            a = a + 1j * rng.standard_normal(self.shape)
        if self.call not in DEFINITE:
            return a
        return a @ np.swapaxes(a.conj(), -1, -2) / self.shape[-1] + np.eye(self.shape[-1])


def cases() -> Iterator[Case]:
    """Every call with its shapes and formats."""
    for call in SCHEDULES:
        yield Case(call, LARGE, "bfloat16")
        for shape in SHAPES:
            for name in FORMATS:
                yield Case(call, shape, name)
    yield Case("orthogonalize", LARGE, "float32")
    for shape in (LARGE, *SHAPES[2:]):
        yield Case("orthogonalize, adaptive", shape, "bfloat16")
    yield Case("orthogonalize, adaptive", LARGE, "float32")
    several = ("float32", "float64", "complex64", "bfloat16")
    for name in several:
        for shape in (SQUARE, (160, 160), (400, 130), (130, 400), (8, 40, 40), (5000, 3, 3)):
            yield Case("polar", shape, name)
    for method in METHODS:
        for name in several[:3]:
            yield Case(f"polar, {method}", SQUARE, name)
    for name in several[:2]:
        for call in ("unitary_factor", *DEFINITE, "top_singular, 4"):
            yield Case(call, SQUARE, name)
        for shape in ((1000, 3, 3), (3, 3)):
            yield Case("nearest_rotation", shape, name)
        for call in ("orthogonalize_vjp", "polar_vjp"):
            yield Case(call, (160, 40), name)
