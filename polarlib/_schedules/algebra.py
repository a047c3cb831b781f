"""Schedules as sequences of steps: slices, sums, derivatives, and comparisons."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Self, overload

import numpy as np

from polarlib._schedules.bounds import enclosed
from polarlib._schedules.images import odd_images, odd_slope, odd_value
from polarlib._schedules.products import continued
from polarlib._schedules.rounding import noise_gain
from polarlib._schedules.steps import Step, absorbed
from polarlib._schedules.validity import Repeat
from polarlib.arrays import checks
from polarlib.arrays.settings import ignore_float_errors
from polarlib.files.tables import html_table

# Formats for which a comparison lists whether a schedule is safe.
HALF = ("bfloat16", "float16")


class Comparison(list[dict[str, Any]]):
    """Table of schedules: a list of dicts with the key "figure" and one key per schedule.

    ``pandas.DataFrame(rows)`` accepts it. Its representation is a table.

    Examples
    --------
    >>> Comparison([{"figure": "steps", "a": 3, "b": 5}, {"figure": "error", "a": 0.5, "b": 0.1}])
    figure    a    b
    steps     3    5
    error   0.5  0.1
    """

    def __repr__(self) -> str:
        head, cells = self._cells()
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        lines = []
        for name, *values in (head, *cells):
            right = [v.rjust(w) for v, w in zip(values, widths[1:], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *right]).rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head, cells = self._cells()
        return html_table("Comparison", {name: list(row) for name, *row in cells}, head)

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        head = list(self[0]) if self else ["figure"]
        return head, [[short(row.get(key)) for key in head] for row in self]


def short(value: Any) -> str:
    """Format a value for a table: four digits, yes or no, a dash for None.

    Examples
    --------
    >>> [short(v) for v in (0.123456, True, None, 5, (1e-3, 1.0))]
    ['0.1235', 'yes', '-', '5', '[0.001, 1]']
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(short, value))}]"
    return str(value)


