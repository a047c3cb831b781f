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
    """Return the default of `rtol`: ``max(100, min(m, n))`` machine epsilons.

    It does not grow with the larger dimension: sums over long columns are taken in blocks, and
    their rounding errors do not grow with the length.
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
    # Set by `check_for`, since stages that run under a trace may not see it.
    sharded: bool = False

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
        """Raise ValueError for options whose factorisations would gather a sharded matrix."""
        # These methods use products and sums of n x n matrices alone.
        small_only = self.method == "newton_schulz" or self.is_fixed
        self.sharded = ops.is_sharded(a)
        if self.sharded and self.method != "auto" and not (small_only and self.completion):
            simple = self.completion or not small_only
            what = f"method={self.method!r}" if simple else f"completion=False with {self.name!r}"
            raise ValueError(
                f"a is sharded over several devices, and {what} would replicate it on each of "
                "them; use polar with method='auto', 'newton_schulz' or a schedule, or "
                "orthogonalize, or gather a first"
            )

    def check_differentiable(self) -> None:
        """Raise ValueError if the result has another derivative than the unitary polar factor."""
        if self.method == "qr" or self.is_fixed:
            raise ValueError(
                f"method={self.name!r} does not return the polar factor and is not differentiated; "
                "use orthogonalize(), which differentiates its schedule, or detach the matrix"
            )

    def check_abstract(self, ops: Ops) -> None:
        """Raise TypeError for options that need the entries of the matrix, under a trace."""
        if self.callback is not None or self.throw:
            what = "throw=True" if self.throw else "callback"
            raise TypeError(
                f"{what} needs the entries of the matrix, which {ops.hiding}, or leave it out and "
                "use `converged` of the result"
            )
        if isinstance(self.method, str) and self.method in METHODS and self.method not in TRACED:
            raise TypeError(
                f"{self.caller} with method={self.method!r} reads entries of its matrix, which "
                f"{ops.hiding}, or use a method of fixed work ({', '.join(TRACED)}, a schedule)"
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
            f"schedule {name!r} approximates {target!r}, not the unitary factor; apply it with "
            "orthogonalize()"
        )
    if not target:
        raise ValueError(f"unknown method {shown(method)}; {nearest(method, ['auto', *methods()])}")


def lower_bound(options: Options, entered: Entered) -> float | None:
    """Return the lower bound of sigma_min / sigma_max that follows from `sigma_min` and `cond`."""
    sigma_min, cond = options.sigma_min, options.cond
    if sigma_min is None and cond is None:
        return None
    if options.method not in HINTED:
        raise ValueError(
            "sigma_min and cond are for methods that start from a bound "
            f"({', '.join(HINTED)}), got method={options.name!r}; leave them out"
        )
    bounds = []
    if cond is not None:
        bounds.append(1 / number("cond", cond, 1, math.inf, what="a number of at least 1"))
    if sigma_min is not None:
        sigma_min = number("sigma_min", sigma_min, 0, ends="(]")
        x, ops = entered.x, entered.ops
        if entered.is_empty or entered.is_abstract:  # the quotient needs sigma_max
            return None if cond is None else bounds[0]
        # By an upper bound, so that the quotient is a lower one whatever the true norm is.
        upper = norm_bound(x, ops)
        largest = ops.item(ops.xp.minimum(upper, ops.frobenius(x)) * entered.scale)
        if sigma_min > largest:
            raise ValueError(
                f"sigma_min must be at most the largest singular value, {largest:.3g} or less, got "
                f"{sigma_min!r}; pass a lower bound of the smallest singular value"
            )
        bounds.append(sigma_min / largest)
    return max(bounds)  # both hold
