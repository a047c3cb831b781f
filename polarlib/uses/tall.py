"""Polar decomposition of tall matrices that are larger than memory, in blocks of rows, on Dask.

A is read a few times, and only n x n matrices are kept between the passes. Products and sums are in
double precision for every dtype of A.

1. Approximate singular values s and right singular vectors V of A are computed from a sample of the
   rows, from the Gram matrix, a sum over blocks, or from R of a QR factorisation, a tree over
   blocks (J. Demmel, L. Grigori, M. Hoemmen, J. Langou, SIAM J. Sci. Comput. 34 (2012) A206-A239).
2. B = A V diag(1/s) is well-conditioned, and its Gram matrix C^2 is accurate (Y. Yamamoto, Y.
   Nakatsukasa, Y. Yanagisawa, T. Fukaya, ETNA 44 (2015) 306-326, for triangular factors). So A =
   W K with W = B C^-1 orthonormal and K = C diag(s) V^H, which is n x n: its polar factors Q and H
   make those of A, U = W Q = B (C^-1 Q) and H. If cond(C) is too large for that, the singular
   values and vectors of K are better ones of A, and this step is repeated with them.
3. ||A - B diag(s) V^H||_F is estimated from products with random vectors.

By rounding, B deviates from orthonormality by eps cond(A)^2 after a Gram matrix and by eps cond(A)
after a QR factorisation; after a sample, by the difference between the rows of the sample and all
others. C corrects the deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from polarlib._stages.options import default_tolerance
from polarlib._stages.results import conclude, missed
from polarlib.arrays.checks import choice
from polarlib.arrays.dask_ops import dask_of
from polarlib.arrays.formats import format_of
from polarlib.arrays.progress import Callback, reporting
from polarlib.arrays.settings import looks, under_default_settings
from polarlib.decomposition import polar
from polarlib.result import PolarResult, Run, Status
from polarlib.uses.row_blocks import (
    gram_of_block,
    second_of_block,
    shifted,
    sum_of_grams,
    sum_of_seconds,
    triangle_of_block,
    triangle_of_triangles,
    unitary_of_block,
)

Array = Any

METHODS = ("auto", "gram", "qr")
DTYPES = ("float32", "float64", "complex64", "complex128")
EPS = format_of("float64").epsilon
# Number of blocks per node of a sum. Chosen generously: a sum is n x n.
FAN_IN = 8
# A Gram matrix is used if rounding changes its smallest eigenvalue by at most this part of it.
MOVED = 0.25
# Least number of rows per column in a sample, which has one block in SPARSE or more. For
# independent rows, singular values then deviate from those of A by a factor within 1 -+ 1/8.
SAMPLE = 64
SPARSE = 16
# Orthogonality is lost by the rounding of C^2, which cond(C)^2 amplifies: by a factor of at most
# SPREAD. If cond(C)^2 is below REPAIRABLE, the next B deviates from orthonormality by 1e-6.
SPREAD = 8.0
REPAIRABLE = 1e10
# Number k of Gaussian vectors z_j. sum ||E z_j||^2 < k t ||E||_F^2 has at most the probability
# (t exp(1 - t))^(k/2), by Markov's inequality for exp(-c sum ||E z_j||^2) with 1 + 2 c ||E||_F^2 =
# 1/t: 4.2e-7 for t = 1/16. S. Gratton and D. Titley-Peloquin, SIAM J. Matrix Anal. Appl. 39 (2018)
# 922-931, have bounds for both sides.
PROBES = 16


class _Basis(NamedTuple):
    """Right singular vectors and singular values of ``A / 2**exponent``, of full numerical rank."""

    exponent: int
    vectors: np.ndarray
    values: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Return V diag(1/s), with which A is multiplied."""
        return np.asarray(self.vectors / self.values)

    @property
    def back(self) -> np.ndarray:
        """Return diag(s) V^H, the inverse of `right`."""
        return np.asarray(self.values[:, None] * self.vectors.conj().T)


# -- passes over all blocks ------------------------------------------------------------------


def _call(a: np.ndarray, given: tuple[Any, ...], block_id: tuple[int, ...]) -> Any:
    work, starts, *others = given
    return work(a, starts[block_id[0]], *others)


