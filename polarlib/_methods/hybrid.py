"""Halley steps by Cholesky factorisation, then minimax polynomials: the fast path."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from polarlib._methods.lifting import TILE, lift, rational
from polarlib._methods.qdwh import halley_step, weights
from polarlib._methods.reduction import start
from polarlib._methods.svd import svd
from polarlib.arrays.blas import SINGLE_BELOW
from polarlib.arrays.formats import format_of
from polarlib.arrays.kernels import NumpyKernels
from polarlib.arrays.library import format_name, library_name, on_cpu
from polarlib.arrays.ops import Ops
from polarlib.design.cost_tables import kernel_costs, svd_costs_less
from polarlib.design.remez import best
from polarlib.engine.drive import (
    LAST,
    NEWTON_SCHULZ,
    History,
    Progress,
    Step,
    certified,
    converge,
    largest,
    one_by_one,
)
from polarlib.engine.iterate import even_part
from polarlib.result import Later, Run

Array = Any

# A Halley step by Cholesky factors has backward error that grows with c. Above the first number a
# step takes the second one in place of the best c, which lifts small singular values 19-fold. By
# experiment: at n = 512 the worst backward error, condition numbers to 1e5, is 4.7e-15; 6.6e-15
# with a cap of 200 and 3.7e-15 with one of 60, for a step less and a step more. One step with
# c = 740 alone costs 4.3e-15.
STABLE_BELOW, CAP = 500.0, 100.0
# A plan is made for l up to that.
NEAREST = 0.99
# Polynomial steps begin where l is above: below they are slow, and shrink large singular values.
# Halley steps end where it is above: a polynomial is as good.
POLYNOMIAL_FROM, HALLEY_TO = 0.2, 0.9
# The best polynomial of degree 5 would cost multiple precision, and be a little better.
PADE_FROM = 0.9
# Passes over a matrix that a step of degree 5 takes, most of them to complete triangles.
MIRRORED = 8
# The rational step must save this much: its factor is twice as far from orthonormal.
LIFTING_PAYS = 0.9


# -- the plan --------------------------------------------------------------------------------


def _halley(l: float) -> Step:
    """The best Halley step on [l, 1] that is stable."""
    step = weights(l)
    if (c := step.denominator) <= STABLE_BELOW:
        return step
    cap = STABLE_BELOW if c <= 2 * STABLE_BELOW else CAP  # no capped steps will follow then
    return halley_step(2 * math.sqrt(1 + cap) - 1)  # c = a + b - 1 with b = (a - 1)^2 / 4


def _polynomial(degree: int, ratio: float) -> tuple[Step, float]:
    """The best polynomial on [ratio, 1], or nearly, and its error."""
    if degree == 3:  # in closed form: 1 - E at both ends, and 1 + E at the maximum between them
        slope = math.sqrt(3 / (1 + ratio + ratio * ratio))
        s = ratio * (1 + ratio) * slope**3
        return Step((6 * slope / (2 + s), -2 * slope**3 / (2 + s))), (2 - s) / (2 + s)
    if ratio < PADE_FROM:
        minimax = best(degree, ratio)
        return Step(tuple(map(float, minimax.coefficients))), float(minimax.error)
    centred = NEWTON_SCHULZ[5].scaled(0.5 * (1 + ratio))
    return centred, max(1 - centred(ratio), abs(1 - centred(1.0)))


def plan(
    l: float, eps: float, costs: Mapping[str, float] | None = None
) -> tuple[tuple[Step, ...], float]:
    """The cheapest steps that bring singular values in [l, 1] to 1, but for the last step.

    Parameters
    ----------
    l : float
        Between 0 and 1.
    eps : float
        Error that counts as none.
    costs : mapping, optional
        Costs of kernels, as :func:`polarlib.design.cost_tables.kernel_costs` gives them; by
        default NumPy's.

    Returns
    -------
    steps : tuple of Step
        Halley steps, then polynomials. A step of Newton-Schulz type ends the iteration: it depends
        on the defect that is found then.
    cost : float
        Of everything, the last step included, in matrix products; the Gram matrix that the first
        step needs is given.

    Examples
    --------
    >>> steps, cost = plan(0.01, 2.0**-52)
    >>> 5 < cost < 20, all(abs(step(1.0) - 1) < 0.5 for step in steps)
    (True, True)
    """
    costs = kernel_costs("numpy", "float64", 1024) if costs is None else costs
    names = ("gram", "cholesky", "solve", "hermitian_product", "elementwise")
    known = tuple(costs[name] for name in names)
    cost, steps = _search(_grid(min(l, NEAREST)), "start", eps, known)
    return steps, cost - costs["gram"]


def _grid(ratio: float) -> float:
    """The next number below of a grid, on which plans meet again: 16 to an octave of x or 1 - x."""
    if ratio < 0.5:
        return float(2.0 ** (math.floor(16 * math.log2(ratio) + 1e-9) / 16))
    return float(1 - 2.0 ** (math.ceil(16 * math.log2(1 - ratio) - 1e-9) / 16))


@functools.lru_cache(maxsize=4096)
def _search(
    ratio: float, after: str, eps: float, costs: tuple[float, ...]
) -> tuple[float, tuple[Step, ...]]:
    """The least cost from [ratio, 1] on, and the steps: a recursion with a memory.

    `after` is what has come before: "start", "halley", or "polynomial". After a polynomial the
    interval is centred at 1, and only polynomials follow.
    """
    gram, cholesky, solve, product, elementwise = costs
    polynomial = {3: product, 5: product + gram + MIRRORED * elementwise}
    high = 2 / (1 + ratio) if after == "polynomial" else 1.0
    worst = max(high * high - 1, 1 - (ratio * high) ** 2)
    found: tuple[float, tuple[Step, ...]] = (math.inf, ())
    if after != "start":
        for degree, factor in LAST.items():
            if factor * worst ** ((degree + 1) // 2) <= eps:
                single = worst <= SINGLE_BELOW and degree == 3 and eps < SINGLE_BELOW
                cost = gram + polynomial[degree] * (0.5 if single else 1.0)
                found = min(found, (cost, ()))
    if found[0] < math.inf:  # the last step suffices: another one before it only adds to the cost
        return found
    if after != "polynomial" and ratio < HALLEY_TO:
        step = _halley(ratio)
        cost, others = _search(_grid(step(ratio)), "halley", eps, costs)
        found = min(found, (cost + gram + cholesky + 2 * solve + elementwise, (step, *others)))
    if ratio >= POLYNOMIAL_FROM:
        for degree in polynomial:
            step, error = _polynomial(degree, ratio)
            rho = (1 - error) / (1 + error)
            cost, others = _search(_grid(rho), "polynomial", eps, costs)
            if others:  # they are made for [rho, 1], and the image reaches 1 + E
                others = (others[0].scaled(1 + error), *others[1:])
            found = min(found, (cost + gram + polynomial[degree], (step, *others)))
    return found


class _GenericKernels:
    """Kernels of any array library, for stacks."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops
        self.host = ops.host

    def gram(self, x: Array) -> Array:
        return self.ops.gram(x)

    def defect(self, g: Array) -> Any:
        size = self.ops.frobenius(self.ops.add_diagonal(-g, 1.0))
        return self.ops.item(size) if self.host else size

    def read(self, numbers: Sequence[Array]) -> list[float]:
        return largest(self.ops, numbers)

    def apply(self, step: Step, x: Array, g: Array) -> Array:
        ops = self.ops
        if step.denominator == 0:
            z, alpha, beta = even_part(g, step.numerator, ops)
            z, alpha, beta = ops.add_scaled_identity(z, alpha, beta)
            return ops.gemm(x, z, x, alpha=alpha, beta=beta)
        alpha, beta, c = step.fractions
        factor = ops.cholesky(ops.add_diagonal(g * c, 1.0))
        y = ops.solve_lower(factor, ops.adjoint(x))
        y = ops.solve_lower(factor, y, adjoint=True)
        return x * beta + ops.adjoint(y) * alpha

    def correct(self, step: Step, x: Array, g: Array, worst: float) -> Array:
        ops = self.ops
        e = ops.add_diagonal(g * -0.5, 0.5)  # (I - 2 E)^(-1/2) = I + E + 3/2 E^2 + ...
        if len(step.numerator) == 3:
            e = ops.gemm(e, e, e, alpha=1.5, beta=1.0)
        return ops.gemm(x, e, x, beta=1.0)


