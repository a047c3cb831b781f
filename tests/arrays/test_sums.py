"""Sums over long columns: products, norms and what is made of them, as exact as short ones.

A BLAS that sums in one run loses up to 1 % of a sum of 1e6 equal float32 entries, and an error
estimate that is made of the same sums does not see it.
"""

import math
import warnings

import numpy as np
import pytest
from conftest import Library, _module, library

import polarlib
from polarlib._stages.options import default_tolerance
from polarlib.arrays.ops import ops_of

# Epsilons that a sum may be off, however long: blocks of some hundreds are summed in one run. A
# product is the library's own, and OpenBLAS 0.3.34 (NumPy 2.5) has longer blocks: 96 were seen.
SUM, PRODUCT = 60, 120
EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "complex64": 2.0**-23}


class Dask(Library):
    """NumPy's arrays in one chunk of dask.array's."""

    def asarray(self, a, dtype=None):
        return _module("dask.array").from_array(np.array(a), chunks=(-1,) * np.ndim(a))

    def to_numpy(self, x):
        return np.asarray(x.compute())


def of_name(name):
    if name == "dask":
        pytest.importorskip("dask.array")
        return Dask(name)
    return library(name)


LIBRARIES = ("numpy", "array_api_strict", "torch", "jax", "dask")


@pytest.fixture(params=LIBRARIES)
def lib(request):
    return of_name(request.param)


def equal(shape, dtype, value=0.1):
    """Equal entries, for which rounding of a running sum goes one way for long."""
    entry = np.asarray(value * (1 + 1j) if dtype.startswith("complex") else value, dtype)
    return np.full(shape, entry), float(abs(entry.astype("complex128")) ** 2)


@pytest.mark.parametrize("value", [0.1, 0.7])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize("shape", [(100_000, 1), (100_000, 3), (2, 40_000, 2), (60_000, 20)])
def test_products_and_norms(lib, shape, dtype, value):
    a, square = equal(shape, dtype, value)
    x = lib.asarray(a)
    ops, m = ops_of(x), shape[-2]
    exact, tol = m * square, PRODUCT * EPS[dtype]
    gram = lib.to_numpy(ops.gram(x)).astype(complex)
    assert np.abs(gram - exact).max() <= tol * exact
    # From the other side, and with a second factor that is another array.
    product = lib.to_numpy(ops.matmul(ops.adjoint(x), x * 1.0)).astype(complex)
    assert np.abs(product - exact).max() <= tol * exact
    tol = SUM * EPS[dtype]
    norm = lib.to_numpy(ops.frobenius(x)).astype(float)
    assert np.abs(norm - math.sqrt(exact * shape[-1])).max() <= tol * math.sqrt(exact * shape[-1])


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("shape", [(2_000, 2_000), (20_000, 520), (1_000_000, 1)])
def test_norms_of_large_matrices(name, shape):
    lib = of_name(name)
    a, square = equal(shape, "float32")
    for x in (lib.asarray(a), ops_of(lib.asarray(a)).adjoint(lib.asarray(a))):
        norm = float(lib.to_numpy(ops_of(x).frobenius(x)).ravel()[0])
        exact = math.sqrt(math.prod(shape) * square)
        assert abs(norm - exact) <= SUM * EPS["float32"] * exact


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_gram_matrices_of_many_columns(name):
    lib = of_name(name)
    a, square = equal((20_000, 520), "float32")
    x = lib.asarray(a)
    gram = lib.to_numpy(ops_of(x).gram(x)).astype(float)
    assert np.abs(gram - 20_000 * square).max() <= SUM * EPS["float32"] * 20_000 * square
    if name == "numpy":
        assert np.array_equal(gram, gram.T)


def long_matrix(m, n, dtype="float32"):
    """Entries of one sign, far from powers of two, and well-conditioned columns."""
    rng = np.random.default_rng(m + n)
    a = np.full((m, n), 0.1) if n == 1 else 0.1 + 0.05 * rng.standard_normal((m, n))
    return a.astype(dtype)


