"""JAX: matrices sharded over a mesh, in the layout in which only Gram matrices need sums."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from polarlib.arrays.library import import_library
from polarlib.arrays.pytrees import Pytree
from polarlib.arrays.settings import warn

Array = Any
Axes = tuple[str, ...]
Runs = Callable[..., Any]
Blocks = int | tuple[int, int]


def mesh_of(x: Array) -> Any:
    """Return the mesh of an array, abstract under a trace; None without devices of a mesh."""
    jax = import_library("jax")
    sharding = jax.typeof(x).sharding if isinstance(x, jax.core.Tracer) else x.sharding
    mesh = getattr(sharding, "mesh", None)
    return None if mesh is None or mesh.empty else mesh


def has_axes(mesh: Any, kind: str) -> bool:
    """Return whether a mesh has axes of a kind: Auto, Explicit or Manual."""
    return any(kind in str(each) for each in mesh.axis_types or ())


def explicit_sharding(x: Array) -> Any:
    """Return the sharding over explicit mesh axes, which are part of the type of `x`, or None."""
    mesh, jax = mesh_of(x), import_library("jax")
    if mesh is None or not has_axes(mesh, "Explicit"):
        return None
    return jax.typeof(x).sharding if isinstance(x, jax.core.Tracer) else x.sharding


def known_sharding(x: Array) -> Any:
    """Return the sharding of an array on a mesh, also of one that is differentiated outside of jit.

    None where jit or vmap hides shardings along automatic axes.
    """
    jax = import_library("jax")
    if not isinstance(x, jax.core.Tracer):
        return x.sharding
    found = []

    def look(y: Array) -> Array:
        if not isinstance(y, jax.core.Tracer):
            found.append(y.sharding)
        return y

    # The rule of a custom derivative is called with the values, if there are any.
    seen = jax.custom_jvp(look)
    seen.defjvp(lambda primals, tangents: (seen(*primals), *tangents))
    seen(x)
    return found[0] if found else explicit_sharding(x)


class Layout(NamedTuple):
    """Names of mesh axes for each axis of an array, as given and as products need them.

    Attributes
    ----------
    given, laid : tuple of tuples of str
        The layouts.
    longer : int
        -2 or -1, the axis of matrices that is sharded in `laid`.
    received : float
        Part of the whole array that each device receives.
    """

    given: tuple[Axes, ...]
    laid: tuple[Axes, ...]
    longer: int
    received: float

    def of_small(self, shape: Sequence[int], large: int) -> tuple[Axes, ...]:
        """Return the layout of a result: replicated but for axes of the stack.

        Square matrices of the size of the longer side, `large`, are sharded by rows.
        """
        stack = self.given[:-2][: len(shape)]
        rows = len(shape) == len(self.given) and tuple(shape[-2:]) == (large, large)
        return (*stack, self.laid[self.longer]) if rows else stack


def layout_of(
    shape: Sequence[int], spec: Sequence[Any], sizes: Mapping[str, int], blocks: int = 1
) -> Layout:
    """Return the layout of matrices that are sharded over a mesh with axes of some sizes.

    Mesh axes along the shorter side are moved to the longer one while they divide it, and others
    are dropped. Each of several blocks of rows is a matrix: rows are sharded if blocks are tall, or
    if every device has whole blocks.

    Examples
    --------
    >>> layout_of((64, 8), ("r", "c"), {"r": 4, "c": 2}).laid
    (('r', 'c'), ())
    >>> layout_of((64, 8), (None, "c"), {"r": 4, "c": 2}).received
    0.25
    """
    given = axes_of(spec, len(shape))

    def parts(axes: Sequence[str]) -> int:
        return math.prod(sizes[axis] for axis in axes)

    longer = longer_side(shape, blocks, parts((*given[-1], *given[-2])))
    shorter = -3 - longer
    kept = given[longer]
    for axis in given[shorter]:
        if shape[longer] % parts((*kept, axis)) == 0:
            kept = (*kept, axis)
    stack = given[:-2]
    received = (1 - 1 / parts(given[shorter])) / parts(kept) / math.prod(map(parts, stack))
    laid = (*stack, kept, ()) if longer == -2 else (*stack, (), kept)
    return Layout(given, laid, longer, received)


def layout_of_grid(
    shape: Sequence[int], spec: Sequence[Any], sizes: Mapping[str, int], grid: tuple[int, int]
) -> Layout:
    """Return the layout in which every device has whole blocks of a grid of rows and columns.

    Mesh axes are dropped from rows and columns if the numbers of parts do not divide those of
    blocks.

    Examples
    --------
    >>> layout_of_grid((64, 8), ("r", "c"), {"r": 4, "c": 2}, (4, 1)).laid
    (('r',), ())
    """
    given = axes_of(spec, len(shape))
    laid, lost = list(given), 1
    for axis, blocks in zip((-2, -1), grid, strict=True):
        kept: Axes = ()
        for name in given[axis]:
            if blocks % math.prod(sizes[other] for other in (*kept, name)) == 0:
                kept = (*kept, name)
        laid[axis] = kept
        lost *= math.prod(sizes[name] for name in given[axis] if name not in kept)
    held = math.prod(sizes[name] for axes in laid for name in axes)
    return Layout(given, tuple(laid), -2, (1 - 1 / lost) / held)


def axes_of(spec: Sequence[Any], ndim: int) -> tuple[Axes, ...]:
    """Return the names of mesh axes for each axis of an array."""
    padded = (*spec, *[None] * (ndim - len(spec)))
    return tuple(s if isinstance(s, tuple) else (s,) if s else () for s in padded)


def longer_side(shape: Sequence[int], blocks: int, parts: int) -> int:
    """Return the axis along which blocks of rows are sharded, into at most as many parts."""
    tall = shape[-2] >= blocks * shape[-1]
    return -2 if tall or (blocks > 1 and blocks % parts == 0) else -1


def run_sharded(f: Runs, x: Array, name: str, beside: Sequence[Array], blocks: Blocks) -> Any:
    """Return ``f(x, *beside)`` for an array on a mesh, in the layout for products, or of a grid.

    A result of the shape of `x` has the sharding of `x`. Where that is hidden, the shorter side is
    made whole, and XLA is led to shard the result, and the gradient, as it shards `x`.
    """
    mesh, library = mesh_of(x), import_library("jax").sharding
    if has_axes(mesh, "Manual") or 0 in x.shape:  # the shard of a device is a matrix, or empty
        return f(x, *beside)
    if has_axes(mesh, "Explicit") and not hasattr(library, "use_abstract_mesh"):
        raise TypeError(
            f"{name} is sharded along explicit axes, {mesh}, for which this version of JAX is too "
            "old; install JAX 0.8 or newer, or make the mesh with AxisType.Auto"
        )
    traced = any(isinstance(y, import_library("jax").core.Tracer) for y in (x, *beside))
    if traced and has_axes(mesh, "Explicit") and has_axes(mesh, "Auto"):
        # The type of a tracer has the explicit part of its sharding.
        result = with_automatic_axes(
            lambda y, *more: run_sharded(f, y, name, more, blocks), mesh, x, *beside
        )
        place, whole = explicit_sharding(x), _placed(mesh, ())
        return each(
            result, lambda u: library.reshard(u, place), lambda y: library.reshard(y, whole)
        )
    sharding = known_sharding(x)
    if sharding is None and mesh.size == 1:
        return f(x, *beside)
    if isinstance(blocks, tuple):
        if sharding is None:
            return alike(f(x, *beside), x)
        layout = layout_of_grid(x.shape, sharding.spec, sharding.mesh.shape, blocks)
        why = f"of which {blocks[0]} x {blocks[1]} blocks are not whole on the devices"
        remedy = "; shard it by whole blocks"
    elif sharding is None:
        # Rows may be sharded over all of the mesh.
        return _constrained(f, x, beside, mesh, longer_side(x.shape, blocks, mesh.size))
    else:
        layout = layout_of(x.shape, sharding.spec, sharding.mesh.shape, blocks)
        side = "rows" if layout.longer == -2 else "columns"
        why = f"but products need it by {side}"
        remedy = f", before and after them; shard it by {side}"
    if layout.received and x.shape[-2] != x.shape[-1]:
        size = x.size * x.dtype.itemsize * layout.received / 1e6
        warn(
            f"{name} of shape {tuple(x.shape)} has the sharding {sharding.spec}, {why}: gathers "
            f"{size:.2g} MB per device{remedy}",
            UserWarning,
        )
    return _laid_out(f, x, beside, sharding, layout)


def warn_of_gather(x: Array, factorisation: str) -> None:
    """Warn if a factorisation gathers matrices that are sharded, where that is known."""
    sharding = None if mesh_of(x) is None or 0 in x.shape else known_sharding(x)
    if sharding is None:
        return
    *stack, m, n = sharding.shard_shape(x.shape)
    received = math.prod(stack) * (math.prod(x.shape[-2:]) - m * n) * x.dtype.itemsize / 1e6
    if received:
        warn(
            f"{factorisation} of a matrix of shape {tuple(x.shape)} with the sharding "
            f"{getattr(sharding, 'spec', sharding)} gathers {received:.2g} MB per device; "
            "orthogonalize and polar keep matrices sharded",
            UserWarning,
        )


def _laid_out(f: Runs, x: Array, beside: Sequence[Array], sharding: Any, layout: Layout) -> Any:
    """Run a function on a mesh with automatic axes; explicit ones need a sharding per call."""
    jax, mesh = import_library("jax"), sharding.mesh
    explicit = has_axes(mesh, "Explicit")
    traced = any(isinstance(y, jax.core.Tracer) for y in (x, *beside))
    move = jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint
    move = move if traced else jax.device_put
    laid = _placed(mesh, layout.laid)
    if isinstance(mesh, jax.sharding.Mesh):  # not abstract
        beside = [jax.device_put(y, _placed(mesh, ())) for y in beside]
    # The first move determines the sharding of gradients.
    arrays = [move(move(x, sharding), laid), *beside]

    def run(*arrays: Array) -> Any:
        result = f(*arrays)
        # Error estimates are computed on this mesh.
        return result if traced else jax.tree.map(lambda y: y, result)

    result = with_automatic_axes(run, mesh, *arrays) if explicit else run(*arrays)
    large = x.shape[layout.longer] if x.shape[-2] != x.shape[-1] else 0

    def small(y: Any) -> Any:
        # Under vmap, numbers that do not depend on the matrices are constants of one device.
        if not isinstance(y, jax.core.Tracer if traced else jax.Array):
            return y
        return move(y, _placed(mesh, layout.of_small(np.shape(y), large)))

    return each(result, lambda u: move(move(u, laid), sharding), small)


def with_automatic_axes(f: Runs, mesh: Any, *arrays: Array | None) -> Any:
    """Return ``f(*arrays)`` where all axes of the mesh of the arrays are automatic."""
    sharding = import_library("jax").sharding
    types = dict.fromkeys(mesh.axis_names, sharding.AxisType.Auto)
    with sharding.use_abstract_mesh(mesh.abstract_mesh.update_axis_types(types)):
        hidden = sharding.PartitionSpec()
        return f(*(None if x is None else sharding.reshard(x, hidden) for x in arrays))


def _placed(mesh: Any, layout: Sequence[Any]) -> Any:
    sharding = import_library("jax").sharding
    return sharding.NamedSharding(mesh, sharding.PartitionSpec(*layout))


def each(
    result: Any, of_unitary: Callable[[Any], Any], of_others: Callable[[Any], Any] = lambda y: y
) -> Any:
    """Apply one function to the unitary factor, and one to all other leaves of a result."""
    if not isinstance(result, Pytree):
        return of_unitary(result)
    factors: Any = result
    others: Any = import_library("jax").tree.map(of_others, result)
    return dataclasses.replace(others, unitary=of_unitary(factors.unitary))


def alike(y: Array, x: Array) -> Array:
    """Return `y`, or NaN where `x` is NaN, led to the sharding that XLA gives to `x`.

    XLA shards the operands and the result of a function of entries alike, and cannot remove this
    one. `shard_alike` of JAX 0.10 is lowered once for all arrays of one shape.
    """
    jax = import_library("jax")
    hidden = jax.lax.stop_gradient(x)
    return jax.numpy.where(jax.numpy.isnan(hidden), hidden, y)


def _constrained(f: Runs, x: Array, beside: Sequence[Array], mesh: Any, longer: int) -> Any:
    """Run a function on a mesh with automatic axes under jit, where the sharding is unknown."""
    jax = import_library("jax")
    constrain = jax.lax.with_sharding_constraint
    free = jax.sharding.PartitionSpec.UNCONSTRAINED
    spec = [free] * x.ndim
    spec[-3 - longer] = None

    def whole(y: Array) -> Array:
        square = y.ndim == x.ndim and y.shape[-1] == y.shape[-2] == x.shape[-3 - longer]
        return constrain(y, _placed(mesh, (*[free] * (y.ndim - 2), None, None))) if square else y

    like = _placed(mesh, spec)
    result = f(constrain(alike(x, x), like), *beside)
    return each(result, lambda u: alike(constrain(u, like), x), whole)
