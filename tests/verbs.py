"""One call of every public function that computes, for tests of what lies around the calls.

Used by the tests of determinism, threads and processes.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import struct
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np

import polarlib
from polarlib import Schedule, design, manifold, norms, testing, updates
from polarlib.norms import spectral_maps
from polarlib.norms.low_rank import power_step, range_lmo

Call = Callable[[], Any]
# Methods of polar for tall matrices, and fixed schedules.
METHODS = ("svd", "qr", "qdwh", "zolotarev", "newton_schulz", "halley", "minimax", "polar_express")
SETS = ("jordan", "cans", "halley")


def polynomial_roots(ascending: Any) -> Any:
    """Call mpmath's polyroots, whose order of coefficients changes with its version 1.4."""
    options = {"maxsteps": 2000, "extraprec": 2000}
    if "asc" in inspect.signature(mpmath.polyroots).parameters:
        return mpmath.polyroots(ascending, asc=True, **options)
    return mpmath.polyroots(ascending[::-1], **options)


def gaussian(*shape: int, seed: int = 0, is_complex: bool = False) -> np.ndarray:
    """Gaussian matrices, the same in every process whatever pytest's --seed."""
    rng = np.random.Generator(np.random.PCG64([seed, *shape]))
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if is_complex else x


def on_arrays(convert: Callable[[np.ndarray], Any] = np.array, size: int = 40) -> dict[str, Call]:
    """Calls of functions that take arrays of any library, by name; what follows a dot is free."""
    x = convert(gaussian(size + 20, size))
    square = convert(gaussian(size, size, seed=1))
    definite = convert(np.cov(gaussian(size, 3 * size)) + np.eye(size))
    wide = convert(gaussian(3, size // 2, size, seed=2))
    small = convert(gaussian(300, 3, 3, seed=3))
    low_rank = convert(gaussian(size, 4) @ gaussian(4, size))
    one = functools.partial
    found: dict[str, Call] = {
        "polar.auto": one(polarlib.polar, x),
        "polar.square": one(polarlib.polar, square),
        "polar.stack": one(polarlib.polar, wide),
        "polar.small": one(polarlib.polar, small),
        "polar.low rank": one(polarlib.polar, low_rank, side="left"),
        "polar.newton": one(polarlib.polar, square, method="newton"),
        **{f"polar.{m}": one(polarlib.polar, x, method=m) for m in METHODS},
        "orthogonalize.plain": one(polarlib.orthogonalize, x, form="plain"),
        "orthogonalize.gram": one(polarlib.orthogonalize, x, form="gram"),
        "orthogonalize.stack": one(polarlib.orthogonalize, wide),
        "orthogonalize.bfloat16": one(polarlib.orthogonalize, x, precision="bfloat16"),
        "orthogonalize.float8": one(polarlib.orthogonalize, x, precision="float8_e4m3"),
        **{f"orthogonalize.{s}": one(polarlib.orthogonalize, x, schedule=s) for s in SETS},
        "orthogonalize_all": one(polarlib.orthogonalize_all, [x, square, 2 * x]),
        "nearest_orthogonal": one(polarlib.nearest_orthogonal, x),
        "nearest_rotation": one(polarlib.nearest_rotation, square),
        "nearest_rotation.small": one(polarlib.nearest_rotation, small),
        "procrustes": one(polarlib.procrustes, x, 3 * x),
        "align": one(polarlib.align, small, 2 * small + 1, scale=True),
        "align.one": one(polarlib.align, x[:, :3], square[0, 0] * x[:, 3:6]),
        "generalized_procrustes": one(polarlib.generalized_procrustes, wide[..., :2]),
        "manifold.retract": one(manifold.retract, x, 2 * x),
        "manifold.inverse_retract": one(manifold.inverse_retract, x, 2 * x),
        "sqrtm_psd": one(polarlib.sqrtm_psd, definite),
        "svd_polar": one(polarlib.svd_polar, x),
        "eigh_polar": one(polarlib.eigh_polar, definite, smallest=16),
        "sqrtm": one(polarlib.sqrtm, definite + 0.1 * square),
        "signm": one(polarlib.signm, square),
        "inverse_root": one(polarlib.inverse_root, definite, 4),
        "polar_jvp": one(polarlib.polar_jvp, x, 2 * x),
        "polar_vjp": one(polarlib.polar_vjp, x, 2 * x),
        "orthogonalize_jvp": one(polarlib.orthogonalize_jvp, x, 2 * x),
        "orthogonalize_vjp": one(polarlib.orthogonalize_vjp, x, 2 * x),
        **{
            f"top_singular.{m}": one(polarlib.top_singular, low_rank, 3, method=m)
            for m in ("svd", "lanczos", "arpack", "randomized", "block_krylov")
        },
        "power_step": one(power_step, x, convert(gaussian(size, 4))),
        "range_lmo": one(range_lmo, x, convert(np.eye(size + 20, 4))),
        "norms.spectral": one(norms.spectral(polar="jordan").lmo, x),
        "norms.fanion": one(norms.fanion(3).lmo, x),
        "norms.schatten": one(norms.schatten(3).dual_norm, x),
        "norms.ky_fan": one(norms.ky_fan(5, 3).dual_norm, x),
        "norms.lp": one(norms.lp(1.5).sharp, x),
        "norms.project": one(norms.nuclear().project, x),
        "steps.nesterov": one(updates.nesterov, x, 2 * x, 0.9),
        "spectral_maps.spectral_power": one(spectral_maps.spectral_power, x, 0.5),
        "spectral_maps.spectral_clip": one(spectral_maps.spectral_clip, x, 2.0, low=1.0),
        "norms.normalise": one(norms.normalise, x, "rows"),
        "norms.row_balanced": one(norms.row_balanced, x),
        "norms.per_block": one(norms.per_block, x, 4, 2),
        "norms.block_periodic": one(norms.block_periodic, x, 1, 2, rows=4, polar="jordan"),
        "updates.dion": one(updates.dion, x, 2 * x + 1, convert(gaussian(size, 4))),
    }
    return found


def on_host() -> dict[str, Call]:
    """Calls of functions that take NumPy's arrays or none."""
    x = gaussian(30, 20)
    one = functools.partial
    tuned = design.greedy(1e-2, [5, 5])
    cubic = Schedule(steps=[(1.5, -0.5)] * 2, lower=0.1, target="power(0.3)")
    return {
        "measure.schedule": one(
            polarlib.measure, x, "polar_express", precision="bfloat16", steps=3
        ),
        "measure.method": one(polarlib.measure, x, "qdwh"),
        "measure.mpmath": one(polarlib.measure, x[:4, :4], "jordan", reference="mpmath"),
        "communication": one(polarlib.communication, (64, 16), layout="rows", devices=3),
        "default_schedule": one(polarlib.default_schedule, "bfloat16", matmuls=4),
        "schedule": one(polarlib.schedule, "jordan", 7),
        "schedules": polarlib.schedules,
        "methods": polarlib.methods,
        "certify": cubic.certify,
        "design.minimax": one(design.minimax, 7, 1e-3),
        **{f"design.best.{d}": one(design.best, 5, 0.1, digits=d) for d in (20, 50, 90)},
        "design.greedy": one(design.greedy, 1e-3, [3, 5, 7], cushion=0.02),
        "design.budget": one(design.budget, 1e-2, 8),
        "design.band": one(design.band, 3, 0.1),
        "design.for_precision": one(design.for_precision, "float16", 1e-2, steps=3),
        "design.tune": one(design.tune, "slope", tuned, bounds=(0.2, 1.8), starts=2),
        "design.clip": one(design.clip, 2.0, [3, 3]),
        "design.inverse_root": one(design.inverse_root, 3, 1e-2, [4, 4]),
        **{f"design.zolotarev.{r}": one(design.zolotarev, r, 10.0**-r) for r in (1, 4, 9)},
        "design.restarts": one(design.restarts, tuned, "bfloat16"),
        "testing": one(testing.with_singular_values, [3.0, 1.0], 6, 2),
    }


def bits(value: Any) -> Any:
    """What makes two results the same: types, shapes and bits, NaN and the sign of 0 included.

    Plain data that can be compared, hashed by its repr and sent to another process.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: bits(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return type(value).__name__, tuple(sorted(parts.items()))
    if isinstance(value, tuple | list):
        return type(value).__name__, tuple(map(bits, value))
    if isinstance(value, dict):
        return "dict", tuple((bits(k), bits(v)) for k, v in value.items())
    if isinstance(value, float):
        return type(value).__name__, struct.pack("<d", value)
    if isinstance(value, BaseException):
        return type(value).__name__, bits(value.args)
    if hasattr(value, "_mpf_"):
        return "mpf", value.context.prec, tuple(map(int, value._mpf_))
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return type(value).__name__, str(value.dtype), tuple(value.shape), _bytes(value)
    return type(value).__name__, repr(value)


def _bytes(x: Any) -> bytes:
    if hasattr(x, "detach"):
        x = x.detach().resolve_conj()
        x = (x.float() if x.element_size() == 2 else x).numpy()  # NumPy has no bfloat16
    return np.ascontiguousarray(np.asarray(x)).tobytes()
