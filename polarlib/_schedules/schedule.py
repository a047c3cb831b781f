"""Schedule: an immutable composition of odd steps, polynomials or rational functions.

A schedule is data for the engines (:mod:`polarlib.engine`). As a function of one variable it says
what happens to every singular value: if ``A = U diag(sigma) V^H`` then applying the steps to ``A``
gives ``U diag(s(sigma)) V^H`` in exact arithmetic.
"""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np

from polarlib._renamed import warn_renamed
from polarlib._schedules import export
from polarlib._schedules.algebra import Composition
from polarlib._schedules.bounds import enclosed, enclosed_in_format
from polarlib._schedules.certify import Certificate
from polarlib._schedules.images import divergence_limit, divided, odd_value
from polarlib._schedules.products import matmuls
from polarlib._schedules.steps import (
    Rational,
    Step,
    mapped,
    polynomials,
    slope_at_zero,
)
from polarlib._schedules.targets import target_value
from polarlib._schedules.validity import NORMALISATIONS, Normalisation, Repeat, checked_fields
from polarlib.arrays import checks
from polarlib.arrays.formats import Format, format_of, round_number
from polarlib.arrays.settings import ignore_float_errors


@dataclass(frozen=True, repr=False)
class Schedule(Composition):
    """A composition of odd functions that drives singular values to 1.

    Parameters
    ----------
    steps : sequence of steps
        The first is applied first. Polynomials of any odd degree, by their coefficients in
        ascending odd powers: ``(a, b, c)`` is ``a x + b x**3 + c x**5``. Or rational functions
        ``M (x + sum_j a_j x / (x**2 + c_j))`` as ``(M, (a_1, ...), (c_1, ...))``, all numbers
        positive: see :func:`polarlib.design.zolotarev`. Not both.
    lower, upper : float, optional
        The interval that the schedule is meant for, ``0 < lower <= upper``.
    normalisation : Normalisation, optional
        What is done to the input X so that its singular values lie in (0, 1]:
        NORMALISATIONS
        Where X is divided by a norm or a bound, these are interchangeable; where its columns are,
        the problem is another one, and so is the answer. Rational steps need "spectral" or "none".
    input_safety : float, optional
        Further divisor of the normalised input, at least 1; not used where the normalisation is
        "none". 1 for rational steps.
    name, source : str, optional
        Name and origin.
    repeat : {None, "forever", "last"}, optional
        How the list goes on after its end: not at all, from its beginning, or with its last step.
    stride : int, optional
        Difference p of the exponents ``1, 1 + p, 1 + 2 p, ...``; 2 are the odd polynomials, any
        other serves inverse p-th roots (:func:`polarlib.design.inverse_root`).
    target : str, optional
        Function that is approximated on the interval: "polar" (1), "clip" (min(x, 1)), "power(e)"
        (x^e), "smooth_sign(d)" (x / sqrt(x^2 + d^2)). Errors are differences from it. `lower` may
        be 0 for any other than "polar".

    Raises
    ------
    ValueError
        For an empty or non-finite list, a bad interval, an unknown normalisation or target. For
        polynomials with target "polar" also where a step is not positive on the image of the steps
        before it (the output would be an ascent direction), and where the image of
        ``[lower, upper]`` leaves (0, 2).

    Warns
    -----
    ScheduleWarning
        If the steps sorted by slope do much better: they are probably misordered.

    Examples
    --------
    >>> s = Schedule(steps=[(1.5, -0.5)] * 3, lower=0.5)
    >>> s(1.0), s.slope, s.matmuls
    (1.0, 3.375, 6)
    >>> s.image(0.5, 1.0)[1]
    1.0
    >>> halley = Schedule(steps=[(1 / 3, [8 / 3], [1 / 3])], lower=0.5, normalisation="spectral")
    >>> halley(1.0), halley.image()[0] > 0.9
    (1.0, True)
    """

    steps: tuple[Step, ...]
    lower: float = 1e-3
    upper: float = 1.0
    normalisation: Normalisation = "frobenius"
    input_safety: float = 1.0
    name: str = "custom"
    source: str = ""
    repeat: Repeat | None = None
    stride: int = 2
    target: str = "polar"

    def __post_init__(self) -> None:
        for name, value in checked_fields(self._fields()).items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    @property
    def is_rational(self) -> bool:
        """Whether the steps are rational functions; they are all of one kind."""
        return isinstance(self.steps[0], Rational)

    @property
    def input_divisor(self) -> float:
        """Divisor of the normalised input: `input_safety`, or 1 for normalisation "none"."""
        return 1.0 if self.normalisation == "none" else self.input_safety

    def divided(self, lower: float, upper: float, *, extended: bool = True) -> tuple[Any, Any]:
        """Divide the ends of an interval by `input_divisor`: what the first step is applied to.

        Parameters
        ----------
        lower, upper : float
            The interval of singular values of the normalised input.
        extended : bool, optional
            In 40 decimal digits (default) or in double precision.

        Returns
        -------
        lower, upper : number
            mpmath numbers, or floats.
        """
        ends = checks.number("lower", lower), checks.number("upper", upper)
        return divided(*ends, self.input_divisor, extended=checks.flag("extended", extended))

    @ignore_float_errors
    def __call__(self, x: Any) -> Any:
        """Apply the steps to a scalar or, entry by entry, to an array; no input division.

        Parameters
        ----------
        x : number or array
            Singular values of the normalised input.

        Returns
        -------
        number or array
            Singular values of the output.
        """
        x = checks.operand("x", x)
        with np.errstate(over="ignore", invalid="ignore"):  # the result is infinite or NaN
            for step in self.steps:
                x = odd_value(step, x, self.stride)
        return x

    def image(self, lower: float | None = None, upper: float | None = None) -> tuple[float, float]:
        """Return the image of an interval, by interval arithmetic; in 40 digits for rational steps.

        Parameters
        ----------
        lower, upper : float, optional
            The interval of singular values of the normalised input; the schedule's own by default.

        Returns
        -------
        lo, hi : float
            Smallest and largest value of ``s(x / input_safety)`` for x in the interval: of the
            singular values that :func:`polarlib.orthogonalize` returns. Normalisation "none"
            divides by nothing. Right to the last digit or two, for steps of any degree.

        Raises
        ------
        ValueError
            If the interval is empty or not finite.
        """
        (least, _), (_, most) = self._enclosed(lower, upper, "image", "polar").image
        return least, most

    def _enclosed(
        self, lower: float | None, upper: float | None, asked: str, target: str
    ) -> Certificate:
        lower = self.lower if lower is None else lower
        upper = self.upper if upper is None else upper
        return enclosed(
            self.steps, lower, upper, self.stride, target, self.input_divisor, asked=asked
        )

    def error(self, lower: float | None = None) -> float:
        """Return the worst error ``max |1 - s(x / input_safety)|`` on ``[lower, self.upper]``.

        x are the singular values of the normalised input; normalisation "none" divides by nothing.
        For another target than "polar", the worst difference from the target at x. It is the upper
        bound of :meth:`certify`; of rational steps, the error evaluated in 40 digits.

        Parameters
        ----------
        lower : float, optional
            Lower end; the schedule's own by default.

        Returns
        -------
        float
        """
        return self._enclosed(lower, None, "error", self.target).upper

    def certify(
        self,
        lower: float | None = None,
        format: str | None = None,
        *,
        share: float | None = None,
        shape: tuple[int, int] | None = None,
    ) -> Certificate:
        """Return rigorous bounds of the worst error; with `format` those under rounding.

        Parameters
        ----------
        lower : float, optional
            Lower end of the interval; the schedule's own by default.
        format : str, optional
            Number format whose rounding is included, by default none: the bounds are then those of
            exact arithmetic. (With the coefficients rounded, and nothing else:
            ``s.quantize(format).certify()``.)
        share : float, optional
            From 0 to 1, 0.75 by default. Every rounding is taken for a relative change of singular
            values by ``share`` times the unit roundoff, to first order: the model by which
            :func:`polarlib.design.for_precision` designs. 1 is its worst case. No proof for
            matrices, whose roundings have directions of their own; on most they average out.
        shape : tuple of two int, optional
            Instead of `share`: rigorous bounds for every real matrix of this shape whose entries,
            after the division by `input_safety`, are of the format; by the plain form, without its
            normalisation.

        Returns
        -------
        Certificate
            ``lower <= max |target(x) - s(x / input_safety)| <= upper`` on ``[lower, self.upper]``
            (normalisation "none" divides by nothing). With `format`, coefficients are rounded to
            the format that products accumulate in; without `shape` the input may exceed the
            interval by its own rounding.

        Raises
        ------
        ValueError
            For an unknown format, a lower end outside ``(0, self.upper]``, and rational steps. With
            `format`: for other targets than "polar" and other strides than 2, and where the lower
            bound of singular values is not positive after a step, which is named.

        Notes
        -----
        `shape` bounds errors in norms, with u the unit roundoff and n the smaller side: rounding
        moves a matrix by ``u sqrt(n) ||X||_2``, and a product of inner length k by
        ``k 2**-23 || |A| |B| ||`` where it accumulates in single precision. For narrow formats that
        is far beyond what happens, and soon says nothing: it is for float64 and float32, and for 16
        bits where few columns and a large lower end allow it.

        Examples
        --------
        >>> c = Schedule(steps=[(1.5, -0.5)], lower=0.5).certify()
        >>> c.lower <= 0.3125 <= c.upper < 0.3126
        True
        >>> Schedule(steps=[(1.5, -0.5)], lower=0.5).certify(format="bfloat16").upper < 0.32
        True
        """
        polynomials(self, "certify")
        lower = self.lower if lower is None else checks.number("lower", lower)
        if not (lower > 0 or lower == self.lower) or not lower <= self.upper:
            raise ValueError(
                f"schedule {checks.shown(self.name)}: certify needs 0 < lower <= {self.upper}, "
                f"got {lower}"
            )
        if format is None and share is None and shape is None:
            return self._enclosed(lower, None, "certify", self.target)
        return enclosed_in_format(self, lower, format, share, shape)

    @functools.cached_property
    def slope(self) -> float:
        """Slope of s at 0: how much the smallest singular values grow; no input division."""
        return math.prod(map(slope_at_zero, self.steps))

    @functools.cached_property
    def divergence_limit(self) -> float:
        """Smallest x > 1 with ``|s(x)| > 2``: how far rounding may push a singular value.

        x is a singular value after the division by `input_safety`.

        For another target than "polar", the smallest x > upper where ``|s|`` exceeds twice the
        target's largest value on the interval, or 2.
        """
        start, limit = 1.0, 2.0
        if self.target != "polar":
            ends = [target_value(self.target, x) for x in (self.lower or self.upper, self.upper)]
            start, limit = max(1.0, self.upper), 2.0 * max(1.0, *ends)
        return divergence_limit(self.steps, start, limit, self.stride)

    @property
    def matmuls(self) -> int:
        """Matrix products of the plain form: 2 for degree 3, 3 for 5, 4 for 7 and 9, ...

        For another stride than 2, of the coupled form for inverse roots, where Q and R take
        1 + stride products between two steps. For rational steps, of the iteration on one Gram
        matrix in single precision, without the bound of its norm; see `factorisations`.
        """
        return matmuls(self.steps, self.stride)

    @property
    def factorisations(self) -> int:
        """QR or Cholesky factorisations of a matrix iteration: one for each pole of each step."""
        return sum(len(step.poles) for step in self.steps if isinstance(step, Rational))

    def is_safe_in(self, format: str) -> bool:
        """Whether one rounding in a format cannot push a singular value 1 past divergence.

        Parameters
        ----------
        format : str
            Name of the number format.

        Returns
        -------
        bool
            ``divergence_limit * input_divisor >= 1 + unit_roundoff``.

        Raises
        ------
        ValueError
            For an unknown format.

        Examples
        --------
        >>> Schedule(steps=[(1.5, -0.5)], lower=0.5).is_safe_in("bfloat16")
        True
        """
        unit_roundoff = format_of(format).unit_roundoff
        return self.divergence_limit * self.input_divisor >= 1 + unit_roundoff

    def survives(self, precision: Format) -> bool:
        """Former name of :meth:`is_safe_in`, until 0.3; of a Format, not its name."""
        precision = checks.instance("precision", precision, Format, "a Format, of format_of")
        warn_renamed("Schedule.survives", "Schedule.is_safe_in")
        return self.is_safe_in(precision.name)

    def quantize(self, format: str) -> Schedule:
        """Return the schedule with every coefficient rounded to a number format, not redesigned.

        Parameters
        ----------
        format : str
            Name of the number format.

        Returns
        -------
        Schedule
            The error may be larger.

        Raises
        ------
        ValueError
            For an unknown format, a coefficient that overflows in it, and rounded steps that are
            not positive on the interval.

        Examples
        --------
        >>> s = Schedule(steps=[(3.4445, -4.775, 2.0315)], name="jordan").quantize("bfloat16")
        >>> s.steps, s.name
        (((3.4375, -4.78125, 2.03125),), 'jordan, coefficients in bfloat16')
        """
        target = format_of(format)
        note = f", coefficients in {target.name}"
        rounded = (mapped(step, lambda c: round_number(c, target)) for step in self.steps)
        name = self.name.removesuffix(note) + note
        return replace(self, steps=tuple(map(tuple, rounded)), name=name)

    def _fields(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def to_dict(self) -> dict[str, Any]:
        """Return fields and derived values as plain data, ready for JSON.

        Returns
        -------
        dict
            Content of :meth:`to_json`. A step is its coefficients as decimal numbers and as
            hexadecimal strings, nested lists for a rational one; an infinite value is None.

        Examples
        --------
        >>> Schedule(steps=[(1.5, -0.5)], lower=0.5).to_dict()["steps"]
        [{'decimal': [1.5, -0.5], 'hex': ['0x1.8000000000000p+0', '-0x1.0000000000000p-1']}]
        """
        figures = {
            "error": self.error(),
            "image": self.image(),
            "slope": self.slope,
            "divergence_limit": self.divergence_limit,
            "matmuls": self.matmuls,
        }
        return export.document(self._fields(), figures)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the schedule to a JSON file, whole or not at all; it is read back exactly.

        Parameters
        ----------
        path : path-like
            Where to write.

        Raises
        ------
        OSError
            If it cannot be written; `path` is then as it was.
        """
        export.write_json(checks.path("path", path), self.to_dict())

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Self:
        """Read a schedule that :meth:`to_json` wrote.

        The hexadecimal coefficients count; the decimal ones must be the same numbers. The derived
        values, the convention and the version are informative and ignored on reading. Any other
        unknown key is refused: it may be a field without which the schedule is another one.

        Parameters
        ----------
        path : path-like
            The file.

        Returns
        -------
        Schedule

        Raises
        ------
        ValueError
            If the file is not such a document, is of a newer version, lacks a key, or holds what
            :class:`Schedule` refuses; the message names the file and the key or step.
        OSError
            If it cannot be read.
        """
        path = checks.path("path", path)
        values = export.read_json(path, {f.name: f.default for f in fields(cls) if f.init})
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None

    def to_code(self, kind: export.Kind) -> str:
        """Write the coefficients as source code, with a comment that states their convention.

        Parameters
        ----------
        kind : {"python", "c", "triton", "cuda", "latex"}
            - python: a literal that evaluates to ``steps``. The only one for rational steps.
            - c: a C99 header with arrays of doubles, of floats (rounded to nearest) and degrees.
            - triton: a Python module of ``tl.constexpr`` constants.
            - cuda: a header with ``__constant__ constexpr`` arrays of floats and degrees.
            - latex: a table (package booktabs) with all digits of the doubles.

        Returns
        -------
        str
            In the arrays, steps of a lower degree end in zeros. The interval, the normalisation
            and the other fields are in the comment only.

        Raises
        ------
        ValueError
            For an unknown kind, for coefficients beyond float32 in "c" and "cuda", and for
            rational steps in all but "python".

        Examples
        --------
        >>> import ast
        >>> s = Schedule(steps=[(1.875, -1.25, 0.375), (1.5, -0.5)], lower=0.5)
        >>> ast.literal_eval(s.to_code("python")) == s.steps
        True
        """
        return export.code(self._fields(), kind)


# The names stand once, in the table.
_NAMES = "\n        ".join(f'- "{name}": {words}.' for name, words in NORMALISATIONS.items())
Schedule.__doc__ = (Schedule.__doc__ or "").replace("NORMALISATIONS", _NAMES)
