"""orthogonalize_all(): many arrays, with matrices of equal shape in one batch."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from polarlib.arrays import torch_operator
from polarlib.arrays.checks import flag, shown
from polarlib.arrays.entry import ArrayT, as_matrix, is_array
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.settings import (
    held_back,
    looks,
    looks_at_nothing,
    on_its_device,
    traced_by_dynamo,
)
from polarlib.arrays.torch_sharded import laid_as, placements, with_whole
from polarlib.orthogonalization import coefficients, matrices, owners
from polarlib.orthogonalization.heads import block_shape
from polarlib.orthogonalization.matrices import orthogonalize
from polarlib.orthogonalization.options import NAMED, Options

Array = Any

# Number of entries up to which a batch is faster on the host than single calls, by experiment
# (benchmarks/orthogonalize.py).
BATCH_UP_TO = 1 << 14


def orthogonalize_all(
    gradients: Iterable[ArrayT], *, convolution: bool = False, mesh: Any = None, **same: Any
) -> list[ArrayT]:
    """Orthogonalise many arrays, with matrices of equal shape in one batch.

    Parameters
    ----------
    gradients : iterable of array, shapes (..., m, n)
        Any mixture of shapes, dtypes, devices and libraries. Never modified.
    mesh : jax.sharding.Mesh or torch DeviceMesh, optional
        Devices among which the matrices are divided: each is computed by one of them, and the
        result is where its input was; see Notes. By default each array is computed where it is, and
        by every process that has it.
    convolution : bool, optional
        Whether arrays of more than two dimensions are kernels of convolutions, shape
        (out, in, k_1, ...): each is orthogonalised as one matrix, out x (in k_1 ...). By default
        they are stacks of matrices, so that a kernel of shape (out, in, 3, 3) would be a stack of
        3 x 3 matrices.
    **same
        Arguments of :func:`orthogonalize` except `out`, the same for all arrays.

    Returns
    -------
    list of array
        In the order of the input, each in the shape of its input. The result equals that of
        :func:`orthogonalize` exactly for an array of more than 16,384 entries on the host, and for
        one whose matrices have a shape, dtype or device of which there is no other. All other
        matrices, those of stacks included, are computed in batches, in which sums are rounded in
        another order. With u the unit roundoff, the difference in spectral norm is about u times
        the slope of the schedule at 0; at most 20 times that was measured, in float32 and float64.
        With the default schedule and nearly equal singular values it is about 4 sqrt(n u) (0.01
        for n = 100 in float32), because the bound of the norm then has cancellation.

    Raises
    ------
    TypeError
        As :func:`orthogonalize`; for a `mesh` of another library than the arrays, or that is not a
        mesh; for tensors that torch traces, or transforms by torch.func, with a mesh.
    ValueError
        As :func:`orthogonalize`; the message gives the positions in the list. Also for a mesh
        without devices, of which this process is not a member, or with other devices than an array.
        If lists or options differ between the processes of a DeviceMesh, or one process has an
        invalid array or, on CPUs, NaN: the same error on every process.

    Notes
    -----
    With a mesh, matrices are assigned in descending order of their number of operations, each to
    the device with the fewest so far; the largest number per device is at most 4/3 of the smallest
    possible one (R. L. Graham, SIAM J. Appl. Math. 17 (1969) 416-429, Theorem 2). Stacks are
    divided along their first axis; kernels of convolutions and sharded stacks of JAX are not, and
    those sharded along axes of the stack alone are computed in place. The same mesh and list give
    the same result, which differs from that without a mesh as that of other batches does.

    - torch: tensors that are not DTensors must be equal on all processes, as gradients after an
      all-reduce; the results are sent to all by all-gathers, or by broadcasts where processes have
      unequal shares. DTensors, on a mesh of the same processes, are sent to the owners by
      all-to-alls and back to their placements; of pending sums and strided shards to `Replicate`.
      Messages of equal matrices, up to 25 MiB, are sent while the next ones are computed. Before,
      an all-reduce of 16 bytes, for which the host waits, compares lists and options; on CPUs one
      of 8 bytes compares errors. Backward goes the same way, once: gradients of results must be
      equal on all processes where results are, and second derivatives are refused. torch.compile
      calls the function between two graphs.
    - JAX: arrays may be on one device, replicated or sharded, and results have their shardings.
      Eagerly matrices are moved. Under `jax.jit`, in rounds of up to 25 MiB per device, every
      device branches to its matrices. Arrays that are sharded along explicit axes are sent to the
      owners, and results back, by an all-to-all each per dtype. All others, which along automatic
      axes may be sharded, are replicated, by an all-gather of each that is sharded, and one
      all-gather per dtype returns the results, or one sum if most devices have none;
      `jax.sharding.explicit_axes` makes axes explicit. There, arrays must be on the devices of
      the mesh, or not committed to a device. Gradients outside of `jax.jit` of arrays with
      explicit axes need ``jax.set_mesh(mesh)``. A mesh over several processes needs `jax.jit`.

    Arrays that are sharded, or traced by JAX or torch's compilers, are batched only with arrays of
    their own shape: concatenation along an axis might move data between devices.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> gradients = [rng.standard_normal(shape) for shape in [(8, 4), (3, 5), (8, 4), (2, 8, 4)]]
    >>> [q.shape for q in orthogonalize_all(gradients)]
    [(8, 4), (3, 5), (8, 4), (2, 8, 4)]
    >>> kernel = rng.standard_normal((6, 4, 3, 3))
    >>> [q] = orthogonalize_all([kernel], convolution=True)
    >>> rows = q.reshape(6, 36)
    >>> q.shape, bool(np.linalg.norm(rows @ rows.T - np.eye(6), 2) < 0.3)
    ((6, 4, 3, 3), True)
    """
    if "out" in same:
        raise TypeError("orthogonalize_all has no argument out; it returns a list of new arrays")
    convolution = flag("convolution", convolution)
    if mesh is not None:
        return _over_mesh(gradients, mesh, convolution, same)
    _check_list(gradients)
    if traced_by_dynamo():
        gradients = list(gradients)
        if all(map(torch_operator.takes, gradients)):
            recorded = _recorded(gradients, convolution, same)
            if recorded is not None:
                return recorded
    return _orthogonalize_all(gradients, convolution, same)


def _check_list(gradients: Any) -> None:
    # An array is iterable too, over its matrices or rows: a stack belongs to orthogonalize.
    listed = isinstance(gradients, list | tuple)
    if not listed and (is_array(gradients) or not isinstance(gradients, Iterable)):
        raise TypeError(
            f"orthogonalize_all takes a list of arrays, got {type(gradients).__name__}; "
            "pass one array or stack to orthogonalize"
        )


def _recorded(
    gradients: list[Array], convolution: bool, same: dict[str, Any]
) -> list[Array] | None:
    """Return the results under torch.compile; None if the options have no operator."""
    c = same.get("schedule", "auto")
    if isinstance(c, NAMED):
        options, error = matrices.packed_or_error(**same)
    elif gradients and torch_operator.takes(gradients[0], c):
        others = {name: value for name, value in same.items() if name != "schedule"}
        options, error = coefficients.packed_or_error(**others)
    else:
        return None
    if error:
        raise ValueError(error)
    if not options:
        return None
    if isinstance(c, NAMED):
        return list(_all_by_options(gradients, convolution, options))
    return list(_all_by_coefficients(gradients, convolution, c, options))


@looks_at_nothing
def _all_by_options(gradients: list[Array], convolution: bool, options: str) -> list[Array]:
    return _orthogonalize_all(gradients, convolution, vars(matrices.unpacked(options)))


@looks_at_nothing
def _all_by_coefficients(
    gradients: list[Array], convolution: bool, c: Array, options: str
) -> list[Array]:
    how = coefficients.unpacked(options)._asdict()
    return _orthogonalize_all(gradients, convolution, {"schedule": c, **how})


@looks
def _orthogonalize_all(
    gradients: Iterable[Array], convolution: bool, same: dict[str, Any]
) -> list[Array]:
    arrays = [as_matrix(g, f"gradients[{i}]", sharded=True) for i, g in enumerate(gradients)]
    return _grouped(arrays, convolution, same, range(len(arrays)))


def _grouped(
    arrays: list[tuple[Array, Ops]],
    convolution: bool,
    same: dict[str, Any],
    numbers: Sequence[int],
) -> list[Array]:
    """Return the results for arrays, which have these numbers in messages."""
    given = [x for x, _ in arrays]
    if convolution:
        arrays = [(_as_matrix(x, ops), ops) for x, ops in arrays]
    groups: dict[Any, list[int]] = {}
    for i, (x, ops) in enumerate(arrays):
        groups.setdefault(_key(i, x, ops), []).append(i)
    results: list[Array] = [None] * len(arrays)
    for members in groups.values():
        ops = arrays[members[0]][1]
        try:
            factors = _together([arrays[i][0] for i in members], ops, same)
        except ValueError as error:
            which = ", ".join(str(numbers[i]) for i in members)
            raise ValueError(f"gradients[{which}]: {error}") from None
        for i, q in zip(members, factors, strict=True):
            results[i] = _as_given(q, given[i], ops) if convolution else q
    return results


def _as_matrix(x: Array, ops: Ops) -> Array:
    """Return the kernel of a convolution as a matrix; a matrix is returned unchanged."""
    if x.ndim == 2:
        return x
    why = "kernels are sharded along another axis than their first"
    x = with_whole(x, lambda axis, _: axis != -x.ndim, why)
    return ops.xp.reshape(x, (x.shape[0], math.prod(x.shape[1:])))


def _as_given(q: Array, x: Array, ops: Ops) -> Array:
    """Return the result for a kernel with the shape and sharding of the kernel."""
    return q if x.ndim == 2 else laid_as(ops.xp.reshape(q, x.shape), x)


def _key(i: int, x: Array, ops: Ops) -> tuple[Any, ...]:
    """Return a key that is equal for arrays of one batch; `i` is the position in the list."""
    # On the host large products are as fast in single calls, and a stack is a copy.
    large = ops.host and math.prod(x.shape) > BATCH_UP_TO
    known = all(isinstance(size, int) for size in x.shape)  # torch's may be symbols
    alone = (i,) if large or not known else ()  # the position makes the key unique
    shape = tuple(x.shape) if known else ()
    if x.ndim > 2 and _may_be_joined(x, ops):
        shape = shape[-2:]
    return (ops.xp, x.dtype, shape, str(getattr(x, "device", "")), placements(x), alone)


def _may_be_joined(x: Array, ops: Ops) -> bool:
    """Return whether a stack is known to be on one device, so that it can be concatenated."""
    return not (placements(x) or ops.is_abstract(x) or ops.is_sharded(x))


def _together(group: list[Array], ops: Ops, same: dict[str, Any]) -> list[Array]:
    """Return the results for arrays with matrices of equal shape, from one call."""
    first = group[0]
    if len(group) == 1:
        return [orthogonalize(first, **same)]
    if all(x.ndim == 2 for x in group) or not _may_be_joined(first, ops):
        stack = orthogonalize(_stacked(group, ops), **same)
        return [stack[j, ...] for j in range(len(group))]
    counts = [math.prod(x.shape[:-2]) for x in group]
    stack = orthogonalize(_joined(group, counts, ops), **same)
    ends = itertools.accumulate(counts)
    return [
        ops.xp.reshape(stack[end - count : end, ...], x.shape)
        for x, count, end in zip(group, counts, ends, strict=True)
    ]


@on_its_device
def _stacked(group: list[Array], ops: Ops) -> Array:
    return ops.xp.stack(group)


@on_its_device
def _joined(group: list[Array], counts: list[int], ops: Ops) -> Array:
    """Matrices and stacks of them, one stack after the other."""
    pairs = zip(group, counts, strict=True)
    return ops.xp.concat([ops.xp.reshape(x, (k, *x.shape[-2:])) for x, k in pairs])


# -- over the devices of a mesh ----------------------------------------------------------------


def _mesh(mesh: Any) -> Any:
    """Return the devices of a mesh of an array library."""
    # Imported here, since calls without a mesh would wait for them.
    from polarlib.arrays.jax_mesh import JaxMesh
    from polarlib.arrays.torch_mesh import TorchMesh

    kinds: tuple[Any, ...] = (JaxMesh, TorchMesh)
    for kind in kinds:
        if kind.takes(mesh):
            return kind(mesh)
    raise TypeError(
        f"mesh must be a {' or '.join(kind.kind for kind in kinds)}, got {shown(mesh)}; leave it "
        "out for one device"
    )


@functools.partial(
    looks,
    reason="orthogonalize_all with a mesh communicates, which torch.compile(fullgraph=True) cannot "
    "record; leave fullgraph=True out",
)
def _over_mesh(
    gradients: Iterable[Array], mesh: Any, convolution: bool, same: dict[str, Any]
) -> list[Array]:
    """Return the results, each computed by one device of a mesh, where the gradients are."""
    where = _mesh(mesh)
    arrays, how, costs, formats = where.agreed(lambda: _read(gradients, where, convolution, same))
    for precision, shape in formats.items():  # every process warns
        how.resolved_for(shape, precision)
    moved = [i for i, x in enumerate(arrays) if not where.stays(x)]

    def run(given: list[Array], c: Array, numbers: Sequence[int]) -> list[Array]:
        options = same if c is None else {**same, "schedule": c}
        at = [moved[k] for k in numbers]
        with held_back():
            return _grouped([(x, ops_of(x)) for x in given], convolution, options, at)

    given = [arrays[i] for i in moved]
    shapes = [tuple(x.shape) for x in given]
    divided = [x.ndim > 2 and not convolution and where.may_divide(x) for x in given]
    cut = owners.pieces(tuple(shapes), tuple(costs[i] for i in moved), tuple(divided), where.count)
    kinds = tuple((p.high - p.low, *shapes[p.array][1:], given[p.array].dtype) for p in cut)
    sizes = tuple(math.prod(k[:-1]) * k[-1].itemsize for k in kinds)
    c = same["schedule"] if isinstance(how, coefficients.How) else None
    computed = where.compute(given, owners.rounds(cut, kinds, sizes, where.count), run, c)
    results = dict(zip(moved, computed, strict=True))
    return [
        results[i] if i in results else _grouped([(x, ops_of(x))], convolution, same, [i])[0]
        for i, x in enumerate(arrays)
    ]


def _read(
    gradients: Iterable[Array], where: Any, convolution: bool, same: dict[str, Any]
) -> tuple[tuple[list[Array], Any, list[int], dict[str, tuple[int, ...]]], list[str]]:
    """Return checked arrays and options, costs, and a shape per format; and all that as text."""
    _check_list(gradients)
    c = same.get("schedule", "auto")
    unknown = sorted(same.keys() - Options.__dataclass_fields__)
    if unknown:
        raise TypeError(f"orthogonalize_all has no argument {unknown[0]}; leave it out")
    named = isinstance(c, NAMED)
    others = {name: value for name, value in same.items() if name != "schedule"}
    how: Any = Options(**same) if named else coefficients.checked_how(**others)
    arrays, costs, formats = [], [], {}
    rows: tuple[int, ...] = ()
    options = vars(how) if named else how._asdict()
    texts = [
        f"{name}={value!r} {getattr(value, 'steps', '')}".rstrip()  # Schedule has a short form
        for name, value in {**options, "convolution": convolution}.items()
    ]
    for i, g in enumerate(gradients):
        x, ops = as_matrix(g, f"gradients[{i}]", sharded=True)
        texts.append(where.check(x, f"gradients[{i}]"))
        shape = tuple(x.shape)
        shape = (shape[0], math.prod(shape[1:])) if convolution else shape
        try:
            if not named:
                rows = coefficients.checked_sizes(coefficients.checked_coefficients(c, x))
            costs.append(owners.operations(shape, ops.multiplier(x), how, rows))
        except ValueError as error:
            raise ValueError(f"gradients[{i}]: {error}") from None
        arrays.append(x)
        if named:
            precision = how.precision or ops.multiplier(x)
            formats[precision] = block_shape(shape, how.heads)
            texts[-1] += f" in {precision}"
    if arrays and not named:
        texts.append(where.check(c, "schedule"))
    return (arrays, how, costs, formats), texts
