"""Pages of the site that are copies of Markdown files outside ``docs/``."""

from __future__ import annotations

import os
import re
from pathlib import Path

FOLDER = "repository"
# Another suffix than .md, so that tests of the pages in docs/ do not read copies.
SUFFIX = ".markdown"
# Links and images of Markdown whose address is a path.
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)\s#]+)")


def page_names(root: Path, pages: dict[str, str | None]) -> dict[Path, str]:
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


def write_copies(docs: Path, pages: dict[str, str | None]) -> None:
    """Write the copies whose text has changed, and remove those without a source."""
    found = page_names(docs.parent, pages)
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
