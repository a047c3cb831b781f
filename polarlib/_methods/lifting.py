"""Rational steps that raise ("lift") the small singular values of a triangular factor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polarlib._methods.qdwh import weights
from polarlib.arrays.kernels import NumpyKernels

# || |R^-1| |R| || over n above which columns are pivoted. With random singular vectors it is 10 to
# 50, for smooth kernels 1e3 to 1e15; the backward error grows from 1000 on. By experiment.
PIVOT_ABOVE = 100.0
# Smallest diagonal entry of R after raising, in epsilons of the diagonal's root mean square: this
# perturbs the input by a quarter of an epsilon, and makes singular matrices invertible.
RAISED = 0.25
# Lower bound above which R is not changed: a Halley step by Cholesky factors costs less.
ENOUGH = 0.01
# Smallest lower bounds that functions with two and three poles (including the pole at zero) map to
# at least 0.05. The following Halley steps then have c <= 100 and are accurate.
TWO_POLES_ABOVE, THREE_POLES_ABOVE = 1e-7, 1e-11
# Bound of the difference between the singular values of R and those of the matrix, relative to the
# largest, in units of sqrt(n) epsilon. Ten times the largest measured difference.
QR_MOVES = 10.0
# Columns per tile, so that temporary arrays fit in the caches.
TILE = 64


class Lifted(NamedTuple):
    """A better conditioned matrix, and the back-transformation of its polar factor.

    Attributes
    ----------
    x : ndarray, shape (n, n)
        Column-major, singular values in [lower, 1].
    lower : float
        Positive; certified up to rounding.
    bounds : tuple of float
        Certified bounds, up to rounding, of the singular values of the original matrix.
    restore : callable
        Back-transformation from the unitary factor of `x` to that of the original, shape (m, n).
    note : str
        Description of the step.
    """

    x: np.ndarray
    lower: float
    bounds: tuple[float, float]
    restore: Callable[[np.ndarray], np.ndarray]
    note: str


class Lift(NamedTuple):
    """``slope x + inverse / x + sum_j residues[j] x / (x^2 + poles[j])``, onto [lower, 1]."""

    slope: float
    inverse: float
    residues: tuple[float, ...]
    poles: tuple[float, ...]
    lower: float

    def __call__(self, x: float) -> float:
        """Return the value at a singular value."""
        terms = zip(self.residues, self.poles, strict=True)
        return self.slope * x + self.inverse / x + sum(a * x / (x * x + c) for a, c in terms)


def rational(l: float) -> Lift:
    """Return Zolotarev's best function on [l, 1] of degree 4, 6 or 8, depending on l.

    The function is the composition of two or three scaled Newton steps, or of a Newton step and a
    Halley step, since compositions of best functions are best. It is evaluated by sums of positive
    numbers.

    Examples
    --------
    >>> f = rational(1e-12)
    >>> round(f.lower, 3), round(f(1e-12), 12), round(f(1.0), 12)
    (0.106, 1.0, 1.0)
    """
    # The first Newton step, y = (x + l / x) / (1 + l), maps to [low, 1]: it is 1 at both ends, and
    # has its minimum at sqrt(l), where the two terms are equal.
    low = 2 * math.sqrt(l) / (1 + l)
    # Then alpha y + beta / y + gamma y / (y^2 + s).
    if l > TWO_POLES_ABOVE:
        top = 1 + low
        alpha, beta, gamma, s = 1 / top, low / top, 0.0, 1.0
        lower = 2 * math.sqrt(low) / top
    elif l > THREE_POLES_ABOVE:
        step = weights(low)
        residue, alpha, c = step.fractions
        beta, gamma, s = 0.0, residue / c, 1 / c
        lower = step(low)
    else:
        root = math.sqrt(low)
        top = (1 + root) ** 2
        alpha, beta, gamma, s = 1 / top, low / top, 2 * (1 + low) * root / top, low
        lower = 2 * math.sqrt(2 * root * (1 + low)) / top
    poles: list[float] = []
    residues: list[float] = []
    if beta:  # 1 / y = (1 + l) x / (x^2 + l)
        poles.append(l)
        residues.append(beta * (1 + l))
    if gamma:  # y / (y^2 + s) = (1 + l) x (x^2 + l) / ((x^2 + p) (x^2 + q)), p q = l^2
        excess = s * (1 + l) ** 2
        p = l + 0.5 * (excess + math.sqrt(excess * (excess + 4 * l)))
        q = l * l / p  # computing the other root as a difference would cancel
        poles += [p, q]
        residues += [gamma * (1 + l) * abs(r - l) / (p - q) for r in (p, q)]
    return Lift(alpha / (1 + l), alpha * l / (1 + l), tuple(residues), tuple(poles), lower)


def lift(
    x: np.ndarray,
    kernels: NumpyKernels,
    *,
    upper: float | None = None,
    scratch: tuple[np.ndarray, np.ndarray] | None = None,
) -> Lifted:
    """Raise small singular values to at least 0.02, by one rational step from one QR factorisation.

    Cost in products for n = 1024 on two threads: 1.3 for QR, 0.5 for the inverse, 2.3 per pair of
    triangles (one pair for condition numbers to 1e7, two to 1e11, three beyond), and 1.3 for
    `restore`. If the first QR factorisation shows that pivoting is needed, 2 more.

    Parameters
    ----------
    x : ndarray, shape (m, n)
        m >= n, finite, real or complex, in any memory order. Not modified. Single precision is
        computed in double.
    kernels : NumpyKernels
        The kernels that `Ops.kernels` returns.
    upper : float, optional
        Upper bound of the largest singular value, if known.
    scratch : tuple of two ndarrays, optional
        Column-major n x n work arrays of double precision, which avoid allocations.

    Returns
    -------
    Lifted
        Also for singular matrices: diagonal entries of R below rounding are raised to that level,
        which perturbs x by less than rounding and completes the factor. The factor of a zero matrix
        is Q of its QR factorisation.

    References
    ----------
    Scaled Newton steps: R. Byers, H. Xu, SIAM J. Matrix Anal. Appl. 30 (2008) 822-843. Composition:
    Y. Nakatsukasa, R. W. Freund, SIAM Rev. 58 (2016) 461-493. Theory of pivoting: Y. Nakatsukasa,
    N. J. Higham, SIAM J. Matrix Anal. Appl. 33 (2012) 460-479. Condition number: R. D. Skeel, J.
    ACM 26 (1979) 494-526.

    Examples
    --------
    >>> import numpy as np
    >>> from polarlib.arrays.kernels import NumpyKernels
    >>> lifted = lift(np.diag([1.0, 1e-4, 1e-8]), NumpyKernels())
    >>> round(lifted.lower, 2)
    0.15
    >>> s = np.linalg.svd(lifted.x, compute_uv=False)
    >>> bool(0.99 * lifted.lower <= s[2] and s[0] <= 1.01)
    True
    """
    narrow, wide = x.dtype, np.result_type(x.dtype, np.float64)
    m, n = x.shape
    if narrow != wide and m > n:
        return _lift_of_factor(x, kernels, upper)
    flip = m == n and x.flags.c_contiguous  # the factor of the transpose is the transpose
    x = x.T if flip else x
    inverse = np.empty((n, n), wide, order="F")
    q = kernels.factorise(_copy(x, wide))
    size, condition, raised = _invert(q.x, inverse, kernels)
    if not condition <= PIVOT_ABOVE * n:
        del q
        q = kernels.factorise(_copy(x, wide), pivot=True)
        size, condition, raised = _invert(q.x, inverse, kernels)
    upper = size if upper is None else min(size, upper)
    l = min(1.0, 1 / (kernels.norm(inverse) * upper))
    bounds = (max(0.0, l * upper - raised), upper)

    del x

    def restore(u: np.ndarray) -> np.ndarray:
        v = _restore(q, u, kernels).astype(narrow, copy=False)
        return v.T if flip else v

    note = "QR" if q.order is None else "QR with pivoting"
    if l >= ENOUGH:
        y = _newton(q.x, inverse, 1 / upper, 0.0).astype(narrow, order="F", copy=False)
        return Lifted(y, l, bounds, restore, note)
    f = rational(l)
    y = _newton(q.x, inverse, f.slope / upper, f.inverse * upper)
    term, work = (np.empty_like(y), np.empty_like(y)) if scratch is None else scratch
    for residue, c in zip(f.residues, f.poles, strict=True):
        term.fill(0)
        _copy_upper(q.x, term)
        # residue X (X^H X + c I)^-1 with X = R / upper
        y += kernels.two_triangles(term, upper * math.sqrt(c), residue / math.sqrt(c), work)
    del term, work
    degree = 2 * len(f.poles) + 2
    y = y.astype(narrow, order="F", copy=False)
    return Lifted(y, f.lower, bounds, restore, f"a rational step of degree {degree} by {note}")


def _lift_of_factor(x: np.ndarray, kernels: NumpyKernels, upper: float | None) -> Lifted:
    """Apply :func:`lift` to R of a tall matrix of single precision, by QR in that precision.

    Double precision is used for the square factor alone. A tall matrix in double precision would
    take twice the storage of the input, and its factor the same again.
    """
    q = kernels.factorise(_copy(x, x.dtype))
    lifted = lift(np.triu(q.x[: x.shape[1]]), kernels, upper=upper)
    low, high = lifted.bounds
    moved = QR_MOVES * float(np.finfo(x.dtype).eps) * math.sqrt(x.shape[1]) * high
    return lifted._replace(
        bounds=(max(0.0, low - moved), high + moved),
        restore=lambda u: _restore(q, lifted.restore(u), kernels),
    )


def _tiles(n: int) -> list[slice]:
    return [slice(j, min(n, j + TILE)) for j in range(0, n, TILE)]


def _copy(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return a column-major copy."""
    out = np.empty(x.shape, dtype, order="F")
    if x.flags.f_contiguous:
        np.copyto(out, x)
        return out
    for r in _tiles(x.shape[0]):
        for c in _tiles(x.shape[1]):
            out[r, c] = x[r, c]
    return out