class Composition:
    """Base of :class:`polarlib.Schedule` with its methods as a sequence of steps."""

    steps: tuple[Step, ...]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> Step | Self:
        """Return a step, or the schedule of consecutive steps.

        Parameters
        ----------
        index : int or slice
            Negative numbers count from the end.

        Returns
        -------
        tuple or Schedule
            The interval of ``s[a:b]`` is the image of that of s under the steps before a. For
            a > 0 its `input_safety` is 1 and its `normalisation` "none". If it ends where s ends,
            it has the repeat rule of s. For a target other than "polar" its errors are differences
            from the target at its own inputs.

        Raises
        ------
        IndexError
            If there is no such step.
        ValueError
            For a slice with a stride, or without steps.

        Examples
        --------
        >>> from polarlib import schedule
        >>> s = schedule("polar_express")
        >>> len(s), s[-1] == s.steps[4], len(s[2:]), s[2:].upper == s[:2].image()[1]
        (5, True, 3, True)
        >>> (s[:2] + s[2:]).error() == s.error()
        True
        """
        s: Any = self
        at = f"schedule {checks.shown(s.name)}"
        if isinstance(index, slice):
            return self._part(index, at)
        try:
            k = operator.index(index)
        except TypeError:
            raise TypeError(
                f"index must be an integer or a slice, got {checks.shown(index)}"
            ) from None
        if not -len(self) <= k < len(self):
            raise IndexError(f"{at} has {len(self)} steps, got index {checks.shown(k)}")
        return self.steps[k]

    def _part(self, index: slice, at: str) -> Self:
        s: Any = self
        try:
            start, stop, stride = index.indices(len(self))
        except (TypeError, ValueError):
            raise ValueError(
                f"{at}: a slice must have integers and no stride, got {checks.shown(index)}"
            ) from None
        if stride != 1:
            raise ValueError(f"{at}: a slice must have no stride, got {checks.shown(index)}")
        if start >= stop:
            raise ValueError(
                f"{at}: the slice {start}:{stop} has no steps, and a schedule has at least one"
            )
        if start == 0:
            return s.truncate(stop)  # type: ignore[no-any-return]
        goes_on = stop == len(self) and (s.repeat == "last" or len(set(self.steps)) == 1)
        before = enclosed(
            self.steps[:start],
            s.lower,
            s.upper,
            s.stride,
            "polar",
            s.input_divisor,
            asked="a slice",
        ).image
        return replace(  # type: ignore[no-any-return]
            s,
            steps=self.steps[start:stop],
            lower=before[0][0],
            upper=before[1][1],
            normalisation="none",
            input_safety=1.0,
            name=_part_name(s.name, start),
            repeat=s.repeat if goes_on else None,
        )

    def truncate(self, k: int, *, repeat: Repeat | None = None) -> Self:
        """Return the schedule of the first `k` steps, continued by the repeat rule.

        Parameters
        ----------
        k : int
            Number of steps, at least 1.
        repeat : {"last", "forever"}, optional
            Repeat rule to use in place of the schedule's own.

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
        >>> from polarlib import Schedule
        >>> Schedule(steps=[(1.5, -0.5)], lower=0.5, repeat="forever").truncate(3).slope
        3.375
        >>> s = Schedule(steps=[(2.0, -1.0), (1.5, -0.5)], lower=0.5)
        >>> s.truncate(4, repeat="last").steps[1:]
        ((1.5, -0.5), (1.5, -0.5), (1.5, -0.5))
        """
        s: Any = self
        if repeat is not None:
            s = replace(s, repeat=repeat)
        steps, on = continued(self.steps, k, s.repeat, s.name)
        cut: Self = s if steps == self.steps else replace(s, steps=steps, repeat=on)
        return cut

    def __add__(self, other: Any) -> Self:
        """Return the schedule of the steps of this one, followed by those of another.

        The input division of the other is included in its first step. Interval, normalisation and
        repeat rule are those of this one. Both must have the same target and stride.
        """
        if not isinstance(other, Composition):
            return NotImplemented
        joined: Self = _joined(self, other)
        return joined

    @ignore_float_errors
    def derivative(self, x: Any) -> Any:
        """Return the derivative of s at a scalar or an array, without the input division.

        Parameters
        ----------
        x : number or array
            Singular values, as s(x) takes them.

        Returns
        -------
        number or array
            ``s'(x)``, by the chain rule.

        Examples
        --------
        >>> from polarlib import Schedule
        >>> s = Schedule(steps=[(1.5, -0.5)] * 2, lower=0.5)
        >>> s.derivative(0.0) == s.slope, s.derivative(1.0)
        (True, 0.0)
        """
        s: Any = self
        x = checks.operand("x", x)
        slope = 0 * x + 1
        with np.errstate(over="ignore", invalid="ignore"):  # the result is infinite or NaN
            for step in self.steps:
                slope = slope * odd_slope(step, x, s.stride)
                x = odd_value(step, x, s.stride)
        return slope

    def compare(self, *others: Any, lower: float | None = None) -> Comparison:
        """Return a table of the properties of this schedule and others.

        Parameters
        ----------
        *others : Schedule
            At least one.
        lower : float, optional
            Lower end of the interval for errors and images. By default that of each schedule; if
            they differ, a further row has the errors from the lower end of this schedule.

        Returns
        -------
        list of dict
            A row per property: the key "figure" has its name, and the names of the schedules are
            the keys of its values. The list prints as a table.

        Raises
        ------
        TypeError
            If one of them is not a Schedule.
        ValueError
            For `lower` outside the interval of a schedule.

        Examples
        --------
        >>> from polarlib import schedule
        >>> rows = schedule("polar_express").compare(schedule("jordan"))
        >>> rows[0]
        {'figure': 'steps', 'polar_express': 5, 'jordan': 5}
        """
        all_of_them: list[Any] = [self, *others]
        for one in others:
            checks.instance("others", one, Composition, "schedules")
        if not others:
            raise ValueError("others must be at least one schedule")
        columns = [_properties(one, lower) for one in all_of_them]
        first: Any = self
        if lower is None and len({one.lower for one in all_of_them}) > 1:
            for one, column in zip(all_of_them, columns, strict=True):
                reached = first.lower <= one.upper and (first.lower > 0 or one.target != "polar")
                error = one.error(first.lower) if reached else None
                column[f"error from {first.lower:.4g}"] = error
        names = _unique([one.name for one in all_of_them])
        return Comparison(
            {"figure": figure}
            | {name: column[figure] for name, column in zip(names, columns, strict=True)}
            for figure in columns[0]
        )

    def __repr__(self) -> str:
        s: Any = self
        target = "" if s.target == "polar" else f" from {s.target}"
        return (
            f"Schedule({checks.shown(s.name)}: {_steps_in_words(s)}, {s.matmuls} products, "
            f"error {s.error():.4g}{target} on {short((s.lower, s.upper))})"
        )

    def _repr_html_(self) -> str:
        s: Any = self
        figures = {key: short(value) for key, value in _properties(s, None).items()}
        return html_table(f"Schedule {s.name}", figures)


