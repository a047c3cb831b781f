"""SciPy's own tests of its square root and sign of matrices, run on polarlib's."""

from __future__ import annotations

from typing import Any

import frame
import numpy as np

import polarlib

NAME = "SciPy sqrtm"
REPOSITORY = "https://github.com/scipy/scipy"
COMMIT = None
PACKAGE = "scipy"
SINCE = "1.17"
TESTS = (
    "scipy.linalg.tests.test_matfuncs::TestSqrtM",
    "scipy.linalg.tests.test_matfuncs::TestSignM",
)
NO_SIGN = "to rounding, to which SciPy gives some sign: ValueError here"
NOT_RUN = {
    "*::TestSqrtM::test_strict_upper_triangular": (
        "a matrix without a square root, for which SciPy gives NaN and infinity: ValueError here"
    ),
    "*::TestSignM::test_nils": f"eigenvalues 0 and +-i, {NO_SIGN}",
    "*::TestSignM::test_defective2": f"eigenvalues 0 and +-i, {NO_SIGN}",
    "*::TestSignM::test_defective3": f"an eigenvalue 0, {NO_SIGN}",
}
NOTE = (
    "Eigenvalues on the negative axis have a root on one side of the cut: the matrix is turned "
    "by a small angle before polarlib.sqrtm, and the root back; singular ones are for sqrtm_psd."
)

Array = Any
# Angle by which eigenvalues on the negative axis are turned away from it.
TURN = 1e-3
NARROWER = {"e": np.float32, "g": np.float64, "G": np.complex128}


def _as_scipy_has_it(a: Any) -> Array:
    """An array of the formats in which SciPy computes."""
    a = np.asarray(a)
    a = a.astype(np.float64) if a.dtype.kind in "iu" else a
    return a.astype(NARROWER[a.dtype.char]) if a.dtype.char in NARROWER else a


def sqrtm(A: Array) -> Array:
    """The principal root, also of semidefinite matrices and, from above, on the cut."""
    a = _as_scipy_has_it(A)
    half = np.exp(0.5j * TURN).astype(np.result_type(a.dtype, np.complex64))
    attempts = (
        lambda: polarlib.sqrtm(a),
        lambda: polarlib.sqrtm_psd(a),
        lambda: 1j * polarlib.sqrtm_psd(-a),
        lambda: polarlib.sqrtm(a * half**-2) * half,
    )
    for attempt in attempts[:-1]:
        try:
            return attempt()
        except ValueError:
            continue
    return attempts[-1]()


def signm(A: Array) -> Array:
    """The sign."""
    return polarlib.signm(_as_scipy_has_it(A))


def install() -> None:
    """Replace both."""
    frame.replace("scipy.linalg.sqrtm", sqrtm)
    frame.replace("scipy.linalg.signm", signm)
