"""Parts that measure: beside textbook loops, torch.optim.Muon, SVDs, cuSOLVER's own, cuBLAS."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import polarlib
from gpu.context import Context, gaussian, largest, orthogonality
from gpu.libraries import Call, Library
from gpu.xpolar import xpolar
from polarlib import bench
from polarlib.arrays import cublas
from polarlib.arrays.ops import ops_of
from polarlib.arrays.rounded import rounded
from polarlib.arrays.triton_symmetric import can_halve, halved
from polarlib.engine.symmetric import rivals

JORDAN = (3.4445, -4.7750, 2.0315)
STEPS = 5


def race(context: Context, library: Library, head: str, calls: dict[str, Call], **how: Any) -> None:
    """Time functions, interleaved, and report device, host and whole call times, and the rate."""
    share = min(3.0, context.left / 3) if context.on_gpu else 0.0
    flops = how.get("flops", 0.0)
    there = {}
    for name, call in calls.items():
        with context.guarded(f"{head} {name}"):
            there[name] = library.first(call)
    for name, each in library.times({name: calls[name] for name in there}, there, share).items():
        more = {"host": 1000 * each.host, "call": 1000 * each.wall}
        if flops:
            more["TFLOP/s"] = flops / each.best_known / 1e12
        context.figure(f"{head} {name}, {each.kind}", 1000 * each.best_known, "ms", **more)


# -- orthogonalize ---------------------------------------------------------------------------------


def orthogonalize(context: Context) -> dict[str, Any]:
    """Beside its products alone, the textbook loop and torch.optim.Muon, at equal steps."""
    return context.per_library(_orthogonalize)


def _orthogonalize(context: Context, library: Library) -> None:
    shapes = context.pick(
        ((1024, 1024), (4096, 4096), (4096, 1024), (1024, 4096), (16, 1024, 1024), (768, 768),
         (2048, 2048), (64, 768, 768), (8192, 8192)),
        ((1024, 1024), (4096, 1024)),
        ((24, 16), (2, 16, 24))[: 2 - (library.name == "jax")],
    )  # fmt: skip
    dtypes = ("bfloat16", "float32") if context.on_gpu else ("float32",)
    for shape, dtype in itertools.product(shapes, dtypes):
        if dtype == "float32" and max(shape) > 1024:
            continue
        head = f"{library.name} {dtype} {shape}"
        if not context.has_time(head):
            return
        with context.guarded(head):
            x = library.make(gaussian(shape, dtype), dtype)
            calls = rivals_of(context, library, x, shape)
            race(context, library, head, calls, flops=flops_of(shape))


def flops_of(shape: tuple[int, ...]) -> float:
    """Operations of five steps of degree 5."""
    (small, large), count = sorted(shape[-2:]), int(np.prod(shape[:-2]))
    return count * STEPS * (2 * 2 * large * small**2 + 2 * small**3)


def rivals_of(
    context: Context, library: Library, x: Any, shape: tuple[int, ...]
) -> dict[str, Call]:
    """Functions of five steps of degree 5, by name."""
    matmul = library.numpy.matmul if library.name == "jax" else library.module.matmul
    loop = lambda x: textbook(x, matmul)  # noqa: E731, may be compiled
    loop = library.module.jit(loop) if library.name == "jax" else loop
    calls = {
        "polarlib": lambda: polarlib.orthogonalize(x),
        "polarlib jordan": lambda: polarlib.orthogonalize(x, schedule="jordan"),
    }
    if library.name == "cupy" and len(shape) > 2 and str(x.dtype) == "bfloat16":
        context.skip("textbook loop", "CuPy has no products of stacks of bfloat16")
        return calls
    calls["textbook"] = lambda: loop(x)
    if library.name == "jax":
        return calls
    calls["products alone"] = lambda: products_alone(x, matmul)
    if library.name == "torch" and len(shape) == 2:
        try:
            muon = importlib.import_module("torch.optim._muon")._zeropower_via_newtonschulz
        except (ImportError, AttributeError):
            context.skip("torch.optim.Muon", "torch has none, or it has another name")
        else:
            calls["torch.optim.Muon"] = lambda: muon(x, JORDAN, STEPS, 1e-7)
    return calls


def textbook(x: Any, matmul: Callable[[Any, Any], Any]) -> Any:
    """The five steps as everybody writes them, in the format of the matrix."""
    a, b, c = JORDAN
    tall, dtype = x.shape[-2] > x.shape[-1], x.dtype

    def narrow(y: Any) -> Any:
        return y if y.dtype == dtype else y.astype(dtype)

    x = x.swapaxes(-1, -2) if tall else x
    x = narrow(x / ((x * x).sum((-2, -1))[..., None, None] ** 0.5 + 1e-7))
    for _ in range(STEPS):
        g = matmul(x, x.swapaxes(-1, -2))
        x = narrow(a * x + matmul(narrow(b * g + c * matmul(g, g)), x))
    return x.swapaxes(-1, -2) if tall else x


def products_alone(x: Any, matmul: Callable[[Any, Any], Any]) -> Any:
    """As many products of the same shapes."""
    y = x.swapaxes(-1, -2) if x.shape[-2] > x.shape[-1] else x
    z = y
    for _ in range(STEPS):
        g = matmul(y, y.swapaxes(-1, -2))
        z = matmul(matmul(g, g), y)
    return z


# -- polar -----------------------------------------------------------------------------------------


def polar(context: Context) -> dict[str, Any]:
    """Beside the SVD that users have, and cuSOLVER's own polar decomposition."""
    return context.per_library(_polar)