def _joined(s: Any, t: Any) -> Any:
    at = f"schedules {checks.shown(s.name)} and {checks.shown(t.name)} cannot be added: "
    for name in ("stride", "target"):
        values = getattr(s, name), getattr(t, name)
        if values[0] != values[1]:
            raise ValueError(f"{at}they have {name} {values[0]!r} and {values[1]!r}")
    if s.is_rational != t.is_rational:
        raise ValueError(f"{at}one is of polynomials, the other is rational")
    first = t.steps[0]
    if t.input_divisor != 1:
        first = absorbed(first, t.input_divisor, t.stride)
    # s[:k] + s[k:] has the name of s.
    name = s.name if t.name == _part_name(s.name, len(s)) else f"{s.name} + {t.name}"
    return replace(s, steps=(*s.steps, first, *t.steps[1:]), name=name)


def _part_name(name: str, start: int) -> str:
    return f"{name}, from step {start + 1}"


def _unique(names: Sequence[str]) -> list[str]:
    """Make names distinct, and different from "figure"."""
    distinct: list[str] = []
    for name in names:
        k, new = 1, name
        while new in ("figure", *distinct):
            k += 1
            new = f"{name} ({k})"
        distinct.append(new)
    return distinct


def _degrees(s: Any) -> list[int]:
    if s.is_rational:
        return [2 * len(step.poles) + 1 for step in s.steps]
    return [1 + s.stride * (len(step) - 1) for step in s.steps]


def _steps_in_words(s: Any) -> str:
    degrees, kind = _degrees(s), "rational " if s.is_rational else ""
    count = f"{len(s)} {kind}step{'s' * (len(s) > 1)} of degree"
    if len(set(degrees)) == 1:
        return f"{count} {degrees[0]}"
    return f"{count}s {_listed(degrees)}"


def _listed(degrees: Sequence[int]) -> str:
    """List degrees; if they are more than eight, the first seven."""
    shown = degrees if len(degrees) <= 8 else [*degrees[:7], "..."]
    return ", ".join(map(str, shown))


def _properties(s: Any, lower: float | None) -> dict[str, Any]:
    """Return the properties of a schedule for tables."""
    at = s.lower if lower is None else checks.number("lower", lower)
    bounds = enclosed(s.steps, at, s.upper, s.stride, s.target, s.input_divisor, asked="compare")
    figures = {
        "steps": len(s),
        "degrees": _listed(_degrees(s)),
        "products": s.matmuls,
        "factorisations": s.factorisations,
        "interval": (at, s.upper),
        "normalisation": s.normalisation,
        "input safety": s.input_safety,
        "target": s.target,
        "error": bounds.upper,
        "1 - error": bounds.complement[0],
        "image": (bounds.image[0][0], bounds.image[1][1]),
        "slope": s.slope,
        "divergence limit": s.divergence_limit,
    }
    figures |= {f"safe in {name}": s.is_safe_in(name) for name in HALF}
    return figures | {"noise gain": None if s.is_rational else _largest_gain(s, at)}


def _largest_gain(s: Any, lower: float) -> float:
    """Return the largest error amplification of a step, at the upper end of its interval."""
    before = s.divided(lower, s.upper)
    tops = [before[1], *(hi for _, hi in odd_images(s.steps, *before, stride=s.stride))]
    return max(
        noise_gain(step, float(top), s.stride) for step, top in zip(s.steps, tops, strict=False)
    )
