"""Kernels on one NumPy matrix, in place: the result of `Ops.kernels`.

The methods that work in place (hybrid, structured, qdwh and the reduction in the storage of the
input) use BLAS and LAPACK through these kernels. For a library without such kernels, `Ops.kernels`
returns None and the methods use the primitives of `Ops`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from polarlib.arrays import blas, qr_kernels
from polarlib.arrays.routines import gemm, trmm, trsm, trtri

Array = Any
# Rows per block of a tall matrix that is multiplied in its own storage.
ROWS = 256


class NumpyKernels:
    """Kernels for column-major NumPy matrices of one of the four types of BLAS.

    The iterates and the Gram matrix of one iteration are stored in three buffers, which are reused.
    Only the upper triangle of a Gram matrix is stored.
    """

    host = True
    cholesky = staticmethod(blas.cholesky)
    columns = staticmethod(blas.columns)
    defect = staticmethod(blas.defect)
    diagonal = staticmethod(blas.diagonal)
    extremes = staticmethod(blas.extremes)
    largest = staticmethod(blas.largest)
    matmul = staticmethod(blas.matmul)
    norm = staticmethod(blas.norm)
    resolvent = staticmethod(blas.shifted_resolvent)
    solve = staticmethod(blas.solve)
    times = staticmethod(blas.times)
    upper_norm = staticmethod(blas.upper_norm)
    apply_q = staticmethod(qr_kernels.apply)
    factorise = staticmethod(qr_kernels.factorise)
    invert = staticmethod(trtri)
    two_triangles = staticmethod(qr_kernels.two_triangles)

    def __init__(self) -> None:
        self._gram: Array | None = None
        self._iterates: list[Array | None] = [None, None]

    # -- storage -----------------------------------------------------------------------------

    def free(self, x: Array) -> Array:
        """Return the buffer that does not hold X."""
        place = x is self._iterates[0]
        buffer = self._iterates[place]
        if buffer is None:
            buffer = self._iterates[place] = np.empty(x.shape, x.dtype, order="F")
        return buffer

    def adopt(self, x: Array, other: Array | None = None) -> None:
        """Use the storage of X, and of another array, as buffers: both may be overwritten."""
        self._iterates = [x, other]

    def release(self) -> None:
        """Free the storage of the Gram matrix, and of iterates without other references."""
        self._gram, self._iterates = None, [None, None]

    # -- the steps of an iteration: `polarlib.engine.drive.Kernels` ---------------------------

    def gram(self, x: Array) -> Array:
        """Return the upper triangle of ``X^H X``."""
        if self._gram is None:  # its lower triangle is never written
            self._gram = np.zeros(x.shape[1:] * 2, x.dtype, order="F")
        return blas.gram(x, self._gram)

    def apply(self, step: Any, x: Array, g: Array) -> Array:
        """Return X after a step; NaN where the factorisation failed. G may be overwritten."""
        return blas.stepped(step, x, g, self.free(x))

    def correct(self, step: Any, x: Array, g: Array, worst: float) -> Array:
        """Return X after a step of Newton-Schulz type, as a correction. G may be overwritten."""
        return blas.corrected(step, x, g, worst, self.free(x))

    # -- resolvents and reductions -----------------------------------------------------------

    @staticmethod
    def stable_resolvent(x: Array, c: float, weight: float, how: str, gram: Array | None) -> Array:
        """Return ``weight X (I + c X^H X)^-1`` by one of the forms of `polarlib._methods.qdwh`.

        `x` may have any memory order. The storage is mainly that of the 2n x n stack.
        """
        n = x.shape[-1]
        lost = np.broadcast_to(x.dtype.type(math.nan), x.shape)
        if how == "householder":
            if not math.isfinite(blas.max_abs(x)):  # LAPACK might not return
                return lost
            product = qr_kernels.over_identity(x, math.sqrt(c))
            product *= x.dtype.type(weight / math.sqrt(c))
            return product
        r = np.array(blas.whole_gram(x) if gram is None else gram, order="F")
        r *= x.dtype.type(c)
        blas.add_diagonal(r, 1.0)
        if not blas.cholesky(r):
            return lost
        if how == "cholesky":
            y = np.array(x.T, order="F")
            np.conjugate(y, out=y)
            for turn in "CN":  # R^-1 R^-H X^H, the weight in the first solve
                trsm(weight if turn == "C" else 1.0, r, y, trans=turn)
            return np.conjugate(y, out=y).T
        y = np.zeros((n, 2 * n), x.dtype, order="F")  # the adjoint of the stack
        np.multiply(x.T, x.dtype.type(math.sqrt(c)), out=y[:, :n])
        np.conjugate(y[:, :n], out=y[:, :n])
        np.einsum("ii->i", y[:, n:])[...] = 1
        trsm(1.0, r, y, trans="C")
        blas.gram(y, r, rows=True)
        if not blas.cholesky(r):
            return lost
        trsm(1.0, r, y, trans="C")
        del r  # free its storage before the product is formed
        out = np.empty((n, n), x.dtype, order="F")
        return gemm(weight / math.sqrt(c), y[:, :n], y[:, n:], 0.0, out, left="C")

    @staticmethod
    def cholesky_qr(x: Array) -> tuple[Array | None, Callable[[Array], Array], float, float]:
        """Return R of ``X = Q R``, the back-transformation, and bounds of the singular values.

        Cholesky-QR is applied twice, with the last triangular solve applied to the square factor
        (Y. Yamamoto and others, ETNA 44 (2015) 306-326). R is None if the Gram matrix does not
        resolve the smallest singular value.
        """
        y, flip = blas.columns(x)
        g = blas.gram(y, rows=flip)
        first = np.empty_like(g)
        low, high = blas.extremes(g, first)
        if not (low > 0 and high < math.inf):
            return None, _same, low, high
        q = np.empty_like(y, order="F")
        blas.solve(y, first, q, rows=flip)
        second = blas.gram(q, rows=flip)
        if not blas.cholesky(second):
            return None, _same, low, high

        def back(v: Array) -> Array:
            t = trsm(1.0, second, np.array(v, order="F"))
            if flip:
                return gemm(1.0, t, q, 0.0, np.empty_like(q, order="F"), left="C").T
            return gemm(1.0, q, t, 0.0, np.empty_like(q, order="F"))

        return trmm(1.0, second, first), back, low, high

    @staticmethod
    def cholesky_qr_in_place(x: Array) -> tuple[Array, Callable[[Array], None]] | None:
        """Reduce a contiguous tall matrix to a square one, with Q in its storage.

        Returns
        -------
        s, restore : ndarray, callable
            ``X = Q S``, and ``restore(v)`` replaces Q by Q V. None, with the matrix unchanged, if
            the Gram matrix does not resolve the smallest singular value.
        """
        y, flip = blas.columns(x)
        g = blas.gram(y, rows=flip)
        first = np.empty_like(g)
        low, high = blas.extremes(g, first)
        del g
        if not (low > 0 and high < math.inf):
            return None
        blas.solve(y, first, y, rows=flip)
        second = blas.gram(y, rows=flip)
        # The Gram matrix resolves the condition number, so that Q is nearly orthonormal and the
        # Gram matrix of Q has a Cholesky factor.
        blas.cholesky(second)
        s = np.triu(trmm(1.0, second, first))
        del first
        if flip:  # the factor is that of the conjugate
            np.conjugate(s, out=s)
            np.conjugate(second, out=second)

        def restore(v: Array) -> None:
            t = trsm(1.0, second, np.array(v, order="F"))
            # By blocks of rows: the product needs only the storage of one block.
            for i in range(0, x.shape[0], ROWS):
                x[i : i + ROWS] = blas.matmul(np.array(x[i : i + ROWS]), t)

        return s, restore


def _same(u: Array) -> Array:
    return u
