"""torch tensors that say they are on a CUDA device and compute on the CPU.

    with emulated() as device:
        x = device.tensor(torch.randn(64, 32))
        q = polarlib.orthogonalize(x)       # device.counts, device.values(q)

Needs torch's CUDA build, and neither a driver nor a device. Operators are counted, and transfers
and reads of the device with the place in polarlib; tensors of different devices are refused, as on
CUDA. It proves the path that a device takes, with true values, and its branches. It proves neither
speed nor the rounding of CUDA's kernels; one operator may be several kernels (large reductions,
factorisations), and what an operator does inside is not seen.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .fake_cuda import place

CPU = torch.device("cpu")
# Operators by which the host learns an entry, or, by torch's documentation, waits for a device.
READS = re.compile(
    r"aten::(_local_scalar_dense|equal|nonzero|masked_select|is_nonzero|_linalg_check_errors"
    r"|_linalg_svd|_linalg_eigh|_linalg_eigvals|linalg_eig|linalg_lstsq|unique\w*|_unique2)(\.|$)"
)
LIBRARY = re.compile(
    r"aten::(mm|bmm|addmm|baddbmm|addbmm|mv|addmv|dot|vdot|_scaled_mm|_int_mm|geqrf|orgqr|ormqr"
    r"|linalg_(cholesky|cholesky_ex|qr|lu|lu_factor_ex|lu_solve|ldl_\w+|inv_ex|solve_triangular"
    r"|householder_product|eig|lstsq)|_linalg_(svd|eigh|eigvals|solve_ex|det|slogdet)"
    r"|triangular_solve|cholesky_solve|cholesky_inverse)(\.|$)"
)
COPIES = re.compile(r"aten::(copy_|clone|_to_copy)(\.|$)")
EMPTY = re.compile(r"aten::(new_)?empty\w*(\.|$)")
# Views by what they do; their schemas do not say it.
VIEWS = re.compile(r"(aten::_unsafe_view|prim::\w+|aten::_has_\w+|aten::is_same_size)(\.|$)")
# Operators that polarlib registers, each of which launches kernels that are not seen here.
OWN = "polarlib::"


@dataclass
class Counts:
    """What the host asked of the devices."""

    operators: Counter[str] = field(default_factory=Counter)
    libraries: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    reads: Counter[str] = field(default_factory=Counter)
    transfers: Counter[str] = field(default_factory=Counter)
    allocations: int = 0

    def summary(self) -> dict[str, int]:
        """Numbers alone."""
        return {
            "kernels": self.operators.total(),
            "library calls": self.libraries.total(),
            "waits": self.reads.total(),
            "to device": self.transfers.total(),
            "copies": self.copies.total(),
            "allocations": self.allocations,
            "own operators": sum(self.operators[n] for n in self.operators if n.startswith(OWN)),
        }


class Emulated(torch.Tensor):
    """A tensor without entries of its own; they are in ``inner``, on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> Emulated:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
            requires_grad=False,
        )
        # As on tensors of torch's own, these two decide what is resolved before an operator.
        torch._C._set_conj(made, inner.is_conj())
        torch._C._set_neg(made, inner.is_neg())
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Emulated({self.device}, {tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{function.name()} of an emulated tensor, outside of emulated()")


class Device(TorchDispatchMode):
    """Runs operators of emulated tensors on the CPU, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def tensor(self, x: torch.Tensor, index: int = 0) -> Emulated:
        """Return a copy on an emulated device, outside of all counts."""
        with self.paused():
            # A copy keeps the strides of a dense tensor.
            return Emulated(x.detach().clone(), torch.device("cuda", index))

    def values(self, x: torch.Tensor) -> torch.Tensor:
        """Return the entries of a tensor, uncounted."""
        with self.paused():
            x = x.detach() if not isinstance(x, Emulated) else x
            return x.inner if isinstance(x, Emulated) else x

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let operators pass by."""
        with torch.utils._python_dispatch._disable_current_modes():
            yield

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        inside = [x for x in tensors if isinstance(x, Emulated)]
        name = function.name()
        device = self._device(name, args, kwargs, tensors, inside)
        if device.type == "cuda" or inside:
            self._note(function, name, args, tensors, inside, device)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs = kwargs | {"device": CPU}
        plain = tree_map(_inner, (args, kwargs))
        result = function(*plain[0], **plain[1])
        known = {id(x.inner): x for x in inside}

        def back(x: Any) -> Any:
            if not isinstance(x, torch.Tensor) or isinstance(x, Emulated):
                return x
            if id(x) in known:
                same = known[id(x)]
                if same.shape != x.shape or same.stride() != x.stride():
                    raise NotImplementedError(f"{name} changes the shape of its argument")
                return same
            return Emulated(x, device) if device.type == "cuda" else x

        return tree_map(back, result)

    def _device(
        self, name: str, args: Any, kwargs: Any, tensors: list[Any], inside: list[Any]
    ) -> torch.device:
        """Where the result lies; an error if arguments lie on several devices."""
        asked = kwargs.get("device")
        if name.startswith("aten::copy_"):
            return args[0].device
        if asked is not None:
            found = torch.device(asked)
            if found.type == "cuda" and found.index is None:
                found = torch.device("cuda", 0)
            return found
        if not inside:
            return CPU
        # A number on the CPU goes along as an argument of a kernel.
        places = {x.device for x in tensors if isinstance(x, Emulated) or x.ndim}
        if len(places) > 1 and not COPIES.match(name):
            shown = ", ".join(sorted(map(str, places)))
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found {shown}: {name}"
            )
        return inside[0].device

    def _note(
        self,
        function: Any,
        name: str,
        args: Any,
        tensors: list[Any],
        inside: list[Any],
        device: torch.device,
    ) -> None:
        counts, short = self.counts, name.partition("::")[2]
        crosses = {device.type, *(x.device.type for x in tensors)}
        if COPIES.match(name) and crosses == {"cpu", "cuda"}:
            to = counts.transfers if device.type == "cuda" else counts.reads
            to[f"{short} [{place()}]"] += 1
            return
        if READS.match(name):
            counts.reads[f"{short} [{place()}]"] += 1
        if name.startswith(("aten::_local_scalar_dense", "aten::_linalg_check_errors")):
            return
        if EMPTY.match(name):
            counts.allocations += 1
        elif LIBRARY.match(name):
            counts.libraries[name] += 1
        elif COPIES.match(name):
            counts.copies[name] += 1
        elif not VIEWS.match(name) and not _is_view(function):
            counts.operators[name] += 1


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, Emulated) else x


def _is_view(function: Any) -> bool:
    """Whether all results lie in the storage of arguments, which is not written."""
    infos = [r.alias_info for r in function._schema.returns]
    return bool(infos) and all(i is not None and not i.is_write for i in infos)


@contextlib.contextmanager
def emulated() -> Iterator[Device]:
    """Devices that are not there, for tensors made within the block."""
    lifts = torch._C._only_lift_cpu_tensors()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(torch.cuda, "_lazy_init", lambda: None))
        stack.enter_context(_replaced(torch.cuda, "is_current_stream_capturing", lambda: False))
        # A guard that changes no device, for torch's own changes of the current one.
        torch._C._ensureCUDADeviceGuardSet()
        # Numbers are made on the CPU and then transferred where that is seen.
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            with Device() as device:
                yield device
        finally:
            torch._C._set_only_lift_cpu_tensors(lifts)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
