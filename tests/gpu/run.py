"""What only a GPU can show of CuPy's branch (and of torch's on CUDA), by one command.

    python tests/gpu/run.py --json gpu.json

Correctness of every number format against NumPy, single rounding of products of stacks, that
``orthogonalize`` never waits for the device, the memory that it takes, and its speed beside that of
its products alone. The figures go to a table and to a file; a check that fails makes the exit
status 1, and a machine without a GPU makes it 2. docs/gpu.md says what the figures mean.
"""

from __future__ import annotations

import importlib
import json
import math
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import ml_dtypes
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import polarlib
from polarlib.arrays import cublas
from polarlib.arrays.ops import ops_of
from polarlib.arrays.rounded import rounded
from polarlib.files.whole import write_whole

Array = Any

# Keeps the device busy for some nanoseconds, so that whoever waits for it is seen.
SPIN = r"""
extern "C" __global__ void polarlib_spin(unsigned long long nanoseconds) {
  unsigned long long begun, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begun));
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  } while (now - begun < nanoseconds);
}
"""
SPIN_NANOSECONDS = 500_000_000
DTYPES = ("float32", "float64", "complex64", "complex128", "float16", "bfloat16")
# Squares, tall, wide, stacks, and stacks of stacks.
SHAPES = ((64, 64), (200, 72), (72, 200), (5, 96, 40), (2, 3, 40, 96))
# Bounds of the difference from NumPy: steps magnify the roundings of small singular values.
AGREES = {"float16": 0.1, "bfloat16": 0.1, "float32": 2e-4, "complex64": 2e-4, "tf32": 2e-2}
TIGHT = 1e-11
SIZES = (1024, 2048, 4096, 8192)
TIMED = ((1024, 1024), (4096, 1024), (4096, 4096), (16, 1024, 512))
REPEATS = 7


@dataclass(frozen=True)
class Row:
    """One figure; with a bound it is a check."""

    part: str
    what: str
    value: float
    bound: float | None = None

    @property
    def passed(self) -> bool:
        return self.bound is None or self.value <= self.bound


