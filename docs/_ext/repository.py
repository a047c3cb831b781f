"""Links from pages to files of the repository that lie outside ``docs/``.

A link to a Markdown file that ``repository_pages`` names leads to a page of the site. Such a page is
either one that exists in ``docs/``, or a copy that is written to ``docs/repository/`` before the
build, with its links rewritten. A link to any other file becomes a download, and a link to a folder
becomes its name, because a site cannot show folders.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

LOG = logging.getLogger(__name__)
FOLDER = "repository"
# Another suffix than .md, so that tests of the pages in docs/ do not read copies.
SUFFIX = ".markdown"
# Links and images of Markdown whose address is a path.
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)\s#]+)")


def copies(root: Path, pages: dict[str, str | None]) -> dict[Path, str]:
    """Return the files that have a page of the site, and the name of that page.

    Parameters
    ----------
    root : Path
        Folder of the repository.
    pages : dict
        Pattern of a path, and the page that shows the file; None for a copy.
    """
    return {
        path: page or f"{FOLDER}/{path.relative_to(root).with_suffix('').as_posix()}"
        for pattern, page in pages.items()
        for path in sorted(root.glob(pattern))
    }


def rewritten(text: str, source: Path, target: Path, shown: dict[Path, Path]) -> str:
    """Return the text of a Markdown file with its relative links as seen from another place."""

    def link(match: re.Match[str]) -> str:
        path = (source.parent / match[2]).resolve()
        return match[1] + Path(os.path.relpath(shown.get(path, path), target.parent)).as_posix()

    return LINK.sub(link, text)


def write_copies(app: Sphinx) -> None:
    """Write the copies whose text has changed, and remove those without a source."""
    docs = Path(app.srcdir)
    root = docs.parent
    found = copies(root, app.config.repository_pages)
    written = {
        source: docs / (page + SUFFIX)
        for source, page in found.items()
        if page.startswith(f"{FOLDER}/")
    }
    shown = {source: docs / (page + ".md") for source, page in found.items()} | written
    for source, target in written.items():
        text = rewritten(source.read_text(encoding="utf-8"), source, target, shown)
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    for target in (docs / FOLDER).rglob("*" + SUFFIX):
        if target not in written.values():
            target.unlink()


class LinksOutside(SphinxTransform):
    """Resolve links to pages and folders outside ``docs/``."""

    default_priority = 5

    def apply(self, **_: Any) -> None:
        """Replace the links of one page."""
        docs = Path(self.app.srcdir).resolve()
        found = copies(docs.parent, self.config.repository_pages)
        here = Path(self.env.doc2path(self.env.docname)).resolve().parent
        for node in list(self.document.findall(addnodes.pending_xref)):
            name = node.get("reftarget", "")
            if node.get("refdomain") == "doc":  # MyST: a file that has the suffix of a page
                path = (docs / (name + ".md")).resolve()
            else:
                path = (here / name).resolve()
            if node.get("reftype") != "myst" or not path.exists() or path.is_relative_to(docs):
                continue
            if path in found:
                node["refdomain"] = "doc"
                node["reftarget"] = found[path]
                node["reftargetid"] = None
            elif path.is_file():
                new = addnodes.download_reference(
                    "", "", *node.children, reftarget=os.path.relpath(path, here), refdoc=""
                )
                new["classes"].append("download")
                node.replace_self(new)
            else:
                node.replace_self(nodes.inline("", "", *node.children))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.add_config_value("repository_pages", {}, "env", dict)
    app.connect("builder-inited", write_copies)
    app.add_transform(LinksOutside)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
