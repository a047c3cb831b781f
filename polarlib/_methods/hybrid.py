"""Method "hybrid": Halley steps by Cholesky factorisation, then minimax polynomials."""

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

# The backward error of a Halley step by Cholesky factors grows with c. If the optimal c is above
# the first number, the second one is used, which raises small singular values 19-fold. By
# experiment, at n = 512 and condition numbers to 1e5, the worst backward error is 4.7e-15. With a
# cap of 200 it is 6.6e-15 (one step less), with 60 3.7e-15 (one step more). A single step with
# c = 740 has 4.3e-15.
STABLE_BELOW, CAP = 500.0, 100.0
# Largest l for which a plan is made.
NEAREST = 0.99
# Polynomial steps are used for l above the first number: for smaller l they are slow, and shrink
# large singular values. Halley steps are used up to the second: above, a polynomial is as good.
POLYNOMIAL_FROM, HALLEY_TO = 0.2, 0.9
# The best polynomial of degree 5 needs multiple precision, and is only slightly better.
PADE_FROM = 0.9
# Passes over a matrix in a step of degree 5, most of them to complete triangles.
MIRRORED = 8
# Largest cost of the rational step relative to the other plan. It must save this much, since its
# factor has twice the orthogonality error.
LIFTING_PAYS = 0.9


# -- the plan --------------------------------------------------------------------------------


def _halley(l: float) -> Step:
    """Return the best stable Halley step on [l, 1]."""
    step = weights(l)
    if (c := step.denominator) <= STABLE_BELOW:
        return step
    cap = STABLE_BELOW if c <= 2 * STABLE_BELOW else CAP  # no capped step follows if c is moderate
    return halley_step(2 * math.sqrt(1 + cap) - 1)  # c = a + b - 1 with b = (a - 1)^2 / 4


def _polynomial(degree: int, ratio: float) -> tuple[Step, float]:
    """Return the best polynomial on [ratio, 1], for degree 5 approximately, and its error."""
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
    """Return the cheapest steps that map singular values in [l, 1] to 1, without the last step.

    Parameters
    ----------
    l : float
        Between 0 and 1.
    eps : float
        Error that is neglected.
    costs : mapping, optional
        Costs of kernels, as returned by :func:`polarlib.design.cost_tables.kernel_costs`; those of
        NumPy by default.

    Returns
    -------
    steps : tuple of Step
        Halley steps, then polynomials. A step of Newton-Schulz type, which depends on the measured
        defect, ends the iteration.
    cost : float
        Cost in matrix products, including the last step, without the first Gram matrix.

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
    """Round down to a grid of 16 numbers per octave of x or 1 - x, so that plans can be cached."""
    if ratio < 0.5:
        return float(2.0 ** (math.floor(16 * math.log2(ratio) + 1e-9) / 16))
    return float(1 - 2.0 ** (math.ceil(16 * math.log2(1 - ratio) - 1e-9) / 16))


@functools.lru_cache(maxsize=4096)
def _search(
    ratio: float, after: str, eps: float, costs: tuple[float, ...]
) -> tuple[float, tuple[Step, ...]]:
    """Return the least cost for [ratio, 1], and the steps, by a cached recursion.

    `after` is the kind of the previous step: "start", "halley", or "polynomial". After a polynomial
    the interval is centred at 1, and only polynomials follow.
    """
    gram, cholesky, solve, product, elementwise = costs
    polynomial = {3: product, 5: product + gram + MIRRORED * elementwise}
    high = 2 / (1 + ratio) if after == "polynomial" else 1.0
    worst = max(high * high - 1, 1 - (ratio * high) ** 2)
    best: tuple[float, tuple[Step, ...]] = (math.inf, ())
    if after != "start":
        for degree, factor in LAST.items():
            if factor * worst ** ((degree + 1) // 2) <= eps:
                single = worst <= SINGLE_BELOW and degree == 3 and eps < SINGLE_BELOW
                cost = gram + polynomial[degree] * (0.5 if single else 1.0)
                best = min(best, (cost, ()))
    if best[0] < math.inf:  # the last step suffices, so that a further step only adds to the cost
        return best
    if after != "polynomial" and ratio < HALLEY_TO:
        step = _halley(ratio)
        cost, others = _search(_grid(step(ratio)), "halley", eps, costs)
        best = min(best, (cost + gram + cholesky + 2 * solve + elementwise, (step, *others)))
    if ratio >= POLYNOMIAL_FROM:
        for degree in polynomial:
            step, error = _polynomial(degree, ratio)
            rho = (1 - error) / (1 + error)
            cost, others = _search(_grid(rho), "polynomial", eps, costs)
            if others:  # the others are for [rho, 1], and the image reaches 1 + E
                others = (others[0].scaled(1 + error), *others[1:])
            best = min(best, (cost + gram + polynomial[degree], (step, *others)))
    return best


class _GenericKernels:
    """Kernels for stacks of any array library."""

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


# -- the method ------------------------------------------------------------------------------


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
    """Halley steps by Cholesky factors, then best polynomials, planned for the condition number.

    The extreme singular values are estimated by one Gram product, a Cholesky factorisation and a
    few Lanczos steps. The steps are planned by a search over the costs of kernels: Halley steps of
    QDWH by Cholesky factors, with c capped at 100 where the optimum is above 500, then best
    polynomials, then a step of Newton-Schulz type. The Gram matrix of the last step shows whether
    all singular values have converged, and further steps follow while the defect decreases. NumPy
    matrices that are too ill-conditioned first undergo the rational step of "structured" (in single
    precision, one Halley step in double precision). Tall matrices are reduced by Cholesky-QR or QR.
    Backward stable. In other libraries zero singular values are not completed, and the method
    fails.

    References
    ----------
    Y. Nakatsukasa and N. J. Higham, SIAM J. Sci. Comput. 35 (2013) A1325-A1349 (the steps by
    Cholesky factors).
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
    """Run the iteration on stacks of any library, from a certified bound."""
    return iterate(start(x, ops, callback, lower=lower), ops, costs)


