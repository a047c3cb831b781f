"""Matrices that break things, and matrices with given singular values."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.linalg

from polarlib.arrays.checks import choice, count, flag, items, number, shown
from polarlib.arrays.formats import format_of
from polarlib.arrays.ops import ops_of
from polarlib.arrays.settings import ignore_float_errors

__all__ = [
    "SPECTRA",
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


# Rows or columns: a matrix of 2 GiB, whose factors take minutes.
LARGEST = 16384
SMALLEST = 1e-300

# -- matrices --------------------------------------------------------------------------------


def orthonormal(m: int, n: int, *, seed: int = 0, dtype: Any = "float64") -> np.ndarray:
    """Matrix with orthonormal columns (rows, if m < n), uniform among them.

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
    dtype = _dtype(dtype)
    if m < n:
        return orthonormal(n, m, seed=seed, dtype=dtype).conj().T
    g = _gaussian(m, n, seed, dtype)
    q, r = scipy.linalg.qr(g, mode="economic")
    diagonal = np.diagonal(r)
    return (q * (diagonal / np.abs(diagonal))).astype(dtype)


@ignore_float_errors
def with_singular_values(
    s: Any, m: int | None = None, n: int | None = None, *, seed: int = 0, dtype: Any = "float64"
) -> np.ndarray:
    """Matrix with given singular values and uniformly random singular vectors.

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
    found = items("s", s, "a list of numbers", 0, LARGEST)
    s = np.array([number("a singular value", v, 0) for v in found])
    m = s.size if m is None else count("m", m, 0, LARGEST)
    n = s.size if n is None else count("n", n, 0, LARGEST)
    seed, dtype = count("seed", seed, 0), _dtype(dtype)
    if s.ndim != 1 or s.size != min(m, n):
        raise ValueError(
            f"with_singular_values needs min(m, n) = {min(m, n)} singular values, "
            f"got shape {s.shape}"
        )
    wide = np.result_type(dtype, np.float64) if dtype.kind in "fc" else "f8"
    u = orthonormal(m, s.size, seed=2 * seed, dtype=wide)
    v = orthonormal(n, s.size, seed=2 * seed + 1, dtype=wide)
    return ((u * s) @ v.conj().T).astype(dtype)


def hilbert(n: int) -> np.ndarray:
    """Hilbert matrix ``1 / (i + j - 1)``: condition number about ``exp(3.5 n)``.

    Examples
    --------
    >>> hilbert(2).tolist()
    [[1.0, 0.5], [0.5, 0.3333333333333333]]
    """
    return scipy.linalg.hilbert(count("n", n, most=LARGEST))


def frank(n: int) -> np.ndarray:
    """Frank matrix: upper Hessenberg, determinant 1, ill-conditioned small eigenvalues.

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
    """Binomial matrix: a multiple of an involution, ``A @ A = 2**(n - 1) I``.

    N. J. Higham, The Matrix Computation Toolbox.

    Examples
    --------
    >>> binomial(3).tolist()
    [[1.0, 2.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]]
    """
    n = count("n", n, most=1000)  # the largest entries would overflow
    low = scipy.linalg.pascal(n, kind="lower").astype(np.float64)
    return low @ np.diag((-2.0) ** np.arange(n)) @ low[::-1, ::-1]


def kahan(n: int, theta: float = 1.2) -> np.ndarray:
    """Kahan matrix: triangular, and QR with column pivoting does not see its small singular value.

    W. Kahan, Canad. Math. Bull. 9 (1966) 757-801.

    Examples
    --------
    >>> kahan(2, np.pi / 2).round(12).tolist()
    [[1.0, -0.0], [0.0, 1.0]]
    """
    n, theta = count("n", n, most=LARGEST), number("theta", theta)
    rows = np.sin(theta) ** np.arange(n)
    return rows[:, None] * (np.eye(n) - np.cos(theta) * np.triu(np.ones((n, n)), 1))


def wilkinson(n: int) -> np.ndarray:
    """Wilkinson matrix W+: symmetric tridiagonal, indefinite, eigenvalues in nearly equal pairs.

    Examples
    --------
    >>> wilkinson(3).tolist()
    [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    """
    off = np.ones(count("n", n, most=LARGEST) - 1)
    return np.diag(np.abs(np.arange(n) - (n - 1) / 2)) + np.diag(off, 1) + np.diag(off, -1)


def wilkinson_minus(n: int) -> np.ndarray:
    """Wilkinson matrix W-: its eigenvalues come in pairs ``+-x`` that have one singular value.

    J. H. Wilkinson, The Algebraic Eigenvalue Problem (Oxford, 1965), section 5.45.

    Examples
    --------
    >>> wilkinson_minus(3).tolist()
    [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, -1.0]]
    """
    off = np.ones(count("n", n, most=LARGEST) - 1)
    return np.diag((n - 1) / 2 - np.arange(n)) + np.diag(off, 1) + np.diag(off, -1)


