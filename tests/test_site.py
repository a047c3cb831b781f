"""The documentation site: its reference is complete, its pages are listed, its blocks are current.

The site itself is built by ``nox -s docs``.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import runpy
import sys
import tomllib
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import module_of

import polarlib

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PACKAGE = Path(polarlib.__file__).parent
pytestmark = pytest.mark.skipif(
    not (DOCS / "conf.py").is_file() or PACKAGE.parent != ROOT, reason="the site is not installed"
)
# Written by the build.
BUILT = {"_build", "gallery", "repository", "generated"}
SLOW = {"guide/cli.md"}


def load(path: Path) -> ModuleType:
    """Import a file of docs/, which imports others of its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        return module_of(path)


@pytest.fixture(scope="module")
def make_reference() -> ModuleType:
    return load(DOCS / "make_reference.py")


@pytest.fixture(scope="module")
def conf() -> dict[str, Any]:
    before = list(sys.path)
    try:
        return runpy.run_path(str(DOCS / "conf.py"))
    finally:
        sys.path[:] = before


@pytest.fixture(scope="module")
def sources() -> dict[str, dict[str, list[str]]]:
    return tomllib.loads((DOCS / "sources.toml").read_text(encoding="utf-8"))


def pages() -> dict[str, str]:
    """Return the texts of the pages in docs/, by name."""
    found = {path.relative_to(DOCS): path for path in sorted(DOCS.rglob("*.md"))}
    return {
        str(name.with_suffix("").as_posix()): path.read_text(encoding="utf-8")
        for name, path in found.items()
        if not BUILT & set(name.parts)
    }


@pytest.fixture(scope="module")
def documented(make_reference) -> list[str]:
    """Return the names that the pages of the reference list."""
    return [
        name
        for page, text in pages().items()
        if page.startswith("reference/")
        for name in make_reference.blocks.documented(text)
    ]


def test_every_public_name_is_in_the_reference(make_reference, documented):
    modules = [module for found in make_reference.blocks.HOMES.values() for module in found]
    assert {f"polarlib.{n}" for n in polarlib.__all__ if inspect.ismodule(getattr(polarlib, n))} < (
        set(modules)
    )
    missing = {n for module in modules for n in make_reference.blocks.public_names(module)}
    missing -= set(documented)
    assert missing == set()  # else: python docs/make_reference.py


def test_the_reference_names_what_there_is(documented):
    assert len(documented) > 150
    assert sorted(set(documented)) == sorted(documented)
    for name in documented:
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last), name


def test_pages_of_names_differ_in_more_than_case(conf, documented):
    renamed = conf["autosummary_filename_map"]
    # Constants have no pages of their own.
    own = [name for name in documented if not name.rpartition(".")[2].isupper()]
    found = [renamed.get(name, name).lower() for name in own]
    assert sorted(set(found)) == sorted(found)
    assert set(renamed) <= set(documented)


def listed_pages() -> set[str]:
    """Return the pages that toctrees list, those of patterns included."""
    texts = pages()
    found = {"index"}
    for name, text in texts.items():
        folder = name.rpartition("/")[0]
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                entry = line.strip()
                if not entry or entry.startswith(":"):
                    continue
                full = entry[1:] if entry.startswith("/") else f"{folder}/{entry}".lstrip("/")
                pattern = re.escape(full).replace(r"\*", "[^/]*")
                found |= {each for each in texts if re.fullmatch(pattern, each)} | {full}
    return found


def test_every_page_is_in_a_toctree():
    assert set(pages()) - listed_pages() == set()


def test_toctrees_list_what_there_is():
    built = ("gallery/", "repository/")
    known = set(pages())
    unknown = {n for n in listed_pages() - known if "*" not in n and not n.startswith(built)}
    assert unknown == set()


def test_configuration(conf):
    own = {path.stem for path in (DOCS / "_ext").glob("*.py")} - {"copies", "inventories"}
    assert own <= set(conf["extensions"])
    assert conf["release"] == polarlib.__version__
    for pattern in conf["repository_pages"]:
        assert list(ROOT.glob(pattern)), pattern


def test_inventories_list_names_of_libraries(tmp_path):
    inventories = load(DOCS / "_ext" / "inventories.py")
    found = inventories.mapping(DOCS / "_ext" / "inventories.toml", tmp_path)
    assert {"python", "numpy", "scipy", "torch", "jax"} <= set(found)
    for address, path in found.values():
        assert address.startswith("https://")
        assert address.endswith("/")
        *head, body = Path(path).read_bytes().split(b"\n", 4)
        assert head[0] == b"# Sphinx inventory version 2"
        for line in zlib.decompress(body).decode().splitlines():
            assert re.fullmatch(r"[\w.]+ py:\w+ 1 [\w./#-]+ -", line), line


# -- generated blocks ------------------------------------------------------------------------


