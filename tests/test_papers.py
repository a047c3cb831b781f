"""The page of what the studies reproduce: made of the file of values, and nothing else."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from polarlib import report

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are not installed"
)
VALUES = ROOT / "docs" / "data" / "papers.json"


@pytest.fixture(scope="module")
def papers():
    path, before = sys.path[:], sys.modules.pop("common", None)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield importlib.import_module("papers")
    finally:
        sys.path[:] = path
        for name in ("papers", "common", "verdicts"):
            sys.modules.pop(name, None)
        if before is not None:
            sys.modules["common"] = before


@pytest.fixture(scope="module")
def data():
    return json.loads(VALUES.read_text(encoding="utf-8"))


def test_every_study_has_run(papers, data):
    assert list(data) == papers.studies()


def test_no_figure_failed(papers, data):
    for name in data:
        for figure in papers.judged(name, data[name])["figures"]:
            assert figure["passed"], (name, figure["name"], figure["value"])


def test_the_page_is_that_of_the_values(papers, data):
    assert papers.PAGE.read_text(encoding="utf-8") == papers.page(data)


def test_the_readmes_are_those_of_the_values(papers, data):
    for name in data:
        text = (ROOT / "analysis" / name / "README.md").read_text(encoding="utf-8")
        body = papers.figures_table(papers.judged(name, data[name])["figures"])
        assert f"<!-- begin figures -->\n{body}\n<!-- end figures -->" in text, name
        assert papers.readme(text, data) == text, name


def test_pictures(papers, data):
    found = {path.stem for path in papers.PICTURES.iterdir()}
    assert found == set(data)


def test_what_has_not_run_is_named(papers, data):
    name = next(iter(data))
    spoiled = data[name] | {"values": {}}
    with pytest.raises(ValueError, match=f"other figures of {name} .*--run {name}"):
        papers.judged(name, spoiled)


def test_report_and_page_agree(papers, data, tmp_path):
    """The report of files with these values counts the same verdicts as the page."""
    for name in data:
        study = papers.judged(name, data[name])
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(papers.PICTURES / f"{name}.png", folder / "p.png")
        plots = [{"name": "p", "png": "p.png", "caption": study["caption"]}]
        told = {key: study[key] for key in ("title", "source", "claims", "figures", "versions")}
        told |= {"study": name, "command": "run", "quick": False, "notes": [], "tables": []}
        (folder / "result.json").write_text(json.dumps(told | {"plots": plots}), encoding="utf-8")
    page = papers.page(data)
    everything: Counter[str] = Counter()
    for counts in report.write(tmp_path / "report.html", tmp_path):
        words = report.VERDICTS[:-1]
        assert not counts["failed"]
        assert not counts["not run"]
        everything.update({word: counts[word] for word in words})
        title = json.loads((tmp_path / counts["study"] / "result.json").read_text())["title"]
        (row,) = [line for line in page.splitlines() if line.startswith(f"| [{title}](")]
        assert [cell.strip() for cell in row.split(" | ")[1:4]] == [str(counts[w]) for w in words]
    total = " | ".join(str(everything[word]) for word in report.VERDICTS[:-1])
    assert f"| all | {total} |" in page
