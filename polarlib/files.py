"""Matrices from files, factors to files, and the real matrices that come with the library.

::

    a = files.read("a.npy")
    w = files.read("model.safetensors:layers.0.weight")
    u, h = polarlib.polar(a)
    files.write_npy("u.npy", u)
    g = files.shipped()["transformer_mlp_in_late"]

Nothing is unpickled, and a file is written whole or not at all. What cannot be read raises an
OSError or a ValueError of one line, which names the file and the remedy.
"""

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
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import IO, Any

import numpy as np

from polarlib.formats import nearest
from polarlib.result import write_whole

__all__ = ["SUFFIXES", "names", "read", "shipped", "split", "stories", "write_npy"]

SUFFIXES = (".npy", ".npz", ".safetensors", ".mtx")

# How files begin; .safetensors files begin with the length of their header.
MAGIC = {".npy": b"\x93NUMPY", ".npz": b"PK", ".mtx": b"%%MatrixMarket"}

PICKLE = b"\x80"
_PICKLED = (
    "{}: holds pickled Python objects, which are not loaded since they may run code; save the "
    "numbers alone, as float64 or float32"
)

# Names that an error lists: a model may have thousands of tensors.
LISTED = 20

# Largest sparse matrix that is made dense, in bytes: a decomposition takes several times as much.
DENSE_LIMIT = 2**31

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
    text = os.fspath(path)
    parts = re.fullmatch(r"(.+?\.(?:npz|safetensors)):(.+)", text, re.IGNORECASE | re.DOTALL)
    if parts and not os.path.exists(text):
        return Path(parts[1]), parts[2]
    return Path(text), None


def names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the arrays in an .npz or .safetensors file; none for files of one nameless array.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    tuple of str

    Raises
    ------
    OSError
        If the file is missing or may not be read.
    ValueError
        If it is damaged, or of another type than its suffix says.
    """
    file, _ = split(path)
    kind = _kind(file)
    if kind == ".safetensors":
        return tuple(_header(file)[0])
    if kind != ".npz":
        return ()
    # An open file: numpy.load leaves a damaged one open.
    with _damage_told(file, kind), open(file, "rb") as stream, _load(stream) as archive:
        return tuple(archive.files)


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
        If it is damaged or of another type than its suffix says, does not hold numbers, holds
        several arrays of which none was chosen, or is sparse and too large to be made dense; if
        reading it takes the extra ``polarlib[files]``, which is not installed.
    """
    file, chosen = split(path)
    name = chosen if name is None else name
    kind = _kind(file)
    if kind == ".safetensors":
        return _read_tensor(file, name)
    if kind == ".npz":
        name = _choose(file, names(file), name)
    elif name is not None:
        raise ValueError(f"{file}: a {kind} file holds one nameless array; leave {name!r} out")
    if kind == ".mtx":
        array = _read_mtx(file)
    else:
        with _damage_told(file, kind), open(file, "rb") as stream:
            array = _load(stream)
            if name is not None:
                with array:
                    array = array[name]
    if array.dtype.kind not in "biufc":
        raise ValueError(
            f"{file}: holds entries of type {array.dtype}, not numbers; save it anew as float64 or "
            "float32"
        )
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
    array = np.asarray(array)
    if array.dtype.type.__module__ == "ml_dtypes":
        array = array.astype(np.float32)
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{path}: entries of type {array.dtype} are not numbers")
    write_whole(path, lambda file: np.save(file, array, allow_pickle=False))


def shipped() -> dict[str, np.ndarray]:
    """Real gradient and momentum matrices of two small networks, by name.

    Returns
    -------
    dict of str to ndarray
        float32; :func:`stories` tells where each comes from and what is hard about it.

    Examples
    --------
    >>> shipped()["transformer_mlp_in_late"].shape
    (512, 128)
    """
    facts = stories()
    file = resources.files("polarlib").joinpath("data/gradients.npz")
    with file.open("rb") as stream, _load(stream) as archive:
        return {
            name: archive[name].astype(np.float32) * np.float32(fact["scale"])
            for name, fact in facts.items()
        }


