"""Ky Fan norms, their duals, and the Fanions."""

from __future__ import annotations

import math

from polarlib.arrays.checks import MOST_ROWS, count, shown
from polarlib.norms.base import MatrixNorm, order
from polarlib.norms.mixed import conjugate
from polarlib.norms.topk import Method
from polarlib.norms.unitary import Polar, Unitary, nuclear, schatten, spectral, top_method


def ky_fan(k: int | None, p: float = 1) -> MatrixNorm:
    """Return the (k, p)-norm, ``(sum of sigma_i^p over the k largest)^(1/p)``; Ky Fan's for p = 1.

    Parameters
    ----------
    k : int or None
        At least 1, and at most min(m, n) of the matrices it is applied to; None for min(m, n).
    p : float, optional
        From 1 to infinity.

    Returns
    -------
    Norm
        Dual: :func:`ky_fan_dual`. For p = 1 the LMO is ``u_1 v_1^H`` if sigma_1 is at least the
        sum of the singular values over k, else ``U_r V_r^H / k``.

    Raises
    ------
    ValueError, TypeError
        If k is not a positive integer or p below 1.

    Examples
    --------
    >>> import numpy as np
    >>> n, g = ky_fan(2), np.diag([3.0, 2.0, 2.0])
    >>> float(n(g)), float(n.dual_norm(g))
    (5.0, 3.5)
    """
    return _kp(k, p, False)


def ky_fan_dual(k: int | None, p: float = 1) -> MatrixNorm:
    """Return the dual of the (k, p)-norm: for p = 1, ``max(sigma_1, sum sigma_i / k)``.

    Parameters
    ----------
    k : int or None
        As in :func:`ky_fan`.
    p : float, optional
        As in :func:`ky_fan`.

    Returns
    -------
    Norm
        Its LMO is ``U_k diag(sigma^(p-1)) V_k^H / ||sigma_{1:k}||_p^(p-1)``; for p = 2 this is the
        spectral k-support norm, and the LMO is the best rank-k approximation, normalised. Unique
        if and only if sigma_k > sigma_(k+1) (or k = min(m, n), for p = 1 at full rank); at ties
        the first k triplets of the SVD.

    Raises
    ------
    ValueError, TypeError
        As in :func:`ky_fan`.

    Notes
    -----
    The value depends on the largest index at which ``sigma`` exceeds the mean of its tail; see
    ``_split`` in polarlib/norms/unitary.py.

    References
    ----------
    A. McDonald, M. Pontil and D. Stamos, Spectral k-support norm regularization, NeurIPS 2014
    (p = 2).

    Examples
    --------
    >>> import numpy as np
    >>> n, g = ky_fan_dual(2), np.diag([3.0, 2.0, 2.0])
    >>> float(n(g)), float(n.dual_norm(g)), n.dual()
    (3.5, 5.0, ky_fan(2))
    """
    return _kp(k, p, True)


def _kp(k: int | None, p: float, of_dual: bool) -> MatrixNorm:
    p = order("p", p)
    if k is None:
        return schatten(conjugate(p) if of_dual else p)
    k = count("k", k, most=MOST_ROWS)
    if k == 1 or p == math.inf:  # sigma_1 alone counts
        return nuclear() if of_dual else spectral()
    return Unitary(k, p, of_dual)


def fanion(
    k: int | None,
    *,
    polar: Polar = None,
    method: Method = "auto",
) -> MatrixNorm:
    """Return the norm of Fanion-k, the dual of Ky Fan's: its LMO is ``U_k V_k^H``.

    Parameters
    ----------
    k : int or None
        Rank of the LMO; None for min(m, n), the spectral norm.
    polar : callable, str, path-like or Schedule, optional
        As in :func:`spectral`; for k = None only.
    method : {"auto", "svd", "lanczos", "arpack", "randomized", "block_krylov"}, optional
        As in :func:`nuclear`; for a number k only.

    Returns
    -------
    Norm
        :func:`ky_fan_dual` of k, or :func:`spectral`.

    Raises
    ------
    ValueError, TypeError
        If k is not a positive integer, and unknown names.

    Examples
    --------
    >>> import numpy as np
    >>> fanion(2).lmo(np.diag([3.0, 2.0, 1.0])).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    solver = top_method(method)
    if k is None:
        return spectral(polar=polar)
    if polar is not None:
        raise ValueError(f"polar= needs k=None, got k={shown(k)}; use method= for a number k")
    return Unitary(count("k", k, most=MOST_ROWS), 1.0, True, solver=solver)


def neon(*, method: Method = "auto") -> MatrixNorm:
    """Return the norm of Neon: Fanion of rank 1, the nuclear norm.

    Parameters
    ----------
    method : {"auto", "svd", "lanczos", "arpack", "randomized", "block_krylov"}, optional
        As in :func:`nuclear`.

    Returns
    -------
    Norm
        :func:`nuclear`.

    Raises
    ------
    ValueError
        For an unknown method.

    Examples
    --------
    >>> neon() == nuclear() == fanion(1)
    True
    """
    return nuclear(method=method)
