"""What the parts of tests/gpu/run.py share: figures and checks, time, array libraries."""

from __future__ import annotations

import contextlib
import importlib
import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

import polarlib
from gpu.libraries import KINDS, Library
from polarlib.arrays.formats import format_of
from polarlib.arrays.ops import ops_of
from polarlib.arrays.rounded import round_to

Array = Any
T = TypeVar("T")
REAL = ("bfloat16", "float32", "float16", "float64")
# Bounds of the difference from NumPy's result: steps magnify the roundings of small singular
# values, and what differs between libraries is the order of sums.
AGREES = {"float16": 0.1, "bfloat16": 0.1, "tf32": 2e-2, "float32": 2e-4, "complex64": 2e-4}
TIGHT = 1e-11


def say(what: Any) -> None:
    """Print a line at once: a run may be cut off."""
    print(what, flush=True)  # noqa: T201, a program for the command line


@dataclass(frozen=True)
class Row:
    """One figure; with a bound it is a check; with a reason it says what was left out."""

    part: str
    what: str
    value: float | None = None
    bound: float | None = None
    unit: str = ""
    skipped: str = ""
    more: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        if self.bound is None or self.value is None:
            return True
        return self.value <= self.bound  # NaN is not

    def __str__(self) -> str:
        head = f"{self.part:13s} {self.what:58s}"
        if self.value is None:
            return f"{head} skipped: {self.skipped}"
        text = f"{head} {self.value:11.4g} {self.unit}"
        if self.bound is None:
            more = "".join(f", {what} {value:.4g}" for what, value in self.more.items())
            return text.rstrip() + more
        return f"{text:85s} <= {self.bound:.3g} {'ok' if self.passed else 'FAILED'}"


@dataclass(eq=False)
class Context:
    """What a part is given.

    Attributes
    ----------
    device : {"gpu", "cpu"}
        Where arrays lie. On "cpu" torch and JAX compute there, CuPy is the tests' mock, and
        times mean nothing.
    quick : bool
        Fewer cases and smaller matrices.
    libraries : dict
        Array libraries that are there, by name.
    absent : dict
        Why others are not.
    rows : list of Row
        What was found so far.
    failures : list of dict
        Where a part could not go on, as a whole, for one library or in one case, and why.
    """

    device: str
    quick: bool = False
    libraries: dict[str, Library] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    part: str = ""
    end: float = math.inf

    @property
    def on_gpu(self) -> bool:
        return self.device == "gpu"

    def pick(self, full: T, quick: T, on_cpu: T) -> T:
        """What the three kinds of run have: sizes, shapes, cases."""
        if not self.on_gpu:
            return on_cpu
        return quick if self.quick else full

    # -- results

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        say(row)

    def failed(self, what: str, error: Exception) -> None:
        """An exception that ended a part, its work for one library, or one case."""
        trace = "".join(traceback.format_exception(error))
        self.failures.append({"part": self.part, "what": what, "error": trace[-4000:]})
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        say(f"{self.part:13s} {what:58s} FAILED: {text}")

    @contextlib.contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Report an exception in the block, and go on after it."""
        try:
            yield
        except Exception as error:
            self.failed(what, error)

    def note(self, text: str) -> None:
        """Print what is neither a figure nor a check."""
        say(f"{self.part:13s} {text}")

    def check(self, what: str, value: float, bound: float, unit: str = "") -> None:
        """A number that must not exceed its bound."""
        self._add(Row(self.part, what, float(value), float(bound), unit))

    def figure(self, what: str, value: float, unit: str = "", **more: float) -> None:
        """A number that is only reported, and others that belong to it."""
        self._add(Row(self.part, what, float(value), unit=unit, more=more))

    def skip(self, what: str, why: str) -> None:
        """What could not be done, and why."""
        self._add(Row(self.part, what, skipped=why))

    # -- time

    @property
    def left(self) -> float:
        """Seconds of the part's share that are left."""
        return self.end - time.monotonic()

    def has_time(self, what: str, needed: float = 0.0) -> bool:
        """Whether there is time for more; otherwise say what is left out."""
        if self.left > needed:
            return True
        self.skip(what, "the time of this part is used")
        return False

    # -- libraries

    def per_library(self, of_one: Callable[[Context, Any], None], *names: str) -> dict[str, Any]:
        """Do a part's work for each library, caught and with its share of the part's time.

        With names, those libraries alone, on a GPU; the reason is reported where one has none.
        """
        chosen = [name for name in names or self.libraries if not names or self._has_device(name)]
        end = self.end
        for i, name in enumerate(chosen):
            now = time.monotonic()
            self.end = now + (end - now) / (len(chosen) - i)
            with self.guarded(name):
                of_one(self, self.libraries[name])
        self.end = end
        return {}

    def _has_device(self, name: str) -> bool:
        if name not in self.libraries:
            self.skip(name, self.absent.get(name, f"{name} is not there"))
        elif not self.on_gpu:
            self.skip(name, "needs a GPU")
        return name in self.libraries and self.on_gpu


