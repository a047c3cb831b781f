"""The examples of the gallery run, prove the sentences at their tops, and leave figures."""

from __future__ import annotations

import ast
import importlib.util
import re
import runpy
import sys
from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from conftest import module_of
from matplotlib import pyplot

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(ROOT.glob("examples/*/plot_*.py"))
FOLDERS = ("deep_learning", "papers", "scipy")
# What an example needs in addition to the extra "test".
NEEDS = {"plot_19": "jax", "plot_20": "dask", "plot_21": "jax"}
LINES = 80
pytestmark = pytest.mark.skipif(not EXAMPLES, reason="the examples are not installed")


@pytest.fixture(scope="module")
def checks():
    path = ROOT / "benchmarks" / "figures_check.py"
    if not path.is_file():
        pytest.skip("the benchmarks are not installed")
    return module_of(path)


@pytest.fixture
def agg(tmp_path, monkeypatch):
    """A backend without windows, and matplotlib as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    backend = matplotlib.get_backend()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        pyplot.switch_backend("Agg")
        yield
        pyplot.close("all")
    pyplot.switch_backend(backend)


def test_the_gallery_is_complete():
    assert {path.parent.name for path in EXAMPLES} == set(FOLDERS)
    numbers = sorted(int(path.stem[5:7]) for path in EXAMPLES)
    assert numbers == list(range(1, 23))
    for folder in ("", *FOLDERS):
        header = ROOT / "examples" / folder / "GALLERY_HEADER.rst"
        title, line, *_ = header.read_text("utf-8").splitlines()
        assert line in (len(title) * "=", len(title) * "-")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_has_a_title_a_sentence_and_a_check(path):
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= LINES
    tree = ast.parse(text)
    title, line, empty, *sentence = ast.get_docstring(tree).splitlines()
    assert line == len(title) * "="
    assert not empty
    assert re.search(r"\d", " ".join(sentence))  # it has a number
    assert sum(isinstance(node, ast.Assert) for node in ast.walk(tree)) >= 1
    assert text.count("# %%\n") >= 2
    assert "plot.style(" in text


# The default run has the first, whose figure is that of README.md.
CASES = [
    pytest.param(path, id=path.stem, marks=pytest.mark.slow if k else ())
    for k, path in enumerate(EXAMPLES)
]


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
@pytest.mark.parametrize("path", CASES)
def test_an_example_runs_and_its_figures_can_be_printed(path, checks, agg):
    if path.stem[:7] in NEEDS:
        pytest.importorskip(NEEDS[path.stem[:7]])
    runpy.run_path(str(path))
    figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
    assert figures
    for figure in figures:
        assert figure.axes
        for ax in figure.axes:
            # A panel of several may be small.
            faults = [fault for fault in checks.faults(ax) if "the Axes have" not in fault]
            assert not faults
            assert not checks.alike(ax)
            assert ax.get_xlabel() or ax.get_shared_x_axes().get_siblings(ax) != [ax]


@pytest.mark.parametrize("name", sorted(set(NEEDS.values())))
def test_a_missing_library_is_one_line(name, agg, monkeypatch):
    path = next(p for p in EXAMPLES if NEEDS.get(p.stem[:7]) == name)
    monkeypatch.setitem(sys.modules, name, None)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda what: None if what == name else found(what)
    )
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(path))
    (line,) = str(exit_.value).splitlines()
    assert f"polarlib[{name}]" in line


@pytest.mark.slow
def test_the_figure_of_the_readme(agg, monkeypatch, tmp_path):
    maker = module_of(ROOT / "docs" / "make_figures.py")
    kept = maker.FIGURE
    for file in (kept, kept.with_suffix(".svg")):
        assert file.stat().st_size < 150_000
    monkeypatch.setattr(maker, "FIGURE", tmp_path / kept.name)
    maker.figure()
    assert maker.FIGURE.with_suffix(".svg").is_file()
    new, old = (matplotlib.image.imread(file)[..., :3] for file in (maker.FIGURE, kept))
    assert old.shape == (2.4 * 150, 6.9 * 150, 3)
    assert new.shape == old.shape
    # Versions of matplotlib and FreeType move text by a pixel.
    assert np.mean(abs(new - old) > 0.2) < 0.05  # else: python docs/make_figures.py
