"""torch: errors for DTensors that cannot be used, alike on every process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polarlib.arrays.checks import TAKING_SHARDS
from polarlib.arrays.library import import_library

Array = Any

# Names of the classes of placements that are known, and reductions of pending results.
PLACEMENTS = ("Replicate", "Shard", "_StridedShard", "Partial")
REDUCTIONS = ("sum", "avg", "max", "min", "product")


def check_dtensor(x: Array, name: str, *, taken: bool, abstract: bool) -> None:
    """Raise TypeError if a function does not accept DTensors, ValueError if `x` is unusable.

    `abstract` DTensors have no entries that could be read.
    """
    if not taken:
        raise TypeError(
            f"{name} is a DTensor, which only {TAKING_SHARDS} accept; pass the whole tensor, "
            f"{name}.full_tensor()"
        )
    if abstract:
        raise TypeError(
            f"{name} is a DTensor without entries, as on the device meta or under torch.export and "
            "torch.jit.trace; pass one with entries, or a plain tensor of its shape"
        )
    for place in x.placements:
        reduced = getattr(place, "reduce_op", "sum") in REDUCTIONS
        if type(place).__name__ not in PLACEMENTS or not reduced:
            raise ValueError(
                f"{name} has the placement {place!r}, allowed are {', '.join(PLACEMENTS)} (of "
                f"{', '.join(REDUCTIONS)}); pass {name} in one of these"
            )
    if x.device_mesh.get_coordinate() is None:
        raise ValueError(
            f"{name} is a DTensor on {x.device_mesh}, of which this process is not a member; "
            "call this only on the processes of the mesh"
        )
    try:
        x.device_mesh.get_all_groups()
    except Exception as error:  # torch has several kinds
        raise ValueError(
            f"{name} is a DTensor whose process group is gone ({error}); initialise "
            f"torch.distributed and construct {name} again, or pass {name}.to_local()"
        ) from None


def refuse_transformed(x: Array) -> None:
    """Raise TypeError for a DTensor in torch.func.grad and vjp, where backward would fail."""
    functorch = import_library("torch")._C._functorch
    while functorch.is_gradtrackingtensor(x):
        x = functorch.get_unwrapped(x)
        if hasattr(x, "placements"):
            raise TypeError(
                "a DTensor is differentiated by torch.func, which polarlib has no rules for; use "
                "backward() or torch.autograd.grad"
            )


def check_sizes(high: Sequence[float], low: Sequence[float]) -> None:
    """Raise ValueError unless the largest and the smallest size of each last axis are equal."""
    differing = [
        f"{b:.0f} to {h:.0f} along axis {i - len(high)}"
        for i, (h, b) in enumerate(zip(high, low, strict=True))
        if h != b
    ]
    if differing:
        raise ValueError(
            f"the sizes of a DTensor differ between processes, {', '.join(differing)}; pass shape= "
            "and stride= to DTensor.from_local"
        )
