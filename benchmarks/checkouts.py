"""Times of one checkout divided by those of another, in strict alternation.

    git worktree add /elsewhere REVISION
    export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
    python benchmarks/checkouts.py /elsewhere . --json docs/data/checkouts.json

Each checkout has a process of its own. Give it one thread: the idle threads of one process spin
for a while, and take a processor from the other. A turn takes as many calls as last 20
milliseconds; "ratio" is the median of the ratios of neighbouring turns, "spread" their quartiles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TURN = 0.02  # seconds
# Function, shape, condition number (None: a Gaussian matrix), dtype, torch's format if any.
POINTS: list[tuple[str, tuple[int, ...], float | None, str, str]] = [
    *(("polar", (n, n), None, "float64", "") for n in (2, 8, 16, 32, 64, 100, 128, 256, 512, 1024)),
    *(("polar", (n, n), c, "float64", "") for n in (256, 512) for c in (1e2, 1e5, 1e8)),
    ("polar", (1024, 1024), 1e2, "float64", ""),
    ("polar", (4096, 512), 1e4, "float64", ""),
    ("polar", (256, 256), None, "float32", ""),
    ("polar", (1000, 8, 8), None, "float64", ""),
    ("polar", (20000, 3, 3), None, "float64", ""),
    ("nearest_orthogonal", (16, 16), None, "float64", ""),
    ("nearest_orthogonal", (256, 256), None, "float64", ""),
    *(("orthogonalize", (n, n), None, "float32", "") for n in (16, 64, 256, 1024)),
    ("orthogonalize", (512, 4096), None, "float32", ""),
    ("orthogonalize", (64, 64, 64), None, "float32", ""),
    *(("orthogonalize", (n, n), None, "float32", "bfloat16") for n in (16, 256, 1024)),
    ("orthogonalize", (512, 4096), None, "float32", "bfloat16"),
]


def serve(checkout: str) -> None:
    """Answer numbers of points and of calls with the seconds of a call."""
    sys.path.insert(0, checkout)
    import numpy as np

    import polarlib

    if not Path(polarlib.__file__).is_relative_to(checkout):
        raise SystemExit(f"polarlib is imported from {polarlib.__file__}, not from {checkout}")
    calls: dict[int, Callable[[], Any]] = {}

    def prepared(index: int) -> Callable[[], Any]:
        name, shape, condition, dtype, torch_format = POINTS[index]
        rng = np.random.default_rng(index)
        a: Any = rng.standard_normal(shape)
        if condition is not None:
            u, _, vh = np.linalg.svd(a, full_matrices=False)
            a = (u * np.geomspace(1, 1 / condition, min(shape))) @ vh
        a = a.astype(dtype)
        if torch_format:
            import torch

            a = torch.from_numpy(a).to(getattr(torch, torch_format))
        function = getattr(polarlib, name)
        return lambda: function(a)

    for line in sys.stdin:
        index, count = json.loads(line)
        call = calls.setdefault(index, prepared(index)) if index not in calls else calls[index]
        begun = time.perf_counter()
        for _ in range(count):
            call()
        print(json.dumps((time.perf_counter() - begun) / count), flush=True)  # noqa: T201


def compared(checkouts: dict[str, Path], rounds: int) -> list[dict[str, Any]]:
    """Time every point; one row each."""
    command = [sys.executable, __file__, "--serve"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    servers = {n: subprocess.Popen([*command, str(c)], **pipes) for n, c in checkouts.items()}

    def ask(name: str, index: int, count: int) -> float:
        server = servers[name]
        print(json.dumps((index, count)), file=server.stdin, flush=True)
        return float(json.loads(server.stdout.readline()))

    rows = []
    for index, (name, shape, condition, dtype, torch_format) in enumerate(POINTS):
        first = min(ask(n, index, 2) for _ in range(2) for n in servers)
        count = max(1, int(TURN / first))
        turns: dict[str, list[float]] = {n: [] for n in servers}
        for k in range(rounds):
            for n in sorted(servers, reverse=bool(k % 2)):
                turns[n].append(ask(n, index, count))
        ratios = [b / a for a, b in zip(turns["before"], turns["after"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        size = " x ".join(map(str, shape)) + ("" if condition is None else f", {condition:.0e}")
        rows.append(
            {
                "point": f"{name} {size}, {f'torch {torch_format}' if torch_format else dtype}",
                "before_ms": round(1e3 * statistics.median(turns["before"]), 4),
                "ratio": round(middle, 3),
                "spread": [round(low, 3), round(high, 3)],
            }
        )
        print(*rows[-1].values(), sep="  ", flush=True)  # noqa: T201
    return rows


def main() -> None:
    """Compare two checkouts, or serve one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="BEFORE AFTER")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--serve", metavar="CHECKOUT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    if len(args.checkouts) != 2:
        parser.error("two checkouts are needed: BEFORE AFTER")
    before, after = (path.resolve() for path in args.checkouts)
    rows = compared({"before": before, "after": after}, args.rounds)
    if args.json:
        from common import store, where

        git = ["git", "rev-parse", "--short", "HEAD"]
        revisions = [
            subprocess.run(git, cwd=c, check=True, capture_output=True, text=True).stdout.strip()
            for c in (before, after)
        ]
        store(args.json, {"machine": where(), "revisions": revisions, "rows": rows})


if __name__ == "__main__":
    main()
