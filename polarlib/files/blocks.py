"""Matrices in files, read and written in blocks, for matrices larger than memory.

Blocks are read and written at their offsets: a mapped file would count as resident memory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from polarlib._extras import require
from polarlib.files.containers import DATASET, HDF5, ZARR, numbers_of, opened
from polarlib.files.matrices import choose, kind_of, names, split
from polarlib.files.whole import damage_named

READ = (".npy", *HDF5, ZARR)
Index = tuple[slice, slice]
# Libraries of containers decompress several chunks at a time; one reader bounds their memory.
_ONE_READER = threading.Lock()


class FileMatrix:
    """A matrix in C order at an offset of a file; blocks can be read and written in any thread."""

    chunks = None

    def __init__(self, file: Path, offset: int, shape: tuple[int, int], dtype: np.dtype) -> None:
        self.file, self.offset, self.shape, self.dtype = file, offset, shape, dtype
        self._state = _state(os.stat(file))

    def __getitem__(self, index: Index) -> np.ndarray:
        rows, columns = _ranges(index, self.shape)
        block = np.empty((len(rows), len(columns)), self.dtype)
        with open(self.file, "rb", buffering=0) as stream:
            _check_state(self.file, os.fstat(stream.fileno()), self._state)
            for offset, part in self._runs(rows, columns, block):
                stream.seek(offset)
                while len(part):
                    done = stream.readinto(part)
                    if not done:
                        raise ValueError(f"{self.file}: is cut short; write it again")
                    part = part[done:]
        return block

    def __setitem__(self, index: Index, block: np.ndarray) -> None:
        with open(self.file, "r+b", buffering=0) as stream:
            block = block.astype(self.dtype, order="C", copy=False)
            for offset, part in self._runs(*_ranges(index, self.shape), block):
                stream.seek(offset)
                while len(part):
                    part = part[stream.write(part) :]

    def _runs(self, rows: range, columns: range, block: np.ndarray) -> Iterator[tuple[int, Any]]:
        """Yield consecutive bytes of a block in C order, with their offset in the file."""
        n, size = self.shape[1], self.dtype.itemsize
        whole = len(columns) == n
        for k, part in enumerate([block] if whole else block):
            start = (rows.start + k) * n + columns.start
            yield self.offset + start * size, memoryview(part.reshape(-1).view(np.uint8))


class ContainedMatrix:
    """A matrix of an HDF5 file or a Zarr folder in chunks."""

    def __init__(self, file: Path, kind: str, name: str | None, array: Any) -> None:
        self.file, self._kind, self._name = file, kind, name
        self.shape, self.dtype, self.chunks = array.shape, array.dtype, array.chunks
        self._state = _state(os.stat(file))

    def __getitem__(self, index: Index) -> np.ndarray:
        if self._kind != ZARR:  # a folder, whose files are not compared
            _check_state(self.file, os.stat(self.file), self._state)
        with _ONE_READER, _one_at_a_time(self._kind), opened(self.file, self._kind) as whole:
            return np.asarray(numbers_of(whole, self.file, self._kind, self._name)[index])


class ZarrTarget:
    """A new matrix of a Zarr folder, written in blocks."""

    def __init__(
        self, folder: str, shape: tuple[int, int], dtype: np.dtype, chunks: tuple[int, int]
    ) -> None:
        import zarr

        # Not compressed: the digits of an orthonormal matrix have nothing to compress.
        size = tuple(max(size, 1) for size in chunks)
        self._array = zarr.create_array(
            folder, shape=shape, dtype=dtype, chunks=size, compressors=None
        )

    def __setitem__(self, index: Index, block: np.ndarray) -> None:
        with _ONE_READER, _one_at_a_time(ZARR):
            self._array[index] = block


def open_matrix(source: str) -> tuple[FileMatrix | ContainedMatrix, bool]:
    """Return the matrix of an .npy, HDF5 or Zarr file, and whether it is the transpose of A.

    No entries are read. A file in Fortran order has the transpose of its matrix in C order.

    Raises
    ------
    OSError, ValueError, ImportError
        As for :func:`polarlib.files.read`, and for an array that is not one matrix.
    """
    file, name = split(source)
    kind = kind_of(file)
    if kind not in READ:
        raise ValueError(
            f"{file}: {kind} files are not read in blocks; convert it to {', '.join(READ[:-1])} "
            f"or {READ[-1]}"
        )
    found: FileMatrix | ContainedMatrix
    if kind == ".npy":
        if name is not None:  # as files.read does
            raise ValueError(f"{file}: a .npy file holds one nameless array; leave {name!r} out")
        with damage_named(file, kind), open(file, "rb") as stream:
            shape, fortran, dtype = _header(stream)
            offset, size = stream.tell(), os.fstat(stream.fileno()).st_size
            if dtype.hasobject:
                raise ValueError("allow_pickle")
            declared = offset + dtype.itemsize * int(np.prod(shape, dtype=object))
            if size != declared or min(shape, default=0) < 0:
                raise ValueError("its header declares another size")
        _check(file, shape, dtype)
        fortran = fortran and min(shape) > 1
        return FileMatrix(file, offset, shape[::-1] if fortran else shape, dtype), fortran
    known = names(file)
    if known or kind != ZARR or name is not None:
        name = choose(file, known, name if name is None or name.startswith("/") else f"/{name}")
    with opened(file, kind) as whole:
        array = numbers_of(whole, file, kind, name)
        found = ContainedMatrix(file, kind, name, array)
        if kind != ZARR and (begin := _offset(array)):
            found = FileMatrix(file, begin, array.shape, array.dtype)
    _check(file, found.shape, found.dtype)
    return found, False


def new_matrix(
    path: str, kind: str, shape: tuple[int, int], dtype: np.dtype, chunks: tuple[int, int]
) -> FileMatrix | ZarrTarget:
    """Return a matrix in a file or a folder that exists and is empty, to be written in blocks.

    The space of a file is reserved, so that a full disk raises OSError now.
    """
    if kind == ZARR:
        require(f"{path}: writing", "files", "zarr")
        return ZarrTarget(path, shape, dtype, chunks)
    if kind in HDF5:
        offset = _new_hdf5(path, shape, dtype)
    else:
        with open(path, "wb") as stream:
            header = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(stream, header)
            offset = stream.tell()
    _reserve(path, offset + shape[0] * shape[1] * dtype.itemsize)
    return FileMatrix(Path(path), offset, shape, dtype)


def _check(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if len(shape) != 2:
        remedy = "reshape it" if len(shape) < 2 else "save one matrix of it"
        raise ValueError(f"{file}: one matrix is needed, got an array of shape {shape}; {remedy}")
    if dtype.kind not in "biufc":
        raise ValueError(
            f"{file}: holds entries of type {dtype}, not numbers; save it again as float64 or "
            "float32"
        )


def _header(stream: Any) -> tuple[Any, bool, np.dtype]:
    """Return shape, whether the order is Fortran's, and dtype of an .npy file."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version in ((2, 0), (3, 0)):  # which differ in the encoding of names of fields alone
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"version {version} of the format is not known")


