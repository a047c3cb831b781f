"""Stages of a polar decomposition: enter, run, check, fall back, complete, form H, leave.

:func:`decompose` runs them for :func:`polarlib.polar`, and, without a Hermitian factor, for the
functions that need the unitary factor alone. Traced matrices, whose entries cannot be read, pass
the same stages with a method of fixed work and without a fallback.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from polarlib._methods import (
    HINTED,
    METHODS,
    TRACED,
    auto,
    fixed_schedule,
    partial_isometry,
    worst_of,
)
from polarlib._methods.options import resolve_schedule
from polarlib._methods.traced import gram as traced_gram
from polarlib._stages.options import Options, lower_bound
from polarlib._stages.results import SUCCESS, closed_form, conclude, empty, missed
from polarlib.arrays.entered import Entered, enter
from polarlib.arrays.entry import can_hold, refuse_hidden
from polarlib.arrays.functions import fits
from polarlib.arrays.library import astype_like, at_least_single, bytes_of_entry, format_name
from polarlib.arrays.memory import is_out_of_memory
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.progress import reporting
from polarlib.arrays.settings import under_default_settings
from polarlib.engine.evidence import (
    DECOMPOSED_UP_TO,
    Evidence,
    condition_bounds,
    evidence,
    figures,
    in_parts,
    is_definite,
    rank_cut,
    rank_of,
    traced_verdict,
    within,
)
from polarlib.result import Later, PolarResult, Run, Status

Array = Any
F = TypeVar("F", bound=Callable[..., Any])


def _check_memory_for_h(decompose: F) -> F:
    """Raise MemoryError with a remedy where the larger Hermitian factor cannot be stored."""

    @functools.wraps(decompose)
    def run(a: Array, options: Options, h_out: Array | None = None) -> Any:
        (m, n), side = a.shape[-2:], options.side
        # The smaller factor is at most as large as A.
        if not options.form_h or m == n or (m < n) != (side == "right"):
            return decompose(a, options, h_out)
        ops = ops_of(a)
        shape = (*a.shape[:-2], max(m, n), max(m, n))
        other, size = {"right": "left", "left": "right"}[side], math.prod(shape)
        message = (
            f"polar(side={side!r}) of shape {tuple(a.shape)} has a Hermitian factor of shape "
            f"{shape}, {size * bytes_of_entry(a) / 2**30:,.1f} GiB, which does not fit in "
            f"memory; pass side={other!r} for the smaller one, {min(m, n)} x {min(m, n)}, or use "
            "nearest_orthogonal for U alone"
        )
        if not fits(shape, a, ops):
            raise MemoryError(message)
        try:
            return decompose(a, options, h_out)
        except Exception as error:
            if is_out_of_memory(error):
                raise MemoryError(message) from error
            raise

    return cast(F, run)


def _where_it_is_fast(decompose: F) -> F:
    """Use NumPy for matrices that it can view and decomposes faster, with the best thread count."""

    @functools.wraps(decompose)
    def run(a: Array, options: Options, h_out: Array | None = None) -> Any:
        ops = ops_of(a)
        plain = options.method == "auto" and options.callback is None and h_out is None
        # A traced array stands for others: a result computed from its entries would be a constant.
        known = not (ops.is_traced(a) or ops.is_abstract(a)) and 0 not in a.shape
        view = ops._host_view(a) if plain and known else None
        if view is None:
            with ops._threads_for(a):
                return decompose(a, options, h_out)
        with ops_of(view)._threads_for(view):
            result = decompose(view, options)
        if not options.form_h:
            return ops.from_host(result, a)
        u, h = (ops.from_host(x, a) for x in result)
        reason = "; ".join(filter(None, (result.reason, "by NumPy in the same memory")))
        return result._replace(unitary=u, hermitian=h, reason=reason)

    return cast(F, run)


@under_default_settings
@_where_it_is_fast
@_check_memory_for_h
def decompose(a: Array, options: Options, h_out: Array | None = None) -> Any:
    """Run the stages and return the result of :func:`polarlib.polar`, without derivatives.

    Return the unitary factor alone if ``options.form_h`` is False.
    """
    ops = ops_of(a)
    tol = options.tolerance(a)
    traced = ops.is_abstract(a)
    if traced:
        refuse_hidden(a, ops, options.caller)
        options.check_abstract(ops)
    elif options.form_h and (closed := closed_form(a, ops, options, tol)) is not None:
        return closed
    entered = enter(
        a,
        ops=ops,
        look="always" if options.check_finite else "never",
        remedy="remove them, or pass check_finite=False to get NaN back",
        mask=True,  # NaN is replaced by zeros, which every method accepts, and restored at the end
        tall=True,
        comfortable=True,
    )
    lower = lower_bound(options, entered)
    if entered.is_empty:
        nothing = empty(entered, options)
        return nothing if options.form_h else nothing.unitary
    stages = (_TracedStages if traced else _Stages)(entered, options, tol)
    if not options.form_h and not options.completion:
        # Without H the rank needs singular values, and their SVD also gives the factor.
        return entered.leave(partial_isometry(entered.x, ops, sharded=options.sharded))
    stages.run(lower)
    stages.check()
    stages.fall_back()
    if not options.form_h:
        return stages.leave_factor()
    stages.complete(h_out)
    stages.form_large(h_out)
    stages.round()
    return stages.leave()


def _run(
    x: Array, ops: Ops, options: Options, tol: float, lower: float | None
) -> tuple[Array, Run]:
    """Run one method, or one fixed schedule."""
    method, callback = options.method, options.callback
    if callback is not None:
        callback = reporting(callback, "iterations")
    parts = in_parts(x, ops) if callback is None else []
    if parts:
        # Parts of a stack that fit in the cache; a callback is called with whole stacks.
        flat, u = x.reshape(-1, *x.shape[-2:]), cast(Array, ops.buffer(x.shape, x))
        into, runs = u.reshape(flat.shape), []
        for part in parts:
            into[part], run = _run(flat[part], ops, options, tol, lower)
            runs.append(run)
        return u, worst_of(runs, x.shape[:-2])
    precision = format_name(x)
    if ops.is_abstract(x):
        if method == "auto" and options.sharded:
            return traced_gram(x, ops, tol=tol, lower=lower)
        if isinstance(method, str) and method in TRACED:
            return TRACED[method](x, ops, tol=tol, lower=lower)
        return fixed_schedule(x, ops, resolve_schedule(method, None, precision))
    if isinstance(method, str) and method in HINTED and lower is not None:
        return HINTED[method](x, ops, tol=tol, callback=callback, lower=lower)
    if method == "auto":
        return auto(x, ops, tol=tol, callback=callback)
    if isinstance(method, str) and method in METHODS:
        return METHODS[method](x, ops, tol=tol, callback=callback)
    return fixed_schedule(x, ops, resolve_schedule(method, None, precision), callback)


def _status_from_errors(
    name: str, options: Options, estimates: Evidence, shape: tuple[int, ...], tol: float, ops: Ops
) -> tuple[Status, bool]:
    """Return the status that follows from the error estimates, and whether full rank is certified.

    The factors must satisfy: U orthonormal, A = U H, and H positive semidefinite. A QR factor needs
    to be orthonormal only. If H is not formed, the method guarantees that it is semidefinite.
    """
    if name == "qr":
        orthonormal = bool(np.all(estimates.orthogonality <= tol))
        return (Status.NOT_POLAR if orthonormal else Status.NOT_CONVERGED), False
    h = estimates.hermitian
    if estimates.within(tol):
        if name == "svd" or h is None:  # the SVD's H is semidefinite by construction
            return Status.CONVERGED, False
        # U orthonormal and A = U H hold for a singular value of the wrong sign too. Shifted down, H
        # has a Cholesky factor at full rank. Otherwise a second one, shifted up, decides.
        known = estimates.definite
        full = known[0] if known else is_definite(h, 1, rank_cut(shape, format_name(h)), ops)
        if full or (known[1] if known[1:] else is_definite(h, -1, tol, ops)):
            return Status.CONVERGED, full
    return (Status.FIXED_SCHEDULE if options.is_fixed else Status.NOT_CONVERGED), False


class _Stages:
    """Run the stages of a decomposition of tall, scaled matrices, one method per stage."""

    def __init__(self, entered: Entered, options: Options, tol: float) -> None:
        self.entered, self.options, self.tol = entered, options, tol
        self.x, self.ops = entered.x, entered.ops
        # Whether the larger of the two Hermitian factors is requested.
        self.large = entered.wide != (options.side == "left")
        self.half = entered.given.dtype != entered.x.dtype
        self.status: Status | None = None
        self.full = self.isometry = False
        self.fits: bool | None = None  # whether H is finite as returned; None where unknown
        self.rank: Any = None
        self.condition: Any = None

    def run(self, lower: float | None) -> None:
        """Run the method."""
        self.u, run = _run(self.x, self.ops, self.options, self.tol, lower)
        # A run names a method only where it was chosen among several.
        self.statistics = run if run.method else run._replace(method=self.options.name)

    def check(self, method: str = "") -> None:
        """Compute the error estimates and the status, by the criteria of the method."""
        x, ops, name = self.x, self.ops, method or self.statistics.method
        form_h = self.options.form_h
        certify: tuple[tuple[int, float], ...] = ()
        if form_h and not ops.host and name not in ("svd", "qr"):
            # On a device a Cholesky factor that may not be needed costs less than a second
            # synchronisation.
            cut, bounds = rank_cut(x.shape, format_name(self.u)), self.statistics.bounds
            certify = ((1, cut), (-1, self.tol))
            # If the bounds imply full rank, the first certificate is enough.
            certify = certify[: 1 if bounds is not None and bounds[0] > cut * bounds[1] else 2]
        self.estimates = evidence(self.u, x, ops, form_h=form_h, certify=certify)
        self.status, self.full = _status_from_errors(
            name, self.options, self.estimates, x.shape, self.tol, ops
        )

    def fall_back(self) -> None:
        """Recompute by the SVD after a method that failed; the products of both are counted."""
        run, sharded = self.statistics, self.ops.is_sharded(self.x)
        if self.status is not Status.NOT_CONVERGED or run.method in ("svd", "qr") or sharded:
            return
        del self.u, self.estimates  # before the SVD takes storage
        self.u, after = METHODS["svd"](self.x, self.ops, tol=self.tol)
        note = "; ".join(filter(None, (run.note, "its factor missed the tolerance")))
        self.statistics = run._replace(
            matmuls=run.matmuls + after.matmuls,
            certain=None,  # the bounds of a method that failed may be wrong
            singular_values=after.singular_values,
            method=run.method + ", then svd",
            note=note,
        )
        self.check("svd")  # the SVD of a library may fail too
        self.status = {Status.CONVERGED: Status.FELL_BACK}.get(self.status, self.status)

    def complete(self, h_out: Array | None) -> None:
        """Compute or defer rank and condition number; form the partial isometry if requested."""
        x, ops, n = self.x, self.ops, self.x.shape[-1]
        run, full = self.statistics, self.full
        self.h, self.orthogonality, self.backward_error = self.estimates[:3]
        del self.estimates
        # On a device the rank follows from the eigenvalues of H, computed when the rank is read.
        decomposed = ops.host or self.status not in SUCCESS
        few = decomposed and n <= DECOMPOSED_UP_TO and not ops.is_sharded(x)
        by_svd = few and run.singular_values is None and not full
        matrix = x if by_svd else None
        find_rank = functools.partial(rank_of, self.h, x.shape, run, ops, full=full, x=matrix)
        bounds = functools.partial(condition_bounds, self.h, x.shape, run, ops, full=full)

        def condition(rank: Any) -> tuple[np.ndarray, np.ndarray]:
            low, high = bounds()
            return low, np.where(rank < n, np.inf, high)

        # Deferred where the result keeps H as it is, so that no array is kept for the rank alone.
        # Above 128 columns a schedule then computes eigenvalues of H only if they are read. On a
        # device another H may be kept, since its eigenvalues take longer than all other stages.
        kept = self.entered.unscaled and not self.half
        later = (kept or not ops.host) and self.entered.finite is None and h_out is None
        later = later and not (self.large or ops.is_sharded(x))
        if later and self.options.completion:
            known = Later(find_rank)
            self.rank = known() if full or by_svd else known
            self.condition = Later(lambda: condition(known()))
            return
        self.rank = find_rank()
        self.condition = condition(self.rank)
        # By Gram matrices U may be orthonormal on the row space alone, as is all of an isometry.
        usable = self.status in SUCCESS or run.method == "gram"
        if usable and bool(np.any(self.rank < n)) and not self.options.completion:
            self.isometry = True
            self.u = partial_isometry(x, ops)
            self.h, _, self.backward_error = evidence(self.u, x, ops)[:3]
            self.orthogonality, _ = figures(self.u, self.h, x, ops, isometry=True)
            if within((self.orthogonality, self.backward_error), self.tol):
                self.status = Status.CONVERGED if run.method == "gram" else self.status

    def form_large(self, h_out: Array | None) -> None:
        """Form the larger of the two Hermitian factors, in the place where it is to be stored."""
        if not self.large:
            return
        x, ops = self.x, self.ops
        del self.h  # the smaller factor, before the larger one takes storage
        a = self.entered.given
        usable = h_out is not None and h_out is not a and can_hold(h_out, a)
        into = h_out if usable and not self.half else None
        product = ops.matmul(x, ops.adjoint(self.u), into)
        self.h = ops.hermitian_part(product, may_overwrite=True)
        _, self.backward_error = figures(self.u, self.h, x, ops, large=True)

    def round(self) -> None:
        """Measure factors in half precision as they are returned."""
        if self.half:
            ops, a = self.ops, self.entered.given
            v, g = (at_least_single(astype_like(t, a, ops), ops) for t in (self.u, self.h))
            largest = []
            # On a device the entries are read once, with the errors; H is rounded twice for that.
            if not (ops.host or ops.is_abstract(v)):
                h = self.entered.leave(self.h, self.entered.scale, turn=False)
                largest = [ops.max_abs(at_least_single(h, ops))]
            self.orthogonality, self.backward_error, *entries = figures(
                v, g, self.x, ops, large=self.large, isometry=self.isometry, also=largest
            )
            self.fits = bool(np.all(np.isfinite(entries))) if entries else None

    def leave(self) -> PolarResult[Array]:
        """Return the factors as the caller's arrays, and warn where they missed the tolerance."""
        entered, ops = self.entered, self.ops
        if entered.finite is not None:
            lost = np.where(ops.to_host(entered.finite)[..., 0, 0] == 0, math.nan, 0.0)
            self.orthogonality, self.backward_error = (
                self.orthogonality + lost,
                self.backward_error + lost,
            )
            self.condition = tuple(bound + lost for bound in self.condition)
            self.rank = np.where(np.isnan(lost), 0, self.rank)
            if np.any(np.isnan(lost)):
                self.status = Status.NOT_CONVERGED
        kept = isinstance(self.condition, Later)  # H is needed when rank and condition are read
        h = entered.leave(self.h, entered.scale, turn=False, may_overwrite=not kept)
        # ||H||_F = ||A||_F <= sqrt(m n) max |a_ij|: without scaling H cannot overflow.
        safe = self.status is Status.NOT_CONVERGED or (entered.unscaled and not self.half)
        fits = self.fits
        if fits is None and not safe:
            fits = math.isfinite(ops.item(ops.max_abs(at_least_single(h, ops))))
        if not (safe or fits):
            self.status = Status.OVERFLOW
        errors = {"orthogonality": self.orthogonality, "backward_error": self.backward_error}
        self._warn(self.statistics.method, **errors)
        return conclude(
            entered.leave(self.u),
            h,
            self.status,
            self.statistics,
            rank=self.rank,
            condition_bounds=self.condition,
            single=entered.given.ndim == 2,
            **errors,
        )

    def _warn(self, method: str, **errors: Any) -> None:
        if self.status in (Status.NOT_CONVERGED, Status.OVERFLOW):
            options, remedy = self.options, cast(Status, self.status).value
            missed(options.caller, method, self.tol, remedy, throw=options.throw, **errors)

    def leave_factor(self) -> Array:
        """Return the unitary factor alone, as the caller's array."""
        figures = {"orthogonality": self.estimates.orthogonality, "skew_part": self.estimates.skew}
        self._warn(self.options.name, **figures)
        return self.entered.leave(self.u)


