"""torch DTensors on four processes, gloo on CPUs."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import re
import sys
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
from torch.distributed.tensor.debug import CommDebugMode  # noqa: E402
from torch.distributed.tensor.placement_types import _StridedShard  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch_processes import PROCESSES, Cases, alike  # noqa: E402

import polarlib  # noqa: E402
from polarlib import derivatives, norms, updates  # noqa: E402
from polarlib.arrays.ops import ops_of  # noqa: E402
from polarlib.norms import low_rank  # noqa: E402

# Numbers of the first sum on CPUs: the largest entry, and the sizes of the matrices.
SIZES = 11
WHOLE, ROWS, COLUMNS = Replicate(), Shard(0), Shard(1)


class Meshes:
    """The processes in a line and in a square."""

    def __init__(self):
        self.line = init_device_mesh("cpu", (PROCESSES,))
        self.square = init_device_mesh("cpu", (2, PROCESSES // 2))
        self.row = init_device_mesh("cpu", (1, PROCESSES))
        self.column = init_device_mesh("cpu", (PROCESSES, 1))


mesh = None  # made in each process


def begin():
    global mesh
    mesh = Meshes()


case = Cases(begin, (60, 280), (240, 1680))


def layouts():
    """Meshes and placements of a matrix: 4 along a line of processes, and 10 in a square."""
    yield from ((mesh.line, (p,)) for p in (WHOLE, ROWS, COLUMNS, Partial()))
    pairs = itertools.product((WHOLE, ROWS, COLUMNS), repeat=2)
    yield from ((mesh.square, pair) for pair in (*pairs, (ROWS, Partial())))


def matrix(*shape, dtype=torch.float64):
    """A random matrix, the same on every process."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=wide).to(dtype)


def distributed(a, where, placements):
    """The DTensor of a matrix; a pending sum has the whole on its first process."""
    if not any(p.is_partial() for p in placements):
        return distribute_tensor(a, where, placements)
    i = [p.is_partial() for p in placements].index(True)
    known = [WHOLE if p.is_partial() else p for p in placements]
    local = distribute_tensor(a, where, known).to_local()
    local = local if where.get_coordinate()[i] == 0 else torch.zeros_like(local)
    return DTensor.from_local(
        local, where, placements, run_check=False, shape=a.shape, stride=a.stride()
    )


def summed(placements):
    return tuple(WHOLE if p.is_partial() else p for p in placements)


def close(got, want, atol=1e-9):
    """Equal but for the order of sums, whose rounding a schedule enlarges by its slope at 0."""
    torch.testing.assert_close(got.full_tensor(), want, rtol=0, atol=atol, check_stride=False)


def moves(shape, placements):
    """Whether a matrix that is not square has shards of its shorter side."""
    short = COLUMNS if shape[0] > shape[1] else ROWS
    return shape[0] != shape[1] and 0 not in shape and short in placements


@contextlib.contextmanager
def warned(expected):
    """Every warning gives the megabytes that are sent, and there are some exactly if expected."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    texts = [str(w.message) for w in caught]
    assert bool(texts) == expected, texts
    assert all(re.search(r"gathers [\d.e-]+ MB per device", text) for text in texts), texts


class Sent(TorchDispatchMode):
    """The collectives, with the entries that a process hands to each."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented
        name = str(func)
        called = name.startswith(("_c10d_functional.", "c10d."))
        if called and "wait" not in name and "wrap" not in name:
            first = args[0][0] if isinstance(args[0], list | tuple) else args[0]
            self.calls.append((name.split(".")[1].rstrip("_"), first.numel()))
        return func(*args, **(kwargs or {}))

    def count(self, name, size):
        return self.calls.count((name, size))


# -- layouts -----------------------------------------------------------------------------------


@case()
def placements_are_kept():
    """Every layout of tall, wide and square matrices, with uneven shards."""
    for shape in (10, 3), (3, 10), (6, 6):
        a = matrix(*shape)
        want = polarlib.orthogonalize(a, steps=1)
        for where, placements in itertools.islice(layouts(), 4 if shape == (6, 6) else None):
            x = distributed(a, where, placements)
            with warned(moves(shape, placements)):
                q = polarlib.orthogonalize(x, steps=1)
            assert q.placements == summed(placements), (shape, placements, q.placements)
            close(q, want)


def every_function(a):
    yield polarlib.orthogonalize(a, form="gram")
    yield polarlib.orthogonalize(a, schedule="jordan")
    yield polarlib.orthogonalize(a, schedule="turbo_muon")  # which divides columns
    yield polarlib.orthogonalize(a, schedule="halley")
    yield polarlib.orthogonalize(a, schedule="adaptive")  # by moments of whole matrices
    yield polarlib.orthogonalize(a, normalisation="spectral")
    yield norms.spectral(polar=polarlib.orthogonalize).lmo(a)
    yield polarlib.polar(a, method="polar_express")
    yield polarlib.polar(a, method="newton_schulz")
    yield polarlib.polar(a, "left", method="newton_schulz")
    yield polarlib.polar(a)
    yield polarlib.polar(a, "left", completion=False)
    yield polarlib.nearest_orthogonal(a)


