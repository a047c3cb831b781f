"""docs/data/launches.json: what the device would be asked is what the committed counts say.

Each library is counted in an interpreter of its own, since a fake CUDA stays in its process. It is
skipped where the library is missing, or has another version than the one that was counted.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import polarlib

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "data" / "launches.json"
pytestmark = pytest.mark.skipif(
    not DATA.exists() or Path(polarlib.__file__).parents[1] != ROOT,
    reason="the sources are not what is imported",
)
PACKAGES = {"cupy": "cupy-cuda13x", "torch": "torch", "jax": "jax"}
# What ordinary runs count: the calls that are for devices, a stack, a wide matrix, and a gradient.
SOME = (
    r"^(orthogonalize(, jordan)? . (1024|64 x 256|4 x)|polar . (160|130)|orthogonalize_vjp|torch\.)"
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


def need(library, version):
    """Skip, in words, unless the version is installed of which the counts are."""
    try:
        found = metadata.version(PACKAGES[library])
    except metadata.PackageNotFoundError:
        pytest.skip(f"{PACKAGES[library]} is not installed")
    if found != version:
        pytest.skip(f"the counts are of {library} {version}, and {found} is installed")
    if library == "torch" and importlib.import_module("torch").version.cuda is None:
        pytest.skip("emulated CUDA tensors need torch's CUDA build")
    if library == "cupy" and not importlib.util.find_spec("nvidia.cusolver"):
        pytest.skip("CuPy is installed without cuBLAS and cuSOLVER: cupy-cuda13x[ctk]")


def counted(module, pattern):
    done = subprocess.run(
        [sys.executable, "-m", f"tests.device.{module}", "--json", "--only", pattern],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])["rows"]


@pytest.mark.parametrize("pattern", [SOME, pytest.param("", marks=pytest.mark.slow)])
@pytest.mark.parametrize("library", PACKAGES)
def test_counts_are_those_that_are_committed(script, committed, library, pattern):
    expected = committed["now"][library]
    need(library, expected["version"])
    found = counted(script.MODULES[library], pattern)
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
    for library in PACKAGES:
        rows = committed["now"][library]["rows"]
        waiting = [n for n, row in rows.items() if n.startswith("orthogonalize") and "waits" in row]
        assert waiting == []
