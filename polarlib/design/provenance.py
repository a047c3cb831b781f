"""The interval, scale and gain for which a published step was designed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from polarlib._schedules.steps import coefficients
from polarlib.arrays.checks import shown
from polarlib.design import remez
from polarlib.files.tables import html_table

# Ratios of the ends of the interval between which the answer is sought. Below, best steps differ by
# less than the rounding of doubles; above, they are the Pade step to seven digits.
NARROWEST, WIDEST = 1e-14, 1 - 1e-7


class Fingerprint(NamedTuple):
    """Best polynomial that equals a step up to a factor.

    Attributes
    ----------
    lower, upper : float
        The step is ``gain`` times the best polynomial of its degree on [lower, upper].
    gain : float
        1 for a best step; above 1 if, for example, a step with a cushion was centred at 1 again.
    mismatch : float
        Largest relative difference between the step's coefficients and those of that polynomial.
        Degrees 3 and 5 have as many coefficients as parameters, so that it is rounding. For higher
        degrees a small value shows that the step was designed in this way.
    """

    lower: float
    upper: float
    gain: float
    mismatch: float

    @property
    def scale(self) -> float:
        """Divisor of the argument of the best polynomial on [lower / upper, 1]: `upper`."""
        return self.upper

    def _repr_html_(self) -> str:
        return html_table("Fingerprint of a step", self._asdict())


def fingerprint(step: Sequence[float]) -> Fingerprint:
    """Find the interval, scale and gain for which a step was designed.

    A best polynomial p on [l, 1], squeezed to ``g p(x / u)``, has the coefficients
    ``g c_i / u^(2i+1)``. The ratio ``c_1^2 / (c_0 c_2)`` is independent of g and u, and decreases
    as l grows: from 4 to 20 / 9 for degree 5. It determines l; then ``c_1 / c_0`` determines u, and
    c_0 determines g. Degree 3 has two coefficients only, and g = 1 is assumed: then
    ``c_0^3 / |c_1|``, from 27 to 27 / 4, determines l.

    Parameters
    ----------
    step : sequence of float
        Coefficients ``(a, b, c, ...)`` in ascending odd powers.

    Returns
    -------
    Fingerprint
        Interval, gain and mismatch.

    Raises
    ------
    ValueError
        For fewer than two coefficients, signs that do not alternate from a positive first one, and
        ratios that no best polynomial has: such a step was designed for another objective.

    Notes
    -----
    A small l is ill-conditioned: four-digit coefficients determine l = 1e-3 to about 10 %.

    Examples
    --------
    >>> from polarlib import schedule
    >>> f = fingerprint(schedule("polar_express_102").steps[0])  # cushion 0.02, safety 0.02
    >>> round(f.lower / f.upper, 6), round(f.upper, 6)
    (0.02, 1.02)
    """
    c = coefficients("step", step)
    signs = all(v * (-1) ** i > 0 for i, v in enumerate(c))
    if len(c) < 2 or not signs:
        raise ValueError(
            "step must be two coefficients or more, of alternating signs, the first positive, got "
            f"{shown(step)}"
        )
    degree = 2 * len(c) - 1
    ratio: Callable[[Sequence[float]], float]
    if len(c) == 2:
        name, ratio = "a^3 / |b|", _cubic_ratio
    else:
        name, ratio = "b^2 / (a c)", _first_ratio
    l = _solve(lambda l: ratio(remez.ideal(degree, l).coefficients), ratio(c), name, degree)
    ideal = remez.ideal(degree, l).coefficients
    u = math.sqrt((ideal[1] / ideal[0]) / (c[1] / c[0]))
    gain = c[0] * u / ideal[0]
    expected = [gain * v / u ** (2 * i + 1) for i, v in enumerate(ideal)]
    mismatch = max(abs(v / w - 1) for v, w in zip(c, expected, strict=True))
    return Fingerprint(l * u, u, gain, mismatch)


def _first_ratio(c: Sequence[float]) -> float:
    return c[1] * c[1] / (c[0] * c[2])


def _cubic_ratio(c: Sequence[float]) -> float:
    return c[0] ** 3 / abs(c[1])


def _solve(f: Callable[[float], Any], value: float, name: str, degree: int) -> float:
    """Find the l at which a decreasing function has a value."""
    from scipy.optimize import brentq  # here, as its import is slow

    high, low = f(NARROWEST), f(WIDEST)
    if not low < value < high:
        raise ValueError(
            f"step must be a best polynomial of degree {degree} up to a factor, with {name} "
            f"between {low:.6g} and {high:.6g}, got {value:.6g}; it has another origin"
        )
    return math.exp(
        brentq(lambda t: f(math.exp(t)) - value, math.log(NARROWEST), math.log(WIDEST), xtol=1e-15)
    )
