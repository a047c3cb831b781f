"""Functions of Hermitian matrices: inverse p-th roots."""

from __future__ import annotations

import functools
import math
from typing import Any, NoReturn, cast

from polarlib._schedules.images import odd_images
from polarlib._schedules.schedule import Schedule
from polarlib._schedules.steps import polynomials
from polarlib._schedules.validity import MOST_STRIDE
from polarlib._stages.options import default_tolerance
from polarlib.arrays.checks import count, instance, number
from polarlib.arrays.entered import enter
from polarlib.arrays.entry import ArrayT, as_matrix, check_same_place, finite_max_abs
from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import empty_result
from polarlib.arrays.library import astype_like, at_least_single, format_name, is_complex
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.settings import looks, under_default_settings
from polarlib.decomposition import hermitian_part
from polarlib.design import targets
from polarlib.engine.iterate import coupled
from polarlib.engine.normalise import spectral_bound
from polarlib.engine.rules import differentiable_inverse_root
from polarlib.uses.nearest import check_square

Array = Any

# Degree of every step in R: one product more than degree 1, among 2 + p in all.
DEGREE = 2
# More steps than any condition number in double precision requires.
MOST_STEPS = 80
# Largest p of the default schedule. For larger p the p rounding errors of a step are amplified by
# slopes to the p-th power, and at p = 64 no digit is left. Chosen by experiment.
LARGEST_P = 16
# Largest p for which matrices are scaled by p-th powers of two. Scaled entries are of the size of
# up to 2**(p / 2), which would lose range for larger p.
LARGEST_EXACT = 64
# Up to this many columns LAPACK's residual, the reference of the check, may be small by chance.
LARGEST_CORRECTED = 16
# Largest distance from I of V^H A V scaled by the eigenvalues. Below 1 the matrix is definite. The
# error after the correction to first order is the square of the distance.
DIAGONAL = 0.5
# A warm start ends when a step reduces the residual by less than this factor.
PROGRESS = 0.5


