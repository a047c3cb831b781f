"""The scripts of examples/ do what they say, and are short."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not installed")
LINES = 60


@pytest.mark.slow
def test_the_section_of_a_paper(tmp_path, pytestconfig):
    script = EXAMPLES / "paper_section.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= LINES
    quiet = itertools.chain(
        *(("-W", what) for what in pytestconfig.getoption("pythonwarnings") or ())
    )
    command = [sys.executable, "-W", "error", *quiet, str(script), str(tmp_path)]
    subprocess.run(command, check=True, timeout=300)
    image = matplotlib.image.imread(tmp_path / "section.png")
    assert image.shape[:2] == (4.4 * 300, 3.3 * 300)
    assert 0.01 < (image[..., :3].min(axis=2) < 0.5).mean() < 0.3  # text and lines on white
    pdf = (tmp_path / "section.pdf").read_bytes()
    (size,) = re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]", pdf)
    np.testing.assert_allclose([float(v) for v in size], [3.3 * 72, 4.4 * 72], atol=0.01)

    table = (tmp_path / "section.tex").read_text(encoding="utf-8")
    rows = re.findall(r"^(.+?) & 15 & ([\d.]+) & ([\d.]+) & ([\d.]+) & ([\d.]+) \\\\$", table, re.M)
    found = {name: [float(v) for v in values] for name, *values in rows}
    assert list(found) == ["designed", "Polar Express", "Muon"]
    for bound, rounded, single, half in found.values():
        assert bound <= rounded
        # Most singular values are inside the interval, and the root mean square is below the worst.
        assert single <= bound + 1e-3
        assert half <= rounded + 1e-3
    assert found["designed"] < found["Polar Express"] < found["Muon"]
    assert table.count(r"\begin{tabular}") == table.count(r"\end{tabular}") == 2
    assert len(re.findall(r"^ +\d & \$", table, re.M)) == 5
