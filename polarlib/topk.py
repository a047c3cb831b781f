"""The k largest singular triplets: Lanczos, block Krylov and randomized methods, certified.

What is computed: U (m x k), s and V (n x k) of the k largest singular values of A. The iterations
make orthonormal U and V with ``A V = U diag(s)``; what they leave is ``E = A^H U - V diag(s)``, and

    A = U diag(s) V^H + U E^H + D,      D = (I - U U^H) A (I - V V^H).

A residual alone says that some singular value is near, not which one: Lanczos sees one copy of a
multiple value. So the iterations are not believed. With the Frobenius norm of the residuals as rho,

    |s_i - sigma_i| <= rho + max(0, ||D||_2 - s_i)                    (Weyl's inequality).

``rho <= rtol s_k / 2`` is measured, and one Cholesky factorisation proves
``||D||_2 <= ||A - U diag(s) V^H||_2 <= (1 + rtol / 2) s_k``. Where either fails, the SVD takes
over. The bound is linear in rho; the actual error is about ``rho^2 / gap``, gap the distance to the
rest of the spectrum (C.-K. Li and R.-C. Li, Linear Algebra Appl. 395, 2005, Theorem 2), so that
values are usually far better than asked for.

The second part is Dion's warm-started power step, and the exact maximiser within its range.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from polarlib._checks import choice, count, number
from polarlib.formats import format_of
from polarlib.ops import (
    Ops,
    above_noise,
    as_matrix,
    check_same_place,
    dtype_name,
    finite_peak,
    looks,
    ops_of,
    refuse_hidden,
    under_default_settings,
)

__all__ = ["METHODS", "Triplets", "power_step", "range_lmo", "top_singular", "triplets"]

Array = Any

METHODS = ("svd", "lanczos", "arpack", "randomized", "block_krylov")

# Relative error of each value that is asked for by default.
RTOL = 1e-6
# Vectors beyond k in a block; Halko, Martinsson and Tropp (2011), section 4.2, take 5 to 10.
OVERSAMPLING = 10
# Products after which an iteration gives up, in units of min(m, n): what bidiagonalising the whole
# matrix takes.
BUDGET = 2
# Columns by which a basis grows between two looks at its residual (an SVD of the projection).
LOOK = 8
# An iteration stops at this part of the residual that the certificate will ask for, so that
# rounding does not decide; any factor below 1 would do.
MARGIN = 0.5
# Residual that rounding leaves, in epsilons of the largest value: by experiment, below 3.
STAGNATION = 10
# "auto" iterates where min(m, n) is at least this, and at least this many times k: by experiment on
# the host (benchmarks/top_singular.py), the SVD is as fast below.
AUTO_SIZE, AUTO_RATIO = 256, 16


class Triplets(NamedTuple):
    """Singular triplets with their evidence.

    Attributes
    ----------
    u, s, vh : array, shape (..., m, k), (..., k), (..., k, n)
        As :func:`top_singular` returns them.
    method : str
        What made them, for example ``"lanczos"``, or ``"lanczos, then svd"`` if that was so for
        any matrix of the stack.
    products : int
        Products of A or its adjoint with one vector, in the whole stack. The SVD, and what the
        certificate takes besides its residual (one Gram product, one Cholesky factorisation), are
        not counted.
    residual : float
        Largest ``(||A V - U S||_F^2 + ||A^H U - V S||_F^2)^(1/2) / s_1`` of the stack, of what was
        computed before half precision is rounded; 0 for zero matrices, NaN where ``jax.jit`` hides
        them.
    """

    u: Any
    s: Any
    vh: Any
    method: str
    products: int
    residual: float


@looks
def top_singular(
    a: Array, k: int, *, method: str = "auto", rtol: float | None = None
) -> tuple[Array, Array, Array]:
    """The k largest singular values and their vectors, each value to a relative error.

    Parameters
    ----------
    a : array or array-like, shape (..., m, n)
        Never changed. Integers become float64; half precision is computed in float32.
    k : int
        From 1 to min(m, n).
    method : {"auto", "svd", "lanczos", "arpack", "randomized", "block_krylov"}, optional
        - svd: the whole SVD, cut.
        - lanczos: Golub-Kahan-Lanczos bidiagonalisation with full reorthogonalisation and thick
          restart. Fewest products.
        - arpack: ARPACK's Lanczos on ``A^H A``, by way of SciPy; its vectors are NumPy's, the
          products are made where A is. Quickest on the host.
        - block_krylov: Golub-Kahan-Lanczos from a block of k + 10 vectors: sees multiple values,
          and asks a device fewer and larger questions.
        - randomized: subspace iteration (power iterations, orthonormalised in each half step) on
          k + 10 vectors until the residual suffices. For spectra that fall quickly.
        - auto: svd for small matrices and large k, else arpack on the host and block_krylov on
          devices.
    rtol : float, optional
        Relative error of each value, 1e-6 by default. In no format can it be below rounding, which
        is ``max(100, min(m, n)) * eps * sigma_1``, absolute; values below that are noise, as those
        of the SVD are.

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
    Values are certified (see the head of this module). The SVD takes over where an iteration
    missed one, as a single vector's Krylov space does with multiple values among the wanted ones,
    or was not done after ``2 min(m, n)`` products. The certificate costs one Gram product and a
    Cholesky factorisation.

    Vectors are unique (up to a common phase) only where values are simple and ``s_k > s_(k+1)``;
    at ties any orthonormal basis is returned, at rank below k the last values are zero to rounding.
    The start is the same on every library: a seeded Gaussian block. A stack is worked on matrix by
    matrix. Numbers are read off the device. Under ``jax.jit`` and ``jax.vmap``, where none can be,
    the SVD is taken whatever the method, and a matrix that is not finite gives NaN.

    torch and JAX differentiate the triplets by a rule, for which they are computed by the SVD
    whatever the method; it inverts k matrices of ``min(m, n)`` columns. Where one of the k values
    is zero to rounding, or equal to any other (those beyond k among themselves may be equal),
    vectors have no derivative: ValueError. torch's backward mode asks for no gap where the
    gradient with respect to the values alone is wanted.

    Golub and Kahan, SIAM J. Numer. Anal. 2 (1965); Baglama and Reichel, SIAM J. Sci. Comput. 27
    (2005), algorithm 3.1 (thick restart); Hernandez, Roman and Tomas, ETNA 31 (2008); Lehoucq,
    Sorensen and Yang, ARPACK Users' Guide (SIAM, 1998); Halko, Martinsson and Tropp, SIAM Rev. 53
    (2011), algorithms 4.4 and 5.1; Musco and Musco, NeurIPS 2015, algorithm 2, with a restart where
    the space grows large.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.diag([3.0, 1.0, 2.0])
    >>> u, s, vh = top_singular(a, 2)
    >>> s.round(12).tolist(), np.abs(u @ np.diag(s) @ vh).round(12).tolist()[0]
    ([3.0, 2.0], [3.0, 0.0, 0.0])
    """
    found = triplets(a, k, method=method, rtol=rtol)
    return found.u, found.s, found.vh


@looks
@under_default_settings
def triplets(a: Array, k: int, *, method: str = "auto", rtol: float | None = None) -> Triplets:
    """Singular triplets as :func:`top_singular` gives them, with method, products and residual.

    Parameters
    ----------
    a, k, method, rtol
        As of :func:`top_singular`.

    Returns
    -------
    Triplets

    Raises
    ------
    TypeError, ValueError
        As :func:`top_singular`.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.random.default_rng(0).standard_normal((400, 300))
    >>> found = triplets(a, 3, method="lanczos")
    >>> found.method, found.products < 200, found.residual < 1e-6
    ('lanczos', True, True)
    """
    a, ops = as_matrix(a)
    m, n = a.shape[-2:]
    k = count("k", k, 1, min(m, n), f"an integer from 1 to min(m, n) = {min(m, n)}")
    method = choice("method", method, ("auto", *METHODS))
    rtol = RTOL if rtol is None else number("rtol", rtol, 0, 1, ends="()")
    if 0 not in a.shape and ops.records(a):
        return _differentiable(a, k, ops)
    return _triplets(a, k, method, rtol)


def _triplets(a: Array, k: int, method: str, rtol: float) -> Triplets:
    """Scale, choose and run."""
    ops = ops_of(a)
    refuse_hidden(a, ops, "top_singular", "take the whole SVD")
    hidden = ops.hidden(a)
    m, n = a.shape[-2:]
    x = ops.at_least_single(a)
    if math.prod(a.shape[:-2]) == 0:
        u, vh = a[..., :k], a[..., :k, :]
        return Triplets(u, _real(x, ops)[..., 0, :k], vh, "svd", 0, 0.0)
    scale = ops.binary_scale(finite_peak(x, ops, "a", look=not hidden))
    x = ops.divide(x, scale)
    wide = m < n
    if wide:
        x = ops.adjoint(x)
    if method == "auto":
        method = _choose(x, k, ops)
    found = _by_svd(x, k, ops) if method == "svd" else _each(x, k, ops, method, rtol)
    u, vh = (ops.adjoint(found.vh), ops.adjoint(found.u)) if wide else (found.u, found.vh)
    s = ops.scale(found.s[..., None, :], scale)[..., 0, :]
    if dtype_name(a) != dtype_name(x):
        u, s, vh = ops.like(u, a), ops.like(s, _real(a, ops)), ops.like(vh, a)
    return found._replace(u=u, s=s, vh=vh)


def _choose(x: Array, k: int, ops: Ops) -> str:
    """Name the method of "auto" for tall matrices."""
    n = x.shape[-1]
    if n < AUTO_SIZE or AUTO_RATIO * k > n:
        return "svd"
    return "arpack" if ops.host else "block_krylov"


# -- derivatives -----------------------------------------------------------------------------


def _differentiable(a: Array, k: int, ops: Ops) -> Triplets:
    """Triplets by the SVD, for which the library that traces them finds the rules.

    With ``A^H U = V S`` and ``A V = U S``, the part of dv_i that is orthogonal to V solves

        (s_i^2 - B^H B) dv_i = s_i (I - V V^H) E^H u_i + B^H (I - U U^H) E v_i,    B = A - U S V^H.

    Nothing is asked of the values beyond k, but that they differ from the others.
    """
    found: list[Triplets] = []

    def apply(a: Array) -> tuple[Array, ...]:
        found.append(_triplets(a, k, "svd", RTOL))
        return found[-1][:3]

    def jvp(primals: Any, results: Any, tangents: Any) -> tuple[Array, ...]:
        moved = _rule(primals[0], results).along(tangents[0])
        return tuple(ops_of(d).like(d, r) for d, r in zip(moved, results, strict=True))

    def vjp(primals: Any, results: Any, gradients: Any) -> tuple[Array]:
        return (
            ops_of(primals[0]).like(_rule(primals[0], results).against(*gradients), primals[0]),
        )

    u, s, vh = ops.differentiable(apply, jvp, vjp, (a,), keep=True)
    return found[-1]._replace(u=u, s=s, vh=vh)


def _rule(a: Array, results: Sequence[Array]) -> _Rule:
    ops = ops_of(a).functional()
    x = ops.at_least_single(a)
    u, s, vh = results
    if x.dtype != a.dtype:  # rounded triplets would not do
        u, s, vh = top_singular(x, s.shape[-1])
    scale = ops.constant(lambda x: ops.binary_scale(ops.max_abs(x)), x)
    wide = x.shape[-2] < x.shape[-1]
    u, v = (ops.adjoint(vh), u) if wide else (u, ops.adjoint(vh))
    x = ops.divide(ops.adjoint(x) if wide else x, scale)
    return _Rule(x, u, ops.divide(s[..., None, :], scale), v, scale, ops, wide)


class _Rule(NamedTuple):
    """Tall matrices over powers of two, their triplets ``u_i, s_i, v_i``, and the derivative."""

    x: Array
    u: Array
    s: Array  # shape (..., 1, k)
    v: Array
    scale: Array
    ops: Ops
    wide: bool

    def along(self, e: Array) -> tuple[Array, Array, Array]:
        """Derivatives of u, s and vh in a direction of the matrix that was given."""
        ops, u, s, v = self.ops, self.u, self.s, self.v
        e = ops.divide(ops.like(ops.adjoint(e) if self.wide else e, self.x), self.scale)
        rest, inverses, f, eye = self._parts()
        ev, eu = ops.matmul(e, v), ops.matmul(ops.adjoint(e), u)
        p = ops.matmul(ops.adjoint(u), ev)
        q, r = ops.adjoint(p), ops.adjoint(s)
        phase = eye * (p - q) / (4 * s)  # of complex vectors, in equal parts
        ev = ev - ops.matmul(u, p)
        right = s * (eu - ops.matmul(v, ops.matmul(ops.adjoint(v), eu)))
        t = self._solved(inverses, right + ops.matmul(ops.adjoint(rest), ev))
        du = ops.matmul(u, f * (s * p + r * q) + phase) + (ev + ops.matmul(rest, t)) / s
        dv = ops.matmul(v, f * (s * q + r * p) - phase) + t
        ds = ops.xp.sum(_real(eye * p, ops), axis=-1) * self.scale[..., 0]
        return (dv, ds, ops.adjoint(du)) if self.wide else (du, ds, ops.adjoint(dv))

    def against(self, gu: Array | None, gs: Array | None, gvh: Array | None) -> Array:
        """Gradient with respect to the matrix that was given; None for a gradient of zero."""
        ops, u, s, v = self.ops, self.u, self.s, self.v
        d = 0.0 * ops.matmul(u, ops.adjoint(v))
        if gs is not None:
            d = ops.matmul(u * ops.like(gs, s)[..., None, :], ops.adjoint(v))
        if gu is not None or gvh is not None:
            gv = None if gvh is None else ops.adjoint(gvh)
            gu, gv = (gv, gu) if self.wide else (gu, gv)
            gu, gv = (w * 0.0 if g is None else ops.like(g, w) for g, w in ((gu, u), (gv, v)))
            rest, inverses, f, eye = self._parts()
            ku, kv = (ops.matmul(ops.adjoint(w), g) for w, g in ((u, gu), (v, gv)))
            ku, kv = ku - ops.adjoint(ku), kv - ops.adjoint(kv)
            core = f * (ku * s + ops.adjoint(s) * kv) + eye * (ku - kv) / (4 * s)
            y = self._solved(inverses, ops.matmul(ops.adjoint(rest), gu / s) + gv)
            left = gu / s + ops.matmul(rest, y)
            left = left - ops.matmul(u, ops.matmul(ops.adjoint(u), left))
            moved = ops.matmul(ops.matmul(u, core) + left, ops.adjoint(v))
            d = d + ops.divide(moved + ops.matmul(u, ops.adjoint(y * s)), self.scale)
        return ops.adjoint(d) if self.wide else d

    def _parts(self) -> tuple[Array, Array, Array, Array]:
        """B, the inverses of ``s_i^2 - B^H B``, ``1 / (s_i^2 - s_j^2)`` but 0 for i = j, and I."""
        ops, s = self.ops, self.s
        rest = self.x - ops.matmul(self.u * s, ops.adjoint(self.v))
        gram = ops.gram(rest)
        guard = ops.constant(self._guard, s, gram)
        square = s * s
        shifts = ops.adjoint(square)[..., None]
        inverses = ops.inverse(ops.eye(gram.shape[-1], gram) * shifts - gram[..., None, :, :])
        same = ops.eye(s.shape[-1], s)
        f = (1.0 - same) / (square - ops.adjoint(square) + same) + guard
        return rest, inverses, f, ops.eye(s.shape[-1], self.u)

    def _guard(self, s: Array, gram: Array) -> Array:
        """Zero; NaN, or an error, where one of the k values is not apart from all others."""
        ops = ops_of(gram).functional()
        xp = ops.xp
        beyond = ops.eigh(gram)[0][..., None, -1:]
        beyond = xp.sqrt(xp.where(beyond > 0, beyond, xp.zeros_like(beyond)))
        gaps = s - xp.concat([s[..., 1:], beyond], axis=-1)
        least = xp.min(gaps, axis=-1, keepdims=True)
        noise = max(self.x.shape[-2:]) * format_of(ops.format_name(s)).epsilon
        poor = ~(least > noise * s[..., :1]) & ~xp.isnan(least)
        if not ops.hidden(poor) and bool(xp.any(poor)):
            worst = tuple(int(i) for i in np.argwhere(ops.to_host(poor)[..., 0, 0])[0])
            where = f" in matrix {worst} of the stack" if worst else ""
            raise ValueError(
                f"singular vectors have no derivative where one of the {s.shape[-1]} values is, to "
                f"rounding, zero or equal to another one{where}; the values alone have a gradient"
            )
        return xp.where(poor, xp.full_like(least, math.nan), xp.zeros_like(least))

    def _solved(self, inverses: Array, right: Array) -> Array:
        """Columns solved each by its own matrix, orthogonal to V."""
        ops = self.ops
        rows = ops.matmul(ops.adjoint(right)[..., None, :], inverses)[..., 0, :]
        t = ops.adjoint(rows)
        return t - ops.matmul(self.v, ops.matmul(ops.adjoint(self.v), t))


# -- one matrix after another, and the evidence ----------------------------------------------


def _each(x: Array, k: int, ops: Ops, method: str, rtol: float) -> Triplets:
    """Iterate on each matrix of a stack; tall, scaled, finite."""
    xp = ops.xp
    batch = x.shape[:-2]
    flat = xp.reshape(x, (-1, *x.shape[-2:]))
    found = [_one(flat[i, ...], k, ops, method, rtol) for i in range(flat.shape[0])]
    u, s, vh = (
        xp.reshape(xp.stack(parts), (*batch, *parts[0].shape))
        for parts in zip(*(f[:3] for f in found), strict=True)
    )
    name = max((f.method for f in found), key=len)
    return Triplets(u, s, vh, name, sum(f.products for f in found), max(f.residual for f in found))


def _one(x: Array, k: int, ops: Ops, method: str, rtol: float) -> Triplets:
    """Iterate on one matrix; what is not certified is computed again by the SVD."""
    xh = ops.adjoint(x)
    if method == "arpack":
        found, products = _arpack(x, xh, k, ops, rtol)
    elif method == "randomized":
        found, products = _subspace(x, xh, k, ops, rtol)
    else:
        block = 1 if method == "lanczos" else k + OVERSAMPLING
        found, products = _krylov(x, xh, k, ops, block, rtol)
    if found is not None:
        u, s, v = found
        residual = _residual(x, xh, u, s, v, ops)
        products += 2 * k
        if _is_certified(x, u, s, v, residual, rtol, ops):
            return Triplets(u, s, ops.adjoint(v), method, products, _relative(residual, s, ops))
    return _by_svd(x, k, ops)._replace(method=f"{method}, then svd", products=products)


def _by_svd(x: Array, k: int, ops: Ops) -> Triplets:
    u, s, vh = ops.svd(x)
    u, s, vh = u[..., :k], s[..., :k], vh[..., :k, :]
    if ops.hidden(s):
        return Triplets(u, s, vh, "svd", 0, math.nan)
    residual = _residual(x, ops.adjoint(x), u, s, ops.adjoint(vh), ops)
    return Triplets(u, s, vh, "svd", 0, _relative(residual, s, ops))


def _residual(x: Array, xh: Array, u: Array, s: Array, v: Array, ops: Ops) -> np.ndarray:
    """``(||A V - U S||_F^2 + ||A^H U - V S||_F^2)^(1/2)``, on the host."""
    row = s[..., None, :]
    parts = [ops.matmul(x, v) - u * row, ops.matmul(xh, u) - v * row]
    return ops.to_host(ops.frobenius(ops.xp.concat(parts, axis=-2)))[..., 0, 0]


def _relative(residual: np.ndarray, s: Array, ops: Ops) -> float:
    """Largest residual of a stack, relative to each matrix' largest value."""
    largest = ops.to_host(s)[..., 0]
    return float(np.max(residual / np.where(largest == 0, 1.0, largest)))


