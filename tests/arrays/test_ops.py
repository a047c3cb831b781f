"""The contract of every primitive of Ops, on every array library.

Values are checked against extended precision, or by the equations that define a factorisation.
Each check also compares dtype, shape, kind of array and device, and that operands are unchanged
unless the primitive may overwrite them.
"""

from __future__ import annotations

import functools
import inspect
import math
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np
import pytest
from conftest import Library, library
from standin import cupy_standin

from polarlib.arrays import numpy_ops, torch_ops
from polarlib.arrays import ops as seam
from polarlib.arrays.entry import can_hold, finite_max_abs
from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import (
    as_complex,
    as_scalar,
    common_dtype,
    constant,
    empty_result,
    fits,
    norm_1,
    norm_bound,
    sqrt,
    trace,
)
from polarlib.arrays.kernels import NumpyKernels
from polarlib.arrays.library import (
    astype_like,
    at_least_single,
    bytes_of_entry,
    format_name,
    is_complex,
    on_cpu,
    to_working_format,
)
from polarlib.arrays.ops import Diagonal, is_native, ops_of
from polarlib.arrays.torch_sharded import placements
from polarlib.engine.sylvester import solution

KINDS = (
    "numpy",
    "numpy-readonly",
    "torch",
    "torch, recording",
    "jax",
    "dask",
    "array_api_strict",
    "cupy",
)
# Each dtype once, half of them in stacks; fewer where every new shape is compiled, or made a graph.
CASES = (("float64", ()), ("float32", (3,)), ("complex64", ()), ("complex128", (2, 2)))
FEWER = {"jax": (("float32", ()), ("complex128", (2,))), "dask": CASES[1::2]}
EPS = {"float32": 2.0**-23, "complex64": 2.0**-23, "float64": 2.0**-52, "complex128": 2.0**-52}
REAL = {"float32": "float32", "complex64": "float32", "float64": "float64", "complex128": "float64"}
COMPLEX = {"float32": "complex64", "float64": "complex128"}
MILLION = (1000, 1000)
NAN, INF = math.nan, math.inf


@dataclass
class Lab:
    """Arrays of one library, dtype and stack, and what was made of them."""

    kind: str
    lib: Any
    dtype: str
    stack: tuple[int, ...]
    large: bool = False
    kept: list = field(default_factory=list)

    def make(self, a: Any, dtype: str | None = None) -> Any:
        """An array that must not change."""
        x = self._array(np.asarray(a), dtype or self.dtype, written=False)
        self.kept.append((x, self.host(x).copy()))
        return x

    def give(self, a: Any, dtype: str | None = None) -> Any:
        """An array that may be overwritten."""
        return self._array(np.asarray(a), dtype or self.dtype, written=True)

    def _array(self, a: np.ndarray, dtype: str, *, written: bool) -> Any:
        lib = Library("numpy") if written and self.kind == "numpy-readonly" else self.lib
        x = lib.asarray(a.real if np.dtype(dtype).kind != "c" else a, dtype)
        return x.requires_grad_() if self.kind == "torch, recording" and not written else x

    def host(self, x: Any) -> np.ndarray:
        return np.asarray(x) if isinstance(x, float) else self.lib.to_numpy(x)

    @functools.cached_property
    def ops(self) -> Any:
        return ops_of(self._array(np.eye(2), self.dtype, written=False))

    @property
    def eps(self) -> float:
        return EPS[self.dtype]

    @property
    def real(self) -> str:
        return REAL[self.dtype]

    def sample(self, m: int | None = None, n: int | None = None, seed: int = 0) -> np.ndarray:
        """Random matrices, rounded to the dtype."""
        m, n = m or self.rows, n or self.columns
        rng = np.random.default_rng(seed)
        a = rng.standard_normal((*self.stack, m, n))
        if self.dtype.startswith("complex"):
            a = a + 1j * rng.standard_normal(a.shape)
        return a.astype(self.dtype)

    @property
    def rows(self) -> int:
        return 170 if self.large else 7

    @property
    def columns(self) -> int:
        return 130 if self.large else 5

    def definite(self, n: int | None = None, seed: int = 1) -> np.ndarray:
        """Hermitian matrices with eigenvalues of at least 1."""
        a = self.sample(n or self.columns, n or self.columns, seed)
        z = wide(a) @ adjoint(wide(a)) + np.eye(a.shape[-1])
        return ((z + adjoint(z)) / 2).astype(self.dtype)

    def equal(
        self, got: Any, want: Any, *, dtype: str | None = None, bound: Any = None, like: Any = None
    ) -> np.ndarray:
        """Assert values, dtype, shape, kind and device of a result; bound in epsilons."""
        want = np.asarray(want)
        host = self.host(got)
        if not isinstance(got, float):
            dtype = dtype or self.dtype
            assert self.lib.dtype_name(got) == dtype
            reference = like if like is not None else self.kept[0][0] if self.kept else got
            if array_api_compat.is_array_api_obj(reference):
                assert array_api_compat.device(got) == array_api_compat.device(reference)
                assert type(got) is type(reference) or isinstance(got, np.generic)
        assert host.shape == want.shape
        if bound is None:
            np.testing.assert_array_equal(host, want)
        else:
            assert np.all(np.abs(host - want) <= bound * self.eps), np.abs(host - want).max()
        return host

    def _settled(self) -> None:
        for x, before in self.kept:
            np.testing.assert_array_equal(self.host(x), before)


class OnCupy:
    """Arrays of the mock of CuPy."""

    def __init__(self, cupy: Any) -> None:
        self.xp = cupy

    def asarray(self, a: np.ndarray, dtype: str) -> Any:
        return self.xp.asarray(np.array(a).astype(dtype))

    def to_numpy(self, x: Any) -> np.ndarray:
        return x.get() if isinstance(x, self.xp.ndarray) else np.asarray(x)

    dtype_name = Library.dtype_name


@pytest.fixture(params=KINDS)
def kind(request):
    """A function that makes a Lab of one library."""
    name = request.param
    if name == "cupy":
        with cupy_standin.installed() as cupy:
            yield functools.partial(Lab, name, OnCupy(cupy))
        return
    yield functools.partial(Lab, name, library(name.partition(",")[0]))


def wide(a: Any) -> np.ndarray:
    a = np.asarray(a)
    return a.astype(np.clongdouble if a.dtype.kind == "c" else np.longdouble)


