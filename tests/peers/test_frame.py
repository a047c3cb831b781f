"""The frame of the peers' tests: what it counts, and that it can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import frame
import pytest
from conftest import module_of

# A peer with a function under two names, a class, and tests of which one needs what is not here.
PEER = """
def factor(a):
    raise NotImplementedError

class Solver:
    @staticmethod
    def solve(a):
        raise NotImplementedError
"""
TESTS = """
import numpy as np
import pytest
from toypeer import Solver, alias
from toypeer.inner import factor

@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_orthogonal(scale):
    a = scale * np.array([[0.0, -3.0], [2.0, 0.0]])
    for find in (alias, factor, Solver.solve, Solver().solve):
        assert np.allclose(find(a), [[0, -1], [1, 0]])

class TestDevice:
    def test_on_device(self):
        raise RuntimeError("no device")

def test_skipped():
    pytest.skip("not today")
"""
ADAPTER = """
import frame
import polarlib
NAME, REPOSITORY, PACKAGE = "toy", "https://example.org/toy", "toypeer"
COMMIT = "0" * 40
TESTS = ("tests/test_toy.py",)
PATHS = ("src",)
NOT_RUN = {"test_toy.py::TestDevice::*": "needs a device"}

def install():
    ours = lambda a: polarlib.nearest_orthogonal(a)
    frame.replace("toypeer.inner.factor", ours)
    frame.replace("toypeer.inner.Solver.solve", ours)
