"""orthogonalize(): a schedule of matrix products, in the array library of its input."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Sequence
from types import NoneType
from typing import Any

from polarlib import published
from polarlib._methods import polynomial, rational
from polarlib._methods.options import (
    check_normalisation,
    check_rational,
    choose_form,
    resolve_schedule,
    warn_of_hazards,
)
from polarlib._schedules.schedule import Schedule
from polarlib.arrays import torch_operator
from polarlib.arrays.entry import ArrayT, as_matrix, can_hold, check_out, copied, is_array
from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import empty_result
from polarlib.arrays.library import astype_like, is_complex
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.settings import (
    at_trace_time,
    held_back,
    looks,
    looks_at_nothing,
    on_its_device,
    traced_by_dynamo,
    under_default_settings,
)
from polarlib.arrays.torch_bare import bare
from polarlib.arrays.torch_sharded import placements
from polarlib.engine import short
from polarlib.engine.rules import differentiable_schedule, schedule_rule
from polarlib.engine.symmetric import pays
from polarlib.published import ADAPTIVE, Named

Array = Any

# Entries of matrices up to which a stack of them is faster on the host than one after the other.
# Chosen by experiment (benchmarks/orthogonalize.py).
BATCH_UP_TO = 1 << 14
# Schedules that depend on the number format.
BY_FORMAT = ("auto", ADAPTIVE)


# -- options ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of :func:`orthogonalize`, as the caller gave them."""

    schedule: Named = "auto"
    steps: int | None = None
    form: str = "auto"
    restarts: str | Sequence[int] = "auto"
    precision: str | None = None
    gram_precision: str | None = None
    normalisation: str | None = None

    def __post_init__(self) -> None:
        # Read here, since caches have the options as their keys and files may change.
        object.__setattr__(self, "schedule", published.opened(self.schedule))

    def resolved(self, x: Array, ops: Ops, *, warns: bool = True) -> dict[str, Any]:
        """Check the options and decide what is "auto": arguments of `_apply`."""
        # For torch's float32 the format that torch is set to multiply in: planned for another one,
        # an iteration may diverge (docs/decisions/0012).
        precision = ops.multiplier(x) if self.precision is None else format_of(self.precision).name
        return self.resolved_for(x.shape, precision, warns=warns)

    def resolved_for(
        self, shape: tuple[int, ...], precision: str, *, warns: bool = True
    ) -> dict[str, Any]:
        """The same for matrices of a shape and a format of the iteration."""
        chosen = resolve_schedule(self.schedule, self.steps, precision)
        gram_precision, form, restarts = self.gram_precision, self.form, self.restarts
        if gram_precision is not None:
            gram_precision = format_of(gram_precision).name
        kind: str = chosen.normalisation
        if chosen.is_rational:
            check_rational(chosen, form, restarts, gram_precision, self.normalisation)
            restarts = ()
        else:
            kind = check_normalisation(chosen, self.normalisation)
            form, restarts = choose_form(chosen, shape, form, restarts, precision, gram_precision)
            if warns:
                warn_of_hazards(chosen, precision, kind)
        return {
            "schedule": chosen,
            "precision": precision,
            "gram_precision": gram_precision,
            "kind": kind,
            "form": form,
            "restarts": restarts,
        }

    def packed(self) -> str:
        """Return the options as JSON, which saved programs of torch keep; "" if rational.

        They are checked here; JSON keeps every bit of a schedule. What is "auto" is decided when
        the program runs.
        """
        # A name is looked up in single precision: only "auto" depends on it, and stays.
        precision = self.precision or "float32"
        chosen = resolve_schedule(self.schedule, self.steps, precision)
        if chosen.is_rational:
            return ""
        for name in (self.precision, self.gram_precision):
            if name is not None:
                format_of(name)
        check_normalisation(chosen, self.normalisation)
        # For its checks: the form is chosen when the program runs, for the shape of then.
        at = choose_form(chosen, (1, 1), self.form, self.restarts, precision, self.gram_precision)[
            1
        ]
        torch_operator.define(_run_packed, _derive_packed)
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if not isinstance(self.restarts, str):
            kept["restarts"] = at
        if not (isinstance(self.schedule, str) and self.schedule in BY_FORMAT):
            kept |= {"schedule": dataclasses.asdict(chosen), "steps": None}
        return json.dumps(kept)


def rule_of(resolved: dict[str, Any]) -> dict[str, Any]:
    """What the derivative of a schedule depends on: it is taken in full precision."""
    rule = {name: resolved[name] for name in ("schedule", "form", "restarts")}
    return {**rule, "normalisation": resolved["kind"]}


# -- orthogonalize ---------------------------------------------------------------------------


