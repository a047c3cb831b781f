"""Matrices from and to files; the bundled gradients."""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import math
import os
import re
import sys
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

import numpy as np

from polarlib._renamed import warn_renamed
from polarlib.arrays import checks
from polarlib.arrays.checks import nearest
from polarlib.arrays.library import dtype_name
from polarlib.arrays.memory import physical_memory
from polarlib.arrays.ops import ops_of
from polarlib.files.matrix_market import read_market
from polarlib.files.whole import PICKLED, damage_named, open_regular, write_together

SUFFIXES = (".npy", ".npz", ".safetensors", ".mtx")

# How files begin; .safetensors files begin with the length of their header.
MAGIC = {".npy": b"\x93NUMPY", ".npz": b"PK", ".mtx": b"%%MatrixMarket"}

PICKLE = b"\x80"  # of protocol 2 and later

# Names that an error lists: a model may have thousands of tensors.
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
    """Take ``FILE:name`` apart.

    Parameters
    ----------
    path : path-like
        A file, or an .npz or .safetensors file, a colon and the name of one of its arrays.

    Returns
    -------
    file : Path
    name : str or None

    Examples
    --------
    >>> split("model.safetensors:head.weight")[1]
    'head.weight'
    >>> split("a.npy")[1] is None
    True
    """
    text = os.fspath(checks.path("path", path))
    parts = re.fullmatch(r"(.+?\.(?:npz|safetensors)):(.+)", text, re.IGNORECASE | re.DOTALL)
    if parts and not os.path.exists(text):  # a file may have a colon in its name
        return Path(parts[1]), parts[2]
    return Path(text), None


def names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the arrays in an .npz or .safetensors file; none for files of one nameless array.

    Parameters
    ----------
    path : path-like
        The file.

    Raises
    ------
    OSError
        If the file is missing or may not be read.
    ValueError
        If it is damaged, or of another type than its suffix.
    """
    file, _ = split(path)
    kind = _kind(file)
    if kind == ".safetensors":
        return tuple(_header(file)[0])
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
        An .npy, .npz, .safetensors or Matrix Market .mtx file; ``FILE:name`` chooses an array.
    name : str, optional
        Which array of an .npz or .safetensors file; unnecessary if there is one only.

    Returns
    -------
    ndarray
        Of the dtype in the file and of this machine's byte order; bfloat16 and 8-bit tensors have
        dtypes of ml_dtypes. Sparse matrices are made dense.

    Raises
    ------
    OSError
        If the file is missing or may not be read.
    ValueError
        If it is damaged or of another type than its suffix, does not hold numbers, holds
        several arrays of which none was chosen, or is a Matrix Market matrix that takes more than
        2 GiB as a dense one; if reading it takes the extra ``polarlib[files]``, which is not
        installed.

    Notes
    -----
    Of Matrix Market files, coordinate and array ones are read with every field and symmetry that
    their specification has (R. F. Boisvert, R. Pozo and K. A. Remington, NISTIR 5935, 1996), and
    with Fortran's exponents, 1.0D+01. Coordinate entries that are listed twice are added, as
    `scipy.io.mmread` adds them; entries above the diagonal of a symmetric matrix are refused. What
    is wrong is reported with the number of its line.
    """
    file, chosen = split(path)
    name = chosen if name is None else checks.text("name", name)
    kind = _kind(file)
    if kind == ".safetensors":
        return _read_tensor(file, name)
    if kind == ".npz":
        name = _choose(file, names(file), name)
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
            f"{file}: holds entries of type {array.dtype}, not numbers; save it anew as float64 or "
            "float32"
        )
    # Files may come from a machine of the other byte order, in which LAPACK does not compute.
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def write_npy(path: str | os.PathLike[str], array: Any) -> None:
    """Write an array to an .npy file, whole or not at all.

    Parameters
    ----------
    path : path-like
        Where to write.
    array : array-like
        Of numbers. bfloat16 and 8-bit formats, which .npy files have no names for, are stored as
        float32, which holds every number of theirs.

    Raises
    ------
    OSError
        If the folder does not exist or cannot be written; a file of that name is then as it was.
    ValueError
        If the array does not hold numbers.
    """
    write_npys({checks.path("path", path): array})