def agree(a, where, placements):
    """Results of a DTensor are those of one process, and lie as it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = distributed(a, where, placements)
        for got, want in zip(every_function(x), every_function(a), strict=True):
            if isinstance(want, polarlib.PolarResult):
                assert (got.status, got.rank) == (want.status, want.rank)
                close(got.hermitian, want.hermitian, atol=1e-9)
                got, want = got.unitary, want.unitary
            assert got.placements == summed(placements), (tuple(a.shape), placements)
            close(got, want)


@case()
def functions_agree():
    agree(matrix(9, 3), mesh.line, (ROWS,))


@case(slow=True)
def functions_agree_in_every_layout():
    for shape in (10, 3), (3, 10), (6, 6):
        for where, placements in layouts():
            agree(matrix(*shape), where, placements)


@case()
def empty_shards():
    """Fewer rows than processes, and matrices without any."""
    for shape in (3, 2), (1, 1), (5, 5), (0, 3), (3, 0):
        a = matrix(*shape)
        for placements in (ROWS,), (COLUMNS,):
            x = distributed(a, mesh.line, placements)
            with warned(moves(shape, placements)):
                q = polarlib.orthogonalize(x)
            assert q.placements == placements
            assert q.shape == a.shape
            close(q, polarlib.orthogonalize(a))
        r = polarlib.polar(distributed(a, mesh.line, (ROWS,)), method="newton_schulz")
        want = polarlib.polar(a, method="newton_schulz")
        assert r.rank == want.rank
        close(r.unitary, want.unitary)
        close(r.hermitian, want.hermitian)


@case(slow=True)
def empty_shards_of_every_function():
    for shape in (3, 2), (2, 5), (1, 1), (5, 5), (0, 3), (3, 0):
        for where, placements in layouts():
            agree(matrix(*shape), where, placements)


@case()
def stacks():
    for where, placements in (
        (mesh.line, (ROWS,)),
        (mesh.line, (COLUMNS,)),
        (mesh.square, (ROWS, Shard(1))),
        (mesh.square, (Shard(2), ROWS)),
    ):
        a = matrix(5, 7, 3)
        with warned(Shard(2) in placements):
            q = polarlib.orthogonalize(distributed(a, where, placements), steps=2)
        assert q.placements == placements
        close(q, polarlib.orthogonalize(a, steps=2))
    a = matrix(2, 3, 7, 3)
    x = distributed(a, mesh.square, (Shard(1), Shard(2)))
    close(polarlib.orthogonalize(x, form="gram"), polarlib.orthogonalize(a, form="gram"))
    a = matrix(2, 2, 9, 2)  # nothing of it is on the last process
    for form in "plain", "gram":
        x = distributed(a, mesh.line, (Shard(2),))
        close(polarlib.orthogonalize(x, form=form), polarlib.orthogonalize(a, form=form))
    a = matrix(5, 7, 3)
    x = distributed(a, mesh.line, (ROWS,))
    close(
        polarlib.orthogonalize(x, schedule="halley"), polarlib.orthogonalize(a, schedule="halley")
    )
    a = matrix(3, 3, 2)
    a += 3 * torch.eye(3, 2)  # few steps
    r = polarlib.polar(distributed(a, mesh.line, (ROWS,)), method="newton_schulz")
    want = polarlib.polar(a, method="newton_schulz")
    assert r.unitary.placements == r.hermitian.placements == (ROWS,)
    assert r.rank.tolist() == want.rank.tolist()
    close(r.unitary, want.unitary)
    close(r.hermitian, want.hermitian)


@case()
def heads_kernels_and_coefficients():
    """Blocks that are whole on a process stay there; others are gathered, with a warning."""
    a, c = matrix(16, 5), torch.tensor([[1.8, -1.2, 0.4], [1.7, -0.9, 0.2]], dtype=torch.float64)
    for heads, placement, told in (4, ROWS, False), (2, ROWS, True), (2, WHOLE, False):
        x = distributed(a, mesh.line, (placement,)).requires_grad_()
        want = a.clone().requires_grad_()
        with warned(told):
            q = polarlib.orthogonalize(x, heads=heads, steps=2)
        assert q.placements == (placement,)
        polarlib.orthogonalize(want, heads=heads, steps=2).sum().backward()
        close(q, polarlib.orthogonalize(a, heads=heads, steps=2))
        q.sum().backward()
        assert x.grad.placements == (placement,)
        close(x.grad, want.grad)
    x = distributed(a, mesh.line, (ROWS,))
    with Sent() as sent:
        polarlib.orthogonalize(x, heads=4)
    assert {size for _, size in sent.calls} <= {1, 4, SIZES}  # largest entries
    kernels = matrix(10, 2, 3), matrix(10, 6)
    for placement in ROWS, COLUMNS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = [distributed(k, mesh.line, (placement,)) for k in kernels]
            results = polarlib.orthogonalize_all(given, convolution=True, steps=1)
        wanted = polarlib.orthogonalize_all(kernels, convolution=True, steps=1)
        for q, want in zip(results, wanted, strict=True):
            assert q.placements == (placement,)
            close(q, want)
    for each in c, distributed(c, mesh.line, (WHOLE,)):
        q = polarlib.orthogonalize(x, schedule=each)
        assert q.placements == (ROWS,)
        close(q, polarlib.orthogonalize(a, schedule=c))
    alike(
        lambda: polarlib.orthogonalize(x, schedule=c.clone().requires_grad_()),
        TypeError,
        "records gradients beside a sharded DTensor",
    )


@case()
def strided_shards():
    """As of FSDP2 on rows that tensor parallelism has sharded already."""
    a = matrix(16, 4)
    i, j = mesh.square.get_coordinate()
    local = a[torch.arange(16).reshape(2, 2, 4)[j, i]].clone()
    x = DTensor.from_local(
        local,
        mesh.square,
        (_StridedShard(0, split_factor=2), ROWS),
        run_check=False,
        shape=a.shape,
        stride=a.stride(),
    )
    with warned(True):
        q = polarlib.orthogonalize(x)
    assert q.placements == x.placements
    close(q, polarlib.orthogonalize(a))


@case()
def dimensions_of_one_process():
    """A shard along one is whole: nothing is gathered for it, and every method can be used."""
    a = matrix(12, 3)
    want = polarlib.orthogonalize(a)
    for where, placements in (
        (mesh.row, (COLUMNS, ROWS)),
        (mesh.row, (ROWS, ROWS)),
        (mesh.column, (ROWS, COLUMNS)),
    ):
        x = distributed(a, where, placements).requires_grad_()
        with Sent() as sent:
            q = polarlib.orthogonalize(x)
        assert {size for _, size in sent.calls} <= {1, 9, SIZES}, sent.calls
        assert q.placements == placements
        close(q.detach(), want)
        q.sum().backward()
        assert x.grad.placements == placements
    for b in a, torch.zeros_like(a):
        x = distributed(b, mesh.column, (WHOLE, ROWS))
        with Sent() as sent:
            r = polarlib.polar(x, method="svd")
        assert not sent.calls
        assert (r.status.name, r.unitary.placements) == ("CONVERGED", (WHOLE, ROWS))
        close(r.unitary, polarlib.polar(b, method="svd").unitary)
        close(r.hermitian, polarlib.polar(b, method="svd").hermitian)


@case()
def complex_matrices():
    """Results for wide ones are no conjugate views, whose imaginary parts torch cannot take."""
    a, w = (t.to(torch.complex128) for t in (matrix(3, 9), matrix(9, 3).mT))
    a = a + 1j * w
    for placement in COLUMNS, WHOLE:
        x = distributed(a, mesh.line, (placement,)).requires_grad_()
        y = a.clone().requires_grad_()
        for f in (
            lambda t: polarlib.orthogonalize(t, schedule="adaptive"),
            polarlib.nearest_orthogonal,
        ):
            x.grad = y.grad = None
            q, want = torch.view_as_real(f(x)), torch.view_as_real(f(y))
            close(q.detach(), want.detach())
            (q**3).sum().backward()
            (want**3).sum().backward()
            close(x.grad, y.grad, atol=1e-8)


# -- what is sent ------------------------------------------------------------------------------


@case()
def only_squares_are_sent():
    for shape, placement in ((40, 3), ROWS), ((3, 40), COLUMNS):
        x = distributed(matrix(*shape), mesh.line, (placement,))
        for how, sums in ({"form": "plain"}, 5), ({"form": "gram", "restarts": (2,)}, 2):
            with Sent() as sent:
                polarlib.orthogonalize(x, **how)
            assert sent.count("all_reduce", 9) == sums
            # The largest entry with the sizes of all, and whether all agree that it is finite.
            assert sent.count("all_reduce", SIZES) == sent.count("broadcast", 1) == 1
            assert len(sent.calls) == sums + 2, sent.calls
    x = distributed(matrix(8, 3), mesh.square, (ROWS, ROWS))
    with Sent() as sent:
        polarlib.orthogonalize(x, form="plain")
    assert sent.count("all_reduce", 9) == 2 * 5
    with Sent() as sent:
        polarlib.polar(x, method="polar_express")
    assert {size for _, size in sent.calls} <= {1, 3, 6, 9, SIZES}
    x = distributed(matrix(8, 3), mesh.line, (WHOLE,))
    with Sent() as sent:
        polarlib.polar(x)
    assert not sent.calls
    stack = distributed(matrix(4, 8, 3), mesh.line, (ROWS,))
    with Sent() as sent:
        polarlib.orthogonalize(stack)
    assert {size for _, size in sent.calls} <= {1, 4, SIZES}  # largest entries


@case()
def torch_counts_as_many():
    """By torch's own count: a sum per plain step, 1 + restarts in Gram form, one of the norm."""
    x = distributed(matrix(40, 3), mesh.line, (ROWS,))
    for how, sums in (
        ({"form": "plain", "steps": 3}, 3),
        ({"form": "gram", "restarts": ()}, 1),
        ({"form": "gram", "restarts": (1, 3)}, 3),
    ):
        with CommDebugMode() as counted:
            polarlib.orthogonalize(x, **how)
        counts = {str(name): k for name, k in counted.get_comm_counts().items() if k}
        assert counts.pop("c10d_functional.all_reduce") == sums + 1, how
        assert sum(counts.values()) == 1, counts  # whether all agree that entries are finite


