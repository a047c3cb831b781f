"""orthogonalize(): a schedule of matrix products, in the array library of its input."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from types import NoneType
from typing import Any, overload

import numpy as np

from polarlib._schedules.schedule import Schedule
from polarlib.arrays import torch_operator
from polarlib.arrays.entry import ArrayT, as_matrix, check_out, copied
from polarlib.arrays.functions import empty_result
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.settings import (
    at_trace_time,
    held_back,
    looks,
    looks_at_nothing,
    on_its_device,
    traced_by_dynamo,
)
from polarlib.arrays.torch_bare import bare
from polarlib.engine import short
from polarlib.engine.rules import differentiable_schedule, schedule_rule
from polarlib.engine.symmetric import pays
from polarlib.orthogonalization.coefficients import by_coefficients
from polarlib.orthogonalization.heads import check_rows, per_head
from polarlib.orthogonalization.options import BY_FORMAT, NAMED, Options, rule_of
from polarlib.orthogonalization.run import apply, in_blocks, storage_of
from polarlib.published import Named

Array = Any


# Nested lists come back as NumPy arrays.
@overload
def orthogonalize(
    g: Sequence[Any],
    *,
    schedule: Named | Array = ...,
    steps: int | None = ...,
    form: str = ...,
    restarts: str | Sequence[int] = ...,
    precision: str | None = ...,
    gram_precision: str | None = ...,
    normalisation: str | None = ...,
    heads: int | None = ...,
    out: np.ndarray | None = ...,
) -> np.ndarray: ...
@overload
def orthogonalize(
    g: ArrayT,
    *,
    schedule: Named | Array = ...,
    steps: int | None = ...,
    form: str = ...,
    restarts: str | Sequence[int] = ...,
    precision: str | None = ...,
    gram_precision: str | None = ...,
    normalisation: str | None = ...,
    heads: int | None = ...,
    out: ArrayT | None = ...,
) -> ArrayT: ...
def orthogonalize(
    g: Array,
    *,
    schedule: Named | Array = "auto",
    steps: int | None = None,
    form: str = "auto",
    restarts: str | Sequence[int] = "auto",
    precision: str | None = None,
    gram_precision: str | None = None,
    normalisation: str | None = None,
    heads: int | None = None,
    out: Array | None = None,
) -> Array:
    """Return an approximation of the unitary factor, by a fixed schedule of matrix products.

    Parameters
    ----------
    g : array, shape (..., m, n)
        Of any supported library and floating dtype. Never modified.
    schedule : str, path-like, Schedule or array, optional
        - "auto": the default schedule of the number format (:func:`polarlib.default_schedule`).
        - "adaptive": steps that depend on the matrix, closer to the polar factor of most gradients
          at as many products (docs/guide/adaptive.md). For the normalisation "moments" only;
          derivatives include the choice.
        - "halley", or "halley_fixed" as in :func:`polar`: two Halley steps. Rational steps run on
          the Gram matrix in float32, or in float64, and divide by a spectral bound. `form`,
          `restarts`, `gram_precision` and `normalisation` are for polynomials.
        - a published set (:func:`polarlib.schedules`), a Schedule, or the file of one
          (:meth:`Schedule.to_json`; a name that ends in ".json", or a path).
        - an array of the library of `g`, shape (steps, k): one step per row, with the coefficients
          of x, x^3, ... in ascending order; see Notes.
    steps : int, optional
        By default the listed length, or 5 for "auto" and for sets that repeat; "auto" has from 1
        to 64.
    form : {"auto", "plain", "gram"}, optional
        Plain form, Gram form (fewer operations if one of m and n is much larger than the other),
        or the one with fewer operations.
    restarts : "auto" or sequence of int, optional
        Steps, from 1, after which the Gram form restarts; "auto" uses
        :func:`polarlib.design.restarts`.
    precision : str, optional
        Number format of the iteration. By default that of the input, or the format in which torch
        is set to multiply float32 (``torch.set_float32_matmul_precision``) where the device uses
        it. Native where the library multiplies in it, simulated elsewhere. The norm is computed in
        at least float32.
    gram_precision : str, optional
        Number format of the n x n matrices of the Gram form, by default `precision`. The default
        schedule is then the one for the coarser of both formats. Where 16-bit products are equally
        fast, ``precision="float16"`` for the whole iteration is best for bfloat16 arrays: it needs
        fewer restarts (docs/guide/gram.md).
    normalisation : str, optional
        A name that :class:`Schedule` lists, instead of the schedule's own. For "none" nothing is
        divided out, the input safety of the schedule included. "moments" and "schatten4" are
        bounds from the Gram matrix of the first step and cost no product.
    heads : int, optional
        Number of equal blocks of rows, each of which is orthogonalised separately: one per head of
        attention. The result is that of the stack (..., heads, m / heads, n), in the shape of `g`.
    out : array, optional
        Storage of the result, of the shape and dtype of `g`; may be `g`. NumPy iterates in this
        storage, which saves an array of that size (docs/guide/memory.md).

    Returns
    -------
    array, shape (..., m, n)
        ``U diag(s(sigma)) V^H`` for the schedule s and ``g = c U diag(sigma) V^H``, c from the
        normalisation; array library, device and dtype of `g`. Rank-deficient matrices are not
        completed, a zero matrix gives zero.

    Raises
    ------
    TypeError
        If `g` is not an array of numbers, or `out` does not match; for coefficients of another
        library, complex ones and integers.
    ValueError
        - For an unknown name or format, a number of steps that the set does not have, or a
          normalisation for which it was not designed.
        - For fewer than two dimensions, or heads that do not divide the number of rows.
        - For coefficients of another shape than (steps, k), from 1 to 300 each, or options that
          are not possible with them.
        - For NaN or infinity in a NumPy array or a torch tensor on a CPU. In other arrays, where
          the check might wait for a device, such a matrix gives NaN.

    Warns
    -----
    ScheduleWarning
        If the schedule has no safety factor that covers one rounding of the format.

    Notes
    -----
    An array of coefficients may change from call to call, be traced by JAX, or record gradients.
    Its values are not checked, and NaN propagates. It is used in single precision (double, if the
    iteration is in double) whatever the format of the products, and shared by the matrices of a
    stack. Matrices are divided by their Frobenius norm, without a safety factor, in the plain form;
    `precision`, `heads` and `out` are the only other options. Derivatives with respect to `g` and
    to the coefficients are rules (docs/guide/derivatives.md), and have derivatives.

    References
    ----------
    K. Jordan and others, Muon, 2024. N. Amsel, D. Persson, C. Musco and R. Gower, The Polar
    Express, arXiv 2505.16932. Gram form: Dao-AILab, gram-newton-schulz, 2025. Moments: H. Wolkowicz
    and G. P. H. Styan, Linear Algebra Appl. 29 (1980) 471-506, Theorem 2.1.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.random.default_rng(0).standard_normal((64, 16))
    >>> q = orthogonalize(g)
    >>> bool(np.linalg.norm(q.T @ q - np.eye(16), 2) < 0.3)
    True
    >>> q = orthogonalize(g, heads=4)
    >>> bool(np.array_equal(q, orthogonalize(g.reshape(4, 16, 16)).reshape(64, 16)))
    True
    >>> cubic = np.array([[1.5, -0.5]] * 8)
    >>> q = orthogonalize(g, schedule=cubic)
    >>> bool(np.linalg.norm(q.T @ q - np.eye(16), 2) < 0.3)
    True
    """
    u: Array
    if schedule.__class__ is not str and not isinstance(schedule, NAMED):
        others = steps, form, restarts, precision, gram_precision, normalisation, heads
        u = by_coefficients(g, schedule, out, *others)
        return u
    given = schedule, steps, form, restarts, precision, gram_precision, normalisation, heads
    options = ""
    if traced_by_dynamo() and out is None and torch_operator.takes(g):
        options, error = packed_or_error(*given)
        if error:  # torch.compile has no operator for it; in eager mode the check raises it
            raise ValueError(error)
    if not options:
        u = _orthogonalize(g, out, *given)
    elif torch_operator.is_transformed():
        u = _by_options(g, options)
    else:
        u = torch_operator.call(g, options)
    return u


@looks_at_nothing
def _by_options(g: Array, options: str) -> Array:
    return _checked(g, None, unpacked(options))


@functools.partial(
    looks,
    reason="under torch.compile, polarlib.orthogonalize is one operator for schedules of "
    "polynomials, a dense tensor of two dimensions or more, and no out=; leave fullgraph=True out "
    "for anything else",
)
def _orthogonalize(g: Array, out: Array | None, *given: Any) -> Array:
    # Made here, where torch.compile does not trace: it cannot trace the class.
    how = Options(*given)
    u = _short(g, how) if out is None else None
    return _checked(g, out, how) if u is None else u


def _short(g: Array, how: Options) -> Array | None:
    """Return the result for one matrix in few calls; None if the engine is needed."""
    tensor = bare(g)
    # True and 5.0 are invalid, and equal the keys 1 and 5 of the plans.
    if (
        tensor is None
        or not isinstance(how.restarts, str)
        or type(how.steps) not in (int, NoneType)
    ):
        return None
    if pays(tensor.ops, tensor.format, min(g.shape)):  # products by half need the engine
        return None
    try:
        plan = _plan(how, tensor.format, *g.shape, host=tensor.kernels is None)
    except TypeError:  # arguments that are not hashable are invalid
        return None
    return None if plan is None else short.apply(g, plan, tensor)


@functools.lru_cache(maxsize=256)
def _plan(how: Options, precision: str, m: int, n: int, *, host: bool) -> short.Plan | None:
    if how.precision not in (None, precision) or how.gram_precision is not None:
        return None
    if how.heads is not None:
        return None
    with held_back() as warnings:
        resolved = how.resolved_for((m, n), precision)
    if warnings or resolved["form"] != "plain":
        return None
    return short.plan(resolved["schedule"], resolved["kind"], precision, min(m, n), host=host)


@on_its_device
def _checked(g: Array, out: Array | None, how: Options) -> Array:
    """Validate and run; where torch traces or transforms, by torch's operator."""
    x, ops = as_matrix(g, "g", sharded=True)
    recorded = torch_operator.is_traced(x, ops)
    if out is not None:
        check_out(out, x, "out", "g")
    if recorded:
        check_rows(x.shape, how.heads)
    packed = _packed(how) if recorded else ""
    u = _recorded(x, ops, how, packed) if packed else _orthogonalized(x, ops, how, out)
    return copied(u, out)


