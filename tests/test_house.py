"""Rules of the code's structure, read from its sources, and the recipes of CONTRIBUTING.md."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import io
import json
import re
import sys
import tokenize
import tomllib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from methods import test_contract
from norms import test_norms
from schedules import test_published

import polarlib
from polarlib import norms
from polarlib._schedules.targets import TARGETS
from polarlib._schedules.validity import NORMALISATIONS, Normalisation
from polarlib.arrays import NumpyOps
from polarlib.arrays.ops import served
from polarlib.engine.normalise import BOUNDS, normalise
from polarlib.norms.base import Norm

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PACKAGE = Path(polarlib.__file__).parent
pytestmark = pytest.mark.skipif(
    not DOCS.is_dir() or PACKAGE.parent != ROOT, reason="the sources are not what is imported"
)

# What breaks a rule today, by the rule: file names, once per place. The tests ask for equality, so
# that an entry goes with its cause. When a list is empty, remove it.
OFFENDERS: dict[str, list[str]] = {}
IDLE = {"pass", "...", "raise NotImplementedError", "raise NotImplementedError()"}
HEADINGS = ["Context", "Decision", "Alternatives", "Consequences", "Evidence"]


def _load(path: Path) -> Any:
    """Import a script of the repository."""
    spec = importlib.util.spec_from_file_location(f"house_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measures() -> Any:
    return _load(ROOT / "benchmarks" / "measures.py")


@pytest.fixture(scope="module")
def files(measures) -> dict[str, str]:
    return measures.sources(PACKAGE)


def assert_offenders(rule: str, found: list[Any]) -> None:
    """Places, or names of files, are those that OFFENDERS lists."""
    names = sorted(each if isinstance(each, str) else each.file for each in found)
    shown = "\n".join(map(str, found))
    assert names == sorted(OFFENDERS.get(rule, [])), f"{rule} are now\n{names}\n{shown}"


# -- rules -----------------------------------------------------------------------------------


def test_no_file_is_long(measures, files):
    long = [f for f, text in files.items() if len(text.splitlines()) > measures.LARGEST_FILE]
    assert_offenders("files above 500 lines", long)


def test_no_module_imports_itself_through_others(measures, files):
    assert measures.circles(measures.imports(files)) == []


def test_circles_are_noticed(measures):
    files = {
        "__init__.py": "from polarlib import a",
        "a.py": "def f():\n    from polarlib.b import g",
        "b.py": "import importlib\nimportlib.import_module('polarlib.c.d')",
        "c/__init__.py": "",
        "c/d.py": "from .. import a",
        "e.py": "import polarlib.a",
    }
    graph = measures.imports(files)
    assert graph["polarlib.a"] == {"polarlib.b"}
    assert measures.circles(graph) == [["polarlib.a", "polarlib.b", "polarlib.c.d"]]


def test_only_arrays_compares_with_numpys_type(measures, files):
    assert_offenders("comparisons with NumPy's array type", measures.numpy_checks(files))


def test_only_arrays_names_array_libraries(measures, files):
    assert_offenders("names of array libraries", measures.library_names(files))


@pytest.mark.parametrize(
    ("text", "checks", "names"),
    [
        ("isinstance(x, np.ndarray)", 1, 0),
        ("isinstance(x, float | numpy.ndarray)", 1, 0),
        ("type(x) is ndarray", 1, 0),
        ("def f(x: np.ndarray) -> np.ndarray: ...", 0, 0),
        ("import torch.fx", 0, 1),
        ("def f():\n    from jax import numpy", 0, 1),
        ("import_module('dask.array')", 0, 1),
        ("sys.modules.get('cupy')", 0, 1),
        ("import importlib, torchvision, numpy", 0, 0),
        ("'torch'", 0, 0),  # a docstring
        ("message = 'arrays of torch'", 0, 0),
    ],
)
def test_names_and_checks_are_noticed(measures, text, checks, names):
    assert len(measures.numpy_checks({"a.py": text})) == checks
    assert len(measures.library_names({"a.py": text})) == names
    for exempt in ("arrays/a.py", "files/a.py"):
        assert measures.numpy_checks({exempt: text}) == []
        assert measures.library_names({exempt: text}) == []


def test_results_are_made_in_one_place(measures, files):
    found = [
        measures.Place(file, node.lineno, ast.unparse(node))
        for file, text in files.items()
        for node in measures.nodes(text)
        if (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("PolarResult"))
        or (isinstance(node, ast.Attribute) and node.attr == "_made")
    ]
    assert found
    assert_offenders("further places that make a PolarResult", found[1:])


def stubs(tree: ast.Module) -> list[int]:
    """Lines of functions that do nothing: no declarations, and no docstring that says so."""
    declared = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "Protocol" in map(ast.unparse, node.bases)
        for inner in node.body
    }
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or id(node) in declared:
            continue
        if any(re.search("overload|abstract", ast.unparse(d)) for d in node.decorator_list):
            continue
        first = node.body[0]
        document = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        body = node.body[document and first.value.value is not Ellipsis :]
        # A method that its subclasses replace raises NotImplementedError.
        idle = {"pass", "..."} if "self" in ast.unparse(node.args) else {*IDLE}
        if body and all(ast.unparse(each) in idle for each in body):
            found.append(node.lineno)
    return found


def test_no_stubs_and_no_notes_of_unfinished_work(files):
    found = []
    for file, text in files.items():
        found += [(file, line) for line in stubs(ast.parse(text))]
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT and re.search("TODO|FIXME|XXX|HACK", token.string):
                found.append((file, token.start[0]))
    assert found == []


def test_stubs_are_noticed():
    assert stubs(ast.parse("def f():\n    '''Text.'''\n    pass")) == [1]
    assert stubs(ast.parse("def f():\n    raise NotImplementedError")) == [1]
    assert stubs(ast.parse("class A:\n    def f(self): ...")) == [2]
    assert stubs(ast.parse("class A(Protocol):\n    def f(self): ...")) == []
    assert stubs(ast.parse("def f():\n    return None")) == []


def test_the_contracts_name_every_module():
    """import-linter skips modules that the second contract does not name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers, libraries = project["tool"]["importlinter"]["contracts"]
    assert layers["exhaustive"] is True
    named = {name for layer in layers["layers"] for name in re.findall(r"\w+", layer)}
    exempt = {"__main__", "arrays", "bench", "testing"}
    assert set(libraries["source_modules"]) == {f"polarlib.{name}" for name in named - exempt}


