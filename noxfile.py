"""Sessions of the developers: ``nox`` for what a change must pass, ``nox -s NAME`` for one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests"]
nox.options.reuse_existing_virtualenvs = True
PROJECT = nox.project.load_toml("pyproject.toml")["project"]
LIBRARIES = PROJECT["optional-dependencies"]["test-libraries"]
# The parts of `nox -s full`.
FULL = (
    *("lint", "types", "every", "versions-3.12", "versions-3.13", "lowest"),
    *("seeds", "fuzz", "peers", "studies", "coverage", "docs"),
)
# Versions of the libraries whose calls of a device are counted.
COUNTED = {
    library: run["version"]
    for library, run in json.loads(Path("docs/data/launches.json").read_text("utf-8"))[
        "now"
    ].items()
}
# What stands for a device, by library: packages, and tests besides those of tests/device.
DEVICE = {
    "cupy": (
        (f"cupy-cuda13x[ctk]=={COUNTED['cupy']}", "ml_dtypes"),
        ("arrays/test_cu*.py", "arrays/test_nvrtc.py", "arrays/test_standin.py"),
    ),
    "torch": ((f"torch=={COUNTED['torch']}",), ("**/test_triton*.py", "**/test_torch_n*.py")),
    "jax": ((f"jax=={COUNTED['jax']}",), ("arrays/test_jax_precision.py",)),
}


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types, and the layers of the package: the hooks of .pre-commit-config.yaml."""
    session.install("-e", ".[test]", "pre-commit>=4")
    session.run("pre-commit", "run", "--all-files")


@nox.session
def tests(session: nox.Session) -> None:
    """The default run, without optional array libraries."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def types(session: nox.Session) -> None:
    """A user's script by mypy and pyright, with the types of torch."""
    session.install("-e", ".[test,torch]", "basedpyright>=1.28")
    session.run("python", "-m", "pytest", "-n0", "-m", "", "tests/test_package.py", "-k", "script")


@nox.session
def every(session: nox.Session) -> None:
    """Every test, slow ones included, with torch, JAX and Dask, and what others made for them."""
    session.install("-e", ".[test,peers]", *LIBRARIES)
    session.run("python", "-m", "pytest", "-m", "", *session.posargs)


@nox.session
def full(session: nox.Session) -> None:
    """All that a machine without a GPU can check, in sessions that can be run alone."""
    for part in FULL:
        session.notify(part)


@nox.session(python=["3.12", "3.13"])
def versions(session: nox.Session) -> None:
    """The default run on later Pythons than 3.11, which `lowest` has; missing ones are skipped."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Wrong and random arguments at length: other values for each seed."""
    session.install("-e", ".[test]")
    files = sorted(str(path) for path in Path("tests").rglob("test_fuzz*.py"))
    for seed in session.posargs or map(str, range(1, 6)):
        session.run("python", "-m", "pytest", "-m", "", *files, "--seed", seed)


@nox.session
def studies(session: nox.Session) -> None:
    """Every study of analysis/ in full: some ten minutes; a session fails where a figure does."""
    session.install("-e", ".[studies]")
    for script in sorted(Path("analysis").glob("*/run.py")):
        session.run("python", str(script))


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site: warnings are errors, examples run, internal links lead somewhere.

    Then the tests of its pages, those of the explorer and the report in Chromium if there is one.
    """
    session.install("-e", ".[docs,test]")
    site = Path("docs/_build/html")
    shutil.rmtree(site, ignore_errors=True)
    session.run("python", "-m", "sphinx", "-W", "--keep-going", "-b", "html", "docs", str(site))
    session.run("python", "docs/check_links.py", str(site))
    files = (f"tests/test_{name}.py" for name in ("site", "explorer", "report", "gallery"))
    session.run("python", "-m", "pytest", "-m", "", *files, *session.posargs)


@nox.session
def measures(session: nox.Session) -> None:
    """Measures of the code's structure, into docs/architecture.md."""
    # mypy reads the types of torch and JAX, and a call of torch is traced.
    session.install("-e", ".[test]", *LIBRARIES)
    session.run("python", "benchmarks/measures.py")


@nox.session
def coverage(session: nox.Session) -> None:
    """The default run, and which lines of polarlib it does not reach."""
    session.install("-e", ".[test]")
    session.run(
        "python", "-m", "pytest", "--cov", "--cov-report=term:skip-covered", *session.posargs
    )


@nox.session
def peers(session: nox.Session) -> None:
    """Peers' own tests on polarlib, and the comparison with JAX over its grid: [PATH] of copies.

    PATH has copies of the peers' repositories (docs/evidence/peers.md); without it the tests of
    installed packages are run.
    """
    session.install("-e", ".[test,peers]", *LIBRARIES)
    session.run("python", "tests/peers/frame.py", *session.posargs)
    session.run("python", "tests/peers/jax_grid.py")


@nox.session
@nox.parametrize("library", list(DEVICE))
def device(session: nox.Session, library: str) -> None:
    """Device code without a device: tests/device, and the tests of kernels, for each library.

    The versions are those of which docs/data/launches.json has the counts. torch, which brings
    triton, takes 6 GB with the libraries of CUDA; CuPy takes 2 GB.
    """
    packages, tests = DEVICE[library]
    session.install("-e", ".[test]", *packages)
    files = (str(path) for pattern in tests for path in sorted(Path("tests").glob(pattern)))
    session.run("python", "-m", "pytest", "-m", "", "tests/device", *files, *session.posargs)


@nox.session(python=False)
def gpu(session: nox.Session) -> None:
    """The checks that need a GPU, with the CuPy and torch of the environment."""
    session.run("python", "tests/gpu/run.py", *session.posargs)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The default run with the oldest versions that pyproject.toml admits."""
    versions = session.run("python", ".ci/lowest.py", silent=True)
    session.install("-e", ".[test]", *str(versions).split())
    # Old versions call what newer ones of their own dependencies deprecate.
    quiet = ("-W", "ignore::DeprecationWarning")
    session.run("python", "-m", "pytest", *quiet, *session.posargs)


@nox.session
def seeds(session: nox.Session) -> None:
    """Other random matrices, with one and two BLAS threads: what fails here held by luck."""
    session.install("-e", ".[test]")
    for seed in session.posargs or ("1", "2", "3"):
        for threads in ("1", "2"):
            session.run("python", "-m", "pytest", "tests", "--seed", seed, "--threads", threads)
