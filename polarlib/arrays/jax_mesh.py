"""JAX: matrices that the devices of a Mesh compute for each other.

A *piece* is a slab ``low:high`` of the first axis of an array, with its owner
(`polarlib.orthogonalization.owners`). Eagerly, pieces are moved to their owners' devices and
results back; JAX dispatches asynchronously, so that devices compute at the same time. Under
`jax.jit` and `jax.vmap` the arrays of a round are replicated, each device branches to its pieces,
and an all-gather returns the results.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from polarlib.arrays.jax_sharded import alike, explicit_sharding, known_sharding
from polarlib.arrays.library import import_library

Array = Any
T = TypeVar("T")


class JaxMesh:
    """The devices of a mesh with axes of any number and kind, in row-major order.

    Raises
    ------
    ValueError
        If the mesh has no devices.
    """

    library = "jax"
    kind = "jax.sharding.Mesh"

    def __init__(self, mesh: Any) -> None:
        if mesh.empty:
            raise ValueError(f"mesh must have devices, got {mesh}; make it by jax.make_mesh")
        self.mesh = mesh
        self.devices = list(mesh.devices.flat)
        self.count = len(self.devices)

    @staticmethod
    def takes(mesh: Any) -> bool:
        """Return whether an object is a Mesh."""
        sharding = getattr(sys.modules.get("jax"), "sharding", None)
        return sharding is not None and isinstance(mesh, sharding.Mesh)

    def check(self, x: Array, name: str) -> str:
        """Return "": there is one process.

        Raises
        ------
        TypeError
            If `x` is not an array of JAX.
        ValueError
            If it is sharded along explicit axes of another mesh.
        """
        if not isinstance(x, import_library("jax").Array):
            raise TypeError(
                f"mesh is a Mesh of jax, but {name} is a {type(x).__name__}; pass arrays of jax, "
                "or leave mesh out"
            )
        given = explicit_sharding(x)
        shape = None if given is None else dict(given.mesh.shape)
        if given is not None and shape != dict(self.mesh.shape):
            raise ValueError(
                f"{name} is sharded along explicit axes of a mesh {shape}, but mesh is "
                f"{dict(self.mesh.shape)}; pass the mesh of the arrays"
            )
        return ""

    def agreed(self, read: Callable[[], tuple[T, list[str]]]) -> T:
        """Return the first result of a function."""
        return read()[0]

    def stays(self, x: Array) -> bool:
        """Return whether an array is a stack whose matrices are each on one device."""
        spec = _spec(x)
        return any(spec[:-2]) and not any(spec[-2:])

    def may_divide(self, x: Array) -> bool:
        """Return whether a stack may be divided along its first axis."""
        return not any(_spec(x))

    def compute(
        self,
        arrays: Sequence[Array],
        rounds: Sequence[Sequence[Any]],
        run: Callable[..., list[Array]],
        c: Array = None,
    ) -> list[Array]:
        """Return results for arrays, each in the sharding of its array.

        ``run(pieces, c, numbers)`` returns the results for arrays, which are pieces of the arrays
        with these numbers.
        """
        jax = import_library("jax")
        given = (*arrays, *([] if c is None else [c]))
        places = [_place(x) for x in given]
        # Arrays on one device are computed outside of a mesh of the context, which under jax.grad
        # cannot be left.
        inside = not jax.sharding.get_abstract_mesh().empty
        traced = any(isinstance(x, jax.core.Tracer) for x in given)
        if None not in places and not (inside and traced):
            if self.mesh.is_multi_process:
                raise ValueError(
                    f"mesh has devices of several processes, {dict(self.mesh.shape)}, between "
                    "which arrays move only under jax.jit; call orthogonalize_all there"
                )
            nowhere = jax.sharding.Mesh(np.empty((), dtype=object), ())
            with jax.set_mesh(nowhere) if inside else contextlib.nullcontext():
                return self._moved(arrays, places, rounds, run, c)
        return self._branched(arrays, rounds, run, c)

    def _moved(
        self,
        arrays: Sequence[Array],
        places: Sequence[Any],
        rounds: Sequence[Sequence[Any]],
        run: Callable[..., list[Array]],
        c: Array,
    ) -> list[Array]:
        """Return results of pieces that are moved to their owners, and back."""
        jax = import_library("jax")
        put = jax.device_put
        parts: list[dict[int, Array]] = [{} for _ in arrays]
        for owner, device in enumerate(self.devices):
            own = [p for pieces in rounds for p in pieces if p.owner == owner]
            if own:
                place = jax.sharding.SingleDeviceSharding(device)  # without explicit axes
                given = [put(_piece(arrays, p), place) for p in own]
                here = None if c is None else put(c, place)
                results = run(given, here, [p.array for p in own])
                for p, u in zip(own, results, strict=True):
                    parts[p.array][p.low] = put(u, places[p.array])
        return [put(_joined(p), place) for p, place in zip(parts, places, strict=False)]

    def _branched(
        self,
        arrays: Sequence[Array],
        rounds: Sequence[Sequence[Any]],
        run: Callable[..., list[Array]],
        c: Array,
    ) -> list[Array]:
        """Return results from one program, which replicates the arrays of a round at a time."""
        jax = import_library("jax")
        everywhere = jax.sharding.PartitionSpec()
        whole = jax.sharding.NamedSharding(self.mesh, everywhere)
        specs = {"in_specs": everywhere, "out_specs": everywhere}
        on_each = functools.partial(jax.shard_map, mesh=self.mesh, check_vma=False, **specs)
        given = [explicit_sharding(x) for x in arrays]
        parts: list[dict[int, Array]] = [{} for _ in arrays]
        for pieces in rounds:
            numbers = sorted({p.array for p in pieces})
            inputs = {
                i: arrays[i] if given[i] is None else jax.sharding.reshard(arrays[i], whole)
                for i in numbers
            }
            found = on_each(functools.partial(self._round, pieces, run))(inputs, c)
            for p, u in zip(pieces, found, strict=True):
                parts[p.array][p.low] = u
        # Within a map, since XLA might shard the pieces of a concatenation.
        joined = on_each(lambda parts: list(map(_joined, parts)))(parts) if parts else []
        return [
            alike(u, x) if place is None else jax.sharding.reshard(u, place)
            for u, x, place in zip(joined, arrays, given, strict=True)
        ]

    def _round(
        self,
        pieces: Sequence[Any],
        run: Callable[..., list[Array]],
        arrays: dict[int, Array],
        c: Array,
    ) -> list[Array]:
        """Return the results for pieces, each of which one device computes, on every device.

        Devices with pieces of equal shapes have one branch. Results are concatenated to a row per
        device and dtype, filled with zeros to equal lengths.
        """
        jax = import_library("jax")
        lax, xp, every = jax.lax, jax.numpy, self.mesh.axis_names
        owned = [[p for p in pieces if p.owner == r] for r in range(self.count)]
        shapes = {p: (p.high - p.low, *arrays[p.array].shape[1:]) for p in pieces}
        dtypes = {p: str(arrays[p.array].dtype) for p in pieces}
        kinds = [tuple((dtypes[p], shapes[p]) for p in own) for own in owned]
        branches = list(dict.fromkeys(kinds))
        lengths = {
            t: max(sum(math.prod(shape) for kind, shape in ks if kind == t) for ks in kinds)
            for t in sorted(set(dtypes.values()))
        }

        def branch(which: int, me: Array) -> list[Array]:
            who = [r for r, k in enumerate(kinds) if k == branches[which]]
            place = xp.asarray([who.index(r) if r in who else 0 for r in range(self.count)])
            choices = [lambda r=r: [_piece(arrays, p) for p in owned[r]] for r in who]
            numbers = [p.array for p in owned[who[0]]]
            us = run(lax.switch(place[me], choices), c, numbers) if numbers else []

            def row(t: str, length: int) -> Array:
                flat = [xp.ravel(u) for u in us if str(u.dtype) == t]
                joined = xp.concatenate(flat) if flat else xp.zeros(0, t)
                return xp.pad(joined, (0, length - len(joined)))

            return [row(*item) for item in lengths.items()]

        me = lax.axis_index(every)
        choices = [lambda b=b: branch(b, me) for b in range(len(branches))]
        number = xp.asarray([branches.index(k) for k in kinds])[me]
        gathered = lax.all_gather(lax.switch(number, choices), every)
        rows = dict(zip(lengths, gathered, strict=True))
        start = {(r, t): 0 for r in range(self.count) for t in lengths}
        results = []
        for p in pieces:
            at = p.owner, dtypes[p]
            end = start[at] + math.prod(shapes[p])
            results.append(xp.reshape(rows[dtypes[p]][p.owner, start[at] : end], shapes[p]))
            start[at] = end
        return results


def _place(x: Array) -> Any:
    """Return the sharding of an array that can be moved, also from under `jax.grad`, or None."""
    # Explicit axes are part of the type of a tracer, which moves must not change.
    traced = isinstance(x, import_library("jax").core.Tracer)
    return None if traced and explicit_sharding(x) is not None else known_sharding(x)


def _spec(x: Array) -> tuple[Any, ...]:
    """Return the mesh axes along which each axis is sharded, as far as it is known."""
    sharding = known_sharding(x)
    spec = getattr(sharding, "spec", None)
    if sharding is not None and spec is None and not sharding.is_fully_replicated:
        spec = [True] * x.ndim  # a sharding of another kind
    return (*(spec or ()), *[None] * (int(x.ndim) - len(spec or ())))


def _piece(arrays: Any, p: Any) -> Array:
    x = arrays[p.array]
    return x if (p.low, p.high) == (0, x.shape[0]) else x[p.low : p.high]


def _joined(parts: dict[int, Array]) -> Array:
    """Return an array from its pieces by the first of their rows."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    return import_library("jax.numpy").concatenate([parts[low] for low in sorted(parts)])
