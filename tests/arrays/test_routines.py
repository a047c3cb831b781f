"""Routines of BLAS and LAPACK by their addresses, from each library that may have them."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import scipy.linalg

import polarlib
from polarlib import testing
from polarlib.arrays import blas, routines
from polarlib.arrays.ops import ops_of

KINDS = "fdFD"
SHAPES = ((1, 1), (5, 3), (3, 5), (40, 40), (130, 70), (1, 9), (9, 1))


def missing(*_):
    raise OSError("no such library")


@pytest.fixture(params=("numpy", "scipy"))
def source(request, monkeypatch):
    """One of the two sources, the other one hidden."""
    caches = routines.source, routines._routine, routines._integer
    for cache in caches:
        cache.cache_clear()
    if request.param == "scipy":
        monkeypatch.setattr(routines, "_numpys", missing)
    else:
        monkeypatch.setattr(routines, "_scipys", missing)
    found = routines.source()
    if found is None:
        for cache in caches:
            cache.cache_clear()
        pytest.skip(f"{request.param} has no routines here")
    assert found.name == request.param
    yield found
    for cache in caches:
        cache.cache_clear()


def matrix(m: int, n: int, kind: str, seed: int = 0, order: str = "F") -> np.ndarray:
    rng = np.random.default_rng([m, n, seed])
    a = rng.standard_normal((m, n))
    if kind in "FD":
        a = a + 1j * rng.standard_normal((m, n))
    return np.array(a, kind, order=order)


def inner(m: int, n: int, kind: str, seed: int = 0) -> np.ndarray:
    """The same as a block of a larger column-major matrix."""
    whole = np.full((m + 3, n + 2), np.nan, kind, order="F")
    whole[2 : m + 2, 1 : n + 1] = matrix(m, n, kind, seed)
    return whole[2 : m + 2, 1 : n + 1]


def op(a: np.ndarray, letter: str) -> np.ndarray:
    return {"N": a, "T": a.T, "C": a.conj().T}[letter]


def near(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    eps = np.finfo(found.dtype).eps
    np.testing.assert_allclose(found, expected, rtol=0, atol=200 * eps * scale)


def wide(a: np.ndarray) -> np.ndarray:
    return a.astype(np.result_type(a.dtype, np.float64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [matrix, inner])
def test_products(kind, make, source):
    for m, n in SHAPES:
        for left in "NTC":
            for right in "NTC":
                a = make(*((m, n) if left == "N" else (n, m)), kind)
                b = make(*((n, 4) if right == "N" else (4, n)), kind, 1)
                c = make(m, 4, kind, 2)
                expected = 0.5 * op(wide(a), left) @ op(wide(b), right) - 2.0 * wide(c)
                routines.gemm(0.5, a, b, -2.0, c, left=left, right=right)
                near(c, expected.astype(kind))
        x, z = make(m, n, kind), make(n, n, kind, 3)
        z[...] = z + z.conj().T
        expected = (wide(x) @ wide(z)).astype(kind)
        upper = np.array(np.triu(z), order="F")
        out = make(m, n, kind, 4)
        near(routines.hemm(x, upper, 0.0, out), expected)
        near(routines.hemm(x, upper, 1.0, out), 2 * expected)
        v = matrix(n, 1, kind, 5)[:, 0]
        near(routines.hemv(upper, v), (wide(z) @ wide(v)).astype(kind))
        for trans, size in (("C", n), ("N", m)):
            c = np.zeros((size, size), kind, order="F")
            whole = wide(x).conj().T @ wide(x) if trans == "C" else wide(x) @ wide(x).conj().T
            near(routines.herk(-3.0, x, 0.0, c, trans=trans), np.triu(-3 * whole).astype(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [matrix, inner])
def test_triangles(kind, make, source):
    for n in (1, 2, 7, 65):
        r = make(n, n, kind)
        r += r.dtype.type(0) + (3 * n * np.eye(n)).astype(kind)
        for uplo, part in (("U", np.triu), ("L", np.tril)):
            for trans in "NTC":
                t = op(part(wide(r)), trans)
                b, c = make(n, 3, kind, 1), make(3, n, kind, 2)
                expected = (2.0 * t @ wide(b)).astype(kind), (2.0 * wide(c) @ t).astype(kind)
                kept = b.copy(), c.copy()
                near(routines.trmm(2.0, r, b, uplo=uplo, trans=trans), expected[0])
                near(routines.trmm(2.0, r, c, side="R", uplo=uplo, trans=trans), expected[1])
                near(routines.trsm(0.5, r, b, uplo=uplo, trans=trans), kept[0])
                near(routines.trsm(0.5, r, c, side="R", uplo=uplo, trans=trans), kept[1])
        v = matrix(n, 1, kind, 3)[:, 0]
        kept = v.copy()
        t = np.triu(wide(r))
        near(routines.trsv(r, (t @ v).astype(kind)), v)
        near(routines.trsv(r, (t.conj().T @ v).astype(kind), trans="C"), v)
        assert np.array_equal(v, kept)
        inverse = np.array(np.triu(r), order="F")
        assert routines.trtri(inverse)
        near(np.triu(inverse), np.linalg.inv(t).astype(kind))
        inverse[n // 2, n // 2] = 0
        assert not routines.trtri(inverse)
        y = kept.copy()
        routines.axpy(-2.0, v, y)
        near(y, kept - v * v.dtype.type(2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [int, float, np.float64, np.float32])
def test_numbers_of_any_type(kind, number, source):
    """An integer is not taken for one of the routine's integers."""
    a, r = matrix(6, 6, kind), matrix(6, 6, kind, 1) + np.eye(6, dtype=kind) * 9
    r = np.array(np.triu(r), order="F")
    two, one = number(2), number(1)
    near(routines.gemm(two, a, a, one, a.copy(order="F")), (2 * wide(a) @ wide(a) + a).astype(kind))
    near(routines.trsm(two, r, routines.trmm(two, r, a.copy(order="F"))), a * a.dtype.type(4))
    z = np.array(np.triu(a + a.conj().T), order="F")
    expected = a + wide(a) @ (wide(a) + wide(a).conj().T)
    near(routines.hemm(a, z, one, a.copy(order="F")), expected.astype(kind))
    c = routines.herk(two, a, number(0), np.zeros((6, 6), kind, order="F"))
    near(c, np.triu(2 * wide(a).conj().T @ wide(a)).astype(kind))
    v = a[:, 0].copy()
    routines.axpy(two, a[:, 1].copy(), v)
    near(v, a[:, 0] + 2 * a[:, 1])


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("kind", KINDS)
def test_factorisations(kind, order, source):
    eps = np.finfo(kind).eps
    for m, n in SHAPES:
        a = matrix(m, n, kind, order=order)
        kept, k = a.copy(), min(m, n)
        u, s, vh = routines.svd(a)
        assert (u.shape, vh.shape) == ((m, k), (k, n))
        assert u.dtype == vh.dtype == a.dtype
        near((u * s) @ vh, a)
        near(s, scipy.linalg.svdvals(wide(a)).astype(s.dtype))
        for q in (u, vh.conj().T):
            assert np.abs(q.conj().T @ q - np.eye(k)).max() < 20 * eps
        q, r = routines.qr(a)
        near(q @ r, a)
        assert q.shape == (m, k)
        assert np.array_equal(r, np.triu(r))
        assert np.abs(q.conj().T @ q - np.eye(k)).max() < 20 * eps
        assert np.array_equal(a, kept)
        if m != n:
            continue
        z = np.array(a @ a.conj().T + np.eye(n, dtype=kind), order=order)
        factor = np.array(z, order="F")
        assert routines.potrf(factor)
        r = np.triu(factor)
        near(r.conj().T @ r, z)
        assert not routines.potrf(np.array(-z, order="F"))
        near(routines.inverse(z) @ z, np.eye(n, dtype=kind))
        assert routines.inverse(np.zeros_like(z)) is None
        assert (
            blas.count_eigenvalues_above(np.array(z - z[0, 0] * np.eye(n), kind, order="F"), 0.5)
            >= 0
        )


