"""torch: matrices that the processes of a DeviceMesh compute for each other.

A *piece* is a slab ``low:high`` of the first axis of an array, with its owner
(`polarlib.orthogonalization.owners`). In each round every owner receives the entries of its pieces
from the processes that have them, by one all-to-all, and sends its results to those that need them:
by one all-gather, or a broadcast each, where every process needs all of an array, by one all-to-all
otherwise. Receptions of all rounds are started first, and the results of a round are sent while the
next one is computed.
Which process sends what is a function of shapes and placements, so that all processes agree on it.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from polarlib.arrays.library import import_library
from polarlib.arrays.ops import ops_of
from polarlib.arrays.torch_autograd import is_differentiated
from polarlib.arrays.torch_messages import (
    Box,
    Messages,
    Plan,
    Rows,
    boxes_of,
    empty,
    plan_of,
    within,
)
from polarlib.arrays.torch_sharded import _summed, dtensor, laid_as, placements, with_whole

Array = Any
T = TypeVar("T")


class TorchMesh:
    """The processes of a DeviceMesh of any dimensions, in the order of their group.

    Raises
    ------
    ValueError
        If this process is not a member, or the process group is gone.
    """

    library = "torch"
    kind = "torch.distributed.device_mesh.DeviceMesh"

    def __init__(self, mesh: Any) -> None:
        if mesh.get_coordinate() is None:
            raise ValueError(
                f"mesh is {mesh}, of which this process is not a member; call this only on the "
                "processes of the mesh"
            )
        self.dist = import_library("torch.distributed")
        self.torch: Any = import_library("torch")
        try:
            mesh.get_all_groups()
            self.group = _group(mesh, self.dist.group.WORLD)
        except Exception as error:  # torch has several kinds
            raise ValueError(
                f"mesh is a DeviceMesh whose process group is gone ({error}); initialise "
                "torch.distributed and construct mesh again"
            ) from None
        self.ranks = tuple(self.dist.get_process_group_ranks(self.group))
        self.me = self.ranks.index(self.dist.get_rank())
        self.count = len(self.ranks)
        self.device = mesh.device_type

    @staticmethod
    def takes(mesh: Any) -> bool:
        """Return whether an object is a DeviceMesh."""
        module = sys.modules.get("torch.distributed.device_mesh")
        return module is not None and isinstance(mesh, module.DeviceMesh)

    # -- checks

    def check(self, x: Array, name: str) -> str:
        """Return what must be equal on all processes, as text that begins with the name.

        Raises
        ------
        TypeError
            If `x` is not a tensor of entries that can be read.
        ValueError
            If it is on other devices or processes than those of the mesh.
        """
        if not isinstance(x, self.torch.Tensor):
            raise TypeError(
                f"mesh is a DeviceMesh of torch, but {name} is a {type(x).__name__}; pass tensors, "
                "or leave mesh out"
            )
        with self.torch.no_grad():  # reverse mode is possible
            traced = is_differentiated(x, self.torch) or ops_of(x).is_abstract(x)
        if traced:
            raise TypeError(
                f"{name} is traced or transformed by torch, which is not possible with mesh; call "
                "orthogonalize_all outside of torch.func, forward derivatives and torch.export"
            )
        if x.device.type != self.device:
            raise ValueError(
                f"{name} is on {x.device.type}, but mesh is of devices of type {self.device}; move "
                "one of them"
            )
        where = placements(x)
        ranks = where[0].mesh.flatten().tolist() if where else self.ranks
        if set(ranks) != set(self.ranks):
            raise ValueError(
                f"{name} is a DTensor on processes {sorted(ranks)}, but mesh has processes "
                f"{sorted(self.ranks)}; pass a mesh of the same processes"
            )
        laid = f" {x.placements} on {where[0].mesh.tolist()}" if where else ""
        grad = " with gradients" if self._records([x]) else ""
        return f"{name} {str(x.dtype).rpartition('.')[2]} of shape {tuple(x.shape)}{laid}{grad}"

    def _records(self, xs: Sequence[Array]) -> bool:
        return bool(self.torch.is_grad_enabled() and any(x.requires_grad for x in xs))

    def agreed(self, read: Callable[[], tuple[T, list[str]]]) -> T:
        """Return the first result of a function, whose second one describes this process's list.

        All processes raise one error if descriptions differ, or if one has an error. The cost is an
        all-reduce of 16 bytes, which the host waits for; texts are exchanged only if they differ.
        """
        try:
            value, texts = read()
            error = None
        except Exception as raised:
            error, texts = raised, [f"{type(raised).__name__}: {raised}"]
        mine = (error is None, texts)
        digest = hashlib.sha256(repr(mine).encode()).digest()
        number = int.from_bytes(digest[:7], "big")
        ends = self.torch.tensor([number, -number], device=self.device)
        self.dist.all_reduce(ends, self.dist.ReduceOp.MAX, group=self.group)
        highest, lowest = ends.tolist()
        if highest != -lowest:
            everyone: list[Any] = [None] * self.count
            self.dist.all_gather_object(everyone, mine, group=self.group)
            raise ValueError(_difference(everyone, self.ranks)) from error
        if error is not None:
            raise error
        return value

    # -- computation

    def stays(self, x: Array) -> bool:
        """Return False: every array is sent to owners."""
        return False

    def may_divide(self, x: Array) -> bool:
        """Return whether a stack may be divided along its first axis."""
        return True

    def compute(
        self,
        arrays: Sequence[Array],
        rounds: Sequence[Sequence[Any]],
        run: Callable[..., list[Array]],
        c: Array = None,
    ) -> list[Array]:
        """Return results for arrays, each in the placements of its array.

        ``run(pieces, c, numbers)`` returns the results for tensors, which are pieces of the arrays
        with these numbers.
        """
        # Placements other than Replicate and Shard become Replicate.
        why = "a strided shard is not a part of its matrix"
        xs = [with_whole(_summed(x), lambda *_: False, why) if placements(x) else x for x in arrays]
        plans = [
            plan_of(tuple((p, tuple(xs[p.array].shape), self._boxes(xs[p.array])) for p in pieces))
            for pieces in rounds
        ]
        through = functools.partial(self._through, plans=plans)
        c = c.full_tensor() if placements(c) else c
        parts = [x.to_local() if placements(x) else x for x in xs]
        if self._records([*parts, *([] if c is None else [c])]):
            results = _owned().apply(self, through, run, c, *parts)
        else:
            results = through(parts, lambda _, pieces, numbers: run(pieces, c, numbers))
        wrapped = (self._wrapped(q, x) for q, x in zip(results, xs, strict=True))
        return [laid_as(u, a) for u, a in zip(wrapped, arrays, strict=True)]

    def _wrapped(self, local: Array, x: Array) -> Array:
        return dtensor(local, x.device_mesh, x.placements, x.shape) if placements(x) else local

    def _boxes(self, x: Array) -> tuple[Box, ...]:
        """Return the box of an array that each process has; () if each has all of it."""
        where = placements(x)
        if not any(p.is_shard() for p in where[1:]):
            return ()
        return boxes_of(where[0], where[1:], tuple(x.shape), self.ranks)

    def _through(
        self,
        parts: Sequence[Array],
        f: Callable[[int, list[Array], list[int]], list[Array]],
        *,
        plans: Sequence[Plan],
    ) -> list[Array]:
        """Return the parts of results that this process has: of ``f(k, pieces, numbers)``."""
        coming = [
            Messages(self, plan.coming, plan.likes(parts), plan.part_of(parts, self.me))
            for plan in plans
        ]
        going: list[tuple[Plan, Messages]] = []
        error = None
        for k, (plan, messages) in enumerate(zip(plans, coming, strict=True)):
            owned = [n for n, p in enumerate(plan.pieces) if p.owner == self.me]
            likes, part_of = plan.likes(parts), plan.part_of(parts, self.me)
            found = {
                n: part_of(n, plan.slabs[n])
                if plan.has(n, self.me)
                else empty(plan.slabs[n], likes[n])
                for n in owned
            }
            for n, box, entries in messages.received():
                found[n][within(box, plan.slabs[n])].copy_(entries)
            if owned:
                try:
                    numbers = [plan.pieces[n].array for n in owned]
                    found = dict(zip(owned, f(k, list(found.values()), numbers), strict=True))
                except Exception as raised:
                    if self.device != "cpu":  # where no entry is read
                        raise
                    error = error or raised  # of the other processes too, after their transfers

            def of_results(n: int, box: Box, plan: Plan = plan, found: Any = found) -> Array:
                return found[n][within(box, plan.slabs[n])]

            going.append((plan, Messages(self, plan.going, likes, of_results)))
            going.append((plan, Rows(self, plan.everywhere, likes, of_results)))
        wanted = [
            self.torch.empty_like(x, memory_format=self.torch.contiguous_format) for x in parts
        ]
        for plan, messages in going:
            put = plan.part_of(wanted, self.me)
            for n, box, entries in messages.received():
                put(n, box).copy_(entries)
        if self.device == "cpu":
            self._raise_alike(error)
        return wanted

    def _raise_alike(self, error: Exception | None) -> None:
        """Raise the first process's error on all processes, if one has an error."""
        failed = self.torch.tensor(int(error is not None))
        self.dist.all_reduce(failed, self.dist.ReduceOp.MAX, group=self.group)
        if failed:
            texts: list[Any] = [None] * self.count
            self.dist.all_gather_object(texts, error and str(error), group=self.group)
            raise ValueError(next(text for text in texts if text is not None)) from error