# -- the automatic choice ----------------------------------------------------------------------


def conditioned(m, n, kappa, dtype=torch.float64):
    """A matrix with geometric singular values, the same on every process."""
    u, v = (torch.linalg.qr(matrix(k, n, dtype=dtype).flip(0))[0] for k in (m, n))
    values = torch.logspace(0, -math.log10(kappa), n, dtype=torch.float64)
    return ((u * values.to(u.real.dtype)) @ v.mH).to(dtype)


def polar_factors(a, r, eps):
    """The definition of the polar factors, in double precision."""
    kind = torch.complex128 if a.is_complex() else torch.float64
    a, u, h = (t.to(kind) for t in (a, r.unitary.full_tensor(), r.hermitian.full_tensor()))
    tol = 100 * eps
    assert torch.linalg.norm(u.mH @ u - torch.eye(u.shape[-1])) <= tol * math.sqrt(u.shape[-1])
    assert torch.linalg.norm(a - u @ h) <= tol * torch.linalg.norm(a)
    assert torch.equal(h, h.mH)
    assert torch.linalg.eigvalsh(h)[0] >= -tol * torch.linalg.norm(a)


@case()
def condition_numbers():
    """Two to four sums for every condition number, and two more of the check."""
    for dtype, kappa, most in (
        (torch.float64, 10, 2),
        (torch.float64, 1e4, 2),
        (torch.float64, 1e8, 3),
        (torch.float64, 1e12, 3),
        (torch.float64, 1e15, 4),
        (torch.float32, 10, 2),
        (torch.float32, 1e3, 3),
        (torch.complex64, 1e3, 3),
    ):
        a = conditioned(42, 6, kappa, dtype)
        for where, placements in (mesh.line, (ROWS,)), (mesh.square, (ROWS, WHOLE)):
            x = distributed(a, where, placements)
            with Sent() as sent:
                r = polarlib.polar(x)
            polar_factors(a, r, torch.finfo(dtype).eps)
            assert (r.method, r.status.name) == ("gram", "CONVERGED"), (dtype, kappa)
            assert r.iterations <= most, (dtype, kappa, r.iterations)
            assert sent.count("all_reduce", 36) == r.iterations + 2
            pairs = 2 if dtype.is_complex else 1  # broadcasts are of real numbers
            assert max(size for _, size in sent.calls) <= 7 * 6 * pairs
            assert f"{r.iterations} Gram matrices" in r.reason
            if 1 / torch.finfo(dtype).eps > 100 * kappa:
                assert r.condition_bounds[0] <= 1.001 * kappa
                assert 0.999 * kappa <= r.condition_bounds[1] <= 2 * kappa
    x = distributed(conditioned(30, 4, 1e6).mT.contiguous(), mesh.line, (COLUMNS,))
    seen = []
    with Sent() as sent:
        polarlib.polar(x, "left", callback=lambda k, t: seen.append((k, tuple(t.shape))))
    assert max(size for _, size in sent.calls) <= 5 * 4
    assert seen == [(k, (30, 4)) for k in range(1, len(seen) + 1)]
    bounded = polarlib.polar(x, "left", cond=1e7, sigma_min=1e-7)
    close(bounded.hermitian, polarlib.polar(x, "left").hermitian.full_tensor())