# -- the way in ------------------------------------------------------------------------------


def hybrid(
    x: Array,
    ops: Ops,
    *,
    tol: float,
    callback: Callable[[int, Array], None] | None = None,
    lower: float | None = None,
    may_decompose: bool = False,
    costs: Mapping[str, float] | None = None,
) -> tuple[Array, Run]:
    """Halley steps by Cholesky factors, then best polynomials, as the condition number asks.

    One Gram product, a Cholesky factorisation and a few Lanczos steps estimate the extreme singular
    values; a search over the costs of kernels plans the steps: Halley steps of QDWH by Cholesky
    factors, with c capped at 100 where more than 500 would be best, then best polynomials, then a
    step of Newton-Schulz type. Its Gram matrix shows whether all singular values have arrived:
    further steps follow as long as they help. On NumPy matrices that are too ill-conditioned for
    that, the rational step of "structured" comes first (in single precision, one Halley step in
    double precision). Tall matrices are reduced by Cholesky-QR or QR. Backward stable. Elsewhere
    zero singular values are not completed, and make it give up.

    Y. Nakatsukasa and N. J. Higham, SIAM J. Sci. Comput. 35 (2013) A1325-A1349, for the steps by
    Cholesky factors.
    """
    if costs is None:
        device = "cpu" if on_cpu(x) else "gpu"
        costs = kernel_costs(library_name(ops), format_name(x), x.shape[-1], device=device)
    kernels = ops.kernels(x)
    if kernels is None or (x.ndim > 2 and callback is not None):
        return _anywhere(x, ops, callback, lower, costs)
    return one_by_one(
        lambda a, show: _in_place(a, ops, kernels, tol, show, lower, may_decompose, costs),
        x,
        callback,
    )


