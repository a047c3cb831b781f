"""SciPy's own tests of scipy.linalg.polar, run on polarlib.polar instead: all must pass.

Run it: ``python tests/peers/scipy_polar.py``; further arguments go to pytest. Exit code 0 says that
every test passed, and that the tests called polarlib. Also a plugin of pytest, with this folder on
the path: ``pytest -p scipy_polar --pyargs scipy.linalg.tests.test_decomp_polar``.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

import pytest
import scipy.linalg

import polarlib

MODULE = "scipy.linalg.tests.test_decomp_polar"

calls = 0
passed = 0


def polar(a: Any, side: str = "right") -> polarlib.PolarResult:
    """Ours, by SciPy's signature; the result unpacks as ``u, p``."""
    global calls
    calls += 1
    return polarlib.polar(a, side=side)


def pytest_configure(config: pytest.Config) -> None:
    """Replace SciPy's function before its tests import it by name."""
    if MODULE in sys.modules:
        raise pytest.UsageError(f"{MODULE} was imported before scipy.linalg.polar was replaced")
    scipy.linalg.polar = polar


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count what passed."""
    global passed
    passed += report.when == "call" and report.passed


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say whose function was tested."""
    terminalreporter.write_line(f"{passed} tests passed; polarlib.polar was called {calls} times")


def main(arguments: list[str]) -> int:
    """Run the tests and return an exit code."""
    if importlib.util.find_spec(MODULE) is None:
        sys.stderr.write(f"{MODULE} is not installed: this SciPy came without its tests\n")
        return 2
    # Without the settings of this project, those of SciPy (marks, markers) and a cache folder.
    settings = ["-c", os.devnull, "-p", "no:cacheprovider", "--noconftest", "-W", "error"]
    code = pytest.main([*settings, "--pyargs", MODULE, *arguments], plugins=[sys.modules[__name__]])
    return int(code) or int(not (passed and calls))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
