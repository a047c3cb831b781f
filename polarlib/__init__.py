"""polarlib: matrix polar decompositions and orthogonalisation of NumPy, torch and JAX arrays.

Four verbs
    :func:`polar`, :func:`orthogonalize`   matrix in, factor out
    :mod:`polarlib.design`                 interval, budget and format in, schedule out
    :func:`measure`                        matrix and schedule in, :class:`Trace` out
    :mod:`polarlib.plot`                   trace or schedule in, matplotlib axes out

What the factor is for
    :func:`nearest_orthogonal`, :func:`nearest_rotation`, :func:`procrustes`
    :func:`align`                          clouds of points in, :class:`Alignment` out
    :func:`generalized_procrustes`         several clouds in, :class:`GeneralizedProcrustes` out
    :mod:`polarlib.manifold`               tangents and retractions of the Stiefel manifold
    :func:`sqrtm`, :func:`sqrtm_psd`, :func:`signm`, :func:`inverse_root`
    :func:`svd_polar`, :func:`eigh_polar`  where a device has no good SVD or eigenvalues

And what optimizers of matrices are made of
    :mod:`polarlib.norms`                  norms, dual norms, LMOs; :mod:`polarlib.updates`
    :func:`top_singular`                   the leading singular triplets
    :func:`communication`                  shape and layout in, bytes and operations out

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

from typing import TYPE_CHECKING

from polarlib._lazy import attach
from polarlib._version import __version__

if TYPE_CHECKING:
    from polarlib import design, files, manifold, norms, plot, testing, updates
    from polarlib._communication import communication
    from polarlib._methods import methods
    from polarlib._schedules.certify import Certificate
    from polarlib._schedules.schedule import Schedule
    from polarlib.decomposition import polar
    from polarlib.derivatives import orthogonalize_jvp, orthogonalize_vjp, polar_jvp, polar_vjp
    from polarlib.diagnose import measure
    from polarlib.norms.topk import top_singular
    from polarlib.orthogonalization import orthogonalize, orthogonalize_all
    from polarlib.published import default_schedule, schedule, schedules
    from polarlib.result import ConvergenceWarning, PolarResult, ScheduleWarning, Status, Trace
    from polarlib.uses.align import Alignment, align
    from polarlib.uses.divide import eigh_polar, svd_polar
    from polarlib.uses.functions import inverse_root
    from polarlib.uses.general_roots import signm, sqrtm
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
    "communication",
    "default_schedule",
    "design",
    "eigh_polar",
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
    "signm",
    "sqrtm",
    "sqrtm_psd",
    "svd_polar",
    "testing",
    "top_singular",
    "updates",
]

# Public names by module, as above. `import polarlib` loads none of them: SciPy's linalg, which some
# need, takes 0.17 s of CPU time (docs/data/import_time.json).
_HOMES = {
    "_communication": ("communication",),
    "_methods": ("methods",),
    "_schedules.certify": ("Certificate",),
    "_schedules.schedule": ("Schedule",),
    "decomposition": ("polar",),
    "derivatives": ("orthogonalize_jvp", "orthogonalize_vjp", "polar_jvp", "polar_vjp"),
    "diagnose": ("measure",),
    "norms.topk": ("top_singular",),
    "orthogonalization": ("orthogonalize", "orthogonalize_all"),
    "published": ("default_schedule", "schedule", "schedules"),
    "result": ("ConvergenceWarning", "PolarResult", "ScheduleWarning", "Status", "Trace"),
    "uses.align": ("Alignment", "align"),
    "uses.divide": ("eigh_polar", "svd_polar"),
    "uses.functions": ("inverse_root",),
    "uses.general_roots": ("signm", "sqrtm"),
    "uses.nearest": ("nearest_orthogonal", "nearest_rotation"),
    "uses.procrustes": ("procrustes",),
    "uses.roots": ("sqrtm_psd",),
    "uses.shapes": ("GeneralizedProcrustes", "generalized_procrustes"),
    "uses.tall": ("polar_tall",),
}
_MODULES = ("design", "files", "manifold", "norms", "plot", "testing", "updates")
# Former names, until 0.3.
_RENAMED = ("costs", "spectral_maps", "steps", "topk")
# Attributes since `import polarlib` loaded these modules: private, but in use.
_INNER = (
    *("_methods", "_schedules", "_stages", "arrays", "decomposition", "derivatives", "diagnose"),
    *("engine", "orthogonalization", "published", "result", "uses"),
)

if not TYPE_CHECKING:  # hidden from type checkers, which would accept any name as an attribute
    __getattr__, __dir__ = attach(__name__, _HOMES, (*_MODULES, *_RENAMED, *_INNER), __all__)
