"""polar_tall on a cluster of dask.distributed whose workers fail: the same result, or one error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("distributed")


@pytest.mark.parametrize(
    "name",
    [
        "killed,slow",
        "never",
        pytest.param("killed_in_qr,memory", marks=pytest.mark.slow),
        pytest.param("spilled", marks=pytest.mark.slow),
    ],
)
def test_a_cluster_that_fails(tmp_path, name):
    program = Path(__file__).with_name("cluster.py")
    # A group of its own, which ends with all workers if the time is over.
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(program), name, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=175)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"not done after 175 seconds\n{out}{err}")
    assert process.returncode == 0, out + err
    assert out.endswith("done\n")
