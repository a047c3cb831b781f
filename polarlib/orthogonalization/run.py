"""Run a schedule on matrices of any shape: the last stage of orthogonalize."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from polarlib._methods import polynomial, rational
from polarlib._schedules.schedule import Schedule
from polarlib.arrays.entered import as_result
from polarlib.arrays.entry import can_hold
from polarlib.arrays.library import is_complex
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.settings import under_default_settings
from polarlib.arrays.torch_sharded import laid_as, placements, with_whole
from polarlib.orthogonalization.heads import merged, split

Array = Any


def in_blocks(
    find: Callable[..., Array],
    x: Array,
    ops: Ops,
    heads: int | None,
    out: Array | None,
    *others: Array,
) -> Array:
    """Return ``find(x, ops, out, *others)``, of shards in place and of each block of rows.

    Blocks of JAX arrays are made under automatic axes, since explicit axes would require a
    sharding of the blocks. Blocks of DTensors are made before the matrices are redistributed, so
    that processes keep whole blocks.
    """

    def of_shards(x: Array, own: Ops, place: Array | None) -> Array:
        def run(y: Array, *others: Array) -> Array:
            return find(y, own if y is x else ops_of(y), place, *others)

        return own.with_shards(run, x, "g", others)

    if heads is None:
        return of_shards(x, ops, out)
    if out is None and not placements(x):

        def by_heads(x: Array, *others: Array) -> Array:
            blocks = split(x, heads)
            return merged(find(blocks, ops_of(blocks), None, *others))

        return ops.with_shards(by_heads, x, "g", others, heads)
    why = f"heads={heads} blocks of rows are not whole on the processes"
    whole = with_whole(x, lambda axis, parts: axis == -2 and heads % parts != 0, why)
    blocks = split(whole, heads)
    place = None
    if out is not None and not placements(x):
        place = blocks if out is x else split(out, heads)
    return laid_as(merged(of_shards(blocks, ops_of(blocks), place)), x)


def storage_of(out: Array | None, x: Array) -> dict[str, Array]:
    """Return the keywords of :func:`apply` for an iteration in the storage of `out` (NumPy)."""
    # The adjoint of a complex matrix is not a view.
    wide_complex = x.shape[-2] < x.shape[-1] and is_complex(x)
    usable = out is not None and not wide_complex and can_hold(out, x)
    return {"out": out} if usable else {}


@under_default_settings
def apply(
    x: Array,
    *,
    schedule: Schedule,
    precision: str,
    gram_precision: str | None,
    kind: str,
    form: str,
    restarts: Sequence[int],
    out: Array | None = None,
) -> Array:
    """Normalise and iterate."""
    ops = ops_of(x)
    wide = x.shape[-2] < x.shape[-1]
    y = ops.adjoint(x) if wide else x
    # A wide matrix is iterated as its adjoint, in the adjoint of its storage.
    place = y if out is x else ops.adjoint(out) if wide and out is not None else out
    if schedule.is_rational:
        u, _ = rational(y, ops, schedule, precision=precision)
    else:
        u, _ = polynomial(
            y,
            ops,
            schedule,
            precision=precision,
            gram_precision=gram_precision,
            normalisation=kind,
            form=form,
            restarts=restarts,
            out=place,
        )
    return as_result(ops.adjoint(u) if wide else u, x, ops)