@looks
@under_default_settings
def inverse_root(
    a: ArrayT,
    p: int,
    *,
    schedule: Schedule | None = None,
    condition: float | None = None,
    start: ArrayT | None = None,
) -> ArrayT:
    """Return the inverse p-th root ``A**(-1/p)`` of a Hermitian positive definite matrix.

    Parameters
    ----------
    a : array_like, shape (..., n, n)
        Not modified. Integers are converted to float64.
    p : int
        At least 2.
    schedule : Schedule, optional
        A schedule of :func:`polarlib.design.inverse_root` for this p. The result is then the
        approximation that its products give.
    condition : float, optional
        Upper bound of the condition number. If it is given, nothing is read from a device. Used
        only if the root is computed by products.
    start : array, shape (..., n, n), optional
        An approximation of the root, such as the root of the matrix before a small change. Newton's
        method from the approximation is tried first. It converges from near the root, for condition
        numbers up to about 10. A start that already satisfies the check is returned. The accuracy
        is that without `start`. Not used under ``jax.jit`` and other traces.

    Returns
    -------
    array, shape (..., n, n)
        Hermitian up to rounding in the last place, with the array library, device and dtype of `a`.

    Raises
    ------
    TypeError
        If `a` is not an array of numbers, or `start` is of another library.
    ValueError
        If p is not an integer of at least 2, `schedule` is for another function, `condition` is
        below 1, the matrices are not square, or `start` has another shape. Also for NaN or
        infinity, and for a matrix that is not Hermitian up to ``max(100, n)`` epsilons, not
        positive definite, or too near to singular. The values of a matrix on a device are not
        checked if `condition` or `schedule` is given.

    Notes
    -----
    Single precision and narrower formats are computed in double precision, if the library has it.
    For p <= 16 the root is computed by matrix products, ``Q <- Q q(R)``, ``R <- R q(R)**p`` from
    Q = I and ``R = A / c``. Here c is a bound of the largest eigenvalue within a factor of
    ``n**(1/16)``, and ``A**(-1/p) = c**(-1/p) Q``. The cost is a Cholesky factorisation, 3 products
    for c, 5 for the smallest eigenvalue unless `condition` is given, p + 2 per step (about 7 steps
    for condition 1e4), and 8 to check the result, where it can be read.

    Otherwise (double precision, JAX without 64-bit types, p > 16) the root is computed from
    eigenvectors V. ``V^H A V`` is evaluated with one and a half times as many bits, by exact
    products of parts. Its root is corrected to first order for the off-diagonal entries.

    With u the unit roundoff of the dtype of `a`, the residual
    ``||R**floor(p/2) A R**ceil(p/2) - I||_F`` is evaluated in twice the format. It is at most the
    larger of p n u and three times the residual of ``V w**(-1/p) V^H`` by LAPACK's eigenvalues in
    the same format. This holds for condition numbers up to 0.01 / u: 1.6e5 in float32, 9e13 in
    float64. Beyond, up to 1 / (2 u), a root is returned only if all eigenvalues are distinct from
    zero. With `schedule` the error is that of the schedule.

    If nothing may be read from a device (`condition` or `schedule` given, or under a trace), a
    matrix that is not finite or not definite gives NaN, and a matrix that is not Hermitian is
    replaced by its Hermitian part.

    torch and JAX differentiate the exact root by a rule (docs/evidence/derivatives.md). With
    `schedule` they differentiate the products.

    References
    ----------
    C.-H. Guo and N. J. Higham, SIAM J. Matrix Anal. Appl. 28 (2006) 788-804 (coupled iterations).
    K. Ozaki et al., Numer. Algorithms 59 (2012) 95-118 (exact products).

    Examples
    --------
    >>> import numpy as np
    >>> r = inverse_root(np.array([[5.0, 4.0], [4.0, 5.0]]), 2)
    >>> bool(np.allclose(r @ r @ [[5.0, 4.0], [4.0, 5.0]], np.eye(2)))
    True
    """
    p = count("p", p, 2, MOST_STRIDE)
    if schedule is not None:
        _check_schedule(schedule, p)
    if condition is not None:
        condition = number("condition", condition, 1)
    a, ops = as_matrix(a)
    check_square(a, "inverse_root")
    if start is not None:
        start = _checked_start(start, a)
    if 0 in a.shape:
        return cast(ArrayT, empty_result(a, ops))
    find = functools.partial(_computed, p=p, schedule=schedule, condition=condition, start=start)
    if schedule is not None:  # the library differentiates the products of the approximation
        return cast(ArrayT, find(a))
    exact = functools.partial(inverse_root, p=p, condition=condition)
    return cast(ArrayT, differentiable_inverse_root(find, a, exact, p))


def _computed(
    a: Array,
    *,
    p: int,
    schedule: Schedule | None,
    condition: float | None,
    start: Array | None,
) -> Array:
    """Return the inverse root of square matrices that are not empty."""
    ops = ops_of(a)
    hinted = schedule is not None or condition is not None
    entered = enter(
        a,
        ops=ops,
        look="if free" if hinted else "always",
        double=True,
        scaling=functools.partial(_scale, p=p),
    )
    x, scale = entered.x, entered.scale
    reads = not ops.is_abstract(x) and (ops.host or not hinted)
    h = hermitian_part(x, ops, default_tolerance(a.shape, format_name(a)), look=reads)
    given = format_of(format_name(at_least_single(a, ops)))
    wider = format_of(format_name(x)).unit_roundoff < given.unit_roundoff
    root = None
    if start is not None and not ops.is_abstract(x):
        # The root of A / scale is scale**(1/p) times that of A.
        guess = ops.scale(astype_like(start, x, ops), _root_of_scale(scale, p, ops))
        root = _from_start(guess, h, p, given.unit_roundoff, ops)
    # Products in the format of A leave residuals far above those of an eigendecomposition.
    by_products = schedule is not None or (wider and p <= LARGEST_P and (reads or hinted))
    if root is None and by_products:
        root = _by_products(h, p, schedule, condition, given.epsilon, reads, ops)
        if reads and schedule is None and not _meets(root, h, p, given.unit_roundoff, ops)[0]:
            root = None
    if root is None:
        root = _by_eigenvectors(h, p, given.epsilon, reads, ops)
    return entered.leave(root, 1 / _root_of_scale(scale, p, ops))


