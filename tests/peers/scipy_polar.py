"""SciPy's own tests of scipy.linalg.polar, run on polarlib.polar instead: all must pass.

Run it: ``python tests/peers/scipy_polar.py``; further arguments go to pytest. Exit code 0 says that
every test passed, and that the tests called polarlib. An adapter of frame.py.
"""

from __future__ import annotations

import sys
from typing import Any

import frame

import polarlib

NAME = "SciPy polar"
REPOSITORY = "https://github.com/scipy/scipy"
COMMIT = None
PACKAGE = "scipy"
MODULE = "scipy.linalg.tests.test_decomp_polar"
TESTS = (MODULE,)
OPTIONS = ("-W", "error")
NOT_RUN: dict[str, str] = {}


def polar(a: Any, side: str = "right") -> polarlib.PolarResult:
    """Ours, by SciPy's signature; the result unpacks as ``u, p``."""
    return polarlib.polar(a, side=side)


def install() -> None:
    """Replace SciPy's function before its tests import it by name."""
    frame.replace("scipy.linalg.polar", polar)


def main(arguments: list[str]) -> int:
    """Run the tests and return an exit code."""
    why = frame.missing(sys.modules[__name__], None)
    if why:
        sys.stderr.write(f"{why}: this SciPy came without its tests\n")
        return 2
    code, row = frame.run_one("scipy_polar", None, arguments)
    calls = sum(row["polarlib"].values())
    sys.stdout.write(f"{row['passed']} tests passed; polarlib.polar was called {calls} times\n")
    return code


if __name__ == "__main__":
    import scipy_polar

    sys.exit(scipy_polar.main(sys.argv[1:]))