def _polar(context: Context, library: Library) -> None:
    shapes = context.pick(
        (((1024, 1024), "float64"), ((1024, 1024), "float32"), ((4096, 4096), "float32"),
         ((8192, 1024), "float64"), ((4096, 4096), "float64")),
        (((1024, 1024), "float64"), ((1024, 1024), "float32")),
        (((24, 16), "float64"),),
    )  # fmt: skip
    for shape, dtype in shapes:
        head = f"{library.name} {dtype} {shape}"
        if not context.has_time(head):
            return
        x = library.make(gaussian(shape, dtype), dtype)
        calls: dict[str, Call] = {
            "polar": lambda x=x: polarlib.polar(x),
            "SVD": lambda x=x: by_svd(library, x),
        }
        if context.on_gpu:
            calls["polar qdwh"] = lambda x=x: polarlib.polar(x, method="qdwh")
        race(context, library, head, calls | _xpolar_call(context, library, x, head))


def by_svd(library: Library, x: Any) -> tuple[Any, Any]:
    """Both factors, as users make them."""
    u, s, vh = library.svd(x)
    return u @ vh, (vh.swapaxes(-1, -2) * s[..., None, :]) @ vh


def _xpolar_call(context: Context, library: Library, x: Any, head: str) -> dict[str, Call]:
    """Return cuSOLVER's function, if it is there and right."""
    if library.name != "torch" or not context.on_gpu:
        return {}
    try:
        call = xpolar(library.module, x)
        unitary = library.host(call())
    except Exception as error:  # not installed, too old, refused
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        context.skip(f"{head} cusolverDnXpolar", text)
        return {}
    context.figure(f"{head} cusolverDnXpolar, orthogonality", orthogonality(unitary))
    want = library.host(polarlib.polar(x).unitary)
    context.figure(f"{head} cusolverDnXpolar, off polar", largest(unitary - want))
    return {"cusolverDnXpolar": call}


def small(context: Context) -> dict[str, Any]:
    """Stacks of small matrices beside the SVD, and the nearest rotations."""
    return context.per_library(_small)


def _small(context: Context, library: Library) -> None:
    shapes = context.pick(
        ((20000, 3, 3), (5000, 4, 4), (256, 64, 64), (64, 200, 200)),
        ((5000, 3, 3), (64, 64, 64)),
        ((2, 12, 12), (20, 3, 3)),
    )
    if library.name == "jax" and not context.on_gpu:
        context.skip(library.name, "compiles for seconds, for times that mean nothing")
        return
    for shape in shapes:
        head = f"{library.name} float32 {shape}"
        if not context.has_time(head):
            return
        x = library.make(gaussian(shape, "float32"), "float32")
        calls: dict[str, Call] = {
            "polar": lambda x=x: polarlib.polar(x),
            "SVD": lambda x=x: by_svd(library, x),
        }
        if shape[-1] == 3:
            calls["nearest_rotation"] = lambda x=x: polarlib.nearest_rotation(x)
        race(context, library, head, calls)