# -- pages -----------------------------------------------------------------------------------


def test_decision_pages_have_their_headings():
    pages = sorted((DOCS / "decisions").glob("*.md"))
    numbers = [page.name[:4] for page in pages]
    assert numbers == [f"{i:04}" for i in range(1, len(pages) + 1)]
    other = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.startswith("# ")
        found = re.findall(r"^\*\*(\w+)(?: measured)?(?:\.\*\*|\*\* \()", text, re.MULTILINE)
        if [each for each in found if each in HEADINGS] != HEADINGS:
            other.append(page.name)
    assert_offenders("decision pages without the five headings", other)


def test_one_version():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == polarlib.__version__
    sections = re.findall(r"^## (.+)$", changes, re.MULTILINE)
    if ".dev" in polarlib.__version__:
        assert sections[0] == "Unreleased"
    else:
        assert re.fullmatch(rf"{re.escape(polarlib.__version__)}, \d{{4}}-\d\d-\d\d", sections[0])


def test_the_architecture_page_names_what_there_is(measures):
    page = measures.PAGE.read_text(encoding="utf-8")
    top = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py"}
    top |= {path.parent.name + "/" for path in PACKAGE.glob("*/__init__.py")}
    former = {
        path.name
        for path in PACKAGE.glob("*.py")
        if "Former name" in path.read_text(encoding="utf-8").partition("\n")[0]
    }
    folders = page.partition("```\npolarlib/\n")[2].partition("```")[0]
    listed = set(re.findall(r"^  ([\w.]+/?) ", folders, re.MULTILINE))
    assert top - former - {"__init__.py", "_version.py"} <= listed
    assert [name for name in listed if not (PACKAGE / name).exists()] == []


def test_the_measures_are_those_of_this_code(measures):
    """Within 5 %; else: nox -s measures."""
    data = json.loads(measures.DATA.read_text(encoding="utf-8"))
    page = measures.PAGE.read_text(encoding="utf-8")
    kept = data["after"]["measures"]
    for key, value in measures.still(ROOT).items():
        assert kept[key] == pytest.approx(value, rel=0.05), f"{key}: run `nox -s measures`"
    for name in {file for walk in data["walks"].values() for file in walk}:
        assert (PACKAGE / name).exists(), f"{name}: run `nox -s measures`"
    for part in (measures.table(data), measures.walk_table(data["walks"])):
        assert part in page
    missed = {m.key for m in measures.MEASURES if measures.missed(m, kept.get(m.key))}
    assert set(data["reasons"]) <= missed  # else it would be forgotten there
    assert_offenders("missed measures without a reason", sorted(missed - set(data["reasons"])))


