"""torch: tensors sharded over the processes of a mesh, and the choice among its arithmetics."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from polarlib.arrays.library import (
    astype_like,
    at_least_single,
    import_library,
    is_known,
)
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.pytrees import Pytree
from polarlib.arrays.settings import warn
from polarlib.arrays.torch_autograd import is_differentiated, sharded_product
from polarlib.arrays.torch_checks import check_dtensor, check_sizes, refuse_transformed
from polarlib.arrays.torch_ops import TorchGradOps, TorchOps, TorchTracedOps

Array = Any


def _of_whole(name: str) -> Any:
    """Return a primitive for matrices that are whole on each process, by that of local tensors."""

    @functools.wraps(getattr(Ops, name))
    def of_whole(self: TorchShardedOps, *stacks: Array, **how: Any) -> Any:
        axes = [axis for x in stacks for axis in _layout(x)]
        if -1 in axes or -2 in axes:
            raise ValueError(
                f"{name.strip('_')} needs whole matrices, got placements {stacks[-1].placements}; "
                "gather them first, as with full_tensor()"
            )
        return self._on_local(lambda *x: getattr(ops_of(x[0]), name)(*x, **how), *stacks)

    return of_whole


class TorchShardedOps(TorchGradOps):
    """DTensors, sharded over the processes of a mesh; nothing is written in place.

    `with_shards` redistributes matrices to a layout in which only Gram matrices need sums. Along
    every dimension of the mesh the longer axis of matrices is sharded, or an axis of the stack, or
    no axis. Products, largest entries and factorisations are those of local tensors. torch's rules
    for DTensors lack some operations, gather operands silently, and fail on a process with an empty
    shard.

    Every process makes the same collectives, since all decisions depend on shapes and placements,
    or on numbers that `item` and `to_host` read from one process.
    """

    is_traced = TorchOps.is_traced
    # For DTensors torch has no rules for views of bits, sums of products and 8-bit products.
    binary_scale = Ops.binary_scale
    combine = Ops.combine
    _multiplies_rounded = Ops._multiplies_rounded
    _product_of_rounded = Ops._product_of_rounded

    def _check_sharding(self, x: Array, name: str, *, taken: bool) -> None:
        """Raise, on every process, an error for DTensors where whole matrices are needed."""
        check_dtensor(x, name, taken=taken, abstract=self.is_abstract(x))

    def functional(self, *arrays: Array) -> Ops:
        """Return this arithmetic: nothing is overwritten, and products have a rule."""
        return self

    @property
    def looks(self) -> bool:
        """Whether a fixed schedule looks for NaN: on CPUs, as at other tensors there."""
        return bool(self.device.type == "cpu")

    # -- layouts: for each dimension of the mesh the axis that is sharded along it, counted from the
    # last one, -1; 0 where none is

    def is_sharded(self, x: Array) -> bool:
        """Return whether no process has all of `x`."""
        return any(_layout(x))

    def _place(self, x: Array) -> str:
        """Return "": the devices follow from the placements."""
        return ""

    def with_shards(
        self,
        f: Callable[..., Any],
        x: Array,
        name: str = "a",
        beside: Sequence[Array] = (),
        blocks: int | tuple[int, int] = 1,
    ) -> Any:
        """Return ``f(x, *beside)``, the longer side sharded; of plain tensors if each has all."""
        laid, back, whole = self._laid_out(x, name)
        result: Any = f(laid, *(self._beside(y, laid) for y in beside))
        if not isinstance(result, Pytree):  # factors of polar
            return back(result)
        factors: Any = result
        u, h = back(factors.unitary), whole(factors.hermitian)
        return dataclasses.replace(factors, unitary=u, hermitian=h)

    def _laid_out(
        self, x: Array, name: str
    ) -> tuple[Array, Callable[[Array], Array], Callable[[Array], Array]]:
        """Return matrices in the layout, and back-transformations of results, also square ones."""
        mesh, *back = placements(x)
        layout = _layout(x)
        if not any(layout):
            local = x.redistribute(placements=back).to_local()

            def wrap(y: Array, places: list[Any] | None = None) -> Array:
                return _dtensors().DTensor.from_local(y.resolve_conj(), mesh, places)

            return local, functools.partial(wrap, places=back), wrap
        few, many = (-2, -1) if x.shape[-2] < x.shape[-1] else (-1, -2)
        target = [many if axis == few else axis for axis in layout]
        why = f"{name} is not sharded along its longer side by Shard, as products need it"
        # A shard along a dimension of one process is whole; torch would gather the others for it.
        whole = _dtensors().Replicate()
        parts = [whole if mesh.size(i) == 1 else place for i, place in enumerate(back)]
        laid = self._moved(_renamed(_summed(x), parts), target, why)
        # Also if nothing is sent: the derivative of redistribute determines the gradients' layout.
        return laid, lambda u: _renamed(u.redistribute(placements=parts), back), lambda h: h

    def _beside(self, y: Array, laid: Array) -> Array:
        """Return a small tensor, whole on every process, for matrices in the layout."""
        y = y.full_tensor() if hasattr(y, "placements") else y
        if not hasattr(laid, "placements"):
            return y
        if ops_of(y).is_traced(y):
            raise TypeError(
                f"a tensor of shape {tuple(y.shape)} records gradients beside a sharded DTensor, "
                "which are not summed over processes; detach it, or pass full_tensor()"
            )
        return self._whole(y, laid)

    def _moved(self, x: Array, layout: Sequence[int], why: str = "") -> Array:
        """Return `x` in another layout; warn if parts of a matrix that is not square are sent."""
        mesh, target = x.device_mesh, _placements(layout, x.ndim)
        if list(x.placements) == target and not why:
            return x
        now = _layout(x)
        parts = {i: mesh.size(i) for i, axis in enumerate(now) if axis}
        moving = {i for i in parts if x.placements[i] != target[i]}
        # Shards of shards along the old or the new axis move too.
        both = {j for i in moving for j in parts if i < j and now[j] in (now[i], layout[i])}
        # From one axis to another torch gathers the whole tensor on CPUs, and selects.
        exchange = mesh.device_type != "cpu" and both <= moving and all(layout[i] for i in moving)
        own = x.numel() * x.element_size() / math.prod(parts.values())
        sent = own * (math.prod(parts[i] for i in moving | both) - 1)
        if exchange:
            sent = own * sum(1 - 1 / parts[i] for i in moving)
        if sent and x.shape[-2] != x.shape[-1]:
            why = why or "the larger Hermitian factor needs all of the unitary one"
            warn(
                f"{why}: this gathers {sent / 1e6:.2g} MB per device, of shape {tuple(x.shape)} "
                f"with placements {x.placements}",
                UserWarning,
            )
        return x.redistribute(placements=target)

    def adjoint(self, x: Array) -> Array:
        """Return the conjugate transpose; a tall one is no conjugate view."""
        y = super().adjoint(x)
        return y if y.shape[-2] <= y.shape[-1] else _renamed(y, list(y.placements))

    def writable(self, x: Array) -> bool:
        """Return whether entries can be assigned; those of pending sums cannot."""
        return not any(p.is_partial() for p in x.placements)

    def _store(self, x: Array, out: Array) -> None:
        """Write `x` to a DTensor, in the placements of that."""
        out.copy_(x.redistribute(placements=out.placements))

    # -- local tensors

    def _wrapped(
        self,
        local: Array,
        like: Array,
        layout: Sequence[int],
        shape: Sequence[int],
        pending: Iterable[int] = (),
        how: str = "sum",
    ) -> Array:
        """Return the DTensor of a layout that has a local tensor, reduced where that is pending."""
        places = _placements(layout, len(shape))
        for i in pending:
            places[i] = _dtensors().Partial(how)
        return _summed(dtensor(local, like.device_mesh, places, shape))

    def _on_local(self, f: Callable[..., Any], *stacks: Array) -> Any:
        """Apply a function of stacks that keeps their leading axes to local tensors."""
        layout = [min(axes) for axes in zip(*map(_layout, stacks), strict=True)]
        results = f(*(self._moved(x, layout).to_local() for x in stacks))
        first, batch = stacks[0], stacks[0].shape[:-2]

        def wrap(y: Array) -> Array:
            fewer = first.ndim - y.ndim  # vectors of values
            shape = (*batch, *y.shape[len(batch) :])
            return self._wrapped(y, first, [d and d + fewer for d in layout], shape)

        return tuple(map(wrap, results)) if isinstance(results, tuple) else wrap(results)

    def computed_once(self, f: Callable[[Array], Array], x: Array) -> Array:
        """Return ``f(x)`` of local tensors, that of the first process which has the matrices.

        Rounding errors differ between processes, and eigenvectors of close eigenvalues with them.
        """
        dist = import_library("torch.distributed")
        mesh = x.device_mesh
        groups = [mesh.get_group(i) for i, axis in enumerate(_layout(x)) if not axis]

        def alike(local: Array) -> Array:
            result = f(local).contiguous()
            for group in groups:
                dist.broadcast(result, group=group, group_src=0)
            return result

        return self._on_local(alike, x)

    def _reduced(self, local: Array, x: Array, how: str) -> Array:
        """Reduce numbers of parts of matrices, shape (..., 1, 1), by sum or maximum."""
        layout = _layout(x)
        pending = [i for i, axis in enumerate(layout) if axis in (-1, -2)]
        batch = [0 if i in pending else axis for i, axis in enumerate(layout)]
        return self._wrapped(local, x, batch, (*x.shape[:-2], 1, 1), pending, how)

    def _entrywise(self, f: Callable[[Array], Array], x: Array) -> Array:
        """Return ``f(x)`` for a function of single entries."""
        return self._wrapped(f(x.to_local()), x, _layout(x), x.shape)

    _diagonal = _of_whole("_diagonal")
    svd = _of_whole("svd")
    singular_values = _of_whole("singular_values")
    eigh = _of_whole("eigh")
    qr = _of_whole("qr")
    determinant_sign = _of_whole("determinant_sign")
    cholesky = _of_whole("cholesky")
    solve_lower = _of_whole("solve_lower")
    inverse = _of_whole("inverse")
    eigenvalues = _of_whole("eigenvalues")

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Return ``a @ b``."""
        if not hasattr(a, "placements"):  # blocks of local tensors
            return super().matmul(a, b, out)
        a, b = self._aligned(a, b)
        if self.is_traced(a) or self.is_traced(b):
            return sharded_product().apply(self, a, b)
        return self._product(a, b)

    def gemm(
        self, a: Array, b: Array, c: Array, alpha: float = 1.0, beta: float = 0.0, out: Array = None
    ) -> Array:
        """Return ``alpha a @ b + beta c``, rounded once if there is no sum over processes."""
        a, b = self._aligned(a, b)
        layout, sums = _layout_of_product(a, b)
        known = is_known(alpha) and is_known(beta)
        if not known or sums or layout != _layout(c) or any(self.is_traced(x) for x in (a, b, c)):
            return Ops.gemm(self, a, b, c, alpha, beta)
        local = super().gemm(a.to_local(), b.to_local(), c.to_local(), alpha, beta)
        return self._wrapped(local, c, layout, c.shape)

    def _product(self, a: Array, b: Array) -> Array:
        """Return ``a @ b`` of aligned DTensors; sums over processes are in at least float32."""
        layout, sums = _layout_of_product(a, b)
        local = super().matmul(a.to_local(), b.to_local())
        batch = self.torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        local = at_least_single(local, self) if sums else local
        shape = (*batch, a.shape[-2], b.shape[-1])
        return astype_like(self._wrapped(local, a, layout, shape, sums), a, self)

    def _aligned(self, a: Array, b: Array) -> tuple[Array, Array]:
        """Return operands whose local tensors can be multiplied; replicated ones are sliced."""
        a, b = _summed(a), _summed(b)
        left, right = list(_layout(a)), list(_layout(b))
        for i, (p, q) in enumerate(zip(left, right, strict=True)):
            batch = min(p, q)
            if batch < -2:
                left[i] = batch if a.ndim >= -batch and a.shape[batch] > 1 else 0
                right[i] = batch if b.ndim >= -batch and b.shape[batch] > 1 else 0
            elif p == -1:
                right[i] = -2
            elif q == -2 and p == 0:
                left[i] = -1
            elif p == -2:
                right[i] = 0
        return self._moved(a, left), self._moved(b, right)

    def max(
        self, x: Array, *, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
    ) -> Array:
        """Return the largest entries, NaN where one is NaN; the axis is gathered."""
        axes = (axis,) if isinstance(axis, int) else axis or range(-x.ndim, 0)
        gone = {d if d < 0 else d - x.ndim for d in axes}
        layout = [0 if d in gone else d for d in _layout(x)]
        x = x.redistribute(placements=_placements(layout, x.ndim))
        return super().max(x, axis=axis, keepdims=keepdims)

    def max_abs(self, x: Array) -> Array:
        """Return the largest absolute entry, infinity for NaN, which MPI and gloo may not keep."""
        local = x.detach().to_local()
        if 0 in local.shape[-2:]:
            kind = self._real_dtype(x)
            result = self.torch.zeros((*local.shape[:-2], 1, 1), dtype=kind, device=local.device)
        else:
            result = ops_of(local).max_abs(local)
        wide = at_least_single(result.nan_to_num(math.inf, math.inf), self)
        if self.looks and any(_layout(x)):
            most = self._checked_max(wide, x)
            if x.ndim == 2:
                return self._whole(most.reshape(1, 1).to(result.dtype), x)
        return self._reduced(wide, x, "max").to(result.dtype)

    def _checked_max(self, numbers: Array, x: Array) -> Array:
        """Return the largest number of all processes; ValueError if their DTensors differ in shape.

        Sums over processes of arrays of different sizes would never end, or abort a process.
        """
        torch = self.torch
        sizes = torch.tensor([0, 0, 0, *x.shape][-5:], dtype=torch.float64)
        most = numbers.max().reshape(1) if numbers.numel() else torch.zeros(1)
        both = torch.cat([most.to(torch.float64), sizes, -sizes])
        pending = [i for i, axis in enumerate(_layout(x)) if axis]
        both = self._wrapped(both, x, [0] * x.device_mesh.ndim, both.shape, pending, "max")
        most, high, low = both.to_local().split((1, 5, 5))
        check_sizes(high.tolist(), (-low).tolist())
        return most

    def frobenius(self, x: Array) -> Array:
        """Return the Frobenius norm, the same number on every process."""
        local = x.to_local()
        local = ops_of(local).frobenius(local)
        return self.xp.sqrt(self._reduced(local * local, x, "sum"))

    def sums(self, x: Array, axis: int) -> Array:
        """Return sums along an axis, which keeps length 1."""
        return _summed(super().sums(x, axis))

    def item(self, x: Array) -> float:
        """Return the largest entry as a Python float, the same on every process."""
        return float(self._agreed(x).max())

    def to_host(self, x: Array) -> np.ndarray:
        """Copy to NumPy in float64 or complex128, the same whole on every process."""
        return super().to_host(self._agreed(x))

    def _agreed(self, x: Array) -> Array:
        """Return the whole tensor of the first process of the mesh.

        Processes may round differently, and different decisions would lead to a deadlock.
        """
        if not hasattr(x, "placements"):
            return x
        whole = x.detach().full_tensor().clone(memory_format=self.torch.contiguous_format)
        dist = import_library("torch.distributed")
        for group in x.device_mesh.get_all_groups():
            dist.broadcast(whole, group=group, group_src=0)
        return whole

    def eye(self, n: int, like: Array) -> Array:
        """Return the n x n identity, whole on every process."""
        return self._whole(self.torch.eye(n, dtype=like.dtype, device=like.device), like)

    def from_host(self, a: np.ndarray, like: Array) -> Array:
        """Move a NumPy array to the mesh of `like`, whole on every process."""
        dtype = like.dtype if a.dtype.kind == "c" else self._real_dtype(like)
        return self._whole(self.torch.asarray(np.array(a), dtype=dtype, device=like.device), like)

    def _whole(self, x: Array, like: Array) -> Array:
        """Return a DTensor of a tensor that every process has; nothing is sent."""
        return self._wrapped(x, like, [0] * like.device_mesh.ndim, x.shape)


