"""The linear equation that the derivatives of polar factors and roots solve."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal

import numpy as np

from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import as_complex
from polarlib.arrays.library import format_name, is_complex
from polarlib.arrays.ops import Diagonal, Ops, ops_of

Array = Any


@dataclasses.dataclass(frozen=True)
class Equation:
    """The equation ``H X + X H = W`` for Hermitian H, for one of the functions below.

    Parameters
    ----------
    kind : {"polar", "rotation", "root"}
        The function: the unitary polar factor; the nearest rotation, for which H has at most one
        negative eigenvalue and W is skew-symmetric; the square root H.
    size : int, optional
        Larger dimension of the differentiated matrix, for the threshold of zero.
    regularization : float, optional
        r, for skew-Hermitian W: with ``d = s_i + s_j``, ``1 / d`` is replaced by
        ``d / (d^2 + (r s_1)^2)``, s_1 the largest value, a constant.

    Notes
    -----
    ``d / (d^2 + e^2)`` is the real part of ``1 / (d + i e)``. Hence the regularised solution is the
    skew-Hermitian part of Z in ``H Z + Z H + i e Z = W``, which has derivatives of the same kind.
    """

    kind: Literal["polar", "rotation", "root"]
    size: int = 1
    regularization: float = 0.0

    def solve(self, h: Array, w: Array) -> Array:
        """Solve the equation; the library can differentiate the solution any number of times.

        Parameters
        ----------
        h, w : array, shape (..., n, n)
            In at least single precision; h scaled to entries of about 1.

        Returns
        -------
        array, shape (..., n, n)

        Raises
        ------
        ValueError
            If the solution is not unique, to rounding. Under a trace the result is NaN instead.
        """
        ops = ops_of(w).functional()
        if not self.regularization:
            return ops.lyapunov(h, w, self._diagonalise)
        real = not is_complex(w)
        diagonalise = functools.partial(self._diagonalise, real=real)
        z = ops.lyapunov(as_complex(h, ops), as_complex(w, ops), diagonalise)
        x = (z - ops.adjoint(z)) * 0.5
        return ops.xp.real(x) if real else x

    def _diagonalise(self, h: Array, *, real: bool = False) -> Diagonal:
        """Diagonalise the equation, if it has a unique solution."""
        ops = ops_of(h).functional()
        s, v = ops.eigh(ops.xp.real(h) if real else h)
        sums = self._off_diagonal(s[..., :, None] + s[..., None, :], s, ops)
        if self.regularization:
            largest = _largest(s, ops)
            shift = ops.xp.where(largest > 0, largest * self.regularization, largest + 1.0)
            shift = as_complex(shift, ops) * 1j
            return Diagonal(as_complex(sums, ops) + shift, as_complex(v, ops), shift)
        # NaN does not count as a degeneracy, and gives NaN.
        poor = ~self._is_unique(s, ops) & ~ops.xp.isnan(s[..., :1])[..., None]
        if not ops.is_abstract(poor) and bool(ops.xp.any(poor)):
            raise ValueError(self._refusal(ops.to_host(s), ops.to_host(poor)[..., 0, 0] != 0))
        return Diagonal(ops.xp.where(poor, ops.xp.full_like(sums, math.nan), sums), v)

    def _off_diagonal(self, sums: Array, s: Array, ops: Ops) -> Array:
        """Return the sums; for rotations, the sums of a value with itself are replaced.

        For rotations the diagonal of W is zero, up to rounding, and such a sum may be zero.
        """
        if self.kind != "rotation":
            return sums
        largest = _largest(s, ops)
        safe = ops.xp.where(largest > 0, largest, largest + 1.0)
        diagonal = ops.eye(s.shape[-1], s) > 0
        return ops.xp.where(diagonal, safe, sums)

    def _is_unique(self, s: Array, ops: Ops) -> Array:
        """Return whether the smallest relevant sum is above rounding, shape (..., 1, 1)."""
        noise = max(self.size, s.shape[-1]) * format_of(format_name(s)).epsilon
        largest = _largest(s, ops)
        if self.kind == "polar":
            return s[..., :1, None] > noise * largest
        if self.kind == "root":  # the threshold is for the squares, the eigenvalues of A
            least = s[..., :1, None]
            return (least > 0) & (least * least > noise * largest * largest)
        if s.shape[-1] == 1:
            return largest >= 0
        return (s[..., :1] + s[..., 1:2])[..., None] > noise * largest

    def _refusal(self, s: np.ndarray, poor: np.ndarray) -> str:
        worst = tuple(int(i) for i in np.argwhere(poor)[0])
        where = f" in matrix {worst} of the stack" if worst else ""
        values = s[worst]
        if self.kind == "root":
            least = max(float(values[0]), 0.0) ** 2 / float(values[-1] or 1.0) ** 2
            return (
                f"the square root has no derivative at a singular matrix: an eigenvalue is "
                f"{least:.1e} times the largest one{where}, which is zero to rounding; add a "
                "multiple of the identity"
            )
        total = values[0] + values[1 if self.kind == "rotation" else 0]
        if self.kind == "rotation":
            return (
                f"the nearest rotation has no derivative where it is not unique: two singular "
                f"values, the last with the sign of the determinant, have the sum "
                f"{max(total, 0.0):.1e}{where}, which is zero to rounding; pass regularization=1e-3"
            )
        return (
            f"the polar factor has no derivative at a rank-deficient matrix: two singular values "
            f"have the sum {max(total, 0.0):.1e}{where}, which is zero to rounding; procrustes() "
            "takes a regularization, orthogonalize() has a derivative at such matrices, and a "
            "multiple of the identity may be added to square ones"
        )


def _largest(s: Array, ops: Ops) -> Array:
    """Return the largest absolute value of ascending eigenvalues, shape (..., 1, 1)."""
    return ops.xp.maximum(s[..., -1:], -s[..., :1])[..., None]
