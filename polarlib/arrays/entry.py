"""Conversion of arguments to matrices of a supported library, with checks."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any, TypeVar

import array_api_compat
import numpy as np

from polarlib.arrays.checks import short, shown
from polarlib.arrays.library import dtype_name, format_name
from polarlib.arrays.memory import physical_memory
from polarlib.arrays.ops import Ops, ops_of, served
from polarlib.arrays.torch_sharded import placements

Array = Any
# Type of public functions that return the array type of their argument; a list gives an ndarray.
ArrayT = TypeVar("ArrayT", bound=Any)
# Entries below which an array fits any machine: the memory is not asked for.
LARGE = 1 << 28


def check_out(
    out: Array, x: Array, name: str, like: str, shape: tuple[int, ...] | None = None
) -> None:
    shape = tuple(x.shape) if shape is None else shape
    same = is_array(out) and ops_of(out).xp is ops_of(x).xp
    if not same or tuple(out.shape) != shape or out.dtype != x.dtype:
        got = f"{dtype_name(out)} of shape {tuple(out.shape)}" if is_array(out) else shown(out)
        got += " of another library" if is_array(out) and not same else ""
        raise TypeError(
            f"{name} must be an array like {like}, {dtype_name(x)} of shape {shape}, got {got}"
        )
    check_same_mesh(x, like, out, name)
    check_same_place(x, like, out, name)
    if not ops_of(out).writable(out):
        raise ValueError(
            f"{name} must be writable, got a read-only array, or one of an immutable library; "
            "pass another array, or leave it out"
        )


def can_hold(out: Array, x: Array) -> bool:
    """Return whether NumPy can form results in `out`, which is `x` or does not overlap it."""
    if not isinstance(out, np.ndarray) or not (out.flags.c_contiguous or out.flags.f_contiguous):
        return False
    return out is x or not np.may_share_memory(out, x)


class _Addresses:
    """Addresses of a strided tensor for NumPy, which compares them and reads no entry."""

    def __init__(self, x: Array) -> None:
        size = x.element_size()
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{size}",
            "data": (x.data_ptr(), True),
            "shape": tuple(x.shape),
            "strides": tuple(size * s for s in x.stride()),
        }


def share_memory(x: Array, y: Array) -> bool:
    """Return whether two arrays of one library have entries at one address."""
    if placements(x):
        x, y = x.to_local(), y.to_local()
    compare: Any = getattr(ops_of(x).xp, "shares_memory", None)
    if compare is None and hasattr(x, "data_ptr"):
        x, y, compare = np.asarray(_Addresses(x)), np.asarray(_Addresses(y)), np.shares_memory
    # Other libraries hide addresses.
    return x is y or (compare is not None and bool(compare(x, y)))


def copied(x: Array, out: Array | None) -> Array:
    if out is None or out is x:
        return x
    ops_of(out)._store(x, out)
    return out


def is_array(x: Any) -> bool:
    """Return whether an object is an array of a supported library."""
    # Older versions of array-api-compat accept NumPy's matrices, whose * is not elementwise.
    return array_api_compat.is_array_api_obj(x) and not isinstance(x, np.matrix)


def is_host_array(x: Any) -> bool:
    """Return whether an object is an array or a number of NumPy, of any dtype."""
    return isinstance(x, np.ndarray | np.generic)


def libraries() -> dict[str, str]:
    """Return the versions of installed array libraries by name, from metadata, without imports."""
    from importlib import metadata  # lazily: it brings the package `email`

    versions = {}
    for name in sorted({*served(), "array_api_strict"}):
        if _is_installed(name):
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:  # a package of another name, as cupy-cuda12x
                packages = metadata.packages_distributions().get(name, ())
                versions[name] = metadata.version(packages[0]) if packages else "unknown"
    return versions


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # a finder that hides it, a module without a specification
        return False


def as_matrix(a: Any, name: str = "a", *, sharded: bool = False) -> tuple[Array, Ops]:
    """Return a stack of matrices of a floating dtype, and the arithmetic of its library.

    Parameters
    ----------
    a : array or array-like
        Arrays of a supported library are used as they are. Subclasses of NumPy's arrays, and all
        objects that `numpy.asarray` accepts, become plain NumPy arrays: matrices, memory maps,
        tables, nested lists and buffers of numbers; units are dropped. Integers and booleans become
        float64, or float32 if there is no double precision.
    name : str, optional
        Name of the argument in messages.
    sharded : bool, optional
        Whether torch's DTensors and JAX arrays with explicit axes are accepted.

    Raises
    ------
    TypeError
        If `a` is not numeric, has an unsupported dtype, or is sparse or masked.
    ValueError
        If `a` has fewer than two dimensions.
    MemoryError
        If `a` is a NumPy array, such as a memory map, that is larger than the machine's memory.
    """
    a = plain_array(a, name)
    if not is_array(a):
        given = a
        try:
            a = np.asarray(short(name, a))
        except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, foreign devices
            raise ValueError(f"{name} is not a rectangular array of numbers: {error}") from None
        if a.dtype.kind not in "biufc":
            raise TypeError(
                f"{name} must be an array of numbers, got dtype {a.dtype.name}: {shown(given)}"
            )
    if a.ndim < 2:
        raise ValueError(
            f"{name} must be a matrix or a stack of matrices, got shape {tuple(a.shape)}; "
            f"reshape a vector with {name}[:, None]"
        )
    if isinstance(a, np.ndarray) and a.size > LARGE and a.nbytes > physical_memory():
        raise MemoryError(
            f"{name} takes {a.nbytes / 2**30:.0f} GiB, more than the memory of this machine, "
            f"{physical_memory() / 2**30:.0f} GiB; pass a tall matrix as a dask array to polar_tall"
        )
    ops = ops_of(a)
    ops._check_sharding(a, name, taken=sharded)
    kind = dtype_name(a)
    if kind == "bool" or kind.startswith(("int", "uint")):
        return ops.xp.astype(a, ops._dtype("float64" if ops._has_double(a) else "float32")), ops
    if not format_name(a):
        raise TypeError(
            f"{name} has dtype {kind}, which polarlib does not compute with; convert it to "
            "float64, float32, complex128 or complex64"
        )
    return a, ops


def plain_array(a: Any, name: str) -> Any:
    """Return an instance of a subclass of NumPy's arrays as ndarray, other objects unchanged.

    Raises
    ------
    TypeError
        If `a` is sparse, masked, quantised or nested.
    """
    for block in (a, getattr(a, "_meta", a)):  # the type of Dask's blocks
        _refuse_sparse_or_masked(block, a, name)
    if array_api_compat.is_torch_array(a):
        _refuse_layout(a, name)
    if isinstance(a, np.ndarray) and type(a) is not np.ndarray:
        return a.view(np.ndarray)  # np.matrix: its operators have other meanings
    return a


def _refuse_sparse_or_masked(block: Any, a: Any, name: str) -> None:
    """Raise TypeError for sparse and masked matrices; the message has the conversion.

    Sparse matrices would silently be made dense, with any use of memory. Masked entries have no
    meaningful values.
    """
    dense = next((method for method in ("toarray", "todense") if hasattr(block, method)), "")
    masked = isinstance(block, np.ma.MaskedArray)
    if not dense and not masked:
        return
    kind = f"{'sparse' if dense else 'a masked array'} ({type(block).__name__})"
    if block is not a:
        remedy = f"lambda block: block.{dense}()" if dense else "numpy.ma.filled, fill_value=..."
        raise TypeError(f"{name} has blocks that are {kind}; pass {name}.map_blocks({remedy})")
    filled = f"{name}.filled(...), or {name}.data if no entry is masked"
    remedy = f"{name}.{dense}()" if dense else filled
    raise TypeError(f"{name} is {kind}; pass {remedy}")


def refuse_hidden(
    a: Array,
    ops: Ops,
    name: str,
    remedy: str = "use orthogonalize(), which reads none",
    *,
    fixed_work: bool = True,
) -> None:
    """Raise TypeError for a traced matrix, unless the function has a form that reads no entries."""
    if 0 not in a.shape and ops.is_abstract(a) and not (fixed_work and ops.fixed_work):
        raise TypeError(f"{name} reads entries of its matrix, which {ops.hiding}, or {remedy}")


def check_same_mesh(x: Array, name: str, other: Array, other_name: str) -> None:
    """Raise TypeError unless both are DTensors of torch on equal meshes, or none is a DTensor."""
    if placements(other)[:1] != placements(x)[:1]:
        one, got = (
            f"a {type(t).__name__} {getattr(t, 'device_mesh', '')}".strip() for t in (x, other)
        )
        raise TypeError(f"{other_name} must be {one} as {name} is, got {got}; convert one of them")


def check_same_place(x: Array, name: str, other: Array, other_name: str) -> None:
    """Raise TypeError for arrays of two libraries, ValueError for arrays on two devices."""
    both, ops, others = f"{name} and {other_name}", ops_of(x), ops_of(other)
    if ops.xp is not others.xp:
        first, second = (
            o.xp.__name__.removeprefix("array_api_compat.").partition(".")[0] for o in (ops, others)
        )
        raise TypeError(
            f"{both} must be arrays of one library, got {first} and {second}; convert one of them"
        )
    first, second = ops._place(x), others._place(other)
    if first and second and first != second:
        raise ValueError(
            f"{both} must be on one device, got {first} and {second}; move one of them"
        )


def check_stacks(*named: tuple[str, Array]) -> None:
    """Raise ValueError if stacks of matrices, given with their names, do not broadcast."""
    leading = [tuple(x.shape[:-2]) for _, x in named]
    try:
        np.broadcast_shapes(*leading)
    except ValueError:
        names = ", ".join(name for name, _ in named[:-1])
        raise ValueError(
            f"leading axes of {names} and {named[-1][0]} must broadcast, got "
            f"{', '.join(map(str, leading[:-1]))} and {leading[-1]}"
        ) from None


def _refuse_layout(x: Array, name: str) -> None:
    """Raise TypeError for tensors that are not dense arrays; the message has the conversion."""
    if x.is_quantized:
        raise TypeError(f"{name} is a quantised tensor ({x.dtype}); pass {name}.dequantize()")
    if x.is_nested:
        raise TypeError(
            f"{name} is a nested tensor; pass its matrices, {name}.unbind(), one by one (a list of "
            "them to orthogonalize_all)"
        )
    layout = str(x.layout).rpartition(".")[2]
    if layout != "strided":
        kind = "sparse" if layout.startswith("sparse") else "not a dense tensor"
        raise TypeError(f"{name} is {kind} (layout {layout}); pass {name}.to_dense()")


def finite_max_abs(
    x: Array,
    ops: Ops,
    name: str,
    *,
    look: bool = True,
    locate: bool = True,
    remedy: str = "remove them first",
) -> Array:
    """Return the largest absolute entry of each matrix, all of which must be finite.

    Parameters
    ----------
    x : array
        Stack of matrices that are not empty.
    ops : Ops
        Its arithmetic.
    name : str
        Name of the argument in the message.
    look : bool, optional
        Whether to read the entries, which synchronises a device.
    locate : bool, optional
        Whether the message has an index; only if `x` has the shape of the caller's array.
    remedy : str, optional
        End of the message.

    Returns
    -------
    array, shape (..., 1, 1)
        Result of `Ops.max_abs`: without `look`, NaN or infinity for a matrix that is not finite.

    Raises
    ------
    ValueError
        If an entry is NaN or infinite, and `look`.
    """
    max_abs = ops.max_abs(x)
    if look:
        refuse_not_finite(x, max_abs, ops, name, locate=locate, remedy=remedy)
    return max_abs


def refuse_not_finite(
    x: Array, max_abs: Array, ops: Ops, name: str, *, locate: bool = True, remedy: str
) -> None:
    """Raise ValueError where a largest entry is NaN or infinite; see :func:`finite_max_abs`."""
    if not math.isfinite(ops.item(max_abs)):
        locate = locate and not ops.is_sharded(x)  # an index would need a gather
        message = not_finite(ops.to_host(x)) if locate else "contains NaN or infinity"
        raise ValueError(f"{name} {message}; {remedy}")


def not_finite(a: np.ndarray) -> str:
    """Return the number and the first index of entries that are not finite, as text; "" if none.

    Examples
    --------
    >>> not_finite(np.array([[1.0, np.nan]]))
    'contains NaN or infinity in 1 of 2 entries, first at index (0, 1)'
    """
    bad = ~np.isfinite(a)
    if not bad.any():
        return ""
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"contains NaN or infinity in {bad.sum()} of {a.size} entries, first at index {first}"
