"""Restarts of the Gram form of a schedule."""

from __future__ import annotations

import functools

from polarlib._schedules.images import odd_image, odd_images
from polarlib._schedules.schedule import Schedule
from polarlib._schedules.steps import polynomials
from polarlib.arrays.checks import instance
from polarlib.arrays.formats import format_of

# Spurious eigenvalue of R that is tolerated before a restart: up to it eigenvalues grow by the
# square of the slope, beyond it faster (docs/guide/gram.md).
TOLERATED = 0.1
# In wide formats digits are lost long before the iteration diverges: at most 12 bits of them.
BITS_LOST = 12
# Change of the largest singular values by the rounding of Q, in units of the product of slopes, the
# unit roundoff and the largest singular value before: 0.4 to 0.9 was measured.
ROUNDING_OF_Q = 0.75
# The same for the one rounding of a Q of another format to that of X: 0.40 to 0.59 was measured.
ROUNDING_ONCE = 0.5
# Largest change of the result's largest singular value by the rounding of Q. By experiment.
TOLERATED_AT_THE_END = 0.05
# Precision to which the margin for it is computed, relative to a singular value.
FINE = 2.0**-16


def restarts(schedule: Schedule, format: str, *, gram_format: str | None = None) -> tuple[int, ...]:
    """Choose the steps after which the Gram form must restart, as ``restarts="auto"`` does.

    Parameters
    ----------
    schedule : Schedule
        The steps.
    format : str
        Number format of the iteration.
    gram_format : str, optional
        Number format of its n x n matrices, by default the same.

    Returns
    -------
    tuple of int
        Numbers of the steps, from 1, after which ``X <- X Q`` and its Gram matrix is recomputed.

    Raises
    ------
    TypeError
        If `schedule` is not a Schedule.
    ValueError
        For an unknown format.

    Notes
    -----
    A segment, the steps between two restarts, is as long as two bounds allow:

    - A computed Gram matrix has spurious eigenvalues of the size of its unit roundoff, of either
      sign, and a step with slope a multiplies them by ``a**2``. Before the last step of the segment
      they are below 0.1 (and 2**12 unit roundoffs, in the wide formats).
    - Q has the size of the product of the slopes of its segment, a rounding error of that size, and
      multiplies singular values near 1. After all further steps, that may change the largest one by
      at most 0.05. If the upper margin of a schedule is too small for this, the iteration restarts
      after every step, which equals the plain form.

    Both are estimates of the worst case, not optima; docs/guide/gram.md has their sharpness.

    Examples
    --------
    >>> from polarlib import schedule
    >>> restarts(schedule("polar_express"), "bfloat16")
    (1, 2, 3)
    >>> restarts(schedule("polar_express"), "float16")
    (2,)
    """
    instance("schedule", schedule, Schedule, "a Schedule, such as polarlib.schedule returns")
    polynomials(schedule, "design.restarts")
    # An argument that is not a name may not be hashable.
    small = None if gram_format is None else format_of(gram_format).name
    return common_restarts((schedule,), format_of(format).name, small)


@functools.lru_cache(maxsize=256)
def common_restarts(
    schedules: tuple[Schedule, ...], format: str, gram_format: str | None = None
) -> tuple[int, ...]:
    """Choose restarts for several schedules of as many steps: arguments of :func:`restarts`.

    Examples
    --------
    >>> from polarlib import schedule
    >>> both = schedule("polar_express", 5), schedule("jordan", 5)
    >>> [common_restarts((s,), "float16") for s in both], common_restarts(both, "float16")
    ([(2,), (3,)], (2,))
    """
    unit = format_of(format).unit_roundoff
    small, of_q = unit, ROUNDING_OF_Q * unit
    if gram_format is not None and format_of(gram_format) != format_of(format):
        small = format_of(gram_format).unit_roundoff
        of_q = ROUNDING_OF_Q * small + ROUNDING_ONCE * unit
    ends = [_ends(s, unit, small, of_q) for s in schedules]
    found, start = [], 0
    while start < len(ends[0]):
        start = max(frozenset.intersection(*(e[start] for e in ends)))
        found.append(start)
    return tuple(found[:-1])


@functools.lru_cache(maxsize=256)
def _ends(
    schedule: Schedule, unit: float, of_gram: float, of_q: float
) -> tuple[frozenset[int], ...]:
    """Return the steps after which a segment may end, for each step before its beginning."""
    limit = min(TOLERATED, 2.0**BITS_LOST * unit)
    slopes = [abs(step[0]) for step in schedule.steps]
    tops, rooms = _rooms(schedule)
    found = []
    for start, growth in enumerate(slopes):
        ends, spurious = {start + 1}, of_gram
        for k in range(start + 1, len(slopes)):  # may the segment end after step k + 1?
            spurious *= slopes[k - 1] ** 2
            growth *= slopes[k]
            if spurious > limit:
                break
            if of_q * growth * tops[start] <= rooms[k]:
                ends.add(k + 1)
        found.append(frozenset(ends))
    return tuple(found)


def _rooms(schedule: Schedule) -> tuple[list[float], list[float]]:
    """Return the largest singular value before each step, and how far it may move after it."""
    lower, upper = schedule.divided(schedule.lower, schedule.upper, extended=False)
    images = [float(hi) for _, hi in odd_images(schedule.steps, lower, upper, stride=2)]
    goal = images[-1] + TOLERATED_AT_THE_END
    rooms = []
    for k, top in enumerate(images[:-1], 1):
        inside, outside = top, 2 * top
        while outside - inside > FINE * top:
            middle = (inside + outside) / 2
            low, high = odd_image(schedule.steps[k:], top, middle, extended=False)
            stays = low > 0 and high <= goal
            inside, outside = (middle, outside) if stays else (inside, middle)
        rooms.append(inside - top)
    return [upper, *images], [*rooms, TOLERATED_AT_THE_END]