def find_libraries(context: Context) -> None:
    """Import the libraries that are there and have a device of the kind."""
    for name, kind in KINDS.items():
        try:
            context.libraries[name] = kind(importlib.import_module(name), context.device)
        except ImportError as error:
            context.absent[name] = f"{name} is not installed ({error})"
        except Exception as error:  # CUDA's own, of classes of each library
            context.absent[name] = f"{name}: {' '.join(str(error).split())[:200]}"


@contextlib.contextmanager
def stand_in(device: str) -> Iterator[None]:
    """In CuPy's place, on a CPU, the tests' mock."""
    if device == "gpu":
        yield
        return
    from standin import cupy_standin

    with cupy_standin.installed():
        yield


# -- matrices on the host ----------------------------------------------------------------------


def gaussian(shape: tuple[int, ...], dtype: str = "float64", seed: int = 0) -> np.ndarray:
    """Gaussian matrices, of numbers of a format; 16-bit ones in float32."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    if dtype.startswith("complex"):
        return (a + 1j * rng.standard_normal(shape)).astype(dtype)
    return to_format(a, dtype)


def with_spectrum(n: int, values: np.ndarray, seed: int = 0) -> np.ndarray:
    """A square matrix with given singular values."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    return (u * values) @ v.T


def to_format(a: np.ndarray, dtype: str) -> np.ndarray:
    """Round to a format; 16-bit numbers stay in float32."""
    if dtype in ("float64", "float32"):
        return a.astype(dtype)
    x = a.astype(np.float32)
    return np.asarray(round_to(x, format_of(dtype), ops_of(x)))


def reference(a: np.ndarray, dtype: str, **how: Any) -> np.ndarray:
    """What orthogonalize gives on NumPy arrays in a format, in double."""
    precision = {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)
    return wide(polarlib.orthogonalize(a, precision=precision, **how))


def wide(a: np.ndarray) -> np.ndarray:
    """The same numbers in double precision."""
    return a.astype("c16" if a.dtype.kind == "c" else "f8")


def largest(a: np.ndarray) -> float:
    """Largest absolute entry; infinity for NaN, which no bound may let pass."""
    value = float(np.abs(a).max(initial=0.0))
    return math.inf if math.isnan(value) else value


def orthogonality(u: np.ndarray) -> float:
    """``||U^H U - I||_F / sqrt(n)``, the worst of a stack; of a wide matrix, of its adjoint."""
    u = u if u.shape[-2] >= u.shape[-1] else np.swapaxes(u, -1, -2).conj()
    n = u.shape[-1]
    defect = np.swapaxes(u, -1, -2).conj() @ u - np.eye(n)
    return largest(np.linalg.norm(defect, axis=(-2, -1)) / math.sqrt(n))


def relative(difference: np.ndarray, to: np.ndarray) -> float:
    """Largest ratio of Frobenius norms, over a stack."""
    return largest(np.linalg.norm(difference, axis=(-2, -1)) / np.linalg.norm(to, axis=(-2, -1)))