def write_npys(arrays: Mapping[Any, Any]) -> None:
    """Write arrays to .npy files, all or none.

    Parameters
    ----------
    arrays : mapping
        From paths to arrays, as :func:`write_npy` takes them.

    Raises
    ------
    OSError, ValueError
        As :func:`write_npy` raises them; every file is then as it was.
    """
    checks.instance("arrays", arrays, Mapping, "a mapping from paths to arrays")
    write_together({path: _npy_writer(path, array) for path, array in arrays.items()})


def _npy_writer(path: str | os.PathLike[str], array: Any) -> Callable[[IO[bytes]], None]:
    """Return what writes an array to a file object, from the host's memory."""
    path, array = checks.path("a path of arrays", path), checks.short("array", array)
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

    def write(file: IO[bytes]) -> None:
        # Without the file's number, which NumPy would use: its errors there give no reason.
        np.save(cast(Any, SimpleNamespace(write=file.write)), array, allow_pickle=False)

    return write


def sample_matrices() -> dict[str, np.ndarray]:
    """Return real gradient and momentum matrices of two small networks, by name.

    Returns
    -------
    dict of str to ndarray
        float32; :func:`sample_metadata` gives the origin of each and what is hard about it.

    Examples
    --------
    >>> sample_matrices()["transformer_mlp_in_late"].shape
    (512, 128)
    """
    file = resources.files("polarlib").joinpath("data/gradients.npz")
    # Stored as float16 over a power of two, which keeps the entries normal numbers: half the size.
    with file.open("rb") as stream, np.load(stream) as archive:
        return {
            fact["name"]: archive[fact["name"]].astype(np.float32) * np.float32(fact["scale"])
            for fact in _metadata()["matrix"]
        }


def sample_metadata() -> dict[str, dict[str, Any]]:
    """Return the metadata of the bundled matrices.

    Returns
    -------
    dict of str to dict
        Layer, training step, rank, condition number, a description and so on, with the data that
        its network was trained on, their licence and attribution.

    Examples
    --------
    >>> sample_metadata()["transformer_mlp_in_late"]["description"]
    'The easiest one: a tall, well-conditioned matrix with a slowly decaying spectrum.'
    """
    metadata = _metadata()
    networks, shared = metadata["network"], ("data", "licence", "attribution")
    return {
        m["name"]: m | {key: networks[m["network"]][key] for key in shared}
        for m in metadata["matrix"]
    }


@functools.cache
def _metadata() -> dict[str, Any]:
    text = resources.files("polarlib").joinpath("data/gradients.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def shipped() -> dict[str, np.ndarray]:
    """Former name of :func:`sample_matrices`, until 0.3."""
    warn_renamed("files.shipped", "files.sample_matrices")
    return sample_matrices()


def stories() -> dict[str, dict[str, Any]]:
    """Former name of :func:`sample_metadata`, until 0.3, with `description` as `story` too."""
    warn_renamed("files.stories", "files.sample_metadata")
    return {name: m | {"story": m["description"]} for name, m in sample_metadata().items()}


def _kind(file: Path) -> str:
    """The suffix of a file that exists and begins as files of that suffix do."""
    kind = file.suffix.lower()
    try:
        with open_regular(file) as stream:
            start = stream.read(max(map(len, MAGIC.values())))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file") from None
    except OSError as error:
        if error.strerror is None:  # the message that it is not a regular file
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
    # NumPy reads what the header declares and no further: a damaged shape would go unnoticed.
    if stream.read(1):
        raise ValueError("more data than its header declares")
    return array


def _choose(file: Path, known: tuple[str, ...], name: str | None) -> str:
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
    """The header of a .safetensors file: its tensors by name, and where their data begin."""
    try:
        import ml_dtypes  # noqa: F401
        from safetensors import safe_open
    except ImportError:
        raise ValueError(
            f"{file}: .safetensors files need the packages safetensors and ml_dtypes; install "
            "polarlib[files]"
        ) from None
    with damage_named(file, ".safetensors"):
        with safe_open(file, framework="np"):  # it checks the header, and the length of the file
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
    name = _choose(file, tuple(header), name)
    entry = header[name]
    if entry["dtype"] not in _SAFETENSORS:
        raise ValueError(
            f"{file}: tensor {name!r} has type {entry['dtype']}, which has no counterpart here; "
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
