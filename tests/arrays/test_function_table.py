"""docs/evidence/functions.md agrees with its data, which agree with the functions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ml_dtype, module_of

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the pages are not installed")


@pytest.fixture(scope="module")
def maker():
    return module_of(DOCS / "make_functions.py")


@pytest.fixture(scope="module")
def data(maker):
    return json.loads(maker.DATA.read_text("utf-8"))


def test_the_page_is_made_of_the_data(maker, data):
    others = json.loads(maker.transformations.DATA.read_text("utf-8"))
    # else: python docs/make_functions.py --page
    assert maker.page(data, others) == maker.PAGE.read_text("utf-8")
    guide = maker.GUIDE.read_text("utf-8")
    assert maker.filled(guide, maker.summary(data, others)) == guide


def test_the_counts_of_the_guide(maker, data):
    """Counts are those of the data, and fall where an outcome is not correct."""
    others = json.loads(maker.transformations.DATA.read_text("utf-8"))
    worse = json.loads(json.dumps(data))
    worse["torch"]["polar"]["float32"] = "refused"
    rows = [
        next(line for line in maker.summary(d, others).splitlines() if line.startswith("| torch"))
        for d in (data, worse)
    ]
    before, after = (int(row.split("|")[2]) for row in rows)
    assert before == sum(
        row["float32"] == row["float64"] == "works" for row in data["torch"].values()
    )
    assert after == before - 1
    with pytest.raises(ValueError, match="must have one <!-- begin functions -->"):
        maker.filled("no table", "")


def test_nothing_fails(maker, data):
    """Each entry is right, or raises an error of polarlib, for every function."""
    assert list(data) == list(maker.LIBRARIES)
    for library, rows in data.items():
        assert list(rows) == list(maker.transformations.shapes_and_functions())
        for name, row in rows.items():
            assert list(row) == list(maker.DTYPES)
            for dtype, outcome in row.items():
                assert not outcome.startswith("fails"), f"{library}: {name} in {dtype}: {outcome}"


def test_numpy_is_up_to_date(maker, data):
    made, kept = maker.measured("numpy"), data["numpy"]  # else: python docs/make_functions.py
    one = np.ones((1, 1), ml_dtype("bfloat16"))
    if (one @ one).dtype != one.dtype:
        # With older versions of ml_dtypes or NumPy, arguments that are products are in float32.
        made, kept = (
            {name: row | {"bfloat16": "works"} for name, row in table.items()}
            for table in (made, kept)
        )
    assert made == kept


def test_wrong_results_are_noticed(maker):
    a = maker.matrix((6, 3), "float32")
    off = lambda x: x + 0.1 * (x.dtype == "float32")  # noqa: E731
    for wrong in (off, lambda x: x.astype("float64"), np.ma.masked_array):
        assert maker.called(wrong, a, "float32", "numpy").startswith("fails")
    assert maker.called(lambda x: x, a, "float32", "numpy") == "works"


@pytest.mark.slow
@pytest.mark.parametrize("library", ["cupy", "torch", "jax", "dask"])
def test_the_table_is_up_to_date(maker, library):
    if library != "cupy":
        pytest.importorskip(library)
    command = [sys.executable, str(DOCS / "make_functions.py"), "--check", "--only", library]
    environment = os.environ | {"PYTHONPATH": str(DOCS.parent)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr  # else: python docs/make_functions.py