class _TracedStages(_Stages):
    """Run the stages under a trace: error estimates are arrays, and there is no fallback."""

    def run(self, lower: float | None) -> None:
        super().run(lower)
        # Under a trace no condition number can be read: "auto" is the SVD, which fits every matrix.
        if self.statistics.method == "auto":
            self.statistics = self.statistics._replace(method="svd")

    def check(self, method: str = "") -> None:
        if not self.options.form_h:
            self.estimates = Evidence()
            return
        self.estimates = evidence(self.u, self.x, self.ops)
        name = self.statistics.method
        self.good, self.rank, self.condition = traced_verdict(
            self.estimates,
            self.x,
            self.statistics,
            self.tol,
            self.ops,
            semidefinite=name == "svd",  # by construction
            products=name == "newton_schulz",  # a sharded matrix is not factorised
        )

    def complete(self, h_out: Array | None) -> None:
        x, ops, tol, n = self.x, self.ops, self.tol, self.x.shape[-1]
        if not self.options.completion:
            deficient, self.isometry = self.rank < n, True
            part = partial_isometry(x, ops, sharded=self.options.sharded)
            self.u = ops.xp.where(deficient[..., None, None], part, self.u)
            self.estimates = evidence(self.u, x, ops)
            orthogonality, error = figures(self.u, self.estimates.hermitian, x, ops, isometry=True)
            self.estimates = self.estimates._replace(
                orthogonality=orthogonality, backward_error=error
            )
            within = (orthogonality <= tol) & (error <= tol) & (self.estimates.skew <= tol)
            self.good = within & (self.good | deficient)
        self.h, self.orthogonality, self.backward_error = self.estimates[:3]

    def leave(self) -> PolarResult[Array]:
        entered, ops, run = self.entered, self.ops, self.statistics
        xp, finite = ops.xp, cast(Array, entered.finite)[..., 0, 0]
        h = entered.leave(self.h, entered.scale, turn=False)
        # An H that overflows does so when it is scaled back or rounded to half precision.
        fits = xp.isfinite(ops.max_abs(at_least_single(h, ops)))[..., 0, 0]
        orthogonality, backward_error, low, high = (
            xp.where(finite, t, xp.full_like(t, math.nan))
            for t in (self.orthogonality, self.backward_error, *self.condition)
        )
        counts = {"iterations": xp.asarray(run.iterations), "matmuls": xp.asarray(run.matmuls)}
        return conclude(
            entered.leave(self.u),
            h,
            None,
            run._replace(changes=(), **counts),
            converged=self.good & fits & (run.method != "qr"),  # whose factor is orthonormal only
            orthogonality=orthogonality,
            backward_error=backward_error,
            rank=xp.astype(xp.where(finite, self.rank, xp.zeros_like(self.rank)), int),
            condition_bounds=(low, high),
        )
