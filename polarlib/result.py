"""What comes out: :class:`PolarResult`, :class:`Trace`, :class:`Status`, and the warnings."""

from __future__ import annotations

import collections
import contextlib
import csv
import enum
import errno
import functools
import html
import io
import json
import os
import reprlib
import shutil
import signal
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple, TypeVar, cast

import numpy as np

from polarlib._checks import instance
from polarlib._checks import path as checked_path
from polarlib._pytrees import Pytree

__all__ = [
    "ConvergenceWarning",
    "PolarResult",
    "Run",
    "ScheduleWarning",
    "Status",
    "Trace",
    "held_back",
    "ignore_float_errors",
    "load_json",
    "open_regular",
    "read_whole",
    "replaceable",
    "warn",
    "write_together",
    "write_whole",
]


F = TypeVar("F", bound=Callable[..., Any])


class ConvergenceWarning(UserWarning):
    """A method ended before it reached its tolerance; the result's status says what to try."""


class ScheduleWarning(UserWarning):
    """A schedule is used where it may blow up or flip a sign, or its steps look misordered."""


# Per thread, where warnings.catch_warnings would change the filters of all threads.
_held: ContextVar[list[str] | None] = ContextVar("held", default=None)


@contextlib.contextmanager
def held_back() -> Iterator[list[str]]:
    """Collect the messages of polarlib's warnings in a list instead of giving them.

    Examples
    --------
    >>> with held_back() as messages:
    ...     warn("too steep", ScheduleWarning)
    >>> messages
    ['too steep']
    """
    messages: list[str] = []
    token = _held.set(messages)
    try:
        yield messages
    finally:
        _held.reset(token)


def warn(message: str, category: type[Warning]) -> None:
    """Warn of the line that called polarlib, however deep inside the warning arises."""
    held = _held.get()
    if held is not None:
        held.append(message)
        return
    frame, level = sys._getframe(1), 2
    here = os.path.dirname(__file__)
    while frame.f_back and frame.f_code.co_filename.startswith((here, "<string>")):  # dataclasses
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def ignore_float_errors(f: F) -> F:
    """Run a function with NumPy's handling of floating-point errors off, whatever the caller set.

    `numpy.errstate` as a decorator would be the caller whom `warn` finds.
    """

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):
            return f(*args, **kwargs)

    return cast(F, run)


class Status(enum.Enum):
    """How a decomposition ended. The values are remedies.

    Examples
    --------
    >>> Status.CONVERGED.value
    'nothing to do: the factor is orthonormal to the tolerance'
    """

    CONVERGED = "nothing to do: the factor is orthonormal to the tolerance"
    FELL_BACK = "nothing to do: the method failed on this matrix and the SVD took over"
    FIXED_SCHEDULE = (
        "every step of a fixed schedule was taken; for a closer factor take more steps, a schedule "
        "with a smaller lower bound, or method='qdwh'"
    )
    NOT_CONVERGED = "the tolerance was missed: use a larger rtol, or a wider number format"
    NOT_POLAR = "this is the orthonormal QR factor; for the polar factor use method='svd' or 'qdwh'"
    OVERFLOW = "the Hermitian factor exceeds the format's largest number: scale the input down"


class Run(NamedTuple):
    """What a method did.

    Attributes
    ----------
    iterations, matmuls : int
        Iterations, and matrix products in them (factorisations are not products).
    converged : bool
        Whether its own stopping test was met.
    changes : tuple of float
        Relative size of the change in each iteration, where the method measures it.
    singular_values : array or None
        Where the method has them.
    bounds : tuple of float or None
        Certified bounds, up to rounding, of all singular values of the matrices that the method was
        given (over a stack: of every matrix in it), where the method has them.
    method : str
        What ran, where that was a choice; empty if it goes without saying.
    note : str
        Why the method did what it did, in a phrase; empty if there was nothing to choose.
    """

    iterations: int
    matmuls: int
    converged: bool
    changes: tuple[float, ...] = ()
    singular_values: Any = None
    bounds: tuple[float, float] | None = None
    method: str = ""
    note: str = ""


class _Stopped(BaseException):
    """SIGTERM or SIGHUP while files are written."""


