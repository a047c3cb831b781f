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
import itertools
import json
import math
import os
import re
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NamedTuple, cast

import numpy as np

from polarlib import _checks
from polarlib.formats import nearest
from polarlib.ops import dtype_name, ops_of, physical_memory
from polarlib.result import open_regular, write_together

__all__ = ["SUFFIXES", "names", "read", "shipped", "split", "stories", "write_npy", "write_npys"]

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
    text = os.fspath(_checks.path("path", path))
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
    with _damage_told(file, kind), zipfile.ZipFile(file) as archive:
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
        If it is damaged or of another type than its suffix says, does not hold numbers, holds
        several arrays of which none was chosen, or is a Matrix Market matrix that takes more than
        2 GiB as a dense one; if reading it takes the extra ``polarlib[files]``, which is not
        installed.

    Notes
    -----
    Of Matrix Market files, coordinate and array ones are read with every field and symmetry that
    their specification has (R. F. Boisvert, R. Pozo and K. A. Remington, NISTIR 5935, 1996), and
    with Fortran's exponents, 1.0D+01. Coordinate entries that are listed twice are added, as
    `scipy.io.mmread` adds them; entries above the diagonal of a symmetric matrix are refused. What
    is wrong is told with the number of its line.
    """
    file, chosen = split(path)
    name = chosen if name is None else _checks.text("name", name)
    kind = _kind(file)
    if kind == ".safetensors":
        return _read_tensor(file, name)
    if kind == ".npz":
        name = _choose(file, names(file), name)
    elif name is not None:
        raise ValueError(
            f"{file}: a {kind} file holds one nameless array; leave {_checks.shown(name)} out"
        )
    if kind == ".mtx":
        array = _read_mtx(file)
    else:
        with _damage_told(file, kind), contextlib.ExitStack() as stack:
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
    write_npys({_checks.path("path", path): array})


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
    _checks.instance("arrays", arrays, Mapping, "a mapping from paths to arrays")
    write_together({path: _npy_writer(path, array) for path, array in arrays.items()})


def _npy_writer(path: str | os.PathLike[str], array: Any) -> Callable[[IO[bytes]], None]:
    """Return what writes an array to a file object, from the host's memory."""
    path, array = _checks.path("a path of arrays", path), _checks.short("array", array)
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
    with file.open("rb") as stream, np.load(stream) as archive:
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
    try:
        with open_regular(file) as stream:
            start = stream.read(max(map(len, MAGIC.values())))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file") from None
    except OSError as error:
        if error.strerror is None:  # it is no regular file, and says so
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


def _read_whole(stream: IO[bytes]) -> np.ndarray:
    """Read an array in NumPy's format that takes the whole stream."""
    array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
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
        similar = difflib.get_close_matches(name, known, n=LISTED, cutoff=0)
        raise ValueError(f"{file}: holds no array {_checks.shown(name)}; {nearest(name, similar)}")
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


# What an entry of a Matrix Market file looks like, by field, and the dtype that it is read in.
# Fortran writes ten as 1.0D+01.
_INDEX = rb"[0-9]{1,18}"  # all of these fit in an int64
_REAL = rb"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eEdD][+-]?[0-9]+)?|(?i:nan|inf|infinity))"
_FIELDS: dict[str, tuple[bytes, type[Any]]] = {
    "real": (_REAL, np.float64),
    "double": (_REAL, np.float64),
    "complex": (_REAL + rb"[ \t]+" + _REAL, np.complex128),
    "integer": (rb"[+-]?[0-9]{1,20}", np.int64),
    "unsigned-integer": (rb"[0-9]{1,20}", np.uint64),
    "pattern": (b"", np.float64),
}
# Entry (j, i) from entry (i, j), where one triangle is listed.
_MIRROR: dict[str, Any] = {
    "general": None,
    "symmetric": lambda v: v,
    "skew-symmetric": lambda v: -v,
    "hermitian": np.conj,
}
_FORTRAN = bytes.maketrans(b"dD", b"ee")
_LINES = 2**16  # read at once
LINE = 2**16  # bytes of a line that are read; the specification allows 1024

Line = tuple[int, bytes]  # with its number in the file


class _Market(NamedTuple):
    """What the header and the sizes of a Matrix Market file declare."""

    coordinate: bool
    field: str
    symmetry: str
    shape: tuple[int, int]
    entries: int

    def __str__(self) -> str:
        return f"{self.symmetry} {self.field} matrix, {self.shape[0]} x {self.shape[1]}"


def _read_mtx(file: Path) -> np.ndarray:
    """Read a Matrix Market file, made dense; entries listed twice are added, as SciPy adds them.

    By code of our own: SciPy's parser reads 1.0D+01 as 1, and on files that are cut short inside a
    number or have no rows it ends the process.
    """
    with _damage_told(file, ".mtx"), open(file, "rb") as stream:
        words = _mtx_words(stream.readline(LINE))
        lines = _mtx_lines(stream)
        market = _mtx_sizes(lines, *words)
        size = math.prod(market.shape) * np.dtype(_FIELDS[market.field][1]).itemsize
        if size <= DENSE_LIMIT:
            return _mtx_dense(lines, market)
    raise ValueError(
        f"{file}: a {market} takes {size / 2**30:.1f} GiB as a dense matrix, more than "
        f"{DENSE_LIMIT / 2**30:.0f} GiB; cut out the part that you need"
    )


