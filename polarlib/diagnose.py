"""The function measure(): singular values and errors of a schedule or a method, step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

import polarlib.published as published
from polarlib._methods import METHODS, polynomial, rational
from polarlib._methods.options import resolve_schedule, restarts_of, warn_of_hazards
from polarlib._schedules.schedule import Schedule
from polarlib._stages.options import check_method, default_tolerance
from polarlib.arrays.checks import choice
from polarlib.arrays.entered import enter
from polarlib.arrays.entry import as_matrix, refuse_hidden
from polarlib.arrays.formats import format_of
from polarlib.arrays.library import format_name, is_complex
from polarlib.arrays.progress import Callback, reporting
from polarlib.arrays.rounded import rounded
from polarlib.arrays.settings import looks, under_default_settings
from polarlib.engine.iterate import matrix_products
from polarlib.published import ADAPTIVE, Named
from polarlib.result import Trace

__all__ = ["measure"]

Array = Any

# Above this size, matching computed singular vectors to exact ones takes longer than the SVDs.
MATCH_UP_TO = 2000


@looks
@under_default_settings
def measure(
    a: Array,
    schedule_or_method: Named,
    *,
    steps: int | None = None,
    precision: str | None = None,
    form: str = "plain",
    reference: str = "svd",
    callback: Callback | None = None,
) -> Trace:
    """Measure the convergence of a schedule or method on one matrix.

    The iteration runs on the array library of `a`, in `precision`. Singular values and errors are
    computed on the host in float64, from a copy of every iterate.

    Parameters
    ----------
    a : array, shape (m, n)
        One matrix; m < n is transposed. Never changed.
    schedule_or_method : str, path-like or Schedule
        A schedule, its file, or a name of :func:`polarlib.methods`. "auto" is the default schedule
        of :func:`polarlib.orthogonalize`, and "adaptive" is the one chosen from the matrix.
    steps : int, optional
        Steps of a schedule; by default the listed length, or 5 for sets that repeat.
    precision : str, optional
        Number format of the iteration; by default as :func:`polarlib.orthogonalize` chooses it.
        Methods with factorisations run in float32 or float64, by default the input's own.
    form : {"plain", "gram"}, optional
        Form of a schedule; the Gram form restarts as :func:`polarlib.design.restarts` decides.
    reference : {"svd", "mpmath"}, optional
        Exact factors by LAPACK in double precision, or by mpmath with 50 digits (slow: up to about
        64 columns).
    callback : callable, optional
        Called as ``callback(k, value)`` after step k = 0, 1, 2, ... with the distance of the
        iterate from the unitary factor; k = 0 is the normalised input. The number of steps is
        known beforehand for schedules. See :class:`polarlib.result.Progress`.

    Returns
    -------
    Trace
        Row 0 is the normalised input of the iteration. From the first iterate that is not finite
        on, the values are NaN.

    Raises
    ------
    ValueError
        For a stack, an empty matrix, NaN or infinity, an unknown name, format, form or reference.

    Warns
    -----
    ScheduleWarning
        As :func:`polarlib.orthogonalize`, if the safety factor of the schedule does not cover one
        rounding of the format, or its interval ends below 1.

    Examples
    --------
    >>> import numpy as np
    >>> t = measure(np.diag([1.0, 0.5, 0.1]), "newton_schulz_3", steps=12)
    >>> t.singular_values.shape, bool(abs(t.singular_values[-1] - 1).max() < 1e-3)
    ((13, 3), True)
    """
    x, ops = as_matrix(a)
    refuse_hidden(x, ops, "measure", fixed_work=False)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"measure takes one matrix with entries, got shape {tuple(x.shape)}")
    form = choice("form", form, ("plain", "gram"))
    reference = choice("reference", reference, ("svd", "mpmath"))
    schedule_or_method = published.opened(schedule_or_method)
    if precision is None:
        a_method = isinstance(schedule_or_method, str) and schedule_or_method in (*METHODS, "auto")
        precision = format_name(x) if a_method else ops.multiplier(x)
    precision = format_of(precision).name
    shape = tuple(int(k) for k in x.shape)
    # Not scaled: row 0 is the matrix as the iteration normalises it.
    x = enter(x, "measure: the matrix", ops=ops, remedy="remove them", tall=True, scaling=None).x
    exact = ops.to_host(x)
    exact = exact / (max(np.abs(exact.real).max(), np.abs(exact.imag).max()) or 1.0)
    u, v = _reference(exact, reference)

    rows: list[dict[str, Any]] = []
    report = reporting(callback, "steps")

    def record(k: int, iterate: Array) -> None:
        rows.append(_errors(ops.to_host(iterate), exact, u, v))
        report(len(rows) - 1, rows[-1]["distance"])

    if isinstance(schedule_or_method, str) and schedule_or_method in METHODS:
        name, simulated = schedule_or_method, False
        if steps is not None:
            raise ValueError(f"steps is for fixed schedules; method {name!r} has a stopping test")
        if form != "plain":
            raise ValueError(f"form is for fixed schedules; method {name!r} has none, got {form!r}")
        if precision not in ("float32", "float64"):
            raise ValueError(
                f"method {name!r} factorises and runs in float32 or float64, got "
                f"precision={precision!r}; fixed schedules run in every format"
            )
        x = ops.cast(x, precision)
        x = ops.divide(x, ops.binary_scale(ops.max_abs(x)))  # as polar scales it, exactly
        record(0, ops.divide(x, float(np.linalg.norm(ops.to_host(x), 2)) or 1.0))
        tol = default_tolerance(shape, precision)
        _, run = METHODS[name](x, ops, tol=tol, callback=record)
        # Each step of a method takes as many products; for a reduced tall matrix one product
        # follows at the end.
        per_step = run.matmuls // max(run.iterations, 1)
        used = [min(k * per_step, run.matmuls) for k in range(len(rows))]
        used[-1] = run.matmuls
        form = ""
    else:
        if not (isinstance(schedule_or_method, str) and schedule_or_method == ADAPTIVE):
            check_method(schedule_or_method)  # its message lists methods too
        schedule = resolve_schedule(schedule_or_method, steps, precision)
        report = reporting(callback, "steps", len(schedule))
        # The default schedule has the name under which it was requested.
        auto = isinstance(schedule_or_method, str) and schedule_or_method == "auto"
        name = "auto" if auto else schedule.name
        simulated = bool(rounded(ops, precision, is_complex=is_complex(x)).simulated)
        if schedule.is_rational:
            if form == "gram":
                raise ValueError(
                    f"form='gram' is for schedules of polynomials; schedule {name!r} is rational"
                )
            _, run = rational(x, ops, schedule, precision=precision, callback=record)
            used = [0, *[run.matmuls] * len(schedule)]  # all steps are taken together
            form = ""
        else:
            warn_of_hazards(schedule, precision, schedule.normalisation)
            at = restarts_of(schedule, precision) if form == "gram" else ()
            _, run = polynomial(
                x,
                ops,
                schedule,
                precision=precision,
                form=form,
                restarts=at,
                callback=record,
            )
            total = matrix_products(schedule.steps, form=form, restarts=at)
            used = [run.matmuls - total + k for k in _cumulative(schedule, form, at)]
    columns = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    return Trace(
        method=name,
        precision=precision,
        form=form,
        shape=shape,
        simulated=simulated,
        matmuls=np.array(used),
        **columns,
    )


def _cumulative(schedule: Schedule, form: str, restarts: Sequence[int]) -> list[int]:
    """Return the products used after 0, 1, ... steps; ``X Q`` counts at the end of its segment."""
    if form == "plain":
        return [matrix_products(schedule.steps[:k]) for k in range(len(schedule) + 1)]
    counts = [0]
    for k in range(1, len(schedule) + 1):
        whole = matrix_products(schedule.steps[:k], form="gram", restarts=restarts)
        ends = k == len(schedule) or k in restarts
        # Without X Q, but with the update of R that follows a step inside a segment.
        counts.append(whole if ends else whole + 1)
    return counts


def _reference(a: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact left and right singular vectors, as columns."""
    if kind == "svd":
        import scipy.linalg  # lazily: it takes longer to import than all of polarlib

        u, _, vh = scipy.linalg.svd(a, full_matrices=False)
        return u, vh.conj().T
    import mpmath

    context = mpmath.MPContext()  # mpmath.mp belongs to the caller
    context.dps = 50
    u, _, vh = context.svd(context.matrix(a.tolist()), full_matrices=False)
    return np.array(u.tolist(), dtype=a.dtype), np.array(vh.tolist(), dtype=a.dtype).conj().T


