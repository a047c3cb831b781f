"""The report: one HTML page of the studies' results, and an error of one line for a wrong file."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re

import pytest
from markup import Markup

from polarlib import report

PNG = report.PNG + b"not much of a picture"
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"></svg>'
CSV = 'k,value,name\n1,0.30000000000000004,"a, b"\n'
MARKS = (
    "✓ reproduced",
    "○ consistent",
    "✗ not reproduced, failed",
    "≠ not reproduced",
    "– not run",
)
COUNTS = dict.fromkeys((*report.VERDICTS, "failed"), 0)


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
        "claims": [
            {"claimed": "It is <fast>.", "figures": ["inside"], "condition": "If rested."},
            {"claimed": "It is cheap.", "figures": [], "condition": "Not run: no money."},
        ],
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
    (folder / name / "result.json").write_text(json.dumps(result(**({"study": name} | more))))
    (folder / name / "p.png").write_bytes(PNG)
    (folder / name / "numbers.csv").write_text(CSV)
    return folder


class Page(Markup):
    """Tags must be balanced; everything that a browser would load is collected."""

    def __init__(self, text):
        self.loaded, self.links, self.ids, self.text = [], [], [], []
        self.labels, self.downloads = [], {}
        super().__init__(text)

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        given = dict(attrs)
        self.loaded += [given[key] for key in ("src", "srcset", "data") if key in given]
        if "download" in given:
            kind, _, content = given["href"].partition(";base64,")
            self.downloads.setdefault(given["download"], []).append((kind, content))
        elif "href" in given:
            self.links += [given["href"]]
        self.ids += [given["id"]] if "id" in given else []
        self.labels += given.get("aria-labelledby", "").split()
        assert tag not in ("iframe", "object", "form")
        assert not [key for key in given if key.startswith("on")]

    def handle_data(self, data):
        super().handle_data(data)
        self.text.append(data)

    def named(self, tag):
        return [given for name, given in self.tags if name == tag]


def test_the_page(folder, tmp_path):
    study(
        folder,
        "another",
        title="Another one",
        quick=True,
        figures=[figure("inside", 1.0, "reproduced", True)],
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
    assert "url(" not in text
    assert "@import" not in text
    words = " ".join("".join(page.text).split())
    for expected in (
        "Toy & <b>sons</b>",
        'A "caption" <i>',
        "Nobody, arXiv 0000.00000",
        "python analysis/toy/run.py",
        "numpy 2.0",
        *MARKS,
        "It is <fast>.",
        "If rested.",
        "inside: 0.3 (published: 0.3), ✓ reproduced",
        "It is cheap.",
        "Not run: no money.",
        "Excluded: Newton's <method>, 7.5.",
        "Excluded: Newton's <method>.",
        "Recorded: 2, ± 0.1. Another <seed>.",
        "± relative 0.01. digits",
        "paper: Table 7",
        "1.5, 2.5",
        "1, none",
        "A note.",
        "a, b",
        "Another one (quick)",
    ):
        assert expected in words, expected
    # Once with the claim and once in the table of values, where one is in both.
    assert [words.count(mark) for mark in MARKS] == [4, 1, 1, 1, 1]
    assert "0.30000000000000004" not in words
    assert str(tmp_path) not in text
    # The same again.
    report.write(tmp_path / "s.html", folder)
    assert (tmp_path / "s.html").read_bytes() == (tmp_path / "r.html").read_bytes()


def test_differences_have_their_reasons(folder):
    text = report.render(report.collect(folder))
    part = text[text.index('<h2 id="differences">') : text.index('<h2 id="study-toy">')]
    assert "What was not reproduced, and why" in part
    for expected in ("far (Table 7)", "recorded (Table 7)", "Another &lt;seed&gt;."):
        assert expected in part
    assert "inside" not in part
    assert "Claims without a computed value" in part


def test_the_page_is_accessible(folder):
    page = Page(report.render(report.collect(folder)))
    assert page.named("html") == [{"lang": "en"}]
    assert {"name": "color-scheme", "content": "light dark"} in page.named("meta")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.named(
        "meta"
    )
    for tag in ("header", "nav", "main", "footer", "h1"):
        assert len(page.named(tag)) == 1, tag
    assert page.named("a")[0] == {"class": "skip", "href": "#main"}
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    # Links, and labels by reference, lead somewhere; ids are unique.
    assert len(set(page.ids)) == len(page.ids)
    targets = {link.removeprefix("#") for link in page.links if link != "data:,"}
    assert targets | set(page.labels) <= set(page.ids)
    # Every heading of a column is a button; regions that scroll can be focused and have names.
    tags = [tag for tag, _ in page.tags]
    columns = [k for k, (tag, given) in enumerate(page.tags) if given.get("scope") == "col"]
    assert len(columns) > 20
    assert {tags[k + 1] for k in columns} == {"button"}
    scrolling = [given for _, given in page.tags if given.get("class") == "scroll"]
    assert all(given["tabindex"] == "0" and given["aria-label"] for given in scrolling)
    assert all(given["alt"] for given in page.named("img"))
    # A narrow screen shows every cell with the heading of its column.
    cells = [given for given in page.named("td") if given.get("role") == "cell"]
    assert len(cells) > 20
    assert all(given["data-heading"] for given in cells)


def test_only_the_script_of_the_page_runs(folder):
    page = Page(report.render(report.collect(folder)))
    (script,) = page.scripts.values()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [m["content"] for m in page.named("meta") if "http-equiv" in m]
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_downloads_are_the_files(folder):
    page = Page(report.render(report.collect(folder)))
    ((kind, content),) = page.downloads["result.json"]
    assert kind == "data:application/json"
    assert base64.b64decode(content) == (folder / "toy" / "result.json").read_bytes()
    ((kind, content),) = page.downloads["numbers.csv"]
    assert kind == "data:text/csv"
    assert base64.b64decode(content).decode() == CSV


def test_svg_is_preferred(folder):
    plots = [{"name": "p", "png": "p.png", "svg": "p.svg", "caption": "A curve"}]
    (folder / "toy" / "result.json").write_text(json.dumps(result(plots=plots)))
    (folder / "toy" / "p.svg").write_bytes(SVG)
    page = Page(report.render(report.collect(folder)))
    assert page.loaded == ["data:image/svg+xml;base64," + base64.b64encode(SVG).decode()]


def test_studies_of_one_name_have_sections_of_their_own(folder):
    study(folder, "more", study="toy")
    page = Page(report.render(report.collect(folder), [("index.html", "Documentation")]))
    assert {"study-toy", "study-toy-2"} <= set(page.ids)
    assert "index.html" in page.links


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
    ("[1]", "is not an object"),
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
    (
        json.dumps(spoiled("plots", png="../../secret.png")),
        "'../../secret.png', which is not a file",
    ),
    (json.dumps(spoiled("plots", png=7)), "names the picture 7"),
    (json.dumps(spoiled("plots", png="q.png")), "picture q.png cannot be read"),
    (json.dumps(spoiled("plots", png="numbers.csv")), "numbers.csv is not a PNG file"),
    (json.dumps(spoiled("plots", svg="p.png")), "p.png is not an SVG file"),
    (json.dumps(spoiled("plots", svg=["p.svg"])), "names the picture"),
    (json.dumps(spoiled("tables", csv="no.csv")), "table no.csv cannot be read"),
    (json.dumps(spoiled("tables", csv="p.png")), "p.png is not a CSV file"),
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
    assert text.count("<script") == 1
    for forbidden in ("<img src=x", "\ud800"):
        assert forbidden not in text


def test_a_folder_with_too_many_files(folder, monkeypatch):
    monkeypatch.setattr(report, "MOST_FILES", 3)
    with pytest.raises(ValueError, match="holds more than 3 files"):
        report.collect(folder)


def test_nothing_to_show():
    assert "nothing to show" in "".join(Page(report.render([])).text)
