"""Check the internal links of a built site: ``python docs/check_links.py docs/_build/html``.

Every relative address of every page must name a file of the site, and every fragment an element of
the page it names.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The addresses and the identifiers of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value is not None:
                self.links.append(value)
            elif name == "id" or (name == "name" and tag == "a"):
                self.ids.add(value or "")


def broken(site: Path) -> list[str]:
    """Return the links of a site that lead nowhere, each with its page."""
    site = site.resolve()
    files = [p for p in sorted(site.rglob("*.html")) if p.relative_to(site).parts[0] != "_static"]
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in files}
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target = target / "index.html"
            fragment = unquote(parts.fragment)
            if not target.is_file():
                found.append(f"{path.relative_to(site)}: {link}: no such file")
            elif target in pages and fragment not in pages[target].ids:
                found.append(f"{path.relative_to(site)}: {link}: no such anchor")
    return found


def main() -> None:
    """Print what is broken, and exit with 1 if anything is."""
    found = broken(Path(sys.argv[1]))
    sys.stdout.writelines(f"{line}\n" for line in found)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
