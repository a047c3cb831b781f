"""orthogonalize_all(mesh=) on four processes of torch, gloo on CPUs."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")
if not dist.is_available():
    pytest.skip("torch was built without torch.distributed", allow_module_level=True)

from torch.distributed.tensor import (  # noqa: E402
    DeviceMesh,
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
    init_device_mesh,
)
from torch.distributed.tensor.placement_types import _StridedShard  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch_processes import PROCESSES, Cases, alike  # noqa: E402

import polarlib  # noqa: E402
from polarlib import orthogonalize_all  # noqa: E402
from polarlib.orthogonalization import owners  # noqa: E402

WHOLE, ROWS, COLUMNS = Replicate(), Shard(0), Shard(1)
HOW = {"schedule": "jordan", "steps": 2}
# Uneven and empty shards, a stack, a matrix without entries.
SHAPES = (16, 8), (8, 16), (16, 8), (33, 8), (6, 8, 4), (2, 5), (0, 3)


class Meshes:
    """The processes in a line, in a square, in another order; and two of them."""

    def __init__(self):
        self.line = init_device_mesh("cpu", (PROCESSES,))
        self.square = init_device_mesh("cpu", (2, PROCESSES // 2))
        self.mixed = DeviceMesh("cpu", [[3, 1], [0, 2]])
        self.pair = DeviceMesh("cpu", [[1], [3]])


mesh = None  # made in each process


def begin():
    global mesh
    mesh = Meshes()


case = Cases(begin, (60, 200))


def matrices(shapes=SHAPES, dtype=torch.float64):
    """Random matrices, the same on every process."""
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


def distributed(xs, where, placements):
    return [distribute_tensor(x, where, p) for x, p in zip(xs, placements, strict=True)]


def layouts():
    """A mesh, and placements for each of `SHAPES`."""
    yield mesh.line, [(ROWS,), (COLUMNS,), (WHOLE,), (ROWS,), (Shard(2),), (ROWS,), (ROWS,)]
    yield (
        mesh.square,
        [
            (ROWS, COLUMNS),
            (COLUMNS, WHOLE),
            (WHOLE, WHOLE),
            (WHOLE, ROWS),
            (ROWS, COLUMNS),
            (ROWS, ROWS),
            (COLUMNS, ROWS),
        ],
    )


def close(found, wanted, atol=1e-12):
    """Equal but for the order of sums in batches of another size."""
    for q, want in zip(found, wanted, strict=True):
        q = q.full_tensor() if isinstance(q, DTensor) else q
        torch.testing.assert_close(q, want, rtol=0, atol=atol, check_stride=False)


class Sent(TorchDispatchMode):
    """The collectives, with the bytes that this process hands to each."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented
        name = str(func)
        if name.startswith(("_c10d_functional.", "c10d.")) and "wait" not in name:
            tensor = args[1] if "gather" in name or "alltoall" in name else args[0][0]
            self.calls.append((name.split(".")[1].rstrip("_"), tensor.nbytes))
        return func(*args, **(kwargs or {}))

    def names(self):
        return [name for name, _ in self.calls]


# -- results ---------------------------------------------------------------------------------------


@case()
def tensors_that_all_processes_have():
    xs = matrices()
    wanted = orthogonalize_all(xs, **HOW)
    for where in mesh.line, mesh.square, mesh.mixed:
        found = orthogonalize_all(xs, mesh=where, **HOW)
        close(found, wanted)
        for q, again in zip(found, orthogonalize_all(iter(xs), mesh=where, **HOW), strict=True):
            assert torch.equal(q, again)
        first = [q.clone() for q in found]
        for q in first:
            dist.broadcast(q, 0)
        assert all(map(torch.equal, found, first))  # one process has computed each
    for count in 0, 1, 3, 5:
        close(orthogonalize_all(xs[:count], mesh=mesh.line, **HOW), wanted[:count])
    if dist.get_rank() in (1, 3):
        close(orthogonalize_all(xs, mesh=mesh.pair, **HOW), wanted)


@case()
def placements_are_kept():
    xs = matrices()
    wanted = orthogonalize_all(xs, **HOW)
    for where, placements in layouts():
        given = distributed(xs, where, placements)
        for over in (mesh.line, mesh.mixed):
            found = orthogonalize_all(given, mesh=over, **HOW)
            assert [q.placements for q in found] == placements
            assert all(q.device_mesh == where for q in found)
            close(found, wanted)
        close([x.full_tensor() for x in given], xs)
    mixed = [*given, *xs]
    close(orthogonalize_all(mixed, mesh=mesh.square, **HOW), [*wanted, *wanted])