class AnyTorchOps(TorchOps):
    """Choice among the arithmetics of torch, without instances."""

    library = "torch"

    @classmethod
    def _of(cls, x: Array, xp: Any) -> Ops:
        """Return the arithmetic for a tensor: sharded, differentiated, traced or none of them."""
        if hasattr(x, "placements"):
            return TorchShardedOps(xp, x.device)
        if is_differentiated(x, import_library("torch")):
            refuse_transformed(x)
            # Not as on the host: a norm that is read as a number would lose its gradient, and under
            # vmap no number can be read.
            return TorchGradOps(xp, x.device, open_ended=True)
        ops = TorchOps(xp, x.device, host=x.device.type == "cpu")
        return TorchTracedOps(xp, x.device) if ops.is_abstract(x) else ops


def _dtensors() -> Any:
    return import_library("torch.distributed.tensor")


def dtensor(local: Array, mesh: Any, places: Sequence[Any], shape: Sequence[int]) -> Array:
    """Return the DTensor of a shape that has a local tensor here; nothing is sent."""
    torch: Any = import_library("torch")
    whole = torch.empty(shape, device="meta")
    return _dtensors().DTensor.from_local(
        local, mesh, places, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def _renamed(x: Array, places: list[Any]) -> Array:
    """Return a DTensor in placements by which every process has the same part; nothing is sent.

    It is no conjugate view, of which torch has no rule for real and imaginary parts.
    """
    if list(x.placements) == places and not x.is_conj():
        return x
    return _dtensors().DTensor.from_local(
        x.to_local().resolve_conj(),
        x.device_mesh,
        places,
        run_check=False,
        shape=x.shape,
        stride=x.stride(),
    )


def placements(x: Array) -> tuple[Any, ...]:
    """Return mesh and placements of a DTensor, pending sums as summed; () for other arrays.

    Arrays with equal placements can be stacked.
    """
    if not hasattr(x, "placements"):
        return ()
    whole = _dtensors().Replicate()
    return (x.device_mesh, *(whole if p.is_partial() else p for p in x.placements))


def with_whole(x: Array, whole: Callable[[int, int], bool], why: str) -> Array:
    """Return a DTensor some axes of which are whole on every process; other arrays unchanged.

    ``whole(axis, parts)`` returns whether an axis, counted from -1 and so far sharded into parts,
    must be whole. A warning is issued if something is sent. Strided shards are not consecutive
    parts of an axis.
    """
    if not hasattr(x, "placements"):
        return x
    layout, parts = list(_layout(x)), dict.fromkeys(_layout(x), 1)
    for i, axis in enumerate(layout):
        parts[axis] *= x.device_mesh.size(i)
        strided = type(x.placements[i]).__name__ == "_StridedShard"
        if axis and (strided or whole(axis, parts[axis])):
            layout[i] = 0
    if layout == list(_layout(x)):
        return x
    ops: Any = ops_of(x)
    return ops._moved(_summed(x), layout, why)


def laid_as(u: Array, x: Array) -> Array:
    """Return a DTensor in the placements of another, other arrays as they are."""
    back = list(placements(x)[1:])
    return u if not back or list(u.placements) == back else u.redistribute(placements=back)


def _layout(x: Array) -> tuple[int, ...]:
    """Return the axis sharded along each dimension of a mesh, counted from -1; 0 for none.

    None is along a dimension of one process.
    """
    dims = [getattr(p, "dim", None) for p in x.placements]
    dims = [None if x.device_mesh.size(i) == 1 else d for i, d in enumerate(dims)]
    return tuple(0 if d is None else d - x.ndim if d >= 0 else d for d in dims)


def _placements(layout: Sequence[int], ndim: int) -> list[Any]:
    tensor = _dtensors()
    return [tensor.Shard(d + ndim) if d else tensor.Replicate() for d in layout]


def _layout_of_product(a: Array, b: Array) -> tuple[tuple[int, ...], set[int]]:
    """Return the layout of a product of aligned operands, and the mesh dimensions to sum over."""
    pairs = list(zip(_layout(a), _layout(b), strict=True))
    sums = {i for i, pair in enumerate(pairs) if pair == (-1, -2)}
    return tuple(0 if i in sums else min(pair) for i, pair in enumerate(pairs)), sums


def _summed(x: Array) -> Array:
    """Compute the pending sums over processes, which torch would repeat at each use."""
    for i, place in enumerate(x.placements):  # one at a time: torch warns for several
        if place.is_partial():
            places = list(x.placements)
            places[i] = _dtensors().Replicate()
            x = x.redistribute(placements=places)
    return x
