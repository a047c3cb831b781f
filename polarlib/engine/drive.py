"""Iterations with a stopping test: the driver of plans, and the history that every method keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from polarlib._schedules.steps import absorbed
from polarlib.arrays.ops import Ops
from polarlib.design.compose import pade
from polarlib.result import Run

Array = Any
# Steps after the planned ones, for singular values that the estimate missed; each of them must
# reduce the defect to that part.
EXTRA_STEPS, MUST_FALL = 8, 0.97
# |1 - sigma| after a last step of degree 3 or 5 is at most this times |1 - sigma^2|^2 or ^3.
LAST = {3: 3 / 8, 5: 5 / 16}


class Step(NamedTuple):
    """An odd function of the singular values, and how it is computed.

    With a denominator, ``s (a + b s^2) / (1 + c s^2)`` by a Cholesky factor; without, the odd
    polynomial with these coefficients.
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
        # Derivatives are quadratics in s^2 times what is positive: p + 2 q y + r y^2.
        first, second, third = (*self.numerator, 0.0, 0.0)[:3]
        p, q, r = first, 1.5 * second, 5 * third
        if self.denominator:
            q, r = 0.5 * (3 * second - first * self.denominator), second * self.denominator
        root = q * q - p * r
        if q < 0 and root >= 0 and p < s * s * (math.sqrt(root) - q):
            return max(self(math.sqrt(p / (math.sqrt(root) - q))), self(s))
        return self(s)

    def scaled(self, upper: float) -> Step:
        """Return the step for singular values that are larger by a factor."""
        return Step(absorbed(self.numerator, upper), self.denominator / upper**2)

    @property
    def products(self) -> int:
        """Matrix products, that of the Gram matrix included."""
        return 1 if self.denominator else len(self.numerator)


# -- two sets of kernels ---------------------------------------------------------------------


class Kernels(Protocol):
    """Arithmetic of the iteration. A function may overwrite the Gram matrix that it takes."""

    def gram(self, x: Array) -> Array:
        """X^H X."""

    def defect(self, g: Array) -> float:
        """``||I - G||_F``, the worst of a stack."""

    def apply(self, step: Step, x: Array, g: Array) -> Array:
        """X after a step; NaN where a factorisation failed."""

    def last(self, degree: int, x: Array, g: Array, worst: float) -> Array:
        """X after a step of Newton-Schulz type, as a correction."""


# -- the iteration ---------------------------------------------------------------------------


class Progress:
    """Iterations so far: their number, their products, and the size of each change."""

    def __init__(
        self,
        callback: Callable[[int, Array], None] | None = None,
        products: int = 0,
        restore: Callable[[Array], Array] | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        self.callback = callback
        self.products = products
        self.restore = restore  # back-transformation of an iterate to the matrix of the caller
        self.bounds = bounds
        self.note = ""
        self.changes: list[float] = []
        self.iterations = 0
        self.converged = False

    def append(self, x: Array, products: int = 0, change: float | None = None) -> None:
        """Count an iteration with result `x`, and pass it to the callback."""
        self.iterations += 1
        self.products += products
        if change is not None:
            self.changes.append(change)
        if self.callback is not None:
            self.callback(self.iterations, x if self.restore is None else self.restore(x))

    def follow(self, new: Array, old: Array, ops: Ops, products: int = 0) -> float:
        """Append an iteration, and return its change ``||new - old||_F / sqrt(n)``."""
        change = ops.item(ops.frobenius(new - old)) / math.sqrt(new.shape[-1])
        self.append(new, products, change)
        return change

    def statistics(self) -> Run:
        """Return the statistics of the run."""
        return Run(
            self.iterations,
            self.products,
            self.converged,
            tuple(self.changes),
            bounds=self.bounds,
            note=self.note,
        )

    def result(self, x: Array) -> tuple[Array, Run]:
        """Return the last iterate, transformed back, and the statistics."""
        return x if self.restore is None else self.restore(x), self.statistics()


class History(Progress):
    """Progress of a plan: also its steps, with defects ``||I - X^H X||_F / sqrt(n)`` as changes."""

    def __init__(self, callback: Callable[[int, Array], None] | None, products: int) -> None:
        super().__init__(callback, products)
        self.steps: list[Step] = []
        self.size = math.inf  # ||I - X^H X||_F before the last step

    def statistics(self) -> Run:
        """Return the statistics of the run; the note counts the steps of each kind."""
        halley = sum(step.denominator > 0 for step in self.steps)
        steps = f"{halley} Halley and {self.iterations - halley} polynomial steps"
        note = f"{self.note}, {steps}" if self.note else steps
        return super().statistics()._replace(note=note)

    def certified(self, guess: float) -> float:
        """Return the largest lower bound of sigma_min, up to a guess, that the last defect proves.

        No singular value before the last step was below the root of ``1 - ||I - X^H X||_F``. So
        none of the matrix is smaller than the numbers that the steps map to that root.
        """

        def proven(s: float) -> bool:
            for step in self.steps:
                s = step.largest(s)
            return s * s <= 1 - self.size

        if proven(guess):
            return guess
        low, high = 0.0, guess
        for _ in range(50):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if proven(middle) else (low, middle)
        return low


def converge(
    kernels: Kernels,
    x: Array,
    g: Array,
    steps: tuple[Step, ...],
    low: float,
    history: History,
    eps: float,
) -> Array:
    """Take the planned steps, then further ones as long as they help.

    Parameters
    ----------
    kernels : Kernels
        Arithmetic.
    x, g : array
        The matrix, singular values in [low, 1] as far as known, and its Gram matrix. Both may be
        overwritten.
    steps : tuple of Step
        The plan: Halley steps, then polynomials.
    low : float
        Estimate of the smallest singular value.
    history : History
        Gets every step and defect.
    eps : float
        Error that counts as none: a last step, of a degree that the defect decides, must reach it.

    Returns
    -------
    array
        The last iterate; `history` says whether it converged.
    """
    root = math.sqrt(x.shape[-1])
    todo = list(steps)
    upper = 1.0
    extra = 0
    while True:
        if not (todo and todo[0].denominator):
            size = kernels.defect(g)
            rms, before = size / root, history.changes[-1] if history.changes else math.inf
            history.size = size
            history.changes.append(rms)
            # The plan predicts the worst defect, unless the measured mean exceeds the prediction.
            worst = max(1 - low * low, upper * upper - 1)
            if todo or rms > worst:
                worst = size
            for degree, factor in LAST.items():
                if factor * worst ** ((degree + 1) // 2) <= eps:
                    x = kernels.last(degree, x, g, worst)
                    history.append(x, (degree + 1) // 2)
                    history.converged = True
                    return x
            if not todo:
                extra += 1
                if extra > EXTRA_STEPS or not rms < MUST_FALL * before:
                    return x
                todo.append(Step(pade(2)))
        step = todo.pop(0)
        low, upper = step(low), 1.0
        if step.denominator == 0:
            low, upper = min(low, 1.0), max(2 - low, 1.0)
        x = kernels.apply(step, x, g)
        history.steps.append(step)
        history.append(x, step.products)
        g = kernels.gram(x)


def one_by_one(
    method: Callable[[np.ndarray, Callable[[int, Array], None] | None], tuple[np.ndarray, Run]],
    x: np.ndarray,
    callback: Callable[[int, Array], None] | None,
) -> tuple[np.ndarray, Run]:
    """Run a method for one matrix on each of a stack, without callbacks; report the worst."""
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
        bounds=(min(b[0] for b in bounds), max(b[1] for b in bounds)) if known else None,
    )
