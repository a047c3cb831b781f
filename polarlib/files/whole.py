"""Files that are written whole or not at all, and read within limits."""

from __future__ import annotations

import collections
import contextlib
import errno
import hashlib
import importlib
import json
import os
import reprlib
import shutil
import signal
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

fcntl: Any = None
with contextlib.suppress(ImportError):  # Windows has no such locks
    fcntl = importlib.import_module("fcntl")

# Ends of the temporary names of outputs that are written in blocks, and of files that are replaced.
PART, OLD = ".polarlib-part", "-old"
LONGEST_NAME = 200  # bytes; file systems have a limit of 255 with these ends
NONE: Mapping[Any, str] = MappingProxyType({})

PICKLED = (
    "{}: holds pickled Python objects, which are not loaded since they may run code; save the "
    "numbers alone, as float64 or float32"
)


@contextlib.contextmanager
def damage_named(file: Path, kind: str) -> Iterator[None]:
    """Turn the errors of readers on damaged files into errors of one line.

    Readers raise the errors of their parsers, from BadZipFile to TokenError; no list of them is
    documented.
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
            raise ValueError(PICKLED.format(file)) from None
        raise ValueError(
            f"{file}: the {kind} file is damaged or cut short ({text}); write it again"
        ) from None


class _Stopped(BaseException):
    """SIGTERM or SIGHUP while files are written."""


def write_whole(path: str | os.PathLike[str], write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file whole or not at all: to a temporary name beside it, then rename.

    `write` is called with a binary file object. A symbolic link is followed: the file that it names
    is replaced. A file that is replaced keeps its permissions, a new one gets those that `open`
    gives. Raise OSError if the folder does not exist or cannot be written, or if `path` is a
    folder, a pipe, a socket or a device, or cannot be written; `path` is then unchanged.
    """
    write_together({path: write})


def write_together(
    writers: Mapping[Any, Callable[[IO[bytes]], Any]], ready: Mapping[Any, str] = NONE
) -> None:
    """Write several files, all or none, each as :func:`write_whole` does.

    `ready` has outputs that are written already: their temporary names, of :func:`unfinished`.
    An OSError has the path as given; every existing file is then unchanged. SIGTERM and SIGHUP, if
    their handlers are the defaults, end the process only after the temporary files are removed.
    """
    temporaries: list[str] = []  # each is registered before it is made
    targets: list[str] = []
    replaced: list[tuple[str, str, str | None]] = []
    path: Any = ""
    wanted = [*writers, *ready]
    with stopped_by_signals() as armed:
        try:
            for path, write in writers.items():
                target, mode = replaceable(path)
                targets.append(target)
                temporaries.append(beside(target))
                # With the permissions that open() gives. The umask is not read, because reading it
                # would change it for the whole process.
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
                with os.fdopen(os.open(temporaries[-1], flags, 0o666), "wb") as file:
                    write(file)
                    file.flush()
                    # Before the rename, so that a crash leaves no empty file of that name.
                    os.fsync(file.fileno())
                if mode is not None:
                    os.chmod(temporaries[-1], mode)
            for path, temporary in ready.items():
                target, mode = replaceable(path)
                targets.append(target)
                temporaries.append(temporary)
                if os.path.isfile(temporary):
                    with open(temporary, "r+b") as file:
                        os.fsync(file.fileno())
                if mode is not None:
                    os.chmod(temporary, mode)
            names = zip(wanted, targets, temporaries[:], strict=True)
            for path, target, temporary in names:  # noqa: B007, for messages
                saved = None
                if target is not targets[-1] and os.path.exists(target):
                    saved = temporary + OLD if temporary in ready.values() else beside(target)
                    temporaries.append(saved)
                    _second_name(target, saved)
                replaced.append((target, temporary, saved))
                os.replace(temporary, target)
            for folder in {os.path.dirname(target) for target in targets}:
                _sync_folder(folder)
        except BaseException as error:
            armed.clear()
            waiting = [temporary for _, temporary, _ in replaced if os.path.exists(temporary)]
            if waiting or len(replaced) < len(wanted):  # otherwise all are in place
                _restore([entry for entry in replaced if entry[1] not in waiting], temporaries)
            if (
                isinstance(error, OSError)
                and error.errno is not None
                and (error.filename is None or str(error.filename).startswith(tuple(temporaries)))
            ):
                raise OSError(error.errno, error.strerror, os.fspath(path)) from None
            raise
        finally:
            armed.clear()
            for temporary in temporaries:
                with contextlib.suppress(OSError):  # renamed, or never made
                    os.unlink(temporary)


def _restore(replaced: list[tuple[str, str, str | None]], temporaries: list[str]) -> None:
    """Restore the files that were replaced."""
    for target, _, saved in replaced:
        with contextlib.suppress(OSError):
            if saved is None:
                _remove(target)
            else:
                temporaries.remove(saved)  # it is the only copy
                os.replace(saved, target)


