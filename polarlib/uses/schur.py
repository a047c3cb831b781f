"""Square roots and signs of general matrices on the host, by Schur decompositions.

``A = Q T Q^H``, T (quasi-)triangular, Q unitary: ``f(A) = Q f(T) Q^H``. For real A everything is
real, T with blocks of 2 x 2 for pairs of complex eigenvalues.
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
# Columns up to which calls of LAPACK for blocks cost more than passes over a whole stack.
SMALL = 16
# Residuals over n u |X|^2: what is not refined, since rounding X leaves as much, and what is shown.
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
        What the matrices were divided by, for messages; broadcasts with ``x[..., 0, 0]``.

    Returns
    -------
    ndarray
        NaN for a matrix of which no root or sign is shown to be right.

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
    # Triangular and diagonal matrices, which a corner tells, have roots of their form exactly.
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
    """The same of matrices at places of a stack, by Schur decompositions of all of them."""
    n = flat.shape[-1]
    t, q, w, found = schur(flat)
    size = np.linalg.norm(flat, axis=(1, 2))[:, None]
    # Matrices without a decomposition have eigenvalues of no meaning.
    bad = refused(w, n * unit * size, kind) & found[:, None]
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
        out, shown = _sqrt_of_stack(flat, t, q, found)
    for i in np.flatnonzero(found & ~shown):
        f = (_sqrt if kind == "sqrtm" else _sign)(flat[i], t[i], q[i], w[i])
        out[i] = math.nan if f is None else f
    return out


# -- refusals --------------------------------------------------------------------------------------


def refused(w: Array, cut: Any, kind: Kind) -> np.ndarray:
    """Which eigenvalues are where the function is not defined, to rounding."""
    if kind == "signm":
        return np.asarray(np.abs(w.real) <= cut)
    return np.asarray((np.abs(w.imag) <= cut) & (w.real <= cut))


def _refusal(w: Array, cut: Any, kind: Kind, scale: float, index: tuple[int, ...]) -> str:
    """What to say of eigenvalues, of a matrix over `scale`, that are refused."""
    worst = w[np.argmin(w.real)]
    where = f" of matrix {index} of the stack" if index else ""
    value = complex(worst) * float(scale)
    said = f"{value.real:.3e}" if value.imag == 0 else f"{value.real:.3e}{value.imag:+.3e}j"
    said = f"the eigenvalue {said}{where}"
    if kind == "signm":
        return (
            f"a has {said}, which is on the imaginary axis to rounding, where the sign is not "
            "defined; add a multiple of the identity"
        )
    if abs(worst) <= cut:
        return (
            f"a has {said}, which is zero to rounding, where the square root is not analytic; "
            "sqrtm_psd takes Hermitian positive semidefinite matrices"
        )
    return (
        f"a has {said}, which is on the negative real axis to rounding: there is no principal "
        "square root; for another root multiply a by exp(-1j t), and its root by exp(0.5j t)"
    )


# -- the square root -------------------------------------------------------------------------------


def _sqrt(a: Array, t: Array, q: Array, _: Array) -> Array | None:
    """``Q R Q^H``, R^2 = T, if it is shown to be a root; None otherwise.

    The residual ``|X^2 - A|`` is at most ``10 n u |X|^2``, whatever the condition is. Of a few
    columns the QR iteration alone may leave more: Newton's step, ``X D + D X = X^2 - A``.
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
    """Rows and columns i to j - 1 of the root R of T: ``R_11 R_12 + R_12 R_22 = T_12``."""
    k = (i + j) // 2
    if j - i > 1 and t[k, k - 1] != 0:  # not through a block
        k += 1
    if k in (i, j):
        r[i:j, i:j] = _sqrt_of_block(t[i:j, i:j])
        return
    _fill_sqrt(t, r, i, k)
    _fill_sqrt(t, r, k, j)
    corner = np.array(t[i:k, k:j], order="F")
    r[i:k, k:j] = triangular_sylvester(r[i:k, i:k], r[k:j, k:j], corner)


def _sqrt_of_block(b: Array) -> Any:
    """Root of a number, or of a real block with the eigenvalues ``d +- i m`` and diagonal d.

    ``c I + (B - d I) / (2 c)``, c the real part of the root of ``d + i m``.
    """
    if len(b) == 1:
        return cmath.sqrt(b[0, 0]) if b.dtype.kind == "c" else math.sqrt(b[0, 0])
    d, m = float(b[0, 0]), math.sqrt(abs(b[0, 1])) * math.sqrt(abs(b[1, 0]))
    size = math.hypot(d, m)
    c = math.sqrt((size + d) / 2) if d > 0 else m / math.sqrt(2 * (size - d))
    return np.array([[c, b[0, 1] / (2 * c)], [b[1, 0] / (2 * c), c]])


def _sqrt_of_stack(a: Array, t: Array, q: Array, found: Array) -> tuple[Array, Array]:
    """Roots of small matrices, by superdiagonals of all of them, and which are shown.

    Real matrices with complex eigenvalues take complex factors: the imaginary part of their root is
    rounding, unless a pair is very near to the negative axis, where it is large.
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
    again = np.flatnonzero(found & ~shown)
    if len(again):  # Newton's step, as for one matrix
        r, q, h = r[again], q[again], h[again]
        y = q @ triangular_sylvesters(r, h @ rest[again] @ q) @ h
        x[again] -= y.real if real else y
        _, shown[again] = _shown_to_be(x[again], a[again])
    return x, found & shown


def _superdiagonal(x: Array, d: int) -> Array:
    """View of entries (i, i + d) of a stack of row-major matrices."""
    n = x.shape[-1]
    return x.reshape(len(x), n * n)[:, d : n * (n - d) : n + 1]


def _shown_to_be(x: Array, a: Array) -> tuple[Array, Array]:
    """``X^2 - A`` of a stack, and where it is small."""
    rest = x @ x - a
    bound = CLOSE * a.shape[-1] * UNIT * np.linalg.norm(x, axis=(1, 2)) ** 2
    return rest, np.linalg.norm(rest, axis=(1, 2)) <= bound


def _complex_schur(t: Array, q: Array) -> tuple[Array, Array]:
    """Triangular factors from quasi-triangular ones, by a rotation for each block.

    A block ``[[d, b], [c, d]]`` with b c < 0 has the eigenvalues ``d +- i sqrt(-b c)``.
    """
    t, q = t.astype("complex128"), q.astype("complex128")
    for j in range(1, t.shape[-1]):
        b, c = t[:, j - 1, j].real, t[:, j, j - 1].real
        if not c.any():
            continue
        blocks = c != 0
        # The eigenvector (sqrt(-b c) i, c) of the first one, of length 1, and its complement.
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
    """``Q [[I, X], [0, -I]] Q^H`` with ``T_11 X - X T_22 = 2 T_12``, T with Re > 0 first.

    None unless there are as many signs of each kind as eigenvalues, and ``S^2 = I``, ``S A = A S``.
    """
    n = len(t)
    count = reorder(t, q, w.real > 0)
    if count is None:
        return None
    values = t.diagonal().real  # of pairs too
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
