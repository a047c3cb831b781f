"""Two Halley steps on one Gram matrix compared with five degree-5 steps.

    python benchmarks/halley.py [--markdown docs/evidence/halley.md] [--quick]
    python benchmarks/halley.py --seconds

The first makes the tables of accuracy and of the lower end, in simulated formats on NumPy; the
second times torch's own bfloat16 on this machine.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import typer
from common import replace_part

import polarlib
from polarlib import design
from polarlib._methods.halley import LOWER, halley, rational
from polarlib.arrays.formats import format_of
from polarlib.arrays.library import astype_like, at_least_single
from polarlib.arrays.ops import ops_of
from polarlib.arrays.rounded import round_to
from polarlib.testing import SPECTRA, spectrum, with_singular_values
from polarlib.timing import interleaved

FORMATS = ("bfloat16", "float16")
SHAPES = ((256, 256), (2048, 256))
METRICS = ("orthogonality", "backward error", "negative part", "nuclear gap", "above 1")
# Shapes that are timed, and seconds for each.
TIMED, SECONDS = ((512, 512), (1024, 1024), (2048, 512), (4096, 512), (4096, 256)), 5.0


def matrices(m: int, n: int, precision: str, seeds: range) -> Iterator[np.ndarray]:
    """The stress spectra, as numbers of a format in float32."""
    for name in SPECTRA:
        for seed in seeds:
            a = with_singular_values(spectrum(name, n), m, n, seed=seed).astype(np.float32)
            yield round_to(a, format_of(precision), ops_of(a))


def metrics(a: np.ndarray, q: np.ndarray) -> list[float]:
    """The five figures of the field's stress test."""
    a, q = a.astype(np.float64), q.astype(np.float64)
    n = a.shape[1]
    w = q.T @ a
    h = (w + w.T) / 2
    s = np.linalg.svd(a, compute_uv=False)
    return [
        float(np.linalg.norm(q.T @ q - np.eye(n)) / np.sqrt(n)),
        float(np.linalg.norm(a - q @ h) / np.linalg.norm(a)),
        max(0.0, -float(np.linalg.eigvalsh(h)[0])) / float(s[0]),
        1 - float(np.trace(w)) / float(np.sum(s)),
        max(0.0, float(np.linalg.norm(q, 2)) - 1),
    ]


def _one_part(z: Any, q: Any, fmt: Any, ops: Any, low: Any) -> Any:
    """The product with Q rounded to 16 bits, which is what two parts are there to avoid."""
    return low.matmul(z, low.cast(q, fmt.name))


def ways(precision: str) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """What is compared, by name."""
    degree_5 = design.for_precision(precision, LOWER, steps=5)
    module = importlib.import_module("polarlib._methods.halley")

    def ours(a: np.ndarray, inside: str = precision) -> np.ndarray:
        return rational(a, ops_of(a), halley(), precision=inside)[0]

    def rounded_once(a: np.ndarray) -> np.ndarray:
        with mock.patch.object(module, "_times", _one_part):
            return ours(a)

    def theirs(form: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda a: polarlib.orthogonalize(
            a, schedule=degree_5, precision=precision, form=form
        )

    return {
        "halley": ours,
        "its X Q in float32": lambda a: ours(a, "float32"),
        "its Q in one part": rounded_once,
        "five degree-5 steps, plain": theirs("plain"),
        "five degree-5 steps, Gram": theirs("gram"),
    }


def stress(shapes: tuple[tuple[int, int], ...], seeds: range) -> str:
    """Worst and mean figures over the spectra."""
    rows = [
        f"| format | shape | variant | {' | '.join(METRICS)} |",
        "| --- | --- | --- |" + " --- |" * len(METRICS),
    ]
    for precision in FORMATS:
        for m, n in shapes:
            for name, apply in ways(precision).items():
                found = np.array([metrics(a, apply(a)) for a in matrices(m, n, precision, seeds)])
                figures = (
                    f"{worst:.2g} / {mean:.2g}"
                    for worst, mean in zip(found.max(axis=0), found.mean(axis=0), strict=True)
                )
                rows.append(f"| {precision} | {m} × {n} | {name} | {' | '.join(figures)} |")
    return "\n".join(rows)


def lowers(seeds: range) -> str:
    """The lower end: what two steps reach on it, and the mean figures over the spectra."""
    rows = [
        f"| l | error on [l, 1] | slope | format | {' | '.join(METRICS)} |",
        "| --- | --- | --- | --- |" + " --- |" * len(METRICS),
    ]
    for lower in (1e-2, 3e-3, 1e-3, 3e-4, 1e-4):
        schedule = design.zolotarev(1, lower).truncate(2)
        for precision in FORMATS:
            found = [
                metrics(a, rational(a, ops_of(a), schedule, precision=precision)[0])
                for a in matrices(256, 256, precision, seeds)
            ]
            figures = " | ".join(f"{v:.2g}" for v in np.mean(found, axis=0))
            head = f"| {lower:g} | {schedule.error():.4f} | {schedule.slope:.0f} | {precision}"
            rows.append(f"{head} | {figures} |")
    return "\n".join(rows)


def seconds() -> str:
    """Milliseconds of torch's bfloat16, the least of several."""
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    degree_5 = design.for_precision("bfloat16", LOWER, steps=5)
    rows = [
        "| shape | halley | five degree-5 steps, plain | Gram | ratio |",
        "| --- |" + " --- |" * 4,
    ]
    for m, n in TIMED:
        x = torch.randn(m, n).bfloat16()
        ops = ops_of(x)

        def ours(x: Any = x, ops: Any = ops) -> Any:
            wide = at_least_single(x, ops)
            return astype_like(rational(wide, ops, halley(), precision="bfloat16")[0], x, ops)

        def theirs(form: str, x: Any = x) -> Callable[[], Any]:
            return lambda: polarlib.orthogonalize(x, schedule=degree_5, form=form)

        functions = {"halley": ours, "plain": theirs("plain"), "gram": theirs("gram")}
        best = [1e3 * min(t) for t in interleaved(functions, SECONDS).values()]
        each = " | ".join(f"{t:.1f}" for t in best)
        rows.append(f"| {m} × {n} | {each} | {best[0] / min(best[1:]):.2f} |")
    return "\n".join(rows)


def main(
    markdown: Annotated[
        Path | None, typer.Option(help="Page whose parts are made anew; else they are printed.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="One small shape.")] = False,
    time: Annotated[bool, typer.Option("--seconds", help="Time torch instead.")] = False,
) -> None:
    """Make the tables."""
    if time:
        parts = {"halley seconds": seconds()}
    else:
        seeds = range(1, 2 if quick else 3)
        parts = {
            "halley stress": stress(((64, 64),) if quick else SHAPES, seeds),
            "halley lower": lowers(seeds),
        }
    for name, body in parts.items():
        if markdown is None:
            typer.echo(f"{name}\n\n{body}\n")
        else:
            replace_part(markdown, name, body)


if __name__ == "__main__":
    typer.run(main)