def stories() -> dict[str, dict[str, Any]]:
    """What is known of every shipped matrix.

    Returns
    -------
    dict of str to dict
        Layer, training step, rank, condition number, the story in a sentence and so on, with the
        data that its network was trained on, their licence and attribution.

    Examples
    --------
    >>> stories()["transformer_mlp_in_late"]["story"]
    'The easiest one: a tall, well-conditioned matrix with a slowly decaying spectrum.'
    """
    told = _told()
    return {
        fact["name"]: fact
        | {key: told["network"][fact["network"]][key] for key in ("data", "licence", "attribution")}
        for fact in told["matrix"]
    }


@functools.cache
def _told() -> dict[str, Any]:
    text = resources.files("polarlib").joinpath("data/gradients.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _kind(file: Path) -> str:
    """The suffix of a file that exists and begins as its suffix says."""
    kind = file.suffix.lower()
    if file.is_dir():
        raise IsADirectoryError(f"{file}: is a folder; name a file in it")
    try:
        with open(file, "rb") as stream:
            start = stream.read(max(map(len, MAGIC.values())))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file") from None
    except OSError as error:
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
            raise ValueError(_PICKLED.format(file))
        raise ValueError(
            f"{file}: this is not a {kind} file, or its beginning is damaged; write it again"
        )
    return kind


@contextlib.contextmanager
def _damage_told(file: Path, kind: str) -> Iterator[None]:
    """Turn what readers raise on damaged files into one line.

    They raise whatever their parsers do, from BadZipFile to TokenError, and promise no list.
    """
    try:
        yield
    except MemoryError:
        raise ValueError(
            f"{file}: too large for the memory of this machine, or its header is damaged"
        ) from None
    except OSError as error:
        raise OSError(f"{file}: cannot be read: {error.strerror or error}") from None
    except Exception as error:
        text = " ".join(str(error).split())
        if "allow_pickle" in text:
            raise ValueError(_PICKLED.format(file)) from None
        raise ValueError(
            f"{file}: the {kind} file is damaged or cut short ({text}); write it again"
        ) from None


def _load(stream: IO[bytes]) -> Any:
    return np.load(stream, allow_pickle=False)


def _choose(file: Path, known: tuple[str, ...], name: str | None) -> str:
    if not known:
        raise ValueError(f"{file}: holds no arrays")
    if name is None:
        if len(known) == 1:
            return known[0]
        more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
        raise ValueError(
            f"{file}: holds {len(known)} arrays; choose one, as in {file}:{known[0]} "
            f"(known: {', '.join(map(repr, known[:LISTED]))}{more})"
        )
    if name not in known:
        similar = difflib.get_close_matches(name, known, n=LISTED, cutoff=0)
        raise ValueError(f"{file}: holds no array {name!r}; {nearest(name, similar)}")
    return name


def _header(file: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """What a .safetensors file says of its tensors, by name, and where their data begin."""
    try:
        import ml_dtypes  # noqa: F401
        from safetensors import safe_open
    except ImportError:
        raise ValueError(
            f"{file}: .safetensors files need the packages safetensors and ml_dtypes; install "
            "polarlib[files]"
        ) from None
    with _damage_told(file, ".safetensors"):
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
    array = np.fromfile(file, dtype, count=math.prod(shape), offset=begin + first).reshape(shape)
    return array if sys.byteorder == "little" else array.byteswap()


def _read_mtx(file: Path) -> np.ndarray:
    import scipy.io
    import scipy.sparse

    with _damage_told(file, ".mtx"):
        rows, columns, _, _, field, _ = scipy.io.mminfo(str(file))
    size = rows * columns * (16 if field == "complex" else 8)
    if size > DENSE_LIMIT:
        raise ValueError(
            f"{file}: {rows} x {columns} entries take {size / 2**30:.1f} GiB as a dense matrix, "
            f"more than {DENSE_LIMIT / 2**30:.0f} GiB; cut out the part that you need"
        )
    with _damage_told(file, ".mtx"):
        matrix = scipy.io.mmread(str(file))
    return matrix.toarray() if scipy.sparse.issparse(matrix) else np.asarray(matrix)