@case()
def each_matrix_is_computed_once():
    """Calls with the engine: as many matrices as there are, over all processes."""
    from polarlib.orthogonalization import lists

    counts = torch.zeros(1, dtype=torch.int64)
    original = lists.orthogonalize

    def counted(x, **how):
        counts.add_(x.shape[:-2].numel())
        return original(x, **how)

    lists.orthogonalize = counted
    try:
        xs = matrices([(16, 8)] * 6 + [(5, 3)] + [(9, 4, 2)])
        orthogonalize_all(xs, mesh=mesh.line, **HOW)
    finally:
        lists.orthogonalize = original
    own = counts.item()
    dist.all_reduce(counts)
    assert counts.item() == 6 + 1 + 9
    assert own >= 2


@case()
def dtypes_kernels_and_options():
    a, b = matrices([(16, 8), (12, 3, 2, 2)])
    xs = [a.float(), a, a.bfloat16(), a.to(torch.complex64) + 1j, a.half()]
    for found, want in zip(
        orthogonalize_all(xs, mesh=mesh.line, **HOW), orthogonalize_all(xs, **HOW), strict=True
    ):
        assert found.dtype == want.dtype
        torch.testing.assert_close(found, want, rtol=0, atol=0.05)
    kernels = [b, 2 * b, distribute_tensor(b, mesh.line, (Shard(2),))]
    found = orthogonalize_all(kernels, mesh=mesh.line, convolution=True, **HOW)
    assert found[2].placements == (Shard(2),)
    close(found, orthogonalize_all([b, 2 * b, b], convolution=True, **HOW))
    for how in {"heads": 4}, {"form": "gram"}, {"schedule": "adaptive"}, {"schedule": "halley"}:
        close(orthogonalize_all([a], mesh=mesh.line, **how), orthogonalize_all([a], **how), 1e-9)


@case()
def pending_sums_and_strided_shards():
    a = matrices([(16, 4)])[0]
    local = a if dist.get_rank() == 0 else torch.zeros_like(a)
    x = DTensor.from_local(local, mesh.line, (Partial(),), run_check=False)
    (q,) = orthogonalize_all([x], mesh=mesh.line, **HOW)
    assert q.placements == (WHOLE,)
    close([q], orthogonalize_all([a], **HOW))
    i, j = mesh.square.get_coordinate()
    local = a[torch.arange(16).reshape(2, 2, 4)[j, i]].clone()
    strided = (_StridedShard(0, split_factor=2), ROWS)
    x = DTensor.from_local(
        local, mesh.square, strided, run_check=False, shape=a.shape, stride=a.stride()
    )
    with pytest.warns(UserWarning, match="a strided shard is not a part of its matrix"):
        (q,) = orthogonalize_all([x], mesh=mesh.square, **HOW)
    assert q.placements == strided
    close([q], orthogonalize_all([a], **HOW))


# -- what is sent ----------------------------------------------------------------------------------


@case()
def collectives_are_counted():
    """One all-reduce before and after; an all-gather, broadcasts, or two all-to-alls, per round."""
    xs = matrices([(16, 8)] * 8, torch.float32)
    size = 16 * 8 * 4
    with Sent() as sent:
        orthogonalize_all(xs, mesh=mesh.line, **HOW)
    assert sent.calls == [("allreduce", 16), ("_allgather_base", 2 * size), ("allreduce", 8)]
    shards = distributed(xs, mesh.line, [(ROWS,)] * 8)
    with Sent() as sent:
        orthogonalize_all(shards, mesh=mesh.line, **HOW)
    # A quarter of each of eight matrices is sent; all of two own ones back.
    assert sent.calls == [
        ("allreduce", 16),
        ("alltoall_base", 2 * size),
        ("alltoall_base", 2 * size),
        ("allreduce", 8),
    ]
    several = matrices([(16, 8)] * 4 + [(24, 8)] * 4)
    with Sent() as sent:
        orthogonalize_all(several, mesh=mesh.line, **HOW)
    assert sent.names() == ["allreduce", "_allgather_base", "_allgather_base", "allreduce"]
    # An all-gather of one matrix and three small ones would send the large one four times.
    for few, sizes in ([(16, 8)], [1024]), ([(16, 8)] + [(2, 3)] * 3, [1024] + [48] * 3):
        with Sent() as sent:
            close(
                orthogonalize_all(matrices(few), mesh=mesh.line, **HOW),
                orthogonalize_all(matrices(few), **HOW),
            )
        assert sent.calls[1:-1] == [("broadcast", size) for size in sizes]
    with Sent() as sent:
        orthogonalize_all([], mesh=mesh.line, **HOW)
    assert sent.names() == ["allreduce", "allreduce"]
    before, owners.TOGETHER = owners.TOGETHER, size
    owners.rounds.cache_clear()
    try:
        with Sent() as sent:
            orthogonalize_all(shards, mesh=mesh.line, **HOW)
    finally:
        owners.TOGETHER = before
        owners.rounds.cache_clear()
    # Receptions of both rounds begin first.
    assert sent.names() == ["allreduce", *["alltoall_base"] * 4, "allreduce"]


