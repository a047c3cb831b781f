"""docs/guide/norms.md and optimizers.md: tables and figure agree with the code."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from polarlib import norms, plot, updates
from polarlib.norms import rows, spectral_maps

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the pages are not installed")


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_norms", DOCS / "make_norms.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_norms"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_norms"]


def constructors():
    """Names of the functions that return a norm: of matrices, of kernels, of lists of arrays."""
    functions = {name: f for name, f in vars(norms).items() if inspect.isfunction(f)}
    return {
        name
        for name in norms.__all__
        if name in functions
        and inspect.signature(functions[name]).return_annotation
        in ("MatrixNorm", "Convolution", "Modular")
    }


@pytest.fixture(scope="module")
def pages():
    names = ("norms.md", "optimizers.md")
    return {name: (DOCS / "guide" / name).read_text(encoding="utf-8") for name in names}


def test_the_tables_are_up_to_date(maker, pages):
    assert list(maker.TABLES) == list(pages)
    for name, page in pages.items():
        assert maker.filled(page, name) == page  # else: python docs/make_norms.py


def test_stale_and_lost_tables_are_noticed(maker, pages):
    page = pages["norms.md"]
    stale = page.replace("| 4; 7; (1, 1, 1) |", "| 4; 8; (1, 1, 1) |", 1)
    assert stale != page
    assert maker.filled(stale, "norms.md") == page
    lost = pages["optimizers.md"].replace("<!-- end mup -->", "")
    with pytest.raises(ValueError, match="must have one pair of <!-- begin mup -->"):
        maker.filled(lost, "optimizers.md")


def test_every_norm_has_a_row(maker):
    shown = {row.code.partition("(")[0] for row in maker.rows()}
    assert constructors() == shown | set(maker.SAME)  # else: a row in docs/make_norms.py
    for name, other in maker.SAME.items():
        assert other in shown
        assert name not in shown


def test_wrong_formulas_are_noticed(maker):
    for row in maker.rows():
        maker.check(row)
        with pytest.raises(AssertionError):
            maker.check(row._replace(lmo_of=lambda g, row=row: 1.001 * row.lmo_of(g)))
        with pytest.raises(AssertionError):
            maker.check(row._replace(dual_of=lambda g, row=row: 1.001 * row.dual_of(g)))


def test_every_map_has_a_row_and_wrong_ones_are_noticed(maker):
    shown = {row.code.partition("(")[0] for row in maker.map_rows()}
    assert shown == {*spectral_maps.__all__, *rows.__all__}
    for row in maker.map_rows():
        with pytest.raises(AssertionError):
            maker.check_map(row._replace(wanted=lambda g, row=row: 1.001 * row.wanted(g)))


def test_every_public_name_of_the_pages_exists(pages):
    page = "".join(pages.values())
    for module in (updates, spectral_maps, rows):
        for name in module.__all__:
            assert name in page
    for name in re.findall(r"norms\.([a-z_]+)\(", page):
        assert callable(getattr(norms, name))
    assert "unit_ball" in plot.__all__


def test_the_picture(maker, monkeypatch, tmp_path):
    page = DOCS / "guide" / "norms.md"
    (link,) = re.findall(r"\]\((\S*figures/.*?)\)", page.read_text(encoding="utf-8"))
    picture = (page.parent / link).resolve()
    assert picture == maker.FIGURE
    assert picture.stat().st_size < 150_000
    monkeypatch.setattr(maker, "FIGURE", tmp_path / "unit_balls.png")
    maker.figure()
    new, old = (matplotlib.image.imread(p) for p in (maker.FIGURE, picture))
    if new.shape != old.shape:  # versions of matplotlib round a height to one pixel or the next
        np.testing.assert_allclose(new.shape, old.shape, atol=1)
        return
