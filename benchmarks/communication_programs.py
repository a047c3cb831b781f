"""Programs for sharded matrices in the layouts of polarlib.communication, and their collectives.

    python benchmarks/communication_programs.py jax 4 64x16 bfloat16
    python benchmarks/communication_programs.py torch 4 64x16 bfloat16 rows gather

The layouts are all by default. Prints one JSON list: for each layout and form, the number of
collectives on matrices, the number of those on single numbers, and the bytes that one device sends
in those on matrices, for one matrix and step. JAX: operations in the HLO of the compiled program,
on simulated devices of one processor. torch: calls counted by CommDebugMode in one process per
device with gloo, and the size of each call's operand. benchmarks/communication.py compares them
with the predictions.

"rows", "replicated" and "block" with tall blocks (as heads) are calls of polarlib on a sharded
array, and so are "all_to_all" (orthogonalize_all) and JAX's "dion" (norms.power_step). The
others are polarlib.orthogonalize on local matrices, between collectives of the library.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Array = Any
PERIOD, FRACTION = 4, 0.25
# Numbers that are not a matrix: a norm, a maximum and whether entries are finite, for each matrix;
# or one vector, of a maximum and sizes that processes compare.
FEW, FEW_OF_VECTOR = 2, 11
LIMIT = 240  # seconds until a process that waits for the others is ended


class Call(NamedTuple):
    """A collective: its name, and the bytes of its operand and of its result."""

    name: str
    taken: int
    given: int
    numbers: bool  # for each matrix at most FEW numbers


class Program(NamedTuple):
    """Functions that are run in turn, and for how many matrices and steps they are."""

    runs: Sequence[tuple[Callable[..., Any], Sequence[Array]]]
    matrices: int = 1
    of: str = ""  # what AdamW sends instead, which is subtracted: of the second run


def rank_of(shape: tuple[int, int]) -> int:
    """Return the number of Dion's vectors."""
    return min(shape) // 4


def sent(call: Call, devices: int) -> float:
    """Return the bytes that one device of a ring sends."""
    f = (devices - 1) / devices
    amounts = {
        "all-reduce": 2 * f * call.taken,
        "all-gather": f * call.given,
        "reduce-scatter": f * call.taken,
        "all-to-all": f * call.taken,
        "collective-permute": float(call.taken),
        "broadcast": float(call.taken),
    }
    return amounts[call.name]


def summary(calls: Sequence[Sequence[Call]], program: Program, devices: int) -> dict[str, float]:
    """Return counts for one matrix and step."""
    count = {"collectives": 0.0, "numbers": 0.0, "bytes": 0.0}
    for k, run in enumerate(calls):
        sign = -1 if program.of and k else 1
        for call in run:
            if call.numbers:
                count["numbers"] += sign
            else:
                count["collectives"] += sign
                count["bytes"] += sign * sent(call, devices)
    times = program.matrices * (1 if program.of else len(calls))
    return {name: value / times for name, value in count.items()}


# -- JAX -------------------------------------------------------------------------------------------

BITS = re.compile(r"[a-z]+(\d+)")
SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
OPERATION = re.compile(
    r"= (?P<result>\(.*?\)|\S+) (?P<name>all-reduce|all-gather|reduce-scatter|all-to-all"
    r"|collective-permute)\("
)


def is_few(shape: Sequence[int]) -> bool:
    """Return whether an array has numbers that are not a matrix."""
    return math.prod(shape[-2:]) <= (FEW_OF_VECTOR if len(shape) == 1 else FEW)


