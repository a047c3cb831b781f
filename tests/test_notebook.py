"""Tables of results in notebooks: well-formed, escaped, of every library, without further work."""

import dataclasses
import math

import numpy as np
import pytest
from markup import VOID, Markup

import polarlib
from polarlib import design
from polarlib.files.tables import cell, html_table

A = np.random.default_rng(6).standard_normal((9, 4))


class Table(Markup):
    """What a page has: elements closed in order, and the text of its cells by row."""

    def __init__(self, page):
        self.rows, self.caption, self.scopes = [], "", []
        super().__init__(page)

    def handle_starttag(self, tag, attrs):
        assert tag not in VOID
        super().handle_starttag(tag, attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag == "th":
            self.scopes.append(dict(attrs)["scope"])
        style = dict(attrs).get("style", "")
        assert "color" not in style
        assert "background" not in style

    def handle_data(self, data):
        if self.open[-1] == "caption":
            self.caption += data
        else:
            self.rows[-1][-1] += data

    def __getitem__(self, name):
        (row,) = [row for row in self.rows if row[0] == name]
        return row[1]


def parsed(result):
    table = Table(result._repr_html_())
    tags = [tag for tag, _ in table.tags]
    assert set(tags) <= {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert tags[0] == "table"
    assert table.caption
    assert set(table.scopes) <= {"row", "col"}
    assert table.scopes
    return table


POINTS = A[:6, :3]
RESULTS = {
    "PolarResult": lambda: polarlib.polar(A),
    "PolarResult of a stack": lambda: polarlib.polar(np.stack([A, A + 1])),
    "PolarResult, empty": lambda: polarlib.polar(np.zeros((0, 3))),
    "PolarResult, zero": lambda: polarlib.polar(np.zeros((3, 3))),
    "Schedule": lambda: polarlib.schedule("jordan"),
    "Schedule, rational": lambda: design.zolotarev(2, 1e-3),
    "Schedule, another target": lambda: (
        polarlib.schedule(polarlib.schedules(target="clip")[0])
        if polarlib.schedules(target="clip")
        else design.clip(2.0, [5])
    ),
    "Comparison": lambda: polarlib.schedule("jordan").compare(polarlib.schedule("cubic5")),
    "Trace": lambda: polarlib.measure(A, "jordan"),
    "Certificate": lambda: polarlib.schedule("polar_express").certify(),
    "Certificate, format": lambda: polarlib.schedule("polar_express").certify(format="bfloat16"),
    "Alignment": lambda: polarlib.align(POINTS, POINTS[::-1]),
    "Alignment, stack": lambda: polarlib.align(np.stack([POINTS] * 2), POINTS[::-1]),
    "GeneralizedProcrustes": lambda: polarlib.generalized_procrustes(np.stack([POINTS] * 3)),
    "Fingerprint": lambda: design.fingerprint(polarlib.schedule("jordan").steps[0]),
    "Spectrum": lambda: design.marchenko_pastur(100, 30),
    "Minimax": lambda: design.best(5, 0.1),
    "DegreeSequence": lambda: design.frontier(0.1, 6)[-1],
}


@pytest.mark.parametrize("kind", RESULTS)
def test_tables(kind):
    parsed(RESULTS[kind]())


def test_factors_are_summarised():
    table = parsed(polarlib.polar(A))
    assert table["unitary"] == "float64, shape (9, 4)"
    assert table["hermitian"] == "float64, shape (4, 4)"
    assert len(table.rows) < 16


def test_values_of_alignment():
    found = polarlib.align(POINTS, POINTS + 1.0, scale=True)
    table = parsed(found)
    assert table["unique"] == "yes"
    assert float(table["scale"]) == pytest.approx(1)
    assert table["rotation"] == "float64, shape (3, 3)"
    assert float(table["rmsd"]) < 1e-14


def test_markup_is_escaped():
    name = "<b>bold</b> & <script>alert('x')</script>"
    s = polarlib.Schedule(steps=[(1.5, -0.5)], lower=0.1, name=name)
    assert name in parsed(s).caption
    assert "<b>" not in s._repr_html_()
    assert name in parsed(polarlib.measure(A, s)).caption
    head = parsed(s.compare(polarlib.schedule("jordan"))).rows[0]
    assert name in head
    spectrum = design.marchenko_pastur(9, 4)._replace(name=name)
    assert name in parsed(spectrum).caption
    page = dataclasses.replace(polarlib.polar(A), reason=name)._repr_html_()
    assert "<b>" not in page
    assert "<script>" not in page


def test_nan_and_none():
    s = dataclasses.replace(polarlib.polar(A), orthogonality=math.nan, rank=None, status=None)
    table = parsed(s)
    assert table["orthogonality"] == "nan"
    with np.errstate(all="ignore"):
        t = polarlib.measure(np.diag([1.0, 0.0]), "newton")
    assert parsed(t)["error"] == "nan"
    assert (cell(None), cell(math.nan), cell(np.float32(math.inf))) == ("-", "nan", "inf")
    assert cell((1, None, 0.25)) == "(1, -, 0.25)"
    assert cell(range(3)) == "range(0, 3)"
    assert cell(list(range(9))) == "9 values"
    assert parsed_rows(html_table("", {"a": [1, None]}, ("", "b", "c"))) == [
        ["", "b", "c"],
        ["a", "1", "-"],
    ]


def parsed_rows(page):
    return Table(page).rows


def test_nothing_is_computed_that_repr_does_not(monkeypatch):
    read = []
    result = polarlib.polar(np.random.default_rng(0).standard_normal((80, 80)))
    original = type(result).__getattr__
    monkeypatch.setattr(
        type(result), "__getattr__", lambda self, name: read.append(name) or original(self, name)
    )
    again = result._replace()
    repr(result)
    of_repr, read[:] = set(read), []
    again._repr_html_()
    assert set(read) <= of_repr | {"_repr_html_"}


def test_every_library(lib):
    table = parsed(polarlib.polar(lib.asarray(A.astype("float32"))))
    assert table["unitary"] == "float32, shape (9, 4)"


def test_tensors_that_record_derivatives():
    torch = pytest.importorskip("torch")
    points = torch.tensor(POINTS, requires_grad=True)
    table = parsed(polarlib.align(points, points.detach().flip(0)))
    assert float(table["rmsd"]) > 0
    parsed(polarlib.polar(torch.tensor(A, requires_grad=True)))


def test_traced_arrays():
    jax = pytest.importorskip("jax")
    pages = []

    def f(a):
        for result in (polarlib.polar(a), polarlib.align(a, a[::-1])):
            pages.append(result._repr_html_())
        found = polarlib.generalized_procrustes(jax.numpy.stack([a, a]), rtol=0, max_iterations=1)
        pages.append(found._repr_html_())
        return found

    jax.eval_shape(f, jax.numpy.asarray(POINTS))  # traced as under jit, and not compiled
    assert len(pages) == 3
    assert all(Table(page).rows for page in pages)
    assert Table(pages[0])["unitary"].endswith("shape (6, 3)")


def test_trees_without_arrays():
    jax = pytest.importorskip("jax")
    result = polarlib.polar(jax.numpy.asarray(A))
    odd = jax.tree.map(lambda _: "leaf <i>", result)
    assert Table(odd._repr_html_())["unitary"] == "leaf <i>"