@case()
def deficient_ranks():
    """Rounding errors complete U, but not where columns are zero, which is reported alike."""
    e = matrix(40, 3)
    rounded = e @ matrix(3, 6)
    r = polarlib.polar(distributed(rounded, mesh.line, (ROWS,)))
    assert (r.status.name, r.rank) == ("CONVERGED", 3)
    polar_factors(rounded, r, torch.finfo(torch.float64).eps)
    zeros = torch.cat([e, torch.zeros(40, 1)], dim=1)
    for a, rank in (zeros, 3), (torch.zeros(9, 2), 0), (torch.ones(40, 5), 1), (rounded, 3):
        a = a.double()
        x = distributed(a, mesh.line, (ROWS,))
        if a is not rounded:
            alike(lambda x=x: polarlib.polar(x, throw=True), polarlib.ConvergenceWarning, "'gram'")
            with pytest.warns(polarlib.ConvergenceWarning, match=r"polar\(method='gram'\)"):
                r = polarlib.polar(x)
            assert (r.status.name, r.rank) == ("NOT_CONVERGED", rank)
            assert not r.unitary.full_tensor().isnan().any()
        r, want = (polarlib.polar(t, completion=False) for t in (x, a))
        assert (r.status.name, r.rank) == ("CONVERGED", rank)
        close(r.unitary, want.unitary)
        close(r.hermitian, want.hermitian)
        close(polarlib.decomposition.unitary_factor(x, completion=False), want.unitary)