def adjoint(a: np.ndarray) -> np.ndarray:
    return np.conj(np.swapaxes(a, -1, -2))


def size(a: np.ndarray) -> np.ndarray:
    """Largest absolute row sum, for bounds of what rounding does."""
    return np.abs(a).sum(axis=-1).max(axis=-1)[..., None, None]


def outs(lab: Lab, shape: tuple[int, ...], like: Any) -> list:
    """None, and the storage that the library has for an ``out=``, full of NaN."""
    buffer = lab.ops.buffer(shape, like)
    if buffer is None:
        return [None]
    assert tuple(buffer.shape) == shape
    assert lab.lib.dtype_name(buffer) == lab.dtype
    assert lab.ops.reusable(buffer)
    buffer[...] = NAN
    return [None, buffer]


# -- conversion ------------------------------------------------------------------------------


def check_working_in(lab):
    native = lab.ops._working_in("float32")
    assert native.working == "float32"
    assert not native.fused
    assert lab.ops.working == ""
    assert type(native) is type(lab.ops)
    assert lab.ops._working_in("bfloat16").fused


def check_to_working_format(lab):
    x = lab.make(lab.sample())
    assert to_working_format(x, lab.ops) is x
    single = "complex64" if lab.dtype.startswith("complex") else "float32"
    lab.equal(
        to_working_format(x, lab.ops._working_in("float32")),
        lab.sample().astype(single),
        dtype=single,
    )


def check_is_complex(lab):
    assert is_complex(lab.make(lab.sample())) == lab.dtype.startswith("complex")


def check_format_name(lab):
    assert format_name(lab.make(lab.sample())) == lab.real
    if lab.kind not in ("torch, recording",):
        assert format_name(lab.make(np.eye(2), "int32")) == ""


def check_cast(lab):
    x = lab.make(lab.sample())
    assert lab.ops.cast(x, lab.real) is x
    for name in ("float32", "float64"):
        to = COMPLEX[name] if is_complex(x) else name
        lab.equal(lab.ops.cast(x, name), lab.sample().astype(to), dtype=to)


def check_at_least_single(lab):
    x = lab.make(lab.sample())
    assert at_least_single(x, lab.ops) is x
    if lab.kind not in ("array_api_strict", "dask", "torch, recording"):
        half = lab.make(np.eye(2), "float16")
        lab.equal(at_least_single(half, lab.ops), np.eye(2), dtype="float32", like=half)


def check_dtype(lab):
    x = lab.make(lab.sample())
    assert lab.ops._dtype(lab.dtype) == x.dtype


def check_astype_like(lab):
    x, y = lab.make(lab.sample()), lab.make(lab.sample(), lab.dtype)
    assert astype_like(x, y, lab.ops) is x
    wider = {"float32": "float64", "complex64": "complex128"}.get(lab.dtype, lab.dtype)
    large = lab.make(np.full((2, 2), 1e300), wider)
    want = np.full((2, 2), 1e300 if wider == lab.dtype else INF)
    host = lab.host(astype_like(large, x, lab.ops))
    np.testing.assert_array_equal(host.real, want)
    assert host.dtype == lab.dtype


def check_to_host(lab):
    got = lab.ops.to_host(lab.make(lab.sample()))
    assert type(got) is np.ndarray
    assert got.dtype == ("complex128" if lab.dtype.startswith("complex") else "float64")
    np.testing.assert_array_equal(got, lab.sample())
    got[...] = 0  # a copy without other references


def check_on_cpu(lab):
    assert on_cpu(lab.make(lab.sample())) == (lab.kind != "cupy")


def check_from_host(lab):
    x = lab.make(lab.sample())
    for a in (lab.sample().real.astype(lab.real), lab.sample()):
        before = a.copy()
        lab.equal(lab.ops.from_host(a, x), a, dtype=a.dtype.name)
        np.testing.assert_array_equal(a, before)


def check_item(lab):
    a = lab.sample().real
    got = lab.ops.item(lab.make(a, lab.real))
    assert type(got) is float
    assert got == a.max()
    many = np.zeros((80, 80))
    many[50, 3] = NAN
    assert math.isnan(lab.ops.item(lab.make(many, lab.real)))


def doubled(x, factor=1):
    return x * factor


def check_compiled(lab):
    f = lab.ops.compiled(doubled, factor=2)
    lab.equal(f(lab.make(lab.sample())), 2 * lab.sample())
    assert lab.kind == "jax" or isinstance(f, functools.partial)
    if lab.kind == "jax":
        assert lab.ops.compiled(doubled, factor=2) is f


# -- products --------------------------------------------------------------------------------


def check_buffer(lab):
    for order in (lambda x: x, lab.ops.adjoint):
        x = order(lab.make(lab.sample()))
        outs(lab, tuple(x.shape), x)


def check_reusable(lab):
    x = lab.give(lab.sample())
    assert isinstance(lab.ops.reusable(x), bool)
    if lab.ops.reusable(x):
        assert not lab.ops.reusable(lab.give(lab.sample(8, 8))[..., ::2])


def check_writable(lab):
    expected = {"numpy-readonly": False, "jax": False}.get(lab.kind, True)
    assert lab.ops.writable(lab.make(lab.sample())) == expected


def check_matmul(lab):
    a, b = lab.sample(), lab.sample(lab.columns, 4, 1)
    want = wide(a) @ wide(b)
    for out in outs(lab, want.shape, lab.give(a)):
        got = lab.ops.matmul(lab.make(a), lab.make(b), out)
        lab.equal(got, want, bound=(4 + lab.columns) * np.abs(a) @ np.abs(b))


def check_gram(lab):
    a = lab.sample()
    want = adjoint(wide(a)) @ wide(a)
    bound = (4 + lab.rows) * adjoint(np.abs(a)) @ np.abs(a)
    for out in outs(lab, want.shape, lab.give(a)):
        got = lab.equal(lab.ops.gram(lab.make(a), out), want, bound=bound)
        assert np.all(np.abs(got - adjoint(got)) <= 4 * lab.eps * size(a) ** 2)


