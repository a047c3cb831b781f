"""CPU time of `import polarlib` and of first calls, beyond that of NumPy.

    python benchmarks/import_time.py
    python benchmarks/import_time.py --json docs/data/import_time.json

Each statement runs in fresh processes, interleaved with `import numpy`. The value is the difference
of the median CPU seconds (user and system), which depends less on other processes than elapsed time
does. Bytecode is read from a cache, as pip writes it on installation. The slowest modules are those
of `python -X importtime`, each without its own imports, in elapsed time of one process.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BASE = "import numpy"
STATEMENTS = {
    "import polarlib": "import numpy, polarlib",
    "from polarlib import polar": "import numpy; from polarlib import polar",
    "from polarlib import design": "import numpy; from polarlib import design",
    "first polar(a), 3 x 3": "import numpy, polarlib; polarlib.polar(numpy.eye(3) + 1)",
    "SciPy's part: import scipy.linalg": "import numpy, scipy.linalg",
}


def cpu_seconds(statement: str) -> float:
    """Return the CPU seconds of a fresh process that runs the statement."""
    process = subprocess.Popen([sys.executable, "-c", statement], env=_environment())
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{statement!r} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime


def slowest(statement: str, base: str = BASE, count: int = 10) -> list[dict[str, Any]]:
    """Return the slowest modules that `statement` imports beyond `base`, with milliseconds."""
    found = []
    for code in (base, statement):
        command = [sys.executable, "-X", "importtime", "-c", code]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=_environment()
        )
        rows = [line.split("|") for line in done.stderr.splitlines() if "|" in line][1:]
        found.append({name.strip(): int(own.rpartition(":")[2]) / 1e3 for own, _, name in rows})
    known, more = found
    times = sorted(((ms, name) for name, ms in more.items() if name not in known), reverse=True)
    return [{"module": name, "ms": round(ms, 2)} for ms, name in times[:count]]


def measured(repeats: int) -> dict[str, Any]:
    """Return CPU seconds beyond NumPy's of each statement, and its slowest modules."""
    times: dict[str, list[float]] = {code: [] for code in (BASE, *STATEMENTS.values())}
    for code in times:
        cpu_seconds(code)  # bytecode is written, files are in the page cache
    for _ in range(repeats):
        for code, seconds in times.items():
            seconds.append(cpu_seconds(code))
    median = {code: statistics.median(seconds) for code, seconds in times.items()}
    return {
        "made_by": "python benchmarks/import_time.py --json docs/data/import_time.json",
        "python": platform.python_version(),
        "repeats": repeats,
        "numpy_cpu_seconds": round(median[BASE], 3),
        "beyond_numpy": [
            {
                "statement": label,
                "cpu_seconds": round(median[code] - median[BASE], 3),
                "slowest": slowest(code),
            }
            for label, code in STATEMENTS.items()
        ],
    }


@functools.cache
def _environment() -> dict[str, str]:
    cache = tempfile.TemporaryDirectory(prefix="bytecode")
    atexit.register(cache.cleanup)
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return inherited | {
        "PYTHONPATH": str(ROOT),
        "PYTHONPYCACHEPREFIX": cache.name,
        "OPENBLAS_NUM_THREADS": "1",
    }


def main() -> None:
    """Print the table; write the data."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=11, help="processes per statement")
    parser.add_argument("--json", type=Path, help="where to write the data")
    chosen = parser.parse_args()
    data = measured(chosen.repeats)
    print(f"CPU seconds beyond NumPy's {data['numpy_cpu_seconds']}:")  # noqa: T201
    for row in data["beyond_numpy"]:
        worst = ", ".join(f"{each['module']} {each['ms']} ms" for each in row["slowest"][:3])
        print(f"{row['cpu_seconds']:7.3f}  {row['statement']} ({worst})")  # noqa: T201
    if chosen.json:
        chosen.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
