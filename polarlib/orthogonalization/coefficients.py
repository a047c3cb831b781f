"""orthogonalize() with an array of coefficients, which may be traced or record gradients."""

from __future__ import annotations

import functools
import json
from typing import Any, NamedTuple, NoReturn

from polarlib.arrays import torch_operator
from polarlib.arrays.checks import MOST_STEPS, choice, shown
from polarlib.arrays.entry import (
    as_matrix,
    check_out,
    check_same_place,
    copied,
    is_array,
    plain_array,
)
from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import empty_result
from polarlib.arrays.library import astype_like, dtype_name, format_name, is_complex
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.rounded import rounded
from polarlib.arrays.settings import (
    at_trace_time,
    looks,
    looks_at_nothing,
    on_its_device,
    traced_by_dynamo,
)
from polarlib.engine.coefficients import as_schedule, cut, numbers, together
from polarlib.engine.normalise import compiles_factors
from polarlib.engine.rules import (
    coefficients_rule,
    differentiable_coefficients,
    differentiable_schedule,
)
from polarlib.orthogonalization.heads import check_rows, per_head
from polarlib.orthogonalization.options import checked_heads
from polarlib.orthogonalization.run import apply, in_blocks, storage_of

Array = Any

# How an array of coefficients is applied; for the derivative too.
FIXED: dict[str, Any] = {"form": "plain", "restarts": ()}
FORMS = ("auto", "plain", "gram")


class How(NamedTuple):
    """Options that are allowed with an array of coefficients."""

    precision: str | None = None
    heads: int | None = None


def checked_how(
    steps: Any = None,
    form: Any = "auto",
    restarts: Any = "auto",
    precision: Any = None,
    gram_precision: Any = None,
    normalisation: Any = None,
    heads: Any = None,
) -> How:
    """Return the options that go with an array of coefficients; refuse the others."""
    plain = "it is applied in plain form"
    known: dict[str, tuple[Any, tuple[str | None, ...], str]] = {
        "steps": (
            steps,
            (None,),
            "its rows are the steps, and schedule[:steps] are the first ones",
        ),
        "form": (choice("form", form, FORMS), ("auto", "plain"), plain),
        "restarts": (restarts, ("auto",), plain),
        "gram_precision": (gram_precision, (None,), plain),
        "normalisation": (normalisation, (None, "frobenius"), "it is for the Frobenius norm"),
    }
    for name, (value, taken, why) in known.items():
        if not (value is None or isinstance(value, str)) or value not in taken:
            raise ValueError(
                f"{name}={shown(value)} is not possible with an array of coefficients as schedule: "
                f"{why}; leave {name} out"
            )
    precision = None if precision is None else format_of(precision).name
    return How(precision, None if heads is None else checked_heads(heads))


def checked_coefficients(c: Any, x: Array) -> Array:
    """Return coefficients for matrices X, after a check of their shape, dtype and device.

    Raises
    ------
    TypeError
        If it is not an array of real floating-point numbers of the library of X.
    ValueError
        If it is not a matrix, is empty, or is on another device.
    """
    c = plain_array(c, "schedule")
    if not is_array(c):
        raise TypeError(
            "schedule must be a name, a path, a Schedule or an array of coefficients of shape "
            f"(steps, k), got {shown(c)}"
        )
    # For an array on several devices the coefficients are placed on each of them.
    if ops_of(c).xp is not ops_of(x).xp or not ops_of(x)._lies_on_several(x):
        check_same_place(x, "g", c, "schedule")
    if c.ndim != 2:
        _refuse_shape(c)
    if is_complex(c) or not format_name(c):
        raise TypeError(
            f"schedule, an array of coefficients, must be of real floating-point numbers, got "
            f"{dtype_name(c)}; convert it to float32 or float64"
        )
    return c


def checked_sizes(c: Array) -> tuple[int, ...]:
    """Return the shape, of few entries; separate, since torch.jit.trace has no sizes."""
    if not all(0 < size <= MOST_STEPS for size in c.shape[-2:]):
        _refuse_shape(c)
    return tuple(c.shape)


def _refuse_shape(c: Array) -> NoReturn:
    raise ValueError(
        "schedule, an array of coefficients, must have a shape (steps, k): a row for each step, in "
        f"ascending odd powers, from 1 to {MOST_STEPS} each; got {tuple(c.shape)}"
    )


def by_coefficients(g: Array, c: Any, out: Array | None, *given: Any) -> Array:
    """Run `orthogonalize` with an array as schedule; torch.compile traces this function."""
    if traced_by_dynamo() and out is None and torch_operator.takes(g, c):
        options, error = packed_or_error(*given)
        if error:
            raise ValueError(error)
        if not torch_operator.is_transformed():
            return torch_operator.call_by(g, c, options)
        return _by_options(g, c, options)
    return _by_coefficients(g, c, out, *given)


@looks_at_nothing
def _by_options(g: Array, c: Array, options: str) -> Array:
    return _checked(g, c, None, unpacked(options))


