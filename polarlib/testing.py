"""Difficult test matrices and spectra, and assertions about polar factors.

They serve tests of this library and of any other implementation. Everything is computed by NumPy
and SciPy, is deterministic, and is independent of the methods under test. The assertions accept
arrays of any supported library and compute in double precision on the host.

Examples
--------
>>> from polarlib import polar
>>> for name, a in zoo(6):
...     u, h = polar(a)
...     assert_polar(a, u, h)
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from polarlib.arrays.checks import choice, flag, number
from polarlib.arrays.entry import as_matrix, is_array
from polarlib.arrays.formats import format_of
from polarlib.arrays.library import format_name
from polarlib.arrays.settings import ignore_float_errors
from polarlib.zoo.collection import zoo
from polarlib.zoo.matrices import (
    binomial,
    cauchy,
    frank,
    graded,
    growth,
    hilbert,
    jordan_block,
    kahan,
    orthonormal,
    rotation,
    wilkinson,
    wilkinson_minus,
    with_singular_values,
)
from polarlib.zoo.spectra import SPECTRA, spectrum

__all__ = [
    "SPECTRA",
    "assert_polar",
    "assert_unitary_factor",
    "binomial",
    "cauchy",
    "frank",
    "graded",
    "growth",
    "hilbert",
    "jordan_block",
    "kahan",
    "orthonormal",
    "rotation",
    "spectrum",
    "wilkinson",
    "wilkinson_minus",
    "with_singular_values",
    "zoo",
]

Array = Any


def _host(x: Array, name: str) -> tuple[np.ndarray, float]:
    """Return a copy in NumPy's double precision, and the epsilon of the given format."""
    if is_array(x) and x.ndim < 2:
        raise AssertionError(f"{name} is not a matrix or a stack of matrices: shape {x.shape}")
    checked, ops = as_matrix(x, name)
    # The format as given: as_matrix converts integers, which have no rounding, to float64.
    x = x if is_array(x) else checked
    fmt = format_name(x)
    y = ops.to_host(x)
    if not np.all(np.isfinite(y)):
        raise AssertionError(f"{name} contains NaN or infinity")
    return y, format_of(fmt).epsilon if fmt else 2.0**-52


def _adjoint(x: np.ndarray) -> np.ndarray:
    adjoint: np.ndarray = np.conj(np.swapaxes(x, -1, -2))
    return adjoint


def _norm(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x, axis=(-2, -1)) if x.size else np.zeros(x.shape[:-2])


def _default_rtol(shape: tuple[int, ...], eps: float) -> float:
    # 50 roundings (1.1e-14 in double precision), or one per column: at least three times the errors
    # of backward stable methods.
    return max(50, *shape[-2:]) * eps


def _fail_above(quantity: str, values: Any, limit: float) -> None:
    values = np.asarray(values)
    if values.size and not np.all(values <= limit):  # NaN is above every limit
        worst = np.unravel_index(
            np.argmax(np.where(np.isnan(values), np.inf, values)), values.shape
        )
        where = f" (matrix {tuple(map(int, worst))} of the stack)" if values.ndim else ""
        raise AssertionError(f"{quantity} is {values[worst]:.3e}, above {limit:.3e}{where}")


def _unit(x: np.ndarray) -> np.ndarray:
    """Return the power of two near the largest entry of each matrix, 1 for a zero matrix."""
    if x.size == 0:
        return np.ones((*x.shape[:-2], 1, 1))
    max_abs = np.maximum(np.abs(x.real), np.abs(x.imag)).max(axis=(-2, -1), keepdims=True)
    _, exponent = np.frexp(max_abs)
    return np.ldexp(1.0, np.where(max_abs > 0, exponent - 1, 0))


def _assert_isometry(u: np.ndarray, rtol: float, completion: bool) -> None:
    tall = u if u.shape[-2] >= u.shape[-1] else _adjoint(u)
    k = max(tall.shape[-1], 1)
    gram = _adjoint(tall) @ tall
    if completion:
        side = "columns" if tall is u else "rows"
        defect = _norm(gram - np.eye(tall.shape[-1])) / math.sqrt(k)
        _fail_above(f"the orthogonality of U's {side}", defect, rtol)
    else:
        defect = _norm(tall @ gram - tall) / math.sqrt(k)
        _fail_above("||U U^H U - U||_F / sqrt(k) of a partial isometry", defect, rtol)


def _assert_semidefinite(h: np.ndarray, name: str, rtol: float) -> None:
    if h.size:
        values = np.linalg.eigvalsh(h)
        size = np.abs(values).max(axis=-1)
        negative = -values[..., 0] / np.where(size == 0, 1, size)
        _fail_above(f"the negative part of {name}, relative to its norm,", negative, rtol)


