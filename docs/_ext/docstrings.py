"""Docstrings of public names, as the reference shows them.

They are written for readers of ``help()``: formulas are indented, ``|x|`` is an absolute value. For
reStructuredText, formulas become literal blocks and bars are escaped. References are added from
``docs/sources.toml``. Fields of named tuples are left out, because their class describes them.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

INLINE = re.compile(r"(``.+?``)", re.DOTALL)
BAR = re.compile(r"\|(?=\S)|(?<=\S)\|")
REFERENCES = ".. rubric:: References"
LITERAL = ".. code-block:: none"


def escaped(lines: list[str]) -> Iterator[str]:
    """Escape the bars of absolute values, outside of literals and of examples."""
    literal = False
    for blank, group in itertools.groupby(lines, lambda line: not line.strip()):
        block = list(group)
        literal = literal and (blank or block[0].startswith("    "))
        if not blank and not literal:
            example = [i for i, line in enumerate(block) if line.lstrip().startswith(">>>")]
            end = example[0] if example else len(block)
            parts = INLINE.split("\n".join(block[:end]))
            parts[::2] = [BAR.sub(r"\\|", part) for part in parts[::2]]
            block[:end] = "".join(parts).split("\n") if end else []
        yield from block
        literal = literal or block[-1].startswith(LITERAL)


def with_literal_blocks(lines: list[str]) -> list[str]:
    """Mark the indented formulas of the section Notes as literal blocks."""
    found: list[str] = []
    notes = literal = False
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if re.fullmatch(r"-{3,}", after):
            notes = line == "Notes"
        literal = literal and (not line or line.startswith(" "))
        if notes and line.startswith("    ") and not literal and found and not found[-1]:
            before = next((each for each in reversed(found) if each), "")
            if not before.endswith("::") and not before.startswith(("..", " ", "-", "*")):
                found += [LITERAL, ""]
            literal = True
        found.append(line)
    return found


def linked(line: str, pages: Container[str]) -> str:
    """Make links of the pages of docs/ that a line names."""

    def link(match: re.Match[str]) -> str:
        return f":doc:`/{match[1]}`" if match[1] in pages else match[0]

    return re.sub(r"(?<![\w/`])docs/([\w/]+)\.md\b", link, line)


def prepare(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Rewrite a docstring before numpydoc reads it."""
    pages = app.env.found_docs
    lines[:] = [linked(line, pages) for line in escaped(with_literal_blocks(lines))]


def add_sources(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Add the sources of a name to its references, which stand before its examples."""
    keys = app.config.sources_by_name.get(name)
    if keys:
        heading = [] if REFERENCES in lines else [REFERENCES, ""]
        text = [*heading, f":cite:p:`{','.join(keys)}`", ""]
        examples = [i for i, line in enumerate(lines) if line.startswith(".. rubric:: Examples")]
        at = examples[0] if examples else len(lines)
        lines[at:at] = text if examples else ["", *text]


def skip(
    app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: object
) -> bool | None:
    """Leave out fields of named tuples."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def read_sources(app: Sphinx, config: Any) -> None:
    """Read ``docs/sources.toml``; a change of it rebuilds the pages."""
    text = (Path(app.srcdir) / "sources.toml").read_text(encoding="utf-8")
    config.sources_by_name = tomllib.loads(text)["names"]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.add_config_value("sources_by_name", {}, "env", dict)
    app.connect("config-inited", read_sources)
    app.connect("autodoc-process-docstring", prepare, priority=100)
    app.connect("autodoc-process-docstring", add_sources, priority=900)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
