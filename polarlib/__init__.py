"""polarlib: matrix polar decompositions and orthogonalisation of NumPy, torch and JAX arrays.

Four verbs
    :func:`polar`, :func:`orthogonalize`   matrix in, factor out
    :mod:`polarlib.design`                 interval, budget and format in, schedule out
    :func:`measure`                        matrix and schedule in, :class:`Trace` out
    :mod:`polarlib.plot`                   trace or schedule in, matplotlib axes out

What the factor is for
    :func:`nearest_orthogonal`, :func:`nearest_rotation`, :func:`procrustes`, :func:`sqrtm_psd`
    :func:`align`                          clouds of points in, :class:`Alignment` out;
    :func:`generalized_procrustes`         several clouds, :class:`GeneralizedProcrustes` out
    :mod:`polarlib.manifold`               tangents and retractions of the Stiefel manifold

And what optimizers of matrices are made of
    :mod:`polarlib.norms`                  norms, dual norms, LMOs; :mod:`polarlib.updates`
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
from typing import TYPE_CHECKING, Any

from polarlib import design
from polarlib._methods import methods
from polarlib._schedules.certify import Certificate
from polarlib._schedules.schedule import Schedule
from polarlib._version import __version__
from polarlib.decomposition import polar
from polarlib.derivatives import orthogonalize_jvp, orthogonalize_vjp, polar_jvp, polar_vjp
from polarlib.diagnose import measure
from polarlib.orthogonalization import orthogonalize, orthogonalize_all
from polarlib.published import default_schedule, schedule, schedules
from polarlib.result import ConvergenceWarning, PolarResult, ScheduleWarning, Status, Trace
from polarlib.uses.align import Alignment, align
from polarlib.uses.functions import inverse_root
from polarlib.uses.nearest import nearest_orthogonal, nearest_rotation
from polarlib.uses.procrustes import procrustes
from polarlib.uses.roots import sqrtm_psd
from polarlib.uses.shapes import GeneralizedProcrustes, generalized_procrustes
from polarlib.uses.tall import polar_tall

__all__ = [
    "Alignment",
    "Certificate",
    "ConvergenceWarning",
    "GeneralizedProcrustes",
    "PolarResult",
    "Schedule",
    "ScheduleWarning",
    "Status",
    "Trace",
    "__version__",
    "align",
    "default_schedule",
    "design",
    "files",
    "generalized_procrustes",
    "inverse_root",
    "manifold",
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
    "sqrtm_psd",
    "testing",
    "top_singular",
    "updates",
]


# Imported where they are first named: matplotlib takes long.
_LAZY = ("files", "manifold", "norms", "plot", "testing", "updates")
# Former names, until 0.3.
_RENAMED = ("costs", "spectral_maps", "steps", "topk")

if TYPE_CHECKING:
    from polarlib import files, manifold, norms, plot, testing, updates
    from polarlib.norms.topk import top_singular
else:  # hidden from type checkers, which would take any name for an attribute

    def __getattr__(name: str) -> Any:
        if name in (*_LAZY, *_RENAMED):
            return importlib.import_module(f"polarlib.{name}")
        if name == "top_singular":  # in a folder whose other files `import polarlib` does not need
            return importlib.import_module("polarlib.norms.topk").top_singular
        raise AttributeError(f"module 'polarlib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