@functools.partial(
    looks,
    reason="under torch.compile, polarlib.orthogonalize is one operator for coefficients and "
    "matrices that are dense tensors, and no out=; leave fullgraph=True out for anything else",
)
def _by_coefficients(g: Array, c: Any, out: Array | None, *given: Any) -> Array:
    return _checked(g, c, out, checked_how(*given))


@on_its_device
def _checked(g: Array, c: Any, out: Array | None, how: How) -> Array:
    """Validate and run; where torch traces or transforms, by torch's operator."""
    x, ops = as_matrix(g, "g", sharded=True)
    c = checked_coefficients(c, x)
    if out is not None:
        check_out(out, x, "out", "g")
    if torch_operator.is_traced(x, ops):
        check_rows(x.shape, how.heads)
        return copied(_recorded(x, c, how), out)
    return copied(_orthogonalized(x, c, how, out), out)


def _recorded(x: Array, c: Array, how: How) -> Array:
    if not torch_operator.is_transformed():
        return torch_operator.call_by(x, c, _packed(how))
    options = _packed(how._replace(heads=None))

    def find(x: Array) -> Array:
        return differentiable_coefficients(lambda x, c: torch_operator.call_by(x, c, options), x, c)

    return per_head(find, how.heads)(x)


def _orthogonalized(x: Array, c: Array, how: How, out: Array | None = None) -> Array:
    checked_sizes(c)
    check_rows(x.shape, how.heads)
    ops = ops_of(x)
    precision = ops.multiplier(x) if how.precision is None else how.precision
    # In the precision of the iteration, but no less than single: products take it as it is.
    c = ops_of(c).cast(c, "float64" if precision == "float64" else "float32")

    def find(x: Array, own: Ops, out: Array | None, c: Array) -> Array:
        if 0 in x.shape:
            empty = empty_result(x, own)
            # The coefficients stay in the graph of the result.
            return astype_like(empty * own.xp.sum(c), x, own) if own.is_traced(c) else empty
        run = own.compiled(_apply, precision=precision, **storage_of(out, x))
        if own.is_traced(c):
            return differentiable_coefficients(run, x, c)
        if not own.is_traced(x):
            return run(x, c)
        return differentiable_schedule(lambda x: run(x, c), x, **_rule(c, x.ndim))

    return in_blocks(find, x, ops, how.heads, out, c)


def _rule(c: Array, ndim: int) -> dict[str, Any]:
    """Return the arguments of the derivative with respect to a stack of `ndim` axes."""
    return {"schedule": as_schedule(cut(c, ndim)), "normalisation": "frobenius", **FIXED}


def rule_of_coefficients(x: Array, c: Any, *given: Any) -> tuple[dict[str, Any], int | None]:
    """Return the checked arguments of the derivative at X for fixed C, and the number of heads."""
    how, c = checked_how(*given), checked_coefficients(c, x)
    checked_sizes(c)
    check_rows(x.shape, how.heads)
    return _rule(ops_of(c).cast(c, format_name(x)), x.ndim + (how.heads is not None)), how.heads


def _apply(x: Array, c: Array, *, precision: str, out: Array | None = None) -> Array:
    """Normalise and iterate; on the host with numbers, which are scalar factors of products."""
    ops = ops_of(x)
    x, c = together(x, c, ops)
    low = rounded(ops, precision, is_complex=is_complex(x))
    as_numbers = ops.host and c.ndim == 2 and not compiles_factors(ops, low)
    return apply(
        x,
        schedule=as_schedule(numbers(c) if as_numbers else cut(c, x.ndim)),
        precision=precision,
        gram_precision=None,
        kind="frobenius",
        out=out,
        **FIXED,
    )


# -- as an operator of torch -----------------------------------------------------------------


@at_trace_time
def packed_or_error(*given: Any) -> tuple[str, str]:
    """Return options as JSON, or the error message: torch.compile would catch an exception."""
    try:
        return _packed(checked_how(*given)), ""
    except (TypeError, ValueError) as error:
        return "", str(error)


def _packed(how: How) -> str:
    """Return options for the operator, and define it."""
    torch_operator.define(torch_operator.BY_COEFFICIENTS, _run_packed, _derive_packed)
    return json.dumps(how._asdict())


def unpacked(options: str) -> How:
    return How(**json.loads(options))


def _run_packed(x: Array, c: Array, options: str) -> Array:
    return _orthogonalized(x, c, unpacked(options))


def _derive_packed(x: Array, c: Array, e: Array, options: str) -> tuple[Array, ...]:
    """Return gradients with respect to X and C, from one with respect to the result."""
    how = unpacked(options)
    of_c = []

    def find(x: Array, e: Array) -> Array:
        d, gradient = coefficients_rule(x, c, e)
        of_c.append(gradient)
        return d

    d = per_head(find, how.heads)(x, e)
    return d, of_c[0]


torch_operator.define(torch_operator.BY_COEFFICIENTS, _run_packed, _derive_packed)
