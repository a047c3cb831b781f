"""Arithmetic in another number format: `rounded`.

If the library multiplies in the format natively, and the processor does so fast, native products
are used. Otherwise the arithmetic uses float32 arrays of numbers of the format: operands are
rounded, products and the addend are in single precision, and the result is rounded once. If the
library has no such products this is a simulation, which a trace reports. A matrix of 8 bits has a
scale, a power of two, as operands of 8-bit products have, for a largest entry near the upper end of
the format. Without a scale e4m3 would lose all entries below 2**-10, which are most entries of a
normalised matrix of 1000 columns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

from polarlib.arrays.formats import Format, format_of
from polarlib.arrays.library import dtype_name, is_complex, is_known
from polarlib.arrays.ops import Ops, is_native
from polarlib.arrays.settings import ignore_float_errors
from polarlib.arrays.wrapper import Wrapper

Array = Any


def round_to(x: Array, precision: Format, ops: Ops, *, may_overwrite: bool = False) -> Array:
    """Round a float32 or complex64 array to a narrower format, to nearest, ties to even.

    Parameters
    ----------
    x : array
        float32 or complex64.
    precision : Format
        tf32, bfloat16, float16, float8_e4m3 or float8_e5m2.
    ops : Ops
        Arithmetic of the array's library.
    may_overwrite : bool, optional
        Whether the result may use the storage of `x`.

    Returns
    -------
    array
        In the same dtype; every entry is a number of the format. Overflow gives infinity, in e4m3
        NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from polarlib.arrays.ops import ops_of
    >>> x = np.float32([1 + 2**-8, 1 + 3 * 2**-8, 3.4e38])
    >>> [float(v) for v in round_to(x, format_of("bfloat16"), ops_of(x))]
    [1.0, 1.015625, inf]
    """
    narrow = None if is_complex(x) else ops._dtype_that_rounds(precision.name)
    if narrow is None:
        return ops._entrywise(functools.partial(_rounded_to, precision=precision, ops=ops), x)
    y = _converted(x, narrow, ops)
    if math.isnan(precision.saturates_to):  # libraries differ in their conversion of overflow
        xp, half = ops.xp, _unit_of_largest(precision) / 2
        fits = xp.abs(x) <= precision.largest + half
        return xp.where(fits, xp.astype(y, x.dtype), xp.full_like(x, math.nan))
    if may_overwrite and ops.reusable(x):
        ops._store(y, x)
        return x
    return ops.xp.astype(y, x.dtype)


@ignore_float_errors
def _converted(x: Array, dtype: Any, ops: Ops) -> Array:
    """Convert to a dtype; overflow gives infinity, as rounding does."""
    return ops.xp.astype(x, dtype)


def _unit_of_largest(precision: Format) -> float:
    """Return the distance from the largest number of a format to the one below it."""
    return 2.0 ** (math.frexp(precision.largest)[1] - 1) * precision.epsilon


def _rounded_to(x: Array, precision: Format, ops: Ops) -> Array:
    xp = ops.xp
    by_sums = ops._rounded_by_sums(x, precision)
    if by_sums is not None:
        return by_sums
    if is_complex(x):
        return _rounded_to(xp.real(x), precision, ops) + 1j * _rounded_to(
            xp.imag(x), precision, ops
        )
    y = _rounded_bits(x, precision, xp) if hasattr(x, "view") else _rounded_units(x, precision, ops)
    y = xp.where(y > precision.largest, precision.saturates_to, y)
    y = xp.where(y < -precision.largest, -precision.saturates_to, y)
    # Neither method of rounding necessarily keeps NaN.
    return xp.where(xp.isnan(x), x, y)


def _rounded_bits(x: Array, precision: Format, xp: Any) -> Array:
    """Round by the bit pattern, for libraries with views of bits.

    Half a unit is added and the tail masked; a carry into the exponent is correct. Subnormal
    numbers are multiples of the smallest one.
    """
    drop = 24 - precision.significand
    bits = xp.asarray(x, copy=True).view(xp.int32)  # views of bits need a contiguous copy
    half = (1 << (drop - 1)) - 1
    y = ((bits + half + ((bits >> drop) & 1)) & -(1 << drop)).view(xp.float32)
    if precision.smallest_normal > 2.0**-126:
        small = xp.abs(x) < precision.smallest_normal
        unit = precision.smallest_normal * precision.epsilon
        y = xp.where(small, xp.round(xp.where(small, x, 0.0) / unit) * unit, y)
    return y


def _rounded_units(x: Array, precision: Format, ops: Ops) -> Array:
    """Round to multiples of the unit in the last place: for any library."""
    xp = ops.xp
    finite = xp.isfinite(x)
    wide = xp.where(finite, x, xp.zeros_like(x))
    if ops._has_double(x):
        wide = xp.astype(wide, xp.float64)
    size = xp.abs(wide)
    normal = size >= precision.smallest_normal
    size = xp.where(normal, size, xp.full_like(size, precision.smallest_normal))
    exponent = xp.floor(xp.log2(size))
    # Just below a power of two a logarithm in single precision is rounded up to the exponent.
    exponent = xp.where(2.0**exponent > size, exponent - 1, exponent)
    unit = 2.0**exponent * precision.epsilon
    return xp.where(finite, xp.astype(xp.round(wide / unit) * unit, x.dtype), x)


class Rounded(Wrapper):
    """Arithmetic in a narrow format on float32 or complex64 carriers.

    Results are numbers of the format; in 8 bits, times one power of two for each matrix.

    Parameters
    ----------
    base : Ops
        Full-precision arithmetic of the library.
    precision : Format
        The format.
    simulated : bool
        Whether the library has no products in that format.
    """

    fused = True
    # A completed square, as for NumPy, would round intermediate results too.
    quadratic = Ops.quadratic
    make_hermitian = Ops.make_hermitian
    add_scaled_identity = Ops.add_scaled_identity

    def __init__(self, base: Ops, precision: Format, *, simulated: bool) -> None:
        self.base = base
        self.precision = precision
        self.simulated = simulated
        self.working = precision.name
        # A tf32 product rounds its operands and has a float32 result.
        self._rounds_results = precision.name != "tf32"

    def _round(self, x: Array, *, may_overwrite: bool = False) -> Array:
        if not self.precision.scaled:
            return round_to(x, self.precision, self.base, may_overwrite=may_overwrite)
        # Largest entries lie in [top, 2 top), and rounding up to 2 top does not overflow.
        scale = self.base.binary_scale(self.base.max_abs(x)) / self._top
        return round_to(self.base.divide(x, scale), self.precision, self.base) * scale

    @property
    def _top(self) -> float:
        return 2.0 ** (math.frexp(self.precision.largest)[1] - 2)

    @property
    def _multiplies_in_eight_bits(self) -> bool:
        """Whether the base has products of the format, of some shapes."""
        return not self.simulated and self.precision.scaled

    def _native_product(
        self, a: Array, b: Array, c: Array = None, alpha: float = 1.0, beta: float = 0.0
    ) -> Array | None:
        """Return ``alpha a @ b + beta c`` by products of 8 bits; None where the base has none."""
        if not self._multiplies_in_eight_bits:
            return None
        # The largest rounded entry may be 2 top. With the next scale the smallest entry would lose
        # a bit. The limit is just below 2 top, and above all other numbers.
        below = 1 - self.precision.epsilon / 4
        left, right = (
            self.base.binary_scale(self.base.max_abs(x) * below) / self._top for x in (a, b)
        )
        product = self.base._product_of_rounded(a, b, (left, right), self.precision.name)
        if product is None:
            return None
        product = product if is_known(alpha, 1.0) else product * alpha
        return self._result(product if is_known(beta, 0.0) else product + c * beta)

    def _operand(self, x: Array) -> Array:
        """Return the operand of a product; except in tf32, entries are in the format already."""
        return x if self._rounds_results else self._round(x)

    def _operands(self, a: Array, b: Array) -> tuple[Array, Array]:
        """Return the operands of a product; a matrix that is squared is rounded once."""
        left = self._operand(a)
        return left, left if b is a else self._operand(b)

    def _result(self, y: Array) -> Array:
        """Round a new matrix, in its storage if that is writable."""
        return self._round(y, may_overwrite=True) if self._rounds_results else y

    def buffer(self, shape: tuple[int, ...], like: Array) -> Array | None:
        """Return storage for an ``out=``."""
        return self.base.buffer(shape, like)

    def reusable(self, x: Array) -> bool:
        """Return whether the storage of `x` serves as an ``out=``."""
        return self.base.reusable(x)

    def cast(self, x: Array, format_name: str) -> Array:
        """Convert to the carrier and round, if to the simulated format."""
        if format_name != self.precision.name:
            return self.base.cast(x, format_name)
        y = self.base.cast(x, self.precision.carrier)
        # Entries in the dtype of the format need no rounding, and the carrier is a new array.
        exact = dtype_name(x) == self.precision.name
        return self._round(y) if self._rounds_results and not exact else y

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Return ``a @ b`` rounded once."""
        product = self._native_product(a, b)
        if product is None:
            product = self._result(self.base.matmul(*self._operands(a, b), out))
        return product

    def gram(self, x: Array, out: Array | None = None) -> Array:
        """Return ``x^H x`` rounded once."""
        # The adjoint of complex matrices is a copy.
        eight = self._multiplies_in_eight_bits
        product = self._native_product(self.base.adjoint(x), x) if eight else None
        if product is None:
            product = self._result(self.base.gram(self._operand(x), out))
        return product

    def gemm(
        self, a: Array, b: Array, c: Array, alpha: float = 1.0, beta: float = 0.0, out: Array = None
    ) -> Array:
        """Return ``alpha a @ b + beta c`` rounded once; a tf32 result stays in float32."""
        return self._with_addend(self.base.gemm, a, b, c, alpha, beta, out)

    def gemm_hermitian(
        self, a: Array, b: Array, c: Array, alpha: float = 1.0, beta: float = 0.0, out: Array = None
    ) -> Array:
        """Return ``alpha a @ b + beta c``, Hermitian up to rounding, rounded once."""
        return self._with_addend(self.base.gemm_hermitian, a, b, c, alpha, beta, out)

    def _with_addend(
        self,
        multiply: Callable[..., Array],
        a: Array,
        b: Array,
        c: Array,
        alpha: float,
        beta: float,
        out: Array,
    ) -> Array:
        product = self._native_product(a, b, c, alpha, beta)
        if product is None:
            product = self._result(multiply(*self._operands(a, b), c, alpha, beta, out))
        return product

    def add_diagonal(self, z: Array, a: float) -> Array:
        """Return ``z + a I`` rounded once; `z` may be overwritten."""
        return self._result(self.base.add_diagonal(z, a))

    def combine(self, coefficients: Sequence[float], matrices: Sequence[Array]) -> Array:
        """Return ``sum c_i M_i`` rounded once."""
        return self._result(self.base.combine(coefficients, matrices))


def rounded(ops: Ops, precision: str, *, is_complex: bool = False) -> Ops:
    """Return the arithmetic of a library in a format: native, in float32 and rounded, or simulated.

    Parameters
    ----------
    ops : Ops
        Full-precision arithmetic of the library.
    precision : str
        Format name.
    is_complex : bool, optional
        Whether the entries are complex: narrow formats are then always simulated, part by part.

    Returns
    -------
    Ops
        The attribute ``simulated`` is True for a simulation. Use ``cast(x, precision)`` first.

    Raises
    ------
    ValueError
        For an unknown format.

    Examples
    --------
    >>> import numpy as np
    >>> from polarlib.arrays.ops import ops_of
    >>> rounded(ops_of(np.eye(2)), "bfloat16").simulated
    True
    """
    wanted = format_of(precision)
    native = is_native(ops, wanted, is_complex=is_complex)
    if native and ops._multiplies_at_speed(wanted.name):
        return ops._working_in(wanted.name)
    native = native or (not is_complex and ops._multiplies_rounded(wanted.name))
    return cast(Ops, Rounded(ops._of_rounded(wanted.name), wanted, simulated=not native))
