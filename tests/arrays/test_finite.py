"""NaN and infinity through the public functions, on every array library.

A function raises ValueError that says so, or its result is not finite: never a finite number.
Matrices of 72 x 72, since XLA's maximum on a CPU loses NaN from 4096 entries on.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from conftest import library
from standin import cupy_standin
from test_ops import OnCupy

import polarlib
from polarlib import norms, updates
from polarlib.norms import spectral_maps
from polarlib.norms.low_rank import power_step, range_lmo

NAMES = ("numpy", "torch", "jax", "dask", "array_api_strict", "cupy")
N = 72
INF = math.inf

# These look at their matrix, on a device too.
LOOKING = {
    "polar": lambda x: polarlib.polar(x)[0],
    "polar, svd": lambda x: polarlib.polar(x, method="svd")[1],
    "nearest_orthogonal": polarlib.nearest_orthogonal,
    "procrustes": lambda x: polarlib.procrustes(x, x),
    "top_singular": lambda x: polarlib.top_singular(x, 1)[1],
    "sqrtm_psd": polarlib.sqrtm_psd,
    "sqrtm": polarlib.sqrtm,
    "signm": polarlib.signm,
    "inverse_root": lambda x: polarlib.inverse_root(x, 2),
}
# These need not, where looking would stall a device.
OTHERS = {
    "polar, unchecked": lambda x: polarlib.polar(x, method="svd", check_finite=False)[0],
    "orthogonalize": polarlib.orthogonalize,
    "orthogonalize, plain": lambda x: polarlib.orthogonalize(x, form="plain"),
    "orthogonalize, halley": lambda x: polarlib.orthogonalize(x, schedule="halley"),
    "inverse_root, condition": lambda x: polarlib.inverse_root(x, 2, condition=100.0),
    "spectral_power": lambda x: spectral_maps.spectral_power(x, 0.5),
    "spectral_clip": lambda x: spectral_maps.spectral_clip(x, 0.5),
    "polargrad": spectral_maps.polargrad,
    "normalise": lambda x: norms.normalise(x, "rows"),
    "row_balanced": norms.row_balanced,
    "range_lmo": lambda x: range_lmo(x, x[:, :2] * 0 + 1),
    "power_step": lambda x: power_step(x, x[:, :2] * 0 + 1)[0],
    "scg_step": lambda x: updates.scg_step(x, x, norms.lp(INF).lmo, step=0.1),
} | {
    f"{n}.{method}": getattr(n, method)
    for n in (
        norms.spectral(),
        norms.nuclear(),
        norms.frobenius(),
        norms.lp(INF),
        norms.lp(1),
        norms.induced(1, 2),
        norms.ky_fan(2),
    )
    for method in ("__call__", "dual_norm", "lmo", "sharp")
}
DIFFERENT = {"nearest_rotation": polarlib.nearest_rotation}  # real matrices only


@pytest.fixture(params=NAMES)
def lib(request) -> Any:
    if request.param == "cupy":
        with cupy_standin.installed() as cupy:
            yield OnCupy(cupy)
    else:
        yield library(request.param)


def spoilt(shape, dtype, value, place):
    """Well-conditioned Hermitian matrices with one entry that is not finite."""
    a = np.zeros(shape, dtype) + 3 * np.eye(*shape[-2:], dtype=dtype)
    a += 1.0 / shape[-1]
    a[place] = complex(1, value) if np.dtype(dtype).kind == "c" else value
    return a


def outcome(f, x, lib):
    """What a function says of a matrix: "refused", "not finite", or "finite"."""
    try:
        with np.errstate(all="ignore"):
            y = lib.to_numpy(f(x))
    except ValueError as error:
        return "refused" if "NaN or infinity" in str(error) else str(error)
    return "finite" if np.isfinite(np.asarray(y)).all() else "not finite"


@pytest.mark.thinned(4)
@pytest.mark.filterwarnings("ignore::polarlib.ConvergenceWarning")
@pytest.mark.parametrize("value", [math.nan, -INF])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_nothing_finite_comes_of_nan(lib, dtype, value):
    """In complex matrices it is in the imaginary part alone."""
    if value == -INF and getattr(lib, "name", "") == "dask":
        pytest.skip("slow, and the same as NumPy's blocks")
    x = lib.asarray(spoilt((N, N), dtype, value, (N - 1, 2)), dtype)
    functions = LOOKING | OTHERS | (DIFFERENT if dtype == "float32" else {})
    found = {name: outcome(f, x, lib) for name, f in functions.items()}
    assert set(found.values()) <= {"refused", "not finite"}, found
    assert {name for name in LOOKING if found[name] != "refused"} == set()


@pytest.mark.parametrize("shape", [(1, 1), (3, 40, 40), (64, 64), (1000, 1000)])
def test_every_place(lib, shape):
    """First, middle and last entry, from one to a million; of a stack in one matrix only."""
    last = tuple(n - 1 for n in shape)
    for place in {(0,) * len(shape), tuple(n // 2 for n in shape), last}:
        x = lib.asarray(spoilt(shape, "float32", math.nan, place), "float32")
        for name in ("polar", "nearest_orthogonal", "procrustes", "sqrtm_psd", "inverse_root"):
            assert outcome(LOOKING[name], x, lib) == "refused", (name, place)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_measure(lib, dtype):
    x = lib.asarray(spoilt((N, N), dtype, math.nan, (5, 70)), dtype)
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 of 5184 .*\(5, 70\)"):
        polarlib.measure(x, "polar_express")


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_polar_tall(dtype):
    """NaN in the imaginary part alone, in one block of rows."""
    da = pytest.importorskip("dask.array")
    a = np.ones((400, 3), dtype)
    a[350, 1] = complex(0, math.nan) if dtype == "complex128" else math.nan
    x = da.from_array(a, chunks=(100, 3))
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 300"):
        polarlib.polar_tall(x)
