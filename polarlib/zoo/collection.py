"""The collection of test matrices, with their names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.linalg

from polarlib.arrays.checks import count, flag
from polarlib.arrays.formats import format_of
from polarlib.arrays.library import format_name
from polarlib.zoo.matrices import (
    LARGEST,
    binomial,
    cauchy,
    floating,
    frank,
    gaussian,
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


def _real_zoo(n: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    gauss = gaussian(n, n, seed, "float64")
    yield "gaussian", gauss
    yield "gaussian tall", gaussian(3 * n, n, seed + 1, "float64")
    yield "gaussian wide", gaussian(n, 3 * n, seed + 2, "float64")
    yield "1 x 1", np.array([[-2.5]])
    yield "1 x 1 zero", np.zeros((1, 1))
    yield "1 x n", gaussian(1, n, seed, "float64")
    yield "n x 1", gaussian(n, 1, seed, "float64")
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
    """Yield the matrices that have no real version."""
    gauss = gaussian(n, n, seed + 3, "complex128")
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
    """Yield test matrices on which polar decompositions have failed, with their names.

    Parameters
    ----------
    n : int, optional
        Size, at least 1; tall and wide matrices have this number of columns or rows.
    seed : int, optional
        Seed of NumPy's default generator; the same seed gives the same matrices.
    complex_ : bool, optional
        Whether complex versions follow the real ones.
    dtype : dtype, optional
        Dtype that all matrices are rounded to. Matrices that it cannot represent are left out,
        and for a real dtype also complex ones. By default float64 and complex128.

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
    target = None if dtype is None else floating(dtype)
    want_real = target is None or target.kind != "c"
    want_complex = complex_ and (target is None or target.kind == "c")
    largest = math.inf if target is None else format_of(format_name(np.empty(0, target))).largest
    for name, a in _real_zoo(n, seed):
        if np.abs(a).max() > largest / (2 * a.size):
            continue
        if want_real:
            yield name, a if target is None else a.astype(target)
        if want_complex:
            m, k = a.shape
            # Random phases of rows and columns keep the singular values.
            rng = np.random.default_rng(seed + 1000)
            rows = np.exp(2j * np.pi * rng.random((m, 1)))
            columns = np.exp(2j * np.pi * rng.random((1, k)))
            z = rows * a * columns
            yield f"complex {name}", z if target is None else z.astype(target)
    if want_complex:
        for name, z in _complex_zoo(n, seed):
            yield name, z if target is None else z.astype(target)
