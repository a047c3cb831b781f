"""Arrays in HDF5 files and Zarr folders, which can hold several named arrays."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from polarlib._extras import require
from polarlib.arrays.memory import physical_memory
from polarlib.files.whole import damage_named

HDF5 = (".h5", ".hdf5")
ZARR = ".zarr"
# Name of the one array of an HDF5 file that is written.
DATASET = "array"


def container_names(file: Path, kind: str) -> tuple[str, ...]:
    """Return the paths of the arrays in a file or folder; none for a folder that is one array."""
    with opened(file, kind) as whole:
        return tuple(_arrays(whole, kind))


def read_contained(file: Path, kind: str, name: str | None) -> np.ndarray:
    """Return an array by its path, one of :func:`container_names`; None if the folder is the array.

    Raises
    ------
    ValueError
        If the file is damaged, or the array does not hold numbers, is larger than the memory or
        is stored in another file.
    """
    with opened(file, kind) as whole:
        array = numbers_of(whole, file, kind, name)
        # Chunks that were never written are zeros, so that a small file can declare a large array.
        if array.size * array.dtype.itemsize > physical_memory():
            raise MemoryError
        return np.asarray(array[()] if kind != ZARR else array[...])


def numbers_of(whole: Any, file: Path, kind: str, name: str | None) -> Any:
    """Return an array of numbers of a file that is open, without reading its entries."""
    array = whole if name is None else whole[name]
    if not hasattr(array, "dtype"):  # a group
        raise _Refused(f"{file}: holds no arrays")
    if array.dtype.kind not in "biufc":
        raise _Refused(
            f"{file}: holds entries of type {array.dtype}, not numbers; save it again as "
            "float64 or float32"
        )
    # An external file could be any file of this user, chosen by the author of this one.
    if kind != ZARR and (array.external or array.is_virtual):
        raise _Refused(
            f"{file}: the array {name} is stored in other files, which are not read; "
            "copy it into this file"
        )
    return array


def hdf5_writer(path: str, array: np.ndarray) -> Callable[[IO[bytes]], None]:
    """Return a function that writes an HDF5 file of one array to a file object."""
    require(f"{path}: writing", "files", "h5py")
    import h5py

    def write(file: IO[bytes]) -> None:
        content = io.BytesIO()
        with h5py.File(content, "w") as whole:
            whole.create_dataset(DATASET, data=array)
        file.write(content.getbuffer())

    return write


def write_zarr(path: str, array: np.ndarray) -> None:
    """Write an array to a Zarr folder, which must be new or empty."""
    import zarr

    # Older versions of zarr reject arrays of the other byte order.
    native: Any = array.astype(array.dtype.newbyteorder("="), copy=False)
    zarr.save_array(path, native)


class _Refused(ValueError):
    """Error for an array that is intact but is not read."""


@contextlib.contextmanager
def opened(file: Path, kind: str) -> Iterator[Any]:
    """Open a file or a folder for reading; report damage in one line."""
    package = "zarr" if kind == ZARR else "h5py"
    require(f"{file}: reading", "files", package)
    refused = None
    with damage_named(file, kind), contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(_open(file, kind))
        except _Refused as error:
            refused = error
        except OSError as error:
            if error.errno is not None:
                raise
            raise ValueError(str(error)) from None  # raised by HDF5 for damaged files
    if refused is not None:
        raise ValueError(str(refused))


@contextlib.contextmanager
def _open(file: Path, kind: str) -> Iterator[Any]:
    if kind == ZARR:
        import zarr

        yield zarr.open(str(file), mode="r")
        return
    import h5py

    with h5py.File(file, "r") as whole:
        yield whole


def _arrays(whole: Any, kind: str) -> Iterator[str]:
    """Yield the paths of the arrays. Links to other files are not followed."""
    found: list[str] = []
    if kind == ZARR:
        if hasattr(whole, "members"):  # a group
            found = [name for name, each in whole.members(max_depth=None) if hasattr(each, "shape")]
    else:
        whole.visititems(lambda name, each: found.append(name) if hasattr(each, "shape") else None)
    return iter(sorted(f"/{name}" for name in found))
