"""JAX: matrices that the devices of a Mesh compute for each other.

A *piece* is a slab ``low:high`` of the first axis of an array, with its owner
(`polarlib.orthogonalization.owners`). Eagerly, pieces are moved to their owners' devices and
results back; JAX dispatches asynchronously, so that devices compute at the same time. Under
`jax.jit` and `jax.vmap` the shards of arrays with explicit axes are sent to the owners, and those
of the results back, by all-to-alls; other arrays are replicated, and an all-gather returns the
results. Each device branches to its pieces.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from polarlib.arrays.jax_sharded import (
    alike,
    axes_of,
    explicit_sharding,
    has_axes,
    known_sharding,
    mesh_of,
    with_automatic_axes,
)
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
        """Return results from one program, with the collectives of `_round` in each round."""
        jax = import_library("jax")
        sharding, given = jax.sharding, [explicit_sharding(x) for x in arrays]
        # That of the arrays, or else of the context, may have axes of other kinds.
        meshes = [*map(mesh_of, arrays), sharding.get_abstract_mesh()]
        types = next((m for m in meshes if m is not None and not m.empty), self.mesh)
        if has_axes(types, "Explicit") and has_axes(types, "Auto"):
            found = with_automatic_axes(
                lambda c, *hidden: self._branched(hidden, rounds, run, c), types, c, *arrays
            )
            return [
                u if place is None else sharding.reshard(u, place)
                for u, place in zip(found, given, strict=True)
            ]
        specs = [self._spread(x) for x in arrays]
        mesh = sharding.Mesh(self.mesh.devices, self.mesh.axis_names, types.axis_types)
        on_each = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
        parts: list[dict[int, Array]] = [{} for _ in arrays]
        for pieces in rounds:
            inputs = {}
            for i in sorted({p.array for p in pieces}):
                if given[i] is None:  # gradients are led to the hidden sharding
                    inputs[i] = alike(arrays[i], arrays[i])
                else:
                    to = sharding.NamedSharding(mesh, specs[i])
                    inputs[i] = sharding.reshard(arrays[i], to)
            cuts = {
                p: _Cut.of(self.mesh, specs[p.array], (p.high - p.low, *arrays[p.array].shape[1:]))
                for p in pieces
            }
            found = on_each(
                functools.partial(self._round, cuts, run),
                in_specs=({i: specs[i] for i in inputs}, sharding.PartitionSpec()),
                out_specs=[specs[p.array] for p in pieces],
            )(inputs, c)
            for p, u in zip(pieces, found, strict=True):
                parts[p.array][p.low] = u
        # Within a map, since XLA might shard the pieces of a concatenation.
        join = on_each(lambda parts: list(map(_joined, parts)), in_specs=(specs,), out_specs=specs)
        return [
            alike(u, x) if place is None else sharding.reshard(u, place)
            for u, x, place in zip(join(parts) if parts else (), arrays, given, strict=True)
        ]

    def _spread(self, x: Array) -> Any:
        """Return the sharding in which shards of an array are sent; ``P()`` if they are not.

        Arrays that are replicated, or may be since their sharding is hidden, are not sent. To those
        with explicit axes, other mesh axes are added while they divide a side of the matrices: each
        device then sends another part.
        """
        spec = import_library("jax").sharding.PartitionSpec
        given = explicit_sharding(x)
        axes = [] if given is None else list(axes_of(given.spec, x.ndim))
        if 0 in x.shape or not any(axes):
            return spec()
        for axis in self.mesh.axis_names:
            if not any(axis in names for names in axes):
                for side in -2, -1:
                    parts = math.prod(self.mesh.shape[name] for name in (*axes[side], axis))
                    if x.shape[side] % parts == 0:
                        axes[side] = (*axes[side], axis)
                        break
        return spec(*axes)

    def _round(
        self,
        cuts: dict[Any, _Cut],
        run: Callable[..., list[Array]],
        arrays: dict[int, Array],
        c: Array,
    ) -> list[Array]:
        """Return the shards of the results for pieces on this device.

        Shards are sent to the owners, and those of the results back, by an all-to-all per dtype;
        results for replicated arrays are sent to all devices by an all-gather. Messages of a dtype
        are filled with zeros to equal lengths; where that more than doubles an all-gather, a sum of
        zeros and the results is in its place. Devices with pieces of equal shapes, dtypes and
        shardings have one branch.
        """
        jax = import_library("jax")
        lax, xp, every = jax.lax, jax.numpy, self.mesh.axis_names
        kinds = {p: (cut.sharded, str(arrays[p.array].dtype)) for p, cut in cuts.items()}
        owned = [[p for p in cuts if p.owner == r] for r in range(self.count)]
        signatures = [tuple((kinds[p], cuts[p]) for p in own) for own in owned]
        branches = list(dict.fromkeys(signatures))
        me = lax.axis_index(every)
        # Where each piece is in the messages of its kind from or to its owner, and their lengths.
        at: dict[Any, slice] = {}
        sizes: dict[tuple[bool, str], list[int]] = {k: [0] * self.count for k in kinds.values()}
        for r, own in enumerate(owned):
            for p in own:
                start = sizes[kinds[p]][r]
                sizes[kinds[p]][r] += math.prod(cuts[p].block)
                at[p] = slice(start, sizes[kinds[p]][r])
        lengths = {k: max(each) for k, each in sizes.items()}
        summed = {k for k in sizes if not k[0] and self.count * lengths[k] > 2 * sum(sizes[k])}

        def message(kind: tuple[bool, str], values: dict[Any, Array], *leading: int) -> Array:
            rows = [v for p, v in values.items() if kinds[p] == kind]
            if kind in summed:
                whole = xp.zeros(sum(sizes[kind]), kind[1])
                start = xp.asarray([0, *itertools.accumulate(sizes[kind])])[me]
                row = xp.concatenate([*rows, whole[:0]])
                return lax.dynamic_update_slice_in_dim(whole, row, start, 0)
            free = lengths[kind] - sum(v.shape[-1] for v in rows)
            return xp.concatenate([*rows, xp.zeros((*leading, free), kind[1])], -1)

        def exchanged(rows: Array) -> Array:
            return lax.all_to_all(rows, every, 0, 0, tiled=True)

        def to_owners(kind: tuple[bool, str]) -> Array:
            flat = [{p: xp.ravel(_piece(arrays, p)) for p in own} for own in owned]
            return exchanged(xp.stack([message(kind, values) for values in flat]))

        received = {kind: to_owners(kind) for kind in sizes if kind[0]}

        def branch(which: int) -> list[Array]:
            who = [r for r, found in enumerate(signatures) if found == branches[which]]
            place = xp.asarray([who.index(r) if r in who else 0 for r in range(self.count)])
            choices = [
                lambda r=r: [_piece(arrays, p) for p in owned[r] if not cuts[p].sharded]
                for r in who
            ]
            whole = iter(lax.switch(place[me], choices))
            own = owned[who[0]]
            given = [
                cuts[p].joined(received[kinds[p]][:, at[p]]) if cuts[p].sharded else next(whole)
                for p in own
            ]
            us = run(given, c, [p.array for p in own]) if own else []
            flat = {
                p: cuts[p].divided(u) if cuts[p].sharded else xp.ravel(u)
                for p, u in zip(own, us, strict=True)
            }
            return [message(k, flat, *([self.count] if k[0] else [])) for k in sizes]

        def returned(kind: tuple[bool, str], row: Array) -> list[Array]:
            """Return, for each owner, what it has sent."""
            if kind in summed:
                ends = list(itertools.accumulate(sizes[kind]))
                return list(xp.split(lax.psum(row, every), ends[:-1]))
            return list(exchanged(row) if kind[0] else lax.all_gather(row, every))

        choices = [functools.partial(branch, b) for b in range(len(branches))]
        number = xp.asarray([branches.index(found) for found in signatures])[me]
        rows = dict(zip(sizes, lax.switch(number, choices), strict=True))
        back = {kind: returned(kind, row) for kind, row in rows.items()}
        return [xp.reshape(back[kinds[p]][p.owner][at[p]], cut.block) for p, cut in cuts.items()]


class _Cut(NamedTuple):
    """How matrices are divided into blocks, one for each device of a mesh.

    Attributes
    ----------
    sizes : tuple of int
        Lengths of the axes of the mesh.
    axes : tuple of tuples of int
        For each axis of the matrices the axes of the mesh, the slowest first.
    block : tuple of int
        Shape of a block.
    """

    sizes: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]
    block: tuple[int, ...]

    @classmethod
    def of(cls, mesh: Any, spec: Any, shape: tuple[int, ...]) -> _Cut:
        sizes, names = tuple(mesh.shape.values()), axes_of(spec, len(shape))
        axes = tuple(tuple(map(mesh.axis_names.index, each)) for each in names)
        counts = [math.prod(sizes[axis] for axis in each) for each in axes]
        return cls(sizes, axes, tuple(n // k for n, k in zip(shape, counts, strict=True)))

    @property
    def sharded(self) -> bool:
        """Whether there are several blocks."""
        return any(self.axes)

    @property
    def _order(self) -> list[int]:
        """Axes of (mesh, block): those along which blocks are equal, then those of the matrices."""
        each = enumerate(self.axes, len(self.sizes))
        order = [axis for position, axes in each for axis in (*axes, position)]
        return [*(axis for axis in range(len(self.sizes)) if axis not in order), *order]

    @property
    def _copies(self) -> int:
        """Number of mesh axes along which blocks are equal."""
        return len(self.sizes) - sum(map(len, self.axes))

    def joined(self, blocks: Array) -> Array:
        """Return matrices from their blocks, shape (devices, entries of a block)."""
        xp = import_library("jax.numpy")
        grid = xp.reshape(blocks, (*self.sizes, *self.block))
        grid = xp.transpose(grid, self._order)[(0,) * self._copies]
        counts = [math.prod(self.sizes[axis] for axis in axes) for axes in self.axes]
        return xp.reshape(grid, [n * k for n, k in zip(self.block, counts, strict=True)])

    def divided(self, x: Array) -> Array:
        """Return the blocks of matrices, shape (devices, entries of a block)."""
        xp, full, order = import_library("jax.numpy"), (*self.sizes, *self.block), self._order
        lengths = [full[axis] for axis in order]
        grid = xp.broadcast_to(xp.reshape(x, lengths[self._copies :]), lengths)
        grid = xp.transpose(grid, np.argsort(order))
        return xp.reshape(grid, (math.prod(self.sizes), math.prod(self.block)))


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
    """Return a piece of an array, or the shard of it."""
    x = arrays[p.array]
    return x if p.low == 0 and p.high >= x.shape[0] else x[p.low : p.high]


def _joined(parts: dict[int, Array]) -> Array:
    """Return an array from its pieces by the first of their rows."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    return import_library("jax.numpy").concatenate([parts[low] for low in sorted(parts)])
