"""The core alone: what it imports, what it does, and the errors that name an extra."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import polarlib
from polarlib import bench
from polarlib._extras import require
from polarlib.arrays.library import numpy_dtype

OPTIONAL = (
    *("typer", "rich", "threadpoolctl", "matplotlib", "jinja2"),
    *("ml_dtypes", "safetensors", "h5py", "zarr"),
)
LIBRARIES = ("torch", "jax", "dask", "cupy")
COMMAND = (
    "import runpy; sys.argv = ['polarlib', {}]; runpy.run_module('polarlib', run_name='__main__')"
)


def python(code, *blocked):
    """A process in which some packages are not installed."""
    block = f"import sys; sys.modules.update(dict.fromkeys({blocked}))"
    command = [sys.executable, "-c", f"{block}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def command(*args, without):
    return python(COMMAND.format(", ".join(map(repr, args))), *without)


def test_the_core_alone_decomposes():
    code = (
        "import numpy as np, polarlib; a = np.arange(6.0).reshape(3, 2); u, h = polarlib.polar(a); "
        "q = polarlib.orthogonalize(a); polarlib.design.greedy(0.1, [5]).certify(); "
        "t = polarlib.measure(a, 'jordan'); polarlib.files.names; polarlib.norms.spectral(); "
        "print(np.allclose(u @ h, a), q.shape)"
    )
    shown = python(code, *OPTIONAL)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "True (3, 2)\n", "")


def test_import_is_lean():
    code = (
        f"import polarlib; print([name for name in {OPTIONAL + LIBRARIES} if name in sys.modules])"
    )
    assert python(code).stdout == "[]\n"


@pytest.mark.parametrize("without", [("typer", "rich"), ("typer",), ("rich",), OPTIONAL])
def test_the_command_line_names_its_extra(without):
    shown = command("polar", "A.npy", without=without)
    assert (shown.returncode, shown.stdout) == (2, "")
    text = "polarlib's command line needs typer and rich; install polarlib[cli]\n"
    assert shown.stderr == text
    assert python("from polarlib.__main__ import main; main()", *without).stderr == text


def test_plots_name_their_extra(tmp_path, monkeypatch):
    shown = python("import polarlib; polarlib.plot", "matplotlib")
    error = "polarlib.plot needs matplotlib; install polarlib[plot]"
    assert shown.stderr.endswith(f"ImportError: {error}\n")
    monkeypatch.chdir(tmp_path)
    np.save("A.npy", np.eye(2))
    for args in (
        ("converge", "A.npy", "--plot", "p.png"),
        ("design", "--lower", "0.1", "--steps", "2", "--plot", "p.pdf"),
        ("compare", "A.npy"),
    ):
        shown = command(*args, without=["matplotlib"])
        assert (shown.returncode, shown.stdout) == (2, "")
        assert shown.stderr == f"polarlib: {error}\n"
    assert command("converge", "A.npy", without=["matplotlib"]).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["A.npy"]


def test_reports_name_their_extra():
    shown = python("from polarlib import report; report.render([])", "jinja2")
    error = "polarlib.report needs jinja2; install polarlib[cli]"
    assert shown.stderr.endswith(f"ImportError: {error}\n")
    code = "from polarlib import report; report.collect = lambda folder: []\n"
    shown = python(code + COMMAND.format("'report'"), "jinja2")
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr == f"polarlib: {error}\n"


@pytest.mark.parametrize("library", ["torch", "jax", "cupy"])
def test_measurements_name_the_extra_of_a_library(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    text = rf"a measurement of {library} needs {library}; install polarlib\[{library}\]"
    with pytest.raises(ImportError, match=text):
        bench.compare(library, sizes=[4], seconds=1)


def test_low_formats_name_their_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    text = r"an array of bfloat16 needs ml_dtypes; install polarlib\[files\]"
    with pytest.raises(ImportError, match=text):
        numpy_dtype("bfloat16")
    q = polarlib.orthogonalize(np.eye(3), precision="bfloat16")  # simulated without it
    assert q.shape == (3, 3)


def test_dask_names_its_extra(monkeypatch):
    array = pytest.importorskip("dask.array")
    x = array.ones((8, 2), chunks=(4, 2))
    monkeypatch.setitem(sys.modules, "dask.array", None)
    with pytest.raises(ImportError, match=r"needs dask.array; install polarlib\[dask\]"):
        polarlib.polar_tall(x)


def test_files_in_blocks_name_the_extra_of_dask(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("A.npy", np.eye(2))
    shown = command("polar", "A.npy", "-o", "U.npy", "--memory", "1GB", without=["dask"])
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr == "polarlib: --memory needs dask.array; install polarlib[dask]\n"


def test_extras_are_those_that_messages_name():
    """Of pyproject.toml; three more are for the developers."""
    path = Path(__file__).resolve().parents[1] / "pyproject.toml"
    if not path.exists():
        pytest.skip("the sources are not here")
    extras = tomllib.loads(path.read_text("utf-8"))["project"]["optional-dependencies"]
    users = [
        "plot",
        "cli",
        "files",
        "torch",
        "jax",
        "dask",
        "cupy",
        "fast",
        "docs",
        "studies",
        "test",
        "all",
    ]
    assert set(extras) == {*users, "triton", "peers", "test-libraries"}
    source = "\n".join(
        file.read_text("utf-8") for file in Path(polarlib.__file__).parent.rglob("*.py")
    )
    named = set(re.findall(r"polarlib\[(\w+)\]", source))
    named |= set(re.findall(r"require\(\s*[^,]+, \"(\w+)\",", source)) - {"sound"}
    assert {"cli", "files", "plot", "dask"} <= named - {"sound"} <= set(users)


def test_a_damaged_package_is_not_a_missing_one(monkeypatch):
    def damaged(name):
        raise ModuleNotFoundError("No module named 'ft2font'", name="ft2font")

    monkeypatch.setattr(importlib, "import_module", damaged)
    with pytest.raises(ModuleNotFoundError, match="ft2font") as caught:
        require("polarlib.plot", "plot", "matplotlib")
    assert type(caught.value) is ModuleNotFoundError


# -- what an editor sees ---------------------------------------------------------------------


def test_lazy_modules_are_listed():
    assert set(polarlib.__all__) <= set(dir(polarlib))
    shown = python(f"import polarlib; print({set(polarlib._MODULES)} <= set(dir(polarlib)))")
    assert shown.stdout == "True\n"