def cauchy(n: int, shift: float = 0.5) -> np.ndarray:
    """Cauchy matrix ``1 / (i - j + shift)``: singular values gather at ``pi / sin(pi shift)``.

    S. V. Parter, Linear Algebra Appl. 80 (1986) 115-130.

    Examples
    --------
    >>> cauchy(2).tolist()
    [[2.0, -2.0], [0.6666666666666666, 2.0]]
    """
    shift = number("shift", shift)
    if shift.is_integer():
        raise ValueError(f"shift must not be an integer, where the matrix has poles, got {shift:g}")
    if abs(shift) < SMALLEST:
        raise ValueError(f"shift must not be below {SMALLEST:g} in size, got {shift:g}")
    i = np.arange(count("n", n, most=LARGEST))
    return 1.0 / (i[:, None] - i + shift)


def growth(n: int) -> np.ndarray:
    """Matrix whose elements grow by ``2**(n - 1)`` in LU factorisation with partial pivoting.

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
    """Rotation by `angle` in a random plane.

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
    return np.eye(n) + plane @ np.array([[-less, -sine], [sine, -less]]) @ plane.T


def jordan_block(n: int, value: float = 0.1) -> np.ndarray:
    """Jordan block; its smallest singular value is about ``value**n``.

    Examples
    --------
    >>> jordan_block(2).tolist()
    [[0.1, 1.0], [0.0, 0.1]]
    """
    n, value = count("n", n, most=LARGEST), number("value", value)
    return value * np.eye(n) + np.eye(n, k=1)


@ignore_float_errors
def graded(n: int, low: float = 1e-12, *, seed: int = 0) -> np.ndarray:
    """Gaussian matrix whose rows and columns fall geometrically from 1 to `low`.

    Examples
    --------
    >>> np.abs(graded(4)[3, 3]) < 1e-20
    np.True_
    """
    n, seed = count("n", n, most=LARGEST), count("seed", seed, 0)
    scale = np.geomspace(1.0, number("low", low, 0, 1, ends="(]"), n)
    return scale[:, None] * _gaussian(n, n, seed, "float64") * scale


def _dtype(dtype: Any) -> np.dtype:
    """NumPy's dtype of a floating format."""
    with contextlib.suppress(Exception):  # of all kinds
        found = np.dtype(dtype)
        if _format_name(found):
            return found
    raise ValueError(f"dtype must be a floating dtype, got {shown(dtype)}")


def _gaussian(m: int, n: int, seed: int, dtype: Any) -> np.ndarray:
    rng = np.random.default_rng(seed)
    g = rng.standard_normal((m, n))
    if np.dtype(dtype).kind == "c":
        return g + 1j * rng.standard_normal((m, n))
    return g


