"""Peers' own tests, run with some of their functions replaced by ours.

    python tests/peers/frame.py [PATH] [--only NAME]... [--json docs/data/peers.json]

PATH has copies of the peers' repositories, fetched by hand: PATH/roma, PATH/pytorch3d, and so on.
Without it those peers run whose installed packages hold their tests. Exit code 0 says that every
chosen test passed, and that each run called polarlib; 1 that something failed, 2 that a peer that
was asked for is not there. ``--json`` merges the results into a file of data, from
which ``python docs/make_peers.py`` makes docs/evidence/peers.md.

An adapter is a module beside this file. Its declarations are read in other processes too, so that
it imports the peer, and array libraries, within :func:`install` and the functions alone:

    NAME            of the peer, unique
    REPOSITORY      address
    COMMIT          of the copy that was run; None where the tests come with the installed package
    PACKAGE         name by which it is imported and, unless DISTRIBUTION says another, installed
    TESTS           files within the copy, or modules of the installed package; both may end with
                    ``::Class`` and ``::Class::test``
    install()       replaces functions by :func:`replace`, before the tests are imported
    NOT_RUN         {pattern: reason}: tests left out, by patterns of fnmatch for the end of their
                    id from the file's name on, "test_a.py::TestB::*"; one that fits none is refused
    FOLDER          of the copy below PATH, if that is not NAME
    PATHS           folders of the copy to import from, if not its root: ("src",)
    OPTIONS         further arguments of pytest
    REQUIRES        further packages to import, without which it is not run
    SINCE           the oldest version of the package for which the adapter was written, "1.17"
    LONG            True if the run takes more than some ten seconds
    NOTE            what a reader of the page must know, such as what stands for a device

Calls are counted of every replaced function, and of polarlib's public functions from within them.
"""

from __future__ import annotations

import argparse
import collections
import fnmatch
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import polarlib

HERE = Path(__file__).parent
# Files here that are no adapters.
OTHERS = {"frame", "jax_grid"}
LIBRARIES = ("numpy", "scipy", "torch", "jax")

# Of one run, in a process of its own.
replaced: collections.Counter[str] = collections.Counter()
ours: collections.Counter[str] = collections.Counter()


# -- what adapters call ----------------------------------------------------------------------


def replace(path: str, function: Callable[..., Any]) -> Any:
    """Put `function` in the place of ``package.module.name`` or ``package.module.Class.name``.

    Every imported module that has the function under some name gets the new one. Returns the
    function that was there.
    """
    owner, name = _owner(path)
    old = inspect.getattr_static(owner, name)
    counted = _counted(function, replaced, path)
    if isinstance(old, staticmethod | classmethod):
        counted = type(old)(counted)
    setattr(owner, name, counted)
    for module in list(sys.modules.values()) if isinstance(owner, ModuleType) else ():
        # Lazy modules must not be made to import: their names are read as they are.
        for alias, value in list(getattr(module, "__dict__", {}).items()):
            if value is old:
                setattr(module, alias, counted)
    return old


def _owner(path: str) -> tuple[Any, str]:
    """The module or class that has a function, and its name there."""
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if not ".".join(parts[:cut]).startswith(error.name or "?"):
                raise  # the module is there, what it imports is not
            continue
        return functools.reduce(getattr, parts[cut:-1], owner), parts[-1]
    raise ModuleNotFoundError(f"nothing of {path} can be imported")


def _counted(
    function: Callable[..., Any], counter: collections.Counter[str], name: str
) -> Callable[..., Any]:
    counter[name] += 0

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        counter[name] += 1
        return function(*args, **kwargs)

    return call


def _count_ours() -> None:
    """Count calls of public functions. polarlib calls its own under other names."""
    modules = [polarlib, *(m for n in polarlib.__all__ if inspect.ismodule(m := _public(n)))]
    for module in modules:
        short = module.__name__.removeprefix("polarlib.")
        for name in module.__all__:
            function = getattr(module, name)
            if inspect.isfunction(function):
                full = name if module is polarlib else f"{short}.{name}"
                setattr(module, name, _counted(function, ours, full))


def _public(name: str) -> Any:
    return getattr(polarlib, name)


# -- one run, in its own process -------------------------------------------------------------


