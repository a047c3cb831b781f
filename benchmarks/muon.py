"""Time of a step of Muon: the optimizers of examples/ against torch.optim.Muon and optax.contrib.

    python benchmarks/muon.py --only 1024 --json docs/data/muon.json --markdown PAGE
    python benchmarks/muon.py --page --json docs/data/muon.json --markdown PAGE

The page is docs/evidence/muon.md. The second line makes it from the data and measures nothing.
Both sides use Jordan's coefficients, five steps and the same gradients, interleaved in one process.
The momentum, the iteration, the weight decay and the update are timed. torch.optim.Muon iterates in
bfloat16 only; in float32 the comparison is with optax. The ratio is that of the medians, above 1
where the optimizer of examples/ is faster; the file also has the ratio of every round. Three
minutes on two cores.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from common import replace_part, restart_with, table, where
from rich.console import Console

from polarlib.files.whole import write_whole
from polarlib.timing import interleaved, ratios

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
THEIRS = {"torch": "torch.optim.Muon", "jax": "optax.contrib.muon"}
# A transformer of width 256: projections of attention, its output, and the two of the MLP.
LAYER = ((768, 256), (256, 256), (1024, 256), (256, 1024))
SHAPES = {"1024 x 1024": ((1024, 1024),), "2048 x 1024": ((2048, 1024),), "12 layers": LAYER * 12}
QUICK = {"16 x 16": ((16, 16),), "2 layers": ((24, 8), (8, 8)) * 2}
FORMATS = {"torch": ("bfloat16",), "jax": ("float32", "bfloat16")}
LEAST, SECONDS, RATE = 5, 8.0, 0.02


class Case(NamedTuple):
    """Matrices of one library, and the format of the iteration on both sides."""

    library: str
    format: str
    name: str
    shapes: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return f"{self.library} {self.format} {self.name}"


def cases(shapes: dict[str, tuple[tuple[int, int], ...]]) -> Iterator[Case]:
    """Return every case, in the order of the table."""
    for library, formats in FORMATS.items():
        for name, many in shapes.items():
            yield from (Case(library, each, name, many) for each in formats)


def example(name: str) -> Any:
    """Return a script of examples/ as a module."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name)


def random(shapes: tuple[tuple[int, int], ...], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, np.float32) / 16 for shape in shapes]


def steps_of_torch(case: Case) -> dict[str, Callable[[], Any]]:
    """Return a step of both, with float32 parameters and gradients, iterated in bfloat16."""
    torch = importlib.import_module("torch")
    made = {}
    for name, kind in (
        ("ours", example("muon_torch").Muon),
        (THEIRS["torch"], torch.optim.Muon),
    ):
        params = [torch.nn.Parameter(torch.from_numpy(w)) for w in random(case.shapes, 0)]
        for p, g in zip(params, random(case.shapes, 1), strict=True):
            p.grad = torch.from_numpy(g)
        made[name] = kind(params, lr=RATE, weight_decay=0.1).step
    return made


def steps_of_jax(case: Case) -> dict[str, Callable[[], Any]]:
    """Return a compiled step of both; each call passes parameters and state to the next."""
    jax, optax = importlib.import_module("jax"), importlib.import_module("optax")
    made = {}
    for name, kind in (("ours", example("muon_optax").muon), (THEIRS["jax"], optax.contrib.muon)):
        optimizer = kind(RATE, weight_decay=0.1)
        # (in, out), as in Flax.
        params, grads = (
            [jax.numpy.asarray(w.T, case.format) for w in random(case.shapes, seed)]
            for seed in (0, 1)
        )
        made[name] = Stepper(jax, optax, optimizer, params, grads)
    return made


class Stepper:
    """A step of optax on donated buffers."""

    def __init__(self, jax: Any, optax: Any, optimizer: Any, params: Any, grads: Any) -> None:
        def step(params: Any, state: Any) -> Any:
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.jax = jax
        self.step = jax.jit(step, donate_argnums=(0, 1))
        self.carried = params, optimizer.init(params)

    def __call__(self) -> None:
        self.carried = self.jax.block_until_ready(self.step(*self.carried))


def measured(case: Case, seconds: float) -> dict[str, Any]:
    """Return the medians of both, in seconds, and the ratio of `theirs` to `ours`."""
    steps = (steps_of_torch if case.library == "torch" else steps_of_jax)(case)
    times = interleaved(steps, seconds, least=LEAST)
    theirs = THEIRS[case.library]
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "ours": medians["ours"],
        "theirs": medians[theirs],
        "ratio": medians[theirs] / medians["ours"],
        "ratios": sorted(ratios(times, theirs, "ours")),
        "rounds": len(times["ours"]),
    }


def times(cases: dict[str, Any]) -> str:
    """Return the table of the medians."""
    rows = [
        [name, *(f"{1e3 * f[side]:.3g}" for side in ("ours", "theirs")), f"{f['ratio']:.2f}"]
        for name, f in cases.items()
    ]
    return table(["case", "examples/, ms", "torch or optax, ms", "ratio"], rows)


def page(figures: dict[str, Any]) -> str:
    """Return the table with the machine."""
    return f"{figures['machine']}.\n\n{times(figures['cases'])}"


def main(
    json_: Annotated[Path | None, typer.Option("--json", help="file of the results")] = None,
    markdown: Annotated[Path | None, typer.Option(help="page with the table")] = None,
    only: Annotated[str, typer.Option(help="cases whose name contains this text")] = "",
    threads: Annotated[int | None, typer.Option(help="of every library")] = None,
    quick: Annotated[bool, typer.Option(help="small matrices, as a test of the script")] = False,
    make_page: Annotated[bool, typer.Option("--page", help="make the page of --json")] = False,
) -> None:
    """Measure, print a table, and write the figures."""
    if make_page:
        if json_ is None or markdown is None:
            raise typer.BadParameter("--page needs --json and --markdown; give both")
        replace_part(markdown, "times", page(json.loads(json_.read_text(encoding="utf-8"))))
        return
    restart_with(threads)
    found = {}
    for case in cases(QUICK if quick else SHAPES):
        needed = ("torch",) if case.library == "torch" else ("jax", "optax")
        if only in str(case) and all(map(installed, needed)):
            found[str(case)] = measured(case, 0.0 if quick else SECONDS)
    Console().print(times(found), markup=False)
    figures = {"machine": where(), "cases": found}
    if json_ is not None:
        text = json.dumps(figures, indent=1)
        write_whole(json_, lambda file: file.write(f"{text}\n".encode()))
    if markdown is not None:
        replace_part(markdown, "times", page(figures))


@functools.cache
def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


if __name__ == "__main__":
    typer.run(main)