@functools.lru_cache(maxsize=16)
def _members(world: Any, ranks: tuple[int, ...]) -> Any:
    """Return a group of some processes, which only these make."""
    return import_library("torch.distributed").new_group(ranks, use_local_synchronization=True)


def _group(mesh: Any, world: Any) -> Any:
    if mesh.ndim == 1:
        return mesh.get_group()
    if mesh.size() == world.size():
        return world
    return _members(world, tuple(sorted(mesh.mesh.flatten().tolist())))


def _difference(everyone: Sequence[tuple[bool, list[str]]], ranks: Sequence[int]) -> str:
    """Return the message for lists that differ between processes."""
    for (valid, texts), rank in zip(everyone, ranks, strict=True):
        if not valid:
            return f"gradients differ between the processes of mesh: on process {rank}, {texts[0]}"
    start = "gradients and options must be equal on all processes of mesh, got"
    lists = [texts for _, texts in everyone]
    lengths = [sum(text.startswith("gradients") for text in texts) for texts in lists]
    if len(set(lengths)) > 1:
        return f"{start} lists of lengths {_by_process(lengths, ranks)}"
    different = next(row for row in zip(*lists, strict=True) if len(set(row)) > 1)
    return f"{start} {_by_process(different, ranks)}"


def _by_process(values: Sequence[Any], ranks: Sequence[int]) -> str:
    """Return different values with the processes that have them, as text.

    Examples
    --------
    >>> _by_process([3, 4, 3], (0, 1, 2))
    '3 (processes 0, 2) and 4 (process 1)'
    """
    having: dict[str, list[int]] = {}
    for value, rank in zip(values, ranks, strict=True):
        having.setdefault(str(value), []).append(rank)
    parts = []
    for text, who in having.items():
        shortened = text if len(text) <= 100 else f"{text[:97]}..."
        plural = "es" if len(who) > 1 else ""
        parts.append(f"{shortened} (process{plural} {', '.join(map(str, who))})")
    return " and ".join(parts)


