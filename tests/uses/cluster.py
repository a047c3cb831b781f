"""Programs on a cluster of two processes, for test_cluster.py: python cluster.py NAME FOLDER."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from dask.distributed import Client, KilledWorker, LocalCluster, get_worker, wait

import polarlib

ROWS, N, BLOCKS = 160, 5, 64  # four of the blocks are sampled, among them number 8
FOLDER = Path(sys.argv[-1])
ALONE = {"scheduler": "synchronous"}


def entries(i: int) -> np.ndarray:
    """Rows of a matrix of condition number 1e8."""
    return np.random.default_rng(i).standard_normal((ROWS, N)) * np.geomspace(1, 1e-8, N)


def calls(name: str, i: int) -> int:
    """Count the calls for block i, in whichever process."""
    with (FOLDER / f"{name}{i}").open("ab") as file:
        file.write(b".")
        file.flush()
        return os.fstat(file.fileno()).st_size


def counted(name: str, i: int) -> int:
    """The number of calls so far."""
    return (FOLDER / f"{name}{i}").stat().st_size


def matrix(name: str, trouble: Any) -> Any:
    """A Dask array whose blocks call ``trouble(i, number of the call)`` first."""

    def block(block_info: Any = None) -> np.ndarray:
        i = block_info[None]["chunk-location"][0]
        trouble(i, calls(name, i))
        return entries(i)

    chunks = ((ROWS,) * BLOCKS, (N,))
    return da.map_blocks(block, chunks=chunks, dtype="f8", meta=np.empty((0, 0)), name=name)


def check(result: Any, method: str = "auto") -> None:
    """Compare with the decomposition of the whole matrix in this process."""
    a = np.concatenate([entries(i) for i in range(BLOCKS)])
    u, h = np.asarray(result.unitary), result.hermitian
    x = da.from_array(a, chunks=(ROWS, N))
    with dask.config.set(**ALONE):
        want, other = polarlib.polar_tall(x, method=method)
        assert np.abs(u - want.compute()).max() < 1e-14
    assert np.abs(h - other).max() < 1e-14 * np.abs(other).max()
    assert np.linalg.norm(u.T @ u - np.eye(N)) < 1e-14
    assert np.linalg.norm(a - u @ h) < 1e-14 * np.linalg.norm(a)


def killed(client: Client, method: str = "auto") -> None:
    """The worker that has block 8 is killed in the sample, in the pass, and while U is computed."""
    name = f"killed by {method}"

    def trouble(i: int, k: int) -> None:
        if i == 8 and k % 2:
            os.kill(os.getpid(), signal.SIGKILL)

    result = polarlib.polar_tall(matrix(name, trouble), method=method)
    assert result.method == {"auto": "sample", "qr": "qr"}[method]
    assert counted(name, 8) == 4  # twice in the sample or the first pass, twice in the other pass
    check(result, method)
    assert counted(name, 8) == 6


def killed_in_qr(client: Client) -> None:
    """The same in two passes over all blocks."""
    killed(client, "qr")


def slow(client: Client) -> None:
    """One of the workers takes 50 times as long."""
    client.wait_for_workers(2)
    first = min(client.scheduler_info()["workers"])

    def trouble(i: int, k: int) -> None:
        if get_worker().address == first:
            time.sleep(0.05)

    check(polarlib.polar_tall(matrix("slow", trouble)))


def wait_for_the_end(mebibytes: int) -> None:
    """Use memory until the nanny ends this process."""
    used = np.ones(mebibytes << 17)
    time.sleep(60)
    raise AssertionError(f"{used.nbytes} bytes were no reason to end the worker")


def memory(client: Client) -> None:
    """A worker reaches its limit, once in each phase, and is restarted by its nanny."""
    pids = set(client.run(os.getpid).values())

    def trouble(i: int, k: int) -> None:
        if i == 8 and k % 2:
            wait_for_the_end(400)

    result = polarlib.polar_tall(matrix("memory", trouble))
    check(result)
    assert counted("memory", 8) == 6
    assert not pids <= set(client.run(os.getpid).values())


def spilled(client: Client) -> None:
    """More blocks are kept in the memory of the workers than these may keep there."""
    sizes = ((1 << 15,) * 32, (16,))  # 134 MB, where two workers keep 10 % of 450 MiB

    def block(block_info: Any = None) -> np.ndarray:
        rng = np.random.default_rng(block_info[None]["chunk-location"][0])
        return rng.standard_normal((sizes[0][0], 16)) * np.geomspace(1, 1e-8, 16)

    x = da.map_blocks(block, chunks=sizes, dtype="f8", meta=np.empty((0, 0)))
    kept = client.persist(x)
    wait(kept)
    assert any(client.run(lambda dask_worker: len(dask_worker.data.slow)).values())
    result = polarlib.polar_tall(kept)
    u = result.unitary
    off = np.linalg.norm((u.T @ u).compute() - np.eye(16))
    left = (kept - u @ result.hermitian).std().compute() / kept.std().compute()
    with dask.config.set(**ALONE):
        other = polarlib.polar_tall(x)
    assert np.abs(result.hermitian - other.hermitian).max() < 1e-14 * np.abs(other.hermitian).max()
    assert max(off, left) < 1e-14


def never(client: Client) -> None:
    """A block that no worker survives: one error, with the reason and the remedy."""

    def trouble(i: int, k: int) -> None:
        if i == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(KilledWorker) as caught:
        polarlib.polar_tall(matrix("never", trouble))
    assert "fewer rows per block" in caught.value.__notes__[0]
    # The cluster is as before.
    check(polarlib.polar_tall(matrix("after", lambda i, k: None)))


if __name__ == "__main__":
    # Also if the test that has started this program is gone; its workers end with it.
    faulthandler.dump_traceback_later(165, exit=True)
    programs = {f.__name__: f for f in (killed, killed_in_qr, slow, memory, spilled, never)}
    dask.config.set({"distributed.worker.memory.target": 0.1})
    # After 15 seconds, the default, the cluster would give up a worker whose restart takes longer
    # on a loaded machine. Without workers the scheduler waits for ever.
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"})
    if sys.argv[1] == "never":
        dask.config.set({"distributed.scheduler.allowed-failures": 1})
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit="450MiB",
            dashboard_address=None,
            local_directory=str(FOLDER),
        ) as cluster,
        Client(cluster) as client,
    ):
        for name in sys.argv[1].split(","):
            programs[name](client)
    sys.stdout.write("done\n")
