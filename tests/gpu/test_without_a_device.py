"""The script's parts on devices that are not there: real CuPy, and torch tensors that say cuda."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

running = pytest.importorskip("device.running", reason="devices that are not there")
TESTS = Path(__file__).resolve().parents[1]


def results(name):
    running.need(name)
    done = subprocess.run(
        [sys.executable, "-m", "gpu.without_a_device", name],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_real_cupy_takes_every_call():
    """Values mean nothing, so that checks may fail; no part does."""
    found = results("cupy")
    failures = [each for part in found["parts"].values() for each in part.get("failures", [])]
    assert failures == []
    assert len(found["parts"]) > 10
    for row in found["rows"]:
        if "is elsewhere" in row["what"] or "capture is refused" in row["what"]:
            assert row["passed"], row
    assert {row["part"] for row in found["rows"]} >= {"two_devices", "graphs", "waits", "products"}


@pytest.mark.slow
def test_torch_gives_the_right_values():
    found = results("torch")
    assert {part["state"] for part in found["parts"].values()} == {"done"}
    assert [row for row in found["rows"] if not row["passed"]] == []
    checks = [row for row in found["rows"] if row["bound"] is not None]
    assert {row["part"] for row in checks} == {"agreement", "potrf", "accuracy"}
    assert len(checks) > 30
