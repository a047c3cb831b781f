"""Figures for columns, pages and slides: everything inside, nothing collapsed."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from polarlib import plot

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are not installed")
STYLES = ("column", "page", "slide")


def module():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("figures_check")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def checks():
    return module()


@pytest.fixture(scope="module")
def cases(checks):
    return checks.cases()


NAMES = sorted(module().cases()) if BENCHMARKS.is_dir() else []


def test_every_function_is_among_the_cases():
    drawing = set(plot.__all__) - {"save", "style"}
    drawing = {name for name in drawing if callable(getattr(plot, name))}
    assert {name.partition("-")[0] for name in NAMES} == drawing


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", NAMES)
def test_figures_of_a_column(name, cases, checks):
    with plot.style("column"):
        ax = cases[name]()
        assert checks.faults(ax) == []
    np.testing.assert_array_equal(ax.figure.get_size_inches(), [3.3, 2.5])
    assert checks.alike(ax) == []


@pytest.mark.thinned(9)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("style", STYLES[1:])
def test_figures_of_pages_and_slides(name, style, cases, checks):
    with plot.style(style):
        assert checks.faults(cases[name]()) == []


@pytest.mark.thinned(9)
@pytest.mark.parametrize("name", NAMES)
def test_a_small_figure_of_the_caller(name, cases, checks):
    """3.3 x 2.5 inches by figure.figsize alone, text of the usual size for that."""
    with matplotlib.rc_context({"figure.figsize": (3.3, 2.5), "font.size": 7}):
        assert checks.faults(cases[name]()) == []


def test_faults_are_found(checks):
    figure = Figure(figsize=(3.3, 2.5))
    ax = figure.subplots()
    ax.plot([1, 2], label="a line of a long name " * 3)
    ax.plot([2, 1], label="another line of a long name " * 2)
    ax.legend()
    ax.set_title("a title that is far longer than the figure is wide, which is three inches")
    ax.set_xlabel("far below\n" * 5)
    found = "\n".join(checks.faults(ax))
    assert re.search(r"'a title that.*' is outside", found)
    assert "'far below" in found
    assert re.search(r"the legend has \d+% of the Axes", found)
    ax = Figure(figsize=(3.3, 2.5)).add_axes((0.4, 0.4, 0.2, 0.2))
    ax.text(0, 0, "one")
    ax.text(0, 0, "two")
    found = "\n".join(checks.faults(ax))
    assert "text 'one' is over text 'two'" in found
    assert "the Axes have 20% of the width" in found


def test_lines_that_are_alike_are_found(checks):
    ax = Figure().subplots()
    ax.plot([1, 2], color="#ff0000", label="red")
    ax.plot([2, 1], color="#00a000", label="green")
    ax.plot([2, 1], color="#00a000", marker="o", label="marked")
    ax.plot([2, 1], "--", color="#00a000", label="dashed")
    found = checks.alike(ax)
    assert found
    assert all(text.startswith("'red' is like 'green'") for text in found)
    assert not any(text.endswith("normal") for text in found)


def test_visions(checks):
    """Rows sum to 1: grey stays grey. Of sRGB: the L*a*b* of white, black and pure red."""
    grey = np.full(3, 0.5)
    for vision in checks.VISIONS:
        np.testing.assert_allclose(checks.seen(grey, vision), checks.linear(grey), atol=1e-5)
    np.testing.assert_allclose(checks.lab(checks.linear([1, 1, 1])), [100, 0, 0], atol=1e-3)
    np.testing.assert_allclose(checks.lab(np.zeros(3)), [0, 0, 0], atol=1e-9)
    found = checks.lab(checks.linear(to_rgb("red")))
    np.testing.assert_allclose(found, [53.24, 80.09, 67.20], atol=0.02)
    image = np.random.default_rng(0).random((2, 3, 3))
    np.testing.assert_allclose(checks.encoded(checks.linear(image)), image, atol=1e-12)


# -- style -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "width", "text"), [("column", 3.3, 7), ("page", 7, 8), ("slide", 10, 18)]
)
def test_style_holds_within_its_block(name, width, text):
    before = dict(matplotlib.rcParams)
    with plot.style(name):
        assert matplotlib.rcParams["figure.figsize"][0] == width
        assert matplotlib.rcParams["font.size"] == text
        figure = Figure()
        ax = figure.subplots()
        assert ax.xaxis.label.get_fontsize() == text
        assert figure.get_layout_engine() is not None
    assert dict(matplotlib.rcParams) == before


def test_unknown_styles():
    for name in ("colum", None, 3, ["column"]):
        with pytest.raises(ValueError, match=r"name must be .*'column'"):
            plot.style(name)


def test_pdf_has_truetype_fonts_at_its_width(cases, tmp_path):
    """Type 42 in a PDF is a font of subtype CIDFontType2 with its file; 72 points to an inch."""
    path = tmp_path / "a.pdf"
    with plot.style("column"), matplotlib.rc_context({"pdf.compression": 0}):
        plot.save(cases["compare-eight"](), path)
    content = path.read_bytes()
    assert b"/Subtype /CIDFontType2" in content
    assert b"/FontFile2" in content
    assert b"/Type3" not in content
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]", content)
    np.testing.assert_allclose([float(v) for v in box.groups()], [3.3 * 72, 2.5 * 72], atol=0.01)