@case(slow=True)
def steps_of_fsdp2():
    """Gradients of FSDP2 in an optimizer step, compiled with breaks of the graph or not."""
    from torch.distributed.fsdp import fully_shard

    for where in mesh.line, init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards")):
        torch.manual_seed(0)
        layers = torch.nn.Linear(6, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3)
        model = torch.nn.Sequential(*layers).double()
        fully_shard(model, mesh=where)
        (model(matrix(8, 6)) ** 2).sum().backward()
        for p in (p for p in model.parameters() if p.ndim == 2):
            whole, kept = p.grad.full_tensor(), p.placements
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the second layer is wide, and sharded by rows
                q = polarlib.orthogonalize(p.grad)
                u = polarlib.polar(p.grad).unitary
                torch._dynamo.reset()
                compiled = torch.compile(polarlib.orthogonalize, backend="eager")(p.grad)
            for got, want in (
                (q, polarlib.orthogonalize(whole)),
                (compiled, polarlib.orthogonalize(whole)),
                (u, polarlib.polar(whole).unitary),
            ):
                assert got.placements == p.grad.placements
                close(got, want)
            with torch.no_grad():
                p.add_(q, alpha=-0.1)
            assert p.placements == kept


@case(slow=True)
def compiled_blocks():
    """Blocks are made of what each process has, or of what a warning tells is sent to it."""
    a = matrix(12, 3)
    for where, rows, told in (ROWS, 4, False), (ROWS, 3, True):
        torch._dynamo.reset()
        f = torch.compile(
            lambda t, rows=rows: norms.per_block(2 * t, rows, polar=polarlib.orthogonalize),
            backend="aot_eager",
        )
        with warned(told):
            q = f(distributed(a, mesh.line, (where,)))
        assert q.placements == (where,)
        close(q, norms.per_block(a, rows, polar=polarlib.orthogonalize))