# -- derivatives


@functools.cache
def _owned() -> Any:
    """Return the operation whose derivatives go to the owners, and back, as the matrices did."""
    torch: Any = import_library("torch")

    class Owned(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
        @staticmethod
        def forward(
            ctx: Any, where: TorchMesh, through: Any, run: Any, c: Array, *parts: Array
        ) -> tuple[Array, ...]:
            fixed = None if c is None else c.detach().requires_grad_(c.requires_grad)
            graphs: dict[int, Any] = {}

            def f(k: int, pieces: list[Array], numbers: list[int]) -> list[Array]:
                leaves = [x.detach().requires_grad_() for x in pieces]
                with torch.enable_grad():
                    results = run(leaves, fixed, numbers)
                graphs[k] = leaves, results
                return [q.detach() for q in results]

            ctx.kept = where, through, graphs, fixed
            return tuple(through(parts, f))

        @staticmethod
        @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
        def backward(ctx: Any, *cotangents: Array) -> tuple[Array | None, ...]:
            where, through, graphs, c = ctx.kept
            of_c = torch.zeros_like(c) if ctx.needs_input_grad[3] else None

            def f(k: int, pieces: list[Array], numbers: list[int]) -> list[Array]:
                leaves, results = graphs[k]
                wanted = [*leaves, *([] if of_c is None else [c])]
                pairs = [(q, e) for q, e in zip(results, pieces, strict=True) if q.requires_grad]
                if not pairs:  # matrices without entries
                    return [torch.zeros_like(x) for x in leaves]
                qs, es = zip(*pairs, strict=True)
                found = torch.autograd.grad(
                    qs, wanted, es, retain_graph=True, materialize_grads=True
                )
                if of_c is not None:
                    of_c.add_(found[-1])
                return list(found[: len(leaves)])

            gradients = through(cotangents, f)
            if of_c is not None:
                where.dist.all_reduce(of_c, group=where.group)
            return None, None, None, of_c, *gradients

    return Owned
