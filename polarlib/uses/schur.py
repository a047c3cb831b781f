"""Square roots and signs of general matrices on the host, by Schur decompositions.

``A = Q T Q^H``, T (quasi-)triangular, Q unitary: ``f(A) = Q f(T) Q^H``. For real A all factors are
real, and T has 2 x 2 blocks for pairs of complex eigenvalues.
"""

from __future__ import annotations

import cmath
import math
from typing import Any, Literal

import numpy as np

from polarlib.arrays.schur import reorder, schur, triangular_sylvester, triangular_sylvesters
from polarlib.uses.few_steps import by_few_steps

Array = Any
Kind = Literal["sqrtm", "signm"]

UNIT = 2.0**-53
# Number of columns up to which LAPACK calls for blocks cost more than passes over a whole stack.
SMALL = 16
# Residuals over n u |X|^2: up to the first, which is that of rounding X, a root is not refined; up
# to the second it is accepted.
CLOSE, FAR = 3.0, 10.0


def by_schur(x: np.ndarray, kind: Kind, unit: float, scale: np.ndarray) -> np.ndarray:
    """Return square roots or signs of a stack of matrices in double precision.

    Parameters
    ----------
    x : ndarray, shape (..., n, n)
        Finite, with entries of about 1.
    kind : {"sqrtm", "signm"}
        The function.
    unit : float
        Unit roundoff of the caller's format, for the thresholds.
    scale : ndarray
        Scale of the matrices, for messages; broadcasts with ``x[..., 0, 0]``.

    Returns
    -------
    ndarray
        NaN for a matrix whose root or sign fails the check.

    Raises
    ------
    ValueError
        For an eigenvalue where the function is not defined.
    """
    n, stack = x.shape[-1], x.shape[:-2]
    out = np.ascontiguousarray(x).reshape(-1, n, n)
    if kind == "signm":
        out = _by_schur(out, kind, unit, scale, np.arange(len(out)), stack)
        return out.reshape(x.shape)
    # Triangular and diagonal matrices, recognised by a corner, have roots of exactly that form.
    full = (out[:, 0, -1] != 0) & (out[:, -1, 0] != 0) & (n > 1)
    if full.all():
        given = out
        out, shown = by_few_steps(given, n * unit, CLOSE)
    else:
        given, out, shown = out, np.empty_like(out), full
        if full.any():
            out[full], shown[full] = by_few_steps(given[full], n * unit, CLOSE)
    if not shown.all():
        rest = np.flatnonzero(~shown)
        out[rest] = _by_schur(given[rest], kind, unit, scale, rest, stack)
    return out.reshape(x.shape)


def _by_schur(
    flat: Array, kind: Kind, unit: float, scale: Array, places: Array, stack: tuple[int, ...]
) -> np.ndarray:
    """Compute roots or signs of the matrices at `places` of a stack, by Schur decompositions."""
    n = flat.shape[-1]
    t, q, w, known = schur(flat)
    size = np.linalg.norm(flat, axis=(1, 2))[:, None]
    # The eigenvalues of matrices without a decomposition are undefined.
    bad = refused(w, n * unit * size, kind) & known[:, None]
    if bad.any():
        worst = int(np.argmax(bad.any(axis=1)))
        place = places[worst]
        index = tuple(int(i) for i in np.unravel_index(place, stack)) if stack else ()
        scales = np.broadcast_to(scale, stack).reshape(-1)
        values = w[worst][bad[worst]]
        raise ValueError(_refusal(values, n * unit * size[worst], kind, scales[place], index))
    out = np.full(flat.shape, math.nan, flat.dtype)
    shown = np.zeros(len(flat), bool)
    if kind == "sqrtm" and n <= SMALL:
        out, shown = _sqrt_of_stack(flat, t, q, known)
    for i in np.flatnonzero(known & ~shown):
        f = (_sqrt if kind == "sqrtm" else _sign)(flat[i], t[i], q[i], w[i])
        out[i] = math.nan if f is None else f
    return out


# -- refusals --------------------------------------------------------------------------------------


def refused(w: Array, cut: Any, kind: Kind) -> np.ndarray:
    """Return which eigenvalues are, to rounding, where the function is not defined."""
    if kind == "signm":
        return np.asarray(np.abs(w.real) <= cut)
    return np.asarray((np.abs(w.imag) <= cut) & (w.real <= cut))