def _anywhere(
    x: Array,
    ops: Ops,
    callback: Callable[[int, Array], None] | None,
    lower: float | None,
    costs: Mapping[str, float],
) -> tuple[Array, Run]:
    """The iteration on stacks of any library, from a certified bound."""
    return iterate(start(x, ops, callback, lower=lower), ops, costs)


def iterate(begun: Progress, ops: Ops, costs: Mapping[str, float]) -> tuple[Array, Run]:
    """Take the steps from what :func:`polarlib._methods.reduction.start` gives, of any library."""
    eps = format_of(format_name(begun.x)).epsilon
    course = History(**begun.__dict__ | {"ops": _GenericKernels(ops)})
    del begun.x, begun.gram  # the iteration alone holds its matrices
    if course.lower >= eps:  # else it is singular, or as good as that
        steps, _ = plan(course.lower, eps, costs)
        converge(course, steps, course.lower, eps)
    return course.result()


def _in_place(
    x: Array,
    ops: Ops,
    kernels: NumpyKernels,
    tol: float,
    callback: Callable[[int, Array], None] | None,
    lower: float | None,
    may_decompose: bool,
    costs: Mapping[str, float],
) -> tuple[Array, Run]:
    """The iteration on one matrix, in place; row-major matrices as their transposes."""
    kernels.release()
    y, flip = kernels.columns(x)
    course = History(kernels, callback=callback)
    found = _tall(x, kernels, lower) if x.shape[0] > x.shape[1] else _Square(y, lower)
    u = None
    if found is not None:
        course.restore = (
            ops.xp.matrix_transpose if flip and found.restore is None else found.restore
        )
        course.products = found.products
        u = _unitary(found, course, kernels, costs, may_decompose)
    if u is not None:
        return u, course.statistics()
    kernels.release()
    if may_decompose:
        u, run = svd(x, ops, tol=tol, callback=callback)
        return u, run._replace(method="svd", note="the singular value decomposition costs less")
    return ops.xp.zeros_like(x), Run(0, 0, False, note="the Gram matrix is not definite")


class _Square(NamedTuple):
    """A square column-major matrix that has the place of another one.

    Attributes
    ----------
    x : array
    lower : float or None
        Ratio of its extreme singular values; with `certain`, its smallest, the largest being 1.
    certain : tuple of float or None
        Certified bounds of the singular values of the other one.
    restore : callable or None
        From the unitary factor of `x` to that of the other one; None if it is the same.
    products : int
        Spent so far.
    note : str
    """

    x: Array
    lower: float | None
    certain: tuple[float, float] | None = None
    restore: Callable[[Array], Array] | None = None
    products: int = 0
    note: str = ""


def _tall(x: Array, kernels: NumpyKernels, lower: float | None) -> _Square | None:
    """Reduce tall matrices, by Cholesky-QR if the Gram matrix allows, else by the rational step."""
    r, restore, low, high = kernels.cholesky_qr(x)
    if not 0 < high < math.inf:
        return None
    if r is None:
        return _lifted(x, kernels, None)
    return _Square(r, low / high if lower is None else lower, None, restore, 3)


def _lifted(
    x: Array,
    kernels: NumpyKernels,
    upper: float | None,
    scratch: tuple[Array, Array] | None = None,
) -> _Square | None:
    """A matrix of better condition, by the rational step on a QR factor, in double precision."""
    found = lift(x, kernels, upper=upper, scratch=scratch)
    if not found.lower > 0:
        return None
    return _Square(found.x, found.lower, found.bounds, found.restore, 1, found.note)


