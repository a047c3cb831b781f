"""Peak memory with NumPy, storage that may be overwritten, bounded caches, and imports."""

from __future__ import annotations

import functools
import gc
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from conftest import module_of

import polarlib
from polarlib import Schedule, Status, design, orthogonalize, polar
from polarlib._schedules.images import multiple_precision
from polarlib.arrays.ops import Ops, ops_of
from polarlib.engine.evidence import PART
from polarlib.uses.nearest import nearest_orthogonal

ROOT = Path(__file__).resolve().parent.parent
# Lists, frames, and tiles of a fixed size count more on the small matrices of tests.
SLACK = 1.03
TALL, WIDE, SQUARE = (1152, 144), (144, 1152), (256, 256)


def sample(shape, dtype="float64", condition=None, order="C"):
    rng = np.random.default_rng(3)
    a = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        a = a + 1j * rng.standard_normal(shape)
    if condition is not None:
        u, s, vh = np.linalg.svd(a, full_matrices=False)
        a = (u * np.geomspace(1, 1 / condition, s.shape[-1])) @ vh
    return np.asarray(a.astype(dtype), order=order)


def peak(f, *arrays):
    """Peak of traced memory during the second call, in bytes, and the result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        f(*(a.copy(order="K") for a in arrays))  # tables are made once
        arrays = tuple(a.copy(order="K") for a in arrays)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            result = f(*arrays)
            return tracemalloc.get_traced_memory()[1] - before, result
        finally:
            tracemalloc.stop()


def scipys_peak(a, side="right"):
    """Peak of scipy.linalg.polar; its SVD by hand, whose work tracemalloc misses from 1.18 on."""
    (m, n), k = a.shape, min(a.shape)
    query = scipy.linalg.get_lapack_funcs("gesdd_lwork", dtype=a.dtype)
    work = int(query(m, n, compute_uv=True, full_matrices=False)[0].real)
    by_svd = (m * n + m * k + k * n + work) * a.itemsize  # a copy of A, U, V^H and the work space
    if a.dtype.kind == "c":  # zgesdd has a real one as well
        by_svd += max(5 * k * (k + 1), 2 * max(m, n) * k + k * (2 * k + 1)) * a.real.itemsize
    return max(by_svd, peak(functools.partial(scipy.linalg.polar, side=side), a)[0])


CASES = [
    *[(shape, "float64", c) for shape in (TALL, WIDE, SQUARE) for c in (None, 1e2, 1e8, 1e15)],
    *[
        (shape, dtype, None)
        for shape in (TALL, WIDE, SQUARE)
        for dtype in ("float32", "complex128")
    ],
]


@pytest.mark.parametrize(("shape", "dtype", "condition"), CASES)
def test_polar_needs_no_more_than_scipy(shape, dtype, condition):
    a = sample(shape, dtype, condition)
    for side in ("right", "left") if dtype == "float64" and condition is None else ("right",):
        limit = SLACK * scipys_peak(a, side)
        used, (u, h) = peak(functools.partial(polar, side=side), a)
        assert used <= limit, (side, used / a.nbytes, limit / a.nbytes)
        assert np.array_equal(h, h.conj().T)
        product = u @ h if side == "right" else h @ u
        eps = np.finfo(a.dtype).eps
        assert np.linalg.norm(product - a) <= 100 * eps * np.linalg.norm(a)


@pytest.mark.parametrize("method", ["svd", "qdwh", "newton", "zolotarev"])
@pytest.mark.parametrize("shape", [TALL, WIDE, SQUARE], ids=str)
@pytest.mark.parametrize("condition", [None, 1e8])
@pytest.mark.thinned(2)
def test_methods_need_no_more_than_scipy(method, shape, condition):
    a = sample(shape, condition=condition)
    limit = SLACK * scipys_peak(a)
    assert peak(functools.partial(polar, method=method), a)[0] <= limit
    if shape != WIDE or method == "svd":  # U alone: no large factor of SciPy's to compare with
        used = peak(functools.partial(nearest_orthogonal), a)[0]
        assert used <= limit


def test_stacks_are_worked_on_in_parts():
    a = sample((200, 48, 40))
    assert a.size > 5 * PART
    for method in ("auto", "svd", "qdwh", "newton", "zolotarev"):
        used, result = peak(functools.partial(polar, method=method), a)
        # The factors, 1 + 40/48 inputs, and what a part needs.
        assert used <= (1 + 40 / 48 + 10 * PART / a.size) * a.nbytes
        for i in (0, 33, 199):
            one = polar(a[i], method=method)
            assert np.allclose(result.unitary[i], one.unitary, atol=1e-12)
            assert np.allclose(result.hermitian[i], one.hermitian, atol=1e-11)
        assert result.status is Status.CONVERGED
        assert result.rank.tolist() == [40] * 200
    nested = polar(a.reshape(4, 50, 48, 40), method="svd")
    assert nested.orthogonality.shape == (4, 50)
    assert np.array_equal(nested.unitary.reshape(a.shape), polar(a, method="svd").unitary)


def test_one_singular_matrix_of_a_large_stack():
    a = sample((80, 48, 48))
    a[40] = 0
    result = polar(a, method="newton")
    assert result.status is Status.FELL_BACK
    assert result.rank.tolist() == [0 if i == 40 else 48 for i in range(80)]
    assert result.orthogonality.max() < 1e-13


# -- storage that may be overwritten -----------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128", "complex64"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.thinned(2)
def test_overwriting_saves_an_input(dtype, order, wide):
    shape, side = ((130, 3000), "left") if wide else ((3000, 130), "right")
    a = sample(shape, dtype, 10.0, order)
    usual, _ = peak(functools.partial(polar, side=side), a)
    used, result = peak(functools.partial(polar, side=side, overwrite_a=True), a)
    assert used <= usual - 0.9 * a.nbytes
    eps = np.finfo(a.dtype).eps
    u, h = result
    product = h @ u if wide else u @ h
    size = np.linalg.norm(a)
    error = np.linalg.norm(product - a) / size
    assert error <= 100 * eps
    # What the result says of itself is estimated from 8 vectors, and true.
    assert error / 3 <= result.backward_error <= 3 * error
    assert np.array_equal(h, h.conj().T)
    assert result.status is Status.CONVERGED
    reference = polar(a, side)
    assert np.allclose(u, reference.unitary, atol=1e3 * eps)
    assert result.rank == 130
    b = a.copy(order="K")
    assert polar(b, side, overwrite_a=True).unitary is b


@pytest.mark.parametrize("order", ["C", "F"])
def test_overwriting_leaves_hard_matrices_to_the_usual_way(order):
    for a in (
        sample((600, 20), condition=1e12, order=order),
        np.asarray(np.ones((600, 20)), order=order),
        np.zeros((600, 20), order=order),
        sample((600, 20), order=order) * 1e200,
        sample((20, 600), "complex128", 1e14, order=order),
    ):
        b = a.copy(order="K")
        expected, result = polar(a), polar(b, overwrite_a=True)
        assert result.unitary is b
        assert np.array_equal(result.unitary, expected.unitary)
        assert np.array_equal(result.hermitian, expected.hermitian)
        assert result.rank == expected.rank


def test_overwriting_refuses_what_is_not_finite_and_keeps_it():
    a = sample((600, 20))
    a[3, 4] = np.nan
    b = a.copy()
    with pytest.raises(ValueError, match="NaN or infinity"):
        polar(b, overwrite_a=True)
    assert np.array_equal(a, b, equal_nan=True)


def test_overwriting_reports_a_tolerance_that_is_missed():
    with pytest.warns(polarlib.ConvergenceWarning, match="tolerance 1.00e-30"):
        result = polar(sample((600, 20)), overwrite_a=True, rtol=1e-30)
    assert result.status is Status.NOT_CONVERGED
    assert not result.converged
    with pytest.raises(polarlib.ConvergenceWarning):
        polar(sample((600, 20)), overwrite_a=True, rtol=1e-30, throw=True)


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_out_takes_the_large_factor_as_it_is_formed(dtype):
    a = sample((50, 600), dtype)
    h = np.empty((600, 600), dtype)
    usual, expected = peak(polar, a)
    used, result = peak(lambda x: polar(x, out=(None, h)), a)
    assert used <= usual - 0.9 * h.nbytes
    assert result.hermitian is h
    assert np.array_equal(h, expected.hermitian)
    # Storage that is not contiguous, or that overlaps the matrix, is written at the end.
    wide = np.empty((600, 1200), dtype)
    for out in (wide[:, ::2], wide[:, :600], np.empty((600, 600), dtype, order="F")):
        result = polar(a, out=(None, out))
        assert result.hermitian is out
        assert np.allclose(out, expected.hermitian, atol=1e-3)
    wide[:50, :600] = a
    assert np.allclose(polar(wide[:50, :600], out=(None, wide[:, :600])).hermitian, h, atol=1e-3)


@pytest.mark.parametrize("form", ["plain", "gram"])
@pytest.mark.parametrize("shape", [(1500, 100), (100, 1500)], ids=str)
def test_out_saves_an_input(form, shape):
    a = sample(shape)
    apply = functools.partial(orthogonalize, form=form)
    usual, expected = peak(apply, a)
    out = np.empty_like(a)
    used, result = peak(lambda x: apply(x, out=out), a)
    assert result is out
    assert np.allclose(out, expected, atol=1e-12)
    assert used <= usual - 0.5 * a.nbytes
    if form == "plain":
        assert used <= usual - 0.95 * a.nbytes
    b = a.copy()
    assert apply(b, out=b) is b
    assert np.allclose(b, expected, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_out_in_other_layouts_and_overlaps(steps):
    a = sample((300, 80), "float32")
    expected = orthogonalize(a, steps=steps)
    storage = np.empty((301, 160), "float32")
    storage[:300, :80] = a
    for out in (
        np.empty((300, 80), "float32", order="F"),
        storage[1:, ::2],
        storage[1:301, :80],  # overlaps what is read
    ):
        given = storage[:300, :80] if out.base is storage else a
        given[...] = a
        kept = given.copy()
        assert orthogonalize(given, steps=steps, out=out) is out
        assert np.allclose(out, expected, atol=1e-5)
        if out.base is not storage:
            assert np.array_equal(given, kept)
    z = sample((80, 300), "complex64")
    out = np.empty_like(z)
    assert np.array_equal(orthogonalize(z, steps=steps, out=out), orthogonalize(z, steps=steps))


# -- the same bits in place ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128", "complex64"])
@pytest.mark.parametrize("shape", [(5, 5), (200, 200), (3, 60, 60)], ids=str)
def test_work_in_place_gives_the_same_bits(dtype, shape):
    z = sample(shape, dtype)
    ops = ops_of(z)
    kept = z.copy()
    expected = Ops.hermitian_part(ops, z)
    assert np.array_equal(ops.hermitian_part(z), expected)
    assert np.array_equal(z, kept)
    copied = z.copy()
    assert np.array_equal(ops.hermitian_part(copied, may_overwrite=True), expected)
    combined = Ops.combine(ops, (0.5, 1.0, -2.0), (z, kept, z))
    assert np.array_equal(ops.combine((0.5, 1.0, -2.0), (z, kept, z)), combined)
    assert np.array_equal(z, kept)


# -- caches ----------------------------------------------------------------------------------------

# Caches without a bound whose arguments come from a finite set.
FINITE = {
    "polarlib.design.cost_tables._svds_here": "float32 and float64",
    "polarlib.arrays.routines._routine": "names of routines of BLAS and LAPACK that are called",
    "polarlib.arrays.torch_settings.has_double": "devices of the machine",
    "polarlib.arrays.torch_settings.autocasts": "kinds of devices",
    "polarlib.arrays.ops._shared": "array libraries that are imported",
    "polarlib.arrays.ops._class_for": "array libraries that are imported",
    "polarlib.arrays.jax_ops._register": "classes of results",
    "polarlib.published._data": "files of the package",
}


def cached() -> dict[str, Any]:
    """Every function with a cache in the package's modules, by its full name."""
    found: dict[str, Any] = {}
    for module in pkgutil.walk_packages(polarlib.__path__, "polarlib."):
        if module.name.endswith("__main__"):
            continue
        try:
            loaded = importlib.import_module(module.name)
        except ImportError:  # an optional library is missing
            continue
        objects = list(vars(loaded).values())
        for kind in filter(inspect.isclass, list(objects)):
            objects += [getattr(v, "__func__", v) for v in vars(kind).values()]
        for thing in objects:
            if hasattr(thing, "cache_info") and thing.__module__.startswith("polarlib"):
                found[f"{thing.__module__}.{thing.__qualname__}"] = thing
    return found