# -- recipes of CONTRIBUTING.md: a place that was forgotten ------------------------------------


def test_every_schedule_has_check_values_and_authors():
    page = (DOCS / "guide" / "polar.md").read_text(encoding="utf-8")
    for name in polarlib.schedules():
        assert f"`{name}`" in page
    assert set(test_published.QUALITY) == set(polarlib.schedules())


def test_every_method_has_its_rows():
    page = (DOCS / "guide" / "polar.md").read_text(encoding="utf-8")
    for name in set(polarlib.methods()) - set(polarlib.schedules()):
        assert re.search(rf"^\| `{name}` \|", page, re.MULTILINE)
    assert set(test_contract.TABLE) == set(polarlib.methods())


def test_every_norm_has_its_rows():
    makers = {
        name
        for name in norms.__all__
        if inspect.isfunction(getattr(norms, name))
        and issubclass(_returned(getattr(norms, name)), Norm)
    }
    assert len(makers) > 10
    page = (DOCS / "guide" / "norms.md").read_text(encoding="utf-8")
    tests = Path(test_norms.__file__).read_text(encoding="utf-8")
    others = "".join(
        path.read_text(encoding="utf-8")
        for path in Path(test_norms.__file__).parent.glob("test_norms_*.py")
    )
    for name in makers:
        assert re.search(rf"norms\.{name}\b", tests + others), name
    missing = [name for name in makers if not re.search(rf"\b{name}\b", page)]
    assert_offenders("norms that docs/guide/norms.md does not name", missing)


def _returned(function: Any) -> type:
    hint = inspect.signature(function).return_annotation
    found = function.__globals__.get(hint, object) if isinstance(hint, str) else hint
    return found if isinstance(found, type) else object


def test_every_normalisation_has_its_rows():
    assert set(BOUNDS) == set(NORMALISATIONS) == set(get_args(Normalisation))
    for name in NORMALISATIONS:
        assert f'"{name}"' in inspect.getdoc(polarlib.Schedule)


def test_every_normalisation_has_a_bound_of_its_own():
    """One without a branch of its own would be computed as another one."""
    a = np.random.default_rng(0).standard_normal((6, 4)) * [1.0, 2.0, 4.0, 8.0]
    made = {name: normalise(a, NumpyOps(np), name)[0] for name in NORMALISATIONS}
    sizes = {name: round(float(np.linalg.norm(y)), 6) for name, y in made.items()}
    assert len(set(sizes.values())) == len(NORMALISATIONS), sizes
    for name in set(NORMALISATIONS) - {"none"}:
        assert 0.1 < np.linalg.norm(made[name], 2) <= 1 + 1e-14, name


def test_every_target_has_its_rows():
    page = (DOCS / "guide" / "design.md").read_text(encoding="utf-8")
    tests = {
        name: (ROOT / "tests" / name).read_text(encoding="utf-8")
        for name in (
            "design/test_targets.py",
            "schedules/test_certify.py",
            "schedules/test_schedule.py",
        )
    }
    for name in set(TARGETS) - {"polar"}:
        assert f"`{name}`" in page
        for file, text in tests.items():
            assert re.search(rf"[\"']{name}[\"'(]", text), (name, file)


def test_every_array_library_has_its_rows():
    names = {name for name, kind in served().items() if kind.__module__.startswith("polarlib.")}
    assert len(names) >= 5
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    forbidden = project["tool"]["importlinter"]["contracts"][1]["forbidden_modules"]
    assert names - {"numpy"} <= set(forbidden)
    extras = project["project"]["optional-dependencies"]
    assert names - {"numpy"} <= set(extras)
    # CuPy needs a GPU, and has a mock.
    assert set(re.search(r"polarlib\[(.*)\]", extras["test-libraries"][0])[1].split(",")) == (
        names - {"numpy", "cupy"}
    )


def test_recipes_count_their_places():
    """The number of places is that of the numbered steps."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    recipes = re.findall(r"^## (Add .+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert len(recipes) >= 7
    without = []
    for title, body in recipes:
        places = re.search(r"^Places: (\d+)", body.strip())
        if places is None or int(places[1]) != len(re.findall(r"^\d+\. ", body, re.MULTILINE)):
            without.append(title)
    assert_offenders("recipes without the number of their places", without)
