"""Iterations with a stopping test: the driver that runs the steps of a plan."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from polarlib._schedules.steps import absorbed
from polarlib.arrays.functions import read
from polarlib.arrays.ops import Ops
from polarlib.result import Later, Run

Array = Any
S = TypeVar("S")
# Number of steps after the planned ones, for singular values below the estimate, and the part to
# which each must reduce the defect.
EXTRA_STEPS, MUST_FALL = 8, 0.97
# |1 - sigma| after a last step of degree 3 or 5 is at most this times |1 - sigma^2|^2 or ^3.
LAST = {3: 3 / 8, 5: 5 / 16}


class Step(NamedTuple):
    """An odd function of the singular values.

    With a denominator c, ``s (a + b s^2) / (1 + c s^2)``, computed by a Cholesky factor. Otherwise
    the odd polynomial with these coefficients.
    """

    numerator: tuple[float, ...]
    denominator: float = 0.0

    def __call__(self, s: float) -> float:
        """Return the value at a singular value."""
        value = 0.0
        for coefficient in reversed(self.numerator):
            value = value * s * s + coefficient
        return value * s / (1 + self.denominator * s * s)

    def largest(self, s: float) -> float:
        """Return the largest value on [0, s]: at s, or at the first turning point before it."""
        p, q, r = self._derivative
        root = q * q - p * r
        if q < 0 and root >= 0 and p < s * s * (math.sqrt(root) - q):
            return max(self(math.sqrt(p / (math.sqrt(root) - q))), self(s))
        return self(s)

    def image(self, low: float, high: float) -> tuple[float, float]:
        """Return the smallest and the largest value on [low, high], low > 0.

        Examples
        --------
        >>> NEWTON_SCHULZ[3].image(0.5, 1.2)
        (0.6875, 1.0)
        """
        p, q, r = self._derivative
        turns = []
        if r and q * q >= p * r:
            root = math.sqrt(q * q - p * r)
            turns = [(-q - root) / r, (-q + root) / r]
        elif q and not r:
            turns = [-0.5 * p / q]
        inside = [math.sqrt(y) for y in turns if low * low < y < high * high]
        values = [self(s) for s in (low, high, *inside)]
        return min(values), max(values)

    @property
    def _derivative(self) -> tuple[float, float, float]:
        """Return p, q, r of ``p + 2 q s^2 + r s^4``, the derivative up to a positive factor."""
        first, second, third = (*self.numerator, 0.0, 0.0)[:3]
        if self.denominator:
            c = self.denominator
            return first, 0.5 * (3 * second - first * c), second * c
        return first, 1.5 * second, 5 * third

    @property
    def fractions(self) -> tuple[float, float, float]:
        """Numbers alpha, beta, c of a Halley step as ``alpha s / (1 + c s^2) + beta s``."""
        (a, b), c = self.numerator, self.denominator
        return a - b / c, b / c, c

    def scaled(self, upper: float) -> Step:
        """Return the step for singular values that are larger by a factor."""
        return Step(absorbed(self.numerator, upper), self.denominator / upper**2)

    @property
    def products(self) -> int:
        """Number of matrix products, including that of the Gram matrix."""
        return 1 if self.denominator else len(self.numerator)


# Steps of Newton-Schulz type by degree: 1 at 1, with as many zero derivatives there as possible.
NEWTON_SCHULZ = {3: Step((1.5, -0.5)), 5: Step((1.875, -1.25, 0.375))}


# -- two sets of kernels ---------------------------------------------------------------------


class Kernels(Protocol):
    """Arithmetic of the iteration. A function may overwrite the Gram matrix that is passed to it.

    On a device a defect is an array until it is read.
    """

    host: bool

    def gram(self, x: Array) -> Array:
        """Return X^H X."""

    def defect(self, g: Array) -> Any:
        """Return ``||I - G||_F``, the largest of a stack."""

    def read(self, numbers: Sequence[Array]) -> list[float]:
        """Read numbers with one synchronisation; the largest of a stack."""

    def apply(self, step: Step, x: Array, g: Array) -> Array:
        """Return X after a step; NaN where a factorisation failed."""

    def correct(self, step: Step, x: Array, g: Array, worst: float) -> Array:
        """Return X after a Newton-Schulz step, added as a correction; `worst` >= |1 - sigma^2|."""


# -- the driver ------------------------------------------------------------------------------


@dataclass(eq=False)
class Progress:
    """State of an iteration: the iterate, and the number, products and changes of the steps.

    Only this object refers to the iterate and its Gram matrix. A variable of a method would keep
    the storage of the first iterate alive. On a device changes are arrays until they are read.
    """

    ops: Any  # Ops, or Kernels
    x: Array = None
    gram: Array | None = None
    callback: Callable[[int, Array], None] | None = None
    products: int = 0
    restore: Callable[[Array], Array] | None = None  # back-transformation of an iterate
    bounds: Any = None
    lower: float = 0.0  # bound of the singular values of the first iterate
    certain: bool = False  # whether the bound is computed, not the caller's, and above rounding
    note: str = ""
    changes: list[Any] = field(default_factory=list)
    iterations: int = 0
    converged: bool = False

    def formed_gram(self) -> Array:
        """Return the Gram matrix of the iterate; the caller counts the product."""
        if self.gram is None:
            self.gram = self.ops.gram(self.x)
        return self.gram

    def append(self, x: Array, products: int = 0) -> None:
        """Store the next iterate, count the step, and call the callback."""
        self.x, self.gram = x, None
        self.iterations += 1
        self.products += products
        if self.callback is not None:
            self.callback(self.iterations, x if self.restore is None else self.restore(x))

    def read(self, numbers: Sequence[Array]) -> list[float]:
        """Read numbers from a device with one synchronisation; the largest of a stack."""
        return largest(self.ops, numbers)

    def read_changes(self) -> list[float]:
        """Return the changes as numbers; changes on a device are read."""
        self.changes[:] = _read(self.changes, self.read)
        return self.changes

    def statistics(self) -> Run:
        """Return the statistics of the run; changes on a device are read when they are used."""
        changes: Any = tuple(self.changes)
        if not all(isinstance(change, float) for change in changes):
            changes = Later(functools.partial(_read, changes, self.read))
        return Run(
            self.iterations,
            self.products,
            self.converged,
            changes,
            certain=self.bounds,
            note=self.note,
        )

    def result(self) -> tuple[Array, Run]:
        """Return the last iterate, transformed back, and the statistics."""
        return self.x if self.restore is None else self.restore(self.x), self.statistics()


def largest(ops: Ops, numbers: Sequence[Array]) -> list[float]:
    """Read numbers with one synchronisation; the largest of a stack."""
    return [float(known.max()) for known in read(ops, *numbers)]


def _read(changes: Sequence[Any], reader: Callable[[list[Any]], list[float]]) -> tuple[float, ...]:
    """Return changes as numbers; arrays among them are read with one synchronisation."""
    there = [change for change in changes if not isinstance(change, float)]
    known = iter(reader(there) if there else ())
    return tuple(c if isinstance(c, float) else next(known) for c in changes)


def drive(
    done: Progress,
    plan: Iterable[S],
    apply: Callable[[S], tuple[Array, int] | None],
    *,
    stop: Callable[[S, float], bool] | None = None,
    most: int | None = None,
    recorded: bool = False,
    due: Callable[[S], bool] | None = None,
) -> None:
    """Run the steps of a plan: the loop of every iterative method.

    Parameters
    ----------
    done : Progress
        State of the iteration.
    plan : iterable
        Steps. A plan that depends on the iterates is a generator that reads `done` before each
        step.
    apply : callable
        Function of a step that returns the next iterate and the number of products; None ends the
        iteration.
    stop : callable, optional
        Function of a step and the size of its change that returns whether the iteration has
        converged. If it is given, a change that is infinite or NaN ends the iteration too.
    most : int, optional
        Largest number of steps.
    recorded : bool, optional
        Whether the plan appends the sizes of changes to ``done.changes``. By default they are
        measured here: ``||X_new - X||_F / sqrt(n)``.
    due : callable, optional
        Function that returns whether a step is the last one of the plan. On a device changes are
        read from this step on, or never, if the plan is for a certain bound.
    """
    for step in itertools.islice(plan, most):
        x, products = apply(step) or (None, 0)
        if x is None:
            return
        done.gram = None  # free its storage before the difference is formed
        if not recorded:
            size = done.ops.frobenius(x - done.x)
            size = done.ops.item(size) if done.ops.host else size
            done.changes.append(size / math.sqrt(x.shape[-1]))
        done.append(x, products)
        del x  # the next step needs only one iterate
        if stop is not None:
            if due is not None and not done.ops.host:
                if not due(step):
                    continue
                if done.certain:
                    done.converged = True
                    return
            change = done.read_changes()[-1]
            done.converged = stop(step, change)
            if done.converged or not math.isfinite(change):
                return


# -- plans that follow the defect --------------------------------------------------------------


@dataclass(eq=False)
class History(Progress):
    """Progress with the steps taken; changes are the defects ``||I - X^H X||_F / sqrt(n)``."""

    steps: list[Step] = field(default_factory=list)
    size: float = math.inf  # ||I - X^H X||_F before the last step

    def read(self, numbers: Sequence[Array]) -> list[float]:
        """Read numbers from a device with one synchronisation; the largest of a stack."""
        found: list[float] = self.ops.read(numbers)
        return found

    def statistics(self) -> Run:
        """Return the statistics of the run; the note has the number of steps of each kind."""
        halley = sum(step.denominator > 0 for step in self.steps)
        steps = f"{halley} Halley and {self.iterations - halley} polynomial steps"
        note = f"{self.note}, {steps}" if self.note else steps
        return super().statistics()._replace(note=note)


def converge(done: History, steps: tuple[Step, ...], low: float, eps: float) -> None:
    """Run the planned steps, further steps while they reduce the defect, and a correction.

    Parameters
    ----------
    done : History
        State with the matrix, whose singular values are estimated to be in [low, 1], and its Gram
        matrix; both may be overwritten. Every step and defect is appended, and `converged` is set.
    steps : tuple of Step
        The plan: Halley steps, then polynomials.
    low : float
        Estimate of the smallest singular value.
    eps : float
        Error that is neglected: the last step, whose degree depends on the defect, must reach it.
    """
    kernels = done.ops

    def plan(low: float) -> Iterator[tuple[Step, float | None]]:
        root = math.sqrt(done.x.shape[-1])
        todo = list(steps)
        upper = 1.0
        extra = 0
        while True:
            if not (todo and todo[0].denominator):
                defect = kernels.defect(done.formed_gram())
                done.changes.append(defect / root)
                # The prediction of the plan bounds the defect, unless the mean defect exceeds it.
                worst = max(1 - low * low, upper * upper - 1)
                rms, before = 0.0, math.inf
                # On a device a prediction from a certain bound is sufficient. Otherwise the
                # prediction determines when the defect is read.
                doubtful = not done.certain and (not todo or _last(worst, eps))
                if kernels.host or doubtful:
                    rms = done.read_changes()[-1]
                    before = done.changes[-2] if done.changes[1:] else math.inf
                    done.size = defect if kernels.host else rms * root
                    if todo or rms > worst:
                        worst = done.size
                if degree := _last(worst, eps):
                    yield NEWTON_SCHULZ[degree], worst
                    done.converged = True
                    return
                if not todo:
                    extra += 1
                    if extra > EXTRA_STEPS or not rms < MUST_FALL * before:
                        return
                    todo.append(NEWTON_SCHULZ[5])
            step = todo.pop(0)
            if not kernels.host and done.certain:
                low, upper = step.image(low, upper)
                yield step, None
                continue
            low, upper = step(low), 1.0
            if step.denominator == 0:
                low, upper = min(low, 1.0), max(2 - low, 1.0)
            yield step, None

    def apply(planned: tuple[Step, float | None]) -> tuple[Array, int]:
        (step, worst), x, g = planned, done.x, done.formed_gram()
        if worst is not None:
            return kernels.correct(step, x, g, worst), step.products
        done.steps.append(step)
        return kernels.apply(step, x, g), step.products

    drive(done, plan(low), apply, recorded=True)


def _last(worst: float, eps: float) -> int:
    """Return the degree of a Newton-Schulz step that can be the last one; 0 if none can."""
    for degree, factor in LAST.items():
        if factor * worst ** ((degree + 1) // 2) <= eps:
            return degree
    return 0


def certified(
    steps: tuple[Step, ...], size: float, guess: float, top: float
) -> tuple[float, float] | None:
    """Return bounds of singular values: the lower one proven by the last defect, and `top`.

    No singular value before the last step was below the root of ``1 - ||I - X^H X||_F``. Hence no
    singular value of the matrix is below the numbers that the steps map to that root. The lower
    bound is at most `guess`.
    """

    def proven(s: float) -> bool:
        for step in steps:
            s = step.largest(s)
        return s * s <= 1 - size

    low, high = (guess, guess) if proven(guess) else (0.0, guess)
    for _ in range(50 * (low < high)):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if proven(middle) else (low, middle)
    return (low, top) if low > 0 else None


# -- stacks ------------------------------------------------------------------------------------


def one_by_one(
    method: Callable[[np.ndarray, Callable[[int, Array], None] | None], tuple[np.ndarray, Run]],
    x: np.ndarray,
    callback: Callable[[int, Array], None] | None,
) -> tuple[np.ndarray, Run]:
    """Run a method on each matrix of a stack, without callbacks; return the worst statistics."""
    if x.ndim == 2:
        return method(x, callback)
    u = np.empty(x.shape, x.dtype)
    runs = []
    for index in np.ndindex(*x.shape[:-2]):
        u[index], run = method(x[index], None)
        runs.append(run)
    return u, worst_of(runs, x.shape[:-2])


def worst_of(runs: list[Run], batch: tuple[int, ...] = ()) -> Run:
    """Return the worst of the runs of the parts of a stack, with all of their singular values."""
    if not runs:
        return Run(0, 0, True)
    values = [run.singular_values for run in runs]
    s = None
    if not any(part is None for part in values):
        s = np.concatenate([part.reshape(-1, part.shape[-1]) for part in values])
        s = s.reshape(*batch, s.shape[-1])
    bounds = [run.bounds for run in runs if run.bounds is not None]
    known = len(bounds) == len(runs)
    return max(runs, key=lambda run: run.iterations)._replace(
        matmuls=max(run.matmuls for run in runs),
        converged=all(run.converged for run in runs),
        singular_values=s,
        certain=(min(b[0] for b in bounds), max(b[1] for b in bounds)) if known else None,
    )
