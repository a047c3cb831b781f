"""Reading and writing of matrices."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
import re
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

import numpy as np

from polarlib._extras import require
from polarlib.arrays import checks
from polarlib.arrays.checks import nearest
from polarlib.arrays.library import dtype_name
from polarlib.arrays.memory import physical_memory
from polarlib.arrays.ops import ops_of
from polarlib.files.containers import (
    HDF5,
    ZARR,
    container_names,
    hdf5_writer,
    read_contained,
    write_zarr,
)
from polarlib.files.matrix_market import read_market
from polarlib.files.whole import (
    PICKLED,
    damage_named,
    open_regular,
    unfinished,
    write_together,
)

SUFFIXES = (".npy", ".npz", ".safetensors", ".mtx", ".h5", ".hdf5", ".zarr")
# Suffixes that `write` accepts.
WRITTEN = (".npy", ".h5", ".hdf5", ".zarr")

# First bytes of each type; .safetensors files begin with the length of their header.
MAGIC = {
    ".npy": b"\x93NUMPY",
    ".npz": b"PK",
    ".mtx": b"%%MatrixMarket",
    **dict.fromkeys(HDF5, b"\x89HDF\r\n\x1a\n"),
}

PICKLE = b"\x80"  # of protocol 2 and later

# Largest number of names in a message: a model may have thousands of tensors.
LISTED = 20

# Names of dtypes in .safetensors files, where they are not those of NumPy or ml_dtypes.
_SAFETENSORS = {
    "BOOL": "bool",
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


def split(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Return the file and the name of the array in ``FILE:name``.

    Parameters
    ----------
    path : path-like
        A file; or a file with suffix .npz, .safetensors, .h5, .hdf5 or .zarr, a colon and the name
        of one of its arrays.

    Returns
    -------
    file : Path
        The file.
    name : str or None
        Name of the array, if there is one.

    Examples
    --------
    >>> split("model.safetensors:head.weight")[1]
    'head.weight'
    >>> split("a.npy")[1] is None
    True
    """
    text = os.fspath(checks.path("path", path))
    parts = re.fullmatch(
        r"(.+?\.(?:npz|safetensors|h5|hdf5|zarr)):(.+)", text, re.IGNORECASE | re.DOTALL
    )
    if parts and not os.path.exists(text):  # a file may have a colon in its name
        return Path(parts[1]), parts[2]
    return Path(text), None


def names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the names of the arrays in a file; none for a file of one nameless array.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    tuple of str
        In the order of the file.

    Raises
    ------
    OSError
        If the file is missing or cannot be read.
    ValueError
        If the file is damaged, or of another type than its suffix.
    """
    file, _ = split(path)
    kind = kind_of(file)
    if kind == ".safetensors":
        return tuple(_header(file)[0])
    if kind in (*HDF5, ZARR):
        return container_names(file, kind)
    if kind != ".npz":
        return ()
    # An archive may have other members, which are not arrays.
    with damage_named(file, kind), zipfile.ZipFile(file) as archive:
        return tuple(m.removesuffix(".npy") for m in archive.namelist() if m.endswith(".npy"))


def read(path: str | os.PathLike[str], name: str | None = None) -> np.ndarray:
    """Read one array of numbers.

    Parameters
    ----------
    path : path-like
        File of type .npy, .npz, .safetensors, Matrix Market (.mtx) or HDF5 (.h5, .hdf5), or a Zarr
        folder (.zarr); ``FILE:name`` selects an array.
    name : str, optional
        Name of the array, if the file holds several. In HDF5 and Zarr it is a path,
        ``"/group/array"``, whose first slash can be omitted.

    Returns
    -------
    ndarray
        Of the dtype in the file and of this machine's byte order; bfloat16 and 8-bit tensors have
        dtypes of ml_dtypes. Sparse matrices are made dense.

    Raises
    ------
    OSError
        If the file is missing or cannot be read.
    ValueError
        If the file is damaged or of another type than its suffix, does not hold numbers, holds
        several arrays of which none was selected, or is a Matrix Market matrix that needs more
        than 2 GiB in dense form.
    ImportError
        If the type needs the extra ``polarlib[files]``, which is not installed.

    Notes
    -----
    Matrix Market files can have every format, field and symmetry of their specification (R. F.
    Boisvert, R. Pozo and K. A. Remington, NISTIR 5935, 1996), and Fortran's exponents, 1.0D+01.
    Coordinate entries that are listed twice are added, as by `scipy.io.mmread`. Entries above the
    diagonal of a symmetric matrix raise ValueError. Messages have the number of the line.
    """
    file, chosen = split(path)
    name = chosen if name is None else checks.text("name", name)
    kind = kind_of(file)
    if kind == ".safetensors":
        return _read_tensor(file, name)
    if kind in (*HDF5, ZARR):
        known = names(file)
        if known or kind != ZARR or name is not None:
            inner = name if name is None or name.startswith("/") else f"/{name}"
            name = choose(file, known, inner)
        array = read_contained(file, kind, name)
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if kind == ".npz":
        name = choose(file, names(file), name)
    elif name is not None:
        raise ValueError(
            f"{file}: a {kind} file holds one nameless array; leave {checks.shown(name)} out"
        )
    if kind == ".mtx":
        array = read_market(file)
    else:
        with damage_named(file, kind), contextlib.ExitStack() as stack:
            if kind == ".npz":
                archive = stack.enter_context(zipfile.ZipFile(file))
                # Compressed zeros may take the memory of the whole machine.
                if archive.getinfo(f"{name}.npy").file_size > physical_memory():
                    raise MemoryError
                stream = stack.enter_context(archive.open(f"{name}.npy"))
            else:
                stream = stack.enter_context(open(file, "rb"))
            array = _read_whole(stream)
    if array.dtype.kind not in "biufc":
        raise ValueError(
            f"{file}: holds entries of type {array.dtype}, not numbers; save it again as "
            "float64 or float32"
        )
    # Files may come from a machine of the other byte order, in which LAPACK does not compute.
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def write(path: str | os.PathLike[str], array: Any) -> None:
    """Write an array to a file, whole or not at all.

    Parameters
    ----------
    path : path-like
        Where to write. Its suffix gives the type: .npy, .h5 or .hdf5 (one data set, "/array"), or
        .zarr, a folder, which must not exist.
    array : array-like
        Of numbers. bfloat16 and 8-bit formats, which these types of files lack, are stored exactly,
        as float32.

    Raises
    ------
    OSError
        If the folder does not exist or cannot be written; an existing file is then unchanged.
    ValueError
        If the array does not hold numbers, or for another suffix.
    ImportError
        If the type needs the extra ``polarlib[files]``, which is not installed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(f"{folder}/a.npy", np.eye(2))
    ...     read(f"{folder}/a.npy").tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    _write({checks.path("path", path): array}, "path")