def check_entry_product(lab):
    for batch in (1, 5):
        a = lab.sample(3, 4 * batch).reshape(-1, 3, 4, batch)[0]
        b = lab.sample(4, 2 * batch, 1).reshape(-1, 4, 2, batch)[0]
        want = np.einsum("ikb,kjb->ijb", wide(a), wide(b))
        bound = 8 * np.einsum("ikb,kjb->ijb", np.abs(a), np.abs(b))
        lab.equal(lab.ops.entry_product(lab.make(a), lab.make(b)), want, bound=bound)


def check_gemm(lab):
    a, b, c = lab.sample(), lab.sample(lab.columns, 4, 1), lab.sample(lab.rows, 4, 2)
    for alpha, beta in ((1.0, 0.0), (-0.5, 1.0), (2.0, -1.5), (0.0, 1.0)):
        want = alpha * (wide(a) @ wide(b)) + beta * wide(c)
        bound = (8 + lab.columns) * (np.abs(a) @ np.abs(b) + np.abs(c))
        for out in outs(lab, want.shape, lab.give(a)):
            got = lab.ops.gemm(lab.make(a), lab.make(b), lab.make(c), alpha, beta, out)
            lab.equal(got, want, bound=bound)
    empty = lab.ops.gemm(lab.make(a[..., :0, :]), lab.make(b), lab.make(c[..., :0, :]), 2.0, 1.0)
    assert tuple(empty.shape) == (*a.shape[:-2], 0, 4)  # as local tensors of shards


def check_gemm_hermitian(lab):
    z = lab.definite()
    want = 0.5 * wide(z) @ wide(z) - 2 * wide(z)
    for out in outs(lab, want.shape, lab.give(z)):
        x = lab.make(z)
        got = lab.ops.gemm_hermitian(x, x, x, 0.5, -2.0, out)
        lab.equal(got, want, bound=8 * size(z) ** 2)


def check_make_hermitian(lab):
    z = lab.definite()
    noisy = z + np.triu(lab.sample(lab.columns, lab.columns, 3), 1) * lab.eps
    got = lab.host(lab.ops.make_hermitian(lab.give(noisy)))
    assert np.all(np.abs(got - z) <= 8 * lab.eps * (1 + np.abs(z)))
    if isinstance(lab.ops, numpy_ops.NumpyOps):
        np.testing.assert_array_equal(got, adjoint(got))


def check_quadratic(lab):
    z = lab.definite() / lab.columns
    for c in ((2.0, -1.5, 0.5), (3.4445, -4.775, 2.0315), (1.0, 5.0, 0.01), (1.0, -0.5, 0.0)):
        want = c[1] * wide(z) + c[2] * wide(z) @ wide(z)
        x = lab.give(z)
        for out in outs(lab, want.shape, x):
            got = lab.ops.quadratic(x, c, out)
            lab.equal(got, want, bound=16 * (abs(c[0]) + size(z) + size(z) ** 2) * 2, like=x)
            np.testing.assert_array_equal(lab.host(x), z)  # given back


def check_add_scaled_identity(lab):
    z = lab.definite()
    for alpha, beta in ((1.0, 2.0), (-0.5, 1.5), (0.0, 1.5)):
        folded, a, b = lab.ops.add_scaled_identity(lab.give(z), alpha, beta)
        got = a * wide(lab.host(folded)) + b * np.eye(lab.columns)
        want = alpha * wide(z) + beta * np.eye(lab.columns)
        assert np.all(np.abs(got - want) <= 4 * lab.eps * (np.abs(z) + 2))


# -- elementwise -----------------------------------------------------------------------------


def check_adjoint(lab):
    lab.equal(lab.ops.adjoint(lab.make(lab.sample())), adjoint(lab.sample()))


def check_combine(lab):
    a, b, c = (lab.sample(seed=i) for i in range(3))
    for count in (1, 2, 3):
        factors = (0.5, -1.25, 3.0)[:count]
        want = sum(f * wide(x) for f, x in zip(factors, (a, b, c)[:count], strict=True))
        got = lab.ops.combine(factors, [lab.make(x) for x in (a, b, c)[:count]])
        lab.equal(got, want, bound=4 * (np.abs(a) + np.abs(b) * 2 + np.abs(c) * 3))


def check_eye(lab):
    lab.equal(lab.ops.eye(4, lab.make(lab.sample())), np.eye(4))


def check_add_diagonal(lab):
    z = lab.definite()
    want = wide(z) + 1.5 * np.eye(lab.columns)
    lab.equal(lab.ops.add_diagonal(lab.give(z), 1.5), want, bound=np.abs(z) + 2)


def check_divide(lab):
    a = lab.sample()
    s = 1 + np.abs(lab.sample(1, 1).real)
    for divisor, number in ((1.5, 1.5), (lab.make(s, lab.real), wide(s))):
        want = wide(a) / number
        lab.equal(lab.ops.divide(lab.make(a), divisor), want, bound=4 * np.abs(a))
        lab.equal(
            lab.ops.divide(lab.give(a), divisor, may_overwrite=True), want, bound=4 * np.abs(a)
        )


def check_scale(lab):
    lab.equal(lab.ops.scale(lab.make(lab.sample()), 0.75), lab.sample() * 0.75)
    with np.errstate(all="ignore"):
        largest = float(np.finfo(lab.real).max)
        got = lab.ops.scale(lab.make(np.full((2, 2), largest), lab.real), 4.0)
    assert np.isposinf(lab.host(got)).all()


def check_hermitian_part(lab):
    a = lab.sample(lab.columns, lab.columns)
    got = lab.equal(
        lab.ops.hermitian_part(lab.make(a)),
        (wide(a) + adjoint(wide(a))) / 2,
        bound=2 * np.abs(a).max(),
    )
    np.testing.assert_array_equal(got, adjoint(got))
    largest = np.full((2, 2), float(np.finfo(lab.real).max))
    got = lab.host(lab.ops.hermitian_part(lab.make(largest)))
    np.testing.assert_array_equal(got, largest)


def check_hermitian_split(lab):
    a = lab.sample(lab.columns, lab.columns)
    h, skew = lab.ops.hermitian_split(lab.give(a))
    want = (wide(a) + adjoint(wide(a))) / 2
    got = lab.equal(h, want, bound=2 * np.abs(a).max(), like=lab.give(a))
    np.testing.assert_array_equal(got, adjoint(got))
    rest = frobenius((wide(a) - adjoint(wide(a))) / 2)
    lab.equal(skew, rest, dtype=lab.real, bound=8 * rest, like=lab.give(a))