def iterate(begun: Progress, ops: Ops, costs: Mapping[str, float]) -> tuple[Array, Run]:
    """Run the iteration from the result of :func:`polarlib._methods.reduction.start`."""
    eps = format_of(format_name(begun.x)).epsilon
    course = History(**begun.__dict__ | {"ops": _GenericKernels(ops)})
    del begun.x, begun.gram  # so that only the iteration refers to its matrices
    if course.lower >= eps:  # otherwise the matrix is singular to rounding
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
    """Run the iteration on one matrix, in place; row-major matrices as their transposes."""
    kernels.release()
    y, flip = kernels.columns(x)
    course = History(kernels, callback=callback)
    square = _tall(x, kernels, lower) if x.shape[0] > x.shape[1] else _Square(y, lower)
    u = None
    if square is not None:
        course.restore = (
            ops.xp.matrix_transpose if flip and square.restore is None else square.restore
        )
        course.products = square.products
        u = _unitary(square, course, kernels, costs, may_decompose)
    if u is not None:
        return u, course.statistics()
    kernels.release()
    if may_decompose:
        u, run = svd(x, ops, tol=tol, callback=callback)
        return u, run._replace(method="svd", note="the singular value decomposition costs less")
    return ops.xp.zeros_like(x), Run(0, 0, False, note="the Gram matrix is not definite")


class _Square(NamedTuple):
    """A square column-major matrix whose polar factor gives that of the original matrix.

    Attributes
    ----------
    x : array
    lower : float or None
        Ratio of its extreme singular values. With `certain`, the smallest one; the largest is 1.
    certain : tuple of float or None
        Certified bounds of the singular values of the original matrix.
    restore : callable or None
        Back-transformation from the unitary factor of `x` to that of the original matrix; None for
        the identity.
    products : int
        Products used so far.
    note : str
        Description of the reduction.
    """

    x: Array
    lower: float | None
    certain: tuple[float, float] | None = None
    restore: Callable[[Array], Array] | None = None
    products: int = 0
    note: str = ""


