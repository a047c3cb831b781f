"""Methods for the unitary factor: one file a method, one dictionary from names to functions.

A method is a function ``(x, ops, *, tol, callback) -> (u, Run)``. Its matrices are tall, in at
least single precision, finite, and scaled so that the largest entry is about 1. Side, wide
matrices, scale, the Hermitian factor, rank and evidence are :func:`polarlib.polar`'s business,
once. A method that fails returns what it has: the evidence will tell, and the SVD takes over.

To add a method, write such a function and name it in ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polarlib import published
from polarlib._methods import small
from polarlib._methods.auto import auto
from polarlib._methods.halley import halley as halley_schedule
from polarlib._methods.halley import rational
from polarlib._methods.hybrid import hybrid
from polarlib._methods.minimax import minimax
from polarlib._methods.newton import newton
from polarlib._methods.newton_schulz import newton_schulz
from polarlib._methods.polynomial import polynomial
from polarlib._methods.qdwh import halley, qdwh
from polarlib._methods.qr import qr
from polarlib._methods.structured import structured
from polarlib._methods.svd import partial_isometry, svd
from polarlib._methods.traced import TRACED, fixed_schedule
from polarlib._methods.zolotarev import zolotarev
from polarlib.arrays.formats import docstring
from polarlib.design.zolotarev import RationalSchedule
from polarlib.engine.drive import worst_of

__all__ = [
    "FIXED",
    "HINTED",
    "METHODS",
    "RATIONAL",
    "TRACED",
    "auto",
    "fixed_schedule",
    "methods",
    "partial_isometry",
    "polynomial",
    "rational",
    "small",
    "worst_of",
]


METHODS: dict[str, Callable[..., Any]] = {
    "svd": svd,
    "hybrid": hybrid,
    "structured": structured,
    "qdwh": qdwh,
    "zolotarev": zolotarev,
    "halley": halley,
    "newton": newton,
    "newton_schulz": newton_schulz,
    "minimax": minimax,
    "qr": qr,
    "small": small.small,
}
# Methods that take ``lower=``, a lower bound of sigma_min / sigma_max.
HINTED: dict[str, Callable[..., Any]] = {
    "auto": auto,
    "hybrid": hybrid,
    "structured": structured,
    "qdwh": qdwh,
    "newton_schulz": newton_schulz,
    "minimax": minimax,
}
# Fixed schedules of rational steps, beside the published ones of polynomials.
FIXED: dict[str, Callable[[], RationalSchedule]] = {"halley_fixed": halley_schedule}
# Names of rational schedules: "halley" is an iteration that converges where it names a method.
RATIONAL = FIXED | {"halley": halley_schedule}


def methods() -> dict[str, str]:
    """Names that ``polar(method=...)`` takes, each with a line of description.

    Returns
    -------
    dict
        Iterations that converge and factorisations first, then fixed schedules.

    Examples
    --------
    >>> print(methods()["svd"])
    U V^H from the singular value decomposition.
    """
    described = METHODS | FIXED
    exact = {name: docstring(f).partition("\n")[0] for name, f in described.items()}
    fixed = {
        name: f"Fixed schedule of {len(published.schedule(name))} steps: "
        + published.schedule(name).source
        for name in published.schedules()
    }
    return exact | fixed