# -- reductions ------------------------------------------------------------------------------


def frobenius(a: np.ndarray) -> np.ndarray:
    return np.sqrt((np.abs(wide(a)) ** 2).sum(axis=(-2, -1), keepdims=True))


def check_max(lab):
    a = lab.sample().real.astype(lab.real)
    for axis, keepdims in ((-1, True), (-2, False), ((-2, -1), True)):
        x = lab.make(a, lab.real)
        got = lab.ops.max(x, axis=axis, keepdims=keepdims)
        lab.equal(got, a.max(axis=axis, keepdims=keepdims), dtype=lab.real)
    lab.equal(lab.ops.max(lab.make(a, lab.real)), a.max(), dtype=lab.real)


def check_max_abs(lab):
    a = lab.sample()
    want = np.maximum(np.abs(a.real), np.abs(a.imag)).max(axis=(-2, -1), keepdims=True)
    lab.equal(lab.ops.max_abs(lab.make(a)), want, dtype=lab.real)


def check_binary_scale(lab):
    a = np.abs(lab.sample(1, 1).real) * 1000
    got = lab.ops.binary_scale(lab.make(a, lab.real))
    want = 2.0 ** np.floor(np.log2(a.astype(lab.real)))
    if isinstance(got, float):
        assert got == want
    else:
        lab.equal(got, want, dtype=lab.real)
    for odd in (0.0, NAN, INF):
        scale = lab.ops.binary_scale(lab.make(np.full((1, 1), odd), lab.real))
        assert lab.host(scale) == 1


def check_divisor(lab):
    s = np.abs(lab.sample(1, 1).real)
    assert np.all(lab.host(lab.ops.divisor(lab.make(s, lab.real))) == s.astype(lab.real))
    for odd, want in ((0.0, 1.0), (NAN, NAN), (INF, NAN)):
        got = lab.host(lab.ops.divisor(lab.make(np.full((1, 1), odd), lab.real)))
        np.testing.assert_array_equal(np.ravel(got), [want])


def check_as_scalar(lab):
    s = np.abs(lab.sample(1, 1).real).astype(lab.real)
    x = lab.make(s, lab.real)
    got = as_scalar(x, lab.ops)
    assert np.all(lab.host(got) == s)
    assert isinstance(got, float) == (lab.ops.host and s.size == 1)


def check_sqrt(lab):
    assert sqrt(4.0, lab.ops) == 2.0
    lab.equal(sqrt(lab.make(np.full((1, 1), 2.25), lab.real), lab.ops), [[1.5]], dtype=lab.real)


def check_frobenius(lab):
    a = lab.sample()
    want = frobenius(a)
    lab.equal(lab.ops.frobenius(lab.make(a)), want, dtype=lab.real, bound=8 * want)


def check_trace(lab):
    z = lab.definite()
    want = np.trace(wide(z).real, axis1=-2, axis2=-1)[..., None, None]
    lab.equal(trace(lab.make(z), lab.ops), want, dtype=lab.real, bound=4 * want)


def check_norm_1(lab):
    a = lab.sample()
    want = np.abs(wide(a)).sum(axis=-2, keepdims=True).max(axis=-1, keepdims=True)
    lab.equal(norm_1(lab.make(a), lab.ops), want, dtype=lab.real, bound=4 * want)


def check_norm_bound(lab):
    size = np.abs(wide(lab.sample()))
    rows, columns = (size.sum(axis=k, keepdims=True) for k in (-1, -2))
    want = np.sqrt(rows.max(axis=-2, keepdims=True) * columns.max(axis=-1, keepdims=True))
    got = norm_bound(lab.make(lab.sample()), lab.ops)
    lab.equal(got, want, dtype=lab.real, bound=8 * want)


# -- factorisations --------------------------------------------------------------------------


def orthonormal(q: np.ndarray, eps: float) -> None:
    defect = adjoint(wide(q)) @ wide(q) - np.eye(q.shape[-1])
    assert np.abs(defect).max(initial=0) <= 8 * max(q.shape[-2:]) * eps


def product(lab: Lab, want: np.ndarray, *factors: np.ndarray) -> None:
    got = functools.reduce(np.matmul, map(wide, factors))
    assert np.all(np.abs(got - wide(want)) <= 16 * want.shape[-1] * lab.eps * frobenius(want))


def spoilt(a: np.ndarray, value: Any) -> np.ndarray:
    """The matrices of a stack, and before them the first with one entry changed."""
    a = a.reshape((-1, *a.shape[-2:]))
    bad = a[:1].copy()
    bad[0, 1, 1] = value
    return np.concatenate([bad, a])


def check_svd(lab):
    for a in (lab.sample(), lab.sample(lab.columns, lab.rows), lab.sample() * 0):
        x = lab.make(a)
        u, s, vh = lab.ops.svd(x)
        k = min(a.shape[-2:])
        u, vh = lab.equal(u, lab.host(u)), lab.equal(vh, lab.host(vh))
        s = lab.equal(s, lab.host(s), dtype=lab.real)
        assert (u.shape, s.shape) == ((*a.shape[:-1], k), (*a.shape[:-2], k))
        assert vh.shape == (*a.shape[:-2], k, a.shape[-1])
        assert np.all(s >= 0)
        assert np.all(s[..., 1:] <= s[..., :-1])
        orthonormal(u, lab.eps)
        orthonormal(adjoint(vh), lab.eps)
        product(lab, a, u * s[..., None, :], vh)
    for value in (NAN, INF):
        results = [lab.host(r) for r in lab.ops.svd(lab.make(spoilt(lab.sample(), value)))]
        assert all(np.isnan(r[0]).all() for r in results)
        u, s, vh = (r[1:] for r in results)
        product(lab, spoilt(lab.sample(), 0)[1:], u * s[:, None], vh)


def check_singular_values(lab):
    for a in (lab.sample(), lab.sample(lab.columns, lab.rows)):
        got = lab.ops.singular_values(lab.make(a))
        want = np.linalg.svd(a.astype("c16"), compute_uv=False)
        lab.equal(got, want, dtype=lab.real, bound=16 * want[..., :1])
    for value in (NAN, INF):
        got = lab.host(lab.ops.singular_values(lab.make(spoilt(lab.sample(), value))))
        assert np.isnan(got[0]).all()
        assert np.isfinite(got[1:]).all()