# -- products --------------------------------------------------------------------------------------


def products(context: Context) -> dict[str, Any]:
    """What the device reaches in products: the library's, and CuPy's through cuBLAS's binding."""
    return context.per_library(_products)


def _products(context: Context, library: Library) -> None:
    for n in context.pick((4096, 1024, 8192), (2048,), (16,)):
        for dtype in ("bfloat16", "float32", "float16", "float64"):
            head = f"{library.name} {dtype} {n}"
            if not context.has_time(head):
                return
            x = library.make(gaussian((n, n), dtype), dtype)
            race(context, library, head, _products_of(library, x), flops=2.0 * n**3)


def _products_of(library: Library, x: Any) -> dict[str, Call]:
    if library.name == "jax":
        return {"matmul": lambda: library.numpy.matmul(x, x)}
    out = library.module.empty_like(x)
    calls: dict[str, Call] = {"matmul": lambda: library.module.matmul(x, x, out=out)}
    if library.name == "cupy":
        calls["ours"] = lambda: cublas.gemm(x, x, out)
        calls["ours with addend"] = lambda: cublas.gemm(x, x, out, alpha=0.5, beta=0.5)
        calls["ours in tf32"] = lambda: cublas.gemm(x, x, out, tf32=True)
        if str(x.dtype) != "float32":
            del calls["ours in tf32"]
    return calls


def symmetric(context: Context) -> dict[str, Any]:
    """The Triton kernel: exact on integers, and beside two products of cuBLAS."""
    return context.per_library(_symmetric, "torch")


def _symmetric(context: Context, library: Library) -> None:
    one = library.make(np.ones((1, 1)), "float32")
    if not can_halve(ops_of(one), "float32"):
        context.skip("symmetric products by Triton", "triton is not installed")
        return
    for dtype in ("bfloat16", "float16", "float32"):
        a = np.random.default_rng(0).integers(-1, 2, (200, 2100)).astype(float)
        x = library.make(a, dtype)
        ops = halved(rounded(ops_of(x), dtype))
        context.check(f"{dtype} X^H X", largest(library.host(ops.gram(x)) - a.T @ a), 0.0)
        unit = library.make(np.eye(130), dtype)
        got = library.host(ops.quadratic(unit, (0.0, -2.0, 0.5)))
        context.check(f"{dtype} polynomial", largest(got + 1.5 * np.eye(130)), 0.0)
    for n in context.pick((1024, 2048, 4096, 8192), (2048,), ()):
        a = gaussian((n, n), "float32")
        for name, pair in rivals(library.make(a + a.T, "float64"), lambda x, ops: x).items():
            if not context.has_time(f"{name} {n}"):
                return
            calls = {"whole": pair["matmul"], "by half": pair["symmetric"]}
            race(context, library, f"{name} {n}", calls, flops=2.0 * n**3)


# -- costs of kernels ------------------------------------------------------------------------------


def calibration(context: Context, path: Path | None = None) -> dict[str, Any]:
    """Costs of kernels for the choice of methods: what ``polarlib bench --calibrate`` writes."""
    tables: dict[str, Any] = {}

    def measure(context: Context, library: Library) -> None:
        name, sizes = library.name, context.pick((64, 256, 1024, 2048), (256, 1024), (4, 8))
        if not context.on_gpu and name != "cupy":
            context.skip(name, "costs on a CPU: polarlib bench --calibrate")
        elif context.has_time(name):
            seconds = min(20.0, max(0.01, context.left / 2)) if context.on_gpu else 0.01
            found = bench.calibrate(name, sizes=sizes, seconds=seconds, device="gpu")
            tables.update(found)
            costs = found[name]["gpu"]["float32"]
            last = {kernel: costs[kernel][-1] for kernel in ("cholesky", "qr", "eigh")}
            context.figure(f"{name} float32 {sizes[-1]}: SVD", costs["svd"][-1], "products", **last)

    context.per_library(measure)
    if path is not None and tables and context.on_gpu:
        bench.add_costs(path, tables)
        context.note(f"{path} written; POLARLIB_COSTS names it to polarlib")
    return {"costs": tables}
