"""polar() and orthogonalize(): validate, choose, run, and give evidence."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from polarlib import design, published
from polarlib._derivatives import (
    differentiable_polar,
    differentiable_schedule,
    differentiable_unitary,
)
from polarlib._evidence import (
    Evidence,
    condition_bounds,
    evidence,
    factor_figures,
    figures,
    is_definite,
    rank_cut,
    rank_of,
    within,
)
from polarlib._methods import (
    FIXED,
    HINTED,
    METHODS,
    RATIONAL,
    auto,
    methods,
    partial_isometry,
    polynomial,
    rational,
    small,
)
from polarlib._schedule import NORMALISATIONS, Schedule, is_count, is_number, product_counts
from polarlib.design import RationalSchedule
from polarlib.formats import format_of, nearest
from polarlib.ops import (
    Ops,
    as_matrix,
    dtype_name,
    finite_peak,
    is_array,
    ops_of,
    under_default_promotion,
)
from polarlib.result import ConvergenceWarning, PolarResult, Run, ScheduleWarning, Status, warn

__all__ = [
    "check_method",
    "check_normalisation",
    "choose_form",
    "default_tolerance",
    "hermitian_part",
    "orthogonalize",
    "orthogonalize_all",
    "polar",
    "refuse_hidden",
    "resolve_schedule",
    "unitary_factor",
    "warn_of_hazards",
]

Array = Any

# Entries of matrices up to which a stack of them is faster on the host than one after the other.
# Chosen by experiment (benchmarks/orthogonalize.py).
BATCH_UP_TO = 1 << 14
# The Gram form must save this much before "auto" takes it: its small products run less efficiently.
GRAM_SAVES = 0.9


# -- validation ------------------------------------------------------------------------------


def resolve_schedule(
    schedule: str | Schedule | RationalSchedule, steps: int | None, precision: str
) -> Schedule | RationalSchedule:
    """Return the schedule of a name (or the one given) with a number of steps.

    "auto" is the library's own for the number format.

    Raises
    ------
    TypeError, ValueError
        For something that is neither a name nor a Schedule, an unknown name, a number of steps
        that it does not have, or a schedule for inverse roots, which has no odd matrix function.
    """
    if schedule == "auto":
        return published.default_schedule(precision, steps=steps)
    if isinstance(schedule, str) and schedule in RATIONAL:
        schedule = RATIONAL[schedule]()
    if isinstance(schedule, str):
        return published.schedule(schedule, steps)
    if isinstance(schedule, RationalSchedule):
        return schedule if steps is None else schedule.truncate(steps)
    if isinstance(schedule, Schedule):
        if schedule.stride != 2:
            raise ValueError(
                f"schedule {schedule.name!r} has stride {schedule.stride}: it is for inverse "
                f"{schedule.stride}-th roots of Hermitian matrices, polarlib.inverse_root; a "
                "schedule for singular values has stride 2"
            )
        return schedule if steps is None else schedule.truncate(steps)
    raise TypeError(f"schedule must be a name or a Schedule, got {schedule!r}")


def _check_rational(
    schedule: RationalSchedule,
    form: str,
    restarts: Any,
    gram_precision: str | None,
    normalisation: str | None,
) -> None:
    """Refuse what is chosen for polynomials only."""
    wrong = {
        "form": form if form != "auto" else None,
        "restarts": restarts if not isinstance(restarts, str) or restarts != "auto" else None,
        "gram_precision": gram_precision,
        "normalisation": normalisation if normalisation != "spectral" else None,
    }
    for name, value in wrong.items():
        if value is not None:
            raise ValueError(
                f"{name}={value!r} is for schedules of polynomials; schedule {schedule.name!r} is "
                f"rational: leave {name} out"
            )


def check_normalisation(schedule: Schedule, normalisation: str | None) -> str:
    """Refuse a normalisation that the schedule was not made for."""
    if normalisation is None:
        return schedule.normalisation
    if normalisation not in NORMALISATIONS:
        raise ValueError(
            f"unknown normalisation {normalisation!r}; {nearest(normalisation, NORMALISATIONS)}"
        )
    # All but AOL bound the largest singular value, and only say where in (0, 1] the others
    # lie; AOL scales columns and gives another spectrum altogether.
    problems = {normalisation == "aol", schedule.normalisation == "aol"}
    if normalisation != "none" and len(problems) == 2:
        raise ValueError(
            f"schedule {schedule.name!r} was made for normalisation="
            f"{schedule.normalisation!r}, not {normalisation!r}; leave normalisation out, or "
            "pass 'none' for an input that is already scaled"
        )
    return normalisation


def warn_of_hazards(schedule: Schedule, precision: str, normalisation: str) -> None:
    """Warn where rounding or the input can leave the schedule's range."""
    if not schedule.survives(format_of(precision)):
        warn(
            f"schedule {schedule.name!r} diverges above {schedule.divergence_limit:.6f}, and one "
            f"rounding to {precision} can go beyond: it has no safety factor for this format; use "
            "schedule='auto', or a wider precision",
            ScheduleWarning,
        )
    if normalisation != "none" and schedule.upper * schedule.input_safety < 1:
        warn(
            f"schedule {schedule.name!r} is valid for singular values up to {schedule.upper}, and "
            f"{normalisation} normalisation lets them reach 1 (a rank-one matrix does): such "
            "directions may change sign",
            ScheduleWarning,
        )