def _check_schedule(schedule: Schedule, p: int) -> None:
    instance("schedule", schedule, Schedule, "a Schedule")
    polynomials(schedule, "inverse_root")
    if schedule.stride != p or schedule.target != "polar" or schedule.upper != 1:
        raise ValueError(
            f"schedule must have stride {p}, target 'polar' and upper end 1, got "
            f"{schedule.name!r} with stride {schedule.stride}, target {schedule.target!r} and "
            f"upper end {schedule.upper:g}; use design.inverse_root({p}, ...)"
        )


def _checked_start(start: Array, a: Array) -> Array:
    start, _ = as_matrix(start, "start")
    check_same_place(a, "a", start, "start")
    if start.shape != a.shape:
        raise ValueError(
            f"start must have the shape of a, {tuple(a.shape)}, got {tuple(start.shape)}"
        )
    if is_complex(start) and not is_complex(a):
        raise ValueError("start must be real, as a is, got complex entries; pass start.real")
    return start


def _scale(max_abs: Array, ops: Ops, *, p: int) -> Array | float:
    """Return a power of two near the largest entry, for small p of 2**p, whose root is exact."""
    scale = ops.binary_scale(max_abs)
    if p > LARGEST_EXACT:
        return scale
    if isinstance(scale, float):
        return 2.0 ** (p * round(math.log2(scale) / p))
    return 2.0 ** (ops.xp.round(ops.xp.log2(scale) / p) * p)


def _root_of_scale(scale: Array | float, p: int, ops: Ops) -> Array | float:
    """Return ``scale**(1/p)``, exact if it is a power of two, although 1 / p may be rounded."""
    if p > LARGEST_EXACT:
        return scale ** (1 / p)
    if isinstance(scale, float):
        return 2.0 ** round(math.log2(scale) / p)
    return 2.0 ** ops.xp.round(ops.xp.log2(scale) / p)


def _refuse(eps: float) -> NoReturn:
    raise ValueError(
        "a is not positive definite, or its condition number exceeds what its format resolves "
        f"(at most {1 / eps:.0e}); add a multiple of the identity, or pass a in double precision"
    )


# -- by products -----------------------------------------------------------------------------------


def _by_products(
    h: Array,
    p: int,
    schedule: Schedule | None,
    condition: float | None,
    eps: float,
    reads: bool,
    ops: Ops,
) -> Array:
    bound, _ = spectral_bound(h, ops)
    r = ops.divide(h, ops.divisor(bound))
    # Also if `condition` is given: for an indefinite matrix products would give a finite result.
    factor = ops.cholesky(r)
    if reads and not math.isfinite(ops.item(ops.max_abs(factor))):
        _refuse(eps)
    if schedule is None:
        if condition is None:
            smallest = _smallest(factor, ops)
            if not smallest > eps:
                _refuse(eps)
        else:
            # The bound exceeds the largest eigenvalue by a factor of up to n**(1/16).
            smallest = 1 / (float(condition) * h.shape[-1] ** (1 / 16))
        working = format_of(format_name(h)).epsilon
        # Rounded down to a power of 2**p, so that few schedules are designed and cached. The 0.001
        # covers the rounding of the logarithm.
        schedule = _converging(p, math.floor(math.log2(smallest) / p - 1e-3), working)
    z, alpha, beta = coupled(r, schedule.steps, ops, stride=p)
    q = ops.add_diagonal(ops.combine((alpha,), (z,)), beta)
    # One root after the other: their product could overflow where the result does not.
    q = ops.hermitian_part(q) * ops.divisor(bound) ** (-1 / p)
    return q if reads else q + ops.max_abs(factor) * 0  # NaN where the factorisation failed


def _smallest(factor: Array, ops: Ops) -> float:
    """Return a lower bound of the eigenvalues of ``L L^H`` in a stack, within ``n**(1/16)``."""
    eye = ops.xp.broadcast_to(ops.eye(factor.shape[-1], factor), factor.shape)
    inverse = ops.solve_lower(factor, eye)
    size = ops.max_abs(inverse)
    bound, _ = spectral_bound(ops.gram(inverse / astype_like(size, inverse, ops)), ops)
    return -ops.item(-(1 / (bound * size * size)))


