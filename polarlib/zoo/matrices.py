"""Test matrices: families by name, orthonormal matrices, and given singular values."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import scipy.linalg

from polarlib.arrays.checks import count, items, number, shown
from polarlib.arrays.library import format_name
from polarlib.arrays.settings import ignore_float_errors

# Largest number of rows or columns: a matrix of 2 GiB, whose factors take minutes.
LARGEST = 16384
# Least size of a shift: 1 / shift is an entry, and must be finite.
SMALLEST = 1e-300


def orthonormal(m: int, n: int, *, seed: int = 0, dtype: Any = "float64") -> np.ndarray:
    """Return a random matrix with orthonormal columns (rows, if m < n), uniformly distributed.

    Parameters
    ----------
    m, n : int
        Shape.
    seed : int, optional
        Of NumPy's default generator.
    dtype : dtype, optional
        Real or complex; computed in double precision and converted.

    Returns
    -------
    ndarray, shape (m, n)
        Of dtype `dtype`.

    Notes
    -----
    QR of a Gaussian matrix with the phases of R's diagonal moved into Q. F. Mezzadri, Notices of
    the AMS 54 (2007) 592-604.

    Examples
    --------
    >>> q = orthonormal(5, 3)
    >>> bool(np.allclose(q.T @ q, np.eye(3)))
    True
    """
    m, n, seed = count("m", m, 0, LARGEST), count("n", n, 0, LARGEST), count("seed", seed, 0)
    dtype = floating(dtype)
    if m < n:
        return orthonormal(n, m, seed=seed, dtype=dtype).conj().T
    g = gaussian(m, n, seed, dtype)
    q, r = scipy.linalg.qr(g, mode="economic")
    diagonal = np.diagonal(r)
    unique: np.ndarray = q * (diagonal / np.abs(diagonal))
    return unique.astype(dtype)


@ignore_float_errors
def with_singular_values(
    s: Any, m: int | None = None, n: int | None = None, *, seed: int = 0, dtype: Any = "float64"
) -> np.ndarray:
    """Return a matrix with given singular values and uniformly random singular vectors.

    Parameters
    ----------
    s : array-like, shape (k,)
        Singular values, k = min(m, n).
    m, n : int, optional
        Shape; square by default, and ``n = k`` if only `m` is given.
    seed : int, optional
        Of NumPy's default generator.
    dtype : dtype, optional
        Real or complex; computed in double precision and rounded once.

    Returns
    -------
    ndarray, shape (m, n)
        Of dtype `dtype`.

    Raises
    ------
    ValueError
        If the number of singular values is not the smaller dimension.

    Examples
    --------
    >>> a = with_singular_values([3.0, 2.0, 1.0], 5, dtype="complex128")
    >>> a.shape, np.linalg.svd(a, compute_uv=False).round(12).tolist()
    ((5, 3), [3.0, 2.0, 1.0])
    """
    values = items("s", s, "a list of numbers", 0, LARGEST)
    s = np.array([number("a singular value", v, 0) for v in values])
    m = s.size if m is None else count("m", m, 0, LARGEST)
    n = s.size if n is None else count("n", n, 0, LARGEST)
    seed, dtype = count("seed", seed, 0), floating(dtype)
    if s.ndim != 1 or s.size != min(m, n):
        raise ValueError(
            f"with_singular_values needs min(m, n) = {min(m, n)} singular values, "
            f"got shape {s.shape}"
        )
    wide = np.result_type(dtype, np.float64) if dtype.kind in "fc" else "f8"
    # Two seeds: with one, U and V would have the same columns.
    u = orthonormal(m, s.size, seed=2 * seed, dtype=wide)
    v = orthonormal(n, s.size, seed=2 * seed + 1, dtype=wide)
    a: np.ndarray = (u * s) @ v.conj().T
    return a.astype(dtype)


def hilbert(n: int) -> np.ndarray:
    """Return the Hilbert matrix ``1 / (i + j - 1)``: condition number about ``exp(3.5 n)``.

    Parameters
    ----------
    n : int
        Order, from 1 to 16384.

    Returns
    -------
    ndarray, shape (n, n)
        Real, float64.

    Raises
    ------
    ValueError
        If `n` is not an integer from 1 to 16384.

    Examples
    --------
    >>> hilbert(2).tolist()
    [[1.0, 0.5], [0.5, 0.3333333333333333]]
    """
    a: np.ndarray = scipy.linalg.hilbert(count("n", n, most=LARGEST))
    return a


def frank(n: int) -> np.ndarray:
    """Return the Frank matrix: upper Hessenberg, determinant 1, ill-conditioned eigenvalues.

    Parameters
    ----------
    n : int
        Order, from 1 to 16384.

    Returns
    -------
    ndarray, shape (n, n)
        Real, float64.

    Raises
    ------
    ValueError
        If `n` is not an integer from 1 to 16384.

    References
    ----------
    W. L. Frank, J. SIAM 6 (1958) 378-392.

    Examples
    --------
    >>> frank(3).tolist()
    [[3.0, 2.0, 1.0], [2.0, 2.0, 1.0], [0.0, 1.0, 1.0]]
    """
    n = count("n", n, most=LARGEST)
    i = np.arange(1, n + 1)
    values = n + 1.0 - np.maximum(i[:, None], i)
    return np.triu(values, -1)


def binomial(n: int) -> np.ndarray:
    """Return the binomial matrix: a multiple of an involution, ``A @ A = 2**(n - 1) I``.

    Parameters
    ----------
    n : int
        Order, from 1 to 1000.

    Returns
    -------
    ndarray, shape (n, n)
        Real, float64.

    Raises
    ------
    ValueError
        If `n` is not an integer from 1 to 1000.

    References
    ----------
    N. J. Higham, The Matrix Computation Toolbox.

    Examples
    --------
    >>> binomial(3).tolist()
    [[1.0, 2.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]]
    """
    n = count("n", n, most=1000)  # the largest entries would overflow
    low = scipy.linalg.pascal(n, kind="lower").astype(np.float64)
    a: np.ndarray = low @ np.diag((-2.0) ** np.arange(n)) @ low[::-1, ::-1]
    return a


def kahan(n: int, theta: float = 1.2) -> np.ndarray:
    """Return the Kahan matrix: triangular, with a singular value that pivoted QR does not reveal.

    Parameters
    ----------
    n : int
        Order, from 1 to 16384.
    theta : float, optional
        Angle in radians; the diagonal is ``sin(theta)**i``, i = 0, ..., n - 1.

    Returns
    -------
    ndarray, shape (n, n)
        Real, float64.

    Raises
    ------
    ValueError
        If `n` is not an integer from 1 to 16384, or `theta` not a finite number.

    References
    ----------
    W. Kahan, Canad. Math. Bull. 9 (1966) 757-801.

    Examples
    --------
    >>> kahan(2, np.pi / 2).round(12).tolist()
    [[1.0, -0.0], [0.0, 1.0]]
    """
    n, theta = count("n", n, most=LARGEST), number("theta", theta)
    rows = np.sin(theta) ** np.arange(n)
    a: np.ndarray = rows[:, None] * (np.eye(n) - np.cos(theta) * np.triu(np.ones((n, n)), 1))
    return a


def wilkinson(n: int) -> np.ndarray:
    """Return Wilkinson's matrix W+: tridiagonal, indefinite, eigenvalues in nearly equal pairs.

    Parameters
    ----------
    n : int
        Order, from 1 to 16384.

    Returns
    -------
    ndarray, shape (n, n)
        Real, float64.

    Raises
    ------
    ValueError
        If `n` is not an integer from 1 to 16384.

    Examples
    --------
    >>> wilkinson(3).tolist()
    [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    """
    off = np.ones(count("n", n, most=LARGEST) - 1)
    return np.diag(np.abs(np.arange(n) - (n - 1) / 2)) + np.diag(off, 1) + np.diag(off, -1)


def wilkinson_minus(n: int) -> np.ndarray:
    """Return Wilkinson's matrix W-: eigenvalues in pairs ``+-x`` that share a singular value.

    Parameters
    ----------
    n : int
        Order, from 1 to 16384.

    Returns
    -------
    ndarray, shape (n, n)
        Real, float64.

    Raises
    ------
    ValueError
        If `n` is not an integer from 1 to 16384.

    References
    ----------
    J. H. Wilkinson, The Algebraic Eigenvalue Problem (Oxford, 1965), section 5.45.

    Examples
    --------
    >>> wilkinson_minus(3).tolist()
    [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, -1.0]]
    """
    off = np.ones(count("n", n, most=LARGEST) - 1)
    return np.diag((n - 1) / 2 - np.arange(n)) + np.diag(off, 1) + np.diag(off, -1)


def cauchy(n: int, shift: float = 0.5) -> np.ndarray:
    """Return a Cauchy matrix ``1 / (i - j + shift)``: singular values near ``pi / sin(pi shift)``.

    Parameters
    ----------
    n : int
        Order, from 1 to 16384.
    shift : float, optional
        Not an integer, and at least 1e-300 in absolute value.

    Returns
    -------
    ndarray, shape (n, n)
        Real, float64.

    Raises
    ------
    ValueError
        If `n` is not an integer from 1 to 16384, or for another shift.

    References
    ----------
    S. V. Parter, Linear Algebra Appl. 80 (1986) 115-130.

    Examples
    --------
    >>> cauchy(2).tolist()
    [[2.0, -2.0], [0.6666666666666666, 2.0]]
    """
    shift = number("shift", shift)
    if shift.is_integer():
        raise ValueError(f"shift must not be an integer, where an entry is infinite, got {shift:g}")
    if abs(shift) < SMALLEST:
        raise ValueError(f"shift must be at least {SMALLEST:g} in absolute value, got {shift:g}")
    i = np.arange(count("n", n, most=LARGEST))
    return 1.0 / (i[:, None] - i + shift)


def growth(n: int) -> np.ndarray:
    """Return a matrix whose elements grow by ``2**(n - 1)`` in LU with partial pivoting.

    Parameters
    ----------
    n : int
        Order, from 1 to 16384.

    Returns
    -------
    ndarray, shape (n, n)
        Real, float64.

    Raises
    ------
    ValueError
        If `n` is not an integer from 1 to 16384.

    References
    ----------
    J. H. Wilkinson, J. ACM 8 (1961) 281-330.

    Examples
    --------
    >>> growth(3).tolist()
    [[1.0, 0.0, 1.0], [-1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]]
    """
    n = count("n", n, most=LARGEST)
    a = np.eye(n) - np.tril(np.ones((n, n)), -1)
    a[:, -1] = 1.0
    return a


@ignore_float_errors
def rotation(n: int, angle: float, *, seed: int = 0) -> np.ndarray:
    """Return a rotation by `angle` in a random plane.

    Parameters
    ----------
    n : int
        Order, from 1 to 16384.
    angle : float
        Angle in radians.
    seed : int, optional
        Of NumPy's default generator.

    Returns
    -------
    ndarray, shape (n, n)
        Real, float64.

    Raises
    ------
    ValueError
        If `n` is not an integer from 1 to 16384, `angle` not a finite number, or `seed` not an
        integer of at least 0.

    Examples
    --------
    >>> r = rotation(3, np.pi)
    >>> bool(np.isclose(np.trace(r), -1)), bool(np.isclose(np.linalg.det(r), 1))
    (True, True)
    """
    n, angle = count("n", n, most=LARGEST), number("angle", angle)
    if n < 2:
        return np.ones((n, n))
    plane = orthonormal(n, 2, seed=seed)
    # 1 - cos without cancellation, so that small angles are exact.
    less, sine = 2 * np.sin(angle / 2) ** 2, np.sin(angle)
    a: np.ndarray = np.eye(n) + plane @ np.array([[-less, -sine], [sine, -less]]) @ plane.T
    return a


def jordan_block(n: int, value: float = 0.1) -> np.ndarray:
    """Return a Jordan block; its smallest singular value is about ``value**n``.

    Parameters
    ----------
    n : int
        Order, from 1 to 16384.
    value : float, optional
        The eigenvalue.

    Returns
    -------
    ndarray, shape (n, n)
        Real, float64.

    Raises
    ------
    ValueError
        If `n` is not an integer from 1 to 16384, or `value` not a finite number.

    Examples
    --------
    >>> jordan_block(2).tolist()
    [[0.1, 1.0], [0.0, 0.1]]
    """
    n, value = count("n", n, most=LARGEST), number("value", value)
    return value * np.eye(n) + np.eye(n, k=1)


@ignore_float_errors
def graded(n: int, low: float = 1e-12, *, seed: int = 0) -> np.ndarray:
    """Return a Gaussian matrix whose rows and columns decrease geometrically from 1 to `low`.

    Parameters
    ----------
    n : int
        Order, from 1 to 16384.
    low : float, optional
        Scale of the last row and of the last column, above 0 and at most 1.
    seed : int, optional
        Of NumPy's default generator.

    Returns
    -------
    ndarray, shape (n, n)
        Real, float64.

    Raises
    ------
    ValueError
        If `n` is not an integer from 1 to 16384, `low` not in (0, 1], or `seed` not an integer of
        at least 0.

    Examples
    --------
    >>> np.abs(graded(4)[3, 3]) < 1e-20
    np.True_
    """
    n, seed = count("n", n, most=LARGEST), count("seed", seed, 0)
    scale = np.geomspace(1.0, number("low", low, 0, 1, ends="(]"), n)
    a: np.ndarray = scale[:, None] * gaussian(n, n, seed, "float64") * scale
    return a


def floating(dtype: Any) -> np.dtype[Any]:
    """Return NumPy's dtype of a floating format."""
    with contextlib.suppress(Exception):  # np.dtype raises many types of errors
        known: np.dtype[Any] = np.dtype(dtype)
        if format_name(np.empty(0, known)):
            return known
    raise ValueError(f"dtype must be a floating dtype, got {shown(dtype)}")


def gaussian(m: int, n: int, seed: int, dtype: Any) -> np.ndarray:
    """Return a matrix with independent standard normal entries, complex for a complex dtype."""
    rng = np.random.default_rng(seed)
    g = rng.standard_normal((m, n))
    if np.dtype(dtype).kind == "c":
        return g + 1j * rng.standard_normal((m, n))
    return g