def _new_hdf5(path: str, shape: tuple[int, int], dtype: np.dtype) -> int:
    """Make an HDF5 file of one array without chunks; return the offset of its entries."""
    require(f"{path}: writing", "files", "h5py")
    import h5py

    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # otherwise there is no offset yet
    how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    # The file is locked already, by whom reserved its name.
    with h5py.File(path, "w", locking=False) as whole:
        array = whole.create_dataset(DATASET, shape, dtype, dcpl=how)
        offset = array.id.get_offset()
    return os.path.getsize(path) if offset is None else int(offset)  # None without entries


def _offset(array: Any) -> int | None:
    """Return the offset of an HDF5 array if its bytes are those of its dtype, in C order."""
    import h5py

    # Other types, such as integers of 12 bits, are converted when they are read.
    same = array.id.get_type() == h5py.h5t.py_create(array.dtype, logical=True)
    offset: int | None = array.id.get_offset()  # None without entries in one piece
    return offset if same else None


def _reserve(path: str, size: int) -> None:
    """Give a file its size, and its space on the disk where the system can."""
    with open(path, "r+b") as stream:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(stream.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
        stream.truncate(size)


def _state(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _check_state(file: Path, found: os.stat_result, former: tuple[int, int, int]) -> None:
    if _state(found) != former:
        raise ValueError(f"{file}: changed while it was read; start again")


def _ranges(index: Index, shape: tuple[int, int]) -> tuple[range, range]:
    rows, columns = index
    return range(*rows.indices(shape[0])), range(*columns.indices(shape[1]))


@contextlib.contextmanager
def _one_at_a_time(kind: str) -> Iterator[None]:
    """Let zarr read and write one chunk at a time, within the lock."""
    if kind != ZARR:
        yield
        return
    import zarr

    with zarr.config.set({"async.concurrency": 1}):
        yield
