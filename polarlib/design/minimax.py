"""The best odd polynomial as a schedule of one step, also for a weighted error.

For a weight w > 0, continuous on [l, u], the functions w(x) x, ..., w(x) x**(2q+1) are a Chebyshev
system too: one polynomial minimises ``max w |1 - p|``, and its weighted error alternates with equal
size at q + 2 points (E. W. Cheney, Introduction to Approximation Theory, 1966, ch. 3). On a
reference x_0 < ... < x_(q+1) the levelled error is

    h = sum_i (-1)^i |lambda_i| / sum_i |lambda_i| / w_i,
    |lambda_i| = 1 / (x_i prod_j |x_i**2 - x_j**2|).

The points need not include the ends, and the zeros of p' are not the next ones. So the exchange
looks for the largest weighted error between any two changes of its sign: on a grid, and between its
points by golden sections. The old reference has q + 2 such places; if there are more, the smallest
are left out, so that signs alternate. No weighted error of the new reference is below h, and one is
the largest of all: so h increases.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from polarlib._schedules.images import multiple_precision, odd_image, odd_value
from polarlib._schedules.schedule import Schedule
from polarlib.arrays.checks import count, function, shown
from polarlib.design.doubles import (
    ROUNDING_SHARE,
    ROUNDING_UNITS,
    BeyondDoublesError,
    image_of_rounded,
    lifted,
)
from polarlib.design.remez import (
    DIGITS,
    EXCHANGES,
    MOST_DIGITS,
    best,
    chebyshev,
    check_degree,
    check_interval,
    check_range,
    in_x,
    interpolate,
    working_digits,
)

# Points of each grid: dense at the ends in x**2, as extrema are for a smooth weight, and of equal
# quotients. Least number of points, and number per extremum.
GRID, GRID_EACH = 1000, 20
# Golden sections: the extremum is found to 1e-8 of the distance of points, and its value to the
# square of that.
SECTIONS = 40
GOLDEN = (math.sqrt(5) - 1) / 2
# Relative excess of the largest weighted error over the level at which to stop; and if the level no
# longer increases, for the rounding of the weight.
TOLERANCE, ROUNDING = 1e-12, 1e-7

Weight = Callable[[np.ndarray], Any]


def minimax(
    degree: int,
    lower: float,
    upper: float = 1.0,
    *,
    digits: int | None = None,
    weight: Weight | None = None,
) -> Schedule:
    """Design the best odd polynomial on an interval, as a schedule of one step.

    Parameters
    ----------
    degree : int
        Odd, at least 3.
    lower, upper : float
        The interval, ``0 < lower < upper``.
    digits : int, optional
        Decimal digits of the computation, before the coefficients are rounded to doubles;
        :func:`best` returns them unrounded.
    weight : callable, optional
        Weight w of the error, positive and continuous on the interval: ``max w(x) |1 - p(x)|`` is
        minimised. It is called with float64 arrays of points of shape (n,) and returns n numbers,
        or one. ``lambda x: 1 / x`` weights the error relative to x.

    Returns
    -------
    Schedule
        Its `error` is not weighted; the weighted error is given in its `source`.

    Raises
    ------
    ValueError
        For an even degree, a degree below 3, an invalid interval; for a weight that is not positive
        and finite at every point, or has another shape; for a weight with which the values of the
        best polynomial leave (0, 2) on the interval. For degrees 'beyond double coefficients', if
        rounding them adds more than max(5 % of the least error, 2^-50) to the error at some x; with
        a weight the least error at x is the least weighted error over w(x).
    TypeError
        If `weight` is not a function of an array.

    Notes
    -----
    Without a weight :func:`best` is used, with one an exchange on a grid of at least 1000 points in
    x^2 and in log x each, refined between its points (docstring of the module). Features of the
    weight that are narrower than the distance of points may be missed.

    Examples
    --------
    >>> s = minimax(3, 0.1)
    >>> round(s.error(), 12)
    0.607230127271

    The error relative to x, and an error that counts twice as much at 1 as at 0:

    >>> s = minimax(5, 0.3, weight=lambda x: 1 / x)
    >>> [f"{(s(x) - 1) / x:.6f}" for x in (0.3, 1.0)], f"{s.error():.4f}"
    (['-0.225662', '0.225662'], '0.2257')
    >>> s = minimax(5, 0.1, weight=lambda x: 1 + x)
    >>> [f"{(1 + x) * (s(x) - 1):.6f}" for x in (0.1, 1.0)]
    ['-0.556856', '0.556856']
    """
    degree, (lower, upper) = check_degree(degree), check_interval(lower, upper)
    name, source = f"minimax of degree {degree}", f"best odd polynomial of degree {degree}"
    if weight is None:
        b = best(degree, lower, upper, digits=digits)
        step, _ = lifted(tuple(map(float, b.coefficients)), lower, upper)
        image_of_rounded(step, (b.complement, 2 - b.complement), lower, upper)
        source = f"{source} on [{lower}, {upper}]"
    else:
        weight = function("weight", weight, "a function of an array of points")
        digits = DIGITS if digits is None else count("digits", digits, most=MOST_DIGITS)
        check_range(degree, upper)
        step, error = _weighted(degree, lower, upper, weight, digits)
        name = f"weighted {name}"
        source = f"{source} on [{lower}, {upper}] for a weight w: max w |1 - p| = {error:.12g}"
    try:
        return Schedule(steps=(step,), lower=lower, upper=upper, name=name, source=source)
    except ValueError:
        if weight is None:
            raise
        least, most = odd_image([step], lower, upper)
        raise ValueError(
            f"the best polynomial of degree {degree} on [{lower:g}, {upper:g}] for this weight has "
            f"values from {least:.4g} to {most:.4g}, outside (0, 2); use a less uneven weight, a "
            "higher degree or a shorter interval"
        ) from None


class _Point(NamedTuple):
    """A point x of [low, 1], its place t in [-1, 1] by x**2, and the weight there."""

    x: Any
    t: Any
    weight: Any


class _Points:
    """Points of the interval and their weights, in multiple precision."""

    def __init__(self, lower: float, upper: float, weight: Weight, digits: int) -> None:
        self.ends, self.weight = (lower, upper), weight
        self.number = multiple_precision(digits).mpf
        self.root = multiple_precision(digits).sqrt
        self.low = self.number(lower) / upper
        self.middle, self.half = (1 + self.low**2) / 2, (1 - self.low**2) / 2

    def at(self, x: Sequence[Any]) -> list[_Point]:
        """Return points x of [low, 1] with the weight at the nearest doubles."""
        lower, upper = self.ends
        nearest = np.clip([float(v) * upper for v in x], lower, upper)
        w = _values(self.weight, nearest)
        return [
            _Point(v, (v * v - self.middle) / self.half, self.number(float(m)))
            for v, m in zip(x, w, strict=True)
        ]

    def by_square(self, t: Sequence[float]) -> list[Any]:
        """Return numbers x of [low, 1] whose squares have the places t in [-1, 1]."""
        inner = [self.root(self.middle + self.half * v) for v in t[1:-1]]
        return [self.low, *inner, self.number(1)]


def _values(weight: Weight, x: np.ndarray) -> np.ndarray:
    """Return the checked weights at points."""
    try:
        given = weight(x.copy())
    except (TypeError, ValueError) as error:
        raise TypeError(
            "weight must take an array of float64 and return one of its shape; called with "
            f"{shown(x)} it raised {type(error).__name__}: {error}"
        ) from error
    try:
        weights = np.asarray(given)
        real = weights.dtype.kind in "fiu"
    except Exception:  # raised by an object's own conversion
        real = False
    if not real or weights.shape not in ((), x.shape):
        raise ValueError(
            f"weight must return an array of real numbers of shape {x.shape} for points of that "
            f"shape, got {shown(given)}"
        )
    w = np.broadcast_to(weights.astype(float), x.shape)
    wrong = ~((w > 0) & (w < math.inf))
    if wrong.any():
        k = int(np.argmax(wrong))
        raise ValueError(
            f"weight must be positive and finite on [{x.min():g}, {x.max():g}], got {w[k]:g} at "
            f"x = {x[k]:.17g}"
        )
    return w


def _grid(q: int, low: float) -> tuple[list[float], list[float]]:
    """Return places by x**2, and points of equal quotients if the interval is long."""
    n = max(GRID, GRID_EACH * (q + 2))
    t = (-np.cos(np.linspace(0, np.pi, n))).tolist()
    return t, (np.geomspace(low, 1, n)[1:-1].tolist() if low < 0.5 else [])


def _weighted(
    degree: int, lower: float, upper: float, weight: Weight, digits: int
) -> tuple[tuple[float, ...], float]:
    """Return coefficients rounded to doubles, and their weighted error."""
    q, low = degree // 2, lower / upper
    t, quotients = _grid(q, low)
    rough = _Points(lower, upper, weight, DIGITS)
    w = [float(p.weight) for p in rough.at(rough.by_square(t))]
    spread = math.log10(max(w)) - math.log10(min(w))
    points = _Points(lower, upper, weight, math.ceil(working_digits(q, low, digits) + spread))
    grid = points.at(points.by_square(t) + [points.number(x) for x in quotients])
    grid.sort(key=lambda p: p.x)
    reference = points.at(points.by_square(chebyshev(q)))
    before = points.number(0)
    for _ in range(EXCHANGES):
        g, level = _levelled(reference)
        if level < before * (1 - ROUNDING):  # it increases for one weight
            break
        reference, worst = _exchanged(q, g, points, grid, reference)
        excess = float((worst - level) / level)
        # An error of the points changes the level in second order only.
        if excess < TOLERANCE or (excess < ROUNDING and level <= before * (1 + TOLERANCE)):
            g, level = _levelled(reference)
            step = tuple(
                float(c / points.number(upper) ** (2 * i + 1))
                for i, c in enumerate(in_x(g, points.low, 2))
            )
            return step, _of_rounded(step, [*grid, *reference], points, level)
        before = level
    raise ValueError(
        f"weight must be continuous, and the same in every call: for {shown(weight)} the exchange "
        f"of degree {degree} on [{lower:g}, {upper:g}] did not converge"
    )


def _levelled(reference: Sequence[_Point]) -> tuple[list[Any], Any]:
    """Return the coefficients of p(x) / x in powers of t, and the level, on a reference."""
    even = odd = total = 0 * reference[0].x
    for i, p in enumerate(reference):
        product = p.x
        for j, r in enumerate(reference):
            if i != j:
                product = product * abs(p.t - r.t)
        even, odd = (even + 1 / product, odd) if i % 2 == 0 else (even, odd + 1 / product)
        total = total + 1 / (product * p.weight)
    level = (even - odd) / total
    values = [(1 - (-1) ** i * level / p.weight) / p.x for i, p in enumerate(reference)]
    return interpolate([p.t for p in reference[1:]], values[1:]), level


def _error(g: Sequence[Any], p: _Point) -> Any:
    """Return the weighted error with its sign."""
    value = g[-1]
    for c in reversed(g[:-1]):
        value = value * p.t + c
    return p.weight * (1 - p.x * value)


def _exchanged(
    q: int, g: Sequence[Any], points: _Points, grid: Sequence[_Point], reference: list[_Point]
) -> tuple[list[_Point], Any]:
    """Return the next reference, and the largest weighted error."""
    # The points of the reference are among those at which the error is evaluated.
    every = list(grid)
    for p in reference:
        k = bisect.bisect_left(every, p.x, key=lambda p: p.x)
        if k == len(every) or every[k].x != p.x:
            every.insert(k, p)
    errors = [_error(g, p) for p in every]
    picked: list[int] = []  # the largest error of each sign run
    for k, e in enumerate(errors):
        if picked and (errors[picked[-1]] > 0) == (e > 0):
            if abs(e) > abs(errors[picked[-1]]):
                picked[-1] = k
        else:
            picked.append(k)
    brackets = [(every[max(k - 1, 0)].x, every[min(k + 1, len(every) - 1)].x) for k in picked]
    extrema = _refined(g, points, brackets, [every[k] for k in picked], [errors[k] for k in picked])
    while len(extrema) > q + 2:
        k = min(range(len(extrema)), key=lambda k: abs(extrema[k][1]))
        if len(extrema) == q + 3 or k in (0, len(extrema) - 1):
            del extrema[0 if abs(extrema[0][1]) < abs(extrema[-1][1]) else -1]
        else:  # its neighbours have one sign
            del extrema[k], extrema[k - 1 if abs(extrema[k - 1][1]) < abs(extrema[k][1]) else k]
    return [p for p, _ in extrema], max(abs(e) for _, e in extrema)


def _refined(
    g: Sequence[Any],
    points: _Points,
    brackets: Sequence[tuple[Any, Any]],
    starts: Sequence[_Point],
    errors: Sequence[Any],
) -> list[tuple[_Point, Any]]:
    """Find the largest errors between neighbours on the grid, all at once, by golden sections."""
    best_of = list(zip(starts, errors, strict=True))

    def look(x: Sequence[Any]) -> list[Any]:
        found = []
        for k, p in enumerate(points.at(x)):
            e = _error(g, p)
            # The errors of a run have one sign, and those beyond its end are no maxima.
            size = e if errors[k] > 0 else -e
            if size > abs(best_of[k][1]):
                best_of[k] = p, e
            found.append(size)
        return found

    a, b = [list(ends) for ends in zip(*brackets, strict=True)]
    left = [d - GOLDEN * (d - c) for c, d in zip(a, b, strict=True)]
    right = [c + GOLDEN * (d - c) for c, d in zip(a, b, strict=True)]
    at_left, at_right = look(left), look(right)
    for _ in range(SECTIONS):
        moved = []
        for k in range(len(a)):
            if at_left[k] > at_right[k]:
                b[k], right[k], at_right[k] = right[k], left[k], at_left[k]
                left[k] = b[k] - GOLDEN * (b[k] - a[k])
                moved.append(left[k])
            else:
                a[k], left[k], at_left[k] = left[k], right[k], at_right[k]
                right[k] = a[k] + GOLDEN * (b[k] - a[k])
                moved.append(right[k])
        for k, size in enumerate(look(moved)):
            if moved[k] is left[k]:
                at_left[k] = size
            else:
                at_right[k] = size
    return best_of


def _of_rounded(
    step: tuple[float, ...], every: Sequence[_Point], points: _Points, level: Any
) -> float:
    """Return the weighted error of rounded coefficients; raise if doubles do not hold them."""
    exact = [points.number(c) for c in step]
    worst, upper = level, points.ends[1]
    for p in every:
        error = abs(1 - odd_value(exact, p.x * upper))
        worst = max(worst, p.weight * error)
        ideal = level / p.weight
        if error - ideal > max(ROUNDING_SHARE * ideal, ROUNDING_UNITS):
            raise BeyondDoublesError(
                f"degree {2 * len(step) - 1} on [{points.ends[0]:g}, {upper:g}] is beyond double "
                f"coefficients: rounded, its error at {float(p.x) * upper:.4g} is "
                f"{float(error):.3g}, that of the best step {float(ideal):.3g}; use a lower degree"
            )
    return float(worst)
