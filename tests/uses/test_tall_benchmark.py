"""benchmarks/tall.py, of dask arrays: a small run, its peaks and its table."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "tall.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the benchmarks are not installed")
pytest.importorskip("distributed")
pytest.importorskip("zarr")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("tall")


@pytest.mark.slow
def test_a_small_run(script, tmp_path):
    options = (
        f"--rows 15 --repeats 2 --condition 1e12 --folder {tmp_path} --json {tmp_path}/tall.json"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), *options.split(), "--folder", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (case,) = json.loads((tmp_path / "tall.json").read_text(encoding="utf-8"))["cases"].values()
    assert case["orthogonality"]["spectral"] <= 1e-14
    assert case["method"] == "sample"
    assert all(len(times) == 2 and min(times) > 0 for times in case["seconds"].values())
    assert all(1e7 < peak < 1e9 for peak in case["peak_memory"].values())


def test_ratios_and_quartiles(script):
    times = dict(zip(script.PARTS, ([1.0, 2.0], [3.0, 2.0], [2.0, 2.0], [4.0, 4.0]), strict=True))
    assert script.ratios({"seconds": times}) == [1.5, 1.5]
    assert script.quartiles([2.0]) == (2.0, 2.0, 2.0)
    assert script.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, 2.0, 4.0)


def test_the_table_is_that_of_the_data(script):
    # else: python benchmarks/tall.py --page
    figures = script.load(script.DATA, "cases")
    text = script.PAGE.read_text(encoding="utf-8")
    table = re.search(r"<!-- begin tall -->\n(.*?)<!-- end tall -->", text, re.DOTALL)[1]
    assert table.strip() == (script.page(figures) if figures["cases"] else "")
