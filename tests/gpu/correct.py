"""Parts that ask whether results are right: beside NumPy's, and by their own errors."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import polarlib
from gpu.context import (
    AGREES,
    REAL,
    TIGHT,
    Context,
    gaussian,
    largest,
    orthogonality,
    reference,
    relative,
    wide,
    with_spectrum,
)
from gpu.libraries import Library
from polarlib.arrays import cublas
from polarlib.arrays.formats import format_of
from polarlib.arrays.ops import ops_of

# Squares, tall, wide, stacks, and stacks of stacks.
SHAPES = ((64, 64), (200, 72), (72, 200), (5, 96, 40), (2, 3, 40, 96))
FEW_SHAPES = ((72, 200), (3, 96, 40))
EPSILONS = 100  # what accuracy may cost, in machine epsilons


def agreement(context: Context) -> dict[str, Any]:
    """``orthogonalize`` and ``polar`` beside what they give for NumPy arrays, and zeros."""
    return context.per_library(_agreement)


def _agreement(context: Context, library: Library) -> None:
    dtypes, forms = (*REAL, "complex64", "complex128"), ("plain", "gram")
    shapes = context.pick(SHAPES, FEW_SHAPES, ((12, 40), (3, 24, 10)))
    if library.name == "jax":  # which compiles for every shape and form
        dtypes = context.pick(dtypes, dtypes[:4], dtypes[1:2])
        shapes, forms = context.pick(FEW_SHAPES, FEW_SHAPES, shapes[:1]), ("plain",)
    for dtype in dtypes:
        if not context.has_time(f"{library.name} {dtype}"):
            return
        with context.guarded(f"{library.name} {dtype}"):
            _agreement_in(context, library, dtype, shapes, forms)


def _agreement_in(
    context: Context, library: Library, dtype: str, shapes: Any, forms: tuple[str, ...]
) -> None:
    bound, head = AGREES.get(dtype, TIGHT), f"{library.name} {dtype}"
    worst: dict[str, float] = {}

    def note(what: str, value: float) -> None:
        worst[what] = max(worst.get(what, 0.0), value)

    for shape in shapes:
        a = gaussian(shape, dtype)
        x = library.make(a, dtype)
        for form in forms:
            got = library.host(polarlib.orthogonalize(x, form=form))
            note("orthogonalize", largest(got - _wanted(shape, dtype, form)))
        if dtype == "float32":
            got = library.host(polarlib.orthogonalize(x, precision="tf32"))
            note("orthogonalize in tf32", largest(got - reference(a, "tf32")))
        u, h = map(library.host, polarlib.polar(x))
        note("polar", largest(u - wide(polarlib.polar(a).unitary)))
        note("polar, A - U H", relative(u @ h - wide(a), wide(a)))
    for what, value in worst.items():
        context.check(f"{head} {what}", value, AGREES["tf32"] if "tf32" in what else bound)
    zero = library.make(np.zeros((3, 8, 4), gaussian((1, 1), dtype).dtype), dtype)
    context.check(f"{head} of zeros", largest(library.host(polarlib.orthogonalize(zero))), 0.0)


@functools.lru_cache(maxsize=128)
def _wanted(shape: tuple[int, ...], dtype: str, form: str) -> np.ndarray:
    """NumPy's result, once for all libraries."""
    return reference(gaussian(shape, dtype), dtype, form=form)


# -- Cholesky factors ----------------------------------------------------------------------------


def potrf(context: Context) -> dict[str, Any]:
    """Whether the failure of an indefinite matrix is seen, and what the library's own leaves."""
    return context.per_library(_potrf_of)


def _potrf_of(context: Context, library: Library) -> None:
    left = _left_by_library(library)
    what = f"{library.name}: its own factor of an indefinite matrix is finite (1: yes)"
    context.figure(what, left)
    small = (40,) if library.name == "jax" else (4, 40)
    for n in context.pick((4, 40, 200, 1000, 3000), (40, 200, 1000), small):
        for dtype in ("float32", "float64"):
            if not context.has_time(f"{library.name} {dtype} {n}"):
                return
            with context.guarded(f"{library.name} {dtype} {n}"):
                _potrf(context, library, dtype, n)


