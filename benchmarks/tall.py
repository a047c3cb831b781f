"""`polar_tall` on two processes of Dask, compared with the products x^T x and x w.

    python benchmarks/tall.py --rows 22 --condition 1e2 1e12 --repeats 5
    python benchmarks/tall.py --page

A matrix of 2^ROWS x 128 in float64, of which a block has 67 MB, is written to a temporary folder as
Zarr without compression. The baseline is x^T x and x w, with w n x n and the product written by the
same workers; it alternates with `polar_tall` and U written. Before each part, earlier writes are
completed (sync). Each part has its own peak of the resident memory of each worker, which Linux
resets. Orthogonality is computed from the file of U, by sums in extended precision.

The results are added to docs/data/tall.json, one entry per size and condition number. Every run
then makes the table of docs/large.md from that file; with `--page` nothing is measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from common import load, replace_part, store, table, where
from dask.distributed import Client, LocalCluster

import polarlib

ROOT = Path(__file__).resolve().parent.parent
DATA, PAGE = ROOT / "docs" / "data" / "tall.json", ROOT / "docs" / "large.md"
N, BLOCK = 128, 1 << 16
PARTS = ("x^T x", "x w written", "polar_tall", "U written")


def create(path: Path, rows: int) -> Any:
    """Return an empty Zarr array with blocks of BLOCK rows, or 16 of them if there are fewer."""
    shutil.rmtree(path, ignore_errors=True)
    chunks = (min(BLOCK, rows // 16), N)
    return zarr.create_array(path, shape=(rows, N), chunks=chunks, dtype="f8", compressors=None)


def write(path: Path, rows: int, condition: float) -> None:
    """Write Gaussian rows times a factor with singular values in geometric progression."""
    z, step = create(path, rows), min(BLOCK, rows // 16)
    v, w = (np.linalg.qr(np.random.default_rng(seed).standard_normal((N, N)))[0] for seed in (0, 1))
    factor = (v * np.geomspace(1, 1 / condition, N)) @ w
    for i in range(rows // step):
        rng = np.random.default_rng([2, i])
        z[i * step : (i + 1) * step] = rng.standard_normal((step, N)) @ factor


def reset_peak() -> None:
    """Let Linux forget the peak of this process."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def orthogonality(path: Path) -> tuple[float, float]:
    """Return ``||U^T U - I||_2`` and ``||U^T U - I||_F / sqrt(n)`` of a file."""
    z = zarr.open_array(path, mode="r")
    total = -np.eye(N, dtype=np.longdouble)
    for start in range(0, z.shape[0], z.chunks[0]):
        rows = z[start : start + z.chunks[0]]
        for k in range(0, len(rows), 1024):
            total += rows[k : k + 1024].T @ rows[k : k + 1024]
    off = np.asarray(total, dtype=np.float64)
    return float(np.linalg.norm(off, 2)), float(np.linalg.norm(off) / np.sqrt(N))


def run(client: Client, folder: Path, rows: int, repeats: int) -> dict[str, Any]:
    """Return seconds and peaks of each part, and the errors of the last U."""
    x = da.from_zarr(folder / "x.zarr")
    w = np.random.default_rng(3).standard_normal((N, N))
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    peaks: dict[str, list[int]] = {part: [] for part in PARTS}
    pids = client.run(os.getpid)

    def part(name: str, work: Callable[[], Any]) -> Any:
        os.sync()
        client.run(reset_peak)
        begin = time.perf_counter()
        done = work()
        seconds[name].append(round(time.perf_counter() - begin, 3))
        peaks[name].append(max(client.run(peak).values()))
        return done

    def written(y: Any, name: str) -> None:
        da.to_zarr(y, create(folder / name, rows))

    for _ in range(repeats):
        part("x^T x", lambda: (x.T @ x).compute())
        part("x w written", lambda: written(x @ w, "w.zarr"))
        shutil.rmtree(folder / "w.zarr")
        result = part("polar_tall", lambda: polarlib.polar_tall(x))
        part("U written", lambda result=result: written(result.unitary, "u.zarr"))
    if client.run(os.getpid) != pids:
        raise RuntimeError("a worker was restarted")
    spectral, frobenius = orthogonality(folder / "u.zarr")
    return {
        "seconds": seconds,
        "peak_memory": {name: max(values) for name, values in peaks.items()},
        "orthogonality": {
            "spectral": spectral,
            "frobenius": frobenius,
            "reported": result.orthogonality,
        },
        "backward_error": result.backward_error,
        "method": result.method,
        "passes": result.iterations,
    }


def ratios(case: dict[str, Any]) -> list[float]:
    """Return the time of polar_tall and U over that of the baseline, of each repetition."""
    times = case["seconds"]
    return [(p + u) / (g + w) for g, w, p, u in zip(*(times[part] for part in PARTS), strict=True)]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the median and the quartiles."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def page(figures: dict[str, Any]) -> str:
    """Return the table of docs/large.md."""
    rows = []
    for case in figures["cases"].values():
        middle, low, high = quartiles(ratios(case))
        rows.append(
            [
                f"2^{case['rows'].bit_length() - 1} × {N}, {case['rows'] * N * 8 / 1e9:.2g} GB",
                f"{case['condition']:.0e}",
                *(f"{statistics.median(case['seconds'][part]):.1f} s" for part in PARTS),
                f"{middle:.2f} ({low:.2f} to {high:.2f})",
                f"{case['peak_memory']['x w written'] / 1e6:.0f} MB",
                f"{max(case['peak_memory'][part] for part in PARTS[2:]) / 1e6:.0f} MB",
                f"{case['orthogonality']['spectral']:.1e}",
            ]
        )
    header = ["matrix", "condition", "xᵀx", "x w, written", "`polar_tall`", "U, written"]
    header += ["ratio", "peak, x w", "peak, U", "‖UᵀU − I‖₂"]
    return f"{figures['machine']}.\n\n{table(header, rows)}"


def main() -> None:
    """Measure, and make the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=22, help="logarithm of the number of rows")
    parser.add_argument("--condition", type=float, nargs="+", default=[1e2, 1e12])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", default="1.2GB", help="limit of each of the two workers")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--json", type=Path, default=DATA)
    parser.add_argument("--page", action="store_true", help="measure nothing")
    options = parser.parse_args()
    figures = load(options.json, "cases")
    for condition in [] if options.page else options.condition:
        with (
            tempfile.TemporaryDirectory(dir=options.folder) as folder,
            LocalCluster(
                n_workers=2,
                threads_per_worker=1,
                memory_limit=options.memory,
                dashboard_address=None,
                local_directory=folder,
            ) as cluster,
            Client(cluster) as client,
        ):
            rows = 1 << options.rows
            write(Path(folder) / "x.zarr", rows, condition)
            case = run(client, Path(folder), rows, options.repeats)
        figures["machine"] = where()
        name = f"2^{options.rows} {condition:.0e} {options.memory}"
        figures["cases"][name] = {"rows": rows, "condition": condition, **case}
        store(options.json, figures)
    if options.json == DATA:
        replace_part(PAGE, "tall", page(figures))


if __name__ == "__main__":
    main()
