"""benchmarks/uses.py: contenders have the same results, and the page is that of the figures."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
FIGURES, PAGE = ROOT / "docs" / "data" / "uses.json", ROOT / "docs" / "evidence" / "uses.md"
pytestmark = [
    pytest.mark.skipif(
        not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are not installed"
    ),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # of geoopt
]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("uses")


SMALL = {
    "aligned": (3, 10, "float64"),
    "rotated": (3, 10, "float64"),
    "bases": (2, 20, 4, "float64"),
    "retracted": (3, 8, 3, "float64"),
}


@pytest.mark.parametrize("name", SMALL)
def test_contenders_agree(script, name):
    """Those that are installed: SciPy at least, in two of the four."""
    ours, *others = getattr(script, name)(*SMALL[name]).values()
    wanted = ours.result(ours.call())
    for other in others:
        np.testing.assert_allclose(other.result(other.call()), wanted, atol=1e-12)
    assert others or name in ("rotated", "retracted")


@pytest.mark.parametrize("rotation", [False, True])
def test_contenders_of_nearest_matrices_agree(script, rotation):
    pytest.importorskip("roma")
    ours, other = script.nearest(4, 3, "float64", rotation=rotation).values()
    np.testing.assert_allclose(other.result(other.call()), ours.result(ours.call()), atol=1e-12)


def test_a_row(script):
    (row, *_) = script.measured(script.bases(2, 20, 4, "float64"), "float64", 0.0)
    assert row["other"] == "SciPy, orthogonal_procrustes"
    assert 0 <= row["difference"] < 1e3
    for situation in script.SITUATIONS:
        low, high = row[situation]["quartiles"]
        assert 0 < low <= row[situation]["ratio"] <= high
        assert row[situation]["rounds"] >= script.ROUNDS


def test_the_page_is_made_of_the_figures(script):
    assert script.page(json.loads(FIGURES.read_text("utf-8"))) in PAGE.read_text("utf-8")
