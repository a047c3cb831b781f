"""A fixed schedule as a method: the normalisation and the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from polarlib._schedule import Schedule
from polarlib.iterate import iterate, matrix_products, normalise
from polarlib.ops import Ops
from polarlib.precision import rounded
from polarlib.result import Run

__all__ = ["polynomial"]

Array = Any


def polynomial(
    x: Array,
    ops: Ops,
    schedule: Schedule,
    *,
    precision: str,
    normalisation: str | None = None,
    form: str = "plain",
    restarts: Sequence[int] = (),
    callback: Callable[[int, Array], None] | None = None,
) -> tuple[Array, Run]:
    """Apply a fixed schedule to tall matrices.

    Parameters
    ----------
    x : array, shape (..., m, n)
        In at least single precision. Not changed.
    ops : Ops
        Full-precision arithmetic of the library.
    schedule : Schedule
        The steps.
    precision : str
        Number format of the iteration. The norm is taken before, in the precision of `x`.
    normalisation : str, optional
        Instead of the schedule's own; "none" leaves its input safety out too.
    form, restarts, callback
        As :func:`polarlib.iterate.iterate` takes them. The callback is also called with step 0, the
        normalised input as rounded.

    Returns
    -------
    u : array, shape (..., m, n)
        In the format of the iteration, or its carrier.
    run : Run
    """
    kind = schedule.normalisation if normalisation is None else normalisation
    y, spent = normalise(x, ops, kind, schedule.input_safety)
    low = rounded(ops, precision, is_complex=ops.is_complex(x))
    z = low.cast(y, precision)
    if callback is not None:
        callback(0, z)
    u = iterate(
        z, schedule.steps, low, form=form, restarts=restarts, owned=z is not x, callback=callback
    )
    products = matrix_products(schedule.steps, form=form, restarts=restarts)
    return u, Run(len(schedule), spent + products, False)