# -- gradients -------------------------------------------------------------------------------------


def differentiate(given, xs, where, **how):
    ys = [x.clone().requires_grad_() for x in xs]
    found = orthogonalize_all(given, mesh=where, **how)
    weights = matrices([tuple(x.shape) for x in xs])
    total = 0.0
    for q, y in zip(found, weights, strict=True):
        w = (
            distribute_tensor(y, q.device_mesh, [WHOLE] * q.device_mesh.ndim)
            if isinstance(q, DTensor)
            else y
        )
        product = (q * w).sum()
        total = total + (product.full_tensor() if isinstance(q, DTensor) else product)
    total.backward()
    sum(
        (q * w).sum() for q, w in zip(orthogonalize_all(ys, **how), weights, strict=True)
    ).backward()
    close([x.grad for x in given], [y.grad for y in ys], 1e-10)


@case()
def gradients():
    xs = matrices()
    for where, placements in layouts():
        given = [x.requires_grad_() for x in distributed(xs, where, placements)]
        differentiate(given, xs, where, **HOW)
        assert [x.grad.placements for x in given] == placements
    plain = [x.clone().requires_grad_() for x in xs]
    differentiate(plain, xs, mesh.square, **HOW)
    with Sent() as forward:
        found = orthogonalize_all(plain, mesh=mesh.line, **HOW)
    with Sent() as sent:
        found[0].sum().backward(retain_graph=True)  # of one result, and again
        found[0].sum().backward()
    assert sent.names() == 2 * forward.names()[1:], (sent.names(), forward.names())
    with torch.no_grad():
        assert not orthogonalize_all(plain, mesh=mesh.line, **HOW)[0].requires_grad


@case()
def gradients_of_coefficients():
    xs, c = matrices([(9, 4)] * 5), torch.tensor([[1.8, -1.2, 0.4]] * 2, dtype=torch.float64)
    found = []
    for where in mesh.line, None:
        leaf = c.clone().requires_grad_()
        sum((q**3).sum() for q in orthogonalize_all(xs, schedule=leaf, mesh=where)).backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found)


@case()
def second_derivatives_are_refused():
    x = matrices([(9, 4)])[0].requires_grad_()
    (q,) = orthogonalize_all([x], mesh=mesh.line, **HOW)
    (g,) = torch.autograd.grad((q**3).sum(), x, create_graph=True)
    alike(lambda: (g**2).sum().backward(), RuntimeError, "once_differentiable")
    f = lambda t: orthogonalize_all([t], mesh=mesh.line, **HOW)[0].sum()  # noqa: E731
    alike(lambda: torch.func.grad(f)(x.detach()), TypeError, "traced or transformed by torch")
    warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own scripts
    along = (x.detach(),)
    alike(lambda: torch.func.jvp(f, along, along), TypeError, "traced or transformed")


@case(slow=True)
def compiled():
    """The call is made between two graphs; fullgraph=True is refused, with the reason."""
    warnings.simplefilter("ignore")  # of torch's compiler about itself
    xs = [x.requires_grad_() for x in matrices([(16, 8), (5, 3)])]
    f = torch.compile(
        lambda xs: [2 * q for q in orthogonalize_all(xs, mesh=mesh.line, **HOW)],
        backend="aot_eager",
    )
    close([q / 2 for q in f(xs)], orthogonalize_all(xs, **HOW))
    sum((q**3).sum() for q in f(xs)).backward()
    assert all(x.grad is not None for x in xs)
    whole = torch.compile(
        lambda xs: orthogonalize_all(xs, mesh=mesh.line, **HOW), backend="aot_eager", fullgraph=True
    )
    with pytest.raises(Exception, match="orthogonalize_all with a mesh communicates"):
        whole(xs)