def _errors(x: np.ndarray, a: np.ndarray, u: np.ndarray, v: np.ndarray) -> dict[str, Any]:
    """Compute singular values and errors of one iterate; all NaN if it is not finite."""
    k = u.shape[1]
    if not np.all(np.isfinite(x)):
        path = np.full(k, np.nan)
        errors = dict.fromkeys(("orthogonality", "backward_error", "distance"), math.nan)
        return {"singular_values": path, "alignment": path, **errors}
    w = x.conj().T @ a
    residual = a - x @ ((w + w.conj().T) / 2)
    images = x @ v
    length = np.linalg.norm(images, axis=0)
    cosine = np.sum(u.conj() * images, axis=0).real / np.where(length == 0, 1, length)
    return {
        "singular_values": _tracked(x, u, v),
        "alignment": cosine,
        "orthogonality": np.linalg.norm(x.conj().T @ x - np.eye(k)) / math.sqrt(k),
        "backward_error": np.linalg.norm(residual) / (np.linalg.norm(a) or 1.0),
        "distance": np.linalg.norm(x - u @ v.conj().T) / math.sqrt(k),
    }


def _tracked(x: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Compute the singular values of an iterate, in the order of the exact singular vectors."""
    import scipy.linalg
    from scipy.optimize import linear_sum_assignment  # here, to keep the import of polarlib short

    p, s, qh = scipy.linalg.svd(x, full_matrices=False)
    if s.size > MATCH_UP_TO:
        return cast(np.ndarray, s)
    # By directions, not by size: the paths of singular values may cross.
    overlap = np.abs(u.conj().T @ p) * np.abs(qh @ v).T
    _, columns = linear_sum_assignment(overlap, maximize=True)
    return cast(np.ndarray, s[columns])