def write_whole(path: str | os.PathLike[str], write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file whole or not at all: to a temporary name beside it, then rename.

    Parameters
    ----------
    path : path-like
        Where the file is to be. A symbolic link is followed: the file that it names is replaced.
        A file that is replaced keeps its permissions, a new one gets those that `open` gives.
    write : callable
        Called with a binary file object.

    Raises
    ------
    OSError
        If the folder does not exist or cannot be written, if `path` is a folder, a pipe, a socket
        or a device, or may not be written; `path` is then as it was.
    """
    write_together({path: write})


def write_together(writers: Mapping[Any, Callable[[IO[bytes]], Any]]) -> None:
    """Write several files, all or none, each as :func:`write_whole` does.

    Parameters
    ----------
    writers : mapping
        From paths to callables that are called with a binary file object.

    Raises
    ------
    OSError
        As :func:`write_whole` raises it, with the path that was given; every file is as it was.

    Notes
    -----
    SIGTERM and SIGHUP, where their handlers are the default ones, end the process only after the
    temporary files are removed.
    """
    temporaries: list[str] = []  # each is registered before it is made
    targets: list[str] = []
    replaced: list[tuple[str, str, str | None]] = []
    path: Any = ""
    with _stopped_by_signals() as armed:
        try:
            for path, write in writers.items():
                target, mode = replaceable(path)
                targets.append(target)
                temporaries.append(_beside(target))
                # With the permissions that open() gives: no look at the umask, which is the
                # process's and could be read only by changing it.
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
                with os.fdopen(os.open(temporaries[-1], flags, 0o666), "wb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                if mode is not None:
                    os.chmod(temporaries[-1], mode)
            names = zip(writers, targets, temporaries[:], strict=True)
            for path, target, temporary in names:  # noqa: B007, for messages
                saved = None
                if target is not targets[-1] and os.path.exists(target):
                    temporaries.append(saved := _beside(target))
                    _second_name(target, saved)
                replaced.append((target, temporary, saved))
                os.replace(temporary, target)
            for folder in {os.path.dirname(target) for target in targets}:
                _sync_folder(folder)
        except BaseException as error:
            armed.clear()
            waiting = [temporary for _, temporary, _ in replaced if os.path.exists(temporary)]
            if waiting or len(replaced) < len(writers):  # else all are in their places
                _restore([entry for entry in replaced if entry[1] not in waiting], temporaries)
            if (
                isinstance(error, OSError)
                and error.errno is not None
                and error.filename in (None, *temporaries)
            ):
                raise OSError(error.errno, error.strerror, os.fspath(path)) from None
            raise
        finally:
            armed.clear()
            for temporary in temporaries:
                with contextlib.suppress(OSError):  # renamed, or never made
                    os.unlink(temporary)


def _restore(replaced: list[tuple[str, str, str | None]], temporaries: list[str]) -> None:
    """Put back what was in the places of files that were renamed."""
    for target, _, saved in replaced:
        with contextlib.suppress(OSError):
            if saved is None:
                os.unlink(target)
            else:
                temporaries.remove(saved)  # it is the only copy
                os.replace(saved, target)


def replaceable(path: str | os.PathLike[str]) -> tuple[str, int | None]:
    """Check that a file can be written, before anything is computed for it.

    Parameters
    ----------
    path : path-like
        Where the file is to be.

    Returns
    -------
    target : str
        The file behind symbolic links.
    mode : int or None
        Its permissions, if there is one to replace.

    Raises
    ------
    OSError
        As :func:`write_whole` raises it.
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
    if mode is not None and not os.access(target, os.W_OK):  # a rename would go ahead all the same
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    return target, mode


def _regular(path: str | os.PathLike[str], remedy: str) -> os.stat_result:
    """Return the state of a regular file; refuse what may have no end or no other side."""
    state = os.stat(path)
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(f"{os.fspath(path)}: is a folder; name a file in it")
    if not stat.S_ISREG(state.st_mode):
        raise OSError(f"{os.fspath(path)}: is a pipe, a socket or a device; {remedy}")
    return state


def _beside(target: str) -> str:
    """Return a name that nothing has, in the same folder and short enough for it."""
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name[:40]}.{os.urandom(8).hex()}.tmp")