class Results:
    """A plugin of pytest: leaves out what is not to be run, and counts the rest."""

    def __init__(self, not_run: dict[str, str]) -> None:
        self.patterns = not_run
        self.used: set[str] = set()
        self.passed: list[str] = []
        self.failed: list[str] = []
        # By pattern or test, without its parameters: how many, and why.
        self.not_run: dict[str, tuple[int, str]] = {}

    def _leave(self, name: str, reason: str) -> None:
        name = name.partition("[")[0]
        self.not_run[name] = self.not_run.get(name, (0, reason))[0] + 1, reason

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[Any]) -> None:
        """Leave out the tests of NOT_RUN."""
        kept, left = [], []
        for item in items:
            name = _short(item.nodeid)
            pattern = next((p for p in self.patterns if fnmatch.fnmatchcase(name, p)), None)
            if pattern is None:
                kept.append(item)
            else:
                self.used.add(pattern)
                self._leave(pattern, self.patterns[pattern])
                left.append(item)
        items[:] = kept
        if left:
            config.hook.pytest_deselected(items=left)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported has failed, one that skips itself was not run."""
        if report.failed:
            self.failed.append(_short(report.nodeid) or "collection")
        elif report.skipped:
            self._leave(_short(report.nodeid), _reason(report))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once: as failed if any part of it did."""
        name = _short(report.nodeid)
        if report.failed:
            self.failed.append(name)
        elif report.skipped:
            expected = getattr(report, "wasxfail", None)
            self._leave(name, f"expected to fail: {expected}" if expected else _reason(report))
        elif report.when == "call":
            self.passed.append(name)


def _short(nodeid: str) -> str:
    """A test's id from the name of its file on."""
    file, colons, rest = nodeid.partition("::")
    return f"{Path(file).name}{colons}{rest}"


def _reason(report: Any) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return str(text).removeprefix("Skipped: ") or "skipped by the peer"


def run_one(name: str, copies: str | None, arguments: list[str]) -> tuple[int, dict[str, Any]]:
    """Run a peer's tests in this process: exit code and row of data."""
    adapter = adapter_of(name)
    copy = copy_of(adapter, copies)
    tests = list(adapter.TESTS)
    if copy is not None:
        os.chdir(copy)
        sys.path[:0] = [str(copy / path) for path in getattr(adapter, "PATHS", (".",))]
    else:
        tests.insert(0, "--pyargs")
    for test in tests[copy is None :]:
        if (module := test.partition("::")[0]) in sys.modules:
            raise RuntimeError(f"{module} was imported before its functions were replaced")
    _count_ours()
    adapter.install()
    results = Results(adapter.NOT_RUN)
    # Without the settings of this project, those of the peer (marks, markers) and a cache folder.
    settings = ["-c", os.devnull, "-p", "no:cacheprovider", "--noconftest"]
    settings.append(f"--rootdir={copy or _folder(adapter.PACKAGE)}")
    options = [*getattr(adapter, "OPTIONS", ()), *arguments]
    code = int(pytest.main([*settings, *options, *tests], plugins=[results]))
    problems = _problems(adapter, results, chosen=bool(arguments))
    for problem in problems:
        sys.stderr.write(f"{adapter.NAME}: {problem}\n")
    row = _row(adapter, copy, results)
    return code or int(bool(problems)), row


def _folder(package: str) -> Path:
    """Where a package is installed."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    return Path(spec.origin or "").parent


def _problems(adapter: ModuleType, results: Results, *, chosen: bool) -> list[str]:
    """What is wrong beside tests that failed. `chosen`: further arguments chose among the tests."""
    problems = []
    if not results.passed:
        problems.append("no test passed")
    if not sum(ours.values()):
        problems.append("polarlib was never called")
    if not chosen:
        problems += [f"{path} was never called" for path, count in replaced.items() if not count]
        stale = [p for p in adapter.NOT_RUN if p not in results.used]
        problems += [f"NOT_RUN has {p!r}, which fits no test" for p in stale]
    return problems


def _row(adapter: ModuleType, copy: Path | None, results: Results) -> dict[str, Any]:
    return {
        "repository": adapter.REPOSITORY,
        "commit": commit_of(copy),
        "version": _version(adapter),
        "python": platform.python_version(),
        "libraries": {
            n: importlib.import_module(n).__version__ for n in LIBRARIES if n in sys.modules
        },
        "tests": list(adapter.TESTS),
        "options": list(getattr(adapter, "OPTIONS", ())),
        "replaced": dict(replaced),
        "polarlib": {name: count for name, count in sorted(ours.items()) if count},
        "passed": len(set(results.passed) - set(results.failed)),
        "failed": sorted(set(results.failed)),
        "not_run": [
            {"tests": name, "count": count, "reason": reason}
            for name, (count, reason) in sorted(results.not_run.items())
        ],
        "note": getattr(adapter, "NOTE", ""),
    }


def _version(adapter: ModuleType) -> str | None:
    """Of the installed package; None where the copy alone is there."""
    try:
        return importlib.metadata.version(getattr(adapter, "DISTRIBUTION", adapter.PACKAGE))
    except importlib.metadata.PackageNotFoundError:
        return None


# -- peers that are there --------------------------------------------------------------------


def adapters() -> Iterator[str]:
    """Names of the modules of adapters."""
    for path in sorted(HERE.glob("*.py")):
        if path.stem not in OTHERS and not path.stem.startswith("test_"):
            yield path.stem


def adapter_of(module: str) -> ModuleType:
    """The adapter in a module of this folder."""
    return importlib.import_module(module)


def copy_of(adapter: ModuleType, copies: str | None) -> Path | None:
    """Folder of the peer's repository, None for one whose installed tests are run."""
    if adapter.COMMIT is None:
        return None
    return Path(copies or os.curdir, getattr(adapter, "FOLDER", adapter.NAME)).resolve()