def _real_zoo(n: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    gauss = _gaussian(n, n, seed, "float64")
    yield "gaussian", gauss
    yield "gaussian tall", _gaussian(3 * n, n, seed + 1, "float64")
    yield "gaussian wide", _gaussian(n, 3 * n, seed + 2, "float64")
    yield "1 x 1", np.array([[-2.5]])
    yield "1 x 1 zero", np.zeros((1, 1))
    yield "1 x n", _gaussian(1, n, seed, "float64")
    yield "n x 1", _gaussian(n, 1, seed, "float64")
    for condition in (1.0, 1e3, 1e8, 1e15):
        s = np.geomspace(1.0, 1 / condition, n)
        yield f"condition {condition:.0e}", with_singular_values(s, seed=seed)
    yield "condition 1e+08 tall", with_singular_values(np.geomspace(1, 1e-8, n), 2 * n, seed=seed)
    half = np.where(np.arange(n) < max(n // 2, 1), 1.0 / (1 + np.arange(n)), 0.0)
    yield "rank deficient", with_singular_values(half, seed=seed)
    yield "rank deficient tall", with_singular_values(half, 2 * n, seed=seed)
    yield "rank deficient wide", with_singular_values(half, n, 2 * n, seed=seed)
    for lost in {1, n - 2}:
        if 0 < lost < n:
            s = np.where(np.arange(n) < n - lost, 1.0 / (1 + np.arange(n)), 0.0)
            yield f"rank {n - lost}", with_singular_values(s, seed=seed + lost)
    yield "rank one", np.outer(np.arange(1.0, n + 1), np.ones(n))
    yield "outer product", np.outer(gauss[0], gauss[-1])
    yield "outer product tall", np.outer(np.append(gauss[0], gauss[-1]), gauss[:, 0])
    yield "zero", np.zeros((n, n))
    yield "zero tall", np.zeros((n + 2, n))
    yield "zero wide", np.zeros((n, n + 2))
    rows, columns = gauss.copy(), gauss.copy()
    rows[::2] = 0
    columns[:, ::2] = 0
    yield "zero rows", rows
    yield "zero columns", columns
    yield "one entry", np.eye(n)[:1].T @ np.eye(n)[-1:]
    one = gauss.copy()
    one[-1, 0] = 1e10
    yield "one huge entry", one
    yield "identity", np.eye(n)
    yield "minus identity", -np.eye(n)
    orthogonal = orthonormal(n, n, seed=seed)
    yield "orthogonal", orthogonal
    yield "orthonormal columns", orthonormal(2 * n, n, seed=seed)
    yield "nearly orthogonal", orthogonal + 1e-9 * gauss
    for size in (1e-15, 1e-12, 1e-8):
        yield f"nearly orthogonal {size:.0e}", orthogonal + size * gauss
    half_turn = np.eye(n)
    half_turn[:2, :2] *= -1
    yield "rotation by pi", orthogonal @ half_turn @ orthogonal.T
    yield "rotation near pi", rotation(n, np.pi - 1e-8, seed=seed)
    yield "rotation near zero", rotation(n, 1e-8, seed=seed)
    yield "reflection", np.eye(n) - 2 * np.outer(orthogonal[0], orthogonal[0])
    yield "permutation", np.eye(n)[::-1].copy()
    yield "cyclic permutation", np.roll(np.eye(n), 1, axis=0)
    symmetric = gauss + gauss.T
    yield "indefinite", symmetric
    yield "nearly symmetric", symmetric + 1e-14 * gauss
    yield "skew-symmetric", gauss - gauss.T
    yield "normal", scipy.linalg.circulant(gauss[0])
    yield "frank", frank(n)
    yield "binomial", binomial(n)
    yield "hilbert", hilbert(n)
    yield "kahan", kahan(n)
    yield "companion", scipy.linalg.companion(np.poly(np.arange(1.0, n + 1))) if n > 1 else gauss
    yield "cauchy", cauchy(n)
    yield "vandermonde", np.vander(np.linspace(-1.0, 1.0, n))
    yield "growth", growth(n)
    yield "triangular ones", np.triu(np.ones((n, n)))
    yield "wilkinson", wilkinson(n)
    yield "wilkinson minus", wilkinson_minus(n)
    yield "jordan block", jordan_block(n)
    yield "jordan block of one", jordan_block(n, 1.0)
    yield "jordan blocks", scipy.linalg.block_diag(jordan_block(n - n // 2), np.eye(n // 2))
    yield "nilpotent", jordan_block(n, 0.0)
    yield "graded", graded(n, seed=seed)
    scale = np.geomspace(1.0, 1e-12, n)
    yield "graded rows", scale[:, None] * gauss
    yield "graded columns", gauss * scale
    yield "graded upwards", scale[::-1, None] * gauss
    white = np.add.outer(np.arange(n), np.arange(n)) % 2 == 0
    yield "checkerboard of scales", np.where(white, gauss, 1e-10 * gauss)
    yield "huge", gauss * 1e300
    yield "tiny", gauss * 1e-300
    yield "huge and tiny", np.diag(np.geomspace(1e150, 1e-150, n))


def _complex_zoo(n: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """What is complex by itself."""
    gauss = _gaussian(n, n, seed + 3, "complex128")
    unitary = orthonormal(n, n, seed=seed + 3, dtype="complex128")
    yield "complex symmetric", gauss + gauss.T
    yield "hermitian", gauss + gauss.conj().T
    yield "skew-hermitian", gauss - gauss.conj().T
    yield "unitary", unitary
    yield "nearly unitary", unitary + 1e-12 * gauss
    yield "unitary diagonal", np.diag(np.exp(2j * np.pi * np.arange(n) / n))
    yield "fourier", scipy.linalg.dft(n)
    yield "part of fourier", scipy.linalg.dft(2 * n)[:, :n]


def zoo(
    n: int = 8, *, seed: int = 0, complex_: bool = True, dtype: Any = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Matrices that have broken polar decompositions, with their names.

    Parameters
    ----------
    n : int, optional
        Size, at least 1; tall and wide matrices have this number of columns or rows.
    seed : int, optional
        Of NumPy's default generator; the same seed gives the same matrices.
    complex_ : bool, optional
        Whether complex versions follow the real ones.
    dtype : dtype, optional
        Round all to this dtype; complex matrices are then left out of real ones, and matrices that
        it cannot hold are left out. By default float64 and complex128.

    Yields
    ------
    name : str
    a : ndarray
        Finite.

    Examples
    --------
    >>> animals = dict(zoo(4))
    >>> animals["gaussian tall"].shape, animals["complex hilbert"].dtype
    ((12, 4), dtype('complex128'))
    """
    n, seed = count("n", n, most=LARGEST), count("seed", seed, 0)
    complex_ = flag("complex_", complex_)
    target = None if dtype is None else _dtype(dtype)
    want_real = target is None or target.kind != "c"
    want_complex = complex_ and (target is None or target.kind == "c")
    largest = math.inf if target is None else format_of(_format_name(target)).largest
    for name, a in _real_zoo(n, seed):
        if np.abs(a).max() > largest / (2 * a.size):
            continue
        if want_real:
            yield name, a if target is None else a.astype(target)
        if want_complex:
            m, k = a.shape
            # Other phases of rows and columns: another matrix with the same singular values.
            rng = np.random.default_rng(seed + 1000)
            rows = np.exp(2j * np.pi * rng.random((m, 1)))
            columns = np.exp(2j * np.pi * rng.random((1, k)))
            z = rows * a * columns
            yield f"complex {name}", z if target is None else z.astype(target)
    if want_complex:
        for name, z in _complex_zoo(n, seed):
            yield name, z if target is None else z.astype(target)


# -- spectra ---------------------------------------------------------------------------------


def _logspace(low: float) -> Callable[[int], np.ndarray]:
    return lambda k: np.geomspace(1.0, low, k)


def _leading(head: np.ndarray, k: int, tail: np.ndarray | None = None) -> np.ndarray:
    s = np.zeros(k)
    head = head[:k]
    s[: head.size] = head
    if tail is not None:
        s[head.size :] = tail[: k - head.size]
    return s


def _log_uniform(low: float, k: int) -> np.ndarray:
    s = low ** np.random.default_rng(7).random(k)
    s[0] = 1.0
    return np.sort(s)[::-1]


def _elevenths(k: int) -> np.ndarray:
    rare = max(k // 11, 1)
    s = np.concatenate([np.geomspace(1, 1e-10, k - rare), np.geomspace(1e-4, 1e-10, rare)])
    return np.sort(s)[::-1]


_SPECTRA: dict[str, Callable[[int], np.ndarray]] = {
    # The stress test of gram-newton-schulz (Dao-AILab, 2025).
    "linear": lambda k: np.linspace(0.5, 0.0, k),
    "log 1e-3": _logspace(1e-3),
    "log 1e-5": _logspace(1e-5),
    "log 1e-7": _logspace(1e-7),
    "log 1e-9": _logspace(1e-9),
    "half log, half zero": lambda k: _leading(np.geomspace(1, 1e-2, (k + 1) // 2), k),
    "rank ten": lambda k: _leading(np.geomspace(1, 0.1, 10), k),
    "rank two": lambda k: _leading(np.array([1.0, 0.32]), k),
    "rank two with tail": lambda k: _leading(
        np.array([1.0, 0.32]), k, np.geomspace(1e-4, 1e-7, max(k - 2, 1))
    ),
    "ten elevenths": _elevenths,
    "gamma": lambda k: np.sort(np.random.default_rng(5).gamma(3.0, 0.5, k))[::-1],
    # Adversarial ones.
    "ones": np.ones,
    "rank one": lambda k: _leading(np.ones(1), k),
    "rank two with low tail": lambda k: _leading(
        np.array([1.0, 0.3]), k, np.geomspace(1e-4, 1e-7, max(k - 2, 1))
    ),
    "log-uniform 1e-3": lambda k: _log_uniform(1e-3, k),
    "log-uniform 1e-7": lambda k: _log_uniform(1e-7, k),
    "half log-uniform, half zero": lambda k: _leading(_log_uniform(1e-3, (k + 1) // 2), k),
    "three clusters": lambda k: np.sort(np.array([1.0, 1e-2, 1e-4])[np.arange(k) % 3])[::-1],
}

SPECTRA: tuple[str, ...] = tuple(_SPECTRA)
"""Names that :func:`spectrum` takes: those of the field's stress test, then adversarial ones."""


def spectrum(name: str, k: int) -> np.ndarray:
    """Singular values of a stress spectrum, largest first.

    Parameters
    ----------
    name : str
        One of :data:`SPECTRA`.
    k : int
        How many, at least 1.

    Returns
    -------
    ndarray, shape (k,)
        Nonnegative; not normalised (only "gamma" exceeds 1).

    Raises
    ------
    ValueError
        For an unknown name, or k below 1.

    Examples
    --------
    >>> spectrum("rank two", 4).tolist()
    [1.0, 0.32, 0.0, 0.0]
    """
    name, k = choice("spectrum", name, SPECTRA), count("k", k, most=10 * LARGEST)
    return np.array(_SPECTRA[name](k), dtype=np.float64)


# -- assertions ------------------------------------------------------------------------------


def _format_name(dtype: np.dtype) -> str:
    return ops_of(np.empty(0, dtype)).format_name(np.empty(0, dtype))