def _second_name(file: str, name: str) -> None:
    try:
        os.link(file, name)
    except OSError:  # a file system without links, or not our file
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
def _stopped_by_signals() -> Iterator[list[bool]]:
    """Turn SIGTERM and SIGHUP into an exception; let them end the process after the block.

    Gives a list; once it is empty, as it should be while files are removed, nothing is raised.
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
    """Open a regular file to read it.

    Parameters
    ----------
    path : path-like
        Folders, pipes, sockets and devices are refused: they may be read for ever.

    Raises
    ------
    OSError
        If the file cannot be opened or is no regular file.
    """
    _regular(path, "copy what it gives into a file")
    return open(path, "rb")


def read_whole(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a regular file that is no larger than a limit.

    Parameters
    ----------
    path : path-like
        The file, as :func:`open_regular` takes it.
    limit : int
        Number of bytes.

    Raises
    ------
    OSError
        If the file cannot be read or is no regular file.
    ValueError
        If it is larger.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{os.fspath(path)}: is larger than {limit / 2**20:g} MiB")
    return content


def load_json(content: bytes, file: str | os.PathLike[str]) -> Any:
    """Parse JSON whose keys are unique.

    Parameters
    ----------
    content : bytes
        The text.
    file : path-like
        What messages name.

    Raises
    ------
    ValueError
        If the text is not JSON.
    """

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
    except ValueError as error:
        raise ValueError(f"{os.fspath(file)}: is not JSON: {error}") from None


@dataclass(frozen=True, eq=False)
class Trace:
    """What happened at each step; row 0 is the normalised input.

    Attributes
    ----------
    method : str
        Schedule or method.
    precision : str
        Number format of the iteration.
    form : str
        ``"plain"`` or ``"gram"``; empty for methods that are not fixed schedules.
    shape : tuple of int
        Shape of the matrix.
    simulated : bool
        Whether the format was simulated (operands rounded, float32 accumulation, one rounding).
    matmuls : ndarray, shape (steps + 1,)
        Matrix products spent so far.
    singular_values : ndarray, shape (steps + 1, k)
        Singular values of the iterate, k = min(m, n). A column follows one singular value of the
        input, largest first.
    alignment : ndarray, shape (steps + 1, k)
        Cosine between the image ``X v_i`` of a right singular vector of the input and its left
        singular vector ``u_i``: 1 where the direction is kept, negative where its sign is flipped,
        0 where nothing is left of it.
    orthogonality : ndarray, shape (steps + 1,)
        ``||X^H X - I||_F / sqrt(k)`` on the small side.
    backward_error : ndarray, shape (steps + 1,)
        ``||A - X H||_F / ||A||_F`` with ``H`` the Hermitian part of ``X^H A``.
    distance : ndarray, shape (steps + 1,)
        ``||X - U||_F / sqrt(k)`` to the reference unitary factor.
    """

    method: str
    precision: str
    form: str
    shape: tuple[int, ...]
    simulated: bool
    matmuls: np.ndarray
    singular_values: np.ndarray
    alignment: np.ndarray
    orthogonality: np.ndarray
    backward_error: np.ndarray
    distance: np.ndarray

    @property
    def steps(self) -> int:
        """Number of steps taken."""
        return len(self.matmuls) - 1

    def __repr__(self) -> str:
        s = self.singular_values[-1] if self.singular_values.size else np.zeros(1)
        return (
            f"Trace({self.method!r}, {self.precision}, {self.form + ', ' if self.form else ''}"
            f"{'x'.join(map(str, self.shape))}, {self.steps} steps, {self.matmuls[-1]} products: "
            f"singular values in [{s.min():.3g}, {s.max():.3g}], "
            f"orthogonality {self.orthogonality[-1]:.2e})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers, ready for JSON (non-finite numbers become None)."""
        return {name: plain(getattr(self, name)) for name in self.__dataclass_fields__}

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one row a step: figures, then ``sigma_1 ... sigma_k``. Whole or not at all.

        Parameters
        ----------
        path : path-like
            Where to write.
        """

        def write(file: IO[bytes]) -> None:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            rows = csv.writer(text, lineterminator="\n")
            names = ["matmuls", "orthogonality", "backward_error", "distance"]
            k = self.singular_values.shape[1]
            rows.writerow(["step", *names, *(f"sigma_{i + 1}" for i in range(k))])
            for step in range(self.steps + 1):
                figures = [getattr(self, name)[step] for name in names]
                rows.writerow(
                    [step, *(repr(v.item()) for v in figures)]
                    + [repr(float(v)) for v in self.singular_values[step]]
                )
            text.flush()
            text.detach()

        write_whole(checked_path("path", path), write)


def plain(value: Any) -> Any:
    """Turn arrays, enums and paths into what JSON can hold; NaN and infinity into None.

    Examples
    --------
    >>> plain(np.array([1.0, np.inf]))
    [1.0, None]
    """
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if hasattr(value, "shape"):  # of another library
        known = _known(value)
        return str(value) if known is None else plain(known)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


@dataclass(frozen=True, eq=False)
class PolarResult(Pytree):
    """A polar decomposition with its evidence; unpacks as ``u, h``.

    Half-precision matrices are decomposed in float32: `status` judges those factors, the error
    figures are those of the rounded ones that are returned.

    For JAX this is a pytree, whose leaves are all attributes but `status`, `method` and `reason`.
    Under ``jax.jit`` and ``jax.vmap`` the leaves are arrays of JAX, computed with the factors, one
    value for each matrix; there `status` and `reason`, which depend on values, are None, and
    `trace` is empty.

    Attributes
    ----------
    unitary : array, shape (..., m, n)
        Unitary factor U: orthonormal columns if m >= n, orthonormal rows otherwise.
    hermitian : array, shape (..., n, n) or (..., m, m)
        Hermitian factor H: ``A = U H`` (side "right") or ``A = H U`` (side "left"). Hermitian bit
        for bit, positive semidefinite to rounding.
    status : Status or None
        How it ended; ``status.value`` is the remedy.
    converged : bool
        Whether, for every matrix, orthogonality and backward error met the tolerance and H is
        positive semidefinite. Under ``jax.jit`` an array, for each matrix.
    iterations, matmuls : int
        Iterations and matrix products of the method (factorisations are not products).
    method : str
        Method that made U, for example ``"svd"`` or ``"newton, then svd"``.
    orthogonality : float or ndarray
        ``||U^H U - I||_F / sqrt(k)`` on the small side, k = min(m, n); one figure a matrix. Above
        128 columns this and the next figure are estimates by eight random vectors, right to a
        few percent for rounding errors, which have many directions.
    backward_error : float or ndarray
        ``||A - U H||_F / ||A||_F`` (0 for a zero matrix); one figure a matrix.
    rank : int or ndarray of int
        Number of singular values above ``max(m, n) * eps * sigma_max``.
    condition_bounds : tuple of two floats or ndarrays
        Lower and upper bound of the 2-norm condition number, up to rounding; the upper one is
        infinite where full rank was not certified or `rank` is not full.
    reason : str
        Why "auto" chose the method, or why the SVD took over; empty if there was no choice.
    trace : tuple of float
        Size of the change in each iteration, as the method measures it (empty for direct methods
        and fixed schedules); :func:`polarlib.measure` gives the full story.
    """

    static = ("status", "method", "reason")

    unitary: Any
    hermitian: Any
    status: Any
    converged: Any
    iterations: Any
    matmuls: Any
    method: str
    orthogonality: Any
    backward_error: Any
    rank: Any
    condition_bounds: tuple[Any, Any] = (1.0, float("inf"))
    reason: str | None = ""
    trace: tuple[float, ...] = field(default=())

    def __iter__(self) -> Iterator[Any]:
        return iter((self.unitary, self.hermitian))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return (self.unitary, self.hermitian)[instance("index", index, int | slice, "0 or 1")]

    def _shape(self) -> tuple[int, ...]:
        # While JAX takes a tree to pieces, there may be anything in place of a factor.
        return tuple(getattr(self.unitary, "shape", ()))

    def _figures(self) -> dict[str, Any]:
        status = f"converged: {_short(self.converged)}"
        if self.status is not None:
            status = f"{self.status.name.lower()}: {self.status.value}"
        return {
            "shape": self._shape(),
            "method": self.method,
            "status": status,
            "iterations": _short(self.iterations),
            "matrix products": _short(self.matmuls),
            "orthogonality": _short(self.orthogonality),
            "backward error": _short(self.backward_error),
            "rank": _short(self.rank),
            "condition": _between(*self.condition_bounds),
        } | ({"reason": self.reason} if self.reason else {})

    def __repr__(self) -> str:
        lines = (f"  {name:<16}{value}" for name, value in self._figures().items())
        return "PolarResult\n" + "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{k}</th><td>{html.escape(str(v))}</td></tr>"
            for k, v in self._figures().items()
        )
        return f"<table><caption>PolarResult</caption>{rows}</table>"

    def to_dict(self) -> dict[str, Any]:
        """Return the figures (not the factors) as plain numbers and strings, ready for JSON."""
        names = [n for n in self.__dataclass_fields__ if n not in ("unitary", "hermitian")]
        return {"shape": list(self._shape())} | {n: plain(getattr(self, n)) for n in names}


def _known(value: Any) -> np.ndarray | None:
    """The numbers of a figure; None where it is traced, or no number."""
    try:
        known = np.asarray(value)
    except TypeError:  # JAX's tracers
        return None
    return known if known.dtype.kind in "biuf" else None


def _between(lower: Any, upper: Any) -> str:
    """Say in which range condition numbers lie."""
    low, high = _known(lower), _known(upper)
    if low is None or high is None:
        return f"{lower} to {upper}"
    if low.size == 0:
        return "none"
    return f"{low.min().item():.2e} to {high.max().item():.2e}"


def _short(value: Any) -> str:
    """Format one figure, or the range of a batch."""
    known = _known(value)
    if known is None:
        return str(value)
    text = (lambda v: f"{v:.2e}") if known.dtype.kind == "f" else str
    if known.size == 0:
        return "none"
    if known.size == 1:
        return text(known.item())
    return f"{text(known.min().item())} to {text(known.max().item())}"
