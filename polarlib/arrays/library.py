"""Properties of an array library: dtypes, devices, the host, number formats.

The first part of :class:`polarlib.arrays.ops.Ops`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import array_api_compat
import numpy as np

from polarlib._extras import require
from polarlib.arrays.formats import FORMATS

Array = Any

# Names of dtypes that differ from the names of their formats.
FORMAT_OF_DTYPE = {
    "complex64": "float32",
    "complex128": "float64",
    "float8_e4m3fn": "float8_e4m3",
}


def import_library(name: str) -> Any:
    """Import an array library, or a module of one: polarlib requires NumPy alone."""
    return importlib.import_module(name)


def dtype_name(x: Array) -> str:
    """Return the name of an array's dtype, the same for every library, such as ``"float32"``."""
    return _names(x.dtype)[0]


def format_name(x: Array) -> str:
    """Return the format of an array's entries (of their parts, if complex); "" if none."""
    return _names(x.dtype)[1]


def is_complex(x: Array) -> bool:
    """Return whether the entries are complex."""
    return _names(x.dtype)[0].startswith("complex")


NUMBERS = (int, float, complex, np.number)


def is_known(x: Any, value: float | None = None) -> bool:
    """Return whether a coefficient is a Python number, equal to `value`; False for arrays."""
    # Called about fifty times in five steps, mostly without `value`.
    if type(x) is float or isinstance(x, NUMBERS):
        return value is None or bool(x == value)
    return False


# Cached, since NumPy takes microseconds for a name; typed, since dtypes of equal hash are compared.
@functools.lru_cache(maxsize=128, typed=True)
def _names(dtype: Any) -> tuple[str, str]:
    """Return the names of a dtype and of its format."""
    name = str(getattr(dtype, "name", dtype)).rpartition(".")[2]
    precision = FORMAT_OF_DTYPE.get(name, name)
    return name, precision if precision in FORMATS else ""


class Library:
    """Dtypes, devices and storage of one array namespace, and settings of the arithmetic.

    Parameters
    ----------
    xp : namespace
        Result of ``array_api_compat.array_namespace``.
    fused : bool, optional
        Whether the working format has 16 bits or fewer: products with an addend are rounded once,
        and multiples of the identity are not added to small matrices (``a I + Z`` is not rounded).

    Attributes
    ----------
    native : frozenset of str
        Formats whose products the library computes itself.
    host : bool
        Whether reading a scalar is free; otherwise it synchronises the device.
    hiding : str
        End of a message: what hides entries (:meth:`is_abstract`), and the remedy.
    in_memory : bool
        Whether all of an array is in memory at once.
    fixed_work : bool
        Whether functions that read entries have a form of fixed work for traced arrays.
    working : str
        Format chosen by :func:`polarlib.arrays.rounded.rounded`; "" if none was chosen.
    """

    # Name of the library of a class, as in array_api_compat; "" for any other library.
    library = ""
    # The module with functions of arrays, if its name is not that of the library.
    module = ""
    # Whether arrays can be in the memory of the host.
    has_cpu = True
    native = frozenset({"float64", "float32"})
    host = False
    simulated = False
    in_memory = True
    hiding = "its library hides"
    fixed_work = False
    working = ""

    def __init__(self, xp: Any, *, fused: bool = False) -> None:
        self.xp = xp
        self.fused = fused

    @property
    def looks(self) -> bool:
        """Whether a fixed schedule checks for NaN, since reading is free."""
        return self.host

    # -- dtypes and conversion ---------------------------------------------------------------

    def cast(self, x: Array, format_name: str) -> Array:
        """Convert to the dtype of a format, real or complex as before, without needless copies."""
        name = _dtype_for(format_name, is_complex(x))
        if dtype_name(x) == name:
            return x
        if format_name == "float64" and not self._has_double(x):
            raise ValueError(
                f"{self.xp.__name__} has no {name} on {array_api_compat.device(x)}; use "
                "precision='float32', or enable JAX's 64-bit types (jax_enable_x64)"
            )
        return self.xp.astype(x, self._dtype(name))

    def _has_double(self, x: Array) -> bool:
        """Return whether double precision is to be had where `x` lies."""
        return _has_double(self.xp, array_api_compat.device(x))

    def _dtype(self, name: str) -> Any:
        """Return the library's dtype with a name."""
        try:
            return getattr(self.xp, name)
        except AttributeError:
            raise ValueError(
                f"{self.xp.__name__} has no dtype {name}; use a library that has it, such as torch"
            ) from None

    def _real_dtype(self, x: Array) -> Any:
        """Return the dtype of real values of an array: its own, if that is not complex."""
        return self._dtype(format_name(x)) if is_complex(x) else x.dtype

    def to_host(self, x: Array) -> np.ndarray:
        """Copy to NumPy in float64 or complex128."""
        if self._host_device is not None and not on_cpu(x):
            x = array_api_compat.to_device(x, self._host_device)
        return np.array(x, dtype=np.complex128 if is_complex(x) else np.float64)

    @functools.cached_property
    def _host_device(self) -> Any:
        """Device of the library whose arrays NumPy reads; None where none is known or needed."""
        if not hasattr(self.xp, "__array_namespace_info__"):
            return None
        devices = self.xp.__array_namespace_info__().devices()
        return next((d for d in devices if "cpu" in str(d).lower()), None)

    def _device_of(self, x: Array) -> Any:
        """Return the device for small matrices that are combined with `x`: that of `x`."""
        return array_api_compat.device(x)

    def from_host(self, a: np.ndarray, like: Array) -> Array:
        """Convert a NumPy array to the library, device and format of `like`; real stays real."""
        dtype = like.dtype if a.dtype.kind == "c" else self._real_dtype(like)
        return self.xp.asarray(np.array(a), dtype=dtype, device=self._device_of(like))

    def compiled(self, f: Callable[..., Array], **fixed: Any) -> Callable[..., Array]:
        """Return ``f`` with all but its arrays fixed, compiled once where the library compiles."""
        return functools.partial(f, **fixed)


