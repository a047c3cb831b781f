"""Schedule: an immutable composition of odd steps, polynomials or rational functions.

A schedule is data for the engines (:mod:`polarlib.engine`). It is a function s of one variable,
which is applied to every singular value: if ``A = U diag(sigma) V^H``, the steps applied to ``A``
give ``U diag(s(sigma)) V^H`` in exact arithmetic.
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
    """A composition of odd functions that maps singular values close to 1.

    Parameters
    ----------
    steps : sequence of steps
        The first is applied first. Polynomials of any odd degree are given by their coefficients
        in ascending odd powers: ``(a, b, c)`` is ``a x + b x**3 + c x**5``. Rational functions
        ``M (x + sum_j a_j x / (x**2 + c_j))`` are given as ``(M, (a_1, ...), (c_1, ...))``, all
        numbers positive: see :func:`polarlib.design.zolotarev`. All steps are of one kind.
    lower, upper : float, optional
        Interval of singular values for which the schedule is designed, ``0 < lower <= upper``.
    normalisation : Normalisation, optional
        Division of the input X that brings its singular values into (0, 1]:
        NORMALISATIONS
        Division by a norm or a bound leaves the polar factor unchanged. Division of the columns
        ("aol") changes it. Rational steps need "spectral" or "none".
    input_safety : float, optional
        Further divisor of the normalised input, at least 1; not used for the normalisation "none".
        1 for rational steps.
    name, source : str, optional
        Name and origin.
    repeat : {None, "forever", "last"}, optional
        How the list continues beyond its end: not at all, from its beginning, or with its last
        step.
    stride : int, optional
        Difference p of the exponents ``1, 1 + p, 1 + 2 p, ...``: 2 for odd polynomials, other
        values for inverse p-th roots (:func:`polarlib.design.inverse_root`).
    target : str, optional
        Function that is approximated on the interval: "polar" (1), "clip" (min(x, 1)), "power(e)"
        (x^e), "smooth_sign(d)" (x / sqrt(x^2 + d^2)). Errors are differences from it. `lower` may
        be 0 for any other than "polar".

    Raises
    ------
    ValueError
        For an empty or non-finite list, an invalid interval, an unknown normalisation or target.
        For polynomials with target "polar" also if a step is not positive on the image of the steps
        before it, so that singular vectors change sign, and if the image of ``[lower, upper]``
        leaves (0, 2).

    Warns
    -----
    ScheduleWarning
        If the steps sorted by slope have less than half the error: they may be misordered.

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
            object.__setattr__(self, name, value)  # a frozen dataclass

    @property
    def is_rational(self) -> bool:
        """Whether the steps are rational functions; they are all of one kind."""
        return isinstance(self.steps[0], Rational)

    @property
    def input_divisor(self) -> float:
        """Divisor of the normalised input: `input_safety`, or 1 for normalisation "none"."""
        return 1.0 if self.normalisation == "none" else self.input_safety

    def divided(self, lower: float, upper: float, *, extended: bool = True) -> tuple[Any, Any]:
        """Divide the ends of an interval by `input_divisor`, as before the first step.

        Parameters
        ----------
        lower, upper : float
            The interval of singular values of the normalised input.
        extended : bool, optional
            Whether 40 decimal digits are used (default), or double precision.

        Returns
        -------
        tuple of two numbers
            Of mpmath, or floats.
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
        tuple of two floats
            Smallest and largest value of ``s(x / input_safety)`` for x in the interval. These bound
            the singular values of the result of :func:`polarlib.orthogonalize`. With normalisation
            "none" there is no division. The relative error is a few units of double rounding.

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

        x are the singular values of the normalised input; with normalisation "none" there is no
        division. For a target other than "polar" it is the largest difference from the target at
        x. The result is the upper bound of :meth:`certify`, or for rational steps the error
        evaluated in 40 digits.

        Parameters
        ----------
        lower : float, optional
            Lower end; the schedule's own by default.

        Returns
        -------
        float
            At least 0.
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
            Number format whose rounding is included. By default the bounds are those of exact
            arithmetic; ``s.quantize(format).certify()`` includes the rounding of the coefficients
            alone.
        share : float, optional
            From 0 to 1, by default 0.75. To first order, every rounding changes a singular value
            relatively by up to ``share`` times the unit roundoff: the model of
            :func:`polarlib.design.for_precision`, with 1 for its worst case. It is not a proof for
            matrices, whose rounding errors mostly average out.
        shape : tuple of two int, optional
            Instead of `share`: rigorous bounds for the plain form, without its normalisation, for
            every real matrix of this shape whose entries, after the division by `input_safety`,
            are numbers of the format.

        Returns
        -------
        Certificate
            ``lower <= max |target(x) - s(x / input_safety)| <= upper`` on ``[lower, self.upper]``
            (without the division for normalisation "none"). With `format`, coefficients are rounded
            to the format in which products accumulate; without `shape` the input may exceed the
            interval by its own rounding.

        Raises
        ------
        ValueError
            For an unknown format, a lower end outside ``(0, self.upper]``, and rational steps. With
            `format` also for targets other than "polar", strides other than 2, and if the lower
            bound of singular values is not positive after a step, which the message names.

        Notes
        -----
        With `shape` errors are bounded in norms. Let u be the unit roundoff and n the smaller
        dimension. Rounding moves a matrix by ``u sqrt(n) ||X||_2``, and a product of inner length k
        in single precision by ``k 2**-23 || |A| |B| ||``. In narrow formats these bounds are far
        above the actual errors. They are useful for float64 and float32, and for 16 bits with few
        columns and a large lower end.

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
        """Slope of s at 0, by which the smallest singular values grow; without input division."""
        return math.prod(map(slope_at_zero, self.steps))

    @functools.cached_property
    def divergence_limit(self) -> float:
        """Smallest x > 1 with ``|s(x)| > 2``, beyond which rounding must not move singular values.

        x is a singular value after the division by `input_safety`. For a target other than "polar",
        it is the smallest x > upper where ``|s|`` exceeds twice the largest value of the target on
        the interval, and at least 2.
        """
        start, limit = 1.0, 2.0
        if self.target != "polar":
            ends = [target_value(self.target, x) for x in (self.lower or self.upper, self.upper)]
            start, limit = max(1.0, self.upper), 2.0 * max(1.0, *ends)
        return divergence_limit(self.steps, start, limit, self.stride)

    @property
    def matmuls(self) -> int:
        """Matrix products of the plain form: 2 for degree 3, 3 for 5, 4 for 7 and 9, ...

        For a stride other than 2 those of the coupled form for inverse roots, in which Q and R take
        1 + stride products between two steps. For rational steps those of the iteration on one Gram
        matrix in single precision, without the bound of its norm; see `factorisations`.
        """
        return matmuls(self.steps, self.stride)

    @property
    def factorisations(self) -> int:
        """Number of QR or Cholesky factorisations: one per pole of each step."""
        return sum(len(step.poles) for step in self.steps if isinstance(step, Rational))

    def is_safe_in(self, format: str) -> bool:
        """Return whether rounding a singular value 1 once in a format cannot make s diverge.

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
        """Return the value of :meth:`is_safe_in`, whose former name this is, until 0.3.

        Parameters
        ----------
        precision : Format
            Number format, not its name.

        Returns
        -------
        bool
            As :meth:`is_safe_in` of its name.
        """
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
        """Write the schedule to a JSON file, from which :meth:`from_json` reads it exactly.

        Parameters
        ----------
        path : path-like
            The file to write. If writing fails, an existing file is unchanged.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        export.write_json(checks.path("path", path), self.to_dict())

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Self:
        """Read a schedule that :meth:`to_json` wrote.

        The hexadecimal coefficients are used; the decimal ones must be the same numbers. The
        derived values, the convention and the version are informative and ignored on reading. Any
        other unknown key is refused, as it may be a field that changes the schedule.

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
            If the file is not such a document, is of a newer version, lacks a key, or has values
            that :class:`Schedule` refuses; the message names the file and the key or step.
        OSError
            If the file cannot be read.
        """
        path = checks.path("path", path)
        values = export.read_json(path, {f.name: f.default for f in fields(cls) if f.init})
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None

    def to_code(self, kind: export.Kind) -> str:
        """Return the coefficients as source code, with a comment that states their convention.

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


# The names are listed in the table alone.
_NAMES = "\n        ".join(f'- "{name}": {words}.' for name, words in NORMALISATIONS.items())
Schedule.__doc__ = (Schedule.__doc__ or "").replace("NORMALISATIONS", _NAMES)
