"""Sections "Sources" on the pages of public names, from ``docs/sources.toml``."""

from __future__ import annotations

import tomllib
from pathlib import Path

from sphinx.application import Sphinx


def keys_by_name(docs: Path) -> dict[str, list[str]]:
    """Return the keys of references.bib by public name."""
    with (docs / "sources.toml").open("rb") as file:
        names: dict[str, list[str]] = tomllib.load(file)["names"]
    return names


def add_sources(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Append the sources of a name to its docstring, before its examples."""
    keys = app.config.sources_by_name.get(name)
    if keys:
        text = [".. rubric:: Sources", "", f":cite:p:`{','.join(keys)}`", ""]
        examples = [i for i, line in enumerate(lines) if line.startswith(".. rubric:: Examples")]
        at = examples[0] if examples else len(lines)
        lines[at:at] = text if examples else ["", *text]


def read_sources(app: Sphinx) -> None:
    """Read the keys once; a change rebuilds the pages of the reference."""
    app.config.sources_by_name = keys_by_name(Path(app.srcdir))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.add_config_value("sources_by_name", {}, "env", dict)
    app.connect("builder-inited", read_sources)
    app.connect("autodoc-process-docstring", add_sources, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
