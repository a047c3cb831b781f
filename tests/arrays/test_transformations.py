"""docs/evidence/transformations.md agrees with its data, which agree with the functions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import module_of

import polarlib

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the pages are not installed")


@pytest.fixture(scope="module")
def maker():
    return module_of(DOCS / "make_transformations.py")


@pytest.fixture(scope="module")
def data(maker):
    return json.loads(maker.DATA.read_text("utf-8"))


def test_the_page_is_made_of_the_data(maker, data):
    assert maker.page(data) == maker.PAGE.read_text("utf-8")


def test_nothing_fails(maker, data):
    """Each entry is right, or raises an error of polarlib."""
    assert set(data) == set(maker.PARTS)
    for part, rows in data.items():
        for name, row in rows.items():
            for label, outcome in row.items():
                assert not outcome.startswith("fails"), f"{part}: {name} under {label}: {outcome}"


def test_functions_of_matrices_have_rows(maker):
    """A new public function that takes a matrix needs a row, or its reason here."""
    # Rules of differentiation themselves, out of core, and measurements for people to read.
    apart = {"orthogonalize_jvp", "orthogonalize_vjp", "polar_jvp", "polar_vjp", "polar_tall"}
    apart |= {"communication", "measure", "methods", "schedule", "schedules", "default_schedule"}
    functions = {
        name
        for name in polarlib.__all__
        if callable(getattr(polarlib, name)) and not isinstance(getattr(polarlib, name), type)
    }
    rows = {label.partition(",")[0] for label in maker.shapes_and_functions()}
    assert functions - apart <= rows


@pytest.mark.slow
@pytest.mark.parametrize("part", ["torch", "jax", "mesh", "dtensor"])
def test_the_table_is_up_to_date(maker, part):
    pytest.importorskip("torch" if part in ("torch", "dtensor") else "jax")
    command = [sys.executable, str(DOCS / "make_transformations.py"), "--check", "--only", part]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(DOCS.parent)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr  # else: python docs/make_transformations.py
