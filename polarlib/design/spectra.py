"""Spectra of normalised matrices as nodes and weights: densities, or measured singular values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from polarlib._schedules.images import odd_value
from polarlib._schedules.schedule import Schedule
from polarlib.arrays.checks import MOST_ROWS, choice, count, instance, number, short, shown
from polarlib.arrays.settings import ignore_float_errors
from polarlib.files.tables import html_table

# Quadrature of densities: number of panels and of Gauss points in each. The mean error of five
# degree-5 steps is accurate to a thousandth; |1 - s| has a kink at each of its two hundred zeros.
PANELS, POINTS = 256, 4
# Rounding of a norm in single precision.
ROUNDED_UP = 1e-6
# Densities are integrated from here on, and lower ends are searched for.
SMALLEST = 1e-12
# Measured singular values: what the search costs grows with their number.
MOST_VALUES = 2**17
# Ends of the three parts in which a density of any form is integrated: the first two in the
# logarithm, the last as it is.
BENT = (1e-2, 0.1)


class Spectrum(NamedTuple):
    """Singular values of normalised matrices, as nodes and weights.

    Attributes
    ----------
    values : array, shape (k,)
        Nodes in (0, 1].
    weights : array, shape (k,)
        Their weights, which sum to 1.
    normalisation : str
        Norm by which the matrix is divided: the normalisation of a schedule tuned for it.
    name : str
        Name of the spectrum.
    """

    values: Any
    weights: Any
    normalisation: str
    name: str

    def _repr_html_(self) -> str:
        x, weights = np.asarray(self.values), np.asarray(self.weights)
        rows = {
            "values": f"{x.size} in [{x.min():.6g}, {x.max():.6g}]" if x.size else "none",
            "mean": float(weights @ x),
            "normalisation": self.normalisation,
        }
        return html_table(f"Spectrum: {self.name}", rows)


def _panels(lower: float, upper: float, panels: int = PANELS) -> tuple[Any, Any]:
    """Return nodes and weights of Gauss's rule on equal panels, ascending."""
    nodes, weights = np.polynomial.legendre.leggauss(POINTS)
    ends = np.linspace(lower, upper, panels + 1)
    half, middle = np.diff(ends) / 2, (ends[1:] + ends[:-1]) / 2
    return (middle[:, None] + half[:, None] * nodes).ravel(), (half[:, None] * weights).ravel()


def marchenko_pastur(m: int, n: int, *, normalisation: str = "frobenius") -> Spectrum:
    """Return the spectrum of large matrices with independent entries.

    Parameters
    ----------
    m, n : int
        Shape of the matrices.
    normalisation : {"frobenius", "spectral"}, optional
        Norm by which they are divided.

    Returns
    -------
    Spectrum
        The limit for large matrices of this aspect ratio; only the Frobenius norm depends on their
        size. There are min(m, n) singular values.

    Raises
    ------
    ValueError
        For an empty shape or another normalisation.

    Notes
    -----
    V. A. Marchenko and L. A. Pastur, Math. USSR Sb. 1 (1967) 457-483. Singular values lie between
    ``|sqrt(m) - sqrt(n)|`` and ``sqrt(m) + sqrt(n)`` times the standard deviation of an entry.

    Examples
    --------
    >>> s = marchenko_pastur(300, 100)
    >>> round(float(s.weights @ s.values**2) * 100, 12)
    1.0
    """
    m, n = count("m", m, most=MOST_ROWS), count("n", n, most=MOST_ROWS)
    normalisation = choice("normalisation", normalisation, ("frobenius", "spectral"))
    # The density sqrt((b - y) (y - a)) / y of the squares y, a <= y <= b, is smooth in the angle.
    angle, weights = _panels(0.0, math.pi)
    squares = m + n + 2 * math.sqrt(m) * math.sqrt(n) * np.cos(angle)
    weights = weights * np.sin(angle) ** 2 / squares
    norm = math.sqrt(m) + math.sqrt(n) if normalisation == "spectral" else math.sqrt(m * n)
    return Spectrum(
        np.sqrt(squares) / norm,
        weights / weights.sum(),
        normalisation,
        f"Marchenko-Pastur of {m} x {n}",
    )


