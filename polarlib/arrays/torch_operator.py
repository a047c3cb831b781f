"""Function orthogonalize as one operator of torch, ``polarlib::orthogonalize``, for traces.

With an array of coefficients the operator is ``polarlib::orthogonalize_by``. torch.compile,
torch.export, torch.jit.trace, meta and fake tensors record operations. They record one operator,
which calls the eager function, so that no number of the recorded tensors becomes a constant. Eager
calls do not use the operator. Its last argument is text, so that programs can be saved. A process
that loads such a program must import torch first, and then polarlib.

polarlib does not import torch: the operator is defined when torch is imported.
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
_defined: dict[str, Any] = {}
# Tensor arguments of the operators, with gradients; the first one is a matrix or a stack.
PLAIN, BY_COEFFICIENTS = "orthogonalize", "orthogonalize_by"
TENSORS = {PLAIN: ("x",), BY_COEFFICIENTS: ("x", "c")}


def takes(g: Any, c: Any = None) -> bool:
    """Return whether the operator accepts an object in torch.compile: dense, unsharded matrices.

    With `c`, whether the operator with coefficients does: for real floating-point matrices.
    """
    torch = sys.modules["torch"]
    dense = isinstance(g, torch.Tensor) and g.layout == torch.strided and g.ndim >= 2
    if c is not None and not (takes(c) and c.ndim == 2 and c.is_floating_point()):
        return False
    return dense and not hasattr(g, "placements")


@at_trace_time
def is_transformed() -> bool:
    """Return whether torch.func differentiates or batches, which operators do not support."""
    return bool(sys.modules["torch"]._C._functorch.maybe_current_level() is not None)


def is_traced(x: Array, ops: Ops) -> bool:
    """Return whether torch records operations on `x`, for tensors with other entries."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor) and ops.is_abstract(x)


def call(x: Array, options: str) -> Array:
    """Call the operator; torch.compile reads this."""
    return sys.modules["torch"].ops.polarlib.orthogonalize(x, options)


def call_by(x: Array, c: Array, options: str) -> Array:
    """Call the operator of a matrix and coefficients; torch.compile reads this."""
    return sys.modules["torch"].ops.polarlib.orthogonalize_by(x, c, options)


def define(name: str, run: Callable[..., Array], derive: Callable[..., tuple[Array, ...]]) -> None:
    """Define an operator when torch is imported, and only once.

    Parameters
    ----------
    name : str
        One of `TENSORS`.
    run : callable
        The function of its tensors and options.
    derive : callable
        ``derive(*tensors, e, options)`` returns the gradients with respect to the tensors, from
        that with respect to the result.
    """
    torch = sys.modules.get("torch")
    with _LOCK:
        if torch is not None and name not in _defined:
            _defined[name] = _made(torch, name, run, derive)


def _made(
    torch: Any, name: str, run: Callable[..., Array], derive: Callable[..., tuple[Array, ...]]
) -> tuple[Any, Any]:
    names = TENSORS[name]

    def eager(f: Callable[..., Any], *given: Any) -> Any:
        *tensors, options = given
        with torch.no_grad():
            return f(*(t.detach() for t in tensors), options)

    def like(x: Array) -> Array:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    def gradients(*given: Any) -> Any:
        results = tuple(d.contiguous() for d in eager(derive, *given))
        return results if len(results) > 1 else results[0]

    def fake_gradients(*given: Any) -> Any:
        results = tuple(map(like, given[: len(names)]))
        return results if len(results) > 1 else results[0]

    operator = functools.partial(torch.library.custom_op, mutates_args=())
    tensors = ", ".join(f"Tensor {t}" for t in names)
    results = "Tensor" if len(names) == 1 else f"({', '.join(['Tensor'] * len(names))})"
    whole = operator(
        f"polarlib::{name}",
        lambda x, *rest: eager(run, as_matrix(x, "g")[0], *rest).contiguous(),
        schema=f"({tensors}, str options) -> Tensor",
    )
    gradient = operator(
        f"polarlib::{name}_gradient",
        gradients,
        schema=f"({tensors}, Tensor e, str options) -> {results}",
    )
    whole.register_fake(lambda x, *_: like(as_matrix(x, "g")[0]))
    gradient.register_fake(fake_gradients)

    def keep(ctx: Any, inputs: Any, output: Any) -> None:
        *given, ctx.options = inputs
        ctx.save_for_backward(*given)

    def backward(ctx: Any, e: Array) -> tuple[Array | None, ...]:
        result = gradient(*ctx.saved_tensors, e, ctx.options)
        return (*(result if len(names) > 1 else (result,)), None)

    def refuse(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(
            "orthogonalize has no second derivative where torch.compile, torch.export or "
            "torch.jit.trace records it: compute it in eager mode"
        )

    whole.register_autograd(backward, setup_context=keep)
    gradient.register_autograd(refuse)

    def batched(op: Any) -> Callable[..., tuple[Any, Any]]:
        def rule(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
            *tensors, options = args
            moved = (
                x.expand(info.batch_size, *x.shape) if d is None else x.movedim(d, 0)
                for x, d in zip(tensors, in_dims, strict=False)
            )
            result = op(*moved, options)
            return result, (0,) * len(result) if isinstance(result, tuple) else 0

        return rule

    whole.register_vmap(batched(whole))
    gradient.register_vmap(batched(gradient))
    return whole, gradient
