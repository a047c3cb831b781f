"""Results of decompositions: construction, error estimates as numbers, and warnings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polarlib._methods import small
from polarlib._methods.small_algebra import LARGEST
from polarlib._stages.options import Options
from polarlib.arrays.entered import Entered
from polarlib.arrays.functions import empty_result
from polarlib.arrays.library import at_least_single, format_name, is_complex
from polarlib.arrays.ops import Ops
from polarlib.arrays.settings import warn
from polarlib.result import ConvergenceWarning, Later, PolarResult, Run, Status

Array = Any
SUCCESS = (Status.CONVERGED, Status.FELL_BACK)
# Results are constructed by this function alone, from all their attributes.
finished = PolarResult._made


def missed(
    caller: str, method: str, tol: float, remedy: str, *, throw: bool, **errors: Any
) -> None:
    """Warn that error estimates exceed the tolerance; raise the warning if `throw`."""
    listed = ", ".join(f"{k.replace('_', ' ')} {np.max(v):.2e}" for k, v in errors.items())
    message = f"{caller}(method={method!r}): {listed}, tolerance {tol:.2e}; {remedy}"
    if throw:
        raise ConvergenceWarning(message)
    warn(message, ConvergenceWarning)


def conclude(
    unitary: Array,
    hermitian: Array,
    status: Status | None,
    run: Run,
    *,
    orthogonality: Any,
    backward_error: Any,
    rank: Any,
    condition_bounds: Any,
    single: bool = False,
    converged: Any = None,
) -> PolarResult[Array]:
    """Return the result of a decomposition, by whichever method.

    `run` has the method that computed U, and the reason for it. If `single`, the error estimates
    are those of one matrix and become Python's numbers. `converged` follows from the status by
    default.
    """
    if single:
        orthogonality, backward_error = _plain(orthogonality), _plain(backward_error)
        rank = _plain(rank, int)
        condition_bounds = _plain(condition_bounds, _plain_pair)
    figures = (orthogonality, backward_error, rank, condition_bounds)
    return finished(unitary, hermitian, outcome(status, run, converged), *figures)


def outcome(status: Status | None, run: Run, converged: Any = None) -> dict[str, Any]:
    """Return the attributes of a result that are not computed from its matrices."""
    return {
        "status": status,
        "converged": status in SUCCESS if converged is None else converged,
        "iterations": run.iterations,
        "matmuls": run.matmuls,
        "method": run.method,
        "reason": None if status is None else run.note,
        "trace": run.changes,
    }


def _plain(value: Any, kind: Callable[[Any], Any] = float) -> Any:
    """Return a Python number; a value that is computed when it is read stays so."""
    return Later(lambda: kind(value())) if isinstance(value, Later) else kind(value)


def _plain_pair(pair: tuple[Any, Any]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])


def empty(entered: Entered, options: Options) -> PolarResult[Array]:
    """Return the result for matrices without entries: U of the shape of `a`, H = 0, as SciPy."""
    a, ops = entered.given, entered.ops
    xp, batch, hidden = ops.xp, a.shape[:-2], entered.is_abstract
    n = a.shape[-1] if options.side == "right" else a.shape[-2]
    zero, count, name = np.zeros(batch), 0, options.name
    if hidden:
        name = "svd" if name == "auto" else name
        zero, count = xp.zeros(batch, dtype=entered.x.dtype), xp.asarray(0)
        zero = xp.real(zero) if is_complex(a) else zero
    return conclude(
        empty_result(a, ops),
        # The sums are zero too; adding them keeps H in the graph that a library records.
        xp.broadcast_to(ops.eye(n, a), (*batch, n, n)) * 0.0
        + xp.sum(a, axis=(-2, -1), keepdims=True),
        None if hidden else Status.CONVERGED,
        Run(count, count, True, method=name),
        converged=zero == 0 if hidden else True,
        orthogonality=zero,
        backward_error=zero,
        rank=xp.astype(zero, int) if hidden else zero.astype(int),
        condition_bounds=(zero + 1, zero + 1),
        single=not hidden and not batch,
    )


def closed_form(a: Array, ops: Ops, options: Options, tol: float) -> PolarResult[Array] | None:
    """Decompose a stack of small matrices by closed forms; None where the stages are needed."""
    (m, n), method = a.shape[-2:], options.method
    tall = n < m <= small.FEW_ROWS and options.side == "right" and ops.kernels(a) is not None
    if not (m == n or tall) or n > LARGEST or 0 in a.shape or not ops.host:
        return None
    # Closed forms use no bound and have no iterates. Factors in half precision are measured as they
    # are returned, by the stages.
    hints = options.sigma_min is not None or options.cond is not None
    if hints or options.callback is not None or a.dtype != at_least_single(a, ops).dtype:
        return None
    many = small.is_worth(a.shape)
    if method != "small" and not (many and method == "auto"):
        return None
    # A = H U is A^H = U^H H: the same factors, from the right.
    left = options.side == "left"
    done = small.decompose(ops.adjoint(a) if left else a, ops, tol=tol)
    # If one matrix fails, the stages decompose all: their fallback is for whole stacks.
    within = (done.orthogonality <= tol) & (done.backward_error <= tol) & done.definite
    if not within.all() or (not options.completion and np.any(done.rank < n)):
        return None
    if not done.upper.max() < 0.5 * float(np.finfo(format_name(a)).max):  # H may overflow
        return None
    upper = np.full(done.lower.shape, np.inf)
    np.divide(done.upper, done.lower, out=upper, where=(done.lower > 0) & (done.rank == n))
    repaired = f", {done.repaired} of {done.rank.size} by Jacobi rotations" * bool(done.repaired)
    note = f"closed forms for {m} x {n} matrices{repaired}"
    return conclude(
        ops.adjoint(done.unitary) if left else done.unitary,
        done.hermitian,
        Status.CONVERGED,
        Run(1, 0, True, method="small", note=note),
        orthogonality=done.orthogonality,
        backward_error=done.backward_error,
        rank=done.rank,
        condition_bounds=(np.ones_like(upper), upper),
        single=a.ndim == 2,
    )