def _is_certified(
    x: Array, u: Array, s: Array, v: Array, residual: np.ndarray, rtol: float, ops: Ops
) -> bool:
    """Whether orthonormality, residual and the norm of the rest prove the values to `rtol`."""
    values = ops.to_host(s)
    rounding = max(100, min(x.shape)) * format_of(ops.format_name(x)).epsilon
    slack = max(rtol / 2 * values[-1], rounding * values[0])
    bound = float(values[-1] + slack)
    if bound == 0:  # only a zero matrix has s_1 = 0
        return ops.read(ops.frobenius(x)) == 0
    if not residual <= slack:
        return False
    for basis in (u, v):
        defect = ops.add_diagonal(ops.gram(basis), -1.0)
        if not ops.read(ops.frobenius(defect)) <= rounding:
            return False
    rest = (x - ops.matmul(u * s[None, :], ops.adjoint(v))) / bound
    return math.isfinite(ops.read(ops.frobenius(_definite(ops.gram(rest), ops))))


def _definite(g: Array, ops: Ops) -> Array:
    """Cholesky factor of ``I - G``: NaN unless every eigenvalue of G is below 1."""
    return ops.cholesky(ops.add_diagonal(-g, 1.0))


# -- iterations ------------------------------------------------------------------------------


def _gaussian(like: Array, ops: Ops) -> Callable[[int, int], Array]:
    """Seeded Gaussian matrices, made on the host, so that every library gets the same numbers."""
    rng = np.random.default_rng(0)

    def draw(m: int, n: int) -> Array:
        return ops.like(ops.from_host(rng.standard_normal((m, n)), like), like)

    return draw


