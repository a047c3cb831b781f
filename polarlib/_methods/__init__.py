"""Methods for the unitary factor: one file per method, one table of records.

A method is a function ``(x, ops, *, tol, callback) -> (u, Run)``. Its matrices are tall, in at
least single precision, finite, and scaled so that the largest entry is about 1.
:func:`polarlib.polar` handles the side, wide matrices, the scale, the Hermitian factor, the rank
and the a-posteriori check. A method that fails returns its last iterate: the check rejects it, and
the SVD is used.

An iteration consists of a plan of steps and a function that computes one step, which
:func:`polarlib.engine.drive.drive` runs. To add a method, write a function as above and add its
record to ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import polarlib.published as published
from polarlib._methods import small, traced
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
from polarlib._methods.small_algebra import LARGEST
from polarlib._methods.structured import structured
from polarlib._methods.svd import partial_isometry, svd
from polarlib._methods.traced import fixed_schedule
from polarlib._methods.zolotarev import zolotarev
from polarlib._schedules.schedule import Schedule
from polarlib.arrays.formats import docstring
from polarlib.arrays.ops import Ops
from polarlib.engine.drive import worst_of
from polarlib.result import Run

__all__ = [
    "FIXED",
    "HINTED",
    "METHODS",
    "RATIONAL",
    "TRACED",
    "Method",
    "auto",
    "fixed_schedule",
    "methods",
    "partial_isometry",
    "polynomial",
    "rational",
    "small",
    "worst_of",
]


@dataclass(frozen=True)
class Method:
    """A method and its properties.

    Attributes
    ----------
    function : callable
        The method; calling the record calls the method.
    takes_lower : bool
        Whether the method has the argument ``lower=``, a lower bound of sigma_min / sigma_max.
    traced : callable or None
        Form of fixed work for traced matrices, ``(x, ops, *, tol, lower)``.
    kind : {"polar", "orthonormal"}
        Whether the result is the unitary polar factor or only an orthonormal basis.
    columns : int or None
        Upper limit of min(m, n), if the method has one.
    """

    function: Callable[..., tuple[Any, Run]]
    takes_lower: bool = False
    traced: Callable[..., tuple[Any, Run]] | None = None
    kind: Literal["polar", "orthonormal"] = "polar"
    columns: int | None = None

    def __call__(self, x: Any, ops: Ops, **how: Any) -> tuple[Any, Run]:
        """Run the method."""
        return self.function(x, ops, **how)

    @property
    def description(self) -> str:
        """First line of the method's docstring."""
        return docstring(self.function).partition("\n")[0]


METHODS: dict[str, Method] = {
    "svd": Method(svd, traced=traced.fixed_svd),
    "hybrid": Method(hybrid, takes_lower=True),
    "structured": Method(structured, takes_lower=True),
    "qdwh": Method(qdwh, takes_lower=True, traced=traced.qdwh),
    "zolotarev": Method(zolotarev, traced=traced.zolotarev),
    "halley": Method(halley),
    "newton": Method(newton),
    "newton_schulz": Method(newton_schulz, takes_lower=True, traced=traced.newton_schulz),
    "minimax": Method(minimax, takes_lower=True),
    "qr": Method(qr, traced=traced.fixed_qr, kind="orthonormal"),
    "small": Method(small.small, columns=LARGEST),
}
# Under a trace "auto" cannot estimate a condition number. It is the SVD, which fits every matrix.
_ALL = {"auto": Method(auto, takes_lower=True, traced=traced.fixed_svd)} | METHODS
HINTED = {name: method for name, method in _ALL.items() if method.takes_lower}
TRACED = {name: method.traced for name, method in _ALL.items() if method.traced}
# Names of rational schedules. If a method has the same name, `polar` uses the method.
RATIONAL: dict[str, Callable[[], Schedule]] = {
    "halley_fixed": halley_schedule,
    "halley": halley_schedule,
}
FIXED = {name: f for name, f in RATIONAL.items() if name not in METHODS}


def methods() -> dict[str, str]:
    """Return the names that ``polar(method=...)`` accepts, each with a description of one line.

    Returns
    -------
    dict of str
        Descriptions by name: factorisations and iterations that converge first, then fixed
        schedules.

    Examples
    --------
    >>> print(methods()["svd"])
    U V^H from the singular value decomposition.
    """
    exact = {name: method.description for name, method in METHODS.items()}
    exact |= {name: docstring(f).partition("\n")[0] for name, f in FIXED.items()}
    sets = {name: published.schedule(name) for name in published.schedules(target="polar")}
    fixed = {
        name: f"Fixed schedule of {len(s)} steps: {s.source}"
        for name, s in sets.items()
        if s.stride == 2
    }
    return exact | fixed