def _recorded(x: Array, ops: Ops, how: Options, options: str) -> Array:
    """Run `orthogonalize` as an operator; torch.func differentiates by rules that it can trace."""
    if not torch_operator.is_transformed():
        return torch_operator.call(x, options)
    rule, options = rule_of(how.resolved(x, ops)), _packed(dataclasses.replace(how, heads=None))

    def find(x: Array) -> Array:
        return differentiable_schedule(lambda x: torch_operator.call(x, options), x, **rule)

    return per_head(find, how.heads)(x)


def _orthogonalized(x: Array, ops: Ops, options: Options, out: Array | None = None) -> Array:
    """Return the approximate unitary factor of matrices that as_matrix has checked."""
    resolved = options.resolved(x, ops)

    def find(x: Array, own: Ops, out: Array | None) -> Array:
        if 0 in x.shape:
            return empty_result(x, own)
        # One compiled function on JAX, the function itself elsewhere.
        run = own.compiled(apply, **resolved, **storage_of(out, x))
        # The derivative of rational steps is recorded.
        if resolved["schedule"].is_rational or not own.is_traced(x):
            return run(x)
        return differentiable_schedule(run, x, **rule_of(resolved))

    return in_blocks(find, x, ops, options.heads, out)


# -- as an operator of torch -----------------------------------------------------------------


