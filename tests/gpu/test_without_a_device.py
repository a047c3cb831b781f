"""The script's parts on devices that are not there: real CuPy, and torch tensors that say cuda."""

from __future__ import annotations

import pytest
from device import running


def results(name):
    running.need(name)
    return running.run_module("gpu.without_a_device", name)


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
