"""The core alone: what it imports, what it does, and the errors that name an extra."""

from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import pytest

import polarlib
from polarlib._extras import require

OPTIONAL = ("typer", "rich", "threadpoolctl", "matplotlib", "jinja2", "ml_dtypes", "safetensors")
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
    error = "polarlib.report needs jinja2; install polarlib[report]"
    assert shown.stderr.endswith(f"ImportError: {error}\n")
    code = "from polarlib import report; report.collect = lambda folder: []\n"
    shown = python(code + COMMAND.format("'report'"), "jinja2")
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr == f"polarlib: {error}\n"


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
