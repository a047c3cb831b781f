"""The package as it is imported, typed, built and described."""

from __future__ import annotations

import ast
import datetime
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import polarlib
from polarlib._lazy import attach

ROOT = Path(__file__).resolve().parents[1]
TYPING = ROOT / "tests" / "typing"
# Modules of the package that `import polarlib` runs.
LOADED = {"polarlib", "polarlib._lazy", "polarlib._version"}


def python(code: str, **how: object) -> str:
    """Return the output of a fresh process."""
    command = [sys.executable, "-c", f"import sys; {code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, **how)
    return done.stdout


def loaded(code: str) -> set[str]:
    return set(python(f"{code}; print(*sys.modules)").split())


# -- import ----------------------------------------------------------------------------------


def test_import_runs_three_modules_and_none_of_a_dependency():
    found = loaded("import polarlib")
    assert {name for name in found if name.partition(".")[0] == "polarlib"} == LOADED
    packages = {name.partition(".")[0] for name in found - loaded("pass")} - {"polarlib"}
    assert packages <= set(sys.stdlib_module_names)  # no NumPy even


@pytest.mark.parametrize(
    "code",
    [
        "from polarlib import polar, orthogonalize, measure",
        "from polarlib import design, norms, updates, manifold",
    ],
)
def test_slow_packages_wait_for_their_first_use(code):
    found = loaded(code)
    assert not {"scipy.linalg", "mpmath", "flint", "matplotlib", "email"} & found


def test_runtime_names_are_those_that_type_checkers_see():
    tree = ast.parse(Path(polarlib.__file__).read_text(encoding="utf-8"))
    (checked,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    imports = {node.module: {alias.name for alias in node.names} for node in checked.body}
    assert imports.pop("polarlib") == set(polarlib._MODULES)
    homes = {f"polarlib.{module}": set(names) for module, names in polarlib._HOMES.items()}
    assert homes == imports
    names = set().union(*homes.values()) | set(polarlib._MODULES) | {"__version__"}
    assert names == set(polarlib.__all__)


def test_a_name_is_looked_up_once():
    code = "import polarlib; f = polarlib.schedules; print('schedules' in vars(polarlib))"
    assert python(code) == "True\n"


def test_names_are_listed_and_others_refused():
    shown = python("import polarlib; print(set(polarlib.__all__) <= set(dir(polarlib)))")
    assert shown == "True\n"
    with pytest.raises(AttributeError, match="module 'polarlib' has no attribute 'nonsense'"):
        polarlib.nonsense  # noqa: B018
    _, listing = attach("polarlib", {"published": ["schedules"]})
    assert "schedules" in listing()


def test_threads_may_ask_for_the_same_name():
    code = """
import threading, polarlib
names = ("polar", "design", "norms", "orthogonalize", "measure", "files") * 4
found, start = [], threading.Barrier(len(names))
def ask(name):
    start.wait()
    found.append((name, id(getattr(polarlib, name))))
threads = [threading.Thread(target=ask, args=(name,)) for name in names]
[t.start() for t in threads]; [t.join() for t in threads]
print(len(found), len(set(found)))
"""
    assert python(f"exec({code!r})") == "24 6\n"


def test_no_module_accesses_the_package_while_it_is_imported():
    """A thread that imports it directly would wait for the lock of lazy names; see _lazy.py."""
    package = Path(polarlib.__file__).parent
    found = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in sorted(package.rglob("*.py"))
        if path.relative_to(package).parts[0] not in ("__init__.py", "cli")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and node.module == "polarlib"
    ]
    assert found == []


# -- types -----------------------------------------------------------------------------------


WRONG = {
    (number, line.partition("# [")[2].rstrip("]"))
    for number, line in enumerate((TYPING / "wrong.py").read_text("utf-8").splitlines(), 1)
    if "# [" in line
}


@pytest.mark.slow  # `.ci/run` runs both by name, when mypy has just read the package
def test_mypy_accepts_a_users_script_and_finds_wrong_calls(monkeypatch):
    mypy = pytest.importorskip("mypy.api")
    monkeypatch.chdir(ROOT)
    text, errors, status = mypy.run([str(TYPING / "user.py")])
    assert (status, errors) == (0, ""), text
    text, _, _ = mypy.run([str(TYPING / "wrong.py")])
    found = re.findall(r":(\d+): error: .*\[([\w-]+)\]$", text, re.MULTILINE)
    assert {(int(line), code) for line, code in found} == WRONG


@pytest.mark.slow
def test_pyright_accepts_a_users_script_and_finds_wrong_calls(tmp_path):
    program = shutil.which("pyright") or shutil.which("basedpyright")
    if program is None:
        pytest.skip("pyright is not installed: nox -s types")
    settings = {
        "include": [str(TYPING)],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "strict",
        "reportMissingImports": False,  # torch
        "reportUnknownVariableType": False,
        "reportUnknownMemberType": False,
        "reportUnknownParameterType": False,
        "reportUnknownArgumentType": False,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [program, "-p", str(tmp_path), "--pythonpath", sys.executable]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    lines = [line for line in shown.splitlines() if " - error:" in line]
    assert not [line for line in lines if "user.py" in line]
    found = {int(re.search(r":(\d+):\d+ - error", line)[1]) for line in lines}
    assert found == {line for line, _ in WRONG}


# -- distribution ----------------------------------------------------------------------------


def project() -> dict[str, object]:
    path = ROOT / "pyproject.toml"
    if not path.exists():
        pytest.skip("the sources are not here")
    return tomllib.loads(path.read_text(encoding="utf-8"))["project"]


def test_versions_and_requirements_agree():
    """Of pyproject.toml, the recipe for conda, CITATION.cff and docs/versioning.md."""
    known = project()
    recipe = (ROOT / ".conda" / "recipe.yaml").read_text(encoding="utf-8")
    assert f'version: "{polarlib.__version__}"' in recipe
    _, run, constraints = re.split(r"  run(?:_constraints)?:\n", recipe)

    def listed(text: str) -> list[str]:
        lines = text.partition("\ntests:")[0].splitlines()
        return [line.strip(" -").replace(" ", "") for line in lines if line.startswith("    - ")]

    python = "python" + str(known["requires-python"])
    assert listed(run) == [python, *known["dependencies"]]
    extras = known["optional-dependencies"]
    optional = [each.replace("matplotlib", "matplotlib-base") for each in extras["plot"]]
    assert listed(constraints) == sorted([*extras["cli"], *optional])
    assert f"summary: {known['description']}" in recipe
    (home,) = {url.partition("/issues")[0].partition("/blob")[0] for url in known["urls"].values()}
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"homepage: {home}\n" in recipe
    assert f"repository-code: {home}\n" in citation
    released = re.search(r"^date-released: (.+)$", citation, re.MULTILINE)[1]
    assert datetime.date.fromisoformat(released)
    page = (ROOT / "docs" / "versioning.md").read_text(encoding="utf-8")
    needed = [python, *known["dependencies"], *extras["torch"], *extras["jax"], *extras["dask"]]
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) \|", page, re.MULTILINE)
    assert [version for _, version in rows] == [
        next(each.partition(">=")[2] for each in needed if each.startswith(stem))
        for stem in (
            "python>",
            "numpy",
            "scipy",
            "array",
            "mpmath",
            "python-f",
            "torch",
            "jax",
            "dask",
        )
    ]


def test_a_release_has_its_date():
    if ".dev" not in polarlib.__version__:
        changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        day = re.search(r"^## [\d.]+, (\S+)$", changes, re.MULTILINE)[1]
        assert f"date-released: {day}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_sdist_has_what_the_repository_has(tmp_path):
    pytest.importorskip("build")
    if not (ROOT / ".git").exists():
        pytest.skip("no list of the files")
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    command = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, capture_output=True, check=True, timeout=600)
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in tracked if name and (ROOT / name).exists()} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    with zipfile.ZipFile(wheel) as archive:
        installed = {name for name in archive.namelist() if name.startswith("polarlib/")}
    package = Path(polarlib.__file__).parent
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert installed == {path.relative_to(package.parent).as_posix() for path in files}