@pytest.mark.parametrize("kind", KINDS)
def test_svd_by_qr_iteration_where_divide_and_conquer_fails(kind, monkeypatch, source):
    a, call = matrix(12, 7, kind), routines.call
    names = []

    def failing(name, kind, *arguments):
        names.append(name)
        call(name, kind, *arguments)
        if name in refused:
            arguments[-1][0] = 1

    monkeypatch.setattr(routines, "call", failing)
    refused = {"gesdd"}
    u, s, vh = routines.svd(a)
    near((u * s) @ vh, a)
    assert set(names) == {"gesdd", "gesvd"}
    refused = {"gesdd", "gesvd"}
    assert routines.svd(a) is None
    assert all(np.isnan(x).all() for x in ops_of(a).svd(a))


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_polar_from_either_source(dtype, source):
    for m, n, low in ((150, 150, 1e-3), (150, 150, 1e-12), (700, 140, 1e-3), (140, 300, 1e-2)):
        low = max(low, 1e-5) if dtype in ("float32", "complex64") else low
        s = np.geomspace(1, low, min(m, n))
        a = testing.with_singular_values(s, m, n, dtype=dtype)
        for method in ("auto", "hybrid", "qdwh", "structured"):
            u, h = polarlib.polar(a, method=method)
            testing.assert_polar(a, u, h)


