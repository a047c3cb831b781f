"""Settings of libraries and of the caller during a call: errors, promotion, warnings."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import numpy as np

from polarlib.arrays.library import import_library

F = TypeVar("F", bound=Callable[..., Any])


def under_default_settings(f: F) -> F:
    """Run a function under JAX's default rules of promotion, and without its checks for NaN.

    The caller's settings may be stricter, but a failed trial factorisation gives NaN in
    intermediate results. NumPy's handling of floating-point errors is disabled: intermediate
    results underflow and overflow, and relevant problems are reported by the result, by a warning
    of polarlib or by an exception. CuPy's current device is that of the arrays. The settings are
    for the caller's thread, and are restored afterwards. NaN in a result of JAX is then reported.
    """
    quiet = ignore_float_errors(on_its_device(f))

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        jax = sys.modules.get("jax")
        if traced_by_dynamo():  # torch.compile does not record settings
            return f(*args, **kwargs)
        if jax is None or not hasattr(jax, "config"):  # JAX is being imported
            return quiet(*args, **kwargs)
        config = jax.config
        with contextlib.ExitStack() as settings:
            if config.jax_numpy_dtype_promotion != "standard":
                settings.enter_context(jax.numpy_dtype_promotion("standard"))
            if config.jax_numpy_rank_promotion != "allow":
                settings.enter_context(jax.numpy_rank_promotion("allow"))
            searches = config.jax_debug_nans, config.jax_debug_infs
            if not any(searches):
                return quiet(*args, **kwargs)
            for search in (jax.debug_nans, jax.debug_infs):
                settings.enter_context(search(False))
            result = quiet(*args, **kwargs)
        if searches[0] and not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(result)):
            # Under the caller's settings an operation of JAX raises an error for NaN.
            jax.tree.map(lambda x: x + x if isinstance(x, jax.Array) else x, result)
        return result

    return cast(F, run)


def on_its_device(f: F) -> F:
    """Run a function with the device of its arrays as CuPy's current one.

    CuPy computes on the current device for arrays of every device: it refuses other arrays, or
    reads them over the bus. The device is that of the first array, which may be in a list. CuPy is
    not imported.
    """

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        kind = getattr(sys.modules.get("cupy"), "ndarray", None)  # None during the import of CuPy
        x = None if kind is None else _first_of(kind, (*args, *kwargs.values()))
        if x is None:
            return f(*args, **kwargs)
        with x.device:
            return f(*args, **kwargs)

    return cast(F, run)


def _first_of(kind: type, values: Any) -> Any:
    for value in values:
        if isinstance(value, kind):
            return value
        if isinstance(value, list | tuple):
            array = _first_of(kind, value)
            if array is not None:
                return array
    return None


def current_device() -> contextlib.AbstractContextManager[Any]:
    """Return a context that keeps CuPy's current device, without importing CuPy."""
    device = getattr(getattr(sys.modules.get("cupy"), "cuda", None), "Device", None)
    return contextlib.nullcontext() if device is None else _current(device)


def _current(device: Callable[[], Any]) -> contextlib.AbstractContextManager[Any]:
    try:
        return cast(contextlib.AbstractContextManager[Any], device())
    except RuntimeError:  # CuPy is imported, but there is no device
        return contextlib.nullcontext()


@contextlib.contextmanager
def double_enabled(library: str) -> Iterator[None]:
    """Enable double precision in JAX, the library in which it is disabled by default."""
    if library != "jax":
        yield
        return
    config = import_library("jax").config
    before = config.jax_enable_x64
    config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        config.update("jax_enable_x64", before)


def traced_by_dynamo() -> bool:
    """Return whether torch.compile is tracing this code, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_dynamo_compiling()


def at_trace_time(f: F) -> F:
    """Let torch.compile call a function instead of tracing it, once for equal arguments.

    This is ``torch.compiler.assume_constant_result`` without importing torch.
    """
    f._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return f


def looks(f: F, *, reason: str = "") -> F:
    """Exclude a function that reads numbers from torch.compile, by one graph break for all numbers.

    With ``fullgraph=True``, which allows no break, torch's error contains the reason.
    """
    reason = reason or (
        f"polarlib.{f.__qualname__} reads entries of its matrix, which "
        "torch.compile(fullgraph=True) hides: leave fullgraph out, call it outside, or use "
        "orthogonalize(), which reads none"
    )
    return _for_dynamo(f, lambda torch: torch.compiler.disable(f, reason=reason))


def looks_at_nothing(f: F) -> F:
    """Let torch.compile record a function's operations on tensors, without tracing its Python.

    Arguments and results are tensors, numbers, text, and lists and tuples of them.
    """
    return _for_dynamo(f, lambda torch: torch.compiler.allow_in_graph(f))


def _for_dynamo(f: F, wrap: Callable[[Any], Any]) -> F:
    """Return `f`, replaced for torch.compile by ``wrap(torch)``, which is made at first use."""
    made: list[Any] = []

    @at_trace_time
    def make() -> None:
        if not made:
            made.append(wrap(sys.modules["torch"]))

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        if traced_by_dynamo():
            make()
            return made[0](*args, **kwargs)
        return f(*args, **kwargs)

    return cast(F, run)


# Per thread; warnings.catch_warnings would change the filters of all threads.
_held: ContextVar[list[str] | None] = ContextVar("held", default=None)


@contextlib.contextmanager
def held_back() -> Iterator[list[str]]:
    """Collect the messages of polarlib's warnings in a list instead of issuing them.

    Examples
    --------
    >>> with held_back() as messages:
    ...     warn("too steep", UserWarning)
    >>> messages
    ['too steep']
    """
    messages: list[str] = []
    token = _held.set(messages)
    try:
        yield messages
    finally:
        _held.reset(token)


def warn(message: str, category: type[Warning]) -> None:
    """Warn with the location of the line that called polarlib, from any depth of calls."""
    held = _held.get()
    if held is not None:
        held.append(message)
        return
    frame, level = sys._getframe(1), 2
    here = os.path.dirname(os.path.dirname(__file__))
    while frame.f_back and frame.f_code.co_filename.startswith((here, "<string>")):  # dataclasses
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def ignore_float_errors(f: F) -> F:
    """Run a function with NumPy's handling of floating-point errors disabled.

    With `numpy.errstate` as a decorator, `warn` would report its frame as the caller.
    """

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):
            return f(*args, **kwargs)

    return cast(F, run)
