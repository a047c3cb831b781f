"""What only a GPU shows of polarlib, by one command.

    python tests/gpu/run.py --json gpu.json

JAX, torch and CuPy side by side, those that are there: right answers, waiting, graphs, memory,
speed beside textbook loops, torch.optim.Muon, SVDs and cuSOLVER, and the costs of kernels. Parts
are caught one by one, the most useful first, and the file is written after each of them, whole. The
exit status is 0 if all checks passed, 1 if one failed or a part could not go on, 2 if there is no
GPU. ``--device cpu`` does what needs none: torch and JAX on the CPU, the tests' mock for CuPy;
times mean nothing then. docs/gpu.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # its package is beside the tests, and polarlib may not be installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from gpu import behaviour, correct, speed
from gpu.context import Context, Row, find_libraries, say, stand_in
from polarlib.arrays.settings import double_enabled
from polarlib.files.whole import replaceable, write_whole

Part = Callable[[Context], dict[str, Any]]
SECONDS, QUICK_SECONDS = 240.0, 60.0
# Parts and their shares of the time that is left, most useful first. First calls come before
# anything has compiled.
PARTS: tuple[tuple[Part, float], ...] = (
    (behaviour.machine, 1),
    (behaviour.first_calls, 6),
    (correct.agreement, 8),
    (speed.orthogonalize, 12),
    (behaviour.waits, 5),
    (correct.potrf, 4),
    (correct.accuracy, 10),
    (correct.settings, 4),
    (behaviour.graphs, 3),
    (speed.polar, 10),
    (speed.small, 5),
    (behaviour.memory, 3),
    (correct.rounding, 2),
    (speed.symmetric, 5),
    (speed.products, 5),
    (behaviour.two_devices, 2),
    (speed.calibration, 10),
)


def named(part: Part) -> str:
    """Name of a part, as the command line and the file have it."""
    return str(getattr(part, "func", part).__name__)


def run_parts(
    context: Context,
    parts: Sequence[tuple[Part, float]],
    seconds: float,
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Run parts, each caught and with its share of the time; save after each.

    Returns
    -------
    dict
        What the file has: parts with their state, and all rows.
    """
    end = time.monotonic() + seconds
    results: dict[str, Any] = {"device": context.device, "quick": context.quick, "parts": {}}
    for i, (part, share) in enumerate(parts):
        begun = time.monotonic()
        of_rest = share / sum(share for _, share in parts[i:])
        context.part, context.end = named(part), begun + (end - begun) * of_rest
        entry: dict[str, Any] = {"state": "done"}
        before = len(context.failures)
        try:
            if context.has_time(context.part):
                entry["found"] = part(context)
            else:
                entry["state"] = "no time left"
        except Exception as error:
            context.failed("all of it", error)
        if failures := context.failures[before:]:
            entry |= {"state": "failed", "failures": failures}
        entry["seconds"] = round(time.monotonic() - begun, 2)
        results["parts"][context.part] = entry
        results["rows"] = [as_json(row) for row in context.rows]
        save(results)
    return results


def as_json(row: Row) -> dict[str, Any]:
    """A row as the file has it: JSON has no infinity."""
    finite = row.value is None or math.isfinite(row.value)
    value = row.value if finite else str(row.value)
    return asdict(row) | {"value": value, "passed": row.passed}


def saver(path: Path | None) -> Callable[[dict[str, Any]], None]:
    """A function that writes all results to a file, whole or not at all."""

    def save(results: dict[str, Any]) -> None:
        if path is not None:
            text = json.dumps(results, indent=1, default=str) + "\n"
            write_whole(path, lambda file: file.write(text.encode()))

    return save


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="tests/gpu/run.py", description="What only a GPU shows of polarlib."
    )
    names = [named(part) for part, _ in PARTS]
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, after each part")
    parser.add_argument("--costs", type=Path, metavar="FILE", help="add the costs of kernels to it")
    parser.add_argument("--seconds", type=float, help=f"in all, {SECONDS:g} by default")
    parser.add_argument("--quick", action="store_true", help=f"less, in {QUICK_SECONDS:g} seconds")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--parts", nargs="+", choices=names, default=names, metavar="PART")
    found = parser.parse_args(given)
    if found.seconds is None:
        found.seconds = QUICK_SECONDS if found.quick else SECONDS
    if not found.seconds > 0:
        parser.error(f"--seconds must be positive, got {found.seconds}")
    for path in filter(None, (found.json, found.costs)):
        replaceable(path)  # before minutes are used
    return found


def main(given: Sequence[str] | None = None) -> int:
    """Run the parts; return the exit status."""
    how = arguments(given)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with contextlib.ExitStack() as stack:
        stack.enter_context(stand_in(how.device))
        context = Context(how.device, how.quick)
        find_libraries(context)
        if not context.libraries:
            for why in context.absent.values():
                sys.stderr.write(f"tests/gpu/run.py: {why}\n")
            return 2
        if "jax" in context.libraries:
            stack.enter_context(double_enabled("jax"))
        calibration = functools.partial(speed.calibration, path=how.costs)
        chosen = [
            (calibration if part is speed.calibration else part, share)
            for part, share in PARTS
            if named(part) in how.parts
        ]
        run_parts(context, chosen, how.seconds, saver(how.json))
    return summary(context)


def summary(context: Context) -> int:
    """Print what failed, and how many checks passed; return the exit status."""
    checks = [row for row in context.rows if row.bound is not None]
    failed = [row for row in checks if not row.passed]
    for row in failed:
        say(row)
    for each in context.failures:
        last = each["error"].strip().splitlines()[-1]
        say(f"{each['part']:13s} {each['what']}: could not go on: {last}")
    skipped = sum(row.value is None for row in context.rows)
    say(f"{len(checks) - len(failed)} of {len(checks)} checks passed, {skipped} skipped")
    return int(bool(failed or context.failures))


if __name__ == "__main__":
    sys.exit(main())