def test_caches_of_what_users_give_are_bounded():
    functions = cached()
    assert len(functions) > 20
    unbounded = {name for name, f in functions.items() if f.cache_info().maxsize is None}
    with_arguments = {name for name in unbounded if inspect.signature(functions[name]).parameters}
    assert with_arguments == FINITE.keys() & functions.keys()


def test_no_module_collects_in_a_dictionary():
    """A dictionary of a module that calls fill would be a cache that nothing bounds."""

    def sizes() -> dict[str, int]:
        return {
            f"{name}.{key}": len(value)
            for name, module in list(sys.modules.items())
            if name.partition(".")[0] == "polarlib" and module is not None
            for key, value in vars(module).items()
            if isinstance(value, dict | list | set) and not key.startswith("__")
        }

    orthogonalize(sample((20, 7)))
    polar(sample((20, 7)))
    before = sizes()
    for n in range(2, 9):
        orthogonalize(sample((20, n)))
        polar(sample((20, n)))
        multiple_precision(60 + n)
    assert sizes() == before


@pytest.mark.slow
def test_a_thousand_different_calls_do_not_grow():
    def call(k: int) -> None:
        a = np.eye(3 + k // 30, 2 + k % 30)
        orthogonalize(a, schedule=Schedule([(1.5 + k * 1e-5, -0.5)] * 3, normalisation="frobenius"))
        polar(a)
        multiple_precision(20 + k)
        design.greedy(0.3 + k * 1e-4, [3])

    for k in range(400):
        call(k)
    tracemalloc.start()
    try:
        for k in range(400, 700):
            call(k)
        gc.collect()  # contexts of mpmath are cycles
        first = tracemalloc.get_traced_memory()[0]
        for k in range(700, 1400):
            call(k)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - first < 1 << 20
    finally:
        tracemalloc.stop()


# -- imports ---------------------------------------------------------------------------------------

LATER = (
    *("matplotlib", "mpmath", "flint", "typer", "rich", "jinja2", "threadpoolctl", "tomllib"),
    "unicodedata",
    *("scipy.optimize", "scipy.stats", "scipy.sparse", "scipy.special", "torch", "jax", "dask"),
)


def loaded(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_brings_nothing_that_is_not_needed_yet():
    base = loaded("import numpy, scipy.linalg, array_api_compat.numpy")
    more = loaded("import polarlib") - base
    assert {name for name in more if name.split(".")[0] in LATER or name in LATER} == set()
    # Beyond the package itself and what it needs: some modules of the standard library, and more
    # of them where an older NumPy or SciPy has not imported them.
    others = {name.partition(".")[0] for name in more} - {"polarlib"}
    assert others <= set(sys.stdlib_module_names)
    assert len(others) <= 20


def test_modules_are_attributes_without_an_import():
    names = ("files", "norms", "spectral_maps", "steps", "testing")
    tests = "; ".join(f"assert polarlib.{n}.__name__ == 'polarlib.{n}'" for n in names)
    subprocess.run([sys.executable, "-c", f"import polarlib; {tests}"], check=True)


# -- the page --------------------------------------------------------------------------------------


def test_page_is_that_of_the_data(monkeypatch):
    script = ROOT / "benchmarks" / "memory.py"
    data, text = ROOT / "docs" / "data" / "memory.json", ROOT / "docs" / "evidence" / "memory.md"
    if not script.exists():
        pytest.skip("the benchmarks are not installed")
    monkeypatch.syspath_prepend(str(script.parent))
    module = module_of(script)
    figures = json.loads(data.read_text(encoding="utf-8"))
    assert module.page(figures) == text.read_text(encoding="utf-8")
    guide = module.GUIDE.read_text(encoding="utf-8")
    assert module.short(figures) in guide
    guide = " ".join(guide.split())
    # The numbers of its sentences.
    polar, others = figures["after"]["polar"], figures["after"]["others"]
    rows = [(row, value) for row in polar.values() for m, value in row.items() if m != "SciPy"]
    above = [(row["SciPy"], value) for row, value in rows if value > 1.02 * row["SciPy"]]
    assert f"Of its {len(rows)} rows, {len(above)} exceed" in guide
    tall, least = polar["2048x256 right float64 random"], others["polar(overwrite_a=True)"]
    assert f"falls from {tall['auto']:.2f} to {least:.2f} inputs" in guide
    plain, out = (others[f"orthogonalize, plain form{n}"] for n in ("", ", out"))
    assert f"falls from {plain:.2f} to {out:.2f} inputs" in guide
