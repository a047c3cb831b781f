"""torch's autograd: checks of what is recorded, and operations with rules of derivatives."""

from __future__ import annotations

import functools
from typing import Any

import array_api_compat

from polarlib.arrays.library import import_library

Array = Any


def is_differentiated(x: Array, torch: Any) -> bool:
    """Return whether torch records gradients or forward derivatives of `x`, or batches it."""
    if x.requires_grad and torch.is_grad_enabled():
        return True
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return True
    forward = torch.autograd.forward_ad
    # A check per tensor takes microseconds; without access to torch's level all are checked.
    if getattr(forward, "_current_level", 0) < 0:
        return False
    # Fake tensors have no such attribute: code for derivatives is right without them too.
    if torch._C._len_torch_dispatch_stack():
        return True
    return forward.unpack_dual(x).tangent is not None


def is_batch_of_gradients(x: Array) -> bool:
    """Return whether `x` is a batch of gradients of torch's ``is_grads_batched``.

    Operations batch it, and its numbers cannot be read.
    """
    if not array_api_compat.is_torch_array(x):
        return False
    return bool(import_library("torch")._C._functorch.is_legacy_batchedtensor(x))


def is_recorded() -> bool:
    """Return whether operations are recorded by torch.export or make_fx, or tensors are fake."""
    dispatch = import_library("torch.utils._python_dispatch")
    names = {type(mode).__name__ for mode in dispatch._get_current_dispatch_mode_stack()}
    return not names.isdisjoint({"FakeTensorMode", "ProxyTorchDispatchMode"})


@functools.cache
def differentiable_function() -> Any:
    """Return torch's class of operations with rules, which is made when torch is imported."""
    torch: Any = import_library("torch")

    class Differentiable(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
        @staticmethod
        def forward(f: Any, jvp: Any, vjp: Any, keep: bool, *arrays: Array) -> tuple[Array, ...]:
            # A view would refer to a matrix that is not recorded.
            return tuple(x.clone() if x._is_view() else x for x in f(*arrays))

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            _, ctx.along, ctx.against, keep, *arrays = inputs
            ctx.count = len(arrays)
            ctx.set_materialize_grads(False)
            saved = (*arrays, *(output if keep else ()))
            ctx.save_for_backward(*saved)
            ctx.save_for_forward(*saved)

        @staticmethod
        def backward(ctx: Any, *gradients: Array | None) -> tuple[Array | None, ...]:
            if all(g is None for g in gradients):
                return (None,) * int(4 + ctx.count)
            arrays, results = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
            found: tuple[Array | None, ...] = ctx.against(arrays, results, gradients)
            return (None, None, None, None, *found)

        @staticmethod
        def jvp(ctx: Any, *tangents: Array | None) -> tuple[Array, ...]:
            arrays, results = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
            known = (
                torch.zeros_like(x) if t is None else t
                for t, x in zip(tangents[4:], arrays, strict=True)
            )
            tangent: tuple[Array, ...] = ctx.along(arrays, results, tuple(known))
            return tangent

        @staticmethod
        def vmap(
            info: Any, in_dims: Any, f: Any, jvp: Any, vjp: Any, keep: bool, *arrays: Array
        ) -> Any:
            moved = (
                x.unsqueeze(0) if d is None else x.movedim(d, 0)
                for x, d in zip(arrays, in_dims[4:], strict=True)
            )
            results = Differentiable.apply(f, jvp, vjp, keep, *moved)
            return results, (0,) * len(results)

    return Differentiable


@functools.cache
def sharded_product() -> Any:
    """Return the product of aligned DTensors whose derivatives are such products."""
    torch: Any = import_library("torch")

    class Product(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
        @staticmethod
        def forward(ctx: Any, ops: Any, a: Array, b: Array) -> Array:
            ctx.ops = ops
            ctx.save_for_backward(a, b)
            return ops._product(a, b)

        @staticmethod
        def backward(ctx: Any, g: Array) -> tuple[Array | None, ...]:
            (a, b), ops = ctx.saved_tensors, ctx.ops
            _, of_a, of_b = ctx.needs_input_grad
            return (
                None,
                ops.matmul(g, ops.adjoint(b)) if of_a else None,
                ops.matmul(ops.adjoint(a), g) if of_b else None,
            )

    return Product