def check_eigh(lab):
    for z in (lab.definite(), -lab.definite(), lab.definite() * 0):
        w, v = lab.ops.eigh(lab.make(z))
        w, v = lab.equal(w, lab.host(w), dtype=lab.real), lab.equal(v, lab.host(v))
        assert (w.shape, v.shape) == (z.shape[:-1], z.shape)
        assert np.all(w[..., 1:] >= w[..., :-1])
        orthonormal(v, lab.eps)
        product(lab, z, v * w[..., None, :], adjoint(v))
    for value in (NAN, INF):
        w, v = map(lab.host, lab.ops.eigh(lab.make(spoilt(lab.definite(), value))))
        assert np.isnan(w[0]).all()
        assert np.isnan(v[0]).all()
        assert np.isfinite(w[1:]).all()


def check_qr(lab):
    for a in (lab.sample(), lab.sample(lab.columns, lab.rows), lab.sample() * 0):
        q, r = lab.ops.qr(lab.make(a))
        q, r = lab.equal(q, lab.host(q)), lab.equal(r, lab.host(r))
        assert q.shape == (*a.shape[:-1], min(a.shape[-2:]))
        np.testing.assert_array_equal(r, np.triu(r))
        orthonormal(q, lab.eps)
        product(lab, a, q, r)
    for value in (NAN, INF):
        q, r = map(lab.host, lab.ops.qr(lab.make(spoilt(lab.sample(), value))))
        assert not (np.isfinite(q[0]).all() and np.isfinite(r[0]).all())
        assert np.isfinite(q[1:]).all()


def check_determinant_sign(lab):
    a = lab.sample(3, 3).real.astype(lab.real) * 1e30  # in float32 the determinant overflows
    x = wide(a) / 1e30
    det = sum(
        x[..., 0, i] * (x[..., 1, j] * x[..., 2, k] - x[..., 1, k] * x[..., 2, j])
        for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1))
    )
    got = lab.ops.determinant_sign(lab.make(a, lab.real))
    lab.equal(got, np.sign(det)[..., None, None], dtype=lab.real)
    got = lab.host(lab.ops.determinant_sign(lab.make(spoilt(a, NAN), lab.real)))
    assert np.isnan(got[0]).all()
    assert np.isfinite(got[1:]).all()


INDEFINITE = (-1.0, NAN)


def check_cholesky(lab):
    z = lab.definite()
    l = lab.ops.cholesky(lab.make(z))
    l = lab.equal(l, lab.host(l))
    np.testing.assert_array_equal(l, np.tril(l))
    diagonal = np.diagonal(l, 0, -2, -1)
    assert np.all(diagonal.real > 0)
    assert np.all(diagonal.imag == 0)
    product(lab, z, l, adjoint(l))
    # One matrix of a stack fails at its second pivot, later, or not at all; so does one alone.
    for value in INDEFINITE:
        for matrices in (spoilt(z, value), spoilt(z, value)[0]):
            l = lab.host(lab.ops.cholesky(lab.make(matrices)))
            l = l.reshape((-1, *l.shape[-2:]))
            assert np.isnan(l[0]).any()
            if len(l) > 1:
                product(lab, spoilt(z, 0)[1:], l[1:], adjoint(l[1:]))
    # The last pivot is lost by rounding only: all entries before are right.
    low = np.tril(np.ones((4, 4)))
    low[3, 3] = 0.0
    singular = low @ low.T
    singular[3, 3] -= 0.5
    assert np.isnan(lab.host(lab.ops.cholesky(lab.make(singular)))).any()


def check_is_definite(lab):
    z = lab.definite()
    x = lab.make(z)
    none = lab.make(np.zeros((*lab.stack, 1, 1)), lab.real)
    assert lab.ops.is_definite(x, none) is True
    assert lab.ops.is_definite(x, lab.make(np.full((*lab.stack, 1, 1), 0.9), lab.real))
    half = np.full((*lab.stack, 1, 1), 1.5 * size(z).max())
    assert not lab.ops.is_definite(x, lab.make(half, lab.real))
    for value in INDEFINITE:
        matrices = lab.make(spoilt(z, value))
        shift = lab.make(np.zeros((matrices.shape[0], 1, 1)), lab.real)
        assert lab.ops.is_definite(matrices, shift) is False
        alone = lab.make(spoilt(z, value)[0])
        assert lab.ops.is_definite(alone, lab.make(np.zeros((1, 1)), lab.real)) is False


def check_factor_max_abs(lab):
    z = lab.definite()
    none = lab.make(np.zeros((*lab.stack, 1, 1)), lab.real)
    peak = lab.lib.to_numpy(lab.ops.factor_max_abs(lab.make(z), none))
    factor = np.linalg.cholesky(z)
    entries = np.maximum(np.abs(factor.real), np.abs(factor.imag))
    np.testing.assert_allclose(peak[..., 0, 0], entries.max(axis=(-2, -1)), rtol=1e-5)
    for value in INDEFINITE:
        matrices = spoilt(z, value)
        shift = lab.make(np.zeros((matrices.shape[0], 1, 1)), lab.real)
        peak = lab.lib.to_numpy(lab.ops.factor_max_abs(lab.make(matrices), shift))
        assert not np.isfinite(peak).all()


