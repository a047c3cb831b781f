"""Square roots and signs of general matrices on the host, by Schur decompositions.

``A = Q T Q^H``, T (quasi-)triangular, Q unitary: ``f(A) = Q f(T) Q^H``. For real A everything is
real, T with blocks of 2 x 2 for pairs of complex eigenvalues.
"""

from __future__ import annotations

import cmath
import math
from typing import Any, Literal

import numpy as np

from polarlib.arrays.schur import reorder, schur, triangular_sylvester

Array = Any
Kind = Literal["sqrtm", "signm"]

UNIT = 2.0**-53
# Residuals over n u |X|^2: what is not refined, since rounding X leaves as much, and what is shown.
CLOSE, FAR = 1.0, 10.0


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
    out = np.empty(x.shape, x.dtype)
    scales = np.broadcast_to(scale, x.shape[:-2])
    for index in np.ndindex(x.shape[:-2]):
        a = x[index]
        found = schur(a)
        if found is None:
            out[index] = math.nan
            continue
        size = float(np.linalg.norm(a))
        _refuse(found[2], len(a) * unit * size, kind, float(scales[index]), index)
        f = (_sqrt if kind == "sqrtm" else _sign)(a, *found)
        out[index] = math.nan if f is None else f
    return out


# -- refusals --------------------------------------------------------------------------------------


def refused(w: Array, cut: Any, kind: Kind) -> np.ndarray:
    """Which eigenvalues are where the function is not defined, to rounding."""
    if kind == "signm":
        return np.asarray(np.abs(w.real) <= cut)
    return np.asarray((np.abs(w.imag) <= cut) & (w.real <= cut))


def _refuse(w: Array, cut: float, kind: Kind, scale: float, index: tuple[int, ...]) -> None:
    bad = refused(w, cut, kind)
    if not bad.any():
        return
    worst = w[bad][np.argmin(w[bad].real)]
    where = f" of matrix {index} of the stack" if index else ""
    value = complex(worst) * scale
    said = f"{value.real:.3e}" if value.imag == 0 else f"{value.real:.3e}{value.imag:+.3e}j"
    said = f"the eigenvalue {said}{where}"
    if kind == "signm":
        raise ValueError(
            f"a has {said}, which is on the imaginary axis to rounding, where the sign is not "
            "defined; add a multiple of the identity"
        )
    if abs(worst) <= cut:
        raise ValueError(
            f"a has {said}, which is zero to rounding, where the square root is not analytic; "
            "sqrtm_psd takes Hermitian positive semidefinite matrices"
        )
    raise ValueError(
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