def _refusal(w: Array, cut: Any, kind: Kind, scale: float, index: tuple[int, ...]) -> str:
    """Return the message for eigenvalues, of a matrix over `scale`, that are refused."""
    worst = w[np.argmin(w.real)]
    where = f" of matrix {index} of the stack" if index else ""
    value = complex(worst) * float(scale)
    number = f"{value.real:.3e}" if value.imag == 0 else f"{value.real:.3e}{value.imag:+.3e}j"
    eigenvalue = f"the eigenvalue {number}{where}"
    if kind == "signm":
        return (
            f"a has {eigenvalue}, which is on the imaginary axis to rounding, where the sign is "
            "not defined; add a multiple of the identity"
        )
    if abs(worst) <= cut:
        return (
            f"a has {eigenvalue}, which is zero to rounding, where the square root is not "
            "analytic; use sqrtm_psd for Hermitian positive semidefinite matrices"
        )
    return (
        f"a has {eigenvalue}, which is on the negative real axis to rounding: there is no "
        "principal square root; for another root multiply a by exp(-1j t), and its root by "
        "exp(0.5j t)"
    )


# -- the square root -------------------------------------------------------------------------------


def _sqrt(a: Array, t: Array, q: Array, _: Array) -> Array | None:
    """Return ``Q R Q^H``, R^2 = T, if it passes the check; None otherwise.

    The residual ``|X^2 - A|`` must be at most ``10 n u |X|^2``, for every condition number. For
    small matrices the residual of the QR iteration alone may be larger. A Newton step,
    ``X D + D X = X^2 - A``, then reduces it.
    """
    r = np.zeros_like(t, order="F")
    _fill_sqrt(t, r, 0, len(t))
    h = q.conj().T
    x = q @ r @ h
    rest = x @ x - a
    unit = len(a) * UNIT * float(np.linalg.norm(x)) ** 2
    left = float(np.linalg.norm(rest))
    if left > CLOSE * unit:
        corner = np.array(h @ rest @ q, order="F")
        y = x - q @ triangular_sylvester(r, r, corner) @ h
        after = float(np.linalg.norm(y @ y - a))
        if after < left:
            x, left = y, after
    return x if left <= FAR * unit else None


def _fill_sqrt(t: Array, r: Array, i: int, j: int) -> None:
    """Compute rows and columns i to j - 1 of the root R of T: ``R_11 R_12 + R_12 R_22 = T_12``."""
    k = (i + j) // 2
    if j - i > 1 and t[k, k - 1] != 0:  # do not split a 2 x 2 block
        k += 1
    if k in (i, j):
        r[i:j, i:j] = _sqrt_of_block(t[i:j, i:j])
        return
    _fill_sqrt(t, r, i, k)
    _fill_sqrt(t, r, k, j)
    corner = np.array(t[i:k, k:j], order="F")
    r[i:k, k:j] = triangular_sylvester(r[i:k, i:k], r[k:j, k:j], corner)


def _sqrt_of_block(b: Array) -> Any:
    """Return the root of a number, or of a real block with eigenvalues ``d +- i m``, diagonal d.

    The root of a block is ``c I + (B - d I) / (2 c)``, c the real part of the root of ``d + i m``.
    """
    if len(b) == 1:
        return cmath.sqrt(b[0, 0]) if b.dtype.kind == "c" else math.sqrt(b[0, 0])
    d, m = float(b[0, 0]), math.sqrt(abs(b[0, 1])) * math.sqrt(abs(b[1, 0]))
    size = math.hypot(d, m)
    c = math.sqrt((size + d) / 2) if d > 0 else m / math.sqrt(2 * (size - d))
    return np.array([[c, b[0, 1] / (2 * c)], [b[1, 0] / (2 * c), c]])