def power_law(alpha: float, low: float) -> Spectrum:
    """Return singular values with a density proportional to ``x**-alpha`` between `low` and 1.

    Parameters
    ----------
    alpha : float
        The exponent: 0 is uniform, 1 uniform in the logarithm; ``1 + 1/b`` is that of singular
        values ``i**-b``, i = 1, 2, ...
    low : float
        The smallest one, between 0 and 1.

    Returns
    -------
    Spectrum
        For matrices of spectral norm 1.

    Raises
    ------
    ValueError
        For an exponent that is not finite or `low` outside (0, 1).

    Examples
    --------
    >>> s = power_law(0.0, 1e-6)
    >>> round(float(s.weights @ s.values), 4)
    0.5
    """
    exponent = number("alpha", alpha, -100, 100)
    low = number("low", low, 0, 1, ends="()")
    start = math.log(low)
    t, weights = _panels(start, 0.0)
    # Relative to the end where the density is largest: no overflow.
    peak = max((1 - exponent) * start, 0.0)
    weights = weights * np.exp((1 - exponent) * t - peak)
    return Spectrum(
        np.exp(t),
        weights / weights.sum(),
        "spectral",
        f"power law of exponent {exponent:g} down to {low:g}",
    )


def log_uniform(low: float) -> Spectrum:
    """Return singular values that are uniform in their logarithm between `low` and 1.

    Parameters
    ----------
    low : float
        The smallest one, between 0 and 1.

    Returns
    -------
    Spectrum
        For matrices of spectral norm 1.

    Raises
    ------
    ValueError
        For `low` outside (0, 1).

    Examples
    --------
    >>> s = log_uniform(1e-4)
    >>> round(float(s.weights @ (s.values < 1e-2)), 6)
    0.5
    """
    s = power_law(1.0, low)
    return s._replace(name=f"log-uniform down to {float(low):g}")


