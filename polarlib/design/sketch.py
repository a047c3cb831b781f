"""Spectra of matrices from a few products with vectors, and schedules for them.

A random vector v of norm 1 weights the singular values s_i of a matrix by |v_i|^2, with v_i its
component along the i-th right singular vector, whose mean is 1 / n. After k steps of Golub-Kahan
bidiagonalisation the singular values of the k x k bidiagonal matrix, with the squares of the first
components of its right singular vectors, are the Gauss rule of that measure: it integrates
polynomials of degree 2 k - 1 in s^2 exactly. The mean over several vectors is stochastic Lanczos
quadrature.

G. H. Golub and W. Kahan, SIAM J. Numer. Anal. B 2 (1965) 205-224; G. H. Golub and G. Meurant,
Matrices, Moments and Quadrature (2010), section 6; S. Ubaru, J. Chen and Y. Saad, SIAM J. Matrix
Anal. Appl. 38 (2017) 1075-1099. Schedules fitted to a sketched spectrum are the idea of PRISM,
arXiv 2601.22137, which has no bounds outside of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from polarlib._schedules.schedule import Schedule
from polarlib.arrays.checks import count
from polarlib.arrays.entry import as_matrix, not_finite, refuse_hidden
from polarlib.arrays.progress import Callback
from polarlib.arrays.settings import looks, under_default_settings
from polarlib.design.spectra import Spectrum
from polarlib.design.tune import for_spectrum

# Random vectors and steps. Chosen by experiment on bundled and random matrices: with half of either
# the mean error of five degree-5 steps is up to twice as far from that for the exact spectrum.
PROBES, DEPTH = 8, 64
MOST_PROBES, MOST_DEPTH = 1024, 1024
# Values below the resolution of a rule are modelled as log-uniform: parts per octave, and largest
# number of octaves.
PARTS, OCTAVES = 4, 20
UNSEEN = 1e-6
TINY = 1e-300
OTHERWISE = 1965  # any number: it takes a generator aside from those of matrices


def _unit(x: Any, least: float) -> tuple[Any, Any]:
    """Return the norms of the rows of x, and x divided by them; 0 if they are at most `least`."""
    norms = np.linalg.norm(x, axis=1)
    norms = np.where(norms > least, norms, 0.0)
    return norms, x / np.where(norms > 0, norms, 1.0)[:, None] * (norms > 0)[:, None]


def _orthogonal(x: Any, basis: Any) -> Any:
    """Subtract from rows of x their parts along the bases (vector, step, entry), twice."""
    for _ in range(2):
        x = x - np.einsum("kj,kji->ki", np.einsum("kji,ki->kj", basis.conj(), x), basis)
    return x


def _bidiagonal(a: Any, start: Any, depth: int, least: float) -> Any:
    """Return bidiagonal matrices of Golub and Kahan from the rows of `start`, reorthogonalised."""
    probes = len(start)
    rights = np.zeros((probes, depth, a.shape[1]), a.dtype)
    lefts = np.zeros((probes, depth, a.shape[0]), a.dtype)
    bidiagonal = np.zeros((probes, depth, depth))
    rights[:, 0] = start
    for j in range(depth):
        left = rights[:, j] @ a.T
        if j:
            left = _orthogonal(left, lefts[:, :j])
        bidiagonal[:, j, j], lefts[:, j] = _unit(left, least)
        if j + 1 < depth:
            right = _orthogonal(lefts[:, j] @ a.conj(), rights[:, : j + 1])
            bidiagonal[:, j, j + 1], rights[:, j + 1] = _unit(right, least)
    return bidiagonal


def _radau(made: Any) -> tuple[Any, Any, float]:
    """Return values and weights of the rules with a node at 0, and its mean weight."""
    made = made.copy()
    made[:, -1, -1] = 0.0
    _, values, right = np.linalg.svd(made)
    weights = right[:, :, 0] ** 2 / len(made)
    return values[:, :-1], weights[:, :-1], float(weights[:, -1].sum())


def _rule(made: Any) -> tuple[Any, Any]:
    """Return values and weights of bidiagonal matrices, with estimates for unresolved values."""
    depth = made.shape[1]
    values, weights, rest = _radau(made)
    *_, before = _radau(made[:, : depth // 2, : depth // 2])
    per_octave = max(before - rest, 0.0)
    k = min(rest / per_octave, OCTAVES) if per_octave > UNSEEN else 0.0
    smallest = np.exp(np.mean(np.log(np.maximum(values[:, -1], TINY))))
    parts = np.arange(0.5, PARTS * k) / PARTS
    tail = smallest * 2.0**-parts, np.full(len(parts), per_octave / PARTS)
    return np.concatenate([values.ravel(), tail[0]]), np.concatenate([weights.ravel(), tail[1]])


@looks
@under_default_settings
def sketched_spectrum(
    a: Any, *, probes: int = PROBES, depth: int = DEPTH, seed: int = 0
) -> Spectrum:
    """Estimate the spectrum of a matrix from products with a few random vectors.

    Parameters
    ----------
    a : array_like, shape (m, n)
        Real or complex, of any supported library; it is copied to the host.
    probes : int, optional
        Number of Gaussian vectors, at most 1024.
    depth : int, optional
        Number of products of each vector with A and with its adjoint, 2 to 1024. If it is at least
        min(m, n), the singular values are computed instead.
    seed : int, optional
        Seed of the vectors. The same arguments give the same spectrum.

    Returns
    -------
    Spectrum
        At most ``probes * depth + 80`` values with weights, of normalisation "frobenius": the norm
        is exact, so that no singular value of the normalised matrix is above 1. Values below the
        rounding of the matrix (min(m, n) times the roundoff of its dtype, times the largest) are
        left out, as in :func:`polarlib.design.spectrum`.

    Raises
    ------
    TypeError
        If `a` is not numeric, or is traced.
    ValueError
        If `a` is not one matrix, has NaN, infinite or no entries, or is zero; for an invalid number
        of vectors or steps.

    Notes
    -----
    Means of smooth functions of the singular values are found to within about
    ``sqrt(2 / (n probes))`` of their standard deviation over the spectrum, n = min(m, n).

    Singular values below about 1 / depth of the largest are not resolved: neither from one another
    nor from zeros. Each rule has a node at 0 (Gauss-Radau) with their weight. That weight decreases
    with the depth for values above zero, and is constant for zeros. Its decrease between half of
    the depth and the whole is assumed for every octave below, and the rest is assigned to zeros.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> g = rng.standard_normal((400, 300))
    >>> exact = np.linalg.svd(g / np.linalg.norm(g), compute_uv=False)
    >>> s = sketched_spectrum(g)
    >>> len(s.values), bool(abs(s.weights @ s.values / exact.mean() - 1) < 0.03)
    (504, True)
    """
    probes, depth = (
        count("probes", probes, most=MOST_PROBES),
        count("depth", depth, 2, MOST_DEPTH),
    )
    seed = count("seed", seed, 0)
    x, ops = as_matrix(a)
    refuse_hidden(x, ops, "design.sketched_spectrum", "call it outside", fixed_work=False)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"a must be one matrix with entries, got shape {tuple(x.shape)}")
    host = np.asarray(ops.to_host(x))
    if message := not_finite(host):
        raise ValueError(f"a {message}; remove them")
    rounding = float(np.finfo(host.dtype).eps) if host.dtype.kind in "fc" else 2.0**-52
    host = host.astype(np.result_type(host.dtype, np.float64), copy=False)
    max_abs = float(np.abs(host).max())
    if max_abs == 0:
        raise ValueError("a must not be zero: no schedule can be tuned for it; give another matrix")
    host = host / max_abs
    host = (host if host.shape[0] >= host.shape[1] else host.conj().T) / np.linalg.norm(host)
    n = host.shape[1]
    if depth >= n:
        values = np.linalg.svd(host, compute_uv=False)
        weights = np.full(n, 1 / n)
    else:
        # A second key besides the seed: a test matrix may have been generated from the seed.
        rng = np.random.default_rng((seed, OTHERWISE))
        start = rng.standard_normal((probes, n))
        start = start / np.linalg.norm(start, axis=1)[:, None]
        # A vector in the space of those before it is zero up to rounding.
        made = _bidiagonal(host, start.astype(host.dtype), depth, n * 2.0**-52)
        values, weights = _rule(made)
    seen = (values > values.max() * n * rounding) & (weights > 0)
    order = np.argsort(values[seen])
    values, weights = values[seen][order], weights[seen][order]
    m, n = (int(k) for k in x.shape)
    return Spectrum(
        np.minimum(values, 1.0), weights / weights.sum(), "frobenius", f"a {m} x {n} matrix"
    )


@looks
def for_matrix(
    a: Any,
    steps: int,
    *,
    degree: int | Sequence[int] = 5,
    bounds: tuple[float, float] | None = None,
    probes: int = PROBES,
    depth: int = DEPTH,
    starts: int = 4,
    seed: int = 0,
    callback: Callback | None = None,
) -> Schedule:
    """Design the schedule with the smallest mean error on a matrix's sketched spectrum.

    Parameters
    ----------
    a : array_like, shape (m, n)
        The matrix, as :func:`sketched_spectrum` takes it.
    steps : int
        Number of steps.
    degree : int or sequence of int, optional
        Odd degree of all steps, or one per step, as for :func:`for_spectrum`.
    bounds : (float, float), optional
        Bounds ``lo <= s(x) <= hi``, which do not depend on the sketch: `hi` on all of (0, 1], and
        `lo` on [l, 1] for the best greedy schedule on [l, 1], see :func:`for_spectrum`.
    probes, depth : int, optional
        See :func:`sketched_spectrum`.
    starts, seed, callback : optional
        See :func:`tune`; the seed is that of the sketch too.

    Returns
    -------
    Schedule
        Of normalisation "frobenius". Every step is positive on all of (0, 1]. A singular value that
        the sketch does not resolve keeps its sign and is mapped to at most `hi`, and to at least
        `lo` if it is above l. The source has l and the bounds.

    Raises
    ------
    TypeError, ValueError
        As :func:`sketched_spectrum` and :func:`for_spectrum`.

    Notes
    -----
    The sketch takes ``2 probes depth`` products of the matrix with a vector, as many operations as
    ``2 probes depth / n`` products with an n x n matrix.

    Examples
    --------
    >>> from polarlib.design import greedy, mean_error
    >>> g = np.random.default_rng(0).standard_normal((256, 128))
    >>> exact = np.linalg.svd(g, compute_uv=False)
    >>> s = for_matrix(g, 3)
    >>> [round(mean_error(t, exact), 3) for t in (greedy(1e-3, [5] * 3), s)]
    [0.535, 0.009]
    >>> s.image(0, 1)[1] <= 1.11
    True
    """
    found = sketched_spectrum(a, probes=probes, depth=depth, seed=seed)
    s = for_spectrum(
        found, steps, degree=degree, bounds=bounds, starts=starts, seed=seed, callback=callback
    )
    return replace(s, name=f"for {found.name}, sketched")