def _each(x: Array, work: Callable[..., Any], *others: Any, dask: Any) -> list[Any]:
    """Return ``work(block, its first row, *others)`` of each block, to be computed.

    A block is made in the task that works on it: no block waits in the memory of a worker, or is
    sent to another one.
    """
    starts = np.concatenate([[0], np.cumsum(x.chunks[0])[:-1]]).tolist()
    # One task for all: Dask's scheduler holds back the tasks of blocks only if they share few.
    given = dask.delayed((work, starts, *others))
    parts = x.map_blocks(
        _call,
        given,
        chunks=((1,) * x.numblocks[0], (1,)),
        dtype=object,
        meta=np.empty((0, 0), object),
    )
    return list(parts.to_delayed().ravel())


def _tree(parts: list[Any], merge: Callable[[Sequence[Any]], Any], dask: Any) -> Any:
    """Return the sum over blocks as a tree, so that few blocks are in memory at a time."""
    together = dask.delayed(merge)
    while len(parts) > 1:
        parts = [together(parts[i : i + FAN_IN]) for i in range(0, len(parts), FAN_IN)]
    try:
        return parts[0].compute()
    except Exception as error:
        if type(error).__name__ == "KilledWorker":  # of dask.distributed, which is not imported
            error.add_note(
                "polar_tall needs memory for a block of x and a few n x n matrices in each thread; "
                "pass x with fewer rows per block, or give each worker more memory"
            )
        raise


def _second_pass(x: Array, basis: _Basis, dask: Any) -> tuple[np.ndarray, float]:
    """Return ``B^H B`` and an estimate of ``||A - B diag(s) V^H||_F^2``, exact for few columns."""
    n = x.shape[1]
    few = n <= PROBES
    # Independent of A. The same in every run, so that results are reproducible.
    probes = np.eye(n) if few else np.random.default_rng(0).standard_normal((n, PROBES))
    right = basis.right
    probes = probes.astype(right.dtype)
    parts = _each(
        x,
        second_of_block,
        basis.exponent,
        right,
        probes,
        basis.back @ probes,
        dask=dask,
    )
    g, squares = _tree(parts, sum_of_seconds, dask)
    return g, squares if few else squares / PROBES


