"""Results: :class:`PolarResult`, :class:`Trace`, :class:`Status`, and the warning classes."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast, overload

import numpy as np

from polarlib._renamed import warn_renamed
from polarlib.arrays.checks import (
    instance,
    shown,
)
from polarlib.arrays.checks import path as checked_path
from polarlib.arrays.later import Later
from polarlib.arrays.progress import Progress
from polarlib.arrays.pytrees import Pytree
from polarlib.files.plain import known_numbers, plain
from polarlib.files.tables import html_table
from polarlib.files.traces import checked_trace, read_trace, write_trace

__all__ = [
    "ConvergenceWarning",
    "Later",
    "PolarResult",
    "Progress",
    "Run",
    "ScheduleWarning",
    "Status",
    "Trace",
]


class ConvergenceWarning(UserWarning):
    """Warns that a method missed its tolerance; the status of the result has the remedy."""


class ScheduleWarning(UserWarning):
    """Warns that a schedule may diverge or flip a sign, or that its steps may be misordered."""


class Status(enum.Enum):
    """Status of a decomposition. The values are remedies.

    Attributes
    ----------
    value : str
        The remedy, in a phrase.

    Examples
    --------
    >>> Status.CONVERGED.value
    'nothing to do: the factor is orthonormal to the tolerance'
    """

    CONVERGED = "nothing to do: the factor is orthonormal to the tolerance"
    FELL_BACK = "nothing to do: the method failed on this matrix and the SVD was used"
    FIXED_SCHEDULE = (
        "all steps of a fixed schedule were taken; for a smaller error use more steps, a schedule "
        "with a smaller lower bound, or method='qdwh'"
    )
    NOT_CONVERGED = "the tolerance was missed: use a larger rtol, or a wider number format"
    NOT_POLAR = "this is the orthonormal QR factor; for the polar factor use method='svd' or 'qdwh'"
    OVERFLOW = "the Hermitian factor exceeds the format's largest number: scale the input down"


class Run(NamedTuple):
    """Statistics of the run of a method.

    Attributes
    ----------
    iterations, matmuls : int
        Iterations, and matrix products in them (factorisations are not products).
    converged : bool
        Whether the stopping test of the method was met.
    changes : tuple of float
        Relative size of the change in each iteration, if the method computes it.
    singular_values : array or None
        Singular values of the matrices, if the method computes them.
    certain : tuple of float, Later or None
        The value of `bounds`, or the function that computes it when it is read.
    method : str
        The method that ran, if "auto" chose it; otherwise empty.
    note : str
        The reason for that choice, in a phrase; empty if there was no choice.
    """

    iterations: int
    matmuls: int
    converged: bool
    changes: tuple[float, ...] = ()
    singular_values: Any = None
    certain: Any = None
    method: str = ""
    note: str = ""

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Certified bounds, up to rounding, of all singular values of all matrices of a stack.

        None if the method has no bounds.
        """
        known = self.certain() if isinstance(self.certain, Later) else self.certain
        return cast("tuple[float, float] | None", known)


