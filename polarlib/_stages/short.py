"""Short code path for one small NumPy matrix: the SVD, without the stages.

The computation is that of :mod:`polarlib._stages.stages`, without the checks for stacks, other
libraries and other scales. A result is returned only if it meets the tolerance; the stages handle
every other case, and issue all errors and warnings. Functions are few here: after a call of LAPACK
the code of the next function is no longer in the caches.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polarlib._methods import METHODS
from polarlib._methods.auto import WORTH_IT
from polarlib._stages.options import SIDES
from polarlib._stages.results import finished, outcome
from polarlib.arrays import single
from polarlib.arrays.checks import number
from polarlib.arrays.routines import threads_for
from polarlib.engine.evidence import single_condition, single_factor_figures, single_figures
from polarlib.result import PolarResult, Run, Status

# The method that is run here, unless the table has been given another one by that name.
SVD = METHODS["svd"]
RUN = Run(1, 3, True, method="svd")
OUTCOMES = {
    "svd": outcome(Status.CONVERGED, RUN),
    "auto": outcome(Status.CONVERGED, RUN._replace(note=f"fewer than {WORTH_IT} columns")),
}


def short_polar(a: Any, side: Any, method: Any, rtol: Any) -> PolarResult[Any] | None:
    """Return the result of :func:`polarlib.polar` for one small NumPy matrix.

    Return None for every other argument, and for a matrix that has NaN or infinity, is zero, needs
    scaling, misses the tolerance, or whose larger Hermitian factor is requested.
    """
    kind = single.kind_of(a, WORTH_IT)
    if kind is None or not isinstance(method, str) or not isinstance(side, str):
        return None
    if method not in OUTCOMES or side not in SIDES or METHODS["svd"] is not SVD:
        return None
    m, n = a.shape
    large = (m < n) != (side == "left")  # the larger of the two Hermitian factors
    if large and m != n:  # H may exceed the memory
        return None
    tol = _tolerance(rtol, m, n, kind)
    with np.errstate(all="ignore"), threads_for(a):
        factors = _factors(a, kind, tol)
        if factors is None:
            return None
        x, square, u, values = factors
        adjoint = single.adjoint(u)
        h = single.hermitian_part(x.dot(adjoint) if large else adjoint.dot(x))
        orthogonality, backward_error = single_figures(u, h, x, square, large=large)
    if not (orthogonality <= tol and backward_error <= tol):  # NaN is not
        return None
    rank, condition = single_condition(values, max(m, n) * kind.epsilon, kind.epsilon)
    unitary = adjoint if m < n else u
    figures = (orthogonality, backward_error, rank, condition)
    return finished(unitary, h, OUTCOMES[method], *figures)


def short_factor(a: Any) -> np.ndarray | None:
    """Return the unitary factor alone, or None as :func:`short_polar` does."""
    kind = single.kind_of(a, WORTH_IT)
    if kind is None or METHODS["svd"] is not SVD:
        return None
    m, n = a.shape
    tol = _tolerance(None, m, n, kind)
    with np.errstate(all="ignore"), threads_for(a):
        factors = _factors(a, kind, tol)
        if factors is None:
            return None
        x, square, u, _ = factors
        orthogonality, skew = single_factor_figures(u, x, square)
    if not (orthogonality <= tol and skew <= tol):
        return None
    return single.adjoint(u) if m < n else u


def _tolerance(rtol: Any, m: int, n: int, kind: single.Kind) -> float:
    """Return `rtol`, or the value of :func:`polarlib._stages.options.default_tolerance`."""
    if rtol is not None:
        return number("rtol", rtol, 0, 1, ends="()")
    return max(100, min(m, n)) * kind.epsilon


def _factors(
    a: np.ndarray, kind: single.Kind, tol: float
) -> tuple[np.ndarray, float, np.ndarray, list[float]] | None:
    """Return the tall matrix, its squared norm, unitary factor and singular values.

    Return None unless ``Re tr(U^H A)`` is the sum of the singular values. No orthonormal U has a
    larger trace, and with equality U is the polar factor. A singular value of the wrong sign is
    detected by the trace alone, since ``A = U H`` holds for it too.
    """
    x = single.tall(a)
    square = single.squared_norm(x)
    if not kind.low < square < kind.high:  # NaN is not
        return None
    svd = single.factors(x, kind)
    if svd is None:
        return None
    u, s = svd
    values: list[float] = s.tolist()
    largest = float(np.vdot(u, x).real) >= sum(values) - tol * math.sqrt(square)
    return (x, square, u, values) if largest else None
