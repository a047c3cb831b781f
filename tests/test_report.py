"""The report: one HTML page of what the studies wrote, and one clear error for what is wrong."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser

import pytest

from polarlib import report

PNG = report.PNG + b"not much of a picture"
MARKS = (
    "✓ reproduced",
    "○ consistent",
    "✗ not reproduced, failed",
    "≠ not reproduced",
    "– not run",
)
COUNTS = dict.fromkeys((*report.VERDICTS, "failed"), 0)
VOID = {"meta", "img", "br", "link", "hr", "input"}


def result(**more):
    return {
        "study": "toy",
        "title": "Toy & <b>sons</b>",
        "source": "Nobody, arXiv 0000.00000",
        "command": "python analysis/toy/run.py",
        "quick": False,
        "versions": {"python": "3.11", "numpy": "2.0"},
        "figures": [
            figure("inside", 0.1 + 0.2, "reproduced", True),
            figure("bounded", 1, "consistent", True),
            figure("far", [1, None], "not reproduced", False),
            figure("recorded", 2, "not reproduced", True, recorded=RECORDED),
            figure("later", None, "not run", None),
        ],
        "tables": [{"name": "numbers", "csv": "numbers.csv"}],
        "plots": [{"name": "p", "png": "p.png", "pdf": "p.pdf", "caption": 'A "caption" <i>'}],
        "claims": [{"claimed": "It is <fast>.", "figures": ["inside"], "condition": "If rested."}],
        "notes": ["A note."],
    } | more


RECORDED = {"value": 2, "tolerance": {"absolute": 0.1}, "because": "Another <seed>."}


def figure(name, value, verdict, passed, recorded=None):
    return {
        "name": name,
        "value": value,
        "published": [1.5, 2.5] if isinstance(value, list) else 0.3,
        "where": "Table 7",
        "source_kind": "paper",
        "tolerance": {"relative": 0.01},
        "wrong": {"method": "Newton's <method>", "value": None if passed is None else 7.5},
        "recorded": recorded,
        "verdict": verdict,
        "passed": passed,
        "why": "digits",
        "quick": True,
    }


@pytest.fixture
def folder(tmp_path):
    return study(tmp_path / "analysis-output", "toy")


def study(folder, name, **more):
    (folder / name).mkdir(parents=True)
    (folder / name / "result.json").write_text(json.dumps(result(study=name, **more)))
    (folder / name / "p.png").write_bytes(PNG)
    (folder / name / "numbers.csv").write_text('k,value,name\n1,0.30000000000000004,"a, b"\n')
    return folder


class Page(HTMLParser):
    """Tags must be balanced; everything that a browser would load is collected."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loaded, self.links, self.ids, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.loaded += [given[key] for key in ("src", "srcset", "data") if key in given]
        self.links += [given["href"]] if "href" in given else []
        self.ids += [given["id"]] if "id" in given else []
        assert tag not in ("script", "link", "iframe", "object")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page(folder, tmp_path):
    study(
        folder,
        "another",
        title="Another one",
        quick=True,
        figures=[figure("b", 1.0, "reproduced", True)],
    )
    counts = report.write(tmp_path / "r.html", folder)
    assert counts == [
        {"study": "another", "quick": True} | COUNTS | {"reproduced": 1},
        {"study": "toy", "quick": False, "reproduced": 1, "consistent": 1}
        | {"not reproduced": 2, "not run": 1, "failed": 1},
    ]
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.loaded == ["data:image/png;base64," + base64.b64encode(PNG).decode()] * 2
    assert page.links == ["#s1", "#s2"]
    assert page.ids == ["s1", "s2"]
    assert "url(" not in text
    assert "@import" not in text
    assert 'content="width=device-width, initial-scale=1"' in text
    assert 'content="light"' in text
    words = " ".join("".join(page.text).split())
    for expected in (
        "Toy & <b>sons</b>",
        'A "caption" <i>',
        "Nobody, arXiv 0000.00000",
        "python analysis/toy/run.py",
        "numpy 2.0",
        *MARKS,
        "It is <fast>. If rested.",
        "Excluded: Newton's <method>, 7.5.",
        "Excluded: Newton's <method>.",
        "Recorded: 2, within 0.1. Another <seed>.",
        "within 0.01 of itself: digits",
        "paper: Table 7",
        "1.5, 2.5",
        "1, –",
        "A note.",
        "a, b",
        "Another one (quick)",
    ):
        assert expected in words, expected
    assert [words.count(mark) for mark in MARKS] == [2, 1, 1, 1, 1]
    assert "0.30000000000000004" not in words
    assert str(tmp_path) not in text
    # The same again.
    report.write(tmp_path / "s.html", folder)
    assert (tmp_path / "s.html").read_bytes() == (tmp_path / "r.html").read_bytes()