# eq=False here and below: arrays compare to arrays, which have no truth value.
@dataclass(frozen=True, eq=False)
class Trace:
    """Singular values and errors after each step; row 0 is the normalised input.

    The error in its representation is the last distance.

    Attributes
    ----------
    method : str
        Name of the schedule or method.
    precision : str
        Number format of the iteration.
    form : str
        ``"plain"`` or ``"gram"``; empty for methods that are not fixed schedules.
    shape : tuple of int
        Shape of the matrix.
    simulated : bool
        Whether the format was simulated (operands rounded, float32 accumulation, one rounding).
    matmuls : ndarray, shape (steps + 1,)
        Number of matrix products up to each step.
    singular_values : ndarray, shape (steps + 1, k)
        Singular values of the iterate, k = min(m, n). A column follows one singular value of the
        input, largest first.
    alignment : ndarray, shape (steps + 1, k)
        Cosine between the image ``X v_i`` of a right singular vector of the input and its left
        singular vector ``u_i``: 1 if the direction is kept, negative if its sign is flipped, 0 if
        the image is orthogonal to it.
    orthogonality : ndarray, shape (steps + 1,)
        ``||X^H X - I||_F / sqrt(k)`` for m >= n; for m < n that of the transpose.
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
    def n_steps(self) -> int:
        """Number of steps taken."""
        return len(self.matmuls) - 1

    @property
    def steps(self) -> int:
        """Former name of `n_steps`."""
        warn_renamed("Trace.steps", "Trace.n_steps")
        return self.n_steps

    def _described(self) -> dict[str, str]:
        s = self.singular_values[-1] if self.singular_values.size else np.zeros(1)
        return {
            "shape": " x ".join(map(str, self.shape)),
            "format": f"{self.precision}{', simulated' if self.simulated else ''}",
            "form": self.form or "-",
            "steps": str(self.n_steps),
            "products": str(self.matmuls[-1]),
            "error": f"{self.distance[-1]:.2e}",
            "orthogonality": f"{self.orthogonality[-1]:.2e}",
            "backward error": f"{self.backward_error[-1]:.2e}",
            "singular values": f"[{s.min():.3g}, {s.max():.3g}]",
        }

    def __repr__(self) -> str:
        d = self._described()
        form = f"{self.form} form, " if self.form else ""
        return (
            f"Trace({self.method!r}: {d['shape']} in {self.precision}, {form}{d['steps']} steps, "
            f"{d['products']} products, error {d['error']}, orthogonality {d['orthogonality']}, "
            f"singular values in {d['singular values']})"
        )

    def _repr_html_(self) -> str:
        return html_table(f"Trace of {self.method}", self._described())

    def to_dict(self) -> dict[str, Any]:
        """Return lists, numbers and strings, ready for JSON (NaN and infinity become None).

        Returns
        -------
        dict
            All fields by name.
        """
        return {name: plain(getattr(self, name)) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Trace:
        """Return the trace from the result of :meth:`to_dict`.

        Parameters
        ----------
        d : mapping
            All fields. None is read as NaN, also where :meth:`to_dict` was given infinity; files
            of :meth:`to_csv` keep infinities.

        Returns
        -------
        Trace

        Raises
        ------
        TypeError
            If `d` is not a mapping.
        ValueError
            For a key that is missing or unknown, and for values of shapes that do not match.

        Examples
        --------
        >>> from polarlib import measure
        >>> t = measure(np.eye(3), "jordan", steps=2)
        >>> repr(Trace.from_dict(t.to_dict())) == repr(t)
        True
        """
        fields = dict(instance("d", d, Mapping, "a dict, of Trace.to_dict"))
        for name in [*cls.__dataclass_fields__, *fields]:
            if name not in fields or name not in cls.__dataclass_fields__:
                fault = "lacks the key" if name not in fields else "has the unknown key"
                raise ValueError(f"d {fault} {shown(name)}; use the result of Trace.to_dict")
        return cls(**checked_trace(fields))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the trace to a CSV file, from which :meth:`from_csv` reads it exactly.

        One row per step: its errors, ``sigma_1 ... sigma_k``, ``alignment_1 ... alignment_k`` and,
        equal in all rows, the other fields. If writing fails, an existing file is unchanged.

        Parameters
        ----------
        path : path-like
            The file to write.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        write_trace(checked_path("path", path), fields)

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a trace that :meth:`to_csv` wrote, all numbers exactly.

        Parameters
        ----------
        path : path-like
            The file.

        Returns
        -------
        Trace

        Raises
        ------
        ValueError
            If the file is not such a table; the message names the file and the row.
        OSError
            If the file cannot be read.
        """
        path = checked_path("path", path)
        fields = read_trace(path)
        try:
            return cls(**checked_trace(fields))
        except ValueError as error:
            raise ValueError(f"{os.fsdecode(path)}: {error}") from None


# The type of array of a result's factors.
A = TypeVar("A")
# Attributes of a result that may be computed when they are read.
_DEFERRED = ("orthogonality", "backward_error", "rank", "condition_bounds", "trace")