@at_trace_time
def packed_or_error(*given: Any, **named: Any) -> tuple[str, str]:
    """Return options as JSON, or the error message: torch.compile would catch an exception."""
    try:
        return _packed(Options(*given, **named)), ""
    except (TypeError, ValueError) as error:
        return "", str(error)


def _packed(how: Options) -> str:
    """Return options for the operator, and define it; "" for options that it does not have."""
    torch_operator.define(torch_operator.PLAIN, _run_packed, _derive_packed)
    return how.packed()


# Cached, since every construction of a schedule checks it.
@functools.lru_cache(maxsize=256)
def unpacked(options: str) -> Options:
    how = json.loads(options)
    if how["schedule"] not in BY_FORMAT:
        how["schedule"] = Schedule(**how["schedule"])
    return Options(**how)


def _run_packed(x: Array, options: str) -> Array:
    return _orthogonalized(x, ops_of(x), unpacked(options))


def _derive_packed(x: Array, e: Array, options: str) -> tuple[Array]:
    """Return the gradient with respect to X, from one with respect to the result."""
    how = unpacked(options)
    rule = functools.partial(schedule_rule, **rule_of(how.resolved(x, ops_of(x))), gradient=True)
    return (per_head(rule, how.heads)(x, e),)


# A process that loads a saved program of torch may never call orthogonalize itself.
torch_operator.define(torch_operator.PLAIN, _run_packed, _derive_packed)
