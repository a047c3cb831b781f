"""Norms of convolution kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from polarlib.arrays.checks import count, instance, items, shown
from polarlib.arrays.entry import is_array
from polarlib.arrays.ops import ops_of
from polarlib.arrays.settings import looks, looks_at_nothing
from polarlib.norms.base import A, MatrixNorm, Norm, factor

Array = Any

# Largest number of dimensions of a kernel, and of arrays of weights.
MOST_SPATIAL, MOST_LAYERS = 32, 10**5


# -- kernels ---------------------------------------------------------------------------------


@looks_at_nothing
def kernel_to_matrix(w: Array, *, spatial: int = 2) -> Array:
    """Return the kernel of a convolution as the matrix that maps a patch to the outputs.

    Parameters
    ----------
    w : array, shape (..., out, in, k_1, ..., k_spatial)
        Kernel.
    spatial : int, optional
        Number of spatial dimensions.

    Returns
    -------
    array, shape (..., out, in * k_1 * ... * k_spatial)
        Fan-out by fan-in. Row-major, as torch stores kernels.

    Raises
    ------
    ValueError
        For too few dimensions.

    Examples
    --------
    >>> import numpy as np
    >>> kernel_to_matrix(np.zeros((8, 3, 5, 5))).shape
    (8, 75)
    """
    spatial = count("spatial", spatial, most=MOST_SPATIAL)
    if not is_array(w) or w.ndim < 2 + spatial:
        raise ValueError(
            f"a kernel must be an array of {2 + spatial} dimensions or more, out, in and {spatial} "
            f"of space, got {shown(w)}"
        )
    split = w.ndim - 1 - spatial
    return ops_of(w).xp.reshape(w, (*w.shape[:split], math.prod(w.shape[split:])))


@looks_at_nothing
def matrix_to_kernel(x: Array, shape: Sequence[int]) -> Array:
    """Return a matrix as a kernel: the inverse of :func:`kernel_to_matrix`.

    Parameters
    ----------
    x : array, shape (..., out, fan_in)
        Matrix.
    shape : sequence of int
        Shape of the kernel.

    Returns
    -------
    array
        The entries of `x` in that shape.

    Raises
    ------
    TypeError
        If `x` is not an array.
    ValueError
        If the numbers of entries differ.

    Examples
    --------
    >>> import numpy as np
    >>> matrix_to_kernel(np.zeros((8, 75)), (8, 3, 5, 5)).shape
    (8, 3, 5, 5)
    """
    if not is_array(x):
        raise TypeError(f"x must be an array, got {shown(x)}")
    sizes = items("shape", shape, "a list of integers of at least 0")
    sizes = [count("a number of shape", k, 0) for k in sizes]
    if math.prod(x.shape) != math.prod(sizes):
        raise ValueError(
            f"shape must have as many entries as x, a matrix of shape {tuple(x.shape)}, got "
            f"{shown(sizes)}"
        )
    return ops_of(x).xp.reshape(x, tuple(sizes))


@dataclass(frozen=True, repr=False)
class Convolution(Norm):
    """Norm of kernels: the norm of their matrices."""

    norm: MatrixNorm
    spatial: int

    def __repr__(self) -> str:
        return f"convolution({self.norm!r}, spatial={self.spatial})"

    def _matrix(self, w: Any) -> Array:
        return kernel_to_matrix(w, spatial=self.spatial)

    @looks
    def __call__(self, x: Any) -> Array:
        return self.norm(self._matrix(x))

    @looks
    def dual_norm(self, g: Any) -> Array:
        return self.norm.dual_norm(self._matrix(g))

    def _through(self, f: Callable[[Array], Array], w: Any) -> Array:
        return matrix_to_kernel(f(self._matrix(w)), w.shape)

    @looks
    def lmo(self, g: A) -> A:
        return cast(A, self._through(self.norm.lmo, g))

    @looks
    def sharp(self, g: A) -> A:
        return cast(A, self._through(self.norm.sharp, g))

    @looks
    def project(self, x: A) -> A:
        return cast(A, self._through(self.norm.project, x))

    def dual(self) -> Convolution:
        return Convolution(self.norm.dual(), self.spatial)

    def __rmul__(self, s: float) -> Convolution:
        return Convolution(factor(s) * self.norm, self.spatial)

    @looks
    def _gap(self, g: Any, t: Any) -> Array:
        return self.norm._gap(self._matrix(g), self._matrix(t))


def convolution(norm: MatrixNorm, *, spatial: int = 2) -> Convolution:
    """Return the norm of convolution kernels that is a norm of their matrices.

    Parameters
    ----------
    norm : Norm
        Norm of matrices, for example ``rms_to_rms(out, in * height * width)``.
    spatial : int, optional
        Number of spatial dimensions of the kernels, (..., out, in, k_1, ..., k_spatial).

    Returns
    -------
    Norm
        Its LMO has the shape of the kernel.

    Raises
    ------
    TypeError, ValueError
        If `norm` is not a norm of matrices, or `spatial` not a positive integer.

    Examples
    --------
    >>> import numpy as np
    >>> from polarlib.norms import spectral
    >>> convolution(spectral()).lmo(np.ones((4, 3, 2, 2))).shape
    (4, 3, 2, 2)
    """
    instance("norm", norm, MatrixNorm, "a norm of matrices")
    return Convolution(norm, count("spatial", spatial, most=MOST_SPATIAL))