def _integrated(density: Callable[[float], Any]) -> Spectrum:
    """Return nodes and weights of a density on (0, 1]."""
    t, weights = _panels(math.log(SMALLEST), math.log(BENT[0]), PANELS // 2)
    s, more = _panels(math.log(BENT[0]), math.log(BENT[1]), PANELS // 2)
    x, most = _panels(BENT[1], 1.0, PANELS // 2)
    weights = np.concatenate([weights * np.exp(t), more * np.exp(s), most])
    x = np.concatenate([np.exp(t), np.exp(s), x])
    try:
        heights = np.array([float(density(float(v))) for v in x])
    except (TypeError, ValueError):
        raise ValueError(
            "density must be a function of a number in (0, 1] that returns a number; this one "
            "raised an error or returned another type"
        ) from None
    bad = ~(np.isfinite(heights) & (heights >= 0))
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"a density must be finite and not negative on (0, 1], got {heights[at]} at {x[at]:.4g}"
        )
    weights = weights * heights
    if not 0 < weights.sum() < math.inf:
        raise ValueError("the density is zero on all of (0, 1], or its integral overflows")
    weights = weights / weights.sum()
    seen = weights > 0
    return Spectrum(x[seen], weights[seen], "spectral", "a density")


def _measured(values: Any, normalisation: str | None) -> Spectrum:
    """Return the spectrum of measured singular values."""
    values = short("the list of singular values", values, MOST_VALUES)
    try:
        x = np.asarray(values)
    except (TypeError, ValueError):
        x = np.array(None)
    if x.ndim != 1 or x.dtype.kind not in "fiu":
        raise ValueError(
            "singular values must be a list of real numbers, got "
            f"{'shape ' + str(x.shape) if x.ndim != 1 else 'dtype ' + str(x.dtype)}; "
            "compute them with np.linalg.svd(a, compute_uv=False)"
        )
    unit = float(np.finfo(x.dtype).eps) if x.dtype.kind == "f" else 2.0**-52
    x = x.astype(np.float64)
    bad = ~(np.isfinite(x) & (x >= 0))
    if bad.any():
        raise ValueError(
            f"singular values must be finite and not negative, got {x[bad][0]} at index "
            f"{int(np.flatnonzero(bad)[0])}"
        )
    if not x.any():
        raise ValueError(
            f"at least one singular value must be above zero, got none of {len(x)}; give others"
        )
    largest = float(x.max())
    x = np.sort(x[x > largest * len(x) * unit])
    frobenius = float(np.linalg.norm(x / largest))  # in units of the largest
    norm = frobenius * largest
    if normalisation is None and largest <= 1 + ROUNDED_UP and norm >= 1 - ROUNDED_UP:
        normalisation = "frobenius" if norm <= 1 + ROUNDED_UP else "spectral"
        x = np.minimum(x, 1.0)
    else:
        normalisation = normalisation or "frobenius"
        x = x / largest / (frobenius if normalisation == "frobenius" else 1.0)
    name = f"{len(x)} singular values"
    return Spectrum(x, np.full(len(x), 1 / len(x)), normalisation, name)


def _checked(s: Spectrum) -> Spectrum:
    """Check a spectrum, which may have been built by hand."""
    try:
        x, weights = np.asarray(s.values, dtype=float), np.asarray(s.weights, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(
            f"the spectrum {shown(s.name)} must have values and weights as lists of numbers, got "
            f"{shown(s.values)} and {shown(s.weights)}"
        ) from None
    if not (
        x.ndim == 1
        and x.shape == weights.shape
        and x.size
        and np.all((x > 0) & (x <= 1 + ROUNDED_UP))
        and np.all(weights >= 0)
        and abs(weights.sum() - 1) <= ROUNDED_UP
    ):
        raise ValueError(
            f"the spectrum {shown(s.name)} must have values in (0, 1] and as many weights, none "
            f"negative, that sum to 1, got shapes {x.shape} and {weights.shape}, a sum "
            f"of {weights.sum():g} and values {shown(x)}"
        )
    return s


@ignore_float_errors
def spectrum(density_or_singular_values: Any, *, normalisation: str | None = None) -> Spectrum:
    """Return the spectrum of measured singular values, or of any density.

    Parameters
    ----------
    density_or_singular_values : array, callable or Spectrum
        Measured singular values, shape (k,); a function of a number in (0, 1] that returns the
        density there, up to a factor; or a spectrum, which is returned. Measured values that are
        zero or below their rounding (their number times the roundoff of their dtype, times the
        largest) are left out, since every schedule maps zero to zero.
    normalisation : {None, "frobenius", "spectral"}, optional
        Norm by which measured singular values are divided. By default values that can be those of a
        normalised matrix (none above 1, a sum of squares of at least 1) are unchanged, and others
        are divided by their Frobenius norm. A density is unchanged, and "spectral" by default.

    Returns
    -------
    Spectrum
        Nodes with weights that sum to 1.

    Raises
    ------
    TypeError
        For a schedule or a name.
    ValueError
        For singular values or densities that are empty, zero, negative or not finite, and a
        normalisation that is unknown or not that of the spectrum given.

    Examples
    --------
    >>> s = spectrum([3.0, 4.0, 0.0])
    >>> s.values.tolist(), s.normalisation
    ([0.6, 0.8], 'frobenius')
    """
    given = density_or_singular_values
    normalisation = choice("normalisation", normalisation, (None, "frobenius", "spectral"))
    if isinstance(given, (Schedule, str)):
        raise TypeError(
            "a spectrum must be singular values, a density or the result of marchenko_pastur, "
            f"log_uniform or power_law, got {shown(given)}"
        )
    if isinstance(given, Spectrum):
        if normalisation not in (None, given.normalisation):
            raise ValueError(
                f"normalisation must be {given.normalisation!r}, that of the spectrum, or None, "
                f"got {normalisation!r}"
            )
        return _checked(given)
    if callable(given):
        found = _integrated(given)
        return found if normalisation is None else found._replace(normalisation=normalisation)
    return _measured(given, normalisation)


@ignore_float_errors
def mean_error(schedule: Schedule, density_or_singular_values: Any) -> float:
    """Return the mean of ``|1 - s(x / input_safety)|`` over a spectrum.

    Parameters
    ----------
    schedule : Schedule
        The schedule s; its input division is applied.
    density_or_singular_values : array, callable or Spectrum
        As :func:`spectrum` takes it.

    Returns
    -------
    float
        Multiplied by the number of singular values, it is the distance from the polar factor in the
        nuclear norm.

    Raises
    ------
    TypeError
        If `schedule` is not a Schedule.
    ValueError
        For an invalid spectrum.

    Examples
    --------
    >>> from polarlib.design import greedy
    >>> s = greedy(1e-3, [5] * 5)
    >>> round(mean_error(s, log_uniform(1e-3)), 3)
    0.072
    """
    instance("schedule", schedule, Schedule, "a Schedule")
    s = spectrum(density_or_singular_values)
    return mean_deviation(schedule.steps, s.values / schedule.input_divisor, s.weights)


def mean_deviation(steps: Sequence[Sequence[float]], x: Any, weights: Any) -> float:
    """Return ``sum w |1 - s(x)|`` of a composition."""
    for step in steps:
        x = odd_value(step, x)
    return float(weights @ abs(1 - x))
