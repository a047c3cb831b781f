"""Steps of degree 5 on one matrix with few calls, for libraries whose calls take noticeable time.

The result is bitwise identical to that of :func:`polarlib.engine.normalise.normalised_with_gram`
and :func:`polarlib.engine.iterate.iterate`. The checks of settings are made once, by
:func:`polarlib.arrays.torch_bare.bare`. For 256 x 256 matrices checks before each product would
take a fifth of the time of the products. On a device the host must be faster than the products,
since otherwise the device waits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from polarlib._schedules.schedule import Schedule
from polarlib._schedules.steps import absorbed
from polarlib.arrays.formats import Format, format_of
from polarlib.arrays.functions import trace
from polarlib.arrays.normaliser import Normaliser
from polarlib.arrays.torch_bare import Bare
from polarlib.engine.adaptive import Adaptive
from polarlib.engine.normalise import BOUNDS, from_gram, halfway_factor, most_absorbed, slacks

Array = Any


class Plan(NamedTuple):
    """A schedule prepared for matrices of a format.

    Attributes
    ----------
    steps : tuple of tuple of float
        Steps of degree 5.
    kind : str
        The normalisation; on the host one with a bound from the first Gram matrix.
    safety : float
        Further divisor.
    form : Format
        Format of the matrix and of its products.
    most : float
        Largest squared norm that the first step can contain; the smallest is its inverse.
    halfway : float
        Factor of the norm, see :func:`polarlib.engine.normalise.halfway_factor`.
    """

    steps: Any
    kind: str
    safety: float
    form: Format
    most: float
    halfway: float


def plan(schedule: Schedule, kind: str, precision: str, n: int, *, host: bool) -> Plan | None:
    """Return the plan for matrices of a format; None if the general iteration is needed."""
    fixed = not (schedule.is_rational or isinstance(schedule, Adaptive))
    if not fixed or {len(step) for step in schedule.steps} != {3}:
        return None
    wanted = format_of(precision)
    most = most_absorbed(schedule.steps[0], wanted)
    by_gram = BOUNDS[kind].from_gram is not None
    if not (by_gram and most if host else by_gram or kind == "frobenius"):
        return None
    halfway = halfway_factor(n, most)
    return Plan(schedule.steps, kind, schedule.input_safety, wanted, most, halfway)


def apply(x: Array, how: Plan, bare: Bare) -> Array | None:
    """Return the approximate unitary factor; None if the norm is out of range or not finite."""
    multiply, add, ops = bare[:3]
    wide = x.shape[0] < x.shape[1]
    narrow = how.form.significand < 24
    kernels = bare.kernels
    begun = _begun(x, how, bare) if kernels is None else _on_device(x, how, bare, kernels)
    if begun is None:
        return None
    x, g, steps, free = begun
    z: Array = ops.buffer(g.shape, g)
    turns: list[Array] = [free, None]
    for k, (c0, c1, c2) in enumerate(steps, 1):
        if k > 1:
            _gram(x, wide, multiply, g)
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


def _gram(x: Array, wide: bool, multiply: Any, out: Array | None = None) -> Array:
    return multiply(x, x.mT, out=out) if wide else multiply(x.mT, x, out=out)


def _begun(x: Array, how: Plan, bare: Bare) -> tuple[Array, Array, Any, Array | None] | None:
    """Return the matrix, its Gram matrix, their steps, and storage that is free after a step."""
    ops = bare.ops
    g = _gram(x, x.shape[0] < x.shape[1], bare.multiply)
    square = ops.item(trace(g, ops))
    if not 1 / how.most <= square <= how.most:  # NaN is not
        return None
    s = ops.divisor(from_gram(how.kind)(g, square, ops, how.form)) * how.safety
    if how.form.significand < 24:  # as in `normalise._normalised`
        x = ops.divide(x, s)
        return x, ops.divide(g, s * s, may_overwrite=True), how.steps, x
    return x, g, (absorbed(how.steps[0], s), *how.steps[1:]), None


def _on_device(
    x: Array, how: Plan, bare: Bare, kernels: Normaliser
) -> tuple[Array, Array, Any, Array | None]:
    """Return the result of :func:`_begun` without reading a number on the host."""
    whole = how.kind == "frobenius"
    x = kernels.by_norm(x, how.safety if whole else how.halfway, not whole)
    g = _gram(x, x.shape[0] < x.shape[1], bare.multiply)
    if not whole:
        x, g = kernels.by_gram(x, g, how.kind, *slacks(bare.format, how.form), how.safety)
    return x, g, how.steps, x