# -- orthogonalize ---------------------------------------------------------------------------


def orthogonalize(
    g: Array,
    *,
    schedule: str | Schedule | RationalSchedule = "auto",
    steps: int | None = None,
    form: str = "auto",
    restarts: str | Sequence[int] = "auto",
    precision: str | None = None,
    gram_precision: str | None = None,
    normalisation: str | None = None,
    out: Array | None = None,
) -> Array:
    """Approximate unitary factor by a fixed schedule of matrix products.

    Parameters
    ----------
    g : array, shape (..., m, n)
        Of any supported library and floating dtype. Never changed.
    schedule : str, Schedule or RationalSchedule, optional
        "auto", the library's own for the number format (:func:`polarlib.default_schedule`), a
        published set (see :func:`polarlib.schedules`) or a schedule of your own; "halley" (or
        "halley_fixed", as :func:`polar` calls it) for two Halley steps. Rational steps are taken on
        the Gram matrix in float32, or in float64, and divide by a spectral bound: `form`,
        `restarts`, `gram_precision` and `normalisation` are for polynomials.
    steps : int, optional
        By default the listed length, or 5 for "auto" and for sets that repeat.
    form : {"auto", "plain", "gram"}, optional
        Plain form, Gram form (fewer operations for m much larger than n, or n than m), or the one
        with fewer.
    restarts : "auto" or sequence of int, optional
        Steps, from 1, after which the Gram form restarts; "auto" asks
        :func:`polarlib.design.restarts`.
    precision : str, optional
        Number format of the iteration; by default the input's own, or the one in which torch is
        set to multiply float32 (``torch.set_float32_matmul_precision``) where the device does.
        Native where the library multiplies in it, simulated elsewhere. The norm is always taken in
        at least float32.
    gram_precision : str, optional
        Number format of the n x n matrices of the Gram form, by default the same. Where 16-bit
        products are equally fast, bfloat16 arrays do best with ``precision="float16"`` for all of
        the iteration: it needs fewer restarts (docs/gram_form.md).
    normalisation : str, optional
        "frobenius", "spectral", "moments", "schatten4", "aol" or "none" (nothing is divided out,
        not even the schedule's input safety) instead of the schedule's own. "moments" and
        "schatten4" are bounds from the Gram matrix of the first step and cost no product.
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
        that it was not made for, fewer than two dimensions; for NaN or infinity in a NumPy array or
        a torch tensor on a CPU (of other arrays, where the check might wait for a device, such a
        matrix gives NaN).

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
    x, ops = as_matrix(g, "g", sharded=True)
    precision = ops.multiplier(x) if precision is None else format_of(precision).name
    chosen = resolve_schedule(schedule, steps, precision)
    if gram_precision is not None:
        gram_precision = format_of(gram_precision).name
    if isinstance(chosen, RationalSchedule):
        _check_rational(chosen, form, restarts, gram_precision, normalisation)
        kind, restarts = "spectral", ()
    else:
        kind = check_normalisation(chosen, normalisation)
        form, restarts = choose_form(chosen, x.shape, form, restarts, precision, gram_precision)
        warn_of_hazards(chosen, precision, kind)
    if out is not None:
        _check_out(out, x, "out", "g")
    x, ops, back, _ = ops.laid_out(x, "g")
    if 0 in x.shape:
        return back(ops.xp.zeros_like(x)) if out is None else out
    apply = ops.compiled(
        _apply,
        schedule=chosen,
        precision=precision,
        gram_precision=gram_precision,
        kind=kind,
        form=form,
        restarts=restarts,
    )
    if ops.records(x) and isinstance(chosen, Schedule):  # rational steps record themselves
        u = differentiable_schedule(
            apply, x, chosen, normalisation=kind, form=form, restarts=restarts
        )
    else:
        u = apply(x)
    return _copied(back(u), out)


def orthogonalize_all(gradients: Iterable[Array], **same: Any) -> list[Array]:
    """Orthogonalise many matrices, equal shapes in one batch.

    Parameters
    ----------
    gradients : iterable of array, shapes (..., m, n)
        Any mixture of shapes, dtypes, devices and libraries. Never changed.
    **same
        What :func:`orthogonalize` takes, but `out`, the same for all.

    Returns
    -------
    list of array
        In the order of the input. A matrix that is alone in its shape, dtype and device, or has
        more than 16,384 entries on the host, comes out exactly as :func:`orthogonalize` gives it.
        The others go in a batch, whose sums are rounded in another order. With u the unit roundoff,
        the difference in spectral norm is about u times the schedule's slope at 0 (at most 20 times
        that was measured, in float32 and float64), and with the default schedule, where singular
        values are nearly equal, about 4 sqrt(n u) (0.01 for n = 100 in float32), because its bound
        of the norm cancels there.

    Raises
    ------
    TypeError, ValueError
        As :func:`orthogonalize`; the message names the first matrix that is to blame.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> gradients = [rng.standard_normal(shape) for shape in [(8, 4), (3, 5), (8, 4)]]
    >>> [q.shape for q in orthogonalize_all(gradients)]
    [(8, 4), (3, 5), (8, 4)]
    """
    if "out" in same:
        raise TypeError("orthogonalize_all takes no out: its results are a list of new arrays")
    if is_array(gradients) or not isinstance(gradients, Iterable):
        raise TypeError(
            f"orthogonalize_all takes a list of arrays, got {type(gradients).__name__}; "
            "pass one array or stack to orthogonalize"
        )
    arrays = [as_matrix(g, f"gradients[{i}]", sharded=True) for i, g in enumerate(gradients)]
    groups: dict[Any, list[int]] = {}
    for i, (x, ops) in enumerate(arrays):
        # On the host large products are as fast one by one, and a stack is a copy.
        alone = (i,) if ops.host and math.prod(x.shape) > BATCH_UP_TO else ()
        where = str(getattr(x, "device", "")), ops.placements(x)
        key = (ops.xp, x.dtype, tuple(x.shape), where, alone)
        groups.setdefault(key, []).append(i)
    results: list[Array] = [None] * len(arrays)
    for members in groups.values():
        first, ops = arrays[members[0]]
        try:
            if len(members) == 1:
                results[members[0]] = orthogonalize(first, **same)
                continue
            stack = orthogonalize(ops.xp.stack([arrays[i][0] for i in members]), **same)
        except ValueError as error:
            which = ", ".join(map(str, members))
            raise ValueError(f"gradients[{which}]: {error}") from None
        for j, i in enumerate(members):
            results[i] = stack[j, ...]
    return results


@under_default_promotion
def _apply(
    x: Array,
    *,
    schedule: Schedule | RationalSchedule,
    precision: str,
    gram_precision: str | None,
    kind: str,
    form: str,
    restarts: Sequence[int],
) -> Array:
    """Normalise and iterate."""
    ops = ops_of(x)
    wide = x.shape[-2] < x.shape[-1]
    y = ops.adjoint(x) if wide else x
    with np.errstate(over="ignore", invalid="ignore"):  # it was warned of, and shows
        if isinstance(schedule, RationalSchedule):
            u, _ = rational(y, ops, schedule, precision=precision)
        else:
            u, _ = polynomial(
                y,
                ops,
                schedule,
                precision=precision,
                gram_precision=gram_precision,
                normalisation=kind,
                form=form,
                restarts=restarts,
            )
    return ops.like(ops.adjoint(u) if wide else u, x)


def choose_form(
    schedule: Schedule,
    shape: tuple[int, ...],
    form: str,
    restarts: str | Sequence[int],
    precision: str,
    gram_precision: str | None = None,
) -> tuple[str, tuple[int, ...]]:
    """Return the form of the iteration and its restarts, checked and with "auto" decided."""
    if form not in ("auto", "plain", "gram"):
        raise ValueError(f"form must be 'auto', 'plain' or 'gram', got {form!r}")
    if isinstance(restarts, str):
        if restarts != "auto":
            raise ValueError(
                f"restarts must be 'auto' or a sequence of step numbers, got {restarts!r}"
            )
        at = design.restarts(schedule, precision, gram_format=gram_precision)
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


def _check_out(
    out: Array, x: Array, name: str, like: str, shape: tuple[int, ...] | None = None
) -> None:
    shape = tuple(x.shape) if shape is None else shape
    same = is_array(out) and ops_of(out).xp is ops_of(x).xp and tuple(out.shape) == shape
    if not same or out.dtype != x.dtype:
        got = f"{dtype_name(out)} of shape {tuple(out.shape)}" if is_array(out) else repr(out)
        raise TypeError(
            f"{name} must be an array like {like}, {dtype_name(x)} of shape {shape}, got {got}"
        )
    # Of equal meshes, or neither a DTensor.
    if ops_of(out).placements(out)[:1] != ops_of(x).placements(x)[:1]:
        kinds = [f"a {type(t).__name__} {getattr(t, 'device_mesh', '')}".strip() for t in (x, out)]
        raise TypeError(f"{name} must be {kinds[0]} as {like} is, got {kinds[1]}")
    if not ops_of(out).writable(out):
        raise ValueError(f"{name} cannot be written: it is read-only or of an immutable library")


# -- polar -----------------------------------------------------------------------------------

# Largest entries that need no scaling: products of them neither overflow nor lose what counts.
COMFORTABLE = 2.0**20

_EXACT = (Status.CONVERGED, Status.FELL_BACK)


def default_tolerance(shape: tuple[int, ...], format_name: str) -> float:
    """Orthogonality and backward error that count as converged: ``max(100, n)`` epsilons, n <= m.

    Not of m: sums over long columns are taken in blocks, and their errors do not grow.
    """
    return max(100, min(shape[-2:])) * format_of(format_name).epsilon


def hermitian_part(x: Array, ops: Ops, tolerance: float, *, look: bool = True) -> Array:
    """Return the Hermitian part of `x`; raise if `look` and the rest exceeds the tolerance."""
    h = ops.hermitian_part(x)
    if look:
        skew = ops.read(ops.frobenius(x - h) / ops.divisor(ops.frobenius(x)))
        if not skew <= tolerance:
            raise ValueError(
                f"a is not Hermitian: its skew part is {skew:.1e} of it, above {tolerance:.1e}; "
                "pass (a + a^H) / 2 if that is what you mean"
            )
    return h


class _Problem(NamedTuple):
    """Tall matrices ready for a method: ``x = adjoint(a) / scale`` if wide, else ``a / scale``."""

    x: Array
    ops: Ops
    tol: float
    scale: Array | float
    finite: Array
    wide: bool


def _tolerance(a: Array, ops: Ops, rtol: float | None) -> float:
    if rtol is None:
        name = ops.format_name(a)
        return default_tolerance(a.shape, name if name == "float64" else "float32")
    if not is_number(rtol) or not 0 < float(rtol) < 1:
        raise ValueError(f"rtol must be a number between 0 and 1, got {rtol!r}")
    return float(rtol)


def _prepare(a: Array, ops: Ops, tol: float, check_finite: bool) -> _Problem:
    x = ops.at_least_single(a)
    if 0 in a.shape:
        return _Problem(x, ops, tol, 1.0, x, False)
    remedy = "remove them, or pass check_finite=False to get NaN back"
    peak = finite_peak(x, ops, "a", look=check_finite, remedy=remedy)
    wide = a.shape[-2] < a.shape[-1]
    if wide:
        x = ops.adjoint(x)
    finite = ops.xp.isfinite(peak)
    if not check_finite:  # zeros go through every method; NaN is put back at the end
        x = ops.xp.where(finite, x, ops.xp.zeros_like(x))
        peak = ops.xp.where(finite, peak, ops.xp.zeros_like(peak))
    scale: Array | float = 1.0
    if not 1 / COMFORTABLE <= -ops.read(-peak) <= ops.read(peak) <= COMFORTABLE:
        scale = ops.binary_scale(peak)
        x = ops.divide(x, scale)
    return _Problem(x, ops, tol, scale, finite, wide)


def _hint(
    method: str | Schedule, sigma_min: float | None, cond: float | None, problem: _Problem
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
        if not is_number(cond) or not cond >= 1:
            raise ValueError(f"cond must be a number of at least 1, got {cond!r}")
        bounds.append(1 / float(cond))
    if sigma_min is not None:
        if not is_number(sigma_min) or not 0 < sigma_min < math.inf:
            raise ValueError(f"sigma_min must be a positive number, got {sigma_min!r}")
        x, ops = problem.x, problem.ops
        if 0 in x.shape:
            return None
        upper = ops.xp.sqrt(ops.norm_1(x)) * ops.xp.sqrt(ops.norm_inf(x))
        largest = ops.read(ops.xp.minimum(upper, ops.frobenius(x)) * problem.scale)
        if sigma_min > largest:
            raise ValueError(
                f"sigma_min={sigma_min!r} exceeds the largest singular value, which is at most "
                f"{largest:.3g}; pass a lower bound of the smallest one"
            )
        bounds.append(float(sigma_min) / largest)
    return max(bounds)


def _run(
    problem: _Problem,
    method: str | Schedule,
    lower: float | None,
    callback: Callable[[int, Array], None] | None,
) -> tuple[Array, Run]:
    """Run one method, or one fixed schedule."""
    x, ops, tol = problem.x, problem.ops, problem.tol
    with np.errstate(all="ignore"):  # the evidence decides
        if isinstance(method, str) and method in HINTED and lower is not None:
            return HINTED[method](x, ops, tol=tol, callback=callback, lower=lower)
        if method == "auto":
            return auto(x, ops, tol=tol, callback=callback)
        if isinstance(method, str) and method in METHODS:
            return METHODS[method](x, ops, tol=tol, callback=callback)
        chosen = resolve_schedule(method, None, ops.format_name(problem.x))
        if isinstance(chosen, RationalSchedule):
            return rational(x, ops, chosen, precision=ops.format_name(x), callback=callback)
        return polynomial(x, ops, chosen, precision=ops.format_name(x), callback=callback)


def _name(method: str | Schedule) -> str:
    return method if isinstance(method, str) else method.name


def _fall_back(problem: _Problem, run: Run) -> tuple[Array, Run]:
    """Take the SVD after a method that failed; its work is counted."""
    with np.errstate(all="ignore"):
        u, after = METHODS["svd"](problem.x, problem.ops, tol=problem.tol)
    note = "; ".join(filter(None, (run.note, "its factor missed the tolerance")))
    run = run._replace(matmuls=run.matmuls + after.matmuls, bounds=None, note=note)
    return u, run._replace(singular_values=after.singular_values)


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
        Where to store U and H; None for an array that is to be new.
    overwrite_a : bool, optional
        Store U in the memory of `a`, and return that.

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

    Examples
    --------
    >>> import numpy as np
    >>> u, h = polar(np.array([[1.0, -1.0], [2.0, 4.0]]))
    >>> bool(np.allclose(u @ h, [[1, -1], [2, 4]])), bool(np.allclose(u.T @ u, np.eye(2)))
    (True, True)
    """
    if side not in ("right", "left"):
        raise ValueError(f"side must be 'right' or 'left', got {side!r}")
    given = a
    a, ops = as_matrix(a, sharded=True)
    check_method(method)
    _check_spread(a, ops, method, completion)
    stored = _storage(given, a, ops, side, out, overwrite_a)
    a, ops, back, whole = ops.laid_out(a, "a")
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
    )
    if ops.records(a):
        _refuse_fixed(method)
        result = differentiable_polar(apply, a, unitary_factor, side)
    else:
        result = apply(a)
    u, h = _copied(back(result.unitary), stored[0]), _copied(whole(result.hermitian), stored[1])
    if u is result.unitary and h is result.hermitian:
        return result
    return dataclasses.replace(result, unitary=u, hermitian=h)