@dataclass(frozen=True, eq=False)
class PolarResult(Pytree, Generic[A]):
    """A polar decomposition with its error estimates; unpacks as ``u, h``.

    Half-precision matrices are decomposed in float32. Then `status` is that of the float32 factors,
    and the errors are those of the rounded factors that are returned.

    For JAX the result is a pytree, whose leaves are all attributes except `status`, `method` and
    `reason`. Under ``jax.jit`` and ``jax.vmap`` the leaves are arrays of JAX with one value per
    matrix. There `status` and `reason`, which depend on values, are None, and `trace` is empty.

    Attributes
    ----------
    unitary : array, shape (..., m, n)
        Unitary factor U: orthonormal columns if m >= n, orthonormal rows otherwise.
    hermitian : array, shape (..., n, n) or (..., m, m)
        Hermitian factor H: ``A = U H`` (side "right") or ``A = H U`` (side "left"). Exactly
        Hermitian, positive semidefinite to rounding.
    status : Status or None
        Status of the decomposition; ``status.value`` is the remedy.
    converged : bool
        Whether orthogonality and backward error of every matrix met the tolerance and H is
        positive semidefinite. Under ``jax.jit`` an array with one value per matrix.
    iterations, matmuls : int
        Iterations and matrix products of the method (factorisations are not products).
    method : str
        Method that computed U, for example ``"svd"`` or ``"newton, then svd"``.
    orthogonality : float or ndarray
        ``||U^H U - I||_F / sqrt(n)`` for m >= n, ``||U U^H - I||_F / sqrt(m)`` for m < n; one value
        per matrix. Above 64 columns this error and the next are estimated from eight random
        vectors, with a relative error of a few percent for rounding errors.
    backward_error : float or ndarray
        ``||A - U H||_F / ||A||_F`` (0 for a zero matrix); one value per matrix.
    rank : int or ndarray of int
        Number of singular values above ``max(m, n) * eps * sigma_max``.
    condition_bounds : tuple of two floats or ndarrays
        Lower and upper bound of the 2-norm condition number, up to rounding. The upper bound is
        infinite if full rank was not certified or `rank` is not full. These bounds and `rank` may
        be computed when they are first read, from `hermitian`; read them before changing
        `hermitian` in place.
    reason : str
        Reason why "auto" chose the method, or why the SVD replaced it; empty if there was no
        choice.
    trace : tuple of float
        Iteration history: the size of the change in each iteration, as the method defines it. It
        is empty for direct methods and fixed schedules. :func:`polarlib.measure` returns errors and
        singular values of each iteration.
    """

    static = ("status", "method", "reason")

    unitary: A
    hermitian: A
    status: Any
    converged: Any
    iterations: Any
    matmuls: Any
    method: str
    orthogonality: Any
    backward_error: Any
    rank: Any
    # A factory: a plain default would be a class attribute, which hides `__getattr__`.
    condition_bounds: tuple[Any, Any] = field(default_factory=lambda: (1.0, float("inf")))
    reason: str | None = ""
    trace: tuple[float, ...] = field(default_factory=tuple)

    @classmethod
    def _made(
        cls,
        unitary: Any,
        hermitian: Any,
        outcome: dict[str, Any],
        orthogonality: Any,
        backward_error: Any,
        rank: Any,
        condition_bounds: Any,
    ) -> PolarResult[Any]:
        """Return a result in half the time of the constructor; `outcome` has other attributes."""
        made = object.__new__(cls)
        known = made.__dict__
        known.update(outcome)
        known["unitary"] = unitary
        known["hermitian"] = hermitian
        known["orthogonality"] = orthogonality
        known["backward_error"] = backward_error
        known["rank"] = rank
        known["condition_bounds"] = condition_bounds
        made.__post_init__()
        return made

    def __post_init__(self) -> None:
        known = self.__dict__  # a frozen class refuses setattr
        later = {name: known.pop(name) for name in _DEFERRED if type(known[name]) is Later}
        known["_later"] = later

    if not TYPE_CHECKING:  # hidden from type checkers, which would accept any name

        def __getattr__(self, name: str) -> Any:
            # Called for attributes that are not in the instance: values computed when read.
            later = self.__dict__.get("_later", {}).get(name)
            if later is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            value = self.__dict__[name] = later()
            return value

    def __getstate__(self) -> dict[str, Any]:
        # Deferred values are computed first: locks and closures cannot be pickled.
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def _settled(self) -> PolarResult[A]:
        """Return the result with all values computed, in the trace that they belong to."""
        for name in self.__dict__.get("_later", {}):
            getattr(self, name)
        return self

    def _replace(self, **changes: Any) -> PolarResult[A]:
        """Return a copy with other values of some attributes, without computing deferred ones."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__ | changes)
        return other

    def __iter__(self) -> Iterator[A]:
        return iter((self.unitary, self.hermitian))

    def __len__(self) -> int:
        return 2

    @overload
    def __getitem__(self, index: int) -> A: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[A, ...]: ...
    def __getitem__(self, index: int | slice) -> A | tuple[A, ...]:
        return (self.unitary, self.hermitian)[instance("index", index, int | slice, "0 or 1")]

    def _shape(self) -> tuple[int, ...]:
        # While JAX flattens a tree, any object may replace a factor.
        return tuple(getattr(self.unitary, "shape", ()))

    def _rows(self) -> dict[str, Any]:
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
            "condition": between(*self.condition_bounds),
        } | ({"reason": self.reason} if self.reason else {})

    def __repr__(self) -> str:
        lines = (f"  {name:<16}{value}" for name, value in self._rows().items())
        return "PolarResult\n" + "\n".join(lines)

    def _repr_html_(self) -> str:
        factors = {"unitary": self.unitary, "hermitian": self.hermitian}
        return html_table("PolarResult", self._rows() | factors)

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes except the factors as numbers and strings, ready for JSON.

        Returns
        -------
        dict
            Values by name of the attribute, and the shape of the matrices.
        """
        names = [n for n in self.__dataclass_fields__ if n not in ("unitary", "hermitian")]
        return {"shape": list(self._shape())} | {n: plain(getattr(self, n)) for n in names}


def between(lower: Any, upper: Any) -> str:
    """Format bounds of condition numbers as a range."""
    low, high = known_numbers(lower), known_numbers(upper)
    if low is None or high is None:
        return f"{lower} to {upper}"
    if low.size == 0:
        return "none"
    return f"{low.min().item():.2e} to {high.max().item():.2e}"


def _short(value: Any) -> str:
    """Format one value, or the range of a batch."""
    known = known_numbers(value)
    if known is None:
        return str(value)
    text = (lambda v: f"{v:.2e}") if known.dtype.kind == "f" else str
    if known.size == 0:
        return "none"
    if known.size == 1:
        return text(known.item())
    return f"{text(known.min().item())} to {text(known.max().item())}"