def _from_sample(x: Array, dask: Any) -> _Basis | None:
    """Return the basis from a sample of rows; None if the sample is not smaller than `x`.

    Also None if the sample has not the rank n numerically: other methods have a basis of the row
    space then.
    """
    m, n = x.shape
    sizes = np.asarray(x.chunks[0])
    filled = np.flatnonzero(sizes)
    sparse = SPARSE
    while sizes[filled[sparse // 2 :: sparse]].sum() < SAMPLE * n and sparse > 1:
        sparse //= 2
    if sparse == 1:
        return None
    chosen = filled[sparse // 2 :: sparse]
    every = int(sizes[chosen].sum()) // (SAMPLE * n)
    parts = _each(x, triangle_of_block, every, dask=dask)
    part = _tree([parts[i] for i in chosen], triangle_of_triangles, dask)
    rows = int(np.sum(-(-sizes[chosen] // every)))
    return _full_rank(part.exponent, part.matrix * math.sqrt(m / rows))


def _full_rank(exponent: int, k: np.ndarray) -> _Basis | None:
    """Return the basis from an n x n factor of A; None if singular values are at rounding level."""
    _, values, adjoint = np.linalg.svd(k)
    kept = values[-1] > k.shape[1] * EPS * values[0]
    return _Basis(exponent, adjoint.conj().T, values) if kept else None


def _from_gram(x: Array, dask: Any) -> tuple[_Basis, float, float]:
    """Return the basis, and bounds of the condition number, from the Gram matrix.

    If rounding errors are independent and of mean zero, they change eigenvalues by at most
    sqrt(m) eps tr(G) (N. J. Higham and T. Mary, SIAM J. Sci. Comput. 41 (2019) A2815-A2835). The
    second pass checks the result.
    """
    part = _tree(_each(x, gram_of_block, dask=dask), sum_of_grams, dask)
    if not part.matrix.any():
        return _Basis(0, np.zeros((x.shape[1], 0), part.matrix.dtype), np.zeros(0)), 1.0, 1.0
    values, vectors = np.linalg.eigh(part.matrix)
    values, vectors = values[::-1], vectors[:, ::-1]
    moved = math.sqrt(x.shape[0]) * EPS * float(np.trace(part.matrix).real)
    least, top = float(values[-1]), float(values[0])
    upper = math.sqrt((top + moved) / (least - moved)) if least > moved / MOVED else math.inf
    lower = math.sqrt(max(top - moved, 0.0) / max(least + moved, moved)) if moved else math.inf
    return _Basis(part.exponent, vectors, np.sqrt(np.maximum(values, 0.0))), lower, upper


def _from_triangle(x: Array, dask: Any) -> _Basis:
    """Return the basis from R of a QR factorisation, without singular values at rounding level."""
    part = _tree(_each(x, triangle_of_block, dask=dask), triangle_of_triangles, dask)
    _, values, adjoint = np.linalg.svd(part.matrix, full_matrices=False)
    # These are dropped, not completed: no block of x contains vectors for them.
    rank = int(np.sum(values > x.shape[1] * EPS * values[0]))
    return _Basis(part.exponent, adjoint[:rank].conj().T, values[:rank])


# -- the whole -------------------------------------------------------------------------------


def _checked(x: Array, method: str) -> tuple[Array, Any]:
    """Return x in a supported dtype, and the dask module."""
    choice("method", method, METHODS)
    dask = dask_of(x, "polar_tall")
    if x.ndim != 2:
        raise ValueError(f"x must be a matrix, got shape {x.shape}; call polar_tall for each one")
    if x.dtype.kind in "biu":
        x = x.astype(np.float64)
    if x.dtype.name not in DTYPES:
        raise TypeError(
            f"x must have one of the dtypes {', '.join(DTYPES)}, got {x.dtype.name}; convert it "
            "with x.astype"
        )
    m, n = x.shape
    # Dask's sizes are NaN after operations such as boolean indexing, until they are computed.
    if any(math.isnan(k) for sizes in x.chunks for k in sizes):
        raise ValueError(
            "x must have blocks of known size, got NaN in x.chunks; call x.compute_chunk_sizes()"
        )
    if m < n:
        raise ValueError(
            f"x must have at least as many rows as columns, got shape {x.shape}; decompose "
            "x.conj().T, whose U^H and H are the factors of x = H U"
        )
    if x.numblocks[1] > 1:  # not rechunked here: the caller decides on the size of blocks
        size = max(x.chunks[0]) * n * x.dtype.itemsize
        raise ValueError(
            f"x must have one block of columns, got {x.numblocks[1]}; pass x.rechunk({{1: -1}}), "
            f"with blocks of up to {size / 1e6:.3g} MB, or x.rechunk(('auto', -1)), with fewer "
            "rows per block"
        )
    return x, dask


@looks
@under_default_settings
def polar_tall(
    x: Array, *, method: str = "auto", callback: Callback | None = None
) -> PolarResult[Array]:
    """Compute the polar decomposition ``A = U H`` of a tall Dask matrix that is larger than memory.

    Parameters
    ----------
    x : dask.array.Array, shape (m, n)
        float32, float64, complex64 or complex128 (integers are converted to float64), m >= n, in
        blocks of whole rows. Blocks must have the same values whenever they are computed.
    method : {"auto", "gram", "qr"}, optional
        Source of the first singular values and vectors. "gram" is a pass for condition numbers up
        to about 1e6, "qr" a slower one for any matrix. "auto" uses a sample of the blocks instead
        of a pass. If half of the blocks are too few rows, or those of the sample have a smaller
        rank, it uses "gram". If the sample or the Gram matrix proves to be too inaccurate, it uses
        better singular values from the second pass, or "qr".
    callback : callable, optional
        Called as ``callback(k, s)`` after pass k = 1, 2, ... over `x` with the approximate
        singular values that the pass begins or ends with, descending. See
        :class:`polarlib.result.Progress`; for progress within a pass use Dask's ProgressBar.

    Returns
    -------
    PolarResult
        ``unitary`` is a lazy Dask array with the dtype and chunks of `x`, ``hermitian`` a NumPy
        array, (n, n). ``iterations`` is the number of passes over `x`: 1 after a sample of one
        block in 16, or more where blocks are small; otherwise 2, and more where "auto" needs
        several sources. ``method`` names those, "sample" among them. Computing U takes one more
        pass. ``matmuls`` is the number of products with all of `x`. For a
        rank-deficient matrix U is the partial isometry, as in :func:`polar` with
        ``completion=False``: U^H U is the projector onto the row space. The rank is the number of
        singular values above ``n * eps * sigma_max``, eps of double precision.

    Raises
    ------
    ImportError
        If dask is not installed.
    TypeError
        If `x` is not a Dask array of NumPy blocks of one of these dtypes.
    ValueError
        For an unknown method, a matrix that is not tall, several blocks of columns, blocks of
        unknown size, NaN or infinity, and with "gram" for a matrix that is too ill-conditioned.

    Warns
    -----
    ConvergenceWarning
        If orthogonality or backward error exceeds ``max(100, n) * eps``, or H overflows.

    See Also
    --------
    polar : For arrays in memory, and arrays distributed over devices.

    Notes
    -----
    A block is processed in slices of rows, in double precision. A worker therefore needs memory for
    a block of `x`, a block of U, and a few n x n matrices in each thread.

    B = A V diag(1/s) is formed with singular values s and right singular vectors V of the source.
    Orthogonality is a bound, up to the rounding of one product, from ``B^H B``. Backward error is
    computed from ``||A - B diag(s) V^H||_F``, plus the rounding of U and H to their dtype. For more
    than 16 columns that norm is estimated from products with 16 Gaussian vectors, the same in every
    run: it is more than four times the estimate with a probability of at most 5e-7 (Gratton and
    Titley-Peloquin, SIAM J. Matrix Anal. Appl. 39 (2018) 922-931, have such bounds).

    Blocks are computed again for U. If B is then rounded differently, for example on another
    processor, U has an additional error of eps times the condition number.

    Examples
    --------
    >>> import numpy as np
    >>> import dask.array as da  # doctest: +SKIP
    >>> x = da.random.default_rng(0).random((1000, 3), chunks=(250, 3))  # doctest: +SKIP
    >>> u, h = polar_tall(x)  # doctest: +SKIP
    >>> u.chunks == x.chunks, h.shape  # doctest: +SKIP
    (True, (3, 3))
    >>> bool(np.allclose((u @ h).compute(), x.compute()))  # doctest: +SKIP
    True
    """
    x, dask = _checked(x, method)
    report = reporting(callback, "passes over x", 3 if method == "auto" else 2)
    m, n = x.shape
    if m == 0 or n == 0:
        return _result(
            x,
            np.zeros((n, n), x.dtype),
            dask.array.zeros_like(x),
            Run(0, 0, True, method=method),
            orthogonality=0.0,
            backward_error=0.0,
            rank=0,
            condition_bounds=(1.0, 1.0),
        )
    name, reason, passes, products = method, "", 0, 0
    basis = _from_sample(x, dask) if method == "auto" else None
    if basis is not None:
        name = "sample"
    elif method != "qr":
        passes, products = 1, 1
        basis, lower, upper = _from_gram(x, dask)
        report(passes, shifted(basis.values, basis.exponent))
        if math.isfinite(upper):
            name, reason = "gram", f"condition number of at most about {upper:.1e}"
        elif method == "auto":
            name, reason = "qr", f"condition number of at least about {lower:.1e}"
            basis = None
        else:
            raise ValueError(
                f"method='gram' needs a condition number of at most about 1e6, got at least "
                f"{lower:.1e}; use method='qr', or 'auto', which reads x once more"
            )
    repaired = False
    while True:
        if basis is None:
            passes += 1
            basis = _from_triangle(x, dask)
            report(passes, shifted(basis.values, basis.exponent))
        passes, products = passes + 1, products + 2
        g, squares = _second_pass(x, basis, dask)
        report(passes, shifted(basis.values, basis.exponent))
        spread = _spread(g)
        if name == "sample":
            factor = f"{math.sqrt(spread):.2g}"
            reason = f"a sample of the rows has the singular values up to a factor of {factor}"
        if method != "auto" or not len(g) or name.endswith("qr"):
            break
        better = None
        if spread <= REPAIRABLE:
            better = _full_rank(basis.exponent, _small_factor(basis, g)[0])
        if better is not None and spread <= SPREAD:
            break
        if better is not None and not repaired:
            basis, repaired = better, True
        else:
            basis, name = None, f"{name}, then qr"
            reason = f"a factor of condition number {math.sqrt(spread):.1e} from the first pass"
    run = Run(passes, products, True, method=name, note=reason)
    return _finish(x, basis, g, squares, dask, run)


def _spread(g: np.ndarray) -> float:
    """Return the condition number of ``B^H B``, infinity if that is not finite."""
    if not np.isfinite(g).all():
        return math.inf
    w = np.linalg.eigvalsh(g) if len(g) else np.ones(1)
    return float(w[-1] / w[0]) if w[0] > 0 else math.inf


def _small_factor(basis: _Basis, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return K = C diag(s) V^H and the inverse of C, the square root of ``g``."""
    w, z = np.linalg.eigh(g)
    # Smaller eigenvalues are rounding errors; the error bounds report what is lost.
    root = np.sqrt(np.maximum(w, np.max(w, initial=0.0) / REPAIRABLE))
    return ((z * root) @ z.conj().T) @ basis.back, (z / root) @ z.conj().T


def _finish(
    x: Array, basis: _Basis, g: np.ndarray, squares: float, dask: Any, run: Run
) -> PolarResult[Array]:
    """Return the polar factors of A from those of K, with bounds of their errors."""
    n = x.shape[1]
    k, inverse = _small_factor(basis, g)
    q, h = polar(k)
    small = inverse @ q
    # A step of Newton and Schulz: the products above lose digits that are in g.
    small = small @ (1.5 * np.eye(n) - 0.5 * (small.conj().T @ g @ small))
    values = np.linalg.svd(k, compute_uv=False)
    rank = len(values)

    def of_b(d: np.ndarray) -> float:
        """Return ``||B D||_F`` without cancellation."""
        return math.sqrt(max(float(np.vdot(d, g @ d).real), 0.0))

    inner = small.conj().T @ g @ small
    whole = rank == n
    off = float(np.linalg.norm(inner - np.eye(n))) if whole else of_b(small @ inner - small)
    size = float(np.linalg.norm(values)) or 1.0
    left = (math.sqrt(squares) + of_b(basis.back - small @ h)) / size
    unit = format_of(_format_name(x)).unit_roundoff
    top = float(values[0]) if rank else 0.0
    unitary = dask.array.map_blocks(
        unitary_of_block,
        x,
        basis.exponent,
        dask.delayed(basis.right),
        dask.delayed(small),
        dtype=x.dtype,
        meta=np.empty((0, 0), x.dtype),
    )
    h = shifted(h, basis.exponent).astype(x.dtype)
    return _result(
        x,
        h,
        unitary,
        run,
        orthogonality=off / math.sqrt(n) + 2 * unit * bool(rank),
        backward_error=left + unit * (1 + math.sqrt(n) * top / size) * bool(rank),
        rank=rank,
        condition_bounds=_condition(values, n),
    )


def _format_name(x: Array) -> str:
    return "float64" if x.dtype.name in ("float64", "complex128") else "float32"


def _condition(values: np.ndarray, n: int) -> tuple[float, float]:
    """Return bounds of the condition number, for singular values known to ``n eps sigma_max``."""
    if not len(values):
        return 1.0, math.inf
    noise = n * EPS * float(values[0])
    least = float(values[-1]) if len(values) == n else 0.0
    lower = max(float(values[0]) / (least + noise), 1.0)
    return lower, (float(values[0]) + noise) / (least - noise) if least > noise else math.inf


def _result(
    x: Array,
    h: np.ndarray,
    unitary: Array,
    run: Run,
    *,
    orthogonality: float,
    backward_error: float,
    **figures: Any,
) -> PolarResult[Array]:
    """Return the result with its status; warn if it has not converged."""
    n = x.shape[1]
    tol = default_tolerance((n, n), _format_name(x))
    status = Status.CONVERGED
    if not max(orthogonality, backward_error) <= tol:
        status = Status.NOT_CONVERGED
    elif not np.isfinite(h).all():
        status = Status.OVERFLOW
    errors: dict[str, Any] = {
        "orthogonality": orthogonality,
        "backward_error": backward_error,
    }
    if status is not Status.CONVERGED:
        remedy = status.value
        if status is Status.NOT_CONVERGED:
            remedy = "use method='qr'"
            if run.method.endswith("qr"):
                remedy = "x must have the same values whenever its blocks are computed"
        missed("polar_tall", run.method, tol, remedy, throw=False, **errors)
    return conclude(unitary, h, status, run, **errors, **figures)