def _extend(
    w: Array, basis: Array, floor: float, draw: Callable[[int, int], Array], ops: Ops
) -> tuple[Array, np.ndarray, np.ndarray]:
    """Orthonormal Q, orthogonal to a basis, with ``w = basis h + Q r``; h and r on the host.

    Block Gram-Schmidt, twice. Columns that nothing is left of (an invariant subspace is found) are
    replaced by random ones, so that an iteration goes on to what it has not seen.
    """
    adjoint = ops.adjoint(basis)
    h = ops.matmul(adjoint, w)
    w = w - ops.matmul(basis, h)
    q, r = _qr(w, ops)
    lost = np.abs(np.diagonal(ops.to_host(r))) <= floor
    if lost.any():
        kept = ops.from_host(~lost * 1.0, w)
        q, _ = _qr(w * kept + draw(*w.shape) * (1 - kept), ops)
    q, _ = _qr(q - ops.matmul(basis, ops.matmul(adjoint, q)), ops)
    return q, ops.to_host(h), ops.to_host(ops.matmul(ops.adjoint(q), w))


def _qr(w: Array, ops: Ops) -> tuple[Array, Array]:
    """QR; of a single column without LAPACK, which takes longer than a product with A."""
    if w.shape[-1] > 1:
        return ops.qr(w)
    r = ops.frobenius(w)
    return ops.divide(w, ops.divisor(r)), r


