"""Fixed polynomial schedules as methods: normalisation and iteration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from polarlib._schedules.schedule import Schedule
from polarlib.arrays.library import at_least_single, format_name, is_complex, to_working_format
from polarlib.arrays.ops import Ops
from polarlib.arrays.rounded import rounded
from polarlib.engine.adaptive import choice_of
from polarlib.engine.iterate import iterate, matrix_products
from polarlib.engine.normalise import BOUNDS, normalise, normalised_with_gram
from polarlib.engine.symmetric import by_measurement
from polarlib.result import Run

Array = Any


def polynomial(
    x: Array,
    ops: Ops,
    schedule: Schedule,
    *,
    precision: str,
    gram_precision: str | None = None,
    normalisation: str | None = None,
    form: str = "plain",
    restarts: Sequence[int] = (),
    out: Array | None = None,
    callback: Callable[[int, Array], None] | None = None,
) -> tuple[Array, Run]:
    """Apply a fixed schedule to tall matrices.

    Parameters
    ----------
    x : array, shape (..., m, n)
        In any format. Not modified.
    ops : Ops
        Full-precision arithmetic of the library.
    schedule : Schedule
        The steps.
    precision : str
        Number format of the iteration. Norms are computed in at least single precision.
    gram_precision : str, optional
        Number format of the n x n matrices of the Gram form; `precision` by default.
    normalisation : str, optional
        Normalisation instead of that of the schedule; "none" also omits the input safety.
    form, restarts, out, callback
        As in :func:`polarlib.engine.iterate.iterate`. The callback is also called with step 0 and
        the normalised, rounded input.

    Returns
    -------
    u : array, shape (..., m, n)
        In the format of the iteration, or its carrier.
    run : Run
    """
    kind = schedule.normalisation if normalisation is None else normalisation
    pairs = is_complex(x)
    n = x.shape[-1]
    low = small = by_measurement(rounded(ops, precision, is_complex=pairs), n)
    if form == "gram" and gram_precision is not None:
        small = by_measurement(rounded(ops, gram_precision, is_complex=pairs), n)
    steps, spent, g = schedule.steps, 0, None
    bound = BOUNDS[kind]
    if bound.from_gram is not None and len(steps[0]) > 1:
        z, g, first = normalised_with_gram(
            x, ops, low, small, kind, schedule.input_safety, steps[0]
        )
        steps = (first, *steps[1:])
    else:
        # Native 16-bit formats are divided in that format; products need single precision.
        alone = not bound.products and not low.simulated
        y = x if alone and format_name(x) == precision else at_least_single(x, ops)
        y, spent = normalise(y, ops, kind, schedule.input_safety)
        z = to_working_format(y, low)
        del y
    if callback is not None:
        callback(0, z if steps is schedule.steps else _normalised(z, steps[0], schedule, ops))
    u = iterate(
        z,
        steps,
        low,
        form=form,
        restarts=restarts,
        small=small,
        gram=g,
        may_overwrite=z is not x or out is x,
        out=None if out is x else out,
        callback=callback,
        choice=choice_of(schedule, ops, small),
    )
    products = matrix_products(schedule.steps, form=form, restarts=restarts)
    return u, Run(len(schedule), spent + products, False)


def _normalised(z: Array, first: Sequence[float], schedule: Schedule, ops: Ops) -> Array:
    """Return the normalised matrix, if a factor of z is contained in the first step."""
    pairs = enumerate(zip(first, schedule.steps[0], strict=True))
    scale = next((abs(c / d) ** (1 / (2 * i + 1)) for i, (c, d) in pairs if d), 1.0)
    return ops.scale(at_least_single(z, ops), scale)
