"""Run a schedule on matrices of any shape: the last stage of orthogonalize."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from polarlib._methods import polynomial, rational
from polarlib._schedules.schedule import Schedule
from polarlib.arrays.entry import can_hold
from polarlib.arrays.library import astype_like, is_complex
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
    *beside: Array,
) -> Array:
    """Return ``find(x, ops, out, *beside)``, of shards as they lie, block by block of rows.

    Blocks of JAX arrays are made where axes are automatic, as explicit ones want a place for them;
    those of DTensors before the matrices are laid out, so that processes keep whole blocks.
    """

    def found(x: Array, own: Ops, place: Array | None) -> Array:
        def run(y: Array, *beside: Array) -> Array:
            return find(y, own if y is x else ops_of(y), place, *beside)

        return own.with_shards(run, x, "g", beside)

    if heads is None:
        return found(x, ops, out)
    if out is None and not placements(x):

        def by_heads(x: Array, *beside: Array) -> Array:
            blocks = split(x, heads)
            return merged(find(blocks, ops_of(blocks), None, *beside))

        return ops.with_shards(by_heads, x, "g", beside)
    why = f"heads={heads} blocks of rows are not whole on the processes"
    whole = with_whole(x, lambda axis, parts: axis == -2 and heads % parts != 0, why)
    blocks = split(whole, heads)
    place = None
    if out is not None and not placements(x):
        place = blocks if out is x else split(out, heads)
    return laid_as(merged(found(blocks, ops_of(blocks), place)), x)


def storage_of(out: Array | None, x: Array) -> dict[str, Array]:
    """Keywords of :func:`apply` by which NumPy iterates in the storage of the result."""
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
    return astype_like(ops.adjoint(u) if wide else u, x, ops)