def _cost_of_lifting(l: float, eps: float, costs: Mapping[str, float]) -> float:
    """Cost of the rational step and of what then follows, in applications of Q, by experiment.

    Its many short calls take as long as some Lanczos steps do, whose cost is theirs as well.
    """
    f = rational(max(l, eps))
    each = costs["apply_q"]
    step = (2.4 + 1.8 * len(f.poles)) * each + costs["cholesky"] + 4 * costs["elementwise"]
    step = (step + 8 * costs["lanczos"]) * (1 if eps < SINGLE_BELOW else 2)
    return step + costs["gram"] + plan(f.lower, eps, costs)[1]


def _unitary(
    found: _Square,
    course: History,
    kernels: NumpyKernels,
    costs: Mapping[str, float],
    may_decompose: bool,
) -> Array | None:
    """Unitary factor of a column-major matrix; None if another method should be tried."""
    x, lower = found.x, found.lower
    eps = float(np.finfo(x.dtype).eps)
    if found.restore is not None:  # nobody else holds the storage of X
        kernels.adopt(x)
    g = kernels.gram(x)
    top = math.sqrt(kernels.upper_norm(g))  # ||G||_F is at least the square of sigma_max
    if found.certain is None:
        low, high = kernels.extremes(g, kernels.free(x), lower)
    else:
        low, high = lower or 0.0, 1.0
    if not 0 < high < math.inf:
        return None
    ratio = low / high
    if not ratio > 0 and eps > SINGLE_BELOW:  # double precision can tell
        del g
        kernels.release()
        wide = _widened(x, course, kernels)
        if wide is not None:
            x, ratio = wide
            kernels.adopt(x)
            low, high = ratio, 1.0
        g = kernels.gram(x)
    own = plan(ratio, eps, costs)[1] if ratio > 0 else math.inf
    other = math.inf if found.certain else _cost_of_lifting(ratio, eps, costs)
    if may_decompose and not course.steps:
        best_steps = min(own, other)
        if svd_costs_less(costs, best_steps, format_name(x)):
            return None
    if other < LIFTING_PAYS * own:
        scratch = None
        if not (course.steps or eps > SINGLE_BELOW or found.restore is not None):
            scratch = kernels.free(x), kernels.free(kernels.free(x))
        del g
        kernels.release()
        better = _lifted(x, kernels, None if course.steps else top, scratch)
        if better is not None:
            before = course.restore
            course.restore = better.restore if before is None else _after(before, better.restore)
            course.products += better.products
            found = better
            x, low, high = better.x, better.lower or 0.0, 1.0
            kernels.adopt(x, None if scratch is None else scratch[0])
            ratio = low
        del scratch
        g = kernels.gram(x)
    if not ratio > 0:
        return None
    course.note = found.note
    first, *others = plan(ratio, eps, costs)[0]
    course.x, course.gram, course.bounds = x, g, found.certain
    del x, g  # the iteration alone holds its matrices
    converge(course, (first.scaled(high), *others), low, eps)
    if found.certain is None:  # fifty evaluations of every step, when they are read
        known = tuple(course.steps), course.size, low, top
        course.bounds = Later(functools.partial(certified, *known))
    if course.restore is None:
        return course.x
    kernels.release()
    del found  # before the factor takes storage
    return course.restore(course.x)


def _after(
    last: Callable[[Array], Array], first: Callable[[Array], Array] | None
) -> Callable[[Array], Array]:
    return last if first is None else lambda v: last(first(v))


def _widened(x: Array, course: History, kernels: NumpyKernels) -> tuple[Array, float] | None:
    """Take one Halley step in double precision, where its best c is no trouble.

    Returns
    -------
    x, ratio : ndarray, float
        The new matrix and the ratio of its extreme singular values; None if double precision
        cannot tell the smallest one either.
    """
    y = x.astype(np.result_type(x.dtype, np.float64), order="F")
    g = kernels.gram(y)
    low, high = kernels.extremes(g, kernels.free(y))
    kernels.release()
    if not (low > 0 and high < math.inf):
        return None
    best_step = weights(low / high)
    step = best_step.scaled(high)
    alpha, beta, c = step.fractions
    if not kernels.resolvent(y, g, y, c, alpha, 0.0):
        return None
    del g
    new = y.astype(x.dtype, order="F")
    for j in range(0, x.shape[1], TILE):
        new[:, j : j + TILE] = y[:, j : j + TILE] + x[:, j : j + TILE] * beta
    del y
    course.steps.append(step)
    course.append(new, step.products)
    return new, min(1.0, best_step(low / high))