def orthogonalize(
    g: ArrayT,
    *,
    schedule: Named = "auto",
    steps: int | None = None,
    form: str = "auto",
    restarts: str | Sequence[int] = "auto",
    precision: str | None = None,
    gram_precision: str | None = None,
    normalisation: str | None = None,
    out: ArrayT | None = None,
) -> ArrayT:
    """Approximate unitary factor by a fixed schedule of matrix products.

    Parameters
    ----------
    g : array, shape (..., m, n)
        Of any supported library and floating dtype. Never changed.
    schedule : str, path-like or Schedule, optional
        "auto", the library's own for the number format (:func:`polarlib.default_schedule`), a
        published set (see :func:`polarlib.schedules`), a schedule of your own, or the file of one
        (:meth:`Schedule.to_json`; a name that ends in ".json", or a path); "adaptive" for steps
        that depend on the matrix, nearer to the polar factor of most gradients at as many products
        (docs/adaptive.md; normalisation "moments" alone; derivatives include the choice);
        "halley" (or "halley_fixed", as :func:`polar` calls it) for two Halley steps. Rational steps
        are taken on the Gram matrix in float32, or in float64, and divide by a spectral bound:
        `form`, `restarts`, `gram_precision` and `normalisation` are for polynomials.
    steps : int, optional
        By default the listed length, or 5 for "auto" and for sets that repeat; "auto" has from 1
        to 64.
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
        Instead of the schedule's own: a name that :class:`Schedule` lists. For "none" nothing is
        divided out, not even the schedule's input safety. "moments" and "schatten4" are bounds from
        the Gram matrix of the first step and cost no product.
    out : array, optional
        Where to store the result, of the shape and dtype of `g`; may be `g`. NumPy iterates in its
        storage, which saves an array of that size (docs/memory.md).

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
    given = schedule, steps, form, restarts, precision, gram_precision, normalisation
    u: ArrayT
    options = ""
    if traced_by_dynamo() and out is None and torch_operator.takes(g):
        options, error = _packed_or_error(*given)
        if error:  # what torch.compile cannot do, and eager mode refuses by itself
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
    return _checked(g, None, _unpacked(options))


@functools.partial(
    looks,
    reason="under torch.compile, polarlib.orthogonalize is one operator for schedules of "
    "polynomials, a dense tensor of two dimensions or more, and no out=; leave fullgraph=True out "
    "for anything else",
)
def _orthogonalize(g: Array, out: Array | None, *given: Any) -> Array:
    # Made here, where torch.compile does not read: it need not understand the class.
    how = Options(*given)
    u = _short(g, how) if out is None else None
    return _checked(g, out, how) if u is None else u


def _short(g: Array, how: Options) -> Array | None:
    """The result for one matrix in few calls; None where that is not the engine's."""
    found = bare(g)
    # True and 5.0 are refused, and would find the plans of 1 and 5.
    if found is None or not isinstance(how.restarts, str) or type(how.steps) not in (int, NoneType):
        return None
    if pays(found.ops, found.format, min(g.shape)):  # products that the bare ones are not
        return None
    try:
        plan = _plan(how, found.format, *g.shape, host=found.kernels is None)
    except TypeError:  # arguments that are not hashable, none of which is right
        return None
    return None if plan is None else short.apply(g, plan, found)


@functools.lru_cache(maxsize=256)
def _plan(how: Options, precision: str, m: int, n: int, *, host: bool) -> short.Plan | None:
    if how.precision not in (None, precision) or how.gram_precision is not None:
        return None
    with held_back() as warnings:
        found = how.resolved_for((m, n), precision)
    if warnings or found["form"] != "plain":
        return None
    return short.plan(found["schedule"], found["kind"], precision, min(m, n), host=host)


@on_its_device
def _checked(g: Array, out: Array | None, how: Options) -> Array:
    """Validate and run, by torch's operator where torch records for other tensors than these."""
    x, ops = as_matrix(g, "g", sharded=True)
    packed = how.packed() if torch_operator.is_traced(x, ops) else ""
    if out is not None:
        check_out(out, x, "out", "g")
    u = _recorded(x, ops, packed) if packed else _orthogonalized(x, ops, how, out)
    return copied(u, out)


def _recorded(x: Array, ops: Ops, options: str) -> Array:
    """`orthogonalize` as an operator; torch.func differentiates by rules that it takes apart."""
    if not torch_operator.is_transformed():
        return torch_operator.call(x, options)
    rule = rule_of(_unpacked(options).resolved(x, ops))
    return differentiable_schedule(lambda x: torch_operator.call(x, options), x, **rule)


def _orthogonalized(x: Array, ops: Ops, options: Options, out: Array | None = None) -> Array:
    """Approximate unitary factor of matrices that as_matrix has taken."""
    resolved, given = options.resolved(x, ops), x
    # One compiled function on JAX, the function itself elsewhere.
    apply = ops.compiled(_apply, **resolved, **_storage_of(out, x))

    def find(x: Array) -> Array:
        own = ops if x is given else ops_of(x)
        if 0 in x.shape:
            return empty_result(x, own)
        # Rational steps record themselves.
        if resolved["schedule"].is_rational or not own.is_traced(x):
            return apply(x)
        return differentiable_schedule(apply, x, **rule_of(resolved))

    return ops.with_shards(find, x, "g")


