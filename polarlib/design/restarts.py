"""Where the Gram form of a schedule must start again."""

from __future__ import annotations

from polarlib._schedule import Schedule
from polarlib.formats import format_of

__all__ = ["restarts"]

# Spurious eigenvalue of R that is tolerated before a restart. Chosen by experiment.
TOLERATED = 0.1
# In wide formats the blow-up is far away, but digits are lost before it: at most 12 bits of them.
BITS_LOST = 12
# Rounding of Q that is tolerated. Q is as large as the slope of its section and multiplies singular
# values near 1, of which it should make numbers near 1: they see u times that slope. Chosen by
# experiment, over 18 spectra, 3 shapes, 4 seeds and 2 norms in bfloat16: with TOLERATED alone
# polar_express exceeds its plain form by 0.5; with this by 0.03, and no set by more.
TOLERATED_IN_Q = 0.049


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
    Two bounds, each over the steps since the last restart, u the unit roundoff:

    - A computed Gram matrix has spurious eigenvalues of the size of u, of either sign, and a step
      with slope a multiplies them by ``a**2``. The restart comes after the step that takes them
      above 0.1, or above 2**12 u in the wide formats.
    - Q is rounded by u times the product of the slopes. The restart comes before the step that
      would take that above 0.049.

    Both are bounds on the worst case, not optima.

    Examples
    --------
    >>> from polarlib import schedule
    >>> restarts(schedule("polar_express"), "bfloat16")
    (1, 2, 3)
    >>> restarts(schedule("polar_express"), "float16")
    (2,)
    """
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"restarts takes a Schedule, got {schedule!r}; look a name up with schedule()"
        )
    unit = format_of(format).unit_roundoff
    limit = min(TOLERATED, 2.0**BITS_LOST * unit)
    slopes = [abs(step[0]) for step in schedule.steps]
    found, spurious, rounding = [], unit, unit
    for k in range(1, len(slopes)):
        spurious *= slopes[k - 1] ** 2
        rounding *= slopes[k - 1]
        if spurious > limit or rounding * slopes[k] > TOLERATED_IN_Q:
            found.append(k)
            spurious = rounding = unit
    return tuple(found)