def _mtx_words(line: bytes) -> tuple[str, str, str]:
    """Format, field and symmetry in the first line."""
    words = line.decode("ascii", "replace").lower().split()
    start, kind, form, field, symmetry = words if len(words) == 5 else [""] * 5
    known = (start, kind) == ("%%matrixmarket", "matrix")
    known &= form in ("array", "coordinate") and field in _FIELDS and symmetry in _MIRROR
    bare = field == "pattern" and (form == "array" or symmetry in ("skew-symmetric", "hermitian"))
    if bare or not known:
        raise ValueError(
            f"line 1: the header must be %%MatrixMarket matrix, array or coordinate, one of "
            f"{', '.join(_FIELDS)} and one of {', '.join(_MIRROR)}, got {_quoted(line)}"
        )
    return form, field, symmetry


def _mtx_lines(stream: IO[bytes]) -> Iterator[Line]:
    """Lines after the header, without blank ones and comments."""
    for number, line in enumerate(iter(functools.partial(stream.readline, LINE), b""), 2):
        stripped = line.strip(b" \t\r\n")
        if stripped and not stripped.startswith(b"%"):
            yield number, stripped


def _mtx_sizes(lines: Iterator[Line], form: str, field: str, symmetry: str) -> _Market:
    number, line = next(lines, (2, b""))
    sizes = line.split()
    wanted = 2 if form == "array" else 3
    if len(sizes) != wanted or not all(re.fullmatch(_INDEX, size) for size in sizes):
        raise ValueError(
            f"line {number}: {wanted} sizes of an {form} file must be here, got {_quoted(line)}"
        )
    rows, columns, *rest = map(int, sizes)
    if symmetry != "general" and rows != columns:
        raise ValueError(f"line {number}: a {symmetry} matrix is square, got {rows} x {columns}")
    stored = {"general": rows * columns, "skew-symmetric": rows * (rows - 1) // 2}
    count = rest[0] if rest else stored.get(symmetry, rows * (rows + 1) // 2)
    return _Market(form == "coordinate", field, symmetry, (rows, columns), count)


def _mtx_dense(lines: Iterator[Line], market: _Market) -> np.ndarray:
    """The matrix, from the lines of its entries."""
    value, dtype = _FIELDS[market.field]
    parts = [_INDEX] * (2 * market.coordinate) + [value] * (market.field != "pattern")
    pattern = re.compile(rb"[ \t]+".join(parts))
    width = 2 * market.coordinate + {"pattern": 0, "complex": 2}.get(market.field, 1)
    where = None if market.coordinate else _mtx_places(market)
    # Sums of integers are exact, and refused where the dtype does not hold them.
    dense = np.zeros(market.shape, dtype if dtype in (np.float64, np.complex128) else object)
    mirror = _MIRROR[market.symmetry]
    done, number = 0, 2
    while chunk := list(itertools.islice(lines, _LINES)):
        _mtx_check_lines(chunk, pattern, market, done)
        tokens = b" ".join(line for _, line in chunk).translate(_FORTRAN).split()
        columns = [tokens[k::width] for k in range(width)]
        if where is None:
            i, j = (np.array(list(map(int, c)), np.int64) - 1 for c in columns[:2])
        else:
            i, j = where(np.arange(done, done + len(chunk)))
        v = _mtx_values(columns[2 * market.coordinate :], market.field, len(chunk))
        _mtx_check_entries(chunk, market, i, j, v)
        np.add.at(dense, (i, j), v)
        if mirror is not None:
            off = i != j
            np.add.at(dense, (j[off], i[off]), mirror(v[off]))
        done, number = done + len(chunk), chunk[-1][0]
    if done < market.entries:
        raise ValueError(f"line {number}: the file ends after {done} of {market.entries} entries")
    return dense.astype(dtype, copy=False)


def _mtx_places(market: _Market) -> Callable[[np.ndarray], Any]:
    """Return the function from numbers of entries to their rows and columns, in array files."""
    rows = market.shape[0]
    if market.symmetry == "general":
        return lambda k: (k % rows, k // rows)
    # By columns, the lower triangle lies as the upper one does by rows.
    j, i = np.triu_indices(rows, int(market.symmetry == "skew-symmetric"))
    return lambda k: (i[k], j[k])


def _mtx_check_lines(
    chunk: list[Line], pattern: re.Pattern[bytes], market: _Market, done: int
) -> None:
    for number, line in chunk:
        if not pattern.fullmatch(line):
            what = f"{'two indices and ' * market.coordinate}a {market.field} entry"
            raise ValueError(f"line {number}: {what} must be here, got {_quoted(line)}")
    if done + len(chunk) > market.entries:
        number, _ = chunk[market.entries - done]
        raise ValueError(f"line {number}: more than {market.entries} entries")


def _mtx_check_entries(
    chunk: list[Line], market: _Market, i: np.ndarray, j: np.ndarray, v: np.ndarray
) -> None:
    """Refuse what lies outside of the matrix or its triangle, or does not fit its dtype."""
    wrong = (i < 0) | (i >= market.shape[0]) | (j < 0) | (j >= market.shape[1])
    if v.dtype == object:
        limits = np.iinfo(_FIELDS[market.field][1])
        wrong |= (v < limits.min) | (v > limits.max)
    if mirror := _MIRROR[market.symmetry]:
        wrong |= (i < j) | ((i == j) & (v != mirror(v)) & (v == v))
    if wrong.any():
        number, line = chunk[int(wrong.argmax())]
        raise ValueError(f"line {number}: {_quoted(line)} is no entry of a {market}")


def _mtx_values(columns: list[list[bytes]], field: str, count: int) -> np.ndarray:
    if field == "pattern":
        return np.ones(count)
    if field.endswith("integer"):
        return np.array(list(map(int, columns[0])), object)
    real, *imaginary = (np.array(list(map(float, column))) for column in columns)
    if not imaginary:
        return real
    v = real.astype(np.complex128)
    v.imag = imaginary[0]  # not real + 1j * imaginary, which makes NaN of infinities
    return v


def _quoted(line: bytes) -> str:
    return repr(line[:60].decode("ascii", "replace"))
