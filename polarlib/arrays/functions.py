"""Functions of arrays composed of primitives of :class:`Ops`, the same for every library."""

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
    """Return which singular values exceed ``max(m, n) eps sigma_1``, as for the numerical rank."""
    cut = max(shape[-2:]) * format_of(format_name(s)).epsilon
    return s > cut * ops.max(s, axis=-1, keepdims=True)


def lies_in_one_place(x: Array, ops: Ops) -> bool:
    """Return whether `x` has entries on one device, so that constants for it may be cached.

    Arrays made in a trace end with it, and constants for a sharded array must be sharded.
    """
    known = not (ops.is_abstract(x) or ops.is_traced(x))
    return known and not (ops.is_sharded(x) or placements(x))


def _may_be_joined(x: Array, ops: Ops) -> bool:
    # Only for arithmetic of the library itself, not for wrappers (number formats, dual numbers).
    if placements(x):  # numbers that every process has are read by one broadcast
        return not (ops.is_sharded(x) or ops.is_abstract(x) or ops.is_traced(x))
    return lies_in_one_place(x, ops) and not ops_of(x)._lies_on_several(x)


def read(ops: Ops, *arrays: Array) -> list[np.ndarray]:
    """Copy small real arrays to NumPy with one transfer, and one synchronisation of a device."""
    if ops.host or len(arrays) == 1 or not all(_may_be_joined(x, ops) for x in arrays):
        return [ops.to_host(x) for x in arrays]
    xp = ops.xp
    wide = max(arrays, key=lambda x: format_name(x) == "float64")
    flat = [xp.reshape(astype_like(x, wide, ops), (-1,)) for x in arrays]
    ends = np.cumsum([math.prod(x.shape) for x in arrays])
    parts = np.split(ops.to_host(xp.concat(flat)), ends[:-1])
    return [part.reshape(x.shape) for part, x in zip(parts, arrays, strict=True)]


class _Place:
    """A device as a dictionary key, since devices of CuPy have no hash."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Place) and bool(self.device == other.device)

    def __hash__(self) -> int:
        return hash(str(self.device))


def kept(make: Callable[..., np.ndarray], given: tuple[Any, ...], like: Array, ops: Ops) -> Array:
    """Return ``make(*given)`` on the device and in the dtype of `like`; it must not be written.

    The array is transferred once and cached, if possible.
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
    """Return the real part; real arrays unchanged."""
    return ops.xp.real(x) if is_complex(x) else x


def common_dtype(x: Array, y: Array, ops: Ops) -> Any:
    """Return the dtype to which the library promotes two; float32 without a rule for 16 bits."""
    try:
        return ops.xp.result_type(x, y)
    except TypeError:
        return ops.xp.result_type(at_least_single(x, ops), at_least_single(y, ops))


def as_scalar(s: Array, ops: Ops) -> Array | float:
    """Return Python's float for a single number on the host, otherwise the array."""
    return ops.item(s) if ops.host and math.prod(s.shape) == 1 else s


def trace(x: Array, ops: Ops) -> Array:
    """Return the trace of Hermitian matrices, in at least single precision, shape (..., 1, 1)."""
    diagonal = at_least_single(ops._diagonal(x), ops)
    diagonal = ops.xp.real(diagonal) if is_complex(x) else diagonal
    return ops.xp.sum(diagonal, axis=-1)[..., None, None]


def sqrt(s: Array | float, ops: Ops) -> Array | float:
    """Return the square root."""
    return math.sqrt(s) if isinstance(s, float) else ops.xp.sqrt(s)


def norm_1(x: Array, ops: Ops) -> Array:
    """Return the largest absolute column sum, shape (..., 1, 1)."""
    return ops.max(ops.sums(ops.xp.abs(x), -2), axis=-1, keepdims=True)


def norm_bound(x: Array, ops: Ops) -> Array:
    """Return an upper bound of the spectral norm from 1-norm and infinity norm, (..., 1, 1)."""
    norm_inf = ops.max(ops.sums(ops.xp.abs(x), -1), axis=-2, keepdims=True)
    # Two roots: the product of the norms could overflow where the bound does not.
    return ops.xp.sqrt(norm_1(x, ops)) * ops.xp.sqrt(norm_inf)


def empty_result(x: Array, ops: Ops) -> Array:
    """Return a result with the shape of `x`, without entries; it stays in a recorded graph."""
    return ops.divide(x, 1.0)


def fits(shape: tuple[int, ...], like: Array, ops: Ops) -> bool:
    """Return whether an array, in at least single precision, fits in the host's memory.

    True if `like` is on another or an unknown device: the library then raises an error.
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
