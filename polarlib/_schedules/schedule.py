"""Schedule: an immutable composition of odd polynomials.

A schedule is data for one engine (:mod:`polarlib.engine.iterate`). As a function of one variable
it says what happens to every singular value: if ``A = U diag(sigma) V^H`` then applying the steps
to ``A`` gives ``U diag(s(sigma)) V^H`` in exact arithmetic.
"""

from __future__ import annotations

import functools
import math
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np

from polarlib._schedules import export
from polarlib._schedules.certify import Certificate, certify
from polarlib._schedules.images import multiple_precision, odd_image, odd_images, odd_value
from polarlib._schedules.products import continued, even_products, product_counts
from polarlib._schedules.targets import parse_target, target_value
from polarlib.arrays import checks
from polarlib.arrays.formats import Format, format_of, round_number
from polarlib.arrays.settings import ignore_float_errors, warn
from polarlib.result import ScheduleWarning

__all__ = ["MOST_STRIDE", "NORMALISATIONS", "REPEATS", "Schedule", "coefficients"]


NORMALISATIONS = ("frobenius", "spectral", "moments", "schatten4", "aol", "none")
REPEATS = (None, "forever", "last")
# Coefficients of a step and of all steps, and distance of exponents: images of more take minutes.
MOST_COEFFICIENTS, MOST_IN_ALL, MOST_STRIDE = 200, 3000, 1000


def coefficients(name: str, step: Any) -> tuple[float, ...]:
    """Return the coefficients of a step, checked, as floats.

    Examples
    --------
    >>> coefficients("step", [1.5, -0.5])
    (1.5, -0.5)
    """
    found = checks.items(name, step, "a list of coefficients", most=MOST_COEFFICIENTS)
    return tuple(checks.number(f"{name}: coefficient {i}", c) for i, c in enumerate(found, 1))


def _image_or_overflow(
    steps: Sequence[Sequence[float]], lower: float, upper: float, stride: int = 2
) -> tuple[float, float]:
    """Image in double precision; the whole line where it overflows."""
    try:
        lo, hi = odd_image(steps, lower, upper, extended=False, stride=stride)
    except OverflowError:
        return -math.inf, math.inf
    return (lo, hi) if math.isfinite(lo) and math.isfinite(hi) else (-math.inf, math.inf)


