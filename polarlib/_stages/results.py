"""The result of a decomposition: errors as numbers, warnings, and one place where it is made."""

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
# The one place where results are made: of all their attributes.
finished = PolarResult._made


def missed(caller: str, method: str, tol: float, remedy: str, *, throw: bool, **found: Any) -> None:
    """Warn, or raise, that errors miss the tolerance."""
    listed = ", ".join(f"{k.replace('_', ' ')} {np.max(v):.2e}" for k, v in found.items())
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
    """Return the result of a decomposition, whatever way it went.

    `run` has the method that made U, and the reason. If `single`, the error estimates are those of
    one matrix, and become Python's numbers. `converged` follows from the status by default.
    """
    if single:
        orthogonality, backward_error = _plain(orthogonality), _plain(backward_error)
        rank = _plain(rank, int)
        condition_bounds = _plain(condition_bounds, _plain_pair)
    figures = (orthogonality, backward_error, rank, condition_bounds)
    return finished(unitary, hermitian, outcome(status, run, converged), *figures)


def outcome(status: Status | None, run: Run, converged: Any = None) -> dict[str, Any]:
    """Attributes of a result that are no numbers of its matrices."""
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
    """One number as Python's, when it is read if it is computed then."""
    return Later(lambda: kind(value())) if isinstance(value, Later) else kind(value)


def _plain_pair(pair: tuple[Any, Any]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])


def empty(entered: Entered, options: Options) -> PolarResult[Array]:
    """Factors of matrices without entries: U as `a`, H zero, as SciPy gives them."""
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
        # Their sums are zero too, and in the graph of what is recorded.
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
    """Decompose stacks of small matrices in one go; None where the stages must be taken."""
    (m, n), method = a.shape[-2:], options.method
    tall = n < m <= small.FEW_ROWS and options.side == "right" and ops.kernels(a) is not None
    if not (m == n or tall) or n > LARGEST or 0 in a.shape or not ops.host:
        return None
    # What closed forms cannot serve: they start from no bound and have no iterates, and factors in
    # half precision are measured as they are returned, in the stages.
    hints = options.sigma_min is not None or options.cond is not None
    if hints or options.callback is not None or a.dtype != at_least_single(a, ops).dtype:
        return None
    many = small.is_worth(a.shape)
    if method != "small" and not (many and method == "auto"):
        return None
    # A = H U is A^H = U^H H: the same factors, from the right.
    left = options.side == "left"
    done = small.decompose(ops.adjoint(a) if left else a, ops, tol=tol)
    # One matrix that fails sends all to the stages, whose fallback is for whole stacks.
    evident = (done.orthogonality <= tol) & (done.backward_error <= tol) & done.definite
    if not evident.all() or (not options.completion and np.any(done.rank < n)):
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
