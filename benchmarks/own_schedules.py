"""Regenerate the default schedules: polarlib/data/own_schedules.toml.

    python benchmarks/own_schedules.py [--out FILE]

Each is the schedule of ``design.for_precision`` for a number format, a number of steps and an
error, on the widest interval. ``orthogonalize(g)`` uses these schedules.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from polarlib import design
from polarlib.arrays.formats import FORMATS
from polarlib.files.whole import write_whole
from polarlib.published import own_goals

STEPS = range(1, 17)
OUT = Path(__file__).parents[1] / "polarlib" / "data" / "own_schedules.toml"
HEAD = """\
# Default schedules, made by `python benchmarks/own_schedules.py`: for each number format and number
# of steps, degree-5 steps for the widest interval [lower, 1] on which the worst error is at most
# `error` (design.for_precision with that `cushion`). A step is [a, b, c]:
# p(x) = a x + b x^3 + c x^5.
"""


def main(out: Annotated[Path, typer.Option(help="Where to write.")] = OUT) -> None:
    """Design all schedules and write the file."""
    parts = [HEAD]
    for name in track(sorted(FORMATS), description="formats"):
        for k in STEPS:
            error, cushion = own_goals(3 * k)
            s = design.for_precision(name, steps=k, error=error, cushion=cushion)
            rows = "\n".join(f"  [{', '.join(map(repr, step))}]," for step in s.steps)
            goals = f"error = {error!r}\ncushion = {cushion!r}\nlower = {s.lower!r}"
            parts.append(f"[{name}.{k}]\n{goals}\nsteps = [\n{rows}\n]\n")
    write_whole(out, lambda file: file.write("\n".join(parts).encode()))


if __name__ == "__main__":
    typer.run(main)