def _tall(x: Array, kernels: NumpyKernels, lower: float | None) -> _Square | None:
    """Reduce a tall matrix by Cholesky-QR; by the rational step if it is too ill-conditioned."""
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
    """Apply the rational step to a QR factor in double precision; None if that is impossible."""
    lifted = lift(x, kernels, upper=upper, scratch=scratch)
    if not lifted.lower > 0:
        return None
    return _Square(lifted.x, lifted.lower, lifted.bounds, lifted.restore, 1, lifted.note)


def _cost_of_lifting(l: float, eps: float, costs: Mapping[str, float]) -> float:
    """Return the cost of the rational step and the steps after it, fitted to experiments.

    The many short calls of the step take as long as eight Lanczos steps.
    """
    f = rational(max(l, eps))
    each = costs["apply_q"]
    step = (2.4 + 1.8 * len(f.poles)) * each + costs["cholesky"] + 4 * costs["elementwise"]
    step = (step + 8 * costs["lanczos"]) * (1 if eps < SINGLE_BELOW else 2)
    return step + costs["gram"] + plan(f.lower, eps, costs)[1]


def _unitary(
    square: _Square,
    course: History,
    kernels: NumpyKernels,
    costs: Mapping[str, float],
    may_decompose: bool,
) -> Array | None:
    """Return the unitary factor of a column-major matrix; None if another method should be used."""
    x, lower = square.x, square.lower
    eps = float(np.finfo(x.dtype).eps)
    if square.restore is not None:  # no other object refers to the storage of X
        kernels.adopt(x)
    g = kernels.gram(x)
    top = math.sqrt(kernels.upper_norm(g))  # ||G||_F is at least the square of sigma_max
    if square.certain is None:
        low, high = kernels.extremes(g, kernels.free(x), lower)
    else:
        low, high = lower or 0.0, 1.0
    if not 0 < high < math.inf:
        return None
    ratio = low / high
    if not ratio > 0 and eps > SINGLE_BELOW:  # the ratio can be computed in double precision
        del g
        kernels.release()
        wide = _widened(x, course, kernels)
        if wide is not None:
            x, ratio = wide
            kernels.adopt(x)
            low, high = ratio, 1.0
        g = kernels.gram(x)
    own = plan(ratio, eps, costs)[1] if ratio > 0 else math.inf
    other = math.inf if square.certain else _cost_of_lifting(ratio, eps, costs)
    if may_decompose and not course.steps:
        best_steps = min(own, other)
        if svd_costs_less(costs, best_steps, format_name(x)):
            return None
    if other < LIFTING_PAYS * own:
        scratch = None
        if not (course.steps or eps > SINGLE_BELOW or square.restore is not None):
            scratch = kernels.free(x), kernels.free(kernels.free(x))
        del g
        kernels.release()
        better = _lifted(x, kernels, None if course.steps else top, scratch)
        if better is not None:
            before = course.restore
            course.restore = better.restore if before is None else _after(before, better.restore)
            course.products += better.products
            square = better
            x, low, high = better.x, better.lower or 0.0, 1.0
            kernels.adopt(x, None if scratch is None else scratch[0])
            ratio = low
        del scratch
        g = kernels.gram(x)
    if not ratio > 0:
        return None
    course.note = square.note
    first, *others = plan(ratio, eps, costs)[0]
    course.x, course.gram, course.bounds = x, g, square.certain
    del x, g  # so that only the iteration refers to its matrices
    converge(course, (first.scaled(high), *others), low, eps)
    if square.certain is None:  # computed when read: fifty evaluations of every step
        known = tuple(course.steps), course.size, low, top
        course.bounds = Later(functools.partial(certified, *known))
    if course.restore is None:
        return course.x
    kernels.release()
    del square  # free its storage before the factor is formed
    return course.restore(course.x)


def _after(
    last: Callable[[Array], Array], first: Callable[[Array], Array] | None
) -> Callable[[Array], Array]:
    return last if first is None else lambda v: last(first(v))


def _widened(x: Array, course: History, kernels: NumpyKernels) -> tuple[Array, float] | None:
    """Apply one Halley step in double precision, where the optimal c need not be capped.

    Returns
    -------
    x, ratio : ndarray, float
        The new matrix and the ratio of its extreme singular values. None if the smallest one is
        below rounding in double precision too.
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