@dataclass(frozen=True)
class Schedule:
    """A composition of odd polynomials that drives singular values to 1.

    Parameters
    ----------
    steps : sequence of sequences of float
        Coefficients of each step in ascending odd powers: ``(a, b, c)`` is
        ``a x + b x**3 + c x**5``. Any odd degree; the first step is applied first.
    lower, upper : float, optional
        The interval that the schedule is meant for, ``0 < lower <= upper``.
    normalisation : str, optional
        What the input is divided by so that its singular values lie in (0, 1]: "frobenius",
        "spectral", "moments", "schatten4" (bounds of the largest singular value, interchangeable),
        "aol" (columns scaled, another problem: it changes the answer), or "none".
    input_safety : float, optional
        Further divisor of the normalised input, at least 1; not used where the normalisation is
        "none".
    name, source : str, optional
        What it is called and where it comes from.
    repeat : {None, "forever", "last"}, optional
        How the list goes on after its end: not at all, from its beginning, or with its last step.
    stride : int, optional
        Difference p of the exponents ``1, 1 + p, 1 + 2 p, ...``; 2 are the odd polynomials, any
        other serves inverse p-th roots (:func:`polarlib.design.inverse_root`).
    target : str, optional
        What it approximates on the interval: "polar" (1), "clip" (min(x, 1)), "power(e)" (x^e),
        "smooth_sign(d)" (x / sqrt(x^2 + d^2)). Errors are differences from that. `lower` may be 0
        for any other than "polar".

    Raises
    ------
    ValueError
        For an empty or non-finite list, a bad interval, an unknown normalisation or target; and
        for the hazards of target "polar": a step that is not positive on the image of the steps
        before it (the output would be an ascent direction), an image of ``[lower, upper]`` that
        leaves (0, 2).

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
    """

    steps: tuple[tuple[float, ...], ...]
    lower: float = 1e-3
    upper: float = 1.0
    normalisation: str = "frobenius"
    input_safety: float = 1.0
    name: str = "custom"
    source: str = ""
    repeat: str | None = None
    stride: int = 2
    target: str = "polar"

    def __post_init__(self) -> None:
        put = functools.partial(object.__setattr__, self)  # the dataclass is frozen
        for name in ("name", "source"):
            put(name, checks.text(f"the {name} of a schedule", getattr(self, name)))
        at = f"schedule {checks.shown(self.name)}: "
        steps = checks.items(
            f"{at}steps", self.steps, "a list of at least one step, each a list of coefficients"
        )
        put(
            "steps",
            tuple(coefficients(f"{at}step {k} of steps", step) for k, step in enumerate(steps, 1)),
        )
        if sum(map(len, self.steps)) > MOST_IN_ALL:
            raise ValueError(f"{at}steps must have at most {MOST_IN_ALL} coefficients in all")
        for name, least in (("lower", -math.inf), ("upper", -math.inf), ("input_safety", 1)):
            put(name, checks.number(f"{at}{name}", getattr(self, name), least))
        put("stride", checks.count(f"{at}stride", self.stride, 1, MOST_STRIDE))
        put("normalisation", checks.choice("normalisation", self.normalisation, NORMALISATIONS, at))
        put("repeat", checks.choice(f"{at}repeat", self.repeat, REPEATS))
        kind, parameter = parse_target(self.target)
        # A constant and negative powers have no odd approximation at 0.
        zero = kind not in ("polar", "power") or (kind == "power" and parameter > 0)
        if not (self.lower > 0 or (zero and self.lower == 0)) or not (
            self.upper > 0 and self.lower <= self.upper < math.inf
        ):
            raise ValueError(
                f"{at}the interval needs 0 {'<=' if zero else '<'} lower <= upper, got "
                f"[{self.lower}, {self.upper}]"
            )
        if kind == "polar":
            self._refuse_hazards()

    def _refuse_hazards(self) -> None:
        # What double precision finds may be its own rounding, which every step multiplies.
        trouble = self._hazard(extended=False) and self._hazard(extended=True)
        if trouble:
            raise ValueError(f"schedule {checks.shown(self.name)}: {trouble}")
        # Steeper steps come first in every designed schedule. "Much better" is a factor of two in
        # the error, chosen so that none of the published sets is suspected; rounding is no error.
        ordered = sorted(self.steps, key=operator.itemgetter(0), reverse=True)
        if tuple(ordered) != self.steps:
            lo, hi = self.divided(self.lower, self.upper, extended=False)
            least, error = (
                max(abs(1 - v) for v in _image_or_overflow(s, lo, hi, self.stride))
                for s in (ordered, self.steps)
            )
            if least < 0.5 * error < math.inf and error > 2.0**-40:
                warn(
                    f"schedule {checks.shown(self.name)}: the same steps sorted by slope have "
                    "less than half the error; are they in the order in which they were designed?",
                    ScheduleWarning,
                )

    def _hazard(self, *, extended: bool) -> str:
        """What is wrong with the image of the interval, or ""."""
        lo, hi = before = self.divided(self.lower, self.upper, extended=extended)
        images = odd_images(self.steps, lo, hi, extended=extended, stride=self.stride)
        try:
            for k, (lo, hi) in enumerate(images, 1):
                if not 0 < lo <= hi < math.inf:
                    was, now = (
                        "[{:.4g}, {:.4g}]".format(*map(float, ends)) for ends in (before, (lo, hi))
                    )
                    return (
                        f"step {k} sends {was} to {now}, which is not positive: singular vectors "
                        "would change sign; name a smaller interval or another step"
                    )
                if k < len(self.steps):
                    before = lo, hi
        except OverflowError:  # of floats
            return "it overflows"
        # Best steps for tiny lower bounds reach 2 but for the rounding of their coefficients.
        last, u = self.steps[-1], float(before[1])
        terms = [abs(c) * u ** (self.stride * i + 1) for i, c in enumerate(last)]
        if hi >= 2 + 2.0**-48 * sum(terms) * (len(last) > 1):
            return (
                f"the image [{float(lo):.4g}, {float(hi):.4g}] of [{self.lower:.4g}, "
                f"{self.upper:.4g}] leaves (0, 2); name a smaller interval or add a safety factor"
            )
        return ""

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
        number = multiple_precision().mpf if checks.flag("extended", extended) else float
        lo, hi = (number(v) / self.input_divisor for v in ends)
        return lo, hi

    def __len__(self) -> int:
        return len(self.steps)

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
        with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN tell it
            for step in self.steps:
                x = odd_value(step, x, self.stride)
        return x

    def image(self, lower: float | None = None, upper: float | None = None) -> tuple[float, float]:
        """Image of an interval, by interval arithmetic, rounded outwards.

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
        (lo, _), (_, hi) = self._certified(lower, upper, "image", "polar").image
        return lo, hi

    def _certified(
        self, lower: float | None, upper: float | None, asked: str, target: str
    ) -> Certificate:
        lower = self.lower if lower is None else checks.number("lower", lower)
        upper = self.upper if upper is None else checks.number("upper", upper)
        if lower > upper:
            raise ValueError(f"{asked} needs finite lower <= upper, got [{lower}, {upper}]")
        if self.stride != 2 and lower < 0:
            raise ValueError(
                f"{asked} needs lower >= 0 for stride {self.stride}: roots of negative numbers are "
                f"not defined, got {lower}"
            )
        return certify(
            self.steps,
            lower,
            upper,
            stride=self.stride,
            target=target,
            divisor=self.input_divisor,
        )

    def error(self, lower: float | None = None) -> float:
        """Worst error ``max |1 - s(x / input_safety)|`` for x in ``[lower, self.upper]``.

        x are the singular values of the normalised input; normalisation "none" divides by nothing.
        For another target than "polar", the worst difference from the target at x. It is the upper
        bound of :meth:`certify`.

        Parameters
        ----------
        lower : float, optional
            Lower end; the schedule's own by default.

        Returns
        -------
        float
        """
        return self._certified(lower, None, "error", self.target).upper

    def certify(self, lower: float | None = None, format: str | None = None) -> Certificate:
        """Rigorous bounds of the worst error, by interval arithmetic.

        Parameters
        ----------
        lower : float, optional
            Lower end of the interval; the schedule's own by default.
        format : str, optional
            Number format that the coefficients are rounded to first; as they are by default.

        Returns
        -------
        Certificate
            ``lower <= max |target(x) - s(x / input_safety)| <= upper`` on ``[lower, self.upper]``
            (normalisation "none" divides by nothing), for the coefficients as numbers: the rounding
            of the iteration itself is not in it.

        Raises
        ------
        ValueError
            For an unknown format, coefficients that :meth:`quantize` refuses, and a lower end
            outside ``(0, self.upper]``.

        Examples
        --------
        >>> c = Schedule(steps=[(1.5, -0.5)], lower=0.5).certify()
        >>> c.lower <= 0.3125 <= c.upper < 0.3126
        True
        """
        if format is not None:
            return self.quantize(format).certify(lower)
        lower = self.lower if lower is None else checks.number("lower", lower)
        if not (lower > 0 or lower == self.lower) or not lower <= self.upper:
            raise ValueError(
                f"schedule {checks.shown(self.name)}: certify needs 0 < lower <= {self.upper}, "
                f"got {lower}"
            )
        return self._certified(lower, None, "certify", self.target)

    @functools.cached_property
    def slope(self) -> float:
        """Slope of s at 0: how much the smallest singular values grow; no input division."""
        return math.prod(step[0] for step in self.steps)

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

        def stays(x: float) -> bool:
            lo, hi = _image_or_overflow(self.steps, start, x, self.stride)
            return lo >= -limit and hi <= limit

        if not stays(start):
            return start
        inside, outside = start, 2 * start
        while stays(outside):
            inside, outside = outside, 2 * outside
            if outside > 1e300:
                return math.inf
        while outside - inside > 4e-16 * outside:
            middle = (inside + outside) / 2
            if middle in (inside, outside):
                break
            inside, outside = (middle, outside) if stays(middle) else (inside, middle)
        return outside

    @property
    def matmuls(self) -> int:
        """Matrix products of the plain form: 2 for degree 3, 3 for 5, 4 for 7 and 9, ...

        For another stride than 2, of the coupled form for inverse roots, where Q and R take
        1 + stride products between two steps.
        """
        if self.stride == 2:
            return sum(product_counts(self.steps))
        inner = sum(even_products(len(step) - 1)[1] for step in self.steps)
        return inner + (1 + self.stride) * (len(self.steps) - 1)

    def truncate(self, k: int, *, repeat: str | None = None) -> Schedule:
        """Return the schedule of the first `k` steps; beyond the list, as its repeat rule says.

        Parameters
        ----------
        k : int
            Number of steps, at least 1.
        repeat : {"last", "forever"}, optional
            Rule of repetition in place of the schedule's own: how a list that ends goes on.

        Returns
        -------
        Schedule

        Raises
        ------
        ValueError
            If `k` is below 1, or above the length of a set that does not repeat; for an unknown
            rule.

        Examples
        --------
        >>> Schedule(steps=[(1.5, -0.5)], lower=0.5, repeat="forever").truncate(3).slope
        3.375
        >>> s = Schedule(steps=[(2.0, -1.0), (1.5, -0.5)], lower=0.5)
        >>> s.truncate(4, repeat="last").steps[1:]
        ((1.5, -0.5), (1.5, -0.5), (1.5, -0.5))
        """
        if repeat is not None:
            return replace(self, repeat=repeat).truncate(k)
        steps = continued(self.steps, k, self.repeat, self.name)
        k, have = len(steps), len(self.steps)
        if k == have:
            return self
        if k > have:
            on = self.repeat == "last" or k % have == 0 or have == 1
        else:
            # A cut list has another last step, and would go on otherwise than the whole one; a
            # list of equal steps goes on the same.
            on = len(set(self.steps)) == 1
        return replace(self, steps=steps, repeat=self.repeat if on else None)

    def survives(self, precision: Format) -> bool:
        """Whether one rounding in a format cannot push a singular value 1 past divergence.

        Parameters
        ----------
        precision : Format
            The number format.

        Returns
        -------
        bool
            ``divergence_limit * input_divisor >= 1 + unit_roundoff``.
        """
        precision = checks.instance("precision", precision, Format, "a Format, of format_of")
        return self.divergence_limit * self.input_divisor >= 1 + precision.unit_roundoff

    def quantize(self, format: str) -> Schedule:
        """Return the schedule with every coefficient rounded to a number format.

        Nothing is redesigned: interval, normalisation and the rest stay, and the error may grow.

        Parameters
        ----------
        format : str
            Name of the number format.

        Returns
        -------
        Schedule
            Its name tells the format.

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
        format = target.name
        note = f", coefficients in {format}"
        return replace(
            self,
            steps=tuple(tuple(round_number(c, target) for c in step) for step in self.steps),
            name=self.name.removesuffix(note) + note,
        )

    def _fields(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def to_dict(self) -> dict[str, Any]:
        """Return fields and derived figures as plain data, ready for JSON.

        Returns
        -------
        dict
            What :meth:`to_json` writes. A step is its coefficients as decimal numbers and as
            hexadecimal strings; an infinite figure is None.

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
        """Write the schedule to a JSON file, whole or not at all; it reads back bit for bit.

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
        figures, the convention and polarlib's version are for readers and are not looked at. Any
        other unknown key is refused: it may be a field without which the schedule is another one.

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

    def to_code(self, kind: str) -> str:
        """Write the coefficients as source code, with a comment that says what they are.

        Parameters
        ----------
        kind : {"python", "c", "triton", "cuda", "latex"}
            - python: a literal that evaluates to ``steps``.
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
            For an unknown kind, and for coefficients beyond float32 in "c" and "cuda".

        Examples
        --------
        >>> import ast
        >>> s = Schedule(steps=[(1.875, -1.25, 0.375), (1.5, -0.5)], lower=0.5)
        >>> ast.literal_eval(s.to_code("python")) == s.steps
        True
        """
        return export.code(self._fields(), kind)