def check_count_eigenvalues_above(lab):
    n = lab.columns
    values = np.linspace(1, 2, n)
    values[: n // 2] = 1e-3
    q = np.linalg.qr(lab.sample(n, n).astype("c16" if lab.dtype.startswith("c") else "f8"))[0]
    got = lab.ops.count_eigenvalues_above(lab.make((q * values) @ adjoint(q)), 0.1)
    assert isinstance(got, np.ndarray | np.integer)
    np.testing.assert_array_equal(got, np.full(lab.stack, n - n // 2))


def check_eigenvalues(lab):
    for z in (lab.definite(), -lab.definite()):
        want = np.linalg.eigvalsh(z.astype("c16"))
        got = lab.ops.eigenvalues(lab.make(z))
        lab.equal(got, want, dtype=lab.real, bound=16 * np.abs(want).max(-1, keepdims=True))


def check_solve_lower(lab):
    n = lab.columns
    l = np.tril(lab.sample(n, n)) + 2 * n * np.eye(n, dtype=lab.dtype)
    b = lab.sample(n, 4, 2)
    for adjoint_ in (False, True):
        y = lab.ops.solve_lower(lab.make(l), lab.make(b), adjoint=adjoint_)
        y = lab.equal(y, lab.host(y))
        assert y.shape == b.shape
        op = adjoint(wide(l)) if adjoint_ else wide(l)
        residual = np.abs(op @ wide(y) - wide(b))
        assert np.all(residual <= 8 * n * lab.eps * (np.abs(op) @ np.abs(wide(y)) + np.abs(b)))
        bad = spoilt(l, 0.0)
        right = np.concatenate([b.reshape(-1, n, 4)[:1], b.reshape(-1, n, 4)])
        got = lab.host(lab.ops.solve_lower(lab.make(bad), lab.make(right), adjoint=adjoint_))
        assert not np.isfinite(got[0]).all()
        assert np.isfinite(got[1:]).all()


def check_inverse(lab):
    n = lab.columns
    a = lab.sample(n, n) + 2 * n * np.eye(n, dtype=lab.dtype)
    y = lab.ops.inverse(lab.make(a))
    y = lab.equal(y, lab.host(y))
    residual = np.abs(wide(a) @ wide(y) - np.eye(n))
    assert np.all(residual <= 16 * n * lab.eps * (np.abs(a) @ np.abs(y)))
    singular = spoilt(a, 0.0)
    singular[0, 1] = 0.0
    got = lab.host(lab.ops.inverse(lab.make(singular)))
    assert not np.isfinite(got[0]).all()
    assert np.isfinite(got[1:]).all()
    assert not np.isfinite(lab.host(lab.ops.inverse(lab.make(singular[0])))).all()


# -- differentiation -------------------------------------------------------------------------


def check_functional(lab):
    """Where a library differentiates, nothing is overwritten, whatever else may be."""
    x = lab.make(lab.sample())
    assert (lab.ops.functional(x, x) is lab.ops) == (lab.kind != "torch, recording")
    ops = lab.ops.functional()
    if lab.kind.startswith("torch"):
        assert isinstance(ops, torch_ops.TorchGradOps)
    elif lab.kind != "jax":
        assert ops is lab.ops
        return
    z = lab.definite()
    x = lab.make(z)
    assert ops.buffer((2, 2), x) is None
    lab.equal(ops.add_diagonal(x, 1.0), z + np.eye(lab.columns), bound=np.abs(z) + 1)
    lab.equal(
        ops.add_scaled_identity(x, 2.0, 1.0)[0],
        2 * z + np.eye(lab.columns),
        bound=2 * np.abs(z) + 2,
    )
    lab.equal(ops.divide(x, 2.0, may_overwrite=True), z / 2)
    lab.equal(ops.make_hermitian(x), z)


def check_is_traced(lab):
    x = lab.make(lab.sample())
    assert lab.ops.is_traced(x) == (lab.kind == "torch, recording")


def check_is_sharded(lab):
    assert lab.ops.is_sharded(lab.make(lab.sample())) is False


def check_placements(lab):
    assert placements(lab.make(lab.sample())) == ()


def check_entrywise(lab):
    a = lab.sample()
    lab.equal(lab.ops._entrywise(lambda x: x * 2.0, lab.make(a)), 2 * a)


def check_store(lab):
    a, out = lab.sample(), lab.give(lab.sample(seed=1))
    if lab.ops.writable(out) and not lab.ops.is_traced(lab.make(a)):
        lab.ops._store(lab.make(a), out)
        lab.equal(out, a)


def check_fits(lab):
    x = lab.make(lab.sample())
    assert fits((3, 3), x, lab.ops)
    if lab.kind in ("numpy", "numpy-readonly", "torch"):
        assert not fits((2**30, 2**30), x, lab.ops)


def check_bytes_of_entry(lab):
    x = lab.make(lab.sample())
    assert bytes_of_entry(x) == np.dtype(lab.dtype).itemsize


def check_common_dtype(lab):
    x = lab.make(lab.sample())
    assert common_dtype(x, x, lab.ops) == x.dtype


def check_is_abstract(lab):
    assert lab.ops.is_abstract(lab.make(lab.sample())) is False


def check_with_shards(lab):
    x = lab.make(lab.sample())
    assert lab.ops.with_shards(lambda x: x, x) is x


def check_computed_once(lab):
    x = lab.make(lab.sample())
    assert lab.ops.computed_once(lambda x: x, x) is x


def check_repeat_while(lab):
    x = lab.ops.frobenius(lab.make(lab.sample(1, 1))) * 0 + 1

    def going(state):
        return lab.ops.xp.max(state[0]) < 5

    (y,) = lab.ops.repeat_while(going, lambda state: (state[0] * 2,), (x,))
    assert np.all(lab.host(y) == 8)


def check_empty_result(lab):
    x = lab.make(lab.sample()[..., :0])
    y = empty_result(x, lab.ops)
    assert (tuple(y.shape), y.dtype) == (tuple(x.shape), x.dtype)
    if lab.kind == "torch, recording":
        y.abs().sum().backward()
        assert x.grad.shape == x.shape


def check_differentiable(lab):
    x = lab.make(lab.sample())

    def f(x):
        return (x * 2.0,)

    def along(arrays, results, tangents):
        return (tangents[0] * 3.0,)  # not the derivative: the rule is what counts

    (y,) = lab.ops.differentiable(f, along, lambda a, r, g: (g[0] * 3.0,), (x,), keep=True)
    lab.equal(y, 2 * lab.sample())
    if lab.kind == "torch, recording":
        lab.ops.xp.sum(lab.ops.xp.abs(y) ** 2).backward()
        np.testing.assert_allclose(lab.host(x.grad), 12 * lab.sample(), rtol=1e-6)


def check_lyapunov(lab):
    h, w = lab.definite(), lab.definite(seed=5)

    def diagonalise(h):
        ops = ops_of(h).functional()
        s, v = ops.eigh(h)
        return Diagonal(s[..., :, None] + s[..., None, :], v)

    y = wide(lab.host(lab.ops.lyapunov(lab.make(h), lab.make(w), diagonalise)))
    residual = np.abs(wide(h) @ y + y @ wide(h) - w)
    assert np.all(residual <= 64 * lab.columns * lab.eps * (size(h) * size(y) + size(w)))


def check_sylvester(lab):
    m, v = lab.definite(), lab.definite(seed=5)
    w = lab.sample(n=lab.columns, m=lab.columns, seed=6)
    n = m + 0.3 * (v @ m - m @ v)  # not normal, with a definite Hermitian part
    for left, right in ((n, v), (n, n), (n, n.swapaxes(-1, -2).conj())):
        arrays = (lab.make(x) for x in (left, right, w))
        y = wide(lab.host(lab.ops.sylvester(*arrays, solution)))
        residual = np.abs(wide(left) @ y + y @ wide(right) - w)
        sizes = (size(left) + size(right)) * size(y) + size(w)
        assert np.all(residual <= 64 * lab.columns * lab.eps * sizes)


def check_multiplier(lab):
    assert lab.ops.multiplier(lab.make(lab.sample(), lab.real)) == lab.real


def check_kernels(lab):
    found = lab.ops.kernels(lab.make(lab.sample()))
    assert isinstance(found, NumpyKernels) == lab.kind.startswith("numpy")


def check_normaliser(lab):
    kernels = lab.ops.normaliser(lab.make(lab.sample()))
    assert kernels is None or lab.kind.startswith("cupy")
    if kernels is None or lab.dtype not in ("float32",):
        return
    a = lab.sample()
    norm = np.linalg.norm(wide(a), axis=(-2, -1), keepdims=True)
    for power in (False, True):
        s = 2.0 ** np.floor(np.log2(1.5 * norm)) if power else 1.5 * norm
        lab.equal(kernels.by_norm(lab.make(a), 1.5, power), wide(a) / s, bound=2 * np.abs(a) / s)


def check_is_native(lab):
    assert is_native(lab.ops, format_of(lab.real), is_complex=lab.dtype != lab.real)
    assert not is_native(lab.ops, format_of("float8_e5m2"), is_complex=False)


def check_sums(lab):
    a = np.abs(lab.sample()).astype(lab.real)
    for axis in (-1, -2):
        want = wide(a).sum(axis=axis, keepdims=True)
        lab.equal(lab.ops.sums(lab.make(a, lab.real), axis), want, dtype=lab.real, bound=8 * want)


def check_has_double(lab):
    assert lab.ops._has_double(lab.make(lab.sample())) is True


def check_as_complex(lab):
    got = as_complex(lab.make(lab.sample()), lab.ops)
    name = COMPLEX[lab.real]
    lab.equal(got, lab.sample().astype(name), dtype=name)


def check_constant(lab):
    x = lab.make(lab.sample())
    y = constant(lab.ops, lambda x: x * 2.0, x)
    lab.equal(y, 2 * lab.sample())
    if lab.kind == "torch, recording":
        lab.ops.xp.sum(lab.ops.xp.abs(y + x) ** 2).backward()
        np.testing.assert_allclose(lab.host(x.grad), 6 * lab.sample(), rtol=1e-6)


def check_of(lab):
    x = lab.make(lab.sample())
    assert type(ops_of(x)) is type(lab.ops)
    assert ops_of(x).xp is lab.ops.xp


def check_check_sharding(lab):  # of sharded arrays: test_dtensor.py, test_jax_sharded.py
    lab.ops._check_sharding(lab.make(lab.sample()), "x", taken=False)


def check_can_hold(lab):
    x, out = lab.make(lab.sample()), lab.make(lab.sample())
    numpy = type(lab.ops).__name__ == "NumpyOps"
    assert can_hold(out, x) == can_hold(x, x) == numpy
    assert not can_hold(x[..., ::2], x)


# Made of primitives, or of what an array says of itself.
FUNCTIONS = {
    *("as_complex", "as_scalar", "astype_like", "at_least_single", "bytes_of_entry"),
    *("can_hold", "common_dtype", "constant", "empty_result", "fits", "format_name"),
    *("is_complex", "is_native", "norm_1", "norm_bound", "on_cpu", "placements", "sqrt"),
    *("to_working_format", "trace"),
}
# Methods that arrays/ alone calls.
PRIVATE = {"check_sharding", "dtype", "entrywise", "has_double", "of", "store", "working_in"}
CHECKS = {
    name.removeprefix("check_"): f for name, f in globals().items() if name.startswith("check_")
}


def test_every_public_primitive_has_a_check():
    classes = [c for _, c in inspect.getmembers(seam, inspect.isclass) if issubclass(c, seam.Ops)]
    public = {n for c in classes for n in dir(c) if callable(getattr(c, n)) and n[0] != "_"}
    assert public | FUNCTIONS | PRIVATE == set(CHECKS)


def test_a_library_is_added_by_a_class_that_names_it(monkeypatch):
    monkeypatch.setattr(seam, "_class_for", seam._class_for.__wrapped__)  # remembers nothing
    library = ModuleType("ndonnx")  # known to array_api_compat, not to polarlib
    assert seam._class_for(library) is seam.Ops
    kind = type("NdonnxOps", (seam.Ops,), {"library": "ndonnx"})
    assert seam._class_for(library) is kind


def without_warnings(f, *args):
    with np.errstate(all="ignore"):
        return f(*args)


@pytest.mark.parametrize("name", CHECKS)
def test_contract(kind, name):
    for dtype, stack in FEWER.get(kind.args[0], CASES):
        lab = kind(dtype, stack)
        without_warnings(CHECKS[name], lab)
        lab._settled()


# Where SciPy's kernels take over from NumPy's.
LARGE = ["matmul", "gram", "gemm", "make_hermitian", "quadratic", "max_abs", "frobenius"]
LARGE += ["hermitian_split", "is_definite", "count_eigenvalues_above"]


@pytest.mark.parametrize("name", LARGE)
def test_contract_of_large_matrices(name):
    for dtype, _ in CASES:
        for kind in ("numpy", "numpy-readonly"):
            lab = Lab(kind, library(kind), dtype, (), large=True)
            without_warnings(CHECKS[name], lab)
            lab._settled()


# -- NaN and infinity ------------------------------------------------------------------------

# What is made of one stack of matrices, NaN for a matrix with NaN; True: without infinity, which
# these may lose.
UNARY = {
    "matmul": lambda x, ops: ops.matmul(x, ops.adjoint(x)),
    "gram": lambda x, ops: ops.gram(x),
    "gemm": lambda x, ops: ops.gemm(x, x, x, 0.5, 1.0),
    "combine": lambda x, ops: ops.combine((0.5,), (x,)),
    "hermitian_part": lambda x, ops: ops.hermitian_part(x),
    "max_abs": lambda x, ops: ops.max_abs(x),
    "frobenius": lambda x, ops: ops.frobenius(x),
    "norm_1": lambda x, ops: norm_1(x, ops),
    "norm_bound": lambda x, ops: norm_bound(x, ops),
    "trace": lambda x, ops: trace(x, ops),
    "cholesky": lambda x, ops: ops.cholesky(x),
    "inverse": lambda x, ops: ops.inverse(x),
}
PLACES = (1, 35, 71)


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_nan_is_kept(kind, dtype):
    """In 72 x 72 matrices: XLA's maximum on a CPU loses NaN from 4096 entries on."""
    lab = kind(dtype, ())
    z = lab.definite(72)
    for i in PLACES:
        bad = z.copy()
        if dtype == "complex128":  # in the imaginary part only, where a Hermitian matrix has one
            bad[i, i - 1], bad[i - 1, i] = complex(1, NAN), complex(1, NAN)
        else:
            bad[i, i] = NAN
        x = lab.make(np.stack([z, bad]))
        for name, f in UNARY.items():
            if name == "trace" and dtype == "complex128":
                continue  # takes real parts
            got = lab.host(without_warnings(f, x, lab.ops))
            assert np.isfinite(got[0]).all(), name
            assert not np.isfinite(got[1]).all(), name
        parts = lab.ops.xp.real(x) if is_complex(x) else x
        imaginary = lab.ops.xp.imag(x) if is_complex(x) else x
        assert math.isfinite(lab.ops.item(parts)) == (dtype == "complex128")
        assert math.isnan(lab.ops.item(imaginary))
        for axis in (-1, -2, (-2, -1)):
            got = lab.host(lab.ops.max(imaginary, axis=axis))
            assert np.isnan(got).sum() == (2 if dtype == "complex128" and axis != (-2, -1) else 1)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("shape", [(1, 1), (63, 65), (64, 64), (1, 5000), (3, 70, 60), MILLION])
def test_finite_max_abs_sees_every_entry(kind, dtype, shape):
    """NaN and infinity of either sign, in real and imaginary parts, in every order of memory."""
    lab = kind(dtype, ())
    if dtype in ("float64", "complex64") and (shape == MILLION or lab.kind in FEWER):
        pytest.skip("two dtypes are enough")
    count = math.prod(shape)
    places = {0, count // 2, count - 1} if count > 5000 else {0, min(7, count - 1), count - 1}
    a = np.zeros(shape, dtype)
    for place, value in zip(sorted(places), (NAN, INF, -INF), strict=False):
        for part in ("real", "imag")[: 1 + dtype.startswith("complex")]:
            b = a.copy()
            getattr(b, part).reshape(-1)[place] = value  # a view: b is contiguous
            x = lab.give(b)
            index = r".*".join(map(str, np.unravel_index(place, shape)))
            with pytest.raises(ValueError, match=rf"g contains NaN.*1 of {count} .*{index}"):
                finite_max_abs(x, lab.ops, "g")
            with pytest.raises(ValueError, match="contains NaN or infinity; remove"):
                finite_max_abs(lab.ops.adjoint(x), lab.ops, "g", locate=False)
            peak = lab.host(finite_max_abs(x, lab.ops, "g", look=False))
            assert peak.shape == (*shape[:-2], 1, 1)
            assert (~np.isfinite(peak)).sum() == 1
    assert lab.host(finite_max_abs(lab.give(a), lab.ops, "g")).max() == 0


def test_views_and_memory_orders():
    """Parts of arrays that are not contiguous: what lies beside them does not count."""
    for name in ("numpy", "torch"):
        lab = Lab(name, library(name), "float32", ())
        a = np.zeros((300, 300), "float32")
        a[1, 1] = NAN
        x = lab.give(a)
        for part, seen in ((x[2:, 2:], False), (x[::2, ::2], False), (x[1:, 1:], True),
                           (x[:, 1:3], True), (lab.ops.adjoint(x)[1:4], True)):  # fmt: skip
            assert math.isfinite(lab.ops.item(lab.ops.max_abs(part))) != seen


# -- empty stacks ----------------------------------------------------------------------------

# Shapes of the results for a stack of shape (0, 5, 5).
EMPTY = {
    "matmul": [(0, 5, 5)],
    "gram": [(0, 5, 5)],
    "gemm": [(0, 5, 5)],
    "hermitian_part": [(0, 5, 5)],
    "max_abs": [(0, 1, 1)],
    "frobenius": [(0, 1, 1)],
    "norm_1": [(0, 1, 1)],
    "norm_bound": [(0, 1, 1)],
    "trace": [(0, 1, 1)],
    "svd": [(0, 5, 5), (0, 5), (0, 5, 5)],
    "singular_values": [(0, 5)],
    "eigh": [(0, 5), (0, 5, 5)],
    "qr": [(0, 5, 5), (0, 5, 5)],
    "cholesky": [(0, 5, 5)],
    "solve_lower": [(0, 5, 5)],
    "inverse": [(0, 5, 5)],
}
ARGUMENTS = {"matmul": 2, "gemm": 3, "solve_lower": 2}


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_empty_stacks(kind, dtype):
    lab = kind(dtype, ())
    x = lab.give(np.zeros((0, 5, 5)))
    for name, shapes in EMPTY.items():
        function = UNARY.get(name) if name in FUNCTIONS else None
        given = (x,) * ARGUMENTS.get(name, 1)
        results = function(x, lab.ops) if function else getattr(lab.ops, name)(*given)
        results = results if isinstance(results, tuple) else (results,)
        assert [tuple(r.shape) for r in results] == shapes, name
        kinds = [lab.real if shape[1:] in ((1, 1), (5,)) else dtype for shape in shapes]
        assert [lab.lib.dtype_name(r) for r in results] == kinds, name
    assert lab.ops.is_definite(x, lab.give(np.zeros((0, 1, 1)), lab.real)) is True
    assert np.shape(lab.ops.count_eigenvalues_above(x, 0.5)) == (0,)