def exact_factor(a):
    u, _, vh = np.linalg.svd(a.astype(float), full_matrices=False)
    return u @ vh


# Dask takes minutes for the SVD of the largest, and JAX compiles for every shape.
LONG = [
    (name, shape)
    for name in LIBRARIES
    for shape in [(100_000, 1), (1_000_000, 1), (100_000, 3), (300_000, 16)]
    if name in ("numpy", "torch") or shape == (100_000, 3)
]


@pytest.mark.parametrize(("name", "shape"), LONG)
def test_factors_of_long_columns(name, shape):
    lib = of_name(name)
    a = long_matrix(*shape)
    wanted = exact_factor(a)
    n = shape[1]
    tol = default_tolerance(shape, "float32")
    assert tol == 100 * EPS["float32"]
    for side in ("right", "left")[: 1 if n > 3 else 2]:
        x = lib.asarray(a if side == "right" else a.T)
        with warnings.catch_warnings():
            warnings.simplefilter("error", polarlib.ConvergenceWarning)
            result = polarlib.polar(x, side=side)
            alone = polarlib.nearest_orthogonal(x)
            q = polarlib.orthogonalize(x)
        assert result.converged
        for u in (result.unitary, alone):
            u = lib.to_numpy(u).astype(float)
            u = u if side == "right" else u.T
            assert np.linalg.norm(u.T @ u - np.eye(n)) <= tol * math.sqrt(n)
            # A backward error of the tolerance, at condition numbers of ten.
            assert np.linalg.norm(u - wanted) <= 20 * tol * math.sqrt(n)
        singular = np.linalg.svd(lib.to_numpy(q).astype(float), compute_uv=False)
        assert singular.max() < 1.1
        assert singular.min() > 0.7


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits(torch, dtype):
    for shape in [(100_000, 1), (100_000, 3)]:
        x = torch.tensor(long_matrix(*shape)).to(getattr(torch, dtype))
        norm = float(ops_of(x).frobenius(x))
        assert abs(norm / float(torch.linalg.norm(x.double())) - 1) <= SUM * EPS["float32"]
        singular = torch.linalg.svdvals(polarlib.orthogonalize(x).double())
        assert 0.7 < float(singular.min()) <= float(singular.max()) < 1.2
        u = polarlib.nearest_orthogonal(x)
        wanted = torch.tensor(exact_factor(x.double().numpy()))
        assert float((u.double() - wanted).norm()) <= 2.0**-8 * math.sqrt(shape[1])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_procrustes_and_derivatives_of_many_points(torch, dtype):
    a = torch.tensor(long_matrix(100_000, 3)).to(getattr(torch, dtype))
    b = torch.flip(a, (1,)) + 0.01
    c = a.double().mT @ b.double()
    u, _, vh = torch.linalg.svd(c)
    q = polarlib.procrustes(a, b)
    tol = default_tolerance((3, 3), dtype)
    assert float((q.double() - u @ vh).abs().max()) <= 50 * tol


NORMS = {
    "nuclear": polarlib.norms.nuclear(),
    "spectral": polarlib.norms.spectral(),
    "lp": polarlib.norms.lp(3),
    "columns": polarlib.norms.induced(1, 1),
    "rows": polarlib.norms.induced(math.inf, math.inf),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("library_name", ["numpy", "torch", "array_api_strict"])
def test_values_of_norms(library_name, name):
    lib, norm = of_name(library_name), NORMS[name]
    a = long_matrix(100_000, 3)
    for b in (a, np.ascontiguousarray(a.T)):
        for value in (norm, norm.dual_norm):
            exact = float(value(b.astype(float)))
            got = float(lib.to_numpy(value(lib.asarray(b))))
            assert abs(got - exact) <= SUM * EPS["float32"] * exact
