"""Pages that are made, or completed, from other files.

The build warns where a generated block is stale (``docs/make_reference.py``). The line
``<!-- other pages -->`` of an index becomes a toctree of the pages in its folder that the index
does not name, so that none is an orphan.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

MARK = "<!-- other pages -->"


def check_blocks(app: Sphinx) -> None:
    """Warn where a generated block differs from what it would be made from now."""
    import make_reference
    from sphinx.util import logging

    for page in make_reference.PAGES:
        if make_reference.stale(page):
            logging.getLogger(__name__).warning(
                "docs/%s is stale; run python docs/make_reference.py", page, type="pages"
            )


def other_pages(folder: Path, text: str) -> list[str]:
    """Return the pages of a folder that the text of its index does not list in a toctree."""
    blocks = re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    listed = {line.strip() for block in blocks for line in block.splitlines()}
    return sorted({page.stem for page in folder.glob("*.md")} - {"index"} - listed)


def complete(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the mark of an index."""
    if MARK in source[0]:
        names = other_pages(Path(app.srcdir, docname).parent, source[0])
        block = "\n".join(["```{toctree}", ":hidden:", "", *names, "```"]) if names else ""
        source[0] = source[0].replace(MARK, block)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("builder-inited", check_blocks)
    app.connect("source-read", complete)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