def write_all(arrays: Mapping[Any, Any]) -> None:
    """Write arrays to files, whose types their suffixes give, all or none.

    Parameters
    ----------
    arrays : mapping
        From paths to arrays, as for :func:`write`.

    Raises
    ------
    OSError, ValueError, ImportError
        As for :func:`write`; every existing file is then unchanged.
    """
    checks.instance("arrays", arrays, Mapping, "a mapping from paths to arrays")
    _write(arrays, "a path of arrays")


def _write(arrays: Mapping[Any, Any], label: str) -> None:
    """Write arrays to files; `label` stands for a path in messages."""
    writers: dict[Any, Callable[[IO[bytes]], Any]] = {}
    folders: dict[Any, np.ndarray] = {}
    for path, array in arrays.items():
        text = os.fsdecode(checks.path(label, path))
        kind = Path(text).suffix.lower()
        if kind not in WRITTEN:
            raise ValueError(
                f"{label} must end in {', '.join(WRITTEN[:-1])} or {WRITTEN[-1]}, "
                f"got {checks.shown(text)}; change its suffix"
            )
        if kind == ".npy":
            writers[path] = _npy_writer(path, array)
        elif kind == ZARR:
            require(f"{text}: writing", "files", "zarr")
            folders[path] = _on_host(text, array)
        else:
            writers[path] = hdf5_writer(text, _on_host(text, array))
    with contextlib.ExitStack() as stack:
        ready = {path: stack.enter_context(unfinished(path, folder=True)) for path in folders}
        for path, temporary in ready.items():
            write_zarr(temporary, folders[path])
        write_together(writers, ready)


def write_npy(path: str | os.PathLike[str], array: Any) -> None:
    """Write an array to an .npy file, whole or not at all.

    Parameters
    ----------
    path : path-like
        Where to write.
    array : array-like
        Of numbers. bfloat16 and 8-bit formats, which .npy files lack, are stored exactly, as
        float32.

    Raises
    ------
    OSError
        If the folder does not exist or cannot be written; an existing file is then unchanged.
    ValueError
        If the array does not hold numbers.
    """
    write_npys({checks.path("path", path): array})


def write_npys(arrays: Mapping[Any, Any]) -> None:
    """Write arrays to .npy files, all or none.

    Parameters
    ----------
    arrays : mapping
        From paths to arrays, as for :func:`write_npy`.

    Raises
    ------
    OSError, ValueError
        As for :func:`write_npy`; every existing file is then unchanged.
    """
    checks.instance("arrays", arrays, Mapping, "a mapping from paths to arrays")
    write_together({path: _npy_writer(path, array) for path, array in arrays.items()})


