"""Dual numbers: a matrix and its derivative, through the primitives of another arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from polarlib.arrays.library import is_known
from polarlib.arrays.ops import Ops
from polarlib.arrays.wrapper import Wrapper

Array = Any


# -- a schedule --------------------------------------------------------------------------------


class Dual(NamedTuple):
    """A matrix and its derivative."""

    value: Array
    tangent: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix and of the derivative."""
        return tuple(self.value.shape)


class DualOps(Wrapper, exact=frozenset()):
    """The primitives that the engine uses, for values and their derivatives.

    The derivative of the square of a Hermitian matrix takes one product, since the other term is
    the adjoint. Derivatives of other products take two.
    """

    working = ""  # there is one precision

    def __init__(self, base: Ops) -> None:
        self.base = base

    def buffer(self, shape: tuple[int, ...], like: Dual) -> None:
        """Return None: every result is new."""

    def reusable(self, x: Dual) -> bool:
        """Return False."""
        return False

    def matmul(self, a: Dual, b: Dual, out: None = None) -> Dual:
        """Return ``a @ b``."""
        tangent = self.base.matmul(a.tangent, b.value)
        tangent = self.base.gemm(a.value, b.tangent, tangent, beta=1.0)
        return Dual(self.base.matmul(a.value, b.value), tangent)

    def gram(self, x: Dual, out: None = None) -> Dual:
        """Return ``x^H x``."""
        half = self.base.matmul(self.base.adjoint(x.value), x.tangent)
        return Dual(self.base.gram(x.value), half + self.base.adjoint(half))

    def gemm(
        self, a: Dual, b: Dual, c: Dual, alpha: float = 1.0, beta: float = 0.0, out: Array = None
    ) -> Dual:
        """Return ``alpha a @ b + beta c``; if a is b, the matrix is Hermitian."""
        value = self.base.gemm(a.value, b.value, c.value, alpha, beta)
        return Dual(value, self._tangent(a, b, c, alpha, beta))

    def make_hermitian(self, z: Dual) -> Dual:
        """Return Z: values and derivatives are multiplied as they are."""
        return z

    def quadratic(self, g: Dual, c: Sequence[float], out: None = None) -> Dual:
        """Return ``c_1 G + c_2 G^2``."""
        return self.gemm_hermitian(g, g, g, c[2], c[1])

    def gemm_hermitian(
        self, a: Dual, b: Dual, c: Dual, alpha: float = 1.0, beta: float = 0.0, out: Array = None
    ) -> Dual:
        """Return ``alpha a @ b + beta c`` that is Hermitian."""
        value = self.base.gemm_hermitian(a.value, b.value, c.value, alpha, beta)
        return Dual(value, self._tangent(a, b, c, alpha, beta))

    def _tangent(self, a: Dual, b: Dual, c: Dual, alpha: float, beta: float) -> Array:
        base = self.base
        if a is b:
            half = base.matmul(a.value, a.tangent)
            halves = half, base.adjoint(half), c.tangent
            return base.combine((alpha, alpha, beta), halves)
        tangent = base.gemm(a.tangent, b.value, c.tangent, alpha, beta)
        return base.gemm(a.value, b.tangent, tangent, alpha, 1.0)

    def add_scaled_identity(self, z: Dual, alpha: float, beta: float) -> tuple[Dual, float, float]:
        """Return ``alpha Z + beta I``."""
        value, _, _ = self.base.add_scaled_identity(z.value, alpha, beta)
        tangent = z.tangent if is_known(alpha, 1.0) else self.base.combine((alpha,), (z.tangent,))
        return Dual(value, tangent), 1.0, 0.0

    def combine(self, coefficients: Sequence[float], matrices: Sequence[Dual]) -> Dual:
        """Return ``sum c_i M_i``."""
        values, tangents = zip(*matrices, strict=True)
        combine = functools.partial(self.base.combine, coefficients)
        return Dual(combine(values), combine(tangents))

    def add_diagonal(self, z: Dual, a: float) -> Dual:
        """Return ``z + a I``."""
        return Dual(self.base.add_diagonal(z.value, a), z.tangent)
