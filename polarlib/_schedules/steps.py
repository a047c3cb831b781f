"""One step of a schedule: an odd polynomial, or an odd rational function in partial fractions.

A polynomial is the tuple of its coefficients in ascending powers ``1 + stride i``, so that it can
be written down, compared and stored as plain numbers. A rational step is a :class:`Rational`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from polarlib.arrays import checks

# Images of steps with more coefficients take minutes.
MOST_COEFFICIENTS = 200
# Sample points per extremum, in log x denser at the ends, where the extrema are: two suffice on the
# interval of design, by experiment.
SAMPLES = 50
BISECTIONS = 60


class Rational(NamedTuple):
    """``M (x + sum_j a_j x / (x**2 + c_j))``; all numbers are positive, so nothing cancels.

    Attributes
    ----------
    scale : float
        M.
    residues, poles : tuple of float
        a_j and c_j.

    Examples
    --------
    Halley's step ``x (3 + x**2) / (1 + 3 x**2)``:

    >>> Rational(1 / 3, (8 / 3,), (1 / 3,))(1.0)
    1.0
    """

    scale: float
    residues: tuple[float, ...]
    poles: tuple[float, ...]

    def __call__(self, x: Any) -> Any:
        """Return the value at a number or, entry by entry, at an array."""
        y = x * x
        total = x
        for a, c in zip(self.residues, self.poles, strict=True):
            total = total + a * x / (y + c)
        return self.scale * total

    def turning_points(self, lower: float, upper: float) -> np.ndarray:
        """Return the zeros of the derivative in an interval of positive numbers, by bisection.

        They have double precision; their error enters the value of the step squared.
        """
        with np.errstate(all="ignore"):  # of intervals near the ends of the doubles
            count = SAMPLES * (2 * len(self.poles) + 2)
            x = lower * (upper / lower) ** ((1 - np.cos(np.linspace(0, np.pi, count))) / 2)
            signs = np.sign(self.derivative(x))
            k = np.flatnonzero(signs[:-1] * signs[1:] < 0)
            a, b, rising = x[k], x[k + 1], signs[k] > 0
            for _ in range(BISECTIONS):
                middle = np.sqrt(a * b)
                left = (self.derivative(middle) > 0) == rising
                a, b = np.where(left, middle, a), np.where(left, b, middle)
            return np.unique(np.concatenate([a, x[signs == 0]]))

    def derivative(self, x: Any) -> Any:
        """Return the derivative at a number or, entry by entry, at an array."""
        y, terms = x * x, zip(self.residues, self.poles, strict=True)
        return self.scale * (1 + sum((a * (c - y) / (y + c) ** 2 for a, c in terms), 0 * x))


# Any: most functions take polynomials only, which are tuples of floats.
Step: TypeAlias = tuple[Any, ...]


def coefficients(name: str, step: Any) -> tuple[float, ...]:
    """Return the coefficients of a polynomial step, checked, as floats.

    Examples
    --------
    >>> coefficients("step", [1.5, -0.5])
    (1.5, -0.5)
    """
    found = checks.items(name, step, "a list of coefficients", most=MOST_COEFFICIENTS)
    return tuple(checks.number(f"{name}: coefficient {i}", c) for i, c in enumerate(found, 1))


def checked_step(name: str, step: Any) -> Step:
    """Return a step, checked: coefficients, or scale, residues and poles.

    Examples
    --------
    >>> checked_step("step", [1, [8], [3]])
    Rational(scale=1.0, residues=(8.0,), poles=(3.0,))
    """
    nested = isinstance(step, (list, tuple)) and any(isinstance(v, (list, tuple)) for v in step)
    if not nested:
        return coefficients(name, step)
    what = "(scale, residues, poles)"
    scale, *terms = checks.items(name, step, what, 3, 3)
    residues, poles = (
        tuple(
            checks.number(f"{name}: a residue or pole", v, 0, ends="(]")
            for v in checks.items(f"{name}: residues and poles", part, "lists of numbers", 0)
        )
        for part in terms
    )
    if len(residues) != len(poles):
        raise ValueError(
            f"{name} must be {what}, with as many residues as poles, all positive, got "
            f"{checks.shown(step)}"
        )
    return Rational(checks.number(f"{name}: the scale", scale, 0, ends="(]"), residues, poles)


def slope_at_zero(step: Step) -> float:
    """Return the derivative of a step at 0.

    Examples
    --------
    >>> slope_at_zero((1.5, -0.5)), slope_at_zero(Rational(0.5, (6.0,), (2.0,)))
    (1.5, 2.0)
    """
    if not isinstance(step, Rational):
        return float(step[0])
    terms = zip(step.residues, step.poles, strict=True)
    return step.scale * (1 + sum(a / c for a, c in terms))


def absorbed(step: Sequence[float], s: float, stride: int = 2) -> tuple[float, ...]:
    """Return the polynomial q with ``q(x) = step(x / s)``.

    Examples
    --------
    >>> absorbed((1.5, -0.5), 2.0)
    (0.75, -0.0625)
    """
    return tuple(c / s ** (stride * i + 1) for i, c in enumerate(step))


def numbers(step: Step) -> Iterator[float]:
    """Yield every number of a step."""
    for part in step:
        yield from part if isinstance(part, tuple) else (part,)


def mapped(step: Sequence[Any], f: Callable[[float], Any]) -> list[Any]:
    """Return f of every number of a step, as nested lists.

    Examples
    --------
    >>> mapped(Rational(0.5, (6.0,), (2.0,)), str)
    ['0.5', ['6.0'], ['2.0']]
    """
    return [mapped(part, f) if isinstance(part, list | tuple) else f(part) for part in step]


def polynomials(schedule: Any, what: str) -> tuple[tuple[float, ...], ...]:
    """Return the steps of a schedule of polynomials; raise ValueError for a rational one.

    Examples
    --------
    >>> from polarlib import schedule
    >>> polynomials(schedule("jordan", 1), "certify")
    ((3.4445, -4.775, 2.0315),)
    """
    if schedule.is_rational:
        raise ValueError(
            f"{what} is for schedules of polynomials; schedule {schedule.name!r} is rational"
        )
    steps: tuple[tuple[float, ...], ...] = schedule.steps
    return steps
