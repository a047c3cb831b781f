"""The engine on one small matrix of a library whose every call is felt: quintics in few calls.

What :func:`polarlib.engine.normalise.normalised_with_gram` and
:func:`polarlib.engine.iterate.iterate` do to such a matrix, bit for bit, where its library has said
once (:func:`polarlib.arrays.torch_bare.bare`) that its bare products are right. At 256 x 256 the
layers that ask before each product take a fifth of the time of the products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from polarlib._schedules.schedule import Schedule
from polarlib._schedules.steps import absorbed
from polarlib.arrays.formats import Format, format_of
from polarlib.arrays.functions import trace
from polarlib.arrays.torch_bare import Bare
from polarlib.engine.normalise import BOUNDS, FromGram, most_absorbed

Array = Any


class Plan(NamedTuple):
    """What a schedule does to matrices of a format.

    Attributes
    ----------
    steps : tuple of tuple of float
        Steps of degree 5.
    bound : callable
        Bound of the norm from the first Gram matrix, as :class:`polarlib.engine.normalise.Bound`
        has it.
    safety : float
        Further divisor.
    form : Format
        Of the matrix and of its products.
    most : float
        Largest squared norm that the first step can absorb; the smallest is its inverse.
    """

    steps: Any
    bound: FromGram
    safety: float
    form: Format
    most: float


def plan(schedule: Schedule, kind: str, precision: str) -> Plan | None:
    """Return the plan for matrices of a format; None where the engine must take them."""
    if schedule.is_rational or {len(step) for step in schedule.steps} != {3}:
        return None
    bound, wanted = BOUNDS[kind].from_gram, format_of(precision)
    most = most_absorbed(schedule.steps[0], wanted)
    if bound is None or not most:
        return None
    return Plan(schedule.steps, bound, schedule.input_safety, wanted, most)


def apply(x: Array, how: Plan, bare: Bare) -> Array | None:
    """Approximate unitary factor of a matrix; None if its norm is out of range or not finite."""
    multiply, add, ops, _ = bare
    wide = x.shape[0] < x.shape[1]
    narrow = how.form.significand < 24

    def gram(x: Array, out: Array | None = None) -> Array:
        return multiply(x, x.mT, out=out) if wide else multiply(x.mT, x, out=out)

    g = gram(x)
    square = ops.item(trace(g, ops))
    if not 1 / how.most <= square <= how.most:  # NaN is not
        return None
    s = ops.divisor(how.bound(g, square, ops, how.form)) * how.safety
    steps, free = list(how.steps), None
    if narrow:  # as `_normalised` has it
        free = x = ops.divide(x, s)
        g = ops.divide(g, s * s, may_overwrite=True)
    else:
        steps[0] = absorbed(steps[0], s)
    z: Array = ops.buffer(g.shape, g)
    turns: list[Array] = [free, None]
    for k, (c0, c1, c2) in enumerate(steps, 1):
        if k > 1:
            gram(x, g)
        add(g, g, g, beta=c1, alpha=c2, out=z)
        if turns[k % 2] is None:
            turns[k % 2] = ops.buffer(x.shape, x)
        out = turns[k % 2]
        left, right = (z.mT, x) if wide else (x, z)
        if narrow:
            add(x, left, right, beta=c0, out=out)
        else:
            d = z.diagonal()
            d += c0
            multiply(left, right, out=out)
        x = out
    return x