@functools.lru_cache(maxsize=256)
def _converging(p: int, exponent: int, eps: float) -> Schedule:
    """Return the schedule that is accurate to rounding for eigenvalues from ``2**(p exponent)``."""
    lower = 2.0 ** min(exponent, -1)
    whole = targets.inverse_root(p, lower, [1 + DEGREE * p] * MOST_STEPS)
    for k, (lo, hi) in enumerate(odd_images(whole.steps, lower, 1.0, stride=p), 1):
        if max(1 - lo, hi - 1) <= 4 * eps:
            return whole.truncate(k)
    return whole


# -- by eigenvectors -------------------------------------------------------------------------------


def _by_eigenvectors(h: Array, p: int, eps: float, reads: bool, ops: Ops) -> Array:
    """Return ``V f(V^H A V) V^H`` with f to first order around the diagonal of V^H A V.

    The rounding of the eigenvectors changes eigenvalues near u ``||A||``. ``V^H A V``, evaluated
    with more bits, keeps them for every V.
    """
    xp = ops.xp
    _, v = ops.eigh(h)
    b = _congruence(v, h, v, ops)
    w = xp.linalg.diagonal(b)
    w = xp.real(w) if is_complex(b) else w
    w = xp.where(w > eps * xp.max(w, axis=-1, keepdims=True), w, xp.full_like(w, math.nan))
    rows, columns = w[..., :, None], w[..., None, :]
    eye = ops.eye(w.shape[-1], w)
    off = ops.frobenius(
        b / astype_like(xp.sqrt(rows) * xp.sqrt(columns), b, ops) - astype_like(eye, b, ops)
    )
    if reads and not ops.item(off) <= DIAGONAL:
        _refuse(eps)
    # Divided differences of f from the logarithm of the quotient, without cancellation.
    s = 1 / p
    log = xp.log(rows / columns)
    apart = xp.where(log == 0, xp.ones_like(log), log)
    slopes = xp.where(log == 0, xp.full_like(log, -s), xp.expm1(-s * apart) / xp.expm1(apart))
    slopes = astype_like(slopes * columns ** (-1 - s), b, ops)
    roots = _scalar_roots(w, p, ops)
    core = xp.where(eye == 1, astype_like(roots[..., None], b, ops), b * slopes)
    root = ops.hermitian_part(ops.matmul(ops.matmul(v, core), ops.adjoint(v)))
    if h.shape[-1] <= LARGEST_CORRECTED and p <= LARGEST_EXACT:
        root = _corrected(root, h, v, roots, p, ops)
    return root if reads else root + xp.where(off <= DIAGONAL, off * 0, off * math.nan)


def _corrected(r: Array, h: Array, v: Array, roots: Array, p: int, ops: Ops) -> Array:
    """Return R after a Newton step for ``R**k H R**(p - k) = I``, k = p // 2.

    The residual is evaluated with more bits. In the basis V, with x and y the roots of two
    eigenvalues, the derivative of an entry is the sum of ``(x / y)**i / y`` over i from k - p to
    k - 1.
    """
    k = p // 2
    high, low = r, r * 0.0
    for factor in (*[r] * (k - 1), h, *[r] * (p - k)):
        exact, rest = _wide_product(high, factor, ops)
        high, low = exact, rest + ops.matmul(low, factor)
    eye = astype_like(ops.eye(r.shape[-1], r), r, ops)
    residual = (eye - high) - low
    residual = ops.matmul(ops.matmul(ops.adjoint(v), residual), v)
    columns = roots[..., None, :]
    ratio = roots[..., :, None] / columns
    total = sum(ratio**i for i in range(k - p, k)) / columns
    step = residual / astype_like(total, residual, ops)
    return r + ops.hermitian_part(ops.matmul(ops.matmul(v, step), ops.adjoint(v)))


