"""polar() and unitary_factor(): check the arguments, run the stages, store the factors."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np

from polarlib._stages.options import Method, Options, Side, check_method
from polarlib._stages.results import SUCCESS, missed
from polarlib._stages.short import short_factor, short_polar
from polarlib._stages.stages import decompose
from polarlib.arrays.checks import shown
from polarlib.arrays.entered import COMFORTABLE
from polarlib.arrays.entry import ArrayT, as_matrix, check_out, copied
from polarlib.arrays.library import is_complex
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.progress import Callback
from polarlib.arrays.settings import looks
from polarlib.engine.evidence import sketch, sketched_figures, within
from polarlib.engine.rules import differentiable_polar, differentiable_unitary
from polarlib.result import PolarResult, Status

Array = Any
Stored = tuple[Array | None, Array | None]

# Rows over columns (columns over rows) from which a matrix is reduced in its own storage, if that
# may be overwritten: below, square matrices take as much storage as is saved.
STORED_FROM = 4


def hermitian_part(
    x: Array, ops: Ops, tolerance: float, *, look: bool = True, name: str = "a"
) -> Array:
    """Return the Hermitian part of `x`; raise if `look` and the rest exceeds the tolerance."""
    if not look:
        return ops.hermitian_part(x)
    h, rest = ops.hermitian_split(ops.combine((1.0,), (x,)))  # of a copy, in its storage
    skew = ops.item(rest / ops.divisor(ops.frobenius(x)))
    if not skew <= tolerance:
        raise ValueError(
            f"{name} is not Hermitian: its skew part is {skew:.1e} of it, above {tolerance:.1e}; "
            f"pass ({name} + {name}^H) / 2 if that is what you mean"
        )
    return h


# Nested lists come back as NumPy arrays.
@overload
def polar(
    a: Sequence[Any],
    side: Side = ...,
    *,
    method: Method = ...,
    completion: bool = ...,
    rtol: float | None = ...,
    sigma_min: float | None = ...,
    cond: float | None = ...,
    check_finite: bool = ...,
    throw: bool = ...,
    callback: Callable[[int, Array], None] | None = ...,
    out: Stored | None = ...,
    overwrite_a: bool = ...,
) -> PolarResult[np.ndarray]: ...
@overload
def polar(
    a: ArrayT,
    side: Side = ...,
    *,
    method: Method = ...,
    completion: bool = ...,
    rtol: float | None = ...,
    sigma_min: float | None = ...,
    cond: float | None = ...,
    check_finite: bool = ...,
    throw: bool = ...,
    callback: Callable[[int, Array], None] | None = ...,
    out: Stored | None = ...,
    overwrite_a: bool = ...,
) -> PolarResult[ArrayT]: ...
@looks
def polar(
    a: Array,
    side: Side = "right",
    *,
    method: Method = "auto",
    completion: bool = True,
    rtol: float | None = None,
    sigma_min: float | None = None,
    cond: float | None = None,
    check_finite: bool = True,
    throw: bool = False,
    callback: Callback | None = None,
    out: Stored | None = None,
    overwrite_a: bool = False,
) -> PolarResult[Any]:
    """Polar decomposition A = U H (or A = H U), with error estimates.

    Equals :func:`scipy.linalg.polar` to rounding, for every shape (U of a rank-deficient matrix is
    not unique), and also takes stacks of matrices, arrays of torch, JAX, Dask and CuPy (CuPy: not
    run on a GPU yet) and half precision (computed in float32).

    Parameters
    ----------
    a : array or array-like, shape (..., m, n)
        Never changed, unless `overwrite_a`. Integers become float64.
    side : {"right", "left"}, optional
        ``A = U H`` with H n x n, or ``A = H U`` with H m x m. May be given by position, as to
        :func:`scipy.linalg.polar`.
    method : str, path-like or Schedule, optional
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
        must not change. Fixed schedules also call it with k = 0 and the normalised matrix. See
        :class:`polarlib.result.Progress`.
    out : tuple of two arrays or None, optional
        Where to store U and H; None for an array that is to be new. With NumPy the larger of the
        two Hermitian factors is formed in its place, so that no other array is needed.
    overwrite_a : bool, optional
        Store U in the memory of `a`, and return that. A NumPy matrix with at least 4 times as many
        rows as columns (or columns as rows), well-conditioned enough for a Gram matrix, is
        decomposed in its own storage if the smaller Hermitian factor is asked for: the peak falls
        by about the size of `a`, and `backward_error` is estimated (docs/guide/memory.md). Every
        other matrix is needed until the end, and the peak is that without `overwrite_a`.

    Returns
    -------
    PolarResult
        Unpacks as ``u, h``. Array library, device and dtype of `a`. A fixed schedule that ends
        short of orthonormal has not failed: its status is FIXED_SCHEDULE.

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
    or for the worst condition number of the format, "newton_schulz", "qr", and schedules. Errors
    and `converged` of the result are arrays then, `status` and `reason` None; nothing warns, no SVD
    is computed instead, NaN or infinity gives NaN, `throw` and `callback` are refused, `sigma_min`
    is not used. docs/guide/derivatives.md has a table of the results.

    Examples
    --------
    >>> import numpy as np
    >>> u, h = polar(np.array([[1.0, -1.0], [2.0, 4.0]]))
    >>> bool(np.allclose(u @ h, [[1, -1], [2, 4]])), bool(np.allclose(u.T @ u, np.eye(2)))
    (True, True)
    """
    # One question, before anything else is looked at: for small matrices every call counts.
    plain = (
        callback is None
        and sigma_min is None
        and cond is None
        and completion is True
        and isinstance(throw, bool)
        and isinstance(check_finite, bool)
    )
    if plain and out is None and overwrite_a is False:
        short = short_polar(a, side, method, rtol)
        if short is not None:
            return short
    options = Options(
        side=side,
        method=method,
        completion=completion,
        rtol=rtol,
        sigma_min=sigma_min,
        cond=cond,
        check_finite=check_finite,
        throw=throw,
        callback=callback,
        overwrite_a=overwrite_a,
    )
    given = a
    a, ops = as_matrix(a, sharded=True)
    check_method(options.method)
    options.check_for(a, ops)
    stored = _storage(given, a, options, out)
    apply: Callable[[Array], PolarResult[Array]] = functools.partial(
        decompose, options=options, h_out=stored[1]
    )
    recorded = ops.is_traced(a) and 0 not in a.shape
    if recorded and not ops.is_abstract(a):
        options.check_differentiable()  # of what is hidden nobody knows whether it will be

    def find(a: Array) -> PolarResult[Array]:
        if not recorded or not ops_of(a).is_traced(a):
            return apply(a)
        refuse = options.check_differentiable
        settled = lambda a: apply(a)._settled()  # noqa: E731
        return differentiable_polar(settled, a, unitary_factor, options.side, refuse)

    if options.overwrite_a and not recorded:
        result = _in_its_storage(a, ops, options)
        if result is not None:
            return _stored(result, (None, stored[1]))
    if plain and (out is not None or options.overwrite_a):  # a result that is stored is the same
        short = short_polar(given, side, method, rtol)
        if short is not None:
            return _stored(short, stored)
    return _stored(ops.with_shards(find, a, "a"), stored)


def unitary_factor(
    a: Array, *, out: Array | None = None, name: str = "unitary_factor", **options: Any
) -> Array:
    """Unitary factor alone: :func:`polar` without the Hermitian factor and what it costs.

    Options and errors are those of :func:`polar`; `out` is one array. Orthogonality and the skew
    part of ``U^H A`` are measured, and the SVD is used where they miss `rtol`; that H is
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
    if out is None and not options:
        short = short_factor(a)
        if short is not None:
            return short
    how = Options(form_h=False, caller=name, **options)
    given = a
    a, ops = as_matrix(a, sharded=True)
    check_method(how.method)
    how.check_for(a, ops)
    if how.method == "qr":
        raise ValueError("method='qr' gives the orthonormal QR factor, which is no polar factor")
    u_out, _ = _storage(given, a, how, None if out is None else (out, None))
    recorded = ops.is_traced(a) and 0 not in a.shape
    if recorded:
        how.check_differentiable()

    def apply(a: Array) -> Array:
        return decompose(a, how)

    def find(a: Array) -> Array:
        return differentiable_unitary(apply, a, unitary_factor) if recorded else apply(a)

    return copied(ops.with_shards(find, a, "a"), u_out)


