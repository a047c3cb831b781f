"""Functions that the benchmarks share: tables of pages, data files, and runs of a program.

A run is the measurements with one number of threads, on a machine that is idle or has one busy
processor. A BLAS reads its number of threads when it is loaded, so another number needs another
process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import threadpoolctl

from polarlib.bench import usable_processors
from polarlib.files.whole import write_whole

# Where numbers of threads are read from: OpenBLAS, OpenMP (torch), MKL.
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
XLA = "XLA_FLAGS"
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"  # of JAX; it has no flag for two
# What keeps a processor busy: products, until the process that waits for it is gone.
SPIN = """
import os, sys
import numpy as np
a = np.ones((256, 256))
print("busy", flush=True)
while os.getppid() == int(sys.argv[1]):
    a @ a
"""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def reflow(text: str) -> str:
    """Wrap the paragraphs of a page that have a line of more than 100 characters."""
    parts = text.split("\n\n")
    for k, part in enumerate(parts):
        if part[:1] not in "|#!-<`" and max(map(len, part.splitlines()), default=0) > 100:
            parts[k] = textwrap.fill(" ".join(part.split()), 100, break_on_hyphens=False)
    return "\n\n".join(parts)


def replace_part(page: Path, name: str, body: str) -> None:
    """Put a text between ``<!-- begin name -->`` and ``<!-- end name -->`` of a page.

    Raises
    ------
    ValueError
        Unless the page has each of the two once.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    text = page.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{page} needs one {begin} and one {end}")
    made = f"{text.split(begin)[0]}{begin}\n{body}\n{end}{text.split(end)[1]}".encode()
    write_whole(page, lambda file: file.write(made))


def where() -> str:
    """Return the machine and the versions."""
    names = ("numpy", "scipy", "torch", "jax")
    versions = [f"{n} {metadata.version(n)}" for n in names if importlib.util.find_spec(n)]
    pools = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
    # Sorted: the order in which libraries are loaded differs from process to process.
    blas = sorted({f"{p['internal_api']} {p['version']}" for p in pools})
    parts = [_processor(), f"{usable_processors()} processors", *versions, *blas]
    return ", ".join(parts)


def _processor() -> str:
    """Return the name of the processor, which only Linux has in a file."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()} ({(names or [platform.processor()])[0]})"


# -- runs ------------------------------------------------------------------------------------


def with_threads(threads: int) -> dict[str, str]:
    """Return the environment in which libraries use a number of threads."""
    found = os.environ | dict.fromkeys(THREADS, str(threads))
    if threads == 1 and ONE_THREAD not in found.get(XLA, ""):
        found[XLA] = f"{found.get(XLA, '')} {ONE_THREAD}".strip()
    return found


def restart_with(threads: int | None) -> None:
    """Start this command again with a number of threads, unless it has that, or none is given.

    The new process takes the place of this one, so that none is left if it is killed.
    """
    if threads is not None and (wanted := with_threads(threads)) != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.argv], wanted)


@contextlib.contextmanager
def busy(wanted: bool = True) -> Iterator[subprocess.Popen[str] | None]:
    """Keep one processor busy by a child process, which ends with the block, errors included.

    Raises
    ------
    RuntimeError
        If the child does not begin.
    """
    if not wanted:
        yield None
        return
    command = [sys.executable, "-c", SPIN, str(os.getpid())]
    with subprocess.Popen(command, env=with_threads(1), stdout=subprocess.PIPE, text=True) as child:
        try:
            if child.stdout is None or child.stdout.readline() != "busy\n":
                raise RuntimeError("the process that keeps a processor busy did not begin")
            yield child
        finally:
            child.kill()


def run_of(figures: dict[str, Any], occupied: bool) -> dict[str, Any]:
    """Return the run of a data file that this process adds to.

    Its number of threads is the one that the BLAS of this process has. A run of another machine of
    the vendor, or of other versions, is replaced: ratios of both do not belong in one table.
    """
    pools = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
    threads = max(p["num_threads"] for p in pools)
    new: dict[str, Any] = {"threads": threads, "busy": occupied, "machine": where(), "cases": {}}
    there = figures["runs"].get(run_name(new))
    if there is None or there["machine"] != new["machine"]:
        figures["runs"][run_name(new)] = new
    return figures["runs"][run_name(new)]


VENDORS = ("AMD", "Apple", "ARM", "Intel")


def run_name(run: dict[str, Any]) -> str:
    """Return the name of a run, such as "AMD with 2 threads"; "2 threads" without a vendor."""
    vendor = next((f"{v} with " for v in VENDORS if v in run["machine"]), "")
    name = f"{vendor}{run['threads']} thread" + "s" * (run["threads"] != 1)
    return f"{name}, one processor busy" if run["busy"] else name


def runs(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all runs, idle machines before busy ones, many threads before few."""
    order = lambda run: (run["busy"], -run["threads"], run["machine"])  # noqa: E731
    return sorted(figures["runs"].values(), key=order)


# -- data files ------------------------------------------------------------------------------


def load(path: Path, *parts: str) -> dict[str, Any]:
    """Read the values that are kept, or return empty parts."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    return {part: {} for part in parts}


def store(path: Path, figures: dict[str, Any]) -> None:
    """Write the values, whole or not at all."""
    text = (json.dumps(figures, indent=1) + "\n").encode()
    path.parent.mkdir(exist_ok=True)
    write_whole(path, lambda f: f.write(text))


def text_of(figures: dict[str, Any]) -> str:
    """Return the text of a data file with one row of a table per line."""
    lines = []
    for key, value in figures.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list):
            rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in value)
            text = f"[\n{rows}\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