def test_long_tables_are_cut(folder):
    rows = "".join(f"{k},{k}\n" for k in range(1000, 1000 + report.SHOWN + 5))
    (folder / "toy" / "numbers.csv").write_text("k,value\n" + rows)
    text = report.render(report.collect(folder))
    words = "".join(Page(text).text)
    assert str(1000 + report.SHOWN - 1) in words
    assert str(1000 + report.SHOWN) not in words
    assert f"The first {report.SHOWN} rows; numbers.csv has all." in words
    assert f"({report.SHOWN + 5} rows)" in words


def without(key):
    return {k: v for k, v in result().items() if k != key}


def spoiled(key, **more):
    entry = dict(result()[key][0])
    return result(**{key: [entry | more]})


MALFORMED = [
    ("{", "is not JSON"),
    ("[" * 100_000, "is not JSON"),
    ("[1]", "is no object"),
    *((json.dumps(without(key)), f"needs '{key}'") for key in report._KEYS),
    (json.dumps(result(quick=1)), "needs 'quick', of type bool"),
    (json.dumps(result(figures=[{"name": "a"}])), "'figures' lacks 'value'"),
    (json.dumps(result(tables=["a"])), "'tables' lacks 'name'"),
    (json.dumps(result(plots=[{"name": "p", "png": "p.png"}])), "'plots' lacks 'caption'"),
    *(
        (json.dumps(spoiled("figures", **{key: value})), f"'inside' has another kind of {key}")
        for key, value in (
            *(("tolerance", 0.1), ("verdict", "yes"), ("passed", "yes")),
            *(("wrong", None), ("wrong", {"method": "a"}), ("recorded", {"value": 1})),
        )
    ),
    (json.dumps(spoiled("figures", value=[[1]])), "figure 'inside': value must be a number"),
    (json.dumps(spoiled("figures", published={"a": 1})), "published must be a number"),
    ('{"study": 1, "study": 2}', "'study' occurs twice"),
    (json.dumps(spoiled("plots", png="../../secret.png")), "'../../secret.png', which is no file"),
    (json.dumps(spoiled("plots", png=7)), "names the picture 7"),
    (json.dumps(spoiled("plots", png="q.png")), "picture q.png cannot be read"),
    (json.dumps(spoiled("plots", png="numbers.csv")), "numbers.csv is no PNG file"),
    (json.dumps(spoiled("tables", csv="no.csv")), "table no.csv cannot be read"),
    (json.dumps(spoiled("tables", csv="p.png")), "p.png is no CSV file"),
    (json.dumps(spoiled("tables", csv="empty.csv")), "empty.csv has no rows"),
    (json.dumps(spoiled("tables", csv="ragged.csv")), "several lengths"),
]


@pytest.mark.parametrize(("text", "match"), MALFORMED)
def test_malformed_results(text, match, folder, tmp_path):
    (folder / "toy" / "result.json").write_text(text)
    (folder / "toy" / "empty.csv").write_text("")
    (folder / "toy" / "ragged.csv").write_text("a,b\n1\n")
    page = tmp_path / "r.html"
    page.write_text("the old page")
    with pytest.raises(ValueError, match=match) as caught:
        report.write(page, folder)
    assert "result.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert page.read_text() == "the old page"


def test_wrong_folders(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder; run a study first"):
        report.write(tmp_path / "r.html", tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"p\.png: is a file"):
        report.write(tmp_path / "r.html", folder / "toy" / "p.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no result\.json"):
        report.write(tmp_path / "r.html", tmp_path / "empty")
    with pytest.raises(IsADirectoryError, match="is a folder; name a file"):
        report.write(tmp_path / "empty", folder)
    with pytest.raises(FileNotFoundError, match="none: no such folder; make it first"):
        report.write(tmp_path / "none" / "r.html", folder)
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".html"] == []


def test_text_of_studies_is_no_format_and_no_markup(folder):
    odd = "{0.__class__} %s {x!r} <script>alert(1)</script> \ud800"
    name = "<img src=x>"
    study(
        folder,
        "odd",
        title=odd,
        notes=[odd],
        versions={odd: odd},
        figures=[
            figure(odd, odd, "reproduced", True)
            | {"tolerance": {odd: odd}, "why": odd, "where": odd}
        ],
    )
    (folder / "odd" / "numbers.csv").write_text(f"{name},b,c\n1,{name},{{0}}\n")
    report.write(folder / "r.html", folder)
    text = (folder / "r.html").read_text(encoding="utf-8")
    assert text.count("{0.__class__} %s {x!r} &lt;script&gt;") >= 8
    for forbidden in ("<script", "<img src=x", "\ud800"):
        assert forbidden not in text


def test_a_folder_with_too_many_files(folder, monkeypatch):
    monkeypatch.setattr(report, "MOST_FILES", 3)
    with pytest.raises(ValueError, match="holds more than 3 files"):
        report.collect(folder)


def test_nothing_to_show():
    assert "nothing to show" in "".join(Page(report.render([])).text)
