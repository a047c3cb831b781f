"""docs/data/launches.json: what the device would be asked is what the committed counts say.

Each library is counted in an interpreter of its own, since a fake CUDA stays in its process. It is
skipped where the library is missing, or has another version than the one that was counted.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

import polarlib
from device import running

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "data" / "launches.json"
pytestmark = pytest.mark.skipif(
    not DATA.exists() or Path(polarlib.__file__).parents[1] != ROOT,
    reason="the sources are not what is imported",
)
# What ordinary runs count: the calls that are for devices, a stack, a wide matrix, and a gradient.
SOME = (
    r"^(orthogonalize(, jordan|, adaptive)? . (1024|64 x 256|4 x)|polar . (160|130)"
    r"|orthogonalize_vjp|torch\.)"
)


@pytest.fixture(scope="module")
def committed():
    return json.loads(DATA.read_text("utf-8"))


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("launches", ROOT / "benchmarks" / "launches.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return module


@pytest.mark.parametrize("pattern", [SOME, pytest.param("", marks=pytest.mark.slow)])
@pytest.mark.parametrize("library", running.PACKAGES)
def test_counts_are_those_that_are_committed(script, committed, library, pattern):
    expected = committed["now"][library]
    if (version := running.need(library)) != expected["version"]:
        pytest.skip(f"the counts are of {library} {expected['version']}, not of {version}")
    found = running.run(script.MODULES[library], "--only", pattern)["rows"]
    assert found
    if not pattern:
        assert set(found) == set(expected["rows"])
    different = {
        name: (expected["rows"].get(name), script.compact(row))
        for name, row in found.items()
        if script.compact(row) != expected["rows"].get(name)
    }
    assert not different, "if that is meant: python benchmarks/launches.py"


def test_pages_are_made_of_the_data(script, committed):
    assert script.text(committed) == DATA.read_text("utf-8")
    assert script.page(committed) == script.PAGE.read_text("utf-8")
    assert f"-->\n{script.short(committed)}\n<!--" in script.SHORT.read_text("utf-8")


def test_orthogonalize_waits_nowhere(committed):
    for library in running.PACKAGES:
        rows = committed["now"][library]["rows"]
        ours = {name: row for name, row in rows.items() if name.startswith("orthogonalize")}
        assert len(ours) > 70
        assert [name for name, row in ours.items() if "waits" in row] == []
