"""Functions polar() and unitary_factor(): check arguments, run the stages, store the factors."""

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
from polarlib.arrays.entry import ArrayT, as_matrix, check_out, copied, share_memory
from polarlib.arrays.library import is_complex
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.progress import Callback
from polarlib.arrays.settings import looks
from polarlib.engine.evidence import sketch, sketched_figures, within
from polarlib.engine.rules import differentiable_polar, differentiable_unitary
from polarlib.result import PolarResult, Status

Array = Any
Stored = tuple[Array | None, Array | None]

# Ratio of the dimensions from which a matrix that may be overwritten is reduced in its own storage.
# Below it, the square matrices of the reduction need as much storage as is saved.
STORED_FROM = 4


def hermitian_part(
    x: Array, ops: Ops, tolerance: float, *, look: bool = True, name: str = "a"
) -> Array:
    """Return the Hermitian part of `x`; raise if `look` and the skew part exceeds the tolerance."""
    if not look:
        return ops.hermitian_part(x)
    h, rest = ops.hermitian_split(ops.combine((1.0,), (x,)))  # of a copy, in its storage
    skew = ops.item(rest / ops.divisor(ops.frobenius(x)))
    if not skew <= tolerance:
        raise ValueError(
            f"{name} is not Hermitian: |{name} - {name}^H|_F / (2 |{name}|_F) is {skew:.1e}, "
            f"allowed are {tolerance:.1e}; pass ({name} + {name}^H) / 2"
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
    """Compute the polar decomposition A = U H (or A = H U), with error estimates.

    The result equals that of :func:`scipy.linalg.polar` to rounding, for every shape. (U of a
    rank-deficient matrix is not unique.) Stacks of matrices, arrays of PyTorch, JAX, Dask and CuPy
    (CuPy: not run on a GPU yet) and half precision (computed in float32) are accepted too.

    Parameters
    ----------
    a : array_like, shape (..., m, n)
        Real or complex. Not modified, unless `overwrite_a`. Integers are converted to float64.
    side : {"right", "left"}, optional
        ``A = U H`` with H n x n, or ``A = H U`` with H m x m. May be given by position, as to
        :func:`scipy.linalg.polar`.
    method : str, path-like or Schedule, optional
        A name of :func:`polarlib.methods` or :func:`polarlib.schedules`, a path of a .json file, or
        a schedule. "auto" estimates the condition number. Of the methods that are backward stable
        for it, the fastest by the measured costs of kernels is run (``polarlib bench
        --calibrate``). The attribute `reason` of the result gives the reason for the choice. If a
        method fails on a matrix (Newton's method on a singular one, for example), the SVD is used
        and the status is FELL_BACK.
    completion : bool, optional
        For rank-deficient matrices: complete U to orthonormal columns (rows, if m < n), as SciPy
        does; otherwise U is the partial isometry ``U_r V_r^H``.
    rtol : float, optional
        Tolerance of convergence for the orthogonality ``||U^H U - I||_F / sqrt(n)`` and the
        backward error ``||A - U H||_F / ||A||_F``; ``max(100, min(m, n))`` machine epsilons by
        default.
    sigma_min, cond : float, optional
        A lower bound of the smallest singular value of every matrix, or an upper bound of its
        condition number. "auto" and the methods that need a bound then compute none. If the bound
        is wrong, the check of the result fails and the SVD is used. `condition_bounds` of the
        result do not depend on it.
    check_finite : bool, optional
        Raise ValueError if `a` contains NaN or infinity; otherwise such a matrix gives NaN.
    throw : bool, optional
        Raise :class:`polarlib.ConvergenceWarning` as an error instead of warning.
    callback : callable, optional
        Called as ``callback(k, x)`` after iteration k with the iterate, tall and scaled, which it
        must not modify. Fixed schedules also call it with k = 0 and the normalised matrix. See
        :class:`polarlib.result.Progress`.
    out : tuple of two arrays or None, optional
        Arrays in which U and H are stored; a new array for None. With NumPy the larger of the two
        Hermitian factors is formed in place.
    overwrite_a : bool, optional
        Store U in the memory of `a`. A NumPy matrix with ``max(m, n) >= 4 min(m, n)``,
        well-conditioned enough for a Gram matrix, is decomposed in place if the smaller Hermitian
        factor is requested. The largest use of memory is then lower by about the size of `a`, and
        `backward_error` is estimated (docs/guide/memory.md). Otherwise no memory is saved.

    Returns
    -------
    PolarResult
        Unpacks as ``u, h``, of shapes (..., m, n) and (..., n, n) ((..., m, m) for side "left"),
        with the array library, device and dtype of `a`. A fixed schedule whose result is not
        orthonormal has not failed: its status is FIXED_SCHEDULE.

    Raises
    ------
    TypeError
        If `a` is not an array of numbers, or `out` does not match.
    ValueError
        If `a` has fewer than two dimensions, or NaN or infinity; for an unknown method or side; if
        `sigma_min` or `cond` cannot be a bound; if the arrays for U and H share memory; if `a` is
        sharded and the method would gather it.
    MemoryError
        If H is the larger of the two Hermitian factors, n x n for a matrix with m < n, and exceeds
        the memory of the host (checked before any work) or of the device.

    Warns
    -----
    ConvergenceWarning
        If orthogonality or backward error exceeds `rtol`, or H overflows.

    See Also
    --------
    nearest_orthogonal : U alone, at less cost.

    Notes
    -----
    ``H = (U^H A + A^H U) / 2`` is the Hermitian matrix nearest to ``U^H A``, positive semidefinite
    up to rounding.

    A sharded matrix (a JAX array on several devices, a torch DTensor) remains sharded, and only
    n x n matrices are summed over devices. "auto" is then "gram": two to four sums of Gram matrices
    give an orthonormal basis, for every condition number, and every device decomposes an n x n
    matrix.
    "newton_schulz" and schedules take one sum per step; other methods raise ValueError. There is no
    fallback to the SVD. By "gram", rounding errors complete U if the rank is deficient; where
    columns are zero or exactly dependent they may not, and the status is NOT_CONVERGED.
    ``completion=False`` gives the partial isometry of every matrix.

    Under ``jax.jit`` and ``jax.vmap`` no entry can be read, and the methods of fixed work are
    available: "svd", "qdwh", "zolotarev", "newton_schulz", "qr", and schedules. "auto" is "svd"
    there, or "gram" for a matrix that is sharded along explicit mesh axes. "qdwh" and "zolotarev"
    have the steps for `cond`, or for the largest condition number of the format. Error estimates
    and `converged` of the result are then arrays, `status` and `reason` are None. There is no
    warning and no fallback to the SVD, and NaN or infinity gives NaN. `throw` and `callback` raise
    TypeError, and `sigma_min` is ignored. docs/guide/derivatives.md has a table of the results.

    References
    ----------
    N. J. Higham, Functions of Matrices (SIAM, 2008), chapter 8.

    Examples
    --------
    >>> import numpy as np
    >>> u, h = polar(np.array([[1.0, -1.0], [2.0, 4.0]]))
    >>> bool(np.allclose(u @ h, [[1, -1], [2, 4]])), bool(np.allclose(u.T @ u, np.eye(2)))
    (True, True)
    """
    # Checked first: for small matrices the time of every further call counts.
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
        options.check_differentiable()  # under a trace it is unknown whether a derivative follows

    def find(a: Array) -> PolarResult[Array]:
        if not recorded or not ops_of(a).is_traced(a):
            return apply(a)
        refuse = options.check_differentiable
        settled = lambda a: apply(a)._settled()  # noqa: E731
        return differentiable_polar(settled, a, _exact(options), options.side, refuse)

    if options.overwrite_a and not recorded:
        result = _in_its_storage(a, ops, options)
        if result is not None:
            return _stored(result, (None, stored[1]))
    if plain and (out is not None or options.overwrite_a):  # as without `out`, and then stored
        short = short_polar(given, side, method, rtol)
        if short is not None:
            return _stored(short, stored)
    return _stored(ops.with_shards(find, a, "a"), stored)


def unitary_factor(
    a: Array, *, out: Array | None = None, name: str = "unitary_factor", **options: Any
) -> Array:
    """Return the unitary factor alone, without computing the Hermitian factor.

    Options and errors are those of :func:`polar`; `out` is one array. Orthogonality and the skew
    part of ``U^H A`` are measured, and the SVD is used where they exceed `rtol`. Since H is not
    formed, it is not checked that H is positive semidefinite. The rank is not computed either,
    unless ``completion=False``, which needs an SVD. Messages refer to the function `name`.

    Returns
    -------
    array, shape (..., m, n)
        With the array library, device and dtype of `a`.

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
        raise ValueError(
            f"method must give the polar factor, got 'qr', whose Q is not the polar factor; use "
            f"{name} with another method, or polar(a, method='qr')"
        )
    u_out, _ = _storage(given, a, how, None if out is None else (out, None))
    recorded = ops.is_traced(a) and 0 not in a.shape
    if recorded:
        how.check_differentiable()

    def apply(a: Array) -> Array:
        return decompose(a, how)

    def find(a: Array) -> Array:
        return differentiable_unitary(apply, a, _exact(how)) if recorded else apply(a)

    return copied(ops.with_shards(find, a, "a"), u_out)


def _exact(options: Options) -> Callable[[Array], Array]:
    """Return the function of the unitary factor from which derivatives are computed."""
    if not options.sharded:
        return unitary_factor
    how = dataclasses.replace(options, method="auto", completion=True, form_h=False)
    return functools.partial(decompose, options=how)


# -- storage ---------------------------------------------------------------------------------


def _storage(given: Any, a: Array, options: Options, out: Stored | None) -> Stored:
    """Check `out` and `overwrite_a`; return the arrays, or None, in which U and H are stored."""
    if out is None:
        u_out = h_out = None
    else:
        if not isinstance(out, tuple) or len(out) != 2:
            raise TypeError(f"out must be a pair (u, h) of arrays or None, got {shown(out)}")
        u_out, h_out = out
    if options.overwrite_a:
        if u_out is not None:
            raise ValueError("pass out=(None, h) with overwrite_a=True: both would store U")
        if a is not given:
            raise ValueError(
                f"overwrite_a=True needs an array of a floating dtype, in which U is stored, got "
                f"{type(given).__name__}; convert a first, or leave overwrite_a out"
            )
        u_out = a
    place = "a" if options.overwrite_a else "out[0]"
    if u_out is not None:
        check_out(u_out, a, place, "a")
    if h_out is not None:
        k = a.shape[-1] if options.side == "right" else a.shape[-2]
        check_out(h_out, a, "out[1]", "a", (*a.shape[:-2], k, k))
    if u_out is not None and h_out is not None and share_memory(u_out, h_out):
        raise ValueError(f"{place} and out[1] share memory; pass an array of its own for H")
    return u_out, h_out


def _stored(result: PolarResult[Array], stored: Stored) -> PolarResult[Array]:
    u, h = copied(result.unitary, stored[0]), copied(result.hermitian, stored[1])
    if u is result.unitary and h is result.hermitian:
        return result
    return result._replace(unitary=u, hermitian=h)


def _in_its_storage(a: Array, ops: Ops, options: Options) -> PolarResult[Array] | None:
    """Decompose a tall or wide matrix in place; None, with `a` unchanged, where that is impossible.

    With A = Q S by Cholesky factors, Q in the storage of A, and S = V H, the unitary factor is Q V.
    All results but two norms are computed from S. The norms are estimated from products with
    random vectors, computed before A is overwritten.
    """
    if options.is_fixed or options.method in ("qr", "small") or options.callback is not None:
        return None
    side, tol = options.side, options.tolerance(a)
    wide = a.shape[-2] < a.shape[-1]
    few, many = sorted(a.shape[-2:])
    smaller = side == ("left" if wide else "right")  # of the two Hermitian factors
    kernels = ops.kernels(a)
    if kernels is None or not (a.ndim == 2 and smaller and many >= STORED_FROM * few > 0):
        return None
    # A view of `a`, in which U is stored: there is no copy that could be scaled or made contiguous.
    x = ops.xp.matrix_transpose(a) if wide else a
    max_abs = ops.item(ops.max_abs(x))
    contiguous = x.flags.c_contiguous or x.flags.f_contiguous
    if not (contiguous and 1 / COMFORTABLE <= max_abs <= COMFORTABLE):
        return None
    conjugate = wide and is_complex(x)  # the transpose is a view, the adjoint is not
    if conjugate:
        ops.xp.conj(x, out=x)
    known = sketch(x, ops)  # before A is overwritten: the factors are checked by these products
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
