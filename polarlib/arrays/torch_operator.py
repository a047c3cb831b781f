"""orthogonalize as one operator of torch, ``polarlib::orthogonalize``, for what records.

torch.compile, torch.export, torch.jit.trace, meta and fake tensors record or only announce what is
done. They get one operator, whose inside is the eager function, unseen: it depends on no number
that was there when it was recorded. Eager calls do without it. Its second argument is text, so
that programs can be saved; a process that loads one imports torch first, and then polarlib.

polarlib does not import torch: the operator is made when torch is there.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

from polarlib.arrays.entry import as_matrix
from polarlib.arrays.ops import Ops
from polarlib.arrays.settings import at_trace_time

Array = Any

_LOCK = threading.Lock()
_defined: list[Any] = []


def takes(g: Any) -> bool:
    """Whether torch.compile can hand something to the operator: dense matrices in one part."""
    torch = sys.modules["torch"]
    dense = isinstance(g, torch.Tensor) and g.layout == torch.strided and g.ndim >= 2
    return dense and not hasattr(g, "placements")


@at_trace_time
def is_transformed() -> bool:
    """Whether torch.func differentiates or batches, which rules of operators do not serve."""
    return bool(sys.modules["torch"]._C._functorch.maybe_current_level() is not None)


def is_traced(x: Array, ops: Ops) -> bool:
    """Whether torch records what is done with `x`, for tensors of other entries."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor) and ops.is_abstract(x)


def call(x: Array, options: str) -> Array:
    """Call the operator; torch.compile reads this."""
    return sys.modules["torch"].ops.polarlib.orthogonalize(x, options)


def define(
    run: Callable[[Array, str], Array], derive: Callable[[Array, Array, str], Array]
) -> None:
    """Make the operator once torch is there, and once only.

    Parameters
    ----------
    run : callable
        The function of a tensor and options.
    derive : callable
        ``derive(x, e, options)`` is the gradient with respect to x from one of the result.
    """
    torch = sys.modules.get("torch")
    with _LOCK:
        if torch is not None and not _defined:
            _defined.extend(_made(torch, run, derive))


def _made(torch: Any, run: Callable[..., Array], derive: Callable[..., Array]) -> tuple[Any, Any]:
    def eager(f: Callable[..., Array], *tensors: Array, options: str) -> Array:
        with torch.no_grad():
            result = f(*(t.detach() for t in tensors), options)
        return result.contiguous()

    def like(x: Array) -> Array:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    operator = functools.partial(torch.library.custom_op, mutates_args=())

    whole = operator(
        "polarlib::orthogonalize",
        lambda x, options: eager(run, as_matrix(x, "g")[0], options=options),
        schema="(Tensor x, str options) -> Tensor",
    )
    gradient = operator(
        "polarlib::orthogonalize_gradient",
        lambda x, e, options: eager(derive, x, e, options=options),
        schema="(Tensor x, Tensor e, str options) -> Tensor",
    )

    whole.register_fake(lambda x, options: like(as_matrix(x, "g")[0]))
    gradient.register_fake(lambda x, e, options: like(x))

    def keep(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.options = inputs
        ctx.save_for_backward(x)

    def backward(ctx: Any, e: Array) -> tuple[Array, None]:
        found: Array = gradient(*ctx.saved_tensors, e, ctx.options)
        return found, None

    def refuse(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(
            "orthogonalize has no second derivative where torch.compile, torch.export or "
            "torch.jit.trace records it: compute it in eager mode"
        )

    whole.register_autograd(backward, setup_context=keep)
    gradient.register_autograd(refuse)

    def batched(op: Any) -> Callable[..., tuple[Array, int]]:
        def rule(info: Any, in_dims: Any, *args: Any) -> tuple[Array, int]:
            *tensors, options = args
            moved = (
                x.expand(info.batch_size, *x.shape) if d is None else x.movedim(d, 0)
                for x, d in zip(tensors, in_dims, strict=False)
            )
            return op(*moved, options), 0

        return rule

    whole.register_vmap(batched(whole))
    gradient.register_vmap(batched(gradient))
    return whole, gradient