# -- storage ---------------------------------------------------------------------------------


def _storage(given: Any, a: Array, options: Options, out: Stored | None) -> Stored:
    """Check where the factors are to be stored."""
    if out is None:
        u_out = h_out = None
    else:
        if not isinstance(out, tuple) or len(out) != 2:
            raise TypeError(f"out must be a pair (u, h) of arrays or None, got {shown(out)}")
        u_out, h_out = out
    if options.overwrite_a:
        if u_out is not None:
            raise ValueError("give out=(u, h) or overwrite_a=True, not both: U has one place")
        if a is not given:
            raise ValueError(
                f"overwrite_a=True needs an array of a floating dtype to write U to, got "
                f"{type(given).__name__}"
            )
        u_out = a
    if u_out is not None:
        check_out(u_out, a, "a" if options.overwrite_a else "out[0]", "a")
    if h_out is not None:
        k = a.shape[-1] if options.side == "right" else a.shape[-2]
        check_out(h_out, a, "out[1]", "a", (*a.shape[:-2], k, k))
    return u_out, h_out


def _stored(result: PolarResult[Array], stored: Stored) -> PolarResult[Array]:
    u, h = copied(result.unitary, stored[0]), copied(result.hermitian, stored[1])
    if u is result.unitary and h is result.hermitian:
        return result
    return result._replace(unitary=u, hermitian=h)


