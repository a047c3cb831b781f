"""Functions of arrays that are made of primitives of :class:`Ops`, alike for every library."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from polarlib.arrays.formats import format_of
from polarlib.arrays.library import (
    astype_like,
    at_least_single,
    bytes_of_entry,
    format_name,
    is_complex,
    on_cpu,
)
from polarlib.arrays.memory import physical_memory
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.torch_sharded import placements

Array = Any


def above_noise(s: Array, shape: tuple[int, ...], ops: Ops) -> Array:
    """Which singular values exceed ``max(m, n) eps sigma_1``: they make the numerical rank."""
    cut = max(shape[-2:]) * format_of(format_name(s)).epsilon
    return s > cut * ops.max(s, axis=-1, keepdims=True)


def lies_in_one_place(x: Array, ops: Ops) -> bool:
    """Whether `x` has entries, on one device, so that a constant that meets it may be kept.

    What is made in a trace ends with it, and what meets an array in parts has to lie in parts.
    """
    known = not (ops.is_abstract(x) or ops.is_traced(x))
    return known and not (ops.is_sharded(x) or placements(x))


def _may_be_joined(x: Array, ops: Ops) -> bool:
    # Of the library itself: a number format or a dual number wraps it.
    return lies_in_one_place(x, ops) and not ops_of(x)._lies_on_several(x)


def read(ops: Ops, *arrays: Array) -> list[np.ndarray]:
    """Copy small real arrays to NumPy, with one transfer: a device is waited for once."""
    if ops.host or len(arrays) == 1 or not all(_may_be_joined(x, ops) for x in arrays):
        return [ops.to_host(x) for x in arrays]
    xp = ops.xp
    wide = max(arrays, key=lambda x: format_name(x) == "float64")
    flat = [xp.reshape(astype_like(x, wide, ops), (-1,)) for x in arrays]
    ends = np.cumsum([math.prod(x.shape) for x in arrays])
    parts = np.split(ops.to_host(xp.concat(flat)), ends[:-1])
    return [part.reshape(x.shape) for part, x in zip(parts, arrays, strict=True)]


class _Place:
    """A device as a key: CuPy's have no hash."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Place) and bool(self.device == other.device)

    def __hash__(self) -> int:
        return hash(str(self.device))


def kept(make: Callable[..., np.ndarray], given: tuple[Any, ...], like: Array, ops: Ops) -> Array:
    """Return ``make(*given)`` where `like` lies and in its dtype: never written.

    It is transferred once, and not in each call, where that is possible.
    """
    if lies_in_one_place(like, ops):
        return _placed(make, given, ops.xp, like.dtype, _Place(ops._device_of(like)))
    return astype_like(ops.from_host(make(*given), like), like, ops)


@functools.lru_cache(maxsize=64)
def _placed(
    make: Callable[..., np.ndarray], given: tuple[Any, ...], xp: Any, dtype: Any, place: _Place
) -> Array:
    like = xp.empty((1, 1), dtype=dtype, device=place.device)
    ops = ops_of(like)
    return astype_like(ops.from_host(make(*given), like), like, ops)


def as_complex(x: Array, ops: Ops) -> Array:
    """Convert to the complex dtype of the same precision, at least single."""
    if is_complex(x):
        return x
    name = "complex128" if format_name(x) == "float64" else "complex64"
    return ops.xp.astype(x, ops._dtype(name))


def real_part(x: Array, ops: Ops) -> Array:
    """Return the real part; real arrays as they are."""
    return ops.xp.real(x) if is_complex(x) else x


def common_dtype(x: Array, y: Array, ops: Ops) -> Any:
    """Dtype to which the library promotes two; float32 where it has no rule, for 16 bits."""
    try:
        return ops.xp.result_type(x, y)
    except TypeError:
        return ops.xp.result_type(at_least_single(x, ops), at_least_single(y, ops))


def as_scalar(s: Array, ops: Ops) -> Array | float:
    """Python's float for a single number on the host, else the array itself."""
    return ops.item(s) if ops.host and math.prod(s.shape) == 1 else s


def trace(x: Array, ops: Ops) -> Array:
    """Trace of Hermitian matrices, in at least single precision, shape (..., 1, 1)."""
    diagonal = at_least_single(ops._diagonal(x), ops)
    diagonal = ops.xp.real(diagonal) if is_complex(x) else diagonal
    return ops.xp.sum(diagonal, axis=-1)[..., None, None]


def sqrt(s: Array | float, ops: Ops) -> Array | float:
    """Square root."""
    return math.sqrt(s) if isinstance(s, float) else ops.xp.sqrt(s)


def norm_1(x: Array, ops: Ops) -> Array:
    """Largest absolute column sum, shape (..., 1, 1)."""
    return ops.max(ops.sums(ops.xp.abs(x), -2), axis=-1, keepdims=True)


def norm_bound(x: Array, ops: Ops) -> Array:
    """Upper bound of the spectral norm by the 1-norm and the infinity norm, shape (..., 1, 1)."""
    norm_inf = ops.max(ops.sums(ops.xp.abs(x), -1), axis=-2, keepdims=True)
    # Two roots: the product of the norms may overflow where the bound does not.
    return ops.xp.sqrt(norm_1(x, ops)) * ops.xp.sqrt(norm_inf)


def empty_result(x: Array, ops: Ops) -> Array:
    """Result of the shape of `x`, which has no entries; what records `x` records it too."""
    return ops.divide(x, 1.0)


def fits(shape: tuple[int, ...], like: Array, ops: Ops) -> bool:
    """Whether an array, in at least single precision, is no larger than the host's memory.

    If `like` lies elsewhere, or it is not known where, the library is left to find out.
    """
    known = ops.in_memory and not ops.is_abstract(like) and not ops.is_sharded(like)
    if not known or not on_cpu(like):
        return True
    return math.prod(shape) * bytes_of_entry(like) <= physical_memory()


def constant(ops: Ops, f: Callable[..., Array], *arrays: Array) -> Array:
    """Return ``f(*arrays)``, whose derivatives are zero."""

    def jvp(_: Any, results: Any, __: Any) -> tuple[Array]:
        return (ops.xp.zeros_like(results[0]),)

    def vjp(*_: Any) -> Any:
        return (None,) * len(arrays)

    return ops.differentiable(lambda *x: (f(*x),), jvp, vjp, arrays, keep=True)[0]