# -- errors ----------------------------------------------------------------------------------------


@case()
def lists_that_differ():
    a, b, c = matrices([(16, 8), (5, 3), (4, 4)])
    rank = dist.get_rank()
    run = lambda xs, **how: lambda: orthogonalize_all(xs, mesh=mesh.line, **{**HOW, **how})  # noqa: E731
    alike(
        run([a, b, c][: 2 + (rank == 2)]),
        ValueError,
        "lists of lengths 2 (processes 0, 1, 3) and 3 (process 2)",
    )
    alike(run([a, b if rank else c]), ValueError, "got gradients[1]", "(4, 4)", "(5, 3)")
    alike(run([a, b if rank else b.float()]), ValueError, "float32", "float64", "process 0")
    alike(run([a, b.clone().requires_grad_(rank == 1)]), ValueError, "with gradients")
    x = distribute_tensor(a, mesh.line, (ROWS,))
    alike(run([x if rank < 2 else a]), ValueError, "Shard(dim=0)")
    alike(run([a], steps=1 + rank // 2), ValueError, "steps=1 (processes 0, 1)", "steps=2")
    schedule = polarlib.schedule("jordan", 2)
    schedule = schedule if rank else schedule.quantize("bfloat16")
    alike(run([a], schedule=schedule, steps=None), ValueError, "schedule=", "process 0")
    alike(run([a, 3.0 if rank == 1 else b]), ValueError, "on process 1", "must be a matrix")
    alike(run([] if rank else [a]), ValueError, "lengths 1 (process 0) and 0")


@case()
def errors_are_those_of_all_processes():
    a, b, c = matrices([(16, 8), (5, 3), (4, 4)])
    run = lambda xs, **how: lambda: orthogonalize_all(xs, mesh=mesh.line, **{**HOW, **how})  # noqa: E731
    for bad in 0, 1, 2:
        xs = [a, b, c]
        xs[bad] = xs[bad].clone()
        xs[bad][1, 0] = torch.nan
        alike(run(xs), ValueError, f"gradients[{bad}]", "NaN or infinity")
        shards = distributed(xs, mesh.line, [(ROWS,)] * 3)
        alike(run(shards), ValueError, f"gradients[{bad}]", "NaN or infinity")
    alike(run([a, b], steps=0), ValueError, "steps")
    alike(run([a, b], heads=3), ValueError, "gradients[0]: heads must divide")
    alike(run([a], best=1), TypeError, "no argument best")
    alike(run(a), TypeError, "takes a list of arrays")
    alike(run([a, b.numpy()]), TypeError, "mesh is a DeviceMesh of torch, but gradients[1]")
    alike(run([a, b.to("meta")]), TypeError, "gradients[1] is traced")
    alike(run([a], schedule=a[:0], steps=None), ValueError, "schedule, an array of coefficients")
    alike(lambda: orthogonalize_all([a], mesh=[0, 1]), TypeError, "mesh must be")
    x = DTensor.from_local(a, DeviceMesh("cpu", [0, 1, 2]), (WHOLE,), run_check=False)
    alike(run([x]), ValueError, "on process 0, ValueError: gradients[0] is a DTensor on processes")
    # After all that the processes still agree.
    close(orthogonalize_all([a], mesh=mesh.line, **HOW), orthogonalize_all([a], **HOW))


@case()
def warnings_are_those_of_all_processes():
    a = matrices([(16, 8)], torch.bfloat16)
    with pytest.warns(polarlib.ScheduleWarning):
        orthogonalize_all(a, mesh=mesh.line, schedule="polar_express_raw")


@case()
def zz_members_only():
    """The last one: it ends the processes' group."""
    a = matrices([(16, 8)])
    if dist.get_rank() in (0, 2):
        with pytest.raises(ValueError, match="this process is not a member"):
            orthogonalize_all(a, mesh=mesh.pair)
    dist.barrier()
    dist.destroy_process_group()
    with pytest.raises(ValueError, match="process group is gone"):
        orthogonalize_all(a, mesh=mesh.line)


# -- processes -------------------------------------------------------------------------------------


def test_four_processes():
    case.check(__file__, slow=False)


@pytest.mark.slow
def test_four_processes_slow():
    case.check(__file__, slow=True)


if __name__ == "__main__":
    case.main()
