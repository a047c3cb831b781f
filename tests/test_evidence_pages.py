"""Pages of docs/evidence that scripts make from data files are those of the data."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from polarlib import design

ROOT = Path(__file__).resolve().parent.parent
EVIDENCE = ROOT / "docs" / "evidence"
pytestmark = pytest.mark.skipif(not EVIDENCE.is_dir(), reason="the pages are not installed")


@pytest.fixture
def script(monkeypatch):
    """A function that imports a script of benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def text(name: str) -> str:
    return (EVIDENCE / name).read_text(encoding="utf-8")


def part(page: str, name: str) -> str:
    """What stands between the markers of a page."""
    return re.search(rf"<!-- begin {name} -->\n(.*?)\n<!-- end {name} -->", page, re.DOTALL)[1]


def test_the_page_of_number_formats(script):
    lowbits = script("lowbits")
    data = lowbits.load(lowbits.DATA)
    # else: python benchmarks/lowbits.py --markdown docs/evidence/precision.md
    assert lowbits.page(data) == text("precision.md")
    (row,) = [r for r in data["errors"] if (r["format"], r["steps"]) == ("bfloat16", 5)]
    s = design.for_precision("bfloat16", 1e-3, steps=5)
    assert row["errors"]["for_precision"][0] == lowbits.digits(s.error())
    assert [s.error(), s.matmuls] == [pytest.approx(0.1237, abs=5e-5), 15]
    assert lowbits.first_step("bfloat16", 1e-3) == data["first step"]
    assert lowbits.restart_rows() == data["restarts"]
    # The sentence on top: no design diverges, on any matrix.
    own = [r for r in data["largest"] if r["schedule"] == "for_precision"]
    assert {r["format"] for r in own} == set(lowbits.LOWER)
    assert all(top is not None and top < 1.3 for r in own for top in r["largest"].values())


def test_the_page_of_budgets(script):
    budget = script("budget_table")
    data, measured = budget.load(budget.DATA), budget.load(budget.MEASURED)
    # else: python benchmarks/budget_table.py --markdown docs/evidence/budget.md
    assert budget.page(data, measured) == text("budget.md")
    (row,) = [r for r in data["exact"] if r["products"] == 15]
    cell = row["cells"][budget.EXPONENTS.index(3)]
    s = design.budget(1e-3, 15)
    assert budget.short([2 * len(step) - 1 for step in s.steps]) == cell["degrees"]
    assert budget.figure(s.error()) == cell["error"]


def test_the_page_of_designs(script):
    designs = script("design")
    data, page = designs.load(designs.DATA), text("design.md")
    # else: python benchmarks/design.py --markdown docs/evidence/design.md
    assert designs.tables(data) == part(page, "design")
    assert designs.summary(data) == part(page, "summary")
    assert [(g["lower"], g["degrees"]) for g in data["gaps"]] == designs.GAPS
    assert designs.cases().keys() == {r["design"] for r in data["times"]}
    for gap in data["gaps"]:
        upper = design.greedy(gap["lower"], gap["degrees"]).certify().upper
        assert upper == pytest.approx(gap["error"], rel=1e-10)


def test_the_pages_of_the_gram_form(script):
    gram = script("gram")
    page = text("gram.md")
    # else: python benchmarks/gram.py --write
    assert gram.costs() == part(gram.GUIDE.read_text(encoding="utf-8"), "costs")
    assert gram.summary(part(page, "largest")) == part(page, "summary")
    for line in part(page, "largest").splitlines()[2:]:
        of_x, of_gram, name, *_, places, _ = [cell.strip() for cell in line.split("|")[1:-1]]
        finer = of_gram if of_gram != of_x else None
        at = design.restarts(gram.schedules()[name], of_x, gram_format=finer)
        assert ", ".join(map(str, at)) == places


def test_the_page_of_approximations(script):
    made = script("approximations")
    data = made.load()
    # else: python benchmarks/approximations.py --page
    assert made.page(data) == text("approximations.md")
    assert data["settings"] == made.settings() | {
        key: list(value) for key, value in made.settings().items() if isinstance(value, tuple)
    }
    gradients = made.matrices()
    assert data["gradients"].keys() == gradients.keys()
    for name in ("digits_hidden1_early", "mixer_token_in_600"):
        found = made.measured(gradients[name])
        assert data["gradients"][name].keys() == found.keys()
        for variant, values in found.items():
            # The last singular values are rounding errors of the stored format.
            assert data["gradients"][name][variant] == pytest.approx(values, rel=2e-3, abs=1e-3)
    assert data["bytes"] == {v.name: made.sent(made.SHAPE, v) for v in made.variants()}
    assert data["exact bytes"] == made.exact()
    # What the text says in words: a bound that holds, and feedback that helps at every rank.
    for row in data["gradients"].values():
        assert all(gap <= 1 - made.DEVICES**-0.5 + 1e-3 for _, gap, _ in row.values())
    for kept, lost in data["feedback"].values():
        assert all(a < b for a, b in zip(kept, lost, strict=True))


@pytest.fixture(autouse=True)
def _forget_the_scripts():
    """`design` and `gram` are names of scripts: none may remain imported for other tests."""
    yield
    names = ("lowbits", "lowbits_page", "budget_table", "design", "gram")
    for name in (*names, "approximations", "approximations_page"):
        sys.modules.pop(name, None)