def _scalar_roots(w: Array, p: int, ops: Ops) -> Array:
    """Return ``w**(-1/p)`` of numbers, with an error of about half a unit in the last place.

    The rounding errors of the exponent and of the power are corrected by a Newton step, with the
    residual evaluated with more bits.
    """
    share = 2.0 ** -((format_of(format_name(w)).significand - 1) // 2)

    def halves(x: Array, rest: Array | float = 0.0) -> tuple[Array, Array]:
        """Return ``x + rest`` as the sum of a number of half the bits and a remainder."""
        unit = ops.binary_scale(ops.xp.abs(x)) * (2 * share)
        high = ops.xp.round(x / unit) * unit
        return high, (x - high) + rest

    def product(x: tuple[Array, Array], y: tuple[Array, Array]) -> tuple[Array, Array]:
        """Return the product as the sum of an exact leading part and a remainder."""
        return x[0] * y[0], x[0] * y[1] + x[1] * y[0] + x[1] * y[1]

    root = w ** (-1 / p)
    power = base = halves(root)
    for bit in bin(p)[3:]:
        power = halves(*product(power, power))
        power = halves(*product(power, base)) if bit == "1" else power
    high, rest = product(power, halves(w))
    return root - root * (((high - 1.0) + rest) / p)


def _congruence(left: Array, h: Array, right: Array, ops: Ops) -> Array:
    """Return ``left^H h right`` with one and a half times the bits, by exact leading products."""
    high, low = _wide_product(h, right, ops)
    left = ops.adjoint(left)
    exact, rest = _wide_product(left, high, ops)
    return exact + (rest + ops.matmul(left, low))


def _wide_product(x: Array, y: Array, ops: Ops) -> tuple[Array, Array]:
    """Return ``x y`` as the sum of an exact product and a small one.

    The leading parts are multiples of a unit so large that no sum of their products is rounded.
    """
    xp = ops.xp
    share = 2.0 ** -((format_of(format_name(x)).significand - 1) // 2)

    def leading(x: Array) -> Array:
        unit = ops.binary_scale(ops.frobenius(x)) * (2 * share)
        if not is_complex(x):
            return xp.round(x / unit) * unit
        real, imag = (astype_like(xp.round(f(x) / unit) * unit, x, ops) for f in (xp.real, xp.imag))
        return real + imag * 1j

    x0, y0 = leading(x), leading(y)
    rest = ops.matmul(x0, y - y0) + ops.matmul(x - x0, y)
    return ops.matmul(x0, y0), rest


# -- the check, and a warm start -------------------------------------------------------------------


def _meets(r: Array, h: Array, p: int, unit: float, ops: Ops) -> tuple[bool, float, Array]:
    """Return whether a root meets the bound of its residual, the largest norm, and the residual."""
    n, low = r.shape[-1], _power(r, p // 2, ops)
    m = _congruence(low, h, low if p % 2 == 0 else ops.matmul(low, r), ops)
    residual = astype_like(ops.eye(n, r), r, ops) - m
    norm = ops.frobenius(residual)
    # The residual that rounding R alone leaves: a lower bound of the root of the condition number.
    condition = ops.max_abs(r) ** p * ops.max_abs(h)
    worst = ops.item(norm / (ops.xp.sqrt(n * condition) + p * n / 2))
    size = ops.item(norm)
    return worst <= unit and size <= DIAGONAL, size, residual


def _power(r: Array, k: int, ops: Ops) -> Array:
    """Return ``R**k`` for k >= 1."""
    if k == 1:
        return r
    half = _power(r, k // 2, ops)
    square = ops.matmul(half, half)
    return ops.matmul(square, r) if k % 2 else square


def _from_start(r: Array, h: Array, p: int, unit: float, ops: Ops) -> Array | None:
    """Return the root by Newton steps from an approximation; None if they do not converge.

    ``R (I - E)`` with E the residual is the Newton step if R commutes with A. Rounding errors and
    the change of A do not commute, and grow by about ``sqrt(condition) / 4`` per step (N. J.
    Higham, Math. Comp. 46 (1986) 537-549). Therefore every step is checked.
    """
    finite_max_abs(r, ops, "start")
    r, last = ops.hermitian_part(r), 1 / PROGRESS
    while True:
        good, size, residual = _meets(r, h, p, unit, ops)
        if good:  # if R is definite, it is the principal root, and A is definite
            return r if ops.is_definite(r, ops.frobenius(r) * 0) else None
        if not size < PROGRESS * last:
            return None
        last = size
        r = r + ops.hermitian_part(ops.matmul(r, residual)) * (1 / p)
