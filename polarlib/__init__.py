"""polarlib: matrix polar decompositions and orthogonalisation of NumPy, torch and JAX arrays.

Four verbs
    :func:`polar`, :func:`orthogonalize`   matrix in, factor out
    :mod:`polarlib.design`                 interval, budget and format in, schedule out
    :func:`measure`                        matrix and schedule in, :class:`Trace` out
    :mod:`polarlib.plot`                   trace or schedule in, matplotlib axes out

What the factor is for
    :func:`nearest_orthogonal`, :func:`nearest_rotation`, :func:`procrustes`, :func:`sqrtm_psd`

And what optimizers of matrices are made of
    :mod:`polarlib.norms`                  norms, dual norms, maximisers; :mod:`polarlib.steps`
    :func:`top_singular`                   the leading singular triplets

Four nouns
    :class:`Schedule`      an immutable composition of odd polynomials
    ``Ops``                how to multiply, for one array library
    :class:`PolarResult`   what came out, with its evidence
    :class:`Trace`         what happened at each step

Examples
--------
>>> import numpy as np, polarlib
>>> a = np.array([[3.0, 0.0], [4.0, 5.0]])
>>> u, h = polarlib.polar(a)
>>> bool(np.allclose(u @ h, a))
True
"""

import importlib
from typing import Any

from polarlib import design
from polarlib._certify import Certificate
from polarlib._methods import methods
from polarlib._schedule import Schedule
from polarlib._uses import nearest_orthogonal, nearest_rotation, procrustes, sqrtm_psd
from polarlib._version import __version__
from polarlib.chunked import polar_tall
from polarlib.decompose import orthogonalize, orthogonalize_all, polar
from polarlib.derivatives import orthogonalize_jvp, orthogonalize_vjp, polar_jvp, polar_vjp
from polarlib.diagnose import measure
from polarlib.functions import inverse_root
from polarlib.published import default_schedule, schedule, schedules
from polarlib.result import ConvergenceWarning, PolarResult, ScheduleWarning, Status, Trace
from polarlib.topk import top_singular

__all__ = [
    "Certificate",
    "ConvergenceWarning",
    "PolarResult",
    "Schedule",
    "ScheduleWarning",
    "Status",
    "Trace",
    "__version__",
    "default_schedule",
    "design",
    "files",
    "inverse_root",
    "measure",
    "methods",
    "nearest_orthogonal",
    "nearest_rotation",
    "norms",
    "orthogonalize",
    "orthogonalize_all",
    "orthogonalize_jvp",
    "orthogonalize_vjp",
    "plot",
    "polar",
    "polar_jvp",
    "polar_tall",
    "polar_vjp",
    "procrustes",
    "schedule",
    "schedules",
    "spectral_maps",
    "sqrtm_psd",
    "steps",
    "testing",
    "top_singular",
]


# Imported where they are first named: matplotlib takes long.
_LAZY = ("files", "norms", "plot", "spectral_maps", "steps", "testing")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"polarlib.{name}")
    raise AttributeError(f"module 'polarlib' has no attribute {name!r}")