def _sqrt_of_stack(a: Array, t: Array, q: Array, known: Array) -> tuple[Array, Array]:
    """Return roots of small matrices, computed by superdiagonals, and which pass the check.

    For real matrices with complex eigenvalues complex factors are used. The imaginary part of the
    root is then of the size of rounding errors, unless a pair is very near to the negative axis.
    """
    n, real = a.shape[-1], t.dtype.kind == "f"
    if real and np.einsum("kii->ki", t[:, 1:, :-1]).any():
        t, q = _complex_schur(t, q)
    t = np.ascontiguousarray(t)
    r = np.zeros_like(t)
    diagonal = _superdiagonal(r, 0)
    diagonal[...] = np.sqrt(_superdiagonal(t, 0))
    for d in range(1, n):
        rest = _superdiagonal(t, d)
        rest = rest - _superdiagonal(r @ r, d) if d > 1 else rest
        _superdiagonal(r, d)[...] = rest / (diagonal[:, :-d] + diagonal[:, d:])
    h = q.conj().swapaxes(1, 2)
    x = q @ r @ h
    x = x.real if real else x
    rest, shown = _shown_to_be(x, a)
    again = np.flatnonzero(known & ~shown)
    if len(again):  # Newton's step, as for one matrix
        r, q, h = r[again], q[again], h[again]
        y = q @ triangular_sylvesters(r, h @ rest[again] @ q) @ h
        x[again] -= y.real if real else y
        _, shown[again] = _shown_to_be(x[again], a[again])
    return x, known & shown


def _superdiagonal(x: Array, d: int) -> Array:
    """Return a view of the entries (i, i + d) of a stack of row-major matrices."""
    n = x.shape[-1]
    return x.reshape(len(x), n * n)[:, d : n * (n - d) : n + 1]


def _shown_to_be(x: Array, a: Array) -> tuple[Array, Array]:
    """Return ``X^2 - A`` of a stack, and for which matrices it is within the bound."""
    rest = x @ x - a
    bound = CLOSE * a.shape[-1] * UNIT * np.linalg.norm(x, axis=(1, 2)) ** 2
    return rest, np.linalg.norm(rest, axis=(1, 2)) <= bound


def _complex_schur(t: Array, q: Array) -> tuple[Array, Array]:
    """Return triangular factors from quasi-triangular ones, by one rotation per block.

    A block ``[[d, b], [c, d]]`` with b c < 0 has the eigenvalues ``d +- i sqrt(-b c)``.
    """
    t, q = t.astype("complex128"), q.astype("complex128")
    for j in range(1, t.shape[-1]):
        b, c = t[:, j - 1, j].real, t[:, j, j - 1].real
        if not c.any():
            continue
        blocks = c != 0
        # The normalised eigenvector (sqrt(-b c) i, c) of the first eigenvalue and its complement.
        size = np.where(blocks, np.sqrt(np.abs(c) * (np.abs(b) + np.abs(c))), 1.0)
        x = np.where(blocks, 1j * np.sqrt(np.abs(b * c)) / size, 1.0)
        y = np.where(blocks, c / size, 0.0)
        g = np.array([[x, -y], [y, x.conj()]]).transpose(2, 0, 1)
        pair = slice(j - 1, j + 1)
        h = g.conj().swapaxes(1, 2)
        t[:, pair, :] = h @ t[:, pair, :]
        t[:, :, pair] = t[:, :, pair] @ g
        q[:, :, pair] = q[:, :, pair] @ g
        t[blocks, j, j - 1] = 0
    return t, q


# -- the sign --------------------------------------------------------------------------------------


def _sign(a: Array, t: Array, q: Array, w: Array) -> Array | None:
    """Return ``Q [[I, X], [0, -I]] Q^H`` with ``T_11 X - X T_22 = 2 T_12``, Re > 0 first in T.

    Return None unless the numbers of positive and negative signs are those of the eigenvalues, and
    ``S^2 = I`` and ``S A = A S`` within the bounds.
    """
    n = len(t)
    count = reorder(t, q, w.real > 0)
    if count is None:
        return None
    values = t.diagonal().real  # also the real parts of pairs
    if not ((values[:count] > 0).all() and (values[count:] < 0).all()):
        return None
    corner = np.array(2 * t[:count, count:], order="F")
    corner = triangular_sylvester(t[:count, :count], t[count:, count:], corner, -1)
    identity = np.eye(n, dtype=t.dtype)
    if count in (0, n):
        return identity if count else -identity
    s = np.diag(np.where(np.arange(n) < count, 1, -1).astype(t.dtype))
    s[:count, count:] = corner
    s = q @ s @ q.conj().T
    size, unit = float(np.linalg.norm(s)), FAR * n * UNIT
    commutes = np.linalg.norm(s @ a - a @ s) <= unit * size * np.linalg.norm(a)
    return s if commutes and np.linalg.norm(s @ s - identity) <= unit * size * size else None