def _place(basis: Array, q: Array, at: int, ops: Ops) -> Array:
    """Put columns where the basis has zeros; in its storage, if that can be written."""
    if ops.writable(basis):
        basis[:, at : at + q.shape[-1]] = q
        return basis
    return basis + ops.matmul(q, ops.from_host(np.eye(q.shape[-1], basis.shape[-1], at), q))


def _goal(s: np.ndarray, k: int, rtol: float, eps: float) -> float:
    """Residual at which an iteration stops."""
    return max(MARGIN * rtol / 2 * s[k - 1], STAGNATION * eps * s[0])


def _krylov(
    x: Array, xh: Array, k: int, ops: Ops, block: int, rtol: float
) -> tuple[tuple[Array, Array, Array] | None, int]:
    """Block Golub-Kahan-Lanczos with full reorthogonalisation and thick restart.

    With orthonormal U and V, and F the next block of V,

        A V = U B,    A^H U = V B^H + F R L^H,

    L the last columns of the identity. The SVD ``B = P S Z^H`` gives triplets ``U p_i, s_i, V z_i``
    with residual ``F R L^H p_i``. A restart keeps the leading ones: B becomes diagonal, and the
    inner products of the next step fill its spike. The bases have zero columns to begin with, so
    that no shape ever changes (JAX compiles for each shape).
    """
    m, n = x.shape
    size = min(max(2 * k + 30, 8 * block), n - block)
    keep = k + (size - k - block) // 4
    draw = _gaussian(x, ops)
    if keep < k:  # no room for a restart: the SVD is the better method
        return None, 0
    eps = format_of(ops.format_name(x)).epsilon
    floor = 2 * eps * ops.read(ops.frobenius(x))
    u, v = (ops.xp.zeros((d, size), dtype=x.dtype, device=x.device) for d in (m, n))
    b = np.zeros((size, size), dtype=np.complex128 if ops.is_complex(x) else np.float64)
    f, _, _ = _extend(draw(n, block), v, 0.0, draw, ops)
    used = looked = products = 0
    while products < BUDGET * n:
        v = _place(v, f, used, ops)
        new = slice(used, used + block)
        w, b[:, new], b[new, new] = _extend(ops.matmul(x, f), u, floor, draw, ops)
        u = _place(u, w, used, ops)
        used += block
        f, _, r = _extend(ops.matmul(xh, w), v, floor, draw, ops)
        products += 2 * block
        full = used + block > size
        if used < k or not (full or used - looked >= LOOK):
            continue
        looked = used
        p, s, zh = np.linalg.svd(b[:used, :used])
        left = np.linalg.norm(r @ p[new, :k])
        done = left <= _goal(s, k, rtol, eps)
        if done or full:
            count = k if done else keep
            turn_u, turn_v = np.zeros_like(b), np.zeros_like(b)
            turn_u[:used, :count], turn_v[:used, :count] = p[:, :count], zh[:count].conj().T
            u, v = (ops.matmul(t, ops.from_host(turn, x)) for t, turn in ((u, turn_u), (v, turn_v)))
            if done:
                return (u[:, :k], ops.from_host(s[:k], x), v[:, :k]), products
            b = np.zeros_like(b)
            np.fill_diagonal(b[:keep, :keep], s)
            used = looked = keep
    return None, products


