"""Conversion of a caller's matrices for algorithms, and of results for the caller.

:func:`enter` determines the properties of an argument once: library, format, whether it is wide,
finite, scaled, traced. :meth:`Entered.leave` applies the inverse conversion to results.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from polarlib.arrays.entry import as_matrix, refuse_not_finite
from polarlib.arrays.functions import as_scalar, constant
from polarlib.arrays.library import astype_like, at_least_single
from polarlib.arrays.ops import Ops

Array = Any
Scaling = Callable[[Array, Ops], "Array | float"]

# Largest entries up to this, and from its reciprocal, need no scaling: products of three such
# entries neither overflow nor underflow in single precision.
COMFORTABLE = 2.0**20


class Entered(NamedTuple):
    """Stack of matrices prepared for an algorithm: ``x = given / scale``, the adjoint if `wide`.

    Attributes
    ----------
    given : array, shape (..., m, n)
        The matrices of the caller, of a floating dtype.
    x : array
        In at least single precision. Tall, if requested; with entries of about 1, if scaled; with
        zeros for matrices that are not finite, if masked.
    ops : Ops
        Arithmetic of the library.
    scale : array, shape (..., 1, 1), or float
        Powers of two by which the matrices were divided.
    wide : bool
        Whether `x` is the adjoint.
    finite : array of bool, shape (..., 1, 1), or None
        Which matrices are finite; None if nothing was masked.
    """

    given: Array
    x: Array
    ops: Ops
    scale: Array | float = 1.0
    wide: bool = False
    finite: Array | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there are no entries."""
        return 0 in self.given.shape

    @property
    def is_abstract(self) -> bool:
        """Whether the matrices are traced, so that no entry can be read."""
        return self.ops.is_abstract(self.given)

    @property
    def unscaled(self) -> bool:
        """Whether `x` is known to have the scale of the given matrices."""
        return isinstance(self.scale, float) and self.scale == 1.0

    def alike(self, e: Array) -> Array:
        """Return another matrix converted like `x`: the adjoint if `wide`, divided by `scale`."""
        return self.ops.divide(self.ops.adjoint(e) if self.wide else e, self.scale)

    def or_nan(self, y: Array) -> Array:
        """Return results of shape (..., k, l), NaN where a matrix is not finite."""
        if self.finite is None:
            return y
        return self.ops.xp.where(self.finite, y, self.ops.xp.full_like(y, math.nan))

    def leave(
        self,
        y: Array,
        factor: Array | float = 1.0,
        *,
        turn: bool = True,
        may_overwrite: bool = False,
    ) -> Array:
        """Return results for `x` as results for the given matrices, in their dtype.

        Parameters
        ----------
        y : array, shape (..., k, l)
            Results.
        factor : array or float, optional
            Factor of the results, such as `scale`.
        turn : bool, optional
            Whether to return the adjoint if `x` is the adjoint.
        may_overwrite : bool, optional
            Whether the storage of `y` may be used.
        """
        if not isinstance(factor, float) or factor != 1.0:
            y = self.ops.scale(y, factor, may_overwrite=may_overwrite)
        y = self.or_nan(y)
        return as_result(self.ops.adjoint(y) if turn and self.wide else y, self.given, self.ops)


def as_result(y: Array, given: Array, ops: Ops) -> Array:
    """Return a result in the dtype of the given matrices."""
    y = astype_like(y, given, ops)
    # NumPy, DLPack and torch.view_as_real do not read tensors with the conjugate bit.
    return y.resolve_conj() if hasattr(y, "resolve_conj") else y


def near_max_abs(max_abs: Array, ops: Ops) -> Array | float:
    """Return powers of two near the largest entries: the default scaling."""
    return ops.binary_scale(max_abs)


