"""Options of a polar decomposition, checked once and handed from stage to stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import polarlib.published as published
from polarlib._methods import FIXED, HINTED, METHODS, TRACED, methods
from polarlib._schedules.schedule import Schedule
from polarlib.arrays.checks import choice, flag, function, nearest, number, shown
from polarlib.arrays.entered import Entered
from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import norm_bound
from polarlib.arrays.library import format_name
from polarlib.arrays.ops import Ops
from polarlib.arrays.progress import Callback
from polarlib.published import Named

Array = Any
Side = Literal["right", "left"]
Method = Named
SIDES = ("right", "left")
FLAGS = ("completion", "overwrite_a", "check_finite", "throw")


def default_tolerance(shape: tuple[int, ...], format_name: str) -> float:
    """Orthogonality and backward error that count as converged: ``max(100, n)`` epsilons, n <= m.

    Not of m: sums over long columns are taken in blocks, and their errors do not grow.
    """
    return max(100, min(shape[-2:])) * format_of(format_name).epsilon


@dataclass(eq=False)
class Options:
    """Options of :func:`polarlib.polar`, checked; `caller` is the function that the user called."""

    side: Side = "right"
    method: Method = "auto"
    completion: bool = True
    rtol: float | None = None
    sigma_min: float | None = None
    cond: float | None = None
    check_finite: bool = True
    throw: bool = False
    callback: Callback | None = None
    overwrite_a: bool = False
    form_h: bool = True
    caller: str = "polar"

    def __post_init__(self) -> None:
        if type(self.side) is not str or self.side not in SIDES:
            self.side = choice("side", self.side, SIDES)
        self.method = published.opened(self.method)
        for name in FLAGS:
            value = getattr(self, name)
            if type(value) is not bool:
                setattr(self, name, flag(name, value))
        if self.callback is not None:
            function("callback", self.callback, "a function of the iteration and the iterate")

    @property
    def name(self) -> str:
        """Name of the method."""
        return self.method.name if isinstance(self.method, Schedule) else str(self.method)

    @property
    def is_fixed(self) -> bool:
        """Whether the method is a schedule, which may end short of the polar factor."""
        return not isinstance(self.method, str) or self.method not in ("auto", *METHODS)

    def tolerance(self, a: Array) -> float:
        """Return `rtol` or its default for matrices."""
        if self.rtol is None:
            # Half precision is decomposed, and checked, in float32.
            name = format_name(a)
            return default_tolerance(a.shape, name if name == "float64" else "float32")
        return number("rtol", self.rtol, 0, 1, ends="()")

    def check_for(self, a: Array, ops: Ops) -> None:
        """Refuse what the matrices do not allow: factorisations would gather sharded ones."""
        # Products, and sums of n x n matrices, are all that these take.
        small_only = self.method == "newton_schulz" or self.is_fixed
        if ops.is_sharded(a) and not (small_only and self.completion):
            what = f"method={self.method!r}" if self.completion else "completion=False"
            raise ValueError(
                f"a lies in parts on several devices, and {what} would bring all of it to each of "
                "them; use polar with method='newton_schulz' or a schedule, or orthogonalize, or "
                "gather a first"
            )

    def check_differentiable(self) -> None:
        """Raise where the derivative of the unitary polar factor is not that of the result."""
        if self.method == "qr" or self.is_fixed:
            raise ValueError(
                f"method={self.name!r} stops short of the polar factor and is not differentiated; "
                "orthogonalize() has the derivative of its schedule, or detach the matrix"
            )

    def check_abstract(self, ops: Ops) -> None:
        """Raise where what is asked for needs the entries, which a library hides."""
        if self.callback is not None or self.throw:
            what = "throw=True" if self.throw else "callback"
            raise TypeError(
                f"{what} needs the entries of the matrix, which {ops.hiding}, or leave it out and "
                "ask `converged` of the result"
            )
        if isinstance(self.method, str) and self.method in METHODS and self.method not in TRACED:
            raise TypeError(
                f"{self.caller} by method={self.method!r} looks at its matrix, which {ops.hiding}, "
                f"or take a method of fixed work ({', '.join(TRACED)}, a schedule)"
            )


def check_method(method: Method) -> None:
    """Raise ValueError for an unknown method."""
    if isinstance(method, str) and method in ("auto", *METHODS, *FIXED):
        return
    name: Any = method
    if isinstance(method, Schedule):
        name, target = method.name, method.target
    else:
        target = published.target_of(method) or ""
    if target not in ("", "polar"):
        raise ValueError(
            f"schedule {name!r} approximates {target!r}, which is no unitary factor; apply it with "
            "orthogonalize()"
        )
    if not target:
        raise ValueError(f"unknown method {shown(method)}; {nearest(method, ['auto', *methods()])}")


def lower_bound(options: Options, entered: Entered) -> float | None:
    """Turn what the caller knows into a lower bound of sigma_min / sigma_max."""
    sigma_min, cond = options.sigma_min, options.cond
    if sigma_min is None and cond is None:
        return None
    if options.method not in HINTED:
        raise ValueError(
            f"sigma_min and cond are for methods that start from a bound, {', '.join(HINTED)}; "
            f"got method={options.name!r}"
        )
    bounds = []
    if cond is not None:
        bounds.append(1 / number("cond", cond, 1, math.inf, what="a number of at least 1"))
    if sigma_min is not None:
        sigma_min = number("sigma_min", sigma_min, 0, ends="(]")
        x, ops = entered.x, entered.ops
        if entered.is_empty or entered.is_abstract:  # what it is worth depends on the largest
            return None if cond is None else bounds[0]
        # By an upper bound, so that the quotient is a lower one whatever the true norm is.
        upper = norm_bound(x, ops)
        largest = ops.item(ops.xp.minimum(upper, ops.frobenius(x)) * entered.scale)
        if sigma_min > largest:
            raise ValueError(
                f"sigma_min={sigma_min!r} exceeds the largest singular value, which is at most "
                f"{largest:.3g}; pass a lower bound of the smallest one"
            )
        bounds.append(sigma_min / largest)
    return max(bounds)  # both hold