def _copy_upper(a: np.ndarray, out: np.ndarray) -> None:
    """Copy the upper triangle of the first rows; `out` must be zero below the diagonal tiles."""
    for c in _tiles(out.shape[1]):
        out[: c.start, c] = a[: c.start, c]
        out[c, c] = np.triu(a[c, c])


def _invert(
    qr: np.ndarray, inverse: np.ndarray, kernels: NumpyKernels
) -> tuple[float, float, float]:
    """Invert R, with diagonal entries below rounding raised.

    Returns
    -------
    size, condition, raised : float
        Upper bound of ``||R||_2``; ``|| |R^-1| |R| ||_inf``; bound of the change of R.
    """
    n = qr.shape[1]
    inverse.fill(0)
    _copy_upper(qr, inverse)
    length = kernels.norm(inverse)  # norm of R, whose copy is inverted below
    diagonal = np.einsum("ii->i", qr[:n])
    floor = RAISED * float(np.finfo(qr.dtype).eps) * length / math.sqrt(n) or 1.0
    small = np.abs(diagonal) < floor  # for a zero matrix any diagonal is allowed, and floor is 1
    raised = 0.0
    if small.any():
        raised = floor
        negative = diagonal.real < 0  # the sign of the real part is kept, so that R changes little
        diagonal[small] = np.where(negative, -floor, floor)[small]
        kernels.diagonal(inverse)[...] = diagonal
        length += floor
    rows, columns = np.zeros(n), np.zeros(n)
    for c in _tiles(n):
        part = _magnitude(inverse[: c.stop, c])
        rows[: c.stop] += part.sum(axis=1)
        columns[c] = part.sum(axis=0)
    if not kernels.invert(inverse):
        return length, math.nan, raised
    product = np.zeros(n)
    for c in _tiles(n):
        part = _magnitude(inverse[: c.stop, c])
        part *= rows[c]
        product[: c.stop] += part.sum(axis=1)
    length = min(length, math.sqrt(float(rows.max()) * float(columns.max())))
    return length, float(product.max()), raised