@ignore_float_errors
def assert_unitary_factor(
    a: Array, u: Array, *, rtol: float | None = None, completion: bool = True
) -> None:
    """Assert that U is the unitary polar factor of A, from A and U alone.

    U with orthonormal columns is a unitary factor of A if and only if ``U^H A`` is Hermitian and
    positive semidefinite and ``U U^H A = A``. For m < n the same holds for the adjoints. No
    reference factor is needed, so the limit does not depend on the condition number of A.

    Parameters
    ----------
    a, u : array, shape (..., m, n)
        Of any supported library.
    rtol : float, optional
        Largest allowed value of each of the errors, relative to ``||A||_F``. By default
        ``max(50, m, n)`` epsilons of the format of `u`.
    completion : bool, optional
        Whether U must be orthonormal; otherwise a partial isometry ``U_r V_r^H`` is required.

    Raises
    ------
    AssertionError
        With the property that fails, its value and its limit.

    Notes
    -----
    N. J. Higham, Functions of Matrices (SIAM, 2008), Theorem 8.1.

    Examples
    --------
    >>> a = np.array([[0.0, -2.0], [1.0, 0.0]])
    >>> assert_unitary_factor(a, [[0.0, -1.0], [1.0, 0.0]])
    >>> assert_unitary_factor(a, np.eye(2))
    Traceback (most recent call last):
    AssertionError: the skew-Hermitian part of U^H A, relative to A, is 9.487e-01, above 1.110e-14
    """
    x, _ = _host(a, "A")
    v, eps = _host(u, "U")
    if x.shape != v.shape:
        raise AssertionError(f"U has shape {v.shape}, and A has {x.shape}")
    rtol = _default_rtol(x.shape, eps) if rtol is None else number("rtol", rtol, 0)
    completion = flag("completion", completion)
    _assert_isometry(v, rtol, completion)
    x = x / _unit(x)
    if x.shape[-2] < x.shape[-1]:
        x, v = _adjoint(x), _adjoint(v)
    size = np.where(_norm(x) == 0, 1, _norm(x))
    w = _adjoint(v) @ x
    skew = _norm(w - _adjoint(w)) / (2 * size)
    _fail_above("the skew-Hermitian part of U^H A, relative to A,", skew, rtol)
    h = w / 2 + _adjoint(w) / 2
    _assert_semidefinite(h, "U^H A", rtol)
    _fail_above("the backward error ||A - U H|| / ||A||", _norm(x - v @ h) / size, rtol)


@ignore_float_errors
def assert_polar(
    a: Array,
    u: Array,
    h: Array,
    *,
    side: Literal["right", "left"] = "right",
    rtol: float | None = None,
    completion: bool = True,
) -> None:
    """Assert that U and H are polar factors of A.

    U must be orthonormal (columns if m >= n, rows otherwise), H exactly Hermitian and positive
    semidefinite to rounding, and ``A = U H`` or ``A = H U`` in the Frobenius norm.

    Parameters
    ----------
    a, u : array, shape (..., m, n)
        Of any supported library.
    h : array, shape (..., n, n) or (..., m, m)
        For side "right" or "left".
    side : {"right", "left"}, optional
        Side of H.
    rtol : float, optional
        Largest allowed value of each of the errors, relative to ``||A||_F``. By default
        ``max(50, m, n)`` epsilons of the format of `u`.
    completion : bool, optional
        Whether U must be orthonormal; otherwise a partial isometry is required.

    Raises
    ------
    AssertionError
        With the property that fails, its value and its limit.

    Examples
    --------
    >>> assert_polar([[-2.0]], [[-1.0]], [[2.0]])
    >>> assert_polar([[-2.0]], [[1.0]], [[-2.0]])
    Traceback (most recent call last):
    AssertionError: the negative part of H, relative to its norm, is 1.000e+00, above 1.110e-14
    """
    side = choice("side", side, ("right", "left"))
    x, _ = _host(a, "A")
    v, eps = _host(u, "U")
    p, _ = _host(h, "H")
    k = x.shape[-1] if side == "right" else x.shape[-2]
    if x.shape != v.shape:
        raise AssertionError(f"U has shape {v.shape}, and A has {x.shape}")
    if p.shape != (*x.shape[:-2], k, k):
        raise AssertionError(f"H has shape {p.shape}, expected {(*x.shape[:-2], k, k)}")
    rtol = _default_rtol(x.shape, eps) if rtol is None else number("rtol", rtol, 0)
    completion = flag("completion", completion)
    _assert_isometry(v, rtol, completion)
    if not np.array_equal(p, _adjoint(p)):
        worst = np.abs(p - _adjoint(p)).max()
        raise AssertionError(f"H is not exactly Hermitian: H - H^H has entries up to {worst:.3e}")
    unit = _unit(x)
    x, p = x / unit, p / unit
    _assert_semidefinite(p, "H", rtol)
    size = np.where(_norm(x) == 0, 1, _norm(x))
    residual = x - (v @ p if side == "right" else p @ v)
    product = "U H" if side == "right" else "H U"
    _fail_above(f"the backward error ||A - {product}|| / ||A||", _norm(residual) / size, rtol)
