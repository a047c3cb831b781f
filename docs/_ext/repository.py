"""Links from pages to files of the repository that lie outside ``docs/``.

A link to a Markdown file that ``repository_pages`` names leads to a page of the site. Such a page
is either one that exists in ``docs/``, or a copy (``copies.py``). A link to any other file becomes
a download, and a link to a folder becomes its name, because a site cannot show folders.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from copies import page_names, write_copies
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class LinksOutside(SphinxTransform):
    """Resolve links to pages and folders outside ``docs/``."""

    default_priority = 5

    def apply(self, **_: Any) -> None:
        """Replace the links of one page."""
        docs = Path(self.app.srcdir).resolve()
        found = page_names(docs.parent, self.config.repository_pages)
        here = Path(self.env.doc2path(self.env.docname)).resolve().parent
        for node in list(self.document.findall(addnodes.pending_xref)):
            name = node.get("reftarget", "")
            if node.get("refdomain") == "doc":  # MyST: a file that has the suffix of a page
                path = (docs / (name + ".md")).resolve()
            else:
                path = (here / name).resolve()
            if node.get("reftype") != "myst" or not path.exists():
                continue
            if path in found:
                node["refdomain"] = "doc"
                node["reftarget"] = found[path]
                node["reftargetid"] = None
            elif path.is_relative_to(docs):
                continue
            elif path.is_file():
                new = addnodes.download_reference(
                    "", "", *node.children, reftarget=os.path.relpath(path, here), refdoc=""
                )
                new["classes"].append("download")
                node.replace_self(new)
            else:
                node.replace_self(nodes.inline("", "", *node.children))


def copy(app: Sphinx) -> None:
    """Write the copies before pages are read."""
    write_copies(Path(app.srcdir), app.config.repository_pages)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.add_config_value("repository_pages", {}, "env", dict)
    app.connect("builder-inited", copy)
    app.add_transform(LinksOutside)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
