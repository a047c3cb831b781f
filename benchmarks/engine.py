"""Speed of the engine: against its matrix products alone, and against a textbook loop.

    python benchmarks/engine.py [--markdown docs/benchmarks.md] [--json FILE] [--quick]

Every comparison is a ratio of medians of interleaved runs on the same data in one process. The
products alone are those that the iteration takes, into preallocated storage, with nothing between
them. The textbook loop is the one that papers print: normalise, then X <- a X + (b G + c G G) X.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import interleaved
from rich.console import Console
from rich.table import Table

import polarlib
from polarlib.iterate import iterate
from polarlib.ops import ops_of
from polarlib.precision import rounded
from polarlib.result import write_whole

SHAPES = [(256, 256), (512, 512), (1024, 1024), (4096, 1024), (2048, 512), (512, 2048)]


def case(
    a: Any, norm_of: Callable[[Any], Any], matmul: Callable[..., Any], empty: Callable[..., Any]
) -> dict[str, Callable[[], Any]]:
    """Functions to time on one matrix, of NumPy or torch.

    Parameters
    ----------
    a : array, shape (m, n)
        The matrix.
    norm_of : callable
        The library's Frobenius norm.
    matmul, empty : callable
        The library's product into storage, ``matmul(a, b, out=c)``, and storage like an array's.
    """
    schedule = polarlib.schedule("polar_express", steps=5)
    m, n = a.shape
    x = (a if m >= n else a.mT) / norm_of(a)
    own, y = empty(x.shape), empty(x.shape)
    own[...] = x
    g, z = empty((min(m, n),) * 2), empty((min(m, n),) * 2)

    def products() -> None:
        for _ in schedule.steps:
            matmul(own.mT, own, out=g)
            matmul(g.mT, g, out=z)
            matmul(own, z, out=y)

    def textbook() -> Any:
        x = a / (norm_of(a) + 1e-7)
        if m > n:
            x = x.mT
        for p, q, r in schedule.steps:
            gram = x @ x.mT
            x = p * x + (q * gram + r * gram @ gram) @ x
        return x.mT if m > n else x

    ops = ops_of(a)
    low = rounded(ops, ops.format_name(a))
    return {
        "products": products,
        "textbook": textbook,
        "engine": lambda: iterate(own, schedule.steps, low),
        "orthogonalize, plain": lambda: polarlib.orthogonalize(a, form="plain"),
        "orthogonalize": lambda: polarlib.orthogonalize(a),
    }


def numpy_case(m: int, n: int, dtype: str) -> dict[str, Callable[[], Any]]:
    """One NumPy matrix."""
    a = np.random.default_rng(0).standard_normal((m, n)).astype(dtype)
    return case(a, np.linalg.norm, np.matmul, functools.partial(np.empty, dtype=dtype))


def torch_case(m: int, n: int, dtype: str) -> dict[str, Callable[[], Any]]:
    """One torch tensor on the CPU."""
    import torch

    torch.manual_seed(0)
    a = torch.randn(m, n).to(getattr(torch, dtype))
    return case(a, torch.linalg.norm, torch.matmul, a.new_empty)


def main(
    markdown: Annotated[Path | None, typer.Option(help="Write a page with the table.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures.")] = None,
    quick: Annotated[bool, typer.Option(help="Small shapes, short runs.")] = False,
) -> None:
    """Time the engine and print one table."""
    cases = [("NumPy", d, numpy_case) for d in ("float32", "float64")]
    if importlib.util.find_spec("torch"):
        cases += [("torch", d, torch_case) for d in ("bfloat16", "float32")]
    rows = []
    for library, dtype, make in cases:
        for m, n in SHAPES[:2] if quick else SHAPES:
            functions = make(m, n, dtype)
            times = interleaved(list(functions.values()), 0.5 if quick else 4.0)
            median = dict(zip(functions, map(statistics.median, times), strict=True))
            ratios = [[e / p for e, p in zip(times[2], times[i], strict=True)] for i in (0, 1)]
            rows.append(
                {
                    "library": library,
                    "dtype": dtype,
                    "shape": f"{m} x {n}",
                    "runs": len(times[0]),
                    "milliseconds": {k: 1e3 * v for k, v in median.items()},
                    "engine / products": median["engine"] / median["products"],
                    "engine / products, quartiles": statistics.quantiles(ratios[0], n=4)[::2],
                    "engine / textbook": median["engine"] / median["textbook"],
                    "plain / textbook": median["orthogonalize, plain"] / median["textbook"],
                    "auto / textbook": median["orthogonalize"] / median["textbook"],
                }
            )
    header = ["library", "dtype", "shape", "runs", "products ms", "engine ms", "engine/products"]
    header += ["(quartiles)", "engine/textbook", "plain/textbook", "auto/textbook"]
    lines = [
        [
            *(str(r[k]) for k in ("library", "dtype", "shape", "runs")),
            f"{r['milliseconds']['products']:.2f}",
            f"{r['milliseconds']['engine']:.2f}",
            f"{r['engine / products']:.3f}",
            "{:.3f}-{:.3f}".format(*r["engine / products, quartiles"]),
            *(f"{r[k + ' / textbook']:.3f}" for k in ("engine", "plain", "auto")),
        ]
        for r in rows
    ]
    table = Table(*header, title="polar_express, 5 steps, 15 products")
    for line in lines:
        table.add_row(*line)
    Console(width=150).print(table)
    where = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
    where += f"NumPy {np.__version__}"
    if json_file is not None:
        text = json.dumps({"machine": where, "rows": rows}, indent=1)
        write_whole(json_file, lambda f: f.write(text.encode()))
    if markdown is not None:
        body = [header, ["---"] * len(header), *lines]
        page = main_page.format(where=where) + "\n".join("| " + " | ".join(r) + " |" for r in body)
        write_whole(markdown, lambda f: f.write((page + "\n").encode()))


main_page = """# Speed of the engine

Made by `python benchmarks/engine.py --markdown docs/benchmarks.md`; nothing here is typed by hand.
Schedule polar_express, five steps, 15 matrix products. Machine: {where}.

- *products*: the same matrix products into preallocated storage, nothing else.
- *engine*: the plain form of the iteration on a normalised matrix.
- *textbook*: the loop that papers print, normalisation included.
- *plain*, *auto*: `orthogonalize` in plain form, and as it chooses itself, normalisation and the
  check for NaN included.

Ratios are of medians of interleaved runs; the quartiles are of the ratios of single runs. Below 1
is faster than what is compared with.

"""

if __name__ == "__main__":
    typer.run(main)