def page_parameters() -> list[Any]:
    if not (DOCS / "make_reference.py").is_file():
        return []
    names = sorted(load(DOCS / "make_reference.py").PAGES)
    return [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW), id=n) for n in names]


@pytest.mark.parametrize("page", page_parameters())
def test_generated_blocks_are_current(page, make_reference):
    assert not make_reference.stale(page)  # else: python docs/make_reference.py


def test_a_stale_block_is_noticed(make_reference):
    page = "citing.md"
    text = (DOCS / page).read_text(encoding="utf-8")
    assert make_reference.filled(page, text) == text
    other = text.replace("| `qdwh` |", "| `qwdh` |")
    assert make_reference.filled(page, other) == text
    with pytest.raises(ValueError, match="must have one pair"):
        make_reference.filled(page, text.replace("<!-- end sets -->", ""))


def test_the_command_line_page_has_every_command(make_reference):
    import typer

    from polarlib import cli

    assert set(make_reference.COMMANDS) == set(typer.main.get_command(cli.app).commands)


def test_every_exception_is_on_its_page():
    text = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    # Caught inside of the package, or control flow.
    inside = {"NotPositiveError", "LibraryNotFound", "LookupError", "SystemExit"}
    kinds = r"[A-Z]\w+(?:Error|Warning|NotFound|Exit)"
    found = {
        name
        for path in PACKAGE.rglob("*.py")
        for name in re.findall(rf"^ +raise (?:\w+\.)?({kinds})\(", path.read_text("utf-8"), re.M)
    }
    assert len(found) > 10
    assert {n for n in found - inside if f"`{n}`" not in text} == set()


# -- sources ---------------------------------------------------------------------------------


def test_sources_are_in_the_bibliography(sources):
    bibliography = (DOCS / "references.bib").read_text(encoding="utf-8")
    keys = re.findall(r"^@\w+\{(\w+),", bibliography, re.MULTILINE)
    assert sorted(set(keys)) == sorted(keys)
    cited = {key for part in sources.values() for found in part.values() for key in found}
    for text in pages().values():
        for found in re.findall(r"\{cite:[pt]\}`([^`]+)`", text):
            cited |= set(found.split(","))
    assert cited <= set(keys)
    assert set(keys) - cited == set()


def test_sources_name_what_there_is(sources, documented):
    assert set(sources["names"]) <= set(documented)
    assert set(sources["sets"]) == set(polarlib.schedules())
    assert set(sources["methods"]) == set(polarlib.methods()) - set(polarlib.schedules())


# -- extensions ------------------------------------------------------------------------------


def test_docstrings_become_restructured_text():
    docstrings = load(DOCS / "_ext" / "docstrings.py")
    lines = [
        "Bound |x| by ``|y",
        "z|``.",
        "",
        "Notes",
        "-----",
        "Then,",
        "",
        "    |R| <= 1",
        "",
        "Examples",
        "--------",
        ">>> a | b|c",
    ]
    found = list(docstrings.escaped(docstrings.with_literal_blocks(lines)))
    assert found[:2] == [r"Bound \|x\| by ``|y", "z|``."]
    assert found[6:10] == ["", ".. code-block:: none", "", "    |R| <= 1"][0:4]
    assert found[-1] == ">>> a | b|c"


def test_copies_have_links_of_their_place(tmp_path):
    copies = load(DOCS / "_ext" / "copies.py")
    docs = tmp_path / "docs"
    (tmp_path / "analysis").mkdir()
    (docs / "guide").mkdir(parents=True)
    (tmp_path / "README.md").write_text("# Readme")
    text = "[a](../docs/guide/x.md#y) [b](run.py) [c](../README.md) [d](https://e.org) [e](#f)"
    (tmp_path / "analysis" / "README.md").write_text(text)
    pages = {"README.md": "index", "analysis/README.md": None}
    copies.write_copies(docs, pages)
    copy = docs / "repository" / "analysis" / "README.markdown"
    assert copy.read_text() == (
        "[a](../../guide/x.md#y) [b](../../../analysis/run.py) [c](../../index.md) "
        "[d](https://e.org) [e](#f)"
    )
    (tmp_path / "analysis" / "README.md").unlink()
    copies.write_copies(docs, pages)
    assert not copy.exists()


def test_broken_links_are_found(tmp_path):
    check = load(DOCS / "check_links.py")
    (tmp_path / "folder").mkdir()
    (tmp_path / "index.html").write_text(
        '<a href="folder/page.html#here">x</a> <a href="folder/page.html#there">x</a>'
        '<img src="none.png"> <a href="https://e.org/none">x</a> <a href="#">x</a>'
    )
    (tmp_path / "folder" / "page.html").write_text('<p id="here"><a href="../index.html">x</a>')
    assert check.broken(tmp_path) == [
        "index.html: folder/page.html#there: no such anchor",
        "index.html: none.png: no such file",
    ]