def commit_of(copy: Path | None) -> str | None:
    """The commit that a copy is of."""
    if copy is None:
        return None
    command = ["git", "-C", str(copy), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or None


def missing(adapter: ModuleType, copies: str | None) -> str:
    """Why a peer cannot be run here; nothing if it can."""
    for package in getattr(adapter, "REQUIRES", ()):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    since, version = getattr(adapter, "SINCE", None), _version(adapter)
    if since and version and _numbers(version) < _numbers(since):
        return f"{adapter.PACKAGE} {version} is older than {since}"
    if adapter.COMMIT is None:
        for module in (test.partition("::")[0] for test in adapter.TESTS):
            try:
                spec = importlib.util.find_spec(module)
            except ModuleNotFoundError:
                spec = None
            if spec is None:
                return f"{module} is not installed"
        return ""
    if copies is None:
        return "a copy of its repository is needed: give the folder that has it"
    copy = copy_of(adapter, copies)
    return "" if copy is not None and copy.is_dir() else f"there is no folder {copy}"


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:2]]


# -- all runs --------------------------------------------------------------------------------


def run(module: str, copies: str | None) -> tuple[int, dict[str, Any]]:
    """Run a peer's tests in a process of its own: exit code and row of data."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "row.json")
        command = [sys.executable, str(HERE / "frame.py"), "--one", module, str(out)]
        done = subprocess.run([*command, *([os.path.abspath(copies)] if copies else [])])
        row = json.loads(out.read_text("utf-8")) if out.exists() else {}
    return done.returncode, row


def _one(arguments: list[str]) -> int:
    """What :func:`run` starts."""
    module, out, *copies = arguments
    try:
        code, row = run_one(module, copies[0] if copies else None, [])
    except Exception:
        traceback.print_exc()
        return 1
    Path(out).write_text(json.dumps(row), "utf-8")
    return code


def main(arguments: list[str]) -> int:
    """Run the peers that are there and return an exit code."""
    if arguments[:1] == ["--one"]:
        return _one(arguments[1:])
    parser = argparse.ArgumentParser(description="Peers' own tests on polarlib's functions.")
    parser.add_argument("path", nargs="?", help="folder with copies of the peers' repositories")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="this peer; may be repeated"
    )
    parser.add_argument("--json", type=Path, help="file of data into which results are merged")
    options = parser.parse_args(arguments)
    peers = {adapter.NAME: adapter for adapter in map(adapter_of, adapters())}
    for name in options.only or ():
        if name not in peers:
            parser.error(f"there is no peer {name!r}; there are {', '.join(peers)}")
    rows, code = {}, 0
    for name, adapter in peers.items():
        if options.only and name not in options.only:
            continue
        why = missing(adapter, options.path)
        if why:
            sys.stderr.write(f"{name} is not run: {why}\n")
            code = code or (2 if options.only else 0)
            continue
        failed, rows[name] = run(adapter.__name__, options.path)
        code = 1 if failed else code
        sys.stdout.write(f"{name}: {_summary(rows[name], failed)}\n")
        sys.stdout.flush()
    if not rows:
        sys.stderr.write("no peer was run\n")
        return code or 2
    if options.json:
        merge(options.json, rows)
    return code


def _summary(row: dict[str, Any], failed: int) -> str:
    if not row:
        return "could not be run"
    calls = ", ".join(f"{name} {count} times" for name, count in row["polarlib"].items())
    left = sum(entry["count"] for entry in row["not_run"])
    return (
        f"{row['passed']} passed, {len(row['failed'])} failed, {left} not run; "
        f"called {calls or 'nothing of polarlib'}{'' if not failed else '; FAILED'}"
    )


def merge(path: Path, rows: dict[str, Any]) -> None:
    """Put rows into a file of data, those of other peers stay."""
    data = json.loads(path.read_text("utf-8")) if path.exists() else {}
    data = dict(sorted((data | {name: row for name, row in rows.items() if row}).items()))
    path.write_text(json.dumps(data, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    # Adapters import this file by its name: one module, one count.
    import frame

    sys.exit(frame.main(sys.argv[1:]))
