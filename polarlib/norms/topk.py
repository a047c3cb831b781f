"""The k largest singular triplets: Lanczos, block Krylov and randomized methods, certified.

Results are U (m x k), s and V (n x k) of the k largest singular values of A. The iterations return
orthonormal U and V with ``A V = U diag(s)``. The residual is ``E = A^H U - V diag(s)``, and

    A = U diag(s) V^H + U E^H + D,      D = (I - U U^H) A (I - V V^H).

A residual alone shows that some singular value is near, not which one: Lanczos finds one copy of a
multiple value. The results of iterations are therefore checked. With the Frobenius norm of the
residuals as rho,

    |s_i - sigma_i| <= rho + max(0, ||D||_2 - s_i)                    (Weyl's inequality).

``rho <= rtol s_k / 2`` is measured, and one Cholesky factorisation certifies ``||D||_2 <= ||A - U
diag(s) V^H||_2 <= (1 + rtol / 2) s_k``. If either fails, the SVD is computed instead. The bound
is linear in rho; the actual error is about ``rho^2 / gap``, gap the distance to the rest of the
spectrum (C.-K. Li and R.-C. Li, Linear Algebra Appl. 395, 2005, Theorem 2), so that values are
usually far more accurate than `rtol`.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar, get_args

from polarlib.arrays.checks import choice, count, number
from polarlib.arrays.entered import enter
from polarlib.arrays.entry import as_matrix, refuse_hidden
from polarlib.arrays.functions import real_part
from polarlib.arrays.library import format_name
from polarlib.arrays.ops import Ops, ops_of
from polarlib.arrays.settings import looks, under_default_settings
from polarlib.engine.triplets import differentiable_triplets
from polarlib.norms.krylov import Triplets, by_svd, leading

__all__ = ["METHODS", "top_singular", "triplets"]

Array = Any
A = TypeVar("A")
Method = Literal["auto", "svd", "lanczos", "arpack", "randomized", "block_krylov"]

METHODS: tuple[str, ...] = get_args(Method)[1:]

# Default bound of the relative error of each value.
RTOL = 1e-6
# "auto" iterates if min(m, n) is at least this size and at least this multiple of k. Below, the SVD
# is as fast on the host, by experiment (benchmarks/top_singular.py).
AUTO_SIZE, AUTO_RATIO = 256, 16


@looks
def top_singular(
    a: A, k: int, *, method: Method = "auto", rtol: float | None = None
) -> tuple[A, A, A]:
    """Return the k largest singular values and their vectors, each value to a relative error.

    Parameters
    ----------
    a : array or array-like, shape (..., m, n)
        Never modified. Integers become float64; half precision is computed in float32.
    k : int
        From 1 to min(m, n).
    method : {"auto", "svd", "lanczos", "arpack", "randomized", "block_krylov"}, optional
        - svd: the whole SVD, truncated.
        - lanczos: Golub-Kahan-Lanczos bidiagonalisation with full reorthogonalisation and thick
          restart. Fewest products.
        - arpack: ARPACK's Lanczos on ``A^H A``, through SciPy; its vectors are NumPy's, the
          products are computed where A is. Fastest on the host.
        - block_krylov: Golub-Kahan-Lanczos from a block of k + 10 vectors: finds multiple values,
          and needs fewer, larger operations, which suits GPUs.
        - randomized: subspace iteration (power iterations, orthonormalised in each half step) on
          k + 10 vectors until the residual suffices. For spectra that fall quickly.
        - auto: svd for small matrices and large k, else arpack on the host and block_krylov on
          devices.
    rtol : float, optional
        Relative error of each value, 1e-6 by default. It cannot be below rounding, which is
        ``max(100, min(m, n)) * eps * sigma_1``, absolute; values below that are rounding errors,
        as those of the SVD are.

    Returns
    -------
    u : array, shape (..., m, k)
        Orthonormal columns.
    s : array, shape (..., k)
        Real, descending. A value beyond the largest number of the dtype is infinity.
    vh : array, shape (..., k, n)
        Orthonormal rows. Array library, device and dtype (real for `s`) are those of `a`.

    Raises
    ------
    TypeError
        If `a` is not an array of numbers.
    ValueError
        For fewer than two dimensions, k below 1 or above min(m, n) or no integer, an unknown
        method, rtol outside (0, 1), NaN or infinity.

    Notes
    -----
    Values are certified: with the Frobenius norm rho of the residuals, the errors are at most
    ``rho + max(0, ||D||_2 - s_i)`` by Weyl's inequality, D the remainder of A. If an iteration
    misses a value, as the Krylov space of a single vector does for multiple values, or does not
    finish within ``2 min(m, n)`` products, the SVD is computed. The certificate costs one Gram
    product and a Cholesky factorisation.

    Vectors are unique (up to a common phase) only where values are simple and ``s_k > s_(k+1)``;
    at ties any orthonormal basis is returned. At rank below k the last values are zero to rounding.
    The start is the same for every library: a seeded Gaussian block. The matrices of a stack are
    processed singly. Numbers are read off the device. Under ``jax.jit`` and ``jax.vmap``, where
    none can be read, every method uses the SVD, and a matrix that is not finite gives NaN.

    torch and JAX differentiate the triplets by a rule, for which they are computed by the SVD
    whatever the method; it inverts k matrices of ``min(m, n)`` columns. Where one of the k values
    is zero to rounding, or equal to any other (those beyond k among themselves may be equal),
    vectors have no derivative: ValueError. torch's backward mode requires no gap for the gradient
    with respect to the values alone.

    References
    ----------
    Golub and Kahan, SIAM J. Numer. Anal. 2 (1965); Baglama and Reichel, SIAM J. Sci. Comput. 27
    (2005), algorithm 3.1 (thick restart); Hernandez, Roman and Tomas, ETNA 31 (2008); Lehoucq,
    Sorensen and Yang, ARPACK Users' Guide (SIAM, 1998); Halko, Martinsson and Tropp, SIAM Rev. 53
    (2011), algorithms 4.4 and 5.1; Musco and Musco, NeurIPS 2015, algorithm 2, with restarts of
    large spaces; C.-K. Li and R.-C. Li, Linear Algebra Appl. 395 (2005), Theorem 2 (errors).

    Examples
    --------
    >>> import numpy as np
    >>> a = np.diag([3.0, 1.0, 2.0])
    >>> u, s, vh = top_singular(a, 2)
    >>> s.round(12).tolist(), np.abs(u @ np.diag(s) @ vh).round(12).tolist()[0]
    ([3.0, 2.0], [3.0, 0.0, 0.0])
    """
    return triplets(a, k, method=method, rtol=rtol)[:3]


@looks
@under_default_settings
def triplets(a: Array, k: int, *, method: Method = "auto", rtol: float | None = None) -> Triplets:
    """Return singular triplets as :func:`top_singular`, with method, products and residual.

    Parameters
    ----------
    a, k, method, rtol
        As in :func:`top_singular`.

    Returns
    -------
    Triplets
        Fields u, s, vh, method, products and residual.

    Raises
    ------
    TypeError, ValueError
        As :func:`top_singular`.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.random.default_rng(0).standard_normal((400, 300))
    >>> t = triplets(a, 3, method="lanczos")
    >>> t.method, t.products < 200, t.residual < 1e-6
    ('lanczos', True, True)
    """
    a, ops = as_matrix(a)
    m, n = a.shape[-2:]
    k = count("k", k, 1, min(m, n), f"an integer from 1 to min(m, n) = {min(m, n)}")
    method = choice("method", method, ("auto", *METHODS))
    rtol = RTOL if rtol is None else number("rtol", rtol, 0, 1, ends="()")
    if 0 not in a.shape and ops.is_traced(a):
        return _differentiable(a, k)
    return _triplets(a, k, method, rtol)


def _triplets(a: Array, k: int, method: str, rtol: float) -> Triplets:
    """Scale, choose a method and run it."""
    ops = ops_of(a)
    refuse_hidden(a, ops, "top_singular", "take the whole SVD")
    e = enter(a, ops=ops)
    wide = a.shape[-2] < a.shape[-1]
    x = ops.adjoint(e.x) if wide else e.x  # a view where the library has views
    if e.is_empty:  # k is at least 1, so that there are no matrices
        return Triplets(a[..., :k], real_part(x, ops)[..., 0, :k], a[..., :k, :], "svd", 0, 0.0)
    if method == "auto":  # after the adjoint: the choice is by the smaller dimension
        method = _choose(x, k, ops)
    top = by_svd(x, k, ops) if method == "svd" else _each(x, k, ops, method, rtol)
    u, vh = (ops.adjoint(top.vh), ops.adjoint(top.u)) if wide else (top.u, top.vh)
    # Not e.leave, which would make the values complex with their matrix.
    s = ops.cast(ops.scale(top.s[..., None, :], e.scale)[..., 0, :], format_name(a))
    return top._replace(u=e.leave(u), s=s, vh=e.leave(vh))


def _choose(x: Array, k: int, ops: Ops) -> str:
    """Name the method of "auto" for tall matrices."""
    n = x.shape[-1]
    if n < AUTO_SIZE or AUTO_RATIO * k > n:
        return "svd"
    # ARPACK is compiled, and its vectors are NumPy's. On a device fewer and larger products should
    # be faster (not measured on a GPU).
    return "arpack" if ops.host else "block_krylov"


# -- derivatives -----------------------------------------------------------------------------


def _differentiable(a: Array, k: int) -> Triplets:
    """Triplets by the SVD, with the rules of engine/triplets.py."""
    # Rules return arrays only; method and counts are those of the last computation.
    computed: list[Triplets] = []

    def apply(a: Array) -> tuple[Array, ...]:
        computed.append(_triplets(a, k, "svd", RTOL))
        return computed[-1][:3]

    u, s, vh = differentiable_triplets(apply, a, lambda x: top_singular(x, k))
    return computed[-1]._replace(u=u, s=s, vh=vh)


# -- one matrix after another ----------------------------------------------------------------------


def _each(x: Array, k: int, ops: Ops, method: str, rtol: float) -> Triplets:
    """Iterate on each matrix of a stack; tall, scaled, finite."""
    xp = ops.xp
    batch = x.shape[:-2]
    flat = xp.reshape(x, (-1, *x.shape[-2:]))
    each = [leading(flat[i, ...], k, ops, method, rtol) for i in range(flat.shape[0])]
    u, s, vh = (
        xp.reshape(xp.stack(parts), (*batch, *parts[0].shape))
        for parts in zip(*(t[:3] for t in each), strict=True)
    )
    name = max((t.method for t in each), key=len)  # "lanczos, then svd" if any needed it
    return Triplets(u, s, vh, name, sum(t.products for t in each), max(t.residual for t in each))