def enter(
    a: Any,
    name: str = "a",
    *,
    ops: Ops | None = None,
    sharded: bool = False,
    look: Literal["always", "if free", "never"] = "always",
    remedy: str = "remove them first",
    mask: bool = False,
    tall: bool = False,
    double: bool = False,
    scaling: Scaling | None = near_max_abs,
    comfortable: bool = False,
) -> Entered:
    """Return the matrices of a caller prepared for algorithms.

    At most one number is read from a device.

    Parameters
    ----------
    a : array_like, shape (..., m, n)
        Any argument, or, with `ops`, the result of :func:`as_matrix`.
    name : str, optional
        Name of the argument in messages.
    ops : Ops, optional
        Arithmetic for `a`, if `a` is a result of :func:`as_matrix`.
    sharded : bool, optional
        Whether sharded arrays are accepted; see :func:`as_matrix`.
    look : {"always", "if free", "never"}, optional
        When to raise for NaN and infinity, which reads a number: always, unless the matrix is
        traced; only where reading does not synchronise; or never.
    remedy : str, optional
        End of the message for NaN and infinity.
    mask : bool, optional
        Whether matrices that are not finite, if no error is raised, are replaced by zeros;
        :meth:`Entered.leave` returns NaN for them.
    tall : bool, optional
        Whether matrices with m < n are replaced by their adjoints.
    double : bool, optional
        Whether to compute in double precision, if the library has it.
    scaling : callable or None, optional
        ``scaling(max_abs, ops)`` returns the divisor from the largest absolute entries; None for no
        division. Derivatives treat the divisor as a constant, unless matrices are masked.
    comfortable : bool, optional
        Whether matrices are not scaled if the largest entries of all of them are between
        1 / `COMFORTABLE` and `COMFORTABLE`.

    Raises
    ------
    TypeError
        As :func:`as_matrix`.
    ValueError
        As :func:`as_matrix`, and for NaN and infinity, if they are checked.

    Examples
    --------
    >>> entered = enter([[3.0, 4.0, 0.0]], tall=True)
    >>> entered.x.tolist(), entered.scale, entered.wide
    ([[0.75], [1.0], [0.0]], 4.0, True)
    >>> entered.leave(entered.x, entered.scale).tolist()
    [[3.0, 4.0, 0.0]]
    """
    if ops is None:
        a, ops = as_matrix(a, name, sharded=sharded)
    x = ops.cast(a, "float64") if double and ops._has_double(a) else at_least_single(a, ops)
    if 0 in a.shape:
        return Entered(a, x, ops)
    abstract = ops.is_abstract(a)
    looks = ops.host if look == "if free" else look == "always"
    looks = looks and not abstract
    comfortable = comfortable and not abstract and not ops.is_traced(a)
    finite, scale = None, 1.0

    def find(x: Array, max_abs: Array | None = None) -> Array | float:
        max_abs = ops.max_abs(x) if max_abs is None else max_abs
        extent = _extent(max_abs, ops) if comfortable else math.nan
        if extent <= COMFORTABLE:
            return 1.0
        if looks and not math.isfinite(extent):
            refuse_not_finite(x, max_abs, ops, name, remedy=remedy)
        return 1.0 if scaling is None else scaling(max_abs, ops)

    if mask and not looks:
        xp, max_abs = ops.xp, ops.max_abs(x)
        finite = xp.isfinite(max_abs)
        x = xp.where(finite, x, xp.zeros_like(x))
        scale = find(x, xp.where(finite, max_abs, xp.zeros_like(max_abs)))
    elif scaling is not None:
        scale = constant(ops, find, x)
    elif looks:
        find(x)
    wide = tall and a.shape[-2] < a.shape[-1]
    x = ops.adjoint(x) if wide else x
    if scaling is not None and not (comfortable and isinstance(scale, float) and scale == 1.0):
        x = ops.divide(x, scale)
    return Entered(a, x, ops, scale, wide, finite)


def _extent(max_abs: Array, ops: Ops) -> float:
    """Return the largest factor between the largest entries and 1; 1 for zero, NaN for NaN."""
    known = as_scalar(max_abs, ops)
    if isinstance(known, float):
        return max(known, 1 / known) if known else 1.0
    max_abs = ops.xp.where(max_abs == 0, ops.xp.ones_like(max_abs), max_abs)
    return ops.item(ops.xp.maximum(max_abs, 1 / max_abs))
