"""Certificates: proven bounds on the worst error of a composition, for its coefficients as stored.

A double is an exact binary fraction, so ``max |target(x) - s(x)|`` on an interval of doubles is one
real number. :func:`certify` encloses it between two doubles, by the algorithm in `enclosures`.
:func:`certify_in_format` includes the rounding of a number format, by that in `in_format`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

from polarlib._schedules.targets import parse_target
from polarlib.arrays.formats import Format, format_of, round_number
from polarlib.files.tables import html_table

# Initial and largest number of bits: 128 suffice for most, 256 for errors far below 1e-16. Chosen
# by experiment.
BITS, MOST_BITS = 128, 4096


@dataclass(frozen=True, repr=False)
class Certificate:
    """Proven bounds on the worst error of a composition on an interval.

    Attributes
    ----------
    lower, upper : float
        ``lower <= max |target(x) - s(x)| <= upper``; infinity above the largest double.
    complement : tuple of float
        Lower and upper bound of 1 minus that error; for the target 1 without cancellation. It
        distinguishes schedules whose errors are near 1.
    image : tuple of tuples of float
        Bounds of the smallest and bounds of the largest value of s on the interval.
    kind : {"exact", "scalar model", "matrix"}
        Arithmetic of the values of s: exact; with rounding by the scalar model, which is not a
        proof for matrices; or the singular values that the iteration computes in a number format
        from any matrix of a shape. For "matrix" the error is bounded only from above (`lower` is
        0), and both ends of the image by the same two numbers.
    format : str or None
        Number format whose rounding is included.
    share : float or None
        For the kind "scalar model": size of every rounding, relative to the unit roundoff.
    shape : tuple of int or None
        For the kind "matrix": shape of the matrices.

    Examples
    --------
    >>> Certificate(0.25, 0.5, (0.5, 0.75), ((0.5, 0.75), (1.0, 1.0)))
    Certificate(0.25 <= error <= 0.5)
    """

    lower: float
    upper: float
    complement: tuple[float, float]
    image: tuple[tuple[float, float], tuple[float, float]]
    kind: str = "exact"
    format: str | None = None
    share: float | None = None
    shape: tuple[int, int] | None = None

    @property
    def width(self) -> float:
        """Uncertainty of the error, ``upper - lower``; 0 if both are infinite."""
        return self.upper - self.lower if self.lower < math.inf else 0.0

    @property
    def conditions(self) -> str:
        """Number format and model of the bounds; empty for exact arithmetic."""
        if self.kind == "exact":
            return ""
        if self.shape:
            return f"{self.format}, {self.shape[0]} x {self.shape[1]}"
        return f"{self.format}, {self.kind}, share {self.share:g}"

    def __repr__(self) -> str:
        where = f"; {self.conditions}" if self.conditions else ""
        return f"Certificate({self.lower!r} <= error <= {self.upper!r}{where})"

    def _repr_html_(self) -> str:
        (lowest, low), (high, highest) = self.image
        return html_table(
            "Certificate",
            {
                "worst error": f"{self.lower:.6g} to {self.upper:.6g}",
                "1 - error": "{:.6g} to {:.6g}".format(*self.complement),
                "smallest value": f"{lowest:.6g} to {low:.6g}",
                "largest value": f"{high:.6g} to {highest:.6g}",
                "arithmetic": self.conditions or self.kind,
            },
        )


def certify(
    steps: Sequence[Sequence[float]],
    lower: float,
    upper: float,
    *,
    stride: int = 2,
    target: str = "polar",
    divisor: float = 1.0,
) -> Certificate:
    """Enclose the worst error of a composition: ``max |target(x) - s(x / divisor)|``.

    Parameters
    ----------
    steps : sequence of sequences of float
        Coefficients, first step first: ``(c0, c1, ...)`` is ``sum c_i x**(1 + stride i)``.
    lower, upper : float
        The interval, ``lower <= upper``, finite; from 0 up for targets other than "polar".
    stride : int, optional
        Distance of the powers; 2 is the odd polynomials.
    target : str, optional
        Function that s approximates, in the syntax of `parse_target`: "polar" is 1.
    divisor : float, optional
        Divisor of x in [lower, upper] before the first step.

    Returns
    -------
    Certificate
        For "polar" the bounds are neighbouring doubles, or have one double between them. For other
        targets their relative distance is 4e-15, or more if that takes too long. Both are infinite
        if the error is, for a negative power at 0.

    Raises
    ------
    ValueError
        For an empty list, steps that are not finite numbers, or an invalid interval, stride, target
        or divisor.

    Notes
    -----
    The docstring of `enclosures` has the algorithm and its proof.

    Examples
    --------
    The worst error of ``1.5 x - 0.5 x**3`` on [0.5, 1] is 1 - 0.6875, at the lower end:

    >>> certify([(1.5, -0.5)], 0.5, 1.0)
    Certificate(0.3125 <= error <= 0.3125)
    >>> c = certify([(0.5,)], 0.0, 2.0, target="clip")
    >>> c.lower <= 0.5 <= c.upper
    True
    """
    try:
        exact = [tuple(float(c) for c in step) for step in steps]
        l, u, divisor = float(lower), float(upper), float(divisor)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            "certify needs steps as lists of coefficients, a divisor and an interval of numbers, "
            f"got steps={steps!r}, lower={lower!r}, upper={upper!r}, divisor={divisor!r}"
        ) from None
    if not exact or not all(step and all(map(math.isfinite, step)) for step in exact):
        raise ValueError(
            f"certify needs at least one step, each of finite coefficients, got {exact!r}"
        )
    if isinstance(stride, bool) or not hasattr(stride, "__index__") or stride < 1:
        raise ValueError(f"stride must be an integer of at least 1, got {stride!r}")
    stride = operator.index(stride)
    kind, parameter = parse_target(target)
    if not -math.inf < l <= u < math.inf or (kind != "polar" and l < 0):
        at_least = "" if kind == "polar" else f" and, for the target {target!r}, 0 <= lower"
        raise ValueError(
            f"certify needs finite lower <= upper{at_least}, got [{lower!r}, {upper!r}]"
        )
    if not 0 < divisor < math.inf:
        raise ValueError(f"divisor must be a positive finite number, got {divisor!r}")
    from flint import arb  # here, as its import is slow

    from polarlib._schedules import enclosures

    bits = BITS
    while True:
        with enclosures.working_precision(bits):
            lo, hi = enclosures.image(exact, arb(l) / divisor, arb(u) / divisor, stride)
            ends = enclosures.floats(lo), enclosures.floats(hi)
            error = enclosures.floats((1 - lo).max(hi - 1))
            complement = enclosures.floats(lo.min(2 - hi))
        wanted = (*ends, error, complement) if kind == "polar" else ends
        if bits >= MOST_BITS or all(_is_narrow(*v) for v in wanted):
            break
        bits *= 2
    if kind == "polar":
        low, high = complement
        return Certificate(max(0.0, error[0]), error[1], (low, min(1.0, high)), ends)
    # An error of the logarithm of a power is multiplied by the exponent.
    with enclosures.working_precision(bits + max(0, math.frexp(parameter)[1])):
        least, most = enclosures.worst_error(exact, l, u, stride, kind, parameter, divisor)
        rest = [enclosures.floats(1 - arb(v)) for v in (most, least)]
    if least == math.inf:
        return Certificate(least, most, (-math.inf, -math.inf), ends)
    return Certificate(least, most, (rest[0][0], rest[1][1]), ends)


def certify_in_format(
    steps: Sequence[Sequence[float]],
    lower: float,
    upper: float,
    *,
    divisor: float,
    precision: Format,
    share: float,
    shape: tuple[int, int] | None,
) -> Certificate:
    """Enclose the worst error with the rounding of a number format: ``max |1 - s(x / divisor)|``.

    Parameters
    ----------
    steps, lower, upper, divisor
        As :func:`certify` takes them, 0 < lower. Coefficients are rounded to the format that
        products accumulate in.
    precision : Format
        The format.
    share : float
        Part of the largest rounding error, of the scalar model.
    shape : tuple of two int or None
        Shape of matrices, for rigorous bounds; None for the scalar model.

    Returns
    -------
    Certificate

    Raises
    ------
    ValueError
        Names the first step after which the lower bound of singular values is not positive.

    Examples
    --------
    >>> from polarlib.arrays.formats import format_of
    >>> half = format_of("float16")
    >>> certify_in_format(
    ...     [(1.5, -0.5)], 0.5, 1.0, divisor=1.0, precision=half, share=1.0, shape=None
    ... ).upper > 0.3125
    True
    """
    from polarlib._schedules import enclosures, in_format

    carrier = format_of(precision.carrier)
    rounded = [tuple(round_number(c, carrier) for c in step) for step in steps]
    bits = BITS
    while True:
        try:
            with enclosures.working_precision(bits):
                interval = rounded, lower, upper, divisor, precision
                if shape is None:
                    lo, hi = in_format.in_scalar_model(*interval, share)
                else:
                    lo, hi = in_format.in_matrices(*interval, shape)
                ends = enclosures.floats(lo), enclosures.floats(hi)
                error = enclosures.floats((1 - lo).max(hi - 1))
                complement = enclosures.floats(lo.min(2 - hi))
        except in_format.NotPositiveError as failure:
            if failure.bound <= 0 or bits >= MOST_BITS:
                bound, _ = enclosures.floats(failure.bound)
                remedy = "a wider format" if shape is None else "a wider format or a smaller shape"
                raise ValueError(
                    f"rounding to {precision.name} can take the smallest singular value to 0 in "
                    f"step {failure.step} (lower bound {bound:.3g}); use a larger lower end, "
                    f"{remedy}"
                ) from None
        else:
            if bits >= MOST_BITS or all(map(_is_narrow, *zip(*ends, strict=True))):
                break
        bits *= 2
    if shape is None:
        kind, share_of, low = "scalar model", share, max(0.0, error[0])
        rest = complement[0], min(1.0, complement[1])
    else:
        kind, share_of, low = "matrix", None, 0.0
        rest, ends = (complement[0], 1.0), ((ends[0][0], ends[1][1]),) * 2
    return Certificate(low, error[1], rest, ends, kind, precision.name, share_of, shape)


def _is_narrow(lo: float, hi: float) -> bool:
    """Whether two doubles have at most one double between them."""
    return math.nextafter(math.nextafter(lo, math.inf), math.inf) >= hi