def matrices(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Gaussian matrices on the host."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    if dtype.startswith("complex"):
        a = a + 1j * rng.standard_normal(shape)
    return a.astype(getattr(ml_dtypes, dtype, None) or dtype)


def wide(a: np.ndarray) -> np.ndarray:
    """The same numbers in double precision."""
    return a.astype("c16" if a.dtype.kind == "c" else "f8")


# Correctness ----------------------------------------------------------------------------------


def correctness(cupy: Any) -> list[Row]:
    """``orthogonalize`` and ``polar`` beside what they give for NumPy arrays."""
    rows = []
    for shape in SHAPES:
        for dtype in DTYPES:
            a = matrices(shape, dtype)
            x, bound = cupy.asarray(a), AGREES.get(dtype, TIGHT)
            for form in ("plain", "gram"):
                want = wide(polarlib.orthogonalize(a, form=form))
                got = wide(polarlib.orthogonalize(x, form=form).get())
                what = f"{dtype} {shape} {form}"
                rows.append(Row("orthogonalize", what, largest(got - want), bound))
            want, _ = polarlib.polar(a)
            got, h = polarlib.polar(x)
            rows.append(
                Row("polar", f"{dtype} {shape}", largest(wide(got.get()) - wide(want)), bound)
            )
            back = wide(got.get()) @ wide(h.get()) - wide(a)
            rows.append(Row("polar", f"{dtype} {shape} A - UH", largest(back), 40 * bound))
        a = matrices(shape, "float32")
        kwargs = {"precision": "tf32", "schedule": "polar_express"}
        difference = polarlib.orthogonalize(cupy.asarray(a), **kwargs).get()
        difference = difference - polarlib.orthogonalize(a, **kwargs)
        rows.append(Row("orthogonalize", f"tf32 {shape}", largest(difference), AGREES["tf32"]))
    for dtype in DTYPES[:4]:
        rows += factors(cupy, dtype)
    for dtype in DTYPES:
        zero = cupy.asarray(0 * matrices((3, 8, 4), dtype))
        left = largest(wide(polarlib.orthogonalize(zero).get()))
        rows.append(Row("orthogonalize", f"{dtype} of zeros", left, 0.0))
    return rows


def factors(cupy: Any, dtype: str) -> list[Row]:
    """Cholesky factors of a definite matrix and of one that fails half-way, alone and together."""
    a = wide(matrices((300, 200), dtype))
    good = a.conj().T @ a + np.eye(200)
    bad = good.copy()
    bad[100, 100] = -1.0
    rows = []
    for stacked in (False, True):
        x, y = (cupy.asarray(np.stack([good, z]).astype(dtype)) for z in (good, bad))
        first, second = (
            wide((ops_of(z).cholesky(z) if stacked else ops_of(z).cholesky(z[1])).get())
            for z in (x, y)
        )
        l = first[0] if stacked else first
        what = f"{dtype} {'stack' if stacked else 'one'}"
        residual = largest(l @ l.conj().T - good) / largest(good)
        rows.append(Row("cholesky", what, residual, AGREES.get(dtype, TIGHT)))
        seen = bool(np.isnan(second[-1] if stacked else second).any())
        rows.append(Row("cholesky", f"{what}, failure is not seen", float(not seen), 0.0))
    return rows


def largest(a: np.ndarray) -> float:
    """Largest absolute entry; infinity for NaN, which no bound may let pass."""
    value = float(np.abs(a).max())
    return math.inf if math.isnan(value) else value


def products(cupy: Any) -> list[Row]:
    """``alpha A B + beta C`` in one rounding, against double precision.

    In units of the rounding that may happen: one of the result, and those of single precision in a
    sum of k terms, four times over since tensor cores truncate. Two roundings of 16 bits give 1.5
    and more.
    """
    rows = []
    for name in ("bfloat16", "float16", "float32", "float64", "complex64", "complex128"):
        for shape in ((), (6,), (2, 3)):
            a, b, c = (
                matrices((*shape, *size), name, seed)
                for seed, size in enumerate([(65, 40), (40, 33), (65, 33)])
            )
            x, y, z = map(cupy.asarray, (a, b, c))
            turned = cupy.asarray(np.ascontiguousarray(np.swapaxes(a, -1, -2))).swapaxes(-1, -2)
            scalar = "float64" if name in ("float64", "complex128") else "float32"
            alpha = cupy.full((), 1.375, dtype=scalar)
            for what, left, scale in (
                ("", x, 1.375),
                (" transposed", turned, 1.375),
                (" alpha on the device", x, alpha),
            ):
                got = cublas.gemm(left, y, z.copy(), alpha=scale, beta=-0.625)
                error = in_roundings(got.get(), a, b, c, 1.375, -0.625)
                rows.append(Row("products", f"{name} {shape}{what}", error, 1.01))
    # cuBLAS may sum parts of a long k in 16 bits unless told not to: a figure, no check.
    for name in ("bfloat16", "float16"):
        a, b = matrices((64, 16384), name, 1), matrices((16384, 64), name, 2)
        got = cublas.gemm(cupy.asarray(a), cupy.asarray(b)).get()
        rows.append(Row("products", f"{name} k = 16384", in_roundings(got, a, b, got, 1.0, 0.0)))
    return rows


def in_roundings(
    got: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray, alpha: float, beta: float
) -> float:
    """Largest error of ``alpha A B + beta C`` in units of what one rounding of it may be."""
    want = alpha * (wide(a) @ wide(b)) + beta * wide(c)
    terms = abs(alpha) * (np.abs(wide(a)) @ np.abs(wide(b))) + abs(beta) * np.abs(wide(c))
    unit = 0.5 * float(ml_dtypes.finfo(got.dtype).eps)
    inner = 0.5 * float(np.finfo(np.float32 if got.dtype.itemsize == 2 else got.dtype).eps)
    allowed = unit * np.abs(want) + 4 * (a.shape[-1] + 3) * inner * terms
    return largest((wide(got) - want) / allowed)


# Memory ---------------------------------------------------------------------------------------


def workspace(cupy: Any) -> list[Row]:
    """Most memory in use during a call beyond what was: in copies of the input."""
    rows = []
    shape = (512, 256)
    for dtype in ("float32", "bfloat16"):
        x = cupy.asarray(matrices(shape, dtype))
        for form in ("plain", "gram"):
            for schedule in ("polar_express", None):
                kwargs = {"form": form} | ({"schedule": schedule} if schedule else {})
                copies = peak_bytes(cupy, lambda x=x, kw=kwargs: polarlib.orthogonalize(x, **kw))
                # Two copies and three squares of half its size: 3.5.
                checked = (dtype, form, schedule) == ("float32", "plain", "polar_express")
                what = f"{dtype} {form} {schedule or 'default'}"
                rows.append(Row("workspace", what, copies / x.nbytes, 3.55 if checked else None))
    return rows


def peak_bytes(cupy: Any, call: Callable[[], Any]) -> int:
    """Most bytes that a call has in use, from the memory pool's own reports."""

    class Usage(cupy.cuda.MemoryHook):
        name = "polarlib workspace"
        used = peak = 0

        def malloc_postprocess(self, **kwargs: Any) -> None:
            self.used += kwargs["mem_size"]
            self.peak = max(self.peak, self.used)

        def free_postprocess(self, **kwargs: Any) -> None:
            self.used -= kwargs["mem_size"]

    call()  # compiles, and lets cuBLAS take its own
    with Usage() as usage:
        call()
    return usage.peak


# Waiting --------------------------------------------------------------------------------------


def waiting(cupy: Any) -> list[Row]:
    """Whether a call returns while the device is still busy with what came before: 0, or 1."""
    spin = cupy.RawKernel(SPIN, "polarlib_spin")

    def waits(call: Callable[[], Any]) -> bool:
        call()  # compiles, which may wait
        cupy.cuda.Device().synchronize()
        spin((1,), (1,), (np.uint64(SPIN_NANOSECONDS),))
        spun = cupy.cuda.Event(disable_timing=True)
        spun.record()
        kept = call()
        waited = bool(spun.done)
        cupy.cuda.Device().synchronize()
        del kept
        return waited

    rows = []
    for dtype in DTYPES:
        for shape in ((256, 128), (4, 128, 256)):
            x = cupy.asarray(matrices(shape, dtype))
            for form in ("plain", "gram"):
                for kind in ("frobenius", "spectral", "moments"):
                    kwargs = {"form": form, "normalisation": kind, "schedule": "polar_express"}
                    waited = waits(lambda x=x, kw=kwargs: polarlib.orthogonalize(x, **kw))
                    rows.append(Row("waits", f"{dtype} {shape} {form} {kind}", waited, 0))
    # The check must be able to fail.
    x = cupy.ones(1)
    rows.append(Row("waits", "a call that waits is seen (0: yes)", not waits(x.item), 0))
    return rows


# Speed ----------------------------------------------------------------------------------------


def seconds(cupy: Any, calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median time of calls on the device, taken by turns."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(REPEATS):
        names = list(calls)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begun, ended = cupy.cuda.Event(), cupy.cuda.Event()
            begun.record()
            kept = calls[name]()
            ended.record()
            ended.synchronize()
            del kept
            times[name].append(cupy.cuda.get_elapsed_time(begun, ended) / 1000)
    return {name: statistics.median(t) for name, t in times.items()}


def speed(
    cupy: Any, sizes: tuple[int, ...] = SIZES, shapes: tuple[tuple[int, ...], ...] = TIMED
) -> list[Row]:
    """Products in TFLOP/s, ours beside CuPy's; orthogonalize beside its products alone."""
    rows = []
    for n in sizes:
        for name in ("bfloat16", "float16", "tf32", "float32"):
            dtype = "float32" if name == "tf32" else name
            x = cupy.asarray(matrices((n, n), "float32")).astype(matrices((1,), dtype).dtype)
            out = cupy.empty_like(x)
            tf32 = name == "tf32"
            times = seconds(
                cupy,
                {
                    "ours": lambda x=x, out=out, tf32=tf32: cublas.gemm(x, x, out, tf32=tf32),
                    "with addend": lambda x=x, out=out, tf32=tf32: cublas.gemm(
                        x, x, out, alpha=0.5, beta=0.5, tf32=tf32
                    ),
                    "cupy.matmul": lambda x=x, out=out: cupy.matmul(x, x, out=out),
                },
            )
            rows += [
                Row("TFLOP/s", f"{name} {n} {what}", 2 * n**3 / t / 1e12)
                for what, t in times.items()
            ]
    for shape in shapes:
        for name in ("bfloat16", "tf32", "float32"):
            rows += beside_products(cupy, shape, name)
    return rows


def beside_products(cupy: Any, shape: tuple[int, ...], name: str) -> list[Row]:
    """Time of ``orthogonalize`` in the plain form over that of its products alone."""
    dtype = "float32" if name == "tf32" else name
    x = cupy.asarray(matrices(shape, dtype))
    ops = rounded(ops_of(x), name)
    g = ops.gram(x)
    z = cupy.empty_like(g)
    out = cupy.empty_like(x)
    steps = len(polarlib.schedule("polar_express"))

    def alone() -> None:
        for _ in range(steps):
            ops.gram(x, g)
            ops.matmul(g, g, z)
            ops.matmul(x, z, out)

    def whole() -> Array:
        return polarlib.orthogonalize(x, schedule="polar_express", form="plain", precision=name)

    times = seconds(cupy, {"whole": whole, "alone": alone})
    what = f"{name} {shape}"
    return [
        Row("milliseconds", what, 1000 * times["whole"]),
        Row("over its products", what, times["whole"] / times["alone"]),
    ]


# torch ----------------------------------------------------------------------------------------


def with_torch() -> list[Row]:
    """``orthogonalize`` of tensors on CUDA: agreement with NumPy, and whether it waits."""
    torch = importlib.import_module("torch")
    rows = []
    for dtype in DTYPES:
        for shape in SHAPES:
            a = matrices(shape, dtype)
            x = torch.tensor(wide(a)).to(getattr(torch, dtype)).cuda()
            q = polarlib.orthogonalize(x)
            got = q.to(torch.complex128 if q.is_complex() else torch.float64).cpu().numpy()
            error = largest(got - wide(polarlib.orthogonalize(a)))
            rows.append(Row("torch", f"{dtype} {shape}", error, AGREES.get(dtype, TIGHT)))
        torch.cuda.synchronize()
        torch.cuda._sleep(1_000_000_000)  # cycles
        slept = torch.cuda.Event()
        slept.record()
        polarlib.orthogonalize(x)
        rows.append(Row("torch", f"{dtype} waits", bool(slept.query()), 0))
        torch.cuda.synchronize()
    return rows


# The command ----------------------------------------------------------------------------------


def gpu() -> Any:
    """CuPy on a machine with a GPU; otherwise ValueError says what is missing."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError:
        raise ValueError("CuPy is not installed: pip install polarlib[cupy]") from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CUDA's own, of a class that is CuPy's
        raise ValueError(f"there is no GPU that CuPy can use: {error}") from None
    if not count:
        raise ValueError("there is no GPU that CuPy can use")
    return cupy


def machine(cupy: Any) -> dict[str, Any]:
    """What the figures were measured on."""
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    name = properties["name"]
    return {
        "gpu": name.decode() if isinstance(name, bytes) else str(name),
        "compute capability": cupy.cuda.Device().compute_capability,
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
        "numpy": np.__version__,
        "polarlib": polarlib.__version__,
        "python": platform.python_version(),
        "by cuBLAS's binding": cublas._binding() is not None,
        "tf32": cublas.has_tf32(),
    }


def main(
    path: Annotated[
        Path | None, typer.Option("--json", help="File for all figures, written whole.")
    ] = None,
    timed: Annotated[bool, typer.Option(help="Measure speed too.")] = True,
) -> None:
    """Check CuPy's branch, and torch's on CUDA, on this machine's GPU."""
    try:
        cupy = gpu()
    except ValueError as error:
        Console(stderr=True).print(f"tests/gpu/run.py: {error}", soft_wrap=True, markup=False)
        raise typer.Exit(2) from None
    where = machine(cupy)
    rows: list[Row] = []
    parts: list[Callable[[Any], list[Row]]] = [correctness, products, workspace, waiting]
    for part in (*parts, speed) if timed else parts:
        rows += part(cupy)
    torch = sys.modules.get("torch") or _imported("torch")
    if torch is not None and torch.cuda.is_available():
        rows += with_torch()
    show(where, rows)
    if path is not None:
        figures = {"machine": where, "rows": [asdict(r) | {"passed": r.passed} for r in rows]}
        write_whole(path, lambda file: file.write((json.dumps(figures, indent=1) + "\n").encode()))
    raise typer.Exit(int(not all(row.passed for row in rows)))


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def show(where: dict[str, Any], rows: list[Row]) -> None:
    """Print the figures as a table, and how many checks passed."""
    table = Table(title=f"{where['gpu']}, CuPy {where['cupy']}")
    for column in ("part", "what"):
        table.add_column(column)
    for column in ("value", "bound", ""):
        table.add_column(column, justify="right")
    for row in rows:
        bound = "" if row.bound is None else f"{row.bound:.3g}"
        verdict = "" if row.bound is None else ("ok" if row.passed else "[red]FAILED[/red]")
        table.add_row(row.part, row.what, f"{row.value:.4g}", bound, verdict)
    console = Console()
    console.print(table)
    checks = [row for row in rows if row.bound is not None]
    failed = sum(not row.passed for row in checks)
    console.print(f"{len(checks) - failed} of {len(checks)} checks passed")


if __name__ == "__main__":
    typer.run(main)