def _arpack(
    x: Array, xh: Array, k: int, ops: Ops, rtol: float
) -> tuple[tuple[Array, Array, Array] | None, int]:
    """ARPACK's eigenvectors of ``A^H A``, vectors on the host, products where A is."""
    linalg = importlib.import_module("scipy.sparse.linalg")
    n, products = x.shape[-1], 0
    size = min(n, max(2 * k + 1, 20))  # SciPy's own choice
    if k >= size - 1:
        return None, 0

    def multiply(v: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 2
        column = ops.like(ops.from_host(v.reshape(n, 1), x), x)
        return ops.to_host(ops.matmul(xh, ops.matmul(x, column)))[:, 0]

    eps = format_of(ops.format_name(x)).epsilon
    square = linalg.LinearOperator((n, n), multiply, dtype=complex if ops.is_complex(x) else float)
    try:
        _, v = linalg.eigsh(
            square,
            k,
            ncv=size,
            maxiter=math.ceil(BUDGET * n / (2 * (size - k))),
            tol=max(MARGIN * rtol / 2 / math.sqrt(k), eps),
            v0=np.random.default_rng(0).standard_normal(n),
        )
    except linalg.ArpackError:  # no convergence, or a zero matrix
        return None, products
    v, _ = ops.qr(ops.from_host(v, x))  # complex eigenvectors come normalised only
    u, s, v, _, _ = _ritz(x, v, k, ops)
    return (u, s, v), products + k


def _subspace(
    x: Array, xh: Array, k: int, ops: Ops, rtol: float
) -> tuple[tuple[Array, Array, Array] | None, int]:
    """Randomized SVD with as many power iterations as the residual asks for.

    The residual comes with the product that the next iteration starts from.
    """
    n = x.shape[-1]
    draw = _gaussian(x, ops)
    eps = format_of(ops.format_name(x)).epsilon
    size = min(k + OVERSAMPLING, n)
    v, _ = ops.qr(draw(n, size))
    products = 0
    while products < BUDGET * n:
        u, s, w, q, left = _ritz(x, v, k, ops)
        z = ops.matmul(xh, q)
        products += 2 * size
        rest = ops.matmul(z, left) - w * s[None, :]
        if ops.read(ops.frobenius(rest)) <= _goal(ops.to_host(s), k, rtol, eps):
            return (u, s, w), products
        v, _ = ops.qr(z)
    return None, products


def _ritz(x: Array, v: Array, k: int, ops: Ops) -> tuple[Array, Array, Array, Array, Array]:
    """Leading triplets within a range: of ``A V = Q R``, ``R = P S G^H``, for orthonormal V.

    Returns
    -------
    u, s, v, q, p
        ``Q P``, S and ``V G``, so that ``A (V G) = (Q P) S``; and Q and P themselves.
    """
    q, r = ops.qr(ops.matmul(x, v))
    p, s, gh = np.linalg.svd(ops.to_host(r))
    left, right = (ops.from_host(t, x) for t in (p[:, :k], gh[:k].conj().T))
    return ops.matmul(q, left), ops.from_host(s[:k], x), ops.matmul(v, right), q, left


# -- Dion's power step -----------------------------------------------------------------------


@under_default_settings
def power_step(m: Array, q: Array) -> tuple[Array, Array, Array]:
    """One warm-started power iteration: ``P = orth(M Q)``, ``R = M^H P``, Q anew.

    Parameters
    ----------
    m : array, shape (..., m, n)
        Matrix, say a momentum. In Dion error feedback then takes ``(1 - mu) P R^H`` off it.
    q : array, shape (..., n, k)
        Right factor of the step before, or Gaussian to begin with; k from 1 to min(m, n).

    Returns
    -------
    p : array, shape (..., m, k)
        Orthonormal columns, by Householder QR.
    r : array, shape (..., n, k)
        ``M^H P``, infinite where it overflows: ``P R^H`` is the projection of M to the range of P.
    q : array, shape (..., n, k)
        The columns of R, normalised. A zero column keeps that of the old Q, so that a zero matrix
        does not end the iteration. All results are complex if `m` or `q` is.

    Raises
    ------
    TypeError, ValueError
        If M or Q is no matrix of numbers, or they do not fit.

    Notes
    -----
    Cost: two products with k vectors and one QR. Half precision is computed in float32. Nothing is
    read off a device; NaN gives NaN. Ahn, Xu and others, Dion, arXiv 2504.05295, algorithm 1, which
    steps by ``P Q^H``: not the polar factor of ``P R^H``, since normalised columns are not
    orthonormal; its spectral norm exceeds 1. :func:`range_lmo` is what it stands for.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> m, q = rng.standard_normal((6, 5)), rng.standard_normal((5, 2))
    >>> p, r, q = power_step(m, q)
    >>> bool(np.allclose(r, m.T @ p)), bool(np.linalg.norm(p @ q.T, 2) > 1)
    (True, True)
    """
    m, ops = as_matrix(m, "m")
    m, q = _factor(q, "q", m, ops, m.shape[-1], min(m.shape[-2:]))
    x = ops.at_least_single(m)
    y = ops.like(q, x)
    scale = ops.binary_scale(ops.max_abs(x))
    x = ops.divide(x, scale)
    p, _ = ops.qr(ops.matmul(x, y))
    r = ops.matmul(ops.adjoint(x), p)
    size = ops.xp.sqrt(ops.xp.sum(ops.xp.abs(r) ** 2, axis=-2, keepdims=True))
    y = ops.xp.where(size == 0, y, r / ops.xp.where(size == 0, ops.xp.ones_like(size), size))
    return ops.like(p, m), ops.like(ops.scale(r, scale), m), ops.like(y, q)


@under_default_settings
def range_lmo(g: Array, p: Array) -> Array:
    """Maximiser of ``Re tr(G^H T)`` over ``||T||_2 <= 1`` within a range: ``P polar(P^H G)``.

    Parameters
    ----------
    g : array, shape (..., m, n)
        Matrix.
    p : array, shape (..., m, k)
        Orthonormal columns, for example of :func:`power_step`; k from 1 to m.

    Returns
    -------
    array, shape (..., m, n)
        A partial isometry: singular values of ``P^H G`` below ``max(m, n) * eps * sigma_1`` are
        left out, a zero matrix gives zero. Array library, device and dtype of `g`, complex if `p`
        is.

    Raises
    ------
    TypeError, ValueError
        If G or P is no matrix of numbers, or they do not fit.

    Notes
    -----
    Cost: two products with k vectors and an SVD of n x k. NaN or infinity gives NaN. Where the
    columns of P span the k leading left singular vectors this is ``U_k V_k^H``, the maximiser in
    the unit ball of the Ky Fan k-norm's dual.

    Examples
    --------
    >>> import numpy as np
    >>> range_lmo(np.diag([3.0, 2.0, 1.0]), np.eye(3)[:, :2]).round(12).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    g, ops = as_matrix(g, "g")
    g, p = _factor(p, "p", g, ops, g.shape[-2], g.shape[-2])
    x = ops.at_least_single(g)
    y = ops.like(p, x)
    x = ops.divide(x, ops.binary_scale(ops.max_abs(x)))
    u, s, vh = ops.svd(ops.matmul(ops.adjoint(x), y))
    # NaN times zero, so that a matrix that is not finite gives NaN.
    kept = s * 0.0 + ops.xp.astype(above_noise(s, x.shape, ops), s.dtype)
    t = ops.matmul(ops.matmul(y, ops.adjoint(vh) * kept[..., None, :]), ops.adjoint(u))
    return ops.like(t, g)


def _factor(
    a: Array, name: str, m: Array, ops: Ops, rows: int, columns: int
) -> tuple[Array, Array]:
    """Return a matrix and its factor, of the right library and shape, both complex if one is."""
    a, _ = as_matrix(a, name)
    check_same_place(m, "m" if name == "q" else "g", a, name)
    if a.shape[-2] != rows or not 0 < a.shape[-1] <= columns:
        raise ValueError(
            f"{name} must have {rows} rows and from 1 to {columns} columns, got shape "
            f"{tuple(a.shape)}"
        )
    if ops.is_complex(a) or ops.is_complex(m):
        return ops.as_complex(m), ops.as_complex(a)
    return m, a


def _real(x: Array, ops: Ops) -> Array:
    return ops.xp.real(x) if ops.is_complex(x) else x