def test_no_routines_at_all(monkeypatch):
    for cache in (routines.source, routines._routine):
        cache.cache_clear()
    monkeypatch.setattr(routines, "_numpys", missing)
    monkeypatch.setattr(routines, "_scipys", missing)
    try:
        assert routines.source() is None
        assert not blas.computes_in(np.dtype("f8"))
        a = matrix(150, 150, "d")
        assert ops_of(a).kernels(a) is None
        u, h = polarlib.polar(a)
        testing.assert_polar(a, u, h)
        with pytest.raises(LookupError, match="dgemm"):
            routines.gemm(1.0, a, a, 0.0, a.copy(order="F"))
    finally:
        for cache in (routines.source, routines._routine):
            cache.cache_clear()


def test_what_programs_use_around_is_the_library_that_computes():
    """Of NumPy's wheels: the routines wake the threads of NumPy's products, no others."""
    found = routines.source()
    if found is None or found.name != "numpy":
        pytest.skip("NumPy's own library is not used here")
    threadpoolctl = pytest.importorskip("threadpoolctl")
    paths = [p["filepath"] for p in threadpoolctl.threadpool_info() if "numpy" in p["filepath"]]
    assert paths
    address = found.address("dgemm")
    owned = [p for p in paths if _holds(p, address)]
    assert len(owned) == 1


def _holds(path: str, address: int) -> bool:
    library = ctypes.CDLL(path)
    name = next(
        p.format("dgemm") for p in routines._OPENBLAS if hasattr(library, p.format("dgemm"))
    )
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value == address


def test_threads_may_call_at_once():
    a = matrix(200, 200, "d")
    expected = polarlib.polar(a).unitary
    found, errors = [], []

    def work():
        try:
            found.extend(polarlib.polar(a).unitary for _ in range(5))
        except Exception as error:  # to be shown by the test, not by the thread
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert (errors, len(found)) == ([], 20)
    for u in found:
        np.testing.assert_allclose(u, expected, atol=1e-13)


# -- the number of threads ------------------------------------------------------------------------


@pytest.fixture
def two_threads():
    """NumPy's library set to two threads, and how to read the number."""
    found = routines.source()
    if found is None or found.threads is None:
        pytest.skip("NumPy's own library is not used here")
    get, put = found.threads
    before = get()
    put(2)
    if get() != 2:
        put(before)
        pytest.skip("the library was built for one thread")
    yield get
    put(before)


def test_one_thread_is_restored(two_threads):
    with routines.one_thread:
        assert two_threads() == 1
        with routines.one_thread:
            assert two_threads() == 1
        assert two_threads() == 1
    assert two_threads() == 2
    with pytest.raises(ZeroDivisionError), routines.one_thread:
        raise ZeroDivisionError
    assert two_threads() == 2


def test_the_last_thread_of_python_restores_the_number(two_threads):
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with routines.one_thread:
            inside.set()
            leave.wait(10)

    other = threading.Thread(target=stay)
    other.start()
    assert inside.wait(10)
    with routines.one_thread:
        assert two_threads() == 1
    assert two_threads() == 1  # the other one is still inside
    leave.set()
    other.join()
    assert two_threads() == 2


@pytest.mark.parametrize(("n", "threads"), [(16, 2), (64, 1), (256, 1), (512, 2)])
def test_small_matrices_are_decomposed_by_one_thread(n, threads, two_threads, monkeypatch):
    """Also where it fails; the number is what it was afterwards."""
    seen, call = set(), routines.call

    def watched(*arguments):
        seen.add(two_threads())
        return call(*arguments)

    monkeypatch.setattr(routines, "call", watched)
    a = matrix(n, n, "d")
    polarlib.polar(a, method="hybrid")
    assert seen == {threads}
    assert two_threads() == 2
    a[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        polarlib.polar(a)
    assert two_threads() == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("where", ["other", "same"])
def test_number_of_threads_after_fork(where):
    """A child that another thread's call would have left with one thread, or that forks in one."""
    code = f"""
import os, threading
from polarlib.arrays import routines
found = routines.source()
if found is None or found.threads is None:
    print("skip")
    raise SystemExit
get, put = found.threads
put(2)
inside, leave = threading.Event(), threading.Event()
def stay():
    with routines.one_thread:
        inside.set()
        leave.wait(10)
def fork():
    child = os.fork()
    if child == 0:
        with routines.one_thread:
            pass
        os._exit(get())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
if {where!r} == "other":
    other = threading.Thread(target=stay)
    other.start()
    inside.wait()
    print(fork(), get())
    leave.set()
    other.join()
else:
    with routines.one_thread:
        print(fork(), get())
print(get())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    if done.stdout.strip() == "skip":
        pytest.skip("NumPy's own library is not used here")
    assert done.stdout.split() == (["2", "1", "2"] if where == "other" else ["1", "1", "2"])
