"""polar() and orthogonalize(): validate, choose, run, and give evidence."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from polarlib import published
from polarlib._methods import (
    FIXED,
    HINTED,
    METHODS,
    TRACED,
    auto,
    fixed_schedule,
    methods,
    partial_isometry,
    polynomial,
    rational,
    small,
    worst_of,
)
from polarlib._methods.options import resolve_schedule
from polarlib._schedules.schedule import Schedule
from polarlib.arrays.checks import choice, flag, function, nearest, number, shown
from polarlib.arrays.entered import COMFORTABLE, Entered, enter
from polarlib.arrays.entry import as_matrix, check_out, copied, refuse_hidden
from polarlib.arrays.formats import format_of
from polarlib.arrays.memory import is_out_of_memory
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.settings import looks, under_default_settings, warn
from polarlib.design import RationalSchedule
from polarlib.engine.evidence import (
    Evidence,
    condition_bounds,
    evidence,
    factor_figures,
    figures,
    in_parts,
    is_definite,
    rank_cut,
    rank_of,
    sketch,
    sketched_figures,
    traced_verdict,
    within,
)
from polarlib.engine.rules import differentiable_polar, differentiable_unitary
from polarlib.result import ConvergenceWarning, PolarResult, Run, Status

__all__ = ["check_method", "default_tolerance", "hermitian_part", "polar", "unitary_factor"]

Array = Any
F = TypeVar("F", bound=Callable[..., Any])


# -- polar -----------------------------------------------------------------------------------

# Rows over columns (columns over rows) from which a matrix is reduced in its own storage, if that
# may be overwritten: below, square matrices take as much storage as is saved.
STORED_FROM = 4

_EXACT = (Status.CONVERGED, Status.FELL_BACK)


def default_tolerance(shape: tuple[int, ...], format_name: str) -> float:
    """Orthogonality and backward error that count as converged: ``max(100, n)`` epsilons, n <= m.

    Not of m: sums over long columns are taken in blocks, and their errors do not grow.
    """
    return max(100, min(shape[-2:])) * format_of(format_name).epsilon


def hermitian_part(x: Array, ops: Ops, tolerance: float, *, look: bool = True) -> Array:
    """Return the Hermitian part of `x`; raise if `look` and the rest exceeds the tolerance."""
    if not look:
        return ops.hermitian_part(x)
    h, rest = ops.hermitian_split(ops.combine((1.0,), (x,)))  # of a copy, in its storage
    skew = ops.item(rest / ops.divisor(ops.frobenius(x)))
    if not skew <= tolerance:
        raise ValueError(
            f"a is not Hermitian: its skew part is {skew:.1e} of it, above {tolerance:.1e}; "
            "pass (a + a^H) / 2 if that is what you mean"
        )
    return h


def _tolerance(a: Array, ops: Ops, rtol: float | None) -> float:
    if rtol is None:
        name = ops.format_name(a)
        return default_tolerance(a.shape, name if name == "float64" else "float32")
    return number("rtol", rtol, 0, 1, ends="()")


def _enter(a: Array, ops: Ops, check_finite: bool) -> Entered:
    return enter(
        a,
        ops=ops,
        look="always" if check_finite else "never",
        remedy="remove them, or pass check_finite=False to get NaN back",
        mask=True,
        tall=True,
        comfortable=True,
    )


def _lower_bound(
    method: str | Schedule, sigma_min: float | None, cond: float | None, problem: Entered
) -> float | None:
    """Turn what the caller knows into a lower bound of sigma_min / sigma_max."""
    if sigma_min is None and cond is None:
        return None
    if method not in HINTED:
        raise ValueError(
            f"sigma_min and cond are for methods that start from a bound, {', '.join(HINTED)}; "
            f"got method={_name(method)!r}"
        )
    bounds = []
    if cond is not None:
        bounds.append(1 / number("cond", cond, 1, math.inf, what="a number of at least 1"))
    if sigma_min is not None:
        sigma_min = number("sigma_min", sigma_min, 0, ends="(]")
        x, ops = problem.x, problem.ops
        if 0 in x.shape or ops.is_abstract(x):  # what it is worth depends on the largest
            return None if cond is None else bounds[0]
        upper = ops.xp.sqrt(ops.norm_1(x)) * ops.xp.sqrt(ops.norm_inf(x))
        largest = ops.item(ops.xp.minimum(upper, ops.frobenius(x)) * problem.scale)
        if sigma_min > largest:
            raise ValueError(
                f"sigma_min={sigma_min!r} exceeds the largest singular value, which is at most "
                f"{largest:.3g}; pass a lower bound of the smallest one"
            )
        bounds.append(sigma_min / largest)
    return max(bounds)


def _run(
    problem: Entered,
    tol: float,
    method: str | Schedule,
    lower: float | None,
    callback: Callable[[int, Array], None] | None,
) -> tuple[Array, Run]:
    """Run one method, or one fixed schedule."""
    x, ops = problem.x, problem.ops
    parts = in_parts(x, ops) if callback is None else []
    if parts:
        flat, u = x.reshape(-1, *x.shape[-2:]), np.empty(x.shape, x.dtype)
        into, runs = u.reshape(flat.shape), []
        for part in parts:
            into[part], run = _run(problem._replace(x=flat[part]), tol, method, lower, None)
            runs.append(run)
        return u, worst_of(runs, x.shape[:-2])
    if ops.is_abstract(x):
        if method in TRACED:
            return TRACED[method](x, ops, tol=tol, lower=lower)
        chosen = resolve_schedule(method, None, ops.format_name(x))
        return fixed_schedule(x, ops, chosen)
    if isinstance(method, str) and method in HINTED and lower is not None:
        return HINTED[method](x, ops, tol=tol, callback=callback, lower=lower)
    if method == "auto":
        return auto(x, ops, tol=tol, callback=callback)
    if isinstance(method, str) and method in METHODS:
        return METHODS[method](x, ops, tol=tol, callback=callback)
    chosen = resolve_schedule(method, None, ops.format_name(x))
    if isinstance(chosen, RationalSchedule):
        return rational(x, ops, chosen, precision=ops.format_name(x), callback=callback)
    return polynomial(x, ops, chosen, precision=ops.format_name(x), callback=callback)


def _name(method: str | Schedule) -> str:
    return method if isinstance(method, str) else method.name


def _recompute_by_svd(problem: Entered, tol: float, run: Run) -> tuple[Array, Run]:
    """Take the SVD after a method that failed; its work is counted."""
    u, after = METHODS["svd"](problem.x, problem.ops, tol=tol)
    note = "; ".join(filter(None, (run.note, "its factor missed the tolerance")))
    run = run._replace(matmuls=run.matmuls + after.matmuls, bounds=None, note=note)
    return u, run._replace(singular_values=after.singular_values)


@looks
def polar(
    a: Array,
    side: str = "right",
    *,
    method: str | Schedule = "auto",
    completion: bool = True,
    rtol: float | None = None,
    sigma_min: float | None = None,
    cond: float | None = None,
    check_finite: bool = True,
    throw: bool = False,
    callback: Callable[[int, Array], None] | None = None,
    out: tuple[Array | None, Array | None] | None = None,
    overwrite_a: bool = False,
) -> PolarResult:
    """Polar decomposition A = U H (or A = H U), with evidence.

    Equals :func:`scipy.linalg.polar` to rounding, for every shape (U of a rank-deficient matrix is
    not unique), and takes stacks of matrices, arrays of torch, JAX, Dask and CuPy (CuPy: not run on
    a GPU yet) and half precision (computed in float32) besides.

    Parameters
    ----------
    a : array or array-like, shape (..., m, n)
        Never changed, unless `overwrite_a`. Integers become float64.
    side : {"right", "left"}, optional
        ``A = U H`` with H n x n, or ``A = H U`` with H m x m. May be given by position, as to
        :func:`scipy.linalg.polar`.
    method : str or Schedule, optional
        One of :func:`polarlib.methods`; "auto" takes, of the methods that are backward stable for
        the condition number that it finds, the one that the measured costs of kernels make the
        fastest (``polarlib bench --calibrate``), and gives the reason in `reason`. A method that
        fails on a matrix (Newton's on a singular one, say) is followed by the SVD, and the status
        is FELL_BACK.
    completion : bool, optional
        For rank-deficient matrices: complete U to orthonormal columns (rows, if m < n), as SciPy
        does; otherwise U is the partial isometry ``U_r V_r^H``.
    rtol : float, optional
        Orthogonality and backward error that count as converged; ``max(100, min(m, n))`` machine
        epsilons by default.
    sigma_min, cond : float, optional
        A lower bound of the smallest singular value of every matrix, or an upper bound of its
        condition number: "auto" and the methods that need a bound then compute none. If it is
        wrong, the check of the result fails and the SVD is used. `condition_bounds` of the result
        do not rest on it.
    check_finite : bool, optional
        Raise if `a` contains NaN or infinity; otherwise such a matrix gives NaN.
    throw : bool, optional
        Raise :class:`polarlib.ConvergenceWarning` as an error instead of warning.
    callback : callable, optional
        Called as ``callback(k, x)`` after iteration k with the iterate, tall and scaled, which it
        must not change. Fixed schedules also call it with k = 0 and the normalised matrix.
    out : tuple of two arrays or None, optional
        Where to store U and H; None for an array that is to be new. With NumPy the larger of the
        two Hermitian factors is formed in its place, so that none is needed besides.
    overwrite_a : bool, optional
        Store U in the memory of `a`, and return that. A NumPy matrix with at least 4 times as many
        rows as columns (or columns as rows), well-conditioned enough for a Gram matrix, is
        decomposed in its own storage if the smaller Hermitian factor is asked for: the peak falls
        by about the size of `a`, and `backward_error` is estimated (docs/memory.md). Every other
        matrix is needed until the end, and the peak is that without `overwrite_a`.

    Returns
    -------
    PolarResult
        Unpacks as ``u, h``. Array library, device and dtype of `a`. A fixed schedule that ends
        short of orthonormal is no failure: its status is FIXED_SCHEDULE.

    Raises
    ------
    TypeError
        If `a` is not an array of numbers, or `out` does not match.
    ValueError
        For fewer than two dimensions, an unknown method or side, NaN or infinity, a bound that
        cannot be one.
    MemoryError
        If H is the larger of the two Hermitian factors, n x n for a matrix with m < n, and exceeds
        the memory of the host (before any work) or what the library can allocate.

    Warns
    -----
    ConvergenceWarning
        If the orthogonality missed `rtol`, or H overflows.

    See Also
    --------
    nearest_orthogonal : U alone, at less cost.

    Notes
    -----
    ``H = (U^H A + A^H U) / 2``: the Hermitian matrix nearest to ``U^H A``, positive semidefinite up
    to rounding. N. J. Higham, Functions of Matrices (SIAM, 2008), chapter 8.

    Under ``jax.jit`` and ``jax.vmap``, where no entry can be read, methods of fixed work are taken:
    "svd" (and "auto", which is the same there), "qdwh" and "zolotarev" with the steps for `cond`,
    or for the worst condition number of the format, "newton_schulz", "qr", and schedules. Figures
    and `converged` of the result are arrays then, `status` and `reason` None; nothing warns, no SVD
    takes over, NaN or infinity gives NaN, `throw` and `callback` are refused, `sigma_min` is not
    used. docs/derivatives.md has a table of what comes out.

    Examples
    --------
    >>> import numpy as np
    >>> u, h = polar(np.array([[1.0, -1.0], [2.0, 4.0]]))
    >>> bool(np.allclose(u @ h, [[1, -1], [2, 4]])), bool(np.allclose(u.T @ u, np.eye(2)))
    (True, True)
    """
    side = choice("side", side, ("right", "left"))
    completion, overwrite_a = flag("completion", completion), flag("overwrite_a", overwrite_a)
    check_finite, throw = flag("check_finite", check_finite), flag("throw", throw)
    if callback is not None:
        function("callback", callback, "a function of the iteration and the iterate")
    given = a
    a, ops = as_matrix(a, sharded=True)
    check_method(method)
    _check_spread(a, ops, method, completion)
    stored = _storage(given, a, ops, side, out, overwrite_a)
    apply = functools.partial(
        _decompose,
        side=side,
        method=method,
        completion=completion,
        rtol=rtol,
        sigma_min=sigma_min,
        cond=cond,
        check_finite=check_finite,
        throw=throw,
        callback=callback,
        h_out=stored[1],
    )
    refuse = functools.partial(_refuse_fixed, method)
    recorded = ops.is_traced(a) and 0 not in a.shape
    if recorded and not ops.is_abstract(a):
        refuse()  # of what is hidden nobody knows whether it will be differentiated

    def find(a: Array) -> PolarResult:
        if not recorded or not ops_of(a).is_traced(a):
            return apply(a)
        return differentiable_polar(apply, a, unitary_factor, side, refuse)

    plain = method == "auto" or (method in METHODS and method not in ("qr", "small"))
    if overwrite_a and plain and callback is None and not recorded:
        plainly = functools.partial(apply, side="right")
        result = _in_its_storage(a, ops, side, plainly, _tolerance(a, ops, rtol), throw)
        if result is not None:
            return _stored(result, (None, stored[1]))
    return _stored(ops.with_shards(find, a, "a"), stored)


def _with_room_for_h(decompose: F) -> F:
    """Raise MemoryError with the way out where the larger Hermitian factor cannot be stored."""

    @functools.wraps(decompose)
    def run(a: Array, *, side: str, **options: Any) -> PolarResult:
        (m, n), ops = a.shape[-2:], ops_of(a)
        if m == n or (m < n) != (side == "right"):
            return decompose(a, side=side, **options)
        shape = (*a.shape[:-2], max(m, n), max(m, n))
        other, size = {"right": "left", "left": "right"}[side], math.prod(shape)
        message = (
            f"polar(side={side!r}) of shape {tuple(a.shape)} has a Hermitian factor of shape "
            f"{shape}, {size * ops.bytes_of_entry(a) / 2**30:,.1f} GiB, which does not fit in "
            f"memory; pass side={other!r} for the smaller one, {min(m, n)} x {min(m, n)}, or take "
            "nearest_orthogonal for U alone"
        )
        if not ops.fits(shape, a):
            raise MemoryError(message)
        try:
            return decompose(a, side=side, **options)
        except Exception as error:
            if is_out_of_memory(error):
                raise MemoryError(message) from error
            raise

    return cast(F, run)


def _in_its_storage(
    a: Array,
    ops: Ops,
    side: str,
    decompose: Callable[[Array], PolarResult],
    tol: float,
    throw: bool,
) -> PolarResult | None:
    """Decompose a tall or wide matrix, U in its storage; None, and `a` unchanged, where not.

    With A = Q S by Cholesky factors, Q where A was, and S = V H, the unitary factor is Q V.
    Everything but the two norms of the result is found from S; they are estimated from products
    that are taken before.
    """
    wide = a.shape[-2] < a.shape[-1]
    few, many = sorted(a.shape[-2:])
    asked = side == ("left" if wide else "right")  # for the smaller Hermitian factor
    kernels = ops.kernels(a)
    if kernels is None or not (a.ndim == 2 and asked and many >= STORED_FROM * few > 0):
        return None
    x = a.T if wide else a
    peak = ops.item(ops.max_abs(x))
    contiguous = x.flags.c_contiguous or x.flags.f_contiguous
    if not (contiguous and 1 / COMFORTABLE <= peak <= COMFORTABLE):
        return None
    conjugate = wide and ops.is_complex(x)
    if conjugate:
        np.conjugate(x, out=x)
    known = sketch(x, ops)
    reduced = kernels.cholesky_qr_in_place(x)
    if reduced is not None:
        s, restore = reduced
        result = decompose(s)
        restore(result.unitary)
        figures = sketched_figures(x, result.hermitian, known, ops)
    if conjugate:
        np.conjugate(x, out=x)
    if reduced is None:
        return None
    result = dataclasses.replace(
        result,
        unitary=a,
        orthogonality=float(figures[0]),
        backward_error=float(figures[1]),
        matmuls=result.matmuls + 3,
        reason="; ".join(filter(None, (result.reason, "reduced in the storage of a"))),
    )
    if within(figures, tol) or result.status not in _EXACT:
        return result
    message = _shortfall(result.method, *figures, tol, Status.NOT_CONVERGED)
    if throw:
        raise ConvergenceWarning(message)
    warn(message, ConvergenceWarning)
    return dataclasses.replace(result, status=Status.NOT_CONVERGED, converged=False)


@under_default_settings
@_with_room_for_h
def _decompose(
    a: Array,
    *,
    side: str,
    method: str | Schedule,
    completion: bool,
    rtol: float | None,
    sigma_min: float | None,
    cond: float | None,
    check_finite: bool,
    throw: bool,
    callback: Callable[[int, Array], None] | None,
    h_out: Array | None = None,
) -> PolarResult:
    """Choose, run and give evidence."""
    ops = ops_of(a)
    m, n = a.shape[-2:]
    tol = _tolerance(a, ops, rtol)
    if ops.is_abstract(a):
        refuse_hidden(a, ops, "polar")
        _refuse_traced(method, "polar", ops, throw=throw, callback=callback)
        return _decompose_hidden(a, ops, side, method, completion, tol, sigma_min, cond)
    hints = sigma_min is not None or cond is not None
    worth = method == "small" or (method == "auto" and _use_closed_form(a))
    if worth and _is_small(a) and not hints and callback is None:
        done = _polar_small(a, ops, side, tol, completion)
        if done is not None:
            return done
    problem = _enter(a, ops, check_finite)
    lower = _lower_bound(method, sigma_min, cond, problem)
    if 0 in a.shape:
        return _empty(a, ops, side, method)
    x = problem.x
    u, run = _run(problem, tol, method, lower, callback)
    name = run.method or _name(method)
    found = evidence(u, x, ops)
    status, full = _status_from_errors(name, method, found, x.shape, tol, ops)
    if status is Status.NOT_CONVERGED and name not in ("svd", "qr") and not ops.is_sharded(x):
        u, run = _recompute_by_svd(problem, tol, run)
        name += ", then svd"
        found = evidence(u, x, ops)
        judged, full = _status_from_errors("svd", "svd", found, x.shape, tol, ops)
        status = Status.FELL_BACK if judged is Status.CONVERGED else judged
    h, orthogonality, backward_error = found[:3]
    rank = rank_of(x, h, run, ops, full=full)
    condition = condition_bounds(h, x.shape, run, ops, full=full)
    condition = condition[0], np.where(rank < min(m, n), np.inf, condition[1])
    isometry = not completion and bool(np.any(rank < min(m, n))) and status in _EXACT
    if isometry:
        u = partial_isometry(x, ops)
        h, _, backward_error, _ = evidence(u, x, ops)
        orthogonality, _ = figures(u, h, x, ops, isometry=True)
    large = problem.wide != (side == "left")  # the larger of the two Hermitian factors is asked for
    if large:
        del found, h  # the smaller factor
        # NumPy forms the large factor where it is to be stored.
        into = h_out
        if (
            not isinstance(into, np.ndarray)
            or into.dtype != x.dtype
            or np.may_share_memory(into, a)
        ):
            into = None
        h = ops.hermitian_part(ops.matmul(x, ops.adjoint(u), into), may_overwrite=True)
        _, backward_error = figures(u, h, x, ops, large=True)
    if a.dtype != x.dtype:  # half precision: the evidence is of what is returned
        v, g = (ops.at_least_single(ops.astype_like(t, a)) for t in (u, h))
        orthogonality, backward_error = figures(v, g, x, ops, large=large, isometry=isometry)
    if problem.finite is not None:
        lost = np.where(ops.to_host(problem.finite)[..., 0, 0] == 0, math.nan, 0.0)
        orthogonality, backward_error = orthogonality + lost, backward_error + lost
        condition = (condition[0] + lost, condition[1] + lost)
        rank = np.where(np.isnan(lost), 0, rank)
        if np.any(np.isnan(lost)):
            status = Status.NOT_CONVERGED
    h = problem.leave(h, problem.scale, turn=False, may_overwrite=True)
    # ||H||_F = ||A||_F is at most sqrt(m n) times the largest entry: no overflow without a scale.
    checked = a.dtype == x.dtype and problem.unscaled
    overflow = not checked and not math.isfinite(ops.item(ops.max_abs(ops.at_least_single(h))))
    if overflow and status is not Status.NOT_CONVERGED:
        status = Status.OVERFLOW
    if status in (Status.NOT_CONVERGED, Status.OVERFLOW):
        message = _shortfall(name, orthogonality, backward_error, tol, status)
        if throw:
            raise ConvergenceWarning(message)
        warn(message, ConvergenceWarning)
    single = a.ndim == 2
    return PolarResult(
        unitary=problem.leave(u),
        hermitian=h,
        status=status,
        converged=status in _EXACT,
        iterations=run.iterations,
        matmuls=run.matmuls,
        method=name,
        reason=run.note,
        orthogonality=float(orthogonality) if single else orthogonality,
        backward_error=float(backward_error) if single else backward_error,
        rank=int(rank) if single else rank,
        condition_bounds=(float(condition[0]), float(condition[1])) if single else condition,
        trace=run.changes,
    )


def _decompose_hidden(
    a: Array,
    ops: Ops,
    side: str,
    method: str | Schedule,
    completion: bool,
    tol: float,
    sigma_min: float | None,
    cond: float | None,
) -> PolarResult:
    """Decompose matrices that their library hides: no choice, no fall-back, evidence as arrays."""
    xp, name = ops.xp, "svd" if method == "auto" else _name(method)
    problem = _enter(a, ops, False)
    lower = _lower_bound(method, sigma_min, cond, problem)
    if 0 in a.shape:
        zero = xp.zeros(a.shape[:-2], dtype=problem.x.dtype)
        zero = xp.real(zero) if ops.is_complex(a) else zero
        return dataclasses.replace(
            _empty(a, ops, side, name),
            status=None,
            reason=None,
            converged=zero == 0,
            iterations=xp.asarray(0),
            matmuls=xp.asarray(0),
            orthogonality=zero,
            backward_error=zero,
            rank=xp.astype(zero, int),
            condition_bounds=(zero + 1, zero + 1),
        )
    x = problem.x
    u, run = _run(problem, tol, method, lower, None)
    found = evidence(u, x, ops)
    good, rank, bounds = traced_verdict(
        found,
        x,
        run,
        tol,
        ops,
        semidefinite=name == "svd",
        products=name == "newton_schulz",
    )
    h, orthogonality, backward_error = found[:3]
    if not completion:
        u = xp.where((rank < x.shape[-1])[..., None, None], partial_isometry(x, ops), u)
        found = evidence(u, x, ops)
        h = found.hermitian
        orthogonality, backward_error = figures(u, h, x, ops, isometry=True)
        within = (orthogonality <= tol) & (backward_error <= tol) & (found.skew <= tol)
        good = within & (good | (rank < x.shape[-1]))
    large = problem.wide != (side == "left")
    if large:
        h = ops.hermitian_part(ops.matmul(x, ops.adjoint(u)))
        _, backward_error = figures(u, h, x, ops, large=True)
    if a.dtype != x.dtype:  # half precision: the evidence is of what is returned
        v, g = (ops.at_least_single(ops.astype_like(t, a)) for t in (u, h))
        orthogonality, backward_error = figures(v, g, x, ops, large=large, isometry=not completion)
    u, h = problem.leave(u), problem.leave(h, problem.scale, turn=False)
    # An H that overflows is finite before it is scaled back, or rounded to half precision.
    fits = xp.isfinite(ops.max_abs(ops.at_least_single(h)))[..., 0, 0]
    finite = cast(Array, problem.finite)[..., 0, 0]
    orthogonality, backward_error, low, high = (
        xp.where(finite, t, xp.full_like(t, math.nan))
        for t in (orthogonality, backward_error, *bounds)
    )
    return PolarResult(
        unitary=u,
        hermitian=h,
        status=None,
        converged=good & fits & (name != "qr"),
        iterations=xp.asarray(run.iterations),
        matmuls=xp.asarray(run.matmuls),
        method=name,
        orthogonality=orthogonality,
        backward_error=backward_error,
        rank=xp.astype(xp.where(finite, rank, xp.zeros_like(rank)), int),
        condition_bounds=(low, high),
        reason=None,
    )


def _refuse_traced(
    method: str | Schedule, name: str, ops: Ops, *, throw: bool, callback: Any = None
) -> None:
    """Raise where what is asked for takes a look at the entries, which a library hides."""
    if callback is not None or throw:
        what = "throw=True" if throw else "callback"
        raise TypeError(
            f"{what} needs the entries of the matrix, which {ops.hiding}, or leave it out and ask "
            "`converged` of the result"
        )
    if isinstance(method, str) and method in METHODS and method not in TRACED:
        raise TypeError(
            f"{name} by method={method!r} looks at its matrix, which {ops.hiding}, or take a "
            f"method of fixed work ({', '.join(TRACED)}, a schedule)"
        )


def _shortfall(
    name: str, orthogonality: np.ndarray, backward_error: np.ndarray, tol: float, status: Status
) -> str:
    """What a warning says of factors that miss the tolerance."""
    return (
        f"polar(method={name!r}): orthogonality {np.max(orthogonality):.2e}, backward error "
        f"{np.max(backward_error):.2e}, tolerance {tol:.2e}; {status.value}"
    )


def _refuse_fixed(method: str | Schedule) -> None:
    """Raise where the derivative of the unitary polar factor is not that of the result."""
    if method == "qr" or (method != "auto" and _is_fixed(method)):
        raise ValueError(
            f"method={_name(method)!r} stops short of the polar factor and is not differentiated; "
            "orthogonalize() has the derivative of its schedule, or detach the matrix"
        )


def _use_closed_form(a: Array) -> bool:
    """Whether a stack is large enough for closed forms to be faster than the SVD."""
    n = a.shape[-1]
    return n <= small.LARGEST and math.prod(a.shape[:-2]) >= small.WORTH[n]


def _is_small(a: Array) -> bool:
    """Whether the closed forms for small matrices apply, to `a` as it is."""
    m, n = a.shape[-2:]
    if not m == n <= small.LARGEST or 0 in a.shape:
        return False
    return bool(a.dtype == ops_of(a).at_least_single(a).dtype)


def _polar_small(a: Array, ops: Ops, side: str, tol: float, completion: bool) -> PolarResult | None:
    """Decompose stacks of small matrices in one go; None where another way must be taken."""
    done = small.decompose(ops.adjoint(a) if side == "left" else a, ops, tol=tol)
    evident = (done.orthogonality <= tol) & (done.backward_error <= tol) & done.definite
    n = a.shape[-1]
    if not evident.all() or (not completion and np.any(done.rank < n)):
        return None
    if not done.upper.max() < 0.5 * float(np.finfo(ops.format_name(a)).max):  # H may overflow
        return None
    upper = np.full(done.lower.shape, np.inf)
    np.divide(done.upper, done.lower, out=upper, where=(done.lower > 0) & (done.rank == n))
    repaired = f", {done.repaired} of {done.rank.size} by Jacobi rotations" * bool(done.repaired)
    single = a.ndim == 2
    return PolarResult(
        unitary=ops.adjoint(done.unitary) if side == "left" else done.unitary,
        hermitian=done.hermitian,
        status=Status.CONVERGED,
        converged=True,
        iterations=1,
        matmuls=0,
        method="small",
        reason=f"closed forms for {n} x {n} matrices{repaired}",
        orthogonality=float(done.orthogonality) if single else done.orthogonality,
        backward_error=float(done.backward_error) if single else done.backward_error,
        rank=int(done.rank) if single else done.rank,
        condition_bounds=(1.0, float(upper)) if single else (np.ones_like(upper), upper),
    )


def unitary_factor(
    a: Array,
    *,
    method: str | Schedule = "auto",
    completion: bool = True,
    rtol: float | None = None,
    sigma_min: float | None = None,
    cond: float | None = None,
    check_finite: bool = True,
    throw: bool = False,
    out: Array | None = None,
    overwrite_a: bool = False,
    name: str = "unitary_factor",
) -> Array:
    """Unitary factor alone: :func:`polar` without the Hermitian factor and what it costs.

    Parameters and errors are those of :func:`polar`; `out` is one array. Orthogonality and the skew
    part of ``U^H A`` are measured, and the SVD takes over where they miss `rtol`; that H is
    positive semidefinite rests on the method, since H is not formed. The rank is not measured
    either, unless ``completion=False``, which takes an SVD. `name` is that of the function that the
    user has called, for messages.

    Returns
    -------
    array, shape (..., m, n)

    Examples
    --------
    >>> import numpy as np
    >>> unitary_factor(np.diag([2.0, -3.0])).tolist()
    [[1.0, 0.0], [0.0, -1.0]]
    """
    given = a
    a, ops = as_matrix(a, sharded=True)
    check_method(method)
    _check_spread(a, ops, method, completion)
    if method == "qr":
        raise ValueError("method='qr' gives the orthonormal QR factor, which is no polar factor")
    u_out, _ = _storage(given, a, ops, "right", None if out is None else (out, None), overwrite_a)
    apply = functools.partial(
        _factor,
        method=method,
        completion=completion,
        rtol=rtol,
        sigma_min=sigma_min,
        cond=cond,
        check_finite=check_finite,
        throw=throw,
        name=name,
    )
    recorded = ops.is_traced(a) and 0 not in a.shape
    if recorded:
        _refuse_fixed(method)

    def find(a: Array) -> Array:
        return differentiable_unitary(apply, a, unitary_factor) if recorded else apply(a)

    return copied(ops.with_shards(find, a, "a"), u_out)


@under_default_settings
def _factor(
    a: Array,
    *,
    method: str | Schedule,
    completion: bool,
    rtol: float | None,
    sigma_min: float | None,
    cond: float | None,
    check_finite: bool,
    throw: bool,
    name: str,
) -> Array:
    """Choose, run and measure."""
    ops = ops_of(a)
    hidden = ops.is_abstract(a)
    if hidden:
        refuse_hidden(a, ops, name)
        _refuse_traced(method, name, ops, throw=throw)
    tol = _tolerance(a, ops, rtol)
    problem = _enter(a, ops, check_finite)
    lower = _lower_bound(method, sigma_min, cond, problem)
    if 0 in a.shape:
        return ops.empty_result(a)
    x = problem.x
    if completion:
        u, run = _run(problem, tol, method, lower, None)
        found = None if hidden else factor_figures(u, x, ops)
        fixed = _is_fixed(run.method or method)
        if found and not within(found, tol) and not fixed and not ops.is_sharded(x):
            u, run = _recompute_by_svd(problem, tol, run)
            found = factor_figures(u, x, ops)
            if not within(found, tol):
                message = (
                    f"{name}(method={_name(method)!r}): orthogonality {np.max(found[0]):.2e}, "
                    f"skew part {np.max(found[1]):.2e}, tolerance {tol:.2e}; "
                    f"{Status.NOT_CONVERGED.value}"
                )
                if throw:
                    raise ConvergenceWarning(message)
                warn(message, ConvergenceWarning)
    else:
        u = partial_isometry(x, ops)
    return problem.leave(u)


def _storage(
    given: Any,
    a: Array,
    ops: Ops,
    side: str,
    out: tuple[Array | None, Array | None] | None,
    overwrite_a: bool,
) -> tuple[Array | None, Array | None]:
    """Check where the factors are to be stored."""
    if out is None:
        u_out = h_out = None
    else:
        if not isinstance(out, tuple) or len(out) != 2:
            raise TypeError(f"out must be a pair (u, h) of arrays or None, got {shown(out)}")
        u_out, h_out = out
    if overwrite_a:
        if u_out is not None:
            raise ValueError("give out=(u, h) or overwrite_a=True, not both: U has one place")
        if a is not given:
            raise ValueError(
                f"overwrite_a=True needs an array of a floating dtype to write U to, got "
                f"{type(given).__name__}"
            )
        u_out = a
    if u_out is not None:
        check_out(u_out, a, "a" if overwrite_a else "out[0]", "a")
    if h_out is not None:
        k = a.shape[-1] if side == "right" else a.shape[-2]
        check_out(h_out, a, "out[1]", "a", (*a.shape[:-2], k, k))
    return u_out, h_out


def _stored(result: PolarResult, stored: tuple[Array | None, Array | None]) -> PolarResult:
    u, h = copied(result.unitary, stored[0]), copied(result.hermitian, stored[1])
    if u is result.unitary and h is result.hermitian:
        return result
    return dataclasses.replace(result, unitary=u, hermitian=h)


def check_method(method: str | Schedule) -> None:
    """Raise ValueError for an unknown method."""
    known = isinstance(method, str) and (
        method in ("auto", *METHODS, *FIXED) or published.is_published(method)
    )
    if isinstance(method, Schedule) and method.target != "polar":
        raise ValueError(
            f"schedule {method.name!r} approximates {method.target!r}, which is no unitary factor; "
            "apply it with orthogonalize()"
        )
    if not known and not isinstance(method, Schedule | RationalSchedule):
        raise ValueError(f"unknown method {shown(method)}; {nearest(method, ['auto', *methods()])}")


def _check_spread(a: Array, ops: Ops, method: str | Schedule, completion: bool) -> None:
    """Refuse what would bring a distributed matrix to each of its devices, as factorisations do."""
    small_only = method == "newton_schulz" or _is_fixed(method)
    if ops.is_sharded(a) and (method == "auto" or not small_only or not completion):
        what = f"method={method!r}" if completion else "completion=False"
        raise ValueError(
            f"a lies in parts on several devices, and {what} would bring all of it to each of "
            "them; use polar with method='newton_schulz' or a schedule, or orthogonalize, or gather"
            " a first"
        )


def _is_fixed(method: str | Schedule) -> bool:
    return not isinstance(method, str) or method not in METHODS


def _status_from_errors(
    name: str,
    method: str | Schedule,
    found: Evidence,
    shape: tuple[int, ...],
    tol: float,
    ops: Ops,
) -> tuple[Status, bool]:
    """Judge by the evidence alone: orthonormal, A = U H, and H positive semidefinite.

    An orthonormal QR factor has to be orthonormal only.

    Returns
    -------
    status : Status
    full : bool
        Whether full rank was certified on the way.
    """
    if name == "qr":
        orthonormal = bool(np.all(found.orthogonality <= tol))
        return (Status.NOT_POLAR if orthonormal else Status.NOT_CONVERGED), False
    if found.within(tol):
        if name == "svd":  # its H is semidefinite by construction
            return Status.CONVERGED, False
        h = found.hermitian
        full = is_definite(h, 1, rank_cut(shape, ops.format_name(h)), ops)
        if full or is_definite(h, -1, tol, ops):
            return Status.CONVERGED, full
    fixed = method != "auto" and _is_fixed(method)
    return (Status.FIXED_SCHEDULE if fixed else Status.NOT_CONVERGED), False


def _empty(a: Array, ops: Ops, side: str, method: str | Schedule) -> PolarResult:
    """Factors of matrices without entries: U as `a`, H zero, as SciPy gives them."""
    n = a.shape[-1] if side == "right" else a.shape[-2]
    batch = a.shape[:-2]
    figures = np.zeros(batch) if batch else 0.0
    return PolarResult(
        unitary=ops.empty_result(a),
        # Their sums are zero too, and in the graph of what is recorded.
        hermitian=ops.xp.broadcast_to(ops.eye(n, a), (*batch, n, n)) * 0.0
        + ops.xp.sum(a, axis=(-2, -1), keepdims=True),
        status=Status.CONVERGED,
        converged=True,
        iterations=0,
        matmuls=0,
        method=_name(method),
        orthogonality=figures,
        backward_error=figures,
        rank=np.zeros(batch, int) if batch else 0,
        condition_bounds=(figures + 1, figures + 1),
    )