"""


def toy(folder: Path, adapter: str = ADAPTER) -> subprocess.CompletedProcess[str]:
    """Write the peer, and run the frame on it alone."""
    files = {
        "toy/src/toypeer/__init__.py": "from .inner import Solver, factor as alias",
        "toy/src/toypeer/inner.py": PEER,
        "toy/tests/test_toy.py": TESTS,
        "adapters/toy_adapter.py": adapter,
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    here = Path(frame.__file__)
    # The frame looks for adapters beside itself.
    (folder / "adapters" / "frame.py").write_text(here.read_text("utf-8"))
    command = [sys.executable, str(folder / "adapters/frame.py"), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(here.parent.parent.parent)}
    return subprocess.run(
        [*command, "--only", "toy", "--json", str(folder / "peers.json")],
        capture_output=True,
        text=True,
        env=environment,
    )


def test_a_run_is_counted(tmp_path):
    (tmp_path / "peers.json").write_text('{"another": {"passed": 1}}')
    done = toy(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed, 0 failed, 2 not run; called nearest_orthogonal 8 times" in done.stdout
    data = json.loads((tmp_path / "peers.json").read_text())
    assert data["another"] == {"passed": 1}
    row = data["toy"]
    assert row["passed"] == 2
    assert row["failed"] == []
    assert row["not_run"] == [
        {"tests": "test_toy.py::TestDevice::*", "count": 1, "reason": "needs a device"},
        {"tests": "test_toy.py::test_skipped", "count": 1, "reason": "not today"},
    ]
    assert row["replaced"] == {"toypeer.inner.factor": 4, "toypeer.inner.Solver.solve": 4}
    assert row["polarlib"] == {"nearest_orthogonal": 8}


@pytest.mark.thinned(4)
@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("polarlib.nearest_orthogonal(a)", "-polarlib.nearest_orthogonal(a)", "2 failed"),
        ("polarlib.nearest_orthogonal(a)", "[[0, -1], [1, 0]]", "polarlib was never called"),
        ("TestDevice::*", "TestDevise::*", "'test_toy.py::TestDevise::*', which fits no test"),
        ('"needs a device"}', '"", "*": "all"}', "no test passed"),
        ("    ours =", "    frame.replace('json.dumps', len)\n    ours =", "json.dumps was never"),
        ("toypeer.inner.factor", "toypeer.outer.factor", "outer"),
        ('test_toy.py",', 'test_tox.py",', "could not be run|no test passed"),
    ],
)
def test_a_run_fails(old, new, told, tmp_path):
    assert old in ADAPTER
    done = toy(tmp_path, ADAPTER.replace(old, new))
    assert done.returncode == 1
    output = done.stdout + done.stderr
    assert any(part in output for part in told.split("|")), output
    assert "FAILED" in done.stdout or "could not be run" in done.stdout


def test_a_peer_that_is_not_there(tmp_path, capsys):
    known = frame.adapter_of("scipy_polar").NAME
    with pytest.raises(SystemExit):
        frame.main(["--only", "nobody"])
    assert known in capsys.readouterr().err
    declared = {"NAME": "x", "COMMIT": "0", "PACKAGE": "x", "TESTS": ("test_x.py",)}
    assert "copy" in frame.missing(SimpleNamespace(**declared), None)
    assert "no folder" in frame.missing(SimpleNamespace(**declared), str(tmp_path))
    (tmp_path / "x").mkdir()
    assert frame.missing(SimpleNamespace(**declared), str(tmp_path)) == ""
    needy = SimpleNamespace(**declared, REQUIRES=("no_such_package",))
    assert "no_such_package is not installed" in frame.missing(needy, str(tmp_path))
    old = SimpleNamespace(**declared | {"PACKAGE": "numpy"}, SINCE="99.0")
    assert "older than 99.0" in frame.missing(old, str(tmp_path))
    absent = SimpleNamespace(
        NAME="y", COMMIT=None, PACKAGE="y", TESTS=("no_such_package.tests.test_y::T",)
    )
    assert "no_such_package" in frame.missing(absent, None)


def test_every_adapter_declares_itself():
    declared = [frame.adapter_of(module) for module in frame.adapters()]
    names = [adapter.NAME for adapter in declared]
    assert len(set(names)) == len(names)
    for adapter in declared:
        assert adapter.REPOSITORY.startswith("https://")
        assert adapter.COMMIT is None or len(adapter.COMMIT) == 40
        assert adapter.PACKAGE
        assert adapter.TESTS
        assert callable(adapter.install)
        assert all(reason.strip() for reason in adapter.NOT_RUN.values())


INSTALLED = [
    pytest.param(a.__name__, marks=pytest.mark.slow if getattr(a, "LONG", False) else ())
    for a in map(frame.adapter_of, frame.adapters())
    if a.COMMIT is None
]


@pytest.mark.thinned(3)
@pytest.mark.parametrize("module", INSTALLED)
def test_installed_peers_pass(module):
    """Those whose packages hold their tests; others by `nox -s peers`, on copies."""
    why = frame.missing(frame.adapter_of(module), None)
    if why:
        pytest.skip(why)
    code, row = frame.run(module, None)
    assert code == 0, row


# -- what was run, and its page ---------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs"
needs_docs = pytest.mark.skipif(not DOCS.is_dir(), reason="the pages are not installed")


@needs_docs
def test_every_adapter_was_run():
    data = json.loads((DOCS / "data" / "peers.json").read_text("utf-8"))
    declared = {a.NAME: a for a in map(frame.adapter_of, frame.adapters())}
    assert sorted(data) == sorted(declared)
    for name, row in data.items():
        adapter = declared[name]
        assert row["commit"] == adapter.COMMIT
        assert row["tests"] == list(adapter.TESTS)
        assert row["passed"] > 0
        assert row["failed"] == []
        assert all(row["replaced"].values())
        assert sum(row["polarlib"].values()) > 0
        assert {e["tests"]: e["reason"] for e in row["not_run"]}.items() >= adapter.NOT_RUN.items()


@needs_docs
def test_the_page_is_up_to_date():
    make_peers = module_of(DOCS / "make_peers.py")
    data = json.loads(make_peers.DATA.read_text("utf-8"))
    assert make_peers.PAGE.read_text("utf-8") == make_peers.page(data)