def _potrf(context: Context, library: Library, dtype: str, n: int) -> None:
    head = f"{library.name} {dtype} {n}"
    good, bound = _with_eigenvalue(n, n // 2, 1.0), EPSILONS * format_of(dtype).epsilon
    factor = np.tril(library.host(_factor(library, good, dtype)))
    residual = relative(factor @ factor.T - good, good)
    context.check(f"{head} residual", residual, bound)
    unseen = 0
    for at in (0, n // 2, n - 1):
        bad = _with_eigenvalue(n, at, -1.0)
        pairs = [bad] if n > 200 else [bad, np.stack([good, bad])]
        for z in pairs:
            factor = library.host(_factor(library, z, dtype))
            unseen += int(np.isfinite(factor.reshape((-1, n, n))[-1]).all())
            unseen += int(z.ndim == 3 and not np.isfinite(factor[0]).all())
    context.check(f"{head} failures unseen, or successes lost", unseen, 0)


def _with_eigenvalue(n: int, at: int, value: float) -> np.ndarray:
    """A symmetric matrix with eigenvalues in [1, 2] but one."""
    values = np.linspace(1, 2, n)
    values[at] = value
    v = np.random.default_rng(0).standard_normal((n, 1))
    v /= np.linalg.norm(v)
    # Reflected from both sides: (I - 2 v v^T) D (I - 2 v v^T).
    half = values[:, None] * v * v.T
    z = np.diag(values) - 2 * (half + half.T) + 4 * float(values @ v[:, 0] ** 2) * v * v.T
    return (z + z.T) / 2


def _factor(library: Library, z: np.ndarray, dtype: str) -> Any:
    x = library.make(z.astype(dtype), dtype)
    return ops_of(x).cholesky(x)


def _left_by_library(library: Library) -> float:
    x = library.make(_with_eigenvalue(40, 20, -1.0), "float64")
    if library.name == "torch":
        factor = library.module.linalg.cholesky_ex(x)[0]
    else:
        namespace = library.numpy if library.name == "jax" else library.module
        factor = namespace.linalg.cholesky(x)
    return float(np.isfinite(library.host(factor)).all())


# -- accuracy ------------------------------------------------------------------------------------


def accuracy(context: Context) -> dict[str, Any]:
    """Errors of ``polar`` where its methods work: conditions up to 1e12, and lost rank."""
    return context.per_library(_accuracy_of)


def _accuracy_of(context: Context, library: Library) -> None:
    n = context.pick(1024, 512, 48)
    cases: dict[str, Callable[[], np.ndarray]] = {
        "gaussian": lambda: gaussian((n, n)),
        "condition 1e12": lambda: with_spectrum(n, np.geomspace(1, 1e-12, n)),
        "rank n/2": lambda: with_spectrum(n, np.where(np.arange(n) < n // 2, 1.0, 0.0)),
        "rank n - 1": lambda: with_spectrum(n, np.append(np.linspace(2, 1, n - 1), 0.0)),
        "condition 1e3": lambda: with_spectrum(n, np.geomspace(1, 1e-3, n)),
        "tall": lambda: gaussian((4 * n, n // 2)),
        "stack": lambda: gaussian((8, n // 8, n // 8)),
    }
    if library.name == "jax" and not context.on_gpu:  # which compiles for each
        cases = {"condition 1e12": cases["condition 1e12"]}
    made = functools.cache(lambda what: cases[what]())
    methods = context.pick(("auto", "qdwh"), ("auto", "qdwh"), ("auto",))
    for dtype in ("float64", "float32"):
        for what in cases:
            for method in methods[:1] if what == "stack" else methods:
                text = f"{library.name} {dtype} {what} {method}"
                if not context.has_time(text):
                    return
                with context.guarded(text):
                    _accuracy(context, library, made(what).astype(dtype), dtype, method, text)


def _accuracy(
    context: Context, library: Library, a: np.ndarray, dtype: str, method: str, what: str
) -> None:
    bound = EPSILONS * format_of(dtype).epsilon
    result = polarlib.polar(library.make(a, dtype), method=method)
    u, h = library.host(result.unitary), library.host(result.hermitian)
    context.check(f"{what} orthogonality ({result.method})", orthogonality(u), bound)
    context.check(f"{what} backward", relative(u @ h - wide(a), wide(a)), bound)
    least = np.linalg.eigvalsh(h).min() / largest(h) if h.ndim == 2 else 0.0
    context.check(f"{what} least eigenvalue of H, negated", -least, bound)


# -- settings ------------------------------------------------------------------------------------


def settings(context: Context) -> dict[str, Any]:
    """Settings that users' scripts have on, under which float32 must stay float32."""
    return context.per_library(_settings)


def _settings(context: Context, library: Library) -> None:
    n = context.pick(1024, 512, 64)
    a, square = gaussian((n // 2, 2 * n), "float32"), gaussian((n, n), "float32")
    want = reference(a, "float32")
    x, y = library.make(a, "float32"), library.make(square, "float32")
    for what, setting in _settings_of(library):
        head = f"{library.name} {what}"
        if not context.has_time(head):
            return
        with context.guarded(head), setting:
            q = library.host(polarlib.orthogonalize(x, precision="float32"))
            u = library.host(polarlib.polar(y).unitary)
            context.check(f"{head}: orthogonalize", largest(q - want), AGREES["float32"])
            bound = EPSILONS * format_of("float32").epsilon
            context.check(f"{head}: polar, orthogonality", orthogonality(u), bound)


def _settings_of(library: Library) -> list[tuple[str, Any]]:
    if library.name == "torch":
        kind = library.place.type
        amp = [
            (f"autocast {d}", library.module.autocast(kind, dtype=getattr(library.module, d)))
            for d in ("bfloat16", "float16")
        ]
        levels = ("highest", "high", "medium")
        return [*((f"precision {p}", _torch_precision(library.module, p)) for p in levels), *amp]
    if library.name == "jax":
        context = library.module.default_matmul_precision
        return [(f"precision {p}", context(p)) for p in (None, "tensorfloat32", "bfloat16")]
    return [("as installed", contextlib.nullcontext())]


@contextlib.contextmanager
def _torch_precision(torch: Any, level: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(level)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# -- single rounding of CuPy's products ------------------------------------------------------------


def rounding(context: Context) -> dict[str, Any]:
    """``alpha A B + beta C`` in one rounding, against double precision, on CuPy.

    In units of the rounding that may happen: one of the result, and those of single precision in a
    sum of k terms, four times over since tensor cores truncate. Two roundings of 16 bits give 1.5
    and more.
    """
    if "cupy" not in context.libraries:
        context.skip("products of cuBLAS", context.absent.get("cupy", "CuPy is not there"))
        return {}
    library = context.libraries["cupy"]
    for dtype in library.formats:
        if not context.has_time(dtype):
            break
        worst = 0.0
        for stack in ((), (6,), (2, 3)):
            sizes = enumerate([(65, 40), (40, 33), (65, 33)])
            a, b, c = (gaussian((*stack, *size), dtype, seed) for seed, size in sizes)
            x, y, z = (library.make(each, dtype) for each in (a, b, c))
            turned = library.make(np.ascontiguousarray(np.swapaxes(a, -1, -2)), dtype)
            scalar = "float64" if dtype in ("float64", "complex128") else "float32"
            on_device = library.module.full((), 1.375, dtype=scalar)
            for left, scale in ((x, 1.375), (turned.swapaxes(-1, -2), 1.375), (x, on_device)):
                got = cublas.gemm(left, y, z.copy(), alpha=scale, beta=-0.625)
                worst = max(worst, _in_roundings(library.host(got), dtype, a, b, c))
        context.check(f"cupy {dtype} alpha A B + beta C", worst, 1.01, "roundings")
    return {}


def _in_roundings(got: np.ndarray, dtype: str, a: Any, b: Any, c: Any) -> float:
    """Largest error of ``1.375 A B - 0.625 C`` in units of what one rounding of it may be."""
    alpha, beta = 1.375, -0.625
    want = alpha * (wide(a) @ wide(b)) + beta * wide(c)
    terms = abs(alpha) * (np.abs(wide(a)) @ np.abs(wide(b))) + abs(beta) * np.abs(wide(c))
    of_parts = {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)
    unit = 0.5 * format_of(of_parts).epsilon
    inner = 0.5 * format_of("float64" if of_parts == "float64" else "float32").epsilon
    return largest((got - want) / (unit * np.abs(want) + 4 * (a.shape[-1] + 3) * inner * terms))
