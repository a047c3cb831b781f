"""Every block of Python on a page runs as printed, in its order and one namespace."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import re
import statistics
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import polarlib
from polarlib import cli, files
from polarlib._methods import stacked

ROOT = Path(__file__).resolve().parent.parent
EVERY = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if page.is_file() and not {"_build", "gallery", "repository", "generated"} & {*page.parts}
]
PAGES = [page for page in EVERY if "```python" in page.read_text(encoding="utf-8")]
pytestmark = pytest.mark.skipif(not PAGES, reason="the pages are not installed")
NOT_RUN = "# not run: "


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line numbers and texts of the blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, m.start()) + 1, m[1]) for m in found]


def missing(code: str) -> str | None:
    """Name of the first library that a block imports and that is not installed."""
    for name in re.findall(r"^(?:>>> )?(?:import|from) ([\w, ]+)", code, re.MULTILINE):
        for module in re.split(r"[ ,]+", name.partition(" import")[0].partition(" as ")[0]):
            try:
                importlib.import_module(module)
            except ImportError:
                return module
    return None


def names_in(code: str) -> tuple[set[str], set[str]]:
    """Names that a block binds, and those that it uses."""
    if code.startswith(">>>"):
        code = "".join(e.source for e in doctest.DocTestParser().get_examples(code))
    bound, used = set(), set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return bound, used


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run_as_printed(page, tmp_path, monkeypatch):
    """Without a library, blocks are skipped that import it or use what a skipped block binds."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    without, unbound = None, set()
    for line, code in blocks(page):
        if code.startswith(NOT_RUN):
            assert len(code.partition("\n")[0]) > len(NOT_RUN)
            continue
        bound, used = names_in(code)
        absent = missing(code)
        if absent or unbound & used - names.keys():
            without = absent or without
            unbound |= bound
            continue
        if code.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line)
            result = doctest.DocTestRunner().run(test, clear_globs=False)
            assert result.failed == 0
            names = test.globs
        else:
            exec(compile("\n" * line + code, str(page), "exec"), names)
    if without:
        pytest.skip(f"{without} is not installed: its blocks did not run")


@pytest.mark.parametrize("page", EVERY, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_scripts_exist(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    named = re.findall(r"(?:benchmarks|tests|analysis)/[\w/]+\.py", text)
    scripts = named if page in PAGES else []  # others also name files of other repositories
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [script for script in scripts if not (ROOT / script).exists()] == []


def test_commands_of_the_pages_are_known():
    """Every command line in a fenced block, README's too; together they show every command."""
    lines = []
    for page in EVERY:
        fenced = re.findall(r"^```\w*\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
        lines += re.findall(r"^(?:\$ )?polarlib ([a-z]+)(.*)$", "\n".join(fenced), re.MULTILINE)
        assert page.name != "README.md" or "compare" in dict(lines)
    assert set(dict(lines)) == set(get_command(cli.app).commands)
    for command, rest in lines:
        shown = CliRunner().invoke(cli.app, [command, "--help"])
        assert shown.exit_code == 0
        for option in re.findall(r"(?<= )\[?(--?[a-z][a-z-]*)", rest):
            assert re.search(rf"(?<![\w-]){option}\b", shown.output), (command, option)


# -- figures of the README -------------------------------------------------------------------


@pytest.fixture(scope="module")
def readme():
    return " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def distances():
    """What benchmarks/distance.py --json docs/data/distance.json wrote."""
    return json.loads((ROOT / "docs" / "data" / "distance.json").read_text(encoding="utf-8"))


def test_distances_in_the_readme(readme, distances):
    rows = [r for r in distances if (r["format"], r["set"]) == ("bfloat16", "polar_express")]
    assert [r["matrix"] for r in rows] == list(files.sample_matrices())
    errors = {who: [r[who]["backward_error"] for r in rows] for who in ("default", "published")}
    less = sum(d < p for d, p in zip(*errors.values(), strict=True))
    medians = [f"{statistics.median(errors[who]):.3f}" for who in ("default", "published")]
    closer = sum(r["default"]["distance"] < r["published"]["distance"] for r in rows)
    (near,) = (r for r in rows if r["matrix"] == "transformer_mlp_in_late")
    (far,) = (r for r in rows if r["matrix"] == "transformer_attention_qkv_early")
    assert far["published"]["distance"] < far["default"]["distance"]
    near, far = ([r[who]["distance"] for who in ("default", "published")] for r in (near, far))
    for text in (
        f"than Polar Express on {less} (median {medians[0]} against {medians[1]})",
        f"closer to U on {closer}.",
        f"ends at a distance of {near[0]:.3f} from U, Polar Express at {near[1]:.3f}.",
        f"is farther, {far[0]:.3f} against {far[1]:.3f} ",
        f"{len(polarlib.schedules())} published coefficient sets",
    ):
        assert text in readme


def test_range_in_the_readme(readme):
    """The sentence that benchmarks/stress.py writes below its table of largest singular values."""
    pages = (p.read_text("utf-8") for p in sorted((ROOT / "docs" / "evidence").glob("*.md")))
    written = " ".join(" ".join(pages).split())
    number = r"(\d[\d.]*)"
    (found,) = re.findall(
        rf"{number} results, of which 0 are not finite; the largest singular value is {number} "
        rf"in 8 bits and {number} in 16 bits and more\.",
        written,
    )
    results, eight, more = found
    assert f"[Over {results} results](docs/evidence/" in readme
    assert f"is at most {eight} in 8 bits and {float(more):.2f} in 16 bits and more." in readme
    assert float(more) <= float(f"{float(more):.2f}")


def test_distances_are_those_of_this_code(distances, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("distance")
    for name in ("polar_express", "jordan"):
        found = script.row("digits_head_late", "bfloat16", name)
        (kept,) = (
            r for r in distances if all(r[k] == found[k] for k in ("matrix", "format", "set"))
        )
        for who in ("default", "published"):
            assert found[who] == pytest.approx(kept[who], rel=0.05)


def test_speed_in_the_readme(readme, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("polar_page")
    # else: python benchmarks/polar.py --claim
    figures = json.loads(script.FIGURES.read_text(encoding="utf-8"))
    claim = script.claim(figures)
    assert claim in readme
    start = (ROOT / "docs" / "start" / "scipy.md").read_text(encoding="utf-8")
    assert claim.partition(" Each ratio is")[0] in " ".join(start.split())


def test_thresholds_of_the_pages():
    """Numbers that the code has too."""
    auto = importlib.import_module("polarlib._methods.auto")  # the package has a function auto
    which, polar = (
        (ROOT / "docs" / "guide" / name).read_text(encoding="utf-8")
        for name in ("which.md", "polar.md")
    )
    assert f"an SVD below {auto.WORTH_IT} columns" in which
    assert f"Fewer than {auto.WORTH_IT} columns: the SVD" in polar
    assert f"the SVD up to {auto.BATCHED} columns" in polar
    assert f"up to {stacked.SMALL} columns, {stacked.MANY} columns in all" in polar
    lower = polarlib.default_schedule("bfloat16", steps=5).lower
    assert f"σ below {lower:.4f} of the bound of the norm" in which