@contextlib.contextmanager
def unfinished(path: str | os.PathLike[str], *, folder: bool = False) -> Iterator[str]:
    """Reserve a temporary name for an output; yield the name of a file or folder that is empty.

    The name depends on `path` alone, so that the next call removes what a process that was killed
    has left. It is locked: OSError is raised where another process writes the same output. At the
    end it is removed, unless :func:`write_together` has moved it.
    """
    if folder and os.path.lexists(path):
        raise FileExistsError(
            f"{os.fspath(path)}: exists already; remove it, or choose another name"
        )
    target, _ = replaceable(path)
    where, name = os.path.split(target)
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    temporary = os.path.join(where, f".{name}{PART}")
    with stopped_by_signals() as armed:
        handle = _reserve(path, temporary, folder)
        try:
            _remove(temporary + OLD)
            yield temporary
        finally:
            armed.clear()
            if _is_same(handle, temporary):
                _remove(temporary)
            if handle is not None:
                os.close(handle)


def _reserve(path: str | os.PathLike[str], name: str, folder: bool) -> int | None:
    """Make an empty file or folder, and lock it; return the handle that holds the lock."""
    if fcntl is None:  # Windows, which refuses to remove a file that is open
        _remove(name)
        os.mkdir(name) if folder else open(name, "xb").close()
        return None
    while True:
        if os.path.lexists(name) and (os.path.islink(name) or os.path.isdir(name) != folder):
            _remove(name)
        if folder:
            os.makedirs(name, exist_ok=True)
        flags = os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        handle = os.open(name, flags, 0o777 if folder else 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise OSError(
                f"{os.fspath(path)}: is being written by another process; wait for it, or choose "
                "another name"
            ) from None
        except OSError:  # a file system without locks
            pass
        # Between opening and locking, another process may have moved or removed the file.
        if _is_same(handle, name):
            for entry in os.scandir(name) if folder else ():
                _remove(entry.path)
            if not folder:
                os.ftruncate(handle, 0)
            return handle
        os.close(handle)


def _is_same(handle: int | None, name: str) -> bool:
    try:
        return handle is None or os.path.samestat(os.fstat(handle), os.lstat(name))
    except FileNotFoundError:
        return False


def _remove(path: str) -> None:
    """Remove a file or a folder, if it exists."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def replaceable(path: str | os.PathLike[str]) -> tuple[str, int | None]:
    """Check that a file can be written, before its content is computed.

    Return the file behind symbolic links, and its permissions if there is one to replace; raise
    OSError as :func:`write_whole` does.
    """
    name = os.fsdecode(path)
    target = os.path.realpath(name)
    try:
        mode = stat.S_IMODE(_regular(name, "name a file").st_mode)
    except FileNotFoundError:
        if not os.path.basename(name):
            raise
        mode = None
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        where = os.path.dirname(name) or folder
        raise FileNotFoundError(f"{name}: there is no folder {where}; create it first")
    if not os.access(folder, os.W_OK):
        where = os.path.dirname(name) or "."
        raise PermissionError(f"{name}: the folder {where} cannot be written")
    if mode is not None and not os.access(target, os.W_OK):  # os.replace would not fail
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    return target, mode


def _regular(path: str | os.PathLike[str], remedy: str) -> os.stat_result:
    """Return the state of a regular file; raise OSError for others, which may never end."""
    state = os.stat(path)
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(f"{os.fspath(path)}: is a folder; name a file in it")
    if not stat.S_ISREG(state.st_mode):
        raise OSError(f"{os.fspath(path)}: is a pipe, a socket or a device; {remedy}")
    return state


def beside(target: str) -> str:
    """Return an unused name in the same folder, short enough for its file system."""
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name[:40]}.{os.urandom(8).hex()}.tmp")


def _second_name(file: str, name: str) -> None:
    try:
        os.link(file, name)
    except OSError:  # a file system without links, or a file of another user
        shutil.copy2(file, name)


def _sync_folder(folder: str) -> None:
    """Write the names in a folder to the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[list[bool]]:
    """Turn SIGTERM and SIGHUP into an exception; let them end the process after the block.

    Yield a list. Nothing is raised once the list is empty; empty it before files are removed.
    """
    caught: list[int] = []
    armed = [True]

    def stop(number: int, frame: Any) -> None:
        caught.append(number)
        if armed:
            armed.clear()
            raise _Stopped

    ours = []
    for name in ("SIGTERM", "SIGHUP"):  # Windows lacks the second
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(number, stop)
                ours.append(number)
    try:
        yield armed
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
        if caught:
            signal.raise_signal(caught[0])


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a regular file for reading.

    Raise OSError for folders, pipes, sockets and devices, whose reading may never end.
    """
    _regular(path, "copy its content to a file")
    return open(path, "rb")


def read_whole(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a regular file by :func:`open_regular`; raise ValueError above a limit in bytes."""
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{os.fspath(path)}: is larger than {limit / 2**20:g} MiB")
    return content


def load_json(content: bytes, file: str | os.PathLike[str]) -> Any:
    """Parse JSON whose keys are unique; for other text raise ValueError with the file's name."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            ((twice, _),) = collections.Counter(name for name, _ in pairs).most_common(1)
            raise ValueError(f"the key {reprlib.repr(twice)} occurs twice")
        return found

    try:
        return json.loads(content, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError(f"{os.fspath(file)}: is not JSON: it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError(f"{os.fspath(file)}: is not JSON: it is not UTF-8 text") from None
    except ValueError as error:
        raise ValueError(f"{os.fspath(file)}: is not JSON: {error}") from None