def _in_its_storage(a: Array, ops: Ops, options: Options) -> PolarResult[Array] | None:
    """Decompose a tall or wide matrix, U in its storage; None, and `a` unchanged, where not.

    With A = Q S by Cholesky factors, Q where A was, and S = V H, the unitary factor is Q V.
    Everything but the two norms of the result is found from S; they are estimated from products
    that are taken before.
    """
    if options.is_fixed or options.method in ("qr", "small") or options.callback is not None:
        return None
    side, tol = options.side, options.tolerance(a)
    wide = a.shape[-2] < a.shape[-1]
    few, many = sorted(a.shape[-2:])
    asked = side == ("left" if wide else "right")  # for the smaller Hermitian factor
    kernels = ops.kernels(a)
    if kernels is None or not (a.ndim == 2 and asked and many >= STORED_FROM * few > 0):
        return None
    # A view of `a`, where U is to be: there is no copy that could be scaled or made contiguous.
    x = ops.xp.matrix_transpose(a) if wide else a
    peak = ops.item(ops.max_abs(x))
    contiguous = x.flags.c_contiguous or x.flags.f_contiguous
    if not (contiguous and 1 / COMFORTABLE <= peak <= COMFORTABLE):
        return None
    conjugate = wide and is_complex(x)  # the transpose is a view, the adjoint is not
    if conjugate:
        ops.xp.conj(x, out=x)
    known = sketch(x, ops)  # before A is overwritten: its factors are checked by these products
    reduced = kernels.cholesky_qr_in_place(x)
    if reduced is not None:
        s, restore = reduced
        result: PolarResult[Array] = decompose(s, dataclasses.replace(options, side="right"))
        restore(result.unitary)
        figures = sketched_figures(x, result.hermitian, known, ops)
    if conjugate:
        ops.xp.conj(x, out=x)
    if reduced is None:
        return None
    result = result._replace(
        unitary=a,
        orthogonality=float(figures[0]),
        backward_error=float(figures[1]),
        matmuls=result.matmuls + 3,  # two Gram matrices, and Q V
        reason="; ".join(filter(None, (result.reason, "reduced in the storage of a"))),
    )
    if within(figures, tol) or result.status not in SUCCESS:
        return result
    status = Status.NOT_CONVERGED
    errors = {"orthogonality": result.orthogonality, "backward_error": result.backward_error}
    missed("polar", result.method, tol, status.value, throw=options.throw, **errors)
    return result._replace(status=status, converged=False)
