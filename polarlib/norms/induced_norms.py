"""Induced norms."""

from __future__ import annotations

import math

from polarlib.norms.base import MatrixNorm, order
from polarlib.norms.mixed import Mixed, conjugate, lp
from polarlib.norms.unitary import spectral


def induced(a: float, b: float) -> MatrixNorm:
    """Return the operator norm from the a-norm to the b-norm of vectors.

    Parameters
    ----------
    a, b : float
        ``(1, b)``: the largest b-norm of a column. ``(a, inf)``: the largest norm of a row, of the
        order conjugate to a. ``(2, 2)``: spectral.

    Returns
    -------
    Norm
        Dual: sums instead of the largest. The LMO of ``(1, 2)`` normalises columns (SCALE, Scion's
        "ColNorm" times sqrt(m)), that of ``(2, inf)`` rows (Scion's "RowNorm" over sqrt(n)), those
        of ``(1, 1)`` and ``(inf, inf)`` have one entry in each column or row, the first of the
        largest. Zero columns and rows stay zero.

    Raises
    ------
    ValueError
        For orders below 1 and every other pair: most are NP-hard.

    References
    ----------
    Hardness for a > b: D. Steinberg, Computation of matrix norms with applications to robust
    optimization (Technion, 2005); for a = b: J. Hendrickx and A. Olshevsky, SIAM J. Matrix Anal.
    Appl. 31 (2010).

    Examples
    --------
    >>> import numpy as np
    >>> n, g = induced(1, 2), np.array([[3.0, 0.0], [4.0, 2.0]])
    >>> float(n(g)), float(n.dual_norm(g)), n.lmo(g).tolist()
    (5.0, 7.0, [[0.6, 0.0], [0.8, 1.0]])
    """
    a, b = order("a", a), order("b", b)
    if (a, b) == (1, math.inf):
        return lp(math.inf)
    if a == 1:
        return Mixed(b, math.inf, -2)
    if b == math.inf:
        return Mixed(conjugate(a), math.inf, -1)
    if (a, b) == (2, 2):
        return spectral()
    known = "is NP-hard" if a >= b else "has no known closed form"
    raise ValueError(
        f"the norm from l{a:g} to l{b:g} {known}; allowed are (1, b), (a, inf) and (2, 2)"
    )