@under_default_promotion
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
) -> PolarResult:
    """Choose, run and give evidence."""
    ops = ops_of(a)
    refuse_hidden(a, ops, "polar")
    m, n = a.shape[-2:]
    tol = _tolerance(a, ops, rtol)
    hints = sigma_min is not None or cond is not None
    worth = method == "small" or (method == "auto" and _pays(a))
    if worth and _is_small(a) and not hints and callback is None:
        done = _polar_small(a, ops, side, tol, completion)
        if done is not None:
            return done
    problem = _prepare(a, ops, tol, check_finite)
    lower = _hint(method, sigma_min, cond, problem)
    if 0 in a.shape:
        return _empty(a, ops, side, method)
    x, scale = problem.x, problem.scale

    u, run = _run(problem, method, lower, callback)
    name = run.method or _name(method)
    found = evidence(u, x, ops)
    status, full = _judge(name, method, found, x.shape, tol, ops)
    if status is Status.NOT_CONVERGED and name not in ("svd", "qr") and not ops.spread(x):
        u, run = _fall_back(problem, run)
        name += ", then svd"
        found = evidence(u, x, ops)
        judged, full = _judge("svd", "svd", found, x.shape, tol, ops)
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
        h = ops.hermitian_part(ops.matmul(x, ops.adjoint(u)))
        _, backward_error = figures(u, h, x, ops, large=True)
    if a.dtype != x.dtype:  # half precision: the evidence is of what is returned
        v, g = (ops.at_least_single(ops.like(t, a)) for t in (u, h))
        orthogonality, backward_error = figures(v, g, x, ops, large=large, isometry=isometry)
    if not check_finite:
        lost = np.where(ops.to_host(problem.finite)[..., 0, 0] == 0, math.nan, 0.0)
        poison = ops.like(ops.from_host(lost[..., None, None], x), x)
        u, h = u + poison, h + poison
        orthogonality, backward_error = orthogonality + lost, backward_error + lost
        condition = (condition[0] + lost, condition[1] + lost)
        rank = np.where(np.isnan(lost), 0, rank)
        if np.any(np.isnan(lost)):
            status = Status.NOT_CONVERGED
    if not isinstance(scale, float) or scale != 1.0:
        h = ops.scale(h, scale)
    h = ops.like(h, a)
    # ||H||_F = ||A||_F is at most sqrt(m n) times the largest entry: no overflow without a scale.
    checked = a.dtype == x.dtype and isinstance(scale, float) and scale == 1.0
    overflow = not checked and not math.isfinite(ops.read(ops.max_abs(ops.at_least_single(h))))
    if overflow and status is not Status.NOT_CONVERGED:
        status = Status.OVERFLOW
    if status in (Status.NOT_CONVERGED, Status.OVERFLOW):
        message = (
            f"polar(method={name!r}): orthogonality {np.max(orthogonality):.2e}, backward error "
            f"{np.max(backward_error):.2e}, tolerance {tol:.2e}; {status.value}"
        )
        if throw:
            raise ConvergenceWarning(message)
        warn(message, ConvergenceWarning)
    single = a.ndim == 2
    return PolarResult(
        unitary=ops.like(ops.adjoint(u) if problem.wide else u, a),
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


def _refuse_fixed(method: str | Schedule) -> None:
    """Raise where the derivative of the unitary polar factor is not that of the result."""
    if method == "qr" or (method != "auto" and _is_fixed(method)):
        raise ValueError(
            f"method={_name(method)!r} stops short of the polar factor and is not differentiated; "
            "orthogonalize() has the derivative of its schedule, or detach the matrix"
        )


def refuse_hidden(
    a: Array, ops: Ops, name: str, remedy: str = "use orthogonalize(), which does not look"
) -> None:
    """Raise where a method could not look at its matrix."""
    if ops.hidden(a):
        raise TypeError(
            f"{name} looks at its matrix, which jax.jit and jax.vmap hide: call it outside of jit "
            f"(under grad it may be) and on a whole stack instead of vmap, or {remedy}"
        )


def _pays(a: Array) -> bool:
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
    with np.errstate(all="ignore"):
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
    a, ops, back, _ = ops.laid_out(a, "a")
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
    if ops.records(a):
        _refuse_fixed(method)
        return _copied(back(differentiable_unitary(apply, a, unitary_factor)), u_out)
    return _copied(back(apply(a)), u_out)


@under_default_promotion
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
    refuse_hidden(a, ops, name)
    tol = _tolerance(a, ops, rtol)
    problem = _prepare(a, ops, tol, check_finite)
    lower = _hint(method, sigma_min, cond, problem)
    if 0 in a.shape:
        return ops.xp.zeros_like(a)
    x = problem.x
    if completion:
        u, run = _run(problem, method, lower, None)
        found = factor_figures(u, x, ops)
        fixed = _is_fixed(run.method or method)
        if not within(found, tol) and not fixed and not ops.spread(x):
            u, run = _fall_back(problem, run)
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
    if not check_finite:
        lost = np.where(ops.to_host(problem.finite) == 0, math.nan, 0.0)
        u = u + ops.like(ops.from_host(lost, x), x)
    return ops.like(ops.adjoint(u) if problem.wide else u, a)


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
            raise TypeError(f"out must be a pair (u, h) of arrays or None, got {out!r}")
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
        _check_out(u_out, a, "a" if overwrite_a else "out[0]", "a")
    if h_out is not None:
        k = a.shape[-1] if side == "right" else a.shape[-2]
        _check_out(h_out, a, "out[1]", "a", (*a.shape[:-2], k, k))
    return u_out, h_out


def _copied(x: Array, out: Array | None) -> Array:
    if out is None:
        return x
    ops_of(out).store(x, out)
    return out


def check_method(method: str | Schedule) -> None:
    """Raise ValueError for an unknown method."""
    known = isinstance(method, str) and (
        method in ("auto", *METHODS, *FIXED) or method in published.schedules()
    )
    if isinstance(method, Schedule) and method.target != "polar":
        raise ValueError(
            f"schedule {method.name!r} approximates {method.target!r}, which is no unitary factor; "
            "apply it with orthogonalize()"
        )
    if not known and not isinstance(method, Schedule | RationalSchedule):
        raise ValueError(f"unknown method {method!r}; {nearest(method, ['auto', *methods()])}")


def _check_spread(a: Array, ops: Ops, method: str | Schedule, completion: bool) -> None:
    """Refuse what would bring a distributed matrix to each of its devices, as factorisations do."""
    small_only = method == "newton_schulz" or _is_fixed(method)
    if ops.spread(a) and (method == "auto" or not small_only or not completion):
        what = f"method={method!r}" if completion else "completion=False"
        raise ValueError(
            f"a lies in parts on several devices, and {what} would bring all of it to each of "
            "them; use polar with method='newton_schulz' or a schedule, or orthogonalize, or gather"
            " a first"
        )


def _is_fixed(method: str | Schedule) -> bool:
    return not isinstance(method, str) or method not in METHODS


def _judge(
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
        unitary=ops.xp.zeros_like(a),
        hermitian=ops.eye(n, a) * 0.0 + ops.xp.zeros((*batch, 1, 1), dtype=a.dtype),
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
