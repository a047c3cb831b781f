"""The explorer of schedules and the report of the studies, as pages and in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from browser import chromium
from conftest import module_of
from markup import Markup

from polarlib import Schedule, report
from polarlib.design import for_precision

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "docs" / "explorer").is_dir(), reason="the documentation is not installed"
)
SMALL = ("bfloat16", "float64"), (3, 5), (0.1, 0.001)
START = "l=0.001&degree=5&steps=5&format=bfloat16"


@pytest.fixture(scope="module")
def make():
    pytest.importorskip("bokeh", reason="bokeh is not installed")
    return module_of(ROOT / "docs" / "make_explorer.py")


@pytest.fixture(scope="module")
def extension():
    return module_of(ROOT / "docs" / "_ext" / "explorer.py")


@pytest.fixture(scope="module")
def data(make):
    return make.designs(*SMALL)


@pytest.fixture(scope="module")
def text(make, data):
    return make.page(data, [("index.html", "Documentation")])


def assert_loads_nothing(page, links):
    for tag, given in page.tags:
        assert "src" not in given or given["src"].startswith("data:"), tag
        address = given.get("href", "#")
        assert address.startswith(("#", "data:")) or address in links, address


# -- schedules -------------------------------------------------------------------------------


def steps_of(chain, k):
    return tuple(map(tuple, (*chain["inner"][: k - 1], chain["last"][k - 1])))


@pytest.mark.parametrize("name", SMALL[0])
@pytest.mark.parametrize("place", range(len(SMALL[2])))
def test_schedules_are_those_of_for_precision(name, place, data):
    lower, chain = SMALL[2][place], data["designs"][name]["5"][place]
    counts = range(1, len(chain["last"]) + 1)
    assert counts
    for k in counts:
        s = for_precision(name, lower, steps=k)
        assert s.steps == steps_of(chain, k)
        assert s.matmuls == k * data["products"]["5"]
        assert chain["error"][k - 1] == pytest.approx(s.error(), rel=1e-7)
        assert chain["bound"][k - 1] == pytest.approx(s.certify(format=name).upper, rel=1e-7)
        low, high = chain["after"][k - 1][:2]
        assert max(1 - low, high - 1) == pytest.approx(s.error(), abs=1e-7)  # 8 digits


def test_other_degrees_are_those_of_for_precision(data):
    chain = data["designs"]["bfloat16"]["3"][1]
    s = for_precision("bfloat16", 0.001, matmuls=2 * 6, degrees=(3,))
    assert s.steps == steps_of(chain, 6)
    assert s.matmuls == 6 * data["products"]["3"]


def test_lists_end_where_steps_change_nothing(make, data):
    chain = data["designs"]["bfloat16"]["5"][0]
    limit = float(make.ENOUGH) * data["formats"]["bfloat16"]["unit"]
    assert chain["error"][-1] <= limit < chain["error"][-2]
    assert len(data["designs"]["float64"]["3"][1]["last"]) == make.MOST_PRODUCTS // 2


def test_narrow_formats_have_no_small_lower_ends(make):
    found = make.designs(("float8_e5m2",), (3,), (0.1, 1e-5))
    assert len(found["designs"]["float8_e5m2"]["3"]) == 1


# -- pages -----------------------------------------------------------------------------------


def test_the_explorer_loads_nothing(text):
    page = Markup(text)
    assert_loads_nothing(page, {"index.html"})
    names = [tag for tag, _ in page.tags]
    for tag in ("header", "nav", "main", "footer", "h1"):
        assert names.count(tag) == 1, tag
    levels = [int(tag[1]) for tag in names if re.fullmatch("h[1-6]", tag)]
    assert levels == sorted(levels[:2]) + levels[2:]
    labelled = {given.get("for") for tag, given in page.tags if tag == "label"}
    controls = {given["id"] for tag, given in page.tags if tag in ("input", "select")}
    assert controls == labelled == {"lower", "steps", "degree", "format"}


def test_the_explorer_contains_polarlibs_schedules(text, data):
    assert json.loads(Markup(text).scripts["designs"].replace(r"<\/", "</")) == data


@pytest.mark.slow
def test_the_whole_explorer(make):
    """All formats and degrees, from the largest to the least lower end, in a page below 4 MB."""
    whole = make.designs()
    for name, by_degree in whole["designs"].items():
        for degree, chains in by_degree.items():
            assert len({len(by_degree[d]) for d in by_degree}) == 1
            for lower, chain in zip(make.LOWER, chains, strict=False):
                count = len(chain["last"])
                assert len(chain["inner"]) == count - 1, (name, degree, lower)
                assert count * make.DEGREES[int(degree)] <= make.MOST_PRODUCTS
    assert len(make.page(whole).encode()) < 4_000_000


def test_the_report_has_every_study(extension):
    text = extension.report_page()
    assert_loads_nothing(Markup(text), {"index.html", "explorer.html"})
    values = json.loads(extension.VALUES.read_text(encoding="utf-8"))
    assert all(f'id="study-{name.replace("_", "-")}"' in text for name in values)
    reasons = [
        figure["recorded"]["because"]
        for result in extension.study_results().values()
        for figure in report.not_reproduced(result)
    ]
    assert len(reasons) > 5
    part = text[text.index('id="differences"') : text.index('id="study-')]
    assert part.count('data-heading="reason"') >= len(reasons)


def test_values_must_fit_the_expectations(extension, monkeypatch, tmp_path):
    values = json.loads(extension.VALUES.read_text(encoding="utf-8"))
    values["cans"]["values"] = {}
    monkeypatch.setattr(extension, "VALUES", tmp_path / "papers.json")
    extension.VALUES.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"same values; run python benchmarks/papers\.py --run"):
        extension.study_results()


def test_a_missing_package_is_named():
    code = "import sys, runpy; sys.modules['bokeh'] = None; runpy.run_path(sys.argv[1])"
    script = str(ROOT / "docs" / "make_explorer.py")
    run = subprocess.run(
        [sys.executable, "-c", code, script], capture_output=True, text=True, check=False
    )
    error = "docs/make_explorer.py needs bokeh and jinja2; install polarlib[docs]"
    assert run.stderr.endswith(f"ImportError: {error}\n")


def test_the_site_gets_both_pages(make, extension, data, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(make, "designs", lambda: calls.append(1) or data)
    monkeypatch.setattr(extension, "_script", lambda *_: make)
    monkeypatch.setattr(extension, "report_page", lambda: "the report")
    folders = {"outdir": tmp_path / "out", "doctreedir": tmp_path / "trees"}
    for folder in folders.values():
        folder.mkdir()
    app = SimpleNamespace(builder=SimpleNamespace(format="html"), **folders)
    for _ in range(2):
        extension.write_pages(app, None)
    assert len(calls) == 1  # the second time from the file
    assert (tmp_path / "out" / "report.html").read_text() == "the report"
    assert Markup((tmp_path / "out" / "explorer.html").read_text(encoding="utf-8")).scripts
    shutil.rmtree(folders["outdir"])
    folders["outdir"].mkdir()
    extension.write_pages(app, RuntimeError("the build failed"))
    app.builder.format = "latex"
    extension.write_pages(app, None)
    assert not list(folders["outdir"].iterdir())


# -- in a browser ----------------------------------------------------------------------------

# Data of the paths of an SVG figure, in the shadow trees of Bokeh.
PATHS = """
const found = [];
const walk = (root) => {
  for (const element of root.querySelectorAll("*")) {
    if (element.shadowRoot) walk(element.shadowRoot);
    if (element.tagName === "path") found.push(element.getAttribute("d"));
  }
};
walk(document.getElementById(arguments[0]));
return found.join(" ");
"""
# What a renderer of a figure draws.
DRAWN = """
const [figure, name] = arguments;
for (const document of Bokeh.documents) {
  for (const plot of document.roots()) {
    const axis = plot.left[0].axis_label;
    const glyph = plot.renderers.find((each) => each.name === name);
    if (axis === figure && glyph) {
      return { x: [...glyph.data_source.data.x], y: [...glyph.data_source.data.y] };
    }
  }
}
return null;
"""
READY = "return document.documentElement.dataset.ready"
TEXT = "return document.getElementById(arguments[0]).textContent"
WIDTHS = (390, 1280)


@pytest.fixture
def browser():
    """A browser for each test: after a picture, a key may wait for a frame that is never drawn."""
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def explorer(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "explorer.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def studies(extension, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "report.html"
    path.write_text(extension.report_page(), encoding="utf-8")
    return path


def opened(browser, page, fragment="", **how):
    browser.open(page, fragment, **how)
    if "explorer" in page.name:
        browser.wait(READY)
    assert browser.problems() == []
    assert browser.requests() == [page.as_uri()]
    return browser


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["explorer", "studies"])
def test_pages_in_a_browser(name, width, browser, request):
    """No error, no request, no scrolling to the side, another picture on a dark screen."""
    page = request.getfixturevalue(name)
    pictures, grounds = [], []
    for dark in (False, True):
        opened(browser, page, width=width, dark=dark)
        assert browser.overflow() <= 0
        pictures.append(browser.picture())
        grounds.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
    assert pictures[0] != pictures[1]
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 23, 26)"]
    names = browser.names()
    assert names
    assert all(names.values()), names
    # Every cell of a table of cards is on the screen.
    inside = browser.run(
        "return [...document.querySelectorAll('table.cards [role=cell]')].every((cell) => {"
        "const box = cell.getBoundingClientRect(); return box.left >= 0 && box.right <= innerWidth"
        "})"
    )
    assert inside


@pytest.mark.slow
def test_figures_follow_the_colour_scheme(explorer, browser):
    opened(browser, explorer)
    ground = "return Bokeh.documents[0].roots()[0].background_fill_color"
    assert browser.run(ground) == "#ffffff"
    browser.scheme(dark=True)
    browser.wait(f"{ground} === '#14171a'")
    browser.scheme(dark=False)
    browser.wait(f"{ground} === '#ffffff'")


@pytest.mark.slow
def test_arrow_keys_move_the_sliders(explorer, browser):
    opened(browser, explorer, START)
    before = browser.run(PATHS, "plot-error")
    assert before
    assert browser.run(TEXT, "products") == "15"
    browser.press("#steps", "ArrowLeft")
    assert browser.run(TEXT, "products") == "12"
    assert browser.run(TEXT, "steps-value").startswith("4 of")
    browser.wait(
        "return (() => {" + PATHS + "})(arguments[0]) !== arguments[1]", "plot-error", before
    )
    assert "steps=4" in browser.run("return location.hash")
    browser.press("#lower", "ArrowLeft")
    assert browser.run(TEXT, "lower-value") == "0.1"
    spoken = "return document.getElementById('lower').getAttribute('aria-valuetext')"
    assert browser.run(spoken) == "0.1"
    # The address is enough to come back.
    fragment = browser.run("return location.hash").removeprefix("#")
    summary = browser.run(TEXT, "summary")
    opened(browser, explorer, fragment)
    assert browser.run(TEXT, "summary") == summary


@pytest.mark.slow
def test_the_figures_are_polarlibs_polynomials(explorer, browser):
    opened(browser, explorer, START)
    s = for_precision("bfloat16", 1e-3, steps=5)
    drawn = browser.run(DRAWN, "singular value of the result", "composition")
    x, y = np.array(drawn["x"]), np.array(drawn["y"])
    expected = x
    for c in s.steps:
        expected = expected * np.polynomial.polynomial.polyval(expected**2, c)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    extrema = browser.run(DRAWN, "error s(x) − 1", "extrema")
    assert np.max(np.abs(extrema["y"])) == pytest.approx(s.error(), rel=1e-9)
    assert browser.run(TEXT, "extrema") == str(len(extrema["x"]))
    # The text to copy makes the schedule.
    names: dict[str, Schedule] = {}
    exec(browser.run(TEXT, "code"), names)
    assert names["schedule"].steps == s.steps
    assert names["schedule"].error() == pytest.approx(s.error())


@pytest.mark.slow
@pytest.mark.parametrize(
    "fragment", ["l=1e-9&degree=5&steps=99&format=bfloat16", "l=x&degree=4&steps=&format=int8"]
)
def test_wrong_fragments(fragment, explorer, browser):
    opened(browser, explorer, fragment)
    assert re.match(r"\d+ products, worst error [\d.e-]+, with", browser.run(TEXT, "summary"))


@pytest.mark.slow
def test_tables_sort(studies, browser):
    opened(browser, studies)
    column = (
        "return [...document.querySelector('table').tBodies[0].rows]"
        ".map((row) => row.cells[arguments[0]].textContent.trim())"
    )
    heading = "table thead th:nth-child(2)"
    before = browser.run(column, 1)
    browser.press(f"{heading} button", "Enter")
    rising = browser.run(column, 1)
    assert rising == sorted(before, key=int)
    sort = f"return document.querySelector('{heading}').getAttribute('aria-sort')"
    assert browser.run(sort) == "ascending"
    browser.press(f"{heading} button", "Enter")
    assert browser.run(column, 1) == sorted(before, key=int, reverse=True)
    assert browser.run(sort) == "descending"
    browser.press("table thead th:nth-child(1) button", "Enter")
    assert browser.run(sort) is None
    assert browser.run(column, 0) != sorted(before)
