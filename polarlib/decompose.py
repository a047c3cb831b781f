"""polar() and orthogonalize(): validate, choose, run, and give evidence."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from polarlib import design, published
from polarlib._methods import METHODS, methods, partial_isometry, polynomial
from polarlib._schedule import NORMALISATIONS, Schedule, is_count, product_counts
from polarlib.formats import format_of, nearest
from polarlib.ops import Ops, above_noise, as_matrix, dtype_name, is_array, not_finite, ops_of
from polarlib.result import ConvergenceWarning, PolarResult, Run, ScheduleWarning, Status

__all__ = [
    "check_method",
    "default_tolerance",
    "orthogonalize",
    "polar",
    "resolve_schedule",
]

Array = Any

# The Gram form must save this much before "auto" takes it: its small products run less efficiently.
GRAM_SAVES = 0.9


# -- validation ------------------------------------------------------------------------------


def resolve_schedule(schedule: str | Schedule, steps: int | None) -> Schedule:
    """Return the schedule of a name (or the one given) with a number of steps.

    Raises
    ------
    TypeError, ValueError
        For something that is neither a name nor a Schedule, an unknown name, a number of steps
        that it does not have, or a schedule for inverse roots, which has no odd matrix function.
    """
    if isinstance(schedule, str):
        return published.schedule(schedule, steps)
    if isinstance(schedule, Schedule):
        if schedule.stride != 2:
            raise ValueError(
                f"schedule {schedule.name!r} has stride {schedule.stride}: it is for inverse "
                f"{schedule.stride}-th roots of Hermitian matrices, polarlib.inverse_root; a "
                "schedule for singular values has stride 2"
            )
        return schedule if steps is None else schedule.truncate(steps)
    raise TypeError(f"schedule must be a name or a Schedule, got {schedule!r}")


def _check_normalisation(schedule: Schedule, normalisation: str | None) -> str:
    """Refuse a normalisation that the schedule was not made for."""
    if normalisation is None:
        return schedule.normalisation
    if normalisation not in NORMALISATIONS:
        raise ValueError(
            f"unknown normalisation {normalisation!r}; {nearest(normalisation, NORMALISATIONS)}"
        )
    # Frobenius, Schatten-4 and spectral norms all bound the largest singular value, and only say
    # where in (0, 1] the others lie; AOL scales columns and gives another spectrum altogether.
    problems = {normalisation == "aol", schedule.normalisation == "aol"}
    if normalisation != "none" and len(problems) == 2:
        raise ValueError(
            f"schedule {schedule.name!r} was made for normalisation="
            f"{schedule.normalisation!r}, not {normalisation!r}; leave normalisation out, or "
            "pass 'none' for an input that is already scaled"
        )
    return normalisation


def _safer(precision: str) -> str:
    """A set that survives a format, for an advice."""
    safe = published.schedule("polar_express").survives(format_of(precision))
    return "'polar_express', or " if safe else "'newton_schulz_5', or "


def _warn_of_hazards(schedule: Schedule, precision: str, normalisation: str) -> None:
    if not schedule.survives(format_of(precision)):
        warnings.warn(
            f"schedule {schedule.name!r} diverges above {schedule.divergence_limit:.6f}, and one "
            f"rounding to {precision} can go beyond: it has no safety factor for this format; use "
            f"{_safer(precision)}a wider precision",
            ScheduleWarning,
            stacklevel=3,
        )
    if normalisation != "none" and schedule.upper * schedule.input_safety < 1:
        warnings.warn(
            f"schedule {schedule.name!r} is valid for singular values up to {schedule.upper}, and "
            f"{normalisation} normalisation lets them reach 1 (a rank-one matrix does): such "
            "directions may change sign",
            ScheduleWarning,
            stacklevel=3,
        )


# -- orthogonalize ---------------------------------------------------------------------------


def orthogonalize(
    g: Array,
    *,
    schedule: str | Schedule = "polar_express",
    steps: int | None = None,
    form: str = "auto",
    restarts: str | Sequence[int] = "auto",
    precision: str | None = None,
    normalisation: str | None = None,
    out: Array | None = None,
) -> Array:
    """Approximate unitary factor by a fixed schedule of matrix products.

    Parameters
    ----------
    g : array, shape (..., m, n)
        Of any supported library and floating dtype. Never changed.
    schedule : str or Schedule, optional
        Published set (see :func:`polarlib.schedules`) or a schedule of your own.
    steps : int, optional
        By default the listed length, or 5 for sets that repeat.
    form : {"auto", "plain", "gram"}, optional
        Plain form, Gram form (fewer operations for m much larger than n, or n than m), or the one
        with fewer.
    restarts : "auto" or sequence of int, optional
        Steps, from 1, after which the Gram form restarts; "auto" asks
        :func:`polarlib.design.restarts`.
    precision : str, optional
        Number format of the iteration; the input's own by default. Native where the library
        multiplies in it, simulated elsewhere. The norm is always taken in at least float32.
    normalisation : str, optional
        "frobenius", "spectral", "schatten4", "aol" or "none" (nothing is divided out, not even the
        schedule's input safety) instead of the schedule's own.
    out : array, optional
        Where to store the result, of the shape and dtype of `g`.

    Returns
    -------
    array, shape (..., m, n)
        ``U diag(s(sigma)) V^H`` for the schedule s and ``g = c U diag(sigma) V^H``, c from the
        normalisation; array library, device and dtype of `g`. Rank-deficient matrices are not
        completed, a zero matrix gives zero.

    Raises
    ------
    TypeError
        If `g` is not an array of numbers, or `out` does not match.
    ValueError
        For an unknown name or format, a number of steps that the set does not have, a normalisation
        that it was not made for, fewer than two dimensions; for NaN or infinity in an array on the
        host (on a device, where looking would stall it, such a matrix gives NaN).

    Warns
    -----
    ScheduleWarning
        If the schedule has no safety factor that covers one rounding of the format.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.random.default_rng(0).standard_normal((64, 16))
    >>> q = orthogonalize(g)
    >>> bool(np.linalg.norm(q.T @ q - np.eye(16), 2) < 0.3)
    True
    """
    x, ops = as_matrix(g, "g")
    chosen = resolve_schedule(schedule, steps)
    kind = _check_normalisation(chosen, normalisation)
    precision = ops.format_name(x) if precision is None else format_of(precision).name
    form, restarts = _choose_form(chosen, x.shape, form, restarts, precision)
    if out is not None:
        _check_out(out, x)
    _warn_of_hazards(chosen, precision, kind)
    if 0 in x.shape:
        return ops.xp.zeros_like(x) if out is None else out
    wide = x.shape[-2] < x.shape[-1]
    y = ops.at_least_single(ops.adjoint(x) if wide else x)
    u, _ = polynomial(
        y,
        ops,
        chosen,
        precision=precision,
        normalisation=kind,
        form=form,
        restarts=restarts,
    )
    u = ops.like(ops.adjoint(u) if wide else u, x)
    if out is None:
        return u
    out[...] = u
    return out


def _choose_form(
    schedule: Schedule,
    shape: tuple[int, ...],
    form: str,
    restarts: str | Sequence[int],
    precision: str,
) -> tuple[str, tuple[int, ...]]:
    if form not in ("auto", "plain", "gram"):
        raise ValueError(f"form must be 'auto', 'plain' or 'gram', got {form!r}")
    if isinstance(restarts, str):
        if restarts != "auto":
            raise ValueError(
                f"restarts must be 'auto' or a sequence of step numbers, got {restarts!r}"
            )
        at = design.restarts(schedule, precision)
    else:
        given = list(restarts) if isinstance(restarts, Iterable) else [restarts]
        if given == [restarts] or not all(is_count(k) and k <= len(schedule) for k in given):
            raise ValueError(
                f"restarts must be 'auto' or a sequence of step numbers from 1 to {len(schedule)}, "
                f"got {restarts!r}"
            )
        at = tuple(sorted({int(k) for k in given if k < len(schedule)}))
    if form == "auto":
        small, large = sorted(shape[-2:])
        aspect = large / max(small, 1)
        # In products of n x n matrices, of which a product with the large one is worth m / n.
        cost = {}
        for name in ("plain", "gram"):
            with_large, among_small = product_counts(schedule.steps, form=name, restarts=at)
            cost[name] = aspect * with_large + among_small
        form = "gram" if cost["gram"] < GRAM_SAVES * cost["plain"] else "plain"
    return form, at


def _check_out(out: Array, x: Array) -> None:
    same = is_array(out) and ops_of(out).xp is ops_of(x).xp and out.shape == x.shape
    if not same or out.dtype != x.dtype:
        got = f"{dtype_name(out)} of shape {tuple(out.shape)}" if is_array(out) else repr(out)
        raise TypeError(
            f"out must be an array like g, {dtype_name(x)} of shape {tuple(x.shape)}, got {got}"
        )
    if not ops_of(out).writable(out):
        raise ValueError("out cannot be written: it is read-only or of an immutable library")


# -- polar -----------------------------------------------------------------------------------


def default_tolerance(shape: tuple[int, ...], format_name: str) -> float:
    """Orthogonality and backward error that count as converged: ``max(100, m, n)`` epsilons."""
    return max(100, *shape[-2:]) * format_of(format_name).epsilon


def _run(
    x: Array,
    ops: Ops,
    method: str | Schedule,
    tol: float,
    callback: Callable[[int, Array], None] | None,
) -> tuple[Array, Run]:
    """Run one method, or one fixed schedule, on tall matrices in at least single precision."""
    if isinstance(method, str) and method in METHODS:
        return METHODS[method](x, ops, tol=tol, callback=callback)
    chosen = resolve_schedule(method, None)
    return polynomial(x, ops, chosen, precision=ops.format_name(x), callback=callback)


def polar(
    a: Array,
    *,
    side: str = "right",
    method: str | Schedule = "auto",
    completion: bool = True,
    rtol: float | None = None,
    check_finite: bool = True,
    throw: bool = False,
    callback: Callable[[int, Array], None] | None = None,
) -> PolarResult:
    """Polar decomposition A = U H (or A = H U), with evidence.

    Equals :func:`scipy.linalg.polar` for every shape, and takes stacks of matrices, any array
    library and half precision (computed in float32) besides.

    Parameters
    ----------
    a : array or array-like, shape (..., m, n)
        Never changed. Integers become float64.
    side : {"right", "left"}, optional
        ``A = U H`` with H n x n, or ``A = H U`` with H m x m.
    method : str or Schedule, optional
        One of :func:`polarlib.methods`; "auto" is the SVD. A method that fails on a matrix
        (Newton's on a singular one, say) is followed by the SVD, and the result says so.
    completion : bool, optional
        For rank-deficient matrices: complete U to orthonormal columns (rows, if m < n), as SciPy
        does; otherwise U is the partial isometry ``U_r V_r^H``.
    rtol : float, optional
        Orthogonality that counts as converged; ``max(100, m, n)`` machine epsilons by default.
    check_finite : bool, optional
        Raise if `a` contains NaN or infinity; otherwise such a matrix gives NaN.
    throw : bool, optional
        Raise :class:`polarlib.ConvergenceWarning` as an error instead of warning.
    callback : callable, optional
        Called as ``callback(k, x)`` after iteration k with the iterate, tall and scaled, which it
        must not change. Fixed schedules also call it with k = 0 and the normalised matrix.

    Returns
    -------
    PolarResult
        Unpacks as ``u, h``. Array library, device and dtype of `a`. A fixed schedule that ends
        short of orthonormal is no failure: its status is FIXED_SCHEDULE.

    Raises
    ------
    TypeError
        If `a` is not an array of numbers.
    ValueError
        For fewer than two dimensions, an unknown method or side, NaN or infinity.

    Warns
    -----
    ConvergenceWarning
        If the orthogonality missed `rtol`, or H overflows.

    Notes
    -----
    ``H = (U^H A + A^H U) / 2``: the Hermitian matrix nearest to ``U^H A``, positive semidefinite up
    to rounding. N. J. Higham, Functions of Matrices (SIAM, 2008), chapter 8.

    Examples
    --------
    >>> import numpy as np
    >>> u, h = polar(np.array([[1.0, -1.0], [2.0, 4.0]]))
    >>> bool(np.allclose(u @ h, [[1, -1], [2, 4]])), bool(np.allclose(u.T @ u, np.eye(2)))
    (True, True)
    """
    if side not in ("right", "left"):
        raise ValueError(f"side must be 'right' or 'left', got {side!r}")
    a, ops = as_matrix(a)
    if method == "auto":
        method = "svd"
    check_method(method)
    m, n = a.shape[-2:]
    x = ops.at_least_single(a)
    tol = default_tolerance(a.shape, ops.format_name(x)) if rtol is None else rtol
    if not isinstance(tol, numbers.Real) or not 0 < float(tol) < 1:
        raise ValueError(f"rtol must be a number between 0 and 1, got {rtol!r}")
    tol = float(tol)
    if 0 in a.shape:
        return _empty(a, ops, side, method)
    peak = ops.max_abs(x)
    if check_finite and not math.isfinite(ops.read(peak)):
        trouble = not_finite(ops.to_host(x))
        raise ValueError(f"a {trouble}; remove them, or pass check_finite=False to get NaN back")
    wide = m < n
    if wide:
        x = ops.adjoint(x)
    finite = ops.xp.isfinite(peak)
    if not check_finite:  # zeros go through every method; NaN is put back at the end
        x = ops.xp.where(finite, x, ops.xp.zeros_like(x))
    scale = ops.binary_scale(peak)
    x = ops.divide(x, scale)

    with np.errstate(all="ignore"):  # the evidence decides
        u, run = _run(x, ops, method, tol, callback)
    name = method if isinstance(method, str) else method.name
    h, orthogonality, backward_error = _evidence(u, x, ops)
    status = _status(method, h, orthogonality, backward_error, tol, ops)
    if status is Status.NOT_CONVERGED and name != "svd":
        u, svd_run = METHODS["svd"](x, ops, tol=tol)
        run = run._replace(
            matmuls=run.matmuls + svd_run.matmuls, singular_values=svd_run.singular_values
        )
        name += ", then svd"
        h, orthogonality, backward_error = _evidence(u, x, ops)
        if _status("svd", h, orthogonality, backward_error, tol, ops) is Status.CONVERGED:
            status = Status.FELL_BACK
    rank = _rank(x, h, run, ops)
    isometry = not completion and bool(np.any(rank < min(m, n))) and status in _EXACT
    if isometry:
        u = partial_isometry(x, ops)
        h, _, backward_error = _evidence(u, x, ops)
        orthogonality = _orthogonality(u, ops, isometry)
    large = wide != (side == "left")  # the larger of the two Hermitian factors is asked for
    if large:
        h = ops.hermitian_part(ops.matmul(x, ops.adjoint(u)))
        backward_error = _residual(u, h, x, ops, large)
    if a.dtype != x.dtype:  # half precision: the evidence is of what is returned
        v, g = (ops.at_least_single(ops.like(t, a)) for t in (u, h))
        orthogonality = _orthogonality(v, ops, isometry)
        backward_error = _residual(v, g, x, ops, large)
    if not check_finite:
        poison = ops.xp.where(finite, ops.xp.zeros_like(peak), ops.xp.full_like(peak, math.nan))
        u, h = u + ops.like(poison, u), h + ops.like(poison, h)
        lost = ops.to_host(poison)[..., 0, 0]
        orthogonality, backward_error = orthogonality + lost, backward_error + lost
        rank = np.where(np.isnan(lost), 0, rank)
        if np.any(np.isnan(lost)):
            status = Status.NOT_CONVERGED
    h = ops.like(ops.scale(h, scale), a)
    overflow = not math.isfinite(ops.read(ops.max_abs(ops.at_least_single(h))))
    if overflow and status is not Status.NOT_CONVERGED:
        status = Status.OVERFLOW
    if status in (Status.NOT_CONVERGED, Status.OVERFLOW):
        message = (
            f"polar(method={name!r}): orthogonality {np.max(orthogonality):.2e}, backward error "
            f"{np.max(backward_error):.2e}, tolerance {tol:.2e}; {status.value}"
        )
        if throw:
            raise ConvergenceWarning(message)
        warnings.warn(message, ConvergenceWarning, stacklevel=2)
    single = a.ndim == 2
    return PolarResult(
        unitary=ops.like(ops.adjoint(u) if wide else u, a),
        hermitian=h,
        status=status,
        converged=status in _EXACT,
        iterations=run.iterations,
        matmuls=run.matmuls,
        method=name,
        orthogonality=float(orthogonality) if single else orthogonality,
        backward_error=float(backward_error) if single else backward_error,
        rank=int(rank) if single else rank,
        trace=run.changes,
    )


_EXACT = (Status.CONVERGED, Status.FELL_BACK)


def check_method(method: str | Schedule) -> None:
    """Raise ValueError for an unknown method."""
    known = isinstance(method, str) and (method in METHODS or method in published.schedules())
    if isinstance(method, Schedule) and method.target != "polar":
        raise ValueError(
            f"schedule {method.name!r} approximates {method.target!r}, which is no unitary factor; "
            "apply it with orthogonalize()"
        )
    if not known and not isinstance(method, Schedule):
        raise ValueError(f"unknown method {method!r}; {nearest(method, ['auto', *methods()])}")


def _status(
    method: str | Schedule,
    h: Array,
    orthogonality: np.ndarray,
    backward_error: np.ndarray,
    tol: float,
    ops: Ops,
) -> Status:
    """Judge by the evidence alone: orthonormal, A = U H, and H positive semidefinite."""
    if method == "qr":
        return Status.NOT_POLAR
    # NaN compares false. The SVD's H is semidefinite by construction.
    polar = np.all(orthogonality <= tol) and np.all(backward_error <= tol)
    if polar and (method == "svd" or _is_definite(h, -1, tol, ops)):
        return Status.CONVERGED
    fixed = not isinstance(method, str) or method not in METHODS
    return Status.FIXED_SCHEDULE if fixed else Status.NOT_CONVERGED


def _size(x: Array, ops: Ops) -> np.ndarray:
    """Frobenius norms of a stack of matrices, on the host."""
    return ops.to_host(ops.frobenius(x))[..., 0, 0]


def _orthogonality(u: Array, ops: Ops, isometry: bool = False) -> np.ndarray:
    """``||U^H U - I||_F / sqrt(n)`` of tall matrices; of partial isometries ``U U^H U - U``."""
    g = ops.gram(u)
    defect = ops.matmul(u, g) - u if isometry else ops.add_diagonal(g, -1.0)
    return _size(defect, ops) / math.sqrt(u.shape[-1])


def _residual(u: Array, h: Array, x: Array, ops: Ops, large: bool = False) -> np.ndarray:
    """``||X - U H||_F / ||X||_F``, or with ``H U``; 0 for a zero matrix."""
    size = _size(x, ops)
    residual = x - (ops.matmul(h, u) if large else ops.matmul(u, h))
    return _size(residual, ops) / np.where(size == 0, 1.0, size)


def _evidence(u: Array, x: Array, ops: Ops) -> tuple[Array, np.ndarray, np.ndarray]:
    """Hermitian factor (n x n), orthogonality and backward error of tall matrices."""
    h = ops.hermitian_part(ops.matmul(ops.adjoint(u), x))
    return h, _orthogonality(u, ops), _residual(u, h, x, ops)


def _is_definite(h: Array, sign: int, cut: float, ops: Ops) -> bool:
    """Whether ``H - sign * cut * ||H||_F I`` has a Cholesky factor, in every matrix of a stack.

    With sign 1: every eigenvalue exceeds the cut. With sign -1: none is below minus the cut.
    """
    shift = ops.frobenius(h) * (sign * cut)
    if sign < 0:  # so that a zero matrix passes
        shift = ops.xp.where(shift == 0, -ops.xp.ones_like(shift), shift)
    factor = ops.cholesky(h - ops.eye(h.shape[-1], h) * ops.like(shift, h))
    return math.isfinite(ops.read(ops.frobenius(factor)))


def _rank(x: Array, h: Array, run: Run, ops: Ops) -> np.ndarray:
    """Numerical rank: from singular values, or certified full by one Cholesky factorisation."""
    s = run.singular_values
    if s is None:
        # Twice the cut of the definition, since H is known to rounding only.
        cut = 2 * max(x.shape[-2:]) * format_of(ops.format_name(h)).epsilon
        if _is_definite(h, 1, cut, ops):
            return np.full(x.shape[:-2], x.shape[-1])
        _, s, _ = ops.svd(x)
    return ops.to_host(ops.xp.astype(above_noise(s, x.shape, ops), s.dtype)).sum(-1).astype(int)


def _empty(a: Array, ops: Ops, side: str, method: str | Schedule) -> PolarResult:
    """Factors of matrices without entries: U as `a`, H zero, as SciPy gives them."""
    n = a.shape[-1] if side == "right" else a.shape[-2]
    batch = a.shape[:-2]
    figures = np.zeros(batch) if batch else 0.0
    return PolarResult(
        unitary=ops.xp.zeros_like(a),
        hermitian=ops.eye(n, a) * 0.0 + ops.xp.zeros((*batch, 1, 1), dtype=a.dtype),
        status=Status.CONVERGED,
        converged=True,
        iterations=0,
        matmuls=0,
        method=method if isinstance(method, str) else method.name,
        orthogonality=figures,
        backward_error=figures,
        rank=np.zeros(batch, int) if batch else 0,
    )