def _magnitude(a: np.ndarray) -> np.ndarray:
    """Return upper bounds of absolute values, for complex numbers within a factor of sqrt(2)."""
    size: np.ndarray = np.abs(a.real) + np.abs(a.imag) if a.dtype.kind == "c" else np.abs(a)
    return size


def _newton(qr: np.ndarray, inverse: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """Replace ``R^-1`` by ``alpha R + beta R^-H``."""
    alpha, beta = qr.dtype.type(alpha), qr.dtype.type(beta)
    tiles = _tiles(inverse.shape[0])
    for i, c in enumerate(tiles):
        for above in tiles[:i]:
            inverse[c, above] = (beta * inverse[above, c]).conj().T
        np.multiply(qr[: c.start, c], alpha, out=inverse[: c.start, c])
        inverse[c, c] = alpha * np.triu(qr[c, c]) + beta * inverse[c, c].conj().T
    return inverse


def _restore(q: Any, u: np.ndarray, kernels: NumpyKernels) -> np.ndarray:
    """Return Q U P^T."""
    m, n = q.x.shape
    full = np.zeros((m, n), q.x.dtype, order="F")
    full[:n] = u
    kernels.apply_q(q, full)
    if q.order is None:
        return full
    ordered = np.empty_like(full)
    ordered.T[q.order] = full.T
    return ordered