def _npy_writer(path: str | os.PathLike[str], array: Any) -> Callable[[IO[bytes]], None]:
    """Return a function that writes an array to a file object."""
    host = _on_host(checks.path("a path of arrays", path), array)

    def write(file: IO[bytes]) -> None:
        # NumPy would write through the file descriptor, where its errors give no reason.
        np.save(cast(Any, SimpleNamespace(write=file.write)), host, allow_pickle=False)

    return write


def _on_host(path: str | os.PathLike[str], array: Any) -> np.ndarray:
    """Return an array of numbers on the host, of a dtype that the types of files have."""
    array = checks.short("array", array)
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError(f"{path}: the array is masked; fill the masked entries first")
    try:
        array = np.asarray(array)
    except Exception as error:  # bfloat16, tensors that record gradients, arrays on a device
        try:
            kind = dtype_name(array)
            array = ops_of(array).to_host(array).astype(kind if hasattr(np, kind) else np.float32)
        except Exception:
            text = " ".join(str(error).split())
            raise ValueError(f"{path}: the array cannot be copied to the host: {text}") from None
    if array.dtype.type.__module__ == "ml_dtypes":
        array = array.astype(np.float32)
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{path}: entries of type {array.dtype} are not numbers")
    return cast(np.ndarray, array)


def kind_of(file: Path) -> str:
    """Return the suffix of a file, after a check that the file exists and has that type."""
    kind = file.suffix.lower()
    if kind == ZARR and file.is_dir():
        return kind
    try:
        with open_regular(file) as stream:
            start = stream.read(max(map(len, MAGIC.values())))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file") from None
    except OSError as error:
        if error.strerror is None:  # not a regular file
            raise
        raise OSError(f"{file}: cannot be read: {error.strerror}") from None
    if kind not in SUFFIXES:
        raise ValueError(
            f"{file}: unknown file type {kind!r}; known: {', '.join(SUFFIXES)}; convert it with "
            "numpy.save"
        )
    if not start:
        raise ValueError(f"{file}: the file is empty; write it again")
    if kind in MAGIC and not start.startswith(MAGIC[kind]):
        for other, magic in MAGIC.items():
            if start.startswith(magic):
                raise ValueError(f"{file}: this is a {other} file; rename it to *{other}")
        if start.startswith(PICKLE):
            raise ValueError(PICKLED.format(file))
        raise ValueError(
            f"{file}: this is not a {kind} file, or its beginning is damaged; write it again"
        )
    return kind


def _read_whole(stream: IO[bytes]) -> np.ndarray:
    """Read an array in NumPy's format that takes the whole stream."""
    array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
    # NumPy reads no more than the header declares, so that a damaged shape would be unnoticed.
    if stream.read(1):
        raise ValueError("more data than its header declares")
    return array


def choose(file: Path, known: tuple[str, ...], name: str | None) -> str:
    if not known:
        raise ValueError(f"{file}: holds no arrays")
    if name is None:
        if len(known) == 1:
            return known[0]
        if {"format", "shape", "data"} <= set(known) and len(known) <= 6:
            raise ValueError(
                f"{file}: is a sparse matrix of scipy.sparse.save_npz; save its dense array, "
                "scipy.sparse.load_npz(file).toarray(), with numpy.save"
            )
        more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
        raise ValueError(
            f"{file}: holds {len(known)} arrays; choose one, as in {file}:{known[0]} "
            f"(known: {', '.join(map(repr, known[:LISTED]))}{more})"
        )
    if name not in known:
        # Some, not all: a model may have thousands of tensors.
        similar = difflib.get_close_matches(name, known, n=LISTED, cutoff=0)
        raise ValueError(f"{file}: holds no array {checks.shown(name)}; {nearest(name, similar)}")
    return name


def _header(file: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the tensors of a .safetensors file by name, and the offset of their data."""
    require(f"{file}: reading", "files", "safetensors", "ml_dtypes")
    from safetensors import safe_open

    with damage_named(file, ".safetensors"):
        with safe_open(file, framework="np"):  # checks the header, and the length of the file
            pass
        # The tensors are read by offset: the package has no NumPy arrays of 8-bit formats, and none
        # of bfloat16 in its older versions.
        with open(file, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


def _read_tensor(file: Path, name: str | None) -> np.ndarray:
    header, begin = _header(file)
    name = choose(file, tuple(header), name)
    entry = header[name]
    if entry["dtype"] not in _SAFETENSORS:
        raise ValueError(
            f"{file}: tensor {name!r} has type {entry['dtype']}, which has no NumPy dtype; "
            f"known: {', '.join(_SAFETENSORS)}"
        )
    import ml_dtypes

    kind = _SAFETENSORS[entry["dtype"]]
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    shape = tuple(entry["shape"])
    first, _ = entry["data_offsets"]
    # The format is little-endian on every machine.
    array = np.fromfile(file, dtype, count=math.prod(shape), offset=begin + first).reshape(shape)
    return array if sys.byteorder == "little" else array.byteswap()