def size_of(text: str) -> tuple[int, bool]:
    """Return the bytes of the arrays in a type of HLO, and whether all are a few numbers."""
    total, numbers = 0, True
    for kind, dims in SHAPE.findall(text):
        shape = [int(d) for d in dims.split(",") if d]
        found = BITS.match(kind)
        total += math.prod(shape) * (int(found[1]) // 8 if found else 1)
        numbers = numbers and is_few(shape)
    return total, numbers


def calls_of_hlo(text: str, devices: int) -> list[Call]:
    """Return the collectives of a program compiled for CPUs, where none is asynchronous."""
    if re.search(r"(reduce|gather|scatter|all|permute)-start\(", text):
        raise RuntimeError("the program has asynchronous collectives, which are not counted")
    calls = []
    for found in OPERATION.finditer(text):
        given, numbers = size_of(found["result"])
        name = found["name"]
        taken = {"all-gather": given // devices, "reduce-scatter": given * devices}.get(name, given)
        calls.append(Call(name, taken, given, numbers))
    return calls


def of_jax(
    devices: int, shape: tuple[int, int], dtype: str, layouts: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Compile every program, and count."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    import jax

    rows = []
    for name, form, program in programs_of_jax(devices, shape, dtype):
        if layouts and name not in layouts:
            continue
        texts = [jax.jit(f).lower(*x).compile().as_text() for f, x in program.runs]
        calls = [calls_of_hlo(text, devices) for text in texts]
        rows.append({"layout": name, "form": form, **summary(calls, program, devices)})
    return rows


def programs_of_jax(devices: int, shape: tuple[int, int], dtype: str) -> Any:
    """Yield layouts, forms and programs of JAX."""
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    import polarlib
    from polarlib import norms

    mesh = jax.make_mesh((devices,), ("x",), axis_types=(AxisType.Auto,))
    axis = 0 if shape[0] >= shape[1] else 1
    rows = P(*("x" if k == axis else None for k in range(2)))
    many = P(None, *rows)

    def array(spec: Any, *dims: int) -> Array:
        kind = jnp.dtype(dtype)
        return jax.ShapeDtypeStruct(dims, kind, sharding=NamedSharding(mesh, spec))

    def local(f: Callable[..., Any], given: Any, result: Any) -> Callable[..., Any]:
        return jax.shard_map(f, mesh=mesh, in_specs=given, out_specs=result, check_vma=False)

    # jit knows the shardings of arrays along explicit axes alone.
    explicit = jax.make_mesh((devices,), ("x",), axis_types=(AxisType.Explicit,))
    place = NamedSharding(explicit, rows)
    separate = [jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=place)] * devices
    one, whole = array(rows, *shape), array(P(), *shape)
    batch = array(many, devices, *shape)
    for form in ("plain", "gram"):

        def factor(x: Array, form: str = form) -> Array:
            return polarlib.orthogonalize(x, form=form)

        def sharded(x: Array, factor: Callable[[Array], Array] = factor) -> Array:
            return lax.with_sharding_constraint(factor(x), NamedSharding(mesh, rows))

        def gathered(x: Array, factor: Callable[[Array], Array] = factor) -> Array:
            u = factor(lax.all_gather(x, "x", axis=axis, tiled=True))
            length = x.shape[axis]
            return lax.dynamic_slice_in_dim(u, lax.axis_index("x") * length, length, axis)

        def owners(gs: list[Array], form: str = form) -> list[Array]:
            us: list[Array] = polarlib.orthogonalize_all(gs, form=form, mesh=explicit)
            return us

        def exchanged(x: Array, factor: Callable[[Array], Array] = factor) -> Array:
            y = lax.all_to_all(x, "x", 0, axis + 1, tiled=True)
            return lax.all_to_all(factor(y), "x", axis + 1, 0, tiled=True)

        def fraction(x: Array, factor: Callable[[Array], Array] = factor) -> Array:
            kept = round(FRACTION * x.shape[axis + 1])
            _, index = jax.vmap(lambda y: lax.top_k(jnp.sum(y * y, axis=1 - axis), kept))(x)
            part = jax.vmap(lambda y, i: jnp.take(y, i, axis=axis))(x, index)
            u = exchanged(part, factor)
            place = jnp.broadcast_to(jnp.expand_dims(index, 2 - axis), u.shape)
            return jnp.put_along_axis(jnp.zeros_like(x), place, u, axis + 1, inplace=False)

        def owned(w: Array, g: Array, factor: Callable[[Array], Array] = factor) -> Array:
            mean = lax.psum_scatter(g, "x", scatter_dimension=0, tiled=True)
            return lax.all_gather(w - factor(mean), "x", axis=0, tiled=True)

        def adam(w: Array, g: Array) -> Array:
            mean = lax.psum_scatter(g.reshape(-1), "x", scatter_dimension=0, tiled=True)
            return lax.all_gather(w.reshape(-1) - jnp.sign(mean), "x", axis=0, tiled=True)

        of_rows = local(gathered, rows, rows)

        def headed(x: Array, form: str = form) -> Array:
            u = polarlib.orthogonalize(x, form=form, heads=devices)
            return lax.with_sharding_constraint(u, NamedSharding(mesh, rows))

        of_block = headed if shape[0] >= devices * shape[1] else local(factor, rows, rows)
        blocks = [(of_block, [one])] * (PERIOD - 1)
        gradients = [array(P("x", None, None), devices, *shape)]
        gradients.append(array(P(), devices, *shape))
        yield "replicated", form, Program([(factor, [whole])])
        yield "rows", form, Program([(sharded, [one])])
        yield "gather", form, Program([(of_rows, [one])])
        yield "all_to_all", form, Program([(owners, [separate])], devices)
        yield "block", form, Program([(of_block, [one])])
        yield "block_periodic", form, Program([(of_rows, [one]), *blocks])
        yield "dion2", form, Program([(local(fraction, many, many), [batch])], devices)
        owner = local(owned, (P("x", None, None), P()), P())
        adamw = local(adam, (P("x", None, None), P()), P())
        yield "owner", form, Program([(owner, gradients), (adamw, gradients)], devices, "AdamW")

    # The momenta of all devices beside one another: M Q is then a sum over devices.
    m, n = shape
    r = rank_of(shape)

    def dion(momenta: Array, q: Array) -> tuple[Array, Array]:
        p, right, _ = norms.power_step(momenta, q)
        return p, right.reshape(devices, n, r).mean(axis=0)

    beside = [array(P(None, "x"), m, devices * n), array(P("x", None), devices * n, r)]
    yield "dion", "", Program([(dion, beside)])


# -- torch -----------------------------------------------------------------------------------------

# Operators of torch's functional collectives, and of those that write to their first argument.
NAMES = {
    "all_reduce": "all-reduce",
    "all_gather_into_tensor": "all-gather",
    "reduce_scatter_tensor": "reduce-scatter",
    "all_to_all_single": "all-to-all",
    "broadcast": "broadcast",
    "allreduce_": "all-reduce",
    "_allgather_base_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "alltoall_base_": "all-to-all",
    "broadcast_": "broadcast",
}


def of_torch(
    devices: int, shape: tuple[int, int], dtype: str, layouts: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Run every program in as many processes, and count in the first one."""
    import torch.multiprocessing

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = torch.multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=process, args=(rank, devices, shape, dtype, layouts, folder))
            for rank in range(devices)
        ]
        for each in processes:
            each.start()
        for each in processes:
            each.join()
        rows: list[dict[str, Any]] = json.loads((folder / "rows.json").read_text("utf-8"))
    return rows


def process(
    rank: int,
    devices: int,
    shape: tuple[int, int],
    dtype: str,
    layouts: Sequence[str],
    folder: Path,
) -> None:
    """Run the programs as one of the processes; the first one writes the counts."""
    watchdog = threading.Timer(LIMIT, os._exit, [1])
    watchdog.daemon = True
    watchdog.start()
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = (folder / "store").as_uri()
    dist.init_process_group("gloo", rank=rank, world_size=devices, init_method=store)
    rows = []
    for name, form, program in programs_of_torch(devices, shape, dtype):
        if layouts and name not in layouts:
            continue
        calls = [calls_of_torch(f, x, devices) for f, x in program.runs]
        rows.append({"layout": name, "form": form, **summary(calls, program, devices)})
    if rank == 0:
        (folder / "rows.json").write_text(json.dumps(rows), "utf-8")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that ends by itself


def calls_of_torch(f: Callable[..., Any], arrays: Sequence[Array], devices: int) -> list[Call]:
    """Return the collectives of a call; their number is that of CommDebugMode."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.debug import CommDebugMode
    from torch.utils._python_dispatch import TorchDispatchMode

    calls = []

    class Operands(TorchDispatchMode):
        """The size of the operand of each collective, which CommDebugMode does not have."""

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if any(issubclass(t, DTensor) for t in types):
                return NotImplemented
            name = str(func).split(".")[1]
            if str(func).startswith(("_c10d_functional.", "c10d.")) and name in NAMES:
                x = args[1] if name.endswith("_base_") else args[0]
                x = x[0] if isinstance(x, list | tuple) else x
                size, kind = x.numel() * x.element_size(), NAMES[name]
                numbers = is_few(x.shape)
                given = {"all-gather": size * devices, "reduce-scatter": size // devices}
                calls.append(Call(kind, size, given.get(kind, size), numbers))
            return func(*args, **(kwargs or {}))

    with CommDebugMode() as mode, Operands():
        f(*arrays)
    if mode.get_total_counts() != len(calls):
        raise RuntimeError(f"CommDebugMode counts {dict(mode.get_comm_counts())}, got {calls}")
    return calls


def programs_of_torch(devices: int, shape: tuple[int, int], dtype: str) -> Any:
    """Yield layouts, forms and programs of torch; arrays of matrices have shape (N, m, n)."""
    import torch
    import torch.distributed as dist
    import torch.distributed._functional_collectives as funcol
    from torch.distributed.tensor import (
        DTensor,
        Partial,
        Replicate,
        Shard,
        distribute_tensor,
        init_device_mesh,
    )

    import polarlib

    mesh = init_device_mesh("cpu", (devices,))
    group, me = mesh.get_group(), dist.get_rank()
    axis = 0 if shape[0] >= shape[1] else 1
    kind = getattr(torch, dtype)

    def random(*dims: int) -> Array:
        return torch.randn(dims, generator=torch.Generator().manual_seed(1)).to(kind)

    def moved(x: Array, now: Any, then: Any) -> Array:
        """Return local tensors in another placement: a reduction, a gathering or both."""
        placed = DTensor.from_local(x, mesh, [now], run_check=False)
        return placed.redistribute(placements=[then]).to_local()

    one = distribute_tensor(random(*shape), mesh, [Shard(axis)])
    whole = distribute_tensor(random(*shape), mesh, [Replicate()])
    batch = random(devices, *shape).chunk(devices, axis + 1)[me]
    for form in ("plain", "gram"):

        def factor(x: Array, form: str = form) -> Array:
            return polarlib.orthogonalize(x, form=form)

        def gathered(x: Array, factor: Callable[[Array], Array] = factor) -> Array:
            every = x.redistribute(placements=[Replicate()]).to_local()
            return factor(every).chunk(devices, axis)[me]

        def block(x: Array, form: str = form) -> Array:
            if shape[0] >= devices * shape[1]:
                return polarlib.orthogonalize(x, form=form, heads=devices)
            return polarlib.orthogonalize(x.to_local(), form=form)

        def exchanged(x: Array, factor: Callable[[Array], Array] = factor) -> Array:
            parts = funcol.all_to_all_single(x.contiguous(), None, None, group)
            u = factor(torch.cat(list(parts), dim=axis))
            back = torch.stack(u.chunk(devices, axis))
            return funcol.all_to_all_single(back, None, None, group)

        def fraction(x: Array, factor: Callable[[Array], Array] = factor) -> Array:
            kept = round(FRACTION * x.shape[axis + 1])
            index = x.norm(dim=2 - axis).topk(kept, dim=1).indices.unsqueeze(2 - axis)
            place = index.expand(*(x.shape[2 - axis] if d == 2 - axis else -1 for d in range(3)))
            u = exchanged(x.gather(axis + 1, place), factor)
            return torch.zeros_like(x).scatter(axis + 1, place, u)

        def owned(w: Array, g: Array, factor: Callable[[Array], Array] = factor) -> Array:
            return moved(w - factor(moved(g, Partial(), Shard(0))), Shard(0), Replicate())

        def adam(w: Array, g: Array) -> Array:
            mean = moved(g.reshape(-1), Partial(), Shard(0))
            return moved(w.reshape(-1) - mean.sign(), Shard(0), Replicate())

        def owners(*gs: Array, form: str = form) -> list[Array]:
            us: list[Array] = polarlib.orthogonalize_all(list(gs), form=form, mesh=mesh)
            return us

        sharded = [one] * devices
        blocks = [(block, [one])] * (PERIOD - 1)
        yield "replicated", form, Program([(factor, [whole])])
        yield "rows", form, Program([(factor, [one])])
        yield "gather", form, Program([(gathered, [one])])
        yield "all_to_all", form, Program([(owners, sharded)], devices)
        yield "block", form, Program([(block, [one])])
        yield "block_periodic", form, Program([(gathered, [one]), *blocks])
        yield "dion2", form, Program([(fraction, [batch])], devices)
        step = [random(1, *shape), random(devices, *shape)]
        yield "owner", form, Program([(owned, step), (adam, step)], devices, "AdamW")

    def dion(momentum: Array, q: Array) -> tuple[Array, Array]:
        p = torch.linalg.qr(moved(momentum @ q, Partial(), Replicate()).float()).Q.to(kind)
        return p, moved(momentum.mT @ p, Partial(), Replicate())

    yield "dion", "", Program([(dion, [random(*shape), random(shape[1], rank_of(shape))])])


if __name__ == "__main__":
    library, devices, shape, dtype, *layouts = sys.argv[1:]
    m, n = map(int, shape.split("x"))
    made = {"jax": of_jax, "torch": of_torch}[library](int(devices), (m, n), dtype, layouts)
    sys.stdout.write(json.dumps(made) + "\n")
