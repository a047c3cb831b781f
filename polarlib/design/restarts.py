"""Where the Gram form of a schedule must start again."""

from __future__ import annotations

from polarlib._schedule import Schedule
from polarlib.formats import format_of

__all__ = ["restarts"]

# Spurious eigenvalue that is tolerated before a restart. 0.1 was chosen by experiment: over 24
# matrices, two scalings and six schedules in bfloat16 and float16 the largest singular value then
# stays within 0.03 of the plain form's; 0.4 lets it reach 1.2, and 0.8 lets it blow up.
TOLERATED = 0.1
# In wide formats the blow-up is far away, but digits are lost before it: at most 12 bits of them.
BITS_LOST = 12


def restarts(schedule: Schedule, format: str) -> tuple[int, ...]:
    """Steps after which the Gram form must restart; what ``restarts="auto"`` uses.

    Parameters
    ----------
    schedule : Schedule
        The steps.
    format : str
        Number format of the iteration.

    Returns
    -------
    tuple of int
        Numbers of the steps, from 1, after which ``X <- X Q`` and its Gram matrix is formed anew.

    Raises
    ------
    ValueError
        For an unknown format.

    Notes
    -----
    A computed Gram matrix has spurious eigenvalues of the size of the unit roundoff, of either
    sign. A step with slope a multiplies them by ``a**2``. A restart comes as soon as that product
    exceeds 0.1, or 2**12 unit roundoffs in the wide formats. It is a bound on the worst case, not
    an optimum.

    Examples
    --------
    >>> from polarlib import schedule
    >>> restarts(schedule("polar_express"), "bfloat16")
    (1, 3)
    """
    unit = format_of(format).unit_roundoff
    limit = min(TOLERATED, 2.0**BITS_LOST * unit)
    found, spurious = [], unit
    for k, step in enumerate(schedule.steps[:-1], 1):
        spurious *= step[0] ** 2
        if spurious > limit:
            found.append(k)
            spurious = unit
    return tuple(found)