@case()
def sizes_are_told():
    """What a process receives from others: of p parts p - 1, and those of shards of shards."""
    for where, placements, told in (
        (mesh.line, (COLUMNS,), "0.6"),
        (mesh.square, (ROWS, COLUMNS), "0.2"),
        (mesh.square, (COLUMNS, WHOLE), "0.4"),
        (mesh.square, (COLUMNS, COLUMNS), "0.6"),
        (mesh.square, (COLUMNS, ROWS), "0.6"),
    ):
        x = distributed(matrix(1000, 100), where, placements)
        with Sent() as sent, pytest.warns(UserWarning, match=rf"gathers {told} MB per device"):
            polarlib.orthogonalize(x, steps=1)
        gathered = [8 * size for name, size in sent.calls if "gather" in name]
        before = gathered[: len(gathered) // 2]  # and as much after
        assert sum(before) * (where.size(0) - 1) == float(told) * 1e6


# -- formats, where results go -----------------------------------------------------------------


@case()
def formats():
    """As on one process, but for the order of sums: a few roundings, which steps enlarge."""
    for form, dtype, precision, bound in (
        ("plain", torch.float32, None, 1e-5),
        ("gram", torch.float32, "bfloat16", 0.03),
        ("plain", torch.float32, "float8_e4m3", 0.3),
        ("plain", torch.bfloat16, None, 0.03),
        ("gram", torch.bfloat16, None, 0.03),
        ("gram", torch.bfloat16, "float32", 0.01),
        ("plain", torch.float16, None, 0.004),
        ("gram", torch.complex64, None, 1e-5),
        ("plain", torch.complex128, "bfloat16", 0.03),
        ("gram", torch.float64, "float32", 1e-5),
    ):
        a = matrix(9, 3, dtype=dtype)
        x = distributed(a, mesh.line, (ROWS,))
        q = polarlib.orthogonalize(x, form=form, precision=precision)
        assert q.dtype == dtype
        assert q.placements == (ROWS,)
        close(q, polarlib.orthogonalize(a, form=form, precision=precision), atol=bound)


@case()
def storage():
    a = matrix(9, 3)
    x, want = distributed(a, mesh.line, (ROWS,)), polarlib.orthogonalize(a)
    for placement in ROWS, COLUMNS, WHOLE:  # whatever it has
        out = distributed(torch.zeros_like(a), mesh.line, (placement,))
        assert polarlib.orthogonalize(x, out=out) is out
        assert out.placements == (placement,)
        close(out, want)
    assert torch.equal(x.full_tensor(), a)
    other = distributed(a, mesh.square, (ROWS, WHOLE))
    alike(lambda: polarlib.orthogonalize(x, out=a.numpy()), TypeError, "of another library")
    for given, bad in (x, a.clone()), (a, x), (x, other):
        alike(lambda g=given, b=bad: polarlib.orthogonalize(g, out=b), TypeError, "out must be a")
    pending = distributed(a, mesh.line, (Partial(),))
    alike(lambda: polarlib.orthogonalize(x, out=pending), ValueError, "must be writable")
    y = distributed(a, mesh.line, (ROWS,))
    r = polarlib.polar(y, method="newton_schulz", overwrite_a=True)
    assert r.unitary is y
    close(y, polarlib.polar(a, method="newton_schulz").unitary)


@case()
def many_matrices():
    where = mesh.line
    kinds = [((9, 3), ROWS), ((3, 9), COLUMNS), ((9, 3), WHOLE), ((9, 3), ROWS), ((3, 9), COLUMNS)]
    a = [matrix(*shape) + i for i, (shape, _) in enumerate(kinds)]
    xs = [distributed(t, where, (p,)) for t, (_, p) in zip(a, kinds, strict=True)]
    mixed = [*xs, a[0]]
    with Sent() as sent:
        qs = polarlib.orthogonalize_all(mixed, form="plain")
    assert sent.count("all_reduce", 2 * 9) == 2 * 5  # the two pairs go as stacks
    for q, x, t in zip(qs, xs, a, strict=False):
        assert q.placements == x.placements
        close(q, polarlib.orthogonalize(t, form="plain"))
    assert torch.equal(qs[-1], polarlib.orthogonalize(a[0], form="plain"))


# -- gradients ---------------------------------------------------------------------------------


def differentiate(f, a, where, placements):
    """The gradient has the placements of the matrix, and is that of one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = distributed(a, where, placements).requires_grad_()
        y = a.clone().requires_grad_()
        w = matrix(*f(a).shape)
        for t, weights in (x, distributed(w, where, (WHOLE,) * where.ndim)), (y, w):
            (f(t) * weights).sum().backward()
        assert x.grad.placements == summed(placements), (placements, x.grad.placements)
        close(x.grad, y.grad, atol=1e-9 * (1 + float(y.grad.abs().max())))


def functions():
    yield lambda a: polarlib.orthogonalize(a)
    yield lambda a: polarlib.polar(a, method="newton_schulz").unitary
    yield lambda a: polarlib.polar(a).hermitian
    yield lambda a: polarlib.polar(a).unitary
    yield lambda a: polarlib.orthogonalize(a, form="gram", schedule="jordan")
    yield lambda a: polarlib.orthogonalize(a, normalisation="spectral")
    yield lambda a: polarlib.orthogonalize(a, schedule="turbo_muon")
    yield lambda a: polarlib.orthogonalize(a, schedule="halley")
    yield lambda a: polarlib.orthogonalize_all([a, a * 2.0])[1]


@case()
def gradients():
    for f in itertools.islice(functions(), 4):
        differentiate(f, matrix(9, 3), mesh.line, (ROWS,))
    f = next(functions())
    differentiate(f, matrix(3, 9), mesh.square, (ROWS, COLUMNS))
    differentiate(f, matrix(3, 2), mesh.line, (ROWS,))
    x = distributed(matrix(9, 3), mesh.line, (ROWS,)).requires_grad_()
    polarlib.orthogonalize(x).to_local().sum().backward()
    y = matrix(9, 3).requires_grad_()
    polarlib.orthogonalize(y).sum().backward()
    close(x.grad, y.grad, atol=1e-9)
    alike(lambda: polarlib.polar(x, method="jordan"), ValueError, "is not differentiated")
    for f in polarlib.orthogonalize, polarlib.nearest_orthogonal:
        alike(lambda f=f: torch.func.vjp(f, x.detach()), TypeError, "use backward()")


@case()
def pending_gradients():
    """Gradients that are still to be summed over processes."""
    a, w = matrix(9, 3), matrix(9, 3).flip(0)
    for f in polarlib.orthogonalize, lambda t: polarlib.polar(t).unitary:
        y = a.clone().requires_grad_()
        f(y).backward(w)
        for where, kinds in (mesh.line, (ROWS,)), (mesh.square, (ROWS, WHOLE)):
            x = distributed(a, where, kinds).requires_grad_()
            pending = (*kinds[:-1], Partial())
            f(x).backward(distributed(w, where, pending))
            assert x.grad.placements == kinds
            close(x.grad, y.grad)


@case(slow=True)
def gradients_in_every_layout():
    for where, placements in layouts():
        for shape, f in itertools.product(((9, 3), (3, 9)), functions()):
            differentiate(f, matrix(*shape), where, placements)
        for shape in (4, 4), (2, 3), (4, 5, 2):
            differentiate(next(functions()), matrix(*shape), where, placements)


@case(slow=True)
def gradients_of_gradients():
    found = []
    for x in distributed(matrix(9, 3), mesh.line, (ROWS,)), matrix(9, 3):
        x.requires_grad_()
        q = polarlib.orthogonalize(x, form="plain")
        (g,) = torch.autograd.grad((q**3).sum(), x, create_graph=True)
        (g * g).sum().backward()
        found.append(x.grad)
    assert found[0].placements == (ROWS,)
    close(*found, atol=1e-9 * float(found[1].abs().max()))


# -- errors ------------------------------------------------------------------------------------


@case()
def bad_entries():
    """One shard has them, and every process says so."""
    for value, placement in itertools.product((torch.nan, torch.inf), (ROWS, COLUMNS, WHOLE)):
        a = matrix(9, 3)
        a[8, 1] = value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = distributed(a, mesh.line, (placement,))
            alike(lambda x=x: polarlib.orthogonalize(x), ValueError, "NaN or infinity")
            polar = functools.partial(polarlib.polar, x, method="newton_schulz")
            alike(polar, ValueError, "NaN or infinity")
            r = polar(check_finite=False)
        assert r.unitary.full_tensor().isnan().all()
    stack = matrix(4, 5, 2)
    stack[3, 0, 0] = torch.nan
    x = distributed(stack, mesh.line, (ROWS,))
    alike(lambda: polarlib.orthogonalize(x), ValueError, "NaN or infinity")


@case()
def bad_arguments():
    x = distributed(matrix(9, 3), mesh.line, (ROWS,))
    alike(lambda: polarlib.polar(x, method="best"), ValueError, "unknown method 'best'")
    alike(lambda: polarlib.orthogonalize(x, schedule="best"), ValueError, "best")
    alike(lambda: polarlib.orthogonalize(x, steps=0), ValueError, "steps")
    unknown = DTensor.from_local(matrix(9, 3), mesh.line, (Partial("xor"),), run_check=False)
    for f in polarlib.orthogonalize, polarlib.polar:
        alike(lambda f=f: f(unknown), ValueError, "has the placement Partial(xor)")
    empty = DTensor.from_local(torch.empty(3, 3, device="meta"), mesh.line, (ROWS,))
    for f in polarlib.orthogonalize, polarlib.polar:
        alike(lambda f=f: f(empty), TypeError, "is a DTensor without entries")
    whole = distributed(matrix(9), mesh.line, (WHOLE,))
    alike(lambda: polarlib.orthogonalize(whole), ValueError, "must be a matrix")
    alike(lambda: polarlib.orthogonalize_all([x, whole]), ValueError, "gradients[1]")
    tol = {"method": "newton_schulz", "rtol": 1e-30, "throw": True}
    alike(lambda: polarlib.polar(x, **tol), polarlib.ConvergenceWarning, "1.00e-30")


@case()
def differing_shapes():
    """Of which sums would not end, or would abort a process."""
    last = dist.get_rank() == PROCESSES - 1
    for shape, what in (
        ((2 + last, 4, 3), "8 to 12 along axis -3"),  # a stack
        ((3 - last, 3), "8 to 12 along axis -2"),
        ((5, 3 - last), "2 to 3 along axis -1"),
        ((5, 3) if last else (5, 3, 3), "0 to 20 along axis -3"),
    ):
        x = DTensor.from_local(matrix(*shape), mesh.line, (ROWS,), run_check=False)
        for f in polarlib.orthogonalize, polarlib.polar:
            alike(lambda x=x, f=f: f(x), ValueError, "differ between processes", what, "shape=")


@case()
def numbers_are_agreed():
    """A number that decides is the same everywhere, should processes round differently."""
    number = torch.full((1, 1), float(dist.get_rank()), dtype=torch.float64)
    for where in mesh.line, mesh.square:
        x = DTensor.from_local(number, where, run_check=False)
        assert ops_of(x).item(x) == 0.0
        assert ops_of(x).to_host(x).item() == 0.0


def refusing(x, spd):
    """Functions that need factorisations, or entries of one process."""
    yield from (lambda m=m: polarlib.polar(x, method=m) for m in ("svd", "qdwh", "qr"))
    yield lambda: polarlib.polar(x, method="newton_schulz", completion=False)
    yield from taking_no_dtensors(x, spd)


def taking_no_dtensors(x, spd):
    whole = x.full_tensor()
    yield lambda: polarlib.nearest_rotation(x)
    yield lambda: polarlib.procrustes(x, whole)
    yield lambda: polarlib.procrustes(whole, x)
    yield lambda: polarlib.sqrtm_psd(spd)
    yield lambda: polarlib.inverse_root(spd, 2)
    yield lambda: polarlib.top_singular(x, 2)
    yield lambda: polarlib.measure(x, "jordan")
    yield lambda: low_rank.power_step(x, x)
    yield lambda: polarlib.polar_tall(x)
    for norm in norms.spectral(), norms.nuclear(), norms.frobenius(), norms.lp(3), norms.ky_fan(2):
        yield from (lambda f=f: f(x) for f in (norm, norm.lmo, norm.dual_norm, norm.sharp))
    yield lambda: norms.modular([norms.spectral()], [1.0])([x])
    yield lambda: norms.spectral_power(x, 0.5)
    yield lambda: norms.duality_gap(norms.spectral(), x, x)
    yield lambda: derivatives.polar_jvp(x, x)
    yield lambda: derivatives.orthogonalize_vjp(x, x)


@case()
def refusals():
    for placements in (ROWS,), (COLUMNS,), (Partial(),):
        a = matrix(6, 6)
        x = distributed(a, mesh.line, placements)
        spd = distributed(a @ a.mT + torch.eye(6), mesh.line, placements)
        # A pending sum is made, and is whole.
        which = taking_no_dtensors if Partial() in placements else refusing
        for f in which(x, spd):
            alike(f, (TypeError, ValueError))


@case()
def whole_matrices_take_every_method():
    a = matrix(8, 3)
    x = distributed(a, mesh.square, (WHOLE, Partial()))
    for how in {}, {"method": "qdwh"}, {"method": "qr"}, {"completion": False}:
        r, want = polarlib.polar(x, **how), polarlib.polar(a, **how)
        assert r.unitary.placements == r.hermitian.placements == (WHOLE, WHOLE)
        close(r.unitary, want.unitary)
        close(r.hermitian, want.hermitian)
    close(polarlib.nearest_orthogonal(x), polarlib.nearest_orthogonal(a))


@case()
def elementwise_steps():
    x = distributed(matrix(9, 3), mesh.line, (ROWS,))
    a, q = x.full_tensor(), matrix(3, 1)
    for f in (
        lambda m, g: updates.ema(m, g, 0.9),
        lambda m, g: updates.dion(m, g, q),
    ):
        for pair in (x, a), (a, x), (x, distributed(a, mesh.square, (ROWS, WHOLE))):
            alike(lambda f=f, p=pair: f(*p), TypeError, "g must be a ", "convert one of them")
    alike(lambda: updates.dion(x, x, q), TypeError, "pass the whole tensor, m.full_tensor()")
    assert updates.dion(x.full_tensor(), x.full_tensor(), q)[0].shape == x.shape
    lmo = norms.spectral(polar=polarlib.orthogonalize).lmo
    new = updates.scg_step(x, updates.ema(x, x, 0.9), lmo, step=0.1)
    assert (new[0] if isinstance(new, tuple) else new).placements == (ROWS,)


@case()
def zz_groups_that_are_gone():
    """The last one: it ends the processes' group."""
    x = distributed(matrix(9, 3), mesh.line, (ROWS,))
    pair = DeviceMesh("cpu", [0, 1])
    y = DTensor.from_local(matrix(5, 3), pair, (ROWS,), run_check=False)
    if dist.get_rank() > 1:
        with pytest.raises(ValueError, match="not a member"):
            polarlib.orthogonalize(y)
    else:
        assert polarlib.orthogonalize(y).placements == (ROWS,)
    dist.barrier()
    dist.destroy_process_group()
    for f in polarlib.orthogonalize, lambda x: polarlib.polar(x, method="newton_schulz"):
        with pytest.raises(ValueError, match="process group is gone"):
            f(x)


# -- processes ---------------------------------------------------------------------------------


def test_four_processes():
    case.check(__file__, slow=False)


@pytest.mark.slow
def test_four_processes_slow():
    case.check(__file__, slow=True)


def test_plain_tensors_need_no_torch_distributed(monkeypatch):
    for name in "torch.distributed", "torch.distributed.tensor":
        monkeypatch.setitem(sys.modules, name, None)
    a = torch.eye(3).requires_grad_()
    polarlib.orthogonalize(a).sum().backward()
    assert polarlib.polar(torch.eye(3)).converged


if __name__ == "__main__":
    case.main()