def on_cpu(x: Array) -> bool:
    """Return whether an array lies in the memory of the host."""
    return "cpu" in str(array_api_compat.device(x)).lower()


def at_least_single(x: Array, ops: Library) -> Array:
    """Convert formats narrower than float32 to float32; return other arrays unchanged."""
    name = format_name(x)
    return ops.cast(x, name if name in ("float32", "float64") else "float32")


def to_working_format(x: Array, ops: Library) -> Array:
    """Convert to the working format of an arithmetic, without needless copies."""
    return ops.cast(x, ops.working) if ops.working else x


def astype_like(x: Array, reference: Array, ops: Library) -> Array:
    """Convert to the dtype of another array; overflow gives infinity."""
    if x.dtype == reference.dtype:
        return x
    if is_complex(x) and not is_complex(reference):
        raise TypeError(f"{dtype_name(x)} would lose its imaginary part in {dtype_name(reference)}")
    return ops.xp.astype(x, reference.dtype)


def library_name(library: Library) -> str:
    """Return the name of an array library, as users know it."""
    parts: list[str] = library.xp.__name__.split(".")
    return parts[1] if parts[0] == "array_api_compat" else parts[0]


def bytes_of_entry(x: Array) -> int:
    """Return the number of bytes that an entry takes in at least single precision."""
    double = format_name(x) == "float64"
    return (8 if double else 4) * (2 if is_complex(x) else 1)


def numpy_dtype(name: str) -> np.dtype:
    """Return NumPy's dtype of a name, or ml_dtypes' for the formats that NumPy lacks."""
    if hasattr(np, name):
        return np.dtype(name)
    require(f"an array of {name}", "files", "ml_dtypes")
    import ml_dtypes

    found: np.dtype = np.dtype(getattr(ml_dtypes, name))
    return found


@functools.lru_cache(maxsize=128)
def _has_double(xp: Any, device: Any) -> bool:
    """Return whether a library has double precision on a device; True if it lists no dtypes."""
    if not hasattr(xp, "__array_namespace_info__"):
        return True
    return "float64" in xp.__array_namespace_info__().dtypes(device=device, kind="real floating")


def _dtype_for(format_name: str, is_complex: bool) -> str:
    """Return the name of the dtype that stores a format: float32 for tf32 and 8 bits."""
    carrier = {"tf32": "float32", "float8_e4m3": "float8_e4m3fn"}.get(format_name, format_name)
    if is_complex:
        carrier = "complex128" if format_name == "float64" else "complex64"
    return carrier