# -- as an operator of torch -----------------------------------------------------------------


@at_trace_time
def _packed_or_error(*given: Any, **named: Any) -> tuple[str, str]:
    """Options as JSON, and why there are none: torch.compile takes an exception for its own."""
    try:
        return Options(*given, **named).packed(), ""
    except (TypeError, ValueError) as error:
        return "", str(error)


# Cached, since a schedule is checked whenever it is made.
@functools.lru_cache(maxsize=256)
def _unpacked(options: str) -> Options:
    how = json.loads(options)
    if how["schedule"] not in BY_FORMAT:
        how["schedule"] = Schedule(**how["schedule"])
    return Options(**how)


def _run_packed(x: Array, options: str) -> Array:
    return _orthogonalized(x, ops_of(x), _unpacked(options))


def _derive_packed(x: Array, e: Array, options: str) -> Array:
    """Gradient with respect to X, from one with respect to the result."""
    resolved = _unpacked(options).resolved(x, ops_of(x))
    return schedule_rule(x, e, **rule_of(resolved), gradient=True)


def orthogonalize_all(gradients: Iterable[ArrayT], **same: Any) -> list[ArrayT]:
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
    # An array is iterable too, over its matrices or rows: a stack belongs to orthogonalize.
    listed = isinstance(gradients, list | tuple)
    if not listed and (is_array(gradients) or not isinstance(gradients, Iterable)):
        raise TypeError(
            f"orthogonalize_all takes a list of arrays, got {type(gradients).__name__}; "
            "pass one array or stack to orthogonalize"
        )
    if traced_by_dynamo():
        gradients = list(gradients)
        if all(map(torch_operator.takes, gradients)):
            options, error = _packed_or_error(**same)
            if error:
                raise ValueError(error)
            if options:
                return list(_all_by_options(gradients, options))
    return _orthogonalize_all(gradients, same)


@looks_at_nothing
def _all_by_options(gradients: list[Array], options: str) -> list[Array]:
    return _orthogonalize_all(gradients, vars(_unpacked(options)))


@looks
def _orthogonalize_all(gradients: Iterable[Array], same: dict[str, Any]) -> list[Array]:
    arrays = [as_matrix(g, f"gradients[{i}]", sharded=True) for i, g in enumerate(gradients)]
    groups: dict[Any, list[int]] = {}
    for i, (x, ops) in enumerate(arrays):
        # On the host large products are as fast one by one, and a stack is a copy.
        large = ops.host and math.prod(x.shape) > BATCH_UP_TO
        known = all(isinstance(size, int) for size in x.shape)  # torch's may be symbols
        alone = (i,) if large or not known else ()  # its number makes a group of its own
        key = (
            ops.xp,
            x.dtype,
            tuple(x.shape) if known else (),
            str(getattr(x, "device", "")),
            placements(x),
            alone,
        )
        groups.setdefault(key, []).append(i)
    results: list[Array] = [None] * len(arrays)
    for members in groups.values():
        first, ops = arrays[members[0]]
        try:
            if len(members) == 1:
                results[members[0]] = orthogonalize(first, **same)
                continue
            stack = _stacked([arrays[i][0] for i in members], ops)
            stack = orthogonalize(stack, **same)
        except ValueError as error:
            which = ", ".join(map(str, members))
            raise ValueError(f"gradients[{which}]: {error}") from None
        for j, i in enumerate(members):
            results[i] = stack[j, ...]
    return results


@on_its_device
def _stacked(matrices: list[Array], ops: Ops) -> Array:
    return ops.xp.stack(matrices)


def _storage_of(out: Array | None, x: Array) -> dict[str, Array]:
    """Keywords of :func:`_apply` by which NumPy iterates in the storage of the result."""
    # The adjoint of a complex matrix is not a view.
    wide_complex = x.shape[-2] < x.shape[-1] and is_complex(x)
    usable = out is not None and not wide_complex and can_hold(out, x)
    return {"out": out} if usable else {}


@under_default_settings
def _apply(
    x: Array,
    *,
    schedule: Schedule,
    precision: str,
    gram_precision: str | None,
    kind: str,
    form: str,
    restarts: Sequence[int],
    out: Array | None = None,
) -> Array:
    """Normalise and iterate."""
    ops = ops_of(x)
    wide = x.shape[-2] < x.shape[-1]
    y = ops.adjoint(x) if wide else x
    # A wide matrix is iterated as its adjoint, in the adjoint of its storage.
    place = y if out is x else ops.adjoint(out) if wide and out is not None else out
    if schedule.is_rational:
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
            out=place,
        )
    return astype_like(ops.adjoint(u) if wide else u, x, ops)


# A process that loads a saved program of torch may never call orthogonalize itself.
torch_operator.define(_run_packed, _derive_packed)
